"""The disguise benchmark: is a child still found by its parent after what a launderer or a deployer does to it?

Every child of a family is disguised in each way; unrelated networks of the same configuration, data and recipe are
compared with one another. A method's score of a true pair counts as found where it is above the score that at most
0.1 % of the unrelated pairs exceed, whatever the method's scale is.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor

from ..answers.base import Progress
from ..tasks.trace import trace
from .changes import CHANGES, changed_tensors
from .disguises import DISGUISES
from .families import Family, Member, train_family, train_unrelated
from .lines import Asked
from .protocol import Experiment

if TYPE_CHECKING:
    from ..answers.lineage import Candidate

UNRELATED = "unrelated"  # the column of false pairs
FALSE_POSITIVES = 0.001


def train(experiment: Experiment, folder: Path, progress: Progress | None = None) -> tuple[list[Asked], dict[str, int]]:
    """Disguised children with their parents, column by column, and pairs of unrelated networks."""
    own = experiment.parents[0]
    family = train_family(
        folder / "family", experiment.architecture, roots=own["roots"], children=own["children"], seed=experiment.seed,
        sizes=experiment.sizes, claim=False, progress=progress,
    )  # fmt: skip
    strangers = train_unrelated(
        folder / "unrelated", experiment.architecture, own["unrelated"], seed=experiment.seed + 1,
        sizes=experiment.sizes, progress=progress,
    )  # fmt: skip
    asked: list[Asked] = []
    for column in experiment.columns:
        for number, child in enumerate(family.children):
            disguised = _disguise(
                child, column.name, family, folder / "disguised" / column.name, experiment.seed + number
            )
            if disguised is not None:
                parent = family.member(child.parent or "")
                asked.append(Asked(column.name, disguised, (parent,), parent))
    pairs = [*itertools.combinations(strangers.members, 2)]
    pairs = random.Random(experiment.seed).sample(pairs, min(len(pairs), experiment.children))
    asked += [Asked(UNRELATED, replace(one, name=f"{one.name} {other.name}"), (other,), other) for one, other in pairs]
    return asked, {"family": family.dropped, UNRELATED: strangers.dropped}


def _disguise(child: Member, way: str, family: Family, folder: Path, seed: int) -> Member | None:
    """The child in that disguise, in a folder of its own; None where the way does not apply to its architecture."""
    path = folder / child.name
    if not (path / "model.safetensors").is_file():
        tensors = _tensors(child, way, family, seed)
        if tensors is None:
            return None
        path.mkdir(parents=True, exist_ok=True)
        shutil.copy(child.path / "config.json", path)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path / "model.safetensors")
    return replace(child, path=path)


def _tensors(child: Member, way: str, family: Family, seed: int) -> Mapping[str, Tensor] | None:
    if way in CHANGES:
        return changed_tensors(child, way, seed)
    tensors = load_file(child.path / "model.safetensors")
    if way in DISGUISES:
        return DISGUISES[way](tensors, child.architecture, seed)
    share = float(way.partition(" ")[0]) / 100  # "50 % of an unrelated model"
    other = next(root for root in family.roots if root.name != child.parent)
    theirs = load_file(other.path / "model.safetensors")
    return {
        name: torch.lerp(value, theirs[name], share) if _alike(value, theirs.get(name)) else value
        for name, value in tensors.items()
    }


def _alike(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.is_floating_point() and value.shape == other.shape


def weights(question: Asked) -> dict[str, list[float]]:
    """−log₁₀ p of the pair, and whether `trace` says that the two are related: 1 or 0."""
    found = trace(question.child.path, [question.candidates[0].path], sample="all").candidates[0]
    return {"weights": [_strength(found)], "weights, as trace says": [float(found.relation != "none")]}


def _strength(candidate: Candidate) -> float:
    return 0.0 if candidate.log10_p is None else -candidate.log10_p


def found_shares(
    asked: Sequence[Asked], scores: Sequence[Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Method → column → (share found, half the width of its 95 % Wilson interval); of `UNRELATED` the share taken."""
    by_column: dict[str, dict[str, list[float]]] = {}
    for question, of in zip(asked, scores, strict=True):
        for method, values in of.items():
            by_column.setdefault(method, {}).setdefault(question.column, []).append(values[0])
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for method, columns in by_column.items():
        edge = threshold(columns[UNRELATED])
        for column, values in columns.items():
            hits = sum(value > edge for value in values)
            found.setdefault(method, {})[column] = (hits / len(values), half_width(hits, len(values)))
    return found


def threshold(unrelated: Sequence[float]) -> float:
    """The smallest score that at most 0.1 % of the unrelated pairs exceed.

    >>> threshold([float(i) for i in range(2000)])
    1997.0
    """
    order = sorted(unrelated, reverse=True)
    return order[int(FALSE_POSITIVES * len(order))]


def half_width(hits: int, count: int) -> float:
    """Half the width of the 95 % interval of a share (Wilson 1927).

    >>> round(half_width(300, 300), 4)
    0.0063
    """
    low, high = binomtest(hits, count).proportion_ci(method="wilson")
    return float(high - low) / 2
