"""A residual stream in other coordinates: found by what reads the input, whose other axis has an order of its own.

Rotating a stream, W_read → W_read Qᵀ and W_write → Q W_write with the norms folded in, changes no output of a network
with RMSNorm, and it hides all that is compared coordinate by coordinate. Rows of a token table, of positions and of
patches keep their places. See docs/methods.md, *Rotated residual streams*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architecture.describe import Architecture, Shaped
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice

MIN_ROWS = 8  # of input tables, below which nothing is said of them
SAMPLED_ROWS = 64  # of a table that are read where only a sample was
MAX_TABLE = 1 << 20  # elements of another tensor that are then read
GRAM_ROWS = 512  # whose products with one another are compared
LOOKS_ROTATED = 0.78  # correlation of these products from which the inputs are the same ones
IN_PLACE = 0.3  # cosine of the tables as they stand from which the stream is in its place
# Pairs of unrelated models (Llama-style and ViT; same data, recipe and size) whose streams were turned and whose units
# matched: none passed 0.027 (docs/methods.md, *Rotated residual streams*)
TURNED_PAIRS = 7_227
# The norm in front of the matrices that write hidden units: its gain belongs to their columns
_NORMS = (
    "post_attention_layernorm", "pre_feedforward_layernorm", "layernorm_after", "ffn_norm", "layer_norm2", "norm2",
    "ln_2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """How alike the input tables of child and candidate are: as they stand (cosine), and whatever the coordinates are
    (correlation of the products of their rows)."""

    ours: Tensor
    theirs: Tensor

    @property
    def in_place(self) -> float:
        """⟨A, B⟩/(‖A‖‖B‖) of the tables A, B (rows, width), in [−1, 1]."""
        return float((self.ours * self.theirs).sum() / (self.ours.norm() * self.theirs.norm()).clamp_min(1e-30))

    @property
    def alike(self) -> float:
        """Correlation of AAᵀ and BBᵀ off their diagonals, of `GRAM_ROWS` rows: no rotation and no order of coordinates
        changes it."""
        step = max(1, len(self.ours) // GRAM_ROWS)
        a, b = (x[::step][:GRAM_ROWS] for x in (self.ours, self.theirs))
        off = ~torch.eye(len(a), dtype=torch.bool)
        one, two = ((x @ x.T)[off] for x in (a, b))
        one, two = one - one.mean(), two - two.mean()
        return float((one @ two) / (one.norm() * two.norm()).clamp_min(1e-30))

    @property
    def look_rotated(self) -> bool:
        """Whether they are the same inputs in other coordinates."""
        return self.in_place < IN_PLACE and self.alike >= LOOKS_ROTATED

    def turn(self) -> Tensor:
        """The orthogonal Q (width, width) for which A ≈ B Qᵀ (Schönemann 1966): U Vᵀ of AᵀB = U S Vᵀ."""
        u, _, v = torch.linalg.svd(self.ours.T @ self.theirs)
        return u @ v


def input_tables(
    tables: Mapping[str, tuple[Tensor, Tensor]], child: Mapping[str, Shaped], width: int | None
) -> Inputs | None:  # fmt: skip
    """The tables of both, cut into rows of the stream's width, each table of norm 1.

    tables: name → the kept rows of the child's and the candidate's, (rows, elements of a row). None where there is no
    stream or fewer than 8 rows. Of a table whose first axis is the stream (patches) all rows are needed.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for name, pair in tables.items():
        shape = child[name].shape
        if width is None or len(shape) < 2 or shape.count(width) != 1:
            continue
        if shape[-1] != width and len(pair[0]) != shape[0]:
            continue
        by_row = shape[-1] == width  # else the stream is some other axis of a tensor that was kept in whole
        ours, theirs = (
            x.reshape(-1, width) if by_row else x.reshape(shape).movedim(shape.index(width), -1).reshape(-1, width)
            for x in pair
        )
        if bool(ours.isfinite().all() and theirs.isfinite().all()):
            parts.append((ours / ours.norm().clamp_min(1e-30), theirs / theirs.norm().clamp_min(1e-30)))
    if sum(len(ours) for ours, _ in parts) < MIN_ROWS:
        return None
    return Inputs(torch.cat([ours for ours, _ in parts]), torch.cat([theirs for _, theirs in parts]))


def read_inputs(
    child: Checkpoint, candidate: Checkpoint, architecture: Architecture, partners: Mapping[str, str],
    room: int | None = None, rows: int = SAMPLED_ROWS,
) -> Inputs | None:  # fmt: skip
    """Rows of the input tables that both have, read for this: the first `rows` of a matrix, the whole of other tensors
    of at most `MAX_TABLE` elements. None where there are none, or where they take more than `room` bytes."""
    width = stream_width(child, architecture)
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    cost = 0
    for name, block in architecture.blocks.items():
        if block != "stem" or name in architecture.heads or name not in partners or width is None:
            continue
        shape, theirs = child[name].shape, candidate[partners[name]].shape
        matrix = len(shape) == 2 and shape[1] == width
        height = min(shape[0], theirs[0], rows) if matrix else shape[0]
        count = height * math.prod(shape[1:])
        if len(shape) < 2 or shape[1:] != theirs[1:] or height > theirs[0] or (count > MAX_TABLE and not matrix):
            continue
        cost += 2 * 4 * count
        if room is None or cost <= room:
            both = ((child, name), (candidate, partners[name]))
            ours, other = (model.read([Slice(its, 0, count)])[0].float().reshape(height, -1) for model, its in both)
            tables[name] = ours, other
    return input_tables(tables, child, width)


def has_token_table(child: Mapping[str, Shaped], architecture: Architecture) -> bool:
    """Whether a table of tokens reads the input: its rows differ from model to model, as patches and positions, which
    are smooth in all of them, do not."""
    width = stream_width(child, architecture)
    stems = [child[name].shape for name, block in architecture.blocks.items() if block == "stem"]
    return any(width and len(shape) == 2 and shape[1] == width and shape[0] >= 2 * width for shape in stems)


def stream_width(child: Mapping[str, Shaped], architecture: Architecture) -> int | None:
    """The width of the residual stream; None where there is none, or several."""
    widths = {child[name].shape[1] for names in architecture.residual.values() for name in names}
    return widths.pop() if len(widths) == 1 else None


@dataclass(frozen=True, slots=True)
class Turn:
    """The candidate's stream in the child's coordinates: x → Q x, with the gains of the norms on both sides.

    readers: matrices whose columns are the stream; writers: those whose rows are. gains: reader → (child's,
    candidate's) gain of the norm in front of it, (width,) each.
    """

    q: Tensor
    readers: frozenset[str]
    writers: frozenset[str]
    gains: Mapping[str, tuple[Tensor, Tensor]]
    pairs: int = TURNED_PAIRS

    def folded(self, name: str, matrix: Tensor) -> Tensor:
        """The child's matrix with the gain in front of it folded in."""
        return matrix * self.gains[name][0] if name in self.gains else matrix

    def turned(self, name: str, matrix: Tensor) -> Tensor:
        """The candidate's matrix with its gain folded in, in the child's coordinates."""
        if name in self.readers:
            return (matrix * self.gains[name][1] if name in self.gains else matrix) @ self.q.T
        return self.q @ matrix if name in self.writers else matrix

    def unfolded(self, name: str, matrix: Tensor) -> Tensor:
        """What `turned` gave, with the child's gain in front of it taken out again."""
        if name not in self.gains:
            return matrix
        gain = self.gains[name][0]
        return matrix / torch.where(gain.abs() > 1e-3 * gain.abs().max(), gain, 1.0)


def turn_between(
    child: Checkpoint, candidate: Checkpoint, architecture: Architecture, partners: Mapping[str, str], inputs: Inputs
) -> Turn:  # fmt: skip
    """How the candidate's stream lies in the child's, for the matrices of hidden units."""
    q = inputs.turn()
    width = len(q)
    stream = {name for names in architecture.residual.values() for name in names}
    readers = {name for names in architecture.orders.values() for name in names if name in stream}
    writers = {
        name for order, rows in architecture.orders.items() if readers.intersection(rows)
        for name in architecture.reads.get(order, ()) if len(child[name].shape) == 2 and child[name].shape[0] == width
    }  # fmt: skip
    gains = {name: found for name in readers if (found := _gain(child, candidate, architecture, partners, name))}
    return Turn(q, frozenset(readers & partners.keys()), frozenset(writers & partners.keys()), gains)


def _gain(
    child: Checkpoint, candidate: Checkpoint, architecture: Architecture, partners: Mapping[str, str], name: str
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    names: Sequence[str] = [f"{architecture.blocks[name]}.{norm}.weight" for norm in _NORMS]
    known = [norm for norm in names if norm in partners and child[norm].shape == (child[name].shape[1],)]
    if not known:
        return None
    return child.whole([known[0]])[0].float(), candidate.whole([partners[known[0]]])[0].float()
