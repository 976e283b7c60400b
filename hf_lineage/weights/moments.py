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

# Entries of each model processed at once on a CPU: those of a few models stay in its cache, and each model's are fewer
# than torch splits among threads, whose barriers cost ten times the work where another program shares the cores. The
# number does not depend on how many models there are: the order of the additions is part of a pair's result.
CPU_CHUNK = 1 << 12


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


def block_moments(rows: Sequence[torch.Tensor], device: torch.device | str = "cpu") -> Moments:
    """Moments of one block: M tensors of n entries each, the pivot first, of any float dtype. O(M²n).

    Products and sums are float64, on every device that has it; on MPS, which has not, the block stays on the CPU.
    A tensor with NaN or Inf makes its own sums NaN, and no others. What belongs to the pivot and one other row (its
    diagonal entry, its entry in row 0, its sum) does not depend by a bit on which other rows there are: a matrix
    product rounds otherwise for another number of rows, so these are made row by row. Only the products of two rows
    that are not the pivot come from the matrix product.
    """
    target = torch.device(device)
    target = torch.device("cpu") if target.type == "mps" else target
    count = rows[0].numel()
    step = CPU_CHUNK if target.type == "cpu" else max(8, -(-count // 8) * 8)  # aligned rows add up in one order
    work = torch.empty(len(rows), step, dtype=torch.float64, device=target)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=target)
    s1, squares = torch.zeros_like(gram[0]), torch.zeros_like(gram)
    for start in range(0, count, step):
        part = work[:, : min(step, count - start)]
        for i, row in enumerate(rows):
            part[i].copy_(row[start : start + step])
        part[1:] -= part[0]
        gram += _products(part)
        s1 += torch.stack([row.sum() for row in part])
        part.mul_(part)
        squares += _products(part)
    moments = Moments(count, gram.cpu().numpy(), s1.cpu().numpy(), squares.cpu().numpy())
    broken = ~np.isfinite(np.diag(moments.gram))  # one NaN or Inf makes all sums of its row NaN, and only those
    for sums in (moments.gram, moments.squares):
        sums[broken, :] = sums[:, broken] = np.nan
    moments.s1[broken] = np.nan
    return moments


def _products(part: torch.Tensor) -> torch.Tensor:
    """Inner products of all rows, (M, M); those with row 0 and those of a row with itself as of the two alone.

    Of two rows whose squares are the same, which may be copies, too: a copy has distance 0 from its original.
    """
    if len(part) < 3:
        products = torch.empty(len(part), len(part), dtype=part.dtype, device=part.device)
    else:
        products = part @ part.T
    for i, row in enumerate(part):
        products[i, i] = torch.dot(row, row)
        products[0, i] = products[i, 0] = torch.dot(part[0], row)
    squares = products.diagonal()
    for i, j in (squares[:, None] == squares).triu(1).nonzero().tolist() if len(part) > 2 else ():
        products[i, j] = products[j, i] = torch.dot(part[i], part[j])
    return products
