"""Checkpoints: lazy, read-only mappings from tensor name to dtype and shape, with slices read on demand.

Opening costs the headers. `read` copies exactly the slices asked for, from a memory-mapped file, by HTTP range,
or from memory, and counts the bytes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..answers.refs import ModelRef
from ..architecture.describe import Architecture, describe
from ..errors import Note
from .buffers import Buffer
from .dtypes import BITS, decode, float_cells, packing_of, torch_dtypes
from .entry import Entry, Slice
from .local import LocalRepo
from .texts import MAX_TEXT, card_data, json_data, yaml_documents

if TYPE_CHECKING:
    import torch

    from ..hub.client import HubRepo

FILES_AT_ONCE = 8  # of one model that are read in parallel

ADAPTER_CONFIG = "adapter_config.json"
OTHER_RECIPES = ("config.yaml", "config.yml")  # of anybody: a recipe only where it names a method
RECIPES = (
    "mergekit_config.yml", "mergekit_config.yaml", "mergekit_moe_config.yml", "mergekit_moe_config.yaml",
    *OTHER_RECIPES,
)  # fmt: skip
MAX_RECIPE = 1 << 18  # bytes of a mergekit recipe; a longer one is ignored


class Source(Protocol):
    """Bytes of one file: `LocalFile` or `RemoteFile`."""

    name: str
    size: int
    bytes_read: int

    def read(self, extents: Sequence[tuple[int, int]]) -> Sequence[Buffer]: ...


class Checkpoint(Mapping[str, Entry], abc.ABC):
    """name → `Entry`, and `read` for the values. Laws, tested for every kind:

    looking is free: iterating and `checkpoint[name].shape` read no weights;
    exact: `read([Slice(name, a, b)])` equals the flattened tensor's `[a:b]`, in the stored dtype;
    counted: `bytes_read` grows by the bytes that were fetched.
    """

    def __init__(self, ref: ModelRef, requested: str, entries: dict[str, Entry]) -> None:
        self.ref = ref
        self.requested = requested
        self.adapter_base: str | None = None  # of an adapter, which has no weights of its own: "" where it is not known
        self.skipped: tuple[str, ...] = ()  # tensors of an unknown dtype, and how many bytes they are
        self.skipped_bytes = 0
        self.notes: tuple[Note, ...] = ()  # about its files, for the answer
        self.origin = 0  # tells two modules of one class apart
        self.repo: LocalRepo | HubRepo | None = None  # its small files; None for a module
        self._entries = entries

    @cached_property
    def card(self) -> dict:
        """Metadata of README.md; empty where there are none. What the Hub does not tell of them is read when first
        asked for."""
        if self.repo is None:
            return {}
        return self.repo.card or card_data(self.repo.read_card(MAX_TEXT))

    @cached_property
    def config(self) -> dict:
        """`config.json`; empty where there is none, or, with a note, where it is no JSON object. Fetched when first
        asked for."""
        raw = self.repo.read_optional("config.json", MAX_TEXT) if self.repo else b""
        found = json_data(raw)
        if raw and not found and raw.strip() != b"{}":
            told = f"The `config.json` of {self.ref.name} is no JSON object: what it declares is not known."
            self.notes += (Note("config_not_read", told),)
        return found

    @cached_property
    def adapter_config(self) -> dict:
        """`adapter_config.json`; empty where there is none. Fetched when first asked for."""
        if self.repo is None or ADAPTER_CONFIG not in self.repo.files:
            return {}
        return json_data(self.repo.read_optional(ADAPTER_CONFIG, MAX_TEXT))

    @property
    def committed(self) -> str | None:
        """When its commit was made, as the Hub says, in ISO 8601; None of what is local."""
        return self.repo.committed if self.repo else None

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter, which holds no weights of its own."""
        return self.adapter_base is not None

    @property
    def base_hint(self) -> str:
        """Of an adapter, what to name instead of it, for the end of a sentence; "" where that is not known."""
        return f"; name its base, {self.adapter_base}" if self.adapter_base else ""

    @cached_property
    def recipes(self) -> list[dict]:
        """The documents that mergekit made the model from; empty where it did not. Fetched when first asked for."""
        if self.repo is None:
            return []
        for name in RECIPES:
            if name in self.repo.files:
                found = yaml_documents(self.repo.read_optional(name, MAX_RECIPE))
                if name not in OTHER_RECIPES or any("merge_method" in document for document in found):
                    return found
        return []

    @cached_property
    def architecture(self) -> Architecture:
        """What the tensors are, by names and shapes; worked out when first asked for."""
        return describe(self)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    @abc.abstractmethod
    def bytes_read(self) -> int:
        """Bytes fetched so far, headers included."""

    @property
    @abc.abstractmethod
    def remote(self) -> bool:
        """Whether reading costs network traffic."""

    @abc.abstractmethod
    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        """The elements of each slice as a 1-D tensor on the CPU, in the order asked."""

    def keep(self, room: int) -> None:
        """Cache what is read from now on, up to `room` bytes in all, where reading is slow: the same slices may be
        asked for again."""

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of a packed tensor: between which two numbers lies what was rounded to each value of a slice, 1-D float32
        each; infinite at the ends of the scale. None of a tensor that is not packed."""
        entry = self[piece.name]
        if packing_of(entry.dtype) is None:
            return None
        return float_cells(self.read([piece])[0], entry.dtype)

    def whole(self, names: Sequence[str]) -> list[torch.Tensor]:
        """The named tensors, each in its stored dtype and shape, in the order asked."""
        pieces = self.read([Slice(name, 0, self[name].count) for name in names])
        return [piece.reshape(self[name].shape) for name, piece in zip(names, pieces, strict=True)]


class HeaderCheckpoint(Checkpoint):
    """Names, dtypes and shapes, and nothing to read."""

    def __init__(self, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        entries = {
            n: Entry(n, dtype, shape, math.prod(shape) * BITS[dtype] // 8) for n, (dtype, shape) in shapes.items()
        }
        super().__init__(ModelRef("local", "./header"), "./header", entries)

    @property
    def bytes_read(self) -> int:
        return 0

    @property
    def remote(self) -> bool:
        return False

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        raise NotImplementedError("a header holds no values")


class Wrapper(Checkpoint):
    """A checkpoint that shows another one differently; what is read and counted is the wrapped one's."""

    def __init__(self, checkpoint: Checkpoint, entries: dict[str, Entry]) -> None:
        super().__init__(checkpoint.ref, checkpoint.requested, entries)
        self._checkpoint = checkpoint

    def keep(self, room: int) -> None:
        self._checkpoint.keep(room)

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self._checkpoint.cells(piece)

    @property
    def bytes_read(self) -> int:
        return self._checkpoint.bytes_read

    @property
    def remote(self) -> bool:
        return self._checkpoint.remote


class FileCheckpoint(Checkpoint):
    """Safetensors files, local or remote."""

    def __init__(
        self, ref: ModelRef, requested: str, sources: Sequence[Source], entries: dict[str, Entry], remote: bool = False
    ) -> None:
        super().__init__(ref, requested, entries)
        self._sources, self._remote = sources, remote
        self._kept: dict[Slice, torch.Tensor] = {}
        self._room = 0  # bytes that may still be kept

    def keep(self, room: int) -> None:
        self._room = room

    @property
    def bytes_read(self) -> int:
        return sum(source.bytes_read for source in self._sources)

    @property
    def remote(self) -> bool:
        return self._remote

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        missing = [piece for piece in slices if piece not in self._kept]
        found = dict(zip(missing, self._fetch(missing), strict=True))
        for piece, values in found.items():
            if values.nbytes <= self._room:
                self._kept[piece], self._room = values.clone(), self._room - values.nbytes
        return [found[piece] if piece in found else self._kept[piece].clone() for piece in slices]

    def _fetch(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        wanted: dict[int, list[tuple[int, Slice]]] = {}
        for position, piece in enumerate(slices):
            wanted.setdefault(self[piece.name].file, []).append((position, piece))
        result: dict[int, torch.Tensor] = {}

        def read_file(file: int) -> None:
            runs = list(self._runs([piece for _, piece in wanted[file]]))
            buffers = self._sources[file].read([self._extent(run) for run, _ in runs])
            found: list[torch.Tensor] = []
            for (run, lengths), buffer in zip(runs, buffers, strict=True):
                values = decode(buffer, self[run.name].dtype, run)
                found += values.split(lengths) if len(lengths) > 1 else (values,)
            result.update(zip((position for position, _ in wanted[file]), found, strict=True))

        if self._remote and len(wanted) > 1:
            with ThreadPoolExecutor(min(FILES_AT_ONCE, len(wanted)), thread_name_prefix="hf-lineage-shard") as pool:
                list(pool.map(read_file, wanted))
        else:
            for file in wanted:
                read_file(file)
        return [result[position] for position in range(len(slices))]

    def _runs(self, pieces: Sequence[Slice]) -> Iterator[tuple[Slice, list[int]]]:
        """Neighbours in a local file that are asked for one after the other are read at once: (all of them, the length
        of each). What is stored in halves of bytes is not joined."""
        run, lengths = pieces[0], [pieces[0].stop - pieces[0].start]
        for piece in pieces[1:]:
            joined = piece.name == run.name and piece.start == run.stop and piece.stop > piece.start > run.start
            if joined and not self._remote and BITS[self[run.name].dtype] >= 8:
                run = Slice(run.name, run.start, piece.stop)
                lengths.append(piece.stop - piece.start)
                continue
            yield run, lengths
            run, lengths = piece, [piece.stop - piece.start]
        yield run, lengths

    def _extent(self, piece: Slice) -> tuple[int, int]:
        entry = self[piece.name]
        if not 0 <= piece.start <= piece.stop <= entry.count:
            raise IndexError(f"Expected a slice within 0 to {entry.count} of {entry.name!r}, got {piece}.")
        bits = BITS[entry.dtype]
        return entry.start + piece.start * bits // 8, entry.start + -(-piece.stop * bits // 8)


class MemoryCheckpoint(Checkpoint):
    """Tensors in memory: those of a module, or of a pickled state dict after `torch.load`."""

    def __init__(self, ref: ModelRef, requested: str, tensors: Mapping[str, torch.Tensor], loaded: int = 0) -> None:
        names = {dtype: name for name, dtype in torch_dtypes().items()}
        entries = {
            name: Entry(name, names[t.dtype], tuple(t.shape), t.nbytes, packing=packing_of(names[t.dtype]))
            for name, t in tensors.items()
            if t.dtype in names and not t.is_sparse and t.device.type != "meta"
        }
        super().__init__(ref, requested, entries)
        self.skipped = tuple(sorted(tensors.keys() - entries.keys()))
        self._tensors, self._bytes_read = tensors, loaded

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    @property
    def remote(self) -> bool:
        return False

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        parts = [self._tensors[s.name].detach().reshape(-1)[s.start : s.stop].cpu() for s in slices]
        self._bytes_read += sum(part.nbytes for part in parts)
        return parts
