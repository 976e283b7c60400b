"""One tensor of a checkpoint as its header describes it, and a slice of it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packing:
    """How the values of a tensor were rounded to be stored: the scheme's usual name, and the bits of one value.

    >>> str(Packing("nf4", 4))
    'nf4, 4 bits'
    """

    scheme: str
    bits: int

    def __str__(self) -> str:
        return f"{self.scheme}, {self.bits} bits"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint, as its header describes it: looking at it costs no weights.

    `shape` counts elements of `dtype` (the safetensors spelling, `"F32"`, `"BF16"`, …). `file` and `start` say
    where its bytes begin; both are private to the checkpoint that made the entry. `packing`: of a tensor that is stored
    as codes beside scales, whose `nbytes` are those of all its parts; also of an 8-bit or 4-bit float without a scale.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: int = 0
    start: int = 0
    packing: Packing | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """Elements `start` to `stop` of the flattened (row-major) tensor `name`."""

    name: str
    start: int
    stop: int
