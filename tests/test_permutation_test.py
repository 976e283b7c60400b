"""The permutation test against all permutations, against its claims, and where no normal tail may be printed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from hf_lineage.weights.permutation_test import (
    DRAWS,
    ENOUGH_REACHED,
    LayerTest,
    draw_matchings,
    holm,
    layer_test,
    monte_carlo_p,
    pair_test,
    unit_length_rows,
    unit_products,
)

pytestmark = pytest.mark.integration


def units(h: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed))


def layer(order: str, a: torch.Tensor, b: torch.Tensor) -> LayerTest:
    return layer_test(order, unit_products([a], [b]))


def whole(*pairs: tuple[torch.Tensor, torch.Tensor], seed: int = 0):
    """The combined test of one pair of matrices per layer."""
    matrices = {f"l{i}": unit_products([a], [b]) for i, (a, b) in enumerate(pairs)}
    return pair_test(matrices.__getitem__, matrices, seed)


def test_mean_and_variance_are_exact() -> None:
    """Against all 7! matchings, for a matrix of products without any symmetry."""
    c = np.random.default_rng(0).normal(size=(7, 7)) ** 3
    test = layer_test("x", c[None])
    every = [c[range(7), list(p)].sum() for p in itertools.permutations(range(7))]
    assert test.mean == pytest.approx(np.mean(every)) and test.variance == pytest.approx(np.var(every))


def test_closed_form_of_methods_agrees() -> None:
    """Variance by its Gram form (for rows centred over units): two derivations, one number."""
    a, b = unit_length_rows(units(40, 9, 1)), unit_length_rows(units(40, 9, 2))
    h, sa, sb = 40, a.sum(0), b.sum(0)
    variance = (
        ((a.T @ a) * (b.T @ b)).sum()
        - (a @ sb).square().sum() / h
        - (b @ sa).square().sum() / h
        + (sa @ sb) ** 2 / h**2
    ) / (h - 1)
    test = layer("x", units(40, 9, 1), units(40, 9, 2))
    assert test.variance == pytest.approx(float(variance), rel=1e-4)
    assert test.mean == pytest.approx(float(sa @ sb) / h, rel=1e-3, abs=1e-5)


def test_draws_have_that_mean_and_variance() -> None:
    c = np.random.default_rng(1).normal(size=(2, 30, 30))
    test = layer_test("x", c)
    values = draw_matchings(c, 5, 20_000)
    assert values.mean() == pytest.approx(test.mean, abs=4 * math.sqrt(test.variance / 20_000))
    assert values.var() == pytest.approx(test.variance, rel=0.05)


def test_every_draw_is_a_permutation() -> None:
    values = draw_matchings((np.diag(np.arange(6.0)) + 1.0)[None], 0, 500)
    assert values.min() >= 6.0 and values.max() <= 6.0 + 15.0


def test_draws_of_a_transpose_are_the_same() -> None:
    c = np.random.default_rng(2).normal(size=(3, 20, 20))
    np.testing.assert_array_equal(draw_matchings(c, 0, 50), draw_matchings(c.transpose(0, 2, 1), 0, 50))


def test_p_values_of_unrelated_units_are_uniform() -> None:
    found = [whole((units(64, 20, 2 * i), units(64, 20, 2 * i + 1)), seed=i) for i in range(400)]
    p = [test.p for test in found if test]
    assert len(p) == 400 and stats.kstest(p, "uniform").pvalue > 0.001


def test_layers_add_up() -> None:
    pairs = [(units(50, 12, i), units(50, 12, 90 + i)) for i in range(3)]
    layers = [layer(f"l{i}", a, b) for i, (a, b) in enumerate(pairs)]
    both = whole(*pairs)
    assert both is not None
    expected = sum(x.statistic - x.mean for x in layers) / math.sqrt(sum(x.variance for x in layers))
    assert both.z == pytest.approx(expected)
    assert 10**both.rank_log10_p == pytest.approx(stats.norm.sf(both.z), rel=1e-9)


def test_invariances() -> None:
    """The same permutation of both, and any positive scale of a unit, change nothing that matters."""
    a = units(40, 15, 0)
    b = a + 0.5 * units(40, 15, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(9))
    plain = layer("x", a, b)
    moved = layer("x", a[order], b[order])
    assert moved.z == pytest.approx(plain.z, rel=1e-5)
    assert layer("x", 7 * a, 0.1 * b).z == pytest.approx(plain.z, rel=1e-5)
    assert layer("x", b, a).z == pytest.approx(plain.z, rel=1e-5)


def test_the_floor_is_one_over_all_matchings() -> None:
    a = units(5, 50, 0)
    test = whole((a, a))
    assert test is not None and test.log10_p >= -math.log10(math.factorial(5)) - 1e-9


def test_collapsed_units_keep_the_level() -> None:
    """6 live units of 256 at random places: draws are skewed, a normal tail would reject far too often."""
    p, normal = [], []
    for i in range(150):
        a, b = torch.zeros(256, 20), torch.zeros(256, 20)
        a[:6], b[:6] = units(6, 20, i), units(6, 20, 1000 + i)
        a, b = a + 1e-5 * units(256, 20, 2000), b + 1e-5 * units(256, 20, 3000)
        a = a[torch.randperm(256, generator=torch.Generator().manual_seed(i))]
        test = whole((a, b), seed=i)
        assert test is not None and test.method == "monte_carlo"
        p.append(test.p)
        normal.append(10**test.rank_log10_p)
    assert sum(x <= 0.05 for x in p) <= stats.binom.ppf(0.999, 150, 0.05)
    assert min(normal) < min(p)


def test_dead_units_are_left_out() -> None:
    """8 live units of 300, related: no more is claimed than 8 units can show."""
    a = torch.zeros(300, 40)
    a[:8] = 10 * units(8, 40, 0)
    test = whole((a, a.clone()))
    assert test is not None and test.layers[0][1] == 8
    assert test.method == "proven" and -math.log10(math.factorial(8)) <= test.log10_p < -4


def test_no_p_value_comes_of_a_normal_tail() -> None:
    """Where neither draws nor the bound show more: the smallest p that draws can give, and a note says so."""
    a = units(40, 400, 0)
    b = 0.09 * a + units(40, 400, 1)
    found = [whole((a, b), seed=seed) for seed in range(20)]
    floored = [test for test in found if test is not None and test.at_floor]
    for test in found:
        assert test is not None and (test.method == "proven") == (test.p_monte_carlo is None)
        assert test.log10_p >= min(test.log10_proven, math.log10(2 / (DRAWS + 1)) - 1e-9)
    for test in floored:
        assert test.p == pytest.approx(2 / (DRAWS + 1)) and test.rank_log10_p < test.log10_p


def test_drawing_ends_where_it_is_plain() -> None:
    def draw(stage: int, count: int) -> np.ndarray:
        return np.random.default_rng(stage).normal(size=count)

    p, count = monte_carlo_p(0.0, draw)
    assert p == ENOUGH_REACHED / count and 70 < count < 150
    p, count = monte_carlo_p(2.3, draw)
    assert count == DRAWS and 0.003 < p < 0.03
    assert monte_carlo_p(9.0, draw) == (1 / (DRAWS + 1), DRAWS)


def test_sequential_draws_give_valid_p_values() -> None:
    """Besag and Clifford 1991, with few draws: P(p ≤ a) ≤ a at every a."""
    rng = np.random.default_rng(0)
    found = np.array(
        [monte_carlo_p(rng.normal(), lambda _, count: rng.normal(size=count), 150)[0] for _ in range(4000)]
    )
    for a in (0.01, 0.05, 0.2, 0.34, 0.5, 0.9):
        assert (found <= a).mean() <= a + 4 * math.sqrt(a * (1 - a) / 4000)


def test_equal_units_have_nothing_to_say() -> None:
    constant = torch.ones(40, 6)
    assert whole((constant, units(40, 6, 0))) is None and whole() is None


@pytest.mark.parametrize("p", [[0.01], [0.04, 0.01, 0.03, 0.2], [1e-300, 0.5, 0.5], [1.0, 1.0]])
def test_holm_against_a_loop(p: list[float]) -> None:
    ascending, expected, largest = sorted(p), {}, 0.0
    for rank, value in enumerate(ascending):
        largest = max(largest, min(1.0, value * (len(p) - rank)))
        expected[value] = max(largest, expected.get(value, 0.0))
    found = [10**x for x in holm([math.log10(value) for value in p])]
    assert found == pytest.approx([expected[value] for value in p])


def test_a_related_pair_is_proven() -> None:
    """With 101 candidates 1e-5 is not small enough, and no normal tail is asked."""
    a = [units(96, 48, 1), units(64, 96, 2)]
    test = whole(*((x, x + 0.1 * units(*x.shape, 9)) for x in a))
    assert test is not None and test.method == "proven" and test.log10_p < -50 and test.draws == 0
