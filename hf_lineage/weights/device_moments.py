"""The moments of many slices at once on an accelerator: few long operations in place of many short ones.

The same sums as `moments.block_moments`, in the same precision. Slices of one length go together; every sum is made in
an order that follows from the length of the slice alone, so neither from the other slices nor from the other models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch

from ..placement import sent
from .moments import (
    CHUNK,
    NARROW,
    ROW,
    SMALL,
    Moments,
    block_moments,
    doubtful,
    fill_in,
    lost_rows,
    put_together,
    relatives_of_pivot,
    with_copies,
)

Rows = Sequence[torch.Tensor]  # the same entries of M models, the pivot first


def slice_moments(
    slices: Sequence[Rows], device: torch.device, fourth: bool = True, relatives: bool = False
) -> list[Moments]:  # fmt: skip
    """The moments of each slice: M tensors of n entries, as `block_moments` takes them.

    On the processor they are made one by one, as on MPS, which has no float64. On another accelerator those of long
    slices of float32 and shorter dtypes are made together. Memory there: 4·(M + 3) bytes for each entry that goes
    together, 8·(M + 3) with fourth.
    """
    if device.type in ("cpu", "mps"):
        return [block_moments(rows, fourth, relatives) for rows in slices]
    return moments_on(slices, device, fourth, relatives)


def moments_on(slices: Sequence[Rows], device: torch.device, fourth: bool, relatives: bool) -> list[Moments]:
    """`slice_moments` by the operations for accelerators, which run on any device."""
    found: dict[int, Moments] = {}
    for group in _groups(slices):
        made = _together([slices[i] for i in group], device, fourth, relatives)
        found |= {i: moments for i, moments in zip(group, made, strict=True) if moments is not None}
    return [found[i] if i in found else block_moments(rows, fourth, relatives) for i, rows in enumerate(slices)]


def _groups(slices: Sequence[Rows]) -> Iterator[list[int]]:
    """Numbers of slices that can be worked on together; of some there is no group."""
    alike: dict[tuple, list[int]] = {}
    for i, rows in enumerate(slices):
        if rows[0].numel() > SMALL and all(row.dtype in NARROW or row.dtype.itemsize == 1 for row in rows):
            alike.setdefault((rows[0].numel(), *(row.dtype for row in rows)), []).append(i)
    yield from alike.values()


def _together(slices: Sequence[Rows], device: torch.device, fourth: bool, relatives: bool) -> list[Moments | None]:
    """The moments of K slices of one length and the same dtypes; None of one of which float32 may have lost squares."""
    count, models = slices[0][0].numel(), len(slices[0])
    rows = [_taken([one[i] for one in slices], device) for i in range(models)]
    for row in rows[1:]:
        row -= rows[0]
    single = _with_pivot(rows, sums=True)
    first, rest = (_folded(part) for part in (single[..., : CHUNK // ROW], single[..., CHUNK // ROW :]))
    chosen = [[*range(1, models)]] * len(slices)
    if relatives and models > 2:
        begun = min(count, CHUNK)
        chosen = [relatives_of_pivot(put_together(begun, first[:, :, [k]])) for k in range(len(slices))]
    sums, gram = first + rest, _among(rows, chosen)
    squares = np.zeros_like(gram)
    if fourth:
        for row in rows:
            row *= row
        sums = np.concatenate([sums, _folded(_with_pivot(rows, sums=False))])
        squares = _among(rows, chosen)
    fill_in(gram, squares, sums.swapaxes(1, 2))
    made = [with_copies(Moments(count, gram[k], sums[2, :, k], squares[k]), one) for k, one in enumerate(slices)]
    asked = np.any(doubtful(sums[1], count), axis=0)
    return [None if asked[k] and lost_rows(slices[k], moments) else moments for k, moments in enumerate(made)]


def _taken(pieces: Rows, device: torch.device) -> torch.Tensor:
    """The same entries of one model in K slices, as float32: (K, n / ROW, ROW), zeros behind the last entry."""
    runs = [sent(run.view(torch.uint8), device) for run in _runs(pieces)]  # bytes: not all dtypes can be joined
    stored = (torch.cat(runs) if len(runs) > 1 else runs[0]).view(pieces[0].dtype).unflatten(0, (len(pieces), -1))
    wide = torch.nn.functional.pad(stored.to(torch.float32, copy=True), (0, -len(pieces[0]) % ROW))
    return wide.unflatten(1, (-1, ROW))


def _runs(pieces: Rows) -> Iterator[torch.Tensor]:
    """The pieces, 1-D; neighbours in memory as one."""
    length, first = len(pieces[0]), 0
    for i in range(1, len(pieces) + 1):
        here, end = pieces[first], i == len(pieces)
        follows = not end and (
            pieces[i].data_ptr() == here.data_ptr() + (i - first) * length * here.itemsize
            and pieces[i].untyped_storage().data_ptr() == here.untyped_storage().data_ptr()
        )
        if not follows:
            yield here.as_strided(((i - first) * length,), (1,)) if i - first > 1 else here
            first = i


def _with_pivot(rows: Sequence[torch.Tensor], sums: bool) -> torch.Tensor:
    """Of every `ROW` entries of each row the product with the pivot's, with themselves, and their sum:
    (2 or 3, M, K, n / ROW)."""
    made = []
    for i, row in enumerate(rows):
        own = (row * row).sum(-1)
        made += [(row * rows[0]).sum(-1) if i else own, own, *([row.sum(-1)] if sums else [])]
    return torch.stack(made).unflatten(0, (len(rows), -1)).transpose(0, 1)


def _among(rows: Sequence[torch.Tensor], chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """Products of the chosen rows of each slice with one another, (K, M, M); NaN of those not chosen."""
    table = np.zeros((len(chosen), len(rows), len(rows)))
    for i, j in combinations(sorted({i for some in chosen for i in some}), 2):
        table[:, i, j] = table[:, j, i] = _folded((rows[i] * rows[j]).sum(-1))
    for k, some in enumerate(chosen):
        left = [i for i in range(1, len(rows)) if i not in some]
        table[k, left, 1:] = table[k, 1:, left] = np.nan
    return table


def _folded(sums: torch.Tensor) -> np.ndarray:
    """Sums over the last axis in float64, half onto half: of each the same whatever else the tensor holds."""
    wide = sums.double()
    while (length := wide.shape[-1]) > 1:
        half = length // 2
        wide = torch.cat([wide[..., :half] + wide[..., half : 2 * half], wide[..., 2 * half :]], -1)
    return wide.sum(-1).cpu().numpy()
