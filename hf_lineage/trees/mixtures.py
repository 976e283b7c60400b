"""Which models of a set are exact averages of others, or made of parts of them: by the Gram matrices alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..weights.least_squares import nonnegative_weights
from ..weights.mixture import MAX_EXACT_RESIDUAL, MAX_SOURCES, MIN_WEIGHT
from .pair_statistics import distance2

MAX_SOURCES_TRIED = 24  # the nearest models are tried as sources
EQUAL = 1e-14  # squared distance of equal matrices relative to their norms: rounding


@dataclass(frozen=True, slots=True)
class Mixture:
    """One exact merge: its sources, heaviest first, and their weights (≥ 0; of a SLERP they sum to more than 1)."""

    model: int
    sources: tuple[int, ...]
    weights: tuple[float, ...]


def mixtures(gram: np.ndarray, members: Sequence[int]) -> list[Mixture]:
    """The members that are a non-negative sum of two to five others, up to rounding.

    min ‖x − Σ w·source‖² over w ≥ 0 (NNLS, Lawson and Hanson 1974), over the nearest models. gram: (M, M), inner
    products of the models' weights. A parent is no such sum of k of its children: it keeps 1/k of the squared distance.
    Merges that were fine-tuned afterwards, and negative weights, are not found. docs/methods.md, *Mixing weights*.
    """
    away = distance2(gram)
    first = {i for i in members if _mixture(gram, away, i, members)}
    # two merges of the same models explain each other: sources are models that are no merges
    rest = [j for j in members if j not in first]
    return [found for i in sorted(first) if (found := _mixture(gram, away, i, [*rest, i]))]


def pieced_together(grams: np.ndarray) -> set[tuple[int, int]]:
    """(model, other) where each of the model's matrices is equal to that of this one or of another one, and not all to
    one of the two.

    It may have been put together of the two. It may also stand between them: where each step changed other matrices, a
    chain and a base with two children look the same. So nothing here tells who came first. grams: (T, M, M), of each
    matrix.
    """
    square = np.diagonal(grams, axis1=1, axis2=2)
    equal = distance2(grams) <= EQUAL * (square[:, :, None] + square[:, None, :])
    some = equal.any(0) & ~equal.all(0)
    found = set()
    for i, partly in enumerate(some):
        for a, b in combinations(np.flatnonzero(partly), 2):
            if (equal[:, i, a] | equal[:, i, b]).all():
                found |= {(i, int(a)), (i, int(b))}
    return found


def _mixture(gram: np.ndarray, away: np.ndarray, i: int, members: Sequence[int]) -> Mixture | None:
    others = sorted((j for j in members if j != i), key=lambda j: (away[i, j], j))[:MAX_SOURCES_TRIED]
    if len(others) < 2 or not gram[i, i] > 0:
        return None
    weights, _ = fit(gram, i, others)
    kept = [j for j, w in zip(others, weights, strict=True) if w >= MIN_WEIGHT]
    if not 2 <= len(kept) <= MAX_SOURCES:
        return None
    weights, left = fit(gram, i, kept)
    if left > MAX_EXACT_RESIDUAL * away[i, others[0]] or min(weights) < MIN_WEIGHT:
        return None
    heaviest = sorted(zip(weights, kept, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return Mixture(i, tuple(j for _, j in heaviest), tuple(float(w) for w, _ in heaviest))


def fit(gram: np.ndarray, i: int, among: Sequence[int]) -> tuple[np.ndarray, float]:
    """(weights ≥ 0, (K,); ‖x − Σ w·source‖² ≥ 0) of model i as a sum of the K models `among`."""
    inner = gram[np.ix_(among, among)]
    if not np.diag(inner).all():
        return np.zeros(len(among)), float(gram[i, i])
    weights = nonnegative_weights(inner, gram[among, i])
    rest = float(gram[i, i] - 2 * weights @ gram[among, i] + weights @ inner @ weights)
    return weights, max(rest, 0.0)
