"""TIES, DARE, DELLA and breadcrumbs told from the entries of one tensor: which changes were kept where, and why there.

Each adds a masked sum of changes aₖ = pₖ − base to a base. Entry by entry, the allowed sum that is nearest to
e = child − base says which were kept. Masks that keep the largest (TIES), the middle (breadcrumbs), any (DARE), or the
larger ones of a row the more often (DELLA) differ in how often an entry of a given rank is kept. See docs/methods.md,
*Sparse merges*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .least_squares import simplex_minimum

CLEAR = 8  # units in the last place from which a change shows
MIN_CLEAR = 200  # entries with a clear change
MAX_SOURCES = 4
MAX_STRAY = 0.3  # of the kept or the dropped entries, on the wrong side of an edge, up to which a mask has that edge
MIN_SLOPE = 6.0  # standard errors, from which larger entries were kept more often
MAX_CHANCE = 0.5  # of the entries that sums make by chance; above, masks say nothing
SAME_SUM = 2.0  # of what all sums leave, and of what rounding does: up to which sums of one sign do as well
DENSER = 30.0  # than the densest fiftieth of the ratios: a two-hundredth that is one number
MAX_SCALE = 25.0


@dataclass(frozen=True, slots=True)
class MaskedSum:
    """A masked sum as the entries show it.

    settings: by mergekit's names. left: the square that it leaves. masks: (sources, n), which changes were kept; where
    one was outvoted, that does not show.
    """

    method: str
    settings: dict[str, Any]
    left: float
    masks: np.ndarray


@dataclass(frozen=True, slots=True)
class _Changes:
    """What a tensor shows: e (n,) = child − base, the changes a (sources, n), the unit in the last place, the shape."""

    e: np.ndarray
    a: np.ndarray
    ulp: np.ndarray
    shape: tuple[int, ...]


def masked_sums(e: np.ndarray, a: np.ndarray, ulp: np.ndarray, shape: tuple[int, ...]) -> Iterator[MaskedSum]:
    """What the entries e (n,) may be of the changes a (sources, n): with and without election of signs."""
    seen = _Changes(e, a, ulp, shape)
    still = np.abs(e) <= 0.5 * ulp
    expected = (np.abs(a) > CLEAR * ulp).any(0)
    if len(a) > MAX_SOURCES or (still & expected).sum() < 0.002 * expected.sum() or expected.sum() < MIN_CLEAR:
        return
    scales = np.array([_scale(e, each, ulp) for each in a])
    if not scales.all() or _by_chance(seen, scales) > MAX_CHANCE:
        return
    plain, one_sign = ([*_told(seen, scales, elect=elect)] for elect in (False, True))
    if len(a) > 1:
        yield from _normalized(seen, scales)
        limit = SAME_SUM * max(sum(found.left for found in plain), float((ulp**2).sum()) / 12)
        one_sign = [found for found in one_sign if found.left <= limit or not plain]
    # a sum of one sign is a sum: where it does as well, signs were elected
    yield from one_sign if len(a) > 1 and one_sign else plain


def _scale(e: np.ndarray, change: np.ndarray, ulp: np.ndarray) -> float:
    """The most frequent ratio e/a of clear changes; 0 where there are too few."""
    clear = (np.abs(change) > 4 * CLEAR * ulp) & (np.abs(e) > CLEAR * ulp)
    ratio = e[clear] / change[clear]
    ratio = ratio[(np.abs(ratio) > 0.02) & (np.abs(ratio) < MAX_SCALE)]
    if len(ratio) < MIN_CLEAR // 4:
        return 0.0
    ordered = np.sort(ratio)
    wide, narrow = max(5, len(ordered) // 50), max(5, len(ordered) // 200)
    widths = {count: ordered[count:] - ordered[:-count] for count in (wide, narrow)}
    # few entries follow this change alone, but those do so exactly: far closer together than others by chance
    rare = widths[narrow].min() * DENSER * wide < widths[wide].min() * narrow
    count = narrow if rare else wide
    first = int(np.argmin(widths[count]))
    return float(np.median(ordered[first : first + count]))


def _by_chance(seen: _Changes, scales: np.ndarray) -> float:
    """The share of the changed entries that some sum makes but for rounding, of the changes of other entries: near 1
    where all steps are a few units in the last place."""
    e = np.random.default_rng(0).permutation(seen.e)
    terms = scales[:, None] * seen.a
    total = (_nearest_sum(e, terms, elect=False) * terms).sum(0)
    moved = np.abs(e) > 0.5 * seen.ulp
    return float((np.abs(e - total) <= seen.ulp)[moved].mean()) if moved.any() else 1.0


def _nearest_sum(e: np.ndarray, terms: np.ndarray, elect: bool, weights: np.ndarray | None = None) -> np.ndarray:
    """Which terms are in the allowed sum nearest to e, (sources, n) bool. elect: terms of one sign only; weights: the
    sum is a mean with those, of terms that have no weight yet."""
    best, masks = np.abs(e), np.zeros(terms.shape, dtype=bool)
    for choice in product((False, True), repeat=len(terms)):
        if not any(choice):
            continue
        chosen = np.array(choice)
        part = terms[chosen]
        total = part.sum(0) if weights is None else weights[chosen] @ part / weights[chosen].sum()
        allowed = (np.sign(part) == np.sign(part[0])).all(0) if elect else True
        better = (np.abs(e - total) < best) & allowed
        best = np.where(better, np.abs(e - total), best)
        masks[:, better] = chosen[:, None]
    return masks


def _told(seen: _Changes, scales: np.ndarray, *, elect: bool, weights: np.ndarray | None = None) -> Iterator[MaskedSum]:
    """The masked sum with its method and settings. weights: of a mean, where the sum was normalised."""
    e, a, ulp, shape = seen.e, seen.a, seen.ulp, seen.shape
    masks = _nearest_sum(e, scales[:, None] * a, elect=elect, weights=weights)
    parts = masks * scales[:, None] * a
    if weights is None:
        total = parts.sum(0)
    else:
        voted = (weights[:, None] * masks).sum(0)
        total = (weights[:, None] * parts).sum(0) / np.where(voted > 0, voted, 1.0)
    kinds = [_kind_of_mask(a[k], masks[k], _shown(a, k, scales, ulp, elect), shape) for k in range(len(a))]
    names = {kind.name for kind in kinds}
    if names & {"any", "graded"}:
        name = "graded" if sum(kind.slope for kind in kinds) > MIN_SLOPE * len(kinds) ** 0.5 else "any"
    else:
        name = names.pop()
    if names - {name, "any", "graded"}:
        return
    method = _METHOD[name, elect]
    density = tuple(kind.density for kind in kinds)
    settings: dict[str, Any] = {"density": density}
    if name == "middle":
        settings["gamma"] = tuple(kind.gamma for kind in kinds)
    if name == "graded":
        settings["epsilon"] = tuple(kind.epsilon for kind in kinds)
    rescaled = name in ("any", "graded")
    factor = _rescale(a, masks, density, exact=not elect) if rescaled else np.ones(len(a))
    if weights is not None:
        settings |= {"weight": tuple(map(float, weights)), "lambda": float(np.mean(scales / factor)), "normalize": True}
    else:
        settings |= {"weight": tuple(float(s) for s in scales / factor), "normalize": False}
    yield MaskedSum(method, settings, float(((e - total) ** 2).sum()), masks)


_METHOD = {
    ("largest", True): "ties", ("largest", False): "ties", ("middle", True): "breadcrumbs_ties",
    ("middle", False): "breadcrumbs", ("any", True): "dare_ties", ("any", False): "dare_linear",
    ("graded", True): "della", ("graded", False): "della_linear",
}  # fmt: skip


def _normalized(seen: _Changes, scales: np.ndarray) -> Iterator[MaskedSum]:
    """A mean of the elected changes, each scaled: its weights from the entries that are no single change."""
    e, a, ulp = seen.e, seen.a, seen.ulp
    terms = scales[:, None] * a
    single = np.abs(e - terms) <= np.maximum(0.002 * np.abs(terms), ulp)
    mixed = ~single.any(0) & (np.abs(e) > CLEAR * ulp)
    agree = np.sign(terms) == np.sign(e)
    misfit = np.where(agree, terms - e, 0.0)[:, mixed & (agree.sum(0) > 1)]
    few = misfit.shape[1] < MIN_CLEAR // 10
    weights = np.full(len(a), 1 / len(a)) if few else simplex_minimum(misfit @ misfit.T)
    for _ in range(3):  # again, with the sources that were kept
        if not weights.all():
            return
        masks = _nearest_sum(e, terms, elect=True, weights=weights)
        together = masks & (masks.sum(0) > 1)
        misfit = np.where(together, terms - e, 0.0)
        if together.any(1).all():
            weights = simplex_minimum(misfit @ misfit.T)
    if weights.all():
        yield from _told(seen, scales, elect=True, weights=weights)


def _shown(a: np.ndarray, k: int, scales: np.ndarray, ulp: np.ndarray, elect: bool) -> np.ndarray:
    """Where it shows whether change k was kept: it is clear, and none is of the other sign, which might outvote it."""
    terms = scales[:, None] * a
    clear = np.abs(terms[k]) > CLEAR * ulp
    return clear & (np.sign(terms) == np.sign(terms[k])).all(0) if elect else clear


@dataclass(frozen=True, slots=True)
class _Kind:
    """How entries were chosen: the `largest`, the `middle`, `any`, or the larger of a row more often (`graded`)."""

    name: str
    density: float
    gamma: float = 0.0
    epsilon: float = 0.0
    slope: float = 0.0  # of how often, in standard errors


def _kind_of_mask(change: np.ndarray, mask: np.ndarray, shown: np.ndarray, shape: tuple[int, ...]) -> _Kind:
    """From the ranks of the entries that were kept and those that were not."""
    rank = _ranks(np.abs(change))[shown]
    kept = mask[shown]
    least = MAX_STRAY * min(float(kept.mean()), 1.0 - float(kept.mean())) if len(kept) else 0.0
    edge, stray = _edge(rank, kept)
    high = -_edge(-rank, kept)[0]
    low = _edge(rank[rank <= high], kept[rank <= high])[0]
    outside = float((kept != ((rank >= low) & (rank <= high))).mean()) if high > low else 1.0
    if outside <= least and outside < 0.5 * stray:
        return _Kind("middle", high - low, 1.0 - high)
    if stray <= least:
        return _Kind("largest", 1.0 - edge)
    by_row = _ranks(np.abs(change).reshape(shape[0] if len(shape) > 1 else 1, -1), axis=1).reshape(-1)[shown]
    x = by_row - by_row.mean()
    slope = float(x @ kept / (x @ x))
    error = float(np.sqrt(kept.var() / (x @ x)))
    share = float(kept.mean() + slope * (0.5 - by_row.mean()))
    return _Kind("graded" if slope > MIN_SLOPE * error else "any", share, 0.0, slope / 2, slope / max(error, 1e-300))


def _ranks(size: np.ndarray, axis: int = 0) -> np.ndarray:
    """Ranks in [0, 1), 0 the smallest."""
    order = np.argsort(size, axis=axis, kind="stable")
    count = size.shape[axis]
    places = np.arange(count).reshape(-1, *(1 for _ in size.shape[axis + 1 :]))
    ranks = np.empty(size.shape)
    np.put_along_axis(ranks, order, places / count, axis)
    return ranks


def _edge(rank: np.ndarray, kept: np.ndarray) -> tuple[float, float]:
    """(rank from which entries were kept, share of entries on the wrong side) of the best single edge."""
    if len(rank) < 2 or kept.all():
        return (float(rank.min()) if len(rank) else 0.0), 0.0
    order = np.argsort(rank)
    k = kept[order]
    wrong = np.concatenate([[0], np.cumsum(k)]) + np.concatenate([[0], np.cumsum(~k[::-1])])[::-1]
    best = int(np.argmin(wrong))
    edge = float(rank[order][best]) if best < len(rank) else 1.0
    return edge, float(wrong[best] / len(rank))


def _rescale(a: np.ndarray, masks: np.ndarray, density: Sequence[float], *, exact: bool) -> np.ndarray:
    """By how much each change was enlarged to keep its l1 norm; where masks do not show everywhere, 1/density."""
    if not exact:
        return 1.0 / np.array(density)
    return np.abs(a).sum(1) / np.maximum((np.abs(a) * masks).sum(1), 1e-300)
