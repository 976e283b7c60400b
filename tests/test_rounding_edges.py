"""Roundings at powers of two: counts against a loop over entries, λ against constructions with a known origin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_lineage.weights.direction.lattices import LATTICES, lattice_of
from hf_lineage.weights.direction.rounding_edges import (
    BESIDE,
    INTERIOR,
    REACH,
    ZONES,
    Roundings,
    count_roundings,
    edge_position,
)

FORMATS = {"bf16": (torch.bfloat16, 128, 127), "fp16": (torch.float16, 1024, 15)}  # numbers of a binade, bias
MANY = 3_000_000


def draws(seed: int, count: int, spread: float = 0.05) -> Tensor:
    return spread * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def stored(values: Tensor, name: str) -> Tensor:
    return values.to(FORMATS[name][0])


def place_of(value: float, size: int, bias: int) -> int:
    """How many numbers of the format lie between zero and the value, from its logarithm; the textbook way."""
    if abs(value) < 2.0 ** (1 - bias):
        return round(abs(value) * size / 2.0 ** (1 - bias))
    exponent = math.floor(math.log2(abs(value)))
    return round(size * (exponent + bias + abs(value) / 2.0**exponent - 1))


def looped(one: Tensor, other: Tensor, name: str) -> np.ndarray:
    """The counts of `Roundings.tables[name][0]` by a loop over entries."""
    size, bias = FORMATS[name][1:]
    table = np.zeros((len(LATTICES[name].edges), ZONES, 2 * REACH + 1), dtype=np.int64)
    for a, b in zip(one.double().tolist(), other.double().tolist(), strict=True):
        start, end = place_of(a, size, bias), place_of(b, size, bias)
        step = max(-REACH, min((end if a * b >= 0 else -end) - start, REACH))
        for i, binade in enumerate(LATTICES[name].edges):
            beside = start - size * binade
            if -BESIDE <= beside <= BESIDE:
                table[i, beside + BESIDE, step + REACH] += 1
            if beside in INTERIOR:
                table[i, -1, step + REACH] += 1
    return table


@pytest.mark.parametrize("name", FORMATS)
def test_counts_are_those_of_a_loop(name: str) -> None:
    base = stored(draws(1, 20_000), name)
    child = stored(base.float() + draws(2, 20_000, 2e-4 if name == "bf16" else 3e-5), name)
    found = count_roundings(child, base)
    np.testing.assert_array_equal(found.tables[name][0], looped(base, child, name))
    np.testing.assert_array_equal(found.tables[name][1], looped(child, base, name))
    assert (found.entries, found.moved) == (20_000, int((child != base).sum()))
    assert found.tables[name][0, :, :-1].sum() > 50, "the loop had something to count"


def test_counts_add_up_over_any_slices() -> None:
    base = stored(draws(3, 9_000), "bf16")
    child = stored(base.float() + draws(4, 9_000, 1e-4), "bf16")
    whole = count_roundings(child, base)
    parts = [count_roundings(child[i:j], base[i:j]) for i, j in ((0, 7), (7, 4_000), (4_000, 9_000))]
    for added in (parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])):
        np.testing.assert_array_equal(added.tables["bf16"], whole.tables["bf16"])
        assert (added.entries, added.moved) == (whole.entries, whole.moved)


def test_the_values_decide_which_lattice_it_is() -> None:
    base = stored(draws(5, 9_000), "bf16")
    child = stored(base.float() + draws(6, 9_000, 1e-4), "bf16")
    stored_wider = count_roundings(child.float(), base.double())
    np.testing.assert_array_equal(stored_wider.tables["bf16"], count_roundings(child, base).tables["bf16"])
    half = stored(draws(5, 9_000), "fp16")
    assert [lattice_of(x).name for x in (half, half.float(), half.double())] == ["fp16"] * 3  # type: ignore[union-attr]
    assert lattice_of(draws(5, 9_000)) is None
    assert not count_roundings(child, draws(5, 9_000)).tables and not count_roundings(half, base).tables


def test_equal_slices_and_broken_numbers_count_nothing() -> None:
    base = stored(draws(7, 9_000), "bf16")
    assert count_roundings(base, base).tables == {} and count_roundings(base, base).entries == 9_000
    child = stored(base.float() + draws(8, 9_000, 1e-4), "bf16")
    sound = count_roundings(child[3::4], base[3::4]).tables["bf16"][1]
    child[::2] = torch.nan
    child[1::4] = torch.inf
    np.testing.assert_array_equal(count_roundings(child, base).tables["bf16"][1], sound)


def family(name: str, step: float, seed: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """A base cast once, and two children that moved by `step` and by three times that."""
    base = stored(draws(seed, MANY), name)
    light, heavy = (stored(base.float() + draws(seed + i, MANY, step * i**1.6), name) for i in (1, 2))
    return base, light, heavy


STEPS = {"bf16": (1e-5, 2e-5, 1e-4), "fp16": (1e-5, 3e-5)}


@pytest.mark.parametrize(("name", "step"), [(name, step) for name in STEPS for step in STEPS[name]])
def test_a_child_comes_after_its_base(name: str, step: float) -> None:
    base, light, _ = family(name, step)
    found = edge_position({"w": count_roundings(light, base)})
    back = edge_position({"w": count_roundings(base, light)})
    assert found.lambda_ == pytest.approx(1.0, abs=3 * math.hypot(found.stderr, 0.05)) and found.z > 2
    assert found.misfit < 2 and found.entries == MANY
    assert back.lambda_ == pytest.approx(-found.lambda_, abs=1e-9), "swapped models swap λ"
    assert back.stderr == pytest.approx(found.stderr, rel=1e-6)


def test_equal_siblings_lie_in_the_middle_and_unequal_ones_near_an_end() -> None:
    """λ = 1 − 2‖o − p‖²/‖c − p‖² of a common parent o: the one that moved less looks older, and no more is claimed."""
    base = stored(draws(20, MANY), "bf16")
    one, other = (stored(base.float() + draws(seed, MANY, 2e-5), "bf16") for seed in (21, 22))
    equal = edge_position({"w": count_roundings(one, other)})
    assert equal.lambda_ == pytest.approx(0.0, abs=3 * equal.stderr) and abs(equal.lambda_ or 1) < 0.5
    far = stored(base.float() + draws(23, MANY, 6e-5), "bf16")
    unequal = edge_position({"w": count_roundings(far, one)})
    assert (unequal.lambda_ or 0) > 0.5, "the candidate moved less"


def test_siblings_that_moved_in_other_tensors_contradict_themselves() -> None:
    """Of a LoRA and a full fine-tune each looks older in the tensors that it left alone."""
    base = {name: stored(draws(30 + i, MANY), "bf16") for i, name in enumerate(("q", "mlp"))}
    moved = {name: stored(values.float() + draws(40, MANY, 3e-5), "bf16") for name, values in base.items()}
    one, other = {**base, "q": moved["q"]}, {**base, "mlp": moved["mlp"]}
    found = edge_position({name: count_roundings(one[name], other[name]) for name in base})
    assert found.misfit > 10
    direct = edge_position({name: count_roundings(moved[name], base[name]) for name in base})
    assert direct.misfit < 2 and (direct.lambda_ or 0) > 0.8


def test_tensors_whose_names_differ_in_numbers_are_of_one_kind() -> None:
    base, light, _ = family("bf16", 2e-5)
    whole = edge_position({"layers.0.w": count_roundings(light, base)})
    halves = {f"layers.{i}.w": count_roundings(light[i::2], base[i::2]) for i in range(2)}
    assert edge_position(halves) == whole


def test_steps_all_of_one_length_are_understood() -> None:
    """Adam's first steps are nearly equally long: between half-integers the law of the step is no straight line."""
    base = stored(draws(50, MANY), "bf16")
    sign = draws(51, MANY).sign()
    length = 1 + 0.1 * draws(52, MANY, 1.0)
    child = stored(base.float() + 1.5e-4 * sign * length, "bf16")
    found = edge_position({"w": count_roundings(child, base)})
    assert found.lambda_ is None or (found.lambda_ == pytest.approx(1.0, abs=3 * math.hypot(found.stderr, 0.05)))


def test_it_is_silent_where_it_cannot_see() -> None:
    base = stored(draws(60, MANY), "bf16")
    far = stored(draws(61, MANY), "bf16")
    silent = {
        "float32": count_roundings(draws(62, 1000), draws(63, 1000)),
        "equal": count_roundings(base, base),
        "few": count_roundings(stored(base[:5000].float() + draws(64, 5000, 2e-5), "bf16"), base[:5000]),
        "unrelated": count_roundings(far[:100_000], base[:100_000]),
    }
    for what, roundings in silent.items():
        found = edge_position({"w": roundings})
        assert found.lambda_ is None or abs(found.z) < 3, what
        assert found.lambda_ is not None or found.reason
    assert edge_position({}).lambda_ is None
    assert edge_position({"w": Roundings()}).reason.startswith("they do not lie on one lattice")
    assert not silent["unrelated"].tables and "too long" in edge_position({"w": silent["unrelated"]}).reason
