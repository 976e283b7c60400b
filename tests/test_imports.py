"""The design as a test: who may import whom, which package has which home, what is public, what an import costs."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import hf_lineage

ROOT = Path(hf_lineage.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The rooms from the ground up: imports run downwards only (CONTRIBUTING.md has them with a sentence each)
ROOMS = (
    "errors", "sizes", "files", "parallel", "placement", "architecture", "answers", "hub", "report", "checkpoints", "weights", "index",
    "features", "detector",
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
    "accelerate": {"parallel", "placement", "features", "detector", "experiments"},
    "timm": {"features", "experiments"},
    "transformers": {"features", "experiments"},
    "diffusers": {"features"},
    "PIL": {"features", "experiments"},
    "datasets": {"features"},
    "safetensors": {"detector", "experiments"},
    "gguf": {"checkpoints"},
    "pandas": {"answers"},
    "onnx": {"checkpoints"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "lancedb": {"index"},
    "pyarrow": {"index"},
    "yaml": {"checkpoints", "report", "testing"},
    "cyclonedx": {"report"},
    "packageurl": {"report"},
    "click": {"cli"},
    "rich": {"report"},
    "tqdm": {"report"},
    "pytest": {"testing"},
}
ANYWHERE = {"torch", "numpy"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
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


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, lazily or not; imports for types alone left out."""
    package = module_name(path).split(".")[: None if path.stem == "__init__" else -1]
    tree = ast.parse(path.read_text())
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(n) for branch in for_types for n in ast.walk(branch)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            found |= {".".join([*base, alias.name]) for alias in node.names} & modules or {".".join(base)}
    return found - {module_name(path)}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, each sorted."""
    directed = nx.DiGraph([(module, other) for module, others in graph.items() for other in others])
    return sorted(sorted(found) for found in nx.strongly_connected_components(directed) if len(found) > 1)


def test_no_modules_import_each_other() -> None:
    """Lazy imports included. The stand-in of the Hub is left out: its parts are one server."""
    files = [path for path in FILES if room(path) != "testing"]
    modules = {module_name(path) for path in files}
    assert cycles({module_name(path): module_imports(path, modules) for path in files}) == []


def test_and_that_test_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "hf_lineage")
    for name, text in {
        "a/__init__": "", "a/one": "from .two import x", "a/two": "def f():\n    from . import one",
        "a/three": "from ..b import four", "b/__init__": "",
        "b/four": "if TYPE_CHECKING:\n    from ..a.three import x\nfrom ..a import one",
    }.items():  # fmt: skip
        path = tmp_path / "hf_lineage" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    files = sorted((tmp_path / "hf_lineage").rglob("*.py"))
    modules = {module_name(path) for path in files}
    graph = {module_name(path): module_imports(path, modules) for path in files}
    assert cycles(graph) == [["hf_lineage.a.one", "hf_lineage.a.two"]]


MAX_PARAMETERS = 6


def private_parameters(text: str) -> dict[str, int]:
    """Name → number of parameters of each function that starts with one underscore; `self` and `cls` not counted."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and re.match(r"_[^_]", node.name):
            arguments = node.args
            named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            bound = named[:1] in (["self"], ["cls"])
            rest = (arguments.vararg is not None) + (arguments.kwarg is not None)
            found[node.name] = max(found.get(node.name, 0), len(named) - bound + rest)
    return found


def test_private_functions_take_few_parameters() -> None:
    long = {
        f"{path.relative_to(ROOT).as_posix()}:{name}" for path in FILES
        for name, count in private_parameters(path.read_text()).items() if count > MAX_PARAMETERS
    }  # fmt: skip
    assert not long, "too many parameters: make an object of what belongs together"


def test_parameters_are_counted() -> None:
    text = "class A:\n def _m(self, a, /, b, *c, d, **e): ...\ndef __init__(a, b): ...\ndef public(a): ...\ndef _f(): ...\n"
    assert private_parameters(text) == {"_m": 5, "_f": 0}


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
        "Index", "LayerLineage", "Lineage", "LineageError", "ModelRef", "Phylogeny", "Session", "annotate", "audit",
        "compare", "coverage", "find_candidates", "inheritance", "inspect", "phylogeny", "reproduce", "trace",
        "trace_layers",
    ]  # fmt: skip
    assert hf_lineage.__all__ == names == dir(hf_lineage)
    assert all(getattr(hf_lineage, name) for name in hf_lineage.__all__)
    with pytest.raises(AttributeError, match="verify"):
        hf_lineage.verify  # noqa: B018


def test_no_public_name_is_a_module() -> None:
    modules = {path.stem for path in ROOT.iterdir()}
    assert not {*hf_lineage.__all__} & modules


def imported_by(code: str, *arguments: object) -> set[str]:
    """Outside packages in `sys.modules` of a process that ran the code."""
    text = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    return set(
        json.loads(
            subprocess.run(
                [sys.executable, "-c", text, *map(str, arguments)], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
    )


RUN = """from hf_lineage.cli import main
for arguments in {}:
    try: main(arguments.split())
    except SystemExit: pass"""
LIGHT = (
    "trace --help", "--version", "trace x --frobnicate", "trace ./nothing ./here", "trace setup.cfg ./nothing",
    "layers ./nothing", "trace no:id", "tree", "annotate x --max-bytes much", "trace x --plot x.xyz",
)  # fmt: skip
HEAVY = {"torch", "numpy", "huggingface_hub", "transformers", "timm", "matplotlib", "scipy", "accelerate"}


@pytest.mark.integration
def test_help_and_what_was_typed_wrong_import_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)
    assert not imported_by(RUN.format(LIGHT)) & HEAVY


@pytest.mark.integration
def test_a_wrong_number_is_refused_before_torch_is_loaded(folders: dict[str, Path]) -> None:
    """NumPy draws the sample, of which one option speaks."""
    asked = f"trace {folders['child']} {folders['parent']}"
    wrong = ("--alpha 5", "--memory 5", "--sample 0", "--prior 2")
    assert not imported_by(RUN.format([f"{asked} {option}" for option in wrong])) & (HEAVY - {"numpy"})


@pytest.mark.integration
def test_and_the_test_above_can_fail() -> None:
    assert imported_by("import hf_lineage; hf_lineage.trace") & HEAVY


TRACED = """
import sys, hf_lineage as hl
lineage = hl.trace(sys.argv[1], [sys.argv[2]])
assert lineage.verdict == "parent"
"""
# what a question about weights does not need, whatever else is asked of the answer later
UNUSED = {"transformers", "timm", "torchvision", "matplotlib", "sklearn", "pandas", "gradio", "networkx", "datasets"}


@pytest.mark.integration
def test_tracing_by_weights_imports_what_it_uses(folders: dict[str, Path]) -> None:
    assert not imported_by(TRACED, folders["child"], folders["parent"]) & UNUSED


@pytest.mark.integration
def test_and_the_tests_above_can_fail(folders: dict[str, Path]) -> None:
    drawn = TRACED + "lineage.plot(); hl.phylogeny(sys.argv[1:3], method='mother')"
    assert imported_by(drawn, folders["child"], folders["parent"]) & UNUSED == {"matplotlib", "networkx"}
