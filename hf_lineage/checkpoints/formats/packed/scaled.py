"""8-bit floats and integers beside scales: of a tensor, of its rows or columns, or of blocks of both.

    value = scale[row // block height, column // block width] · (code − zero point)

FP8 as compressed-tensors, fbgemm, ModelOpt (`weight_scale`), DeepSeek and transformers (`weight_scale_inv`, which is a
factor all the same) and ComfyUI (`scale_weight`) write it; INT8 W8A8 of compressed-tensors; LLM.int8() of bitsandbytes
(`SCB`: the largest value of each row, which 127 stands for).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import FLOAT8, short_floats, torch_dtypes
from ...entry import Packing, Slice
from .matrix import CodedMatrix, Parts, Scheme, expect, rows_of, spread

if TYPE_CHECKING:
    import torch

BLOCKS = (128, 64, 32, 16, 256)  # sides of blocks, where neither the config nor the shapes say which
ACTIVATIONS = (
    ".input_scale", ".output_scale", ".input_zero_point", ".input_scale_ub", ".scale_input", ".activation_scale",
    ".k_scale", ".v_scale", ".input_global_scale",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scaled(CodedMatrix):
    """grid: rows and columns of the scales of one matrix; block: the rows and columns that share a scale; inner: rows
    of one matrix, of several (experts); unit: a factor of all scales; stored: the dtype
    of the codes."""

    stored: str
    grid: tuple[int, int]
    block: tuple[int, int]
    inner: int
    unit: float
    zeros: bool

    @property
    def levels(self) -> int:
        return 256 if self.stored == "I8" else len(short_floats(self.stored)[1]) - 1

    def slices(self, first: int, stop: int) -> list[Slice]:
        low, high = self._at(first), self._at(stop - 1) + 1
        found = [rows_of(self.parts[0], self.width, first, stop)]
        return found + [rows_of(part, self.grid[1], low, high) for part in self.parts[1 : 2 + self.zeros]]

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        """`values` of `codes`, without the way through codes where the processor knows the numbers."""
        numbers = read[0].view(torch_dtypes()[self.stored]).reshape(stop - first, self.width).float()
        return self._times_scale(numbers, read, first)

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        import torch

        raw = read[0].view(torch.uint8).reshape(stop - first, self.width)
        if self.stored == "I8":
            return raw ^ 128  # from −128…127 to 0…255
        return short_floats(self.stored)[0][raw.long()]

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        numbers = codes.float() - 128 if self.stored == "I8" else short_floats(self.stored)[1][codes.long()]
        return self._times_scale(numbers, read, first)

    def _times_scale(self, numbers: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        import torch

        at = torch.tensor([self._at(row) - self._at(first) for row in range(first, first + len(numbers))])
        scale, *zeros = (each.float().reshape(-1, self.grid[1])[at] for each in read[1:])
        if zeros:
            numbers = numbers - spread(zeros[0], self.block[1], self.width)
        return numbers * spread(scale * self.unit, self.block[1], self.width)

    def _at(self, row: int) -> int:
        """The row of the scales that a row has."""
        return row // self.inner * self.grid[0] + row % self.inner // self.block[0]


def _build(parts: Parts) -> _Scaled:
    weight, scale = parts["codes"], parts["scale"]
    is_bnb = "weight_format" in parts or scale.name.endswith("SCB")
    expect(len(weight.shape) > 0 and weight.count > 0, "a weight with elements")
    expect(scale.dtype in ("F32", "F16", "BF16", "F64"), f"scales of a float dtype, got {scale.dtype}")
    shape = weight.shape
    width = shape[-1] if len(shape) < 4 else math.prod(shape[1:])
    inner = shape[-2] if len(shape) in (2, 3) else weight.count // width
    grid = _grid(scale.shape, shape, inner, width)
    asked = parts.quantization().get("weight_block_size") if grid[0] not in (1, inner) else None
    sides = asked if isinstance(asked, list) and len(asked) == 2 else (0, 0)
    block = _side(inner, grid[0], sides[0]), _side(width, grid[1], sides[1])
    matrices = weight.count // (inner * width)
    expect(scale.count in (1, matrices * grid[0] * grid[1]), f"scales for {shape}, got {scale.shape}")
    zero = parts.get("zero")
    if zero is not None:
        expect(zero.count == scale.count and weight.dtype == "I8", f"a zero point for each scale, got {zero.shape}")
    if scale.count == 1 and matrices > 1:  # one for all experts
        inner, block = inner * matrices, (inner * matrices, width)
    names = [weight.name, scale.name, *([zero.name] if zero else [])]
    rest = [name for name in parts.names if name not in names]
    scheme = "int8" if weight.dtype == "I8" else weight.dtype
    unit = 1 / 127 if is_bnb else 1.0
    return _Scaled(
        parts.name, shape, Packing(scheme, 8), (*names, *rest), weight.dtype, grid, block, inner, unit, zero is not None
    )


def _grid(scale: tuple[int, ...], shape: tuple[int, ...], inner: int, width: int) -> tuple[int, int]:
    """Rows and columns of the scales of one matrix."""
    if math.prod(scale) == 1:
        return 1, 1
    if len(shape) == 3 and scale[:1] == shape[:1] and len(scale) == 1:  # one for each expert
        return 1, 1
    if len(scale) == 1 or math.prod(scale[1:]) == 1:
        expect(scale[0] == inner or len(shape) == 3, f"scales for {shape}, got {scale}")
        return (1, 1) if scale[0] != inner else (inner, 1)
    rows, columns = scale[-2:]
    expect(1 <= rows <= inner and 1 <= columns <= width, f"scales for {shape}, got {scale}")
    return rows, columns


def _side(length: int, blocks: int, asked: object) -> int:
    """Elements of one block along an axis that `blocks` blocks cover."""
    if blocks == 1:
        return length
    tries = [asked] if type(asked) is int and asked > 0 else []
    tries += [*BLOCKS, *([length // blocks] if length % blocks == 0 else [])]
    fitting = [side for side in tries if -(-length // side) == blocks]
    expect(bool(fitting), f"{blocks} blocks of one side along {length}")
    return fitting[0]


_SCALES = (".weight_scale", ".weight_scale_inv", ".scale_weight", ".SCB", ".weight._scale")
SCALED = Scheme(
    ".weight", (*FLOAT8, "I8"),
    {"scale": _SCALES, "zero": (".weight_zero_point",), "weight_format": (".weight_format",)},
    _build, sure=False, extras=ACTIVATIONS,
)  # fmt: skip
# of what is a parameter without a module of its own, as stacked experts are
SCALED_PARAMETER = Scheme(
    "", (*FLOAT8, "I8"), {"scale": ("_scale", "_scale_inv"), "zero": ("_zero_point",)}, _build, becomes="", sure=False
)
QUANTO = Scheme(".weight._data", (*FLOAT8, "I8"), {"scale": (".weight._scale",)}, _build, extras=ACTIVATIONS)
TORCHAO = Scheme(
    "._weight_qdata", (*FLOAT8, "I8"), {"scale": ("._weight_scale",), "zero": ("._weight_zero_point",)}, _build
)
