"""`inspect`: what is read, what is said, and what is refused. What the values tell is in test_history.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file
from torch import Tensor

import hf_lineage as hl
from hf_lineage.answers.history import History, HistoryEvidence
from hf_lineage.answers.refs import ModelRef
from hf_lineage.cli import cli
from hf_lineage.errors import ArgumentError, CheckpointError, LimitError

SIZE = (1500, 1000)


def draws(seed: int, spread: float = 0.05) -> Tensor:
    return spread * torch.randn(*SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Tensor]]:
    base = {f"layers.{i}.fc1.weight": draws(i).bfloat16() for i in range(4)}
    child = {name: (t.float() + draws(10 + i, 1e-4)).bfloat16() for i, (name, t) in enumerate(base.items())}
    deeper = {**base, "layers.3.fc1.weight": base["layers.1.fc1.weight"].clone()}
    return {
        "base": base, "child": child, "upcast": {name: t.float() for name, t in child.items()}, "deeper": deeper,
        "master": {name: t.float() + draws(20, 2e-5) for name, t in base.items()},
    }  # fmt: skip


@pytest.fixture
def stored(models: dict[str, dict[str, Tensor]], tmp_path: Path) -> dict[str, Path]:
    for name, tensors in models.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return {name: tmp_path / name for name in models}


@pytest.mark.integration
def test_each_past_is_told(stored: dict[str, Path]) -> None:
    found = {name: hl.inspect(path) for name, path in stored.items()}
    told = {
        name: (h.stored, h.lattice, h.trained_since, h.kept_in_half, h.began_from, h.repeated_layers)
        for name, h in found.items()
    }
    assert told == {
        "base": ("BF16", "bf16", None, None, None, ()), "child": ("BF16", "bf16", True, False, None, ()),
        "upcast": ("F32", "bf16", True, False, None, ()), "deeper": ("BF16", "bf16", None, None, None, ((1, 3),)),
        "master": ("F32", None, True, None, "bf16", ()),
    }  # fmt: skip
    assert found["base"].sentence().startswith("Nothing of the past of ")
    assert found["child"].sentence().endswith("was trained from another model in bf16, or rescaled in it.")
    assert found["upcast"].sentence().endswith("and was trained from another model in bf16, or rescaled in it.")
    assert found["deeper"].sentence().endswith("has repeated layers.")
    assert (
        found["master"]
        .sentence()
        .endswith("was made from bf16 numbers: trained from them, or a merge or a multiple of them.")
    )
    assert found["child"].bytes_read >= 4 * 2 * SIZE[0] * SIZE[1]


@pytest.mark.integration
def test_a_remote_model_is_sampled(lab: Any, models: dict[str, dict[str, Tensor]]) -> None:
    lab.add("lab/light", {"model.safetensors": save(models["child"]), "config.json": b"{}"})
    few = hl.inspect("lab/light", sample=400_000)
    assert few.bytes_read < 700_000 and few.model.revision and few.lattice == "bf16"
    assert few.trained_since is None and "too few" in few.evidence["first_rounding"].reason
    assert any(note.code == "sampled" for note in few.notes)
    with hl.Session() as session:
        assert hl.inspect("lab/light", sample="all", session=session).trained_since is True
    assert hl.inspect("lab/light", sample=400_000).to_dict() | {"seconds": 0} == few.to_dict() | {"seconds": 0}


@pytest.mark.integration
def test_what_cannot_be_inspected_is_refused(stored: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="max_bytes"):
        hl.inspect(stored["base"], max_bytes=1000)
    with pytest.raises(ArgumentError, match="sample"):
        hl.inspect(stored["base"], sample=3)
    (tmp_path / "gains").mkdir()
    save_file(
        {"norm.weight": torch.ones(8), "ids": torch.zeros(3, 3, dtype=torch.int64)},
        tmp_path / "gains" / "a.safetensors",
    )
    with pytest.raises(CheckpointError):
        hl.inspect(tmp_path / "gains")
    (tmp_path / "lora").mkdir()
    save_file({"a.lora_A.weight": torch.ones(8, 4)}, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "lab/parent"}'
    )
    with pytest.raises(CheckpointError, match="is a LoRA adapter"):
        hl.inspect(tmp_path / "lora")


@pytest.mark.integration
def test_the_command_prints_the_answer(stored: dict[str, Path]) -> None:
    run = CliRunner().invoke
    path = str(stored["child"])
    assert json.loads(run(cli, ["inspect", path, "--json"]).stdout)["trained_since"] is True
    assert "trained since" in run(cli, ["inspect", path]).stdout
    assert run(cli, ["inspect", path, "-q"]).stdout.strip() == path
    assert run(cli, ["inspect", str(stored["base"]), "-q"]).stdout == ""
    assert "## The past of" in run(cli, ["inspect", path, "--format", "agent"]).stdout


def test_an_answer_is_drawn_and_read_back() -> None:
    evidence = {"first_rounding": HistoryEvidence(0.02, 0.001, 5, "the cells beside powers of two | `x`\x1b[31m")}
    history = History(
        model=ModelRef("hub", "org/a`b"), requested="org/a", stored="F32", lattice="bf16", trained_since=True,
        kept_in_half=True, began_from=None, repeated_layers=tuple((i, i + 1) for i in range(10)), evidence=evidence,
    )  # fmt: skip
    assert History.from_json(history.to_json()).to_dict() == history.to_dict()
    text, page = history.to_text(60), history.to_markdown()
    assert "\x1b" not in text + page and "a`b" not in page and max(map(len, text.splitlines())) <= 60
    assert "7 = 8 and 2 more" in text and "trained with its weights kept in bf16" in " ".join(text.split())
    assert repr(history) == "History('org/a`b', lattice='bf16', trained_since=True)"
