"""Writes GGUF files as llama.cpp's converter does, by the `gguf` library; and packs Q4_K, which the library only unpacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
HEADS = 4


def in_pairs(w: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`: the two halves of each head's rows in turn."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def q4_k(w: np.ndarray) -> np.ndarray:
    """Blocks of 256: two float16, eight scales and eight minima of 6 bits, 256 codes of 4; rounded to nearest."""
    blocks = w.reshape(-1, 8, 32).astype(np.float64)
    low = np.minimum(blocks.min(-1), 0)
    scale = (blocks.max(-1) - low) / 15
    d, dmin = (np.maximum(x.max(-1) / 63, 1e-9).astype(np.float16).astype(np.float64) for x in (scale, -low))
    scales = np.clip(np.ceil(scale / d[:, None] - 1e-9), 0, 63).astype(np.int64)
    minima = np.clip(np.round(-low / dmin[:, None]), 0, 63).astype(np.int64)
    step = np.maximum(d[:, None] * scales, 1e-30)[..., None]
    codes = np.clip(np.round((blocks + (dmin[:, None] * minima)[..., None]) / step), 0, 15).astype(np.uint8)
    found = []
    for i in range(len(blocks)):
        packed = np.zeros(12, dtype=np.uint8)
        for j in range(4):
            packed[j] = scales[i, j] | (scales[i, j + 4] >> 4) << 6
            packed[j + 4] = minima[i, j] | (minima[i, j + 4] >> 4) << 6
            packed[j + 8] = (scales[i, j + 4] & 15) | (minima[i, j + 4] & 15) << 4
        halves = np.array([d[i], dmin[i]], dtype=np.float16).view(np.uint8)
        pairs = codes[i].reshape(4, 2, 32)
        found.append(np.concatenate([halves, packed, (pairs[:, 0] | pairs[:, 1] << 4).reshape(-1)]))
    return np.stack(found).reshape(len(w), -1)


def packed_as(w: torch.Tensor, kind: str) -> tuple[np.ndarray, object]:
    """The bytes of a matrix in one of ggml's types, and the type; what its width does not allow, and vectors, in F32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    array = w.float().contiguous().numpy()
    chosen = GGMLQuantizationType[kind]
    if kind == "Q4_K" and w.ndim == 2 and w.shape[-1] % 256 and w.shape[-1] % 32 == 0:
        chosen = GGMLQuantizationType.Q5_0  # as llama.cpp does where no block of 256 fits
    if w.ndim < 2 or w.shape[-1] % GGML_QUANT_SIZES[chosen][0]:
        return array, GGMLQuantizationType.F32
    if chosen.name == "Q4_K":
        return q4_k(array), chosen
    return quants.quantize(array, chosen), chosen


def write_gguf(path: Path, model: Tensors, kind: str = "F16", arch: str = "llama", heads: int = HEADS) -> Path:
    """A model with the Hub's names as a GGUF file with gguf's, its matrices in one type."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(part) for name in model for part in name.split(".") if part.isdigit()]
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], max(numbers, default=0) + 1
    )
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(max(numbers, default=0) + 1)
    writer.add_head_count(heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(1000)])  # a list that is passed over
    for name, tensor in model.items():
        w = tensor
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            w = torch.from_numpy(in_pairs(tensor.float().numpy(), heads))
        data, chosen = packed_as(w, kind)
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(own or name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
