"""What a server can do to who asks it: bounds in time, memory and requests, and one line of error."""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
import logging
import math
import time
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hostile_server import HostileServer, answer
from huggingface_hub import close_session

from hf_lineage.answers.refs import ModelRef
from hf_lineage.cli import main
from hf_lineage.errors import ArgumentError, BrokenFileError, HubUnavailableError, LineageError, TimeOverError
from hf_lineage.hub import client
from hf_lineage.hub.client import Hub
from hf_lineage.hub.listing import listing
from hf_lineage.tasks.options import Options

pytestmark = pytest.mark.integration

SHA, OTHER = "a" * 40, "b" * 40
REPO = {"id": "lab/x", "sha": SHA, "siblings": [{"rfilename": "model.safetensors"}]}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the client wanted to sleep."""
    found: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": found.append})
    monkeypatch.setattr(client, "time", clock)
    yield found
    close_session()


def hub_of(server: HostileServer, *, answered: bool = True) -> Hub:
    hub = Hub(False)
    hub.endpoint, hub.answered = server.url, answered
    return hub


def ask(server: HostileServer, **about: bool) -> Any:
    return hub_of(server, **about).get(f"{server.url}/api/models/lab/x", {}, "`lab/x`")


class TestTime:
    def test_who_never_answers_is_given_up_within_ten_seconds(self, waits, monkeypatch) -> None:
        """It was 207 s: six tries of 30 s, and the waits between them."""
        assert client.FIRST_SECONDS < 10
        monkeypatch.setattr(client, "FIRST_SECONDS", 0.3)
        with HostileServer(lambda *_: None) as server:
            with pytest.raises(HubUnavailableError, match="did not answer") as caught:
                ask(server, answered=False)
            assert server.asked == 1 and not waits and "\n" not in str(caught.value)

    def test_who_answered_before_is_asked_again_and_that_is_said(self, waits, monkeypatch, caplog) -> None:
        monkeypatch.setattr(client, "TIMEOUT", 0.2)
        with HostileServer(lambda *_: None) as server, pytest.raises(HubUnavailableError, match="did not answer"):
            ask(server)
        assert server.asked == client.SILENCES and "no answer of the Hub; trying again" in caplog.text

    @pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
    def test_a_byte_now_and_then_is_no_answer(self, waits, monkeypatch, head: bytes) -> None:
        monkeypatch.setattr(client, "REQUEST_SECONDS", 0.6)

        def drip(*_: Any) -> Any:
            yield head
            while True:
                time.sleep(0.05)
                yield b" "

        started = time.monotonic()
        with HostileServer(drip) as server, pytest.raises(HubUnavailableError):
            ask(server)
        assert time.monotonic() - started < 60, "for ever, as the time-out of a socket begins anew with every byte"

    @pytest.mark.parametrize("named", ["1000000000", "9" * 400, "²", "-1", "soon"])
    def test_how_long_to_wait_is_no_order(self, waits, caplog, named: str) -> None:
        with (
            HostileServer(
                lambda *_: answer(status="429 Too Many", Retry_After=named.encode().decode("latin-1"))
            ) as server,
            pytest.raises(HubUnavailableError),
        ):
            ask(server)
        assert sum(waits) <= client.RETRIES * client.MAX_WAIT

    def test_a_bounded_wait_is_waited_and_said(self, waits, caplog) -> None:
        replies = itertools.chain([answer(status="429 Too Many", Retry_After="70")], itertools.repeat(answer(b"{}")))
        with HostileServer(lambda *_: next(replies)) as server, caplog.at_level(logging.WARNING):
            assert ask(server) == ({}, None)
        assert waits == [71.0] and "Waiting 71 s before `lab/x` is asked for again" in caplog.text

    def test_a_question_with_its_time_over_asks_nothing(self, waits) -> None:
        with HostileServer(lambda *_: answer(b"{}")) as server:
            hub = hub_of(server)
            hub.ends = time.monotonic() - 1
            with pytest.raises(HubUnavailableError, match="in the time that is given"):
                hub.get(server.url, {}, "`lab/x`")
            assert server.asked == 0

    def test_reading_ends_when_the_time_is_over(self) -> None:
        called = []
        options = Options(timeout=0.01, progress=lambda *about: called.append(about))
        options.progress(1, 2, "")
        time.sleep(0.02)
        with pytest.raises(TimeOverError, match=r"0\.01 seconds"):
            options.progress(2, 2, "")
        assert called == [(1, 2, "")] and Options().ends == math.inf
        with pytest.raises(ArgumentError, match="timeout"):
            Options(timeout=0)

    def test_a_command_ends_when_its_time_is_over(self, monkeypatch, capsys) -> None:
        importlib.import_module("hf_lineage.tasks.trace")  # a signal while pytest compiles it would be pytest's error
        with HostileServer(lambda *_: None) as server:
            monkeypatch.setattr(client.constants, "ENDPOINT", server.url)
            with pytest.raises(SystemExit) as caught:
                main(["trace", "lab/x", "-c", "lab/y", "--timeout", "0.5"])
        said = capsys.readouterr().err
        assert caught.value.code == 1 and said.startswith("error: The time limit of 0.5 seconds is over.")


class TestSize:
    @pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
    def test_a_bomb_is_not_unpacked(self, waits, status: str) -> None:
        """0.6 MB of gzip became 2.4 GB."""
        bomb = gzip.compress(b" " * (200 << 20), 1)
        with HostileServer(lambda *_: answer(bomb, status, Content_Encoding="gzip")) as server:
            tracemalloc.start()
            with pytest.raises(LineageError):
                ask(server)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 4 * client.MAX_ANSWER

    def test_what_was_packed_otherwise_is_not_unpacked(self, waits) -> None:
        packed = answer(b"x", Content_Encoding="zstd")
        with HostileServer(lambda *_: packed) as server, pytest.raises(HubUnavailableError):
            ask(server)

    def test_links_to_a_next_page_may_never_end(self, waits) -> None:
        pages = itertools.count()

        def reply(*_: Any) -> bytes:
            body = json.dumps([{"id": "lab/x"}, 5, {"id": 7}] if next(pages) else [{"id": "lab/x"}, {"id": "lab/y"}])
            return answer(body.encode(), Link=f'<{server.url}/api/models?cursor={next(pages)}>; rel="next"')

        with HostileServer(reply) as server:
            found = [item.id for item in listing(hub_of(server), limit=10**9)]
        assert found == ["lab/x", "lab/y"] and server.asked == 2, "a page without anything new is the last"


def repo_replies(head: dict[str, Any], get: Any) -> Any:
    """What a server sends of one repo: facts, then HEAD and GET of its only file."""

    def reply(method: str, path: str, headers: dict[str, str]) -> Any:
        if path.startswith("/api/"):
            return answer(json.dumps(REPO).encode())
        if method == "HEAD":
            about = {"X_Repo_Commit": SHA, "ETag": '"one"', "Content_Length": 100}
            return answer(**{**about, **head})
        return get(headers["range"]) if callable(get) else get

    return reply


def opened(server: HostileServer) -> Any:
    return hub_of(server).repo(ModelRef("hub", "lab/x")).open("model.safetensors")


def part(range_header: str, etag: str | None = '"one"') -> bytes:
    start, stop = map(int, range_header.removeprefix("bytes=").split("-"))
    about = {"Content_Range": f"bytes {start}-{stop}/100", "ETag": etag}
    return answer(b"x" * (stop + 1 - start), "206 Partial Content", **about)


class TestChanges:
    """What came of two states of a file is never put together."""

    def test_the_same_content(self, waits) -> None:
        with HostileServer(repo_replies({}, part)) as server:
            assert opened(server).read([(0, 10), (90, 100)]) == [b"x" * 10, b"x" * 10]

    def test_another_hash_in_the_second_range(self, waits) -> None:
        tags = itertools.chain(['"one"'], itertools.repeat('"two"'))
        with HostileServer(repo_replies({}, lambda asked: part(asked, next(tags)))) as server:
            file = opened(server)
            file.read([(0, 10)])
            with pytest.raises(BrokenFileError, match=r"stay as it was.*changed while it was read.*Run again"):
                file.read([(90, 100)])

    def test_another_commit_than_was_asked_for(self, waits) -> None:
        replies = repo_replies({"X_Repo_Commit": OTHER}, part)
        with HostileServer(replies) as server, pytest.raises(BrokenFileError, match="stay as it was"):
            opened(server)

    def test_a_server_without_hashes_is_read(self, waits) -> None:
        with HostileServer(repo_replies({"ETag": None}, lambda asked: part(asked, None))) as server:
            assert opened(server).read([(0, 10)]) == [b"x" * 10]


UGLY: dict[str, dict[str, Any]] = {
    "an address that is none": {"Location": "http://[::1", "status": "302 Found"},
    "a port that is none": {"Location": "http://a:99999999/", "status": "302 Found"},
    "a control character in an address": {"Location": "http://a/\x7f", "status": "302 Found"},
    "another scheme": {"Location": "file:///etc/passwd", "status": "302 Found"},
    "a negative size": {"Content_Length": None, "X_Linked_Size": "-5"},
    "a size that is no number": {"Content_Length": None, "X_Linked_Size": "²"},
    "a size beyond all": {"X_Linked_Size": "1" + "0" * 30},
    "a negative length": {"Content_Length": -5},
}


@pytest.mark.parametrize("name", UGLY)
def test_ugly_values_are_an_error_of_one_line(waits, name: str) -> None:
    replies = repo_replies(UGLY[name], answer(status="500 Oops"))
    with HostileServer(replies) as server, pytest.raises(LineageError) as caught:
        opened(server).read([(0, 10)])
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"id": "lab/x", "sha": 5, "siblings": []}', b"5", b"\xff", b"",
             json.dumps({**REPO, "siblings": 5}).encode(), json.dumps({**REPO, "id": "../../etc"}).encode()],
)  # fmt: skip
def test_ugly_facts_are_an_error_of_one_line(waits, data: bytes) -> None:
    with HostileServer(lambda *_: answer(data)) as server, pytest.raises(HubUnavailableError) as caught:
        hub_of(server).repo(ModelRef("hub", "lab/x"))
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_left_out(waits) -> None:
    siblings = [5, None, {"rfilename": 7}, {"rfilename": "README.md"}]
    with HostileServer(lambda *_: answer(json.dumps({**REPO, "siblings": siblings}).encode())) as server:
        assert hub_of(server).repo(ModelRef("hub", "lab/x")).files == {"README.md"}
