"""A token goes to the endpoint it was made for and nowhere else: commands are run with one, and their traces searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lineage.testing import MiniHub

TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"
COMMANDS = {  # → exit code
    ("trace", "lab/hidden", "--explain"): 0,
    ("candidates", "lab/stranger", "--json"): 0,
    ("annotate", "lab/child", "-c", "lab/parent", "-c", "lab/gone", "--create-pr"): 0,
    ("annotate", "bob/model", "-c", "lab/parent", "--push"): 3,
    ("audit", "--author", "lab", "--journal", "journal", "--sarif", "report.sarif", "--markdown", "report.md"): 0,
    ("tree", "lab/gone", "--json"): 1,
}


@pytest.fixture
def watched(lab: MiniHub, nets) -> MiniHub:  # type: ignore[no-untyped-def]
    """A Hub with a token that may read a private repo of its user's, and with things that go wrong."""
    from safetensors.torch import save

    lab.tokens[TOKEN] = "lab"
    lab.add(
        "lab/hidden",
        {"model.safetensors": save(nets["child"]), "README.md": "---\nbase_model: lab/parent\n---\n"},
        private=True,
    )
    lab.add("bob/model", {"model.safetensors": save(nets["child"])})
    lab.fault("expired")
    lab.fault(503, file="lab/stranger/*", times=2)
    return lab


ALL = """
import json, sys
from hf_lineage import cli
codes = []
for command in json.loads(sys.argv[1]):
    try:
        cli.main(command)
        codes.append(0)
    except SystemExit as left:
        codes.append(left.code or 0)
sys.exit("codes " + json.dumps(codes))
"""


def test_no_command_lets_a_token_out(watched: MiniHub, tmp_path: Path) -> None:
    """One after the other in a process of their own, with the client's debug log, which writes every request down."""
    environment = {**os.environ, **watched.environment(TOKEN), "HF_DEBUG": "1", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", ALL, json.dumps([*COMMANDS])]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"codes {json.dumps([*COMMANDS.values()])}", done.stderr[-1500:]
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"journal", "report.sarif", "report.md"} <= {path.name for path in written}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert sum(request.authorised for request in watched.log) > 50, "it was used …"
    assert watched.leaks == [], "… and never sent to another origin"
    committed = [
        file.read() for repo in watched.repos.values() for files in repo.commits.values() for file in files.values()
    ]
    assert not [content for content in committed if TOKEN.encode() in content]
    assert any(b"hf-lineage:start" in content for content in committed), "a pull request was opened"
