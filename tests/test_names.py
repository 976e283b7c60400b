"""What people write where a model's id is expected: understood as the id they mean, or kept as it was written."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_lineage.answers.lineage import Claim
from hf_lineage.checkpoints.claims import claims_of
from hf_lineage.checkpoints.names import MAX_NAMES, MAX_RAW, names_in, repo_id_of
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.texts import card_data

MEANT = {
    "lab/base": ["lab/base"], " lab/base ": ["lab/base"], "lab/base/": ["lab/base"], "lab/base@main": ["lab/base"],
    "https://huggingface.co/lab/base": ["lab/base"], "https://huggingface.co/lab/base/tree/main": ["lab/base"],
    "huggingface.co/lab/base/blob/v1/model.safetensors": ["lab/base"], "https://hf.co/lab/base?not-for=1": ["lab/base"],
    "[lab/base](https://huggingface.co/lab/base)": ["lab/base"], "`lab/base`": ["lab/base"], "hf://lab/base": ["lab/base"],
    "https://huggingface.co/lab/base.git": ["lab/base"], "lab/base, lab/other": ["lab/base", "lab/other"],
    "lab/base and lab/other": ["lab/base", "lab/other"], "lab/a + lab/b+lab/c": ["lab/a", "lab/b", "lab/c"], "gpt2": ["gpt2"],
}  # fmt: skip
NOT_MEANT = [
    "/root/models/base", "./base", "C:\\models\\x", "{{ base_model }}", "datasets/lab/base", "my own base", "a/b/c",
    "https://huggingface.co/datasets/lab/base", "https://example.com/lab/base", "lab/base, and something", "lab//base",
]  # fmt: skip
VALUES: dict[str, tuple[Any, list[str | None]]] = {
    "list": (["lab/base"], ["lab/base"]),
    "lists in lists": ([["lab/base"], [["lab/other"]]], ["lab/base", "lab/other"]),
    "an item with a colon": ([{"lab/base": None}], ["lab/base"]),
    "a mapping": ({"name": "lab/base"}, ["lab/base"]),
    "mappings": ([{"name": "lab/base"}, {"id": "lab/other"}], ["lab/base", "lab/other"]),
    "a set": ({"lab/other", "lab/base"}, ["lab/base", "lab/other"]),
    "a number": (7, [None]),
    "a truth": (True, [None]),
    "a date": (date(2024, 1, 1), [None]),
    "bytes": (b"hello", [None]),
    "other keys": ({"a": 1}, [None]),
    "some of them": ([1, None, "lab/base"], [None, "lab/base"]),
    "nothing": (None, []),
    "empty": ([[], "", {}, " "], []),
}


@pytest.mark.parametrize("text", MEANT)
def test_what_is_meant(text: str) -> None:
    found = names_in(text)
    assert [named.ref for named in found] == MEANT[text]
    assert len(found) > 1 or found[0].raw == text


@pytest.mark.parametrize("text", NOT_MEANT)
def test_what_is_not_understood_is_kept_as_written(text: str) -> None:
    assert [(named.ref, named.raw) for named in names_in(text)] == [(None, text)]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_any_type(value: tuple[Any, list[str | None]]) -> None:
    assert [named.ref for named in names_in(value[0])] == value[1]


def test_many_names_are_cut_with_a_word() -> None:
    found = names_in([f"lab/m{i}" for i in range(2 * MAX_NAMES)])
    assert len(found) == MAX_NAMES + 1 and found[-1].ref is None and f"more than {MAX_NAMES}" in found[-1].raw


@given(st.recursive(st.text() | st.integers() | st.none() | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_whatever_is_written_is_named_or_told(value: Any) -> None:
    """Nothing raises, and what is no blank gives at least one name."""
    found = names_in(value)
    json.dumps([named.raw for named in found]).encode()
    assert all(len(named.raw) <= MAX_RAW for named in found)
    assert found or not isinstance(value, (int, float)) or value is None


def test_an_id_is_its_own_meaning() -> None:
    assert repo_id_of("lab/base") == "lab/base" and repo_id_of("") is None


class TestClaims:
    """The same through the files of a model."""

    @pytest.fixture
    def said(self, tmp_path: Path) -> Any:
        save_file({"fc1.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")

        def claims(name: str, text: str) -> list[Claim]:
            (tmp_path / name).write_text(text)
            return claims_of(open_checkpoint(tmp_path))

        return claims

    @pytest.mark.parametrize(
        ("line", "claims"),
        [
            ("base_model: lab/base@main", [Claim("card", "lab/base", raw="lab/base@main")]),
            ("Base_Model: lab/base", [Claim("card", "lab/base")]),
            ("base_model: lab/base\nbase_model_relation: Finetune", [Claim("card", "lab/base", "finetune")]),
            ("base_model: lab/base\nbase_model_relation: [merge]", [Claim("card", "lab/base", "merge")]),
            ("base_model: lab/base\nbase_model_relation: {a: b}", [Claim("card", "lab/base")]),
            ("base_model: /x/y", [Claim("card", "/x/y", None, "not_understood", "/x/y")]),
            ("base_model: {{ base }}", [Claim("card", "{{ base }}", None, "not_understood", "{{ base }}")]),
            ("base_model:\n\t- lab/base", [Claim("card", "- lab/base", None, "not_understood", "- lab/base")]),
            ("base_model: null", []),
            ("base_model: []", []),
        ],
    )
    def test_of_cards(self, said: Any, line: str, claims: list[Claim]) -> None:
        assert said("README.md", f"---\n{line}\n---\n# T\n") == claims

    def test_metadata_that_are_no_yaml_are_told_by_their_line(self) -> None:
        assert card_data(b"---\na: [\nbase_model: lab/base\n---\n") == {"base_model": "lab/base"}
        assert card_data(b"---\na: [\n---\n") == {}

    RECIPES: ClassVar = {
        "modules": ("modules:\n  a:\n    slices:\n    - sources: [{model: lab/a}]\n  b: {models: [{model: lab/b}]}\n", "ab"),
        "a slice's base": ("slices:\n- base_model: lab/c\n  sources: [{model: lab/a}, {model: lab/b}]\n", "cab"),
        "documents": ("name: one\nmodels: [{model: lab/a}]\n---\nmodels: [{model: one}, {model: lab/c}]\nbase_model: one\n", "ac"),
        "experts": ("base_model: lab/a\nexperts: [{source_model: lab/b}]\nshared_experts: [{source_model: lab/d}]\n", "abd"),
    }  # fmt: skip

    @pytest.mark.parametrize("name", ["mergekit_config.yml", "mergekit_moe_config.yml"])
    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_of_recipes(self, said: Any, name: str, recipe: tuple[str, str]) -> None:
        assert said(name, recipe[0]) == [Claim("mergekit", f"lab/{letter}", "merge") for letter in recipe[1]]

    def test_of_a_recipe_by_another_name(self, said: Any) -> None:
        assert said("config.yaml", "models: [{model: lab/a}]\n") == []
        assert said("config.yaml", "models: [{model: lab/a}]\nmerge_method: linear\n") == [
            Claim("mergekit", "lab/a", "merge")
        ]

    def test_of_forty_sources_none_is_cut(self, said: Any) -> None:
        models = "".join(f"- model: lab/m{i}\n" for i in range(40))
        assert len(said("mergekit_config.yml", f"models:\n{models}base_model: lab/z\n")) == 41

    def test_paths_in_a_recipe_are_not_understood(self, said: Any) -> None:
        found = said("mergekit_config.yml", "models: [{model: /models/a}, {model: lab/c}]\nbase_model: ./b\n")
        assert [(claim.ref, claim.status) for claim in found] == [
            ("./b", "not_understood"), ("/models/a", "not_understood"), ("lab/c", "not_testable"),
        ]  # fmt: skip
