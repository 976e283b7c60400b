"""The one pass over the bytes: the same slices of all aligned models are read together into `Moments` and `Units`.

Blocks of a fixed grid are summed in a fixed order, so that any number of processes and devices gives the same sums. See
docs/methods.md, *Units and sampling* and *Streaming*.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..answers.base import Progress
from ..architecture.align import Alignment
from ..checkpoints.buffers import BUFFERS, give_back, pinned
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import LineageError
from ..parallel import THREADS, World, world
from ..placement import is_accelerated, placement
from ..sizes import Memory
from .device_moments import Rows, slice_moments
from .direction.steps import PassCounts, count_slice
from .moments import Moments
from .sampling import Plan
from .units import Units

if TYPE_CHECKING:
    from ..placement import Placement, Wanted

BATCH_SLICES = 512  # of a model that are worked on at once: what is counted of each is larger than a tiny slice
SPANS = 512  # parts, about, that the work is cut into: enough for a hundred processes, and few sums to send
COUNTED = 1 << 25  # entries of matrices, about, whose steps are counted: enough for an order, and bounded in time
LINED_UP = (
    0.2  # correlation of a matrix, or a slice of it, with the child's from which a step leads from one to the other
)
MOST_READING = 16  # threads that read for an accelerator
EXCHANGE_BYTES = 32 << 20  # of kept rows that processes exchange at once

Values = dict[Slice, torch.Tensor] | LineageError
Block = dict[int, torch.Tensor]  # model → its values of a slice
Sums = dict[int | None, Moments]  # None: all models, over the entries that all have; i: child and candidate i alone


@dataclass(frozen=True, slots=True)
class Readings:
    """What one pass over the child and its aligned candidates leaves behind.

    `moments[name]`: of the child's tensor `name`, row 0 the child, the other rows the candidates that have it;
    `candidates_with[name]`: their numbers, in the order of the rows. `failed`: candidates that could not be read, and
    why. `bytes_by_others`: bytes that other processes read for this answer.

    Of a token table that is not equally long in all of them `moments` has the rows that all have;
    `pairs[name][candidate]` has those that the child and this candidate have, `shared_rows[name][candidate]` how many.
    `counts`: of steps and values, by which an order shows; empty where nobody asked for them.
    """

    moments: dict[str, Moments]
    candidates_with: dict[str, tuple[int, ...]]
    units: Units
    failed: dict[int, LineageError]
    bytes_by_others: int = 0
    pairs: dict[str, dict[int, Moments]] = field(default_factory=dict)
    shared_rows: dict[str, dict[int, int]] = field(default_factory=dict)
    counts: PassCounts = field(default_factory=PassCounts)

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
        pairs, rows = (_renumbered(table, number) for table in (self.pairs, self.shared_rows))
        shortest = {name: min(found.values()) for name, found in rows.items() if found}
        units = self.units.of([0, *(c + 1 for c in candidates)], shortest)
        counts = self.counts.of(candidates)
        return Readings(moments, members, units, failed, pairs=pairs, shared_rows=rows, counts=counts)

    def pair(self, name: str, candidate: int) -> Moments:
        """The moments of the child, row 0, and one candidate that has the tensor, row 1: of all entries that both have.

        Not a bit of them depends on the other candidates.
        """
        if name in self.pairs:
            return self.pairs[name][candidate]
        return self.moments[name].of([0, self.row(name, candidate)])

    def pairs_of(self, candidate: int) -> dict[str, Moments]:
        """`pair` of every tensor of which child and candidate were read at the same entries."""
        names = [name for name, having in self.candidates_with.items() if candidate in having]
        return {name: self.pair(name, candidate) for name in names if candidate in self.pairs.get(name, (candidate,))}

    def unit_pair(self, name: str, candidate: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The kept rows of one matrix that both have: (child's, candidate's), (rows, width) float32 each."""
        ours, theirs = self.units.matrix(0, name), self.units.matrix(candidate + 1, name)
        if name in self.shared_rows:
            last = bisect_left(self.units.rows[name], self.shared_rows[name][candidate])
            return ours[:last], theirs[:last]
        return ours, theirs

    def child_usable(self, name: str) -> bool:
        """Whether the child's tensor is finite and not all zero."""
        norm = self._child_norm(name)
        return bool(np.isfinite(norm) and norm > 0)

    def child_defect(self, name: str) -> str:
        """Why the child's tensor cannot be used: `zeros`, or `broken` by NaN or Inf."""
        return "zeros" if self._child_norm(name) == 0 else "broken"

    def _child_norm(self, name: str) -> float:
        every = [self.moments[name]] if name in self.moments else [*self.pairs[name].values()]
        return float(every[0].gram[0, 0])

    def usable(self, name: str, candidate: int) -> bool:
        """Whether the tensor is finite and not all zero, in the candidate and in the child."""
        if candidate not in self.pairs.get(name, (candidate,)):
            return False  # nothing was read of the rows that both have
        moments, row = (
            (self.pairs[name][candidate], 1) if name in self.pairs else (self.moments[name], self.row(name, candidate))
        )
        norms = moments.squared_norms()
        ours, theirs = norms[0], norms[row]
        return bool(np.isfinite(ours) and ours > 0 and np.isfinite(theirs) and theirs > 0)


def read_aligned(
    child: Checkpoint, candidates: Sequence[Checkpoint], alignments: Sequence[Alignment], plan: Plan,
    *, device: Wanted | Placement = None, progress: Progress | None = None, orders: bool = False,
    relatives: bool = False, memory: Memory | None = None,
) -> Readings:  # fmt: skip
    """Read the plan's slices of every model once, batch by batch; the next batch is fetched meanwhile.

    alignments: for each candidate, its tensors for the child's; of a token table with another number of rows the first
    ones, as many as both have. device: as `placement` takes it; several take turns. progress: called with bytes done
    and in all, of this process's share. orders: whether steps and values of matrices are counted, too. relatives:
    products of two candidates are made of those only that are correlated with the child (`block_moments`); of a sample
    all are. memory: how much is read at once.

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
    spans = _spans(plan.slices, sum(child[name].count for name in child))
    shared_rows = _unequal(child, alignments, names)
    share = here.share([sum(bytes_of(child, piece) for piece in span) for span in spans])
    before = sum(model.bytes_read for model in models)
    limits = {
        name: {i: rows * math.prod(child[name].shape[1:]) for i, rows in found.items()}
        for name, found in shared_rows.items()
    }
    partners = [None, *(a.pairs for a in alignments)]
    matrices = sum(piece.stop - piece.start for piece in plan.slices if len(child[piece.name].shape) > 1)
    share_counted = min(1.0, COUNTED / max(matrices, 1)) if orders else 0.0
    workers = _workers(device)
    reader = _Reader(
        models,
        partners,
        candidates_with,
        limits,
        units,
        workers,
        plan.sampled,
        relatives and not plan.sampled,
        share_counted,
        memory or Memory(),
        {},
    )
    with BUFFERS.kept(pinned if is_accelerated(workers) else bytearray):
        sums = reader.read({i: spans[i] for i in share}, progress if here.main else None)

    spent = sum(model.bytes_read for model in models) - before
    answers = here.gather((sums, reader.failed, spent, reader.counts))
    span_sums = {i: moments for sums, *_ in answers for i, moments in sums.items()}
    counts = PassCounts()
    for *_, counted in answers:
        counts.add(counted)
    _share_units(here, units, candidates_with, [piece for i in share for piece in spans[i]])
    tables = {name: _added([span_sums[i] for i in group]) for name, group in _by_tensor(spans).items()}
    return Readings(
        {name: found[None] for name, found in tables.items() if None in found},
        candidates_with,
        units,
        {i: error for _, failed, *_ in reversed(answers) for i, error in failed.items()},  # the first one's words
        sum(bytes_read for _, _, bytes_read, _ in answers) - spent,
        {name: {i: m for i, m in tables[name].items() if i is not None} for name in shared_rows},
        shared_rows,
        counts,
    )


def _renumbered(table: Mapping[str, Mapping[int, Any]], number: Mapping[int, int]) -> dict[str, dict[int, Any]]:
    return {name: {number[c]: value for c, value in found.items() if c in number} for name, found in table.items()}


def _unequal(child: Checkpoint, alignments: Sequence[Alignment], names: Iterable[str]) -> dict[str, dict[int, int]]:
    """Token tables of which some candidate has fewer rows than the child: name → candidate → rows that both have."""
    unequal: dict[str, dict[int, int]] = {}
    for name in names:
        rows = {
            i: min(alignment.grown.get(name, child[name].shape[:1])) for i, alignment in enumerate(alignments)
            if name in alignment.pairs and child[name].shape
        }  # fmt: skip
        if any(count < child[name].shape[0] for count in rows.values()):
            unequal[name] = rows
    return unequal


def _added(sums: Sequence[Sums]) -> Sums:
    """Sums over the spans of a tensor, each added up from the first to the last that has it."""
    added: Sums = {}
    for part in sums:
        for key, moments in part.items():
            added[key] = added[key] + moments if key in added else moments
    return added


@dataclass(frozen=True, slots=True)
class _Reader:
    """One process's share of the pass. `partners[model]`: the child's names → the model's; None for the child
    itself."""

    models: Sequence[Checkpoint]
    partners: Sequence[Mapping[str, str] | None]
    candidates_with: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, Mapping[int, int]]  # elements of unequal tables that child and candidate share
    units: Units
    devices: Sequence[torch.device]
    sampled: bool  # only of a sample the standard errors are asked for
    relatives: bool  # of two candidates only of those that are correlated with the child
    orders: float  # share of the slices of matrices whose steps are counted
    memory: Memory
    failed: dict[int, LineageError]
    counts: PassCounts = field(default_factory=PassCounts)

    def read(self, spans: Mapping[int, Sequence[Slice]], progress: Progress | None) -> dict[int, Sums]:
        """The moments of each span. Kept rows go into `units` on the way."""
        child, count = self.models[0], len(self.models)
        span_of = {piece: i for i, span in spans.items() for piece in span}
        sums: dict[int, Sums] = {}
        done, freed, total = 0, 0, sum(bytes_of(child, piece) for piece in span_of)
        limit = self.memory.batch(count, len(self.devices), is_accelerated(self.devices))
        parts = max(1, min(MOST_READING, THREADS.count) // count) if is_accelerated(self.devices) else 1
        with (
            ThreadPoolExecutor(parts * min(8, count), thread_name_prefix="hf-lineage-read") as pool,
            ThreadPoolExecutor(len(self.devices), thread_name_prefix="hf-lineage-measure") as workers,
        ):
            for batch, values in _ahead(pool, self._fetch, batches(child, span_of, limit), count, parts):
                for i, value in enumerate(values):
                    if isinstance(value, LineageError):
                        self.failed.setdefault(i - 1, value)
                measured, counted = self._measure(batch, values, workers)
                for counts in counted:
                    self.counts.add(counts)
                for piece, found in zip(batch, measured, strict=True):
                    span = span_of[piece]
                    sums[span] = _added([sums[span], found]) if span in sums else found
                size = sum(bytes_of(child, piece) for piece in batch)
                done, freed = done + size, freed + size * count
                if freed >= self.memory.given_back:
                    freed = 0
                    give_back()
                if progress:
                    progress(done, total, f"{batch[-1].name}, {count} models")
        return sums

    def _fetch(self, model: int, batch: Sequence[Slice]) -> Values:
        if model - 1 in self.failed:  # is not tried again for every batch
            return self.failed[model - 1]
        partner = self.partners[model]
        if partner is None:
            ours = theirs = list(batch)
        else:
            ours = [piece for piece in batch if piece.name in partner and self._stop(model - 1, piece) > piece.start]
            theirs = [Slice(partner[p.name], p.start, self._stop(model - 1, p)) for p in ours]
        try:
            return dict(zip(ours, self.models[model].read(theirs), strict=True))
        except LineageError as error:
            if model == 0:
                raise
            return error

    def _stop(self, candidate: int, piece: Slice) -> int:
        """Where the candidate's part of a slice ends."""
        return min(piece.stop, self.limits.get(piece.name, {}).get(candidate, piece.stop))

    def _measure(
        self, batch: Sequence[Slice], values: Sequence[Values], workers: ThreadPoolExecutor
    ) -> tuple[list[Sums], list[PassCounts]]:
        """The moments of each slice of a batch, and the counts of all; slices go to the devices in turn, which work at
        once."""

        def work(first: int) -> tuple[list[Sums], PassCounts]:
            pieces = batch[first :: len(self.devices)]
            blocks = [self._block(piece, values) for piece in pieces]
            made = self._sums(pieces, blocks, self.devices[first])
            # counts are tables of 300 kB: between the moments, which stay, they would leave as many holes in memory
            counts = PassCounts()
            for piece, block, sums in zip(pieces, blocks, made, strict=True):
                counts.add(self._counted(piece, block, sums))
            return made, counts

        if len(self.devices) == 1:
            sums, counts = work(0)
            return sums, [counts]
        columns = list(workers.map(work, range(len(self.devices))))
        found = [columns[i % len(columns)][0][i // len(columns)] for i in range(len(batch))]
        return found, [counts for _, counts in columns]

    def _block(self, piece: Slice, values: Sequence[Values]) -> Block:
        """One slice of every model that has a part of it; its units are kept on the way."""
        having = [i for i in self.candidates_with[piece.name] if self._stop(i, piece) > piece.start]
        block = {0: _values(values[0], piece, piece.stop)}
        block |= {i + 1: _values(values[i + 1], piece, self._stop(i, piece)) for i in having}
        for model, row in block.items():
            self.units.take(model, Slice(piece.name, piece.start, piece.start + len(row)), row)
        return block

    def _sums(self, pieces: Sequence[Slice], blocks: Sequence[Block], device: torch.device) -> list[Sums]:
        """The moments of each slice of all models, under None; of an unequal table also those of each pair."""
        even: dict[tuple[int, int | None], Rows] = {}
        uneven: dict[tuple[int, int | None], Rows] = {}
        for at, (piece, block) in enumerate(zip(pieces, blocks, strict=True)):
            wanted = uneven if piece.name in self.limits else even
            if piece.name in self.limits:
                wanted |= {(at, model - 1): (block[0][: len(row)], row) for model, row in block.items() if model}
            if len(block) > len(self.candidates_with[piece.name]):
                shortest = min(map(len, block.values()))
                wanted[at, None] = [row[:shortest] for row in block.values()]
        sums: list[Sums] = [{} for _ in pieces]
        for wanted, fourth in ((even, self.sampled), (uneven, True)):
            made = slice_moments([*wanted.values()], device, fourth, self.relatives)
            for (at, key), moments in zip(wanted, made, strict=True):
                sums[at][key] = moments
        return sums

    def _counted(self, piece: Slice, block: Block, sums: Sums) -> PassCounts:
        """What a slice of a matrix counts, where orders are wanted: of candidates that are correlated with the child,
        and of so many slices, the same in every process, that about `COUNTED` entries are counted."""
        entry = self.models[0][piece.name]
        matrix = len(entry.shape) > 1 and entry.packing is None  # what was rounded to be stored tells of the rounding
        if not (self.orders and matrix and zlib.crc32(f"{piece.name}:{piece.start}".encode()) < self.orders * 2**32):
            return PassCounts()
        having = [model - 1 for model in block if model]
        if piece.name in self.limits:
            r = {i: float(sums[i].correlation()[1]) for i in having}
        else:
            r = dict(zip(having, sums[None].correlation()[1:], strict=True))
        counted = [i for i in having if r[i] >= LINED_UP and not self._is_packed(i, piece.name)]
        return count_slice(piece.name, block[0], {i: block[i + 1] for i in counted})

    def _is_packed(self, candidate: int, name: str) -> bool:
        partner = self.partners[candidate + 1]
        return partner is not None and self.models[candidate + 1][partner[name]].packing is not None


def _workers(device: Wanted | Placement) -> tuple[torch.device, ...]:
    """The devices that take turns; the processor as often as torch has threads."""
    found = placement(device).devices
    return found * THREADS.count if [one.type for one in found] == ["cpu"] else found


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


def _spans(slices: Sequence[Slice], total: int) -> list[list[Slice]]:
    """Runs of neighbouring slices of one tensor, of about 1/`SPANS` of the child's `total` elements: what is shared
    among processes. How a tensor is divided depends on the child alone, and so do the last bits of its sums."""
    limit = total // SPANS
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
    pool: ThreadPoolExecutor, fetch: Callable[[int, Sequence[Slice]], Values], wanted: Iterator[list[Slice]],
    models: int, parts: int,
) -> Iterator[tuple[list[Slice], list[Values]]]:  # fmt: skip
    """The batches with their values, model by model, each read in so many parts; the next batch is read while one is
    used."""
    waiting: tuple[list[Slice], list] | None = None
    for batch in wanted:
        length = -(-len(batch) // parts)
        cut = [batch[at : at + length] for at in range(0, len(batch), length)]
        coming = (batch, [[pool.submit(fetch, model, part) for part in cut] for model in range(models)])
        if waiting:
            yield waiting[0], [_whole(futures) for futures in waiting[1]]
        waiting = coming
    if waiting:
        yield waiting[0], [_whole(futures) for futures in waiting[1]]


def _whole(parts: Sequence[Future[Values]]) -> Values:
    """What was read of one model; the first error where a part failed."""
    values: dict[Slice, torch.Tensor] = {}
    for part in parts:
        found = part.result()
        if isinstance(found, LineageError):
            return found
        values |= found
    return values


def batches(child: Checkpoint, pieces: Iterable[Slice], limit: int) -> Iterator[list[Slice]]:
    """Runs of at most `BATCH_SLICES` slices and `limit` bytes of memory of the child; a longer slice is a run alone."""
    batch: list[Slice] = []
    size = 0
    for piece in pieces:
        held = 4 * (piece.stop - piece.start) if child[piece.name].packing else bytes_of(child, piece)
        if batch and (size + held > limit or len(batch) == BATCH_SLICES):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += held
    if batch:
        yield batch


def bytes_of(child: Checkpoint, piece: Slice) -> int:
    """How many bytes of the child a slice is."""
    entry = child[piece.name]
    return entry.nbytes * (piece.stop - piece.start) // entry.count


def _values(read: Values, piece: Slice, stop: int) -> torch.Tensor:
    if isinstance(read, LineageError):  # keeps the shape; the candidate is left out at the end
        return torch.full((stop - piece.start,), torch.nan)
    return read[piece]
