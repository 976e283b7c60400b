"""That a child is a merge, said by `trace`: found where it is one, and never of a fine-tune among its relatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_lineage as hl

pytestmark = pytest.mark.integration


def said(child: Path, candidates: list[Path], **options) -> list[str]:
    lineage = hl.trace(child, candidates, **options)
    return [note for note in lineage.notes if note.startswith("A merge")]


def kept(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def noisy(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Four fine-tunes of one parent, and strangers."""
    parent = load_file(folders["parent"] / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for i in range(4):
        tuned = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in parent.items()}
        folders[f"tuned-{i}"] = kept(tuned, tmp_path / f"tuned-{i}")
    return folders


@pytest.mark.parametrize("sources, weights", [(["tuned-0", "tuned-1"], [0.6, 0.4]),
                                              (["stranger", "parent"], [0.7, 0.3]),
                                              (["tuned-0", "tuned-1", "tuned-2"], [0.5, 0.3, 0.2])])  # fmt: skip
def test_an_average(noisy: dict[str, Path], tmp_path: Path, sources: list[str], weights: list[float]) -> None:
    models = [load_file(noisy[name] / "model.safetensors") for name in sources]
    mean = {name: sum(w * m[name] for w, m in zip(weights, models, strict=True)) for name in models[0]}
    child = kept(mean, tmp_path / "mean")
    everyone = [noisy[name] for name in ("parent", "stranger", "stranger-2", *(f"tuned-{i}" for i in range(4)))]
    (note,) = said(child, everyone)
    told = [f"{noisy[name]} ({weight:.2f})" for name, weight in zip(sources, weights, strict=True)]
    assert note.startswith(f"A merge: its weights are an average of {', '.join(told[:-1])} and {told[-1]}. ")
    assert note.endswith(f"hf-lineage layers {child} " + " ".join(f"-c {noisy[name]}" for name in sources))


def test_tensors_of_two_models(noisy: dict[str, Path], tmp_path: Path) -> None:
    one, two = (load_file(noisy[f"tuned-{i}"] / "model.safetensors") for i in (0, 1))
    child = kept({**one, **{name: t for name, t in two.items() if "fc2" in name}}, tmp_path / "both")
    (note,) = said(child, [noisy[f"tuned-{i}"] for i in range(4)] + [noisy["parent"]])
    assert f"put together from tensors of {noisy['tuned-0']} and {noisy['tuned-1']}." in note


def test_frozen_layers_are_no_merge(noisy: dict[str, Path], tmp_path: Path) -> None:
    """The child keeps one layer of its parent, a sibling another, and both the same one."""
    parent = load_file(noisy["parent"] / "model.safetensors")
    for name, layers in {"first": ("fc1",), "second": ("fc2",), "both": ("fc1", "fc2")}.items():
        tuned = load_file(noisy["tuned-0" if name == "first" else "tuned-1"] / "model.safetensors")
        noisy[name] = kept(tuned | {key: t for key, t in parent.items() if key.startswith(layers)}, tmp_path / name)
    names = ["parent", "first", "second", "both", "tuned-2"]
    for child in names[1:]:
        assert not said(noisy[child], [noisy[name] for name in names if name != child])


def test_no_fine_tune_is_called_a_merge(nursery) -> None:
    """Some children, each among its parent, siblings and strangers."""
    family = nursery.family("fc", "reduced")
    for child in family.children[::4]:
        assert not said(child.path, [member.path for member in family.members if member is not child])
