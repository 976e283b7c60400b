"""`inspect`: parse, call `inspect`, print."""

from __future__ import annotations

from typing import Any

import click

from .output import SIZE, bar, checked, formats, is_first, look_for, show


@click.command()
@click.argument("ref")
@click.option(
    "--sample",
    metavar="HOW",
    callback=checked,
    help="'all', 'auto', a fraction (0.5%) or a size (1MB). "
    "Default: everything of a local model, 0.5 % (at least 4 MB) of a remote one.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--max-bytes", type=SIZE, metavar="SIZE", help="Refuse to read more than this: 500MB, …")
@click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True).")
@formats
def inspect(ref: str, form: str, **options: Any) -> None:
    """Say what the values of one model, REF, tell of its past. No other model is looked at.

    Whether its weights were rounded once or trained since, whether they were kept in half precision meanwhile, which
    bf16 or fp16 checkpoint fp32 weights began from, and which layers are copies. A light fine-tune needs a few million
    weights to show; "does not show" is an answer. --quiet prints REF where it was trained since.

    \b
    Examples:
      hf-lineage inspect user/model
      hf-lineage inspect ./my-model --json
      hf-lineage inspect user/model@v2 --sample 5%

    \b
    Exit codes: 0 an answer, 1 an error, 2 wrong usage, 3 the model does not exist or is not accessible,
    130 interrupted.
    """
    first = is_first()
    look_for(ref)
    with bar() as progress:
        from ..tasks.inspect import inspect as run

        found = run(ref, progress=progress, **options)
    if first:
        show(found, form, [found.model.name if found.trained_since else None])
