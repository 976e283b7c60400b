"""What was done to a parent's tensor to get the child's: cast, quantised, pruned, a low-rank update, or added noise.

Pure arithmetic on the same rows of one matrix of both, (rows, width) float32, held in memory. Each edit has a function
that answers None where it cannot decide; EDITS lists the questions in the order in which they are asked, and
`summarise_edits` puts the tensors of a model together. See docs/methods.md, *What was done to a tensor*.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoints.dtypes import epsilon, torch_dtypes
from ..checkpoints.entry import Packing

EditKind = Literal["equal", "cast", "quantized", "pruned", "adapter", "noise", "other"]

# Dtypes that a parent may have been cast to, in the order in which they are tried; 8-bit floats by their largest number
_CASTS = ("BF16", "F16", "F8_E4M3", "F8_E5M2")
_LARGEST = {name: torch.finfo(torch_dtypes()[name]).max for name in ("F8_E4M3", "F8_E5M2")}
_HALF_ULP = {
    name: epsilon(name) / 2 for name in ("BF16", "F16", "F32")
}  # largest relative error of rounding to nearest
_SUBNORMAL_ERROR = {"BF16": 0.0, "F16": 2.0**-25, "F32": 0.0}  # its largest absolute error among subnormals

ONE_WAY: tuple[EditKind, ...] = ("cast", "quantized", "pruned")  # what can only be done to a parent
# Share of a vocabulary up to which more tokens are tokens that were added; more may as well have been cut off the other
MAX_ADDED_TOKENS = 1 / 8
LATTICE_BITS = (2, 3, 4, 5, 6, 8)
MAX_LEVEL = 255  # steps between the lowest and the highest value of an 8-bit lattice
LATTICE_GROUPS, GROUPS_AT_ONCE, GROUP_SAMPLE = 64, 8, 256  # groups of values examined, at once, and values of each
FIRST_GROUPS, FIRST_VALUES = 4, 16  # groups and values looked at first: without a lattice they end the question
MAX_LN_CHANCE = -30.0  # ln of the chance that unrounded values look like a lattice, summed over groups
SAME_STEP = 0.4  # steps of the true lattice agree to a factor of 2 (groups of even integers), accidental ones to 0.1
SPECTRUM_SIZE = 256  # rows and columns of a spectrum: rank r shows in any block of 2r, and 256 takes 50 ms
CAST_ENTRIES, CAST_ROWS = 1 << 18, 8  # elements that `cast_dtype` compares, and rows that it looks at first
CELL_SLACK = 1e-3  # of a cell, by which values may leave it: scales are stored rounded
FEW = 1 << 10  # values that are looked at before all are
MIN_IN_CELLS = 200  # values in bounded cells, from which it shows whether they lie there by chance
MAX_CENTRED = 0.25  # |mean cos 2πu|: 0 of a rounding; −0.63 of a normal step as large as MIN_FOLLOWING lets pass
MIN_FOLLOWING = 0.999  # share that must follow a rule; the rest is for ties and another order of operations
MIN_NEW_ZEROS = 0.05  # share of new zeros that neither training nor a flush of subnormal numbers makes
MAX_KEPT_CHANGE = (
    0.5  # squared change of the kept entries over squared size of the removed ones; 1 if rounding made them
)
MAX_ROUNDING_STEPS = 0.7  # median change in steps: rounding 0.25, GPTQ about 0.4; more is another model, quantised
MIN_SPECTRAL_GAP = 4.0  # of a rank's last singular value to the noise, and to twice its largest step down
RANK_ONE_CONDITION = 1e3  # the same for rank 1, which shows no step: adapters have condition numbers up to this
CHANCE_ERRORS = 5.0  # standard errors within which a statistic of added noise agrees with chance


@dataclass(frozen=True, slots=True)
class Lattice:
    """A uniform quantisation lattice: values scale·(integer − zero point).

    bits: one of LATTICE_BITS. scheme: what shares a scale, "tensor", "row", "column", "group 128", "group 64" or "group
    32". symmetric: no zero point. step: the median scale of the groups examined.
    """

    bits: int
    scheme: str
    symmetric: bool
    step: float


@dataclass(frozen=True, slots=True)
class Pruning:
    """Entries that were set to zero. zeros: their share; kept_equal: share of the others that did not change; in [0,
    1].

    magnitude: whether the smallest were removed, of the tensor, of each row or of every four (magnitude pruning).
    two_four: whether two of every four neighbours are zero (2:4 sparsity).
    """

    zeros: float
    magnitude: bool
    kept_equal: float
    two_four: bool


@dataclass(frozen=True, slots=True)
class Edit:
    """What was done to one tensor; fields that do not apply are None. packing: how the child is stored, where that
    rounds it. noise: standard deviation, relative to the parent's."""

    kind: EditKind
    packing: Packing | None = None
    lattice: Lattice | None = None
    cast: str | None = None
    pruned: Pruning | None = None
    rank: int | None = None
    noise: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether none of the dear questions, those of EDITS that are not in CHEAP_EDITS, has found anything."""
        return self.lattice is None and self.rank is None


def are_added_tokens(before: int, after: int) -> bool:
    """Whether a token table of `after` rows is one of `before` rows to which a few tokens were added.

    >>> are_added_tokens(512, 520), are_added_tokens(512, 1024), are_added_tokens(520, 512)
    (True, False, False)
    """
    return 0 < after - before <= MAX_ADDED_TOKENS * before


def detect_edit(
    child: Tensor, parent: Tensor, kinds: Collection[str] | None = None, lattices: Lattices | None = None
) -> Edit:
    """The first edit of EDITS that explains the child, "equal" where nothing changed, else "other".

    child, parent: (rows, width) float32. In which precision the child was stored is read from its values. kinds: the
    edits that are asked for, None for all. lattices: what is known of matrices that are asked about several times.
    """
    if torch.equal(child, parent):
        return Edit("equal")
    change = child - parent  # a sum that is finite has finite terms
    if not bool(torch.isfinite(change.sum())) and not bool(torch.isfinite(change).all()):
        return Edit("other")
    detectors = EDITS | {"quantized": functools.partial(_quantized, lattices=lattices)}
    asked = [detect for kind, detect in detectors.items() if kinds is None or kind in kinds]
    return next((edit for detect in asked if (edit := detect(child, parent))), Edit("other"))


class Lattices:
    """The rounding lattices of matrices, each looked for once. A matrix is known by its memory, which must not change
    while this lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Lattice | None]] = {}

    def of(self, rows: Tensor) -> Lattice | None:
        """`rounding_lattice` of a matrix."""
        key = (rows.data_ptr(), tuple(rows.shape))
        if key not in self._known:
            self._known[key] = (rows, rounding_lattice(rows))  # holding it keeps the memory its own
        return self._known[key][1]


def detect_rounding(
    child: Tensor, parent: Tensor, packing: Packing, cells: tuple[Tensor, Tensor] | None
) -> Edit:  # fmt: skip
    """What a packed child, (rows, width), is to a parent: "equal", "quantized" where it is the parent's own rounding,
    else "other". cells: `Checkpoint.cells` of its rows, flattened; None where they are not known.

    Every value of the parent must lie in the cell of the child's value, but for a share of 1 − MIN_FOLLOWING; and where
    in the cells they lie must be by chance: with u in [0, 1] the place within a cell, |mean cos 2πu| is at most
    MAX_CENTRED. A parent of which the child is a rounding knows nothing of the cells. One that was itself trained from
    the packed weights lies near their middles (−1), and of one that was trained from the same model as was packed a
    share has left them: rounding says no order of these. Nor of a child that was rounded together with its neighbours
    (GPTQ, AWQ), which is not the nearest.
    """
    if torch.equal(child, parent):
        return Edit("equal", packing)
    if cells is None or not bool(torch.isfinite(child - parent).all()):
        return Edit("other", packing)
    low, high = cells
    values = parent.reshape(-1)
    slack = CELL_SLACK * (high - low).clamp(max=1e30).nan_to_num() + 1e-6 * values.abs()
    inside = (values >= low - slack) & (values <= high + slack)
    bounded = inside & torch.isfinite(low) & torch.isfinite(high) & (high > low)
    if float(inside.float().mean()) < MIN_FOLLOWING or int(bounded.sum()) < MIN_IN_CELLS:
        return Edit("other", packing)
    place = ((values - low) / (high - low))[bounded]
    centred = float((2 * math.pi * place.double()).cos().mean())
    return Edit("quantized" if abs(centred) <= MAX_CENTRED else "other", packing)


def _cast(child: Tensor, parent: Tensor) -> Edit | None:
    name = cast_dtype(child, parent)
    return Edit("quantized" if name.startswith("F8") else "cast", cast=name) if name else None


def _quantized(child: Tensor, parent: Tensor, lattices: Lattices | None = None) -> Edit | None:
    """A rounding lattice that the parent has not; "other" where the child is too far from the parent for rounding."""
    lattices = lattices or Lattices()
    lattice = lattices.of(child)
    if lattice is None or lattices.of(parent) is not None:
        return None
    removed = detect_pruning(child, parent)
    if removed and float(((child == 0) & (parent.abs() > lattice.step)).float().mean()) < MIN_NEW_ZEROS:
        removed = None  # rounding alone makes as many zeros
    change = float((child - parent)[child != 0].abs().median())  # steps may differ widely: no mean
    kind: EditKind = "quantized" if change <= MAX_ROUNDING_STEPS * lattice.step else "other"
    return Edit(kind, lattice=lattice, pruned=removed)


def _pruned(child: Tensor, parent: Tensor) -> Edit | None:
    removed = detect_pruning(child, parent)
    if removed is None:
        return None
    change, size = (child - parent)[child != 0].square().mean(), parent[child == 0].square().mean()
    return Edit("pruned", pruned=removed) if float(change) < MAX_KEPT_CHANGE * float(size) else None


def _adapter(child: Tensor, parent: Tensor) -> Edit | None:
    rank = low_rank_update(child, parent)
    return Edit("adapter", rank=rank) if rank else None


def _noise(child: Tensor, parent: Tensor) -> Edit | None:
    deviation = added_noise(child, parent)
    return None if deviation is None else Edit("noise", noise=deviation)


# The questions, in the order in which they are asked: what rounds or prunes leaves no low rank and no white noise
EDITS: dict[str, Callable[[Tensor, Tensor], Edit | None]] = {
    "cast": _cast, "quantized": _quantized, "pruned": _pruned, "adapter": _adapter, "noise": _noise,
}  # fmt: skip


CHEAP_EDITS = ("cast", "pruned", "noise")  # whose questions end early where the answer is no


def summarise_edits(edits: Mapping[str, Edit], sizes: Mapping[str, int]) -> tuple[EditKind, dict[str, Any]]:
    """What was done to the whole model, with JSON-ready facts. `sizes[name]`: elements of the tensor.

    The kind that holds more than half of the changed elements; an adapter only where every changed tensor has a
    low-rank update; else "other". A cast counts only where nothing else was done, tensors that stayed equal not at all.
    """
    changed = {name: edit for name, edit in edits.items() if edit.kind != "equal"}
    counted = {name: edit for name, edit in changed.items() if edit.kind != "cast"} or changed
    weight: Counter[EditKind] = Counter()
    for name, edit in counted.items():
        weight[edit.kind] += sizes[name]
    kind, most = max(weight.items(), key=lambda pair: pair[1], default=("equal", 1))
    share = most / max(1, weight.total())
    if share <= 0.5 or (kind == "adapter" and len(weight) > 1):
        kind = "other"
    facts: dict[str, Any] = {
        "tensors": dict(Counter(edit.kind for edit in edits.values())), "share": share if changed else 1.0,
    }  # fmt: skip
    of_kind = {name: edit for name, edit in counted.items() if edit.kind == kind}
    lattices = {name: edit.lattice for name, edit in of_kind.items() if edit.lattice}
    if lattices:
        best = _most_common(
            {name: (found.bits, found.scheme, found.symmetric) for name, found in lattices.items()}, sizes
        )
        facts |= dict(zip(("bits", "scheme", "symmetric"), best, strict=True))
    if packings := {name: edit.packing for name, edit in of_kind.items() if edit.packing}:
        best = _most_common(packings, sizes)
        facts |= {"bits": best.bits, "scheme": best.scheme}
    if casts := {name: edit.cast for name, edit in changed.items() if edit.cast}:
        facts["cast"] = _most_common(casts, sizes)
        if kind == "quantized" and not lattices and not packings:
            facts |= {"bits": 8, "scheme": facts["cast"]}
    return kind, facts | _pruning_facts(of_kind, sizes) | _update_facts(of_kind, sizes)


def _pruning_facts(edits: Mapping[str, Edit], sizes: Mapping[str, int]) -> dict[str, Any]:
    removed = {name: edit.pruned for name, edit in edits.items() if edit.pruned}
    if not removed:
        return {}
    return {
        "zeros": _mean({name: pruning.zeros for name, pruning in removed.items()}, sizes),
        "kept_equal": _mean({name: pruning.kept_equal for name, pruning in removed.items()}, sizes),
        "magnitude": all(pruning.magnitude for pruning in removed.values()),
        "two_four": all(pruning.two_four for pruning in removed.values()),
    }


def _update_facts(edits: Mapping[str, Edit], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The ranks of low-rank updates, and the size of added noise."""
    facts: dict[str, Any] = {}
    if ranks := [edit.rank for edit in edits.values() if edit.rank]:
        facts |= {"rank": max(ranks), "ranks": sorted(set(ranks)), "low_rank_tensors": len(ranks)}
    if noises := {name: edit.noise for name, edit in edits.items() if edit.noise is not None}:
        facts["noise"] = _mean(noises, sizes)
    return facts


def _mean(values: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The mean over tensors, weighted by their elements."""
    return sum(sizes[n] * v for n, v in values.items()) / max(1, sum(sizes[n] for n in values))


def _most_common(values: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    """The value of the most elements."""
    votes: Counter[Any] = Counter()
    for name, value in values.items():
        votes[value] += sizes[name]
    return votes.most_common(1)[0][0]


def rounding_lattice(rows: Tensor) -> Lattice | None:
    """The coarsest uniform lattice of at most 8 bits that holds the values, v = s·(q − z) per group; None without one.

    rows: (rows, width). Every distinct level must be met within the precision τ of the storage (in steps). An unrounded
    value would meet one with chance 2τ; the product of these chances must be below e^MAX_LN_CHANCE. Values that 8-bit
    floats hold exactly are a cast, not a lattice.
    """
    rows = rows[:: max(1, -(-len(rows) // (4 * LATTICE_GROUPS)))]
    if not bool(torch.isfinite(rows).all()) or any(_holds(rows, name) for name in _LARGEST):
        return None
    precision = _precision(rows)
    lattices: list[Lattice] = []
    for scheme, groups in _groupings(rows):
        for offset in (False, True):
            if fit := _fit(groups, precision, offset):
                lattices.append(_describe(scheme, fit, offset, precision))
                if precision == "F32":
                    return lattices[0]
    # where values were rounded twice, a fine lattice explains the few coarse levels of many groups by accident
    largest_step = max((item.step for item in lattices), default=0.0)
    return next((item for item in lattices if item.step >= SAME_STEP * largest_step), None)


def cast_dtype(child: Tensor, parent: Tensor) -> str | None:
    """The dtype T for which child = T(parent), or s·T(parent/s) with s = max|parent|/max T for 8-bit floats.

    child, parent: (rows, width); s is taken over the tensor or each row. The rule must hold for a share of at least
    MIN_FOLLOWING of the elements, and of those that T changes. None where both are equal or T changes nothing.
    """
    step = max(1, -(-child.numel() // CAST_ENTRIES))
    widest = parent.abs().amax(1, keepdim=True)
    precision = _precision(child)
    wide = child.shape[1] >= 64 * step
    c, p, top = (t[:, ::step] if wide and t.shape[1] > 1 else t if wide else t[::step] for t in (child, parent, widest))
    for name in _CASTS:
        scales = [torch.ones(())]
        if name in _LARGEST:
            scales += [widest.amax() / _LARGEST[name], top / _LARGEST[name]]
        for scale in scales:
            scale = scale.clamp_min(1e-30)
            slack = 0.0 if scale.ndim == 0 and float(scale) == 1 else 2 * _HALF_ULP[precision]
            few = slice(None, None, max(1, len(c) // CAST_ROWS))  # most that is no cast shows it in a few rows
            some = scale[few] if scale.ndim == 2 and len(scale) == len(c) else scale
            rounded = _round(p[few] / some, name) * some
            if float(((c[few] - rounded).abs() <= slack * rounded.abs()).float().mean()) < 0.9:
                continue
            rounded = _round(p / scale, name) * scale
            met = (c - rounded).abs() <= slack * rounded.abs()
            moved = (p - rounded).abs() > slack * rounded.abs()
            if bool(moved.any()) and min(met.float().mean(), met[moved].float().mean()) >= MIN_FOLLOWING:
                return name
    return None


def detect_pruning(child: Tensor, parent: Tensor) -> Pruning | None:
    """Zeros of the child that the parent has not, #{c = 0 ≠ p}/n; None below MIN_NEW_ZEROS. Both (rows, width)."""
    if bool(child.all()):  # nothing is zero
        return None
    new_zeros = (child == 0) & (parent != 0)
    zeros = float(new_zeros.float().mean())
    if zeros < MIN_NEW_ZEROS:
        return None
    kept = child != 0
    same = (child == parent) | (child == _round(parent, _precision(child)))
    part = slice(None, None, max(1, len(child) // SPECTRUM_SIZE))
    size, removed = parent[part, : SPECTRUM_SIZE * 4].abs(), child[part, : SPECTRUM_SIZE * 4] == 0
    in_fours = size.shape[1] // 4 * 4
    removed_of_four = removed[:, :in_fours].reshape(-1, 4)
    two_four = in_fours > 0 and float((removed_of_four.sum(1) == 2).float().mean()) >= MIN_FOLLOWING
    groupings = [(size.reshape(1, -1), removed.reshape(1, -1)), (size, removed)]
    groupings += [(size[:, :in_fours].reshape(-1, 4), removed_of_four)] if two_four else []
    return Pruning(
        zeros, any(_removed_smallest(*grouping) for grouping in groupings), float(same[kept].float().mean()), two_four
    )


def low_rank_update(child: Tensor, parent: Tensor) -> int | None:
    """Numerical rank r of child − parent, at most 3/4 of its live rows or columns; None without a clear one.

    child, parent: (rows, width). Rounding the child leaves independent errors of variance v = ulp²/12, whose largest
    singular value is at most about max_i √Σ_j v_ij + max_j √Σ_i v_ij (Latała 2005; Bandeira & van Handel 2016). The
    first r singular values lie above that edge, by a factor of MIN_SPECTRAL_GAP and by more than they fall among
    themselves.
    """
    moved = child != parent  # dead inputs and units never change: they are no sign of an adapter
    rows, columns = (moved.any(axis).nonzero().flatten() for axis in (1, 0))
    rows, columns = (index[:: -(-len(index) // SPECTRUM_SIZE) or 1] for index in (rows, columns))
    values = child[rows][:, columns].double()
    delta = values - parent[rows][:, columns].double()
    if min(delta.shape) < 4:
        return None
    precision = _precision(child)
    own = (_HALF_ULP[precision] * delta).square() / 3 + (4 * _HALF_ULP["F32"]) ** 2 * delta.square().mean()
    variance = _ulp(values, precision).square() / 12 + own  # the sum was rounded, and the product before it
    edge = 1.1 * float(variance.sum(0).max().sqrt() + variance.sum(1).max().sqrt())  # 10 % for finite sizes
    spectrum = torch.linalg.svdvals(delta)
    rank = int((spectrum > edge).sum())
    if not 0 < rank <= 0.75 * len(spectrum):
        return None
    decay = float((spectrum[: rank - 1] / spectrum[1:rank]).max()) if rank > 1 else RANK_ONE_CONDITION / 2
    return rank if float(spectrum[rank - 1]) >= edge * max(MIN_SPECTRAL_GAP, 2 * decay) else None


def added_noise(child: Tensor, parent: Tensor) -> float | None:
    """sd(δ)/sd(parent) if δ = child − parent is white noise, as somebody adds it on purpose, else None.

    child, parent: (rows, width). White noise has independent entries of one distribution: mean 0, kurtosis 3 (normal)
    or 1.8 (uniform), energies of rows and columns within chance (χ²), a largest singular value near sd·(√rows + √width)
    (Tracy & Widom 1996), and no correlation with the parent or its absolute value.
    """
    part = tuple(slice(None, None, -(-n // SPECTRUM_SIZE) or 1) for n in child.shape)
    p, c = parent[part].double(), child[part].double()
    delta = c - p
    n, sd = delta.numel(), float(delta.std())
    if min(delta.shape) < 16 or n < 1024 or sd < 4 * float(_ulp(c, _precision(child)).square().mean().sqrt()):
        return None  # too small to tell, or no more than what rounding does
    delta = delta / sd
    kurtosis = float(delta.pow(4).mean())
    normal = abs(kurtosis - 3.0) <= CHANCE_ERRORS * math.sqrt(24 / n)
    uniform = abs(kurtosis - 1.8) <= CHANCE_ERRORS * math.sqrt(2 / n)
    evenly_spread = all(_evenly_spread(delta.square().mean(axis), delta.shape[axis], kurtosis) for axis in (0, 1))
    uncorrelated = all(
        abs(_correlation(a, b)) <= CHANCE_ERRORS / math.sqrt(n) for a, b in ((delta, p), (delta.abs(), p.abs()))
    )
    if not (
        (normal or uniform)
        and evenly_spread
        and uncorrelated
        and abs(float(delta.mean())) <= CHANCE_ERRORS / math.sqrt(n)
    ):
        return None
    roots = [math.sqrt(side) for side in delta.shape]
    width = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)  # scale of the largest σ² (Johnstone 2001)
    largest = float(torch.linalg.matrix_norm(delta, ord=2)) ** 2
    return sd / float(p.std()) if largest <= sum(roots) ** 2 + CHANCE_ERRORS * width else None


def _holds(values: Tensor, name: str) -> bool:
    few = values.flatten()[:FEW]  # most that does not hold shows it there
    return torch.equal(_round(few, name), few) and torch.equal(_round(values, name), values)


def _round(values: Tensor, name: str) -> Tensor:
    """Values rounded to a dtype and back; 8-bit floats saturate."""
    if name == "F32":
        return values
    if name in _LARGEST:
        values = values.clamp(-_LARGEST[name], _LARGEST[name])
    return values.to(torch_dtypes()[name]).float()


def _precision(values: Tensor) -> str:
    """The coarsest of BF16, F16, F32 that holds the values, whatever they are stored in."""
    return next((name for name in ("BF16", "F16") if _holds(values, name)), "F32")


def _ulp(values: Tensor, precision: str) -> Tensor:
    """Distance between neighbouring numbers of that precision at each value."""
    exponent = torch.frexp(values)[1].double()
    return torch.exp2(exponent) * _HALF_ULP[precision] * (values != 0) + 2 * _SUBNORMAL_ERROR[precision]


def _groupings(rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each scheme and its groups of values, coarsest first: at most LATTICE_GROUPS groups, (groups, values) float64, of
    at most GROUP_SAMPLE values and the two extremes."""
    height, width = rows.shape
    ways = [("row", rows), ("column", rows.T)] if height >= 16 else [("row", rows)]
    ways += [(f"group {n}", rows.reshape(-1, n)) for n in (128, 64, 32) if width > n and width % n == 0]
    for scheme, groups in ways:
        groups = groups[:: max(1, len(groups) // LATTICE_GROUPS)][:LATTICE_GROUPS].double()
        some = groups[:, :: -(-groups.shape[1] // GROUP_SAMPLE)]
        yield scheme, torch.cat([some, groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)], 1)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Of each group with more than one level: its scale, and the integers of its lowest and highest value,
    (groups,)."""

    step: Tensor
    low: Tensor
    high: Tensor


def _fit(groups: Tensor, precision: str, offset: bool) -> _Fit | None:
    """The smallest number of steps that explains each group; None if it misses more than 2 %, or chance explains it.

    groups: (groups, values) float64. The lattice is anchored at zero and the largest value, with `offset` at the lowest
    and the highest.
    """
    steps, lows, highs = [], [], []
    ln_chance, missed = 0.0, 0
    for part in (groups[:FIRST_GROUPS], *groups[FIRST_GROUPS:].split(GROUPS_AT_ONCE)):
        origin = part.amin(1) if offset else torch.zeros(len(part), dtype=torch.float64)
        span = part.amax(1) - origin if offset else part.abs().amax(1)
        live = span > 0
        part, origin, span = part[live], origin[live, None], span[live, None]
        share = (part - origin) / span
        size = part.abs() + (origin.abs() * (1 - share) + (origin + span).abs() * share if offset else part.abs())
        largest = part.abs().amax(1, keepdim=True)
        # rounding of the value and of its anchors (1 %: second order), in shares of the span
        error = 1.01 * _HALF_ULP[precision] * size + 8 * _HALF_ULP["F32"] * largest + 2 * _SUBNORMAL_ERROR[precision]
        error = torch.where(part == 0, math.inf, error / span)
        tries = _first_try(share, error)
        missed += int((tries == 0).sum())
        if missed > len(groups) // 50:
            return None
        part, share, error, span, tries = (t[tries > 0] for t in (part, share, error, span, tries))
        levels = (share * tries[:, None]).round()
        anchor = levels.gather(1, share.abs().argmax(1, keepdim=True))
        # zeros may come from pruning and prove nothing
        used = torch.where(part == 0, anchor, levels)
        ln_chance += float(_ln_chance(used, anchor, error * tries[:, None], tries).sum())
        if len(part) and not ln_chance:  # chance explains the first groups altogether
            return None
        several = levels.amax(1) > levels.amin(1)
        steps.append((span[:, 0] / tries)[several])
        lows.append(levels.amin(1)[several])
        highs.append(levels.amax(1)[several])
    found = _Fit(*(torch.cat(each) for each in (steps, lows, highs)))
    return found if ln_chance <= MAX_LN_CHANCE and len(found.step) else None


def _first_try(share: Tensor, error: Tensor) -> Tensor:
    """The smallest number of steps in 1 … MAX_LEVEL at which all values of a group are levels, 0 where none is.

    share, error: (groups, values), in shares of the group's span; returns (groups,) float64. Few values rule out most
    tries; what they leave is held against all values, the smallest tries first.
    """
    tries = torch.arange(1.0, MAX_LEVEL + 1, dtype=torch.float64)
    some = slice(None, None, max(1, share.shape[1] // FIRST_VALUES))
    position = share[:, None, some] * tries[:, None]  # in steps, (groups, tries, values)
    left = ((position - position.round()).abs() <= error[:, None, some] * tries[:, None]).all(2)
    found = torch.zeros(len(share), dtype=torch.float64)
    wave = 2
    while bool(left.any()):
        chosen = left & (left.cumsum(1) <= wave)
        group, number = chosen.nonzero(as_tuple=True)
        position = share[group] * tries[number, None]
        level = position.round()
        met = ((position - level).abs() <= error[group] * tries[number, None]).all(1)
        # values that were rounded twice may lie one level off at the ends, hence + 1
        met &= level.amax(1) - level.amin(1) <= MAX_LEVEL + 1
        good = torch.zeros_like(left)
        good[group[met], number[met]] = True
        has = good.any(1)
        found[has] = tries[good.int().argmax(1)][has]
        left &= ~chosen & ~has[:, None]
        wave *= 4
    return found


def _ln_chance(levels: Tensor, anchor: Tensor, slack: Tensor, tries: Tensor) -> Tensor:
    """ln of the chance that unrounded values meet these levels, each within its slack, in one of the tries.

    levels, slack: (groups, values); anchor: (groups, 1); tries: (groups,); returns (groups,), at most 0. A level that
    several values meet counts once, with the largest slack.
    """
    if not len(levels):
        return tries
    low = levels.amin(1, keepdim=True)
    chance = (2 * slack).clamp(max=1.0).log()
    worst = torch.full((len(levels), int((levels - low).max()) + 1), -math.inf, dtype=torch.float64)
    worst = worst.scatter_reduce(1, (levels - low).long(), chance, "amax")
    level = torch.arange(worst.shape[1], dtype=torch.float64) + low
    counts = (worst > -math.inf) & (level != anchor) & (level != 0)
    return (tries.log() + torch.where(counts, worst, 0.0).sum(1)).clamp(max=0.0)


def _describe(scheme: str, fit: _Fit, offset: bool, precision: str) -> Lattice:
    """Bits from the widest range in use; one scale for all rows is a scale per tensor."""
    step = fit.step.median()
    low, high = fit.low, fit.high
    same_step = (fit.step / step - 1).abs() <= 4 * _HALF_ULP[precision] + 1e-5
    if scheme == "row" and len(same_step) > 1 and float(same_step.float().mean()) > 0.9:
        scheme = "tensor"
        if not offset:  # one zero for all rows: their ranges add up
            low, high = low[same_step].amin(0, keepdim=True), high[same_step].amax(0, keepdim=True)
    span = high - low
    bits = next(b for b in (*LATTICE_BITS, 16) if float(span.max()) < 2**b)
    # no signed integer of so many bits
    unsigned_share = (torch.maximum(-low, high) > 2 ** (bits - 1)).float().mean()
    # ranges cut from minimum to maximum; symmetric ones miss an end
    whole_range = (span == 2**bits - 1).float().mean()
    return Lattice(
        min(bits, 8), scheme, not (offset or float(unsigned_share) > 0.1 or float(whole_range) > 0.5), float(step)
    )


def _removed_smallest(size: Tensor, removed: Tensor) -> bool:
    """Whether the entries that were removed are the smallest of each row, but for ties. Both (rows, width)."""
    count = removed.sum(1, keepdim=True)
    threshold = size.sort(1).values.gather(1, (count - 1).clamp_min(0))
    return float(((size <= threshold) & removed).sum() / count.sum().clamp_min(1)) >= 0.99


def _evenly_spread(energy: Tensor, entries: int, kurtosis: float) -> bool:
    """Whether mean squares (groups,), each of `entries` independent values, differ no more than by chance, by χ²."""
    degrees = len(energy) - 1
    chi2 = entries / max(kurtosis - 1.0, 1e-9) * float((energy / energy.mean() - 1).square().sum())
    return chi2 <= degrees + CHANCE_ERRORS * math.sqrt(2 * degrees)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
