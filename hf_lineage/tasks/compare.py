"""The candidates of one question compared with the child by their weights, permuted hidden units put in order."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..answers.lineage import Candidate
from ..architecture.align import Alignment
from ..architecture.describe import MIN_COVERAGE
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Packing, Slice
from ..checkpoints.view import View
from ..errors import ArgumentError, LineageError, Note, NothingToCompareError
from ..parallel import on_threads, shared
from ..weights.adapter_products import compare_products
from ..weights.agreement import LayerCheck, agreement_of
from ..weights.components import shared_part
from ..weights.depth import changed_layers
from ..weights.direction.order import Order
from ..weights.direction.steps import PairCounts, pair_order
from ..weights.edits import (
    CHEAP_EDITS,
    EDITS,
    ONE_WAY,
    Edit,
    EditKind,
    Lattices,
    detect_edit,
    detect_rounding,
    summarise_edits,
)
from ..weights.evidence import WeightsComparison, compare_weights
from ..weights.hidden_permutation import (
    ALIKE,
    HiddenPermutation,
    alike,
    copied_rows,
    detect_hidden,
    detect_in_layers,
    lacks_layers,
    mantel_applies,
    undo_permutation,
)
from ..weights.reader import LINED_UP, Readings
from ..weights.sampling import Plan, make_plan, seeded_random
from ..weights.stream_alignment import has_token_table, read_inputs
from . import verdict
from .layouts import guess_notes, share_units
from .notes import of_unused
from .options import Options
from .session import Aligned, Question, budget_of, some, unjudged, within

if TYPE_CHECKING:
    import torch

READ_ALL = ("Read everything: --sample all.", 'sample="all".')  # hints
ROTATED = "what reads the input is the same in other coordinates: its residual stream may have been rotated"
PERMUTED = "what reads the input is the same: hidden units may have been permuted, which a sample does not tell"
REORDERED = "the hidden units of its first layers agree in another order: they were permuted, and maybe rescaled"
STREAM = "the hidden units of its first layers agree once its residual stream is in other coordinates: it was rotated"
MOST_LOOKED = 64 << 20  # bytes of child and candidate that are read of their first layers beside a sample
MAX_CANDIDATES = 256  # of one question: a p-value below α/256 is below α whoever else is asked about
# Matrices of which it is asked first what was done to them; where nothing special was done to nearly all of their
# weights (so many show what was done to 1 % of the others with a chance of 1 − 4e-5), the rest is not asked
FIRST_EDITS, MOSTLY = 1000, 0.99
PLAIN_EDITS = ("other", "noise")
# Draws of a matrix that changed, by size, of which the dear questions are asked; where they find nothing, these are not
# asked of the others. What was done to half of the changed weights, by which an edit is named, escapes so many draws
# with a chance of 2⁻¹⁶
DEAR_DRAWS = 16
MAX_ROUNDED = 64  # packed tensors of which it is asked whether they are a rounding, which reads some rows of them again
CELL_ENTRIES = 1 << 18  # values of each that are asked


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pass over the child and its comparable candidates left behind.

    `found[i]`: what hid the hidden units of candidate i; in `aligned` they are in the child's order, in `models` as
    they are stored.
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
    child = question.child
    chosen = plan(question, comparable, options, beside)
    models = tuple(model for model, _ in comparable)
    first = Reading(
        child, models, chosen, tuple(comparable), *_compare(question, child, chosen, comparable, options), {}
    )
    readings = {*first.readings.moments} & {*question.architecture.trunk}
    if not readings and chosen.sampled:
        raise ArgumentError("Expected a larger sample: nothing but the head would be read of so few bytes.")
    if readings <= {*first.comparison.child_defects}:
        raise NothingToCompareError(
            f"Every tensor of `{question.asked.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
        )
    return _with_units_in_order(question, first, options)


def plan(question: Question, comparable: Sequence[Aligned], options: Options, beside: int) -> Plan:
    """What to read: chosen by the child alone, for all of its weights; of that, what some candidate has, too.

    So a pair is read at the same entries whoever else is asked about. Only the rows kept in memory become fewer where
    there are many (`Memory.units`). Raises `ArgumentError`, `LimitError`.
    """
    child, architecture = question.child, question.architecture
    entries = {name: child[name] for name in architecture.weights}
    nbytes = {name: entry.nbytes for name, entry in entries.items()}
    models = [model for model, _ in comparable]
    budget = budget_of(child, models, entries, options.sample)
    budget = min(budget, options.most) if budget and options.most else budget
    memory = options.reading_memory
    whole = make_plan(
        entries, nbytes, architecture.orders, budget=budget, seed=options.seed,
        keep=memory.units(1 + len(models)), most=memory.most_units(1 + len(models)),
    )  # fmt: skip
    ends: dict[str, int] = {}
    for _, alignment in comparable:
        for name in alignment.pairs:
            ends[name] = max(ends.get(name, 0), _shared_elements(child, alignment, name))
    slices = [replace(p, stop=min(p.stop, ends[p.name])) for p in whole.slices if p.start < ends.get(p.name, 0)]
    if not slices:
        raise ArgumentError(f"Expected a larger sample: {budget} bytes of {sum(nbytes.values()):,} hold no slice.")
    ours = sum(nbytes[p.name] * (p.stop - p.start) / entries[p.name].count for p in slices)
    theirs = sum(_bytes_of(child, model, alignment, slices) for model, alignment in comparable)
    checked = _cost_of_check(child, comparable, options) if whole.sampled and options.check_order else 0
    within(options.max_bytes, round(ours + theirs) + beside + checked, 1 + len(models))
    share = ours / sum(nbytes[name] * end / entries[name].count for name, end in ends.items())
    rows = {name: kept for name, kept in whole.rows.items() if name in ends}
    return replace(whole, slices=tuple(slices), rows=rows, share=share if whole.sampled else 1.0)


def _cost_of_check(child: View, comparable: Sequence[Aligned], options: Options) -> int:
    """The most bytes that whole matrices of a few layers take, should every candidate pass the permutation test."""
    check = _layer_check(child, options)
    return check.nbytes(child) + sum(check.nbytes(model, alignment.pairs) for model, alignment in comparable)


def _layer_check(child: View, options: Options) -> LayerCheck:
    """The layers of which whole matrices are read, where these were not kept, to see whether units agree."""
    return LayerCheck.of(child, child.architecture, options.seed, options.reading_memory.total // 4)


def _agreement(
    question: Question, reading: Reading, i: int, options: Options, check: Callable[[], LayerCheck]
) -> dict[str, Any] | Note | None:
    """How many hidden units of candidate i two matchings pair alike, or why that could not be read; None: not asked,
    or no layer to ask of. What is read for it beside the rest fits in `max_bytes`, or is not read."""
    sampled = reading.plan.sampled
    if not sampled:
        kept = agreement_of(reading.readings, reading.child.architecture, reading.child, i)
        if kept or not lacks_layers(reading.readings, reading.child.architecture, reading.child, i):
            return kept
    if sampled and not options.check_order:
        return None
    model, alignment = reading.aligned[i]
    layers = check()
    needed = layers.nbytes(reading.child) + layers.nbytes(model, alignment.pairs)
    if options.max_bytes is not None and question.session.bytes_read + needed > options.max_bytes:
        return None if not sampled else Note("order_not_checked", "`max_bytes` left no room for whole matrices")
    try:
        return layers.agreement(model, alignment.pairs)
    except LineageError as error:
        return Note("order_not_checked", f"whole matrices of a few layers could not be read: {error}")


def _shared_elements(child: View, alignment: Alignment, name: str) -> int:
    """Elements of a tensor that child and candidate both have: of a token table those of the shorter one's rows."""
    both = alignment.grown.get(name)
    return child[name].count if both is None else child[name].count // both[0] * min(both)


def _bytes_of(child: View, model: Checkpoint, alignment: Alignment, slices: Sequence[Slice]) -> float:
    """What a candidate has to read of some slices."""
    read = 0.0
    for piece in slices:
        if piece.name in alignment.pairs:
            entry = model[alignment.pairs[piece.name]]
            stop = min(piece.stop, _shared_elements(child, alignment, piece.name))
            read += max(0, stop - piece.start) * entry.nbytes / entry.count
    return read


def judge(question: Question, reading: Reading, options: Options) -> tuple[list[Candidate], float | None]:
    """The candidates that were compared, judged, and the probability of none of them."""
    architecture = question.architecture
    counts = {name: reading.child[name].count for name in architecture.weights}
    lattices = Lattices()
    packed = {i: _Packed(reading, i) for i in reading.comparison.evidence}
    check = functools.cache(functools.partial(_layer_check, reading.child, options))
    pairs = [
        replace(
            _pair(question, reading, i, options, lattices, packed[i]),
            agreement=functools.partial(_agreement, question, reading, i, options, check),
        )
        for i in packed
    ]
    if question.source.skipped or of_unused(question.source, architecture):  # what is equal is not the whole trunk
        pairs = [replace(pair, trunk=None) for pair in pairs]
    for i, item in reading.comparison.evidence.items():
        if packed[i].rounded:  # rounding makes weights longer, which looks like training
            reading.comparison.evidence[i] = replace(item, origin=None)
    candidates = [
        unjudged(reading.models[i], "compared", *_reasons(reading.aligned[i][1], architecture.trunk, counts))
        for i in reading.comparison.evidence
    ]
    judged, none = verdict.judge(
        candidates,
        reading.comparison,
        pairs,
        architecture.heads,
        counts,
        options.alpha,
        options.older,
        options.prior,
    )
    shares = [reading.aligned[i][1].coverage for i in reading.comparison.evidence]
    ours = packing_facts(reading.child)
    judged = [_with_packing(c, ours, reading.models[i]) for c, i in zip(judged, packed, strict=True)]
    return [_of_part(c, share) for c, share in zip(judged, shares, strict=True)], none


def _with_packing(candidate: Candidate, ours: dict[str, Any] | None, model: Checkpoint) -> Candidate:
    """A judged candidate, with how the two are stored where that rounds the weights of one. ours: the child's facts."""
    both = {"child": ours, "candidate": packing_facts(model)}
    return replace(candidate, facts={**candidate.facts, "packing": both}) if any(both.values()) else candidate


def _of_part(candidate: Candidate, share: float) -> Candidate:
    """A relative of which less than half of the child lines up: that they share a part is all that is said of it."""
    if share >= MIN_COVERAGE or candidate.relation in (None, "none"):
        return candidate
    part = f"{100 * share:.2g} % of the child's weights"
    return replace(candidate, relation="shared_part", facts={**candidate.facts, "first": None, "part": part})


def _pair(
    question: Question, reading: Reading, i: int, options: Options, lattices: Lattices, packed: _Packed
) -> verdict.Pair:  # fmt: skip
    """What else is known of one candidate."""
    counts = {name: reading.child[name].count for name in reading.child.architecture.weights}
    architecture, readings, plan = reading.child.architecture, reading.readings, reading.plan
    alignment = reading.aligned[i][1]
    theirs = reading.models[i].architecture
    whole = len(alignment.pairs) == len(architecture.weights) == len(theirs.weights) and not alignment.grown
    trunk = frozenset(architecture.trunk) & (readings.candidates_with.keys() if plan.sampled else counts.keys())
    found = reading.found.get(i)
    what = functools.partial(_what, readings, i, counts, lattices, packed)
    return verdict.Pair(
        same_names=whole and not plan.sampled,  # what is equal in a sample only is not said to be identical
        trunk=None if alignment.grown else trunk,
        grown=alignment.grown,
        made=functools.cache(functools.partial(what, back=False)),
        undone=functools.cache(functools.partial(what, back=True)),
        layers=lambda: changed_layers(reading.comparison.pairs[i], theirs, alignment.pairs, LINED_UP),
        permutation=found.to_dict() if found else None,
        rescaled=bool(found and found.match and (found.turn or found.match.rescaled)),
        order=functools.cache(functools.partial(_order, reading, i)) if not packed.rounded else lambda: None,
        alternatives=alignment.alternatives,
        shared=lambda: None if found else _shared(reading, i, counts, options),
        copied=lambda: copied_rows(readings, architecture, i),
        hidden=lambda: _may_be_hidden(question, reading, i, options),
    )


def _may_be_hidden(question: Question, reading: Reading, i: int, options: Options) -> Note | None:
    """Why hidden units that show no common origin with candidate i may yet have one; None where nothing says so.

    Its inputs lie in other coordinates, or they are the same ones and only a sample of the units was read, which tells
    nothing where these were permuted; or next to nothing was compared. Of a sample, rows of input tables are read for
    this where the child's files name the candidate.
    """
    architecture, (model, alignment) = reading.child.architecture, reading.aligned[i]
    if alignment.coverage < MIN_COVERAGE:
        return Note("little_compared", f"less than {100 * MIN_COVERAGE:.0f} % of the child could be compared")
    if reading.plan.sampled and not _is_claimed(question, reading.models[i]):
        return None
    room = None if options.max_bytes is None else options.max_bytes - question.session.bytes_read
    try:
        inputs = read_inputs(reading.child, model, architecture, alignment.pairs, room)
    except LineageError as error:  # what was read before stays, but nothing is concluded from what was not
        return Note("little_compared", f"what reads the input could not be read: {error}")
    # of everything units were matched in the turned stream, too, and did not agree (`detect_hidden`)
    tested = not reading.plan.sampled and mantel_applies(reading.readings, architecture, reading.child, i)
    if inputs is not None and inputs.look_rotated and not tested and has_token_table(reading.child, architecture):
        return Note("inputs_rotated", ROTATED)
    if inputs is not None and inputs.in_place >= ALIKE and reading.plan.sampled:
        return Note("units_permuted", PERMUTED, *READ_ALL)
    return _hidden_in_layers(question, reading, i, options) if reading.plan.sampled else None


def _hidden_in_layers(question: Question, reading: Reading, i: int, options: Options) -> Note | None:
    """Why candidate i may be the claimed base although a sample shows nothing: the units of the first layers, whose
    whole matrices are read for this where they are small, agree in another order."""
    most = MOST_LOOKED
    if options.max_bytes is not None:
        most = min(most, options.max_bytes - question.session.bytes_read)
    try:
        found = detect_in_layers(
            reading.child.architecture, (reading.child, *reading.aligned[i]), options.seed, most
        )  # fmt: skip
    except LineageError as error:
        return Note("little_compared", f"layers could not be read in whole: {error}")
    if found is None or not found.matched:
        return None
    return Note("inputs_rotated", STREAM, *READ_ALL) if found.turn else Note("units_permuted", REORDERED, *READ_ALL)


def _is_claimed(question: Question, model: Checkpoint) -> bool:
    """Whether a file of the child's names this candidate."""
    same, candidate = question.session.opener.same_model, unjudged(model, "compared")
    return any(same(claim.ref, candidate) for claim in question.claims if claim.status != "not_understood")


def _shared(reading: Reading, i: int, counts: Mapping[str, int], options: Options) -> list[str] | None:
    """The parts that are all that the child and candidate i have in common."""
    sizes = {name: counts[name] for name in reading.child.architecture.trunk}
    pair, evidence = reading.comparison.pairs[i], reading.comparison.evidence[i]
    return shared_part(pair, evidence, sizes, options.alpha, options.seed)


class _Packed:
    """The packed matrices of child and candidate: how each is stored, and between what it rounds."""

    def __init__(self, reading: Reading, i: int) -> None:
        self._rows = reading.plan.rows
        self._models = reading.child, reading.aligned[i][0]
        self._names = {name: name for name in reading.child}, reading.aligned[i][1].pairs
        matrices, equal = reading.comparison.pairs[i].matrices, reading.comparison.evidence[i].equal

        def packings(model: Checkpoint, names: Mapping[str, str]) -> dict[str, Packing]:
            return {name: packing for name in matrices if (packing := model[names[name]].packing)}

        # of the candidate as it is stored: what was put in another order lies in memory, as floats
        self.of = packings(reading.child, self._names[0]), packings(reading.models[i], self._names[1])
        self.rounded = {name for packings in self.of for name in packings if name not in equal}
        self.asked = {*seeded_random(0, "packed").sample(sorted(self.rounded), min(len(self.rounded), MAX_ROUNDED))}

    def edit(self, name: str, made: torch.Tensor, start: torch.Tensor, back: bool) -> Edit:
        """What was done to a tensor of which one at least is packed; `back`: to the child's to get the candidate's.
        made, start: their kept rows."""
        packing = self.of[back].get(name)
        if packing is None:
            return Edit("equal" if bool((made == start).all()) else "other")
        count = max(1, min(len(made), CELL_ENTRIES // made.shape[1]))
        cells = self._cells(name, back, count, made.shape[1]) if name in self.asked else None
        return detect_rounding(made[:count], start[:count], packing, cells)

    def _cells(self, name: str, which: bool, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`Checkpoint.cells` of the first kept rows, of the child's tensor or the candidate's."""
        import torch

        model, own = self._models[which], self._names[which][name]
        runs: list[list[int]] = []
        for row in self._rows[name][:count]:
            if runs and runs[-1][1] == row:
                runs[-1][1] = row + 1
            else:
                runs.append([row, row + 1])
        found = [model.cells(Slice(own, first * width, stop * width)) for first, stop in runs]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return torch.cat([low for low, _ in known]), torch.cat([high for _, high in known])


def packing_facts(model: Checkpoint) -> dict[str, Any] | None:
    """How most of a model's packed values are stored; None where nothing is packed."""
    votes: dict[Packing, int] = {}
    for entry in model.values():
        if entry.packing:
            votes[entry.packing] = votes.get(entry.packing, 0) + entry.count
    best = max(votes, key=lambda packing: votes[packing], default=None)
    return None if best is None else {"scheme": best.scheme, "bits": best.bits}


def _order(reading: Reading, i: int) -> Order:
    """Who of child and candidate i came first, by the steps between them."""
    pair, counts = reading.comparison.pairs[i], reading.readings.counts
    steps = {kind: steps for (kind, candidate), steps in counts.steps.items() if candidate == i}
    moments = {name: pair.moments[name] for name in pair.matrices}
    distance = reading.comparison.evidence[i].distance or 0.0
    return pair_order(PairCounts(steps, moments, pair.units(), counts.past(0), counts.past(i + 1)), distance)


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
    # a tree wants the distances of all
    readings = question.session.read_aligned(child, aligned, plan, options, orders=True, relatives=not options.tree)
    return readings, compare_weights(readings, question.architecture, child, len(aligned), seed=options.seed)


def _with_units_in_order(question: Question, first: Reading, options: Options) -> Reading:
    """Look for permuted or rescaled hidden units of every candidate that the first test does not plainly call related.
    What is found is put in the child's order, and everything is read again. A sample holds too few units for that."""
    architecture, readings, comparison = question.architecture, first.readings, first.comparison
    tested = {i: item.test for i, item in comparison.evidence.items()}
    level = options.alpha / MAX_CANDIDATES
    unrelated = [i for i, test in tested.items() if test and test.p > level and not first.plan.sampled]
    child = first.child
    most = options.reading_memory.total // 6  # of two models as stored; matching takes about four times as much
    found = {
        i: detect_hidden(readings, architecture, (child, *first.aligned[i]), i, options.seed, most) for i in unrelated
    }  # fmt: skip
    matches = {i: each.match for i, each in found.items() if each.matched and each.match}
    last = first
    if matches:
        ordered = [
            undo_permutation(model, alignment, architecture, matches[i], alike(readings, i), found[i].turn)
            if i in matches else (model, alignment)
            for i, (model, alignment) in enumerate(first.aligned)
        ]  # fmt: skip
        again, compared = _compare(question, first.child, first.plan, ordered, options)
        again = replace(again, bytes_by_others=again.bytes_by_others + readings.bytes_by_others)
        last = replace(first, aligned=tuple(ordered), readings=again, comparison=compared)
    whole = not first.plan.sampled
    for i, item in last.comparison.evidence.items():
        looked = found.get(i)
        by_layers = looked is not None and looked.mantel is not None
        tests = 1 + (whole and (mantel_applies(readings, architecture, first.child, i) or by_layers))
        tests += bool(looked and looked.mantel is None and looked.matched)
        # units that were put in order by looking at them can be tested no more: what was found before stays
        second = looked.test if looked else None
        last.comparison.evidence[i] = replace(
            item, test=tested.get(i), mantel=second, tests=tests, alternatives=max(1, first.aligned[i][1].alternatives),
            tested_entries=comparison.evidence[i].tested_entries,
        )  # fmt: skip
    return replace(last, found={i: found[i] for i in matches})


def _what(
    readings: Readings, candidate: int, counts: Mapping[str, int], lattices: Lattices, packed: _Packed, back: bool
) -> tuple[EditKind, dict[str, Any]]:
    """What was done to the candidate to get the child; with `back`, to the child to get the candidate: of that only
    what runs one way."""
    names = [name for name, having in readings.candidates_with.items() if candidate in having]
    names = [name for name in names if name in readings.units and readings.usable(name, candidate)]
    names = [name for name in names if name not in packed.rounded or name in packed.asked]
    pairs = {name: pair for name in names if len((pair := readings.unit_pair(name, candidate))[0])}
    asked = ONE_WAY if back else tuple(EDITS)

    def detect(name: str, kinds: Collection[str]) -> Edit:
        made, start = pairs[name]
        if name in packed.rounded:
            return packed.edit(name, *((start, made) if back else (made, start)), back)
        return detect_edit(start, made, kinds, lattices) if back else detect_edit(made, start, kinds, lattices)

    def found(names: Sequence[str], kinds: Collection[str]) -> dict[str, Edit]:
        sizes = [pairs[name][0].numel() for name in names]
        detected = shared(functools.partial(on_threads, functools.partial(detect, kinds=kinds)), names, sizes)
        return dict(zip(names, detected, strict=True))

    first = [*pairs] if len(pairs) <= FIRST_EDITS else seeded_random(0, "edits").sample([*pairs], FIRST_EDITS)
    changed = [name for name in first if readings.pair(name, candidate).gram[1, 1] > 0]
    draws = seeded_random(0, "dear").choices(changed, [counts[n] for n in changed], k=DEAR_DRAWS) if changed else []
    changes = found([*dict.fromkeys(draws)], asked)
    plain = all(edit.is_plain for edit in changes.values())
    others = [kind for kind in asked if kind in CHEAP_EDITS or not plain]
    changes |= found([name for name in first if name not in changes], others)
    if len(first) < len(pairs):
        kind, facts = summarise_edits(changes, counts)
        if kind in PLAIN_EDITS and facts["share"] >= MOSTLY:
            return kind, facts
        changes |= found([name for name in pairs if name not in changes], others)
    return summarise_edits({name: changes[name] for name in pairs}, counts)


def _reasons(alignment: Alignment, trunk: Sequence[str], counts: Mapping[str, int]) -> tuple[Note, ...]:
    """For the candidate's `reasons`: how it was lined up if names do not tell, and what of the child's trunk it has no
    partner for."""
    names = [name for name in alignment.unmatched if name in counts and name in {*trunk}]
    share = 100 * sum(counts[name] for name in names) / max(1, sum(counts[name] for name in trunk))
    named = some([f"{name} ({alignment.unmatched[name]})" for name in names], 3)
    left_out = Note("tensors_without_partner", f"left out, {share:.2g} % of the child's weights: {named}")
    return (*guess_notes(alignment), *([left_out] if names else []))


def line_up(question: Question) -> tuple[list[tuple[View, Alignment]], list[Candidate]]:
    """The candidates whose tensors line up with the child's, and the others with the reason."""
    comparable, rest = [], []
    for as_stored, by_names in question.aligned():
        model, alignment = as_stored, by_names
        if not (model.is_adapter or question.is_adapter):
            model, alignment = question.session.lined_up(question.child, model)
        if model.is_adapter:
            why = Note("adapter_without_weights", f"a LoRA adapter holds no weights of its own{model.base_hint}")
            rest.append(unjudged(model, "not_comparable", why, *_products(question, as_stored)))
        elif why_not := question.without_evidence(model):
            rest.append(unjudged(model, "not_comparable", Note("adapter_no_evidence", why_not)))
        elif not (alignment.comparable or share_units(question.child, alignment)):
            rest.append(unjudged(model, "not_comparable", Note("not_comparable", alignment.explain())))
        else:
            comparable.append((model, alignment))
    return comparable, rest


def _products(question: Question, candidate: View) -> tuple[Note, ...]:
    """Of two adapters: how alike what they do to the weights is; nothing where that cannot be read."""
    try:
        found = compare_products(question.asked, candidate) if question.is_adapter else None
    except LineageError:
        return ()
    if found is None or not math.isfinite(found.cosine):
        return ()
    alike = f"what the two adapters do to the weights has a cosine of {found.cosine:.4f}"
    return (Note("adapter_products", f"{alike} over {found.modules} matrices that both change (products B·A)"),)
