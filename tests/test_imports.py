"""The design as a test: who may import whom, which package has which home, what is public, what `--help` costs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lineage

ROOT = Path(hf_lineage.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The rooms from the ground up: imports run downwards only (CONTRIBUTING.md has them with a sentence each)
ROOMS = (
    "errors", "parallel", "architecture", "answers", "hub", "report", "checkpoints", "weights", "features", "detector",
    "trees", "tasks", "experiments", "cli", "testing",
)  # fmt: skip
# The one exception: answers look up how to draw and print themselves, lazily, in one place
LOOKUP = ("answers/base.py", "report")
# outside package → the only rooms that may import it; torch and numpy are at home everywhere
HOME = {
    "huggingface_hub": {"hub", "checkpoints", "detector", "testing"},
    "matplotlib": {"report", "experiments"},
    "networkx": {"report", "trees", "detector"},
    "sklearn": {"trees"},
    "scipy": {"weights", "trees", "experiments"},
    "accelerate": {"parallel", "features", "detector", "experiments"},
    "timm": {"features", "experiments"},
    "transformers": {"features", "experiments"},
    "PIL": {"features", "experiments"},
    "datasets": {"features"},
    "safetensors": {"detector", "experiments"},
    "yaml": {"checkpoints", "report", "testing"},
    "cyclonedx": {"report"},
    "packageurl": {"report"},
    "click": {"cli"},
    "tqdm": {"cli"},
    "pytest": {"testing"},
}
ANYWHERE = {"torch", "numpy"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Rooms and outside packages that a file imports, lazily or not."""
    ours, outside = set(), set()
    depth = len(path.relative_to(ROOT).parts)
    tree = ast.parse(path.read_text())
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(n) for branch in for_types for n in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:  # from the package's top
            ours |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            ours |= {*ROOMS} & {*re.findall(r"\w+", ast.unparse(node))}
    return ours, outside - set(sys.stdlib_module_names) - {"hf_lineage"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryFile:
    def test_imports_run_downwards(self, path: Path) -> None:
        if room(path) in ROOMS:
            below = {*ROOMS[: ROOMS.index(room(path))]}
            above = imports(path)[0] - below - {room(path)}
            assert above <= ({LOOKUP[1]} if path.relative_to(ROOT).as_posix() == LOOKUP[0] else set())

    def test_outside_packages_stay_at_home(self, path: Path) -> None:
        away = {package for package in imports(path)[1] - ANYWHERE if room(path) not in HOME.get(package, set())}
        assert not away, f"{path.relative_to(ROOT)} imports {away}; HOME says where that belongs"


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


def test_public_names_are_those_that_work() -> None:
    names = [
        "LayerLineage", "Lineage", "LineageError", "ModelRef", "Phylogeny", "annotate", "audit", "find_candidates",
        "phylogeny", "trace", "trace_layers",
    ]  # fmt: skip
    assert hf_lineage.__all__ == names == dir(hf_lineage)
    assert all(getattr(hf_lineage, name) for name in hf_lineage.__all__)
    with pytest.raises(AttributeError, match="verify"):
        hf_lineage.verify  # noqa: B018


def test_no_public_name_is_a_module() -> None:
    modules = {path.stem for path in ROOT.iterdir()}
    assert not {*hf_lineage.__all__} & modules


def imported_by(code: str) -> set[str]:
    text = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    return set(
        json.loads(
            subprocess.run(
                [sys.executable, "-c", text], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
    )


HELP = "from hf_lineage.cli import main\ntry: main(['trace', '--help'])\nexcept SystemExit: pass"
HEAVY = {"torch", "numpy", "huggingface_hub", "transformers", "timm", "matplotlib", "scipy", "accelerate"}


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by(HELP) & HEAVY


def test_and_the_test_above_can_fail() -> None:
    assert imported_by("import hf_lineage; hf_lineage.trace") & HEAVY


def test_tracing_a_folder_needs_no_picture_and_no_model_code() -> None:
    assert not imported_by("import hf_lineage; hf_lineage.trace") & {"matplotlib", "transformers", "timm"}
