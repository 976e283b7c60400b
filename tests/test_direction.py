"""Positions along the line from candidate to child against vectors, the lean against constructions, and the rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage.tasks import calibration
from hf_lineage.tasks.calibration import Features, probabilities
from hf_lineage.weights.direction import origin as directions
from hf_lineage.weights.direction.origin import (
    direction_shares,
    origin_position,
    relative_positions,
    residual_asymmetry,
    residual_dependences,
)


def gram(*models: np.ndarray) -> np.ndarray:
    """As `Moments` has it: the child itself, then the others' differences from it."""
    rows = np.vstack([models[0], *(model - models[0] for model in models[1:])])
    return rows @ rows.T


def test_positions_are_projections() -> None:
    child, candidate, other = np.random.default_rng(0).normal(size=(3, 50))
    step = child - candidate
    g = gram(child, candidate, other)
    seen = origin_position(g, 1)
    assert seen is not None
    assert seen.t == pytest.approx(-(candidate @ step) / (step @ step))
    assert seen.relative_distance == pytest.approx(np.linalg.norm(candidate) / np.linalg.norm(step))
    (relative,) = relative_positions(g, 1, [2])
    assert relative.t == pytest.approx((other - candidate) @ step / (step @ step))
    assert relative.relative_distance == pytest.approx(np.linalg.norm(other - candidate) / np.linalg.norm(step))


def test_parents_twins_and_children_lie_where_they_should() -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(size=20_000)
    a, b = (start + 0.3 * rng.normal(size=start.size) for _ in range(2))
    forward, back, twins = (
        origin_position(gram(a, start), 1),
        origin_position(gram(start, a), 1),
        origin_position(gram(a, b), 1),
    )
    assert forward and back and twins
    assert (forward.t, back.t, twins.t) == pytest.approx((0.0, 1.0, 0.5), abs=0.05)
    assert relative_positions(gram(a, start, b), 1, [2])[0].t == pytest.approx(0.0, abs=0.05), (
        "a sibling lies behind the parent"
    )
    assert relative_positions(gram(start, a, b), 1, [2])[0].t == pytest.approx(1.0, abs=0.05), (
        "and behind the parent it is"
    )


def test_equal_models_have_no_line() -> None:
    x = np.ones(5)
    assert origin_position(gram(x, x), 1) is None and relative_positions(gram(x, x, 2 * x), 1, [2]) == []


def test_an_additive_step_leans_to_its_parent() -> None:
    """A uniform parent and an independent step of heavy tails: only the reverse regression leaves a dependence."""
    generator = torch.Generator().manual_seed(2)
    parent = torch.rand(400, 300, generator=generator) - 0.5
    step = torch.randn(400, 300, generator=generator) ** 3 / 6
    forward, backward = residual_dependences(parent + step, parent)
    assert abs(forward) < 0.01 < abs(backward)
    assert residual_asymmetry(forward, backward, 120_000) > 0.3
    again = residual_dependences(parent, parent + step)
    assert again == pytest.approx((backward, forward)), "swapped models swap the directions"


def test_the_lean_ignores_the_scale_of_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(3)
    parent, step = torch.randn(2, 60, 50, generator=generator)
    rows, columns = torch.rand(60, 1, generator=generator) + 0.5, torch.rand(1, 50, generator=generator) + 0.5
    plain = residual_dependences(parent + 0.1 * step * rows * columns, parent)
    assert all(abs(value) < 0.1 for value in plain)
    assert residual_dependences(torch.zeros(4, 5), torch.zeros(4, 5)) == (0.0, 0.0)


@given(st.floats(-3, 3), st.floats(0.1, 200), st.lists(st.tuples(st.floats(-2, 2), st.floats(0.1, 5)), max_size=4))
def test_swapping_the_two_swaps_the_answer(t: float, reach: float, others: list[tuple[float, float]]) -> None:
    said = direction_shares((t, reach), others)
    back = direction_shares((1 - t, reach), [(1 - place, far) for place, far in others])
    assert said.parent + said.between + said.descendant == pytest.approx(1.0)
    assert (back.parent, back.between, back.descendant) == pytest.approx((said.descendant, said.between, said.parent))


def test_far_moves_tell_and_light_ones_do_not() -> None:
    assert direction_shares((0.0, 3.0)).decided == "parent" and direction_shares((1.0, 3.0)).decided == "descendant"
    assert direction_shares((0.5, 3.0)).decided == "between"
    assert all(direction_shares((t, 100.0)).decided is None for t in (-1.0, 0.0, 1.0, 2.0))
    assert direction_shares(None).decided is None
    assert direction_shares((0.0, 3.0), entries=30).decided is None, "so few entries do not place it"


def test_relatives_behind_a_model_speak_for_it() -> None:
    alone = direction_shares(None).parent
    shares = [direction_shares(None, [(0.0, 1.0)] * n).parent for n in (1, 3, 60)]
    assert alone == pytest.approx(1 / 3) and alone < shares[0] < shares[1] < 0.8 < shares[2]
    behind_the_child = direction_shares(None, [(1.0, 1.0)] * 60)
    assert behind_the_child.descendant == pytest.approx(shares[2]) and behind_the_child.parent < 0.05


def features(**other: float) -> Features:
    plain = {
        "relatedness": 50.0, "exists": 20.0, "tested": 1.0, "ahead": 1.0, "ahead_z": 50.0, "first": 0.99, "between": -5.0,
        "moved": -1.5, "entries": 12.0, "candidates": 3, "related": 1,
    }  # fmt: skip
    return Features(**{**plain, **other})  # type: ignore[arg-type]


STRANGER = features(relatedness=0.3, exists=0.4, ahead=-1.0, ahead_z=-50.0, first=0.5, between=-2.0, moved=0.3)


def test_the_probability_of_a_clear_parent() -> None:
    shares, none = probabilities([features(), STRANGER, STRANGER])
    assert shares[0] > 0.5 > none and shares[1] == pytest.approx(shares[2]) and shares[1] < 0.05
    assert shares.sum() + none == pytest.approx(1.0, abs=1e-12)


def test_strangers_have_no_parent() -> None:
    assert probabilities([features(**{**vars_of(STRANGER), "ahead": 0.01, "ahead_z": 1.0, "related": 0})] * 3)[1] > 0.8
    assert probabilities([])[1] == 1.0


def vars_of(item: Features) -> dict[str, float]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


@given(st.floats(0, 1), st.floats(-9, 3), st.floats(-5, 0))
def test_the_two_directions_add_up_to_at_most_one(first: float, moved: float, between: float) -> None:
    """Whatever the odds, of a pair asked about alone; and no probability is above the share of having come first."""
    both = [
        probabilities([features(first=share, moved=moved, between=between, candidates=1)])[0][0]
        for share in (first, 1 - first)
    ]
    assert sum(both) <= 1 and both[0] <= first + 1e-12


def test_unrelated_candidates_hardly_move_it() -> None:
    """The verdict must not turn with whoever else was offered."""
    alone = probabilities([features(candidates=1, ahead=0.0, ahead_z=0.0)])[0][0]
    for count in (1, 3, 40):
        among = probabilities([features(candidates=1 + count, ahead=1.5), *[STRANGER] * count])[0][0]
        assert among == pytest.approx(alone, abs=0.02)


def test_the_prior_moves_the_odds() -> None:
    """Bayes: a prior twice the fitted odds doubles them; the fitted one changes nothing; certainty is never reached."""
    fitted = calibration.numbers()["probability"]["prior"]
    plain = probabilities([features(first=1.0)])[0][0]
    assert probabilities([features(first=1.0)], fitted)[0][0] == pytest.approx(plain)
    twice = 2 * fitted / (1 - fitted)
    moved = probabilities([features(first=1.0)], twice / (1 + twice))[0][0]
    assert moved / (1 - moved) == pytest.approx(2 * plain / (1 - plain))
    assert probabilities([features(first=0.5)], 1 - 1e-9)[0][0] <= 0.5


@given(st.lists(st.floats(-1e9, 1e9), min_size=9, max_size=9))
def test_no_feature_runs_away(values: list[float]) -> None:
    names = ["relatedness", "exists", "tested", "ahead", "ahead_z", "moved", "entries"]
    odd = features(**dict(zip(names, values, strict=False)))
    shares, none = probabilities([odd, features()])
    assert np.isfinite(shares).all() and 0 <= none <= 1


def test_the_numbers_say_where_they_are_from() -> None:
    assert all(
        "experiments.calibration" in fitted()["made"] for fitted in (calibration.numbers, directions.fitted_numbers)
    )
