"""One question about one child: its candidates read, a disguise looked behind, each judged."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..answers.base import Progress
from ..answers.lineage import Candidate, Claim
from ..architecture.align import Alignment
from ..architecture.describe import Architecture, describe
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import Opener
from ..checkpoints.view import View
from ..weights.edits import detect_edit, summarise_edits
from ..weights.evidence import WeightsComparison, compare_weights
from ..weights.hidden_permutation import HiddenPermutation, detect_permutation, mantel_applies, undo_permutation
from ..weights.reader import Readings, read_aligned
from ..weights.sampling import Plan
from . import verdict
from .options import Lined, blank, shared_rows, some

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What stays the same while the candidates of one question are read."""

    child: View
    architecture: Architecture
    plan: Plan
    device: str | torch.device
    progress: Progress | None
    alpha: float
    seed: int

    def read(self, comparable: Sequence[tuple[Checkpoint, Alignment]]) -> tuple[Readings, WeightsComparison]:
        models, alignments = [model for model, _ in comparable], [alignment for _, alignment in comparable]
        readings = read_aligned(
            self.child, models, alignments, self.plan, device=self.device, progress=self.progress
        )  # fmt: skip
        return readings, compare_weights(readings, self.architecture, self.child, len(comparable), seed=self.seed)

    def uncover(
        self, comparable: list[Lined], readings: Readings, comparison: WeightsComparison, claimed: AbstractSet[int]
    ) -> tuple[list[Lined], Readings, WeightsComparison, dict[int, HiddenPermutation]]:
        """Look behind a disguise if the first test calls no candidate related, and of claimed ones in any case: nobody
        is contradicted unseen. What is found is put in the child's order, and everything is read again. A sample holds
        too few units for that."""
        tests = 2 if not self.plan.sampled and mantel_applies(readings, self.architecture, self.child) else 1
        level = self.alpha / max(1, len(comparison.evidence)) / tests
        first = {i: item.test for i, item in comparison.evidence.items()}
        strange = {i for i, test in first.items() if test and test.p > level and not self.plan.sampled}
        if any(test and test.p <= level for test in first.values()):
            strange &= claimed
        found = {
            i: detect_permutation(readings, self.architecture, self.child, i, self.seed)
            for i in comparison.evidence
            if i in strange
        }
        matched = {i: disguise.match for i, disguise in found.items() if disguise.matched and disguise.match}
        if matched:
            comparable = [
                undo_permutation(model, alignment, self.architecture, matched[i])
                if i in matched
                else (model, alignment)
                for i, (model, alignment) in enumerate(comparable)
            ]
            elsewhere = readings.bytes_by_others
            readings, comparison = self.read(comparable)
            readings = replace(readings, bytes_by_others=readings.bytes_by_others + elsewhere)
        for i, item in comparison.evidence.items():
            blind = found[i].mantel if i in found else None
            # units that were put in order by looking at them can be tested no more: what was found before stays
            comparison.evidence[i] = replace(item, test=first.get(i), mantel=blind, tests=tests)
        return comparable, readings, comparison, {i: found[i] for i in matched}


def is_claimed(model: Checkpoint, claims: Sequence[Claim], opener: Opener) -> bool:
    return any(opener.same_model(claim.ref, blank(model, "compared")) for claim in claims)


def judge(
    inquiry: Inquiry, comparable: Sequence[Lined], readings: Readings, comparison: WeightsComparison,
    disguises: Mapping[int, HiddenPermutation],
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    architecture, child = inquiry.architecture, inquiry.child
    counts = {name: child[name].count for name in architecture.weights}
    shortened = shared_rows(comparable).keys()
    read = frozenset(architecture.trunk) & (readings.candidates_with.keys() if inquiry.plan.sampled else counts.keys())
    pairs, blanks = [], []
    for i in comparison.evidence:
        model, alignment = comparable[i]
        whole = len(alignment.pairs) == len(architecture.weights) == len(describe(model).weights) and not shortened
        pairs.append(
            verdict.Pair(
                whole and not inquiry.plan.sampled,  # what is equal in a sample only is not said to be identical
                None if shortened else read,
                alignment.grown,
                functools.cache(functools.partial(_what, readings, i, counts, back=False)),
                functools.cache(functools.partial(_what, readings, i, counts, back=True)),
                disguises[i].to_dict() if i in disguises else None,
            )
        )
        blanks.append(blank(model, "compared", *_left_out(alignment, architecture.heads)))
    return verdict.judge(blanks, comparison, pairs, architecture.heads, counts, inquiry.alpha)


def _what(readings: Readings, candidate: int, counts: Mapping[str, int], back: bool) -> tuple[str, dict[str, Any]]:
    """What was done to the candidate to get the child; with `back`, to the child to get the candidate."""
    changes = {}
    for name, members in readings.candidates_with.items():
        if candidate in members and name in readings.units and readings.usable(name, candidate):
            made, start = (readings.units.matrix(model, name) for model in (0, candidate + 1))
            changes[name] = detect_edit(start, made) if back else detect_edit(made, start)
    return summarise_edits(changes, counts)


def _left_out(alignment: Alignment, heads: frozenset[str]) -> tuple[str, ...]:
    """Tensors of the child's trunk that the candidate has no partner for, for the candidate's `reasons`."""
    names = [name for name in alignment.unmatched if name not in heads]
    return (f"left out: {some([f'{name} ({alignment.unmatched[name]})' for name in names], 3)}",) if names else ()
