"""Models of one architecture, read once: from checkpoints to `PairStatistics`, and what was done to each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..architecture.align import Alignment
from ..architecture.describe import Architecture, short_names
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.dtypes import FLOAT8
from ..checkpoints.entry import Packing
from ..checkpoints.view import View
from ..weights.direction.inheritance import inherited
from ..weights.direction.order import Order
from ..weights.direction.steps import order_of_rows, step_rows
from ..weights.edits import ONE_WAY, EditKind, are_added_tokens, detect_edit, summarise_edits
from ..weights.evidence import MAX_BROKEN_SHARE, exchangeable_within, orders_read
from ..weights.hidden_permutation import mantel_applies
from ..weights.history import NO_COUNTS, Past, count_values, past_of
from ..weights.permutation_test import pair_test, sidak, unit_products
from ..weights.reader import Readings
from .pair_statistics import Matrix, PairStatistics, compute_pair_statistics, step_cosines
from .pair_statistics import products as inner_products

MAX_LATTICE_VALUES = 512  # different values in a row, below which they lie on a lattice
MAX_DISTINCT_SHARE = 0.95  # share of different values in a row: floats have hardly any twice
OWN_STEP = 0.8  # median cosine of steps to siblings, above which one is a step of the model's own
MIN_PRUNED_SHARE = 0.05  # share of zeros that training does not make


@dataclass(frozen=True, eq=False)
class AlignedModels:
    """The distinct models of one architecture, aligned and read: model i of `models` is model i of `statistics`.

    copies[i]: the models that are equal to model i in every tensor.  indices[i]: the position of model i among all
    models that were read; the first of these, the pivot, is the child of `readings`, and `alignments[index − 1]` is
    how another one lines up with it.  seed: of the permutation test's draws.
    """

    models: tuple[View, ...]
    copies: tuple[tuple[View, ...], ...]
    indices: tuple[int, ...]
    alignments: tuple[Alignment, ...]
    architecture: Architecture
    readings: Readings
    statistics: PairStatistics
    seed: int
    _marks: dict[int, frozenset[str]] = field(default_factory=dict)
    _pasts: dict[int, Past] = field(default_factory=dict)
    _rows: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def units(self, i: int) -> dict[str, torch.Tensor]:
        """The kept rows of every matrix of model i: name → (rows, width) float32."""
        return {m.name: self.readings.units.matrix(self.indices[i], m.name) for m in self.statistics.matrices}

    def test(self, i: int, j: int) -> float | None:
        """log10 p of the permutation test between two models, ≤ 0 (`weights/permutation_test.py`: `pair_test`); None
        where it does not apply. Where the Mantel test applies, too, it counts as one of two, as in `trace`."""
        ours, theirs = self.units(i), self.units(j)
        groups = orders_read(self.readings, self.architecture, ours.keys())

        def products(order: str) -> np.ndarray:
            within = exchangeable_within(self.readings, self.architecture, groups[order], order)
            names = groups[order]
            return unit_products([ours[name] for name in names], [theirs[name] for name in names], within)

        found = pair_test(products, groups, self.seed)
        candidate = max(self.indices[i], self.indices[j]) - 1
        tests = 2 if mantel_applies(self.readings, self.architecture, self.models[0], candidate) else 1
        return None if found is None else sidak(found.log10_p, tests)

    def order(self, i: int, j: int) -> Order | None:
        """Who of candidate i and child j came first, by the steps between their kept rows (`trees/by_steps.py`); None
        where neither lies on a half-precision lattice, or one is packed: there no step tells."""
        if self._packings[i] or self._packings[j] or not any("half" in self._marks_of(k) for k in (i, j)):
            return None
        theirs = self._step_rows(i)
        rows = {name: (kept, theirs[name]) for name, kept in self._step_rows(j).items()}
        return order_of_rows(rows, self._past(j), self._past(i))

    def inherits(self, child: int, parent: int, base: int) -> bool | None:
        """Whether a child of `base` came from `parent`, another child of it, by the kept rows
        (`weights/direction/inheritance.py`); None where that is not shown."""
        c, p, b = (self._step_rows(k) for k in (child, parent, base))
        return inherited(((c[name], p[name], b[name]) for name in c), self._past(parent).kept_in_half)

    def moved_alone(self, i: int, others: Sequence[int]) -> bool:
        """Whether the steps from model i to the others undo a step of its own: in some matrix the cosines of their
        pairs have a median above `OWN_STEP`. All entries that were read count."""
        for name in self.architecture.trunk:
            if name not in self.readings.moments or len(self.models[0][name].shape) < 2:
                continue
            rows = [_rows(self.readings, name, (self.indices[i], self.indices[k])) for k in others]
            found = [both for both in rows if both is not None]
            if len(found) == len(others):
                squared = self.readings.moments[name].distance2()
                if np.median(step_cosines(squared, found[0][0], [row for _, row in found])) > OWN_STEP:
                    return True
        return False

    def _step_rows(self, i: int) -> dict[str, torch.Tensor]:
        """The kept rows in which steps are counted."""
        if i not in self._rows:
            kept = self.units(i)
            among = sum(matrix.numel() for matrix in kept.values())
            self._rows[i] = step_rows(kept, self._past(i), among)
        return self._rows[i]

    def _past(self, i: int) -> Past:
        """What the kept rows of one model tell of its past."""
        if i not in self._pasts:
            kept = (count_values(matrix.flatten()) for matrix in self.units(i).values())
            self._pasts[i] = past_of(sum(kept, NO_COUNTS))
        return self._pasts[i]

    def equal(self, i: int, j: int) -> bool:
        """Whether two trunks are equal in everything that was read, so that only the heads differ."""
        ours, theirs = self.units(i), self.units(j)
        return all(torch.equal(ours[name], theirs[name]) for name in ours) and self._distance(i, j) == 0

    def _distance(self, i: int, j: int) -> float:
        """Σd² over the trunk, ≥ 0; rounding errors of equal sums count as 0."""
        total = 0.0
        for name in self.architecture.trunk:
            rows = _rows(self.readings, name, (self.indices[i], self.indices[j]))
            if rows is not None:
                total += _square(self.readings.moments[name].gram, *rows)
        return total

    def one_way(self, i: int, j: int) -> bool | None:
        """Whether j can only be made of i (True) or i of j (False) by what was done; None where it may be either, or
        where one change says the one and another the other."""
        found = {
            answer for a, b, answer in ((i, j, True), (j, i, False))
            if self._added_tokens(a, b) or self.change(a, b)[0] in ONE_WAY
        }  # fmt: skip
        return found.pop() if len(found) == 1 else None

    def _added_tokens(self, i: int, j: int) -> bool:
        """Whether j has a few tokens more than i; many more may as well have been cut off i."""
        rows = self.vocabulary_growth(i, j)
        return rows is not None and are_added_tokens(*rows)

    def vocabulary_growth(self, i: int, j: int) -> tuple[int, int] | None:
        """(rows in i, rows in j) of a token table that has more rows in j; None where none has."""
        for name in self.architecture.trunk:
            before, after = (self._tokens(self.indices[k], name) for k in (i, j))
            if before and after and before < after:
                return before, after
        return None

    def _tokens(self, index: int, name: str) -> int:
        in_pivot = max((a.grown[name][0] for a in self.alignments if name in a.grown), default=0)
        grown = self.alignments[index - 1].grown if index else {}
        return grown[name][1] if name in grown else in_pivot

    def change(self, i: int, j: int) -> tuple[EditKind, dict[str, Any]]:
        """What was done to i to get j, with facts (`weights/edits.py`); `other` where j has no mark that i has not;
        two models alone are looked at in any case, as in `trace`. Of a model that is packed with scales nothing is
        said."""
        packings = self._packings[i] | self._packings[j]
        if any(packing.scheme not in FLOAT8 for packing in packings):  # with scales: what they rounded is not told here
            return "other", {}
        if len(self.models) > 2 and not self._marks_of(j) - self._marks_of(i):
            return "other", {}
        made, start = self.units(j), self.units(i)
        sizes = {m.name: m.size for m in self.statistics.matrices}
        return summarise_edits({name: detect_edit(made[name], start[name]) for name in sizes}, sizes)

    @cached_property
    def _packings(self) -> tuple[set[Packing], ...]:
        """How each model is packed."""
        return tuple({entry.packing for entry in model.values() if entry.packing} for model in self.models)

    def _marks_of(self, i: int) -> frozenset[str]:
        if i not in self._marks:
            self._marks[i] = compression_marks([*self.units(i).values()])
        return self._marks[i]


def _rows(readings: Readings, name: str, indices: Sequence[int]) -> tuple[int, int] | None:
    """Rows of two models in the moments of a tensor, None where one of them lacks it."""
    if name not in readings.moments or any(p and p - 1 not in readings.candidates_with[name] for p in indices):
        return None
    i, j = (readings.row(name, p - 1) if p else 0 for p in indices)
    return i, j


def _square(gram: np.ndarray, i: int, j: int) -> float:
    """Σ(xᵢ − xⱼ)² from sums around the pivot, row 0."""
    if 0 in (i, j):
        return float(gram[i or j, i or j]) if i != j else 0.0
    away = gram[i, i] + gram[j, j] - 2 * gram[i, j]
    return 0.0 if away <= 1e-12 * (gram[i, i] + gram[j, j]) else float(away)


def compression_marks(matrices: Sequence[torch.Tensor]) -> frozenset[str]:
    """What rounding and pruning leave on the weights of one model: a subset of `coarse`, `half`, `sparse`.

    sparse: more than `MIN_PRUNED_SHARE` zeros.  coarse: few different values in the first row of every matrix, so they
    lie on a lattice.  half: every value is one of bfloat16, or every one of float16. matrices: (rows, width) float32.
    """
    found = set()
    if sum(int((m == 0).sum()) for m in matrices) > MIN_PRUNED_SHARE * sum(m.numel() for m in matrices):
        found.add("sparse")
    if all(m[:1].unique().numel() < min(MAX_LATTICE_VALUES, MAX_DISTINCT_SHARE * m[:1].numel()) for m in matrices):
        found.add("coarse")
    if all(torch.equal(m, m.bfloat16().float()) or torch.equal(m, m.half().float()) for m in matrices):
        found.add("half")
    return frozenset(found)


def defects(readings: Readings, architecture: Architecture, models: Sequence[Checkpoint]) -> dict[int, str]:
    """Model → why it cannot take part: unreadable, or at least `MAX_BROKEN_SHARE` of its trunk NaN, Inf or zeros."""
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
    """Whether model i's tensor holds neither NaN nor Inf, and is not all zeros."""
    if i == 0:
        return readings.child_usable(name)
    if i - 1 not in readings.candidates_with[name]:
        return True
    squared_norm = readings.moments[name].squared_norms()[readings.row(name, i - 1)]
    return bool(np.isfinite(squared_norm) and squared_norm > 0)


def common_matrices(readings: Readings, architecture: Architecture, models: Sequence[Checkpoint]) -> list[str]:
    """The matrices of the trunk that all models have, finite in all, of which rows were kept."""
    return [
        name for name in architecture.trunk
        if name in readings.units and len(models[0][name].shape) > 1
        and len(readings.candidates_with[name]) == len(models) - 1
        and all(finite(readings, name, i) for i in range(len(models)))
    ]  # fmt: skip


def distinct_models(
    readings: Readings, architecture: Architecture, models: Sequence[View], alignments: Sequence[Alignment], seed: int
) -> AlignedModels | None:
    """The distinct ones of the models that were read, with their pair statistics; None where they share no matrix."""
    names = common_matrices(readings, architecture, models)
    if not names:
        return None
    copies = _copies(readings, models, names)
    indices = [same[0] for same in copies]
    found, grams = [], []
    for name in names:
        size = models[0][name].count
        found.append(Matrix(name, size, torch.stack([readings.units.matrix(index, name) for index in indices])))
        rows = [readings.row(name, index - 1) if index else 0 for index in indices]
        grams.append(inner_products(readings.moments[name], rows, size))
    return AlignedModels(
        tuple(models[index] for index in indices), tuple(tuple(models[i] for i in same[1:]) for same in copies),
        tuple(indices), tuple(alignments), architecture, readings, compute_pair_statistics(found, grams), seed,
    )  # fmt: skip


def _copies(readings: Readings, models: Sequence[View], names: Sequence[str]) -> list[list[int]]:
    """Models that are equal in every tensor, the heads included: each list begins with its representative."""
    by_digest: dict[bytes, list[int]] = {}
    for i in range(len(models)):
        digest = hashlib.sha256()
        for name in names:
            digest.update(readings.units.matrix(i, name).numpy().tobytes())
        by_digest.setdefault(digest.digest(), []).append(i)
    groups: list[list[int]] = []
    for members in by_digest.values():
        found: list[list[int]] = []
        for i in members:
            group = next((group for group in found if _same(readings, models, group[0], i)), None)
            if group is None:
                found.append([i])
            else:
                group.append(i)
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
