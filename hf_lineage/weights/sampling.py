"""Which elements are read: everything, or a seeded sample of contiguous slices and whole hidden units.

A tensor is cut on a grid that its shape alone fixes, so that sums over blocks do not depend on which process reads
them. See docs/methods.md, *Units and sampling*.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..architecture.describe import Shaped
from ..checkpoints.entry import Slice
from ..errors import ArgumentError
from ..sizes import size_of

BLOCK = 1 << 18  # elements of one block of the grid
MIN_UNITS = 32  # whole units that a tensor needs for the permutation test
MAX_UNITS = 2048  # units of one tensor that are kept in memory
MAX_ROW = 1 << 20  # elements of one unit; longer rows are no hidden units of any network known to us
MIN_SLICE = 64  # elements below which a slice is not worth its request
REMOTE_SHARE, REMOTE_MIN_BYTES = 0.005, 4 << 20  # read of a remote model unless the caller decides otherwise


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read: slices in order, the rows kept in memory of each matrix, and the share of all bytes, in (0, 1].

    layers: orders of hidden units of which rows are kept, and all that could be tested if memory were no limit.
    """

    slices: tuple[Slice, ...]
    rows: dict[str, tuple[int, ...]]
    share: float
    layers: tuple[int, int] = (0, 0)

    @property
    def sampled(self) -> bool:
        """Whether less than everything is read."""
        return self.share < 1.0


def make_plan(
    entries: Mapping[str, Shaped], nbytes: Mapping[str, int], orders: Mapping[str, Sequence[str]],
    *, budget: int | None, keep: int, seed: int, most: int | None = None,
) -> Plan:  # fmt: skip
    """Choose what to read of the tensors in `entries`.

    nbytes: bytes of each tensor as stored. orders: hidden-unit order → matrices whose rows are its units. budget: bytes
    to read of the child, None for everything. keep: bytes (as float32) of rows held in memory for one model. What the
    units leave of these goes to rows of other matrices, by which `edits.py` and `direction/` see what was done. most:
    bytes that may be held for `MIN_UNITS` rows of every matrix, at least `keep`; where even that is too little, whole
    orders are drawn by the seed, and the other ones are read without units.

    Everything: the blocks of `grid`, and rows drawn at random. A sample: of each tensor one contiguous slice that
    starts at a random place; unit matrices give whole rows, at least `MIN_UNITS` of them or none. Random numbers are
    seeded by `seed` and the name of the tensor or its order, so that tensors of one order give the same rows.
    """
    units = {name: order for order, names in orders.items() for name in names if name in entries}
    units = {name: order for name, order in units.items() if has_units(entries[name].shape)}
    total, most = sum(nbytes.values()), max(keep, most or 0)
    if budget is None or budget >= total:
        everything = tuple(piece for name in entries for piece in grid(name, entries[name].shape))
        chosen = _kept_rows(entries, units, 3 * keep // 4, seed)
        if len(chosen) < len(units):
            drawn = _drawn(entries, units, most, seed)
            chosen = _rows_of_drawn(entries, drawn, most, seed) if len(drawn) > len(chosen) else chosen
        spent = sum(4 * len(kept) * _row(entries[name].shape) for name, kept in chosen.items())
        others = _other_rows(entries, chosen, keep - spent, seed)
        return Plan(everything, chosen | others, 1.0, _layers(chosen, units))
    affordable = _affordable(entries, nbytes, units, budget)
    known, spare = affordable, None
    if sum(4 * _row(entries[n].shape) * _spread(_row(entries[n].shape), len(known), keep) for n in known) > most:
        affordable = _drawn(entries, known, most, seed)
        spare = most - sum(4 * MIN_UNITS * _row(entries[name].shape) for name in affordable)
    slices: list[Slice] = []
    rows: dict[str, tuple[int, ...]] = {}
    # a change in a tensor without a slice would not be seen: gains and biases are read too where that costs little
    min_length = MIN_SLICE if sum(MIN_SLICE * nbytes[n] // e.count for n, e in entries.items()) <= budget // 8 else 0
    for name, length in _lengths(entries, nbytes, affordable, budget, min_length).items():
        if not length:
            continue
        entry, row = entries[name], _row(entries[name].shape) if name in affordable else 1
        # tensors of one order start at the same row: their units are tested together
        start = row * seeded_random(seed, affordable.get(name, name)).randrange((entry.count - length) // row + 1)
        slices += _cut(name, start, start + length, row)
        if name in affordable:
            max_rows = _spread(row, len(affordable), keep)
            if spare is not None:
                max_rows = min(MAX_UNITS, MIN_UNITS + spare // (4 * row * len(affordable)))
            rows[name] = tuple(range(start // row, (start + length) // row))[:max_rows]
    read = sum(nbytes[piece.name] * (piece.stop - piece.start) / entries[piece.name].count for piece in slices)
    return Plan(tuple(slices), rows, read / total, _layers(rows, known))


def sample_budget(sample: str | float | int | None, total: int, remote: bool) -> int | None:
    """Bytes to read of a model of `total` bytes; None means all of it.

    `None` is everything when local and 0.5 %, at least 4 MB, when remote; `"all"`; `"auto"`, the remote rule wherever
    the model is; `"adaptive"`, the same (of unrelated candidates less is read, `tasks/screen.py`); a fraction
    (`0.005`, `"0.5%"`) or bytes (`1000000`, `"1MB"`). Raises `ArgumentError`.

    >>> sample_budget("0.5%", 10**7, remote=False), sample_budget(None, 10**7, remote=True)
    (50000, 4194304)
    >>> sample_budget("1MB", 10**7, remote=True)
    1000000
    """
    if sample == "all" or (sample is None and not remote):
        return None
    if sample in (None, "auto", "adaptive"):
        return max(int(REMOTE_SHARE * total), REMOTE_MIN_BYTES)
    text = str(sample).strip()
    if isinstance(sample, str) and text[-1:] in ("B", "b") and (size := size_of(text)):
        return size
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    fraction = isinstance(sample, float) or (isinstance(sample, str) and not text.isdigit())
    if not value > 0 or math.isinf(value) or (fraction and value > 1) or isinstance(sample, bool):
        raise ArgumentError(
            f"Expected `sample` to be 'all', 'auto', 'adaptive', a fraction such as 0.005 or '0.5%', or bytes such as "
            f"1000000 or '1MB', got {sample!r}."
        )
    return max(1, round(value * total)) if fraction else round(value)


def grid(name: str, shape: Sequence[int]) -> list[Slice]:
    """The blocks of a tensor: whole rows of the first axis, about `BLOCK` elements each."""
    return _cut(name, 0, math.prod(shape), _row(shape))


def _cut(name: str, start: int, stop: int, row: int) -> list[Slice]:
    step = row * max(1, BLOCK // row) if row <= MAX_ROW else BLOCK
    return [Slice(name, at, min(at + step, stop)) for at in range(start, stop, step)]


def _row(shape: Sequence[int]) -> int:
    return math.prod(shape[1:]) if len(shape) > 1 else 1


def has_units(shape: Sequence[int]) -> bool:
    """Whether a matrix of this shape can be tested: rows enough, and of more than one number each."""
    return len(shape) > 1 and shape[0] >= MIN_UNITS and 1 < _row(shape) <= MAX_ROW


def seeded_random(seed: int, name: str) -> random.Random:
    """A generator seeded by a number and a name: the same in every process, whatever else was drawn before."""
    return random.Random(hashlib.sha256(f"{seed}:{name}".encode()).digest())


def _kept_rows(
    entries: Mapping[str, Shaped], units: Mapping[str, str], keep: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """Rows of every unit matrix that stay in memory, the same for the tensors of one order, within `keep` bytes."""
    width: dict[str, int] = {}
    members: dict[str, list[str]] = {}
    for name, order in units.items():
        width[order] = width.get(order, 0) + 4 * _row(entries[name].shape)
        members.setdefault(order, []).append(name)
    rows: dict[str, tuple[int, ...]] = {}
    left, chosen = keep, {}
    for position, order in enumerate(sorted(width, key=lambda order: (width[order], order))):
        height = min(entries[name].shape[0] for name in members[order])
        count = min(height, MAX_UNITS, left // (len(width) - position) // width[order])
        if count >= MIN_UNITS:
            chosen[order] = tuple(sorted(seeded_random(seed, order).sample(range(height), count)))
            left -= count * width[order]
    for name, order in units.items():
        if order in chosen:
            rows[name] = chosen[order]
    return rows


def _spread(row: int, matrices: int, keep: int) -> int:
    """Rows that are kept of one of so many matrices that share `keep` bytes."""
    return max(MIN_UNITS, min(MAX_UNITS, keep // (4 * row * matrices)))


def _layers(rows: Mapping[str, object], units: Mapping[str, str]) -> tuple[int, int]:
    """Orders of which rows are kept, and all."""
    return len({units[name] for name in rows if name in units}), len({*units.values()})


def _drawn(entries: Mapping[str, Shaped], units: Mapping[str, str], most: int, seed: int) -> dict[str, str]:
    """The matrices of whole orders, drawn until `MIN_UNITS` rows of each fill `most` bytes."""
    cost: dict[str, int] = {}
    for name, order in units.items():
        cost[order] = cost.get(order, 0) + 4 * MIN_UNITS * _row(entries[name].shape)
    drawn = set()
    for order in sorted(cost, key=lambda order: seeded_random(seed, order).random()):
        if cost[order] <= most:
            drawn.add(order)
            most -= cost[order]
    return {name: order for name, order in units.items() if order in drawn}


def _rows_of_drawn(
    entries: Mapping[str, Shaped], drawn: Mapping[str, str], most: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """Rows of matrices of which `MIN_UNITS` each fit: as many of each order as what is left allows."""
    width: dict[str, int] = {}
    height: dict[str, int] = {}
    for name, order in drawn.items():
        width[order] = width.get(order, 0) + 4 * _row(entries[name].shape)
        height[order] = min(height.get(order, MAX_UNITS), entries[name].shape[0])
    spare = most - MIN_UNITS * sum(width.values())
    rows = {}
    for order, wide in width.items():
        count = min(height[order], MIN_UNITS + spare // len(width) // wide)
        rows[order] = tuple(sorted(seeded_random(seed, order).sample(range(height[order]), count)))
    return {name: rows[order] for name, order in drawn.items()}


def _other_rows(
    entries: Mapping[str, Shaped], taken: Mapping[str, tuple[int, ...]], left: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """Rows of matrices that hold no known hidden units: whole ones if they fit, in a seeded order."""
    rows: dict[str, tuple[int, ...]] = {}
    for name in sorted(entries.keys() - taken.keys(), key=lambda name: seeded_random(seed, name).random()):
        height, row = entries[name].shape[:1], _row(entries[name].shape)
        if height and 1 < row <= MAX_ROW and (count := min(*height, MAX_UNITS, left // (4 * row))) > 1:
            rows[name] = tuple(sorted(seeded_random(seed, name).sample(range(*height), count)))
            left -= 4 * row * count
    return rows


def _affordable(
    entries: Mapping[str, Shaped], nbytes: Mapping[str, int], units: Mapping[str, str], budget: int
) -> dict[str, str]:
    """Unit matrices of which `MIN_UNITS` rows can be afforded, cheapest first, from 3/4 of the budget."""
    cost = {name: MIN_UNITS * nbytes[name] // entries[name].shape[0] for name in units}
    affordable: dict[str, str] = {}
    left = 3 * budget // 4
    for name in sorted(units, key=lambda name: (cost[name], name)):
        if cost[name] <= left:
            affordable[name] = units[name]
            left -= cost[name]
    return affordable


def _lengths(
    entries: Mapping[str, Shaped],
    nbytes: Mapping[str, int],
    affordable: Mapping[str, str],
    budget: int,
    min_length: int,
) -> dict[str, int]:
    """Elements to read of each tensor: the same share of all, the largest at which they add up to the budget.

    Whole rows of unit matrices, at least `MIN_UNITS`; of others at least `min_length` elements, and none where that is
    not worth a request. Bisection: the sum is monotone.
    """
    table = [(entry.count, _row(entry.shape), nbytes[name] / entry.count) for name, entry in entries.items()]
    counts, rows, each = np.array(table, dtype=np.float64).T
    unit = np.array([name in affordable for name in entries])
    height = counts / rows

    def lengths(share: float) -> np.ndarray:
        whole = rows * np.minimum(height, np.maximum(MIN_UNITS, np.round(share * height)))
        part = np.minimum(counts, np.maximum(np.round(share * counts), min_length))
        return np.where(unit, whole, np.where(part >= np.minimum(counts, MIN_SLICE), part, 0.0))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(each @ lengths(middle)) <= budget else (low, middle)
    return dict(zip(entries, lengths(low).astype(int).tolist(), strict=True))
