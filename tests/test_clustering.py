"""Clustering and fake initialisations against real weights, real draws, textbook loops and symmetry."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.cluster import KMeans, MeanShift
from sklearn.metrics import silhouette_score

from hf_lineage.trees import clustering
from hf_lineage.trees.baselines import by_distance, by_norms, mother
from hf_lineage.trees.clustering import (
    ALGORITHMS,
    DRAWS,
    PROXIES,
    RHOS,
    RULES,
    Points,
    after_clustering,
    along_clustering,
    fake_distances,
    majority,
    minimum,
    vote,
)

pytestmark = pytest.mark.integration

SHAPES = ((24, 16), (12, 24), (8, 4, 3, 3))
SIZES = [math.prod(shape) for shape in SHAPES]
ALONG = [name for name, how in ALGORITHMS.items() if how.step]
METHODS = [(after_clustering, name) for name in ALGORITHMS] + [(along_clustering, name) for name in ALONG]
INIT = {  # the same proxies by PyTorch's own hand
    "uniform": lambda w, g: torch.nn.init.kaiming_uniform_(w, a=math.sqrt(5), generator=g),  # Linear.reset_parameters
    "gaussian": lambda w, g: torch.nn.init.normal_(w, std=0.02, generator=g),
    "kaiming": lambda w, g: torch.nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g),
    "xavier": lambda w, g: torch.nn.init.xavier_uniform_(w, generator=g),
}


def points(x: np.ndarray) -> Points:
    """From models as rows, (M, n)."""
    parts = np.split(x, np.cumsum(SIZES)[:-1], axis=1)
    return Points(tuple(part @ part.T for part in parts), SHAPES)


def stars(
    families: int = 3, children: int = 3, step: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, list[int | None]]:
    """Parents at norm 10 and children `step`·10 away, at right angles to them; and the true parents."""
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    parents: list[int | None] = []
    for _ in range(families):
        parent = rng.normal(size=sum(SIZES))
        parent *= 10 / np.linalg.norm(parent)
        at = len(rows)
        rows.append(parent)
        parents.append(None)
        for _ in range(children):
            delta = rng.normal(size=len(parent))
            delta -= (delta @ parent) / 100 * parent
            rows.append(parent + delta * step * 10 / np.linalg.norm(delta))
            parents.append(at)
    return np.array(rows), parents


def partition(parents: list[int | None]) -> set[frozenset[int]]:
    """Who is with whom, of stars."""
    found: dict[int, set[int]] = {}
    for i, parent in enumerate(parents):
        found.setdefault(i if parent is None else parent, set()).add(i)
    return {frozenset(members) for members in found.values()}


def of_labels(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_points_have_the_distances_of_the_weights() -> None:
    x, _ = stars()
    x[5] = x[4]
    known = points(x)
    direct = ((x[:, None] - x[None]) ** 2).sum(2)
    at = known.coordinates
    assert np.allclose(known.gram, x @ x.T) and np.allclose(known.norms2, (x**2).sum(1))
    assert np.allclose(known.distance2, direct, atol=1e-10) and (known.distance2 >= 0).all()
    assert np.allclose(((at[:, None] - at[None]) ** 2).sum(2), direct, atol=1e-9) and at.shape[1] < len(x)
    assert points(x[:1]).coordinates.shape == points(x[[0, 0, 0]]).coordinates[:1].shape == (1, 1)


def test_another_order_or_rotation_has_the_same_coordinates() -> None:
    """No axis changes its sign; and the methods work in one and the same order."""
    x = blurred(0)
    turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(x.shape[1],) * 2))[0]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(x))
        assert np.allclose(points(x[order]).coordinates, points(x).coordinates[order])
        assert np.allclose(points(turned[order]).coordinates, points(x).coordinates[order])
        (ours, mine), (theirs, others) = clustering._canonical(points(x)), clustering._canonical(points(x[order]))
        assert (order[others] == mine).all() and np.allclose(ours.gram, theirs.gram, rtol=1e-14)


def test_points_refuse_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="one shape per Gram matrix"):
        Points((np.eye(2),), ())
    with pytest.raises(ValueError, match="of 2 models"):
        Points((np.eye(2), np.eye(3)), SHAPES[:2])
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        fake_distances(Points((np.eye(2),), ((3,),)), "kaiming", 1, 0)


@pytest.mark.parametrize("proxy", PROXIES)
def test_fake_distances_have_the_law_of_real_draws(proxy: str) -> None:
    """Mean, covariance and the rate at which i is nearer than j, of real z, of simulated ones, and in closed form."""
    x, _ = stars(families=1, children=3, step=0.01)
    x /= 10  # so that a draw can go either way
    known, draws = points(x), 3000
    generator = torch.Generator().manual_seed(1)
    z = np.hstack([
        torch.stack([INIT[proxy](torch.empty(shape), generator).flatten() for _ in range(draws)]).double().numpy()
        for shape in SHAPES
    ])  # fmt: skip
    real = (x**2).sum(1) - 2 * z @ x.T  # ‖x − z‖² − ‖z‖²
    assert np.allclose(real[0], ((x - z[0]) ** 2).sum(1) - (z[0] ** 2).sum())
    covariance = 4 * sum(PROXIES[proxy](shape) ** 2 * gram for shape, gram in zip(SHAPES, known.grams, strict=True))
    for sample in (real, fake_distances(known, proxy, draws, seed=2)):
        assert sample.shape == (draws, 4)
        error = np.sqrt(np.diag(covariance) / draws)
        assert (np.abs(sample.mean(0) - known.norms2) < 5 * error).all()
        assert np.allclose(np.cov(sample.T), covariance, rtol=5 * math.sqrt(2 / draws))
        for i, j in itertools.permutations(range(4), 2):
            spread = math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])  # 2·sd⟨xᵢ − xⱼ, z⟩
            rate = norm.cdf((known.norms2[j] - known.norms2[i]) / spread)
            assert (sample[:, i] < sample[:, j]).mean() == pytest.approx(rate, abs=5 * 0.5 / math.sqrt(draws))


def test_a_proxy_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform, gaussian, kaiming, xavier"):
        fake_distances(points(stars()[0]), "orthogonal", 1, 0)


def test_votes_against_a_loop() -> None:
    distances = np.random.default_rng(0).normal(size=(200, 5))
    distances[:7, 2] = distances[:7, 4] = -9.0  # a tie goes to the first
    counts = [0] * 5
    for row in distances.tolist():
        counts[row.index(min(row))] += 1
    assert vote(distances).tolist() == counts and sum(counts) == 200
    assert majority(distances) == counts.index(max(counts))
    single = min((value, i) for row in distances.tolist() for i, value in enumerate(row))
    assert minimum(distances) == single[1] == 2


def test_majority_and_minimum_can_disagree() -> None:
    """One lucky draw is all that the minimum sees."""
    distances = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, -5.0]])
    assert (majority(distances), minimum(distances)) == (0, 1)


def test_in_expectation_the_vote_compares_norms() -> None:
    x, _ = stars(families=1, children=5)
    x *= np.linspace(1.0, 1.2, 6)[[3, 1, 0, 5, 2, 4], None]
    pooled = np.vstack([fake_distances(points(x), proxy, DRAWS, 0) for proxy in PROXIES])
    assert majority(pooled) == minimum(pooled) == (x**2).sum(1).argmin()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("method", "algorithm"), METHODS)
def test_separate_families_are_found_with_their_parents(method, algorithm: str, rule: str) -> None:
    for seed in range(2):
        x, parents = stars(seed=seed)
        assert method(points(x), algorithm, rule=rule, seed=seed) == parents
    if algorithm != "meanshift":
        assert method(points(x), algorithm, clusters=3, rule=rule) == parents


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("algorithm", ALONG)
def test_every_probability_finds_separate_families(algorithm: str, rho: float) -> None:
    x, parents = stars(children=4, step=0.2)
    assert along_clustering(points(x), algorithm, rho=rho) == parents


def blurred(seed: int) -> np.ndarray:
    """Families that overlap: what a method does shows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 2)) * 3
    x = np.zeros((18, sum(SIZES)))
    x[:, [0, SIZES[0]]] = np.repeat(centres, 6, axis=0) + rng.normal(size=(18, 2)) * 1.5 + 20
    return x


def guided(x: np.ndarray, how: clustering.Algorithm, setting: float, distances: np.ndarray) -> clustering._Guided:
    return clustering._Guided(x, how, setting, distances, "majority")


@pytest.mark.parametrize("seed", range(4))
def test_k_means_in_rounds_without_parents_is_k_means(seed: int) -> None:
    """With ρ = 0 from the same start, scikit-learn's own run ends in the same clusters."""
    x = points(blurred(seed)).coordinates
    how, none = ALGORITHMS["kmeans"], np.zeros((1, 18))
    ours = clustering._rounds(guided(x, how, 3, none), 0.0, seed)
    assert how.start is not None
    theirs = KMeans(3, init=how.start(x, 3, seed), n_init=1, tol=0).fit(x)
    assert of_labels(ours) == of_labels(theirs.labels_)
    assert clustering._within(x, ours) == pytest.approx(theirs.inertia_ / (x**2).sum())


@pytest.mark.parametrize("seed", range(4))
def test_k_means_in_rounds_with_parents_against_a_loop(seed: int) -> None:
    """With ρ = 1 every centre is a parent: assign, take the member that wins most draws, repeat."""
    known = points(blurred(seed))
    x, how = known.coordinates, ALGORITHMS["kmeans"]
    distances = np.vstack([fake_distances(known, proxy, DRAWS, seed) for proxy in PROXIES])
    assert how.start is not None
    centres, before = how.start(x, 3, seed), None
    while True:
        labels = np.array([min(range(3), key=lambda c: float(((row - centres[c]) ** 2).sum())) for row in x])
        if before is not None and (labels == before).all():
            break
        before = labels
        for c in range(3):
            members = np.flatnonzero(labels == c)
            wins = [0] * len(members)
            for draw in distances[:, members]:
                wins[int(draw.argmin())] += 1
            centres[c] = x[members[int(np.argmax(wins))]]
    assert of_labels(clustering._rounds(guided(x, how, 3, distances), 1.0, seed)) == of_labels(labels)


@pytest.mark.parametrize("seed", range(3))
def test_mean_shift_in_rounds_without_parents_is_mean_shift(seed: int) -> None:
    x = points(stars(seed=seed)[0]).coordinates
    ours = clustering._rounds(guided(x, ALGORITHMS["meanshift"], 4.5, np.zeros((1, 16))), 0.0, seed)
    assert of_labels(ours) == of_labels(MeanShift(bandwidth=4.5).fit(x).labels_)


@pytest.mark.parametrize("algorithm", ALONG)
def test_the_probability_is_the_best_of_its_grid(algorithm: str) -> None:
    """Found again from outside, the smallest of equals: nearest to the parents, or of the highest silhouette."""
    for seed in range(2):
        known = points(blurred(seed)[::2])
        scores = []
        for rho in RHOS:
            parents = along_clustering(known, algorithm, rho=rho, seed=seed)
            labels = [i if parent is None else parent for i, parent in enumerate(parents)]
            x = known.coordinates
            inside = 1 < len(set(labels)) < len(labels)
            fit = round(silhouette_score(x, labels), 9) if inside else 0.0
            if algorithm == "kmeans":
                fit = -round(((x - x[labels]) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), 9)
            scores.append((fit, -rho, parents))
        assert along_clustering(known, algorithm, seed=seed) == max(scores, key=lambda s: s[:2])[2]


def test_guided_rounds_find_families_that_overlap() -> None:
    """Steps longer than the distance between parents, who are shorter: means lie between the families, parents do not."""
    right = {"after": 0, "along": 0}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        parents = rng.standard_normal((4, 20))
        children = [1.15 * parent + 1.5 * rng.standard_normal(20) for parent in parents for _ in range(5)]
        known = points(np.array([*parents, *children]))
        for name, method in (("after", after_clustering), ("along", along_clustering)):
            found = method(known, "kmeans", clusters=4)
            right[name] += sum(found[4 + i] == i // 5 for i in range(20))
    assert right["along"] > right["after"]


def test_of_equally_good_ones_the_smaller_probability_is_taken(monkeypatch) -> None:
    """Every probability with clusters of its own, two of them equally good."""
    scores = {0.0: 0.1, 0.25: 0.5, 0.5: 0.2, 0.75: 0.5, 1.0: 0.3}
    monkeypatch.setattr(clustering, "_rounds", lambda guided, rho, seed: np.array([rho]))
    monkeypatch.setattr(clustering, "_within", lambda x, labels: 0.0)
    monkeypatch.setattr(clustering._Guided, "score", lambda self, labels: scores[float(labels[0])])
    nothing = np.zeros((1, 1))
    assert clustering._along(guided(nothing, ALGORITHMS["kmeans"], 2, nothing), None, 0) == [0.25]


def test_the_number_of_clusters_is_that_of_the_highest_silhouette() -> None:
    x, _ = stars(families=6, children=2)
    at = points(x).coordinates
    best = max(range(2, 18), key=lambda k: silhouette_score(at, KMeans(k, n_init=10, random_state=0).fit(at).labels_))
    assert best == 6 == sum(parent is None for parent in after_clustering(points(x), "kmeans"))


@pytest.mark.parametrize(("method", "algorithm"), METHODS)
class TestSymmetry:
    def test_scaling_all_weights_leaves_the_clusters(self, method, algorithm: str) -> None:
        for x, scored in ((stars()[0], method), (blurred(1)[::2], after_clustering)):
            assert partition(scored(points(x * 7e-3), algorithm)) == partition(scored(points(x), algorithm))

    def test_rotating_a_matrix_changes_nothing(self, method, algorithm: str) -> None:
        x, parents = stars()
        rng = np.random.default_rng(0)
        parts = np.split(x, np.cumsum(SIZES)[:-1], axis=1)
        turned = np.hstack([part @ np.linalg.qr(rng.normal(size=(part.shape[1],) * 2))[0] for part in parts])
        assert method(points(turned), algorithm) == parents
        for proxy in PROXIES:
            one, other = (fake_distances(points(y), proxy, 9, 0) for y in (x, turned))
            assert np.allclose(one, other, rtol=1e-6)

    def test_rotating_across_matrices_leaves_the_clusters(self, method, algorithm: str) -> None:
        """Only the proxies know which matrix an entry belongs to."""
        x, _ = stars()
        turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(x.shape[1],) * 2))[0]
        assert partition(method(points(turned), algorithm)) == partition(method(points(x), algorithm))

    def test_the_order_of_the_models_does_not_matter(self, method, algorithm: str) -> None:
        x = np.vstack([stars(2)[0], blurred(0)[::2]])
        found = method(points(x), algorithm)
        order = np.random.default_rng(0).permutation(len(x))
        again = method(points(x[order]), algorithm)
        renamed = {int(order[i]): None if p is None else int(order[p]) for i, p in enumerate(again)}
        assert [renamed[i] for i in range(len(x))] == found

    def test_the_seed_decides_and_nothing_else(self, method, algorithm: str) -> None:
        known = points(blurred(2)[::2])
        found = []
        for state in (1, 2):
            np.random.seed(state)
            before = np.random.get_state()[1].copy()
            found.append(method(known, algorithm, seed=5))
            assert (np.random.get_state()[1] == before).all()
        assert found[0] == found[1]

    def test_one_model(self, method, algorithm: str) -> None:
        assert method(points(stars()[0][:1]), algorithm) == [None]

    def test_two_models(self, method, algorithm: str) -> None:
        x, _ = stars(families=2, children=1)
        assert method(points(x[[1, 0]]), algorithm) == [1, None]
        assert method(points(x[[0, 2]]), algorithm) == [None, None]

    def test_copies(self, method, algorithm: str) -> None:
        x, _ = stars()
        assert method(points(x[[0] * 5]), algorithm) == [None, 0, 0, 0, 0]
        twice = method(points(x[[0, 4, 0, 4, 0]]), algorithm)
        assert twice[:4] == [None, None, 0, 1]
        # copies differ by rounding, which a bandwidth next to nothing may see on some processors
        assert twice[4] == 0 or algorithm == "meanshift"
        if algorithm != "meanshift":
            assert method(points(x[[0] * 5]), algorithm, clusters=3) == [None, 0, 0, 0, 0]

    def test_one_outlier(self, method, algorithm: str) -> None:
        x, _ = stars(families=2, children=5)
        assert method(points(x[:7]), algorithm) == [None, 0, 0, 0, 0, 0, None]

    def test_one_family(self, method, algorithm: str) -> None:
        """The parent and its children have no structure, and are nearer to one another than to the origin."""
        x, parents = stars(families=1, children=6)
        assert method(points(x), algorithm) == parents

    def test_strangers(self, method, algorithm: str) -> None:
        x, _ = stars(families=7, children=0)
        assert method(points(x), algorithm) == [None] * 7

    def test_what_is_not_known_is_refused(self, method, algorithm: str) -> None:
        known = points(stars()[0])
        for arguments, options, words in (
            (("dbscan",), {}, "kmeans, meanshift, agglomerative"),
            ((algorithm,), {"rule": "median"}, "majority, minimum"),
            ((algorithm,), {"clusters": 17}, "leave `clusters` out" if algorithm == "meanshift" else "1 to 12"),
        ):
            with pytest.raises(ValueError, match=words):
                method(known, *arguments, **options)


def test_rounds_need_an_algorithm_that_has_them_and_a_probability() -> None:
    with pytest.raises(ValueError, match="goes in rounds"):
        along_clustering(points(stars()[0]), "agglomerative")
    with pytest.raises(ValueError, match=r"got 1\.5"):
        along_clustering(points(stars()[0]), "kmeans", rho=1.5)


@pytest.mark.parametrize("clusters", [1, 12])
def test_one_cluster_and_as_many_as_models(clusters: int) -> None:
    x, _ = stars()
    for method in (after_clustering, along_clustering):
        assert sum(p is None for p in method(points(x), "kmeans", clusters=clusters)) == clusters


def path(steps: int, seed: int = 0) -> np.ndarray:
    """A model, its fine-tune, the fine-tune of that, …: every step at right angles to all before."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(sum(SIZES), steps + 1)))[0].T
    return np.cumsum(basis * np.array([10.0] + [1.0] * steps)[:, None], axis=0)


def test_distances_and_norms_on_known_trees() -> None:
    line, (x, parents) = path(4), stars(families=2)
    assert by_distance(points(line), [range(5)]) == [None, 0, 1, 2, 3]
    assert by_norms(points(line), [range(5)]) == [None, 0, 0, 0, 0]
    groups = [[3, 2, 1, 0], [4, 6, 5, 7]]
    assert by_distance(points(x), groups) == by_norms(points(x), groups) == parents
    assert by_distance(points(x), [[0, 1], [], [5]]) == by_norms(points(x), [[0, 1], [], [5]]) == [None, 0] + [None] * 6
    assert by_distance(points(x[[0, 0, 0]]), [[0, 1, 2]]) == [None, 0, 0]


def cheapest(cost: np.ndarray) -> float:
    """Of all ways to give every model but one a parent without a circle."""
    best, size = math.inf, len(cost)
    for parents in itertools.product(range(size), repeat=size):
        roots = [i for i in range(size) if parents[i] == i]
        if len(roots) != 1:
            continue
        ways = np.arange(size)
        for _ in range(size):
            ways = np.array(parents)[ways]
        if (ways == roots[0]).all():
            best = min(best, sum(cost[parents[i], i] for i in range(size) if i != roots[0]))
    return best


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("seed", range(4))
def test_mother_finds_the_cheapest_arborescence(seed: int, sign: int) -> None:
    rng = np.random.default_rng(seed)
    x, kurtosis = rng.normal(size=(5, sum(SIZES))), rng.normal(size=5)
    distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    cost = distance.copy()
    for i, j in itertools.permutations(range(5), 2):
        rises = kurtosis[j] > kurtosis[i]
        if rises == (sign == -1):
            cost[i, j] += 0.3 * distance.sum() / 25
    parents = mother(points(x), kurtosis, [range(5)], sign=sign)
    assert parents.count(None) == 1
    assert sum(cost[p, i] for i, p in enumerate(parents) if p is not None) == pytest.approx(cheapest(cost))


def test_mother_follows_kurtosis() -> None:
    line = points(path(3))
    assert mother(line, [4.0, 3.0, 2.0, 1.0], [range(4)]) == [None, 0, 1, 2]
    assert mother(line, [4.0, 3.0, 2.0, 1.0], [range(4)], sign=1) == [1, 2, 3, None]
    assert mother(line, [4.0, 3.0, 2.0, 1.0], [[0, 1], [2], []]) == [None, 0, None, None]
    with pytest.raises(ValueError, match="of 4 models, got 2"):
        mother(line, [1.0, 2.0], [range(4)])
