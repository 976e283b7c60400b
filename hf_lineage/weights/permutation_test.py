"""The permutation test over hidden units: whether two models share an origin at all.

Hidden units of a network that was trained from its own random start are exchangeable: its initialisation is i.i.d. and
its optimiser permutation-equivariant. For one layer let A, B (units × width) be the matrices of child and candidate,
centred over units, rows scaled to length 1, and C = A Bᵀ. If the two are independent, the matching of their units is
one uniformly random permutation π among h!. Then t = tr C is a draw of t(π) = Σᵢ C[i, π(i)], which has (Hoeffding 1951,
"A combinatorial central limit theorem")

    mean = ΣC / h,    variance = Σ D² / (h − 1),    D = C − row means − column means + mean of C.

A small p means a common origin; a shared initialisation counts as one. The test does not say who came first. The normal
law of z = (t − mean)/sd only ranks; p comes of random matchings, or of the bound in `proof.py`. See docs/methods.md,
*Permutation test*.

The test is wrong, with small p for unrelated models, where units have a place of their own: sorted by norm, padded or
pruned at the same places, with a pattern by row that is no accident. So units that are padding or dead in either model
are left out first (`live_units`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .proof import proven_log10_p

DRAWS = 1999
STAGES = (199, 599)  # numbers of draws after which it is looked whether …
ENOUGH_REACHED = 50  # … so many reached the observed value: more draws could not make p small
BATCH = 256  # units that are matched among themselves: cost and memory grow with h·BATCH, not with h²
PROOF_UNITS = 4096  # of all orders together, of which the bound is computed; at least MIN_PROOF_UNITS of each
MIN_PROOF_UNITS = 32
DEAD_LENGTH = 1e-6  # of the longest unit, centred: the direction of a shorter one is rounding


@dataclass(frozen=True, slots=True)
class LayerTest:
    """The statistic of one hidden-unit order, and its mean and variance under independence."""

    order: str
    units: int
    statistic: float
    mean: float
    variance: float

    @property
    def z(self) -> float:
        """(t − mean)/sd; nan where the variance is zero."""
        return (self.statistic - self.mean) / math.sqrt(self.variance) if self.variance > 0 else math.nan


@dataclass(frozen=True, slots=True)
class PermutationTest:
    """The one-sided test of all layers together: their statistics, means and variances are added.

    `log10_p`, with m = `DRAWS`: the proven p (`proof.py`) where that is below 1/(m + 1) (`method` "proven"), else
    p_monte_carlo + 1/(m + 1), at most 1 ("monte_carlo"); never below −Σ log10(h!). This is a p-value: what is below
    1/(m + 1) comes of the bound alone; for a ≥ 1/(m + 1), P(p ≤ a) ≤ P(p_monte_carlo ≤ a − 1/(m + 1)) +
    P(proven p < 1/(m + 1)) ≤ a.

    `p_monte_carlo`: of `draws` random matchings, None where none were needed; see `monte_carlo_p`.  `log10_proven`: of
    the bound, ≤ 0.  `layers`: (order, units, z) of each.

    "e_value": 1/e of units that were read one run after the other (`unit_runs.py`); z is nan then.
    """

    z: float
    log10_p: float
    method: Literal["proven", "monte_carlo", "e_value"]
    p_monte_carlo: float | None
    draws: int
    log10_proven: float
    layers: tuple[tuple[str, int, float], ...]

    @property
    def p(self) -> float:
        """The p-value, in (0, 1]; 0.0 where it is too small for a float."""
        return 10.0**self.log10_p

    @property
    def rank_log10_p(self) -> float:
        """log10 P(Z ≥ z) of a normal Z: ranks pairs, and is no p-value, since the null law's tail is not normal."""
        from scipy.special import log_ndtr  # most answers need no SciPy

        return float(log_ndtr(-self.z)) / math.log(10)

    @property
    def at_floor(self) -> bool:
        """Whether no draw reached the observed value and nothing smaller is proven: the true p may be smaller."""
        return self.p_monte_carlo is not None and self.p_monte_carlo * (self.draws + 1) < 1.5


def live_units(matrix: torch.Tensor) -> torch.Tensor:
    """Which units can be matched at all, (h,) bool; matrix: (h, d).

    Not those that hold NaN or Inf, whose weights are all one number (padding, pruning), or that are equal to the mean
    unit, up to `DEAD_LENGTH`.
    """
    return _directions(matrix)[0]


def _directions(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`live_units` of a matrix, and their `unit_length_rows`."""
    x = matrix.float()
    entries = x.cpu().numpy()  # torch takes twenty times as long; a row with NaN has NaN for both
    low, high = (torch.from_numpy(found).to(x.device) for found in (entries.min(1), entries.max(1)))
    sound = (high > low) & low.isfinite() & high.isfinite()
    units = _rows(x, sound)
    if not sound.any():
        return sound, units
    centred = units - units.mean(0)
    length = centred.norm(dim=1)
    live = length > DEAD_LENGTH * length.amax()
    if bool(live.all()):
        return sound, centred.div_(length[:, None])
    sound[sound.clone()] = live
    return sound, unit_length_rows(_rows(units, live))


def unit_length_rows(units: torch.Tensor) -> torch.Tensor:
    """Centre over units and scale each unit to length 1, float32; a unit equal to the mean is 0. (h, d) → (h, d)."""
    centred = units.float() - units.float().mean(0)
    length = centred.norm(dim=1, keepdim=True)
    return centred.div_(torch.where(length > 0, length, 1.0))


def unit_products(
    child: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor], groups: Sequence[int] = ()
) -> np.ndarray:
    """C = Σ A Bᵀ of one hidden-unit order; matrices of one order, such as gate and up, add. (n, b, b) float64.

    child, candidate: matrices (units, width) with the same units in the same rows. Units that are not `live_units` of
    all of them are left out: given which, the others are matched uniformly at random. Above `BATCH` units these are cut
    into n runs of b, each matched within itself: given which units a run holds, the same is true; the last n − 1 at
    most are left out. O(h·b·width). n = 0 where fewer than two units are left.

    groups: the group of each row, where only units of one group can be exchanged (grouped convolutions): each is a run.
    Groups that are not whole, after dead units are left out, are left out.
    """
    known = [_directions(matrix) for matrix in (*child, *candidate)]
    live = torch.stack([units for units, _ in known]).all(0)
    if groups:
        live, length = _whole_groups(live, torch.tensor(groups))
        runs = int(live.sum()) // length
    else:
        runs = -(-int(live.sum()) // BATCH)
        length = int(live.sum()) // max(1, runs)
    if length < 2 or not runs:
        return np.zeros((0, 0, 0))
    total: torch.Tensor | None = None
    directions = [
        rows if torch.equal(units, live) else unit_length_rows(_rows(matrix, live))
        for (units, rows), matrix in zip(known, (*child, *candidate), strict=True)
    ]
    for a, b in zip(directions[: len(child)], directions[len(child) :], strict=True):
        a, b = (x[: runs * length].reshape(runs, length, -1) for x in (a, b))
        product = a @ b.transpose(1, 2)
        total = product if total is None else total + product
    assert total is not None
    return total.double().cpu().numpy()


def _whole_groups(live: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Which units are in a group of as many live ones as the largest has, (h,) bool, and how many that is."""
    counts = torch.bincount(groups[live], minlength=int(groups.max()) + 1)
    length = max(1, int(counts.max()))
    return live & (counts[groups] == length), length


def _rows(matrix: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen rows, without a copy where all are."""
    return matrix if bool(chosen.all()) else matrix[chosen]


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


def layer_test(order: str, c: np.ndarray) -> LayerTest:
    """The statistic and its moments, of one order's products c, (n, h, h) float64; matrices add."""
    t, mean, variance = (float(part.sum()) for part in hoeffding_moments(torch.from_numpy(c))) if len(c) else (0, 0, 0)
    return LayerTest(order, c.shape[0] * c.shape[1], t, mean, variance)


def draw_matchings(c: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """`draws` values of t(π) = Σᵢ C[i, π(i)], summed over the matrices of c (n, h, h), each with its own random π.

    The draws of C and of its transpose are the same numbers, so that neither model is the first. (draws,) float64.
    """
    n, h = c.shape[:2]
    if h > 1 and c[0, 0, 1] < c[0, 1, 0]:
        c = c.transpose(0, 2, 1)
    flat = np.ascontiguousarray(c).ravel()
    rows = np.arange(n * h) * h
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    step = max(1, 2_000_000 // (n * h))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        matching = rng.permuted(np.broadcast_to(np.arange(h, dtype=np.int32), (count * n, h)), axis=1)
        values[start : start + count] = flat[matching.reshape(count, n * h) + rows].sum(1)
    return values


def pair_test(products: Callable[[str], np.ndarray], orders: Iterable[str], seed: int) -> PermutationTest | None:
    """The permutation test of a pair of models, over all hidden-unit orders; None where no order can say anything.

    products(order): C of that order, (n, h, h), see `unit_products`; asked for again where draws are needed, since
    these may be too many numbers to keep. Every p-value of a pair in this package comes from here.

    orders: each is matched independently of the others, and stands behind those whose units its columns are
    (`proof.py`): `tests/test_proof.py` holds that of every architecture. Of the bound, `PROOF_UNITS` units at most
    are used, the first of each order; the draws use all.
    """
    orders = tuple(orders)
    most = max(MIN_PROOF_UNITS, PROOF_UNITS // max(1, len(orders)))
    layers, parts = [], []
    for order in orders:
        c = products(order)
        layers.append(layer_test(order, c))
        parts.append(c[: most // c.shape[1]] if 0 < c.shape[1] <= most else c[:1, :most, :most])

    def draw(order: str, seed_of_draws: int, count: int) -> np.ndarray:
        return draw_matchings(products(order), seed_of(seed_of_draws, order), count)

    return combine_layers(layers, parts, draw, seed)


def combine_layers(
    layers: Sequence[LayerTest], parts: Sequence[np.ndarray], draw: Callable[[str, int, int], np.ndarray], seed: int,
    draws: int = DRAWS,
) -> PermutationTest | None:  # fmt: skip
    """Add the layers to one test. None where no layer can say anything: no layer, or no variance in any.

    Layers permute independently, so statistics, means, variances and draws add.  parts: of each layer the products of
    which the tail is bounded, (n, h, h), as in `proven_log10_p`.  draw(order, seed, count): `count` draws of a layer's
    statistic.  draws: m of `PermutationTest`.
    """
    kept = [(layer, part) for layer, part in zip(layers, parts, strict=True) if layer.variance > 0]
    if not kept:
        return None
    t, mean = sum(layer.statistic for layer, _ in kept), sum(layer.mean for layer, _ in kept)
    z = (t - mean) / math.sqrt(sum(layer.variance for layer, _ in kept))
    named = tuple((layer.order, layer.units, layer.z) for layer, _ in kept)
    proven = proven_log10_p([part for _, part in kept])
    if proven < -math.log10(draws + 1):
        return PermutationTest(z, proven, "proven", None, 0, proven, named)

    def total(stage: int, count: int) -> np.ndarray:
        return np.sum([draw(layer.order, seed + stage, count) for layer, _ in kept], axis=0)

    p, count = monte_carlo_p(t, total, draws)
    floor = -sum(math.lgamma(layer.units + 1) for layer, _ in kept) / math.log(10)  # of few units draws may miss it
    log10_p = max(floor, math.log10(min(1.0, p + 1 / (draws + 1))))
    return PermutationTest(z, log10_p, "monte_carlo", p, count, proven, named)


def monte_carlo_p(t: float, draw: Callable[[int, int], np.ndarray], draws: int = DRAWS) -> tuple[float, int]:
    """(p, number of draws) of an observed t by random draws, at most `draws`; p is exact (Besag and Clifford 1991).

    Drawing ends where `ENOUGH_REACHED` draws have reached t: p = ENOUGH_REACHED / (draws so far). Where it does not,
    p = (1 + #{t* ≥ t})/(draws + 1). draw(stage, count): `count` values; stages are independent.
    """
    # a draw that differs from t by rounding alone counts as reached: p is then rather too large than too small
    level = t - 1e-9 * max(1.0, abs(t))
    reached = np.zeros(0, dtype=np.int64)
    for stage, stop in enumerate((*(count for count in STAGES if count < draws), draws)):
        more = np.cumsum(draw(stage, stop - len(reached)) >= level)
        reached = np.concatenate([reached, more + (reached[-1] if len(reached) else 0)])
        if reached[-1] >= ENOUGH_REACHED:
            count = int(np.searchsorted(reached, ENOUGH_REACHED)) + 1
            return ENOUGH_REACHED / count, count
    return (1 + int(reached[-1])) / (draws + 1), draws


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


def sidak(log10_p: float, tests: int) -> float:
    """log10 of p = 1 − (1 − min p)^tests, for the smallest of so many p-values of one pair (Šidák 1967).

    >>> round(10 ** sidak(math.log10(0.01), 2), 6), round(sidak(-300.0, 2) + 300, 6)
    (0.0199, 0.30103)
    """
    if tests == 1 or log10_p < -8:
        return log10_p + math.log10(tests)
    return math.log10(-math.expm1(tests * math.log1p(-min(10.0**log10_p, 1 - 1e-15))))


def seed_of(seed: int, text: str) -> int:
    """A seed that belongs to a text."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "little")
