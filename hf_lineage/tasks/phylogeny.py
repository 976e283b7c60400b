"""The story of `phylogeny` on one page: open, sort by architecture, read once, grow trees, compare with claims."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..answers.base import Progress
from ..answers.lineage import Relation
from ..answers.phylogeny import Edge, Node, Phylogeny
from ..answers.refs import ModelRef
from ..architecture.align import align
from ..architecture.conventions import fused_parts
from ..architecture.describe import describe
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.claims import claims_of
from ..checkpoints.opener import Opener, model_identity
from ..checkpoints.view import View
from ..errors import ArgumentError, CheckpointError, NothingToCompareError
from ..parallel import together, world
from ..trees.build import Branch, BuiltTrees
from ..trees.clustering import scikit_learn
from ..trees.methods import METHODS
from ..trees.reading import AlignedModels, by_architecture, defects, distinct_models, finite
from ..trees.spanning import edge, four_point
from ..weights.edits import ONE_WAY
from ..weights.reader import Readings, read_aligned
from .options import blank, budget_of, check, paired, plan_reading, shared_rows, skipped, some, versions

if TYPE_CHECKING:
    import torch

    from .options import Model

    Method = Callable[..., BuiltTrees]


@together
def phylogeny(
    models: Iterable[Model], *, method: str = "information", alpha: float = 1e-2, rho: float | None = None,
    token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
) -> Phylogeny:  # fmt: skip
    """Say who descends from whom in a set of models, from their weights alone (Neural Phylogeny, ICLR 2025).

    models: Hub repo ids, paths or modules in memory, as in `trace`. They may be of several architectures: each makes
        its own trees. method: `"information"`; `"detector"`, the learned one; or one of the papers' without learning,
        to compare with (`forest.methods.METHODS`).
    alpha: family-wise error over all pairs of one architecture: the chance that any two unrelated models are joined.
    rho: of the `along-…` methods, the probability that a cluster's centre is set to its parent, in [0, 1]; None
        chooses it without the truth, by silhouette.
    sample, max_bytes, token, device, allow_pickle, progress, seed: as in `trace`.

    By `information`: models that the permutation test over hidden units calls related make a group
    (`trees/groups.py`); in a group the maximum spanning tree of the information that units share (METHODS §5), put
    right where weights without gradient contradict it (`trees/without_gradient.py`); every edge has a probability
    from a bootstrap, and a direction where the signals of the whole tree decide its root (`trees/rooting.py`). Missing
    ancestors get names (`?1`), merges several parents, copies share a node.

    By `detector`: the Phylogeny Detector that ships (`detector/phylogeny.py`) scores all pairs and "no parent", and the
    forest with the most edges expected to be right is the answer, all of them directed, each with its probability.

    Cost: one pass over the bytes of every model; memory for at most 64 MB of hidden units each and 1 GB in all.
    Returns a `Phylogeny`. A model that cannot be read is in its `left_out`, the rest is done. Raises `LineageError`s:
    `ArgumentError`, `NothingToCompareError` where no model can be read, `ProcessLostError`.
    """
    started = time.monotonic()
    check(["weights"], alpha, max_bytes, device)
    if method not in METHODS:
        raise ArgumentError(f"Expected `method` to be one of {', '.join(METHODS)}, got {method!r}.")
    if rho is not None and not (method.startswith("along-") and 0 <= rho <= 1):
        raise ArgumentError(f"Expected `rho` in [0, 1] and an along-… method, got {rho} with {method}.")
    if method.startswith(("after-", "along-")):
        scikit_learn()  # where it is missing, nothing is read
    opener, opened, left_out, notes = _open(models, token, allow_pickle)
    if not opened:
        raise NothingToCompareError(f"No model could be read. {_some_reasons(left_out)}")
    answer = grow(opener, opened, left_out, notes, method, alpha, rho, device, sample, max_bytes, progress, seed)
    seconds = world().gather(round(time.monotonic() - started, 3))[0]
    return replace(answer, seconds=seconds)


def grow(
    opener: Opener, opened: Sequence[Checkpoint], left_out: dict[str, str], notes: list[str], method: str, alpha: float,
    rho: float | None, device: str | torch.device | None, sample: str | float | int | None, max_bytes: int | None,
    progress: Progress | None, seed: int,
) -> Phylogeny:  # fmt: skip
    """The forest of models that are open."""
    views = [View(model, fused_parts(model)) for model in opened]
    answer = _Forest(opener, _ids(views), left_out, notes)
    kinds = by_architecture(views)
    looked = opener.bytes_read
    for kind in kinds:
        left = None if max_bytes is None else max(1, max_bytes - (opener.bytes_read - looked))
        aligned = _read(kind, answer, sample, left, device, progress, seed)
        if aligned is not None:
            answer.add(aligned, METHODS[method], alpha, {} if rho is None else {"rho": rho})
        else:
            answer.alone(view for view in kind if answer.ids[_key(view)] not in answer.left_out)
    if not answer.nodes:
        raise NothingToCompareError(f"No model could be judged. {_some_reasons(answer.left_out)}")
    return Phylogeny(
        nodes=tuple(answer.nodes), edges=tuple(sorted(answer.edges, key=lambda e: (e.child, e.parent))),
        roots=tuple(answer.roots), quality=_pooled(answer), method=method, left_out=dict(sorted(left_out.items())),
        notes=(*answer.notes, *skipped(opened)), bytes_read=opener.bytes_read + answer.elsewhere,
        seed=seed, alpha=alpha, versions=versions(),
    )  # fmt: skip


def read_aligned_models(models: Iterable[Model], *, seed: int = 0) -> AlignedModels:
    """All pairs of models of one architecture, for those who want to look inside (`experiments/phylogenies.py`)."""
    opener, opened, left_out, notes = _open(models, None, False)
    views = [View(model, fused_parts(model)) for model in opened]
    found = _read(views, _Forest(opener, _ids(views), left_out, notes), None, None, None, None, seed)
    if found is None or left_out:
        raise NothingToCompareError(f"Expected models of one architecture. {_some_reasons(left_out)}")
    return found


def _open(
    models: Iterable[Model], token: str | bool | None, allow_pickle: bool
) -> tuple[Opener, list[Checkpoint], dict[str, str], list[str]]:
    if models is None or isinstance(models, (str, Path)) or hasattr(models, "state_dict"):
        raise ArgumentError(f"Expected a list of models, got a single {type(models).__name__}.")
    wanted = list(models)
    if not wanted:
        raise ArgumentError("Expected models to make a tree of, got none. Name some: hf-lineage tree org/a org/b …")
    opener = Opener(token, allow_pickle)
    opened, refused = opener.open_all(wanted, "models")
    left_out = {candidate.ref: " ".join(candidate.reasons) for candidate in refused}
    kept: dict[tuple, Checkpoint] = {}
    notes = []
    for model in sorted(opened, key=lambda model: (model.ref, model.requested)):
        if model_identity(model) in kept:
            notes.append(f"{model.ref.name} was named more than once and counts once.")
        elif model.adapter_base:
            left_out[_name(model)] = f"a LoRA adapter of {model.adapter_base} holds no weights of its own"
        else:
            kept[model_identity(model)] = model
    return opener, list(kept.values()), left_out, list(dict.fromkeys(notes))


def _name(model: Checkpoint) -> str:
    return model.requested if model.ref.kind == "module" else model.ref.name


def _key(model: Checkpoint) -> tuple[ModelRef, str]:
    return model.ref, model.requested


def _ids(models: Sequence[Checkpoint]) -> dict[tuple[ModelRef, str], str]:
    """What each model is called: its ref, with its commit where several share one; of a module, what the user wrote."""
    names = [_name(model) for model in models]
    return {
        _key(model): f"{name}@{model.ref.revision}" if names.count(name) > 1 and model.ref.revision else name
        for model, name in zip(models, names, strict=True)
    }


def _some_reasons(left_out: Mapping[str, str]) -> str:
    return " ".join(f"{ref}: {why}" for ref, why in list(left_out.items())[:3])


def _pooled(answer: _Forest) -> dict[str, Any]:
    """One summary over the architectures, and each of them."""
    named = [e for e in answer.edges if e.relation != "identical"]
    worst = [kind["four_point"] for kind in answer.quality if kind["four_point"] is not None]
    return {
        "four_point": max(worst, default=None),
        "undirected": sum(not e.directed for e in named) / len(named) if named else 0.0,
        "architectures": answer.quality,
    }


def _read(
    kind: Sequence[View], answer: _Forest, sample: str | float | int | None, max_bytes: int | None,
    device: str | torch.device | None, progress: Progress | None, seed: int,
) -> AlignedModels | None:  # fmt: skip
    """What one pass says of all pairs. Models that cannot take part are left out, and the rest is read again; None
    where nothing is left to compare."""
    while len(kind) > 1:
        pivot, others = kind[0], kind[1:]
        architecture = describe(pivot)
        lined = [(view, align(pivot, view, architecture)) for view in others]
        seen = pivot.first_rows(shared_rows(lined))
        budget = budget_of(seen, others, paired(architecture, lined), sample)
        plan = plan_reading(seen, architecture, lined, budget, max_bytes, seed)
        alignments = [alignment for _, alignment in lined]
        try:
            readings = read_aligned(seen, others, alignments, plan, device=device or "cpu", progress=progress)
        except CheckpointError as error:  # the pivot's: of the others it is kept in `failed`
            answer.leave_out(pivot, str(error))
            kind = others
            continue
        answer.elsewhere += readings.bytes_by_others
        bad = defects(readings, architecture, kind)
        for i, why in bad.items():
            answer.leave_out(kind[i], why)
        kind = [view for i, view in enumerate(kind) if i not in bad]
        if not bad:
            found = distinct_models(readings, architecture, kind, alignments, seed)
            answer.notes += _broken(readings, architecture.trunk, kind)
            if found is None:
                answer.notes.append(
                    f"{_name(pivot)} and {len(others)} others share no matrix of which rows could be kept."
                )
            return found
    return None


def _broken(readings: Readings, trunk: Sequence[str], models: Sequence[View]) -> list[str]:
    """A note for each model that holds NaN, Inf or only zeros in some tensors, which then take part for nobody."""
    bad = {
        i: [name for name in trunk if name in readings.moments and not finite(readings, name, i)]
        for i in range(len(models))
    }
    return [
        f"{_name(models[i])}: left out for NaN, Inf or only zeros: {some(names)}." for i, names in bad.items() if names
    ]


@dataclass
class _Forest:
    """The answer as it grows, kind by kind."""

    opener: Opener
    ids: Mapping[tuple[ModelRef, str], str]
    left_out: dict[str, str]
    notes: list[str]
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    elsewhere: int = 0
    hidden: int = 0

    def leave_out(self, model: Checkpoint, why: str) -> None:
        self.left_out[self.ids[_key(model)]] = why

    def alone(self, models: Iterable[View]) -> None:
        """Models that nothing can be compared with: each a tree of its own."""
        for model in models:
            self.notes.append(f"{self.ids[_key(model)]} is the only one of its architecture, and was not read.")
            self._node(model, self._group(), 1)
            self.roots.append(self.ids[_key(model)])

    def add(self, aligned: AlignedModels, method: Method, alpha: float, options: Mapping[str, Any]) -> None:
        """The trees of one architecture."""
        built = method(aligned, alpha, aligned.seed, **options)
        first = self._group()
        names = {i: self.ids[_key(model)] for i, model in enumerate(aligned.models)}
        for members in built.groups:
            for i in sorted(i for i in members if i < 0):
                self.hidden += 1
                names[i] = f"?{self.hidden}"
        born = generations(built)
        for group, members in enumerate(built.groups):
            for i in members:
                if i < 0:
                    self.nodes.append(Node(names[i], None, None, None, first + group, True, born.get(i)))
                    continue
                self._node(aligned.models[i], first + group, born.get(i))
                for copy in aligned.copies[i]:
                    self._node(copy, first + group, born.get(i), names[i])
                    self.edges.append(self._copy(names[i], self.ids[_key(copy)]))
        self.edges += [self._edge(aligned, built, branch, names) for branch in built.branches]
        self.roots += [names[top] for top in built.roots if top is not None]
        self.quality.append(_quality(aligned, built))

    def _group(self) -> int:
        return max((node.group for node in self.nodes), default=-1) + 1

    def _node(self, model: View, group: int, generation: int | None, copy_of: str | None = None) -> None:
        ref = model.ref
        name = self.ids[_key(model)]
        self.nodes.append(Node(name, ref.name, model.requested, ref.revision, group, False, generation, copy_of))

    def _copy(self, one: str, other: str) -> Edge:
        a, b = sorted((one, other))
        return Edge(a, b, False, 1.0, "identical", distance=0.0)

    def _edge(self, aligned: AlignedModels, built: BuiltTrees, branch: Branch, names: Mapping[int, str]) -> Edge:
        a, b = branch.parent, branch.child
        named = min(a, b) >= 0
        square = built.distances.get(edge(a, b))
        if square is None and named:
            square = float(aligned.statistics.squared_distances[a, b])
        norms = [float(aligned.statistics.gram[i, i]) for i in (a, b) if i >= 0]
        distance = None if square is None else math.sqrt(square) / math.prod(norms) ** (0.5 / len(norms))
        equal = (
            named and aligned.equal(a, b) and not (aligned.vocabulary_growth(a, b) or aligned.vocabulary_growth(b, a))
        )
        directed = branch.direction is not None and not equal
        relation, facts = _relation(aligned, a, b, directed, equal, branch.merge)
        one, other = (names[a], names[b]) if directed else sorted((names[a], names[b]))
        return Edge(
            one, other, directed, branch.probability, relation, branch.direction if directed else None, distance,
            branch.weight, self._claimed(aligned, a, b, directed) if named else None, facts,
        )  # fmt: skip

    def _claimed(self, aligned: AlignedModels, a: int, b: int, directed: bool) -> Literal["same", "reversed"] | None:
        """What the files of the two say of each other."""

        def names(child: int, parent: int) -> bool:
            candidate = blank(aligned.models[parent], "compared")
            return any(self.opener.same_model(claim.ref, candidate) for claim in claims_of(aligned.models[child]))

        if names(b, a):
            return "same"
        if names(a, b):
            return "reversed" if directed else "same"
        return None


def _relation(
    aligned: AlignedModels, a: int, b: int, directed: bool, equal: bool, merge: bool
) -> tuple[Relation, dict[str, Any]]:
    if equal:
        return "head_changed", {}
    if merge:
        return "merge", {}
    if min(a, b) < 0:
        return ("finetune" if directed else "common_origin"), {}
    if directed and (rows := aligned.vocabulary_growth(a, b)):
        return "resized", {"vocabulary": {"child": rows[1], "parent": rows[0]}}
    kind, facts = aligned.change(a, b) if directed else ("other", {})
    if kind in ONE_WAY:
        return ("pruned" if kind == "pruned" else "quantized"), facts
    return ("finetune" if directed else "common_origin"), {}


def _quality(aligned: AlignedModels, built: BuiltTrees) -> dict[str, Any]:
    """How tree-like the distances are, and how sure the groups: see README."""
    square = aligned.statistics.squared_distances
    groups = [[i for i in group if i >= 0] for group in built.groups]
    measured = [(four_point(square[np.ix_(group, group)], aligned.seed), len(group)) for group in groups]
    failing = [(delta, size) for delta, size in measured if delta is not None]
    return {
        "models": len(aligned.models), "groups": len(groups),
        "four_point": float(np.average([d for d, _ in failing], weights=[n for _, n in failing])) if failing else None,
        "joined_log10_p": built.grouping.joined_log10_p, "apart_log10_p": built.grouping.apart_log10_p,
        "untested_pairs": built.grouping.untested_pairs, "matrices": len(aligned.statistics.matrices),
    }  # fmt: skip


def generations(built: BuiltTrees) -> dict[int, int]:
    """1 for the root of a group, one more than the nearest parent's for everything that directed edges lead to."""
    below: dict[int, list[int]] = {}
    for branch in built.branches:
        if branch.direction is not None:
            below.setdefault(branch.parent, []).append(branch.child)
    found = {top: 1 for top in built.roots if top is not None}
    waiting = [*found]
    while waiting:
        following = []
        for node in waiting:
            for child in below.get(node, ()):
                if child not in found:
                    found[child] = found[node] + 1
                    following.append(child)
        waiting = following
    return found
