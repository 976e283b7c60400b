"""Who came first, of models whose weights were kept in half precision while they were trained.

Without an fp32 master copy a single step is lost wherever it is below half a spacing: weights above some power of two V
never move, those just below move freely, and what drifts upwards is caught at V, the first number of the coarser
binade. The mass at V grows and does not shrink. So at the edges where the weights below moved and those above did not,
and V holds more than a smooth density predicts, of the weights that are at V in one model only,

    λ = (entered − left)/(entered + left) / ALL_ENTERED, cut at ±1:

1 if nearly all entered V on the way from the candidate to the child, near 0 of siblings that were trained alike.
See docs/methods.md, *The barrier of low precision*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .lattices import LATTICES
from .position import Position
from .rounding_edges import BESIDE, MIN_INTERIOR, REACH, Roundings

LEAST_BELOW = 0.01  # share of the weights below the edge that moved
MAX_ABOVE = 0.02  # share of those above that moved, over the share below
MIN_EXCESS, MIN_Z = 0.03, 5.0  # at V, over a smooth density: relative, and in its errors
MIN_CHANGED = 200  # weights that are at V in one of the two models only
ALL_ENTERED = 0.8  # (entered − left)/(entered + left) of a direct pair: some weights step down again
METHOD = "barrier"

AtEdge = Mapping[int, tuple[float, float]]  # binade → excess at its first number and its error, as in `Profile`


def barrier_position(roundings: Roundings, lattice: str, child: AtEdge, candidate: AtEdge) -> Position:
    """λ at the edges where low precision holds weights back. child, candidate: `Profile.at_edge` of each."""
    silent = "no power of two holds weights back: neither was trained with its weights kept in half precision"
    if lattice not in roundings.tables:
        return Position.silent(METHOD, "the two do not lie on one lattice of half precision", roundings.entries)
    forward, backward = roundings.tables[lattice]
    entered = left = 0
    for i, binade in enumerate(LATTICES[lattice].edges[:-1]):
        most = max((at.get(binade, (0.0, 1.0)) for at in (child, candidate)), key=lambda found: found[0])
        if most[0] < MIN_EXCESS or most[0] < MIN_Z * most[1] or not _holds_back(forward, i):
            continue
        entered += _elsewhere(backward[i, BESIDE])
        left += _elsewhere(forward[i, BESIDE])
    if entered + left < MIN_CHANGED:
        return Position.silent(METHOD, silent, roundings.entries)
    total = entered + left
    share = (entered - left) / total
    value = max(-1.0, min(share / ALL_ENTERED, 1.0))
    stderr = math.sqrt(max(1 - share**2, 1 / total) / total) / ALL_ENTERED
    reason = f"{entered:,} weights entered, {left:,} left the power of two where half precision holds them back"
    return Position(value, stderr, 1.0, METHOD, roundings.entries, reason)


def _holds_back(table: np.ndarray, edge: int) -> bool:
    """Whether the weights below the edge moved and those above did not."""
    below, above = table[edge, -1], table[edge + 1, -1]
    if min(below.sum(), above.sum()) < MIN_INTERIOR:
        return False
    moved = _elsewhere(below) / below.sum()
    return bool(moved >= LEAST_BELOW and _elsewhere(above) / above.sum() < MAX_ABOVE * moved)


def _elsewhere(steps: np.ndarray) -> int:
    return int(steps.sum() - steps[REACH])
