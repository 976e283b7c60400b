"""`hf lineage …`: this package as an extension of the real `hf` command, by a manifest as `hf extensions install` writes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from huggingface_hub.cli.extensions import EXTENSIONS_ROOT, ExtensionManifest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SAID = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hf-lineage"]["description"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder in which the extension is installed."""
    folder = tmp_path / "home" / EXTENSIONS_ROOT.relative_to("~") / "hf-lineage"
    ExtensionManifest(
        owner="org", repo="hf-lineage", repo_id="org/hf-lineage", short_name="lineage", type="python",
        executable_path=str(BIN / "hf-lineage"), installed_at=datetime(2026, 1, 1), description=SAID, commit_sha="0" * 40,
    ).save(folder)  # fmt: skip
    return tmp_path / "home"


def hf(home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real `hf`, without a network and without the marks of an agent that may run these tests."""
    clean = {name: value for name, value in os.environ.items() if name not in ("AI_AGENT", "AGENT", "HF_TOKEN")}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [BIN / "hf", *map(str, arguments)], env=clean | quiet | {"HOME": str(home)} | environment, cwd=home,
        capture_output=True, text=True,
    )  # fmt: skip


def test_an_answer(home: Path, folders: dict[str, Path]) -> None:
    done = hf(home, "lineage", "trace", folders["child"], "-c", folders["parent"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parent"] == str(folders["parent"])


def test_exit_codes_and_streams_pass_through(home: Path, folders: dict[str, Path]) -> None:
    gone = hf(home, "lineage", "trace", "./nowhere", "-c", folders["parent"])
    assert (gone.returncode, gone.stdout) == (3, "") and gone.stderr.startswith("error: Expected a model folder")
    assert hf(home, "lineage", "no-such-command").returncode == 2


def test_the_modes_of_hf(home: Path, folders: dict[str, Path]) -> None:
    question = ("lineage", "trace", folders["child"], "-c", folders["parent"])
    assert hf(home, *question, "--quiet").stdout == f"{folders['parent']}\n"
    agent = hf(home, *question, AI_AGENT="a-robot").stdout
    assert agent.startswith("## Lineage of") and str(folders["parent"]) in agent, "nothing is cut to 80 columns"


def test_hf_lists_it_with_its_description(home: Path) -> None:
    text = " ".join(hf(home, "--help").stdout.split())
    assert re.search(rf"lineage {re.escape(SAID[:40])}", text), text[-600:]


def test_the_repository_can_be_installed_as_an_extension() -> None:
    """What `hf extensions install OWNER/hf-lineage` looks at: see HUB facts in `huggingface_hub/cli/extensions.py`."""
    assert not (ROOT / "hf-lineage").exists(), "a file of that name would be taken for a shell extension"
    first = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("description"))
    assert first == f'description = "{SAID}"'
    assert "hf-lineage = hf_lineage.cli:main" in (ROOT / "setup.cfg").read_text()
