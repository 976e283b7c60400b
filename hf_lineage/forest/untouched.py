"""Weights that a fine-tune never touched: what they say about the order of three relatives on a path.

A weight without a gradient (of a token that does not occur, a dead pixel, a dead unit) stays what it was, or is shrunk
by decoupled weight decay, all such weights of a matrix by the same factor κ. In 32 bits a coincidence is rare. If s
lies
between x and p, then nothing that x and p share in this way can have been touched between p and s. So of the weights
shared by two of three relatives only, those of the two ends are missing:

    median of (a, b, c) = the one that is left out by the smallest of |b ∩ c \\ a|, |a ∩ c \\ b|, |a ∩ b \\ c|.

Drift that relatives share because they learned the same task pulls them together by every distance; it leaves this
alone. (Our own; no paper known to us uses it.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SPIKE = 4e-6  # |log(ratio/κ)| of untouched weights: rounding of some hundred multiplications in float32
ENTRIES = 1 << 17  # of one matrix are looked at
FEW = 30  # weights that a spike needs …
DENSE = 3.0  # … at so many times the density around it
DECISIVE = 20  # weights that two relatives share and a third does not, from which it cannot be between them …
TIMES = 5  # … if they are so many times those that speak against another choice


class Untouched:
    """Counts of untouched weights among three models; pairs are compared once and kept as bits."""

    def __init__(self, units: Sequence[torch.Tensor]) -> None:
        self._units = [matrix[:, :: -(-matrix[0].numel() // ENTRIES) or 1].flatten(1).numpy() for matrix in units]
        self._pairs: dict[tuple[int, int], list[np.ndarray]] = {}
        self._triples: dict[tuple[int, int, int], np.ndarray] = {}

    def alone(self, a: int, b: int, c: int) -> np.ndarray:
        """(T, 3): of each matrix, how many weights are shared by b and c only, by a and c only, by a and b only."""
        order = np.argsort((a, b, c), kind="stable")
        i, j, k = key = (min(a, b, c), a + b + c - min(a, b, c) - max(a, b, c), max(a, b, c))
        if key not in self._triples:
            counts = [
                [np.bitwise_count(two & ~one & ~other).sum() for two, one, other in ((x, y, z), (y, x, z), (z, x, y))]
                for x, y, z in zip(self._pair(j, k), self._pair(i, k), self._pair(i, j), strict=True)
            ]  # fmt: skip
            self._triples[key] = np.array(counts, dtype=np.float64).reshape(-1, 3)
        found = np.empty_like(self._triples[key])
        found[:, order] = self._triples[key]
        return found

    def between(self, a: int, b: int, c: int, weights: np.ndarray | None = None) -> tuple[int, ...]:
        """Which of the three may lie between the other two, of 0, 1 and 2: all of them where this cannot tell.

        `weights` (T,): how often each matrix counts.
        """
        counts = self.alone(a, b, c)
        total = counts.sum(0) if weights is None else weights @ counts
        most = max(DECISIVE, TIMES * float(total.min()))
        return tuple(int(k) for k in np.flatnonzero(total < most))

    def _pair(self, i: int, j: int) -> list[np.ndarray]:
        if (i, j) not in self._pairs:
            self._pairs[i, j] = [np.packbits(shared(matrix[i], matrix[j])) for matrix in self._units]
        return self._pairs[i, j]


def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which weights of two models differ by one common factor κ in [1/3, 3] only, (n,) bool; none where there is no
    spike among the ratios. Zeros never count."""
    found = np.zeros(first.shape, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = second.astype(np.float64) / first
    near = np.flatnonzero((ratio > 1 / 3) & (ratio < 3))
    if len(near) < FEW:
        return found
    logs = np.log(ratio[near])
    ascending = np.sort(logs)
    widths = ascending[FEW - 1 :] - ascending[: len(ascending) - FEW + 1]
    start = int(np.argmin(widths))
    if widths[start] > 2 * SPIKE:
        return found
    away = np.abs(logs - ascending[start + FEW // 2])
    inside, around = int((away <= SPIKE).sum()), int((away <= 10 * SPIKE).sum())
    if inside >= FEW and inside * 9 >= DENSE * (around - inside):
        found[near[away <= SPIKE]] = True
    return found
