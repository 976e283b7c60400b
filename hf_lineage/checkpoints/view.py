"""A view of a checkpoint: fused tensors are cut into named row ranges, long tables shortened."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint, Wrapper
from .entry import Entry, Slice

if TYPE_CHECKING:
    import torch


class View(Wrapper):
    """A checkpoint whose tensor `name` is replaced by `name[label]` for each (label, first, stop) of `cuts[name]`.

    Rows are what the last axis holds (`conventions.fused_parts`). The laws of `Checkpoint` hold; what is read and
    counted is the wrapped checkpoint's.
    """

    def __init__(self, checkpoint: Checkpoint, cuts: Mapping[str, Sequence[tuple[str, int, int]]]) -> None:
        entries: dict[str, Entry] = {}
        origins: dict[str, tuple[str, int]] = {}
        for name, entry in checkpoint.items():
            parts = [(f"{name}[{label}]", first, stop) for label, first, stop in cuts.get(name, ())]
            if not parts or any(key in checkpoint for key, _, _ in parts):  # names are the author's: no key twice
                entries[name], origins[name] = entry, (name, 0)
                continue
            for key, first, stop in parts:
                entries[key] = _rows(entry, key, first, stop)
                origins[key] = (name, first * _width(entry))
        super().__init__(checkpoint, entries)
        for name, value in vars(checkpoint).items():  # whatever a checkpoint knows of its model besides its tensors
            if not name.startswith("_") and name not in ("architecture", "card", "config", "recipes"):
                setattr(self, name, value)
        self._origins = origins

    @cached_property
    def card(self) -> dict:
        return self._checkpoint.card

    @cached_property
    def config(self) -> dict:
        return self._checkpoint.config

    @cached_property
    def recipes(self) -> list[dict]:
        return self._checkpoint.recipes

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        return self._checkpoint.read([self._translate(piece) for piece in slices])

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self._checkpoint.cells(self._translate(piece))

    def place(self, name: str) -> tuple[str, int]:
        """The wrapped checkpoint's tensor that holds one of these, and at which element it begins there."""
        return self._origins[name]

    def first_rows(self, rows: Mapping[str, int]) -> View:
        """The same view, of whose tensors in `rows` only so many rows of the first axis are seen."""
        shorter = copy.copy(self)
        shorter._entries = dict(self._entries)
        for key, count in rows.items():
            entry = self[key]
            if not 0 <= count <= entry.shape[0]:
                raise IndexError(f"Expected 0 to {entry.shape[0]} rows of {key!r}, got {count}.")
            shape = (count, *entry.shape[1:])
            shorter._entries[key] = replace(entry, shape=shape, nbytes=_nbytes(entry, shape))
        return shorter

    def _translate(self, piece: Slice) -> Slice:
        name, offset = self._origins[piece.name]
        if not 0 <= piece.start <= piece.stop <= self[piece.name].count:  # the wrapped tensor goes on behind the part
            raise IndexError(f"Expected a slice within 0 to {self[piece.name].count} of {piece.name!r}, got {piece}.")
        return Slice(name, offset + piece.start, offset + piece.stop)


def _width(entry: Entry) -> int:
    return entry.shape[-1] if len(entry.shape) > 1 else 1


def _rows(entry: Entry, key: str, first: int, stop: int) -> Entry:
    """The rows from `first` to `stop` of a tensor as an entry of their own."""
    width = _width(entry)
    if not 0 <= first <= stop or stop * width > entry.count:
        raise IndexError(f"Expected rows within the {entry.count} elements of {entry.name!r}, got {first} to {stop}.")
    inner = math.prod(entry.shape[1:-1])  # rows of the last axis in one entry of the first
    whole = stop - first > inner > 1 and (stop - first) % inner == 0
    shape = ((stop - first) // inner, *entry.shape[1:]) if whole else (stop - first, *entry.shape[1:][-1:])
    return replace(entry, name=key, shape=shape, nbytes=_nbytes(entry, shape))


def _nbytes(entry: Entry, shape: tuple[int, ...]) -> int:
    return entry.nbytes * math.prod(shape) // entry.count if entry.count else 0
