"""What was done to a parent's tensor to get the child's: rounded, cast, pruned, adapted, or noise added.

Pure arithmetic on the same rows of one matrix of both, (rows, width) float32, held in memory. Each question has its
own function and answers None where it cannot tell; `change` asks them in order, `summarise` speaks for the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

EditKind = Literal["equal", "cast", "quantized", "pruned", "adapter", "noise", "other"]

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_HALF_ULP = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}  # largest relative error of rounding to nearest
_SMALLEST = {"BF16": 0.0, "F16": 2.0**-25, "F32": 0.0}  # and its largest error among subnormals, where they matter
_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}

ONE_WAY: tuple[EditKind, ...] = ("cast", "quantized", "pruned")  # what can only be done to a parent
BITS = (2, 3, 4, 5, 6, 8)
LEVELS = 255  # steps between the lowest and the highest value of an 8-bit lattice
GROUPS, CHUNK, SAMPLE = 64, 8, 256  # groups looked at, at once, and values of each: 20 ms, and plenty of evidence
SURE = -30.0  # ln of the chance that unrounded values look like a lattice, summed over groups
SAME_STEP = 0.4  # steps of the true lattice agree to a factor of 2 (groups of even integers), accidental ones to 0.1
BLOCK = 256  # rows and columns of a spectrum: rank r shows in any block of 2r, and 256 takes 50 ms
CELLS = 1 << 18  # elements compared by `cast`
EXACT = 0.999  # share that must follow a rule without exception; the rest is for ties and another order of operations
NEW_ZEROS = 0.05  # share of new zeros that training or a denormal flush does not make
KEPT = 0.5  # squared change of the kept entries over squared size of the removed ones; 1 if rounding made the zeros
OWN_ERROR = 0.7  # rounding moves the median weight by 0.25 steps, GPTQ by about 0.4; more is another model, quantised
GAP = 4.0  # last singular value of a rank over the noise, and twice its largest step down; trained spectra run on
LONE = 1e3  # the same for rank 1, which shows no step: adapters have condition numbers up to this
CHANCE = 5.0  # standard errors within which a statistic of added noise agrees with chance


@dataclass(frozen=True, slots=True)
class Lattice:
    """Values scale·(integer − zero): bits in BITS, scheme "tensor", "row", "column", "group 128", 64 or 32.

    `step` is the median scale of the groups looked at; `symmetric`: no zero-point.
    """

    bits: int
    scheme: str
    symmetric: bool
    step: float


@dataclass(frozen=True, slots=True)
class Pruning:
    """`zeros`: share of entries that became zero, `kept_equal`: share of the others that did not change, in [0, 1].

    `magnitude`: the smallest went, of the tensor, of each row or of every four; `two_four`: two of four are zero.
    """

    zeros: float
    magnitude: bool
    kept_equal: float
    two_four: bool


@dataclass(frozen=True, slots=True)
class Edit:
    """What was done to one tensor; the fields that do not apply are None."""

    kind: EditKind
    lattice: Lattice | None = None
    cast: str | None = None
    pruned: Pruning | None = None
    rank: int | None = None
    noise: float | None = None


def detect_edit(child: Tensor, parent: Tensor) -> Edit:
    """The first answer of equal, cast, quantised, pruned, adapter, noise, in this order, else "other".

    child, parent: (rows, width) float32. How finely the child was stored shows in its values.
    """
    if torch.equal(child, parent):
        return Edit("equal")
    delta = child - parent
    if not bool(torch.isfinite(delta).all()):
        return Edit("other")
    if name := cast_dtype(child, parent):
        return Edit("quantized" if name.startswith("F8") else "cast", cast=name)
    removed = detect_pruning(child, parent)
    if (found := rounding_lattice(child)) and rounding_lattice(parent) is None:
        if removed and float(((child == 0) & (parent.abs() > found.step)).float().mean()) < NEW_ZEROS:
            removed = None  # rounding alone makes as many zeros
        own = float(delta[child != 0].abs().median()) <= OWN_ERROR * found.step  # steps may differ widely: no mean
        return Edit("quantized" if own else "other", lattice=found, pruned=removed)
    if removed and float(delta[child != 0].square().mean()) < KEPT * float(parent[child == 0].square().mean()):
        return Edit("pruned", pruned=removed)
    if rank := low_rank_update(child, parent):
        return Edit("adapter", rank=rank)
    sd = added_noise(child, parent)
    return Edit("other" if sd is None else "noise", noise=sd)


def summarise_edits(changes: Mapping[str, Edit], sizes: Mapping[str, int]) -> tuple[EditKind, dict[str, Any]]:
    """What was done to the model, with JSON-ready facts; `sizes[name]`: elements of the tensor.

    Adapter: every changed tensor has a low-rank change; others: more than half of the changed elements. A cast
    counts only where nothing else was done, tensors that stayed equal not at all.
    """
    counts = Counter(item.kind for item in changes.values())
    changed = {name: item for name, item in changes.items() if item.kind != "equal"}
    telling = {name: item for name, item in changed.items() if item.kind != "cast"} or changed
    weight: Counter[EditKind] = Counter()
    for name, item in telling.items():
        weight[item.kind] += sizes[name]
    kind, most = max(weight.items(), key=lambda pair: pair[1], default=("equal", 1))
    share = most / max(1, weight.total())
    if share <= 0.5 or (kind == "adapter" and len(weight) > 1):
        kind = "other"
    facts: dict[str, Any] = {"tensors": dict(counts), "share": share if changed else 1.0}
    members = {name: item for name, item in telling.items() if item.kind == kind}

    def mean(values: Mapping[str, float]) -> float:
        return sum(sizes[n] * v for n, v in values.items()) / max(1, sum(sizes[n] for n in values))

    def common(values: Mapping[str, Any]) -> Any:
        votes: Counter[Any] = Counter()
        for name, value in values.items():
            votes[value] += sizes[name]
        return votes.most_common(1)[0][0]

    if lattices := {name: item.lattice for name, item in members.items() if item.lattice}:
        best = common({name: (found.bits, found.scheme, found.symmetric) for name, found in lattices.items()})
        facts |= dict(zip(("bits", "scheme", "symmetric"), best, strict=True))
    if casts := {name: item.cast for name, item in changed.items() if item.cast}:
        facts["cast"] = common(casts)
        if kind == "quantized" and not lattices:
            facts |= {"bits": 8, "scheme": facts["cast"]}
    if removed := {name: item.pruned for name, item in members.items() if item.pruned}:
        facts |= {
            "zeros": mean({n: p.zeros for n, p in removed.items()}),
            "kept_equal": mean({n: p.kept_equal for n, p in removed.items()}),
            "magnitude": all(p.magnitude for p in removed.values()),
            "two_four": all(p.two_four for p in removed.values()),
        }
    if ranks := [item.rank for item in members.values() if item.rank]:
        facts |= {"rank": max(ranks), "ranks": sorted(set(ranks)), "low_rank_tensors": len(ranks)}
    if noises := {name: item.noise for name, item in members.items() if item.noise is not None}:
        facts["noise"] = mean(noises)
    return kind, facts


def rounding_lattice(rows: Tensor) -> Lattice | None:
    """The coarsest uniform rounding lattice of at most 8 bits that holds the values, v = s·(q − z) per group.

    rows: (rows, width). Every distinct level must be met within the storage's precision τ (in steps); an unrounded
    value would meet one with chance 2τ, and the product of these chances must be below e^SURE. Values that 8-bit
    floats hold as they are count as cast.
    """
    rows = rows[:: max(1, -(-len(rows) // (4 * GROUPS)))]
    if not bool(torch.isfinite(rows).all()) or any(_holds(rows, name) for name in _LARGEST):
        return None
    precision = _precision(rows)
    found: list[Lattice] = []
    for scheme, groups in _groupings(rows):
        for offset in (False, True):
            if fit := _fit(groups, precision, offset):
                found.append(_describe(scheme, fit, offset, precision))
                if precision == "F32":
                    return found[0]
    # a fine lattice explains the few coarse levels of many groups by accident where values were rounded again
    widest = max((item.step for item in found), default=0.0)
    return next((item for item in found if item.step >= SAME_STEP * widest), None)


def cast_dtype(child: Tensor, parent: Tensor) -> str | None:
    """The dtype T for which child = T(parent), or s·T(parent/s) with s = max|parent|/max T for 8-bit floats.

    child, parent: (rows, width); s over the tensor or each row. At least EXACT of the elements, and of those that
    T changes. None where both are equal or T changes nothing.
    """
    step = max(1, -(-child.numel() // CELLS))
    widest = parent.abs().amax(1, keepdim=True)
    precision = _precision(child)
    wide = child.shape[1] >= 64 * step
    c, p, top = (t[:, ::step] if wide and t.shape[1] > 1 else t if wide else t[::step] for t in (child, parent, widest))
    for name in _DTYPES:
        scales = [torch.ones(())]
        if name in _LARGEST:
            scales += [widest.amax() / _LARGEST[name], top / _LARGEST[name]]
        for scale in scales:
            scale = scale.clamp_min(1e-30)
            rounded = _round(p / scale, name) * scale
            slack = 0.0 if scale.ndim == 0 and float(scale) == 1 else 2 * _HALF_ULP[precision]
            met = (c - rounded).abs() <= slack * rounded.abs()
            moved = (p - rounded).abs() > slack * rounded.abs()
            if bool(moved.any()) and min(met.float().mean(), met[moved].float().mean()) >= EXACT:
                return name
    return None


def detect_pruning(child: Tensor, parent: Tensor) -> Pruning | None:
    """Zeros of the child that the parent has not, #{c = 0 ≠ p}/n; None below NEW_ZEROS. Both (rows, width)."""
    gone = (child == 0) & (parent != 0)
    zeros = float(gone.float().mean())
    if zeros < NEW_ZEROS:
        return None
    kept = child != 0
    same = (child == parent) | (child == _round(parent, _precision(child)))
    part = slice(None, None, max(1, len(child) // BLOCK))
    size, out = parent[part, : BLOCK * 4].abs(), child[part, : BLOCK * 4] == 0
    fours = size.shape[1] // 4 * 4
    four_out = out[:, :fours].reshape(-1, 4)
    two_four = fours > 0 and float((four_out.sum(1) == 2).float().mean()) >= EXACT
    ways = [(size.reshape(1, -1), out.reshape(1, -1)), (size, out)]
    ways += [(size[:, :fours].reshape(-1, 4), four_out)] if two_four else []
    return Pruning(zeros, any(_smallest(*way) for way in ways), float(same[kept].float().mean()), two_four)


def low_rank_update(child: Tensor, parent: Tensor) -> int | None:
    """Numerical rank r of child − parent, at most 3/4 of its live rows or columns; None without a clear one.

    child, parent: (rows, width). Rounding the child leaves independent errors of variance v = ulp²/12, whose
    largest singular value is near max_i √Σ_j v_ij + max_j √Σ_i v_ij: r values lie above, by a clear gap.
    """
    moved = child != parent  # dead inputs and units never move: no sign of an adapter
    rows, columns = (moved.any(axis).nonzero().flatten() for axis in (1, 0))
    rows, columns = (index[:: -(-len(index) // BLOCK) or 1] for index in (rows, columns))
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
    decay = float((spectrum[: rank - 1] / spectrum[1:rank]).max()) if rank > 1 else LONE / 2
    return rank if float(spectrum[rank - 1]) >= edge * max(GAP, 2 * decay) else None


def added_noise(child: Tensor, parent: Tensor) -> float | None:
    """sd(δ)/sd(parent) if δ = child − parent looks like white noise put there on purpose, else None.

    child, parent: (rows, width). Independent equal entries: mean 0, kurtosis 3 or 1.8, row and column energies and
    the largest singular value sd·(√rows + √width) as chance has them, uncorrelated with the parent and its size.
    """
    part = tuple(slice(None, None, -(-n // BLOCK) or 1) for n in child.shape)
    p, c = parent[part].double(), child[part].double()
    delta = c - p
    n, sd = delta.numel(), float(delta.std())
    if min(delta.shape) < 16 or n < 1024 or sd < 4 * float(_ulp(c, _precision(child)).square().mean().sqrt()):
        return None  # too small to tell, or no more than what rounding does
    delta = delta / sd
    kurtosis = float(delta.pow(4).mean())
    bell = abs(kurtosis - 3.0) <= CHANCE * math.sqrt(24 / n)
    box = abs(kurtosis - 1.8) <= CHANCE * math.sqrt(2 / n)
    even = all(_even(delta.square().mean(axis), delta.shape[axis], kurtosis) for axis in (0, 1))
    free = all(abs(_correlation(a, b)) <= CHANCE / math.sqrt(n) for a, b in ((delta, p), (delta.abs(), p.abs())))
    if not ((bell or box) and even and free and abs(float(delta.mean())) <= CHANCE / math.sqrt(n)):
        return None
    root = [math.sqrt(side) for side in delta.shape]
    width = sum(root) * (1 / root[0] + 1 / root[1]) ** (1 / 3)  # Tracy and Widom's scale of the largest σ²
    top = float(torch.linalg.matrix_norm(delta, ord=2)) ** 2
    return sd / float(p.std()) if top <= sum(root) ** 2 + CHANCE * width else None


def _holds(values: Tensor, name: str) -> bool:
    return torch.equal(_round(values, name), values)


def _round(values: Tensor, name: str) -> Tensor:
    """Values rounded to a dtype and back; 8-bit floats saturate."""
    if name == "F32":
        return values
    if name in _LARGEST:
        values = values.clamp(-_LARGEST[name], _LARGEST[name])
    return values.to(_DTYPES[name]).float()


def _precision(values: Tensor) -> str:
    """The coarsest of BF16, F16, F32 that holds the values, whatever they are stored in."""
    return next((name for name in ("BF16", "F16") if _holds(values, name)), "F32")


def _ulp(values: Tensor, precision: str) -> Tensor:
    """Distance between neighbouring numbers of that precision at each value."""
    exponent = torch.frexp(values)[1].double()
    return torch.exp2(exponent) * _HALF_ULP[precision] * (values != 0) + 2 * _SMALLEST[precision]


def _groupings(rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each scheme's groups of values, ≤ GROUPS of ≤ SAMPLE values and the two extremes; coarsest first."""
    height, width = rows.shape
    ways = [("row", rows), ("column", rows.T)] if height >= 16 else [("row", rows)]
    ways += [(f"group {n}", rows.reshape(-1, n)) for n in (128, 64, 32) if width > n and width % n == 0]
    for scheme, groups in ways:
        groups = groups[:: max(1, len(groups) // GROUPS)][:GROUPS].double()
        some = groups[:, :: -(-groups.shape[1] // SAMPLE)]
        yield scheme, torch.cat([some, groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)], 1)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Per group that has more than one level: its scale and the integers of its lowest and highest value, (groups,)."""

    step: Tensor
    low: Tensor
    high: Tensor


def _fit(groups: Tensor, precision: str, offset: bool) -> _Fit | None:
    """The smallest number of steps that explains each group; None if some are left over or chance would do.

    groups: (groups, values) float64. Anchored at zero and the largest value, or at the lowest and the highest.
    """
    steps, lows, highs, evidence, missed = [], [], [], 0.0, 0
    for part in groups.split(CHUNK):
        origin = part.amin(1) if offset else torch.zeros(len(part), dtype=torch.float64)
        reach = part.amax(1) - origin if offset else part.abs().amax(1)
        live = reach > 0
        part, origin, reach = part[live], origin[live, None], reach[live, None]
        tries = torch.arange(1.0, LEVELS + 1, dtype=torch.float64)
        share = (part - origin) / reach
        place = share[:, None] * tries[:, None]  # in steps, (groups, tries, values)
        size = part.abs() + (origin.abs() * (1 - share) + (origin + reach).abs() * share if offset else part.abs())
        largest = part.abs().amax(1, keepdim=True)
        error = 1.01 * _HALF_ULP[precision] * size + 8 * _HALF_ULP["F32"] * largest + 2 * _SMALLEST[precision]
        slack = (error / reach)[:, None] * tries[
            :, None
        ]  # rounding of the value and its anchors (1 %: second order), in steps
        level = place.round()
        met = ((place - level).abs() <= slack) | (part == 0)[:, None]
        # values rounded again may lie one level off at the ends, hence + 1
        good = met.all(2) & (level.amax(2) - level.amin(2) <= LEVELS + 1)
        missed += int((~good.any(1)).sum())
        if missed > len(groups) // 50:
            return None
        first = good.int().argmax(1)
        for i in good.any(1).nonzero().flatten().tolist():
            own, chance = level[i, first[i]], (2 * slack[i, first[i]]).clamp(max=1.0)
            known = own[share[i].abs().argmax()]
            used = torch.where(part[i] == 0, known, own)  # zeros may come from pruning and prove nothing
            distinct, index = torch.unique(used, return_inverse=True)
            worst = torch.zeros(len(distinct), dtype=torch.float64).scatter_reduce(0, index, chance, "amax")
            free = (distinct != known) & (distinct != 0)
            evidence += min(0.0, math.log(int(first[i]) + 1) + float(worst[free].log().sum()))
            if len(own.unique()) > 1:
                steps.append(float(reach[i]) / float(tries[first[i]]))
                lows.append(float(own.min()))
                highs.append(float(own.max()))
    return _Fit(*(torch.tensor(v) for v in (steps, lows, highs))) if evidence <= SURE and steps else None


def _describe(scheme: str, fit: _Fit, offset: bool, precision: str) -> Lattice:
    """Bits from the widest range in use; one scale for all rows is a scale per tensor."""
    step = fit.step.median()
    low, high = fit.low, fit.high
    near = (fit.step / step - 1).abs() <= 4 * _HALF_ULP[precision] + 1e-5
    if scheme == "row" and len(near) > 1 and float(near.float().mean()) > 0.9:
        scheme = "tensor"
        if not offset:  # one zero for all rows: their ranges add up
            low, high = low[near].amin(0, keepdim=True), high[near].amax(0, keepdim=True)
    span = high - low
    bits = next(b for b in (*BITS, 16) if float(span.max()) < 2**b)
    skew = (torch.maximum(-low, high) > 2 ** (bits - 1)).float().mean()  # no signed integer of so many bits
    full = (span == 2**bits - 1).float().mean()  # ranges cut from minimum to maximum; symmetric ones miss an end
    return Lattice(min(bits, 8), scheme, not (offset or float(skew) > 0.1 or float(full) > 0.5), float(step))


def _smallest(size: Tensor, out: Tensor) -> bool:
    """Whether the entries that are out are the smallest of each row, but for ties. Both (rows, width)."""
    count = out.sum(1, keepdim=True)
    edge = size.sort(1).values.gather(1, (count - 1).clamp_min(0))
    return float(((size <= edge) & out).sum() / count.sum().clamp_min(1)) >= 0.99


def _even(energy: Tensor, entries: int, kurtosis: float) -> bool:
    """Whether mean squares of `entries` equal independent values each differ no more than chance, χ². (groups,)"""
    free = len(energy) - 1
    chi2 = entries / max(kurtosis - 1.0, 1e-9) * float((energy / energy.mean() - 1).square().sum())
    return chi2 <= free + CHANCE * math.sqrt(2 * free)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
