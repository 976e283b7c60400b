"""Adaptive reading: a few hidden units of each remote candidate first, and a sample of those only that may be related.

Each candidate is asked about by itself, by runs of units that its commit and the child's draw (`weights/unit_runs.py`).
Who is shown to be unrelated is read no further, and has p = min(1, 1/e). Who is related or open, or named by the
child's own files, is compared as `sample="auto"` compares it, at the same entries: what is said of such a pair does not
change by a bit. See docs/methods.md, *Adaptive reading*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..answers.lineage import Candidate
from ..architecture.align import Alignment
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.view import View
from ..errors import LineageError, Note
from ..parallel import world
from ..weights.permutation_test import holm
from ..weights.sampling import sample_budget
from ..weights.unit_runs import LOOKS, Decision, Run, UnitsEvidence, decide, draw_runs, evidence_of
from .combine import log10_raw
from .compare import MAX_CANDIDATES, Reading
from .options import Options
from .session import Question, unjudged

if TYPE_CHECKING:
    import torch

WORTH = 4  # times as many bytes as the first runs a sample must have for these to be read first
AT_ONCE = 8  # candidates
Comparable = Sequence[tuple[View, Alignment]]


@dataclass(frozen=True, slots=True)
class Screening:
    """`kept`: the candidates that are compared by a sample. `left`: the unrelated ones, judged. `found`: what the runs
    show of each that was asked about, by ref and revision. `by_others`: bytes that other processes read."""

    kept: Comparable
    left: tuple[Candidate, ...] = ()
    found: Mapping[tuple[str, str | None], UnitsEvidence] = field(default_factory=dict)
    by_others: int = 0

    def stand_in(self, reading: Reading) -> None:
        """Where a sample has too few units of every layer to test, p is 1/e of the runs, whenever one stopped.

        Changes `reading.comparison`.
        """
        evidence = reading.comparison.evidence
        for i, item in evidence.items():
            ref = reading.models[i].ref
            if item.log10_p is None and (units := self.found.get((ref.name, ref.revision))):
                evidence[i] = replace(item, test=units.as_test(), tested_entries=units.entries)

    def counted(self, judged: Sequence[Candidate]) -> list[Candidate]:
        """The others as judged by a sample, with what their units show, and with p-values that count those left."""
        known = [
            replace(c, evidence={**c.evidence, "units": units}) if (units := self.found.get((c.ref, c.revision))) else c
            for c in judged
        ]
        if not self.left:
            return known
        tested = {i: raw for i, c in enumerate(known) if (raw := log10_raw(c)) is not None}
        raws = [*tested.values(), *(self.found[(c.ref, c.revision)].log10_p for c in self.left)]
        for i, log10_p in zip(tested, holm(raws), strict=False):
            known[i] = replace(known[i], p_value=10.0**log10_p, log10_p=log10_p)
        return known

    def notes(self) -> list[Note]:
        """What was read of those that were left, and what they may still have in common with the child."""
        found = [self.found[(c.ref, c.revision)] for c in self.left]
        if not found:
            return []
        units, share = max(each.units for each in found), max(each.share_high for each in found)
        who = "1 candidate was" if len(found) == 1 else f"{len(found)} candidates were"
        text = (
            f"{who} left after {units} hidden units or fewer of each, which show no common origin: at most "
            f"{100 * share:.0f} % of the units can be alike (95 %)."
        )
        return [Note("left_early", text, "Read more of them: --sample auto.", 'sample="auto".')]


def screen(question: Question, comparable: Comparable, options: Options) -> Screening:
    """Which candidates a few hidden units show to be unrelated. None is asked about where that would save little."""
    child, before = question.child, question.session.bytes_read
    if not _is_adaptive(options, [child, *(model for model, _ in comparable)]):
        return Screening(comparable)
    threshold = math.log10(MAX_CANDIDATES / options.alpha)

    def ask(pair: tuple[View, Alignment], runs: Sequence[Run]) -> tuple[Decision, UnitsEvidence | None]:
        try:
            return look(child, pair, runs, threshold) if runs else ("open", None)
        except LineageError:  # told where it is read again
            return "open", None

    here = world()
    answers: list[tuple[Decision, UnitsEvidence | None]] = []
    if here.main:
        runs = [runs_of(question, pair, options) for pair in comparable]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="hf-lineage-screen") as pool:
            answers = [*pool.map(ask, comparable, runs)]
    answers = here.gather(answers)[0]
    left = [
        _judged(model, units)
        for (model, _), (decision, units) in zip(comparable, answers, strict=True) if units and decision == "unrelated"
    ]  # fmt: skip
    kept = [pair for pair, (decision, _) in zip(comparable, answers, strict=True) if decision != "unrelated"]
    if not kept:  # the chance that one of them is related after all is the level's
        left = [replace(c, probability=options.alpha / len(left)) for c in left]
    found = {
        (model.ref.name, model.ref.revision): units
        for (model, _), (_, units) in zip(comparable, answers, strict=True) if units
    }  # fmt: skip
    return Screening(kept, tuple(left), found, here.others(question.session.bytes_read - before))


def runs_of(question: Question, pair: tuple[View, Alignment], options: Options) -> list[Run]:
    """The runs of units by which a candidate is asked about; none where these would save little, or where a file of the
    child's names it, or where what belongs together had to be guessed."""
    child, (model, alignment) = question.child, pair
    if alignment.alternatives:
        return []
    total = sum(child[name].nbytes for name in child.architecture.weights)
    sample = sample_budget("auto", total, remote=True) or total
    sample = min(sample, options.most or sample, total // 2)
    same = {name for name, other in alignment.pairs.items() if child[name].shape == model[other].shape}
    runs = draw_runs(child, child.architecture, same, f"{options.seed}:{child.ref.revision}:{model.ref.revision}")
    saves = len(runs) == LOOKS[-1] and WORTH * bytes_of_runs(child, runs[: LOOKS[1]]) <= sample
    return runs if saves and not _is_named(question, model) else []


def bytes_of_runs(child: Checkpoint, runs: Sequence[Run]) -> int:
    """What a model has to read of some runs."""
    pieces = [run.piece(run.name) for run in runs]
    return sum((p.stop - p.start) * child[p.name].nbytes // child[p.name].count for p in pieces)


def _is_adaptive(options: Options, models: Sequence[Checkpoint]) -> bool:
    """Whether candidates are asked about by a few units first: so it was said, or nothing, and a model is remote."""
    return options.sample == "adaptive" or (options.sample is None and any(model.remote for model in models))


def look(
    child: Checkpoint, pair: tuple[Checkpoint, Alignment], runs: Sequence[Run], threshold: float
) -> tuple[Decision, UnitsEvidence]:
    """Read runs until it is known whether the candidate is related, or all are read."""
    model, alignment = pair
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    for count in LOOKS:
        more = runs[len(ours) : count]
        theirs += model.read([run.piece(alignment.pairs[run.name]) for run in more])
        ours += child.read([run.piece(run.name) for run in more])
        found = evidence_of(runs[:count], ours, theirs)
        decision = decide(found, count, threshold)
        if decision != "open":
            break
    return decision, found


def _is_named(question: Question, model: Checkpoint) -> bool:
    same, candidate = question.session.opener.same_model, unjudged(model, "compared")
    return any(same(claim.ref, candidate) for claim in question.claims if claim.status != "not_understood")


def _judged(model: Checkpoint, units: UnitsEvidence) -> Candidate:
    return replace(
        unjudged(model, "compared"), probability=0.0, p_value=1.0, p_raw=10.0**units.log10_p, p_method="e_value",
        log10_p=0.0, relation="none", evidence={"units": units},
    )  # fmt: skip
