"""The parts of a model that are models themselves, and whether two models have no more in common than some of them.

A text encoder, a vision tower or an autoencoder is often a frozen copy that many models have: it shows nothing of where
the rest comes from. See docs/methods.md, *A shared part*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..architecture.describe import natural_key
from .evidence import candidate_test, has_ample_power, orders_read

if TYPE_CHECKING:
    from .evidence import PairReadings, WeightsEvidence

MAX_DEPTH = 8  # of a component's path
LAYERS = "layers"  # what lists at the top of a model are called
LEAST = 0.02  # of a model's elements, that a component has
ALIKE, UNLIKE = 0.5, 0.1  # mean correlation from which a component is shared, and below which it may be another one
# one of the numbered lists of a network, or one of its stages: no component by itself
_STAGE = re.compile(r"(?:^|_)(?:layers?|blocks?|stages?|h|resblocks|denseblock)\d*$|^\d+$")


def components(counts: Mapping[str, int]) -> dict[str, str]:
    """Which component each tensor is in, by the first word of its name that is not the same in nearly all of them.

    counts: name → elements. A component has at least `LEAST` of them, and numbered blocks; lists and stages that stand
    side by side (layer1 and layer2, down_blocks and up_blocks) are one. Of a model of one component nothing is said.

    >>> components({"model.layers.0.w": 6, "model.vision.blocks.0.w": 3, "model.head.w": 1})
    {'model.layers.0.w': 'model', 'model.vision.blocks.0.w': 'model.vision'}
    >>> components({"layer1.0.w": 2, "layer2.0.w": 4})
    {}
    """
    total, names = sum(counts.values()), {name: name.split(".") for name in counts}
    depth, sizes = 0, Counter[str]()
    while depth < MAX_DEPTH:
        sizes = Counter()
        for name, count in counts.items():
            sizes[".".join(names[name][: depth + 1])] += count
        largest = max(sizes, key=lambda path: (sizes[path], path), default="")
        if sizes[largest] < (1 - LEAST) * total or _STAGE.search(largest.rpartition(".")[2]):
            break
        depth += 1
    of = {}
    for name, parts in names.items():
        if any(part.isdecimal() for part in parts[depth:]):
            own = depth if _STAGE.search(parts[depth]) else depth + 1
            of[name] = ".".join(parts[:own]) or LAYERS
    held = Counter[str]()
    for name, component in of.items():
        held[component] += counts[name]
    known = {component for component, count in held.items() if count >= LEAST * total}
    return {name: component for name, component in of.items() if component in known} if len(known) > 1 else {}


def shared_part(
    pair: PairReadings, evidence: WeightsEvidence, sizes: Mapping[str, int], alpha: float, seed: int
) -> list[str] | None:
    """The components that two related models share, where these are all: the largest one that both have is unrelated.

    sizes: elements of each tensor of the child's trunk. The largest component is unrelated if its matrices correlate
    with less than `UNLIKE` on average, and the permutation test of its hidden units, with ample power
    (`has_ample_power`), gives p > alpha. None where that is not so.
    """
    of = components(sizes)
    if not of:
        return None
    matrices: dict[str, list[str]] = {}
    for name in pair.matrices:
        if name in of:
            matrices.setdefault(of[name], []).append(name)
    if len(matrices) < 2:
        return None
    r = {part: _correlation(evidence, names, sizes) for part, names in matrices.items()}
    largest = max(matrices, key=lambda part: (sum(sizes[name] for name in matrices[part]), part))
    shared = sorted((part for part in r if r[part] >= ALIKE), key=natural_key)
    if r[largest] >= UNLIKE or not shared:
        return None
    usable = [name for name in pair.usable if of.get(name) == largest]
    groups = orders_read(pair.readings, pair.architecture, usable)
    entries = sum(pair.readings.units.matrix(0, name).numel() for names in groups.values() for name in names)
    test = candidate_test(pair.readings, pair.architecture, pair.candidate, usable, seed)
    unrelated = test is not None and test.p > alpha and has_ample_power(entries)
    return shared if unrelated else None


def _correlation(evidence: WeightsEvidence, names: list[str], sizes: Mapping[str, int]) -> float:
    known = [(sizes[name], evidence.tensors[name]["correlation"]) for name in names]
    known = [(count, r) for count, r in known if r == r]  # not a constant's
    return sum(count * r for count, r in known) / sum(count for count, _ in known) if known else 0.0
