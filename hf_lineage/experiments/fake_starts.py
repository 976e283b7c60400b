"""What fake initialisations know of a direction (Neural Phylogeny, ICLR 2025): by kind, by steps, beside the truth.

A fake initialisation z calls that one of two models the parent that is nearer to z. Families are `train_trees`', whose
roots' true starts can be made again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..trees.clustering import (
    DRAWS,
    PROXIES,
    RHOS,
    RULES,
    Points,
    after_clustering,
    along_clustering,
    fake_distances,
    scikit_learn,
)
from .families import HEADS, Family, Member, fine_tuned, initialised, sizes_of
from .questions import line_of_descent

Weights = Mapping[str, Tensor]


def weights_of(member: Member) -> Weights:
    """The matrices of a member's trunk."""
    return matrices(load_file(member.path / "model.safetensors"), member.architecture)


def matrices(tensors: Weights, architecture: str) -> Weights:
    """Without the head and what has fewer than two dimensions."""
    head = HEADS[architecture]
    return {n: t.double() for n, t in sorted(tensors.items()) if t.ndim >= 2 and not n.startswith(head)}


def points_of(models: Sequence[Weights]) -> Points:
    """Models as points, given by inner products matrix by matrix."""
    grams, shapes = [], []
    for name, first in models[0].items():
        rows = torch.stack([model[name].flatten() for model in models])
        grams.append((rows @ rows.T).numpy())
        shapes.append(tuple(first.shape))
    return Points(tuple(grams), tuple(shapes))


def true_start(member: Member) -> Weights:
    """The random weights that a root was trained from."""
    return matrices(initialised(member, sizes_of(member)).state_dict(), member.architecture)


def direction(parent: Weights, child: Weights, start: Weights, seed: int = 0) -> dict[str, Any]:
    """Who of the two is nearer to what: of each kind the share of draws in which the parent is (`draws`), and whether
    each rule names it; the true start's word (`oracle`); the relative change of the norm, ‖child‖/‖parent‖ − 1."""
    points = points_of([parent, child])
    found: dict[str, Any] = {}
    pooled = []
    for proxy in PROXIES:
        distances = fake_distances(points, proxy, DRAWS, seed)
        pooled.append(distances)
        found[proxy] = {
            "draws": float((distances[:, 0] < distances[:, 1]).mean()),
            **{rule: decide(distances) == 0 for rule, decide in RULES.items()},
        }
    found["pooled"] = {rule: decide(np.vstack(pooled)) == 0 for rule, decide in RULES.items()}
    away = [sum(float((model[n] - start[n]).square().sum()) for n in start) for model in (parent, child)]
    norms = np.sqrt(points.norms2)
    return found | {"oracle": away[0] < away[1], "norm": float(norms[1] / norms[0] - 1)}


def directions(family: Family) -> list[dict[str, Any]]:
    """`direction` of every true edge of a family."""
    load = functools.cache(weights_of)
    starts = {str(root.path): true_start(root) for root in family.roots}
    by_name = {member.name: member for member in family.members}
    rows = []
    for child in family.children:
        parent, root = by_name[str(child.parent)], line_of_descent(child, family.members)[-1]
        about = {"decays": child.recipe["weight_decay"] > 0, "lr": child.recipe["lr"]}
        rows.append(direction(load(parent), load(child), starts[root]) | about)
    return rows


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares over edges: of each kind, right by majority; `disagree`: mean share of its draws that its majority
    outvotes; `kinds disagree`: edges on which the four majorities are not one; the oracle, and the two rules pooled."""
    every = list(rows)
    if not every:
        return {}
    mean = {proxy: float(np.mean([row[proxy]["majority"] for row in every])) for proxy in PROXIES}
    split = {
        f"{proxy} disagree": float(np.mean([min(row[proxy]["draws"], 1 - row[proxy]["draws"]) for row in every]))
        for proxy in PROXIES
    }
    return {
        **mean, **split,
        "kinds disagree": float(np.mean([len({row[proxy]["majority"] for proxy in PROXIES}) > 1 for row in every])),
        **{rule: float(np.mean([row["pooled"][rule] for row in every])) for rule in RULES},
        "oracle": float(np.mean([row["oracle"] for row in every])),
        "norm": float(np.mean([row["norm"] for row in every])), "edges": len(every),
    }  # fmt: skip


def by_steps(root: Member, child: Member, steps: Sequence[int], decay: float) -> dict[int, dict[str, Any]]:
    """`direction` of a root and its child, trained by the child's recipe for so many steps, by Adam(W) with a decay."""
    start, parent = true_start(root), weights_of(root)
    found = {}
    for count in steps:
        recipe = {**child.recipe, "steps": count, "optimizer": "adamw", "lr": 1e-3, "weight_decay": decay}
        plan = dataclasses.replace(child, recipe=recipe)
        tensors = fine_tuned(plan, root, sizes_of(child)).state_dict()
        found[count] = direction(parent, matrices(tensors, child.architecture), start)
    return found


def clusterings(family: Family) -> dict[str, Any]:
    """Accuracies of k-means after and along with the true number of clusters: of both rules, of each ρ and of the ρ
    that is chosen; `moved`: at how many ρ > 0 the clusters are others than at ρ = 0."""
    points = points_of([weights_of(member) for member in family.members])
    index = {member.name: i for i, member in enumerate(family.members)}
    truth = {index[m.name]: index[str(m.parent)] for m in family.children}
    count = len(family.roots)
    found: dict[str, Sequence[int | None]] = {
        f"after, {rule}": after_clustering(points, "kmeans", clusters=count, rule=rule) for rule in RULES
    }
    along = {rho: along_clustering(points, "kmeans", clusters=count, rho=rho) for rho in (*RHOS, None)}
    found |= {f"along, rho {'chosen' if rho is None else rho}": parents for rho, parents in along.items()}
    labels = {rho: _labels(parents) for rho, parents in along.items() if rho is not None}
    agree = scikit_learn().metrics.adjusted_rand_score
    moved = sum(agree(labels[0.0], each) < 1 for each in labels.values())
    return {name: accuracies(parents, truth) for name, parents in found.items()} | {"moved": moved}


def _labels(parents: Sequence[int | None]) -> list[int]:
    return [i if parent is None else parent for i, parent in enumerate(parents)]


def accuracies(parents: Sequence[int | None], truth: Mapping[int, int]) -> dict[str, float]:
    """Of all true edges (child → parent): those found in either direction (`lineage`), in theirs (`overall`), and of
    the found ones those in theirs (`direction`, 0 where none was found)."""
    said = {(child, parent) for child, parent in enumerate(parents) if parent is not None}
    either = sum((c, p) in said or (p, c) in said for c, p in truth.items())
    right = sum((c, p) in said for c, p in truth.items())
    return {"lineage": either / len(truth), "overall": right / len(truth), "direction": right / max(1, either)}
