"""`batch`: many children against the same candidates, as a table of comma-separated values."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..errors import ArgumentError, LineageError
from ..parallel import world
from .output import VERBOSE, bar, candidates_of, check_writable, reading, say, with_options

if TYPE_CHECKING:
    from ..answers.base import Progress

COLUMNS = (
    "child", "candidate", "verdict", "parent", "status", "probability", "p_value", "log10_p", "distance", "moved",
    "relation", "first", "reasons", "error",
)  # fmt: skip
OPEN = 64  # models that stay open from one child to the next


@click.command()
@with_options(
    click.argument("children", nargs=-1, metavar="[CHILD]..."),
    click.option("--from", "file", type=click.Path(allow_dash=True), metavar="FILE",
                 help="More children, one a line; # for comments, - for the standard input."),
    click.option("-c", "--candidate", "candidates", multiple=True, metavar="REF",
                 help="A candidate parent of every child; repeat it, or write several with commas."),
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                 help="Write the table there instead of to stdout."),
    reading("Family-wise error of the p-values, of each child."),
    VERBOSE,
)  # fmt: skip
def batch(children: tuple[str, ...], file: str | None, candidates: tuple[str, ...], out: Path | None,
          allow_pickle: bool, **options: Any) -> None:  # fmt: skip
    """Trace many children among the same candidates; a line of CSV for each pair, as soon as a child is done.

    A child that cannot be read is a line with its error, and does not stop the others.

    \b
    Examples:
      hf-lineage batch user/a user/b user/c -c org/base-1 -c org/base-2 > table.csv
      hf-lineage batch ./models/* -c ./base --out table.csv
      hf-lineage batch --from children.txt -c org/base-1,org/base-2

    \b
    Exit codes: 0 all children were read, 1 some were not (their lines say why), 2 wrong usage, 130 interrupted.
    """
    if world().size > 1:
        raise ArgumentError("Expected one process: a batch runs in one, without torchrun or accelerate launch.")
    asked = [*children, *_lines(file)]
    if not asked:
        raise click.UsageError("Expected children: CHILD... or --from FILE.")
    if out:
        check_writable(out, "table")
    bases = candidates_of((), candidates)
    if not bases:
        raise click.UsageError("Expected candidates: -c REF.")
    failed: list[str] = []
    with bar() as progress:
        rows = _rows(asked, bases, progress, failed, {**options, "allow_pickle": allow_pickle})
        if out:
            with out.open("w", encoding="utf-8", newline="") as stream:
                _write(stream, rows)
        else:
            _write(sys.stdout, rows)
    if out:
        say(f"table: {out}")
    if failed:
        sys.exit(1)


def _lines(file: str | None) -> list[str]:
    """The references in a file, one a line. Raises `ArgumentError`."""
    if file is None:
        return []
    try:
        with click.open_file(file, encoding="utf-8") as stream:
            lines = [line.partition("#")[0].strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Expected a file of models, one a line, at `{file}`, got: {error}.") from error
    return [line for line in lines if line]


def _rows(
    children: Sequence[str], bases: Sequence[str], progress: Progress, failed: list[str], options: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each child in turn; who could not be read is added to `failed`."""
    from ..tasks.session import Session
    from ..tasks.trace import trace

    with Session(allow_pickle=options.pop("allow_pickle")) as session:
        for child in children:
            try:
                lineage = trace(child, bases, progress=progress, session=session, **options)
                yield [{"parent": lineage.parent, **row, "candidate": row.pop("ref")} for row in lineage.rows()]
            except LineageError as error:
                failed.append(child)
                yield [{"child": child, "status": "error", "error": f"{error.code}: {error}"}]
            session.keep_latest(OPEN)


def _write(stream: TextIO, rows: Iterator[list[dict[str, Any]]]) -> None:
    """Comma-separated values, a child's lines at once. No cell can start a formula in a spreadsheet."""
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in rows:
        for row in each:
            writer.writerow({name: _cell(row.get(name)) for name in COLUMNS})
        stream.flush()


def _cell(value: Any) -> Any:
    """A value of one line.

    >>> _cell("=1+1\\n"), _cell(-1.5), _cell(None)
    ("'=1+1", -1.5, '')
    """
    from ..answers.refs import printable

    if not isinstance(value, str):
        return "" if value is None else value
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
