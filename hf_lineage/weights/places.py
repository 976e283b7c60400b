"""Which block of a candidate may stand at each place of the child: every block against every block, on a sample.

Blocks move (depth up-scaling, frankenmerges), so equal numbers are not enough. Of each kind of tensor the same rows are
read of every block of every model; for two blocks t = Σᵢ ⟨aᵢ, bᵢ⟩ over their hidden units, centred and of length 1, and
its mean and variance under a random matching of the units are known in closed form (`independence.py`).

Cost: up to `SCREEN` bytes of each model, and B·ΣBₖ products of (units × width) matrices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..architecture import Alignment, Architecture, align, block_of, describe, short_names
from ..errors import LineageError
from ..hub.checkpoint import Checkpoint
from ..records import Progress, Slice
from .independence import closed_form, prepare
from .sample import MAX_ROW, MIN_UNITS, seeded

SCREEN, SCREEN_IN_ALL = 16 << 20, 512 << 20  # bytes of rows held for one model, and for all
UNITS = 256  # rows of one tensor are plenty: unchanged, z = sqrt(units · width)
GENERIC = 2  # matrices looked at in a block without known hidden units
FITS = 0.5  # share of the child's block, in elements, that a candidate's must have tensor by tensor
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
        """Share of this block's elements for which the other has a tensor of that suffix and shape, in [0, 1]."""
        whole = sum(ours[name].count for name in self.tensors.values())
        both = sum(ours[self.tensors[s]].count for s in self.shared(other, ours, theirs))
        return both / whole if whole and self.rest == other.rest else 0.0

    def shared(self, other: Block, ours: Checkpoint, theirs: Checkpoint) -> list[str]:
        """Suffixes that both have in one shape."""
        return [
            suffix for suffix, name in self.tensors.items()
            if suffix in other.tensors and theirs[other.tensors[suffix]].shape == ours[name].shape
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """One candidate's blocks against the child's. `scores`, `z`: (child blocks, its blocks), nan where shapes differ or
    no test applies; `best[i]`: its block for the child's block i, None where none fits."""

    blocks: tuple[Block, ...]
    scores: np.ndarray
    z: np.ndarray
    best: tuple[int | None, ...]

    def pairs(self, child: Sequence[Block], ours: Checkpoint, theirs: Checkpoint) -> dict[str, str]:
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
    order = sorted(groups, key=lambda label: (label == "head", label != "stem", natural(label)))
    return tuple(Block(label, prefixes[label], groups[label], label in ("stem", "head")) for label in order)


def place(
    child: Checkpoint, architecture: Architecture, candidates: Sequence[Checkpoint],
    *, budget: int | None, seed: int, progress: Progress | None = None,
) -> tuple[tuple[Block, ...], list[Places | LineageError]]:  # fmt: skip
    """The child's blocks, and every candidate's against them; the error of one that cannot be read.

    `budget`: bytes to read of a model, at most `SCREEN`.
    """
    ours = blocks_of(child, architecture)
    room = min(SCREEN, SCREEN_IN_ALL // (1 + len(candidates)), budget or SCREEN)
    looks = _looks(child, architecture, ours, room, seed)
    pairs = zip(ours, looks, strict=True)
    mine = _read(child, [_Want.of(block, block, look, child, child) for block, look in pairs])
    found: list[Places | LineageError] = []
    for done, candidate in enumerate(candidates):
        if progress:
            progress(done, len(candidates), f"blocks of {candidate.ref.name}")
        try:
            found.append(_against(child, ours, mine, looks, candidate))
        except LineageError as error:
            found.append(error)
    return ours, found


def line_up(
    child: Checkpoint, architecture: Architecture, blocks: Sequence[Block], candidate: Checkpoint, places: Places
) -> Alignment:
    """The candidate's tensors for the child's, block by block; tables that have grown as in `architecture.align`."""
    by_name = align(child, candidate, architecture)
    pairs = places.pairs(blocks, child, candidate)
    rest = {name for block in blocks if block.rest for name in block.tensors.values()}
    grown = {name: both for name, both in by_name.grown.items() if name in rest and name not in pairs}
    pairs |= {name: by_name.pairs[name] for name in grown}
    unmatched = {
        name: by_name.unmatched.get(name, "no block fits") for name in architecture.weights if name not in pairs
    }
    total = sum(child[name].count for name in architecture.trunk)
    matched = sum(child[name].count for name in architecture.trunk if name in pairs)
    return Alignment(pairs, unmatched, matched / total if total else 0.0, grown)


def natural(label: str) -> list[tuple[int, str]]:
    """A key by which `layers.10` comes after `layers.9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in label.split(".")]


def _looks(
    child: Checkpoint, architecture: Architecture, blocks: Sequence[Block], room: int, seed: int
) -> list[dict[str, _Look]]:
    """For each block, suffix → rows to look at: those with hidden units, else of the largest matrices."""
    orders = {name: order for order, names in architecture.orders.items() for name in names}
    chosen: list[dict[str, str]] = []
    for block in blocks:
        fit = [s for s, name in block.tensors.items() if len(child[name].shape) > 1 and _row(child, name) <= MAX_ROW]
        own = {
            s: orders[block.tensors[s]] for s in fit
            if block.tensors[s] in orders and child[block.tensors[s]].shape[0] >= MIN_UNITS
        }  # fmt: skip
        largest = sorted(fit, key=lambda s: (-child[block.tensors[s]].count, s))[:GENERIC]
        chosen.append({} if block.rest else own or dict.fromkeys(largest, ""))
    widths = [_row(child, block.tensors[s]) for block, own in zip(blocks, chosen, strict=True) for s in own]
    count = max(MIN_UNITS, min(UNITS, room // max(1, 4 * sum(widths))))
    found: list[dict[str, _Look]] = []
    for block, own in zip(blocks, chosen, strict=True):
        found.append({})
        for s, order in own.items():
            height = child[block.tensors[s]].shape[0]
            first = seeded(seed, f"{height}").randrange(max(1, height - count + 1))  # the same rows in every block
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


def _read(checkpoint: Checkpoint, wants: Sequence[_Want]) -> list[dict[str, torch.Tensor]]:
    """For each, suffix → rows (units, width), centred and of length 1; read in one go, each tensor's rows once."""
    pieces = dict.fromkeys(_piece(checkpoint, *asked) for want in wants for asked in want.tensors.values())
    values = dict(zip(pieces, checkpoint.read([*pieces]), strict=True))
    rows = {
        piece: prepare(torch.nan_to_num(value.float().reshape(-1, _row(checkpoint, piece.name))))
        for piece, value in values.items()
    }
    return [{s: rows[_piece(checkpoint, *asked)] for s, asked in want.tensors.items()} for want in wants]


def _piece(checkpoint: Checkpoint, name: str, look: _Look) -> Slice:
    width = _row(checkpoint, name)
    return Slice(name, look.first * width, look.stop * width)


def _against(
    child: Checkpoint, ours: Sequence[Block], mine: Sequence[Mapping[str, torch.Tensor]],
    looks: Sequence[Mapping[str, _Look]], candidate: Checkpoint,
) -> Places:  # fmt: skip
    theirs = blocks_of(candidate, describe(candidate))
    scores, z = (np.full((len(ours), len(theirs)), np.nan) for _ in range(2))
    wants: dict[tuple[int, int], _Want] = {}
    for i, block in enumerate(ours):
        for j, other in enumerate(theirs):
            if block.fits(other, child, candidate) < FITS:
                continue
            if block.rest:
                scores[i, j] = 0.0  # one place only; what it is worth is told when all of it was read
            else:
                wants[i, j] = _Want.of(other, block, looks[i], child, candidate)
    for (i, j), rows in zip(wants, _read(candidate, [*wants.values()]), strict=True):
        scores[i, j], z[i, j] = _compare(mine[i], rows, looks[i])
    return Places(theirs, scores, z, tuple(_best(scores[i], block, theirs) for i, block in enumerate(ours)))


def _compare(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], looks: Mapping[str, _Look]
) -> tuple[float, float]:
    """(mean cosine of the rows, z of those in known orders) over the suffixes both have."""
    total, count = 0.0, 0
    orders: dict[str, torch.Tensor] = {}
    for s in sorted(a.keys() & b.keys()):
        total += float((a[s] * b[s]).sum())
        count += len(a[s])
        if order := looks[s].order:
            product = a[s] @ b[s].T
            orders[order] = orders[order] + product if order in orders else product
    told = [closed_form(c.double().numpy()) for c in orders.values()]
    t, mean, variance = (sum(part) for part in zip(*told, strict=True)) if told else (0.0, 0.0, 0.0)
    z = (t - mean) / math.sqrt(variance) if variance > 0 else math.nan
    return total / count if count else math.nan, z


def _best(scores: np.ndarray, block: Block, theirs: Sequence[Block]) -> int | None:
    """The highest score; of equal ones that of the same name, else the first."""
    if np.isnan(scores).all():
        return None
    top = [int(j) for j in np.flatnonzero(scores >= np.nanmax(scores) - TIE)]
    same = [j for j in top if theirs[j].short == block.short]
    return same[0] if same else top[0]


def _row(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint[name].shape[1:])
