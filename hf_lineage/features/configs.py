"""What a foreign config may ask for: a copy of its plain values, and limits on what is made from it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..answers.refs import printable
from ..checkpoints.checkpoint import Checkpoint
from ..errors import CheckpointError

MAX_INTEGER = 10**6  # in a config; a number of layers stays below MAX_LAYERS
MAX_LAYERS = 10**4
MAX_COUNT = 10**9  # positions and rotary bases, which take no memory of their own
MAX_SIZE_RATIO = 4  # elements, and tensors, of a network over those of its checkpoint
MAX_TENSOR_ELEMENTS = 1 << 27  # elements of one tensor that a constructor may compute, whatever the checkpoint holds

# What a config may not choose: where code, weights, kernels and their number format come from.
_DROPPED = re.compile(
    r"^(?:auto_map|_name_or_path|torch_dtype|dtype|use_pretrained_backbone|use_kernels|kernel_config|"
    r"return_dict|torchscript|_?(?:attn|experts)_implementation\w*)$"
)
_REFUSED_ARGUMENT = re.compile(
    r"^pretrained|^feature|checkpoint|cache|^(?:scriptable|exportable|no_jit|device|dtype|kwargs_filter)$"
)
_SOURCE = re.compile(r"^\s*(?:hf[-_]hub|local-dir)\s*:")
_LAYERS = re.compile(r"layers?$|depths?$|blocks?$|stages?$")
_COUNTS = re.compile(r"rope|theta|base|position|length|window|seed")


def unknown(name: str, who: str) -> CheckpointError:
    """The error for an architecture that timm does not register."""
    return CheckpointError(f"Expected an architecture of timm in the config of {who}, got {printable(name)[:80]!r}.")


def _only_sizes(arguments: Any, who: str) -> None:
    """Of `model_args` of a timm model, none may fetch, load or wrap anything."""
    if not isinstance(arguments, dict):
        raise CheckpointError(f"Expected `model_args` of {who} to be a table, got {type(arguments).__name__}.")
    for key in arguments:
        if _REFUSED_ARGUMENT.search(key) or not key.isidentifier():
            raise CheckpointError(f"Expected `model_args` of {who} to be sizes, got {printable(key)[:80]!r}.")


def checked(value: Any, key: str, who: str, known: Callable[[str], bool], depth: int = 0) -> Any:
    """A copy of a config's value without what it may not choose; `CheckpointError` for an absurd one."""
    if key == "model_args" and value is not None:
        _only_sizes(value, who)
    if isinstance(value, dict) and depth < 16:
        kept = {name: item for name, item in value.items() if not _DROPPED.search(str(name))}
        if isinstance(kept.get("backbone"), str) and not known(kept["backbone"]):  # it would be looked up on the Hub
            name = kept.pop("backbone")
            if not isinstance(kept.get("backbone_config"), dict):
                raise CheckpointError(f"Expected `backbone_config` in {who}, got only {printable(name)[:80]!r}.")
        architecture = kept.get("architecture")  # where transformers wraps timm
        if isinstance(architecture, str) and not known(architecture):
            raise unknown(architecture, who)
        return {str(name): checked(item, str(name), who, known, depth + 1) for name, item in kept.items()}
    if isinstance(value, list) and depth < 16 and len(value) <= MAX_INTEGER:
        return [checked(item, key, who, known, depth + 1) for item in value]
    if isinstance(value, int):
        limit = MAX_LAYERS if _LAYERS.search(key) else MAX_COUNT if _COUNTS.search(key) else MAX_INTEGER
        if abs(value) <= limit:
            return value
        raise CheckpointError(f"Expected `{printable(key)[:80]}` of {who} within {limit:,}, got {value:,}."[:400])
    if value is None or isinstance(value, (float, str)):
        if isinstance(value, str) and _SOURCE.search(value):
            raise CheckpointError(f"Expected the config of {who} to fetch nothing, got {printable(value)[:80]!r}.")
        return value
    raise CheckpointError(f"Expected plain values in the config of {who}, got `{printable(key)[:80]}` nested too deep.")


class _TooLargeError(RuntimeError):
    """A constructor that asks for more than its checkpoint can fill."""


class _SizeLimit(TorchDispatchMode):
    """Refuses an operation whose result, tried out on the meta device first, has more than `limit` elements."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(leaf.is_meta for leaf in inputs):
            moved, named = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (args, kwargs))
            if "device" in named or not inputs:
                named = {**named, "device": torch.device("meta")}
            try:
                outputs = tree_leaves(func(*moved, **named))
            except Exception:  # one whose size depends on values, which are small: all inputs were
                outputs = []
            sizes = [leaf.numel() for leaf in outputs if isinstance(leaf, Tensor)]
            if max(sizes, default=0) > self.limit:
                raise _TooLargeError(f"a tensor of {max(sizes):,} elements")
        return func(*args, **kwargs)


_BUILDING = threading.local()
_HOOKED: list[bool] = []


def _refuse_sockets(event: str, arguments: Any) -> None:
    if event in {"socket.connect", "socket.getaddrinfo"} and getattr(_BUILDING, "active", False):
        raise RuntimeError("a config may not fetch anything")  # no OSError: nobody retries


@contextmanager
def building(checkpoint: Checkpoint, who: str) -> Iterator[None]:
    """Parameters go to the meta device as they are made, buffers keep their values; and the limits above hold."""
    elements = sum(entry.count for entry in checkpoint.values())
    room, tensors = MAX_SIZE_RATIO * elements + 1000, MAX_SIZE_RATIO * len(checkpoint) + 1000
    counted = [0, 0]

    def on_meta(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or not getattr(_BUILDING, "active", False):
            return None
        counted[0] += parameter.numel()
        counted[1] += 1
        if counted[0] > room or counted[1] > tensors:
            raise _TooLargeError(f"over {counted[0]:,} elements in {counted[1]:,} parameters")
        if parameter.is_meta:  # tied ones stay one
            return None
        moved = type(parameter)(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        moved.__dict__.update(parameter.__dict__)
        return moved

    if not _HOOKED:
        sys.addaudithook(_refuse_sockets)
        _HOOKED.append(True)
    handle = register_module_parameter_registration_hook(on_meta)
    _BUILDING.active = True
    try:
        with _SizeLimit(max(MAX_TENSOR_ELEMENTS, room)):
            yield
    except CheckpointError:
        raise
    except _TooLargeError as error:
        raise CheckpointError(
            f"Expected a network for the {elements:,} elements in {len(checkpoint):,} tensors of {who}, but its config "
            f"asks for {error}."
        ) from error
    except Exception as error:  # the library's own words for a config that does not fit together
        reason = printable(str(error))[:200]
        raise CheckpointError(f"The config of {who} makes no network: {type(error).__name__}: {reason}") from error
    finally:
        _BUILDING.active = False
        handle.remove()
