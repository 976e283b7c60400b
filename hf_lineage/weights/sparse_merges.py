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
from scipy.optimize import nnls
from scipy.stats import mannwhitneyu
from torch import Tensor

ULP = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7, "F64": 2.0**-52}
HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
CLEAR = 16  # units in the last place by which a weighted sum must have moved an entry for its standing still to count
ENTRIES = 1 << 17  # entries looked at
ENOUGH = 1000  # … and at least
ZEROS = 0.002  # share of entries that stand still; a weighted sum leaves none
ALONE = 0.015  # share of the moved ones that follow one source alone; by chance a ratio hits ±0.2 % in less than 0.01
TRIMMED = 0.7  # of `smaller`: ½ if dropped at random, 1 if trimmed
FOLLOWED = 0.01  # share from which one source of several took part
NEAR = 0.002
MOST_SCALE = 20.0  # of a delta: DARE at a density of 0.05
SOURCE = 0.35  # of `smaller`: below, what stands still had the *larger* deltas: seen from a source, not from the base
# Of the square that the nearest of base and sources leaves, at most. Fine-tuning leaves entries, too, that never move
# (dead pixels, dead units), and a model between its parent and its child shares them with both.
UNTOLD = 0.1
OFF = 0.15  # of the child's delta, by which DARE's sum may differ from least squares: dropping keeps the mean


@dataclass(frozen=True, slots=True)
class SparseMerge:
    """`zeros`: share of the entries that stand still though a weighted sum would move them; `alone[k]`: share of the
    others, where aₖ is clear, that are s·aₖ of source k alone; `smaller`: chance that an entry standing still had a
    smaller delta than one that moved, in [0, 1]. `weights`, `density`: of each source, w and the share of its delta
    that was kept; `scale`: of their sum (TIES). `residual`: ‖child − rebuilt‖ / ‖child‖ over the entries, by its
    method, DARE's dropped entries read off the child.
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
    """Traces of a sparse merge of `sources` (for each, its matrices) around a base; None where there are none.

    `weights`: λ of the sources by least squares; `dtypes`: how the child's matrices are stored.
    Not `sure`: also where the method found does not make the child, as with sources that took no part.
    """
    seen = _Entries.of(child, base, sources, dtypes)
    if seen is None:
        return None
    told = np.abs(np.asarray(weights) @ seen.a) > CLEAR * seen.ulp
    if told.sum() < ENOUGH:
        return None
    a, still = seen.a[:, told], seen.still[told]
    zeros = float(still.mean())
    if not ZEROS <= zeros < 1:
        return None
    size = (np.abs(a) / np.maximum(np.sqrt((a**2).mean(1, keepdims=True)), 1e-300)).max(0)
    smaller = float(mannwhitneyu(size[~still], size[still]).statistic / still.sum() / (~still).sum())
    moved = ~seen.still
    clear = np.abs(seen.a) > CLEAR * seen.ulp  # where a source alone would show
    scales = [
        _scale(seen.e[moved & on], d[moved & on], seen.ulp[moved & on]) for d, on in zip(seen.a, clear, strict=True)
    ]
    alone = tuple(
        _follows(seen.e[moved & on], s * d[moved & on], seen.ulp[moved & on])
        for s, d, on in zip(scales, seen.a, clear, strict=True)
    )
    if max(alone) < ALONE or smaller < SOURCE:
        return None
    scale = float(np.median([s for s, share in zip(scales, alone, strict=True) if share >= FOLLOWED]))
    way = _as_ties(seen, told, scale) if smaller >= TRIMMED else _as_dare(seen, zeros, scales)
    method, found, density, rebuilt = way
    left = float(((seen.c - rebuilt) ** 2).sum())
    off = np.abs(found - np.linalg.lstsq(seen.a.T, seen.e, rcond=None)[0]) * np.sqrt((seen.a**2).mean(1))
    nearest = min(float((seen.e**2).sum()), *(float(((seen.e - delta) ** 2).sum()) for delta in seen.a))
    if sure and left > UNTOLD * nearest:
        return None
    if sure and method == "dare" and off.max() > OFF * float(np.sqrt((seen.e**2).mean())):
        return None
    residual = float(np.sqrt(left / (seen.c**2).sum()))
    scale = scale if method == "ties" else 1.0
    return SparseMerge(
        method, zeros, alone, smaller, tuple(map(float, found)), density, scale, residual, len(seen.e)
    )  # fmt: skip


_Way = tuple[Literal["ties", "dare"], np.ndarray, tuple[float, ...], np.ndarray]


def _as_ties(seen: _Entries, told: np.ndarray, scale: float) -> _Way:
    """(method, weights, densities, the child as TIES makes it)."""
    edges = _edges(seen.a, told & seen.still, seen.number)
    weights = _shares(seen.e, seen.a, edges, scale)
    density = tuple(float(share) for share in (np.abs(seen.a) > edges).mean(1))
    return "ties", weights, density, seen.rounded(seen.b + _rebuilt_ties(seen.a, edges, weights, scale))


def _as_dare(seen: _Entries, zeros: float, scales: Sequence[float]) -> _Way:
    """(method, weights, densities, the child as DARE makes it)."""
    # where every delta would show: a small one that was kept beside a large one that was not looks dropped, too
    clear = (np.abs(seen.a) > 2 * seen.ulp).all(0) & (np.asarray(scales) != 0).all()
    kept = 1.0 - (float(seen.still[clear].mean()) if clear.sum() >= ENOUGH else zeros) ** (1 / len(seen.a))
    rebuilt = seen.rounded(seen.b + _rebuilt_dare(seen.e, seen.a, scales))
    return "dare", np.asarray(scales) * kept, (kept,) * len(seen.a), rebuilt


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


def _shares(e: np.ndarray, a: np.ndarray, edges: np.ndarray, scale: float) -> np.ndarray:
    """w / Σw of TIES: the least squares of Σₖ wₖ·(scale·aₖ − e) = 0 over the sources kept that have e's sign."""
    agree = (np.abs(a) > edges) & (np.sign(a) == np.sign(e * scale))
    misfit = np.where(agree, scale * a - e, 0.0)[:, agree.sum(0) > 1]
    squares = misfit @ misfit.T
    values, vectors = np.linalg.eigh(squares / max(float(np.trace(squares)), 1e-300))
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    found, _ = nnls(np.vstack([root, np.ones(len(a))]), np.append(np.zeros(len(root)), 1.0))
    return found / found.sum()


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


@dataclass(frozen=True, slots=True)
class _Entries:
    """Evenly spaced entries (n,) of the matrices that moved at all: c of the child, b of the base, a (sources, n) the
    deltas; `still`: c is what b is in the child's dtype, whose last place is `ulp`; `number` of the matrix."""

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
        """None where nothing moved, or hardly anything stands still: nobody needs the sources then."""
        step = max(1, sum(matrix.numel() for matrix in child) // ENTRIES)
        c, b, still, number = [], [], [], []
        for i, (made, start) in enumerate(zip(child, base, strict=True)):
            if not torch.equal(made, start):  # where all stands still, it was frozen
                c.append(made.flatten()[::step])
                b.append(start.flatten()[::step])
                still.append(c[-1] == _cast(b[-1], dtypes[i]))
                number.append(np.full(len(c[-1]), i))
        if sum(int(each.sum()) for each in still) < ZEROS * ENOUGH:
            return None
        moved = [int(each[0]) for each in number]
        origin, numbers = torch.cat(b).double().numpy(), np.concatenate(number)
        deltas = [torch.cat([source[i].flatten()[::step] for i in moved]).double().numpy() for source in sources]
        last = np.array([ULP.get(dtype, ULP["F32"]) for dtype in dtypes])[numbers]
        return cls(
            torch.cat(c).double().numpy(), origin, np.array(deltas) - origin, last * np.abs(origin),
            torch.cat(still).numpy(), numbers, tuple(dtypes),
        )  # fmt: skip

    @property
    def e(self) -> np.ndarray:
        """child − base."""
        return self.c - self.b

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """In the dtypes the child is stored in."""
        result = values.copy()
        for i in np.unique(self.number):
            own = self.number == i
            result[own] = _cast(torch.from_numpy(values[own]).float(), self.dtypes[i]).double().numpy()
        return result


def _cast(values: Tensor, dtype: str) -> Tensor:
    """float32 values as they are after being stored in another dtype."""
    return values.to(HALF[dtype]).float() if dtype in HALF else values


def _scale(e: np.ndarray, delta: np.ndarray, ulp: np.ndarray) -> float:
    """The most frequent ratio e/a, of deltas that are far above rounding."""
    clear = np.abs(delta) > 4 * CLEAR * ulp
    ratio = e[clear] / delta[clear]
    ratio = ratio[(np.abs(ratio) > 0.05) & (np.abs(ratio) < MOST_SCALE)]
    if len(ratio) < ENOUGH // 10:
        return 0.0
    bins = np.bincount(np.round((ratio + MOST_SCALE) / 0.01).astype(np.int64))
    top = float(bins.argmax()) * 0.01 - MOST_SCALE
    return float(np.median(ratio[np.abs(ratio - top) <= 0.01]))
