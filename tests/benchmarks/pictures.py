"""The pictures of README and docs, each for a light and for a dark page.

    hf-lineage demo --out FAMILY
    python tests/benchmarks/pictures.py FAMILY SOURCES

FAMILY, SOURCES: as for spaces_app/examples/make.py. Writes results/{demo,tree,layers}.png and their dark variants.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread, imsave
from safetensors.torch import load_file, save_file

import hf_lineage as hl
from hf_lineage.experiments.merges import linear, passthrough
from hf_lineage.report.plots import plot_family

RESULTS = Path(__file__).parent / "results"
NAMES = ("demo", "tree", "layers")
PAGE = 0.06  # lightness of a dark page, which white becomes


def dark(picture: np.ndarray) -> np.ndarray:
    """White becomes dark and black white; hues stay. picture: (rows, columns, 3), in [0, 1].

    Lightness l = (max + min)/2 becomes 1 − l, all channels moved alike, then [0, 1] is mapped to [PAGE, 1].
    """
    lightness = (picture.max(-1, keepdims=True) + picture.min(-1, keepdims=True)) / 2
    return PAGE + (1 - PAGE) * np.clip(picture + 1 - 2 * lightness, 0, 1)


def load(name: str) -> np.ndarray:
    return imread(RESULTS / f"{name}.png")[..., :3]


def add_average(family: Path) -> None:
    """0.6 of one child and 0.4 of another's, beside them."""
    one, other = (load_file(family / f"fc-child-{i}-1" / "model.safetensors") for i in (0, 1))
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    (family / "average").mkdir(exist_ok=True)
    merged = {name: 0.6 * one[name] + 0.4 * other[name] for name in shared}
    save_file(merged, family / "average" / "model.safetensors")


def patchwork(sources: Path, folder: Path) -> hl.LayerLineage:
    """Blocks of one model, some of a second from elsewhere, weighted sums with a third, and a new one; a little noise."""
    homes = [sources / "family" / f"vit-root-{i}" for i in range(3)]
    first, second, third = (load_file(home / "model.safetensors") for home in homes)
    places = [*((0, i) for i in range(4)), (1, 7), (1, 8), (1, 9), *((2, i) for i in range(6, 11)), (0, 0)]
    child = passthrough([first, second, linear([first, third], [0.6, 0.4])], places, "blocks.")
    draw = torch.Generator().manual_seed(9)
    for name, tensor in child.items():
        new = name.startswith(f"blocks.{len(places) - 1}.")
        child[name] = (0 if new else tensor) + (1 if new else 0.02) * tensor.std() * torch.randn(
            tensor.shape, generator=draw
        )
    (folder / "patchwork").mkdir()
    save_file(child, folder / "patchwork" / "model.safetensors")
    (folder / "patchwork" / "config.json").write_bytes((homes[0] / "config.json").read_bytes())
    return hl.trace_layers(folder / "patchwork", homes)


def main(demo: Path, sources: Path) -> None:
    """Draw all of them."""
    family = demo / "family"
    found = json.loads((demo / "lineage.json").read_text())["lineages"]
    plot_family([hl.Lineage.from_dict(lineage) for lineage in found], RESULTS / "demo.png")
    add_average(family)
    os.chdir(demo.parent)  # names as somebody who ran the demo types them
    models = sorted(f"./{demo.name}/family/{path.name}" for path in family.iterdir() if path.is_dir())
    hl.phylogeny(models).plot(RESULTS / "tree.png")
    with tempfile.TemporaryDirectory() as text:
        patchwork(sources, Path(text)).plot(RESULTS / "layers.png")
    for name in NAMES:
        imsave(RESULTS / f"{name}-dark.png", dark(load(name)))


if __name__ == "__main__":
    main(*(Path(name).absolute() for name in sys.argv[1:3]))
