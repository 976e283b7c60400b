"""`annotate` through the real client against the stand-in: looked at first, written once, written whole."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.answers.lineage import Lineage
from hf_lineage.errors import (
    AccessDeniedError,
    ArgumentError,
    CardError,
    GatedError,
    HubUnavailableError,
    ModelNotFoundError,
    TokenRefusedError,
    WriteRefusedError,
)
from hf_lineage.hub.cards import _reply
from hf_lineage.report.section import END, START
from hf_lineage.tasks import annotate as annotation

pytestmark = pytest.mark.integration

CARD = b'---\r\n# keep me\r\nlicense: "mit" # yes\r\ntags: [a, b]\r\n---\r\n# A child\r\n'
FILES = (
    "README.md", "lineage.json", "lineage/bom.cdx.json", "lineage/lineage.png", "lineage/statement.intoto.json",
)  # fmt: skip
ASKED = ["lab/parent", "lab/stranger"]


DRAWN: dict[str, bytes] = {}


def picture(answer: Lineage | hl.LayerLineage, draw: Any = annotation._picture) -> bytes:
    """Each answer is drawn once for all tests of this file: half of their time."""
    key = answer.to_json()
    if key not in DRAWN:
        DRAWN[key] = draw(answer)
    return DRAWN[key]


@pytest.fixture
def server(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The lab, whose child has a card without a base; `hf_lab` may write there, `hf_bob` may propose."""
    lab.commit("lab/child", {"README.md": CARD})
    lab.tokens["hf_lab"] = "lab"
    monkeypatch.setattr(annotation, "WAIT", 0.0)
    monkeypatch.setattr(annotation, "_picture", picture)
    return lab


def files(hub: Any, ref: str = "main") -> dict[str, bytes]:
    repo = hub.repos["lab/child"]
    return {name: file.read() for name, file in repo.commits[repo.refs[ref]].items()}


def writes(hub: Any) -> list[str]:
    return [call.path for call in hub.log if call.method not in ("GET", "HEAD")]


class TestLooking:
    def test_is_the_default_and_writes_nothing(
        self, server: Any, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(annotation, "_picture", lambda answer: pytest.fail("no picture is drawn to be looked at"))
        server.log.clear()
        note = hl.annotate("lab/child", lineage, token=False)
        assert (note.changed, note.url, note.files) == (True, None, FILES)
        assert not writes(server) and not [
            call for call in server.log if "whoami" in call.path or "discussions" in call.path
        ]
        assert "+base_model: lab/parent\n+base_model_relation: finetune\n" in note.diff
        assert not [line for line in note.diff.splitlines() if line.startswith("-") and line != "--- a/README.md"]
        assert files(server)["README.md"] == CARD
        assert len(server.log) <= 5 + len(lineage.candidates) - 1  # repo, gate, card (2), and each candidate's terms

    def test_needs_no_weights(self, server: Any, lineage: Lineage) -> None:
        server.log.clear()
        hl.annotate("lab/child", lineage, token=False)
        assert not [call for call in server.log if "safetensors" in call.path or call.app == "cdn"]

    def test_its_text_is_fit_for_a_terminal(self, server: Any, lineage: Lineage) -> None:
        server.commit("lab/child", {"README.md": "# \x1b[31mred\u202e\nx".encode()})
        assert "\x1b" not in (diff := hl.annotate("lab/child", lineage, token=False).diff) and " # ?[31mred?" in diff

    def test_its_forms(self, server: Any, lineage: Lineage) -> None:
        note = hl.annotate("lab/child", lineage, token=False)
        assert json.loads(note.to_json()) == {
            "schema": "hf_lineage/2", "changed": True, "url": None, "files": list(FILES), "notes": [], "diff": note.diff,
        }  # fmt: skip
        assert str(note) + "\n" == note.diff and "````diff" in note.to_markdown()

    def test_a_card_that_is_not_there_is_made(self, server: Any, lineage: Lineage) -> None:
        server.commit("lab/child", {"README.md": None})
        note = hl.annotate("lab/child", lineage, token="hf_lab", push=True)
        assert note.changed and files(server)["README.md"].startswith(b"---\nbase_model: lab/parent\n")

    def test_files_can_be_saved_to_look_at(self, server: Any, lineage: Lineage, tmp_path: Path) -> None:
        note = hl.annotate("lab/child", lineage, token=False)
        note.save(tmp_path / "out")
        found = {
            path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
        }
        assert found == set(FILES)


class TestPullRequest:
    def test_is_opened_once(self, server: Any, lineage: Lineage) -> None:
        first = hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        (about,) = server.repos["lab/child"].discussions.values()
        assert first.url == f"{server.url}/lab/child/discussions/1" and (about.title, about.author) == (
            "Add model lineage",
            "bob",
        )
        assert set(files(server, "refs/pr/1")) == {*FILES, "model.safetensors", "config.json"}
        assert files(server)["README.md"] == CARD
        for text in (
            "`lab/parent` with white noise of 0.3 standard deviations added, probability 0.8",
            "How to reproduce",
            "`base_model` and `base_model_relation` to its metadata",
        ):
            assert text in about.comments[0]
        server.log.clear()
        again = hl.annotate("lab/child", hl.trace("lab/child", ASKED, token=False), create_pr=True, token="hf_bob")
        assert (again.changed, again.url, again.diff) == (False, first.url, "") and not writes(server)
        assert len(server.repos["lab/child"].discussions) == 1

    def test_is_updated_by_another_answer(self, server: Any, lineage: Lineage) -> None:
        first = hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        other = hl.trace("lab/child", [*ASKED, "lab/stranger-2"], token=False)
        second = hl.annotate("lab/child", other, create_pr=True, token="hf_bob")
        assert second.changed and second.url == first.url and len(server.repos["lab/child"].discussions) == 1
        assert b"lab/stranger-2" in files(server, "refs/pr/1")["README.md"]

    def test_of_somebody_else_or_closed_is_not_touched(self, server: Any, lineage: Lineage) -> None:
        hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        second = hl.annotate("lab/child", lineage, create_pr=True, token="hf_alice")
        assert second.url and second.url.endswith("/2")
        server.repos["lab/child"].discussions[1].status = "closed"
        third = hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        assert third.url and third.url.endswith("/3")

    @pytest.mark.parametrize("kind", ["lost", "drop", 502])
    def test_is_not_doubled_by_a_lost_answer(self, server: Any, lineage: Lineage, kind: Any) -> None:
        server.fault(kind, on="write", file="lab/child")
        note = hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        assert note.changed and note.url == f"{server.url}/lab/child/discussions/1"
        assert (
            len(server.repos["lab/child"].discussions) == 1
            and START.encode() in files(server, "refs/pr/1")["README.md"]
        )

    def test_tells_of_a_base_that_the_weights_contradict(self, server: Any) -> None:
        server.commit("lab/child", {"README.md": b"---\nbase_model: lab/stranger\nlicense: mit\n---\n# T\n"})
        lineage = hl.trace("lab/child", ["lab/parent", "lab/stranger"], prior=0.7, token=False)
        note = hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        card, text = (
            files(server, "refs/pr/1")["README.md"].decode(),
            server.repos["lab/child"].discussions[1].comments[0],
        )
        assert (
            card.startswith("---\nbase_model: lab/stranger\nlicense: mit\n---\n# T\n") and "to its metadata" not in text
        )
        told = "The card declares `base_model` `lab/stranger`, which was left as it is; of the models that were compared the weights say `lab/parent`."
        assert told in text and told in note.notes
        for where in (text, card):
            assert "The card names `lab/stranger`: contradicted, no sign of a common origin." in where

    def test_tells_of_licences_and_gates(self, server: Any, lineage: Lineage) -> None:
        server.commit("lab/parent", {"README.md": b"---\nlicense: llama2\n---\n"})
        server.repos["lab/parent"].gated = "manual"
        lineage = hl.trace("lab/child", ASKED, token="hf_lab")
        hl.annotate("lab/child", lineage, create_pr=True, token="hf_bob")
        card, text = (
            files(server, "refs/pr/1")["README.md"].decode(),
            server.repos["lab/child"].discussions[1].comments[0],
        )
        for where in (text, card):
            assert "The card of `lab/parent` declares the licence `llama2`; this card declares `mit`." in where
            assert "Access to `lab/parent` is gated; access to this model is not." in where

    def test_a_private_parent_is_told_before_it_is_named(self, server: Any, lineage: Lineage) -> None:
        server.repos["lab/parent"].private = True
        assert hl.annotate("lab/child", lineage, token="hf_lab").notes == (
            "`lab/parent` is private: the card would name it.",
        )
        assert "could not be read" in hl.annotate("lab/child", lineage, token=False).diff


class TestPush:
    def test_is_one_commit_of_all_files(self, server: Any, lineage: Lineage) -> None:
        before = len(server.repos["lab/child"].commits)
        note = hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        repo = server.repos["lab/child"]
        assert len(repo.commits) == before + 1 and note.url == f"{server.url}/lab/child/commit/{repo.refs['main']}"
        content = files(server)
        card = content["README.md"].decode()
        assert card.startswith(
            CARD.decode().replace("---\r\n# A", "base_model: lab/parent\r\nbase_model_relation: finetune\r\n---\r\n# A")
        )
        assert card.count("\n") == card.count("\r\n") and set(FILES) < set(content)
        assert content["lineage/lineage.png"].startswith(b"\x89PNG")
        told = json.loads(content["lineage.json"])
        assert told["parent"] == "lab/parent" and not {"seconds", "bytes_read"} & set(told)
        assert not server.leaks

    @pytest.mark.parametrize("asked", [ASKED, None])
    def test_a_second_run_changes_nothing(self, server: Any, lineage: Lineage, asked: list[str] | None) -> None:
        hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        head = server.repos["lab/child"].refs["main"]
        later = hl.trace("lab/child", asked, token=False)  # of another commit; None: the card declares it now
        assert later.child.revision == head and later.claims
        server.log.clear()
        for about in ({"push": True}, {"create_pr": True}, {}):
            note = hl.annotate("lab/child", later, token="hf_lab", **about)
            assert (note.changed, note.url, note.files) == (False, None, ())
        assert not writes(server) and server.repos["lab/child"].refs["main"] == head

    def test_layers_are_added_and_stay(self, server: Any, lineage: Lineage) -> None:
        layers = hl.trace_layers("lab/child", ASKED, token=False)
        hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        with_layers = hl.annotate("lab/child", lineage, layers=layers, push=True, token="hf_lab")
        assert with_layers.files == (*FILES[:3], "lineage/layers.json", "lineage/layers.png", *FILES[3:])
        assert set(with_layers.files) < set(files(server)) and b"### Layers" in files(server)["README.md"]
        assert not hl.annotate("lab/child", lineage, layers=layers, token=False).changed
        assert not hl.annotate("lab/child", lineage, token=False).changed

    def test_what_somebody_changed_in_the_section_is_written_again(self, server: Any, lineage: Lineage) -> None:
        hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        card = files(server)["README.md"]
        server.commit("lab/child", {"README.md": card.replace(b"they share an origin", b"it was stolen")})
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed
        assert files(server)["README.md"] == card

    def test_overtaken_by_another_commit_it_reads_again(
        self, server: Any, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from hf_lineage.hub.cards import CardRepository

        real, calls = CardRepository.commit, []

        def overtaken(self: CardRepository, *args: Any, **kwargs: Any) -> str:
            calls.append(kwargs["parent"])
            if len(calls) == 1:
                server.commit("lab/child", {"README.md": CARD + b"\r\nA new line.\r\n"})
            return real(self, *args, **kwargs)

        monkeypatch.setattr(CardRepository, "commit", overtaken)
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed
        card = files(server)["README.md"]
        assert len(calls) == 2 and b"A new line." in card and START.encode() in card

    def test_but_not_for_ever(self, server: Any, lineage: Lineage) -> None:
        server.fault(412, on="write", times=None)
        with pytest.raises(HubUnavailableError, match=r"3 tries \(the repo changed meanwhile\)"):
            hl.annotate("lab/child", lineage, push=True, token="hf_lab")

    @pytest.mark.parametrize("kind", ["drop", 503])
    def test_an_upload_that_breaks_off_is_tried_again(self, server: Any, lineage: Lineage, kind: Any) -> None:
        server.fault(kind, on="cdn", times=6)  # the client itself tries six times
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed
        server.commit("lab/child", {"README.md": CARD})
        server.fault(kind, on="cdn", times=None)
        other = replace(lineage, alpha=0.01, notes=("other bytes",), verdict="undecided", parent=None)
        with pytest.raises(HubUnavailableError, match="no answer"):
            hl.annotate("lab/child", other, push=True, token="hf_lab")

    @pytest.mark.parametrize("kind", ["lost", "drop"])
    def test_a_lost_answer_is_looked_for(self, server: Any, lineage: Lineage, kind: Any) -> None:
        before = len(server.repos["lab/child"].commits)
        server.fault(kind, on="write", file="lab/child")
        note = hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        repo = server.repos["lab/child"]
        assert note.changed and note.url == f"{server.url}/lab/child/commit/{repo.refs['main']}"
        assert len(repo.commits) == before + 1


def test_a_merge_names_all_it_was_made_of(server: Any, make_net: Any) -> None:
    base = make_net(11)
    a, b = make_net(12, base), make_net(13, base)
    for name, tensors in (("a", a), ("b", b), ("mean", {key: (a[key] + b[key]) / 2 for key in a})):
        server.add(f"lab/{name}", {"model.safetensors": save(tensors), "config.json": b"{}"})
    lineage = hl.trace("lab/mean", ["lab/a", "lab/b"], token=False)
    layers = hl.trace_layers("lab/mean", ["lab/a", "lab/b"], token=False)
    note = hl.annotate("lab/mean", lineage, layers=layers, token=False)
    made = note.make()
    card = made["README.md"].decode()
    assert re.match(r"---\nbase_model:\n- lab/[ab]\n- lab/[ab]\nbase_model_relation: merge\n---\n", card)
    assert "A merge. An average of weights (linear)" in card and "made from the child" not in card
    assert len(json.loads(made["lineage/bom.cdx.json"])["components"][0]["pedigree"]["ancestors"]) == 2


class TestRefusals:
    def refused(self, server: Any, error: type[Exception], match: str, child: Any = "lab/child", **about: Any) -> str:
        """One line that names no token, and nothing written."""
        head = dict(server.repos["lab/child"].refs)
        with pytest.raises(error, match=match) as found:
            hl.annotate(child, **about)
        assert server.repos["lab/child"].refs == head and "\n" not in str(found.value)
        assert not any(token in str(found.value) for token in server.tokens)
        return str(found.value)

    def test_without_a_token(self, server: Any, lineage: Lineage) -> None:
        server.log.clear()
        for about in ({"create_pr": True}, {"push": True}):
            for token in (False, None):
                self.refused(server, AccessDeniedError, "hf auth login", lineage=lineage, token=token, **about)
        assert not server.log

    def test_with_an_unknown_token(self, server: Any, lineage: Lineage) -> None:
        for about in ({"create_pr": True}, {"push": True}):
            text = self.refused(
                server, TokenRefusedError, "HTTP 401|hf auth login", lineage=lineage, token="hf_nobodys", **about
            )
            assert "hf_nobodys" not in text

    def test_with_a_token_that_may_only_read(self, server: Any, lineage: Lineage) -> None:
        server.roles["hf_bob"] = "read"
        self.refused(
            server,
            WriteRefusedError,
            r"may not open a pull request .* 403.*role `read`",
            lineage=lineage,
            create_pr=True,
            token="hf_bob",
        )

    def test_of_somebody_elses_repo(self, server: Any, lineage: Lineage) -> None:
        self.refused(
            server,
            WriteRefusedError,
            "may not push to .* propose it by a pull request",
            lineage=lineage,
            push=True,
            token="hf_bob",
        )

    def test_where_pull_requests_are_disabled(self, server: Any, lineage: Lineage) -> None:
        server.fault(403, on="write")
        self.refused(
            server, WriteRefusedError, "unless the owner has disabled", lineage=lineage, create_pr=True, token="hf_bob"
        )

    def test_of_a_repo_that_is_hidden_or_gone(self, server: Any, lineage: Lineage) -> None:
        server.repos["lab/child"].private = True
        self.refused(server, ModelNotFoundError, "not found", lineage=lineage, create_pr=True, token="hf_bob")
        server.repos["lab/child"].private = False
        server.repos["lab/child"].gated = "auto"
        self.refused(server, GatedError, "gated", lineage=lineage, create_pr=True, token="hf_bob")

    def test_of_metadata_that_the_hub_refuses(self, server: Any, lineage: Lineage) -> None:
        server.commit("lab/child", {"README.md": b"---\nlicense: {a: 1}\n---\n"})
        text = self.refused(
            server,
            CardError,
            'refuses the card of `lab/child`.*"license" must be',
            lineage=lineage,
            push=True,
            token="hf_lab",
        )
        assert "commit" not in " ".join(writes(server)[-1:]) and len(text) < 400

    @pytest.mark.parametrize(
        ("card", "match"),
        [(b"caf\xe9", "UTF-8"), (b"x" * (10 * 2**20 + 1), "at most"), (START.encode(), "once each")],
        ids=["latin-1", "long", "marks"],
    )
    def test_of_a_card_that_cannot_be_edited(self, server: Any, lineage: Lineage, card: bytes, match: str) -> None:
        server.commit("lab/child", {"README.md": card})
        for about in ({}, {"push": True}, {"create_pr": True}):
            self.refused(server, CardError, match, lineage=lineage, token="hf_lab", **about)

    def test_of_files_that_somebody_else_put_there(self, server: Any, lineage: Lineage) -> None:
        for content in (b"{}", b"[", b'{"schema": "other"}'):
            server.commit("lab/child", {"lineage.json": content})
            self.refused(server, CardError, "no `lineage.json` beside", lineage=lineage, push=True, token="hf_lab")
        server.commit("lab/child", {"lineage.json": b'{"schema": "hf_lineage/1"}'})  # of a section that was taken out
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed

    def test_of_weights_that_are_others_by_now(self, server: Any, lineage: Lineage, nets: Any) -> None:
        server.commit("lab/child", {"model.safetensors": save(nets["stranger"])})
        self.refused(server, ArgumentError, "Trace it again", lineage=lineage, push=True, token="hf_lab")

    def test_of_another_model(self, server: Any, lineage: Lineage, tmp_path: Path) -> None:
        self.refused(server, ArgumentError, "`lab/child`, got `lab/parent`", child="lab/parent", lineage=lineage)
        self.refused(server, ArgumentError, "`lab/child`, got", child=tmp_path, lineage=lineage)
        layers = hl.trace_layers("lab/parent", ["lab/stranger"], token=False)
        self.refused(server, ArgumentError, "layers of `lab/child`", lineage=lineage, layers=layers)

    def test_of_both_ways_at_once(self, server: Any, lineage: Lineage) -> None:
        self.refused(server, ArgumentError, "got both", lineage=lineage, create_pr=True, push=True)

    def test_when_the_hub_is_down(self, server: Any, lineage: Lineage) -> None:
        server.fault(503, on="write", times=None)
        self.refused(
            server,
            HubUnavailableError,
            "HTTP 503.*nothing is written twice",
            lineage=lineage,
            push=True,
            token="hf_lab",
        )

    def test_a_renamed_repo_is_the_same(self, server: Any, lineage: Lineage) -> None:
        server.rename("lab/old", "lab/child")
        assert hl.annotate("lab/old", lineage, token=False).changed


class TestFolder:
    def test_is_written_in_place_once(self, folders: dict[str, Path]) -> None:
        child = folders["child"]
        (child / "README.md").write_bytes(CARD)
        (child / "README.md").chmod(0o640)
        lineage = hl.trace(child, [folders["parent"], folders["stranger"]])
        look = hl.annotate(child, lineage)
        assert look.changed and look.files == FILES and (child / "README.md").read_bytes() == CARD
        note = hl.annotate(child, lineage, push=True)
        assert note.changed and note.url == (child / "README.md").as_uri()
        assert (child / "README.md").stat().st_mode & 0o777 == 0o640
        found = {path.relative_to(child).as_posix() for path in child.rglob("*") if path.is_file()}
        assert found == {*FILES, "model.safetensors"}
        text = (child / "README.md").read_bytes()
        assert text.startswith(CARD) and b"base_model" not in text[: len(CARD)] and b"`./parent` (local copy)" in text
        again = hl.trace(child, [folders["parent"], folders["stranger"]])
        assert not hl.annotate(str(child), again, push=True).changed

    def test_no_path_leaves_this_machine(self, folders: dict[str, Path]) -> None:
        lineage = hl.trace(folders["child"], [folders["parent"], folders["stranger"]])
        layers = hl.trace_layers(folders["child"], [folders["parent"], folders["stranger"]])
        note = hl.annotate(folders["child"], lineage, layers=layers, push=True)
        for name in note.files:
            content = (folders["child"] / name).read_bytes()
            assert (
                str(folders["child"].parent).encode() not in content and str(Path.home()).encode() + b"/" not in content
            )
        told = json.loads((folders["child"] / "lineage.json").read_text())
        assert (
            told["child"] == {"ref": "./child", "requested": "./child", "revision": None}
            and told["parent"] == "./parent"
        )

    def test_with_a_parent_on_the_hub_names_it(self, server: Any, folders: dict[str, Path]) -> None:
        lineage = hl.trace(folders["child"], ["lab/parent"], prior=0.7, token=False)
        hl.annotate(folders["child"], lineage, push=True, token=False)
        assert (
            (folders["child"] / "README.md")
            .read_text()
            .startswith("---\nbase_model: lab/parent\nbase_model_relation: finetune\n---\n")
        )

    def test_a_link_is_replaced_not_followed(self, folders: dict[str, Path], tmp_path: Path) -> None:
        (tmp_path / "elsewhere.md").write_text("# T\n")
        (folders["child"] / "README.md").symlink_to(tmp_path / "elsewhere.md")
        lineage = hl.trace(folders["child"], [folders["parent"]])
        hl.annotate(folders["child"], lineage, push=True)
        assert (tmp_path / "elsewhere.md").read_text() == "# T\n" and not (folders["child"] / "README.md").is_symlink()
        shutil.rmtree(folders["child"] / "lineage")
        (folders["child"] / "README.md").write_text("# T\n")
        (tmp_path / "other").mkdir()
        (folders["child"] / "lineage").symlink_to(tmp_path / "other")
        with pytest.raises(CardError, match="a link to another place"):
            hl.annotate(folders["child"], lineage, push=True)
        assert not list((tmp_path / "other").iterdir()) and (folders["child"] / "README.md").read_text() == "# T\n"

    def test_a_write_that_fails_leaves_the_card_whole(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folders["child"] / "README.md").write_bytes(CARD)
        lineage = hl.trace(folders["child"], [folders["parent"]])
        real = os.replace

        def failing(source: Any, target: Any) -> None:
            if Path(target).name == "README.md":
                raise PermissionError(13, "Permission denied")
            real(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(CardError, match=r"README.md.*Permission denied"):
            hl.annotate(folders["child"], lineage, push=True)
        assert (folders["child"] / "README.md").read_bytes() == CARD
        assert not list(folders["child"].rglob("*.tmp"))

    def test_files_of_its_owner_are_spared(self, folders: dict[str, Path]) -> None:
        (folders["child"] / "lineage.json").write_text("mine")
        with pytest.raises(CardError, match=r"no `lineage.json` beside"):
            hl.annotate(folders["child"], hl.trace(folders["child"], [folders["parent"]]), push=True)
        assert (folders["child"] / "lineage.json").read_text() == "mine"

    def test_what_is_no_folder_or_no_file_is_refused(self, folders: dict[str, Path]) -> None:
        lineage = hl.trace(folders["child"], [folders["parent"]])
        with pytest.raises(ArgumentError, match="Use `push`"):
            hl.annotate(folders["child"], lineage, create_pr=True)
        with pytest.raises(ArgumentError, match="that was traced"):
            hl.annotate(folders["parent"], lineage)
        os.mkfifo(folders["child"] / "README.md")
        with pytest.raises(CardError, match="found something else"):
            hl.annotate(folders["child"], lineage)
        single = hl.trace(folders["child"] / "model.safetensors", [folders["parent"]])
        with pytest.raises(ArgumentError, match="Expected a folder"):
            hl.annotate(folders["child"] / "model.safetensors", single)


def test_without_the_extra_there_is_no_bill_of_materials(
    server: Any, lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation.importlib.util, "find_spec", lambda name: None)
    note = hl.annotate("lab/child", lineage, push=True, token="hf_lab")
    assert "lineage/bom.cdx.json" not in files(server) and note.notes == (
        "No bill of materials: pip install 'hf_lineage[bom]'.",
    )


def test_no_token_is_told_to_anybody(
    server: Any, lineage: Lineage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "httpx2", "httpcore2", "hf_lineage"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    secret = "hf_" + "S3cret" * 6
    server.tokens[secret] = "lab"
    note = hl.annotate("lab/child", lineage, create_pr=True, token=secret)
    server.fault(403, on="write")
    with pytest.raises(AccessDeniedError) as refused:
        hl.annotate("lab/child", lineage, push=True, token=secret)
    told = [
        note.to_json(),
        note.to_markdown(),
        repr(note),
        caplog.text,
        str(refused.value),
        repr(refused.value.__cause__),
    ]
    told += [content.decode("latin-1") for content in files(server, "refs/pr/1").values()]
    assert caplog.records and not any("S3cret" in text for text in told)
    assert not server.leaks and [call for call in server.log if call.app == "cdn" and call.method == "PUT"]


def test_the_hubs_own_words_are_one_line_without_tokens() -> None:
    told = _reply("bad\n\x1b[31m token my-own-token, hf_AbCdEf." + "x" * 900, "my-own-token")
    assert told.startswith(": bad ?[31m token …, hf_….x") and len(told) <= 302 and "\n" not in told
    assert _reply(None, None) == ""


class TestCommand:
    def test_prints_the_change(self, server: Any, run: Any, tmp_path: Path) -> None:
        asked = ["lab/child", "-c", "lab/parent", "-c", "lab/stranger"]
        code, out, err = run("annotate", *asked, "--out", str(tmp_path / "card"))
        assert code == 0 and out.startswith("--- a/README.md\n+++ b/README.md\n") and out.endswith(END + "\n")
        assert (
            err.startswith("lab/parent with white noise of 0.3 standard deviations added, probability ")
            and "files: " in err
        )
        assert (tmp_path / "card" / "lineage" / "bom.cdx.json").exists() and not writes(server)
        code, out, _ = run("annotate", *asked, "--json", "--layers")
        assert code == 0 and "lineage/layers.json" in json.loads(out)["files"]

    def test_prints_where_it_was_written(self, server: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_bob")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
        asked = ["lab/child", "-c", "lab/parent"]
        code, out, err = run("annotate", *asked, "--create-pr")
        assert (code, out) == (0, f"{server.url}/lab/child/discussions/1\n") and "nothing was sent" not in err
        assert "nothing was sent" in run("annotate", *asked, "--create-pr")[2]
        assert run("annotate", *asked, "--create-pr", "-q")[:2] == (0, f"{server.url}/lab/child/discussions/1\n")
        code, out, err = run("annotate", *asked, "--push")
        assert (code, out) == (3, "") and "error: This token may not push" in err

    def test_says_what_is_wrong_in_one_line(self, server: Any, run: Any) -> None:
        server.commit("lab/child", {"README.md": b"\xff"})
        code, out, err = run("annotate", "lab/child", "-c", "lab/parent")
        assert (code, out) == (1, "") and err.splitlines()[-1].startswith("error: Expected a README.md in UTF-8")
        assert run("annotate", "lab/child", "-c", "lab/parent", "--push", "--create-pr")[0] == 2
        assert run("annotate", "lab/nothing", "-c", "lab/parent")[0] == 3
