"""Candidates that nobody named: which rings find what, what that costs, and what happens when the Hub misbehaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.answers.search import CandidateSearch, FoundCandidate
from hf_lineage.checkpoints.formats.safetensors import FIRST_READ
from hf_lineage.errors import ArgumentError, HubUnavailableError, LineageError, ModelNotFoundError, NoCandidatesError
from hf_lineage.hub.listing import listing
from hf_lineage.tasks import search as discovery
from hf_lineage.testing import MiniHub
from hf_lineage.testing.answers import Answer, json_answer
from hf_lineage.testing.repos import Request, model_data

Tensors = dict[str, torch.Tensor]
TRAINED = "This model is a fine-tuned version of [{0}](https://huggingface.co/{0}) on an unknown dataset.\n"


def add(hub: MiniHub, name: str, tensors: Tensors, base: str | list[str] | None = None, **about: Any) -> str:
    """A repo; `base` goes into its card. `config`, `readme` and `files` are its other files."""
    config, text, files = about.pop("config", None), about.pop("readme", ""), about.pop("files", {})
    files = {"model.safetensors": save(tensors)} | files
    card = f"---\nbase_model: {json.dumps(base)}\n---\n" if base else ""
    files |= {"README.md": card + text} if card or text else {}
    files |= {"config.json": json.dumps(config)} if config is not None else {}
    return hub.add(name, files, **about)


def rules(found: CandidateSearch) -> dict[str, tuple[str, ...]]:
    return {candidate.ref: candidate.rules for candidate in found.candidates}


def by_ref(found: CandidateSearch) -> dict[str, FoundCandidate]:
    return {candidate.ref: candidate for candidate in found.candidates}


def calls(hub: MiniHub, part: str = "") -> list[str]:
    return [f"{call.path}?{call.query}" for call in hub.log if part in call.path]


def listings(hub: MiniHub) -> list[Request]:
    return [call for call in hub.log if call.path == "/api/models"]


def asked(hub: MiniHub, name: str) -> int:
    """Requests of the API for one model."""
    return sum(call.path == f"/api/models/{name}" for call in hub.log)


def sums_to_one(lineage: hl.Lineage) -> bool:
    shares = [c.probability for c in lineage.candidates if c.status == "compared"]
    return lineage.none_probability is not None and abs(sum(shares) + lineage.none_probability - 1) < 1e-9


@pytest.fixture
def instead(hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Request], Answer | None]], None]:
    """`instead(path, answer)`: what the stand-in says to a path, where `answer(call)` is not None."""

    def replace(path: str, answer: Callable[[Request], Answer | None]) -> None:
        usual = hub._answer
        monkeypatch.setattr(hub, "_answer", lambda call: (answer(call) if call.path == path else None) or usual(call))

    return replace


@pytest.fixture
def quiet(hub: MiniHub, nets: dict[str, Tensors]) -> MiniHub:
    """A child that declares nothing, its parent, strangers; one kind of config."""
    for name, tensors in nets.items():
        add(hub, f"lab/{name}", tensors, config={"model_type": "toy" if name != "other" else "another"})
    return hub


class TestDeclared:
    def test_card_config_adapter_and_recipe(self, hub: MiniHub, nets) -> None:
        for name in ("card", "config", "merged"):
            add(hub, f"lab/{name}", nets["parent"])
        recipe = "models:\n- model: lab/merged\nmerge_method: linear\n"
        add(
            hub, "u/child", nets["child"], "lab/card", config={"_name_or_path": "lab/config"},
            files={"mergekit_config.yml": recipe},
        )  # fmt: skip
        found = hl.find_candidates("u/child")
        assert [(p.ref, p.rules[0]) for p in found.candidates][:3] == [
            ("lab/card", "declared: card"), ("lab/config", "declared: config"), ("lab/merged", "declared: mergekit"),
        ]  # fmt: skip

    def test_the_first_rule_is_the_strongest_and_all_are_told(self, quiet: MiniHub, nets) -> None:
        config = {"_name_or_path": "lab/parent", "model_type": "toy"}
        add(quiet, "u/child", nets["child"], "lab/parent", config=config, readme=TRAINED.format("lab/parent"))
        told = rules(hl.find_candidates("u/child"))["lab/parent"]
        assert told[:3] == ("declared: card", "declared: config", "the card's text")
        assert "same architecture and size" in told and len(told) == len(set(told))

    def test_an_adapter_names_its_base(self, quiet: MiniHub) -> None:
        adapter = {
            "adapter_config.json": json.dumps({"base_model_name_or_path": "lab/child", "r": 2}),
            "adapter_model.safetensors": save({"base_model.model.fc1.lora_A.weight": torch.randn(2, 48)}),
        }
        quiet.add("u/lora", adapter)
        found = hl.find_candidates("u/lora")
        assert by_ref(found)["lab/child"].rules[0] == "declared: adapter"
        assert by_ref(found)["lab/parent"].status == "comparable", "the base's own parent, by its shapes"
        lineage = hl.trace("u/lora")
        assert (lineage.verdict, lineage.candidates[0].status) == ("undecided", "not_comparable")

    def test_a_renamed_base_is_there_once_under_its_new_name(self, quiet: MiniHub, nets) -> None:
        quiet.rename("lab/parent", "lab/parent-v2")
        config = {"_name_or_path": "lab/parent-v2", "model_type": "toy"}
        add(quiet, "u/child", nets["child"], "lab/parent", config=config)
        found = hl.find_candidates("u/child")
        assert [p.ref for p in found.candidates].count("lab/parent-v2") == 1 and "lab/parent" not in rules(found)
        told = rules(found)["lab/parent-v2"]
        assert told[:2] == ("declared: card", "declared: config") and "same architecture and size" in told

    def test_another_spelling_is_the_same_model(self, quiet: MiniHub, nets) -> None:
        quiet.rename("Lab/Parent", "lab/parent")  # as the Hub redirects what differs in case
        add(quiet, "u/child", nets["child"], "Lab/Parent", config={"model_type": "toy"})
        found = hl.find_candidates("u/child")
        assert [p.ref.lower() for p in found.candidates].count("lab/parent") == 1
        assert hl.trace("u/child").claims[0].status == "confirmed"

    @pytest.mark.parametrize("how", ["missing", "gated", "private"])
    def test_a_base_that_cannot_be_read(self, quiet: MiniHub, nets, make_net, how: str) -> None:
        if how != "missing":
            add(quiet, "lab/closed", nets["parent"], **{how: "manual" if how == "gated" else True})
        add(quiet, "u/sibling", nets["stranger"], "lab/closed")
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/closed", config={"model_type": "toy"})
        found = hl.find_candidates("u/child")
        closed = by_ref(found)["lab/closed"]
        assert closed.status == "unreadable" and closed.reason and closed.similarity is None
        assert rules(found)["u/sibling"][0] == "made from lab/closed", "what others made of it says something"
        assert asked(quiet, "lab/closed") == 1, "asked for once"
        lineage = hl.trace("u/child")
        assert lineage.candidates[0].ref == "lab/parent" and lineage.claims[0].status == "not_testable"
        assert [c.ref for c in lineage.candidates if c.status == "unreadable"] == ["lab/closed"]


class TestFamily:
    def test_bases_of_bases_and_their_other_children(self, hub: MiniHub, nets) -> None:
        add(hub, "a/root", nets["parent"])
        add(hub, "a/base", nets["child"], "a/root")
        add(hub, "a/uncle", nets["stranger"], "a/root")
        add(hub, "a/sibling", nets["stranger-2"], "a/base")
        add(hub, "u/child", nets["grandchild"], "a/base")
        told = rules(hl.find_candidates("u/child"))
        assert told["a/base"][0] == "declared: card" and told["a/root"][0] == "base of a/base"
        assert told["a/sibling"][0] == "made from a/base" and told["a/uncle"][0] == "made from a/root"
        assert [*told] == ["a/base", "a/root", "a/sibling", "a/uncle"]

    def test_a_cycle_ends(self, hub: MiniHub, nets) -> None:
        add(hub, "a/one", nets["parent"], "a/two")
        add(hub, "a/two", nets["stranger"], ["a/one", "a/two", "u/child"])
        add(hub, "u/child", nets["child"], "a/one")
        found = hl.find_candidates("u/child")
        assert [*rules(found)] == ["a/one", "a/two"] and not found.notes

    def test_not_walked_up_for_ever(self, hub: MiniHub, nets) -> None:
        for i in range(9):
            add(hub, f"a/base{i}", {"x.weight": torch.ones(2 + i, 2)}, f"a/base{i + 1}")
        add(hub, "u/child", nets["child"], "a/base0")
        found = {ref for ref, told in rules(hl.find_candidates("u/child")).items() if told[0].startswith("base of")}
        assert found == {f"a/base{i}" for i in range(1, 1 + discovery.BASES)}

    def test_cards_that_name_each_other_by_the_dozen_are_bounded(self, hub: MiniHub, nets) -> None:
        every = [f"a/base{i}" for i in range(120)]
        for i, name in enumerate(every):
            add(hub, name, {"x.weight": torch.ones(2, 2)}, every[(i * 13) % 120 :][:16])
        add(hub, "u/child", nets["child"], every[:16])
        found = hl.find_candidates("u/child", max_requests=60)
        assert found.requests <= 60 + 8 * 4 and "requests" in found.notes[0]

    def test_a_large_family_leaves_room_for_others(self, quiet: MiniHub, nets) -> None:
        for i in range(4 * discovery.SIBLINGS):
            add(quiet, f"a/sibling{i}", nets["stranger"], f"a/base{i % 4}", config={"model_type": "other"})
        bases = [f"a/base{i}" for i in range(4)]
        add(quiet, "u/child", nets["child"], bases, config={"model_type": "toy"})
        assert "lab/parent" in hl.find_candidates("u/child").refs

    def test_a_base_costs_its_card_and_header_once(self, hub: MiniHub, nets) -> None:
        add(hub, "a/root", nets["parent"])
        hub.add("a/broken", {"README.md": "---\nbase_model: a/root\n---\n"})
        add(hub, "u/child", nets["child"], ["a/gone", "a/broken"])
        hl.find_candidates("u/child")
        assert asked(hub, "a/gone") == asked(hub, "a/broken") == 1

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (TRAINED.format("lab/parent"), True),
            ("# Model\n\n" + TRAINED.format("lab/parent") + "\n## More\n", True),
            ("This model is a fine-tuned version of [lab/parent](https://huggingface.co/lab/stranger)", False),
            ("This model is a fine-tuned version of [lab/parent](https://evil.example/lab/parent)", False),
            ("This model is a fine-tuned version of lab/parent", False),
            ("This model is a fine-tuned version of [../parent](https://huggingface.co/../parent)", False),
            ("This model is a fine-tuned version of [" + "[" * 100_000, False),
            ("x" * 300_000 + TRAINED.format("lab/parent"), False),
        ],
    )
    def test_the_trainers_sentence(self, lab: MiniHub, nets, text: str, found: bool) -> None:
        odd = {f"odd.{name}": values for name, values in nets["child"].items()}  # nothing else leads to the parent
        add(lab, "u/zzz", odd, readme=text)
        told = rules(hl.find_candidates("u/zzz", most=1000)).get("lab/parent", ())
        assert ("the card's text" in told) == found
        assert not any("evil" in path for path in calls(lab))

    def test_the_base_of_what_the_text_names(self, hub: MiniHub, nets) -> None:
        add(hub, "a/root", nets["parent"])
        add(hub, "a/base", nets["child"], "a/root")
        add(hub, "a/sibling", nets["stranger"], "a/base")
        add(hub, "u/child", nets["grandchild"], readme=TRAINED.format("a/base"))
        told = rules(hl.find_candidates("u/child"))
        assert told["a/base"][0] == "the card's text" and told["a/root"][0] == "base of a/base"
        assert told["a/sibling"][0] == "made from a/base"


class TestAlike:
    def test_the_same_architecture_and_size(self, quiet: MiniHub) -> None:
        found = hl.find_candidates("lab/child")
        told = rules(found)
        assert all(told[f"lab/{name}"][0] == "same architecture and size" for name in ("parent", "stranger"))
        assert "lab/child" not in told and by_ref(found)["lab/parent"].similarity == 1
        assert [p.status for p in found.candidates] == ["comparable"] * 4 and len(found.refs) == 4

    def test_comparable_ones_first(self, quiet: MiniHub, nets) -> None:
        add(quiet, "u/child", nets["child"], ["lab/gone", "lab/other", "lab/parent"])
        found = hl.find_candidates("u/child")
        statuses = [candidate.status for candidate in found.candidates]
        assert statuses == sorted(statuses, key=("comparable", "unreadable", "not_comparable").index)
        assert by_ref(found)["lab/other"].status == "not_comparable" and "shape" in by_ref(found)["lab/other"].reason

    def test_a_resized_vocabulary_and_another_size(self, hub: MiniHub) -> None:
        torch.manual_seed(0)
        base = {"embed_tokens.weight": torch.randn(100, 32), "layers.0.mlp.up_proj.weight": torch.randn(64, 32)}
        base["layers.0.mlp.down_proj.weight"] = torch.randn(32, 64)
        grown = {**base, "embed_tokens.weight": torch.cat([base["embed_tokens.weight"], torch.randn(60, 32)])}
        add(hub, "lab/base", base, config={"model_type": "toy"})
        add(hub, "u/child", grown, config={"model_type": "toy"})
        found = by_ref(hl.find_candidates("u/child"))["lab/base"]
        assert (found.rules[0], found.status) == ("same architecture", "comparable") and 0.6 < found.similarity < 0.9

    def test_timm(self, hub: MiniHub, nets) -> None:
        config = {"architecture": "toynet", "pretrained_cfg": {}}
        add(hub, "timm/toynet.a1_in1k", nets["parent"], config=config)
        add(hub, "org/toynet-mirror", nets["stranger"], config=config)
        add(hub, "timm/other.a1_in1k", nets["other"], config={"architecture": "other"})
        add(hub, "u/child", nets["child"], config={**config, "architecture": "toynet"})
        told = rules(hl.find_candidates("u/child"))
        assert told["timm/toynet.a1_in1k"][0] == "a timm variant"
        assert told["org/toynet-mirror"][0] == "same architecture and size"

    def test_names_alike(self, hub: MiniHub, nets, make_net) -> None:
        big = make_net(9, widths=(48, 96, 64, 900))
        add(hub, "lab/toyformer-base", big)
        add(hub, "u/toyformer-squad", nets["child"])
        assert rules(hl.find_candidates("u/toyformer-squad"))["lab/toyformer-base"][0] == "a name alike"

    def test_no_config_at_all(self, hub: MiniHub, nets) -> None:
        add(hub, "lab/parent", nets["parent"])
        add(hub, "u/child", nets["child"])
        assert rules(hl.find_candidates("u/child"))["lab/parent"][0] == "same size"

    def test_the_cache_of_this_machine(self, quiet: MiniHub, nets) -> None:
        add(quiet, "zoo/cached", nets["parent"], private=True)
        quiet.tokens["hf_zoo"] = "zoo"
        snapshot_download("zoo/cached", token="hf_zoo")
        found = hl.find_candidates("lab/child", token="hf_zoo")
        assert "in the cache" in rules(found)["zoo/cached"]

    @pytest.mark.parametrize(
        "kind",
        ["x" * 10_000, ["toy"], {"a": 1}, 5, None, "toy\n&filter=evil", "toy&author=evil", "", "\ud800", "tøy\0"],
    )
    def test_a_hostile_model_type(self, quiet: MiniHub, nets, kind: Any) -> None:
        add(quiet, "u/child", nets["child"], config={"model_type": kind, "architecture": kind})
        found = hl.find_candidates("u/child")
        assert "lab/parent" in found.refs, "by its size"
        for call in listings(quiet):
            assert call.value("author") in ("", "timm") and len(call.query) < 1500
            assert "evil" not in call.values("filter"), "one parameter, whatever it holds"


class TestCost:
    def test_headers_only_and_no_request_of_the_api_for_a_listed_model(self, quiet: MiniHub, nets) -> None:
        big = {**nets["child"], "fc1.weight": torch.randn(96, 48)}
        add(quiet, "lab/big", big, config={"model_type": "toy"})
        found = hl.find_candidates("lab/child")
        assert "lab/big" in found.refs
        served = {name: size for name, size in quiet.bytes_served.items() if name.endswith(".safetensors")}
        assert served and max(served.values()) <= FIRST_READ and found.bytes_read == sum(served.values())
        assert [name for name in quiet.repos if asked(quiet, name)] == ["lab/child"]
        assert found.requests == len(quiet.log) - redirects(quiet)

    def test_64_candidates_cost_a_head_and_a_header_each(self, hub: MiniHub, nets) -> None:
        for i in range(80):
            add(hub, f"lab/model{i}", nets["stranger"], config={"model_type": "toy"})
        add(hub, "u/child", nets["child"], config={"model_type": "toy"})
        found = hl.find_candidates("u/child")
        heads = [call for call in hub.log if call.method == "HEAD" and call.path.endswith(".safetensors")]
        gets = [call for call in hub.log if call.method == "GET" and call.app == "cdn"]
        assert len(found.refs) == 64 and len(heads) == len(gets) == 65, "the child's and 64 more"
        assert len(listings(hub)) == 1 and found.requests == 1 + 1 + 65 * 2 + 2, "its config is read once"
        assert found.notes == ("The search stopped at 64 comparable models; there may be more.",)

    def test_opened_side_by_side(self, hub: MiniHub, nets) -> None:
        for i in range(8):
            add(hub, f"lab/model{i}", nets["stranger"], config={"model_type": "toy"})
        add(hub, "u/child", nets["child"], config={"model_type": "toy"})
        hub.fault("delay", on="resolve", file="lab/*", times=None, value=0.25)
        found = hl.find_candidates("u/child", most=8)
        assert len(found.refs) == 8 and found.seconds < 8 * 0.25

    def test_no_listing_is_asked_twice(self, quiet: MiniHub, nets) -> None:
        add(quiet, "lab/root", nets["parent"], config={"model_type": "toy"})
        add(quiet, "u/child", nets["stranger"], ["lab/root", "lab/parent"], config={"model_type": "toy"})
        hl.trace("u/child")
        queries = [call.query for call in listings(quiet)]
        assert len(queries) == len(set(queries)), queries

    def test_300_repos_and_an_anonymous_user(self, hub: MiniHub, nets) -> None:
        for i in range(300):
            add(hub, f"lab/model{i}", nets["stranger" if i % 3 else "other"], config={"model_type": "toy"})
        add(hub, "u/child", nets["child"], config={"model_type": "toy"})
        hub.limits = {"api": 500, "resolve": 3000}
        hl.find_candidates("u/child", most=1000, max_requests=10_000)
        assert hub.counts["api"] < 50 and hub.counts["resolve"] < 3000 and not hub.waits

    def test_told_to_wait_it_waits_and_goes_on(self, quiet: MiniHub) -> None:
        quiet.limits = {"api": 3, "resolve": 6}
        found = hl.find_candidates("lab/child")
        assert "lab/parent" in found.refs and not found.notes and quiet.waits


def redirects(hub: MiniHub) -> int:
    return sum(call.status in (301, 302, 307, 308) and call.method == "GET" for call in hub.log)


class TestBudgets:
    @pytest.fixture
    def many(self, hub: MiniHub, nets) -> MiniHub:
        for i in range(40):
            add(hub, f"lab/model{i}", nets["stranger"], config={"model_type": "toy"})
        add(hub, "u/child", nets["child"], config={"model_type": "toy"})
        return hub

    def test_most(self, many: MiniHub) -> None:
        found = hl.find_candidates("u/child", most=10)
        assert 10 <= len(found.refs) < 18 and found.notes[0].startswith("The search stopped at ")

    def test_max_requests(self, many: MiniHub) -> None:
        found = hl.find_candidates("u/child", max_requests=25)
        assert 25 <= found.requests <= 25 + 8 * 2 and "requests" in found.notes[0] and found.refs

    def test_max_bytes(self, many: MiniHub) -> None:
        found = hl.find_candidates("u/child", max_bytes=100_000)
        assert 100_000 <= found.bytes_read <= 100_000 + 8 * FIRST_READ and "bytes" in found.notes[0] and found.refs

    @pytest.mark.parametrize("option", ["most", "max_requests", "max_bytes"])
    @pytest.mark.parametrize("value", [0, -1, 2.5, "many", None, True])
    def test_wrong_values(self, many: MiniHub, option: str, value: Any) -> None:
        with pytest.raises(ArgumentError, match=option):
            hl.find_candidates("u/child", **{option: value})
        assert not many.log, "before anything is asked"

    def test_weights_are_not_part_of_it(self, many: MiniHub, nets, monkeypatch: pytest.MonkeyPatch) -> None:
        """A lie is read, and the search goes on: what its weights cost is not the search's."""
        monkeypatch.setattr(discovery, "MOST_BYTES", 60_000)
        monkeypatch.setattr(discovery.Search.__init__, "__defaults__", (64, 400, 60_000, None))
        add(many, "lab/parent", nets["parent"], config={"model_type": "toy"}, downloads=5)
        add(many, "u/liar", nets["child"], "lab/model3", config={"model_type": "toy"})
        lineage = hl.trace("u/liar", sample="all")
        assert lineage.parent == "lab/parent" and lineage.claims[0].status == "contradicted"


class TestTrace:
    """`trace(child)` without candidates."""

    def test_a_declared_base_that_the_weights_confirm_is_enough(self, lab: MiniHub) -> None:
        lineage = hl.trace("lab/child")
        assert lineage.parent == "lab/parent" and lineage.claims[0].status == "confirmed" and sums_to_one(lineage)
        assert lineage.candidates[0].facts["found_by"] == ("declared: card",)
        assert not listings(lab) and not lab.bytes_served["lab/stranger/model.safetensors"]

    def test_a_lying_card(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/stranger", config={"model_type": "toy"})
        lineage = hl.trace("u/child")
        assert lineage.claims[0].status == "contradicted" and lineage.candidates[0].ref == "lab/parent"
        found_by = {c.ref: c.facts["found_by"] for c in lineage.candidates}
        assert found_by["lab/stranger"][0] == "declared: card" and sums_to_one(lineage)
        assert found_by["lab/parent"][0] == "same architecture and size"
        assert any("searched for" in note for note in lineage.notes)

    def test_a_card_that_names_a_sibling_which_declares_nothing(self, quiet: MiniHub, nets, make_net) -> None:
        """A relative that says nothing of its own base is no reason to end the search."""
        child = {"config": {"model_type": "toy"}}
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/child", **child)
        found = {c.ref for c in hl.trace("u/child").candidates}
        assert "lab/parent" in found

    def test_nothing_anywhere(self, hub: MiniHub, nets) -> None:
        add(hub, "u/child", nets["child"])
        with pytest.raises(NoCandidatesError, match=r"none was found on the Hub .*candidates=") as caught:
            hl.trace("u/child")
        assert "\n" not in str(caught.value)

    def test_a_copy(self, quiet: MiniHub, nets) -> None:
        add(quiet, "u/copy", nets["child"], config={"model_type": "toy"})
        lineage = hl.trace("u/copy")
        assert lineage.verdict == "identical" and lineage.candidates[0].ref == "lab/child" and sums_to_one(lineage)

    def test_the_base_of_a_relative_that_no_listing_shows(self, hub: MiniHub, nets, make_net) -> None:
        """A parent with a far larger head has another size, name and architecture's name."""
        wide = make_net(7, widths=(48, 96, 64, 3000))
        root = {**wide, **{name: values for name, values in nets["parent"].items() if "fc3" not in name}}
        add(hub, "zoo/pretrained", root, config={"model_type": "other-name"})
        add(hub, "zoo/sibling", make_net(12, nets["parent"]), "zoo/pretrained", config={"model_type": "toy"})
        add(hub, "u/child", make_net(11, nets["parent"]), config={"model_type": "toy"})
        lineage = hl.trace("u/child")
        told = {c.ref: c.facts["found_by"] for c in lineage.candidates}
        assert told["zoo/pretrained"][0] == "base of zoo/sibling" and sums_to_one(lineage)

    def test_layers(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), config={"model_type": "toy"})
        layers = hl.trace_layers("u/child")
        assert "lab/parent" in layers.candidates
        add(quiet, "u/named", make_net(11, nets["parent"]), "lab/parent", config={"model_type": "toy"})
        assert hl.trace_layers("u/named").candidates == ("lab/parent",)

    def test_layers_of_a_child_whose_base_is_gone(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/gone", config={"model_type": "toy"})
        assert "lab/parent" in hl.trace_layers("u/child").candidates

    def test_the_same_question_twice(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/gone", config={"model_type": "toy"})
        answers = []
        for _ in range(2):
            document = json.loads(hl.trace("u/child").to_json())
            document.pop("seconds")
            found = json.loads(hl.find_candidates("u/child").to_json())
            found.pop("seconds")
            answers.append(json.dumps([document, found]))
        assert answers[0] == answers[1]

    def test_max_bytes(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/stranger", config={"model_type": "toy"})
        with pytest.raises(ArgumentError, match="max_bytes"):
            hl.trace("u/child", max_bytes=1000)
        lineage = hl.trace("u/child", max_bytes=10_000_000)
        assert lineage.candidates[0].ref == "lab/parent" and lineage.bytes_read <= 10_000_000

    def test_max_bytes_that_are_enough_for_the_first_ring(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/stranger", config={"model_type": "toy"})
        lineage = hl.trace("u/child", max_bytes=150_000)
        assert lineage.claims[0].status == "contradicted" and lineage.bytes_read <= 150_000 + 8 * FIRST_READ
        assert any("stopped early" in note and "max_bytes" in note for note in lineage.notes)

    def test_a_mirror_of_the_parent_comes_next_to_it(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "mirror/parent", nets["parent"], config={"model_type": "toy"})
        add(quiet, "u/child", make_net(11, nets["parent"]), config={"model_type": "toy"})
        lineage = hl.trace("u/child")
        first, second = lineage.candidates[:2]
        assert {first.ref, second.ref} == {"lab/parent", "mirror/parent"} and sums_to_one(lineage)

    def test_sample(self, quiet: MiniHub, nets, make_net) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/stranger", config={"model_type": "toy"})
        lineage = hl.trace("u/child", sample=0.5)
        assert lineage.candidates[0].ref == "lab/parent" and any("sample was read" in note for note in lineage.notes)

    def test_a_module(self, quiet: MiniHub, nets) -> None:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.fc2, self.fc3 = (torch.nn.Linear(a, b) for a, b in ((48, 96), (96, 64), (64, 10)))

        module = Net()
        module.load_state_dict(nets["child"])
        del quiet.repos["lab/child"], quiet.repos["lab/grandchild"]
        assert "lab/parent" in hl.find_candidates(module).refs
        lineage = hl.trace(module)
        assert lineage.child.kind == "module" and lineage.candidates[0].ref == "lab/parent" and sums_to_one(lineage)

    def test_what_a_folder_is_called_stays_here(self, quiet: MiniHub, nets, tmp_path: Path) -> None:
        folder = tmp_path / "acme-secret-merger" / "confidential-payroll"
        folder.mkdir(parents=True)
        save_file(nets["child"], folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "toy", "_name_or_path": "/home/me/payroll-v2"}))
        hl.find_candidates(folder)
        hl.trace(folder)
        assert listings(quiet) and not [call for call in calls(quiet) if "payroll" in call or "acme" in call]

    def test_private_repos_and_the_token(self, quiet: MiniHub, nets, make_net, caplog) -> None:
        add(quiet, "alice/base", nets["parent"], config={"model_type": "toy"}, private=True)
        add(quiet, "alice/child", make_net(11, nets["parent"]), "lab/gone", config={"model_type": "toy"})
        assert "alice/base" not in hl.find_candidates("alice/child", token="hf_alice").refs, "the child is public"
        quiet.repos["alice/child"].private = True
        found = hl.find_candidates("alice/child", token="hf_alice")
        assert "alice/base" in found.refs
        lineage = hl.trace("alice/child", token="hf_alice")
        shown = found.to_json() + lineage.to_json() + str(found) + lineage.to_markdown() + caplog.text
        assert not quiet.leaks and "hf_alice" not in shown


class TestOffline:
    @pytest.fixture
    def offline(self, quiet: MiniHub, nets, make_net, monkeypatch: pytest.MonkeyPatch) -> MiniHub:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/parent", config={"model_type": "toy"})
        for name in ("u/child", "lab/parent", "lab/stranger"):
            snapshot_download(name)
        add(quiet, "lab/config-only", nets["parent"], config={})
        snapshot_download("lab/config-only", allow_patterns="*.json")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        quiet.log.clear()
        return quiet

    def test_what_is_in_the_cache_is_found(self, offline: MiniHub, nets, tmp_path: Path) -> None:
        found = hl.find_candidates("u/child")
        assert found.child.revision == offline.repos["u/child"].refs["main"]
        assert {*found.refs} == {"lab/parent", "lab/stranger"} and found.requests == 0 and not found.notes
        assert rules(found)["lab/parent"] == ("declared: card", "in the cache")
        lineage = hl.trace("u/child")
        assert lineage.parent == "lab/parent" and lineage.claims[0].status == "confirmed"
        save_file(nets["child"], tmp_path / "model.safetensors")
        assert hl.trace(tmp_path).candidates[0].ref in ("u/child", "lab/parent")
        assert not offline.log, "no request"

    def test_what_is_not_there(self, offline: MiniHub) -> None:
        for name in ("lab/other", "lab/config-only"):
            with pytest.raises(LineageError, match=r"cache|Expected a `model\.safetensors`"):
                hl.find_candidates(name)
        with pytest.raises(HubUnavailableError, match="hf download lab/other"):
            hl.trace("lab/other")
        assert not offline.log

    @pytest.mark.parametrize("text", ["../../..", "/etc", "..", ".", "", "x" * 5000, "a\0b", "\ud800", "../refs"])
    def test_a_broken_cache_leads_nowhere(self, offline: MiniHub, text: str) -> None:
        refs = Path(constants.HF_HUB_CACHE) / "models--lab--parent" / "refs" / "main"
        outside = Path(constants.HF_HUB_CACHE).parent
        (outside / "model.safetensors").write_bytes(b"secret")
        refs.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(HubUnavailableError, match="not in the cache"):
            hl.find_candidates("lab/parent")
        assert "lab/parent" not in hl.find_candidates("u/child").refs

    def test_no_cache_at_all(self, hub: MiniHub, nets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_file(nets["child"], tmp_path / "model.safetensors")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hl.find_candidates(tmp_path).candidates
        with pytest.raises(NoCandidatesError):
            hl.trace(tmp_path)
        Path(constants.HF_HUB_CACHE).rmdir() if Path(constants.HF_HUB_CACHE).is_dir() else None
        Path(constants.HF_HUB_CACHE).write_text("a file")
        assert not hl.find_candidates(tmp_path).candidates

    def test_in_a_process_of_its_own(self, offline: MiniHub) -> None:
        program = "import hf_lineage as hl; print(hl.trace('u/child').parent, hl.find_candidates('u/child').requests)"
        environment = {**os.environ, **offline.environment(), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == ["lab/parent", "0"], done.stderr[-2000:]
        assert not offline.log


class TestTheHubMisbehaves:
    @pytest.mark.parametrize("status", [503, 500, 400, 401])
    def test_a_listing_that_breaks_off(self, quiet: MiniHub, nets, make_net, instead, status: int) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/parent", config={"model_type": "toy"})
        instead("/api/models", lambda call: json_answer({"error": "no"}, status))
        found = hl.find_candidates("u/child")
        assert found.refs == ("lab/parent",) and any("broke off" in note for note in found.notes)
        assert len({call.query for call in listings(quiet)}) == 2, "after the second one that fails, no more are asked"
        assert hl.trace("u/child").parent == "lab/parent"

    def test_the_second_page_breaks_off(self, quiet: MiniHub, instead) -> None:
        quiet.page_size = 2
        instead("/api/models", lambda call: json_answer({}, 503) if call.value("cursor") else None)
        found = hl.find_candidates("lab/child")
        assert found.refs and any("broke off" in note for note in found.notes)

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>a proxy</html>", b"", b"{}", b"[[1, 2], 3, null, \"x\", {}, {\"id\": 5}]", b"[" * 200_000,
            b"null", b"\xff\xfe", b"1e400", json.dumps([{"id": name} for name in ("../../etc", "a\x1b[31m/b", "a/b/c")]),
        ],
        ids=range(9),
    )  # fmt: skip
    def test_a_listing_of_something_else(self, quiet: MiniHub, nets, make_net, instead, body: Any) -> None:
        add(quiet, "u/child", make_net(11, nets["parent"]), "lab/parent", config={"model_type": "toy"})
        raw = body if isinstance(body, bytes) else body.encode()
        instead("/api/models", lambda call: Answer(200, raw))
        assert hl.find_candidates("u/child").refs == ("lab/parent",)

    @pytest.mark.parametrize(
        "junk",
        [
            {"sha": 5}, {"sha": "../../x"}, {"sha": "0" * 10_000}, {"siblings": 5}, {"siblings": [5, None]},
            {"siblings": [{"rfilename": 5}]}, {"siblings": [{"rfilename": "../../model.safetensors"}]},
            {"siblings": [{"name": "x"}]}, {"safetensors": {"total": 10**400, "parameters": {"F32": 10**400}}},
            {"safetensors": {"total": -5}}, {"safetensors": [1]}, {"safetensors": {"total": True}}, {"config": [1]},
            {"config": {"model_type": {}}}, {"cardData": "x"}, {"cardData": {"base_model": [5, None, {}]}}, {"tags": 5},
            {"tags": [f"base_model:a/b{i}" for i in range(500)]}, {"createdAt": "yesterday"}, {"createdAt": 5},
            {"createdAt": "\x1b[31m"}, {"downloads": "many"}, {"downloads": 10**300}, {"gated": []}, {"private": "no"},
            {"tags": ["base_model:../x", "base_model:finetune:u/child\n"]},
        ],
        ids=range(26),
    )  # fmt: skip
    def test_rows_of_junk(self, quiet: MiniHub, instead, junk: dict[str, Any]) -> None:
        fine = [model_data(repo, repo.refs["main"]) for name, repo in quiet.repos.items() if name != "lab/child"]
        instead("/api/models", lambda call: json_answer([fine[0] | junk, *fine[1:]]))
        found = hl.find_candidates("lab/child")
        assert "lab/stranger" in found.refs
        assert all(part in found.to_json() for part in ("lab/parent", "lab/stranger")) and str(found)
        assert found.to_markdown() and all(line.isprintable() for line in str(found).splitlines())

    @pytest.mark.parametrize("data", [{"sha": 5}, {"sha": "x"}, {"siblings": 5}, {"siblings": [{"a": 1}]}, {"id": 5}])
    def test_a_model_that_is_none(self, quiet: MiniHub, nets, instead, data: dict[str, Any]) -> None:
        add(quiet, "u/child", nets["child"], "lab/parent", config={"model_type": "toy"})
        repo = quiet.repos["lab/parent"]
        usual = model_data(repo, repo.refs["main"])
        instead("/api/models/lab/parent", lambda call: json_answer({**usual, **data}))
        instead("/api/models", lambda call: json_answer([]))
        found = hl.find_candidates("u/child")
        assert by_ref(found)["lab/parent"].status == "unreadable"

    def test_the_next_page_is_elsewhere(self, quiet: MiniHub, instead) -> None:
        row = json.dumps([model_data(quiet.repos["lab/parent"], quiet.repos["lab/parent"].refs["main"])]).encode()
        for link in (f"{quiet.cdn_url}/api/models?cursor=1", "http://[", "http://x:99999/", "//evil", "file:///etc"):
            instead("/api/models", lambda call, to=link: Answer(200, row, {"Link": f'<{to}>; rel="next"'}))
            found = hl.find_candidates("lab/child", token="hf_alice")
            assert found.refs == ("lab/parent",)
        assert not quiet.leaks and not [call for call in quiet.log if call.app == "cdn" and "/api/" in call.path]

    @pytest.mark.parametrize("row", [{"id": "lab/parent"}, {"id": "../x"}, 5])
    def test_pages_without_end(self, quiet: MiniHub, instead, row: Any) -> None:
        link = {"Link": f'<{quiet.url}/api/models?cursor=1>; rel="next"'}
        instead("/api/models", lambda call: json_answer([row], headers=link))
        from hf_lineage.hub.client import Hub

        assert len([*listing(Hub(False), limit=30)]) <= 30 and len(listings(quiet)) <= 30
        found = hl.find_candidates("lab/child", max_requests=50)
        assert {p.ref for p in found.candidates} <= {"lab/parent"}

    def test_a_thousand_models_on_one_page(self, quiet: MiniHub, instead) -> None:
        rows = [{"id": f"lab/m{i}", "sha": "0" * 40} for i in range(1000)]
        instead("/api/models", lambda call: json_answer(rows))
        found = hl.find_candidates("lab/child", max_requests=60)
        assert len(found.candidates) <= 60 and found.requests <= 60 + 8 * 3

    def test_weights_that_cannot_be_opened_do_not_stop_it(self, quiet: MiniHub, nets) -> None:
        add(quiet, "lab/broken", nets["parent"], config={"model_type": "toy"}, downloads=99)
        quiet.fault(503, on="resolve", file="lab/broken/*", times=None)
        found = hl.find_candidates("lab/child")
        assert by_ref(found)["lab/broken"].status == "unreadable" and "lab/parent" in found.refs

    def test_a_readme_that_cannot_be_had(self, quiet: MiniHub, nets) -> None:
        add(quiet, "u/child", nets["child"], "lab/parent", config={"model_type": "toy"}, readme="Text")
        quiet.fault(503, on="resolve", file="u/child/README.md", times=None)
        found = hl.find_candidates("u/child")
        assert {"lab/parent", "lab/stranger"} <= {*found.refs} and any("card's text" in note for note in found.notes)

    def test_the_child_is_not_there(self, hub: MiniHub) -> None:
        with pytest.raises(ModelNotFoundError):
            hl.find_candidates("lab/nobody")


class TestCommand:
    @pytest.fixture
    def town(self, quiet: MiniHub, nets) -> MiniHub:
        odd = {"\x1b[31m|<b>`evil`" + "x" * 200: torch.ones(3, 3)}
        add(quiet, "o" * 90 + "/" + "n" * 96, nets["stranger"], config={"model_type": "toy"}, created="2030-01-01")
        add(quiet, "lab/odd", odd, config={"model_type": "toy"})
        add(quiet, "lab/gated", nets["parent"], config={"model_type": "toy"}, gated="manual")
        return quiet

    def test_the_table(self, town: MiniHub, run) -> None:
        code, out, err = run("candidates", "lab/child")
        lines = out.splitlines()
        assert code == 0 and err == "" and all(len(line) <= 80 and line.isprintable() for line in lines), out
        assert any("lab/parent" in line and "same architecture " in line for line in lines), out
        assert "(newer)" in out and "lab/gated: unreadable" in out and "requests" in lines[-1]

    def test_json(self, town: MiniHub, run) -> None:
        code, out, _ = run("candidates", "lab/child", "--json", "--most", "2")
        document = json.loads(out)
        assert code == 0 and document["schema"] == "hf_lineage/2" and document["notes"]
        assert {*document} == {
            "schema", "child", "candidates", "notes", "requests", "bytes_read", "seconds", "versions",
        }  # fmt: skip
        assert {*document["child"]} == {"ref", "requested", "revision"}
        assert {*document["candidates"][0]} == {
            "ref", "revision", "rules", "status", "similarity", "parameters", "downloads", "created", "later", "reason",
        }  # fmt: skip

    def test_dates_are_spelled_alike(self, town: MiniHub) -> None:
        dates = {p.created for p in hl.find_candidates("lab/child").candidates if p.created}
        assert dates == {"2024-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00"}

    def test_quiet_and_agent(self, town: MiniHub, run, monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, _ = run("candidates", "lab/child", "--quiet")
        assert code == 0 and "lab/parent" in out.splitlines() and "lab/odd" not in out.splitlines()
        code, out, _ = run("candidates", "lab/child", "--format", "agent")
        assert code == 0 and out.startswith("## Candidate parents of `lab/child`") and "| `lab/parent` |" in out
        assert "n" * 96 in out and "\x1b" not in out and "is gated" in out, "what is wrong is told in full"
        assert all(line.count(" | ") == 5 for line in out.splitlines() if line.startswith("| `"))

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["lab/nobody"], 3, "not found"), (["lab/child", "--most", "0"], 2, "most"), (["a b"], 2, "repo id"),
            (["lab/child", "--most", "x"], 2, "integer"), ([], 2, "CHILD"), (["./nothing"], 3, "nothing there"),
            (["lab/empty"], 1, "model.safetensors"),
        ],
    )  # fmt: skip
    def test_exit_codes(self, town: MiniHub, run, arguments: list[str], code: int, words: str) -> None:
        town.add("lab/empty", {"README.md": "nothing"})
        got, out, err = run("candidates", *arguments)
        assert got == code and words in err and out == ""

    def test_none_found_is_an_answer(self, hub: MiniHub, nets, run) -> None:
        add(hub, "u/child", nets["child"])
        code, out, _ = run("candidates", "u/child")
        assert code == 0 and "No candidate" in out
        assert run("candidates", "u/child", "-q")[:2] == (0, "")
        assert run("trace", "u/child")[0] == 1

    def test_help(self, run) -> None:
        code, out, _ = run("candidates", "--help")
        assert code == 0 and "--max-requests" in out and "Examples:" in out and "Exit codes" in out
