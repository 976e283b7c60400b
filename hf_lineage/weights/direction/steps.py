"""All estimators of one pair: what is counted while the weights are read, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..history import NO_COUNTS, Past, ValueCounts, count_values, past_of
from ..moments import Moments
from .barrier import barrier_position
from .decay import decay_position
from .growth import count_growth, growth_position
from .lattice_memory import NO_MEMORY, Memory, count_memory, memory_position
from .lattices import LATTICES, lattice_of
from .merged_lora import MAX_MATRICES, Explained, explain_matrix, lora_position, says_nothing, shows_rank
from .order import Order, join
from .position import Position
from .rounding_edges import NO_ROUNDINGS, Roundings, count_roundings, edge_position, kind_of

STEP_ENTRIES = 1 << 23  # weights of a model, about, of which steps are counted once its rows are in memory
Units = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # matrix → kept rows of (child, candidate)


@dataclass(frozen=True, slots=True)
class Steps:
    """What is counted of one tensor of a pair; additive over slices and processes."""

    roundings: Roundings = NO_ROUNDINGS
    memory: Memory = NO_MEMORY

    def __add__(self, other: Steps) -> Steps:
        return Steps(self.roundings + other.roundings, self.memory + other.memory)


def count_steps(child: torch.Tensor, candidate: torch.Tensor) -> Steps:
    """The counts of one slice: (n,) values of both models, of any float dtype, at the same places. O(n), 3 to 8 ns an
    entry."""
    child, candidate = (t.float() if t.element_size() == 1 else t for t in (child, candidate))  # fp8 compares with none
    if torch.equal(child, candidate):
        return Steps(Roundings(entries=child.numel()))
    ours, theirs = lattice_of(child), lattice_of(candidate)
    if ours is not None and ours is theirs:
        return Steps(count_roundings(child, candidate))
    if ours is None and theirs is None:
        return Steps(Roundings(entries=child.numel()))
    return Steps(Roundings(entries=child.numel()), count_memory(child, candidate))


@dataclass(frozen=True, slots=True)
class PassCounts:
    """What one pass over a child and its candidates counted of their matrices.

    steps: (kind of tensor, candidate) → counts of the pair. values: model → its values, the child 0, candidate i number
    i + 1. Additive over disjoint slices.
    """

    steps: dict[tuple[str, int], Steps] = field(default_factory=dict)
    values: dict[int, ValueCounts] = field(default_factory=dict)
    _pasts: dict[int, Past] = field(default_factory=dict, init=False, repr=False, compare=False)

    def past(self, model: int) -> Past:
        """What the values of one model tell alone; worked out once, when all are counted."""
        if model not in self._pasts:
            self._pasts[model] = past_of(self.values.get(model, NO_COUNTS))
        return self._pasts[model]

    def add(self, other: PassCounts) -> None:
        """Take up what was counted of other slices."""
        for key, steps in other.steps.items():
            self.steps[key] = self.steps[key] + steps if key in self.steps else steps
        for model, values in other.values.items():
            self.values[model] = self.values[model] + values if model in self.values else values

    def of(self, candidates: Sequence[int]) -> PassCounts:
        """The same of some candidates only, numbered anew in the order given."""
        number = {candidate: i for i, candidate in enumerate(candidates)}
        steps = {(kind, number[i]): steps for (kind, i), steps in self.steps.items() if i in number}
        values = {number[m - 1] + 1: values for m, values in self.values.items() if m - 1 in number}
        return PassCounts(steps, values | {m: values for m, values in self.values.items() if m == 0})


def count_slice(name: str, child: torch.Tensor, candidates: Mapping[int, torch.Tensor]) -> PassCounts:
    """The counts of one slice of a matrix: (n,) values of the child, and the first ones of them of each candidate."""
    steps = {(kind_of(name), i): count_steps(child[: len(values)], values) for i, values in candidates.items()}
    return PassCounts(steps, {0: count_values(child)} | {i + 1: count_values(v) for i, v in candidates.items()})


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What was read of a child and a candidate, by the child's names of the matrices.

    steps: counts of each, or of each kind. moments: row 0 the child, row 1 the candidate. units: rows that were kept in
    memory. child, candidate: what the values of each model tell alone.
    """

    steps: Mapping[str, Steps]
    moments: Mapping[str, Moments]
    units: Units
    child: Past
    candidate: Past


def pair_positions(counts: PairCounts, low_rank: bool = True) -> list[Position]:
    """The position by every estimator, the silent ones included. low_rank: whether a merged LoRA is looked for, which
    takes most of the time."""
    roundings = {name: steps.roundings for name, steps in counts.steps.items()}
    memory = sum((steps.memory for steps in counts.steps.values()), NO_MEMORY)
    changed = {name: both for name, both in counts.units.items() if not torch.equal(*both)}
    child, candidate = counts.child, counts.candidate
    found = [
        _edges(roundings, child, candidate),
        _barrier(roundings, child, candidate),
        memory_position(memory),
        _growth(changed, child, candidate),
        decay_position(counts.moments.values()),
    ]
    return (
        [*found, lora_position(_explained(changed) if shows_rank([*changed.values()]) else ())] if low_rank else found
    )


def pair_order(counts: PairCounts, moved: float) -> Order:
    """Who came first. moved: ‖child − candidate‖, in the unit that the order's radius is wanted in."""
    return join(pair_positions(counts), moved, counts.candidate.marked, counts.child.marked)


def step_rows(rows: Mapping[str, torch.Tensor], past: Past, among: int) -> dict[str, torch.Tensor]:
    """Rows in which steps are counted: evenly spaced, about STEP_ENTRIES of `among` entries in all; in the format on
    whose lattice they lie, where that holds them: what is counted is counted there in half the time."""
    every = max(1, -(-among // STEP_ENTRIES))
    kind = LATTICES[past.lattice].dtype if past.lattice else torch.float32
    found = {}
    for name, matrix in rows.items():
        kept = matrix[::every]
        cast = kept.to(kind)
        found[name] = cast if torch.equal(cast.float(), kept) else kept
    return found


def order_of_rows(rows: Units, child: Past, candidate: Past) -> Order:
    """The same of rows in memory, matrix → (child's, candidate's), (n, width) each; no merged LoRA is looked for, and
    the radius is in units of the distance."""
    steps: dict[str, Steps] = {}
    for name, (ours, theirs) in rows.items():
        kind, found = kind_of(name), count_steps(ours.flatten(), theirs.flatten())
        steps[kind] = steps[kind] + found if kind in steps else found
    positions = pair_positions(PairCounts(steps, {}, rows, child, candidate), low_rank=False)
    return join(positions, 1.0, candidate.marked, child.marked)


def _edges(roundings: Mapping[str, Roundings], child: Past, candidate: Past) -> Position:
    """Not of weights that were kept in half precision: their steps know where in its cell a weight lies."""
    if child.kept_in_half or candidate.kept_in_half:
        entries = sum(r.entries for r in roundings.values())
        return Position.silent("rounding_edges", "the weights of one of the two were kept in half precision", entries)
    return edge_position(roundings)


def _barrier(roundings: Mapping[str, Roundings], child: Past, candidate: Past) -> Position:
    whole = sum(roundings.values(), NO_ROUNDINGS)
    return barrier_position(whole, candidate.lattice or "", child.held_back, candidate.held_back)


def _growth(changed: Units, child: Past, candidate: Past) -> Position:
    """Of models on one lattice roundings tell more, and at less cost."""
    if child.lattice and child.lattice == candidate.lattice:
        return Position.silent("growth", "not asked of two models on one lattice, where roundings tell more")
    return growth_position([count_growth(*both) for both in changed.values()])


def _explained(changed: Units) -> Iterable[Explained]:
    """A few matrices, up to the first that is no merged LoRA's."""
    found: list[Explained] = []
    for child, candidate in changed.values():
        explained = explain_matrix(child, candidate)
        if explained is not None:
            found.append(explained)
        if len(found) == MAX_MATRICES or (explained and says_nothing(explained)):
            break
    return found
