"""Packs matrices as the libraries of each layout do, by rounding to nearest: plain loops over bits, to be read.

PACKERS: layout → function (name without `.weight`, matrix) → the tensors of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def nearest(values: torch.Tensor, table: tuple[float, ...]) -> torch.Tensor:
    """The index of the nearest number of a table, for each value."""
    return (values[..., None] - torch.tensor(table)).abs().argmin(-1)


def words(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes (rows, n) in words of 32 bits (rows, n·bits / 32), the lowest bits first; `order`: which code comes 1st, 2nd…"""
    each = 32 // bits
    groups = codes.long().reshape(len(codes), -1, each)
    found = torch.zeros(groups.shape[:2], dtype=torch.int64)
    for place in range(each):
        found |= groups[:, :, order[place] if order else place] << (bits * place)
    return found.to(torch.int32)


def rounded(w: torch.Tensor, group: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (rows, width), scales and zero points (rows, groups), from the least to the largest value of each group."""
    parts = w.reshape(len(w), -1, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=1e-7)
    zero = (-low / scale).round().clamp(0, 2**bits - 1)
    codes = (parts / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(w.shape), scale, zero


def fp8(name: str, w: torch.Tensor) -> Tensors:
    scale = (w.abs().amax() / 448).reshape(())
    return {f"{name}.weight": (w / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def fp8_channel(name: str, w: torch.Tensor) -> Tensors:
    scale = w.abs().amax(1, keepdim=True) / 448
    return {f"{name}.weight": (w / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}


def fp8_block(name: str, w: torch.Tensor) -> Tensors:
    rows, columns = -(-len(w) // 32), -(-w.shape[1] // 32)
    scale = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            scale[i, j] = w[32 * i : 32 * i + 32, 32 * j : 32 * j + 32].abs().max() / 448
    each = scale.repeat_interleave(32, 0)[: len(w)].repeat_interleave(32, 1)[:, : w.shape[1]]
    return {f"{name}.weight": (w / each).to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": scale}


def llm_int8(name: str, w: torch.Tensor) -> Tensors:
    largest = w.abs().amax(1)
    codes = (w * 127 / largest[:, None]).round().to(torch.int8)
    return {
        f"{name}.weight": codes,
        f"{name}.SCB": largest,
        f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def nf4(name: str, w: torch.Tensor) -> Tensors:
    blocks = w.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    codes = nearest(blocks / largest[:, None], NF4).reshape(-1, 2).to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
    return {
        f"{name}.weight": (codes[:, 0] << 4 | codes[:, 1])[:, None], f"{name}.weight.absmax": largest,
        f"{name}.weight.quant_map": torch.tensor(NF4),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8),
    }  # fmt: skip


def nf4_nested(name: str, w: torch.Tensor) -> Tensors:
    """The largest values less their mean, rounded to 256 levels; blocks of 256 of them."""
    plain = nf4(name, w)
    largest = plain.pop(f"{name}.weight.absmax")
    state = json.loads(bytes(plain.pop(f"{name}.weight.quant_state.bitsandbytes__nf4").tolist()))
    offset = float(largest.mean())
    table = torch.linspace(-1, 1, 256)
    codes, outer = [], []
    for part in (largest - offset).split(256):
        outer.append(part.abs().max())
        codes.append((part[:, None] / outer[-1] - table).abs().argmin(1))
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    return {
        **plain, f"{name}.weight.absmax": torch.cat(codes).to(torch.uint8),
        f"{name}.weight.nested_absmax": torch.stack(outer), f"{name}.weight.nested_quant_map": table,
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8),
    }  # fmt: skip


def gptq(name: str, w: torch.Tensor) -> Tensors:
    codes, scale, zero = rounded(w, 32, 4)
    zero = zero.clamp(min=1)  # stored less one
    codes = (w.reshape(len(w), -1, 32) / scale[..., None] + zero[..., None]).round().clamp(0, 15).reshape(w.shape)
    return {
        f"{name}.qweight": words(codes, 4).T.contiguous(), f"{name}.qzeros": words((zero - 1).T, 4),
        f"{name}.scales": scale.T.half().contiguous(), f"{name}.g_idx": torch.arange(w.shape[1], dtype=torch.int32) // 32,
    }  # fmt: skip


def awq(name: str, w: torch.Tensor) -> Tensors:
    codes, scale, zero = rounded(w, 32, 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{name}.qweight": words(codes.T, 4, order), f"{name}.qzeros": words(zero.T, 4, order),
        f"{name}.scales": scale.T.half().contiguous(),
    }  # fmt: skip


def compressed(name: str, w: torch.Tensor) -> Tensors:
    parts = w.reshape(len(w), -1, 32)
    scale = parts.abs().amax(-1) / 7.5
    codes = (parts / scale[..., None]).round().clamp(-8, 7).reshape(w.shape) + 8
    return {
        f"{name}.weight_packed": words(codes, 4), f"{name}.weight_scale": scale,
        f"{name}.weight_shape": torch.tensor(w.shape),
    }  # fmt: skip


def _e2m1(values: torch.Tensor) -> torch.Tensor:
    codes = (nearest(values.abs(), E2M1) + 8 * (values < 0)).to(torch.uint8).reshape(len(values), -1, 2)
    return codes[..., 0] | codes[..., 1] << 4


def mxfp4(name: str, w: torch.Tensor) -> Tensors:
    parts = w.reshape(len(w), -1, 32)
    exponent = torch.floor(torch.log2(parts.abs().amax(-1))) - 2
    scaled = (parts / torch.exp2(exponent)[..., None]).clamp(-6, 6).reshape(w.shape)
    return {f"{name}.weight_packed": _e2m1(scaled), f"{name}.weight_scale": (exponent + 127).to(torch.uint8)}


def nvfp4(name: str, w: torch.Tensor) -> Tensors:
    parts = w.reshape(len(w), -1, 16)
    whole = w.abs().max() / 6 / 448
    scale = (parts.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    scaled = (parts / (scale.float() * whole)[..., None]).reshape(w.shape)
    return {f"{name}.weight": _e2m1(scaled), f"{name}.weight_scale": scale, f"{name}.weight_scale_2": whole}


def hqq(name: str, w: torch.Tensor) -> Tensors:
    codes, scale, zero = rounded(w, 64, 4)
    groups = codes.reshape(-1, 64).to(torch.uint8)
    half = len(groups) // 2
    facts = {"nbits": 4, "group_size": 64, "axis": 1}
    return {
        f"{name}.W_q": groups[:half] << 4 | groups[half:], f"{name}.scale": scale.reshape(-1, 1),
        f"{name}.zero": zero.reshape(-1, 1), f"{name}.shape": torch.tensor(w.shape),
        **{f"{name}.{key}": torch.tensor(value) for key, value in facts.items()},
    }  # fmt: skip


def mlx(name: str, w: torch.Tensor) -> Tensors:
    parts = w.reshape(len(w), -1, 64)
    low = parts.amin(-1)
    scale = (parts.amax(-1) - low) / 15
    codes = ((parts - low[..., None]) / scale[..., None]).round().reshape(w.shape)
    return {f"{name}.weight": words(codes, 4).view(torch.uint32), f"{name}.scales": scale, f"{name}.biases": low}


def torchao(name: str, w: torch.Tensor) -> Tensors:
    scale = w.abs().amax(1, keepdim=True) / 127
    return {f"{name}._weight_qdata": (w / scale).round().to(torch.int8), f"{name}._weight_scale": scale}


PACKERS: dict[str, Callable[[str, torch.Tensor], Tensors]] = {
    "fp8": fp8, "fp8 channel": fp8_channel, "fp8 block": fp8_block, "llm int8": llm_int8, "nf4": nf4,
    "nf4 nested": nf4_nested, "gptq": gptq, "awq": awq, "compressed-tensors": compressed, "mxfp4": mxfp4,
    "nvfp4": nvfp4, "hqq": hqq, "mlx": mlx, "torchao": torchao,
}  # fmt: skip


def packed(model: Tensors, layout: str) -> Tensors:
    """A model with the matrices of its blocks packed; the rest as it is."""
    found: Tensors = {}
    for name, tensor in model.items():
        if tensor.ndim == 2 and ".layer" in name:
            found |= PACKERS[layout](name.removesuffix(".weight"), tensor.float())
        else:
            found[name] = tensor
    return found
