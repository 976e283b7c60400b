"""Trees of models against networkx, enumeration and simulated families whose history is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import pytest
import torch

from hf_lineage.answers.phylogeny import descent_cycle
from hf_lineage.trees.build import Branch, below_merges, build_trees, without_cycles
from hf_lineage.trees.groups import MAX_TESTS_PER_GROUP_PAIR, Grouping, related_groups
from hf_lineage.trees.hidden_ancestors import hidden_distances, insert_hidden_ancestors
from hf_lineage.trees.mixtures import mixtures, pieced_together
from hf_lineage.trees.pair_statistics import Matrix, PairStatistics, compute_pair_statistics, distance2
from hf_lineage.trees.rooting import EDGE, PATH, Signals, features, root_posterior
from hf_lineage.trees.spanning import (
    Edge,
    cut_gap,
    edge,
    four_point,
    neighbours,
    resample,
    resolve_contradictions,
    side,
    spanning_tree,
)
from hf_lineage.trees.stars import hang_on_centres, star_centre, undecided_edges
from hf_lineage.trees.without_gradient import WithoutGradient
from hf_lineage.weights.permutation_test import pair_test, unit_products

pytestmark = pytest.mark.integration


def symmetric(models: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).lognormal(8, 1, (models, models))
    return np.tril(x, -1) + np.tril(x, -1).T


def random_tree(nodes: Sequence[int], seed: int) -> set[Edge]:
    """Over these nodes, by random attachment."""
    rng = np.random.default_rng(seed)
    order = [int(n) for n in rng.permutation(list(nodes))]
    return {edge(order[i], order[int(rng.integers(i))]) for i in range(1, len(order))}


def is_tree(edges: set[Edge], models: int) -> bool:
    graph = nx.Graph(list(edges))
    graph.add_nodes_from(range(models))
    return len(edges) == models - 1 and nx.is_connected(graph) and all(i < j for i, j in edges)


# ---- the spanning tree


@pytest.mark.parametrize("models", [1, 2, 3, 10, 40])
def test_the_tree_is_that_of_networkx(models: int) -> None:
    for seed in range(5):
        information = symmetric(models, seed)
        graph = nx.from_numpy_array(information)
        expected = {edge(i, j) for i, j in nx.maximum_spanning_tree(graph).edges}
        assert spanning_tree(information) == expected and is_tree(expected, models)


def test_models_that_share_nothing_still_make_a_tree() -> None:
    assert is_tree(spanning_tree(np.zeros((6, 6))), 6)


def test_the_tree_leaves_its_matrix_alone_and_goes_with_the_order() -> None:
    information = symmetric(12, 1)
    before = information.copy()
    order = np.random.default_rng(0).permutation(12)
    turned = spanning_tree(information[np.ix_(order, order)])
    assert {edge(int(order[i]), int(order[j])) for i, j in turned} == spanning_tree(information)
    assert (information == before).all()


def test_ties_do_not_depend_on_rounding() -> None:
    """Of copies of one trunk many trees are the best: which, must not change with the last bit of a sum."""
    rng = np.random.default_rng(0)
    information = np.full((9, 9), 1e6)
    information[:4] = information[:, :4] = 5e5
    found = set()
    for _ in range(20):
        noise = 1 + 1e-13 * rng.standard_normal((9, 9))
        found.add(frozenset(spanning_tree(information * (noise + noise.T) / 2)))
    assert len(found) == 1


def test_sides_of_an_edge_are_networkx_components() -> None:
    for seed in range(10):
        edges = random_tree(range(9), seed)
        around = neighbours(edges, 9)
        for i, j in edges:
            graph = nx.Graph(list(edges))
            graph.remove_edge(i, j)
            assert {*np.flatnonzero(side(around, i, j))} == nx.node_connected_component(graph, i)
            assert (side(around, i, j) != side(around, j, i)).all()


@pytest.mark.parametrize("models", [2, 3, 9])
def test_the_gap_of_a_cut_by_brute_force(models: int) -> None:
    for seed in range(8):
        information, edges = symmetric(models, seed), random_tree(range(models), seed)
        gaps = cut_gap(edges, information)
        assert gaps.keys() == edges
        for i, j in edges:
            graph = nx.Graph(list(edges))
            graph.remove_edge(i, j)
            here = nx.node_connected_component(graph, i)
            rest = [
                information[a, b]
                for a, b in itertools.product(here, {*range(models)} - here)
                if edge(a, b) != edge(i, j)
            ]
            assert gaps[i, j] == pytest.approx(1 - max(rest) / information[i, j] if rest else 1.0)
        assert min(cut_gap(spanning_tree(information), information).values()) >= 0


def test_the_gap_of_an_edge_without_information_is_one() -> None:
    assert cut_gap({(0, 1), (1, 2)}, np.zeros((3, 3))) == {(0, 1): 1.0, (1, 2): 1.0}


def test_the_four_points_of_a_tree() -> None:
    """0 for path lengths in a tree; above 0.3 for distances out of thin air."""
    for seed in range(5):
        graph = nx.Graph()
        rng = np.random.default_rng(seed)
        graph.add_weighted_edges_from((i, j, rng.uniform(0.1, 3)) for i, j in random_tree(range(15), seed))
        lengths = dict(nx.all_pairs_dijkstra_path_length(graph))
        additive = np.array([[lengths[i][j] for j in range(15)] for i in range(15)])
        assert four_point(additive, 0) == pytest.approx(0, abs=1e-9)
        noise = four_point(symmetric(15, seed), 0)
        assert noise is not None and 0.3 < noise < 1
        assert four_point(symmetric(15, seed), 0) == noise, "seeded"


def test_the_four_points_of_four_by_hand() -> None:
    d = np.zeros((4, 4))
    for (i, j), length in {(0, 1): 1, (2, 3): 2, (0, 2): 4, (1, 3): 1, (0, 3): 5, (1, 2): 5}.items():
        d[i, j] = d[j, i] = length
    assert four_point(d, 0) == pytest.approx((10 - 5) / (10 - 3))
    assert four_point(d[:3, :3], 0) is None and four_point(np.zeros((5, 5)), 0) is None


def test_a_bootstrap_draws_as_many_pieces() -> None:
    drawn = list(resample(17, 3, 400))
    assert all(w.sum() == 17 and w.shape == (17,) and (w >= 0).all() for w in drawn)
    assert np.mean(drawn, 0) == pytest.approx(np.ones(17), abs=0.25) and np.std(drawn) == pytest.approx(1, abs=0.06)
    again, other = list(resample(17, 3, 400)), list(resample(17, 4, 400))
    assert (np.array(again) == drawn).all() and (np.array(other) != drawn).any()


# ---- straightened by untouched weights

SHAPE = (60, 150)


class Family:
    """Fine-tunes in float32 that touch most weights of each matrix and share their drift.

    drift: the cosine of two fine-tunes; part: how many weights are touched; sizes: how far each one moves.
    """

    def __init__(
        self, parents: Sequence[int | None], seed: int = 0, drift: float = 0.8, part: float = 0.9,
        sizes: Sequence[float] | None = None, matrices: int = 3,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.parents = parents
        common = rng.standard_normal((matrices, *SHAPE))
        models: list[np.ndarray] = []
        for i, parent in enumerate(parents):
            own = rng.standard_normal((matrices, *SHAPE))
            if parent is None:
                models.append((0.05 * own).astype(np.float32))
                continue
            size = 0.05 * (sizes[i] if sizes else 0.5)
            step = size * (math.sqrt(drift) * common + math.sqrt(1 - drift) * own)
            models.append((models[parent] + np.where(rng.random(step.shape) < part, step, 0)).astype(np.float32))
        self.units = [torch.from_numpy(np.stack([m[k] for m in models])) for k in range(matrices)]
        grams = [np.einsum("iab,jab->ij", u.double(), u.double()) for u in self.units]
        self.statistics = compute_pair_statistics(
            [Matrix(f"m{k}", u[0].numel(), u) for k, u in enumerate(self.units)], [np.asarray(g) for g in grams]
        )
        self.without_gradient = WithoutGradient(self.units)
        self.truth = {edge(i, p) for i, p in enumerate(parents) if p is not None}

    def straight(self, edges: set[Edge]) -> set[Edge]:
        return resolve_contradictions(
            edges, self.statistics.information, range(len(self.parents)), self.without_gradient
        )


PARENTS: list[int | None] = [None, 0, 0, 0, 1, 1, 2, 4]


def sisters(seed: int) -> Family:
    """Three of one parent, on the same data; the first hardly moved."""
    return Family([None, 0, 0, 0], seed, drift=0.5, sizes=[0, 0.15, 0.5, 0.5])


def test_shared_drift_is_repaired() -> None:
    """Drift pulls sisters next to the one that hardly moved, the untouched weights put them back."""
    wrong = right = 0
    for seed in range(6):
        family = sisters(seed)
        tree = spanning_tree(family.statistics.information)
        wrong += tree != family.truth
        right += family.straight(tree) == family.truth
    assert wrong == right == 6


def test_right_trees_are_left_alone() -> None:
    for seed in range(3):
        for drift in (0.0, 0.5, 0.9):
            family = Family(PARENTS, seed, drift)
            assert family.straight(family.truth) == family.truth


def test_one_wrong_edge_is_put_right() -> None:
    """All 68 trees that are one edge away from the truth, by information that tells nothing."""
    family = Family(PARENTS, 1, 0.3, part=0.6)
    flat = np.full((8, 8), 1000.0)
    np.fill_diagonal(flat, 0)
    for gone in family.truth:
        around = neighbours(family.truth, 8)
        here = side(around, *gone)
        for i, j in itertools.product(np.flatnonzero(here), np.flatnonzero(~here)):
            tree = family.truth - {gone} | {edge(int(i), int(j))}
            assert resolve_contradictions(tree, flat, range(8), family.without_gradient) == family.truth


def test_members_are_numbers_of_the_whole_set() -> None:
    family = sisters(0)
    unrelated = [torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    together = WithoutGradient([torch.cat([s[:1], u, s[1:]]) for s, u in zip(unrelated, family.units, strict=True)])
    tree = spanning_tree(family.statistics.information)
    assert resolve_contradictions(tree, family.statistics.information, [1, 2, 3, 4], together) == family.truth


def test_weights_of_matrices_decide() -> None:
    """Untouched weights of matrices that a bootstrap left out do not count."""
    family = sisters(0)
    tree, args = (
        spanning_tree(family.statistics.information),
        (family.statistics.information, range(4), family.without_gradient),
    )
    assert (
        resolve_contradictions(tree, *args, np.zeros(3))
        == tree
        != resolve_contradictions(tree, *args, np.array([0.0, 1.0, 0.0]))
    )


class Made(WithoutGradient):
    """With counts out of thin air, whatever they contradict."""

    def __init__(self, seed: int) -> None:
        super().__init__([])
        self.seed = seed

    def shared_by_two(self, a: int, b: int, c: int) -> np.ndarray:
        three = sorted((a, b, c))
        counts = np.random.default_rng([self.seed, *three]).integers(0, 60, 3) * np.random.default_rng(
            [self.seed + 1, *three]
        ).integers(0, 2, 3)
        return np.array([[counts[three.index(x)] for x in (a, b, c)]], dtype=float)


class ReportedEdge(WithoutGradient):
    """One model cannot be between two others, of the rest nothing is known."""

    def __init__(self, against: int | None) -> None:
        super().__init__([])
        self.against = against

    def shared_by_two(self, a: int, b: int, c: int) -> np.ndarray:
        return np.array([[100.0 * (x == self.against) for x in (a, b, c)]])


def test_without_untouched_weights_every_tree_is_left_alone() -> None:
    for seed in range(20):
        edges = random_tree(range(7), seed)
        assert resolve_contradictions(edges, np.full((7, 7), 10.0), range(7), ReportedEdge(None)) == edges


def test_of_two_ways_to_put_it_right_the_more_informative() -> None:
    """The middle one cannot be between: it stays next to the one it shares more with."""
    for more, expected in (((0, 1), {(0, 1), (0, 2)}), ((1, 2), {(1, 2), (0, 2)})):
        information = np.full((3, 3), 95.0)
        information[more] = information[more[::-1]] = 100.0
        information[0, 2] = information[2, 0] = 90.0
        assert resolve_contradictions({(0, 1), (1, 2)}, information, range(3), ReportedEdge(1)) == expected


def test_what_is_straight_stays_so() -> None:
    family = Family(PARENTS, 1, 0.3, part=0.6)
    flat = np.full((8, 8), 1000.0)
    for seed in range(40):
        once = resolve_contradictions(random_tree(range(8), seed), flat, range(8), family.without_gradient)
        assert resolve_contradictions(once, flat, range(8), family.without_gradient) == once


@pytest.mark.parametrize("models", [2, 3, 5, 9, 16])
def test_whatever_the_counts_it_stays_a_tree(models: int) -> None:
    for seed in range(25):
        information = 1000 + symmetric(models, seed) / 1e3 if seed % 2 else symmetric(models, seed)
        edges = random_tree(range(models), seed)
        assert is_tree(resolve_contradictions(edges, information, range(models), Made(seed)), models)


# ---- the root


def random_kin(models: int, seed: int, matrices: int = 2) -> PairStatistics:
    rng = np.random.default_rng(seed)
    base = rng.laplace(size=(matrices, 1, 12, 15))
    units = base + rng.uniform(0.05, 0.8, (matrices, models, 1, 1)) * rng.laplace(size=(matrices, models, 12, 15))
    found = [torch.from_numpy(u).float() for u in units]
    grams = [u.double().flatten(1).numpy() @ u.double().flatten(1).numpy().T for u in found]
    return compute_pair_statistics([Matrix(f"m{k}", 180 * (k + 1), u) for k, u in enumerate(found)], grams)


def by_hand(signals: Signals, edges: set[Edge], members: Sequence[int], top: int) -> np.ndarray:
    """Φ of one root: over all edges and all paths of three, forks plus and chains minus, with networkx's order."""
    graph = nx.Graph(list(edges))
    graph.add_nodes_from(members)
    away = nx.bfs_tree(graph, top)
    total = np.zeros(EDGE + PATH)
    for a, b in away.edges:
        if a >= 0 and b >= 0:
            total[:EDGE] += signals.edge(a, b)
    for b in graph:
        for a, c in itertools.combinations(graph[b], 2):
            if min(a, b, c) >= 0:
                fork = away.has_edge(b, a) and away.has_edge(b, c)
                total[EDGE:] += (1 if fork else -1) * signals.path(a, b, c) / (graph.degree[b] - 1)
    return total


@pytest.mark.parametrize("hidden", [0, 1, 3])
def test_features_of_every_root_by_brute_force(hidden: int) -> None:
    for seed in range(6):
        statistics = random_kin(8, seed)
        signals, members = Signals(statistics), [5, 0, 7, 2, 3, *range(-1, -1 - hidden, -1)]
        edges = random_tree(members, seed)
        found = features(signals, edges, members)
        for i, top in enumerate(members):
            np.testing.assert_allclose(found[i], by_hand(signals, edges, members, top), atol=1e-9)


def test_signals_of_an_edge_change_sign_with_it() -> None:
    signals = Signals(random_kin(5, 0))
    for a, b in itertools.combinations(range(5), 2):
        assert (signals.edge(a, b) == -signals.edge(b, a)).all() and signals.edge(a, b).shape == (EDGE,)
        np.testing.assert_allclose(signals.signs(a, b), -signals.signs(b, a), atol=1e-12)
        assert (np.abs(signals.signs(a, b)) <= 1).all()


def test_paths_read_the_same_from_both_ends() -> None:
    signals = Signals(random_kin(5, 0))
    for a, b, c in itertools.permutations(range(5), 3):
        assert signals.path(a, b, c) == pytest.approx(signals.path(c, b, a), rel=1e-12)


def test_cosines_and_changes_against_numpy() -> None:
    statistics = random_kin(5, 3)
    signals = Signals(statistics)
    x = np.concatenate([m.units.double().flatten(1).numpy() for m in statistics.matrices], 1)
    for a, b, c in itertools.permutations(range(5), 3):
        left, right = x[a] - x[b], x[c] - x[b]
        assert signals.cosine(a, b, c) == pytest.approx(left @ right / np.linalg.norm(left) / np.linalg.norm(right))
        length = [np.linalg.norm(x[k]) for k in (a, b)]
        assert signals.relative_distance(a, b) == pytest.approx(np.linalg.norm(left) / math.sqrt(length[0] * length[1]))


def test_a_signal_of_each_kind_points_the_right_way() -> None:
    """Of a child: a larger norm, heavier tails, a sharper spectrum."""
    signals = Signals(star(1))
    norm, _, kurtosis, entropy = signals.signs(0, 1)
    assert norm == pytest.approx(math.tanh(0.5), abs=0.02), "of a step at right angles, as long as itself"
    assert kurtosis == 1 == entropy
    moved = signals.relative_distance(0, 1)
    np.testing.assert_allclose(signals.edge(0, 1)[:4], signals.signs(0, 1) / (1 + (0.1 / moved) ** 2), rtol=1e-9)
    assert not signals.edge(0, 1)[4:].any(), "of a light fine-tune nothing of this tells who came first"


def star(children: int) -> PairStatistics:
    """Fine-tunes of a random start by steps of low rank and heavy tails."""
    rng = np.random.default_rng(0)
    parent = rng.standard_normal((40, 50))
    steps = [np.outer(rng.laplace(size=40), rng.laplace(size=50)) / 4 for _ in range(children)]
    units = torch.from_numpy(np.stack([parent, *(parent + step for step in steps)])).float()
    flat = units.double().flatten(1).numpy()
    return compute_pair_statistics([Matrix("m", 2000, units)], [flat @ flat.T])


def test_equal_models_have_no_signal() -> None:
    units = torch.randn(1, 10, 12, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1)
    gram = units.double().flatten(1).numpy() @ units.double().flatten(1).numpy().T
    signals = Signals(compute_pair_statistics([Matrix("m", 120, units)], [gram]))
    assert not signals.edge(0, 1).any() and signals.cosine(0, 1, 2) == 0 == signals.relative_distance(0, 1)
    assert root_posterior(signals, {(0, 1)}, [0, 1]).probability == pytest.approx([0.5, 0.5])


def test_a_matrix_that_did_not_change_says_nothing() -> None:
    """Frozen layers count neither for lean nor for kurtosis and entropy, whatever their size."""
    statistics = random_kin(3, 1)
    frozen = statistics.matrices[1].units[:1].repeat(3, 1, 1)
    flat = frozen.double().flatten(1).numpy()
    two = [statistics.matrices[0], Matrix("frozen", 10**6, frozen)]
    alone, with_frozen = (
        Signals(compute_pair_statistics(m, [statistics.grams[0], flat @ flat.T][: len(m)])) for m in (two[:1], two)
    )
    np.testing.assert_allclose(with_frozen.signs(0, 1)[1:], alone.signs(0, 1)[1:], rtol=1e-9)


@pytest.mark.parametrize("hidden", [0, 2])
def test_directions_and_roots_are_shares_of_one(hidden: int) -> None:
    for seed in range(5):
        signals, members = Signals(random_kin(6, seed)), [*range(6), *range(-1, -1 - hidden, -1)]
        edges = random_tree(members, seed)
        found = root_posterior(signals, edges, members)
        assert found.probability.sum() == pytest.approx(1) and (found.probability >= 0).all()
        assert found.order == tuple(members) and found.root == members[int(np.argmax(found.probability))]
        assert found.precedence.keys() == edges | {(b, a) for a, b in edges}
        for a, b in edges:
            graph = nx.Graph(list(edges))
            graph.remove_edge(a, b)
            own = sum(found.probability[members.index(i)] for i in nx.node_connected_component(graph, a))
            assert found.precedence[a, b] == pytest.approx(own)
            assert found.precedence[a, b] + found.precedence[b, a] == pytest.approx(1)


def test_the_root_does_not_depend_on_the_order_of_models() -> None:
    signals, edges = Signals(random_kin(6, 4)), random_tree(range(6), 4)
    straight, turned = root_posterior(signals, edges, range(6)), root_posterior(signals, edges, [3, 1, 5, 0, 2, 4])
    for i, probability in zip(turned.order, turned.probability, strict=True):
        assert straight.probability[i] == pytest.approx(probability)


def test_a_tree_of_two_and_of_one() -> None:
    signals = Signals(random_kin(3, 2))
    found = root_posterior(signals, {(0, 2)}, [2, 0])
    assert found.precedence[0, 2] == pytest.approx(found.probability[1]) and found.probability.sum() == pytest.approx(1)
    assert features(signals, {(0, 2)}, [2, 0])[0] == pytest.approx(-features(signals, {(0, 2)}, [2, 0])[1])
    assert root_posterior(signals, set(), [1]).root == 1 and root_posterior(signals, set(), [1]).precedence == {}


def test_a_known_edge_counts_so_many_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds CERTAIN to the log-odds of its direction, exactly."""
    monkeypatch.setattr("hf_lineage.trees.rooting.CERTAIN", 20.0)
    for seed in range(4):
        signals, edges = Signals(random_kin(5, seed)), random_tree(range(5), seed)
        free = root_posterior(signals, edges, range(5)).precedence
        for a, b in free:
            told = root_posterior(signals, edges, range(5), [(a, b)]).precedence
            shift = math.log(told[a, b] / told[b, a]) - math.log(free[a, b] / free[b, a])
            assert shift == pytest.approx(20.0, abs=1e-6)


def test_known_edges_are_obeyed() -> None:
    """Of two models whatever the signals say; of a family, all that are true at once."""
    for seed in range(10):
        signals = Signals(random_kin(2, seed))
        for pair in ((0, 1), (1, 0)):
            assert root_posterior(signals, {(0, 1)}, [0, 1], [pair]).precedence[pair] > 0.999
    family = Family(PARENTS, 2, 0.3)
    known = list(nx.bfs_tree(nx.Graph(list(family.truth)), 0).edges)
    found = root_posterior(Signals(family.statistics), family.truth, range(8), known)
    assert found.root == 0 and all(found.precedence[pair] > 0.999 for pair in known)


def test_the_root_of_a_star_is_its_middle() -> None:
    found = root_posterior(Signals(star(5)), {(0, k) for k in range(1, 6)}, range(6))
    assert found.root == 0 and found.probability[0] > 0.99


# ---- groups

Test = Callable[[int, int], "float | None"]


def blocks(*sizes: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Information that is high within groups, and each model's group."""
    owner = [k for k, size in enumerate(sizes) for _ in range(size)]
    rng = np.random.default_rng(seed)
    same = np.equal.outer(owner, owner)
    x = np.where(same, rng.uniform(5, 10, same.shape), rng.uniform(0, 1, same.shape))
    return np.tril(x, -1) + np.tril(x, -1).T, owner


def by_owner(owner: Sequence[int], related: float = -40.0, unrelated: float = -0.3) -> Test:
    return lambda i, j: related if owner[i] == owner[j] else unrelated


def joined(information: np.ndarray, test: Test, alpha: float = 0.01, similar: np.ndarray | None = None) -> Grouping:
    return related_groups(information, np.zeros(information.shape, bool) if similar is None else similar, test, alpha)


def test_groups_are_the_related_ones() -> None:
    information, owner = blocks(4, 1, 6, 2, 1)
    found = joined(information, by_owner(owner))
    assert found.groups == [[0, 1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13]] and not found.merge_sources
    assert (
        found.joined_log10_p == pytest.approx(-40 + math.log10(91))
        and found.apart_log10_p == 0.0
        and found.untested_pairs == 0
    )


def test_the_level_is_over_all_pairs() -> None:
    """Just above alpha divided by the number of pairs nothing is joined, just below it is."""
    for models in (2, 5, 20):
        information, pairs = symmetric(models, 0), models * (models - 1) / 2
        for factor, groups in ((1.01, models), (0.99, 1)):
            p = math.log10(0.01 / pairs * factor)
            found = joined(information, lambda i, j, p=p: p)
            assert len(found.groups) == groups
        assert found.joined_log10_p == pytest.approx(math.log10(0.01 * 0.99)) and found.apart_log10_p is None


def test_unrelated_p_values_are_joined_in_one_set_of_a_hundred() -> None:
    """Uniform p-values of ten models that have nothing in common, at α = 10 %, 1,500 times."""
    wrong = 0
    rng = np.random.default_rng(0)
    for seed in range(1500):
        p = np.log10(rng.random((10, 10)))
        wrong += len(joined(symmetric(10, seed % 50), lambda i, j, p=p: p[i, j], 0.1).groups) < 10
    assert 0 < wrong <= 0.1 * 1500


def test_a_chain_is_one_group() -> None:
    """What its ends share fades, but is more than unrelated share."""
    models = 12
    away = np.abs(np.subtract.outer(np.arange(models), np.arange(models)))
    information = np.where(away > 0, 100.0 / np.maximum(away, 1), 0)
    found = joined(information, lambda i, j: -30.0 / abs(i - j))
    assert found.groups == [list(range(models))] and not found.merge_sources


def test_singletons_stay_alone() -> None:
    found = joined(symmetric(6, 0), lambda i, j: -0.5)
    assert found.groups == [[i] for i in range(6)] and found.joined_log10_p is None
    assert joined(np.zeros((1, 1)), lambda i, j: -50.0).groups == [[0]]


@pytest.mark.parametrize("heavy", [0, 1])
def test_a_merge_of_two_unrelated_groups_is_a_link(heavy: int) -> None:
    """It belongs to the group that it has more of, and does not join the two."""
    for seed in range(10):
        information, owner = blocks(4, 3, 1, seed=seed)
        information[7, :4] = information[:4, 7] = 4 + heavy * np.linspace(0, 0.1, 4)
        information[7, 4:7] = information[4:7, 7] = 4.05 + (1 - heavy) * 0.2
        own, other = ([0, 1, 2, 3], [4, 5, 6])[:: -1 if information[7, 4] > information[7, 3] else 1]
        order = np.random.default_rng(seed).permutation(8)
        found = joined(
            information[np.ix_(order, order)],
            lambda i, j, o=order, owner=owner: -40.0 if 7 in (o[i], o[j]) or owner[o[i]] == owner[o[j]] else -0.3,
        )
        members = sorted(sorted(int(order[i]) for i in group) for group in found.groups)
        assert members == sorted([sorted([*own, 7]), other])
        [(merge, source)] = found.merge_sources
        assert order[merge] == 7 and order[source] in other


def test_the_order_of_models_does_not_matter() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        information, owner = blocks(5, 3, 1, 4, seed=seed)
        p = np.where(np.equal.outer(owner, owner), rng.uniform(-40, -2, (13, 13)), rng.uniform(-3, 0, (13, 13)))
        p = np.minimum(p, p.T)
        order = rng.permutation(13)
        straight = joined(information, lambda i, j, p=p: p[i, j])
        turned = joined(information[np.ix_(order, order)], lambda i, j, p=p, o=order: p[o[i], o[j]])
        assert sorted(sorted(int(order[i]) for i in group) for group in turned.groups) == straight.groups
        assert (turned.joined_log10_p, turned.apart_log10_p) == (straight.joined_log10_p, straight.apart_log10_p)


def test_pairs_that_no_test_applies_to_are_joined_by_likeness() -> None:
    information, owner = blocks(3, 2)
    similar = np.equal.outer(owner, owner)
    found = joined(information, lambda i, j: None, similar=similar)
    assert found.groups == [[0, 1, 2], [3, 4]] and found.untested_pairs == 3
    assert found.joined_log10_p is None and found.apart_log10_p is None
    assert joined(information, lambda i, j: -0.3, similar=~similar).groups == [[i] for i in range(5)], "only those"


def test_no_pair_is_tested_twice_and_few_of_two_groups() -> None:
    information, owner = blocks(20, 20)
    asked: list[tuple[int, int]] = []

    def test(i: int, j: int) -> float:
        asked.append((i, j))
        return by_owner(owner)(i, j) or 0.0

    assert len(joined(information, test).groups) == 2
    assert len({*asked}) == len(asked) and all(i < j for i, j in asked)
    across = [pair for pair in asked if owner[pair[0]] != owner[pair[1]]]
    assert len(across) == MAX_TESTS_PER_GROUP_PAIR


def test_two_groups_get_as_many_looks_as_that() -> None:
    """Grouping whose nearest pairs miss the level by chance are joined by the last look, and no later one."""
    for late, groups in ((MAX_TESTS_PER_GROUP_PAIR - 1, 1), (MAX_TESTS_PER_GROUP_PAIR, 2)):
        information, owner = blocks(4, 4)
        pairs = sorted(((i, j) for i in range(4) for j in range(4, 8)), key=lambda p: -information[p])
        told = dict.fromkeys(pairs, -2.5) | {pairs[late]: -30.0}
        found = joined(information, lambda i, j, told=told, o=owner: told.get((i, j), -40.0))
        assert len(found.groups) == groups


def network(seed: int, dead: bool) -> list[torch.Tensor]:
    """Two layers of independent units; most are dead in some."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(48, 32, generator=generator), torch.randn(32, 48, generator=generator)]
    for layer in layers if dead else ():
        layer[torch.rand(len(layer), generator=generator) < 0.85] *= 1e-3
    return layers


def test_unrelated_networks_are_never_joined() -> None:
    """Forty at α = 1 %, dead units in half of them; and each with a child is joined with it and no other."""
    nets = [network(seed, seed % 2 == 1) for seed in range(40)]

    def test(nets: Sequence[Sequence[torch.Tensor]]) -> Test:
        def log10_p(i: int, j: int) -> float | None:
            c = {str(k): unit_products([a], [b]) for k, (a, b) in enumerate(zip(nets[i], nets[j], strict=True))}
            found = pair_test(c.__getitem__, c, 0)
            return None if found is None else found.log10_p

        return log10_p

    information = symmetric(40, 0)
    found = joined(information, test(nets))
    assert found.groups == [[i] for i in range(40)] and found.joined_log10_p is None
    both = [*nets[:4], *([w + 0.3 * v for w, v in zip(net, network(100 + k, False), strict=True)] for k, net in enumerate(nets[:4]))]  # fmt: skip
    near = 1.0 * (np.abs(np.subtract.outer(range(8), range(8))) == 4)
    assert [0, 4] in joined(near, test(both)).groups and [2, 6] in joined(near, test(both)).groups


# ---- mixtures


def vectors(count: int, change: float = 0.1, seed: int = 0, n: int = 5000) -> np.ndarray:
    """Row 0 the base, the others fine-tunes of it."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n)
    return np.stack([base, *(base + change * rng.standard_normal(n) for _ in range(count))])


def test_what_is_put_together_of_two_is_a_pair_with_each() -> None:
    """Of four matrices; a part that was trained since, or a model equal to one of the two, is none."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((4, 50))
    child = base + 1e-6 * rng.standard_normal((4, 50))
    hybrid = np.concatenate([base[:1], child[1:]])
    frozen = np.concatenate([base[:2], base[2:] + 0.1])
    models = np.stack([base, child, hybrid, frozen, child], axis=1)
    found = pieced_together(models @ models.transpose(0, 2, 1))
    assert found == {(2, 0), (2, 1), (2, 3), (2, 4)}  # the frozen one has the base's first two
    trained = hybrid + 1e-5 * rng.standard_normal((4, 50))
    models = np.stack([base, child, trained], axis=1)
    assert not pieced_together(models @ models.transpose(0, 2, 1))


def rounded(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().double().numpy()


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1], [0.4, 0.35, 0.25], [0.3, 0.3, 0.25, 0.15], [0.3, 0.25, 0.2, 0.15, 0.1]])  # fmt: skip
@pytest.mark.parametrize("change", [1.0, 0.1, 1e-3])
def test_an_average_is_found_with_its_sources_and_weights(weights: list[float], change: float) -> None:
    x = vectors(8, change)
    sources = [3, 1, 7, 5, 2][: len(weights)]
    x = np.vstack([x, weights @ x[sources]])
    [found] = mixtures(x @ x.T, range(10))
    told = dict(zip(found.sources, found.weights, strict=True))
    assert found.model == 9 and {*told} == {*sources} and list(found.weights) == sorted(found.weights, reverse=True)
    assert [told[s] for s in sources] == pytest.approx(weights, abs=1e-3)


def test_an_average_in_bfloat16() -> None:
    x = vectors(6, 0.3)
    x = rounded(np.vstack([x, 0.6 * x[2] + 0.4 * x[5]]))
    [found] = mixtures(x @ x.T, range(8))
    assert found.sources == (2, 5) and found.weights == pytest.approx((0.6, 0.4), abs=0.01)


def test_a_slerp_has_more_than_all_of_its_sources() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5000))
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    shares = math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle)
    x = np.stack([a, b, rng.standard_normal(5000), shares[0] * a + shares[1] * b])
    [found] = mixtures(x @ x.T, range(4))
    assert found.model == 3 and found.sources == (0, 1) and found.weights == pytest.approx(shares, abs=1e-6)
    assert sum(found.weights) > 1.2


def test_only_members_take_part() -> None:
    x = vectors(5)
    x = np.vstack([x, 0.5 * (x[1] + x[2])])
    assert mixtures(x @ x.T, [0, 1, 3, 4, 6]) == [] and mixtures(x @ x.T, [1, 6]) == []
    assert [m.model for m in mixtures(x @ x.T, [6, 2, 1])] == [6]


@pytest.mark.parametrize("children", [2, 3, 4, 5, 6, 12])
def test_a_parent_is_no_mixture_of_its_children(children: int) -> None:
    for change in (1.0, 0.1, 1e-3):
        x = vectors(children, change)
        assert mixtures(x @ x.T, range(children + 1)) == []


def test_the_middle_of_a_chain_is_no_mixture() -> None:
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((6, 5000)) * 0.1
        x[0] *= 10
        x = x.cumsum(0)
        assert mixtures(x @ x.T, range(6)) == []


def test_an_average_that_was_tuned_on_is_not_found() -> None:
    x = vectors(5, 0.3)
    later = 0.5 * (x[1] + x[2]) + 0.1 * np.random.default_rng(5).standard_normal(5000)
    x = np.vstack([x, later])
    assert mixtures(x @ x.T, range(7)) == []


def test_a_part_too_small_is_none() -> None:
    x = vectors(4, 0.3)
    x = np.vstack([x, 0.98 * x[1] + 0.02 * x[2]])
    assert mixtures(x @ x.T, range(6)) == [], "a copy of the one with a trace of the other"


def test_zeros_are_no_source_and_no_mixture() -> None:
    x = vectors(3, 0.3)
    x = np.vstack([x, 0 * x[0], 0.5 * (x[1] + x[2])])
    assert {m.model for m in mixtures(x @ x.T, range(6))} <= {5}


# ---- missing ancestors


class Gram:
    """What `Signals` needs of models given as vectors."""

    @staticmethod
    def signals(x: np.ndarray) -> Signals:
        gram = (x @ x.T)[None]
        blank = np.zeros((1, len(x)))
        units = torch.from_numpy(x[:, None, :20]).float()
        return Signals(PairStatistics((Matrix("m", x.shape[1], units),), gram, gram, blank, blank))


def test_three_siblings_without_their_parent_get_one() -> None:
    for seed in range(5):
        x = vectors(3, 0.2, seed)[1:]
        for middle in range(3):
            edges = {edge(middle, other) for other in range(3) if other != middle}
            tree, hidden = insert_hidden_ancestors(edges, range(3), Gram.signals(x))
            assert tree == {(-1, 0), (-1, 1), (-1, 2)} and hidden.keys() == {-1} and {*hidden[-1]} == {0, 1, 2}
            assert hidden[-1][0] == middle


def test_with_their_parent_they_get_none() -> None:
    for drift in (0.0, 0.35):
        rng = np.random.default_rng(1)
        common, base = rng.standard_normal((2, 5000))
        steps = math.sqrt(drift) * common + math.sqrt(1 - drift) * rng.standard_normal((4, 5000))
        x = np.vstack([base, base + 0.2 * steps])
        edges = {(0, k) for k in range(1, 5)}
        assert insert_hidden_ancestors(edges, range(5), Gram.signals(x)) == (edges, {})


def test_a_chain_misses_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((6, 5000)).cumsum(0)
    edges = {(i, i + 1) for i in range(5)}
    assert insert_hidden_ancestors(edges, range(6), Gram.signals(x)) == (edges, {})


def test_two_families_of_siblings_get_an_ancestor_each() -> None:
    """Below one root, two parents that are missing; models in any order, and numbers of a larger set."""
    rng = np.random.default_rng(3)
    top = rng.standard_normal(5000)
    parents = top + 0.5 * rng.standard_normal((2, 5000))
    x = np.vstack([rng.standard_normal((1, 5000)), top, *(p + 0.2 * rng.standard_normal((2, 5000)) for p in parents)])
    edges = {(1, k) for k in range(2, 6)}
    tree, hidden = insert_hidden_ancestors(edges, [5, 1, 2, 4, 3], Gram.signals(x))
    assert tree == {(-1, 1), (-1, 2), (-1, 3), (-2, 1), (-2, 4), (-2, 5)}
    assert hidden == {-1: (1, 2, 3), -2: (1, 4, 5)}


def test_with_unnamed_ancestors_it_is_still_a_tree() -> None:
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((9, 60)) * 0.3 + 1
        tree, hidden = insert_hidden_ancestors(random_tree(range(9), seed), range(9), Gram.signals(x))
        graph = nx.Graph(list(tree))
        assert nx.is_tree(graph) and {*graph} == {*range(9), *hidden}
        assert all({*graph[h]} >= {*near} for h, near in hidden.items() if len(hidden) == 1)


def test_distances_to_the_missing_one_are_the_true_ones() -> None:
    """Orthogonal steps of different lengths from one parent: Gromov's product is exact."""
    lengths = np.array([0.5, 1.0, 2.0, 0.8])
    x = np.diag(lengths) + 3.0
    square = distance2(x @ x.T)
    for near in ((0, 1, 2, 3), (3, 0, 2)):
        found = hidden_distances({-1: near}, square)
        assert found.keys() == {(-1, k) for k in near}
        assert [found[-1, k] for k in near] == pytest.approx(np.square(lengths[[*near]]))


def test_distances_to_the_ancestor_of_two_are_halves() -> None:
    square = np.array([[0.0, 6.0], [6.0, 0.0]])
    assert hidden_distances({-1: (0, 1)}, square) == {(-1, 0): 3.0, (-1, 1): 3.0}


def test_a_distance_is_never_negative() -> None:
    square = np.array([[0.0, 1, 1], [1, 0, 9], [1, 9, 0]])
    assert hidden_distances({-1: (0, 1, 2)}, square)[-1, 0] == 0.0


def test_a_fine_tune_of_a_merge_and_a_second_merge_join_nothing() -> None:
    """Two groups; 6 is made of both, 7 descends from 6, 8 is made of both again."""
    information = np.full((9, 9), 1.0)
    for group in ((0, 1, 2), (3, 4, 5)):
        information[np.ix_(group, group)] = 50.0
    for merge, heavy in ((6, 1), (8, 2)):
        information[merge, :] = information[:, merge] = 20.0
        information[merge, heavy] = information[heavy, merge] = 40.0
    information[7, :] = information[:, 7] = 15.0
    information[6, 7] = information[7, 6] = 60.0
    np.fill_diagonal(information, 0.0)
    unrelated = {(i, j) for i in (0, 1, 2) for j in (3, 4, 5)}
    found = joined(information, lambda i, j: -0.3 if (min(i, j), max(i, j)) in unrelated else -40.0)
    assert sorted(map(set, found.groups), key=min) == [{0, 1, 2, 6, 7, 8}, {3, 4, 5}]
    assert {merge for merge, _ in found.merge_sources} >= {6} and 7 not in {merge for merge, _ in found.merge_sources}


def test_an_ancestor_that_is_in_the_set_is_not_missing() -> None:
    """The spanning tree hung two siblings on a third: they go to their parent, who is there."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal(5000)
    x = np.vstack([base, base + 0.2 * rng.standard_normal((3, 5000))])
    strung = {(0, 1), (1, 2), (1, 3)}
    assert insert_hidden_ancestors(strung, range(4), Gram.signals(x)) == ({(0, 1), (0, 2), (0, 3)}, {})
    _, hidden = insert_hidden_ancestors({(0, 1), (0, 2)}, range(3), Gram.signals(x[1:]))
    assert len(hidden) == 1, "without it, it is"


# ---- stars


def fine_tunes(seed: int, drift: float, models: int = 8, light: float = 0.003) -> np.ndarray:
    """Row 0 the base, the others plain fine-tunes of it, of very different sizes, with drift in common."""
    rng = np.random.default_rng(seed)
    base, common = rng.standard_normal((2, 5000))
    size = np.exp(rng.uniform(math.log(light), math.log(0.1), models - 1))[:, None]
    own = rng.standard_normal((models - 1, 5000))
    return np.vstack([base, base + size * (math.sqrt(drift) * common + math.sqrt(1 - drift) * own)])


@pytest.mark.parametrize("drift", [0.0, 0.1, 0.2, 0.35])
def test_plain_fine_tunes_of_one_base_are_a_star(drift: float) -> None:
    """By distance alone most of them hang on a lighter sibling."""
    wrong = 0
    for seed in range(10):
        signals = Gram.signals(fine_tunes(seed, drift))
        strung = spanning_tree(1 / (1e-9 + signals.squared_distances))
        wrong += len(strung - {(0, k) for k in range(1, 8)})
        assert hang_on_centres(strung, range(8), signals) == {(0, k) for k in range(1, 8)}
        assert not undecided_edges({(0, k) for k in range(1, 8)}, range(8), signals)
    assert wrong <= 2 if not drift else wrong > 20


def test_a_chain_is_no_star() -> None:
    x = np.random.default_rng(0).standard_normal((6, 5000)).cumsum(0)
    edges = {(i, i + 1) for i in range(5)}
    assert hang_on_centres(edges, range(6), Gram.signals(x)) == edges
    assert star_centre(distance2(x @ x.T)) is None and star_centre(np.zeros((5, 5))) is None
    assert star_centre(distance2(x[:3] @ x[:3].T)) is None, "of three, one cosine says nothing"


def test_what_may_be_either_is_undecided() -> None:
    """A light sibling between the base and a heavy one, where others are no star: both edges explain it as well."""
    rng = np.random.default_rng(0)
    base, common, *own = rng.standard_normal((6, 5000))
    light, heavy = 0.01 * (0.5 * common + own[0]), 0.3 * (0.5 * common + own[1])
    x = np.vstack([base, base + light, base + heavy, base + heavy + 0.3 * own[2]])
    chain = {(0, 1), (1, 2), (2, 3)}
    assert undecided_edges(chain, range(4), Gram.signals(x)) == {(1, 2)}


# ---- no model descends from itself


@pytest.mark.parametrize("seed", range(30))
def test_no_cycle_is_left(seed: int) -> None:
    """Any branches at all, merges among them: what is left directed has no cycle, what had none stays as it was."""
    rng = np.random.default_rng(seed)
    pairs = {(int(a), int(b)) for a, b in rng.integers(0, 7, (12, 2)) if a != b}
    merges = {b for b in range(7) if rng.random() < 0.3}
    branches = [Branch(a, b, float(rng.uniform(0.5, 1)) if rng.random() < 0.8 or b in merges else None, 0.9, b in merges)
                for a, b in sorted(pairs)]  # fmt: skip
    kept = without_cycles(branches)
    directed = [(b.parent, b.child) for b in kept if b.direction is not None]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(directed)) and not descent_cycle(directed)
    assert [(b.parent, b.child) for b in kept] == [(b.parent, b.child) for b in branches]
    before = nx.DiGraph([(b.parent, b.child) for b in branches if b.direction is not None])
    tangled = {node for part in nx.strongly_connected_components(before) if len(part) > 1 for node in part}
    assert all(
        one == other for one, other in zip(kept, branches, strict=True) if not {one.parent, one.child} <= tangled
    )


def test_a_source_is_never_below_its_merge() -> None:
    """4 is made of 0 and 1, 3 descends from it; 2 is nearest to the merge, too, but has a source behind it."""
    information = np.array([[0, 1, 6, 5, 9], [1, 0, 7, 4, 0], [6, 7, 0, 2, 8], [5, 4, 2, 0, 9], [9, 0, 8, 9, 0]], float)
    tree = {(0, 2), (1, 2), (0, 3), (0, 4)}
    assert below_merges(tree, {4: [0, 1]}, information) == {(0, 2), (1, 2), (3, 4), (0, 4)}
    assert below_merges({(0, 2), (1, 2), (0, 3)}, {}, information[:4, :4]) == {(0, 2), (1, 2), (0, 3)}


@pytest.mark.parametrize("weight", [0.5, 0.35])
@pytest.mark.parametrize("tuned", [False, True])
def test_a_merge_of_siblings_does_not_come_between_them_and_their_parent(weight: float, tuned: bool) -> None:
    """½ child + ½ sibling is nearer to the parent than they are."""
    rng = np.random.default_rng(0)
    parent = rng.standard_normal((30, 60))
    one, other, third = (parent + 0.2 * rng.standard_normal((30, 60)) for _ in range(3))
    merge = weight * one + (1 - weight) * other
    models = [parent, one, other, third, merge] + [merge + 0.15 * rng.standard_normal((30, 60))] * tuned
    units = torch.from_numpy(np.stack(models))
    flat = units.flatten(1).numpy()
    statistics = compute_pair_statistics([Matrix("m", 1800, units)], [flat @ flat.T])
    built = build_trees(statistics, lambda i, j: -50.0, lambda i, j: None, 0.01)
    found = {edge(b.parent, b.child) for b in built.branches}
    assert found == {(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), *([(4, 5)] if tuned else [])}
    assert {(b.parent, b.child) for b in built.branches if b.merge} == {(1, 4), (2, 4)}


def test_a_rule_that_is_contradicted_leaves_an_edge_undirected() -> None:
    """0 and 1 can both only be older than 2: one of the two edges of a tree must be wrong, and is not turned round."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 20, 40))
    units = torch.from_numpy(
        np.concatenate([base + 0.1 * k * rng.standard_normal((1, 20, 40)) for k in range(3)])
    ).float()
    flat = units.flatten(1).double().numpy()
    statistics = compute_pair_statistics([Matrix("m", 800, units)], [flat @ flat.T])
    older = {(0, 2): True, (2, 0): False, (1, 2): True, (2, 1): False}
    built = build_trees(statistics, lambda i, j: -50.0, lambda i, j: older.get((i, j)), 0.01)
    assert not [b for b in built.branches if b.direction is not None and older.get((b.parent, b.child)) is False]
