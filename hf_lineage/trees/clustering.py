"""Neural Phylogeny's learning-free methods: cluster the models, then ask a fake initialisation who came first.

K-means, mean shift, agglomerative clustering and distances to random points depend on inner products alone, so all of
it works on Gram matrices: with G = Σₜ Gₜ over the matrices t of the trunk, d²ᵢⱼ = Gᵢᵢ + Gⱼⱼ − 2Gᵢⱼ, and for a random z
whose entries in matrix t are independent with mean 0 and variance σₜ²

    ‖xᵢ − z‖² − ‖z‖² = Gᵢᵢ − 2⟨xᵢ, z⟩,    cov(⟨xᵢ, z⟩, ⟨xⱼ, z⟩) = Σₜ σₜ² (Gₜ)ᵢⱼ.

In expectation the nearer of two models is the one of smaller norm; it wins a draw with probability
Φ((‖xⱼ‖² − ‖xᵢ‖²) / (2·sd⟨xᵢ − xⱼ, z⟩)). Neural Phylogeny: ICLR 2025; docs/methods.md, *Phylogeny*.

What was left open there is settled without the truth: how many clusters, the bandwidth and of mean shift the mixing
probability are those of the highest silhouette (Rousseeuw 1987), the mean over models of (b − a)/max(a, b).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import ParamSpec, TypeVar

import numpy as np

from ..errors import MissingExtraError
from ..weights.permutation_test import seed_of
from .pair_statistics import distance2

P = ParamSpec("P")
T = TypeVar("T")

NOTHING = 1e-13  # of the largest squared norm: rounding
DRAWS = 100  # fake initialisations of each proxy
ROUNDS = 50  # of a clustering, at most
STARTS = 10  # of k-means
STRUCTURE = 0.25  # a silhouette up to which "no substantial structure" was found (Kaufman & Rousseeuw 1990, ch. 2)
QUANTILES = (0.1, 0.2, 0.3, 0.5)  # of the distances, for mean shift's bandwidth; scikit-learn's own is 0.3
RHOS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Points:
    """M aligned models as points, given by the inner products of their matrices (raw weights, float64).

    grams: one (M, M) per matrix of the trunk, ⟨xᵢ, xⱼ⟩ of the flattened weights.  shapes: of the matrices, (out, in,
    *kernel). Raises ValueError where the two do not match.
    """

    grams: tuple[np.ndarray, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.grams or len(self.grams) != len(self.shapes):
            raise ValueError(f"Expected one shape per Gram matrix, got {len(self.grams)} and {len(self.shapes)}.")
        for gram in self.grams:
            if gram.shape != (len(self.grams[0]),) * 2:
                raise ValueError(f"Expected Gram matrices of {len(self.grams[0])} models, got one of {gram.shape}.")

    @property
    def gram(self) -> np.ndarray:
        """Inner products of the whole models, (M, M)."""
        return np.sum(self.grams, axis=0)

    @property
    def norms2(self) -> np.ndarray:
        """‖xᵢ‖², (M,)."""
        return np.diag(self.gram).copy()

    @property
    def distance2(self) -> np.ndarray:
        """‖xᵢ − xⱼ‖² ≥ 0, (M, M)."""
        return distance2(self.gram)

    @property
    def coordinates(self) -> np.ndarray:
        """Points with the same distances as the models, around their mean: (M, ≤ M), at least one column.

        Classical scaling (Torgerson 1952): X Xᵀ = H G H with H = I − 11ᵀ/M; directions of rounding alone are left out.
        """
        gram = self.gram
        centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
        values, vectors = np.linalg.eigh((centred + centred.T) / 2)
        kept = values > NOTHING * len(gram) * max(float(np.diag(gram).max()), 0.0)
        if not kept.any():
            return np.zeros((len(gram), 1))
        values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
        # an eigenvector's sign means nothing, but scikit-learn breaks ties by coordinates
        largest = vectors[np.abs(vectors).argmax(0), np.arange(len(values))]
        return vectors * np.sign(largest) * np.sqrt(values)


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        raise ValueError(f"Expected the shape of a matrix or kernel, (out, in, *kernel), got {shape}.")
    return shape[1] * math.prod(shape[2:]), shape[0] * math.prod(shape[2:])


# name → standard deviation of one entry, from a matrix's shape; fans as in torch.nn.init
PROXIES: dict[str, Callable[[tuple[int, ...]], float]] = {
    "uniform": lambda shape: math.sqrt(1 / (3 * _fans(shape)[0])),  # U(±1/√fan_in), PyTorch's Linear and Conv
    "gaussian": lambda shape: 0.02,  # transformers' initializer_range
    "kaiming": lambda shape: math.sqrt(2 / _fans(shape)[0]),  # N(0, 2/fan_in), He et al. 2015
    "xavier": lambda shape: math.sqrt(2 / sum(_fans(shape))),  # U(±√(6/(fan_in + fan_out))), Glorot & Bengio 2010
}


def fake_distances(points: Points, proxy: str, draws: int, seed: int) -> np.ndarray:
    """‖xᵢ − z‖² − ‖z‖² = ‖xᵢ‖² − 2⟨xᵢ, z⟩ for `draws` fake initialisations z of a proxy: (draws, M).

    z has independent entries of mean 0 and variance σₜ² in matrix t, so (⟨xᵢ, z⟩)ᵢ has mean 0 and covariance
    Σₜ σₜ² Gₜ. Its law is Gaussian: exactly for the proxies "gaussian" and "kaiming", by the central limit theorem for
    "uniform" and "xavier", entries being thousands. It is drawn from that law; no weight is read again. ‖z‖² is the
    same for all models, so leaving it out decides nothing within a draw. Neural Phylogeny (ICLR 2025). Raises
    ValueError for another proxy.
    """
    if proxy not in PROXIES:
        raise ValueError(f"Expected a proxy out of {', '.join(PROXIES)}, got {proxy!r}.")
    covariance = np.zeros_like(points.gram)
    for gram, shape in zip(points.grams, points.shapes, strict=True):
        covariance += PROXIES[proxy](shape) ** 2 * gram
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # the symmetric root is unique, so that draws change little where the Gram matrices do; without rounding's
    # directions, whose root is 1e-8, copies are equally far
    values = np.where(values > NOTHING * len(values) * values.max(), values, 0.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    normal = np.random.default_rng(seed_of(seed, proxy)).standard_normal((draws, len(root)))
    return points.norms2 - 2 * normal @ root


def vote(distances: np.ndarray) -> np.ndarray:
    """How often each model is the nearest one: distances (draws, M) → counts (M,) that sum to draws; ties by index.

    >>> vote(np.array([[3.0, 1.0, 2.0], [0.5, 2.0, 0.5], [9.0, 4.0, 5.0]])).tolist()
    [1, 2, 0]
    """
    return np.bincount(_least(distances), minlength=distances.shape[1])


def majority(distances: np.ndarray) -> int:
    """The model that is nearest in most draws, of distances (draws, M): Neural Phylogeny's Eq. 2; ties by index."""
    return int(vote(distances).argmax())


def minimum(distances: np.ndarray) -> int:
    """The model of the smallest single distance over all draws, (draws, M), as a reviewer of Neural Phylogeny asked.

    Distances are those of `fake_distances`, so that draws of another ‖z‖ compare.
    """
    return int(_least(distances.min(0)))


# name → which of the models is the parent, from their distances (draws, M)
RULES: dict[str, Callable[[np.ndarray], int]] = {"majority": majority, "minimum": minimum}


def scikit_learn() -> ModuleType:
    """The package, with what the clusterings use of it. Raises `MissingExtraError` without the extra `papers`."""
    try:
        import sklearn
        import sklearn.cluster
        import sklearn.exceptions
        import sklearn.metrics
    except ImportError as error:
        raise MissingExtraError("Expected scikit-learn for a clustering method, found none", "papers") from error
    return sklearn


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to cluster X (M, k), with one setting (a number of clusters or a bandwidth).

    `settings(X)`: those to choose from; `fit(X, setting, seed)` → labels (M,); `start(X, setting, seed)` → centres, and
    `step(X, centres, setting)` → the labels and means of one round, both None where there are no rounds. `counted`:
    whether the setting is the number of clusters.
    """

    settings: Callable[[np.ndarray], Sequence[float]]
    fit: Callable[[np.ndarray, float, int], np.ndarray]
    start: Callable[[np.ndarray, float, int], np.ndarray] | None = None
    step: Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]] | None = None
    starts: int = 1
    counted: bool = True


def _numbers(x: np.ndarray) -> Sequence[float]:
    """The numbers of clusters that have a silhouette."""
    return range(2, min(len(x) - 1, _distinct(x)) + 1)


def _kmeans(x: np.ndarray, setting: float, seed: int) -> np.ndarray:
    start = seed_of(seed, "kmeans") % 2**32
    return scikit_learn().cluster.KMeans(int(setting), n_init=STARTS, random_state=start).fit(x).labels_


def _kmeans_start(x: np.ndarray, setting: float, seed: int) -> np.ndarray:
    return scikit_learn().cluster.kmeans_plusplus(x, int(setting), random_state=seed_of(seed, "kmeans") % 2**32)[0]


def _kmeans_step(x: np.ndarray, centres: np.ndarray, setting: float) -> tuple[np.ndarray, np.ndarray]:
    means = scikit_learn().cluster.KMeans(int(setting), init=centres, n_init=1, max_iter=1).fit(x).cluster_centers_
    # its own labels are those of the next round, to the means: they would forget a centre that was set to a parent
    return scikit_learn().metrics.pairwise_distances_argmin(x, centres), means


def _bandwidths(x: np.ndarray) -> Sequence[float]:
    """scikit-learn's estimate at several quantiles, of at least the nearest other model: else it would be 0."""
    quantiles = (min(1.0, max(quantile, 2.5 / len(x))) for quantile in QUANTILES)
    bandwidth = scikit_learn().cluster.estimate_bandwidth
    widths = dict.fromkeys(float(bandwidth(x, quantile=quantile)) for quantile in quantiles)
    return [width for width in widths if width > 0]


def _meanshift(x: np.ndarray, setting: float, seed: int) -> np.ndarray:
    return scikit_learn().cluster.MeanShift(bandwidth=setting, seeds=x).fit(x).labels_


def _meanshift_start(x: np.ndarray, setting: float, seed: int) -> np.ndarray:
    return x


def _meanshift_step(x: np.ndarray, centres: np.ndarray, setting: float) -> tuple[np.ndarray, np.ndarray]:
    # max_iter counts from 0: one mean, then modes nearer than the bandwidth are merged and models assigned
    fitted = scikit_learn().cluster.MeanShift(bandwidth=setting, seeds=centres, max_iter=0).fit(x)
    return fitted.labels_, fitted.cluster_centers_


def _agglomerative(x: np.ndarray, setting: float, seed: int) -> np.ndarray:
    return scikit_learn().cluster.AgglomerativeClustering(int(setting), linkage="average").fit(x).labels_


ALGORITHMS: dict[str, Algorithm] = {
    "kmeans": Algorithm(_numbers, _kmeans, _kmeans_start, _kmeans_step, STARTS),
    "meanshift": Algorithm(_bandwidths, _meanshift, _meanshift_start, _meanshift_step, counted=False),
    "agglomerative": Algorithm(_numbers, _agglomerative),
}


def after_clustering(
    points: Points, algorithm: str, *, clusters: int | None = None, rule: str = "majority", seed: int = 0
) -> list[int | None]:
    """Cluster the models; the one that is nearest to fake initialisations is the parent of its cluster.

    Votes are pooled over the four proxies, `DRAWS` each. The result is each model's parent, (M,), None for the parents
    themselves. algorithm: "kmeans", "meanshift" or "agglomerative" (average linkage), by scikit-learn. clusters: their
    number, by silhouette if None (`_choose`); mean shift finds its own. Neural Phylogeny (ICLR 2025), "after
    clustering". The same models in another order have the same parents. Raises ValueError for what it does not know.
    """
    how = _checked(points, algorithm, clusters, rule)
    points, order = _canonical(points)
    labels, _ = _choose(points, how, clusters, seed)
    return _renamed(_stars(labels, _pooled(points, seed), rule), order)


def along_clustering(
    points: Points,
    algorithm: str,
    *,
    clusters: int | None = None,
    rho: float | None = None,
    rule: str = "majority",
    seed: int = 0,
) -> list[int | None]:
    """Cluster the models with the direction inside the iterations: a centre is its cluster's parent or its mean.

    In every round each centre is set to the cluster's current parent (see `after_clustering`) with probability `rho` in
    [0, 1], the paper's α, else to the mean; until the clusters stay, `ROUNDS` at most. If None, `rho` is that of `RHOS`
    with the smallest squared distances to the parents; of mean shift, whose clusters are not equally many, that of the
    highest silhouette; the smallest of equals. algorithm: "kmeans", of `STARTS` starts the one with the smallest
    squared distances to the means, or "meanshift". Number of clusters, bandwidth and result are those of
    `after_clustering`. Neural Phylogeny (ICLR 2025), "along clustering". Raises ValueError for what it does not know.
    """
    how = _checked(points, algorithm, clusters, rule)
    if how.step is None:
        raise ValueError(f"Expected an algorithm that goes in rounds, kmeans or meanshift, got {algorithm!r}.")
    if rho is not None and not 0 <= rho <= 1:
        raise ValueError(f"Expected a probability `rho`, got {rho}.")
    points, order = _canonical(points)
    distances = _pooled(points, seed)
    labels, setting = _choose(points, how, clusters, seed)
    if setting is not None:
        labels = _along(_Guided(points.coordinates, how, setting, distances, rule), rho, seed)
    return _renamed(_stars(labels, distances, rule), order)


def _checked(points: Points, algorithm: str, clusters: int | None, rule: str) -> Algorithm:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"Expected an algorithm out of {', '.join(ALGORITHMS)}, got {algorithm!r}.")
    if rule not in RULES:
        raise ValueError(f"Expected a rule out of {', '.join(RULES)}, got {rule!r}.")
    if clusters is not None and algorithm == "meanshift":
        raise ValueError("Mean shift finds its own number of clusters: leave `clusters` out.")
    if clusters is not None and not 1 <= clusters <= len(points.gram):
        raise ValueError(f"Expected 1 to {len(points.gram)} clusters, got {clusters}.")
    return ALGORITHMS[algorithm]


def _canonical(points: Points) -> tuple[Points, np.ndarray]:
    """The models by ascending norm, so that neither starts nor ties depend on the order in which they came."""
    norms, away = points.norms2, points.distance2.mean(0)
    # rounded, so that equal models stay in their order
    scale = float(norms.max()) or 1.0
    order = np.lexsort((np.round(away / scale, 12), np.round(norms / scale, 12)))
    return Points(tuple(gram[np.ix_(order, order)] for gram in points.grams), points.shapes), order


def _renamed(parents: Sequence[int | None], order: np.ndarray) -> list[int | None]:
    named: list[int | None] = [None] * len(parents)
    for i, parent in enumerate(parents):
        named[order[i]] = None if parent is None else int(order[parent])
    return named


def _pooled(points: Points, seed: int) -> np.ndarray:
    return np.vstack([fake_distances(points, proxy, DRAWS, seed) for proxy in PROXIES])


def _choose(points: Points, how: Algorithm, clusters: int | None, seed: int) -> tuple[np.ndarray, float | None]:
    """Labels (M,) and the setting behind them: the one of the highest silhouette, the first of equals.

    Where the number of clusters is left open and no silhouette exceeds `STRUCTURE` (with one or two models there is
    none), the set is one tree or M unrelated models, and the setting None: independent models are orthogonal, so it is
    one tree if the mean cosine exceeds ½, that is if the models are nearer to one another than to the origin.
    """
    x = points.coordinates
    if clusters is not None:
        if clusters == 1 or clusters >= _distinct(x):
            return (np.zeros(len(x), dtype=int) if clusters == 1 else _copies(x)), None
        return _quiet(how.fit, x, clusters, seed), clusters
    best: tuple[float, np.ndarray, float | None] = STRUCTURE, _without_structure(points), None
    for setting in how.settings(x) if len(x) > 2 and _distinct(x) > 1 else ():
        labels = _quiet(how.fit, x, setting, seed)
        if (score := _silhouette(x, labels)) > best[0]:
            best = score, labels, setting
    return best[1], best[2]


def _without_structure(points: Points) -> np.ndarray:
    gram, size = points.gram, len(points.gram)
    between = (gram.sum() - np.trace(gram)) / max(1, size - 1)
    unrelated = size > 1 and between <= 0.5 * np.trace(gram) and _distinct(points.coordinates) > 1
    return _copies(points.coordinates) if unrelated else np.zeros(size, dtype=int)


@dataclass(frozen=True, slots=True)
class _Guided:
    """A clustering in rounds whose centres may be set to parents: points x (M, k), the algorithm with its setting, and
    the rule that names a cluster's parent by distances (draws, M) to fake initialisations."""

    x: np.ndarray
    algorithm: Algorithm
    setting: float
    distances: np.ndarray
    rule: str

    def parent(self, members: np.ndarray) -> int:
        """The parent among some of the models."""
        return int(members[RULES[self.rule](self.distances[:, members])])

    def score(self, labels: np.ndarray) -> float:
        """How well clusters fit, larger is better: −Σ‖x − its cluster's parent‖²/Σ‖x − mean of all‖², which is what
        guided rounds are for; where the number of clusters differs, the silhouette. Rounded, so that equals are equal.
        """
        if not self.algorithm.counted:
            return _silhouette(self.x, labels)
        parents = {label: self.parent(np.flatnonzero(labels == label)) for label in np.unique(labels)}
        away = ((self.x - self.x[[parents[label] for label in labels]]) ** 2).sum()
        return -round(float(away / ((self.x - self.x.mean(0)) ** 2).sum()), 9)


def _along(guided: _Guided, rho: float | None, seed: int) -> np.ndarray:
    """Labels of the best probability, and of the best start of each."""
    best: tuple[float, np.ndarray | None] = -math.inf, None
    for probability in RHOS if rho is None else (rho,):
        starts = [
            _rounds(guided, probability, seed_of(seed, f"start {start}")) for start in range(guided.algorithm.starts)
        ]
        labels = min(starts, key=lambda found: round(_within(guided.x, found), 9))
        if (score := guided.score(labels)) > best[0]:
            best = score, labels
    assert best[1] is not None
    return best[1]


def _rounds(guided: _Guided, rho: float, seed: int) -> np.ndarray:
    """Rounds from one start until the labels stay."""
    x, how, setting = guided.x, guided.algorithm, guided.setting
    assert how.start is not None and how.step is not None
    rng = np.random.default_rng(seed_of(seed, "rho"))
    centres = how.start(x, setting, seed)
    labels = np.full(len(x), -1)
    for _ in range(ROUNDS):
        before, (labels, means) = labels, _quiet(how.step, x, centres, setting)
        if (labels == before).all():
            break
        centres = means.copy()
        for label, use_parent in enumerate(rng.random(len(means)) < rho):
            members = np.flatnonzero(labels == label)
            if use_parent and members.size:
                centres[label] = x[guided.parent(members)]
    return labels


def _stars(labels: np.ndarray, distances: np.ndarray, rule: str) -> list[int | None]:
    parents: list[int | None] = [None] * len(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        parent = int(members[RULES[rule](distances[:, members])])
        for member in members:
            parents[member] = None if member == parent else parent
    return parents


def _silhouette(x: np.ndarray, labels: np.ndarray) -> float:
    """The mean silhouette (Rousseeuw 1987), in [−1, 1]; 0 for one cluster and for as many clusters as models. Rounded,
    so that equals are equal."""
    count = len(np.unique(labels))
    return round(float(scikit_learn().metrics.silhouette_score(x, labels)), 9) if 1 < count < len(x) else 0.0


def _within(x: np.ndarray, labels: np.ndarray) -> float:
    """Σ‖x − its cluster's mean‖² / Σ‖x − mean of all‖²: the criterion of k-means, in [0, 1]."""
    means = np.stack([x[labels == label].mean(0) for label in labels])
    return float(((x - means) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def _copies(x: np.ndarray) -> np.ndarray:
    """Labels (M,) that only equal models share."""
    return np.unique(distance2(x @ x.T) <= 4 * NOTHING * (x**2).sum(), axis=0, return_inverse=True)[1].reshape(-1)


def _least(values: np.ndarray) -> np.ndarray:
    """The first of the least along the last axis, up to rounding."""
    least = values.min(-1, keepdims=True)
    return (values <= least + 1e-12 * np.abs(least)).argmax(-1)


def _distinct(x: np.ndarray) -> int:
    return int(_copies(x).max()) + 1


def _quiet(fit: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Without scikit-learn's warning that equal models leave clusters empty: they may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scikit_learn().exceptions.ConvergenceWarning)
        return fit(*arguments, **options)
