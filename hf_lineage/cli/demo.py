"""`demo`: the whole thing at work, offline."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ArgumentError
from ..parallel import world
from .output import bar


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("hf-lineage-demo"),
    show_default=True,
    help="Folder for the models, the picture and the JSON.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes another family.")
def demo(out: Path, seed: int) -> None:
    """Train a small family here, offline, and trace every child in it.

    Writes the models as Hub-style repos with cards, one of which lies about its base_model.

    \b
    Examples:
      hf-lineage demo
      hf-lineage demo --out /tmp/demo --seed 1
    """
    if world().size > 1:
        raise ArgumentError(f"Expected one process, got {world().size}. Run the demo without a launcher.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"Expected a folder to write to, got `{out}`: {error.strerror}.") from error
    click.echo("training twelve small networks, then tracing eight: less than 90 s on two cores", err=True)
    from ..experiments.demo import run

    with bar() as progress:
        text = run(out, seed=seed, progress=progress)
    click.echo(text)
