"""Numbers as authors of merges write them: rounded to a grid, scaled, by kind of tensor and along the depth.

A setting is a number, or mergekit's list of conditions: `{"filter": part of a name, "value": number or anchors}`, the
last without a filter. Anchors are interpolated linearly from the first block to the last. Pure arithmetic. See
docs/methods.md, *Merges made again*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

GRIDS = (0.05, 0.01, 0.001)  # steps that authors round to, the usual one first
THIRDS = (1 / 3, 0.33, 0.333, 0.3333, 2 / 3, 0.67, 0.667, 0.6667)
MOST_COMBINATIONS = 96  # of rounded numbers that are tried
MOST_ANCHORS = 9  # of a gradient


def author_values(value: float, error: float) -> list[float]:
    """What an author may have written for a number found with an error: on the grids, the coarsest first, then thirds,
    then the number itself.

    >>> author_values(0.6503, 0.001), author_values(0.3334, 0.0005)
    ([0.65, 0.6503], [0.3333333333333333, 0.333, 0.3333, 0.3334])
    """
    rounded = [round(round(value / grid) * grid, 6) for grid in GRIDS]
    found = [each for each in (*rounded[:2], *THIRDS, rounded[2]) if abs(each - value) <= error]
    return [*dict.fromkeys([*found, float(value)])]


def combinations(values: Sequence[float], error: float) -> Iterator[tuple[float, ...]]:
    """Roundings of several numbers, those with the coarsest grids first."""
    choices = [author_values(value, error) for value in values]
    ranked = sorted(product(*(range(len(each)) for each in choices)), key=lambda places: (sum(places), places))
    for places in ranked[:MOST_COMBINATIONS]:
        yield tuple(each[i] for each, i in zip(choices, places, strict=True))


def shares_as_written(shares: Sequence[float], error: float) -> Iterator[tuple[float, ...]]:
    """Weights of which only the ratio is known, as an author may have written them: as shares of 1, with the largest 1,
    or all on the grid of 0.05.

    >>> next(shares_as_written([0.6, 0.4], 1e-4)), (1.0, 0.5, 0.25) in [*shares_as_written([4/7, 2/7, 1/7], 1e-4)]
    ((0.6, 0.4), True)
    """
    top = max(shares, key=abs)
    if not top:
        return
    seen = set()
    for scale in (1.0, *(whole / 20 / top for whole in (20, *range(1, 41)))):
        scaled = [share * scale for share in shares]
        tolerance = max(error * abs(scale), 1e-9)
        ways = [author_values(each, tolerance)[:-1] for each in scaled]
        if all(ways) or scale in (1.0, 1.0 / top):
            for finest in (0, -1) if scale == 1.0 else (0,):
                found = tuple(way[finest] if way else each for way, each in zip(ways, scaled, strict=True))
                if found not in seen:
                    seen.add(found)
                    yield found


def resolve(setting: Any, name: str, place: float) -> Any:
    """The value of a setting for a tensor; place: of its block, 0 the first, 1 the last; 0 outside of the blocks.

    >>> resolve([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], "layers.1.mlp.up", 0.25)
    0.25
    """
    if isinstance(setting, list) and setting and isinstance(setting[0], Mapping):
        found = next((each for each in setting if each.get("filter") is None or each["filter"] in name), None)
        return None if found is None else resolve(found["value"], name, place)
    if isinstance(setting, list):
        scaled = place * (len(setting) - 1)
        low = int(scaled)
        part = scaled - low
        return (1 - part) * setting[low] + part * setting[min(len(setting) - 1, low + 1)]
    return setting


def anchors(places: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> list[float] | None:
    """The fewest anchors, rounded, between which the values lie, each within its error; one of values that are all the
    same; None where they follow no line of at most `MOST_ANCHORS`.

    >>> anchors([0, 0.25, 0.5, 0.75, 1], [0.0, 0.2, 0.4, 0.6, 0.8], [1e-4] * 5)
    [0.0, 0.8]
    """
    x, y = np.asarray(places, dtype=float), np.asarray(values, dtype=float)
    for count in range(1, MOST_ANCHORS + 1):
        if count > max(1, len({*places})):
            return None
        design = _hats(x, count)
        found = np.linalg.lstsq(design / np.asarray(errors)[:, None], y / np.asarray(errors), rcond=None)[0]
        for grid in GRIDS:
            rounded = np.round(found / grid) * grid
            if (np.abs(design @ rounded - y) <= errors).all():
                return [round(float(each), 6) + 0.0 for each in rounded]
    return None


def _hats(x: np.ndarray, count: int) -> np.ndarray:
    """How much of each anchor a place has, (places, count)."""
    if count == 1:
        return np.ones((len(x), 1))
    return np.maximum(0.0, 1.0 - np.abs(x[:, None] * (count - 1) - np.arange(count)))


KINDS = (
    ("norm", ("norm", "ln_")),
    ("attention", ("self_attn", "attn", "attention")),
    ("mlp", ("mlp", "ffn", "feed_forward")),
)


def kind_of(name: str) -> str:
    """The kind of a tensor by its name: `attention`, `mlp`, `norm`, or `other` (embeddings, head).

    >>> kind_of("model.layers.0.self_attn.q_proj.weight"), kind_of("model.layers.0.post_attention_layernorm.weight")
    ('attention', 'norm')
    """
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "other")


def by_kind(names: Sequence[str], places: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> Any:
    """The setting that gives each named tensor its value, within its error: a number or anchors, with a filter for each
    kind that needs one; None where no setting does.

    >>> names = ["l.0.attn.q", "l.0.mlp.w", "l.1.attn.q", "l.1.mlp.w", "embed"]
    >>> by_kind(names, [0, 0, 1, 1, 0], [0, 1, 1, 0, 0.5], [1e-4] * 5)
    [{'filter': 'attn', 'value': [0.0, 1.0]}, {'filter': 'mlp', 'value': [1.0, 0.0]}, {'value': 0.5}]
    """
    kinds = [kind_of(name) for name in names]

    def fitted(*wanted: str) -> Any:
        here = [i for i, kind in enumerate(kinds) if kind in wanted]
        found = anchors(*([each[i] for i in here] for each in (places, values, errors))) if here else None
        return found[0] if found is not None and len(found) == 1 else found

    if (same := fitted("attention", "mlp", "norm", "other")) is not None:
        return same
    rest = fitted("norm", "other")
    split = [("attention",), ("mlp",)] if rest is not None else [("attention",), ("mlp",), ("norm",)]
    conditions: list[dict[str, Any]] = []
    for (kind,) in split:
        if kind in kinds:
            value = fitted(kind)
            if value is None:
                return None
            conditions.append({"filter": _filter(names, kinds, kind), "value": value})
    last = rest if rest is not None else fitted("other")
    return [*conditions, {"value": last if last is not None else 0.5}]


def _filter(names: Sequence[str], kinds: Sequence[str], kind: str) -> str:
    """A part of every name of a kind, and of no other's where there is one."""
    parts = dict(KINDS)[kind]
    own = [name for name, other in zip(names, kinds, strict=True) if other == kind]
    rest = [name for name, other in zip(names, kinds, strict=True) if other not in (kind, "norm")]
    every = [part for part in parts if all(part in name for name in own)]
    return next((part for part in every if not any(part in name for name in rest)), (every or parts)[0])
