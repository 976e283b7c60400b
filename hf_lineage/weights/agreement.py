"""Agreement of two matchings of hidden units: evidence of a common origin that no arrangement of units changes.

p asks whether units in the same places are alike, and somebody may have put unrelated units where they look so. Matched
twice without regard to their places, by what they read and by what reads them, units of relatives pair alike, others do
not. See docs/methods.md, *Hidden permutations*.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..architecture.describe import Architecture, Shaped
from ..checkpoints.checkpoint import Checkpoint
from .hidden_permutation import free_orders, whole_matrices
from .reader import Readings
from .sampling import MIN_UNITS, seeded_random
from .unit_matching import match_units

MAX_MATCHING = 1 << 33  # sum of h³ over the orders of h units that are matched beside a p-value: two of 1,600
CHECKED_UNITS = 1024  # of each layer that are then matched
CHECKED_LAYERS = 3  # whose whole matrices are read where they were not kept: one that was copied is outvoted


def agreement_of(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
) -> dict[str, Any] | None:  # fmt: skip
    """How many hidden units of a related candidate two matchings pair alike (`match_units`); None: none to match.

    Of the first layers that were kept in whole, as far as `MAX_MATCHING` goes. Below `RELATED_SCORE` nothing is
    concluded from p.
    """
    ours, theirs = whole_matrices(readings, child, candidate)
    orders, reads = free_orders(architecture)
    chosen, cost = [], 0
    for order, rows in orders.items():
        cost += max((child[name].shape[0] for name in rows if name in ours), default=0) ** 3
        if cost > MAX_MATCHING:
            break
        chosen.append(order)
    match = match_units(
        ours, theirs, {order: orders[order] for order in chosen}, {o: reads[o] for o in chosen if o in reads}
    )
    return {"score": match.score, **_counts(match.agreement)} if match.agreement else None


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """A few layers of the child whose whole matrices are read to see whether a candidate's units agree.

    rows, readers: order → the matrices that write and that read its units, all of them. units: order → the places that
    are compared, at most CHECKED_UNITS: a relative that passes the permutation test has its units where the child has
    them.
    """

    child: Checkpoint
    rows: Mapping[str, Sequence[str]]
    readers: Mapping[str, Sequence[str]]
    units: Mapping[str, torch.Tensor]
    _ours: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, child: Checkpoint, architecture: Architecture, seed: int, most: int) -> LayerCheck:
        """CHECKED_LAYERS layers drawn by the seed, of those of which no matrix has more than `most` bytes."""
        orders, reads = free_orders(architecture)
        readers = {order: [n for n in reads.get(order, ()) if n in child] for order in orders}
        heights = {order: child[names[0]].shape[0] for order, names in orders.items()}
        fitting = sorted(
            order for order, names in orders.items()
            if readers[order] and heights[order] >= MIN_UNITS
            and all(child[name].nbytes <= most for name in (*names, *readers[order]))
        )  # fmt: skip
        drawn = seeded_random(seed, "checked layers").sample(fitting, min(CHECKED_LAYERS, len(fitting)))
        units = {
            order: torch.tensor(
                sorted(seeded_random(seed, order).sample(range(heights[order]), min(heights[order], CHECKED_UNITS)))
            )
            for order in drawn
        }
        return cls(child, {o: orders[o] for o in drawn}, {o: readers[o] for o in drawn}, units)

    @property
    def names(self) -> list[str]:
        """The matrices that are read."""
        groups = [*self.rows.values(), *self.readers.values()]
        return [*dict.fromkeys(name for names in groups for name in names)]

    def nbytes(self, model: Checkpoint, partners: Mapping[str, str] | None = None) -> int:
        """What a model has to read of them; partners: the child's names → its own, None for the child itself."""
        own = {name: name for name in self.names} if partners is None else partners
        return sum(model[own[name]].nbytes for name in self.names if name in own)

    def agreement(self, candidate: Checkpoint, partners: Mapping[str, str]) -> dict[str, Any] | None:
        """As `agreement_of`, with the score of the middle layer: one that was copied does not pass for all.

        None where the candidate has no such layers of the child's shapes. Reads the child's matrices once.
        """
        found: dict[str, tuple[int, int]] = {}
        shares: list[float] = []
        for order in self.units:  # one after the other: their matrices need not be held together
            rows, readers = ([n for n in group[order] if n in partners] for group in (self.rows, self.readers))
            names = [n for n in (*rows, *readers) if candidate[partners[n]].shape == self.child[n].shape]
            for name in names:
                if (order, name) not in self._ours:
                    self._ours[order, name] = self._units_of(order, self.child, name, name)
            ours = {name: self._ours[order, name] for name in names}
            theirs = {name: self._units_of(order, candidate, name, partners[name]) for name in names}
            match = match_units(ours, theirs, {order: rows}, {order: readers})
            found |= match.agreement
            shares += [] if match.score is None else [match.score]
        return {"score": statistics.median(shares), **_counts(found), "layers": len(shares)} if shares else None

    def _units_of(self, order: str, model: Checkpoint, name: str, own: str) -> torch.Tensor:
        """The chosen units of one matrix, in whole along its other axis."""
        axis = 0 if name in self.rows[order] else 1
        return model.whole([own])[0].index_select(axis, self.units[order])


def _counts(agreement: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    found = agreement.values()
    return {"units_agreeing": sum(agree for agree, _ in found), "units": sum(of for _, of in found)}
