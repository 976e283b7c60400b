"""Tables and labelled paragraphs for a terminal, drawn by rich: the home of rich.

No answer is coloured, and nothing in it depends on the environment: the same answer and width give the same text. Bold
letters, colours and links are laid over that text afterwards (`dressed`), where a terminal takes them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..answers.refs import ModelRef, is_repo_id, printable
from .format import cells, folded, prefix_of, shorten

WIDTH = 80  # columns where there is no terminal
NARROWEST, WIDEST = 40, 200  # columns of a terminal that are used
NARROW = 62  # columns below which a name has a line of its own
LEAST_NAME = 12  # columns of a name beside others


def terminal_width() -> int:
    """Columns to write for: those of the terminal, or 80 where the output is no terminal."""
    if not sys.stdout.isatty():
        return WIDTH
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST), WIDEST)


class Column(NamedTuple):
    """A column of a table. `name`: of models, which get lines of their own where there is not enough room."""

    head: str
    right: bool = False
    name: bool = False


class _Name:
    """A name that gives up its middle for the width that the table leaves to it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(self.text, options.max_width), no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = Text(self.text).cell_len
        return Measurement(min(LEAST_NAME, width), width)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int, marks: Sequence[str] = ()) -> list[str]:
    """The lines of a table with heads, without a frame, so that its rows can be copied; numbers are at the right.

    Cells hold printable text of one line. `marks`: a sign in front of each row. Where the names of the first column do
    not fit, they lose the folder that all of them begin with, which a line below the table tells; where that is not
    enough a name stands above its row; in less than `NARROW` columns all do if one does. No name and no number is cut.
    """
    body = [list(row) for row in rows]
    cut = ""
    if columns[0].name and not _fits(columns, body, width - 2):
        names = [row[0] for row in body if row[0][:1] not in ("(", "")]
        cut = prefix_of(names)
        body = [[row[0].removeprefix(cut), *row[1:]] for row in body]
    drawn = row_lines(columns, body, width - 2)
    signs = [" ", *(marks or [" "] * len(body))]
    lines = [
        f"{sign if i == 0 else ' '} {line}"
        for sign, each in zip(signs, drawn, strict=True)
        for i, line in enumerate(each)
    ]
    return [*lines, *(f"  {line}" for line in folded(f"(in {cut})", width - 2) if cut)]


def row_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """The lines of the heads, and then those of each row, of a `table` without marks."""
    room = width - _beside(columns, rows, width)
    if all(column.name for column in columns):
        return [[line] for line in _grid(columns, rows, width)]
    if room >= LEAST_NAME and (
        width >= NARROW or _fits(columns, rows, width)
    ):  # a name that is too long stands above the rest of its row
        long = [columns[0].name and cells(row[0]) > room for row in rows]
        body = [["", *row[1:]] if above else row for row, above in zip(rows, long, strict=True)]
        head, *lines = _grid(columns, body, width)
        named = zip(rows, lines, long, strict=True)
        return [[head], *([*folded(row[0], width), line] if above else [line] for row, line, above in named)]
    named_at = [i for i, column in enumerate(columns) if column.name]
    every = [[column.head for column in columns], *rows]
    below = [
        _grid([columns[i] for i in part], [[row[i] for i in part] for row in rows], width)
        for part in _parts(columns, rows, width)
    ]
    first = columns[0].name  # else the names stand below the rest, a little to the right
    lead = "" if first else "  "
    found = []
    for row, *rest in zip(every, *below, strict=True):
        names = [lead + line for i in named_at if row[i] for line in folded(row[i], width - len(lead))]
        others = [line for line in rest if line]
        found.append(names + others if first else others + names)
    return found


def _parts(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns without names in as few lines as hold them, so that no number is cut."""
    parts: list[list[int]] = []
    left = -1
    for i, column in enumerate(columns):
        if not column.name:
            whole = max(map(cells, (column.head, *(row[i] for row in rows))))
            if not parts or left < whole + 1:
                parts, left = [*parts, []], width + 1
            parts[-1].append(i)
            left -= whole + 1
    return parts


def _fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the first column has room for each of its cells."""
    first = max(map(cells, (columns[0].head, *(row[0] for row in rows))))
    return first <= width - _beside(columns, rows, width)


def _beside(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> int:
    """Columns that all but the first take, with their gaps."""
    wholes = [max(map(cells, (column.head, *(row[i] for row in rows)))) for i, column in enumerate(columns)]
    return sum(wholes[1:]) + _gap(sum(wholes), len(columns), width) * (len(columns) - 1)


def _gap(content: int, columns: int, width: int) -> int:
    """Blanks between columns: two, or one where the page is narrow or nothing else would fit."""
    return 2 if width >= NARROW and content + 2 * (columns - 1) <= width else 1


def labelled(label: str, text: str, width: int, again: str = "") -> list[str]:
    """A paragraph behind a label; `again` or blanks are in front of its further lines. Breaks at blanks only."""
    first, *more = _lines(Text(text, overflow="fold"), width - len(label)) or [""]
    return [f"{label}{first}".rstrip(), *(f"{again or ' ' * len(label)}{line}" for line in more)]


def labelled_table(label: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """A table without heads behind a label; where a row does not fit, its names stand above the rest."""
    body, room = [list(row) for row in rows], width - len(label)
    fits = sum(max(map(cells, column)) for column in zip(*body, strict=True)) + len(columns) - 1 <= room
    lines = _grid(columns, body, room)[1:] if fits else [*chain(*row_lines(columns, body, room)[1:])]
    return [f"{label if i == 0 else ' ' * len(label)}{line}" for i, line in enumerate(lines)]


def _grid(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """One line for the heads and one for each row."""
    body = [list(row) for row in rows]
    wholes = [max(map(cells, (column.head, *(row[i] for row in body)))) for i, column in enumerate(columns)]
    gap = _gap(sum(wholes), len(columns), width)
    grid = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False, header_style="")
    for column in columns:
        grid.add_column(Text(column.head), justify="right" if column.right else "left", no_wrap=not column.name)
    for row in body:
        grid.add_row(*(_Name(cell) if column.name else Text(cell) for cell, column in zip(row, columns, strict=True)))
    return _lines(grid, width)


def _lines(what: RenderableType, width: int) -> list[str]:
    """What rich draws, line by line, without blanks at the ends."""
    drawn = io.StringIO()
    console = Console(
        file=drawn, width=width, height=100, color_system=None, force_terminal=False, force_jupyter=False,
        legacy_windows=False, markup=False, emoji=False, highlight=False, soft_wrap=False, _environ={},
    )  # fmt: skip
    console.print(what)
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


# ---- what is laid over a text for a terminal that takes it

BOLD, RED, GREEN, OFF = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
HEADLINES = ("verdict  ", "made     ", "says     ", "found    ", "trees    ")
TONES = {"contradicted": RED, "an undeclared parent": RED, "confirmed": GREEN}
HUB = "https://huggingface.co"
MODELS = ("ref", "parent", "roots", "candidates")  # keys of an answer's JSON that name models


def takes_colour() -> bool:
    """Whether stdout is a terminal that takes colour, and nobody said no (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "linux")


def dressed(text: str, answer: Mapping[str, Any]) -> str:
    """An answer's text with the verdict in bold, claims in colour, and its models as links to their pages.

    answer: its JSON, which says what the models are. Nothing but escape sequences is added.
    """
    links = {name: page_of(name) for name in sorted(_hub_names(answer), key=len, reverse=True)}
    pattern = "|".join(map(re.escape, links))
    lines = []
    for paragraph in _paragraphs(text):
        whole = " ".join(line.strip() if i else line for i, line in enumerate(paragraph))
        tone = next((tone for word, tone in TONES.items() if whole.startswith("claim ") and f": {word}" in whole), "")
        tone = BOLD if whole.startswith((*HEADLINES, "> ")) else tone
        for line in paragraph:
            if pattern:
                line = re.sub(rf"(?<![\w./-])({pattern})(?![\w/-]|\.\w)", lambda m: _link(m[0], links[m[0]]), line)
            lines.append(f"{tone}{line}{OFF}" if tone else line)
    return "\n".join(lines)


def _paragraphs(text: str) -> list[list[str]]:
    """The lines of a text, each labelled one together with those that go on below it."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if found and line.startswith(" " * 9) and found[-1][0].strip():
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _link(text: str, address: str) -> str:
    return f"\x1b]8;;{address}\x1b\\{text}\x1b]8;;\x1b\\"


def page_of(name: str) -> str:
    """The address of a model's page on the Hub."""
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    return f"{re.sub('//[^/@]*@', '//', endpoint).rstrip('/')}/{ModelRef('hub', name).repo_id}"


def _hub_names(value: Any, key: str = "") -> Iterator[str]:
    """The repo ids that an answer's JSON names as models."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _hub_names(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _hub_names(item, key)
    elif key in MODELS and isinstance(value, str) and "/" in value and printable(value) == value:
        repo = "/".join(value.split("/")[:2])  # the rest may be a folder in it
        yield from [value] if is_repo_id(repo) else []
