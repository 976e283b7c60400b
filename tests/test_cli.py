"""The command line as its user sees it: streams, exit codes, one line for an error, a traceback for a bug."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lineage as hl
from hf_lineage import cli
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

Folders = dict[str, Path]


def test_an_answer(run, folders: Folders) -> None:
    code, out, _ = run("trace", folders["child"], "-c", folders["parent"], "-c", folders["stranger"])
    assert code == 0 and "they share" in out and all(len(line) <= 80 for line in out.splitlines())


def test_an_explanation_follows_the_table(run, folders: Folders) -> None:
    code, out, _ = run("trace", folders["child"], "-c", folders["parent"], "--explain")
    assert code == 0 and "read " in out and "trained separately" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_none_is_an_answer(run, folders: Folders) -> None:
    code, out, _ = run("trace", folders["child"], "-c", folders["stranger"])
    assert code == 0 and "no sign of a common origin" in out


def test_json_is_one_document_on_stdout(run, folders: Folders, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    code, out, err = run("trace", folders["child"], "-c", folders["parent"], "--json", "--plot", picture)
    assert code == 0 and json.loads(out)["schema"] == "hf_lineage/2" and "picture" in err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_typed_is_help(run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "") and "hf-lineage trace user/child" in err and "Traceback" not in err


def test_the_hub(run, lab: MiniHub) -> None:
    code, out, _ = run("trace", "lab/child", "--json")
    document = json.loads(out)
    assert code == 0 and document["parent"] == "lab/parent" and document["claims"][0]["status"] == "confirmed"
    assert document["child"]["revision"] == lab.repos["lab/child"].refs["main"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trace", "./nowhere", "-c", "./x"], 3, "Expected a model folder"),
        (["trace", "no such id!", "-c", "a/b"], 2, "Expected a repo id"),
        (["trace", "{child}"], 1, "it declares none"),
        (
            ["trace", "{child}", "-c", "./nowhere"],
            1,
            "No candidate could be read: nothing is at ./nowhere. Expected a model",
        ),
        (["tree", "./x", "./nowhere"], 1, "No model could be read: nothing is at ./x, ./nowhere. Expected a model"),
        (["tree", "./a", "./b", "./c", "./d", "./e", "./f"], 1, "nothing is at ./a, ./b, ./c, ./d and 2 more"),
        (["trace", "{child}", "-c", "{parent}", "--sample", "lots"], 2, "Expected `sample`"),
        (["trace", "{child}", "-c", "{parent}", "--evidence", "tarot"], 2, "Expected `evidence`"),
    ],
)
def test_one_line_for_what_goes_wrong(run, folders: Folders, arguments: list[str], code: int, words: str) -> None:
    filled = [argument.format(**folders) for argument in arguments]
    found, out, err = run(*filled)
    assert (found, out) == (code, "") and words in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_child_that_is_not_on_the_hub(run, lab: MiniHub) -> None:
    lab.add("alice/secret", {}, private=True)
    for child in ("lab/nothing", "alice/secret"):
        code, _, err = run("trace", child, "-c", "lab/parent")
        assert code == 3 and "hf auth login" in err


def test_a_token_that_the_hub_does_not_know(run, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    code, _, err = run("trace", "lab/child", "-c", "lab/parent")
    assert code == 3 and "a token that the Hub does not know" in err and "hf auth login" in err


@pytest.mark.parametrize(
    "arguments", [["trace"], ["trace", "x", "--frobnicate"], ["sing"], ["trace", "x", "--alpha", "much"]]
)
def test_wrong_usage(run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and "Usage:" in err


def test_candidates_are_named_in_three_ways(run, folders: Folders) -> None:
    asked = (folders["parent"], folders["stranger"])
    code, one, _ = run("trace", folders["child"], *asked, "--json")
    _, two, _ = run("trace", folders["child"], "-c", f"{asked[0]},{asked[1]}", "--json")
    _, three, _ = run("trace", folders["child"], asked[0], "-c", asked[1], "--json")
    assert code == 0 and hl.Lineage.from_json(one).parent == str(asked[0])
    assert len({json.dumps(json.loads(text)["candidates"]) for text in (one, two, three)}) == 1
    comma = asked[0].rename(asked[0].with_name("a,b"))
    assert run("trace", folders["child"], "-c", comma, "-q")[1].strip() == str(comma), "a file of that name is there"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["trace", "./nowhere", "-c", "./x", "--json"], 3, "model_not_found"),
        (["trace", "no such id!", "--format", "json"], 2, "reference_syntax"),
        (["trace", "{child}", "./nowhere", "--json"], 1, "no_candidate_read"),
        (["trace", "--frobnicate", "--json"], 2, "usage"),
        (["inspect", "{child}", "--max-bytes", "lots", "--json"], 2, "usage"),
    ],
)
def test_an_error_of_json_is_json(run, folders: Folders, arguments: list[str], code: int, error: str) -> None:
    found, out, err = run(*(argument.format(**folders) for argument in arguments))
    note = json.loads(err)
    assert (found, out) == (code, "") and note["code"] == error and note["text"] and {*note} == {"code", "text", "hint"}


def test_verbose_says_what_is_read_and_keeps_the_traceback(run, folders: Folders) -> None:
    code, _, err = run("trace", folders["child"], folders["parent"], "--verbose")
    assert code == 0 and re.search(r"^ *\d+\.\d s  \S+", err, flags=re.M)
    code, _, err = run("trace", "./nowhere", "--verbose")
    assert code == 3 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_the_version(run) -> None:
    assert run("-V") == run("--version") == (0, f"hf-lineage, version {hl.__version__}\n", "")


@pytest.mark.parametrize("size", ["20MB", "20000000", "20 MiB"])
def test_sizes_as_people_write_them(run, folders: Folders, size: str) -> None:
    assert run("trace", folders["child"], folders["parent"], "--max-bytes", size, "-q")[0] == 0
    assert run("trace", folders["child"], folders["parent"], "--sample", size, "--max-bytes", "1kB")[0] == 2


@pytest.mark.parametrize("picture", ["x.xyz", "noext", "missing/x.png"])
def test_a_picture_that_cannot_be_saved_is_refused_before_reading(
    run, folders: Folders, tmp_path: Path, picture: str
) -> None:
    code, out, err = run("trace", folders["child"], "-c", folders["parent"], "--plot", tmp_path / picture)
    assert (code, out) == (2, "") and err.startswith("error: Expected a ")


def test_a_demo_that_has_no_place(run) -> None:
    code, _, err = run("demo", "--out", "/proc/nowhere")
    assert code == 2 and "Expected a folder to write to" in err


def test_a_folder_named_like_a_repo_is_hinted_at(
    run, lab: MiniHub, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["child"].parents[1])
    lab.repos.clear()
    code, _, err = run("trace", "lab/child", "-c", "./lab/parent")
    assert code == 3 and "There is a local `./lab/child`" in err


def test_interrupted(run, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_lineage.tasks.trace.trace", interrupt)
    assert run("trace", folders["child"], "-c", folders["parent"])[0] == 130


def test_a_bug_keeps_its_traceback(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hf_lineage.tasks.trace.trace", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["trace", str(folders["child"])])


@pytest.mark.parametrize("name", [None, *cli.cli.commands])
def test_every_command_has_help_with_examples(run, name: str | None) -> None:
    code, out, _ = run(*([name] if name else []), "--help")
    assert code == 0 and "hf-lineage " in out
    assert name is None or "Examples:" in out


def test_as_a_program(folders: Folders) -> None:
    command = [sys.executable, "-m", "hf_lineage", "trace", folders["child"], "-c", folders["parent"], "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=True)
    assert json.loads(done.stdout)["verdict"] == "parent"


def test_control_characters_never_reach_the_terminal(run, folders: Folders) -> None:
    (folders["child"] / "README.md").write_text('---\nbase_model: "lab/x"\n---\n')
    weird = folders["stranger"].parent / "a\x1b[31mred"
    folders["stranger"].rename(weird)
    code, out, _ = run("trace", folders["child"], "-c", weird, "-c", folders["parent"])
    assert code == 0 and "\x1b" not in out
