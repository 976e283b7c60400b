"""Checkpoints of one model under two conventions: the same tensors pair, and both views read the same numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

import hf_lineage as hl
from hf_lineage.architecture import conventions, structure
from hf_lineage.architecture import describe as descriptions
from hf_lineage.architecture.align import align
from hf_lineage.architecture.conventions import CONVENTIONS, FUSED, by_kind, canonical_names, fused_parts
from hf_lineage.architecture.describe import describe
from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.checkpoints.entry import Entry, Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.view import View

Tensors = dict[str, torch.Tensor]
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 16,
       "patch_size": 8, "num_labels": 3, "layer_norm_eps": 1e-6}  # fmt: skip


def view(model: Path | torch.nn.Module) -> View:
    checkpoint = open_checkpoint(model)
    return View(checkpoint, fused_parts(checkpoint))


def stored(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def entries(shapes: dict[str, tuple[int, ...]]) -> dict[str, Entry]:
    return {name: Entry(name, "F32", shape, 0) for name, shape in shapes.items()}


def whole(model: Checkpoint, name: str) -> torch.Tensor:
    return model.read([Slice(name, 0, model[name].count)])[0]


def assert_the_same(a: Checkpoint, b: Checkpoint) -> None:
    """Every trunk tensor has its partner, both ways, with equal numbers."""
    for child, candidate in [(a, b), (b, a)]:
        alignment = align(child, candidate)
        assert alignment.coverage == 1.0, alignment.unmatched
        assert not alignment.unmatched and len(set(alignment.pairs.values())) == len(alignment.pairs)
        for ours, theirs in alignment.pairs.items():
            assert torch.equal(whole(child, ours), whole(candidate, theirs)), (ours, theirs)
    assert describe(a).orders.keys() == describe(b).orders.keys()


def renamed(tensors: Tensors, table: Iterable[tuple[str, str]]) -> Tensors:
    """By hand and written to be read: the first pattern that matches a whole name says its new one."""
    result = {}
    for name, tensor in tensors.items():
        pattern, spelling = next((p, s) for p, s in table if re.fullmatch(p, name))
        if "{}" in spelling:
            for part, letter in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                result[re.sub(pattern, spelling.replace("{}", letter), name)] = part
        else:
            result[re.sub(pattern, spelling, name)] = tensor
    return result


TIMM_TO_VIT = (
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d)\.norm1\.(\w+)", r"vit.encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d)\.norm2\.(\w+)", r"vit.encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d)\.attn\.qkv\.(\w+)", r"vit.encoder.layer.\1.attention.attention.{}.\2"),
    (r"blocks\.(\d)\.attn\.proj\.(\w+)", r"vit.encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d)\.mlp\.fc1\.(\w+)", r"vit.encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d)\.mlp\.fc2\.(\w+)", r"vit.encoder.layer.\1.output.dense.\2"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
)


class TestViT:
    @pytest.fixture
    def timm_vit(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3
        ).eval()

    @pytest.fixture
    def folder(self, timm_vit: torch.nn.Module, tmp_path: Path) -> Path:
        """What `save_pretrained` writes, with timm's weights in it."""
        folder = tmp_path / "hf"
        hf.ViTForImageClassification(hf.ViTConfig(**VIT)).save_pretrained(folder)
        tensors = renamed(timm_vit.state_dict(), TIMM_TO_VIT)
        assert tensors.keys() == load_file(folder / "model.safetensors").keys()
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        return folder

    def test_timm_and_transformers(self, timm_vit: torch.nn.Module, folder: Path, tmp_path: Path) -> None:
        theirs = view(stored(timm_vit.state_dict(), tmp_path / "timm"))
        assert_the_same(theirs, view(folder))
        assert describe(theirs).heads == {"head.weight", "head.bias"}
        assert describe(view(folder)).heads == {"classifier.weight", "classifier.bias"}
        for child, candidate in ((folder, tmp_path / "timm"), (tmp_path / "timm", folder)):
            assert hl.trace(child, [candidate]).verdict == "identical"

    def test_the_conversion_is_right_and_modules_line_up_too(self, timm_vit: torch.nn.Module, folder: Path) -> None:
        """transformers 5 renames while it loads: a module has other names than its own file."""
        model = hf.ViTForImageClassification.from_pretrained(folder).eval()
        assert model.state_dict().keys() != dict(open_checkpoint(folder)).keys()
        image = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(model(image).logits, timm_vit(image), atol=1e-5)
        assert_the_same(view(timm_vit), view(model))
        assert_the_same(view(folder), view(model))

    def test_deit_with_two_tokens_and_two_heads(self) -> None:
        with torch.device("meta"):
            ours = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, embed_dim=32, num_heads=4)
            config = hf.DeiTConfig(
                **VIT | {"num_hidden_layers": 1, "image_size": 224, "patch_size": 16, "num_labels": 1000}
            )
            theirs = hf.DeiTForImageClassificationWithTeacher(config)
        ours, theirs = (entries({n: tuple(t.shape) for n, t in m.state_dict().items()}) for m in (ours, theirs))
        assert set(canonical_names(theirs)) - set(canonical_names(ours)) == {
            f"blocks.0.attn.{letter}.{kind}" for letter in "qkv" for kind in ("weight", "bias")
        }  # what a view cuts
        assert not {n for n in align(theirs, ours).unmatched if "attention" not in n}

    def test_dinov2(self) -> None:
        with torch.device("meta"):
            sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
            theirs = hf.Dinov2Model(hf.Dinov2Config(**sizes, image_size=518, patch_size=14))
            ours = timm.create_model("vit_small_patch14_dinov2", depth=1, embed_dim=32, num_heads=4)
        a, b = (entries({n: tuple(t.shape) for n, t in m.state_dict().items()}) for m in (theirs, ours))
        assert set(canonical_names(b)) - {n for n in canonical_names(b) if "qkv" in n} < set(canonical_names(a))


class TestResNet:
    @pytest.mark.parametrize(("layer_type", "block", "wide"), [("basic", BasicBlock, 1), ("bottleneck", Bottleneck, 4)])
    def test_timm_and_transformers(self, layer_type: str, block: type, wide: int, tmp_path: Path) -> None:
        torch.manual_seed(0)
        ours = ResNet(block, [2, 1, 1, 1], num_classes=3).eval()
        sizes = [wide * width for width in (64, 128, 256, 512)]
        config = hf.ResNetConfig(
            embedding_size=64, hidden_sizes=sizes, depths=[2, 1, 1, 1], layer_type=layer_type, num_labels=3
        )
        model = hf.ResNetForImageClassification(config).eval()

        def by_hand(name: str) -> str:
            name = name.replace("fc.", "classifier.1.")
            name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
            name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
            for stage in range(4):
                name = re.sub(rf"^layer{stage + 1}\.(\d)\.", rf"resnet.encoder.stages.{stage}.layers.\1.", name)
            for number in range(3):
                name = name.replace(f".conv{number + 1}.", f".layer.{number}.convolution.")
                name = name.replace(f".bn{number + 1}.", f".layer.{number}.normalization.")
            return name.replace("downsample.0.", "shortcut.convolution.").replace(
                "downsample.1.", "shortcut.normalization."
            )

        model.load_state_dict({by_hand(name): tensor for name, tensor in ours.state_dict().items()})
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.allclose(model(image).logits, ours(image), atol=1e-3)
        model.save_pretrained(tmp_path / "hf")
        assert_the_same(view(ours), view(tmp_path / "hf"))
        assert_the_same(view(ours), view(model))
        assert describe(view(ours)).residual.keys() == describe(view(model)).residual.keys()


class TestExperts:
    """transformers 5 stacks the experts of a layer in a module, and writes them one by one."""

    @pytest.mark.parametrize("family", ["mixtral", "qwen2 moe"])
    def test_stacked_and_single(self, family: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        if family == "mixtral":
            config = hf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=3)
            model: torch.nn.Module = hf.MixtralForCausalLM(config)
        else:
            moe = {"num_experts": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
            model = hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**TEXT, num_key_value_heads=2, **moe))
        model.save_pretrained(tmp_path / "saved")
        assert_the_same(view(model), view(tmp_path / "saved"))
        found = describe(view(model))
        assert found.orders["layers.1.mlp.experts.2"] == (
            "model.layers.1.mlp.experts.gate_up_proj[2.gate]", "model.layers.1.mlp.experts.gate_up_proj[2.up]",
        )  # fmt: skip
        assert found.reads["layers.1.mlp.experts.2"] == ("model.layers.1.mlp.experts.down_proj[2]",)

    def test_the_other_layout_is_not_cut(self) -> None:
        """GPT-OSS: (expert, in, out), gate and up interleaved."""
        stacked = entries({"mlp.experts.gate_up_proj": (3, 32, 48), "mlp.experts.down_proj": (3, 24, 32)})
        assert fused_parts(stacked) == {}


def test_phi_and_its_split_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fused = hf.Phi3ForCausalLM(
        hf.Phi3Config(**TEXT, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    split = {}
    for name, tensor in fused.state_dict().items():
        if "qkv_proj" in name:
            for letter, part in zip("qkv", tensor.split([32, 16, 16]), strict=True):
                split[name.replace("qkv_proj", f"{letter}_proj")] = part
        elif "gate_up_proj" in name:
            for letter, part in zip(("gate", "up"), tensor.chunk(2), strict=True):
                split[name.replace("gate_up_proj", f"{letter}_proj")] = part
        else:
            split[name] = tensor
    hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_key_value_heads=2)).load_state_dict(split)  # are Llama's own names
    assert_the_same(view(fused), view(stored(split, tmp_path / "split")))
    mlp = "model.layers.0.mlp.gate_up_proj.weight"
    assert describe(view(fused)).orders["layers.0.mlp"] == (f"{mlp}[gate]", f"{mlp}[up]")


def test_clip_as_openai_and_as_transformers_store_it(tmp_path: Path) -> None:
    sizes = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    torch.manual_seed(0)
    config = hf.CLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 7, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    theirs = {n: t for n, t in hf.CLIPModel(config).state_dict().items() if "position_ids" not in n}
    attention = torch.nn.MultiheadAttention(32, 4).state_dict()
    ours: Tensors = {}
    for tower, start in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for layer in range(2):
            old, new = f"{tower}.encoder.layers.{layer}", f"{start}.resblocks.{layer}"
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                ours[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
                ours[f"{new}.attn.out_proj.{kind}"] = theirs[f"{old}.self_attn.out_proj.{kind}"]
                for a, b in (
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    ours[f"{new}.{b}.{kind}"] = theirs[f"{old}.{a}.{kind}"]
            assert {n.removeprefix(f"{new}.attn.") for n in ours if n.startswith(f"{new}.attn.")} == attention.keys()
    for kind in ("weight", "bias"):
        for a, b in (("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
                     ("text_model.final_layer_norm", "ln_final")):  # fmt: skip
            ours[f"{b}.{kind}"] = theirs[f"{a}.{kind}"]
    ours["visual.conv1.weight"] = theirs["vision_model.embeddings.patch_embedding.weight"]
    ours["visual.class_embedding"] = theirs["vision_model.embeddings.class_embedding"]
    ours["visual.positional_embedding"] = theirs["vision_model.embeddings.position_embedding.weight"]
    ours["token_embedding.weight"] = theirs["text_model.embeddings.token_embedding.weight"]
    ours["positional_embedding"] = theirs["text_model.embeddings.position_embedding.weight"]
    ours["logit_scale"] = theirs["logit_scale"]
    theirs = {n: t for n, t in theirs.items() if "projection" not in n}  # transposed there: no pair
    a, b = view(stored(ours, tmp_path / "openai")), view(stored(theirs, tmp_path / "hf"))
    assert_the_same(a, b)
    assert describe(a).residual.keys() == {"text_model.encoder.layers", "vision_model.encoder.layers"}


WRAPPED = {
    "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight": (32, 32),
    "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight": (4, 32),
    "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.default.weight": (32, 4),
    "base_model.model.bert.embeddings.word_embeddings.lora_embedding_A.default": (4, 50),
    "base_model.model.classifier.original_module.weight": (2, 32),
    "base_model.model.classifier.modules_to_save.default.weight": (2, 32),
}


class TestPEFT:
    def test_names(self) -> None:
        found = describe(entries(WRAPPED))
        own = {"lora_A", "lora_B", "lora_embedding_A", "original_module"}
        assert {n for n in WRAPPED if any(word in n for word in own)} == found.left_out.keys()
        assert set(found.left_out.values()) == {"an adapter's own tensor"}
        plain = entries({"bert.encoder.layer.0.attention.self.query.weight": (32, 32), "classifier.weight": (2, 32)})
        alignment = align(entries(WRAPPED), plain)
        assert alignment.coverage == 1.0 and not alignment.unmatched and len(alignment.pairs) == 2

    def test_two_trained_copies_are_not_merged(self) -> None:
        """That convention is left out, the others still apply."""
        names = [f"base_model.model.classifier.modules_to_save.{adapter}.weight" for adapter in ("a", "b")]
        assert [*canonical_names([*names, "base_model.model.q.base_layer.weight"])] == [
            "classifier.modules_to_save.a.weight", "classifier.modules_to_save.b.weight", "q.weight",
        ]  # fmt: skip

    def test_a_wrapped_fused_layer_is_cut(self) -> None:
        parts = fused_parts(entries({"base_model.model.blocks.0.attn.qkv.base_layer.weight": (96, 32)}))
        (name,) = parts
        assert [*canonical_names(f"{name}[{label}]" for label, _, _ in parts[name])][1] == "blocks.0.attn.k.weight"


REFUSED: dict[str, dict[str, tuple[int, ...]]] = {
    "not three squares": {"attn.qkv.weight": (96, 30)},
    "a convolution": {"attn.qkv.weight": (96, 32, 1, 1)},
    "a bias alone": {"attn.qkv.bias": (96,)},
    "no output projection": {"self_attn.qkv_proj.weight": (64, 32)},
    "keys that divide no queries": {"self_attn.qkv_proj.weight": (72, 32), "self_attn.o_proj.weight": (32, 32)},
    "nothing for the keys": {"self_attn.qkv_proj.weight": (32, 32), "self_attn.o_proj.weight": (32, 32)},
    "gate without down": {"mlp.gate_up_proj.weight": (64, 32)},
    "interleaved heads": {"attention.query_key_value.weight": (96, 32)},
    "transposed": {"attn.c_attn.weight": (32, 96)},
    "empty": {"attn.qkv.weight": (0, 0), "mlp.experts.gate_up_proj": (9, 0, 0), "mlp.experts.down_proj": (9, 0, 0)},
    "a header that lies": {"mlp.experts.gate_up_proj": (1 << 40, 2, 1), "mlp.experts.down_proj": (1 << 40, 1, 1)},
    "a scalar": {"qkv.weight": (), "in_proj_weight": (), "qkv_proj.weight": (), "gate_up_proj.weight": ()},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_row_range_is_not_cut(case: str) -> None:
    assert fused_parts(entries(REFUSED[case])) == {}


def test_parts_cover_a_tensor_without_gap() -> None:
    shapes = {
        "a.attn.qkv.weight": (96, 32), "a.attn.qkv.bias": (96,), "a.in_proj_weight": (96, 32), "a.in_proj_bias": (96,),
        "b.qkv_proj.weight": (64, 32), "b.qkv_proj.bias": (64,), "b.o_proj.weight": (32, 32),
        "c.gate_up_proj.weight": (48, 32), "c.down_proj.weight": (32, 24),
        "d.experts.gate_up_proj": (3, 48, 32), "d.experts.down_proj": (3, 32, 24),
    }  # fmt: skip
    found = fused_parts(entries(shapes))
    assert shapes.keys() - found.keys() == {"b.o_proj.weight", "c.down_proj.weight"}
    for name, parts in found.items():
        rows = shapes[name][0] * (shapes[name][1] if len(shapes[name]) == 3 else 1)
        edges = [edge for _, *part in parts for edge in part]
        assert edges[0] == 0 and edges[-1] == rows and edges[1:-1:2] == edges[2::2]
        assert len({label for label, _, _ in parts}) == len(parts)


class TestUnrelated:
    def test_bert_is_no_vit(self) -> None:
        with torch.device("meta"):
            bert = hf.BertModel(hf.BertConfig(**TEXT)).state_dict()
            vit = timm.models.VisionTransformer(
                img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2
            )
        a = entries({n: tuple(t.shape) for n, t in bert.items()})
        b = view_of_shapes({n: tuple(t.shape) for n, t in vit.state_dict().items()})
        assert align(a, b).coverage == 0.0 == align(b, a).coverage
        assert "encoder.layer.0" in describe(a).orders  # BERT keeps its own names

    def test_a_convention_needs_its_sign(self) -> None:
        """What only resembles one row of a convention is left alone."""
        names = ["classifier.1.weight", "encoder.layer.0.output.dense.weight", "embeddings.cls_token", "ls1.gamma",
                 "layers.0.attention.q_proj.weight", "visual.conv1.weight", "layers.0.mlp.gate.weight", "layernorm.bias"]  # fmt: skip
        assert [*canonical_names(names)] == names


def view_of_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Entry]:
    """The keys a view has, for models whose weights do not matter."""
    found: dict[str, tuple[int, ...]] = {}
    parts = fused_parts(entries(shapes))
    for name, shape in shapes.items():
        found |= {f"{name}[{label}]": (stop - first, *shape[1:][-1:]) for label, first, stop in parts.get(name, ())}
        found |= {} if name in parts else {name: shape}
    return entries(found)


# For each convention, names that show its sign
EXAMPLES = {
    "wrappers": ["module.model.norm.weight", "model.layers._fsdp_wrapped_module.0.bias"],
    "peft base layer": ["q.base_layer.weight"],
    "peft trained copy": ["head.modules_to_save.default.bias"],
    "tensorflow norm": ["embeddings.LayerNorm.gamma", "embeddings.LayerNorm.beta"],
    "fused parts": ["0.attn.qkv.weight[q]", "0.attn.in_proj_bias[k]", "0.mlp.experts.gate_up_proj[7.up]"],
    "transformers vit": ["encoder.layer.0.layernorm_before.bias", "encoder.layer.0.attention.attention.key.bias"],
    "transformers resnet": [
        "embedder.embedder.convolution.weight", "encoder.stages.1.layers.0.layer.1.normalization.bias",
    ],
    "openai clip": ["visual.transformer.resblocks.0.ln_1.bias", "visual.transformer.resblocks.0.mlp.c_fc.bias"],
    "mixtral experts": ["layers.0.block_sparse_moe.experts.3.w2.weight"],
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
class TestEveryConvention:
    def test_it_spells_its_examples_anew_once_and_for_all(self, name: str) -> None:
        convention, names = CONVENTIONS[name], EXAMPLES[name]
        assert convention.sign.search("\n".join(names))
        once = [*canonical_names(names)]
        assert not {*once} & {*names} and len({*once}) == len(names)
        assert [*canonical_names(once)] == once

    def test_it_leaves_names_without_its_sign(self, name: str) -> None:
        plain = ["layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight", "norm.weight"]
        assert [*canonical_names(plain)] == plain
        if CONVENTIONS[name].sign.pattern:
            assert not CONVENTIONS[name].sign.search("\n".join(plain))


def test_every_convention_has_examples() -> None:
    assert EXAMPLES.keys() == CONVENTIONS.keys()


NAMED = [
    "model.layers.{}.mlp.experts.{}.gate_proj.weight", "h.{}.attn.c_attn.weight", "h.{}.mlp.c_proj.weight",
    "layer2.{}.conv1.weight", "encoder.stages.{}.layers.{}.layer.{}.convolution.weight", "blocks.{}.attn.qkv.weight",
    "layer3.{}.downsample.{}.weight", "h.{}.attn.bias", "heads.{}.bias", "{}.{}.weight", "encoder.block.{}.layer.{}.x",
    "stages.{}.blocks.{}.pwconv1.weight", "model.layers.{}.mlp.experts.gate_up_proj", "blocks.{}.conv{}.weight",
    "layers.{}.lora_A.{}.weight", "layers.{}.self_attn.{}.q_proj.weight", "model.{}.num_batches_tracked", "²[²].{}",
]  # fmt: skip


def test_a_pattern_that_matches_a_name_matches_its_kind_at_the_same_components() -> None:
    """So a kind is asked in the place of all its names: of every pattern of the two modules, and of each group."""
    patterns = [found for module in (conventions, descriptions) for found in vars(module).values()]
    patterns = [*(found for found in patterns if isinstance(found, re.Pattern)), *FUSED]
    patterns += [rule.rows for rule in descriptions._UNIT_ROWS]
    numbers, matched = random.Random(0), 0
    for name in (form.format(*(numbers.choice(["0", "7", "12", "305"]) for _ in range(3))) for form in NAMED * 20):
        [kind] = by_kind([name])
        for pattern in patterns:
            if found := pattern.search(name):
                asked = pattern.search(kind)
                assert asked is not None, (name, pattern)
                # where a group begins and ends, in components from the end
                ends = [[text[at:].count(".") for at in m.span()] for m, text in ((found, name), (asked, kind))]
                assert ends[0] == ends[1], (name, pattern)
                matched += 1
    assert matched > 500


def test_a_header_is_described_and_cut_once() -> None:
    shapes = {"layers.0.mlp.fc1.weight": (64, 32), "layers.0.mlp.fc2.weight": (32, 64)}
    first, again = describe(entries(shapes)), describe(entries(dict(shapes)))
    assert first is again and structure.cuts(entries(shapes)) is structure.cuts(entries(dict(shapes)))
    wider = entries(shapes | {"layers.0.mlp.fc1.weight": (64, 48)})
    whole_numbers = {name: Entry(name, "I32", shape, 0) for name, shape in shapes.items()}
    assert first.weights and not describe(whole_numbers).weights and describe(wider).weights
    assert len({id(describe(each)) for each in (entries(shapes), wider, whole_numbers)}) == 3
