"""The Space without a browser: what agents and scripts call, what is hidden from them, limits, tokens, words, HTML."""

from __future__ import annotations

import asyncio
import base64
import doctest
import importlib
import json
import pickle
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import space_work
import yaml
from space_app import APP, HOSTILE, ROOT, running

import hf_lineage as hl
from hf_lineage import errors
from hf_lineage.answers.layers import BlockOrigin, Share

sys.path.insert(0, str(APP))
import asking
import guard
import heatmap
import jobs
import links
import questions
import show

pytestmark = pytest.mark.integration

ENDPOINTS = {"/trace", "/compare", "/layers", "/family_tree", "/find_candidates"}


@pytest.fixture(scope="module")
def client(space: Any) -> Any:
    from gradio_client import Client

    return Client(space.url, verbose=False)


class TestEndpoints:
    def test_nothing_else_is_exposed(self, client) -> None:
        api = client.view_api(return_format="dict", print_info=False)
        assert set(api["named_endpoints"]) == ENDPOINTS and not api["unnamed_endpoints"]

    def test_trace(self, client) -> None:
        answer = json.loads(client.predict("lab/child", ["lab/parent", "lab/stranger"], api_name="/trace"))
        assert (answer["schema"], answer["verdict"], answer["parent"]) == ("hf_lineage/2", "parent", "lab/parent")

    def test_types_are_told(self, client) -> None:
        api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert {told["type"]["type"] for about in api.values() for told in about["returns"]} == {"string"}

    def test_trace_finds_candidates(self, client) -> None:
        answer = json.loads(client.predict("lab/grandchild", api_name="/trace"))
        assert answer["candidates"][0]["facts"]["found_by"] and answer["claims"][0]["status"] == "contradicted"

    def test_compare(self, client) -> None:
        answer = json.loads(client.predict("lab/parent", "lab/child", api_name="/compare"))
        assert answer["related"] is True and {model["ref"] for model in answer["models"]} == {"lab/parent", "lab/child"}

    def test_layers(self, client) -> None:
        answer = json.loads(client.predict("merges/hybrid", ["merges/a", "merges/b", "merges/c"], api_name="/layers"))
        assert answer["method"] == "passthrough" and len(answer["blocks"]) == 14

    @pytest.mark.parametrize("as_text", [False, True])
    @pytest.mark.parametrize("collection", [False, True])
    def test_family_tree(self, client, space, collection: bool, as_text: bool) -> None:
        given = [f"{space.hub.url}/collections/lab/family-0123abcd"] if collection else ["lab/parent", "lab/child"]
        given = " ".join(given) if as_text else given
        answer = json.loads(client.predict(given, api_name="/family_tree"))
        assert {"lab/parent", "lab/child"} <= {node["id"] for node in answer["nodes"]}

    def test_find_candidates(self, client) -> None:
        answer = json.loads(client.predict("lab/child", 3, api_name="/find_candidates"))
        assert answer["candidates"][0]["ref"] == "lab/parent"

    @pytest.mark.parametrize(
        "endpoint, arguments, words",
        [
            ("/trace", ("nobody/nothing", None), "was not found on the Hub"),
            ("/trace", ("/etc/passwd", None), "Expected the id of a model"),
            ("/trace", ("lab/child", ["./here"]), "Expected the id of a model"),
            ("/trace", ("lab/child", [f"a/b{i}" for i in range(17)]), "at most 16 models"),
            ("/trace", ("secret/private", ["lab/parent"]), "was not found on the Hub"),
            ("/trace", ("vault/gated", ["lab/parent"]), "is gated: programs read public models here"),
            ("/layers", ("", None), "Type the id"),
            ("/compare", ("lab/child", ""), "Type the id"),
            ("/family_tree", (["lab/parent"],), "two models or more"),
            ("/family_tree", (["https://elsewhere.org/lab/parent", "lab/child"],), "Expected an address of"),
            ("/find_candidates", ("lab/child", 1000), "Expected `most`"),
            *((("/find_candidates", ("lab/child", most), "Expected `most`")) for most in ("abc", None, True, 2.5)),
            *((("/trace", (child, None), "as text, such as org/name")) for child in (5, {"a": 1})),
            ("/trace", ("lab/child", 5), "as a list of texts"),
            ("/family_tree", (None,), "two models or more"),
            ("/family_tree", ([1, 2],), "as a list of texts"),
            ("/family_tree", (["lab/none@nope", "lab/gone"],), "No model could be read"),
        ],
    )  # fmt: skip
    def test_refusals_are_one_sentence(self, client, endpoint: str, arguments: tuple, words: str) -> None:
        from gradio_client.exceptions import AppError

        with pytest.raises(AppError, match=re.escape(words)) as caught:
            client.predict(*arguments, api_name=endpoint)
        assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
        assert "sign in above" not in str(caught.value) and "hf auth" not in str(caught.value)

    @pytest.mark.parametrize("file", ["docs/guides/space.md", "spaces_app/README.md"])
    def test_what_the_readme_tells_to_run(self, space, file: str, capsys) -> None:
        code = next(
            block for block in re.findall(r"```py(?:thon)?\n(.*?)```", (ROOT / file).read_text(), re.S)
            if "gradio_client" in block
        )  # fmt: skip
        code = re.sub(r'Client\("[^"]+"\)', f'Client("{space.url}", verbose=False)', code)
        for theirs, ours in {"user/child": "lab/child", "org/child": "lab/child", "org/a": "lab/parent",
                             "org/b": "lab/stranger"}.items():  # fmt: skip
            code = code.replace(theirs, ours)
        exec(compile(code, file, "exec"), {})
        assert capsys.readouterr().out.startswith("parent lab/parent")

    def test_the_token_of_the_machine_is_never_used(self, client, space) -> None:
        client.predict("lab/child", ["lab/parent"], api_name="/trace")
        used = {call.path for call in space.hub.log if call.user == "owner"}
        assert used <= {"/api/whoami-v2"}, "only gradio's stand-in for a login asks who this is"

    def test_mcp(self, space) -> None:
        asked = {
            "trace": {"child": "lab/child", "candidates": ["lab/parent"]},
            "compare": {"one": "lab/child", "other": "lab/stranger"},
            "layers": {"child": "merges/hybrid", "candidates": ["merges/a", "merges/b"]},
            "family_tree": {"models": "lab/parent lab/child"},
            "find_candidates": {"child": "lab/child", "most": 2},
        }
        tools, answers, refused = asyncio.run(talk(space.url, asked, {"child": "../up"}))
        assert {f"/{tool.name}" for tool in tools} == ENDPOINTS
        for tool in tools:
            assert len(tool.description) > 100 and " Returns: JSON, schema hf_lineage/2: " in tool.description
            assert ",," not in tool.description and "  " not in tool.description
            for about in tool.inputSchema["properties"].values():
                assert about["description"].endswith("."), tool.name
        for name, answer in answers.items():
            assert not answer.isError and json.loads(answer.content[0].text)["schema"] == "hf_lineage/2", name
        assert refused.isError and "Expected the id of a model" in refused.content[0].text

    def test_tools_are_called_as_the_page_says(self, space, tmp_path, monkeypatch) -> None:
        def told() -> set[str]:
            """The names of tools on the page, as the environment is now."""
            how = importlib.reload(wording).HOW.partition("MCP tools")[2]
            return set(re.findall(r"<code>(\w+)</code>", how))

        wording = importlib.import_module("wording")
        assert {tool.name for tool in asyncio.run(talk(space.url))[0]} == told()
        with running(tmp_path, on_hub=True) as on_hub:
            names = {tool.name for tool in asyncio.run(talk(on_hub.url))[0]}
        with monkeypatch.context() as patch:
            patch.setenv("SYSTEM", "spaces")
            patch.setenv("SPACE_ID", "owner/model-lineage")
            assert names == told() and all(f"`{name}`" in (APP / "README.md").read_text() for name in names)
        importlib.reload(wording)


async def talk(url: str, asked: dict[str, Any] | None = None, wrong: dict[str, Any] | None = None) -> Any:
    """(the tools, their answers to what is asked, what `trace` says to a wrong question) over MCP."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with (
        streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = (await session.list_tools()).tools
        answers = {name: await session.call_tool(name, given) for name, given in (asked or {}).items()}
        return tools, answers, await session.call_tool("trace", wrong) if wrong else None


def test_twenty_users_at_once(space) -> None:
    """All are answered, each with the own answer."""
    from gradio_client import Client

    names = ["child", "grandchild", "stranger", "fresh"]

    def ask(number: int) -> tuple[str, str]:
        child = f"lab/{names[number % 4]}"
        user = Client(space.url, verbose=False, headers={"X-Forwarded-For": f"8.8.8.{number}"})
        return child, json.loads(user.predict(child, ["lab/parent"], api_name="/trace"))["child"]["ref"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert len(answers) == 20 and all(asked == given for asked, given in answers)


class TestQuestions:
    @pytest.mark.parametrize("module", [questions, show, links])
    def test_examples_in_docstrings(self, module) -> None:
        assert not doctest.testmod(module).failed

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/etc/passwd",
            "./a",
            "~/a",
            "a b",
            "a b/c",
            "module:Net",
            "org/name@../x",
            "<b>",
            "x\0y",
            "https://evil.org/a/b",
        ],
    )
    def test_what_is_no_id(self, text: str) -> None:
        with pytest.raises(questions.RefusedError):
            questions.model_id(text)

    def test_several_ids(self) -> None:
        assert questions.model_ids(" a/b, c/d\n\na/b;e ") == ["a/b", "c/d", "e"]
        with pytest.raises(questions.RefusedError, match="characters"):
            questions.model_ids("a" * 5000)

    def test_links_undo_each_other(self) -> None:
        def asked(link: str) -> links.Linked:
            return links.from_link(dict(part.split("=") for part in link[1:].split("&")))

        link = links.as_link("a/b@main", ["c/d", "e/f"])
        assert link == "?child=a/b@main&parents=c/d,e/f"
        assert asked(link) == links.Linked("trace", "a/b@main", "c/d\ne/f") and asked(link).asks == "trace"
        assert asked(links.as_link("a/b", [], "layers")) == links.Linked("layers", "a/b")
        for tab in links.OF_MODELS:
            found = asked(links.as_models(["a/b", "c/d"], tab))
            assert found == links.Linked(tab, models="a/b\nc/d") and found.asks == tab

    def test_of_a_link_what_is_no_id_is_left_out_and_told(self) -> None:
        assert links.from_link({}) == links.Linked()
        bad = links.from_link({"child": "/etc/passwd", "tab": "<b>"})
        assert (bad.child, bad.tab, bad.asks) == ("", "trace", "") and "“/etc/passwd” is no id" in bad.trouble
        part = links.from_link({"child": "a/b", "parents": "<b>,c/d"})
        assert (part.child, part.parents) == ("a/b", "c/d") and "“<b>” is no id" in part.trouble
        for models, words in (("a/b", "two models to compare, got 1"), ("a/b,c/d,e/f", "got 3"), ("a/b,<b>", "“<b>”")):
            pair = links.from_link({"models": models, "tab": "compare"})
            assert words in pair.trouble and not pair.asks
        many = links.from_link({"child": "a/b", "parents": ",".join(f"c/d{i}" for i in range(17))})
        assert len(many.parents.splitlines()) == 16 and "Of 17 candidates the first 16" in many.trouble

    def test_a_bug_shows_nothing_of_itself(self, caplog) -> None:
        said = questions.explain(ZeroDivisionError("the secret"))
        code = re.search(r"code ([0-9a-f]{8})", said)
        assert code and "secret" not in said and code[1] in caplog.text

    @pytest.mark.parametrize(
        "error", [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, hl.LineageError)]
    )
    def test_every_error_is_a_sentence_without_commands(self, error: type[hl.LineageError]) -> None:
        hints = "Log in with `hf auth login`.", "candidates=[…]."
        said = questions.explain(error(errors.Note("error", "`lab/x` was not found.", *hints)))
        assert said.endswith(".") and "-c org" not in said and "`" not in said

    def test_no_pull_request_without_a_visitor(self) -> None:
        with pytest.raises(questions.RefusedError, match="Sign in"):
            asking.annotation(None, None, False, create_pr=True)  # type: ignore[arg-type]

    def test_no_token_is_false_never_none(self) -> None:
        tabs = importlib.import_module("tabs")
        assert tabs.token_of(None) is False


def ended(path: Path) -> bool:
    """Whether the process that wrote its number into `path` is gone."""
    number = path.read_text()
    for _ in range(200):
        if not Path(f"/proc/{number}").exists():
            return True
        time.sleep(0.1)
    return False


class TestJobs:
    def test_progress_and_answer(self) -> None:
        job = jobs.Job(space_work.three_parts)
        steps = list(job)
        assert job.result() == 7 and steps[-1].what.startswith("part")

    def test_leaving_ends_it(self, tmp_path) -> None:
        for _ in jobs.Job(space_work.mark, str(tmp_path / "mark")):
            if (tmp_path / "mark").exists():
                break
        assert ended(tmp_path / "mark")

    def test_a_deadline_ends_what_never_reports(self, tmp_path) -> None:
        """A thread went on for 38 s after it, and kept its memory."""
        with pytest.raises(questions.RefusedError, match="longer than the 2 seconds"):
            jobs.Job(space_work.mark, str(tmp_path / "mark"), seconds=2).run()
        assert ended(tmp_path / "mark")

    def test_who_never_comes_back_is_not_waited_for(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(jobs, "ALONE", 1.0)
        steps = iter(jobs.Job(space_work.mark, str(tmp_path / "mark")))
        while not (tmp_path / "mark").exists():
            next(steps)
        assert ended(tmp_path / "mark"), "the loop over its steps is still open"

    def test_what_goes_wrong_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            jobs.Job(space_work.divide, 0).run()
        assert "space_work.py" in str(caught.value.__cause__), "where, for the log"

    def test_an_error_keeps_its_fields(self) -> None:
        error = pickle.loads(pickle.dumps(errors.GatedError("`a/b` is gated.", "Log in.", repo="a/b")))
        assert (error.repo, error.note.hint, str(error)) == ("a/b", "Log in.", "`a/b` is gated. Log in.")

    def test_memory_is_bounded(self, monkeypatch) -> None:
        with pytest.raises(questions.RefusedError, match="more memory"):
            jobs.Job(space_work.take_memory, 2 * questions.MAX_MEMORY).run()

    def test_a_process_that_dies_is_told(self) -> None:
        with pytest.raises(RuntimeError, match="without a word"):
            jobs.Job(space_work.end).run()


def scope_of(path: str = "/", method: str = "GET", **headers: str) -> dict[str, Any]:
    sent = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in {"host": "here.hf.space", **headers}.items()
    ]
    return {"type": "http", "method": method, "path": path, "headers": sent, "client": ("10.0.0.1", 1)}


class TestGuard:
    @pytest.mark.parametrize(
        "headers, foreign",
        [
            ({}, False),  # a program
            ({"origin": "https://here.hf.space"}, False),
            ({"origin": "https://evil.org"}, True),
            ({"origin": "https://here.hf.space.evil.org"}, True),
            ({"origin": "null"}, True),
            ({"origin": "https://evil.org", "x_forwarded_host": "evil.org"}, True),  # a page can set that one
            ({"sec_fetch_site": "same-origin", "origin": "https://own.domain"}, False),
            ({"sec_fetch_site": "cross-site"}, True),  # no Origin: an image, a script
            ({"sec_fetch_site": "same-site"}, True),
        ],
    )  # fmt: skip
    def test_whose_page_asks(self, headers: dict[str, str], foreign: bool) -> None:
        assert guard.is_foreign(scope_of("/gradio_api/queue/join", "POST", **headers)) is foreign

    def test_a_link_may_open_the_page_and_not_sign_out(self) -> None:
        link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
        assert not guard.is_foreign(scope_of("/", **link)) and guard.is_foreign(scope_of("/logout", **link))
        assert guard.is_foreign(scope_of("/gradio_api/queue/join", "POST", **link))  # a form

    def test_what_a_visitor_writes_into_the_header_is_not_the_address(self) -> None:
        sent = {"x_forwarded_for": "9.9.9.9, 8.8.8.8, 10.0.0.7"}
        assert guard.visitor_of(scope_of(**sent)) == "address 8.8.8.8"

    @pytest.mark.parametrize(
        "path", ["upload", "file=/etc/passwd", "proxy=http://a", "deep_link?session_hash=a", "run-history/buckets",
                 "component_server", "vibe-code"],
    )  # fmt: skip
    def test_routes_that_nobody_needs_are_closed(self, space, path: str) -> None:
        for method in ("GET", "POST"):
            answer = httpx.request(
                method, f"{space.url}/gradio_api/{path}", files={"files": b"x"} if method == "POST" else None
            )
            assert (answer.status_code, answer.json()) == (404, {"detail": "There is nothing here."})

    def test_a_visitor_may_ask_four_times_at_once(self, space) -> None:
        """One took all 42 places. Stand-in answers are held back, so that all of them wait."""

        def ask(address: str) -> int:
            sent = {"data": ["lab/child", ["lab/parent"]]}
            address = f"9.9.9.9, {address}"  # what the visitor claims, and what the proxy saw
            return httpx.post(
                f"{space.url}/gradio_api/call/trace", json=sent, headers={"X-Forwarded-For": address}
            ).status_code

        space.hub.fault("delay", times=None, value=0.5)
        try:
            first = [ask("8.8.8.8") for _ in range(questions.MAX_OF_ONE + 2)]
            assert first == [200] * questions.MAX_OF_ONE + [429, 429] and ask("8.8.4.4") == 200
        finally:
            space.hub.faults.clear()

    def test_while_others_wait_a_visitor_asks_once(self) -> None:
        """Two visitors with four of the dearest questions each kept all others waiting, again and again."""

        def request(address: str) -> SimpleNamespace:
            headers = [(b"x-forwarded-for", address.encode())]
            return SimpleNamespace(scope={"method": "POST", "path": "/gradio_api/queue/join", "headers": headers})

        def refused(*waiting: str) -> bool:
            kept = guard.Guard(None, lambda: [request(address) for address in waiting])
            return kept._too_many(request("8.8.8.8").scope) is not None

        assert not refused() and not refused(*["8.8.8.8"] * (questions.MAX_OF_ONE - 1))
        assert not refused("8.8.4.4", "8.8.8.8"), "as many work at once"
        assert not refused("8.8.4.4", "1.1.1.1") and refused("8.8.4.4", "1.1.1.1", "8.8.8.8")

    def test_a_long_body_is_not_read(self, space) -> None:
        answer = httpx.post(f"{space.url}/gradio_api/queue/join", content=b"x" * (guard.MAX_BODY + 1))
        assert answer.status_code == 413

    def test_a_session_is_its_visitors(self, space) -> None:
        """Who is signed in is known by the cookie: what alice's session holds, nobody else gets by knowing its name."""
        signed_in = httpx.get(f"{space.url}/login/callback").headers["set-cookie"].split(";")[0]
        ask = {"data": ["lab/child", []], "session_hash": "known", "fn_index": 0}
        api = f"{space.url}/gradio_api"
        assert httpx.post(f"{api}/queue/join", json=ask, headers={"Cookie": signed_in}).status_code == 200
        assert httpx.post(f"{api}/queue/join", json=ask).status_code == 403
        assert httpx.get(f"{api}/queue/data?session_hash=known").status_code == 403
        assert (
            httpx.post(f"{api}/cancel", json={"session_hash": "known", "fn_index": 0, "event_id": "x"}).status_code
            == 403
        )
        foreign = {"Cookie": signed_in, "Origin": "https://evil.org"}
        assert httpx.post(f"{api}/queue/join", json=ask, headers=foreign).status_code == 403

    def test_only_the_hub_may_frame_the_page(self, space) -> None:
        assert httpx.get(space.url).headers["content-security-policy"] == guard.FRAMED_BY


class TestTicket:
    """Leave to open a pull request is given once, to who has seen the change."""

    def test_once_and_for_whom_it_was(self) -> None:
        tabs = importlib.import_module("tabs")
        ticket = tabs.Ticket(("lineage", None), "alice")
        for wrong in (
            (None, "", "alice"),
            (ticket, "", "alice"),
            (ticket, "guess", "alice"),
            (ticket, ticket.number, "bob"),
        ):
            with pytest.raises(questions.RefusedError, match="Look at the change first"):
                tabs.take(*wrong)
        assert tabs.take(ticket, ticket.number, "alice") == ("lineage", None)
        with pytest.raises(questions.RefusedError, match="Look at the change first"):
            tabs.take(ticket, ticket.number, "alice")


def layered(depth: int, evil: str = "") -> hl.LayerLineage:
    """A map with all kinds of blocks."""
    import numpy as np

    refs = (f"lab/a{evil}", "lab/b")

    def one(i: int) -> BlockOrigin:
        name = f"model.layers.{i}{evil}"
        if i % 5 == 4:
            return BlockOrigin(name, i, "none", unknown=1.0)
        if i % 5 == 3:
            shares = (Share(refs[0], name, 0.7, 0.01), Share(refs[1], name, 0.3, 0.01))
            return BlockOrigin(name, i, "mixture", refs[0], name, None, 1e-9, -9.0, shares, 0.0)
        kind = ("equal", "tuned", "undecided")[i % 3]
        return BlockOrigin(name, i, kind, refs[1], name, 0.97, 1e-9, -9.0, (Share(refs[1], name, 1.0, 0.0),), 0.0)

    blocks = tuple(one(i) for i in range(depth))
    places = {ref: tuple(f"model.layers.{i}" for i in range(depth)) for ref in refs}
    return hl.LayerLineage(
        hl.ModelRef.parse("lab/merge"),
        "lab/merge",
        refs,
        blocks,
        places,
        {ref: np.zeros((depth, depth)) for ref in refs},
    )


class TestProgress:
    def test_what_is_read_and_how_many_bytes(self) -> None:
        html = show.progress_html(jobs.Step(3_200_000, 12_000_000, f"{HOSTILE}, 2 models", 4.2))
        assert "3.2 MB of 12.0 MB · 4 s" in html and 'aria-valuenow="27"' in html and "reading &lt;img" in html
        assert "<img" not in html and 'onerror="' not in html

    def test_before_anything_is_read(self) -> None:
        html = show.progress_html(jobs.Step(0, 0, "opening the model", 0.4))
        assert "opening the model" in html and "aria-valuenow" not in html

    def test_requests_are_no_bytes(self) -> None:
        assert "12 of 2500 ·" in show.progress_html(jobs.Step(12, 2500, "looking for candidates", 1.0))


class TestPictures:
    @pytest.mark.parametrize("depth", [12, 80])
    def test_a_map_says_all_of_every_block(self, depth: int) -> None:
        html = heatmap.layers_html(asking.layers_view(layered(depth)))
        tips = re.findall(r'data-tip="([^"]*)"', html)
        assert len(tips) == depth and html.count('tabindex="0"') == 3, "one row, and two foldings of text"
        assert "mixture 0.700 ± 0.010 of lab/a, 0.300 ± 0.010 of lab/b" in tips[3]
        assert "from none of these" in tips[4] and "probability 0.970" in tips[0] and "p 1e-9" in tips[0]

    def test_names_are_text(self) -> None:
        html = heatmap.layers_html(asking.layers_view(layered(5, HOSTILE)))
        assert "<img" not in html and "onerror" in html

    @pytest.mark.parametrize("path", sorted((APP / "examples").glob("*.json")), ids=lambda path: path.stem)
    def test_examples_can_be_shown(self, path: Path) -> None:
        view = json.loads(path.read_text())
        drawn = {
            "trace": show.lineage_html, "compare": show.comparison_html, "layers": heatmap.layers_html,
            "tree": show.tree_html,
        }[path.stem.split("-")[0]](view)  # fmt: skip
        kind, _, report = view["report"].partition(",")
        assert view["answer"]["schema"] == "hf_lineage/2" and kind == "data:text/html;base64"
        assert drawn.count('href="') == 1 and f'href="{kind},' in drawn, "the examples' models are not on the Hub"
        for text in (path.read_text(), base64.b64decode(report).decode()):
            assert "127.0.0.1" not in text and 'href="http' not in text

    def test_every_example_has_a_button_and_a_file(self) -> None:
        wording = importlib.import_module("wording")
        named = {f"{kind}-{name}" for kind, names in wording.EXAMPLES.items() for name in names}
        assert named == {path.stem for path in (APP / "examples").glob("*.json")}


class TestFiles:
    def test_front_matter(self) -> None:
        import gradio

        text = (APP / "README.md").read_text()
        front = yaml.safe_load(text.split("---")[1])
        built_for, here = ([int(part) for part in v.split(".")[:2]] for v in (front["sdk_version"], gradio.__version__))
        assert built_for <= here and (APP / front["app_file"]).is_file()
        assert front["hf_oauth_scopes"] == ["gated-repos", "write-discussions"] and front["hf_oauth"] is True
        assert len(front["short_description"]) <= 60

    def test_limits_are_told_as_they_are(self) -> None:
        text = (APP / "README.md").read_text().replace("\n", " ")
        for told in (
            f"{questions.WAITING} wait",
            f"at most {questions.MAX_CANDIDATES} named",
            f"({questions.MAX_MODELS} models",
        ):
            assert told in text
        assert questions.MAX_BYTES == 1 << 30 and questions.MAX_SECONDS == 240 and questions.AT_ONCE == 2

    @pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=lambda path: path.name)
    def test_modules_are_short_and_import_little(self, path: Path) -> None:
        text = path.read_text()
        assert len(text.splitlines()) <= 500
        own = {other.stem for other in APP.glob("*.py")}
        roots = {name.split(".")[0] for name in re.findall(r"^\s*(?:from|import) (\S+)", text, flags=re.M)}
        home = {"make.py": {"safetensors"}, "pages.py": {"jinja2", "markupsafe"}, "layout.py": {"starlette"}}
        allowed = own | {"gradio", "hf_lineage", "__future__"} | home.get(path.name, set())
        assert roots <= allowed | set(sys.stdlib_module_names)

    def test_requirements_install_us(self) -> None:
        assert "hf_lineage[space] @ git+https://" in (APP / "requirements.txt").read_text()
        assert (ROOT / "setup.cfg").read_text().count("space = gradio[mcp,oauth]") == 1
