"""The linearisation of a model larger than memory: weights are read when a module needs them, and dropped after it ran.

Forward mode composes module after module, so only the running module's weights and Δ are in memory. docs/methods.md,
*Streaming*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..errors import ArgumentError
from ..placement import nearest, sent
from .forward import (
    Inputs,
    Weights,
    absent,
    collect,
    forward_mode,
    lookup,
    misshapen,
    probes,
    settled,
    slots,
    tensor_names,
    widened,
    with_tangent,
)
from .linearize import Linearised

Device = str | int | torch.device
Devices = Device | Mapping[str, Device]


def stream(
    module: nn.Module,
    parent: Weights,
    child: Weights | None,
    inputs: Inputs,
    taps: Sequence[str],
    *,
    device: Devices = "cpu",
    batch: int | None = None,
) -> dict[str, Linearised]:
    """F and T = J_p Δ, Δ = child − parent, both (N, K), at every tap: `linearize.exact` with one module in memory.

    `parent` and `child` may be lazy: a tensor is asked for when its module runs; nothing behind the last tap is. Δ = 0
    where the child has no tensor of that name and shape, and everywhere with `child=None`. All probes go through
    together, so that each tensor is read once; with a `batch`, or where a module runs again, it is read again.
    `device` may map module paths to devices, as accelerate's maps do: a path left out goes with the nearest above it,
    the module itself with the first; what a part returns goes back to where its caller runs (but not from meta).
    Buffers that the parent lacks are the module's.
    CheckpointError: a needed parameter is missing, or has another shape. NoForwardDerivative: as in `exact`.
    """
    with settled(module), forward_mode(module), streamed_weights(module, parent, child, device) as call:
        size = probes(inputs) if batch is None else batch
        found = collect(module, call, inputs, taps, with_tangent, batch=size, device=_device("", device))
    return {tap: Linearised(*pair) for tap, pair in found.items()}


@contextmanager
def streamed_weights(
    module: nn.Module, parent: Weights, child: Weights | None, device: Devices
) -> Iterator[Callable[[tuple, dict[str, Any]], object]]:
    """`call(args, kwargs)`, which runs the module as `stream` does, each part with its weights only while it runs."""
    cache = WeightCache(module, parent, child)
    with _hooked(module, cache, device):
        yield cache.call


class WeightCache:
    """The weights in memory: those that the running modules have requested, kept until these have run."""

    def __init__(self, module: nn.Module, parent: Weights, child: Weights | None) -> None:
        self.module, self.parent, self.child = module, parent, child
        self.parameters = tensor_names(module, "parameters")
        self.buffers = tensor_names(module, "buffers")
        self.cached: dict[str, Tensor] = {}
        self.running: list[tuple[torch.device, list[str]]] = []  # with what each has requested

    def call(self, args: tuple, kwargs: dict[str, Any]) -> object:
        self.cached.clear()
        self.running.clear()
        return self.module(*args, **kwargs)

    def enter(self, device: torch.device) -> None:
        self.running.append((device, []))

    def leave(self) -> None:
        for name in self.running.pop()[1]:
            del self.cached[name]

    def get(self, name: str, default: Tensor) -> Tensor:
        """The tensor of parameter or buffer `name`, while the innermost running module runs; before, the module's."""
        if not self.running:
            return default
        if name not in self.cached:
            device, requested = self.running[-1]
            self.cached[name] = self._read(name, default, device)
            requested.append(name)
        return self.cached[name]

    def _read(self, name: str, default: Tensor, device: torch.device) -> Tensor:
        """The parent's value, with child − parent as its tangent where the child has that tensor."""
        names = self.parameters.get(name) or self.buffers[name]
        value = lookup(self.parent, names)
        if value is None:
            if name in self.parameters or default.is_meta:
                raise absent(name)
            return default.to(device)
        if value.shape != default.shape:
            raise misshapen(name, default, value)
        value = widened(sent(value, device))
        other = lookup(self.child, names) if self.child is not None and name in self.parameters else None
        if other is None or other.shape != value.shape or not value.is_floating_point():
            return value
        return forward_ad.make_dual(value, sent(other, device).to(value) - value)


class _Hook(ModelHook):
    """On every module, since some use the weights of modules inside them without calling those."""

    def __init__(self, cache: WeightCache, device: torch.device) -> None:
        self.cache, self.device = cache, device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        self.cache.enter(self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.cache.leave()
        caller = self.cache.running[-1][0] if self.cache.running else self.device
        if self.device in (caller, torch.device("meta")):
            return output
        return send_to_device(output, caller)


@contextmanager
def _hooked(module: nn.Module, cache: WeightCache, device: Devices) -> Iterator[None]:
    """Hooks on every part of the module, removed afterwards."""
    taken = [path for path, part in module.named_modules() if hasattr(part, "_hf_hook")]
    if taken:
        raise ArgumentError(f"Expected a module without accelerate's hooks, got one on {taken[0]!r}: remove it first.")
    shadowed = {id(part) for part in module.modules() if "forward" in part.__dict__}
    try:
        for path, part in module.named_modules():
            add_hook_to_module(part, _Hook(cache, _device(path, device)))
        with slots(module, cache.get):
            yield
    finally:
        for part in module.modules():
            remove_hook_from_module(part)
            if id(part) not in shadowed:  # accelerate leaves the bound method behind
                part.__dict__.pop("forward", None)


def _device(path: str, device: Devices) -> torch.device:
    return torch.device(nearest(path, device) if isinstance(device, Mapping) else device)
