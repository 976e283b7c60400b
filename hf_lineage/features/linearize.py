"""Features F of a parent and their derivative T = J_p Δ towards a child: forward mode, or its product with Π alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ..errors import ArgumentError, CheckpointError
from .forward import (
    EXCLUSIVE,
    Inputs,
    Parts,
    Weights,
    absent,
    batches,
    collect,
    flat,
    forward_mode,
    lookup,
    misshapen,
    probes,
    settled,
    slots,
    tensor_names,
    watch,
    widened,
    with_tangent,
)
from .forward import NoForwardDerivative as NoForwardDerivative

# Steps α that are tried, the largest first: from the largest to the smallest that the paper searches. Beyond 0.1 the
# derivative of a metric no longer holds where that of the features still does, and Taylor's form falls below none
GRID = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
MAX_RELATIVE_CURVATURE = 0.1  # error of the linearisation over ‖αT‖, below which a step is small


@dataclass(frozen=True, slots=True)
class Linearised:
    """The parent's features F and their derivative T along Δ at one tap, both (N, K), on the device of the weights."""

    F: Tensor
    T: Tensor

    def at(self, step: float) -> Tensor:
        """F̄ = F + αT."""
        return self.F + step * self.T


@dataclass(frozen=True, slots=True)
class Step:
    """A step α and the curvature there, `small` below `MAX_RELATIVE_CURVATURE`."""

    value: float
    curvature: float

    @property
    def small(self) -> bool:
        return self.curvature < MAX_RELATIVE_CURVATURE


def features(
    module: nn.Module, weights: Weights, inputs: Inputs, taps: Sequence[str], *, batch: int = 32
) -> dict[str, Tensor]:
    """F = f(X), (N, K), at each tap, at least float32; of a module that runs more than once, its first output.

    `weights` has the parameters and buffers up to the last tap (tied ones under any of their names); buffers may also
    be the module's own. The module may be on meta, runs in eval mode and is left as it was.
    CheckpointError: weights are missing or of another shape. Whether F is finite is the caller's: `check_finite`.
    """
    with torch.no_grad():
        found = _Loaded(module, weights).collect(inputs, taps, lambda output: (output,), batch)
    return {tap: only for tap, (only,) in found.items()}


def exact(
    module: nn.Module, weights: Weights, delta: Weights, inputs: Inputs, taps: Sequence[str], *, batch: int = 32
) -> dict[str, Linearised]:
    """F and T = J_p Δ at every tap from one forward-mode pass; no activations are kept but the taps'.

    `delta` has Δ for the parameters that both models have; for others, and for buffers, Δ = 0. Otherwise as
    `features`. NoForwardDerivative: an operator has none. docs/methods.md, *Learning-free
    features*, "Exact".
    """
    loaded = _Loaded(module, weights)
    with forward_mode(module):
        for name, tangent in loaded.along(delta).items():
            loaded.values[name] = forward_ad.make_dual(loaded.values[name], tangent)
        found = loaded.collect(inputs, taps, with_tangent, batch)
    return {tap: Linearised(*pair) for tap, pair in found.items()}


def taylor(
    module: nn.Module, weights: Weights, delta: Weights, inputs: Inputs, tap: str, pi: Tensor, *, batch: int = 32
) -> float:
    """⟨Π, T⟩ = ∇θ[Σ_i ⟨Π_i, f(x_i)⟩]·Δ, Π (N, K), by one backward pass per batch (Neural Lineage, Eq. 2).

    A batch's activations up to the tap and one gradient per parameter of `delta` are in memory. The same for every
    operator that torch can train; otherwise as `features`.
    """
    if pi.ndim != 2 or len(pi) != probes(inputs):
        raise ArgumentError(f"Expected Π of shape ({probes(inputs)}, K), got {tuple(pi.shape)}.")
    loaded = _Loaded(module, weights)
    tangents = loaded.along(delta)
    leaves = {name: loaded.values[name].detach().requires_grad_() for name in tangents}
    loaded.values |= leaves
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())  # cuDNN has no backward in eval mode
    total = 0.0
    with settled(module), torch.enable_grad(), torch.backends.cudnn.flags(enabled=not recurrent):
        for rows, output in loaded.outputs(inputs, tap, batch):
            if pi.shape[1:] != output.shape[1:]:
                raise ArgumentError(f"Expected Π of {output.shape[1]} features, got {pi.shape[1]}.")
            product = (pi[rows].to(output) * output).sum()
            if product.requires_grad:  # else there is no Δ before this tap
                gradients = torch.autograd.grad(product, list(leaves.values()), allow_unused=True)
                total += _inner(gradients, tangents.values())
    return total


def curvature(
    module: nn.Module,
    weights: Weights,
    delta: Weights,
    inputs: Inputs,
    taps: Sequence[str],
    linearised: Mapping[str, Linearised],
    step: float,
    *,
    batch: int = 32,
) -> dict[str, float]:
    """‖f(θ + αΔ) − F − αT‖ / ‖αT‖ per tap, ≥ 0: the relative error of the linearisation at step α; 0 for T = 0.

    A second set of weights is in memory. Rounding limits small steps: α‖T‖ should stay above 1e-5‖F‖.
    """
    loaded = _Loaded(module, weights)
    for name, tangent in loaded.along(delta).items():
        loaded.values[name] = loaded.values[name] + step * tangent
    with torch.no_grad():
        moved = loaded.collect(inputs, taps, lambda output: (output,), batch)
    return {tap: relative_curvature(there, linearised[tap], step) for tap, (there,) in moved.items()}


def relative_curvature(moved: Tensor, linearised: Linearised, step: float) -> float:
    """‖M − F − αT‖ / ‖αT‖ of the features M (N, K) at θ + αΔ, ≥ 0; 0 where M = F and T = 0."""
    error, length = _norm(moved - linearised.at(step)), abs(step) * _norm(linearised.T)
    return error / length if length else (float("inf") if error else 0.0)


def try_steps(curvature_at: Callable[[float], float], steps: Sequence[float] = GRID) -> tuple[Step, ...]:
    """The steps down to the first whose curvature is below `MAX_RELATIVE_CURVATURE` (of `GRID`, the largest), that one
    last.

    If there is none, all of them, the last one not `small`. curvature_at(α): see `curvature`, called once for each;
    a value that is not finite is not small.
    """
    tried = []
    for step in steps:
        tried.append(Step(step, curvature_at(step)))
        if tried[-1].small:
            break
    return tuple(tried)


def check_finite(found: Mapping[str, Tensor | Linearised], which: str) -> None:
    """Raise CheckpointError, naming the model `which` and the tap, where F or T is not finite everywhere."""
    for tap, value in found.items():
        for tensor in (value.F, value.T) if isinstance(value, Linearised) else (value,):
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"Expected finite features, got NaN or Inf from {which} at {tap!r}: its weights are broken, or its "
                    "numbers overflow; try an earlier tap or other probes."
                )


class _Loaded:
    """A module and a tensor for each of its tensor_names; `missing` has the error for using one that has none.

    One name per place, and nothing tied by `functional_call` itself: where a module stands under two paths, that would
    leave the module altered.
    """

    def __init__(self, module: nn.Module, weights: Weights) -> None:
        self.module = module
        self.missing: dict[str, CheckpointError] = {}
        given, own = dict[str, Tensor](), dict[str, Tensor]()
        with EXCLUSIVE:  # another thread may run the same module
            self.parameters = tensor_names(module, "parameters")
            for name, names in (self.parameters | tensor_names(module, "buffers")).items():
                path, _, attribute = name.rpartition(".")
                here, value = getattr(module.get_submodule(path), attribute), lookup(weights, names)
                if value is not None and value.shape == here.shape:
                    given[name] = widened(value)
                elif value is not None:
                    self.missing[name] = misshapen(name, here, value)
                elif name in self.parameters or here.is_meta:
                    self.missing[name] = absent(name)
                else:
                    own[name] = here
        self.device = next((value.device for value in given.values()), torch.device("cpu"))
        self.values = {name: value.to(self.device) for name, value in (own | given).items()}

    def along(self, delta: Weights) -> dict[str, Tensor]:
        """Δ by attribute, on the values' device and of their dtype, for parameters that have a value."""
        result = {}
        for name, names in self.parameters.items():
            tangent = None if name in self.missing else lookup(delta, names)
            if tangent is None:
                continue
            value = self.values[name]
            if tangent.shape != value.shape:
                raise ArgumentError(
                    f"Expected Δ of shape {tuple(value.shape)} for {name!r}, got {tuple(tangent.shape)}."
                )
            result[name] = tangent.to(value)
        if len(delta) and not result:
            raise ArgumentError(f"Expected Δ by the module's parameter names, got {', '.join(sorted(delta)[:3])}, …")
        return result

    def call(self, args: tuple, kwargs: dict) -> object:
        with slots(self.module, self._own):
            return functional_call(self.module, self.values, args, kwargs, tie_weights=False)

    def collect(self, inputs: Inputs, taps: Sequence[str], parts: Parts, batch: int) -> dict[str, tuple[Tensor, ...]]:
        """`forward.collect` with these weights."""
        with settled(self.module):
            return collect(self.module, self.call, inputs, taps, parts, batch=batch, device=self.device)

    def outputs(self, inputs: Inputs, tap: str, batch: int) -> Iterator[tuple[slice, Tensor]]:
        """(rows, output (n, K) with its graph) for each batch."""
        for rows, arguments in batches(self.module, inputs, batch, self.device):
            seen: dict[str, Tensor] = {}
            watch(self.module, [tap], seen.__setitem__, partial(self.call, *arguments))
            yield rows, flat(seen[tap], rows.stop - rows.start)

    def _own(self, name: str, own: Tensor) -> Tensor:
        if name in self.missing:
            raise self.missing[name]
        return own


def _inner(gradients: Iterable[Tensor | None], tangents: Iterable[Tensor]) -> float:
    pairs = zip(gradients, tangents, strict=True)
    return sum(float((gradient * tangent).sum()) for gradient, tangent in pairs if gradient is not None)


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64))
