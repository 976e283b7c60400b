"""Who came first, by the growth of rows: the slope of their squared norms' change on their squared step.

For each row u of a matrix let y_u = ‖c_u‖² − ‖p_u‖² and x_u = ‖c_u − p_u‖². A step that does not know the sign of the
weights it starts from makes the squared norm grow by its own square: with an intercept for each matrix, which takes out
weight decay and growth in common, the slope of y on x is about 1 if the candidate came first, −1 if the child did
(y + 2⟨·⟩ changes its sign, x does not), 0 for siblings that moved alike. Slopes are pooled over matrices by inverse
variance, with heteroscedasticity-robust errors (White, *Econometrica* 1980, HC1).

It says a sign where the slope is plain and near 1: |z| > 4, 0.2 ≤ |slope| ≤ 3. Of a model that was still learning every
row moves the same way, and the slope is far larger. See docs/methods.md, *Growth of rows*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .position import Position

MIN_ROWS, MIN_WIDTH = 32, 16
MIN_Z = 4.0
LEAST_SLOPE, LARGEST_SLOPE = 0.2, 3.0
METHOD = "growth"


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """Sums over the rows of one matrix that White's errors of a line need: Σ xⁱyʲ in `sums[i, j]`, i ≤ 4, j ≤ 2.

    x: squared steps, y: growth of the squared norms, float64, both in units of `scale`. entries: weights in them.
    Additive over disjoint rows of one matrix.
    """

    rows: int
    entries: int
    sums: np.ndarray

    def __add__(self, other: Growth) -> Growth:
        return Growth(self.rows + other.rows, self.entries + other.entries, self.sums + other.sums)


def count_growth(child: torch.Tensor, candidate: torch.Tensor) -> Growth:
    """The sums of whole rows, (rows, width) of any float dtype."""
    p, c = candidate.double().numpy(), child.double().numpy()
    step = c - p
    x, y = np.vecdot(step, step), np.vecdot(step, c + p)
    return Growth(len(x), p.size, np.array([[(x**i * y**j).sum() for j in range(3)] for i in range(5)]))


def growth_position(matrices: Iterable[Growth]) -> Position:
    """λ: the pooled slope, cut at ±1. Silent where it is not plain, and out of the range where growth speaks."""
    found = [m for m in matrices if m.rows >= MIN_ROWS and m.entries >= MIN_WIDTH * m.rows]
    lines = [line for line in map(_line, found) if line]
    entries = sum(m.entries for m in found)
    if not lines:
        return Position.silent(METHOD, "no matrix of enough rows changed", entries)
    slopes, variances = np.array(lines).T
    precision = float((1 / variances).sum())
    slope = float((slopes / variances).sum() / precision)
    freedom = max(len(lines) - 1, 1)
    misfit = float(((slopes - slope) ** 2 / variances).sum() / freedom) if len(lines) > 1 else 1.0
    stderr = math.sqrt(max(misfit, 1.0) / precision)
    told = f"slope of the rows' growth on their squared step {slope:.2f} ± {stderr:.2f}"
    if abs(slope) < MIN_Z * stderr:
        return Position.silent(METHOD, f"{told}: not plain", entries)
    if not LEAST_SLOPE <= abs(slope) <= LARGEST_SLOPE:
        return Position.silent(METHOD, f"{told}: outside the range where it tells growth from drift", entries)
    return Position(max(-1.0, min(slope, 1.0)), stderr, misfit, METHOD, entries, told)


def _line(m: Growth) -> tuple[float, float] | None:
    """Slope of y on x with an intercept, and its HC1 variance; None where x does not vary."""
    n, s = m.rows, m.sums
    mean_x, mean_y = s[1, 0] / n, s[0, 1] / n
    spread = s[2, 0] - n * mean_x**2
    if not (math.isfinite(s.sum()) and spread > 1e-9 * s[2, 0] > 0):
        return None
    slope = (s[1, 1] - n * mean_x * mean_y) / spread
    intercept = mean_y - slope * mean_x
    # Σ (x − x̄)²(y − a − bx)², multiplied out
    residual = {(0, 2): 1.0, (0, 1): -2 * intercept, (1, 1): -2 * slope, (0, 0): intercept**2}
    residual |= {(1, 0): 2 * intercept * slope, (2, 0): slope**2}
    meat = sum(
        weight * (s[i + 2, j] - 2 * mean_x * s[i + 1, j] + mean_x**2 * s[i, j]) for (i, j), weight in residual.items()
    )
    variance = max(meat, 0.0) / spread**2 * n / (n - 2)
    return (slope, variance) if variance > 0 else None
