"""One model alone: what its values tell of their past.

*Rounded once, or trained since?* A model that was cast once from a smooth density has as many values in each cell as
it is wide: at a power of two V 1.5 times as many as below, and 2 times above. A model that was trained from one that
already lay on the lattice has not: a step leads from the middle of a cell, and the cells beside V are of three widths,
so that some win and some lose. Which, depends on the step; that the cells beside V leave the smooth density, and those
away from it do not, is the mark. A model whose weights were kept in the lattice while it was trained has won at V
itself, by far the most: what drifts upwards is caught there. Truncation has won a third at V, everywhere; two
roundings, or an average, leave every other number rarer, away from V as well.

*Memory of a lattice.* Values in fp32 that were trained from bf16 or fp16 ones by less than a spacing still lie near
that lattice. The offset from it is uniform for any other past.

*Repeated layers* are alike as no two layers that were trained apart are.

See docs/methods.md, *One model alone*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..answers.history import Format
from .direction.lattice_memory import CHANCE, FAR, NEAR, remembering
from .direction.lattices import LATTICES, MAGNITUDE, Lattice, lattice_of

BESIDE, MARKED = (
    5,
    8,
)  # cells on either side of an edge that the density is not fitted to; the first of them that are judged
WIDTHS = {"bf16": 40, "fp16": 200}  # cells on either side of an edge that the density is fitted to
MIN_CELL, MIN_EDGE = 5, 30_000  # values of the poorest fitted cell, and of all cells around an edge
FLOAT32_MANTISSA, FLOAT32_BIAS = 23, 127
OFFSET_STRIDE = 13  # of values on no lattice so many are passed over for one: a memory of one shows in 100,000
OFFSETS = 20  # bins of the offset from a lattice, in spacings, over [0, ½]
MIN_SCORE, CONTROL_RATIO = 6.0, 3.0  # of the mark, and over that at places without an edge
MAX_ALTERNATION = 0.05  # odd less even cells: more is a second rounding, or an average
TRUNCATED = (0.25, 0.42)  # excess at V where every value was cut off: a third
MIN_WON, MIN_WON_Z, WON_RATIO = 0.05, 6.0, 2.0  # excess at V of weights kept on a lattice; in errors; over others'
MOSTLY = 0.9  # share of values on a lattice, but not all, beyond which they were put there and not trained away from it
MIN_MEMORY, MEMORY_Z = 0.01, 8.0  # share of a binade's values that remember a lattice, in errors
ALIKE = 0.8  # correlation of layers that were copied, tuned since or not
CONTROL_SHIFTS = (0.3, 0.5, 0.7)  # of a binade: places without an edge


@dataclass(frozen=True, slots=True, eq=False)
class ValueCounts:
    """How often each number occurs, and where the others lie between the numbers of a coarser lattice.

    cells: lattice → (32768,) int64, values on it by their cell (sign left out). offsets: lattice → (binades, OFFSETS)
    int64, of values that lie on no lattice by the binade and the distance from the nearest number of this one in
    spacings, in OFFSETS bins over [0, ½]. entries: all, zeros included. Additive over disjoint entries.
    """

    cells: dict[str, np.ndarray] = field(default_factory=dict)
    offsets: dict[str, np.ndarray] = field(default_factory=dict)
    entries: int = 0

    def __add__(self, other: ValueCounts) -> ValueCounts:
        cells, offsets = _added(self.cells, other.cells), _added(self.offsets, other.offsets)
        return ValueCounts(cells, offsets, self.entries + other.entries)

    @property
    def on(self) -> dict[str, int]:
        """Values on each lattice."""
        return {name: int(counts.sum()) for name, counts in self.cells.items()}


NO_COUNTS = ValueCounts()


def _added(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return one | {name: one[name] + table if name in one else table for name, table in other.items()}


def count_values(values: torch.Tensor) -> ValueCounts:
    """The counts of one slice, (n,) of any float dtype. O(n): 2 ns a value in half precision, 3 ns in float32."""
    lattice = lattice_of(values)
    if lattice is not None:
        magnitudes = torch.from_numpy(lattice.bits(values) & MAGNITUDE)
        cells = torch.bincount(magnitudes, minlength=MAGNITUDE + 1).numpy()  # NumPy's would take 8 bytes a value
        return ValueCounts({lattice.name: cells}, {}, values.numel())
    values = values[::OFFSET_STRIDE]
    bits = values.float().contiguous().view(torch.int32).numpy()
    return ValueCounts({}, {name: _offsets(bits, found) for name, found in LATTICES.items()}, values.numel())


def _offsets(bits: np.ndarray, lattice: Lattice) -> np.ndarray:
    """(binades, OFFSETS): finite normal numbers by binade and distance from the lattice. bits: of float32, int32."""
    finer = FLOAT32_MANTISSA - lattice.mantissa
    low = bits & ((1 << finer) - 1)
    offset = np.minimum(low, (1 << finer) - low)
    binade = ((bits >> FLOAT32_MANTISSA) & 0xFF) - (FLOAT32_BIAS - lattice.binades.stop // 2)
    bins = np.minimum((offset * (2 * OFFSETS)) >> finer, OFFSETS - 1)
    chosen = (binade >= lattice.binades.start) & (binade < lattice.binades.stop)
    counts = np.bincount((binade * OFFSETS + bins)[chosen], minlength=lattice.binades.stop * OFFSETS)
    return counts.reshape(lattice.binades.stop, OFFSETS)


@dataclass(frozen=True, slots=True)
class Profile:
    """Excess over a smooth density in the cells beside the edges of binades.

    excess, stderr: cell −5 … 5 → relative excess summed over edges, and its Poisson error. at_edge: binade → (11,)
    relative excess at its edge alone, and (11,) errors. ripple, ripple_error: root mean square of the excess in cells
    −5 … 2, over edges, less what counting errors make. score: (χ² of these cells − its degrees of freedom)/√(2 · that),
    each edge's χ² divided by the dispersion of its cells away from the edge; control: the same at places without an
    edge, the largest of a few. alternation, alternation_error: odd less even cells away from edges, relative. values:
    all that were counted around edges.
    """

    excess: dict[int, float]
    stderr: dict[int, float]
    at_edge: dict[int, tuple[np.ndarray, np.ndarray]]
    ripple: float
    ripple_error: float
    score: float
    control: float
    alternation: float
    alternation_error: float
    values: int

    @property
    def held_back(self) -> dict[int, tuple[float, float]]:
        """binade → excess at its first number, and its error."""
        return {b: (float(excess[BESIDE]), float(error[BESIDE])) for b, (excess, error) in self.at_edge.items()}


def profile(cells: np.ndarray, lattice: Lattice) -> Profile | None:
    """The profile of one model. cells: (32768,) as in `ValueCounts`. None where too few values lie around edges.

    The smooth density is log-cubic in the cells 6 to `WIDTHS` away, weighted by counts; natural widths are 1 below, 1.5
    at, 2 above an edge.
    """
    fits = {b: fit for b in lattice.binades[1:] if (fit := _fit(cells, b * lattice.cells, lattice, True)) is not None}
    if not fits:
        return None
    middle = WIDTHS[lattice.name]
    near = slice(middle - BESIDE, middle + BESIDE + 1)
    observed, predicted = (np.sum([fit[i] for fit in fits.values()], axis=0) for i in (0, 1))
    j = np.arange(-middle, middle + 1)
    away = np.abs(j) > BESIDE
    ratios = [observed[away & kind].sum() / predicted[away & kind].sum() for kind in (j % 2 == 1, j % 2 == 0)]
    squares = sum(((one - two)[near][:MARKED] ** 2 - two[near][:MARKED]).sum() for one, two in fits.values())
    size = sum((two[near][:MARKED] ** 2).sum() for _, two in fits.values())
    controls = []
    for shift in CONTROL_SHIFTS:
        places = [int((b + shift - 1) * lattice.cells) for b in fits]
        found = [fit for at in places if (fit := _fit(cells, at, lattice, False)) is not None]
        controls += [_score(found, middle)] if found else []
    ripple = _root(float(squares / size), math.sqrt(2 / size))
    return Profile(
        dict(enumerate((observed / predicted - 1)[near].tolist(), -BESIDE)),
        dict(enumerate((predicted[near] ** -0.5).tolist(), -BESIDE)),
        {b: ((one / two - 1)[near], two[near] ** -0.5) for b, (one, two) in fits.items()},
        *ripple, _score([*fits.values()], middle), max(controls, default=math.inf),
        float(ratios[0] - ratios[1]), float(2 / math.sqrt(observed[away].sum())), int(observed.sum()),
    )  # fmt: skip


def _root(square: float, error: float) -> tuple[float, float]:
    """The root of an estimated square, 0 of a negative one, and its error."""
    root = math.sqrt(max(square, 0.0))
    return root, min(error / (2 * root), math.sqrt(error)) if root else math.sqrt(error)


def _fit(cells: np.ndarray, middle: int, lattice: Lattice, at_edge: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts of the cells around a place, and those of a smooth density; None where too few are there."""
    width = WIDTHS[lattice.name]
    window = cells[max(middle - width, 0) : middle + width + 1].astype(np.float64)
    j = np.arange(-width, width + 1)
    away = np.abs(j) > BESIDE
    if len(window) < len(j) or window.sum() < MIN_EDGE or window[away].min() < MIN_CELL:
        return None
    size = np.where(j < 0, 1.0, 2.0) if at_edge else np.ones(len(j))
    size[width] = 1.5 if at_edge else 1.0
    x = j * np.where(j < 0, 1.0, 2.0 if at_edge else 1.0) / width
    powers = np.stack([np.ones_like(x), x, x**2, x**3], axis=1)
    weight = np.sqrt(window[away])
    target = np.log(window[away] / size[away])
    line = np.linalg.lstsq(powers[away] * weight[:, None], target * weight, rcond=None)[0]
    return window, np.exp(powers @ line) * size


def _score(fits: Iterable[tuple[np.ndarray, np.ndarray]], middle: int) -> float:
    """How far χ² of the cells −5 … 2 lies above its mean, in standard deviations."""
    total, freedom = 0.0, 0
    for observed, predicted in fits:
        square = (observed - predicted) ** 2 / predicted
        near = square[middle - BESIDE : middle - BESIDE + MARKED]
        away = np.concatenate([square[: middle - BESIDE], square[middle + BESIDE + 1 :]])
        total += near.sum() / max(1.0, away.sum() / (len(away) - 4))
        freedom += MARKED
    return float((total - freedom) / math.sqrt(2 * freedom))


# ---- what is concluded


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement: `value` with its error, on how many weights it rests, and why; value None: not told, `reason` says
    why not."""

    value: float | None
    stderr: float | None
    entries: int
    reason: str


@dataclass(frozen=True, slots=True)
class Past:
    """What the values of one model tell of their past.

    lattice: that holds most of its values, None where none does. trained_since: whether it was trained since its values
    first lay on that lattice, or from another checkpoint on a coarser one; kept_in_half: whether its weights were kept
    on the lattice meanwhile. Both are None where that does not show; trained_since is never False: a step may be too
    small, too large, or in too few weights to leave a mark. began_from: the coarser lattice that it remembers. looked:
    whether there were enough weights to look for a mark, and no other explanation stood in the way. held_back: binade →
    excess at its first number and its error, of a model on a lattice.
    """

    lattice: Format | None
    trained_since: bool | None
    kept_in_half: bool | None
    began_from: Format | None
    looked: bool
    findings: dict[str, Finding]
    held_back: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def marked(self) -> bool | None:
        """Whether it shows that it was trained from another model on its lattice; None where that was not looked at."""
        return self.trained_since if self.trained_since or not self.looked else False


def past_of(counts: ValueCounts) -> Past:
    """What the counts of one model's matrices show."""
    most = max(counts.on, key=lambda name: counts.on[name], default=None)
    if most is not None and counts.on[most] > counts.entries / 2:
        return _on_lattice(LATTICES[most], counts.cells[most])
    return _off_lattice(counts)


def _on_lattice(lattice: Lattice, cells: np.ndarray) -> Past:
    values = int(cells.sum())
    found = profile(cells, lattice)
    told = f"the values lie on {lattice.name} numbers"
    if found is None:
        why = Finding(None, None, values, f"{told}; too few of them lie around powers of two to tell their past")
        return Past(lattice.name, None, None, None, False, {"first_rounding": why})
    if other := _other_past(found):
        why = Finding(None, None, found.values, f"{told}; {other}")
        return Past(lattice.name, None, None, None, False, {"first_rounding": why}, found.held_back)
    binade, won, error = _won(found)
    power = f"2^{binade - lattice.binades.stop // 2}"
    often = f"the number {power} is {1 + won:.2f} times as frequent as its neighbours let expect"
    kept = Finding(won, error, found.values, often)
    score = f"the cells beside powers of two leave the smooth density by {found.ripple:.1%} (score {found.score:.1f}"
    score += f", away from them at most {found.control:.1f})"
    mark = Finding(found.ripple, found.ripple_error, found.values, score)
    if won >= MIN_WON and won >= MIN_WON_Z * error and won >= WON_RATIO * _largest_other(found, binade):
        return Past(lattice.name, True, True, None, True, {"first_rounding": mark, "held_back": kept}, found.held_back)
    if found.score >= MIN_SCORE and found.score >= CONTROL_RATIO * found.control:
        return Past(lattice.name, True, False, None, True, {"first_rounding": mark}, found.held_back)
    none = replace(mark, reason=f"{score}: no mark; rounded once, or moved too little, too far, or in too few weights")
    return Past(lattice.name, None, None, None, True, {"first_rounding": none}, found.held_back)


def _other_past(found: Profile) -> str:
    """Another explanation of the profile than training; "" where none stands."""
    if abs(found.alternation) > max(MAX_ALTERNATION, 5 * found.alternation_error):
        return "every other of them is rarer: they were rounded twice, or are averages, which hides the rest"
    won = [(excess, error) for excess, error in found.held_back.values() if error < 0.05]
    if len(won) > 1:
        weights = np.array([error**-2 for _, error in won])
        mean = float((weights * np.array([excess for excess, _ in won])).sum() / weights.sum())
        if TRUNCATED[0] < mean < TRUNCATED[1] and all(abs(excess - mean) < 5 * error + 0.05 for excess, error in won):
            return "powers of two are a third too frequent: the values were truncated, not rounded"
    if found.control >= MIN_SCORE and found.score < CONTROL_RATIO * found.control:
        return "their density is not smooth enough to tell their past"
    return ""


def _won(found: Profile) -> tuple[int, float, float]:
    """The binade whose first number has won most plainly, its excess and error."""
    binade = max(found.held_back, key=lambda b: found.held_back[b][0] / found.held_back[b][1])
    return binade, *found.held_back[binade]


def _largest_other(found: Profile, binade: int) -> float:
    excess = found.at_edge[binade][0]
    return float(np.abs(np.delete(excess, BESIDE)).max())


def _off_lattice(counts: ValueCounts) -> Past:
    findings = {}
    shares: dict[str, float] = {}
    for name, table in counts.offsets.items():
        near, far = table[:, : round(2 * OFFSETS * NEAR)].sum(1), table[:, round(2 * OFFSETS * FAR) :].sum(1)
        excess, error = near - CHANCE * far, np.sqrt(near + CHANCE**2 * far + 1)
        kept = remembering(excess > np.maximum(MEMORY_Z * error, MIN_MEMORY * table.sum(1)), table.sum(1))
        total = int(table.sum())
        share, stderr = (
            float(excess[kept].sum() / max(total, 1)),
            float(np.sqrt((error[kept] ** 2).sum()) / max(total, 1)),
        )
        told = f"{share:.1%} of the values lie on {name} numbers beyond chance"
        if share > MOSTLY:
            told = (
                f"{share:.1%} of the values lie on {name} numbers: an average, or rounded twice, which hides the rest"
            )
            findings[f"memory_{name}"] = Finding(None, None, total, told)
        elif kept.any():
            shares[name] = share
            findings[f"memory_{name}"] = Finding(share, stderr, total, told)
        else:
            findings[f"memory_{name}"] = Finding(None, None, total, f"the values remember no {name} numbers")
    began = max(shares, key=lambda name: shares[name], default=None)
    first = LATTICES[began].name if began else None
    return Past(None, True if began else None, None, first, bool(counts.offsets), findings)


def repeated_layers(layers: Mapping[str, Mapping[int, np.ndarray]]) -> list[tuple[int, int]]:
    """Pairs of layers of which most tensors are alike, |r| ≥ ALIKE: copies, tuned since or not.

    layers: kind of tensor → index of the layer → the same entries of its tensor, (n,).
    """
    votes: dict[tuple[int, int], list[bool]] = {}
    for found in layers.values():
        indices = sorted(index for index, values in found.items() if len(values) > 1 and float(np.std(values)) > 0)
        if len(indices) < 2:
            continue
        r = np.atleast_2d(np.corrcoef(np.stack([found[index] for index in indices]).astype(np.float64)))
        for i, one in enumerate(indices):
            for j in range(i + 1, len(indices)):
                votes.setdefault((one, indices[j]), []).append(abs(float(r[i, j])) >= ALIKE)
    return sorted(pair for pair, alike in votes.items() if sum(alike) > len(alike) / 2)
