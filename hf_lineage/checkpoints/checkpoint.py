"""Checkpoints: lazy, read-only mappings from tensor name to dtype and shape, with slices read on demand.

Opening costs the headers. `read` copies exactly the slices asked for, from a memory-mapped file, by HTTP range,
or from memory, and counts the bytes.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..answers.lineage import Entry, ModelRef, Slice
from ..errors import ArgumentError, BrokenFileError, CheckpointError, NoWeightsError, PickleRefusedError
from .formats.safetensors import BITS, MAX_INDEX, header_length, parse_header, parse_index
from .local import LocalRepo, repo_of
from .texts import MAX_TEXT, json_data, yaml_data

if TYPE_CHECKING:
    import torch

    from ..hub.client import Hub, HubRepo

SHARDS = 8  # files looked at or read at once
FIRST_READ = 1 << 14  # bytes of the first look at a file: most headers of small models fit

# Root files in the order they are looked for; the first that is there is the model.
SAFETENSORS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors")
PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "pytorch_model.pt")
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
RECIPES = ("mergekit_config.yml", "mergekit_config.yaml")
MAX_RECIPE = 1 << 18  # bytes of a mergekit recipe that are looked at; a longer one is passed over


class Source(Protocol):
    """Bytes of one file: `LocalFile` or `RemoteFile`."""

    name: str
    size: int
    bytes_read: int

    def read(self, extents: Sequence[tuple[int, int]]) -> list[bytearray]: ...


class Checkpoint(Mapping[str, Entry], abc.ABC):
    """name → `Entry`, and `read` for the values. Laws, tested for every kind:

    looking is free: iterating and `checkpoint[name].shape` read no weights;
    exact: `read([Slice(name, a, b)])` equals the flattened tensor's `[a:b]`, in the stored dtype;
    counted: `bytes_read` grows by the bytes that were fetched.
    """

    def __init__(self, ref: ModelRef, requested: str, entries: dict[str, Entry]) -> None:
        self.ref = ref
        self.requested = requested
        self.card: dict = {}
        self.adapter_base: str | None = None
        self.skipped: tuple[str, ...] = ()
        self.origin = 0  # tells two modules of one class apart
        self.repo: LocalRepo | HubRepo | None = None  # its small files; None for a module
        self._entries = entries

    @cached_property
    def config(self) -> dict:
        """`config.json`; empty where there is none or it cannot be read. Fetched when first asked for."""
        return json_data(self.repo.read_optional("config.json", MAX_TEXT)) if self.repo else {}

    @cached_property
    def recipe(self) -> dict:
        """What mergekit made the model from; empty where it did not. Fetched when first asked for."""
        names = [name for name in RECIPES if self.repo and name in self.repo.files]
        return yaml_data(self.repo.read_optional(names[0], MAX_RECIPE)) if self.repo and names else {}

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

    def whole(self, names: Sequence[str]) -> list[torch.Tensor]:
        """The named tensors, each in its stored dtype and shape, in the order asked."""
        pieces = self.read([Slice(name, 0, self[name].count) for name in names])
        return [piece.reshape(self[name].shape) for name, piece in zip(names, pieces, strict=True)]


class Wrapper(Checkpoint):
    """Another view of a checkpoint: what is read and counted is the wrapped one's."""

    def __init__(self, checkpoint: Checkpoint, entries: dict[str, Entry]) -> None:
        super().__init__(checkpoint.ref, checkpoint.requested, entries)
        self._checkpoint = checkpoint

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
        """Remember what is read from now on, up to so many bytes: the same may be asked for again."""
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
            buffers = self._sources[file].read([self._extent(piece) for _, piece in wanted[file]])
            for (position, piece), buffer in zip(wanted[file], buffers, strict=True):
                result[position] = decode(buffer, self[piece.name].dtype, piece)

        if self._remote and len(wanted) > 1:
            with ThreadPoolExecutor(min(SHARDS, len(wanted)), thread_name_prefix="hf-lineage-shard") as pool:
                list(pool.map(read_file, wanted))
        else:
            for file in wanted:
                read_file(file)
        return [result[position] for position in range(len(slices))]

    def _extent(self, piece: Slice) -> tuple[int, int]:
        entry = self[piece.name]
        if not 0 <= piece.start <= piece.stop <= entry.count:
            raise IndexError(f"Expected a slice within 0 to {entry.count} of {entry.name!r}, got {piece}.")
        bits = BITS[entry.dtype]
        return entry.start + piece.start * bits // 8, entry.start + -(-piece.stop * bits // 8)


class MemoryCheckpoint(Checkpoint):
    """Tensors that are in memory already: a module, or a pickled state dict after `torch.load`."""

    def __init__(self, ref: ModelRef, requested: str, tensors: Mapping[str, torch.Tensor], loaded: int = 0) -> None:
        names = {dtype: name for name, dtype in _torch_dtypes().items()}
        entries = {
            name: Entry(name, names[t.dtype], tuple(t.shape), t.nbytes)
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


def open_checkpoint(
    model: str | Path | ModelRef | torch.nn.Module,
    *,
    hub: Hub | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Open a model by reference, or take a module as it is. Costs the headers.

    A repo or folder is searched for `model.safetensors`, its sharded index, the names other libraries use, or
    its only safetensors file; a LoRA adapter repo is recognised by `adapter_config.json` and names its base.
    Pickled weights are read only with `allow_pickle`, by `torch.load(weights_only=True)`.

    Raises `ModelNotFoundError`, `AccessDeniedError`, `NoWeightsError`, `PickleRefusedError`, `BrokenFileError`,
    `HubUnavailableError`.
    """
    if not isinstance(model, (str, Path, ModelRef)):
        if not callable(getattr(model, "state_dict", None)):
            raise ArgumentError(f"Expected a repo id, a path or a torch module, got {type(model).__name__}.")
        ref = ModelRef("module", f"module:{type(model).__name__}")
        module = MemoryCheckpoint(ref, str(ref), model.state_dict())
        module.origin = id(model)
        return module
    ref = ModelRef.parse(model)
    repo: LocalRepo | HubRepo
    if ref.kind == "hub":
        from ..hub.client import Hub

        repo = repo_of(ref, hub or Hub(token))
    else:
        repo = LocalRepo(ref)
    checkpoint = _open_repo(repo, allow_pickle)
    checkpoint.card, checkpoint.repo = repo.card, repo
    return checkpoint


def _open_repo(repo: LocalRepo | HubRepo, allow_pickle: bool) -> Checkpoint:
    if set(ADAPTER) <= repo.files and not repo.only:
        checkpoint = _open_files(repo, [ADAPTER[0]])
        checkpoint.adapter_base = _adapter_base(repo)
        return checkpoint
    safetensors = sorted(name for name in repo.files if name.endswith(".safetensors") and "/" not in name)
    for name in SAFETENSORS:
        if name in repo.files:
            return _open_files(repo, [name])
        if f"{name}.index.json" in repo.files:
            return _open_shards(repo, f"{name}.index.json")
    if repo.only and repo.only.endswith(".safetensors.index.json"):
        return _open_shards(repo, repo.only)
    if repo.only and repo.only.endswith(".safetensors"):
        return _open_files(repo, [repo.only])
    if len(safetensors) == 1:
        return _open_files(repo, safetensors)
    pickles = sorted(name for name in repo.files if name.endswith(PICKLE_ENDINGS) and "/" not in name)
    named = [name for name in (repo.only, *PICKLES) if name and name in pickles] or pickles[:1]
    if safetensors:
        raise NoWeightsError(
            f"Expected one `model.safetensors` (or its index) in `{repo.ref.name}`, found {len(safetensors)} files: "
            f"{', '.join(safetensors[:4])}. Pass the path of the one that is meant."
        )
    if named or any(name.endswith(".bin.index.json") for name in repo.files):
        if not allow_pickle:
            raise PickleRefusedError(
                f"`{repo.ref.name}` has only pickled weights ({', '.join(pickles[:2])}), which can run code. "
                "If you trust it, allow them: --allow-pickle, or allow_pickle=True."
            )
        return _open_pickles(repo, named)
    found = ", ".join(sorted(name for name in repo.files if name[0] != ".")[:4]) or "no file at all"
    raise NoWeightsError(
        f"Expected a `model.safetensors` in `{repo.ref.name}`, found {found}. "
        "Convert the weights with safetensors, or name another repo."
    )


def _open_shards(repo: LocalRepo | HubRepo, index: str) -> FileCheckpoint:
    where = f"{repo.ref.name}/{index}"
    shard_of = parse_index(repo.read_small(index, MAX_INDEX), where)
    shards = sorted(set(shard_of.values()))
    if missing := [shard for shard in shards if shard not in repo.files]:
        raise BrokenFileError(f"`{where}` names {missing[0]!r}, which is not there. Get the missing shards.")
    checkpoint = _open_files(repo, shards)
    if lost := shard_of.keys() - checkpoint.keys() - set(checkpoint.skipped):
        raise BrokenFileError(f"`{where}` promises tensor {min(lost)[:80]!r}, but no shard holds it. Get it again.")
    return checkpoint


def _open_files(repo: LocalRepo | HubRepo, names: Sequence[str]) -> FileCheckpoint:
    """Headers of all files, several at once."""
    remote = not isinstance(repo, LocalRepo)

    def look(job: tuple[int, str]) -> tuple[Source, dict[str, Entry], list[str]]:
        index, name = job
        source = repo.open(name)
        where = f"{repo.ref.name}/{name}" if repo.only is None else repo.ref.name
        first = source.read([(0, min(FIRST_READ if remote else 8, source.size))])[0]
        length = header_length(bytes(first[:8]), source.size, where)
        if 8 + length > len(first):
            first += source.read([(len(first), 8 + length)])[0]
        return source, *parse_header(bytes(first[8 : 8 + length]), source.size, where, index)

    with ThreadPoolExecutor(min(SHARDS, len(names))) as pool:
        looked = list(pool.map(look, enumerate(names)))
    entries: dict[str, Entry] = {}
    for (_, found, _), name in zip(looked, names, strict=True):
        if twice := found.keys() & entries.keys():
            raise BrokenFileError(f"`{repo.ref.name}/{name}` repeats tensor {min(twice)[:80]!r} of another shard.")
        entries |= found
    checkpoint = FileCheckpoint(repo.ref, repo.requested, [source for source, _, _ in looked], entries, remote)
    checkpoint.skipped = tuple(sorted(name for _, _, names_left in looked for name in names_left))
    return checkpoint


def _open_pickles(repo: LocalRepo | HubRepo, names: Sequence[str]) -> MemoryCheckpoint:
    import torch

    indexes = [name for name in sorted(repo.files) if name.endswith(".bin.index.json")]
    if indexes and (not names or names[0] not in PICKLES):
        names = sorted(set(parse_index(repo.read_small(indexes[0], MAX_INDEX), indexes[0]).values()))
    tensors: dict[str, torch.Tensor] = {}
    loaded = 0
    for name in names if indexes else names[:1]:
        path = repo.path(name)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a pickle may fail in any way; what matters is that none of it ran
            raise BrokenFileError(
                f"`{path}` does not load with torch.load(weights_only=True) ({type(error).__name__}): it is broken, "
                "or holds more than tensors."
            ) from error
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        items = state.items() if isinstance(state, dict) else ()
        tensors |= {str(k): v for k, v in items if isinstance(v, torch.Tensor)}
        loaded += path.stat().st_size
    if not tensors:
        raise NoWeightsError(f"Expected a state dict in `{repo.ref.name}/{names[0]}`, found no tensor in it.")
    return MemoryCheckpoint(repo.ref, repo.requested, tensors, loaded)


def _adapter_base(repo: LocalRepo | HubRepo) -> str:
    where = f"{repo.ref.name}/{ADAPTER[1]}"
    try:
        base = json.loads(repo.read_small(ADAPTER[1], 1_000_000))["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError("base_model_name_or_path is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"`{where}` names no base model (`base_model_name_or_path`). Name the base as the child instead."
        ) from error
    return base


# e2m1: sign, two exponent bits, one mantissa bit; two elements a byte, the lower nibble first (torch's float4)
_F4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode(buffer: bytearray, dtype: str, piece: Slice) -> torch.Tensor:
    """Raw little-endian bytes of a slice → a 1-D tensor of the matching torch dtype (F4: float32)."""
    import torch

    if piece.start == piece.stop:
        return torch.empty(0)
    raw = torch.frombuffer(buffer, dtype=torch.uint8)
    if dtype == "F4":
        nibbles = torch.stack([raw & 15, raw >> 4], dim=1).reshape(-1)
        skip = piece.start % 2
        return torch.tensor(_F4)[nibbles[skip : skip + piece.stop - piece.start].long()]
    return raw.view(_torch_dtypes()[dtype])


def _torch_dtypes() -> dict[str, torch.dtype]:
    import torch

    return {
        "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
        "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
        "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }  # fmt: skip
