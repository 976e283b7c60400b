"""Two candidates of one child: which of them came first, and whether the child came from the one or from the other.

Asked of the rows that were kept in memory, so that nothing is read again.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .inheritance import inherited
from .order import Order
from .rounding_edges import kind_of
from .steps import order_of_rows, step_rows

if TYPE_CHECKING:
    from ..evidence import PairReadings


class CandidatePair:
    """`one` and `other`: what was read of the child with each of them."""

    def __init__(self, one: PairReadings, other: PairReadings) -> None:
        self.one, self.other = one, other
        past = one.readings.counts.past
        self._pasts = past(0), past(one.candidate + 1), past(other.candidate + 1)

    def order(self, back: bool = False) -> Order:
        """Who of the two came first, `one` in the place of the candidate and `other` in the child's; `back`: the other
        way round."""
        _, one, other = self._rows
        places = [(one, self._pasts[1]), (other, self._pasts[2])]
        (candidate, its_past), (child, past) = reversed(places) if back else places
        return order_of_rows({name: (child[name], kept) for name, kept in candidate.items()}, past, its_past)

    def inherited(self, back: bool = False) -> bool | None:
        """Whether the child came from `one`, which came from `other` (`inheritance.py`); `back`: `one` from the child.
        None where that is not shown."""
        child, one, other = self._rows
        made, start = (one, child) if back else (child, one)
        matrices = ((kept, start[name], other[name]) for name, kept in made.items())
        return inherited(matrices, self._pasts[0 if back else 1].kept_in_half)

    @cached_property
    def _rows(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The kept rows of child, one and other, as many of a matrix as all three have; of the matrices in which steps
        were counted, which a packed one is not."""
        ours, theirs = self.one.units(), self.other.units()
        found: tuple[dict[str, torch.Tensor], ...] = ({}, {}, {})
        steps = self.one.readings.counts.steps
        counted = (
            name for name in ours if name in theirs
            and all((kind_of(name), pair.candidate) in steps for pair in (self.one, self.other))
        )  # fmt: skip
        for name in counted:
            both = (*ours[name], theirs[name][1])
            least = min(len(rows) for rows in both)
            for kept, rows in zip(found, both, strict=True):
                kept[name] = rows[:least]
        among = sum(rows.numel() for rows in found[0].values())
        child, one, other = (step_rows(kept, past, among) for kept, past in zip(found, self._pasts, strict=True))
        return child, one, other
