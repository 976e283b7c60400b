"""Evidence `weights`: what one pass over the aligned weights says about each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..architecture import Architecture
from .independence import IndependenceTest, combine, draw, layer_test, products
from .moments import Moments
from .reading import Readings

TOO_BAD = 0.5  # share of a candidate's trunk in NaN, Inf or zeros from which it is not judged


@dataclass(frozen=True, slots=True)
class WeightsEvidence:
    """One candidate against the child, from the weights alone. Distances are per weight: sqrt(Σd²/Σn).

    `moved` = sqrt(Σd²/Σ|candidate|²), the change relative to the candidate's own norm; `equal`: tensors without
    any difference in what was read; `bad`: tensors left out for NaN, Inf or nothing but zeros.
    """

    distance: float | None
    distance_stderr: float
    moved: float
    test: IndependenceTest | None
    equal: frozenset[str]
    compared: tuple[str, ...]
    bad: tuple[str, ...]
    blocks: dict[str, dict[str, float]]
    tensors: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The facts as the JSON contract shows them under `evidence.weights`."""
        test = self.test
        return {
            "distance": self.distance,
            "distance_stderr": self.distance_stderr,
            "moved": self.moved,
            "test": None if test is None else {
                "z": test.z, "log10_p": test.log10_p, "method": test.method, "p_monte_carlo": test.p_monte_carlo,
                "draws": test.draws, "skewness": test.skewness, "kurtosis": test.kurtosis,
                "layers": [{"order": order, "units": units, "z": z} for order, units, z in test.layers],
            },
            "blocks": self.blocks,
            "tensors": self.tensors,
            "left_out": list(self.bad),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightsComparison:
    """All candidates: `found[i]` for those that were judged, `refused[i]` why another one was not."""

    found: dict[int, WeightsEvidence]
    refused: dict[int, str]
    lost: dict[str, str]  # tensors of the child that cannot be used: "zeros" or "broken" (NaN or Inf)


def compare(
    readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidates: int, *, seed: int
) -> WeightsComparison:
    """Judge the readings of every candidate; distances are taken over the tensors all of them have.

    `counts[name]`: elements of the child's tensor. Heads take part in nothing but the question of equality.
    """
    lost = {name: readings.child_defect(name) for name in readings.moments if not readings.child_usable(name)}
    refused: dict[int, str] = {}
    for i in range(candidates):
        share = _bad_share(readings, architecture, counts, i)
        if i in readings.failed:
            refused[i] = str(readings.failed[i])
        elif share >= TOO_BAD:
            refused[i] = f"tensors with NaN, Inf or only zeros make up {100 * share:.0f} % of its weights"
    kept = [i for i in range(candidates) if i not in refused]
    common = [
        name for name in architecture.trunk
        if name in readings.moments and all(i in readings.members[name] and readings.usable(name, i) for i in kept)
    ]  # fmt: skip
    found = {i: _weigh(readings, architecture, counts, i, common, seed) for i in kept}
    return WeightsComparison(found, refused, lost)


def independence(
    readings: Readings, architecture: Architecture, candidate: int, usable: Sequence[str], seed: int
) -> IndependenceTest | None:
    """The permutation test over every hidden-unit order whose units were read; None where it does not apply."""
    groups: dict[str, tuple[str, ...]] = {}
    for order, names in architecture.orders.items():
        names = tuple(name for name in names if name in readings.units and name in usable)
        names = tuple(name for name in names if readings.units.rows[name] == readings.units.rows[names[0]])
        if names:
            groups[order] = names

    def matrix(order: str) -> np.ndarray:  # made again when needed: h² numbers a layer are too many to keep
        return products(*([readings.units.matrix(m, name) for name in groups[order]] for m in (0, candidate + 1)))

    def redraw(order: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        return draw(matrix(order), order, seed + 1, count)

    return combine((layer_test(order, matrix(order), seed) for order in groups), redraw)


def _weigh(
    readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidate: int, common: Sequence[str],
    seed: int,
) -> WeightsEvidence:  # fmt: skip
    own = [name for name, members in readings.members.items() if candidate in members]
    usable = tuple(name for name in own if readings.usable(name, candidate))
    trunk = [name for name in usable if name not in architecture.heads]
    distance, stderr, norm = _distance(readings, common or trunk, counts, candidate)
    gram = {name: readings.moments[name].gram[(readings.row(name, candidate),) * 2] for name in own}
    return WeightsEvidence(
        distance,
        stderr,
        distance / norm if distance is not None and norm else 0.0,
        independence(readings, architecture, candidate, usable, seed),
        frozenset(name for name in own if gram[name] == 0.0),
        usable,
        tuple(name for name in own if name not in usable),
        _blocks(readings, architecture, trunk, counts, candidate),
        {name: _tensor(readings.moments[name], readings.row(name, candidate)) for name in sorted(usable)},
    )


def _bad_share(readings: Readings, architecture: Architecture, counts: Mapping[str, int], candidate: int) -> float:
    """Share of the trunk that is usable in the child and not in the candidate."""
    trunk = [
        name for name, members in readings.members.items()
        if candidate in members and name not in architecture.heads and readings.child_usable(name)
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
    for block, members in groups.items():
        distance, _, norm = _distance(readings, members, counts, candidate)
        r = [(counts[n], float(readings.moments[n].correlation()[readings.row(n, candidate)])) for n in members]
        known = [(n, value) for n, value in r if math.isfinite(value)]
        result[block] = {
            "distance": distance or 0.0,
            "moved": (distance or 0.0) / norm if norm else 0.0,
            "correlation": sum(n * v for n, v in known) / sum(n for n, _ in known) if known else math.nan,
        }
    return result
