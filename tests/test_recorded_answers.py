"""The answers to fixed questions are those that were recorded: tests/recorded_answers.py, tests/recorded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded_answers as answers


@pytest.fixture(scope="module")
def recorder() -> Iterator[answers.Recorder]:
    with answers.Recorder() as recorder:
        yield recorder


@pytest.mark.slow
@pytest.mark.parametrize("name", answers.CASES)
def test_same_answer(name: str, recorder: answers.Recorder) -> None:
    found = list(answers.differences(answers.recorded(name), recorder.answer(name)))
    assert not found, "\n".join(found)


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in answers.RECORDED.glob("*.json")} == answers.CASES.keys()


OLD = {"answer": {"p": 0.25, "n": 3, "text": "a\nread 1.2 MB in … s", "seconds": 1.0, "list": [1, None]}, "traffic": {"api": 2}}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told", "ignored"),
    [
        ({"p": 0.25 * (1 + 1e-5)}, "$.answer.p: 0.25 != ", ()),
        ({"p": 0.25 + 1e-9}, "", ()),
        ({"n": 4}, "$.answer.n: 3 != 4", ()),
        ({"n": True}, "$.answer.n: 3 != True", ()),
        ({"seconds": 9.0}, "", ()),
        ({"text": "a\nread 1.3 MB in … s"}, "$.answer.text: line 2: ", ()),
        ({"text": "a\nread 1.3 MB in … s"}, "", ("bytes_read",)),
        ({"list": [1]}, "$.answer.list: 2 items != 1 items", ()),
        ({"list": [1, False]}, "$.answer.list[1]: None != False", ()),
        ({"more": 0}, "$.answer: keys gone [], new ['more']", ()),
    ],
)
def test_what_is_a_difference(change: dict, told: str, ignored: tuple[str, ...]) -> None:
    new = copy.deepcopy(OLD)
    new["answer"] |= change
    found = list(answers.differences(OLD, new, ignored))
    assert len(found) == bool(told) and "".join(found).startswith(told)


def test_requests_can_be_ignored_and_order_matters() -> None:
    assert list(answers.differences(OLD, OLD | {"traffic": {"api": 3}})) == ["$.traffic.api: 2 != 3"]
    assert not list(answers.differences(OLD, OLD | {"traffic": {"api": 3}}, ["requests"]))
    assert "order" in next(answers.differences(OLD, dict(reversed(OLD.items()))))


@pytest.mark.integration
def test_compare_fails_at_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answers.main(["record", str(tmp_path), "--only", "trace-none"]) == 0
    assert answers.main(["compare", str(tmp_path), "--only", "trace-none"]) == 0
    path = tmp_path / "trace-none.json"
    told = json.loads(path.read_text())
    told["answer"]["record"]["candidates"][0]["p_value"] *= 1 + 1e-5
    path.write_text(json.dumps(told))
    assert answers.main(["compare", str(tmp_path), "--only", "trace-none"]) == 1
    assert "$.answer.record.candidates[0].p_value" in capsys.readouterr().out
