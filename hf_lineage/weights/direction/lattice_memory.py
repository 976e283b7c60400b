"""Who came first, of a model on a lattice and one off it: the memory of a lattice.

A model in fp32 that started from a bf16 or fp16 one and moved by less than a spacing still lies near that lattice:
within 5 % of a spacing are more than 10 % of its weights, and rounding them gives the first model's very numbers.
The remembered numbers are those of its origin o, so that a lattice model p is compared with o itself:

    λ = 1 − 2·‖o − p‖²/‖c − p‖²,

‖o − p‖² over the weights that remember, less what chance puts there. A light fine-tune p of o, which roundings take for
the origin (`rounding_edges.py`), is so told from it. See docs/methods.md, *Memory of a lattice*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from .lattices import LATTICES, lattice_of
from .position import Position

NEAR, FAR = 0.05, 0.35  # of a spacing: within NEAR are a tenth, beyond FAR three tenths of what has no memory
CHANCE = NEAR / (0.5 - FAR)  # of those within NEAR to those beyond FAR
MIN_Z = 6.0  # of the remembering weights of one binade
LEAST_REMEMBERED = 0.01  # share of a binade's weights
MIN_COUNT = 500  # weights of a binade
STRIDE = 13  # no width of a matrix is a multiple of it
METHOD = "lattice_memory"
# Columns of a table: weights near a number of the lattice that is the other model's, that is not; the same of those far
# from one; Σ (that number − other model's)² and its square, near and far; all weights; Σ (child − candidate)²
SAME_NEAR, OTHER_NEAR, SAME_FAR, OTHER_FAR, SQUARE_NEAR, SQUARE_FAR, FOURTH, COUNT, STEP = range(9)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What the one of two models that lies off a lattice remembers of numbers on it.

    tables: (lattice, whether the candidate is the one on it) → (binades, 9) float64, by the binade of the model off the
    lattice; columns as above. Additive over disjoint entries.
    """

    tables: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)
    entries: int = 0

    def __add__(self, other: Memory) -> Memory:
        tables = dict(self.tables)
        for key, table in other.tables.items():
            tables[key] = tables[key] + table if key in tables else table
        return Memory(tables, self.entries + other.entries)


NO_MEMORY = Memory()


def count_memory(child: torch.Tensor, candidate: torch.Tensor) -> Memory:
    """The table of one slice: (n,) values of both models, any float dtype, at the same places.

    Empty unless just one of the two lies on a lattice. O(n); every STRIDE-th entry is looked at, about 8 ns an entry.
    """
    ours, theirs = lattice_of(child), lattice_of(candidate)
    if (ours is None) == (theirs is None):
        return NO_MEMORY
    lattice = theirs or ours or LATTICES["bf16"]
    off, on = (child, candidate) if theirs else (candidate, child)
    off, on = off[::STRIDE].double(), on[::STRIDE].double()
    rounded = off.to(torch.float32).to(lattice.dtype).double()
    bits = torch.bitwise_and(off.to(lattice.dtype).view(torch.int16).to(torch.int64), 0x7FFF)
    binade = (bits >> lattice.mantissa).clamp(max=lattice.binades.stop - 1)
    spacing = torch.ldexp(torch.ones_like(off), binade - lattice.binades.stop // 2 - lattice.mantissa)
    offset = (off - rounded).abs() / spacing
    same = rounded == on
    square = (rounded - on).square()
    near, far = (offset < NEAR) & (offset > 0), offset > FAR  # what was frozen tells of no step
    columns = [near & same, near & ~same, far & same, far & ~same, near * square, far * square]
    columns += [(near * square).square(), torch.ones_like(off), (off - on).square()]
    table = torch.zeros(lattice.binades.stop, len(columns), dtype=torch.float64)
    table.index_add_(0, binade, torch.stack([column.double() for column in columns], dim=1))
    table[: lattice.binades.start] = 0.0
    return Memory({(lattice.name, theirs is not None): table.numpy()}, off.numel())


def memory_position(memory: Memory) -> Position:
    """λ from what the model off the lattice remembers. Silent where it remembers too little."""
    if not memory.tables:
        return Position.silent(METHOD, "not one of the two alone lies on a lattice", memory.entries)
    key, table = max(memory.tables.items(), key=lambda item: item[1][:, COUNT].sum())
    near, far = table[:, [SAME_NEAR, OTHER_NEAR]].sum(1), table[:, [SAME_FAR, OTHER_FAR]].sum(1)
    excess, error = near - CHANCE * far, np.sqrt(near + CHANCE**2 * far + 1)
    kept = remembering(excess > np.maximum(MIN_Z * error, LEAST_REMEMBERED * table[:, COUNT]), table[:, COUNT])
    name, sign = key[0], 1.0 if key[1] else -1.0
    if not kept.any():
        return Position.silent(METHOD, f"the model off it remembers no {name} numbers", memory.entries)
    sums = table[kept].sum(0)
    remembered, step = float(excess[kept].sum()), float(sums[STEP] / sums[COUNT])
    moved = (sums[SQUARE_NEAR] - CHANCE * sums[SQUARE_FAR]) / remembered / step
    spread = math.sqrt(sums[FOURTH] * (1 + CHANCE)) / remembered / step
    stderr = 2 * math.hypot(spread, 1 / math.sqrt(remembered))
    value = max(-1.0, min(1 - 2 * float(moved), 1.0))
    others = (sums[OTHER_NEAR] - CHANCE * sums[OTHER_FAR]) / remembered
    reason = (
        f"{remembered / sums[COUNT]:.1%} of the weights still lie on {name} numbers beyond chance, "
        f"{max(0.0, min(1 - others, 1.0)):.1%} of them on the other model's"
    )
    return Position(sign * value, stderr, 1.0, METHOD, memory.entries, reason)


def remembering(shown: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The binades that remember a lattice: those that show it, from the coarsest with enough values down to the first
    that does not. A step that is a multiple of a spacing looks like memory, but in finer binades than it hides in."""
    kept = np.zeros(len(shown), dtype=bool)
    for binade in np.flatnonzero(counts >= MIN_COUNT)[::-1]:
        if not shown[binade]:
            break
        kept[binade] = True
    return kept
