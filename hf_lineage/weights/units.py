"""Rows of matrices, the same of every checkpoint, held in memory: whole hidden units, for what is not additive.

A hidden unit is one row of a layer's weight matrix. Correlations of units, their order and their spectrum need whole
rows; sums over entries do not (`weights/moments.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch

from ..checkpoints.entry import Slice


class Units:
    """The chosen rows of the chosen matrices of each model, collected while slices of them are read.

    rows: name → the numbers of the rows that are kept, ascending. widths: name → elements of one row. `matrix(model,
    name)` is (rows, width) float32, NaN where nothing was read yet. Every slice must hold whole rows, as those of
    `sampling.grid` do.
    """

    def __init__(self, rows: Mapping[str, tuple[int, ...]], widths: Mapping[str, int], models: int) -> None:
        self.rows = dict(rows)
        self._widths = {name: widths[name] for name in rows}
        self._index = {name: torch.tensor(kept) for name, kept in rows.items()}
        self._kept = [
            {name: torch.full((len(kept), widths[name]), torch.nan) for name, kept in rows.items()}
            for _ in range(models)
        ]

    def take(self, model: int, piece: Slice, values: torch.Tensor) -> None:
        """Store the kept rows that lie in one slice. `values`: the elements of the slice, 1-D."""
        if piece.name not in self._index:
            return
        width, rows = self._widths[piece.name], self.rows[piece.name]
        first, last = piece.start // width, piece.stop // width
        a, b = bisect_left(rows, first), bisect_left(rows, last)
        if a < b:
            block = values.reshape(-1, width)
            if values.element_size() == 1:  # older torch cannot index 8-bit floats, but bytes
                block = block.view(torch.uint8)
            self._kept[model][piece.name][a:b] = block[self._index[piece.name][a:b] - first].view(values.dtype).float()

    def matrix(self, model: int, name: str) -> torch.Tensor:
        """The kept rows of one matrix of one model, (rows, width) float32; model 0 is the child."""
        return self._kept[model][name]

    def of(self, models: Sequence[int], ends: Mapping[str, int] | None = None) -> Units:
        """The same units of some models only, in the order given; nothing is copied.

        ends: of these matrices only the rows below that number.
        """
        last = {name: bisect_left(kept, (ends or {}).get(name, 1 << 62)) for name, kept in self.rows.items()}
        rows = {name: kept[: last[name]] for name, kept in self.rows.items()}
        chosen = Units(rows, self._widths, 0)
        chosen._kept = [{n: kept[: len(rows[n])] for n, kept in self._kept[model].items()} for model in models]
        return chosen

    def __contains__(self, name: str) -> bool:
        return name in self._index
