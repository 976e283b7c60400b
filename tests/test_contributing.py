"""What CONTRIBUTING.md shows is true: its diffs apply, and what they add keeps the laws of its registry."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
DIFFS = dict(re.findall(r"^### (.+?)\n.*?```diff\n(.*?)```", TEXT, flags=re.S | re.M))
REGISTRIES = {
    "A naming convention": "CONVENTIONS", "A file format": "FORMATS", "A packing": "PACKINGS",
    "A claim source": "CLAIM_SOURCES", "An edit": "EDITS", "A metric": "METRICS", "A disguise": "DISGUISES",
}  # fmt: skip
LAWS = (
    "tests/test_conventions.py", "tests/test_checkpoint.py", "tests/test_claims.py", "tests/test_edits.py",
    "tests/test_packed.py", "tests/test_similarity.py",
)  # fmt: skip
KEYS = "Every or every or undone or TestSources or test_scaled or test_values"


def test_each_registry_has_its_diff() -> None:
    assert DIFFS.keys() == REGISTRIES.keys()
    for title, registry in REGISTRIES.items():
        assert f"`{registry}`" in TEXT.partition(f"### {title}\n")[2].partition("<details>")[0]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tracked files, elsewhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.rstrip("\0").split("\0"):
        if not name.startswith("tests/recorded/") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.integration
@pytest.mark.slow
def test_the_diffs_apply_and_keep_the_laws(copy: Path) -> None:
    for title, diff in DIFFS.items():
        # a commit of the history is in the tree already
        for reverse in ([], ["--reverse", "--check"]):
            done = subprocess.run(["git", "apply", *reverse, "-"], cwd=copy, input=diff, capture_output=True, text=True)
            if not done.returncode:
                break
        assert not done.returncode, f"{title}: {done.stderr}"
    assert '"fairseq roberta"' in (copy / "hf_lineage" / "architecture" / "conventions.py").read_text()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "unit",
        *LAWS,
        "-k",
        KEYS,
    ]
    found = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, env={"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin"}
    )
    assert not found.returncode and re.search(r"\d{2,} passed", found.stdout), found.stdout[-3000:]
