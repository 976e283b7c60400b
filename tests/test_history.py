"""One model alone: counts against loops, and pasts that are known, the false explanations among them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lineage.weights.direction.lattices import LATTICES
from hf_lineage.weights.history import (
    MIN_SCORE,
    NO_COUNTS,
    OFFSET_STRIDE,
    OFFSETS,
    count_values,
    past_of,
    profile,
    repeated_layers,
)

MANY = 6_000_000


@pytest.fixture(scope="module")
def dense() -> Tensor:
    return 0.05 * torch.randn(MANY, generator=torch.Generator().manual_seed(1))


def step(count: int, spread: float, seed: int = 2) -> Tensor:
    return spread * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_cells_are_counted_one_by_one() -> None:
    values = step(3000, 0.05).to(torch.bfloat16)
    counts = np.zeros(1 << 15, dtype=np.int64)
    for value in values.float().abs().tolist():
        exponent = math.floor(math.log2(value))
        counts[128 * (exponent + 127) + round((value / 2.0**exponent - 1) * 128)] += 1
    parts = count_values(values[:1000]) + (count_values(values[1000:1700]) + count_values(values[1700:].float()))
    np.testing.assert_array_equal(parts.cells["bf16"], counts)
    assert parts.entries == 3000 and parts.on == {"bf16": 3000}


@pytest.mark.parametrize(("name", "mantissa", "bias"), [("bf16", 7, 127), ("fp16", 10, 15)])
def test_offsets_are_counted_one_by_one(name: str, mantissa: int, bias: int) -> None:
    values = step(4000, 0.05)
    expected = np.zeros((LATTICES[name].binades.stop, OFFSETS), dtype=np.int64)
    for value in values[::OFFSET_STRIDE].abs().tolist():
        exponent = math.floor(math.log2(value))
        place = value / 2.0**exponent * 2**mantissa
        if exponent + bias >= 1:
            expected[exponent + bias, min(int(abs(place - round(place)) * 2 * OFFSETS), OFFSETS - 1)] += 1
    found = count_values(values)
    np.testing.assert_array_equal(found.offsets[name], expected)
    assert found.entries == len(values[::OFFSET_STRIDE]) and (NO_COUNTS + found).offsets[name].sum() == expected.sum()


ROUNDED_ONCE: dict[str, Callable[[Tensor], Tensor]] = {
    "cast to bf16": lambda x: x.bfloat16(),
    "cast to fp16": lambda x: x.half(),
    "clipped": lambda x: x.clamp(-0.11, 0.11).bfloat16(),
    "several spreads": lambda x: (x * torch.tensor([0.3, 1.0, 1.7]).repeat(len(x) // 3)).bfloat16(),
    "rounded at random": lambda x: (
        (x.view(torch.int32) + torch.randint(0, 1 << 16, x.shape, dtype=torch.int32)) & -65536
    ).view(torch.float32),
    "pruned": lambda x: torch.where(torch.arange(len(x)) % 2 == 0, x, 0.0).bfloat16(),
    "int8, dequantised": lambda x: ((x * 500).round() / 500).bfloat16(),
    "scaled on the lattice": lambda x: (x.bfloat16() * 1.37).bfloat16(),
}


@pytest.mark.parametrize("what", ROUNDED_ONCE)
def test_what_was_rounded_once_has_no_mark(what: str, dense: Tensor) -> None:
    past = past_of(count_values(ROUNDED_ONCE[what](dense)))
    assert (past.trained_since, past.kept_in_half, past.began_from) == (None, None, None)
    assert not past.marked and all(found.reason for found in past.findings.values())


def test_other_pasts_are_told_apart(dense: Tensor) -> None:
    base = dense.bfloat16()
    sibling = (base.float() + step(MANY, 1e-4)).bfloat16()
    others = {
        "rarer": [dense.half().bfloat16(), ((base.float() + sibling.float()) / 2).bfloat16()],
        "truncated": [(dense.view(torch.int32) & -65536).view(torch.float32)],
    }
    for word, models in others.items():
        for model in models:
            past = past_of(count_values(model))
            assert (past.trained_since, past.kept_in_half, past.marked) == (None, None, None)
            assert word in past.findings["first_rounding"].reason


@pytest.mark.parametrize("moved", [4e-5, 1e-4, 2e-4])
def test_training_since_the_first_rounding_shows(dense: Tensor, moved: float) -> None:
    base = dense.bfloat16()
    child = (base.float() + step(MANY, moved)).bfloat16()
    past = past_of(count_values(child))
    assert (past.lattice, past.trained_since, past.kept_in_half) == ("bf16", True, False)
    assert past_of(count_values(child.float())).lattice == "bf16", "whatever the header says"
    found = profile(count_values(child).cells["bf16"], LATTICES["bf16"])
    assert found and found.score > MIN_SCORE > found.control and found.excess[-1] > 0 > found.excess[0]


def test_weights_kept_in_half_precision_show(dense: Tensor) -> None:
    weights, drift = dense.bfloat16().float(), step(MANY, 1.0)
    for i in range(12):
        weights = (weights + 2e-5 * (drift + step(MANY, 0.5, 10 + i)).sign()).bfloat16().float()
    past = past_of(count_values(weights))
    assert (past.lattice, past.trained_since, past.kept_in_half) == ("bf16", True, True)
    assert "times as frequent" in past.findings["held_back"].reason


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_float32_values_remember_where_they_began(dense: Tensor, name: str) -> None:
    dtype, moved = (torch.bfloat16, 5e-5) if name == "bf16" else (torch.float16, 6e-6)
    past = past_of(count_values(dense.to(dtype).float() + step(MANY, moved)))
    assert (past.lattice, past.trained_since, past.began_from) == (None, True, name)
    forgot = past_of(count_values(dense.to(dtype).float() + step(MANY, 1e-2)))
    assert (forgot.trained_since, forgot.began_from, forgot.marked) == (None, None, False)


def test_too_few_weights_tell_nothing(dense: Tensor) -> None:
    past = past_of(count_values((dense[:9000].bfloat16().float() + step(9000, 5e-5)).bfloat16()))
    assert (past.lattice, past.trained_since, past.marked) == ("bf16", None, None)
    assert "too few" in past.findings["first_rounding"].reason
    assert past_of(NO_COUNTS).lattice is None and past_of(count_values(torch.zeros(100))).marked is None


def test_copied_layers_are_found() -> None:
    draw = np.random.default_rng(0)
    kinds = {name: {layer: draw.normal(size=2000) for layer in range(6)} for name in ("q", "mlp", "out")}
    for found in kinds.values():
        found[4] = found[1] + 0.2 * draw.normal(size=2000)  # tuned since
        found[5] = np.ones(2000)  # a constant correlates with nothing
    kinds["out"][2] = kinds["out"][3]  # one kind of three
    assert repeated_layers(kinds) == [(1, 4)]
    assert repeated_layers({}) == [] == repeated_layers({"q": {0: np.ones(3)}})
