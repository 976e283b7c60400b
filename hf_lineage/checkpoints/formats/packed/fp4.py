"""4-bit floats e2m1 in blocks that share a scale: MXFP4 (blocks of 32, powers of two) and NVFP4 (blocks of 16, e4m3).

    MXFP4:  value = e2m1 · 2^(byte − 127)                       OCP Microscaling Formats v1.0
    NVFP4:  value = e2m1 · e4m3 · weight_scale_2                ModelOpt
            value = e2m1 · e4m3 / weight_global_scale           compressed-tensors

Two codes a byte, the lower first. gpt-oss stores its experts as `…_blocks` (experts, out, groups, 16) and `…_scales`;
unpacked they are (experts, in, out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import F4, short_floats, torch_dtypes
from ...entry import Packing, Slice
from .matrix import MAX_STRIDED, CodedMatrix, Parts, Scheme, expect, pairs_of, rows_of, unpack_bits

if TYPE_CHECKING:
    import torch


def e8m0(scale: torch.Tensor) -> torch.Tensor:
    """The powers of two of MX formats, 2^(byte − 127); 255 is NaN."""
    import torch

    raw = scale.view(torch.uint8).float()
    return torch.where(raw == 255, torch.nan, torch.exp2(raw - 127))


@dataclass(frozen=True, slots=True)
class _Float4(CodedMatrix):
    """group: neighbours that share a scale; unit: a factor of all scales; each: codes of one element of the part."""

    group: int
    unit: float
    each: int

    @property
    def levels(self) -> int:
        return len(short_floats("F4")[1]) - 1

    def slices(self, first: int, stop: int) -> list[Slice]:
        return [
            rows_of(self.parts[0], self.width // self.each, first, stop),
            rows_of(self.parts[1], self.width // self.group, first, stop),
        ]

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        raw = read[0].contiguous().view(torch_dtypes()["U8"])
        return self._scaled(pairs_of(F4, False)[raw.int()].reshape(stop - first, self.width), read)

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        return short_floats("F4")[0][unpack_bits(read[0].reshape(stop - first, -1), 4).long()]

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        return self._scaled(short_floats("F4")[1][codes.long()], read)

    def _scaled(self, numbers: torch.Tensor, read: Sequence[torch.Tensor]) -> torch.Tensor:
        scale = self._scale(read[1]).reshape(len(numbers), -1) * self.unit
        return (numbers.reshape(len(numbers), -1, self.group) * scale[..., None]).reshape(numbers.shape)

    def _scale(self, read: torch.Tensor) -> torch.Tensor:
        return e8m0(read) if read.element_size() == 1 and self.packing.scheme == "mxfp4" else read.float()


@dataclass(frozen=True, slots=True)
class _Experts(_Float4):
    """The experts of gpt-oss: rows are inputs, which are stored last."""

    strided = True

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        return self.values(self.codes(read, first, stop), read, first)

    def slices(self, first: int, stop: int) -> list[Slice]:
        outputs, inputs = self.width, self.shape[-2]
        experts = first // inputs, -(-stop // inputs)
        return [
            rows_of(self.parts[0], outputs * inputs // 2, *experts),
            rows_of(self.parts[1], outputs * inputs // self.group, *experts),
        ]

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        inputs = self.shape[-2]
        found = []
        for expert, low, high in self._runs(first, stop):
            raw = read[0].reshape(-1, self.width, inputs // 2)[expert][:, low // 2 : -(-high // 2)]
            found.append(unpack_bits(raw, 4)[:, low % 2 :][:, : high - low].T)
        import torch

        return short_floats("F4")[0][torch.cat(found).long()]

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        import torch

        inputs = self.shape[-2]
        scales = e8m0(read[1]).reshape(-1, self.width, inputs // self.group)
        found = [
            scales[expert].T[torch.arange(low, high) // self.group]
            for expert, low, high in self._runs(first, first + len(codes))
        ]
        return short_floats("F4")[1][codes.long()] * torch.cat(found)

    def _runs(self, first: int, stop: int) -> list[tuple[int, int, int]]:
        """Rows by expert, counted from the first that is read: (expert, first input, last input + 1)."""
        inputs = self.shape[-2]
        experts = range(first // inputs, -(-stop // inputs))
        return [(e - experts[0], max(first - e * inputs, 0), min(stop - e * inputs, inputs)) for e in experts]


def _rows(parts: Parts, group: int, each: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The unpacked shape, and the parts in the order in which they are read."""
    codes, scale = parts["codes"], parts["scale"]
    expect(len(codes.shape) >= 2 and codes.count > 0, f"a matrix of codes, got {codes.shape}")
    shape = (*codes.shape[:-1], codes.shape[-1] * each)
    expect(shape[-1] % group == 0, f"rows of whole blocks of {group}, got {shape[-1]}")
    expect(scale.shape == (*shape[:-1], shape[-1] // group), f"a scale for each {group} of {shape}, got {scale.shape}")
    names = (codes.name, scale.name)
    return shape, (*names, *(name for name in parts.names if name not in names))


def _build_nvfp4(parts: Parts) -> _Float4:
    expect(parts["scale"].dtype in ("F8_E4M3", "BF16", "F16", "F32"), f"scales in e4m3, got {parts['scale'].dtype}")
    shape, names = _rows(parts, 16, 2)
    role = "global" if "global" in parts else "factor"
    expect(role in parts and parts[role].count == 1, "one scale of the whole tensor")
    number = float(parts.small[role].reshape(-1)[0])
    unit = (1 / number if number else float("nan")) if role == "global" else number
    return _Float4(parts.name, shape, Packing("nvfp4", 4), names, 16, unit, 2)


def _build_mxfp4(parts: Parts) -> _Float4:
    expect(parts["scale"].dtype in ("U8", "F8_E8M0"), f"scales in e8m0, got {parts['scale'].dtype}")
    shape, names = _rows(parts, 32, 8 if parts["codes"].dtype == "U32" else 2)
    return _Float4(parts.name, shape, Packing("mxfp4", 4), names, 32, 1.0, 8 if parts["codes"].dtype == "U32" else 2)


def _build_experts(parts: Parts) -> _Experts:
    codes, scale = parts["codes"], parts["scale"]
    expect(
        len(codes.shape) == 4 and codes.shape[-1] == 16 and codes.count > 0,
        f"blocks (experts, out, groups, 16), got {codes.shape}",
    )
    expect(scale.shape == codes.shape[:3] and scale.dtype == "U8", f"a scale of each block, got {scale.shape}")
    experts, outputs, groups, _ = codes.shape
    expect(codes.nbytes // experts <= MAX_STRIDED, f"at most {MAX_STRIDED >> 20} MiB for one expert")
    return _Experts(
        parts.name, (experts, 32 * groups, outputs), Packing("mxfp4", 4), (codes.name, scale.name), 32, 1.0, 2
    )


_SCALE = {"scale": (".weight_scale",)}
_ACTIVATIONS = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale")
NVFP4 = Scheme(
    ".weight_packed", ("U8",), {**_SCALE, "global": (".weight_global_scale",)}, _build_nvfp4,
    required=("scale", "global"), sure=False, small=("global",), extras=_ACTIVATIONS,
)  # fmt: skip
NVFP4_MODELOPT = Scheme(
    ".weight", ("U8",), {**_SCALE, "factor": (".weight_scale_2",)}, _build_nvfp4, required=("scale", "factor"),
    sure=False, small=("factor",), extras=_ACTIVATIONS,
)  # fmt: skip
MXFP4_PACKED = Scheme(".weight_packed", ("U8",), _SCALE, _build_mxfp4, extras=_ACTIVATIONS)
MXFP4_MLX = Scheme(".weight", ("U32",), {"scale": (".scales",)}, _build_mxfp4, sure=False)
MXFP4_EXPERTS = Scheme("_blocks", ("U8",), {"scale": ("_scales",)}, _build_experts, becomes="", sure=False)
