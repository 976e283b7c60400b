"""What an extra is missing for: each is one line that ends with the pip command, and nothing else needs it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
# A process in which the packages of the extras cannot be imported, whatever is installed
WITHOUT = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
PACKAGES = {
    "papers": ("sklearn", "datasets"),
    "bom": ("cyclonedx",),
    "space": ("gradio", "gradio_client"),
    "gguf": ("gguf",),
    "onnx": ("onnx",),
    "index": ("lancedb",),
    "pandas": ("pandas",),
}
LINE = "pip install 'hf_lineage[{extra}]'"
MAIN = "from hf_lineage.cli import main\nmain({arguments!r})\n"
# Several in one process: the exit codes are printed
EACH = """
from hf_lineage.cli import main
for arguments in {commands!r}:
    try: main(arguments)
    except SystemExit as end: print(end.code)
"""


def without(*extras: str, run: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    names = [name for extra in extras for name in PACKAGES[extra]]
    code = WITHOUT.format(names=names) + run
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def models(folders: dict[str, Path]) -> list[str]:
    return [str(folders[name]) for name in ("child", "parent", "stranger")]


@pytest.fixture
def networks(tmp_path: Path) -> list[str]:
    """Two models that run, which features need."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name in ("a", "b"):
        LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("a", "b")]


def missed(extra: str, *arguments: str) -> str:
    """All that the command says, which is one line."""
    found = without(extra, run=MAIN.format(arguments=arguments))
    (line,) = found.stderr.splitlines()
    assert found.returncode and not found.stdout and LINE.format(extra=extra) in line
    return line


def test_a_missing_scikit_learn_is_one_line(models: list[str]) -> None:
    commands = [["tree", *models, "--method", method] for method in ("after-kmeans", "along-meanshift")]
    found = without("papers", run=EACH.format(commands=commands))
    codes, lines = found.stdout.split(), found.stderr.splitlines()
    assert len(codes) == len(lines) == 2 and "0" not in codes
    assert all("scikit-learn" in line and LINE.format(extra="papers") in line for line in lines)


def test_a_missing_datasets_is_one_line(networks: list[str]) -> None:
    child, candidate = networks
    shown = ("--evidence", "features", "--probes", "dataset:org/name")
    assert "datasets" in missed("papers", "trace", child, "-c", candidate, *shown)


def test_without_the_bill_of_materials_the_card_is_written(models: list[str]) -> None:
    """And who asks for nothing else is told in one line."""
    run = (
        "import hf_lineage as hl\nfrom hf_lineage.report.bom import cyclonedx\n"
        f"try: cyclonedx(hl.trace({models[0]!r}, [{models[1]!r}]))\n"
        "except hl.LineageError as error: print(error)\n"
    )
    found = without("bom", run=run + MAIN.format(arguments=["annotate", models[0], "-c", models[1]]))
    (line,) = [line for line in found.stderr.splitlines() if "pip install" in line]
    assert not found.returncode and line == f"note: No bill of materials: {LINE.format(extra='bom')}."
    missed, *rest = found.stdout.splitlines()
    assert LINE.format(extra="bom") in missed and rest and LINE.format(extra="bom") not in "".join(rest)


def test_a_missing_gradio_is_one_line() -> None:
    found = without("space", run="import runpy\nrunpy.run_path('spaces_app/app.py', run_name='__main__')\n")
    assert found.returncode == 1 and not found.stdout
    assert len(found.stderr.splitlines()) == 1 and LINE.format(extra="space") in found.stderr


def test_a_missing_gguf_is_one_line(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert "gguf" in missed("gguf", "trace", str(tmp_path / "a.gguf"), "-c", models[0])


def test_a_missing_onnx_is_one_line(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert "onnx" in missed("onnx", "trace", str(tmp_path / "a.onnx"), "-c", models[0])


def test_a_missing_pandas_is_one_line(models: list[str]) -> None:
    run = (
        f"import hf_lineage as hl\nfound = hl.coverage({models[0]!r})\n"
        "try: found.to_pandas()\nexcept hl.LineageError as error: print(error)\n"
    )
    (line,) = without("pandas", run=run).stdout.splitlines()
    assert "pandas" in line and LINE.format(extra="pandas") in line


def test_without_any_extra_the_tasks_work(models: list[str], tmp_path: Path) -> None:
    run = (
        "import hf_lineage as hl\n"
        f"child, parent, stranger = {models!r}\n"
        "lineage = hl.trace(child, [parent, stranger])\n"
        "print(lineage.verdict, hl.trace_layers(child, [parent, stranger]).method)\n"
        "for method in ('information', 'detector', 'distance', 'norms', 'mother'):\n"
        "    hl.phylogeny([child, parent, stranger], method=method)\n"
        "print(hl.annotate(child, lineage).changed, [record.status for record in hl.audit([stranger])])\n"
    )
    found = without(*PACKAGES, run=run, cwd=tmp_path)
    assert found.stdout.split("\n")[:2] == ["parent single", "True ['no_claim']"], found.stderr


def test_the_packages_above_are_those_of_the_extras() -> None:
    """`test` and `all` have the others; whoever adds an extra adds the line that misses it."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = {name: text.split() for name, text in parser["options.extras_require"].items()}
    assert {*extras} == {*PACKAGES, "all", "test"}
    distribution = {"sklearn": "scikit-learn", "cyclonedx": "cyclonedx-python-lib", "gradio_client": ""}
    for extra, names in PACKAGES.items():
        needed = {re.split(r"[\[>]", text)[0] for text in extras[extra]}
        assert {distribution.get(name, name) for name in names} - {""} == needed
    assert extras["all"] == [f"hf_lineage[{','.join(sorted(PACKAGES))}]"] and extras["test"][0] == "hf_lineage[all]"


def test_the_space_runs_on_a_gradio_that_the_extra_allows() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lowest, chosen = (
        re.findall(r"\d+", re.findall(pattern, text)[0])
        for pattern, text in (
            (r">=([\d.]+)", parser["options.extras_require"]["space"]),
            (r"sdk_version: ([\d.]+)", (ROOT / "spaces_app" / "README.md").read_text()),
        )
    )
    assert [int(part) for part in chosen] >= [int(part) for part in lowest]
    assert "hf_lineage[space] @ git+" in (ROOT / "spaces_app" / "requirements.txt").read_text()


def test_every_dependency_has_a_lower_bound() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = [line for text in parser["options.extras_require"].values() for line in text.split()]
    for line in (*parser["options"]["install_requires"].split(), *extras):
        assert line.startswith("hf_lineage[") or re.fullmatch(r"[\w-]+(\[[\w,-]+\])?>=[\d.]+(,<\d+)?", line), line
