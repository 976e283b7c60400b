"""`layers`: parse, call `trace_layers`, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import (
    QUESTION,
    bar,
    candidates_of,
    check_picture,
    check_writable,
    is_first,
    look_for,
    read_probes,
    read_step,
    save,
    save_report,
    show,
    with_options,
    within,
)


@click.command()
@with_options(*QUESTION)
@click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a mergekit YAML from which the child's blocks can be made again.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Make the merge again by the recipe found, and count the tensors that are equal bit for bit: reads all of "
    "every model once more.",
)
def layers(child: str, bases: tuple[str, ...], candidates: tuple[str, ...], probes: str | None, step: str, form: str,
           plot: Path | None, html: Path | None,
           recipe: Path | None, subfolder: str | None, **options: Any) -> None:  # fmt: skip
    """Find which block of CHILD came from where, and in what proportion.

    For merged models: blocks put together from several, weighted averages, slerp, task arithmetic. CHILD and BASE
    are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~.

    \b
    Examples:
      hf-lineage layers user/merge -c org/a -c org/b
      hf-lineage layers user/merge -c org/a -c org/b --plot layers.png --recipe recipe.yml
      hf-lineage layers user/merge -c org/a -c org/b --verify
      hf-lineage layers ./merge -c ./base -c ./math --sample all --json > layers.json
      hf-lineage layers user/hybrid -c timm/a -c timm/b --evidence features --metric cka

    \b
    Exit codes: 0 an answer ("none" is one), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, 130 interrupted.
    """
    if plot:
        check_picture(plot)
    if html:
        check_writable(html, "report")
    if recipe:
        check_writable(recipe, "recipe")
    options |= {"probes": read_probes(probes), "step": read_step(step)}
    first, child = is_first(), within(child, subfolder)
    look_for(child)
    asked = candidates_of(bases, candidates, subfolder)
    with bar() as progress:
        from ..tasks.trace_layers import trace_layers as run

        found = run(child, asked, progress=progress, **options)
    if not first:
        return
    show(found, form, dict.fromkeys(block.parent for block in found.blocks))
    if plot:
        save(lambda file: found.plot(file), "picture", plot)
    save_report(found, html)
    if recipe:
        save(lambda file: file.write_text(found.recipe(), encoding="utf-8"), "recipe", recipe)
