"""Detecting permuted or rescaled hidden units of one candidate that the permutation test calls unrelated.

The Mantel test and the matching are in `unit_matching.py`; here they are asked of what one pass has read, and the
candidate is put into the child's order. See docs/methods.md, *Hidden permutations*.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..architecture.align import Alignment
from ..architecture.describe import Architecture, Shaped
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.overlay import Overlay
from .permutation_test import PermutationTest
from .reader import Readings
from .unit_matching import RELATED_SCORE, UNRELATED_PAIRS, UnitMatch, mantel_test, match_units

MAX_MANTEL_P = 0.01  # p-value of the Mantel test up to which a matching is worth its time
MAX_MATCHING = 1 << 33  # sum of h³ over the orders of h units that are matched beside a p-value: two of 1,600
ALIKE = 0.5  # correlation above which a tensor stands in the child's order


@dataclass(frozen=True, slots=True)
class HiddenPermutation:
    """What was found about one candidate: the Mantel test, where there is a residual stream, and the matching of
    units."""

    mantel: PermutationTest | None
    match: UnitMatch | None

    @property
    def test(self) -> PermutationTest | None:
        """The test that found it: Mantel's; where there is no residual stream, the matching among unrelated models.

        Of the latter p = (1 + 0)/(n + 1), since none of the n = UNRELATED_PAIRS pairs of unrelated models that were
        matched reached RELATED_SCORE (Phipson & Smyth 2010).
        """
        if self.mantel is not None or not self.matched or self.match is None:
            return self.mantel
        p = 1 / (UNRELATED_PAIRS + 1)
        layers = tuple((order, units, math.nan) for order, (_, units) in self.match.agreement.items())
        return PermutationTest(math.nan, math.log10(p), "monte_carlo", p, UNRELATED_PAIRS, 0.0, layers)

    @property
    def matched(self) -> bool:
        """Whether the two matchings agree far more than those of unrelated models do."""
        return self.match is not None and (self.match.score or 0.0) >= RELATED_SCORE

    def to_dict(self) -> dict[str, Any]:
        """What the answer shows as `facts["disguise"]`."""
        agreement = self.match.agreement if self.match else {}
        return {
            "score": self.match.score if self.match else None,
            "units_agreeing": sum(found for found, _ in agreement.values()),
            "units": sum(units for _, units in agreement.values()),
        }


def mantel_applies(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
) -> bool:  # fmt: skip
    """Whether the Mantel test has anything to test: matrices read in whole of both that read a residual stream."""
    names = [name for names in architecture.residual.values() for name in names]
    return any(candidate in readings.candidates_with.get(n, ()) and _whole(readings, child, n) for n in names)


def detect_permutation(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int, seed: int
) -> HiddenPermutation:
    """Test and match one candidate. Where there is a residual stream, units are matched only if p ≤ MAX_MANTEL_P."""
    ours, theirs = _matrices(readings, child, candidate)
    mantel = mantel_test(ours, theirs, architecture.residual, seed)
    if mantel is not None and mantel.p > MAX_MANTEL_P:
        return HiddenPermutation(mantel, None)
    return HiddenPermutation(mantel, match_units(ours, theirs, *_orders(architecture)))


def agreement_of(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
) -> dict[str, Any] | None:
    """How many hidden units of a related candidate two matchings pair alike (`match_units`); None: none to match.

    Evidence beside p that no arrangement of units changes: p asks whether units in the same places are alike, and
    somebody may have put unrelated units where they look so. Of the first layers, as far as `MAX_MATCHING` goes.
    """
    ours, theirs = _matrices(readings, child, candidate)
    orders, reads = _orders(architecture)
    chosen, cost = [], 0
    for order, rows in orders.items():
        cost += max((child[name].shape[0] for name in rows if name in ours), default=0) ** 3
        if cost > MAX_MATCHING:
            break
        chosen.append(order)
    match = match_units(
        ours, theirs, {order: orders[order] for order in chosen}, {o: reads[o] for o in chosen if o in reads}
    )
    return HiddenPermutation(None, match).to_dict() if match.agreement else None


def _matrices(
    readings: Readings, child: Mapping[str, Shaped], candidate: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The matrices of child and candidate that were read in whole of both."""
    names = [name for name, having in readings.candidates_with.items() if candidate in having]
    names = [name for name in names if _whole(readings, child, name) and readings.usable(name, candidate)]
    ours, theirs = (
        {name: readings.units.matrix(model, name).reshape(child[name].shape) for name in names}
        for model in (0, candidate + 1)
    )
    return ours, theirs


def _orders(architecture: Architecture) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]]]:
    """The orders whose units may stand anywhere, and what reads them: no heads, for a new head agrees with nothing.

    Where units can be exchanged within groups only, any other matching is none of the same network.
    """
    orders = {order: rows for order, rows in architecture.orders.items() if order not in architecture.groups}
    reads = {order: [n for n in names if n not in architecture.heads] for order, names in architecture.reads.items()}
    return orders, reads


def alike(readings: Readings, candidate: int) -> set[str]:
    """Tensors that line up as they stand: what is correlated is in no other order."""
    found = readings.pairs_of(candidate)
    return {name for name, moments in found.items() if float(moments.correlation()[1]) > ALIKE}


def undo_permutation(
    candidate: Checkpoint, alignment: Alignment, architecture: Architecture, found: UnitMatch,
    alike: Collection[str] = (),
) -> tuple[Overlay, Alignment]:  # fmt: skip
    """The candidate with its hidden units in the child's order and scale, in memory, and its alignment.

    alike: tensors that stand in the child's order as they are. Others that the matching does not put in order are taken
    out of the alignment: attention heads may be permuted too.
    """
    tensors: dict[str, torch.Tensor] = {}
    matrices = {name for name, _ in found.axes} & alignment.pairs.keys()
    for name in matrices:
        tensors[alignment.pairs[name]] = found.reorder(name, candidate.whole([alignment.pairs[name]])[0].float())
    vectors = set()
    for order, names in architecture.vectors.items():
        readers = [name for name in architecture.reads.get(order, ()) if (name, 1) in found.factors]
        if order in found.units and readers:
            index = torch.from_numpy(found.units[order])
            factor = 1 / torch.from_numpy(found.factors[readers[0], 1]).float() if found.rescaled else torch.ones(())
            for name in alignment.pairs.keys() & set(names):
                tensors[alignment.pairs[name]] = candidate.whole([alignment.pairs[name]])[0].float()[index] * factor
                vectors.add(name)
    outside = {name for name in alignment.pairs if architecture.blocks[name] in ("stem", "head")}
    in_order = matrices | vectors | {*alike} | outside
    unordered = {name: "may be in another order" for name in alignment.pairs if name not in in_order}
    pairs = {name: partner for name, partner in alignment.pairs.items() if name in in_order}
    return Overlay(candidate, tensors), replace(alignment, pairs=pairs, unmatched=alignment.unmatched | unordered)


def _whole(readings: Readings, child: Mapping[str, Shaped], name: str) -> bool:
    return name in readings.units and len(readings.units.rows[name]) == child[name].shape[0]
