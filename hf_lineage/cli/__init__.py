"""Thin commands: parse, call one function, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import itertools
import json
import sys
import traceback
from collections.abc import Sequence

import click

from ..answers.refs import printable
from ..errors import ArgumentError, LineageError, ModelNotFoundError, Note, ReferenceSyntaxError
from ..hub.kept import keeping
from .annotate import annotate
from .audit import audit
from .batch import batch
from .cache import cache
from .candidates import candidates
from .compare import compare
from .coverage import coverage
from .demo import demo
from .explain import explain
from .index import index
from .inspect import inspect
from .layers import layers
from .output import say
from .reproduce import reproduce
from .trace import trace
from .train_detector import train_detector
from .tree import tree

# most specific first; only the child's own trouble leaves `trace` as an exception, a candidate's is listed
EXIT = ((ModelNotFoundError, 3), (ArgumentError, 2), (ReferenceSyntaxError, 2), (LineageError, 1))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="hf_lineage", prog_name="hf-lineage")
@click.option(
    "--no-cache", is_flag=True, envvar="HF_LINEAGE_NO_CACHE", help="Use and keep nothing of what was read before."
)
@click.pass_context
def cli(context: click.Context, no_cache: bool) -> None:
    """Which model was this one fine-tuned from, and how sure is that?

    \b
    hf-lineage demo                                       see it work, offline
    hf-lineage trace user/child org/a org/b               which of these is its parent
    hf-lineage compare org/a user/b                       are these two related, and how
    hf-lineage explain                                    the last answer, each figure in a sentence
    hf-lineage layers user/merge org/a org/b              which layer came from where
    hf-lineage tree org/a org/b user/c user/d             who descends from whom
    hf-lineage candidates user/child                      who could be the parent
    hf-lineage inspect user/model                         what one model tells of its past
    hf-lineage coverage user/model                        what of it can be tested
    hf-lineage batch user/a user/b -c org/a,org/b         many children, as a table
    hf-lineage index query ./models.index user/child      ask many models at once
    hf-lineage annotate user/child org/a --create-pr      put the answer into its card
    hf-lineage audit --author org                         check what models declare
    hf-lineage train-detector --family a.csv --out ./d    learn from models whose parents are known
    hf-lineage cache                                      what is kept of what was read
    hf-lineage reproduce table-1 --scale smoke            the papers' experiments, trained here
    """
    if not no_cache:
        context.with_resource(keeping())


for command in (
    trace, compare, explain, layers, tree, candidates, inspect, coverage, batch, index, annotate, audit, demo,
    train_detector, cache, reproduce,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line for what can go wrong, of --json an object with code, text and hint; a traceback for a
    bug."""
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        cli(arguments, standalone_mode=False, obj={"typed": typed})
    except LineageError as error:
        if "--verbose" in typed:
            say("".join(traceback.format_exception(error)).rstrip())
        say(_as_json(error.note) if _wants_json(typed) else f"error: {printable(str(error))}")
        sys.exit(next(code for kind, code in EXIT if isinstance(error, kind)))
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if _wants_json(typed):
            say(_as_json(Note("usage", error.format_message(), "See hf-lineage --help.")))
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        say("interrupted")
        sys.exit(130)


def _wants_json(typed: Sequence[str]) -> bool:
    """Whether JSON was asked for, also where click could not read the rest.

    >>> _wants_json(["trace", "x", "--json"]), _wants_json(["tree", "--format", "json"]), _wants_json(["trace"])
    (True, True, False)
    >>> _wants_json([])
    False
    """
    pairs = itertools.pairwise([*typed, ""])
    return any(word in ("--json", "--format=json") or (word, after) == ("--format", "json") for word, after in pairs)


def _as_json(note: Note) -> str:
    return json.dumps(note.to_dict(), ensure_ascii=False)
