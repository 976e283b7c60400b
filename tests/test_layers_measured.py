"""Layer origins measured: hybrids as in Neural Lineage's Fig. 1(c), and what people merge, with the truth known.

pytest -m large tests/test_layers_measured.py        the tests run a reduced form of the same code.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hf_lineage as hl
from hf_lineage.experiments.families import Family, Member
from hf_lineage.experiments.merges import (
    Tensors,
    dare,
    epochs,
    hybrid,
    linear,
    passthrough,
    slerp,
    task_arithmetic,
    ties,
    tuned,
    write,
)

if TYPE_CHECKING:
    from conftest import Nursery

RATES = (1e-4, 1e-3)


def tensors_of(members: Sequence[Member]) -> list[Tensors]:
    return [load_file(member.path / "model.safetensors") for member in members]


def kept(folder: Path, like: Member, make: Callable[[], Tensors]) -> Path:
    """The repo of a child, made unless an earlier run left it there."""
    return folder if (folder / "model.safetensors").exists() else write(make(), like, folder)


def maybe_tuned(whole: Tensors, like: Member, rate: float, seed: int, steps: int) -> Callable[[], Tensors]:
    return functools.partial(tuned, whole, like, lr=rate, seed=seed, steps=steps) if rate else lambda: whole


def numbered(layers: hl.LayerLineage) -> list[Any]:
    return [block for block in layers.blocks if block.index is not None]


def hybrids(family: Family, folder: Path, counts: Sequence[int], rates: Sequence[float], steps: int) -> dict[str, Any]:
    """Fig. 1(c): block i of a random root, fine-tuned; blocks whose origin is right, by weights and by features."""
    found: dict[str, Any] = {"models": 0, "blocks": 0, "weights": 0, "mixtures": 0, "features": {}}
    for count, rate in ((count, rate) for count in counts for rate in rates):
        draw = random.Random(f"{count}/{rate}")
        roots = list(family.roots[:count])
        models = tensors_of(roots)
        depth = 1 + max(int(name.split(".")[1]) for name in models[0] if name.startswith("blocks."))
        truth = [*range(count), *(draw.randrange(count) for _ in range(depth - count))]
        draw.shuffle(truth)
        whole = hybrid(models, dict(enumerate(truth)))
        make = functools.partial(tuned, whole, roots[0], lr=rate, seed=count, steps=steps)
        path = kept(folder / f"hybrid-{count}-{rate:g}", roots[0], make)
        layers = hl.trace_layers(path, [root.path for root in roots], evidence=["weights", "features"], metric="l2")
        found["models"] += 1
        for block, root in zip(numbered(layers), truth, strict=True):
            found["blocks"] += 1
            found["weights"] += block.parent == str(roots[root].path) and block.parent_block == block.block
            found["mixtures"] += block.kind == "mixture"
            for metric, form, right in features_right(block, layers, str(roots[root].path)):
                key = f"{metric}, {form}"
                found["features"][key] = found["features"].get(key, 0) + right
    return found


def features_right(block: Any, layers: hl.LayerLineage, truth: str) -> list[tuple[str, str, bool]]:
    """For every metric and form whether the true candidate's grafted block is most alike."""
    told = []
    every = block.facts["features"]
    for metric in next(each for each in every.values() if each)["scores"]:
        for form in ("plain", "exact"):
            scores = {ref: each["scores"][metric][form] for ref, each in every.items() if each}
            told.append((metric, form, max(scores, key=lambda ref: scores[ref]) == truth))
    return told


def passthroughs(family: Family, folder: Path, times: int, rates: Sequence[float], steps: int) -> dict[str, Any]:
    """Repeated and shifted blocks of several roots, as they are and fine-tuned."""
    found = {"models": 0, "blocks": 0, "right": 0, "mixtures": 0, "named": 0}
    roots = list(family.roots)
    models = tensors_of(roots)
    depth = 1 + max(int(name.split(".")[2]) for name in models[0] if name.startswith("model.layers."))
    for number, rate in ((number, rate) for number in range(times) for rate in (0.0, *rates)):
        draw = random.Random(f"passthrough {number}")
        order = [(draw.randrange(len(roots)), draw.randrange(depth)) for _ in range(depth + draw.randrange(1, depth))]
        whole = passthrough(models, order)
        path = kept(folder / f"pass-{number}-{rate:g}", roots[0], maybe_tuned(whole, roots[0], rate, number, steps))
        layers = hl.trace_layers(path, [r.path for r in roots])
        found["models"] += 1
        found["named"] += layers.method == "passthrough"
        for block, (root, place) in zip(numbered(layers), order, strict=True):
            found["blocks"] += 1
            found["right"] += (block.parent, block.parent_block) == (str(roots[root].path), f"model.layers.{place}")
            found["mixtures"] += block.kind == "mixture"
    return found


def linears(
    members: Sequence[Member], folder: Path, times: int, rates: Sequence[float], steps: int, most: int = 5
) -> dict[str, Any]:
    """Weighted sums with weights from a Dirichlet draw: errors of the recovered ones, and how often the truth lies within
    two standard errors, before and after fine-tuning."""
    rows: dict[str, list[dict[str, Any]]] = {}
    models = tensors_of(members)
    for number in range(times):
        draw = np.random.default_rng(number)
        count = 2 + number % (min(most, len(members)) - 1)
        chosen = [int(k) for k in draw.permutation(len(members))[:count]]
        weights = draw.dirichlet(np.ones(count))
        for rate in (0.0, *rates):
            whole = linear([models[k] for k in chosen], weights)
            make = maybe_tuned(whole, members[0], rate, number, steps)
            path = kept(folder / f"linear-{number}-{rate:g}", members[0], make)
            layers = hl.trace_layers(path, [member.path for member in members])
            told = {share.ref: share for share in layers.mixture}
            for k, weight in zip(chosen, weights, strict=True):
                share = told.get(str(members[k].path))
                error = abs((share.weight if share else 0.0) - weight)
                stderr = share.stderr if share else layers.mixture[0].stderr
                rows.setdefault(f"{rate:g}", []).append(
                    {"error": error, "covered": error <= 2 * stderr + 1e-6,
                     "found": share is not None, "weight": float(weight), "method": layers.method}
                )  # fmt: skip
    return {
        rate: {
            "weights": len(each), "mean_error": float(np.mean([row["error"] for row in each])),
            "largest_error": float(max(row["error"] for row in each)),
            "covered": float(np.mean([row["covered"] for row in each])),
            "missed": [round(row["weight"], 4) for row in each if not row["found"]],
            "linear": float(np.mean([row["method"] == "linear" for row in each])),
        }
        for rate, each in rows.items()
    }  # fmt: skip


def slerps(members: Sequence[Member], folder: Path, times: int, rates: Sequence[float], steps: int) -> dict[str, Any]:
    """SLERP: |t̂ − t|, and how often it is named."""
    rows: dict[str, list[tuple[float, bool]]] = {}
    models = tensors_of(members)
    for number in range(times):
        draw = random.Random(f"slerp {number}")
        first, second = sorted(draw.sample(range(len(members)), 2))
        t = draw.uniform(0.1, 0.9)
        for rate in (0.0, *rates):
            whole = slerp(models[first], models[second], t)
            make = maybe_tuned(whole, members[0], rate, number, steps)
            path = kept(folder / f"slerp-{number}-{rate:g}", members[0], make)
            layers = hl.trace_layers(path, [member.path for member in members])
            about = layers.facts.get("slerp")
            told = {share.ref: share.weight for share in layers.mixture}
            got = told.get(str(members[second].path), 0.0)
            if about:
                got = about["t"] if about["other"] == str(members[second].path) else 1 - about["t"]
            rows.setdefault(f"{rate:g}", []).append((abs(got - t), layers.method == "slerp"))
    return {
        rate: {"merges": len(each), "largest_error": max(e for e, _ in each), "mean_error": float(np.mean([e for e, _ in each])), "named": sum(n for _, n in each)}
        for rate, each in rows.items()
    }  # fmt: skip


def sparse(base: Member, members: Sequence[Member], folder: Path, times: int) -> dict[str, Any]:
    """TIES, DARE, task arithmetic and weighted sums of fine-tunes of one base: how often each is named, with its base."""
    found: dict[str, dict[str, Any]] = {}
    start, models = tensors_of([base])[0], tensors_of(members)
    for number in range(times):
        draw = np.random.default_rng(1000 + number)
        count = 2 + number % (len(members) - 1)
        chosen = [int(k) for k in draw.permutation(len(members))[:count]]
        weights = [float(w) for w in draw.uniform(0.2, 0.8, count)]
        density = float(draw.choice([0.2, 0.3, 0.5, 0.7]))
        parts = [models[k] for k in chosen]
        made = {
            "ties": ties(start, parts, weights, density), "dare": dare(start, parts, weights, density, number),
            "task_arithmetic": task_arithmetic(start, parts, [w / sum(weights) * 1.3 for w in weights]),
            "linear": linear(parts, [w / sum(weights) for w in weights]),
        }  # fmt: skip
        for method, child in made.items():
            path = write(child, base, folder / f"{method}-{number}")
            layers = hl.trace_layers(path, [base.path, *(member.path for member in members)])
            each = found.setdefault(method, {"merges": 0, "named": 0, "base": 0, "said": [], "density_error": 0.0})
            each["merges"] += 1
            each["named"] += layers.method == method
            about = layers.facts.get(method) or layers.facts.get("merge", {})
            each["base"] += about.get("base") == str(base.path)
            if layers.method != method:
                each["said"].append(layers.method)
            for delta in about.get("deltas", ()):
                if method in ("ties", "dare"):
                    each["density_error"] = max(each["density_error"], abs(delta["density"] - density))
    return found


def singles(family: Family, most: int = 10_000) -> dict[str, int]:
    """Children of one parent: blocks called mixtures among all roots, and with every relative offered beside them."""
    found = {"children": 0, "blocks": 0, "mixtures": 0, "method_single": 0, "with relatives: mixtures": 0}
    found["with relatives: passthrough"] = 0
    for child in random.Random(0).sample(family.children, min(most, len(family.children))):
        layers = hl.trace_layers(child.path, [root.path for root in family.roots])
        found["children"] += 1
        found["blocks"] += len(layers.blocks)
        found["mixtures"] += sum(block.kind == "mixture" for block in layers.blocks)
        found["method_single"] += layers.method == "single"
        same_root = [member for member in family.members if root_of(family, member) == root_of(family, child)]
        others = {member.path for member in (*family.roots, *same_root) if member.name != child.name}
        layers = hl.trace_layers(child.path, sorted(others))
        found["with relatives: mixtures"] += sum(block.kind == "mixture" for block in layers.blocks)
        found["with relatives: passthrough"] += layers.method == "passthrough"
    return found


def root_of(family: Family, member: Member) -> str:
    while member.parent is not None:
        member = family.member(member.parent)
    return member.name


def strangers(family: Family) -> dict[str, Any]:
    """Every root as a child of all the others, which it has nothing to do with: blocks that are given an origin."""
    found: dict[str, Any] = {"children": 0, "blocks": 0, "tested": 0, "origins": 0, "smallest_p": 1.0}
    for root in family.roots:
        layers = hl.trace_layers(root.path, [other.path for other in family.roots if other.name != root.name])
        found["children"] += 1
        found["blocks"] += len(layers.blocks)
        tested = [block.p_value for block in layers.blocks if block.p_value is not None]
        found["tested"] += len(tested)
        found["origins"] += sum(block.parent is not None for block in layers.blocks)
        found["smallest_p"] = min([found["smallest_p"], *tested])
    return found


def reinitialised(member: Member, folder: Path, steps: int) -> hl.LayerLineage:
    """A ResNet with a frozen stem and a last stage initialised anew, tuned in between."""
    [tensors] = tensors_of([member])
    child = tuned(
        tensors, member, lr=1e-3, seed=5, steps=steps, freeze=lambda name: name.startswith(("conv1.", "bn1.")),
        fresh=("layer4.",),
    )  # fmt: skip
    return hl.trace_layers(write(child, member, folder / "resnet-new-stage"), [member.path])


def patchwork(members: Sequence[Member], folder: Path) -> hl.LayerLineage:
    """Two blocks taken whole, one of them from elsewhere, three weighted sums, a new one."""
    first, second, third = tensors_of(members[:3])
    sums = linear([first, third], [0.6, 0.4])
    child = passthrough([first, second, sums], [(0, 0), (1, 3), (2, 1), (2, 2), (2, 3), (0, 1)])
    child = tuned(child, members[0], lr=1e-4, seed=9, steps=30, fresh=("model.layers.5.",))
    return hl.trace_layers(write(child, members[0], folder / "patchwork"), [m.path for m in members[:3]])


def shows_new_stage(layers: hl.LayerLineage) -> bool:
    """Stem equal, stages tuned, the last one and the head from nobody: exactly what was done."""
    return [block.kind for block in layers.blocks] == ["equal", "tuned", "tuned", "tuned", "none", "none"]


@pytest.mark.slow
class TestReduced:
    def test_a_hybrid_of_four_vits(self, nursery: Nursery, tmp_path: Path) -> None:
        found = hybrids(nursery.sources("vit", "reduced"), tmp_path, [4], [1e-3], steps=100)
        assert found["weights"] == found["blocks"] == 4 and found["mixtures"] == 0, found
        assert found["features"]["l2, exact"] >= 3, found

    def test_passthrough(self, nursery: Nursery, tmp_path: Path) -> None:
        found = passthroughs(nursery.sources("llama", "reduced"), tmp_path, 2, [], 0)
        tuned_too = passthroughs(nursery.sources("llama", "reduced"), tmp_path / "tuned", 1, [1e-3], 60)
        for each in (found, tuned_too):
            assert each["right"] == each["blocks"] and each["named"] == each["models"] and not each["mixtures"], each

    def test_weighted_sums(self, nursery: Nursery, tmp_path: Path) -> None:
        found = linears(nursery.sources("llama", "reduced").roots, tmp_path, 2, [1e-3], 60)
        assert found["0"]["largest_error"] < 1e-6 and found["0"]["linear"] == 1, found
        assert found["0.001"]["mean_error"] < 0.02 and found["0.001"]["covered"] >= 0.8, found

    def test_arcs(self, nursery: Nursery, tmp_path: Path) -> None:
        found = slerps(nursery.sources("llama", "reduced").roots, tmp_path, 3, [], 0)
        assert found["0"]["largest_error"] < 1e-6 and found["0"]["named"] == 3, found

    def test_ties_dare_and_task_arithmetic(self, nursery: Nursery, tmp_path: Path) -> None:
        family = nursery.family("llama", "reduced")
        base = family.roots[0]
        siblings = [child for child in family.children if child.parent == base.name]
        for method, each in sparse(base, siblings, tmp_path, 3).items():
            assert each["named"] == each["merges"], (method, each)
            assert method == "linear" or each["base"] == each["merges"], (method, each)

    @pytest.mark.parametrize("architecture", ["resnet", "vit", "llama"])
    def test_children_of_one_parent_are_no_mixtures(self, nursery: Nursery, architecture: str) -> None:
        found = singles(nursery.family(architecture, "reduced"))
        assert found["mixtures"] == found["with relatives: mixtures"] == 0, found

    def test_strangers_have_no_origin(self, nursery: Nursery) -> None:
        found = strangers(nursery.sources("llama", "reduced"))
        assert found["tested"] and found["origins"] == 0, found

    def test_a_frozen_stem_and_a_new_stage(self, nursery: Nursery, tmp_path: Path) -> None:
        layers = reinitialised(nursery.sources("resnet", "reduced").roots[0], tmp_path, 60)
        assert shows_new_stage(layers), layers


@pytest.mark.large
@pytest.mark.timeout(4 * 3600)
class TestLarge:
    """Each writes its part of results/layers-*.json; `--families FOLDER` keeps what was trained."""

    def test_hybrids(self, nursery: Nursery, record: Callable[..., None]) -> None:
        torch.set_num_threads(1)
        family = nursery.sources("vit", "large")
        steps = epochs(family.roots[0], 30)
        found = hybrids(family, nursery.folder / "large" / "made" / "h", [4, 5, 6, 7, 8, 9], RATES, steps)
        record("layers-hybrids", {"seed": 31, "roots": len(family.roots), "steps": steps, **found})
        assert found["weights"] == found["blocks"] and found["mixtures"] == 0

    def test_llamas(self, nursery: Nursery, record: Callable[..., None]) -> None:
        torch.set_num_threads(1)
        folder = nursery.folder / "large" / "made"
        roots, siblings = nursery.sources("llama", "large"), nursery.sources("llama-siblings", "large")
        found: dict[str, Any] = {"seed": [31, 32], "steps": 100}
        found["passthrough"] = passthroughs(roots, folder / "p", 6, RATES, 100)
        found["linear"] = linears(roots.roots, folder / "l", 12, RATES, 100)
        found["linear of siblings"] = linears(siblings.children, folder / "s", 6, RATES, 100)
        found["slerp"] = slerps(roots.roots, folder / "a", 6, RATES, 100)
        found["slerp of siblings"] = slerps(siblings.children, folder / "b", 6, RATES, 100)
        found["sparse"] = sparse(siblings.roots[0], siblings.children, folder / "t", 24)
        record("layers-merges", found)
        assert found["passthrough"]["right"] == found["passthrough"]["blocks"]
        assert found["linear"]["0"]["mean_error"] < 0.001
        assert found["linear"]["0.0001"]["mean_error"] < 0.02 and found["linear"]["0.001"]["mean_error"] < 0.02
        assert max(each["largest_error"] for each in found["slerp"].values()) < 0.05
        assert all(found["sparse"][name]["named"] >= 0.9 * found["sparse"][name]["merges"] for name in ("ties", "dare"))

    def test_the_kinds_of_a_patchwork(self, nursery: Nursery, tmp_path: Path) -> None:
        layers = patchwork(nursery.sources("llama", "large").roots, tmp_path)
        kinds = ["tuned", "tuned", "mixture", "mixture", "mixture", "none"]
        assert [block.kind for block in numbered(layers)] == kinds

    def test_single_parents(self, nursery: Nursery, tmp_path: Path, record: Callable[..., None]) -> None:
        torch.set_num_threads(1)
        found: dict[str, Any] = {"seed": [7, 31]}
        for architecture in ("fc", "resnet", "vit", "llama"):
            found[architecture] = singles(nursery.lines(architecture, "large"), most=36)
        found["strangers"] = {kind: strangers(nursery.sources(kind, "large")) for kind in ("vit", "llama", "resnet")}
        roots = nursery.sources("resnet", "large").roots
        found["new stage"] = [shows_new_stage(reinitialised(root, tmp_path / root.name, 150)) for root in roots]
        record("layers-single", found)
        for architecture in ("fc", "resnet", "vit", "llama"):
            each = found[architecture]
            assert each["mixtures"] + each["with relatives: mixtures"] <= 0.01 * 2 * each["blocks"]
        assert all(found["new stage"])
        assert not any(each["origins"] for each in found["strangers"].values())
