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
class Units:
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
    plain = split(tensors, architecture)
    for units in hidden_units(plain, architecture):
        sizes = {name: len(plain[name]) for name in units.rows}
        index = _heads(sizes, units.heads, rng) if units.heads else _shared(sizes, rng)
        for name in units.rows:
            plain[name] = plain[name][index[name]]
        for name in units.readers:
            plain[name] = plain[name][:, index[units.rows[0]]]
    return join(plain, tensors)


def rescale(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """Hidden units times random factors, log-uniform in `FACTORS`, and their readers divided by the same.

    ReLU: W_in → S W_in, W_out → W_out S⁻¹, s > 0; behind batch norm, its weight and bias instead of W_in. Gated: `up`
    and `down`, either sign. Attention: values and the output, either sign; q and k by one inverse pair per head. GELU
    has a scale, so its units stay. Raises as `permute`.
    """
    rng = np.random.default_rng(seed)
    plain = split(tensors, architecture)
    for units in hidden_units(plain, architecture):
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
    return join(plain, tensors)


def permute_and_rescale(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """Both, one after the other: hidden units in another order and of another scale."""
    return rescale(permute(tensors, architecture, seed), architecture, seed)


def rotate(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """The residual stream in other coordinates, W_read → W_read Qᵀ, W_write → Q W_write, norms folded into what reads.

    Q is a random orthogonal matrix; under LayerNorm one that keeps the mean, Q·1 = 1; in a ResNet, whose batch norms
    and ReLUs know the channels apart, a permutation for each stage. `fc` has no stream and stays. Raises as `permute`.
    """
    rng = np.random.default_rng(seed)
    plain = split(tensors, architecture)
    for stream in streams(plain, architecture):
        turn(plain, stream, _turn(stream, rng))
    return join(plain, tensors)


def hide(tensors: Mapping[str, Tensor], architecture: str, seed: int) -> dict[str, Tensor]:
    """All of it: hidden units and heads permuted and rescaled, the residual stream rotated."""
    return rotate(permute_and_rescale(tensors, architecture, seed), architecture, seed)


# (state dict, architecture, seed) → the disguised state dict. Laws, tested for each: the function stays, its arguments
# too, and the same seed gives the same weights.
DISGUISES: dict[str, Callable[[Mapping[str, Tensor], str, int], dict[str, Tensor]]] = {
    "permuted": permute,
    "rescaled": rescale,
    "permuted and rescaled": permute_and_rescale,
    "permuted, rescaled, rotated": hide,
}


@dataclass(frozen=True, slots=True)
class Stream:
    """One residual stream: the tensors that have its `width` channels along axis 0, along axis 1, or along the last.

    norms: (the norm's name, the matrices that read what it normalises). channels: "rotated", "centred" (a rotation that
    keeps the mean) or "permuted", what the function allows.
    """

    width: int
    channels: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    last: tuple[str, ...] = ()
    norms: tuple[tuple[str, tuple[str, ...]], ...] = ()


def streams(plain: Mapping[str, Tensor], architecture: str) -> list[Stream]:
    """The residual streams of one architecture, q, k and v apart (`split`)."""
    if architecture == "llama":
        return [_llama_stream(plain)]
    if architecture == "vit":
        return [_vit_stream(plain)]
    return _resnet_streams(plain) if architecture == "resnet" else []


def turn(plain: dict[str, Tensor], stream: Stream, q: Tensor) -> None:
    """Put a stream into the coordinates Q x, in place; q: (width, width), orthogonal."""
    for norm, readers in stream.norms:
        gain, shift = plain[f"{norm}.weight"], plain.get(f"{norm}.bias")
        for name in readers:
            if shift is not None:
                bias = name.replace(".weight", ".bias")
                plain[bias] = plain[bias] + plain[name] @ shift
            plain[name] = plain[name] * gain
        plain[f"{norm}.weight"] = torch.ones_like(gain)
        if shift is not None:
            plain[f"{norm}.bias"] = torch.zeros_like(shift)
    for name in stream.writers:
        plain[name] = torch.tensordot(q, plain[name], 1)
    for name in stream.readers:
        plain[name] = torch.tensordot(plain[name], q, ([1], [1])).movedim(-1, 1)
    for name in stream.last:
        plain[name] = plain[name] @ q.T


def _turn(stream: Stream, rng: np.random.Generator) -> Tensor:
    """A random orthogonal matrix of what the stream allows, (width, width)."""
    width = stream.width
    if stream.channels == "permuted":
        return torch.eye(width)[torch.from_numpy(rng.permutation(width))]
    if stream.channels == "rotated":
        return torch.from_numpy(np.linalg.qr(rng.standard_normal((width, width)))[0]).float()
    basis = np.linalg.qr(np.column_stack([np.ones(width), rng.standard_normal((width, width - 1))]))[0]
    inner = np.eye(width)
    inner[1:, 1:] = np.linalg.qr(rng.standard_normal((width - 1, width - 1)))[0]
    return torch.from_numpy(basis @ inner @ basis.T).float()


def _llama_stream(plain: Mapping[str, Tensor]) -> Stream:
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    norms: list[tuple[str, tuple[str, ...]]] = [("model.norm", (head,))]
    writers = []
    for block in _blocks(plain, "llama"):
        heads = tuple(f"{block}.self_attn.{kind}_proj.weight" for kind in "qkv")
        norms.append((f"{block}.input_layernorm", heads))
        norms.append(
            (f"{block}.post_attention_layernorm", tuple(f"{block}.mlp.{k}_proj.weight" for k in ("gate", "up")))
        )
        writers += [f"{block}.self_attn.o_proj.weight", f"{block}.mlp.down_proj.weight"]
    readers = tuple(name for _, names in norms for name in names)
    return Stream(plain[table].shape[1], "rotated", tuple(writers), (table, *readers), norms=tuple(norms))


def _vit_stream(plain: Mapping[str, Tensor]) -> Stream:
    norms: list[tuple[str, tuple[str, ...]]] = [("norm", ("head.weight",))]
    writers = ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    for block in _blocks(plain, "vit"):
        norms.append((f"{block}.norm1", tuple(f"{block}.attn.{kind}.weight" for kind in "qkv")))
        norms.append((f"{block}.norm2", (f"{block}.mlp.fc1.weight",)))
        writers += [f"{block}.{part}.{end}" for part in ("attn.proj", "mlp.fc2") for end in ("weight", "bias")]
    readers = tuple(name for _, names in norms for name in names)
    width = plain["norm.weight"].shape[0]
    return Stream(width, "centred", tuple(writers), readers, ("cls_token", "pos_embed"), tuple(norms))


def _resnet_streams(plain: Mapping[str, Tensor]) -> list[Stream]:
    """Of the stem and each stage: a block with a branch of its own begins a new stream."""
    parts = ("weight", "bias", "running_mean", "running_var")
    found: list[tuple[list[str], list[str]]] = [(["conv1.weight", *(f"bn1.{part}" for part in parts)], [])]
    for block in _blocks(plain, "resnet"):
        found[-1][1].append(f"{block}.conv1.weight")
        if f"{block}.downsample.0.weight" in plain:
            found[-1][1].append(f"{block}.downsample.0.weight")
            found.append(([f"{block}.downsample.0.weight", *(f"{block}.downsample.1.{part}" for part in parts)], []))
        found[-1][0].extend([f"{block}.conv2.weight", *(f"{block}.bn2.{part}" for part in parts)])
    found[-1][1].append("fc.weight")
    return [Stream(len(plain[rows[0]]), "permuted", tuple(rows), tuple(columns)) for rows, columns in found]


def _rescale_queries(plain: dict[str, Tensor], units: Units, rng: np.random.Generator) -> None:
    """One factor per group of heads: q·k keeps its value, rotary positions included."""
    queries, keys = ([name for name in units.rows if f".{kind}_proj." in name or f".{kind}." in name] for kind in "qk")
    width = len(plain[queries[0]]) // units.heads
    factor = _factors(len(plain[keys[0]]) // width, rng, signed=False)
    for names, inverse in ((queries, False), (keys, True)):
        for name in names:
            each = (1 / factor if inverse else factor).repeat_interleave(len(plain[name]) // len(factor))
            plain[name] = plain[name] * _along(each, plain[name], 0)


def hidden_units(plain: Mapping[str, Tensor], architecture: str) -> Iterator[Units]:
    """Every hidden-unit order of one architecture, in the order of the layers."""
    blocks = _blocks(plain, architecture)
    for block, following in zip(blocks, [*blocks[1:], "head"], strict=True):
        if architecture == "fc":
            layer = (f"{block}.weight", f"{block}.bias")
            yield Units(layer, (f"{following}.weight",), scaled=layer)
        elif architecture == "resnet":
            norm = tuple(f"{block}.bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
            yield Units((f"{block}.conv1.weight", *norm), (f"{block}.conv2.weight",), scaled=norm[:2])
        elif architecture == "vit":
            yield Units((f"{block}.mlp.fc1.weight", f"{block}.mlp.fc1.bias"), (f"{block}.mlp.fc2.weight",))
            heads = tuple(f"{block}.attn.{kind}.{part}" for kind in "qkv" for part in ("weight", "bias"))
            yield Units(heads, (f"{block}.attn.proj.weight",), heads[4:], True, SIZES["vit"]["num_heads"])
        else:
            gate, up, down = (f"{block}.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down"))
            yield Units((gate, up), (down,), (up,), signed=True)
            heads, output = (
                tuple(f"{block}.self_attn.{k}_proj.weight" for k in "qkv"),
                f"{block}.self_attn.o_proj.weight",
            )
            yield Units(heads, (output,), heads[2:], True, SIZES["llama"]["num_attention_heads"])


def _blocks(plain: Mapping[str, Tensor], architecture: str) -> list[str]:
    """The paths of the blocks, in order."""
    found = {match[0] for name in plain if (match := _BLOCKS[architecture].match(name))}
    return sorted(found, key=lambda block: [int(number) for number in re.findall(r"\d+", block)])


def split(tensors: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
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


def join(plain: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
