"""Models made of several others, so that it is known layer by layer what came from where.

    linear, slerp                  between networks of any origin
    task_arithmetic, ties, dare    on what fine-tuning changed in the children of one base
    passthrough, hybrid            blocks taken whole

All take and return state dicts: computed in float64, returned in the first one's dtype. What is no float, or what one
of the models lacks or has in another shape (heads), is taken from the first. p_k are a tensor of the models, δ_k their
changes p_k − base. `tuned` trains the result on, `write` makes a repo of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError
from .families import HEADS, Member, optimise, save, sizes_of, task_of
from .networks import build
from .recipes import CHILD_TASKS, ROOT_RECIPES

Tensors = dict[str, Tensor]

ALIGNED = 0.9995  # two tensors of a larger |cosine| are interpolated linearly: sin Ω is too small to divide by
BLOCKS = {"vit": ("blocks.", "depth"), "llama": ("model.layers.", "num_hidden_layers")}  # prefix, and who counts them


def linear(models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Σ w_k p_k; the weights are taken as they are (model soups, Wortsman et al. 2022, arXiv:2203.05482)."""
    return _each(models, lambda entries: _sum(entries, weights))


def slerp(first: Tensors, second: Tensors, t: float) -> Tensors:
    """p sin((1−t)Ω)/sin Ω + q sin(tΩ)/sin Ω per tensor, Ω the angle between p and q as vectors (Shoemake 1985)."""

    def between(entries: list[Tensor]) -> Tensor:
        cosine = F.cosine_similarity(entries[0].flatten(), entries[1].flatten(), dim=0).item()
        if abs(cosine) > ALIGNED:
            return _sum(entries, (1 - t, t))
        angle = math.acos(cosine)
        return _sum(entries, (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)))

    return _each([first, second], between)


def task_arithmetic(base: Tensors, models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """base + Σ w_k δ_k (Ilharco et al. 2023, arXiv:2212.04089)."""
    return _on(base, models, lambda changes: _sum(changes, weights))


def ties(
    base: Tensors, models: Sequence[Tensors], weights: Sequence[float], density: float, scale: float = 1.0
) -> Tensors:
    """base + scale · the weighted mean of those δ_k that have the sign of Σ w_k δ_k.

    Before that each δ_k keeps only the `density` of largest |δ| of each tensor; dropped entries do not vote
    (Yadav et al. 2023, arXiv:2306.01708).
    """

    def elected(changes: list[Tensor]) -> Tensor:
        kept = [_largest(change, density) for change in changes]
        sign = _sum(kept, weights).sign()
        agreeing = [(change * sign > 0).double() for change in kept]
        total = _sum(agreeing, weights)
        changed = _sum([change * voice for change, voice in zip(kept, agreeing, strict=True)], weights)
        return scale * changed / total.where(total != 0, 1.0)

    return _on(base, models, elected)


def dare(base: Tensors, models: Sequence[Tensors], weights: Sequence[float], density: float, seed: int) -> Tensors:
    """base + Σ w_k δ_k', of δ_k' each entry δ_k / density with probability `density` and else 0.

    Each change is thinned by itself, with the seed's numbers in the order of the tensors (Yu et al. 2024,
    arXiv:2311.03099).
    """
    generator = torch.Generator().manual_seed(seed)

    def thinned(change: Tensor) -> Tensor:
        return change * (torch.rand(change.shape, generator=generator) < density) / density

    return _on(base, models, lambda changes: _sum([thinned(change) for change in changes], weights))


def passthrough(
    models: Sequence[Tensors], order: Sequence[tuple[int, int]], prefix: str = BLOCKS["llama"][0]
) -> Tensors:
    """Block n is block j of model m for order[n] = (m, j); tensors outside the blocks are the first model's."""
    child = {name: tensor for name, tensor in models[0].items() if not name.startswith(prefix)}
    for new, (model, block) in enumerate(order):
        path = f"{prefix}{block}."
        found = {name.removeprefix(path): value for name, value in models[model].items() if name.startswith(path)}
        if not found:
            raise ArgumentError(f"Expected a block of model {model} in `order`, found nothing at {path!r}.")
        child |= {f"{prefix}{new}.{rest}": value for rest, value in found.items()}
    return child


def hybrid(models: Sequence[Tensors], choice: Mapping[int, int], prefix: str = BLOCKS["vit"][0]) -> Tensors:
    """Block i is block i of models[choice[i]], of the first model for blocks without a choice."""
    return passthrough(models, [(choice.get(block, 0), block) for block in range(_depth(models[0], prefix))], prefix)


def _each(models: Sequence[Tensors], merged: Callable[[list[Tensor]], Tensor]) -> Tensors:
    """`merged` of each float tensor that all models have in one shape; the others are the first model's."""
    child = {}
    for name, first in models[0].items():
        entries = [model[name] for model in models if name in model and model[name].shape == first.shape]
        whole = len(entries) == len(models) and first.is_floating_point()
        child[name] = merged([entry.double() for entry in entries]).to(first.dtype) if whole else first
    return child


def _on(base: Tensors, models: Sequence[Tensors], merged: Callable[[list[Tensor]], Tensor]) -> Tensors:
    """base + `merged` of the models' changes."""
    return _each([base, *models], lambda entries: entries[0] + merged([entry - entries[0] for entry in entries[1:]]))


def _sum(entries: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_k x_k"""
    terms = [weight * entry for weight, entry in zip(weights, entries, strict=True)]
    return torch.stack(terms).sum(0)


def _largest(change: Tensor, density: float) -> Tensor:
    """The ⌊density · n⌋ entries of largest size, at least one, and 0 elsewhere."""
    flat = change.flatten()
    kept = flat.abs().topk(max(1, int(density * len(flat)))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).reshape(change.shape)


def _depth(tensors: Tensors, prefix: str) -> int:
    """How many blocks there are."""
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in tensors)
    return len({match[1] for match in found if match})


# ---- trained on, and written down


def epochs(like: Member, count: float) -> int:
    """Steps of so many epochs for `tuned`: 30 are 1,920 on images (4,096 in batches of 64), 7,680 on causal text."""
    return round(count * len(task_of(like).train_x) / _batch(like))


def tuned(
    tensors: Tensors, like: Member, *, lr: float, seed: int, steps: int, head_lr: float = 1e-2,
    task: str | None = None, freeze: Callable[[str], bool] | None = None, fresh: tuple[str, ...] = (),
) -> Tensors:  # fmt: skip
    """A merge of networks like `like`, trained on a child task of the families (`task`, else one by the seed).

    Adam, warmed up to `lr` and down to zero again. A classifier gets a new head, trained at `head_lr`; also what
    starts with `fresh` is initialised anew. Parameters that `freeze` names stay; statistics of batch norms do not.
    """
    kind = like.architecture
    names = CHILD_TASKS[kind]
    plan = dataclasses.replace(like, recipe={**like.recipe, "task": task or names[seed % len(names)]})
    data = task_of(plan)
    new = () if kind == "llama" else (HEADS[kind],)
    recipe: dict[str, Any] = {
        "optimizer": "adamw", "lr": lr, "head_lr": head_lr if new else lr, "weight_decay": 0.0, "clip": 1.0,
        "batch": _batch(like), "steps": steps,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(kind, data.classes, _sizes(tensors, like))
        anew = {name: value for name, value in model.state_dict().items() if name.startswith((*new, *fresh))}
        model.load_state_dict({**tensors, **anew})
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(freeze is None or not freeze(name))
        optimise(model, data, recipe, HEADS[kind])
    return {name: value.detach().contiguous() for name, value in model.state_dict().items()}


def write(tensors: Tensors, like: Member, folder: Path) -> Path:
    """A repo without a card in the place of `folder`, for networks like `like` of any depth and number of classes."""
    classes = len(tensors[f"{HEADS[like.architecture]}weight"])
    sizes = _sizes(tensors, like)
    model = build(like.architecture, classes, sizes)
    model.load_state_dict(tensors)
    save(model, dataclasses.replace(like, recipe={**like.recipe, "classes": classes}, path=folder), sizes)
    return folder


def _batch(like: Member) -> int:
    return ROOT_RECIPES[like.architecture][0]["batch"]


def _sizes(tensors: Tensors, like: Member) -> dict[str, Any]:
    """The sizes of `like` with as many blocks as there are."""
    sizes = sizes_of(like)
    if like.architecture in BLOCKS:
        prefix, counter = BLOCKS[like.architecture]
        sizes[counter] = _depth(tensors, prefix)
    return sizes
