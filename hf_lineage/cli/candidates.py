"""`candidates`: who could be the parent, and why."""

from __future__ import annotations

from typing import Any

import click

from .output import SIZE, bar, formats, look_for, show


@click.command()
@click.argument("child")
@click.option(
    "--most",
    type=int,
    default=64,
    show_default=True,
    metavar="N",
    help="Comparable models to stop at, give or take a few.",
)
@click.option("--max-requests", type=int, default=400, show_default=True, metavar="N", help="Requests to stop at.")
@click.option("--max-bytes", type=SIZE, default="256MiB", show_default=True, metavar="SIZE", help="Bytes to stop at.")
@click.option("--allow-pickle", is_flag=True, help="Count .bin/.pt files too; they are downloaded to be looked at.")
@formats
def candidates(child: str, form: str, **options: Any) -> None:
    """Find models that could be the parent of CHILD, each with the rule that led to it.

    Reads headers (names and shapes), no weights: what the child declares, the bases of those and what else was made
    from them, then models of the same architecture and size on the Hub, then wider. Offline (HF_HUB_OFFLINE=1) the
    cache alone. `hf-lineage trace CHILD` searches the same way, ring by ring, until one candidate is beyond doubt.

    \b
    Examples:
      hf-lineage candidates user/child
      hf-lineage candidates ./my-model --most 20 --json
      hf-lineage candidates user/child --quiet | sed 's/^/-c /' | xargs hf-lineage trace user/child --tree

    \b
    Exit codes: 0 an answer (none found is one), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, 130 interrupted.
    """
    look_for(child)
    with bar() as progress:
        from ..tasks.search import find_candidates

        found = find_candidates(child, progress=progress, **options)
    show(found, form, found.refs)
