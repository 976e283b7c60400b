"""Every method of merging is planted on two matrices, found by making them again, and equal bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_lineage.weights.merge_methods import METHODS, remade, sum_of_products
from hf_lineage.weights.merge_numbers import anchors, resolve, shares_as_written
from hf_lineage.weights.merge_search import Probe, find_merge

SHAPES = ((96, 80), (128, 64))
TWO, THREE = (1, 2), (1, 2, 3)
# method, number of the base (0 is the common one), the models, settings
PLANTED: tuple[tuple[str, int | None, tuple[int, ...], dict[str, Any]], ...] = (
    ("linear", None, TWO, {"weight": (0.6, 0.4)}),
    ("linear", None, THREE, {"weight": (0.5, 0.3, 0.2)}),
    ("slerp", 1, (2,), {"t": 0.3}),
    ("nuslerp", 0, TWO, {"weight": (0.6, 0.4)}),
    ("nuslerp", None, TWO, {"weight": (0.6, 0.4), "nuslerp_flatten": False}),
    ("nuslerp", None, TWO, {"weight": (0.6, 0.4), "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", None, THREE, {"weight": (0.5, 0.3, 0.2)}),
    ("multislerp", 0, TWO, {"weight": (0.6, 0.4)}),
    ("karcher", None, THREE, {}),
    ("model_stock", 0, THREE, {}),
    ("task_arithmetic", 0, TWO, {"weight": (0.7, 0.55)}),
    ("ties", 0, THREE, {"weight": (0.5, 0.3, 0.2), "density": (0.5, 0.6, 0.4)}),
    ("breadcrumbs", 0, TWO, {"weight": (0.6, 0.4), "density": (0.8, 0.7), "gamma": (0.05, 0.05)}),
    ("breadcrumbs_ties", 0, THREE, {"weight": (0.6, 0.4, 0.3), "density": (0.8, 0.7, 0.9), "gamma": (0.05,) * 3}),
    ("sce", 0, THREE, {"select_topk": 0.4}),
    ("ram", 0, TWO, {}),
    ("ramplus_tl", 0, TWO, {"r": 0.2}),
    ("nearswap", 0, (1,), {"t": 0.001}),
    ("arcee_fusion", 0, (1,), {}),
)  # fmt: skip
DRAWN = ("dare_linear", "dare_ties", "della", "della_linear")


def models(shape: tuple[int, ...], seed: int, siblings: bool) -> list[Tensor]:
    """A base and three others, its fine-tunes or strangers; a few entries of the fine-tunes did not move."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(size: float) -> Tensor:
        return size * torch.randn(shape, generator=generator)

    base = drawn(0.05)
    moved = [drawn(0.004) * (torch.rand(shape, generator=generator) < 0.95) for _ in range(3)]
    return [base, *(base + step if siblings else drawn(0.05) for step in moved)]


def planted(
    method: str, base: int | None, others: tuple[int, ...], settings: dict[str, Any], siblings: bool
) -> list[Probe]:
    probes = []
    for seed, shape in enumerate(SHAPES):
        every = models(shape, seed, siblings)
        start = None if base is None else every[base]
        child = remade(method, start, [every[k] for k in others], settings, torch.float32, torch.float32)
        probes.append(Probe(f"matrix {seed}", child, tuple(every)))
    return probes


@pytest.mark.parametrize("siblings", [True, False], ids=["siblings", "strangers"])
@pytest.mark.parametrize(("method", "base", "others", "settings"), PLANTED)
def test_found_and_made_again(method, base, others, settings, siblings) -> None:
    if method in ("ram", "ramplus_tl") and not siblings:
        pytest.skip("strangers differ everywhere: both are a plain mean of the changes then")
    found = find_merge(planted(method, base, others, settings, siblings), range(4))
    assert found and found.exact and found.recipe.method == method, found
    assert found.recipe.base in (base, *(others if method == "slerp" else ()))
    assert {*found.recipe.models} == {*others} or method == "slerp"
    for name in ("t", "density", "gamma", "select_topk", "r"):
        if name in settings and method != "slerp":
            told, meant = found.recipe.settings[name], settings[name]
            order = [others.index(k) for k in found.recipe.models] if isinstance(meant, tuple) else []
            assert told == pytest.approx(tuple(meant[i] for i in order) if order else meant, abs=1e-9)


def test_all_twenty_are_known() -> None:
    assert len(METHODS) == 20 and {name for name, *_ in PLANTED} | {*DRAWN, "passthrough"} == METHODS.keys()


@pytest.mark.parametrize("method", DRAWN)
def test_masks_drawn_at_random(method: str) -> None:
    """The masks are read off: the weights are right to 0.05, and nothing is said to be made bit for bit."""
    settings = {"weight": (0.6, 0.4), "density": (0.5, 0.5)}
    probes = []
    for seed, shape in enumerate(SHAPES):
        every = models(shape, seed, siblings=False)
        generator = torch.Generator().manual_seed(seed)
        masks = []
        for k in TWO:
            rank = (every[k] - every[0]).abs().argsort(1).argsort(1) / (shape[1] - 1)
            chance = 0.35 + 0.3 * rank if "della" in method else torch.full(shape, 0.5)
            masks.append(torch.bernoulli(chance, generator=generator))
        child = remade(
            method, every[0], [every[k] for k in TWO], {**settings, "masks": masks}, torch.float32, torch.float32
        )
        probes.append(Probe(f"matrix {seed}", child, tuple(every)))
    found = find_merge(probes, range(4))
    assert found and found.recipe.method == method and found.recipe.base == 0 and found.recipe.models == TWO, found
    assert found.recipe.settings["weight"] == pytest.approx((0.6, 0.4), abs=0.05) and not found.exact
    assert found.recipe.settings["density"] == pytest.approx((0.5, 0.5), abs=0.05)


def test_what_is_no_merge() -> None:
    """Fine-tunes of the base and of a sibling, pruned, noisy, rounded and half frozen children, and a LoRA."""
    for seed, shape in enumerate(SHAPES[1:]):
        base, *others = models(shape, seed, siblings=True)
        generator = torch.Generator().manual_seed(10 + seed)
        noise = 0.004 * torch.randn(shape, generator=generator)
        low_rank = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
        frozen = noise * (torch.rand(shape[0], 1, generator=generator) < 0.5)
        children = {
            "tuned": base + noise, "of a sibling": others[0] + noise, "pruned": base * (base.abs() > 0.03),
            "rounded": (base * 64).round() / 64, "half frozen": base + frozen, "LoRA": base + 0.002 * low_rank,
            "signs": base + 0.001 * noise.sign(), "decayed": 0.9 * base + noise, "stranger": models(shape, 50, False)[1],
        }  # fmt: skip
        for kind, child in children.items():
            for dtype in (torch.float32, torch.bfloat16):
                every = tuple(model.to(dtype) for model in (base, *others))
                found = find_merge([Probe(kind, child.to(dtype), every)], range(4))
                assert found is None, (kind, dtype, found)


def test_numbers_as_authors_write_them() -> None:
    assert (1.0, 1.0, 1.0) in [*shares_as_written([1 / 3, 1 / 3, 1 / 3], 1e-6)]
    assert next(shares_as_written([0.7, 0.3], 1e-4)) == (0.7, 0.3)
    places = [i / 31 for i in range(32)]
    values = [resolve([0.0, 0.5, 0.3, 0.7, 1.0], "", place) for place in places]
    assert anchors(places, values, [1e-6] * 32) == [0.0, 0.5, 0.3, 0.7, 1.0]
    assert anchors(places, [0.4] * 32, [1e-6] * 32) == [0.4] and anchors(places, [0.1, 0.9] * 16, [1e-3] * 32) is None


@pytest.mark.parametrize("weights", [(0.65, 0.35), (0.613, 0.387), (0.5, 0.3, 0.2)])
def test_light_fine_tunes_merged_in_half_precision(weights: tuple[float, ...]) -> None:
    """Steps of about one unit in the last place: least squares are drawn to the nearest model, rounding's cells are not."""
    probes = []
    for seed, shape in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(seed)
        base = (0.05 * torch.randn(shape, generator=generator)).bfloat16()
        steps = [2e-4 * torch.randn(shape, generator=generator) for _ in range(3)]
        every = [base, *((base.float() + step).bfloat16() for step in steps)]
        child = remade("linear", None, every[1 : 1 + len(weights)], {"weight": weights}, torch.float32, torch.bfloat16)
        probes.append(Probe(f"matrix {seed}", child, tuple(every)))
    found = find_merge(probes, range(4))
    assert found and found.coarse and found.recipe.method == "linear", found
    total = sum(found.recipe.settings["weight"])
    shares = dict(zip(found.recipe.models, (w / total for w in found.recipe.settings["weight"]), strict=True))
    assert shares == pytest.approx(dict(enumerate(weights, 1)), abs=0.002)
    assert found.exact or weights[0] == 0.613


def test_light_fine_tunes_in_half_precision_are_no_merges() -> None:
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        base = (0.05 * torch.randn(SHAPES[1], generator=generator)).bfloat16()
        common = torch.randn(SHAPES[1], generator=generator)
        tuned = [
            (base.float() + 2e-4 * (torch.randn(SHAPES[1], generator=generator) + common)).bfloat16() for _ in range(4)
        ]
        assert find_merge([Probe("tuned", tuned[3], (base, *tuned[:3]))], range(4)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", range(1, 8))
def test_products_are_added_as_torch_adds_a_stack(dtype: torch.dtype, count: int) -> None:
    """To the bit, or an honest merge would not be one; shapes that fill no vector registers, and threads, included."""
    torch.manual_seed(count)
    for shape in ((), (7,), (33, 65), (4, 3, 5, 7), (70_003,)):
        models = [torch.randn(shape).to(dtype) for _ in range(count)]
        weights = torch.rand(count).to(dtype).view(-1, *(1 for _ in shape))
        expected = (torch.stack(models) * weights).sum(0)
        assert torch.equal(sum_of_products(models, weights), expected)
