"""The story of `trace_layers` on one page: session, match the blocks, read once, judge block by block, answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..answers.base import Progress
from ..answers.layers import LayerLineage
from ..checkpoints.checkpoint import Checkpoint
from ..errors import LineageError, NoCandidatesError, Note, NothingToCompareError, join_notes
from ..parallel import THREADS, together, world
from ..report.progress import progress_of
from ..sizes import limit_of
from ..weights.block_matching import Block, BlockMatches, align_blocks, match_blocks
from ..weights.block_origins import (
    BlockFacts,
    LayerReadings,
    block_facts,
    block_origins,
    block_scores,
    equal_block_notes,
    without_related_block,
)
from ..weights.hidden_permutation import HiddenPermutation, alike, detect_permutation, undo_permutation
from ..weights.merge_kinds import with_kinds
from ..weights.merge_recipe import infer_merge_method, may_be_merged
from . import notes
from .evidence import settings_of
from .layouts import share_units
from .options import Networks, Options, names_of
from .remake import Tensors, remake
from .search import Search
from .session import (
    NAME_SOME,
    Aligned,
    Question,
    Session,
    ask,
    budget_of,
    plan_reading,
    session_of,
    shared_rows,
    skipped,
    within,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..checkpoints.opener import Model
    from ..features.evidence import Source
    from ..placement import Wanted

MOST_SOURCES = 16  # candidates whose blocks are compared where nobody named any


@together
def trace_layers(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, metric: str = "l2", step: float | str = "auto",
    detector: str | Path | None = None, token: str | bool | None = None, device: Wanted = None,
    memory: int | str | None = None, sample: str | float | int | None = None, max_bytes: int | str | None = None,
    allow_pickle: bool = False, progress: Progress | bool | None = None, seed: int = 0, session: Session | None = None,
    timeout: float | None = None, verify: bool = False,
) -> LayerLineage:  # fmt: skip
    """Say for each block of the child which block of which candidate it came from, and in what proportion.

    evidence: `"weights"`: every block against every block of every candidate by the permutation test over hidden units
        (`weights/block_matching.py`), then the shares of a mixture by least squares (`weights/mixture.py`) and a
        guess how the whole was made (`weights/merge_recipe.py`). No data is needed, and blocks that moved are found.
        `"features"`: each block of a candidate is put in the child's place and fed what the child feeds its own (Neural
        Lineage, Fig. 1(c), S2.7; `features/grafting.py`): the first 64 tokens of 128 probes, equal positions, a ranking
        without p-value. Of both names the answer is the weights', and `facts["features"]` of each block has the other.
        `"detector"`: the same with a detector's scores in place of a metric's, as S2.7 has it.
    alpha: family-wise error of the p-values over child blocks × candidate blocks, in (0, 1).
    probes, metric, step, detector: as in `trace`; so are child, candidates and all other arguments.
    verify: make the merge again by the recipe that was found, tensor by tensor, and count what is equal bit for bit
        (`redone`): reads all of every model once more.

    Cost: up to 16 MB of each model to find the places (or 32 rows of one matrix of each block, if that is more), then
    one pass over what `sample` says, within `memory`.

    Returns a `LayerLineage`; a block "from none of these" is an answer. Raises what `trace` raises.
    """
    options = Options(
        evidence=names_of(evidence), alpha=alpha, sample=sample, max_bytes=limit_of(max_bytes),
        device=device, memory=memory,
        progress=progress_of(progress), seed=seed, timeout=timeout,
        networks=Networks(probes=probes, metric=metric, step=step, detector=detector),
    )  # fmt: skip
    with session_of(session, token, allow_pickle, options.ends) as session:
        question = ask(session, child, _sources(child, session) if candidates is None else candidates)
        known = _Blocks(_labels(question.candidates))
        if question.is_adapter:
            known = known.with_notes(notes.of_adapter(question.asked, question.source))
        known = known.with_notes(*question.notes)
        beside = _expected_bytes(question, options)
        if "weights" in options.evidence:
            known = _by_weights(question, known, options, beside, verify)
        if options.runs_models and question.opened:
            known = _by_networks(question, known, options)
        revisions = dict(zip(known.labels, (view.ref.revision for view in question.candidates), strict=True))
        return LayerLineage(
            child=question.asked.ref, requested=question.asked.requested, **known.fields, evidence=options.evidence,
            revisions={ref: revisions[ref] for ref in known.fields["candidates"]},
            notes=(*known.notes, *skipped(question.models)),
            **options.cost(session, known.by_others),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What is known so far: fields of the answer, notes, bytes that other processes read. `labels`: the candidates'."""

    labels: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=lambda: {"candidates": (), "blocks": (), "places": {}, "scores": {}})
    notes: tuple[Note, ...] = ()
    by_others: int = 0

    def with_notes(self, *more: Note) -> _Blocks:
        return replace(self, notes=(*self.notes, *more))


def _sources(child: Model, session: Session) -> list[str]:
    """What the child declares; if none of that can be compared, the first ring that holds a candidate, too."""
    ours = session.opener.open(child)
    search = Search(ours, session, most=MOST_SOURCES)
    while world().main and not search.comparable and search.widen():
        pass
    refs = world().gather([*search.refs] if world().main else [])[0]
    if not refs:
        raise NoCandidatesError(
            f"Expected models that `{ours.ref.name}` could be made of: it declares none, and none was found on the "
            "Hub.",
            *NAME_SOME,
        )
    return refs


def _expected_bytes(question: Question, options: Options) -> int:
    """The most bytes that running the models reads. Raises `LimitError` above `max_bytes`."""
    if not options.runs_models or not question.opened:
        return 0
    from ..features.blocks import expected_bytes

    needed = len({*options.evidence} - {"weights"}) * expected_bytes(question.source, question.candidates)
    within(options.max_bytes, needed, 1 + len(question.opened))
    return needed


@THREADS.apart()
def _by_weights(question: Question, known: _Blocks, options: Options, beside: int, verify: bool) -> _Blocks:
    """Match the blocks, read what lines up, judge every block."""
    question, known = _in_layout(question, known)
    whole, architecture, session = question.child, question.architecture, question.session
    budget = budget_of(whole, question.candidates, architecture.weights, options.sample)
    half = None if budget is None else max(1, budget // 2)
    before = session.bytes_read
    blocks, matches = match_blocks(
        whole, architecture, question.candidates, budget=half, seed=options.seed, progress=options.progress,
        expect=lambda needed: within(options.max_bytes, beside + needed, 1 + len(question.opened)),
    )  # fmt: skip
    placing = session.bytes_read - before
    aligned, kept, refs, messages = _with_blocks(question, known.labels, blocks, matches)
    seen = whole.first_rows(shared_rows(aligned))
    plan = plan_reading(seen, architecture, aligned, half, options, beside + placing)
    readings = session.read_aligned(seen, aligned, plan, options)
    if not any(readings.child_usable(name) for name in readings.moments):
        raise NothingToCompareError(
            f"Every tensor of `{question.asked.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
        )
    study = LayerReadings(readings, architecture, seen, blocks, tuple(kept), refs, options.alpha, options.seed)
    facts = block_facts(study)
    found = {} if plan.sampled else _hidden_permutations(study, facts)
    if found:
        aligned, kept = _in_order(question, study, found, aligned)
        before_order = readings.bytes_by_others
        readings = session.read_aligned(seen, aligned, plan, options)
        readings = replace(readings, bytes_by_others=before_order + readings.bytes_by_others)
        study = replace(study, readings=readings, matches=tuple(kept), in_order=frozenset(found))
        facts = block_facts(study)
    made = infer_merge_method(study, facts, block_origins(study, facts))
    redone, beside_bytes = None, session.bytes_read
    if verify or (not plan.sampled and may_be_merged(study, facts, made.origins)):
        tensors = Tensors.of(question, aligned, refs, blocks)
        made, redone = remake(tensors, study, facts, made, verify)
    beside_bytes = session.bytes_read - beside_bytes
    messages += [notes.of_one_unreadable(refs[k], error.note) for k, error in readings.failed.items()]
    messages += [
        *notes.of_layers(plan, readings, made.origins, {refs[k]: each for k, each in found.items()}),
        *equal_block_notes(made.origins),
    ]
    made = replace(made, origins=with_kinds(study, facts, made.origins))
    fields = {
        "candidates": refs, "blocks": made.origins, "method": made.method, "mixture": made.mixture,
        "unknown": made.unknown, "residual": made.residual, "facts": made.facts, "reasons": made.reasons,
        "places": {ref: tuple(block.path for block in each.blocks) for ref, each in zip(refs, kept, strict=True)},
        "scores": {ref: block_scores(study, facts, k) for k, ref in enumerate(refs)}, "redone": redone,
    }  # fmt: skip
    by_others = known.by_others + world().others(placing + beside_bytes) + readings.bytes_by_others
    return replace(known.with_notes(*messages), fields=fields, by_others=by_others)


def _in_layout(question: Question, known: _Blocks) -> tuple[Question, _Blocks]:
    """The candidates whose names differ in the child's layout, where order and shapes alone tell how."""
    models, messages = [], []
    for label, stored, candidate in zip(known.labels, question.opened, question.candidates, strict=True):
        models.append(stored)
        if candidate.is_adapter or share_units(question.child, question.session.align(question.child, candidate)):
            continue
        lined, alignment = question.session.lined_up(question.child, candidate)
        if lined is not candidate and (alignment.comparable or share_units(question.child, alignment)):
            text = f"{label}: its names differ"
            if alignment.alternatives > 1:
                text += ", and only weights would tell what belongs together: its blocks are compared by names."
            else:
                models[-1] = lined
                text += ": what belongs together was told by order and shapes. Its blocks have the child's names here."
            messages.append(Note("aligned_by_structure", text))
    return replace(question, opened=tuple(models)), known.with_notes(*messages)


def _hidden_permutations(study: LayerReadings, facts: Sequence[BlockFacts]) -> dict[int, HiddenPermutation]:
    """What hides the hidden units of candidates that no block is found related to."""
    looked = {
        k: detect_permutation(study.readings, study.architecture, study.child, k, study.seed)
        for k in without_related_block(study, facts)
    }
    level = study.alpha / len(study.matches)
    return {k: each for k, each in looked.items() if each.matched and each.test and each.test.p <= level}


def _in_order(
    question: Question, study: LayerReadings, found: Mapping[int, HiddenPermutation], aligned: Sequence[Aligned]
) -> tuple[list[Aligned], list[BlockMatches]]:
    """The candidates with their hidden units in the child's order, and how the blocks of those match."""
    ordered, matches = [*aligned], [*study.matches]
    for k, each in found.items():
        assert each.match is not None
        stored = question.session.view(aligned[k][0])
        by_name = question.session.align(question.child, stored)
        model, alignment = undo_permutation(stored, by_name, study.architecture, each.match, alike(study.readings, k))
        (again,) = match_blocks(question.child, study.architecture, [model], budget=None, seed=study.seed)[1]
        if isinstance(again, LineageError):
            raise again
        lined = align_blocks(question.child, study.blocks, model, again, alignment)
        pairs = {name: partner for name, partner in lined.pairs.items() if name in alignment.pairs}
        ordered[k], matches[k] = (model, replace(lined, pairs=pairs)), again
    return ordered, matches


def _by_networks(question: Question, known: _Blocks, options: Options) -> _Blocks:
    """Each block of a candidate in the child's place, by a metric and by a detector, as asked."""
    from ..features.blocks import block_facts

    settings, metric = settings_of(question, options), options.networks.metric
    lined = question.as_stored()
    session = question.session
    before = session.bytes_read
    if "features" in options.evidence:
        from ..features.grafting import graft

        grafts = graft(question.source, question.child, lined, settings, options.progress)
        fields, messages = block_facts(known.fields, grafts, known.labels, metric)
        known = replace(known.with_notes(*messages), fields=fields)
    if "detector" in options.evidence:
        from ..detector import blocks as learned

        grafts, name = learned.graft(
            options.networks.detector, session.opener, question.source, question.child, lined, settings,
            options.progress,
        )  # fmt: skip
        fields, messages = block_facts(known.fields, grafts, known.labels, name, "detector")
        known = replace(known.with_notes(*messages), fields=fields)
    return replace(known, by_others=known.by_others + world().others(session.bytes_read - before))


def _labels(models: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What each candidate is called: its ref, or what the user wrote where two share one."""
    refs = [model.ref.name for model in models]
    return tuple(
        model.requested if refs.count(ref) > 1 or model.ref.kind == "module" else ref
        for model, ref in zip(models, refs, strict=True)
    )


def _with_blocks(
    question: Question, labels: Sequence[str], blocks: Sequence[Block], matches: Sequence[BlockMatches | LineageError]
) -> tuple[list[Aligned], list[BlockMatches], tuple[str, ...], list[Note]]:
    """The candidates that have a block for any of the child's, lined up, with their labels; a note for each other."""
    aligned: list[Aligned] = []
    kept: list[BlockMatches] = []
    refs = []
    messages = [notes.of_one_unreadable(each.ref, *each.reasons) for each in question.unreadable]
    for (view, by_name), label, found in zip(question.aligned(), labels, matches, strict=True):
        if isinstance(found, LineageError):
            messages.append(notes.of_one_unreadable(view.ref.name, found.note))
        elif view.is_adapter:
            holds_none = f"{view.ref.name} is a LoRA adapter and holds no blocks{view.base_hint}."
            messages.append(Note("adapter_without_blocks", holds_none))
        elif why := question.without_evidence(view):
            messages.append(Note("adapter_no_evidence", f"{view.ref.name} was not compared: {why}."))
        elif all(j is None for j in found.best):
            no_block = f"{view.ref.name} has no block of a kind and shape of the child's: {by_name.explain()}."
            messages.append(Note("no_common_block", no_block))
        else:
            aligned.append((view, align_blocks(question.child, blocks, view, found, by_name)))
            kept.append(found)
            refs.append(label)
    if not aligned:
        raise NothingToCompareError(
            join_notes("nothing_to_compare", ["No candidate has a block to compare.", *messages])
        )
    return aligned, kept, tuple(refs), messages
