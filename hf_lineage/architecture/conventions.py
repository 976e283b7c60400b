"""Naming conventions: CONVENTIONS brings every known spelling of a tensor's name to one, FUSED cuts fused tensors.

Canonical is one spelling that is in use already: timm's for ViT and ResNet, transformers' for the others. A new
convention is a new row and a new line of the doctest of `canonical_names`. Nothing here reads a weight.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Protocol, TypeVar

MAX_EXPERTS = 4096  # of one layer; a header that claims more is not worth a part for each
Part = tuple[str, int, int]  # label, first row, row behind the last
HEADERS = 4  # of which what was found is remembered: the models of one question mostly have one
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class Shaped(Protocol):
    """What the tables need to know of a tensor; `checkpoints/entry.py` has it."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def count(self) -> int: ...


@dataclass(slots=True)
class _Header:
    """What a header says of a tensor, and no more."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@contextmanager
def no_collection() -> Iterator[None]:
    """While names and shapes by the ten thousand are made, which hold no cycles: Python's collector would look through
    all of them again and again, half of the time that they take."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


Found = TypeVar("Found")


_KNOWN: list[Callable[[], None]] = []  # what forgets


def once_a_header(find: Callable[[Mapping[str, Shaped]], Found]) -> Callable[[Mapping[str, Shaped]], Found]:
    """A function of names, dtypes and shapes that is asked once for models that have the same, in the same order.

    What it returns is shared: it must not be changed.
    """

    @lru_cache(HEADERS)
    @no_collection()
    def known(header: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Found:
        return find({name: _Header(dtype, shape) for name, dtype, shape in header})

    def found(entries: Mapping[str, Shaped]) -> Found:
        return known(tuple((name, one.dtype, one.shape) for name, one in entries.items()))

    _KNOWN.append(known.cache_clear)
    return wraps(find)(found)


def forget_headers() -> None:
    """Let go of what is remembered of headers: for whoever measures what looking at one costs."""
    _canonical.cache_clear()
    for forget in _KNOWN:
        forget()


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their kind: names of one kind differ in the numbers of their components only, which are 0 in the kind.

    Every pattern of the tables here and of `describe.py` that matches a name matches its kind, at the same components.

    >>> by_kind(["h.7.fc1.bias", "h.12.fc1.bias", "h.0.fc2.bias"])
    {'h.0.fc1.bias': ['h.7.fc1.bias', 'h.12.fc1.bias'], 'h.0.fc2.bias': ['h.0.fc2.bias']}
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_NUMBER.sub("0", name), []).append(name)
    return kinds


@dataclass(frozen=True, slots=True)
class Convention:
    """How one library spells names: rows (pattern, canonical spelling) for checkpoints that show its `sign`.

    sign: is searched for in all names of a checkpoint. rows: each is applied to every name, in turn.
    """

    sign: re.Pattern[str]
    rows: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]


def _convention(sign: str, *rows: tuple[str, str | Callable[[re.Match[str]], str]]) -> Convention:
    return Convention(re.compile(sign, re.MULTILINE), tuple((re.compile(a), b) for a, b in rows))


def _resnet_block(match: re.Match[str]) -> str:
    kind = "conv" if match["kind"] == "convolution" else "bn"
    return f"layer{int(match['stage']) + 1}.{match['block']}.{kind}{int(match['number']) + 1}."


def _resnet_shortcut(match: re.Match[str]) -> str:
    kind = 0 if match["kind"] == "convolution" else 1
    return f"layer{int(match['stage']) + 1}.{match['block']}.downsample.{kind}."


_STAGE = r"^encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\."
_KIND = r"(?P<kind>convolution|normalization)\."

# In this order: the later ones see what the earlier ones made of a name.
CONVENTIONS: dict[str, Convention] = {
    # wrappers, and prefixes that come and go when a model is saved with another head
    "wrappers": _convention(
        "",
        (r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.", ""),
        (r"^(?:(?:module|model|base_model|bert|roberta|distilbert|electra|deberta|albert|mpnet|vit|deit|beit|"
         r"dinov2|swin|convnext|resnet|transformer|gpt_neox|language_model|backbone)\.)+", ""),
    ),
    # the layer that an adapter of PEFT wraps
    "peft base layer": _convention(r"\.base_layer\.", (r"\.base_layer(?=\.)", "")),
    # the copy that PEFT trained in full
    "peft trained copy": _convention(
        r"\.modules_to_save\.", (r"\.modules_to_save\.[^.]+(?=\.)", "")
    ),
    # gain and offset of a norm as TensorFlow calls them
    "tensorflow norm": _convention(
        r"(?i:norm)\w*\.(?:gamma|beta)$",
        (r"((?i:norm)\w*)\.gamma$", r"\1.weight"),
        (r"((?i:norm)\w*)\.beta$", r"\1.bias"),
    ),
    # parts of a fused tensor, see `fused_parts`
    "fused parts": _convention(
        r"\]$",
        (r"\bin_proj_(weight|bias)\[([qkv])\]$", r"\2_proj.\1"),
        (r"\bqkv_proj\.(weight|bias)\[([qkv])\]$", r"\2_proj.\1"),
        (r"\bqkv\.(weight|bias)\[([qkv])\]$", r"\2.\1"),
        (r"\bgate_up_proj\.(weight|bias)\[(gate|up)\]$", r"\2_proj.\1"),
        (r"\bexperts\.gate_up_proj\[(\d+)\.(gate|up)\]$", r"experts.\1.\2_proj.weight"),
        (r"\bexperts\.down_proj\[(\d+)\]$", r"experts.\1.down_proj.weight"),
    ),
    # ViT, DeiT and DINOv2 of transformers, in files and (transformers 5) in modules
    "transformers vit": _convention(
        r"^(?:encoder\.layer|layers)\.\d+\.(?:layernorm_before|layer_scale1)\.",
        (r"^(?:encoder\.layer|layers)\.(?=\d+\.)", "blocks."),
        (r"^(blocks\.\d+)\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r"\1.attn.\2."),
        (r"^(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
        (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
        (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
        (r"^(blocks\.\d+)\.layer_scale(\d)\.lambda1$", r"\1.ls\2.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:cls_)?classifier\.", "head."),
        (r"^distillation_classifier\.", "head_dist."),
    ),
    "transformers resnet": _convention(
        r"^embedder\.embedder\.convolution\.",
        (r"^embedder\.embedder\.convolution\.", "conv1."),
        (r"^embedder\.embedder\.normalization\.", "bn1."),
        (_STAGE + r"layer\.(?P<number>\d+)\." + _KIND, _resnet_block),
        (_STAGE + r"shortcut\." + _KIND, _resnet_shortcut),
        (r"^classifier\.1\.", "fc."),
    ),
    "openai clip": _convention(
        r"^(?:visual\.transformer\.)?resblocks\.\d+\.ln_1\.",
        (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
        (r"^resblocks\.", "text_model.encoder.layers."),
        (r"(\.layers\.\d+)\.attn\.", r"\1.self_attn."),
        (r"(\.layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
        (r"(\.layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
        (r"(\.layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
        (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
        (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
        (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
        (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
        (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
        (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
        (r"^ln_final\.", "text_model.final_layer_norm."),
    ),
    "mixtral experts": _convention(
        r"\.block_sparse_moe\.",
        (r"\.block_sparse_moe\.(experts\.\d+)\.w1\.", r".mlp.\1.gate_proj."),
        (r"\.block_sparse_moe\.(experts\.\d+)\.w3\.", r".mlp.\1.up_proj."),
        (r"\.block_sparse_moe\.(experts\.\d+)\.w2\.", r".mlp.\1.down_proj."),
        (r"\.block_sparse_moe\.", ".mlp."),
    ),
}  # fmt: skip

# Tensors that belong to an adapter, not to the model it adapts
ADAPTERS_OWN = re.compile(
    r"(?:^|\.)(?:lora_\w+|original_module|ia3_l|hada_\w+|lokr_\w+|vera_lambda_\w|oft_\w+|boft_\w+|"
    r"trainable_tokens_\w+|prompt_embeddings)(?:\.|$)"
)
# Tables with one row per token: new tokens are appended, so the rows of the shorter table are those of the longer.
VOCABULARY = re.compile(
    r"(?:^|\.)(?:word_embeddings|embed_tokens|embed_in|wte|tok_embeddings|token_embedding|shared)\.weight$|^lm_head\.weight$"
)
# Tables with one entry per position: for another length they are interpolated, and no row stays what it was.
POSITIONS = re.compile(
    r"(?:^|\.)(?:pos_embed|position_embeddings?|positional_embedding|embed_positions|wpe|relative_position_bias_table)"
    r"(?:\.weight)?$"
)


def canonical_names(names: Iterable[str]) -> Mapping[str, str]:
    """Canonical name → name, one each: a convention that would make two names one is not applied.

    >>> canonical_names(["bert.pooler.dense.bias", "classifier.bias"])
    {'pooler.dense.bias': 'bert.pooler.dense.bias', 'classifier.bias': 'classifier.bias'}
    >>> canonical_names(["model.a", "a"])
    {'model.a': 'model.a', 'a': 'a'}

    One line per convention:

    >>> [*canonical_names(["layers._fsdp_wrapped_module.0.bias", "module.model.norm.weight"])]
    ['layers.0.bias', 'norm.weight']
    >>> [*canonical_names(["base_model.model.q.base_layer.weight", "model.head.modules_to_save.default.bias"])]
    ['q.weight', 'head.bias']
    >>> [*canonical_names(["embeddings.LayerNorm.gamma", "embeddings.LayerNorm.beta", "blocks.0.ls1.gamma"])]
    ['embeddings.LayerNorm.weight', 'embeddings.LayerNorm.bias', 'blocks.0.ls1.gamma']
    >>> [*canonical_names(["0.attn.qkv.weight[q]", "0.attn.in_proj_bias[k]", "0.mlp.experts.gate_up_proj[7.up]"])]
    ['0.attn.q.weight', '0.attn.k_proj.bias', '0.mlp.experts.7.up_proj.weight']
    >>> block = "vit.encoder.layer.0."
    >>> [*canonical_names([block + "layernorm_before.bias", block + "attention.attention.key.bias"])]
    ['blocks.0.norm1.bias', 'blocks.0.attn.k.bias']
    >>> [*canonical_names(["vit.layers.0.layernorm_before.bias", "vit.layers.0.attention.k_proj.bias"])]
    ['blocks.0.norm1.bias', 'blocks.0.attn.k.bias']
    >>> stem, stage = "resnet.embedder.embedder.", "resnet.encoder.stages.1.layers.0."
    >>> [*canonical_names([stem + "convolution.weight", stage + "layer.1.normalization.bias"])]
    ['conv1.weight', 'layer2.0.bn2.bias']
    >>> [*canonical_names([stem + "convolution.weight", stage + "shortcut.convolution.weight"])]
    ['conv1.weight', 'layer2.0.downsample.0.weight']
    >>> [*canonical_names(["visual.transformer.resblocks.0.ln_1.bias", "transformer.resblocks.0.mlp.c_fc.bias"])]
    ['vision_model.encoder.layers.0.layer_norm1.bias', 'text_model.encoder.layers.0.mlp.fc1.bias']
    >>> [*canonical_names(["model.layers.0.block_sparse_moe.experts.3.w2.weight"])]
    ['layers.0.mlp.experts.3.down_proj.weight']
    """
    return _canonical(tuple(names))


@lru_cache(HEADERS)
def _canonical(names: tuple[str, ...]) -> dict[str, str]:
    short = [*names]
    for convention in CONVENTIONS.values():
        if convention.sign.search("\n".join(short)):
            spelled = short
            for pattern, spelling in convention.rows:
                spelled = [pattern.sub(spelling, name) for name in spelled]
            short = spelled if len(set(spelled)) == len(names) else short
    return dict(zip(short, names, strict=True))


def fused_parts(entries: Mapping[str, Shaped]) -> dict[str, list[Part]]:
    """Where fused tensors are cut: name → its parts (label, first row, row behind the last), which cover its rows.

    A row is what the last axis holds: a bias has one element a row, experts (e, rows, columns) are counted through.
    """
    found: dict[str, list[Part]] = {}
    for kind, names in by_kind(entries).items():
        for pattern, rule in FUSED.items():
            if not (match := pattern.search(kind)):
                continue
            for name in names:
                stem = name[: match.start("own") - len(kind)]
                if entries[name].count and (parts := rule(entries[name].shape, stem, entries)):
                    found[name] = parts
                    bias = re.sub(r"weight$", "bias", name)
                    if bias != name and bias in entries and entries[bias].shape == entries[name].shape[:1]:
                        found[bias] = parts
    return found


def _thirds(shape: tuple[int, ...], stem: str, entries: Mapping[str, Shaped]) -> list[Part] | None:
    return _equal(shape[0], "qkv") if len(shape) == 2 and shape[0] == 3 * shape[1] else None


def _halves(shape: tuple[int, ...], stem: str, entries: Mapping[str, Shaped]) -> list[Part] | None:
    down = _sibling(entries, stem, "down_proj")
    fits = len(shape) == 2 and len(down) == 2 and shape == (2 * down[1], down[0])
    return _equal(shape[0], ("gate", "up")) if fits else None


def _grouped(shape: tuple[int, ...], stem: str, entries: Mapping[str, Shaped]) -> list[Part] | None:
    """Queries first, as many as the output projection reads; the rest is half keys, half values."""
    out = _sibling(entries, stem, "o_proj")
    if len(shape) != 2 or len(out) != 2 or out[0] != shape[1]:
        return None
    q, kv = out[1], (shape[0] - out[1]) // 2
    if kv < 1 or q + 2 * kv != shape[0] or q % kv:
        return None
    return [("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)]


def _experts(shape: tuple[int, ...], stem: str, entries: Mapping[str, Shaped]) -> list[Part] | None:
    """Experts stacked as (expert, out, in), transformers 5; GPT-OSS and Llama 4 store (expert, in, out): not cut."""
    both = [entries[stem + name].shape if stem + name in entries else () for name in ("gate_up_proj", "down_proj")]
    gate_up, down = both
    if len(down) != 3 or gate_up != (down[0], 2 * down[2], down[1]) or down[0] > MAX_EXPERTS:
        return None
    if shape == gate_up:
        return _equal(shape[0] * shape[1], [f"{e}.{half}" for e in range(shape[0]) for half in ("gate", "up")])
    return _equal(shape[0] * shape[1], [str(e) for e in range(shape[0])])


def _sibling(entries: Mapping[str, Shaped], stem: str, module: str) -> tuple[int, ...]:
    names = (f"{stem}{module}.weight", f"{stem}{module}.base_layer.weight")
    return next((entries[name].shape for name in names if name in entries), ())


def _equal(rows: int, labels: Iterable[str]) -> list[Part]:
    labels = list(labels)
    step = rows // len(labels)
    return [(label, i * step, (i + 1) * step) for i, label in enumerate(labels)]


# Fused tensors: pattern of the name → how its rows are cut. Not cut: GPT-NeoX's `query_key_value` interleaves q, k and
# v head by head, so that none of them is a row range, and other models store thirds under that name; GPT-2's `c_attn`
# is (in, out), its parts are columns.
_Rule = Callable[[tuple[int, ...], str, Mapping[str, Shaped]], list[Part] | None]
FUSED: dict[re.Pattern[str], _Rule] = {
    re.compile(r"(?:^|\.)(?P<own>qkv(?:\.base_layer)?\.weight)$"): _thirds,
    re.compile(r"(?:^|\.)(?P<own>in_proj_weight)$"): _thirds,
    re.compile(r"(?:^|\.)(?P<own>qkv_proj(?:\.base_layer)?\.weight)$"): _grouped,
    re.compile(r"(?:^|\.)(?P<own>gate_up_proj(?:\.base_layer)?\.weight)$"): _halves,
    re.compile(r"(?:^|\.)experts\.(?P<own>gate_up_proj|down_proj)$"): _experts,
}
