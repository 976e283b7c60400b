"""The evidence `weights`: distances, tests and positions of every candidate, from one pass over the aligned weights.

The arithmetic is in `moments.py`, `permutation_test.py`, `direction/origin.py` and `mutual_information.py`; here it is
asked of each candidate and put together. How probabilities come of it is in `tasks/calibration.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..answers.base import Evidence
from ..answers.lineage import PMethod
from ..architecture.describe import Architecture, Shaped
from ..errors import Note
from ..parallel import shared
from .direction.origin import OriginPosition, origin_position, residual_asymmetry, residual_dependences
from .moments import Moments
from .mutual_information import mutual_information
from .permutation_test import PermutationTest, pair_test, sidak, unit_products
from .reader import LINED_UP, Readings

MAX_MARGIN = 1e6  # stands for an infinite margin, since JSON holds finite numbers only
RELATED_CORRELATION = 0.1  # mean correlation from which a residual asymmetry is worth its time
AMPLE_Z = 5.0  # deviations at which a relative of that correlation must stand for a test to have ample power
MAX_BROKEN_SHARE = 0.5  # of a candidate's trunk in NaN, Inf or zeros, from which it is not compared


@dataclass(frozen=True, slots=True, eq=False)
class WeightsEvidence(Evidence):
    """One candidate against the child, from the weights alone. Distances are per weight: sqrt(Σd²/Σn).

    distance, distance_stderr: over the tensors that child and candidate have, heads left out; its standard error under
    sampling.
    moved: sqrt(Σd²/Σ|candidate|²), the change relative to the candidate's own norm. test, mantel: the permutation test
    over hidden units, and the Mantel test, which does not depend on the order of hidden units; None where they do not
    apply or were not needed. tests: how many of them apply to this architecture. tested_entries: weights that the first
    looks at. alternatives: ways to line the two up among which the weights chose. equal: tensors that do not differ in
    what was read. compared, left_out: tensors that were used, and those with NaN, Inf or nothing but zeros.

    Over the matrices of the trunk: correlation, the mean of their correlations with the child, weighted by `entries`,
    the number of entries read; changed_entries, of the matrices that differ; margin = log(distance of the nearest other
    candidate / own distance), 0 without another one, and margin_z, the gap of the two squared distances in standard
    errors; origin, the position of the origin, and residual_asymmetry, where the two are correlated
    (`direction/origin.py`); information, in nats (`mutual_information.py`), None of a sample.
    """

    distance: float | None
    distance_stderr: float
    moved: float
    test: PermutationTest | None
    equal: frozenset[str]
    compared: tuple[str, ...]
    left_out: tuple[str, ...]
    blocks: dict[str, dict[str, float]]
    tensors: dict[str, dict[str, float]]
    correlation: float = 0.0
    entries: int = 0
    changed_entries: int = 0
    margin: float = 0.0
    margin_z: float = 0.0
    origin: OriginPosition | None = None
    residual_asymmetry: float | None = None
    information: float | None = None
    mantel: PermutationTest | None = None
    tests: int = 1
    tested_entries: int = 0
    alternatives: int = 1

    @property
    def log10_p(self) -> float | None:
        """log10 p of all tests that apply, by Šidák: p = 1 − (1 − min p)^tests (Šidák 1967), times the alternatives of
        the alignment, at most 1 (Bonferroni). None where none applies."""
        best = self._smallest_p()
        return None if best is None else min(0.0, sidak(best.log10_p, self.tests) + math.log10(self.alternatives))

    @property
    def p_method(self) -> PMethod | None:
        """How the smallest p-value was computed."""
        best = self._smallest_p()
        return best.method if best else None

    @property
    def at_floor(self) -> bool:
        """Whether the true p may be smaller than so many random draws can show."""
        best = self._smallest_p()
        return best is not None and best.at_floor and not math.isnan(best.z)  # nan: of a matching among other pairs

    def _smallest_p(self) -> PermutationTest | None:
        return min((t for t in (self.test, self.mantel) if t), key=lambda t: t.log10_p, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The facts as the JSON contract shows them under `evidence.weights`."""
        return {
            "distance": self.distance,
            "distance_stderr": self.distance_stderr,
            "moved": self.moved,
            "correlation": self.correlation,
            "entries": self.entries,
            "changed_entries": self.changed_entries,
            "margin": self.margin,
            "margin_z": self.margin_z,
            "origin": None if self.origin is None else {"t": self.origin.t, "reach": self.origin.relative_distance},
            "lean": self.residual_asymmetry,
            "information": self.information,
            "test": _test_to_dict(self.test),
            "blind": _test_to_dict(self.mantel),
            "tests": self.tests,
            "blocks": self.blocks,
            "tensors": self.tensors,
            "left_out": list(self.left_out),
        }  # fmt: skip


def _test_to_dict(test: PermutationTest | None) -> dict[str, Any] | None:
    return None if test is None else {
        "z": test.z, "log10_p": test.log10_p, "method": test.method, "p_monte_carlo": test.p_monte_carlo,
        "draws": test.draws, "log10_proven": test.log10_proven, "rank_log10_p": test.rank_log10_p,
        "layers": [{"order": order, "units": units, "z": z} for order, units, z in test.layers],
    }  # fmt: skip


Gap = tuple[float, float, float]  # d² of another candidate less the own d², its standard error, the own d²


@dataclass(frozen=True, slots=True)
class WeightsComparison:
    """The evidence for all candidates that could be compared, by number, and why the others were not.

    child_defects: tensors of the child that cannot be used, "zeros" or "broken" (NaN or Inf). pairs: what was read of
    each candidate in `evidence`. gaps: of each of these, in their order, to the others by their places.
    """

    evidence: dict[int, WeightsEvidence]
    refused: dict[int, Note]
    child_defects: dict[str, str]
    pairs: dict[int, PairReadings] = field(default_factory=dict)
    gaps: Sequence[Mapping[int, Gap]] = ()

    def margin(self, place: int, among: Collection[int]) -> tuple[float, float]:
        """`margin` and `margin_z` of one candidate, with the nearest of some others; 0 without one."""
        if not self.gaps:
            item = [*self.evidence.values()][place]
            return item.margin, item.margin_z
        found = _margin([gap for other, gap in self.gaps[place].items() if other in among])
        return found["margin"], found["margin_z"]


def compare_weights(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidates: int, *, seed: int
) -> WeightsComparison:
    """The evidence for every candidate: each against the child, over what the two have in common.

    readings: of the child and `candidates` candidates. child: its tensors. Heads count for equality only. What is said
    of a pair does not depend by a bit on the other candidates; only `margin` and `margin_z` know of them, over the
    entries that both have.
    """
    counts = {name: child[name].count for name in architecture.weights}
    child_defects = {name: readings.child_defect(name) for name in readings.moments if not readings.child_usable(name)}
    refused: dict[int, Note] = {}
    for i in range(candidates):
        share = _broken_share(readings, architecture, counts, i)
        if i in readings.failed:
            refused[i] = readings.failed[i].note
        elif share >= MAX_BROKEN_SHARE:
            broken = f"tensors with NaN, Inf or only zeros make up {100 * share:.0f} % of its weights"
            refused[i] = Note("mostly_unusable", broken)
    compared = [i for i in range(candidates) if i not in refused]
    pairs = {i: PairReadings(readings, architecture, child, i) for i in compared}
    found = shared(lambda mine: [_evidence(pairs[i], seed) for i in mine], compared)
    evidence = dict(zip(compared, found, strict=True))
    matrices = [name for name in architecture.trunk if name in readings.moments and len(child[name].shape) > 1]
    found_gaps = _gaps([*pairs.values()], matrices, counts)
    for i, gaps in zip(compared, found_gaps, strict=True):
        evidence[i] = replace(evidence[i], **_margin([*gaps.values()]))
    return WeightsComparison(evidence, refused, child_defects, pairs, found_gaps)


class PairReadings:
    """What was read of the child and one candidate, at the entries that both have.

    moments: tensor → its moments, row 0 the child, row 1 the candidate. usable: tensors that are finite and not all
    zero in both. trunk, matrices: those of them without the heads; of these those of two dimensions and more. counts:
    elements of a tensor that both have.
    """

    def __init__(
        self, readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidate: int
    ) -> None:
        self.readings, self.architecture, self.child, self.candidate = readings, architecture, child, candidate
        self.moments = readings.pairs_of(candidate)
        self.usable = tuple(name for name in self.moments if readings.usable(name, candidate))
        self.trunk = [name for name in self.usable if name not in architecture.heads]
        self.matrices = [name for name in self.trunk if len(child[name].shape) > 1]
        self.counts = {name: self._count(name) for name in self.moments}

    def _count(self, name: str) -> int:
        rows = self.readings.shared_rows.get(name, {}).get(self.candidate)
        return self.child[name].count if rows is None else rows * math.prod(self.child[name].shape[1:])

    @property
    def complete(self) -> bool:
        """Whether every entry of the matrices was read, and not a sample."""
        return all(self.moments[name].count == self.counts[name] for name in self.matrices)

    def units(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Of the matrices whose rows were kept those rows: (child's, candidate's)."""
        kept = [name for name in self.matrices if name in self.readings.units]
        return {name: self.readings.unit_pair(name, self.candidate) for name in kept}


def has_ample_power(entries: int) -> bool:
    """Whether the permutation test of so many weights would see a relative of correlation `RELATED_CORRELATION`, which
    stands r·√n deviations out."""
    return RELATED_CORRELATION * math.sqrt(entries) >= AMPLE_Z


def candidate_test(
    readings: Readings, architecture: Architecture, candidate: int, usable: Sequence[str], seed: int,
    in_place_of_child: Callable[[str], torch.Tensor] | None = None,
) -> PermutationTest | None:  # fmt: skip
    """The permutation test of child and candidate over the hidden-unit orders that were read; None: it does not apply.

    usable: the tensors that may be used. in_place_of_child(name): units that are tested instead of the child's.
    """
    ours = in_place_of_child or (lambda name: readings.units.matrix(0, name))
    groups = orders_read(readings, architecture, usable)

    def products(order: str) -> np.ndarray:
        theirs = [readings.units.matrix(candidate + 1, name) for name in groups[order]]
        within = exchangeable_within(readings, architecture, groups[order], order)
        return unit_products([ours(name) for name in groups[order]], theirs, within)

    return pair_test(products, groups, seed)


def orders_read(readings: Readings, architecture: Architecture, usable: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Hidden-unit order → those of its usable matrices of which the same rows were kept."""
    groups: dict[str, tuple[str, ...]] = {}
    usable = frozenset(usable)
    for order, names in architecture.orders.items():
        names = tuple(name for name in names if name in readings.units and name in usable)
        names = tuple(name for name in names if readings.units.rows[name] == readings.units.rows[names[0]])
        if names:
            groups[order] = names
    return groups


def exchangeable_within(
    readings: Readings, architecture: Architecture, names: Sequence[str], order: str
) -> tuple[int, ...]:  # fmt: skip
    """The group of each row that was kept, where units can be exchanged within groups only; () where all can."""
    size = architecture.groups.get(order, 0)
    return tuple(row // size for row in readings.units.rows[names[0]]) if size else ()


def _evidence(pair: PairReadings, seed: int) -> WeightsEvidence:
    """All of one pair but the margins."""
    readings, architecture, names = pair.readings, pair.architecture, pair.moments
    distance, stderr, norm = _distance(pair, pair.trunk)
    units, usable = pair.units(), frozenset(pair.usable)
    correlated = _correlation(pair)
    return WeightsEvidence(
        distance,
        stderr,
        distance / norm if distance is not None and norm else 0.0,
        candidate_test(readings, architecture, pair.candidate, pair.usable, seed),
        frozenset(name for name in names if names[name].gram[1, 1] == 0.0),
        pair.usable,
        tuple(name for name in names if name not in usable),
        _blocks(pair),
        {name: _tensor(names[name]) for name in sorted(pair.usable)},
        tested_entries=_tested_entries(readings, architecture, pair.usable),
        residual_asymmetry=_residual_asymmetry(units) if correlated["correlation"] > RELATED_CORRELATION else None,
        information=_information(units) if pair.complete else None,
        **_origin(pair), **correlated,
    )  # fmt: skip


def _tested_entries(readings: Readings, architecture: Architecture, usable: Sequence[str]) -> int:
    """Weights that the permutation test looks at."""
    groups = orders_read(readings, architecture, usable)
    return sum(readings.units.matrix(0, name).numel() for names in groups.values() for name in names)


def _gaps(pairs: Sequence[PairReadings], matrices: Sequence[str], counts: Mapping[str, int]) -> list[dict[int, Gap]]:
    """From each candidate to every other, by its place, over the matrices that the two have.

    Each matrix is looked at once, whatever the number of candidates.
    """
    own, gap, variance = (np.zeros((len(pairs), len(pairs))) for _ in range(3))
    usable = [frozenset(pair.usable) for pair in pairs]
    for name in matrices:
        here = [k for k, names in enumerate(usable) if name in names]
        if len(here) > 1:
            readings = pairs[0].readings
            moments = readings.moments[name].of([0, *(readings.row(name, pairs[k].candidate) for k in here)])
            square = np.diag(moments.gram)[1:] * (counts[name] / moments.count)
            among = np.ix_(here, here)
            own[among] += square[:, None]
            gap[among] += square[None, :] - square[:, None]
            variance[among] += (moments.gap_stderr(counts[name])[1:, 1:] * counts[name]) ** 2
    error, numbers = np.sqrt(variance), range(len(pairs))
    return [{k: (float(gap[i, k]), float(error[i, k]), float(own[i, k])) for k in numbers if k != i} for i in numbers]


def _origin(pair: PairReadings) -> dict[str, Any]:
    """The origin's position between candidate and child, over the matrices that changed: the step is 0 in the others.

    What is not correlated with the child's was replaced or stands elsewhere: no step leads from one to the other.
    """
    gram, entries = np.zeros((2, 2)), 0
    for name in pair.matrices:
        moments = pair.moments[name]
        if moments.gram[1, 1] > 0 and float(moments.correlation()[1]) >= LINED_UP:
            gram += moments.gram * (pair.counts[name] / moments.count)
            entries += moments.count
    return {"origin": origin_position(gram, 1), "changed_entries": entries}


def _margin(gaps: Sequence[Gap]) -> dict[str, Any]:
    """How much farther the nearest other candidate is (negative: nearer); `gaps` to each as `_gaps` gives them."""
    if not gaps:
        return {"margin": 0.0, "margin_z": 0.0}
    gap, error, square = min(gaps)
    other = square + gap
    margin = 0.5 * math.log(other / square) if other > 0 and square > 0 else MAX_MARGIN * np.sign(other - square)
    z = gap / error if error > 0 else MAX_MARGIN * np.sign(gap)
    return {
        "margin": float(np.clip(margin, -MAX_MARGIN, MAX_MARGIN)),
        "margin_z": float(np.clip(z, -MAX_MARGIN, MAX_MARGIN)),
    }


def _correlation(pair: PairReadings) -> dict[str, Any]:
    known = [(pair.moments[n].count, float(pair.moments[n].correlation()[1])) for n in pair.matrices]
    known = [(count, r) for count, r in known if math.isfinite(r)]
    entries = sum(count for count, _ in known)
    return {"entries": entries, "correlation": sum(count * r for count, r in known) / entries if entries else 0.0}


def _residual_asymmetry(units: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Of the matrices whose rows were kept, weighted by size; None where none of them changed."""
    total, sums = 0, np.zeros(2)
    for child, other in units.values():
        if len(child) and not torch.equal(child, other):
            total += child.numel()
            sums += child.numel() * np.array(residual_dependences(child, other))
    return residual_asymmetry(float(sums[0] / total), float(sums[1] / total), total) if total else None


def _information(units: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """The mutual information with the child over the matrices whose rows were kept; None where there are none."""
    return sum(mutual_information(child, other) for child, other in units.values()) if units else None


def _broken_share(readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidate: int) -> float:
    """Share of the trunk that is usable in the child and not in the candidate."""
    trunk = [
        name for name, having in readings.candidates_with.items()
        if candidate in having and name not in architecture.heads and readings.child_usable(name)
    ]  # fmt: skip
    total = sum(counts[name] for name in trunk)
    return sum(counts[name] for name in trunk if not readings.usable(name, candidate)) / total if total else 0.0


def _distance(pair: PairReadings, names: Sequence[str]) -> tuple[float | None, float, float]:
    """sqrt(Σd²/Σn), its standard error under sampling, and sqrt(Σ|candidate|²/Σn), scaled up tensor by tensor."""
    square = variance = norm = 0.0
    total = sum(pair.counts[name] for name in names)
    for name in names:
        moments, count = pair.moments[name], pair.counts[name]
        square += count * moments.gram[1, 1] / moments.count
        norm += count * moments.squared_norms()[1] / moments.count
        variance += (count * moments.distance2_stderr(count)[1]) ** 2
    if not total:
        return None, 0.0, 0.0
    distance = math.sqrt(square / total)
    stderr = math.sqrt(variance) / total / (2 * distance) if distance else 0.0
    return distance, stderr, math.sqrt(norm / total)


def _tensor(moments: Moments) -> dict[str, float]:
    return {
        "distance": math.sqrt(moments.gram[1, 1] / moments.count),
        "correlation": float(moments.correlation()[1]),
    }


def _blocks(pair: PairReadings) -> dict[str, dict[str, float]]:
    """Distance, relative change and mean correlation (weighted by size) of each block, in the child's order."""
    groups: dict[str, list[str]] = {}
    for name in pair.trunk:
        groups.setdefault(pair.architecture.blocks[name], []).append(name)
    result = {}
    for block, names_of_block in groups.items():
        distance, _, norm = _distance(pair, names_of_block)
        r = [(pair.counts[name], float(pair.moments[name].correlation()[1])) for name in names_of_block]
        known = [(n, value) for n, value in r if math.isfinite(value)]
        result[block] = {
            "distance": distance or 0.0,
            "moved": (distance or 0.0) / norm if norm else 0.0,
            "correlation": sum(n * v for n, v in known) / sum(n for n, _ in known) if known else math.nan,
        }
    return result
