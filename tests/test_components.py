"""A part that many models have, such as a frozen text encoder, is no parent; a real child with such a part has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import llama, tuned
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Claim
from hf_lineage.tasks.verdict import weigh_claims
from hf_lineage.weights.components import components

Tensors = dict[str, torch.Tensor]
TOWER = "vision_tower."


def model(text: int, tower: int) -> Tensors:
    """A language model and a smaller tower, each of its own seed."""
    language = {f"language_model.{name}": t for name, t in llama(text, depth=3, width=40, hidden=96).items()}
    return language | {f"{TOWER}{name}": t for name, t in llama(tower, depth=2, width=32, hidden=64).items()}


def child(of: Tensors, frozen: bool = True) -> Tensors:
    """A fine-tune, whose tower may be frozen."""
    return {n: of[n] if frozen and n.startswith(TOWER) else t for n, t in tuned(of, 3, 0.1).items()}


def ask(folder: Path, ours: Tensors, **others: Tensors) -> hl.Lineage:
    for name, tensors in {"child": ours, **others}.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return hl.trace(folder / "child", [folder / name for name in others])


def test_nothing_but_the_tower(tmp_path: Path) -> None:
    found = ask(tmp_path, child(model(1, 9)), other=model(2, 9))
    (best,) = found.candidates
    assert best.relation == "shared_part" and best.facts["part"] == "vision_tower" and best.p_value < 1e-6
    assert found.parent is None and best.probability <= 1e-3 and found.none_probability >= 0.99
    assert "shares vision_tower with" in found.sentence() and "nothing else shows" in found.sentence()
    claims, undeclared = weigh_claims([Claim("card", best.ref)], found.candidates, None, lambda ref, c: ref == c.ref)
    assert [claim.status for claim in claims] == ["relative"] and not undeclared


def test_a_tuned_tower_is_a_shared_part_too(tmp_path: Path) -> None:
    found = ask(tmp_path, child(model(1, 9), frozen=False), other=model(2, 9))
    assert found.candidates[0].relation == "shared_part"


def test_the_parent_among_models_with_the_tower(tmp_path: Path) -> None:
    found = ask(tmp_path, child(model(1, 9)), parent=model(1, 9), other=model(2, 9), another=model(4, 9))
    best, *others = found.candidates
    assert best.ref.endswith("parent") and best.relation in ("partial", "finetune") and best.p_value < 1e-6
    assert [c.relation for c in others] == ["shared_part"] * 2 and all(c.probability <= 1e-3 for c in others)
    assert not any(note.code == "merge_found" for note in found.notes)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_real_child(tmp_path: Path, frozen: bool) -> None:
    base = model(1, 9)
    found = ask(tmp_path, child(base, frozen), base=base)
    assert found.candidates[0].relation not in ("shared_part", "none", None)


def test_a_child_with_another_tower(tmp_path: Path) -> None:
    """The larger part is what is asked about."""
    found = ask(tmp_path, child(model(1, 8)), base=model(1, 9))
    assert found.candidates[0].relation not in ("shared_part", "none", None) and found.candidates[0].p_value < 1e-6


def test_one_network_has_no_parts(tmp_path: Path) -> None:
    """Of a model of one component, layers that were made anew are what they were: a relative that changed much."""
    base, new = llama(1, width=40, hidden=96), llama(2, width=40, hidden=96)
    ours = {n: t if ".0." in n else new[n] for n, t in base.items()}
    assert ask(tmp_path, ours, base=base).candidates[0].relation not in ("shared_part", "none", None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["visual.blocks.0.w", "model.layers.0.w"], {"visual", "model"}),
        (["model.layers.0.w", "model.vision_tower.blocks.0.w", "model.mm.w"], {"model", "model.vision_tower"}),
        (["unet.down_blocks.0.w", "unet.up_blocks.1.w", "text_encoder.layers.0.w", "text_encoder_2.layers.0.w"], {"unet", "text_encoder", "text_encoder_2"}),
        (["encoder.block.0.w", "decoder.block.0.w", "shared.w"], {"encoder", "decoder"}),
        (["transformer_blocks.0.w", "single_transformer_blocks.0.w"], set()),
        (["layer1.0.w", "layer2.0.w", "layer3.0.w"], set()),
        (["down_blocks.0.w", "mid_block.0.w", "up_blocks.0.w"], set()),
        (["encoder.layer.0.w", "embeddings.w", "pooler.w"], set()),
        ([], set()),
    ],
)  # fmt: skip
def test_components(names: list[str], expected: set[str]) -> None:
    assert {*components(dict.fromkeys(names, 5)).values()} == expected


def test_a_small_part_is_none() -> None:
    assert not components({"net.layers.0.w": 990, "net.layers.1.w": 990, "probe.layers.0.w": 20})
