"""`trace`: parse, call one function, print."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import code_of
from .output import (
    CHECK_ORDER,
    QUESTION,
    bar,
    candidates_of,
    check_picture,
    check_writable,
    checked,
    is_first,
    look_for,
    mode,
    read_probes,
    read_step,
    save,
    save_report,
    show,
    with_options,
    within,
)

if TYPE_CHECKING:
    from ..answers.lineage import Lineage


@click.command()
@with_options(*QUESTION)
@click.option("--tap", "taps", multiple=True, metavar="PATH", help="A module of the child; 'blocks' for all of them.")
@click.option(
    "--outputs",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Stored outputs of the models, a safetensors file with a tensor under each name; no model is opened or run.",
)
@click.option(
    "--tree/--no-tree",
    default=None,
    help="Whether the tree of all relatives says which is the parent. Default: where candidates are searched for.",
)
@click.option(
    "--older",
    is_flag=True,
    help="Say that the candidates are older than CHILD: it counts where the weights show no order.",
)
@click.option(
    "--prior",
    type=float,
    callback=checked,
    metavar="SHARE",
    help="How likely the parent is among the candidates before anything is read, between 0 and 1.",
)
@click.option(
    "--relatives/--no-relatives",
    default=True,
    help="Whether the base that the first candidate names is compared, too, where that one may be a sibling. "
    "Default: of repos on the Hub.",
)
@CHECK_ORDER
@click.option("--explain", is_flag=True, help="Add the verdict in plain sentences, and what it rests on.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a picture of the features' similarity against depth, before and after linearisation.",
)
def trace(child: str, bases: tuple[str, ...], candidates: tuple[str, ...], evidence: tuple[str, ...],
          probes: str | None,
          taps: tuple[str, ...], step: str, outputs: Path | None, form: str, explain: bool, plot: Path | None,
          profile: Path | None,
          html: Path | None, subfolder: str | None, **options: Any) -> None:  # fmt: skip
    """Find the parent of CHILD among candidates.

    CHILD and BASE are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~.
    A token comes from `hf auth login` or HF_TOKEN.

    \b
    Examples:
      hf-lineage trace user/child -c timm/resnet18.a1_in1k -c timm/resnet18.tv_in1k
      hf-lineage trace ./my-model -c org/base@v1.0 --json > lineage.json
      hf-lineage trace user/child --explain           check what its files claim, or search the Hub; in words
      hf-lineage trace user/child org/base --sample 0.1% --plot lineage.png
      hf-lineage trace user/child org/base --html report.html                 to hand to somebody
      hf-lineage trace user/pipeline -c org/pipeline --subfolder unet          or user/pipeline/unet -c …
      hf-lineage trace user/child -c org/a -c org/b --evidence features --probes ./pictures --metric cka
      hf-lineage trace user/child -c org/a -c org/b --profile depth.png
      hf-lineage trace user/child -c org/a -c org/b --outputs outputs.safetensors --metric cka
      hf-lineage trace user/child -c org/a -c org/b --evidence weights --evidence detector

    \b
    Exit codes: 0 an answer ("none" is one), 1 an error, or undecided since a candidate could not be read now (try
    again), 2 wrong usage, 3 the child does not exist or is not accessible, 130 interrupted.

    \b
    In several processes, each of which reads a share of the weights; one prints:
      torchrun --nproc_per_node 4 --no-python hf-lineage trace user/child -c org/base --sample all
    """
    for picture in filter(None, (plot, profile)):
        check_picture(picture)
    if html:
        check_writable(html, "report")
    if profile:
        evidence = tuple(dict.fromkeys([*evidence, "features"]))
    options |= {
        "evidence": evidence, "probes": read_probes(probes), "step": read_step(step),
        "taps": "blocks" if "blocks" in taps or (profile and not taps) else taps or None,
    }  # fmt: skip
    first, child = is_first(), within(child, subfolder)
    if outputs:
        asked = [*bases, *candidates] or None
        options |= {"outputs": outputs, "evidence": ("features",)}
    else:
        look_for(child)
        asked = candidates_of(bases, candidates, subfolder)
    with bar() as progress:
        from ..tasks.trace import trace as run

        lineage = run(child, asked, progress=progress, **options)
    if not first:
        return
    show(lineage, form, [lineage.parent])
    if explain and mode(form) in ("human", "agent"):
        lines = lineage.explain().splitlines()
        click.echo("\n" + "\n".join(textwrap.fill(line, 80, break_on_hyphens=False) for line in lines))
    if plot:
        save(lambda file: lineage.plot(file), "picture", plot)
    save_report(lineage, html)
    if profile:
        save(lambda file: lineage.profile(file), "picture", profile)
    if may_pass(lineage):
        sys.exit(1)


def may_pass(lineage: Lineage) -> bool:
    """Whether nothing could be decided because a candidate that was named or declared failed for a passing reason."""
    failed = [
        c for c in lineage.candidates
        if c.status == "unreadable" and any(code_of(reason) == "hub_unavailable" for reason in c.reasons)
    ]  # fmt: skip
    rules = [c.facts.get("found_by", ("named",))[:1] for c in failed]
    return lineage.verdict == "undecided" and any(r and r[0].startswith(("named", "declared")) for r in rules)
