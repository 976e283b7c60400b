"""Packed weights: a group of tensors (codes beside scales) appears as one float tensor of the unpacked name and shape.

PACKINGS is the registry of the layouts. `unpacked` puts them in place of their parts: everything above sees floats, a
range of which is made from the ranges of its parts when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from ...checkpoint import Checkpoint, Wrapper
from ...entry import Entry, Slice
from .bitsandbytes import BITSANDBYTES
from .fp4 import MXFP4_EXPERTS, MXFP4_MLX, MXFP4_PACKED, NVFP4, NVFP4_MODELOPT
from .gptq import GPTQ
from .hqq import HQQ
from .integers import COMPRESSED, MLX
from .matrix import PackedMatrix, Parts, Scheme, UnpackableError
from .scaled import QUANTO, SCALED, SCALED_PARAMETER, TORCHAO

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20  # elements that are unpacked at once
KEPT = 1 << 29  # bytes of parts that are kept while a matrix stored by its columns is read, row by row
SMALL = 1 << 16  # bytes of a part that says how the others are packed

# In the order in which they are tried: what names more parts comes before what names fewer
PACKINGS: dict[str, Scheme] = {
    "bitsandbytes 4 bits": BITSANDBYTES,
    "gptq, awq": GPTQ,
    "compressed-tensors": COMPRESSED,
    "nvfp4 compressed-tensors": NVFP4,
    "nvfp4 modelopt": NVFP4_MODELOPT,
    "mxfp4 compressed-tensors": MXFP4_PACKED,
    "mxfp4 experts": MXFP4_EXPERTS,
    "mlx": MLX,
    "mxfp4 mlx": MXFP4_MLX,
    "hqq": HQQ,
    "quanto": QUANTO,
    "torchao": TORCHAO,
    "scaled": SCALED,
    "scaled parameter": SCALED_PARAMETER,
}


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its packed tensors as floats; the very same where none is packed. Costs the few bytes that
    some layouts need to know a shape, all of them in one read.

    Parts that do not fit each other are left out, and named in `skipped` with what was expected.
    """
    left = dict(checkpoint.items())
    dtypes = {entry.dtype for entry in left.values()}
    matrices: dict[str, PackedMatrix] = {}
    broken: dict[str, tuple[Entry, ...]] = {}
    for scheme in (scheme for scheme in PACKINGS.values() if not dtypes.isdisjoint(scheme.dtypes)):
        found = {parts.name: parts for parts in _find(scheme, left)}
        if not found:
            continue
        small = _small(checkpoint, scheme, [*found.values()])
        for name, parts in found.items():
            used = {entry.name for entry in parts.entries.values()}
            if not used <= left.keys() or name in matrices:  # two claim one part: names are the author's
                continue
            try:
                matrices[name] = _build(scheme, parts, small, checkpoint)
            except UnpackableError as error:
                broken[f"{name} (expected {error})"] = tuple(parts.entries.values())
            for part in used:
                del left[part]
    if not matrices and not broken:
        return checkpoint
    return PackedCheckpoint(checkpoint, left, matrices, broken)


class PackedCheckpoint(Wrapper):
    """A checkpoint some of whose tensors are packed. `read` gives floats for these; the bytes that are counted are
    those of their parts."""

    def __init__(
        self, checkpoint: Checkpoint, left: Mapping[str, Entry], matrices: Mapping[str, PackedMatrix],
        broken: Mapping[str, Sequence[Entry]],
    ) -> None:  # fmt: skip
        entries = {name: entry for name, entry in left.items() if name not in matrices}
        for name, matrix in matrices.items():
            nbytes = sum(checkpoint[part].nbytes for part in matrix.parts)
            entries[name] = Entry(name, matrix.dtype, matrix.shape, nbytes, packing=matrix.packing)
        super().__init__(checkpoint, entries)
        self.repo, self.notes, self.adapter_base = checkpoint.repo, checkpoint.notes, checkpoint.adapter_base
        self.skipped = (*checkpoint.skipped, *sorted(broken))
        self.skipped_bytes = checkpoint.skipped_bytes + sum(e.nbytes for parts in broken.values() for e in parts)
        self._matrices = dict(matrices)
        self._kept: dict[Slice, torch.Tensor] = {}
        self._lock = Lock()  # batches are read ahead: two reads may run at once

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        import torch

        rows = {i: self._rows(piece) for i, piece in enumerate(slices) if piece.name in self._matrices}
        wanted = {
            i: [self._matrices[slices[i].name].slices(first, stop) for first, stop in runs] for i, runs in rows.items()
        }
        direct = [piece for i, piece in enumerate(slices) if i not in rows]
        read = self._read([*direct, *(piece for runs in wanted.values() for parts in runs for piece in parts)], slices)
        result: list[torch.Tensor] = []
        for i, piece in enumerate(slices):
            if i not in rows:
                result.append(read[piece])
                continue
            matrix, chunks = self._matrices[piece.name], []
            for (first, stop), parts in zip(rows[i], wanted[i], strict=True):
                these = [read[part] for part in parts]
                chunks.append(matrix.unpack(these, first, stop).reshape(-1))
            skip = piece.start - rows[i][0][0] * matrix.width if rows[i] else 0
            joined = chunks[0] if len(chunks) == 1 else torch.cat([torch.empty(0), *chunks])
            result.append(joined[skip : skip + piece.stop - piece.start])
        return result

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`Checkpoint.cells`, of packed tensors by `PackedMatrix.edges`."""
        import torch

        if piece.name not in self._matrices:
            return self._checkpoint.cells(piece)
        matrix = self._matrices[piece.name]
        sides: list[tuple[torch.Tensor, torch.Tensor]] = []
        runs = self._rows(piece)
        for first, stop in runs:
            parts = matrix.slices(first, stop)
            read = self._read(parts, [piece])
            if (edges := matrix.edges([read[part] for part in parts], first, stop)) is None:
                return None
            sides.append((edges[0].reshape(-1), edges[1].reshape(-1)))
        skip = piece.start - runs[0][0] * matrix.width if runs else 0
        lows, highs = (torch.cat([side[k] for side in sides])[skip : skip + piece.stop - piece.start] for k in (0, 1))
        return lows, highs

    def _rows(self, piece: Slice) -> list[tuple[int, int]]:
        """The rows that a slice touches, in runs of about `CHUNK` elements. Raises `IndexError`."""
        matrix = self._matrices[piece.name]
        if not 0 <= piece.start <= piece.stop <= self[piece.name].count:
            raise IndexError(f"Expected a slice within 0 to {self[piece.name].count} of {piece.name!r}, got {piece}.")
        if piece.start == piece.stop:
            return []
        first, stop, step = piece.start // matrix.width, -(-piece.stop // matrix.width), max(1, CHUNK // matrix.width)
        return [(row, min(row + step, stop)) for row in range(first, stop, step)]

    def _read(self, wanted: Sequence[Slice], asked: Sequence[Slice]) -> dict[Slice, torch.Tensor]:
        """Each part once; those of matrices stored by columns are kept until others are read, up to `KEPT` bytes."""
        with self._lock:
            kept = dict(self._kept)
        missing = [piece for piece in dict.fromkeys(wanted) if piece not in kept]
        read = dict(zip(missing, self._checkpoint.read(missing), strict=True))
        strided = {part for piece in asked if (m := self._matrices.get(piece.name)) and m.strided for part in m.parts}
        found = {piece: read[piece] if piece in read else kept[piece] for piece in wanted}
        if strided:
            stay = {piece: values for piece, values in found.items() if piece.name in strided}
            with self._lock:
                self._kept = stay if sum(values.nbytes for values in stay.values()) <= KEPT else {}
        return found


def _find(scheme: Scheme, entries: Mapping[str, Entry]) -> Iterator[Parts]:
    """The packed tensors of a scheme, by names and dtypes; a part that no other can be has the anchor alone."""
    for name, entry in entries.items():
        if not name.endswith(scheme.anchor) or entry.dtype not in scheme.dtypes:
            continue
        module = name.removesuffix(scheme.anchor)
        parts = {"codes": entry}
        for role, endings in scheme.roles.items():
            if part := next((entries[module + end] for end in endings if module + end in entries), None):
                parts[role] = part
        if not parts.keys() >= {*scheme.required} and not scheme.sure:
            continue
        parts |= {end: entries[module + end] for end in scheme.extras if module + end in entries}
        yield Parts(module + scheme.becomes, parts, {}, dict)


def _small(checkpoint: Checkpoint, scheme: Scheme, found: Sequence[Parts]) -> dict[str, torch.Tensor]:
    """The parts that say how others are packed, by name."""
    names = [
        parts[role].name for parts in found for role in scheme.small if role in parts and parts[role].nbytes <= SMALL
    ]
    return dict(zip(names, checkpoint.whole(names), strict=True)) if names else {}


def _build(scheme: Scheme, parts: Parts, small: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> PackedMatrix:
    lacking = [role for role in scheme.required if role not in parts]
    if lacking:
        raise UnpackableError(f"its part {scheme.roles[lacking[0]][0]!r} beside {scheme.anchor!r}")
    values = {role: small[parts[role].name] for role in scheme.small if role in parts and parts[role].name in small}
    if any(role in parts and role not in values for role in scheme.small):
        raise UnpackableError(f"a description of at most {SMALL:,} bytes")
    return scheme.build(Parts(parts.name, parts.entries, values, lambda: checkpoint.config))
