"""The learned method of `phylogeny`: pair statistics → the Phylogeny Detector → trees."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .build import Branch, BuiltTrees
from .groups import Grouping
from .pair_statistics import PairStatistics
from .reading import AlignedModels
from .spanning import edge

if TYPE_CHECKING:
    from ..detector.phylogeny import PhylogenyDetector


def detect(aligned: AlignedModels, alpha: float, seed: int) -> BuiltTrees:
    """The trees in which the most edges are expected to be right; `alpha` and `seed` change nothing.

    The probability of an edge is that of either direction, its direction the share of its own: both are exact sums over
    all spanning forests (`detector/decoding.py`).
    """
    from ..detector.decoding import likeliest, marginals

    if aligned.statistics.models < 2:
        return _built(aligned, [None] * aligned.statistics.models, torch.zeros(1, 1))
    pairs, none = marginals(*_scores(aligned.statistics))
    return _built(aligned, likeliest(pairs, none), pairs)


@functools.cache
def _shipped() -> PhylogenyDetector:
    from ..detector.phylogeny import load

    return load()


def _scores(statistics: PairStatistics) -> tuple[Tensor, Tensor]:
    from ..detector.sets import ModelSet

    detector = _shipped()
    config = detector.config
    with torch.no_grad():
        return detector(ModelSet(crops(statistics, config.matrices, config.size), *products(statistics)))


def crops(statistics: PairStatistics, matrices: int, size: int) -> tuple[Tensor, ...]:
    """Evenly spaced rows and columns of evenly spaced matrices, (M, ≤ size, ≤ size) each: bounded, and always the
    same ones."""
    chosen = _spread(len(statistics.matrices), matrices).tolist()
    found = []
    for units in (statistics.matrices[i].units for i in chosen):
        rows, columns = (_spread(n, size) for n in units.shape[1:])
        found.append(units[:, rows][:, :, columns])
    return tuple(found)


def products(statistics: PairStatistics) -> tuple[Tensor, Tensor]:
    """(inner products, mutual information per weight) of all models, (M, M) float64 each."""
    weights = sum(matrix.units[0].numel() for matrix in statistics.matrices)
    return torch.from_numpy(statistics.gram), torch.from_numpy(statistics.information) / weights


def _spread(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, most)).long()


def _built(aligned: AlignedModels, parents: list[int | None], pairs: Tensor) -> BuiltTrees:
    branches = []
    groups: dict[int, list[int]] = {}
    for child, parent in enumerate(parents):
        if parent is not None:
            forward, reverse = float(pairs[parent, child]), float(pairs[child, parent])
            either = forward + reverse
            branches.append(Branch(parent, child, max(0.5, forward / either), min(1.0, either)))
        groups.setdefault(_root(parents, child), []).append(child)
    distances = {
        edge(b.parent, b.child): float(aligned.statistics.squared_distances[b.parent, b.child]) for b in branches
    }
    members = list(groups.values())
    return BuiltTrees([list(group) for group in members], branches, [*groups], distances, Grouping(members))


def _root(parents: list[int | None], model: int) -> int:
    while (parent := parents[model]) is not None:
        model = parent
    return model
