"""Planted TIES and DARE merges are told by what they leave, with base, weights and density; other children are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hf_lineage.experiments.merges import dare, linear, task_arithmetic, ties
from hf_lineage.weights.sparse_merges import MIN_ENTRIES, SparseMerge, sparse_merge

Tensors = dict[str, torch.Tensor]
F32, BF16 = torch.float32, torch.bfloat16
DTYPES = {F32: "F32", BF16: "BF16", torch.float16: "F16", torch.float64: "F64"}
WEIGHTS = {1: [0.7], 2: [0.7, 0.4], 3: [0.5, 0.3, 0.4]}
SIZE = 0.05  # of a weight


def noisy(model: Tensors, seed: int, change: float, dtype: torch.dtype = F32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (t.float() + change * SIZE * torch.randn(t.shape, generator=generator)).to(dtype)
        for name, t in model.items()
    }  # fmt: skip


def kinship(
    count: int, change: float, dtype: torch.dtype = F32, seed: int = 0, rows: int = 80
) -> tuple[Tensors, list[Tensors]]:
    """A base of four matrices and its fine-tunes, which moved by `change` of its norm."""
    base = noisy({f"m{i}": torch.zeros(rows, 100) for i in range(4)}, seed, 1.0, dtype)
    return base, [noisy(base, seed + k, change, dtype) for k in range(1, count + 1)]


def least_squares(child: Tensors, base: Tensors, sources: Sequence[Tensors]) -> np.ndarray:
    flat = [torch.cat([t.double().flatten() for t in model.values()]).numpy() for model in (base, child, *sources)]
    return np.linalg.lstsq((np.stack(flat[2:]) - flat[0]).T, flat[1] - flat[0], rcond=None)[0]


def seen(child: Tensors, base: Tensors, sources: Sequence[Tensors]) -> SparseMerge | None:
    models = [[*model.values()] for model in (child, base, *sources)]
    weights = [float(weight) for weight in least_squares(child, base, sources)]
    return sparse_merge(models[0], models[1], models[2:], weights, [DTYPES[t.dtype] for t in models[0]])


def planted(
    method: str, base: Tensors, sources: Sequence[Tensors], density: float, scale: float = 1.0
) -> tuple[Tensors, list[float]]:
    """The merge, and the weights as `Traces` counts them: of a mean for TIES, of a sum for DARE."""
    weights = WEIGHTS[len(sources)]
    if method == "ties":
        return ties(base, sources, weights, density, scale), [w / sum(weights) for w in weights]
    return dare(base, sources, weights, density, 3), weights


@pytest.mark.parametrize("change", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_in_single_precision(method: str, count: int, density: float, change: float) -> None:
    """Measured: densities within 0.004, DARE's weights within 0.006, TIES' within 0.02 where enough entries have all
    sources, scale within 0.001; DARE is rebuilt exactly, TIES but for where its edge lies."""
    base, sources = kinship(count, change)
    scale = 0.8 if method == "ties" else 1.0
    child, truth = planted(method, base, sources, density, scale)
    found = seen(child, base, sources)
    assert found and found.method == method and found.entries == 32_000
    assert found.density == pytest.approx([density] * count, abs=0.01)
    assert found.weights == pytest.approx(truth, abs=0.02 if density > 0.3 or count < 3 else 0.1)
    assert found.scale == pytest.approx(scale, abs=0.005)
    still = np.mean([float((child[name] == base[name]).float().mean()) for name in base])
    assert found.zeros == pytest.approx(still, abs=0.01), "counted on the tensors themselves"
    assert found.residual < (0.15 * change if method == "ties" else 1e-6)
    assert found.smaller > 0.99 if method == "ties" else abs(found.smaller - 0.5) < 0.03


@pytest.mark.parametrize("change", [0.5, 0.1])
@pytest.mark.parametrize("density", [0.5, 0.7])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_stored_as_bfloat16(method: str, density: float, change: float) -> None:
    """Two or three digits of a weight are left: densities and weights within 0.05, the base still the best."""
    base, sources = kinship(2, change, BF16)
    child, truth = planted(method, base, sources, density)
    found = seen(child, base, sources)
    assert found and found.method == method and child["m0"].dtype == BF16
    assert found.density == pytest.approx([density] * 2, abs=0.05) and found.weights == pytest.approx(truth, abs=0.05)
    assert found.residual < 0.04
    for k in range(2):
        wrong = seen(child, sources[k], [base, sources[1 - k]])
        assert wrong is None or wrong.residual > 1.2 * found.residual


@pytest.mark.parametrize("density", [0.1, 0.2, 0.3])
def test_what_was_dropped_is_not_overcounted_in_bfloat16(density: float) -> None:
    base, sources = kinship(2, 0.2, BF16)
    child, truth = planted("dare", base, sources, density)
    found = seen(child, base, sources)
    assert found and found.density == pytest.approx([density] * 2, abs=0.01)
    assert found.weights == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("density", [0.1, 0.2])
def test_three_sources_that_hardly_overlap(density: float) -> None:
    base, sources = kinship(3, 0.2)
    child, truth = planted("ties", base, sources, density)
    found = seen(child, base, sources)
    assert found and found.method == "ties" and found.weights == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("density", [0.3, 0.5])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_wrong_base(method: str, count: int, density: float) -> None:
    base, sources = kinship(count, 0.2)
    child, _ = planted(method, base, sources, density)
    right = seen(child, base, sources)
    assert right
    for k in range(count):
        wrong = seen(child, sources[k], [base, *sources[:k], *sources[k + 1 :]])
        assert wrong is None or wrong.residual > 1.2 * right.residual
    stranger, _ = kinship(1, 0.2, seed=50)
    assert seen(child, stranger, sources) is None


def test_made_again_from_what_was_found() -> None:
    base, sources = kinship(2, 0.3)
    child, _ = planted("ties", base, sources, 0.5, 0.9)
    found = seen(child, base, sources)
    assert found
    again = ties(base, sources, found.weights, float(np.mean(found.density)), found.scale)
    left = sum(float((again[n].double() - child[n].double()).square().sum()) for n in child)
    whole = sum(float(t.double().square().sum()) for t in child.values())
    assert (left / whole) ** 0.5 < 0.02 and found.residual < 0.02


def test_shares_of_entries_as_chance_has_them() -> None:
    """Each of two deltas kept by half: a quarter stands still, and of the others two thirds follow one of them."""
    base, sources = kinship(2, 0.3)
    found = seen(planted("dare", base, sources, 0.5)[0], base, sources)
    assert found and found.zeros == pytest.approx(1 / 4, abs=0.01)
    assert found.alone == pytest.approx((1 / 3, 1 / 3), abs=0.015)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("change", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("count", [1, 2, 3])
class TestNoTraces:
    """Children that a weighted sum or plain training explains."""

    def test_weighted_sums(self, count: int, change: float, dtype: torch.dtype) -> None:
        base, sources = kinship(count, change, dtype)
        weights = WEIGHTS[count]
        assert seen(linear([base, *sources], [1 - sum(weights), *weights]), base, sources) is None
        assert seen(task_arithmetic(base, sources, [1.3 * w for w in weights]), base, sources) is None
        assert seen(linear(sources, [1 / count] * count), base, sources) is None

    @pytest.mark.parametrize("more", [1.0, 0.1, 0.01, 1e-3, 1e-4])
    def test_fine_tunes_of_the_base(self, count: int, change: float, dtype: torch.dtype, more: float) -> None:
        """Of steps below half of the last place bfloat16 keeps nothing: most entries stand still, as in a sparse merge."""
        base, sources = kinship(count, change, dtype)
        assert seen(noisy(base, 9, more, dtype), base, sources) is None

    def test_a_pruned_child(self, count: int, change: float, dtype: torch.dtype) -> None:
        base, sources = kinship(count, change, dtype)
        assert seen({n: t * (t.abs() > 0.5 * SIZE) for n, t in sources[0].items()}, base, sources) is None

    def test_rows_that_were_never_trained(self, count: int, change: float, dtype: torch.dtype) -> None:
        base, sources = kinship(count, change, dtype)
        child = noisy(base, 9, change, dtype)
        assert seen({n: torch.cat([base[n][:40], t[40:]]) for n, t in child.items()}, base, sources) is None


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "change", "more"),
    [(F32, 0.5, 0.1), (F32, 0.1, 0.01), (F32, 0.02, 0.01), (BF16, 0.1, 0.1), (BF16, 0.5, 0.1), (BF16, 0.02, 0.01)],
)  # fmt: skip
def test_fine_tunes_of_a_source(count: int, dtype: torch.dtype, change: float, more: float) -> None:
    """The grandparent and an uncle are among the candidates. In bfloat16 up to 0.5 % of the entries happen to come back
    to the grandparent's, and 6 % to follow the parent."""
    base, sources = kinship(count, change, dtype)
    assert seen(noisy(sources[0], 9, more, dtype), base, sources) is None


def test_frozen_tensors_say_nothing() -> None:
    base, sources = kinship(2, 0.2)
    tuned = noisy(base, 9, 0.2)
    assert seen({**tuned, "m0": base["m0"], "m2": base["m2"]}, base, sources) is None
    merged, _ = planted("dare", base, sources, 0.5)
    found = seen({**merged, "m0": base["m0"]}, base, sources)
    assert found and found.density == pytest.approx((0.5, 0.5), abs=0.02), "nor do they count as dropped"


def test_too_little_to_tell() -> None:
    base, sources = kinship(2, 0.2, rows=2)
    assert sum(t.numel() for t in base.values()) < MIN_ENTRIES
    assert seen(planted("dare", base, sources, 0.5)[0], base, sources) is None
    base, sources = kinship(2, 0.2)
    assert seen(base, base, sources) is None, "nothing moved"


def test_the_order_of_the_sources() -> None:
    base, sources = kinship(3, 0.2)
    child, _ = planted("ties", base, sources, 0.5)
    one, two = seen(child, base, sources), seen(child, base, sources[::-1])
    assert one and two and one.method == two.method == "ties"
    assert two.weights[::-1] == pytest.approx(one.weights, abs=1e-9) and two.density[::-1] == pytest.approx(one.density)
    assert two.residual == pytest.approx(one.residual)
