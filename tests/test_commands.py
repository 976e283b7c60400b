"""Every command of the README, of the guides and of each `--help` is run, in a fresh folder, on the stand-in of the Hub.

Three are run by test files of their own, which train networks: `demo` (test_demo.py), `train-detector` (test_detector.py),
`reproduce` (test_reproduce.py).
"""

from __future__ import annotations

import glob
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from matplotlib.image import imsave
from recorded_answers import CONFIGS
from recorded_answers import weights as stored
from safetensors.torch import save_file
from test_docs import TEXTS, command_lines

from hf_lineage.cli import cli
from hf_lineage.testing import MiniHub

ELSEWHERE = ("demo", "train-detector", "reproduce")
RUNNING = re.compile(r"--evidence|--profile|--probes")  # of which networks are run: they need a library's class
OWNERS = "user", "org", "lab", "my-org", "me", "timm"
REPO = re.compile(rf"(?<![\w./-])((?:{'|'.join(OWNERS)})/[\w-]+(?:\.\w+)*)(?:@([\w.]+))?")
FOLDER = re.compile(r"(?<![\w/])\./([\w-]+)(?![\w./-])")
WRITTEN = {"card", "detector", "pictures"}  # no models


def examples(command: click.Command, name: str = "") -> Iterator[str]:
    """The commands in the help of a command and of all below it."""
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from examples(each, f"{name} {below}".strip())
    else:
        lines = re.findall(r"^ *hf-lineage (.+)$", f"{command.help}\n{command.epilog or ''}", flags=re.M)
        yield from (re.split(r"\s{2,}", line.strip())[0] for line in lines)


def every() -> list[str]:
    """Each command once, without what a shell does with its output; names of commands alone are no commands."""
    pages = [text for name, text in TEXTS.items() if name not in ("CHANGELOG.md", "CONTRIBUTING.md")]
    lines = [line for text in pages for line in command_lines(text)] + [*examples(cli)]
    cut = [re.split(r" [|>] | && ", line)[0].strip() for line in lines]
    return [*dict.fromkeys(line for line in cut if (" " in line or line == "explain") and "CHILD" not in line)]


EVERY = [line for line in every() if line.split()[0] not in ELSEWHERE]
WEIGHED = [line for line in EVERY if not RUNNING.search(line)]
RUN = [line for line in EVERY if RUNNING.search(line)]


def files(kind: str, name: str, base: str) -> dict[str, bytes]:
    """A small model of a family: what is called a base is their parent, all else its children."""
    which = "parent" if re.search("base|ours|/a$|^a$", name) else "sibling" if re.search("b$|2$", name) else "child"
    card = f"---\nbase_model: {base}\n---\n# A model\n" if base and which != "parent" else "# A model\n"
    return {
        "model.safetensors": stored(f"{kind}-{which}"), "config.json": json.dumps(CONFIGS[kind]).encode(),
        "README.md": card.encode(),
    }  # fmt: skip


def furnish(hub: MiniHub, kind: str, lines: list[str]) -> None:
    """What the commands name: repos with their revisions, a collection, folders, lists of models."""
    text = "\n".join(lines)
    hub.tokens["hf_me"], hub.orgs["me"] = "me", {*OWNERS}
    named = [*REPO.findall(text), ("org/base", ""), ("my-org/tune", ""), ("user/child", "v2")]
    for name, revision in named:
        inside = "unet/" if name.endswith("/pipeline") else ""
        if name not in hub.repos:
            hub.add(name, {inside + path: data for path, data in files(kind, name, "org/base").items()})
        if revision:
            hub.commit(name, {}, ref=revision)
    hub.add_collection("my-org/released-0123abcd", title="Released", items=["my-org/tune"])
    several = ("models", "more-models", "hf-lineage-demo/family")
    for name in {*several, *FOLDER.findall(text)} - WRITTEN:
        for folder in [Path(name, each) for each in ("base", "child", "b")] if name in several else [Path(name)]:
            folder.mkdir(parents=True)
            for path, data in files(kind, folder.name, "").items():
                (folder / path).write_bytes(data)
    for name in ("models.txt", "children.txt"):
        Path(name).write_text("user/child\nmy-org/tune\n")
    save_file({name: torch.rand(8, 4) for name in ("user/child", "org/a", "org/b")}, "outputs.safetensors")


def typed(line: str) -> list[str]:
    """As a shell would split it and fill in the stars. The models here are small: 0.1 % of one holds nothing."""
    words = shlex.split(line.replace("0.1%", "50%"))
    return [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]


def test_the_commands_are_found() -> None:
    assert len(EVERY) >= 60 and {line.split()[0] for line in EVERY} == {*cli.commands} - {*ELSEWHERE}


def run_all(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    """Each in turn, as a reader would who has what they name; what it needs on stdin is a list of models."""
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    wrong = {}
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO("user/child\n"))
        code, _, err = run(*typed(line))
        if code or "Traceback" in err:
            wrong[line] = (code, err.strip()[-300:])
    assert not wrong, wrong


@pytest.mark.integration
def test_every_command_runs(
    run: Callable[..., Any], hub: MiniHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(hub, "mlp", WEIGHED)
    Path("lineage.json").write_text(run("trace", "./child", "./base", "--json")[1])
    run_all(run, monkeypatch, WEIGHED)


@pytest.mark.integration
def test_every_command_that_runs_networks_runs(
    run: Callable[..., Any], hub: MiniHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(hub, "vit", RUN)
    Path("pictures").mkdir()
    for name in ("a", "b"):
        imsave(Path("pictures", f"{name}.png"), torch.rand(16, 16).numpy(), cmap="gray")
    run_all(run, monkeypatch, RUN)
