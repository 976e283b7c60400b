"""GPTQ and AWQ: 32-bit words of codes, scales and zero points of groups of inputs, stored by inputs.

    value[out, in] = scales[group, out] · (code[in, out] − zero[group, out])

GPTQ packs along the inputs, the lowest bits first, and stores zero − 1 (in format `gptq_v2`: zero); `g_idx` names each
input's group. AWQ packs eight outputs to a word in the order 0, 2, 4, 6, 1, 3, 5, 7. Frantar et al., arXiv:2210.17323;
Lin et al., arXiv:2306.00978; the layouts are those of AutoGPTQ and AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...entry import Packing, Slice
from .matrix import MAX_STRIDED, CodedMatrix, Parts, Scheme, expect, unpack_bits

if TYPE_CHECKING:
    import torch

BITS = (2, 3, 4, 8)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds output 0, 1, … of its eight


@dataclass(frozen=True, slots=True)
class _ByInputs(CodedMatrix):
    """groups: rows of the scales; group_of: inputs of a group where no `g_idx` tells; sizes: elements of the parts that
    are read. one_less: the zero points are stored one less."""

    groups: int
    sizes: tuple[int, ...]
    group: int
    one_less: bool
    along_outputs: bool

    strided = True

    @property
    def levels(self) -> int:
        return 2**self.packing.bits

    def slices(self, first: int, stop: int) -> list[Slice]:
        return [Slice(part, 0, size) for part, size in zip(self.parts, self.sizes, strict=False)]

    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        bits = self.packing.bits
        if self.along_outputs:
            return _eights(read[0].reshape(self.width, -1), first, stop).T
        words = read[0].reshape(-1, self.height)[:, first:stop].T
        return unpack_bits(words, bits)[:, : self.width]

    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        import torch

        stop = first + len(codes)
        scales = read[1].reshape(self.groups, self.height)[:, first:stop].float()
        words = read[2].reshape(self.groups, -1)
        zeros = _eights(words, first, stop) if self.along_outputs else self._zeros(words, first, stop)
        if len(read) > 3:  # an index of nowhere makes the values NaN
            index = read[3].long()
            known = (index >= 0) & (index < self.groups)
            scales = torch.cat([scales, torch.full_like(scales[:1], torch.nan)])
            zeros = torch.cat([zeros, zeros[:1]])
            of = torch.where(known, index, self.groups)
        else:
            of = torch.arange(self.width) // self.group
        return (codes.float() - zeros.float()[of].T - float(self.one_less)) * scales[of].T

    def _zeros(self, words: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        found = unpack_bits(words, self.packing.bits)[:, first:stop]
        return found


def _eights(words: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Codes of AWQ's words (rows, n): the columns from `first` to `stop`, (rows, columns) uint8."""
    import torch

    nibbles = unpack_bits(words[:, first // 8 : -(-stop // 8)], 4).reshape(len(words), -1, 8)
    ordered = nibbles[:, :, torch.tensor(AWQ_ORDER)].reshape(len(words), -1)
    return ordered[:, first % 8 : first % 8 + stop - first]


def _build(parts: Parts) -> _ByInputs:
    words, scales, zeros = parts["codes"], parts["scale"], parts["zero"]
    for role in ("codes", "scale", "zero"):
        expect(len(parts[role].shape) == 2 and parts[role].count > 0, f"a matrix of {role}, got {parts[role].shape}")
    expect(
        scales.dtype in ("F16", "BF16", "F32") and zeros.dtype in ("I32", "U32"), "float scales, integer zero points"
    )
    expect(words.nbytes <= MAX_STRIDED, f"at most {MAX_STRIDED >> 20} MiB of codes, got {words.nbytes >> 20}")
    groups, outputs = scales.shape
    expect(zeros.shape[0] == groups, f"zero points of {groups} groups, got {zeros.shape}")
    # of a word's columns there are eight times as many outputs in AWQ, and as many in GPTQ
    awq = words.shape[1] * 8 == outputs and "index" not in parts
    if awq:
        inputs, bits = words.shape[0], 4
        expect(zeros.shape[1] * 8 == outputs, f"zero points for {outputs} outputs, got {zeros.shape}")
    else:
        expect(words.shape[1] == outputs, f"codes for {outputs} outputs, got {words.shape}")
        bits = 32 * zeros.shape[1] // outputs
        expect(
            bits in BITS and 32 * zeros.shape[1] == bits * outputs,
            f"zero points of 2, 3, 4 or 8 bits, got {zeros.shape}",
        )
        inputs = 32 * words.shape[0] // bits
        expect(inputs * bits == 32 * words.shape[0], f"whole codes, got {words.shape}")
    read = [words, scales, zeros]
    if "index" in parts:
        expect(parts["index"].shape == (inputs,), f"a group for each of {inputs} inputs, got {parts['index'].shape}")
        expect(parts["index"].dtype in ("I32", "I64"), "integers in g_idx")
        read.append(parts["index"])
    expect(inputs % groups == 0 or "index" in parts, f"groups of one size, got {groups} of {inputs}")
    names = [entry.name for entry in read]
    newer = not awq and parts.quantization().get("checkpoint_format") == "gptq_v2"
    return _ByInputs(
        parts.name, (outputs, inputs), Packing("awq" if awq else "gptq", bits),
        (*names, *(name for name in parts.names if name not in names)), groups,
        tuple(entry.count for entry in read), max(inputs // groups, 1), not (awq or newer), awq,
    )  # fmt: skip


GPTQ = Scheme(
    ".qweight", ("I32", "U32"), {"scale": (".scales",), "zero": (".qzeros",), "index": (".g_idx",)}, _build,
    required=("scale", "zero"),
)  # fmt: skip
