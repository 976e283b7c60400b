"""The tree of errors and the notes: a code for each, hints that are fields, and sentences without commands."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_lineage import errors
from hf_lineage.answers.lineage import Candidate, Lineage
from hf_lineage.answers.refs import ModelRef
from hf_lineage.errors import CODES, LineageError, Note, join_notes

ROOT = Path(errors.__file__).parent
COMMANDS = re.compile(
    r"hf auth|HF_TOKEN|(?<![\w`/])--[a-z]|allow_pickle=|candidates=|hf-lineage [a-z]|local folder starts|pip install|"
    r"-c \w|git lfs|hf download"
)
NOTE = Note("pickle_refused", "It can run code.", "If you trust it: --allow-pickle.", "allow_pickle=True.")


def tree(kind: type[LineageError] = LineageError) -> list[type[LineageError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


class TestTheTree:
    def test_is_drawn_as_it_is(self) -> None:
        drawn = re.findall(r"^    [│├└─ ]*(\w+Error) ", errors.__doc__ or "", re.MULTILINE)
        assert drawn == [kind.__name__ for kind in tree() if kind.__module__ == errors.__name__]

    def test_every_class_has_its_own_code(self) -> None:
        kinds = [kind for kind in tree() if kind.__module__ == errors.__name__]
        assert len({kind.code for kind in kinds}) == len(kinds) and {kind.code for kind in kinds} <= {*CODES}

    def test_no_code_is_listed_twice(self) -> None:
        table = next(n for n in ast.parse(Path(errors.__file__).read_text()).body if isinstance(n, ast.AnnAssign))
        assert isinstance(table.value, ast.Dict)
        names = [key.value for key in table.value.keys if isinstance(key, ast.Constant)]
        assert len(names) == len({*names}) == len(CODES) and all(re.fullmatch("[a-z_]+", str(name)) for name in names)

    def test_every_code_is_used(self) -> None:
        text = "".join(path.read_text() for path in sorted(ROOT.rglob("*.py")))
        assert not [code for code in CODES if text.count(f'"{code}"') < 2]


class TestNote:
    def test_is_its_text_and_its_fields(self) -> None:
        assert NOTE == "It can run code. If you trust it: --allow-pickle, or allow_pickle=True."
        assert (NOTE.code, NOTE.sentence) == ("pickle_refused", "It can run code.")
        assert type(str(NOTE)) is str

    @pytest.mark.parametrize("again", [pickle.loads(pickle.dumps(NOTE)), copy.deepcopy(NOTE)])
    def test_travels_between_processes(self, again: Note) -> None:
        assert again == NOTE and vars(again) == vars(NOTE)

    def test_an_unknown_code_is_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown code 'typo'"):
            Note("typo", "A sentence.")

    def test_words_in_front(self) -> None:
        note = NOTE.prefixed("lab/x: ", "model_unreadable")
        assert note == f"lab/x: {NOTE}" and note.sentence == "lab/x: It can run code." and note.hint == NOTE.hint

    def test_several_joined(self) -> None:
        both = join_notes("no_candidate_read", ["No.", NOTE, NOTE.prefixed("b: ")])
        assert both == f"No. {NOTE} b: {NOTE}" and both.sentence == "No. It can run code. b: It can run code."
        assert (both.hint, both.python) == (NOTE.hint, NOTE.python)

    def test_is_an_object_in_the_json_of_an_answer(self) -> None:
        candidate = Candidate("a/b", "a/b", status="unreadable", reasons=(NOTE,))
        lineage = Lineage(ModelRef.parse("a/c"), "a/c", "undecided", None, None, (candidate,), notes=(NOTE, NOTE))
        document = lineage.to_dict()
        written = {"code": NOTE.code, "text": NOTE.sentence, "hint": NOTE.hint}
        assert [*document["notes"], *document["candidates"][0]["reasons"]] == [written] * 3
        assert Note.from_dict(written).to_dict() == written
        assert Note.from_dict("A text.").to_dict() == {"code": "older_text", "text": "A text.", "hint": ""}


def test_an_error_carries_its_note() -> None:
    error = errors.GatedError("`a/b` is gated.", "Log in.", repo="a/b")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.note.code, again.note.hint, again.repo) == (
        "`a/b` is gated. Log in.",
        "gated",
        "Log in.",
        "a/b",
    )
    assert errors.CheckpointError(NOTE).note.code == "checkpoint" and str(errors.CheckpointError(NOTE)) == str(NOTE)


def sentences(source: str) -> Iterator[str]:
    """What is given as the sentence of each error and note, `…` for what is filled in; texts given by name too."""
    module = ast.parse(source)
    named = {
        target.id: node.value
        for node in ast.walk(module) if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    for node in ast.walk(module):
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "id", "")
        if not isinstance(node, ast.Call) or not (name == "Note" or name.endswith("Error")):
            continue
        given = node.args[1:2] if name == "Note" else node.args[:1]
        for text in given:
            text = named.get(text.id, text) if isinstance(text, ast.Name) else text
            yield "".join(
                str(n.value) for n in ast.walk(text) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            )


@pytest.mark.parametrize(
    "source, found",
    [
        ('raise ArgumentError(f"None of {x}. Run hf-lineage trace")', True),
        ('raise ArgumentError(f"None of {x}.", "Run hf-lineage trace")', False),
        ('why = "Read more: --sample all."\nNote("sampled", why)', True),
    ],
)
def test_and_the_test_below_can_fail(source: str, found: bool) -> None:
    assert any(COMMANDS.search(text) for text in sentences(source)) is found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_to_type_is_a_hint_and_not_in_the_sentence(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] not in ("cli", "testing"):  # commands answer in commands
        assert not [text for text in sentences(path.read_text()) if COMMANDS.search(text)]
