"""Packed weights: values as the layouts' own libraries unpack them, ranges, hostile files, and what trace says of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from builders import llama
from hypothesis import given, settings
from packers import PACKERS, Tensors, packed
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.checkpoints.entry import Packing, Slice
from hf_lineage.checkpoints.formats.packed import PACKINGS, PackedCheckpoint
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.weights.edits import detect_rounding

if TYPE_CHECKING:
    from hf_lineage.testing import MiniHub

SAMPLES = Path(__file__).parent / "packed" / "samples.npz"
NAMES = tuple(dict.fromkeys(key.split("/")[0] for key in np.load(SAMPLES)))
HALF = ("ct nvfp4",)  # whose library unpacks to bfloat16


def sample(folder: Path, name: str) -> tuple[Checkpoint, torch.Tensor]:
    """One of the samples that tests/benchmarks/packed_samples.py made, opened, and its expected values."""
    with np.load(SAMPLES) as arrays:
        (folder / "model.safetensors").write_bytes(arrays[f"{name}/file"].tobytes())
        (folder / "config.json").write_bytes(arrays[f"{name}/config"].tobytes())
        return open_checkpoint(folder), torch.from_numpy(arrays[f"{name}/expected"])


def put(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def only(checkpoint: Checkpoint) -> str:
    """The name of the one tensor that it seems to have."""
    (name,) = checkpoint
    return name


@pytest.mark.parametrize("name", NAMES)
class TestAgainstTheLibraries:
    def test_values_and_shape(self, name: str, tmp_path: Path) -> None:
        checkpoint, expected = sample(tmp_path, name)
        assert checkpoint[only(checkpoint)].shape == tuple(expected.shape)
        (found,) = checkpoint.whole([only(checkpoint)])
        largest = float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=2**-8 if name in HALF else 1e-6, atol=1e-7 * largest)
        assert checkpoint.skipped == ()

    def test_a_range_is_the_range_of_the_whole(self, name: str, tmp_path: Path) -> None:
        checkpoint, expected = sample(tmp_path, name)
        key, count = only(checkpoint), expected.numel()
        flat = checkpoint.whole([key])[0].reshape(-1)
        ranges = [(0, 0), (0, 1), (count - 1, count), (127, 129), (count // 3, count // 2), (count // 2, count)]
        found = checkpoint.read([Slice(key, a, b) for a, b in ranges])
        assert all(torch.equal(part, flat[a:b]) for part, (a, b) in zip(found, ranges, strict=True))

    def test_a_value_lies_in_its_cell_and_no_other_value_does(self, name: str, tmp_path: Path) -> None:
        checkpoint, expected = sample(tmp_path, name)
        whole = Slice(only(checkpoint), 0, expected.numel())
        (values,), cells = checkpoint.read([whole]), checkpoint.cells(whole)
        assert cells is not None
        low, high = cells
        assert bool(((low <= values) & (values <= high)).all())
        row = expected.shape[-1]
        for at in (0, row, 2 * row) if "experts" not in name else ():  # of one row and group
            group = values[at : at + 16]
            inside = (low[at : at + 16, None] < group) & (group < high[at : at + 16, None])
            assert bool((inside <= torch.isclose(group[:, None], group[None], rtol=1e-4)).all())

    def test_it_costs_the_bytes_of_its_parts(self, name: str, tmp_path: Path) -> None:
        checkpoint, expected = sample(tmp_path, name)
        entry, before = checkpoint[only(checkpoint)], checkpoint.bytes_read
        checkpoint.whole([only(checkpoint)])
        assert checkpoint.bytes_read - before <= entry.nbytes < 4 * expected.numel()


def one(layout: str, w: torch.Tensor) -> Tensors:
    return PACKERS[layout]("m", w)


def by_loop(layout: str, parts: Tensors, shape: tuple[int, int]) -> torch.Tensor:
    """GPTQ and AWQ as their papers' code reads one weight after the other."""
    found = torch.zeros(shape)
    q, z, s = (parts[f"m.{part}"] for part in ("qweight", "qzeros", "scales"))
    place = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}  # AWQ: where output 0, 1, … of eight is
    for out in range(shape[0]):
        at = 4 * (place[out % 8] if layout == "awq" else out % 8)
        for i in range(shape[1]):
            group = i // 32 if layout == "awq" else int(parts["m.g_idx"][i])
            zero = int(z[group, out // 8]) >> at & 15
            code = int(q[i, out // 8]) >> at & 15 if layout == "awq" else int(q[i // 8, out]) >> 4 * (i % 8) & 15
            found[out, i] = float(s[group, out]) * (code - zero - (layout == "gptq"))
    return found


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_gptq_and_awq_by_loop(layout: str, tmp_path: Path) -> None:
    w = torch.randn(24, 96, generator=torch.Generator().manual_seed(1))
    parts = one(layout, w)
    if layout == "gptq":  # act-order: groups of inputs that are no neighbours
        parts["m.g_idx"] = parts["m.g_idx"][torch.randperm(96, generator=torch.Generator().manual_seed(2))]
    checkpoint = open_checkpoint(put(tmp_path, parts))
    (found,) = checkpoint.whole(["m.weight"])
    assert torch.allclose(found, by_loop(layout, parts, (24, 96)), rtol=1e-6)
    part = checkpoint.read([Slice("m.weight", 100, 333)])[0]
    assert torch.equal(part, found.reshape(-1)[100:333])


def test_the_newer_gptq_stores_zero_points_as_they_are(tmp_path: Path) -> None:
    parts = one("gptq", torch.randn(16, 64))
    older = open_checkpoint(put(tmp_path / "a", parts)).whole(["m.weight"])[0]
    config = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}}
    newer = open_checkpoint(put(tmp_path / "b", parts, config)).whole(["m.weight"])[0]
    scales = parts["m.scales"].float().repeat_interleave(32, 0).T
    assert torch.allclose(newer - older, scales, atol=1e-6)


@pytest.mark.parametrize("layout", PACKERS)
def test_rounding_is_undone_to_within_a_step(layout: str, tmp_path: Path) -> None:
    w = torch.randn(40, 128, generator=torch.Generator().manual_seed(3))
    checkpoint = open_checkpoint(put(tmp_path, one(layout, w)))
    (found,) = checkpoint.whole(["m.weight"])
    assert found.shape == w.shape and float((found - w).norm() / w.norm()) < 0.15
    low, high = checkpoint.cells(Slice("m.weight", 0, w.numel())) or (w, w)
    slack = 0.02 * w.abs().max() if layout == "nf4 nested" else 1e-4
    flat = w.reshape(-1)
    assert float(((low - slack <= flat) & (flat <= high + slack)).float().mean()) > 0.999


def test_experts_scales_and_nested_blocks_of_every_shape(tmp_path: Path) -> None:
    """Stacked FP8 experts with a scale for each, each row, each column, each block."""
    w = torch.randn(3, 8, 12).to(torch.float8_e4m3fn)
    for scale in (torch.rand(3), torch.rand(3, 1, 1), torch.rand(3, 8, 1), torch.rand(3, 1, 12), torch.rand(3, 2, 3)):
        shape = (3, *scale.shape[1:]) if scale.ndim == 3 else (3, 1, 1)
        each = scale.reshape(shape).repeat_interleave(8 // shape[1], 1).repeat_interleave(12 // shape[2], 2)
        checkpoint = open_checkpoint(put(tmp_path, {"experts.up": w, "experts.up_scale": scale}))
        assert torch.allclose(checkpoint.whole(["experts.up"])[0], w.float() * each), tuple(scale.shape)
        assert torch.equal(
            checkpoint.read([Slice("experts.up", 95, 200)])[0], checkpoint.whole(["experts.up"])[0].reshape(-1)[95:200]
        )


def test_a_model_without_packed_tensors_is_left_as_it_is(tmp_path: Path) -> None:
    assert not isinstance(open_checkpoint(put(tmp_path, {"a.weight": torch.randn(4, 4)})), PackedCheckpoint)


def test_what_belongs_to_activations_is_no_weight(tmp_path: Path) -> None:
    parts = one("fp8", torch.randn(8, 32)) | {"m.input_scale": torch.tensor(2.0), "m.bias": torch.zeros(8)}
    assert sorted(open_checkpoint(put(tmp_path, parts))) == ["m.bias", "m.weight"]


class TestHostile:
    """What does not fit is named and left out; nothing crashes."""

    @pytest.mark.parametrize(
        ("layout", "change", "why"),
        [
            ("gptq", lambda t: t.pop("m.qzeros"), "qzeros"),
            ("gptq", lambda t: t.update({"m.scales": torch.ones(3, 7).half()}), "zero points of 3 groups"),
            ("gptq", lambda t: t.update({"m.g_idx": torch.zeros(5, dtype=torch.int32)}), "a group for each"),
            ("nf4", lambda t: t.update({"m.weight.absmax": torch.ones(3)}), "largest values"),
            ("nf4", lambda t: t.update({_state(t): _json({"quant_type": "nf4", "blocksize": 64, "shape": [2**39] * 7})}), "bytes for"),
            ("nf4", lambda t: t.update({_state(t): _json({"quant_type": "nf4", "blocksize": 0, "shape": [40, 128]})}), "blocksize"),
            ("nf4", lambda t: t.update({_state(t): _json([1])}), "JSON object"),
            ("nf4", lambda t: t.update({_state(t): torch.full((9,), 255, dtype=torch.uint8)}), "JSON in quant_state"),
            ("compressed-tensors", lambda t: t.update({"m.weight_shape": torch.tensor([2**40, 3])}), "shape of"),
            ("compressed-tensors", lambda t: t.pop("m.weight_shape"), "weight_shape"),
            ("hqq", lambda t: t.update({"m.shape": torch.tensor([1, 64])}), "bytes"),
            ("hqq", lambda t: t.update({"m.nbits": torch.tensor(5)}), "got 5"),
            ("mlx", lambda t: t.update({"m.scales": torch.ones(40, 7), "m.biases": torch.ones(40, 7)}), "codes of 2 to 8"),
            ("fp8 block", lambda t: t.update({"m.weight_scale_inv": torch.ones(9, 9)}), "blocks"),
            ("mxfp4", lambda t: t.update({"m.weight_scale": torch.ones(40, 3, dtype=torch.uint8)}), "a scale for each"),
        ],
    )  # fmt: skip
    def test_parts_that_do_not_fit(
        self, layout: str, change: Callable[[Tensors], Any], why: str, tmp_path: Path
    ) -> None:
        parts = one(layout, torch.randn(40, 128)) | {"a.weight": torch.randn(4, 4)}
        change(parts)
        checkpoint = open_checkpoint(put(tmp_path, parts))
        assert [*checkpoint] == ["a.weight"] and why in checkpoint.skipped[0] and "m.weight" in checkpoint.skipped[0]
        assert checkpoint.skipped_bytes == sum(t.nbytes for name, t in parts.items() if name != "a.weight")

    def test_scales_of_nan_give_nan(self, tmp_path: Path) -> None:
        parts = one("fp8 channel", torch.randn(8, 32))
        parts["m.weight_scale"][2] = torch.nan
        (found,) = open_checkpoint(put(tmp_path, parts)).whole(["m.weight"])
        assert bool(found[2].isnan().all()) and bool(found[3].isfinite().all())

    def test_an_index_of_nowhere_gives_nan(self, tmp_path: Path) -> None:
        parts = one("gptq", torch.randn(8, 64))
        parts["m.g_idx"][3:5] = torch.tensor([-1, 2**31 - 1], dtype=torch.int32)
        (found,) = open_checkpoint(put(tmp_path, parts)).whole(["m.weight"])
        assert bool(found[:, 3:5].isnan().all()) and bool(found[:, 5:].isfinite().all())

    @given(st.sampled_from([*PACKERS]), st.data())
    @settings(max_examples=40)
    def test_any_shapes_and_dtypes(
        self, tmp_path_factory: pytest.TempPathFactory, layout: str, data: st.DataObject
    ) -> None:
        """Every part may have any small shape and dtype: it opens, and what it seems to have can be read."""
        parts = one(layout, torch.randn(8, 64))
        sizes = st.lists(st.integers(0, 9), max_size=3)
        for name in data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=3, unique=True)):
            shape = data.draw(sizes)
            dtype = data.draw(st.sampled_from([torch.float32, torch.uint8, torch.int32, torch.int64, torch.int8]))
            parts[name] = (torch.randn(shape) * 100).to(dtype)
        checkpoint = open_checkpoint(put(tmp_path_factory.mktemp("any"), parts))
        for name, value in zip(checkpoint, checkpoint.whole([*checkpoint]), strict=True):
            assert value.shape == checkpoint[name].shape

    def test_left_out_is_said_with_its_share(self, tmp_path: Path) -> None:
        base = {name: value / 8 for name, value in llama(0, depth=2, width=64, hidden=128).items()}
        broken = packed(base, "gptq")
        del broken["model.layers.0.mlp.up_proj.qzeros"]
        found = hl.trace(put(tmp_path / "a", broken), candidates=[put(tmp_path / "b", base)])
        (told,) = [note for note in found.notes if note.code == "unknown_dtype"]
        assert "model.layers.0.mlp.up_proj.weight (expected its part '.qzeros'" in str(
            told
        ) and "% of its bytes" in str(told)


def _state(parts: Tensors) -> str:
    return next(name for name in parts if "quant_state" in name)


def _json(value: Any) -> torch.Tensor:
    return torch.tensor([*json.dumps(value).encode()], dtype=torch.uint8)


@pytest.mark.integration
@pytest.mark.parametrize("layout", ["nf4", "fp8 channel", "compressed-tensors", "mxfp4", "hqq", "mlx"])
def test_on_the_hub_some_rows_cost_some_rows(layout: str, hub: MiniHub) -> None:
    """Of layouts that store rows one after the other: 32 of 2,048 rows, for less than twice their share of the bytes."""
    w = torch.randn(2048, 256, generator=torch.Generator().manual_seed(4))
    hub.add("lab/packed", {"model.safetensors": save(one(layout, w))})
    checkpoint = open_checkpoint("lab/packed")
    before = checkpoint.bytes_read
    assert before < 20_000, "headers, and what says how it is packed"
    (found,) = checkpoint.read([Slice("m.weight", 640 * 256, 672 * 256)])
    assert float((found.reshape(32, 256) - w[640:672]).norm() / w[640:672].norm()) < 0.15
    assert checkpoint.bytes_read - before < 2 * checkpoint["m.weight"].nbytes * 32 / 2048


def test_every_layout_is_tested() -> None:
    """Each row of PACKINGS finds the parts of at least one sample or packer."""
    files = [np.load(SAMPLES)[f"{name}/file"].tobytes() for name in NAMES]
    files += [save(one(layout, torch.randn(16, 128))) for layout in PACKERS]
    headers = [json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]) for raw in files]
    for name, scheme in PACKINGS.items():
        shown = [
            header for header in headers for part, entry in header.items()
            if part.endswith(scheme.anchor) and entry.get("dtype") in scheme.dtypes
            and all(
                any(part.removesuffix(scheme.anchor) + end in header for end in scheme.roles[role])
                for role in scheme.required
            )
        ]  # fmt: skip
        assert shown or name == "quanto", name


class TestDetectRounding:
    """Of a child on a grid: a parent that was rounded, one that was trained from it, one trained beside it."""

    GRID = Packing("int8", 8)

    def of(self, parent: torch.Tensor, child: torch.Tensor, step: float) -> str:
        return detect_rounding(
            child, parent, self.GRID, ((child - step / 2).reshape(-1), (child + step / 2).reshape(-1))
        ).kind

    def test_rounded(self) -> None:
        parent = torch.randn(64, 256)
        assert self.of(parent, (parent / 0.1).round() * 0.1, 0.1) == "quantized"

    @pytest.mark.parametrize("size", [0.001, 0.01, 0.1, 0.5, 2.0])
    def test_trained_from_the_packed(self, size: float) -> None:
        child = (torch.randn(64, 256) / 0.1).round() * 0.1
        assert self.of(child + size * 0.1 * torch.randn(child.shape), child, 0.1) == "other"

    @pytest.mark.parametrize("size", [0.01, 0.1, 0.5, 2.0])
    def test_trained_from_what_was_packed(self, size: float) -> None:
        original = torch.randn(64, 256)
        child = (original / 0.1).round() * 0.1
        assert self.of(original + size * 0.1 * torch.randn(child.shape), child, 0.1) == "other"

    def test_equal_and_unknown(self) -> None:
        parent = torch.randn(4, 8)
        assert detect_rounding(parent, parent.clone(), self.GRID, None).kind == "equal"
        assert detect_rounding(parent, parent + 1, self.GRID, None).kind == "other"


def model(seed: int) -> Tensors:
    return {name: (value / 8).bfloat16() for name, value in llama(seed, depth=1, width=64, hidden=128).items()}


def step(tensors: Tensors, seed: int, size: float) -> Tensors:
    """Every weight moved by a normal step of that relative size, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value.float() + size * value.float().std() * torch.randn(value.shape, generator=generator)).bfloat16()
        for name, value in tensors.items()
    }


FULLY = (
    "fp8 block",
    "nf4",
    "gptq",
    "mxfp4",
)  # of which every pair is asked about: tests/benchmarks/packed_table.py has all
ROUNDED_TWICE = ("nf4 nested",)  # its scales are rounded, too: what was packed is not quite in its cells


@pytest.mark.integration
@pytest.mark.parametrize("layout", PACKERS)
def test_what_trace_says(layout: str, tmp_path: Path) -> None:
    """A packed copy, a child of the packed, one trained beside it, both packed, unrelated: relation, p, and no wrong order."""
    base = model(0)
    copy = put(tmp_path / "packed", packed(base, layout))
    original = put(tmp_path / "base", base)
    checkpoint = open_checkpoint(copy)
    values = dict(zip(checkpoint, checkpoint.whole([*checkpoint]), strict=True))
    child = put(tmp_path / "child", step(values, 6, 0.02))
    beside = step(base, 5, 0.02)
    sibling, both = put(tmp_path / "beside", beside), put(tmp_path / "both", packed(beside, layout))

    told = hl.trace(copy, candidates=[original])
    (found,) = told.candidates
    assert found.p_value is not None and found.p_value < 1e-10
    if layout in ROUNDED_TWICE:
        assert (told.verdict, found.first) == ("common_origin", None)
    else:
        assert (told.verdict, found.relation, found.first) == ("parent", "quantized", "candidate")
        assert found.facts["bits"] == found.facts["packing"]["child"]["bits"] in (4, 8)
        assert found.facts["scheme"] == found.facts["packing"]["child"]["scheme"]
    assert found.facts["packing"]["candidate"] is None
    more = [(child, copy), (sibling, copy), (both, copy)] if layout in FULLY else []
    for asked, candidate in [(copy, child), (copy, sibling), *more]:
        told = hl.trace(asked, candidates=[candidate])
        (found,) = told.candidates
        assert (told.verdict, found.first) == ("common_origin", None), asked.name
        assert found.relation in ("common_origin", "partial"), "some values may be equal after rounding"
        assert found.p_value is not None and found.p_value < 1e-10 and "packing" in found.facts
    if layout in FULLY:
        other = put(tmp_path / "other", packed(model(1), layout))
        told = hl.trace(copy, candidates=[other])
        assert told.verdict == "none" and (told.candidates[0].p_value or 0) > 0.01
