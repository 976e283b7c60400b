"""Second moments of aligned checkpoints: sums over entries that add over slices, shards and processes.

All sums are taken around a pivot: row 0 is the pivot x₀ (the child in `trace`), row i ≥ 1 the difference yᵢ = xᵢ − x₀.
Distances between nearly equal checkpoints are then sums of small squares, not differences of large ones. Around zero,
d² = Gᵢᵢ + Gⱼⱼ − 2Gᵢⱼ in float32 is wrong by 2 % at a relative change of 1e-3, and negative at 3e-4
(docs/methods.md, *Moments*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Entries whose products are added in float32; these sums are added in float64. Each is off by a few units of 6e-8
ROW = 256
# Entries of each model that are worked on at once, and models whose rows, with the pivot's, stay in a processor's cache
# meanwhile (1 MB); of shorter ones the calls cost more than the work. Sums of a pair are made in this order, whoever
# else is there
CHUNK, TOGETHER = 1 << 16, 2
PRODUCTS = 1 << 12  # entries of one matrix product of all rows but the pivot
PAIRED = 12  # rows up to which their products are made pair by pair: a matrix product makes each twice
APART = 0.05  # |correlation| with the pivot's, 8 standard errors in a chunk, below which a row is no relative's
NARROW = (torch.float32, torch.bfloat16, torch.float16, torch.int16, torch.int8, torch.uint8, torch.bool)
SMALL = 1 << 14  # entries up to which all is float64: of gains around 1 little is left after their mean is taken out
LARGEST, SMALLEST = 1e34, 1e-34  # mean squares between which no square of float32 that matters is lost

# Squared norm, as a share of the pivot's, below which a tensor counts as zeros: more than rounding in float64 leaves
NOTHING = 1e-13


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over `count` entries of one tensor for M aligned checkpoints, float64.

    gram: (M, M), Σ over entries of rowᵢ·rowⱼ.  s1: (M,), Σ rowᵢ.  squares: (M, M), Σ rowᵢ²·rowⱼ².
    Additive: the moments of two disjoint sets of entries are the `+` of theirs, in any grouping.
    """

    count: int
    gram: np.ndarray
    s1: np.ndarray
    squares: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.gram + other.gram, self.s1 + other.s1, self.squares + other.squares
        )

    def of(self, rows: Sequence[int]) -> Moments:
        """The sums of some rows only, in the order given; the pivot must be the first of them."""
        pairs = np.ix_(rows, rows)
        return Moments(self.count, self.gram[pairs], self.s1[list(rows)], self.squares[pairs])

    def distance2(self) -> np.ndarray:
        """Squared Euclidean distances d²ᵢⱼ = Σ(xᵢ − xⱼ)², (M, M), never negative.

        Relative error below 1e-3 against the pivot whatever the size of the change; between two others it is
        relative to their distances from the pivot.
        """
        differences = self.gram.copy()
        differences[0, :] = differences[:, 0] = 0.0
        norm = np.diag(differences)
        return np.maximum(norm[:, None] + norm[None, :] - 2 * differences, 0.0)

    def squared_norms(self) -> np.ndarray:
        """Σ xᵢ² = G₀₀ + 2G₀ᵢ + Gᵢᵢ (of the pivot G₀₀), (M,), never negative.

        Of a tensor of zeros the three terms cancel up to rounding: below `NOTHING`·G₀₀ the norm is 0.
        """
        norms = self.gram[0, 0] + 2 * self.gram[0] + np.diag(self.gram) - self._pivot_excess()
        return np.where(norms <= NOTHING * self.gram[0, 0], 0.0, norms)

    def unexplained(self) -> np.ndarray:
        """1 − r² between the pivot and each checkpoint, (M,), in [0, 1], nan where one of them is constant.

        With y = x − x₀, var(x₀)·var(x) − cov² = var(x₀)·var(y) − cov(x₀, y)² (a determinant does not change
        under a shear), so nearly equal rows lose no digits.
        """
        cov = self.gram[0] / self.count - self.s1[0] * self.s1 / self.count**2
        var = np.diag(self.gram) / self.count - (self.s1 / self.count) ** 2
        total = var[0] + 2 * cov + var
        total[0] = var[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            unexplained = (var[0] * var - cov**2) / (var[0] * total)
        unexplained[0] = 0.0
        return np.where((var[0] > 0) & (total > 0), np.clip(unexplained, 0.0, 1.0), np.nan)

    def correlation(self) -> np.ndarray:
        """Pearson correlation r of each checkpoint with the pivot, (M,), in [−1, 1], nan where undefined."""
        cov = self.gram[0] / self.count - self.s1[0] * self.s1 / self.count**2
        cov[1:] += cov[0]
        return np.sign(cov) * np.sqrt(1.0 - self.unexplained())

    def distance2_stderr(self, total: int) -> np.ndarray:
        """Standard error of the mean of (xᵢ − x₀)² when `count` of `total` entries were sampled, (M,).

        sqrt((mean y⁴ − (mean y²)²)/n · (1 − n/N)), the error of a simple random sample with the finite-population
        correction (Cochran 1977); assumes that the entries of a tensor are exchangeable.
        """
        error = self._stderr(np.diag(self.squares), np.diag(self.gram), total)
        error[0] = 0.0
        return error

    def gap_stderr(self, total: int) -> np.ndarray:
        """Standard error of the mean of (xᵢ − x₀)² − (xⱼ − x₀)² under the same sampling, (M, M).

        The two are read at the same entries, so that the difference has a smaller error than either.
        """
        fourth, second = np.diag(self.squares), np.diag(self.gram)
        squares = fourth[:, None] + fourth[None, :] - 2 * self.squares
        return self._stderr(squares, second[:, None] - second[None, :], total)

    def _stderr(self, squares: np.ndarray, sums: np.ndarray, total: int) -> np.ndarray:
        spread = np.maximum(squares / self.count - (sums / self.count) ** 2, 0.0)
        return np.sqrt(spread / self.count * max(0.0, 1.0 - self.count / total))

    def _pivot_excess(self) -> np.ndarray:
        excess = np.zeros(len(self.gram))
        excess[0] = 3 * self.gram[0, 0]  # row 0 is the pivot itself, not a difference
        return excess


def block_moments(rows: Sequence[torch.Tensor], fourth: bool = True, relatives: bool = False) -> Moments:
    """Moments of one block: M tensors of n entries each, the pivot first, of any dtype, on the processor. O(M²n).

    Differences and products are float32, `ROW` of them are added in float32 and the rest in float64: every sum is off
    by less than 1e-6 of the sum of its terms' sizes. Of small blocks, and where float32 would lose squares (float64 and
    wide integers, values above 1e17 or below 1e-17), all is float64. fourth: whether `squares` are wanted, which are
    zeros otherwise. relatives: products of two rows behind the pivot are made of those only whose correlation with it
    is `APART` or more in the first `CHUNK` entries, and are NaN of others: O(Mn) where nobody is related. A tensor with
    NaN or Inf makes its own sums NaN, and no others. What belongs to the pivot and one other row (its diagonal entry,
    its entry in row 0, its sum) does not depend by a bit on which other rows there are.
    """
    count = rows[0].numel()
    wide = {i for i, row in enumerate(rows) if row.dtype not in NARROW and row.dtype.itemsize != 1}
    if 0 in wide or count <= SMALL:
        wide = {*range(len(rows))}
    moments = Moments(count, *(np.zeros(shape) for shape in ((len(rows),) * 2, len(rows), (len(rows),) * 2)))
    with np.errstate(all="ignore"):  # values may be anything; what is lost is made again, what is broken stays NaN
        if len(wide) < len(rows):
            moments = _sums(rows, torch.float32, fourth, relatives)
            wide |= lost_rows(rows, moments)
        if wide:
            moments = _with_rows(moments, _sums(rows, torch.float64, fourth, relatives), wide)
    return _without_broken(moments)


def _without_broken(moments: Moments) -> Moments:
    """One NaN or Inf makes all sums of its row NaN, and only those."""
    broken = ~np.isfinite(np.diag(moments.gram))
    for sums in (moments.gram, moments.squares):
        sums[broken, :] = sums[:, broken] = np.nan
    moments.s1[broken] = np.nan
    return moments


def doubtful(squares: np.ndarray, count: int) -> np.ndarray:
    """Whether float32 may not hold the squares that were summed over so many entries; true also of zeros and NaN."""
    return ~((squares >= SMALLEST * count) & (squares <= LARGEST * count))


def lost_rows(rows: Sequence[torch.Tensor], moments: Moments) -> set[int]:
    """The rows of which float32 may have lost squares; all of them where it lost the pivot's."""
    outside = map(int, np.flatnonzero(doubtful(np.diag(moments.gram), moments.count)))
    lost = {i for i in outside if i == 0 or not _equal(rows[0], rows[i])}
    if 0 in lost and bool(rows[0].any()):
        return {*range(len(rows))}
    return lost - {0}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = (row.float() if row.dtype.itemsize == 1 else row for row in (a, b))  # fp8 compares with none
    return bool((a == b).all())


def _with_rows(narrow: Moments, wide: Moments, rows: set[int]) -> Moments:
    """Some rows of float64 sums in the place of those of float32."""
    for i in rows:
        for mine, theirs in ((narrow.gram, wide.gram), (narrow.squares, wide.squares)):
            mine[i, :], mine[:, i] = theirs[i, :], theirs[:, i]
        narrow.s1[i] = wide.s1[i]
    return narrow


def relatives_of_pivot(begun: Moments) -> list[int]:
    """The rows that may be correlated with the pivot, by the sums of a slice's first `CHUNK` entries."""
    r = begun.correlation()
    return [i for i in range(1, len(r)) if not abs(r[i]) < APART]


def _sums(rows: Sequence[torch.Tensor], dtype: torch.dtype, fourth: bool, relatives: bool) -> Moments:
    """The moments with differences and products in `dtype`."""
    models, count = len(rows), rows[0].numel()
    work = _Work(models, min(CHUNK, -(-count // ROW) * ROW), dtype)
    # of every ROW entries: products with the pivot, with itself, sums; the first two of the squares
    single = np.zeros((5 if fourth else 3, models, -(-count // ROW)), dtype=str(dtype).removeprefix("torch."))
    gram, squares, chosen = np.zeros((models, models)), np.zeros((models, models)), [*range(1, models)]
    for at, pieces in zip(range(0, count, CHUNK), zip(*(row.split(CHUNK) for row in rows), strict=True), strict=True):
        length = len(pieces[0])
        here = single[:, :, at // ROW : -(-(at + length) // ROW)]
        work.take(pieces, here)
        if relatives and not at and count > SMALL:
            chosen = relatives_of_pivot(put_together(length, here))
        work.add_products(gram, chosen)
        if fourth:
            work.square(here[3:])
            work.add_products(squares, chosen)
    left = [i for i in range(1, models) if i not in chosen]
    for table in (gram, squares) if fourth else (gram,):
        table[left, 1:] = table[1:, left] = np.nan
    return put_together(count, single, gram, squares, rows)


class _Work:
    """Some entries of the pivot, and the differences of the other rows from it. In NumPy's hands: of so short calls
    torch's cost more than the work."""

    def __init__(self, models: int, step: int, dtype: torch.dtype) -> None:
        self._memory = torch.zeros(models, step, dtype=dtype)
        self._ones = self._in_rows(torch.ones(1, ROW, dtype=dtype))
        self._shorten(step)

    def _shorten(self, length: int) -> None:
        whole = -(-length // ROW) * ROW
        self._memory[:, length:whole] = 0  # up to a whole row: zeros add nothing
        self._rows = [*self._memory[:, :length]]
        self._blocks = self._in_rows(self._memory[:, :whole])

    @staticmethod
    def _in_rows(entries: torch.Tensor) -> np.ndarray:
        """(k, n) as (k, n / ROW, ROW)."""
        return entries.unflatten(1, (-1, ROW)).numpy()

    def take(self, pieces: Sequence[torch.Tensor], out: np.ndarray) -> None:
        """Take other entries; out[:3]: (3, M, n / ROW), of every `ROW` of each model's row the product with the
        pivot's, with itself, and the sum."""
        if len(pieces[0]) != len(self._rows[0]):
            self._shorten(len(pieces[0]))
        self._rows[0].copy_(pieces[0])
        pivot = self._blocks[0]
        for first in range(0, len(pieces), TOGETHER):
            some = slice(max(first, 1), first + TOGETHER)
            for target, piece in zip(self._rows[some], pieces[some], strict=True):
                target.copy_(piece)
            part = self._blocks[some]
            part -= pivot
            part = self._blocks[first : some.stop]
            for kind, other in enumerate((pivot, part, self._ones)):
                np.vecdot(part, other, out=out[kind, first : some.stop])

    def square(self, out: np.ndarray) -> None:
        """Square all entries; out: (2, M, n / ROW), the products with the pivot's, and with themselves."""
        self._blocks *= self._blocks
        for kind, other in enumerate((self._blocks[0], self._blocks)):
            np.vecdot(self._blocks, other, out=out[kind])

    def add_products(self, table: np.ndarray, chosen: Sequence[int]) -> None:
        """Add the inner products of the chosen rows with one another; of those of a row with itself nothing is kept."""
        if len(chosen) < 2:
            return
        if len(chosen) > PAIRED:
            table[np.ix_(chosen, chosen)] += _matrix_products(self._memory[chosen, : ROW * self._blocks.shape[1]])
            return
        blocks = self._blocks[chosen] if len(chosen) < len(self._blocks) - 1 else self._blocks[1:]
        for k, i in enumerate(chosen[:-1]):
            products = np.vecdot(blocks[k], blocks[k + 1 :]).astype(np.float64).sum(-1)
            table[i, chosen[k + 1 :]] += products
            table[chosen[k + 1 :], i] += products


def put_together(
    count: int, single: np.ndarray, gram: np.ndarray | None = None, squares: np.ndarray | None = None,
    rows: Sequence[torch.Tensor] = (),
) -> Moments:  # fmt: skip
    """The moments from sums of each row with the pivot, and of the rows behind it with one another.

    single: (3 or 5, M, parts), of each part of the entries: products with the pivot, with itself, and sums; the first
    two of the squares. gram, squares: (M, M), products of rows behind the pivot. rows: of those that are equal the
    products are made equal, too.
    """
    sums = single.astype(np.float64).sum(-1)
    empty = np.zeros((single.shape[1],) * 2)
    found = Moments(
        count, (empty if gram is None else gram).copy(), sums[2], (empty if squares is None else squares).copy()
    )
    fill_in(found.gram, found.squares, sums)
    return with_copies(found, rows)


def fill_in(gram: np.ndarray, squares: np.ndarray, sums: np.ndarray) -> None:
    """Put what belongs to the pivot, and each row's product with itself, into tables (…, M, M), in place. sums: (3 or
    5, …, M), as `single` of `put_together` added up."""
    each = range(gram.shape[-1])
    for table, kind in ((gram, 0), (squares, 3)):
        if kind < len(sums):
            table[..., 0, :] = table[..., :, 0] = sums[kind]
            table[..., each, each] = sums[kind + 1]


def with_copies(moments: Moments, rows: Sequence[torch.Tensor]) -> Moments:
    """Of rows behind the pivot that are equal the products are those of one of them with itself: their distance is
    0."""
    if len(rows) < 3:
        return moments
    own = np.diag(moments.gram)[1 : len(rows)]
    for i, j in np.argwhere(np.triu((own[:, None] == own) & (own > 0), 1)) + 1:
        if _equal(rows[i], rows[j]):
            for table in (moments.gram, moments.squares):
                table[i, j] = table[j, i] = table[i, i]
    return moments


def _matrix_products(rows: torch.Tensor) -> np.ndarray:
    """Inner products of the rows, (M, M) float64, by matrix products of `PRODUCTS` entries each."""
    whole = rows.shape[1] // PRODUCTS * PRODUCTS
    blocks = rows[:, :whole].unflatten(1, (-1, PRODUCTS)).transpose(0, 1)
    rest = rows[:, whole:]
    return (torch.bmm(blocks, blocks.mT).double().sum(0) + (rest @ rest.T).double()).numpy()
