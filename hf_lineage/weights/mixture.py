"""In what proportion several sources make up one block: least squares on a Gram matrix alone.

Rows are as in `Moments`: row 0 the child c, row k ≥ 1 the difference yₖ = pₖ − c of a source. With weights that sum to
1, an unknown remainder among them, c − Σ wₖ pₖ = −Σ wₖ yₖ, so that nearly equal models lose no digits. The unknown is a
source of zeros, p₀ = 0: it takes the weight of a model that was not offered, where that is unlike the others. See
docs/methods.md, *Mixing weights*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .least_squares import simplex_minimum

ROUNDING = 1e-14  # of the child's squared length: a squared distance below counts as none
MAX_RELATED_RESIDUAL = 0.05  # of the unexplained square, that related sources may leave; see `select_sources`
DRIFT_COSINE = 0.1  # of what fine-tuning adds with a merge's sources; see tests/test_layers_measured.py
SIBLING_COSINE = 0.35  # of the deltas of two fine-tunes of one base
MAX_EXACT_RESIDUAL = 0.01  # of the squared distance to the nearest source; a fine-tune leaves far more
MIN_WEIGHT, MAX_SOURCES = 0.03, 5  # of an exact average: the weight of each source, and their number
MIN_SIBLING_SHARE = 0.05  # of a sibling, for it to have taken part in a merge with one that is not offered
ON_THE_WAY = 0.5  # of the smaller square: the product of two changes, above which one may have come from the other
COMMON_ERROR = 1.3, 0.1  # factor on, and addition to, the cosine that siblings have in common: its standard error
SIZES = 2.5  # how much longer or shorter than the others the change of a source that is not offered may be
IDLE_RATIO = 1.05  # of the unexplained squares without and with a source, up to which it is left out


@dataclass(frozen=True, slots=True)
class Fit:
    """child ≈ Σ weights[k]·source k. stderr: of each weight; unknown = 1 − Σ weights; rss = ‖child − Σ
    weights·source‖²."""

    weights: np.ndarray
    unknown: float
    rss: float
    stderr: np.ndarray

    @property
    def support(self) -> tuple[int, ...]:
        """The sources whose weight is not 0."""
        return tuple(int(k) for k in np.flatnonzero(self.weights))


def simplex(gram: np.ndarray, among: Sequence[int], *, unknown: bool = True) -> Fit:
    """Weights ≥ 0 that with the unknown sum to 1 and minimise ‖child − Σ w·source‖², of the sources `among`.

    gram: (M + 1, M + 1), as above; sources count from 0. A quadratic programme on the simplex (`simplex_minimum`).
    Without `unknown` the weights alone sum to 1. A source that equals the child takes all.
    """
    rows = [k + 1 for k in among]
    inner = gram[np.ix_(rows, rows)]
    if unknown:  # y₀ = 0 − c
        cross = -gram[0, rows]
        inner = np.block([[inner, cross[:, None]], [cross[None, :], gram[:1, :1]]])
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    weights = np.zeros(len(gram) - 1)
    if (equal := np.flatnonzero(length <= math.sqrt(ROUNDING * gram[0, 0]))).size:
        weights[among[int(equal[0])]] = 1.0  # a copy explains all
        return Fit(weights, 0.0, float(inner[equal[0], equal[0]]), np.zeros_like(weights))
    v = simplex_minimum(inner)
    weights[list(among)] = v[: len(rows)]
    return Fit(weights, float(v[-1]) if unknown else 0.0, max(0.0, float(v @ inner @ v)), np.zeros_like(weights))


def exact_average(gram: np.ndarray, among: Sequence[int]) -> Fit | None:
    """The two to five sources of which the child is a weighted average, but for rounding; None if it is not.

    One that was fine-tuned since is not found. A parent is no average of its children: of k of them it keeps a k-th of
    the squared distance.
    """
    if len(among) < 2:
        return None
    weights = simplex(gram, among, unknown=False).weights
    kept = [k for k in among if weights[k] >= MIN_WEIGHT]
    if not 2 <= len(kept) <= MAX_SOURCES:
        return None
    fit = simplex(gram, kept, unknown=False)
    nearest = min(gram[k + 1, k + 1] for k in among)
    return fit if len(fit.support) == len(kept) and fit.rss <= MAX_EXACT_RESIDUAL * nearest else None


def unconstrained(gram: np.ndarray, among: Sequence[int]) -> Fit:
    """Weights of any sign and sum, by plain least squares; `unknown` is what they lack to 1, or exceed it by."""
    rows = [k + 1 for k in among]
    back = -gram[0, rows]
    inner = np.block([[gram[np.ix_(rows, rows)], back[:, None]], [back[None, :], gram[:1, :1]]])
    # Σ over sources and the zero vector of v·y with Σv = 1: eliminate the first source, whose difference is smallest
    first = int(np.argmin(np.diag(inner)))
    others = [i for i in range(len(inner)) if i != first]
    shifted = _deltas(inner, first, others)
    pull = inner[first, first] - inner[others, first]
    length = np.sqrt(np.maximum(np.diag(shifted), ROUNDING * gram[0, 0]))
    v = np.zeros(len(inner))
    v[others] = np.linalg.lstsq(shifted / np.outer(length, length), pull / length, rcond=1e-12)[0] / length
    v[first] = 1.0 - v.sum()
    weights = np.zeros(len(gram) - 1)
    weights[list(among)] = v[:-1]
    return Fit(weights, float(v[-1]), max(0.0, float(v @ inner @ v)), np.zeros_like(weights))


def task_arithmetic(gram: np.ndarray, base: int, among: Sequence[int]) -> Fit:
    """child ≈ base + Σ λₖ (pₖ − base) with λ of any sign: task arithmetic (Ilharco et al., ICLR 2023), least squares.

    The base's weight is 1 − Σλ, so that weights sum to 1 as in `simplex`.
    """
    others = [k for k in among if k != base]
    rows = [k + 1 for k in others]
    b = base + 1
    deltas = _deltas(gram, b, rows)
    pull = gram[b, b] - gram[rows, b]  # (c − base)·(pₖ − base) = −y_b·(yₖ − y_b)
    length = np.sqrt(np.maximum(np.diag(deltas), ROUNDING * gram[0, 0]))
    found = np.linalg.lstsq(deltas / np.outer(length, length), pull / length, rcond=1e-12)[0] / length
    weights = np.zeros(len(gram) - 1)
    weights[others] = found
    weights[base] = 1.0 - found.sum()
    rss = gram[b, b] - 2 * found @ pull + found @ deltas @ found
    return Fit(weights, 0.0, max(0.0, float(rss)), np.zeros_like(weights))


def select_sources(gram: np.ndarray, first: int, related: np.ndarray, hidden: Callable[[Fit, int], bool]) -> Fit:
    """Forward selection of the fewest sources that explain the child, from `first` on: a fine-tune is no mixture.

    related: (M, M) bool, which sources are related to which. Relatives of the selected sources enter together, and only
    if they leave at most MAX_RELATED_RESIDUAL with weights of any sign: drift in common explains a tenth of the
    unexplained square (cosine 0.35 between deltas), a model between its parent and its own child half of it, a merge
    all. A source unrelated to all of them enters if hidden(fit, k), the permutation test of the remainder, finds it;
    there the error probability is known.
    """
    fit = simplex(gram, (first,))
    while fit.rss > ROUNDING * gram[0, 0] and fit.support:
        inside = fit.support
        outside = [k for k in range(len(related)) if k not in inside]
        relatives = [k for k in outside if related[k, list(inside)].any()]
        wider = fit
        if relatives and task_arithmetic(gram, inside[0], (*inside, *relatives)).rss <= MAX_RELATED_RESIDUAL * fit.rss:
            wider = _without_idle(gram, simplex(gram, (*inside, *relatives)))
        if wider.rss >= fit.rss:
            wider = simplex(gram, (*inside, *(k for k in outside if k not in relatives and hidden(fit, k))))
        if not {*wider.support} - {*inside}:
            break
        fit = wider
    return fit


def _without_idle(gram: np.ndarray, fit: Fit) -> Fit:
    """The fit without the sources that hardly explain anything, the lightest first (backward elimination)."""
    while len(fit.support) > 1:
        lightest = min(fit.support, key=lambda k: fit.weights[k])
        fewer = simplex(gram, [k for k in fit.support if k != lightest])
        if fewer.rss > IDLE_RATIO * fit.rss:
            break
        fit = fewer
    return fit


def with_stderr(
    fit: Callable[[np.ndarray], Fit], grams: Sequence[np.ndarray], counts: Sequence[int], beside: Sequence[int] = ()
) -> Fit:
    """The fit of the summed Gram matrices, of `counts` entries each, with the standard error of every weight.

    se² is the larger of the jackknife over tensors, (T − 1)/T · Σₜ (w₋ₜ − mean)² (Tukey 1958), and of the least squares
    variance for independent entries, rss/n · (XXᵀ)⁻¹ₖₖ; plus c² · rss · (XXᵀ)⁻¹ₖₖ, since what fine-tuning added is no
    noise: it has a cosine c with the sources, the same in all tensors: DRIFT_COSINE, or SIBLING_COSINE with relatives.
    Those relatives, `beside` the sources, then count among X: a fine-tune may have been a merge with them that was
    tuned afterwards.
    """
    total = sum(grams, np.zeros_like(grams[0]))
    found = fit(total)
    support = [*found.support]
    whole = _whole(total)[1:, 1:]
    variance = np.zeros(len(found.weights))
    variance[support] = found.rss * _inverse_diagonal(whole, support) / max(1, sum(counts))
    if len(grams) > 1:
        left_out = np.array([fit(total - gram).weights for gram in grams])
        spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (len(grams) - 1) / len(grams)
        variance = np.maximum(variance, spread)
    drift = (SIBLING_COSINE if beside else DRIFT_COSINE) ** 2
    variance[support] += drift * found.rss * _inverse_diagonal(whole, [*support, *beside])[: len(support)]
    return Fit(found.weights, found.unknown, found.rss, np.sqrt(variance))


def _inverse_diagonal(whole: np.ndarray, among: Sequence[int]) -> np.ndarray:
    """The diagonal of (XXᵀ)⁻¹ of some sources."""
    return np.abs(np.diag(np.linalg.pinv(whole[np.ix_(among, among)], rcond=1e-12, hermitian=True)))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Cosines between all rows, child and sources themselves, (M + 1, M + 1); nan for a row of zeros."""
    whole = _whole(gram)
    length = np.sqrt(np.maximum(np.diag(whole), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return whole / np.outer(length, length)


def slerp_position(gram: np.ndarray, first: int, second: int) -> tuple[float, float, float]:
    """(t, length, Ω) of a child in the plane of two sources; SLERP makes sin((1−t)Ω)/sin Ω·p + sin(tΩ)/sin Ω·q.

    On unit vectors at angle Ω (radians) such coefficients lead to angle tΩ and length 1 (Shoemake, SIGGRAPH 1985);
    a straight line from p to q has length < 1 between them. t comes from the direction alone.
    """
    weights = unconstrained(gram, (first, second)).weights
    cosine = float(np.clip(cosines(gram)[first + 1, second + 1], -1.0, 1.0))
    omega = math.acos(cosine)
    a, b = float(weights[first]), float(weights[second])
    x, y = a + b * cosine, b * math.sin(omega)
    return (math.atan2(y, x) / omega if omega > 0 else b), math.hypot(x, y), omega


def most_central(gram: np.ndarray, among: Sequence[int]) -> tuple[int, float]:
    """The source from which the deltas of the others are most nearly orthogonal, and the mean |cosine| of these deltas.

    Fine-tunes of one base have nearly orthogonal deltas seen from it, and cosines around ½ seen from one of them. Needs
    three sources: with fewer the first one, and inf.
    """
    best = (among[0], math.inf)
    for base in among:
        rows = [k + 1 for k in among if k != base]
        b = base + 1
        deltas = _deltas(gram, b, rows)
        length = np.sqrt(np.maximum(np.diag(deltas), 0.0))
        if not (length > 0).all():
            continue
        pairs = np.abs(deltas / np.outer(length, length))[np.triu_indices(len(rows), 1)]
        if pairs.size and float(pairs.mean()) < best[1]:
            best = base, float(pairs.mean())
    return best


@dataclass(frozen=True, slots=True)
class SiblingShares:
    """child ≈ Σ weights[k]·source k + unknown·(a sibling that is not offered), of sources tuned from one base.

    weights, stderr: (K,); unknown, unknown_stderr: 1 − Σ weights. size: ‖sibling − base‖ that what is left asks for,
    relative to that of the sources.
    """

    weights: np.ndarray
    stderr: np.ndarray
    unknown: float
    unknown_stderr: float
    size: float

    @property
    def is_merge(self) -> bool:
        """Whether two sources at least took part, and what is left may be one more of their kind."""
        shown = self.weights > np.maximum(2.5 * self.stderr, MIN_SIBLING_SHARE)
        return bool(shown.sum() > 1 and self.unknown > self.unknown_stderr and 1 / SIZES < self.size < SIZES)


def sibling_shares(
    grams: Sequence[np.ndarray], counts: Sequence[int], base: int, among: Sequence[int]
) -> SiblingShares | None:
    """The shares of siblings `among` in a child whose other sources are siblings that are not offered.

    With δₖ = pₖ − base, least squares of child − base give λ̂ = λ + w·G⁻¹g: each δₖ also takes what the hidden source's
    change has in common with it, gₖ = ⟨δₖ, δ⟩. This takes the hidden one to be a sibling like the others: with their
    mean length, and their mean cosine κ, in each tensor. Then Σλ + w = 1 gives λ and w. Standard errors: jackknife over
    tensors, and what another κ (a third and 0.1 more) would change. None where one source may be a step on another
    one's way (δᵢ·δⱼ above half of the smaller square): then the child may be a step as well, and no merge.
    """
    whole = sum(grams, np.zeros_like(grams[0]))
    rows = [k + 1 for k in among]
    inner = _deltas(whole, base + 1, rows)
    square = np.diag(inner)
    pairs = np.triu_indices(len(rows), 1)
    if len(rows) < 2 or not square.all() or (inner / np.minimum(square[:, None], square))[pairs].max() > ON_THE_WAY:
        return None
    parts = [
        each for each in zip(grams, counts, strict=True)
        if each[0][base + 1, base + 1] > 0 and (np.diag(_deltas(each[0], base + 1, rows)) > 0).all()
    ]  # fmt: skip
    if len(parts) < 3:
        return None
    equations = [_sibling_equations(gram, count, base + 1, rows) for gram, count in parts]
    left, right = (np.array(each) for each in zip(*equations, strict=True))
    weights = np.linalg.solve(left.sum(0), right.sum(0))
    without = [np.linalg.solve(left.sum(0) - x, right.sum(0) - y) for x, y in equations]
    other = [_sibling_equations(gram, count, base + 1, rows, *COMMON_ERROR) for gram, count in parts]
    shift = np.linalg.solve(*(sum(each) for each in zip(*other, strict=True))) - weights
    spread = (len(parts) - 1) / len(parts) * ((without - weights) ** 2).sum(0)
    unknown = 1.0 - float(weights.sum())
    unknown_spread = (len(parts) - 1) / len(parts) * ((np.sum(without, 1) - weights.sum()) ** 2).sum()
    pull = whole[base + 1, base + 1] - whole[rows, base + 1]
    rss = whole[base + 1, base + 1] - pull @ np.linalg.solve(inner, pull)
    return SiblingShares(
        weights, np.sqrt(spread + shift**2), unknown, float(np.sqrt(unknown_spread + shift.sum() ** 2)),
        float(np.sqrt(max(rss, 0.0) / square.mean())) / max(abs(unknown), 1e-12),
    )  # fmt: skip


def _sibling_equations(
    gram: np.ndarray, count: int, base: int, rows: Sequence[int], common: float = 1.0, more: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of one tensor for λ: λ̂ − b = (I − b·1ᵀ)λ with b = G⁻¹g, weighted by G and its own noise."""
    inner = _deltas(gram, base, rows)
    length = np.sqrt(np.diag(inner))
    cosine = (inner / np.outer(length, length))[np.triu_indices(len(rows), 1)].mean() * common + more
    solve = np.linalg.pinv(inner, rcond=1e-9, hermitian=True)
    hidden = solve @ (cosine * length * np.sqrt((length**2).mean()))
    pull = gram[base, base] - gram[rows, base]
    found = solve @ pull
    noise = max(gram[base, base] - pull @ found, ROUNDING * gram[base, base]) / max(1, count)
    design = np.eye(len(rows)) - np.outer(hidden, np.ones(len(rows)))
    return design.T @ inner @ design / noise, design.T @ inner @ (found - hidden) / noise


def _deltas(gram: np.ndarray, base: int, rows: Sequence[int]) -> np.ndarray:
    """Products of the differences of some rows from row `base`."""
    return gram[np.ix_(rows, rows)] - gram[rows, base][:, None] - gram[base, rows] + gram[base, base]


def _whole(gram: np.ndarray) -> np.ndarray:
    """Products of child and sources themselves, from those around the child, (M + 1, M + 1)."""
    pivot = gram[0].copy()
    pivot[0] = 0.0
    whole = gram[0, 0] + pivot[:, None] + pivot[None, :] + gram
    whole[0, :] = whole[:, 0] = gram[0, 0] + pivot
    return whole
