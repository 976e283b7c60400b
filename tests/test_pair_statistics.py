"""What two models share, against loops, the two-model formula, enumeration, and simulated fine-tunes of known history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis as scipy_kurtosis

from hf_lineage.trees import pair_statistics as module
from hf_lineage.trees.pair_statistics import (
    Matrix,
    PairStatistics,
    compute_pair_statistics,
    distance2,
    products,
    shared_information,
)
from hf_lineage.trees.without_gradient import (
    DECISIVE_RATIO,
    MIN_DECISIVE_WEIGHTS,
    MIN_SPIKE_WEIGHTS,
    SPIKE_WIDTH,
    WithoutGradient,
    shared,
)
from hf_lineage.weights.moments import block_moments
from hf_lineage.weights.mutual_information import MIN_UNEXPLAINED, mutual_information


def tuned(parent: torch.Tensor, change: float, seed: int) -> torch.Tensor:
    """Every unit scaled by its own factor, and noise."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + change * torch.randn(parent.shape[0], 1, generator=generator)
    return parent * scale + change * torch.randn(parent.shape, generator=generator)


def stack(models: int = 4, change: float = 0.3, rows: int = 30, width: int = 20, seed: int = 0) -> torch.Tensor:
    """A chain of fine-tunes, (models, rows, width)."""
    found = [torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))]
    for k in range(1, models):
        found.append(tuned(found[-1], change, 1000 * seed + k))
    return torch.stack(found)


def gram_of(units: torch.Tensor) -> np.ndarray:
    x = units.flatten(1).double().numpy()
    return x @ x.T


def statistics_of(*matrices: torch.Tensor) -> PairStatistics:
    named = [Matrix(f"m{i}", units[0].numel(), units) for i, units in enumerate(matrices)]
    return compute_pair_statistics(named, [gram_of(units) for units in matrices])


# ---- information


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_information_of_all_pairs_is_that_of_two(change: float) -> None:
    units = stack(change=change)
    found = shared_information(units)
    for i, j in itertools.permutations(range(len(units)), 2):
        assert found[i, j] == pytest.approx(mutual_information(units[i], units[j]), rel=1e-4)
    assert (np.diag(found) == 0).all() and (found == found.T).all()


def test_information_is_the_sum_of_corrcoefs() -> None:
    """Written out, with units dead in one model, in both, and constant ones."""
    units = stack(change=0.7)
    units[1, 3] = 0
    units[:, 5] = 0
    units[0, 7], units[2, 8] = 0.1, -3.0
    units[2:, 9] = 0.1
    found = shared_information(units)
    x = units.double().numpy()
    for i, j in itertools.combinations(range(4), 2):
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(x[i], x[j], strict=True) if np.ptp(a) > 0 and np.ptp(b) > 0]
        assert found[i, j] == pytest.approx(-0.5 * 20 * np.log(1 - np.square(r)).sum(), rel=1e-9)


def test_equal_units_tell_the_floor_and_no_more() -> None:
    units = stack(2)
    units[1] = units[0]
    assert shared_information(units)[0, 1] == pytest.approx(-0.5 * 30 * 20 * math.log(MIN_UNEXPLAINED), rel=1e-3)


def test_information_ignores_scale_sign_and_mean_of_a_unit() -> None:
    units = stack()
    other = units.double().clone()
    other[1] = -other[1] * torch.linspace(0.1, 4, 30)[:, None] + torch.linspace(-2, 2, 30)[:, None]
    np.testing.assert_allclose(shared_information(other), shared_information(units), rtol=1e-9)


@pytest.mark.parametrize("cells", [1, 200, 1000])
def test_information_in_pieces_of_any_memory(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    units = stack(rows=31)
    whole = shared_information(units)
    monkeypatch.setattr(module, "MAX_GRAM_ENTRIES", cells)
    np.testing.assert_allclose(shared_information(units), whole, rtol=1e-12)


@pytest.mark.parametrize("matrices", [1, 3, 20])
def test_pieces_add_up_to_the_information(matrices: int) -> None:
    statistics = statistics_of(*(stack(rows=160, seed=k) for k in range(matrices)))
    assert len(statistics.pieces) >= module.MIN_BOOTSTRAP_PIECES
    expected = sum(shared_information(stack(rows=160, seed=k)) for k in range(matrices))
    np.testing.assert_allclose(statistics.information, expected, rtol=1e-12)
    assert statistics.models == 4 and list(statistics.sizes) == [3200.0] * matrices


def test_the_nearest_relative_tells_most() -> None:
    """In a chain, information falls with every step."""
    found = shared_information(stack(5, rows=200))
    for i in range(5):
        assert (np.diff(found[i, i + 1 :]) < 0).all() and (np.diff(found[i, :i]) > 0).all()


# ---- products and distances


def test_products_around_a_pivot_are_the_gram_matrix() -> None:
    units = stack(change=1e-3)
    moments = block_moments([*units.flatten(1)])
    for rows in ([0, 1, 2, 3], [2, 0, 3], [1, 3], [3, 2, 1, 0]):
        expected = gram_of(units[rows])
        np.testing.assert_allclose(products(moments, rows, units[0].numel()), expected, rtol=1e-10)


def test_products_of_a_sample_are_scaled_to_all() -> None:
    units = stack()
    flat = units.flatten(1)[:, :150]
    np.testing.assert_allclose(products(block_moments([*flat]), [0, 1, 2, 3], 600), gram_of(flat) * 4, rtol=1e-10)


def test_products_leave_the_moments_alone() -> None:
    moments = block_moments([*stack().flatten(1)])
    before = moments.gram.copy()
    products(moments, [1, 0], 600)
    assert (moments.gram == before).all()


@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
def test_distances_from_products(change: float) -> None:
    units = stack(change=change)
    x = units.flatten(1).double().numpy()
    expected = np.square(x[:, None] - x[None]).sum(2)
    np.testing.assert_allclose(distance2(gram_of(units)), expected, rtol=1e-4, atol=1e-12)


def test_distances_are_never_negative() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50, 300))
    x[:, 25:] = x[:, :25] * (1 + 1e-9)
    gram = x @ x.transpose(0, 2, 1)
    square = np.diagonal(gram, axis1=1, axis2=2)
    assert (square[:, :, None] + square[:, None, :] - 2 * gram).min() < 0, "rounding alone would be"
    assert distance2(gram).min() == 0 and distance2(gram).shape == (3, 50, 50)


# ---- lean, kurtosis, entropy


def laplace(seed: int, rows: int = 100, width: int = 80) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=(rows, width))).float()


def test_lean_points_from_parent_to_child() -> None:
    """Additive noise: child = a·parent + δ, of a parent that is not normal."""
    right = 0
    for seed in range(20):
        parent = laplace(seed)
        child = 0.8 * parent + 0.6 * torch.randn(parent.shape, generator=torch.Generator().manual_seed(seed))
        forward = statistics_of(torch.stack([parent, child])).residual_asymmetry(0, 1)
        backward = statistics_of(torch.stack([child, parent])).residual_asymmetry(0, 1)
        assert forward == pytest.approx(-backward, abs=1e-12)
        right += int(forward[0] > 0)
    assert right == 20


def test_lean_is_antisymmetric_and_zero_of_equals() -> None:
    units = torch.stack([laplace(1), laplace(1), laplace(1) + laplace(2), laplace(3)])
    statistics = statistics_of(units, stack())
    for i, j in itertools.product(range(4), repeat=2):
        assert (
            statistics.residual_asymmetry(i, j) == -statistics.residual_asymmetry(j, i)
        ).all() and statistics.residual_asymmetry(i, j).shape == (2,)
    assert statistics.residual_asymmetry(0, 1)[0] == 0 == statistics.residual_asymmetry(3, 3)[1]


def test_kurtosis_against_scipy() -> None:
    units = torch.stack([laplace(1), torch.randn(100, 80, generator=torch.Generator().manual_seed(0))])
    expected = scipy_kurtosis(units.flatten(1).double().numpy(), axis=1)
    np.testing.assert_allclose(statistics_of(units).kurtosis[0], expected, rtol=1e-9)


def test_entropy_of_known_spectra() -> None:
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    values = torch.tensor([3.0, 2.0, 1.0] + [0.0] * 13, dtype=torch.float64)
    shares = np.array([9, 4, 1]) / 14
    units = torch.stack([q, q @ values.diag() @ q.T, torch.zeros_like(q)])
    found = statistics_of(units)
    expected = [math.log(16), -(shares * np.log(shares)).sum(), 0.0]
    np.testing.assert_allclose(found.entropy[0], expected, atol=1e-9)
    assert found.kurtosis[0, 2] == 0, "a matrix of zeros has no shape"


# ---- untouched weights


def weights(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32) * np.float32(0.05)


def fine_tune(
    parent: np.ndarray, touched: np.ndarray, seed: int, decay: float = 0.0, steps: int = 0, change: float = 0.3
) -> np.ndarray:
    """`steps` float32 multiplications of all weights by 1 − lr·wd, and new values where a gradient came."""
    made = parent.copy()
    for _ in range(steps):
        made *= np.float32(1 - decay)
    return np.where(touched, made + np.float32(change) * weights(parent.size, seed).reshape(parent.shape), made)


@pytest.mark.parametrize("decay", [0.0, 3e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("part", [0.003, 0.1, 0.9])
def test_untouched_weights_are_found(decay: float, part: float) -> None:
    parent = weights(50_000, 1)
    touched = np.random.default_rng(2).random(parent.size) >= part
    found = shared(parent, fine_tune(parent, touched, 3, decay, 300))
    assert found[~touched].all(), "every one of them"
    assert found[touched].mean() < 1e-3, "of those touched a few by chance"


def test_two_that_decayed_differently_share_what_neither_touched() -> None:
    parent = weights(50_000, 1)
    touched = np.random.default_rng(2).random((2, parent.size)) < 0.5
    one, two = (fine_tune(parent, t, 3 + k, 10 ** -(3.0 + k), 200 + k) for k, t in enumerate(touched))
    expected = ~touched.any(0)
    for found in (shared(one, two), shared(two, one)):
        assert found[expected].all() and found[~expected].mean() < 1e-3


@pytest.mark.parametrize("change", [1.0, 1e-1, 1e-2, 1e-3])
def test_nothing_is_untouched_where_all_changed(change: float) -> None:
    for seed in range(10):
        parent = weights(30_000, seed)
        child = fine_tune(parent, np.ones(parent.size, bool), 100 + seed, 1e-4, 100, change)
        assert not shared(parent, child).any()


def test_unrelated_models_share_no_weights() -> None:
    found = [shared(weights(30_000, 2 * k), weights(30_000, 2 * k + 1)).any() for k in range(60)]
    assert not any(found)


def test_zeros_are_never_shared() -> None:
    parent = weights(5_000, 1)
    parent[::2] = 0
    assert (shared(parent, parent) == (parent != 0)).all()
    assert not shared(np.zeros_like(parent), np.zeros_like(parent)).any()
    assert not shared(parent, np.zeros_like(parent)).any() and not shared(np.zeros_like(parent), parent).any()


@pytest.mark.parametrize(("factor", "found"), [(2.9, True), (0.35, True), (3.1, False), (0.32, False), (-1.0, False)])
def test_the_factor_is_positive_and_near_one(factor: float, found: bool) -> None:
    parent = weights(5_000, 1)
    assert shared(parent, np.float32(factor) * parent).all() == found
    assert shared(parent, np.float32(factor) * parent).any() == found


def test_a_spike_needs_so_many_weights() -> None:
    for count, expected in ((MIN_SPIKE_WEIGHTS, True), (MIN_SPIKE_WEIGHTS - 1, False)):
        parent = weights(10_000, 1)
        touched = np.arange(parent.size) >= count
        found = shared(parent, fine_tune(parent, touched, 2, change=3.0))
        assert found[:count].all() == expected and found[:count].any() == expected


def test_a_spike_stands_out_of_what_is_around_it() -> None:
    """Log ratios spread evenly, ten in the width of a spike, and as many again as it takes."""
    rng = np.random.default_rng(0)
    even = np.linspace(-0.01, 0.01, int(10 * 0.02 / (2 * SPIKE_WIDTH)))
    for extra, expected in ((100, True), (0, False)):
        logs = np.concatenate([even, np.zeros(extra)])
        first = rng.uniform(0.5, 2, logs.size)
        found = shared(first, first * np.exp(logs))
        assert found.any() == expected == found[even.size :].any() and found[: even.size].sum() <= 12


def test_a_spike_is_taken_around_its_middle() -> None:
    """Thirty ratios across most of its width."""
    first = np.random.default_rng(0).uniform(0.5, 2, MIN_SPIKE_WEIGHTS)
    assert shared(first, first * np.exp(np.linspace(-0.9, 0.9, MIN_SPIKE_WEIGHTS) * SPIKE_WIDTH)).all()


class Family:
    """Models of one root whose untouched weights are known: `touched[i]`, by i's own fine-tuning."""

    def __init__(self, parents: list[int | None], seed: int, part: float = 0.7, matrices: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.models: list[list[np.ndarray]] = []
        self.fresh: list[list[np.ndarray]] = []  # weights as they were before: which of the root's are left
        drift = [weights(20_000, seed + 9).reshape(100, 200) for _ in range(matrices)]
        for i, parent in enumerate(parents):
            if parent is None:
                self.models.append([weights(20_000, 50 * seed + m).reshape(100, 200) for m in range(matrices)])
                self.fresh.append([np.ones((100, 200), bool)] * matrices)
                continue
            own = [rng.random((100, 200)) < part for _ in range(matrices)]
            decay, steps = float(rng.choice([0, 1e-4, 1e-3])), int(rng.integers(50, 200))
            self.models.append([
                fine_tune(w + 2 * t * d, t, 1000 * seed + 10 * i + m, decay, steps)
                for m, (w, t, d) in enumerate(zip(self.models[parent], own, drift, strict=True))
            ])  # fmt: skip
            self.fresh.append([f & ~t for f, t in zip(self.fresh[parent], own, strict=True)])
        self.units = [torch.from_numpy(np.stack(each)) for each in zip(*self.models, strict=True)]
        self.without_gradient = WithoutGradient(self.units)


CHAIN, FORK = [None, 0, 1], [None, 0, 0]


@pytest.mark.parametrize(("parents", "middle"), [(CHAIN, 1), (FORK, 0), ([None, 0, 1, 1, 2, 0], None)])
def test_the_one_in_between_whatever_the_order(parents: list[int | None], middle: int | None) -> None:
    for seed in range(3):
        without_gradient = Family(parents, seed).without_gradient
        around = dict(enumerate(parents))
        for three in itertools.permutations(range(len(parents)), 3):
            inside = _inside(around, three)
            assert without_gradient.between(*three) == (
                (inside,) if inside is not None else without_gradient.between(*three)
            )
            if inside is None:  # they meet at a fourth one: none of them is certain to be the one between
                continue
            assert middle is None or three[inside] == middle


def _inside(parents: dict[int, int | None], three: tuple[int, ...]) -> int | None:
    """Which of three lies on the path between the other two, None where none does."""

    def up(i: int | None) -> list[int]:
        return [] if i is None else [i, *up(parents[i])]

    def path(i: int, j: int) -> set[int]:
        return ({*up(i)} ^ {*up(j)}) | {next(k for k in up(i) if k in up(j))}

    return next((k for k, x in enumerate(three) if x in path(*(y for y in three if y != x))), None)


def test_what_nothing_was_left_of_tells_nothing() -> None:
    everything = Family(CHAIN, 1, part=1.1).without_gradient
    assert everything.between(0, 1, 2) == (0, 1, 2)
    nothing = WithoutGradient([torch.from_numpy(weights(200, 1).reshape(1, 10, 20)).repeat(3, 1, 1)])
    assert nothing.between(0, 1, 2) == (0, 1, 2)


def test_counts_of_untouched_weights_are_the_simulated_ones() -> None:
    """Of a parent and two children: shared by the parent and one child is what that one left and the other did not."""
    family = Family(FORK, 5, part=0.4, matrices=3)
    _, one, two = family.fresh
    for m, counts in enumerate(family.without_gradient.shared_by_two(0, 1, 2)):
        expected = [0, (two[m] & ~one[m]).sum(), (one[m] & ~two[m]).sum()]
        np.testing.assert_allclose(counts, expected, atol=10)
    assert family.without_gradient.shared_by_two(0, 1, 2).shape == (3, 3)


def test_counts_go_with_their_arguments() -> None:
    family = Family([None, 0, 1, 0], 3)
    for three in itertools.combinations(range(4), 3):
        fresh = WithoutGradient(family.units)
        straight = family.without_gradient.shared_by_two(*three)
        for order in itertools.permutations(range(3)):
            turned = tuple(three[k] for k in order)
            for each in (family.without_gradient, fresh):
                assert (each.shared_by_two(*turned) == straight[:, order]).all()


class Counts(WithoutGradient):
    """With counts that were made up."""

    def __init__(self, counts: Callable[[int, int, int], np.ndarray]) -> None:
        super().__init__([])
        self.shared_by_two = counts  # type: ignore[method-assign]


def test_the_rule_of_three() -> None:
    def told(*counts: int) -> tuple[int, ...]:
        return Counts(lambda a, b, c: np.array([counts], dtype=float)).between(0, 1, 2)

    assert told(0, MIN_DECISIVE_WEIGHTS, MIN_DECISIVE_WEIGHTS) == (0,) and told(
        0, MIN_DECISIVE_WEIGHTS - 1, MIN_DECISIVE_WEIGHTS
    ) == (0, 1)
    assert told(100 * DECISIVE_RATIO, 100, 100 * DECISIVE_RATIO) == (1,), "so many times as much, or more"
    assert told(100 * DECISIVE_RATIO, 100 * DECISIVE_RATIO - 1, 100) == (1, 2)
    assert told(0, 0, 0) == told(500, 500, 500) == (0, 1, 2)


def test_only_what_no_other_pair_shares_is_alone() -> None:
    """Of any bits, as sets; that sharing is transitive is not taken for granted."""
    rng = np.random.default_rng(0)
    bits = {pair: rng.random((2, 80)) < 0.5 for pair in itertools.combinations(range(3), 2)}
    without_gradient = WithoutGradient(
        [torch.from_numpy(rng.normal(size=(3, 8, 10)).astype(np.float32)) for _ in range(2)]
    )
    without_gradient._pairs = {pair: [np.packbits(each) for each in two] for pair, two in bits.items()}
    pairs = [(1, 2), (0, 2), (0, 1)]
    for m, counts in enumerate(without_gradient.shared_by_two(0, 1, 2)):
        sets = [{*np.flatnonzero(bits[pair][m])} for pair in pairs]
        expected = [len(sets[k] - set.union(*(x for j, x in enumerate(sets) if j != k))) for k in range(3)]
        np.testing.assert_allclose(counts, expected, atol=1)  # the median ratio itself passes for rounding


def test_a_bootstrap_weighs_the_matrices() -> None:
    counts = np.array([[0, 50, 50], [50, 50, 0]], dtype=float)
    made = Counts(lambda a, b, c: counts)
    assert made.between(0, 1, 2, np.array([1.0, 0.0])) == (0,)
    assert made.between(0, 1, 2, np.array([0.0, 2.0])) == (2,)
    assert made.between(0, 1, 2, np.array([1.0, 1.0])) == made.between(0, 1, 2) == (0, 1, 2)


def test_untouched_of_large_matrices_by_some_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(FORK, 5)
    whole = family.without_gradient.shared_by_two(0, 1, 2)
    monkeypatch.setattr("hf_lineage.trees.without_gradient.MAX_ENTRIES", 5_000)
    np.testing.assert_allclose(WithoutGradient(family.units).shared_by_two(0, 1, 2), whole / 4, rtol=0.15, atol=10)


@pytest.mark.parametrize("rate", [1e-7, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("steps", [100, 300, 700])
def test_siblings_that_round_alike_do_not_rule_out_their_parent(rate: float, steps: int) -> None:
    """Weights that shrink by a factor next to 1 round the same way in both, and so are equal there, and not κ times hers."""
    generator = torch.Generator().manual_seed(0)
    parent = torch.randn(40, 1000, generator=generator)
    children = []
    for _ in range(2):
        child = parent.clone()
        for _ in range(steps):
            child.mul_(1 - rate)
        touched = torch.rand(child.shape, generator=generator) < 0.3
        children.append(torch.where(touched, child + 0.1 * torch.randn(child.shape, generator=generator), child))
    assert 0 in WithoutGradient([torch.stack([parent, *children])]).between(0, 1, 2)


def test_equal_numbers_of_half_precision_strangers_are_no_spike() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        one, other = (torch.randn(20_000, generator=generator).to(dtype).float().numpy() for _ in range(2))
        assert not shared(one, other).any()
    same = torch.randn(20_000, generator=generator)
    half = torch.where(torch.rand(20_000, generator=generator) < 0.5, same, same * 1.5).bfloat16().float()
    assert shared(same.bfloat16().float().numpy(), half.numpy()).mean() > 0.4
