"""Plain fine-tunes of one model make a star: where shared drift strung them out, they go back to their centre."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

import numpy as np

from .pair_statistics import step_cosines
from .rooting import Signals
from .spanning import Edge, edge, neighbours, side
from .without_gradient import WithoutGradient

STAR_COSINE = 0.4  # of two steps from a centre: what siblings share by drift, and no path to one another
MIN_COSINE = -0.1  # a step back: the centre would be between the two
FORK_COSINE = -0.02  # below, and by four standard errors, the middle of a path is no parent of both ends
MIN_STAR = 4  # models: of three, one cosine says nothing


def hang_on_centres(
    edges: Iterable[Edge], members: Sequence[int], signals: Signals, without_gradient: WithoutGradient | None = None
) -> set[Edge]:
    """The tree in which a model hangs on the centre of a star rather than on a sibling that moved less.

    Of siblings whose steps from their parent b share drift (a cosine ρ), a light one s is nearer to a heavy one x than
    b is, once |s − b| < 2ρ·|x − b|: distances and information then make b–s–x of a star. A chain whose first step is
    much the lighter one looks the same. That plain fine-tunes of one base are the rule decides: where one model of the
    group is the centre of all others (`star_centre`), they hang on it. Where weights without gradient show that s is
    between b and x, x stays.

    edges: of a tree over 0, …, M − 1, whose numbers in `signals` and `without_gradient` are `members`.
    """
    tree = {edge(a, b) for a, b in edges}
    b = star_centre(signals.squared_distances[np.ix_(members, members)])
    for x in range(len(members)) if b is not None else ():
        around = neighbours(tree, len(members))
        if b is None or x == b or b in around[x]:
            continue
        s = next(k for k in around[x] if side(around, k, x)[b])
        if without_gradient is None or without_gradient.between(members[b], members[s], members[x]) != (1,):
            tree = (tree - {edge(s, x)}) | {edge(b, x)}
    return tree


def star_centre(squared: np.ndarray) -> int | None:
    """The model from which the steps to all others are nearly orthogonal; None below `MIN_STAR` models or without one.

    squared: (M, M), squared distances; of equal models nothing is said.
    """
    models = len(squared)
    spreads: dict[int, float] = {}
    for c in range(models if models >= MIN_STAR else 0):
        others = [i for i in range(models) if i != c]
        if not squared[c, others].all():
            return None
        cosines = step_cosines(squared, c, others)
        if cosines.min() >= MIN_COSINE and cosines.max() <= STAR_COSINE:
            spreads[c] = float(cosines.std())
    return min(spreads, key=lambda c: (spreads[c], c), default=None)


def undecided_edges(
    edges: Iterable[Edge], members: Sequence[int], signals: Signals, without_gradient: WithoutGradient | None = None
) -> set[Edge]:
    """The edges s–x that may as well be b–x, for a neighbour b of s: x a sibling of s, or its child.

    The steps from b are nearly orthogonal, s is nearer to b than x is, and seen from s the two are no siblings. Shared
    drift of siblings looks so, and a chain whose first step is the lighter one, too.
    """
    tree = {edge(a, b) for a, b in edges}
    around, squared = neighbours(tree, len(members)), signals.squared_distances
    fork = min(FORK_COSINE, -4 / float(signals.statistics.sizes.sum()) ** 0.5)
    found = set()
    for s, near in enumerate(around):
        for b, x in permutations(sorted(near), 2):
            i, j, k = members[b], members[s], members[x]
            lighter = squared[i, j] < squared[i, k] and signals.cosine(j, i, k) <= STAR_COSINE
            if not lighter or signals.cosine(i, j, k) >= fork:
                continue
            if without_gradient is None or without_gradient.between(i, j, k) != (1,):
                found.add(edge(s, x))
    return found
