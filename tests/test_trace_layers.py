"""`trace_layers` from one end to the other: the contract, one answer whatever the order, and every bad input sorted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import free_port, llama, tuned
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import ArgumentError, NoCandidatesError, NothingToCompareError
from hf_lineage.experiments.merges import dare, linear, passthrough, slerp, task_arithmetic, ties
from hf_lineage.weights.merge_methods import remade
from hf_lineage.weights.merge_numbers import resolve

pytestmark = pytest.mark.integration

Tensors = dict[str, torch.Tensor]
WIDTH = 24
PATHS = ["stem", "model.layers.0", "model.layers.1", "model.layers.2", "head"]
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def block(model: Tensors, number: int) -> Tensors:
    return {name: tensor for name, tensor in model.items() if f".layers.{number}." in name}


PARENT, STRANGER = llama(1), llama(2)
SIBLING, CHILD = tuned(PARENT, 4, 0.3), tuned(PARENT, 3, 0.05)


class Shelf:
    """Model folders by name; some are there from the start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, model in (("parent", PARENT), ("stranger", STRANGER), ("sibling", SIBLING), ("child", CHILD)):
            self.put(name, model)

    def put(self, name: str, model: Tensors) -> Path:
        (self.folder / name).mkdir()
        save_file({n: t.contiguous() for n, t in model.items()}, self.folder / name / "model.safetensors")
        return self.folder / name

    def __call__(
        self, child: str | Tensors, names: Sequence[str] = ("parent", "stranger"), **options: Any
    ) -> hl.LayerLineage:
        path = self.folder / child if isinstance(child, str) else self.put("made", child)
        return hl.trace_layers(path, [self.folder / name for name in names], **options)


@pytest.fixture
def ask(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def told(layers: hl.LayerLineage) -> dict[str, tuple[str, str | None]]:
    """Block → kind and the name of its parent."""
    return {b.block: (b.kind, b.parent and Path(b.parent).name) for b in layers.blocks}


def shares(layers: hl.LayerLineage) -> dict[str, float]:
    return {Path(share.ref).name: share.weight for share in layers.mixture}


def plain(layers: hl.LayerLineage, *without: str) -> dict[str, Any]:
    return {key: value for key, value in layers.to_dict().items() if key not in ("seconds", *without)}


class TestContract:
    def test_the_keys_of_design(self, ask: Shelf) -> None:
        layers = ask("child")
        found = json.loads(layers.to_json(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
        assert list(found)[:4] == ["schema", "child", "candidates", "revisions"] and found["schema"] == "hf_lineage/2"
        assert found.keys() == {"schema", "child", "candidates", "blocks"} | {
            "revisions", "mixture", "unknown", "residual", "method", "facts", "reasons", "notes", "evidence", "bytes_read",
            "seconds", "seed", "alpha", "versions", "redone",
        }  # fmt: skip
        assert found["child"].keys() == {"ref", "requested", "revision"}
        for each in found["blocks"]:
            assert each.keys() == {
                "block", "index", "parent", "parent_block", "probability", "p_value", "mixture", "unknown",
            } | {"kind", "log10_p", "residual", "facts"}  # fmt: skip
            assert each["mixture"] and each["mixture"][0].keys() == {"ref", "block", "weight", "stderr"}
        assert [(b["block"], b["index"]) for b in found["blocks"]] == list(
            zip(PATHS, [None, 0, 1, 2, None], strict=True)
        )

    def test_matrix_and_scores(self, ask: Shelf) -> None:
        ask.put("deep", {**llama(9, 5), **block(PARENT, 1)})
        layers = ask("child", ["parent", "deep"])
        second, first = layers.candidates  # in the order of their names
        assert layers.matrix.dtype == np.float64 and layers.matrix.shape == (5, 2)
        assert layers.scores[first].shape == (5, 5) and layers.scores[second].shape == (5, 7)
        np.testing.assert_array_equal(layers.matrix[:, 0], np.nanmax(layers.scores[second], 1))
        assert (layers.matrix[:, 1] > 0.99).all() and layers.matrix[2, 0] > 0.99 and layers.matrix[1, 0] < 0.3
        embedded = (CHILD[VOCABULARY[0]].flatten(), PARENT[VOCABULARY[0]].flatten())
        assert layers.matrix[0, 1] == pytest.approx(np.corrcoef(*embedded)[0, 1], abs=1e-6), (
            "a stem has its correlation"
        )
        assert layers.places[second] == ("stem", *(f"model.layers.{i}" for i in range(5)), "head")

    def test_a_fine_tune(self, ask: Shelf) -> None:
        layers = ask("child")
        assert layers.method == "single" and {*told(layers).values()} == {("tuned", "parent")}
        for each in layers.blocks:
            own = (
                [n for n in CHILD if each.block in n] if each.index is not None else [VOCABULARY[each.block == "head"]]
            )
            own = [n for n in own if CHILD[n].dim() > 1]
            rest, whole = (
                sum(float(t.square().sum()) for t in ts)
                for ts in ([CHILD[n] - PARENT[n] for n in own], [CHILD[n] for n in own])
            )
            assert each.residual == pytest.approx((rest / whole) ** 0.5, rel=1e-4) and not each.moved
            assert (each.p_value is None) == (each.index is None) and (each.index is None or each.p_value < 1e-20)

    def test_the_same_bytes_twice(self, ask: Shelf) -> None:
        models = ask.put("merge", linear([PARENT, STRANGER], [0.6, 0.4])), ["parent", "stranger", "sibling"]
        one, two = (plain(ask("merge", models[1])) for _ in range(2))
        assert json.dumps(one) == json.dumps(two) and one["mixture"]

    @pytest.mark.parametrize("child", ["child", "merge"])
    def test_the_order_of_candidates(self, ask: Shelf, child: str) -> None:
        ask.put("merge", linear([PARENT, SIBLING], [0.6, 0.4]))
        ask.put("copy", PARENT)
        names = ["parent", "copy", "stranger", "sibling"]
        assert plain(ask(child, names)) == plain(ask(child, names[::-1]))

    def test_weights_do_not_hang_on_the_order(self, ask: Shelf) -> None:
        ask.put("merge", linear([PARENT, SIBLING, STRANGER], [0.5, 0.3, 0.2]))
        one, two = (
            ask("merge", names) for names in (["parent", "stranger", "sibling"], ["sibling", "stranger", "parent"])
        )
        assert told(one) == told(two) and shares(one) == pytest.approx(shares(two), abs=1e-6)


class TestMethods:
    def test_blocks_of_several(self, ask: Shelf) -> None:
        layers = ask(tuned(passthrough([PARENT, STRANGER], [(0, 2), (1, 0), (0, 0), (0, 0)]), 8, 0.05))
        parents = [(Path(b.parent or "").name, b.parent_block, b.moved) for b in layers.blocks[1:-1]]
        at = "model.layers."
        assert parents == [("parent", f"{at}2", True), ("stranger", f"{at}0", True), ("parent", f"{at}0", True), ("parent", f"{at}0", True)]  # fmt: skip
        assert layers.method == "passthrough" and layers.unknown == 0

    @pytest.mark.parametrize("pair", [("parent", "stranger"), ("parent", "sibling")])
    def test_a_weighted_sum(self, ask: Shelf, pair: tuple[str, str]) -> None:
        other = STRANGER if "stranger" in pair else SIBLING
        layers = ask(linear([PARENT, other], [0.7, 0.3]), ["stranger", "parent", "sibling"])
        assert layers.method == "linear" and shares(layers) == pytest.approx(
            dict(zip(pair, (0.7, 0.3), strict=True)), abs=1e-4
        )
        assert {b.kind for b in layers.blocks} == {"mixture"} and layers.residual == pytest.approx(0, abs=1e-6)

    def test_an_arc(self, ask: Shelf) -> None:
        layers = ask(slerp(PARENT, STRANGER, 0.3))
        assert layers.method == "slerp" and layers.facts["slerp"]["t"] == pytest.approx(0.3, abs=1e-4)

    @pytest.mark.parametrize("method", ["ties", "dare", "task_arithmetic", "linear"])
    def test_deltas_of_one_base(self, ask: Shelf, method: str) -> None:
        models = [tuned(PARENT, 40 + k, 0.2) for k in range(2)]
        for k, model in enumerate(models):
            ask.put(f"tuned{k}", model)
        made = {
            "ties": ties(PARENT, models, [0.6, 0.4], 0.5), "dare": dare(PARENT, models, [0.6, 0.4], 0.5, 3),
            "task_arithmetic": task_arithmetic(PARENT, models, [0.9, 0.6]), "linear": linear(models, [0.6, 0.4]),
        }  # fmt: skip
        layers = ask(made[method], ["tuned0", "parent", "tuned1", "stranger"])
        assert layers.method == method
        if method != "linear":
            assert Path(layers.facts[method]["base"]).name == "parent"
            deltas = {Path(d["ref"]).name: d["weight"] for d in layers.facts[method]["deltas"]}
            truth = (0.9, 0.6) if method == "task_arithmetic" else (0.6, 0.4)
            assert deltas == pytest.approx({"tuned0": truth[0], "tuned1": truth[1]}, abs=0.02)

    @pytest.mark.parametrize(("first", "then"), [(0.5, 0.1), (0.02, 0.01)])
    def test_a_grandchild_in_bfloat16(self, ask: Shelf, first: float, then: float) -> None:
        """Some entries happen to be the grandparent's again, and some to follow the parent: no TIES, no DARE."""
        ask.put("grandparent", grandparent := {n: t.bfloat16() for n, t in llama(41, width=64).items()})
        ask.put("between", between := tuned(grandparent, 1, first))
        layers = ask(tuned(between, 2, then), ["grandparent", "between"])
        assert layers.method == "single" and {*told(layers).values()} == {("tuned", "between")}


class TestBlocks:
    def test_a_block_initialised_anew(self, ask: Shelf) -> None:
        layers = ask({**CHILD, **block(llama(77), 1)})
        assert told(layers)["model.layers.1"] == ("none", None) and layers.blocks[2].unknown == 1
        assert layers.blocks[2].p_value > 1e-3 and {*shares(layers)} == {"parent"}
        assert [kind for path, (kind, _) in told(layers).items() if path != "model.layers.1"] == ["tuned"] * 4
        size = {path: sum(t.numel() for n, t in CHILD.items() if path in n) for path in PATHS[1:4]}
        whole = sum(size.values()) + CHILD[VOCABULARY[0]].numel()
        assert layers.unknown == pytest.approx(size["model.layers.1"] / whole)

    def test_all_equal(self, ask: Shelf) -> None:
        layers = ask(PARENT)
        assert layers.method == "single" and {*told(layers).values()} == {("equal", "parent")} and layers.residual == 0

    @pytest.mark.parametrize("more", [7, -7])
    def test_a_vocabulary_of_another_length(self, ask: Shelf, more: int) -> None:
        long = {**CHILD, **{n: torch.cat([CHILD[n], torch.randn(7, WIDTH)]) for n in VOCABULARY}}
        short = {**CHILD, **{n: CHILD[n][:-7] for n in VOCABULARY}}
        layers = ask(long if more > 0 else short)
        assert {*told(layers).values()} == {("tuned", "parent")} and layers.blocks[0].residual == pytest.approx(
            0.05, rel=0.1
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, ask: Shelf, dtype: torch.dtype) -> None:
        ask.put("half", {n: t.to(dtype) for n, t in PARENT.items()})
        for names in (["half", "stranger"], ["parent", "stranger"]):
            layers = hl.trace_layers(
                ask.put(f"child of {names[0]}", {n: t.to(dtype) for n, t in CHILD.items()}),
                [ask.folder / n for n in names],
            )
            assert {*told(layers).values()} == {("tuned", names[0])} and layers.facts["dtype"] == str(dtype)[6:]
        equal = ask({n: t.to(dtype) for n, t in PARENT.items()}, ["half", "parent"])
        assert {*told(equal).values()} == {("equal", "half")}, "rounding is a change"

    def test_another_head(self, ask: Shelf) -> None:
        layers = ask({**CHILD, VOCABULARY[1]: torch.randn(10, WIDTH)})
        assert told(layers)["head"] == ("none", None) and layers.method == "single" and layers.unknown == 0

    def test_a_source_of_half_a_percent(self, ask: Shelf) -> None:
        """Its blocks stand out nowhere, so they are looked for where they stood."""
        layers = ask(linear([PARENT, STRANGER], [0.995, 0.005]), ["parent", "stranger"])
        for each in layers.blocks[1:-1]:
            assert [share.weight for share in each.mixture] == pytest.approx([0.995, 0.005], abs=1e-5)

    def test_attention_of_one_and_feed_forward_of_another(self, ask: Shelf) -> None:
        layers = ask({n: STRANGER[n] if ".mlp." in n else t for n, t in PARENT.items()}, ["parent", "stranger"])
        for each in layers.blocks[1:-1]:
            assert each.kind == "mixture" and {Path(share.ref).name for share in each.mixture} == {"parent", "stranger"}
            assert all(".self_attn." in name for names in each.facts["parts"].values() for name in names) or all(
                ".mlp." in name for names in each.facts["parts"].values() for name in names
            )
        assert layers.method == "mixed" and "parts of 3 of 3 blocks" in layers.reasons[0]
        # the recipe that makes it is a slerp with a filter all the same
        assert layers.facts["merge"]["exact"] and "filter" in layers.recipe()


class TestCandidates:
    def test_of_other_depths_and_widths(self, ask: Shelf) -> None:
        ask.put("deep", {**llama(5, 6), **{n.replace("layers.1", "layers.4"): t for n, t in block(PARENT, 1).items()}})
        ask.put("shallow", {**llama(6, 1), **block(PARENT, 0)})
        ask.put("wide", llama(7, width=32))
        layers = ask("child", ["deep", "shallow", "wide"])
        assert told(layers) == dict(zip(PATHS, [("none", None), ("tuned", "shallow"), ("tuned", "deep"), ("none", None), ("none", None)], strict=True))  # fmt: skip
        assert (
            layers.blocks[2].parent_block == "model.layers.4" and layers.blocks[2].moved and not layers.blocks[1].moved
        )
        assert len(layers.candidates) == 2 and "wide has no block of a kind and shape" in " ".join(layers.notes)
        with pytest.raises(NothingToCompareError, match="No candidate has a block"):
            ask("child", ["wide"])

    def test_a_single_one(self, ask: Shelf) -> None:
        assert {*told(ask("child", ["parent"])).values()} == {("tuned", "parent")}
        layers = ask("child", ["stranger"])
        assert {*told(layers).values()} == {("none", None)} and layers.unknown == 1 and layers.method is None
        json.loads(layers.to_json())

    def test_no_blocks_recognised(self, ask: Shelf) -> None:
        thing = {
            f"quux.{k}.weight": torch.randn(40, 30, generator=torch.Generator().manual_seed(i))
            for i, k in enumerate("abc")
        }
        ask.put("thing", thing)
        ask.put("other", {n: torch.randn(40, 30) for n in thing})
        layers = ask({**tuned(thing, 1, 0.05), "quux.b.weight": torch.randn(40, 30)}, ["thing", "other"])
        assert told(layers) == {"quux.a": ("tuned", "thing"), "quux.b": ("none", None), "quux.c": ("tuned", "thing")}
        assert all(b.p_value is None for b in layers.blocks)

    def test_named_twice_and_the_child_itself(self, ask: Shelf) -> None:
        layers = ask("child", ["parent", "parent", "child"])
        notes = " ".join(layers.notes)
        assert len(layers.candidates) == 1 and "counts once" in notes and "child is the child itself" in notes
        assert plain(layers, "notes", "bytes_read") == plain(ask("child", ["parent"]), "notes", "bytes_read"), (
            "as if it had not been named"
        )

    def test_copies_cannot_be_told_apart(self, ask: Shelf) -> None:
        ask.put("copy", PARENT)
        layers = ask("child", ["parent", "copy", "stranger"])
        assert "hold the same weights in 5 of 5 blocks" in layers.notes[-1] and "cannot be told" in layers.notes[-1]
        for each in layers.blocks:
            assert each.probability == (None if each.index is None else pytest.approx(0.5)) and {
                Path(r).name for r in each.facts["same"]
            } == {
                "parent",
                "copy",
            }
            assert len(each.mixture) == 1

    def test_copies_of_what_the_child_is(self, ask: Shelf) -> None:
        ask.put("copy", PARENT)
        layers = ask(PARENT, ["parent", "copy"])
        assert {b.kind for b in layers.blocks} == {"equal"} and {b.probability for b in layers.blocks} == {0.5}

    def test_a_copy_of_a_source_of_a_merge(self, ask: Shelf) -> None:
        ask.put("copy", SIBLING)
        layers = ask(linear([PARENT, SIBLING], [0.7, 0.3]), ["copy", "parent", "sibling"])
        for each in layers.blocks:
            assert [share.weight for share in each.mixture] == pytest.approx([0.7, 0.3], abs=1e-4), "counts once"

    def test_it_is_said_of_every_source(self, ask: Shelf) -> None:
        ask.put("copy", SIBLING)
        layers = ask(linear([PARENT, SIBLING], [0.7, 0.3]), ["copy", "parent", "sibling"])
        assert "cannot be told" in " ".join(layers.notes)

    def test_a_reason_is_true(self, ask: Shelf) -> None:
        layers = ask({**CHILD, **block(llama(77), 1)})
        assert "every block has one origin" not in layers.reasons[0]

    @pytest.mark.parametrize("names", [["parent", "frozen"], ["frozen", "parent"]])
    def test_a_frozen_block_that_two_hold(self, ask: Shelf, names: list[str]) -> None:
        ask.put("frozen", {**STRANGER, **block(PARENT, 1)})
        layers = ask("child", names)
        same = {b.block: b.facts["same"] for b in layers.blocks if "same" in b.facts}
        assert [*same] == ["model.layers.1"] and {*told(layers).values()} == {("tuned", "parent")}, (
            "by the other blocks"
        )
        assert "hold the same weights in 1 of 5 blocks" in layers.notes[-1] and layers.blocks[2].probability == 0.5

    def test_unreadable_ones(self, ask: Shelf) -> None:
        layers = ask("child", ["parent", "nowhere"])
        assert {*told(layers).values()} == {("tuned", "parent")} and "nowhere could not be read" in layers.notes[0]
        path = ask.put("torn", PARENT) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "torn could not be read" in ask("child", ["parent", "torn"]).notes[0]
        with pytest.raises(NothingToCompareError, match="could not be read"):
            ask("child", ["nowhere", "torn"])

    def test_adapters(self, ask: Shelf) -> None:
        (folder := ask.folder / "adapter").mkdir()
        save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(ask.folder / "child")}))
        layers = ask("child", ["parent", "adapter"])
        assert (
            len(layers.candidates) == 1
            and "adapter is a LoRA adapter and holds no blocks; name its base" in layers.notes[0]
        )
        traced = ask("adapter")
        assert told(traced) == told(ask("child")) and traced.child.name == str(folder), "its base in its place"


class TestBroken:
    """NaN, zeros: left out, named."""

    @pytest.mark.parametrize("value", [torch.nan, 0.0, torch.inf])  # fmt: skip
    def test_a_block_of_the_child(self, ask: Shelf, value: float) -> None:
        layers = ask({**CHILD, **{n: torch.full_like(t, value) for n, t in block(CHILD, 1).items()}})
        assert told(layers)["model.layers.1"] == ("undecided", None) and layers.blocks[2].unknown == 1
        assert [told(layers)[path] for path in PATHS if path != "model.layers.1"] == [("tuned", "parent")] * 4
        json.loads(layers.to_json())

    def test_they_are_named(self, ask: Shelf) -> None:
        layers = ask({**CHILD, **{n: t * torch.nan for n, t in block(CHILD, 1).items()}})
        assert "model.layers.1.mlp.up_proj.weight" in " ".join(layers.notes)

    @pytest.mark.parametrize("case", ["one NaN", "all NaN", "a matrix that only the stranger has"])
    def test_a_block_of_the_parent(self, ask: Shelf, case: str) -> None:
        bad, child = {n: t.clone() for n, t in PARENT.items()}, CHILD
        if case == "one NaN":
            bad["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
        elif case == "all NaN":
            bad |= {n: t * torch.nan for n, t in block(PARENT, 1).items()}
        else:
            names = [f"model.layers.{i}.self_attn.extra.weight" for i in range(3)]
            child = {**CHILD, **{name: torch.randn(WIDTH, WIDTH) for name in names}}
            ask.put("other", {**STRANGER, **{name: torch.randn(WIDTH, WIDTH) for name in names}})
        ask.put("bad", bad)
        found = told(ask(child, ["bad", "other" if "matrix" in case else "stranger"]))["model.layers.1"]
        assert found == (("undecided", None) if case == "all NaN" else ("tuned", "bad"))

    def test_nothing_is_left(self, ask: Shelf) -> None:
        with pytest.raises(NothingToCompareError, match="Every tensor"):
            ask({n: t * torch.nan for n, t in CHILD.items()})


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [{"alpha": 0}, {"alpha": 1.5}, {"evidence": "tea leaves"}, {"evidence": ()}, {"sample": "lots"}, {"sample": 1},
         {"max_bytes": 0}, {"max_bytes": 1000}, {"device": "quantum"}, {"probes": 3}, {"metric": "cka"}],
    )  # fmt: skip
    def test_wrong_ones(self, ask: Shelf, options: dict[str, Any]) -> None:
        with pytest.raises(ArgumentError) as caught:
            ask("child", **options)
        assert "\n" not in str(caught.value)

    def test_no_candidates(self, ask: Shelf) -> None:
        for candidates in ([], None):
            with pytest.raises(NoCandidatesError, match=r"-c org/name"):
                hl.trace_layers(ask.folder / "child", candidates)
        with pytest.raises(NoCandidatesError, match="is the child itself"):
            ask("child", ["child"])
        one = hl.trace_layers(ask.folder / "child", ask.folder / "parent")
        assert one.candidates == (str(ask.folder / "parent"),)

    def test_alpha_decides(self, ask: Shelf) -> None:
        assert told(ask("child", alpha=1e-20))["model.layers.0"] == ("tuned", "parent")
        assert told(ask("child", alpha=1e-200))["model.layers.0"] == ("none", None)

    @pytest.mark.parametrize("sample", ["40%", 0.4, 60_000])
    def test_a_sample(self, ask: Shelf, sample: str | float | int) -> None:
        layers, whole = ask("child", sample=sample), ask("child")
        assert told(layers) == told(whole) and "A sample was read" in " ".join(layers.notes)
        assert layers.bytes_read < 0.7 * whole.bytes_read
        assert layers.residual == pytest.approx(whole.residual, rel=0.1)

    def test_progress_and_seed(self, ask: Shelf) -> None:
        seen: list[tuple[int, int, str]] = []
        layers = ask("child", progress=lambda *args: seen.append(args), seed=7)
        assert layers.seed == 7 and any("parent" in what for _, _, what in seen) and all(d <= t for d, t, _ in seen)


class Net(torch.nn.Module):
    """Three linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc1, self.fc2, self.fc3 = torch.nn.Linear(20, 48), torch.nn.Linear(48, 40), torch.nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class TestModules:
    def hybrid(self) -> tuple[Net, list[Net]]:
        """The first layer of one, the second of another, each a little changed."""
        models = [Net(1), Net(2)]
        child = Net(3)
        state = {**models[0].state_dict(), **{n: t for n, t in models[1].state_dict().items() if "fc2" in n}}
        child.load_state_dict(tuned(state, 5, 0.005))
        return child, models

    def test_two_of_one_class(self) -> None:
        child, models = self.hybrid()
        layers = hl.trace_layers(child, models)
        assert layers.candidates == ("candidates[0]", "candidates[1]") and layers.child.name == "module:Net"
        assert {b.block: b.parent for b in layers.blocks} == {
            "fc1": "candidates[0]",
            "fc2": "candidates[1]",
            "head": "candidates[0]",
        }

    @pytest.mark.parametrize("evidence", ["features", ("weights", "features")])
    def test_features_of_a_tensor_of_probes(self, evidence: Any) -> None:
        child, models = self.hybrid()
        layers = hl.trace_layers(child, models, evidence=evidence, probes=torch.randn(64, 20))
        by_block = {b.block: b for b in layers.blocks}
        assert [by_block[path].parent for path in ("fc1", "fc2")] == ["candidates[0]", "candidates[1]"]
        for path, right in (("fc1", "candidates[0]"), ("fc2", "candidates[1]")):
            match = by_block[path].facts["match"]
            assert max(match, key=match.get) == right and sum(match.values()) == pytest.approx(1)
            assert (by_block[path].p_value is None) == (evidence == "features")
        assert "a ranking of a closed set" in " ".join(layers.notes)
        json.loads(layers.to_json())


class TestHub:
    def test_blocks_by_range(self, lab) -> None:
        layers = hl.trace_layers("lab/child", ["lab/stranger", "lab/parent", "lab/gone"])
        assert {(b.block, b.parent) for b in layers.blocks} == {(path, "lab/parent") for path in ("fc1", "fc2", "head")}
        assert layers.revisions["lab/parent"] == lab.repos["lab/parent"].refs["main"]
        assert any(note.startswith("lab/gone could not be read") for note in layers.notes)
        assert hl.trace_layers("lab/child").candidates == ("lab/parent",), "what the card declares"

    def test_a_sample_is_what_is_read(self, hub) -> None:
        """Six blocks of 1.6 MB: 4 MB, the least of a remote model, go for places and for what follows."""
        wide = {f"model.layers.{i}.mlp.{k}.weight": torch.randn(s) for i in range(6) for k, s in (("up_proj", (800, 256)), ("down_proj", (256, 800)))}  # fmt: skip
        for name, model in (
            ("wide", wide),
            ("child", tuned(wide, 1, 0.05)),
            ("other", {n: torch.randn(t.shape) for n, t in wide.items()}),
        ):
            hub.add(f"lab/{name}", {"model.safetensors": save(model)})
        layers = hl.trace_layers("lab/child", ["lab/wide", "lab/other"])
        assert {b.parent for b in layers.blocks} == {"lab/wide"} and "A sample was read" in layers.notes[0]
        assert sum(hub.bytes_served.values()) == layers.bytes_read == pytest.approx(3 * (4 << 20), rel=0.25)

    def test_the_limit_comes_before_the_weights(self, lab) -> None:
        names = ["lab/child", "lab/parent", "lab/stranger"]
        headers = sum(open_checkpoint(name).bytes_read for name in names)
        lab.bytes_served.clear()
        with pytest.raises(ArgumentError, match="more than max_bytes"):
            hl.trace_layers(names[0], names[1:], max_bytes=1000)
        assert sum(lab.bytes_served[f"{name}/model.safetensors"] for name in names) == headers

    def test_a_broken_child(self, lab) -> None:
        lab.fault("drop", times=None)
        with pytest.raises(hl.LineageError):
            hl.trace_layers("lab/child", ["lab/parent"])


SCRIPT = "import sys, hf_lineage; print(hf_lineage.trace_layers(sys.argv[1], sys.argv[2:]).to_json(None))"


def test_hidden_units_in_another_order(ask: Shelf) -> None:
    """The blocks of a child whose hidden units are permuted and rescaled come from the parent, not from a stranger."""
    child, order = dict(CHILD), torch.randperm(64, generator=torch.Generator().manual_seed(5))
    factor = 1 + torch.rand(64, generator=torch.Generator().manual_seed(6))
    for i in range(3):
        at = f"model.layers.{i}.mlp"
        child[f"{at}.gate_proj.weight"] = child[f"{at}.gate_proj.weight"][order]
        child[f"{at}.up_proj.weight"] = child[f"{at}.up_proj.weight"][order] * factor[:, None]
        child[f"{at}.down_proj.weight"] = child[f"{at}.down_proj.weight"][:, order] / factor
    answer = ask(child)
    assert [(b.block, b.kind, Path(b.parent or "").name) for b in answer.blocks] == [
        (path, "tuned", "parent") for path in PATHS
    ]
    assert all(b.p_value is None for b in answer.blocks), "what was put in order by looking is tested no more"
    assert [note.code for note in answer.notes] == ["units_in_order"]
    assert "192 of 192; p 2e-09 whatever their order" in answer.notes[0]
    assert ask("child").blocks[1].residual == pytest.approx(answer.blocks[1].residual, rel=0.2)
    # an unrelated candidate stays unrelated beside it, and alone
    alone = ask("made", ["stranger"])
    assert {b.kind for b in alone.blocks if b.index is not None} == {"none"} and not alone.notes


def test_two_processes_give_one_answer(ask: Shelf) -> None:
    merge = str(ask.put("merge", linear([PARENT, STRANGER], [0.6, 0.4])))
    others = [str(ask.folder / name) for name in ("parent", "stranger")]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, merge, *others], text=True, stdout=subprocess.PIPE, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        outs = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    finally:
        for process in started:
            process.kill()
    layers = hl.trace_layers(merge, others)
    alone = plain(layers, "bytes_read")
    for out in outs:
        assert {key: value for key, value in out.items() if key not in ("seconds", "bytes_read")} == alone
    assert outs[0]["bytes_read"] == outs[1]["bytes_read"] > layers.bytes_read, "each looks for the places itself"


MADE_AGAIN = {
    "linear": (lambda a, b: linear([a, b], [0.6, 0.4]), ("sibling", "other")),
    "slerp": (lambda a, b: slerp(a, b, 0.3), ("sibling", "stranger")),
    "task_arithmetic": (lambda a, b: task_arithmetic(PARENT, [a, b], [0.7, 0.5]), ("parent", "sibling", "other")),
    "ties": (lambda a, b: ties(PARENT, [a, b], [0.5, 0.3], 0.5), ("parent", "sibling", "other")),
}  # fmt: skip


class TestOfSiblings:
    def test_one_that_is_not_offered(self, ask: Shelf) -> None:
        """Beside the base its share stays unknown, and is given to nobody; without the base it cannot be told."""
        every = [tuned(PARENT, seed, 0.1) for seed in (11, 12, 13)]
        ask.put("first", every[0])
        ask.put("second", every[1])
        child = linear(every, [0.5, 0.3, 0.2])
        layers = ask(child, ["parent", "first", "second"])
        assert layers.method == "merge" and layers.unknown == pytest.approx(0.2, abs=0.02)
        assert shares(layers) == pytest.approx({"first": 0.5, "second": 0.3}, abs=0.02)
        assert all(abs(s.weight - w) <= 2 * s.stderr for s, w in zip(layers.mixture, (0.5, 0.3), strict=True))
        assert "by a method that does not show" in layers.sentence() and "merge_method: linear" in layers.recipe()
        alone = hl.trace_layers(ask.folder / "made", [ask.folder / "first", ask.folder / "second"])
        assert alone.method is None and "cannot be told" in alone.reasons[0]

    def test_shares_by_kind(self, ask: Shelf) -> None:
        """By least squares, where no recipe has them: attention 0.7, the rest 0.5, tuned since."""
        shared = {n: 0.7 if ".self_attn." in n else 0.5 for n in PARENT}
        merged = {n: w * PARENT[n] + (1 - w) * SIBLING[n] for n, w in shared.items()}
        layers = ask(tuned(merged, 21, 0.001), ["parent", "sibling"])
        for each in layers.blocks[1:-1]:
            kinds = {kind: {Path(r).name: w for r, w in told.items()} for kind, told in each.facts["kinds"].items()}
            assert kinds["attention"]["parent"] == pytest.approx(0.7, abs=0.01)
            assert kinds["mlp"]["parent"] == pytest.approx(0.5, abs=0.01)

    def test_what_was_done_since_is_said(self, ask: Shelf) -> None:
        layers = ask(tuned(linear([PARENT, SIBLING], [0.65, 0.35]), 21, 0.003), ["parent", "sibling"])
        assert re.search(r"Tuned or rounded afterwards, by 0\.3\d? % of its norm\.$", layers.sentence()), (
            layers.sentence()
        )
        assert shares(layers) == pytest.approx({"parent": 0.65, "sibling": 0.35}, abs=0.01)


class TestMadeAgain:
    """`verify`: the merge is made again tensor by tensor, and bits are compared."""

    @pytest.mark.parametrize("method", MADE_AGAIN)
    def test_bit_for_bit(self, ask: Shelf, method: str) -> None:
        make, names = MADE_AGAIN[method]
        other = tuned(PARENT, 5, 0.3)
        ask.put("other", other)
        child = make(SIBLING, STRANGER if method == "slerp" else other)
        layers = ask(child, names, verify=True)
        assert layers.method == method and layers.redone is not None and layers.redone.whole, (
            layers.reasons,
            layers.redone,
        )
        assert layers.redone.tensors == len(child) and layers.facts["merge"]["exact"]
        again = hl.LayerLineage.from_dict(layers.to_dict())
        assert again.redone == layers.redone
        weights = {Path(m["ref"]).name: m.get("weight") for m in layers.facts["merge"]["models"]}
        ratio = {"linear": 1.5, "task_arithmetic": 1.4, "ties": 5 / 3}.get(method)
        assert ratio is None or weights["sibling"] / weights["other"] == pytest.approx(ratio, rel=1e-9)
        assert method != "slerp" or layers.facts["merge"]["parameters"]["t"] in (0.3, 0.7)

    @pytest.mark.parametrize("related", [True, False])
    @pytest.mark.parametrize("method", ["slerp", "linear"])
    def test_weights_by_kind_and_depth(self, ask: Shelf, method: str, related: bool) -> None:
        """The commonest template: attention and feed-forward layers interpolated by gradients of their own."""
        attention, mlp = [0.0, 0.3, 1.0], [1.0, 0.7, 0.2]
        wanted = [{"filter": "self_attn", "value": attention}, {"filter": "mlp", "value": mlp}, {"value": 0.5}]
        names = ("parent", "sibling") if related else ("parent", "stranger")
        other = SIBLING if related else STRANGER
        child = {}
        for name, first in PARENT.items():
            number = int(name.split(".")[2]) if ".layers." in name else 0
            t = resolve(wanted, name, number / 2)
            settings = {"t": t} if method == "slerp" else {"weight": (1 - t, t)}
            base, models = (first, [other[name]]) if method == "slerp" else (None, [first, other[name]])
            child[name] = remade(method, base, models, settings, torch.float32, torch.float32)
        layers = ask(child, names, verify=True)
        assert layers.method == method and layers.redone and layers.redone.whole, (layers.reasons, layers.redone)
        about = layers.facts["merge"]
        told = about["parameters"]["t"] if method == "slerp" else about["models"][1]["weight"]
        assert [each.get("filter") for each in told] == ["self_attn", "mlp", None]
        assert told[0]["value"] == attention and told[1]["value"] == mlp and told[2]["value"] == 0.5
        kinds = layers.blocks[2].facts["kinds"]
        assert [*kinds["mlp"].values()][1] == pytest.approx(0.7) and max(
            b.residual or 0.0 for b in layers.blocks
        ) < 1e-5

    def test_fused_tensors_are_made_whole(self, ask: Shelf) -> None:
        """A ViT's query, key and value are one tensor, compared in parts."""
        shapes = {"patch_embed.proj.weight": (WIDTH, 3, 4, 4), "norm.weight": (WIDTH,), "head.weight": (10, WIDTH)}
        for i in range(2):
            at = f"blocks.{i}."
            shapes |= {f"{at}attn.qkv.weight": (3 * WIDTH, WIDTH), f"{at}attn.proj.weight": (WIDTH, WIDTH)}
            shapes |= {f"{at}mlp.fc1.weight": (48, WIDTH), f"{at}mlp.fc2.weight": (WIDTH, 48)}
        generator = torch.Generator().manual_seed(3)
        first = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        ask.put("first", first)
        ask.put("second", second := tuned(first, 8, 0.2))
        layers = ask(linear([first, second], [0.6, 0.4]), ["first", "second"], verify=True)
        assert layers.redone and layers.redone.whole, layers.redone

    def test_light_siblings_merged_in_half_precision(self, ask: Shelf) -> None:
        """Steps of one or two units in the last place: shares by least squares are wrong, the recipe is not."""
        base = {n: t.bfloat16() for n, t in llama(1, width=64).items()}
        first, second = (tuned({n: t.float() for n, t in base.items()}, seed, 0.006) for seed in (8, 9))
        first, second = ({n: t.bfloat16() for n, t in each.items()} for each in (first, second))
        for name, model in (("base", base), ("first", first), ("second", second)):
            ask.put(name, model)
        child = {n: remade("linear", None, [t, second[n]], {"weight": (0.65, 0.35)}, torch.float32, torch.bfloat16) for n, t in first.items()}  # fmt: skip
        layers = ask(child, ["base", "first", "second"], verify=True)
        assert layers.method == "linear" and layers.redone and layers.redone.whole, (layers.reasons, layers.redone)
        assert shares(layers) == pytest.approx({"first": 0.65, "second": 0.35})

    def test_one_bit_is_told(self, ask: Shelf) -> None:
        child = linear([PARENT, STRANGER], [0.6, 0.4])
        child["lm_head.weight"][0, 0] += 1e-6
        child["model.norm.weight"] = child["model.norm.weight"] + 0.5
        redone = ask(child, verify=True).redone
        assert redone and (redone.tensors, redone.equal) == (len(child), len(child) - 2)
        assert sorted(redone.differ) == ["lm_head.weight", "model.norm.weight"]

    def test_blocks_taken_whole(self, ask: Shelf) -> None:
        layers = ask(passthrough([PARENT, STRANGER], [(0, 0), (1, 2), (0, 1)]), verify=True)
        assert layers.method == "passthrough" and layers.redone and layers.redone.whole

    def test_a_plain_fine_tune_is_no_merge(self, ask: Shelf) -> None:
        layers = ask("child", ["parent", "sibling", "stranger"], verify=True)
        assert layers.method == "single" and layers.redone is None and "merge" not in layers.facts
