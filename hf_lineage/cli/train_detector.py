"""`train-detector`: a family with a known truth in, a detector with its card out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .output import bar, is_first, with_options

OPTIONS = (
    click.option(
        "--family", "families", multiple=True, required=True, metavar="PATH", type=click.Path(path_type=Path),
        help="Which child has which parent: a table (.json, .csv) of folders or repo ids, or a folder "
        "that `demo` wrote; repeat it.",
    ),
    click.option("--collection", metavar="SLUG", help="Models of a Hub collection, as further candidates of a table."),
    click.option(
        "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
        help="Where the detector is written; a training that was broken off there goes on.",
    ),
    click.option(
        "--weight", "weights", multiple=True, default=("auto",), show_default=True, metavar="NAME",
        help="A tensor to look at; repeat it. 'auto': in front of the shallow tap; 'backbone': all but the head's; "
        "'none': no weight.",
    ),
    click.option(
        "--feature", "features", multiple=True, default=("auto",), show_default=True, metavar="PATH",
        help="A module whose output to look at; repeat it. 'auto': the shallow tap; 'backbone': what the head is "
        "given; 'none': no feature.",
    ),
    click.option(
        "--no-parent", type=click.Choice(("score", "token")),
        help="Learn to say 'none of these', by a score of its own or a token, from children without a parent.",
    ),
    click.option(
        "--scale", type=click.Choice(("none", "child", "both")), default="none", show_default=True,
        help="child: divide each pair by the child's root mean square, for other networks; both: and rank changes.",
    ),
    click.option(
        "--layer", type=click.Choice(("encoder", "attention")), default="encoder", show_default=True,
        help="Over the tokens: torch's transformer layer, or attention alone.",
    ),
    click.option("--probes", metavar="WHAT", help="Inputs for the features, as of trace. Default: 512 synthetic ones."),
    click.option("--entries", type=int, default=4096, show_default=True, help="Of each input that are looked at."),
    click.option("--epochs", type=int, default=100, show_default=True, help="Most of them."),
    click.option("--lr", "rate", type=float, default=0.01, show_default=True, help="Of Adam."),
    click.option(
        "--patience", type=int, default=30, show_default=True,
        help="Stop after so many epochs without a better validation loss; 0 never does.",
    ),
    click.option(
        "--split", "by", type=click.Choice(("child", "parent", "architecture")), default="child", show_default=True,
        help="What the test has that training has not: other children, parents or architectures.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the split, the weights and the order."),
    click.option(
        "--mixed-precision", "precision", type=click.Choice(("no", "bf16", "fp16")), default="no", show_default=True,
        help="As of accelerate.",
    ),
    click.option("--device", metavar="NAME", help="Where to compute: cpu (default), cuda, cuda:1, …"),
    click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True)."),
    click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON."),
)  # fmt: skip


@click.command("train-detector")
@with_options(*OPTIONS)
def train_detector(out: Path, probes: str | None, patience: int, as_json: bool, **options: Any) -> None:
    """Train a Lineage Detector on models whose parents are known.

    A table names children and their parents, as JSON {"parents": [id, …], "children": {id: id or null, …}} or as CSV
    with the columns child,parent. Seven tenths of the children train it, one tenth stops it and calibrates it, two
    tenths measure it; FOLDER gets model.safetensors, config.json and a card with the figures.

    \b
    Examples:
      hf-lineage train-detector --family family.csv --out ./detector
      hf-lineage train-detector --family family.json --no-parent score --out ./detector
      hf-lineage train-detector --family a.json --family b.json --scale child --split architecture --out ./detector
      hf-lineage train-detector --family family.json --weight none --out ./by-features
      hf-lineage demo && hf-lineage train-detector --family hf-lineage-demo --split child --out ./detector

    \b
    Several processes, each with a share of the children:
      accelerate launch --no-python hf-lineage train-detector --family family.csv --out ./detector

    \b
    Exit codes: 0 trained, 1 an error, 2 wrong usage, 130 interrupted (the same command goes on).
    """
    import json

    from .output import read_probes

    first = is_first()
    from ..detector.train import table
    from ..experiments.family_file import train_families

    with bar() as progress:
        made = train_families(out, probes=read_probes(probes), patience=patience or None, progress=progress, **options)
    if first:
        figures = {name: value for name, value in made.figures.items() if name != "history"}
        click.echo(json.dumps(figures, indent=2) if as_json else f"{table(figures)}\n\ndetector  {out}")
