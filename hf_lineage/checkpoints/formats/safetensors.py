"""Safetensors headers and indexes, read as untrusted input: checked in full before any memory is taken.

Format: 8 bytes little-endian length N, N bytes of JSON (name → dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from ...answers.refs import printable
from ...architecture.conventions import no_collection
from ...errors import BrokenFileError, Note, NoWeightsError
from ..checkpoint import FILES_AT_ONCE, FileCheckpoint, Source
from ..dtypes import BITS, packing_of
from ..entry import Entry
from ..local import LocalRepo

if TYPE_CHECKING:
    from ...hub.client import HubRepo

FIRST_READ = 1 << 14  # bytes of the first look at a file: most headers of small models fit
MAX_HEADER = 25_000_000  # the Hub's own limit (huggingface_hub SAFETENSORS_MAX_HEADER_LENGTH)
MAX_TENSORS = 500_000  # of one model; those of a thousand experts in a hundred layers are 300,000
MAX_DEPTH = 127  # of lists and objects in one another, in Rust's JSON
FIELDS = ("dtype", "shape", "data_offsets")  # in the order in which a list may have them
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")  # weights of an adapter, no model of their own
MAX_SHARDS = 10_000  # of one series
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


@no_collection()
def parse_header(raw: bytes, size: int, where: str, file: int = 0) -> tuple[dict[str, Entry], list[str]]:
    """The entries of a header `raw` in a file of `size` bytes, and the tensors left out for an unknown dtype.

    The data must be covered by the tensors exactly: no gap, no overlap, nothing outside, each tensor as long as
    its shape and dtype say. What the library safetensors accepts is accepted, what it refuses is refused, unknown
    dtypes and bounds of size aside. Raises `BrokenFileError` with the file's name and what contradicts what.
    """
    document = _load_json(raw, where)
    base = 8 + len(raw)
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # one for all tensors that have it
    unknown: list[str] = []
    tensors = {name: _tensor(name, value, where) for name, value in _tensors_of(document, where)}  # the last counts
    for name, (dtype, shape, begin, end) in tensors.items():
        if begin > end:
            _broken(where, f"tensor {name[:80]!r} ends at {end} before it begins at {begin}")
        spans.append((begin, end, name))
        if dtype not in BITS:
            unknown.append(f"{name} ({dtype[:20]})")
            continue
        if _bits(shape, BITS[dtype]) != 8 * (end - begin):
            _broken(where, f"tensor {name[:80]!r} of shape {shape[:8]} and {dtype} does not fill {end - begin} bytes")
        if dtype == "C64":  # real and imaginary parts are weights like any other
            dtype, shape = "F32", [*shape, 2]
        known = shapes.setdefault(tuple(shape), tuple(shape))
        entries[name] = Entry(name, dtype, known, end - begin, file, base + begin, packing_of(dtype))
    _check_cover(spans, size - base, where)
    return entries, unknown


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    """Tensor name → shard file name, from a `*.index.json`; a shard must lie beside its index."""
    document = _load_json(raw, where)
    weight_map = document.get("weight_map")
    if isinstance(document, _Repeated) or isinstance(weight_map, _Repeated):
        _broken(where, "a name occurs twice in it")
    if not isinstance(weight_map, dict) or not weight_map:
        _broken(where, "expected a `weight_map` from tensor names to files")
    known: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and shard in known:
            continue
        if not isinstance(shard, str) or not shard.endswith((".safetensors", ".bin")):
            _broken(where, f"tensor {name[:80]!r} points to {str(shard)[:80]!r}, which is no weights file")
        if "/" in shard or "\\" in shard or shard.startswith(".") or "\0" in shard:
            _broken(where, f"tensor {name[:80]!r} points outside its folder, to {shard[:80]!r}")
        known.add(shard)
    return weight_map


class _Repeated(dict[str, Any]):
    """A JSON object in which a name occurs twice: `pairs` has all of them, the dictionary the last."""

    pairs: list[tuple[str, Any]]

    def twice(self) -> set[str]:
        """The names that do."""
        counts = Counter(name for name, _ in self.pairs)
        return {name for name in counts if counts[name] > 1}


def _tensors_of(document: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    """The tensors of a header, one name twice among them. Its `__metadata__` are texts by name, once."""
    told = document.get("__metadata__")
    texts = told is None or (isinstance(told, dict) and all(isinstance(value, str) for _, value in _pairs(told)))
    if not texts or (isinstance(document, _Repeated) and "__metadata__" in document.twice()):
        _broken(where, "its `__metadata__` are no texts by name")
    tensors = [(name, value) for name, value in _pairs(document) if name != "__metadata__"]
    if len(tensors) > MAX_TENSORS:
        _broken(where, f"it names {len(tensors):,} tensors, more than the {MAX_TENSORS:,} allowed")
    return tensors


def _tensor(name: str, value: Any, where: str) -> tuple[str, list[int], int, int]:
    if isinstance(value, list) and len(value) == len(FIELDS):
        value = dict(zip(FIELDS, value, strict=True))
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _broken(where, f"tensor {name[:80]!r} needs `dtype`, `shape` and `data_offsets`")
    if isinstance(value, _Repeated) and value.twice() & {*FIELDS}:
        _broken(where, f"tensor {name[:80]!r} says something twice")
    if len(value) > len(FIELDS) and _depth(value) > MAX_DEPTH - 1:
        _broken(where, f"tensor {name[:80]!r} is nested too deep")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not isinstance(dtype, str) or not all(type(n) is int and 0 <= n < 2**64 for n in numbers):
        _broken(where, f"tensor {name[:80]!r} has a shape or offset that is no natural number")
    return dtype, shape, begin, end


def _bits(shape: list[int], each: int) -> int | None:
    """Bits of a tensor; None where a product on the way is no 64-bit number, in which safetensors counts."""
    count = 1
    for size in (*shape, each):
        count *= size
        if count >= 2**64:
            return None
    return count


def _depth(value: Any) -> int:
    """How deep lists and objects lie in one another."""
    return sum(1 for level in _levels(value) if any(isinstance(each, dict | list) for each in level))


def _levels(value: Any) -> Iterator[list[Any]]:
    """A value, what it holds, what that holds and so on; the names in objects, and what is there twice, included."""
    level = [value]
    while level:
        yield level
        pairs = [pair for each in level if isinstance(each, dict) for pair in _pairs(each)]
        level = [part for each in level if isinstance(each, list) for part in each]
        level += [part for pair in pairs for part in pair]


def _pairs(document: dict[str, Any]) -> list[tuple[str, Any]]:
    return document.pairs if isinstance(document, _Repeated) else [*document.items()]


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


_SURROGATE, _LONG = re.compile(rb"\\u[dD][89a-fA-F]"), re.compile(rb"-0|[0-9]{309}")


def _load_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object as strictly as RFC 8259 and Rust's reader have it; Python's takes NaN, halves of characters, −0."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(found)
        if len(result) != len(found):
            result = _Repeated(found)
            result.pairs = found
        return result

    def no_number(text: str) -> float:
        raise ValueError(f"{text[:20]} is no number")

    def real(text: str) -> float:
        return number if math.isfinite(number := float(text)) else no_number(text)

    def whole(text: str) -> int | float:
        return real(text) if text == "-0" or len(text) > 308 else int(text)

    hooks: dict[str, Any] = {"object_pairs_hook": pairs, "parse_constant": no_number, "parse_float": real}
    if _LONG.search(raw):
        hooks["parse_int"] = whole
    try:
        document = json.loads(raw.decode("utf-8"), **hooks)
        if _SURROGATE.search(raw):
            for level in _levels(document):
                "".join(each for each in level if isinstance(each, str)).encode("utf-8")
    except (ValueError, RecursionError) as error:
        _broken(where, f"its JSON cannot be read ({printable(str(error))[:80]})")
    if not isinstance(document, dict):
        _broken(where, "expected a JSON object")
    return document


def _broken(where: str, why: str, hint: str = "") -> NoReturn:
    broken, again = f"`{where}` is broken: {why}", "Download or export it again."
    text = f"{broken}; {hint}. {again}" if hint else f"{broken}. {again}"
    raise BrokenFileError(Note("broken_file", f"{broken}. {again}", hint, text=text))


# Root files in the order they are looked for; the first that is there, or its index, is the model.
SAFETENSORS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors")
SERIES = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
INDEX = ".index.json"
MOST_LOST = 0.5  # share of an index's tensors that may be in no shard, and it is still an index of these shards


def find_safetensors(repo: LocalRepo | HubRepo) -> list[str]:
    """The files that could be the model, the likeliest first: the one that was named; the index of one of SAFETENSORS,
    that file, a complete series of shards; or the only file there is.

    Raises `NoWeightsError` where there are several and nothing says which is meant.
    """
    if repo.only:
        return [repo.only] if repo.only.endswith((".safetensors", f".safetensors{INDEX}")) else []
    found = sorted(name for name in repo.files if name.endswith(".safetensors") and "/" not in name)
    series = [shards[0] for shards in _series(repo)]
    known = [file for name in SAFETENSORS for file in (f"{name}{INDEX}", name) if file in repo.files]
    if known:
        return [*known[:1], *(file for file in known[1:] if file == known[0].removesuffix(INDEX)), *series]
    if len(series) == 1:
        return series
    found = [name for name in found if name != ADAPTER[0]] or found
    if len(found) > 1:
        _raise_several(repo, found)
    return found


def open_safetensors(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> FileCheckpoint:
    """The model in one file, in the shards of an index, or in a complete series of shards.

    Where an index names files that are not there, another copy that is complete is the model, and a note says so.
    """
    first, others = names[0], names[1:]
    if not first.endswith(INDEX):
        return _open_one(repo, first)
    where = f"{repo.ref.name}/{first}"
    try:
        shard_of = parse_index(repo.read_small(first, MAX_INDEX), where)
    except BrokenFileError as error:
        trouble = error
    else:
        missing = [shard for shard in sorted({*shard_of.values()}) if shard not in repo.files]
        found = None if missing else _open_indexed(repo, where, shard_of, others)
        if found is not None:
            return found
        why = f"names {missing[0]!r}, which is not there" if missing else "promises tensors, but no shard holds them"
        trouble = BrokenFileError(f"`{where}` {why}. Get it and its shards again.")
    if not others:
        raise trouble
    checkpoint = _open_one(repo, others[0])
    told = f"{_beside(repo, others[0])} was read instead"
    checkpoint.notes += (Note("index_left_aside", f"`{where}` does not fit the files beside it: {told}."),)
    return checkpoint


def _open_indexed(
    repo: LocalRepo | HubRepo, where: str, shard_of: Mapping[str, str], others: Sequence[str]
) -> FileCheckpoint | None:
    """The shards of an index, which decides between two copies of a tensor; notes say what it does not fit. None where
    the shards hold little of what it names: it is an index of others."""
    checkpoint = open_files(repo, sorted({*shard_of.values()}), shard_of)
    lost = sorted(shard_of.keys() - checkpoint.keys() - {name.partition(" (")[0] for name in checkpoint.skipped})
    if len(lost) > MOST_LOST * len(shard_of):
        return None
    if lost:
        named = ", ".join(printable(name)[:80] for name in lost[:3]) + (f" and {len(lost) - 3} more" * (len(lost) > 3))
        checkpoint.notes += (Note("index_entry_lost", f"`{where}` promises tensors that no shard holds: {named}."),)
    stray = [name for name in others if name not in shard_of.values()]
    if stray:
        beside = f"`{where}` names the files of the model; {_beside(repo, stray[0])}, beside them, was not read."
        checkpoint.notes += (Note("copy_left_aside", beside),)
    return checkpoint


def _open_one(repo: LocalRepo | HubRepo, name: str) -> FileCheckpoint:
    """One file, or the series that it begins."""
    return open_files(repo, _series_of(repo, name))


def _series(repo: LocalRepo | HubRepo) -> list[list[str]]:
    """The complete series of numbered shards, the names of each in order."""
    parts: dict[tuple[str, int], list[str]] = {}
    for name in sorted(repo.files):
        if (match := SERIES.fullmatch(name)) and "/" not in name:
            parts.setdefault((match[1], int(match[3])), []).append(name)
    return [names for (_, count), names in parts.items() if _numbers(names) == [*range(1, count + 1)]]


def _series_of(repo: LocalRepo | HubRepo, name: str) -> list[str]:
    """The complete series that a file belongs to, else the file alone."""
    return next((shards for shards in _series(repo) if name in shards), [name])


def _numbers(names: Sequence[str]) -> list[int]:
    return [int(match[2]) for name in names if (match := SERIES.fullmatch(name))]


def _beside(repo: LocalRepo | HubRepo, name: str) -> str:
    shards = _series_of(repo, name)
    return f"the complete series {shards[0]} to {shards[-1]}" if len(shards) > 1 else shards[0]


def _raise_several(repo: LocalRepo | HubRepo, found: Sequence[str]) -> NoReturn:
    if match := next((match for name in found if (match := SERIES.fullmatch(name))), None):
        stem, count = match[1], int(match[3])
        there = _numbers(
            [name for name in found if (m := SERIES.fullmatch(name)) and m.group(1, 3) == match.group(1, 3)]
        )
        lost = [number for number in range(1, min(count, MAX_SHARDS) + 1) if number not in there]
        if lost and count <= MAX_SHARDS:
            raise NoWeightsError(
                f"Expected {count} shards `{stem}-…` in `{repo.ref.name}`, found {len(there)}: number {lost[0]} is "
                "missing. Get the missing shards."
            )
    raise NoWeightsError(
        f"Expected one `model.safetensors` (or its index) in `{repo.ref.name}`, found {len(found)} files: "
        f"{', '.join(found[:4])}.",
        f"Name the one that is meant: {repo.ref.name}/{found[0]}.",
    )


def open_files(
    repo: LocalRepo | HubRepo, names: Sequence[str], shard_of: Mapping[str, str] | None = None
) -> FileCheckpoint:
    """Files whose tensors together are the model; reads their headers, several at once.

    shard_of: of tensors that several files hold, the file whose copy counts. Raises `BrokenFileError`, also where two
    files hold a tensor and nothing says which counts.
    """
    remote = not isinstance(repo, LocalRepo)

    def look(job: tuple[int, str]) -> tuple[Source, dict[str, Entry], list[str], int]:
        index, name = job
        source = repo.open(name)
        where = f"{repo.ref.name}/{name}" if repo.only is None else repo.ref.name
        first = bytearray(source.read([(0, min(FIRST_READ if remote else 8, source.size))])[0])
        length = header_length(bytes(first[:8]), source.size, where)
        if 8 + length > len(first):
            first += source.read([(len(first), 8 + length)])[0]
        found, unknown = parse_header(bytes(first[8 : 8 + length]), source.size, where, index)
        return source, found, unknown, source.size - 8 - length - sum(entry.nbytes for entry in found.values())

    with ThreadPoolExecutor(min(FILES_AT_ONCE, len(names))) as pool:
        looked = list(pool.map(look, enumerate(names)))
    entries: dict[str, Entry] = {}
    if sum(len(found) for _, found, *_ in looked) > MAX_TENSORS:
        raise BrokenFileError(f"`{repo.ref.name}` has more than the {MAX_TENSORS:,} tensors that are read.")
    for (_, found, *_), name in zip(looked, names, strict=True):
        for tensor in found.keys() & entries.keys():
            owner = shard_of.get(tensor) if shard_of else None
            if owner not in names:
                raise BrokenFileError(f"`{repo.ref.name}/{name}` repeats tensor {tensor[:80]!r} of another shard.")
            if name != owner:  # the copy that was found before stays
                found[tensor] = entries[tensor]
        entries |= found
    checkpoint = FileCheckpoint(repo.ref, repo.requested, [source for source, *_ in looked], entries, remote)
    checkpoint.skipped = tuple(sorted(name for _, _, unknown, _ in looked for name in unknown))
    checkpoint.skipped_bytes = sum(nbytes for *_, nbytes in looked)
    return checkpoint
