"""What a child's own files say of its parent: card, config.json, adapter, mergekit recipe; and what is made of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Claim, Lineage
from hf_lineage.checkpoints.claims import CLAIM_SOURCES, claims_of
from hf_lineage.checkpoints.names import MAX_NAMES
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.texts import MAX_TEXT, card_data, yaml_data
from hf_lineage.errors import HubUnavailableError
from hf_lineage.testing import MiniHub

TRIO = ["lab/parent", "lab/stranger", "lab/stranger-2"]
LORA = save({"base_model.model.fc1.lora_A.weight": torch.ones(2, 48)})


def config(name: object) -> dict[str, str]:
    return {"config.json": json.dumps({"_name_or_path": name, "model_type": "x"})}


def recipe(**content: Any) -> dict[str, str]:
    return {"mergekit_config.yml": yaml.safe_dump({"merge_method": "linear", **content})}


def card(content: str) -> dict[str, str]:
    return {"README.md": f"---\n{content}\n---\n# A model\n"}


def adapter(base: str) -> dict[str, str | bytes]:
    return {"adapter_model.safetensors": LORA, "adapter_config.json": json.dumps({"base_model_name_or_path": base})}


# what each file of the child says when it names `lab/parent`, and the claim that follows
SOURCES: dict[str, tuple[Any, Claim]] = {
    "card": (lambda ref: card(f"base_model: {ref}\nbase_model_relation: finetune"), Claim("card", "", "finetune")),
    "config": (config, Claim("config", "", None)),
    "mergekit": (lambda ref: recipe(models=[{"model": ref}]), Claim("mergekit", "", "merge")),
}
ALL = {
    **adapter("lab/c"), **card("base_model: [lab/a, lab/b, lab/a]"), **config("lab/a"),
    **recipe(base_model="lab/a", models=[{"model": "lab/d"}, {"model": "lab/d"}]),
}  # fmt: skip
ALL_CLAIMS = [
    Claim("card", "lab/a"), Claim("card", "lab/b"), Claim("config", "lab/a"), Claim("adapter", "lab/c", "adapter"),
    Claim("mergekit", "lab/a", "merge"), Claim("mergekit", "lab/d", "merge"),
]  # fmt: skip


class Local:
    """Claims of a folder `lab/child` with these files and some weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "lab" / "child"
        self.folder.mkdir(parents=True)
        save_file({"fc1.weight": torch.ones(4, 4)}, self.folder / "model.safetensors")

    def __call__(self, files: dict[str, str | bytes]) -> list[Claim]:
        for name, content in files.items():
            (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return claims_of(open_checkpoint(self.folder))


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path)


@pytest.fixture(params=["folder", pytest.param("repo", marks=pytest.mark.integration)])
def said(request: pytest.FixtureRequest) -> Any:
    """The claims of a child with these files, once as a folder and once as a repo."""
    if request.param == "folder":
        return Local(request.getfixturevalue("tmp_path"))
    hub = request.getfixturevalue("hub")

    def repo(files: dict[str, str | bytes]) -> list[Claim]:
        hub.add("lab/child", {"model.safetensors": save({"fc1.weight": torch.ones(4, 4)}), **files})
        return claims_of(open_checkpoint("lab/child"))

    return repo


class TestSources:
    @pytest.mark.parametrize("source", SOURCES)
    def test_each(self, said: Any, source: str) -> None:
        write, claim = SOURCES[source]
        assert said(write("lab/parent")) == [Claim(claim.source, "lab/parent", claim.relation)]

    def test_each_of_the_registry_gives_its_own_claims_alone(self, local: Local) -> None:
        bare = open_checkpoint(local.folder)
        assert not any(read(bare) for read in CLAIM_SOURCES.values())
        local(ALL)
        checkpoint = open_checkpoint(local.folder)
        for source, read in CLAIM_SOURCES.items():
            assert {claim.source for claim in read(checkpoint)} == {source}

    def test_all_in_order_and_once(self, said: Any) -> None:
        assert said(ALL) == ALL_CLAIMS

    def test_none(self, said: Any) -> None:
        assert said({}) == [] and said({"config.json": "{}"}) == []

    def test_the_child_itself_is_no_parent(self, said: Any) -> None:
        files = {**card("base_model: lab/child"), **config("lab/child"), **recipe(models=[{"model": "lab/child@v1"}])}
        assert said(files) == []

    def test_a_module_says_nothing(self) -> None:
        checkpoint = open_checkpoint(torch.nn.Linear(2, 2))
        assert claims_of(checkpoint) == [] and not (checkpoint.config or checkpoint.recipes or checkpoint.card)

    def test_a_file_alone_says_nothing(self, local: Local) -> None:
        assert local(config("lab/parent")) != []
        assert claims_of(open_checkpoint(local.folder / "model.safetensors")) == []

    def test_a_folder_by_a_relative_path(self, local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
        local(config("lab/child"))
        monkeypatch.chdir(local.folder.parent)
        assert claims_of(open_checkpoint("./child")) == []

    def test_a_renamed_child_asked_for_by_its_old_name(self, hub: MiniHub) -> None:
        hub.add("lab/new", {"model.safetensors": save({"fc1.weight": torch.ones(4, 4)}), **config("lab/Old")})
        hub.rename("lab/old", "lab/new")
        assert claims_of(open_checkpoint("lab/old@main")) == []


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["lab/parent", "gpt2", "bert-base-uncased", "t5-small", "xlm-roberta-base", "google/vit-base-patch16-224"],
    )
    def test_of_repos(self, local: Local, name: str) -> None:
        assert [claim.ref for claim in local(config(name))] == [name]

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "./lab/parent", "../parent", "/home/me/model", "~/model", "C:\\models\\x", "a/b/c", "model",
         "output", "checkpoint-500", "bert-base-uncased-finetuned-mine", "output/run-3", "models/llama", "me/checkpoint-500",
         "lab/par\x1b[31ment", "lab/p\u0430rent", "lab/\ud800", "lab/..", "lab/x--y", "a" * 500 + "/b",
         3, None, True, ["lab/parent"], {"a": "lab/parent"}],
    )  # fmt: skip
    def test_of_anything_else(self, local: Local, name: object) -> None:
        assert local(config(name)) == []


class TestRecipe:
    @pytest.mark.parametrize(
        "model",
        ["lab/a", "lab/a@v1.0", "lab/a+lab/lora", "lab/a@v1+lab/lora@v2", {"path": "lab/a", "revision": "v1"},
         {"model": "lab/a"}, {"model": {"path": "lab/a", "revision": "v1"}, "lora": {"path": "lab/lora"}}],
    )  # fmt: skip
    @pytest.mark.parametrize("place", ["base_model", "models", "slices"])
    def test_every_spelling_in_every_place(self, local: Local, model: Any, place: str) -> None:
        content: dict[str, Any] = {
            "base_model": {"base_model": model},
            "models": {"models": [{"model": model, "parameters": {"weight": 0.5}}]},
            "slices": {"slices": [{"sources": [{"model": model, "layer_range": [0, 8]}]}]},
        }[place]
        raw = next((text for text in ("lab/a@v1.0", "lab/a+lab/lora", "lab/a@v1+lab/lora@v2") if text == model), None)
        assert local(recipe(**content)) == [Claim("mergekit", "lab/a", "merge", raw=raw)]

    @pytest.mark.parametrize(
        "content",
        [{"base_model": None}, {"models": 3},
         {"models": {"model": "lab/a"}}, {"models": ["lab/a", None, [1]]}, {"models": [{"model": [1]}, {}]}, {"slices": [3]},
         {"slices": [{"sources": {"model": "lab/a"}}]}, {"base_model": {"model": {"model": {"path": "lab/a"}}}},
         {"base_model": {"path": 1}}, {"base_model": ""}],
    )  # fmt: skip
    def test_what_names_no_repo(self, local: Local, content: dict) -> None:
        assert local(recipe(**content)) == []

    @pytest.mark.parametrize("text", ["./local", "/abs/x", "merged", "@v1", "lab/a b"])
    def test_what_is_not_understood_is_kept(self, local: Local, text: str) -> None:
        assert local(recipe(base_model=text)) == [Claim("mergekit", text, "merge", "not_understood", text)]

    def test_the_base_comes_first_and_what_is_cut_is_told(self, local: Local) -> None:
        models = [{"model": f"lab/m{i // 2}"} for i in range(1000)]
        *found, cut = local(recipe(base_model="lab/base", models=models))
        assert [claim.ref for claim in found] == ["lab/base", *(f"lab/m{i}" for i in range(MAX_NAMES - 1))]
        assert (cut.status, cut.raw) == ("not_understood", f"{501 - MAX_NAMES} more models")

    def test_the_other_ending(self, local: Local) -> None:
        assert local({"mergekit_config.yaml": "base_model: lab/a\n"}) == [Claim("mergekit", "lab/a", "merge")]

    def test_anchors_are_used_by_people_too(self, local: Local) -> None:
        text = "const_tag: &M lab/a\np: &p {weight: 1}\nslices:\n- sources: [{model: *M, parameters: *p}]\n- sources: [{model: lab/b, parameters: *p}]\n"
        assert [claim.ref for claim in local({"mergekit_config.yml": text})] == ["lab/a", "lab/b"]


# Aliases that stand for 10^9 values, once as lists, once as merged mappings, which PyYAML itself would write out.
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)
)
BAD_YAML = {
    "bomb": BOMB, "merge bomb": MERGE_BOMB, "itself": "a: &a [*a]", "itself as a mapping": "&a {b: *a}", "deep": "a: " + "[" * 5_000, "minutes": "a: " + ":".join(["1"] * 60_000), "digits": "a: " + "9" * 60_000,
    "code": "a: !!python/object/apply:os.system [x]", "tag": "a: !!bool x", "int": "a: !!int ''", "date": "a: !!timestamp x",
    "control": "a: \x01", "twice": "a: 1\n---\na: 2", "list": "- a", "text": "a", "open": "a: [", "key": "? [a]\n: b", "empty": "",
}  # fmt: skip
BAD_JSON = {
    "deep": b'{"_name_or_path": "lab/a", "a": ' + b"[" * 200_000, "deep object": b'{"a":' * 100_000, "list": b'["lab/a"]',
    "text": b'"lab/a"', "number": b"1", "null": b"null", "nan": b"NaN", "open": b'{"_name_or_path": "lab/a"', "empty": b"",
    "binary": bytes(range(256)), "zeros": b"\0" * 999, "digits": b'{"_name_or_path": ' + b"9" * 9999 + b"}",
    "long": b'{"_name_or_path": "lab/a", "a": "' + b"x" * MAX_TEXT + b'"}',
}  # fmt: skip


class TestHostileFiles:
    @pytest.mark.integration
    @pytest.mark.parametrize("content", BAD_YAML.values(), ids=BAD_YAML)
    def test_yaml(self, local: Local, content: str) -> None:
        started = time.monotonic()
        claims = local({**card(content + "\nbase_model: ["), "mergekit_config.yml": content + "\nbase_model: ["})
        assert {claim.ref for claim in claims} <= {"["} and time.monotonic() - started < 30
        assert all(claim.status == "not_understood" for claim in claims)

    @pytest.mark.parametrize("name", ["bomb", "merge bomb", "itself", "minutes", "digits", "tag", "int", "date"])
    def test_yaml_that_is_refused_as_a_whole(self, name: str) -> None:
        assert yaml_data(BAD_YAML[name].encode()) == {}

    def test_yaml_of_too_many_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hf_lineage.checkpoints.texts.MAX_NODES", 1000)
        assert yaml_data(b"a: [" + b"x," * 900 + b"]") and yaml_data(b"a: [" + b"x," * 1100 + b"]") == {}
        assert yaml_data(b"a: &a [x, x]\nb: [" + b"*a," * 300 + b"]")
        assert yaml_data(b"a: &a [x, x]\nb: [" + b"*a," * 400 + b"]") == {}

    @pytest.mark.parametrize("raw", [b"\xff\xfe\0", bytes(range(256)), b"a: \xff"])
    def test_yaml_that_is_no_text(self, raw: bytes) -> None:
        assert yaml_data(raw) == {}

    @pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
    def test_json(self, local: Local, content: bytes) -> None:
        assert local({"config.json": content}) == []

    @pytest.mark.parametrize("name", ["list", "text", "open", "empty", "binary", "zeros", "digits", "long"])
    def test_json_of_a_repo(self, hub: MiniHub, name: str) -> None:
        hub.add("lab/bad", {"model.safetensors": save({"a": torch.ones(2)}), "config.json": BAD_JSON[name]})
        assert open_checkpoint("lab/bad").config == {}

    def test_a_recipe_that_is_too_long(self, said: Any) -> None:
        assert said({"mergekit_config.yml": "base_model: lab/a\n" + "# comment\n" * 30_000}) == []

    def test_a_byte_order_mark(self, local: Local) -> None:
        mark = b"\xef\xbb\xbf"
        files = {
            "config.json": mark + b'{"_name_or_path": "lab/a"}',
            "mergekit_config.yml": mark + b"base_model: lab/b",
        }
        assert [claim.ref for claim in local(files)] == ["lab/a", "lab/b"]

    @pytest.mark.parametrize("name", ["config.json", "mergekit_config.yml"])
    @pytest.mark.parametrize("what", ["folder", "pipe", "dangling", "loop"])
    def test_no_files_at_all(self, local: Local, name: str, what: str) -> None:
        path = local.folder / name
        {
            "folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "dangling": lambda: path.symlink_to("nowhere"),
            "loop": lambda: path.symlink_to(path),
        }[what]()  # fmt: skip
        assert local({}) == []

    @pytest.mark.integration
    def test_a_large_card_is_no_bomb(self) -> None:
        """Cards with the scores of hundreds of tasks are common among embedding models."""
        scores = [{"task": {"type": "x"}, "metrics": [{"type": "f1", "value": 0.5}] * 10} for _ in range(200)]
        dumper = type("NoAlias", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
        text = yaml.dump({"base_model": "lab/a", "model-index": scores}, Dumper=dumper)
        assert card_data(f"---\n{text}---\n".encode())["base_model"] == "lab/a"


class TestCost:
    def test_only_the_childs_files_are_fetched(self, lab: MiniHub, nets) -> None:
        lab.add(
            "lab/told", {"model.safetensors": save(nets["child"]), **config("lab/parent"), **recipe(base_model="lab/x")}
        )
        for name in TRIO:
            lab.commit(name, {**config("lab/y"), **recipe(base_model="lab/y")})
        hl.trace("lab/told", TRIO)
        small = [r.path for r in lab.log if r.method == "GET" and r.path.endswith(("config.json", ".yml"))]
        assert [path.split("/")[1:3] for path in small] == [["lab", "told"]] * 2

    def test_nothing_is_fetched_before_it_is_asked_for_and_nothing_twice(self, lab: MiniHub) -> None:
        checkpoint = open_checkpoint("lab/child")
        before = len(lab.log)
        assert not any("config.json" in request.path for request in lab.log)
        assert checkpoint.config == {} and len(lab.log) > before
        after = len(lab.log)
        assert not (checkpoint.config or checkpoint.recipes) and len(lab.log) == after

    def test_a_long_config_is_not_fetched(self, hub: MiniHub) -> None:
        hub.add("lab/long", {"model.safetensors": save({"a": torch.ones(2)}), "config.json": BAD_JSON["long"]})
        assert open_checkpoint("lab/long").config == {}
        assert hub.bytes_served["lab/long/config.json"] == 0

    def test_a_hub_that_is_down_is_told(self, lab: MiniHub) -> None:
        lab.fault(503, file="lab/child/config.json", times=None)
        with pytest.raises(HubUnavailableError, match=r"config\.json"):
            hl.trace("lab/child", TRIO)


class TestStatus:
    """The weights bear a claim out, or not, whichever file makes it."""

    def trace(self, lab: MiniHub, nets: dict, files: dict[str, Any], names: list[str] | None = TRIO) -> Lineage:
        lab.add("lab/told", {"model.safetensors": save(nets["child"]), **files})
        return hl.trace("lab/told", names, prior=0.7)  # two relatives among them

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize(
        ("ref", "status"),
        [("lab/parent", "confirmed"), ("lab/stranger", "contradicted"), ("lab/cousin", "relative"),
         ("lab/elsewhere", "not_testable")],
    )  # fmt: skip
    def test_each(self, lab: MiniHub, nets, make_net, source: str, ref: str, status: str) -> None:
        lab.add("lab/cousin", {"model.safetensors": save(make_net(7, nets["parent"], 0.3))})
        lineage = self.trace(lab, nets, SOURCES[source][0](ref), [*TRIO, "lab/cousin"])
        assert lineage.parent == "lab/parent"
        assert [(claim.source, claim.ref, claim.status) for claim in lineage.claims] == [(source, ref, status)]
        assert lineage.undeclared == (("lab/parent",) if status in ("contradicted", "relative") else ())

    @pytest.mark.parametrize("source", SOURCES)
    def test_what_is_declared_is_the_default(self, lab: MiniHub, nets, source: str) -> None:
        lineage = self.trace(lab, nets, SOURCES[source][0]("lab/parent"), None)
        assert lineage.parent == "lab/parent" and [claim.status for claim in lineage.claims] == ["confirmed"]

    def test_files_that_disagree(self, lab: MiniHub, nets) -> None:
        lineage = self.trace(lab, nets, {**card("base_model: lab/stranger"), **config("lab/parent")}, None)
        assert [claim.status for claim in lineage.claims] == ["contradicted", "confirmed"]
        assert lineage.parent == "lab/parent" and lineage.undeclared == ()

    def test_files_that_agree_name_one_candidate(self, lab: MiniHub, nets) -> None:
        lineage = self.trace(lab, nets, {**card("base_model: lab/parent"), **config("lab/parent")}, None)
        assert len(lineage.candidates) == 1 and len(lineage.claims) == 2 and lineage.notes == ()

    def test_a_folder(self, folders: dict[str, Path]) -> None:
        (folders["child"] / "config.json").write_text(config("lab/stranger")["config.json"])
        lineage = hl.trace(folders["child"], [folders["parent"], folders["stranger"]])
        assert [(claim.source, claim.status) for claim in lineage.claims] == [("config", "contradicted")]
        assert lineage.undeclared == (str(folders["parent"]),)

    def test_junk_declares_nothing(self, lab: MiniHub, nets) -> None:
        lineage = self.trace(lab, nets, {**config("./checkpoint-500"), **recipe(base_model="./x")}, None)
        assert (
            [claim.status for claim in lineage.claims] == ["not_understood"]
            and lineage.verdict == "identical"
            and lineage.parent == "lab/child"
        ), "found on the Hub"
        assert lineage.candidates[0].facts["found_by"] == ("same size",)

    def test_a_card_that_crashed_the_parser(self, folders: dict[str, Path]) -> None:
        (folders["child"] / "README.md").write_text("---\nbase_model: lab/parent\nx: !!bool y\n---\n")
        (claim,) = hl.trace(folders["child"], [folders["parent"]]).claims
        assert (claim.ref, claim.status) == ("lab/parent", "confirmed"), "the line can be read, if nothing else can"


@pytest.mark.parametrize(("text", "told"), [("{not JSON", True), ("[1]", True), ("{}", False), ('{"a": 1}', False)])
def test_a_config_that_is_no_json_object_is_told(tmp_path: Path, text: str, told: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("child", "base"):
        (tmp_path / name).mkdir()
        weights = {"0.weight": torch.randn(64, 32, generator=generator), "1.weight": torch.randn(64, 64)}
        save_file(weights, tmp_path / name / "model.safetensors")
    (tmp_path / "child" / "config.json").write_text(text)
    found = hl.trace(tmp_path / "child", [tmp_path / "base"])
    assert any(note.code == "config_not_read" for note in found.notes) == told
