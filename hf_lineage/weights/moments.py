"""`Moments`: what is additive over the entries of aligned checkpoints, taken around a pivot.

Row 0 is the pivot x₀ (the child in `trace`), row i ≥ 1 the difference yᵢ = xᵢ − x₀. Distances between nearly
equal checkpoints are then sums of small squares instead of differences of large ones (METHODS §5): around zero,
`d² = Gᵢᵢ + Gⱼⱼ − 2Gᵢⱼ` in float32 is off by 2 % at a relative change of 1e-3 and negative at 3e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Entries worked on at once on a processor, over all rows: they stay in its cache, and below torch's own threshold for
# splitting an operation among threads, whose barriers cost ten times the work where another program shares the cores.
STEP = 1 << 14


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

    def distance2(self) -> np.ndarray:
        """Squared Euclidean distances d²ᵢⱼ = Σ(xᵢ − xⱼ)², (M, M), never negative.

        Relative error below 1e-3 against the pivot whatever the size of the change; between two others it is
        relative to their distances from the pivot.
        """
        away = self.gram.copy()
        away[0, :] = away[:, 0] = 0.0
        norm = np.diag(away)
        return np.maximum(norm[:, None] + norm[None, :] - 2 * away, 0.0)

    def squared_norms(self) -> np.ndarray:
        """Σ xᵢ², (M,)."""
        return np.maximum(self.gram[0, 0] + 2 * self.gram[0] + np.diag(self.gram) - self._pivot_twice(), 0.0)

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
            rest = (var[0] * var - cov**2) / (var[0] * total)
        rest[0] = 0.0
        return np.where((var[0] > 0) & (total > 0), np.clip(rest, 0.0, 1.0), np.nan)

    def correlation(self) -> np.ndarray:
        """Pearson correlation r of each checkpoint with the pivot, (M,), in [−1, 1], nan where undefined."""
        cov = self.gram[0] / self.count - self.s1[0] * self.s1 / self.count**2
        cov[1:] += cov[0]
        return np.sign(cov) * np.sqrt(1.0 - self.unexplained())

    def distance2_stderr(self, total: int) -> np.ndarray:
        """Standard error of the mean of (xᵢ − x₀)² when `count` of `total` entries were sampled, (M,).

        sqrt((mean y⁴ − (mean y²)²)/n · (1 − n/N)), entries of the tensor taken as exchangeable.
        """
        error = self._stderr(np.diag(self.squares), np.diag(self.gram), total)
        error[0] = 0.0
        return error

    def gap_stderr(self, total: int) -> np.ndarray:
        """Standard error of the mean of (xᵢ − x₀)² − (xⱼ − x₀)² under the same sampling, (M, M).

        The two are read at the same places, so the difference is known better than either.
        """
        fourth, second = np.diag(self.squares), np.diag(self.gram)
        squares = fourth[:, None] + fourth[None, :] - 2 * self.squares
        return self._stderr(squares, second[:, None] - second[None, :], total)

    def _stderr(self, squares: np.ndarray, sums: np.ndarray, total: int) -> np.ndarray:
        spread = np.maximum(squares / self.count - (sums / self.count) ** 2, 0.0)
        return np.sqrt(spread / self.count * max(0.0, 1.0 - self.count / total))

    def _pivot_twice(self) -> np.ndarray:
        twice = np.zeros(len(self.gram))
        twice[0] = 3 * self.gram[0, 0]  # row 0 is the pivot itself, not a difference
        return twice


def block_moments(rows: Sequence[torch.Tensor], device: torch.device | str = "cpu") -> Moments:
    """Moments of one block: M tensors of n entries, the pivot first, any float dtype. O(M²n), float64.

    Products are taken in float64 on devices that have it (all but MPS, where the block stays on the CPU), in
    steps that stay in the processor's cache.
    """
    place = torch.device(device)
    place = torch.device("cpu") if place.type == "mps" else place
    count = rows[0].numel()
    step = min(count, max(256, STEP // len(rows))) if place.type == "cpu" else count
    work = torch.empty(len(rows), step, dtype=torch.float64, device=place)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=place)
    s1, squares = torch.zeros_like(gram[0]), torch.zeros_like(gram)
    for start in range(0, count, step):
        part = work[:, : min(step, count - start)]
        for i, row in enumerate(rows):
            part[i].copy_(row[start : start + step])
        part[1:] -= part[0]
        gram += part @ part.T
        s1 += part.sum(1)
        part.mul_(part)
        squares += part @ part.T
    found = Moments(count, gram.cpu().numpy(), s1.cpu().numpy(), squares.cpu().numpy())
    broken = ~np.isfinite(np.diag(found.gram))  # one NaN or Inf makes all sums of its row NaN, and only those
    for sums in (found.gram, found.squares):
        sums[broken, :] = sums[:, broken] = np.nan
    found.s1[broken] = np.nan
    return found
