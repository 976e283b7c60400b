"""Checkpoints: looking is free, reading is exact and counted, for every kind and every dtype."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.buffers import LEAST, Buffers
from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.formats import FORMATS
from hf_lineage.checkpoints.local import LocalRepo
from hf_lineage.checkpoints.opener import Opener, open_checkpoint
from hf_lineage.errors import (
    AccessDeniedError,
    BrokenFileError,
    CheckpointError,
    ModelNotFoundError,
    NoWeightsError,
    PickleRefusedError,
)
from hf_lineage.tasks.session import base_of

TENSORS = {
    "b.weight": torch.randn(13, 7), "a.bias": torch.randn(13).half(), "a.weight": torch.randn(5, 3).bfloat16(),
    "long": torch.arange(6), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
}  # fmt: skip
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, value in TENSORS.items():
            self.register_buffer(name.replace(".", "_"), value)


def sharded(folder: Path) -> Path:
    names = sorted(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for shard, members in shards.items():
        save_file({n: TENSORS[n] for n in members}, folder / shard)
    index = {"metadata": {}, "weight_map": {n: shard for shard, members in shards.items() for n in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def lone_file(folder: Path) -> Path:
    save_file(TENSORS, folder / "anything.safetensors")
    return folder / "anything.safetensors"


def pickled(folder: Path) -> Path:
    torch.save(TENSORS, folder / "pytorch_model.bin")
    return folder


KINDS = {"single": single, "sharded": sharded, "lone file": lone_file, "pickled": pickled}


@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    @pytest.fixture
    def checkpoint(self, kind: str, tmp_path: Path) -> Checkpoint:
        return open_checkpoint(KINDS[kind](tmp_path), allow_pickle=True)

    def test_looking_is_free(self, checkpoint: Checkpoint) -> None:
        before = checkpoint.bytes_read
        assert {name: checkpoint[name].shape for name in checkpoint} == {n: tuple(t.shape) for n, t in TENSORS.items()}
        assert checkpoint.bytes_read == before

    def test_reading_is_exact_and_counted(self, checkpoint: Checkpoint) -> None:
        for name, value in TENSORS.items():
            flat = value.reshape(-1)
            for start, stop in [(0, len(flat)), (0, 0), (len(flat) // 2, len(flat))]:
                before = checkpoint.bytes_read
                (found,) = checkpoint.read([Slice(name, start, stop)])
                assert torch.equal(found.to(value.dtype), flat[start:stop])
                assert checkpoint.bytes_read - before == (stop - start) * value.element_size()

    def test_order_is_as_asked(self, checkpoint: Checkpoint) -> None:
        slices = [Slice("scalar", 0, 1), Slice("b.weight", 7, 14), Slice("a.bias", 0, 2), Slice("b.weight", 0, 7)]
        found = checkpoint.read(slices)
        assert [len(f) for f in found] == [1, 7, 2, 7] and torch.equal(found[3], TENSORS["b.weight"][0])


def adapter(folder: Path) -> Path:
    save_file(TENSORS, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "lab/base"}))
    return folder


def in_gguf(folder: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, value in TENSORS.items():
        half = value.dtype == torch.bfloat16
        data = value.view(torch.uint8).numpy() if half else value.numpy()
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16 if half else None)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return folder


def in_onnx(folder: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    half = {name: value for name, value in TENSORS.items() if value.dtype == torch.bfloat16}
    found = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in TENSORS.items() if name not in half]
    for name, value in half.items():
        found.append(onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, value.shape, value.float().reshape(-1)))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], found)), folder / "model.onnx")
    return folder


def pipeline(folder: Path) -> Path:
    (folder / "part").mkdir()
    save_file(TENSORS, folder / "part" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", "part": ["diffusers", "Model"]}))
    return folder


WRITERS = {
    "adapter": adapter, "safetensors": single, "pipeline": pipeline, "gguf": in_gguf, "onnx": in_onnx,
    "pickle": pickled,
}  # fmt: skip
PREFIX = {"pipeline": "part."}  # of the names of what is one of several


@pytest.mark.parametrize("name", FORMATS)
class TestEveryFormat:
    def test_what_was_written_is_found_and_read_back(self, name: str, tmp_path: Path) -> None:
        repo = LocalRepo(ModelRef.parse(WRITERS[name](tmp_path)))
        form = FORMATS[name]
        checkpoint = form.open(repo, form.find(repo), True)
        written = {PREFIX.get(name, "") + key: value for key, value in TENSORS.items()}
        assert {key: tuple(value.shape) for key, value in written.items()} == {
            k: e.shape for k, e in checkpoint.items()
        }
        assert all(torch.equal(v, written[k]) for k, v in zip(written, checkpoint.whole([*written]), strict=True))

    def test_what_is_not_there_is_not_found(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("# Nothing\n")
        assert FORMATS[name].find(LocalRepo(ModelRef.parse(tmp_path))) == []


def test_every_format_has_a_writer() -> None:
    assert WRITERS.keys() == FORMATS.keys()


def test_a_header_costs_a_header(tmp_path: Path) -> None:
    save_file({"big": torch.zeros(1_000_000)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).bytes_read < 1000


def test_a_module_is_taken_as_it_is() -> None:
    checkpoint = open_checkpoint(Net())
    assert checkpoint.ref.name == "module:Net" and checkpoint["b_weight"].shape == (13, 7)
    assert torch.equal(checkpoint.read([Slice("b_weight", 0, 7)])[0], TENSORS["b.weight"][0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(24).reshape(4, 6).to(dtype)
    save_file({"t": value}, tmp_path / "model.safetensors")
    (found,) = open_checkpoint(tmp_path).read([Slice("t", 5, 17)])
    assert found.dtype == dtype and torch.equal(found.view(torch.uint8), value.reshape(-1)[5:17].view(torch.uint8))


def test_four_bit_floats(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes([0x21, 0xF7, 0x80])
    (tmp_path / "model.safetensors").write_bytes(content)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read([Slice("t", 0, 6)])[0].tolist() == [0.5, 1.0, 6.0, -6.0, 0.0, -0.0]
    assert checkpoint.read([Slice("t", 1, 4)])[0].tolist() == [1.0, 6.0, -6.0]


def test_exponent_and_complex_dtypes(tmp_path: Path) -> None:
    header = json.dumps({
        "e": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]},
        "z": {"dtype": "C64", "shape": [1], "data_offsets": [2, 10]},
    }).encode()  # fmt: skip
    data = bytes([127, 128]) + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read([Slice("e", 0, 2)])[0].float().tolist() == [1.0, 2.0]
    assert checkpoint["z"].shape == (1, 2) and checkpoint.read([Slice("z", 0, 2)])[0].tolist() == [1.5, -2.0]


def test_pickles_only_when_asked_for(tmp_path: Path) -> None:
    pickled(tmp_path)
    with pytest.raises(PickleRefusedError, match="--allow-pickle"):
        open_checkpoint(tmp_path)


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    assert open_checkpoint(pickled(single(tmp_path))).bytes_read < 2000


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BrokenFileError, match="weights_only"):
        open_checkpoint(tmp_path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_sharded_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path, allow_pickle=True)) == {"a", "b"}


def test_an_adapter_leads_to_its_base(tmp_path: Path) -> None:
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert open_checkpoint(tmp_path).adapter_base == "org/base"


@pytest.mark.parametrize(
    "config", ["{", "[]", "{}", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": ""}']
)
def test_an_adapter_without_a_base(tmp_path: Path, config: str) -> None:
    save_file({"x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    adapter = open_checkpoint(tmp_path)
    assert adapter.adapter_base == ""
    with pytest.raises(CheckpointError, match="base_model_name_or_path"):
        base_of(adapter, Opener())
    (tmp_path / "README.md").write_text("---\nbase_model: org/base\n---\n")
    assert open_checkpoint(tmp_path).adapter_base == "org/base", "the card's"


def test_a_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-8])
    with pytest.raises(BrokenFileError, match="truncated"):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="found nothing there"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(NoWeightsError, match="no file at all"):
        open_checkpoint(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(NoWeightsError, match=r"weights\.h5"):
        open_checkpoint(tmp_path)


def test_several_files_and_no_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(NoWeightsError, match="Name the one that is meant: "):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path / "b.safetensors")) == ["x"]


def test_a_slice_outside_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        open_checkpoint(single(tmp_path)).read([Slice("scalar", 0, 2)])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """A mapped file would kill the process here."""
    save_file({"a": torch.ones(1_000_000)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BrokenFileError, match="changed"):
        checkpoint.read([Slice("a", 900_000, 900_010)])


def test_an_index_as_a_reference(tmp_path: Path) -> None:
    assert len(open_checkpoint(sharded(tmp_path) / "model.safetensors.index.json")) == len(TENSORS)


def test_nobodys_home() -> None:
    with pytest.raises(ModelNotFoundError, match="home directory"):
        open_checkpoint("~no-such-user/model")


@pytest.mark.parametrize("content", [{"state_dict": torch.ones(2)}, {"state_dict": None}, [1], torch.ones(3), {}])
def test_pickles_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    try:
        assert set(open_checkpoint(tmp_path, allow_pickle=True)) == {"state_dict"}
    except NoWeightsError as error:
        assert "no tensor" in str(error)


def test_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", deny)  # the tests may run as root, whom no mode bit stops
    with pytest.raises(AccessDeniedError, match="Permission denied"):
        open_checkpoint(tmp_path)


def test_buffers_are_filled_again_when_nobody_looks_at_them() -> None:
    buffers = Buffers()
    assert isinstance(buffers.take(LEAST), bytearray)  # outside a pass nothing is kept
    with buffers.kept():
        first = buffers.take(LEAST + 1)
        first[:3] = b"abc"
        tensor = torch.frombuffer(first, dtype=torch.uint8)
        del first
        other = buffers.take(LEAST + 2)
        assert len(tensor) == LEAST + 1 and tensor[:3].tolist() == [97, 98, 99] and other[0] == 0
        del tensor
        again = buffers.take(LEAST + 3)
        assert bytes(again[:3]) == b"abc" and len(again) == LEAST + 3  # the same memory
        assert isinstance(buffers.take(LEAST - 1), bytearray)
    assert not buffers._free
    del again, other
    assert not buffers._free
