"""The methods of `phylogeny` by name: this project's, the learned one, and those of papers to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from .baselines import by_distance, by_norms, mother
from .build import Branch, BuiltTrees, build_trees
from .by_detector import detect
from .clustering import Points, after_clustering, along_clustering
from .groups import Grouping, related_groups
from .reading import AlignedModels
from .spanning import edge


def _information(aligned: AlignedModels, alpha: float, seed: int) -> BuiltTrees:
    return build_trees(aligned.statistics, aligned.test, aligned.one_way, alpha, aligned)


def _clustering(
    aligned: AlignedModels, alpha: float, seed: int, cluster: Callable[..., list[int | None]], **options: float
) -> BuiltTrees:
    parents = cluster(_points(aligned), seed=seed, **options)
    groups: dict[int, list[int]] = {}
    for i, parent in enumerate(parents):
        groups.setdefault(i if parent is None else parent, []).append(i)
    return _built(aligned, parents, Grouping(list(groups.values())))


def _baseline(aligned: AlignedModels, alpha: float, seed: int, find: Callable[..., list[int | None]]) -> BuiltTrees:
    """The groups are those of the permutation test, which favours the baseline."""
    grouping = related_groups(aligned.statistics.information, aligned.statistics.similar, aligned.test, alpha)
    return _built(aligned, find(_points(aligned), grouping.groups), grouping)


def _mother(aligned: AlignedModels, alpha: float, seed: int) -> BuiltTrees:
    kurtosis = aligned.statistics.sizes @ aligned.statistics.kurtosis / aligned.statistics.sizes.sum()
    return _baseline(aligned, alpha, seed, lambda points, groups: mother(points, kurtosis, groups))


def _points(aligned: AlignedModels) -> Points:
    shapes = (aligned.models[0][matrix.name].shape for matrix in aligned.statistics.matrices)
    return Points(tuple(aligned.statistics.grams), tuple(tuple(shape) for shape in shapes))


def _built(aligned: AlignedModels, parents: Sequence[int | None], grouping: Grouping) -> BuiltTrees:
    square = aligned.statistics.squared_distances
    branches = [Branch(p, i, 1.0, None) for i, p in enumerate(parents) if p is not None]
    roots = [next((i for i in group if parents[i] is None), None) for group in grouping.groups]
    distances = {edge(b.parent, b.child): float(square[b.parent, b.child]) for b in branches}
    return BuiltTrees([list(group) for group in grouping.groups], branches, roots, distances, grouping)


METHODS: dict[str, Callable[..., BuiltTrees]] = {
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
