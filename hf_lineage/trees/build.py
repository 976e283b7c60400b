"""From the pair statistics of one architecture's models to their trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..answers.phylogeny import descent_cycle
from ..weights.direction.origin import LEAST_MOVED, order_by_position, origin_position
from .by_steps import NO_DESCENT, Descent, Steps, descent_by_steps, hang_by_steps
from .groups import Grouping, PairTest, related_groups
from .hidden_ancestors import hidden_distances, insert_hidden_ancestors
from .mixtures import Mixture, fit, mixtures, pieced_together
from .pair_statistics import PairStatistics, distance2
from .rooting import RootPosterior, Signals, numbers, root_posterior
from .spanning import Edge, cut_gap, edge, neighbours, resample, resolve_contradictions, side, spanning_tree
from .stars import MIN_STAR, hang_on_centres, undecided_edges
from .without_gradient import WithoutGradient

MAX_UNDECIDED = 0.5  # probability of an edge that another one explains as well; up to it, an edge has no direction
MAX_NEIGHBOURS = 8  # of an edge's end that are asked whether weights without gradient confirm the edge

OneWay = Callable[[int, int], bool | None]  # (i, j) → j was made of i (True), i of j (False), or either (None)


@dataclass(frozen=True, slots=True)
class Branch:
    """One edge of a tree, from parent to child.

    parent, child: models count from 0, unnamed ancestors down from −1.  direction: the probability that `parent` came
    first, in [0.5, 1]; None where the edge is undirected.  probability: that the two are neighbours in the tree, in
    [0, 1]; None where the method gives none.  merge: whether the child is a merge; weight: of this parent in it, where
    that is known.
    """

    parent: int
    child: int
    direction: float | None
    probability: float | None
    merge: bool = False
    weight: float | None = None


@dataclass(slots=True)
class BuiltTrees:
    """The trees of one architecture.

    groups: the nodes of each tree, unnamed ancestors (below 0) included.  roots: the root of each where it is known.
    distances: squared distances ‖xᵢ − xⱼ‖² along edges, as far as they are known.  grouping: the partition behind them.
    """

    groups: list[list[int]]
    branches: list[Branch]
    roots: list[int | None]
    distances: dict[Edge, float]
    grouping: Grouping


def build_trees(
    statistics: PairStatistics, test: PairTest, one_way: OneWay, alpha: float, steps: Steps | None = None
) -> BuiltTrees:
    """The method `information`: groups by the permutation test, in each the tree of information with its root.

    The steps: exact merges (`mixtures.py`); groups (`groups.py`); in each group the maximum spanning tree of the mutual
    information (Chow and Liu 1968), corrected by weights without gradient (`spanning.py`); unnamed ancestors
    (`hidden_ancestors.py`); the posterior of the root, which directs the edges (`rooting.py`); and a calibrated
    probability for each edge (`evidence_of_edges`).

    test(i, j): log10 p of two models, None where no test applies.  one_way(i, j): whether what was done between the
    two can only have made j of i (True) or i of j (False), None where it may be either.  alpha: family-wise error over
    all pairs, in (0, 1).  steps: between the models, by which an order shows; None
    where nobody counted them.
    """
    merges = {merge.model: merge for merge in mixtures(statistics.gram, range(statistics.models))}
    grouping = _grouped(statistics, test, alpha, merges)
    sources = {i: {j for k, j in grouping.merge_sources if k == i} for i, _ in grouping.merge_sources}
    builder = _Builder(
        statistics, Signals(statistics), WithoutGradient([matrix.units for matrix in statistics.matrices]),
        merges, sources, {edge(*pair) for pair in pieced_together(statistics.grams)}, one_way, steps,
        BuiltTrees([], [], [], {}, grouping),
    )  # fmt: skip
    for group in grouping.groups:
        builder.add(sorted(group))
    return builder.built


def consistent(built: BuiltTrees) -> BuiltTrees:
    """Trees in which no model descends from itself (`without_cycles`), and no root from anybody."""
    branches = without_cycles(built.branches)
    children = {branch.child for branch in branches if branch.direction is not None}
    return replace(built, branches=branches, roots=[None if top in children else top for top in built.roots])


def _grouped(statistics: PairStatistics, test: PairTest, alpha: float, merges: Mapping[int, Mixture]) -> Grouping:
    """The related groups, each exact merge in the group of its heaviest source."""
    plain = [i for i in range(statistics.models) if i not in merges]  # an exact merge must not join what it was made of
    inner = np.ix_(plain, plain)
    grouping = related_groups(
        statistics.information[inner], statistics.similar[inner], lambda i, j: test(plain[i], plain[j]), alpha
    )
    grouping.groups = [[plain[i] for i in group] for group in grouping.groups]
    grouping.merge_sources = [(plain[i], plain[j]) for i, j in grouping.merge_sources]
    for merge in merges.values():
        next(group for group in grouping.groups if merge.sources[0] in group).append(merge.model)
    _move_below_merges(grouping, statistics.information, [*merges])
    return grouping


def _move_below_merges(grouping: Grouping, information: np.ndarray, merges: Sequence[int]) -> None:
    """A model that looks like a merge and is nearest to an exact one descends from that: it moves into its group and
    has no sources of its own."""
    for one in {one for one, _ in grouping.merge_sources}:
        nearest = max((k for k in range(len(information)) if k != one), key=lambda k: information[one, k])
        if nearest in merges:
            next(group for group in grouping.groups if one in group).remove(one)
            next(group for group in grouping.groups if nearest in group).append(one)
            grouping.merge_sources = [link for link in grouping.merge_sources if link[0] != one]
    grouping.groups = [group for group in grouping.groups if group]


@dataclass(frozen=True, slots=True)
class _Builder:
    """All that decides the trees of one architecture; `built` grows by one tree with each group added."""

    statistics: PairStatistics
    signals: Signals
    without_gradient: WithoutGradient
    merges: Mapping[int, Mixture]
    sources: Mapping[int, set[int]]  # of merges of unrelated groups: their sources in other groups
    pieced: set[Edge]  # of which the one may have been put together of the other and a third
    one_way: OneWay
    steps: Steps | None
    built: BuiltTrees

    def add(self, members: Sequence[int]) -> None:
        """Build the tree of one group, `members` in ascending order."""
        built, squared = self.built, self.signals.squared_distances
        merges = {i: self.merges[i] for i in members if i in self.merges}
        plain = [i for i in members if i not in merges]
        descent = descent_by_steps(plain, squared, self.steps) if self.steps and len(plain) > 1 else NO_DESCENT
        group = _Group(self.statistics, self.signals, self.without_gradient, members, merges, descent)
        edges = group.edges()
        probabilities = group.probabilities(edges)
        named = {edge(members[a], members[b]) for a, b in edges}
        tree, hidden = (named, {}) if descent.parents else self._with_ancestors(named, members, merges)
        nodes = [*members, *hidden]
        decided = [pair for a, b in sorted(tree) if (pair := self._decided(a, b, merges) or descent.decided(a, b))]
        posterior = root_posterior(self.signals, tree, nodes, decided)
        before = len(built.branches)
        for a, b in sorted(tree):
            self._add_branch(posterior, (a, b), probabilities.get((a, b)), decided, descent)
        for i in members:
            if i in self.sources:
                self._add_sources(i, sorted(self.sources[i]))
        built.groups.append(nodes)
        root = _known_root(posterior)
        if len(nodes) == 2:
            root = next((b.parent for b in built.branches[before:] if b.direction is not None), None)
        built.roots.append(root)
        built.distances |= {edge(a, b): squared[a, b] for a, b in tree if min(a, b) >= 0}
        built.distances |= hidden_distances(hidden, squared)

    def _with_ancestors(
        self, edges: set[Edge], members: Sequence[int], merges: Mapping[int, Mixture]
    ) -> tuple[set[Edge], dict[int, tuple[int, ...]]]:
        """The tree with unnamed ancestors, each with a number that no other tree uses."""
        tree, hidden = self._ancestors(edges, members, merges)
        shift = sum(i < 0 for group in self.built.groups for i in group)
        tree = {edge(*(i - shift if i < 0 else i for i in pair)) for pair in tree}
        return tree, {h - shift: near for h, near in hidden.items()}

    def _ancestors(
        self, edges: set[Edge], members: Sequence[int], merges: Mapping[int, Mixture]
    ) -> tuple[set[Edge], dict[int, tuple[int, ...]]]:
        """None of two models alone, which show no third one, and none beside exact merges."""
        if merges or len(members) == 2:
            return edges, {}
        return insert_hidden_ancestors(edges, members, self.signals, self.without_gradient)

    def _decided(self, a: int, b: int, merges: Mapping[int, Mixture]) -> Edge | None:
        """(parent, child) where something other than the signals decides it."""
        if min(a, b) < 0:
            return None
        for parent, child in ((a, b), (b, a)):
            if child in merges and parent in merges[child].sources:
                return parent, child
            if child in self.sources and parent not in self.sources:
                return parent, child
        forward = self.one_way(a, b)
        return None if forward is None else (a, b) if forward else (b, a)

    def _add_branch(
        self, posterior: RootPosterior, pair: Edge, probability: float | None, decided: Sequence[Edge],
        descent: Descent,
    ) -> None:  # fmt: skip
        """The branch of one edge; to an exact merge, one from each of its sources."""
        parent, child = pair if posterior.precedence[pair] >= 0.5 else (pair[1], pair[0])
        merge = self.merges.get(child)
        if merge and parent in merge.sources:
            self.built.branches += [
                Branch(source, child, 1.0, probability if source == parent else None, True, weight)
                for source, weight in zip(merge.sources, merge.weights, strict=True)
            ]
            return
        first = posterior.precedence[parent, child]
        direction = first if first >= numbers()["root"]["sure"] else None
        if len(posterior.order) == 2 and (parent, child) not in decided:
            parent, child, direction = self._first_of_two(*pair)
        moved = probability is None and min(pair) >= 0  # to another neighbour, after the edges were judged
        refused = (parent, child) not in decided and (
            moved
            or edge(parent, child) in self.pieced
            or self._is_too_light(parent, child, descent, len(posterior.order))
        )
        contradicted = refused or (min(pair) >= 0 and self.one_way(parent, child) is False)  # by what was done
        if direction is not None and min(pair) >= 0 and (parent, child) not in decided:
            alone, _, sure = self._first_of_two(parent, child)
            contradicted |= sure is not None and alone == child  # a pair says the same in `trace`
        if contradicted or (
            probability is not None and probability <= MAX_UNDECIDED and (parent, child) not in decided
        ):
            direction = None
        is_merge = child in self.sources and (parent, child) in decided
        self.built.branches.append(Branch(parent, child, direction, probability, is_merge))

    def _is_too_light(self, parent: int, child: int, descent: Descent, models: int) -> bool:
        """Whether a change is so small that only its steps could tell who came first, and they do not.

        What paths tell of light fine-tunes holds where their base is in the set: of siblings alone the one that was
        tuned otherwise looks like it. Of three models one path shows even less. models: of the group.
        """
        if descent.refuses(parent, child):
            return True
        if min(parent, child) < 0:  # to an unnamed ancestor: as far as the nearest of those that it is the ancestor of
            named = max(parent, child)
            near = {b if a == named else a for a, b in descent.measured if named in (a, b)}
            return any(self.signals.relative_distance(named, k) < LEAST_MOVED for k in near)
        if self.signals.relative_distance(parent, child) >= LEAST_MOVED:
            return False
        return models < MIN_STAR or (edge(parent, child) in descent.measured and (parent, child) not in descent.leaning)

    def _first_of_two(self, a: int, b: int) -> tuple[int, int, float | None]:
        """(parent, child, probability of that) of two models by the position of the origin, as `trace` has it
        (`weights/direction/origin.py`); None where that decides nothing, or that neither came first."""
        changed = self.signals.changed(a, b)
        grams = self.statistics.grams[changed].sum(0)
        one, other, squared = grams[a, a], grams[b, b], distance2(grams)[a, b]
        inner = (one - other - squared) / 2  # ⟨b, a − b⟩
        position = origin_position(np.array([[other, inner], [inner, squared]]), 1)
        shares = order_by_position(position, int(self.statistics.sizes[changed].sum()))
        if shares.decided == "descendant":
            return b, a, shares.descendant
        return a, b, shares.parent if shares.decided == "parent" else None

    def _add_sources(self, merge: int, sources: Sequence[int]) -> None:
        """A merge of unrelated groups: a branch from each source in another group, and weights for all its parents."""
        branches = self.built.branches
        own = [k for k, b in enumerate(branches) if b.child == merge and b.merge]
        weights, _ = fit(self.statistics.gram, merge, [*(branches[k].parent for k in own), *sources])
        for k, weight in zip(own, weights, strict=False):
            branches[k] = replace(branches[k], weight=float(weight))
        branches += [
            Branch(source, merge, 1.0, None, True, float(weight))
            for source, weight in zip(sources, weights[len(own) :], strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Group:
    """One group's undirected tree; its edges count the models from 0 in the order of `members`."""

    statistics: PairStatistics
    signals: Signals
    without_gradient: WithoutGradient
    members: Sequence[int]
    merges: Mapping[int, Mixture]
    descent: Descent

    def edges(self) -> set[Edge]:
        """The tree of what is no exact merge, each merge on its heaviest source, and on it what descends from it.

        The average of two siblings is nearer to their parent than they are: it must not come between them.
        """
        information = self.statistics.information[np.ix_(self.members, self.members)]
        plain = [i for i, member in enumerate(self.members) if member not in self.merges]
        names, inner = [self.members[i] for i in plain], information[np.ix_(plain, plain)]
        tree = resolve_contradictions(spanning_tree(inner), inner, names, self.without_gradient)
        tree = hang_on_centres(tree, names, self.signals, self.without_gradient)
        tree = hang_by_steps(tree, names, self.descent)
        tree = {edge(plain[a], plain[b]) for a, b in tree}
        sources = {
            self.members.index(merge.model): [self.members.index(k) for k in merge.sources if k in self.members]
            for merge in self.merges.values()
        }  # fmt: skip
        tree |= {edge(merge, known[0]) for merge, known in sources.items()}
        return below_merges(tree, sources, information)

    def probabilities(self, tree: set[Edge]) -> dict[Edge, float]:
        """The calibrated probability of each edge, by the models' own numbers; 1 for a group of two."""
        members = self.members
        if len(members) < 3:
            return {edge(members[a], members[b]): 1.0 for a, b in tree}
        around = neighbours(tree, len(members))
        pieces = np.array([self._within(piece, around) for piece in self.statistics.pieces])
        information = self._within(self.statistics.information, around)
        rows = evidence_of_edges(tree, pieces, members, information, self.without_gradient)
        fitted = numbers()["edge"]
        scores = {pair: fitted["offset"] + float(np.array(fitted["weights"]) @ row) for pair, row in rows.items()}
        unclear = undecided_edges(tree, members, self.signals, self.without_gradient)
        unclear -= {(a, b) for a, b in unclear if self.descent.decided(members[a], members[b])}
        unclear |= {(a, b) for a, b in tree if self.descent.is_unclear(members[a], members[b])}
        most = dict.fromkeys(unclear, MAX_UNDECIDED)
        return {
            edge(members[a], members[b]): min(most.get((a, b), 1.0), 1 / (1 + math.exp(-score)))
            for (a, b), score in scores.items()
        }

    def _within(self, information: np.ndarray, around: Sequence[set[int]]) -> np.ndarray:
        """The information among members; nothing between a merge and what is not beside it in the tree: it is an
        average, and no path."""
        found = information[np.ix_(self.members, self.members)].copy()
        for merge in self.merges:
            i = self.members.index(merge)
            apart = [k for k in range(len(self.members)) if k not in around[i]]
            found[i, apart] = found[apart, i] = 0.0
        return found


def below_merges(tree: set[Edge], sources: Mapping[int, Sequence[int]], information: np.ndarray) -> set[Edge]:
    """The tree in which models that a merge tells more about than any other model hang on that merge.

    tree: over 0, …, M − 1, every merge at its end, on its heaviest source. sources: of each merge, the heaviest first.
    A model with a source of the merge behind it stays: it would be the merge's child and its ancestor.
    """
    plain = [i for i in range(len(information)) if i not in sources]
    for x in plain:
        merge = max(sources, key=lambda m: (information[x, m], -m), default=None)
        others = [k for k in plain if k != x]
        if merge is None or x in sources[merge] or information[x, merge] <= information[x, others].max(initial=0.0):
            continue
        around = neighbours(tree, len(information))
        toward = next(k for k in around[x] if side(around, k, x)[merge])
        if not any(side(around, x, toward)[source] for source in sources[merge]):
            tree = (tree - {edge(x, toward)}) | {edge(x, merge)}
    return tree


def without_cycles(branches: Sequence[Branch]) -> list[Branch]:
    """The branches, of which those lose their direction that would make a model its own ancestor.

    In a cycle something is wrong, and nothing shows what: its branches become undirected, those to merges only where
    there are no others, since an exact sum of others is the younger one.
    """
    kept = list(branches)
    while cycle := descent_cycle((b.parent, b.child) for b in kept if b.direction is not None or b.merge):
        on = {*zip(cycle, [*cycle[1:], cycle[0]], strict=True)}
        here = [i for i, b in enumerate(kept) if (b.parent, b.child) in on and (b.direction is not None or b.merge)]
        for i in [i for i in here if not kept[i].merge] or here:
            kept[i] = replace(kept[i], direction=None, merge=False, weight=None)
    return kept


def _known_root(posterior: RootPosterior) -> int | None:
    return posterior.root if float(posterior.probability.max()) >= numbers()["root"]["sure"] else None


def evidence_of_edges(
    tree: set[Edge], pieces: np.ndarray, members: Sequence[int], information: np.ndarray,
    without_gradient: WithoutGradient, seed: int = 0,
) -> dict[Edge, np.ndarray]:  # fmt: skip
    """What the probability of an edge is made of, (4,) each: the inputs of a logistic regression.

    The share of bootstraps over pieces (Felsenstein 1985) whose maximum spanning tree has the edge, in [0, 1]; by how
    much it leads across its cut (`cut_gap`), within ±0.1 and divided by it; whether weights without gradient confirm
    it; whether they put it there, against the spanning tree of all pieces.

    tree: edges between 0, …, M − 1, whose numbers in `without_gradient` are `members`.  pieces: (P, M, M), nats;
    information: (M, M), their sum.  seed: of the bootstrap.
    """
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
