"""Which block of a candidate matches each block of the child: every block against every block, on a sample of rows.

Blocks move (depth up-scaling, frankenmerges), so that equal numbers are not enough. Of each kind of tensor the same
rows are read of every block of every model. For two blocks t = Σᵢ ⟨aᵢ, bᵢ⟩ over their hidden units, centred and of
length 1, and its mean and variance under a random matching of the units have a closed form (`permutation_test.py`). See
docs/methods.md, *Matching blocks*.

Cost: up to `SCREEN_BYTES` of each model, or `MIN_UNITS` rows of one matrix of each block where that is more, and
B·ΣBₖ products of (units × width) matrices for B blocks of the child and Bₖ of each candidate.
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
from ..architecture.align import Alignment, is_grown
from ..architecture.describe import Architecture, block_of, natural_key, short_names
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import LineageError
from .permutation_test import hoeffding_moments, unit_length_rows
from .sampling import MAX_ROW, MIN_UNITS, seeded_random

SCREEN_BYTES, SCREEN_BYTES_IN_ALL = 16 << 20, 512 << 20  # of rows (as float32) held of one model, and of all
SCREEN_ROWS = 256  # of one tensor, at most: an unchanged block has z = sqrt(rows · width)
GENERIC_MATRICES = 2  # compared in a block without known hidden units
MIN_BLOCK_SHARE = 0.5  # of the elements of the child's block that a candidate's block must have, tensor by tensor
MOVED_Z = 5.0  # from which a block is taken to have moved: 1 in 3 million by chance
TIED_SCORES = 1e-6  # difference up to which scores are equal: a candidate may hold a block twice


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a model. path: its prefix in the model's names, `"stem"` or `"head"`; short: the canonical prefix;
    tensors: canonical suffix → the tensor's name; rest: whether it is the stem or the head, of which there is one each.
    """

    path: str
    short: str
    tensors: dict[str, str]
    rest: bool

    def fits(self, other: Block, ours: Checkpoint, theirs: Checkpoint) -> float:
        """Share of this block's elements for which the other has a tensor of that suffix and shape, in [0, 1].

        A table with a row per token may have grown. ours, theirs: the checkpoints that hold the two blocks.
        """
        total = sum(ours[name].count for name in self.tensors.values())
        common = {*self.shared(other, ours, theirs)}
        common |= {s for s in self.tensors.keys() & other.tensors.keys() if self._has_grown(s, other, ours, theirs)}
        matched = sum(ours[self.tensors[s]].count for s in common)
        return matched / total if total and self.rest == other.rest else 0.0

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
    """One candidate's blocks against the child's.

    scores, z: (child's blocks, its blocks), the mean cosine of matched rows and the z of the permutation test; nan
    where shapes differ or no test applies. best[i]: its block for the child's block i, None where none fits.
    """

    blocks: tuple[Block, ...]
    scores: np.ndarray
    z: np.ndarray
    best: tuple[int | None, ...]

    def tensor_pairs(self, child: Sequence[Block], ours: Checkpoint, theirs: Checkpoint) -> dict[str, str]:
        """Child's tensor → candidate's tensor, for the matched blocks."""
        found: dict[str, str] = {}
        for block, j in zip(child, self.best, strict=True):
            if j is not None:
                other = self.blocks[j]
                found |= {block.tensors[s]: other.tensors[s] for s in block.shared(other, ours, theirs)}
        return found


# What follows the last block. Merging tools take it from the model that they take the head from.
_AFTER_LAST_BLOCK = re.compile(
    r"(?:norm|ln_f|fc_norm|norm_f|final_norm|final_layer_norm|layernorm|post_layernorm)\.(?:weight|bias)$"
)


class _Rows(NamedTuple):
    """Rows [first, stop) of a matrix, and the hidden-unit order they belong to, "" where none is known."""

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
        if label == "stem" and _AFTER_LAST_BLOCK.match(short[name]):
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
    """The child's blocks, and how every candidate's blocks match them; an error in place of one that cannot be read.

    budget: bytes to read of a model, at most `SCREEN_BYTES`, but always `MIN_UNITS` rows of one matrix of each block.
    expect: called with the bytes that are about to be read of all models; it may raise to refuse.
    """
    ours = blocks_of(child, architecture)
    theirs = [blocks_of(candidate, candidate.architecture) for candidate in candidates]
    inner = [sum(not block.rest for block in blocks) for blocks in (ours, *theirs)]
    depth = max(inner) / max(1, inner[0])
    room = min(SCREEN_BYTES, SCREEN_BYTES_IN_ALL // (1 + len(candidates)), budget or SCREEN_BYTES) / max(1.0, depth)
    screen = _Screen(child, ours, _choose_rows(child, architecture, ours, round(room), seed))
    own = [screen.rows_in(block, i, child) for i, block in enumerate(ours)]
    wanted = [screen.wanted(*both) for both in zip(candidates, theirs, strict=True)]
    if expect:
        asked = [own, *(rows.values() for rows in wanted)]
        expect(sum(_nbytes(model, rows) for model, rows in zip([child, *candidates], asked, strict=True)))
    child_rows = _read(child, own)
    matches: list[BlockMatches | LineageError] = []
    for done, (candidate, blocks, rows) in enumerate(zip(candidates, theirs, wanted, strict=True)):
        if progress:
            progress(done, len(candidates), f"blocks of {candidate.ref.name}")
        try:
            matches.append(_matches(screen, child_rows, candidate, blocks, rows))
        except LineageError as error:
            matches.append(error)
    return ours, matches


def align_blocks(
    child: Checkpoint, blocks: Sequence[Block], candidate: Checkpoint, matches: BlockMatches, by_name: Alignment
) -> Alignment:
    """The candidate's tensors for the child's, block by block; token tables that have grown as in `by_name`.

    by_name: what `architecture.align` made of the two.
    """
    architecture = child.architecture
    pairs = matches.tensor_pairs(blocks, child, candidate)
    rest = {name for block in blocks if block.rest for name in block.tensors.values()}
    grown = {name: both for name, both in by_name.grown.items() if name in rest and name not in pairs}
    pairs |= {name: by_name.pairs[name] for name in grown}
    unmatched = {
        name: by_name.unmatched.get(name, "no block fits") for name in architecture.weights if name not in pairs
    }
    total = sum(child[name].count for name in architecture.trunk)
    matched = sum(child[name].count for name in architecture.trunk if name in pairs)
    return Alignment(pairs, unmatched, matched / total if total else 0.0, grown)


def _choose_rows(
    child: Checkpoint, architecture: Architecture, blocks: Sequence[Block], room: int, seed: int
) -> list[dict[str, _Rows]]:
    """For each block, suffix → the rows that are compared: of matrices with hidden units, and of large other ones."""
    chosen = [_choose_matrices(child, architecture, block) for block in blocks]

    def cost() -> int:
        pairs = zip(blocks, chosen, strict=True)
        return 4 * sum(_row(child, block.tensors[s]) for block, matrices in pairs for s in matrices)

    if MIN_UNITS * cost() > room:  # the narrowest matrix of each block shows enough
        narrowest = [
            min(matrices, key=lambda s: (not matrices[s], _row(child, block.tensors[s]), s), default=None)
            for block, matrices in zip(blocks, chosen, strict=True)
        ]
        chosen = [{s: matrices[s]} if s else {} for s, matrices in zip(narrowest, chosen, strict=True)]
    count = max(MIN_UNITS, min(SCREEN_ROWS, room // max(1, cost())))
    result: list[dict[str, _Rows]] = []
    for block, matrices in zip(blocks, chosen, strict=True):
        result.append({})
        for s, order in matrices.items():
            height = child[block.tensors[s]].shape[0]
            random = seeded_random(seed, f"{height}")  # the same rows in every block
            first = random.randrange(max(1, height - count + 1))
            result[-1][s] = _Rows(first, min(height, first + count), order)
    return result


def _choose_matrices(child: Checkpoint, architecture: Architecture, block: Block) -> dict[str, str]:
    """Suffix → hidden-unit order, "" where none is known, of the matrices that are compared; none of stem and head."""
    if block.rest:
        return {}
    whole = {order: names for order, names in architecture.orders.items() if order not in architecture.groups}
    orders = {name: order for order, names in whole.items() for name in names}
    readers = {name for names in architecture.reads.values() for name in names}
    fit = [s for s, name in block.tensors.items() if len(child[name].shape) > 1 and _row(child, name) <= MAX_ROW]
    known = {
        s: orders[block.tensors[s]] for s in fit
        if block.tensors[s] in orders and child[block.tensors[s]].shape[0] >= MIN_UNITS
    }  # fmt: skip
    free = {s for s in fit if s not in known and not (known and block.tensors[s] in readers)}
    others = sorted(free, key=lambda s: (-child[block.tensors[s]].count, s))
    # beside known units one other matrix: attention and feed-forward layer may come from different models
    return known | dict.fromkeys(others[: 1 if known else GENERIC_MATRICES], "")


_BlockRows = dict[str, tuple[str, _Rows]]  # suffix → tensor, and which of its rows


@dataclass(frozen=True, slots=True)
class _Screen:
    """The child's side of the comparison: its blocks, and for each of them, suffix → the rows that are compared."""

    child: Checkpoint
    blocks: tuple[Block, ...]
    rows: Sequence[Mapping[str, _Rows]]

    def rows_in(self, block: Block, i: int, checkpoint: Checkpoint) -> _BlockRows:
        """The rows of a block that are compared with those of the child's block i: of suffixes in the same shape."""
        shared = self.blocks[i].shared(block, self.child, checkpoint)
        return {s: (block.tensors[s], self.rows[i][s]) for s in shared if s in self.rows[i]}

    def wanted(self, candidate: Checkpoint, theirs: Sequence[Block]) -> dict[tuple[int, int], _BlockRows]:
        """(child's block, candidate's block) → rows to read, of the pairs that fit; each kind of pair is fitted
        once."""
        fits: dict[tuple[Any, Any], bool] = {}
        kinds = [_kind(block, self.child) for block in self.blocks]
        wanted = {}
        for j, other in enumerate(theirs):
            kind = _kind(other, candidate)
            for i, block in enumerate(self.blocks):
                key = kinds[i], kind
                if key not in fits:
                    fits[key] = block.fits(other, self.child, candidate) >= MIN_BLOCK_SHARE
                if fits[key]:
                    wanted[i, j] = self.rows_in(other, i, candidate)
        return wanted


def _kind(block: Block, checkpoint: Checkpoint) -> tuple[Any, ...]:
    return block.rest, *((s, checkpoint[name].shape) for s, name in sorted(block.tensors.items()))


def _slices(checkpoint: Checkpoint, wanted: Iterable[_BlockRows]) -> list[Slice]:
    """What to read, each tensor's rows once."""
    return [*dict.fromkeys(_slice(checkpoint, *rows) for block in wanted for rows in block.values())]


def _slice(checkpoint: Checkpoint, name: str, rows: _Rows) -> Slice:
    width = _row(checkpoint, name)
    return Slice(name, rows.first * width, rows.stop * width)


def _nbytes(checkpoint: Checkpoint, wanted: Iterable[_BlockRows]) -> int:
    slices = _slices(checkpoint, wanted)
    return sum(checkpoint[p.name].nbytes * (p.stop - p.start) // checkpoint[p.name].count for p in slices)


def _read(checkpoint: Checkpoint, wanted: Sequence[_BlockRows]) -> list[dict[str, torch.Tensor]]:
    """For each block, suffix → rows (units, width), centred and of length 1; all are read together."""
    slices = _slices(checkpoint, wanted)
    rows = {}
    for piece, values in zip(slices, checkpoint.read(slices), strict=True):
        matrix = values.float().reshape(-1, _row(checkpoint, piece.name))
        rows[piece] = unit_length_rows(torch.nan_to_num(matrix, 0.0, 0.0, 0.0))
    return [{s: rows[_slice(checkpoint, *each)] for s, each in block.items()} for block in wanted]


def _matches(
    screen: _Screen, child_rows: Sequence[Mapping[str, torch.Tensor]], candidate: Checkpoint,
    theirs: tuple[Block, ...], wanted: Mapping[tuple[int, int], _BlockRows],
) -> BlockMatches:  # fmt: skip
    ours = screen.blocks
    scores, z = (np.full((len(ours), len(theirs)), np.nan) for _ in range(2))
    rows = dict(zip(wanted, _read(candidate, [*wanted.values()]), strict=True))
    for i, block in enumerate(ours):
        by_suffixes: dict[tuple[str, ...], list[int]] = {}  # blocks with the same suffixes are compared at once
        for j in range(len(theirs)):
            if (i, j) in rows:
                by_suffixes.setdefault(tuple(sorted(rows[i, j])), []).append(j)
        for suffixes, columns in by_suffixes.items():
            if suffixes:
                stacked = {s: torch.stack([rows[i, j][s] for j in columns]) for s in suffixes}
                scores[i, columns], z[i, columns] = _compare(child_rows[i], stacked, screen.rows[i])
            else:  # nothing to compare: only a block of the same name may be its match
                scores[i, [j for j in columns if theirs[j].short == block.short]] = 0.0
    return BlockMatches(theirs, scores, z, tuple(_best(scores[i], z[i], block, theirs) for i, block in enumerate(ours)))


def _compare(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], chosen: Mapping[str, _Rows]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine of matched rows, and z of those in known orders, of one block with several; two arrays (blocks,).

    a: suffix → (units, width) of the child's block; b: suffix → (blocks, units, width). z is nan without a known order.
    """
    total = torch.zeros(len(next(iter(b.values()))), dtype=torch.float64)
    orders: dict[str, torch.Tensor] = {}
    count = 0
    for s in sorted(b):
        total += (a[s] * b[s]).sum((1, 2), dtype=torch.float64)
        count += len(a[s])
        if order := chosen[s].order:
            product = (a[s] @ b[s].transpose(1, 2)).double()
            orders[order] = orders[order] + product if order in orders else product
    moments = [hoeffding_moments(c) for c in orders.values()]
    score = (total / count).numpy()
    if not moments:
        return score, np.full(len(score), np.nan)
    t, mean, variance = (sum(part) for part in zip(*moments, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return score, np.where(variance > 0, (t - mean) / np.sqrt(variance), np.nan)


def _best(scores: np.ndarray, z: np.ndarray, block: Block, theirs: Sequence[Block]) -> int | None:
    """The block of the highest score; of equal ones that of the same name, else the first.

    Where no block has a z of at least MOVED_Z, nothing shows that it has moved: the one of the same name, if it fits.
    """
    if np.isnan(scores).all():
        return None
    highest = [int(j) for j in np.flatnonzero(scores >= np.nanmax(scores) - TIED_SCORES)]
    same_name = [j for j, other in enumerate(theirs) if other.short == block.short and not np.isnan(scores[j])]
    if same_name and (same_name[0] in highest or z[highest[0]] < MOVED_Z):
        return same_name[0]
    return highest[0]


def _row(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint[name].shape[1:])
