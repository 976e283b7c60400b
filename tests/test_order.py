"""The estimators of an order one by one on constructions with a known origin, and the rule that joins them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hf_lineage.weights.direction.barrier import barrier_position
from hf_lineage.weights.direction.decay import decay_position
from hf_lineage.weights.direction.growth import count_growth, growth_position
from hf_lineage.weights.direction.lattice_memory import count_memory, memory_position
from hf_lineage.weights.direction.lattices import LATTICES
from hf_lineage.weights.direction.merged_lora import explain_matrix, lora_position, shows_rank
from hf_lineage.weights.direction.order import ERROR, MAX_MISFIT, Order, count_text, join
from hf_lineage.weights.direction.position import Position
from hf_lineage.weights.direction.rounding_edges import count_roundings
from hf_lineage.weights.history import count_values, profile
from hf_lineage.weights.moments import Moments, block_moments

BF16 = LATTICES["bf16"]


def draws(seed: int, *shape: int, spread: float = 0.05) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16)


# ---- growth of rows


def rows(seed: int, count: int = 400, width: int = 256) -> tuple[Tensor, Tensor]:
    """A matrix, and a step whose size differs from row to row and that knows nothing of it."""
    size = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) + 0.2
    return draws(seed, count, width), draws(seed + 1, count, width, spread=0.02) * size


def test_rows_grow_by_their_squared_step() -> None:
    matrices = [rows(seed) for seed in range(0, 40, 2)]
    decayed = [(0.999 * p + d, p) for p, d in matrices]  # with decay, which the intercept takes out
    found = growth_position([count_growth(c, p) for c, p in decayed])
    assert found.lambda_ == pytest.approx(1.0, abs=0.2) and found.misfit < 3
    back = growth_position([count_growth(p, c) for c, p in decayed])
    assert back.lambda_ == pytest.approx(-(found.lambda_ or 0), abs=1e-9)
    siblings = growth_position([count_growth(p + d, p + d.flip(1)) for p, d in matrices])
    assert siblings.lambda_ is None and "not plain" in siblings.reason


def test_the_line_and_its_error_are_those_of_the_textbook() -> None:
    """Slope and HC1 error by matrices of one regression, against the sums."""
    p, d = rows(7)
    c = p + d
    x, y = (d.double() ** 2).sum(1).numpy(), ((c.double() ** 2 - p.double() ** 2).sum(1)).numpy()
    design = np.stack([np.ones_like(x), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    beta = bread @ design.T @ y
    meat = design.T @ (design * ((y - design @ beta) ** 2)[:, None])
    error = math.sqrt((bread @ meat @ bread)[1, 1] * len(x) / (len(x) - 2))
    parts = count_growth(c[:130], p[:130]) + count_growth(c[130:], p[130:])
    found = growth_position([parts])
    told = f"{beta[1]:.2f} ± {error:.2f}"
    assert told in found.reason


def test_growth_far_from_one_is_drift() -> None:
    matrices = [rows(seed) for seed in range(0, 40, 2)]
    drifting = [(p + d + 3.0 * d.norm(dim=1, keepdim=True) ** 2 * p, p) for p, d in matrices]
    found = growth_position([count_growth(c, p) for c, p in drifting])
    assert found.lambda_ is None and ("outside" in found.reason or "not plain" in found.reason)
    assert growth_position([]).lambda_ is None


# ---- the clock of weight decay


def moments(change: Callable[[int, Tensor], Tensor], back: bool = False) -> list[Moments]:
    """Of 24 matrices of a parent and of what `change` makes of each."""
    found = []
    for i in range(24):
        parent = draws(100 + i, 6000, spread=0.03 + 0.002 * i)
        child = change(i, parent)
        found.append(block_moments([parent, child] if back else [child, parent]))
    return found


def decayed(i: int, parent: Tensor) -> Tensor:
    return (1 - 3e-4) * parent + draws(200 + i, 6000, spread=2e-5 * (1 + i % 5))


def equal_steps(i: int, parent: Tensor) -> Tensor:
    """Every tensor moves by the same share of its norm, orthogonally to itself; nothing decays."""
    step = draws(300 + i, 6000)
    step -= (step @ parent) / (parent @ parent) * parent
    return parent + 0.02 * parent.norm() / step.norm() * step


def test_one_factor_everywhere_is_decay() -> None:
    assert decay_position(moments(decayed)).lambda_ == 1.0
    assert decay_position(moments(decayed, back=True)).lambda_ == -1.0
    assert "1 − 0.0003" in decay_position(moments(decayed)).reason


def test_the_slope_of_the_other_direction_is_not_taken_for_decay() -> None:
    """Seen backwards a step shrinks every tensor by its square: with equal steps, all by one factor."""
    for back in (False, True):
        assert decay_position(moments(equal_steps, back)).lambda_ is None
    steps = moments(lambda i, p: p + draws(400 + i, 6000, spread=3e-4 * (1 + i % 7)))
    assert decay_position(steps).lambda_ is None
    assert decay_position(moments(decayed)[:7]).reason.startswith("fewer than")


def test_moments_and_vectors_agree_on_the_slope() -> None:
    parent, child = draws(1, 6000).double(), draws(1, 6000).double() * 0.99 + draws(2, 6000, spread=1e-3).double()
    m = block_moments([child, parent])
    slope = float(child @ parent / (parent @ parent)) - 1
    norm = m.gram[0, 0] + 2 * m.gram[0, 1] + m.gram[1, 1]
    assert -(m.gram[0, 1] + m.gram[1, 1]) / norm == pytest.approx(slope, rel=1e-9)


# ---- memory of a lattice


def test_a_child_in_float32_remembers_its_base_in_half_precision() -> None:
    base = half(draws(1, 400_000))
    child = base.float() + draws(2, 400_000, spread=1e-5)
    found = memory_position(count_memory(child, base))
    assert found.lambda_ == pytest.approx(1.0, abs=0.02) and "bf16" in found.reason
    assert memory_position(count_memory(base, child)).lambda_ == pytest.approx(-(found.lambda_ or 0))
    parts = count_memory(child[:130_000], base[:130_000]) + count_memory(child[130_000:], base[130_000:])
    assert memory_position(parts) == found, "130,000 is a multiple of the stride, so the same entries were looked at"


def test_a_sibling_on_the_lattice_is_not_what_is_remembered() -> None:
    base = half(draws(3, 400_000))
    child = base.float() + draws(4, 400_000, spread=3e-5)
    sibling = half(base.float() + draws(5, 400_000, spread=3e-4))
    found = memory_position(count_memory(child, sibling))
    assert (found.lambda_ or 0) < -0.8, "the sibling moved ten times as far from what the child remembers"


@pytest.mark.parametrize("kind", ["cast", "far", "both", "neither", "one length"])
def test_no_memory_is_seen_where_there_is_none(kind: str) -> None:
    base = draws(6, 400_000)
    near = base + draws(7, 400_000, spread=1e-4)
    lattice = half(base)
    length = lattice.float() + 3e-4 * draws(8, 400_000).sign() * (1 + 0.02 * draws(9, 400_000, spread=1.0))
    pairs = {
        "cast": (near, lattice), "far": (lattice.float() + draws(8, 400_000, spread=0.01), lattice),
        "both": (half(near), lattice), "neither": (near, base), "one length": (length, lattice),
    }  # fmt: skip
    found = memory_position(count_memory(*pairs[kind]))
    assert found.lambda_ is None or (kind == "one length" and found.lambda_ > 0.9)


# ---- merged LoRA


def low_rank(seed: int, rank: int, size: float, shape: tuple[int, int] = (256, 192)) -> Tensor:
    step = draws(seed, shape[0], rank) @ draws(seed + 1, rank, shape[1])
    return step / step.norm() * 0.05 * math.sqrt(shape[0] * shape[1]) * size


@pytest.mark.parametrize(("rank", "moved"), [(2, 0.005), (8, 0.01), (16, 0.05)])
def test_a_merged_lora_explains_its_child_and_not_its_parent(rank: int, moved: float) -> None:
    base = half(draws(1, 256, 192))
    child = half(base.float() + low_rank(2, rank, moved))
    found = explain_matrix(child, base)
    assert found and found.rank == rank and found.forward == pytest.approx(found.forward_expected, abs=0.01)
    assert lora_position([found]).lambda_ == 1.0
    back = explain_matrix(base, child)
    assert back and lora_position([back]).lambda_ == -1.0


def test_two_loras_of_one_base_explain_neither() -> None:
    base = half(draws(1, 256, 192))
    for ratio in (1.0, 0.1):
        one, other = (half(base.float() + low_rank(seed, 4, moved)) for seed, moved in ((2, 0.02), (4, 0.02 * ratio)))
        found = explain_matrix(one, other)
        assert found is None or lora_position([found]).lambda_ is None


def test_full_steps_and_new_rows_are_no_lora() -> None:
    base = half(draws(1, 256, 192))
    rows_only = base.clone()
    rows_only[:20] = half(draws(9, 20, 192))
    full = half(base.float() + draws(2, 256, 192, spread=1e-3))
    drift = half(base.float() + draws(2, 256, 192, spread=1e-3) + low_rank(3, 1, 0.05))
    for child in (rows_only, full, drift, base, base.float() + low_rank(2, 8, 0.01)):
        found = explain_matrix(child, base)
        assert found is None or lora_position([found]).lambda_ is None
    assert lora_position([]).lambda_ is None


def test_few_matrices_show_whether_a_lora_was_merged() -> None:
    pairs = []
    for i in range(20):
        base = half(draws(40 + i, 64, 48))
        pairs.append((half(base.float() + low_rank(90 + i, 2, 0.01, (64, 48))), base))
    dense = [(half(base.float() + 0.01 * draws(70 + i, 64, 48)), base) for i, (_, base) in enumerate(pairs)]
    assert shows_rank(pairs) and shows_rank(pairs[:1]) and not shows_rank(dense) and not shows_rank([])
    assert not shows_rank([(child.double() + 1e-9, base.double()) for child, base in pairs])  # on no lattice


# ---- the barrier of low precision


def kept(base: Tensor, steps: int, seed: int) -> Tensor:
    """Trained with its weights kept in bf16: steps of nearly one size, with a drift of their own."""
    weights = base.float()
    drift = draws(seed, base.numel(), spread=1.0)  # the same seed goes on in the same direction
    for i in range(steps):
        weights = half(weights + 1e-5 * (drift + draws(seed + i + 1, base.numel(), spread=0.5)).sign()).float()
    return half(weights)


def held_back(values: Tensor) -> dict[int, tuple[float, float]]:
    found = profile(count_values(values).cells["bf16"], BF16)
    assert found
    return found.held_back


@pytest.fixture(scope="module")
def trained_in_half() -> dict[str, Tensor]:
    base = half(draws(1, 2_000_000))
    child = kept(base, 20, 10)
    return {"base": base, "child": child, "grandchild": kept(child, 20, 10), "sibling": kept(base, 20, 90)}


def test_weights_gather_where_low_precision_holds_them_back(trained_in_half: dict[str, Tensor]) -> None:
    def between(child: str, candidate: str) -> Position:
        one, other = trained_in_half[child], trained_in_half[candidate]
        return barrier_position(count_roundings(one, other), "bf16", held_back(one), held_back(other))

    found = between("child", "base")
    assert (found.lambda_ or 0) > 0.6
    assert between("base", "child").lambda_ == pytest.approx(-(found.lambda_ or 0))
    assert (between("grandchild", "child").lambda_ or 0) > 0.3
    assert abs(between("sibling", "child").lambda_ or 0) < 0.1


def test_no_barrier_where_an_fp32_copy_was_trained() -> None:
    base = half(draws(1, 2_000_000))
    child = half(base.float() + draws(2, 2_000_000, spread=3e-5))
    found = barrier_position(count_roundings(child, base), "bf16", held_back(child), held_back(base))
    assert found.lambda_ is None


# ---- the rule that joins them


def position(value: float, stderr: float = 0.05, method: str = "rounding_edges", misfit: float = 1.0) -> Position:
    return Position(value, stderr, misfit, method, 22_000_000, "")


def test_an_order_is_said_in_words() -> None:
    found = join([position(1.0)], moved=0.5)
    assert found.decided == "candidate"
    assert found.reason == "the roundings of 22 M weights show that the candidate came first"
    assert join([position(-1.0)], 0.5).reason.endswith("show that the child came first")
    assert join([position(0.1)], 0.5).reason.endswith("show that the two parted from a common parent")
    open_ = join([position(0.75, 0.2)], 0.5)
    assert open_.decided is None and "leave open who came first" in open_.reason


def test_the_radius_is_that_of_the_lower_end() -> None:
    found = join([position(0.9, 0.12)], moved=2.0)
    low = 0.9 - 2 * math.hypot(0.12, ERROR["rounding_edges"])
    assert found.radius == pytest.approx(2.0 * math.sqrt((1 - low) / 2))
    assert join([position(-1.0)], 2.0).radius == pytest.approx(2.0), "it lies at the child"
    assert join([position(1.0), position(1.0, method="merged_lora")], 2.0).radius < join([position(1.0)], 2.0).radius  # type: ignore[operator]


def test_disagreement_misfit_and_silence_decide_nothing() -> None:
    silent = Position.silent("growth", "no matrix of enough rows changed")
    for found in (
        join([], 1.0), join([silent], 1.0), join([position(1.0, misfit=MAX_MISFIT + 1)], 1.0), join([position(2.0)], 1.0),
        join([position(1.0), position(-1.0, method="merged_lora")], 1.0),
    ):  # fmt: skip
        assert (found.lambda_, found.radius, found.decided) == (None, None, None)
        assert found.candidate == found.common == found.child == pytest.approx(1 / 3)
    assert "disagree" in join([position(1.0), position(-1.0, method="merged_lora")], 1.0).reason
    assert join([silent], 1.0).reason == "growth: no matrix of enough rows changed"
    assert join([silent, position(1.0)], 1.0).lambda_ == 1.0, "who is silent takes nothing away"


def test_the_shares_are_those_of_three_hypotheses() -> None:
    """Against SciPy: Student's t around 1 and −1, and over all between."""
    value, error = 0.8, math.hypot(0.1, ERROR["rounding_edges"])
    found = join([position(value, 0.1)], 1.0)
    density = stats.t(5, scale=error).pdf
    between = np.mean([density(value - at) for at in np.linspace(-1, 1, 20_001)])
    expected = np.array([density(value - 1), between, density(value + 1)])
    assert [found.candidate, found.common, found.child] == pytest.approx(list(expected / expected.sum()), rel=0.02)


@given(
    st.lists(st.tuples(st.floats(-1.2, 1.2), st.floats(0.01, 1.0), st.sampled_from(sorted(ERROR))), max_size=4),
    st.floats(1e-6, 1e3),
)
def test_swapped_models_swap_the_order(found: list[tuple[float, float, str]], moved: float) -> None:
    positions = [position(value, stderr, method) for value, stderr, method in found]
    swapped = [replace(p, lambda_=-(p.lambda_ or 0.0)) for p in positions]
    one, back = join(positions, moved), join(swapped, moved)
    assert [one.candidate, one.common, one.child] == pytest.approx([back.child, back.common, back.candidate])
    assert one.candidate + one.common + one.child == pytest.approx(1.0)
    assert not (one.decided == "candidate" and back.decided == "candidate")


def test_counts_are_short() -> None:
    assert [count_text(n) for n in (0, 999, 1000, 6_700_000_000)] == ["0", "999", "1 k", "7 G"]
    assert isinstance(join([position(1.0)], 1.0, marked=True), Order)
    assert join([position(1.0)], 1.0, marked=True).marked is True
