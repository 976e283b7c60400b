"""The Space in a process of its own, in front of a stand-in of the Hub: what the tests of both kinds start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from builders import free_port, llama, tuned
from safetensors.torch import save
from space_login import Login

from hf_lineage.features.perceptron import FullyConnected
from hf_lineage.testing import MiniHub

ROOT = Path(__file__).parents[1]
APP = ROOT / "spaces_app"
VISITOR = "mock-oauth-token-for-local-dev"  # what gradio hands to handlers where it stands in for the login
HOSTILE = '<img src=x onerror="window.hacked=1">'
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Space:
    """A running Space and the Hub it talks to."""

    url: str
    hub: MiniHub
    log: Path
    login: str = ""  # where visitors sign in; empty where gradio stands in for that

    def users(self, repo: str) -> set[str | None]:
        """Who asked for anything of a repo, its files on the CDN aside."""
        return {call.user for call in self.hub.log if call.app == "hub" and repo in call.path}


@contextmanager
def running(folder: Path, *, on_hub: bool = False, waiting: int = 40) -> Iterator[Space]:
    """The Space as `python spaces_app/app.py` starts it; with `on_hub` in the surroundings of a Space, where visitors
    sign in by OAuth, else gradio's stand-in for that calls everybody alice. The machine's own token is owner's."""
    with MiniHub() as hub, Login() if on_hub else nullcontext() as login:
        hub.tokens |= {"hf_owner": "owner", VISITOR: "alice"}
        hub.orgs["owner"] = {"secret"}
        port, log = free_port(), folder / "app.log"
        settings = {**hub.environment("hf_owner"), "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
        settings["HF_LINEAGE_WAITING"] = str(waiting)
        settings |= login.environment() if login else {}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(APP / "app.py")], env={**os.environ, **settings}, stdout=output,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                _wait(process, port, log)
                yield Space(f"http://localhost:{port}", hub, log, login.url if login else "")
            finally:
                process.terminate()
                process.wait(30)


def blocks_of(models: list[Tensors], choice: list[int]) -> Tensors:
    """Block i is block i of models[choice[i]]; the rest is the first model's."""
    made = dict(models[0])
    for i, which in enumerate(choice):
        made |= {name: t for name, t in models[which].items() if name.startswith(f"model.layers.{i}.")}
    return made


def furnish(hub: MiniHub, nets: dict[str, Tensors]) -> None:
    """The repos that the tests ask about: a family, a gated and a private model, hostile names, merges."""
    for name, tensors in nets.items():
        card = {"child": "lab/parent", "grandchild": "lab/stranger"}.get(name)
        hub.add(f"lab/{name}", {"model.safetensors": save(tensors), "config.json": b"{}", **_card(card)})
    hub.add(
        "lab/fresh", {"model.safetensors": save(tuned(nets["parent"], 9, 0.02)), "README.md": b"# Fresh\n\nText.\n"}
    )
    hub.add("lab/shared", {"model.safetensors": save(tuned(nets["parent"], 10, 0.02)), "README.md": b"# Shared\n"})
    gated = {"model.safetensors": save(tuned(nets["parent"], 7, 0.02)), **_card("lab/parent")}
    hub.add("vault/gated", gated, gated="auto", readers=frozenset({"alice", "owner"}))
    hub.add("secret/private", {"model.safetensors": save(nets["child"])}, private=True)
    evil = {f"{name}{HOSTILE}" if "fc2" in name else name: tensor for name, tensor in nets["child"].items()}
    hub.add(
        "lab/hostile",
        {
            "model.safetensors": save(evil),
            "README.md": f"---\nbase_model: lab/parent\nlicense: '{HOSTILE}'\n---\n{HOSTILE}\n".encode(),
        },
    )
    sources = [llama(seed, 12) for seed in (1, 2, 3)]
    made = blocks_of(sources, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0])
    for name, tensors in {"a": sources[0], "b": sources[1], "c": sources[2], "hybrid": made}.items():
        hub.add(f"merges/{name}", {"model.safetensors": save(tensors), "config.json": b'{"model_type": "llama"}'})
    deep = [llama(seed, 80, width=16) for seed in (4, 5)]
    for name, tensors in {
        "deep-a": deep[0],
        "deep-b": deep[1],
        "deep": blocks_of(deep, [i // 20 % 2 for i in range(80)]),
    }.items():
        hub.add(f"merges/{name}", {"model.safetensors": save(tensors), "config.json": b'{"model_type": "llama"}'})
    config = {"architecture": "fc", "num_classes": 4, "model_args": {"widths": [32, 16]}}
    for name, tensors in perceptrons().items():  # whose class is known, so that they can be run
        hub.add(f"run/{name}", {"model.safetensors": save(tensors), "config.json": json.dumps(config).encode()})
    hub.add_collection("lab/family-0123abcd", title="A family", items=["lab/parent", "lab/child", "lab/stranger"])


def perceptrons() -> dict[str, Tensors]:
    """A parent, its child and a stranger that read images of 7 × 7."""
    found = {}
    for seed, name in enumerate(("parent", "other")):
        torch.manual_seed(seed)
        found[name] = dict(FullyConnected(49, [32, 16], 4).state_dict())
    return {**found, "child": tuned(found["parent"], 11, 0.02)}


def _card(base: str | None) -> dict[str, bytes]:
    return {"README.md": f"---\nbase_model: {base}\n---\n# A model\n".encode()} if base else {}


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(f"the Space ended: {log.read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the Space did not start within two minutes")
