"""All estimators of one pair: what is counted while the weights are read, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..history import Past, ValueCounts, past_of
from ..moments import Moments
from .barrier import barrier_position
from .decay import decay_position
from .growth import count_growth, growth_position
from .lattice_memory import NO_MEMORY, Memory, count_memory, memory_position
from .lattices import lattice_of
from .merged_lora import MAX_MATRICES, Explained, explain_matrix, lora_position, says_nothing
from .order import Order, join
from .position import Position
from .rounding_edges import NO_ROUNDINGS, Roundings, count_roundings, edge_position

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
    if torch.equal(child, candidate):
        return Steps(Roundings(entries=child.numel()))
    ours, theirs = lattice_of(child), lattice_of(candidate)
    if ours is not None and ours is theirs:
        return Steps(count_roundings(child, candidate))
    if ours is None and theirs is None:
        return Steps(Roundings(entries=child.numel()))
    return Steps(Roundings(entries=child.numel()), count_memory(child, candidate))


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What was read of a child and a candidate, by the child's names of the matrices.

    steps: counts of each. moments: row 0 the child, row 1 the candidate. units: rows that were kept in memory. child,
    candidate: the values of each model alone.
    """

    steps: Mapping[str, Steps]
    moments: Mapping[str, Moments]
    units: Units
    child: ValueCounts
    candidate: ValueCounts


def pair_positions(counts: PairCounts) -> list[Position]:
    """The position by every estimator, the silent ones included."""
    roundings = {name: steps.roundings for name, steps in counts.steps.items()}
    memory = sum((steps.memory for steps in counts.steps.values()), NO_MEMORY)
    changed = {name: both for name, both in counts.units.items() if not torch.equal(*both)}
    child, candidate = past_of(counts.child), past_of(counts.candidate)
    return [
        _edges(roundings, child, candidate),
        _barrier(roundings, child, candidate),
        memory_position(memory),
        growth_position([count_growth(*both) for both in changed.values()]),
        decay_position(counts.moments.values()),
        lora_position(_explained(changed)),
    ]


def pair_order(counts: PairCounts, moved: float) -> Order:
    """Who came first. moved: ‖child − candidate‖, in the unit that the order's radius is wanted in."""
    return join(pair_positions(counts), moved, past_of(counts.candidate).marked)


def _edges(roundings: Mapping[str, Roundings], child: Past, candidate: Past) -> Position:
    """Not of weights that were kept in half precision: their steps know where in its cell a weight lies."""
    if child.kept_in_half or candidate.kept_in_half:
        entries = sum(r.entries for r in roundings.values())
        return Position.silent("rounding_edges", "the weights of one of the two were kept in half precision", entries)
    return edge_position(roundings)


def _barrier(roundings: Mapping[str, Roundings], child: Past, candidate: Past) -> Position:
    whole = sum(roundings.values(), NO_ROUNDINGS)
    return barrier_position(whole, candidate.lattice or "", child.held_back, candidate.held_back)


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
