"""Whether a child came from X or is its sibling, by what rounding did to X's step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from hf_lineage.weights.direction.inheritance import OFTEN, RARE, inheritance, inherited

pytestmark = pytest.mark.unit
Matrix = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def steps(seed: int, size: float, along: torch.Tensor | None = None, share: float = 0.0) -> torch.Tensor:
    """What training did: every weight about as far, as Adam does; `share` of it along another step."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(600, 500, generator=generator)
    both = own if along is None else share * along / along.square().mean().sqrt() + (1 - share**2) ** 0.5 * own
    return size * both


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def base(request: pytest.FixtureRequest) -> torch.Tensor:
    weights = 0.05 * torch.randn(600, 500, generator=torch.Generator().manual_seed(0))
    return weights.to(request.param)


def size_of(base: torch.Tensor) -> float:
    """A step of about a spacing at the middle weight."""
    return 0.05 * (2**-9 if base.dtype == torch.bfloat16 else 2**-12)


def moved(base: torch.Tensor, step: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return (base.float() + step).to(dtype or base.dtype)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_a_child_inherits_the_step_of_its_parent(base: torch.Tensor, size: float, dtype: torch.dtype | None) -> None:
    parent = moved(base, steps(1, size_of(base)))
    child = moved(parent, steps(2, size * size_of(base)), dtype)
    found = inheritance([(child, parent, base)])
    assert found.decided is True and found.rare == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize(("size", "share"), [(1.0, 0.0), (1.0, 0.6), (1.5, 0.9), (2.0, 0.7), (3.0, 0.5)])
def test_a_sibling_that_trained_alike_does_not(
    base: torch.Tensor, size: float, share: float, dtype: torch.dtype | None
) -> None:
    step = steps(1, size_of(base))
    sibling = moved(base, steps(2, size * size_of(base), step, share), dtype)
    found = inheritance([(sibling, moved(base, step), base)])
    assert found.decided is False and found.rare is not None and found.often is not None
    if share:
        assert 0.4 < found.rare / found.often < 0.75


@pytest.mark.parametrize("size", [5.0, 10.0, 30.0])
def test_beside_a_far_heavier_sibling_nothing_says_child(base: torch.Tensor, size: float) -> None:
    step = steps(1, size_of(base))
    for share in (0.1, 0.3, 0.6, 0.9):
        sibling = moved(base, steps(2, size * size_of(base), step, share))
        assert inheritance([(sibling, moved(base, step), base)]).decided is not True, (size, share)


def test_the_pair_asked_the_other_way_round(base: torch.Tensor) -> None:
    """A parent has not inherited its child's step, but for a child that moved too little to tell: then both have."""
    size = 0.5 * size_of(base)
    parent = moved(base, steps(1, size))
    child, near = moved(parent, steps(2, size)), moved(parent, steps(2, 0.1 * size))
    assert inheritance([(parent, child, base)]).decided is False
    assert inheritance([(near, parent, base)]).decided is True
    assert inheritance([(parent, near, base)]).decided is True


def test_an_average_with_another_is_no_child(base: torch.Tensor) -> None:
    one, two = (moved(base, steps(seed, size_of(base))) for seed in (1, 2))
    merge = ((one.float() + two.float()) / 2).to(base.dtype)
    assert inheritance([(merge, one, base)]).decided is False


def test_what_was_kept_in_half_precision_shows_no_child(base: torch.Tensor) -> None:
    parent = moved(base, steps(1, size_of(base)))
    child, sibling = moved(parent, steps(2, size_of(base))), moved(base, steps(3, size_of(base)))
    assert inherited([(child, parent, base)], kept_in_half=True) is None
    assert inherited([(child, parent, base)], kept_in_half=None) is None, "it does not show that they were not"
    assert inherited([(child, parent, base)], kept_in_half=False) is True
    assert inherited([(sibling, parent, base)], kept_in_half=True) is False


def test_off_the_lattice_and_in_few_weights_nothing_is_said(base: torch.Tensor) -> None:
    parent = moved(base, steps(1, size_of(base)))
    child = moved(parent, steps(2, size_of(base)))
    for matrices in (
        [],
        [(child, parent.float() + 1e-6, base)],
        [(child, parent, base.float() * 1.0001)],
        [(child[:3], parent[:3], base[:3])],
        [(base, base, base)],
    ):
        found = inheritance(matrices)
        assert (found.rare, found.decided) == (None, None)


def test_against_a_loop_over_weights(base: torch.Tensor) -> None:
    parent = moved(base, steps(1, size_of(base)))[:100]
    child = moved(parent, steps(2, size_of(base))[:100])
    matrices: list[Matrix] = [(child, parent, base[:100]), (child[:60] * 2, parent[:60] * 2, base[:60] * 2)]
    rare, often = textbook(matrices)
    found = inheritance(matrices)
    assert found.rare == pytest.approx(rare, rel=1e-9) and found.often == pytest.approx(often, rel=1e-9)


def textbook(matrices: Iterable[Matrix]) -> tuple[float, float]:
    few, most = np.zeros(2), np.zeros(2)
    for c, x, r in matrices:
        bins: dict[int, list[tuple[float, float]]] = {}
        for a, b, d in zip(*(t.flatten().double().tolist() for t in (c, x, r)), strict=True):
            bins.setdefault(int(np.frexp(d)[1]), []).append((a - d, b - d))
        sums = {True: np.zeros(3), False: np.zeros(3)}
        for pairs in bins.values():
            share = sum(b != 0 for _, b in pairs) / len(pairs)
            if share <= RARE or share >= OFTEN:
                sums[share <= RARE] += [sum(a * b for a, b in pairs), sum(b * b for _, b in pairs), 0]
        few += sums[True][:2]
        most += [sums[False][0] / sums[False][1] * sums[True][1], sums[True][1]]
    return float(few[0] / few[1]), float(most[0] / most[1])
