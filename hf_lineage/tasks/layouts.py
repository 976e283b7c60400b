"""A candidate whose names differ from the child's brought into the child's layout, where order and shapes tell how."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import chain

from ..architecture.align import Alignment, align, guessed
from ..architecture.correspondence import Correspondence, correspond, with_biases, with_choice
from ..architecture.describe import MIN_COVERAGE
from ..checkpoints.relaid import Relaid
from ..checkpoints.view import View
from ..errors import LineageError, Note
from ..weights.kind_matching import choose, elsewhere
from ..weights.sampling import MIN_UNITS


def lined_up(child: View, candidate: View, by_names: Alignment) -> tuple[View, Alignment]:
    """The candidate and how it lines up with the child: by names, or in the child's layout where that says more.

    Little of the weights is read, and only where kinds of one shape have to be told apart.
    """
    tested = {name for rows in child.architecture.orders.values() for name in rows}
    if not tested or (by_names.comparable and share_units(child, by_names)):
        return candidate, by_names
    found = correspond(child, candidate, child.architecture, candidate.architecture)
    if found is None or max(_shares(child, candidate, found)) < MIN_COVERAGE:
        return candidate, by_names
    try:
        chosen = choose(child, candidate, found.choices)
    except LineageError:  # whose it is will be said when all is read
        chosen = [[*zip(choice.ours, choice.theirs, strict=False)] for choice in found.choices]
    whole = with_biases(with_choice(found, child, chain(*chosen)), child, candidate)
    relaid = Relaid(candidate, whole, child)
    by_structure = any(name in whole.guessed for name in tested)
    open_ = [choice for choice in found.choices if any(tested.intersection(kind) for kind in choice.ours)]
    ways = math.prod(choice.alternatives for choice in open_) if by_structure else 0
    placed = guessed(align(child, relaid, child.architecture), child, child.architecture, whole.copies, ways)
    if ways:
        placed = _without(placed, elsewhere(child, relaid, *_matrices(child, placed, whole, tested)))
    better = (share_units(child, placed), placed.coverage) > (share_units(child, by_names), by_names.coverage)
    return (relaid, placed) if better else (candidate, by_names)


def _matrices(
    child: View, placed: Alignment, found: Correspondence, tested: Collection[str]
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The matrices that are tested, and the others of which names do not tell that they belong together."""
    names = [name for name in placed.pairs if len(child[name].shape) > 1]
    others = [name for name in names if name in found.guessed and name not in tested]
    return [name for name in names if name in tested], others


def _without(placed: Alignment, names: Collection[str]) -> Alignment:
    """The alignment without some tensors, which are named; that they are in it counts for the coverage."""
    why = dict.fromkeys(names, "its rows stand in another order, or it holds other weights")
    pairs = {name: partner for name, partner in placed.pairs.items() if name not in why}
    return replace(placed, pairs=pairs, unmatched=placed.unmatched | why)


def share_units(child: View, alignment: Alignment) -> bool:
    """Whether a layer's hidden units, enough of them to be tested, line up where little of the trunk does."""
    return any(
        all(name in alignment.pairs and child[name].shape[0] >= MIN_UNITS for name in names)
        for names in child.architecture.orders.values()
        if names
    )


def guess_notes(alignment: Alignment) -> tuple[Note, ...]:
    """What a candidate's reasons say of an alignment that names do not tell."""
    if not alignment.alternatives:
        return ()
    text = "Its names differ: what belongs together was told by order and shapes"
    ways = f"; of {alignment.alternatives} ways the weights chose one, which the p-value is multiplied by"
    told = f"{text}{ways if alignment.alternatives > 1 else ''}."
    hint = "A copy of it in the child's layout, if there is one, needs no guess."
    return (Note("aligned_by_structure", told, hint, text=f"{told} {hint}"),)


def _shares(child: View, candidate: View, found: Correspondence) -> tuple[float, float]:
    """Shares of the trunks of child and candidate that are placed, or will be when what is left open is chosen."""
    mine = {*found.placed, *found.copies, *(n for choice in found.choices for kind in choice.ours for n in kind)}
    its = {piece.name for placement in found.placed.values() for piece in placement.pieces}
    its |= {name for choice in found.choices for kind in choice.theirs for name in kind}

    def share(model: View, names: set[str]) -> float:
        total = sum(model[name].count for name in model.architecture.trunk)
        return sum(model[name].count for name in model.architecture.trunk if name in names) / total if total else 0.0

    return share(child, mine), share(candidate, its)
