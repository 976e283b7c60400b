"""Adapters among the candidates of a model that has weights: whether one was merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..answers.lineage import Candidate
from ..checkpoints.checkpoint import Checkpoint
from ..errors import LineageError, Note
from ..weights.merged_adapter import MOST_BYTES, Merged, merged_adapter
from . import own_base
from .options import Options
from .session import Question
from .verdict import NO_RELATIVE

MOST_REMOTE = 32 << 20  # bytes of child and base where one of them is on the Hub
LEAST_BYTES = 1 << 20
MOST_BASES, MOST_ADAPTERS = 3, 8


def merged_adapters(
    question: Question, ranked: Sequence[Candidate], options: Options
) -> tuple[list[Candidate], list[Note]]:  # fmt: skip
    """The candidates, each adapter with what its products say of the child less a relative of it, and notes of those
    that were merged. The most probable relatives are asked, of as many bytes as `max_bytes` leaves."""
    of = {(model.ref.name, model.ref.revision): model for model in question.opened}
    bases = [c for c in ranked if c.status == "compared" and c.relation not in (None, *NO_RELATIVE)][:MOST_BASES]
    found, notes, asked = [], [], 0
    for candidate in ranked:
        adapter = of.get(own_base.key(candidate))
        if adapter is None or not adapter.is_adapter or question.is_adapter or asked == MOST_ADAPTERS or not bases:
            found.append(candidate)
            continue
        asked += 1
        best = _best(question, adapter, [of[own_base.key(base)] for base in bases], options)
        more = (_note(adapter, *best),) if best else ()
        found.append(replace(candidate, reasons=(*candidate.reasons, *more)))
        notes += [note for note in more if note.code == "adapter_merged"]
    return found, notes


def _best(
    question: Question, adapter: Checkpoint, bases: Sequence[Checkpoint], options: Options
) -> tuple[Checkpoint, Merged] | None:  # fmt: skip
    """The base of which the child is most nearly the merge with an adapter."""
    seen: list[tuple[Checkpoint, Merged]] = []
    for base in bases:
        most = MOST_REMOTE if base.remote or question.source.remote else MOST_BYTES
        if options.max_bytes is not None:
            most = min(most, options.max_bytes - question.session.bytes_read)
        try:
            merged = merged_adapter(question.source, base, adapter, most) if most >= LEAST_BYTES else None
        except LineageError:  # that it cannot be read is said elsewhere, or nobody needs it
            continue
        seen += [(base, merged)] if merged and merged.changed else []
    return max(seen, key=lambda pair: (pair[1].within / pair[1].changed, pair[1].cosine), default=None)


def _note(adapter: Checkpoint, base: Checkpoint, merged: Merged) -> Note:
    rows = "" if merged.rows == merged.of_rows else f", {100 * merged.rows / merged.of_rows:.2g} % of their rows read"
    where = f"the {merged.matrices} matrices that it changes{rows}"
    plus = f"{base.ref.name} plus the product of adapter {adapter.ref.name}"
    if merged.exact:
        return Note("adapter_merged", f"the child contains it: {plus}, rounded, is the child bit for bit, in {where}")
    share = f"{100 * merged.equal / merged.changed:.3g} %"
    if merged.found:
        text = f"the child contains it: {plus}, rounded, is the child in {where}, up to the order of sums in fp32"
        return Note("adapter_merged", f"{text} ({share} of the changed entries bit for bit)")
    steps = f"the child's step from {base.ref.name} and the adapter's product have a cosine of {merged.cosine:.2g}"
    size = f" at {merged.scale:.2g} times its scale" if merged.cosine > 0 else ""
    text = f"merged into {base.ref.name} it would give {share} of the entries that it or the child changes"
    return Note("adapter_not_merged", f"{text}, in {where}; {steps}{size}")
