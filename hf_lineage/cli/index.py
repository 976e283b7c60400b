"""`index`: build, add, query, info. Parse, call `Index`, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArgumentError
from .output import Bar, checked, formats, show, with_options

if TYPE_CHECKING:
    from ..tasks.index import Index

INDEX = click.argument("index", metavar="INDEX")
PICKLE = click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True).")
ADDED = with_options(INDEX, click.argument("models", nargs=-1, required=True, metavar="REF..."), PICKLE, formats)


@click.group()
def index() -> None:
    """Keep 2 KB of each of many models, and ask all of them at once who is related to a new one.

    INDEX is a folder, or an address that LanceDB knows (s3://…, hf://datasets/org/name). Needs `pip install
    'hf_lineage[index]'`.

    \b
    Examples:
      hf-lineage index build ./models.index ./models
      hf-lineage index query ./models.index user/child
      hf-lineage index info ./models.index --json
    """


@index.command()
@ADDED
def build(index: str, models: tuple[str, ...], form: str, allow_pickle: bool) -> None:
    """Make an index of REF...: repo ids, model folders, or folders of model folders. Started again, it goes on.

    \b
    Examples:
      hf-lineage index build ./models.index org/a org/b@v1.0 ./local
      hf-lineage index build ./models.index ./models
    """
    _add(index, models, form, allow_pickle, create=True)


@index.command()
@ADDED
def add(index: str, models: tuple[str, ...], form: str, allow_pickle: bool) -> None:
    """Put REF... into an index that is there. What is in it at the same commit is left as it is.

    \b
    Examples:
      hf-lineage index add ./models.index org/c
      hf-lineage index add ./models.index ./more-models
    """
    _add(index, models, form, allow_pickle, create=False)


@index.command()
@INDEX
@click.argument("child", metavar="CHILD")
@click.option("--entry-only", is_flag=True, help="Read the child's few rows and nothing else: no model is compared.")
@click.option(
    "--verify", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
    help="How many of the first matches are then compared as `trace` does.",
)  # fmt: skip
@click.option("--sample", metavar="HOW", callback=checked, help="Of that comparison, as of `trace`.")
@click.option(
    "--alpha", type=float, default=1e-3, show_default=True, callback=checked,
    help="Chance that any unrelated model of the whole index is listed.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the comparison.")
@PICKLE
@formats
def query(index: str, child: str, form: str, entry_only: bool, verify: int, allow_pickle: bool, **options: Any) -> None:
    """Say which models of an index are related to CHILD, and compare the first ones with it.

    --quiet prints the refs of the matches.

    \b
    Examples:
      hf-lineage index query ./models.index user/child
      hf-lineage index query ./models.index ./child --entry-only --json
    """
    with Bar() as progress:
        asked = _open(index, allow_pickle)
        found = asked.query(child, verify=0 if entry_only else verify, progress=progress, **options)
    show(found, form, [match.ref for match in found.matches])


@index.command()
@INDEX
@formats
def info(index: str, form: str) -> None:
    """Say what is in an index.

    \b
    Examples:
      hf-lineage index info ./models.index
    """
    show(_open(index).info(), form, [index])


def _open(path: str, allow_pickle: bool = False, create: bool = False) -> Index:
    from ..tasks.index import Index

    return Index(path, create=create, allow_pickle=allow_pickle)


def _add(path: str, models: tuple[str, ...], form: str, allow_pickle: bool, create: bool) -> None:
    wanted = [ref for model in models for ref in _members(model)]
    with Bar() as progress:
        state = _open(path, allow_pickle, create).add(wanted, progress=progress)
    show(state, form, [path])


def _members(model: str) -> list[str]:
    """The models that a word of the command line names: itself, or the model folders in a folder that is none."""
    path = Path(model).expanduser()
    if not model.startswith((".", "/", "~")) or not path.is_dir() or any(path.glob("*.safetensors")):
        return [model]
    found = [str(part) if part.is_absolute() else f"./{part}" for part in sorted(path.iterdir()) if part.is_dir()]
    if not found:
        raise ArgumentError(f"Expected a model folder, or a folder of model folders, got `{model}`.")
    return found
