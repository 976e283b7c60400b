"""The README is tested: its Python runs, its commands exist, its two commands are what CI runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from hf_lineage.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BASH = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_python_blocks_run(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers = [("fc1", nn.Linear(48, 96)), ("relu", nn.ReLU()), ("fc2", nn.Linear(96, 64)), ("fc3", nn.Linear(64, 10))]
    module = nn.Sequential(OrderedDict(layers))
    module.load_state_dict(load_file(folders["child"] / "model.safetensors"))
    given = {name: folders[name] for name in ("child", "parent", "stranger")}
    for block in PYTHON:
        if "pytest_plugins" not in block:
            exec("import hf_lineage as hl\n" + block, given | {"module": module, "images": torch.rand(16, 48)})
    assert (tmp_path / "lineage.png").stat().st_size > 5000
    assert '"schema": "hf_lineage/1"' in (tmp_path / "lineage.json").read_text()


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"hf-lineage {name}" in README


def test_every_command_line_in_the_readme_parses() -> None:
    lines = [line for block in BASH for line in block.splitlines() if line.startswith("hf-lineage ")]
    inline = re.findall(r"`hf-lineage ([^`]+)`", README)
    for text in [line.removeprefix("hf-lineage ") for line in lines] + inline:
        name, *arguments = shlex.split(text)
        command = cli.commands[name]
        with command.make_context(name, arguments):
            pass


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_has_help(name: str) -> None:
    text = CliRunner().invoke(cli, [name, "--help"]).output
    for parameter in cli.commands[name].params:
        assert parameter.param_type_name == "argument" or (parameter.help and parameter.opts[0] in text), parameter.name


def test_ci_runs_the_readme_unchanged() -> None:
    commands = [block.strip() for block in BASH if "venv" in block]
    assert len(commands) == 2 and all("\n" not in command for command in commands), "each is one line to paste"
    assert commands[0].endswith("hf-lineage demo") and commands[1].endswith("-m pytest")
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_exit_codes_and_verdicts_are_documented() -> None:
    for word in ("parent", "identical", "none", "common_origin", "undecided", "confirmed", "contradicted", "relative"):
        assert f"`{word}`" in README
    for code in ("0 an answer", "1 an error", "2 wrong usage", "3 the child", "130 interrupted"):
        assert code in README


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["trust", "features", "layers", "trees", "search", "detector"])
def test_the_table_is_what_was_measured(name: str) -> None:
    """tests/benchmarks/…_table.py prints it from the recorded results."""
    path = ROOT / "tests" / "benchmarks" / f"{name}_table.py"
    spec = importlib.util.spec_from_file_location(f"{name}_table", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = README.partition(f"<!-- {name} table -->\n")[2].partition(f"<!-- /{name} table -->")[0]
    assert module.table() in shown and module.summary() in shown.replace("\n", " ")
