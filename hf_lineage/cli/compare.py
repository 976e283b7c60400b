"""`compare`: parse, call `compare`, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import HTML, bar, check_writable, formats, is_first, look_for, reading, save_report, show, with_options


@click.command()
@with_options(
    click.argument("one", metavar="A"), click.argument("other", metavar="B"),
    reading("Chance that unrelated models are called related."), formats, HTML,
)  # fmt: skip
def compare(one: str, other: str, form: str, html: Path | None, **options: Any) -> None:
    """Compare two models of which nothing is known: related? who came first? what was done?

    A and B are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~. The answer does not
    depend on which is named first. --quiet prints the one that came first, where that shows.

    \b
    Examples:
      hf-lineage compare org/base user/suspicious-copy
      hf-lineage compare ./mine user/theirs --sample all
      hf-lineage compare org/a org/b --json

    \b
    Exit codes: 0 an answer ("unrelated" is one), 1 an error, 2 wrong usage, 3 one does not exist or is not accessible,
    130 interrupted.
    """
    first = is_first()
    if html:
        check_writable(html, "report")
    look_for(one)
    look_for(other)
    with bar() as progress:
        from ..tasks.compare_pair import compare as run

        found = run(one, other, progress=progress, **options)
    if first:
        show(found, form, [found.first])
        save_report(found, html)
