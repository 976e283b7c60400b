"""Moments against loops, NumPy and SciPy; what a pivot is for (docs/methods.md, *Moments*); additivity."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
import torch

from hf_lineage.weights.moments import CHUNK, SMALL, Moments, block_moments


def rows(models: int = 4, n: int = 999, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, generator=generator, dtype=torch.float64)
    noise = torch.randn(models, n, generator=generator, dtype=torch.float64)
    return 0.3 * shared + noise + 0.1


def test_distances_against_a_loop() -> None:
    x = rows()
    found = block_moments(list(x)).distance2()
    for i in range(len(x)):
        for j in range(len(x)):
            assert found[i, j] == pytest.approx(
                sum((a - b) ** 2 for a, b in zip(x[i].tolist(), x[j].tolist(), strict=True))
            )


def test_correlations_and_norms_against_numpy() -> None:
    x = rows()
    moments = block_moments(list(x))
    assert moments.correlation() == pytest.approx(np.corrcoef(x.numpy())[0], abs=1e-12)
    assert moments.squared_norms() == pytest.approx((x**2).sum(1).numpy())


def test_a_negative_correlation_keeps_its_sign() -> None:
    x = rows(2)
    assert block_moments([x[0], -x[0]]).correlation()[1] == pytest.approx(-1)


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_changes_lose_no_digits(change: float, dtype: torch.dtype) -> None:
    """d² and 1 − r² within 1e-3 relative, none negative, where the plain Gram matrix in float32 fails."""
    generator = torch.Generator().manual_seed(1)
    parent = torch.randn(50_000, generator=generator).to(dtype)
    child = parent + (change * torch.randn(50_000, generator=generator)).to(dtype)
    exact = (child.double() - parent.double()).numpy()
    p, c = parent.double().numpy(), child.double().numpy()
    moments = block_moments([child, parent])
    assert moments.distance2()[0, 1] == pytest.approx((exact**2).sum(), rel=1e-6 if dtype == torch.float32 else 1e-12)
    # 1 − r² through the residual of the regression, in long double
    pc, cc = np.longdouble(p) - p.mean(dtype=np.longdouble), np.longdouble(c) - c.mean(dtype=np.longdouble)
    residual = cc - (cc @ pc) / (pc @ pc) * pc
    assert moments.unexplained()[1] == pytest.approx(float((residual @ residual) / (cc @ cc)), rel=1e-3)
    assert moments.unexplained()[1] > 0


def test_the_plain_gram_matrix_does_lose_them() -> None:
    """The control for the test above: without a pivot, float32 products are off by more than 1e-3."""
    generator = torch.Generator().manual_seed(1)
    parent = torch.randn(50_000, generator=generator)
    child = parent + 3e-4 * torch.randn(50_000, generator=generator)
    x = torch.stack([child, parent])
    gram = x @ x.T
    naive = float(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1])
    exact = float((child.double() - parent.double()).square().sum())
    assert abs(naive - exact) > 1e-2 * exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("models", [2, 3, 9])
@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
def test_sums_of_large_blocks_against_float64(models: int, dtype: torch.dtype, change: float) -> None:
    """Every sum within 1e-6 of the sum of its terms' sizes, and what is sure to be positive within 1e-6 of itself."""
    generator = torch.Generator().manual_seed(2)
    n = 3 * CHUNK + 4321
    first = torch.randn(n, generator=generator).to(dtype)
    others = [
        (first.float() * (1 + k * 1e-4) + change * torch.randn(n, generator=generator)).to(dtype)
        for k in range(1, models)
    ]
    moments = block_moments([first, *others])
    exact = np.stack([x.double().numpy() for x in (first, *others)])
    exact[1:] -= exact[0]
    sizes = np.abs(exact)
    np.testing.assert_array_less(np.abs(moments.gram - exact @ exact.T), 1e-6 * (sizes @ sizes.T))
    np.testing.assert_allclose(np.diag(moments.gram), np.square(exact).sum(1), rtol=1e-6)
    np.testing.assert_array_less(np.abs(moments.s1 - exact.sum(1)), 1e-6 * sizes.sum(1))
    np.testing.assert_allclose(moments.squares, np.square(exact) @ np.square(exact).T, rtol=1e-6)
    assert not block_moments([first, *others], fourth=False).squares.any()


@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 10_000_000 - 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_unit_in_the_last_place_of_one_entry_in_ten_million(where: int, dtype: torch.dtype) -> None:
    first = torch.randn(10_000_000, generator=torch.Generator().manual_seed(3)).to(dtype)
    other = first.clone()
    other[where] = torch.nextafter(first[where], first.new_tensor(9.0))
    step = float(other[where].double() - first[where].double())
    assert block_moments([first, other], fourth=False).gram[1, 1] == pytest.approx(step**2, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_squares_that_float32_cannot_hold(scale: float) -> None:
    """Tiny and huge values, and tiny differences of ordinary ones: equal means equal, and nothing is infinite."""
    x = torch.randn(3, SMALL + 999, generator=torch.Generator().manual_seed(4)) * scale
    exact = x.double().numpy().copy()
    exact[1:] -= exact[0]
    moments = block_moments(list(x))
    np.testing.assert_allclose(moments.gram, exact @ exact.T, rtol=1e-6, atol=1e-6 * float(scale) ** 2)
    tiny = torch.full_like(x[0], 1e-25)
    apart = block_moments([tiny, tiny * 1.5, tiny])
    assert apart.gram[1, 1] == pytest.approx(0.25e-50 * len(tiny), rel=1e-5) and apart.gram[2, 2] == 0.0


@pytest.mark.parametrize("company", [0, 1, 8])
@pytest.mark.parametrize("odd", ["float64", "huge", "broken"])
def test_a_pair_does_not_depend_on_who_else_is_there(company: int, odd: str) -> None:
    """Not by a bit; nor where another one needs float64, or is broken."""
    generator = torch.Generator().manual_seed(5)
    first, second, *others = torch.randn(2 + 8, CHUNK + 777, generator=generator)
    wide = {"float64": others[0].double(), "huge": others[0] * 1e30, "broken": others[0] / 0}[odd]
    alone = block_moments([first, second])
    beside = block_moments([first, *others[:company], second, wide])
    row = company + 1
    assert beside.gram[row, row] == alone.gram[1, 1] and beside.gram[0, row] == alone.gram[0, 1]
    assert beside.s1[row] == alone.s1[1] and beside.squares[row, row] == alone.squares[1, 1]
    assert beside.gram[0, 0] == alone.gram[0, 0]


@pytest.mark.parametrize("among", [3, 14])
def test_only_relatives_are_multiplied_with_one_another(among: int) -> None:
    """All else is the same to the last bit; of strangers there is nothing, rather than a wrong number."""
    generator = torch.Generator().manual_seed(6)
    first, *strangers = torch.randn(3, CHUNK + 777, generator=generator)
    kin = [first + (1 + k) * torch.randn(len(first), generator=generator) for k in range(among)]
    rows = [first, strangers[0], *kin[:2], strangers[1], *kin[2:]]
    related = [i for i in range(1, len(rows)) if i not in (1, 4)]
    every, some = (block_moments(rows, fourth=False, relatives=relatives) for relatives in (False, True))
    for one in (every, some):
        assert np.isfinite([*one.s1, *one.gram[0], *np.diag(one.gram)]).all()
    np.testing.assert_array_equal(some.gram[0], every.gram[0])
    np.testing.assert_array_equal(np.diag(some.gram), np.diag(every.gram))
    np.testing.assert_allclose(some.gram[np.ix_(related, related)], every.gram[np.ix_(related, related)], rtol=1e-5)
    apart = [some.gram[i, j] for i in (1, 4) for j in range(1, len(rows)) if i != j]
    assert np.isnan(apart).all() and np.isfinite(every.gram).all()


def test_zero_distance_means_equal_and_only_then() -> None:
    x = rows(1)[0].float()
    other = x.clone()
    other[7] = torch.nextafter(other[7], torch.tensor(9.0))
    moments = block_moments([x, x.clone(), other])
    assert moments.gram[1, 1] == 0.0 and moments.gram[2, 2] > 0.0


def test_any_cut_gives_the_same_sums() -> None:
    x = rows(3, 1000)
    whole = block_moments(list(x))
    for cuts in ([400], [1, 2, 999], list(range(100, 1000, 100))):
        edges = [0, *cuts, 1000]
        parts = [block_moments(list(x[:, a:b])) for a, b in itertools.pairwise(edges)]
        total = reduce(Moments.__add__, parts)
        assert total.count == 1000
        for field in ("gram", "s1", "squares"):
            np.testing.assert_allclose(getattr(total, field), getattr(whole, field), rtol=1e-12, atol=1e-12)


def test_order_of_the_others_does_not_matter() -> None:
    x = rows(4)
    swapped = block_moments([x[0], x[2], x[1], x[3]]).distance2()
    np.testing.assert_allclose(swapped[0, [2, 1, 3]], block_moments(list(x)).distance2()[0, 1:], rtol=1e-12)


def test_nan_stays_in_its_row() -> None:
    x = rows(3)
    x[2, 5] = torch.nan
    moments = block_moments(list(x))
    assert np.isfinite(moments.gram[:2, :2]).all() and np.isnan(moments.gram[2, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_half_and_eighth_precision(dtype: torch.dtype) -> None:
    x = rows(2).to(dtype)
    assert block_moments(list(x)).distance2()[0, 1] == pytest.approx(
        float((x[0].double() - x[1].double()).square().sum())
    )


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    """200 samples without replacement: the spread of their means is what one sample predicts."""
    x = rows(2, 2000)
    generator = torch.Generator().manual_seed(3)
    means, predicted = [], []
    for _ in range(200):
        chosen = torch.randperm(2000, generator=generator)[:500]
        moments = block_moments(list(x[:, chosen]))
        means.append(moments.gram[1, 1] / 500)
        predicted.append(moments.distance2_stderr(2000)[1])
    assert np.mean(predicted) == pytest.approx(np.std(means), rel=0.2)
    assert block_moments(list(x)).distance2_stderr(2000)[1] == 0.0


def test_the_gap_of_two_is_known_better_than_either() -> None:
    """Two candidates that differ from the child at the same places: again against the spread of 200 samples."""
    x = rows(3, 2000)
    x[2] = x[1] + 0.1 * x[2]
    generator = torch.Generator().manual_seed(3)
    gaps, predicted, single = [], [], []
    for _ in range(200):
        moments = block_moments(list(x[:, torch.randperm(2000, generator=generator)[:500]]))
        gaps.append((moments.gram[1, 1] - moments.gram[2, 2]) / 500)
        predicted.append(moments.gap_stderr(2000)[1, 2])
        single.append(moments.distance2_stderr(2000)[1])
    assert np.mean(predicted) == pytest.approx(np.std(gaps), rel=0.2)
    assert np.mean(predicted) < 0.5 * np.mean(single)


def test_moments_need_the_same_models() -> None:
    with pytest.raises(ValueError, match="shape"):
        Moments.__add__(block_moments(list(rows(2))), block_moments(list(rows(3))))


@pytest.mark.parametrize("models", range(2, 9))
def test_zeros_have_no_norm_whatever_else_is_there(models: int) -> None:
    """The terms of a norm around the pivot cancel up to rounding, which depends on how many models there are."""
    generator = torch.Generator().manual_seed(models)
    rows = [torch.randn(6144, generator=generator) for _ in range(models)]
    for position in range(1, models):
        norms = block_moments([*rows[:position], torch.zeros(6144), *rows[position + 1 :]]).squared_norms()
        assert norms[position] == 0.0 and (np.delete(norms, position) > 1000).all()


@pytest.mark.parametrize("models", [3, 4, 9])
def test_copies_among_the_others_have_no_distance(models: int) -> None:
    """Of equal rows beside each other the products are made the same way, whatever a matrix product rounds."""
    draw = torch.Generator().manual_seed(models)
    for n in (96, 1000, 4096, 9001):
        x = torch.randn(models, n, generator=draw)
        x[-1] = x[1]
        gram = block_moments([*x]).gram
        assert gram[1, 1] + gram[-1, -1] - 2 * gram[1, -1] == 0 < gram[1, 1]
