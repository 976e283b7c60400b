"""GGUF files: what the library unpacks, in the Hub's names and order; ranges, series, the Hub, and broken headers."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from builders import llama
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.checkpoints.entry import Packing, Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import BrokenFileError, LineageError, MissingExtraError, NoWeightsError

gguf = pytest.importorskip("gguf")

from gguf_files import q4_k, write_gguf  # noqa: E402

if TYPE_CHECKING:
    from hf_lineage.testing import MiniHub

Tensors = dict[str, torch.Tensor]
TYPES = [kind for kind in gguf.quants._type_traits if kind.name not in ("BF16",)]


def model(seed: int = 0, depth: int = 1, width: int = 256) -> Tensors:
    return {name: value / 16 for name, value in llama(seed, depth=depth, width=width, hidden=256, words=60).items()}


def whole(checkpoint: Checkpoint) -> Tensors:
    return dict(zip(checkpoint, checkpoint.whole([*checkpoint]), strict=True))


def bare(path: Path, tensors: dict[str, tuple[np.ndarray, Any]], **facts: Any) -> Path:
    """A file of raw tensors, of the architecture llama."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in facts.items():
        writer.add_uint32(name.replace("__", "."), value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", TYPES, ids=[kind.name for kind in TYPES])
def test_every_type_of_the_library(kind: Any, tmp_path: Path) -> None:
    """Random blocks, in whole and by ranges, as the library unpacks them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 256, (6, 512 // block * size), dtype=np.uint8)
    checkpoint = open_checkpoint(bare(tmp_path / "a.gguf", {"x.weight": (raw, kind)}))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    assert checkpoint["x.weight"].shape == (6, 512) and checkpoint["x.weight"].nbytes == raw.nbytes
    (found,) = checkpoint.whole(["x.weight"])
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    (part,) = checkpoint.read([Slice("x.weight", 700, 2000)])
    assert torch.equal(part.nan_to_num(), expected.reshape(-1)[700:2000].nan_to_num())
    packing = checkpoint["x.weight"].packing
    assert packing is not None and packing.scheme == kind.name and str(packing.bits) in kind.name


def test_q4_k_by_loop() -> None:
    """The library's Q4_K against its definition, one weight after the other (ggml's dequantize_row_q4_K)."""
    w = np.random.default_rng(2).normal(size=(2, 512)).astype(np.float32)
    raw = q4_k(w)
    expected = np.zeros((2, 512), dtype=np.float32)
    for row in range(2):
        for i, block in enumerate(raw[row].reshape(-1, 144)):
            d, dmin = (float(x) for x in block[:4].copy().view(np.float16))
            for j in range(256):
                g = j // 32
                low = block[4:16].astype(int)
                scale = low[g] & 63 if g < 4 else low[g + 4] & 15 | low[g - 4] >> 6 << 4
                least = low[g + 4] & 63 if g < 4 else low[g + 4] >> 4 | low[g] >> 6 << 4
                code = block[16 + 32 * (g // 2) + j % 32] >> 4 * (g % 2) & 15
                expected[row, 256 * i + j] = d * scale * code - dmin * least
    assert np.allclose(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_K), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - w).max() < 0.4, "the packer rounds"


class TestNamesAndOrder:
    @pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K"])
    def test_a_llama_has_the_names_and_rows_of_the_hub(self, kind: str, tmp_path: Path) -> None:
        stored = model(depth=2)
        found = whole(open_checkpoint(write_gguf(tmp_path / "a.gguf", stored, kind)))
        assert found.keys() == stored.keys()
        slack = {"F32": 0.0, "F16": 1e-3, "Q8_0": 0.01, "Q4_K": 0.1}[kind]
        for name, value in stored.items():
            assert float((found[name].float() - value).norm() / value.norm()) <= slack, name

    @pytest.mark.parametrize("kind", ["F16", "Q8_0"])
    def test_rows_in_pairs_by_ranges(self, kind: str, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", model(), kind))
        name = "model.layers.0.self_attn.q_proj.weight"
        flat = checkpoint.whole([name])[0].reshape(-1)
        for a, b in [
            (0, 256),
            (256, 300),
            (31 * 256, 33 * 256),
            (63 * 256 + 5, 65 * 256 - 7),
            (len(flat) - 9, len(flat)),
        ]:
            assert torch.equal(checkpoint.read([Slice(name, a, b)])[0], flat[a:b])

    def test_a_bert(self, tmp_path: Path) -> None:
        names = {
            "embeddings.word_embeddings.weight": (60, 64), "embeddings.position_embeddings.weight": (16, 64),
            "embeddings.LayerNorm.weight": (64,), "embeddings.LayerNorm.bias": (64,),
            "encoder.layer.0.attention.self.query.weight": (64, 64), "encoder.layer.0.attention.self.query.bias": (64,),
            "encoder.layer.0.attention.output.dense.weight": (64, 64),
            "encoder.layer.0.attention.output.LayerNorm.weight": (64,),
            "encoder.layer.0.intermediate.dense.weight": (128, 64), "encoder.layer.0.output.dense.weight": (64, 128),
            "encoder.layer.0.output.LayerNorm.bias": (64,),
        }  # fmt: skip
        stored = {name: torch.randn(shape) for name, shape in names.items()}
        found = whole(open_checkpoint(write_gguf(tmp_path / "a.gguf", stored, "F32", "bert")))
        assert found.keys() == stored.keys() and all(torch.equal(found[n], t) for n, t in stored.items())

    def test_stacked_experts_are_one_matrix_each(self, tmp_path: Path) -> None:
        w = np.random.default_rng(3).normal(size=(3, 8, 64)).astype(np.float32)
        raw = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
        kind = gguf.GGMLQuantizationType.Q8_0
        path = bare(tmp_path / "a.gguf", {"blk.0.ffn_up_exps.weight": (raw, kind)}, llama__block_count=1)
        found = whole(open_checkpoint(path))
        assert [*found] == [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(3)]
        assert all(np.abs(value.numpy() - w[i]).max() < 0.05 for i, value in enumerate(found.values()))


class TestFiles:
    def test_several_are_asked_about(self, tmp_path: Path) -> None:
        for kind in ("F16", "Q8_0"):
            write_gguf(tmp_path / f"m.{kind}.gguf", model(), kind)
        write_gguf(tmp_path / "mmproj-m.gguf", model(), "F16")
        with pytest.raises(NoWeightsError, match=r"found 2: m\.F16\.gguf, m\.Q8_0\.gguf"):
            open_checkpoint(tmp_path)
        assert len(open_checkpoint(tmp_path / "m.Q8_0.gguf")) == len(model())

    def test_a_series(self, tmp_path: Path) -> None:
        stored = model()
        names = sorted(stored)
        for i, part in enumerate((names[:4], names[4:]), 1):
            write_gguf(tmp_path / f"m-0000{i}-of-00002.gguf", {name: stored[name] for name in part}, "F32")
        found = whole(open_checkpoint(tmp_path))
        assert found.keys() == stored.keys() and all(torch.equal(found[name], t) for name, t in stored.items())
        (tmp_path / "m-00002-of-00002.gguf").unlink()
        with pytest.raises(NoWeightsError, match=r"m-00002-of-00002\.gguf is missing"):
            open_checkpoint(tmp_path)

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_gguf(tmp_path / "a.gguf", model())
        monkeypatch.setitem(__import__("sys").modules, "gguf", None)
        with pytest.raises(MissingExtraError, match=r"hf_lineage\[gguf\]"):
            open_checkpoint(path)

    def test_a_type_that_is_not_unpacked_is_named(self, tmp_path: Path) -> None:
        kind = gguf.GGMLQuantizationType.Q8_K
        raw = np.zeros((4, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        path = bare(tmp_path / "a.gguf", {"x.weight": (raw, kind), "y": (np.ones(3, np.float32), None)})
        checkpoint = open_checkpoint(path)
        assert [*checkpoint] == ["y"] and checkpoint.skipped == ("x.weight (Q8_K)",)
        assert checkpoint.skipped_bytes == raw.nbytes


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file."""
    return write_gguf(tmp_path_factory.mktemp("good") / "a.gguf", model(width=32), "Q8_0").read_bytes()


class TestHostile:
    @pytest.mark.parametrize(
        ("at", "value", "why"),
        [
            (0, b"GGML", "expected a GGUF file"), (4, struct.pack("<I", 1), "version is 1"),
            (4, struct.pack(">I", 3), "little-endian"), (8, struct.pack("<Q", 2**40), "it claims"),
            (16, struct.pack("<Q", 2**63), "it claims"), (24, struct.pack("<Q", 2**62), "goes on beyond byte"),
        ],
    )  # fmt: skip
    def test_what_contradicts_itself(self, at: int, value: bytes, why: str, good: bytes, tmp_path: Path) -> None:
        raw = bytearray(good)
        raw[at : at + len(value)] = value
        (tmp_path / "a.gguf").write_bytes(raw)
        with pytest.raises(BrokenFileError, match=why):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("size", [0, 3, 20, 100, 5000])
    def test_what_was_cut_off(self, size: int, good: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(good[:size])
        with pytest.raises(BrokenFileError):
            open_checkpoint(tmp_path)

    def test_random_changes_of_the_header(self, good: bytes, tmp_path: Path) -> None:
        """It opens, and what it seems to hold can be read; or one line says what is broken."""
        rng = random.Random(7)
        header = len(good) - good[::-1].find(b"ahpla")  # somewhere; the tables lie in front
        for _ in range(150):
            raw = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                at = rng.choice((rng.randrange(24, 400), rng.randrange(len(good) // 3), header // 2))
                raw[at] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
            (tmp_path / "a.gguf").write_bytes(raw)
            try:
                checkpoint = open_checkpoint(tmp_path)
                checkpoint.whole([name for name in checkpoint if checkpoint[name].count < 10**6])
            except LineageError as error:
                assert len(str(error)) < 600


@pytest.mark.integration
class TestTrace:
    @pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K"])
    def test_what_trace_says(self, kind: str, tmp_path: Path) -> None:
        width = 256 if kind == "Q4_K" else 64  # of a block
        base = {name: value.bfloat16() for name, value in model(width=width).items()}
        copy = write_gguf(tmp_path / "copy" / "a.gguf", base, kind)
        beside = {n: (v.float() + 0.02 * v.float().std() * torch.randn(v.shape)).bfloat16() for n, v in base.items()}
        for name, tensors in {"base": base, "beside": beside, "other": model(2, width=width)}.items():
            (tmp_path / name).mkdir()
            save_file(tensors, tmp_path / name / "model.safetensors")
        told = hl.trace(copy, candidates=[tmp_path / "base"])
        found = told.candidates[0]
        assert told.parent == str(tmp_path / "base") and found.relation == "quantized"
        assert (found.facts["scheme"], found.facts["bits"]) == (kind, int(kind[1]))
        assert found.p_value is not None and found.p_value < 1e-10
        (found,) = hl.trace(copy, candidates=[tmp_path / "beside"]).candidates
        assert found.first is None and found.relation in ("common_origin", "partial")
        (found,) = hl.trace(tmp_path / "beside", candidates=[copy]).candidates
        assert found.first is None and found.relation in ("common_origin", "partial")
        if kind == "Q8_0":
            assert hl.trace(copy, candidates=[tmp_path / "other"]).verdict == "none"


@pytest.mark.integration
def test_on_the_hub_a_range_costs_a_range(hub: MiniHub, tmp_path: Path) -> None:
    stored = model(width=512)
    path = write_gguf(tmp_path / "m.Q8_0.gguf", stored, "Q8_0")
    hub.add("lab/m-GGUF", {"m.Q8_0.gguf": path.read_bytes()})
    checkpoint = open_checkpoint("lab/m-GGUF")
    before = checkpoint.bytes_read
    name = "model.layers.0.mlp.down_proj.weight"
    (found,) = checkpoint.read([Slice(name, 0, 2560)])
    assert torch.allclose(found, stored[name].reshape(-1)[:2560], atol=0.01)
    assert checkpoint.bytes_read - before <= 2560 // 32 * 34 and checkpoint[name].packing == Packing("Q8_0", 8)
    assert len(open_checkpoint("lab/m-GGUF/m.Q8_0.gguf")) == len(stored)
