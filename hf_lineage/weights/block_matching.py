"""Which block of a candidate may stand at each place of the child: every block against every block, on a sample.

Blocks move (depth up-scaling, frankenmerges), so equal numbers are not enough. Of each kind of tensor the same rows are
read of every block of every model; for two blocks t = Σᵢ ⟨aᵢ, bᵢ⟩ over their hidden units, centred and of length 1, and
its mean and variance under a random matching of the units are known in closed form (`independence.py`).

Cost: up to `SCREEN` bytes of each model, or `MIN_UNITS` rows of one matrix of each block where that is more, and B·ΣBₖ
products of (units × width) matrices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..answers.base import Progress
from ..architecture.align import Alignment, align, is_grown
from ..architecture.describe import Architecture, block_of, describe, natural_key, short_names
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import LineageError
from .permutation_test import hoeffding_moments, unit_length_rows
from .sampling import MAX_ROW, MIN_UNITS, seeded_random

SCREEN, SCREEN_IN_ALL = 16 << 20, 512 << 20  # bytes of rows (as float32) held of one model, and of all
UNITS = 256  # rows of one tensor are plenty: unchanged, z = sqrt(units · width)
GENERIC = 2  # matrices looked at in a block without known hidden units
FITS = 0.5  # share of the child's block, in elements, that a candidate's must have tensor by tensor
STANDS_OUT = 5.0  # z of a block above which it is believed to have moved: 1 in 3 million by chance
TIE = 1e-6  # scores this near are equal: a candidate may hold a block twice


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a model: its own path prefix, `"stem"` or `"head"`; `short`: the canonical one; `tensors`: canonical
    suffix → tensor."""

    path: str
    short: str
    tensors: dict[str, str]
    rest: bool  # stem or head, of which there is one each

    def fits(self, other: Block, ours: Checkpoint, theirs: Checkpoint) -> float:
        """Share of this block's elements for which the other has a tensor of that suffix and shape, in [0, 1]; a table
        with a row per token may have grown."""
        whole = sum(ours[name].count for name in self.tensors.values())
        alike = {*self.shared(other, ours, theirs)}
        alike |= {s for s in self.tensors.keys() & other.tensors.keys() if self._has_grown(s, other, ours, theirs)}
        both = sum(ours[self.tensors[s]].count for s in alike)
        return both / whole if whole and self.rest == other.rest else 0.0

    def _has_grown(self, suffix: str, other: Block, ours: Checkpoint, theirs: Checkpoint) -> bool:
        return is_grown(suffix, ours[self.tensors[suffix]].shape, theirs[other.tensors[suffix]].shape)

    def shared(self, other: Block, ours: Checkpoint, theirs: Checkpoint) -> list[str]:
        """Suffixes that both have in one shape."""
        return [
            suffix for suffix, name in self.tensors.items()
            if suffix in other.tensors and theirs[other.tensors[suffix]].shape == ours[name].shape
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockMatches:
    """One candidate's blocks against the child's. `scores`, `z`: (child blocks, its blocks), nan where shapes differ or
    no test applies; `best[i]`: its block for the child's block i, None where none fits."""

    blocks: tuple[Block, ...]
    scores: np.ndarray
    z: np.ndarray
    best: tuple[int | None, ...]

    def tensor_pairs(self, child: Sequence[Block], ours: Checkpoint, theirs: Checkpoint) -> dict[str, str]:
        """Child's tensor → candidate's tensor, for the blocks chosen."""
        found: dict[str, str] = {}
        for block, j in zip(child, self.best, strict=True):
            if j is not None:
                other = self.blocks[j]
                found |= {block.tensors[s]: other.tensors[s] for s in block.shared(other, ours, theirs)}
        return found


# what stands behind the last block; merging tools take it from where they take the head
_LAST = re.compile(
    r"(?:norm|ln_f|fc_norm|norm_f|final_norm|final_layer_norm|layernorm|post_layernorm)\.(?:weight|bias)$"
)


class _Look(NamedTuple):
    """Rows [first, stop) of a matrix, and the order of hidden units they are in; "" where it is none that is known."""

    first: int
    stop: int
    order: str


def blocks_of(checkpoint: Checkpoint, architecture: Architecture) -> tuple[Block, ...]:
    """Stem, blocks in their natural order, head; where no blocks are known, a group for each module with weights."""
    short = short_names(checkpoint)
    known = {*architecture.blocks.values()} - {"stem", "head"}
    groups: dict[str, dict[str, str]] = {}
    prefixes: dict[str, str] = {}
    for name in architecture.weights:
        label, prefix = architecture.blocks[name], ""
        if label == "stem" and _LAST.match(short[name]):
            label = "head"
        elif label == "stem" and not known:
            label = name.rpartition(".")[0] or name
        if label not in ("stem", "head"):
            prefix = block_of(short[name]) or short[name].rpartition(".")[0] or short[name]
        groups.setdefault(label, {})[short[name].removeprefix(f"{prefix}.")] = name
        prefixes[label] = prefix or label
    order = sorted(groups, key=lambda label: (label == "head", label != "stem", natural_key(label)))
    return tuple(Block(label, prefixes[label], groups[label], label in ("stem", "head")) for label in order)


def match_blocks(
    child: Checkpoint, architecture: Architecture, candidates: Sequence[Checkpoint],
    *, budget: int | None, seed: int, progress: Progress | None = None, expect: Callable[[int], None] | None = None,
) -> tuple[tuple[Block, ...], list[BlockMatches | LineageError]]:  # fmt: skip
    """The child's blocks, and every candidate's against them; the error of one that cannot be read.

    `budget`: bytes to read of a model, at most `SCREEN`, but always `MIN_UNITS` rows of one matrix of each block.
    `expect(bytes)` is told how many are about to be read of all models, and may refuse.
    """
    ours = blocks_of(child, architecture)
    theirs = [blocks_of(candidate, describe(candidate)) for candidate in candidates]
    inner = [sum(not block.rest for block in blocks) for blocks in (ours, *theirs)]
    depth = max(inner) / max(1, inner[0])
    room = min(SCREEN, SCREEN_IN_ALL // (1 + len(candidates)), budget or SCREEN) / max(1.0, depth)
    looks = _looks(child, architecture, ours, round(room), seed)
    own = [_Want.of(block, block, look, child, child) for block, look in zip(ours, looks, strict=True)]
    wants = [_wants(child, ours, looks, *both) for both in zip(candidates, theirs, strict=True)]
    if expect:
        expect(
            sum(_nbytes(m, w) for m, w in zip([child, *candidates], [own, *(w.values() for w in wants)], strict=True))
        )
    mine = _read(child, own)
    found: list[BlockMatches | LineageError] = []
    for done, (candidate, blocks, wanted) in enumerate(zip(candidates, theirs, wants, strict=True)):
        if progress:
            progress(done, len(candidates), f"blocks of {candidate.ref.name}")
        try:
            found.append(_against(child, ours, mine, looks, candidate, blocks, wanted))
        except LineageError as error:
            found.append(error)
    return ours, found


def align_blocks(
    child: Checkpoint, architecture: Architecture, blocks: Sequence[Block], candidate: Checkpoint, places: BlockMatches
) -> Alignment:
    """The candidate's tensors for the child's, block by block; tables that have grown as in `architecture.align`."""
    by_name = align(child, candidate, architecture)
    pairs = places.tensor_pairs(blocks, child, candidate)
    rest = {name for block in blocks if block.rest for name in block.tensors.values()}
    grown = {name: both for name, both in by_name.grown.items() if name in rest and name not in pairs}
    pairs |= {name: by_name.pairs[name] for name in grown}
    unmatched = {
        name: by_name.unmatched.get(name, "no block fits") for name in architecture.weights if name not in pairs
    }
    total = sum(child[name].count for name in architecture.trunk)
    matched = sum(child[name].count for name in architecture.trunk if name in pairs)
    return Alignment(pairs, unmatched, matched / total if total else 0.0, grown)


def _looks(
    child: Checkpoint, architecture: Architecture, blocks: Sequence[Block], room: int, seed: int
) -> list[dict[str, _Look]]:
    """For each block, suffix → rows to look at: those with hidden units, and of the largest other matrices."""
    orders = {name: order for order, names in architecture.orders.items() for name in names}
    readers = {name for names in architecture.reads.values() for name in names}
    chosen: list[dict[str, str]] = []
    for block in blocks:
        fit = [s for s, name in block.tensors.items() if len(child[name].shape) > 1 and _row(child, name) <= MAX_ROW]
        own = {
            s: orders[block.tensors[s]] for s in fit
            if block.tensors[s] in orders and child[block.tensors[s]].shape[0] >= MIN_UNITS
        }  # fmt: skip
        free = {s for s in fit if s not in own and not (own and block.tensors[s] in readers)}
        others = sorted(free, key=lambda s: (-child[block.tensors[s]].count, s))
        # beside the units one other matrix: attention and feed-forward layer may come from different models
        chosen.append({} if block.rest else own | dict.fromkeys(others[: 1 if own else GENERIC], ""))

    def cost() -> int:
        each = zip(blocks, chosen, strict=True)
        return 4 * sum(_row(child, block.tensors[s]) for block, own in each for s in own)

    if MIN_UNITS * cost() > room:  # the narrowest matrix of each block says enough
        narrow = [
            min(own, key=lambda s: (not own[s], _row(child, block.tensors[s]), s), default=None)
            for block, own in zip(blocks, chosen, strict=True)
        ]
        chosen = [{s: own[s]} if s else {} for s, own in zip(narrow, chosen, strict=True)]
    count = max(MIN_UNITS, min(UNITS, room // max(1, cost())))
    found: list[dict[str, _Look]] = []
    for block, own in zip(blocks, chosen, strict=True):
        found.append({})
        for s, order in own.items():
            height = child[block.tensors[s]].shape[0]
            first = seeded_random(seed, f"{height}").randrange(
                max(1, height - count + 1)
            )  # the same rows in every block
            found[-1][s] = _Look(first, min(height, first + count), order)
    return found


@dataclass(frozen=True, slots=True)
class _Want:
    """Rows of one block: suffix → tensor and look."""

    tensors: dict[str, tuple[str, _Look]]

    @classmethod
    def of(cls, block: Block, like: Block, looks: Mapping[str, _Look], ours: Checkpoint, theirs: Checkpoint) -> _Want:
        """Those of `like`'s suffixes that `block` has in the same shape."""
        shared = [s for s in like.shared(block, ours, theirs) if s in looks]
        return cls({s: (block.tensors[s], looks[s]) for s in shared})


def _wants(
    child: Checkpoint, ours: Sequence[Block], looks: Sequence[Mapping[str, _Look]], candidate: Checkpoint,
    theirs: Sequence[Block],
) -> dict[tuple[int, int], _Want]:  # fmt: skip
    """(child's block, candidate's block) → what to read, of the pairs that fit; blocks of one kind are asked once."""
    fits: dict[tuple[Any, Any], bool] = {}
    kinds = [_kind(block, child) for block in ours]
    wants = {}
    for j, other in enumerate(theirs):
        kind = _kind(other, candidate)
        for i, block in enumerate(ours):
            key = kinds[i], kind
            if key not in fits:
                fits[key] = block.fits(other, child, candidate) >= FITS
            if fits[key]:
                wants[i, j] = _Want.of(other, block, looks[i], child, candidate)
    return wants


def _kind(block: Block, checkpoint: Checkpoint) -> tuple[Any, ...]:
    return block.rest, *((s, checkpoint[name].shape) for s, name in sorted(block.tensors.items()))


def _pieces(checkpoint: Checkpoint, wants: Iterable[_Want]) -> list[Slice]:
    """What to read, each tensor's rows once."""
    return [*dict.fromkeys(_piece(checkpoint, *asked) for want in wants for asked in want.tensors.values())]


def _piece(checkpoint: Checkpoint, name: str, look: _Look) -> Slice:
    width = _row(checkpoint, name)
    return Slice(name, look.first * width, look.stop * width)


def _nbytes(checkpoint: Checkpoint, wants: Iterable[_Want]) -> int:
    pieces = _pieces(checkpoint, wants)
    return sum(checkpoint[p.name].nbytes * (p.stop - p.start) // checkpoint[p.name].count for p in pieces)


def _read(checkpoint: Checkpoint, wants: Sequence[_Want]) -> list[dict[str, torch.Tensor]]:
    """For each, suffix → rows (units, width), centred and of length 1; read in one go."""
    pieces = _pieces(checkpoint, wants)
    rows = {
        piece: unit_length_rows(
            torch.nan_to_num(value.float().reshape(-1, _row(checkpoint, piece.name)), 0.0, 0.0, 0.0)
        )
        for piece, value in zip(pieces, checkpoint.read(pieces), strict=True)
    }
    return [{s: rows[_piece(checkpoint, *asked)] for s, asked in want.tensors.items()} for want in wants]


def _against(
    child: Checkpoint, ours: Sequence[Block], mine: Sequence[Mapping[str, torch.Tensor]],
    looks: Sequence[Mapping[str, _Look]], candidate: Checkpoint, theirs: tuple[Block, ...],
    wants: Mapping[tuple[int, int], _Want],
) -> BlockMatches:  # fmt: skip
    scores, z = (np.full((len(ours), len(theirs)), np.nan) for _ in range(2))
    rows = dict(zip(wants, _read(candidate, [*wants.values()]), strict=True))
    for i, block in enumerate(ours):
        alike: dict[tuple[str, ...], list[int]] = {}  # blocks with the same suffixes are compared at once
        for j in range(len(theirs)):
            if (i, j) in rows:
                alike.setdefault(tuple(sorted(rows[i, j])), []).append(j)
        for suffixes, places in alike.items():
            if suffixes:
                stacked = {s: torch.stack([rows[i, j][s] for j in places]) for s in suffixes}
                scores[i, places], z[i, places] = _compare(mine[i], stacked, looks[i])
            else:  # nothing to look at: only a block of the same name may be the one
                scores[i, [j for j in places if theirs[j].short == block.short]] = 0.0
    return BlockMatches(theirs, scores, z, tuple(_best(scores[i], z[i], block, theirs) for i, block in enumerate(ours)))


def _compare(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], looks: Mapping[str, _Look]
) -> tuple[np.ndarray, np.ndarray]:
    """(mean cosine of the rows, z of those in known orders) of rows (units, width) with (blocks, units, width)."""
    total = torch.zeros(len(next(iter(b.values()))), dtype=torch.float64)
    orders: dict[str, torch.Tensor] = {}
    count = 0
    for s in sorted(b):
        total += (a[s] * b[s]).sum((1, 2), dtype=torch.float64)
        count += len(a[s])
        if order := looks[s].order:
            product = (a[s] @ b[s].transpose(1, 2)).double()
            orders[order] = orders[order] + product if order in orders else product
    told = [hoeffding_moments(c) for c in orders.values()]
    score = (total / count).numpy()
    if not told:
        return score, np.full(len(score), np.nan)
    t, mean, variance = (sum(part) for part in zip(*told, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return score, np.where(variance > 0, (t - mean) / np.sqrt(variance), np.nan)


def _best(scores: np.ndarray, z: np.ndarray, block: Block, theirs: Sequence[Block]) -> int | None:
    """The highest score; of equal ones that of the same name, else the first.

    Where no block stands out by z it has not moved as far as can be seen: the one of the same name, if it fits.
    """
    if np.isnan(scores).all():
        return None
    top = [int(j) for j in np.flatnonzero(scores >= np.nanmax(scores) - TIE)]
    same = [j for j, other in enumerate(theirs) if other.short == block.short and not np.isnan(scores[j])]
    if same and (same[0] in top or z[top[0]] < STANDS_OUT):
        return same[0]
    return top[0]


def _row(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint[name].shape[1:])
