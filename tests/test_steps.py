"""All estimators of one pair together: what is counted of slices, and the order of made-up families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lineage.weights.direction.lattice_memory import count_memory
from hf_lineage.weights.direction.order import Order
from hf_lineage.weights.direction.rounding_edges import count_roundings
from hf_lineage.weights.direction.steps import PairCounts, Steps, count_steps, pair_order, pair_positions
from hf_lineage.weights.history import NO_COUNTS, count_values, past_of
from hf_lineage.weights.moments import block_moments

Tensors = dict[str, Tensor]
ROWS, WIDTH, LAYERS = 1500, 1000, 4


def draws(seed: int, spread: float = 0.05) -> Tensor:
    return spread * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def tuned(base: Tensors, spread: float, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    return {name: (t.float() + draws(seed + i, spread)).to(dtype) for i, (name, t) in enumerate(base.items())}


def counts(child: Tensors, candidate: Tensors) -> PairCounts:
    """As the reading pass makes them: slices of 2^18 values, and a few whole rows."""
    steps: dict[str, Steps] = {}
    for name, tensor in child.items():
        ours, theirs = tensor.flatten(), candidate[name].flatten()
        parts = [count_steps(ours[i : i + (1 << 18)], theirs[i : i + (1 << 18)]) for i in range(0, len(ours), 1 << 18)]
        steps[name] = sum(parts, Steps())
    return PairCounts(
        steps,
        {name: block_moments([child[name].flatten(), candidate[name].flatten()]) for name in child},
        {name: (child[name][:200].float(), candidate[name][:200].float()) for name in child},
        *(past_of(sum((count_values(t.flatten()) for t in m.values()), NO_COUNTS)) for m in (child, candidate)),
    )


def order(child: Tensors, candidate: Tensors) -> Order:
    return pair_order(counts(child, candidate), moved=1.0)


@pytest.fixture(scope="module")
def base() -> Tensors:
    return {f"layers.{i}.fc.weight": draws(i).bfloat16() for i in range(LAYERS)}


def test_a_child_and_its_base(base: Tensors) -> None:
    child = tuned(base, 1e-4, 10)
    there, back = order(child, base), order(base, child)
    assert (there.decided, back.decided) == ("candidate", "child")
    assert there.marked is False and back.marked is True, "the child has a base of its own, the base none that shows"
    assert there.method == "rounding_edges" and there.lambda_ == pytest.approx(-(back.lambda_ or 0))
    assert there.reason == "the roundings of 6 M weights show that the candidate came first"
    assert there.radius is not None and there.radius < 0.5 < (back.radius or 0)


def test_a_lora_is_seen_by_two_estimators(base: Tensors) -> None:
    child = {}
    for i, (name, tensor) in enumerate(base.items()):
        step = draws(30 + i)[:, :4] @ draws(40 + i)[:4]
        child[name] = (tensor.float() + step / step.norm() * tensor.float().norm() * 0.01).bfloat16()
    there, back = order(child, base), order(base, child)
    assert {"rounding_edges", "merged_lora"} <= {*there.method.split("+")}
    assert (there.decided, back.decided) == ("candidate", "child")


def test_a_child_in_float32_remembers(base: Tensors) -> None:
    child = tuned(base, 1e-4, 50, torch.float32)
    assert (order(child, base).decided, order(base, child).decided) == ("candidate", "child")
    assert order(child, base).method == "lattice_memory"


def test_siblings_in_float32_are_left_open() -> None:
    base = {f"layers.{i}.fc.weight": draws(i) for i in range(LAYERS)}
    one, other = (tuned(base, 2e-4, seed, torch.float32) for seed in (60, 70))
    found = order(one, other)
    assert (found.decided, found.lambda_, found.marked) == (None, None, False)
    assert all(word in found.reason for word in ("rounding_edges:", "growth:", "weight_decay:", "merged_lora:"))


def test_counts_of_slices_are_those_of_one_kind_each(base: Tensors) -> None:
    name = "layers.0.fc.weight"
    ours, theirs = tuned(base, 1e-4, 10)[name].flatten(), base[name].flatten()
    same = count_steps(ours, theirs)
    np.testing.assert_array_equal(same.roundings.tables["bf16"], count_roundings(ours, theirs).tables["bf16"])
    assert not same.memory.tables
    off = count_steps(ours.float() + 1e-5, theirs)
    assert not off.roundings.tables and off.roundings.entries == len(ours)
    for key, table in count_memory(ours.float() + 1e-5, theirs).tables.items():
        np.testing.assert_array_equal(off.memory.tables[key], table)
    assert count_steps(ours, ours).roundings.moved == 0 and not count_steps(ours, ours).roundings.tables
    both_off = count_steps(ours.float() + 1e-5, theirs.float() + 1e-5)
    assert not both_off.roundings.tables and not both_off.memory.tables


def test_equal_models_have_no_order(base: Tensors) -> None:
    assert all(position.lambda_ is None for position in pair_positions(counts(base, base)))
    assert order(base, base).decided is None
