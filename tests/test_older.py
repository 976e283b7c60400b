"""`older=True`: the caller knows that the candidates are older. Taken where no order shows, said, never on a card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

import hf_lineage as hl
from hf_lineage.cli.trace import trace as command
from hf_lineage.errors import ArgumentError, CardError

pytestmark = pytest.mark.integration

Tensors = dict[str, Tensor]


def net(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {f"fc{i}.weight": torch.randn(96, 96, generator=generator) / 96**0.5 for i in range(1, 4)}


def moved(base: Tensors, seed: int, spread: float) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: t + spread * torch.randn(t.shape, generator=generator) for name, t in base.items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = net(1)
    child = moved(base, 2, 1e-3)
    models = {
        "base": base, "child": child, "stranger": net(9), "copy": base, "far": moved(base, 3, 4e-3),
        "half": {name: t.half() for name, t in child.items()},
        "headless": {**child, "fc3.weight": net(5)["fc3.weight"]},
    }  # fmt: skip
    root = tmp_path_factory.mktemp("older") / "lab"
    for name, tensors in models.items():
        (root / name).mkdir(parents=True)
        save_file(tensors, root / name / "model.safetensors")
    return {name: root / name for name in models}


def codes(lineage: hl.Lineage) -> set[str]:
    return {note.code for note in lineage.notes}


def test_what_the_caller_knows_is_taken_where_no_order_shows(family: dict[str, Path]) -> None:
    asked = [family["base"], family["stranger"]]
    without, told = hl.trace(family["child"], asked), hl.trace(family["child"], asked, older=True)
    assert (without.verdict, without.parent) == ("common_origin", None)
    assert (told.verdict, told.parent) == ("parent", str(family["base"]))
    best, before = told.candidates[0], without.candidates[0]
    assert (best.relation, best.first, best.order_taken) == ("finetune", "candidate", True)
    assert (best.probability or 0) > 0.5 and (before.probability or 0) <= 0.5
    assert (best.p_raw, best.distance) == (before.p_raw, before.distance), "nothing measured changes"
    assert sum(c.probability or 0 for c in told.candidates) + (told.none_probability or 0) == pytest.approx(1)
    assert told.candidates[1].relation == "none" and "older" not in told.candidates[1].facts
    assert "older_taken" in codes(told) and not codes(without) & {"older_taken", "older_not_taken"}
    assert "not measured" in told.sentence() and "the weights do not show it" in told.explain()
    assert "came first:" not in told.explain(), "no measurement is made up"


def test_it_survives_the_json(family: dict[str, Path]) -> None:
    told = hl.trace(family["child"], [family["base"]], older=True)
    read = hl.Lineage.from_json(told.to_json())
    assert read.candidates[0].order_taken and "older_taken" in codes(read)
    with pytest.raises(CardError, match="taken from the caller"):
        hl.annotate(family["child"], read)


def test_the_nearest_one_is_named(family: dict[str, Path]) -> None:
    told = hl.trace(family["child"], [family["far"], family["base"]], older=True)
    assert told.parent == str(family["base"])


def test_an_order_that_shows_is_not_overruled(family: dict[str, Path]) -> None:
    """A copy in half precision was made from the finer one, whatever the caller says."""
    without, told = (hl.trace(family["child"], [family["half"]], older=older) for older in (False, True))
    assert (told.verdict, told.parent, told.candidates[0].relation) == ("common_origin", None, "descendant")
    assert told.candidates[0].probability == without.candidates[0].probability
    assert told.candidates[0].facts["older"] == "not_taken" and "older_not_taken" in codes(told)
    assert hl.trace(family["half"], [family["child"]], older=True).notes == ()


def test_full_copies_and_strangers_stay_what_they_are(family: dict[str, Path]) -> None:
    assert hl.trace(family["copy"], [family["base"]], older=True).verdict == "identical"
    assert hl.trace(family["child"], [family["stranger"]], older=True).verdict == "none"


def test_a_card_never_says_it(family: dict[str, Path]) -> None:
    readme = family["child"] / "README.md"
    for push in (False, True):
        with pytest.raises(CardError, match="taken from the caller"):
            hl.annotate(family["child"], hl.trace(family["child"], [family["base"]], older=True), push=push)
    assert not readme.exists()


def test_a_claim_is_not_borne_out_by_what_the_caller_says(family: dict[str, Path]) -> None:
    """Nor is a parent undeclared because of it."""
    readme = family["child"] / "README.md"
    try:
        readme.write_text("---\nbase_model: lab/base\n---\n")
        told = hl.trace(family["child"], [family["base"]], older=True)
        assert told.verdict == "parent" and not told.undeclared
        assert "no sign against it" in told.to_text() and "confirmed by the weights" not in told.to_text()
    finally:
        readme.unlink()
    assert not hl.trace(family["child"], [family["base"]], older=True).undeclared


def test_it_is_said_of_named_candidates_only(family: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match="named candidates"):
        hl.trace(family["child"], older=True)
    with pytest.raises(ArgumentError, match="without `tree`"):
        hl.trace(family["child"], [family["base"]], older=True, tree=True)


def test_on_the_command_line(family: dict[str, Path]) -> None:
    asked = [str(family["child"]), "-c", str(family["base"])]
    told = CliRunner().invoke(command, [*asked, "--older"])
    assert told.exit_code == 0 and "as was said and not measured" in " ".join(told.output.split())
    assert "parent and child, or close siblings" in " ".join(CliRunner().invoke(command, asked).output.split())
