"""How well `phylogeny` finds the trees of families with a known truth, and the fit of its numbers.

    python -m hf_lineage.experiments.phylogenies FOLDER      train families in FOLDER and fit trees/numbers.json on them

The families that are fitted on and those of the tests share no seed, recipe or width.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ..answers.phylogeny import Phylogeny
from ..tasks.phylogeny import read_aligned_models
from ..trees.build import evidence_of_edges
from ..trees.methods import METHODS
from ..trees.reading import AlignedModels
from ..trees.rooting import EDGE, PATH, Signals, features
from ..trees.spanning import Edge, edge, resolve_contradictions, spanning_tree
from ..trees.without_gradient import WithoutGradient
from .families import Family, Member, train_trees

ReportedEdge = tuple[str, str, bool]  # parent, child, whether directed

NUMBERS = Path(__file__).parents[1] / "trees" / "numbers.json"
RIDGE_PENALTY = 0.1  # of the fits: keeps the weights of nearly constant inputs near 0
DIRECTED_PROBABILITY = 0.95  # of a direction, from which an edge is directed: chosen, not fitted

FITTED: dict[str, dict[str, Any]] = {
    "fc": {"seed": 61, "sizes": {"widths": [768, 192, 96]}},
    "fc-light": {"seed": 62, "shorten": 0.1, "branching": (4, 2, 1), "sizes": {"widths": [768, 192, 96]}},
    "resnet": {"seed": 61}, "resnet-light": {"seed": 62, "shorten": 0.1, "branching": (4, 2, 1)},
    "vit": {"seed": 61},
    "llama": {"seed": 61}, "llama-light": {"seed": 62, "shorten": 0.1, "branching": (4, 2, 1)},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the true edges were found.

    edges: true ones.  found: of them, ignoring direction.  directed: of the found ones, those with a direction;
    right: with the right one.  reported: edges of the answer.  unrelated: of them, between different families.
    """

    edges: int
    found: int
    directed: int
    right: int
    reported: int
    unrelated: int

    @property
    def lineage(self) -> float:
        """True edges found, ignoring direction (Neural Phylogeny's lineage accuracy)."""
        return self.found / self.edges if self.edges else 1.0

    @property
    def direction(self) -> float:
        """Of the found edges, those with the right direction: one without a direction counts as not right."""
        return self.right / self.found if self.found else 1.0

    @property
    def overall(self) -> float:
        """True edges found with the right direction."""
        return self.right / self.edges if self.edges else 1.0

    @property
    def undirected(self) -> float:
        """Of the found edges, those left without a direction."""
        return 1 - self.directed / self.found if self.found else 0.0


def reported_edges(tree: Phylogeny) -> list[ReportedEdge]:
    """The edges of an answer, copies left out."""
    return [(e.parent, e.child, e.directed) for e in tree.edges if e.relation != "identical"]


def by_method(aligned: AlignedModels, method: str, alpha: float = 1e-2) -> list[ReportedEdge]:
    """The edges that a method finds among models that were read once for all methods."""
    names = [model.ref.name for model in aligned.models]
    return [
        (names[b.parent] if b.parent >= 0 else f"?{-b.parent}", names[b.child] if b.child >= 0 else f"?{-b.child}",
         b.direction is not None)
        for b in METHODS[method](aligned, alpha, aligned.seed).branches
    ]  # fmt: skip


def score(edges: Iterable[ReportedEdge], members: Iterable[Member]) -> Score:
    """Compare edges between members' paths with their true parents; one whose parent is not among them is a root."""
    by_path = {str(member.path): member for member in members}
    names = {member.name: path for path, member in by_path.items()}
    truth = {(names[m.parent], path) for path, m in by_path.items() if m.parent in names}
    either = {frozenset(pair) for pair in truth}
    every = list(edges)
    found = [each for each in every if frozenset(each[:2]) in either]
    directed = [(parent, child) for parent, child, has_direction in found if has_direction]
    family = {path: _root(path, {child: parent for parent, child in truth}) for path in by_path}
    unrelated = sum(family[a] != family[b] for a, b, _ in every if a in family and b in family)
    return Score(
        len(truth), len({frozenset(each[:2]) for each in found}), len(directed),
        sum(pair in truth for pair in directed), len(every), unrelated,
    )  # fmt: skip


def _root(path: str, parents: Mapping[str, str]) -> str:
    while path in parents:
        path = parents[path]
    return path


def fit(families: Mapping[str, Family]) -> dict[str, Any]:
    """The numbers of `trees/numbers.json`: θ of the root by maximum likelihood over the true trees, and the logistic
    regression of an edge's probability over the edges that the method finds."""
    roots: list[tuple[np.ndarray, int]] = []
    rows: list[np.ndarray] = []
    right: list[bool] = []
    for family in families.values():
        aligned = read_aligned_models([member.path for member in family.members])
        signals, without_gradient = (
            Signals(aligned.statistics),
            WithoutGradient([matrix.units for matrix in aligned.statistics.matrices]),
        )
        for members, root, truth in groups(aligned, family):
            if len(members) < 3:
                continue
            roots.append((features(signals, truth, members), members.index(root)))
            inner = np.ix_(members, members)
            information, pieces = (
                aligned.statistics.information[inner],
                aligned.statistics.pieces[:, inner[0], inner[1]],
            )
            tree = resolve_contradictions(spanning_tree(information), information, members, without_gradient)
            for (a, b), row in evidence_of_edges(tree, pieces, members, information, without_gradient).items():
                rows.append(row)
                right.append(edge(members[a], members[b]) in truth)
    theta = _maximise(lambda theta: sum(_log_softmax(x @ theta, k) for x, k in roots), EDGE + PATH)
    x, y = np.column_stack([np.ones(len(rows)), rows]), np.where(right, 1.0, -1.0)
    logit = _maximise(lambda w: float(-np.logaddexp(0, -y * (x @ w)).sum()), x.shape[1])
    return {
        "root": {"theta": [round(float(t), 4) for t in theta], "sure": DIRECTED_PROBABILITY},
        "edge": {"offset": round(float(logit[0]), 4), "weights": [round(float(w), 4) for w in logit[1:]]},
        "fitted": {
            "date": time.strftime("%Y-%m-%d"), "groups": len(roots), "edges": len(rows), "wrong": right.count(False),
            "families": {name: FITTED[name] for name in families},
        },
    }  # fmt: skip


def groups(aligned: AlignedModels, family: Family) -> list[tuple[list[int], int, set[Edge]]]:
    """(models, root, true edges) of each of the family's trees, as indices of `aligned`."""
    number = {str(model.ref.name): i for i, model in enumerate(aligned.models)}
    index = {member.name: number[str(member.path)] for member in family.members}
    parents = {index[m.name]: index[m.parent] for m in family.children if m.parent}
    found = []
    for root in sorted(index[m.name] for m in family.roots):
        members = [root]
        for i in members:
            members += sorted(child for child, parent in parents.items() if parent == i)
        found.append((sorted(members), root, {edge(i, parents[i]) for i in members if i in parents}))
    return found


def _log_softmax(scores: np.ndarray, k: int) -> float:
    return float(scores[k] - np.logaddexp.reduce(scores))


def _maximise(likelihood: Callable[[np.ndarray], float], size: int) -> np.ndarray:
    return minimize(lambda w: RIDGE_PENALTY * float(w @ w) - likelihood(w), np.zeros(size), method="BFGS").x


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    families = {
        name: train_trees(folder / name, name.split("-")[0], other_recipes=True, **options)
        for name, options in FITTED.items()
    }
    NUMBERS.write_text(json.dumps(fit(families), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
