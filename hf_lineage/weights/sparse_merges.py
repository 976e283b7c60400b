"""Traces of TIES and DARE in a merge: entries that stayed the base's, and entries that follow one source alone.

Both add parts of the deltas aₖ = pₖ − base to a base. TIES (Yadav et al., NeurIPS 2023) trims the small ones of each
source and averages those of the elected sign; DARE (Yu et al., ICML 2024) drops each at random and divides the others
by the share kept. So e = child − base is 0 where all were dropped, and s·aₖ where only one was kept. In a weighted sum
neither happens. Pure arithmetic on the same rows of a matrix of every model, held in memory. See docs/methods.md,
*Sparse merges*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.dtypes import epsilon, torch_dtypes
from .least_squares import simplex_minimum

CLEAR_ULPS = 16  # units in the last place from which a change shows above rounding
MAX_ENTRIES, MIN_ENTRIES = 1 << 17, 1000  # entries examined, at most and at least
MIN_STILL_SHARE = 0.002  # of the entries; a weighted sum leaves none unchanged
MIN_ALONE_SHARE = 0.015  # of the changed entries that follow one source; by chance a ratio hits ±0.2 % in under 0.01
MIN_TRIMMED = 0.7  # of `smaller`: ½ if entries were dropped at random, 1 if the small ones were trimmed
MIN_FOLLOWED_SHARE = 0.01  # of the changed entries, from which a source took part
FOLLOWING_ERROR = 0.002  # relative, up to which an entry follows a source
MAX_SCALE = 20.0  # of a delta: DARE at a density of 0.05
MIN_SMALLER = 0.35  # of `smaller`; below, unchanged entries had larger deltas: the base is a source, not the base
# Of the square that the nearest of base and sources leaves, at most. Fine-tuning, too, leaves entries that never change
# (dead pixels, dead units), and a model between its parent and its child shares them with both.
MAX_UNEXPLAINED = 0.1
MAX_SUM_ERROR = 0.15  # of the child's delta, by which DARE's sum may differ from least squares: dropping keeps the mean


@dataclass(frozen=True, slots=True)
class SparseMerge:
    """A merge by TIES or DARE around a base, as its entries show it.

    zeros: share of the entries that did not change although a weighted sum would have changed them. alone[k]: share of
    the changed entries, where aₖ is above rounding, that are s·aₖ of source k alone. smaller: probability that an
    unchanged entry had a smaller delta than a changed one, in [0, 1]. weights, density: of each source, w and the share
    of its delta that was kept. scale: of their sum (TIES; 1 for DARE). residual: ‖child − rebuilt‖/‖child‖ over the
    entries, where DARE's dropped entries are read off the child. entries: how many were examined.
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


def sparse_merge(
    child: Sequence[Tensor], base: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], weights: Sequence[float],
    dtypes: Sequence[str], *, sure: bool = True,
) -> SparseMerge | None:  # fmt: skip
    """A sparse merge of `sources` (of each, its matrices) around a base; None where there are no traces of one.

    weights: of the sources by least squares. dtypes: how the child's matrices are stored. sure: only where the method
    found rebuilds the child; not so, also where sources took no part, by which the caller leaves them out.
    """
    seen = _Entries.of(child, base, sources, dtypes)
    if seen is None:
        return None
    expected = np.abs(np.asarray(weights) @ seen.a) > CLEAR_ULPS * seen.ulp  # a weighted sum would have changed these
    if expected.sum() < MIN_ENTRIES:
        return None
    still = seen.still[expected]
    zeros = float(still.mean())
    if not MIN_STILL_SHARE <= zeros < 1:
        return None
    smaller = _smaller(seen.a[:, expected], still)
    scales, alone = seen.scales_and_followers()
    if max(alone) < MIN_ALONE_SHARE or smaller < MIN_SMALLER:
        return None
    scale = float(np.median([s for s, share in zip(scales, alone, strict=True) if share >= MIN_FOLLOWED_SHARE]))
    found = _as_ties(seen, expected, scale) if smaller >= MIN_TRIMMED else _as_dare(seen, zeros, scales)
    if sure and not found.explains(seen):
        return None
    residual = float(np.sqrt(((seen.c - found.rebuilt) ** 2).sum() / (seen.c**2).sum()))
    return SparseMerge(
        found.method, zeros, alone, smaller, tuple(map(float, found.weights)), found.density,
        scale if found.method == "ties" else 1.0, residual, len(seen.e),
    )  # fmt: skip


def _smaller(a: np.ndarray, still: np.ndarray) -> float:
    """Probability that an unchanged entry had a smaller delta than a changed one (Mann & Whitney 1947).

    a: (sources, n); the size of an entry's delta is the largest over sources, each in units of its root mean square.
    """
    from scipy.stats import mannwhitneyu  # its import takes longer than most answers

    size = (np.abs(a) / np.maximum(np.sqrt((a**2).mean(1, keepdims=True)), 1e-300)).max(0)
    return float(mannwhitneyu(size[~still], size[still]).statistic / still.sum() / (~still).sum())


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """The child as one method makes it: weights and densities of the sources, and the entries, (n,)."""

    method: Literal["ties", "dare"]
    weights: np.ndarray
    density: tuple[float, ...]
    rebuilt: np.ndarray

    def explains(self, seen: _Entries) -> bool:
        """Whether it leaves little of what the nearest of base and sources leaves, and DARE's sum is least squares'."""
        nearest = min(float((seen.e**2).sum()), *(float(((seen.e - delta) ** 2).sum()) for delta in seen.a))
        if float(((seen.c - self.rebuilt) ** 2).sum()) > MAX_UNEXPLAINED * nearest:
            return False
        error = np.abs(self.weights - np.linalg.lstsq(seen.a.T, seen.e, rcond=None)[0]) * np.sqrt((seen.a**2).mean(1))
        return self.method == "ties" or float(error.max()) <= MAX_SUM_ERROR * float(np.sqrt((seen.e**2).mean()))


def _as_ties(seen: _Entries, expected: np.ndarray, scale: float) -> _Rebuilt:
    thresholds = _trim_thresholds(seen.a, expected & seen.still, seen.number)
    weights = _ties_weights(seen.e, seen.a, thresholds, scale)
    density = tuple(float(share) for share in (np.abs(seen.a) > thresholds).mean(1))
    return _Rebuilt("ties", weights, density, seen.rounded(seen.b + _ties_sum(seen.a, thresholds, weights, scale)))


def _as_dare(seen: _Entries, zeros: float, scales: Sequence[float]) -> _Rebuilt:
    # where every delta would show: beside a large delta that was dropped, a small one that was kept looks dropped too
    clear = (np.abs(seen.a) > 2 * seen.ulp).all(0) & (np.asarray(scales) != 0).all()
    kept = 1.0 - (float(seen.still[clear].mean()) if clear.sum() >= MIN_ENTRIES else zeros) ** (1 / len(seen.a))
    rebuilt = seen.rounded(seen.b + _dare_sum(seen.e, seen.a, scales))
    return _Rebuilt("dare", np.asarray(scales) * kept, (kept,) * len(seen.a), rebuilt)


def _follows(e: np.ndarray, alone: np.ndarray, ulp: np.ndarray) -> float:
    """Share of the entries e that equal `alone`, one source's delta times its scale."""
    return (
        float((np.abs(e - alone) <= np.maximum(FOLLOWING_ERROR * np.abs(alone), ulp)).mean()) if np.any(alone) else 0.0
    )


def _trim_thresholds(a: np.ndarray, still: np.ndarray, number: np.ndarray) -> np.ndarray:
    """For every entry, the size below which the deltas of each source were trimmed in its matrix, (sources, n).

    An entry is unchanged only if every source was trimmed there, so the threshold is the largest delta that was.
    """
    thresholds = np.zeros_like(a)
    for matrix in np.unique(number):
        here = number == matrix
        if (here & still).any():
            thresholds[:, here] = np.quantile(np.abs(a[:, here & still]), 0.999, axis=1)[:, None]
    return thresholds


def _ties_weights(e: np.ndarray, a: np.ndarray, thresholds: np.ndarray, scale: float) -> np.ndarray:
    """w/Σw of TIES: the least squares of Σₖ wₖ·(scale·aₖ − e) = 0 over the sources kept that have e's sign."""
    agree = (np.abs(a) > thresholds) & (np.sign(a) == np.sign(e * scale))
    misfit = np.where(agree, scale * a - e, 0.0)[:, agree.sum(0) > 1]
    return simplex_minimum(misfit @ misfit.T)


def _ties_sum(a: np.ndarray, thresholds: np.ndarray, weights: np.ndarray, scale: float) -> np.ndarray:
    """scale · Σ w aₖ / Σ w over the sources kept whose sign is that of Σ w aₖ."""
    kept = np.where(np.abs(a) > thresholds, a, 0.0) * weights[:, None]
    agree = (np.sign(kept) == np.sign(kept.sum(0))) & (kept != 0)
    total = (weights[:, None] * agree).sum(0)
    return scale * (kept * agree).sum(0) / np.where(total > 0, total, 1.0)


def _dare_sum(e: np.ndarray, a: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """For every entry the sum of some of its scaled deltas that is nearest to e; of at most six sources."""
    best = np.zeros_like(e)
    for choice in product((0.0, 1.0), repeat=min(len(a), 6)):
        total = (np.asarray(choice) * np.asarray(scales)[: len(choice)]) @ a[: len(choice)]
        best = np.where(np.abs(e - total) < np.abs(e - best), total, best)
    return best


@dataclass(frozen=True, slots=True)
class _Entries:
    """Evenly spaced entries (n,) of the matrices that changed at all, in float64.

    c: of the child; b: of the base; a: (sources, n), the deltas; ulp: unit in the last place of the child's dtype at b;
    still: whether c is b rounded to that dtype; number: of each entry's matrix; dtypes: of all matrices.
    """

    c: np.ndarray
    b: np.ndarray
    a: np.ndarray
    ulp: np.ndarray
    still: np.ndarray
    number: np.ndarray
    dtypes: tuple[str, ...]

    @classmethod
    def of(
        cls, child: Sequence[Tensor], base: Sequence[Tensor], sources: Sequence[Sequence[Tensor]], dtypes: Sequence[str]
    ) -> _Entries | None:
        """None where nothing changed, or hardly any entry is unchanged: the sources need not be looked at then."""
        step = max(1, sum(matrix.numel() for matrix in child) // MAX_ENTRIES)
        c, b, still, number = [], [], [], []
        for i, (made, start) in enumerate(zip(child, base, strict=True)):
            if not torch.equal(made, start):  # a matrix without any change was frozen
                c.append(made.flatten()[::step])
                b.append(start.flatten()[::step])
                still.append(c[-1] == _cast(b[-1], dtypes[i]))
                number.append(np.full(len(c[-1]), i))
        if sum(int(each.sum()) for each in still) < MIN_STILL_SHARE * MIN_ENTRIES:
            return None
        moved = [int(each[0]) for each in number]
        origin, numbers = torch.cat(b).double().numpy(), np.concatenate(number)
        deltas = [torch.cat([source[i].flatten()[::step] for i in moved]).double().numpy() for source in sources]
        last = np.array([epsilon(dtype) for dtype in dtypes])[numbers]
        return cls(
            torch.cat(c).double().numpy(), origin, np.array(deltas) - origin, last * np.abs(origin),
            torch.cat(still).numpy(), numbers, tuple(dtypes),
        )  # fmt: skip

    @property
    def e(self) -> np.ndarray:
        """child − base."""
        return self.c - self.b

    def scales_and_followers(self) -> tuple[list[float], tuple[float, ...]]:
        """Of each source the most frequent scale s, and the share of changed entries that are s·aₖ alone."""
        scales, alone = [], []
        for delta in self.a:
            # entries that changed, and where the delta of this source would show
            seen = ~self.still & (np.abs(delta) > CLEAR_ULPS * self.ulp)
            scales.append(_scale(self.e[seen], delta[seen], self.ulp[seen]))
            alone.append(_follows(self.e[seen], scales[-1] * delta[seen], self.ulp[seen]))
        return scales, tuple(alone)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """The values in the dtypes that the child is stored in."""
        result = values.copy()
        for i in np.unique(self.number):
            own = self.number == i
            result[own] = _cast(torch.from_numpy(values[own]).float(), self.dtypes[i]).double().numpy()
        return result


def _cast(values: Tensor, dtype: str) -> Tensor:
    """float32 values as they are after being stored in another dtype."""
    return values.to(torch_dtypes()[dtype]).float() if dtype in ("F16", "BF16") else values


def _scale(e: np.ndarray, delta: np.ndarray, ulp: np.ndarray) -> float:
    """The most frequent ratio e/aₖ of deltas far above rounding (the mode); 0 where there are too few."""
    clear = np.abs(delta) > 4 * CLEAR_ULPS * ulp
    ratio = e[clear] / delta[clear]
    ratio = ratio[(np.abs(ratio) > 0.05) & (np.abs(ratio) < MAX_SCALE)]
    if len(ratio) < MIN_ENTRIES // 10:
        return 0.0
    bins = np.bincount(np.round((ratio + MAX_SCALE) / 0.01).astype(np.int64))
    top = float(bins.argmax()) * 0.01 - MAX_SCALE
    return float(np.median(ratio[np.abs(ratio - top) <= 0.01]))
