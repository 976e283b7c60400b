"""Pickled weights, read by `torch.load(weights_only=True)` where the caller allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import BrokenFileError, NoWeightsError
from ..local import LocalRepo
from .safetensors import MAX_INDEX, parse_index

if TYPE_CHECKING:
    import torch

    from ...hub.client import HubRepo
from ..checkpoint import MemoryCheckpoint

PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "pytorch_model.pt")

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_pickles(repo: LocalRepo | HubRepo, names: Sequence[str]) -> MemoryCheckpoint:
    import torch

    indexes = [name for name in sorted(repo.files) if name.endswith(".bin.index.json")]
    if indexes and (not names or names[0] not in PICKLES):
        names = sorted(set(parse_index(repo.read_small(indexes[0], MAX_INDEX), indexes[0]).values()))
    tensors: dict[str, torch.Tensor] = {}
    loaded = 0
    for name in names if indexes else names[:1]:
        path = repo.path(name)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a pickle may fail in any way; what matters is that none of it ran
            raise BrokenFileError(
                f"`{path}` does not load with torch.load(weights_only=True) ({type(error).__name__}): it is broken, "
                "or holds more than tensors."
            ) from error
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        items = state.items() if isinstance(state, dict) else ()
        tensors |= {str(k): v for k, v in items if isinstance(v, torch.Tensor)}
        loaded += path.stat().st_size
    if not tensors:
        raise NoWeightsError(f"Expected a state dict in `{repo.ref.name}/{names[0]}`, found no tensor in it.")
    return MemoryCheckpoint(repo.ref, repo.requested, tensors, loaded)
