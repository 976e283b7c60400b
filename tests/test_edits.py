"""What was done to a tensor is told apart: every change is made by hand here, on random and on trained weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_lineage import trace
from hf_lineage.weights import edits
from hf_lineage.weights.edits import (
    EDITS,
    added_noise,
    cast_dtype,
    detect_edit,
    detect_pruning,
    low_rank_update,
    rounding_lattice,
    summarise_edits,
)

if TYPE_CHECKING:
    from conftest import Nursery

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ARCHITECTURES = ("fc", "vit", "llama")
Pair = tuple[str, Tensor, Tensor]


@pytest.fixture(scope="module")
def trained(nursery: Nursery) -> dict[str, list[Pair]]:
    """Matrices of children at learning rate 1e-2, 1e-3 and 1e-4 beside their parent's, by architecture."""
    found: dict[str, list[Pair]] = {}
    for architecture in ARCHITECTURES:
        family = nursery.family(architecture, "reduced")
        root = family.roots[0]
        parent = load_file(root.path / "model.safetensors")
        found[architecture] = []
        for member in [child for child in family.children if child.parent == root.name]:
            for name, tensor in load_file(member.path / "model.safetensors").items():
                if name in parent and parent[name].shape == tensor.shape and tensor.ndim:
                    ours, theirs = (t.flatten(1) if t.ndim > 1 else t[None] for t in (tensor, parent[name]))
                    found[architecture].append((f"{member.recipe['lr']} {name}", ours.float(), theirs.float()))
    return found


@pytest.fixture(
    params=["random", "narrow", *(pytest.param(name, marks=pytest.mark.integration) for name in ARCHITECTURES)]
)
def parent(request: pytest.FixtureRequest) -> Tensor:
    """One matrix of a parent, random or trained."""
    generator = torch.Generator().manual_seed(3)
    if request.param == "random":
        return torch.randn(192, 256, generator=generator) / 16
    if request.param == "narrow":
        return torch.randn(96, 64, generator=generator) / 8
    pairs = request.getfixturevalue("trained")[request.param]
    return next(p for name, _, p in pairs if min(p.shape) >= 64 and "embed" not in name)


def quantise(weights: Tensor, bits: int, size: int, zero_point: bool) -> Tensor:
    """Round to nearest in groups of `size` values: scales from the largest, or from minimum and maximum."""
    groups = weights.reshape(-1, size)
    if zero_point:
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        zero = torch.round(-low / scale)
        whole = torch.clamp(torch.round(groups / scale) + zero, 0, 2**bits - 1)
        return (scale * (whole - zero)).reshape(weights.shape)
    scale = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (scale * torch.round(groups / scale)).reshape(weights.shape)


def adapter(shape: torch.Size, rank: int, condition: float = 1.0) -> Tensor:
    """B·A of that rank with a geometric spectrum, of norm 1."""
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64))[0] for n in shape)
    values = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    return ((left * values) @ right.T / values.norm()).float()


@pytest.mark.integration
class TestLattice:
    @pytest.mark.parametrize("zero_point", [False, True], ids=["absmax", "minmax"])
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_rows(self, parent: Tensor, bits: int, dtype: str, zero_point: bool) -> None:
        child = quantise(parent, bits, parent.shape[1], zero_point).to(DTYPES[dtype]).float()
        found = detect_edit(child, parent)
        assert found.kind == "quantized" and found.lattice
        assert (found.lattice.bits, found.lattice.scheme) == (bits, "row")

    @pytest.mark.parametrize("bits", [4, 8])
    def test_one_scale(self, parent: Tensor, bits: int) -> None:
        found = rounding_lattice(quantise(parent, bits, parent.numel(), False))
        assert found and (found.bits, found.scheme, found.symmetric) == (bits, "tensor", True)

    @pytest.mark.parametrize("zero_point", [False, True], ids=["absmax", "minmax"])
    @pytest.mark.parametrize("size", [32, 64, 128])
    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_groups(self, size: int, dtype: str, zero_point: bool) -> None:
        parent = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) / 32
        found = rounding_lattice(quantise(parent, 4, size, zero_point).to(DTYPES[dtype]).float())
        assert found and (found.bits, found.scheme, found.symmetric) == (4, f"group {size}", not zero_point)

    def test_columns(self, parent: Tensor) -> None:
        found = rounding_lattice(quantise(parent.T.contiguous(), 8, len(parent), False).T.contiguous())
        assert found and (found.bits, found.scheme) == (8, "column")

    def test_pruned_before(self, parent: Tensor) -> None:
        small = parent.abs() < parent.abs().median()
        found = detect_edit(quantise(torch.where(small, 0, parent), 8, parent.shape[1], False), parent)
        assert found.kind == "quantized" and found.lattice and found.lattice.bits == 8
        assert found.pruned and found.pruned.zeros == pytest.approx(0.5, abs=0.05) and found.pruned.magnitude

    def test_another_model_quantised_is_no_rounding_of_this_one(self, parent: Tensor) -> None:
        other = torch.randn(parent.shape, generator=torch.Generator().manual_seed(9)) * parent.std()
        assert detect_edit(quantise(other, 8, parent.shape[1], False), parent).kind == "other"

    @pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
    def test_a_cast_is_no_lattice(self, parent: Tensor, dtype: torch.dtype) -> None:
        assert rounding_lattice(parent.to(dtype).float()) is None
        assert rounding_lattice(torch.where(parent.abs() < parent.std(), 0, parent).to(dtype).float()) is None

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.37])
    def test_constant_rows_are_none(self, value: float) -> None:
        assert (
            rounding_lattice(torch.full((32, 64), value)) is None
            and rounding_lattice(torch.full((1, 64), value)) is None
        )


@pytest.mark.parametrize("name", EDITS)
class TestEveryEdit:
    """What holds for each member of the registry."""

    def test_nothing_was_done(self, parent: Tensor, name: str) -> None:
        assert EDITS[name](parent, parent) is None

    def test_the_parent_is_left_as_it_was(self, parent: Tensor, name: str) -> None:
        before, child = parent.clone(), parent + 1e-3 * parent.abs()
        EDITS[name](child, parent)
        assert torch.equal(parent, before)

    def test_a_zero_matrix_breaks_nothing(self, parent: Tensor, name: str) -> None:
        zeros = torch.zeros_like(parent)
        for child, start in ((parent, zeros), (zeros, parent), (zeros, zeros)):
            assert EDITS[name](child, start) is None


class TestCast:
    @pytest.mark.parametrize("name", ["BF16", "F16"])
    def test_both_directions(self, parent: Tensor, name: str) -> None:
        child = parent.to(DTYPES[name]).float()
        assert cast_dtype(child, parent) == name and detect_edit(child, parent).kind == "cast"
        assert cast_dtype(parent, child) is None and cast_dtype(parent, parent) is None

    @pytest.mark.parametrize("saved", ["F32", "BF16"])
    @pytest.mark.parametrize("scaled", ["no", "tensor", "row"])
    @pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
    def test_eight_bits(self, parent: Tensor, name: str, scaled: str, saved: str) -> None:
        dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[name]
        top = parent.abs().amax(1, keepdim=True) if scaled == "row" else parent.abs().max()
        scale = top / torch.finfo(dtype).max if scaled != "no" else torch.ones(())
        child = ((parent / scale).to(dtype).float() * scale).to(DTYPES[saved]).float()
        found = detect_edit(child, parent)
        assert (found.kind, found.cast) == ("quantized", name)


class TestPruned:
    @pytest.mark.parametrize("dtype", ["F32", "BF16"])
    def test_smallest_of_the_tensor(self, parent: Tensor, dtype: str) -> None:
        child = torch.where(parent.abs() < parent.abs().median(), 0, parent).to(DTYPES[dtype]).float()
        found = detect_edit(child, parent).pruned
        assert found and found.magnitude and found.kept_equal == 1.0 and not found.two_four
        assert found.zeros == pytest.approx(0.5, abs=0.01)

    def test_two_of_four(self, parent: Tensor) -> None:
        fours = parent.reshape(-1, 4)
        out = fours.abs() <= fours.abs().sort(1).values[:, 1:2]
        found = detect_pruning(torch.where(out, 0, fours).reshape(parent.shape), parent)
        assert found and found.two_four and found.magnitude

    def test_at_random(self, parent: Tensor) -> None:
        out = torch.rand(parent.shape, generator=torch.Generator().manual_seed(0)) < 0.3
        found = detect_pruning(torch.where(out, 0, parent), parent)
        assert found and not found.magnitude and found.zeros == pytest.approx(0.3, abs=0.02)


class TestLowRank:
    @pytest.mark.parametrize("condition", [1.0, 30.0, 1e3])
    @pytest.mark.parametrize("rank", [4, 16, 64])
    @pytest.mark.parametrize("shape", [(128, 128), (192, 64), (512, 700)], ids=str)
    def test_merged_in_float32(self, shape: tuple[int, int], rank: int, condition: float) -> None:
        parent = torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 8
        child = parent + 0.02 * parent.norm() * adapter(parent.shape, rank, condition)
        assert low_rank_update(child, parent) == (rank if 2 * rank <= min(shape) else None)

    def test_on_trained_weights(self, parent: Tensor) -> None:
        found = detect_edit(parent + 0.02 * parent.norm() * adapter(parent.shape, 16), parent)
        assert (found.kind, found.rank) == ("adapter", 16)

    @pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 0.5])
    @pytest.mark.parametrize("condition", [1.0, 30.0, 1e3])
    @pytest.mark.parametrize("dtype", ["BF16", "F16"])
    def test_merged_in_sixteen_bits_right_or_silent(self, dtype: str, condition: float, size: float) -> None:
        parent = (torch.randn(256, 256, generator=torch.Generator().manual_seed(1)) / 16).to(DTYPES[dtype]).float()
        child = (parent + size * parent.norm() * adapter(parent.shape, 16, condition)).to(DTYPES[dtype]).float()
        found = low_rank_update(child, parent)
        assert found in (16, None)
        if size >= 0.1 and condition == 1.0:
            assert found == 16

    def test_fewer_rows_than_the_rank(self, parent: Tensor) -> None:
        assert low_rank_update(parent[:8] + 0.01 * adapter(parent.shape, 16)[:8], parent[:8]) is None


class TestNoise:
    @pytest.mark.parametrize("size", [1e-3, 0.01, 0.1, 1.0])
    @pytest.mark.parametrize("kind", ["gaussian", "uniform"])
    def test_added(self, parent: Tensor, kind: str, size: float) -> None:
        generator = torch.Generator().manual_seed(4)
        draw = torch.randn(parent.shape, generator=generator)
        if kind == "uniform":
            draw = (torch.rand(parent.shape, generator=generator) * 2 - 1) * math.sqrt(3)
        found = detect_edit(parent + size * parent.std() * draw, parent)
        assert found.kind == "noise" and found.noise == pytest.approx(size, rel=0.05)

    def test_another_start_is_no_noise(self, parent: Tensor) -> None:
        other = torch.randn(parent.shape, generator=torch.Generator().manual_seed(9)) * parent.std()
        assert added_noise(other, parent) is None


class TestNoFalseAlarm:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_an_ordinary_finetune(self, trained: dict[str, list[Pair]], architecture: str, dtype: str) -> None:
        for name, child, parent in trained[architecture]:
            child, parent = (t.to(DTYPES[dtype]).float() for t in (child, parent))
            found = detect_edit(child, parent)
            assert found.kind in ("other", "equal") and found.lattice is None, name


class TestSummary:
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for i, shape in enumerate([(128, 128), (192, 64), (64, 256)]):
            yield f"layer{i}", torch.randn(shape, generator=torch.Generator().manual_seed(i)) / 8
        yield "norm", torch.ones(1, 128)

    def test_each_kind(self) -> None:
        parent = dict(self.tensors())
        sizes = {name: t.numel() for name, t in parent.items()}
        made = {
            "quantized": lambda t: quantise(t, 4, t.shape[1], True),
            "pruned": lambda t: torch.where(t.abs() < 0.1, 0, t),
            "adapter": lambda t: t + 0.1 * adapter(t.shape, 8),
            "noise": lambda t: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(7)),
            "cast": lambda t: t.bfloat16().float(),
            "equal": lambda t: t.clone(),
        }
        told = {}
        for kind, make in made.items():
            changes = {n: detect_edit(make(t) if "layer" in n else t, t) for n, t in parent.items()}
            found, facts = summarise_edits(changes, sizes)
            assert found == kind and facts["share"] == 1.0
            told[kind] = json.loads(json.dumps(facts))
        assert told["adapter"]["rank"] == 8 and told["adapter"]["low_rank_tensors"] == 3
        assert (told["quantized"]["bits"], told["quantized"]["symmetric"]) == (4, False)
        assert told["pruned"]["magnitude"] and told["cast"]["cast"] == "BF16"

    def test_an_adapter_with_something_else_is_neither(self) -> None:
        parent = dict(self.tensors())
        changes = {n: detect_edit(t + 0.1 * adapter(t.shape, 8), t) for n, t in parent.items() if n != "norm"}
        changes["layer2"] = detect_edit(parent["layer2"] * torch.linspace(0.9, 1.1, 256), parent["layer2"])
        assert summarise_edits(changes, {n: t.numel() for n, t in parent.items()})[0] == "other"


@pytest.mark.parametrize("everywhere", [True, False])
def test_dear_questions_are_asked_of_few_matrices_first(everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a draw shows a low-rank step all matrices are asked; else no lattice is looked for beyond the draws."""
    asked: list[int] = []
    whole = edits.rounding_lattice
    monkeypatch.setattr(edits, "rounding_lattice", lambda rows: (asked.append(len(rows)), whole(rows))[1])
    draw = torch.Generator().manual_seed(7)

    def layers(step: float, rank: int) -> dict[str, Tensor]:
        every = {}
        for i in range(60):
            change = torch.randn(32, rank, generator=draw) @ torch.randn(rank, 32, generator=draw)
            every[f"layers.{i}.weight"] = base[f"layers.{i}.weight"] + step * change
        return every

    base = {f"layers.{i}.weight": torch.randn(32, 32, generator=draw) for i in range(60)}
    answer = trace(layers(0.01, 2 if everywhere else 32), [base], relatives=False)
    counted = answer.candidates[0].facts["tensors"]
    assert sum(counted.values()) == 60 and counted.get("adapter", 0) == (60 if everywhere else 0)
    assert (60 if everywhere else 0) < len(asked) <= (60 if everywhere else 16) + 16  # the child's and the base's
