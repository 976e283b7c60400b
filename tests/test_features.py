"""Tracing by features: what the answer holds, what is refused and why, and the forms it is computed in."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import VIT, VIT_SIZES, llama_network, mlp, near, put, timm_config, torchrun, vit
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, jvp

import hf_lineage as hl
from hf_lineage import cli
from hf_lineage.architecture.align import align
from hf_lineage.architecture.conventions import fused_parts
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.view import View
from hf_lineage.errors import ArgumentError, CheckpointError
from hf_lineage.features import evidence
from hf_lineage.features.lazy_tensors import ChildTensors
from hf_lineage.features.linearize import GRID, Step
from hf_lineage.features.networks import build, weights
from hf_lineage.features.probes import probes
from hf_lineage.features.similarity import METRICS
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

timm = pytest.importorskip("timm")
hf = pytest.importorskip("transformers")

Tensors = dict[str, Tensor]
FEW = 12  # probes


def moved(module: nn.Module, **step: Any) -> nn.Module:
    """A child of a module, in place."""
    module.load_state_dict(near(module.state_dict(), **step))
    return module


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: a parent, its child, a stranger, and those that cannot be compared."""
    hf.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("zoo")
    parent, stranger = vit(1).state_dict(), vit(2).state_dict()
    broken = {name: value.clone() for name, value in parent.items()}
    broken["blocks.0.mlp.fc1.weight"][3, 4] = float("nan")
    models = {"parent": parent, "child": near(parent), "stranger": stranger, "broken": broken}
    made = {name: put(root / name, tensors) for name, tensors in models.items()}
    made["large"] = put(root / "large", vit(3, img_size=42).state_dict(), img_size=42)
    made["wide"] = put(root / "wide", vit(4, embed_dim=48).state_dict(), embed_dim=48)
    made["remote-code"] = put(
        root / "remote-code", stranger,
        {"model_type": "evil", "architectures": ["EvilModel"], "auto_map": {"AutoModel": "evil.EvilModel"}},
    )  # fmt: skip
    origin = llama_network(1)
    texts = {"text-parent": origin, "text-stranger": llama_network(2), "text-other": llama_network(3, vocab_size=40)}
    for name, model in texts.items():
        model.save_pretrained(root / name)
        made[name] = root / name
    moved(origin).save_pretrained(root / "text-child")
    made["text-child"] = root / "text-child"
    return made


def trace(child: Any, candidates: Any, **options: Any) -> hl.Lineage:
    return hl.trace(child, candidates, **{"evidence": "features", "probes": FEW} | options)


def facts(lineage: hl.Lineage, name: str) -> dict[str, Any]:
    return next(c for c in lineage.candidates if c.ref.endswith(name)).evidence["features"]


def by_name(lineage: hl.Lineage) -> dict[str, Any]:
    return {Path(c.ref).name: c for c in lineage.candidates}


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])
    if isinstance(done.exception, hl.LineageError):
        return next(code for kind, code in cli.EXIT if isinstance(done.exception, kind)), "", str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


# ---- features alone


class TestAlone:
    @pytest.mark.parametrize("kind", ["", "text-"])
    def test_a_ranking_and_nothing_more(self, zoo: dict[str, Path], kind: str) -> None:
        lineage = trace(zoo[f"{kind}child"], [zoo[f"{kind}stranger"], zoo[f"{kind}parent"]])
        assert (lineage.verdict, lineage.parent, lineage.none_probability) == ("undecided", None, None)
        assert [Path(c.ref).name for c in lineage.candidates] == [f"{kind}parent", f"{kind}stranger"]
        matches = [c.evidence["features"]["match"] for c in lineage.candidates]
        assert matches == [c.probability for c in lineage.candidates] == sorted(matches, reverse=True)
        assert sum(matches) == pytest.approx(1, abs=1e-9)
        eq_2 = torch.tensor([c.evidence["features"]["taps"][0]["scores"]["l2"]["taylor"] for c in lineage.candidates])
        by_taylor = [c.evidence["features"]["match_taylor"] for c in lineage.candidates]
        assert by_taylor == pytest.approx(eq_2.double().softmax(0).tolist(), rel=1e-6)
        for candidate in lineage.candidates:
            assert candidate.status == "compared" and candidate.relation is None and not candidate.reasons
            assert {candidate.p_value, candidate.p_raw, candidate.log10_p, candidate.distance} == {None}
            found = candidate.evidence["features"]
            assert (found["form"], found["probes"], found["lined_up"]) == ("exact", FEW, 1.0)
            (tap,) = found["taps"]
            assert tap["step"] in GRID and tap["own_step"] <= tap["step"] and tap["tap"] == tap["candidate_tap"]
            assert tap["scores"].keys() == METRICS.keys()
            for name, scores in tap["scores"].items():
                assert scores.keys() == {"plain", "taylor", "exact"}
                assert (scores["taylor"] is None) == (not METRICS[name].differentiable)
        assert "no p-value" in lineage.notes[0] and "synthetic" in lineage.notes[0]
        assert "features alone" in str(lineage) and "not whether the two are related" in " ".join(str(lineage).split())

    def test_the_document(self, zoo: dict[str, Path]) -> None:
        lineage = trace(zoo["child"], [zoo["parent"], zoo["wide"]], metric="cka")
        text = json.dumps(lineage.to_dict(), allow_nan=False)
        document = json.loads(text)
        assert document["schema"] == "hf_lineage/2" and document["none_probability"] is None
        assert document["candidates"][0]["evidence"]["features"]["taps"][0]["scores"]["dc"]["exact"] <= 1 + 1e-9
        assert json.loads(lineage.to_json()) == document and lineage.to_markdown() and lineage.explain()

    def test_the_order_of_the_candidates_changes_nothing(self, zoo: dict[str, Path]) -> None:
        names = [zoo[name] for name in ("stranger", "parent", "wide", "broken")]
        one, other = (trace(zoo["child"], order).to_dict() for order in (names, names[::-1]))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}

    def test_a_copy_is_nearest(self, zoo: dict[str, Path], tmp_path: Path) -> None:
        copy = put(tmp_path / "copy", load_file(zoo["child"] / "model.safetensors"))
        lineage = trace(zoo["child"], [zoo["parent"], copy], taps="blocks")
        assert lineage.candidates[0].ref == str(copy) and lineage.parent is None
        first = facts(lineage, "copy")["taps"][0]
        assert first["scores"]["l2"] == {"plain": 0, "taylor": 0, "exact": 0} and first["curvature"] == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lineage.profile(tmp_path / "profile.png")
            trace(zoo["child"], [copy], taps="blocks").profile(tmp_path / "flat.png")

    @pytest.mark.parametrize(("name", "step"), [("l2", 0.1), ("cka", 0.5), ("linf", 0.02)])
    def test_the_scores_are_those_of_the_definition(self, zoo: dict[str, Path], name: str, step: float) -> None:
        """F, T by `torch.func.jvp` of the library's own model, all weights at once."""
        lineage = trace(zoo["child"], [zoo["parent"]], metric=name, step=step, taps="blocks.1")
        module = timm.create_model(VIT, num_classes=5, **VIT_SIZES).eval()
        for block in module.blocks:
            block.attn.fused_attn = False
        seen: list[Tensor] = []
        module.blocks[1].register_forward_hook(lambda *parts: seen.append(parts[2]))
        parent, child = (load_file(zoo[which] / "model.safetensors") for which in ("parent", "child"))
        x = probes(None, build(open_checkpoint(zoo["child"])).inputs, FEW, 0)

        def f(tensors: Tensors) -> Tensor:
            functional_call(module, tensors, (x,))
            return seen.pop().flatten(1)

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            F, T = jvp(f, (parent,), ({n: child[n] - parent[n] for n in parent},))
            G, there = f(child), f({n: torch.lerp(parent[n], child[n], step) for n in parent})
        metric = METRICS[name].function
        F, T, G = F.double(), T.double(), G.double()
        (tap,) = facts(lineage, "parent")["taps"]
        scores = tap["scores"][name]
        assert scores["plain"] == pytest.approx(float(metric(F, G)), rel=1e-4)
        assert scores["exact"] == pytest.approx(float(metric(F + step * T, G)), rel=1e-4)
        bend = float((there - F - step * T).norm() / (step * T).norm())
        assert (tap["step"], tap["curvature"]) == (step, pytest.approx(bend, rel=0.02))
        if METRICS[name].differentiable:
            slope = (metric(F + 1e-4 * T, G) - metric(F - 1e-4 * T, G)) / 2e-4
            assert scores["taylor"] == pytest.approx(float(metric(F, G) + step * slope), rel=1e-4)

    def test_no_random_direction_comes_nearer(self, zoo: dict[str, Path]) -> None:
        """By l2, of steps of one length the one towards the child gains most, up to the residual of the linearisation.
        The paper's Proposition 2 is tested in test_linearize.py."""
        from hf_lineage.features.linearize import curvature, exact, features

        checkpoint, ours = (open_checkpoint(zoo[name]) for name in ("parent", "child"))
        network = build(checkpoint)
        x = probes(None, network.inputs, FEW, 0)
        parent, child = weights(network, checkpoint), weights(network, ours)
        tap, step = network.tap, 0.1
        delta = {n: child[n] - parent[n] for n in parent}
        linear = exact(network.module, parent, delta, x, [tap])[tap]
        assert curvature(network.module, parent, delta, x, [tap], {tap: linear}, step)[tap] < 0.1
        G = features(network.module, child, x, [tap])[tap]

        def far(at: Tensor) -> float:
            return float((at - G).norm())

        there = features(network.module, {n: parent[n] + step * delta[n] for n in parent}, x, [tap])[tap]
        residual = float((there - linear.at(step)).norm())
        length = torch.stack([value.norm() for value in delta.values()]).norm()
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            random = {n: torch.randn(value.shape, generator=generator) for n, value in delta.items()}
            scale = length / torch.stack([value.norm() for value in random.values()]).norm()
            moved = {n: parent[n] + step * scale * random[n] for n in parent}
            assert far(features(network.module, moved, x, [tap])[tap]) > far(linear.at(step)) - residual


@pytest.mark.parametrize(("asked", "taken", "exact"), [("auto", 0.0, -3.0), (0.5, 0.5, -2.0)])
def test_where_no_step_is_small_auto_takes_none(asked: float | str, taken: float, exact: float) -> None:
    score = {"plain": -3.0, "slope": 1.0, "exact": [-2.0]}
    rows = [{"tried": (Step(0.5, 0.4),), "scores": {"l2": dict(score)}} for _ in range(2)]
    evidence.score_at_common_step(rows, evidence.Settings(step=asked))
    for row in rows:
        assert (row["step"], row["own_step"], row["curvature"]) == (taken, 0.5, 0.4)
        assert row["scores"]["l2"] == {"plain": -3.0, "taylor": -3.0 + taken, "exact": exact}


# ---- beside the weights


def test_the_weights_decide_and_features_stand_beside(zoo: dict[str, Path]) -> None:
    candidates = [zoo["stranger"], zoo["parent"]]
    alone = hl.trace(zoo["child"], candidates)
    for names in (["weights", "features"], ("features", "weights")):
        both = trace(zoo["child"], candidates, evidence=names, metric="cka")
        assert (both.verdict, both.parent) == (alone.verdict, alone.parent)
        assert both.none_probability == alone.none_probability
        for one, other in zip(both.candidates, alone.candidates, strict=True):
            rest = {name: value for name, value in one.evidence.items() if name != "features"}
            assert rest == other.evidence and "match" in one.evidence["features"]
            for name in ("ref", "probability", "p_value", "p_raw", "log10_p", "distance", "relation", "reasons"):
                assert getattr(one, name) == getattr(other, name)
        assert both.bytes_read > alone.bytes_read
        assert re.search(
            r"By its features \(cka at blocks\.0, 12 probes\) it is most like \S*parent too", both.explain()
        )
    assert both.notes[: len(alone.notes)] == alone.notes


def test_what_the_weights_refuse_features_may_compare(zoo: dict[str, Path]) -> None:
    """Another width: no tensor lines up, the features can be compared all the same."""
    lineage = trace(zoo["child"], [zoo["wide"]], evidence=["weights", "features"], metric="cka")
    (candidate,) = lineage.candidates
    assert candidate.status == "not_comparable" and 0 < candidate.evidence["features"]["lined_up"] < 0.1
    assert any(note.startswith("By features alone") for note in lineage.notes)


def test_a_reason_of_the_features_stands_beside_the_numbers(zoo: dict[str, Path]) -> None:
    lineage = trace(zoo["text-child"], [zoo["text-parent"], zoo["broken"]], evidence=["weights", "features"])
    assert lineage.candidates[0].p_value is not None and "features" in lineage.candidates[0].evidence
    other = by_name(lineage)["broken"]
    assert other.status == "not_comparable" and other.reasons[-1].startswith(
        "features: Expected inputs like the child's"
    )


# ---- modules


class TestModules:
    def test_modules_and_folders_without_a_config(self, tmp_path: Path) -> None:
        parent, stranger = mlp(1), mlp(2)
        child = moved(mlp(1))
        folders = [put(tmp_path / name, m.state_dict(), {}) for name, m in (("p", parent), ("s", stranger))]
        x = torch.randn(FEW, 20)
        before = {name: value.clone() for name, value in child.state_dict().items()}
        for candidates in ([stranger, parent], folders, iter([stranger, parent]), [folders[1], parent]):
            lineage = trace(child, candidates, probes=x)
            assert [c.status for c in lineage.candidates] == ["compared"] * 2, lineage.candidates[-1].reasons
            first = lineage.candidates[0]
            assert first.ref == str(tmp_path / "p") or first.requested in ("candidates[1]",)
            assert first.evidence["features"]["taps"][0]["tap"] == "1"
        assert "12 probes" in lineage.notes[0] and "synthetic" not in lineage.notes[0]
        assert all(torch.equal(value, before[name]) for name, value in child.state_dict().items()) and child.training

    def test_a_folder_without_a_config_is_of_the_class_of_a_module(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "child", moved(mlp(1)).state_dict(), {})
        lineage = trace(folder, [mlp(1), mlp(2)], probes=torch.randn(FEW, 20))
        assert lineage.candidates[0].requested == "candidates[0]"
        with pytest.raises(CheckpointError, match=r"config\.json of timm or transformers.*module of its class"):
            trace(folder, [folder.parent / "child"] * 0 or [put(tmp_path / "p", mlp(1).state_dict(), {})])

    def test_each_module_is_run_as_its_own_class(self) -> None:
        class Other(nn.Module):
            """The same tensors, another function."""

            def __init__(self) -> None:
                super().__init__()
                for i, part in enumerate(mlp(1)):
                    self.add_module(str(i), part)

            def forward(self, x: Tensor) -> Tensor:
                for part in self.children():
                    x = 3 * part(x)
                return x

        lineage = trace(moved(mlp(1)), [mlp(1), Other()], probes=torch.randn(FEW, 20), step=0.1)
        scores = {c.ref: c.evidence["features"]["taps"][0]["scores"]["l2"]["plain"] for c in lineage.candidates}
        assert scores["module:Other"] < 10 * scores["module:Sequential"]

    def test_parts_that_run_in_another_order(self) -> None:
        class Backwards(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Linear(24, 16), nn.ReLU())
                self.stem = nn.Linear(20, 24)

            def forward(self, x: Tensor) -> Tensor:
                return self.body(self.stem(x))

        torch.manual_seed(0)
        parent, child = Backwards(), Backwards()
        child.load_state_dict(near(parent.state_dict()))
        lineage = trace(child, [parent, Backwards()], probes=torch.randn(FEW, 20))
        assert lineage.candidates[0].requested == "candidates[0]"

    @pytest.mark.parametrize("x", [torch.randn(FEW, 19), torch.randn(FEW, 20, 3, 3), torch.zeros(FEW, 20).long()])
    def test_probes_that_the_network_does_not_take(self, x: Tensor) -> None:
        with pytest.raises(CheckpointError, match=r"`module:Sequential` to run on probes of torch\.\w+, shape \(12, "):
            trace(mlp(1), [mlp(2)], probes=x)

    def test_a_plain_module_has_no_probes_of_its_own(self) -> None:
        for source in (None, 7):
            with pytest.raises(ArgumentError, match="probes as a tensor for a plain module"):
                trace(mlp(1), [mlp(2)], probes=source)

    def test_an_operator_without_a_forward_derivative(self) -> None:
        class Recurrent(nn.Module):
            def __init__(self, seed: int) -> None:
                super().__init__()
                torch.manual_seed(seed)
                self.lstm = nn.LSTM(6, 10, batch_first=True)
                self.relu = nn.ReLU()
                self.head = nn.Linear(10, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.relu(self.lstm(x)[0]))

        parent, child, x = Recurrent(1), moved(Recurrent(1)), torch.randn(FEW, 5, 6)
        lineage = trace(child, [Recurrent(2), parent], probes=x, taps="relu", step=0.1)
        assert [c.requested for c in lineage.candidates] == ["candidates[1]", "candidates[0]"]
        found = lineage.candidates[0].evidence["features"]
        (tap,) = found["taps"]
        assert found["form"] == "taylor" and "lstm" in found["why_taylor"]
        assert tap["curvature"] is None and tap["scores"].keys() == {"l2"} and tap["scores"]["l2"]["exact"] is None
        assert any(note.startswith("Taylor form: ") and "forward derivative" in note for note in lineage.notes)
        F, G = (torch.relu(model.lstm(x)[0]).flatten(1) for model in (parent, child))
        loss = -(F - G.detach()).square().mean()
        slopes = torch.autograd.grad(loss, [*parent.lstm.parameters()])
        pairs = zip(slopes, parent.lstm.parameters(), child.lstm.parameters(), strict=True)
        slope = sum(float((s * (theirs - ours).detach()).sum()) for s, ours, theirs in pairs)
        assert tap["scores"]["l2"]["taylor"] == pytest.approx(loss.item() + 0.1 * slope, rel=1e-4)
        assert (
            trace(child, [parent], probes=x, taps="relu").candidates[0].evidence["features"]["taps"][0]["step"] == 0.01
        )
        refused = trace(child, [parent], probes=x, taps="relu", metric="linf").candidates[0]
        assert refused.status == "not_comparable" and "differentiable" in refused.reasons[0]


# ---- two spellings of one network


TIMM_TO_VIT = (
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d)\.norm1\.(\w+)", r"vit.encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d)\.norm2\.(\w+)", r"vit.encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d)\.attn\.proj\.(\w+)", r"vit.encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d)\.mlp\.fc1\.(\w+)", r"vit.encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d)\.mlp\.fc2\.(\w+)", r"vit.encoder.layer.\1.output.dense.\2"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
)


def as_transformers(tensors: Tensors) -> Tensors:
    """timm's ViT in the names and the parts of transformers' files."""
    result = {}
    for name, value in tensors.items():
        if fused := re.fullmatch(r"blocks\.(\d)\.attn\.qkv\.(\w+)", name):
            for part, word in zip(value.chunk(3), ("query", "key", "value"), strict=True):
                result[f"vit.encoder.layer.{fused[1]}.attention.attention.{word}.{fused[2]}"] = part
        else:
            pattern, spelling = next((p, s) for p, s in TIMM_TO_VIT if re.fullmatch(p, name))
            result[re.sub(pattern, spelling, name)] = value
    return result


@pytest.fixture(scope="session")
def spelled(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ViTs of the zoo as transformers writes them."""
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, image_size=28, patch_size=7,
        num_channels=1, num_labels=5, layer_norm_eps=1e-6, architectures=["ViTForImageClassification"],
    )  # fmt: skip
    root = tmp_path_factory.mktemp("spelled")
    names = ("parent", "child", "stranger")
    return {
        name: put(root / name, as_transformers(load_file(zoo[name] / "model.safetensors")), config.to_dict())
        for name in names
    }


class TestSpellings:
    @pytest.mark.parametrize("fused", [True, False], ids=["fused candidate", "split candidate"])
    def test_partners_are_the_childs_tensors(self, zoo: dict, spelled: dict, fused: bool) -> None:
        mine, its = (spelled, zoo) if fused else (zoo, spelled)
        child, candidate, same = (open_checkpoint(f) for f in (mine["child"], its["parent"], its["child"]))
        whole = View(child, fused_parts(child))
        network = build(candidate)
        partners = ChildTensors(network, candidate, whole, align(whole, View(candidate, fused_parts(candidate))))
        before = child.bytes_read
        assert set(partners) == set(network.names) and partners.share == 1.0
        assert all(name in partners for name in network.names) and child.bytes_read == before, "looking is free"
        expected = weights(network, same)  # the child in the candidate's spelling
        for name in network.names:
            assert torch.equal(partners[name], expected[name]), name

    @pytest.mark.parametrize("taps", [None, "blocks", "last"])
    def test_the_answer_is_that_of_one_spelling(self, zoo: dict, spelled: dict, taps: str | None) -> None:
        at = {"last": ("blocks.2", "vit.layers.2")}.get(str(taps), (taps, taps))
        plain = trace(zoo["child"], [zoo["parent"], zoo["stranger"]], taps=at[0], step=0.2)
        expected = [c.evidence["features"]["taps"] for c in plain.candidates]
        for mine, its, tap in ((zoo, spelled, at[0]), (spelled, zoo, at[1])):
            # transformers' preprocessing is not written: the same probes must be given
            x = probes(None, build(open_checkpoint(zoo["child"])).inputs, FEW, 0)
            lineage = trace(mine["child"], [its["stranger"], its["parent"]], taps=tap, step=0.2, probes=x)
            assert [Path(c.ref).name for c in lineage.candidates] == ["parent", "stranger"]
            for c, taps_expected in zip(lineage.candidates, expected, strict=True):
                assert len(c.evidence["features"]["taps"]) == len(taps_expected)
                for one, other in zip(c.evidence["features"]["taps"], taps_expected, strict=True):
                    for name in ("l2", "cka"):
                        assert one["scores"][name] == pytest.approx(other["scores"][name], rel=1e-3, abs=1e-9)


# ---- arguments


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"taps": "blocks.7"}, r"got 'blocks\.7'; near it: .*blocks\.2"),
            ({"taps": ["blocks.0", "blok.1"]}, r"'blok\.1'; near it: .*blocks\.1"),
            ({"taps": []}, "at least one tap"),
            ({"metric": "ckaa"}, r"out of l1, l2, .*'ckaa'\. Did you mean cka"),
            ({"step": 0}, r'`step` in \(0, 1\] or "auto", got 0'),
            ({"step": 1.5}, "`step` in"),
            ({"step": float("nan")}, "`step` in"),
            ({"step": "fast"}, "`step` in"),
            ({"probes": 0}, "at least 1 probe"),
            ({"probes": torch.randn(4, 3, 28, 28)}, r"images of shape \(n, 1, 28, 28\), got \(4, 3, 28, 28\)"),
            ({"probes": torch.randn(4, 1, 32, 32)}, r"images of shape \(n, 1, 28, 28\)"),
            ({"probes": torch.zeros(4, 1, 28, 28).int()}, "images as floats"),
            ({"probes": torch.full((4, 1, 28, 28), float("nan"))}, "finite probes"),
            ({"probes": torch.zeros(0, 1, 28, 28)}, "first axis of at least 1"),
            ({"probes": 1, "metric": "cka"}, "at least 2 probes for the metric cka, got 1"),
            ({"probes": 1, "metric": "dc"}, "at least 2 probes for the metric dc"),
            ({"probes": Path("/nowhere/at/all")}, r"folder of images at `/nowhere/at/all`, got: No such file"),
            ({"probes": 4.5}, "a tensor or None as probes, got float"),
            ({"evidence": "feature"}, "among weights, features, detector, got 'feature'"),
        ],
    )
    def test_what_is_wrong_is_said(self, zoo: dict[str, Path], options: dict, words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            trace(zoo["child"], [zoo["parent"]], **options)

    @pytest.mark.parametrize(
        "options", [{"probes": 5}, {"taps": "blocks"}, {"metric": "cka"}, {"step": 0.1}, {"probes": torch.zeros(1)}]
    )
    def test_they_are_of_the_features(self, zoo: dict[str, Path], options: dict) -> None:
        with pytest.raises(ArgumentError, match='evidence="features"'):
            hl.trace(zoo["child"], [zoo["parent"]], **options)

    def test_one_probe_is_enough_for_norms(self, zoo: dict[str, Path]) -> None:
        lineage = trace(zoo["child"], [zoo["stranger"], zoo["parent"]], probes=1)
        assert Path(lineage.candidates[0].ref).name == "parent"
        assert facts(lineage, "parent")["taps"][0]["scores"].keys() == {"l1", "l2", "lp", "linf", "lse"}

    def test_taps(self, zoo: dict[str, Path]) -> None:
        def seen(taps: Any) -> list[str]:
            lineage = trace(zoo["child"], [zoo["parent"]], taps=taps, step=0.1)
            return [tap["tap"] for tap in facts(lineage, "parent")["taps"]]

        assert seen(None) == ["blocks.0"] and seen("blocks") == ["blocks.0", "blocks.1", "blocks.2"]
        assert seen(["blocks.2", "patch_embed"]) == ["blocks.2", "patch_embed"] and seen(("head",)) == ["head"]

    def test_pictures(self, zoo: dict[str, Path], tmp_path: Path) -> None:
        import numpy as np
        from PIL import Image

        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lineage = trace(zoo["child"], [zoo["parent"], zoo["stranger"]], probes=str(tmp_path))
        assert facts(lineage, "parent")["probes"] == 3 and "3 probes" in lineage.notes[0]
        with pytest.raises(ArgumentError, match="token ids"):
            trace(zoo["text-child"], [zoo["text-parent"]], probes=tmp_path)

    def test_reading_too_much_is_refused_before(self, zoo: dict[str, Path]) -> None:
        size = (zoo["child"] / "model.safetensors").stat().st_size
        with pytest.raises(
            ArgumentError, match=r"Features would read up to [\d,]+ bytes of 2 models, more than max_bytes=100,000"
        ):
            trace(zoo["child"], [zoo["parent"]], max_bytes=100_000)
        enough = trace(zoo["child"], [zoo["parent"]], max_bytes=2 * size)
        assert size < enough.bytes_read < 2 * size
        with pytest.raises(ArgumentError, match=r"This would read about [\d,]+ bytes"):
            trace(zoo["child"], [zoo["parent"]], max_bytes=2 * size, evidence=["weights", "features"])


# ---- what cannot be compared


class TestRefusals:
    def test_the_others_are_judged_all_the_same(self, zoo: dict[str, Path], tmp_path: Path) -> None:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 3)}, adapter / "adapter_model.safetensors")
        (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/base", "peft_type": "LORA"}')
        others = [zoo[name] for name in ("large", "wide", "remote-code", "broken", "text-parent")]
        lineage = trace(zoo["child"], [zoo["stranger"], *others, adapter, zoo["parent"], tmp_path / "nowhere"])
        found = by_name(lineage)
        assert [Path(c.ref).name for c in lineage.candidates[:2]] == ["parent", "stranger"]
        assert sum(c.probability or 0 for c in lineage.candidates) == pytest.approx(1, abs=1e-9)
        words = {
            "large": "Expected inputs like the child's, images of 1 x 28 x 28, got images of 1 x 42 x 42",
            "wide": "Expected as many features at 'blocks.0' as the child's 544 at 'blocks.0', got 816",
            "remote-code": "needs remote code, which is never run",
            "broken": "Expected finite features, got NaN or Inf from the candidate",
            "text-parent": "got tokens of 80",
            "adapter": "a LoRA adapter holds no weights of its own; name its base, lab/base",
        }
        for name, reason in words.items():
            assert found[name].status == "not_comparable" and found[name].probability is None
            assert reason in found[name].reasons[0], found[name].reasons
        assert found["nowhere"].status == "unreadable"
        assert json.dumps(lineage.to_dict(), allow_nan=False) and str(lineage)

    def test_other_widths_are_for_cka(self, zoo: dict[str, Path]) -> None:
        lineage = trace(zoo["child"], [zoo["wide"], zoo["parent"]], metric="cka")
        assert {c.status for c in lineage.candidates} == {"compared"}
        assert Path(lineage.candidates[0].ref).name == "parent"
        assert facts(lineage, "wide")["taps"][0]["scores"].keys() == {"cka", "dc"}

    def test_another_vocabulary(self, zoo: dict[str, Path]) -> None:
        lineage = trace(zoo["text-child"], [zoo["text-other"], zoo["text-parent"]])
        other = by_name(lineage)["text-other"]
        assert other.status == "not_comparable" and "tokens of 80, got tokens of 40" in other.reasons[0]
        assert lineage.candidates[0].probability == 1.0

    def test_a_child_that_cannot_run(self, zoo: dict[str, Path]) -> None:
        with pytest.raises(CheckpointError, match=r"NaN or Inf from the child at 'blocks\.0'"):
            trace(zoo["broken"], [zoo["parent"]])
        with pytest.raises(CheckpointError, match="needs remote code, which is never run"):
            trace(zoo["remote-code"], [zoo["parent"]])

    def test_a_child_that_cannot_run_ends_the_question_before_the_weights_are_read(self, zoo: dict[str, Path]) -> None:
        def never(*_: Any) -> None:
            raise AssertionError("weights were read")

        with pytest.raises(ArgumentError, match="near it"):
            trace(zoo["child"], [zoo["parent"]], taps="blocks.9", evidence=["weights", "features"], progress=never)

    def test_nothing_to_compare(self, zoo: dict[str, Path]) -> None:
        lineage = trace(zoo["child"], [zoo["large"]])
        assert (lineage.verdict, lineage.parent, lineage.candidates[0].status) == ("undecided", None, "not_comparable")
        assert str(lineage) and lineage.explain()


# ---- where it does not fit, or is far away


class TestStreamed:
    def test_the_same_answer(self, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        for kind in ("", "text-"):
            ask = (zoo[f"{kind}child"], [zoo[f"{kind}stranger"], zoo[f"{kind}parent"]])
            whole = trace(*ask, taps="blocks")
            with monkeypatch.context() as patch:
                patch.setattr(evidence, "MAX_BYTES_IN_MEMORY", 0)
                parts = trace(*ask, taps="blocks")
            same_scores(whole, parts)

    def test_from_the_hub(self, zoo: dict[str, Path], hub: MiniHub, tmp_path: Path) -> None:
        """Blocks behind the tap are most of the file, and are not fetched."""
        tensors = vit(1, depth=6).state_dict()
        local = {
            "parent": put(tmp_path / "parent", tensors, depth=6), "child": put(tmp_path / "child", near(tensors), depth=6),
            "stranger": put(tmp_path / "stranger", vit(2, depth=6).state_dict(), depth=6),
        }  # fmt: skip
        for name, folder in local.items():
            hub.add_folder(f"lab/{name}", folder)
        x = probes(None, build(open_checkpoint(local["child"])).inputs, FEW, 0)
        far = trace("lab/child", ["lab/stranger", "lab/parent"], probes=x, step=0.1)
        assert [c.ref for c in far.candidates] == ["lab/parent", "lab/stranger"]
        near_by = trace(local["child"], [local["stranger"], local["parent"]], probes=x, step=0.1)
        same_scores(near_by, far)
        passes = {"child": 1 + 2 * 2, "parent": 2, "stranger": 2}  # itself, and beside each; T and the step tried
        size = (local["child"] / "model.safetensors").stat().st_size
        block = sum(t.nbytes for n, t in tensors.items() if n.startswith("blocks.0."))
        for name, times in passes.items():
            served = hub.bytes_served[f"lab/{name}/model.safetensors"]
            assert block * times < served < 0.35 * size * times, name
        assert far.bytes_read == sum(v for k, v in hub.bytes_served.items() if k.endswith(".safetensors"))
        mixed = trace(local["child"], ["lab/parent"], probes=x, step=0.1)
        assert mixed.candidates[0].evidence["features"]["form"] == "streamed"

    @pytest.mark.slow
    def test_more_than_fits_under_a_limit(self, tmp_path: Path) -> None:
        sizes = {"depth": 3, "embed_dim": 1024, "num_heads": 8, "mlp_ratio": 14}
        folders = [huge(tmp_path / name, sizes, seed) for seed, name in enumerate(("child", "parent"))]
        assert (folders[0] / "model.safetensors").stat().st_size > LIMIT / 2, "two of them do not fit"
        streamed = subprocess.run(
            [sys.executable, "-c", LIMITED, str(1 << 20), *map(str, folders)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert streamed.returncode == 0, streamed.stderr[-2000:]
        form, score, read = streamed.stdout.split()
        assert form == "streamed" and float(score) < 0 and int(read) > 4 * 0.37 * GB
        control = subprocess.run(
            [sys.executable, "-c", LIMITED, str(1 << 40), *map(str, folders)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert control.returncode == 1 and "emory" in control.stderr, control.stderr[-2000:]


def same_scores(whole: hl.Lineage, parts: hl.Lineage, rel: float = 1e-4) -> None:
    for one, other in zip(whole.candidates, parts.candidates, strict=True):
        a, b = one.evidence["features"], other.evidence["features"]
        assert (a["form"], b["form"]) == ("exact", "streamed") and b["match"] == pytest.approx(a["match"], rel=rel)
        for here, there in zip(a["taps"], b["taps"], strict=True):
            assert there["step"] == here["step"] and there["curvature"] == pytest.approx(here["curvature"], rel=1e-2)
            for name, scores in here["scores"].items():
                assert there["scores"][name].keys() == scores.keys()
                for form, value in scores.items():
                    theirs = there["scores"][name][form]
                    assert (theirs is None) == (value is None)
                    assert value is None or theirs == pytest.approx(value, rel=rel, abs=1e-9), (name, form)


GB = 1 << 30
LIMIT = 500 << 20  # bytes of anonymous memory beside what the imports took
LIMITED = f"""
import resource, sys
import torch, timm, hf_lineage as hl
from hf_lineage.features import evidence, streaming
torch.set_num_threads(1)
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (taken + {LIMIT},) * 2)
evidence.MAX_BYTES_IN_MEMORY = int(sys.argv[1])
lineage = hl.trace(sys.argv[2], sys.argv[3:], evidence="features", probes=2, taps="blocks.2", step=0.1)
candidate = lineage.candidates[0]
if candidate.status != "compared":
    sys.exit(candidate.reasons[0])
found = candidate.evidence["features"]
print(found["form"], found["taps"][0]["scores"]["l2"]["exact"], lineage.bytes_read)
"""


def huge(folder: Path, sizes: dict[str, Any], seed: int) -> Path:
    """Random values at the start of each tensor, zeros that take no disk behind them."""
    import numpy as np

    with torch.device("meta"):
        made = timm.create_model(VIT, num_classes=5, **VIT_SIZES | sizes)
    header, at = {}, 0
    for name, tensor in made.state_dict().items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + 4 * tensor.numel()]}
        at += 4 * tensor.numel()
    raw = json.dumps(header).encode()
    folder.mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for value in header.values():
            begin, end = value["data_offsets"]
            file.seek(8 + len(raw) + begin)
            file.write((0.05 * rng.normal(size=min(1 << 14, (end - begin) // 4))).astype("f4").tobytes())
        file.truncate(8 + len(raw) + at)
    config = timm_config(VIT, **sizes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- several processes


@pytest.mark.slow
@pytest.mark.usefixtures("no_launcher", "one_thread")
@pytest.mark.parametrize("places", [[], ["--device", "cpu=300KB,disk=1GB"]], ids=["one place", "two places"])
def test_torchrun_prints_one_answer(zoo: dict[str, Path], places: list[str]) -> None:
    """Each process runs its share of the candidates; the answer is one process's to the last bit."""
    kinds = ["features", "weights"] if places else ["features", "weights", "detector"]
    ask = ["trace", zoo["child"], *places, "--probes", "6", "--step", "0.1", "--json"]
    ask += itertools.chain(*(("--evidence", kind) for kind in kinds))
    ask += itertools.chain(*(("-c", zoo[name]) for name in ("parent", "stranger", "large")))
    done = subprocess.run(torchrun("-m", "hf_lineage", *ask), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    several, (_, out, _) = json.loads(done.stdout), run(*ask)
    two, one = leaves(several), leaves(json.loads(out))
    assert one.keys() == two.keys() and "/candidates/0/evidence/features/match" in one
    assert several["candidates"][0]["evidence"]["features"]["form"] == ("streamed" if places else "exact")
    assert ("detector" in several["candidates"][0]["evidence"]) == (not places)
    free = {"/seconds", "/bytes_read"}
    assert {path: one[path] for path in one.keys() - free} == {path: two[path] for path in two.keys() - free}


def leaves(value: object, path: str = "") -> dict[str, object]:
    """The leaves of a JSON document by their paths."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {path: value}
    return {name: leaf for key, part in inner for name, leaf in leaves(part, f"{path}/{key}").items()}


# ---- the command line


class TestCommandLine:
    def test_a_table(self, zoo: dict[str, Path]) -> None:
        candidates = ("-c", zoo["stranger"], "-c", zoo["parent"], "-c", zoo["large"])
        code, out, _ = run("trace", zoo["child"], *candidates, "--evidence", "features", "--probes", 6, "--explain")
        assert code == 0 and all(len(line) <= 80 for line in out.splitlines())
        words = " ".join(out.split())
        assert "Undecided: by features alone it is most like" in words and "6 synthetic probes" in words
        assert "images of 1 x 42 x 42" in words

    def test_options_reach_the_comparison(self, zoo: dict[str, Path]) -> None:
        options = ("--tap", "blocks.0", "--tap", "blocks.2", "--metric", "cka", "--step", "0.2", "--probes", "5")
        code, out, _ = run(
            "trace", zoo["child"], "-c", zoo["parent"], "--evidence", "features", "--json", *options, "--seed", 3
        )
        found = json.loads(out)["candidates"][0]["evidence"]["features"]
        assert code == 0 and (found["metric"], found["probes"]) == ("cka", 5)
        assert [(tap["tap"], tap["step"]) for tap in found["taps"]] == [("blocks.0", 0.2), ("blocks.2", 0.2)]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--evidence", "features", "--tap", "nope"), "Expected the path of a module as tap, got 'nope'"),
            (("--evidence", "features", "--metric", "cosine"), "Expected a metric out of l1"),
            (("--evidence", "features", "--step", "2"), "Expected `step` in"),
            (("--evidence", "features", "--step", "fast"), "Expected `step` in"),
            (("--evidence", "features", "--probes", "0"), "Expected at least 1 probe"),
            (("--evidence", "features", "--probes", "-3"), "Expected at least 1 probe"),
            (("--evidence", "features", "--probes", "./nowhere"), "Expected a folder of images"),
            (("--metric", "cka"), 'Expected evidence="features"'),
            (("--tap", "blocks"), 'Expected evidence="features"'),
            (("--profile", "depth.txt"), "Expected a picture file"),
        ],
    )
    def test_wrong_usage(self, zoo: dict[str, Path], options: tuple, words: str) -> None:
        code, _, err = run("trace", zoo["child"], "-c", zoo["parent"], *options)
        assert code == 2 and words in err, err

    def test_pictures(self, zoo: dict[str, Path], tmp_path: Path) -> None:
        """`--profile` asks for the features of every block, beside the weights."""
        ask = ("trace", zoo["child"], "-c", zoo["parent"], "-c", zoo["stranger"], "--probes", 4)
        depth, alone = tmp_path / "depth.png", tmp_path / "alone.png"
        code, out, err = run(*ask, "--profile", depth, "--json")
        best = json.loads(out)["candidates"][0]
        assert code == 0 and f"picture: {depth}" in err and depth.read_bytes().startswith(b"\x89PNG")
        assert best["p_value"] < 1e-3 and len(best["evidence"]["features"]["taps"]) == 3
        code, _, err = run(*ask, "--evidence", "features", "--plot", alone)
        assert code == 0 and alone.read_bytes().startswith(b"\x89PNG")

    def test_the_help_tells(self) -> None:
        code, out, _ = run("trace", "--help")
        assert code == 0
        for word in ("--evidence", "--probes", "--tap", "--metric", "--step", "--profile", "features"):
            assert word in out

    @pytest.mark.slow
    def test_no_warnings_of_torch_reach_the_user(self, zoo: dict[str, Path]) -> None:
        ask = ["trace", zoo["child"], "-c", zoo["parent"], "--evidence", "features", "--probes", 4]
        command = [sys.executable, "-W", "default", "-m", "hf_lineage", *ask]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stderr == "", done.stderr


def test_progress_and_the_network_are_told(zoo: dict[str, Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    note: Callable[..., Any] = lambda *call: seen.append(call)  # noqa: E731
    trace(zoo["child"], [zoo["parent"], zoo["stranger"]], progress=note)
    assert [call[:2] for call in seen] == [(0, 2), (1, 2), (2, 2)] and "features of " in seen[0][2]
