"""From what is known of all pairs of one architecture's models to the trees they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..weights.direction import origin_position
from .groups import Grouping, related_groups
from .hidden_ancestors import hidden_distances, insert_hidden_ancestors
from .mixtures import Mixture, fit, mixtures
from .pair_statistics import PairStatistics
from .rooting import Rooted, Signals, between, numbers, root
from .spanning import Edge, cut_gap, edge, neighbours, resample, resolve_contradictions, side, spanning_tree
from .without_gradient import WithoutGradient

MAX_NEIGHBOURS = 8  # neighbours of an edge that are asked whether untouched weights confirm it


@dataclass(frozen=True, slots=True)
class Branch:
    """One edge: models count from 0, unnamed ancestors down from −1. `first`: that `parent` came first, None where the
    edge is undirected; `merge`: the child is one, `weight`: of this parent in it, where that is known."""

    parent: int
    child: int
    direction: float | None
    probability: float | None
    merge: bool = False
    weight: float | None = None


@dataclass(slots=True)
class BuiltTrees:
    """The trees of one architecture: `groups` of models and unnamed ancestors, `roots`: root of each where it is
    known."""

    groups: list[list[int]]
    branches: list[Branch]
    roots: list[int | None]
    distances: dict[Edge, float]
    grouping: Grouping


def build_trees(
    statistics: PairStatistics, test: Callable[[int, int], float | None],
    one_way: Callable[[int, int], bool | None], alpha: float,
) -> BuiltTrees:  # fmt: skip
    """Groups by the permutation test, in each the tree of information, unnamed ancestors, merges, and the root.

    test(i, j): log10 p of two models. one_way(i, j): whether what was done between the two can only have made j of i
    (True) or i of j (False), None where it says nothing.
    """
    signals, without_gradient = Signals(statistics), WithoutGradient([matrix.units for matrix in statistics.matrices])
    merges = {merge.model: merge for merge in mixtures(statistics.gram, range(statistics.models))}
    plain = [i for i in range(statistics.models) if i not in merges]  # an exact merge must not join what it was made of
    inner = np.ix_(plain, plain)
    grouping = related_groups(
        statistics.information[inner], statistics.similar[inner], lambda i, j: test(plain[i], plain[j]), alpha
    )
    grouping.groups = [[plain[i] for i in members] for members in grouping.groups]
    grouping.merge_sources = [(plain[i], plain[j]) for i, j in grouping.merge_sources]
    for merge in merges.values():
        next(members for members in grouping.groups if merge.sources[0] in members).append(merge.model)
    _below_merges(grouping, statistics.information, [*merges])
    built = BuiltTrees([], [], [], {}, grouping)
    sources = {i: {j for k, j in grouping.merge_sources if k == i} for i, _ in grouping.merge_sources}
    for members in grouping.groups:
        own = {i: merges[i] for i in members if i in merges}
        _tree(built, statistics, signals, without_gradient, sorted(members), sources, own, one_way)
    return built


def _below_merges(grouping: Grouping, information: np.ndarray, merges: Sequence[int]) -> None:
    """What looks like a merge and is nearest to a known one descends from that: into its group, without links of its
    own."""
    for one in {one for one, _ in grouping.merge_sources}:
        nearest = max((k for k in range(len(information)) if k != one), key=lambda k: information[one, k])
        if nearest in merges:
            next(members for members in grouping.groups if one in members).remove(one)
            next(members for members in grouping.groups if nearest in members).append(one)
            grouping.merge_sources = [link for link in grouping.merge_sources if link[0] != one]
    grouping.groups = [members for members in grouping.groups if members]


def _tree(
    built: BuiltTrees, statistics: PairStatistics, signals: Signals, without_gradient: WithoutGradient,
    members: Sequence[int], sources: Mapping[int, set[int]], merges: Mapping[int, Mixture],
    one_way: Callable[[int, int], bool | None],
) -> None:  # fmt: skip
    barred = {edge(m.model, source) for m in merges.values() for source in m.sources[1:] if source in members}
    information = _within(statistics.information, members, barred)
    local = resolve_contradictions(spanning_tree(information), information, members, without_gradient)
    for mixed in merges.values():
        local = _hung(local, members.index(mixed.model), members.index(mixed.sources[0]), len(members))
    edges = {edge(members[a], members[b]) for a, b in local}
    sure = _probabilities(local, statistics, members, barred, information, without_gradient)
    tree, hidden = _ancestors(edges, members, signals, without_gradient, merges)
    shift = sum(i < 0 for group in built.groups for i in group)  # each unnamed ancestor has a number of its own
    tree = {edge(*(i - shift if i < 0 else i for i in pair)) for pair in tree}
    hidden = {h - shift: near for h, near in hidden.items()}
    nodes = [*members, *hidden]
    known = [pair for a, b in sorted(tree) if (pair := _known(a, b, merges, sources, one_way))]
    found = root(signals, tree, nodes, known)
    least = numbers()["root"]["sure"]
    for a, b in sorted(tree):
        parent, child = (a, b) if found.precedence[a, b] >= 0.5 else (b, a)
        first = found.precedence[parent, child]
        probability = sure.get((a, b))
        if (merge := merges.get(child)) and parent in merge.sources:
            weights = dict(zip(merge.sources, merge.weights, strict=True))
            built.branches += [
                Branch(k, child, 1.0, probability if k == parent else None, True, w) for k, w in weights.items()
            ]
        else:
            linked = child in sources and (parent, child) in known
            built.branches.append(Branch(parent, child, first if first >= least else None, probability, linked))
    for i in members:
        if i in sources:
            _weigh(built, statistics.gram, i, sorted(sources[i]))
    built.groups.append(nodes)
    built.roots.append(_top(found, least))
    built.distances |= {edge(a, b): signals.squared_distances[a, b] for a, b in tree if min(a, b) >= 0}
    built.distances |= hidden_distances(hidden, signals.squared_distances)


def _hung(tree: set[Edge], merge: int, source: int, models: int) -> set[Edge]:
    """The tree with a merge on its heaviest source."""
    around = neighbours(tree, models)
    toward = next(near for near in around[merge] if side(around, near, merge)[source])
    return (tree - {edge(merge, toward)}) | {edge(merge, source)}


def _weigh(built: BuiltTrees, gram: np.ndarray, merge: int, sources: Sequence[int]) -> None:
    """A merge of unrelated groups: a branch from each source in another group, and weights for all its parents."""
    own = [k for k, b in enumerate(built.branches) if b.child == merge and b.merge]
    parents = [*(built.branches[k].parent for k in own), *sources]
    weights, _ = fit(gram, merge, parents)
    for k, weight in zip(own, weights, strict=False):
        built.branches[k] = replace(built.branches[k], weight=float(weight))
    built.branches += [
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
    tree: set[Edge], statistics: PairStatistics, members: Sequence[int], barred: set[Edge], information: np.ndarray,
    without_gradient: WithoutGradient,
) -> dict[Edge, float]:  # fmt: skip
    """The calibrated probability of each edge (`evidence_of_edges`)."""
    if len(members) < 3:
        return {edge(members[a], members[b]): 1.0 for a, b in tree}
    pieces = np.array([_within(piece, members, barred) for piece in statistics.pieces])
    rows = evidence_of_edges(tree, pieces, members, information, without_gradient)
    n = numbers()["edge"]
    scores = {pair: n["offset"] + float(np.array(n["weights"]) @ row) for pair, row in rows.items()}
    return {edge(members[a], members[b]): 1 / (1 + math.exp(-score)) for (a, b), score in scores.items()}


def evidence_of_edges(
    tree: set[Edge], pieces: np.ndarray, members: Sequence[int], information: np.ndarray,
    without_gradient: WithoutGradient, seed: int = 0,
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
            without_gradient.between(members[x], members[s], members[y]) == (1,)
            for x, s in ((a, b), (b, a)) for y in sorted(around[s])[:MAX_NEIGHBOURS] if y != x
        ]  # fmt: skip
        found[a, b] = np.array(
            [often[a, b] / count, min(max(gaps[a, b], -0.1), 0.1) / 0.1, any(votes), (a, b) not in plain], dtype=float
        )
    return found


def _ancestors(
    edges: set[Edge],
    members: Sequence[int],
    signals: Signals,
    without_gradient: WithoutGradient,
    merges: Mapping[int, Mixture],
) -> tuple[set[Edge], dict[int, tuple[int, ...]]]:
    """The tree with unnamed ancestors. Of two models alone, where the origin lies between the two."""
    if len(members) == 2:
        a, b = members
        # the pivot of these products is zero, so the first one's row is the model itself
        norm, cross = signals.norm2[a], (signals.norm2[a] + signals.norm2[b] - signals.squared_distances[a, b]) / 2
        away = np.array([[norm, cross - norm], [cross - norm, signals.squared_distances[a, b]]])
        if between(origin_position(away, 1)):
            return {(-1, a), (-1, b)}, {-1: (a, b)}
    if merges:
        return edges, {}
    return insert_hidden_ancestors(edges, members, signals, without_gradient)


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
