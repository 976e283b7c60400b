"""The Lineage Detector's parts: its laws, what it is given, how it is trained."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_lineage import cli
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint
from hf_lineage.checkpoints.opener import Opener
from hf_lineage.detector.examples import Examples, Row, Table, make, pairs, read_table, split
from hf_lineage.detector.inputs import DetectorInputs, matrix, read_inputs, runs
from hf_lineage.detector.model import DetectorConfig, LineageDetector
from hf_lineage.detector.train import make_detector
from hf_lineage.detector.training import STATE_FILE, Training, calibration_error, evaluate, train, with_temperature
from hf_lineage.errors import ArgumentError, CheckpointError, NothingToCompareError
from hf_lineage.experiments.families import SIZES
from hf_lineage.experiments.family_file import train_families
from hf_lineage.experiments.networks import Apart, build
from hf_lineage.features.evidence import Settings
from hf_lineage.features.perceptron import FullyConnected

SMALL = DetectorConfig(width=16, heads=4, feed_forward=32, entries=64)
QUICK = Training(epochs=4, rate=0.01)


pytestmark = pytest.mark.usefixtures("one_thread")


def given(candidates: int, count: int, seed: int = 0, side: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(candidates, 2, side + i, side, generator=generator) for i in range(count)]


def toy(parents: int = 5, children: int = 6, seed: int = 0, none: int = 0, config: DetectorConfig = SMALL) -> Examples:
    """Random matrices; a child is its parent and a third of noise. The last `none` parents are kept back."""
    generator = torch.Generator().manual_seed(seed)

    def model(near: DetectorInputs | None = None) -> DetectorInputs:
        def values(old: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, ...]:
            fresh = [torch.randn(8, 8, generator=generator) for _ in range(count)]
            return tuple(new if near is None else old[i] + new / 3 for i, new in enumerate(fresh))

        weights = values(near.weights if near else (), len(config.weights))
        return DetectorInputs(
            "Toy", weights, values(near.features if near else (), len(config.features)), ((64,),) * 2, ("w", "f")
        )

    seen = {f"p{i}": model() for i in range(parents)}
    known, rows = tuple(seen)[: parents - none], []
    for i in range(parents):
        for j in range(children):
            seen[f"c{i}-{j}"] = model(seen[f"p{i}"])
            rows.append(Row(f"c{i}-{j}", known, f"p{i}" if f"p{i}" in known else None))
    return Examples(seen, tuple(rows))


def split3(examples: Examples) -> tuple[Examples, Examples, Examples]:
    return split(examples, seed=1)


class TestLaws:
    @pytest.mark.parametrize("no_parent", [None, "score", "token"])
    @pytest.mark.parametrize("scale", ["none", "child", "both"])
    def test_the_order_of_the_candidates_does_not_matter(self, no_parent: str | None, scale: str) -> None:
        detector = LineageDetector(DetectorConfig(no_parent=no_parent, scale=scale, weights=("a", "b"))).eval()
        weights, features = given(7, 2), given(7, 1, seed=1)
        scores = detector(weights, features)
        assert scores.shape == (7 + bool(no_parent),) and scores[:7].std() > 1e-4
        order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
        again = detector([w[order] for w in weights], [f[order] for f in features])
        assert torch.allclose(again[:7], scores[:7][order], atol=1e-5)
        assert torch.allclose(again[7:], scores[7:], atol=1e-5)

    def test_what_was_saved_scores_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        detector = LineageDetector(replace(SMALL, no_parent="score", temperature=0.7)).eval()
        weights, features = given(3, 1), given(3, 1, seed=1)
        detector.save_pretrained(tmp_path / "d")
        again = LineageDetector.from_pretrained(tmp_path / "d")
        assert again.config == detector.config and torch.equal(again(weights, features), detector(weights, features))
        assert "model-lineage" in (tmp_path / "d" / "README.md").read_text()

    @pytest.mark.filterwarnings("ignore:Use 'content")
    def test_it_is_pushed_and_pulled(self, hub) -> None:
        hub.tokens["hf_lab"] = "lab"
        detector = LineageDetector(SMALL).eval()
        detector.push_to_hub("lab/detector", token="hf_lab")
        again = LineageDetector.from_pretrained("lab/detector")
        weights, features = given(3, 1), given(3, 1, seed=1)
        assert torch.equal(again(weights, features), detector(weights, features))

    @pytest.mark.parametrize(("weights", "features"), [(1, 0), (0, 1), (2, 0), (2, 3)])
    def test_any_number_of_inputs(self, weights: int, features: int) -> None:
        config = replace(SMALL, weights=("auto",) * weights, features=("auto",) * features)
        detector = LineageDetector(config).eval()
        assert detector(given(4, weights), given(4, features, seed=1)).shape == (4,)
        assert bool(weights) == any(name.startswith("weight_encoder") for name in detector.state_dict())

    def test_an_input_that_is_not_known_is_left_out(self) -> None:
        detector = LineageDetector(SMALL).eval()
        alone = detector(given(4, 1), [None])
        assert alone.shape == (4,) and not torch.allclose(alone, detector(given(4, 1), given(4, 1, seed=1)))

    def test_ranks_do_not_depend_on_how_far_all_are(self) -> None:
        child, change = torch.randn(1, 1, 6, 6), torch.randn(4, 1, 6, 6)
        near, far = (torch.cat([child + size * change, child.expand(4, 1, 6, 6)], dim=1) for size in (0.01, 1.0))
        assert torch.allclose(LineageDetector.ranked(near), LineageDetector.ranked(far), atol=1e-3)
        sizes = (LineageDetector.ranked(far)[:, 0] - child[:, 0]).square().mean((1, 2))
        assert sizes.min() == 0 and sizes.argsort().tolist() == change.square().mean((1, 2, 3)).argsort().tolist()

    @pytest.mark.parametrize("known", ["both", "weights", "features"])
    def test_by_nearest_the_order_is_that_of_l2_and_none_is_the_network_s(self, known: str) -> None:
        plain = LineageDetector(replace(SMALL, no_parent="score")).eval()
        ordered = LineageDetector(replace(plain.config, nearest=2.0)).eval()
        ordered.load_state_dict(plain.state_dict())
        weights = given(5, 1) if known != "features" else [None]
        features = given(5, 1, seed=1) if known != "weights" else [None]
        with torch.no_grad():
            before, after = plain(weights, features), ordered(weights, features)
        pairs = weights[0] if weights[0] is not None else features[0]
        r = (pairs[:, 0] - pairs[:, 1]).square().mean((1, 2)).sqrt()
        assert after[5] == before[5]
        torch.testing.assert_close(after[:5], before[:5].max() - 2 * (r / r.min()).log())

    def test_attention_alone_is_the_slides_layer(self) -> None:
        detector = LineageDetector(replace(SMALL, layer="attention")).eval()
        names = [name for name in detector.state_dict() if name.startswith("transformer.")]
        assert names and all(".self_attn." in name for name in names)
        tokens = torch.randn(3, 3, 16)
        attended = detector.transformer.self_attn(tokens, tokens, tokens)[0]
        assert torch.allclose(detector.transformer(tokens), attended, atol=1e-6)
        assert detector(given(3, 1), given(3, 1, seed=1)).shape == (3,)

    def test_one_candidate_has_a_defined_answer(self) -> None:
        closed, open_ = LineageDetector(SMALL).eval(), LineageDetector(replace(SMALL, no_parent="score")).eval()
        pair = given(1, 1), given(1, 1, seed=1)
        with torch.no_grad():
            assert closed.probabilities(closed(*pair)).tolist() == [1.0]
            shares = open_.probabilities(open_(*pair))
        assert shares.shape == (2,) and 0 < shares[0] < 1 and float(shares.sum()) == pytest.approx(1, abs=1e-12)

    def test_the_size_fits_into_a_package(self) -> None:
        assert sum(4 * p.numel() for p in LineageDetector(DetectorConfig(no_parent="score")).parameters()) < 2 << 20

    @pytest.mark.parametrize(
        ("weights", "features", "said"),
        [
            (given(3, 2), given(3, 1), "Expected 1 weights, got 2"),
            (given(3, 1), given(4, 1), "as many candidates"),
            ([torch.ones(3, 6, 6)], given(3, 1), "pairs of matrices"),
            ([None], [None], "pairs of matrices"),
            ([torch.full((3, 2, 6, 6), torch.nan)], given(3, 1), "finite"),
            ([torch.ones(1, 2, 1, 1)], given(1, 1), "more than one entry"),
        ],
    )
    def test_wrong_inputs_are_named(self, weights: list, features: list, said: str) -> None:
        with pytest.raises(ArgumentError, match=said):
            LineageDetector(SMALL).eval()(weights, features)

    @pytest.mark.parametrize(
        "change",
        [{"version": 7}, {"weights": (), "features": ()}, {"no_parent": "maybe"}, {"scale": "x"}, {"norm": "x"}, {"heads": 5},
         {"layer": "x"}, {"nearest": -1.0}, {"nearest": float("inf")},
         {"temperature": 0.0}, {"temperature": float("nan")}, {"entries": 0}],
    )  # fmt: skip
    def test_a_config_that_makes_no_sense(self, change: dict) -> None:
        with pytest.raises(ArgumentError, match="Expected"):
            DetectorConfig(**(asdict(SMALL) | change))


class TestInputs:
    @pytest.mark.parametrize("count", [1, 7, 64, 65, 1000, 65536, 802_816])
    def test_runs_lie_apart_and_inside(self, count: int) -> None:
        starts, length = runs(count, 64)
        assert length >= 1 and len(starts) * length <= min(count, 64) and starts[-1] + length <= count
        assert all(b - a >= length for a, b in pairwise(starts))
        assert abs(len(starts) - length) <= 2 or count < 8

    def test_a_part_is_the_same_entries_of_both(self) -> None:
        parent = torch.arange(40_000.0).reshape(200, 200)
        assert torch.equal(matrix(parent + 1, 100), matrix(parent, 100) + 1)
        assert len({int(v) % 200 for v in matrix(parent, 4096)[:, 0]}) > 40  # not one column again and again

    @pytest.mark.parametrize(
        ("architecture", "weight", "tap"),
        [
            ("fc", "fc1.weight", "relu"),
            ("resnet", "layer1.0.conv2.weight", "layer1.0"),
            ("vit", "blocks.0.mlp.fc2.weight", "blocks.0"),
            ("llama", "model.layers.0.mlp.down_proj.weight", "model.layers.0"),
            ("bert", "bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.0"),
        ],
    )
    def test_auto_is_what_the_paper_takes(self, architecture: str, weight: str, tap: str) -> None:
        module = build(architecture, 128 if architecture == "llama" else 5, SIZES[architecture]).eval()
        probes = torch.randint(0, 100, (6, 16)) if architecture in ("llama", "bert") else torch.randn(6, 1, 28, 28)
        checkpoint = Opener().open(module)
        seen = read_inputs(checkpoint, replace(SMALL, entries=100), Settings(probes=probes, modules=(module,)))
        assert seen.names == (weight, tap) and seen.kind == type(module).__name__
        assert (
            checkpoint.bytes_read >= 400 and [tuple(m.shape) for m in (*seen.weights, *seen.features)] == [(10, 10)] * 2
        )

    @pytest.mark.parametrize(("architecture", "head"), [("fc", "head"), ("resnet", "fc"), ("llama", "lm_head")])
    def test_all_but_the_head_and_what_the_head_is_given(self, architecture: str, head: str) -> None:
        sizes = {"widths": [64, 32]} if architecture == "fc" else SIZES[architecture]
        module = build(architecture, 128, sizes).eval()
        probes = torch.randint(0, 100, (3, 8)) if architecture == "llama" else torch.randn(3, 1, 28, 28)
        config = replace(SMALL, weights=("backbone",), features=("backbone",), entries=1 << 20)
        seen = read_inputs(Opener().open(module), config, Settings(probes=probes, modules=(module,)))
        given: list[torch.Tensor] = []
        handle = module.get_submodule(head).register_forward_hook(lambda _, args, __: given.append(args[0]))
        with torch.no_grad():
            module(probes)
        handle.remove()
        body = torch.cat([p.detach().flatten() for n, p in module.named_parameters() if not n.startswith(f"{head}.")])
        assert seen.names == ("backbone", f"{head}.input")
        assert seen.shapes == ((body.numel(),), (3, given[0][0].numel()))
        (weights,), (features,) = seen.weights, seen.features
        assert weights.numel() > 0.99 * body.numel() and torch.equal(weights.flatten(), body[: weights.numel()])
        torch.testing.assert_close(features.flatten(), given[0].flatten()[: features.numel()], rtol=1e-4, atol=1e-5)
        few = read_inputs(
            Opener().open(module), replace(config, entries=100), Settings(probes=probes, modules=(module,))
        )
        assert torch.equal(few.weights[0], matrix(body, 100))

    def test_every_relu_can_be_tapped(self) -> None:
        apart, plain = (kind(256, [16, 8, 4], 3).eval() for kind in (Apart, FullyConnected))
        apart.load_state_dict(plain.state_dict())
        x = torch.randn(5, 1, 16, 16)
        assert torch.equal(apart(x), plain(x))
        config = replace(SMALL, weights=("fc2.weight",), features=("relu", "relu2", "relu3"))
        del (state := plain.state_dict())["head.weight"]  # a head of another size has no place in it
        checkpoint = MemoryCheckpoint(ModelRef("module", "module:X"), "x", state)
        seen = read_inputs(checkpoint, config, Settings(probes=x, modules=(apart,)))
        assert seen.shapes == ((8, 16), (5, 16), (5, 8), (5, 4)) and all(float(f.min()) >= 0 for f in seen.features)

    def test_of_a_weight_nothing_but_the_runs_is_read(self, tmp_path: Path) -> None:
        module = build("resnet", 5, SIZES["resnet"])
        save_file(module.state_dict(), tmp_path / "model.safetensors")
        checkpoint = Opener().open(tmp_path)
        before = checkpoint.bytes_read
        read_inputs(checkpoint, replace(SMALL, features=()), Settings(probes=torch.zeros(1), modules=(module,)))
        assert checkpoint.bytes_read - before == 4 * 64

    def test_what_is_not_there_is_named(self) -> None:
        module = build("fc", 5, {"widths": [16, 8]})
        settings = Settings(probes=torch.randn(4, 1, 28, 28), modules=(module,))
        with pytest.raises(ArgumentError, match="nowhere"):
            read_inputs(Opener().open(module), replace(SMALL, weights=("nowhere",)), settings)
        with torch.no_grad():
            module.fc1.weight[:] = torch.nan
        with pytest.raises(CheckpointError, match=r"NaN or Inf in 'fc1\.weight'"):
            read_inputs(Opener().open(module), SMALL, settings)


class TestTables:
    def test_both_spellings_say_the_same(self, tmp_path: Path) -> None:
        whose = {"user/x": "org/a", "./y": None}
        (tmp_path / "t.json").write_text(json.dumps({"parents": ["org/a", "org/b"], "children": whose}))
        (tmp_path / "t.csv").write_text("child,parent,note\nuser/x,org/a,\n,org/b,\n./y,,orphan\n")
        one, two = read_table(tmp_path / "t.json"), read_table(tmp_path / "t.csv")
        assert one == two == Table(("org/a", "org/b"), {"user/x": "org/a", str(tmp_path / "y"): None})
        assert one.rows[1] == Row(str(tmp_path / "y"), ("org/a", "org/b"), None)

    @pytest.mark.parametrize(
        ("name", "text"),
        [("t.json", "[]"), ("t.json", "{"), ("t.json", '{"children": {"a": 1}}'), ("t.json", '{"children": {"a/b": null}}'),
         ("t.csv", "a,b\n"), ("t.csv", "child,parent\na/b,c/d\na/b,c/d\n"), ("t.csv", "child,parent\n")],
    )  # fmt: skip
    def test_bad_tables(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(ArgumentError, match="Expected"):
            read_table(tmp_path / name)
        with pytest.raises(ArgumentError, match="Expected a table"):
            read_table(tmp_path / "missing.csv")

    def test_missing_models_are_left_out_with_a_note(self, tmp_path: Path) -> None:
        module = build("fc", 5, {"widths": [16, 8]})
        for name in ("a", "x", "y"):
            (tmp_path / name).mkdir()
        save_file(module.state_dict(), tmp_path / "a" / "model.safetensors")
        save_file(module.state_dict(), tmp_path / "x" / "model.safetensors")
        save_file(build("fc", 5, {"widths": [20, 8]}).state_dict(), tmp_path / "y" / "model.safetensors")
        a, b, x, y, z = (str(tmp_path / name) for name in "abxyz")
        settings = Settings(probes=torch.randn(4, 1, 28, 28), modules=(module,))
        found = make([Table((a, b), {x: a, y: a, z: a})], SMALL, settings=settings)
        assert found.rows == (Row(x, (a,), a),)
        assert sum(f"{name} is left out" in note for note in found.notes for name in (b, y, z)) == 3
        with pytest.raises(NothingToCompareError, match="No example"):
            make([Table((b,), {x: b})], SMALL, settings=settings)


class TestSplits:
    def test_by_child(self) -> None:
        parts = split(toy(10, 10), seed=0)
        assert [len(part) for part in parts] == [70, 10, 20]
        children = [{row.child for row in part.rows} for part in parts]
        assert not (children[0] & children[1] or children[0] & children[2] or children[1] & children[2])
        assert split(toy(10, 10), seed=0)[2].rows == parts[2].rows != split(toy(10, 10), seed=1)[2].rows

    def test_by_parent_shows_no_test_parent_before_the_test(self) -> None:
        train_, valid, test = split(toy(10, 4), "parent")
        unseen = {row.parent for row in test.rows}
        assert len(unseen) == 2 and not any(
            {*row.candidates, row.parent} & unseen for row in (*train_.rows, *valid.rows)
        )
        assert all(len(row.candidates) == 10 for row in test.rows)

    def test_by_architecture(self) -> None:
        other = toy(2, 2, seed=1)
        other = Examples(
            {f"{n}'": replace(s, kind="Other") for n, s in other.inputs.items()},
            tuple(Row(f"{r.child}'", tuple(f"{c}'" for c in r.candidates), f"{r.parent}'") for r in other.rows),
        )
        train_, valid, test = split(toy(4, 4) + other, "architecture")
        assert {row.child[-1] for row in test.rows} == {"'"} and len(test) == 4 and len(train_) + len(valid) == 16
        with pytest.raises(ArgumentError, match="Expected an architecture out of Other, Toy"):
            split(toy(4, 4) + other, "architecture", held="Nobody")

    def test_too_few(self) -> None:
        with pytest.raises(ArgumentError, match="Expected enough examples"):
            split(toy(2, 1))


@pytest.mark.integration
class TestTraining:
    def test_it_learns_what_the_pairs_show(self) -> None:
        train_, valid, test = split3(toy(6, 10))
        detector, history = train(train_, valid, SMALL, replace(QUICK, epochs=12))
        assert evaluate(detector, test)["accuracy"] >= 0.9 and history[-1]["training"] < history[0]["training"]
        assert not detector.training

    def test_none_of_these_is_learned(self) -> None:
        train_, valid, test = split3(toy(8, 10, none=2))
        detector, _ = train(train_, valid, replace(SMALL, no_parent="score"), replace(QUICK, epochs=12))
        found = evaluate(detector, test)
        assert found["accuracy"] >= 0.8 and found["orphans"] >= 0.7, found

    def test_random_labels_are_not_learned(self) -> None:
        rng = random.Random(0)
        examples = toy(6, 20)
        mixed = examples.of([replace(row, parent=rng.choice(row.candidates)) for row in examples.rows])
        train_, valid, test = split3(mixed)
        detector, _ = train(train_, valid, SMALL, replace(QUICK, epochs=8))
        assert evaluate(detector, test)["accuracy"] <= 0.46  # of 24 at 1/6: more by chance once in 2,000

    def test_a_broken_training_goes_on_to_the_same_result(self, tmp_path: Path) -> None:
        train_, valid, _ = split3(toy())
        whole, history = train(train_, valid, SMALL, QUICK)
        stopped = SimpleNamespace(epochs=0)

        def stop(done: int, total: int, what: str) -> None:
            stopped.epochs += 1
            if stopped.epochs == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(train_, valid, SMALL, QUICK, tmp_path, progress=stop)
        assert (tmp_path / STATE_FILE).is_file()
        again, same = train(train_, valid, SMALL, QUICK, tmp_path)
        assert history == same
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
        with pytest.raises(ArgumentError, match="other data or settings"):
            train(train_, valid, SMALL, replace(QUICK, seed=1), tmp_path)
        (tmp_path / STATE_FILE).write_bytes(b"nothing")
        with pytest.raises(ArgumentError, match="Expected the state of a training"):
            train(train_, valid, SMALL, QUICK, tmp_path)

    def test_it_stops_when_validation_gets_no_better(self) -> None:
        train_, valid, _ = split3(toy())
        _, history = train(train_, valid, SMALL, Training(epochs=60, patience=2))
        losses = [epoch["validation"] for epoch in history]
        assert len(history) < 60 and min(losses[-2:]) > min(losses[:-2]) - 1e-3

    def test_orphans_ask_for_that_answer(self) -> None:
        train_, valid, _ = split3(toy(5, 6, none=1))
        with pytest.raises(ArgumentError, match="--no-parent"):
            train(train_, valid, SMALL, QUICK)

    def test_bf16(self) -> None:
        train_, valid, test = split3(toy())
        detector, _ = train(train_, valid, SMALL, replace(QUICK, precision="bf16"))
        assert evaluate(detector, test)["nll"] < 5 and detector.head.weight.dtype == torch.float32

    def test_a_temperature_calibrates(self) -> None:
        train_, valid, test = split3(toy(6, 20))
        detector, _ = train(train_, valid, SMALL, QUICK)
        loud = LineageDetector(detector.config)
        loud.load_state_dict(detector.state_dict())
        with torch.no_grad():
            loud.head.weight *= 10
        assert with_temperature(loud.eval(), valid).config.temperature == pytest.approx(
            10 * detector.config.temperature, rel=0.05
        )
        assert 0 <= evaluate(detector, test)["ece"] < 0.3

    def test_calibration_error(self) -> None:
        assert calibration_error([1.0, 1.0], [True, False]) == 0.5 and calibration_error(
            [0.6], [True]
        ) == pytest.approx(0.4)

    def test_pairs_put_the_parent_first(self) -> None:
        seen = toy(2, 1).inputs
        (weights,), _ = pairs(seen["c0-0"], [seen["p0"], seen["p1"]])
        assert torch.equal(weights[1, 0], seen["p1"].weights[0]) and torch.equal(weights[1, 1], seen["c0-0"].weights[0])


def save_toys(folder: Path, seed: int = 0) -> Path:
    """Networks of one class as folders with a table: four parents, four children each."""
    torch.manual_seed(seed)
    whose = {}
    for i in range(4):
        parent = build("resnet", 5, SIZES["resnet"]).state_dict()
        for j in range(5):
            own = {
                n: t + 0.05 * torch.randn_like(t) if j and t.is_floating_point() and t.ndim > 1 else t
                for n, t in parent.items()
            }
            path = folder / (f"p{i}" if j == 0 else f"c{i}-{j}")
            path.mkdir(parents=True)
            save_file(own, path / "model.safetensors")
            (path / "config.json").write_text(json.dumps({
                "architecture": "resnet18", "num_classes": 5, "model_args": {**SIZES["resnet"], "in_chans": 1},
                "pretrained_cfg": {"input_size": [1, 28, 28], "mean": [0.0], "std": [1.0], "num_classes": 5},
            }))  # fmt: skip
            if j:
                whose[f"./c{i}-{j}"] = f"./p{i}"
    (folder / "table.json").write_text(json.dumps({"children": whose}))
    return folder / "table.json"


@pytest.mark.integration
class TestCommand:
    def test_a_table_becomes_a_detector_with_a_card(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        table, out = save_toys(tmp_path), tmp_path / "detector"
        cli.main([
            "train-detector", "--family", str(table), "--out", str(out), "--epochs", "3", "--entries", "64", "--probes",
            "8", "--scale", "child",
        ])  # fmt: skip
        told = capsys.readouterr().out
        figures, card = json.loads((out / "training.json").read_text()), (out / "README.md").read_text()
        assert "| test | 3 |" in told and "| test | 3 |" in card and str(out) in told
        assert figures["examples"]["training"]["children"] == 11 and figures["config"]["probes"] == 8
        assert figures["nearest"]["weights"] == 1.0 and not (out / STATE_FILE).exists()
        assert {"model.safetensors", "config.json"} <= {path.name for path in out.iterdir()}
        assert load_file(out / "model.safetensors")["cls"].shape == (32,)
        assert LineageDetector.from_pretrained(out).config.scale == "child"

    def test_what_is_missing_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train-detector", "--family", str(tmp_path), "--out", str(tmp_path / "d")])
        assert stopped.value.code == 2 and "Expected a family in" in capsys.readouterr().err

    def test_repos_and_a_collection(self, hub, tmp_path: Path) -> None:
        table = json.loads(save_toys(tmp_path / "models").read_text())["children"]
        for folder in sorted((tmp_path / "models").glob("[pc]*")):
            hub.add(f"lab/{folder.name}", {path.name: path.read_bytes() for path in folder.iterdir()})
        hub.add("lab/other", {"model.safetensors": (tmp_path / "models/p3/model.safetensors").read_bytes()})
        hub.add_collection("lab/parents-0123", title="Parents", items=["lab/p3", "lab/other", "lab/c0-1"])
        known = {f"lab/{child[2:]}": f"lab/{parent[2:]}" for child, parent in table.items() if parent != "./p3"}
        (tmp_path / "t.json").write_text(json.dumps({"children": known}))
        made = train_families(
            tmp_path / "d",
            families=[tmp_path / "t.json"],
            collection="lab/parents-0123",
            epochs=1,
            entries=64,
            probes=4,
        )
        assert made.figures["examples"]["training"]["candidates"] == [4, 4], "three parents and p3 of the collection"
        assert any("lab/other is left out" in note for note in made.figures["notes"])

    def test_the_same_seed_gives_the_same_detector(self, tmp_path: Path) -> None:
        table = read_table(save_toys(tmp_path))
        config = replace(SMALL, features=())
        first, second = (
            make_detector([table], tmp_path / name, config, replace(QUICK, epochs=2)).detector.state_dict()
            for name in ("one", "two")
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
