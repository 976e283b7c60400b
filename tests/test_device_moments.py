"""Sums of many slices at once, by the operations for accelerators: here on the processor, on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_lineage.weights.device_moments import moments_on, slice_moments
from hf_lineage.weights.moments import CHUNK, SMALL, block_moments

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
pytestmark = pytest.mark.parametrize("device", DEVICES)
LENGTH = CHUNK + 777
FIELDS = ("gram", "s1", "squares")


def slices(
    count: int, models: int, length: int = LENGTH, dtype: torch.dtype = torch.float32
) -> list[list[torch.Tensor]]:
    """A pivot, half of the others close to it, half unrelated."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(count, length, generator=generator)
    close = [first + 1e-3 * k * torch.randn(first.shape, generator=generator) for k in range(1, models // 2 + 1)]
    strangers = [torch.randn(first.shape, generator=generator) for _ in range(models - 1 - len(close))]
    return [[row[k].to(dtype) for row in (first, *close, *strangers)] for k in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("length", [SMALL + 1, CHUNK, LENGTH, 5 * CHUNK + 1])
def test_the_sums_are_those_made_one_by_one(device: str, dtype: torch.dtype, length: int) -> None:
    many = slices(2, 5, length, dtype)
    for made, rows in zip(moments_on(many, torch.device(device), True, False), many, strict=True):
        exact = block_moments([row.double() for row in rows])
        scale = np.sqrt(np.outer(np.diag(exact.gram), np.diag(exact.gram)))
        assert made.count == exact.count and (np.abs(made.gram - exact.gram) <= 2e-6 * scale).all()
        np.testing.assert_allclose(np.diag(made.gram), np.diag(exact.gram), rtol=2e-6)
        np.testing.assert_allclose(made.squares, exact.squares, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_relatives_are_multiplied_with_one_another(device: str, dtype: torch.dtype) -> None:
    many = slices(3, 6, dtype=dtype)
    for made, rows in zip(moments_on(many, torch.device(device), False, True), many, strict=True):
        beside = block_moments(rows, False, True)
        assert (np.isnan(made.gram) == np.isnan(beside.gram)).all() and np.isnan(made.gram).any()
        np.testing.assert_allclose(np.diag(made.gram), np.diag(beside.gram), rtol=2e-6)
        assert not made.squares.any() or np.isnan(made.squares).any()


def test_a_sum_depends_on_its_own_slice_and_pair_alone(device: str) -> None:
    """Not by a bit on the other slices of the group, nor on the other models."""
    many, target = slices(7, 5), torch.device(device)
    together = moments_on(many, target, True, False)
    for k in (0, 6):
        [alone] = moments_on([many[k]], target, True, False)
        [pair] = moments_on([[many[k][0], many[k][3]]], target, True, False)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(together[k], field), getattr(alone, field))
        for field in ("gram", "squares"):
            np.testing.assert_array_equal(getattr(together[k], field)[np.ix_([0, 3], [0, 3])], getattr(pair, field))


def test_what_float32_cannot_hold_and_short_or_broken_ones_are_made_one_by_one(device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    long, short = torch.randn(2, LENGTH, generator=generator), torch.randn(2, 99, generator=generator)
    broken = long.clone()
    broken[1, 5] = torch.nan
    many = [list(long), list(short), list(long * 1e30), list(long.double()), list(broken), [long[0], long[0]]]
    for made, rows in zip(moments_on(many, torch.device(device), True, False), many, strict=True):
        exact = block_moments(rows)
        for field in FIELDS:
            np.testing.assert_allclose(getattr(made, field), getattr(exact, field), rtol=1e-5, atol=1e-3)
        assert (np.isnan(made.gram) == np.isnan(exact.gram)).all()


def test_neighbours_in_memory_go_as_one(device: str) -> None:
    """Slices that are parts of one tensor, in order, in another order, and with a gap."""
    whole = [row.bfloat16() for row in torch.randn(2, 4 * LENGTH, generator=torch.Generator().manual_seed(3))]
    parts = [row.split(LENGTH) for row in whole]
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [0, 1, 3]):
        many = [[row[k] for row in parts] for k in order]
        for made, rows in zip(moments_on(many, torch.device(device), True, False), many, strict=True):
            [apart] = moments_on([[row.clone() for row in rows]], torch.device(device), True, False)
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(made, field), getattr(apart, field))


def test_on_the_processor_each_is_made_by_itself(device: str) -> None:
    many = slices(2, 3)
    for made, rows in zip(slice_moments(many, torch.device("cpu")), many, strict=True):
        np.testing.assert_array_equal(made.gram, block_moments(rows).gram)
