"""What the page of the Space answers in words: what is no model, what went wrong, and never what to type."""

from __future__ import annotations

import pickle
import re
import sys
from typing import Any

import pytest
from huggingface_hub.utils import hf_raise_for_status, httpx
from safetensors.torch import save
from space_app import APP

import hf_lineage as hl
from hf_lineage import errors
from hf_lineage.hub.client import explained
from hf_lineage.testing import MiniHub

sys.path.insert(0, str(APP))
import asking
import questions
from questions import RefusedError, explain, gated_repo, on_page
from show import lineage_html, shown, view_of

COMMANDS = re.compile(
    r"hf auth|HF_TOKEN|--[a-z]|allow_pickle|candidates=|hf-lineage [a-z]|local folder|pip install|-c \w"
)


def said(child: str, parents: list[str] | None, token: str | bool = False, **about: bool) -> str:
    """What the page answers to a question that fails."""
    with pytest.raises(hl.LineageError) as caught:
        asking.trace(child, parents or [], token, lambda *_: None)
    return explain(caught.value, **about)


def refused(function: Any, *given: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        function(*given)
    return str(caught.value)


class TestWhatTheHubRefuses:
    def test_a_token_that_it_does_not_know(self, lab: MiniHub) -> None:
        with pytest.raises(errors.TokenRefusedError, match="HTTP 401") as caught:
            hl.trace("lab/child", ["lab/parent"], token="hf_revoked")
        assert caught.value.repo == "lab/child" and gated_repo(caught.value) == ""
        assert explain(caught.value, signed_in=True) == "Your sign-in is no longer valid: sign out and in again."
        assert "gated" not in explain(caught.value) and not COMMANDS.search(explain(caught.value))

    @pytest.mark.parametrize("token", [False, "hf_alice"])
    def test_a_repo_that_is_missing_or_hidden_is_not_found(self, lab: MiniHub, nets, token: str | bool) -> None:
        lab.add("bob/secret", {"model.safetensors": save(nets["child"])}, private=True)
        for name in ("lab/gone", "bob/secret"):
            with pytest.raises(errors.ModelNotFoundError) as caught:
                hl.trace(name, ["lab/parent"], token=token)
            assert type(caught.value) is errors.ModelNotFoundError and caught.value.repo == name
            assert explain(caught.value).startswith(f"{name} was not found on the Hub. Check the spelling. Private")

    def test_a_gated_repo(self, lab: MiniHub, nets) -> None:
        lab.add("alice/gated", {"model.safetensors": save(nets["child"])}, gated="auto")
        with pytest.raises(errors.GatedError) as caught:
            hl.trace("alice/gated", ["lab/parent"], token=False)
        assert gated_repo(caught.value) == "alice/gated"
        assert explain(caught.value).startswith("alice/gated is gated") and "sign in above" in explain(caught.value)
        assert "sign in above" not in explain(caught.value, signed_in=True)
        for_programs = explain(caught.value, program=True)
        assert "sign in above" not in for_programs and "programs read public models" in for_programs

    def test_a_403_is_not_called_gated(self, lab: MiniHub) -> None:
        lab.fault(403, on="api", times=None)
        told = said("lab/child", ["lab/parent"])
        assert "gated" not in told and "lab/child may not be read" in told

    def test_a_revision_that_does_not_exist(self, lab: MiniHub) -> None:
        told = said("lab/child@nope", ["lab/parent"])
        assert told == "lab/child@nope has no such revision. Name a branch, tag or commit that exists."

    def test_a_hub_that_fails(self, lab: MiniHub) -> None:
        lab.fault("drop", on="api", times=None)
        told = said("lab/child", ["lab/parent"])
        assert told.startswith("The Hub did not answer as expected (lab/child: the Hub at") and "network" not in told
        assert "examples" in told and "examples" not in said("lab/child", ["lab/parent"], program=True)

    def test_a_refused_write_says_so(self) -> None:
        error = errors.WriteRefusedError("This token may not open a pull request of `lab/x` (HTTP 403).", repo="lab/x")
        assert explain(error, signed_in=True) == "This token may not open a pull request of lab/x (HTTP 403)."
        assert gated_repo(error) == ""

    def test_a_collection(self, lab: MiniHub) -> None:
        with pytest.raises(errors.ModelNotFoundError) as caught:
            asking.family("https://huggingface.co/collections/lab/none-0123abcd", False)
        assert explain(caught.value) == "The collection lab/none-0123abcd was not found on the Hub."

    @pytest.mark.parametrize(
        "sent, code, kind",
        [
            ({}, "", errors.ModelNotFoundError),  # what the Hub answers for a missing repo, too
            ({"authorization": "Bearer hf_x"}, "", errors.TokenRefusedError),
            ({"authorization": "Bearer hf_x"}, "RepoNotFound", errors.ModelNotFoundError),
            ({}, "GatedRepo", errors.GatedError),
        ],
    )
    def test_a_401_is_read_by_what_was_sent(self, sent: dict[str, str], code: str, kind: type[Exception]) -> None:
        request = httpx.Request("GET", "https://huggingface.co/api/models/lab/x", headers=sent)
        about = {"X-Error-Message": "Invalid username or password.", **({"X-Error-Code": code} if code else {})}
        with pytest.raises(hl.LineageError) as caught, explained("`lab/x`", "lab/x"):
            hf_raise_for_status(httpx.Response(401, headers=about, request=request))
        assert type(caught.value) is kind and caught.value.repo == "lab/x"

    def test_the_repo_travels_with_the_error(self) -> None:
        error = pickle.loads(pickle.dumps(errors.GatedError("text", repo="a/b")))
        assert (str(error), error.repo, errors.LineageError("text").repo) == ("text", "a/b", None)


class TestWhatCannotBeCompared:
    def test_a_repo_without_weights(self, lab: MiniHub) -> None:
        lab.add("lab/empty", {"config.json": b"{}", "README.md": b"# Empty"})
        told = said("lab/empty", ["lab/parent"])
        assert "in lab/empty, found README.md, config.json" in told and told.endswith(
            "This page reads safetensors only."
        )

    def test_pickles_only(self, lab: MiniHub) -> None:
        lab.add("lab/pickle", {"pytorch_model.bin": b"x"})
        told = said("lab/pickle", ["lab/parent"])
        assert told.startswith("lab/pickle has only pickled weights") and not COMMANDS.search(told)

    def test_the_child_as_its_only_candidate(self, lab: MiniHub) -> None:
        told = said("lab/child", ["lab/child"])
        assert told.startswith("A model is not its own parent") and told.endswith("Name others.")

    def test_no_candidate(self) -> None:
        error = errors.NoCandidatesError("Expected candidate parents of `a/b`, got none.", "Name some: -c org/name.")
        assert explain(error) == "Expected candidate parents of a/b, got none. Name some."

    def test_all_that_could_not_be_read_is_told(self, lab: MiniHub) -> None:
        told = said("lab/child", [f"gone/{i}" for i in range(7)])
        assert all(f"gone/{i}" in told for i in range(5)) and "gone/5" not in told and "2 more" in told
        assert not COMMANDS.search(told)

    def test_more_than_is_read(self, lab: MiniHub) -> None:
        with pytest.raises(errors.LimitError) as caught:
            hl.trace("lab/child", ["lab/parent"], token=False, max_bytes=10)
        assert explain(caught.value).startswith("That would read more than the 1024 MB")


class TestForThePage:
    def test_a_note_is_shown_without_its_hints(self) -> None:
        note = errors.Note("pickle_refused", "`lab/x` can run code.", "Allow it: --allow-pickle.", "allow_pickle=True.")
        assert on_page(note) == "lab/x can run code." and on_page("a  table\n\n  of lines") == "a  table\n\n  of lines"

    def test_several_reasons_in_one_note(self) -> None:
        hint = "If it is private, log in with `hf auth login`."
        missing = [errors.Note("model_not_found", f"`lab/{x}` was not found on the Hub.", hint) for x in "ab"]
        reasons = [note.prefixed(f"lab/{x}: ") for note, x in zip(missing, "ab", strict=True)]
        assert on_page(errors.join_notes("no_candidate_read", reasons)) == (
            "lab/a: lab/a was not found on the Hub. lab/b: lab/b was not found on the Hub."
        )

    def test_notes_and_reasons_of_an_answer(self, lab: MiniHub) -> None:
        lab.add("lab/pickle", {"pytorch_model.bin": b"x"})
        view = view_of(asking.trace("lab/child", ["lab/parent", "lab/pickle"], False, lambda *_: None))
        (reason,) = next(c["reasons"] for c in view["answer"]["candidates"] if c["ref"] == "lab/pickle")
        assert "--allow-pickle" in reason["hint"] and not COMMANDS.search(shown(reason))
        page = lineage_html(view).partition("The whole answer as text")[0]
        assert "only pickled weights" in page and not COMMANDS.search(re.sub(r"<[^>]*>", " ", page))


class TestWhatIsTyped:
    @pytest.mark.parametrize(
        "text, ref",
        [
            ("huggingface.co/lab/child", "lab/child"),
            ("hf.co/lab/child/", "lab/child"),
            ("HF.co/gpt2", "gpt2"),
            ("Https://www.huggingface.co/lab/child/tree/v1", "lab/child@v1"),
            ("\ufefflab/child\u200b", "lab/child"),
            ("lab/child \u200b\n", "lab/child"),
        ],
    )
    def test_is_a_model(self, text: str, ref: str) -> None:
        assert questions.model_id(text) == ref and questions.model_ids(f"{text}, lab/x") == [ref, "lab/x"]

    @pytest.mark.parametrize(
        "text, words",
        [
            ("https://huggingface.co/datasets/lab/child", "a data set, not a model"),
            ("huggingface.co/spaces/lab/child", "a Space, not a model"),
            ("spaces/lab/child", "a Space, not a model"),
            ("https://huggingface.co/collections/lab/x-0123", "a collection, which the family tree takes"),
            ("https://huggingface.co/", "Expected the address of a model's page"),
            ("huggingface.co/", "Expected the address of a model's page"),
            ("https://[", "Expected an address of"),
            ("\u200b", "Type the id"),
            (5, "as text, such as org/name, got “5” of type int"),
            ({"a": 1}, "of type dict"),
            (True, "of type bool"),
        ],
    )  # fmt: skip
    def test_is_none(self, text: Any, words: str) -> None:
        told = refused(questions.model_id, text)
        assert words in told and "“”" not in told

    @pytest.mark.parametrize("given", [5, {"a": 1}, [1, 2], ["a/b", None], True])
    def test_are_no_ids(self, given: Any) -> None:
        for function in (questions.model_ids, lambda given: asking.family(given, False)):
            assert "Expected ids of models as a list of texts" in refused(function, given)

    def test_a_family(self, lab: MiniHub) -> None:
        lab.add_collection("lab/some-0123abcd", title="Some", items=["lab/child", "lab/parent"])
        for given in (
            ["lab/child", "lab/parent"],
            "lab/child lab/parent",
            "huggingface.co/collections/lab/some-0123abcd",
        ):
            assert asking.family(given, False) == ["lab/child", "lab/parent"]
        with_one = "https://huggingface.co/collections/lab/some-0123abcd\nlab/other"
        assert "the address of a collection alone, or ids" in refused(asking.family, with_one, False)
        assert "got 0" in refused(asking.family, None, False) and "got 1" in refused(asking.family, "a/b", False)
