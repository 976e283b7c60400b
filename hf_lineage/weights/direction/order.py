"""The one rule that joins what the estimators of an order measured: who came first, how far the origin can be, and why.

Each estimator that applies is an independent measurement of the same λ (`position.py`), with an error that holds a term
of its model's own, fitted on families of a real model (`ERROR`). One whose misfit is above MAX_MISFIT, or whose λ lies
beyond ±1 by more than its error allows, is not believed. Two that differ by more than MAX_APART errors silence all.

Three hypotheses, equally likely before anything is looked at: the candidate is the origin (λ = 1), the child is (−1),
both parted from a common parent (λ anywhere between, since siblings may have moved unequally). Their likelihoods are
Student's t with TAILS degrees of freedom around λ. λ alone cannot tell a parent from a sibling that moved far less than
the child: so the order has a radius, within which the origin lies of the candidate, and says whether the candidate
itself shows the mark of having been trained on its lattice (`weights/history.py`). See docs/methods.md, *Order*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .position import Position

# The model's own error of λ, by estimator
ERROR = {
    "rounding_edges": 0.05, "barrier": 0.2, "lattice_memory": 0.3, "growth": 0.6, "merged_lora": 0.1,
    "weight_decay": 0.25,
}  # fmt: skip
MAX_MISFIT = 3.5
# Of roundings: direct pairs had at most 1.3 on one family of a real model and 1.5 on another; a grandparent, and a
# tenth of the siblings, had 2 and more
MAX_SCATTER = 1.8
MAX_APART, MAX_BEYOND = 3.0, 3.0  # in errors: two estimators from each other, one from −1 … 1
TAILS = 5.0
MAX_STDERR = 0.35  # of λ, above which no order is decided: direct pairs of a real model had at most 0.31
SURE = 0.75  # share from which an order is called decided
# λ, and λ in errors, from which a candidate leans to the origin though no order is decided
ELDER, ELDER_Z = 0.5, 3.0
LOW = 2.0  # errors below λ at which the radius is taken
GRID = np.linspace(-1.0, 1.0, 201)
SEEN_IN = {
    "rounding_edges": "the roundings of", "barrier": "the powers of two that held back",
    "lattice_memory": "what is remembered of a coarser format by", "growth": "the growth of the rows of",
    "merged_lora": "a low-rank step that explains", "weight_decay": "the weight decay of",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """Who came first, of a candidate and a child.

    candidate, common, child: shares of the three hypotheses, summing to 1: which of them is the origin. lambda_,
    stderr, misfit, entries: the joined measurement; None, ∞, 0 and what was looked at where nothing applies. method:
    the estimators that spoke, the surest first, joined by "+"; "" for none. radius: of the origin around the candidate,
    in the units of ‖c − p‖; None where nothing applies. marked, child_marked: whether the candidate, the child shows
    that it was itself trained on its lattice; None where that was not looked at. reason: in words.
    """

    candidate: float
    common: float
    child: float
    lambda_: float | None
    stderr: float
    misfit: float
    method: str
    entries: int
    radius: float | None
    marked: bool | None
    child_marked: bool | None
    reason: str

    @property
    def decided(self) -> str | None:
        """ "candidate", "common" or "child", whose share is at least SURE; None where none is."""
        shares = {name: getattr(self, name) for name in ("candidate", "common", "child")}
        best = max(shares, key=lambda name: shares[name])
        return best if shares[best] >= SURE and self.stderr <= MAX_STDERR else None


def leans(order: Order | None) -> bool:
    """Whether the candidate lies nearer to the origin, if not decidedly there: λ ≥ ELDER, by ELDER_Z errors."""
    if order is None or order.decided in ("child", "common") or order.lambda_ is None:
        return False
    return order.decided == "candidate" or order.lambda_ >= max(ELDER, ELDER_Z * order.stderr)


def is_elder(order: Order | None) -> bool:
    """Whether the candidate is at least so near to the origin that the child's step from it is the child's own.

    That is less than that it is the origin: it leans to it, or the child alone bears a mark and nothing speaks against
    it.
    """
    if order is None or order.decided in ("child", "common") or (order.lambda_ or 0.0) < 0:
        return False
    return leans(order) or bool(order.child_marked and not order.marked and order.marked is not None)


def join(
    positions: Iterable[Position], moved: float, marked: bool | None = None, child_marked: bool | None = None
) -> Order:
    """The order that the positions show together. moved: ‖c − p‖, in the unit that the radius is wanted in."""
    found = list(positions)
    believed, why = [], []
    for position in found:
        doubt = _doubt(position)
        if doubt:
            why.append(doubt)
        else:
            believed.append((position, math.hypot(position.stderr, ERROR[position.method])))
    marks = (marked, child_marked)
    entries = max((p.entries for p in found), default=0)
    if not believed:
        return Order(1 / 3, 1 / 3, 1 / 3, None, math.inf, 0.0, "", entries, None, *marks, "; ".join(why))
    believed.sort(key=lambda pair: pair[1])
    if apart := _apart(believed):
        return Order(1 / 3, 1 / 3, 1 / 3, None, math.inf, apart[0], "", entries, None, *marks, apart[1])
    value, stderr, misfit = _mean(believed)
    low = max(-1.0, min(value - LOW * stderr, 1.0))
    radius = moved * math.sqrt((1 - low) / 2)
    methods = "+".join(position.method for position, _ in believed)
    order = Order(*shares(value, stderr), value, stderr, misfit, methods, entries, radius, *marks, "")
    return replace(order, reason=_words(order, believed))


def _doubt(position: Position) -> str:
    """Why a position is not believed; "" where it is."""
    if position.lambda_ is None:
        return f"{position.method}: {position.reason}"
    if position.misfit > (MAX_SCATTER if position.method == "rounding_edges" else MAX_MISFIT):
        return f"{position.method}: no order explains what was counted (misfit {position.misfit:.1f})"
    if abs(position.lambda_) - 1 > MAX_BEYOND * math.hypot(position.stderr, ERROR[position.method]):
        return f"{position.method}: λ = {position.lambda_:.2f} is beyond what an order can give"
    return ""


Believed = Sequence[tuple[Position, float]]


def _apart(believed: Believed) -> tuple[float, str] | None:
    """The two that differ most, if by more than their errors allow: the difference in errors, and a sentence."""
    worst = (0.0, "")
    for i, (one, error) in enumerate(believed):
        for other, its_error in believed[i + 1 :]:
            apart = abs((one.lambda_ or 0.0) - (other.lambda_ or 0.0)) / math.hypot(error, its_error)
            told = f"{one.method} (λ = {one.lambda_:.2f}) and {other.method} (λ = {other.lambda_:.2f}) disagree"
            worst = max(worst, (apart, told))
    return worst if worst[0] > MAX_APART else None


def _mean(believed: Believed) -> tuple[float, float, float]:
    """λ, its error, and the misfit of the surest."""
    weights = np.array([error**-2 for _, error in believed])
    values = np.array([position.lambda_ for position, _ in believed], dtype=np.float64)
    mean = float((weights * values).sum() / weights.sum())
    return max(-1.0, min(mean, 1.0)), float(weights.sum() ** -0.5), believed[0][0].misfit


def shares(value: float, stderr: float) -> tuple[float, float, float]:
    """Shares of: the candidate is the origin, both parted from a common parent, the child is the origin."""

    def likelihood(at: np.ndarray) -> np.ndarray:
        return (1 + ((value - at) / stderr) ** 2 / TAILS) ** (-(TAILS + 1) / 2)

    found = np.array([likelihood(GRID[-1]), likelihood(GRID).mean(), likelihood(GRID[0])])
    candidate, common, child = found / found.sum()
    return float(candidate), float(common), float(child)


def _words(order: Order, believed: Believed) -> str:
    best = believed[0][0]
    seen = f"{SEEN_IN[best.method]} {count_text(best.entries)} weights"
    many = best.method in ("rounding_edges", "barrier", "lattice_memory")
    if order.decided is None:
        return (
            f"{seen} {'leave' if many else 'leaves'} open who came first (λ = {order.lambda_:.2f} ± {order.stderr:.2f})"
        )
    said = {"candidate": "that the candidate came first", "child": "that the child came first"}
    return f"{seen} {'show' if many else 'shows'} {said.get(order.decided, 'that the two parted from a common parent')}"


def count_text(count: int) -> str:
    """A count in three digits at most.

    >>> [count_text(n) for n in (950, 22_300, 22_700_000, 7_000_000_000)]
    ['950', '22 k', '23 M', '7 G']
    """
    for power, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= power:
            return f"{count / power:.0f}{unit}"
    return str(count)
