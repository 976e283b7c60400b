"""One pair, one answer: what `trace`, `phylogeny` and `trace_layers` say of two models does not contradict itself."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from builders import Tensors, llama, put, tuned
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.experiments.changes import _pruned, _rounded
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

SIZES: dict[str, int] = {"depth": 2, "width": 24, "hidden": 48, "words": 64}
IN_PART = {"equal", "tuned", "mixture"}  # kinds of a block that has an origin


def permuted(model: Tensors, seed: int) -> Tensors:
    """Hidden units in another order."""
    found = dict(model)
    order = torch.randperm(SIZES["hidden"], generator=torch.Generator().manual_seed(seed))
    for i in range(SIZES["depth"]):
        at = f"model.layers.{i}.mlp"
        found |= {f"{at}.{name}_proj.weight": model[f"{at}.{name}_proj.weight"][order] for name in ("gate", "up")}
        found[f"{at}.down_proj.weight"] = model[f"{at}.down_proj.weight"][:, order]
    return found


def more_tokens(model: Tensors, count: int) -> Tensors:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {n: torch.cat([t, t[:count] + 0.1]) if n in names else t for n, t in model.items()}


def matrices(change: Callable[[torch.Tensor, Any], torch.Tensor], model: Tensors) -> Tensors:
    return {n: change(t, None) if t.ndim > 1 else t for n, t in model.items()}


# what the second model of a pair is made of the first, (model, seed) →
KINDS: dict[str, Callable[[Tensors, int], Tensors]] = {
    "unrelated": lambda m, s: llama(s + 10_000, **SIZES),
    "far": lambda m, s: tuned(m, s, 0.5),
    "tuned": lambda m, s: tuned(m, s, 0.15),
    "light": lambda m, s: tuned(m, s, 0.003),
    "copy": lambda m, s: dict(m),
    "cast": lambda m, s: {n: t.bfloat16() for n, t in m.items()},
    "half": lambda m, s: {n: t.half() for n, t in m.items()},
    "int8": lambda m, s: matrices(_rounded(8), m),
    "pruned": lambda m, s: matrices(_pruned(0.5), m),
    "tokens": lambda m, s: more_tokens(m, 4),
    "head": lambda m, s: m | {"lm_head.weight": torch.randn(64, 24, generator=torch.Generator().manual_seed(s))},
    "frozen": lambda m, s: tuned(m, s, 0.1) | {n: t for n, t in m.items() if "layers.0" in n},
    "permuted": lambda m, s: permuted(m, s),
}  # fmt: skip


def contradictions(one: Path, two: Path) -> list[str]:
    """What one answer about two models says and another denies."""
    names = str(one), str(two)
    asked = {pair: hl.trace(pair[0], [pair[1]]) for pair in (names, names[::-1])}
    tree = hl.phylogeny(names)
    layers = {pair: hl.trace_layers(pair[0], [pair[1]]) for pair in asked}
    found = []
    for pair, answer in asked.items():
        (candidate,) = answer.candidates
        joined = len(tree.groups) == 1
        p = candidate.log10_p
        if p is not None and not candidate.facts.get("disguise"):
            measured = tree.quality["architectures"][0]["joined_log10_p" if joined else "apart_log10_p"]
            # of unrelated pairs `trace` asks the Mantel test, too, and tells the smaller p of both
            if joined and measured is not None and not math.isclose(measured, p, rel_tol=1e-3, abs_tol=1e-3):
                found.append(f"p {p} in trace, {measured} in tree")
            if (p <= -3) > joined:
                found.append("related in trace, not in tree")
        kinds = {block.kind for block in layers[pair].blocks if block.index is not None}
        if candidate.relation == "none" and kinds & IN_PART:
            found.append(f"unrelated in trace, {kinds} in layers")
        if candidate.relation == "identical" and kinds != {"equal"}:
            found.append(f"identical in trace, {kinds} in layers")
        if candidate.relation not in ("none", None) and kinds == {"none"}:
            found.append(f"{candidate.relation} in trace, nothing in layers")
    verdicts = {answer.verdict for answer in asked.values()}
    if all(answer.verdict == "parent" for answer in asked.values()):
        found.append("each is the parent of the other")
    both = sum(answer.candidates[0].probability or 0 for answer in asked.values())
    if both > 1.001 + 1e-6 and "identical" not in verdicts:  # of a cast: 1, and at most alpha the other way
        found.append("the probabilities of both directions add up to more than 1")
    return found + of_edges(tree, asked)


def of_edges(tree: hl.Phylogeny, asked: dict[tuple[str, str], hl.Lineage]) -> list[str]:
    """What the tree of two models says and `trace` denies. asked: (child, candidate) → its answer."""
    found = []
    first = {pair: answer.candidates[0].first for pair, answer in asked.items()}
    for edge in (edge for edge in tree.edges if edge.directed):
        pair = edge.child, edge.parent
        if not any(first.values()):
            found.append("an order in the tree that trace does not see")
        if first[pair] == "child" or first[pair[::-1]] == "candidate":
            found.append("the tree turns what trace says")
        if asked[pair[::-1]].verdict == "parent":
            found.append("the tree turns the parent")
        relations = {asked[pair].candidates[0].relation, edge.relation}
        if len(relations) > 1 and relations & {"cast", "quantized", "pruned", "resized"}:
            found.append(f"{asked[pair].candidates[0].relation} in trace, {edge.relation} in the tree")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_gets_one_answer(kind: str, tmp_path: Path) -> None:
    base = llama(list(KINDS).index(kind), **SIZES)
    one = put(tmp_path / "one", base)
    two = put(tmp_path / "two", KINDS[kind](base, 77))
    assert contradictions(one, two) == []


def test_an_audit_says_what_trace_says(hub: MiniHub) -> None:
    """Of every kind of pair, both ways round: the verdict, the p-value, and whether the claim stands."""
    claimed = {}
    for kind, made in KINDS.items():
        base = llama(list(KINDS).index(kind), **SIZES)
        two = {"one": base, "two": made(base, 77)}
        for name, other in (("one", "two"), ("two", "one")):
            hub.add(f"lab/{kind}-{name}", {
                "model.safetensors": save({n: t.contiguous() for n, t in two[name].items()}), "config.json": b"{}",
                "README.md": f"---\nbase_model: lab/{kind}-{other}\n---\n",
            })  # fmt: skip
            claimed[f"lab/{kind}-{name}"] = f"lab/{kind}-{other}"
    for record in hl.audit(claimed, token=False):
        answer = hl.trace(record.ref, [claimed[record.ref]], token=False)
        assert record.verdict == answer.verdict and record.parent == answer.parent, record
        assert record.p_value == answer.candidates[0].p_value and record.relation == answer.candidates[0].relation
        assert [c.status for c in record.claims] == [c.status for c in answer.claims]
        (candidate,) = answer.candidates
        assert (record.status == "contradicted") == (candidate.relation == "none"), record
        assert record.status != "confirmed" or candidate.first != "child", record


def combined(model: Tensors, seed: int) -> Tensors:
    """One change after another, drawn at random."""
    choose = random.Random(seed)
    for _ in range(choose.choice((1, 1, 2))):
        model = KINDS[choose.choice([*KINDS])](model, choose.randrange(10**6))
    return model


@pytest.mark.large
@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_pairs_get_one_answer(seed: int, tmp_path: Path) -> None:
    base = llama(seed, **SIZES)
    assert contradictions(put(tmp_path / "one", base), put(tmp_path / "two", combined(base, seed))) == []


def folders(path: Path, models: Sequence[Tensors]) -> list[Path]:
    return [put(path / f"m{i}", model) for i, model in enumerate(models)]


@pytest.mark.parametrize("seed", range(3))
def test_trees_of_merges_hold_no_cycle(seed: int, tmp_path: Path) -> None:
    """Children, merges of them, children of merges: no model descends from itself, no root has a parent."""
    choose = random.Random(seed)
    models = [llama(seed, **SIZES)]
    for i in range(7):
        one, other = choose.choice(models), choose.choice(models)
        average = {n: 0.5 * one[n] + 0.5 * other[n] for n in one}
        models.append(average if choose.random() < 0.4 and one is not other else tuned(one, 10 * seed + i, 0.2))
    tree = hl.phylogeny(folders(tmp_path, models))  # the answer's type would raise
    graph = nx.DiGraph([(e.parent, e.child) for e in tree.edges if e.directed])
    assert nx.is_directed_acyclic_graph(graph)
    assert not {child for _, child in graph.edges} & {*tree.roots}


@pytest.mark.parametrize("change", [0.5, 0.15])
def test_a_hybrid_has_no_order_in_a_tree(change: float, tmp_path: Path) -> None:
    """The first layer of a base and the others of its child, bit for bit: it stands between them, and is of neither
    time."""
    base = llama(3, **SIZES | {"depth": 4})
    children = [tuned(base, k, change) for k in range(6)]
    hybrid = {n: (base if "layers.0" in n else children[0])[n].clone() for n in base}
    tree = hl.phylogeny(folders(tmp_path, [base, *children, hybrid]))
    assert any(e.directed for e in tree.edges)
    assert not [e for e in tree.edges if e.directed and "m7" in {Path(e.parent).name, Path(e.child).name}]


def test_two_depths_are_in_two_trees(tmp_path: Path) -> None:
    """A model up-scaled by repeated blocks: of equal names its blocks are others, and no movement is computed."""
    base = llama(1, **SIZES | {"depth": 4})
    child = tuned(base, 2, 0.1)
    deeper = dict(base) | {n.replace("layers.3", "layers.5"): t.clone() for n, t in base.items() if "layers.3" in n}
    deeper |= {n.replace("layers.2", "layers.4"): t.clone() for n, t in base.items() if "layers.2" in n}
    tree = hl.phylogeny(folders(tmp_path, [base, child, deeper]))
    assert sorted(len(group) for group in tree.groups) == [1, 2]
    assert any(note.code == "other_depth" and "m2" in note for note in tree.notes)


def test_the_tree_of_a_trace_reads_nothing_again(tmp_path: Path) -> None:
    """With everything read, no second pass samples: not a byte more than without the tree."""
    base = llama(1, **SIZES)
    paths = folders(tmp_path, [base, *(tuned(base, i, 0.2) for i in range(1, 4))])
    with_tree, without = (hl.trace(paths[0], paths[1:], sample="all", tree=tree) for tree in (True, False))
    assert with_tree.bytes_read == without.bytes_read
    assert not [note for note in with_tree.notes if note.code == "sampled"]


def test_copies_of_one_trunk_make_the_same_tree_in_any_order(tmp_path: Path) -> None:
    """Equal trunks tie everywhere: names and rounding do not decide."""
    base = llama(1, **SIZES)
    models = [base, *(KINDS["head"](base, i) for i in range(3)), *(tuned(base, i, 0.2) for i in range(2))]
    trees = []
    for order in itertools.islice(itertools.permutations(range(len(models))), 0, 720, 350):
        paths = [put(tmp_path / f"{order[0]}-{order[1]}" / f"m{i}", models[i]) for i in order]
        tree = hl.phylogeny(paths)
        trees.append(sorted((Path(e.parent).name, Path(e.child).name, e.directed) for e in tree.edges))
    assert all(found == trees[0] for found in trees)
