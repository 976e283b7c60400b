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
from ..architecture.describe import Architecture, Shaped, natural_key
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.overlay import Overlay
from ..errors import LineageError
from .channel_order import Channels, channel_streams, match_channels
from .permutation_test import PermutationTest
from .reader import Readings
from .stream_alignment import Turn, read_inputs, turn_between
from .unit_matching import RELATED_SCORE, UNRELATED_PAIRS, UnitMatch, mantel_test, match_units

MAX_MANTEL_P = 0.01  # p-value of the Mantel test up to which a matching is worth its time
MAX_LAYER = 4096  # hidden units of a layer whose whole matrices are read for a matching
MAX_LAYERS = 2  # so many layers, the first ones, are then looked at
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
    turn: Turn | Channels | None = None

    @property
    def test(self) -> PermutationTest | None:
        """The test that found it: Mantel's; where there is no residual stream, the matching among unrelated models.

        Of the latter p = (1 + 0)/(n + 1), since none of the n = UNRELATED_PAIRS pairs of unrelated models that were
        matched (`turn.pairs`, where the stream was put in order first) reached RELATED_SCORE (Phipson & Smyth 2010).
        """
        if self.mantel is not None or not self.matched or self.match is None:
            return self.mantel
        pairs = self.turn.pairs if self.turn else UNRELATED_PAIRS
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
            **({"channels" if isinstance(self.turn, Channels) else "rotated": True} if self.turn else {}),
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
    """Test and match one candidate as it stands, by the matrices that were read in whole."""
    return _detect_in_place(*whole_matrices(readings, child, candidate), architecture, seed)


def detect_hidden(
    readings: Readings, architecture: Architecture, aligned: tuple[Checkpoint, Checkpoint, Alignment], i: int,
    seed: int, most: int,
) -> HiddenPermutation:  # fmt: skip
    """Test and match candidate i, as it stands and with its residual stream in the child's coordinates.

    aligned: the child, the candidate, and how they line up. Of matrices that were read in whole; where no layer's units
    were kept, of the first layers, which are read for it if they take at most `most` bytes.
    """
    child, model, alignment = aligned
    ours, theirs = whole_matrices(readings, child, i)
    if lacks_layers(readings, architecture, child, i):
        ours, theirs = read_layers(child, model, alignment.pairs, architecture, most)
    return _detect(ours, theirs, architecture, aligned, seed)


def detect_in_layers(
    architecture: Architecture, aligned: tuple[Checkpoint, Checkpoint, Alignment], seed: int, most: int
) -> HiddenPermutation | None:  # fmt: skip
    """`detect_hidden` where only a sample was read: of the first layers, if they take at most `most` bytes.

    None where that is not enough for any layer.
    """
    child, model, alignment = aligned
    ours, theirs = read_layers(child, model, alignment.pairs, architecture, most)
    return _detect(ours, theirs, architecture, aligned, seed) if ours else None


def _detect(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], architecture: Architecture,
    aligned: tuple[Checkpoint, Checkpoint, Alignment], seed: int,
) -> HiddenPermutation:  # fmt: skip
    found = _detect_in_place(ours, theirs, architecture, seed)
    return found if found.matched else _detect_rotation(ours, theirs, architecture, aligned) or found


def _detect_in_place(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], architecture: Architecture, seed: int
) -> HiddenPermutation:
    """Where there is a residual stream, units are matched only if the Mantel test has p ≤ MAX_MANTEL_P."""
    mantel = mantel_test(ours, theirs, architecture.residual, seed)
    if mantel is not None and mantel.p > MAX_MANTEL_P:
        return HiddenPermutation(mantel, None)
    return HiddenPermutation(mantel, match_units(ours, theirs, *free_orders(architecture)))


def _detect_rotation(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], architecture: Architecture,
    aligned: tuple[Checkpoint, Checkpoint, Alignment],
) -> HiddenPermutation | None:  # fmt: skip
    """Put the candidate's residual stream into the child's coordinates, and match units as `match_units` does.

    A transformer's by the inputs, where they look rotated: not where fewer rows of their tables are known than the
    stream is wide. A ResNet's from the stem on. None where units do not agree. Asked where nothing else shows a
    relation: the SVD costs O(width³).
    """
    child, model, alignment = aligned
    turn: Turn | Channels | None = None
    if (streams := channel_streams(child, architecture)) and streams.names & ours.keys():
        turn = match_channels(ours, theirs, streams)
    elif streams is None:
        turn = _turn_of(child, model, architecture, alignment.pairs)
    if turn is None:
        return None
    names = (turn.readers | turn.writers) & ours.keys()
    ours, theirs = {n: turn.folded(n, ours[n]) for n in names}, {n: turn.turned(n, theirs[n]) for n in names}
    found = HiddenPermutation(None, match_units(ours, theirs, *free_orders(architecture)), turn)
    return found if found.matched else None


def _turn_of(
    child: Checkpoint, model: Checkpoint, architecture: Architecture, partners: Mapping[str, str]
) -> Turn | None:  # fmt: skip
    """How the candidate's stream lies in the child's, where what reads the input looks rotated."""
    try:
        inputs = read_inputs(child, model, architecture, partners)
        if inputs is None or not inputs.look_rotated:
            return None
        inputs = read_inputs(child, model, architecture, partners, rows=TURN_ROWS * inputs.ours.shape[1])
        if inputs is None or len(inputs.ours) < inputs.ours.shape[1]:
            return None
        return turn_between(child, model, architecture, partners, inputs)
    except LineageError:  # the candidate is left open (`tasks/compare.py`)
        return None


def read_layers(
    child: Checkpoint, model: Checkpoint, partners: Mapping[str, str], architecture: Architecture, most: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:  # fmt: skip
    """The whole matrices that write and read the units of the first layers, of both, and what makes a ResNet's streams.

    Layers of at most MAX_LAYER units; together at most `most` bytes as stored, as many as MAX_LAYERS of one path: the
    layer before is needed where its units are inputs. Empty where not one layer fits.
    """
    orders, reads = free_orders(architecture)
    streams = channel_streams(child, architecture)
    chosen: dict[str, None] = {}
    layers = 0
    for order, rows in sorted(orders.items(), key=lambda item: natural_key(item[0])):
        names = [n for n in (*rows, *reads.get(order, ())) if n in partners]
        makers = streams.names & partners.keys() if streams and not chosen else ()
        fresh = [name for name in dict.fromkeys((*makers, *names)) if name not in chosen]
        if any(child[name].shape != model[partners[name]].shape for name in fresh) or not reads.get(order):
            continue
        cost = sum(child[name].nbytes + model[partners[name]].nbytes for name in (*chosen, *fresh))
        if layers >= MAX_LAYERS or child[rows[0]].shape[0] > MAX_LAYER or cost > most:
            break
        chosen |= dict.fromkeys(fresh)
        layers += 1
    ours = {name: child.whole([name])[0].float() for name in chosen}
    theirs = {name: model.whole([partners[name]])[0].float() for name in chosen}
    return ours, theirs


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


def lacks_layers(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
) -> bool:  # fmt: skip
    """Whether no layer can be matched by what was kept, and some could be by what was not."""
    ours = whole_matrices(readings, child, candidate)[0]
    orders, reads = free_orders(architecture)
    layers = [({*rows}, {*reads.get(order, ())}) for order, rows in orders.items() if reads.get(order)]
    known = any(rows & ours.keys() and readers & ours.keys() for rows, readers in layers)
    return not known and any(not _whole(readings, child, name) for both in layers for names in both for name in names)


def whole_matrices(
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


def free_orders(architecture: Architecture) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]]]:
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
    alike: Collection[str] = (), turn: Turn | Channels | None = None,
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
