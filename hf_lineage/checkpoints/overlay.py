"""A checkpoint with replaced tensors, such as hidden units in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint, MemoryCheckpoint, Wrapper
from .entry import Slice

if TYPE_CHECKING:
    import torch


class Overlay(Wrapper):
    """A checkpoint some of whose tensors are replaced by `tensors`, which lie in memory: reading those costs
    nothing."""

    def __init__(self, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
        self._upper = MemoryCheckpoint(checkpoint.ref, checkpoint.requested, tensors)
        super().__init__(checkpoint, {**checkpoint, **self._upper})
        self.adapter_base = checkpoint.adapter_base
        self.skipped, self.origin = checkpoint.skipped, checkpoint.origin

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        above = {i for i, piece in enumerate(slices) if piece.name in self._upper}
        upper = iter(self._upper.read([slices[i] for i in sorted(above)]))
        lower = iter(self._checkpoint.read([piece for i, piece in enumerate(slices) if i not in above]))
        return [next(upper) if i in above else next(lower) for i in range(len(slices))]

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (self._upper if piece.name in self._upper else self._checkpoint).cells(piece)
