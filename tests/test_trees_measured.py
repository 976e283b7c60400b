"""Family trees measured on families with a known truth: the methods side by side, light fine-tunes, what can go wrong.

pytest -m large tests/test_trees_measured.py        about an hour on 2 cores; the tests run a reduced form.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import hf_lineage as hl
from hf_lineage.experiments.changes import changed_tensors
from hf_lineage.experiments.families import Family, Member, task_of
from hf_lineage.experiments.merges import linear
from hf_lineage.experiments.phylogenies import ReportedEdge, by_method, groups, reported_edges, score
from hf_lineage.tasks.phylogeny import read_aligned_models
from hf_lineage.trees.clustering import Points, after_clustering, along_clustering
from hf_lineage.trees.methods import METHODS
from hf_lineage.trees.rooting import SIGNALS, Signals

if TYPE_CHECKING:
    from conftest import Nursery

KINDS = {
    "reduced": ("fc", "fc-light"),
    "large": ("fc", "fc-many", "resnet", "vit", "llama", "fc-light", "resnet-light", "llama-light"),
}
STORED = ("fp16", "bf16", "int8", "pruned 50 %", "another head", None)  # how members are stored, in turn


def tree(members: Iterable[Member]) -> hl.Phylogeny:
    return hl.phylogeny([member.path for member in members])


def figures(members: Sequence[Member], edges: Iterable[ReportedEdge] | None = None) -> dict[str, Any]:
    """Lineage, direction and overall accuracy, and what the direction accuracy rests on; by default of `phylogeny`."""
    found = score(reported_edges(tree(members)) if edges is None else edges, members)
    return {
        "edges": found.edges, "found": found.found, "directed": found.directed, "right": found.right,
        "lineage": found.lineage, "direction": found.direction, "overall": found.overall,
        "undirected": found.undirected, "strange": found.unrelated,
    }  # fmt: skip


def compare(family: Family, methods: Iterable[str] = METHODS) -> dict[str, Any]:
    """Every method on the whole family, and on its first two generations: stars, which the clusterings are made for."""
    young = [member for member in family.members if member.generation <= 2]
    table: dict[str, Any] = {}
    for part, members in (("all", family.members), ("two generations", young)):
        known = read_aligned_models([member.path for member in members])
        for method in methods:
            table.setdefault(method, {})[part] = figures(members, by_method(known, method))
    return table


def certainty(family: Family) -> list[tuple[float, bool, float | None, bool]]:
    """(probability, whether true, direction, whether right) of every edge of the answer."""
    parents = _parents(family.members)
    rows = []
    for each in tree(family.members).edges:
        true = parents.get(each.child) == each.parent or parents.get(each.parent) == each.child
        if each.probability is not None:
            rows.append((each.probability, true, each.direction, parents.get(each.child) == each.parent))
    return rows


def _parents(members: Sequence[Member]) -> dict[str, str]:
    paths = {member.name: str(member.path) for member in members}
    return {str(member.path): paths[member.parent] for member in members if member.parent in paths}


def detected(members: Sequence[Member]) -> dict[str, Any]:
    """The Phylogeny Detector's forest, with (probability of parent and direction, whether true) of every edge."""
    parents = _parents(members)
    found = hl.phylogeny([member.path for member in members], method="detector")
    sure = [(e.probability or 0.0) * (e.direction or 0.0) for e in found.edges]
    true = [parents.get(e.child) == e.parent for e in found.edges]
    return figures(members, reported_edges(found)) | {"sure": list(zip(sure, true, strict=True))}


def signals(family: Family) -> dict[str, float]:
    """Of all true edges, the share on which each signal alone says the right direction; of all true paths, the share on
    which the cosine of the two steps says whether the middle is a fork."""
    known = read_aligned_models([member.path for member in family.members])
    found = Signals(known.statistics)
    number = {str(model.ref.name): i for i, model in enumerate(known.models)}
    parents = {number[child]: number[parent] for child, parent in _parents(family.members).items()}
    signs = np.array([found.signs(parent, child) for child, parent in parents.items()])
    paths = [(found.cosine(a, b, c), True) for b in set(parents.values()) for a, c in _pairs(parents, b)]
    paths += [(found.cosine(c, b, parents[b]), False) for c, b in parents.items() if b in parents]
    shares = {name: float((signs[:, k] > 0).mean()) for k, name in enumerate(SIGNALS)}
    return shares | {"fork or chain": float(np.mean([(cosine > 0) == fork for cosine, fork in paths]))}


def _pairs(parents: dict[int, int], b: int) -> list[tuple[int, int]]:
    children = [child for child, parent in parents.items() if parent == b]
    return [(a, c) for i, a in enumerate(children) for c in children[:i]]


def orphans(family: Family) -> dict[str, int]:
    """A parent of several is taken out of its family, one after the other: is there an unnamed ancestor between two of
    its neighbours now? And how many are there while nobody is missing?"""
    parents = _parents(family.members)
    whole = tree(family.members)
    counts = {
        "models": len(family.members), "made up": sum(node.hidden for node in whole.nodes), "missing": 0, "noticed": 0,
    }  # fmt: skip
    for gone in family.members:
        path = str(gone.path)
        near = {child for child, parent in parents.items() if parent == path} | {parents.get(path, "")} - {""}
        if len(near) < 3:
            continue
        root = _root(path, parents)
        kept = [m for m in family.members if m is not gone and _root(str(m.path), parents) == root]
        answer = tree(kept)
        counts["missing"] += 1
        beside = [
            {e.child if e.parent == node.id else e.parent for e in answer.edges if node.id in (e.parent, e.child)}
            for node in answer.nodes if node.hidden
        ]  # fmt: skip
        counts["noticed"] += any(len(found & near) > 1 for found in beside)
    return counts


def _root(path: str, parents: dict[str, str]) -> str:
    while path in parents:
        path = parents[path]
    return path


def stored_otherwise(family: Family, folder: Path) -> list[Member]:
    """The same members, each but the roots stored in another way."""
    members = []
    for turn, member in enumerate(family.members):
        change = STORED[turn % len(STORED)] if member.parent else None
        tensors = (change and changed_tensors(member, change, turn)) or load_file(member.path / "model.safetensors")
        path = folder / member.name
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors")
        members.append(Member(member.name, member.architecture, member.parent, member.generation, {}, {}, path))
    return members


def merged(family: Family, folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Averages of two or three members, of one tree and of two: are they told, with all their sources, and are trees that
    have nothing else in common still apart?"""
    rng = random.Random(seed)
    parents = _parents(family.members)
    counts = {"merges": 0, "told": 0, "sources right": 0, "groups joined": 0}
    for turn in range(count):
        first = rng.choice(family.members)
        own = _root(str(first.path), parents)
        relatives = [m for m in family.members if m is not first and _root(str(m.path), parents) == own]
        unrelated = [m for m in family.members if _root(str(m.path), parents) != own]
        sources = [first, *(rng.sample(relatives, 1 + turn % 4 // 2) if turn % 2 else rng.sample(unrelated, 1))]
        weights = [0.6, 0.4] if len(sources) == 2 else [0.4, 0.35, 0.25]
        tensors = [_trunk(load_file(m.path / "model.safetensors"), m) for m in sources]
        path = folder / f"merge-{turn}"
        path.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in linear(tensors, weights).items()}, path / "model.safetensors")
        answer = hl.phylogeny([*(m.path for m in family.members), path])
        told = {e.parent for e in answer.edges if e.child == str(path) and e.relation == "merge"}
        counts["merges"] += 1
        counts["told"] += bool(told)
        counts["sources right"] += told == {str(m.path) for m in sources}
        counts["groups joined"] += len(answer.groups) < len(family.roots)
    return counts


def _trunk(tensors: dict[str, Any], member: Member) -> dict[str, Any]:
    from hf_lineage.experiments.families import HEADS

    return {
        name: value for name, value in tensors.items()
        if not name.startswith(HEADS[member.architecture]) and value.is_floating_point()
    }  # fmt: skip


def edges_among_unrelated(family: Family) -> dict[str, Any]:
    """Models that share data and recipe and no ancestor: how many pairs are joined?"""
    answer = tree(family.members)
    kind = answer.quality["architectures"][0]
    return {
        "models": len(family.members), "groups": len(answer.groups), "edges": len(answer.edges),
        "smallest log10 p, adjusted": kind["apart_log10_p"],
    }  # fmt: skip


def clusterings(family: Family) -> dict[str, dict[str, float]]:
    """What the reviewers of Neural Phylogeny asked: majority vote against the smallest distance, and the choice of rho;
    overall accuracy on the first two generations with the true number of clusters."""
    young = [member for member in family.members if member.generation <= 2]
    known = read_aligned_models([member.path for member in young])
    points = Points(
        tuple(known.statistics.grams), tuple(tuple(known.models[0][m.name].shape) for m in known.statistics.matrices)
    )
    parents = _parents(young)
    number = {str(model.ref.name): i for i, model in enumerate(known.models)}
    truth = {number[child]: number[parent] for child, parent in parents.items()}
    roots = len(groups(known, Family(family.folder, tuple(young), 0)))

    def right(found: Sequence[int | None]) -> float:
        return sum(found[child] == parent for child, parent in truth.items()) / len(truth)

    table = {
        rule: right(after_clustering(points, "kmeans", clusters=roots, rule=rule)) for rule in ("majority", "minimum")
    }  # fmt: skip
    rhos = {
        f"rho {rho}": right(along_clustering(points, "kmeans", clusters=roots, rho=rho))
        for rho in (0.0, 0.25, 0.5, 0.75, 1.0, None)
    }
    return {"after": table, "along": rhos}


def generations(family: Family, evidence: str, most: int, seed: int = 0) -> dict[str, list[int]]:
    """Neural Lineage's Table 2: a child of generation j among all models of generation i < j; "i → j": [right, asked],
    right if its own ancestor comes first. Features: l2 after the exact step, its own data; weights: the ranking of `trace`."""
    rng = random.Random(seed)
    parents = {member.name: member.parent for member in family.members}
    table = {}
    for i, j in itertools.combinations(range(1, 5), 2):
        candidates = [member for member in family.members if member.generation == i]
        children = [member for member in family.members if member.generation == j]
        right = 0
        asked = rng.sample(children, min(most, len(children)))
        for child in asked:
            line = [child.name]
            while (parent := parents[line[-1]]) is not None:
                line.append(parent)
            own = {str(m.path) for m in candidates if m.name in line}
            right += _first(child, candidates, evidence) in own
        table[f"{i} → {j}"] = [right, len(asked)]
    return table


def _first(child: Member, candidates: Sequence[Member], evidence: str) -> str:
    paths = [member.path for member in candidates]
    if evidence == "weights":
        return hl.trace(child.path, paths).candidates[0].ref
    answer = hl.trace(child.path, paths, evidence="features", probes=task_of(child).train_x[:128], step=0.1)
    return max(answer.candidates, key=lambda c: c.evidence["features"]["taps"][0]["scores"]["l2"]["exact"]).ref


@pytest.fixture(scope="module")
def family(nursery: Nursery) -> Family:
    return nursery.trees("fc", "reduced")


@pytest.mark.slow
class TestReduced:
    @pytest.mark.parametrize("kind", KINDS["reduced"])
    def test_trees_are_found_and_what_is_directed_is_right(self, nursery: Nursery, kind: str) -> None:
        found = figures(nursery.trees(kind, "reduced").members)
        assert found["lineage"] >= 0.9
        assert found["directed"] - found["right"] <= 1  # said with a probability of 0.95 or more
        assert found["strange"] == 0
        assert found["undirected"] <= 0.4

    def test_related_pairs_are_proven_and_unrelated_ones_are_not(self, family: Family) -> None:
        """Children of every generation with their roots, far below what any number of candidates asks; and strangers."""
        aligned = read_aligned_models([member.path for member in family.members])
        numbers = {str(model.ref.name): i for i, model in enumerate(aligned.models)}
        parents = _parents(family.members)
        roots = {path: _root(path, parents) for path in numbers}
        related = [aligned.test(numbers[root], numbers[path]) for path, root in roots.items() if root != path]
        assert len(related) >= 20 and max(p or 0.0 for p in related) < math.log10(1e-3 / 256)
        pairs = [(a, b) for a, b in itertools.combinations(numbers, 2) if roots[a] != roots[b]][::6]
        unrelated = [aligned.test(numbers[a], numbers[b]) or 0.0 for a, b in pairs]
        assert len(unrelated) >= 20 and min(unrelated) > -3 and np.mean([p < math.log10(0.05) for p in unrelated]) < 0.2

    def test_the_default_is_ahead_of_other_methods(self, family: Family) -> None:
        table = compare(family, ["information", "distance", "mother", "after-kmeans"])
        ours = table.pop("information")["all"]
        for method, other in table.items():
            assert other["all"]["overall"] < ours["overall"], method
            assert other["all"]["found"] <= ours["found"], method

    def test_the_detector_finds_trees_of_its_own(self, family: Family) -> None:
        found = detected(family.members)
        assert found["overall"] >= 0.6 and found["undirected"] == 0
        assert all(0 < sure <= 1 for sure, _ in found["sure"])

    def test_families_stay_apart_and_mostly_right_however_their_members_are_stored(
        self, family: Family, tmp_path: Path
    ) -> None:
        members = stored_otherwise(family, tmp_path)
        found = score(reported_edges(tree(members)), members)
        assert found.lineage >= 0.7
        assert found.unrelated == 0

    def test_merges_are_told_with_their_sources(self, family: Family, tmp_path: Path) -> None:
        counts = merged(family, tmp_path, 2)
        assert counts == {"merges": 2, "told": 2, "sources right": 2, "groups joined": 0}

    def test_unrelated_models_are_never_joined(self, nursery: Nursery) -> None:
        found = edges_among_unrelated(nursery.unrelated("fc-decayed", "reduced"))
        assert found["edges"] == 0
        assert found["groups"] == found["models"]

    def test_ancestors_of_any_generation_are_found(self, nursery: Nursery) -> None:
        table = generations(nursery.lines("fc", "reduced"), "weights", 1)
        assert all(right == asked > 0 for right, asked in table.values())


@pytest.mark.large
@pytest.mark.timeout(7200)
class TestLarge:
    @pytest.mark.parametrize("kind", KINDS["large"])
    def test_methods(self, nursery: Nursery, record: Callable[..., None], kind: str) -> None:
        family = nursery.trees(kind, "large")
        found: dict[str, Any] = {
            "models": len(family.members), "dropped": family.dropped, "edges": certainty(family),
            "signals": signals(family),
        }  # fmt: skip
        if kind == "fc-many":
            found["methods"] = {"information": {"all": figures(family.members)}}
        else:
            found |= {"methods": compare(family), "orphans": orphans(family), "clusterings": clusterings(family)}
        record(f"trees-{kind.removeprefix('fc-') if kind == 'fc-many' else kind}", found)

    def test_detector(self, nursery: Nursery, record: Callable[..., None], tmp_path: Path) -> None:
        """The learned method where the others are measured; what ships is judged, nothing is fitted."""
        found: dict[str, Any] = {}
        for kind in KINDS["large"]:
            members = nursery.trees(kind, "large").members
            found[kind] = {
                "models": len(members), "all": detected(members),
                "two generations": detected([m for m in members if m.generation <= 2]),
            }  # fmt: skip
        stored = {
            kind: figures(changed, reported_edges(hl.phylogeny([m.path for m in changed], method="detector")))
            for kind in ("fc", "resnet", "vit", "llama")
            for changed in [stored_otherwise(nursery.trees(kind, "large"), tmp_path / kind)]
        }
        unrelated = {}
        for kind in ("fc", "fc-decayed", "resnet", "vit"):
            paths = [m.path for m in nursery.unrelated(kind, "large").members]
            unrelated[kind] = {"models": len(paths), "edges": len(hl.phylogeny(paths, method="detector").edges)}
        record("trees-detector", {"seed": 0, "trees": found, "stored": stored, "strangers": unrelated})

    @pytest.mark.parametrize("kind", ["fc", "resnet", "vit", "llama"])
    def test_stored_otherwise(
        self, nursery: Nursery, record: Callable[..., None], tmp_path: Path, kind: str
    ) -> None:  # fmt: skip
        family = nursery.trees(kind, "large")
        members = stored_otherwise(family, tmp_path / "stored")
        record(f"trees-stored-{kind}", {
            "stored": figures(members), "merges": merged(family, tmp_path / "merged", 4),
        })  # fmt: skip

    def test_generations(self, nursery: Nursery, record: Callable[..., None]) -> None:
        """The families of tests/test_trust.py."""
        found = {
            f"{kind}, {evidence}": generations(nursery.lines(kind, "large"), evidence, 6 if evidence == "weights" else 3)
            for kind in ("fc", "resnet", "vit", "llama") for evidence in ("weights", "features")
            if evidence == "weights" or kind in ("resnet", "vit")
        }  # fmt: skip
        record("trees-generations", found)

    def test_unrelated_models(self, nursery: Nursery, record: Callable[..., None]) -> None:
        found = {
            kind: edges_among_unrelated(nursery.unrelated(kind, "large"))
            for kind in ("fc", "fc-decayed", "resnet", "vit")
        }
        record("trees-strangers", found)
        assert all(each["edges"] == 0 for each in found.values())
