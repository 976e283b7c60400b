"""Models and the like that tests of several files build: random state dicts, small networks of the libraries, folders."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_lineage.report.card import current

Tensors = dict[str, Tensor]

VIT = "vit_tiny_patch16_224"
VIT_SIZES = {"img_size": 28, "in_chans": 1, "embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 7}
RESNET = "resnet18"
RESNET_SIZES = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16], "in_chans": 1}
LLAMA_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 80,
    "max_position_embeddings": 32,
}  # fmt: skip
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "HF_LINEAGE_TIMEOUT")  # what torchrun sets, and what we read beside it


# ---- state dicts without a network


def llama(seed: int, depth: int = 3, width: int = 24, hidden: int = 64, words: int = 50) -> Tensors:
    """A random state dict with the names of a Llama."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for i in range(depth):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{kind}_proj.weight": (width, width) for kind in "qkvo"}
        shapes |= {f"{at}mlp.{kind}_proj.weight": (hidden, width) for kind in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, hidden), f"{at}input_layernorm.weight": (width,)}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (words, width)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tuned(model: Tensors, seed: int, change: float = 0.3) -> Tensors:
    """The model and noise of that size in every weight, in its own dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {n: (t.float() + change * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in model.items()}


def near(tensors: Tensors, rel: float = 0.05, seed: int = 9) -> Tensors:
    """A random step of that relative size in each tensor of floats; up in running variances, which stay positive."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(tensors)
    for name, value in tensors.items():
        if value.is_floating_point():
            step = torch.randn(value.shape, generator=generator)
            found[name] = value + rel * value.norm() / step.norm() * (step.abs() if "running_var" in name else step)
    return found


# ---- networks


def uneven(module: nn.Module) -> nn.Module:
    """Every vector has values: zeros and ones would hide a bias or a statistic that is read wrongly."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data += 0.1 * torch.rand(tensor.shape)
    return module


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 5))


def vit(seed: int, **sizes: Any) -> nn.Module:
    """timm's; `sizes`: where it differs from VIT_SIZES."""
    import timm

    torch.manual_seed(seed)
    return uneven(timm.create_model(VIT, num_classes=5, **VIT_SIZES | sizes))


def resnet(seed: int, **sizes: Any) -> nn.Module:
    """timm's; `sizes`: where it differs from RESNET_SIZES."""
    import timm

    torch.manual_seed(seed)
    return uneven(timm.create_model(RESNET, num_classes=5, **RESNET_SIZES | sizes))


def llama_network(seed: int, **sizes: Any) -> nn.Module:
    """transformers'; `sizes`: where it differs from LLAMA_SIZES."""
    import transformers

    torch.manual_seed(seed)
    return uneven(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_SIZES | sizes)))


def put(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None, **sizes: Any) -> Path:
    """A model folder, of timm's ViT of those sizes unless `config` says otherwise; no config.json where that is {}."""
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    if config is None:
        config = timm_config(VIT, **sizes)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def timm_config(architecture: str, **sizes: Any) -> dict[str, Any]:
    """config.json of a `vit` or a `resnet` of this file."""
    config = {"architecture": architecture, "num_classes": 5}
    if architecture == RESNET:
        return config | {"model_args": RESNET_SIZES | sizes, "pretrained_cfg": {"input_size": [1, 28, 28]}}
    return config | {"model_args": VIT_SIZES | sizes}


# ---- cards


LINES = "base_model: lab/parent\nbase_model_relation: finetune\n"  # what a sure answer about lab/parent adds


def random_card(rng: random.Random) -> str:
    """A card as it might be, or might be broken: metadata, marks, line ends and text of every kind."""
    lines = (
        "---", "---", "--- ", "license: mit", "license: 'mit' # why", "tags: [a, b]", "tags:", "- a", "base_model: x/y",
        "base_model:", "# T", "", "a: |", "  b", "{a: 1}", "language: no", "```", "<!--", "-->", "%YAML 1.2", "...", "a: [",
        "x: &a 1", "y: *a", "\u2028", "\x0b", "caf\u00e9 \u6a21\u578b", "eval_results: x", "text: a: b", "\t- x", "self: x",
    )  # fmt: skip
    head = rng.choice(("", "", "---\n", "---\n", "---\n---\n", "---\nlicense: mit\n---\n", "\n---\nlicense: mit\n---"))
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    body = "".join(
        f"{rng.choice(lines)}{end if rng.random() < 0.95 else rng.choice(('', chr(10)))}"
        for _ in range(rng.randrange(9))
    )
    return rng.choice(("", "", "", "\ufeff")) + head.replace("\n", end) + body


def without_ours(text: str, result: str) -> str | None:
    """What was added to the metadata of a card besides our section; None where anything else became of it."""
    section = current(result)
    return None if section is None else inserted(text, result.replace(section, "", 1))


def inserted(text: str, rest: str) -> str | None:
    """What was put into a text at one place, besides line ends behind it; None if that is not all, or not ours."""
    for ends in range(7):
        longer = rest[: len(rest) - ends]
        count = len(longer) - len(text)
        if count < 0 or rest[len(longer) :].strip("\r\n"):
            return None
        place = next((i for i, (a, b) in enumerate(zip(text, longer, strict=False)) if a != b), len(text))
        added = longer[place : place + count]  # perhaps begun later and ended later, by letters that are equal
        ours = {"".join(sorted(one)) for one in ("", "base_model:lab/parent", LINES, f"---{LINES}---")}
        letters = "".join(sorted(re.sub(r"\s", "", added)))
        if longer[place + count :] == text[place:] and letters in {re.sub(r"\s", "", one) for one in ours}:
            return added
    return None


# ---- processes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def torchrun(*arguments: object, processes: int = 2) -> list[str]:
    """The command that starts so many processes of `python ARGUMENTS` on this machine."""
    address = ("--nproc_per_node", processes, "--master_addr", "127.0.0.1", "--master_port", free_port())
    return [sys.executable, *map(str, ("-m", "torch.distributed.run", *address, *arguments))]


def processes(commands: list[list[str]], **environment: str) -> list[tuple[int, str, str]]:
    """Run one command per rank as a launcher would, without one: (exit code, stdout, stderr) of each."""
    shared = {
        "WORLD_SIZE": str(len(commands)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **environment,
    }
    started = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) for rank, command in enumerate(commands)
    ]  # fmt: skip
    try:
        with ThreadPoolExecutor(len(started)) as pool:  # at once: one whose pipe is full waits, and the others for it
            told = [*pool.map(lambda one: one.communicate(timeout=300), started)]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, out, err) for one, (out, err) in zip(started, told, strict=True)]
