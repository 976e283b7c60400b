"""Number formats as lattices: which one a tensor's values lie on, whatever the header says, and each value's cell.

A format of m mantissa bits has 2^m numbers in every binade [2^k, 2^(k+1)), evenly spaced; the spacing doubles at each
power of two, an *edge*. In order of size its numbers are 0, 1, 2, … when their bits are read as an integer: that is the
*cell* of a value here. The cells of binade k are 2^m·(k + bias) to 2^m·(k + bias + 1) − 1, the first of them the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...answers.history import Format

MAGNITUDE = 0x7FFF  # all bits of a 16-bit float but its sign
FEW = 4096  # values looked at before all are


@dataclass(frozen=True, slots=True)
class Lattice:
    """A 16-bit float format: `mantissa` explicit bits; `binades`: those of normal numbers, first to last; `edges`:
    those that begin with an edge at which weights are counted."""

    name: Format
    dtype: torch.dtype
    mantissa: int
    binades: range
    edges: range

    @property
    def cells(self) -> int:
        """Numbers of one binade."""
        return 1 << self.mantissa

    def bits(self, values: torch.Tensor) -> np.ndarray:
        """Bits of values that lie on the lattice, (n,) int16. values: 1-D, of any float dtype."""
        return values.contiguous().to(self.dtype).view(torch.int16).numpy()


# In the order in which they are asked; values that lie on both, as those of gains of 1, count as bf16. Edges of bf16:
# 2^−30 to 2^33; of fp16 all but the first, below which the spacing is the same
LATTICES: dict[str, Lattice] = {
    "bf16": Lattice("bf16", torch.bfloat16, 7, range(1, 255), range(97, 161)),
    "fp16": Lattice("fp16", torch.float16, 10, range(1, 31), range(2, 31)),
}


def lattice_of(values: torch.Tensor) -> Lattice | None:
    """The first lattice that holds every value, decided by the values; None where none does.

    values: 1-D, of any float dtype. Zeros lie on every lattice; what is not finite on none, but in the very format.
    """
    for lattice in LATTICES.values():
        if all(_holds(lattice, part) for part in (values[:FEW], values)):
            return lattice
    return None


def _holds(lattice: Lattice, values: torch.Tensor) -> bool:
    if values.dtype == lattice.dtype:
        return True
    if values.dtype == torch.bfloat16 or values.element_size() == 1:
        values = values.float()
    rounded = values.to(lattice.dtype)
    return bool((rounded.to(values.dtype) == values).all()) and bool(torch.isfinite(rounded).all())
