"""The vocabulary: references parse and print back, answers are plain JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage.answers.lineage import Candidate, Lineage
from hf_lineage.answers.refs import ModelRef, is_repo_id
from hf_lineage.errors import ReferenceSyntaxError

HUB = ["gpt2", "org/name", "org/name@main", "org/name@refs/pr/1", "timm/resnet18.a1_in1k", "a/b@0f3c", "o-r.g/n_a-m.e"]
FOLDERS = ["a/b/c", "org/name/unet", "org/name/a/b@v1", "org/name/flux1.safetensors"]
LINKS = {
    "https://huggingface.co/a/b": "a/b", "hf.co/a/b/": "a/b", "https://huggingface.co/gpt2/tree/main": "gpt2@main",
    "https://huggingface.co/a/b/tree/refs%2Fpr%2F1/unet": "a/b/unet@refs/pr/1", "https://www.huggingface.co/a/b#x": "a/b",
    "https://huggingface.co/a/b/blob/v1/x/y.json?raw=1": "a/b/x@v1", "https://huggingface.co/a/b/commit/0f3c": "a/b@0f3c",
    "https://huggingface.co/a/b/discussions/3": "a/b",
}  # fmt: skip
LOCAL = ["./x", "../x", "/abs/x", "~/x", "./a b/c", "./x.safetensors", ".", "./org/name@main"]
BAD = ["", " ", "a//b", "org/", "a/b/../c", "/".join("abcdefghijkl"), "a b", "https://huggingface.co/datasets/a/b", "org/name@", "org/name@a b", "org/na--me", "org/..", "-a/b",
       "org/name@../x", "hf://x/y", "https://example.com/a/b", "a/b/", "org\\name", "a/b\n", "ä/b", "x" * 97, "org/name."]  # fmt: skip


@pytest.mark.parametrize("text", HUB)
def test_repo_ids(text: str) -> None:
    ref = ModelRef.parse(text)
    assert ref.kind == "hub" and str(ref) == text and ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", FOLDERS)
def test_folders_in_a_repo(text: str) -> None:
    ref = ModelRef.parse(text)
    assert ref.kind == "hub" and str(ref) == text and ModelRef.parse(str(ref)) == ref
    assert f"{ref.repo_id}/{ref.subfolder}" == ref.name and is_repo_id(ref.repo_id)


@pytest.mark.parametrize("text", LINKS)
def test_pasted_links(text: str) -> None:
    assert str(ModelRef.parse(text)) == LINKS[text]


@pytest.mark.parametrize("text", LOCAL)
def test_paths(text: str) -> None:
    ref = ModelRef.parse(text)
    assert ref.kind == "local" and ref.revision is None and ModelRef.parse(str(ref)) == ref


@pytest.mark.parametrize("text", BAD)
def test_bad_spellings(text: str) -> None:
    with pytest.raises(ReferenceSyntaxError, match="Expected"):
        ModelRef.parse(text)
    assert not is_repo_id(text.partition("@")[0]) or "@" in text


def test_a_path_object_is_local_whatever_its_spelling() -> None:
    assert ModelRef.parse(Path("org/name")) == ModelRef("local", "./org/name")
    assert ModelRef.parse("./a/../b/") == ModelRef("local", "./b")


def test_a_folder_of_that_name_does_not_shadow_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert ModelRef.parse("org/name").kind == "hub"


@given(st.text())
def test_parse_and_str_undo_each_other(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except ReferenceSyntaxError:
        return
    assert ModelRef.parse(str(ref)) == ref


def test_json_has_no_nan_and_nine_digits() -> None:
    candidate = Candidate("a", "a", facts={"x": math.nan, "y": [math.inf, 1 / 3]}, probability=2 / 3)
    lineage = Lineage(ModelRef("hub", "c"), "c", "none", None, 1.0, (candidate,))
    assert repr(lineage) == "Lineage('c', 'none', parent=None, 1 candidates)"
    document = json.loads(lineage.to_json())
    assert document["schema"] == "hf_lineage/2" and document["child"] == {
        "ref": "c",
        "requested": "c",
        "revision": None,
    }
    found = document["candidates"][0]
    assert found["facts"] == {"x": None, "y": [None, 0.333333333]} and found["probability"] == 0.666666667
