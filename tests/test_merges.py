"""Merges against the papers' formulas entry by entry, and against what must not change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_lineage as hl
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import ArgumentError
from hf_lineage.experiments.families import SIZES, Member, save
from hf_lineage.experiments.merges import (
    Tensors,
    dare,
    epochs,
    hybrid,
    linear,
    passthrough,
    slerp,
    task_arithmetic,
    ties,
    tuned,
    write,
)
from hf_lineage.experiments.networks import VOCAB, build
from hf_lineage.experiments.recipes import ROOT_TASKS
from hf_lineage.features import networks

pytestmark = pytest.mark.integration

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 3, 2)}
WEIGHTS = (0.5, 0.8, 0.3)


def model(seed: int, **more: torch.Tensor) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} | more


BASE, MODELS = model(0), [model(1), model(2), model(3)]


def check(merged: Tensors, entry: Callable[..., float]) -> None:
    """Each entry is what `entry(base, [model, ...])` makes of the same entries."""
    for name, tensor in merged.items():
        base, *models = [source[name].flatten().tolist() for source in (BASE, *MODELS)]
        wanted = [entry(base[i], [flat[i] for flat in models]) for i in range(len(base))]
        assert tensor.shape == BASE[name].shape and tensor.dtype == torch.float32
        assert torch.allclose(tensor.flatten(), torch.tensor(wanted), atol=1e-6)


def close(left: Tensors, right: Tensors, atol: float = 1e-6) -> bool:
    assert [*left] == [*right]
    return all(torch.allclose(left[name], right[name], atol=atol) for name in left)


def test_linear_is_the_weighted_sum():
    check(linear(MODELS, WEIGHTS), lambda base, models: sum(w * p for w, p in zip(WEIGHTS, models, strict=True)))


def test_task_arithmetic_adds_weighted_changes():
    def entry(base, models):
        return base + sum(w * (p - base) for w, p in zip(WEIGHTS, models, strict=True))

    check(task_arithmetic(BASE, MODELS, WEIGHTS), entry)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 1.0, 1.0)])
def test_ties_trims_elects_and_averages(density, weights):
    merged = ties(BASE, MODELS, weights, density, scale=0.7)
    for name, base in BASE.items():
        changes = []
        for other in MODELS:
            change = (other[name].double() - base.double()).flatten().tolist()
            count = max(1, int(density * len(change)))
            edge = sorted(map(abs, change), reverse=True)[count - 1]
            changes.append([value if abs(value) >= edge else 0.0 for value in change])
        for i, start in enumerate(base.flatten().tolist()):
            vote = sum(w * change[i] for w, change in zip(weights, changes, strict=True))
            agreeing = [(w, c[i]) for w, c in zip(weights, changes, strict=True) if c[i] * vote > 0]
            mean = sum(w * c for w, c in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
            assert merged[name].flatten()[i].item() == pytest.approx(start + 0.7 * mean, abs=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_goes_along_the_arc(t):
    left, right = MODELS[:2]
    merged = slerp(left, right, t)
    for name in SHAPES:
        p, q = left[name].flatten().tolist(), right[name].flatten().tolist()
        length = [math.sqrt(sum(x * x for x in v)) for v in (p, q)]
        angle = math.acos(sum(x * y for x, y in zip(p, q, strict=True)) / length[0] / length[1])
        for x, y, got in zip(p, q, merged[name].flatten().tolist(), strict=True):
            wanted = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
            assert got == pytest.approx(wanted, abs=1e-6)


def test_slerp_stays_on_the_sphere_and_ends_at_the_models():
    left, right = [{name: t / t.norm() for name, t in source.items()} for source in MODELS[:2]]
    assert close(slerp(left, right, 0.0), left) and close(slerp(left, right, 1.0), right)
    for t in (0.2, 0.5, 0.9):
        merged = slerp(left, right, t)
        for name in SHAPES:
            assert merged[name].norm().item() == pytest.approx(1.0, abs=1e-6)
            cosine = (merged[name] * left[name]).sum().item()
            angle = math.acos((left[name] * right[name]).sum().item())
            assert math.acos(cosine) == pytest.approx(t * angle, abs=1e-3)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_of_parallel_models_is_linear(factor):
    right = {name: factor * tensor for name, tensor in BASE.items()}
    assert close(slerp(BASE, right, 0.3), linear([BASE, right], [0.7, 0.3]))


def test_one_model_of_weight_one_is_itself():
    assert close(linear(MODELS[:1], [1.0]), MODELS[0])
    assert close(task_arithmetic(BASE, MODELS[:1], [1.0]), MODELS[0])
    assert close(dare(BASE, MODELS[:1], [1.0], 1.0, 0), MODELS[0])
    assert close(ties(BASE, MODELS[:1], [0.4], 1.0), MODELS[0])  # normalised: the weight does not matter
    assert close(ties(BASE, MODELS[:1], [1.0], 1.0, 0.4), task_arithmetic(BASE, MODELS[:1], [0.4]))


def test_dare_keeps_a_share_and_is_right_on_average():
    zero = {"w": torch.zeros(400)}
    ones = [{"w": torch.ones(400)}]
    thinned = dare(zero, ones, [1.0], 0.3, 0)["w"]
    assert {round(value, 4) for value in thinned.tolist()} == {0.0, round(1 / 0.3, 4)}
    assert 80 < int(thinned.count_nonzero()) < 160  # 120 ± 9.2
    runs = 2000
    drawn = [dare(BASE, MODELS, WEIGHTS, 0.5, seed) for seed in range(runs)]
    mean = {name: torch.stack([tensors[name] for tensors in drawn]).mean(0) for name in SHAPES}
    assert close(mean, task_arithmetic(BASE, MODELS, WEIGHTS), atol=0.15)
    assert close(dare(BASE, MODELS, WEIGHTS, 0.5, 7), drawn[7], atol=0.0)


def test_what_does_not_line_up_is_the_firsts():
    ours = model(1, head=torch.ones(3, 2), steps=torch.tensor(5), only=torch.ones(2))
    theirs = model(2, head=torch.ones(4, 2), steps=torch.tensor(9))
    results = [
        linear([ours, theirs], [0.5, 0.5]), slerp(ours, theirs, 0.5), task_arithmetic(ours, [theirs], [1.0]),
        ties(ours, [theirs], [1.0], 0.5), dare(ours, [theirs], [1.0], 0.5, 0),
    ]  # fmt: skip
    for merged in results:
        assert [*merged] == [*ours]
        assert all(torch.equal(merged[name], ours[name]) for name in ("head", "steps", "only"))
        assert not torch.equal(merged["a.bias"], ours["a.bias"])


def test_the_result_has_the_firsts_dtype():
    half = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    merged = linear([half, MODELS[0]], [0.5, 0.5])
    wanted = linear([{name: tensor.float() for name, tensor in half.items()}, MODELS[0]], [0.5, 0.5])
    assert all(torch.equal(merged[name], wanted[name].bfloat16()) for name in SHAPES)


def blocks(seed: int, depth: int, prefix: str) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    names = ["embed", *(f"{prefix}{i}.{part}" for i in range(depth) for part in ("w", "b")), "norm"]
    return {name: torch.randn(3, generator=generator) for name in names}


def test_passthrough_stacks_whole_blocks():
    left, right = blocks(1, 12, "model.layers."), blocks(2, 12, "model.layers.")
    same = passthrough([left, right], [(0, block) for block in range(12)])
    assert same.keys() == left.keys() and all(same[name] is left[name] for name in left)
    order = [(0, 0), (0, 1), (1, 1), (1, 11), (0, 1)]
    child = passthrough([left, right], order)
    assert len(child) == 2 + 2 * len(order) and child["embed"] is left["embed"]
    for new, (source, old) in enumerate(order):
        parent = (left, right)[source]
        assert all(child[f"model.layers.{new}.{part}"] is parent[f"model.layers.{old}.{part}"] for part in "wb")
    with pytest.raises(ArgumentError, match=r"model\.layers\.12\."):
        passthrough([left, right], [(0, 12)])


def test_hybrid_takes_each_block_from_one_parent():
    parents = [blocks(seed, 12, "blocks.") for seed in range(3)]
    child = hybrid(parents, {1: 2, 10: 1})
    for name, tensor in child.items():
        source = {"blocks.1.": 2, "blocks.10.": 1}.get(name[: name.rfind(".") + 1], 0)
        assert tensor is parents[source][name]


SMALL = {"llama": {"num_hidden_layers": 2}, "vit": {"depth": 2, "patch_size": 14}, "resnet": {}}


def root(folder: Path, kind: str, seed: int = 0) -> Member:
    """A root as `train_family` leaves it, but untrained."""
    sizes = {**SIZES[kind], **SMALL[kind]}
    recipe = {"task": ROOT_TASKS[kind][0], "data_seed": 0, "classes": VOCAB.get(kind, 15)}
    member = Member(f"family/{kind}-{seed}", kind, None, 1, recipe, {}, folder / "family" / f"{kind}-{seed}")
    torch.manual_seed(seed)
    save(build(kind, recipe["classes"], sizes), member, sizes)
    (folder / "family.json").write_text(json.dumps({"arguments": {"sizes": sizes}}))
    return member


def weights(member: Member) -> Tensors:
    return load_file(member.path / "model.safetensors")


def equal(left: Tensors, right: Tensors) -> set[str]:
    return {name for name in left if left[name].shape == right[name].shape and torch.equal(left[name], right[name])}


def test_a_deeper_passthrough_child_is_trained_and_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    roots = [root(tmp_path, "llama", seed) for seed in range(2)]
    stacked = passthrough([weights(each) for each in roots], [(0, 0), (1, 0), (1, 1)])
    child = tuned(stacked, roots[0], lr=1e-3, seed=1, steps=3)
    assert child.keys() == stacked.keys() and not equal(child, stacked)
    folder = write(child, roots[0], tmp_path / "child")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 3
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert equal(model.state_dict(), child) == {*child}
    assert len(networks.build(open_checkpoint(folder)).blocks) == 3


def test_a_vit_gets_a_new_head_and_an_answer(tmp_path):
    timm = pytest.importorskip("timm")
    parent = root(tmp_path, "vit")
    child = tuned(weights(parent), parent, lr=1e-3, seed=1, steps=3, task="digits")
    folder = write(child, parent, tmp_path / "child")
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    model.load_state_dict(child)
    assert len(child["head.weight"]) == 10
    assert hl.trace(str(folder), [str(parent.path)]).candidates[0].p_value < 1e-3
    shallow = write(passthrough([child], [(0, 1)], "blocks."), parent, tmp_path / "shallow")
    assert len(networks.build(open_checkpoint(shallow)).blocks) == 1


def test_frozen_stays_and_fresh_starts_anew(tmp_path):
    parent = root(tmp_path, "resnet")
    before = weights(parent)

    def stem(name: str) -> bool:
        return name.startswith(("conv1.", "bn1."))

    child = tuned(before, parent, lr=1e-3, seed=1, steps=3, freeze=stem, fresh=("layer4.",), task="digits")
    assert equal(child, before) == {"conv1.weight", "bn1.weight", "bn1.bias"}

    def likeness(name: str) -> float:
        return torch.cosine_similarity(child[name].flatten(), before[name].flatten(), dim=0).item()

    assert likeness("layer3.0.conv1.weight") > 0.9 and abs(likeness("layer4.0.conv1.weight")) < 0.1


def test_training_is_repeatable_and_leaves_its_input(tmp_path):
    parent = root(tmp_path, "vit")
    before = weights(parent)
    first, second = (tuned(before, parent, lr=1e-4, seed=3, steps=2) for _ in range(2))
    assert equal(first, second) == {*first}
    assert equal(before, weights(parent)) == {*before}


def test_steps_of_thirty_epochs(tmp_path):
    assert epochs(root(tmp_path, "vit"), 30) == 1920 and epochs(root(tmp_path, "llama"), 30) == 7680
