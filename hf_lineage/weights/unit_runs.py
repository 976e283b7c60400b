"""Whether two models are related at all, shown by a few runs of hidden units that nobody could foresee.

A *run* is `RUN` neighbouring units of one layer. Runs are drawn one layer after the other, in an order that a seed of
both commits fixes: who publishes either model cannot graft just those rows, since grafting them changes the commit. The
units of a run are matched among themselves. Its e-value (`proof.py`) has mean ≤ 1 for unrelated models, those of
disjoint runs multiply, and 1/(product so far) is a p-value whenever one stops reading (Ville's inequality).

A run is *alike* if each of its units is nearer to the other model's unit of its own number than the run's other units
are, and the other way round. Of RUN! matchings at most one has that: unrelated runs are alike with a chance of at most
1/RUN!. So the share of a model's units that are alike has an interval, with which parts that were put in show, and what
an unrelated candidate could still hide is said. See docs/methods.md, *Adaptive reading*.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..answers.base import Evidence, fields_of
from ..architecture.describe import Architecture, Shaped
from ..checkpoints.entry import Slice
from .permutation_test import PermutationTest, unit_products
from .proof import log10_mean, log_e_on_grid
from .sampling import MAX_ROW, seeded_random

RUN = 4
CHANCE = 1 / math.factorial(RUN)  # that unrelated units of a run look alike, at most
LOOKS = (16, 24, 48)  # runs after which it is looked whether more are needed
LEVEL = 0.05  # of each end of the interval of a share
KEPT = 0.1  # of unrelated candidates, at most, look alike so often by chance that more is read of them
Decision = Literal["related", "unrelated", "open"]


@dataclass(frozen=True, slots=True)
class Run:
    """`RUN` units of one layer: rows `start` and following of the matrix `name`, of `width` elements each."""

    layer: str
    name: str
    start: int
    width: int

    def piece(self, name: str) -> Slice:
        """Their elements, in a model that calls the matrix `name`."""
        return Slice(name, self.start * self.width, (self.start + RUN) * self.width)


@dataclass(frozen=True, slots=True, eq=False)
class UnitsEvidence(Evidence):
    """What some runs of hidden units show of child and candidate.

    log10_e: of the e-value that they are unrelated. units: that were read and are alive, of `layers` layers; `entries`,
    the weights of one model that were read. alike: of the `runs`
    whose units are all alive, those that are alike. share_low, share_high: of all units, one-sided bounds at 95 % each;
    the lower one counts what unrelated runs would give.
    """

    log10_e: float
    units: int
    layers: int
    entries: int
    alike: int
    runs: int

    @property
    def share_low(self) -> float:
        """The share of alike units is at least this, at 95 %."""
        return max(0.0, (binomial_bound(self.alike, self.runs, upper=False) - CHANCE) / (1 - CHANCE))

    @property
    def share_high(self) -> float:
        """The share of alike units is at most this, at 95 %."""
        return binomial_bound(self.alike, self.runs, upper=True)

    @property
    def log10_p(self) -> float:
        """log10 of min(1, 1/e)."""
        return min(0.0, -self.log10_e)

    def as_test(self) -> PermutationTest:
        """The same as the permutation test that a larger sample is given."""
        return PermutationTest(math.nan, self.log10_p, "e_value", None, 0, self.log10_p, ())

    def to_dict(self) -> dict[str, float]:
        """All fields, and the bounds."""
        return {**fields_of(self), "share_low": self.share_low, "share_high": self.share_high}


def draw_runs(
    entries: Mapping[str, Shaped], known: Architecture, usable: Collection[str], seed: str, most: int = LOOKS[-1]
) -> list[Run]:
    """At most `most` runs, no unit twice: in every round one of each layer, the layers in a new order every time.

    usable: matrices that both models have. Of a layer the one with the shortest rows is taken. Layers whose units can
    be exchanged in groups only have no runs.
    """
    layers = {}
    for layer, names in known.orders.items():
        found = [name for name in names if name in usable and 1 < _width(entries[name]) <= MAX_ROW]
        if found and layer not in known.groups:
            name = min(found, key=lambda name: (_width(entries[name]), name))
            if (count := entries[name].shape[0] // RUN) > 1:
                wanted = min(count, most)
                starts = seeded_random(0, f"{seed}:{layer}").sample(range(count), wanted)
                layers[layer] = [Run(layer, name, RUN * at, _width(entries[name])) for at in starts]
    drawn: list[Run] = []
    for turn in range(most):
        here = sorted(layer for layer, runs in layers.items() if turn < len(runs))
        if not here or len(drawn) >= most:
            break
        seeded_random(0, f"{seed}:{turn}").shuffle(here)
        drawn += [layers[layer][turn] for layer in here]
    return drawn[:most]


def evidence_of(runs: Sequence[Run], child: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor]) -> UnitsEvidence:
    """What the elements of some runs, read of both models, show. Each tensor: RUN·width elements, any float dtype."""
    logs, alike, whole, units = [], 0, 0, 0
    products = [
        unit_products([ours.reshape(RUN, -1).float()], [theirs.reshape(RUN, -1).float()])
        for ours, theirs in zip(child, candidate, strict=True)
    ]
    for h in range(2, RUN + 1):
        same = [c for c in products if len(c) and c.shape[1] == h]
        if same:
            stack = np.concatenate(same)
            units += h * len(stack)
            logs.append(log_e_on_grid(stack).sum(0))
            if h == RUN:
                alike, whole = sum(_is_alike(c) for c in stack), len(stack)
    entries = sum(RUN * run.width for run in runs)
    log10_e = log10_mean(np.sum(logs, axis=0)) if logs else 0.0
    return UnitsEvidence(log10_e, units, len({run.layer for run in runs}), entries, alike, whole)


def decide(found: UnitsEvidence, read: int, threshold: float) -> Decision:
    """What is known after `read` runs. threshold: log10 e from which two models are related.

    Unrelated is who has e < 1 after `LOOKS[1]` runs, and no more alike runs than chance gives to all but `KEPT` of the
    unrelated: who has a few parts in common is left to a larger sample.
    """
    if found.log10_e >= threshold:
        return "related"
    by_chance = next(k for k in range(read + 1) if _tail(k + 1, read, CHANCE) <= KEPT)
    if read >= LOOKS[1] and found.log10_e < 0 and found.alike <= by_chance and 2 * found.runs >= read:
        return "unrelated"
    return "open"


def binomial_bound(k: int, n: int, upper: bool) -> float:
    """The one-sided bound of Clopper and Pearson (1934) at `LEVEL` of a share of which k of n were seen.

    >>> round(binomial_bound(16, 16, upper=False), 3), round(binomial_bound(0, 24, upper=True), 3)
    (0.829, 0.117)
    """
    if (k == n) if upper else (k == 0):
        return float(upper)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        beyond = 1 - _tail(k + 1, n, share) > LEVEL if upper else _tail(k, n, share) < LEVEL
        low, high = (share, high) if beyond else (low, share)
    return (low + high) / 2


def _tail(k: int, n: int, share: float) -> float:
    """P(X ≥ k) of a binomial X."""
    return sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k, n + 1))


def _is_alike(c: np.ndarray) -> bool:
    own = np.diag(c)
    others = np.where(np.eye(len(c), dtype=bool), -np.inf, c)
    return bool((own > others.max(0)).all() and (own > others.max(1)).all())


def _width(entry: Shaped) -> int:
    return entry.count // max(1, entry.shape[0]) if len(entry.shape) > 1 else 0
