"""The Space as its visitors see it: in a real browser, against the stand-in of the Hub.

Needs Chromium (Debian: apt-get install chromium-headless-shell). Without it these tests are skipped, unless
HF_LINEAGE_REQUIRE_BROWSER=1. Screenshots are taken where HF_LINEAGE_SCREENSHOTS names a folder.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from space_app import furnish, running

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
AXE = os.environ.get("HF_LINEAGE_AXE", "")
REQUIRED = os.environ.get("HF_LINEAGE_REQUIRE_BROWSER") == "1"
pytestmark = pytest.mark.skipif(BROWSER is None and not REQUIRED, reason=f"none of {', '.join(BROWSERS)} is installed")
CUT_OFF = re.compile("AbortError: signal is aborted|Connection errored out")
# Colours fade: until all that has an end is there
FADED = """Promise.all(document.getAnimations().filter(each => each.effect.getComputedTiming().endTime < Infinity)
    .map(each => each.finished.catch(() => 0)))"""
SECONDS = 60_000  # milliseconds for an answer: two cores may be busy with other tests
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, nets: dict[str, Any]) -> Iterator[Any]:
    """As on the Hub: visitors sign in by OAuth, at a stand-in; two questions may wait, which nobody but the last test fills."""
    with running(tmp_path_factory.mktemp("space"), on_hub=True, waiting=2) as found:
        furnish(found.hub, nets)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert BROWSER, f"HF_LINEAGE_REQUIRE_BROWSER=1, but none of {', '.join(BROWSERS)} is installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def profiles(browser: Any) -> Iterator[list[Any]]:
    """Browser contexts, one for each visitor at a time, lent to one test after the other: what they keep is the cache."""
    made: list[Any] = []
    yield made
    for context in made:
        context.close()


@pytest.fixture(scope="module")
def shoot() -> Callable[[Any, str], None]:
    given = os.environ.get("HF_LINEAGE_SCREENSHOTS")
    if not given:
        return lambda *_: None
    folder = Path(given)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser: Any, profiles: list[Any], space: Any) -> Iterator[Callable[..., Any]]:
    """Open the page as a new visitor. In the end: no error in the console, and no other host was asked for anything."""
    pages, troubles, hosts, moves = [], [], set(), Counter()

    def opened(query: str = "", user: str = "alice", dark: bool = False, viewport: dict[str, int] | None = None) -> Any:
        if len(pages) == len(profiles):
            profiles.append(browser.new_context())
            profiles[-1].set_default_timeout(SECONDS)
        context = profiles[len(pages)]
        assert not context.pages and not context.cookies(), "nothing of an earlier visitor"
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size(viewport or DESK)
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.on("framenavigated", lambda frame: moves.update([page]))  # the login's, ours, and any that follows
        page.goto(f"{space.login}/as/{user}")
        page.on("console", lambda message: troubles.append((page, message.text)) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append((page, str(error))))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(f"{space.url}/{query}")
        page.locator("#trace-child input").wait_for()
        return page

    yield opened
    for page in pages:
        page.evaluate("localStorage.clear()")
        page.context.clear_cookies()
        page.close()
    # gradio reports the calls that going to the login and back cuts off; of a page that stays, nothing is forgiven
    assert not [text for page, text in troubles if not (moves[page] > 2 and CUT_OFF.search(text))]
    assert hosts <= {urlsplit(space.url).netloc, urlsplit(space.login).netloc, ""}, hosts


def ask(page: Any, kind: str, child: str, parents: str = "") -> None:
    field = page.locator(f"#{kind}-child input")
    field.click()
    field.fill(child)
    field.press("Tab")
    page.locator(f"#{kind}-parents textarea").fill(parents)
    page.locator(f"#{kind}-go").click()


def answer(page: Any, kind: str) -> Any:
    found = page.locator(f"#{kind}-answer section.hl")
    found.wait_for()
    return found


def told(page: Any, kind: str) -> str:
    alert = page.locator(f"#{kind}-status [role=alert]")
    alert.wait_for()
    return alert.inner_text()


def tab(page: Any, name: str) -> None:
    """On a phone some of them are behind "…"."""
    if not page.get_by_role("tab", name=name).is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        return
    page.get_by_role("tab", name=name).click()


def sign_in(page: Any) -> None:
    page.locator("#login").click()
    page.locator("#login", has_text="Sign out").wait_for()


class TestCompare:
    def test_two_models_and_the_report(self, visit, shoot, tmp_path) -> None:
        """By its address, and by hand: Enter asks, and the address follows."""
        page = visit("?models=lab/stranger,lab/child&tab=compare", viewport=PHONE)
        found = answer(page, "compare")
        assert found.locator(".hl-badge").inner_text() == "Unrelated"
        page.locator("#compare-one input").fill("lab/parent")
        page.locator("#compare-one input").press("Enter")
        page.wait_for_function("location.search === '?models=lab/parent,lab/child&tab=compare'")
        page.locator("#compare-answer .hl-badge", has_text=re.compile("^Related")).wait_for()
        assert "lab/parent" in found.locator(".hl-said").inner_text()
        with page.expect_download() as saved:
            found.get_by_text("Save the report").click()
        saved.value.save_as(tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text()
        assert "hf-lineage compare lab/parent lab/child" in text and "measured pairs of unrelated models" in text
        report = page.context.new_page()
        report.set_viewport_size(PHONE)
        report.goto(f"file://{tmp_path}/report.html")
        for look in ({"color_scheme": "dark"}, {"color_scheme": "light"}, {"media": "print"}):
            report.emulate_media(**look)
            assert report.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            assert not AXE or not serious(report), look
        report.close()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        shoot(page, "compare-phone")

    def test_one_model_is_no_pair(self, visit) -> None:
        page = visit("?models=lab/parent&tab=compare")
        page.locator("#trace-status", has_text="Expected two models to compare, got 1.").wait_for()


def test_examples_need_no_hub(visit, space, shoot) -> None:
    """Every example of every tab, with a report to take along; their models are nowhere on the Hub, so nothing links."""
    down = space.hub.fault("drop", on="any", times=None)
    try:
        page = visit(dark=True)
        for name, kind in {"Trace": "trace", "Compare": "compare", "Layers": "layers", "Family tree": "tree"}.items():
            tab(page, name)
            for button in page.locator(f"[id^={kind}-example-]").all():
                page.locator(f"#{kind}-answer section.hl").evaluate_all(
                    "all => all.forEach(one => one.dataset.old = 1)"
                )
                button.click()
                found = page.locator(f"#{kind}-answer section.hl:not([data-old])")
                found.wait_for()
                links = found.locator("a").evaluate_all("every => every.map(each => each.getAttribute('href'))")
                assert [link.partition(",")[0] for link in links] == ["data:text/html;base64"]
                assert not re.search(rb"href=.https?:", base64.b64decode(links[0].partition(",")[2]))
                shoot(page, f"example-{button.get_attribute('id')}")
    finally:
        space.hub.faults.remove(down)


class TestTrace:
    def test_named_candidates(self, visit, shoot) -> None:
        page = visit()
        shoot(page, "first-light")
        ask(page, "trace", "lab/child", "lab/parent\nlab/stranger")
        found = answer(page, "trace")
        assert "lab/parent" in found.locator(".hl-said").inner_text()
        rows = found.locator("tbody tr")
        assert rows.count() == 3 and "lab/parent" in rows.nth(0).inner_text()
        assert "None of these" in rows.nth(2).inner_text() and "you named it" in rows.nth(0).inner_text()
        assert "confirmed by the weights" in found.locator(".hl-claims").inner_text()
        found.get_by_text("The evidence", exact=True).click()
        assert found.locator("dl dt").count() > 3
        page.get_by_text("Take it with you: command, Python, link").nth(0).click()
        assert (
            page.locator("#trace-as-command textarea").input_value()
            == "hf-lineage trace lab/child -c lab/parent -c lab/stranger"
        )
        page.wait_for_function("document.querySelector('#trace-as-link textarea').value.includes('?child=lab/child')")
        assert page.url.endswith("?child=lab/child&parents=lab/parent,lab/stranger")
        shoot(page, "trace-light")

    def test_found_candidates_on_a_phone_in_the_dark(self, visit, shoot) -> None:
        page = visit(dark=True, viewport=PHONE)
        ask(page, "trace", "lab/grandchild")
        found = answer(page, "trace")
        assert "lab/child" in found.locator("tbody tr").nth(0).inner_text()
        assert "contradicted" in found.locator(".hl-claims").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], (
            "the page does not move sideways"
        )
        shoot(page, "trace-phone-dark")

    def test_none_of_these(self, visit, shoot) -> None:
        page = visit("?child=lab/child&parents=lab/stranger,lab/stranger-2")
        found = answer(page, "trace")
        assert found.locator(".hl-badge").inner_text() == "None of these"
        assert "None of these" in found.locator("tr.hl-best").inner_text()
        shoot(page, "none-light")

    def test_ids_are_completed_while_typing(self, visit, shoot) -> None:
        page = visit()
        page.locator("#trace-child input").click()
        page.locator("#trace-child input").press_sequentially("lab/str", delay=60)
        page.get_by_role("option", name="lab/stranger-2").wait_for()
        shoot(page, "complete-light")
        page.get_by_role("option", name="lab/stranger", exact=True).click()
        assert page.locator("#trace-child input").input_value() == "lab/stranger"

    def test_a_question_can_be_stopped(self, visit, space, shoot) -> None:
        slow = space.hub.fault("delay", file="lab/child*", times=None, value=0.5)
        try:
            page = visit()
            ask(page, "trace", "lab/child", "lab/parent")
            page.locator("#trace-status [role=progressbar]").wait_for()
            shoot(page, "progress-light")
            page.locator("#trace-stop").click()
            page.locator("#trace-status", has_text="Stopped").wait_for()
            for button, said in (("stop", "Stopped"), ("example-lie", "kept")):  # pressed before the queue knows of it
                page.evaluate(f"for (const at of ['go', '{button}']) document.querySelector('#trace-' + at).click()")
                page.locator("#trace-status", has_text=said).wait_for()
            before = -1
            while before != len(space.hub.log):  # what was under way is answered, then it is quiet
                before = len(space.hub.log)
                page.wait_for_timeout(900)
            page.wait_for_timeout(600)
            assert len(space.hub.log) == before
            assert (
                said in page.locator("#trace-status").inner_text() and page.locator("#trace-answer .hl-badge").count()
            )
        finally:
            space.hub.faults.remove(slow)
        ask(page, "trace", "lab/child", "lab/parent")
        answer(page, "trace")

    def test_who_has_to_wait_is_told(self, visit, space, shoot) -> None:
        slow = space.hub.fault("delay", file="lab/child*", times=None, value=1.5)
        try:
            pages = [visit() for _ in range(3)]
            for page in pages:
                ask(page, "trace", "lab/child", "lab/parent")
            pages[2].locator("#trace-status", has_text="waiting for a free place").wait_for()
            pages[2].wait_for_timeout(600)  # the others are being worked on meanwhile
            assert "waiting for a free place" in pages[2].locator("#trace-status").inner_text()
            assert "waiting" not in pages[0].locator("#trace-status").inner_text()
            shoot(pages[2], "waiting-light")
        finally:
            space.hub.faults.remove(slow)
        for page in pages:
            assert "lab/parent" in answer(page, "trace").inner_text()


class TestRefusals:
    def test_an_unknown_repo(self, visit, shoot) -> None:
        page = visit()
        ask(page, "trace", "nobody/nothing")
        assert "nobody/nothing was not found on the Hub" in told(page, "trace")
        shoot(page, "unknown-light")

    def test_what_is_no_id(self, visit) -> None:
        page = visit()
        for text in ("/etc/passwd", "a b", "<script>alert(1)</script>", "../up"):
            ask(page, "trace", text)
            page.locator("#trace-status [role=alert]", has_text=text[:6]).wait_for()
        assert "Traceback" not in page.content()

    def test_a_private_repo_looks_like_none(self, visit) -> None:
        page = visit()
        ask(page, "trace", "secret/private", "lab/parent")
        assert "secret/private was not found" in told(page, "trace")

    def test_a_gated_repo_before_and_after_signing_in(self, visit, space, shoot) -> None:
        page = visit("?child=vault/gated&parents=lab/parent")
        assert "vault/gated is gated" in told(page, "trace") and "sign in above" in told(page, "trace")
        shoot(page, "gated-light")
        sign_in(page)
        found = answer(page, "trace")  # the question came back with the visitor
        assert "lab/parent" in found.locator(".hl-said").inner_text()
        assert space.users("vault/gated") <= {None, "alice"}, "never the machine's own token"

    def test_hostile_names(self, visit, shoot) -> None:
        page = visit()
        ask(page, "trace", "lab/hostile", "lab/parent\nlab/stranger")
        found = answer(page, "trace")
        found.get_by_text("The evidence", exact=True).click()
        assert found.locator("img").count() == 0 and page.evaluate("window.hacked") is None
        assert "onerror" in found.inner_html() and "<img" not in found.inner_html()
        shoot(page, "hostile-light")


def by(page: Any, kind: str, evidence: str) -> None:
    page.locator("button.label-wrap:visible", has_text="Evidence").click()
    page.locator(f"#{kind}-evidence label", has_text=evidence).click()


def test_two_visitors_ask_features_and_a_detector_at_once(visit, shoot) -> None:
    pages = {"features": visit(), "detector": visit(user="bob")}
    for evidence, page in pages.items():
        by(page, "trace", evidence)
        ask(page, "trace", "run/child", "run/parent\nrun/other")
    said = {"features": "By its features (l2 at relu, 128 probes) it is most like", "detector": "The detector"}
    for evidence, page in pages.items():
        assert said[evidence] in answer(page, "trace").text_content()
        page.get_by_text("Take it with you").first.click()
        assert f"--evidence {evidence}" in page.locator("#trace-as-command textarea").input_value()
        shoot(page, f"evidence-{evidence}")
    page = pages["features"]
    ask(page, "trace", "run/child")
    assert "name 1 to 4 candidates, got 0" in told(page, "trace")
    tab(page, "Layers")
    by(page, "layers", "features")
    ask(page, "layers", "run/child", "run/parent\nrun/other")
    found = answer(page, "layers")
    found.locator(".hl-map tbody tr").nth(0).hover()
    assert "by features run/parent, match" in found.locator(".hl-detail").inner_text()
    assert re.search(r"By features ([23]) of \1 blocks are most like the origin that is shown", found.inner_text())
    shoot(page, "evidence-layers")


class TestLayers:
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_twelve_blocks(self, visit, shoot, dark: bool) -> None:
        page = visit(dark=dark)
        tab(page, "Layers")
        ask(page, "layers", "merges/hybrid", "merges/a\nmerges/b\nmerges/c")
        found = answer(page, "layers")
        rows = found.locator(".hl-map tbody tr")
        assert rows.count() == 14
        rows.nth(5).hover()
        detail = found.locator(".hl-detail").inner_text()
        assert detail.startswith("model.layers.4; origin merges/b, block model.layers.4") and "; p " in detail
        rows.nth(0).focus()
        page.keyboard.press("ArrowDown")
        assert found.locator(".hl-detail").inner_text().startswith("model.layers.0; origin merges/a")
        shoot(page, f"layers-{'dark' if dark else 'light'}")

    def test_eighty_blocks_on_a_phone(self, visit, shoot) -> None:
        page = visit(viewport=PHONE)
        tab(page, "Layers")
        ask(page, "layers", "merges/deep", "merges/deep-a\nmerges/deep-b")
        found = answer(page, "layers")
        rows = found.locator(".hl-map tbody tr")
        assert rows.count() == 82
        rows.nth(25).click()
        assert "origin merges/deep-b" in found.locator(".hl-detail").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        shoot(page, "layers-80-phone")


class TestTree:
    @pytest.mark.parametrize("models", ["lab/parent, lab/child\nlab/stranger", "COLLECTION"])
    def test_a_tree(self, visit, space, shoot, models: str) -> None:
        page = visit()
        tab(page, "Family tree")
        text = models.replace("COLLECTION", f"{space.hub.url}/collections/lab/family-0123abcd")
        page.locator("#tree-models textarea").fill(text)
        page.locator("#tree-go").click()
        found = answer(page, "tree")
        assert found.locator("img").nth(0).get_attribute("src").startswith("data:image/png;base64,")
        assert "lab/child" in found.locator("pre").nth(0).inner_text()
        found.get_by_text("As rings").click()
        ring = found.get_by_role("group", name="Picture of the rings").locator("img")
        assert ring.evaluate("image => image.naturalWidth") > 300

    def test_one_model_is_no_tree(self, visit) -> None:
        page = visit()
        tab(page, "Family tree")
        page.locator("#tree-models textarea").fill("lab/parent")
        page.locator("#tree-go").click()
        assert "two models or more" in told(page, "tree")


class TestAnnotate:
    def test_from_a_question_to_a_pull_request(self, visit, space, shoot) -> None:
        page = visit()
        tab(page, "Annotate")
        assert page.locator("#annotate-look").is_disabled()
        sign_in(page)
        ask(page, "trace", "lab/fresh", "lab/parent\nlab/stranger")
        answer(page, "trace")
        tab(page, "Annotate")
        assert page.locator("#annotate-send").is_disabled(), "nothing is sent that was not looked at"
        page.locator("#annotate-look").click()
        diff = page.locator("#annotate-diff pre.hl-diff")
        diff.wait_for()
        assert "hf-lineage:start" in diff.inner_text()
        shoot(page, "annotate-light")
        assert not space.hub.repos["lab/fresh"].discussions
        page.locator("#annotate-send", has_text="Open the pull request as alice").click()
        link = page.locator("#annotate-status a")
        link.wait_for()
        pull = space.hub.repos["lab/fresh"].discussions[1]
        assert (pull.author, pull.title, pull.status) == ("alice", "Add model lineage", "open")
        assert link.get_attribute("href").endswith("/lab/fresh/discussions/1")
        assert "owner" not in space.users("lab/fresh")
        shoot(page, "annotate-sent-light")

    def test_who_is_not_signed_in_sees_the_diff_only(self, visit, space, shoot) -> None:
        page = visit("?child=lab/child&parents=lab/parent", dark=True, viewport=PHONE)
        answer(page, "trace")
        tab(page, "Annotate")
        page.locator("#annotate-look").click()
        page.locator("#annotate-diff pre.hl-diff").wait_for()
        assert page.locator("#annotate-send").is_disabled()
        assert not space.hub.repos["lab/child"].discussions
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        shoot(page, "annotate-phone-dark")


def test_two_users_at_once(visit, space) -> None:
    """Each with the own token, answer and card: who was not let in does not read what the other may."""
    alice, bob = visit(), visit(user="bob")
    for page in (alice, bob):
        sign_in(page)
        ask(page, "trace", "vault/gated", "lab/parent")
    assert "vault/gated is gated" in told(bob, "trace") and "sign in" not in told(bob, "trace")
    assert "vault/gated" in answer(alice, "trace").inner_text()
    ask(bob, "trace", "lab/shared", "lab/parent")
    assert "vault" not in answer(bob, "trace").inner_text()
    tab(bob, "Annotate")
    bob.locator("#annotate-look").click()
    bob.locator("#annotate-send", has_text="as bob").click()
    bob.locator("#annotate-status a").wait_for()
    assert space.hub.repos["lab/shared"].discussions[1].author == "bob"
    tab(alice, "Annotate")
    assert "vault/gated" in alice.locator("#annotate-about").inner_text()
    assert "bob" not in space.users("vault/gated/resolve") or bob_was_refused(space)


def bob_was_refused(space: Any) -> bool:
    return all(
        call.status == 403 for call in space.hub.log if call.user == "bob" and "vault/gated/resolve" in call.path
    )


def test_signing_out(visit) -> None:
    page = visit()
    sign_in(page)
    page.locator("#login", has_text="Sign out (alice)").click()
    page.locator("#login", has_text="Sign in").wait_for()
    ask(page, "trace", "vault/gated", "lab/parent")
    assert "sign in above" in told(page, "trace")


ATTACK = """async ([space, target, data]) => {
  const session_hash = 'attack' + Math.random();
  const send = (credentials) => fetch(`${space}/gradio_api/queue/join`, {
    method: 'POST', credentials, headers: {'Content-Type': 'application/json', 'X-Forwarded-Host': location.host},
    body: JSON.stringify({data, session_hash, fn_index: target})
  }).then((answer) => answer.status, () => 0);
  const said = {joined: await send('include')};
  if (said.joined === 200) {
    const answer = await fetch(`${space}/gradio_api/queue/data?session_hash=${session_hash}`, {credentials: 'include'});
    said.read = await answer.text();
  }
  said.page = await fetch(`${space}/config`, {credentials: 'include'}).then((answer) => answer.status, () => 0);
  const image = new Image();
  await new Promise((done) => { image.onload = image.onerror = done; image.src = `${space}/logout`; });
  said.without = await fetch(`${space}/gradio_api/queue/status`, {credentials: 'omit'}).then((a) => a.status, () => 0);
  return said;
}"""


def test_another_site_may_not_ask_in_a_visitors_name(visit, space) -> None:
    """A page of another origin, opened in a signed-in visitor's browser, which sends the visitor's cookie along: it
    joined the queue with the visitor's token, and read the answer about a model that only the visitor may read."""
    page = visit()
    sign_in(page)
    config = httpx.get(f"{space.url}/config").json()
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "trace-go")
    asks = next(each for each in config["dependencies"] if [button, "click"] in each["targets"] and each["backend_fn"])
    asked = len(space.hub.log)
    with SecondSite() as site:
        evil = page.context.new_page()
        evil.goto(site.url)
        data = ["vault/gated", "lab/parent", None]
        said = evil.evaluate(ATTACK, [space.url, asks["id"], data])
        assert said == {"joined": 403, "page": 403, "without": 200}
        frame = evil.evaluate(
            "(url) => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }", space.url
        )
        evil.wait_for_timeout(500)
        assert frame is None and not any(each.url.startswith(space.url) for each in evil.frames[1:]), (
            "it may not frame us"
        )
        evil.close()
    assert not [call for call in space.hub.log[asked:] if call.user == "alice"]
    page.reload()
    page.locator("#login", has_text="Sign out (alice)").wait_for()  # an image of another site cannot sign anybody out
    ask(page, "trace", "vault/gated", "lab/parent")
    assert "lab/parent" in answer(page, "trace").inner_text()


class SecondSite:
    """An empty page of another origin: the Space is at `localhost`, this at `127.0.0.1`."""

    def __enter__(self) -> SecondSite:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<p>A page.</p>")

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_token_of_the_space_is_never_used(visit, space) -> None:
    page = visit()
    sign_in(page)
    ask(page, "trace", "vault/gated", "lab/parent")
    answer(page, "trace")
    assert not {call.path for call in space.hub.log if call.user == "owner"}


def press(page: Any, key: str, until: str, most: int = 12) -> None:
    """Press a key until the focus is on the element of this id or role."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("[document.activeElement.id, document.activeElement.role]").count(until):
            return
    raise AssertionError(f"{most} times {key} do not lead to {until}")


class TestKeyboardOnly:
    def test_trace(self, visit) -> None:
        page = visit()
        page.locator("#trace-child input").focus()
        page.keyboard.type("lab/child")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.locator("#trace-parents textarea").focus()
        page.keyboard.type("lab/parent")
        press(page, "Tab", "trace-go", 3)  # past what evidence may stand beside the weights
        page.keyboard.press("Enter")
        assert "lab/parent" in answer(page, "trace").inner_text()

    def test_from_tab_to_tab(self, visit) -> None:
        """To a tree, to the layers' map and its rows, and to the card, without a mouse."""
        page = visit("?child=lab/child&parents=lab/parent")
        answer(page, "trace")
        page.get_by_role("tab", name="Trace").focus()
        page.keyboard.press("Tab")  # Compare
        press(page, "Tab", until="tab")
        page.keyboard.press("Enter")
        press(page, "Tab", until="layers-example-hybrid")
        page.keyboard.press("Enter")
        rows = answer(page, "layers").locator("tbody tr")
        for _ in range(4):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "TR":
                break
        page.keyboard.press("End")
        assert rows.last.evaluate("row => row === document.activeElement")
        page.get_by_role("tab", name="Annotate").focus()
        page.keyboard.press("Enter")
        press(page, "Tab", until="annotate-look")
        page.keyboard.press("Enter")
        page.locator("#annotate-diff pre.hl-diff").wait_for()


@pytest.mark.skipif(not AXE and not REQUIRED, reason="HF_LINEAGE_AXE names no axe.min.js (npm install axe-core)")
class TestAxe:
    """Nothing serious, on a desk and on a phone, in the light and in the dark, in every tab."""

    def test_of_a_question(self, visit) -> None:
        page = visit("?child=lab/child&parents=lab/parent")
        answer(page, "trace").get_by_text("The evidence", exact=True).click()
        page.get_by_text("Take it with you: command, Python, link").nth(0).click()
        look_at(page, "trace")
        tab(page, "Annotate")
        page.locator("#annotate-look").click()
        page.locator("#annotate-diff pre.hl-diff").wait_for()
        look_at(page, "annotate")

    def test_of_examples_and_errors(self, visit) -> None:
        page = visit()
        look_at(page, "first")
        for name, kind, example in (("Compare", "compare", "related"), ("Layers", "layers", "merge"),
                                    ("Family tree", "tree", "family")):  # fmt: skip
            tab(page, name)
            page.locator(f"#{kind}-example-{example}").click()
            answer(page, kind)
            look_at(page, kind)
        tab(page, "How it works")
        look_at(page, "how")
        tab(page, "Trace")
        ask(page, "trace", "nobody/nothing")
        told(page, "trace")
        look_at(page, "error")


def look_at(page: Any, place: str) -> None:
    """axe, in every size and theme; the page ends as it was."""
    for dark in (True, False):
        page.emulate_media(color_scheme="dark" if dark else "light")
        bright = "+getComputedStyle(document.body).color.match(/[\\d.]+/)[0] > 200"  # the text
        page.wait_for_function(bright if dark else f"!({bright})")
        for size in (PHONE, DESK):
            page.set_viewport_size(size)
            assert not serious(page), (place, dark, size)


@pytest.mark.skipif(not AXE and not REQUIRED, reason="HF_LINEAGE_AXE names no axe.min.js (npm install axe-core)")
def test_and_the_test_above_can_fail(visit) -> None:
    page = visit()
    page.evaluate("document.querySelector('#trace-go').style.cssText = 'color: #bbb; background: #fff'")
    assert "color-contrast" in {rule for rule, *_ in serious(page)}


def serious(page: Any) -> list[tuple]:
    """What axe calls serious or critical."""
    assert AXE, "HF_LINEAGE_REQUIRE_BROWSER=1, but HF_LINEAGE_AXE names no axe.min.js (npm install axe-core)"
    page.evaluate(FADED)
    if not page.evaluate("'axe' in window"):
        page.evaluate(Path(AXE).read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        (each["id"], node["target"], node["html"][:160], node["failureSummary"][:200])
        for each in found if each["impact"] in ("serious", "critical") for node in each["nodes"]
    ]  # fmt: skip


def test_how_it_works(visit, shoot) -> None:
    page = visit()
    tab(page, "How it works")
    page.get_by_text("Limits of this page").wait_for()
    shoot(page, "how-light")
    assert re.search(r"16 candidates.*1024 MB", page.locator(".hl-how").inner_text().replace("\n", " "))


class TestWhatAQuestionLeavesBehind:
    def test_nothing_of_an_earlier_one_stays(self, visit) -> None:
        page = visit("?child=lab/child&parents=lab/parent")
        answer(page, "trace")
        ask(page, "trace", "lab/nothere", "lab/parent")
        assert "lab/nothere" in told(page, "trace") and page.locator("#trace-answer section").count() == 0
        page.wait_for_function("location.search === '?child=lab/nothere&parents=lab/parent'")
        page.locator("#trace-example-none").click()
        answer(page, "trace")
        page.wait_for_function("location.search === ''")
        assert page.locator("#trace-child input").input_value() == ""
        page.get_by_text("Take it with you: command, Python, link").nth(0).click()
        assert page.locator("#trace-as-command textarea").input_value() == ""
        page.go_back()
        page.wait_for_function("document.querySelector('#trace-child input')?.value === 'lab/nothere'")

    def test_signing_in_keeps_what_was_typed_and_the_tab(self, visit) -> None:
        page = visit()
        tab(page, "Layers")
        ask(page, "layers", "vault/gated", "lab/parent")
        assert "sign in above" in told(page, "layers")
        sign_in(page)
        assert "lab/parent" in answer(page, "layers").inner_text()
        assert page.get_by_role("tab", name="Layers").get_attribute("aria-selected") == "true"

    def test_a_link_says_what_it_leaves_out(self, visit) -> None:
        page = visit("?child=lab/child&parents=lab/parent,<b>x</b>&tab=trace")
        assert "lab/parent" in answer(page, "trace").inner_text()
        page = visit("?child=<script>alert(1)</script>")
        page.locator("#trace-status", has_text="is no id of a model").wait_for()

    def test_enter_asks(self, visit) -> None:
        page = visit()
        page.locator("#trace-parents textarea").fill("lab/parent")
        page.locator("#trace-child input").fill("lab/child")
        page.keyboard.press("Enter")
        assert "lab/parent" in answer(page, "trace").inner_text()
        page.locator("#trace-parents textarea").fill("lab/stranger")
        page.keyboard.press("Control+Enter")
        page.locator("#trace-answer .hl-badge", has_text="None of these").wait_for()
        assert "no sign of a common origin" in page.locator("#trace-status [role=status]").inner_text()
        tab(page, "Annotate")
        page.locator("#annotate-about", has_text="no news for its card").wait_for()
        assert page.locator("#annotate-look").is_disabled()


def test_a_full_queue_is_told(browser, space) -> None:
    slow = space.hub.fault("delay", file="lab/child*", times=None, value=1.5)
    contexts = [
        browser.new_context(extra_http_headers={"X-Forwarded-For": f"8.8.8.{i}"}) for i in range(5)
    ]  # two at work, two waiting; a browser has few connections to a host
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto(f"{space.url}/?child=lab/child&parents=lab/parent")
    full = [page.locator("#trace-status", has_text="could not take the question") for page in pages]
    for _ in range(200):
        if any(each.count() for each in full):
            break
        pages[0].wait_for_timeout(100)
    assert any(each.count() for each in full)
    space.hub.faults.remove(slow)
    for context in contexts:
        context.close()
