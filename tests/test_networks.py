"""Networks built from a config give what the library's own loading gives, and a stranger's config gets nothing else."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from builders import put
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import ArgumentError, CheckpointError
from hf_lineage.experiments import families, family_file
from hf_lineage.experiments.families import Family, Member
from hf_lineage.features.evidence import Settings
from hf_lineage.features.networks import Images, Network, Tokens, build, run_inputs, taps, upstream, weights
from hf_lineage.features.perceptron import FullyConnected

pytestmark = pytest.mark.integration

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 2, 1, 1]}
DETR = {
    "use_timm_backbone": False, "backbone": None, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "num_queries": 5,
}  # fmt: skip


def detr() -> Any:
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    return transformers.DetrConfig(**DETR, backbone_config=backbone)


# class → config, first block, number of blocks
CLASSES: dict[str, tuple[Any, str, int]] = {
    "ViTForImageClassification": (
        lambda: transformers.ViTConfig(**TEXT, image_size=16, patch_size=8, num_channels=1), "vit.layers.0", 2,
    ),
    "ResNetForImageClassification": (
        lambda: transformers.ResNetConfig(**RESNET), "resnet.encoder.stages.0.layers.0", 5,
    ),
    "BertForSequenceClassification": (
        lambda: transformers.BertConfig(**TEXT, max_position_embeddings=32), "bert.encoder.layer.0", 2,
    ),
    "LlamaForCausalLM": (
        lambda: transformers.LlamaConfig(**TEXT, num_key_value_heads=1, dtype="bfloat16"), "model.layers.0", 2,
    ),
    "GPT2LMHeadModel": (
        lambda: transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60, n_positions=20),
        "transformer.h.0", 3,
    ),
    "T5ForConditionalGeneration": (
        lambda: transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=60),
        "encoder.block.0", 4,
    ),
    "DetrForObjectDetection": (detr, "model.encoder.layers.0", 4),
    "SegformerForSemanticSegmentation": (
        lambda: transformers.SegformerConfig(
            hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, depths=[1, 1, 2, 1], decoder_hidden_size=8
        ),
        "segformer.stages.0.blocks.0", 5,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """No progress bars and advice of transformers between the dots."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and float buffer random: a fresh network hides what is read wrongly behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            random = 0.2 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + random if tensor.ndim == 1 and name.endswith(("weight", "var")) else random)
    return module.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of random models, one for each class."""
    root, made = tmp_path_factory.mktemp("saved"), {}

    def get(name: str) -> tuple[Path, nn.Module]:
        if name not in made:
            torch.manual_seed(0)
            model = shaken(getattr(transformers, name)(CLASSES[name][0]()))
            model.save_pretrained(root / name)
            made[name] = (root / name, model)
        return made[name]

    return get


def example(network: Network, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(network.inputs, Tokens):
        size = (count, min(network.inputs.length, 9))
        return torch.randint(2, network.inputs.vocabulary, size, generator=generator)
    assert isinstance(network.inputs, Images)
    size = (count, network.inputs.channels, min(network.inputs.height, 64), min(network.inputs.width, 64))
    return torch.rand(size, generator=generator)


@torch.no_grad()
def run(network: Network, checkpoint: Checkpoint, probes: Tensor) -> Tensor:
    inputs = run_inputs(network, probes)
    tensors = weights(network, checkpoint)
    output = functional_call(
        network.module, tensors, **({"kwargs": inputs, "args": ()} if isinstance(inputs, dict) else {"args": (inputs,)})
    )
    return output if isinstance(output, Tensor) else output.logits


@torch.no_grad()
def expected(model: nn.Module, network: Network, probes: Tensor) -> Tensor:
    inputs = run_inputs(network, probes)
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def write(folder: Path, config: Any, tensors: dict[str, Tensor]) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def changed(folder: Path, target: Path, **changes: Any) -> Checkpoint:
    """A saved model with another config; None removes a key."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    return write(target, {k: v for k, v in config.items() if v is not None}, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("name", CLASSES)
class TestTransformers:
    def test_outputs_are_those_of_the_loaded_model(self, saved: Any, name: str) -> None:
        folder, _ = saved(name)
        checkpoint = open_checkpoint(folder)
        network = build(checkpoint)
        model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
        probes = example(network)
        assert network.source == "transformers" and not network.missing and not network.module.training
        assert all(parameter.is_meta for parameter in network.module.parameters())
        torch.testing.assert_close(
            run(network, checkpoint, probes), expected(model, network, probes), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch itself
    def test_forward_mode_goes_through(self, saved: Any, name: str) -> None:
        checkpoint = open_checkpoint(saved(name)[0])
        network = build(checkpoint)
        tensors, inputs = weights(network, checkpoint), run_inputs(network, example(network))
        generator = torch.Generator().manual_seed(0)
        floats = {key: tensors[key] for key, _ in network.module.named_parameters()}
        direction = {key: 0.01 * torch.randn(tensor.shape, generator=generator) for key, tensor in floats.items()}

        def logits(changed: dict[str, Tensor]) -> Tensor:
            return functional_call(network.module, {**tensors, **changed}, (), inputs).logits

        output, change = torch.func.jvp(logits, (floats,), (direction,))
        assert output.shape == change.shape and change.isfinite().all() and change.abs().max() > 0

    def test_blocks_and_the_default_tap(self, saved: Any, name: str) -> None:
        _, tap, count = CLASSES[name]
        network = build(open_checkpoint(saved(name)[0]))
        assert network.tap == tap == network.blocks[0] and len(network.blocks) == count
        assert taps(network) == (tap,) and taps(network, "blocks") == network.blocks


class TestNames:
    def test_of_vit_differ_between_file_and_module(self, saved: Any) -> None:
        network = build(open_checkpoint(saved("ViTForImageClassification")[0]))
        assert network.names["vit.layers.0.attention.q_proj.weight"].startswith(
            "vit.encoder.layer.0.attention.attention.query"
        )

    @pytest.mark.parametrize("name", ["ViTForImageClassification", "BertForSequenceClassification"])
    def test_without_the_internal_tables_the_conventions_do(
        self, saved: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = open_checkpoint(saved(name)[0])
        before = build(checkpoint).names
        monkeypatch.setattr("hf_lineage.features.networks._renamed", lambda *a: {})
        assert build(checkpoint).names == before

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
    def test_wrappers_are_seen_through(self, saved: Any, tmp_path: Path, prefix: str) -> None:
        folder, _ = saved("BertForSequenceClassification")
        config = json.loads((folder / "config.json").read_text())
        tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        network = build(write(tmp_path / "x", config, tensors))
        assert (
            not network.missing
            and network.names["bert.embeddings.LayerNorm.bias"] == f"{prefix}bert.embeddings.LayerNorm.bias"
        )

    @pytest.mark.parametrize("name", ["BertForSequenceClassification", "ViTForImageClassification"])
    def test_a_bare_body_fills_all_but_the_head(self, saved: Any, tmp_path: Path, name: str) -> None:
        folder, model = saved(name)
        getattr(model, model.base_model_prefix).save_pretrained(tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config))
        checkpoint = open_checkpoint(tmp_path)
        network = build(checkpoint)
        assert network.missing == ("classifier.weight", "classifier.bias")
        found = weights(network, checkpoint)
        assert found["classifier.weight"].isnan().all()
        assert all(not tensor.isnan().any() for key, tensor in found.items() if key not in network.missing)
        assert taps(network, "blocks") == network.blocks
        with pytest.raises(ArgumentError, match=r"needs 'classifier\.weight'"):
            taps(network, ["classifier"])

    def test_tied_weights_come_once(self, saved: Any) -> None:
        folder, model = saved("GPT2LMHeadModel")
        checkpoint = open_checkpoint(folder)
        network = build(checkpoint)
        found = weights(network, checkpoint)
        assert "lm_head.weight" not in found
        assert torch.equal(found["transformer.wte.weight"], model.lm_head.weight)
        assert all(tensor.device.type == "cpu" for tensor in found.values())

    def test_only_those_asked_for_are_read(self, saved: Any) -> None:
        checkpoint = open_checkpoint(saved("LlamaForCausalLM")[0])
        network = build(checkpoint)
        before = checkpoint.bytes_read
        found = weights(network, checkpoint, ["model.norm.weight", "model.rotary_emb.inv_freq"])
        assert checkpoint.bytes_read - before == 16 * 4
        torch.testing.assert_close(found["model.rotary_emb.inv_freq"], 10000.0 ** -(torch.arange(0, 8, 2) / 8))
        with pytest.raises(ArgumentError, match=r"model\.norm\.weight"):
            weights(network, checkpoint, ["model.norm.wieght"])

    def test_another_checkpoint_must_have_the_tensors(self, saved: Any) -> None:
        network = build(open_checkpoint(saved("LlamaForCausalLM")[0]))
        with pytest.raises(CheckpointError, match="Build a network of its own"):
            weights(network, open_checkpoint(saved("GPT2LMHeadModel")[0]))

    def test_half_precision_is_read_as_float32(self, saved: Any, tmp_path: Path) -> None:
        folder, _ = saved("LlamaForCausalLM")
        config = json.loads((folder / "config.json").read_text())
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
        checkpoint = write(tmp_path / "half", config, tensors)
        found = weights(build(checkpoint), checkpoint)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}

    def test_experts_that_are_merged_are_refused(self, tmp_path: Path) -> None:
        config = transformers.MixtralConfig(**TEXT, num_key_value_heads=1, num_local_experts=2)
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="merges or splits"):
            build(open_checkpoint(tmp_path))


class TestTaps:
    def test_a_wrong_name_is_answered_with_near_ones(self, saved: Any) -> None:
        network = build(open_checkpoint(saved("BertForSequenceClassification")[0]))
        with pytest.raises(ArgumentError, match=r"bert\.encoder\.layer\.1.*named_modules.*blocks"):
            taps(network, ["bert.encoder.layers.1"])
        with pytest.raises(ArgumentError, match="at least one"):
            taps(network, [])
        assert taps(network, "bert.pooler") == ("bert.pooler",) == taps(network, ["bert.pooler"])

    @pytest.mark.parametrize(
        ("name", "used", "unused"),
        [("DetrForObjectDetection", "backbone", "decoder"), ("T5ForConditionalGeneration", "shared", "block.1")],
    )
    def test_upstream_is_all_that_a_tap_depends_on(self, saved: Any, name: str, used: str, unused: str) -> None:
        checkpoint = open_checkpoint(saved(name)[0])
        network = build(checkpoint)
        names = upstream(network.module, network.tap)
        assert any(used in name for name in names) and not any(unused in name for name in names)
        seen: list[Tensor] = []

        class Reached(Exception):
            pass

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])
            raise Reached

        handle = network.module.get_submodule(network.tap).register_forward_hook(stop)
        with pytest.raises(Reached), torch.no_grad():
            functional_call(
                network.module, weights(network, checkpoint, names), (), run_inputs(network, example(network))
            )
        handle.remove()
        assert seen[0].device.type == "cpu" and seen[0].isfinite().all()


def timm_config(architecture: str, classes: int, size: int, **model_args: Any) -> dict[str, Any]:
    return {
        "architecture": architecture, "num_classes": classes, "model_args": model_args,
        "pretrained_cfg": {"input_size": [3, size, size], "fixed_input_size": True, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
    }  # fmt: skip


VIT = timm_config("vit_tiny_patch16_224", 5, 32, patch_size=8, embed_dim=16, depth=3, num_heads=2)
TIMM = {
    "vit": (VIT, "blocks.0", 3),
    "resnet": (timm_config("resnet18", 5, 32, layers=[1, 2, 1, 1], channels=[4, 8, 8, 8]), "layer1.0", 5),
    "convnext": (timm_config("convnext_tiny", 5, 32, depths=[1, 1, 2, 1], dims=[4, 8, 8, 8]), "stages.0.blocks.0", 5),
    "swin": (
        timm_config("swin_tiny_patch4_window7_224", 5, 32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        "layers.0.blocks.0", 2,
    ),
    "regnet": (timm_config("regnetx_002", 5, 32), "s1.b1", 13),
    "densenet": (timm_config("densenet121", 5, 32, growth_rate=2, block_config=[2, 3]), "features.denseblock1.denselayer1", 5),
}  # fmt: skip
FREE = ("resnet", "convnext", "regnet", "densenet")  # of images of any size
for name in FREE:
    TIMM[name][0]["pretrained_cfg"]["fixed_input_size"] = False


class TestTimm:
    @pytest.mark.parametrize("name", TIMM)
    def test_outputs_are_those_of_the_created_model(self, tmp_path: Path, name: str) -> None:
        config, tap, count = TIMM[name]
        size = {} if name in FREE else {"img_size": 32}
        model = shaken(timm.create_model(config["architecture"], num_classes=5, **size, **config["model_args"]))
        checkpoint = write(tmp_path / "x", config, dict(model.state_dict()))
        network = build(checkpoint)
        probes = example(network)
        assert network.inputs == Images(3, 32, 32, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
        assert network.source == "timm" and network.tap == tap and len(network.blocks) == count
        torch.testing.assert_close(
            run(network, checkpoint, probes), expected(model, network, probes), rtol=1e-4, atol=1e-5
        )

    def test_the_flat_form_of_old_configs(self, tmp_path: Path) -> None:
        model = shaken(timm.create_model("resnet10t", num_classes=2))
        config = {
            "architecture": "resnet10t",
            "num_classes": 2,
            "input_size": [3, 64, 48],
            "mean": [0.5] * 3,
            "std": [0.2] * 3,
        }
        network = build(write(tmp_path / "x", config, dict(model.state_dict())))
        assert network.inputs == Images(3, 64, 48, (0.5,) * 3, (0.2,) * 3) and not network.missing

    def test_what_transformers_wraps(self, tmp_path: Path) -> None:
        config = transformers.TimmWrapperConfig(architecture="resnet10t", num_labels=3)
        model = shaken(transformers.TimmWrapperForImageClassification(config))
        model.save_pretrained(tmp_path)
        checkpoint = open_checkpoint(tmp_path)
        network = build(checkpoint)
        probes = example(network)
        torch.testing.assert_close(
            run(network, checkpoint, probes), expected(model, network, probes), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("architecture", families.SIZES)
def test_members_of_families_are_built_from_their_folders(tmp_path: Path, architecture: str) -> None:
    sizes = families._sizes(architecture, None)
    model = shaken(families.build(architecture, 6, sizes))
    recipe = {"classes": 6, "task": "none"}
    member = families.Member(f"family/{architecture}-root-0", architecture, None, 1, recipe, {}, tmp_path / "member")
    families._write(model, member, {"sizes": sizes, "claim": False})
    checkpoint = open_checkpoint(member.path)
    network = build(checkpoint, like=model if architecture == "fc" else None)
    probes = example(network) if architecture != "fc" else torch.rand(3, 1, 28, 28)
    assert network.source == {"fc": "module", "resnet": "timm", "vit": "timm"}.get(architecture, "transformers")
    if architecture in ("resnet", "vit"):
        assert network.inputs == Images(1, 28, 28, (0.0,), (1.0,))
    torch.testing.assert_close(run(network, checkpoint, probes), expected(model, network, probes), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Buffers that are stored and not, a parameter of its own, and ReLU as a module."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("lost", torch.arange(4.0) + 5, persistent=False)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.scale * x + self.kept + self.lost))


class TestLike:
    def test_a_plain_module_runs_with_the_checkpoints_weights(self, tmp_path: Path) -> None:
        mine, theirs = shaken(Odd(), 1).train(), shaken(Odd(), 2)
        before = copy.deepcopy(mine.state_dict())
        checkpoint = write(tmp_path / "x", None, dict(theirs.state_dict()))
        network = build(checkpoint, like=mine)
        x = torch.rand(5, 4)
        torch.testing.assert_close(run(network, checkpoint, x), theirs(x))
        assert network.inputs is None and network.source == "module"
        assert network.tap == "body.1" and network.blocks == ("body.0", "body.1", "body.2", "body.3", "head")
        assert mine.training and all(torch.equal(before[name], tensor) for name, tensor in mine.state_dict().items())
        assert all(not parameter.is_meta for parameter in mine.parameters())

    def test_a_module_is_its_own_like(self) -> None:
        module = shaken(Odd())
        checkpoint = open_checkpoint(module)
        x = torch.rand(2, 4)
        torch.testing.assert_close(run(build(checkpoint, like=module), checkpoint, x), module(x))

    def test_another_head_is_missing_and_no_tap(self) -> None:
        network = build(open_checkpoint(Odd(classes=7)), like=Odd())
        assert network.missing == ("head.weight", "head.bias")
        assert taps(network, "blocks") == ("body.0", "body.1", "body.2", "body.3")

    def test_the_tap_of_a_plain_network_is_its_first_relu(self) -> None:
        module = FullyConnected(12, [8, 6], 3)
        network = build(open_checkpoint(module), like=module)
        assert network.tap == "relu" and network.blocks == ("fc1", "relu", "fc2", "head")

    def test_without_a_relu_the_tap_is_the_second_layer(self) -> None:
        """What the first one makes is linear in its weights: every linearised candidate would equal the child."""
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        assert build(open_checkpoint(module), like=module).tap == "1"

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(CheckpointError, match=r"'fc1.weight' of shape \(8, 12\)"):
            build(open_checkpoint(FullyConnected(13, [8, 6], 3)), like=FullyConnected(12, [8, 6], 3))

    def test_nothing_to_go_by(self) -> None:
        with pytest.raises(CheckpointError, match="as `like`"):
            build(open_checkpoint(Odd()))

    def test_a_module_of_transformers_reads_a_folder_without_config(self, saved: Any, tmp_path: Path) -> None:
        folder, model = saved("ViTForImageClassification")
        checkpoint = write(tmp_path / "x", None, load_file(folder / "model.safetensors"))
        network = build(checkpoint, like=model)
        probes = example(network)
        assert network.source == "transformers" and isinstance(network.inputs, Images)
        torch.testing.assert_close(
            run(network, checkpoint, probes), expected(model, network, probes), rtol=1e-4, atol=1e-5
        )
        assert model.config._attn_implementation != "eager" or network.module.config is not model.config

    def test_it_stands_in_for_remote_code(self, saved: Any, tmp_path: Path) -> None:
        folder, model = saved("BertForSequenceClassification")
        checkpoint = changed(folder, tmp_path / "x", model_type="strange", auto_map={"AutoModel": "x.Y"})
        assert build(checkpoint, like=model).names == build(open_checkpoint(folder)).names


class TestInputs:
    def test_of_text_come_from_the_config(self, saved: Any) -> None:
        assert build(open_checkpoint(saved("BertForSequenceClassification")[0])).inputs == Tokens(60, 32)
        assert build(open_checkpoint(saved("GPT2LMHeadModel")[0])).inputs == Tokens(60, 20)
        assert build(open_checkpoint(saved("LlamaForCausalLM")[0])).inputs == Tokens(60, 64)

    def test_of_images_from_the_config_and_the_preprocessor(self, saved: Any, tmp_path: Path) -> None:
        assert build(open_checkpoint(saved("ViTForImageClassification")[0])).inputs == Images(1, 16, 16, (0.5,), (0.5,))
        folder, _ = saved("ResNetForImageClassification")
        assert build(open_checkpoint(folder)).inputs == Images(3, 224, 224, (0.5,) * 3, (0.5,) * 3)
        changed(folder, tmp_path / "x")
        stated = {"size": {"shortest_edge": 96}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.0]}
        (tmp_path / "x" / "preprocessor_config.json").write_text(json.dumps(stated))
        assert build(open_checkpoint(tmp_path / "x")).inputs == Images(3, 96, 96, (0.1, 0.2, 0.3), (0.5,) * 3)

    def test_sound_has_no_probes(self, tmp_path: Path) -> None:
        sizes = {
            "conv_dim": [8],
            "conv_kernel": [3],
            "conv_stride": [2],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        }
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**TEXT, **sizes)).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="images or text"):
            build(open_checkpoint(tmp_path))


BERT_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil", "architectures": ["Evil"]}, "remote code"),
    "unknown type": ({"model_type": "evil"}, "remote code"),
    "code for a known type": ({"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]}, "remote code"),
    "no class": ({"architectures": None}, "Expected `architectures`"),
    "not a model": ({"architectures": ["BertConfig"]}, "Expected `architectures`"),
    "not a name": ({"architectures": ["utils.hub"]}, "Expected `architectures`"),
    "a list of lists": ({"architectures": [["BertModel"]]}, "Expected `architectures`"),
    "another library's class": ({"architectures": ["LlamaForCausalLM"]}, "makes no network"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
    "too deep": ({"num_hidden_layers": 10**5}, "within 10,000"),
    "many layers": ({"num_hidden_layers": 9999}, "asks for over"),
    "too wide": ({"hidden_size": 10**7}, "within 1,000,000"),
    "wide": ({"hidden_size": 9 * 10**5}, "asks for"),
    "long": ({"max_position_embeddings": 10**9}, "asks for"),
    "text for a number": ({"hidden_size": "x"}, "makes no network"),
    "a wrapper's source": ({"text_config": {"architecture": "hf-hub:evil/model"}}, "architecture of timm"),
    "a wrapper's arguments": ({"vision_config": {"model_args": {"pretrained": True}}}, "to be sizes"),
    "a source elsewhere": ({"x": ["hf-hub:evil/model"]}, "fetch nothing"),
    "endless": ({"hidden_size": 10**400}, "within 1,000,000"),
    "null": ({"num_attention_heads": 0}, "makes no network"),
    "deeply nested": ({"a": json.loads("[" * 40 + "]" * 40)}, "nested too deep"),
}  # fmt: skip
TIMM_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a name of the Hub": ({"architecture": "hf-hub:evil/model"}, "architecture of timm"),
    "a folder": ({"architecture": "local-dir:/etc"}, "architecture of timm"),
    "unknown": ({"architecture": "evilnet"}, "architecture of timm"),
    "not a table": ({"model_args": [1]}, "to be a table"),
    "pretrained": ({"model_args": {"pretrained": True}}, "to be sizes"),
    "an overlay": ({"model_args": {"pretrained_cfg_overlay": {"url": "http://evil"}}}, "to be sizes"),
    "a path": ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "to be sizes"),
    "features": ({"model_args": {"features_only": True}}, "to be sizes"),
    "scripted": ({"model_args": {"scriptable": True}}, "to be sizes"),
    "unknown argument": ({"model_args": {"evil": 1}}, "makes no network"),
    "deep": ({"model_args": {"depth": 10**4}}, "asks for"),
    "deeper": ({"model_args": {"depth": 10**4 + 1}}, "within 10,000"),
    "wide": ({"model_args": {"embed_dim": 192 * 1000}}, "asks for"),
    "large images": ({"model_args": {"img_size": 10**5, "patch_size": 1}}, "asks for"),
    "many classes": ({"num_classes": 10**6}, "asks for"),
    "endless": ({"num_classes": 10**7}, "within"),
}  # fmt: skip


class TestHostile:
    @pytest.mark.parametrize("case", BERT_CHANGES)
    def test_configs_of_transformers(self, saved: Any, tmp_path: Path, case: str) -> None:
        change, words = BERT_CHANGES[case]
        with pytest.raises(CheckpointError, match=words):
            build(changed(saved("BertForSequenceClassification")[0], tmp_path / "x", **change))

    @pytest.mark.parametrize("case", TIMM_CHANGES)
    def test_configs_of_timm(self, tmp_path: Path, case: str) -> None:
        change, words = TIMM_CHANGES[case]
        checkpoint = write(tmp_path / "x", {**VIT, **change}, {"norm.weight": torch.ones(16)})
        with pytest.raises(CheckpointError, match=words):
            build(checkpoint)

    def test_kernels_and_number_formats_are_not_the_configs_to_choose(self, saved: Any, tmp_path: Path) -> None:
        folder, _ = saved("LlamaForCausalLM")
        change = {
            "attn_implementation": "evil/kernel",
            "_attn_implementation": "evil/kernel",
            "auto_map": {"AutoModel": "a.B"},
            "use_cache": True,
        }
        network = build(changed(folder, tmp_path / "x", **change))
        assert network.module.config._attn_implementation == "eager" and network.module.config.use_cache is False

    @pytest.mark.parametrize("backbone", ["evil/backbone", "hf-hub:evil/backbone", "resnet18"])
    def test_a_backbone_is_not_fetched(
        self, saved: Any, tmp_path: Path, backbone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def connect(*args: Any) -> Any:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr(socket.socket, "connect", connect)
        folder, _ = saved("DetrForObjectDetection")
        change = {"backbone": backbone, "use_pretrained_backbone": True, "backbone_config": None}
        with pytest.raises(CheckpointError, match=r"backbone|makes no network"):
            build(changed(folder, tmp_path / "x", **change))

    def test_a_truncated_checkpoint_is_refused(self, saved: Any, tmp_path: Path) -> None:
        folder, _ = saved("BertForSequenceClassification")
        config = json.loads((folder / "config.json").read_text())
        tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "word_embeddings" not in k}
        with pytest.raises(CheckpointError, match="word_embeddings"):
            build(write(tmp_path / "x", config, tensors))

    def test_integers_are_no_weights(self, saved: Any, tmp_path: Path) -> None:
        folder, _ = saved("LlamaForCausalLM")
        config = json.loads((folder / "config.json").read_text())
        tensors = {k: v.to(torch.int8) for k, v in load_file(folder / "model.safetensors").items()}
        with pytest.raises(CheckpointError, match="found none for"):
            build(write(tmp_path / "x", config, tensors))


class TestPerceptron:
    """The demo's family, which no library knows, is run by its config."""

    CONFIG: ClassVar = {"architecture": "fc", "num_classes": 4, "model_args": {"widths": [12, 8]}}

    def put(self, folder: Path, config: dict[str, Any], side: int = 5) -> Path:
        torch.manual_seed(3)
        return put(folder, dict(FullyConnected(side * side, [12, 8], 4).state_dict()), config)

    def test_its_config_suffices(self, tmp_path: Path) -> None:
        network = build(open_checkpoint(self.put(tmp_path / "a", self.CONFIG)))
        assert network.inputs == Images(1, 5, 5, (0.0,), (1.0,)) and not network.missing and network.tap == "relu"

    @pytest.mark.parametrize(
        "change", [{"num_classes": "x"}, {"num_classes": 10**9}, {"model_args": {"widths": [0, 8]}}, {"model_args": {"widths": "12"}}, {"model_args": {"widths": [9] * 99}}]
    )  # fmt: skip
    def test_other_sizes_are_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError):
            build(open_checkpoint(self.put(tmp_path / "a", {**self.CONFIG, **change})))

    def test_a_familys_folders_are_paths_from_any_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        root = Member("family/a", "vit", None, 1, {}, {}, Path("demo/family/a"))
        child = Member("family/b", "vit", "family/a", 2, {}, {}, Path("demo/family/b"))
        family = Family(Path("demo"), (root, child), 0)
        monkeypatch.setattr(family_file, "read_family", lambda folder: (family, {"architecture": "vit"}))
        monkeypatch.setattr(family_file, "run_settings", lambda *_: Settings())
        found = family_file.table(Path("demo"))
        assert found.parents == ("./demo/family/a",) and found.children == {"./demo/family/b": "./demo/family/a"}
