"""Channels of the stages of a ResNet in another order: found from the stem on, whose inputs are pixels.

Batch norm and ReLU know channels apart, so a stage's stream can be permuted and not rotated. What makes a stream first
(the stem's convolution, the branch of a block that begins a stage) is matched row by row, its inputs in order, and the
rest of the stage is put into that order. See docs/methods.md, *Rotated residual streams*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architecture.describe import Architecture, Shaped, natural_key
from .unit_matching import match_units

# Pairs of unrelated ResNets (same data, recipes and size; drawn of those of 350 models) whose channels and then whose
# units were matched: none passed 0.043 (docs/methods.md, *Rotated residual streams*)
CHANNEL_PAIRS = 6_000


@dataclass(frozen=True, slots=True)
class Streams:
    """Which stream lies along the rows, and along the columns, of each convolution; first: stream → what makes it."""

    rows: Mapping[str, str]
    columns: Mapping[str, str]
    first: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """The convolutions by which the streams are put in order."""
        return frozenset(self.first.values())


@dataclass(frozen=True, slots=True)
class Channels:
    """The candidate's channels in the child's order: stream → the candidate's channel that is the child's channel i."""

    streams: Streams
    units: Mapping[str, Tensor]
    pairs: int = CHANNEL_PAIRS

    @property
    def readers(self) -> frozenset[str]:
        """Convolutions whose columns are channels of a stream."""
        return frozenset(name for name, stream in self.streams.columns.items() if stream in self.units)

    @property
    def writers(self) -> frozenset[str]:
        """Convolutions whose rows are."""
        return frozenset(name for name, stream in self.streams.rows.items() if stream in self.units)

    def folded(self, _name: str, matrix: Tensor) -> Tensor:
        """The child's matrix, as it is."""
        return matrix

    def turned(self, name: str, matrix: Tensor) -> Tensor:
        """The candidate's matrix with its channels in the child's order."""
        for axis, streams in enumerate((self.streams.rows, self.streams.columns)):
            if (stream := streams.get(name, "")) in self.units:
                matrix = matrix.index_select(axis, self.units[stream])
        return matrix

    def unfolded(self, _name: str, matrix: Tensor) -> Tensor:
        """What `turned` gave: nothing was folded in."""
        return matrix


def channel_streams(child: Mapping[str, Shaped], architecture: Architecture) -> Streams | None:
    """The streams of a ResNet's stages; None of any other network, and where no stem makes the first of them."""
    readers = [(name, stream) for stream, names in architecture.residual.items() for name in names]
    readers.sort(key=lambda reader: natural_key(reader[0]))
    if not readers or any(len(child[name].shape) != 4 for name, _ in readers):
        return None
    stem = [n for n in architecture.trunk if architecture.blocks[n] == "stem" and _writes(child, n, readers[0][0])]
    if not stem:
        return None
    hidden = {name for names in architecture.orders.values() for name in names}
    after = {name for names in architecture.reads.values() for name in names}
    first, rows, columns = {readers[0][1]: stem[-1]}, {stem[-1]: readers[0][1]}, dict(readers)
    for i, (reader, stream) in enumerate(readers):
        block = architecture.blocks[reader]
        inside = [n for n in architecture.trunk if architecture.blocks[n] == block and len(child[n].shape) == 4]
        branches = [n for n in inside if n not in hidden | after and child[n].shape[1] == child[reader].shape[1]]
        made = readers[i + 1][1] if i + 1 < len(readers) else block if branches else stream
        if branches and made != stream:
            first.setdefault(made, branches[0])
        columns |= dict.fromkeys(branches, stream)
        rows |= dict.fromkeys([*branches, *(n for n in inside if n in after and n not in hidden)], made)
    return Streams(rows, columns, first)


def match_channels(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], streams: Streams) -> Channels:
    """Match the channels of each stream by what makes it first, the stem's first of all."""
    orders = {stream: [name] for stream, name in streams.first.items()}
    makers = streams.first.values()
    reads = {stream: [name for name in makers if streams.columns.get(name) == stream] for stream in orders}
    found = match_units(ours, theirs, orders, reads)
    return Channels(streams, {stream: torch.from_numpy(units) for stream, units in found.units.items()})


def _writes(child: Mapping[str, Shaped], name: str, reader: str) -> bool:
    """Whether a convolution has as many rows as another one has columns."""
    return len(child[name].shape) == 4 and child[name].shape[0] == child[reader].shape[1]
