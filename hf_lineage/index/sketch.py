"""What an index keeps of a model: sketches of a few of its layers, of which the permutation test can be made.

The test of two models needs C = A Bᵀ, inner products of hidden units of each (`weights/permutation_test.py`). Any fixed
map of rows keeps it valid: what was one uniformly random matching of units still is. So of a layer `UNITS` rows at a
fixed place are taken, each is centred, projected to `NUMBERS` numbers by fixed random signs, the rows are centred over
the units and scaled to length 1 (as the test does), and rounded to int8: 512 bytes. The inner product of two sketches
is then the statistic t = tr C of the test, so that the nearest neighbours by inner product are the best candidates, and
the e-value of `weights/proof.py` is made of the sketches alone. See docs/methods.md, *An index of sketches*.

Two models can be compared where they have a layer of the same shape: the shape is the key. At most `MOST` layers are
kept: of the shapes with the most parameters in turn one, the first layer of a shape before the last, the last before
the middle, so that models of other depths and with other towers share some. Of grouped convolutions and of fewer than
2·`UNITS` units none is made, as these cannot be tested so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ..architecture.describe import Architecture, Shaped
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..weights.permutation_test import live_units
from ..weights.proof import log10_e_value
from ..weights.sampling import MAX_ROW, seeded_random

VERSION = 1  # of all that is fixed here: an index of another version cannot be compared
UNITS, NUMBERS = 16, 32
MOST = 4  # layers of one model
DEPTHS = (0.0, 1.0, 0.5, 0.25)  # of the layers of one shape, in the order in which they are chosen
SCALE = 127


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Of one layer. key: rows x width of its matrix. slot: its number among those of its shape that were chosen: the
    same slot is the same relative depth. layer: which hidden units, as the architecture calls them. values: (UNITS,
    NUMBERS) int8; a unit that is padding or dead is all 0."""

    key: str
    slot: int
    layer: str
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Place:
    """The rows of one matrix that a sketch is made of: from `start` on, `UNITS` of them."""

    key: str
    slot: int
    layer: str
    name: str
    start: int
    width: int

    @property
    def slice(self) -> Slice:
        """The elements that are read."""
        return Slice(self.name, self.start * self.width, (self.start + UNITS) * self.width)


def places(entries: Mapping[str, Shaped], known: Architecture) -> list[Place]:
    """Which rows of which matrices are sketched, chosen by names and shapes alone. At most `MOST`."""
    shapes: dict[str, list[tuple[str, str]]] = {}
    size: dict[str, int] = {}
    for order in sorted(known.orders, key=_natural):
        name = min(known.orders[order], key=_natural)
        rows, width = entries[name].shape[0], entries[name].count // max(1, entries[name].shape[0])
        if order in known.groups or rows < 2 * UNITS or not 1 < width <= MAX_ROW:
            continue
        key = f"{rows}x{width}"
        shapes.setdefault(key, []).append((order, name))
        size[key] = size.get(key, 0) + entries[name].count
    found: list[Place] = []
    keys = sorted(shapes, key=lambda key: (-size[key], key))
    for slot, depth in enumerate(DEPTHS):
        for key in keys:
            order, name = shapes[key][round(depth * (len(shapes[key]) - 1))]
            if len(found) < MOST and order not in {place.layer for place in found}:
                rows, width = (int(part) for part in key.split("x"))
                start = seeded_random(VERSION, key).randrange(rows - UNITS + 1)
                found.append(Place(key, slot, order, name, start, width))
    return found


def sketches(view: Checkpoint) -> list[Sketch]:
    """All of one model, whose fused tensors are cut (`Session.view`); reads their rows and no more."""
    chosen = places(view, view.architecture)
    read = view.read([place.slice for place in chosen])
    return [sketch(place, rows) for place, rows in zip(chosen, read, strict=True)]


def sketch(place: Place, elements: torch.Tensor) -> Sketch:
    """The sketch of one place, of its UNITS·width elements, any float dtype."""
    values = elements.reshape(UNITS, place.width).to(torch.float32)
    live = live_units(values).numpy()
    kept = values[torch.from_numpy(live)].numpy().astype(np.float64)
    kept -= kept.mean(1, keepdims=True)
    kept = kept @ _signs(kept.shape[1]) if len(kept) else np.zeros((0, NUMBERS))
    kept = kept - kept.mean(0) if len(kept) else kept
    length = np.linalg.norm(kept, axis=1, keepdims=True)
    result = np.zeros((UNITS, NUMBERS), dtype=np.int8)
    result[live] = np.rint(SCALE * kept / np.where(length > 0, length, 1.0)).astype(np.int8)
    return Sketch(place.key, place.slot, place.layer, result)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean cosine of units of the same number, in [−1, 1]: tr C over `UNITS`. (UNITS, NUMBERS) int8 each."""
    return float((one.astype(np.float64) * other).sum() / (UNITS * SCALE**2))


def log10_e(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """log10 of the e-value that two models are unrelated, of the sketches of some of their layers.

    Its mean is at most 1 for unrelated models (`weights/proof.py`); layers multiply. Units that are 0 in either are
    left out. 0.0 where nothing is left.
    """
    products = []
    for one, other in pairs:
        live = one.any(1) & other.any(1)
        if live.sum() > 1:
            a, b = (x[live].astype(np.float64) for x in (one, other))
            products.append((a @ b.T)[None] / SCALE**2)
    return log10_e_value(products)


@cache
def _signs(width: int) -> np.ndarray:
    """(width, NUMBERS) of ±1, the same for ever: bits of SHAKE-256."""
    text = f"hf_lineage/index/{VERSION}/{width}".encode()
    bits = np.frombuffer(hashlib.shake_256(text).digest(width * NUMBERS // 8), dtype=np.uint8)
    return 2.0 * np.unpackbits(bits).reshape(width, NUMBERS) - 1.0


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layers.10 behind layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
