"""The story of `trace_layers` on one page: open, match the blocks, read once, judge block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..answers.base import Progress
from ..answers.layers import LayerLineage
from ..architecture.align import align
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import Opener
from ..errors import LineageError, NoCandidatesError, NothingToCompareError
from ..parallel import together, world
from ..weights.block_matching import Block, BlockMatches, align_blocks, match_blocks
from ..weights.block_origins import LayerReadings, block_facts, block_origins, block_scores, equal_block_notes
from ..weights.merge_recipe import infer_merge_method
from ..weights.reader import read_aligned
from . import notes as remarks
from .options import (
    Lined,
    Question,
    ask,
    budget_of,
    check,
    features_settings,
    plan_reading,
    shared_rows,
    skipped,
    versions,
    within,
)
from .search import Search

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..features.evidence import Source
    from .options import Model

MOST_SOURCES = 16  # candidates whose blocks are compared where nobody named any


@together
def trace_layers(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, metric: str = "l2", step: float | str = "auto",
    detector: str | Path | None = None, token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
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

    Cost: up to 16 MB of each model to find the places (or 32 rows of one matrix of each block, if that is more), then
    one pass over what `sample` says; memory does not grow with the models: 64 MB of hidden units each, 1 GB in all.

    Returns a `LayerLineage`; a block "from none of these" is an answer. Raises what `trace` raises.
    """
    started = time.monotonic()
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    check(names, alpha, max_bytes, device)
    settings = features_settings(names, probes, None, metric, step, token, device, seed, detector)
    opener = Opener(token, allow_pickle)
    asked = ask(child, _sources(opener.open(child), opener) if candidates is None else candidates, opener)
    labels = _labels(asked.views)
    found: dict[str, Any] = {"candidates": (), "blocks": (), "places": {}, "scores": {}}
    notes, elsewhere, beside = list(asked.notes), 0, 0
    if asked.source is not asked.child:
        notes.insert(0, remarks.of_adapter(asked.child, asked.source))
    if settings and asked.views:
        from ..features.blocks import by_features, expected_bytes
        from ..features.grafting import graft

        settings = replace(settings, modules=asked.modules)
        lined = [(m, align(asked.whole, v, asked.architecture)) for m, v in zip(asked.opened, asked.views, strict=True)]
        beside = len({*names} - {"weights"}) * expected_bytes(asked.source, asked.views)
        within(max_bytes, beside, 1 + len(asked.views))
    if "weights" in names:
        found, told, elsewhere = _layers_by_weights(
            asked, labels, alpha, device, sample, max_bytes, beside, progress, seed
        )
        notes += told
    before = asked.opener.bytes_read
    if settings and asked.views and "features" in names:
        grafts = graft(asked.source, asked.whole, lined, settings, progress)
        found, told = by_features(found, grafts, labels, metric)
        notes += told
    if settings and asked.views and "detector" in names:
        from ..detector import blocks as learned

        grafts, name = learned.graft(detector, opener, asked.source, asked.whole, lined, settings, progress)
        found, told = by_features(found, grafts, labels, name, "detector")
        notes += told
    elsewhere += world().others(asked.opener.bytes_read - before) if settings else 0
    revisions = {label: view.ref.revision for label, view in zip(labels, asked.views, strict=True)}
    return LayerLineage(
        child=asked.child.ref, requested=asked.child.requested, **found, evidence=tuple(names),
        revisions={ref: revisions[ref] for ref in found["candidates"]},
        notes=(*notes, *skipped([asked.source, *asked.opened])), bytes_read=asked.opener.bytes_read + elsewhere,
        seconds=world().gather(round(time.monotonic() - started, 3))[0], seed=seed, alpha=alpha,
        versions=versions(),
    )  # fmt: skip


def _sources(ours: Checkpoint, opener: Opener) -> list[str]:
    """What the child declares; if none of that can be compared, the first ring that holds a candidate, too."""
    search = Search(ours, opener, most=MOST_SOURCES)
    while world().main and not search.comparable and search.widen():
        pass
    refs = world().gather([*search.refs] if world().main else [])[0]
    if not refs:
        raise NoCandidatesError(
            f"Expected models that `{ours.ref.name}` could be made of: it declares none, and none was found on the "
            "Hub. Name some: -c org/name, or candidates=[…]."
        )
    return refs


def _layers_by_weights(
    asked: Question, labels: Sequence[str], alpha: float, device: str | torch.device | None,
    sample: str | float | int | None, max_bytes: int | None, beside: int, progress: Progress | None, seed: int,
) -> tuple[dict[str, Any], list[str], int]:  # fmt: skip
    """(fields of the answer, notes, bytes that other processes read): find the places, read what lines up, judge."""
    whole, architecture, opener = asked.whole, asked.architecture, asked.opener
    budget = budget_of(whole, asked.views, architecture.weights, sample)
    half = None if budget is None else max(1, budget // 2)
    before = opener.bytes_read
    blocks, places = match_blocks(
        whole, architecture, asked.views, budget=half, seed=seed, progress=progress,
        expect=lambda needed: within(max_bytes, beside + needed, 1 + len(asked.views)),
    )  # fmt: skip
    placing = opener.bytes_read - before
    lined, kept, refs, notes = _with_blocks(asked, labels, blocks, places)
    seen = whole.first_rows(shared_rows(lined))
    plan = plan_reading(seen, architecture, lined, half, max_bytes, seed, beside + placing)
    models, alignments = zip(*lined, strict=True)
    readings = read_aligned(seen, models, alignments, plan, device=device or "cpu", progress=progress)
    if not any(readings.child_usable(name) for name in readings.moments):
        raise NothingToCompareError(
            f"Every tensor of `{asked.child.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
        )
    study = LayerReadings(readings, architecture, seen, blocks, tuple(kept), refs, alpha, seed)
    facts = block_facts(study)
    made = infer_merge_method(study, facts, block_origins(study, facts))
    notes += [f"{refs[k]} could not be read: {error}" for k, error in readings.failed.items()]
    notes += remarks.of_layers(plan, readings, made.origins)
    fields = {
        "candidates": refs, "blocks": made.origins, "method": made.method, "mixture": made.mixture,
        "unknown": made.unknown, "residual": made.residual, "facts": made.facts, "reasons": made.reasons,
        "places": {ref: tuple(block.path for block in each.blocks) for ref, each in zip(refs, kept, strict=True)},
        "scores": {ref: block_scores(study, facts, k) for k, ref in enumerate(refs)},
    }  # fmt: skip
    others = world().others(placing)
    return fields, [*notes, *equal_block_notes(made.origins)], others + readings.bytes_by_others


def _labels(models: Sequence[Checkpoint]) -> tuple[str, ...]:
    """What each candidate is called: its ref, or what the user wrote where two share one."""
    refs = [model.ref.name for model in models]
    return tuple(
        model.requested if refs.count(ref) > 1 or model.ref.kind == "module" else ref
        for model, ref in zip(models, refs, strict=True)
    )


def _with_blocks(
    asked: Question, labels: Sequence[str], blocks: Sequence[Block], places: Sequence[BlockMatches | LineageError]
) -> tuple[list[Lined], list[BlockMatches], tuple[str, ...], list[str]]:
    """The candidates that have a block for any of the child's, lined up, with their labels; a note for each other."""
    lined: list[Lined] = []
    kept: list[BlockMatches] = []
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
            lined.append((view, align_blocks(asked.whole, asked.architecture, blocks, view, found)))
            kept.append(found)
            refs.append(label)
    if not lined:
        raise NothingToCompareError(f"No candidate has a block to compare. {' '.join(notes)}")
    return lined, kept, tuple(refs), notes
