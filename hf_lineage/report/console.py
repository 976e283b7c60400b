"""Tables and labelled paragraphs for a terminal, drawn by rich: the home of rich.

Nothing here is coloured, and nothing depends on the environment: the same answer and width give the same text.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .format import shorten

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
    """A column of a table. `name`: of models, shortened in the middle where there is not enough room."""

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

    Cells hold printable text of one line. `marks`: a sign in front of each row. In less than `NARROW` columns the names
    of a row have lines of their own, and what else it holds is below them.
    """
    body = [*rows]
    drawn = row_lines(columns, body, width - 2)
    signs = [" ", *(marks or [" "] * len(body))]
    return [
        f"{sign if i == 0 else ' '} {line}"
        for sign, each in zip(signs, drawn, strict=True)
        for i, line in enumerate(each)
    ]


def row_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """The lines of the heads, and then those of each row, of a `table` without marks."""
    if width >= NARROW or all(column.name for column in columns):
        return [[line] for line in _grid(columns, rows, width)]
    named = [i for i, column in enumerate(columns) if column.name]
    rest = [i for i, column in enumerate(columns) if not column.name]
    below = _grid([columns[i] for i in rest], [[row[i] for i in rest] for row in rows], width)
    body = [[column.head for column in columns], *rows]
    return [
        [*(shorten(row[i], width) for i in named if row[i]), *([line] if line else [])]
        for line, row in zip(below, body, strict=True)
    ]


def labelled(label: str, text: str, width: int, again: str = "") -> list[str]:
    """A paragraph behind a label; `again` or blanks are in front of its further lines. Breaks at blanks only."""
    first, *more = _lines(Text(text, overflow="fold"), width - len(label)) or [""]
    return [f"{label}{first}".rstrip(), *(f"{again or ' ' * len(label)}{line}" for line in more)]


def labelled_table(label: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """A table without heads behind a label."""
    lines = _grid(columns, rows, width - len(label))[1:]
    return [f"{label if i == 0 else ' ' * len(label)}{line}" for i, line in enumerate(lines)]


def _grid(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """One line for the heads and one for each row."""
    gap = 2 if width >= NARROW else 1
    grid = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False, header_style="")
    for column in columns:
        grid.add_column(Text(column.head), justify="right" if column.right else "left", no_wrap=not column.name)
    for row in rows:
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
