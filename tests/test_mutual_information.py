"""Per-unit information against a loop in long double, and what it is for: ranking a parent before a grandparent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_lineage.weights.mutual_information import MIN_UNEXPLAINED, mutual_information


@pytest.mark.parametrize("change", [1.0, 1e-2, 1e-4, 1e-6])
def test_against_a_loop(change: float) -> None:
    generator = torch.Generator().manual_seed(0)
    child = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    candidate = child + change * torch.randn(7, 40, generator=generator, dtype=torch.float64)
    expected = 0.0
    for a, b in zip(child.numpy().astype(np.longdouble), candidate.numpy().astype(np.longdouble), strict=True):
        a, b = a - a.mean(), b - b.mean()
        rest = b - (a @ b) / (a @ a) * a
        expected -= 20 * math.log(float((rest @ rest) / (b @ b)))
    assert mutual_information(child, candidate) == pytest.approx(expected, rel=1e-3)


def test_equal_units_tell_the_most_and_dead_ones_nothing() -> None:
    x = torch.randn(3, 10)
    assert mutual_information(x, 2 * x + 1) == pytest.approx(-15 * math.log(MIN_UNEXPLAINED), rel=0.05)
    x[1] = 0.0
    assert mutual_information(x, x) == pytest.approx(-10 * math.log(MIN_UNEXPLAINED), rel=0.05)


def test_a_grandparent_that_is_nearer_by_distance_tells_less() -> None:
    """The parent moved a little in every unit, the child far in a few of them and partly back."""
    generator = torch.Generator().manual_seed(1)
    grandparent = torch.randn(50, 100, generator=generator)
    step = 0.03 * torch.randn(50, 100, generator=generator)
    parent, child = grandparent + step, grandparent + step
    child[:5] += 2 * torch.randn(5, 100, generator=generator) - 20 * step[:5]
    assert (child - grandparent).norm() < (child - parent).norm()
    assert mutual_information(child, parent) > mutual_information(child, grandparent)
