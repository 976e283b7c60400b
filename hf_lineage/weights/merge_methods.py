"""What each method of merging does to one tensor, so that a merge can be made again bit for bit.

The methods are those that mergekit 0.1.5 registers, written anew from their papers and from what it computes. The order
of operations is kept, since the last bits depend on it. Inputs are in the dtype of the arithmetic, and so is the
result. See docs/methods.md, *Merges made again*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Settings = Mapping[
    str, Any
]  # by mergekit's names; `weight`, `density`, `gamma`, `epsilon`, `masks`: one for each model
Models = Sequence[Tensor]

ALIGNED = 0.9995  # |cosine| from which SLERP is a straight line
CHUNK = 1 << 20  # elements whose squares SLERP adds up at once
SMALL = 1e-8  # what mergekit takes for zero in angles and sums of weights
IN_TURN = 4  # addends that torch adds one after the other
ROUNDS, CLOSE = 10, 1e-5  # of Karcher's mean: iterations, and the angle at which it has arrived


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A method: how it makes a tensor, and what it needs.

    base: whether it has a base, None where it may. at_random: entries are dropped at random, so that the masks must be
    given (`masks`). defaults: settings that the author need not write.
    """

    make: Callable[[Tensor | None, Models, Settings], Tensor]
    base: bool | None
    reference: str
    defaults: Settings
    at_random: bool = False

    def __call__(self, base: Tensor | None, models: Models, settings: Settings) -> Tensor:
        """The merged tensor, in the dtype of the models."""
        return self.make(base, models, {**self.defaults, **settings})


def widest(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 of float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- averages and arcs


def _linear(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """Σ wₖ pₖ, divided by Σ wₖ if `normalize`. `rounding`: of the `sum` alone, or of each `product`, as mergekit did
    before 0.1.5."""
    first, normalize = models[0], settings["normalize"]
    if settings["rounding"] == "product":
        weights = torch.tensor(settings["weight"], dtype=first.dtype).view(-1, *(1 for _ in first.shape))
        total = sum_of_products(models, weights)
        return total / weights.sum(0) if normalize else total
    wide = widest(first.dtype)
    weights = torch.tensor(settings["weight"], dtype=wide)
    total = torch.zeros_like(first, dtype=wide)
    for model, weight in zip(models, weights, strict=True):
        total.addcmul_(model.to(wide), weight)
    return (total.div_(weights.sum()) if normalize else total).to(first.dtype)


def sum_of_products(models: Models, weights: Tensor) -> Tensor:
    """`(stack(models) · weights).sum(0)`, to the bit; weights: (K, 1, …, 1).

    Of up to four, torch adds one after the other; in float32 and float64 that needs no sum in a wider type, so it is
    done without the stack, in a seventh of its time.
    """
    first = models[0]
    if len(models) > IN_TURN or first.dtype != widest(first.dtype):
        return (torch.stack([*models]) * weights).sum(0)
    total, product = torch.zeros_like(first), torch.empty_like(first)
    for model, weight in zip(models, weights.flatten(), strict=True):
        total += torch.mul(model, weight, out=product)
    return total


def _slerp(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """sin((1−t)Ω)/sin Ω · base + sin(tΩ)/sin Ω · p in float32 at least, Ω the angle between the two as vectors."""
    assert base is not None
    wide = widest(base.dtype)
    a, b = (model.reshape(1, -1).to(wide) for model in (base, models[0]))
    t = torch.tensor([[settings["t"]]], dtype=wide)
    lengths = []
    for x in (a, b):
        parts = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in x.split(CHUNK, 1)]
        length = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        lengths.append(torch.where(length > SMALL, length, 1))
    products = [
        (x / lengths[0] * (y / lengths[1])).sum(1, True)
        for x, y in zip(a.split(CHUNK, 1), b.split(CHUNK, 1), strict=True)
    ]
    cosine = torch.stack(products).sum(0).clamp(-1, 1)
    if bool(cosine.abs() > ALIGNED):
        return ((1 - t) * a + t * b).to(base.dtype).reshape(base.shape)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    of_a, of_b = torch.sin((1 - t) * angle) / sine, torch.sin(t * angle) / sine
    return (of_a * a + of_b * b).to(base.dtype).reshape(base.shape)


def _nuslerp(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """SLERP of the models, or of their changes from a base, with t = w₂/(w₁ + w₂): of the whole tensor, or by rows."""
    first, second = models if base is None else (model - base for model in models)
    a, b = settings["weight"]
    t = b / (a + b) if abs(a + b) >= 1e-6 else 0.5
    flatten, by_column = settings["nuslerp_flatten"], settings["nuslerp_row_wise"]
    if flatten:
        x, y = first.reshape(-1), second.reshape(-1)
    else:
        x, y = (each.transpose(0, -1) if by_column else each for each in (first, second))
    ux, uy = (each / torch.norm(each, dim=-1, keepdim=True).clamp(min=1e-7) for each in (x, y))
    cosine = torch.sum(ux * uy, dim=-1, keepdim=True).clamp(-1, 1)
    straight = (1 - cosine.square()) <= SMALL**2
    angle = torch.acos(torch.where(straight, 0, cosine))
    arc = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    found = torch.where(straight, (1 - t) * x + t * y, arc)
    found = found.transpose(0, -1) if by_column and not flatten else found
    return found.reshape(first.shape) if base is None else base + found.reshape(first.shape)


def _multislerp(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """The weighted mean on the sphere, of the models or of their changes: in the plane that touches it at their
    straight mean, and back; as long as the weighted mean of their lengths."""
    if len(models) == 1:
        return models[0]
    stacked = torch.stack([*models]) if base is None else torch.stack([*models]) - base
    flat = stacked.view(len(models), -1)
    weights = torch.tensor(settings["weight"], dtype=flat.dtype)
    weights = weights / weights.sum() if settings["normalize_weights"] else weights
    lengths = torch.norm(flat, dim=-1, keepdim=True)
    units = flat / (lengths + settings["eps"])
    middle = (units * weights.view(-1, 1)).sum(0)
    length = torch.norm(middle)
    middle = middle / length
    along = (units * middle).sum(-1, keepdim=True)
    across = ((units - along * middle) * weights.view(-1, 1)).sum(0)
    angle = torch.norm(across) + settings["eps"]
    found = middle * torch.cos(angle) + across * (torch.sin(angle) / angle)
    found = (found * (lengths.squeeze(-1) * weights).sum()).view(stacked.shape[1:])
    return found if base is None else found + base


def _karcher(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """Karcher's mean of the directions of all models, base included, as long as the mean of their lengths."""
    models = models if base is None else [base, *models]
    wide, share = widest(models[0].dtype), 1.0 / len(models)
    lengths = [torch.linalg.vector_norm(model.to(wide)) for model in models]
    units = [
        (model / length).to(model.dtype) for model, length in zip(models, lengths, strict=True) if float(length) > CLOSE
    ]
    if not units:
        return models[0] * 0
    share_of_unit = share / sum(share for _ in units)
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean += share_of_unit * unit
    length = torch.linalg.vector_norm(mean.to(wide))
    mean = units[0].clone() if float(length) < CLOSE else (mean / length).to(mean.dtype)
    for _ in range(settings["max_iter"]):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = torch.clamp(torch.dot(mean.flatten(), unit.flatten()), -1.0, 1.0)
            angle = torch.arccos(cosine)
            if float(angle) >= settings["tol"]:
                step += share_of_unit * (angle / torch.sin(angle)) * (unit - cosine * mean)
        size = torch.linalg.vector_norm(step.to(wide))
        if float(size) < settings["tol"]:
            break
        mean = (torch.cos(size) * mean + torch.sin(size) * (step / size)).to(mean.dtype)
        length = torch.linalg.vector_norm(mean.to(wide))
        mean = (mean / length).to(mean.dtype) if float(length) > settings["tol"] else mean
    return sum(share * length for length in lengths) * mean


def _model_stock(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """t · mean + (1 − t) · base with t = K cos θ/(1 + (K − 1) cos θ), θ the mean angle between two changes: of the
    whole tensor, or of each row (`filter_wise`)."""
    assert base is not None
    by_row = settings["filter_wise"]
    shaped = (
        [model.reshape(1, -1) if model.dim() == 1 else model for model in (base, *models)]
        if by_row
        else [model.reshape(-1) for model in (base, *models)]
    )
    start, ends = shaped[0], shaped[1:]
    changes = [end - start for end in ends]
    cosines = []
    for i, x in enumerate(changes):
        for y in changes[i + 1 :]:
            lengths = torch.norm(x, dim=-1) * torch.norm(y, dim=-1)
            cosines.append(((x * y).sum(-1) / lengths.clamp(min=1e-6)).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(0).unsqueeze(-1)
    count = len(ends)
    below = 1 + (count - 1) * cosine
    singular = below.abs() < 1e-6
    t = torch.where(
        singular, torch.zeros_like(cosine), (count * cosine) / torch.where(singular, torch.ones_like(below), below)
    )
    return (t * (sum(ends) / count) + (1 - t) * start).reshape(base.shape)


# ---- changes of a base, masked


def _added(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """base + λ Σ wₖ mₖ δₖ: of changes δₖ = pₖ − base, masked by `keep`, rescaled to their l1 norm if `rescale`, of the
    elected sign alone if `elect`, divided by the weights that took part if `normalize`."""
    assert base is not None
    changes = base.new_empty((len(models), *base.shape))
    for k, model in enumerate(models):
        change = model - base
        mask = None if settings["keep"] is None else _mask(change, k, settings)
        if mask is not None:
            wide = change if mask.dtype == change.dtype else change.to(mask.dtype)
            change = _masked(wide, mask, settings["rescale"]).to(change.dtype)
        changes[k] = change
    weights = torch.tensor(settings["weight"], dtype=changes.dtype).view(-1, *(1 for _ in base.shape))
    return _summed(base, changes.mul_(weights), weights, settings)


def _summed(base: Tensor, changes: Tensor, weights: Tensor, settings: Settings) -> Tensor:
    """base + λ Σ of weighted changes, after the election of signs and the division by weights."""
    if settings["elect"]:
        mask = elected(changes, torch.int8 if settings["int8_mask"] else base.dtype)
        total, voted = (changes * mask).sum(0), (weights * mask).sum(0)
        voted[voted == 0] = 1
    else:
        total, voted = changes.sum(0), weights.sum(0)
        voted[voted.abs() < SMALL] = 1
    if settings["normalize"]:
        total /= voted
    if settings["lambda"] != 1:
        total *= settings["lambda"]
    return base + total


def elected(changes: Tensor, dtype: torch.dtype) -> Tensor:
    """Where each change has the sign of the sum of all, (models, …) bool; a sum of 0 counts as positive."""
    majority = (changes.sum(0) >= 0).to(dtype) * 2 - 1
    return changes.sign().to(dtype) == majority


def _mask(change: Tensor, k: int, settings: Settings) -> Tensor | None:
    """Which entries of a change are kept; None where all are. Random masks are given."""
    if settings["density"][k] >= 1:
        return None
    if "masks" in settings:
        work = change.dtype if change.dtype == torch.bfloat16 else torch.float32
        return settings["masks"][k].to(work)
    return KEEP[settings["keep"]](change, settings["density"][k], settings, k)


def _largest(change: Tensor, density: float, settings: Settings, k: int) -> Tensor:
    """1 at the share `density` of the largest |δ|, at least one."""
    mask = torch.zeros(change.numel(), dtype=change.dtype)
    if density > 0 and change.numel():
        order = torch.argsort(change.abs().reshape(-1).float(), descending=True)
        mask[order[: max(1, int(density * change.numel()))]] = 1
    return mask.reshape_as(change)


def _middle(change: Tensor, density: float, settings: Settings, k: int) -> Tensor:
    """1 at the share `density` below the share `gamma` of the largest |δ|, or below as much of it as there is room."""
    count = change.numel()
    kept, top = int(density * count), int(settings["gamma"][k] * count)
    low = max(0, count - kept - top)
    mask = torch.zeros(count, dtype=change.dtype)
    mask[torch.sort(change.abs().reshape(-1).float()).indices[low : low + kept]] = 1
    return mask.reshape_as(change)


KEEP = {"largest": _largest, "middle": _middle}


def _masked(change: Tensor, mask: Tensor, rescale: bool) -> Tensor:
    masked = change * mask
    if not rescale:
        return masked
    before, after = change.abs().sum(), masked.abs().sum()
    return masked if before < 1e-7 or after < 1e-7 else masked * (before / after)


def _sce(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """base + the mean of the changes weighted by their mean squares, of the elected sign, at the share `select_topk`
    of the entries where they vary most."""
    assert base is not None
    changes = torch.stack([model - base for model in models])
    if settings["select_topk"] < 1:
        changes = changes * _varying(changes, settings["select_topk"]).unsqueeze(0)
    mask = elected(changes, base.dtype)
    energy = changes.square().reshape(len(models), -1).mean(1)
    total = float(torch.sum(energy))
    weights = torch.ones_like(energy) / len(energy) if abs(total) < 1e-6 else energy / total
    voted = weights.view(-1, *(1 for _ in base.shape)) * mask
    return base + (changes * voted).sum(0) / voted.sum(0).clamp(min=1e-6)


def _varying(changes: Tensor, share: float) -> Tensor:
    variance = torch.var(changes, dim=0, unbiased=False)
    mask = torch.zeros_like(variance)
    if (count := int(torch.count_nonzero(variance) * share)) > 0:
        mask.view(-1)[torch.topk(variance.abs().view(-1), k=count).indices] = 1
    return mask


def _ram(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """base + the changes: where several exceed `epsilon` their mean, where one does that one, times
    1 + r · min(ρₖ, alpha) for RAM+, ρₖ the number of shared over that of single entries of change k."""
    assert base is not None
    changes = torch.stack([model - base for model in models]).view(len(models), -1)
    moved = changes.abs() > settings["epsilon"]
    counts = moved.sum(0, keepdim=True)
    shared, single = counts > 1, counts == 1
    kept = changes * moved
    alone = kept * single
    if "r" in settings:
        ratio = (moved & shared).sum(1) / (moved & single).sum(1).clamp(min=settings["epsilon"])
        alone = alone * (1 + settings["r"] * ratio.clamp(min=0, max=settings["alpha"])).unsqueeze(-1)
    return base + (alone + kept * shared / counts.clamp(min=1)).sum(0, keepdim=True).reshape_as(base)


def _nearswap(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """w · p + (1 − w) · base with w = t/|p − base|, at most 1: nobody moves by more than t."""
    assert base is not None
    weight = (settings["t"] / (base - models[0]).abs().clamp(min=1e-6)).clamp(min=0, max=1)
    return weight * models[0] + (1 - weight) * base


def _arcee_fusion(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    """The model where |δ| times its row's divergence from the base (of softmaxes) is above median + 1.5 times the
    quartiles' distance, the base elsewhere. Above a million entries mergekit draws the quartiles at random."""
    assert base is not None
    change = (models[0] - base).abs()
    p, q = (torch.softmax(each, dim=-1) + SMALL for each in (models[0], base))
    importance = change * torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)
    ordered = torch.sort(importance.reshape(-1)).values
    low, median, high = ordered[(torch.tensor([0.25, 0.5, 0.75]) * (ordered.numel() - 1)).long()]
    return base + (models[0] - base) * (importance >= median + 1.5 * (high - low)).float()


def _passthrough(base: Tensor | None, models: Models, settings: Settings) -> Tensor:
    return models[0] if settings["scale"] is None else models[0] * settings["scale"]


_SUM = {
    "keep": None,
    "rescale": False,
    "elect": False,
    "normalize": False,
    "lambda": 1.0,
    "int8_mask": False,
    "density": (1.0,) * 64,
}
_ADDED = MergeMethod(_added, True, "https://arxiv.org/abs/2212.04089", _SUM)


def _like(reference: str, at_random: bool = False, **defaults: Any) -> MergeMethod:
    return replace(_ADDED, reference=reference, defaults={**_SUM, **defaults}, at_random=at_random)


METHODS: dict[str, MergeMethod] = {
    "linear": MergeMethod(_linear, False, "https://arxiv.org/abs/2203.05482", {"normalize": True, "rounding": "sum"}),
    "slerp": MergeMethod(_slerp, True, "https://dl.acm.org/doi/10.1145/325165.325242", {}),
    "nuslerp": MergeMethod(
        _nuslerp, None, "https://github.com/arcee-ai/mergekit", {"nuslerp_flatten": True, "nuslerp_row_wise": False}
    ),
    "multislerp": MergeMethod(
        _multislerp, None, "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        {"normalize_weights": True, "eps": SMALL},
    ),
    "karcher": MergeMethod(_karcher, None, "https://arxiv.org/abs/2603.04972", {"max_iter": ROUNDS, "tol": CLOSE}),
    "model_stock": MergeMethod(_model_stock, True, "https://arxiv.org/abs/2403.19522", {"filter_wise": False}),
    "task_arithmetic": _ADDED,
    "ties": _like("https://arxiv.org/abs/2306.01708", keep="largest", elect=True, normalize=True),
    "dare_linear": _like("https://arxiv.org/abs/2311.03099", True, keep="given", rescale=True),
    "dare_ties": _like("https://arxiv.org/abs/2311.03099", True, keep="given", rescale=True, elect=True),
    "della": _like("https://arxiv.org/abs/2406.11617", True, keep="given", rescale=True, elect=True, normalize=True),
    "della_linear": _like("https://arxiv.org/abs/2406.11617", True, keep="given", rescale=True),
    "breadcrumbs": _like("https://arxiv.org/abs/2312.06795", keep="middle", gamma=(0.01,) * 64),
    "breadcrumbs_ties": _like("https://arxiv.org/abs/2312.06795", keep="middle", elect=True, gamma=(0.01,) * 64),
    "sce": MergeMethod(_sce, True, "https://arxiv.org/abs/2408.07990", {"select_topk": 1.0}),
    "ram": MergeMethod(_ram, True, "https://arxiv.org/abs/2601.13572", {"epsilon": 1e-5}),
    "ramplus_tl": MergeMethod(
        _ram, True, "https://arxiv.org/abs/2601.13572", {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}
    ),
    "nearswap": MergeMethod(_nearswap, True, "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001", {}),
    "arcee_fusion": MergeMethod(_arcee_fusion, True, "https://arcee.ai", {}),
    "passthrough": MergeMethod(_passthrough, False, "https://github.com/arcee-ai/mergekit", {"scale": None}),
}  # fmt: skip


def remade(
    method: str, base: Tensor | None, models: Models, settings: Settings, dtype: torch.dtype, out: torch.dtype
) -> Tensor:
    """The tensor that `method` makes in arithmetic of `dtype`, stored as `out`; what is no float is copied."""
    first = models[0]
    if not first.is_floating_point():
        return first
    start = None if base is None else base.to(dtype)
    return METHODS[method](start, [model.to(dtype) for model in models], settings).to(out)
