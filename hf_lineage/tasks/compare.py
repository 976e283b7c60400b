"""The candidates of one question compared with the child by their weights, permuted hidden units put in order."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from ..answers.lineage import Candidate
from ..architecture.align import Alignment
from ..checkpoints.view import View
from ..errors import ArgumentError, Note, NothingToCompareError
from ..weights.edits import detect_edit, summarise_edits
from ..weights.evidence import WeightsComparison, compare_weights
from ..weights.hidden_permutation import HiddenPermutation, detect_permutation, mantel_applies, undo_permutation
from ..weights.reader import Readings
from ..weights.sampling import Plan
from . import verdict
from .options import Options
from .session import Aligned, Question, budget_of, paired, plan_reading, shared_rows, some, unjudged


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pass over the child and its comparable candidates left behind.

    `child`: of its token tables only the rows that every candidate has. `found[i]`: what hid the hidden units of
    candidate i; in `aligned` they are in the child's order, in `models` as they are stored.
    """

    child: View
    models: tuple[View, ...]
    plan: Plan
    aligned: tuple[Aligned, ...]
    readings: Readings
    comparison: WeightsComparison
    found: Mapping[int, HiddenPermutation]


def read(question: Question, comparable: Sequence[tuple[View, Alignment]], options: Options, beside: int) -> Reading:
    """Read the child and its candidates once, and compare; where that finds nobody, look for permuted hidden units.

    beside: bytes that other evidence reads. Raises `ArgumentError` for too small a sample, `LimitError`,
    `NothingToCompareError` where nothing of the child can be used.
    """
    child = question.child.first_rows(shared_rows(comparable))
    names = paired(question.architecture, comparable)
    budget = budget_of(child, [model for model, _ in comparable], names, options.sample)
    budget = min(budget, options.most) if budget and options.most else budget
    plan = plan_reading(child, question.architecture, comparable, budget, options, beside)
    models = tuple(model for model, _ in comparable)
    first = Reading(child, models, plan, tuple(comparable), *_compare(question, child, plan, comparable, options), {})
    readings = {*first.readings.moments} & {*question.architecture.trunk}
    if not readings and plan.sampled:
        raise ArgumentError("Expected a larger sample: nothing but the head would be read of so few bytes.")
    if readings <= {*first.comparison.child_defects}:
        raise NothingToCompareError(
            f"Every tensor of `{question.asked.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
        )
    claimed = {i for i, (model, _) in enumerate(comparable) if is_claimed(question, model)}
    return _with_units_in_order(question, first, options, claimed)


def is_claimed(question: Question, model: View) -> bool:
    """Whether a file of the child names this model."""
    candidate = unjudged(model, "compared")
    return any(question.session.opener.same_model(claim.ref, candidate) for claim in question.claims)


def judge(question: Question, reading: Reading, options: Options) -> tuple[list[Candidate], float | None]:
    """The candidates that were compared, judged, and the probability of none of them."""
    architecture, readings, plan = question.architecture, reading.readings, reading.plan
    counts = {name: reading.child[name].count for name in architecture.weights}
    shortened = bool(shared_rows(reading.aligned))
    trunk = frozenset(architecture.trunk) & (readings.candidates_with.keys() if plan.sampled else counts.keys())
    pairs, candidates = [], []
    for i in reading.comparison.evidence:
        model, alignment = reading.aligned[i]
        theirs = reading.models[i].architecture
        whole = len(alignment.pairs) == len(architecture.weights) == len(theirs.weights) and not shortened
        what = functools.partial(_what, readings, i, counts)
        pairs.append(
            verdict.Pair(
                whole and not plan.sampled,  # what is equal in a sample only is not said to be identical
                None if shortened else trunk,
                alignment.grown,
                functools.cache(functools.partial(what, back=False)),
                functools.cache(functools.partial(what, back=True)),
                reading.found[i].to_dict() if i in reading.found else None,
            )
        )
        candidates.append(unjudged(model, "compared", *_left_out(alignment, architecture.trunk, counts)))
    return verdict.judge(candidates, reading.comparison, pairs, architecture.heads, counts, options.alpha)


def refused(reading: Reading) -> list[Candidate]:
    """The candidates that could not be compared after all, and why."""
    failed = reading.readings.failed
    return [
        unjudged(reading.aligned[i][0], "unreadable" if i in failed else "not_comparable", why)
        for i, why in reading.comparison.refused.items()
    ]


def _compare(
    question: Question, child: View, plan: Plan, aligned: Sequence[Aligned], options: Options
) -> tuple[Readings, WeightsComparison]:
    readings = question.session.read_aligned(child, aligned, plan, options)
    return readings, compare_weights(readings, question.architecture, child, len(aligned), seed=options.seed)


def _with_units_in_order(question: Question, first: Reading, options: Options, claimed: AbstractSet[int]) -> Reading:
    """Look for permuted or rescaled hidden units if the first test calls no candidate related, and those of claimed
    ones in any case: nobody is contradicted unseen. What is found is put in the child's order, and everything is read
    again. A sample holds too few units for that."""
    architecture, readings, comparison = question.architecture, first.readings, first.comparison
    tests = 2 if not first.plan.sampled and mantel_applies(readings, architecture, first.child) else 1
    level = options.alpha / max(1, len(comparison.evidence)) / tests
    tested = {i: item.test for i, item in comparison.evidence.items()}
    unrelated = {i for i, test in tested.items() if test and test.p > level and not first.plan.sampled}
    if any(test and test.p <= level for test in tested.values()):
        unrelated &= claimed
    found = {
        i: detect_permutation(readings, architecture, first.child, i, options.seed)
        for i in comparison.evidence
        if i in unrelated
    }
    matches = {i: each.match for i, each in found.items() if each.matched and each.match}
    last = first
    if matches:
        ordered = [
            undo_permutation(model, alignment, architecture, matches[i]) if i in matches else (model, alignment)
            for i, (model, alignment) in enumerate(first.aligned)
        ]
        again, compared = _compare(question, first.child, first.plan, ordered, options)
        again = replace(again, bytes_by_others=again.bytes_by_others + readings.bytes_by_others)
        last = replace(first, aligned=tuple(ordered), readings=again, comparison=compared)
    for i, item in last.comparison.evidence.items():
        mantel = found[i].mantel if i in found else None
        # units that were put in order by looking at them can be tested no more: what was found before stays
        last.comparison.evidence[i] = replace(item, test=tested.get(i), mantel=mantel, tests=tests)
    return replace(last, found={i: found[i] for i in matches})


def _what(readings: Readings, candidate: int, counts: Mapping[str, int], back: bool) -> tuple[str, dict[str, Any]]:
    """What was done to the candidate to get the child; with `back`, to the child to get the candidate."""
    changes = {}
    for name, having in readings.candidates_with.items():
        if candidate in having and name in readings.units and readings.usable(name, candidate):
            made, start = (readings.units.matrix(model, name) for model in (0, candidate + 1))
            changes[name] = detect_edit(start, made) if back else detect_edit(made, start)
    return summarise_edits(changes, counts)


def _left_out(alignment: Alignment, trunk: Sequence[str], counts: Mapping[str, int]) -> tuple[Note, ...]:
    """Tensors of the child's trunk that the candidate has no partner for, for the candidate's `reasons`."""
    names = [name for name in alignment.unmatched if name in counts and name in {*trunk}]
    share = 100 * sum(counts[name] for name in names) / max(1, sum(counts[name] for name in trunk))
    named = some([f"{name} ({alignment.unmatched[name]})" for name in names], 3)
    return (
        (Note("tensors_without_partner", f"left out, {share:.2g} % of the child's weights: {named}"),) if names else ()
    )


def line_up(question: Question) -> tuple[list[tuple[View, Alignment]], list[Candidate]]:
    """The candidates whose tensors line up with the child's, and the others with the reason."""
    comparable, rest = [], []
    for model, alignment in question.aligned():
        if model.adapter_base is not None:
            base = f"; name its base, {model.adapter_base}" if model.adapter_base else ""
            why = Note("adapter_without_weights", f"a LoRA adapter holds no weights of its own{base}")
            rest.append(unjudged(model, "not_comparable", why))
        elif why_not := question.without_evidence(model):
            rest.append(unjudged(model, "not_comparable", Note("adapter_no_evidence", why_not)))
        elif not alignment.comparable:
            rest.append(unjudged(model, "not_comparable", Note("not_comparable", alignment.explain())))
        else:
            comparable.append((model, alignment))
    return comparable, rest
