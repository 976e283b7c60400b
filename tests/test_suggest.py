"""What a page asks while somebody types."""

from __future__ import annotations

import pytest

from hf_lineage.errors import ArgumentError, HubUnavailableError, ModelNotFoundError
from hf_lineage.hub.suggest import models_of, suggestions


@pytest.mark.parametrize(
    "typed, found",
    [
        ("lab/str", ["lab/stranger", "lab/stranger-2"]),
        ("lab/", ["lab/child", "lab/grandchild", "lab/other", "lab/parent", "lab/stranger", "lab/stranger-2"]),
        ("/grand", ["lab/grandchild"]),
        ("grand", ["lab/grandchild"]),
        ("nobody/x", []),
    ],
)
def test_ids_that_begin_alike(lab, typed: str, found: list[str]) -> None:
    assert sorted(suggestions(typed, token=False)) == found


@pytest.mark.parametrize("typed", ["", "a", " a ", "x" * 97, "a\nb"])
def test_nothing_is_asked_for_what_finds_nothing(lab, typed: str) -> None:
    lab.log.clear()
    assert suggestions(typed, token=False) == [] and not lab.log


def test_as_many_as_asked_for(lab) -> None:
    assert len(suggestions("lab/", most=2, token=False)) == 2
    with pytest.raises(ArgumentError, match="most"):
        suggestions("lab/", most=0)


def test_who_asks_sees_the_own_private_models_only(lab) -> None:
    lab.add("alice/secret", {"config.json": b"{}"}, private=True)
    assert suggestions("alice/", token=False) == [] and suggestions("alice/", token="hf_alice") == ["alice/secret"]


def test_a_collection(lab) -> None:
    lab.add_collection("lab/family-0123abcd", title="A family", items=["lab/child", "datasets/lab/data", "lab/parent"])
    assert models_of("lab/family-0123abcd", token=False) == ["lab/child", "lab/parent"]
    assert models_of(f"{lab.url}/collections/lab/family-0123abcd", token=False) == ["lab/child", "lab/parent"]
    with pytest.raises(ModelNotFoundError):
        models_of("lab/none-0123abcd", token=False)
    with pytest.raises(ArgumentError):
        models_of("https://elsewhere.org/collections/lab/family-0123abcd", token=False)


def test_a_hub_that_is_down_is_an_error(lab) -> None:
    lab.fault("drop", on="api", times=None)
    with pytest.raises(HubUnavailableError):
        suggestions("lab/", token=False)
