"""A model that is a base with a LoRA merged into it, entry by entry, and the ones that only look like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import llama
from safetensors.torch import save_file
from torch import Tensor

import hf_lineage as hl
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint
from hf_lineage.weights.merged_adapter import Merged, merged_adapter

Tensors = dict[str, Tensor]
ROWS, COLUMNS = 96, 64
MODULES = [f"model.layers.{i}.self_attn.{m}_proj" for i in range(2) for m in "qv"]


def base(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {f"{m}.weight": (0.1 * torch.randn(ROWS, COLUMNS, generator=generator)).to(dtype) for m in MODULES}


def lora(seed: int, rank: int = 4, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m in MODULES:
        found[f"base_model.model.{m}.lora_A.weight"] = (0.1 * torch.randn(rank, COLUMNS, generator=generator)).to(dtype)
        found[f"base_model.model.{m}.lora_B.weight"] = (0.02 * torch.randn(ROWS, rank, generator=generator)).to(dtype)
    return found


def product(adapter: Tensors, module: str) -> Tensor:
    a, b = (adapter[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return b.float() @ a.float()


def merged(start: Tensors, adapter: Tensors, scale: float = 2.0, order: int = 1) -> Tensors:
    """As PEFT does it: the product, in the adapter's dtype, is added into the base's tensor. order: −1 sums from the
    other end, as another machine may."""
    found = {}
    for m in MODULES:
        a, b = (adapter[f"base_model.model.{m}.lora_{side}.weight"].float() for side in "AB")
        step = (
            sum((b[:, [k]] * a[[k]] for k in [*range(len(a))][::order]), torch.zeros(())) * scale
            if order < 0
            else b @ a * scale
        )
        found[f"{m}.weight"] = start[f"{m}.weight"].clone()
        found[f"{m}.weight"] += step.to(adapter[f"base_model.model.{m}.lora_A.weight"].dtype)
    return found


def asked(child: Tensors, start: Tensors, adapter: Tensors, alpha: float | None = 8, most: int = 1 << 30) -> Merged:
    models = [MemoryCheckpoint(ModelRef("local", f"./{i}"), f"./{i}", t) for i, t in enumerate((child, start, adapter))]
    models[2].__dict__["adapter_config"] = {"lora_alpha": alpha, "r": 4} if alpha else {}
    found = merged_adapter(*models, most)
    assert found
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_a_merge_is_the_child_bit_for_bit(dtype: torch.dtype, factors: torch.dtype) -> None:
    start, adapter = base(dtype), lora(1, dtype=factors)
    found = asked(merged(start, adapter), start, adapter)
    assert found.exact and found.found and found.matrices == 4 and found.changed > 0.3 * 4 * ROWS * COLUMNS
    assert found.cosine > 0.9 and found.scale == pytest.approx(1, abs=0.02)


def test_merged_in_fp32_and_stored_in_bf16() -> None:
    start, adapter = base(torch.bfloat16), lora(1)
    child = {n: t.bfloat16() for n, t in merged({n: t.float() for n, t in start.items()}, adapter).items()}
    assert asked(child, start, adapter).exact
    wide = merged({n: t.float() for n, t in start.items()}, adapter)
    assert asked(wide, start, adapter).exact


def test_another_order_of_the_sums_is_the_same_merge_but_not_bit_for_bit() -> None:
    start, adapter = base(), lora(1)
    found = asked(merged(start, adapter, order=-1), start, adapter)
    assert found.found and not found.exact and 0.2 < found.equal / found.changed < 1


WRONG = {
    "another adapter": lambda start, adapter: merged(start, lora(2)),
    "a copy of it with other values in one place": lambda start, adapter: merged(
        start, {n: t + 1e-3 * (t == t.max()) for n, t in adapter.items()}
    ),
    "another scale": lambda start, adapter: merged(start, adapter, 1.9),
    "a sibling": lambda start, adapter: {
        n: (t.float() + 0.003 * torch.randn(t.shape, generator=torch.Generator().manual_seed(5))).to(t.dtype)
        for n, t in start.items()
    },
    "trained on": lambda start, adapter: {
        n: (t.float() + 1e-3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(5))).to(t.dtype)
        for n, t in merged(start, adapter).items()
    },
    "the base itself": lambda start, adapter: start,
    "one entry more": lambda start, adapter: {
        n: t + (torch.arange(t.numel()).view(t.shape) == 7).to(t.dtype) for n, t in merged(start, adapter).items()
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_merge(what: str, dtype: torch.dtype) -> None:
    start, adapter = base(dtype), lora(1)
    found = asked(WRONG[what](start, adapter), start, adapter)
    assert not found.found and not found.exact


def test_what_differs_is_measured() -> None:
    start, adapter = base(), lora(1)
    found = asked(merged(start, adapter, 1.0), start, adapter)
    assert (
        found.cosine == pytest.approx(1, abs=1e-4) and found.scale == pytest.approx(0.5, abs=1e-3) and not found.found
    )
    assert asked(merged(start, adapter, 1.0), start, adapter, alpha=None).found  # without a config the factors are all


def test_scales_of_a_config() -> None:
    start, adapter = base(), lora(1)
    models = [MemoryCheckpoint(ModelRef("local", "./a"), "./a", t) for t in (merged(start, adapter), start, adapter)]
    for config in (
        {"lora_alpha": 4, "use_rslora": True},
        {"lora_alpha": 3, "alpha_pattern": {"self_attn.[qv]_proj": 8}},
    ):
        models[2].__dict__["adapter_config"] = config
        assert (found := merged_adapter(*models)) and found.exact
    alphas = {f"base_model.model.{m}.alpha": torch.tensor(8.0) for m in MODULES}
    assert asked(merged(start, adapter), start, adapter | alphas, alpha=None).exact


def test_stored_in_out_and_the_first_rows_of_large_ones() -> None:
    start, adapter = base(), lora(1)
    child = merged(start, adapter)
    turned = [{n: t.T.contiguous() for n, t in tensors.items()} for tensors in (child, start)]
    assert asked(*turned, adapter).found
    few = asked(child, start, adapter, most=40_000)
    assert few.exact and few.rows < few.of_rows == 4 * ROWS


def test_an_adapter_that_fits_nothing_and_one_that_is_more_than_a_product() -> None:
    start, adapter = base(), lora(1)
    models = [
        MemoryCheckpoint(ModelRef("local", "./a"), "./a", t)
        for t in (start, start, {n.replace("self_attn", "other"): t for n, t in adapter.items()})
    ]
    assert merged_adapter(*models) is None
    dora = adapter | {f"base_model.model.{m}.lora_magnitude_vector": torch.ones(ROWS) for m in MODULES}
    models[2] = MemoryCheckpoint(ModelRef("local", "./a"), "./a", dora)
    assert merged_adapter(*models) is None


def test_trace_says_which_adapter_the_child_contains(tmp_path: Path) -> None:
    start = llama(0)
    modules = [n.removesuffix(".weight") for n in start if "q_proj" in n]
    adapters = {}
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        adapters[seed] = {
            f"base_model.model.{m}.lora_{side}.weight": 0.1 * torch.randn(shape, generator=generator)
            for m in modules
            for side, shape in (("A", (2, start[f"{m}.weight"].shape[1])), ("B", (len(start[f"{m}.weight"]), 2)))
        }
        save_adapter(tmp_path / f"lora{seed}", adapters[seed])
    child = {n: t.clone() for n, t in start.items()}
    for m in modules:
        a, b = (adapters[1][f"base_model.model.{m}.lora_{side}.weight"] for side in "AB")
        child[f"{m}.weight"] += b @ a
    for name, tensors in (("base", start), ("child", child)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = hl.trace(tmp_path / "child", [tmp_path / "base", tmp_path / "lora1", tmp_path / "lora2"])
    said = {Path(c.ref).name: [n.code for n in c.reasons] for c in found.candidates}
    assert "adapter_merged" in said["lora1"] and "adapter_not_merged" in said["lora2"]
    notes = [str(note) for note in found.notes if note.code == "adapter_merged"]
    assert len(notes) == 1 and "bit for bit" in notes[0] and "lora1" in notes[0]
    away = hl.trace(
        tmp_path / "child", [tmp_path / "lora1", tmp_path / "base"], max_bytes=found.bytes_read // 4 + 400_000
    )
    assert not any(note.code == "adapter_merged" for note in away.notes)


def save_adapter(folder: Path, tensors: Tensors) -> None:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
