"""Averages and arcs whose weights differ by kind of tensor or along the depth, from the Gram matrix of each tensor.

Templates of merges give attention, feed-forward layers and the rest weights of their own, as gradients over the blocks.
See docs/methods.md, *Merges made again*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..answers.layers import BlockOrigin
from ..checkpoints.dtypes import epsilon
from .block_origins import BlockFacts, LayerReadings
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
        sizes: dict[str, float] = {}
        kinds: dict[str, np.ndarray] = {}
        left = 0.0
        for name, gram in zip(each.names, each.grams, strict=True):
            v = np.zeros(len(gram))
            shares, v[columns] = _coefficients(recipe.at(name, places.get(name, 0.0)), gram, columns)
            v[0] = v.sum() - 1.0  # Σ v·source − c = Σ v·y + (Σv − 1)·c
            left += max(0.0, float(v @ gram @ v))
            kind, size = kind_of(name), float(layers.child[name].count)
            sizes[kind] = sizes.get(kind, 0.0) + size
            kinds[kind] = kinds.get(kind, np.zeros(len(used))) + size * shares
        weights = np.zeros(len(each.kept))
        weights[[c - 1 for c in columns]] = sum(kinds.values(), np.zeros(len(used))) / max(1.0, sum(sizes.values()))
        by_ref = {
            kind: {layers.refs[k]: float(w) for k, w in zip(used, total / sizes[kind], strict=True)}
            for kind, total in kinds.items()
        }  # fmt: skip
        fit = Fit(weights, 0.0, left, np.where(weights != 0, stderr, 0.0))
        refitted[each.position] = refitted_origin(layers, each, origin, fit, {"kinds": by_ref})
    return tuple(refitted)


def _coefficients(recipe: Recipe, gram: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(shares that sum to 1, coefficients) of the base and the model of a SLERP, of the base and the models of task
    arithmetic, or of the models of an average."""
    if recipe.method == "slerp":
        t = float(recipe.settings["t"])
        angle = math.acos(float(np.clip(cosines(gram)[columns[0], columns[1]], -1.0, 1.0)))
        shares = np.array([1 - t, t])
        return shares, np.sin(shares * angle) / math.sin(angle) if angle > 1e-4 else shares
    weights = np.array(recipe.settings["weight"], dtype=float)
    if recipe.base is not None:
        return (shares := np.array([1 - weights.sum(), *weights])), shares
    return weights / weights.sum(), weights / weights.sum()
