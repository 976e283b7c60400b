"""The rows that reviewers of Neural Phylogeny asked for, on made-up trees of which everything is known: the reduced form of
tests/benchmarks/phylogeny_rows.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import phylogeny_rows as rows

from hf_lineage.experiments.fake_starts import accuracies

pytestmark = pytest.mark.integration


def made_up(seed: int, roots: int = 3, children: int = 7, width: int = 400) -> rows.Pairs:
    """Random trees: every child is an earlier model of its tree and a step of its own; no network is trained."""
    rng = np.random.default_rng(seed)
    models, truth, tree = [*rng.standard_normal((roots, width))], {}, list(range(roots))
    for child in range(roots, roots * (1 + children)):
        tree.append(child % roots)
        parent = int(rng.choice([i for i in range(child) if tree[i] == child % roots]))
        truth[child] = parent
        models.append(models[parent] + 0.3 * rng.standard_normal(width))
    x = np.array(models)
    family = object.__new__(rows.Pairs)
    family.gram, family.truth, family.kurtosis = x @ x.T, truth, np.zeros(len(x))
    correlation = np.clip(np.corrcoef(x), -0.999999, 0.999999)
    family.information = -0.5 * np.log(1 - correlation**2)
    family.inputs = rows.inputs(family)
    return family


def test_link_prediction_sees_siblings_where_distance_sees_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a tree no parent and child have a neighbour in common, so that common neighbours cannot find an edge."""
    monkeypatch.setattr(rows, "SEEDS", 2)
    found = rows.links("made up", made_up(0))
    assert {(row["method"], row["seed"]) for row in found} == {
        (method, seed) for method in ("common neighbours", "graph autoencoder", "distance") for seed in (0, 1)
    }
    auc = {m: np.mean([r["auc"] for r in found if r["method"] == m]) for m in ("common neighbours", "distance")}
    assert auc["common neighbours"] < 0.7 and auc["distance"] > 0.95
    assert all(0 <= row["auc"] <= 1 and 0 <= row["lineage"] <= 1 for row in found)
    assert all(row["lineage"] < 0.2 for row in found if row["method"] == "common neighbours")


@pytest.mark.parametrize("method", ["boosted trees"])
def test_classes_learn_trees_of_another_family(method: str) -> None:
    """Fitted on two made-up sets, judged on a third: better than chance, and always a forest."""
    fitted, asked = [made_up(1), made_up(2)], made_up(3)
    score = rows.classes()[method](fitted)
    parents = rows.forest(score(asked), rows.no_parent(score, fitted))
    for child in range(len(parents)):
        seen, node = {child}, parents[child]
        while node is not None:
            assert node not in seen
            seen.add(node)
            node = parents[node]
    assert accuracies(parents, asked.truth)["lineage"] > 0.3  # a pair taken at random is an edge in 8 %


def test_inputs_are_those_of_ordered_pairs() -> None:
    """Scale changes nothing but the rounding; the norms' ratio and kurtosis change sign with the order."""
    family = made_up(4)
    x = family.inputs
    assert x.shape == (24, 24, 8) and np.isfinite(x).all()
    assert np.allclose(x[..., 6], -x[..., 6].T) and np.allclose(x[..., 0], x[..., 0].T)
    family.gram = 100 * family.gram
    assert np.allclose(rows.inputs(family)[..., [0, 1, 2, 6]], x[..., [0, 1, 2, 6]])
