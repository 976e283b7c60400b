"""What runs by itself for an organisation: the Action's shell steps and the Job, as written, on the stand-in of the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import save

from hf_lineage.tasks.audit.webhook import main, subject_of
from hf_lineage.testing import MiniHub

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
Nets = dict[str, dict[str, Any]]


@pytest.fixture
def org(lab: MiniHub, nets: Nets) -> MiniHub:
    """A model whose card lies, and a pull request that makes an honest card lie."""
    lie = b"---\nbase_model: lab/stranger\n---\n"
    lab.tokens["hf_bot"], lab.orgs["bot"] = "bot", {"lab"}
    lab.add("lab/liar", {"model.safetensors": save(nets["child"]), "README.md": lie})
    change = CommitOperationAdd("README.md", lie)
    HfApi(token="hf_bob").create_commit("lab/child", [change], commit_message="Another base", create_pr=True)
    return lab


def shell(org: MiniHub, tmp_path: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The steps of the Action with its inputs, as GitHub would run them; what they install is here."""
    program = tmp_path / "bin" / "hf-lineage"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hf_lineage "$@"\n')
        program.chmod(0o755)
    given = {name: about["default"] for name, about in ACTION["inputs"].items()} | inputs
    here = {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path), "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_OUTPUT": str(tmp_path / "output"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
    }  # fmt: skip
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        named = {k: given[v.strip("${} ").removeprefix("inputs.")] for k, v in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]], capture_output=True, text=True,
            env={**os.environ, **org.environment(), **here, **named}, cwd=tmp_path, check=False,
        )  # fmt: skip
        if done.returncode:
            break
    return done


def comments(org: MiniHub) -> list[str]:
    return org.repos["lab/child"].discussions[1].comments


@pytest.mark.integration
def test_the_action_fails_on_a_contradiction_and_comments_once(org: MiniHub, tmp_path: Path) -> None:
    before = len(comments(org))
    done = shell(org, tmp_path, models="lab/liar\nlab/child@refs/pr/1", comment="true", token="hf_bot")
    assert done.returncode == 4 and "comment: " in done.stderr, done.stderr
    said = comments(org)[before:]
    assert len(said) == 1 and "contradicted" in said[0] and "`lab/stranger`" in said[0]
    assert "contradicted" in (tmp_path / "summary.md").read_text()
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert "lab/liar" in Path(outputs["report"]).read_text()
    assert json.loads(Path(outputs["sarif"]).read_text())["version"] == "2.1.0"
    (tmp_path / "models.txt").write_text("lab/parent\n")
    assert shell(org, tmp_path, models="models.txt").returncode == 0, "no claim, nothing contradicted"
    assert len(comments(org)) == before + 1


@pytest.mark.integration
def test_the_job_audits_what_the_event_is_about(org: MiniHub, tmp_path: Path) -> None:
    def job(event: dict[str, Any]) -> int:
        command = [sys.executable, "-m", "hf_lineage.tasks.audit.webhook"]
        env = {**os.environ, **org.environment(), "HF_TOKEN": "hf_bot", "WEBHOOK_PAYLOAD": json.dumps(event)}
        env["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "0"
        return subprocess.run(
            command, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        ).returncode

    before, repo = len(comments(org)), {"type": "model", "name": "lab/child"}
    pull = {"repo": repo, "discussion": {"num": 1, "isPullRequest": True}}
    assert job(pull) == 4 and len(comments(org)) == before + 1


@pytest.mark.parametrize(
    "event",
    [
        {"repo": {"type": "space", "name": "a/b"}}, {"repo": {"type": "dataset", "name": "lab/data"}},
        {"repo": {"type": "model", "name": "--x"}}, {"repo": {}}, [], "x",
        {"repo": {"type": "model", "name": "a/b"}, "discussion": {"num": "1; ls", "isPullRequest": True}},
        {"repo": {"type": "model", "name": "a/b"}, "discussion": {"num": 1, "isPullRequest": False}},
        {"repo": {"type": "model", "name": "a/b"}, "comment": {"content": "hi"}},
    ],
)  # fmt: skip
def test_other_events_are_about_nothing(event: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_PAYLOAD", json.dumps(event))
    assert subject_of(os.environ) == "" and main() == 0, "the Job ends well"
    assert subject_of({"WEBHOOK_PAYLOAD": "{"}) == ""
