"""Shares from Gram matrices against least squares on the rows themselves: SciPy, NumPy, written-out formulas, simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_lineage.weights.mixture import (
    Fit,
    cosines,
    most_central,
    select_sources,
    sibling_shares,
    simplex,
    slerp_position,
    task_arithmetic,
    unconstrained,
    with_stderr,
)

N = 4000


def gram_of(child: np.ndarray, sources: Sequence[np.ndarray]) -> np.ndarray:
    """As the package keeps it: the child itself, and what each source differs by."""
    rows = np.stack([child, *(source - child for source in sources)])
    return rows @ rows.T


def relatives(count: int, change: float, seed: int = 0, n: int = N) -> list[np.ndarray]:
    """Fine-tunes of one base, each with a change of its own."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n)
    return [base + change * rng.standard_normal(n) for _ in range(count)]


def strangers(count: int, seed: int = 0, n: int = N) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n) * (0.5 + k) for k in range(count)]


def mix(sources: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return np.asarray(weights) @ np.stack(sources)


def rest(child: np.ndarray, sources: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return child - mix(sources, weights)


def slsqp(child: np.ndarray, sources: Sequence[np.ndarray], unknown: bool) -> np.ndarray:
    """The same programme by a general optimiser on the rows; the unknown, if any, is the last weight."""
    rows = np.stack([*sources, *([np.zeros_like(child)] if unknown else [])])
    scale = float(child @ child)
    found = minimize(
        lambda w: float(np.square(child - w @ rows).sum()) / scale, np.full(len(rows), 1 / len(rows)),
        jac=lambda w: -2 * rows @ (child - w @ rows) / scale, method="SLSQP", bounds=[(0, 1)] * len(rows),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}, options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return found.x


class TestSimplex:
    @pytest.mark.parametrize("change", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    @pytest.mark.parametrize("unknown", [True, False])
    def test_an_exact_merge_to_six_digits(self, change: float, unknown: bool) -> None:
        sources, truth = relatives(4, change), [0.5, 0.3, 0.15, 0.05]
        fit = simplex(gram_of(mix(sources, truth), sources), range(4), unknown=unknown)
        np.testing.assert_allclose(fit.weights, truth, atol=1e-6)
        assert abs(fit.unknown) < 1e-6 and fit.rss <= 1e-9 * change**2 * N

    @pytest.mark.parametrize("unknown", [True, False])
    @pytest.mark.parametrize("case", range(12))
    def test_against_a_general_optimiser(self, case: int, unknown: bool) -> None:
        """Children of all kinds: inside the simplex, outside of it, shrunk, of a source that was not offered."""
        rng = np.random.default_rng(case)
        sources = relatives(3, 0.5, case) + strangers(2, case + 100)
        weights = rng.normal(0.2, 0.5, 5) if case % 2 else rng.dirichlet(np.ones(5)) * rng.uniform(0.4, 1)
        child = mix(sources, weights) + 0.3 * rng.standard_normal(N)
        fit, other = simplex(gram_of(child, sources), range(5), unknown=unknown), slsqp(child, sources, unknown)
        np.testing.assert_allclose([*fit.weights, fit.unknown][: len(other)], other, atol=2e-5)
        assert fit.rss == pytest.approx(float(np.square(rest(child, sources, fit.weights)).sum()), rel=1e-9)
        assert fit.weights.min() >= 0 <= fit.unknown and fit.weights.sum() + fit.unknown == pytest.approx(1)

    @pytest.mark.parametrize("change", [1.0, 1e-3, 1e-6])
    def test_the_conditions_of_a_minimum(self, change: float) -> None:
        """Karush, Kuhn, Tucker: along no weight is there a way down, and none up along those in use."""
        sources = relatives(5, change, 3)
        child = mix(sources, [0.9, 0.4, -0.5, 0.1, 0.1]) + change * strangers(1, 9)[0]
        fit = simplex(gram_of(child, sources), range(5))
        left = rest(child, sources, fit.weights)
        slopes = np.array([(child - source - left) @ left for source in sources])  # from here towards each source
        size = float(left @ left)
        assert fit.weights[2] == 0 and len(fit.support) >= 2
        assert (slopes >= -1e-7 * size).all() and np.abs(slopes[[*fit.support]]).max() < 1e-7 * size

    def test_only_those_asked_for_take_part(self) -> None:
        sources = strangers(4)
        child = 0.6 * sources[1] + 0.4 * sources[3]
        fit = simplex(gram_of(child, sources), (3, 0), unknown=False)
        assert fit.weights[1] == fit.weights[2] == 0 and fit.weights.sum() == pytest.approx(1)
        assert fit.weights[[3, 0]] == pytest.approx(slsqp(child, [sources[3], sources[0]], False), abs=1e-5)

    def test_a_source_equal_to_the_child_explains_it_alone(self) -> None:
        sources = relatives(4, 0.1)
        fit = simplex(gram_of(sources[2].copy(), sources), range(4))
        assert fit.support == (2,) and fit.weights[2] == 1 and fit.unknown == fit.rss == 0

    @pytest.mark.parametrize("unknown", [True, False])
    def test_copies_of_one_source_share_its_weight(self, unknown: bool) -> None:
        a, b = relatives(2, 0.3)
        fit = simplex(gram_of(0.7 * a + 0.3 * b, [a, b, a.copy(), a.copy()]), range(4), unknown=unknown)
        assert fit.weights[[0, 2, 3]].sum() == pytest.approx(0.7, abs=1e-6)
        assert fit.weights[1] == pytest.approx(0.3, abs=1e-6) and fit.weights.min() >= 0

    def test_a_source_of_zeros_is_the_unknown(self) -> None:
        a, b = strangers(2)
        gram = gram_of(0.5 * a + 0.2 * b, [a, b, 0 * a])
        with_zeros, offered = simplex(gram, range(3), unknown=False), simplex(gram, range(3))
        assert with_zeros.weights == pytest.approx([0.5, 0.2, 0.3], abs=1e-6)
        assert offered.weights[2] + offered.unknown == pytest.approx(0.3, abs=1e-6)

    def test_what_was_not_offered_is_unknown(self) -> None:
        a, b, c = strangers(3, n=400_000)
        fit = simplex(gram_of(0.5 * a + 0.3 * b + 0.2 * c, [a, b]), range(2))
        assert fit.weights == pytest.approx([0.5, 0.3], abs=0.01) and fit.unknown == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("change", [1.0, 1e-2, 1e-4])
def test_free_weights_against_numpy(change: float) -> None:
    sources = [*relatives(3, change, 1), strangers(1, 2)[0]]
    child = mix(sources, [1.4, -0.6, 0.1, 0.3]) + change * strangers(1, 8)[0]
    fit = unconstrained(gram_of(child, sources), range(4))
    exact = np.linalg.lstsq(np.stack(sources).T, child, rcond=None)[0]
    np.testing.assert_allclose(fit.weights, exact, atol=1e-7 / change)
    assert fit.unknown == pytest.approx(1 - exact.sum(), abs=1e-7)
    assert fit.rss == pytest.approx(float(np.square(rest(child, sources, exact)).sum()), rel=1e-6)


@pytest.mark.parametrize("change", [1.0, 1e-2, 1e-4, 1e-6])
def test_deltas_around_a_base_against_numpy(change: float) -> None:
    base, *sources = relatives(4, change, 5)
    child = base + 1.3 * (sources[0] - base) - 0.4 * (sources[2] - base) + change * strangers(1, 8)[0]
    deltas = np.stack([source - base for source in sources])
    exact = np.linalg.lstsq(deltas.T / change, (child - base) / change, rcond=None)[0]
    fit = task_arithmetic(gram_of(child, [sources[0], base, *sources[1:]]), 1, range(4))
    np.testing.assert_allclose(fit.weights[[0, 2, 3]], exact, atol=1e-6)
    assert fit.weights[1] == pytest.approx(1 - exact.sum(), abs=1e-6)
    assert fit.rss == pytest.approx(float(np.square(child - base - exact @ deltas).sum()), rel=1e-5)


@pytest.mark.parametrize("degrees", [2, 20, 60, 90, 150])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.85])
def test_an_arc_against_slerps_formula(degrees: float, t: float) -> None:
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.standard_normal((N, 2)))
    angle = math.radians(degrees)
    p, r = 3 * q[:, 0], 3 * (math.cos(angle) * q[:, 0] + math.sin(angle) * q[:, 1])
    made = (math.sin((1 - t) * angle) * p + math.sin(t * angle) * r) / math.sin(angle)
    found, length, omega = slerp_position(gram_of(made, [p, r]), 0, 1)
    assert (found, length, omega) == pytest.approx((t, 1, angle), abs=1e-6)
    assert slerp_position(gram_of(made, [r, p]), 0, 1)[0] == pytest.approx(1 - t, abs=1e-6)
    line = slerp_position(gram_of((1 - t) * p + t * r, [p, r]), 0, 1)[1]
    assert line == pytest.approx(np.linalg.norm((1 - t) * p + t * r) / 3, abs=1e-6) and line < 1


def test_a_standard_error_is_the_jackknifes_and_least_squares() -> None:
    """Three sources in seven tensors of unequal size: leave one out by hand, and rss·(PPᵀ)⁻¹ on the rows."""
    rng = np.random.default_rng(4)
    sizes = [500, 800, 200, 1000, 300, 400, 800]
    sources = strangers(3, 1, sum(sizes))
    child = 0.5 * sources[0] + 0.3 * sources[1] + 0.2 * sources[2] + 0.4 * rng.standard_normal(sum(sizes))
    cuts = np.cumsum(sizes)[:-1]
    parts = list(zip(np.split(child, cuts), *(np.split(s, cuts) for s in sources), strict=True))

    def fit(gram: np.ndarray) -> Fit:
        return unconstrained(gram, range(3))

    found = with_stderr(fit, [gram_of(part[0], part[1:]) for part in parts], sizes)
    left_out = []
    for i in range(len(parts)):
        kept = [
            np.concatenate(column) for column in zip(*(part for j, part in enumerate(parts) if j != i), strict=True)
        ]
        left_out.append(np.linalg.lstsq(np.stack(kept[1:]).T, kept[0], rcond=None)[0])
    jackknife = np.square(np.array(left_out) - np.mean(left_out, 0)).sum(0) * 6 / 7
    rows = np.stack(sources)
    whole = np.linalg.lstsq(rows.T, child, rcond=None)[0]
    each = np.square(child - whole @ rows).sum() * np.diag(np.linalg.inv(rows @ rows.T))
    np.testing.assert_allclose(found.weights, whole, atol=1e-9)
    np.testing.assert_allclose(found.stderr, np.sqrt(np.maximum(jackknife, each / sum(sizes)) + 0.01 * each), rtol=1e-6)


@pytest.mark.parametrize("kin", [False, True])
@pytest.mark.parametrize("change", [1.0, 0.1])
def test_two_standard_errors_hold_the_truth(kin: bool, change: float) -> None:
    """Merges that were tuned on: what that added has a cosine of about 0.1 with the sources, in all tensors alike."""
    held = total = 0
    for draw in range(60):
        rng = np.random.default_rng(draw)
        count = 2 + draw % 3
        sources = relatives(count, 0.5, draw, 1200) if kin else [*rng.standard_normal((count, 1200))]
        truth = rng.dirichlet(np.full(count, 4.0))
        span, _ = np.linalg.qr(np.stack(sources).T)
        outside = rng.standard_normal(1200)
        outside -= span @ (span.T @ outside)
        cosine = rng.normal(0, 0.1, count)
        drift = span @ cosine + math.sqrt(1 - cosine @ cosine) * outside / np.linalg.norm(outside)
        child = truth @ np.stack(sources) + change * np.linalg.norm(sources[0]) / 4 * drift
        grams = [gram_of(c, s) for c, s in ((child[i::6], [x[i::6] for x in sources]) for i in range(6))]
        found = with_stderr(lambda gram, k=count: simplex(gram, range(k), unknown=False), grams, [200] * 6)
        held += int((np.abs(found.weights - truth) <= 2 * found.stderr).sum())
        total += count
        assert (found.stderr < 0.5 * change).all(), "an error that holds everything says nothing"
    assert held >= 0.9 * total


def test_cosines_against_numpy() -> None:
    child, *sources = [*relatives(3, 0.3), *strangers(1, 5)]
    rows = np.stack([child, *sources])
    length = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(cosines(gram_of(child, sources)), rows @ rows.T / np.outer(length, length), atol=1e-12)
    empty = cosines(gram_of(child, [sources[0], 0 * child]))
    assert np.isnan(empty[2]).all() and np.isfinite(empty[:2, :2]).all()


def test_the_most_central_is_the_base() -> None:
    base = strangers(1)[0]
    tuned = [base + 0.05 * np.random.default_rng(k).standard_normal(N) for k in range(4)]
    gram = gram_of(np.mean(tuned, 0), [tuned[0], tuned[1], base, tuned[2], tuned[3]])
    found, crossing = most_central(gram, range(5))
    deltas = np.stack([each - base for each in tuned])
    assert found == 2 and crossing == pytest.approx(np.abs(np.corrcoef(deltas)[np.triu_indices(4, 1)]).mean(), abs=1e-3)
    without, crossing = most_central(gram, (0, 1, 3, 4))
    assert without != 2 and crossing == pytest.approx(0.5, abs=0.05)
    assert most_central(gram_of(tuned[0], [base, tuned[1], base.copy(), tuned[2]]), range(4))[0] in (1, 3), (
        "from a base that is there twice one delta is zero, and has no angle"
    )


# ---- which of them take part


def finder(child: np.ndarray, sources: Sequence[np.ndarray]) -> Callable[[Fit, int], bool]:
    """Stands in for the permutation test: whether the remainder correlates with a source by five standard errors."""

    def hidden(fit: Fit, k: int) -> bool:
        return abs(np.corrcoef(rest(child, sources, fit.weights), sources[k])[0, 1]) > 5 / math.sqrt(len(child))

    return hidden


def chosen(child: np.ndarray, sources: Sequence[np.ndarray]) -> Fit:
    """`select` from the nearest source on."""
    related = np.abs(np.corrcoef(np.stack(sources))) > 0.1
    nearest = int(np.argmin([np.linalg.norm(child - source) for source in sources]))
    return select_sources(gram_of(child, sources), nearest, related, finder(child, sources))


class TestSelect:
    @pytest.mark.parametrize("change", [0.5, 1e-2, 1e-4])
    def test_drift_shared_with_a_sibling_is_no_mixture(self, change: float) -> None:
        rng = np.random.default_rng(2)
        parent, shared, own, other = rng.standard_normal((4, N))
        child, sibling = (
            parent + change * (math.sqrt(0.35) * shared + math.sqrt(0.65) * alone) for alone in (own, other)
        )
        assert np.corrcoef(child - parent, sibling - parent)[0, 1] == pytest.approx(0.35, abs=0.04)
        fit = chosen(child, [sibling, parent, *strangers(2, 7)])
        assert fit.support == (1,)

    def test_two_unrelated_ones_are_both_found(self) -> None:
        sources = [*np.random.default_rng(3).standard_normal((4, 40_000))]
        child = 0.8 * sources[1] + 0.2 * sources[3]
        fit = chosen(child, sources)
        assert fit.support == (1, 3) and fit.weights[[1, 3]] == pytest.approx([0.8, 0.2], abs=1e-6)
        alone = select_sources(gram_of(child, sources), 1, np.eye(4, dtype=bool), lambda fit, k: False)
        assert alone.support == (1,) and alone.unknown > 0.1, "without the test's word nothing unrelated enters"

    def test_three_relatives_enter_together(self) -> None:
        sources = relatives(5, 0.1, 6)
        child = 0.5 * sources[0] + 0.3 * sources[2] + 0.2 * sources[4]
        fit = chosen(child, sources)
        assert {0, 2, 4} <= {*fit.support} and fit.weights == pytest.approx([0.5, 0, 0.3, 0, 0.2], abs=1e-6)

    def test_relatives_and_a_stranger(self) -> None:
        sources = [*relatives(2, 0.5, 8, 40_000), *np.random.default_rng(31).standard_normal((2, 40_000))]
        child = 0.4 * sources[0] + 0.35 * sources[1] + 0.25 * sources[3] + 0.02 * strangers(1, 5, 40_000)[0]
        fit = chosen(child, sources)
        assert fit.support == (0, 1, 3) and fit.weights[[0, 1, 3]] == pytest.approx([0.4, 0.35, 0.25], abs=0.02)

    def test_a_copy_stops_the_search(self) -> None:
        sources = relatives(3, 0.1)
        fit = select_sources(
            gram_of(sources[1].copy(), sources), 1, np.ones((3, 3), dtype=bool), lambda fit, k: pytest.fail("asked")
        )
        assert fit.support == (1,)

    @pytest.mark.parametrize("kind", ["order", "rotation", "scale"])
    def test_what_changes_nothing(self, kind: str) -> None:
        rng = np.random.default_rng(12)
        sources = [*relatives(3, 0.2, 11, 600), *rng.standard_normal((2, 600))]
        child = mix(sources, [0.3, 0.3, 0, 0.4, 0]) + 0.01 * rng.standard_normal(600)
        before, order = chosen(child, sources), [3, 0, 4, 2, 1] if kind == "order" else range(5)
        turn = np.linalg.qr(rng.standard_normal((600, 600)))[0] if kind == "rotation" else np.eye(600)
        factor = 1e-3 if kind == "scale" else 1.0
        related = np.abs(np.corrcoef(np.stack(sources)))[np.ix_(order, order)] > 0.1
        nearest = int(np.argmin([np.linalg.norm(child - sources[k]) for k in order]))
        gram = gram_of(factor * child @ turn, [factor * sources[k] @ turn for k in order])
        after = select_sources(gram, nearest, related, finder(child, [sources[k] for k in order]))
        assert len(before.support) == 3
        np.testing.assert_allclose(after.weights, before.weights[[*order]], atol=1e-7)
        assert after.unknown == pytest.approx(before.unknown, abs=1e-7)
        assert after.rss == pytest.approx(factor**2 * before.rss, rel=1e-6)


def siblings(cosine: float, seed: int, matrices: int = 6) -> list[list[np.ndarray]]:
    """Of each matrix a base and four models tuned from it, whose changes have that cosine."""
    rng = np.random.default_rng(seed)
    every = []
    for _ in range(matrices):
        base, common = rng.standard_normal(N), rng.standard_normal(N)
        steps = [np.sqrt(1 - cosine) * rng.standard_normal(N) + np.sqrt(cosine) * common for _ in range(4)]
        every.append([base, *(base + 0.05 * step for step in steps)])
    return every


@pytest.mark.parametrize("cosine", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_sibling_that_is_not_offered_keeps_its_share(cosine: float, seed: int) -> None:
    weights = (0.5, 0.3, 0.2)
    grams = [gram_of(mix(each[1:4], weights), each[:3]) for each in siblings(cosine, seed)]
    found = sibling_shares(grams, [N] * len(grams), 0, [1, 2])
    assert found and (found.is_merge or cosine == 0.3)  # the more they have in common, the less is sure
    assert found.unknown == pytest.approx(0.2, abs=0.02) and found.weights == pytest.approx(weights[:2], abs=0.02)
    assert np.all(np.abs(found.weights - weights[:2]) <= 2 * found.stderr)


@pytest.mark.parametrize("cosine", [0.05, 0.15, 0.3])
def test_one_more_sibling_is_no_merge_of_the_others(cosine: float) -> None:
    """Nor is a fine-tune of one of them, nor anything where one source may come from another."""
    made = siblings(cosine, 7)
    for child in ([each[4] for each in made], [each[1] + 0.5 * (each[4] - each[0]) for each in made]):
        grams = [gram_of(own, each[:4]) for own, each in zip(child, made, strict=True)]
        found = sibling_shares(grams, [N] * len(grams), 0, [1, 2, 3])
        assert found is None or not found.is_merge, found
    chain = [
        gram_of(0.4 * each[1] + 0.6 * (step := each[1] + each[2] - each[0]), [each[0], each[1], step]) for each in made
    ]
    assert sibling_shares(chain, [N] * len(chain), 0, [1, 2]) is None
