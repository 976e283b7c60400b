"""`explain`: an answer that was kept, each of its figures in a sentence."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import click

from ..errors import ArgumentError
from .kept import last_answer
from .output import MODES, VERBOSE, mode


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="human: for a terminal; agent: Markdown; json: title, sentence and background of each figure.",
)
@click.option("--json", "form", flag_value="json", help="The same as --format json.")
@VERBOSE
def explain(file: Path | None, form: str) -> None:
    """Say in sentences what the figures of an answer mean: of FILE, as --json printed it, or of your last answer.

    Beside each figure stands how often it arises between unrelated models, where that was measured. The last answer is
    kept in the folder of the Hub's cache (hf_lineage/last.json), for you alone, one at a time.

    \b
    Examples:
      hf-lineage explain
      hf-lineage explain lineage.json
      hf-lineage trace user/child org/base --json > lineage.json && hf-lineage explain lineage.json

    \b
    Exit codes: 0 explained, 1 an error, 2 wrong usage, or there is no such answer, 130 interrupted.
    """
    path = file or last_answer()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "an answer as --json prints it" if file else "an answer that was kept: ask something first"
        raise ArgumentError(f"Expected {what}, found none at `{path}`.") from error
    from ..report.console import terminal_width
    from ..report.explain import read, told

    found = told(read(text))
    match mode(form):
        case "json":
            names = ("title", "said", "background")
            click.echo(json.dumps([{n: getattr(f, n) for n in names} for f in found], indent=2, ensure_ascii=False))
        case "agent":
            click.echo("\n\n".join(f"## {f.title}\n\n{' '.join(filter(None, f[1:3]))}" for f in found))
        case _:
            width = min(terminal_width(), 100)
            for figure in found:
                click.echo(figure.title)
                for text in filter(None, (figure.said, figure.background)):
                    click.echo(textwrap.indent(textwrap.fill(text, width - 2, break_on_hyphens=False), "  "))
                click.echo()
