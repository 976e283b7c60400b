"""What is read: everything on a fixed grid, or a seeded sample of the size that was asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage.checkpoints.entry import Entry
from hf_lineage.errors import ArgumentError
from hf_lineage.sizes import Memory
from hf_lineage.weights.sampling import MIN_UNITS, Plan, grid, make_plan, sample_budget

SHAPES = {"fc1.weight": (2048, 784), "fc1.bias": (2048,), "fc2.weight": (256, 2048), "emb.weight": (5000, 64)}
ENTRIES = {name: Entry(name, "F32", shape, 4 * Entry(name, "F32", shape, 0).count) for name, shape in SHAPES.items()}
BYTES = {name: entry.nbytes for name, entry in ENTRIES.items()}
ORDERS = {"fc1": ("fc1.weight",), "fc2": ("fc2.weight",)}
TOTAL = sum(BYTES.values())


def plan(budget: int | None, seed: int = 0):
    return make_plan(ENTRIES, BYTES, ORDERS, budget=budget, keep=64 << 20, seed=seed)


@pytest.mark.parametrize("shape", [(3, 5), (1,), (700_000,), (1000, 1000), (2, 600_000), (64, 3, 7, 7)])
def test_the_grid_covers_a_tensor_once(shape: tuple[int, ...]) -> None:
    pieces = grid("t", shape)
    assert pieces[0].start == 0 and pieces[-1].stop == Entry("t", "F32", shape, 0).count
    assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))


def test_everything_is_everything() -> None:
    full = plan(None)
    assert not full.sampled and sum(p.stop - p.start for p in full.slices) == sum(e.count for e in ENTRIES.values())
    assert set(full.rows) == {name for name, entry in ENTRIES.items() if len(entry.shape) > 1}


@given(st.integers(min_value=600_000, max_value=TOTAL - 1), st.integers(0, 5))
def test_a_sample_has_the_size_asked_for(budget: int, seed: int) -> None:
    found = plan(budget, seed)
    taken = sum(4 * (p.stop - p.start) for p in found.slices)
    assert taken == pytest.approx(budget, rel=0.2) and found.share == pytest.approx(taken / TOTAL)


@given(st.integers(min_value=10_000, max_value=TOTAL - 1))
def test_a_sample_has_whole_units_or_none(budget: int) -> None:
    found = plan(budget)
    for name, rows in found.rows.items():
        assert len(rows) >= MIN_UNITS and rows == tuple(range(rows[0], rows[0] + len(rows)))
        width = SHAPES[name][1]
        covered = {r for p in found.slices if p.name == name for r in range(p.start // width, p.stop // width)}
        assert covered >= set(rows)


def test_too_small_a_sample_tests_nothing() -> None:
    assert plan(2_000).rows == {}


def test_the_seed_decides() -> None:
    assert plan(700_000, 1) == plan(700_000, 1) != plan(700_000, 2)


def test_kept_units_stay_within_memory() -> None:
    full = make_plan(ENTRIES, BYTES, ORDERS, budget=None, keep=1 << 20, seed=0)
    assert 0 < sum(4 * len(rows) * SHAPES[name][1] for name, rows in full.rows.items()) <= 1 << 20


def test_gate_and_up_share_their_rows() -> None:
    entries = {n: Entry(n, "F32", (1000, 64), 256_000) for n in ("gate", "up")}
    found = make_plan(
        entries, dict.fromkeys(entries, 256_000), {"mlp": ("gate", "up")}, budget=60_000, keep=1 << 26, seed=3
    )
    assert found.rows["gate"] == found.rows["up"]


@pytest.mark.parametrize(
    ("sample", "total", "remote", "expected"),
    [
        (None, 10**9, False, None), (None, 10**9, True, 5_000_000), (None, 10**6, True, 4 << 20), ("all", 5, True, None),
        ("auto", 10**9, False, 5_000_000), (0.01, 10**6, False, 10_000), ("1%", 10**6, False, 10_000),
        ("0.01", 10**6, False, 10_000), (4096, 10**6, False, 4096), ("4096", 10**6, False, 4096), (1.0, 10**6, False, 10**6),
    ],
)  # fmt: skip
def test_spellings(sample, total: int, remote: bool, expected: int | None) -> None:
    assert sample_budget(sample, total, remote) == expected


@pytest.mark.parametrize("sample", ["", "many", "-1", "0", 0, -5, 1.5, "150%", "nan", float("inf"), True])
def test_bad_spellings(sample) -> None:
    with pytest.raises(ArgumentError, match="Expected `sample`"):
        sample_budget(sample, 1000, False)


# ---- within a bound of memory


def experts(layers: int, number: int, height: int, width: int) -> tuple[dict[str, Entry], dict[str, tuple[str, ...]]]:
    """A mixture of experts, bf16: gate and up share an order."""
    names = [f"layers.{i}.experts.{e}" for i in range(layers) for e in range(number)]
    orders = {name: (f"{name}.gate.weight", f"{name}.up.weight") for name in names}
    shapes = {name: (height, width) for both in orders.values() for name in both}
    shapes |= {f"{name}.down.weight": (width, height) for name in names}
    return {name: Entry(name, "BF16", shape, 2 * height * width) for name, shape in shapes.items()}, orders


@pytest.mark.parametrize("budget", [0.05, None])
def test_hidden_units_that_do_not_fit_are_drawn_by_whole_orders(budget: float | None) -> None:
    entries, orders = experts(8, 16, 64, 7168) if budget is None else experts(8, 16, 2048, 7168)
    nbytes = {name: entry.nbytes for name, entry in entries.items()}
    wanted = None if budget is None else round(budget * sum(nbytes.values()))
    one = 2 * 4 * MIN_UNITS * 7168  # bytes of an order

    def planned(seed: int, most: int = 20 * one + 1000) -> Plan:
        return make_plan(entries, nbytes, orders, budget=wanted, keep=1 << 20, most=most, seed=seed)

    found = planned(0)
    kept = {order for order, names in orders.items() if names[0] in found.rows}
    assert found.layers == (20, 128) and len(kept) == 20
    assert all(len(found.rows[name]) >= MIN_UNITS for order in kept for name in orders[order]), "whole orders"
    assert sum(4 * len(rows) * entries[name].shape[1] for name, rows in found.rows.items()) <= 20 * one + (1 << 20)
    assert planned(0) == found and planned(1).rows.keys() != found.rows.keys(), "seeded"
    assert {piece.name for piece in found.slices} == entries.keys(), "the others are read, too"
    assert planned(0, 64 * one).layers == (64, 128) and planned(0, 1 << 30).layers == (128, 128)


@pytest.mark.parametrize("budget", [None, TOTAL // 10])
def test_where_all_fits_memory_changes_nothing(budget: int | None) -> None:
    one, two = (
        make_plan(ENTRIES, BYTES, ORDERS, budget=budget, keep=64 << 20, seed=0, most=m) for m in (None, 1 << 30)
    )
    assert one == two and one.layers == (2, 2)


class TestMemory:
    def test_what_there_is_by_default(self) -> None:
        memory = Memory.of(None)
        assert memory == Memory.of("512MiB") == Memory.of(512 << 20)
        assert memory.units(2) == 32 << 20 and memory.batch(2, 1) == 4 << 20

    @given(st.integers(128 << 20, 1 << 40), st.integers(2, 1000), st.integers(1, 256), st.booleans())
    def test_the_parts_are_within_the_whole(self, total: int, models: int, devices: int, accelerated: bool) -> None:
        memory = Memory.of(total)
        under_way = 2 * models * memory.batch(models, devices, accelerated)
        assert models * memory.most_units(models) <= total // 2 and under_way <= total // 4
        assert memory.units(models) <= memory.most_units(models)

    @pytest.mark.parametrize("wrong", ["", "much", "100MB", 1 << 20, -1, 0, True, "5"])
    def test_nonsense_is_refused(self, wrong) -> None:
        with pytest.raises(ArgumentError, match="Expected `memory`"):
            Memory.of(wrong)
