"""Who came first, by the roundings at the edges of binades: steps of one and two units across a power of two.

Let V = 2^k be an edge, u the spacing of the lattice below it, 2u above. The numbers that round to V − u, V, V + 2u fill
cells of width u, 1.5u, 2u. A child is round(p + δ), with p on the lattice: from a cell a (its value x_a) to a cell b
come N_p(a)·P(x_a + δ in b), and back from b to a, N_p(b)·P(x_b + δ in a). Seen backwards, with the child as origin, the
two cells change roles. The ratio n(a → b) : n(b → a) of each pair of cells so tells who came first, whatever the step:

    P(a → b | either) = (1 + λ)/2 · q_p + (1 − λ)/2 · q_c,

q_p, q_c the shares expected if the candidate, the child is the origin. λ is the maximum of the binomial likelihood over
all edges; the Pearson χ² per pair of cells is the misfit, by whose root the error is widened. The law of the step, in
units of u, is read off the interior of the binade below, and interpolated in the logarithm of its tails.

Longer steps pull λ to 0 on real models and are not used. Where weights are kept in the low precision while they are
trained the model does not hold, and the misfit shows it (`barrier.py`). See docs/methods.md, *Roundings*.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from .lattices import LATTICES, MAGNITUDE, Lattice, lattice_of
from .position import Position

BESIDE = 2  # cells on either side of an edge that are counted
INTERIOR = range(-28, -12)  # cells below an edge from which the law of the step is read
REACH = 6  # longest step that is told from longer ones
ZONES = 2 * BESIDE + 2  # cells −2 to 2, and the interior
STEPS = 2 * REACH + 1
PAIRS = [(a, a + length) for length in (1, 2) for a in range(-length, 1)]  # cells that a step across an edge joins

MIN_NEAR = 0.2  # share of a slice's steps that must be short enough to be told apart
MIN_CROSSINGS = 40  # of one pair of cells, both ways together
MIN_INTERIOR, MIN_STEPS = 1000, 40  # entries of a binade's interior, and of those that moved by one unit
MAX_LAMBDA = 2.5
UNSURE = 0.3  # standard deviation of a tail between two known points, as a share of their distance in logarithms
MIN_SHARE = 0.02  # nearest to 0 and 1 that an expected share is taken: the law of the step is known no better
GRID = np.linspace(-MAX_LAMBDA, MAX_LAMBDA, 1001)
MAX_MISFIT = 2.0  # of one kind of tensors
KIND_ERROR = 0.1  # of the model, for each kind
MIN_INFORMATION = 0.5  # inverse variance of λ below which a kind says nothing
METHOD = "rounding_edges"


@dataclass(frozen=True, slots=True, eq=False)
class Roundings:
    """Steps between two models on one lattice, counted where they start at an edge or in the interior below it.

    tables: lattice → (2, edges, ZONES, STEPS) int64. [0]: entries by the candidate's cell −2 … 2 beside the edge
    where a binade begins, or the interior below that edge (last zone), and by the step to the child in cells away from
    zero, cut at ±REACH; [1]: the same with the two exchanged. entries: all that were looked at, moved: those of them
    that differ. Additive over disjoint entries; `swapped` is what the two models give in the other order.
    """

    tables: dict[str, np.ndarray] = field(default_factory=dict)
    entries: int = 0
    moved: int = 0

    def __add__(self, other: Roundings) -> Roundings:
        tables = dict(self.tables)
        for name, table in other.tables.items():
            tables[name] = tables[name] + table if name in tables else table
        return Roundings(tables, self.entries + other.entries, self.moved + other.moved)

    def swapped(self) -> Roundings:
        """The same of (candidate, child)."""
        return Roundings({name: table[::-1] for name, table in self.tables.items()}, self.entries, self.moved)


NO_ROUNDINGS = Roundings()


def count_roundings(child: torch.Tensor, candidate: torch.Tensor) -> Roundings:
    """The roundings of one slice: (n,) values of both models, of any float dtype, at the same places. O(n).

    Without a table where the two do not lie on one lattice, or most steps are longer than are told apart. About 5 ns an
    entry on one core.
    """
    if torch.equal(child, candidate):
        return Roundings(entries=child.numel())
    lattice = lattice_of(candidate)
    if lattice is None or lattice is not lattice_of(child):
        return NO_ROUNDINGS
    ours, theirs = lattice.bits(child), lattice.bits(candidate)
    moved = int(np.count_nonzero(ours != theirs))
    forward = _steps(theirs, ours, lattice)
    if forward[:, :, 1:-1].sum() < MIN_NEAR * forward.sum():
        return Roundings({}, len(ours), moved)
    return Roundings({lattice.name: np.stack([forward, _steps(ours, theirs, lattice)])}, len(ours), moved)


def _steps(one: np.ndarray, other: np.ndarray, lattice: Lattice) -> np.ndarray:
    """(edges, ZONES, STEPS): entries by the place of `one` and the step to `other`. one, other: (n,) int16 bits."""
    turn = lattice.cells - 1
    beside = ((one + np.int16(BESIDE)) & turn) <= 2 * BESIDE  # whatever the sign and the binade
    inside = ((one - np.int16(INTERIOR.start)) & turn) < len(INTERIOR)
    chosen = np.flatnonzero(beside | inside)
    one, other = one[chosen], other[chosen]
    start, end = (one & MAGNITUDE).astype(np.int32), (other & MAGNITUDE).astype(np.int32)
    np.negative(end, out=end, where=(one ^ other) < 0)  # through zero is farther than any step that is told apart
    step = np.clip(end - start, -REACH, REACH)
    size = len(lattice.edges) * ZONES * STEPS
    counts = np.bincount(_PLACES[lattice.name][start] * STEPS + (step + REACH), minlength=size + STEPS)
    return counts[:size].reshape(-1, ZONES, STEPS)


def _places(lattice: Lattice) -> np.ndarray:
    """The place, edge·ZONES + zone, of each cell that is counted; the one after the last of others. (32768,) int32."""
    places = np.full(MAGNITUDE + 1, len(lattice.edges) * ZONES, dtype=np.int32)
    for i, binade in enumerate(lattice.edges):
        edge = binade * lattice.cells
        places[edge - BESIDE : edge + BESIDE + 1] = i * ZONES + np.arange(ZONES - 1)
        places[edge + INTERIOR.start : edge + INTERIOR.stop] = i * ZONES + ZONES - 1
    return places


_PLACES = {name: _places(lattice) for name, lattice in LATTICES.items()}


def edge_position(tensors: Mapping[str, Roundings]) -> Position:
    """λ of two models from the roundings of their tensors, by name. Silent where too few weights step across an edge.

    Tensors of one kind, whose names differ in numbers only, have one λ; kinds whose misfit is above MAX_MISFIT are left
    out, and all is silent where these are most. λ is the mean of the kinds', each with KIND_ERROR as its own error; the
    misfit is their scatter (Birge's ratio, squared): a direct pair has one λ in all kinds, while siblings of which one
    has moved in some kinds only, as a LoRA does, have opposite ones.
    """
    every = sum(tensors.values(), NO_ROUNDINGS)
    if not every.tables:
        why = "their steps are too long" if every.moved else "they do not lie on one lattice of half precision"
        return Position.silent(METHOD, why, every.entries)
    kinds: dict[str, Roundings] = {}
    for name, roundings in tensors.items():
        kind = kind_of(name)
        kinds[kind] = kinds.get(kind, NO_ROUNDINGS) + roundings
    found = [(pairs_position(r), r) for r in kinds.values()]
    rest = sum((r for position, r in found if position is None), NO_ROUNDINGS)
    spoken = [p for p in (*(position for position, _ in found), pairs_position(rest)) if p]
    if not spoken:
        why = f"too few of {every.moved:,} steps cross a power of two by one or two units"
        return Position.silent(METHOD, why, every.entries)
    fitting = [p for p in spoken if p.misfit <= MAX_MISFIT]
    if sum(map(_weight, fitting)) < sum(map(_weight, spoken)) / 2:
        misfit = sorted(p.misfit for p in spoken)[len(spoken) // 2]
        why = f"neither order explains the steps across powers of two (misfit {misfit:.1f})"
        return Position.silent(METHOD, why, every.entries)
    weights, values = _columns(fitting)
    mean = float((weights * values).sum() / weights.sum())
    every_weight, every_value = _columns(spoken)  # what does not fit may still contradict
    freedom = max(len(spoken) - 1, 1)
    scatter = float((every_weight * (every_value - mean) ** 2).sum() / freedom) if len(spoken) > 1 else 1.0
    stderr = math.sqrt(max(scatter, 1.0) / weights.sum())
    steps = sum(p.steps for p in fitting)
    reason = f"{steps:,} steps of one or two units across a power of two, of {every.entries:,} weights"
    return Position(mean, stderr, scatter, METHOD, every.entries, reason)


def kind_of(name: str) -> str:
    """The kind of a tensor: its name without numbers.

    >>> kind_of("layers.11.fc1.weight")
    'layers.*.fc*.weight'
    """
    return re.sub(r"\d+", "*", name)


@dataclass(frozen=True, slots=True)
class KindPosition:
    """λ of one kind of tensors, its error (widened by the root of the misfit), χ² per pair of cells, steps counted."""

    value: float
    stderr: float
    misfit: float
    steps: int


def _weight(position: KindPosition) -> float:
    return 1 / (position.stderr**2 + KIND_ERROR**2)


def _columns(positions: Iterable[KindPosition]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and values."""
    found = [*positions]
    return np.array([*map(_weight, found)]), np.array([p.value for p in found])


def pairs_position(roundings: Roundings) -> KindPosition | None:
    """The maximum of the binomial likelihood over all pairs of cells; None where too few weights cross an edge."""
    pairs = [pair for table in roundings.tables.values() for pair in _crossings(table)]
    if not pairs:
        return None
    up, n, here, there, unsure = np.array(pairs).T
    total, up = n / (1 + n * unsure), up / (1 + n * unsure)  # as many as are known so well
    weight = (1 + GRID) / 2
    p = np.clip(here[:, None] * weight + there[:, None] * (1 - weight), MIN_SHARE, 1 - MIN_SHARE)
    likelihood = (up[:, None] * np.log(p) + (total - up)[:, None] * np.log(1 - p)).sum(0)
    best = int(likelihood.argmax())
    q = p[:, best]
    misfit = float(((up - total * q) ** 2 / (total * q * (1 - q))).mean())
    information = float((total * ((here - there) / 2) ** 2 / (q * (1 - q))).sum())
    if not information > MIN_INFORMATION:
        return None
    return KindPosition(float(GRID[best]), math.sqrt(max(misfit, 1.0) / information), misfit, int(n.sum()))


def _crossings(table: np.ndarray) -> Iterable[tuple[float, ...]]:
    """For each edge and pair of cells a < b across it: steps a → b; both ways; share of a → b expected if the candidate
    is the origin, if the child is; relative variance of that which the law of the step leaves."""
    forward, backward = table
    for edge in np.flatnonzero(forward[1:, -1].sum(1) >= MIN_INTERIOR).tolist():
        edge += 1  # the first one has none below, whose cells are half as wide
        law = _law(table, edge)
        if law is None:
            continue
        for a, b in PAIRS:
            up = int(forward[edge, BESIDE + a, REACH + b - a])
            down = int(forward[edge, BESIDE + b, REACH + a - b])
            if up + down < MIN_CROSSINGS:
                continue
            candidate = _expected(forward[edge], a, b, law)
            child = _expected(backward[edge], a, b, law[::-1])[::-1]
            if min(candidate.sum(0).min(), child.sum(0).min()) <= 0:
                continue
            here, there = (both[0] / both.sum(0) for both in (candidate, child))  # (3,) each, by the law's version
            q = np.clip((here[0] + there[0]) / 2, MIN_SHARE, 1 - MIN_SHARE)
            unsure = max(float(np.abs(share - share[0]).max()) for share in (here, there)) ** 2 / (q * (1 - q))
            yield up, up + down, here[0], there[0], unsure


def _expected(cells: np.ndarray, a: int, b: int, law: np.ndarray) -> np.ndarray:
    """Steps expected from cell a to b, and from b to a, of the model whose cells are given: (2, 3).

    cells: (ZONES, STEPS). law: as `_law`, of the step from this model."""
    (x_a, *cell_a), (x_b, *cell_b) = _cell(a), _cell(b)
    up = cells[BESIDE + a].sum() * _between(law[1], cell_b[0] - x_a, cell_b[1] - x_a)
    down = cells[BESIDE + b].sum() * _between(law[0], x_b - cell_a[1], x_b - cell_a[0])
    return np.array([up, down])


def _cell(cell: int) -> tuple[float, float, float]:
    """Value of a cell beside an edge, and where it begins and ends, in spacings below the edge, from the edge."""
    if cell < 0:
        return cell, cell - 0.5, cell + 0.5
    return 2.0 * cell, 2.0 * cell - (1.0 if cell else 0.5), 2.0 * cell + 1.0


def _law(table: np.ndarray, edge: int) -> np.ndarray | None:
    """log P(step < −x), log P(step > x) at x = ½, 1, 1½, … spacings, of the step from the candidate to the child.

    (2, 3, 2·REACH − 1), the second axis the best guess, a low and a high one; None where too few weights moved. Steps
    by cells give the half-integers. The shape between them is taken from the binade below, whose cells are half as
    wide: some optimisers make all steps nearly equally long.
    """
    forward, backward = table[:, edge, -1]
    inner = forward + backward[::-1]  # of both, so that swapped models swap the answer
    if min(inner[REACH - 1], inner[REACH + 1]) < 2 * MIN_STEPS:
        return None
    finer = table[0, edge - 1, -1] + table[1, edge - 1, -1, ::-1]
    return np.stack(
        [_tail(_longer(way), _longer(below)) for way, below in ((inner[::-1], finer[::-1]), (inner, finer))]
    )


def _longer(steps: np.ndarray) -> np.ndarray:
    """Steps upwards longer than ½, 1½, … cells, and all: (REACH + 1,)."""
    return np.append(np.cumsum(steps[:REACH:-1])[::-1], steps.sum())


def _tail(own: np.ndarray, finer: np.ndarray) -> np.ndarray:
    """The logarithm of one tail, (3, 2·REACH − 1). own, finer: as `_longer` counts them."""
    known = np.log(np.maximum(own[:-1], 0.25) / own[-1])
    points = np.arange(2 * REACH - 1)
    tail = np.stack([np.interp(points, points[::2], known)] * 3)
    shape = np.log(np.maximum(finer[:-1], 0.25))  # at ¼, ¾, 1¼, …
    for i in points[1::2]:
        low, high = tail[0, i + 1], tail[0, i - 1]
        if i + 1 < REACH and finer[i] >= MIN_STEPS:  # x = 1 and 2 lie between i/2 and (i + 1)/2 + ¼ of the finer cells
            start = tail[0, i - 1] - (shape[i - 1] + shape[i]) / 2
            low, high = max(low, min(start + shape[i + 1], high)), min(high, max(start + shape[i], low))
        tail[:, i] = (low + high) / 2 + np.array([0.0, -0.5, 0.5]) * UNSURE * (high - low)
    return tail


def _between(tails: np.ndarray, low: float, high: float) -> np.ndarray:
    """P(low < |step| < high) on one side, 0 < low < high, both multiples of ½: (3,). tails: (3, 2·REACH − 1)."""
    return np.maximum(np.exp(tails[:, round(2 * low) - 1]) - np.exp(tails[:, round(2 * high) - 1]), 0.0)
