"""Adapters are compared by their products, so that other factors of one product are the same adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import llama
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint
from hf_lineage.weights import adapter_products
from hf_lineage.weights.adapter_products import compare_products

Tensors = dict[str, torch.Tensor]
AT = "base_model.model.model.layers.{}.self_attn.q_proj"


def adapter(seed: int, rank: int = 4, spelling: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        AT.format(i) + side: torch.randn(shape, generator=generator)
        for i in range(3)
        for side, shape in zip(spelling, ((rank, 24), (24, rank)), strict=True)
    }


def checkpoint(tensors: Tensors) -> MemoryCheckpoint:
    return MemoryCheckpoint(ModelRef("local", "./a"), "./a", tensors)


def refactored(tensors: Tensors) -> Tensors:
    """Other factors of the same products: A → MA, B → BM⁻¹."""
    torch.manual_seed(0)
    m = torch.eye(4) + 0.3 * torch.randn(4, 4)
    return {n: m @ t if "lora_A" in n else t @ torch.linalg.inv(m) for n, t in tensors.items()}


def test_against_the_products_themselves() -> None:
    one, other = adapter(1), adapter(2, rank=7)
    products = [
        torch.cat([(m[AT.format(i) + ".lora_B.weight"] @ m[AT.format(i) + ".lora_A.weight"]).reshape(-1).double() for i in range(3)])
        for m in (one, other)
    ]  # fmt: skip
    expected = torch.nn.functional.cosine_similarity(*products, dim=0)
    found = compare_products(checkpoint(one), checkpoint(other))
    assert found and found.cosine == pytest.approx(float(expected), abs=1e-6) and found.modules == 3


def test_other_factors_and_another_scale_are_the_same_adapter() -> None:
    one = adapter(1)
    other = {n: 3 * t if "lora_B" in n else t for n, t in refactored(one).items()}
    found = compare_products(checkpoint(one), checkpoint(other))
    assert found and found.cosine == pytest.approx(1, abs=1e-6)
    opposite = {n: -t if "lora_A" in n else t for n, t in one.items()}
    found = compare_products(checkpoint(one), checkpoint(opposite))
    assert found and found.cosine == pytest.approx(-1, abs=1e-6)


def test_spellings_and_kernels() -> None:
    kohya = (".lora_down.weight", ".lora_up.weight")
    one, other = adapter(1), adapter(1, spelling=kohya)
    found = compare_products(checkpoint(one), checkpoint(other))
    assert found and found.cosine == pytest.approx(1, abs=1e-6)
    kernels = {n: t.reshape(4, 6, 2, 2) if "down" in n else t.reshape(24, 4, 1, 1) for n, t in other.items()}
    found = compare_products(checkpoint(other), checkpoint(kernels))
    assert found and found.cosine == pytest.approx(1, abs=1e-6)


def test_nothing_in_common() -> None:
    wider = {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in adapter(1).items()}
    assert compare_products(checkpoint(adapter(1)), checkpoint(wider)) is None
    assert compare_products(checkpoint(adapter(1)), checkpoint(llama(1))) is None


def test_large_adapters_are_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_products, "MOST_BYTES", 2000)
    found = compare_products(checkpoint(adapter(1)), checkpoint(adapter(1)))
    assert found and found.modules == 2


def test_the_answer(tmp_path: Path) -> None:
    for name, factors in {"child": refactored(adapter(1)), "copy": adapter(1), "other": adapter(2)}.items():
        (tmp_path / name).mkdir()
        save_file({n: t.contiguous() for n, t in factors.items()}, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "base").mkdir()
    save_file(llama(1), tmp_path / "base" / "model.safetensors")
    found = hl.trace(tmp_path / "child", [tmp_path / "copy", tmp_path / "other", tmp_path / "base"])
    told = {
        Path(c.ref).name: [str(note) for note in c.reasons if note.code == "adapter_products"] for c in found.candidates
    }
    assert (
        "cosine of 1.0000 over 3 matrices" in told["copy"][0] and "cosine of" in told["other"][0] and not told["base"]
    )
    assert abs(float(told["other"][0].split("cosine of ")[1].split()[0])) < 0.2
