"""Pickled weights, read by `torch.load(weights_only=True)`, and only where the caller allows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BrokenFileError, NoWeightsError, PickleRefusedError
from ..checkpoint import MemoryCheckpoint
from ..local import LocalRepo
from .safetensors import MAX_INDEX, parse_index

if TYPE_CHECKING:
    import torch

    from ...hub.client import HubRepo

PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "pytorch_model.pt")  # in the order of preference
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Keys under which trainers keep the weights: Lightning and many, timm and Meta, DeepSpeed, and the usual names
HOLDERS = ("state_dict", "model", "module", "model_state_dict", "params", "net", "network", "weights", "ema")
PARALLEL = re.compile(r"consolidated\.(\d+)\.pth")  # Meta's: with several of them each tensor is cut into as many parts
INDEX_ENDING = ".bin.index.json"


def find_pickles(repo: LocalRepo | HubRepo) -> list[str]:
    """The file that was named, those of PICKLES, or the first one there is; an index where there is none of these."""
    pickles = _pickles(repo)
    named = [name for name in (repo.only, *PICKLES) if name and name in pickles] or pickles[:1]
    return named or _indexes(repo)[:1]


def open_pickles(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool) -> MemoryCheckpoint:
    """The state dict in the first of the files, or in all shards of an index.

    Raises `PickleRefusedError` without `allow_pickle`, `BrokenFileError` for what is no pickle of tensors alone,
    `NoWeightsError` for one without a tensor.
    """
    if not allow_pickle:
        raise PickleRefusedError(
            f"`{repo.ref.name}` has only pickled weights ({', '.join(_pickles(repo)[:2])}), which can run code.",
            "If you trust it, allow them: --allow-pickle.",
            "allow_pickle=True.",
        )
    cut = [name for name in _pickles(repo) if PARALLEL.fullmatch(name)]
    if len(cut) > 1 and names[0] in cut and not repo.only:
        raise NoWeightsError(
            f"`{repo.ref.name}` holds {len(cut)} tensor-parallel parts ({cut[0]}, …), each of all tensors. "
            "Convert it with transformers (convert_llama_weights_to_hf.py) and name the result."
        )
    indexes = _indexes(repo)
    if indexes and names[0] not in PICKLES:
        names = sorted(set(parse_index(repo.read_small(indexes[0], MAX_INDEX), indexes[0]).values()))
    tensors: dict[str, torch.Tensor] = {}
    loaded = 0
    for name in names if indexes else names[:1]:
        path = repo.path(name)
        tensors |= load_pickle(path)
        loaded += path.stat().st_size
    if not tensors:
        raise NoWeightsError(f"Expected a state dict in `{repo.ref.name}/{names[0]}`, found no tensor in it.")
    return MemoryCheckpoint(repo.ref, repo.requested, tensors, loaded)


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict. Raises `BrokenFileError`."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle may fail in any way; what matters is that none of it ran
        raise BrokenFileError(
            f"`{path}` does not load with torch.load(weights_only=True) ({type(error).__name__}): it is broken, "
            "or holds more than tensors."
        ) from error
    for _ in range(2):  # a trainer's checkpoint may hold one in the other
        if _is_bare(state):
            state = next((state[key] for key in HOLDERS if isinstance(state.get(key), dict)), state)
    items = state.items() if isinstance(state, dict) else ()
    return {str(k): v for k, v in items if isinstance(v, torch.Tensor)}


def _is_bare(state: object) -> bool:
    """Whether a pickle holds no tensor of its own, but what a trainer keeps: the model under a key, steps and so on."""
    import torch

    return isinstance(state, dict) and not any(isinstance(value, torch.Tensor) for value in state.values())


def _pickles(repo: LocalRepo | HubRepo) -> list[str]:
    return sorted(name for name in repo.files if name.endswith(PICKLE_ENDINGS) and "/" not in name)


def _indexes(repo: LocalRepo | HubRepo) -> list[str]:
    return [name for name in sorted(repo.files) if name.endswith(INDEX_ENDING)]
