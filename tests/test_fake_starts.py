"""Fake initialisations beside the true one, on small families without and with weight decay: the reduced form of
tests/benchmarks/fake_starts.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_lineage.experiments.fake_starts import accuracies, clusterings, direction, directions, summary, true_start
from hf_lineage.experiments.families import Family, initialised, read_family, sizes_of, train_trees

SMALL = {"widths": [128, 96, 64], "side": 16}


@pytest.fixture(scope="module", params=[0, 2], ids=["without decay", "every other decays"])
def families(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Family]]:
    """Two seeds; six networks each, so that no process is started for them."""
    folder = tmp_path_factory.mktemp("starts")
    made = [
        train_trees(
            folder / str(seed), "fc", roots=2, branching=(2,), seed=seed, sizes=SMALL, decayed=request.param
        )
        for seed in (91, 92)
    ]  # fmt: skip
    return request.param, made


@pytest.mark.integration
def test_fake_starts_follow_the_norm_and_the_true_one_does_not(families: tuple[int, list[Family]]) -> None:
    """All kinds say the same, which is who is smaller; decay turns that round, and not what the true start says."""
    decayed, made = families
    rows = [row for family in made for row in directions(family)]
    assert len(rows) >= 6
    for row in rows:
        if abs(row["norm"]) > 0.01:
            assert {row[kind]["majority"] for kind in ("uniform", "gaussian", "kaiming", "xavier")} == {row["norm"] > 0}
            assert row["pooled"]["majority"] == (row["norm"] > 0)
    found = summary([row for row in rows if row["decays"] == bool(decayed)])
    assert found["kinds disagree"] == 0 and max(found[f"{kind} disagree"] for kind in ("uniform", "xavier")) < 0.1
    if decayed:
        assert found["oracle"] >= found["majority"]
    for family in made:
        table = clusterings(family)
        assert {0 <= row["overall"] <= row["lineage"] <= 1 for name, row in table.items() if name != "moved"} == {True}
        assert table["after, majority"] == table["along, rho chosen"] and table["moved"] == 0


@pytest.mark.integration
def test_the_true_start_is_the_one_that_training_began_from(families: tuple[int, list[Family]]) -> None:
    """Made again it is the same, it is nearer to its root than any other start is, and a network trained for no step."""
    family = families[1][0]
    one, other = family.roots[:2]
    assert all(torch.equal(a, b) for a, b in zip(true_start(one).values(), true_start(one).values(), strict=True))
    assert read_family(family.folder)[0].roots[0] == one and initialised(one, sizes_of(one)) is not None
    from hf_lineage.experiments.fake_starts import weights_of

    def away(start: object) -> float:
        return float(sum((weights_of(one)[n] - t).square().sum() for n, t in start.items()))  # type: ignore[attr-defined]

    assert away(true_start(one)) < 0.7 * away(true_start(other))


def test_a_direction_by_hand() -> None:
    """A child twice as long is farther from every fake start, and nearer to a true start that lies behind it."""
    parent = {"w": torch.eye(8, dtype=torch.float64)}
    child = {"w": 2 * parent["w"]}
    found = direction(parent, child, {"w": torch.zeros(8, 8, dtype=torch.float64)})
    assert found["oracle"] and found["gaussian"]["majority"] and found["norm"] == pytest.approx(1.0)
    assert not direction(parent, child, {"w": 3 * parent["w"]})["oracle"]
    assert summary([found])["kinds disagree"] == 0 and np.isclose(summary([found])["norm"], 1.0)


def test_accuracies_by_hand() -> None:
    """Three true edges: one right, one reversed, one not found; a made-up edge does not count."""
    found = accuracies([None, 0, None, 2, 5, None, 0], {1: 0, 2: 3, 4: 0})
    assert found == {"lineage": 2 / 3, "overall": 1 / 3, "direction": 1 / 2}
