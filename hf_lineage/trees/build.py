"""From what is known of all pairs of one architecture's models to the trees they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..weights.direction import origin_position
from .groups import Groups, related_groups
from .hidden_ancestors import hidden_distances, missing
from .mixtures import Mixture, fit, mixtures
from .pair_statistics import Kinship
from .rooting import Rooted, Signals, between, numbers, root
from .spanning import Edge, cut_gap, edge, neighbours, resample, side, spanning_tree, straighten
from .without_gradient import Untouched

MOST = 8  # neighbours of an edge that are asked whether untouched weights confirm it


@dataclass(frozen=True, slots=True)
class Branch:
    """One edge: models count from 0, unnamed ancestors down from −1. `first`: that `parent` came first, None where the
    edge is undirected; `merge`: the child is one, `weight`: of this parent in it, where that is known."""

    parent: int
    child: int
    first: float | None
    probability: float | None
    merge: bool = False
    weight: float | None = None


@dataclass(slots=True)
class Grown:
    """The trees of one architecture: `groups` of models and unnamed ancestors, `tops`: root of each where it is
    known."""

    groups: list[list[int]]
    branches: list[Branch]
    tops: list[int | None]
    distances: dict[Edge, float]
    joined: Groups


def grow(
    kin: Kinship, test: Callable[[int, int], float | None], one_way: Callable[[int, int], bool | None], alpha: float
) -> Grown:  # fmt: skip
    """Groups by the permutation test, in each the tree of information, unnamed ancestors, merges, and the root.

    test(i, j): log10 p of two models. one_way(i, j): whether what was done between the two can only have made j of i
    (True) or i of j (False), None where it says nothing.
    """
    signals, untouched = Signals(kin), Untouched([matrix.units for matrix in kin.matrices])
    merges = {merge.model: merge for merge in mixtures(kin.gram, range(kin.models))}
    plain = [i for i in range(kin.models) if i not in merges]  # an exact merge must not join what it was made of
    inner = np.ix_(plain, plain)
    joined = related_groups(kin.information[inner], kin.alike[inner], lambda i, j: test(plain[i], plain[j]), alpha)
    joined.members = [[plain[i] for i in members] for members in joined.members]
    joined.links = [(plain[i], plain[j]) for i, j in joined.links]
    for merge in merges.values():
        next(members for members in joined.members if merge.sources[0] in members).append(merge.model)
    _below_merges(joined, kin.information, [*merges])
    grown = Grown([], [], [], {}, joined)
    sources = {i: {j for k, j in joined.links if k == i} for i, _ in joined.links}
    for members in joined.members:
        own = {i: merges[i] for i in members if i in merges}
        _tree(grown, kin, signals, untouched, sorted(members), sources, own, one_way)
    return grown


def _below_merges(joined: Groups, information: np.ndarray, merges: Sequence[int]) -> None:
    """What looks like a merge and is nearest to a known one descends from that: into its group, without links of its
    own."""
    for one in {one for one, _ in joined.links}:
        nearest = max((k for k in range(len(information)) if k != one), key=lambda k: information[one, k])
        if nearest in merges:
            next(members for members in joined.members if one in members).remove(one)
            next(members for members in joined.members if nearest in members).append(one)
            joined.links = [link for link in joined.links if link[0] != one]
    joined.members = [members for members in joined.members if members]


def _tree(
    grown: Grown, kin: Kinship, signals: Signals, untouched: Untouched, members: Sequence[int],
    sources: Mapping[int, set[int]], merges: Mapping[int, Mixture], one_way: Callable[[int, int], bool | None],
) -> None:  # fmt: skip
    barred = {edge(m.model, source) for m in merges.values() for source in m.sources[1:] if source in members}
    information = _within(kin.information, members, barred)
    local = straighten(spanning_tree(information), information, members, untouched)
    for mixed in merges.values():
        local = _hung(local, members.index(mixed.model), members.index(mixed.sources[0]), len(members))
    edges = {edge(members[a], members[b]) for a, b in local}
    sure = _probabilities(local, kin, members, barred, information, untouched)
    tree, hidden = _ancestors(edges, members, signals, untouched, merges)
    shift = sum(i < 0 for group in grown.groups for i in group)  # each unnamed ancestor has a number of its own
    tree = {edge(*(i - shift if i < 0 else i for i in pair)) for pair in tree}
    hidden = {h - shift: near for h, near in hidden.items()}
    nodes = [*members, *hidden]
    known = [pair for a, b in sorted(tree) if (pair := _known(a, b, merges, sources, one_way))]
    found = root(signals, tree, nodes, known)
    least = numbers()["root"]["sure"]
    for a, b in sorted(tree):
        parent, child = (a, b) if found.first[a, b] >= 0.5 else (b, a)
        first = found.first[parent, child]
        probability = sure.get((a, b))
        if (merge := merges.get(child)) and parent in merge.sources:
            weights = dict(zip(merge.sources, merge.weights, strict=True))
            grown.branches += [
                Branch(k, child, 1.0, probability if k == parent else None, True, w) for k, w in weights.items()
            ]
        else:
            linked = child in sources and (parent, child) in known
            grown.branches.append(Branch(parent, child, first if first >= least else None, probability, linked))
    for i in members:
        if i in sources:
            _weigh(grown, kin.gram, i, sorted(sources[i]))
    grown.groups.append(nodes)
    grown.tops.append(_top(found, least))
    grown.distances |= {edge(a, b): signals.square[a, b] for a, b in tree if min(a, b) >= 0}
    grown.distances |= hidden_distances(hidden, signals.square)


def _hung(tree: set[Edge], merge: int, source: int, models: int) -> set[Edge]:
    """The tree with a merge on its heaviest source."""
    around = neighbours(tree, models)
    toward = next(near for near in around[merge] if side(around, near, merge)[source])
    return (tree - {edge(merge, toward)}) | {edge(merge, source)}


def _weigh(grown: Grown, gram: np.ndarray, merge: int, sources: Sequence[int]) -> None:
    """A merge of unrelated groups: a branch from each source in another group, and weights for all its parents."""
    own = [k for k, b in enumerate(grown.branches) if b.child == merge and b.merge]
    parents = [*(grown.branches[k].parent for k in own), *sources]
    weights, _ = fit(gram, merge, parents)
    for k, weight in zip(own, weights, strict=False):
        grown.branches[k] = replace(grown.branches[k], weight=float(weight))
    grown.branches += [
        Branch(source, merge, 1.0, None, True, float(weight))
        for source, weight in zip(sources, weights[len(own) :], strict=True)
    ]


def _within(information: np.ndarray, members: Sequence[int], barred: Iterable[Edge]) -> np.ndarray:
    """The information among members; nothing between a merge and its lighter sources, which are no path to one
    another."""
    found = information[np.ix_(members, members)].copy()
    place = {model: i for i, model in enumerate(members)}
    for a, b in barred:
        found[place[a], place[b]] = found[place[b], place[a]] = 0.0
    return found


def _probabilities(
    tree: set[Edge], kin: Kinship, members: Sequence[int], barred: set[Edge], information: np.ndarray,
    untouched: Untouched,
) -> dict[Edge, float]:  # fmt: skip
    """The calibrated probability of each edge (`evidence_of_edges`)."""
    if len(members) < 3:
        return {edge(members[a], members[b]): 1.0 for a, b in tree}
    pieces = np.array([_within(piece, members, barred) for piece in kin.pieces])
    rows = evidence_of_edges(tree, pieces, members, information, untouched)
    n = numbers()["edge"]
    scores = {pair: n["offset"] + float(np.array(n["weights"]) @ row) for pair, row in rows.items()}
    return {edge(members[a], members[b]): 1 / (1 + math.exp(-score)) for (a, b), score in scores.items()}


def evidence_of_edges(
    tree: set[Edge], pieces: np.ndarray, members: Sequence[int], information: np.ndarray, untouched: Untouched,
    seed: int = 0,
) -> dict[Edge, np.ndarray]:  # fmt: skip
    """What the probability of an edge is made of: how often it is in the trees of the bootstraps over pieces, by how
    much it leads across its cut, whether untouched weights confirm it or put it there. (4,) each."""
    often = dict.fromkeys(tree, 0)
    count = 0
    for weights in resample(len(pieces), seed):
        count += 1
        for pair in spanning_tree(np.tensordot(weights, pieces, 1)) & tree:
            often[pair] += 1
    plain = spanning_tree(information)
    gaps = cut_gap(tree, information)
    around = neighbours(tree, len(members))
    found = {}
    for a, b in tree:
        votes = [
            untouched.between(members[x], members[s], members[y]) == (1,)
            for x, s in ((a, b), (b, a)) for y in sorted(around[s])[:MOST] if y != x
        ]  # fmt: skip
        found[a, b] = np.array(
            [often[a, b] / count, min(max(gaps[a, b], -0.1), 0.1) / 0.1, any(votes), (a, b) not in plain], dtype=float
        )
    return found


def _ancestors(
    edges: set[Edge], members: Sequence[int], signals: Signals, untouched: Untouched, merges: Mapping[int, Mixture]
) -> tuple[set[Edge], dict[int, tuple[int, ...]]]:
    """The tree with unnamed ancestors. Of two models alone, where the origin lies between the two."""
    if len(members) == 2:
        a, b = members
        # the pivot of these products is zero, so the first one's row is the model itself
        norm, cross = signals.norm2[a], (signals.norm2[a] + signals.norm2[b] - signals.square[a, b]) / 2
        away = np.array([[norm, cross - norm], [cross - norm, signals.square[a, b]]])
        if between(origin_position(away, 1)):
            return {(-1, a), (-1, b)}, {-1: (a, b)}
    if merges:
        return edges, {}
    return missing(edges, members, signals, untouched)


def _known(
    a: int, b: int, merges: Mapping[int, Mixture], sources: Mapping[int, set[int]],
    one_way: Callable[[int, int], bool | None],
) -> Edge | None:  # fmt: skip
    """(parent, child) where something other than the signals decides it."""
    if min(a, b) < 0:
        return None
    for parent, child in ((a, b), (b, a)):
        if child in merges and parent in merges[child].sources:
            return parent, child
        if child in sources and parent not in sources:
            return parent, child
    told = one_way(a, b)
    return None if told is None else (a, b) if told else (b, a)


def _top(found: Rooted, least: float) -> int | None:
    return found.root if float(found.probability.max()) >= least else None
