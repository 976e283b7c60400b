"""Disguises change no output; the test that ignores them is exact; the match that undoes them finds what was planted."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from hf_lineage.errors import ArgumentError
from hf_lineage.experiments.disguises import DISGUISES, permute, rescale
from hf_lineage.experiments.families import SIZES, build, train_family
from hf_lineage.weights.unit_matching import (
    RELATED_SCORE,
    _draw,
    _gram,
    _variance,
    assignment,
    mantel_test,
    match_units,
)

pytestmark = pytest.mark.integration

Tensors = dict[str, torch.Tensor]
ARCHITECTURES = ("fc", "resnet", "vit", "llama")
ORDERS = {
    "fc": {"fc1": ("fc1.weight",), "fc2": ("fc2.weight",)},
    "resnet": {f"layer{i}.0": (f"layer{i}.0.conv1.weight",) for i in (1, 2, 3, 4)},
    "vit": {f"blocks.{i}": (f"blocks.{i}.mlp.fc1.weight",) for i in range(4)},
    "llama": {f"model.layers.{i}": tuple(f"model.layers.{i}.mlp.{k}_proj.weight" for k in ("gate", "up")) for i in (0, 1)},
}  # fmt: skip
READS: dict[str, dict[str, tuple[str, ...]]] = {
    "fc": {"fc1": ("fc2.weight",)},
    "resnet": {f"layer{i}.0": (f"layer{i}.0.conv2.weight",) for i in (1, 2, 3, 4)},
    "vit": {f"blocks.{i}": (f"blocks.{i}.mlp.fc2.weight",) for i in range(4)},
    "llama": {f"model.layers.{i}": (f"model.layers.{i}.mlp.down_proj.weight",) for i in (0, 1)},
}
STREAMS = {
    "resnet": {f"s{i}": (f"layer{i}.0.conv1.weight", f"layer{i}.0.downsample.0.weight") for i in (1, 2, 3, 4)},
    "vit": {"s": tuple(f"blocks.{i}.{k}.weight" for i in range(4) for k in ("mlp.fc1", "attn.qkv"))},
    "llama": {"s": tuple(f"model.layers.{i}.{k}_proj.weight" for i in (0, 1) for k in ("mlp.gate", "mlp.up", "self_attn.q", "self_attn.k", "self_attn.v"))},
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {name: {**SIZES[name]} for name in ARCHITECTURES}
SMALL["fc"] = {"widths": [64, 48]}


def network(architecture: str, seed: int, **sizes: Any) -> torch.nn.Module:
    """Random weights, and batch statistics as after training."""
    torch.manual_seed(seed)
    model = build(architecture, 128 if architecture == "llama" else 10, {**SMALL[architecture], **sizes})
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if architecture == "resnet":
        outputs(model.train(), architecture)
    return model.eval()


@torch.no_grad()
def outputs(model: torch.nn.Module, architecture: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    if architecture == "llama":
        return model(torch.randint(128, (4, 12), generator=generator)).logits
    return model(torch.rand(4, 1, 28, 28, generator=generator))


def tuned(tensors: Tensors, change: float, seed: int = 0) -> Tensors:
    """Every weight moved by that share of its tensor's spread."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: v + change * v.std() * torch.randn(v.shape, generator=generator) if v.ndim > 1 else v
        for k, v in tensors.items()
    }


def marks(tensors: Tensors) -> Tensors:
    """Tensors whose entries tell the row they stand in."""
    return {k: torch.arange(len(v)).reshape([-1] + [1] * (v.ndim - 1)).expand(v.shape) for k, v in tensors.items() if v.ndim}  # fmt: skip


class TestDisguises:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("name", DISGUISES)
    def test_function_preserved(self, name: str, architecture: str) -> None:
        model = network(architecture, 1)
        before, plain = outputs(model, architecture), {k: v.clone() for k, v in model.state_dict().items()}
        once = DISGUISES[name](plain, architecture, 3)
        for tensors in (once, *(disguise(once, architecture, 4) for disguise in DISGUISES.values())):
            assert list(tensors) == list(plain) and any(not torch.equal(tensors[k], plain[k]) for k in plain)
            model.load_state_dict(tensors)
            torch.testing.assert_close(outputs(model, architecture), before, atol=1e-4, rtol=1e-4)

    def test_every_order_is_disguised(self) -> None:
        """Each matrix of hidden units or heads, and each that reads them, is another one after either disguise."""
        for architecture in ARCHITECTURES:
            plain = network(architecture, 1).state_dict()
            names = [n for o in (ORDERS, READS) for group in o[architecture].values() for n in group]
            names += [n for n in plain if n.endswith((".qkv.weight", "attn.proj.weight", "self_attn.o_proj.weight"))]
            permuted = permute(plain, architecture, 3)
            assert not [n for n in names if torch.equal(permuted[n], plain[n])]
            scaled = rescale(plain, architecture, 3)
            same = {n for n in names if torch.equal(scaled[n], plain[n])}
            # batch norm takes the factor for conv1, `up` for `gate`, and GELU has a scale of its own
            assert all(
                n.endswith(("conv1.weight", "gate_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")) for n in same
            )

    def test_grouped_queries(self) -> None:
        """Heads stay with the keys and values they read."""
        model = network("llama", 1, num_key_value_heads=2)
        before, plain = outputs(model, "llama"), {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(rescale(permute(plain, "llama", 3), "llama", 4))
        torch.testing.assert_close(outputs(model, "llama"), before, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", DISGUISES)
    def test_seeded_and_pure(self, name: str) -> None:
        plain = network("fc", 1).state_dict()
        copy = {k: v.clone() for k, v in plain.items()}
        one, two, other = (DISGUISES[name](plain, "fc", seed) for seed in (1, 1, 2))
        assert all(torch.equal(one[k], two[k]) and torch.equal(plain[k], copy[k]) for k in plain)
        assert not torch.equal(one["fc1.weight"], other["fc1.weight"])

    @pytest.mark.parametrize("name", DISGUISES)
    def test_unknown_architecture(self, name: str) -> None:
        with pytest.raises(ArgumentError, match="fc, resnet"):
            DISGUISES[name]({}, "bert", 0)


def square(n: int, seed: int) -> np.ndarray:
    """Symmetric, with strong rows, as `_gram` leaves it."""
    weights = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed))
    return _gram([weights * torch.linspace(1, 3, n)], np.arange(n))


class TestMantel:
    def test_mean_and_variance_are_exact(self) -> None:
        """Against a loop over all 6! permutations."""
        a, b = square(6, 1), square(6, 2)
        every = [
            sum(a[i, j] * b[p[i], p[j]] for i in range(6) for j in range(6) if i != j)
            for p in itertools.permutations(range(6))
        ]
        assert np.mean(every) == pytest.approx(0.0, abs=1e-12)
        assert _variance(a, b) == pytest.approx(np.var(every))
        drawn = _draw(a, b, np.random.default_rng(0), 4000)
        assert set(np.round(drawn, 9)) <= set(np.round(every, 9))
        assert drawn.std() == pytest.approx(np.std(every), rel=0.05)

    def test_p_is_that_of_all_permutations(self) -> None:
        weights = {s: {"w": torch.randn(12, 6, generator=torch.Generator().manual_seed(s))} for s in range(8)}
        for one, two in itertools.combinations(weights, 2):
            a, b = (_gram([weights[s]["w"]], np.arange(6)) for s in (one, two))
            t = np.vdot(a, b)
            exact = np.mean([np.vdot(a, b[list(p)][:, list(p)]) >= t - 1e-9 for p in itertools.permutations(range(6))])
            test = mantel_test(weights[one], weights[two], {"s": ("w",)}, seed=0)
            assert test is not None and test.p_monte_carlo == pytest.approx(exact, rel=0.5, abs=0.01)

    def test_calibrated_on_strangers(self) -> None:
        """Two streams of unlike size, one with outlier coordinates that every model has somewhere."""
        generator = torch.Generator().manual_seed(0)

        def model() -> Tensors:
            loud = torch.ones(24)
            loud[torch.randperm(24, generator=generator)[:3]] = 4.0
            return {"a": torch.randn(40, 24, generator=generator) * loud, "b": torch.randn(20, 12, 3, 3, generator=generator)}  # fmt: skip

        tests = [mantel_test(model(), model(), {"s": ("a",), "t": ("b",)}, seed=i, draws=199) for i in range(300)]
        p = np.array([test.p_monte_carlo for test in tests if test])
        z = np.array([test.z for test in tests if test])
        assert len(p) == 300 and abs(z.mean()) < 0.2 and 0.88 < z.std() < 1.12
        assert stats.kstest(p, "uniform").pvalue > 0.001 and (p <= 0.01).mean() < 0.025

    @pytest.mark.parametrize("architecture", ["resnet", "vit", "llama"])
    def test_ignores_disguises_and_finds_children(self, architecture: str) -> None:
        parent, stranger = (network(architecture, seed).state_dict() for seed in (1, 2))
        child = tuned(parent, 0.3)
        disguised = rescale(permute(child, architecture, 5), architecture, 6)
        plain, blind, other = (
            mantel_test(one, two, STREAMS[architecture], seed=0)
            for one, two in ((child, parent), (disguised, parent), (child, stranger))
        )
        assert plain is not None and blind is not None and other is not None
        assert blind.z == pytest.approx(plain.z, rel=1e-4) and blind.z > 10 and abs(other.z) < 4
        assert blind.log10_p <= -4 and plain.method == blind.method == "proven"

    def test_subset_of_wide_streams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both models are cut to the same coordinates."""
        monkeypatch.setattr("hf_lineage.weights.unit_matching.COORDINATES", 32)
        one, two = (torch.randn(200, 80, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
        test = mantel_test({"w": one}, {"w": one + 0.2 * two}, {"s": ("w",)}, seed=0)
        assert test is not None and test.layers[0][1] == 32 and test.z > 10

    def test_bad_input(self) -> None:
        good = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
        broken = good.clone()
        broken[3, 2], broken[4], broken[5, 0] = math.nan, 0.0, math.inf
        test = mantel_test({"w": broken}, {"w": good}, {"s": ("w",)}, seed=0)
        assert test is not None and test.z > 3 and math.isfinite(test.log10_p)
        for a, b in (
            (good, torch.zeros(30, 8)), (good, torch.full((30, 8), math.nan)), (good, good[:, :5]),
            (good[:, :3], good[:, :3]), (torch.full((30, 8), 0.3), torch.full((30, 8), 0.3)),
        ):  # fmt: skip
            assert mantel_test({"w": a}, {"w": b}, {"s": ("w",)}, seed=0) is None
        assert mantel_test({"w": good}, {}, {"s": ("w",)}, seed=0) is None
        assert mantel_test({"w": good}, {"w": good}, {}, seed=0) is None


@pytest.mark.parametrize("bias", [0.0, 0.5, 5.0])
def test_the_assignment_is_scipys(bias: float) -> None:
    """Of random gains, and of those of related models, whose best ones are a permutation already; with ties, too."""
    from scipy.optimize import linear_sum_assignment

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(30, generator=generator)
        gain = torch.rand(30, 30, generator=generator) + bias * torch.eye(30)[order]
        gain = gain.mul(4).round() if seed % 2 else gain
        found, best = assignment(gain), linear_sum_assignment(gain.numpy(), maximize=True)[1]
        assert sorted(found) == [*range(30)]
        assert float(gain[range(30), found].sum()) == pytest.approx(float(gain[range(30), best].sum()))
        assert bias < 5 or (found == order.numpy()).all()


class TestMatch:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_finds_what_was_planted(self, architecture: str) -> None:
        """Units exactly, and the factors: the realigned candidate is the child to 1e-3."""
        parent = network(architecture, 1).state_dict()
        child = rescale(permute(tuned(parent, 1e-3), architecture, 5), architecture, 6)
        planted = permute(marks(parent), architecture, 5)
        orders, reads = ORDERS[architecture], READS[architecture]
        found = match_units(child, parent, orders, reads)
        assert found.score == 1.0 and {*found.agreement} == {*reads}
        for order, names in orders.items():
            assert found.units[order].tolist() == planted[names[0]].flatten(1)[:, 0].tolist()
        last = {"fc": {"fc2.weight"}}.get(architecture, set())  # its columns have factors too
        for name in {n for o in (orders, reads) for group in o.values() for n in group} - last:
            again = found.reorder(name, parent[name])
            assert (again - child[name]).norm() < 3e-3 * child[name].norm(), name
        # rescaling by columns only where rows are nobody's units: the factor itself is determined
        if architecture == "llama":
            up, truth = "model.layers.0.mlp.up_proj.weight", found.units["model.layers.0"]
            factor = (child[up] * parent[up][truth]).sum(1) / parent[up][truth].square().sum(1)
            assert np.abs(found.factors[up, 0] / factor.numpy() - 1).max() < 1e-3 and (found.factors[up, 0] < 0).any()

    def test_products_of_factors_on_both_sides(self) -> None:
        parent = network("fc", 1).state_dict()
        child = rescale(permute(tuned(parent, 1e-4), "fc", 5), "fc", 6)
        found = match_units(child, parent, ORDERS["fc"], READS["fc"])
        for name in ("fc1.weight", "fc2.weight"):
            again = found.reorder(name, parent[name])
            assert (again - child[name]).norm() < 1e-3 * child[name].norm()
        assert torch.equal(found.reorder("head.weight", parent["head.weight"]), parent["head.weight"])

    def test_against_a_loop(self) -> None:
        """Five units: both matchings by trying all 5! of them, cosines written out."""

        def best(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
            def cosine(i: int, j: int) -> float:
                x, y = a[i] / np.linalg.norm(a[i]), b[j] / np.linalg.norm(b[j])
                x = x - np.mean([r / np.linalg.norm(r) for r in a], axis=0)
                y = y - np.mean([r / np.linalg.norm(r) for r in b], axis=0)
                return abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y)

            return max(itertools.permutations(range(5)), key=lambda p: sum(cosine(i, p[i]) for i in range(5)))

        for seed in range(20):
            rng = np.random.default_rng(seed)
            w, v = rng.normal(size=(5, 7)), rng.normal(size=(6, 5))
            other = w + 0.8 * rng.normal(size=w.shape), v + 0.8 * rng.normal(size=v.shape)
            rows, readers = best(w, other[0]), best(v.T, other[1].T)
            one, two = ({"w": torch.tensor(a), "v": torch.tensor(b).reshape(6, 5, 1, 1)} for a, b in ((w, v), other))
            found = match_units(one, two, {"o": ("w",)}, {"o": ("v",)})
            agree = sum(i == j for i, j in zip(rows, readers, strict=True))
            assert tuple(found.units["o"]) == rows and found.agreement == {"o": (agree, 5)}
            passing = [
                [m["w"][i].norm() * m["v"][:, i].norm() for i in chosen] for m, chosen in ((one, range(5)), (two, rows))
            ]
            agreeing = [i for i in range(5) if rows[i] == readers[i]]
            by_weight = min(float(sum(each[i] for i in agreeing) / sum(each)) for each in passing)
            assert found.score == pytest.approx(min(max(0, (agree - 1) / 4), by_weight), rel=1e-5)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_strangers_agree_by_chance(self, architecture: str) -> None:
        one, two = (network(architecture, seed).state_dict() for seed in (1, 2))
        score = match_units(one, two, ORDERS[architecture], READS[architecture]).score
        assert score is not None and score < 0.1

    def test_trained_children(self, tmp_path: Path) -> None:
        """Two trained roots on one core: their disguised children, tuned at rates up to 1e-2, are told apart."""
        family = train_family(tmp_path, "fc", roots=2, children=2, seed=5, sizes={"widths": [64, 48]}, same_recipe=True)
        weights = {m.name: load_file(m.path / "model.safetensors") for m in family.members}
        assert len(family.children) == 4
        for i, child in enumerate(family.children):
            disguised = rescale(permute(weights[child.name], "fc", i), "fc", i)
            for root in family.roots:
                score = match_units(disguised, weights[root.name], ORDERS["fc"], READS["fc"]).score
                assert score is not None and (
                    score > 2 * RELATED_SCORE if root.name == child.parent else score < RELATED_SCORE / 2
                )

    def test_order_of_orders_does_not_matter(self) -> None:
        parent = network("fc", 1, widths=[40, 30, 20]).state_dict()
        child = permute(tuned(parent, 0.1), "fc", 5)
        orders = {f"fc{i}": (f"fc{i}.weight",) for i in (1, 2, 3)}
        reads = {"fc1": ("fc2.weight",), "fc2": ("fc3.weight",)}
        forward = match_units(child, parent, orders, reads)
        backward = match_units(child, parent, dict(reversed(orders.items())), dict(reversed(reads.items())))
        assert forward.score == backward.score == 1.0
        assert all((forward.units[o] == backward.units[o]).all() for o in orders)

    def test_broken_and_dead_units(self) -> None:
        """They are matched with whatever is left over, and not counted."""
        parent = network("fc", 1).state_dict()
        child = permute(tuned(parent, 0.05), "fc", 5)
        child["fc1.weight"][3, 2], child["fc1.weight"][4], child["fc2.weight"][:, 7] = math.nan, 0.0, 0.0
        found = match_units(child, parent, ORDERS["fc"], READS["fc"])
        assert found.score == 1.0 and found.agreement == {"fc1": (61, 61)}
        assert sorted(found.units["fc1"]) == list(range(64))
        assert all(np.isfinite(f).all() for f in found.factors.values())
        zeros = {k: torch.zeros_like(v) for k, v in parent.items()}
        assert match_units(zeros, zeros, ORDERS["fc"], READS["fc"]).score is None

    def test_nothing_to_compare(self) -> None:
        """No second opinion, no score: the units are lined up all the same where there are any."""
        w = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
        head, other = torch.randn(4, 6), torch.randn(5, 6)
        for a, b, reads in (
            ({"w": w}, {"w": w}, {}),
            ({"w": w}, {"w": w}, {"o": ("head",)}),
            ({"w": w, "head": head}, {"w": w, "head": other}, {"o": ("head",)}),
        ):
            found = match_units(a, b, {"o": ("w",)}, reads)
            assert found.score is None and found.units["o"].tolist() == list(range(6))
        assert match_units({"w": w}, {}, {"o": ("w",)}, {}).units == {}
        assert (
            match_units({"w": w, "v": w}, {"w": w, "v": w}, {"o": ("w",)}, {"o": ("v",)}).score is None
        )  # 9 columns, 6 units
        one = {"w": w[:1], "v": head[:, :1]}
        assert match_units(one, one, {"o": ("w",)}, {"o": ("v",)}).score is None
