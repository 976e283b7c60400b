"""In what proportion several sources make up one block: least squares on a Gram matrix alone (METHODS §5).

Rows are as in `Moments`: row 0 the child c, row k ≥ 1 the difference yₖ = pₖ − c of a source. With weights that sum to
1, an unknown remainder among them, c − Σ wₖ pₖ = −Σ wₖ yₖ: nearly equal models lose no digits. The unknown is a source
of zeros, p₀ = 0: it takes what a model that was not offered would have contributed, where that is unlike the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

NOTHING = 1e-14  # of the largest squared length: rounding
REST = 0.03  # of the unexplained square, at most, that related sources may leave; see `select`
DRIFT = 0.1  # cosine of what fine-tuning adds with a merge's sources; see tests/test_layers_measured.py
SIBLINGS = 0.35  # cosine of the deltas of two fine-tunes of one base
EXACT = 0.01  # of the squared distance to the nearest source: a fine-tune leaves far more unexplained
LEAST, MOST = 0.03, 5  # weight of a source of an average, and how many it may have
LITTLE = 1.05  # times the unexplained square without a source, up to which it is left out


@dataclass(frozen=True, slots=True)
class Fit:
    """child ≈ Σ weights[k]·source k, with their `stderr`; `unknown` = 1 − Σ weights; `rss`: what is left, squared."""

    weights: np.ndarray
    unknown: float
    rss: float
    stderr: np.ndarray

    @property
    def support(self) -> tuple[int, ...]:
        """The sources that take part."""
        return tuple(int(k) for k in np.flatnonzero(self.weights))


def simplex(gram: np.ndarray, among: Sequence[int], *, unknown: bool = True) -> Fit:
    """Weights ≥ 0 that with the unknown sum to 1 and minimise ‖child − Σ w·source‖², of the sources `among`.

    gram: (M + 1, M + 1), as above; sources count from 0. A quadratic programme on the simplex, solved by scipy's
    non-negative least squares: min ‖Lv‖² + μ²(1 − Σv)² has the same solution up to scale for every μ > 0.
    """
    rows = [k + 1 for k in among]
    inner = gram[np.ix_(rows, rows)]
    if unknown:  # y₀ = 0 − c
        cross = -gram[0, rows]
        inner = np.block([[inner, cross[:, None]], [cross[None, :], gram[:1, :1]]])
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    weights = np.zeros(len(gram) - 1)
    if (equal := np.flatnonzero(length <= math.sqrt(NOTHING * gram[0, 0]))).size:
        weights[among[int(equal[0])]] = 1.0  # a copy explains all
        return Fit(weights, 0.0, float(inner[equal[0], equal[0]]), np.zeros_like(weights))
    # variables scaled to unit length: a drift of 1e-6 stays apart from a source of length 1
    root = _root(inner / np.outer(length, length))
    push = 1.0 / length
    push /= np.linalg.norm(push)
    v, _ = nnls(np.vstack([root, push]), np.append(np.zeros(len(root)), 1.0))
    v = v / length
    v /= v.sum()
    weights[list(among)] = v[: len(rows)]
    return Fit(weights, float(v[-1]) if unknown else 0.0, max(0.0, float(v @ inner @ v)), np.zeros_like(weights))


def exact_average(gram: np.ndarray, among: Sequence[int]) -> Fit | None:
    """The two to five sources whose average the child is, but for rounding; None if it is none, or was tuned since.

    A parent is no average of its children: of k of them it keeps a k-th of the squared distance.
    """
    if len(among) < 2:
        return None
    weights = simplex(gram, among, unknown=False).weights
    kept = [k for k in among if weights[k] >= LEAST]
    if not 2 <= len(kept) <= MOST:
        return None
    fit = simplex(gram, kept, unknown=False)
    nearest = min(gram[k + 1, k + 1] for k in among)
    return fit if len(fit.support) == len(kept) and fit.rss <= EXACT * nearest else None


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
    length = np.sqrt(np.maximum(np.diag(shifted), NOTHING * gram[0, 0]))
    v = np.zeros(len(inner))
    v[others] = np.linalg.lstsq(shifted / np.outer(length, length), pull / length, rcond=1e-12)[0] / length
    v[first] = 1.0 - v.sum()
    weights = np.zeros(len(gram) - 1)
    weights[list(among)] = v[:-1]
    return Fit(weights, float(v[-1]), max(0.0, float(v @ inner @ v)), np.zeros_like(weights))


def task_arithmetic(gram: np.ndarray, base: int, among: Sequence[int]) -> Fit:
    """Task arithmetic: child ≈ base + Σ λₖ (pₖ − base), λ of any sign (Ilharco et al., ICLR 2023); the base's weight is
    1 − Σλ, so that weights sum to 1 as in `simplex`."""
    others = [k for k in among if k != base]
    rows = [k + 1 for k in others]
    b = base + 1
    deltas = _deltas(gram, b, rows)
    pull = gram[b, b] - gram[rows, b]  # (c − base)·(pₖ − base) = −y_b·(yₖ − y_b)
    length = np.sqrt(np.maximum(np.diag(deltas), NOTHING * gram[0, 0]))
    found = np.linalg.lstsq(deltas / np.outer(length, length), pull / length, rcond=1e-12)[0] / length
    weights = np.zeros(len(gram) - 1)
    weights[others] = found
    weights[base] = 1.0 - found.sum()
    rss = gram[b, b] - 2 * found @ pull + found @ deltas @ found
    return Fit(weights, 0.0, max(0.0, float(rss)), np.zeros_like(weights))


def select_sources(gram: np.ndarray, first: int, related: np.ndarray, hidden: Callable[[Fit, int], bool]) -> Fit:
    """The fewest sources that account for the child, from `first` on: a plain fine-tune is no mixture.

    Relatives of what is in already (`related[k, l]`, of sources) enter together, and only if with weights of any sign
    they explain nearly all: shared drift explains a tenth of the unexplained square (cosine 0.35 between deltas), and a
    model between its parent and its own child half of it, a merge all. One that is unrelated to all of them enters if
    `hidden(fit, k)`, the permutation test of the remainder, finds it: there the error is known.
    """
    fit = simplex(gram, (first,))
    while fit.rss > NOTHING * gram[0, 0] and fit.support:
        inside = fit.support
        outside = [k for k in range(len(related)) if k not in inside]
        kin = [k for k in outside if related[k, list(inside)].any()]
        wider = fit
        if kin and task_arithmetic(gram, inside[0], (*inside, *kin)).rss <= REST * fit.rss:
            wider = _without_idle(gram, simplex(gram, (*inside, *kin)))
        if wider.rss >= fit.rss:
            wider = simplex(gram, (*inside, *(k for k in outside if k not in kin and hidden(fit, k))))
        if not {*wider.support} - {*inside}:
            break
        fit = wider
    return fit


def _without_idle(gram: np.ndarray, fit: Fit) -> Fit:
    """Without the sources that hardly explain anything, the lightest first."""
    while len(fit.support) > 1:
        lightest = min(fit.support, key=lambda k: fit.weights[k])
        fewer = simplex(gram, [k for k in fit.support if k != lightest])
        if fewer.rss > LITTLE * fit.rss:
            break
        fit = fewer
    return fit


def with_stderr(
    fit: Callable[[np.ndarray], Fit], grams: Sequence[np.ndarray], counts: Sequence[int], beside: Sequence[int] = ()
) -> Fit:
    """The fit of the summed Gram matrices, of `counts` entries each, with the standard error of every weight.

    se² is the larger of the jackknife over tensors, (T − 1)/T · Σₜ (w₋ₜ − mean)², and of what least squares gives for
    independent entries, rss/n · (XXᵀ)⁻¹ₖₖ; plus c² · rss · (XXᵀ)⁻¹ₖₖ, since what fine-tuning added is no noise: its
    cosine c with the sources is about `DRIFT`, in all tensors alike, `SIBLINGS` with relatives. Those `beside` the
    sources count among X then: a fine-tune may have been a merge with them that was tuned afterwards.
    """
    total = sum(grams, np.zeros_like(grams[0]))
    found = fit(total)
    support = [*found.support]
    whole = _whole(total)[1:, 1:]
    variance = np.zeros(len(found.weights))
    variance[support] = found.rss * _inverse(whole, support) / max(1, sum(counts))
    if len(grams) > 1:
        left_out = np.array([fit(total - gram).weights for gram in grams])
        spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (len(grams) - 1) / len(grams)
        variance = np.maximum(variance, spread)
    drift = (SIBLINGS if beside else DRIFT) ** 2
    variance[support] += drift * found.rss * _inverse(whole, [*support, *beside])[: len(support)]
    return Fit(found.weights, found.unknown, found.rss, np.sqrt(variance))


def _inverse(whole: np.ndarray, among: Sequence[int]) -> np.ndarray:
    """The diagonal of (XXᵀ)⁻¹ of some sources."""
    return np.abs(np.diag(np.linalg.pinv(whole[np.ix_(among, among)], rcond=1e-12, hermitian=True)))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Cosines between all rows, child and sources themselves, (M + 1, M + 1); nan for a row of zeros."""
    whole = _whole(gram)
    length = np.sqrt(np.maximum(np.diag(whole), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return whole / np.outer(length, length)


def slerp_position(gram: np.ndarray, first: int, second: int) -> tuple[float, float, float]:
    """(t, length, Ω) of a child in the plane of two sources: SLERP makes sin((1−t)Ω)/sin Ω·p + sin(tΩ)/sin Ω·q.

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
    """The source from which the others differ in the most unrelated ways, and the mean |cosine| of their deltas there.

    Fine-tunes of one base have nearly orthogonal deltas seen from it, and cosines around ½ seen from one of them. Needs
    three sources.
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


def _deltas(gram: np.ndarray, base: int, rows: Sequence[int]) -> np.ndarray:
    """Products of what lies between some rows and row `base`."""
    return gram[np.ix_(rows, rows)] - gram[rows, base][:, None] - gram[base, rows] + gram[base, base]


def _whole(gram: np.ndarray) -> np.ndarray:
    """Products of child and sources themselves from those around the child."""
    pivot = gram[0].copy()
    pivot[0] = 0.0
    whole = gram[0, 0] + pivot[:, None] + pivot[None, :] + gram
    whole[0, :] = whole[:, 0] = gram[0, 0] + pivot
    return whole


def _root(inner: np.ndarray) -> np.ndarray:
    """R with RᵀR = inner, of a positive semi-definite matrix that rounding may have left slightly otherwise."""
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
