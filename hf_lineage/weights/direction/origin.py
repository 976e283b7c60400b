"""Which of two related models came first: where other models lie along the line from one to the other.

Fine-tuning adds a step Δ = child − candidate that is nearly orthogonal to everything that was there before it. A
reference k that is older than the step, seen from the candidate, therefore projects on Δ at

    t = ⟨k − candidate, child − candidate⟩ / |child − candidate|²,

which is near 0 if the candidate is the parent, near 1 if it is a descendant of the child, and between if the two parted
from a common ancestor (½ for two that moved equally far). References are the origin, which is the mean of every random
initialisation (t then compares norms), and third relatives. The error of t grows with the reference's relative distance
|k − candidate| / |Δ|, since what the step shares with the way to k (weight decay, common drift) is a cosine: a light
fine-tune decides little.

`direction_shares` makes probabilities of it. The position t of the origin is taken as Student-t distributed around 0 if
the candidate is the parent, ½ if the two parted from a common start, 1 if the candidate is a descendant. Its scale
grows with the relative distance: the cosine of a step with the weights it started from is `drift`, not 0. Before any
reference is looked at, each model is as likely to be the root of the tree as any other; third relatives that lie behind
the candidate make it more likely the parent, those behind the child the child. See docs/methods.md, *Direction*.
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

from ...answers.base import Evidence, fields_of

MIN_DEPENDENCE = 0.01  # an absolute correlation this small is no asymmetry yet
# Change relative to the two norms from which the origin's position tells an order: below, it was at chance on a real
# model (22 M weights, tuned at 2e-5 to 5e-4, moved by 0.2 to 9 %), and nothing was fitted there
LEAST_MOVED = 0.1
MAX_MISFIT = 3.0  # scales of the position's error beyond which neither order explains it: a merge, a rescaled model
ASYMMETRY_ENTRIES = 1 << 16  # entries of one matrix that the residual asymmetry is computed from


@functools.cache
def fitted_numbers() -> dict[str, Any]:
    """The constants of `direction_shares`, fitted by `experiments/calibration.py` on families with a known truth."""
    return json.loads(files("hf_lineage").joinpath("weights/direction/origin.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class OriginPosition:
    """Where one reference lies: `t` (see above), and `relative_distance` = |reference − candidate| / |Δ|, ≥ 0."""

    t: float
    relative_distance: float


def origin_position(gram: np.ndarray, candidate: int) -> OriginPosition | None:
    """The position of the origin, seen from the candidate in row `candidate`; None where it equals the child.

    gram: (M, M) as in `Moments`, row 0 the child c, row i the difference yᵢ of a candidate from it. With p = c + y and
    Δ = −y, t = ⟨−p, Δ⟩/|Δ|² = 1 + ⟨c, y⟩/|y|².
    """
    square = gram[candidate, candidate]
    if not square > 0:
        return None
    norm = gram[0, 0] + 2 * gram[0, candidate] + square
    return OriginPosition(float(1 + gram[0, candidate] / square), float(np.sqrt(max(norm, 0.0) / square)))


def relative_positions(gram: np.ndarray, candidate: int, others: Sequence[int]) -> list[OriginPosition]:
    """The positions of other candidates, t = 1 − ⟨y, yₖ⟩/|y|²; equal models are left out. `gram` as above."""
    square = gram[candidate, candidate]
    positions = []
    for other in others:
        apart = square + gram[other, other] - 2 * gram[candidate, other]
        if square > 0 and gram[other, other] > 0 and apart > 1e-12 * square:
            t = 1 - gram[candidate, other] / square
            positions.append(OriginPosition(float(t), float(np.sqrt(apart / square))))
    return positions


def residual_asymmetry(forward: float, backward: float, entries: int) -> float:
    """(|backward| − |forward|) / (|backward| + |forward| + ε), in (−1, 1): above 0 the candidate came first.

    forward, backward: the two of `residual_dependences`; ε = MIN_DEPENDENCE + 3/√entries, three standard errors of a
    correlation of so many entries.
    """
    a, b = abs(forward), abs(backward)
    return (b - a) / (b + a + MIN_DEPENDENCE + 3 / max(entries, 1) ** 0.5)


def residual_dependences(child: torch.Tensor, candidate: torch.Tensor) -> tuple[float, float]:
    """How much a regression's residual depends on its regressor: (child on candidate, candidate on child), in [−1, 1].

    Regress y on x, scale rows and columns of the residual to equal size, and correlate its absolute value with that of
    x, scaled the same way. A step that is independent of the parent leaves no dependence in the direction it was made;
    the reverse regression leaves a residual that depends on its regressor, as in LiNGAM (Shimizu et al. 2011) and in
    additive noise models (Hoyer et al., NeurIPS 2008). See docs/methods.md, *Residual asymmetry*.
    child, candidate: (rows, width); of large ones evenly spaced rows of about ASYMMETRY_ENTRIES together.
    """
    every = -(-child.numel() // ASYMMETRY_ENTRIES) or 1
    child, candidate = child[::every], candidate[::every]
    a, b = candidate.double() - candidate.double().mean(), child.double() - child.double().mean()
    return _dependence(a, b), _dependence(b, a)


def _dependence(x: torch.Tensor, y: torch.Tensor) -> float:
    """Correlation of |y − (⟨x, y⟩/⟨x, x⟩)·x| with |x|, both equilibrated; 0 where one of them is constant."""
    square = (x * x).sum()
    if not square > 0:
        return 0.0
    residual = _equilibrated(y - (x * y).sum() / square * x).abs()
    size = _equilibrated(x).abs()
    residual, size = residual - residual.mean(), size - size.mean()
    scale = residual.norm() * size.norm()
    return float((residual * size).sum() / scale) if scale > 0 else 0.0


def _equilibrated(matrix: torch.Tensor) -> torch.Tensor:
    """Columns, then rows, scaled to a root mean square of 1; those that are all zero stay."""
    for axis in (0, 1):
        size = matrix.square().mean(axis, keepdim=True).sqrt()
        matrix = matrix / torch.where(size > 0, size, 1.0)
    return matrix


# t of the origin: behind the candidate, between the two, behind the child
EXPECTED_T = np.array([0.0, 0.5, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class Direction(Evidence):
    """Probabilities of the three orders, summing to 1: the candidate came first, neither did, the child came first."""

    parent: float
    between: float
    descendant: float

    def to_dict(self) -> dict[str, Any]:
        """The three probabilities."""
        return fields_of(self)

    @property
    def decided(self) -> str | None:
        """The order whose share is at least the fitted threshold `sure`; None where none is."""
        shares = {"parent": self.parent, "between": self.between, "descendant": self.descendant}
        best = max(shares, key=lambda name: shares[name])
        return best if shares[best] >= fitted_numbers()["sure"] else None


NO_ORDER = Direction(1 / 3, 1 / 3, 1 / 3)


def direction_shares(
    origin: tuple[float, float] | None, relatives: Sequence[tuple[float, float]] = (), entries: int | None = None
) -> Direction:
    """The shares of the three orders, from (t, relative distance) of the origin and of third relatives.

    Each relative adds to a uniform prior its normalised Student-t likelihood of lying behind either model or between;
    the origin's likelihood is then multiplied in (see above, and docs/methods.md, *Direction*). entries: how many were
    read of the tensors that changed, whose sampling error of t is relative distance/√entries; None: all of them.
    """
    n = fitted_numbers()
    prior = np.array([1.0, 1.0, 1.0])
    for t, distance in relatives:
        scale = n["relative_spread"] + n["relative_drift"] * distance
        likelihood = np.exp(_densities(t - EXPECTED_T, scale, scale, n["tails"]))
        prior += likelihood / likelihood.sum()
    logs = np.log(prior / prior.sum())
    if origin is not None:
        t, distance = origin
        noise = 0.0 if entries is None else distance / math.sqrt(max(entries, 1))
        ends = math.hypot(n["spread"] + n["drift"] * distance, noise)
        middle = math.hypot(n["twin_spread"] + n["twin_drift"] * distance, noise)
        logs += _densities(t - EXPECTED_T, ends, middle, n["tails"])
    shares = np.exp(logs - logs.max())
    return Direction(*(float(share) for share in shares / shares.sum()))


def end_misfit(t: float, distance: float, entries: int) -> float:
    """How far t lies from the nearer of 0 and 1, in scales of its error there: above about 3 no order explains it."""
    n = fitted_numbers()
    scale = math.hypot(n["spread"] + n["drift"] * distance, distance / math.sqrt(max(entries, 1)))
    return min(abs(t), abs(t - 1)) / scale


def order_by_position(position: OriginPosition | None, entries: int) -> Direction:
    """The shares of the orders of two models by the position of the origin, in a form that swaps with the two models;
    `NO_ORDER` where it tells nothing. entries: weights that changed."""
    if position is None:
        return NO_ORDER
    t, square = position.t, position.relative_distance**2
    back = max(square + 1 - 2 * t, 0.0)  # |child|²/|Δ|²
    reach = (square * back) ** 0.25
    if reach > 1 / LEAST_MOVED:
        return NO_ORDER
    found = direction_shares((t, reach), entries=entries)
    return found if end_misfit(t, reach, entries) <= MAX_MISFIT else NO_ORDER


def _densities(offsets: np.ndarray, ends: float, middle: float, tails: float) -> np.ndarray:
    """Log densities of Student's t with `tails` degrees of freedom, up to a constant, at distances from EXPECTED_T."""
    scales = np.array([ends, middle, ends])
    return -np.log(scales) - (tails + 1) / 2 * np.log1p((offsets / scales) ** 2 / tails)
