"""A merge made again: its recipe found on a few whole tensors, then all tensors made by it and compared bit for bit.

The arithmetic is in `weights/merge_search.py` and `weights/merge_methods.py`; this reads the tensors. See
docs/methods.md, *Merges made again*.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from ..answers.layers import BlockOrigin, Method, Redone
from ..checkpoints.checkpoint import Checkpoint
from ..errors import LineageError
from ..weights.block_matching import Block
from ..weights.block_origins import BlockFacts, LayerReadings, squared_distances
from ..weights.merge_kinds import recipes_by_kind, refitted_by_kind, tensor_weights
from ..weights.merge_methods import METHODS
from ..weights.merge_numbers import kind_of
from ..weights.merge_recipe import InferredMerge, whole_model, with_recipe
from ..weights.merge_search import WEIGHT_ERROR, FoundMerge, Probe, Recipe, find_merge, judged
from .session import Aligned, Question, some

MIN_ENTRIES, MOST_ENTRIES = 512, 1 << 23  # of a tensor on which a recipe is looked for
MOST_SOURCES = 5
NAMED = 5  # tensors that differ, named in the answer
WITH_SHARES = ("linear", "slerp", "task_arithmetic")  # methods whose numbers are the shares of their models


NAMES: dict[str, str] = {"dare_linear": "dare"}  # what an answer calls a method of mergekit's


def remake(
    tensors: Tensors, layers: LayerReadings, facts: Sequence[BlockFacts], made: InferredMerge, verify: bool
) -> tuple[InferredMerge, Redone | None]:
    """What was inferred, with the recipe that makes the child again, if there is one; and, to verify, how much it
    makes."""
    if made.method in ("single", "passthrough") and all(origin.kind == "equal" for origin in made.origins):
        return made, _redo_blocks(tensors, layers, made.origins) if verify else None
    tensors = replace(tensors, distinct=_distinct(layers, tensors.child))
    found = find_recipe(tensors, made.origins, [[*block.tensors.values()] for block in layers.blocks])
    if found is None or not METHODS[found.recipe.method].at_random:
        probes = [tensors.probe(name) for name in _of_each_kind(tensors)]
        known = (found.recipe, *found.others) if found and found.exact else ()
        found = judged(probes, found.recipe, known) if found else None  # the numbers of one kind may not be another's
        by_kind = None if found and found.exact else find_by_kind(tensors, layers, made, probes)
        if by_kind:
            found = by_kind
        if found and (by_kind or (found.coarse and found.recipe.method in WITH_SHARES)) and not found.recipe.is_choice:
            made = _refitted(tensors, layers, facts, made, found)
    if found is None:
        return made, None
    recipe, redone = found.recipe, None
    if verify and not METHODS[recipe.method].at_random:
        recipe, redone = redo(tensors, (recipe, *found.others))
    told = {"merge": {**as_facts(recipe, tensors.refs), "exact": found.exact}, "resynthesis": found.residual}
    method = "mixed" if recipe.is_choice else NAMES.get(recipe.method, recipe.method)
    made = with_recipe(
        layers, facts, made, cast("Method", method), recipe.base, recipe.models, told,
        _because(recipe, found, tensors),
    )  # fmt: skip
    return made, redone


def _refitted(
    tensors: Tensors, layers: LayerReadings, facts: Sequence[BlockFacts], made: InferredMerge, found: FoundMerge
) -> InferredMerge:
    """What was inferred, with the shares of a recipe: least squares do not give them where those differ by kind, or
    where rounding was coarse."""
    stderr = 0.0 if found.exact else WEIGHT_ERROR
    origins = refitted_by_kind(layers, facts, made.origins, found.recipe, tensors.places, stderr)
    mixture, unknown, left = whole_model(layers, facts, origins)
    return replace(
        made, method=cast("Method", found.recipe.method), origins=origins, mixture=mixture, unknown=unknown,
        residual=left, reasons=(),
    )  # fmt: skip


def _because(recipe: Recipe, found: FoundMerge, tensors: Tensors) -> str:
    models = " and ".join(tensors.refs[k] for k in recipe.models)
    base = "" if recipe.base is None else f" around {tensors.refs[recipe.base]}"
    how = f"{recipe.method} of {models}{base}"
    if recipe.is_choice:
        how = f"taking each tensor from {' or '.join(tensors.refs[k] for k in recipe.used)} by its kind"
    if found.exact:
        return f"{how} makes {len(found.names)} whole tensors again, bit for bit: {some(found.names)}"
    if METHODS[recipe.method].at_random:
        return (
            f"{how} leaves {100 * found.residual:.2g} % of the norm of {found.names[0]}, with the masks that it shows"
        )
    left = f"{how} leaves at most {100 * found.residual:.2g} % of the norm of {some(found.names)}"
    return f"{left}: by so much it was tuned, or rounded, since"


@dataclass(frozen=True, slots=True)
class Tensors:
    """The child and its candidates, tensor by tensor as stored: fused ones whole, for methods see whole tensors.

    models: of each candidate, the checkpoint, and the child's name → its name. refs: what they are called. places: of
    each tensor's block, 0 the first, 1 the last. distinct: how many candidates differ from each other in each tensor.
    """

    child: Checkpoint
    models: tuple[tuple[Checkpoint, Mapping[str, str]], ...]
    refs: tuple[str, ...]
    places: Mapping[str, float]
    distinct: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, question: Question, aligned: Sequence[Aligned], refs: Sequence[str], blocks: Sequence[Block]
    ) -> Tensors:
        """Of the candidates that line up, as `trace_layers` has matched their blocks."""
        stored = {id(view): model for view, model in zip(question.candidates, question.opened, strict=True)}
        models = []
        for view, alignment in aligned:
            model = stored.get(id(view), view)
            pairs = {_whole(a, question.source): _whole(b, model) for a, b in alignment.pairs.items()}
            rest = {name: name for name in question.source if name not in pairs and name in model}
            models.append((model, {**rest, **pairs}))
        inner = [block for block in blocks if not block.rest]
        places = {
            _whole(name, question.source): i / (len(inner) - 1) if len(inner) > 1 else 1.0
            for i, block in enumerate(inner) for name in block.tensors.values()
        }  # fmt: skip
        return cls(question.source, tuple(models), tuple(refs), places)

    def probe(self, name: str) -> Probe:
        """One tensor of all. What a candidate has more rows of is cut; where it lacks some, it has none."""
        (ours,) = self.child.whole([name])
        models: list[torch.Tensor | None] = []
        for model, pairs in self.models:
            shape = model[pairs[name]].shape if name in pairs else None
            if shape is None or len(shape) != ours.dim() or shape[1:] != ours.shape[1:] or shape[:1] < ours.shape[:1]:
                models.append(None)
            else:
                (theirs,) = model.whole([pairs[name]])
                models.append(theirs[: len(ours)] if ours.dim() else theirs)
        return Probe(name, ours, tuple(models), self.places.get(name, 0.0))

    def rank(self, name: str) -> tuple[int, int, str]:
        """By which tensors are chosen to look for a recipe: those in which most candidates differ, then small ones."""
        return -self.distinct.get(name, 0), self.child[name].count, name

    def probes(self, origins: Sequence[BlockOrigin], tensors: Sequence[Sequence[str]]) -> Iterator[Probe]:
        """The smallest matrix of some size of the first block, and the one of another shape of the last block, of those
        in which most candidates differ: a frozen one does not tell its models apart.

        tensors: the names of each origin's block.
        """
        inner = [
            [*dict.fromkeys(_whole(name, self.child) for name in names)]
            for origin, names in zip(origins, tensors, strict=True) if origin.index is not None
        ]  # fmt: skip
        seen: set[tuple[int, ...]] = set()
        for names in (inner[0], inner[-1]) if inner else ():
            fit = [
                name for name in names
                if len(self.child[name].shape) > 1 and MIN_ENTRIES <= self.child[name].count <= MOST_ENTRIES
                and self.child[name].shape not in seen and self.child[name].packing is None
            ]  # fmt: skip
            if fit:
                name = min(fit, key=self.rank)
                seen.add(self.child[name].shape)
                yield self.probe(name)


def _distinct(layers: LayerReadings, child: Checkpoint) -> dict[str, int]:
    """How many candidates differ from each other in each tensor."""
    found: dict[str, int] = {}
    for name, moments in layers.readings.moments.items():
        rows = [0, *(layers.readings.row(name, k) for k in layers.readings.candidates_with[name])]
        equal = squared_distances(moments.gram[np.ix_(rows, rows)]) == 0
        count = sum(not equal[i, :i].any() for i in range(len(equal)))
        found[_whole(name, child)] = max(found.get(_whole(name, child), 0), count)
    return found


def _whole(name: str, model: Checkpoint) -> str:
    """The stored tensor that a part of a fused one is cut from."""
    return name if name in model else re.sub(r"\[[^\[\]]*\]$", "", name)


def find_recipe(tensors: Tensors, origins: Sequence[BlockOrigin], names: Sequence[Sequence[str]]) -> FoundMerge | None:
    """The recipe by which the child was merged from the candidates; None where none makes it again."""
    try:
        probes = [probe for probe in tensors.probes(origins, names) if probe.is_changed]
    except LineageError:
        return None  # of a candidate that cannot be read there is a note already
    if not probes:
        return None
    common = [k for k in range(len(tensors.refs)) if all(k in probe.p for probe in probes)]
    left = np.array([[float(((probe.c - probe.p[k]) ** 2).sum()) / probe.nearest for probe in probes] for k in common])
    nearest = [common[i] for i in np.argsort(left.sum(1), kind="stable")] if common else []
    return find_merge(probes, sorted(nearest[:5]))


def find_by_kind(
    tensors: Tensors, layers: LayerReadings, made: InferredMerge, probes: Sequence[Probe]
) -> FoundMerge | None:
    """An average or an arc whose weights differ by kind and depth, if it makes tensors of several kinds again."""
    sources = sorted({layers.refs.index(share.ref) for o in made.origins if o.kind == "mixture" for share in o.mixture})
    if not 2 <= len(sources) <= MOST_SOURCES or layers.in_order:
        return None
    best: FoundMerge | None = None
    for recipe in recipes_by_kind(tensor_weights(layers, sources, tensors.places), sources):
        if any(isinstance(each, list) for v in recipe.settings.values() for each in _each(v)):
            found = judged(probes, recipe)
            if found and (best is None or (found.exact, -found.misfit) > (best.exact, -best.misfit)):
                best = found
    return best


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _of_each_kind(tensors: Tensors) -> list[str]:
    """The first matrix of each kind by `Tensors.rank`, in the first and the last block that have one."""
    found: dict[tuple[str, bool], str] = {}
    for name in sorted(tensors.child, key=tensors.rank):
        place = tensors.places.get(name)
        if place in (0.0, 1.0) and len(tensors.child[name].shape) > 1 and tensors.child[name].count <= MOST_ENTRIES:
            found.setdefault((kind_of(name), place == 1.0), name)
    return [*found.values()]


def redo(tensors: Tensors, recipes: Sequence[Recipe]) -> tuple[Recipe, Redone]:
    """Every tensor of the child made by each recipe: the one that makes most of them bit for bit, and how many. The
    others are not asked where the first makes all."""
    if len(recipes) > 1 and (alone := redo(tensors, recipes[:1]))[1].whole:
        return alone
    equal = [0] * len(recipes)
    close = [0] * len(recipes)
    differ: list[list[str]] = [[] for _ in recipes]
    for name in tensors.child:
        probe = tensors.probe(name)
        for i, recipe in enumerate(recipes):
            if probe.is_made_by(recipe):
                equal[i] += 1
            else:
                close[i] += probe.is_made_but_for_rounding(recipe)
                differ[i].append(name)
    best = max(range(len(recipes)), key=lambda i: (equal[i], -i))
    return recipes[best], Redone(len(tensors.child), equal[best], close[best], tuple(differ[best][:NAMED]))


def _redo_blocks(tensors: Tensors, layers: LayerReadings, origins: Sequence[BlockOrigin]) -> Redone:
    """Every tensor taken from the block that its own block came from."""
    parents = {
        _whole(name, tensors.child): layers.refs.index(str(origin.parent))
        for origin, block in zip(origins, layers.blocks, strict=True) if origin.parent
        for name in block.tensors.values()
    }  # fmt: skip
    usual = max({*parents.values()}, key=[*parents.values()].count)
    copies = {k: Recipe("passthrough", None, (k,), {}, "") for k in {*parents.values()}}
    equal, differ = 0, []
    for name in tensors.child:
        probe = tensors.probe(name)
        if probe.is_made_by(copies[parents.get(name, usual)]):
            equal += 1
        else:
            differ.append(name)
    return Redone(len(tensors.child), equal, 0, tuple(differ[:NAMED]))


def as_facts(recipe: Recipe, refs: Sequence[str]) -> dict[str, Any]:
    """The recipe by names, as `facts["merge"]` has it and mergekit spells it."""
    count = len(recipe.models)
    each = [
        {"ref": refs[k], **{n: v[i] for n, v in recipe.settings.items() if isinstance(v, tuple) and len(v) == count}}
        for i, k in enumerate(recipe.models)
    ]
    shared = {
        name: value for name, value in recipe.settings.items() if not isinstance(value, tuple) and name != "rounding"
    }
    base = None if recipe.base is None else refs[recipe.base]
    return {"method": recipe.method, "base": base, "models": each, "parameters": shared, "dtype": recipe.dtype}
