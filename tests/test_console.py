"""Tables and paragraphs for a terminal: every width, wide characters, no colour, the same text everywhere."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from test_audit_report import EVERY, report
from test_layers_report import passthrough
from test_report import BEST, GONE, OTHER, lineage
from test_tree_report import CHAIN, FORESTS, SMALL

from hf_lineage.answers.refs import ModelRef
from hf_lineage.answers.search import CandidateSearch, FoundCandidate
from hf_lineage.report import console, progress
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


def test_numbers_and_names_are_whole() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True), Column("relation"))
    rows = [[f"organisation/{'x' * 90}-end", "<1e-300", "common_origin"], [WIDE, "0.5", "none"]]
    for width in WIDTHS:
        lines = table(columns, rows, width)
        text = "".join(line.removeprefix("  ") for line in lines)
        assert "<1e-300" in text and "common_origin" in text and rows[0][0] in text and WIDE in text and "…" not in text
    assert len(table(columns, rows, 200)) == 3, "a line each where there is room"


def test_names_that_do_not_fit_lose_the_folder_that_they_share() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True))
    folder = f"./{'models/' * 12}"
    rows = [[f"{folder}a", "0.5"], [f"{folder}b", "0.25"], ["(none of these)", ""]]
    assert table(columns, rows, 80)[1:4] == [
        "  a                    0.5",
        "  b                   0.25",
        "  (none of these)",
    ]
    assert table(columns, rows, 80)[4].startswith("  (in ./models/models")
    assert table(columns, rows, 200)[1].startswith(f"  {folder}a"), "and keep it where there is room"


ANSWER = {
    "child": {"ref": "lab/child"}, "parent": "lab/base", "candidates": [{"ref": "lab/base"}, {"ref": "./x"}],
    "claims": [{"ref": "evil/\x1b"}],
}  # fmt: skip


def test_a_terminal_gets_bold_letters_colours_and_links_over_the_same_text() -> None:
    text = (
        "child    lab/child\nverdict  Fine-tuned from lab/base,\n         sure.\n\n> lab/base  0.9\n  ./x  0.1\n"
        "claim    the card names lab/base-2: contradicted, no sign\nclaim    it names lab/base: confirmed by the weights\n"
        "claim    the card names\n         lab/base: contradicted"
    )
    shown = console.dressed(text, ANSWER)
    plain = re.sub(r"\x1b\]8;;[^\x1b]*\x1b\\|\x1b\[\d*m", "", shown)
    assert plain == text, "nothing but escape sequences is added"
    lines = shown.splitlines()
    assert lines[1].startswith("\x1b[1m") and lines[2].startswith("\x1b[1m") and lines[4].startswith("\x1b[1m")
    assert lines[0] == "child    \x1b]8;;https://huggingface.co/lab/child\x1b\\lab/child\x1b]8;;\x1b\\"
    assert lines[6].startswith("\x1b[31m") and "]8;;" not in lines[6] and lines[7].startswith("\x1b[32m")
    assert lines[8].startswith("\x1b[31m") and lines[9].startswith("\x1b[31m"), "all lines of a claim"


@pytest.mark.parametrize(
    ("variables", "takes"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_only_where_a_terminal_takes_it(
    variables: dict[str, str], takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not console.takes_colour(), "no terminal"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert console.takes_colour() is takes


def test_a_narrow_table_has_names_on_lines_of_their_own() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True))
    long = "lab/" + "a" * 30
    assert table(columns, [[long, "0.5"], ["none of these", ""]], 40, [">", " "]) == [
        "  model", "  p-value", f"> {long}", "      0.5", "  none of these",
    ]  # fmt: skip
    assert table(columns, [["lab/a", "0.5"]], 40) == ["  model p-value", "  lab/a     0.5"], "where there is room, not"


def test_no_number_is_cut_in_a_narrow_table() -> None:
    columns = (Column("model", name=True), Column("p-value", right=True), Column("distance", right=True),
               Column("relation"))  # fmt: skip
    shown = table(columns, [["lab/a", "<1e-300", "0.0104", "fine-tuned from it"]], 30)
    assert shown == ["  model", "  p-value distance", "  relation", "  lab/a", "  <1e-300   0.0104",
                     "  fine-tuned from it"]  # fmt: skip


def test_no_name_is_cut_behind_a_label() -> None:
    columns, name = (Column("", name=True), Column("")), "n" * 30
    assert console.labelled_table("mixture  ", columns, [[name, "0.6"], ["b", "0.4"]], 60)[0].endswith(f"{name} 0.6")
    assert console.labelled_table("mixture  ", columns, [[name, "0.6"]], 42) == [
        f"mixture  {name}", "         0.6",
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


@pytest.mark.parametrize(("seconds", "turned"), [(0.0, False), (0.3, True)])
def test_something_turns_where_there_is_nothing_to_count(
    seconds: float, turned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.Bar():
        time.sleep(seconds)
    err = capsys.readouterr().err
    assert ("opening models" in err) is turned and (not turned or err.endswith("\r\x1b[K")), "and its line is wiped"


def test_something_turns_again_once_all_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.Bar() as count:
        count(1, 2, "a model")
        time.sleep(0.2)
        assert "comparing" not in capsys.readouterr().err, "the bar is there"
        count(2, 2, "a model")
        time.sleep(0.2)
    assert "comparing" in capsys.readouterr().err


def test_a_bar_is_what_true_stands_for() -> None:
    assert isinstance(progress.progress_of(True), progress.Bar)
    assert progress.progress_of(False) is progress.progress_of(None) is None
    assert progress.progress_of(print) is print  # type: ignore[arg-type, comparison-overlap]
