"""`hf-lineage demo` as its user runs it."""

from __future__ import annotations

import glob
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_demo(tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "hf_lineage", "demo", "--out", "family"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "8 of 8 verdicts agree" in first.stdout and "The card of family/fc-child-1-0 lies" in first.stdout
    assert "contradicted" in first.stdout and "(none)" in first.stdout
    document = json.loads((tmp_path / "family" / "lineage.json").read_text())
    assert document["schema"] == "hf_lineage/2" and len(document["lineages"]) == 8
    assert (tmp_path / "family" / "lineage.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    assert run("demo", "--out", "family")[:2] == (0, first.stdout), "the family is kept, and the answer is the same"
    said = [line.partition("hf-lineage ")[2] for line in first.stdout.splitlines() if "hf-lineage " in line]
    assert [line.split()[0] for line in said] == ["trace", "layers", "tree"]
    words = [name for word in shlex.split(said[-1]) for name in sorted(glob.glob(word)) or [word]]  # as a shell does
    code, _, err = run(*words)
    assert code == 0, err
