"""`tree`: parse, call `phylogeny`, print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .output import (
    FLAGS,
    HTML,
    bar,
    candidates_of,
    check_picture,
    check_writable,
    formats,
    is_first,
    reading,
    save,
    save_report,
    show,
)

METHODS = (
    "information", "detector", "distance", "norms", "mother", "after-kmeans", "after-meanshift", "after-agglomerative",
    "along-kmeans", "along-meanshift",
)  # fmt: skip


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="REF...")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="information",
    show_default=True,
    help="How to find the tree; the others are the papers', to compare with.",
)
@click.option("--rho", type=float, help="Of the along-… methods, in [0, 1]. Default: chosen without the truth.")
@reading("Chance that any unrelated models are joined.", alpha=1e-2)
@FLAGS
@formats
@HTML
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save a picture.")
@click.option(
    "--style",
    type=click.Choice(("auto", "tree", "ring")),
    default="auto",
    show_default=True,
    help="Of the picture: trees up to 40 models, else rings.",
)
@click.option(
    "--newick", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save the trees as Newick."
)
def tree(models: tuple[str, ...], form: str, plot: Path | None, html: Path | None, style: Any, newick: Path | None,
         flags: dict[str, float], inherited: float, arises: float, prior: float | None,
         **options: Any) -> None:  # fmt: skip
    """Find out who descends from whom among models: REF... and nothing else.

    REF are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~. Each group of models
    that share an origin makes a tree; models may be of several architectures. A single folder that holds folders of
    models stands for all of these.

    \b
    Examples:
      hf-lineage tree org/base user/a user/b lab/c
      hf-lineage tree ./models --plot tree.png --newick tree.nwk
      hf-lineage tree org/base user/a user/b --sample 1% --json > tree.json
      hf-lineage tree ./models/* --method along-kmeans --plot ring.png --style ring
      hf-lineage tree ./models --flag ./models/base=0.9     who else has what the base was flagged for

    \b
    Exit codes: 0 an answer (also when a model could not be read: it is listed),
    1 an error, 2 wrong usage, 130 interrupted.
    """
    if plot:
        check_picture(plot)
    if html:
        check_writable(html, "report")
    if newick:
        check_writable(newick, "Newick file")
    first = is_first()
    candidates_of(models, (), what="model")  # what is no reference, or is not there, is told before torch is loaded
    with bar() as progress:
        from ..tasks.phylogeny import phylogeny as run

        found = run(models, progress=progress, **options)
    if flags:
        from ..tasks.inheritance import inheritance

        flagged = inheritance(found, flags, inherited=inherited, arises=arises, prior=prior)
        found = replace(found, inheritance=flagged)
    if not first:
        return
    show(found, form, found.roots)
    if plot:
        save(lambda file: found.plot(file, style=style), "picture", plot)
    save_report(found, html)
    if newick:
        save(lambda file: file.write_text(found.to_newick() + "\n", encoding="utf-8"), "Newick file", newick)
