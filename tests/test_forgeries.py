"""What an unrelated network that was made to look like a child is called, recipe by recipe."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from hf_lineage.experiments.families import SIZES, Member, build, logits
from hf_lineage.experiments.forgeries import FORGERIES, KEEPS

if TYPE_CHECKING:
    from conftest import Nursery

spec = importlib.util.spec_from_file_location(
    "forgery_table", Path(__file__).parent / "benchmarks" / "forgery_table.py"
)
assert spec is not None and spec.loader is not None
forgery_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forgery_table)

pytestmark = pytest.mark.integration

CHEAP = ["arranged", "arranged, rescaled", "1 % added", "5 % added", "16 units copied", "input tables copied"]


def check(rows: list[dict[str, Any]]) -> None:
    """No forger is called a child, and no claim of one is confirmed, unless more of the victim is in it than stated."""
    for row in rows:
        forger = row["recipe"] != "the victim, scrambled"  # that one was made from the victim indeed
        if row["equal"] < 0.01 and forger:
            assert row["verdict"] in ("undecided", "none") and row["claim"] in ("not_testable", "contradicted"), row
        assert row["verdict"] != "parent" and (row["claim"] != "confirmed" or not forger), row
        if "copied" in row["recipe"] and row["verdict"] != "none":
            assert row["relation"] == "shared_part", row
        if row["recipe"] in KEEPS:
            assert row["outputs_changed"] < 1e-3, row


def forgers(nursery: Nursery, architecture: str) -> tuple[Member, Member]:
    members = nursery.unrelated(architecture, "reduced").members
    return members[0], members[1]


def test_forged_networks_are_no_children(nursery: Nursery, tmp_path: Path) -> None:
    rows = forgery_table.forged(*forgers(nursery, "fc"), CHEAP, tmp_path)
    check(rows)
    said = {row["recipe"]: row for row in rows}
    assert said["arranged"]["log10_p"] < -50 and said["arranged"]["verdict"] == "undecided"
    assert said["arranged"]["agreement"]["score"] < 0.1
    assert "may have been added" in said["5 % added"]["sentence"]
    assert "rows of its matrices" in said["16 units copied"]["sentence"]


@pytest.mark.parametrize("architecture", ["resnet", "vit", "llama"])
@pytest.mark.parametrize("name", FORGERIES)
def test_laws(name: str, architecture: str) -> None:
    """The arguments stay as they are, names and shapes too, and the function where that is said."""
    forger, victim = (random_network(architecture, seed) for seed in (1, 2))
    ours, theirs = forger.state_dict(), victim.state_dict()
    copies = [{n: value.clone() for n, value in model.items()} for model in (ours, theirs)]
    before = outputs(forger, architecture)
    made = FORGERIES[name](ours, theirs, architecture)
    assert list(made) == list(ours) and all(made[n].shape == value.shape for n, value in ours.items())
    for model, copy in zip((ours, theirs), copies, strict=True):
        assert all(torch.equal(model[n], copy[n]) for n in copy)
    if name in KEEPS:
        forger.load_state_dict(made)
        torch.testing.assert_close(outputs(forger, architecture), before, atol=1e-4, rtol=1e-3)


def random_network(architecture: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build(architecture, 10, SIZES[architecture])
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def outputs(model: torch.nn.Module, architecture: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(4, 1, 28, 28, generator=generator)
    return logits(model, torch.randint(128, (4, 12), generator=generator) if architecture == "llama" else images)


def test_what_was_measured_holds() -> None:
    """results/forgery.json: ten forgers of each of four architectures, every recipe."""
    rows = json.loads(forgery_table.RESULTS.read_text())["rows"]
    assert {row["architecture"] for row in rows} == {"fc", "resnet", "vit", "llama"}
    assert {row["recipe"] for row in rows} == {*FORGERIES, forgery_table.DISTIL}
    check(rows)


@pytest.mark.large
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ["fc", "resnet", "vit", "llama"])
def test_every_recipe(architecture: str, nursery: Nursery, tmp_path: Path) -> None:
    _, unrelated = nursery.hidden(architecture, "large")
    for forger, victim in zip(unrelated.members[:3], unrelated.members[3:6], strict=True):
        check(forgery_table.forged(forger, victim, [*FORGERIES, forgery_table.DISTIL], tmp_path))
