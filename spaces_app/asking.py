"""The questions themselves: what is handed to hf_lineage, with which limits and whose token.

`token` is the visitor's own or False. It is never None: that would be the login of the machine, on a Space its owner's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from jobs import Progress
from links import tree_command
from questions import (
    MAX_BYTES,
    MAX_CANDIDATES,
    MAX_MODELS,
    RefusedError,
    collection_slug,
    evidence,
    model_id,
    model_ids,
    parts_of,
)
from show import View, picture, view_of

import hf_lineage as hl
from hf_lineage.answers.comparison import Comparison
from hf_lineage.hub.suggest import models_of, suggestions

Token = str | bool
How = dict[str, Any]  # arguments of `hl.trace` and `hl.trace_layers` beside the models; empty: by weights


def trace(child: str, parents: Sequence[str], token: Token, progress: Progress) -> hl.Lineage:
    """The parent of a model."""
    return trace_by(child, parents, {}, token, progress)


def layers(child: str, parents: Sequence[str], token: Token, progress: Progress) -> hl.LayerLineage:
    """The origin of each block of a model."""
    return layers_by(child, parents, {}, token, progress)


def trace_by(child: str, parents: Sequence[str], how: How, token: Token, progress: Progress) -> hl.Lineage:
    """The parent of a model, by the evidence of `how`."""
    return hl.trace(child, list(parents) or None, **how, token=token, max_bytes=MAX_BYTES, progress=progress)


def layers_by(child: str, parents: Sequence[str], how: How, token: Token, progress: Progress) -> hl.LayerLineage:
    """The origin of each block of a model, by the evidence of `how`."""
    return hl.trace_layers(child, list(parents) or None, **how, token=token, max_bytes=MAX_BYTES, progress=progress)


def compare(one: str, other: str, token: Token, progress: Progress) -> Comparison:
    """Two models without roles."""
    return hl.compare(one, other, token=token, max_bytes=MAX_BYTES, progress=progress)


def tree(models: Sequence[str], token: Token, progress: Progress) -> hl.Phylogeny:
    """The phylogeny of some models."""
    return hl.phylogeny(models, token=token, max_bytes=MAX_BYTES, progress=progress)


def candidates(child: str, most: int, token: Token, progress: Progress) -> Any:
    """Models that could be the parent, by their headers."""
    return hl.find_candidates(child, most=most, token=token, progress=progress)


def family_tree(given: Any, token: Token, progress: Progress) -> hl.Phylogeny:
    """The phylogeny of what `family` makes of a text."""
    return tree(family(given, token), token, progress)


def grown(text: str, token: Token, progress: Progress) -> tuple[list[str], View]:
    """The models of a text, and what is shown of their phylogeny."""
    models = family(text, token)
    return models, tree_view(tree(models, token, progress), tree_command(models))


@dataclass(frozen=True, slots=True)
class Change:
    """What would change, or did: the new files, empty where nothing changes, and where the pull request is."""

    diff: str
    files: dict[str, bytes]
    notes: tuple[str, ...]
    url: str | None


def annotation(
    lineage: hl.Lineage, found: hl.LayerLineage | None, token: Token, create_pr: bool, progress: Progress | None = None
) -> Change:
    """The change of the card; with `create_pr` it is proposed, as whoever the token belongs to."""
    if create_pr and not isinstance(token, str):
        raise RefusedError("Sign in first: a pull request is opened in your own name.")
    note = hl.annotate(lineage.child.name, lineage, layers=found, create_pr=create_pr, token=token)
    return Change(note.diff, note.make() if note.changed and not create_pr else {}, tuple(note.notes), note.url)


def family(given: Any, token: Token) -> list[str]:
    """The models of a tree: ids, or the address of a collection; a text or a list of texts."""
    parts = list(dict.fromkeys(parts_of(given)))
    slugs = [slug for slug in map(collection_slug, parts) if slug]
    if slugs and len(parts) > 1:
        raise RefusedError(
            f"Expected the address of a collection alone, or ids of models, got {len(parts)} entries, {len(slugs)} of "
            "them a collection."
        )
    ids = model_ids(models_of(slugs[0], token=token) if slugs else parts, MAX_MODELS)
    if len(ids) < 2:
        raise RefusedError(
            f"Expected two models or more, their ids one a line or the address of a collection, got {len(ids)}."
        )
    return ids


def similar(text: str) -> list[str]:
    """Public models whose ids match what is being typed; nothing where the Hub does not answer, it is only a help."""
    try:
        return list(_similar(text.strip()))
    except hl.LineageError:
        return []


@lru_cache(maxsize=2048)
def _similar(text: str) -> tuple[str, ...]:
    """Asked without a token, so that what is kept may be shown to anybody."""
    return tuple(suggestions(text, token=False))


def question(child: Any, parents: Any) -> tuple[str, list[str]]:
    """What was typed, checked."""
    return model_id(child), model_ids(parents, MAX_CANDIDATES)


def question_by(child: Any, parents: Any, by: Any, metric: Any, step: Any) -> tuple[str, list[str], How]:
    """The same with the evidence that was chosen: its name, metric and step."""
    named = question(child, parents)
    return (*named, evidence(by, metric, step, len(named[1])))


def pair(one: Any, other: Any) -> tuple[str, str]:
    """Two models that were typed, checked."""
    return model_id(one), model_id(other)


def layers_view(found: hl.LayerLineage, command: str = "") -> View:
    """What is shown of the answer of `layers`. command: what asks the same elsewhere."""
    return {**view_of(found, command), "recipe": found.recipe()}


def tree_view(found: hl.Phylogeny, command: str = "") -> View:
    """What is shown of the answer of `tree`, pictures included. command: what asks the same elsewhere."""
    drawn = {style: picture(partial(found.plot, style=style)) for style in ("tree", "ring")}
    return {**view_of(found, command), "newick": found.to_newick(), **drawn}


def warm_up() -> None:
    """Import what the first question needs, so that nobody waits for it."""
    for name in ("trace", "compare", "trace_layers", "phylogeny", "annotate"):
        getattr(hl, name)
