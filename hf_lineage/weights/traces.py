"""What TIES and DARE leave in a merge: entries that stayed the base's, and entries that follow one source alone.

Both add parts of the deltas aₖ = pₖ − base to a base. TIES (Yadav et al., NeurIPS 2023) trims the small ones of each
source and averages those of the elected sign, DARE (Yu et al., ICML 2024) drops each at random and divides the rest by
the share kept. So e = child − base is 0 where all were dropped, and s·aₖ where only one was kept; in a weighted sum
neither happens.
Pure arithmetic on the same rows of a matrix of every model, held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

ULP = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7, "F64": 2.0**-52}
CLEAR = 16  # units in the last place by which a weighted sum must have moved an entry for its standing still to count
MOST = 1 << 17  # entries looked at
LEAST = 1000  # … at least
ZEROS = 0.002  # share of entries that stand still; a weighted sum leaves none
ALONE = 0.03  # share of the moved ones that follow one source alone; by chance a ratio hits ±0.2 % in less than 0.01
NEAR = 0.002
SOURCE = 0.35  # of `smaller`: below, what stands still had the *larger* deltas: seen from a source, not from the base
# Of the square that the nearest of base and sources leaves, at most. Fine-tuning leaves entries, too, that never move
# (dead pixels, dead units), and a model between its parent and its child shares them with both.
REST = 0.05
TRIMMED = 0.8  # chance that what stands still had smaller deltas than what moved: ½ if dropped at random, 1 if trimmed


@dataclass(frozen=True, slots=True)
class Traces:
    """`zeros`: share of the entries that stand still though a weighted sum would move them; `alone[k]`: share of the
    others that are s·aₖ of source k alone; `smaller`: chance that an entry standing still had a smaller delta than one
    that moved, in [0, 1]. `weights`, `density`: of each source, w and the share of its delta that was kept; `scale`: of
    their sum (TIES). `residual`: ‖child − rebuilt‖ / ‖child‖ over the entries, by the method, DARE's dropped entries
    read off the child. Σ alone and zeros near 1 leave little room for another explanation.
    """

    method: Literal["ties", "dare"]
    zeros: float
    alone: tuple[float, ...]
    smaller: float
    weights: tuple[float, ...]
    density: tuple[float, ...]
    scale: float
    residual: float
    entries: int


def traces(
    child: Sequence[Tensor], base: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], weights: Sequence[float],
    dtypes: Sequence[str],
) -> Traces | None:  # fmt: skip
    """Traces of a sparse merge of `sources` (for each, its matrices) around a base; None where there are none.

    `weights`: λ of the sources by least squares; `dtypes`: how the child's matrices are stored.
    """
    all_e, all_a, ulp, matrix, square = _entries(child, base, sources, dtypes)
    told = np.abs(np.asarray(weights) @ all_a) > CLEAR * ulp
    if told.sum() < LEAST:
        return None
    e, a, ulp = all_e[told], all_a[:, told], ulp[told]
    still = np.abs(e) <= ulp
    zeros = float(still.mean())
    if not ZEROS <= zeros < 1:
        return None
    size = (np.abs(a) / np.maximum(np.sqrt((a**2).mean(1, keepdims=True)), 1e-300)).max(0)
    smaller = float(mannwhitneyu(size[~still], size[still]).statistic / still.sum() / (~still).sum())
    scales = [_scale(e[~still], delta[~still], ulp[~still]) for delta in a]
    alone = tuple(_follows(e[~still], s * delta[~still], ulp[~still]) for s, delta in zip(scales, a, strict=True))
    if max(alone) < ALONE or smaller < SOURCE:
        return None
    if smaller >= TRIMMED:
        edges = _edges(all_a, np.isin(np.arange(len(all_e)), np.flatnonzero(told)[still]), matrix)
        scale = float(np.median([s for s, share in zip(scales, alone, strict=True) if share >= ALONE]))
        shares = _shares(all_e, all_a, edges) if scale else np.ones(len(a)) / len(a)
        rebuilt = _rebuilt_ties(all_a, edges, shares, scale)
        density = tuple(float(share) for share in (np.abs(all_a) > edges).mean(1))
        found, method = shares, "ties"
    else:
        density = (1.0 - zeros ** (1 / len(a)),) * len(a)
        found, method, scale = np.asarray(scales) * density[0], "dare", 1.0
        rebuilt = _rebuilt_dare(all_e, all_a, scales)
    left = float(((all_e - rebuilt) ** 2).sum())
    nearest = min(float((all_e**2).sum()), *(float(((all_e - delta) ** 2).sum()) for delta in all_a))
    if left > REST * nearest:
        return None
    return Traces(
        "ties" if method == "ties" else "dare", zeros, alone, smaller, tuple(map(float, found)), density, scale,
        float(np.sqrt(left / square)), len(all_e),
    )  # fmt: skip


def _follows(e: np.ndarray, alone: np.ndarray, ulp: np.ndarray) -> float:
    """Share of entries that are one source's delta times its scale."""
    return float((np.abs(e - alone) <= np.maximum(NEAR * np.abs(alone), ulp)).mean()) if np.any(alone) else 0.0


def _edges(a: np.ndarray, still: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """For every entry, the size below which its matrix's deltas of each source were trimmed, (sources, n).

    An entry stands still only if every source was trimmed there, so the largest that did is the edge.
    """
    edges = np.zeros_like(a)
    for number in np.unique(matrix):
        own = matrix == number
        if (own & still).any():
            edges[:, own] = np.quantile(np.abs(a[:, own & still]), 0.999, axis=1)[:, None]
    return edges


def _shares(e: np.ndarray, a: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """w / Σw of TIES, from the entries to which every source contributes; equal where there are too few."""
    kept = np.abs(a) > edges
    all_in = kept.all(0) & (np.abs(np.sign(a).sum(0)) == len(a))
    if all_in.sum() < LEAST // 10:
        return np.ones(len(a)) / len(a)
    found = np.maximum(np.linalg.lstsq(a[:, all_in].T, e[all_in], rcond=None)[0], 0.0)
    return found / found.sum() if found.sum() else np.ones(len(a)) / len(a)


def _rebuilt_ties(a: np.ndarray, edges: np.ndarray, weights: np.ndarray, scale: float) -> np.ndarray:
    """scale · Σ w aₖ / Σ w over the sources kept whose sign is that of Σ w aₖ."""
    kept = np.where(np.abs(a) > edges, a, 0.0) * weights[:, None]
    agree = (np.sign(kept) == np.sign(kept.sum(0))) & (kept != 0)
    total = (weights[:, None] * agree).sum(0)
    return scale * (kept * agree).sum(0) / np.where(total > 0, total, 1.0)


def _rebuilt_dare(e: np.ndarray, a: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """The nearest of the sums that some choice of sources makes, of at most six."""
    best = np.zeros_like(e)
    for choice in product((0.0, 1.0), repeat=min(len(a), 6)):
        made = (np.asarray(choice) * np.asarray(scales)[: len(choice)]) @ a[: len(choice)]
        best = np.where(np.abs(e - made) < np.abs(e - best), made, best)
    return best


def _entries(
    child: Sequence[Tensor], base: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], dtypes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Of evenly spaced entries of the matrices that moved: e (n,), a (sources, n), the size of the last place (n,), the
    number of the matrix (n,), and Σ child²."""
    total = sum(matrix.numel() for matrix in child)
    step = max(1, total // MOST)
    moved, deltas, ulps, numbers = [], [], [], []
    square = 0.0
    for i, (made, start) in enumerate(zip(child, base, strict=True)):
        if torch.equal(made, start):
            continue  # frozen: every entry stands still, which says nothing
        c, b = (matrix.flatten()[::step].double().numpy() for matrix in (made, start))
        moved.append(c - b)
        square += float(c @ c)
        numbers.append(np.full(len(c), i))
        ulps.append(ULP.get(dtypes[i], ULP["F32"]) * np.maximum(np.abs(b), np.abs(c)))
    still = sum(int((np.abs(e) <= ulp).sum()) for e, ulp in zip(moved, ulps, strict=True))
    if still < ZEROS * LEAST:  # nobody needs the sources
        return np.zeros(0), np.zeros((len(sources), 0)), np.zeros(0), np.zeros(0), 0.0
    for i in (int(part[0]) for part in numbers):
        b = base[i].flatten()[::step].double().numpy()
        deltas.append(np.array([source[i].flatten()[::step].double().numpy() - b for source in sources]))
    e, ulp, number = (np.concatenate(parts) for parts in (moved, ulps, numbers))
    return e, np.concatenate(deltas, axis=1), ulp, number, square


def _scale(e: np.ndarray, delta: np.ndarray, ulp: np.ndarray) -> float:
    """The most frequent ratio e/a, of deltas that are far above rounding."""
    clear = np.abs(delta) > 4 * CLEAR * ulp
    ratio = e[clear] / delta[clear]
    ratio = ratio[np.abs(ratio) > 0.05]
    if len(ratio) < LEAST // 10:
        return 0.0
    bins = np.round(ratio / 0.01).astype(np.int64)
    values, counts = np.unique(bins, return_counts=True)
    top = values[counts.argmax()] * 0.01
    return float(np.median(ratio[np.abs(ratio - top) <= 0.01]))
