"""Which of two related models came first? Where others lie along the line from one to the other (METHODS §5).

Fine-tuning adds a step Δ = child − candidate that is nearly orthogonal to everything that was there before it. So a
reference k that is older than the step, seen from the candidate, projects on Δ at

    t = ⟨k − candidate, child − candidate⟩ / |child − candidate|²

near 0 if the candidate is the parent, near 1 if it is a descendant of the child, and between if the two parted from
a common ancestor (½ for twins that moved equally far). References: the origin (the mean of every random
initialisation: t then compares norms), and third relatives. The errors of t grow with |k − candidate| / |Δ|, since what
the step shares with the way to k (weight decay, common drift) is a cosine: a light fine-tune tells little.

`direction` makes shares of it. The position t of the origin along candidate → child is taken as Student-t around 0 if
the candidate is the parent, ½ if the two parted from a common start, 1 if it is a descendant. Its scale grows with the
reach: a step's cosine with the weights it started from is `drift`, not 0. Before looking, each model is as likely to be
the root of the tree as any other: third relatives that lie behind the candidate speak for it as the parent, those
behind the child for the child.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch

FLOOR = 0.01  # a dependence this small is no asymmetry yet
ENTRIES = 1 << 18  # of one matrix are looked at for it: 2 MB a copy


@functools.cache
def fitted_numbers() -> dict[str, Any]:
    """What was fitted for `direction`, by `experiments/calibration.py`."""
    return json.loads(files("hf_lineage").joinpath("weights/direction.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Position:
    """One reference: `t` (see the top), and `reach` = |reference − candidate| / |child − candidate|."""

    t: float
    relative_distance: float


def origin_position(gram: np.ndarray, candidate: int) -> Position | None:
    """The position of zero; `gram` (M, M) as in `Moments`: row 0 the child, the others differences from it.

    With p = c + y and Δ = −y: t = ⟨−p, Δ⟩/|Δ|² = 1 + ⟨c, y⟩/|y|². None where the two are equal.
    """
    square = gram[candidate, candidate]
    if not square > 0:
        return None
    norm = gram[0, 0] + 2 * gram[0, candidate] + square
    return Position(float(1 + gram[0, candidate] / square), float(np.sqrt(max(norm, 0.0) / square)))


def relative_positions(gram: np.ndarray, candidate: int, others: Sequence[int]) -> list[Position]:
    """The positions of other candidates: t = 1 − ⟨y, yₖ⟩/|y|². Rows of `gram` as above; equal models are skipped."""
    square = gram[candidate, candidate]
    found = []
    for other in others:
        away = square + gram[other, other] - 2 * gram[candidate, other]
        if square > 0 and gram[other, other] > 0 and away > 1e-12 * square:
            t = 1 - gram[candidate, other] / square
            found.append(Position(float(t), float(np.sqrt(away / square))))
    return found


def residual_asymmetry(forward: float, backward: float, entries: int) -> float:
    """(|backward| − |forward|)/(|backward| + |forward| + floor), in (−1, 1): above 0 the candidate came first.

    forward, backward: what `asymmetry` gives; the floor is FLOOR plus three sampling errors of a correlation of so many
    entries.
    """
    a, b = abs(forward), abs(backward)
    return (b - a) / (b + a + FLOOR + 3 / max(entries, 1) ** 0.5)


def residual_dependences(child: torch.Tensor, candidate: torch.Tensor) -> tuple[float, float]:
    """How much what one matrix leaves unexplained of the other depends on it: (candidate → child, child → candidate).

    Regress y on x, give the residual's rows and columns equal size, and correlate its absolute value with that of x
    (treated the same). A step that is independent of the parent leaves nothing in the direction it was made, while the
    reverse regression leaves a residual that depends on its regressor (residual asymmetry, METHODS §5).
    Matrices (rows, width), of large ones evenly spaced rows of about ENTRIES together; each result in [−1, 1].
    """
    every = -(-child.numel() // ENTRIES) or 1
    child, candidate = child[::every], candidate[::every]
    a, b = candidate.double() - candidate.double().mean(), child.double() - child.double().mean()
    return _dependence(a, b), _dependence(b, a)


def _dependence(x: torch.Tensor, y: torch.Tensor) -> float:
    square = (x * x).sum()
    if not square > 0:
        return 0.0
    rest = _even(y - (x * y).sum() / square * x).abs()
    size = _even(x).abs()
    rest, size = rest - rest.mean(), size - size.mean()
    scale = rest.norm() * size.norm()
    return float((rest * size).sum() / scale) if scale > 0 else 0.0


def _even(matrix: torch.Tensor) -> torch.Tensor:
    """Columns, then rows, scaled to a root mean square of 1; those of zeros stay."""
    for axis in (0, 1):
        size = matrix.square().mean(axis, keepdim=True).sqrt()
        matrix = matrix / torch.where(size > 0, size, 1.0)
    return matrix


PLACES = np.array([0.0, 0.5, 1.0])  # where the origin lies: behind the candidate, between, behind the child


@dataclass(frozen=True, slots=True)
class Direction:
    """Shares of the three orders, summing to 1: the candidate came first, neither did, the child came first."""

    parent: float
    between: float
    descendant: float

    @property
    def decided(self) -> str | None:
        """The order that can be said, or None."""
        shares = {"parent": self.parent, "between": self.between, "descendant": self.descendant}
        best = max(shares, key=lambda name: shares[name])
        return best if shares[best] >= fitted_numbers()["sure"] else None


def direction_shares(
    origin: tuple[float, float] | None, relatives: Sequence[tuple[float, float]] = (), entries: int | None = None
) -> Direction:
    """The shares from (t, reach) of the origin and of third relatives.

    `entries` read (None: all) bound how well t is known.
    """
    n = fitted_numbers()
    prior = np.array([1.0, 1.0, 1.0])
    for t, reach in relatives:
        scale = n["relative_spread"] + n["relative_drift"] * reach
        behind = np.exp(_densities(t - PLACES, scale, scale, n["tails"]))
        prior += behind / behind.sum()
    logs = np.log(prior / prior.sum())
    if origin is not None:
        t, reach = origin
        noise = 0.0 if entries is None else reach / math.sqrt(max(entries, 1))
        ends = math.hypot(n["spread"] + n["drift"] * reach, noise)
        middle = math.hypot(n["twin_spread"] + n["twin_drift"] * reach, noise)
        logs += _densities(t - PLACES, ends, middle, n["tails"])
    shares = np.exp(logs - logs.max())
    return Direction(*(float(share) for share in shares / shares.sum()))


def _densities(away: np.ndarray, ends: float, middle: float, tails: float) -> np.ndarray:
    """Log densities of Student's t with `tails` degrees of freedom, up to a constant, at distances from the places."""
    scales = np.array([ends, middle, ends])
    return -np.log(scales) - (tails + 1) / 2 * np.log1p((away / scales) ** 2 / tails)
