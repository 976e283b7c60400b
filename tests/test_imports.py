"""The design as a test: who may import whom, which package has which home, what is public, what `--help` costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lineage

ROOT = Path(hf_lineage.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# stage → the stages it may import; a stage is a module or folder of the package
MAY_IMPORT = {
    "errors": "",
    "records": "errors report",  # report only inside methods: an answer knows how to show itself
    "conventions": "",
    "architecture": "conventions",
    "calibration": "",
    "parallel": "errors",
    "hub": "errors records",
    "weights": "errors records architecture hub parallel",
    "features": "errors records conventions architecture hub parallel",
    "detector": "errors records architecture hub parallel features",
    "verdict": "calibration records weights",
    "forest": "architecture calibration hub weights detector",
    "trees": "records report",  # as records
    "report": "errors records trees proposals",
    "family": "errors records trees conventions architecture hub parallel weights question forest",
    "question": "errors records architecture conventions hub weights features",
    "remarks": "records architecture hub weights question",
    "layers": "records architecture hub weights",
    "merging": "records layers weights",
    "proposals": "records report",  # as records
    "directory": "errors hub",
    "discovery": "errors records architecture conventions hub question proposals",
    "relatives": "records trees verdict weights",
    "inquiry": "records architecture hub weights question verdict",
    "pipeline": "errors records architecture hub parallel weights features detector question remarks verdict layers merging discovery inquiry family relatives",
    "annotation": "errors records hub report",
    "auditing": "errors records hub weights report pipeline question",
    "experiments": "errors records trees calibration pipeline family forest report hub features detector",
    "cli": "errors records trees proposals parallel discovery pipeline family annotation auditing detector experiments",
    "testing": "",
    "__init__": "errors records trees discovery pipeline family annotation auditing",
    "__main__": "cli",
}
# outside package → the only places that may import it; the arithmetic's own packages are at home everywhere
HOME = {
    "huggingface_hub": {
        "detector/phylogeny.py",  # the mixin that writes, pushes and pulls it
        "hub/cache.py",
        "hub/client.py",
        "checkpoints/texts.py",
        "hub/cards.py",
        "detector/model.py",
        "testing/__init__.py",
        "testing/repos.py",
        "testing/routes.py",
        "testing/server.py",
    },
    "matplotlib": {"report/plots.py", "report/tree_plot.py", "experiments/glyphs.py"},
    "networkx": {"report/tree_text.py", "trees/baselines.py", "detector/decoding.py"},
    "sklearn": {"trees/clustering.py"},
    "click": {
        f"cli/{name}.py"
        for name in ("__init__", "annotate", "ask", "audit", "candidates", "demo", "detector", "surface")
    },
    "tqdm": {"cli/output.py"},
    "cyclonedx": {"report/bom.py"},
    "packageurl": {"report/bom.py"},
    "accelerate": {"parallel.py", "features/streaming.py", "detector/training.py", "experiments/phylogeny_detector.py"},
    "timm": {"experiments/networks.py", "features/networks.py"},
    "transformers": {"experiments/networks.py", "features/networks.py"},
    "PIL": {"experiments/glyphs.py", "features/probes.py"},
    "datasets": {"features/probes.py"},
    "safetensors": {
        "detector/phylogeny.py",
        "experiments/families.py",
        "experiments/questions.py",
        "experiments/changes.py",
    },
    "pytest": {"testing/__init__.py"},
    "yaml": {"checkpoints/texts.py", "report/recipe.py", "testing/repos.py"},
    "scipy": {
        "weights/permutation_test.py",
        "weights/unit_matching.py",
        "weights/mixture.py",
        "weights/sparse_merges.py",
        "experiments/calibration.py",
        "experiments/phylogenies.py",
        "trees/mixtures.py",
        "trees/reading.py",
        "trees/spanning.py",
    },
}
ANYWHERE = {"torch", "numpy"}


def stage(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Stages of ours and outside packages that a file imports, lazily or not."""
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
    return ours, outside - set(sys.stdlib_module_names) - {"hf_lineage"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryFile:
    def test_imports_go_one_way(self, path: Path) -> None:
        assert imports(path)[0] <= {*MAY_IMPORT[stage(path)].split()}

    def test_outside_packages_stay_at_home(self, path: Path) -> None:
        name = path.relative_to(ROOT).as_posix()
        away = {package for package in imports(path)[1] - ANYWHERE if name not in HOME.get(package, set())}
        assert not away, f"{name} imports {away}; HOME says where that belongs"

    def test_no_file_is_too_long(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= 500


def test_the_table_has_no_cycle() -> None:
    reached: dict[str, set[str]] = {}

    def below(name: str, seen: tuple[str, ...] = ()) -> set[str]:
        assert name not in seen, f"cycle: {' -> '.join([*seen, name])}"
        if name not in reached:
            reached[name] = set()
            for other in MAY_IMPORT[name].split():
                if (name, other) not in {
                    ("records", "report"),
                    ("trees", "report"),
                    ("proposals", "report"),
                }:  # inside methods only, see above
                    reached[name] |= {other} | below(other, (*seen, name))
        return reached[name]

    assert {stage(path) for path in FILES} == set(MAY_IMPORT)
    for name in MAY_IMPORT:
        below(name)


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
