"""`Units`: the same whole hidden units (rows of a matrix) of every checkpoint, held in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..checkpoints.entry import Slice


class Units:
    """Collects chosen rows of chosen matrices while slices of them stream past.

    `rows[name]` are the row numbers kept of matrix `name`, ascending; `matrix(model, name)` is (rows, width),
    float32. A slice holds whole rows (`sample.grid` cuts so).
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
        """Keep what is wanted of one slice's values."""
        if piece.name not in self._index:
            return
        width, index = self._widths[piece.name], self._index[piece.name]
        first, last = piece.start // width, piece.stop // width
        a, b = (int(v) for v in torch.searchsorted(index, torch.tensor([first, last])))
        if a < b:
            block = values.reshape(-1, width)
            self._kept[model][piece.name][a:b] = block[index[a:b] - first].float()

    def matrix(self, model: int, name: str) -> torch.Tensor:
        """Kept units of one matrix of one model, (rows, width)."""
        return self._kept[model][name]

    def __contains__(self, name: str) -> bool:
        return name in self._index
