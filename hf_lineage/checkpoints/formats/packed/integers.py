"""Integers packed along the rows: compressed-tensors (`weight_packed`) and MLX (`weight` beside `scales` and `biases`).

compressed-tensors:  value = scale[row, group] · (code − 2^(bits − 1) − zero[row, group])
MLX:                 value = scales[row, group] · code + biases[row, group]

Codes lie in 32-bit words, the lowest bits first; each word holds ⌊32 / bits⌋ of them in compressed-tensors, while in
MLX those of 3, 5 and 6 bits go on in the next word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...entry import Packing, Slice
from .matrix import CodedMatrix, Parts, Scheme, expect, rows_of, spread, unpack_bits

if TYPE_CHECKING:
    import torch

MLX_BITS, MLX_GROUPS = (2, 3, 4, 5, 6, 8), (64, 32, 128)
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class _Integers(CodedMatrix):
    """words: those of one row; group: neighbours that share a scale, `groups` of them in a row; shared: there is one
    row of scales. zeros: "bias" (added), "packed" (codes along the rows), "plain", or "" for none."""

    words: int
    group: int
    groups: int
    shared: bool
    zeros: str

    @property
    def levels(self) -> int:
        return 2**self.packing.bits

    def slices(self, first: int, stop: int) -> list[Slice]:
        rows = (0, 1) if self.shared else (first, stop)
        found = [rows_of(self.parts[0], self.words, first, stop), rows_of(self.parts[1], self.groups, *rows)]
        if self.zeros == "packed":
            each = 32 // self.packing.bits
            found.append(rows_of(self.parts[2], self.groups, first // each, -(-stop // each)))
        elif self.zeros:
            found.append(rows_of(self.parts[2], self.groups, *rows))
        return found

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        words = read[0].reshape(stop - first, self.words)
        if self.zeros == "bias":
            return unpack_bits(words, self.packing.bits)[:, : self.width]
        return _in_words(words, self.packing.bits)[:, : self.width]

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        bits = self.packing.bits
        scale = spread(read[1].float().reshape(-1, self.groups), self.group, self.width)
        if self.zeros == "bias":
            return codes.float() * scale + spread(read[2].float().reshape(-1, self.groups), self.group, self.width)
        middle = float(2 ** (bits - 1))
        if not self.zeros:
            return (codes.float() - middle) * scale
        if self.zeros == "packed":
            unpacked = _in_words(read[2].reshape(-1, self.groups).T, bits)[:, first % (32 // bits) :][:, : len(codes)]
            zero = unpacked.T.float() - middle
        else:
            zero = read[2].float().reshape(-1, self.groups)
        return (codes.float() - middle - spread(zero, self.group, self.width)) * scale


def _in_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of which none goes on in the next word, (rows, n) → (rows, n · ⌊32 / bits⌋)."""
    import torch

    if 8 % bits == 0:
        return unpack_bits(words, bits)
    shifts = torch.arange(0, 32 // bits * bits, bits)
    return ((words.long()[..., None] & 0xFFFFFFFF) >> shifts & (2**bits - 1)).reshape(len(words), -1)


def _scales(parts: Parts, height: int) -> tuple[int, bool]:
    """Groups of a row, and whether there is one row of scales for all."""
    scale = parts["scale"]
    expect(scale.dtype in FLOATS and scale.count > 0, f"scales of a float dtype, got {scale.dtype}")
    if scale.count == 1:
        return 1, True
    expect(len(scale.shape) == 2 and scale.shape[0] == height, f"scales of {height} rows, got {scale.shape}")
    return scale.shape[1], False


def _build_compressed(parts: Parts) -> _Integers:
    packed = parts["codes"]
    expect(len(packed.shape) == 2 and packed.count > 0, f"a matrix of codes, got {packed.shape}")
    shape = parts.integers("shape")
    expect(
        len(shape) == 2 and shape[0] == packed.shape[0] and shape[1] > 0,
        f"a shape of {packed.shape[0]} rows, got {shape[:4]}",
    )
    height, width = shape
    each = -(-width // packed.shape[1])
    expect(
        4 <= each <= 32 and -(-width // each) == packed.shape[1],
        f"codes of at most 8 bits for {shape}, got {packed.shape}",
    )
    expect("index" not in parts, "groups of neighbours, got a weight_g_idx")
    groups, shared = _scales(parts, height)
    expect(width % groups == 0, f"groups of one size in {width}, got {groups}")
    bits, names, zeros = 32 // each, [packed.name, parts["scale"].name], ""
    if "zero" in parts:
        zero = parts["zero"]
        expected = -(-height // each) * groups if zero.dtype == "I32" else parts["scale"].count
        expect(zero.count == expected and zero.dtype in ("I32", "I8"), f"{expected:,} zero points, got {zero.shape}")
        zeros, names = "packed" if zero.dtype == "I32" else "plain", [*names, zero.name]
    names += [name for name in parts.names if name not in names]
    return _Integers(
        parts.name, (height, width), Packing(f"compressed-tensors w{bits}", bits), tuple(names), packed.shape[1],
        width // groups, groups, shared, zeros,
    )  # fmt: skip


def _build_mlx(parts: Parts) -> _Integers:
    words, bias = parts["codes"], parts["bias"]
    expect(len(words.shape) >= 2 and words.count > 0, f"a matrix of codes, got {words.shape}")
    height = math.prod(words.shape[:-1])
    scale = parts["scale"]
    expect(
        scale.shape[:-1] == words.shape[:-1] and bias.shape == scale.shape,
        f"scales and biases of its rows, got {scale.shape}",
    )
    expect(scale.dtype in FLOATS and bias.dtype in FLOATS, f"scales of a float dtype, got {scale.dtype}")
    groups = scale.shape[-1]
    module = parts.name.removesuffix(".weight")
    config = parts.quantization()
    own = config.get(module)
    asked = (own if isinstance(own, dict) else config).get("group_size")
    for group in (asked, *MLX_GROUPS):
        if type(group) is int and group > 0 and groups and 32 * words.shape[-1] % (group * groups) == 0:
            bits = 32 * words.shape[-1] // (group * groups)
            if bits in MLX_BITS:
                return _Integers(
                    parts.name, (*words.shape[:-1], group * groups), Packing("mlx", bits),
                    (words.name, scale.name, bias.name), words.shape[-1], group, groups, height < 1, "bias",
                )  # fmt: skip
    expect(False, f"codes of 2 to 8 bits in groups of 32, 64 or 128, got {words.shape} and {scale.shape}")
    raise AssertionError


COMPRESSED = Scheme(
    ".weight_packed", ("I32",),
    {
        "scale": (".weight_scale",), "shape": (".weight_shape",), "zero": (".weight_zero_point",),
        "index": (".weight_g_idx",),
    },
    _build_compressed, required=("scale", "shape"), small=("shape",),
    extras=(".input_scale", ".output_scale", ".input_zero_point", ".k_scale", ".v_scale"),
)  # fmt: skip
MLX = Scheme(
    ".weight",
    ("U32",),
    {"scale": (".scales",), "bias": (".biases",)},
    _build_mlx,
    required=("scale", "bias"),
    sure=False,
)
