"""Metrics against plain loops and SciPy, derivatives against closed forms and differences, laws for each that exists."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_lineage.errors import ArgumentError
from hf_lineage.features.similarity import AS_PRINTED, METRICS, exact, gradient, metric, scores, similarity, taylor

DIFFERENTIABLE = [name for name, m in METRICS.items() if m.differentiable]
SHAPED = [name for name, m in METRICS.items() if not m.same_width]  # blind to rotation, scale and place
NORMS = [name for name, m in METRICS.items() if m.same_width]
SIZES = [(5, 3), (3, 7), (2, 1)]  # more probes than features, fewer, and the least


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(draw(width, width, seed=9))[0]


# ---------------------------------------------------------------------------------------------- values


def by_loop(term: Callable[[list[float]], float]) -> Callable[[np.ndarray, np.ndarray], float]:
    def s(F: np.ndarray, G: np.ndarray) -> float:
        return -sum(term([abs(f - g) for f, g in zip(x, y, strict=True)]) for x, y in zip(F, G, strict=True)) / len(F)

    return s


def hsic_quotient(K: np.ndarray, L: np.ndarray) -> float:
    H = np.eye(len(K)) - 1 / len(K)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ H @ b @ H))

    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


def distances(X: np.ndarray) -> np.ndarray:
    return squareform(pdist(X))


REFERENCE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "l1": by_loop(lambda row: sum(row) / len(row)),
    "l2": by_loop(lambda row: sum(d**2 for d in row) / len(row)),
    "lp": by_loop(lambda row: sum(d**4 for d in row) / len(row)),
    "linf": by_loop(max),
    "lse": by_loop(lambda row: math.log(sum(math.exp(0.01 * d) for d in row)) / (0.01 * len(row))),
    "cka": lambda F, G: hsic_quotient(F @ F.T, G @ G.T),
    "dc": lambda F, G: hsic_quotient(distances(F), distances(G)),
}


def test_every_metric_has_its_reference() -> None:
    assert list(METRICS) == list(REFERENCE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METRICS)
def test_values(name: str, size: tuple[int, int]) -> None:
    F, G = draw(*size), draw(*size, seed=1)
    assert similarity(name, F, G) == pytest.approx(REFERENCE[name](F.numpy(), G.numpy()), rel=1e-9)


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("widths", [(3, 4), (3, 9), (9, 3)])
def test_values_of_different_widths(name: str, widths: tuple[int, int]) -> None:
    F, G = draw(6, widths[0]), draw(6, widths[1], seed=1)
    assert similarity(name, F, G) == pytest.approx(REFERENCE[name](F.numpy(), G.numpy()), rel=1e-9)
    assert gradient(name, F, G).shape == F.shape


def test_known_values() -> None:
    F, G = torch.zeros(2, 2), torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    found = {name: similarity(name, F, G) for name in ("l1", "l2", "lp", "linf")}
    assert found == {"l1": -6 / 4, "l2": -14 / 4, "lp": -(1 + 16 + 81) / 4, "linf": -5 / 2}
    assert similarity("lse", F, F) == pytest.approx(-math.log(2) / (2 * 0.01)), "its best value is not 0"


# ---------------------------------------------------------------------------------------------- derivatives

CLOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda D: -D.sign() / D.numel(),
    "l2": lambda D: -2 * D / D.numel(),
    "lp": lambda D: -4 * D.sign() * D.abs() ** 3 / D.numel(),
    "lse": lambda D: -D.sign() * torch.softmax(0.01 * D.abs(), 1) / D.numel(),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CLOSED)
def test_gradient_has_its_closed_form(name: str, size: tuple[int, int]) -> None:
    F, G = 30 * draw(*size), 30 * draw(*size, seed=1)
    G[0, 0] = F[0, 0]  # sign(0) = 0
    torch.testing.assert_close(gradient(name, F, G), CLOSED[name](F - G))


@pytest.mark.parametrize("size", [(5, 3), (4, 6)])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_against_differences(name: str, size: tuple[int, int]) -> None:
    F, G, h = draw(*size), draw(*size, seed=1), 1e-5
    slope = gradient(name, F, G)
    for k in range(F.numel()):
        bump = torch.zeros(F.numel(), dtype=torch.float64).index_fill(0, torch.tensor(k), h).view(size)
        measured = (similarity(name, F + bump, G) - similarity(name, F - bump, G)) / (2 * h)
        assert float(slope.flatten()[k]) == pytest.approx(measured, rel=1e-6, abs=1e-8)


@pytest.fixture(scope="module")
def forward_mode() -> None:
    """The first dual number of a process scripts torch's own rules, which torch has since deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize("size", [(5, 3), (4, 6)])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_agrees_with_backward(name: str, size: tuple[int, int]) -> None:
    F, G, T = draw(*size), draw(*size, seed=1), draw(*size, seed=2)
    F[1] = F[0]  # two probes that look the same: distance 0
    value, forward = torch.func.jvp(lambda x: METRICS[name].function(x, G), (F,), (T,))
    assert float(value) == pytest.approx(similarity(name, F, G))
    assert float(forward) == pytest.approx(float((gradient(name, F, G) * T).sum()), rel=1e-9)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(METRICS[name].function(forward_ad.make_dual(F, T), G))
        assert dual.tangent is not None and float(dual.tangent) == pytest.approx(float(forward), rel=1e-12)


@pytest.mark.parametrize("name", ["linf"])
def test_metrics_without_a_gradient_say_so(name: str) -> None:
    F, G = draw(3, 2), draw(3, 2, seed=1)
    for call in (lambda: gradient(name, F, G), lambda: taylor(name, F, G, F, 0.1)):
        with pytest.raises(ArgumentError, match=r"differentiable metric \(l1, .*got 'linf'.*exact"):
            call()
    assert math.isfinite(exact(name, F, G, F, 0.1))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_taylor_is_linear_and_touches_exact(name: str) -> None:
    F, G, T = draw(6, 4), draw(6, 4, seed=1), draw(6, 4, seed=2)
    start, unit = similarity(name, F, G), taylor(name, F, G, T, 1.0)
    for step in (-2.0, 0.0, 1e-3, 5.0):
        assert taylor(name, F, G, T, step) == pytest.approx(start + step * (unit - start), rel=1e-12)
    assert exact(name, F, G, T, 0.0) == start == taylor(name, F, G, T, 0.0)
    error = [abs(exact(name, F, G, T, step) - taylor(name, F, G, T, step)) for step in (2e-3, 1e-3)]
    if name == "l1":  # made of straight lines
        assert max(error) < 1e-14
    else:
        assert error[0] / error[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("name", METRICS)
def test_exact_moves_the_features(name: str) -> None:
    F, G, T = draw(6, 4), draw(6, 4, seed=1), draw(6, 4, seed=2)
    assert exact(name, F, G, T, 0.3) == similarity(name, F + 0.3 * T, G)
    assert exact(name, F, G, G - F, 1.0) == pytest.approx(similarity(name, G, G)), "all the way to the child"


# ---------------------------------------------------------------------------------------------- laws


def matrices(lowest: float, highest: float) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Pairs with ties, equal rows and zeros; entries 0 or of absolute value between the two."""
    entry = st.one_of(st.just(0.0), st.floats(lowest, highest), st.floats(-highest, -lowest))

    def pair(size: tuple[int, int]) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
        one = st.lists(entry, min_size=size[0] * size[1], max_size=size[0] * size[1])
        one = one.map(lambda values: torch.tensor(values, dtype=torch.float64).view(size))
        return st.tuples(one, one)

    return st.tuples(st.integers(2, 4), st.integers(1, 4)).flatmap(pair)


@pytest.mark.parametrize("name", METRICS)
class TestLaws:
    @settings(max_examples=40)
    @given(pair=matrices(1e-3, 1e3))
    def test_identity_symmetry_range(self, name: str, pair: tuple[Tensor, Tensor]) -> None:
        F, G = pair
        value, best = similarity(name, F, G), similarity(name, G, G)
        better = value - best if METRICS[name].higher_is_better else best - value
        assert math.isfinite(value) and better <= 1e-9
        assert value == pytest.approx(similarity(name, G, F), rel=1e-9, abs=1e-12)
        low, high = (-math.inf, 0.0) if name in NORMS else (0.0, 1.0)
        assert low - 1e-9 <= value <= high + 1e-9
        if METRICS[name].differentiable:
            assert gradient(name, F, G).isfinite().all() and gradient(name, G, G).isfinite().all()

    @settings(max_examples=20)
    @given(pair=matrices(1e-70, 1e70))
    def test_finite_at_any_size(self, name: str, pair: tuple[Tensor, Tensor]) -> None:
        assert math.isfinite(similarity(name, *pair))
        if METRICS[name].differentiable:
            assert gradient(name, *pair).isfinite().all()

    def test_the_order_of_probes_does_not_matter(self, name: str) -> None:
        F, G, order = draw(7, 4), draw(7, 4, seed=1), torch.randperm(7, generator=torch.Generator().manual_seed(2))
        assert similarity(name, F[order], G[order]) == pytest.approx(similarity(name, F, G), rel=1e-12)
        assert similarity(name, F[order], G) != pytest.approx(similarity(name, F, G)), "but which is whose does"

    def test_the_order_of_features_does_not_matter(self, name: str) -> None:
        F, G = draw(7, 4), draw(7, 4, seed=1)
        assert similarity(name, F.flip(1), G.flip(1)) == pytest.approx(similarity(name, F, G), rel=1e-12)

    def test_a_common_translation_does_not_matter(self, name: str) -> None:
        F, G, way = draw(7, 4), draw(7, 4, seed=1), draw(4, seed=2)
        assert similarity(name, F + way, G + way) == pytest.approx(similarity(name, F, G), rel=1e-9)

    def test_closer_is_more_alike(self, name: str) -> None:
        G, noise = draw(40, 4), draw(40, 4, seed=1)
        values = [similarity(name, G + size * noise, G) for size in (0.0, 0.1, 0.5, 2.0)]
        assert values == sorted(values, reverse=METRICS[name].higher_is_better) and len({*values}) == 4

    def test_equal_matrices_are_a_maximum(self, name: str) -> None:
        G = draw(6, 4)
        assert similarity(name, G, G) >= similarity(name, draw(6, 4, seed=1), G)
        if METRICS[name].differentiable:
            torch.testing.assert_close(gradient(name, G, G), torch.zeros(6, 4, dtype=torch.float64))

    def test_any_number_type(self, name: str) -> None:
        F, G = (8 * draw(6, 4)).round(), (8 * draw(6, 4, seed=1)).round()
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.int8):
            assert similarity(name, F.to(dtype), G.to(dtype)) == similarity(name, F, G)
            assert exact(name, F.to(dtype), G, G.to(dtype), 0.1) == exact(name, F, G, G, 0.1)
        if METRICS[name].differentiable:
            assert gradient(name, F.half(), G.float()).dtype == torch.float64

    def test_where_the_features_came_from_does_not_matter(self, name: str) -> None:
        """Leaves of a graph, tensors made under inference mode; and the caller's tensors stay as they were."""
        F, G = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
        with torch.inference_mode():
            ours, theirs = F + 0, G + 0
            assert similarity(name, ours, theirs) == similarity(name, F, G)
            inside = gradient(name, ours, theirs) if METRICS[name].differentiable else None
        if inside is not None:
            with torch.no_grad():
                expected = gradient(name, F, G)
            assert torch.equal(inside, expected) and torch.equal(gradient(name, ours, theirs), expected)
        assert F.grad is None and F.requires_grad and not ours.requires_grad

    def test_memory_is_bounded(self, name: str) -> None:
        """No temporary, forward or backward, is larger than F or the probes' pairs."""
        for rows, width in ((9, 50), (50, 9)):
            with Largest() as seen:
                F = draw(rows, width).requires_grad_()
                METRICS[name].function(F, draw(rows, width, seed=1)).backward()
            assert seen.numel <= max(rows * width, 0 if METRICS[name].same_width else rows * rows)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_features_must_be_finite(self, name: str, bad: float) -> None:
        F, G = draw(3, 4), draw(3, 4, seed=1)
        broken = G.clone()
        broken[1, 2] = bad
        with pytest.raises(ArgumentError, match="1 of 12 entries of F"):
            similarity(name, broken, G)
        with pytest.raises(ArgumentError, match="1 of 12 entries of G"):
            similarity(name, F, broken.half())
        with pytest.raises(ArgumentError, match="1 of 12 entries of T"):
            exact(name, F, G, broken, 0.1)

    def test_features_must_be_matrices_of_the_same_probes(self, name: str) -> None:
        F = draw(3, 4)
        for bad in (draw(3), draw(3, 4, 1), draw(0, 4), draw(3, 0)):
            with pytest.raises(ArgumentError, match=r"Expected F of shape \(probes, features\), got \("):
                similarity(name, bad, F)
            with pytest.raises(ArgumentError, match=r"Expected G of shape"):
                similarity(name, F, bad)
        with pytest.raises(ArgumentError, match="same probes, got 3 and 2 rows"):
            similarity(name, F, draw(2, 4))
        with pytest.raises(ArgumentError, match=r"Expected real features, got torch\.complex128 for G"):
            similarity(name, F, F + 1j)
        with pytest.raises(ArgumentError, match=r"T of the shape of F, \(3, 4\), got \(3, 1\)"):
            exact(name, F, F, draw(3, 1), 0.1)
        with pytest.raises(ArgumentError, match="finite `step`, got nan"):
            exact(name, F, F, F, math.nan)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_and_the_memory_test_can_fail() -> None:
    with Largest() as seen:
        F = draw(9, 50)
        (F[:, None] - F).square().sum()
    assert seen.numel == 9 * 9 * 50


@pytest.mark.parametrize("size", [(7, 4), (4, 7)])
@pytest.mark.parametrize("name", SHAPED)
class TestShape:
    """cka and dc see the shape of a cloud of points, not its place, size or orientation."""

    def test_rotation_scale_and_place_do_not_matter(self, name: str, size: tuple[int, int]) -> None:
        F, G = draw(*size), draw(*size, seed=1)
        moved = -3e3 * F @ rotation(size[1]) + 10 * draw(size[1], seed=2)
        value = similarity(name, F, G)
        assert similarity(name, moved, G) == pytest.approx(value, rel=1e-9)
        assert similarity(name, F, 1e-3 * G @ rotation(size[1])) == pytest.approx(value, rel=1e-9)
        assert similarity(name, F, moved) == pytest.approx(1.0, abs=1e-12)
        for scale in (1e-90, 1e90):  # their fourth power is no float64
            assert similarity(name, scale * F, scale * G) == pytest.approx(value, rel=1e-9)

    def test_stretching_one_axis_does(self, name: str, size: tuple[int, int]) -> None:
        F, G = draw(*size), draw(*size, seed=1)
        F[:, 0] *= 5
        assert similarity(name, F, G) != pytest.approx(similarity(name, draw(*size), G), rel=1e-3)

    def test_equal_rows_are_like_nothing(self, name: str, size: tuple[int, int]) -> None:
        """0.1 is no multiple of a power of 2: the mean of equal rows need not be that row."""
        F, G = torch.full(size, 0.1, dtype=torch.float64), draw(*size)
        assert similarity(name, F, G) == similarity(name, G, F) == similarity(name, F, F) == 0.0
        assert not gradient(name, F, G).any() and not gradient(name, G, F).any()
        assert taylor(name, F, G, G, 0.5) == 0.0 and exact(name, F, G, G, 0.5) == pytest.approx(1.0)

    def test_repeated_probes_are_fine(self, name: str, size: tuple[int, int]) -> None:
        F, G = draw(*size).repeat(2, 1), draw(*size, seed=1).repeat(2, 1)
        assert similarity(name, F, G) == pytest.approx(REFERENCE[name](F.numpy(), G.numpy()), rel=1e-9)
        top, bottom = gradient(name, F, G).chunk(2)
        torch.testing.assert_close(top, bottom)

    def test_one_probe_has_no_shape(self, name: str, size: tuple[int, int]) -> None:
        with pytest.raises(ArgumentError, match=f"Expected at least 2 probes for {name}, got 1"):
            similarity(name, draw(1, 4), draw(1, 4))


@pytest.mark.parametrize("name", NORMS)
def test_norms_need_one_width_and_one_probe(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"one shape for {name}, got \(3, 4\) and \(3, 5\).*cka and dc"):
        similarity(name, draw(3, 4), draw(3, 5))
    assert similarity(name, draw(1, 4), draw(1, 4, seed=1)) < 0


@pytest.mark.usefixtures("forward_mode")
def test_distances_keep_their_digits() -> None:
    """Written out they lose digits far from the origin and between rows that are nearly or exactly equal."""
    F, G = draw(8, 5), draw(8, 5, seed=1)
    for apart in (1e-2, 1e-4, 1e-9):
        F[1] = F[0] * (1 + apart)
        expected = REFERENCE["dc"](F.numpy(), G.numpy())
        assert similarity("dc", F, G) == pytest.approx(expected, rel=1e-7)
        assert similarity("dc", F + 1e6, G) == pytest.approx(expected, rel=1e-7)
        assert gradient("dc", F, G).abs().max() < 1
    F, G, T = draw(9, 3001), draw(9, 3001, seed=1), draw(9, 3001, seed=2)
    F[[3, 8]] = F[0].clone()
    _, forward = torch.func.jvp(lambda x: METRICS["dc"].function(x, G), (F,), (T,))
    assert similarity("dc", F, G) == pytest.approx(REFERENCE["dc"](F.numpy(), G.numpy()), rel=1e-12)
    assert float(forward) == pytest.approx(float((gradient("dc", F, G) * T).sum()), rel=1e-11)


@pytest.mark.parametrize(
    ("name", "hint"), [("CKA", "mean cka"), ("l_2", "mean l2"), ("linfty", "mean linf"), ("euclid", "got 'euclid'.$")]
)
def test_unknown_metrics_are_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match="Expected a metric out of l1, l2, lp, linf, lse, cka, dc") as said:
        metric(name)
    said.match(hint)
    with pytest.raises(ArgumentError):
        similarity(name, draw(3, 4), draw(3, 4))


def test_each_row_of_the_registry_is_whole() -> None:
    """A formula, one way to compute it, and whether it is one that may be ranked and differentiated."""
    for name, row in METRICS.items():
        assert metric(name) is row and row.formula
        assert (row.of_distance is None) != (row.of_kernels is None)
        assert isinstance(row.higher_is_better, bool) and isinstance(row.differentiable, bool)


def test_all_scores_at_once_are_the_same() -> None:
    F, G, T = (draw(7, 12, seed=seed) for seed in (1, 2, 3))
    found = scores(F, G, T, [0.0, 0.1, 1.0])
    assert found.keys() == METRICS.keys()
    for name, values in found.items():
        assert values == pytest.approx([exact(name, F, G, T, step) for step in (0.0, 0.1, 1.0)], rel=1e-12)
    assert scores(F, draw(7, 5), T, [0.0]).keys() == {"cka", "dc"}
    assert "cka" not in scores(F[:1], G[:1], T[:1], [0.0])
    with pytest.raises(ArgumentError, match="same probes"):
        scores(F, G[:5], T, [0.0])


def test_the_forms_that_the_paper_prints_elsewhere() -> None:
    F, G, T = (draw(7, 12, seed=seed) for seed in (1, 2, 3))
    cka, dc = similarity("cka", F, G), similarity("dc", F, G)
    assert similarity("cka-squared", F, G) == pytest.approx(cka**2)
    assert similarity("dc-root", F, G) == pytest.approx(dc**0.5)
    assert similarity("lse-printed", F, G) == similarity("lse", F, G)
    torch.testing.assert_close(gradient("cka-squared", F, G), 2 * cka * gradient("cka", F, G))
    torch.testing.assert_close(gradient("dc-root", F, G), gradient("dc", F, G) / (2 * dc**0.5))
    torch.testing.assert_close(gradient("lse-printed", F, G), 100 * gradient("lse", F, G))  # 1/t
    for name in AS_PRINTED:
        assert [*scores(F, G, T, [0.0], name)] == [*METRICS, name] and name not in scores(F, G, T, [0.0])
        flat = torch.zeros(3, 2)  # rows without a distance between them
        assert math.isfinite(similarity(name, flat, flat)) and gradient(name, flat, flat).isfinite().all()
