"""`trace`, `layers` and `tree`: parse, call one function, print."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import click

from .output import (
    CANDIDATES,
    Bar,
    check_picture,
    check_writable,
    formats,
    is_first,
    mode,
    reading,
    save,
    show,
    with_options,
)

QUESTION = (
    click.argument("child"),
    CANDIDATES,
    click.option(
        "--evidence",
        multiple=True,
        default=("weights",),
        show_default=True,
        metavar="NAME",
        help="What to judge by: weights, features, detector; repeat it for several.",
    ),
    click.option(
        "--detector",
        metavar="PATH_OR_REPO",
        help="Another detector than the one that ships: a folder, or org/name@commit.",
    ),
    click.option(
        "--probes",
        metavar="WHAT",
        help="Inputs for features and detector: a number of synthetic ones, a folder of pictures, or dataset:org/name. "
        "Default: synthetic ones.",
    ),
    click.option("--metric", default="l2", show_default=True, help="Of features: l1, l2, lp, linf, lse, cka, dc."),
    click.option("--step", default="auto", show_default=True, help="α of the linearisation, in (0, 1]."),
    reading(),
    formats,
    click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save a picture."),
)


@click.command()
@with_options(*QUESTION)
@click.option("--tap", "taps", multiple=True, metavar="PATH", help="A module of the child; 'blocks' for all of them.")
@click.option(
    "--tree/--no-tree",
    default=None,
    help="Whether the tree of all relatives says which is the parent. Default: where candidates are searched for.",
)
@click.option("--explain", is_flag=True, help="Add the verdict in plain sentences, and what it rests on.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a picture of the features' similarity against depth, before and after linearisation.",
)
def trace(child: str, candidates: tuple[str, ...], evidence: tuple[str, ...], probes: str | None,
          taps: tuple[str, ...], step: str, form: str, explain: bool, plot: Path | None, profile: Path | None,
          **options: Any) -> None:  # fmt: skip
    """Find the parent of CHILD among candidates.

    CHILD and REF are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~.
    A token comes from `hf auth login` or HF_TOKEN.

    \b
    Examples:
      hf-lineage trace user/child -c timm/resnet18.a1_in1k -c timm/resnet18.tv_in1k
      hf-lineage trace ./my-model -c org/base@v1.0 --json > lineage.json
      hf-lineage trace user/child --explain           check what its files claim, or search the Hub; in words
      hf-lineage trace user/child -c org/base --sample 0.1% --plot lineage.png
      hf-lineage trace user/child -c org/a -c org/b --evidence features --probes ./pictures --metric cka
      hf-lineage trace user/child -c org/a -c org/b --profile depth.png
      hf-lineage trace user/child -c org/a -c org/b --evidence weights --evidence detector

    \b
    Exit codes: 0 an answer ("none" is one), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, 130 interrupted.

    \b
    In several processes, each of which reads a share of the weights; one prints:
      torchrun --nproc_per_node 4 --no-python hf-lineage trace user/child -c org/base --sample all
    """
    for picture in filter(None, (plot, profile)):
        check_picture(picture)
    if profile:
        evidence = tuple(dict.fromkeys([*evidence, "features"]))
    options |= {
        "evidence": evidence, "probes": read_probes(probes), "step": _step(step),
        "taps": "blocks" if "blocks" in taps or (profile and not taps) else taps or None,
    }  # fmt: skip
    first = is_first()
    from ..tasks.trace import trace as run

    with Bar() as progress:
        lineage = run(child, list(candidates) or None, progress=progress, **options)
    if not first:
        return
    show(lineage, form, [lineage.parent])
    if explain and mode(form) in ("human", "agent"):
        click.echo("\n" + textwrap.fill(lineage.explain(), 80, break_on_hyphens=False))
    if plot:
        save(lambda: lineage.plot(plot), "picture", plot)
    if profile:
        save(lambda: lineage.profile(profile), "picture", profile)


@click.command()
@with_options(*QUESTION)
@click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a mergekit YAML from which the child's blocks can be made again.",
)
def layers(child: str, candidates: tuple[str, ...], probes: str | None, step: str, form: str, plot: Path | None,
           recipe: Path | None, **options: Any) -> None:  # fmt: skip
    """Find which block of CHILD came from where, and in what proportion.

    For merged models: blocks put together from several, weighted averages, slerp, task arithmetic. CHILD and REF
    are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~.

    \b
    Examples:
      hf-lineage layers user/merge -c org/a -c org/b
      hf-lineage layers user/merge -c org/a -c org/b --plot layers.png --recipe recipe.yml
      hf-lineage layers ./merge -c ./base -c ./math --sample all --json > layers.json
      hf-lineage layers user/hybrid -c timm/a -c timm/b --evidence features --metric cka

    \b
    Exit codes: 0 an answer ("none" is one), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, 130 interrupted.
    """
    if plot:
        check_picture(plot)
    if recipe:
        check_writable(recipe, "recipe")
    options |= {"probes": read_probes(probes), "step": _step(step)}
    first = is_first()
    from ..tasks.trace_layers import trace_layers as run

    with Bar() as progress:
        found = run(child, list(candidates) or None, progress=progress, **options)
    if not first:
        return
    show(found, form, dict.fromkeys(block.parent for block in found.blocks))
    if plot:
        save(lambda: found.plot(plot), "picture", plot)
    if recipe:
        save(lambda: recipe.write_text(found.recipe(), encoding="utf-8"), "recipe", recipe)


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
@formats
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
def tree(models: tuple[str, ...], form: str, plot: Path | None, style: Any, newick: Path | None,
         **options: Any) -> None:  # fmt: skip
    """Find out who descends from whom among models: REF... and nothing else.

    REF are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~. Each group of models
    that share an origin makes a tree; models may be of several architectures.

    \b
    Examples:
      hf-lineage tree org/base user/a user/b lab/c
      hf-lineage tree ./models/* --plot tree.png --newick tree.nwk
      hf-lineage tree org/base user/a user/b --sample 1% --json > tree.json
      hf-lineage tree ./models/* --method along-kmeans --plot ring.png --style ring

    \b
    Exit codes: 0 an answer (also when a model could not be read: it is listed),
    1 an error, 2 wrong usage, 130 interrupted.
    """
    if plot:
        check_picture(plot)
    if newick:
        check_writable(newick, "Newick file")
    first = is_first()
    from ..tasks.phylogeny import phylogeny as run

    with Bar() as progress:
        found = run(models, progress=progress, **options)
    if not first:
        return
    show(found, form, found.roots)
    if plot:
        save(lambda: found.plot(plot, style=style), "picture", plot)
    if newick:
        save(lambda: newick.write_text(found.to_newick() + "\n", encoding="utf-8"), "Newick file", newick)


def read_probes(text: str | None) -> str | int | None:
    """A number of probes, or what `probes` names."""
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _step(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
