"""The multilayer perceptron that a config of our own describes: what `hf-lineage demo` trains, and no library knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

MAX_WIDTH, MAX_LAYERS = 1 << 16, 64  # of a network that a config may ask for


class FullyConnected(nn.Module):
    """`fc1`, `fc2`, … with `relu` after each, then `head`; an image is read as one row of pixels."""

    def __init__(self, inputs: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        for index, (before, after) in enumerate(zip([inputs, *widths], widths, strict=False), start=1):
            self.add_module(f"fc{index}", nn.Linear(before, after))
            if index == 1:
                self.relu = nn.ReLU()
        self.head = nn.Linear([inputs, *widths][-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1)
        for name, layer in self.named_children():
            if name.startswith("fc"):
                hidden = self.relu(layer(hidden))
        return self.head(hidden)

    @property
    def side(self) -> int | None:
        """Pixels of the edge of a square image with one channel that it reads; None where its inputs make none."""
        first = self.get_submodule("fc1")
        assert isinstance(first, nn.Linear)
        pixels = first.in_features
        return isqrt(pixels) if isqrt(pixels) ** 2 == pixels else None


def is_described(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of ours: `{"architecture": "fc", "model_args": {"widths": [...]}}`."""
    arguments = config.get("model_args")
    return config.get("architecture") == "fc" and isinstance(arguments, dict) and "widths" in arguments


def from_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], who: str) -> FullyConnected:
    """The network of a config, its inputs as the first matrix of `shapes` has them. Raises `CheckpointError`."""
    widths, classes = config["model_args"]["widths"], config.get("num_classes")
    first = shapes.get("fc1.weight", ())
    sizes = [*widths, classes, *first[1:]] if isinstance(widths, list) else []
    fits = 2 < len(sizes) <= MAX_LAYERS and all(type(size) is int and 0 < size <= MAX_WIDTH for size in sizes)
    if not fits or len(first) != 2:
        raise CheckpointError(f"Expected the config of {who} to describe a multilayer perceptron, got other sizes.")
    return FullyConnected(first[1], widths, sizes[len(widths)])
