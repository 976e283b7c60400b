"""Tables and paragraphs for a terminal: every width, wide characters, no colour, the same text everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_audit_report import EVERY, report
from test_layers_report import passthrough
from test_report import BEST, GONE, OTHER, lineage
from test_tree_report import CHAIN, FORESTS, SMALL

from hf_lineage.answers.refs import ModelRef
from hf_lineage.answers.search import CandidateSearch, FoundCandidate
from hf_lineage.report import console
from hf_lineage.report.console import Column, labelled, table
from hf_lineage.report.format import cells

WIDE = "模型/模型-と-モデル-" + "模" * 60
WIDTHS = (40, 61, 62, 80, 133, 200)
FOUND = CandidateSearch(
    ModelRef.parse("lab/child"), "lab/child",
    (
        FoundCandidate(WIDE, None, ("declared by the card", "same base"), "comparable", 1.0, 86_567_656, later=True),
        FoundCandidate("lab/b", None, ("a rule that is rather long, since it names a model of the Hub",), "comparable", 0.5, 999),
        FoundCandidate("lab/c", None, ("same size",), "not_comparable", reason="no such tensor"),
    ),
)  # fmt: skip
ANSWERS = {
    "lineage": lineage(candidates=(replace(BEST, ref=WIDE, requested=WIDE, relation="common_origin"), OTHER, GONE)),
    "layers": passthrough(), "tree": SMALL, "chain": CHAIN, "evil": FORESTS["evil"], "search": FOUND,
}  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_keeps_to_its_width(name: str, width: int) -> None:
    text = ANSWERS[name].to_text(width)
    assert max(map(cells, text.splitlines())) <= width
    assert all(line.isprintable() and line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_an_audit_keeps_to_its_width(width: int) -> None:
    assert max(map(cells, report.table(EVERY, width).splitlines())) <= width


def test_numbers_are_whole_and_names_give_up_their_middle() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True), Column("relation"))
    rows = [[f"organisation/{'x' * 90}-end", "<1e-300", "common_origin"], [WIDE, "0.5", "none"]]
    for width in WIDTHS:
        text = "\n".join(table(columns, rows, width))
        assert "<1e-300" in text and "common_origin" in text and "-end" in text and "organisa" in text
    head, one, other = table(columns, rows, 80)
    assert head.index("p-value") + len("p-value") == one.index("<1e-300") + len("<1e-300")
    assert "…" in one and cells(other[: other.index("0.5")]) == head.index("p-value") + len("p-value") - 3


def test_a_narrow_table_has_names_on_lines_of_their_own() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True))
    assert table(columns, [["lab/a", "0.5"], ["none of these", ""]], 40, [">", " "]) == [
        "  model", "  p-value", "> lab/a", "      0.5", "  none of these",
    ]  # fmt: skip


def test_a_paragraph_breaks_at_blanks_and_within_a_word_that_is_too_long() -> None:
    assert labelled("note  ", "one two-three", 12) == ["note  one", "      two-th", "      ree"]
    assert labelled("", "one two", 5) == ["one", "two"] and labelled("  ", "", 40) == [""]
    assert labelled("│  ", "one two", 7, "│  ") == ["│  one", "│  two"]


@pytest.mark.parametrize(
    "variables", [{"FORCE_COLOR": "1", "TERM": "xterm-256color"}, {"COLUMNS": "33"}, {"NO_COLOR": "1"}]
)
def test_the_environment_changes_nothing(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = str(SMALL)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(SMALL) == expected and "\x1b" not in expected


@pytest.mark.parametrize("columns, width", [(20, 40), (40, 40), (97, 97), (1000, 200)])
def test_a_terminal_is_used_from_40_to_200_columns(columns: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert console.terminal_width() == 80, "where there is no terminal"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert console.terminal_width() == width
