"""Disguises: the same function from other weights, since hidden units have no order and often no scale.

`DISGUISES` names every one of them. Each takes and returns a state dict of the families, with as many heads as `SIZES`
says; tensors that a disguise does not change are shared, not copied. docs/methods.md, *Hidden permutations*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from .families import SIZES

FACTORS = (0.25, 4.0)  # the range of a rescaled unit's factor, log-uniform
_BLOCKS = {
    "fc": re.compile(r"fc\d+(?=\.)"), "resnet": re.compile(r"layer\d+\.\d+(?=\.)"),
    "vit": re.compile(r"blocks\.\d+(?=\.)"), "llama": re.compile(r"model\.layers\.\d+(?=\.)"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Units:
    """One order of hidden units: along axis 0 of the tensors `rows`, along axis 1 of the tensors `readers`.

    scaled: rows that may take a factor, with its inverse on the readers; signed: of either sign.  heads: number of
    attention heads that move as blocks, 0 for single units; the rows are then q, k and v.
    """

    rows: tuple[str, ...]
    readers: tuple[str, ...]
    scaled: tuple[str, ...] = ()
    signed: bool = False
    heads: int = 0


def permute(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """Every layer's hidden units in a random order, and attention heads in a random order inside their group.

    W_in → P W_in, W_out → W_out Pᵀ, with everything per unit (biases, batch norm) in the same order. Raises
    `ArgumentError` for an architecture without a table of hidden units.
    """
    rng = np.random.default_rng(seed)
    plain = _split(tensors, architecture)
    for units in _hidden(plain, architecture):
        sizes = {name: len(plain[name]) for name in units.rows}
        index = _heads(sizes, units.heads, rng) if units.heads else _shared(sizes, rng)
        for name in units.rows:
            plain[name] = plain[name][index[name]]
        for name in units.readers:
            plain[name] = plain[name][:, index[units.rows[0]]]
    return _join(plain, tensors)


def rescale(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """Hidden units times random factors, log-uniform in `FACTORS`, and their readers divided by the same.

    ReLU: W_in → S W_in, W_out → W_out S⁻¹, s > 0; behind batch norm, its weight and bias instead of W_in. Gated: `up`
    and `down`, either sign. Attention: values and the output, either sign; q and k by one inverse pair per head. GELU
    has a scale, so its units stay. Raises as `permute`.
    """
    rng = np.random.default_rng(seed)
    plain = _split(tensors, architecture)
    for units in _hidden(plain, architecture):
        if not units.scaled:
            continue
        factor = _factors(len(plain[units.scaled[0]]), rng, units.signed)
        for name in units.scaled:
            plain[name] = plain[name] * _along(factor, plain[name], 0)
        for name in units.readers:
            width = plain[name].shape[1] // (units.heads or 1)
            inverse = 1 / factor
            if units.heads:  # several query heads may read one head's values
                inverse = inverse.reshape(-1, width)
                inverse = inverse.repeat_interleave(units.heads // len(inverse), 0).flatten()
            plain[name] = plain[name] * _along(inverse, plain[name], 1)
        if units.heads:
            _rescale_queries(plain, units, rng)
    return _join(plain, tensors)


def permute_and_rescale(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """Both, one after the other: hidden units in another order and of another scale."""
    return rescale(permute(tensors, architecture, seed), architecture, seed)


# (state dict, architecture, seed) → the disguised state dict. Laws, tested for each: the function stays, its arguments
# too, and the same seed gives the same weights.
DISGUISES: dict[str, Callable[[Mapping[str, Tensor], str, int], dict[str, Tensor]]] = {
    "permuted": permute,
    "rescaled": rescale,
    "permuted and rescaled": permute_and_rescale,
}


def _rescale_queries(plain: dict[str, Tensor], units: _Units, rng: np.random.Generator) -> None:
    """One factor per group of heads: q·k keeps its value, rotary positions included."""
    queries, keys = ([name for name in units.rows if f".{kind}_proj." in name or f".{kind}." in name] for kind in "qk")
    width = len(plain[queries[0]]) // units.heads
    factor = _factors(len(plain[keys[0]]) // width, rng, signed=False)
    for names, inverse in ((queries, False), (keys, True)):
        for name in names:
            each = (1 / factor if inverse else factor).repeat_interleave(len(plain[name]) // len(factor))
            plain[name] = plain[name] * _along(each, plain[name], 0)


def _hidden(plain: Mapping[str, Tensor], architecture: str) -> Iterator[_Units]:
    """Every hidden-unit order of one architecture, in the order of the layers."""
    found = {match[0] for name in plain if (match := _BLOCKS[architecture].match(name))}
    blocks = sorted(found, key=lambda block: [int(number) for number in re.findall(r"\d+", block)])
    for block, following in zip(blocks, [*blocks[1:], "head"], strict=True):
        if architecture == "fc":
            layer = (f"{block}.weight", f"{block}.bias")
            yield _Units(layer, (f"{following}.weight",), scaled=layer)
        elif architecture == "resnet":
            norm = tuple(f"{block}.bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
            yield _Units((f"{block}.conv1.weight", *norm), (f"{block}.conv2.weight",), scaled=norm[:2])
        elif architecture == "vit":
            yield _Units((f"{block}.mlp.fc1.weight", f"{block}.mlp.fc1.bias"), (f"{block}.mlp.fc2.weight",))
            heads = tuple(f"{block}.attn.{kind}.{part}" for kind in "qkv" for part in ("weight", "bias"))
            yield _Units(heads, (f"{block}.attn.proj.weight",), heads[4:], True, SIZES["vit"]["num_heads"])
        else:
            gate, up, down = (f"{block}.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down"))
            yield _Units((gate, up), (down,), (up,), signed=True)
            heads, output = (
                tuple(f"{block}.self_attn.{k}_proj.weight" for k in "qkv"),
                f"{block}.self_attn.o_proj.weight",
            )
            yield _Units(heads, (output,), heads[2:], True, SIZES["llama"]["num_attention_heads"])


def _split(tensors: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors with timm's fused q, k and v apart."""
    if architecture not in _BLOCKS:
        raise ArgumentError(f"Expected an architecture out of {', '.join(_BLOCKS)}, got {architecture!r}.")
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".qkv." in name:
            plain |= {name.replace(".qkv.", f".{k}."): part for k, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            plain[name] = tensor
    return plain


def _join(plain: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names and in the order of `like`, contiguous as safetensors wants them."""

    def whole(name: str) -> Tensor:
        return torch.cat([plain[name.replace(".qkv.", f".{k}.")] for k in "qkv"]) if ".qkv." in name else plain[name]

    return {name: whole(name).contiguous() for name in like}


def _shared(sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Tensor]:
    order = torch.from_numpy(rng.permutation(next(iter(sizes.values()))))
    return dict.fromkeys(sizes, order)


def _heads(sizes: Mapping[str, int], heads: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Row orders by name: groups of heads in another order, and query heads inside each group."""
    width = max(sizes.values()) // heads
    groups = min(sizes.values()) // width
    order = rng.permutation(groups)
    inside = np.stack([rng.permutation(heads // groups) for _ in range(groups)])
    query = (order[:, None] * (heads // groups) + inside).ravel()

    def rows(blocks: np.ndarray) -> Tensor:
        return torch.from_numpy((blocks[:, None] * width + np.arange(width)).ravel())

    return {name: rows(query if size == heads * width else order) for name, size in sizes.items()}


def _factors(count: int, rng: np.random.Generator, signed: bool) -> Tensor:
    low, high = np.log(FACTORS)
    factor = np.exp(rng.uniform(low, high, count))
    sign = rng.choice([-1.0, 1.0], count) if signed else 1.0
    return torch.from_numpy(factor * sign).float()


def _along(factor: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """The factors shaped to multiply one axis of a tensor."""
    return factor.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
