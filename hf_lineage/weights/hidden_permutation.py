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
from ..errors import LineageError
from .permutation_test import PermutationTest
from .reader import Readings
from .stream_alignment import Turn, read_inputs, turn_between
from .unit_matching import RELATED_SCORE, UNRELATED_PAIRS, UnitMatch, mantel_test, match_units

MAX_MANTEL_P = 0.01  # p-value of the Mantel test up to which a matching is worth its time
MAX_MATCHING = 1 << 33  # sum of h³ over the orders of h units that are matched beside a p-value: two of 1,600
# Pairs of unrelated models (Llama-style and ViT; same data, recipe and size) whose streams were turned and whose units
# matched: none passed 0.027 (docs/methods.md, *Rotated residual streams*)
TURNED_PAIRS = 7_227
TURN_ROWS = 4  # rows of a token table by which a stream is turned, for each of its coordinates
COPIED = 1 / 3  # of a row's length, by which a copied one may differ; rows of unrelated models differ by more than one
MAX_COPIED_MATRICES = 5  # that are named
ALIKE = 0.5  # correlation above which a tensor stands in the child's order


@dataclass(frozen=True, slots=True)
class HiddenPermutation:
    """What was found about one candidate: the Mantel test, where there is a residual stream, and the matching of units;
    of a rotated stream how it lies in the child's (`stream_alignment.py`)."""

    mantel: PermutationTest | None
    match: UnitMatch | None
    turn: Turn | None = None

    @property
    def test(self) -> PermutationTest | None:
        """The test that found it: Mantel's; where there is no residual stream, the matching among unrelated models.

        Of the latter p = (1 + 0)/(n + 1), since none of the n = UNRELATED_PAIRS pairs of unrelated models that were
        matched (TURNED_PAIRS, where the stream was turned first) reached RELATED_SCORE (Phipson & Smyth 2010).
        """
        if self.mantel is not None or not self.matched or self.match is None:
            return self.mantel
        pairs = TURNED_PAIRS if self.turn else UNRELATED_PAIRS
        p = 1 / (pairs + 1)
        layers = tuple((order, units, math.nan) for order, (_, units) in self.match.agreement.items())
        return PermutationTest(math.nan, math.log10(p), "monte_carlo", p, pairs, 0.0, layers)

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
            **({"rotated": True} if self.turn else {}),
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


def detect_rotation(
    readings: Readings, architecture: Architecture, child: Checkpoint, aligned: tuple[Checkpoint, Alignment], i: int
) -> HiddenPermutation | None:
    """Turn candidate i's residual stream into the child's by the inputs, and match units as `match_units` does.

    None where the inputs do not look rotated, where fewer rows of their tables are known than the stream is wide, or
    where units do not agree. Asked where nothing else shows a relation: the SVD costs O(width³).
    """
    model, partners = aligned[0], aligned[1].pairs
    try:
        inputs = read_inputs(child, model, architecture, partners)
        if inputs is None or not inputs.look_rotated:
            return None
        inputs = read_inputs(child, model, architecture, partners, rows=TURN_ROWS * inputs.ours.shape[1])
        if inputs is None or len(inputs.ours) < inputs.ours.shape[1]:
            return None
        turn = turn_between(child, model, architecture, partners, inputs)
    except LineageError:  # the candidate is left open (`tasks/compare.py`)
        return None
    ours, theirs = _matrices(readings, child, i)
    ours = {name: turn.folded(name, ours[name]) for name in (turn.readers | turn.writers) & ours.keys()}
    theirs = {name: turn.turned(name, theirs[name]) for name in ours}
    found = HiddenPermutation(None, match_units(ours, theirs, *_orders(architecture)), turn)
    return found if found.matched else None


def agreement_of(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
) -> dict[str, Any] | None:
    """How many hidden units of a related candidate two matchings pair alike (`match_units`); None: none to match.

    Evidence beside p that no arrangement of units changes: p asks whether units in the same places are alike, and
    somebody may have put unrelated units where they look so. Below `RELATED_SCORE` nothing is concluded from p. Of the
    first layers, as far as `MAX_MATCHING` goes.
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


def copied_rows(readings: Readings, architecture: Architecture, candidate: int) -> dict[str, Any]:
    """Which rows of the trunk's matrices are the candidate's, in their places, of those that were kept.

    A row is where it differs by less than `COPIED` of its length. rows, of: so many of so many; matrices: name → the
    same, of those with any, the fullest first. weight: slope of the child's matrices on the candidate's,
    Σ⟨c, p⟩/Σ⟨p, p⟩ of centred rows: what share of the candidate an addition of it would have had.
    """
    found: dict[str, tuple[int, int]] = {}
    total, products, squares = 0, 0.0, 0.0
    for name in architecture.trunk:
        if name not in readings.units or candidate not in readings.candidates_with.get(name, ()):
            continue
        ours, theirs = (rows.flatten(1) for rows in readings.unit_pair(name, candidate))
        if not len(ours) or ours.shape[1] < 2 or not readings.usable(name, candidate):
            continue
        length = theirs.norm(dim=1)
        copied = int(((ours - theirs).norm(dim=1) < COPIED * length).sum())
        total += len(ours)
        if copied:
            found[name] = copied, len(ours)
        centred = theirs - theirs.mean(1, keepdim=True)
        products += float((ours * centred).sum())
        squares += float(centred.square().sum())
    fullest = sorted(found, key=lambda name: -found[name][0] / found[name][1])
    return {
        "rows": sum(rows for rows, _ in found.values()), "of": total,
        "matrices": {name: list(found[name]) for name in fullest[:MAX_COPIED_MATRICES]},
        "weight": products / squares if squares else 0.0,
    }  # fmt: skip


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
    alike: Collection[str] = (), turn: Turn | None = None,
) -> tuple[Overlay, Alignment]:  # fmt: skip
    """The candidate with its hidden units in the child's order and scale, in memory, and its alignment.

    turn: of a rotated residual stream: the matrices are put into the child's coordinates, and nothing else is compared.

    alike: tensors that stand in the child's order as they are. Others that the matching does not put in order are taken
    out of the alignment: attention heads may be permuted too.
    """
    tensors: dict[str, torch.Tensor] = {}
    matrices = {name for name, _ in found.axes} & alignment.pairs.keys()
    for name in matrices:
        matrix = candidate.whole([alignment.pairs[name]])[0].float()
        if turn:
            matrix = turn.unfolded(name, found.reorder(name, turn.turned(name, matrix)))
        tensors[alignment.pairs[name]] = matrix if turn else found.reorder(name, matrix)
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
    in_order = matrices | (set() if turn else vectors | {*alike} | outside)
    unordered = {name: "may be in another order" for name in alignment.pairs if name not in in_order}
    pairs = {name: partner for name, partner in alignment.pairs.items() if name in in_order}
    return Overlay(candidate, tensors), replace(alignment, pairs=pairs, unmatched=alignment.unmatched | unordered)


def _whole(readings: Readings, child: Mapping[str, Shaped], name: str) -> bool:
    return name in readings.units and len(readings.units.rows[name]) == child[name].shape[0]
