"""Changes of a model other than fine-tuning, on a state dict of the families or by another kind of training.

`CHANGES` names every one of them, with the relation that `trace` should find; `changed_tensors(member, name, seed)`
gives the child's state dict, or None where a change does not apply to the architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .families import HEADS, Member, optimise, sizes_of, task_of
from .networks import VOCAB, build

Tensors = dict[str, Tensor]


def _matrices(change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[Member, Tensors, int], Tensors]:
    def apply(member: Member, tensors: Tensors, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        return {name: change(value, generator) if value.ndim > 1 else value for name, value in tensors.items()}

    return apply


def _rounded(bits: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Rounded to nearest in steps of each row's largest value over 2^(bits − 1) − 1."""

    def change(value: Tensor, _: torch.Generator) -> Tensor:
        rows = value.flatten(1)
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
        return (step * torch.round(rows / step)).reshape(value.shape)

    return change


def _pruned(share: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Without the smallest of each tensor."""

    def change(value: Tensor, _: torch.Generator) -> Tensor:
        edge = value.abs().flatten().kthvalue(max(1, int(share * value.numel()))).values
        return torch.where(value.abs() > edge, value, 0.0)

    return change


def _noise(value: Tensor, generator: torch.Generator) -> Tensor:
    return value + value.std() * torch.randn(value.shape, generator=generator)


def _cast(dtype: torch.dtype) -> Callable[[Member, Tensors, int], Tensors]:
    def apply(member: Member, tensors: Tensors, seed: int) -> Tensors:
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}

    return apply


def _more_tokens(member: Member, tensors: Tensors, seed: int) -> Tensors | None:
    """Sixteen new tokens, at the mean of the others and some noise."""
    if member.architecture not in VOCAB:
        return None
    generator = torch.Generator().manual_seed(seed)
    grown = dict(tensors)
    for name, value in tensors.items():
        if value.ndim > 1 and len(value) == VOCAB[member.architecture]:
            fresh = value.mean(0) + 0.02 * torch.randn(16, *value.shape[1:], generator=generator)
            grown[name] = torch.cat([value, fresh])
    return grown


def _new_head(member: Member, tensors: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    head = HEADS[member.architecture]
    return {
        n: 0.05 * torch.randn(v.shape, generator=generator) if n.startswith(head) else v for n, v in tensors.items()
    }


def _same(member: Member, tensors: Tensors, seed: int) -> Tensors:
    return dict(tensors)


class LowRank(nn.Module):
    """W + B·A with A (rank, in) random and B (out, rank) zero at first: a LoRA adapter."""

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, shape[1]) / shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def _adapter(rank: int) -> Callable[[Member, Tensors, int], Tensors | None]:
    """A LoRA adapter trained on every hidden matrix of at least twice its rank, and merged."""

    def apply(member: Member, tensors: Tensors, seed: int) -> Tensors | None:
        def fits(name: str, module: nn.Module) -> bool:
            wide = isinstance(module, nn.Linear) and min(module.weight.shape) >= 2 * rank
            return wide and not f"{name}.".startswith(HEADS[member.architecture])

        def prepare(model: nn.Module, head: str) -> None:
            for name, module in list(model.named_modules()):
                if fits(name, module):
                    parametrize.register_parametrization(module, "weight", LowRank(module.weight.shape, rank))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith((".a", ".b")))

        plain = build(member.architecture, member.recipe["classes"], sizes_of(member))
        if not any(fits(*named) for named in plain.named_modules()):
            return None
        return _tuned(member, tensors, seed, prepare, {"lr": 1e-2})

    return apply


def _partly(kept: Callable[[str, list[str]], bool]) -> Callable[[Member, Tensors, int], Tensors]:
    """Trained further with the tensors that `kept` names frozen."""

    def apply(member: Member, tensors: Tensors, seed: int) -> Tensors:
        def prepare(model: nn.Module, head: str) -> None:
            trunk = [name for name, _ in model.named_parameters() if not name.startswith(head)]
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(head) or not kept(name, trunk))

        return _tuned(member, tensors, seed, prepare, {"lr": 3e-3, "head_lr": 1e-2})

    return apply


def _tuned(
    member: Member, tensors: Tensors, seed: int, prepare: Callable[[nn.Module, str], None], other: dict[str, Any]
) -> Tensors:
    """The member trained on its own task for 80 steps more."""
    head = HEADS[member.architecture]
    model = build(member.architecture, member.recipe["classes"], sizes_of(member))
    model.load_state_dict(tensors)
    recipe = {"optimizer": "adam", "weight_decay": 0.0, "clip": 1.0, "batch": 32, "steps": 80, "head_lr": 0.0, **other}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prepare(model, head)
        optimise(model, task_of(member), recipe, head)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return {name: value.detach().contiguous() for name, value in model.state_dict().items()}


CHANGES: dict[str, tuple[str, Callable[[Member, Tensors, int], Tensors | None]]] = {
    "int8": ("quantized", _matrices(_rounded(8))),
    "int4": ("quantized", _matrices(_rounded(4))),
    "fp16": ("cast", _cast(torch.float16)),
    "bf16": ("cast", _cast(torch.bfloat16)),
    "fp8": ("quantized", _cast(torch.float8_e4m3fn)),
    "pruned 50 %": ("pruned", _matrices(_pruned(0.5))),
    "pruned 90 %": ("pruned", _matrices(_pruned(0.9))),
    "noise of 1 sd": ("finetune", _matrices(_noise)),
    "LoRA 4, merged": ("adapter", _adapter(4)),
    "LoRA 16, merged": ("adapter", _adapter(16)),
    "LoRA 64, merged": ("adapter", _adapter(64)),
    "16 more tokens": ("resized", _more_tokens),
    "another head": ("head_changed", _new_head),
    "only the head tuned": ("head_changed", _partly(lambda name, trunk: True)),
    "first half frozen": ("partial", _partly(lambda name, trunk: trunk.index(name) < len(trunk) // 2)),
    "other shards": ("identical", _same),
}


def changed_tensors(member: Member, change: str, seed: int) -> Tensors | None:
    """The child that a change makes of a member, None where it does not apply."""
    return CHANGES[change][1](member, load_file(member.path / "model.safetensors"), seed)
