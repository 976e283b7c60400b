"""The story of `phylogeny` on one page: session, sort by architecture, read once, build trees, compare with claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..answers.base import Progress
from ..answers.lineage import Relation
from ..answers.phylogeny import Edge, Node, Phylogeny
from ..answers.refs import ModelRef
from ..architecture.align import Alignment, covers
from ..architecture.describe import block_of
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.claims import claims_of
from ..checkpoints.local import models_in
from ..checkpoints.opener import is_one_model, model_identity, models_of
from ..checkpoints.view import View
from ..errors import (
    ArgumentError,
    CheckpointError,
    LineageError,
    Note,
    NothingToCompareError,
    as_note,
    join_notes,
    prefixed,
)
from ..parallel import THREADS, together
from ..report.progress import progress_of
from ..sizes import limit_of
from ..trees.build import Branch, BuiltTrees, consistent
from ..trees.clustering import scikit_learn
from ..trees.methods import METHODS
from ..trees.reading import AlignedModels, defects, distinct_models, finite
from ..trees.spanning import edge, four_point
from ..weights.reader import Readings
from .options import Options
from .session import (
    Question,
    Session,
    budget_of,
    paired,
    plan_reading,
    session_of,
    shared_rows,
    skipped,
    some,
    unjudged,
)

if TYPE_CHECKING:
    from ..checkpoints.opener import Model
    from ..placement import Wanted
    from .compare import Reading

    Method = Callable[..., BuiltTrees]
    Models = Sequence[View]

TREE_ALPHA = 1e-2  # level of the groups of a tree that a trace asks


@together
@THREADS.apart()
def phylogeny(
    models: Iterable[Model], *, method: str = "information", alpha: float = 1e-2, rho: float | None = None,
    token: str | bool | None = None, device: Wanted = None, memory: int | str | None = None,
    sample: str | float | int | None = None, max_bytes: int | str | None = None, allow_pickle: bool = False,
    progress: Progress | bool | None = None, seed: int = 0, session: Session | None = None,
    timeout: float | None = None,
) -> Phylogeny:  # fmt: skip
    """Say who descends from whom in a set of models, from their weights alone (Neural Phylogeny, ICLR 2025).

    models: Hub repo ids, paths or modules in memory, as in `trace`. They may be of several architectures: each makes
        its own trees. method: `"information"`; `"detector"`, the learned one; or one of the papers' without learning,
        to compare with (`trees/methods.py`).
    alpha: family-wise error over all pairs of one architecture: the chance that any two unrelated models are joined.
    rho: of the `along-…` methods, the probability that a cluster's centre is set to its parent, in [0, 1]; None
        chooses it without the truth, by silhouette.
    sample, max_bytes, token, device, memory, allow_pickle, progress, seed, session, timeout: as in `trace`.

    By `information`: models that the permutation test over hidden units calls related make a group
    (`trees/groups.py`); in a group the maximum spanning tree of the information that units share (docs/methods.md,
    *Phylogeny*), put right where weights without gradient contradict it (`trees/without_gradient.py`); every edge has a
    probability from a bootstrap, and a direction where the signals of the whole tree decide its root
    (`trees/rooting.py`). Missing ancestors get names (`?1`), merges several parents, copies share a node.

    By `detector`: the Phylogeny Detector that ships (`detector/phylogeny.py`) scores all pairs and "no parent", and the
    forest with the most edges expected to be right is the answer, all of them directed, each with its probability.

    Cost: one pass over the bytes of every model, within `memory`.
    Returns a `Phylogeny`. A model that cannot be read is in its `left_out`, the rest is done. Raises `LineageError`s:
    `ArgumentError`, `NothingToCompareError` where no model can be read, `ProcessLostError`.
    """
    if method not in METHODS:
        raise ArgumentError(f"Expected `method` to be one of {', '.join(METHODS)}, got {method!r}.")
    if rho is not None and not (method.startswith("along-") and 0 <= rho <= 1):
        raise ArgumentError(f"Expected `rho` in [0, 1] and an along-… method, got {rho} with {method}.")
    if method.startswith(("after-", "along-")):
        scikit_learn()  # where it is missing, nothing is read
    options = Options(
        alpha=alpha, sample=sample, max_bytes=limit_of(max_bytes), device=device, memory=memory,
        progress=progress_of(progress), seed=seed, timeout=timeout,
    )  # fmt: skip
    with session_of(session, token, allow_pickle, options.ends) as session:
        opened, left_out, notes = _open(session, models)
        if not opened:
            raise NothingToCompareError(_with_reasons("No model could be read.", left_out))
        trees = _Trees(session, _ids(opened), left_out, notes)
        before = session.bytes_read
        kinds = _by_architecture(session, opened)
        trees.notes += _depth_notes(session, kinds, trees.ids)
        for kind in kinds:
            left = None if options.max_bytes is None else max(1, options.max_bytes - (session.bytes_read - before))
            known = _read(session, kind, trees, replace(options, max_bytes=left))
            if known is not None:
                trees.add(known, METHODS[method], alpha, {} if rho is None else {"rho": rho})
            else:
                trees.alone(view for view in kind if trees.ids[_key(view)] not in trees.left_out)
        if not trees.nodes:
            raise NothingToCompareError(_with_reasons("No model could be judged.", trees.left_out))
        notes = [*trees.notes, *skipped(opened)]
        return trees.answer(method, notes, options.cost(session, trees.by_others))


def tree_of_reading(question: Question, reading: Reading, chosen: Sequence[int], seed: int) -> Phylogeny:
    """The tree of the child and of some candidates, from what `trace` has read of them: nothing is read again.

    chosen: their positions in `reading.models`. Those that do not hold what the child holds stand alone in it.
    """
    pivot, models = question.child, [reading.models[i] for i in chosen]
    trees = _Trees(question.session, _ids([pivot, *models]), {}, [], claims=False)
    comparable = [i for i in chosen if _line_up(question.session, pivot, reading.models[i])]
    known = _from_reading(pivot, reading, comparable, trees, seed)
    if known is not None:
        trees.add(known, METHODS["information"], TREE_ALPHA, {})
    else:
        comparable = []
    others = [pivot] * (not comparable) + [reading.models[i] for i in chosen if i not in comparable]
    trees.alone(model for model in others if trees.ids[_key(model)] not in trees.left_out)
    return trees.answer("information", trees.notes, {"seed": seed, "alpha": TREE_ALPHA})


def read_aligned_models(models: Iterable[Model], *, seed: int = 0) -> AlignedModels:
    """All pairs of models of one architecture, for those who want to look inside (`experiments/phylogenies.py`)."""
    with Session() as session:
        opened, left_out, notes = _open(session, models)
        trees = _Trees(session, _ids(opened), left_out, notes)
        found = _read(session, opened, trees, Options(seed=seed))
        if found is None or left_out:
            raise NothingToCompareError(_with_reasons("Expected models of one architecture.", left_out))
        return found


def _open(session: Session, models: Iterable[Model]) -> tuple[list[View], dict[str, Note], list[Note]]:
    """(models, why others are left out, notes)."""
    if models is None or (is_one_model(models) and not isinstance(models, (str, Path, ModelRef))):
        raise ArgumentError(f"Expected a list of models, or a folder of them, got a single {type(models).__name__}.")
    wanted = models_of(models)
    if len(wanted) == 1 and isinstance(wanted[0], (str, Path, ModelRef)):
        wanted = [*models_in(ModelRef.parse(wanted[0]))] or wanted
    if not wanted:
        none = "Expected models to make a tree of, got none."
        raise ArgumentError(none, "Name some: hf-lineage tree org/a org/b …")
    opened, refused = session.opener.open_all(wanted, "models")
    left_out: dict[str, Note] = {c.ref: join_notes("model_unreadable", c.reasons) for c in refused}
    kept: dict[tuple, View] = {}
    notes = []
    for model in sorted(opened, key=lambda model: (model.ref, model.requested)):
        if model_identity(model) in kept:
            notes.append(Note("named_twice", f"{model.ref.name} was named more than once and counts once."))
        elif model.is_adapter:
            why = f"a LoRA adapter of {model.adapter_base} holds no weights of its own"
            left_out[_name(model)] = Note("adapter_without_weights", why)
        else:
            kept[model_identity(model)] = session.view(model)
    return list(kept.values()), left_out, list(dict.fromkeys(notes))


def _by_architecture(session: Session, models: Models) -> list[list[View]]:
    """Models that line up with the first of their kind, each kind in the order given."""
    kinds: list[list[View]] = []
    for model in models:
        for kind in kinds:
            if _line_up(session, kind[0], model):
                kind.append(model)
                break
        else:
            kinds.append([model])
    return kinds


def _line_up(session: Session, one: View, other: View) -> bool:
    """Whether two models can be in one tree: most of each has a partner, and both have equally many blocks. Else blocks
    of one name are not the same block: a distance between them would be no movement."""
    alignment = session.align(one, other)
    return alignment.comparable and covers(other, other.architecture, alignment) and _depth(one) == _depth(other)


def _depth(model: View) -> int:
    """How many numbered blocks it has; 0 where none are known."""
    return sum(block_of(f"{path}.") is not None for path in {*model.architecture.blocks.values()})


def _depth_notes(session: Session, kinds: Sequence[Models], ids: Mapping[tuple[ModelRef, str], str]) -> list[Note]:
    """A note for each two kinds of models that line up but for the number of their blocks, or for their names."""
    found = []
    for i, kind in enumerate(kinds):
        for other in kinds[:i]:
            if session.align(other[0], kind[0]).comparable:
                one, two = ids[_key(other[0])], ids[_key(kind[0])]
                text = f"{one} and {two} have other numbers of layers, and stand in different trees."
                found.append(Note("other_depth", text, f"Block by block: hf-lineage layers {two} -c {one}"))
            elif session.lined_up(other[0], kind[0])[1].comparable:
                one, two = ids[_key(other[0])], ids[_key(kind[0])]
                text = f"{one} and {two} line up by order and shapes. A tree goes by names: they are apart."
                found.append(Note("names_differ", text, f"As a pair: hf-lineage trace {two} {one}"))
    return found


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


def _with_reasons(sentence: str, left_out: Mapping[str, Note]) -> Note:
    """A sentence with why the first three models were left out."""
    why = [prefixed(f"{ref}: ", why) for ref, why in list(left_out.items())[:3]]
    return join_notes("nothing_to_compare", [sentence, *why])


def _pooled(answer: _Trees) -> dict[str, Any]:
    """One summary over the architectures, and each of them."""
    named = [e for e in answer.edges if e.relation != "identical"]
    worst = [kind["four_point"] for kind in answer.quality if kind["four_point"] is not None]
    return {
        "four_point": max(worst, default=None),
        "undirected": sum(not e.directed for e in named) / len(named) if named else 0.0,
        "architectures": answer.quality,
    }


def _read(session: Session, kind: Models, trees: _Trees, options: Options) -> AlignedModels | None:
    """What one pass says of all pairs. Models that cannot take part are left out, and the rest is read again; None
    where nothing is left to compare."""
    while len(kind) > 1:
        pivot, others = kind[0], kind[1:]
        architecture = pivot.architecture
        aligned = [(view, session.align(pivot, view)) for view in others]
        seen = pivot.first_rows(shared_rows(aligned))
        budget = budget_of(seen, others, paired(architecture, aligned), options.sample)
        plan = plan_reading(seen, architecture, aligned, budget, options)
        try:
            readings = session.read_aligned(seen, aligned, plan, options)
        except CheckpointError as error:  # the pivot's: of the others it is kept in `failed`
            trees.leave_out(pivot, error.note)
            kind = others
            continue
        trees.by_others += readings.bytes_by_others
        bad = defects(readings, architecture, kind)
        if not bad:
            return _statistics(kind, [alignment for _, alignment in aligned], readings, trees, options.seed)
        for i, why in bad.items():
            trees.leave_out(kind[i], why)
        kind = [view for i, view in enumerate(kind) if i not in bad]
    return None


def _from_reading(
    pivot: View, reading: Reading, chosen: Sequence[int], trees: _Trees, seed: int
) -> AlignedModels | None:
    """As `_read`, of the child and some candidates of a trace."""
    while chosen:
        kind = [pivot, *(reading.models[i] for i in chosen)]
        readings = reading.readings.of(chosen)
        bad = defects(readings, pivot.architecture, kind)
        if not bad:
            return _statistics(kind, [reading.aligned[i][1] for i in chosen], readings, trees, seed)
        for i, why in bad.items():
            trees.leave_out(kind[i], why)
        if 0 in bad:
            return None
        chosen = [candidate for i, candidate in enumerate(chosen, start=1) if i not in bad]
    return None


def _statistics(
    kind: Models, alignments: Sequence[Alignment], readings: Readings, trees: _Trees, seed: int
) -> AlignedModels | None:
    """Everything about all pairs of models that were read; None where they share no matrix."""
    found = distinct_models(readings, kind[0].architecture, kind, alignments, seed)
    trees.notes += _broken(readings, kind[0].architecture.trunk, kind)
    if found is None:
        shared = f"{_name(kind[0])} and {len(kind) - 1} others share no matrix of which rows could be kept."
        trees.notes.append(Note("no_common_matrix", shared))
    return found


def _broken(readings: Readings, trunk: Sequence[str], models: Sequence[View]) -> list[Note]:
    """A note for each model that holds NaN, Inf or only zeros in some tensors, which then take part for nobody."""
    bad = {
        i: [name for name in trunk if name in readings.moments and not finite(readings, name, i)]
        for i in range(len(models))
    }
    return [
        Note("candidate_left_out", f"{_name(models[i])}: left out for NaN, Inf or only zeros: {some(names)}.")
        for i, names in bad.items() if names
    ]  # fmt: skip


@dataclass
class _Trees:
    """The answer as it grows, kind by kind."""

    session: Session
    ids: Mapping[tuple[ModelRef, str], str]
    left_out: dict[str, Note]
    notes: list[Note]
    claims: bool = True  # whether the files of the models are asked what they say of each other
    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    by_others: int = 0  # bytes that other processes read
    hidden: int = 0

    def answer(self, method: str, notes: Sequence[Note], cost: Mapping[str, Any]) -> Phylogeny:
        """Everything so far."""
        edges = tuple(sorted(self.edges, key=lambda e: (e.child, e.parent)))
        left_out = dict(sorted(self.left_out.items()))
        return Phylogeny(
            nodes=tuple(self.nodes), edges=edges, roots=tuple(self.roots), quality=_pooled(self), method=method,
            left_out=left_out, notes=tuple(notes), **cost,
        )  # fmt: skip

    def leave_out(self, model: Checkpoint, why: str) -> None:
        self.left_out[self.ids[_key(model)]] = as_note("mostly_unusable", why)

    def alone(self, models: Iterable[View]) -> None:
        """Models that nothing can be compared with: each a tree of its own."""
        for model in models:
            only = f"{self.ids[_key(model)]} is the only one of its architecture, and was not read."
            self.notes.append(Note("only_of_architecture", only))
            self._node(model, self._group(), 1)
            self.roots.append(self.ids[_key(model)])

    def add(self, aligned: AlignedModels, method: Method, alpha: float, options: Mapping[str, Any]) -> None:
        """The trees of one architecture."""
        built = consistent(method(aligned, alpha, aligned.seed, **options))
        first = self._group()
        names = {i: self.ids[_key(model)] for i, model in enumerate(aligned.models)}
        for models in built.groups:
            for i in sorted(i for i in models if i < 0):
                self.hidden += 1
                names[i] = f"?{self.hidden}"
        born = generations(built)
        for group, models in enumerate(built.groups):
            for i in models:
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
        equal = named and aligned.equal(a, b)  # tokens can be added and cut off: that shows no order either
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
            candidate = unjudged(aligned.models[parent], "compared")
            try:
                claims = claims_of(aligned.models[child])
            except LineageError:  # what one repo's card does not tell now is no reason to lose the tree
                return False
            return any(self.session.opener.same_model(claim.ref, candidate) for claim in claims)

        if not self.claims:
            return None
        if names(b, a):
            return "same"
        if names(a, b):
            return "reversed" if directed else "same"
        return None


def _relation(
    aligned: AlignedModels, a: int, b: int, directed: bool, equal: bool, merge: bool
) -> tuple[Relation, dict[str, Any]]:
    if equal:
        rows = aligned.vocabulary_growth(a, b) or aligned.vocabulary_growth(b, a)
        return ("resized" if rows else "head_changed"), {}
    if merge:
        return "merge", {}
    if min(a, b) < 0:
        return ("finetune" if directed else "common_origin"), {}
    if directed and (rows := aligned.vocabulary_growth(a, b)):
        return "resized", {"vocabulary": {"child": rows[1], "parent": rows[0]}}
    kind, facts = aligned.change(a, b) if directed else ("other", {})
    if kind == "cast" or kind == "quantized" or kind == "pruned":  # of ONE_WAY
        return kind, facts
    return ("finetune" if directed else "common_origin"), {}


def _quality(aligned: AlignedModels, built: BuiltTrees) -> dict[str, Any]:
    """How tree-like the distances are, and how sure the groups: see docs/schema.md."""
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
