"""Models of which the steps between them show what they came from: they hang on that, before anything else decides.

Models of one base share drift: a light one lies between the base and a heavy one, so that distances make a chain, or a
missing ancestor, of a star. The steps (`weights/direction/`) tell who came first of two models in half precision: y is
*older* than x where they decide so. That holds of a sibling that moved far less, too. So y is the parent of x only

- if it shows no mark of a base of its own (`weights/history.py`), or some z is older than y, its base among them;
- and if x inherited y's step from every z that is older than both (`weights/direction/inheritance.py`);
- or, where no z is, if y did not move by itself: from their base the steps of siblings have small cosines (at most 0.5
  in any matrix of real families); from a sibling that was tuned otherwise, by a LoRA or by SGD, and only seems older,
  all of them undo its own step, and in some matrix that is most of each (cosines of 0.97 and more).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np

from ..weights.direction.order import Order, is_elder, leans
from .spanning import Edge, edge, neighbours, side

LEAST_BELOW = 3  # models that one seems older than, whose steps from it can be compared
NEAREST = 8  # models that each one is asked about, and as many of those that show no mark of a base


class Steps(Protocol):
    """What is asked of pairs and of three models, by their numbers."""

    def order(self, candidate: int, child: int) -> Order | None:
        """Who came first; None where no step can tell."""

    def inherits(self, child: int, parent: int, base: int) -> bool | None:
        """Whether the child came from `parent`, which came from `base`; None where either may be."""

    def moved_alone(self, model: int, others: Sequence[int]) -> bool:
        """Whether the steps from a model to the others undo a step of its own."""


@dataclass(frozen=True, slots=True)
class Descent:
    """What the steps show of one group, models by their numbers.

    parents: model → its parent.  unclear: of these, the models that may as well come from another one that is near.
    ordered: pairs of models of which the steps decide some order, of descent or not.  leaning: (parent, child) of which
    they tell the same without deciding it.  measured: pairs of models between which steps could be counted.
    """

    parents: Mapping[int, int] = field(default_factory=dict)
    unclear: frozenset[int] = frozenset()
    ordered: frozenset[Edge] = frozenset()
    leaning: frozenset[Edge] = frozenset()
    measured: frozenset[Edge] = frozenset()

    def decided(self, a: int, b: int) -> Edge | None:
        """(parent, child) of two models, where the steps show it."""
        for parent, child in ((a, b), (b, a)):
            if self.parents.get(child) == parent and child not in self.unclear:
                return parent, child
        return None

    def is_unclear(self, a: int, b: int) -> bool:
        """Whether one of two models came from the other, or from another model that is near."""
        return any(self.parents.get(x) == y and x in self.unclear for x, y in ((a, b), (b, a)))

    def refuses(self, a: int, b: int) -> bool:
        """Whether the steps decide an order of two models, and it is none of parent and child."""
        return edge(a, b) in self.ordered and self.decided(a, b) is None


NO_DESCENT = Descent()


def descent_by_steps(members: Sequence[int], squared: np.ndarray, steps: Steps) -> Descent:
    """The parents that the steps show. squared: (M, M), squared distances of all models."""
    order = cache(steps.order)
    near = {x: sorted((k for k in members if k != x), key=lambda k: (squared[k, x], k)) for x in members}
    if all(order(near[x][0], x) is None for x in members if near[x]):
        return NO_DESCENT
    marked = {x: (found := order(x, near[x][0])) is not None and bool(found.marked) for x in members}
    asked = {x: near[x][:NEAREST] + [y for y in near[x][NEAREST:] if not marked[y]][:NEAREST] for x in members}
    decided = {(y, x): found.decided for x in members for y in asked[x] if (found := order(y, x)) and found.decided}
    older = {x: [y for y in asked[x] if decided.get((y, x)) == "candidate"] for x in members}
    elders = {y: [z for z in asked[y] if is_elder(order(z, y))] for y in members}
    seems = {(y, x) for x in members for y in asked[x] if not marked[y] and leans(order(y, x))}
    below = {y: [x for x in members if (y, x) in seems] for y in members}
    sibling = {y: not elders[y] and len(below[y]) >= LEAST_BELOW and steps.moved_alone(y, below[y]) for y in members}
    parents, unclear = {}, set()
    for x in members:
        shown: dict[int, bool | None] = {}
        for y in asked[x]:
            bases = [z for z in elders[y] if z != x]
            if y in older[x]:
                answers = {steps.inherits(x, y, z) for z in bases}
                known = False if False in answers else None if None in answers else True
                shown[y] = False if not bases and (marked[y] or sibling[y]) else known
            elif bases and decided.get((y, x)) is None and decided.get((x, y)) is None:
                shown[y] = steps.inherits(x, y, bases[0])
                if shown[y] and steps.inherits(y, x, bases[0]) is not False:
                    shown[y] = None
        valid = [y for y in asked[x] if shown.get(y)]
        parent = next((y for y in valid if not any(y in elders[other] for other in valid)), None)
        if parent is not None:
            parents[x] = parent
            if any(shown.get(y, False) is None for y in asked[x][: asked[x].index(parent)]):
                unclear.add(x)
    leaning = frozenset((y, x) for y, x in seems if not sibling[y])
    measured = frozenset(edge(x, y) for x in members for y in asked[x] if order(y, x) is not None)
    return Descent(parents, frozenset(unclear), frozenset(edge(*pair) for pair in decided), leaning, measured)


def hang_by_steps(edges: Iterable[Edge], members: Sequence[int], descent: Descent) -> set[Edge]:
    """The tree in which every model that the steps show a parent of hangs on it.

    edges: of a tree over 0, …, M − 1, whose numbers in `descent` are `members`.
    """
    tree = {edge(a, b) for a, b in edges}
    index = {member: i for i, member in enumerate(members)}
    for child in _parents_first(descent.parents):
        x, parent = index[child], index[descent.parents[child]]
        around = neighbours(tree, len(members))
        if parent not in around[x]:
            toward = next(k for k in around[x] if side(around, k, x)[parent])
            tree = (tree - {edge(x, toward)}) | {edge(x, parent)}
    return tree


def _parents_first(parents: Mapping[int, int]) -> list[int]:
    """The children, each behind its own parent; those of a circle are left out."""
    found: list[int] = []
    waiting = sorted({*parents.values()} - {*parents})
    while waiting:
        top = waiting.pop(0)
        below = sorted(child for child, parent in parents.items() if parent == top)
        found += below
        waiting += below
    return found
