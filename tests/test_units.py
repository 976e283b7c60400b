"""Units: exactly the chosen rows, however the tensor is cut into slices."""

from __future__ import annotations

import pytest
import torch

from hf_lineage.weights.sampling import BLOCK, grid
from hf_lineage.weights.units import Units


@pytest.mark.parametrize("shape", [(50, 8), (3000, 300), (64, 3, 7, 7), (40, BLOCK), (33, BLOCK + 5)])
def test_rows_arrive_whole(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    width = value[0].numel()
    rows = tuple(range(0, shape[0], 3))
    units = Units({"t": rows}, {"t": width}, models=2)
    for piece in grid("t", shape):
        units.take(1, piece, value.flatten()[piece.start : piece.stop])
        units.take(1, type(piece)("other", 0, 4), torch.zeros(4))
    assert torch.equal(units.matrix(1, "t"), value.reshape(shape[0], width)[list(rows)])
    assert units.matrix(0, "t").isnan().all() and "t" in units and "other" not in units
