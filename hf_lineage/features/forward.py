"""Running a network on probes up to its last tap, with weights in memory or streamed.

The forward pass ends at the last tap, so nothing behind it needs weights.
"""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ArgumentError, CheckpointError, LineageError

Inputs = Tensor | Mapping[str, Any]  # the one argument of `forward`, or its keyword arguments; probes on the first axis
Weights = Mapping[str, Tensor]
Arguments = tuple[tuple, dict[str, Any]]  # positional, keyword
Parts = Callable[[Tensor], tuple[Tensor, ...]]

INPUT = ".input"  # behind a module's path in a tap: what the module is given, not what it makes

EXCLUSIVE = threading.RLock()  # torch's switches and its level of dual numbers are global: one network at a time


class NoForwardDerivative(LineageError):
    """An operator on the way to a tap has no forward derivative; Taylor's form needs none."""


def collect(
    module: nn.Module,
    call: Callable[..., object],
    inputs: Inputs,
    taps: Sequence[str],
    parts: Parts,
    *,
    batch: int,
    device: torch.device,
) -> dict[str, tuple[Tensor, ...]]:
    """tap → the tensors of `parts(output)` as (N, K) matrices; `call(args, kwargs)` runs the module on a batch."""
    found: dict[str, tuple[Tensor, ...]] = {}
    count = probes(inputs)

    def keep(rows: slice, tap: str, output: Tensor) -> None:
        pieces = [flat(piece, rows.stop - rows.start) for piece in parts(output)]
        if tap not in found:
            found[tap] = tuple(piece.new_empty((count, piece.shape[1]), dtype=_wide(piece)) for piece in pieces)
        for whole, piece in zip(found[tap], pieces, strict=True):
            whole[rows] = piece  # a copy: what follows may write into the output in place

    for rows, arguments in batches(module, inputs, batch, device):
        watch(module, taps, partial(keep, rows), partial(call, *arguments))
    return {tap: found[tap] for tap in taps}


def watch(
    module: nn.Module, taps: Sequence[str], take: Callable[[str, Tensor], object], call: Callable[[], object]
) -> None:
    """`take(tap, output)` for each tap during `call()`, which ends at the last of them."""
    if missed := run_to(module, taps, take, call):
        raise ArgumentError(f"Expected taps that the forward pass reaches, got {min(missed)!r}.")


def run_to(
    module: nn.Module, taps: Sequence[str], take: Callable[[str, Tensor], object], call: Callable[[], object]
) -> set[str]:
    """As `watch`, with the taps that were not reached instead of an error."""
    waiting = set(taps)

    def reached(tap: str, value: object) -> None:
        if tap in waiting:
            waiting.remove(tap)
            take(tap, tensor_of(tap, value))
            if not waiting:
                raise _Reached

    def before(tap: str, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        reached(tap, [*args, *kwargs.values()])

    def after(tap: str, _module: nn.Module, _arguments: object, output: object) -> None:
        reached(tap, output)

    parts = [(tap, path, _tapped(module, path)) for tap in taps for path in [path_of(module, tap)]]
    handles = [
        part.register_forward_hook(partial(after, tap)) if path == tap
        else part.register_forward_pre_hook(partial(before, tap), with_kwargs=True)
        for tap, path, part in parts
    ]  # fmt: skip
    try:
        call()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return waiting


def visit(
    module: nn.Module, paths: Sequence[str], take: Callable[[str, Arguments, Tensor], object],
    call: Callable[[], object],
) -> None:  # fmt: skip
    """`take(path, arguments, output)` when a part has run for the first time; `call()` ends at the last of them.

    The arguments are as they were before the part ran, which may have written into them. Parts that do not run are
    passed over.
    """
    called: dict[str, Arguments | None] = {}

    def before(path: str, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if path not in called:
            called[path] = mapped(torch.clone, (args, kwargs))

    def after(path: str, output: Tensor) -> None:
        arguments, called[path] = called[path], None
        assert arguments is not None
        take(path, arguments, output)

    parts = {path: _tapped(module, path) for path in paths}
    handles = [part.register_forward_pre_hook(partial(before, path), with_kwargs=True) for path, part in parts.items()]
    try:
        run_to(module, paths, after, call)
    finally:
        for handle in handles:
            handle.remove()


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The function of every tensor in tuples, lists and dictionaries; what else is in them stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(function, item) for key, item in value.items()}
    return type(value)(mapped(function, item) for item in value) if type(value) in (tuple, list) else value


def batches(module: nn.Module, inputs: Inputs, batch: int, device: torch.device) -> Iterator[tuple[slice, Arguments]]:
    """(rows, (args, kwargs)) for `batch` probes at a time, on the device; what has no probe axis goes with each."""
    count = probes(inputs)
    if batch < 1:
        raise ArgumentError(f"Expected a batch of at least 1 probe, got {batch}.")
    caches = "use_cache" in inspect.signature(module.forward).parameters  # would keep keys and values of every layer
    extra = {"use_cache": False} if caches else {}
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        if isinstance(inputs, Mapping):
            cut = {name: value[rows].to(device) if _has_probes(value) else value for name, value in inputs.items()}
            yield rows, ((), extra | cut)
        else:
            yield rows, ((inputs[rows].to(device),), extra)


def probes(inputs: Inputs) -> int:
    """N, the same for every tensor of the inputs."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    counts = {len(value) for value in values if _has_probes(value)}
    if len(counts) != 1 or counts == {0}:
        raise ArgumentError(f"Expected inputs with one number of probes, at least 1, got {sorted(counts)}.")
    return counts.pop()


def flat(output: Tensor, count: int) -> Tensor:
    """(n, …) → (n, K)."""
    if output.ndim == 0 or len(output) != count:
        raise ArgumentError(f"Expected a tap with {count} probes on its first axis, got shape {tuple(output.shape)}.")
    return output.reshape(count, -1)


@contextmanager
def settled(module: nn.Module) -> Iterator[None]:
    """Eval mode, with the math kernel of attention: fused kernels and fast paths have no forward derivative."""
    with EXCLUSIVE:
        modes = [(part, part.training) for part in module.modules()]
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            module.eval()
            torch.backends.mha.set_fastpath_enabled(False)
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for part, mode in modes:
                part.training = mode
                if isinstance(part, nn.RNNBase):
                    part._init_flat_weights()  # a list of its own, which still holds what it ran with


@contextmanager
def forward_mode(module: nn.Module) -> Iterator[None]:
    """Dual numbers without a graph; torch's error about an operator becomes `NoForwardDerivative` with its module."""
    try:
        with EXCLUSIVE, torch.no_grad(), forward_ad.dual_level():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch scripts its formulas at the first dual number
                forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
            yield
    except RuntimeError as error:
        operator = re.search(r"forward AD with (\w+)", str(error))
        if not operator and "jvp function" not in str(error):
            raise
        name = operator[1] if operator else "a custom autograd.Function"
        raise NoForwardDerivative(
            f"Expected operators with a forward derivative, got {name} in {_running(module, error)!r}: "
            "use Taylor's form (one backward pass), or a tap before it."
        ) from error


def with_tangent(output: Tensor) -> tuple[Tensor, Tensor]:
    """Primal and tangent of a tensor; zeros where it has no tangent."""
    primal, tangent = forward_ad.unpack_dual(output)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def tensor_names(module: nn.Module, kind: str) -> dict[str, list[str]]:
    """Each attribute that holds one of the "parameters" or "buffers" → all names of its tensor, its own name first.

    A tied tensor has several attributes; a module under two paths has each of its attributes once.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in getattr(module, f"named_{kind}")(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    own = {
        f"{path}.{name}".lstrip("."): names[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in getattr(part, f"named_{kind}")(recurse=False, remove_duplicate=False)
    }
    return {name: [name, *(other for other in every if other != name)] for name, every in own.items()}


def lookup(mapping: Weights, names: Sequence[str]) -> Tensor | None:
    """The tensor under the first name that exists, else None; without `in`, since that may read the tensor."""
    for name in names:
        try:
            return mapping[name].detach()
        except KeyError:
            continue
    return None


def absent(name: str) -> CheckpointError:
    """The error for a parameter without weights."""
    return CheckpointError(f"Expected weights for {name!r}, which is used before the last tap, got none.")


def misshapen(name: str, own: Tensor, value: Tensor) -> CheckpointError:
    """The error for weights of another shape than the network's."""
    return CheckpointError(
        f"Expected shape {tuple(own.shape)} for {name!r}, which is used before the last tap, got {tuple(value.shape)}."
    )


def widened(value: Tensor) -> Tensor:
    """Half precision as float32; wider floats and integers as they are."""
    return value.to(_wide(value)) if value.is_floating_point() else value


@contextmanager
def slots(module: nn.Module, get: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Parameters and buffers of the module are `get(name, its own)`, while lists of them show the module's own.

    `get` must raise for missing ones: with weights on meta a linear layer computes garbage without an error.
    """
    kinds = ("_parameters", "_buffers")
    own = [(part, path, kind, part.__dict__[kind]) for path, part in module.named_modules() for kind in kinds]
    try:
        for part, path, kind, tensors in own:
            part.__dict__[kind] = _Slots(tensors, path, get)
        yield
    finally:
        for part, _, kind, tensors in own:
            part.__dict__[kind] = tensors


class _Slots(dict):
    def __init__(self, own: Mapping[str, Tensor | None], path: str, get: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(own)
        self.path, self.get_tensor = path, get

    def __getitem__(self, name: str) -> Tensor | None:
        own = super().__getitem__(name)
        return own if own is None else self.get_tensor(f"{self.path}.{name}".lstrip("."), own)


class _Reached(BaseException):
    """The last tap is reached. Not an Exception, so that no model's own `except` swallows it."""


def path_of(module: nn.Module, tap: str) -> str:
    """The module that a tap stands at: the path itself, or what stands before `INPUT`."""
    known = {path for path, _ in module.named_modules()}
    return tap.removesuffix(INPUT) if tap not in known and tap.removesuffix(INPUT) in known else tap


def _tapped(module: nn.Module, tap: str) -> nn.Module:
    try:
        return module.get_submodule(tap)
    except AttributeError:
        near = [path for path, _ in module.named_modules() if path and path.count(".") <= tap.count(".")][:8]
        raise ArgumentError(f"Expected a module's path as tap, such as {', '.join(near)}; got {tap!r}.") from None


def tensor_of(tap: str, output: Any) -> Tensor:
    """The first floating tensor of what a module returned."""
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    elif is_dataclass(output):
        parts = [getattr(output, field.name) for field in fields(output)]
    else:
        parts = [output]
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    raise ArgumentError(f"Expected a tap that returns a floating tensor, got {type(output).__name__} at {tap!r}.")


def _has_probes(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _running(module: nn.Module, error: BaseException) -> str:
    """The path of the innermost module whose method was running when the error was raised."""
    paths = {id(part): path for path, part in module.named_modules()}
    path, trace = "", error.__traceback__
    while trace:
        path = paths.get(id(trace.tb_frame.f_locals.get("self")), path)
        trace = trace.tb_next
    return path
