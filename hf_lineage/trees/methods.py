"""The methods of `phylogeny` by name: ours, the learned one, and the papers' to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from .baselines import by_distance, by_norms, mother
from .build import Branch, Grown, grow
from .by_detector import detect
from .clustering import Points, after_clustering, along_clustering
from .groups import Groups, related_groups
from .reading import Kin
from .spanning import edge


def _information(known: Kin, alpha: float, seed: int) -> Grown:
    return grow(known.kin, known.test, known.one_way, alpha)


def _clustering(
    known: Kin, alpha: float, seed: int, cluster: Callable[..., list[int | None]], **options: float
) -> Grown:
    parents = cluster(_points(known), seed=seed, **options)
    groups: dict[int, list[int]] = {}
    for i, parent in enumerate(parents):
        groups.setdefault(i if parent is None else parent, []).append(i)
    return _grown(known, parents, Groups(list(groups.values())))


def _baseline(known: Kin, alpha: float, seed: int, find: Callable[..., list[int | None]]) -> Grown:
    """The groups are those of the permutation test, which favours it."""
    joined = related_groups(known.kin.information, known.kin.alike, known.test, alpha)
    return _grown(known, find(_points(known), joined.members), joined)


def _mother(known: Kin, alpha: float, seed: int) -> Grown:
    kurtosis = known.kin.sizes @ known.kin.kurtosis / known.kin.sizes.sum()
    return _baseline(known, alpha, seed, lambda points, groups: mother(points, kurtosis, groups))


def _points(known: Kin) -> Points:
    shapes = (known.models[0][matrix.name].shape for matrix in known.kin.matrices)
    return Points(tuple(known.kin.grams), tuple(tuple(shape) for shape in shapes))


def _grown(known: Kin, parents: Sequence[int | None], joined: Groups) -> Grown:
    square = known.kin.square
    branches = [Branch(p, i, 1.0, None) for i, p in enumerate(parents) if p is not None]
    tops = [next((i for i in group if parents[i] is None), None) for group in joined.members]
    distances = {edge(b.parent, b.child): float(square[b.parent, b.child]) for b in branches}
    return Grown([list(group) for group in joined.members], branches, tops, distances, joined)


METHODS: dict[str, Callable[..., Grown]] = {
    "information": _information,
    "detector": detect,
    "distance": functools.partial(_baseline, find=by_distance),
    "norms": functools.partial(_baseline, find=by_norms),
    "mother": _mother,
    "after-kmeans": functools.partial(_clustering, cluster=functools.partial(after_clustering, algorithm="kmeans")),
    "after-meanshift": functools.partial(
        _clustering, cluster=functools.partial(after_clustering, algorithm="meanshift")
    ),
    "after-agglomerative": functools.partial(
        _clustering, cluster=functools.partial(after_clustering, algorithm="agglomerative")
    ),
    "along-kmeans": functools.partial(_clustering, cluster=functools.partial(along_clustering, algorithm="kmeans")),
    "along-meanshift": functools.partial(
        _clustering, cluster=functools.partial(along_clustering, algorithm="meanshift")
    ),
}
