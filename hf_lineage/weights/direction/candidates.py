"""Two candidates of one child: which of them came first, and whether the child came from the one or from the other.

Asked of the rows that were kept in memory, so that nothing is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .inheritance import inherited
from .order import Order
from .steps import order_of_rows

if TYPE_CHECKING:
    from ..evidence import PairReadings


class CandidatePair:
    """`one` and `other`: what was read of the child with each of them."""

    def __init__(self, one: PairReadings, other: PairReadings) -> None:
        self.one, self.other = one, other

    def order(self) -> Order:
        """Who of the two came first, `one` in the place of the candidate and `other` in the child's."""
        counts = self.one.readings.counts
        pasts = (counts.past(self.other.candidate + 1), counts.past(self.one.candidate + 1))
        return order_of_rows({name: (other, one) for name, (_, one, other) in self._rows().items()}, *pasts)

    def inherited(self) -> bool | None:
        """Whether the child came from `one`, which came from `other` (`inheritance.py`); None where that is not
        shown."""
        past = self.one.readings.counts.past(self.one.candidate + 1)
        return inherited(((child, one, other) for child, one, other in self._rows().values()), bool(past.kept_in_half))

    def _rows(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """matrix → kept rows of (child, one, other), as many as all three have."""
        ours, theirs = self.one.units(), self.other.units()
        found = {}
        for name in ours.keys() & theirs.keys():
            (child, one), other = ours[name], theirs[name][1]
            rows = min(len(one), len(other))
            found[name] = (child[:rows], one[:rows], other[:rows])
        return dict(sorted(found.items()))
