"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

pytest_plugins = ["hf_lineage.testing"]

WIDTHS = (48, 96, 64, 10)
Tensors = dict[str, torch.Tensor]


def net(seed: int, base: Tensors | None = None, change: float = 0.1, widths: tuple[int, ...] = WIDTHS) -> Tensors:
    """A multilayer perceptron's state dict: random, or `base` with a random change of that relative size."""
    generator = torch.Generator().manual_seed(seed)
    result: Tensors = {}
    for i in range(1, len(widths)):
        for name, shape in ((f"fc{i}.weight", (widths[i], widths[i - 1])), (f"fc{i}.bias", (widths[i],))):
            fresh = torch.randn(shape, generator=generator) / widths[i - 1] ** 0.5
            result[name] = fresh if base is None else base[name] + change * fresh
    return result


@pytest.fixture(scope="session")
def make_net() -> Callable[..., Tensors]:
    return net


@pytest.fixture(scope="session")
def nets() -> dict[str, Tensors]:
    """A parent, its child, the child's child, an unrelated network; and one of another architecture."""
    parent = net(1)
    child = net(2, parent)
    return {
        "parent": parent, "child": child, "grandchild": net(3, child), "stranger": net(4), "stranger-2": net(5),
        "other": net(6, widths=(20, 70, 30)),
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, nets: dict[str, Tensors]) -> dict[str, Path]:
    """The same as model folders."""
    for name, tensors in nets.items():
        (tmp_path / "lab" / name).mkdir(parents=True)
        save_file(tensors, tmp_path / "lab" / name / "model.safetensors")
    return {name: tmp_path / "lab" / name for name in nets}


@pytest.fixture
def lab(hub, nets: dict[str, Tensors]):
    """The same as repos on the stand-in of the Hub; the child's card names its parent."""
    for name, tensors in nets.items():
        files = {"model.safetensors": save(tensors), "config.json": b"{}"}
        if name == "child":
            files["README.md"] = b"---\nbase_model: lab/parent\nbase_model_relation: finetune\n---\n# A child\n"
        hub.add(f"lab/{name}", files)
    return hub
