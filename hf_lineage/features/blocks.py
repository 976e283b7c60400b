"""The evidence of grafting about each block, as fields of the answer of `trace_layers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..answers.layers import BlockOrigin
from ..checkpoints.checkpoint import Checkpoint
from ..errors import Note, NothingToCompareError, join_notes, prefixed
from .grafting import Grafts, origins

MATCH = {"features": "match", "detector": "detector_match"}  # kind of evidence → its probabilities among the facts


def expected_bytes(child: Checkpoint, candidates: Sequence[Checkpoint]) -> int:
    """The most that `graft` reads: the child twice, each candidate once."""
    return sum(
        times * entry.nbytes for times, each in ((2, [child]), (1, candidates)) for m in each for entry in m.values()
    )


def block_facts(
    found: Mapping[str, Any], grafts: Grafts, labels: Sequence[str], metric: str, kind: str = "features"
) -> tuple[dict[str, Any], list[Note]]:
    """(fields of the answer, notes): facts added to the blocks found by weights, or blocks from features alone.

    From features alone, `parent` is the candidate of the highest score, `probability` the paper's (S2.7: nearly even
    for small scores, of which only the order counts), `scores` are the metric's, and each block is undecided, since no
    test was made.  kind: of the evidence, the key of its facts.  Raises `NothingToCompareError` where no candidate was
    grafted.
    """
    if not grafts.found:
        why = [prefixed(f"{labels[i]}: ", reason) for i, reason in grafts.refused.items()]
        raise NothingToCompareError(join_notes("nothing_to_compare", ["No candidate's blocks could be grafted.", *why]))
    match = origins(grafts, metric)
    notes = [
        join_notes("features_refused", [reason]).prefixed(f"{kind} of {labels[i]}: ")
        for i, reason in grafts.refused.items()
    ]
    compared = (
        f"{kind.capitalize()}: {metric}, each candidate's block on what the child feeds its own, at equal places; a "
        "ranking of a closed set, without p-value."
    )
    notes.append(Note("features_compared", compared))
    key = MATCH[kind]
    facts = {
        name: {
            kind: {labels[i]: each[row] for i, each in grafts.found.items()},
            key: {labels[i]: float(match[row, i]) for i in grafts.found if np.isfinite(match[row, i])},
        }
        for row, name in enumerate(grafts.names)
    }
    if found["blocks"]:
        unmatched = sorted({*facts} - {block.block for block in found["blocks"]})
        if unmatched:
            unknown = f"{kind.capitalize()} of {', '.join(unmatched)} are left out: no block of that name is known."
            notes.append(Note("features_left_out", unknown))
        blocks = [replace(b, facts={**b.facts, **facts.get(b.block, {})}) for b in found["blocks"]]
        return {**found, "blocks": tuple(blocks)}, notes
    refs = tuple(labels[i] for i in grafts.found)
    scores = {}
    for i, each in grafts.found.items():
        scores[labels[i]] = np.full((len(grafts.names),) * 2, np.nan)
        for row, fact in enumerate(each):
            if fact and metric in fact["scores"]:
                score = fact["scores"][metric]
                scores[labels[i]][row, row] = score["taylor"] if score["exact"] is None else score["exact"]
    blocks = [_alone(index, name, facts[name], key) for index, name in enumerate(grafts.names)]
    places = dict.fromkeys(refs, grafts.names)
    return {**found, "candidates": refs, "blocks": tuple(blocks), "places": places, "scores": scores}, notes


def _alone(index: int, name: str, facts: dict[str, Any], key: str) -> BlockOrigin:
    match: dict[str, float] = facts[key]
    if not match:
        return BlockOrigin(name, index, "undecided", facts=facts)
    best = max(match, key=lambda ref: match[ref])
    return BlockOrigin(name, index, "undecided", parent=best, parent_block=name, probability=match[best], facts=facts)
