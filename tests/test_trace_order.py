"""Who came first, as `trace` says it: models in half precision that moved by a few tenths of a per cent of their norm."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hf_lineage as hl
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

Tensors = dict[str, Tensor]
WIDTH, LAYERS = 1200, 4


def net(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for i in range(1, LAYERS + 1):
        made[f"fc{i}.weight"] = (torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5).bfloat16()
        made[f"fc{i}.bias"] = (0.1 * torch.randn(WIDTH, generator=generator)).bfloat16()
    return made


def tuned(base: Tensors, seed: int, spread: float, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    step = {name: spread * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    return {name: (t.float() + step[name]).to(dtype) for name, t in base.items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = net(1)
    light = tuned(base, 2, 1e-4)
    models = {
        "base": base, "light": light, "heavy": tuned(base, 3, 4e-4), "twin": tuned(base, 4, 1e-4),
        "grandchild": tuned(light, 5, 1e-4), "float32": tuned(base, 6, 1e-5, torch.float32),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("orders")
    for name, tensors in models.items():
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors")
    return {name: root / name for name in models}


def test_a_light_child_has_a_parent(family: dict[str, Path]) -> None:
    there, back = hl.trace(family["light"], [family["base"]]), hl.trace(family["base"], [family["light"]])
    assert (there.verdict, there.parent) == ("parent", str(family["base"]))
    assert (back.verdict, back.candidates[0].relation) == ("common_origin", "descendant")
    order = there.candidates[0].order
    assert order is not None and order.position == pytest.approx(1.0, abs=0.3) and order.method == "rounding_edges"
    assert order.radius is not None and there.candidates[0].distance is not None
    assert 0 < order.radius < 0.5 * there.candidates[0].distance
    assert "or from a model within" in there.sentence() and "directly" not in there.sentence()
    assert "roundings of 6 M weights show" in there.explain()
    total = (there.candidates[0].probability or 0) + (back.candidates[0].probability or 0)
    assert total <= 1
    read = hl.Lineage.from_json(there.to_json()).candidates[0].order
    assert read is not None and read.reason == order.reason and read.radius == pytest.approx(order.radius)


def test_a_sibling_that_moved_less_is_not_called_the_parent(family: dict[str, Path]) -> None:
    """Its roundings look as a parent's do, but it shows the mark of a base of its own."""
    for child, candidate in (("heavy", "light"), ("light", "heavy"), ("twin", "light")):
        answer = hl.trace(family[child], [family[candidate]])
        assert (answer.verdict, answer.parent) == ("common_origin", None)
        expected = ("neither", "sibling") if child == "twin" else (None, "common_origin")
        assert (answer.candidates[0].first, answer.candidates[0].relation) == expected
    answer = hl.trace(family["heavy"], [family["light"]])
    assert "or the model that it was itself trained from" in answer.explain(), "nobody is accused"
    assert answer.candidates[0].facts["own_base"] and "may be the parent of both" in answer.sentence()
    assert hl.trace(family["heavy"], [family["light"], family["base"]]).parent == str(family["base"])


def test_a_parent_that_was_tuned_itself_needs_its_base_beside_it(family: dict[str, Path]) -> None:
    alone = hl.trace(family["grandchild"], [family["light"]])
    assert (alone.verdict, alone.parent) == ("common_origin", None)
    beside = hl.trace(family["grandchild"], [family["light"], family["base"]])
    assert (beside.verdict, beside.parent) == ("parent", str(family["light"]))
    first = beside.candidates[0]
    assert first.order and "itself trained" not in first.order.reason and "light came first (λ" in beside.explain()
    assert first.first == "candidate" and "own_base" not in first.facts and (first.probability or 0) > 0.75
    assert first.facts["inherited_from"] == str(family["base"])
    silent = replace(
        beside, candidates=(replace(first, order=None), *beside.candidates[1:])
    )  # where steps decide nothing
    assert "kept what rounding made of its step from" in silent.explain()
    assert sum(c.probability or 0 for c in beside.candidates) + (beside.none_probability or 0) == pytest.approx(1)
    sibling = hl.trace(family["grandchild"], [family["light"], family["heavy"]])
    assert sibling.parent is None, "a sibling is no base"


def test_between_a_sibling_and_their_base_the_base_is_the_parent(family: dict[str, Path]) -> None:
    """Also where the sibling is nearer to the child, for both moved alike; and the child of it is named as such."""
    for child, sibling in (("heavy", "twin"), ("twin", "heavy"), ("twin", "light")):
        answer = hl.trace(family[child], [family[sibling], family["base"]])
        assert answer.parent == str(family["base"]), (child, sibling)
    answer = hl.trace(family["light"], [family["grandchild"], family["base"]])
    assert answer.parent != str(family["grandchild"]), "asked the other way round"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sibling, tuned in one weight of fifty: its own roundings show nothing."""
    base = {name: t.clone() for name, t in net(1).items()}
    generator = torch.Generator().manual_seed(9)
    sparse = {
        name: (t.float() + 2e-4 * torch.randn(t.shape, generator=generator) * (torch.rand(t.shape, generator=generator) < 0.02)).to(t.dtype)
        for name, t in base.items()
    }  # fmt: skip
    path = tmp_path_factory.mktemp("sparse")
    save_file(sparse, path / "model.safetensors")
    return path


def test_a_sibling_without_the_mark_is_not_called_the_parent_beside_the_base(
    family: dict[str, Path], sparse: Path
) -> None:
    answer = hl.trace(family["heavy"], [sparse, family["base"]])
    assert answer.parent != str(sparse)
    sparse_one = next(c for c in answer.candidates if c.ref == str(sparse))
    assert sparse_one.first == "candidate" and (sparse_one.probability or 0) <= 0.5, "alone it seems older"


def test_the_declared_base_of_a_candidate_is_compared_unasked(family: dict[str, Path], hub: MiniHub) -> None:
    for name, base in (("base", ""), ("light", "---\nbase_model: lab/base\n---\n"), ("grandchild", "")):
        card = {"README.md": base.encode()} if base else {}
        hub.add(f"lab/{name}", files={"model.safetensors": family[name] / "model.safetensors", **card})
    answer = hl.trace("lab/grandchild", ["lab/light"], sample="all")
    assert (answer.parent, {c.ref for c in answer.candidates}) == ("lab/light", {"lab/light", "lab/base"})
    assert any(note.code == "own_base_compared" and "lab/base" in note for note in answer.notes)
    hub.fault(503, file="lab/base/*", times=100)
    assert hl.trace("lab/grandchild", ["lab/light"], sample="all").verdict == "common_origin"


def test_the_declared_base_of_an_unmarked_candidate_is_compared_unasked(
    family: dict[str, Path], sparse: Path, hub: MiniHub
) -> None:
    """A sibling whose own roundings show nothing seems to be the parent; its card tells whose child it is."""
    for name, path in (("base", family["base"]), ("sparse", sparse), ("heavy", family["heavy"])):
        card = {"README.md": b"---\nbase_model: lab/base\n---\n"} if name == "sparse" else {}
        hub.add(f"lab/{name}", files={"model.safetensors": path / "model.safetensors", **card})
    alone = hl.trace("lab/heavy", ["lab/sparse"], sample="all", relatives=False)
    assert (alone.parent, [c.ref for c in alone.candidates]) == ("lab/sparse", ["lab/sparse"]), "the danger"
    answer = hl.trace("lab/heavy", ["lab/sparse"], sample="all")
    assert answer.parent in (None, "lab/base") and {c.ref for c in answer.candidates} == {"lab/base", "lab/sparse"}
    assert [note.code for note in answer.notes][:1] == ["own_base_compared"]
    of_pair = next(c for c in answer.candidates if c.ref == "lab/sparse")
    assert (of_pair.p_raw, of_pair.order) == (alone.candidates[0].p_raw, alone.candidates[0].order)
    most = alone.bytes_read + 1000
    told = hl.trace("lab/heavy", ["lab/sparse"], sample="all", max_bytes=most)
    assert told.parent == "lab/sparse" and any(note.code == "own_base_not_read" for note in told.notes)


def test_an_origin_that_no_file_names_is_noted(family: dict[str, Path], tmp_path: Path) -> None:
    """Only where the mark is as plain as `inspect` wants it, and no file names any base."""

    def noted(child: Path, candidate: Path) -> list[str]:
        return [note for note in hl.trace(child, [candidate]).notes if note.code == "unnamed_origin"]

    for child, candidate in (("light", "base"), ("base", "light"), ("twin", "light"), ("float32", "base")):
        expected = bool(hl.inspect(family[child]).trained_since)
        assert expected == (child != "base") and len(noted(family[child], family[candidate])) == expected, child
    assert "half-precision model that its files do not name" in noted(family["light"], family["base"])[0]
    claimed = tmp_path / "claimed"
    shutil.copytree(family["light"], claimed)
    (claimed / "README.md").write_text("---\nbase_model: lab/base\n---\n")
    assert not noted(claimed, family["base"])
    lineage = hl.trace(family["light"], [family["base"]])
    assert "that its files do not name" in hl.annotate(family["light"], lineage).diff


def test_a_float32_child_of_a_half_precision_parent(family: dict[str, Path]) -> None:
    answer = hl.trace(family["float32"], [family["base"]])
    assert (answer.verdict, answer.candidates[0].order.method) == ("parent", "lattice_memory")  # type: ignore[union-attr]
    assert "directly or by way of other fine-tunes of it" in answer.sentence(), "which the roundings would tell"


def test_a_sample_tells_less_and_nothing_else(family: dict[str, Path]) -> None:
    whole = hl.trace(family["light"], [family["base"]]).candidates[0].order
    part = hl.trace(family["light"], [family["base"]], sample=0.3).candidates[0].order
    assert whole and part and part.stderr is not None and whole.stderr is not None and part.stderr > whole.stderr


def test_other_candidates_change_nothing_of_a_pair(family: dict[str, Path]) -> None:
    alone = hl.trace(family["light"], [family["base"]]).candidates[0]
    among = hl.trace(family["light"], [family["heavy"], family["base"], family["twin"]])
    assert next(c for c in among.candidates if c.ref == alone.ref).order == alone.order


def test_what_the_caller_knows_does_not_make_a_sibling_a_parent(family: dict[str, Path]) -> None:
    """A candidate that was itself tuned may be older and a sibling; where the weights say "neither", that stays."""
    for child, candidate in (("heavy", "light"), ("light", "heavy"), ("twin", "light"), ("base", "light")):
        told = hl.trace(family[child], [family[candidate]], older=True)
        best = told.candidates[0]
        assert (told.verdict, told.parent, best.facts["older"]) == ("common_origin", None, "not_taken"), (child, told)
        assert "older_not_taken" in {note.code for note in told.notes}
    notes = hl.trace(family["heavy"], [family["light"]], older=True).notes
    assert any("itself trained from another model" in note for note in notes)
    measured = hl.trace(family["grandchild"], [family["light"], family["base"]], older=True)
    assert measured.parent == str(family["light"]) and not measured.candidates[0].order_taken
    assert not {note.code for note in measured.notes} & {"older_taken", "older_not_taken"}, (
        "what was measured was not taken from the caller"
    )
