"""What the package answers to fixed questions: recorded once, and compared after each step of a refactoring.

    python tests/recorded_answers.py record [FOLDER]     one JSON for each answer, into tests/recorded
    python tests/recorded_answers.py compare             answers anew; prints what differs, by JSON path; exit code 1
    python tests/recorded_answers.py compare --only 'trace-*' --ignore bytes_read,requests

The same answer means: text and order exactly, numbers to 1e-6, relative or absolute (`--tolerance`): another kind of
processor adds float32 numbers in another order, and rounds otherwise in the seventh digit. Of `seconds` and `versions`
only the names are kept. Used are the public API, the command line and the stand-in of the Hub, no more. Models are
seeded random numbers without any training, on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this file, whichever is installed

import hf_lineage as hl
from hf_lineage import cli
from hf_lineage.testing import MiniHub, connect

RECORDED = Path(__file__).parent / "recorded"
TOLERANCE = 1e-6
Tensors = dict[str, Tensor]
Plain = dict[str, Any]

# ---------------------------------------------------------------- models


def fan(tensor: Tensor) -> float:
    """The size of a fresh weight: no sum over values, which processors round differently."""
    return math.prod(tensor.shape[1:]) ** -0.5 if tensor.ndim > 1 else 0.05


def fresh(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    """Random tensors of these shapes; norms are around one."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for name, shape in shapes.items():
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        around = 1.0 if re.search(r"(norm\w*|bn\d|downsample\.1)\.weight$|running_var$", name) else 0.0
        made[name] = around + fan(noise) * noise
    return made


def tuned(base: Tensors, seed: int, change: float = 0.15, keep: float = 1.0, only: str = "") -> Tensors:
    """`keep` · base + noise of that relative size, a part of it of rank one; only tensors whose name matches."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for name, tensor in base.items():
        noise = torch.from_numpy(rng.standard_normal(tensor.shape, dtype=np.float32))
        if tensor.ndim == 2:
            left, right = (torch.from_numpy(rng.standard_normal(size, dtype=np.float32)) for size in tensor.shape)
            noise = 0.8 * noise + 0.6 * left[:, None] * right
        made[name] = keep * tensor + change * fan(tensor) * noise if re.search(only, name) else tensor
    return made


def lora(base: Tensors, seed: int, rank: int = 4) -> Tensors:
    """A merged low-rank change of all matrices of two dimensions."""
    made = dict(base)
    for step in range(rank):
        rng = np.random.default_rng([seed, step])
        for name, tensor in made.items():
            if tensor.ndim == 2:
                left, right = (torch.from_numpy(rng.standard_normal(size, dtype=np.float32)) for size in tensor.shape)
                made[name] = tensor + 0.05 * fan(tensor) * left[:, None] * right
    return made


def mixed(parts: Sequence[tuple[float, Tensors]]) -> Tensors:
    """Σ weight · model, one after the other."""
    made = {name: parts[0][0] * tensor for name, tensor in parts[0][1].items()}
    for weight, tensors in parts[1:]:
        made = {name: tensor + weight * tensors[name] for name, tensor in made.items()}
    return made


def slerp(first: Tensors, second: Tensors, t: float) -> Tensors:
    """For fresh strangers, which are nearly orthogonal: sin((1−t)Ω) p + sin(tΩ) q with Ω from their own angle."""
    made: Tensors = {}
    for name, p in first.items():
        q = second[name]
        cosine = float((p.double() * q.double()).sum() / (p.double().norm() * q.double().norm()))
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        a, b = (math.sin(share * angle) / math.sin(angle) for share in (1 - t, t)) if abs(cosine) < 0.99 else (1 - t, t)
        made[name] = a * p + b * q
    return made


def ties(base: Tensors, models: Sequence[Tensors], density: float) -> Tensors:
    """base + the mean of the largest changes that have the elected sign."""
    made: Tensors = {}
    for name, tensor in base.items():
        kept = []
        for model in models:
            change = model[name] - tensor
            least = change.abs().flatten().sort().values[int((1 - density) * change.numel())]
            kept.append(change * (change.abs() >= least))
        sign = sum(kept[1:], kept[0]).sign()
        agreeing = [change * (change * sign > 0) for change in kept]
        count = sum((change != 0).float() for change in agreeing)
        made[name] = tensor + sum(agreeing[1:], agreeing[0]) / torch.as_tensor(count).clamp(min=1)
    return made


def disguised(model: Tensors, seed: int, layers: Sequence[tuple[Sequence[str], str]], factors: bool = False) -> Tensors:
    """Hidden units in another order; with factors also rescaled, which what reads them takes back."""
    rng = np.random.default_rng(seed)
    made = dict(model)
    for rows, reader in layers:
        order = torch.from_numpy(rng.permutation(len(made[rows[0]])))
        scale = torch.from_numpy(2.0 ** rng.integers(-2, 3, len(order))).float() if factors else torch.ones(len(order))
        scaled = rows[-1:] if "gate" in rows[0] else rows  # behind a gate only `up` has a scale of its own
        for name in rows:
            tensor = made[name][order]
            made[name] = tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1)) if name in scaled else tensor
        made[reader] = made[reader][:, order] / scale
    return made


def mlp(seed: int, widths: Sequence[int] = (48, 96, 64, 10)) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(1, len(widths)):
        shapes |= {f"fc{i}.weight": (widths[i], widths[i - 1]), f"fc{i}.bias": (widths[i],)}
    return fresh(shapes, seed)


def llama(seed: int, depth: int = 2, words: int = 80) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, 64)}
    for i in range(depth):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{kind}_proj.weight": (64, 64) for kind in "qkvo"}
        shapes |= {f"{at}mlp.{kind}_proj.weight": (96, 64) for kind in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (64, 96)}
        shapes |= {f"{at}{kind}_layernorm.weight": (64,) for kind in ("input", "post_attention")}
    return fresh(shapes | {"model.norm.weight": (64,), "lm_head.weight": (words, 64)}, seed)


def vit(seed: int, depth: int = 3) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 64), "pos_embed": (1, 17, 64)}
    shapes |= {"patch_embed.proj.weight": (64, 1, 7, 7), "patch_embed.proj.bias": (64,)}
    for i in range(depth):
        at = f"blocks.{i}."
        for name, wide, narrow in (
            ("attn.qkv", 192, 64),
            ("attn.proj", 64, 64),
            ("mlp.fc1", 128, 64),
            ("mlp.fc2", 64, 128),
        ):
            shapes |= {f"{at}{name}.weight": (wide, narrow), f"{at}{name}.bias": (wide,)}
        shapes |= {f"{at}{norm}.{kind}": (64,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    shapes |= {"norm.weight": (64,), "norm.bias": (64,), "head.weight": (5, 64), "head.bias": (5,)}
    return fresh(shapes, seed)


def resnet(seed: int) -> Tensors:
    channels = (16, 64, 64, 96)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 1, 7, 7)}
    norms = {"bn1": 64}
    before = 64
    for i, width in enumerate(channels, start=1):
        at = f"layer{i}.0."
        shapes |= {f"{at}conv1.weight": (width, before, 3, 3), f"{at}conv2.weight": (width, width, 3, 3)}
        norms |= {f"{at}bn1": width, f"{at}bn2": width}
        if i > 1 or before != width:
            shapes |= {f"{at}downsample.0.weight": (width, before, 1, 1)}
            norms |= {f"{at}downsample.1": width}
        before = width
    for name, width in norms.items():
        shapes |= {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return fresh(shapes | {"fc.weight": (5, before), "fc.bias": (5,)}, seed)


def blocks_from(models: Sequence[str], choice: Sequence[tuple[int, int]], at: str = "model.layers.") -> Tensors:
    """Block i is block choice[i][1] of models[choice[i][0]]; the rest is the first model's."""
    made = {name: tensor for name, tensor in model(models[0]).items() if not name.startswith(at)}
    for i, (which, block) in enumerate(choice):
        source = model(models[which])
        made |= {n.replace(f"{at}{block}.", f"{at}{i}."): t for n, t in source.items() if n.startswith(f"{at}{block}.")}
    return made


MLP_UNITS = [(("fc1.weight", "fc1.bias"), "fc2.weight"), (("fc2.weight", "fc2.bias"), "fc3.weight")]
_GATED = [f"model.layers.{i}.mlp." for i in range(2)]
LLAMA_UNITS = [((f"{at}gate_proj.weight", f"{at}up_proj.weight"), f"{at}down_proj.weight") for at in _GATED]


def _spoiled(name: str, value: float, tensors: str = "") -> Tensors:
    return {n: torch.full_like(t, value) if re.search(tensors, n) else t for n, t in model(name).items()}


def _rounded(tensor: Tensor) -> Tensor:
    """As int8 with one scale for each tensor, and back."""
    scale = tensor.abs().max() / 127
    return (tensor / scale).round() * scale


def _pruned(tensor: Tensor) -> Tensor:
    return tensor * (tensor.abs() > tensor.abs().flatten().sort().values[tensor.numel() // 2])


def _grown(name: str, words: int) -> Tensors:
    made, more = tuned(model(name), 21, 0.1), llama(22, words=words)
    return made | {n: torch.cat([made[n], more[n]]) for n in ("model.embed_tokens.weight", "lm_head.weight")}


def _each(name: str, change: Callable[[Tensor], Tensor]) -> Tensors:
    return {n: change(t) for n, t in model(name).items()}


# the first part of a name is the kind of its config.json
MODELS: dict[str, Callable[[], Tensors]] = {
    "mlp-parent": lambda: mlp(1),
    "mlp-child": lambda: tuned(model("mlp-parent"), 2),
    "mlp-sibling": lambda: tuned(model("mlp-parent"), 3),
    "mlp-sibling-2": lambda: tuned(model("mlp-parent"), 4),
    "mlp-grandchild": lambda: tuned(model("mlp-child"), 5),
    "mlp-grandchild-2": lambda: tuned(model("mlp-child"), 6, 0.1),
    "mlp-sibling-3": lambda: tuned(model("mlp-parent"), 24),
    "mlp-nephew": lambda: tuned(model("mlp-sibling"), 7, 0.1),
    "mlp-copy": lambda: dict(model("mlp-parent")),
    "mlp-stranger": lambda: mlp(8),
    "mlp-stranger-child": lambda: tuned(model("mlp-stranger"), 9),
    "mlp-stranger-2": lambda: mlp(10),
    "mlp-merge": lambda: mixed([(0.6, model("mlp-parent")), (0.4, model("mlp-stranger"))]),
    "mlp-soup": lambda: mixed([(0.5, model("mlp-child")), (0.5, model("mlp-sibling"))]),
    "mlp-head": lambda: model("mlp-parent") | {n: t for n, t in mlp(11, (48, 96, 64, 7)).items() if "fc3" in n},
    "mlp-decayed": lambda: tuned(model("mlp-parent"), 12, 0.1, keep=0.9),
    "mlp-lora": lambda: lora(model("mlp-parent"), 13),
    "mlp-frozen": lambda: tuned(model("mlp-parent"), 14, 0.3, only="fc[23]"),
    "mlp-int8": lambda: _each("mlp-parent", _rounded),
    "mlp-pruned": lambda: _each("mlp-parent", _pruned),
    "mlp-bf16": lambda: _each("mlp-child", lambda tensor: tensor.bfloat16()),
    "mlp-fp16": lambda: _each("mlp-parent", lambda tensor: tensor.half()),
    "mlp-permuted": lambda: disguised(model("mlp-child"), 15, MLP_UNITS),
    "mlp-rescaled": lambda: disguised(model("mlp-child"), 16, MLP_UNITS, factors=True),
    "mlp-nan": lambda: _spoiled("mlp-child", math.nan, "fc1"),
    "mlp-all-nan": lambda: _spoiled("mlp-child", math.nan),
    "mlp-zero": lambda: _spoiled("mlp-child", 0.0, "fc2"),
    "mlp-wide": lambda: mlp(17, (48, 80, 72, 10)),
    "mlp-big": lambda: mlp(18, (256, 400, 300, 10)),
    "mlp-big-child": lambda: tuned(model("mlp-big"), 19),
    "mlp-big-stranger": lambda: mlp(20, (256, 400, 300, 10)),
    "llama-parent": lambda: llama(31),
    "llama-child": lambda: tuned(model("llama-parent"), 32, 0.1),
    "llama-sibling": lambda: tuned(model("llama-parent"), 33, 0.1),
    "llama-stranger": lambda: llama(34),
    "llama-grown": lambda: _grown("llama-parent", 8),
    "llama-rescaled": lambda: disguised(model("llama-child"), 35, LLAMA_UNITS, factors=True),
    "llama4-a": lambda: llama(41, 4),
    "llama4-b": lambda: llama(42, 4),
    "llama4-math": lambda: tuned(model("llama4-a"), 43, 0.2),
    "llama4-code": lambda: tuned(model("llama4-a"), 44, 0.2),
    "llama4-hybrid": lambda: blocks_from(["llama4-a", "llama4-b"], [(0, 0), (0, 1), (1, 2), (1, 3)]),
    "llama4-tuned-hybrid": lambda: tuned(model("llama4-hybrid"), 45, 0.05),
    "llama4-moved": lambda: blocks_from(["llama4-a", "llama4-b"], [(0, 2), (0, 0), (1, 1), (0, 0)]),
    "llama4-linear": lambda: mixed([(0.7, model("llama4-a")), (0.3, model("llama4-b"))]),
    "llama4-slerp": lambda: slerp(model("llama4-a"), model("llama4-b"), 0.3),
    "llama4-arithmetic": lambda: mixed(
        [(1 - 0.8 - 0.5, model("llama4-a")), (0.8, model("llama4-math")), (0.5, model("llama4-code"))]
    ),
    "llama4-ties": lambda: ties(model("llama4-a"), [model("llama4-math"), model("llama4-code")], 0.4),
    "vit-parent": lambda: vit(51),
    "vit-child": lambda: tuned(model("vit-parent"), 52, 0.1),
    "vit-sibling": lambda: tuned(model("vit-parent"), 53, 0.1),
    "vit-stranger": lambda: vit(54),
    "vit-hybrid": lambda: blocks_from(["vit-child", "vit-stranger"], [(0, 0), (1, 1), (0, 2)], "blocks."),
    "resnet-parent": lambda: resnet(61),
    "resnet-child": lambda: tuned(model("resnet-parent"), 62, 0.1),
    "resnet-stranger": lambda: resnet(63),
}  # fmt: skip
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 80}
TEXT |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 32}
SIZES = {"patch_size": 7, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "img_size": 28, "in_chans": 1}
PICTURES = {"input_size": [1, 28, 28], "fixed_input_size": True, "mean": [0.0], "std": [1.0], "num_classes": 5}
CONFIGS: dict[str, Plain] = {
    "mlp": {"model_type": "toy"},
    "llama": {**TEXT, "num_hidden_layers": 2},
    "llama4": {**TEXT, "num_hidden_layers": 4},
    "vit": {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": SIZES, "pretrained_cfg": PICTURES},
    "resnet": {
        "architecture": "resnet18", "num_classes": 5, "pretrained_cfg": {**PICTURES, "fixed_input_size": False},
        "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 64, 64, 96], "in_chans": 1},
    },
}  # fmt: skip


@cache
def model(name: str) -> Tensors:
    return MODELS[name]()


@cache
def weights(name: str) -> bytes:
    """model.safetensors of one of `MODELS`."""
    return save({key: tensor.clone().contiguous() for key, tensor in model(name).items()})


def module(name: str) -> nn.Sequential:
    """One of the fully connected models in memory."""
    layers: dict[str, nn.Module] = {}
    for i, (wide, narrow) in enumerate((t.shape for t in model(name).values() if t.ndim == 2), start=1):
        layers |= {f"fc{i}": nn.Linear(narrow, wide), f"relu{i}": nn.ReLU()}
    made = nn.Sequential()
    for key, layer in list(layers.items())[:-1]:
        made.add_module(key, layer)
    made.load_state_dict(model(name))
    return made


# ---------------------------------------------------------------- what cases work with


class World:
    """An empty stand-in of the Hub and an empty folder, where the process stands, for one case."""

    def __init__(self, hub: MiniHub) -> None:
        self.hub = hub

    def files(self, name: str, bases: Sequence[str] = (), card: str = "", **more: Any) -> dict[str, bytes]:
        """A model's files: `bases` and `card` make its README, a `base` in `more` is a model to take weights from."""
        config = CONFIGS[name.split("-")[0]] | more.pop("config", {})
        files = {"model.safetensors": weights(more.pop("like", name)), "config.json": json.dumps(config).encode()}
        head = "base_model:\n" + "".join(f"- {base}\n" for base in bases) if bases else ""
        if head or card:
            files["README.md"] = f"---\nlicense: mit\n{head}---\n{card or '# A model'}\n".encode()
        files |= more.pop("files", {})
        return {path: data for path, data in files.items() if data}

    def local(self, name: str, bases: Sequence[str] = (), card: str = "", **more: Any) -> str:
        """A folder ./lab/…."""
        folder = Path("lab", name)
        for path, data in self.files(name, bases, card, **more).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return f"./{folder}"

    def remote(self, name: str, bases: Sequence[str] = (), card: str = "", **more: Any) -> str:
        """A repo lab/… on the stand-in; what `files` does not know is said of the repo."""
        ours = {key: more.pop(key) for key in ("config", "like", "files") if key in more}
        self.hub.add(f"lab/{name}", self.files(name, bases, card, **ours), **more)
        return f"lab/{name}"

    def locals(self, *names: str) -> list[str]:
        return [self.local(name) for name in names]

    def remotes(self, *names: str) -> list[str]:
        return [self.remote(name) for name in names]


def told(answer: Any) -> Plain:
    """An answer in all its forms."""
    said: Plain = {"record": answer.to_dict()}
    for name in ("sentence", "explain", "to_markdown", "recipe", "to_newick"):
        if hasattr(answer, name):
            said[name] = attempt(getattr(answer, name))
    if isinstance(answer, hl.LayerLineage):
        said["scores"] = {ref: scores.tolist() for ref, scores in answer.scores.items()}
    if isinstance(answer, hl.Phylogeny):
        said["groups"] = answer.groups
    return {**said, "str": str(answer), "repr": repr(answer)}


def attempt(question: Callable[[], Any]) -> Any:
    """What a call returns, or what it raises."""
    try:
        return question()
    except hl.LineageError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, (hl.LineageError, ValueError))]
        return {"error": kinds, "message": str(error), "repo": error.repo}


def command(*arguments: str, files: Sequence[str] = ()) -> Plain:
    """What the command line prints, how it ends, and text files it writes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue(), "files": written(*files)}


def written(*paths: str) -> Plain:
    return {path: read(path, Path(path).read_bytes()) if Path(path).exists() else None for path in paths}


def read(path: str, data: bytes) -> Any:
    """A file as JSON keeps it; of pictures that they are there."""
    if path.endswith((".json", ".sarif")):
        return json.loads(data)
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in data.decode().splitlines()]
    return f"{len(data) > 1000}" if path.endswith((".png", ".safetensors")) else data.decode()


def traced(w: World, child: str, *candidates: str, **options: Any) -> Plain:
    """The answer about local models."""
    return told(hl.trace(w.local(child), w.locals(*candidates), **options))


# ---------------------------------------------------------------- cases: trace

STRANGERS = ("mlp-stranger", "mlp-stranger-2")
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["fc1"]}


def broken(w: World, put: Callable[..., str]) -> list[str]:
    """Models that cannot be read, each in another way."""
    data = weights("mlp-parent")
    stream = io.BytesIO()
    torch.save(model("mlp-parent"), stream)
    return [
        put("mlp-truncated", like="mlp-parent", files={"model.safetensors": data[:-5000]}),
        put("mlp-header", like="mlp-parent", files={"model.safetensors": data[:8] + b"[" + data[9:]}),
        put("mlp-long-header", like="mlp-parent", files={"model.safetensors": b"\xff" * 8 + data[8:]}),
        put("mlp-pickled", like="mlp-parent", files={"model.safetensors": b"", "pytorch_model.bin": stream.getvalue()}),
        put("mlp-no-weights", like="mlp-parent", files={"model.safetensors": b""}),
        put("mlp-all-nan"),
    ]  # a candidate with a tensor of zeros is refused or not by a rounding error: only a child has one


def hidden(w: World) -> list[str]:
    """Repos that are gated, private, renamed or not there."""
    w.remote("mlp-gated", like="mlp-parent", gated="auto")
    w.remote("mlp-private", like="mlp-parent", private=True)
    w.remote("mlp-old", like="mlp-parent")
    w.hub.rename("lab/mlp-old", "lab/mlp-new")
    return ["lab/mlp-gated", "lab/mlp-private", "lab/mlp-old", "lab/nowhere", "lab/mlp-old@v9"]


def trace_unreadable_local(w: World) -> Plain:
    candidates = [*broken(w, w.local), *w.locals("mlp-parent", "mlp-wide", "llama-parent"), "./lab/nowhere"]
    return told(hl.trace(w.local("mlp-child"), candidates))


def trace_unreadable_remote(w: World) -> Plain:
    return told(hl.trace(w.remote("mlp-child"), [*broken(w, w.remote), *hidden(w), *w.remotes("mlp-stranger")]))


def trace_errors(w: World) -> Plain:
    child, parents = w.local("mlp-child"), w.locals("mlp-parent")
    questions: dict[str, Callable[[], Any]] = {
        ref: lambda ref=ref: hl.trace(ref, parents).verdict
        for ref in [*broken(w, w.local), "./lab/nowhere", *hidden(w), "a/b/c"]
    }
    questions |= {
        f"{name}={value!r}": lambda name=name, value=value: hl.trace(child, parents, **{name: value}).verdict
        for name, value in (
            ("alpha", 2.0), ("evidence", "guess"), ("evidence", []), ("max_bytes", 0), ("max_bytes", 1000),
            ("sample", "9%%"), ("sample", 10), ("metric", "cka"), ("device", "abacus"), ("detector", "./lab/nowhere"),
        )
    }  # fmt: skip
    questions["no candidates"] = lambda: hl.trace(child, []).verdict
    questions["itself"] = lambda: hl.trace(child, [child]).verdict
    questions["a text"] = lambda: hl.trace(child, parents[0]).verdict
    questions["pickle"] = lambda: hl.trace(child, ["./lab/mlp-pickled"], allow_pickle=True).verdict
    questions["pickled child"] = lambda: hl.trace("./lab/mlp-pickled", [child, *parents], allow_pickle=True).verdict
    return {name: attempt(question) for name, question in questions.items()}


def trace_max_bytes(w: World) -> Plain:
    child, parents = w.remote("mlp-big-child"), w.remotes("mlp-big", "mlp-big-stranger")
    return {
        str(limit): attempt(lambda limit=limit: told(hl.trace(child, parents, max_bytes=limit, sample="all"))["record"])
        for limit in (200_000, 1_000_000, 20_000_000)
    }


def trace_claims_local(w: World) -> Plain:
    """One claim confirmed, one contradicted, one a relative, one not to be tested; of a mirror."""
    bases = ["lab/mlp-parent", "lab/mlp-stranger", "lab/mlp-sibling", "lab/mlp-wide", "lab/nowhere"]
    child = w.local("mlp-child", bases, config={"_name_or_path": "lab/mlp-stranger-2"})
    return told(hl.trace(child, w.locals("mlp-parent", "mlp-stranger", "mlp-sibling", "mlp-wide", "mlp-stranger-2")))


def trace_claims_remote(w: World) -> Plain:
    """A false claim; the true parent is asked about too, and nobody names it."""
    child = w.remote("mlp-child", ["lab/mlp-stranger", "lab/nowhere"])
    return told(hl.trace(child, w.remotes("mlp-parent", *STRANGERS)))


def trace_shards(w: World) -> Plain:
    parts = {
        f"model-0000{i}-of-00003.safetensors": [n for n in model("mlp-parent") if f"fc{i}" in n] for i in (1, 2, 3)
    }
    index = {"weight_map": {name: part for part, names in parts.items() for name in names}}
    files = {part: save({n: model("mlp-parent")[n] for n in names}) for part, names in parts.items()}
    files |= {"model.safetensors": b"", "model.safetensors.index.json": json.dumps(index).encode()}
    sharded = w.remote("mlp-sharded", like="mlp-parent", files=files)
    return told(hl.trace(w.remote("mlp-child") + "@main", [sharded, w.remote("mlp-stranger")]))


def trace_gated_with_token(w: World) -> Plain:
    parent = w.remote("mlp-gated", like="mlp-parent", gated="auto", readers=frozenset({"alice"}))
    child = w.remote("mlp-child", private=True, readers=frozenset({"alice"}))
    return told(hl.trace(child, [parent, w.remote("mlp-stranger")], token="hf_alice"))


def trace_adapter(w: World) -> Plain:
    """A LoRA adapter, and one that is offered as a parent."""
    shapes = {"A": (4, 48), "B": (96, 4)}
    pair = {f"base_model.model.fc1.lora_{k}.weight": torch.full(shape, 0.1) for k, shape in shapes.items()}
    files = {"model.safetensors": b"", "config.json": b"", "adapter_model.safetensors": save(pair)}
    files["adapter_config.json"] = json.dumps({**ADAPTER, "base_model_name_or_path": "lab/mlp-parent"}).encode()
    adapter = w.remote("mlp-adapter", ["lab/mlp-parent"], like="mlp-parent", files=files)
    child, parents = w.remote("mlp-child"), w.remotes("mlp-parent", "mlp-stranger")
    return {
        "child": told(hl.trace(adapter, parents)),
        "declared": told(hl.trace(adapter)),
        "candidate": told(hl.trace(child, [adapter, *parents])),
    }


def town(w: World, *cards: str) -> None:
    """Repos to search among: two families and strangers; those in `cards` name their base."""
    bases = {
        "mlp-child": "mlp-parent", "mlp-sibling": "mlp-parent", "mlp-grandchild": "mlp-child",
        "mlp-stranger-child": "mlp-stranger", "llama-child": "llama-parent", "vit-child": "vit-parent",
    }  # fmt: skip
    names = ["mlp-parent", "mlp-child", "mlp-sibling", "mlp-grandchild", *STRANGERS, "mlp-stranger-child", "mlp-wide"]
    names += ["llama-parent", "llama-child", "llama-stranger", "vit-parent", "vit-child", "vit-stranger"]
    for i, name in enumerate(names):
        bases_of = [f"lab/{bases[name]}"] if name in cards else []
        w.remote(name, bases_of, created=f"2024-02-{i + 1:02}", downloads=100 - i)
    w.remote("mlp-private", like="mlp-parent", private=True)
    w.remote("mlp-gated", like="mlp-parent", gated="auto")


def searched(w: World, child: str, *cards: str, **options: Any) -> Plain:
    town(w, *cards)
    return told(hl.trace(f"lab/{child}", **options))


def trace_search_contradicted(w: World) -> Plain:
    town(w, "mlp-sibling")
    w.remote("mlp-liar", ["lab/mlp-stranger"], like="mlp-grandchild")
    return told(hl.trace("lab/mlp-liar"))


def trace_search_nothing(w: World) -> Plain:
    lonely, local = w.remote("mlp-wide"), w.local("mlp-wide")
    return {ref: attempt(lambda ref=ref: told(hl.trace(ref))) for ref in (lonely, local)}


def trace_modules(w: World) -> Plain:
    """By the features of modules in memory, for inputs in memory; and the same modules by weights."""
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 48), dtype=np.float32))
    child, candidates = module("mlp-child"), [module("mlp-parent"), module("mlp-stranger")]
    return {
        "features": told(hl.trace(child, candidates, evidence="features", probes=inputs)),
        "both": told(
            hl.trace(child, candidates, evidence=["weights", "features"], probes=inputs, taps="blocks", step=0.1)
        ),
        "weights": told(hl.trace(child, [*candidates, w.local("mlp-sibling")])),
    }


def trace_features_vit(w: World) -> Plain:
    return traced(
        w, "vit-child", "vit-parent", "vit-stranger", evidence="features", metric="cka", taps="blocks", probes=8
    )


def trace_features_llama(w: World) -> Plain:
    names = ("llama-parent", "llama-stranger", "llama-sibling", "mlp-wide")
    return traced(w, "llama-child", *names, evidence=["weights", "features"], probes=8)


def trace_features_resnet(w: World) -> Plain:
    child, parents = w.remote("resnet-child"), w.remotes("resnet-parent", "resnet-stranger")
    return told(hl.trace(child, parents, evidence=["features", "weights"], probes=8, seed=3))


def trace_detector(w: World) -> Plain:
    child, names = w.local("vit-child"), w.locals("vit-parent", "vit-stranger", "mlp-wide")
    return {
        "alone": told(hl.trace(child, names, evidence="detector")),
        "all": told(hl.trace(child, names, evidence=["weights", "features", "detector"], probes=16)),
    }


def trace_progress(w: World) -> Plain:
    """What a caller is told while an answer is made."""
    child, names = w.local("llama-child"), w.locals("llama-parent", "llama-stranger")
    questions = {
        "trace": lambda told: hl.trace(child, names, progress=told),
        "layers": lambda told: hl.trace_layers(child, names, progress=told),
        "tree": lambda told: hl.phylogeny([child, *names], progress=told),
        "audit": lambda told: [*hl.audit([child, *names], progress=told)],
    }
    said: Plain = {}
    for name, question in questions.items():
        calls: list[tuple[int, int, str]] = []
        question(lambda done, total, what, calls=calls: calls.append((done, total, what)))
        totals, whats = [*dict.fromkeys(c[1] for c in calls)], sorted({c[2] for c in calls})
        said[name] = {"calls": len(calls), "totals": totals, "last": calls[-1][:2], "whats": whats}
    return said


TRACE: dict[str, Callable[[World], Plain]] = {
    "trace-local": lambda w: traced(w, "mlp-child", "mlp-parent", "mlp-sibling", *STRANGERS),
    "trace-tree": lambda w: traced(
        w, "mlp-child", "mlp-parent", "mlp-sibling", "mlp-grandchild", *STRANGERS, tree=True, alpha=1e-6
    ),
    "trace-descendants": lambda w: traced(w, "mlp-parent", "mlp-child", "mlp-grandchild", "mlp-stranger", seed=5),
    "trace-none": lambda w: traced(w, "mlp-child", *STRANGERS, "mlp-wide"),
    "trace-identical": lambda w: traced(w, "mlp-copy", "mlp-parent", "mlp-child", "mlp-stranger"),
    "trace-kinds": lambda w: {
        kind: traced(w, f"mlp-{kind}", "mlp-parent", *STRANGERS)["record"]
        for kind in ("head", "decayed", "lora", "frozen", "int8", "pruned", "bf16", "fp16", "nan", "zero")
    },
    "trace-grown-vocabulary": lambda w: traced(w, "llama-grown", "llama-parent", "llama-sibling", "llama-stranger"),
    "trace-disguised": lambda w: {
        "permuted": traced(w, "mlp-permuted", "mlp-parent", *STRANGERS),
        "rescaled": traced(w, "mlp-rescaled", "mlp-parent", *STRANGERS),
        "llama": traced(w, "llama-rescaled", "llama-parent", "llama-stranger"),
    },
    "trace-merges": lambda w: {
        "strangers": traced(w, "mlp-merge", "mlp-parent", *STRANGERS),
        "siblings": traced(w, "mlp-soup", "mlp-child", "mlp-sibling", "mlp-stranger"),
    },
    "trace-samples": lambda w: {
        str(sample): traced(w, "mlp-big-child", "mlp-big", "mlp-big-stranger", sample=sample, seed=1)["record"]
        for sample in ("all", "auto", 0.5, "30%", 150_000)
    },
    "trace-remote": lambda w: told(
        hl.trace(w.remote("mlp-child", ["lab/mlp-parent"]), w.remotes("mlp-parent", *STRANGERS))
    ),
    "trace-remote-half": lambda w: told(
        hl.trace(w.remote("mlp-big-child"), w.remotes("mlp-big", "mlp-big-stranger"), sample=0.5, alpha=1e-5, seed=2)
    ),
    "trace-max-bytes": trace_max_bytes,
    "trace-unreadable-local": trace_unreadable_local,
    "trace-unreadable-remote": trace_unreadable_remote,
    "trace-errors": trace_errors,
    "trace-claims-local": trace_claims_local,
    "trace-claims-remote": trace_claims_remote,
    "trace-shards": trace_shards,
    "trace-gated-with-token": trace_gated_with_token,
    "trace-adapter": trace_adapter,
    "trace-search": lambda w: searched(w, "mlp-grandchild", "mlp-child", "mlp-sibling"),
    "trace-search-declared": lambda w: searched(w, "llama-child", "llama-child", sample="all"),
    "trace-search-contradicted": trace_search_contradicted,
    "trace-search-nothing": trace_search_nothing,
    "trace-modules": trace_modules,
    "trace-progress": trace_progress,
    "trace-features-vit": trace_features_vit,
    "trace-features-llama": trace_features_llama,
    "trace-features-resnet": trace_features_resnet,
    "trace-detector": trace_detector,
}

# ---------------------------------------------------------------- cases: layers


def layered(w: World, child: str, *candidates: str, **options: Any) -> Plain:
    return told(hl.trace_layers(w.local(child), w.locals(*candidates), **options))


def layers_declared(w: World) -> Plain:
    """The candidates are those of a merge recipe on the Hub."""
    recipe = b"merge_method: linear\nmodels:\n- model: lab/llama4-a\n- model: lab/llama4-b\n- model: lab/nowhere\n"
    w.remotes("llama4-a", "llama4-b")
    return told(hl.trace_layers(w.remote("llama4-linear", files={"mergekit_config.yml": recipe}), sample=0.5))


def layers_errors(w: World) -> Plain:
    child, nan = w.local("llama-child"), w.local("mlp-all-nan")
    others = w.locals("mlp-parent", "llama-parent")
    return {
        "no block": attempt(lambda: told(hl.trace_layers(child, others[:1]))),
        "nan": attempt(lambda: told(hl.trace_layers(nan, others))),
        "nothing declared": attempt(lambda: told(hl.trace_layers(child))),
        "max_bytes": attempt(lambda: told(hl.trace_layers(child, others, max_bytes=10_000))),
        "missing": attempt(lambda: told(hl.trace_layers("lab/nowhere", others))),
        "candidate missing": attempt(lambda: told(hl.trace_layers(child, [*others, "lab/nowhere"]))),
    }


LAYERS: dict[str, Callable[[World], Plain]] = {
    "layers-passthrough": lambda w: {
        "plain": layered(w, "llama4-hybrid", "llama4-a", "llama4-b"),
        "tuned": layered(w, "llama4-tuned-hybrid", "llama4-a", "llama4-b", "llama-stranger"),
    },
    "layers-linear": lambda w: layered(w, "llama4-linear", "llama4-a", "llama4-b"),
    "layers-slerp": lambda w: layered(w, "llama4-slerp", "llama4-a", "llama4-b"),
    "layers-task-arithmetic": lambda w: layered(w, "llama4-arithmetic", "llama4-a", "llama4-math", "llama4-code"),
    "layers-ties": lambda w: layered(w, "llama4-ties", "llama4-a", "llama4-math", "llama4-code"),
    "layers-moved": lambda w: layered(w, "llama4-moved", "llama4-a", "llama4-b"),
    "layers-features": lambda w: {
        "features": layered(w, "vit-hybrid", "vit-parent", "vit-stranger", evidence="features", probes=8, metric="cka"),
        "all": layered(w, "vit-hybrid", "vit-parent", "vit-stranger", evidence=["weights", "features"], probes=8),
    },
    "layers-detector": lambda w: layered(w, "vit-hybrid", "vit-parent", "vit-stranger", evidence="detector", probes=16),
    "layers-single": lambda w: layered(w, "mlp-frozen", "mlp-parent", "mlp-sibling", "mlp-stranger"),
    "layers-declared": layers_declared,
    "layers-errors": layers_errors,
}

# ---------------------------------------------------------------- cases: family trees

FAMILY = ("mlp-parent", "mlp-child", "mlp-sibling", "mlp-grandchild", "mlp-grandchild-2", "mlp-nephew")
OTHERS = ("mlp-stranger", "mlp-stranger-child", "mlp-stranger-2")


def grown(w: World, *names: str, **options: Any) -> Plain:
    return told(hl.phylogeny(w.locals(*names), **options))


def by_methods(*methods: str, **options: Any) -> Callable[[World], Plain]:
    return lambda w: {method: grown(w, *FAMILY, *OTHERS, method=method, **options) for method in methods}


def tree_remote(w: World) -> Plain:
    """Claims, one of them reversed, and models that cannot be read."""
    bases = {"mlp-child": ["lab/mlp-parent"], "mlp-parent": ["lab/mlp-sibling"], "mlp-nephew": ["lab/mlp-stranger"]}
    refs = [w.remote(name, bases.get(name, [])) for name in FAMILY]
    return told(hl.phylogeny([*refs, *hidden(w), *broken(w, w.remote), w.remote("mlp-stranger")], sample=0.8))


def tree_errors(w: World) -> Plain:
    refs = w.locals("mlp-parent", "mlp-child")
    return {
        "method": attempt(lambda: told(hl.phylogeny(refs, method="guess"))),
        "rho": attempt(lambda: told(hl.phylogeny(refs, rho=0.5))),
        "nothing": attempt(lambda: told(hl.phylogeny(["./lab/nowhere", "lab/nowhere"]))),
        "none": attempt(lambda: told(hl.phylogeny([]))),
        "max_bytes": attempt(lambda: told(hl.phylogeny(refs, max_bytes=1000))),
        "two": attempt(lambda: told(hl.phylogeny(refs))),
    }


TREES: dict[str, Callable[[World], Plain]] = {
    "tree-information": lambda w: grown(w, *FAMILY, *OTHERS),
    "tree-detector": by_methods("detector"),
    "tree-baselines": by_methods("distance", "norms", "mother"),
    "tree-clustering": by_methods("after-kmeans", "after-meanshift", "after-agglomerative"),
    "tree-along": by_methods("along-kmeans", "along-meanshift", rho=0.5),
    "tree-copies": lambda w: grown(w, *FAMILY, "mlp-copy"),
    "tree-merges": lambda w: {
        "strangers": grown(w, *FAMILY, *OTHERS, "mlp-merge"), "relatives": grown(w, *FAMILY, *OTHERS, "mlp-soup"),
    },
    "tree-missing-ancestor": lambda w: grown(
        w, "mlp-sibling", "mlp-sibling-2", "mlp-sibling-3", "mlp-stranger", alpha=1e-4
    ),
    "tree-changes": lambda w: grown(
        w, *(f"mlp-{kind}" for kind in ("parent", "int8", "pruned", "fp16", "frozen", "lora"))
    ),
    "tree-architectures": lambda w: grown(
        w, "mlp-parent", "mlp-child", "llama-parent", "llama-child", "llama-sibling", "vit-parent", "vit-child",
        "vit-stranger", "mlp-all-nan", seed=4,
    ),
    "tree-remote": tree_remote,
    "tree-errors": tree_errors,
}  # fmt: skip

# ---------------------------------------------------------------- cases: candidates, audit, annotate


def found(w: World, child: str, *cards: str, **options: Any) -> Plain:
    town(w, *cards)
    answer = hl.find_candidates(child, **options)
    return {**told(answer), "refs": list(answer.refs)}


def candidates_declared(w: World) -> Plain:
    recipe = (
        b"merge_method: slerp\nslices:\n- sources:\n  - model: lab/vit-parent\n  - model: lab/llama-parent+lab/lora\n"
    )
    said = "This model is a fine-tuned version of [lab/mlp-sibling](https://huggingface.co/lab/mlp-sibling) on data.\n"
    config = {"_name_or_path": "lab/mlp-stranger"}
    files = {"mergekit_config.yml": recipe}
    w.remote("mlp-declaring", ["lab/mlp-child"], said, like="mlp-grandchild", config=config, files=files)
    return found(w, "lab/mlp-declaring", "mlp-child", "mlp-sibling")


def candidates_outage(w: World) -> Plain:
    w.hub.fault(503, on="api", file="lab/mlp-sibling", times=None)
    w.hub.fault(429, on="api", times=2, after=3, value=2)
    return found(w, "lab/mlp-child", "mlp-child", "mlp-sibling")


def candidates_errors(w: World) -> Plain:
    w.remote("mlp-child")
    calls = {"most": {"most": 0}, "max_bytes": {"max_bytes": -1}, "max_requests": {"max_requests": 1}}
    said = {
        name: attempt(lambda o=options: told(hl.find_candidates("lab/mlp-child", **o)))
        for name, options in calls.items()
    }
    return said | {ref: attempt(lambda ref=ref: told(hl.find_candidates(ref))) for ref in hidden(w)}


CANDIDATES: dict[str, Callable[[World], Plain]] = {
    "candidates-remote": lambda w: found(w, "lab/mlp-grandchild", "mlp-child", "mlp-grandchild"),
    "candidates-local": lambda w: found(w, w.local("llama-child"), "llama-child"),
    "candidates-declared": candidates_declared,
    "candidates-few": lambda w: found(w, "lab/mlp-child", "mlp-sibling", most=2),
    "candidates-outage": candidates_outage,
    "candidates-errors": candidates_errors,
}


def claimants(w: World, put: Callable[..., str]) -> list[str]:
    """Models with every kind of claim."""
    for name in ("mlp-parent", "mlp-sibling", "mlp-stranger", "mlp-wide"):
        put(name)
    return [
        put("mlp-child", ["lab/mlp-parent"]),
        put("mlp-liar", ["lab/mlp-stranger"], like="mlp-child"),
        put("mlp-half", ["lab/mlp-parent", "lab/mlp-stranger"], like="mlp-child"),
        put("mlp-cousin", ["lab/mlp-sibling"], like="mlp-child"),
        put("mlp-lost", ["lab/nowhere"], like="mlp-child"),
        put("mlp-other", ["lab/mlp-wide"], like="mlp-child"),
        put("mlp-silent", like="mlp-child"),
        put("mlp-soup", ["lab/mlp-child", "lab/mlp-sibling"]),
        put("mlp-broken", ["lab/mlp-parent"], like="mlp-child", files={"model.safetensors": b"abc"}),
    ]


def audited(models: Sequence[Any], **options: Any) -> Plain:
    return {"records": [record.to_dict() for record in hl.audit(models, **options)]}


def audit_remote(w: World) -> Plain:
    return audited([*claimants(w, w.remote), *hidden(w), "a/b/c", module("mlp-child")])


def audit_local(w: World) -> Plain:
    """Folders whose bases are on the Hub."""
    w.remotes("mlp-parent", "mlp-sibling", "mlp-stranger", "mlp-wide")
    return audited(claimants(w, w.local), sample=0.5, seed=1)


def audit_search(w: World) -> Plain:
    town(w, "mlp-sibling", "llama-child")
    w.remote("mlp-liar", ["lab/mlp-stranger"], like="mlp-grandchild")
    return audited(["lab/mlp-child", "lab/mlp-liar", "lab/llama-child", "lab/mlp-wide"], search=True)


def audit_outage(w: World) -> Plain:
    """What the Hub did not answer is tried again with the journal, the rest is taken from it."""
    refs = claimants(w, w.remote)[:4]
    w.hub.fault(503, on="any", file="lab/mlp-liar*", times=None)
    w.hub.fault(503, on="any", file="lab/mlp-sibling*", times=None)
    first = audited(refs, journal="journal.jsonl")
    w.hub.faults.clear()
    again = audited(refs, journal="journal.jsonl")
    other = attempt(lambda: audited(refs, journal="journal.jsonl", seed=9))
    return {"first": first, "again": again, "other settings": other, **written("journal.jsonl")}


def audit_command(w: World) -> Plain:
    refs = [*claimants(w, w.remote), "lab/nowhere"]
    Path("models.txt").write_text("# models\n\n" + "".join(f"{ref}  # a model\n" for ref in refs))
    options = ("--sarif", "audit.sarif", "--markdown", "audit.md", "--journal", "audit.jsonl")
    return {
        "table": command("audit", "models.txt", *options, files=options[1::2]),
        "resumed": command("audit", "models.txt", *options, files=options[1::2]),
        "agent": command("audit", "models.txt", "--format", "agent", "--limit", "3"),
        "quiet": command("audit", "models.txt", "-q", "--limit", "3"),
    }


def audit_author(w: World) -> Plain:
    claimants(w, w.remote)
    w.hub.add_collection("lab/family-0123abcd", title="A family", items=["lab/mlp-child", "lab/mlp-silent"])
    return {
        "author": command("audit", "--author", "lab", "--limit", "6", "--json"),
        "since": command("audit", "--author", "lab", "--since", "2030-01-01"),
        "collection": command("audit", "--collection", "lab/family-0123abcd"),
        "nobody": command("audit", "--author", "nobody"),
        "no file": command("audit", "nowhere.txt"),
        "usage": command("audit"),
    }


AUDITS: dict[str, Callable[[World], Plain]] = {
    "audit-remote": audit_remote,
    "audit-local": audit_local,
    "audit-search": audit_search,
    "audit-outage": audit_outage,
    "audit-command": audit_command,
    "audit-author": audit_author,
}

CARD = "# A child\n\nIts text, *kept* as it is.\n"


def noted(note: Any) -> Plain:
    return {"record": note.to_dict(), "to_markdown": note.to_markdown(), "str": str(note)}


def repo(w: World, name: str, ref: str = "main") -> Plain:
    """The files of a repo but its weights, and what is said about it."""
    held = w.hub.repos[name]
    files = {
        path: read(path, file.read())
        for path, file in held.commits[held.refs[ref]].items()
        if "safetensors" not in path
    }
    talks = [(d.num, d.title, d.author, d.status, d.is_pull_request, d.comments) for d in held.discussions.values()]
    commit = held.history[held.refs[ref]]
    return {"files": files, "discussions": talks, "commit": [commit.title, commit.message, commit.author]}


def annotate_remote(w: World) -> Plain:
    """Looked at, proposed twice, pushed twice."""
    w.hub.tokens["hf_lab"] = "lab"
    child, parents = w.remote("mlp-child", (), CARD), w.remotes("mlp-parent", "mlp-stranger")
    lineage = hl.trace(child, parents, token=False)
    said = {"dry": noted(hl.annotate(child, lineage, token=False))}
    said["proposed"] = noted(hl.annotate(child, lineage, create_pr=True, token="hf_bob"))
    said["again"] = noted(hl.annotate(child, lineage, create_pr=True, token="hf_bob"))
    said["proposal"] = repo(w, child, "refs/pr/1")
    said["refused"] = attempt(lambda: noted(hl.annotate(child, lineage, push=True, token="hf_bob")))
    said["anonymous"] = attempt(lambda: noted(hl.annotate(child, lineage, push=True, token=False)))
    said["pushed"] = noted(hl.annotate(child, lineage, push=True, token="hf_lab"))
    said["pushed again"] = noted(hl.annotate(child, lineage, push=True, token="hf_lab"))
    return {**said, "repo": repo(w, child)}


def annotate_folder(w: World) -> Plain:
    child = w.local("mlp-child", (), CARD)
    lineage = hl.trace(child, w.locals("mlp-parent", *STRANGERS))
    said = {"dry": noted(hl.annotate(child, lineage)), "pushed": noted(hl.annotate(child, lineage, push=True))}
    said["again"] = noted(hl.annotate(child, lineage, push=True))
    other = hl.trace(child, w.locals("mlp-sibling", "mlp-stranger"))
    said["another answer"] = noted(hl.annotate(child, other))
    files = sorted(str(path) for path in Path(child).rglob("*") if path.is_file() and path.suffix != ".safetensors")
    return {**said, "files": written(*files)}


def annotate_contradicted(w: World) -> Plain:
    child = w.remote("mlp-child", ["lab/mlp-stranger"], CARD)
    lineage = hl.trace(child, w.remotes("mlp-parent", "mlp-stranger"))
    note = hl.annotate(child, lineage)
    note.save(Path("out"))
    files = sorted(str(path) for path in Path("out").rglob("*") if path.is_file())
    return {"dry": noted(note), "files": written(*files)}


def annotate_layers(w: World) -> Plain:
    child, sources = w.local("llama4-linear", (), CARD), w.locals("llama4-a", "llama4-b")
    lineage, layers = hl.trace(child, sources), hl.trace_layers(child, sources)
    said = noted(hl.annotate(child, lineage, layers=layers, push=True))
    files = [f"{child}/{name}" for name in ("README.md", "lineage.json", "lineage/bom.cdx.json")]
    return {"pushed": said, "files": written(*files)}


def annotate_errors(w: World) -> Plain:
    child, other = w.local("mlp-child"), w.local("mlp-sibling")
    lineage = hl.trace(child, w.locals("mlp-parent", "mlp-stranger"))
    none = hl.trace(child, w.locals("mlp-stranger"))
    said = {
        "both": attempt(lambda: noted(hl.annotate(child, lineage, create_pr=True, push=True))),
        "another model": attempt(lambda: noted(hl.annotate(other, lineage))),
        "folder": attempt(lambda: noted(hl.annotate(child, lineage, create_pr=True))),
        "hub": attempt(lambda: noted(hl.annotate("lab/mlp-child", lineage))),
        "no card": attempt(lambda: noted(hl.annotate(child, lineage))),
        "no parent": attempt(lambda: noted(hl.annotate(child, none))),
    }
    Path(child, "README.md").write_bytes(b"\xff\xfe\x00")
    said["no text"] = attempt(lambda: noted(hl.annotate(child, lineage)))
    Path(child, "README.md").write_text("# A\n<!-- hf-lineage:start -->\n")
    said["half a section"] = attempt(lambda: noted(hl.annotate(child, lineage)))
    return said


def annotate_command(w: World) -> Plain:
    asked = ("-c", w.remote("mlp-parent"), "-c", w.remote("mlp-stranger"))
    child = w.remote("mlp-child", (), CARD)
    return {
        "dry": command("annotate", child, *asked, "--out", "out", files=["out/README.md", "out/lineage/lineage.png"]),
        "json": command("annotate", child, *asked, "--layers", "--json"),
        "no token": command("annotate", child, *asked, "--create-pr"),
        "both": command("annotate", child, *asked, "--create-pr", "--push"),
    }


ANNOTATIONS: dict[str, Callable[[World], Plain]] = {
    "annotate-remote": annotate_remote,
    "annotate-folder": annotate_folder,
    "annotate-contradicted": annotate_contradicted,
    "annotate-layers": annotate_layers,
    "annotate-errors": annotate_errors,
    "annotate-command": annotate_command,
}

# ---------------------------------------------------------------- cases: command line


def cli_trace(w: World) -> Plain:
    asked = [
        "trace",
        w.local("mlp-child", ["lab/mlp-stranger"]),
        "-c",
        w.local("mlp-parent"),
        "-c",
        w.local("mlp-stranger"),
    ]
    forms = {"table": ["--explain"], "agent": ["--format", "agent", "--explain"], "json": ["--json"], "quiet": ["-q"]}
    forms |= {
        "picture": ["--plot", "lineage.png"],
        "options": ["--sample", "50%", "--seed", "3", "--tree", "--alpha", "0.01"],
    }
    return {name: command(*asked, *options, files=["lineage.png"]) for name, options in forms.items()}


def cli_layers(w: World) -> Plain:
    asked = ["layers", w.local("llama4-hybrid"), "-c", w.local("llama4-a"), "-c", w.local("llama4-b")]
    return {
        "table": command(*asked, "--recipe", "recipe.yml", files=["recipe.yml"]),
        "quiet": command(*asked, "--quiet", "--sample", "all"),
        "bad step": command(*asked, "--evidence", "features", "--step", "far"),
    }


def cli_tree(w: World) -> Plain:
    asked = ["tree", *w.locals(*FAMILY, *OTHERS), "./lab/nowhere"]
    return {
        "table": command(*asked, "--newick", "tree.nwk", files=["tree.nwk"]),
        "agent": command(*asked, "--format", "agent"),
        "quiet": command(*asked, "-q", "--method", "distance"),
        "no method": command(*asked, "--method", "guess"),
    }


def cli_candidates(w: World) -> Plain:
    town(w, "mlp-child", "mlp-sibling")
    return {
        "table": command("candidates", "lab/mlp-child"),
        "quiet": command("candidates", "lab/mlp-child", "-q", "--most", "3"),
        "search": command("trace", "lab/mlp-grandchild"),
        "missing": command("candidates", "lab/nowhere"),
    }


def cli_errors(w: World) -> Plain:
    child, parent = w.local("mlp-child"), w.local("mlp-parent")
    lines = [
        *(("trace", missing, "-c", parent) for missing in ("lab/nowhere", "./lab/nowhere", "a/b/c")),
        ("trace", child), ("trace", child, "-c", "lab/nowhere"), ("trace", child, "-c", parent, "--alpha", "7"),
        ("trace", child, "-c", parent, "--max-bytes", "1000"), ("trace", child, "-c", parent, "--plot", "lineage.txt"),
        ("trace", child, "-c", parent, "--evidence", "guess"), ("trace", child, "-c", parent, "--nonsense"), ("trace",),
        ("guess",), ("layers", child), ("tree",), ("trace", child, "-c", parent, "--sample", "1%%"), ("--help",),
        *((name, "--help") for name in ("trace", "layers", "tree", "candidates", "annotate", "audit", "demo")),
    ]  # fmt: skip
    return {" ".join(line): command(*line) for line in lines}


COMMANDS: dict[str, Callable[[World], Plain]] = {
    "cli-trace": cli_trace,
    "cli-layers": cli_layers,
    "cli-tree": cli_tree,
    "cli-candidates": cli_candidates,
    "cli-errors": cli_errors,
}

CASES = {**TRACE, **LAYERS, **TREES, **CANDIDATES, **AUDITS, **ANNOTATIONS, **COMMANDS}

# ---------------------------------------------------------------- record and compare

IGNORED = ("seconds", "versions")
TIMES = re.compile(r"(?<= in )\d+\.\d(?= s\b)")
MASKS = {  # the same figures in text
    "bytes_read": re.compile(r"\d[\d.]* (?:bytes|[kMGT]?B) in … s"),
    "requests": re.compile(r"\d+ requests"),
}
ALIASES = {"requests": ("requests", "traffic")}


class Recorder:
    """Answers cases, each with an empty stand-in and an empty folder: `with Recorder() as recorder: …`."""

    def __enter__(self) -> Recorder:
        self._stack = contextlib.ExitStack()
        self._hub = self._stack.enter_context(MiniHub())
        self._stack.enter_context(threadpool_limits(1))
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        self._stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)  # the client tells of every wait
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, name: str) -> Plain:
        """What the package says now."""
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            here = Path(folder).resolve() / "work"
            here.mkdir()
            self._hub.reset()
            self._hub.home = here.parent / "home"
            connect(self._hub, patch)
            for variable in ("AGENT", "AI_AGENT", "COLUMNS"):
                patch.delenv(variable, raising=False)
            patch.setattr(sys, "argv", ["hf-lineage"])  # what the command line is called, whoever runs it
            patch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
            patch.chdir(here)
            said = CASES[name](World(self._hub))
            traffic = {app: self._hub.counts[app] for app in ("api", "resolve", "cdn")}
            traffic |= {"waits": len(self._hub.waits)}
            places = {self._hub.url: "http://hub", self._hub.cdn_url: "http://cdn", str(here): "<here>"}
            from huggingface_hub import close_session

            close_session()
        return {"answer": _plain(said, places), "traffic": traffic}


def _plain(value: Any, places: Mapping[str, str]) -> Any:
    """JSON types, without addresses, folders and times of this run."""
    if isinstance(value, Mapping):
        kept = {_plain(str(key), places): _plain(item, places) for key, item in value.items()}
        return {key: None if key in IGNORED else item for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, places) for item in value]
    if isinstance(value, str):
        for place, word in places.items():
            value = value.replace(place, word)
        inside = _parsed(value) or _parsed(f"[{','.join(value.splitlines())}]")  # JSON, or a line of JSON each
        return _plain(inside, places) if inside and value.startswith("{") else TIMES.sub("…", value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def write(name: str, answer: Plain, folder: Path = RECORDED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def recorded(name: str, folder: Path = RECORDED) -> Any:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def differences(
    old: Any, new: Any, ignored: Sequence[str] = (), tolerance: float = TOLERANCE, path: str = "$"
) -> Iterator[str]:
    """What is not the same, each with its JSON path."""
    if isinstance(old, dict) and isinstance(new, dict):
        left_out = {*IGNORED, *ignored, *(alias for name in ignored for alias in ALIASES.get(name, ()))}
        before, after = ([key for key in side if key not in left_out] for side in (old, new))
        if before != after:
            gone, more = [k for k in before if k not in new], [k for k in after if k not in old]
            yield f"{path}: " + (f"keys gone {gone}, new {more}" if gone or more else f"order {before} != {after}")
        for key in before:
            if key in new:
                yield from differences(old[key], new[key], ignored, tolerance, f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}: {len(old)} items != {len(new)} items"
        for i, pair in enumerate(zip(old, new, strict=False)):
            yield from differences(*pair, ignored, tolerance, f"{path}[{i}]")
    elif _number(old) and _number(new):
        if not math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{path}: {old!r} != {new!r}"
    elif isinstance(old, str) and isinstance(new, str):
        for name in ignored:
            old, new = (MASKS[name].sub("…", side) if name in MASKS else side for side in (old, new))
        if old != new:
            yield f"{path}: {_first_difference(old, new)}"
    elif old != new or type(old) is not type(new):
        yield f"{path}: {_short(old)} != {_short(new)}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first_difference(old: str, new: str) -> str:
    before, after = old.split("\n"), new.split("\n")
    both = min(len(before), len(after))
    line = next((i for i in range(both) if before[i] != after[i]), both)
    a, b = (side[line] if line < len(side) else None for side in (before, after))
    return f"{a!r} != {b!r}" if len(before) == len(after) == 1 else f"line {line + 1}: {a!r} != {b!r}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("folder", nargs="?", type=Path, default=RECORDED, help="instead of tests/recorded")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names, such as 'trace-*'")
    parser.add_argument("--ignore", default="", metavar="NAMES", help="fields that may differ: bytes_read,requests")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of numbers, relative or absolute")
    given = parser.parse_args(arguments)
    ignored = [name for name in given.ignore.split(",") if name]
    names = [name for name in CASES if fnmatch(name, given.only)]
    if given.only == "*":
        stale = {path.stem for path in given.folder.glob("*.json")} - CASES.keys()
        names += sorted(stale) if given.what == "compare" else []
    bad = 0
    with Recorder() as recorder:
        for name in names:
            answer = recorder.answer(name) if name in CASES else None
            if given.what == "record" and answer is not None:
                write(name, answer, given.folder)
                continue
            found = list(differences(recorded(name, given.folder), answer, ignored, given.tolerance))
            bad += bool(found)
            print("\n".join(f"{name} {line}" for line in found), end="\n" if found else "")
    print(f"{len(names)} answers, {'recorded' if given.what == 'record' else f'{bad} differ'}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
