"""Safetensors headers and indexes, read as untrusted input: checked in full before any memory is taken.

Format: 8 bytes little-endian length N, N bytes of JSON (name → dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import BrokenFileError, CheckpointError, Note, NoWeightsError
from ..checkpoint import FILES_AT_ONCE, FileCheckpoint, Source
from ..dtypes import BITS
from ..entry import Entry
from ..local import LocalRepo

if TYPE_CHECKING:
    from ...hub.client import HubRepo

FIRST_READ = 1 << 14  # bytes of the first look at a file: most headers of small models fit
MAX_HEADER = 25_000_000  # the Hub's own limit (huggingface_hub SAFETENSORS_MAX_HEADER_LENGTH)
MAX_DIMENSIONS = 32  # of one tensor; the product of many large ones would take hours
MAX_INDEX = 64_000_000  # bytes of a `*.index.json`; the largest published ones are near 10 MB


def header_length(prefix: bytes, size: int, where: str) -> int:
    """N, from the first 8 bytes of a file of `size` bytes. Raises `BrokenFileError`."""
    if len(prefix) < 8 or size < 8:
        _broken(where, f"expected a safetensors file, got {size} bytes")
    if prefix[:8] == b"version ":
        _broken(where, "it is a git-lfs pointer, not the weights", "run `git lfs pull` in its folder")
    length = int.from_bytes(prefix[:8], "little")
    if length > size - 8:
        _broken(where, f"its header claims {length:,} bytes, but the file has only {size:,}")
    if length > MAX_HEADER:
        _broken(where, f"its header claims {length:,} bytes, more than the {MAX_HEADER:,} allowed")
    return length


def parse_header(raw: bytes, size: int, where: str, file: int = 0) -> tuple[dict[str, Entry], list[str]]:
    """The entries of a header `raw` in a file of `size` bytes, and the tensors left out for an unknown dtype.

    The data must be covered by the tensors exactly: no gap, no overlap, nothing outside, each tensor as long as
    its shape and dtype say. Raises `BrokenFileError` with the file's name and what contradicts what.
    """
    document = _load_json(raw, where)
    document.pop("__metadata__", None)
    base = 8 + len(raw)
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    unknown: list[str] = []
    for name, value in document.items():
        dtype, shape, begin, end = _tensor(name, value, where)
        spans.append((begin, end, name))
        if dtype not in BITS:
            unknown.append(f"{name} ({dtype[:20]})")
            continue
        if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
            _broken(where, f"tensor {name[:80]!r} of shape {shape[:8]} and {dtype} does not fill {end - begin} bytes")
        if dtype == "C64":  # real and imaginary parts are weights like any other
            dtype, shape = "F32", [*shape, 2]
        entries[name] = Entry(name, dtype, tuple(shape), end - begin, file, base + begin)
    _check_cover(spans, size - base, where)
    return entries, unknown


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    """Tensor name → shard file name, from a `*.index.json`; a shard must lie beside its index."""
    weight_map = _load_json(raw, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _broken(where, "expected a `weight_map` from tensor names to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith((".safetensors", ".bin")):
            _broken(where, f"tensor {name[:80]!r} points to {str(shard)[:80]!r}, which is no weights file")
        if "/" in shard or "\\" in shard or shard.startswith(".") or "\0" in shard:
            _broken(where, f"tensor {name[:80]!r} points outside its folder, to {shard[:80]!r}")
    return weight_map


def _tensor(name: str, value: Any, where: str) -> tuple[str, list[int], int, int]:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _broken(where, f"tensor {name[:80]!r} needs `dtype`, `shape` and `data_offsets`")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
        _broken(where, f"tensor {name[:80]!r} has {len(shape):,} dimensions")
    if any("\ud800" <= ch <= "\udfff" for ch in name):
        _broken(where, f"tensor {name[:80]!a} has a name that is no text")
    if not isinstance(dtype, str) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        _broken(where, f"tensor {name[:80]!r} has a shape or offset that is no natural number")
    if begin > end:
        _broken(where, f"tensor {name[:80]!r} ends at {end} before it begins at {begin}")
    return dtype, shape, begin, end


def _check_cover(spans: list[tuple[int, int, str]], size: int, where: str) -> None:
    at = 0
    for begin, end, name in sorted(spans):
        if begin < at:
            _broken(where, f"tensor {name[:80]!r} overlaps the one before it")
        if begin > at:
            _broken(where, f"there is a hole of {begin - at:,} bytes before tensor {name[:80]!r}")
        at = end
    if at > size:
        _broken(where, f"its tensors end at byte {at:,} of the data, but only {size:,} bytes are there: truncated")
    if at < size:
        _broken(where, f"{size - at:,} bytes follow the last tensor")


def _load_json(raw: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name occurs twice")
        return result

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _broken(where, f"its JSON cannot be read ({str(error)[:80]})")
    if not isinstance(document, dict):
        _broken(where, "expected a JSON object")
    return document


def _broken(where: str, why: str, hint: str = "") -> NoReturn:
    broken, again = f"`{where}` is broken: {why}", "Download or export it again."
    text = f"{broken}; {hint}. {again}" if hint else f"{broken}. {again}"
    raise BrokenFileError(Note("broken_file", f"{broken}. {again}", hint, text=text))


# Root files in the order they are looked for; the first that is there, or its index, is the model.
SAFETENSORS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")


def find_adapter(repo: LocalRepo | HubRepo) -> list[str]:
    """The weights of a LoRA adapter in PEFT's layout, if the repo is one."""
    return [ADAPTER[0]] if set(ADAPTER) <= repo.files and not repo.only else []


def open_adapter(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> FileCheckpoint:
    """The adapter, which names its base. Raises `CheckpointError` where its config names none."""
    checkpoint = open_files(repo, names)
    checkpoint.adapter_base = _adapter_base(repo)
    return checkpoint


def find_safetensors(repo: LocalRepo | HubRepo) -> list[str]:
    """The file or index that is the model: the one that was named, one of SAFETENSORS, or the only one there is.

    Raises `NoWeightsError` where there are several and nothing says which is meant.
    """
    found = sorted(name for name in repo.files if name.endswith(".safetensors") and "/" not in name)
    for name in SAFETENSORS:
        for file in (name, f"{name}.index.json"):
            if file in repo.files:
                return [file]
    if repo.only and repo.only.endswith((".safetensors", ".safetensors.index.json")):
        return [repo.only]
    if len(found) > 1:
        raise NoWeightsError(
            f"Expected one `model.safetensors` (or its index) in `{repo.ref.name}`, found {len(found)} files: "
            f"{', '.join(found[:4])}.",
            "Pass the path of the one that is meant.",
        )
    return found


def open_safetensors(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> FileCheckpoint:
    """The model in one file, or in the shards of an index."""
    return open_shards(repo, names[0]) if names[0].endswith(".index.json") else open_files(repo, names)


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


def open_shards(repo: LocalRepo | HubRepo, index: str) -> FileCheckpoint:
    """All files of an index. Raises `BrokenFileError` where it and they do not agree."""
    where = f"{repo.ref.name}/{index}"
    shard_of = parse_index(repo.read_small(index, MAX_INDEX), where)
    shards = sorted(set(shard_of.values()))
    if missing := [shard for shard in shards if shard not in repo.files]:
        raise BrokenFileError(f"`{where}` names {missing[0]!r}, which is not there. Get the missing shards.")
    checkpoint = open_files(repo, shards)
    if lost := shard_of.keys() - checkpoint.keys() - set(checkpoint.skipped):
        raise BrokenFileError(f"`{where}` promises tensor {min(lost)[:80]!r}, but no shard holds it. Get it again.")
    return checkpoint


def open_files(repo: LocalRepo | HubRepo, names: Sequence[str]) -> FileCheckpoint:
    """Files whose tensors together are the model; reads their headers, several at once. Raises `BrokenFileError`."""
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

    with ThreadPoolExecutor(min(FILES_AT_ONCE, len(names))) as pool:
        looked = list(pool.map(look, enumerate(names)))
    entries: dict[str, Entry] = {}
    for (_, found, _), name in zip(looked, names, strict=True):
        if twice := found.keys() & entries.keys():
            raise BrokenFileError(f"`{repo.ref.name}/{name}` repeats tensor {min(twice)[:80]!r} of another shard.")
        entries |= found
    checkpoint = FileCheckpoint(repo.ref, repo.requested, [source for source, _, _ in looked], entries, remote)
    checkpoint.skipped = tuple(sorted(name for _, _, names_left in looked for name in names_left))
    return checkpoint
