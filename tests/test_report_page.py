"""The report to hand to somebody, and `explain`: whole, self-contained, escaped, honest about what was measured."""

from __future__ import annotations

import importlib
import json
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_audit_report import EVERY
from test_layers_report import passthrough
from test_report import BEST, GONE, OTHER, lineage
from test_tree_report import FORESTS, SMALL

from hf_lineage.answers.base import MeasuredAnswer
from hf_lineage.answers.comparison import Comparison
from hf_lineage.answers.refs import ModelRef
from hf_lineage.errors import ArgumentError, Note
from hf_lineage.report import explain
from hf_lineage.report.figures import background, figures
from hf_lineage.report.page import audit_page

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
    assert all(figure.said.endswith(".") and "tests/benchmarks/results" in figure.background
               for title, figure in found.items() if title != "What was done")  # fmt: skip
    assert sum("<svg" in figure.picture for figure in found.values()) >= 2


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
    assert "tests/benchmarks/results/" in evidence and "nan" not in evidence.split()


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
