"""The report to hand to somebody, and `explain`: whole, self-contained, escaped, honest about what was measured."""

from __future__ import annotations

import html
import importlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from test_audit_report import EVERY
from test_layers_report import passthrough
from test_report import BEST, GONE, OTHER, lineage
from test_tree_report import FORESTS, SMALL

from hf_lineage.answers.base import SCHEMA, MeasuredAnswer
from hf_lineage.answers.comparison import Comparison
from hf_lineage.answers.refs import ModelRef
from hf_lineage.errors import ArgumentError, Note
from hf_lineage.report import drawings, explain
from hf_lineage.report.figures import Figure, background, figures
from hf_lineage.report.page import audit_page, evidence
from hf_lineage.report.set_figures import of_audit

BEST = replace(BEST, facts={"moved": 0.12})
EVIL = '<script>alert(1)</script>"><img src=x onerror=y>\x1b[31m'
VOID = {"meta", "link", "img", "br", "circle", "line", "rect"}


class Page(HTMLParser):
    """The elements of a page, closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts = ""
        self.feed(text)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += data


def pair() -> Comparison:
    refs = ModelRef.parse("lab/a"), ModelRef.parse("lab/b")
    return Comparison(models=refs, requested=("lab/a", "lab/b"), related=True, first="lab/a", later="lab/b", pair=BEST)


ANSWERS: dict[str, MeasuredAnswer] = {
    "lineage": lineage(candidates=(BEST, OTHER, GONE)), "none": lineage(verdict="none", candidates=(OTHER, GONE)),
    "unread": lineage(verdict="undecided", candidates=(GONE,)),
    "layers": passthrough(), "tree": SMALL, "pair": pair(),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_report_is_one_whole_page(name: str) -> None:
    text = ANSWERS[name].to_html("hf-lineage trace 'a b'")  # type: ignore[attr-defined]
    page = Page(text)
    outside = {v for _, attrs in page.seen for k, v in attrs.items() if k in ("src", "href") and v}
    assert all(v.startswith(("data:image/png;base64,", "https://huggingface.co/")) for v in outside)
    assert "script" not in {tag for tag, _ in page.seen} and "default-src 'none'" in text
    levels = [int(tag[1]) for tag, _ in page.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(attrs.get("aria-label") and attrs["role"] == "img" for tag, attrs in page.seen if tag == "svg")
    for said in ("The answer", "What was compared", "What it does not say", "hf-lineage trace 'a b'"):
        assert said in page.texts


@pytest.mark.parametrize("which", ["lineage", "tree", "audit"])
def test_hostile_names_are_text(which: str) -> None:
    bad = replace(BEST, ref=EVIL, requested=EVIL, reasons=(Note("not_comparable", EVIL),))
    weights = dict(BEST.evidence["weights"]) if "weights" in BEST.evidence else {}
    weights["blocks"] = {EVIL: {"moved": 0.1}, "b": {"moved": 0.2}}
    bad = replace(bad, evidence={"weights": weights})  # type: ignore[dict-item]
    text = {
        "lineage": lambda: lineage(candidates=(bad, OTHER), notes=(Note("sampled", EVIL),)).to_html(EVIL),
        "tree": lambda: FORESTS["evil"].to_html(EVIL),
        "audit": lambda: audit_page([replace(record, ref=EVIL, reason=EVIL) for record in EVERY], EVIL),
    }[which]()
    page = Page(text)
    assert not {"script"} & {tag for tag, _ in page.seen} and "\x1b" not in text
    assert not any(k.startswith("on") or v == "x" for _, attrs in page.seen for k, v in attrs.items())
    assert "alert(1)" in page.texts


def test_figures_stand_beside_what_was_measured() -> None:
    found = {figure.title: figure for figure in figures(BEST, [OTHER], 1e-3, 0.1)}
    about = background()
    assert f"{about['p_value']['pairs']:,} measured pairs" in found["A common origin?"].background
    assert len(found) >= 6


def recorded(data: Any) -> Iterator[dict[str, Any]]:
    """The answers in a recorded file, with what is not recorded (what a run cost) filled in."""
    if isinstance(data, list):
        yield from chain.from_iterable(map(recorded, data))
    elif isinstance(data, dict):
        head = data.get("head", data)
        if isinstance(head, dict) and head.get("schema") == SCHEMA and {"verdict", "nodes", "blocks"} & {*head, *data}:
            yield head | data | {"versions": {}, "seconds": 0.0, "bytes_read": 0}
        yield from chain.from_iterable(map(recorded, data.values()))


def reported() -> Iterator[tuple[str, Figure]]:
    """Every piece of evidence of every recorded trace, layers and tree, and of an audit."""
    for path in sorted((Path(__file__).parent / "recorded").glob("[tl]*.json")):
        for data in recorded(json.loads(path.read_text())):
            answer = explain.read(json.dumps(data))
            assert isinstance(answer, MeasuredAnswer)
            yield from ((path.stem, figure) for figure in evidence(answer)[0])
    yield from (("audit", figure) for figure in of_audit(EVERY))


def test_every_piece_of_evidence_has_a_picture_a_sentence_and_a_background() -> None:
    titles = set()
    for name, figure in reported():
        titles.add(figure.title)
        assert figure.said.endswith((".", "!")) and "nan" not in figure.said.split(), (name, figure)
        assert re.search(r"\([\w., -]+\.json\)", figure.background), (name, figure.title)
        assert figure.picture.startswith("<svg") and 'aria-label="' in figure.picture, (name, figure.title)
        assert not lies_over_a_line(figure.picture), (name, figure.title, lies_over_a_line(figure.picture))
    assert len(titles) >= 18, titles


def lies_over_a_line(picture: str) -> list[str]:
    """The texts of an SVG that a line crosses, or that do not stay in it. A character is about 6.3 wide, and 12 tall."""
    lines = [[float(v) for v in found] for found in re.findall(r'x1="(.+?)" y1="(.+?)" x2="(.+?)" y2="(.+?)"', picture)]
    bad = []
    for x, y, anchor, text in re.findall(r'<text x="(.+?)" y="(.+?)" text-anchor="(\w+)" fill="[^"]*">(.*?)<', picture):
        wide = 6.3 * len(html.unescape(text))
        left = float(x) - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        box = (left, float(y) - 9, left + wide, float(y) + 2)
        inside = [at for line in lines for at in points(line) if box[0] < at[0] < box[2] and box[1] < at[1] < box[3]]
        bad += [text] if inside or left < -2 or left + wide > 642 else []
    return bad


def points(line: Sequence[float]) -> Iterator[tuple[float, float]]:
    x, y, to_x, to_y = line
    return ((x + (to_x - x) * k / 100, y + (to_y - y) * k / 100) for k in range(101))


def test_the_check_of_pictures_can_fail() -> None:
    for bad in (drawings._text(100, 60, "a text") + drawings._line(90, 56, (130, 56)), drawings._text(630, 9, "long")):
        assert lies_over_a_line(bad)


LONG = "organisation-with-a-name/" + "m" * 70


@pytest.mark.parametrize(
    "picture",
    [
        drawings.shares([(LONG, 0.6), (LONG + "2", 0.4)], "x"), drawings.stacked([("a", {LONG: 3, "b": 1})], "x"),
        *(drawings.who_first(first) for first in ("candidate", "child", "neither", None)),
        drawings.depths(6, 4, {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3}), drawings.order(1.4, 0.3),
        drawings.order(-1.4, 0.1), *(drawings.left_over(share) for share in (0.0, 0.5, 1.2)),
        *(drawings.calibration(share, [[0.5, 0.5], [1.0, 1.0]]) for share in (0.0, 0.3, 1.0)),
        drawings.blocks([(LONG, k / 10) for k in range(15)], (0.88, 1.42)),
        *(drawings.p_values(p, 1e-3, [[1.0, 9], [0.1, 1]], 9) for p in (0.0, -0.2, -2.9, -3.1, -9.0, -400.0)),
        *(drawings.changes(moved, [0.1, 1.2], (0.88, 1.42)) for moved in (0.0, 0.9, 2.0)),
    ],
)  # fmt: skip
def test_no_text_lies_over_a_line(picture: str) -> None:
    assert not lies_over_a_line(picture)


def test_the_background_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped file is made of the kept results: `python tests/benchmarks/background.py write`."""
    home = Path(__file__).parent / "benchmarks"
    monkeypatch.syspath_prepend(home)
    measured = importlib.import_module("background").figures()
    assert background() == measured, "python tests/benchmarks/background.py write"
    named = {name for part in measured.values() if isinstance(part, dict) for name in part["source"]}
    assert all((home / "results" / name).exists() for name in named)


@pytest.mark.parametrize("name", ["lineage", "none", "layers", "tree", "pair"])
def test_every_figure_stands_beside_a_background(name: str) -> None:
    """What was measured, with its source; or in words why nothing was."""
    evidence = ANSWERS[name].to_html().partition('id="evidence"')[2].partition("</section>")[0]
    assert evidence.count("<h3>") == evidence.count('class="background"') > 0
    assert "tests/benchmarks/results of" in evidence and "nan" not in evidence.split()


def test_the_background_of_an_audit() -> None:
    assert "showed no sign of a common origin with their true base" in audit_page(EVERY)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_is_explained(name: str) -> None:
    answer = ANSWERS[name]
    found = explain.told(explain.read(answer.to_json()))
    assert found[0].title == "The answer" and all(figure.said for figure in found)
    assert "nan" not in " ".join(figure.said for figure in found).split()


def test_other_documents_are_not_explained() -> None:
    for text in ("{", "[]", '{"a": 1}'):
        with pytest.raises(ArgumentError, match="Expected"):
            explain.read(text)


def test_the_last_answer_is_kept_for_its_owner_alone(
    run: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert run("explain")[0] == 2
    saved = tmp_path / "report.html"
    code, _, err = run("trace", folders["child"], folders["parent"], "--html", saved)
    kept = tmp_path / "home" / "hf_lineage" / "last.json"
    assert (
        code == 0 and stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    )
    assert f"report: {saved}" in err and f"hf-lineage trace {folders['child']}" in saved.read_text()
    code, out, _ = run("explain")
    assert code == 0 and "A common origin?" in out and "How far apart are the weights?" in out
    assert json.loads(run("explain", kept, "--format", "json")[1])[0]["title"] == "The answer"
    assert all(len(line) <= 80 for line in out.splitlines()) and run("explain", tmp_path / "none.json")[0] == 2
    run("inspect", folders["child"])
    assert "The answer" in run("explain")[1] and [path.name for path in kept.parent.iterdir()] == ["last.json"]


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_report_that_cannot_be_saved_is_refused_before_reading(
    run: Any, folders: dict[str, Path], tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = run("trace", folders["child"], folders["parent"], "--html", tmp_path / folder / "x.html")
    assert (code, out) == (2, "") and err.startswith("error: Expected a folder")
