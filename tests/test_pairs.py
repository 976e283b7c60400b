"""What is said of a pair of models: it depends on the two alone, and the two directions do not contradict each other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Tensors, put
from torch import Tensor

import hf_lineage as hl
from hf_lineage.answers.lineage import Candidate

ALPHA = 1e-3
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def llama(seed: int, depth: int = 2, words: int = 64, width: int = 32, hidden: int = 48) -> Tensors:
    """A small Llama with weights of the usual size: 1/√(inputs)."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for i in range(depth):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{kind}_proj.weight": (width, width) for kind in "qv"}
        shapes |= {f"{at}mlp.{kind}_proj.weight": (hidden, width) for kind in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, hidden)}
    shapes |= {"lm_head.weight": (words, width)}
    return {n: torch.from_numpy(rng.standard_normal(s, dtype=np.float32)) * s[-1] ** -0.5 for n, s in shapes.items()}


def moved(model: Tensors, seed: int, change: float) -> Tensors:
    """A step of that size relative to the weights, larger in some columns: as training makes it, no white noise."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, t in model.items():
        columns = 0.5 + torch.from_numpy(rng.random(t.shape[-1], dtype=np.float32))
        step = torch.from_numpy(rng.standard_normal(t.shape, dtype=np.float32)) * columns
        made[name] = (t.float() + change * t.float().std() * step).to(t.dtype)
    return made


def each(model: Tensors, change: Any, only: str = "") -> Tensors:
    return {name: change(t) if only in name else t for name, t in model.items()}


def int8(t: Tensor) -> Tensor:
    scale = t.abs().amax(1, keepdim=True) / 127
    return (t / scale).round() * scale


def pruned(t: Tensor) -> Tensor:
    return t * (t.abs() > t.abs().flatten().median())


def in_another_order(model: Tensors, seed: int) -> Tensors:
    """Hidden units of every gated layer permuted."""
    made = dict(model)
    for name in [n.removesuffix("gate_proj.weight") for n in model if n.endswith("gate_proj.weight")]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(model[f"{name}gate_proj.weight"])))
        for kind in ("gate", "up"):
            made[f"{name}{kind}_proj.weight"] = model[f"{name}{kind}_proj.weight"][order]
        made[f"{name}down_proj.weight"] = model[f"{name}down_proj.weight"][:, order]
    return made


def layers_of(models: list[Tensors], choice: list[tuple[int, int]]) -> Tensors:
    """Layer i is layer choice[i][1] of models[choice[i][0]]; the rest is the first model's."""
    made = {name: t for name, t in models[0].items() if ".layers." not in name}
    for i, (which, layer) in enumerate(choice):
        at = f".layers.{layer}."
        made |= {n.replace(at, f".layers.{i}."): t for n, t in models[which].items() if at in n}
    return made


def with_tables(model: Tensors, change: Any) -> Tensors:
    return {name: change(t) if name in TABLES else t for name, t in model.items()}


def rows_added(count: int) -> Any:
    fresh = torch.from_numpy(np.random.default_rng(77).standard_normal((count, 32), dtype=np.float32))
    return lambda t: torch.cat([t, fresh * 32**-0.5])


@cache
def zoo() -> dict[str, Tensors]:
    """A base and what is made of it, and models that are unrelated to it."""
    base = llama(1)
    child = moved(base, 2, 0.3)
    light = moved(base, 3, 0.004)
    return {
        "base": base, "child": child, "light": light, "lighter": moved(base, 4, 0.0005), "sibling": moved(base, 5, 0.3),
        "grandchild": moved(child, 6, 0.3), "light child": moved(light, 7, 0.004), "copy": dict(base),
        "fp16": each(base, Tensor.half), "bf16": each(base, Tensor.bfloat16), "int8": each(base, int8),
        "pruned": each(base, pruned), "pruned child": each(child, pruned),
        "head": base | {"lm_head.weight": llama(8)["lm_head.weight"][:9]},
        "half frozen": base | {n: t for n, t in child.items() if "layers.1" in n},
        "grown": with_tables(light, rows_added(4)), "cut": with_tables(base, lambda t: t[:40]),
        "new tokens": with_tables(light, lambda t: torch.cat([torch.zeros_like(t), rows_added(4)(t)[-4:]]) + 0.1 * llama(9)[TABLES[0]][0]),
        "dropped": {n: t for n, t in base.items() if "layers.1" not in n},
        "permuted": in_another_order(child, 10), "permuted light": in_another_order(light, 11),
        "average": {n: 0.5 * child[n] + 0.5 * t for n, t in moved(base, 5, 0.3).items()},
    }  # fmt: skip


OTHERS = {
    "same shape": llama(21), "odd layer": {**llama(22), "model.layers.0.mlp.up_proj.weight": llama(22, hidden=40)["model.layers.0.mlp.up_proj.weight"]},
    "fewer words": llama(23, words=40), "more words": llama(24, words=100), "deeper": llama(25, depth=3),
    "other width": llama(26, width=40), "half precision": each(llama(27), Tensor.bfloat16),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pairs")
    return {name: put(root / name.replace(" ", "-"), tensors, {}) for name, tensors in {**zoo(), **OTHERS}.items()}


def own(candidate: Candidate) -> dict[str, Any]:
    """What belongs to the pair, to the last bit."""
    alone = replace(candidate, probability=None, p_value=None, log10_p=None)
    found = alone.to_dict()
    weights = {k: v for k, v in candidate.evidence["weights"].items() if k not in ("margin", "margin_z")}
    found["evidence"] = {"weights": weights, "direction": dict(candidate.evidence["direction"])}
    return found


QUESTIONS = [
    ("child", "base"), ("light", "base"), ("grown", "base"), ("base", "cut"), ("pruned", "base"), ("permuted", "base"),
    ("half frozen", "base"), ("grandchild", "sibling"), ("dropped", "base"), ("same shape", "base"),
]  # fmt: skip


@pytest.mark.parametrize(("child", "candidate"), QUESTIONS)
@pytest.mark.parametrize("count", [1, 4])
def test_other_candidates_change_nothing_of_a_pair(
    child: str, candidate: str, count: int, folders: dict[str, Path]
) -> None:  # fmt: skip
    """Odd layers, other vocabularies, other widths, other dtypes beside it: not a bit of what belongs to the pair."""
    names = [name for name in OTHERS if name != child]
    start = QUESTIONS.index((child, candidate))
    beside = [names[(start + i) % len(names)] for i in range(count)]
    alone = hl.trace(folders[child], [folders[candidate]])
    among = hl.trace(folders[child], [folders[candidate], *(folders[name] for name in beside)])
    asked = next(c for c in among.candidates if c.requested == str(folders[candidate]))
    first = alone.candidates[0]
    assert repr(own(asked)) == repr(own(first))
    if first.p_raw is not None and first.p_raw <= ALPHA / 256:
        assert (among.verdict, among.parent) == (alone.verdict, alone.parent)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_nor_of_a_sample(share: float, folders: dict[str, Path]) -> None:
    alone = hl.trace(folders["grown"], [folders["base"]], sample=share)
    among = hl.trace(folders["grown"], [folders["base"], *(folders[name] for name in OTHERS)], sample=share)
    asked = next(c for c in among.candidates if c.requested == str(folders["base"]))
    assert repr(own(asked)) == repr(own(alone.candidates[0]))


# What was wrong, and its kinds; the others of `zoo` were looked at once, all 210 pairs
BOTH_WAYS = [
    ("base", "head"), ("base", "dropped"), ("base", "cut"), ("base", "grown"), ("base", "new tokens"), ("base", "fp16"),
    ("child", "bf16"), ("fp16", "bf16"), ("int8", "pruned"), ("pruned child", "grown"), ("base", "copy"),
    ("lighter", "sibling"), ("light", "light child"), ("base", "permuted"), ("child", "average"), ("child", "half frozen"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), BOTH_WAYS)
def test_the_two_directions_of_a_pair(one: str, other: str, folders: dict[str, Path]) -> None:
    """Never parent both ways; probabilities add up to at most 1, but for full copies and casts."""
    forth, back = (hl.trace(folders[a], [folders[b]]) for a, b in ((one, other), (other, one)))
    first, second = forth.candidates[0], back.candidates[0]
    total = (first.probability or 0.0) + (second.probability or 0.0)
    assert not forth.verdict == back.verdict == "parent"
    relations = {first.relation, second.relation}
    most = 2.0 if relations == {"identical"} else 1 + ALPHA if "cast" in relations else 1.0
    assert total <= most + 1e-9
    assert {first.first, second.first} in ({None}, {"candidate", "child"})
    assert (forth.verdict == "parent") <= (first.first == "candidate")


VERDICTS = {
    ("fp16", "base"): ("parent", "cast", "A half-precision copy of"), ("bf16", "base"): ("parent", "cast", "A bfloat16 copy of"),
    ("int8", "base"): ("parent", "quantized", "rounded to 8 bits"), ("pruned", "base"): ("parent", "pruned", "50 % of its weights"),
    ("grown", "base"): ("parent", "resized", "with 4 tokens added"), ("child", "base"): ("parent", "finetune", "Fine-tuned from"),
    ("permuted", "base"): ("parent", "finetune", "in another order"), ("permuted light", "base"): ("common_origin", "common_origin", "Almost certainly"),
    ("light", "base"): ("common_origin", "common_origin", "Almost certainly"), ("base", "light"): ("common_origin", "common_origin", "which came first does not show"),
    ("head", "base"): ("common_origin", "head_changed", "came first does not show"), ("copy", "base"): ("identical", "identical", "every weight is equal"),
    ("base", "fp16"): ("common_origin", "descendant", "a copy in a smaller format of this one"),
    ("same shape", "base"): ("none", "none", "no sign of a common origin"), ("new tokens", "base"): ("common_origin", "common_origin", "It shares an origin"),
}  # fmt: skip


@pytest.mark.parametrize(("child", "candidate"), VERDICTS)
def test_verdicts_and_their_headlines(child: str, candidate: str, folders: dict[str, Path]) -> None:
    answer = hl.trace(folders[child], [folders[candidate]])
    best = answer.candidates[0]
    verdict, relation, words = VERDICTS[child, candidate]
    assert (answer.verdict, best.relation) == (verdict, relation) and words in answer.sentence()
    assert "Neither was made" not in answer.explain()
    if relation not in ("cast", "quantized", "pruned", "resized") and verdict == "parent":
        assert "Fine-tuned from" in answer.sentence()
    assert best.p_raw is None or (best.p_raw <= ALPHA) == (relation != "none"), "the test that found it is beside it"


def test_a_permuted_child_is_judged_as_the_same_child_unpermuted(folders: dict[str, Path]) -> None:
    plain_child, permuted = (hl.trace(folders[n], [folders["base"]]).candidates[0] for n in ("child", "permuted"))
    assert permuted.disguised and permuted.relation == plain_child.relation and permuted.first == plain_child.first
    assert permuted.distance == pytest.approx(plain_child.distance, rel=1e-6)
    assert permuted.p_raw is not None and permuted.p_raw <= ALPHA / 256


DEEP = (llama(31, depth=4), llama(32, depth=4))
LAYERS = {  # the child's layers, each with the candidate and its layer; the relation; words of the sentence
    "repeated": ([(0, 0), (0, 1), (0, 2), (0, 1), (0, 2), (0, 3)], {"3": 1}, "layer 1 as layer 3"),
    "the last ones dropped": ([(0, 0), (0, 1), (0, 2)], {}, "with 3 layers instead of 4"),
    "the first one dropped": ([(0, 1), (0, 2), (0, 3)], {"0": 1, "1": 2}, "layers 1 to 2 as layers 0 to 1"),
    "reversed": ([(0, 3), (0, 2), (0, 1), (0, 0)], {"0": 3, "1": 2, "2": 1, "3": 0}, "in another order"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("change", [0.0, 0.05])
def test_layers_that_stand_elsewhere_show_no_order(kind: str, change: float, tmp_path: Path) -> None:
    choice, expected, words = LAYERS[kind]
    child = moved(layers_of([DEEP[0]], choice), 33, change)
    found = put(tmp_path / "base", DEEP[0], {}), put(tmp_path / "child", child, {})
    for mine, its in (found, found[::-1]):
        answer = hl.trace(mine, [its])
        best = answer.candidates[0]
        assert answer.verdict != "parent" and best.first is None and best.relation in ("depth_changed", "none")
    answer = hl.trace(found[1], [found[0]])
    assert (answer.verdict, answer.candidates[0].relation) == ("common_origin", "depth_changed")
    assert answer.candidates[0].facts["layers"]["moved"] == expected and words in answer.sentence()


@pytest.mark.parametrize("change", [0.0, 0.05])
def test_a_hybrid_is_said_to_be_one(change: float, tmp_path: Path) -> None:
    child = moved(layers_of([*DEEP], [(0, 0), (0, 1), (1, 2), (1, 3)]), 34, change)
    sources = [put(tmp_path / f"source-{i}", each, {}) for i, each in enumerate(DEEP)]
    answer = hl.trace(
        put(tmp_path / "child", child, {}), [*sources, put(tmp_path / "unrelated", llama(35, depth=4), {})]
    )
    assert answer.verdict == "common_origin" and answer.parent is None
    assert all(str(source) in answer.sentence() for source in sources) and "put together" in answer.sentence()
    alone = hl.trace(tmp_path / "child", sources[:1])
    assert "put together" not in alone.sentence(), "of one source alone there is no telling"


def test_a_tuned_child_of_siblings_is_no_hybrid(folders: dict[str, Path]) -> None:
    # of three relatives any may be the nearest of a family whose parent is not there: the prior says that it is
    answer = hl.trace(folders["grandchild"], [folders[name] for name in ("child", "base", "sibling")], prior=0.65)
    assert "put together" not in answer.sentence() and answer.parent == str(folders["child"])
