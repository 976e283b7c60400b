"""The proven p-value against exact permanents, all matchings, many draws, and what it must not depend on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hf_lineage.weights.permutation_test import draw_matchings, live_units, pair_test, unit_products
from hf_lineage.weights.proof import GRID, MAX_EXPONENT, log_e_value, log_permanent_bound, proven_log10_p

MATCHINGS = {h: np.array(list(itertools.permutations(range(h)))) for h in range(2, 8)}


def units(h: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed))


def nasty(case: int, h: int) -> np.ndarray:
    """(h, h): heavy tails, dead rows and columns, ties, negative diagonals, huge and tiny scales."""
    rng = np.random.default_rng(case)
    c = rng.normal(size=(h, h)) ** (1 + 2 * (case % 2)) + (case % 5 - 1) * np.eye(h)
    if case % 3 == 0:
        c[rng.random(h) < 0.5] = 0.0
        c[:, rng.random(h) < 0.3] = 0.0
    if case % 4 == 1:
        c = np.round(c)
    return c * 10.0 ** (case % 7 - 3)


def sums(c: np.ndarray) -> np.ndarray:
    """ΣC[i, π(i)] of all matchings."""
    return c[np.arange(len(c)), MATCHINGS[len(c)]].sum(1)


def tail(c: np.ndarray) -> float:
    """The exact share of matchings that reach the trace."""
    reached = np.trace(c)
    return float((sums(c) >= reached - 1e-9 * max(1, abs(reached))).mean())


def shuffled(c: np.ndarray, seed: int) -> np.ndarray:
    """Its rows in another order: another matching was observed."""
    return c[np.random.default_rng(seed).permutation(len(c))]


@pytest.mark.parametrize("h", range(2, 8))
def test_the_bound_is_never_below_the_exact_permanent(h: int) -> None:
    for case in range(60):
        c = nasty(case, h)
        span = float(c.max() - c.min())
        thetas = [t for t in (0.01, 0.3, 1.0, 10.0, 100.0) if 0 < t * span <= MAX_EXPONENT]
        for theta in thetas:
            exact = np.logaddexp.reduce(theta * sums(c))
            bound = float(log_permanent_bound(torch.tensor(c)[None], torch.tensor([theta], dtype=torch.float64))[0])
            assert bound >= exact - 1e-9 * max(1.0, abs(exact)), (case, theta)


def test_the_bound_is_tight_where_it_must_be() -> None:
    """A constant matrix has the permanent h!, of a diagonal that stands out the product of the diagonal is all."""
    one = torch.ones(1, dtype=torch.float64)
    flat = float(log_permanent_bound(torch.zeros(1, 50, 50, dtype=torch.float64), one)[0])
    assert flat == pytest.approx(math.lgamma(51), rel=1e-9)
    plain = float(log_permanent_bound(100 * torch.eye(50, dtype=torch.float64)[None], one)[0])
    assert plain == pytest.approx(5000, rel=1e-9)


@pytest.mark.parametrize("case", range(40))
def test_one_order_is_never_below_the_true_tail(case: int) -> None:
    """Against all matchings of 5 to 7 units, the observed one and the best one."""
    c = nasty(case, 5 + case % 3)
    best = c[np.argsort(MATCHINGS[len(c)][np.argmax(sums(c))])]  # rows so that the best matching is the diagonal
    assert np.trace(best) == pytest.approx(sums(c).max())
    for seen in (c, best):
        assert math.log10(tail(seen)) - 1e-9 <= proven_log10_p([seen[None]]) <= 0


def test_the_mean_of_an_e_value_over_all_matchings_is_at_most_one() -> None:
    for case in range(30):
        c = nasty(case, 6)
        if c.max() > c.min():
            seen = torch.tensor(np.array([c[np.argsort(m)] for m in MATCHINGS[6]]))
            theta = torch.full(
                (len(seen),), min(1.0 / c.std(), MAX_EXPONENT / (c.max() - c.min())), dtype=torch.float64
            )
            assert float(log_e_value(seen, theta).exp().mean()) <= 1 + 1e-9


def super_uniform(found: np.ndarray) -> bool:
    """Whether log10 p-values of equally likely cases are ≤ a no more often than with probability a."""
    ascending = np.sort(found)
    share = np.searchsorted(ascending, ascending + 1e-9, side="right") / len(found)
    return bool((np.log10(share) <= ascending + 1e-9).all())


@pytest.mark.parametrize("dependent", [False, True])
def test_two_orders_are_valid_over_all_their_matchings(dependent: bool) -> None:
    """All (4!)² pairs of matchings; dependent: the second order's columns are the first one's units, as in a network."""
    for seed in range(1):
        one, two = units(4, 5, seed), units(4, 4, 50 + seed)
        other = one + 0.3 * units(4, 5, 90 + seed), two + 0.3 * units(4, 4, 91 + seed)
        found = []
        for first, second in itertools.product(MATCHINGS[4], repeat=2):
            b2 = other[1][torch.tensor(second)]
            b2 = b2[:, torch.tensor(first)] if dependent else b2
            c = [unit_products([one], [other[0][torch.tensor(first)]]), unit_products([two], [b2])]
            found.append(proven_log10_p(c))
        assert min(found) < -1, "something is proven"
        assert super_uniform(np.array(found))


@pytest.mark.integration
@pytest.mark.parametrize("case", range(6))
def test_thirty_units_against_many_draws(case: int) -> None:
    rng = np.random.default_rng(case)
    c = (rng.normal(size=(30, 30)) ** (1 + 2 * (case % 2)))[None]
    null = draw_matchings(c, 5, 100_000)
    for quantile in (0.9, 0.99, 0.999, 0.9999, 1.0):
        seen = c.copy()
        seen[0, range(30), range(30)] += (np.quantile(null, quantile) - np.trace(c[0])) / 30
        true = (draw_matchings(seen, 6, 100_000) >= np.trace(seen[0])).mean()
        assert 10 ** proven_log10_p([seen]) >= true - 4 * math.sqrt(max(true, 1e-5) / 100_000)


def test_invariances() -> None:
    """Shifts of rows and columns, one factor, the same permutation of both, and which model is the first."""
    a = units(40, 15, 0)
    c = unit_products([a], [a + 1.5 * units(40, 15, 1)])
    plain = proven_log10_p([c])
    rng = np.random.default_rng(0)
    order = rng.permutation(40)
    assert -40 < plain < -5
    assert proven_log10_p([c + rng.normal(size=(1, 40, 1)) + rng.normal(size=(1, 1, 40))]) == pytest.approx(
        plain, rel=1e-9
    )
    for other in (7 * c, 1e-6 * c, c[:, order][:, :, order], c.transpose(0, 2, 1)):
        assert proven_log10_p([other]) == pytest.approx(plain, rel=1e-9)


def correlated(h: int, d: int, rho: float, seed: int = 0) -> np.ndarray:
    a = units(h, d, seed)
    return unit_products([a], [rho * a + math.sqrt(1 - rho * rho) * units(h, d, seed + 1)])


@pytest.mark.parametrize(
    ("h", "d", "rho", "most"),
    [(128, 64, 0.05, -3), (256, 256, 0.05, -15), (256, 256, 0.2, -350), (1024, 384, 0.1, -350), (64, 16, 0.9, -80)],
)
def test_how_much_is_proven(h: int, d: int, rho: float, most: float) -> None:
    assert proven_log10_p([correlated(h, d, rho)]) < most
    assert proven_log10_p([correlated(h, d, rho)] * 3) < 2.5 * most, "layers multiply"


def test_the_floor_is_reached_and_not_passed() -> None:
    floor = -math.lgamma(257) / math.log(10)
    assert floor <= proven_log10_p([correlated(256, 256, 0.5)]) < floor + 1
    assert proven_log10_p([np.eye(5)[None] * 1e6]) >= -math.log10(math.factorial(5))


def test_of_unrelated_units_nothing_is_proven() -> None:
    found = [proven_log10_p([correlated(64, 32, 0.0, 10 * i)] * 2) for i in range(40)]
    assert min(found) > -1.5
    assert proven_log10_p([]) == proven_log10_p([np.zeros((0, 0, 0))]) == proven_log10_p([np.ones((1, 5, 5))]) == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_proves_nothing(wrong: float) -> None:
    c = np.eye(20)[None].copy()
    c[0, 3, 4] = wrong
    assert proven_log10_p([c]) == 0.0
    value = log_e_value(torch.from_numpy(c), torch.ones(1, dtype=torch.float64))
    assert float(value[0]) == -math.inf


def test_the_grid_is_sorted_and_every_exponent_is_bounded() -> None:
    assert [*GRID] == sorted(GRID)
    c = np.full((1, 30, 30), 0.0)
    c[0, 0, 0] = 1e9  # one entry far out: θ is bounded by the range
    assert math.log10(1 / 30) - 1e-9 <= proven_log10_p([c]) <= 0


def padded(seed: int, h: int = 256, padding: int = 16, value: float = 0.0) -> torch.Tensor:
    a = 0.3 + units(h, 64, seed)
    a[-padding:] = value
    return a


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_padding_at_the_same_places_relates_nobody(value: float) -> None:
    """Units that were added in both models, all alike, have a place of their own and say nothing of an origin."""
    found = []
    for seed in range(12):
        c = unit_products([padded(2 * seed, value=value)], [padded(2 * seed + 1, value=value)])
        assert c.shape == (1, 240, 240)
        test = pair_test({"x": c}.__getitem__, ["x"], seed)
        assert test is not None
        found.append(test.p)
    assert min(found) > 1e-3 and max(found) > 0.3


def test_live_units() -> None:
    a = units(6, 4, 0)
    a[1], a[2], a[3, 1] = 0.0, 2.5, math.inf
    assert live_units(a).tolist() == [True, False, False, False, True, True]
    assert not live_units(torch.ones(5, 3)).any() and not live_units(torch.full((5, 3), math.nan)).any()
    mean = a[[0, 4, 5]]
    assert live_units(torch.cat([mean, mean.mean(0, keepdim=True)])).tolist() == [True, True, True, False]


def test_large_orders_are_matched_in_runs() -> None:
    """The same trace, a null law of almost the same moments, and no h × h matrix."""
    a = units(600, 20, 0)
    c = unit_products([a], [a + units(600, 20, 1)])
    assert c.shape == (3, 200, 200)
    ones = [x[:600] for x in (a, a + units(600, 20, 1))]
    cosines = [float(np.trace(m)) for m in c]
    assert sum(cosines) == pytest.approx(float(np.trace(whole_product(*ones))), rel=1e-5)


def whole_product(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    from hf_lineage.weights.permutation_test import unit_length_rows

    return (unit_length_rows(a) @ unit_length_rows(b).T).numpy()


@pytest.mark.parametrize("layers", [1, 3, 40])
def test_the_bound_uses_some_units_of_every_order(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_lineage.weights.permutation_test.PROOF_UNITS", 100)
    seen: list[tuple[int, ...]] = []

    def spy(parts: list[np.ndarray]) -> float:
        seen.extend(part.shape for part in parts)
        return 0.0

    monkeypatch.setattr("hf_lineage.weights.permutation_test.proven_log10_p", spy)
    c = unit_products([units(90, 20, 0)], [units(90, 20, 1)])
    pair_test(lambda order: c, [str(i) for i in range(layers)], 0)
    most = max(32, 100 // layers)
    assert seen == [(1, min(90, most), min(90, most))] * layers


def test_which_model_is_first_does_not_matter() -> None:
    """The same p-value, whatever way it was computed: a pair has one."""
    for seed in range(6):
        a, b = [units(48, 20, seed), units(30, 48, 9 + seed)], [units(48, 20, 20 + seed), units(30, 48, 30 + seed)]
        related = [x + 0.2 * y for x, y in zip(a, b, strict=True)]
        for other in (b, related):
            matrices = list(zip(a, other, strict=True))
            one = pair_test(lambda k, of=matrices: unit_products([of[int(k)][0]], [of[int(k)][1]]), "01", 0)
            two = pair_test(lambda k, of=matrices: unit_products([of[int(k)][1]], [of[int(k)][0]]), "01", 0)
            assert one is not None and two is not None and one.method == two.method
            assert one.log10_p == pytest.approx(two.log10_p, rel=1e-5)
