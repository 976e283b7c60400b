"""Thin commands: parse, call one function, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import ArgumentError, LineageError, ModelNotFoundError, ProcessLostError, ReferenceSyntaxError
from .parallel import world
from .records import printable

if TYPE_CHECKING:
    from .records import Progress

# most specific first; only the child's own trouble leaves `trace` as an exception, a candidate's is listed
EXIT = ((ModelNotFoundError, 3), (ArgumentError, 2), (ReferenceSyntaxError, 2), (LineageError, 1))
PICTURES = (".png", ".svg", ".pdf", ".webp", ".jpg", ".jpeg")


QUESTION = (
    click.argument("child"),
    click.option(
        "-c",
        "--candidate",
        "candidates",
        multiple=True,
        metavar="REF",
        help="A possible parent; repeat it. Without any: what the child's own files declare.",
    ),
    click.option(
        "--evidence",
        multiple=True,
        default=("weights",),
        show_default=True,
        metavar="NAME",
        help="What to judge by: weights, features; repeat it for both.",
    ),
    click.option(
        "--probes",
        metavar="WHAT",
        help="Inputs for the features: a number of synthetic ones, a folder of pictures, or dataset:org/name. "
        "Default: 128 synthetic ones.",
    ),
    click.option("--metric", default="l2", show_default=True, help="Of features: l1, l2, lp, linf, lse, cka, dc."),
    click.option("--step", default="auto", show_default=True, help="α of the linearisation, in (0, 1]."),
    click.option(
        "--sample",
        metavar="HOW",
        help="'all', 'auto', a fraction (0.5%) or bytes. "
        "Default: everything of local models, 0.5 % (at least 4 MB) of remote ones.",
    ),
    click.option("--alpha", type=float, default=1e-3, show_default=True, help="Family-wise error of the p-values."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample and of the permutations."),
    click.option("--max-bytes", type=int, metavar="N", help="Refuse to read more than this over all models."),
    click.option("--device", metavar="NAME", help="Where to compute: cpu (default), cuda, cuda:1, …"),
    click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True)."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document, schema hf_lineage/1."),
    click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save a picture."),
)


def _question(command: Callable[..., None]) -> Callable[..., None]:
    """What `trace` and `layers` are asked with."""
    for declare in reversed(QUESTION):
        command = declare(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hf_lineage", prog_name="hf-lineage")
def cli() -> None:
    """Which model was this one fine-tuned from, and how sure is that?

    \b
    hf-lineage demo                                       see it work, offline
    hf-lineage trace user/child -c org/a -c org/b         ask about a model
    hf-lineage layers user/merge -c org/a -c org/b        which layer came from where
    hf-lineage tree org/a org/b user/c user/d             who descends from whom
    """


@cli.command()
@_question
@click.option("--tap", "taps", multiple=True, metavar="PATH", help="A module of the child; 'blocks' for all of them.")
@click.option("--explain", is_flag=True, help="Add the verdict in plain sentences, and what it rests on.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a picture of the features' similarity against depth, before and after linearisation.",
)
def trace(child: str, candidates: tuple[str, ...], evidence: tuple[str, ...], probes: str | None,
          taps: tuple[str, ...], step: str, as_json: bool, explain: bool, plot: Path | None, profile: Path | None,
          **options: Any) -> None:  # fmt: skip
    """Find the parent of CHILD among candidates.

    CHILD and REF are Hub repo ids (org/name, org/name@revision) or paths, which start with ./ or / or ~.
    A token comes from `hf auth login` or HF_TOKEN.

    \b
    Examples:
      hf-lineage trace user/child -c timm/resnet18.a1_in1k -c timm/resnet18.tv_in1k
      hf-lineage trace ./my-model -c org/base@v1.0 --json > lineage.json
      hf-lineage trace user/child --explain           check what its files claim, in words
      hf-lineage trace user/child -c org/base --sample 0.1% --plot lineage.png
      hf-lineage trace user/child -c org/a -c org/b --evidence features --probes ./pictures --metric cka
      hf-lineage trace user/child -c org/a -c org/b --profile depth.png

    \b
    Exit codes: 0 an answer ("none" is one), 1 an error, 2 wrong usage,
    3 the child does not exist or is not accessible, 130 interrupted.

    \b
    In several processes, each of which reads a share of the weights; one prints:
      torchrun --nproc_per_node 4 --no-python hf-lineage trace user/child -c org/base --sample all
    """
    for picture in filter(None, (plot, profile)):
        _check_picture(picture)
    if profile:
        evidence = tuple(dict.fromkeys([*evidence, "features"]))
    options |= {
        "evidence": evidence, "probes": _probes(probes), "step": _step(step),
        "taps": "blocks" if "blocks" in taps or (profile and not taps) else taps or None,
    }  # fmt: skip
    first = _is_first()
    from .pipeline import trace as run

    with _bar() as progress:
        lineage = run(child, list(candidates) or None, progress=progress, **options)
    if not first:
        return
    click.echo(lineage.to_json() if as_json else str(lineage))
    if explain and not as_json:
        click.echo("\n" + textwrap.fill(lineage.explain(), 80, break_on_hyphens=False))
    if plot:
        _save(lambda: lineage.plot(plot), "picture", plot)
    if profile:
        _save(lambda: lineage.profile(profile), "picture", profile)


@cli.command()
@_question
@click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save a mergekit YAML from which the child's blocks can be made again.",
)
def layers(child: str, candidates: tuple[str, ...], probes: str | None, step: str, as_json: bool, plot: Path | None,
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
        _check_picture(plot)
    if recipe:
        _check_writable(recipe, "recipe")
    options |= {"probes": _probes(probes), "step": _step(step)}
    first = _is_first()
    from .pipeline import trace_layers as run

    with _bar() as progress:
        found = run(child, list(candidates) or None, progress=progress, **options)
    if not first:
        return
    click.echo(found.to_json() if as_json else str(found))
    if plot:
        _save(lambda: found.plot(plot), "picture", plot)
    if recipe:
        _save(lambda: recipe.write_text(found.recipe(), encoding="utf-8"), "recipe", recipe)


METHODS = (
    "information", "distance", "norms", "mother", "after-kmeans", "after-meanshift", "after-agglomerative",
    "along-kmeans", "along-meanshift",
)  # fmt: skip


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="REF...")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="information",
    show_default=True,
    help="How to find the tree; the others are the papers', to compare with.",
)
@click.option("--rho", type=float, help="Of the along-… methods, in [0, 1]. Default: chosen without the truth.")
@click.option(
    "--sample",
    metavar="HOW",
    help="'all', 'auto', a fraction (0.5%) or bytes. "
    "Default: everything of local models, 0.5 % (at least 4 MB) of remote ones.",
)
@click.option("--alpha", type=float, default=1e-2, show_default=True, help="Chance that any strangers are joined.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample and of the permutations.")
@click.option("--max-bytes", type=int, metavar="N", help="Refuse to read more than this over all models.")
@click.option("--device", metavar="NAME", help="Where to compute: cpu (default), cuda, cuda:1, …")
@click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, schema hf_lineage/1.")
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
def tree(models: tuple[str, ...], as_json: bool, plot: Path | None, style: Any, newick: Path | None,
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
        _check_picture(plot)
    if newick:
        _check_writable(newick, "Newick file")
    first = _is_first()
    from .family import phylogeny as run

    with _bar() as progress:
        found = run(models, progress=progress, **options)
    if not first:
        return
    click.echo(found.to_json() if as_json else str(found))
    if plot:
        _save(lambda: found.plot(plot, style=style), "picture", plot)
    if newick:
        _save(lambda: newick.write_text(found.to_newick() + "\n", encoding="utf-8"), "Newick file", newick)


@cli.command()
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
    from .experiments.demo import run

    with _bar() as progress:
        text = run(out, seed=seed, progress=progress)
    click.echo(text)


def _probes(text: str | None) -> str | int | None:
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _step(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise ArgumentError(f"Expected a picture file ending in {', '.join(PICTURES)}, got `{path}`.")
    _check_writable(path, "picture")


def _check_writable(path: Path, what: str) -> None:
    """Before anything is read: an answer must not be lost to a file that cannot be saved."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"Expected a folder that can be written to, got `{path.parent}` for the {what}.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ArgumentError(f"Expected a file that can be written to, got `{path}` for the {what}.")


def _is_first() -> bool:
    """Whether this process prints the answer: alone, or the first of several."""
    here = world()
    if here.size > 1:
        _expect_the_end()
    return here.main


def _save(write: Callable[[], object], what: str, path: Path) -> None:
    """Write a file and say so; a full disk is the user's to know, not a bug."""
    try:
        write()
    except OSError as error:
        raise LineageError(f"The {what} could not be written to `{path}`: {error.strerror or error}.") from error
    click.echo(f"{what}: {path}", err=True)


def _expect_the_end() -> None:
    """A launcher ends all processes when one has died: say so. torch's own lines about it are not for the user."""

    def stop(*_: object) -> None:
        raise ProcessLostError("The launcher ended this process; its own report says which one died. Start again.")

    signal.signal(signal.SIGTERM, stop)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


class _bar:
    """A progress bar on stderr, made when there is something to show; `with _bar() as progress: …`."""

    def __enter__(self) -> Progress:
        self._bar: Any = None
        return self._show

    def _show(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:
            self.__exit__()
            self._bar = tqdm(
                total=total, file=sys.stderr, leave=False, disable=None, unit_scale=True, dynamic_ncols=True
            )
        self._bar.set_description_str(printable(what)[:40], refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _say(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    try:
        main = world().main
    except ArgumentError:  # what is wrong with the launcher's variables must be said, too
        main = True
    if main:
        click.echo(text, err=True)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line for what can go wrong, a traceback for a bug."""
    try:
        cli(arguments, standalone_mode=False)
    except LineageError as error:
        _say(f"error: {printable(str(error))}")
        sys.exit(next(code for kind, code in EXIT if isinstance(error, kind)))
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(130)
