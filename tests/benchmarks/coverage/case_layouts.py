"""One model in two layouts: another prefix, packed, in other files, in the names of another library, or inside a
bigger model. Each function here takes the tensors of a model and gives those of the same model as somebody else stores it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from case_models import H, Tensors

Layout = Callable[[Tensors], Tensors]


def same(model: Tensors) -> Tensors:
    return model


def renamed(*pairs: tuple[str, str], drop: str = "(?!)") -> Layout:
    """Each pattern replaced in turn, in every name; without the tensors whose name shows `drop`."""

    def layout(model: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in model.items():
            if re.search(drop, name):
                continue
            for pattern, spelling in pairs:
                name = re.sub(pattern, spelling, name)
            assert name not in found, name
            found[name] = tensor
        return found

    return layout


def under(prefix: str) -> Layout:
    return renamed((r"^", prefix))


def only(prefix: str) -> Layout:
    """The tensors below a prefix, without it."""
    return lambda model: {name.removeprefix(prefix): t for name, t in model.items() if name.startswith(prefix)}


def then(*layouts: Layout) -> Layout:
    def layout(model: Tensors) -> Tensors:
        for each in layouts:
            model = each(model)
        return model

    return layout


def fused(pattern: str, name: str) -> Layout:
    """Three tensors, whose name shows `part` q, k or v (or a word that begins so), one below the other."""

    def layout(model: Tensors) -> Tensors:
        found: Tensors = {}
        parts: dict[str, Tensors] = {}
        for own, tensor in model.items():
            if match := re.search(pattern, own):
                parts.setdefault(own[: match.start()] + match.expand(name), {})[match["part"][0]] = tensor
            else:
                found[own] = tensor
        return found | {own: torch.cat([each[part] for part in "qkv"]) for own, each in parts.items()}

    return layout


def cast(dtype: torch.dtype) -> Layout:
    return lambda model: {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.items()}


def packed(layout: str, others: torch.dtype | None = torch.bfloat16) -> Layout:
    """The projections of a decoder's layers packed (tests/packers.py), the rest in another dtype."""
    from packers import PACKERS

    def convert(model: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in model.items():
            if re.search(r"layers\.\d+\..*_proj\.weight$", name):
                found |= PACKERS[layout](name.removesuffix(".weight"), tensor.float())
            else:
                found[name] = tensor.to(others)
        return found

    return convert


def openai_mxfp4(model: Tensors) -> Tensors:
    """gpt-oss as it was published: experts (e, in, out) in blocks of 32 (e, out, in/32, 16) and their exponents."""
    from packers import E2M1, nearest

    found: Tensors = {}
    for name, tensor in model.items():
        if not re.search(r"experts\.(gate_up|down)_proj$", name):
            found[name] = tensor.bfloat16()
            continue
        w = tensor.float().transpose(1, 2)
        blocks = w.reshape(*w.shape[:2], -1, 32)
        exponent = torch.ceil(torch.log2(blocks.abs().amax(-1).clamp_min(1e-12) / 6))
        values = blocks / torch.exp2(exponent)[..., None]
        codes = (nearest(values.abs(), E2M1) + 8 * (values < 0)).to(torch.uint8)
        found[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        found[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    return found


# ---- prefixes, heads, tokens, layers


def with_lora(model: Tensors) -> Tensors:
    """A PEFT model saved whole: the wrapped layers, and factors beside them."""
    found = renamed((r"^", "base_model.model."), (r"(q_proj|v_proj)\.weight$", r"\1.base_layer.weight"))(model)
    for name in [name for name in found if name.endswith(".base_layer.weight")]:
        stem, (rows, columns) = name.removesuffix(".base_layer.weight"), found[name].shape
        found[f"{stem}.lora_A.default.weight"] = torch.randn(8, columns)
        found[f"{stem}.lora_B.default.weight"] = torch.randn(rows, 8)
    return found


def with_tensors(layout: Layout, **tensors: torch.Tensor) -> Layout:
    """`__` in a key stands for a dot."""
    return lambda model: layout(model) | {name.replace("__", "."): t for name, t in tensors.items()}


def more_tokens(model: Tensors) -> Tensors:
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    return {n: torch.cat([t, torch.randn(8, t.shape[1]) * 0.02]) if n in tables else t for n, t in model.items()}


# ---- other libraries' names


_TIMM = (
    (r"embeddings\.cls_token", "cls_token"), (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings", "pos_embed"), (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"), (r"layernorm_before", "norm1"), (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"), (r"attention\.output\.dense", "attn.proj"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"), (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"), (r"^layernorm", "norm"),
)  # fmt: skip
vit_of_timm = then(
    renamed((r"^vit\.", ""), (r"^encoder\.layer\.", "blocks."), *_TIMM, (r"^classifier", "head")),
    fused(r"attention\.attention\.(?P<part>query|key|value)\.(?P<w>weight|bias)$", r"attn.qkv.\g<w>"),
)
swin_of_timm = then(
    renamed(
        (r"^swin\.", ""), (r"^encoder\.", ""), *_TIMM, (r"attention\.self\.relative", "attn.relative"),
        (r"^classifier", "head.fc"), (r"layers\.0\.downsample", "layers.1.downsample"),
    ),
    fused(r"attention\.self\.(?P<part>query|key|value)\.(?P<w>weight|bias)$", r"attn.qkv.\g<w>"),
)  # fmt: skip
convnext_of_timm = renamed(
    (r"^convnext\.", ""), (r"^encoder\.", ""), (r"embeddings\.patch_embeddings", "stem.0"),
    (r"embeddings\.layernorm", "stem.1"), (r"downsampling_layer", "downsample"), (r"\.layers\.", ".blocks."),
    (r"dwconv", "conv_dw"), (r"\.layernorm", ".norm"), (r"pwconv1", "mlp.fc1"), (r"pwconv2", "mlp.fc2"),
    (r"layer_scale_parameter", "gamma"), (r"^layernorm", "head.norm"), (r"^classifier", "head.fc"),
)  # fmt: skip
resnet_of_timm = renamed(
    (r"^resnet\.", ""), (r"embedder\.embedder\.convolution", "conv1"), (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.0", "layer1"), (r"encoder\.stages\.1", "layer2"), (r"\.layers\.", "."),
    (r"layer\.0\.convolution", "conv1"), (r"layer\.0\.normalization", "bn1"), (r"layer\.1\.convolution", "conv2"),
    (r"layer\.1\.normalization", "bn2"), (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"), (r"^classifier\.1", "fc"),
)  # fmt: skip


def clip_of_openai(model: Tensors, text: str = "") -> Tensors:
    """text: the prefix of the text tower."""
    names = (
        (r"^text_model\.encoder\.layers\.", f"{text}transformer.resblocks."),
        (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
        (r"self_attn\.out_proj", "attn.out_proj"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
        (r"\.layer_norm", ".ln_"), (r"^text_model\.embeddings\.token_embedding\.", f"{text}token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight", f"{text}positional_embedding"),
        (r"^text_model\.final_layer_norm", f"{text}ln_final"),
        (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
        (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
        (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
        (r"^vision_model\.pre_layrnorm", "visual.ln_pre"), (r"^vision_model\.post_layernorm", "visual.ln_post"),
        (r"^text_projection\.weight", f"{text}text_projection"), (r"^visual_projection\.weight", "visual.proj"),
    )  # fmt: skip
    found = then(renamed(*names), fused(r"self_attn\.(?P<part>[qkv])_proj\.(?P<w>weight|bias)$", r"attn.in_proj_\g<w>"))
    return {
        n: t.T.contiguous() if n.endswith(("text_projection", "visual.proj")) else t for n, t in found(model).items()
    }


def llama_of_meta(model: Tensors) -> Tensors:
    """Rows of queries and keys in the order in which the two halves of each head take turns."""

    def in_pairs(w: torch.Tensor) -> torch.Tensor:
        heads = 4 if w.shape[0] == H else 2
        return w.view(heads, 2, w.shape[0] // heads // 2, -1).transpose(1, 2).reshape(w.shape).contiguous()

    names = (
        (r"^model\.embed_tokens", "tok_embeddings"), (r"^lm_head", "output"), (r"^model\.norm", "norm"),
        (r"^model\.", ""), (r"self_attn\.([qkvo])_proj", r"attention.w\1"), (r"mlp\.gate_proj", "feed_forward.w1"),
        (r"mlp\.up_proj", "feed_forward.w3"), (r"mlp\.down_proj", "feed_forward.w2"),
        (r"input_layernorm", "attention_norm"), (r"post_attention_layernorm", "ffn_norm"),
    )  # fmt: skip
    return renamed(*names)({n: in_pairs(t) if re.search(r"[qk]_proj", n) else t for n, t in model.items()})


def llama_of_internlm(model: Tensors) -> Tensors:
    """wqkv: of each group of queries their rows, the rows of the key and of the value."""
    found: Tensors = {}
    parts: dict[str, Tensors] = {}
    for name, tensor in model.items():
        if match := re.search(r"(.*)self_attn\.([qkv])_proj\.weight$", name):
            groups = 2  # of keys and values
            parts.setdefault(match[1], {})[match[2]] = tensor.reshape(groups, -1, *tensor.shape[1:])
        else:
            found[name] = tensor
    for stem, each in parts.items():
        found[f"{stem}attention.wqkv.weight"] = torch.cat([each[part] for part in "qkv"], 1).flatten(0, 1)
    return renamed(
        (r"embed_tokens", "tok_embeddings"), (r"^lm_head", "output"), (r"self_attn\.o_proj", "attention.wo"),
        (r"mlp\.gate_proj", "feed_forward.w1"), (r"mlp\.up_proj", "feed_forward.w3"),
        (r"mlp\.down_proj", "feed_forward.w2"), (r"input_layernorm", "attention_norm"),
        (r"post_attention_layernorm", "ffn_norm"),
    )(found)  # fmt: skip


def llama_of_qwen(model: Tensors) -> Tensors:
    """Qwen-1: c_attn is q, k and v; w2 is the gate, w1 what it is multiplied with."""
    names = (
        (r"^model\.embed_tokens", "transformer.wte"), (r"^model\.norm", "transformer.ln_f"),
        (r"^model\.layers", "transformer.h"), (r"self_attn\.o_proj", "attn.c_proj"), (r"mlp\.up_proj", "mlp.w1"),
        (r"mlp\.gate_proj", "mlp.w2"), (r"mlp\.down_proj", "mlp.c_proj"), (r"input_layernorm", "ln_1"),
        (r"post_attention_layernorm", "ln_2"),
    )  # fmt: skip
    return then(fused(r"self_attn\.(?P<part>[qkv])_proj\.(?P<w>weight)$", r"attn.c_attn.\g<w>"), renamed(*names))(model)


def llama_of_chatglm(model: Tensors) -> Tensors:
    """dense_h_to_4h is gate and up; query_key_value is q, k and v."""
    found: Tensors = {}
    for name, tensor in fused(
        r"self_attn\.(?P<part>[qkv])_proj\.(?P<w>weight)$", r"self_attention.query_key_value.\g<w>"
    )(model).items():
        if "mlp.gate_proj" in name:
            other = name.replace("gate_proj", "up_proj")
            found[name.replace("gate_proj", "dense_h_to_4h")] = torch.cat([tensor, model[other]])
        elif "mlp.up_proj" not in name:
            found[name] = tensor
    return renamed(
        (r"^model\.embed_tokens", "transformer.embedding.word_embeddings"), (r"^lm_head", "transformer.output_layer"),
        (r"^model\.norm", "transformer.encoder.final_layernorm"), (r"^model\.layers", "transformer.encoder.layers"),
        (r"self_attn\.o_proj", "self_attention.dense"), (r"down_proj", "dense_4h_to_h"),
    )(found)  # fmt: skip


def phi_as_llama(model: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in model.items():
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.split([H, H // 2, H // 2]), strict=True)
            found |= {name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts}
        elif "gate_up_proj" in name:
            parts = zip(("gate", "up"), tensor.chunk(2), strict=True)
            found |= {name.replace("gate_up_proj", f"{part}_proj"): rows for part, rows in parts}
        else:
            found[name] = tensor
    return found


def experts_in_one(model: Tensors) -> Tensors:
    """Mixtral's experts as transformers 5 has them: (expert, out, in), gate and up in one."""
    found: Tensors = {}
    layers: dict[str, dict[tuple[int, str], torch.Tensor]] = {}
    for name, tensor in model.items():
        if match := re.match(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.w([123])\.weight", name):
            layers.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            found[name.replace("block_sparse_moe", "mlp")] = tensor
    for path, each in layers.items():
        numbers = sorted({expert for expert, _ in each})
        gate_up = [torch.cat([each[expert, "1"], each[expert, "3"]]) for expert in numbers]
        found[f"{path}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
        found[f"{path}.mlp.experts.down_proj"] = torch.stack([each[expert, "2"] for expert in numbers])
    return found


def upcycled(model: Tensors) -> Tensors:
    """Two experts in each layer, both a copy of its feed-forward layer."""
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    found: Tensors = {}
    for name, tensor in model.items():
        if match := re.match(r"(.*)\.mlp\.(\w+)\.weight$", name):
            stem = f"{match[1]}.block_sparse_moe.experts"
            found |= {f"{stem}.{expert}.{names[match[2]]}.weight": tensor.clone() for expert in range(2)}
        else:
            found[name] = tensor
    return found


whisper_of_openai = renamed(
    (r"^model\.", ""), (r"\.layers\.", ".blocks."), (r"fc1", "mlp.0"), (r"fc2", "mlp.2"), (r"final_layer_norm", "mlp_ln"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"), (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn\.q_proj", "cross_attn.query"), (r"encoder_attn\.k_proj", "cross_attn.key"),
    (r"encoder_attn\.v_proj", "cross_attn.value"), (r"encoder_attn\.out_proj", "cross_attn.out"),
    (r"self_attn\.q_proj", "attn.query"), (r"self_attn\.k_proj", "attn.key"), (r"self_attn\.v_proj", "attn.value"),
    (r"self_attn\.out_proj", "attn.out"), (r"embed_tokens", "token_embedding"),
    (r"embed_positions\.weight", "positional_embedding"), drop="^proj_out",
)  # fmt: skip


def gpt2_as_linear(model: Tensors) -> Tensors:
    """Every Conv1D as a Linear: (out, in)."""
    turned = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
    return {name: t.T.contiguous() if turned.search(name) else t for name, t in model.items()}


_LANGUAGE = (r"^(?:language_model\.model|model\.language_model)\.", "model.")
language_of = then(
    renamed(_LANGUAGE, (r"^language_model\.lm_head", "lm_head")),
    lambda model: {n: t for n, t in model.items() if re.match(r"model\.(?:layers|embed_tokens|norm)\.|lm_head", n)},
)
llava_of_its_authors = renamed(
    (r"^language_model\.", ""), (r"^multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^multi_modal_projector\.linear_1", "model.mm_projector.0"), (r"^vision_tower\.", "model.vision_tower.vision_tower."),
)  # fmt: skip


def diffusion_of_ldm(model: Tensors) -> Tensors:
    """`unet.` and `text.` of diffusers (two levels, one layer a block) in the names of a single file."""
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    ends = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0",
        "conv_out": "out.2", "conv_in": "input_blocks.0.0",
    }  # fmt: skip

    def inside(kind: str, rest: str) -> str:
        module, _, leaf = rest.partition(".")
        return f"{resnet[module]}.{leaf}" if kind == "resnets" else rest

    def down(m: re.Match[str]) -> str:
        block, rest = int(m["block"]), m["rest"]
        if m["kind"] == "downsamplers":
            return f"input_blocks.{2 + 2 * block}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + 2 * block}.{int(m['kind'] != 'resnets')}.{inside(m['kind'], rest)}"

    def up(m: re.Match[str]) -> str:
        block, number, rest = int(m["block"]), int(m["number"]), m["rest"]
        if m["kind"] == "upsamplers":
            return f"output_blocks.{2 * block + 1}.{1 if block == 0 else 2}.{rest}"
        return f"output_blocks.{2 * block + number}.{int(m['kind'] != 'resnets')}.{inside(m['kind'], rest)}"

    def middle(m: re.Match[str]) -> str:
        at = 1 if m["kind"] == "attentions" else 2 * int(m["number"])
        return f"middle_block.{at}.{inside(m['kind'], m['rest'])}"

    part = r"\.(?P<kind>[a-z]+)\.(?P<number>\d)\.(?P<rest>.*)$"
    found: Tensors = {}
    for name, tensor in model.items():
        if name.startswith("text."):
            found[f"cond_stage_model.transformer.{name[5:]}"] = tensor
            continue
        name = name.removeprefix("unet.")
        for own, theirs in ends.items():
            name = re.sub(rf"^{own}\.", f"{theirs}.", name)
        name = re.sub(r"^down_blocks\.(?P<block>\d)" + part, down, name)
        name = re.sub(r"^up_blocks\.(?P<block>\d)" + part, up, name)
        found["model.diffusion_model." + re.sub(r"^mid_block" + part, middle, name)] = tensor
    return found


_FLUX = (
    (r"^x_embedder", "img_in"), (r"^context_embedder", "txt_in"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"^single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks", "double_blocks"), (r"norm1\.linear", "img_mod.lin"), (r"norm1_context\.linear", "txt_mod.lin"),
    (r"attn\.to_out\.0", "img_attn.proj"), (r"attn\.to_add_out", "txt_attn.proj"), (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"), (r"ff_context\.net\.0\.proj", "txt_mlp.0"), (r"ff_context\.net\.2", "txt_mlp.2"),
    (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"), (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
)  # fmt: skip


def flux_of_bfl(model: Tensors) -> Tensors:
    """q, k and v in one; in single blocks the feed-forward layer with them."""
    found: Tensors = {}
    single: dict[str, list[torch.Tensor]] = {}
    joined = then(
        fused(r"(?<!single_)transformer_blocks\.(?P<i>\d+)\.attn\.to_(?P<part>[qkv])\.(?P<w>weight|bias)$", r"double_blocks.\g<i>.img_attn.qkv.\g<w>"),
        fused(r"(?<!single_)transformer_blocks\.(?P<i>\d+)\.attn\.add_(?P<part>[qkv])_proj\.(?P<w>weight|bias)$", r"double_blocks.\g<i>.txt_attn.qkv.\g<w>"),
        fused(r"single_transformer_blocks\.(?P<i>\d+)\.attn\.to_(?P<part>[qkv])\.(?P<w>weight|bias)$", r"single_blocks.\g<i>.linear1.\g<w>"),
    )(model)  # fmt: skip
    for name, tensor in joined.items():
        if match := re.match(r"single_transformer_blocks\.(\d+)\.proj_mlp\.(weight|bias)", name):
            single.setdefault(f"single_blocks.{match[1]}.linear1.{match[2]}", []).append(tensor)
        else:
            found[name] = tensor
    for name, rest in single.items():
        found[name] = torch.cat([found[name], *rest])
    return renamed(*_FLUX)(found)


def sharing(part: str) -> Callable[[Tensors, Tensors], Tensors]:
    """An unrelated model that took over the tensors whose name shows `part`."""
    return lambda model, other: {n: model[n] if re.search(part, n) else t for n, t in other.items()}


def new_positions(model: Tensors) -> Tensors:
    return {n: torch.randn(1, 26, H) * 0.02 if n == "pos_embed" else t for n, t in model.items()}


new_classifier = with_tensors(renamed(drop="^cls"), classifier__weight=torch.ones(3, H), classifier__bias=torch.ones(3))
reward_model = with_tensors(renamed(drop="lm_head"), score__weight=torch.ones(1, H))
