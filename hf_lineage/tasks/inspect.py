"""`inspect`: what one model's values tell of their past, without candidates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..answers.base import Progress
from ..answers.history import History, HistoryEvidence
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import ArgumentError, CheckpointError, Note
from ..parallel import together, world
from ..report.progress import progress_of
from ..sizes import limit_of
from ..weights.history import NO_COUNTS, ValueCounts, count_values, past_of, repeated_layers
from ..weights.reader import batches, bytes_of
from ..weights.sampling import make_plan, sample_budget
from .options import Options
from .session import Session, session_of, skipped, within

if TYPE_CHECKING:
    import numpy as np

    from ..checkpoints.opener import Model

BATCH = 8 << 20  # bytes read at once
LAYER_ENTRIES = 4096  # of each tensor of a layer, to see whether it is a copy of another one's
FLOATS = ("F64", "F32", "F16", "BF16")


@together
def inspect(
    model: Model, *, token: str | bool | None = None, sample: str | float | int | None = None,
    max_bytes: int | str | None = None, allow_pickle: bool = False, progress: Progress | bool | None = None,
    seed: int = 0, session: Session | None = None,
) -> History:  # fmt: skip
    """Say what the values of one model tell of their past: no other model is looked at.

    model: a Hub repo id, a path or a module. Its matrices are read: all of a local model, 0.5 % (at least 4 MB) of a
        remote one, unless `sample` says otherwise.

    - Which format the values lie on, whatever the header says: an fp32 file may hold bf16 numbers.
    - Whether they were rounded once, or trained since from a model that was in that format already, and whether the
      weights themselves were kept in it (`weights/history.py`; docs/methods.md, *One model alone*).
    - Of fp32 values: the bf16 or fp16 checkpoint that they were trained from.
    - Layers that are copies of each other.

    None is "does not show", and `evidence` says why. It needs many weights: a few million for a light fine-tune.

    sample, max_bytes, token, allow_pickle, progress, seed, session: as in `trace`. Raises `ModelNotFoundError`,
    `AccessDeniedError`, `CheckpointError`, `HubUnavailableError`, `ArgumentError`, `LimitError`.
    """
    options = Options(sample=sample, max_bytes=limit_of(max_bytes), progress=progress_of(progress), seed=seed)
    with session_of(session, token, allow_pickle) as session:
        opened = session.opener.open(model)
        if opened.is_adapter:
            raise CheckpointError(
                f"`{opened.ref.name}` is a LoRA adapter and holds no weights of its own{opened.base_hint}."
            )
        matrices = {name: entry for name, entry in opened.items() if entry.dtype in FLOATS and len(entry.shape) > 1}
        if not any(entry.count for entry in matrices.values()):
            raise CheckpointError(f"`{opened.ref.name}` has no matrix of floats: there is nothing to inspect.")
        plain = [name for name, entry in matrices.items() if entry.packing is None]  # rounding hides the past of others
        slices, share = _slices(opened, plain, options) if plain else ([], 1.0)
        past = past_of(_count(opened, slices, options))
        by_others = world().others(opened.bytes_read)
        alike = repeated_layers(_layers(opened, [*matrices]))
        stored: Counter[str] = Counter()
        for entry in matrices.values():
            stored[entry.packing.scheme if entry.packing else entry.dtype] += entry.count
        notes = [Note("sampled", f"A sample was read: {100 * share:.2g} % of the weights.")] if share < 1 else []
        cost = options.cost(session, by_others)
        return History(
            model=opened.ref, requested=opened.requested, stored=stored.most_common(1)[0][0], lattice=past.lattice,
            trained_since=past.trained_since, kept_in_half=past.kept_in_half, began_from=past.began_from,
            repeated_layers=tuple(alike),
            evidence={
                name: HistoryEvidence(found.value, found.stderr, found.entries, found.reason)
                for name, found in past.findings.items()
            },
            notes=(*notes, *skipped([opened])), seed=seed,
            **{name: cost[name] for name in ("bytes_read", "seconds", "versions")},
        )  # fmt: skip


def _slices(model: Checkpoint, names: Sequence[str], options: Options) -> tuple[list[Slice], float]:
    """What is read, and the share of all weights. Raises `LimitError` above `max_bytes`."""
    nbytes = {name: model[name].nbytes for name in names}
    total = sum(nbytes.values())
    budget = sample_budget(options.sample, total, model.remote)
    plan = make_plan({name: model[name] for name in names}, nbytes, {}, budget=budget, keep=0, seed=options.seed)
    if not plan.slices:
        raise ArgumentError(f"Expected a larger sample: {budget} bytes of {total:,} hold no slice.")
    within(options.max_bytes, round(plan.share * total), 1)
    return list(plan.slices), plan.share


def _count(model: Checkpoint, slices: Sequence[Slice], options: Options) -> ValueCounts:
    """The counts of all slices; of several processes each reads a share."""
    here = world()
    sizes = [bytes_of(model, piece) for piece in slices]
    share = here.share(sizes)
    counts, done, total = NO_COUNTS, 0, sum(sizes[i] for i in share)
    for batch in batches(model, (slices[i] for i in share), BATCH):
        for values in model.read(batch):
            counts += count_values(values)
        done += sum(bytes_of(model, piece) for piece in batch)
        if options.progress and here.main:
            options.progress(done, total, batch[-1].name)
    return sum(here.gather(counts), NO_COUNTS)


def _layers(model: Checkpoint, names: Sequence[str]) -> dict[str, dict[int, np.ndarray]]:
    """kind of tensor → layer → the first values of its tensor, of kinds that stand in several layers in one shape."""
    kinds: dict[tuple, dict[int, str]] = {}
    for name in names:
        if index := re.search(r"(?<=\.)\d+(?=\.)", f".{name}."):
            kind = (f".{name}."[: index.start()], f".{name}."[index.end() :], model[name].shape)
            kinds.setdefault(kind, {})[int(index[0])] = name
    several = {kind: found for kind, found in kinds.items() if len(found) > 1}
    wanted = [name for found in several.values() for name in found.values()]
    pieces = [Slice(name, 0, min(LAYER_ENTRIES, model[name].count)) for name in wanted]
    values = dict(zip(wanted, model.read(pieces), strict=True))
    return {
        f"{kind[0]}*{kind[1]}": {layer: values[name].float().numpy() for layer, name in found.items()}
        for kind, found in several.items()
    }  # fmt: skip
