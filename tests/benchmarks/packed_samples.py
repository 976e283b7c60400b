"""Makes tests/packed/samples.npz: one small matrix in each packed layout, with the values that the layout's own library
unpacks it to. Run by hand, where those libraries are installed:

    pip install bitsandbytes compressed-tensors torchao hqq "mlx[cpu]" && python tests/benchmarks/packed_samples.py

Each sample is a safetensors file, a config.json, and the expected float32 values; tests/test_packed.py reads them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

OUT = Path(__file__).parents[1] / "packed" / "samples.npz"
ROWS, WIDTH = 8, 128
Sample = tuple[dict[str, torch.Tensor], dict[str, Any], torch.Tensor]


def weight(seed: int = 0, rows: int = ROWS, width: int = WIDTH) -> torch.Tensor:
    """Rows of unequal size, one of them with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(rows, width, generator=generator) * torch.linspace(0.01, 0.1, rows)[:, None]
    found[3, 5] = 1.5
    return found


def bitsandbytes(kind: str, nested: bool) -> Sample:
    import bitsandbytes.functional as F

    packed, state = F.quantize_4bit(weight(), quant_type=kind, compress_statistics=nested, blocksize=64)
    named = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {"m.weight": packed, **named}, {}, F.dequantize_4bit(packed, state).float()


def llm_int8() -> Sample:
    import bitsandbytes.functional as F

    w = weight()
    largest = w.abs().amax(1)
    codes = (w * (127 / largest[:, None])).round().to(torch.int8)
    return {"m.weight": codes, "m.SCB": largest, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}, {}, (
        F.int8_vectorwise_dequant(codes, largest).float()
    )  # fmt: skip


def compressed(format: str, scheme: dict[str, Any], rows: int = ROWS) -> Sample:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, initialize_module_for_quantization
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**scheme)
    module = torch.nn.Linear(WIDTH, rows, bias=False)
    module.weight.data = weight(rows=rows)
    initialize_module_for_quantization(module, QuantizationScheme(targets=["Linear"], weights=args))
    w = module.weight.data
    strategy = str(getattr(args.strategy, "value", args.strategy))
    groups = {"tensor": w.reshape(1, -1), "channel": w}.get(strategy)
    groups = w.reshape(rows, -1, args.group_size or 1) if groups is None else groups
    low, high = groups.amin(-1), groups.amax(-1)
    extra = {}
    if strategy == "tensor_group":
        extra["global_scale"] = module.weight_global_scale.data = generate_gparam(
            w.amin().reshape(1), w.amax().reshape(1)
        )
    scale, zero = calculate_qparams(low, high, args, **extra)
    shape = module.weight_scale.shape
    module.weight_scale.data = scale.reshape(shape).to(module.weight_scale.dtype)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape).to(module.weight_zero_point.dtype)
    state = {name: value.data.clone() for name, value in module.state_dict().items()}
    compressor = BaseCompressor.load_from_registry(format)
    scheme_ = QuantizationScheme(targets=["Linear"], weights=args)
    packed = compressor.compress(state, scheme_)
    unpacked = compressor.decompress(dict(packed), scheme_)["weight"]
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": format}}
    return {f"m.{name}": value.contiguous() for name, value in packed.items()}, config, unpacked.float()


def torchao(name: str) -> Sample:
    import torchao.quantization as q
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, ROWS, bias=False))
    module[0].weight.data = weight()
    q.quantize_(module, getattr(q, name)(version=2))
    flat, _ = flatten_tensor_state_dict(module.state_dict())
    return {k.replace("0.", "m.", 1): v for k, v in flat.items()}, {}, module[0].weight.dequantize().float()


def hqq(bits: int) -> Sample:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    module = torch.nn.Linear(WIDTH, ROWS, bias=False)
    module.weight.data = weight()
    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    packed = HQQLinear(module, config, compute_dtype=torch.float32, device="cpu")
    return {f"m.{k}": v.contiguous() for k, v in packed.state_dict().items()}, {}, packed.dequantize().float()


def mlx(bits: int, group: int = 64, mode: str = "affine") -> Sample:
    import mlx.core as mx

    packed, scales, *biases = mx.quantize(mx.array(weight().numpy()), group_size=group, bits=bits, mode=mode)
    expected = mx.dequantize(packed, scales, *biases, group_size=group, bits=bits, mode=mode)
    parts = {"m.weight": packed, "m.scales": scales} | ({"m.biases": biases[0]} if biases else {})
    config = {"quantization": {"group_size": group, "bits": bits}}
    return {k: torch.from_numpy(np.array(v)) for k, v in parts.items()}, config, torch.from_numpy(
        np.array(expected.astype(mx.float32))
    )  # fmt: skip


def fine_grained_fp8() -> Sample:
    """Blocks of 8 × 32, the last of them cut off; the rule of transformers and DeepSeek, written out."""
    padded = torch.nn.functional.pad(weight(rows=20), (0, 0, 0, 4)).reshape(3, 8, 4, 32)
    scale = padded.abs().amax((1, 3)) / 448
    codes = (padded / scale[:, None, :, None]).reshape(24, WIDTH)[:20].to(torch.float8_e4m3fn)
    expected = codes.float() * scale.repeat_interleave(8, 0)[:20].repeat_interleave(32, 1)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 32]}}
    return {"m.weight": codes, "m.weight_scale_inv": scale}, config, expected


def gpt_oss() -> Sample:
    """Two experts, unpacked by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (2, 10, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(118, 130, (2, 10, 3), dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales}, {}, expected


GROUP4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
SAMPLES: dict[str, Callable[[], Sample]] = {
    "nf4": lambda: bitsandbytes("nf4", False),
    "nf4 nested": lambda: bitsandbytes("nf4", True),
    "fp4": lambda: bitsandbytes("fp4", True),
    "llm int8": llm_int8,
    "ct w4a16": lambda: compressed("pack-quantized", GROUP4),
    "ct w4a16 asymmetric": lambda: compressed("pack-quantized", GROUP4 | {"symmetric": False}, 16),
    "ct w8a16 channel": lambda: compressed(
        "pack-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    ),
    "ct int8": lambda: compressed(
        "int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    ),
    "ct fp8 channel": lambda: compressed(
        "float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    ),
    "ct fp8 tensor": lambda: compressed(
        "float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
    ),
    "ct nvfp4": lambda: compressed(
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
    ),
    "fp8 blocks": fine_grained_fp8,
    "mxfp4 experts": gpt_oss,
    "torchao fp8": lambda: torchao("Float8WeightOnlyConfig"),
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    **{f"hqq {bits}": lambda bits=bits: hqq(bits) for bits in (8, 4, 2, 1)},
    **{f"mlx {bits}": lambda bits=bits: mlx(bits) for bits in (2, 3, 4, 5, 6, 8)},
    "mlx mxfp4": lambda: mlx(4, 32, "mxfp4"),
}


def main() -> None:
    """Make every sample; what a library does not do on this machine is printed and left out."""
    warnings.simplefilter("ignore")
    arrays = {}
    for name, make in SAMPLES.items():
        try:
            tensors, config, expected = make()
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        arrays[f"{name}/file"] = np.frombuffer(save(tensors), dtype=np.uint8)
        arrays[f"{name}/config"] = np.frombuffer(json.dumps(config).encode(), dtype=np.uint8)
        arrays[f"{name}/expected"] = expected.detach().float().numpy()
        print(name, {k: (tuple(v.shape), str(v.dtype)[6:]) for k, v in tensors.items()})
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **arrays)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
