"""The permutation test over hidden units: whether two models share an origin at all.

Hidden units of a network that was trained from its own random start are exchangeable: its initialisation is i.i.d. and
its optimiser permutation-equivariant. For one layer let A, B (units × width) be the matrices of child and candidate,
centred over units, rows scaled to length 1, and C = A Bᵀ. If the two are independent, the matching of their units is
one uniformly random permutation π among h!. Then t = tr C is a draw of t(π) = Σᵢ C[i, π(i)], which has (Hoeffding 1951,
"A combinatorial central limit theorem")

    mean = ΣC / h,    variance = Σ D² / (h − 1),    D = C − row means − column means + mean of C,

and is asymptotically normal. A small p means a common origin; a shared initialisation counts as one. The test does not
say who came first. See docs/methods.md, *Permutation test*.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import gammaln, log_ndtr

DRAWS = 999
# Draws where the normal tail is refused and none of the first draws reached the observed value: so many, or as many as
# take MORE_WORK look-ups if those are fewer.
MORE_DRAWS, MORE_WORK = 99_999, 200_000_000
MAX_SKEWNESS, MAX_KURTOSIS = 0.2, 0.5  # absolute values of the draws up to which the normal tail is used
CERTAIN_LOG10_P = -30.0  # no number of models asks for a smaller p-value
FAINT_Z = 3.0  # below, a pair is not related, whatever the tail of the distribution looks like


@dataclass(frozen=True, slots=True)
class LayerTest:
    """The statistic of one hidden-unit order, its mean and variance under independence, and draws of it.

    `off_diagonal`: the same draws without the entries on C's diagonal, centred. A related pair has large entries there,
    which make the draws count their fixed points; that must not decide whether the null distribution looks normal.
    """

    order: str
    units: int
    statistic: float
    mean: float
    variance: float
    draws: np.ndarray
    off_diagonal: np.ndarray

    @property
    def z(self) -> float:
        """(t − mean)/sd; nan where the variance is zero."""
        return (self.statistic - self.mean) / math.sqrt(self.variance) if self.variance > 0 else math.nan


@dataclass(frozen=True, slots=True)
class PermutationTest:
    """The one-sided test of all layers together: their statistics, means and variances are added.

    `log10_p`: of the normal tail P(Z ≥ z) where skewness and kurtosis of the draws support it (`method` "normal"), else
    of p = (1 + #{t* ≥ t})/(draws + 1) ("monte_carlo", Phipson & Smyth 2010); never below −Σ log10(h!), the smallest p
    that so many units can give. `p_monte_carlo` is the latter in any case, of `draws` draws. `layers`: (order, units,
    z) of each.
    """

    z: float
    log10_p: float
    method: Literal["normal", "monte_carlo"]
    p_monte_carlo: float
    draws: int
    skewness: float
    kurtosis: float
    layers: tuple[tuple[str, int, float], ...]

    @property
    def p(self) -> float:
        """The p-value, in (0, 1]; 0.0 where it is too small for a float."""
        return 10.0**self.log10_p

    @property
    def at_floor(self) -> bool:
        """Whether no draw reached the observed value: the true p may be smaller than draws can tell."""
        return self.method == "monte_carlo" and self.p_monte_carlo * (self.draws + 1) < 1.5


def unit_length_rows(units: torch.Tensor) -> torch.Tensor:
    """Centre over units and scale each unit to length 1, float32; a unit equal to the mean is 0. (h, d) → (h, d)."""
    centred = units.float() - units.float().mean(0)
    length = centred.norm(dim=1, keepdim=True)
    return centred / torch.where(length > 0, length, 1.0)


def unit_products(child: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor]) -> np.ndarray:
    """C = Σ A Bᵀ of one hidden-unit order, (h, h) float64; matrices of one order, such as gate and up, add.

    child, candidate: matrices (units, width) with the same units in the same rows. O(h²d).
    """
    c = unit_length_rows(child[0]) @ unit_length_rows(candidate[0]).T
    for a, b in zip(child[1:], candidate[1:], strict=True):
        c += unit_length_rows(a) @ unit_length_rows(b).T
    return c.double().cpu().numpy()


def layer_test(order: str, c: np.ndarray, seed: int, draws: int = DRAWS) -> LayerTest:
    """The statistic, moments and `draws` random matchings of one order's matrix of products c, (h, h)."""
    return LayerTest(order, len(c), *layer_moments(c), *draw_matchings(c, order, seed, draws))


def hoeffding_moments(c: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t = tr C, and mean and variance of t(π) over all π, of matrices c (n, h, h) float64; three arrays (n,).

    mean = ΣC/h, variance = ΣD²/(h − 1), see the top of this file (Hoeffding 1951).
    """
    h = c.shape[-1]
    rows, columns, mean = c.mean(2), c.mean(1), c.mean((1, 2))
    squares = (c * c).sum((1, 2))
    # ΣD² without forming D; what rounding leaves of equal numbers counts as 0
    spread = squares - h * (rows * rows).sum(1) - h * (columns * columns).sum(1) + h * h * mean**2
    variance = torch.where(spread > 1e-12 * squares, spread / max(1, h - 1), 0.0)
    return c.diagonal(dim1=1, dim2=2).sum(1).numpy(), (h * mean).numpy(), variance.numpy()


def layer_moments(c: np.ndarray) -> tuple[float, float, float]:
    """`hoeffding_moments` of one matrix of products, (h, h): t, mean, variance."""
    t, mean, variance = hoeffding_moments(torch.from_numpy(c)[None])
    return float(t[0]), float(mean[0]), float(variance[0])


def draw_matchings(c: np.ndarray, order: str, seed: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """`draws` values of t(π) = Σᵢ C[i, π(i)] for uniformly random π, and the same of D without its diagonal.

    c: (h, h). The random numbers depend on `seed` and `order` alone. Two arrays (draws,).
    """
    mean = c.sum() / len(c)
    diagonal = np.diag(c) - c.mean(0) - c.mean(1) + c.mean()
    rng = np.random.default_rng(seed_of(seed, order))
    rows = np.arange(len(c))
    values, fixed_points = np.empty(draws), np.empty(draws)
    step = max(1, 2_000_000 // len(c))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        matching = rng.permuted(np.broadcast_to(rows, (count, len(c))), axis=1)
        values[start : start + count] = c[rows, matching].sum(1)
        fixed_points[start : start + count] = (matching == rows) @ diagonal
    return values, values - mean - fixed_points


def chatterjee_bound(matrices: Iterable[np.ndarray]) -> float:
    """log10 of an upper bound of P(t(π) ≥ t) under random matchings, whatever their distribution looks like; ≤ 0.

    For a in [0, 1] and X = Σ a[i, π(i)]: P(X − EX ≥ s) ≤ exp(−s²/(4·EX + 2s)) (Chatterjee 2007, "Stein's method for
    concentration inequalities", Proposition 1.1; layers that permute independently add up in EX and s). Here a is C
    less the smallest entry of each row, divided by the largest such difference. No draws are needed. For a close
    relative the bound is far below what draws can show; otherwise it is weak, and often 1.
    """
    shifted = [c - c.min(1, keepdims=True) for c in matrices]
    scale = max((float(a.max()) for a in shifted), default=0.0)
    if not scale > 0:
        return 0.0
    expected = sum(float(a.sum()) / len(a) for a in shifted) / scale
    excess = sum(float(np.trace(a)) for a in shifted) / scale - expected
    return -(excess**2) / (4 * expected + 2 * excess) / math.log(10) if excess > 0 else 0.0


def pair_test(products: Callable[[str], np.ndarray], orders: Iterable[str], seed: int) -> PermutationTest | None:
    """The permutation test of a pair of models, over all hidden-unit orders; None where no order can say anything.

    products(order): C of that order, (h, h), see `unit_products`; asked for again where more draws are needed, since
    h² numbers a layer may be too many to keep. Every p-value of a pair in this package comes from here.
    """

    def redraw(order: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_matchings(products(order), order, seed + 1, count)

    return combine_layers((layer_test(order, products(order), seed) for order in orders), redraw)


def pair_log10_p(products: Mapping[str, np.ndarray], seed: int) -> float | None:
    """log10 of the p-value of `pair_test`, without draws where these cannot change a decision; None as there.

    For many pairs, of which most are close relatives or unrelated. First `chatterjee_bound`: below CERTAIN_LOG10_P it
    is the answer. Then z from the closed form: below FAINT_Z the normal tail is the answer, far from any level. Else
    the test; where its draws do not look normal and none reached the observed value, the bound counts if it is smaller.
    """
    bound = chatterjee_bound(products.values())
    if bound < CERTAIN_LOG10_P:
        return bound
    moments = [layer_moments(c) for c in products.values()]
    t, mean, variance = (sum(values) for values in zip(*moments, strict=True)) if moments else (0, 0, 0)
    if variance > 0 and (z := (t - mean) / variance**0.5) < FAINT_Z:
        return float(log_ndtr(-z)) / math.log(10)
    test = pair_test(products.__getitem__, products, seed)
    return None if test is None else min(test.log10_p, bound) if test.at_floor else test.log10_p


def combine_layers(
    layers: Iterable[LayerTest], redraw: Callable[[str, int], tuple[np.ndarray, np.ndarray]]
) -> PermutationTest | None:
    """Add the layers to one test. None where no layer can say anything: no layer, or no variance in any.

    Layers permute independently, so statistics, means, variances and draws add. Where the normal tail is refused and no
    draw reached the observed value, `redraw(order, count)` gives more draws of a layer, and both questions are decided
    again by them (the skewness of the first draws alone has an error of 0.08). The test stays valid, since this happens
    only where the first p-value is as small as it can be.
    """
    kept = tuple(layer for layer in layers if layer.variance > 0)
    if not kept:
        return None
    t, mean = sum(layer.statistic for layer in kept), sum(layer.mean for layer in kept)
    z = (t - mean) / math.sqrt(sum(layer.variance for layer in kept))
    null, off_diagonal = (
        np.sum(parts, axis=0) for parts in zip(*((x.draws, x.off_diagonal) for x in kept), strict=True)
    )
    if not _looks_normal(off_diagonal) and _tail(null, t) <= 1 / (len(null) + 1):
        more = max(10 * len(null), min(MORE_DRAWS, MORE_WORK // sum(layer.units for layer in kept)))
        redrawn = [redraw(layer.order, more) for layer in kept]
        null, off_diagonal = (np.sum(parts, axis=0) for parts in zip(*redrawn, strict=True))
    normal, p, count = _looks_normal(off_diagonal), _tail(null, t), len(null)
    skewness, kurtosis = _shape(off_diagonal)
    log10_p = float(log_ndtr(-z)) / math.log(10) if normal else math.log10(p)
    floor = -sum(float(gammaln(layer.units + 1)) for layer in kept) / math.log(10)
    return PermutationTest(
        z, max(log10_p, floor), "normal" if normal else "monte_carlo", p, count, skewness, kurtosis,
        tuple((layer.order, layer.units, layer.z) for layer in kept),
    )  # fmt: skip


def holm(log10_p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of log10 p-values for the family of these tests (Holm 1979).

    Of m p-values in ascending order, p̃ₖ = max over j ≤ k of (m − j + 1)·pⱼ, at most 1. Rejecting where p̃ ≤ α keeps
    the family-wise error below α under any dependence.

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
    # a draw that differs from t by rounding alone counts as reached: p is then rather too large than too small
    reached = int((null >= t - 1e-9 * max(1.0, abs(t))).sum())
    return (1 + reached) / (len(null) + 1)


def _looks_normal(values: np.ndarray) -> bool:
    skewness, kurtosis = _shape(values)
    return abs(skewness) <= MAX_SKEWNESS and abs(kurtosis) <= MAX_KURTOSIS


def _shape(values: np.ndarray) -> tuple[float, float]:
    centred = values - values.mean()
    variance = float((centred**2).mean())
    if variance == 0:
        return math.inf, math.inf
    return float((centred**3).mean() / variance**1.5), float((centred**4).mean() / variance**2 - 3)


def seed_of(seed: int, text: str) -> int:
    """A seed that belongs to a text."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "little")
