"""The story on one page: open, line up, read once, judge, compare with what is claimed."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import remarks, verdict
from .architecture import Alignment, Architecture, align, describe
from .errors import ArgumentError, LineageError, NothingToCompareError
from .hub.checkpoint import Checkpoint
from .hub.opener import Opener
from .hub.view import View
from .layers import Study, alike, gather, origins, scored
from .merging import making
from .parallel import together, world
from .question import (
    Lined,
    Question,
    ask,
    blank,
    budget_of,
    check,
    features_settings,
    paired,
    plan_reading,
    shared_rows,
    skipped,
    some,
    versions,
    within,
)
from .records import Candidate, Claim, LayerLineage, Lineage, Progress
from .weights.evidence import WeightsComparison
from .weights.evidence import compare as compare_weights
from .weights.places import Block, Places, line_up, place
from .weights.reading import Readings, read_together
from .weights.relation import change, summarise
from .weights.sample import Plan
from .weights.uncover import Disguise, applies, realign, uncover

if TYPE_CHECKING:
    import torch

    from .features.evidence import Settings, Source
    from .question import Model


@together
def trace(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, taps: str | Sequence[str] | None = None, metric: str = "l2",
    step: float | str = "auto", token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
) -> Lineage:  # fmt: skip
    """Say which of the candidates the child was fine-tuned from, and how sure that is.

    child, candidates: Hub repo ids (`"org/name"`, `"org/name@revision"`), paths (a `Path`, or text that starts
        with `.`, `/` or `~`), or modules in memory (`requested` then says which: `candidates[1]`).
        `candidates=None` takes what the child's own card, configs and merge recipe declare.
    evidence: `"weights"`: the permutation test over hidden units for "is it related at all", the distance of the
        aligned weights for "which one" (`weights/independence.py`, `weights/moments.py`). No data is needed.
        `"features"`: how alike the features of some inputs are, before and after the step towards the child (Neural
        Lineage §3). A ranking of a closed set, without p-value and without "none of these". Several names: the
        verdict rests on the weights, and each candidate shows both. No code of the models is ever run.
    alpha: family-wise error of the p-values, in (0, 1): the chance that any unrelated candidate is called related.
    probes: inputs for the features: None (a seeded synthetic set of 128), a number of those, a folder of pictures, the
        id of a data set on the Hub, or a tensor. taps: module paths of the child, `"blocks"`, or None for its first
        block. metric: of `features.similarity.METRICS`. step: α in (0, 1], or `"auto"`: the largest at which the
        linearisation's error is below a tenth for any candidate, the same for all.
    sample: None reads everything of local models and 0.5 % (at least 4 MB) of remote ones; `"all"`, `"auto"`,
        a fraction (`0.005`, `"0.5%"`) or a number of bytes.
    max_bytes: refuse, before any weight is read, to read more than this over all models together.
    allow_pickle: read `.bin`/`.pt` too, by `torch.load(weights_only=True)`.
    token: for the Hub; None uses the machine's login, False none. It goes to the Hub's own origin only.
    device: where to compute, the processor by default; `"cuda"` is every GPU of this machine.
    progress: called as `progress(done, total, what)`, in bytes. seed: of the sample and of the permutations.

    Under `torchrun` or `accelerate launch` every process must make the same call; they share the reading, all return
    the same `Lineage`, and only the first calls `progress` (`parallel.py`).

    Returns a `Lineage`; "none of these" is an answer. Raises `LineageError`s, each saying what to do next:
    `ModelNotFoundError`, `AccessDeniedError`, `CheckpointError`, `HubUnavailableError` for the child,
    `NoCandidatesError`, `NothingToCompareError`, `ArgumentError` (all in `hf_lineage.errors`). A candidate that cannot
    be opened is listed as `unreadable`; it does not stop the others.
    """
    started = time.monotonic()
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    check(names, alpha, max_bytes, device)
    settings = features_settings(names, probes, taps, metric, step, token, device, seed)
    asked = ask(child, candidates, token, allow_pickle)
    opener, ours, source, opened, claims = asked.opener, asked.child, asked.source, asked.opened, asked.claims
    whole, architecture, views, notes = asked.whole, asked.architecture, asked.views, [*asked.notes]
    comparable, rest = _line_up(whole, architecture, views)
    seen = whole.first_rows(shared_rows(comparable))
    judged: list[Candidate] = []
    none: float | None = None
    elsewhere = 0
    beside = 0
    if settings and opened:
        from .features.evidence import attach, compare, run_child
        from .features.evidence import remarks as of_features

        settings = replace(settings, modules=asked.modules)
        lined = [(model, align(whole, view, architecture)) for model, view in zip(opened, views, strict=True)]
        beside = _features_bytes(source, lined, settings, max_bytes)
        before = opener.bytes_read
        ran = run_child(source, whole, settings)  # before the weights: a child that cannot run ends the question
        by_child = opener.bytes_read - before
    if comparable and "weights" in names:
        budget = budget_of(seen, [model for model, _ in comparable], paired(architecture, comparable), sample)
        plan = plan_reading(seen, architecture, comparable, budget, max_bytes, seed, beside)
        study = _Study(seen, architecture, plan, device or "cpu", progress, alpha, seed)
        readings, comparison = study.read(comparable)
        read = set(readings.moments) & set(architecture.trunk)
        if not read and plan.sampled:
            raise ArgumentError("Expected a larger sample: nothing but the head would be read of so few bytes.")
        if read <= set(comparison.lost):
            raise NothingToCompareError(
                f"Every tensor of `{ours.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
            )
        claimed = {i for i, (model, _) in enumerate(comparable) if _is_claimed(model, claims, opener)}
        comparable, readings, comparison, disguises = study.uncover(comparable, readings, comparison, claimed)
        elsewhere = readings.elsewhere
        judged, none = _judge(study, comparable, readings, comparison, disguises)
        rest += _refuse(comparable, comparison, readings.failed)
        notes += remarks.of_trace(plan, architecture, comparison)

    if settings and opened:
        before = opener.bytes_read - by_child
        seen_by = compare(ran, lined, settings, progress)
        elsewhere += world().others(opener.bytes_read - before)
        judged, rest = attach(*seen_by, [blank(model, "compared") for model in opened], judged, rest, names)
        notes += of_features([*judged, *rest], settings)
    ranked = sorted([*judged, *rest, *asked.unreadable], key=verdict.order)
    if all(candidate.status == "unreadable" for candidate in ranked):
        raise NothingToCompareError(f"No candidate could be read. {ranked[0].ref}: {ranked[0].reasons[0]}")
    said, parent = verdict.conclude(ranked, alpha)
    if source is not ours:
        said, ranked, notes = _as_adapter(said, parent, ranked, ours, source, notes)
    checked, undeclared = verdict.weigh_claims(claims, ranked, parent, opener.same_model, circular=source is not ours)
    for claim in checked:
        by_folder = [
            c.ref for c in ranked if c.ref[0] in "./~" and c.ref != claim.ref and opener.same_model(claim.ref, c)
        ]
        if claim.status != "not_testable" and by_folder:
            notes.append(f"The folder {by_folder[0]} was taken for {claim.ref}, by its name.")
    return Lineage(
        child=ours.ref, requested=ours.requested, verdict=said, parent=parent, none_probability=none,
        candidates=tuple(ranked), claims=tuple(checked), undeclared=tuple(undeclared),
        notes=(*notes, *skipped([source, *opened])), bytes_read=opener.bytes_read + elsewhere,
        seconds=world().gather(round(time.monotonic() - started, 3))[0], seed=seed, alpha=alpha,
        versions=versions(),
    )  # fmt: skip


@together
def trace_layers(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, metric: str = "l2", step: float | str = "auto",
    token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
) -> LayerLineage:  # fmt: skip
    """Say for each block of the child which block of which candidate it came from, and in what proportion.

    evidence: `"weights"`: every block against every block of every candidate by the permutation test over hidden units
        (`weights/places.py`), then the shares of a mixture by least squares (`weights/mixture.py`) and a guess how the
        whole was made (`merging.py`). No data is needed, and blocks that moved are found.
        `"features"`: each block of a candidate is put in the child's place and fed what the child feeds its own (Neural
        Lineage, Fig. 1(c), S2.7; `features/grafting.py`): the first 64 tokens of 128 probes, equal positions, a ranking
        without p-value. Of both names the answer is the weights', and `facts["features"]` of each block has the other.
    alpha: family-wise error of the p-values over child blocks × candidate blocks, in (0, 1).
    probes, metric, step: of the features, as in `trace`; so are child, candidates and all other arguments.

    Cost: up to 16 MB of each model to find the places (or 32 rows of one matrix of each block, if that is more), then
    one pass over what `sample` says; memory does not grow with the models: 64 MB of hidden units each, 1 GB in all.

    Returns a `LayerLineage`; a block "from none of these" is an answer. Raises what `trace` raises.
    """
    started = time.monotonic()
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    check(names, alpha, max_bytes, device)
    settings = features_settings(names, probes, None, metric, step, token, device, seed)
    asked = ask(child, candidates, token, allow_pickle)
    labels = _labels(asked.views)
    found: dict[str, Any] = {"candidates": (), "blocks": (), "places": {}, "scores": {}}
    notes, elsewhere, beside = list(asked.notes), 0, 0
    if asked.source is not asked.child:
        notes.insert(0, remarks.of_adapter(asked.child, asked.source))
    if settings and asked.views:
        from .features.blocks import by_features, expected_bytes
        from .features.grafting import graft

        settings = replace(settings, modules=asked.modules)
        beside = expected_bytes(asked.source, asked.views)
        within(max_bytes, beside, 1 + len(asked.views))
    if "weights" in names:
        found, told, elsewhere = _layers_by_weights(
            asked, labels, alpha, device, sample, max_bytes, beside, progress, seed
        )
        notes += told
    if settings and asked.views:
        before = asked.opener.bytes_read
        lined = [(m, align(asked.whole, v, asked.architecture)) for m, v in zip(asked.opened, asked.views, strict=True)]
        grafts = graft(asked.source, asked.whole, lined, settings, progress)
        elsewhere += world().others(asked.opener.bytes_read - before)
        found, told = by_features(found, grafts, labels, metric)
        notes += told
    revisions = {label: view.ref.revision for label, view in zip(labels, asked.views, strict=True)}
    return LayerLineage(
        child=asked.child.ref, requested=asked.child.requested, **found, evidence=tuple(names),
        revisions={ref: revisions[ref] for ref in found["candidates"]},
        notes=(*notes, *skipped([asked.source, *asked.opened])), bytes_read=asked.opener.bytes_read + elsewhere,
        seconds=world().gather(round(time.monotonic() - started, 3))[0], seed=seed, alpha=alpha,
        versions=versions(),
    )  # fmt: skip


def _layers_by_weights(
    asked: Question, labels: Sequence[str], alpha: float, device: str | torch.device | None,
    sample: str | float | int | None, max_bytes: int | None, beside: int, progress: Progress | None, seed: int,
) -> tuple[dict[str, Any], list[str], int]:  # fmt: skip
    """(fields of the answer, notes, bytes that other processes read): find the places, read what lines up, judge."""
    whole, architecture, opener = asked.whole, asked.architecture, asked.opener
    budget = budget_of(whole, asked.views, architecture.weights, sample)
    half = None if budget is None else max(1, budget // 2)
    before = opener.bytes_read
    blocks, places = place(
        whole, architecture, asked.views, budget=half, seed=seed, progress=progress,
        expect=lambda needed: within(max_bytes, beside + needed, 1 + len(asked.views)),
    )  # fmt: skip
    placing = opener.bytes_read - before
    lined, kept, refs, notes = _with_blocks(asked, labels, blocks, places)
    seen = whole.first_rows(shared_rows(lined))
    plan = plan_reading(seen, architecture, lined, half, max_bytes, seed, beside + placing)
    models, alignments = zip(*lined, strict=True)
    readings = read_together(seen, models, alignments, plan, device=device or "cpu", progress=progress)
    if not any(readings.child_usable(name) for name in readings.moments):
        raise NothingToCompareError(
            f"Every tensor of `{asked.child.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
        )
    study = Study(readings, architecture, seen, blocks, tuple(kept), refs, alpha, seed)
    facts = gather(study)
    made = making(study, facts, origins(study, facts))
    notes += [f"{refs[k]} could not be read: {error}" for k, error in readings.failed.items()]
    notes += remarks.of_layers(plan, readings, made.origins)
    fields = {
        "candidates": refs, "blocks": made.origins, "method": made.method, "mixture": made.mixture,
        "unknown": made.unknown, "residual": made.residual, "facts": made.facts, "reasons": made.reasons,
        "places": {ref: tuple(block.path for block in each.blocks) for ref, each in zip(refs, kept, strict=True)},
        "scores": {ref: scored(study, facts, k) for k, ref in enumerate(refs)},
    }  # fmt: skip
    others = world().others(placing)
    return fields, [*notes, *alike(made.origins)], others + readings.elsewhere


def _labels(models: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What each candidate is called: its ref, or what the user wrote where two share one."""
    refs = [model.ref.name for model in models]
    return tuple(
        model.requested if refs.count(ref) > 1 or model.ref.kind == "module" else ref
        for model, ref in zip(models, refs, strict=True)
    )


def _with_blocks(
    asked: Question, labels: Sequence[str], blocks: Sequence[Block], places: Sequence[Places | LineageError]
) -> tuple[list[Lined], list[Places], tuple[str, ...], list[str]]:
    """The candidates that have a block for any of the child's, lined up, with their labels; a note for each other."""
    lined: list[Lined] = []
    kept: list[Places] = []
    refs = []
    notes = [f"{each.ref} could not be read: {' '.join(each.reasons)}" for each in asked.unreadable]
    for view, label, found in zip(asked.views, labels, places, strict=True):
        if isinstance(found, LineageError):
            notes.append(f"{view.ref.name} could not be read: {found}")
        elif view.adapter_base:
            notes.append(f"{view.ref.name} is a LoRA adapter and holds no blocks; name its base, {view.adapter_base}.")
        elif all(j is None for j in found.best):
            why = align(asked.whole, view, asked.architecture).explain()
            notes.append(f"{view.ref.name} has no block of a kind and shape of the child's: {why}.")
        else:
            lined.append((view, line_up(asked.whole, asked.architecture, blocks, view, found)))
            kept.append(found)
            refs.append(label)
    if not lined:
        raise NothingToCompareError(f"No candidate has a block to compare. {' '.join(notes)}")
    return lined, kept, tuple(refs), notes


def _features_bytes(child: Checkpoint, lined: Sequence[Lined], settings: Settings, max_bytes: int | None) -> int:
    """The most that features read, refused if above `max_bytes`; 0 where nobody asks."""
    if max_bytes is None:
        return 0
    from .features.evidence import expected_bytes

    needed = expected_bytes(child, [model for model, _ in lined], settings)
    if needed > max_bytes:
        raise ArgumentError(
            f"Features would read up to {needed:,} bytes of {1 + len(lined)} models, more than max_bytes={max_bytes:,}."
            " Choose an earlier tap; and give a `step`, since of remote models each step tried is read again."
        )
    return needed


def _line_up(
    child: Checkpoint, architecture: Architecture, opened: Sequence[Checkpoint]
) -> tuple[list[tuple[Checkpoint, Alignment]], list[Candidate]]:
    comparable, rest = [], []
    for checkpoint in sorted(opened, key=lambda checkpoint: (checkpoint.ref, checkpoint.requested)):
        alignment = align(child, checkpoint, architecture)
        if checkpoint.adapter_base:
            why = f"a LoRA adapter holds no weights of its own; name its base, {checkpoint.adapter_base}"
            rest.append(blank(checkpoint, "not_comparable", why))
        elif not alignment.comparable:
            rest.append(blank(checkpoint, "not_comparable", alignment.explain()))
        else:
            comparable.append((checkpoint, alignment))
    return comparable, rest


def _left_out(alignment: Alignment, heads: frozenset[str]) -> tuple[str, ...]:
    """Tensors of the child's trunk that the candidate has no partner for, for the candidate's `reasons`."""
    names = [name for name in alignment.unmatched if name not in heads]
    return (f"left out: {some([f'{name} ({alignment.unmatched[name]})' for name in names], 3)}",) if names else ()


@dataclass(frozen=True, slots=True)
class _Study:
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
        readings = read_together(
            self.child, models, alignments, self.plan, device=self.device, progress=self.progress
        )  # fmt: skip
        return readings, compare_weights(readings, self.architecture, self.child, len(comparable), seed=self.seed)

    def uncover(
        self, comparable: list[Lined], readings: Readings, comparison: WeightsComparison, claimed: AbstractSet[int]
    ) -> tuple[list[Lined], Readings, WeightsComparison, dict[int, Disguise]]:
        """Look behind a disguise if the first test calls no candidate related, and of claimed ones in any case: nobody
        is contradicted unseen. What is found is put in the child's order, and everything is read again. A sample holds
        too few units for that."""
        tests = 2 if not self.plan.sampled and applies(readings, self.architecture, self.child) else 1
        level = self.alpha / max(1, len(comparison.found)) / tests
        first = {i: item.test for i, item in comparison.found.items()}
        strange = {i for i, test in first.items() if test and test.p > level and not self.plan.sampled}
        if any(test and test.p <= level for test in first.values()):
            strange &= claimed
        found = {
            i: uncover(readings, self.architecture, self.child, i, self.seed) for i in comparison.found if i in strange
        }
        matched = {i: disguise.match for i, disguise in found.items() if disguise.matched and disguise.match}
        if matched:
            comparable = [
                realign(model, alignment, self.architecture, matched[i]) if i in matched else (model, alignment)
                for i, (model, alignment) in enumerate(comparable)
            ]
            elsewhere = readings.elsewhere
            readings, comparison = self.read(comparable)
            readings = replace(readings, elsewhere=readings.elsewhere + elsewhere)
        for i, item in comparison.found.items():
            blind = found[i].blind if i in found else None
            # units that were put in order by looking at them can be tested no more: what was found before stays
            comparison.found[i] = replace(item, test=first.get(i), blind=blind, tests=tests)
        return comparable, readings, comparison, {i: found[i] for i in matched}


def _is_claimed(model: Checkpoint, claims: Sequence[Claim], opener: Opener) -> bool:
    return any(opener.same_model(claim.ref, blank(model, "compared")) for claim in claims)


def _judge(
    study: _Study, comparable: Sequence[Lined], readings: Readings, comparison: WeightsComparison,
    disguises: Mapping[int, Disguise],
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    architecture, child = study.architecture, study.child
    counts = {name: child[name].count for name in architecture.weights}
    shortened = shared_rows(comparable).keys()
    read = frozenset(architecture.trunk) & (readings.members.keys() if study.plan.sampled else counts.keys())
    pairs, blanks = [], []
    for i in comparison.found:
        model, alignment = comparable[i]
        whole = len(alignment.pairs) == len(architecture.weights) == len(describe(model).weights) and not shortened
        pairs.append(
            verdict.Pair(
                whole and not study.plan.sampled,  # what is equal in a sample only is not said to be identical
                None if shortened else read,
                alignment.grown,
                functools.cache(functools.partial(_what, readings, i, counts, back=False)),
                functools.cache(functools.partial(_what, readings, i, counts, back=True)),
                disguises[i].to_dict() if i in disguises else None,
            )
        )
        blanks.append(blank(model, "compared", *_left_out(alignment, architecture.heads)))
    return verdict.judge(blanks, comparison, pairs, architecture.heads, counts, study.alpha)


def _what(readings: Readings, candidate: int, counts: Mapping[str, int], back: bool) -> tuple[str, dict[str, Any]]:
    """What was done to the candidate to get the child; with `back`, to the child to get the candidate."""
    changes = {}
    for name, members in readings.members.items():
        if candidate in members and name in readings.units and readings.usable(name, candidate):
            made, start = (readings.units.matrix(model, name) for model in (0, candidate + 1))
            changes[name] = change(start, made) if back else change(made, start)
    return summarise(changes, counts)


def _refuse(
    comparable: Sequence[tuple[Checkpoint, Alignment]], comparison: WeightsComparison, failed: dict
) -> list[Candidate]:
    return [
        blank(comparable[i][0], "unreadable" if i in failed else "not_comparable", why)
        for i, why in comparison.refused.items()
    ]


def _as_adapter(
    said: verdict.Verdict,
    parent: str | None,
    ranked: list[Candidate],
    child: Checkpoint,
    base: Checkpoint,
    notes: list[str],
) -> tuple[verdict.Verdict, list[Candidate], list[str]]:
    """An adapter's answer was found for its declared base: say so, and call that base's relation `adapter`."""
    ranked = [replace(c, relation="adapter") if c.relation == "identical" else c for c in ranked]
    if said == "identical":
        said = "parent" if parent else "undecided"
    return said, ranked, [remarks.of_adapter(child, base), *notes]
