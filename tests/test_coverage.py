"""`coverage`: what is said of a model, and the programs that measure how many models it says it of."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import hf_lineage as hl
from hf_lineage.answers.coverage import Coverage
from hf_lineage.cli import cli
from hf_lineage.errors import CheckpointError
from hf_lineage.testing import MiniHub

BENCHMARKS = Path(__file__).parent / "benchmarks"
LEAST = {"transformers": 0.97, "timm": 0.95, "diffusers": 0.95}


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "coverage" / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Net(torch.nn.Module):
    """A transformer's block with a feed-forward layer of a name that no convention has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(50, 40)
        self.things = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
        for thing in self.things:
            thing.attn = torch.nn.ModuleDict({name: torch.nn.Linear(40, 40) for name in ("to_q", "to_k", "to_v")})
            thing.lift = torch.nn.ModuleDict({"a": torch.nn.Linear(40, 96), "b": torch.nn.Linear(96, 40)})


def test_what_is_said() -> None:
    found = hl.coverage(Net())
    assert found.p_value and found.units.matrices == 2 and found.units.units == 2 * 96
    assert found.units.share == pytest.approx(2 * 96 * 40 / sum(p.numel() for p in Net().parameters()))
    assert (found.blocks.expected, found.blocks.recognised, found.blocks.tested) == (2, 2, 2)
    assert found.rules == {"own width": 2}
    reasons = {part.pattern: part.reason for part in found.left_out}
    assert "attention" in reasons["things.#.attn.to_q.weight"] and "token" in reasons["embed_tokens.weight"]
    assert reasons["things.#.lift.b.weight"].startswith("reads hidden units")
    assert sum(part.share for part in found.left_out) + found.units.share == pytest.approx(1)


def test_no_p_value_where_no_units_are_known() -> None:
    found = hl.coverage(torch.nn.Linear(40, 40))
    assert not found.p_value and found.units.units == 0 and found.sentence().startswith("No p-value applies")


def test_the_answer_is_read_back() -> None:
    found = hl.coverage(Net())
    assert Coverage.from_json(found.to_json()).to_dict() == found.to_dict()
    assert "things.#.attn.to_q.weight" in found.to_markdown() and max(map(len, str(found).splitlines())) <= 80


@pytest.mark.integration
def test_only_the_header_of_a_remote_model_is_read(hub: MiniHub) -> None:
    from safetensors.torch import save

    hub.add("lab/net", {"model.safetensors": save(Net().state_dict())})
    weights = sum(4 * p.numel() for p in Net().parameters())
    assert 0 < hl.coverage("lab/net").bytes_read < weights / 2


@pytest.mark.parametrize(("options", "expected"), [(["--quiet"], True), (["--json"], True)])
def test_the_command(tmp_path: Path, options: list[str], expected: bool) -> None:
    from safetensors.torch import save_file

    save_file(Net().state_dict(), tmp_path / "model.safetensors")
    done = CliRunner().invoke(cli, ["coverage", str(tmp_path), *options])
    assert done.exit_code == 0
    if options == ["--json"]:
        assert json.loads(done.stdout)["p_value"] is expected
    else:
        assert done.stdout.strip() == str(tmp_path)


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"base_model.model.q.lora_A.weight": torch.zeros(2, 4)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter"):
        hl.coverage(tmp_path)


@pytest.mark.integration
def test_no_library_of_models_is_imported() -> None:
    import subprocess

    code = "import sys, torch, hf_lineage as hl; hl.coverage(torch.nn.Linear(2, 2)); print({'transformers', 'timm', 'diffusers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("library", LEAST)
def test_the_measured_table(library: str) -> None:
    """What is recorded reaches what docs/benchmarks.md says, and names a reason for each model that remains."""
    with (BENCHMARKS / "results" / f"coverage-{library}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert np.mean([int(row["p_value"]) for row in rows]) >= LEAST[library]
    assert sum(int(row["recognised"]) for row in rows) >= 0.95 * sum(int(row["expected"]) for row in rows)
    assert all(row["why_not"] for row in rows if row["p_value"] == "0")


@pytest.mark.integration
def test_unrelated_models_are_calibrated_in_small() -> None:
    """A few models of a few kinds, trained on the same images: the recorded run has more of both."""
    calibration = program("calibration")
    torch.manual_seed(0)
    x, y = calibration.data(512)
    every = []
    for name in ("GEGLU", "square, by number"):
        found = calibration.measure(name, 4, x, y, steps=12)
        assert calibration.KINDS[name].rule in found["rules"] and None not in found["p"]
        every += found["p"]
    assert len(every) == 12 and min(every) > 1e-3


def test_the_recorded_calibration() -> None:
    recorded = json.loads((BENCHMARKS / "results" / "structure-calibration.json").read_text())
    every = [p for kind in recorded["kinds"].values() for p in kind["p"] if p is not None]
    assert len(recorded["kinds"]) >= 40 and all(len(kind["p"]) >= 30 for kind in recorded["kinds"].values())
    assert all(sum(p is not None and p <= 0.01 for p in kind["p"]) <= 3 for kind in recorded["kinds"].values())
    assert np.mean(np.array(every) <= 0.01) <= 0.02 and min(every) > 1e-4


# of the cases with weights, what is not found, and why (docs/benchmarks.md says it, too)
NOT_FOUND = {
    "DBRX (fused experts)": "experts below one another in all three matrices, the last one stored (in, out)",
    "Mamba2": "its heads are left out",
    "SqueezeBERT": "grouped convolutions of one place",
    "repvgg_a0": "an identity around every layer",
    "skresnet18": "channels split in parts",
    "convmixer_768_32": "an identity around every layer",
}


@pytest.mark.integration
def test_cases_with_weights_in_small(tmp_path: Path) -> None:
    """One of each outcome that is asked for: another layout, a shared part, a file that is refused."""
    sys.path.append(str(BENCHMARKS / "coverage"))
    cases = program("cases")
    meta = cases.MODELS["other code"]["Meta/Mistral consolidated (layers.N.feed_forward.w1)"]
    two = cases.MODELS["other code"]["MiniCPM-V (llm.model.layers, vpm.encoder.layers)"]
    asked = {
        "layout": cases.Case(meta, cases.layouts.under("net.")),
        "part": cases.Case(two, unrelated=cases.layouts.sharing(r"^vpm\.")),
        "refused": cases.Case(meta, write=cases.nothing_but("tf_model.h5"), expected="refused"),
    }
    found = {name: cases.measure(case, tmp_path / name) for name, case in asked.items()}
    assert {name: row["outcome"] for name, row in found.items()} == dict.fromkeys(asked, "ok")
    assert found["part"]["relation_unrelated"] == "shared_part"


def test_the_measured_cases() -> None:
    with (BENCHMARKS / "results" / "coverage-cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 300 and {row["name"] for row in rows if row["outcome"] != "ok"} <= NOT_FOUND.keys()
    unrelated = [float(row["p_unrelated"]) for row in rows if row["p_unrelated"] and row["group"] != "part"]
    assert sum(p <= 1e-3 for p in unrelated) <= 2
