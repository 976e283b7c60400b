"""Is this candidate related at all? A permutation test over hidden units, in closed form and by simulation.

Hidden units of a network trained from its own random start are exchangeable (i.i.d. initialisation,
permutation-equivariant optimiser). For one layer let A, B (units × width) be the matrices of child and candidate,
centred over units, rows scaled to length 1, and C = A Bᵀ. If the two are independent, the true matching of their
units is one uniformly random permutation π among h!, so t = tr C is a draw of t(π) = Σᵢ C[i, π(i)], which has
(Hoeffding 1951)

    mean = ΣC / h,    variance = Σ D² / (h − 1),    D = C − row means − column means + mean of C.

A small p means common origin: shared initialisation counts. It is not a statement about who came first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import gammaln, log_ndtr

DRAWS = 999
MORE_DRAWS = 99_999  # where the normal tail is refused and none of the first draws reached the observed value
SKEWNESS, KURTOSIS = 0.2, 0.5  # up to here the draws support a normal tail


@dataclass(frozen=True, slots=True)
class LayerTest:
    """One hidden-unit order: C's statistic, its mean and variance under independence, and draws of it."""

    order: str
    units: int
    statistic: float
    mean: float
    variance: float
    draws: np.ndarray
    products: np.ndarray  # C, (units, units)

    @property
    def z(self) -> float:
        """(t − mean)/sd; nan where the variance is zero."""
        return (self.statistic - self.mean) / math.sqrt(self.variance) if self.variance > 0 else math.nan


@dataclass(frozen=True, slots=True)
class IndependenceTest:
    """All layers together: t and variances added, one-sided.

    `log10_p` is the normal tail where skewness and kurtosis of the draws support it, else that of
    p = (1 + #{t* ≥ t})/(draws + 1); never below −Σ log10(h!), the smallest p so many units can give.
    """

    z: float
    log10_p: float
    method: Literal["normal", "monte_carlo"]
    p_monte_carlo: float
    draws: int
    skewness: float
    kurtosis: float
    layers: tuple[LayerTest, ...]

    @property
    def p(self) -> float:
        """The p-value, in (0, 1]; 0.0 where it is too small for a float."""
        return 10.0**self.log10_p


def prepare(units: torch.Tensor) -> torch.Tensor:
    """Centre over units and scale each unit to length 1 (a unit equal to the mean stays zero). (h, d) → (h, d)."""
    centred = units.float() - units.float().mean(0)
    length = centred.norm(dim=1, keepdim=True)
    return centred / torch.where(length > 0, length, 1.0)


def layer_test(
    order: str, child: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor], seed: int, draws: int = DRAWS
) -> LayerTest:
    """Test one hidden-unit order; matrices of one order (gate and up) are joined along their width.

    child, candidate: matrices (units, width) with the same units in the same rows. O(h²d + draws·h).
    """
    c = sum((prepare(a) @ prepare(b).T for a, b in zip(child, candidate, strict=True)), torch.zeros(1))
    return from_products(order, c.double().cpu().numpy(), seed, draws)


def from_products(order: str, c: np.ndarray, seed: int, draws: int = DRAWS) -> LayerTest:
    """Test the trace of a (h, h) matrix of products against random matchings of its rows and columns."""
    h = len(c)
    doubly = c - c.mean(0) - c.mean(1, keepdims=True) + c.mean()
    return LayerTest(
        order, h, float(np.trace(c)), float(c.sum() / h), float((doubly**2).sum() / (h - 1)),
        draw(c, order, seed, draws), c,
    )  # fmt: skip


def draw(c: np.ndarray, order: str, seed: int, draws: int) -> np.ndarray:
    """`draws` values of Σᵢ C[i, π(i)] for uniformly random permutations π, seeded by order. (draws,)"""
    rng = np.random.default_rng(_digest(seed, order))
    rows = np.arange(len(c))
    result = np.empty(draws)
    step = max(1, 2_000_000 // len(c))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        matching = rng.permuted(np.broadcast_to(rows, (count, len(c))), axis=1)
        result[start : start + count] = c[rows, matching].sum(1)
    return result


def combine(layers: Iterable[LayerTest], seed: int) -> IndependenceTest | None:
    """Add the layers up. None where no layer can say anything (no layer, or no variance in any).

    Layers permute independently, so statistics, means, variances and draws add. Where the normal tail is
    refused and no draw reached the observed value, the draws are repeated in greater number; the second p-value
    then replaces the first, which keeps the test valid (it is looked at only in the first's extreme cell).
    """
    kept = tuple(layer for layer in layers if layer.variance > 0)
    if not kept:
        return None
    t, mean = sum(layer.statistic for layer in kept), sum(layer.mean for layer in kept)
    z = (t - mean) / math.sqrt(sum(layer.variance for layer in kept))
    null = np.sum([layer.draws for layer in kept], axis=0)
    skewness, kurtosis = _shape(null)
    normal = abs(skewness) <= SKEWNESS and abs(kurtosis) <= KURTOSIS
    p, count = _tail(null, t), len(null)
    if not normal and p <= 1 / (count + 1) and count < MORE_DRAWS:
        null = np.sum([draw(layer.products, layer.order, seed + 1, MORE_DRAWS) for layer in kept], axis=0)
        p, count = _tail(null, t), len(null)
    log10_p = float(log_ndtr(-z)) / math.log(10) if normal else math.log10(p)
    floor = -sum(float(gammaln(layer.units + 1)) for layer in kept) / math.log(10)
    return IndependenceTest(
        z, max(log10_p, floor), "normal" if normal else "monte_carlo", p, count, skewness, kurtosis, kept
    )


def holm(log10_p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of log10 p-values for the family of these tests (family-wise error).

    >>> [round(10**p, 3) for p in holm([math.log10(0.01), math.log10(0.04), math.log10(0.03)])]
    [0.03, 0.06, 0.06]
    """
    ascending = sorted(range(len(log10_p)), key=lambda i: log10_p[i])
    adjusted, largest = [0.0] * len(log10_p), -math.inf
    for rank, i in enumerate(ascending):
        largest = max(largest, log10_p[i] + math.log10(len(log10_p) - rank))
        adjusted[i] = min(0.0, largest)
    return adjusted


def _tail(null: np.ndarray, t: float) -> float:
    # ties by rounding count as reached, which errs on the safe side
    reached = int((null >= t - 1e-9 * max(1.0, abs(t))).sum())
    return (1 + reached) / (len(null) + 1)


def _shape(values: np.ndarray) -> tuple[float, float]:
    centred = values - values.mean()
    variance = float((centred**2).mean())
    if variance == 0:
        return math.inf, math.inf
    return float((centred**3).mean() / variance**1.5), float((centred**4).mean() / variance**2 - 3)


def _digest(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "little")
