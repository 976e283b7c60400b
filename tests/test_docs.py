"""The documents are tested: their Python runs, their commands exist, their links lead somewhere, CI runs the README.

Their commands are run in test_commands.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections import OrderedDict
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from hf_lineage.answers.base import READABLE
from hf_lineage.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
TEXTS = {name: path.read_text() for name, path in zip(NAMES, PAGES, strict=True)}
README = TEXTS["README.md"]
BENCHMARKS = TEXTS["docs/benchmarks.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


PYTHON = [name for name in NAMES if blocks(TEXTS[name], "python")]


@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as a reader would type them, with three models, a module and pictures at hand."""
    monkeypatch.chdir(tmp_path)
    layers = [("fc1", nn.Linear(48, 96)), ("relu", nn.ReLU()), ("fc2", nn.Linear(96, 64)), ("fc3", nn.Linear(64, 10))]
    module = nn.Sequential(OrderedDict(layers))
    module.load_state_dict(load_file(folders["child"] / "model.safetensors"))
    given = {"child": folders["child"], "parent": folders["parent"], "unrelated": folders["stranger"]}
    shown = given | {"module": module, "images": torch.rand(16, 48)}
    exec("import hf_lineage as hl\nfrom pathlib import Path", shown)
    for block in blocks(TEXTS[name], "python"):
        if "pytest_plugins" not in block:
            exec(block, shown)
    for drawn in re.findall(r'\.plot\("(\w+\.png)"\)', "".join(blocks(TEXTS[name], "python"))):
        assert (tmp_path / drawn).stat().st_size > 5000
    if name == "README.md":
        assert '"schema": "hf_lineage/2"' in (tmp_path / "lineage.json").read_text()


def test_the_pages_with_python_are_these() -> None:
    """A page whose blocks are no longer found would not be run."""
    guides = [
        "annotate",
        "audit",
        "compare",
        "features",
        "index",
        "inspect",
        "layers",
        "report",
        "reproduce",
        "testing",
        "trace",
        "trees",
    ]
    assert ["README.md", *(f"docs/guides/{name}.md" for name in guides)] == PYTHON


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200 and len(README) <= 12_000


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_in_the_readme_and_in_a_guide(name: str) -> None:
    assert f"hf-lineage {name}" in README
    assert any(f"hf-lineage {name}" in text for page, text in TEXTS.items() if page.startswith("docs/guides/"))


def command_lines(text: str) -> list[str]:
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("hf-lineage ")]
    lines += [line.partition("hf-lineage ")[2] for block in blocks(text, "bash") for line in block.splitlines()
              if "--no-python hf-lineage " in line]  # fmt: skip
    return [line.removeprefix("hf-lineage ") for line in lines] + re.findall(r"`hf-lineage ([^`]+)`", text)


@pytest.mark.parametrize("page", [name for name in NAMES if command_lines(TEXTS[name])])
def test_every_command_line_parses(page: str) -> None:
    for text in command_lines(TEXTS[page]):
        name, *arguments = shlex.split(text)
        command = cli.commands[name]
        while isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        with command.make_context(name, arguments):
            pass


def test_command_lines_are_found() -> None:
    text = "`hf-lineage tree a b` or\n```bash\nhf-lineage trace x\ntorchrun --no-python hf-lineage demo\nls\n```\n"
    assert command_lines(text) == ["trace x", "demo", "tree a b"]
    assert len([line for text in TEXTS.values() for line in command_lines(text)]) >= 30


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_has_help(name: str) -> None:
    text = CliRunner().invoke(cli, [name, "--help"]).output
    for parameter in cli.commands[name].params:
        assert parameter.param_type_name == "argument" or (parameter.help and parameter.opts[0] in text), parameter.name


def test_ci_runs_the_readme_unchanged() -> None:
    commands = [block.strip() for block in blocks(README, "bash") if "venv" in block]
    assert len(commands) == 2 and all("\n" not in command for command in commands), "each is one line to paste"
    assert commands[0].endswith("hf-lineage demo") and commands[1].endswith("-m pytest")
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_exit_codes_and_verdicts_are_documented() -> None:
    for page in (README, TEXTS["docs/guides/trace.md"]):
        for word in (
            "parent",
            "identical",
            "none",
            "common_origin",
            "undecided",
            "confirmed",
            "contradicted",
            "relative",
        ):
            assert f"`{word}`" in page
        for code in ("0 an answer", "1 an error", "2 wrong usage", "3 the child", "4 an", "130 interrupted"):
            assert code in page.replace("\n", " ")


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_exist(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            assert path.exists() and path.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(path.read_text()), target


def test_every_picture_is_there_for_a_dark_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each picture its dark variant, which tests/benchmarks/pictures.py makes of it; the README has one picture."""
    shown = re.findall(r"results/([\w-]+)\.png", "".join(TEXTS.values()))
    assert {name for name in shown if f"{name}-dark" not in shown} == {name for name in shown if name.endswith("-dark")}
    assert README.count("<img") == 1 and "![" not in README
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    pictures = importlib.import_module("pictures")
    for name in pictures.NAMES:
        assert abs(pictures.dark(pictures.load(name)) - pictures.load(f"{name}-dark")).max() < 0.01, name


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_every_page_of_docs_opens_with_whom_it_is_for(name: str) -> None:
    title, blank, first = TEXTS[name].splitlines()[:3]
    assert title.startswith("# ") and not blank and first.startswith("For ")


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = re.findall(r"\]\(([^)#\s]+\.md)\)", page.read_text())
            waiting += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert {*PAGES} <= reached


def test_files_named_in_the_documents_exist() -> None:
    for name, text in TEXTS.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        for path in re.findall(r"`((?:hf_lineage|tests|docs|spaces_app)/[\w/.-]+)`", prose):
            assert (ROOT / path).exists() or path in READABLE, f"{name} names {path}"
        for path in re.findall(r"(?:python|pytest -m large) (tests/[\w/]+\.py)", text):
            assert (ROOT / path).exists(), f"{name} runs {path}"
        for module in re.findall(r"python -m (hf_lineage[\w.]+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{name} runs {module}"


@pytest.mark.parametrize("name", ["trust", "features", "layers", "trees", "search", "detector", "speed"])
def test_the_table_is_what_was_measured(name: str) -> None:
    """tests/benchmarks/…_table.py prints it from the recorded results."""
    path = ROOT / "tests" / "benchmarks" / f"{name}_table.py"
    spec = importlib.util.spec_from_file_location(f"{name}_table", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = BENCHMARKS.partition(f"<!-- {name} table -->\n")[2].partition(f"<!-- /{name} table -->")[0]
    assert module.table() in shown and module.summary() in shown.replace("\n", " ")
