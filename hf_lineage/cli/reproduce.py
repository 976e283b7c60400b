"""`reproduce`: the papers' experiments, on networks that are trained here."""

from __future__ import annotations

from pathlib import Path

import click

from .output import bar, is_first


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listed", is_flag=True, help="Print the names of the experiments, and what each one is.")
@click.option(
    "--scale",
    type=click.Choice(("smoke", "small")),
    default="small",
    show_default=True,
    help="smoke: minutes on two cores; small: an hour or two.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("hf-lineage-reproduce"),
    show_default=True,
    help="Folder for the networks, scores, tables and pictures; a run that was broken off there goes on.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A method of your own, as a further row; repeat it. Or the name of an entry point of hf_lineage.methods.",
)
@click.option("--seed", type=int, help="Of the data, the networks and the questions. Default: the experiment's own.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def reproduce(
    names: tuple[str, ...], listed: bool, scale: str, out: Path, methods: tuple[str, ...], seed: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Run the papers' experiments and compare methods on them.

    NAME is an experiment of --list; each trains its networks here, offline, from the settings of the paper scaled down,
    and measures every metric without and with linearisation, the weights alone, the learned detector, and methods of
    your own. Writes a table (.md, .csv, .json), a picture (.png, .svg) and index.html to the folder of --out.

    \b
    Examples:
      hf-lineage reproduce --list
      hf-lineage reproduce table-1 --scale smoke
      hf-lineage reproduce table-3-ewc table-3-distillation --out ./papers
      hf-lineage reproduce table-1 --scale smoke --method hf_lineage.experiments.methods:norms

    \b
    Several processes share the questions:
      accelerate launch --no-python hf-lineage reproduce table-1

    \b
    Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted (the same command goes on).
    """
    import json

    from ..errors import ArgumentError
    from ..experiments import protocol

    if listed:
        for name in protocol.names():
            experiment = protocol.load(name)
            click.echo(f"{name:22} {experiment.title.partition(': ')[2] or experiment.title} ({experiment.source})")
        return
    if not names:
        raise ArgumentError(f"Expected an experiment out of {', '.join(protocol.names())}.")
    from ..experiments.reproduce import as_record
    from ..experiments.reproduce import reproduce as run
    from ..experiments.tables import as_markdown, write

    results = []
    for name in names:
        with bar() as progress:
            results.append(run(name, scale, out, methods=methods, seed=seed, progress=progress))
    if is_first():
        made = write(results, out)
        click.echo(
            json.dumps([*map(as_record, results)], indent=2) if as_json else "\n".join(map(as_markdown, results))
        )
        click.echo(f"page  {made[-1]}", err=True)
