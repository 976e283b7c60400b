"""Which of several relatives is the parent: a tree of all of them tells it better than each pair alone.

Siblings that a search turned up are often as near to the child as its parent is. Where two steps meet in a model and
whether they go the same way says who is between whom (`forest/rooting.py`); a pair cannot show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .records import PARENT_RELATIONS, Candidate, Relation
from .trees import Edge, Phylogeny

MOST = 24  # relatives that make the tree, the nearest; its cost grows with their square


def relatives(candidates: Sequence[Candidate], alpha: float) -> list[Candidate]:
    """The nearest candidates that share an origin with the child; nothing where there is no choice to make.

    A full copy, and what is seen behind a disguise, is left to the pair's own rule.
    """
    related = [
        c for c in candidates if c.p_value is not None and c.p_value <= alpha and c.relation not in (None, "none")
    ]
    if any(c.relation in ("identical", "head_changed") or "disguise" in c.facts for c in related):
        return []
    nearest = sorted(related, key=lambda c: (c.distance or 0.0, c.ref))[:MOST]
    return nearest if len(nearest) > 1 else []


def settle(
    candidates: Sequence[Candidate], none: float, tree: Phylogeny, child: tuple[str, str | None]
) -> list[Candidate]:
    """The candidates with the probabilities and relations that their tree gives.

    `child`, (ref, revision), hangs on one of them by an edge of probability q whose direction has probability d: that
    one is the parent with probability (1 − none)·q·d, and the others share what is left in the proportions they had.
    An edge without a direction counts d = 1/2. `none`, that the parent is not among the candidates, stays: a tree
    seldom shows that somebody is missing. A child that came first in its tree, or is a merge, is left as the pairs
    had it.
    """
    ids = {(node.ref, node.revision): node.id for node in tree.nodes if node.ref}
    me = ids.get(child)
    above = [edge for edge in tree.edges if edge.directed and edge.child == me]
    beside = [edge for edge in tree.edges if not edge.directed and me in (edge.child, edge.parent)]
    if me is None or len(above) > 1 or (not above and len(beside) != 1):
        return list(candidates)
    edge = (above or beside)[0]
    other = edge.parent if edge.child == me else edge.child
    sure = (edge.probability or 0.0) * (edge.direction or 0.5)
    named = [c for c in candidates if ids.get((c.ref, c.revision)) == other]
    if not named:  # an ancestor that is missing from the set
        return list(candidates)
    rest = sum(c.probability or 0.0 for c in candidates if c is not named[0])
    share = (1 - none) * (1 - sure) / rest if rest else 0.0
    settled = []
    for c in candidates:
        inside = ids.get((c.ref, c.revision))
        told: dict[str, Any] = {}
        probability = (1 - none) * sure if c is named[0] else (c.probability or 0.0) * share
        if inside is not None:
            relation, first = _relation(c, edge, me, inside, tree)
            told = {"relation": relation, "facts": {**c.facts, "first": first or c.facts.get("first")}}
            told["evidence"] = {**c.evidence, "tree": _evidence(edge, tree, c is named[0])}
        settled.append(replace(c, probability=probability, **told))
    return settled


def _relation(c: Candidate, edge: Edge, me: str, inside: str, tree: Phylogeny) -> tuple[Relation, str | None]:
    """What the candidate is to the child in the tree, and who of the two came first, where that is known."""
    above, below = _line(tree, me), _line(tree, inside)
    if edge.directed and inside == edge.parent:
        return (c.relation if c.relation in PARENT_RELATIONS else "finetune"), "candidate"
    if inside in (edge.parent, edge.child):
        return "common_origin", None
    if inside in above:
        return "common_origin", "candidate"
    if me in below:
        return "descendant", "child"
    if edge.directed and tree.parents(inside) == (edge.parent,):
        return "sibling", "neither"
    return "common_origin", None


def _line(tree: Phylogeny, node: str) -> set[str]:
    """All ancestors of a node that are told."""
    found: set[str] = set()
    level = [node]
    while level:
        level = [parent for each in level for parent in tree.parents(each) if parent not in found]
        found.update(level)
    return found


def _evidence(edge: Edge, tree: Phylogeny, parent: bool) -> dict[str, Any]:
    return {
        "models": len(tree.nodes), "parent": parent and edge.directed, "edge": edge.probability,
        "direction": edge.direction,
    }  # fmt: skip
