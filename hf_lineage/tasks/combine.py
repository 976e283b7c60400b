"""What a search makes of many answers: aside put aside, and of several relatives the parent, by their tree.

Siblings that a search turned up are often as near to the child as its parent is. Where two steps meet in a model and
whether they go the same way says who is between whom (`trees/rooting.py`); a pair cannot show that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..answers.base import Evidence, fields_of
from ..answers.lineage import NO_RELATIVE, PARENT_RELATIONS, Candidate, Lineage, Relation
from ..answers.phylogeny import Edge, Phylogeny
from ..report.sentences import CLOSE
from ..weights.edits import ONE_WAY
from ..weights.evidence import WeightsEvidence
from ..weights.permutation_test import holm
from . import verdict

OVERWHELMING = -10.0  # log10 of the p-value at which a parent ends the search for others
# That the parent is missing from a search that found relatives, as often as in the questions the pairs' rule was fitted
# on: a tree without it looks the same, the relative that moved least in its place
MISSING = 1 / 3
# How many times the tree's parent's probability another candidate may have for the tree to decide between the two: a
# tree that strings out a star is as sure as one that does not
MAX_OVERRULED = 4.0
TREE_MODELS = 24  # relatives that make the tree, the nearest; its cost grows with their square


@dataclass(frozen=True, slots=True, eq=False)
class TreeEvidence(Evidence):
    """What the tree of the child and `models` in all says of one of them.

    parent: whether the child hangs on it. edge, direction: probability of the child's edge, and of its direction.
    """

    models: int
    parent: bool
    edge: float | None
    direction: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return fields_of(self)


def is_enough(lineage: Lineage) -> bool:
    """Whether no wider ring need be looked at: a parent beyond all doubt, or a claim that the weights bear out.

    A declared relative of which nothing shows that it came first may be a sibling: it ends the search only if it is so
    close that it is said to be a parent, a child or a close sibling.
    """
    best = lineage.candidates[0]
    sure = lineage.parent is not None and (best.log10_p or 0.0) <= OVERWHELMING
    declared = any(claim.status == "confirmed" for claim in lineage.claims)
    close = lineage.parent is not None or best.facts.get("moved", math.inf) <= CLOSE
    close |= any(c.relation == "merge" for c in lineage.candidates)
    return sure or lineage.verdict == "identical" or (declared and close)


def unrelated(lineage: Lineage | None) -> list[Candidate]:
    """The candidates that need not be read again: no sign of a common origin, or nothing that could be compared."""
    return [c for c in lineage.candidates if c.status != "compared" or c.relation == "none"] if lineage else []


def merge_answers(
    lineage: Lineage, aside: Sequence[Candidate], screened: Mapping[str, float], alpha: float,
    same: Callable[[str, Candidate], bool],
) -> Lineage:  # fmt: skip
    """The answer with the candidates that were put aside before: their probability is 0, and p-values count them all.

    screened: log10 of the raw p-values by which candidates were kept or put aside. Of one that was read again the
    larger of both counts, so that being kept is no advantage. Holm's adjustment is taken over everybody. `same` says
    whether a claimed id means a candidate.
    """
    here = {(c.ref, c.requested) for c in lineage.candidates}
    others = [replace(c, probability=0.0 if c.probability is not None else None) for c in aside]
    everybody = [*lineage.candidates, *(c for c in others if (c.ref, c.requested) not in here)]
    tested = {i: raw for i, c in enumerate(everybody) if (raw := log10_raw(c)) is not None}
    larger = [max(raw, screened.get(everybody[i].requested, raw)) for i, raw in tested.items()]
    for i, raw, log10_p in zip(tested, larger, holm(larger), strict=True):
        everybody[i] = replace(everybody[i], p_raw=10.0**raw, p_value=10.0**log10_p, log10_p=log10_p)
    everybody.sort(key=verdict.order)
    concluded, parent = verdict.conclude(everybody, alpha)
    claims, undeclared = verdict.weigh_claims(lineage.claims, everybody, parent, same)
    return replace(
        lineage, candidates=tuple(everybody), verdict=concluded, parent=parent, claims=tuple(claims),
        undeclared=tuple(undeclared),
        none_probability=verdict.known_none(lineage.none_probability, concluded, everybody),
    )  # fmt: skip


def log10_raw(candidate: Candidate) -> float | None:
    """log10 of `p_raw`; of one too small for a float, that of the test it came from; None where none applies."""
    if candidate.p_raw is None or candidate.p_raw > 0:
        return None if candidate.p_raw is None else math.log10(candidate.p_raw)
    weights = candidate.evidence["weights"]
    assert isinstance(weights, WeightsEvidence), "a p-value comes from the weights"
    return weights.log10_p


def related_candidates(candidates: Sequence[Candidate], alpha: float) -> list[Candidate]:
    """The nearest candidates that share an origin with the child; nothing where there is no choice to make.

    A full copy, and what is seen behind a disguise, is left to the pair's own rule.
    """
    related = [
        c for c in candidates
        if c.p_value is not None and c.p_value <= alpha and c.relation not in NO_RELATIVE | {None}
    ]  # fmt: skip
    if any(c.relation in ("identical", "head_changed") or c.disguised for c in related):
        return []
    nearest = sorted(related, key=lambda c: (c.distance or 0.0, c.ref))[:TREE_MODELS]
    return nearest if len(nearest) > 1 else []


def apply_tree(
    candidates: Sequence[Candidate], none: float, tree: Phylogeny, child: tuple[str, str | None]
) -> tuple[list[Candidate], float]:
    """The candidates with the probabilities and relations that their tree gives, and the probability of none of them.

    `child`, (ref, revision), hangs on one of them by an edge of probability q whose direction has probability d: all
    others together keep at most (1 − none)·(1 − q·d), in the proportions that the pairs gave them, and the parent has
    the rest. `none`, that the parent is not among the candidates, becomes `MISSING` if it was less, for a tree seldom
    shows that somebody is missing; but not where what was done to the parent runs one way, as rounding does.
    Where the edge has no direction, where the child came first in its tree or is a merge, where a pair shows an order
    that the tree denies, and where the pairs give another candidate more than `MAX_OVERRULED` times as much, all is
    left as the pairs had it. Of equal copies of the parent the likelier is named, and `facts["copies"]` has the others.
    """
    ids = {(node.ref, node.revision): node.duplicate_of or node.id for node in tree.nodes if node.ref}
    me = ids.get(child)
    above = [edge for edge in tree.edges if edge.directed and edge.child == me]
    if me is None or len(above) != 1 or above[0].probability is None:
        return list(candidates), none
    edge, nodes = above[0], [ids.get((c.ref, c.revision)) for c in candidates]
    twins = [i for i, place in enumerate(nodes) if place == edge.parent]  # the tree's own, and its copies
    if not twins:  # an ancestor that is missing from the set
        return list(candidates), none
    at = max(twins, key=lambda i: candidates[i].probability or 0.0)
    shown = [i for i, c in enumerate(candidates) if c.first == "candidate" and c.relation in PARENT_RELATIONS]
    apart = max((c.probability or 0.0 for i, c in enumerate(candidates) if i not in twins), default=0.0)
    overruled = apart > MAX_OVERRULED * (candidates[at].probability or 0.0)
    if overruled or candidates[at].first == "child" or (shown and at not in shown):
        return list(candidates), none
    none = none if candidates[at].relation in ONE_WAY else max(none, MISSING)
    others = [0.0 if i == at else c.probability or 0.0 for i, c in enumerate(candidates)]
    most = (1 - none) * (1 - above[0].probability * (edge.direction or 0.5))
    scale = min(1.0, most / sum(others)) if sum(others) else 0.0
    result = []
    for i, (c, inside) in enumerate(zip(candidates, nodes, strict=True)):
        changes: dict[str, Any] = {"probability": others[i] * scale if i != at else 1 - none - sum(others) * scale}
        if inside is not None:
            relation, first = _relation(c, edge, me, inside, tree)
            facts = {**c.facts, "first": c.first or first}
            if i == at and len(twins) > 1:
                facts["copies"] = [candidates[k].ref for k in twins if k != at]
            evidence = {
                **c.evidence,
                "tree": TreeEvidence(len(tree.nodes), inside == edge.parent, edge.probability, edge.direction),
            }
            changes |= {"relation": relation, "facts": facts, "evidence": evidence}
        result.append(replace(c, **changes))
    return result, none


def _relation(c: Candidate, edge: Edge, me: str, inside: str, tree: Phylogeny) -> tuple[Relation | None, str | None]:
    """What the candidate is to the child in the tree, and who of the two came first, where that is known."""
    if c.first is not None and inside != edge.parent:
        return c.relation, c.first  # what a pair shows by itself stays
    above, below = _line(tree, me), _line(tree, inside)
    if inside == edge.parent:
        return (c.relation if c.relation in PARENT_RELATIONS else "finetune"), "candidate"
    if any(each.relation == "merge" for each in tree.edges):  # a child of two trees turns the order of the others
        return "common_origin", None
    if inside in above:
        return "common_origin", "candidate"
    if me in below:
        return "descendant", "child"
    if tree.parents(inside) == (edge.parent,):
        return "sibling", None
    return "common_origin", None


def _line(tree: Phylogeny, node: str) -> set[str]:
    """All ancestors of a node that are told."""
    found: set[str] = set()
    level = [node]
    while level:
        level = [parent for each in level for parent in tree.parents(each) if parent not in found]
        found.update(level)
    return found
