"""The evidence `weights`: distances, tests and positions of every candidate, from one pass over the aligned weights.

The arithmetic is in `moments.py`, `permutation_test.py`, `direction.py` and `mutual_information.py`; here it is asked
of each candidate and put together. How probabilities come of it is in `tasks/calibration.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..answers.base import Evidence
from ..architecture.describe import Architecture, Shaped
from ..errors import Note
from .direction import Position, origin_position, residual_asymmetry, residual_dependences
from .moments import Moments
from .mutual_information import mutual_information
from .permutation_test import PermutationTest, pair_test, unit_products
from .reader import Readings

MAX_MARGIN = 1e6  # stands for an infinite margin, since JSON holds finite numbers only
MAX_BROKEN_SHARE = 0.5  # of a candidate's trunk in NaN, Inf or zeros, from which it is not compared


@dataclass(frozen=True, slots=True, eq=False)
class WeightsEvidence(Evidence):
    """One candidate against the child, from the weights alone. Distances are per weight: sqrt(Σd²/Σn).

    distance, distance_stderr: over the tensors that all candidates have, with its standard error under sampling.
    moved: sqrt(Σd²/Σ|candidate|²), the change relative to the candidate's own norm. test, mantel: the permutation test
    over hidden units, and the Mantel test, which does not depend on the order of hidden units; None where they do not
    apply or were not needed. tests: how many of them apply to this architecture. equal: tensors that do not differ in
    what was read. compared, left_out: tensors that were used, and those with NaN, Inf or nothing but zeros.

    Over the matrices of the trunk: correlation, the mean of their correlations with the child, weighted by `entries`,
    the number of entries read; changed_entries, of the matrices that differ; margin = log(distance of the nearest other
    candidate / own distance), 0 without another one, and margin_z, the gap of the two squared distances in standard
    errors; origin, the position of the origin, and residual_asymmetry, of the nearest candidate only
    (`direction.py`); information, in nats (`mutual_information.py`), None of a sample.
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
    origin: Position | None = None
    residual_asymmetry: float | None = None
    information: float | None = None
    mantel: PermutationTest | None = None
    tests: int = 1

    @property
    def log10_p(self) -> float | None:
        """log10 p of all tests that apply, by Šidák: p = 1 − (1 − min p)^tests (Šidák 1967). None where none
        applies."""
        best = self._smallest_p()
        if best is None or self.tests == 1:
            return None if best is None else best.log10_p
        if best.log10_p < -8:
            return best.log10_p + math.log10(self.tests)
        return math.log10(-math.expm1(self.tests * math.log1p(-min(best.p, 1 - 1e-15))))

    @property
    def p_method(self) -> Literal["proven", "monte_carlo"] | None:
        """How the smallest p-value was computed."""
        best = self._smallest_p()
        return best.method if best else None

    @property
    def at_floor(self) -> bool:
        """Whether the true p may be smaller than so many random draws can show."""
        best = self._smallest_p()
        return best is not None and best.at_floor

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


@dataclass(frozen=True, slots=True)
class WeightsComparison:
    """The evidence for all candidates that could be compared, by number, and why the others were not.

    child_defects: tensors of the child that cannot be used, "zeros" or "broken" (NaN or Inf). gram: (M + 1, M + 1),
    over the matrices of the trunk that all of them have, scaled to full size: row 0 the child, then the differences of
    the candidates in `evidence` from it, as in `Moments`.
    """

    evidence: dict[int, WeightsEvidence]
    refused: dict[int, Note]
    child_defects: dict[str, str]
    gram: np.ndarray


def compare_weights(
    readings: Readings, architecture: Architecture, child: Mapping[str, Shaped], candidates: int, *, seed: int
) -> WeightsComparison:
    """The evidence for every candidate; distances are taken over the tensors that all of them have.

    readings: of the child and `candidates` candidates. child: its tensors. Heads count for equality only.
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
    common = [
        name for name in architecture.trunk
        if name in readings.moments
        and all(i in readings.candidates_with[name] and readings.usable(name, i) for i in compared)
    ]  # fmt: skip
    evidence = {i: _evidence(readings, architecture, counts, i, common, seed) for i in compared}
    matrices = [name for name in common if len(child[name].shape) > 1]
    gram, gap, error = _pooled_gram(readings, matrices, counts, compared)
    complete = all(readings.moments[name].count == counts[name] for name in matrices)
    nearest = min(compared, key=lambda i: evidence[i].distance or 0.0, default=None)
    for row, i in enumerate(compared, start=1):
        evidence[i] = replace(
            evidence[i], residual_asymmetry=_residual_asymmetry(readings, matrices, i) if i == nearest else None,
            information=_information(readings, matrices, i) if complete else None,
            **_origin(readings, matrices, counts, i),
            **_margin(gap[row, 1:], error[row, 1:], row - 1, gram[row, row]), **_correlation(readings, matrices, i),
        )  # fmt: skip
    return WeightsComparison(evidence, refused, child_defects, gram)


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
        return unit_products([ours(name) for name in groups[order]], theirs)

    return pair_test(products, groups, seed)


def orders_read(readings: Readings, architecture: Architecture, usable: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Hidden-unit order → those of its usable matrices of which the same rows were kept."""
    groups: dict[str, tuple[str, ...]] = {}
    for order, names in architecture.orders.items():
        names = tuple(name for name in names if name in readings.units and name in usable)
        names = tuple(name for name in names if readings.units.rows[name] == readings.units.rows[names[0]])
        if names:
            groups[order] = names
    return groups


def _evidence(
    readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidate: int, common: Sequence[str],
    seed: int,
) -> WeightsEvidence:  # fmt: skip
    present = [name for name, having in readings.candidates_with.items() if candidate in having]
    usable = tuple(name for name in present if readings.usable(name, candidate))
    trunk = [name for name in usable if name not in architecture.heads]
    distance, stderr, norm = _distance(readings, common or trunk, counts, candidate)
    gram = {name: readings.moments[name].gram[(readings.row(name, candidate),) * 2] for name in present}
    return WeightsEvidence(
        distance,
        stderr,
        distance / norm if distance is not None and norm else 0.0,
        candidate_test(readings, architecture, candidate, usable, seed),
        frozenset(name for name in present if gram[name] == 0.0),
        usable,
        tuple(name for name in present if name not in usable),
        _blocks(readings, architecture, trunk, counts, candidate),
        {name: _tensor(readings.moments[name], readings.row(name, candidate)) for name in sorted(usable)},
    )


def _pooled_gram(
    readings: Readings, names: Sequence[str], counts: Mapping[str, int], compared: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over the matrices, each scaled to full size: the Gram matrix, the gaps of squared distances, and their errors."""
    gram, variance = np.zeros((len(compared) + 1,) * 2), np.zeros((len(compared) + 1,) * 2)
    for name in names:
        moments = readings.moments[name]
        rows = [0, *(readings.row(name, i) for i in compared)]
        gram += moments.gram[np.ix_(rows, rows)] * (counts[name] / moments.count)
        variance += (moments.gap_stderr(counts[name])[np.ix_(rows, rows)] * counts[name]) ** 2
    square = np.diag(gram)
    return gram, square[None, :] - square[:, None], np.sqrt(variance)


def _origin(readings: Readings, names: Sequence[str], counts: Mapping[str, int], candidate: int) -> dict[str, Any]:
    """The origin's position between candidate and child, over the matrices that changed: the step is 0 in the
    others."""
    gram, entries = np.zeros((2, 2)), 0
    for name in names:
        moments, rows = readings.moments[name], [0, readings.row(name, candidate)]
        if moments.gram[rows[1], rows[1]] > 0:
            gram += moments.gram[np.ix_(rows, rows)] * (counts[name] / moments.count)
            entries += moments.count
    return {"origin": origin_position(gram, 1), "changed_entries": entries}


def _margin(gap: np.ndarray, error: np.ndarray, itself: int, square: float) -> dict[str, Any]:
    """How much farther the nearest other candidate is (negative: nearer); `gap`, `error` of all, `square` the own
    d²."""
    others = np.delete(np.arange(len(gap)), itself)
    if not len(others):
        return {"margin": 0.0, "margin_z": 0.0}
    nearest = others[np.argmin(gap[others])]
    other = square + gap[nearest]
    margin = 0.5 * math.log(other / square) if other > 0 and square > 0 else MAX_MARGIN * np.sign(other - square)
    z = gap[nearest] / error[nearest] if error[nearest] > 0 else MAX_MARGIN * np.sign(gap[nearest])
    return {
        "margin": float(np.clip(margin, -MAX_MARGIN, MAX_MARGIN)),
        "margin_z": float(np.clip(z, -MAX_MARGIN, MAX_MARGIN)),
    }


def _correlation(readings: Readings, names: Sequence[str], candidate: int) -> dict[str, Any]:
    known = [(m.count, float(m.correlation()[readings.row(n, candidate)])) for n in names if (m := readings.moments[n])]
    known = [(count, r) for count, r in known if math.isfinite(r)]
    entries = sum(count for count, _ in known)
    return {"entries": entries, "correlation": sum(count * r for count, r in known) / entries if entries else 0.0}


def _residual_asymmetry(readings: Readings, names: Sequence[str], candidate: int) -> float | None:
    """Of the matrices whose rows were kept, weighted by size; None where none of them changed."""
    total, sums = 0, np.zeros(2)
    for name in names:
        if name in readings.units:
            child, other = (readings.units.matrix(model, name) for model in (0, candidate + 1))
            if not torch.equal(child, other):
                total += child.numel()
                sums += child.numel() * np.array(residual_dependences(child, other))
    return residual_asymmetry(float(sums[0] / total), float(sums[1] / total), total) if total else None


def _information(readings: Readings, names: Sequence[str], candidate: int) -> float | None:
    """The mutual information with the child over the matrices whose rows were kept; None where there are none."""
    kept = [name for name in names if name in readings.units]
    units = readings.units
    return sum(mutual_information(units.matrix(0, n), units.matrix(candidate + 1, n)) for n in kept) if kept else None


def _broken_share(readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidate: int) -> float:
    """Share of the trunk that is usable in the child and not in the candidate."""
    trunk = [
        name for name, having in readings.candidates_with.items()
        if candidate in having and name not in architecture.heads and readings.child_usable(name)
    ]  # fmt: skip
    total = sum(counts[name] for name in trunk)
    return sum(counts[name] for name in trunk if not readings.usable(name, candidate)) / total if total else 0.0


def _distance(
    readings: Readings, names: Sequence[str], counts: Mapping[str, int], candidate: int
) -> tuple[float | None, float, float]:
    """sqrt(Σd²/Σn), its standard error under sampling, and sqrt(Σ|candidate|²/Σn), scaled up tensor by tensor."""
    square = variance = norm = 0.0
    total = sum(counts[name] for name in names)
    for name in names:
        moments, row = readings.moments[name], readings.row(name, candidate)
        square += counts[name] * moments.gram[row, row] / moments.count
        norm += counts[name] * moments.squared_norms()[row] / moments.count
        variance += (counts[name] * moments.distance2_stderr(counts[name])[row]) ** 2
    if not total:
        return None, 0.0, 0.0
    distance = math.sqrt(square / total)
    stderr = math.sqrt(variance) / total / (2 * distance) if distance else 0.0
    return distance, stderr, math.sqrt(norm / total)


def _tensor(moments: Moments, row: int) -> dict[str, float]:
    return {
        "distance": math.sqrt(moments.gram[row, row] / moments.count),
        "correlation": float(moments.correlation()[row]),
    }


def _blocks(
    readings: Readings, architecture: Architecture, names: Sequence[str], counts: Mapping[str, int], candidate: int
) -> dict[str, dict[str, float]]:
    """Distance, relative change and mean correlation (weighted by size) of each block, in the child's order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(architecture.blocks[name], []).append(name)
    result = {}
    for block, names_of_block in groups.items():
        distance, _, norm = _distance(readings, names_of_block, counts, candidate)
        r = [(counts[n], float(readings.moments[n].correlation()[readings.row(n, candidate)])) for n in names_of_block]
        known = [(n, value) for n, value in r if math.isfinite(value)]
        result[block] = {
            "distance": distance or 0.0,
            "moved": (distance or 0.0) / norm if norm else 0.0,
            "correlation": sum(n * v for n, v in known) / sum(n for n, _ in known) if known else math.nan,
        }
    return result
