"""The Phylogeny Detector: its laws, its sums over forests, its training, its file, and what it is worth as a method.

pytest -m large tests/test_phylogeny_detector.py        about an hour on 2 cores; the tests run a reduced form.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_lineage import cli
from hf_lineage.detector.decoding import likeliest, log_likelihood, log_partition, marginals
from hf_lineage.detector.phylogeny import SHIPPED, PhylogenyConfig, PhylogenyDetector, load
from hf_lineage.detector.sets import ModelSet, angles
from hf_lineage.errors import ArgumentError, CheckpointError
from hf_lineage.experiments import phylogeny_detector as training
from hf_lineage.experiments.phylogeny_detector import Trees, accuracy, alone, among, choose, fit, shuffled
from hf_lineage.tasks.phylogeny import read_aligned_models
from hf_lineage.trees.pair_statistics import shared_information

if TYPE_CHECKING:
    from conftest import Nursery

TINY = PhylogenyConfig(width=8, heads=2, layers=1, near=2, size=12, stacks=True)
RUNGS = 300  # steps of each of the following: enough to tell them apart
LADDER = {  # what a pair sees, from its two tokens alone to everything
    "tokens": {"scales": False, "triples": False, "stacks": False},
    "tokens, stacks": {"scales": False, "triples": False, "stacks": True},
    "tokens, scales": {"scales": True, "triples": False, "stacks": False},
    "tokens, scales, triples": {"scales": True, "triples": True, "stacks": False},
    "all": {"scales": True, "triples": True, "stacks": True},
}


def a_set(weights: list[torch.Tensor]) -> ModelSet:
    """M models from T tensors (M, rows, width), float64."""
    gram = sum(torch.einsum("mij,nij->mn", w, w) for w in weights)
    told = sum(torch.from_numpy(shared_information(w)) for w in weights) / sum(w[0].numel() for w in weights)
    return ModelSet(tuple(w.float() for w in weights), gram, told)


def made_up(seed: int, roots: int = 3, shapes: tuple[tuple[int, int], ...] = ((24, 20), (16, 24))) -> Trees:
    """Trees of random steps, each orthogonal to what was there: 7 models a root, nobody trained."""
    generator = torch.Generator().manual_seed(seed)
    parents = [p + 7 * r if p >= 0 else -1 for r in range(roots) for p in (-1, 0, 0, 1, 1, 2, 2)]
    weights = [torch.empty(len(parents), *shape, dtype=torch.float64) for shape in shapes]
    for w in weights:
        for m, parent in enumerate(parents):
            step = torch.randn(w.shape[1:], generator=generator, dtype=torch.float64)
            w[m] = step if parent < 0 else w[parent] + 0.3 * (1 + torch.rand(1, generator=generator)) * step
    gram = torch.stack([torch.einsum("mij,nij->mn", w, w) for w in weights])
    told = torch.stack([torch.from_numpy(shared_information(w)) for w in weights])
    return Trees(
        tuple(w.float() for w in weights), gram, told, sum(w[0].numel() for w in weights), torch.tensor(parents)
    )


def scored(models: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(models, models, generator=generator, dtype=torch.float64)
    return scores.fill_diagonal_(-math.inf), 3 * torch.randn(models, generator=generator, dtype=torch.float64)


def forests(models: int) -> Iterator[tuple[int, ...]]:
    """All of them, as parents with −1 for none."""
    for parents in itertools.product(range(-1, models), repeat=models):
        for m in range(models):
            seen = set()
            while m >= 0 and m not in seen:
                seen.add(m)
                m = parents[m]
            if m >= 0:  # a circle
                break
        else:
            yield parents


def weigh(parents: tuple[int, ...], scores: torch.Tensor, none: torch.Tensor) -> float:
    return math.exp(sum(float(none[j] if p < 0 else scores[p, j]) for j, p in enumerate(parents)))


@pytest.fixture(scope="module")
def detector() -> PhylogenyDetector:
    """Untrained; its batch norms have seen something."""
    torch.manual_seed(0)
    found = PhylogenyDetector(PhylogenyConfig(width=16, heads=2, stacks=True)).train()
    with torch.no_grad():
        for seed in range(3):
            found(made_up(seed).whole(found.config))
    return found.eval()


@torch.no_grad()
def answer(detector: PhylogenyDetector, models: ModelSet) -> tuple[torch.Tensor, torch.Tensor]:
    scores, none = detector(models)
    return scores.masked_fill(torch.eye(len(none), dtype=torch.bool), 0.0), none


class TestLaws:
    @pytest.mark.parametrize("sees", LADDER, ids=lambda name: name.replace(", ", "+"))
    def test_permuting_the_models_permutes_the_scores(self, sees: str) -> None:
        torch.manual_seed(1)
        detector = PhylogenyDetector(PhylogenyConfig(**{**LADDER[sees], "width": 16, "heads": 2})).eval()
        for roots, seed in ((1, 3), (3, 4)):
            trees = made_up(seed, roots)
            scores, none = answer(detector, trees.whole(detector.config))
            order = torch.randperm(len(none), generator=torch.Generator().manual_seed(seed))
            turned = ModelSet(
                tuple(c[order] for c in trees.crops), trees.grams.sum(0)[order][:, order],
                trees.pieces.sum(0)[order][:, order] / trees.weights,
            )  # fmt: skip
            again, alone = answer(detector, turned)
            assert (again - scores[order][:, order]).abs().max() < 1e-5
            assert (alone - none[order]).abs().max() < 1e-5
            assert scores.std() > 1e-3  # else this says nothing

    def test_the_unit_of_the_weights_does_not_matter(self, detector: PhylogenyDetector) -> None:
        w = [torch.randn(6, 20, 16, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
        w = [0.5 * x + x[:1] for x in w]
        for factor in (1e-3, 1e3):
            for one, other in zip(
                answer(detector, a_set(w)), answer(detector, a_set([factor * x for x in w])), strict=True
            ):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    def test_any_number_of_matrices_of_any_size(self, detector: PhylogenyDetector) -> None:
        for shapes in (((3, 2),), ((40, 2), (2, 40), (17, 5), (64, 64), (9, 9))):
            scores, none = answer(detector, a_set([torch.randn(4, *s, dtype=torch.float64) for s in shapes]))
            assert scores.shape == (4, 4) and none.shape == (4,)
            assert scores.isfinite().all() and none.isfinite().all()

    def test_pieces_of_bounded_memory_say_the_same(
        self, detector: PhylogenyDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models = made_up(5).whole(detector.config)
        whole = answer(detector, models)
        monkeypatch.setattr("hf_lineage.detector.phylogeny.MAX_TRIPLES", 500)
        for one, other in zip(whole, answer(detector, models), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_equal_and_constant_models_are_no_trouble(self, detector: PhylogenyDetector) -> None:
        w = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        w[1], w[2], w[3, :6] = w[0], 1.0, 0.0
        scores, none = answer(detector, a_set([w]))
        assert scores.isfinite().all() and none.isfinite().all()

    def test_angles_are_those_of_the_triangle(self) -> None:
        x = torch.randn(5, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = torch.atanh(angles(torch.cdist(x, x).square(), torch.tensor([2]))[0, 3, 4, 3:].double()) * 0.4
        for corner, (b, c), value in ((2, (3, 4), found[0]), (3, (2, 4), found[1]), (4, (2, 3), found[2])):
            true = torch.nn.functional.cosine_similarity(x[b] - x[corner], x[c] - x[corner], dim=0)
            assert float(value) == pytest.approx(float(true), abs=1e-5)

    @pytest.mark.parametrize(
        ("crops", "gram", "what"),
        [
            ([torch.ones(1, 2, 2)], torch.ones(1, 1), "two models or more, got 1"),
            ([torch.ones(3, 2, 2)], torch.ones(2, 2), r"\(2, rows, columns\), got \[\(3, 2, 2\)\]"),
            ([], torch.ones(2, 2), r"got \[\]"),
            ([torch.full((2, 2, 2), math.nan)], torch.ones(2, 2), "got NaN or Inf"),
            ([torch.ones(2, 2, 2)], torch.tensor([[1.0, math.inf], [math.inf, 1.0]]), "got NaN or Inf"),
        ],
    )
    def test_what_is_no_set_is_refused(self, crops: list[torch.Tensor], gram: torch.Tensor, what: str) -> None:
        with pytest.raises(ArgumentError, match=what):
            ModelSet(tuple(crops), gram, torch.ones_like(gram))


class TestForests:
    @pytest.mark.parametrize("models", [2, 3, 4])
    def test_sums_over_all_forests(self, models: int) -> None:
        scores, none = scored(models, models)
        weights = {parents: weigh(parents, scores, none) for parents in forests(models)}
        assert len(weights) == (models + 1) ** (models - 1)  # Cayley's formula
        total = sum(weights.values())
        assert float(log_partition(scores, none)) == pytest.approx(math.log(total), rel=1e-9)
        pairs, alone = marginals(scores, none)
        for j in range(models):
            assert float(alone[j]) == pytest.approx(sum(w for p, w in weights.items() if p[j] < 0) / total, abs=1e-9)
            for i in set(range(models)) - {j}:
                true = sum(w for p, w in weights.items() if p[j] == i) / total
                assert float(pairs[i, j]) == pytest.approx(true, abs=1e-9)
        parents, weight = next(iter(weights.items()))
        said = log_likelihood(scores, none, torch.tensor(parents))
        assert float(said) == pytest.approx(math.log(weight / total), rel=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_the_likeliest_forest(self, seed: int) -> None:
        pairs, none = marginals(*scored(4, seed))

        def expected(parents: tuple[int, ...]) -> float:
            return sum(float(none[j] if p < 0 else pairs[p, j]) for j, p in enumerate(parents))

        found = tuple(-1 if p is None else p for p in likeliest(pairs, none))
        assert found in set(forests(4))
        assert expected(found) == pytest.approx(max(map(expected, forests(4))))

    def test_the_likelihood_has_the_gradient_that_its_definition_has(self) -> None:
        scores, none = scored(4, 9)
        own = torch.eye(4, dtype=torch.bool)

        def loss(s: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
            return log_likelihood(s.masked_fill(own, -math.inf), n, torch.tensor([-1, 0, 0, 2]))

        values = (scores.masked_fill(own, 0.0).requires_grad_(), none.requires_grad_())
        assert torch.autograd.gradcheck(loss, values)


class TestTraining:
    def test_who_is_left_out_is_stepped_over(self) -> None:
        parents = torch.tensor([-1, 0, 1, 2, 1, -1])
        assert among(parents, torch.tensor([3, 0, 5, 4])).tolist() == [1, -1, -1, 1]
        assert among(parents, torch.arange(6)).tolist() == parents.tolist()

    def test_sets_are_of_some_trees_and_two_models_at_least(self) -> None:
        rng, parents = random.Random(0), made_up(1).parents
        sizes = set()
        for _ in range(100):
            models = choose(parents, rng)
            assert len(set(models.tolist())) == len(models) <= training.MAX_MODELS
            sizes.add(len(models))
        assert min(sizes) >= 2 and len(sizes) > 5

    def test_shuffled_labels_are_the_same_trees_elsewhere(self) -> None:
        rng, parents = random.Random(0), made_up(1).parents
        found = shuffled(parents, rng)

        def shape(p: torch.Tensor) -> list[int]:
            return sorted(torch.bincount(p + 1, minlength=len(p) + 1)[1:].tolist())

        assert found.tolist() != parents.tolist()
        assert shape(found) == shape(parents) and int((found < 0).sum()) == int((parents < 0).sum())

    @pytest.mark.slow
    @pytest.mark.integration
    def test_it_learns_and_from_random_labels_it_does_not(self) -> None:
        fitted = [made_up(seed, 2) for seed in range(6)]
        held_out = {"alike": made_up(100, 2), "wider": made_up(101, 2, ((40, 48),))}
        learned, figures = fit(fitted, held_out, TINY, steps=80, say=lambda _: None)
        assert all(each["overall"] > 0.7 for each in figures.values())
        once, twice = (fit(fitted, held_out, TINY, steps=2, say=lambda _: None)[1] for _ in range(2))
        assert once == twice
        control, figures = fit(fitted, held_out, TINY, steps=80, control=True, say=lambda _: None)
        chance = 1 / 14
        assert all(each["overall"] <= 3 * chance for each in figures.values())
        for trees in held_out.values():
            assert accuracy(learned, trees)["likelihood"] > accuracy(control, trees)["likelihood"]

    def test_no_seed_of_what_it_is_judged_by(self, nursery: Nursery) -> None:
        about = json.loads((SHIPPED / "training.json").read_text())
        used = {plan["seed"] for part in ("fitted", "stopped by") for plan in about[part].values()}
        judged = {plan["seed"] for scale in nursery.planned.values() for plan in scale.values()}
        assert used and not used & judged
        assert about["fitted"] == json.loads(json.dumps(training.FITTED | training.ALSO_FITTED))
        assert about["stopped by"] == json.loads(json.dumps(training.STOPPING))


class TestFile:
    def test_what_is_saved_is_read(self, detector: PhylogenyDetector, tmp_path: Path) -> None:
        detector.save_pretrained(tmp_path)
        models = made_up(7).whole(detector.config)
        for again in (load(tmp_path), PhylogenyDetector.from_pretrained(tmp_path).eval()):
            assert again.config == detector.config
            for one, other in zip(answer(detector, models), answer(again, models), strict=True):
                assert torch.equal(one, other)

    def test_what_ships_is_small_and_its_card_is_what_was_measured(self) -> None:
        about = json.loads((SHIPPED / "training.json").read_text())
        assert (SHIPPED / "README.md").read_text() == training.card(about)
        assert (SHIPPED / "model.safetensors").stat().st_size <= 1_000_000
        assert load().config.version == 1

    def test_other_versions_fields_and_shapes_are_refused(self, detector: PhylogenyDetector, tmp_path: Path) -> None:
        detector.save_pretrained(tmp_path)
        config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
        good = json.loads(config.read_text())
        for told, what in (({"version": 2}, "version 1, got version 2"), ({"depth": 3}, "with depth")):
            config.write_text(json.dumps(good | told))
            with pytest.raises(CheckpointError, match=what):
                load(tmp_path)
        config.write_text(json.dumps(good | {"width": 32}))
        with pytest.raises(CheckpointError, match=r"missing or of other shapes, first.*Save the detector again"):
            load(tmp_path)
        config.write_text(json.dumps(good))
        save_file({k: v for k, v in load_file(weights).items() if k != "score.bias"}, weights)
        with pytest.raises(CheckpointError, match=r"score\.bias"):
            load(tmp_path)
        weights.unlink()
        with pytest.raises(CheckpointError, match=r"got no model\.safetensors"):
            load(tmp_path)


class TestMethod:
    def test_the_command_line(
        self, make_net: Callable[..., dict[str, torch.Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Another architecture makes trees of its own; what is not finite is left out; JSON is all there is."""
        narrow = (20, 70, 30)
        base, other = make_net(1), make_net(6, widths=narrow)
        models = {
            "base": base, "child-1": make_net(2, base), "child-2": make_net(3, base),
            "narrow-base": other, "narrow-child": make_net(7, other, widths=narrow),
            "broken": {name: torch.full_like(value, math.nan) for name, value in base.items()},
        }  # fmt: skip
        for name, tensors in models.items():
            (tmp_path / name).mkdir()
            save_file(tensors, tmp_path / name / "model.safetensors")
        cli.main(["tree", *(str(tmp_path / name) for name in models), "--method", "detector", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert document["method"] == "detector"
        assert [Path(ref).name for ref in document["left_out"]] == ["broken"]
        group = {Path(node["id"]).name: node["group"] for node in document["nodes"]}
        assert group.keys() == models.keys() - {"broken"}
        assert not {group[n] for n in group if "narrow" in n} & {group[n] for n in group if "narrow" not in n}


@pytest.mark.large
@pytest.mark.timeout(7200)
class TestLarge:
    def test_ladder(self, nursery: Nursery, record: Callable[..., None]) -> None:
        """What a pair has to see, and the control with random labels: equal steps, other trees than it was fitted on."""
        fitted, stopping = training.families(nursery.folder / "detector")
        judged = {
            kind: Trees.of(read_aligned_models([m.path for m in family.members]), family)
            for kind in nursery.planned["large"] if kind != "fc-many" for family in [nursery.trees(kind, "large")]
        }  # fmt: skip
        found = {}
        for name, sees in {**LADDER, "as it ships, random labels": {}}.items():
            config = dataclasses.replace(PhylogenyConfig(), **sees)
            detector, _ = fit([*fitted.values()], stopping, config, steps=RUNGS, control="random" in name)
            found[name] = {
                kind: accuracy(detector, trees) | {"two alone": alone(detector, trees)}
                for kind, trees in judged.items()
            }
        record("phylogeny-detector-ladder", {"seed": 0, "steps": RUNGS, "sees": found})
