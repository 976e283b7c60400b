"""HQQ: codes of groups of 64 neighbours, several groups to a byte. Badri & Shaji, *Half-Quadratic Quantization*, 2023.

    value = (code − zero[group]) · scale[group]

Group i shares its bytes with the groups i + n/k, i + 2n/k, …, of n groups and k = 8 / bits codes a byte; the first has
the uppermost bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...entry import Packing, Slice
from .matrix import CodedMatrix, Parts, Scheme, expect, rows_of

if TYPE_CHECKING:
    import torch

BITS = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class _Grouped(CodedMatrix):
    """group: neighbours that share a scale; a row holds a whole number of them. steps: groups that lie one behind the
    other in the bytes."""

    group: int
    steps: int

    @property
    def levels(self) -> int:
        return 2**self.packing.bits

    def slices(self, first: int, stop: int) -> list[Slice]:
        scales = [rows_of(part, 1, *self._groups(first, stop)) for part in self.parts[1:3]]
        return [*(rows_of(self.parts[0], self.group, a, b) for _, a, b in self._runs(first, stop)), *scales]

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        import torch

        bits = self.packing.bits
        found = []
        for raw, (place, _, _) in zip(read, self._runs(first, stop), strict=False):
            found.append(raw.view(torch.uint8) >> (8 - bits * (place + 1)) & (2**bits - 1))
        return torch.cat(found).reshape(stop - first, self.width)

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        scale, zero = (each.float().reshape(-1, 1) for each in read[-2:])
        return ((codes.float().reshape(-1, self.group) - zero) * scale).reshape(codes.shape)

    def _groups(self, first: int, stop: int) -> tuple[int, int]:
        each = self.width // self.group
        return first * each, stop * each

    def _runs(self, first: int, stop: int) -> list[tuple[int, int, int]]:
        """Groups by their place in a byte: (place, first, last + 1 within `steps`)."""
        start, end = self._groups(first, stop)
        places = range(start // self.steps, -(-end // self.steps))
        return [(p, max(start - p * self.steps, 0), min(end - p * self.steps, self.steps)) for p in places]


def _build(parts: Parts) -> _Grouped:
    packed, scale, zero = parts["codes"], parts["scale"], parts["zero"]
    shape = tuple(parts.integers("shape"))
    expect(len(shape) == 2 and min(shape) > 0 and math.prod(shape) < 2**48, f"a shape of two sides, got {shape[:4]}")
    bits = parts.integers("bits")[0] if "bits" in parts else 4
    group = parts.integers("group")[0] if "group" in parts else 64
    expect(bits in BITS, f"8, 4, 2 or 1 bits, got {bits}")
    expect("axis" not in parts or parts.integers("axis")[0] == 1, "groups of neighbours in a row (axis 1), got axis 0")
    expect(group > 0 and shape[1] % group == 0, f"whole groups in a row, got {group} in {shape[1]}")
    groups, each = math.prod(shape) // group, 8 // bits
    expect(groups % each == 0 and packed.shape == (groups // each, group) and packed.dtype == "U8",
           f"{groups // each:,} × {group} bytes, got {packed.shape}")  # fmt: skip
    expect(
        scale.count == groups and zero.count == groups,
        f"{groups:,} scales and zeros, got {scale.shape} and {zero.shape}",
    )
    expect(
        all(one.dtype in ("F16", "BF16", "F32") for one in (scale, zero)), f"scales of a float dtype, got {scale.dtype}"
    )
    names = (packed.name, scale.name, zero.name)
    return _Grouped(
        parts.name, shape, Packing("hqq", bits), (*names, *(n for n in parts.names if n not in names)), group,
        groups // each,
    )  # fmt: skip


HQQ = Scheme(
    ".W_q", ("U8", "I32"),
    {
        "scale": (".scale",), "zero": (".zero",), "shape": (".shape",), "bits": (".nbits",), "group": (".group_size",),
        "axis": (".axis",),
    },
    _build, required=("scale", "zero", "shape"), small=("shape", "bits", "group", "axis"),
    extras=(
        ".channel_wise", ".optimize", ".round_zero", ".packing", ".unpack_view_dtype", ".view_as_float", ".quant_scale",
        ".quant_zero", ".compute_dtype", ".encoded_state_dict", ".stores_quant_config", ".offload_meta",
    ),
)  # fmt: skip
