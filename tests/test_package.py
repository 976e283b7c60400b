"""What is installed holds the numbers that answers depend on."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = """
from setuptools import build_meta
print(build_meta.build_sdist("out"))
print(build_meta.build_wheel("out"))
"""
NEEDED = {
    "hf_lineage/tasks/calibration.json", "hf_lineage/trees/numbers.json", "hf_lineage/weights/direction/origin.json", "hf_lineage/py.typed",
    "hf_lineage/detector/shipped/model.safetensors", "hf_lineage/detector/shipped/config.json",
    "hf_lineage/detector/shipped/README.md", "hf_lineage/detector/shipped/training.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist and a wheel of the tracked files, made in a copy."""
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name.startswith("hf_lineage/") or name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.integration
def test_the_wheel_and_the_source_hold_the_numbers(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        assert {*wheel.namelist()} >= NEEDED
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        assert {name.partition("/")[2] for name in source.getnames()} >= NEEDED


def test_the_detector_is_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "hf_lineage/detector/shipped").iterdir()) < 2 << 20
