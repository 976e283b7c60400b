"""`trace` from one end to the other on folders: what the verdict means, and what each kind of bad input comes to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Candidate, Lineage
from hf_lineage.errors import (
    ArgumentError,
    BrokenFileError,
    ModelNotFoundError,
    NoCandidatesError,
    NothingToCompareError,
)

pytestmark = pytest.mark.integration

NAMES = ["parent", "stranger", "stranger-2"]
Folders = dict[str, Path]


def answer(folders: Folders, child: str = "child", names: list[str] = NAMES, **options) -> Lineage:
    return hl.trace(folders[child], [folders[name] for name in names], **options)


def by_name(lineage: Lineage) -> dict[str, Candidate]:
    return {Path(c.ref).name: c for c in lineage.candidates}


class TestVerdict:
    def test_the_parent(self, folders: Folders) -> None:
        lineage = answer(folders)
        assert lineage.verdict == "parent" and Path(str(lineage.parent)).name == "parent"
        best = lineage.candidates[0]
        assert best.relation == "finetune" and best.p_value is not None and best.p_value < 1e-4
        assert best.facts["moved"] == pytest.approx(0.3, rel=0.05)
        assert [c.relation for c in lineage.candidates[1:]] == ["none", "none"]
        assert lineage.undeclared == (lineage.parent,)

    def test_none_of_these(self, folders: Folders) -> None:
        lineage = answer(folders, names=["stranger", "stranger-2"])
        assert (lineage.verdict, lineage.parent) == ("none", None) and lineage.none_probability > 0.5
        assert all(c.relation == "none" for c in lineage.candidates)

    @pytest.mark.parametrize(
        "names", [NAMES, ["stranger"], ["parent"], ["grandchild", "parent", "stranger"], ["other", "stranger"]]
    )
    def test_probabilities_sum_to_one(self, folders: Folders, names: list[str]) -> None:
        lineage = answer(folders, names=names)
        total = sum(c.probability or 0.0 for c in lineage.candidates) + lineage.none_probability
        assert total == pytest.approx(1.0, abs=1e-9)

    def test_identical(self, folders: Folders, tmp_path: Path) -> None:
        shutil.copytree(folders["child"], tmp_path / "copy")
        lineage = hl.trace(tmp_path / "copy", [folders["parent"], folders["child"]])
        assert lineage.verdict == "identical" and lineage.parent == str(folders["child"])
        assert lineage.candidates[0].distance == 0.0 and lineage.candidates[0].probability > 0.99

    def test_another_head(self, folders: Folders, nets, tmp_path: Path) -> None:
        tuned = {**nets["parent"], "fc3.weight": torch.randn(10, 64), "fc3.bias": torch.randn(10)}
        save_file(tuned, tmp_path / "head.safetensors")
        lineage = hl.trace(tmp_path / "head.safetensors", [folders[name] for name in NAMES])
        assert lineage.verdict == "common_origin" and lineage.candidates[0].relation == "head_changed"
        assert "which of the two came first does not show" in lineage.sentence().lower(), "equal values have no order"

    def test_a_head_of_another_shape(self, folders: Folders, nets, tmp_path: Path) -> None:
        tuned = {k: v + 0.04 * torch.randn_like(v) for k, v in nets["parent"].items() if "fc3" not in k}
        save_file({**tuned, "fc3.weight": torch.randn(7, 64), "fc3.bias": torch.randn(7)}, tmp_path / "h.safetensors")
        lineage = hl.trace(tmp_path / "h.safetensors", [folders[name] for name in NAMES])
        assert lineage.parent == str(folders["parent"]) and lineage.candidates[0].relation == "finetune"

    def test_frozen_parts(self, folders: Folders, nets, tmp_path: Path) -> None:
        tuned = {k: v + (0.1 * torch.randn_like(v) if "fc2" in k else 0) for k, v in nets["parent"].items()}
        save_file(tuned, tmp_path / "frozen.safetensors")
        best = hl.trace(tmp_path / "frozen.safetensors", [folders[name] for name in NAMES]).candidates[0]
        assert best.relation == "partial" and 0.4 < best.facts["equal_share"] < 0.5

    def test_the_nearest_of_a_line_comes_first(self, folders: Folders) -> None:
        lineage = answer(folders, "grandchild", ["parent", "child", "stranger"])
        assert lineage.candidates[0].ref == str(folders["child"]) and lineage.candidates[0].relation == "finetune"
        assert by_name(lineage)["parent"].first == "candidate", "so did its own parent"

    def test_order_does_not_change_the_answer(self, folders: Folders) -> None:
        first, second = answer(folders).to_dict(), answer(folders, names=NAMES[::-1]).to_dict()
        del first["seconds"], second["seconds"]
        assert first == second

    def test_the_same_bytes_again(self, folders: Folders) -> None:
        first, second = (json.loads(answer(folders, sample=0.3).to_json()) for _ in range(2))
        del first["seconds"], second["seconds"]
        assert json.dumps(first) == json.dumps(second)

    def test_modules_in_memory(self, nets) -> None:
        def module(name: str) -> torch.nn.Module:
            result = torch.nn.Module()
            for i in (1, 2, 3):
                linear = torch.nn.Linear(*nets[name][f"fc{i}.weight"].shape[::-1])
                linear.load_state_dict({"weight": nets[name][f"fc{i}.weight"], "bias": nets[name][f"fc{i}.bias"]})
                result.add_module(f"fc{i}", linear)
            return result

        lineage = hl.trace(module("child"), [module("parent"), module("stranger")])
        assert lineage.child.name == "module:Module" and lineage.verdict == "parent"

    def test_two_modules_of_one_class_are_told_apart(self, nets) -> None:
        def module(name: str) -> torch.nn.Sequential:
            linears = [torch.nn.Linear(*nets[name][f"fc{i}.weight"].shape[::-1]) for i in (1, 2, 3)]
            for i, linear in enumerate(linears, start=1):
                linear.load_state_dict({"weight": nets[name][f"fc{i}.weight"], "bias": nets[name][f"fc{i}.bias"]})
            return torch.nn.Sequential(*linears)

        stranger, parent = module("stranger"), module("parent")
        lineage = hl.trace(module("child"), [stranger, parent, parent])
        assert lineage.candidates[0].requested == "candidates[1]" and len(lineage.candidates) == 2
        assert "counts once" in lineage.notes[0] and str(lineage).count("\n>") == 1

    def test_a_hundred_strangers_do_not_hide_the_parent(self, folders: Folders, make_net, tmp_path: Path) -> None:
        strangers = []
        for seed in range(100, 205):
            save_file(make_net(seed), tmp_path / f"{seed}.safetensors")
            strangers.append(tmp_path / f"{seed}.safetensors")
        lineage = hl.trace(folders["child"], [folders["parent"], *strangers])
        assert lineage.parent == str(folders["parent"])

    def test_a_copy_beats_its_other_heads(self, folders: Folders, nets, tmp_path: Path) -> None:
        shutil.copytree(folders["child"], tmp_path / "z-copy")
        (tmp_path / "a-probe").mkdir()
        save_file({**nets["child"], "fc3.weight": torch.randn(10, 64)}, tmp_path / "a-probe" / "model.safetensors")
        lineage = hl.trace(tmp_path / "z-copy", [tmp_path / "a-probe", folders["child"]])
        assert (lineage.verdict, lineage.parent) == ("identical", str(folders["child"]))

    def test_two_copies_of_one_parent_are_a_tie(self, folders: Folders, tmp_path: Path) -> None:
        shutil.copytree(folders["parent"], tmp_path / "again")
        lineage = hl.trace(folders["child"], [folders["parent"], tmp_path / "again"])
        assert (lineage.verdict, lineage.parent) == ("undecided", None)

    def test_equal_in_a_sample_is_not_identical(self, tmp_path: Path) -> None:
        parent = {f"layers.{i}.mlp.{n}_proj.weight": torch.randn(400, 300) for i in range(2) for n in ("up", "gate")}
        parent |= {f"layers.{i}.mlp.down_proj.weight": torch.randn(300, 400) for i in range(2)}
        parent |= {f"layers.{i}.norm.weight": torch.ones(300) for i in range(2)}
        tuned = {k: v + 0.5 if "norm" in k else v for k, v in parent.items()}
        for name, tensors in (("parent", parent), ("tuned", tuned), ("copy", parent)):
            save_file(tensors, tmp_path / f"{name}.safetensors")
        found = hl.trace(tmp_path / "tuned.safetensors", [tmp_path / "parent.safetensors"], sample="10%")
        assert found.candidates[0].relation == "partial", "norm gains are sampled too"
        copy = hl.trace(tmp_path / "copy.safetensors", [tmp_path / "parent.safetensors"], sample="10%")
        assert copy.verdict == "common_origin" and "tells a copy" in " ".join(copy.notes)
        assert "in all that was read" in copy.sentence()

    def test_a_candidate_of_zeros_is_no_relative(self, folders: Folders, nets, tmp_path: Path) -> None:
        """Whoever else is asked: beside four others, rounding once left 1e-15 of the zeros, and they were compared."""
        zeros = {name: torch.zeros_like(value) if "fc2" in name else value for name, value in nets["parent"].items()}
        (tmp_path / "zeros").mkdir()
        save_file(zeros, tmp_path / "zeros" / "model.safetensors")
        others = [folders[name] for name in ("grandchild", *NAMES)]
        for count in range(len(others) + 1):
            lineage = hl.trace(folders["child"], [*others[:count], tmp_path / "zeros"])
            assert by_name(lineage)["zeros"].status == "not_comparable"

    def test_equal_but_for_zeros_is_not_identical(self, folders: Folders, nets, tmp_path: Path) -> None:
        save_file({**nets["parent"], "fc1.bias": torch.zeros(96)}, tmp_path / "zero.safetensors")
        lineage = hl.trace(tmp_path / "zero.safetensors", [folders["parent"]])
        assert (lineage.verdict, lineage.candidates[0].relation) == ("common_origin", "partial")

    def test_progress_counts_bytes(self, folders: Folders) -> None:
        seen: list[tuple[int, int]] = []
        answer(folders, progress=lambda done, total, what: seen.append((done, total)))
        assert seen and seen[-1][0] == seen[-1][1] and seen == sorted(seen)


class TestClaims:
    def claims(self, folders: Folders, base: str, names: list[str] = NAMES) -> Lineage:
        (folders["child"] / "README.md").write_text(f"---\nbase_model: {base}\n---\n")
        return answer(folders, names=names)

    def test_confirmed(self, folders: Folders) -> None:
        lineage = self.claims(folders, "lab/parent")
        assert lineage.claims[0].status == "confirmed" and lineage.undeclared == ()

    def test_contradicted(self, folders: Folders) -> None:
        lineage = self.claims(folders, "lab/stranger")
        assert lineage.claims[0].status == "contradicted" and lineage.undeclared == (str(folders["parent"]),)

    def test_a_lie_without_the_true_parent_at_hand(self, folders: Folders) -> None:
        assert self.claims(folders, "lab/stranger", ["stranger", "stranger-2"]).claims[0].status == "contradicted"

    def test_a_relative(self, folders: Folders) -> None:
        lineage = self.claims(folders, "lab/grandchild", ["parent", "grandchild", "stranger"])
        assert {c.status for c in lineage.claims} <= {"relative", "confirmed"}

    def test_not_among_the_candidates(self, folders: Folders) -> None:
        assert self.claims(folders, "lab/elsewhere").claims[0].status == "not_testable"

    def test_declared_bases_are_the_default_candidates(self, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
        (folders["child"] / "README.md").write_text("---\nbase_model: lab/parent\n---\n")
        with pytest.raises(NothingToCompareError, match="No candidate could be read"):
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            hl.trace(folders["child"])


class TestNotes:
    """Answers with a note."""

    def test_another_architecture(self, folders: Folders) -> None:
        lineage = answer(folders, names=["other", *NAMES])
        other = by_name(lineage)["other"]
        assert lineage.parent == str(folders["parent"]) and lineage.candidates[-1] == other
        assert other.status == "not_comparable" and other.probability is None and "0 %" in other.reasons[0]

    def test_nothing_but_another_architecture(self, folders: Folders) -> None:
        lineage = answer(folders, names=["other"])
        assert (lineage.verdict, lineage.none_probability) == ("undecided", None)

    def test_the_child_among_its_candidates(self, folders: Folders) -> None:
        lineage = answer(folders, names=["child", *NAMES])
        assert len(lineage.candidates) == 3 and "is the child itself" in lineage.notes[0]

    def test_the_same_candidate_twice(self, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folders["parent"].parent)
        lineage = hl.trace(folders["child"], [folders["parent"], "./parent", folders["stranger"]])
        assert len(lineage.candidates) == 2 and "counts once" in lineage.notes[0]

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
    @pytest.mark.parametrize("who", ["child", "parent"])
    def test_a_bad_tensor_is_left_out_and_named(self, folders: Folders, nets, value: float, who: str) -> None:
        tensors = {**nets[who], "fc1.weight": torch.full_like(nets[who]["fc1.weight"], value)}
        save_file(tensors, folders[who] / "model.safetensors")
        lineage = answer(folders)
        assert lineage.parent == str(folders["parent"]) and "fc1.weight" in " ".join(lineage.notes)

    def test_a_card_of_any_kind(self, folders: Folders) -> None:
        for card in (
            "base_model: [",
            "? [a]\n: b",
            "base_model: !!python/object:os.system x",
            "a: \x01",
            "&a [*a]",
            "base_model: &b [*b]",
        ):
            (folders["child"] / "README.md").write_text(f"---\n{card}\n---\n")
            assert {claim.status for claim in answer(folders).claims} <= {"not_understood"}
        (folders["child"] / "README.md").unlink()
        (folders["child"] / "README.md").mkdir()
        assert answer(folders).parent == str(folders["parent"])

    def test_one_nan_is_enough(self, folders: Folders, nets) -> None:
        weight = nets["child"]["fc1.bias"].clone()
        weight[3] = torch.nan
        save_file({**nets["child"], "fc1.bias": weight}, folders["child"] / "model.safetensors")
        assert "fc1.bias" in " ".join(answer(folders).notes)

    def test_a_broken_candidate_hurts_nobody_else(self, folders: Folders, nets) -> None:
        before = by_name(answer(folders))["parent"]
        save_file({k: v * torch.nan for k, v in nets["stranger"].items()}, folders["stranger"] / "model.safetensors")
        lineage = answer(folders)
        assert by_name(lineage)["stranger"].status == "not_comparable"
        assert by_name(lineage)["parent"].distance == before.distance

    def test_a_candidate_that_cannot_be_read(self, folders: Folders) -> None:
        (folders["stranger"] / "model.safetensors").write_bytes(b"rubbish!")
        lineage = answer(folders)
        assert lineage.parent == str(folders["parent"]) and by_name(lineage)["stranger"].status == "unreadable"

    def test_a_sample_too_small_for_the_test(self, folders: Folders) -> None:
        lineage = answer(folders, sample=1000)
        assert lineage.verdict == "undecided" and lineage.candidates[0].p_value is None
        assert "No p-value" in " ".join(lineage.notes)

    def test_an_architecture_without_known_units(self, tmp_path: Path) -> None:
        parent = {f"thing{i}": torch.randn(40, 30) for i in range(3)}
        save_file(parent, tmp_path / "a.safetensors")
        save_file({k: v + 0.01 * torch.randn_like(v) for k, v in parent.items()}, tmp_path / "b.safetensors")
        lineage = hl.trace(tmp_path / "b.safetensors", [tmp_path / "a.safetensors"])
        assert lineage.verdict == "undecided" and lineage.candidates[0].distance == pytest.approx(0.01, rel=0.1)
        assert "none of this architecture are known" in " ".join(lineage.notes)


class TestErrors:
    """One line each that says what to do next."""

    def test_no_candidates(self, folders: Folders) -> None:
        for candidates in ([], None):
            with pytest.raises(NoCandidatesError, match=r"-c org/name"):
                hl.trace(folders["child"], candidates)
        with pytest.raises(NoCandidatesError, match="is the child itself"):
            answer(folders, names=["child"])

    def test_all_candidates_unreadable(self, folders: Folders, tmp_path: Path) -> None:
        with pytest.raises(NothingToCompareError, match="No candidate could be read"):
            hl.trace(folders["child"], [tmp_path / "x", tmp_path / "y"])

    def test_every_tensor_nan(self, folders: Folders, nets) -> None:
        save_file({k: v * torch.nan for k, v in nets["child"].items()}, folders["child"] / "model.safetensors")
        with pytest.raises(NothingToCompareError, match="Every tensor"):
            answer(folders)

    def test_a_truncated_child(self, folders: Folders) -> None:
        path = folders["child"] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(BrokenFileError, match="truncated"):
            answer(folders)

    @pytest.mark.parametrize(
        "options",
        [{"alpha": 0}, {"alpha": 1.5}, {"evidence": "tea leaves"}, {"evidence": ("weights", "x")}, {"sample": "lots"},
         {"max_bytes": 0}, {"max_bytes": 1000}, {"device": "quantum"}],
    )  # fmt: skip
    def test_options(self, folders: Folders, options: dict) -> None:
        with pytest.raises(ArgumentError) as caught:
            answer(folders, **options)
        assert "\n" not in str(caught.value)

    def test_only_the_head_is_usable(self, folders: Folders, nets) -> None:
        broken = {k: v if "fc3" in k else v * torch.nan for k, v in nets["child"].items()}
        save_file(broken, folders["child"] / "model.safetensors")
        with pytest.raises(NothingToCompareError, match="Every tensor"):
            answer(folders)

    def test_an_empty_sample_is_not_called_nan(self, folders: Folders) -> None:
        with pytest.raises(ArgumentError, match="larger sample"):
            answer(folders, sample=1)

    def test_the_limit_counts_every_models_own_bytes(self, folders: Folders, nets) -> None:
        save_file(
            {k: v.to(torch.float8_e4m3fn) for k, v in nets["child"].items()}, folders["child"] / "model.safetensors"
        )
        size = sum(t.numel() for t in nets["child"].values())
        with pytest.raises(ArgumentError, match="more than max_bytes"):
            answer(folders, names=["parent"], max_bytes=4 * size)
        (read,) = answer(folders, names=["parent"], max_bytes=6 * size).candidates
        assert read.status == "compared" and read.relation != "none", "what was packed tells no order"

    @pytest.mark.parametrize("child", [3, None, {"a": 1}])
    def test_no_model_at_all(self, folders: Folders, child) -> None:
        with pytest.raises(ArgumentError, match="state dict"):
            hl.trace(child, [folders["parent"]])

    def test_a_module_stands_for_a_list_of_one(self, folders: Folders) -> None:
        (only,) = hl.trace(folders["child"], torch.nn.Linear(2, 2)).candidates
        assert only.status == "not_comparable" and only.ref == "module:Linear"

    def test_an_adapter_of_a_path(self, tmp_path: Path) -> None:
        save_file({"x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "./nowhere"}')
        with pytest.raises(hl.LineageError, match="its base cannot be opened") as caught:
            hl.trace(tmp_path, [tmp_path / "x"])
        assert not isinstance(caught.value, ModelNotFoundError), "the child is there"

    def test_one_reference_stands_for_a_list_of_one(self, folders: Folders) -> None:
        assert hl.trace(folders["child"], str(folders["parent"])).parent == str(folders["parent"])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_sample_reads_what_it_says(folders: Folders, share: float) -> None:
    whole = answer(folders, names=["parent"])
    headers = sum((folders[n] / "model.safetensors").stat().st_size for n in ("child", "parent")) - 2 * 4 * sum(
        t.numel() for t in _weights(folders["child"]).values()
    )
    part = answer(folders, names=["parent"], sample=share)
    assert part.bytes_read - headers == pytest.approx(share * (whole.bytes_read - headers), rel=0.2)
    assert part.parent == whole.parent
    assert part.candidates[0].distance == pytest.approx(whole.candidates[0].distance, rel=0.1)
    assert part.candidates[0].facts["distance_stderr"] > 0.0 == whole.candidates[0].facts["distance_stderr"]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
