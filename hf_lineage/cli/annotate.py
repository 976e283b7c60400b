"""`annotate`: trace, then put the answer into the model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ArgumentError
from .output import (
    CANDIDATES,
    CHECK_ORDER,
    bar,
    candidates_of,
    formats,
    is_first,
    look_for,
    reading,
    say,
    show,
    with_options,
)

OPTIONS = (
    click.argument("child"),
    CANDIDATES,
    click.option("--layers", "with_layers", is_flag=True, help="Say of each layer where it came from, too."),
    click.option("--create-pr", is_flag=True, help="Open a pull request, or update yours."),
    click.option("--push", is_flag=True, help="Commit to main, or write into the folder."),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Save README.md and the files beside it here, to look at.",
    ),
    reading(),
    CHECK_ORDER,
    formats,
)


@click.command()
@with_options(*OPTIONS)
def annotate(child: str, bases: tuple[str, ...], candidates: tuple[str, ...], with_layers: bool, create_pr: bool,
             push: bool, check_order: bool,
             out: Path | None, form: str, **options: Any) -> None:  # fmt: skip
    """Put the lineage of CHILD into its model card.

    Prints what would change in README.md, and changes nothing: --create-pr opens a pull request (any token that may
    write will do), --push commits, or writes into a folder. The author's text stays byte for byte; base_model is added
    only where there is none and the answer is sure; a second run with the same answer changes nothing.

    \b
    Examples:
      hf-lineage annotate user/child -c org/a -c org/b                 look at the change
      hf-lineage annotate user/child -c org/a --out ./card             and at the files that come with it
      hf-lineage annotate user/child -c org/a -c org/b --create-pr     propose it to the owner
      hf-lineage annotate me/merge -c org/a -c org/b --layers --push   write it into your own repo
      hf-lineage annotate ./my-model -c org/base --push                before the model is uploaded

    \b
    Exit codes: 0 an answer (also when there is nothing to change), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, or the token may not write, 130 interrupted.
    """
    if create_pr and push:
        raise ArgumentError("Expected --create-pr or --push, got both. A pull request waits for the owner, a push not.")
    first = is_first()
    look_for(child)
    asked = candidates_of(bases, candidates)
    from ..tasks.annotate import annotate as run
    from ..tasks.annotate import headline
    from ..tasks.session import Session
    from ..tasks.trace import trace
    from ..tasks.trace_layers import trace_layers

    with bar() as progress, Session(allow_pickle=options.pop("allow_pickle")) as session:
        lineage = trace(child, asked, progress=progress, session=session, check_order=check_order, **options)
        layers = trace_layers(child, asked, progress=progress, session=session, **options) if with_layers else None
    if not first:
        return
    say(headline(lineage, layers))
    note = run(child, lineage, layers=layers, create_pr=create_pr, push=push)
    for text in note.notes:
        say(f"note: {text}")
    if note.url and not note.changed:
        say("The card says it already: nothing was sent.")
    show(note, form, [note.url])
    if out and note.changed:
        note.save(out)
        say(f"files: {out}")
