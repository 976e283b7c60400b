"""`coverage`: parse, call `coverage`, print."""

from __future__ import annotations

from typing import Any

import click

from .output import formats, is_first, look_for, show


@click.command()
@click.argument("ref")
@click.option("--check", is_flag=True, help="Check the units against the code of transformers, timm or diffusers, too.")
@click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True).")
@formats
def coverage(ref: str, form: str, **options: Any) -> None:
    """Say what of one model, REF, can be tested, by which rule, and why not the rest. Only its header is read.

    A p-value needs hidden units: rows of a matrix in an order that training leaves arbitrary. --quiet prints REF where
    a p-value applies.

    \b
    Examples:
      hf-lineage coverage user/model
      hf-lineage coverage ./my-model --json
      hf-lineage coverage user/model --check

    \b
    Exit codes: 0 an answer, 1 an error, 2 wrong usage, 3 the model does not exist or is not accessible,
    130 interrupted.
    """
    first = is_first()
    look_for(ref)
    from ..tasks.coverage import coverage as run

    found = run(ref, **options)
    if first:
        show(found, form, [found.model.name if found.p_value else None])
