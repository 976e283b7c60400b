"""The file formats that weights come in, one file each: FORMATS is the registry that `opener.py` walks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..local import LocalRepo
from .adapter import find_adapter, open_adapter
from .gguf import find_gguf, open_gguf
from .onnx import find_onnx, open_onnx
from .pickle import find_pickles, open_pickles
from .pipeline import find_pipeline, open_pipeline
from .safetensors import find_safetensors, open_safetensors

if TYPE_CHECKING:
    from ...hub.client import HubRepo


@dataclass(frozen=True, slots=True)
class Format:
    """How a model in this format is recognised in a repo or folder, and opened.

    find(repo): the names of its files, from the listing alone; an empty list where the model is in another format.
    open(repo, names, allow_pickle): the checkpoint; costs the headers. A format that can run code refuses to be opened
    without `allow_pickle`. Laws, tested for each: what is not there is not found; what was written is read back.
    """

    find: Callable[[LocalRepo | HubRepo], list[str]]
    open: Callable[[LocalRepo | HubRepo, list[str], bool], Checkpoint]


# In the order in which they are looked for: the first that is found is the model
FORMATS: dict[str, Format] = {
    "adapter": Format(find_adapter, open_adapter),
    "safetensors": Format(find_safetensors, open_safetensors),
    "pipeline": Format(find_pipeline, open_pipeline),
    "gguf": Format(find_gguf, open_gguf),
    "pickle": Format(find_pickles, open_pickles),
    "onnx": Format(find_onnx, open_onnx),
}
