"""The learning-free method measured: Neural Lineage's Table 1 and Fig. 3 on our own families.

pytest -m large tests/test_learning_free.py        about 20 minutes on 2 cores; the tests run a reduced form.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import hf_lineage as hl
from hf_lineage.experiments.families import Family, task_of
from hf_lineage.experiments.questions import network
from hf_lineage.features.networks import Images
from hf_lineage.features.probes import probes as made
from hf_lineage.features.similarity import METRICS

if TYPE_CHECKING:
    from conftest import Nursery

ARCHITECTURES = ["fc", "resnet", "vit"]
FORMS = ("plain", "taylor", "exact")
FOLDS = 5
PROBES = ("own data", "synthetic")
STEPS: tuple[float | str, ...] = ("auto", 0.01, 0.1)  # the paper's grid: 0.001, 0.01, 0.1


def questions(family: Family, step: float | str, probes: str, most: int, count: int = 128) -> list[dict[str, Any]]:
    """Each child among all roots, by features alone: scores of every metric and form, true parent or not."""
    rows = []
    children = [member for member in family.children if member.generation == 2]
    for child in random.Random(0).sample(children, min(most, len(children))):
        # the child's own training data, as in the paper, or none at all
        given = (
            task_of(child).train_x[:count]
            if probes == "own data"
            else synthetic(Images(1, 28, 28, (0.0,), (1.0,)), count)
        )
        lineage = hl.trace(network(child), [r.path for r in family.roots], evidence="features", probes=given, step=step)
        parent = str(family.member(child.parent or "").path)
        for candidate in lineage.candidates:
            tap = candidate.evidence["features"]["taps"][0]
            rows.append({"child": child.name, "true": candidate.ref == parent, "step": tap["step"], **tap["scores"]})
    return rows


def synthetic(inputs: Images, count: int) -> torch.Tensor:
    """What `probes=None` stands for; said here, since a fully connected network does not say what it reads."""
    return made(None, inputs, count)


def accuracy(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Top-1 of every metric and form, mean and deviation over folds of the children."""
    children = sorted({row["child"] for row in rows})
    random.Random(seed).shuffle(children)
    folds = [children[i::FOLDS] for i in range(FOLDS) if children[i::FOLDS]]
    found: dict[str, dict[str, list[float]]] = {}
    for name, item in METRICS.items():
        for form in FORMS:
            if form == "taylor" and not item.differentiable:
                continue
            right = {}
            for child in children:
                own = [row for row in rows if row["child"] == child]
                right[child] = max(own, key=lambda row: row[name][form])["true"]
            shares = [np.mean([right[child] for child in fold]) for fold in folds]
            found.setdefault(name, {})[form] = [round(float(np.mean(shares)), 4), round(float(np.std(shares)), 4)]
    return found


def gains(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fig. 3(b): the share of real and of false pairs that linearisation makes more alike, and the median gain relative
    to the dissimilarity before (1: nothing is left); Fig. 3(a): how Taylor's form correlates with the exact one."""
    found: dict[str, Any] = {}
    for name, item in METRICS.items():
        best = 1.0 if name in ("cka", "dc") else 0.0
        each = found[name] = {}
        for kind, true in (("real", True), ("false", False)):
            own = [row[name] for row in rows if row["true"] is true]
            gain = np.array([(row["exact"] - row["plain"]) / max(abs(best - row["plain"]), 1e-30) for row in own])
            each[kind] = {"pairs": len(own), "gaining": float(np.mean(gain > 0)), "median": float(np.median(gain))}
        if item.differentiable:
            taylor, exact = (np.array([row[name][form] - row[name]["plain"] for row in rows]) for form in FORMS[1:])
            each["taylor_against_exact"] = float(np.corrcoef(taylor, exact)[0, 1])
    return found


def measure(
    family: Family, most: int = 10_000, steps: Sequence[float | str] = STEPS, probed: Sequence[str] = PROBES
) -> dict[str, Any]:
    found: dict[str, Any] = {"roots": len(family.roots)}
    for probes in probed:
        for step in steps if probes == "own data" else steps[:1]:
            rows = questions(family, step, probes, most)
            found[f"{probes}, step {step}"] = {
                "children": len({row["child"] for row in rows}), "steps": sorted({row["step"] for row in rows}),
                "top1": accuracy(rows), "gains": gains(rows),
            }  # fmt: skip
    return found


def mean_of(table: dict[str, dict[str, list[float]]], form: str) -> float:
    return float(np.mean([forms[form][0] for forms in table.values() if form in forms]))


@pytest.mark.slow
class TestReduced:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_parents_are_found_by_features(self, nursery: Nursery, architecture: str) -> None:
        found = measure(nursery.family(architecture, "reduced"), most=6, steps=["auto", 0.001], probed=PROBES[:1])
        own = found["own data, step auto"]
        best = max(forms["exact"][0] for forms in own["top1"].values())
        assert best >= 0.75 and mean_of(own["top1"], "exact") > 1.5 / found["roots"], own["top1"]
        small = found["own data, step 0.001"]["gains"]
        for name, item in METRICS.items():  # Fig. 3(a): at a small step the two forms gain the same
            assert not item.differentiable or small[name]["taylor_against_exact"] > 0.99, (name, small[name])
        assert all(each["real"]["gaining"] >= 0.8 for each in small.values()), small  # Fig. 3(b), its first half


@pytest.mark.large
@pytest.mark.timeout(7200)
class TestLarge:
    def test_table_1(self, nursery: Nursery, record: Callable[..., None]) -> None:
        torch.set_num_threads(2)
        found = {name: measure(nursery.lines(name, "large"), most=24) for name in ARCHITECTURES}
        record("learning_free", {"seed": 7, "folds": FOLDS, "families": found})
        for each in found.values():
            assert max(forms["exact"][0] for forms in each["own data, step auto"]["top1"].values()) >= 0.9
