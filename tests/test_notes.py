"""That a child is a merge, said by `trace`: found where it is one, and never of a fine-tune among its relatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import llama, put, tuned
from safetensors.torch import load_file, save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Candidate

pytestmark = pytest.mark.integration


def said(child: Path, candidates: list[Path], **options) -> list[str]:
    lineage = hl.trace(child, candidates, **options)
    return [note for note in lineage.notes if note.code.startswith("merge")]


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


@pytest.mark.parametrize("architecture, every", [("fc", 4), ("llama", 4)])
def test_no_fine_tune_is_called_a_merge_or_like_one(nursery, architecture: str, every: int) -> None:
    """Some children, each among its parent, siblings and strangers, and among its siblings alone."""
    family = nursery.family(architecture, "reduced")
    for child in family.children[::every]:
        others = [member for member in family.members if member is not child]
        assert not said(child.path, [member.path for member in others])
        assert not said(child.path, [member.path for member in others if member.parent == child.parent])


# ---- siblings a and b of one parent, and what is made of the two


SIZES: dict[str, int] = {"depth": 4, "width": 32, "hidden": 64, "words": 96}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = llama(1, **SIZES)
    a, b = (tuned(parent, seed, 0.2) for seed in (2, 3))
    mean = {n: 0.5 * a[n] + 0.5 * b[n] for n in a}
    hybrid = {n: (b if "layers.2" in n or "layers.3" in n else a)[n] for n in a}
    models = {
        "parent": parent, "a": a, "b": b, "mean": mean, "mean tuned": tuned(mean, 7, 0.05), "hybrid": tuned(hybrid, 8, 0.05),
        "sum": {n: parent[n] + 0.7 * (a[n] - parent[n]) + 0.7 * (b[n] - parent[n]) for n in a},
    }  # fmt: skip
    root = tmp_path_factory.mktemp("merged")
    return {name: put(root / "lab" / name.replace(" ", "-"), model) for name, model in models.items()}


def of(lineage: hl.Lineage, folder: Path) -> Candidate:
    return next(c for c in lineage.candidates if c.requested == str(folder))


def test_a_source_is_not_made_from_its_merge(merged: dict[str, Path]) -> None:
    """It was: the mean of two lies where their parent does."""
    (merged["mean"] / "README.md").write_text("---\nbase_model: [lab/a, lab/b]\n---\n")
    lineage = hl.trace(merged["mean"], [merged["a"], merged["b"]])
    assert {c.relation for c in lineage.candidates} == {"merge"} and {c.first for c in lineage.candidates} == {None}
    assert lineage.none_probability is None and lineage.parent is None
    assert [claim.status for claim in lineage.claims] == ["confirmed"] * 2
    assert "A merge" in lineage.sentence() and "made from" not in lineage.explain()


def test_a_merge_is_not_the_parent_of_its_source(merged: dict[str, Path]) -> None:
    """It was, with 0.7: of the mean, of which a half is its own, the step to it goes its own way."""
    lineage = hl.trace(merged["a"], [merged[name] for name in ("mean", "b", "parent")])
    mean = of(lineage, merged["mean"])
    assert (mean.relation, mean.first) == ("descendant", "child") and (mean.probability or 0) <= 1e-3
    assert lineage.parent != str(merged["mean"]) and any("is an average of" in note for note in lineage.notes)
    lineage = hl.trace(merged["a"], [merged[name] for name in ("mean tuned", "b", "parent")])
    assert lineage.parent is None and of(lineage, merged["mean tuned"]).first is None
    assert sum(c.probability or 0 for c in lineage.candidates) + (lineage.none_probability or 0) == pytest.approx(1)


@pytest.mark.parametrize("child, candidates, words", [
    ("mean tuned", "a b", "It lies between"), ("mean tuned", "a b parent", "It lies between"),
    ("hybrid", "a b", "Its layers are nearest to different models"), ("hybrid", "a b parent", "Its layers are nearest"),
    ("sum", "a b parent", "(0.70)"),
])  # fmt: skip
def test_what_only_looks_like_a_merge(merged: dict[str, Path], child: str, candidates: str, words: str) -> None:
    lineage = hl.trace(merged[child], [merged[name] for name in candidates.split()])
    assert [note.code for note in lineage.notes] == ["merge_like"] and words in lineage.sentence()
    assert lineage.verdict == "common_origin" and not any(c.first == "child" for c in lineage.candidates)
