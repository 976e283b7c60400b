"""Averages and arcs whose weights differ by kind of tensor or along the depth, from the Gram matrix of each tensor.

Templates of merges give attention, feed-forward layers and the rest weights of their own, as gradients over the blocks.
See docs/methods.md, *Merges made again*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answers.layers import BlockOrigin
from ..checkpoints.dtypes import epsilon
from .block_origins import BlockFacts, LayerReadings, squared_distances
from .merge_numbers import by_kind, kind_of
from .merge_recipe import refitted_origin
from .merge_search import Recipe
from .mixture import Fit, cosines, simplex, slerp_position

MIN_APART = 1e-10  # of the squares of two sources, that they must differ by for a tensor to show a weight
MAX_ERROR = 0.02  # standard error of a weight, above which a tensor says nothing
SURE = 4.0  # standard errors
LEAST_ERROR = 3e-4  # of a weight
MIN_TENSORS = 4
MAX_ARC = 0.02  # |length − 1| of an arc


@dataclass(frozen=True, slots=True)
class TensorWeights:
    """Of one tensor: weights of the sources that sum to 1 with their standard error, SLERP's t of two of them with what
    rounding leaves uncertain, and the length there; place: of its block, as `Probe` has it."""

    name: str
    place: float
    weights: tuple[float, ...]
    error: float
    t: float | None
    t_error: float
    length: float


def tensor_weights(layers: LayerReadings, sources: Sequence[int], places: Mapping[str, float]) -> list[TensorWeights]:
    """The weights in each tensor that shows them: where the sources differ."""
    found = []
    for name, moments in layers.readings.moments.items():
        having = layers.readings.candidates_with[name]
        if not {*sources} <= {*having} or not layers.readings.child_usable(name):
            continue
        rows = [0, *(layers.readings.row(name, k) for k in sources)]
        gram = moments.gram[np.ix_(rows, rows)]
        apart = min(gram[i, i] + gram[j, j] - 2 * gram[i, j] for i in range(1, len(rows)) for j in range(1, i))
        if apart <= MIN_APART * gram[0, 0]:
            continue
        t, length, _ = slerp_position(gram, 0, 1) if len(sources) == 2 else (None, 0.0, 0.0)
        fit = simplex(gram, range(len(sources)), unknown=False)
        count = max(1, moments.count)
        rounding = epsilon(layers.child[name].dtype) * float(np.sqrt(gram[0, 0] / (12 * count) / apart))
        error = max(rounding, float(np.sqrt(2 * fit.rss / count / apart)))
        weights = tuple(map(float, fit.weights))
        found.append(TensorWeights(name, places.get(name, 0.0), weights, error, t, rounding, length))
    return found


def recipes_by_kind(found: Sequence[TensorWeights], sources: Sequence[int]) -> Iterator[Recipe]:
    """SLERP and a weighted average, with settings by kind and depth that give every tensor its weights."""
    if len(found) < MIN_TENSORS:
        return
    arc = [each for each in found if each.t is not None and abs(each.length - 1) <= MAX_ARC]
    if len(arc) == len(found):
        t = [float(np.clip(each.t or 0.0, 0.0, 1.0)) for each in found]
        setting = _setting(found, t, [each.t_error for each in found])
        if setting is not None:
            yield Recipe("slerp", sources[0], (sources[1],), {"t": setting})
    sure = [each for each in found if each.error <= MAX_ERROR]
    if len(sure) >= MIN_TENSORS:
        columns = [[each.weights[i] for each in sure] for i in range(len(sources))]
        settings = [_setting(sure, column, [each.error for each in sure]) for column in columns]
        if all(each is not None for each in settings):
            yield Recipe("linear", None, tuple(sources), {"weight": tuple(settings), "normalize": True})


def _setting(found: Sequence[TensorWeights], values: Sequence[float], errors: Sequence[float]) -> Any:
    names, places = [each.name for each in found], [each.place for each in found]
    return by_kind(names, places, values, [LEAST_ERROR + SURE * error for error in errors])


def refitted_by_kind(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin], recipe: Recipe,
    places: Mapping[str, float], stderr: float = 0.0,
) -> tuple[BlockOrigin, ...]:  # fmt: skip
    """Every block with the mean weights of its tensors, those of each kind in `facts["kinds"]`, and what they leave.
    stderr: of each weight."""
    used = [recipe.base, *recipe.models] if recipe.base is not None else [*recipe.models]
    refitted = list(origins)
    for each in facts:
        origin = origins[each.position]
        if not origin.parent or not {*used} <= {*each.kept} or origin.kind == "equal":
            continue
        columns = [each.kept.index(k) + 1 for k in used]
        left = 0.0
        for name, gram in zip(each.names, each.grams, strict=True):
            v = np.zeros(len(gram))
            v[columns] = _coefficients(recipe.at(name, places.get(name, 0.0)), gram, columns)
            v[0] = v.sum() - 1.0  # Σ v·source − c = Σ v·y + (Σv − 1)·c
            left += max(0.0, float(v @ gram @ v))
        rows = [
            (name, float(layers.child[name].count), _shares(recipe.at(name, places.get(name, 0.0))))
            for name in layers.blocks[each.position].tensors.values()
        ]  # fmt: skip
        weights = np.zeros(len(each.kept))
        matrices = [(size, shares) for name, size, shares in rows if name in each.names]
        weights[[c - 1 for c in columns]] = sum(n * w for n, w in matrices) / max(1.0, sum(n for n, _ in matrices))
        fit = Fit(weights, 0.0, left, np.where(weights != 0, stderr, 0.0))
        told = {"kinds": _by_kind(rows, [layers.refs[k] for k in used])}
        refitted[each.position] = refitted_origin(layers, each, origin, fit, told)
    return tuple(refitted)


def with_kinds(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> tuple[BlockOrigin, ...]:
    """Mixtures with the shares of their sources in each kind of tensor, in `facts["kinds"]`: by least squares, with
    weights ≥ 0 that sum to what is known, in each tensor in which the sources differ."""
    told = list(origins)
    for each in facts:
        origin = origins[each.position]
        if origin.kind != "mixture" or "kinds" in origin.facts or min(s.weight for s in origin.mixture) < 0:
            continue
        refs = [share.ref for share in origin.mixture]
        used = [layers.refs.index(ref) for ref in refs]
        known = sum(share.weight for share in origin.mixture)
        rows = []
        for name in layers.blocks[each.position].tensors.values():
            moments = layers.readings.moments.get(name)
            if moments is None or not {*used} <= {*layers.readings.candidates_with[name]}:
                continue
            at = [0, *(layers.readings.row(name, k) for k in used)]
            gram = moments.gram[np.ix_(at, at)]
            if not (squared_distances(gram) + np.eye(len(used)) == 0).any():
                shares = known * simplex(gram, range(len(used)), unknown=False).weights
                rows.append((name, float(layers.child[name].count), shares))
        if rows:
            told[each.position] = replace(origin, facts={**origin.facts, "kinds": _by_kind(rows, refs)})
    return tuple(told)


def _by_kind(rows: Sequence[tuple[str, float, np.ndarray]], refs: Sequence[str]) -> dict[str, dict[str, float]]:
    """The mean share of each source by kind of tensor. rows: name, size and shares of each tensor."""
    found = {}
    for kind in dict.fromkeys(kind_of(name) for name, _, _ in rows):
        part = [(size, shares) for name, size, shares in rows if kind_of(name) == kind]
        total = np.sum([size * shares for size, shares in part], 0) / sum(size for size, _ in part)
        found[kind] = {ref: float(share) for ref, share in zip(refs, total, strict=True)}
    return found


def _shares(recipe: Recipe) -> np.ndarray:
    """Shares, that sum to 1, of the base and the model of a SLERP, of the base and the models of task arithmetic, or of
    the models of an average."""
    if recipe.method == "slerp":
        return np.array([1 - float(recipe.settings["t"]), float(recipe.settings["t"])])
    weights = np.array(recipe.settings["weight"], dtype=float)
    return np.array([1 - weights.sum(), *weights]) if recipe.base is not None else weights / weights.sum()


def _coefficients(recipe: Recipe, gram: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """By what each model is multiplied: the shares, but on the arc of a SLERP."""
    shares = _shares(recipe)
    if recipe.method == "slerp":
        angle = math.acos(float(np.clip(cosines(gram)[columns[0], columns[1]], -1.0, 1.0)))
        return np.sin(shares * angle) / math.sin(angle) if angle > 1e-4 else shares
    return shares
