"""Layers that stand elsewhere: whether two models have other numbers of layers, or some of them in another position.

Only what was read anyway is looked at: the kept rows of the candidate's layers that bear the number of one of the
child's. Blocks of several candidates, and those of other numbers, are `block_matching.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..architecture.describe import Architecture

if TYPE_CHECKING:
    from .evidence import PairReadings

ELSEWHERE = 0.5  # correlation of two layers from which they are the same one
MIN_ROWS = 8  # rows that both layers must have kept


def changed_layers(
    pair: PairReadings, theirs: Architecture, partners: Mapping[str, str], lined_up: float
) -> dict[str, Any] | None:
    """`{"child": layers, "candidate": layers, "moved": {child's layer: candidate's}}`; None where nothing differs.

    Counted are the layers of lists of which something lines up: a tower that only one of the two has is no change of
    depth. theirs: the candidate's architecture. partners: the child's tensor → the candidate's. lined_up: correlation
    of a layer with the one of the same number from which it stands where it stood. A layer that does not is compared
    with all others of the candidate, matrix by matrix, over the rows that were kept of both: r = ⟨a, b⟩/(‖a‖‖b‖),
    pooled over matrices. O(layers² · kept rows).
    """
    mine = _numbers(pair.architecture.blocks, partners)
    its = _numbers(theirs.blocks, partners.values())
    units = pair.units()
    layers: dict[int, dict[str, str]] = {}
    for name in units:
        path = pair.architecture.blocks[name]
        if (number := _number(path)) is not None:
            layers.setdefault(number, {})[name.replace(path, "", 1)] = name
    moved = {}
    for number, names in layers.items():
        if _pooled([units[name] for name in names.values()]) < lined_up:
            scores = {
                k: _pooled(_rows_of_both(pair, units, names, other)) for k, other in layers.items() if k != number
            }
            best = max(scores, key=lambda k: scores[k], default=None)
            if best is not None and scores[best] >= ELSEWHERE:
                moved[str(number)] = best
    if len(mine) == len(its) and not moved:
        return None
    return {"child": len(mine), "candidate": len(its), "moved": moved}


def _rows_of_both(
    pair: PairReadings, units: Mapping[str, tuple[Tensor, Tensor]], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> list[tuple[Tensor, Tensor]]:
    """The child's rows of one layer and the candidate's of another, where the same rows were kept."""
    found = []
    for part in ours.keys() & theirs.keys():
        rows, others = (pair.readings.units.rows[name] for name in (ours[part], theirs[part]))
        both = sorted({*rows} & {*others})
        a, b = units[ours[part]][0], units[theirs[part]][1]
        if len(both) >= MIN_ROWS and a.shape[1] == b.shape[1]:
            at, other = ({row: i for i, row in enumerate(kept)} for kept in (rows, others))
            found.append((a[[at[row] for row in both]], b[[other[row] for row in both]]))
    return found


def _pooled(matrices: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The cosine of all matrices together; 0 where there are none."""
    sums = torch.zeros(3, dtype=torch.float64)
    for a, b in matrices:
        wide, other = a.double(), b.double()
        sums += torch.stack([(x * y).sum() for x, y in ((wide, other), (wide, wide), (other, other))])
    scale = float((sums[1] * sums[2]).sqrt())
    return float(sums[0]) / scale if scale > 0 else 0.0


def _numbers(blocks: Mapping[str, str], names: Iterable[str]) -> set[str]:
    """The numbered layers of the lists in which some of the tensors stand; blocks: tensor → its layer's path."""
    numbered = {path for path in {*blocks.values()} if _number(path) is not None}
    lists = {blocks[name].rpartition(".")[0] for name in names if blocks.get(name) in numbered}
    return {path for path in numbered if path.rpartition(".")[0] in lists}


def _number(path: str) -> int | None:
    """The number of a layer by its path; None of stem, head and what has no number."""
    found = re.search(r"\.(\d+)$", path)
    return int(found[1]) if found else None
