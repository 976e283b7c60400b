"""Ancestors that are missing from the set: inserted where several related models have a common path to a node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from .rooting import Signals
from .spanning import Edge, edge
from .without_gradient import WithoutGradient

PARENT_COSINE = 0.2  # of all pairs of deltas, seen from their parent, up to which that is the parent
SHARED_DRIFT_COSINE = 0.45  # of two deltas, seen from their neighbour: more than the drift that most siblings share


def insert_hidden_ancestors(
    edges: Iterable[Edge], members: Sequence[int], signals: Signals, without_gradient: WithoutGradient | None = None
) -> tuple[set[Edge], dict[int, tuple[int, ...]]]:
    """(the tree with unnamed ancestors −1, −2, … inserted; ancestor → the neighbours it was inserted between).

    Seen from their own parent, the deltas of two children are nearly orthogonal; seen from a third child of a parent
    that is missing, they have the way to it in common: cosine ½ if all moved equally far. So neighbours of a node that
    have more than `SHARED_DRIFT_COSINE` in common, pairwise, become children of a new node beside it, unless weights
    without gradient show that the node is between them: siblings that learned the same task share as much. A child
    that moved much less than its siblings takes the position of their missing parent: nothing shows that.
    Where a member of the set is that parent, for seen from it the steps to all of them have no more in common than
    drift, they become its children, and nobody is missing. docs/methods.md, *Phylogeny*.
    """
    tree = {edge(a, b) for a, b in edges}
    found: dict[int, tuple[int, ...]] = {}
    waiting, left = sorted(members), 4 * len(members)
    while waiting:
        node = waiting.pop(0)
        near = sorted(a + b - node for a, b in tree if node in (a, b) and a + b - node >= 0)
        bundle = next(iter(_bundles(node, near, signals, without_gradient)), None)
        if bundle is None:
            continue
        parent = _parent_in_set(tree, members, (node, *bundle), signals) if left else None
        if parent is not None:
            left -= 1
            moved = [other for other in bundle if other != parent]
            tree = (tree - {edge(node, other) for other in moved}) | {edge(parent, other) for other in moved}
            waiting.insert(0, node)
            continue
        hidden = -1 - len(found)
        found[hidden] = (node, *bundle)
        tree -= {edge(node, other) for other in bundle}
        tree |= {edge(hidden, other) for other in (node, *bundle)}
        tree = _gathered(tree, found, hidden, signals)
        waiting.insert(0, node)  # it may have another one
    return tree, found


def _parent_in_set(
    tree: set[Edge], members: Sequence[int], siblings: tuple[int, ...], signals: Signals
) -> int | None:  # fmt: skip
    """The member from which the (other) siblings look like its children; the first of them is their neighbour."""
    node, *others = siblings
    around: dict[int, set[int]] = {}
    for a, b in tree:
        around.setdefault(a, set()).add(b)
        around.setdefault(b, set()).add(a)
    beyond, waiting = {node}, [node]  # what hangs on the node without these others
    while waiting:
        for near in around[waiting.pop()] - beyond - {*others}:
            beyond.add(near)
            waiting.append(near)

    def in_common(x: int) -> float:
        return max(signals.cosine(a, x, b) for a, b in combinations([k for k in siblings if k != x], 2))

    fit = [x for x in sorted((beyond & {*members} | {*others}) - {node}) if in_common(x) <= PARENT_COSINE]
    return min(fit, key=lambda x: (in_common(x), x), default=None)


def _gathered(tree: set[Edge], found: dict[int, tuple[int, ...]], hidden: int, signals: Signals) -> set[Edge]:
    """The tree with all siblings on their ancestor: the spanning tree connects some of them to each other by chance."""
    near = [*found[hidden]]
    for sibling in near:  # it grows
        others = [k for k in near if k != sibling and k >= 0]
        for pair in sorted(tree):
            x = pair[0] + pair[1] - sibling
            if sibling not in pair or x < 0:
                continue
            if all(signals.cosine(x, sibling, k) > SHARED_DRIFT_COSINE for k in others):
                tree = (tree - {pair}) | {edge(hidden, x)}
                near.append(x)
    found[hidden] = tuple(near)
    return tree


def _bundles(
    node: int, near: Sequence[int], signals: Signals, without_gradient: WithoutGradient | None
) -> list[tuple[int, ...]]:
    """Groups of two or more neighbours with a common path to the node; each pair of a group has it."""

    def between(a: int, c: int) -> bool:
        return without_gradient is not None and without_gradient.between(a, node, c) == (1,)

    pairs = {
        (a, c) for a, c in combinations(near, 2)
        if signals.cosine(a, node, c) > SHARED_DRIFT_COSINE and not between(a, c)
    }  # fmt: skip
    groups: list[list[int]] = []
    for a in near:
        group = next((g for g in groups if all((min(a, b), max(a, b)) in pairs for b in g)), None)
        if group is None:
            groups.append([a])
        else:
            group.append(a)
    return [tuple(group) for group in groups if len(group) > 1]


def hidden_distances(hidden: dict[int, tuple[int, ...]], squared: np.ndarray) -> dict[Edge, float]:
    """Squared distances from unnamed ancestors to their neighbours, the mean Gromov product over pairs of the others:

        d²(h, a) = mean over b, c of ½·(d²(a, b) + d²(a, c) − d²(b, c)), at least 0.

    hidden: ancestor → its neighbours.  squared: (M, M), squared distances. Of two neighbours alone: half of theirs.
    """
    found = {}
    for h, near in hidden.items():
        for a in near:
            if a < 0:
                continue
            others = [b for b in near if b != a and b >= 0]
            products = [(squared[a, b] + squared[a, c] - squared[b, c]) / 2 for b, c in combinations(others, 2)]
            found[edge(h, a)] = max(0.0, float(np.mean(products))) if products else float(squared[a, others[0]]) / 2
    return found
