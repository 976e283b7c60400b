"""The table of dtypes: the bits of each, its torch dtype, and bytes → tensor."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from .buffers import Buffer
from .entry import Packing, Slice

if TYPE_CHECKING:
    import torch

# F6_E2M3 and F6_E3M2 are missing on purpose: the format names them but does not say how their bits are packed.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4,
}  # fmt: skip

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

# e2m1: sign, two exponent bits, one mantissa bit; two elements a byte, the lower nibble first (torch's float4)
F4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode(buffer: Buffer, dtype: str, piece: Slice) -> torch.Tensor:
    """Raw little-endian bytes of a slice → a 1-D tensor of the matching torch dtype (F4: float32)."""
    import torch

    if piece.start == piece.stop:
        return torch.empty(0)
    raw = torch.frombuffer(buffer, dtype=torch.uint8)
    if dtype == "F4":
        nibbles = torch.stack([raw & 15, raw >> 4], dim=1).reshape(-1)
        skip = piece.start % 2
        return torch.tensor(F4)[nibbles[skip : skip + piece.stop - piece.start].long()]
    return raw.view(torch_dtypes()[dtype])


def packing_of(dtype: str) -> Packing | None:
    """How a float of 8 or 4 bits without a scale was rounded; None for any other dtype."""
    return Packing(dtype, BITS[dtype]) if dtype in FLOAT8 or dtype == "F4" else None


@functools.cache
def sorted_table(levels: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A table of numbers as (rank of each code, the different numbers by size); what is NaN has the last rank.

    >>> rank, numbers = sorted_table((0.0, 1.0, -0.0, -1.0))
    >>> rank.tolist(), numbers.tolist()
    ([1, 2, 1, 0], [-1.0, 0.0, 1.0, nan])
    """
    import torch

    values = torch.tensor(levels, dtype=torch.float32)
    known = values[~values.isnan()].unique()  # sorted; −0 is 0
    rank = torch.where(values.isnan(), len(known), torch.searchsorted(known, values))
    return rank, torch.cat([known, torch.tensor([torch.nan])])


@functools.cache
def short_floats(dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`sorted_table` of F4 or an 8-bit float, by its bits."""
    import torch

    if dtype == "F4":
        return sorted_table(F4)
    return sorted_table(tuple(torch.arange(256, dtype=torch.uint8).view(torch_dtypes()[dtype]).float().tolist()))


def float_cells(values: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Halfway from values of F4 or an 8-bit float to the next lower and the next higher one, infinite at the ends."""
    import torch

    numbers = short_floats(dtype)[1][:-1]
    edges = torch.cat([torch.tensor([-torch.inf]), (numbers[1:] + numbers[:-1]) / 2, torch.tensor([torch.inf])])
    rank = torch.searchsorted(numbers, values.float()).clamp(max=len(numbers) - 1)
    return edges[rank], edges[rank + 1]


def epsilon(dtype: str) -> float:
    """Distance from 1 to the next number of a float dtype; of one that torch does not round to, that of F32.

    >>> [epsilon(dtype) == 2.0**-digits for dtype, digits in (("BF16", 7), ("F16", 10), ("F32", 23), ("F64", 52))]
    [True, True, True, True]
    """
    import torch

    return torch.finfo(torch_dtypes()[dtype if dtype in ("F64", "F16", "BF16") else "F32"]).eps


def torch_dtypes() -> dict[str, torch.dtype]:
    """The safetensors name of a dtype → torch's; F4 has none, see `decode`."""
    import torch

    return {
        "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
        "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
        "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }  # fmt: skip
