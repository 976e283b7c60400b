"""NF4 and FP4 of bitsandbytes: two codes a byte, the upper first, and the largest value of each block of 64.

    value = quant_map[code] · absmax[block],   absmax = nested_quant_map[byte] · nested_absmax[block of 256] + offset

the second where the largest values are rounded, too. What it is and its shape is JSON in a tensor of bytes. Dettmers et
al., *QLoRA*, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...dtypes import sorted_table, torch_dtypes
from ...entry import Packing, Slice
from .matrix import CodedMatrix, Parts, Scheme, UnpackableError, expect, pairs_of

if TYPE_CHECKING:
    import torch

STATE: tuple[str, ...] = ("quant_type", "shape", "blocksize", "nested_blocksize", "nested_offset")


@dataclass(frozen=True, slots=True)
class _FourBit(CodedMatrix):
    """block, nested: elements that share a largest value, and such values that share theirs (0: they are plain)."""

    table: tuple[float, ...]
    block: int
    nested: int
    offset: float
    second: tuple[float, ...]

    @property
    def levels(self) -> int:
        return len(sorted_table(self.table)[1]) - 1

    def slices(self, first: int, stop: int) -> list[Slice]:
        a, b = first * self.width, stop * self.width
        blocks = a // self.block, -(-b // self.block)
        found = [Slice(self.parts[0], a // 2, -(-b // 2)), Slice(self.parts[1], *blocks)]
        if self.nested:
            found.append(Slice(self.parts[2], blocks[0] // self.nested, -(-blocks[1] // self.nested)))
        return found

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        numbers = pairs_of(self.table, True)[read[0].view(torch_dtypes()["U8"]).int()].reshape(-1)
        here = numbers[first * self.width % 2 :][: (stop - first) * self.width]
        return here.reshape(-1, self.width) * self._largest(read, first, here.numel()).reshape(-1, self.width)

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        import torch

        raw = read[0].view(torch.uint8)
        nibbles = torch.stack([raw >> 4, raw & 15], 1).reshape(-1)[first * self.width % 2 :]
        return sorted_table(self.table)[0][nibbles[: (stop - first) * self.width].long()].reshape(-1, self.width)

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        largest = self._largest(read, first, codes.numel())
        return sorted_table(self.table)[1][codes.long()] * largest.reshape(codes.shape)

    def _largest(self, read: Sequence[torch.Tensor], first: int, count: int) -> torch.Tensor:
        """The largest value of the block of each of `count` elements, 1-D."""
        import torch

        start = first * self.width
        largest = read[1]
        if self.nested:
            skip = start // self.block % self.nested
            outer = read[2].float().repeat_interleave(self.nested)[skip : skip + len(largest)]
            largest = torch.tensor(self.second)[largest.long()] * outer + self.offset
        return largest.float().repeat_interleave(self.block)[start % self.block :][:count]


def _build(parts: Parts) -> _FourBit:
    state = _state(parts)
    fields: list[Any] = [state.get(key) for key in STATE]
    kind, shape, block, nested, offset = fields
    expect(kind in ("nf4", "fp4"), f"a quant_type nf4 or fp4, got {str(kind)[:20]!r}")
    expect(
        isinstance(shape, list) and 0 < len(shape) < 8 and all(type(n) is int and 0 < n < 2**40 for n in shape),
        "a shape in quant_state",
    )
    expect(type(block) is int and 0 < block <= 1 << 16, "a blocksize in quant_state")
    count = math.prod(shape)
    packed, absmax = parts["codes"], parts["absmax"]
    expect(packed.nbytes == -(-count // 2), f"{-(-count // 2):,} bytes for {shape}, got {packed.nbytes:,}")
    expect(absmax.count == -(-count // block), f"{-(-count // block):,} largest values, got {absmax.count:,}")
    table = _numbers(parts, "map", 16)
    names = [packed.name, absmax.name]
    second: tuple[float, ...] = ()
    if "nested_absmax" in parts:
        expect(type(nested) is int and 0 < nested <= 1 << 16, "a nested_blocksize in quant_state")
        expect(isinstance(offset, (int, float)), "a nested_offset in quant_state")
        expect(
            absmax.dtype == "U8" and parts["nested_absmax"].count == -(-absmax.count // nested), "nested largest values"
        )
        second = _numbers(parts, "nested_map", 256)
        names.append(parts["nested_absmax"].name)
    else:
        nested, offset = 0, 0.0
        expect(absmax.dtype in ("F32", "F16", "BF16"), f"largest values of a float dtype, got {absmax.dtype}")
    names += [name for name in parts.names if name not in names]
    return _FourBit(
        parts.name, tuple(shape), Packing(kind, 4), tuple(names), table, block, nested, float(offset), second
    )


def _state(parts: Parts) -> Mapping[str, Any]:
    try:
        found = json.loads(bytes(parts.small["state"].numpy().tobytes()))
    except (ValueError, RecursionError):
        raise UnpackableError("JSON in quant_state") from None
    expect(isinstance(found, dict), "a JSON object in quant_state")
    return found


def _numbers(parts: Parts, role: str, count: int) -> tuple[float, ...]:
    expect(role in parts and parts[role].count == count, f"{count} numbers in the quant_map")
    return tuple(parts.small[role].float().reshape(-1).tolist())


BITSANDBYTES = Scheme(
    ".weight", ("U8",),
    {
        "absmax": (".weight.absmax",), "map": (".weight.quant_map",), "nested_absmax": (".weight.nested_absmax",),
        "nested_map": (".weight.nested_quant_map",),
        "state": (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"),
    },
    _build, required=("absmax", "map", "state"), sure=False, small=("map", "nested_map", "state"),
)  # fmt: skip
