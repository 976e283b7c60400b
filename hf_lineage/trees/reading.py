"""Models of one architecture, read once: from checkpoints to `PairStatistics`, and what was done to single models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..architecture.align import Alignment
from ..architecture.describe import Architecture, short_names
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.view import View
from ..weights.edits import ONE_WAY, EditKind, detect_edit, summarise_edits
from ..weights.evidence import MAX_BROKEN_SHARE, orders_read
from ..weights.permutation_test import pair_log10_p, unit_products
from ..weights.reader import Readings
from .pair_statistics import Matrix, PairStatistics, compute_pair_statistics
from .pair_statistics import products as inner_products

MAX_LATTICE_VALUES = 512  # different values in a row, below which they lie on a lattice
MAX_DISTINCT_SHARE = 0.95  # share of different values in a row: floats have hardly any twice
MIN_PRUNED_SHARE = 0.05  # share of zeros that training does not make


@dataclass(frozen=True, eq=False)
class AlignedModels:
    """One architecture's different models, as numbers 0, 1, … of `statistics`; `copies[i]`: those that are the same as
    number i.

    `indices[i]`: number i among the models that were read, of which the first, the pivot, is the child of `readings`;
    `alignments[index − 1]` is how another one lines up with it.
    """

    models: tuple[View, ...]
    copies: tuple[tuple[View, ...], ...]
    indices: tuple[int, ...]
    alignments: tuple[Alignment, ...]
    architecture: Architecture
    readings: Readings
    statistics: PairStatistics
    seed: int
    _seen: dict[int, frozenset[str]] = field(default_factory=dict)

    def units(self, i: int) -> dict[str, torch.Tensor]:
        """The kept rows of every matrix of number i."""
        return {m.name: self.readings.units.matrix(self.indices[i], m.name) for m in self.statistics.matrices}

    def test(self, i: int, j: int) -> float | None:
        """log10 p of the permutation test between two models (`pair_log10_p`); None where it does not apply."""
        ours, theirs = self.units(i), self.units(j)
        groups = orders_read(self.readings, self.architecture, ours.keys())
        products = {
            order: unit_products([ours[name] for name in names], [theirs[name] for name in names])
            for order, names in groups.items()
        }
        return pair_log10_p(products, self.seed)

    def equal(self, i: int, j: int) -> bool:
        """Whether two trunks are the same numbers in all that was read, so that only their heads differ."""
        ours, theirs = self.units(i), self.units(j)
        return all(torch.equal(ours[name], theirs[name]) for name in ours) and self._distance(i, j) == 0

    def _distance(self, i: int, j: int) -> float:
        """Σd² over the trunk; what rounding leaves of equal sums counts as nothing."""
        total = 0.0
        for name in self.architecture.trunk:
            rows = _rows(self.readings, name, (self.indices[i], self.indices[j]))
            if rows is not None:
                total += _square(self.readings.moments[name].gram, *rows)
        return total

    def one_way(self, i: int, j: int) -> bool | None:
        """Whether what was done runs from i to j only (True), from j to i only (False); None where it may be either."""
        for a, b, answer in ((i, j, True), (j, i, False)):
            if self.vocabulary_growth(a, b) or self.change(a, b)[0] in ONE_WAY:
                return answer
        return None

    def vocabulary_growth(self, i: int, j: int) -> tuple[int, int] | None:
        """(rows in i, rows in j) of a token table that grew from i to j."""
        for name in self.architecture.trunk:
            before, after = (self._tokens(self.indices[k], name) for k in (i, j))
            if before and after and before < after:
                return before, after
        return None

    def _tokens(self, place: int, name: str) -> int:
        own = max((a.grown[name][0] for a in self.alignments if name in a.grown), default=0)
        grown = self.alignments[place - 1].grown if place else {}
        return grown[name][1] if name in grown else own

    def change(self, i: int, j: int) -> tuple[EditKind, dict[str, Any]]:
        """What was done to i to get j (`weights/edits.py`); looked at only where j has marks that i has not."""
        if not self._traces(j) - self._traces(i):
            return "other", {}
        made, start = self.units(j), self.units(i)
        sizes = {m.name: m.size for m in self.statistics.matrices}
        return summarise_edits({name: detect_edit(made[name], start[name]) for name in sizes}, sizes)

    def _traces(self, i: int) -> frozenset[str]:
        if i not in self._seen:
            self._seen[i] = compression_marks([*self.units(i).values()])
        return self._seen[i]


def _rows(readings: Readings, name: str, places: Sequence[int]) -> tuple[int, int] | None:
    """Rows of two models in the moments of a tensor, None where one of them lacks it."""
    if name not in readings.moments or any(p and p - 1 not in readings.candidates_with[name] for p in places):
        return None
    i, j = (readings.row(name, p - 1) if p else 0 for p in places)
    return i, j


def _square(gram: np.ndarray, i: int, j: int) -> float:
    """Σ(xᵢ − xⱼ)² from sums around the pivot, row 0."""
    if 0 in (i, j):
        return float(gram[i or j, i or j]) if i != j else 0.0
    away = gram[i, i] + gram[j, j] - 2 * gram[i, j]
    return 0.0 if away <= 1e-12 * (gram[i, i] + gram[j, j]) else float(away)


def compression_marks(matrices: Sequence[torch.Tensor]) -> frozenset[str]:
    """Traces that rounding and pruning leave on a model's own weights: `coarse`, `half`, `sparse`."""
    found = set()
    if sum(int((m == 0).sum()) for m in matrices) > MIN_PRUNED_SHARE * sum(m.numel() for m in matrices):
        found.add("sparse")
    if all(m[:1].unique().numel() < min(MAX_LATTICE_VALUES, MAX_DISTINCT_SHARE * m[:1].numel()) for m in matrices):
        found.add("coarse")
    if all(torch.equal(m, m.bfloat16().float()) or torch.equal(m, m.half().float()) for m in matrices):
        found.add("half")
    return frozenset(found)


def defects(readings: Readings, architecture: Architecture, models: Sequence[Checkpoint]) -> dict[int, str]:
    """Model → why it cannot take part: unreadable, or mostly NaN, Inf or zeros."""
    found: dict[int, str] = {i + 1: error.note for i, error in readings.failed.items()}
    trunk = [name for name in architecture.trunk if name in readings.moments]
    total = sum(models[0][name].count for name in trunk)
    for i in range(len(models)):
        if 0 in found:  # what was measured from it says nothing of the others: their kept rows do
            read = [name for name in trunk if name in readings.units]
            held = [name for name in read if i == 0 or i - 1 in readings.candidates_with[name]]
            bad = [name for name in held if not _sound(readings.units.matrix(i, name))]
            total = sum(models[0][name].count for name in held)
        else:
            bad = [name for name in trunk if not finite(readings, name, i)]
        if i not in found and sum(models[0][name].count for name in bad) >= MAX_BROKEN_SHARE * max(1, total):
            found[i] = f"{len(bad)} tensors hold NaN, Inf or only zeros"
    return found


def _sound(matrix: torch.Tensor) -> bool:
    return bool(matrix.isfinite().all() and matrix.any())


def finite(readings: Readings, name: str, i: int) -> bool:
    if i == 0:
        return readings.child_usable(name)
    if i - 1 not in readings.candidates_with[name]:
        return True
    moments, row = readings.moments[name], readings.row(name, i - 1)
    own = moments.gram[0, 0] + 2 * moments.gram[0, row] + moments.gram[row, row]
    return bool(np.isfinite(own) and own > 0)


def common_matrices(readings: Readings, architecture: Architecture, models: Sequence[Checkpoint]) -> list[str]:
    """Matrices of the trunk that all models have, finite in all, of which rows were kept."""
    return [
        name for name in architecture.trunk
        if name in readings.units and len(models[0][name].shape) > 1
        and len(readings.candidates_with[name]) == len(models) - 1
        and all(finite(readings, name, i) for i in range(len(models)))
    ]  # fmt: skip


def distinct_models(
    readings: Readings, architecture: Architecture, models: Sequence[View], alignments: Sequence[Alignment], seed: int
) -> AlignedModels | None:
    """Everything about the different ones of the models that were read; None where they share no matrix."""
    names = common_matrices(readings, architecture, models)
    if not names:
        return None
    copies = _copies(readings, models, names)
    places = [same[0] for same in copies]
    found, grams = [], []
    for name in names:
        size = models[0][name].count
        found.append(Matrix(name, size, torch.stack([readings.units.matrix(place, name) for place in places])))
        rows = [readings.row(name, place - 1) if place else 0 for place in places]
        grams.append(inner_products(readings.moments[name], rows, size))
    return AlignedModels(
        tuple(models[place] for place in places), tuple(tuple(models[i] for i in same[1:]) for same in copies),
        tuple(places), tuple(alignments), architecture, readings, compute_pair_statistics(found, grams), seed,
    )  # fmt: skip


def _copies(readings: Readings, models: Sequence[View], names: Sequence[str]) -> list[list[int]]:
    """Models that are the same in every tensor, the heads included: each list begins with the one that stands for
    it."""
    similar: dict[bytes, list[int]] = {}
    for i in range(len(models)):
        digest = hashlib.sha256()
        for name in names:
            digest.update(readings.units.matrix(i, name).numpy().tobytes())
        similar.setdefault(digest.digest(), []).append(i)
    groups: list[list[int]] = []
    for members in similar.values():
        found: list[list[int]] = []
        for i in members:
            home = next((group for group in found if _same(readings, models, group[0], i)), None)
            if home is None:
                found.append([i])
            else:
                home.append(i)
        groups += found
    return sorted(groups)


def _same(readings: Readings, models: Sequence[View], i: int, j: int) -> bool:
    ours, theirs = (
        {short: models[k][name].shape for name, short in short_names(models[k].architecture.weights).items()}
        for k in (i, j)
    )
    if ours != theirs:
        return False
    for name in readings.moments:
        rows = _rows(readings, name, (i, j))
        present = [k == 0 or k - 1 in readings.candidates_with[name] for k in (i, j)]
        if rows is not None and _square(readings.moments[name].gram, *rows) > 0:
            return False
        if rows is None and any(present):  # a head of another shape
            return False
    # heads that the pivot has no partner for were not read: they may differ
    read = {short for name, short in short_names(readings.moments).items() if _rows(readings, name, (i, j))}
    return ours.keys() <= read
