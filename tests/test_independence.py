"""The permutation test against all permutations, against its claims, and where its normal tail must be refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from hf_lineage.weights.independence import (
    MORE_DRAWS,
    combine,
    draw,
    from_products,
    holm,
    layer_test,
    prepare,
)


def units(h: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed))


def test_mean_and_variance_are_exact() -> None:
    """Against all 7! matchings, for a matrix of products without any symmetry."""
    c = np.random.default_rng(0).normal(size=(7, 7)) ** 3
    test = from_products("x", c, seed=0, draws=10)
    every = [c[range(7), list(p)].sum() for p in itertools.permutations(range(7))]
    assert test.mean == pytest.approx(np.mean(every)) and test.variance == pytest.approx(np.var(every))


def test_closed_form_of_methods_agrees() -> None:
    """Variance by the Gram form of METHODS §5 (for rows centred over units): two derivations, one number."""
    a, b = prepare(units(40, 9, 1)), prepare(units(40, 9, 2))
    h, sa, sb = 40, a.sum(0), b.sum(0)
    variance = (
        ((a.T @ a) * (b.T @ b)).sum()
        - (a @ sb).square().sum() / h
        - (b @ sa).square().sum() / h
        + (sa @ sb) ** 2 / h**2
    ) / (h - 1)
    test = layer_test("x", [units(40, 9, 1)], [units(40, 9, 2)], seed=0)
    assert test.variance == pytest.approx(float(variance), rel=1e-4)
    assert test.mean == pytest.approx(float(sa @ sb) / h, rel=1e-3, abs=1e-5)


def test_draws_have_that_mean_and_variance() -> None:
    c = np.random.default_rng(1).normal(size=(30, 30))
    test = from_products("x", c, seed=0)
    values = draw(c, "x", 5, 20_000)
    assert values.mean() == pytest.approx(test.mean, abs=4 * math.sqrt(test.variance / 20_000))
    assert values.var() == pytest.approx(test.variance, rel=0.05)


def test_every_draw_is_a_permutation() -> None:
    values = draw(np.diag(np.arange(6.0)) + 1.0, "x", 0, 500)
    assert values.min() >= 6.0 and values.max() <= 6.0 + 15.0


def test_p_values_of_unrelated_units_are_uniform() -> None:
    found = [combine([layer_test("x", [units(64, 20, 2 * i)], [units(64, 20, 2 * i + 1)], i)], i) for i in range(400)]
    p = [test.p for test in found if test]
    assert len(p) == 400 and stats.kstest(p, "uniform").pvalue > 0.001


def test_layers_add_up() -> None:
    layers = [layer_test(f"l{i}", [units(50, 12, i)], [units(50, 12, 90 + i)], 0) for i in range(3)]
    both = combine(layers, 0)
    assert both is not None
    expected = sum(x.statistic - x.mean for x in layers) / math.sqrt(sum(x.variance for x in layers))
    assert both.z == pytest.approx(expected)
    if both.method == "normal":
        assert both.p == pytest.approx(stats.norm.sf(both.z), rel=1e-9)


def test_invariances() -> None:
    """The same permutation of both, and any positive scale of a unit, change nothing that matters."""
    a = units(40, 15, 0)
    b = a + 0.5 * units(40, 15, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(9))
    plain = layer_test("x", [a], [b], 0)
    moved = layer_test("x", [a[order]], [b[order]], 0)
    assert moved.z == pytest.approx(plain.z, rel=1e-5)
    assert layer_test("x", [7 * a], [0.1 * b], 0).z == pytest.approx(plain.z, rel=1e-5)
    assert layer_test("x", [b], [a], 0).z == pytest.approx(plain.z, rel=1e-5)


def test_the_floor_is_one_over_all_matchings() -> None:
    a = units(5, 50, 0)
    test = combine([layer_test("x", [a], [a], 0)], 0)
    assert test is not None and test.log10_p >= -math.log10(math.factorial(5)) - 1e-9


def test_collapsed_units_refuse_the_normal_tail() -> None:
    """6 live units of 256: the draws are skewed, and the Monte-Carlo p-value keeps its level."""
    rejected, methods = 0, set()
    for i in range(150):
        a, b = torch.zeros(256, 20), torch.zeros(256, 20)
        a[:6], b[:6] = units(6, 20, i), units(6, 20, 1000 + i)
        a, b = a + 1e-6 * units(256, 20, 2000), b + 1e-6 * units(256, 20, 3000)
        a = a[torch.randperm(256, generator=torch.Generator().manual_seed(i))]
        test = combine([layer_test("x", [a], [b], i)], i)
        assert test is not None
        methods.add(test.method)
        rejected += test.p <= 0.05
    assert "monte_carlo" in methods
    assert rejected <= stats.binom.ppf(0.999, 150, 0.05)


def test_more_draws_where_the_first_do_not_reach() -> None:
    a = torch.zeros(300, 4)
    a[:8] = 10 * units(8, 4, 0)
    test = combine([layer_test("x", [a], [a.clone()], 0)], 0)
    assert test is not None and test.method == "monte_carlo"
    assert test.draws == MORE_DRAWS and test.p <= 1e-4


def test_equal_units_have_nothing_to_say() -> None:
    constant = torch.ones(40, 6)
    assert combine([layer_test("x", [constant], [units(40, 6, 0)], 0)], 0) is None
    assert combine([], 0) is None


@pytest.mark.parametrize("p", [[0.01], [0.04, 0.01, 0.03, 0.2], [1e-300, 0.5, 0.5], [1.0, 1.0]])
def test_holm_against_a_loop(p: list[float]) -> None:
    ascending, expected, largest = sorted(p), {}, 0.0
    for rank, value in enumerate(ascending):
        largest = max(largest, min(1.0, value * (len(p) - rank)))
        expected[value] = max(largest, expected.get(value, 0.0))
    found = [10**x for x in holm([math.log10(value) for value in p])]
    assert found == pytest.approx([expected[value] for value in p])
