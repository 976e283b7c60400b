"""Files of other kinds: ONNX graphs, trainers' pickles, diffusers pipelines, LoRA files without a config; and what is
refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from builders import llama
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import BrokenFileError, NoWeightsError

if TYPE_CHECKING:
    from hf_lineage.testing import MiniHub

Tensors = dict[str, torch.Tensor]


def whole(path: Path, **options: Any) -> Tensors:
    found = open_checkpoint(path, **options)
    return dict(zip(found, found.whole([*found]), strict=True))


class TestOnnx:
    @pytest.fixture
    def onnx(self) -> Any:
        return pytest.importorskip("onnx")

    def graph(self, onnx: Any, tensors: dict[str, np.ndarray], nodes: tuple[Any, ...] = ()) -> Any:
        found = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
        return onnx.helper.make_model(onnx.helper.make_graph([*nodes], "g", [], [], found))

    def linear(self, onnx: Any, i: int, op: str = "MatMul", suffix: str = "") -> tuple[Any, Any]:
        """A product with a matrix that lost its name, and the bias that did not."""
        product = onnx.helper.make_node(op, [f"x{i}", f"onnx::MatMul_{i}{suffix}"], [f"y{i}"])
        return product, onnx.helper.make_node("Add", [f"layers.{i}.fc.bias", f"y{i}"], [f"x{i + 1}"])

    def test_nameless_matrices_are_called_as_their_bias(self, onnx: Any, tmp_path: Path) -> None:
        w, b = np.random.randn(6, 4).astype(np.float32), np.random.randn(4).astype(np.float32)
        model = self.graph(onnx, {"onnx::MatMul_0": w, "layers.0.fc.bias": b, "other": w}, self.linear(onnx, 0))
        onnx.save(model, tmp_path / "model.onnx")
        found = whole(tmp_path)
        assert found.keys() == {"layers.0.fc.weight", "layers.0.fc.bias", "other"}
        assert np.array_equal(found["layers.0.fc.weight"].numpy(), w.T) and np.array_equal(found["other"].numpy(), w)

    @pytest.mark.parametrize("external", [False, True])
    def test_every_type_and_external_data(self, external: bool, onnx: Any, tmp_path: Path) -> None:
        arrays = {
            name: np.arange(300).reshape(3, 100).astype(name)
            for name in ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "uint16")
        } | {"scalar": np.array(2.5, dtype=np.float32), "empty": np.zeros((0, 4), dtype=np.float32)}
        model = self.graph(onnx, arrays)
        model.graph.initializer.append(onnx.helper.make_tensor("half", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0]))
        model.graph.initializer.append(onnx.helper.make_tensor("listed", onnx.TensorProto.FLOAT, [2], [0.5, 3.0]))
        onnx.save(
            model,
            tmp_path / "model.onnx",
            save_as_external_data=external,
            location="model.onnx_data",
            size_threshold=64,
        )
        found = whole(tmp_path)
        assert all(np.array_equal(found[name].numpy(), array) for name, array in arrays.items())
        assert found["half"].tolist() == [1.5, -2.0] and found["listed"].tolist() == [0.5, 3.0]

    @pytest.mark.parametrize("way", ["dynamic", "by node"])
    def test_integers_with_a_scale_are_floats(self, way: str, onnx: Any, tmp_path: Path) -> None:
        w = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
        scale = np.float32((w.max() - w.min()) / 255) if way == "dynamic" else np.abs(w).max(0) / np.float32(127)
        zero = np.uint8(round(float(-w.min() / scale))) if way == "dynamic" else np.zeros(64, dtype=np.int8)
        codes = np.round(w / scale) + zero
        if way == "dynamic":
            parts = {"m_quantized": codes.clip(0, 255).astype(np.uint8), "m_scale": scale, "m_zero_point": zero}
            model = self.graph(onnx, {name: np.asarray(value) for name, value in parts.items()})
        else:
            node = onnx.helper.make_node("DequantizeLinear", ["m", "s", "z"], ["w"], axis=1)
            model = self.graph(onnx, {"m": codes.astype(np.int8), "s": scale, "z": zero}, (node,))
        onnx.save(model, tmp_path / "a.onnx")
        checkpoint = open_checkpoint(tmp_path)
        assert [*checkpoint] == ["m"] and str(checkpoint["m"].packing) == "onnx int8, 8 bits"
        assert np.abs(checkpoint.whole(["m"])[0].numpy() - w).max() <= 0.51 * np.max(scale)
        low, high = checkpoint.cells(Slice("m", 0, w.size)) or (torch.ones(1), torch.zeros(1))
        assert (
            float(
                ((low - 1e-5 <= torch.from_numpy(w).reshape(-1)) & (torch.from_numpy(w).reshape(-1) <= high + 1e-5))
                .float()
                .mean()
            )
            > 0.999
        )

    def test_broken_ones(self, onnx: Any, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(b"\xff" * 50)
        with pytest.raises(BrokenFileError, match="no ONNX graph"):
            open_checkpoint(tmp_path)
        model = self.graph(onnx, {"a": np.ones((3, 3), dtype=np.float32)})
        model.graph.initializer[0].dims[0] = 2**40
        onnx.save(model, path)
        with pytest.raises(BrokenFileError, match="'a' has 36 of"):
            open_checkpoint(tmp_path)
        for location, offset, why in (
            ("../x", "0", "outside"),
            ("/etc/passwd", "0", "outside"),
            ("model.onnx", "9999999", "behind"),
        ):
            bad = self.graph(onnx, {"a": np.ones((3, 3), dtype=np.float32)})
            tensor = bad.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            for key, value in (("location", location), ("offset", offset)):
                tensor.external_data.add(key=key, value=value)
            path.write_bytes(bad.SerializeToString())
            with pytest.raises(BrokenFileError, match=why):
                open_checkpoint(tmp_path)
        path.write_bytes(self.graph(onnx, {}).SerializeToString())
        with pytest.raises(NoWeightsError, match="found none"):
            open_checkpoint(tmp_path)

    @pytest.mark.integration
    def test_an_int8_copy_is_found_from_the_safetensors(self, onnx: Any, tmp_path: Path) -> None:
        base = {name: (value / 8) for name, value in llama(0, depth=1, width=64, hidden=128).items()}
        save_file(base, tmp_path / "model.safetensors")
        parts: dict[str, np.ndarray] = {}
        for name, value in base.items():
            if value.ndim == 2 and ".layer" in name:
                scale = value.abs().max() / 127
                parts |= {
                    f"{name}_quantized": (value / scale).round().to(torch.int8).numpy(),
                    f"{name}_scale": scale.numpy(), f"{name}_zero_point": np.int8(0),
                }  # fmt: skip
            else:
                parts[name] = value.numpy()
        onnx.save(self.graph(onnx, {name: np.asarray(value) for name, value in parts.items()}), tmp_path / "int8.onnx")
        told = hl.trace(tmp_path / "int8.onnx", candidates=[tmp_path / "model.safetensors"])
        (found,) = told.candidates
        assert (told.verdict, found.relation, found.facts["scheme"]) == ("parent", "quantized", "onnx int8")


WEIGHTS: Tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}


class TestPickles:
    @pytest.mark.parametrize(
        "held",
        [
            lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w, "optimizer": {"lr": 0.1}},
            lambda w: {"module": {"model": w}}, lambda w: {"model_state_dict": w, "step": 1},
        ],
    )  # fmt: skip
    def test_what_trainers_keep(self, held: Any, tmp_path: Path) -> None:
        torch.save(held(WEIGHTS), tmp_path / "last.ckpt")
        found = whole(tmp_path, allow_pickle=True)
        assert found.keys() == WEIGHTS.keys() and torch.equal(found["a.weight"], WEIGHTS["a.weight"])

    def test_parts_of_every_tensor_are_refused(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "consolidated.00.pth")
        assert whole(tmp_path, allow_pickle=True).keys() == WEIGHTS.keys()
        torch.save(WEIGHTS, tmp_path / "consolidated.01.pth")
        with pytest.raises(NoWeightsError, match="2 tensor-parallel parts"):
            open_checkpoint(tmp_path, allow_pickle=True)


INDEX = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "PNDMScheduler"], "feature_extractor": [None, None], "../../etc": ["a", "b"],
}  # fmt: skip
PARTS: dict[str, Tensors] = {
    "unet": {"conv.weight": torch.randn(8, 4), "b": torch.randn(3)}, "vae": {"conv.weight": torch.randn(2, 2)},
}  # fmt: skip


class TestPipelines:
    def files(self) -> dict[str, bytes]:
        return {
            "model_index.json": json.dumps(INDEX).encode(), "scheduler/scheduler_config.json": b"{}",
            "text_encoder/pytorch_model.bin": b"x",
            **{f"{name}/diffusion_pytorch_model.safetensors": save(tensors) for name, tensors in PARTS.items()},
        }  # fmt: skip

    def check(self, checkpoint: Any) -> None:
        expected = {f"{part}.{name}": value for part, tensors in PARTS.items() for name, value in tensors.items()}
        assert {name: entry.shape for name, entry in checkpoint.items()} == {
            n: tuple(t.shape) for n, t in expected.items()
        }
        names = sorted(expected, reverse=True)
        assert all(torch.equal(v, expected[n]) for n, v in zip(names, checkpoint.whole(names), strict=True))
        (note,) = checkpoint.notes
        assert note.code == "component_not_read" and "text_encoder" in str(note) and "scheduler" not in str(note)

    def test_all_components_at_once(self, tmp_path: Path) -> None:
        for name, raw in self.files().items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(raw)
        self.check(open_checkpoint(tmp_path))
        assert [*open_checkpoint(tmp_path / "vae")] == ["conv.weight"]

    @pytest.mark.integration
    def test_on_the_hub(self, hub: MiniHub) -> None:
        hub.add("lab/sd", self.files())
        checkpoint = open_checkpoint("lab/sd")
        self.check(checkpoint)
        before = checkpoint.bytes_read
        checkpoint.read([Slice("unet.conv.weight", 4, 6)])
        assert checkpoint.bytes_read - before == 8

    def test_without_any_weights(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
        with pytest.raises(NoWeightsError, match="a component with safetensors files"):
            open_checkpoint(tmp_path)


LORAS = {
    "kohya": ("lora_unet_mid_block_attn_to_k.lora_down.weight", "lora_unet_mid_block_attn_to_k.lora_up.weight", "lora_unet_mid_block_attn_to_k.alpha"),
    "diffusers": ("unet.mid_block.attn.to_k.lora_A.weight", "unet.mid_block.attn.to_k.lora_B.weight"),
    "older diffusers": ("mid_block.attn.processor.to_k_lora.down.weight", "mid_block.attn.processor.to_k_lora.up.weight"),
    "lycoris": ("lora_unet_x.hada_w1_a", "lora_unet_x.hada_w1_b", "lora_unet_x.lokr_w1", "lora_unet_x.alpha"),
}  # fmt: skip


class TestLoraFiles:
    @pytest.mark.parametrize("kind", LORAS)
    def test_is_an_adapter_of_what_its_card_declares(self, kind: str, tmp_path: Path) -> None:
        save_file({name: torch.randn(4, 8) for name in LORAS[kind]}, tmp_path / "my_style.safetensors")
        assert open_checkpoint(tmp_path).adapter_base == ""
        (tmp_path / "README.md").write_text("---\nbase_model: lab/base\n---\n")
        found = open_checkpoint(tmp_path)
        assert found.is_adapter and found.adapter_base == "lab/base"

    def test_a_model_with_a_few_factors_is_none(self, tmp_path: Path) -> None:
        save_file({"a.weight": torch.ones(2, 2), "a.lora_A.weight": torch.ones(1, 2)}, tmp_path / "model.safetensors")
        assert not open_checkpoint(tmp_path).is_adapter


@pytest.mark.parametrize(
    ("name", "said"), [("tf_model.h5", "Keras"), ("flax_model.msgpack", "from_flax"), ("m.pdparams", "Paddle")]
)
def test_other_frameworks_are_refused_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NoWeightsError, match=said) as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value) and "safetensors" in str(caught.value)
