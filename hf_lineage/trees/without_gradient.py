"""Weights without gradient: what they say about the order of three related models on a path.

A weight without gradient (of a token that does not occur, a dead pixel, a dead unit) keeps its value, or is shrunk by
decoupled weight decay, all such weights of a matrix by the same factor κ. In 32 bits a coincidence is rare. If s lies
between x and p, then s shares with both whatever x and p share in this way. So of three related models, the one that
lacks many weights that the other two share cannot lie between them, if hardly any are lacking from another one:

    |(x ∩ p) − s| ≥ MIN_DECISIVE_WEIGHTS and ≥ DECISIVE_RATIO · min(|(x ∩ s) − p|, |(s ∩ p) − x|).

Two siblings of one recipe round alike when decay multiplies by nearly 1, and so share what is not exactly their
parent's any more. So what is within `ROUNDING_WIDTH` of a common factor there is not counted.

Related models that learned the same task share drift, which makes every distance between them smaller; it does not
change these counts. (This project; no paper known to us uses it. docs/methods.md, *Phylogeny*.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SPIKE_WIDTH = 4e-6  # |log(ratio/κ)| of such weights: rounding of some hundred multiplications in float32
ROUNDING_WIDTH = 3e-4  # what thousands of multiplications by a factor next to 1 may make of it
MAX_ENTRIES = 1 << 17  # of one matrix that are compared
MIN_SPIKE_WEIGHTS = 30  # weights that a spike needs …
MIN_SPIKE_SHARE = 0.003  # … and share of all: in 16 bits unrelated models have a few equal ratios …
MIN_SPIKE_DENSITY = 3.0  # … at so many times the density around it
MIN_DECISIVE_WEIGHTS = 20  # that two models share and a third does not, from which it cannot be between them …
DECISIVE_RATIO = 5  # … if they are so many times those that speak against another choice


class WithoutGradient:
    """Counts of shared weights without gradient among three models; each pair is compared once and kept as bits.

    units: T matrices (M, rows, width) float32, of which at most about `MAX_ENTRIES` a model are compared.
    """

    def __init__(self, units: Sequence[torch.Tensor]) -> None:
        self._units = [matrix[:, :: -(-matrix[0].numel() // MAX_ENTRIES) or 1].flatten(1).numpy() for matrix in units]
        self._pairs: dict[tuple[int, int], list[np.ndarray]] = {}
        self._triples: dict[tuple[int, int, int], np.ndarray] = {}

    def shared_by_two(self, a: int, b: int, c: int) -> np.ndarray:
        """How many weights of each matrix are shared by b and c only, by a and c only, by a and b only: (T, 3)."""
        order = np.argsort((a, b, c), kind="stable")
        i, j, k = key = (min(a, b, c), a + b + c - min(a, b, c) - max(a, b, c), max(a, b, c))
        if key not in self._triples:
            pairs = zip(self._units, self._pair(j, k), self._pair(i, k), self._pair(i, j), strict=True)
            counts = [
                [
                    _changed_in_third(units[j], units[i], x & ~y & ~z),
                    _changed_in_third(units[i], units[j], y & ~x & ~z),
                    _changed_in_third(units[i], units[k], z & ~x & ~y),
                ]
                for units, x, y, z in pairs
            ]
            self._triples[key] = np.array(counts, dtype=np.float64).reshape(-1, 3)
        found = np.empty_like(self._triples[key])
        found[:, order] = self._triples[key]
        return found

    def between(self, a: int, b: int, c: int, weights: np.ndarray | None = None) -> tuple[int, ...]:
        """Which of a (0), b (1) and c (2) may lie between the other two; all of them where the counts do not decide.

        weights: (T,), how often each matrix counts.
        """
        counts = self.shared_by_two(a, b, c)
        total = counts.sum(0) if weights is None else weights @ counts
        most = max(MIN_DECISIVE_WEIGHTS, DECISIVE_RATIO * float(total.min()))
        return tuple(int(k) for k in np.flatnonzero(total < most))

    def _pair(self, i: int, j: int) -> list[np.ndarray]:
        if (i, j) not in self._pairs:
            self._pairs[i, j] = [np.packbits(shared(matrix[i], matrix[j])) for matrix in self._units]
        return self._pairs[i, j]


def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which weights of two models differ by one common factor κ in [1/3, 3] only, (n,) bool.

    κ is the densest ratio, within `SPIKE_WIDTH` of its logarithm. None where the ratios have no spike: too few weights
    (`MIN_SPIKE_WEIGHTS`, `MIN_SPIKE_SHARE`), or not `MIN_SPIKE_DENSITY` times the density around it. Zeros never count.
    first, second: (n,) float32.
    """
    found = np.zeros(first.shape, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = second.astype(np.float64) / first
    near = np.flatnonzero((ratio > 1 / 3) & (ratio < 3))
    if len(near) < MIN_SPIKE_WEIGHTS:
        return found
    logs = np.log(ratio[near])
    ascending = np.sort(logs)
    held = np.searchsorted(ascending, ascending + 2 * SPIKE_WIDTH, side="right") - np.arange(len(ascending))
    start = int(np.argmax(held))
    away = np.abs(logs - ascending[start + held[start] // 2])
    inside, around = int((away <= SPIKE_WIDTH).sum()), int((away <= 10 * SPIKE_WIDTH).sum())
    if inside >= max(MIN_SPIKE_WEIGHTS, MIN_SPIKE_SHARE * len(first)) and inside * 9 >= MIN_SPIKE_DENSITY * (
        around - inside
    ):
        found[near[away <= SPIKE_WIDTH]] = True
    return found


def _changed_in_third(one: np.ndarray, other: np.ndarray, bits: np.ndarray) -> int:
    """How many of the weights in `bits` differ in `other` from `one` by more than rounding of their common factor."""
    shared_at = np.flatnonzero(np.unpackbits(bits, count=len(one)))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.abs(other[shared_at].astype(np.float64) / one[shared_at]))
    known = np.isfinite(logs)
    middle = np.median(logs[known]) if known.any() else 0.0
    return int((~known | (np.abs(logs - middle) > ROUNDING_WIDTH)).sum())
