"""A view is a checkpoint: looking is free, reading is exact and counted, here against torch's own slicing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_lineage.answers.refs import ModelRef
from hf_lineage.architecture.conventions import fused_parts
from hf_lineage.checkpoints.checkpoint import Checkpoint, MemoryCheckpoint
from hf_lineage.checkpoints.entry import Entry, Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.view import View

TENSORS = {
    "blocks.0.attn.qkv.weight": torch.randn(24, 8), "blocks.0.attn.qkv.bias": torch.randn(24).half(),
    "blocks.0.attn.proj.weight": torch.randn(8, 8).bfloat16(), "experts.gate_up_proj": torch.randn(3, 12, 8),
    "experts.down_proj": torch.randn(3, 8, 6), "embed_tokens.weight": torch.randn(20, 8),
    "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "long": torch.arange(6),
}  # fmt: skip
# written by hand, against `cuts` and the view's arithmetic
PARTS = {
    **{f"blocks.0.attn.qkv.weight[{p}]": t for p, t in zip("qkv", TENSORS["blocks.0.attn.qkv.weight"].chunk(3), strict=True)},
    **{f"blocks.0.attn.qkv.bias[{p}]": t for p, t in zip("qkv", TENSORS["blocks.0.attn.qkv.bias"].chunk(3), strict=True)},
    **{f"experts.gate_up_proj[{e}.gate]": TENSORS["experts.gate_up_proj"][e, :6] for e in range(3)},
    **{f"experts.gate_up_proj[{e}.up]": TENSORS["experts.gate_up_proj"][e, 6:] for e in range(3)},
    **{f"experts.down_proj[{e}]": TENSORS["experts.down_proj"][e] for e in range(3)},
    **{n: TENSORS[n] for n in ("blocks.0.attn.proj.weight", "embed_tokens.weight", "scalar", "empty", "long")},
}  # fmt: skip
SHORT = {"embed_tokens.weight": 7, "blocks.0.attn.qkv.weight[k]": 3}
KINDS = ("file", "memory", "view of a view", "first rows")


def make(kind: str, folder: Path) -> tuple[View, dict[str, torch.Tensor]]:
    if kind == "memory":
        checkpoint: Checkpoint = MemoryCheckpoint(ModelRef("module", "module:Net"), "module:Net", TENSORS)
    else:
        save_file(TENSORS, folder / "model.safetensors")
        checkpoint = open_checkpoint(folder)
    view = View(checkpoint, fused_parts(checkpoint))
    if kind == "first rows":
        return view.first_rows(SHORT), {n: t[: SHORT[n]] if n in SHORT else t for n, t in PARTS.items()}
    return (View(view, fused_parts(view)) if kind == "view of a view" else view), PARTS


@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    def test_looking_is_free(self, kind: str, tmp_path: Path) -> None:
        view, expected = make(kind, tmp_path)
        before = view.bytes_read
        assert {n: view[n].shape for n in view} == {n: tuple(t.shape) for n, t in expected.items()}
        assert {n: view[n].nbytes for n in view} == {n: t.nbytes for n, t in expected.items()}
        assert all(view[n].name == n for n in view) and len(view) == len(expected)
        assert view.bytes_read == before

    def test_reading_is_exact_and_counted(self, kind: str, tmp_path: Path) -> None:
        view, expected = make(kind, tmp_path)
        for name, value in expected.items():
            flat = value.reshape(-1)
            for start, stop in [(0, len(flat)), (0, 0), (len(flat) // 2, len(flat)), (len(flat) // 3, len(flat) // 2)]:
                before = view.bytes_read
                (found,) = view.read([Slice(name, start, stop)])
                assert torch.equal(found.to(value.dtype), flat[start:stop])
                assert view.bytes_read - before == (stop - start) * value.element_size()

    def test_order_is_as_asked(self, kind: str, tmp_path: Path) -> None:
        view, expected = make(kind, tmp_path)
        names = [name for name in reversed(expected) if expected[name].numel()]
        for name, found in zip(names, view.read([Slice(n, 0, 1) for n in names]), strict=True):
            assert found[0] == expected[name].reshape(-1)[0]

    @pytest.mark.parametrize("outside", [(0, 1), (-1, 0), (1, 0)])
    def test_a_part_ends_where_it_ends(self, kind: str, tmp_path: Path, outside: tuple[int, int]) -> None:
        """Behind it, the wrapped tensor goes on."""
        view, expected = make(kind, tmp_path)
        for name, value in expected.items():
            start, stop = outside
            with pytest.raises(IndexError):
                view.read([Slice(name, start, stop + value.numel() if outside == (0, 1) else stop)])


@given(rows=st.integers(1, 9), width=st.integers(1, 5), data=st.data())
def test_any_cut_against_torch(rows: int, width: int, data: st.DataObject) -> None:
    tensor = torch.arange(rows * width).reshape(rows, width)
    edges = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
    parts = [(str(i), a, b) for i, (a, b) in enumerate(pairwise(edges))]
    view = View(MemoryCheckpoint(ModelRef("module", "module:M"), "module:M", {"t": tensor}), {"t": parts})
    kept = data.draw(st.integers(0, parts[-1][2] - parts[-1][1]))
    shorter = view.first_rows({f"t[{len(parts) - 1}]": kept})
    for seen, last in ((view, parts[-1][2]), (shorter, parts[-1][1] + kept)):
        for label, first, stop in parts:
            expected = tensor[first : min(stop, last)]
            name = f"t[{label}]"
            assert seen[name].shape == expected.shape
            start = data.draw(st.integers(0, expected.numel()))
            (found,) = seen.read([Slice(name, start, expected.numel())])
            assert torch.equal(found, expected.reshape(-1)[start:])


def test_everything_else_is_the_wrapped_checkpoints(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\nbase_model: lab/base\n---\n")
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.adapter_base, checkpoint.skipped, checkpoint.origin = "lab/base", ("strange",), 7
    for view in (View(checkpoint, {}), View(checkpoint, {}).first_rows({"embed_tokens.weight": 3})):
        assert (view.ref, view.requested, view.card) == (checkpoint.ref, checkpoint.requested, checkpoint.card)
        assert (view.adapter_base, view.skipped, view.origin) == ("lab/base", ("strange",), 7)
        assert view.repo is checkpoint.repo and view.config is checkpoint.config and view.recipes is checkpoint.recipes
        assert view.card and not view.remote and view.bytes_read == checkpoint.bytes_read


def test_first_rows_leaves_the_view_it_came_from(tmp_path: Path) -> None:
    view, _ = make("file", tmp_path)
    shorter = view.first_rows({"embed_tokens.weight": 5}).first_rows({"long": 2})
    assert shorter["embed_tokens.weight"].shape == (5, 8) and shorter["long"].shape == (2,)
    assert view["embed_tokens.weight"].shape == (20, 8) and view["long"].shape == (6,)


@pytest.mark.parametrize("rows", [-1, 21])
def test_no_more_rows_than_there_are(tmp_path: Path, rows: int) -> None:
    with pytest.raises(IndexError, match="0 to 20 rows"):
        make("file", tmp_path)[0].first_rows({"embed_tokens.weight": rows})


def test_a_cut_beyond_the_tensor_is_a_bug() -> None:
    checkpoint = MemoryCheckpoint(ModelRef("module", "module:M"), "module:M", {"t": torch.ones(4, 2)})
    with pytest.raises(IndexError):
        View(checkpoint, {"t": [("a", 0, 5)]})


def test_a_name_that_looks_like_a_part_is_not_overwritten() -> None:
    tensors = {"qkv.weight": torch.ones(6, 2), "qkv.weight[k]": torch.zeros(5)}
    checkpoint = MemoryCheckpoint(ModelRef("module", "module:M"), "module:M", tensors)
    assert set(View(checkpoint, fused_parts(checkpoint))) == set(tensors)


def test_four_bit_parts(tmp_path: Path) -> None:
    """Two elements a byte: a part may begin inside one."""
    header = b'{"t":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}'
    content = len(header).to_bytes(8, "little") + header + bytes([0x21, 0xF7, 0x80])
    (tmp_path / "model.safetensors").write_bytes(content)
    view = View(open_checkpoint(tmp_path), {"t": [("a", 0, 1), ("b", 1, 2)]})
    assert view.read([Slice("t[b]", 0, 3), Slice("t[a]", 1, 2)])[0].tolist() == [-6.0, 0.0, -0.0]


def test_an_entry_keeps_its_dtype() -> None:
    checkpoint = MemoryCheckpoint(ModelRef("module", "module:M"), "module:M", {"qkv.weight": torch.ones(6, 2).half()})
    view = View(checkpoint, fused_parts(checkpoint))
    assert view["qkv.weight[v]"] == Entry("qkv.weight[v]", "F16", (2, 2), 8)
