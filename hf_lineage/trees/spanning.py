"""The undirected tree of one group: spanning tree, corrections, bootstrap, and how tree-like the distances are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree

from .without_gradient import WithoutGradient

Edge = tuple[int, int]  # two models, the smaller number first

BOOTSTRAPS = 100
TIED = 1e-9  # of the largest information: a smaller difference is rounding
MIN_INFORMATION_RATIO = 0.85  # of an edge's information: a model that shares less is no neighbour
MAX_REWIRINGS_PER_MODEL = 4


def spanning_tree(information: np.ndarray) -> set[Edge]:
    """The maximum spanning tree: the M − 1 edges of largest total information (Chow and Liu 1968).

    information: (M, M), nats, symmetric, ≥ 0. What differs by less than `TIED` of the largest is a tie, as between
    copies of one trunk, whose sums differ by rounding alone: the pair of the smaller numbers comes first.
    """
    models = len(information)
    between = information * (1 - np.eye(models))
    steps = np.round(between / (TIED * (between.max(initial=0.0) or 1.0)))
    first = np.minimum.outer(range(models), range(models)) * models + np.maximum.outer(range(models), range(models))
    cost = steps.max(initial=0.0) + 1.0 - steps + first / max(1, models * models)
    np.fill_diagonal(cost, 0.0)
    tree = minimum_spanning_tree(cost).tocoo()
    return {edge(int(i), int(j)) for i, j in zip(tree.row, tree.col, strict=True)}


def edge(i: int, j: int) -> Edge:
    """An undirected edge: the smaller number first."""
    return (i, j) if i < j else (j, i)


def resolve_contradictions(
    edges: Iterable[Edge], information: np.ndarray, members: Sequence[int], without_gradient: WithoutGradient,
    weights: np.ndarray | None = None,
) -> set[Edge]:  # fmt: skip
    """The tree in which no path contradicts what weights without gradient show (`without_gradient.py`).

    An edge x–s says that s is between x and whatever lies behind s. Where some y behind s is between x and s, x–s
    becomes x–y; where x is between s and a neighbour y of s, s–y becomes x–y. Stops after `MAX_REWIRINGS_PER_MODEL`
    rewirings per model.

    edges: of a tree over 0, …, M − 1, whose numbers in `without_gradient` are `members`.  information: (M, M), nats; it
    says which y are worth a look, and of several takes the first.  weights: (T,), how often each matrix counts.
    """

    def possibly_between(x: int, s: int, y: int) -> tuple[int, ...]:
        return (1,) if y == s else without_gradient.between(members[x], members[s], members[y], weights)

    around = neighbours(edges, len(information))
    left = MAX_REWIRINGS_PER_MODEL * len(information)
    waiting = list(range(len(information)))
    while waiting and left:
        x = waiting.pop()
        for s in sorted(around[x]):
            move = _contradiction(around, x, s, information, possibly_between)
            if move is None:
                continue
            (i, j), (keep, new) = move
            around[i].remove(j)
            around[j].remove(i)
            around[keep].add(new)
            around[new].add(keep)
            left -= 1
            waiting += [i, j, new, x]
            break
    return {edge(i, j) for i, others in enumerate(around) for j in others}


def _contradiction(
    around: Sequence[set[int]], x: int, s: int, information: np.ndarray,
    possibly_between: Callable[[int, int, int], tuple[int, ...]],
) -> tuple[Edge, Edge] | None:  # fmt: skip
    """(the edge that cannot be, the one that replaces it), None where nothing speaks against x–s."""
    behind = np.flatnonzero(side(around, s, x))
    behind = behind[np.argsort(-information[x, behind], kind="stable")]
    for y in map(int, behind):
        if information[x, y] < MIN_INFORMATION_RATIO * information[x, s]:
            return None
        may = possibly_between(x, s, y)
        if 1 in may:
            continue
        if 0 in may and y in around[s] and (2 not in may or information[x, s] > information[s, y]):
            return (s, y), (x, y)
        if 2 in may:
            return (x, s), (x, y)
    return None


def neighbours(edges: Iterable[Edge], models: int) -> list[set[int]]:
    """The neighbours of each of so many models."""
    around: list[set[int]] = [set() for _ in range(models)]
    for i, j in edges:
        around[i].add(j)
        around[j].add(i)
    return around


def resample(pieces: int, seed: int, count: int = BOOTSTRAPS) -> Iterator[np.ndarray]:
    """How often each piece counts in each of `count` bootstraps (Efron 1979): (pieces,) that sum to `pieces`."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.multinomial(pieces, np.full(pieces, 1 / pieces)).astype(np.float64)


def cut_gap(edges: set[Edge], information: np.ndarray) -> dict[Edge, float]:
    """By how much each edge is ahead of the next best one across the same cut: 1 − I_next/I_edge, at most 1.

    1 where no other edge crosses the cut. Below 0 where weights without gradient chose an edge against the information.
    edges: of a tree over 0, …, M − 1.  information: (M, M), nats.
    """
    gaps = {}
    around = neighbours(edges, len(information))
    for i, j in edges:
        here = side(around, i, j)
        across = information[np.ix_(here, ~here)].copy()
        rows, columns = np.flatnonzero(here), np.flatnonzero(~here)
        across[np.searchsorted(rows, i), np.searchsorted(columns, j)] = -np.inf
        best, chosen = float(across.max()), float(information[i, j])
        gaps[i, j] = 1.0 - best / chosen if np.isfinite(best) and chosen > 0 else 1.0
    return gaps


def side(around: Sequence[set[int]], i: int, j: int) -> np.ndarray:
    """The nodes on i's side of the edge i–j, (M,) bool."""
    found = np.zeros(len(around), dtype=bool)
    found[i] = True
    waiting = [i]
    while waiting:
        for other in around[waiting.pop()]:
            if not found[other] and other != j:
                found[other] = True
                waiting.append(other)
    return found


def four_point(distance2: np.ndarray, seed: int, quartets: int = 1000) -> float | None:
    """How badly squared distances fail to be a tree's: the mean δ of random quartets, in [0, 1]; 0 for a tree.

    Of the three sums of opposite distances of four models, a tree makes the two largest equal (the four-point
    condition): δ = (largest − middle)/(largest − smallest), the δ plot of Holland et al. 2002. distance2: (M, M). None
    below four models and where all sums are equal.
    """
    models = len(distance2)
    if models < 4:
        return None
    rng = np.random.default_rng(seed)
    four = np.array([rng.choice(models, 4, replace=False) for _ in range(quartets)]).T
    i, j, k, m = four
    d = distance2
    sums = np.sort([d[i, j] + d[k, m], d[i, k] + d[j, m], d[i, m] + d[j, k]], axis=0)
    spread = sums[2] - sums[0]
    known = spread > 1e-12 * np.maximum(sums[2], 1e-300)
    return float(((sums[2] - sums[1])[known] / spread[known]).mean()) if known.any() else None
