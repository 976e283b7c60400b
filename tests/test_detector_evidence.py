"""A detector's word in an answer: what it may say, what it may not move, which files it may come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import near as near_to
from builders import put, vit
from safetensors.torch import load_file
from torch import nn

import hf_lineage as hl
from hf_lineage import cli
from hf_lineage.answers.lineage import Lineage
from hf_lineage.checkpoints.opener import Opener
from hf_lineage.detector.evidence import LoadedDetector, open_detector
from hf_lineage.detector.model import DetectorConfig, LineageDetector
from hf_lineage.errors import ArgumentError, CheckpointError, LineageError, NothingToCompareError

pytestmark = pytest.mark.integration

CONFIG = DetectorConfig(width=16, heads=4, feed_forward=16, entries=256, probes=8, scale="child", norm="running")
SIZES = {"num_heads": 4, "mlp_ratio": 2}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    parent, stranger, another, broken = (vit(seed, **SIZES).state_dict() for seed in (1, 4, 5, 6))
    child = near_to(parent, 0.1)
    hybrid = {name: stranger[name] if name.startswith("blocks.1.") else child[name] for name in child}
    broken["blocks.0.mlp.fc2.weight"] = torch.full_like(broken["blocks.0.mlp.fc2.weight"], torch.nan)
    models = {"parent": parent, "child": child, "stranger": stranger, "stranger-2": another, "hybrid": hybrid}
    return {name: put(root / name, tensors, **SIZES) for name, tensors in (models | {"broken": broken}).items()}


def like_distance(detector: LineageDetector, sign: float = 1.0) -> LineageDetector:
    """Set it up by hand to say how near the pair is (`sign` −1: how far): two channels are ±(parent − child)."""
    state = {name: torch.zeros_like(tensor) for name, tensor in detector.state_dict().items()}
    for kind in ("weight", "feature"):
        if f"{kind}_encoder.0.weight" not in state:
            continue
        state[f"{kind}_encoder.0.weight"][0, :, 0, 0] = torch.tensor([1.0, -1.0])
        state[f"{kind}_encoder.0.weight"][1, :, 0, 0] = torch.tensor([-1.0, 1.0])
        state[f"{kind}_encoder.3.weight"][0, :2, 1, 1] = 1.0
        for layer in ("1", "4"):
            for name in ("weight", "running_var"):
                state[f"{kind}_encoder.{layer}.{name}"][:] = 1.0
    attention = "transformer.self_attn"
    state[f"{attention}.in_proj_weight"][-16:] = torch.eye(16)  # values; with equal queries and keys, their mean
    state[f"{attention}.out_proj.weight"][:] = torch.eye(16)
    for norm in ("norm1", "norm2"):
        state[f"transformer.{norm}.weight"][:] = 1.0
    state["cls"] = 0.5 * torch.tensor([0.0, *[1.0, -1.0] * 7, 0.0])
    state["head.weight"][0, 0] = -4.0 * sign
    detector.load_state_dict(state)
    return detector.eval()


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("near")
    like_distance(LineageDetector(CONFIG)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far")
    like_distance(LineageDetector(CONFIG), sign=-1.0).save_pretrained(folder)
    return folder


def named(lineage: Lineage) -> dict[str, hl.Lineage]:
    return {Path(c.ref).name: c for c in lineage.candidates}


class TestAlone:
    def test_a_closed_set_is_ranked_and_nobody_is_convicted(self, zoo: dict[str, Path], near: Path) -> None:
        lineage = hl.trace(
            zoo["child"], [zoo["stranger"], zoo["parent"], zoo["stranger-2"]], evidence="detector", detector=near
        )
        assert Path(lineage.candidates[0].ref).name == "parent" and (lineage.verdict, lineage.parent) == (
            "undecided",
            None,
        )
        assert lineage.none_probability is None and all(c.p_value is None for c in lineage.candidates)
        assert sum(c.probability for c in lineage.candidates) == pytest.approx(1, abs=1e-9)
        facts = lineage.candidates[0].evidence["detector"]
        assert facts["inputs"] == ["blocks.0.mlp.fc2.weight", "blocks.0"] and facts["probes"] == 8
        notes = " ".join(lineage.notes)
        assert "detector alone" in lineage.explain() and "no p-value" in notes
        first = max(lineage.candidates, key=lambda c: c.evidence["detector"]["probability"])
        assert f": {first.ref} {first.evidence['detector']['probability']:.3f}" in notes
        assert json.loads(lineage.to_json())["candidates"][0]["evidence"]["detector"]["detector"] == str(near)

    def test_none_of_these_has_a_share(self, zoo: dict[str, Path], near: Path, tmp_path: Path) -> None:
        state = load_file(near / "model.safetensors") | {"none": torch.tensor([50.0])}
        detector = LineageDetector(replace(CONFIG, no_parent="score"))
        detector.load_state_dict(state)
        detector.save_pretrained(tmp_path / "d")
        lineage = hl.trace(zoo["child"], [zoo["parent"], zoo["stranger"]], evidence="detector", detector=tmp_path / "d")
        assert lineage.none_probability + sum(c.probability for c in lineage.candidates) == pytest.approx(1, abs=1e-9)
        assert lineage.none_probability > 0.9 and "none of the 2 is the parent" in lineage.explain()

    def test_the_order_of_the_candidates_does_not_matter(self, zoo: dict[str, Path], near: Path) -> None:
        names = ["stranger", "parent", "stranger-2"]
        one, two = (
            hl.trace(zoo["child"], [zoo[n] for n in order], evidence="detector", detector=near)
            for order in (names, names[::-1])
        )
        assert [c.ref for c in one.candidates] == [c.ref for c in two.candidates]
        assert [c.probability for c in one.candidates] == pytest.approx(
            [c.probability for c in two.candidates], abs=1e-6
        )

    def test_one_candidate_gets_everything(self, zoo: dict[str, Path], near: Path) -> None:
        lineage = hl.trace(zoo["child"], [zoo["stranger"]], evidence="detector", detector=near)
        assert lineage.candidates[0].probability == pytest.approx(1) and lineage.parent is None

    def test_what_cannot_be_looked_at_is_listed(self, zoo: dict[str, Path], near: Path, tmp_path: Path) -> None:
        wide = put(tmp_path / "wide", {"fc.weight": torch.randn(8, 8)}, {"any": 1})
        lineage = hl.trace(zoo["child"], [zoo["parent"], zoo["broken"], wide], evidence="detector", detector=near)
        found = named(lineage)
        assert found["broken"].status == "not_comparable" and "NaN or Inf" in found["broken"].reasons[0]
        assert found["wide"].status == "not_comparable" and found["parent"].probability == pytest.approx(1)
        with pytest.raises(CheckpointError, match="NaN or Inf"):
            hl.trace(zoo["broken"], [zoo["parent"]], evidence="detector", detector=near)

    def test_modules(self, tmp_path: Path, near: Path) -> None:
        def mlp(seed: int) -> nn.Sequential:
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

        parent, child = mlp(1), mlp(1)
        with torch.no_grad():
            for tensor in child.parameters():
                tensor += 0.05 * torch.randn_like(tensor) * tensor.std()
        x = torch.randn(32, 20)
        lineage = hl.trace(child, [mlp(2), parent], evidence=["weights", "detector"], detector=near, probes=x)
        best = max(lineage.candidates, key=lambda c: c.evidence["detector"]["probability"])
        assert best.requested == "candidates[1]" and best.evidence["detector"]["inputs"] == ["0.weight", "1"]


class TestBesideTheWeights:
    def test_it_moves_nothing(self, zoo: dict[str, Path], near: Path) -> None:
        candidates = [zoo["stranger"], zoo["parent"]]
        alone = hl.trace(zoo["child"], candidates)
        both = hl.trace(zoo["child"], candidates, evidence=["weights", "detector"], detector=near)
        assert (both.verdict, both.parent, both.none_probability) == (
            alone.verdict,
            alone.parent,
            alone.none_probability,
        )
        for one, other in zip(both.candidates, alone.candidates, strict=True):
            assert "detector" in one.evidence and one.reasons == other.reasons
            for name in ("ref", "probability", "p_value", "log10_p", "distance", "relation"):
                assert getattr(one, name) == getattr(other, name)
        assert not any("disagree" in note for note in both.notes) and "The detector names" in both.explain()

    def test_a_disagreement_is_said(self, zoo: dict[str, Path], far: Path) -> None:
        candidates = [zoo["stranger"], zoo["parent"], zoo["stranger-2"]]
        lineage = hl.trace(zoo["child"], candidates, evidence=["weights", "detector"], detector=far)
        plain = hl.trace(zoo["child"], candidates)
        assert (lineage.verdict, lineage.parent) == (plain.verdict, plain.parent)
        assert Path(lineage.candidates[0].ref).name == "parent" and lineage.candidates[0].p_value < 1e-3
        told = [note for note in lineage.notes if "disagree" in note]
        assert len(told) == 1 and "stranger" in told[0] and "The verdict is the weights'" in told[0]
        assert any("detector names" in reason for reason in lineage.candidates[0].reasons)

    def test_none_against_a_parent_is_said(self, zoo: dict[str, Path], near: Path, tmp_path: Path) -> None:
        detector = LineageDetector(replace(CONFIG, no_parent="score"))
        detector.load_state_dict(load_file(near / "model.safetensors") | {"none": torch.tensor([50.0])})
        detector.save_pretrained(tmp_path / "d")
        lineage = hl.trace(zoo["child"], [zoo["parent"]], evidence=["weights", "detector"], detector=tmp_path / "d")
        assert any("disagree" in n and "none of them is the parent" in n for n in lineage.notes)
        assert any("none of them" in reason for reason in lineage.candidates[0].reasons)


class TestFiles:
    def test_a_repo_is_pinned_to_its_commit(self, hub, near: Path, zoo: dict[str, Path]) -> None:
        hub.add("lab/detector", {p.name: p.read_bytes() for p in near.iterdir() if p.suffix != ".md"})
        lineage = hl.trace(zoo["child"], [zoo["parent"], zoo["stranger"]], evidence="detector", detector="lab/detector")
        commit = hub.repos["lab/detector"].refs["main"]
        assert lineage.candidates[0].evidence["detector"]["detector"] == f"lab/detector@{commit}"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"version": 7}, "version 1, got 7"),
            ({"version": None}, "no version|version 1"),
            ({"width": 32}, "of shape"),
            ({"weights": []}, "of shape"),
            ({"width": 10**9, "heads": 1}, "of shape|no detector"),
            ({"width": "x"}, "no detector"),
            ({"heads": 5}, "no detector"),
            ({"temperature": "hot"}, "no detector"),
        ],
    )
    def test_another_version_or_shape(self, near: Path, tmp_path: Path, change: dict, said: str) -> None:
        stated = json.loads((near / "config.json").read_text()) | change
        put(tmp_path / "d", load_file(near / "model.safetensors"), stated)
        with pytest.raises(CheckpointError, match=said):
            open_detector(tmp_path / "d", Opener())

    def test_what_is_no_detector(self, zoo: dict[str, Path], near: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="Expected a detector in"):
            open_detector(zoo["parent"], Opener())
        with pytest.raises(LineageError, match="nowhere"):
            open_detector("./nowhere", Opener())
        state = load_file(near / "model.safetensors")
        put(tmp_path / "d", state | {"cls": state["cls"] * torch.nan}, json.loads((near / "config.json").read_text()))
        with pytest.raises(CheckpointError, match="finite weights"):
            open_detector(tmp_path / "d", Opener())
        torch.save(state, tmp_path / "pytorch_model.bin")
        with pytest.raises(LineageError, match="pickled"):
            open_detector(tmp_path, Opener())

    def test_a_detector_asks_for_that_evidence(self, zoo: dict[str, Path], near: Path) -> None:
        with pytest.raises(ArgumentError, match='evidence="detector"'):
            hl.trace(zoo["child"], [zoo["parent"]], detector=near)


class TestLayers:
    def test_the_origin_of_each_block(self, zoo: dict[str, Path], near: Path) -> None:
        layers = hl.trace_layers(
            zoo["hybrid"], [zoo["parent"], zoo["stranger"], zoo["stranger-2"]], evidence="detector", detector=near
        )
        assert [Path(block.parent).name for block in layers.blocks] == ["parent", "stranger", "parent"]
        assert layers.evidence == ("detector",) and all(1 / 3 < block.probability < 1 for block in layers.blocks)
        for block in layers.blocks:
            scores = [facts["scores"][str(near)]["exact"] for facts in block.facts["detector"].values()]
            wanted = torch.tensor(scores, dtype=torch.float64).div(len(scores)).softmax(0)  # S2.7
            assert [*block.facts["detector_match"].values()] == pytest.approx(wanted.tolist())
        assert "By detector alone" in str(layers) and "detector" in layers.to_json()

    def test_beside_weights_and_features(self, zoo: dict[str, Path], near: Path) -> None:
        candidates, every = [zoo["parent"], zoo["stranger"]], ["weights", "features", "detector"]
        layers = hl.trace_layers(zoo["hybrid"], candidates, evidence=every, detector=near, probes=16)
        plain = hl.trace_layers(zoo["hybrid"], candidates)
        assert [(b.block, b.parent, b.p_value) for b in layers.blocks] == [
            (b.block, b.parent, b.p_value) for b in plain.blocks
        ]
        inner = [b for b in layers.blocks if b.index is not None]
        assert all({"features", "match", "detector", "detector_match"} <= {*block.facts} for block in inner)

    def test_weights_alone_cannot_judge_blocks(self, zoo: dict[str, Path], tmp_path: Path) -> None:
        LineageDetector(replace(CONFIG, features=())).save_pretrained(tmp_path / "d")
        with pytest.raises(ArgumentError, match="reads features"):
            hl.trace_layers(zoo["child"], [zoo["parent"]], evidence="detector", detector=tmp_path / "d")

    def test_nobody_fits(self, zoo: dict[str, Path], near: Path, tmp_path: Path) -> None:
        wide = put(tmp_path / "wide", {"fc.weight": torch.randn(8, 8)}, {"any": 1})
        with pytest.raises(NothingToCompareError):
            hl.trace_layers(zoo["child"], [wide], evidence="detector", detector=near)


def test_the_command(zoo: dict[str, Path], near: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-c", str(zoo["parent"]), "-c", str(zoo["stranger"]), "--evidence", "detector", "--detector", str(near)]
    cli.main(["trace", str(zoo["child"]), *asked, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "undecided" and answer["candidates"][0]["ref"] == str(zoo["parent"])
    cli.main(["layers", str(zoo["hybrid"]), *asked, "-q"])
    assert capsys.readouterr().out.split() == [str(zoo["parent"]), str(zoo["stranger"])]


def test_a_judge_knows_its_config(near: Path) -> None:
    judge = open_detector(near, Opener())
    assert isinstance(judge, LoadedDetector) and judge.config == CONFIG and judge.name == str(near)
