"""The one pass over the bytes: slices of all models together, in, `Moments` and `Units` out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ..architecture import Alignment
from ..errors import LineageError
from ..hub.checkpoint import Checkpoint
from ..records import Progress, Slice
from .moments import Moments, measure
from .sample import Plan
from .units import Units

BATCH = 8 << 20  # bytes per model that are in flight at once
BATCHES = 256 << 20  # … and over all models together

Values = dict[Slice, torch.Tensor] | LineageError


@dataclass(frozen=True, slots=True)
class Readings:
    """What one pass leaves behind. `members[name]`: the candidates that have this tensor; row 0 is the child."""

    moments: dict[str, Moments]
    members: dict[str, tuple[int, ...]]
    units: Units
    failed: dict[int, LineageError]

    def row(self, name: str, candidate: int) -> int:
        """The candidate's row in the moments of a tensor."""
        return self.members[name].index(candidate) + 1

    def child_usable(self, name: str) -> bool:
        """Whether the child's tensor is finite and not all zero."""
        norm = self.moments[name].gram[0, 0]
        return bool(np.isfinite(norm) and norm > 0)

    def child_defect(self, name: str) -> str:
        """Why it is not: `zeros` or `broken`."""
        return "zeros" if self.moments[name].gram[0, 0] == 0 else "broken"

    def usable(self, name: str, candidate: int) -> bool:
        """The same of the candidate's tensor, and of the child's."""
        norm = self.moments[name].squared_norms()[self.row(name, candidate)]
        return self.child_usable(name) and bool(np.isfinite(norm) and norm > 0)


def read_together(
    child: Checkpoint, candidates: Sequence[Checkpoint], alignments: Sequence[Alignment], plan: Plan,
    *, device: torch.device | str = "cpu", progress: Progress | None = None,
) -> Readings:  # fmt: skip
    """Read the plan's slices of every model once, batch by batch; the next batch is fetched meanwhile.

    A candidate whose reading fails is dropped and named in `failed`; a child that fails raises. Memory: two
    batches, the kept units, and one block in float64 per model.
    """
    models = [child, *candidates]
    partners = [None, *(alignment.pairs for alignment in alignments)]
    names = dict.fromkeys(piece.name for piece in plan.slices)
    members = {name: tuple(i for i, a in enumerate(alignments) if name in a.pairs) for name in names}
    widths = {name: math.prod(child[name].shape[1:]) for name in plan.rows}
    units = Units(plan.rows, widths, len(models))
    parts: dict[str, Moments] = {}
    failed: dict[int, LineageError] = {}
    total = sum(_bytes(child, piece) for piece in plan.slices)

    def fetch(model: int, batch: Sequence[Slice]) -> Values:
        if model - 1 in failed:  # not asked again and again
            return failed[model - 1]
        partner = partners[model]
        ours = [piece for piece in batch if partner is None or piece.name in partner]
        theirs = ours if partner is None else [Slice(partner[p.name], p.start, p.stop) for p in ours]
        try:
            return dict(zip(ours, models[model].read(theirs), strict=True))
        except LineageError as error:
            if model == 0:
                raise
            return error

    done = 0
    with ThreadPoolExecutor(min(8, len(models)), thread_name_prefix="hf-lineage-read") as pool:
        for batch, values in _ahead(pool, fetch, _batches(child, plan, len(models)), len(models)):
            for i, value in enumerate(values):
                if isinstance(value, LineageError):
                    failed.setdefault(i - 1, value)
            for piece in batch:
                block = [_values(values[0], piece)]
                block += [_values(values[i + 1], piece) for i in members[piece.name]]
                found = measure(block, device)
                parts[piece.name] = parts[piece.name] + found if piece.name in parts else found
                for model, row in zip((0, *(i + 1 for i in members[piece.name])), block, strict=True):
                    units.take(model, piece, row)
            done += sum(_bytes(child, piece) for piece in batch)
            if progress:
                progress(done, total, f"{batch[-1].name}, {len(models)} models")
    return Readings(parts, members, units, failed)


def _ahead(
    pool: ThreadPoolExecutor, fetch: Callable[[int, Sequence[Slice]], Values], batches: Iterator[list[Slice]],
    models: int,
) -> Iterator[tuple[list[Slice], list[Values]]]:  # fmt: skip
    """Batches with their values, one batch read ahead."""
    waiting: tuple[list[Slice], list] | None = None
    for batch in batches:
        coming = (batch, [pool.submit(fetch, model, batch) for model in range(models)])
        if waiting:
            yield waiting[0], [future.result() for future in waiting[1]]
        waiting = coming
    if waiting:
        yield waiting[0], [future.result() for future in waiting[1]]


def _batches(child: Checkpoint, plan: Plan, models: int) -> Iterator[list[Slice]]:
    limit = min(BATCH, BATCHES // models) // 2  # a candidate may be stored in wider numbers than the child
    batch: list[Slice] = []
    size = 0
    for piece in plan.slices:
        if batch and size + _bytes(child, piece) > limit:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += _bytes(child, piece)
    if batch:
        yield batch


def _bytes(child: Checkpoint, piece: Slice) -> int:
    entry = child[piece.name]
    return entry.nbytes * (piece.stop - piece.start) // entry.count


def _values(read: Values, piece: Slice) -> torch.Tensor:
    if isinstance(read, LineageError):  # keeps the shape; the candidate is dropped at the end
        return torch.full((piece.stop - piece.start,), torch.nan)
    return read[piece]
