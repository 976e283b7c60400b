"""The one pass over the bytes: the same slices of all aligned models are read together into `Moments` and `Units`.

Blocks of a fixed grid are summed in a fixed order, so that any number of processes and devices gives the same sums. See
docs/methods.md, *Units and sampling* and *Streaming*.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..answers.base import Progress
from ..architecture.align import Alignment
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import LineageError
from ..parallel import World, devices, world
from .moments import Moments, block_moments
from .sampling import Plan
from .units import Units

if TYPE_CHECKING:
    from ..parallel import Device

BATCH_BYTES = 8 << 20  # of one model that are in flight at once, for each device
BATCH_BYTES_IN_ALL = 256 << 20  # of all models together
SPANS = 512  # parts, about, that the work is cut into: enough for a hundred processes, and few sums to send
EXCHANGE_BYTES = 32 << 20  # of kept rows that processes exchange at once

Values = dict[Slice, torch.Tensor] | LineageError


@dataclass(frozen=True, slots=True)
class Readings:
    """What one pass over the child and its aligned candidates leaves behind.

    `moments[name]`: of the child's tensor `name`, row 0 the child, the other rows the candidates that have it;
    `candidates_with[name]`: their numbers, in the order of the rows. `failed`: candidates that could not be read, and
    why. `bytes_by_others`: bytes that other processes read for this answer.
    """

    moments: dict[str, Moments]
    candidates_with: dict[str, tuple[int, ...]]
    units: Units
    failed: dict[int, LineageError]
    bytes_by_others: int = 0

    def row(self, name: str, candidate: int) -> int:
        """The candidate's row in the moments of a tensor. Raises `ValueError` where it has no such tensor."""
        return self.candidates_with[name].index(candidate) + 1

    def of(self, candidates: Sequence[int]) -> Readings:
        """The same of some candidates only, numbered anew in the order given."""
        number = {candidate: i for i, candidate in enumerate(candidates)}
        moments, members = {}, {}
        for name, known in self.moments.items():
            kept = [candidate for candidate in candidates if candidate in self.candidates_with[name]]
            moments[name] = known.of([0, *(self.row(name, candidate) for candidate in kept)])
            members[name] = tuple(number[candidate] for candidate in kept)
        failed = {number[candidate]: error for candidate, error in self.failed.items() if candidate in number}
        return Readings(moments, members, self.units.of([0, *(c + 1 for c in candidates)]), failed)

    def child_usable(self, name: str) -> bool:
        """Whether the child's tensor is finite and not all zero."""
        norm = self.moments[name].gram[0, 0]
        return bool(np.isfinite(norm) and norm > 0)

    def child_defect(self, name: str) -> str:
        """Why the child's tensor cannot be used: `zeros`, or `broken` by NaN or Inf."""
        return "zeros" if self.moments[name].gram[0, 0] == 0 else "broken"

    def usable(self, name: str, candidate: int) -> bool:
        """Whether the tensor is finite and not all zero, in the candidate and in the child."""
        norm = self.moments[name].squared_norms()[self.row(name, candidate)]
        return self.child_usable(name) and bool(np.isfinite(norm) and norm > 0)


def read_aligned(
    child: Checkpoint, candidates: Sequence[Checkpoint], alignments: Sequence[Alignment], plan: Plan,
    *, device: Device | Sequence[Device] = "cpu", progress: Progress | None = None,
) -> Readings:  # fmt: skip
    """Read the plan's slices of every model once, batch by batch; the next batch is fetched meanwhile.

    alignments: for each candidate, its tensors for the child's. device: one or several, which take turns. progress:
    called with bytes done and in all, of this process's share.

    Of several processes each reads a share, and all return the same. Sums are taken block by block along spans that the
    plan alone decides, so that their last bits depend on nothing else. A candidate whose reading fails is left out and
    named in `failed`; a child that fails raises. Memory: two batches, the kept rows, one block in float64 per model.
    Raises `LineageError` where the processes do not see the same models and options.
    """
    here, models = world(), [child, *candidates]
    _agree(here, plan, models, alignments)
    names = dict.fromkeys(piece.name for piece in plan.slices)
    candidates_with = {name: tuple(i for i, a in enumerate(alignments) if name in a.pairs) for name in names}
    units = Units(plan.rows, {name: math.prod(child[name].shape[1:]) for name in plan.rows}, len(models))
    spans = _spans(plan.slices)
    share = here.share([sum(_bytes(child, piece) for piece in span) for span in spans])
    before = sum(model.bytes_read for model in models)
    reader = _Reader(models, [None, *(a.pairs for a in alignments)], candidates_with, units, devices(device), {})
    sums = reader.read({i: spans[i] for i in share}, progress if here.main else None)

    spent = sum(model.bytes_read for model in models) - before
    answers = here.gather((sums, reader.failed, spent))
    span_sums = {i: moments for sums, _, _ in answers for i, moments in sums.items()}
    _share_units(here, units, candidates_with, [piece for i in share for piece in spans[i]])
    return Readings(
        {name: reduce(add, (span_sums[i] for i in group)) for name, group in _by_tensor(spans).items()},
        candidates_with,
        units,
        {i: error for _, failed, _ in reversed(answers) for i, error in failed.items()},  # the first one's words
        sum(bytes_read for _, _, bytes_read in answers) - spent,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """One process's share of the pass. `partners[model]`: the child's names → the model's; None for the child
    itself."""

    models: Sequence[Checkpoint]
    partners: Sequence[Mapping[str, str] | None]
    candidates_with: Mapping[str, tuple[int, ...]]
    units: Units
    devices: Sequence[torch.device]
    failed: dict[int, LineageError]

    def read(self, spans: Mapping[int, Sequence[Slice]], progress: Progress | None) -> dict[int, Moments]:
        """The moments of each span. Kept rows go into `units` on the way."""
        child, count = self.models[0], len(self.models)
        span_of = {piece: i for i, span in spans.items() for piece in span}
        sums: dict[int, Moments] = {}
        done, total = 0, sum(_bytes(child, piece) for piece in span_of)
        limit = (
            min(BATCH_BYTES, BATCH_BYTES_IN_ALL // count) // 2 * len(self.devices)
        )  # a candidate may be stored in wider numbers
        with (
            ThreadPoolExecutor(min(8, count), thread_name_prefix="hf-lineage-read") as pool,
            ThreadPoolExecutor(len(self.devices), thread_name_prefix="hf-lineage-measure") as workers,
        ):
            for batch, values in _ahead(pool, self._fetch, _batches(child, span_of, limit), count):
                for i, value in enumerate(values):
                    if isinstance(value, LineageError):
                        self.failed.setdefault(i - 1, value)
                for piece, found in zip(batch, self._measure(batch, values, workers), strict=True):
                    span = span_of[piece]
                    sums[span] = sums[span] + found if span in sums else found
                done += sum(_bytes(child, piece) for piece in batch)
                if progress:
                    progress(done, total, f"{batch[-1].name}, {count} models")
        return sums

    def _fetch(self, model: int, batch: Sequence[Slice]) -> Values:
        if model - 1 in self.failed:  # is not tried again for every batch
            return self.failed[model - 1]
        partner = self.partners[model]
        ours = [piece for piece in batch if partner is None or piece.name in partner]
        theirs = ours if partner is None else [Slice(partner[p.name], p.start, p.stop) for p in ours]
        try:
            return dict(zip(ours, self.models[model].read(theirs), strict=True))
        except LineageError as error:
            if model == 0:
                raise
            return error

    def _measure(self, batch: Sequence[Slice], values: Sequence[Values], workers: ThreadPoolExecutor) -> list[Moments]:
        """The moments of each slice of a batch; slices go to the devices in turn, and these work at the same time."""

        def work(first: int) -> list[Moments]:
            return [self._one(piece, values, self.devices[first]) for piece in batch[first :: len(self.devices)]]

        if len(self.devices) == 1:
            return work(0)
        columns = list(workers.map(work, range(len(self.devices))))
        return [columns[i % len(columns)][i // len(columns)] for i in range(len(batch))]

    def _one(self, piece: Slice, values: Sequence[Values], device: torch.device) -> Moments:
        models = (0, *(i + 1 for i in self.candidates_with[piece.name]))
        block = [_values(values[model], piece) for model in models]
        for model, row in zip(models, block, strict=True):
            self.units.take(model, piece, row)
        return block_moments(block, device)


def _agree(here: World, plan: Plan, models: Sequence[Checkpoint], alignments: Sequence[Alignment]) -> None:
    """Raise where the processes are about to read different things: a branch may have moved since one of them
    looked."""
    if here.size == 1:
        return
    seen = repr((plan, [model.ref for model in models], [sorted(alignment.pairs.items()) for alignment in alignments]))
    if len({*here.gather(hashlib.sha256(seen.encode()).hexdigest())}) > 1:
        raise LineageError(
            f"Expected {here.size} processes to see the same models and options, but they do not. Start again; name a "
            "commit (org/name@revision) where a model is changing."
        )


def _spans(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Runs of neighbouring slices of one tensor, about 1/`SPANS` of everything each: what is shared among processes."""
    limit = sum(piece.stop - piece.start for piece in slices) // SPANS
    spans: list[list[Slice]] = []
    size = 0
    for piece in slices:
        if spans and spans[-1][-1].name == piece.name and size + piece.stop - piece.start <= limit:
            spans[-1].append(piece)
        else:
            spans.append([piece])
            size = 0
        size += piece.stop - piece.start
    return spans


def _by_tensor(spans: Sequence[Sequence[Slice]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, span in enumerate(spans):
        groups.setdefault(span[0].name, []).append(i)
    return groups


def _share_units(
    here: World, units: Units, candidates_with: Mapping[str, tuple[int, ...]], ours: Sequence[Slice]
) -> None:
    """Send every process the rows that the others kept, a few tensors at a time."""
    if here.size == 1:
        return
    for names in _exchanges(units, candidates_with):
        parts = []
        for piece in (piece for piece in ours if piece.name in names):
            width = units.matrix(0, piece.name).shape[1]
            a, b = (bisect_left(units.rows[piece.name], edge // width) for edge in (piece.start, piece.stop))
            for model in (0, *(i + 1 for i in candidates_with[piece.name])) if a < b else ():
                parts.append((model, piece.name, a, b, units.matrix(model, piece.name)[a:b].numpy()))
        for rank, theirs in enumerate(here.gather(parts)):
            for model, name, a, b, rows in theirs if rank != here.rank else ():
                units.matrix(model, name)[a:b] = torch.from_numpy(rows)


def _exchanges(units: Units, candidates_with: Mapping[str, tuple[int, ...]]) -> Iterator[set[str]]:
    """The tensors of which rows are kept, in groups of about `EXCHANGE_BYTES` bytes over all models."""
    names: set[str] = set()
    size = 0
    for name in (name for name in units.rows if name in candidates_with):
        names.add(name)
        size += units.matrix(0, name).nbytes * (1 + len(candidates_with[name]))
        if size >= EXCHANGE_BYTES:
            yield names
            names, size = set(), 0
    if names:
        yield names


def _ahead(
    pool: ThreadPoolExecutor, fetch: Callable[[int, Sequence[Slice]], Values], batches: Iterator[list[Slice]],
    models: int,
) -> Iterator[tuple[list[Slice], list[Values]]]:  # fmt: skip
    """The batches with their values, model by model; the next batch is read while one is used."""
    waiting: tuple[list[Slice], list] | None = None
    for batch in batches:
        coming = (batch, [pool.submit(fetch, model, batch) for model in range(models)])
        if waiting:
            yield waiting[0], [future.result() for future in waiting[1]]
        waiting = coming
    if waiting:
        yield waiting[0], [future.result() for future in waiting[1]]


def _batches(child: Checkpoint, pieces: Iterable[Slice], limit: int) -> Iterator[list[Slice]]:
    batch: list[Slice] = []
    size = 0
    for piece in pieces:
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
    if isinstance(read, LineageError):  # keeps the shape; the candidate is left out at the end
        return torch.full((piece.stop - piece.start,), torch.nan)
    return read[piece]
