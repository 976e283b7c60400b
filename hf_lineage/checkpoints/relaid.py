"""A checkpoint in the layout of another one: its tensors under the other's names, joined, cut or transposed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..architecture.correspondence import Correspondence, Piece, Placement
from .checkpoint import Checkpoint
from .entry import Entry, Slice
from .view import View

if TYPE_CHECKING:
    import torch

UNPLACED = "unplaced."  # before the names of what the other layout does not have


class Relaid(View):
    """`checkpoint` with the tensors that `found` places, under the names and in the shapes of `layout`.

    What is left keeps its name, begun as those of the layout begin, or after `UNPLACED` where that is the name of
    another tensor. A slice of a transposed matrix reads the whole of it; of everything else exactly its elements.
    """

    def __init__(self, checkpoint: Checkpoint, found: Correspondence, layout: Mapping[str, Entry]) -> None:
        super().__init__(checkpoint, {})
        self._placed = dict(found.placed)
        shapes = {name: layout[name].shape for name in found.placed}
        used = {piece.name for placement in found.placed.values() for piece in placement.pieces}
        for name in checkpoint:
            if name not in used:
                own = next((p + name[len(q) :] for p, q in found.beginnings if name.startswith(q)), name)
                own = f"{UNPLACED}{name}" if own in self._placed else own
                self._placed[own] = Placement((Piece(name, 0, checkpoint[name].count),))
                shapes[own] = checkpoint[name].shape
        self._entries = {name: self._entry(name, shapes[name]) for name in self._placed}

    def _entry(self, name: str, shape: tuple[int, ...]) -> Entry:
        placement = self._placed[name]
        sources = [self._checkpoint[piece.name] for piece in placement.pieces]
        shares = [(p.stop - p.start) / s.count for p, s in zip(placement.pieces, sources, strict=True)]
        assert math.prod(shape) == sum(piece.stop - piece.start for piece in placement.pieces), name
        nbytes = round(sum(share * source.nbytes for share, source in zip(shares, sources, strict=True)))
        one = len(sources) == 1 and not placement.transposed
        return replace(sources[0], name=name, shape=shape, nbytes=nbytes, packing=sources[0].packing if one else None)

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        import torch

        wanted = [self._sources(piece) for piece in slices]
        read = iter(self._checkpoint.read([source for sources in wanted for source in sources]))
        found = []
        for piece, sources in zip(slices, wanted, strict=True):
            parts = [next(read) for _ in sources]
            if self._placed[piece.name].transposed:
                (source,) = self._placed[piece.name].pieces
                turned = parts[0].reshape(self._checkpoint[source.name].shape).T.reshape(-1)
                found.append(turned[piece.start : piece.stop].clone())
            elif len({part.dtype for part in parts}) > 1:
                found.append(torch.cat([part.float() for part in parts]))
            else:
                found.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return found

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        placement = self._placed[piece.name]
        if placement.transposed or len(placement.pieces) > 1:
            return None
        return self._checkpoint.cells(self._sources(piece)[0])

    def _sources(self, piece: Slice) -> list[Slice]:
        """The slices of the wrapped checkpoint that hold a slice."""
        if not 0 <= piece.start <= piece.stop <= self[piece.name].count:
            raise IndexError(f"Expected a slice within 0 to {self[piece.name].count} of {piece.name!r}, got {piece}.")
        placement = self._placed[piece.name]
        if placement.transposed:
            return [Slice(*placement.pieces[0])]
        found, at = [], 0
        for name, start, stop in placement.pieces:
            first, last = max(piece.start, at), min(piece.stop, at + stop - start)
            if first < last or (len(placement.pieces) == 1):
                found.append(Slice(name, start + first - at, start + last - at))
            at += stop - start
        return found or [Slice(placement.pieces[0].name, placement.pieces[0].start, placement.pieces[0].start)]
