"""Which of several files is the model: indexes, series of shards, copies beside them, folders, and reads that end early."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import llama, tuned
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.checkpoints import local
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import BrokenFileError, LineageError, NoWeightsError
from hf_lineage.tasks.session import skipped

Tensors = dict[str, torch.Tensor]
A = {f"layers.{i}.weight": torch.full((4, 4), float(i)) for i in range(4)}
B = {name: tensor + 100 for name, tensor in A.items()}
INDEX = "model.safetensors.index.json"


def series(folder: Path, tensors: Tensors, count: int = 2, stem: str = "model") -> dict[str, str]:
    """A series of shards; returns the map of its index."""
    names, shard_of = [*tensors], {}
    for i in range(count):
        shard = f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        save_file(part, folder / shard)
        shard_of |= dict.fromkeys(part, shard)
    return shard_of


def index(folder: Path, shard_of: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": shard_of}))


def values(folder: Path) -> dict[str, float]:
    checkpoint = open_checkpoint(folder)
    return {name: float(checkpoint.read([Slice(name, 0, 1)])[0]) for name in checkpoint}


def codes(folder: Path) -> list[str]:
    return [note.code for note in open_checkpoint(folder).notes]


PLAIN, OTHER = ({name: float(t[0, 0]) for name, t in tensors.items()} for tensors in (A, B))


def test_the_index_decides_between_two_copies(tmp_path: Path) -> None:
    shard_of = series(tmp_path, A)
    moved = {name: B[name] for name in [*A][:1]}
    save_file(moved, tmp_path / "model-overlay-00001.safetensors")
    index(tmp_path, {**shard_of, **dict.fromkeys(moved, "model-overlay-00001.safetensors")})
    assert values(tmp_path) == {**PLAIN, "layers.0.weight": 100.0} and codes(tmp_path) == []
    index(tmp_path, shard_of)
    assert values(tmp_path) == PLAIN


def test_two_copies_that_nothing_decides_between_are_refused(tmp_path: Path) -> None:
    series(tmp_path, A)
    save_file({"layers.0.weight": A["layers.0.weight"], "x": A["layers.0.weight"].clone()}, tmp_path / "model-00002-of-00002.safetensors")  # fmt: skip
    with pytest.raises(BrokenFileError, match="repeats tensor"):
        open_checkpoint(tmp_path)


def test_one_lost_entry_is_a_note(tmp_path: Path) -> None:
    shard_of = series(tmp_path, A)
    index(tmp_path, {**shard_of, "mtp.fc.weight": "model-00002-of-00002.safetensors"})
    assert values(tmp_path) == PLAIN
    (note,) = open_checkpoint(tmp_path).notes
    assert note.code == "index_entry_lost" and "mtp.fc.weight" in note
    index(tmp_path, {**dict.fromkeys((f"lost.{i}" for i in range(9)), "model-00001-of-00002.safetensors"), **shard_of})
    assert values(tmp_path) == PLAIN and codes(tmp_path) == ["index_left_aside"]


def test_a_complete_series_is_a_model_without_an_index(tmp_path: Path) -> None:
    series(tmp_path, A, 3)
    assert values(tmp_path) == PLAIN and codes(tmp_path) == []
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(NoWeightsError, match="number 2 is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stale", ["of other shards", "no JSON"])
@pytest.mark.parametrize("beside", ["series", "single"])
def test_beside_a_stale_index_what_is_complete_is_the_model(tmp_path: Path, stale: str, beside: str) -> None:
    if beside == "series":
        series(tmp_path, A)
    else:
        save_file(A, tmp_path / "model.safetensors")
    index(tmp_path, dict.fromkeys(A, "model-00001-of-00007.safetensors"))
    if stale == "no JSON":
        (tmp_path / INDEX).write_text("<html>")
    assert values(tmp_path) == PLAIN and codes(tmp_path) == ["index_left_aside"]


def test_an_index_alone_whose_shards_are_missing_is_broken(tmp_path: Path) -> None:
    index(tmp_path, dict.fromkeys(A, "model-00001-of-00007.safetensors"))
    with pytest.raises(BrokenFileError, match="which is not there"):
        open_checkpoint(tmp_path)


def test_a_stray_file_beside_the_shards_of_an_index_is_left_aside(tmp_path: Path) -> None:
    index(tmp_path, series(tmp_path, A))
    save_file(B, tmp_path / "model.safetensors")
    assert values(tmp_path) == PLAIN and codes(tmp_path) == ["copy_left_aside"]
    assert values(tmp_path / "model.safetensors") == OTHER, "unless it is named"
    assert values(tmp_path / INDEX) == PLAIN


def test_weights_in_folders_are_asked_for_by_name(tmp_path: Path) -> None:
    for name in ("unet", "0_Transformer"):
        (tmp_path / name).mkdir()
        save_file(A, tmp_path / name / "model.safetensors")
    with pytest.raises(NoWeightsError, match=r"lie in folders. Name the one that is meant: .*/0_Transformer, .*/unet"):
        open_checkpoint(tmp_path)
    assert values(tmp_path / "unet") == PLAIN


def test_several_files_are_asked_for_by_name(tmp_path: Path) -> None:
    for name, tensors in (("flux1", A), ("ae", B)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(NoWeightsError, match=r"Name the one that is meant: .*/ae.safetensors"):
        open_checkpoint(tmp_path)


class ShortReads(FileIO):
    """A file of whose bytes the system hands out at most seven at once, as it does with 2 GiB."""

    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(memoryview(buffer)[:7]) or 0


def test_reads_go_on_until_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(A, tmp_path / "model.safetensors")
    real = Path.open

    def short(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return ShortReads(str(path)) if mode == "rb" else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(local.Path, "open", short)
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.whole([name])[0], A[name]) for name in A)
    with real(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(checkpoint["layers.3.weight"].start + 8)
    with pytest.raises(BrokenFileError, match="ends before"):
        checkpoint.whole([*A])


class TestLeftOut:
    """What was not compared is named with its share, and the architecture is not blamed for it."""

    def ask(self, folder: Path, child: Tensors) -> Any:
        parent = llama(1)
        for name, tensors in (("child", child), ("parent", parent), ("other", llama(2))):
            (folder / name).mkdir()
            save_file(tensors, folder / name / "model.safetensors")
        return hl.trace(folder / "child", [folder / "parent", folder / "other"])

    def test_integers(self, tmp_path: Path) -> None:
        child = tuned(llama(1), 3, 0.05)
        bulk = torch.zeros(sum(t.numel() for t in child.values()), dtype=torch.int32)
        found = self.ask(tmp_path, {**child, "optimizer.steps": bulk})
        (note,) = [note for note in found.notes if note.code == "tensors_left_out"]
        assert "1 tensors, 50 % of its bytes (optimizer.steps)" in note
        assert found.candidates[0].ref == str(tmp_path / "parent") and found.candidates[0].relation != "none"

    def test_matrices_without_elements(self, tmp_path: Path) -> None:
        child = {n: torch.zeros(0) if "mlp" in n else t for n, t in tuned(llama(1), 3, 0.05).items()}
        found = self.ask(tmp_path, child)
        texts = " ".join(found.notes)
        assert "without an element in the child: 9 of " in texts and "of this architecture" not in texts

    def test_the_rest_of_a_trunk_is_not_the_trunk(self, tmp_path: Path) -> None:
        """What could be compared of it is equal: that was called "same trunk, other head"."""
        child = {n: torch.zeros(0) if "mlp" in n else t for n, t in llama(1).items()}
        best = self.ask(tmp_path, child).candidates[0]
        assert best.ref == str(tmp_path / "parent") and best.relation not in ("head_changed", "identical")

    def test_units_that_both_have_are_tested(self, tmp_path: Path) -> None:
        child = tuned(llama(1), 3, 0.05)
        bulk = {"ema.weight": torch.randn(300, sum(t.numel() for t in child.values()) // 200)}
        found = self.ask(tmp_path, {**child, **bulk})
        best = found.candidates[0]
        assert best.ref == str(tmp_path / "parent") and best.relation == "shared_part" and best.p_value < 1e-3
        assert (found.verdict, found.parent) == ("common_origin", None) and best.facts["part"].startswith("39 %")
        other = found.candidates[1]  # of what was not compared nothing is said
        assert other.relation is None and other.p_value > 0.01 and "could be compared" in other.reasons[1]

    def test_all_of_it(self, tmp_path: Path) -> None:
        with pytest.raises(LineageError) as error:
            answer = self.ask(tmp_path, {n: torch.zeros(0) for n in llama(1)})
            raise LineageError(answer.candidates[0].reasons[0])
        assert "have no elements" in str(error.value)

    def test_dtypes_nobody_knows(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / "model.safetensors")
        raw = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(raw.replace(b'"F32","shape":[3]', b'"F99","shape":[3]'))
        (note,) = skipped([open_checkpoint(tmp_path)])
        assert "left out, 75 % of its bytes: a (F99)" in note

    def test_what_a_candidate_has_no_partner_for(self, tmp_path: Path) -> None:
        child = tuned(llama(1), 3, 0.05)
        found = self.ask(tmp_path, {**child, "extra.weight": torch.randn(60, 100)})
        assert found.candidates[0].reasons[0].startswith("left out, 21 % of the child's weights: extra.weight (no such")
        assert (
            "% of the child's weights: extra.weight (no such tensor in the candidate)" in found.candidates[0].reasons[0]
        )
