"""GGUF, the format of llama.cpp: header and table of tensors read here, blocks unpacked by the `gguf` library.

Format (ggml's docs/gguf.md): the magic, a version, how many tensors and how many facts; the facts (name, type, value);
of each tensor its name, sides (the innermost first), type and offset; then the data. Names are brought to those of the
Hub by gguf's own table, and the rows of q and k, which llama.cpp stores in pairs for its rotary embedding, back in
order.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import BrokenFileError, MissingExtraError, NoWeightsError
from ..checkpoint import FILES_AT_ONCE, Checkpoint, FileCheckpoint, Source
from ..dtypes import torch_dtypes
from ..entry import Entry, Packing, Slice
from ..local import LocalRepo
from .packed import PackedCheckpoint
from .packed.matrix import PackedMatrix

if TYPE_CHECKING:
    import torch

    from ...hub.client import HubRepo

FIRST_READ, MAX_HEADER = 1 << 20, 1 << 27  # bytes; vocabularies of 256,000 tokens take 10 MB
MAX_TENSORS, MAX_FACTS, MAX_DEPTH, MAX_BLOCKS = 1 << 16, 1 << 16, 3, 1024
SERIES = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
SIDE = re.compile(r"^mmproj|\bimatrix|\.imatrix", re.IGNORECASE)  # files beside a model: a projector, statistics
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9  # types of facts
PLAIN = {0: "F32", 1: "F16", 30: "BF16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
# Types whose block begins with a float16, the distance of its levels
STEPPED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
GROUPS = {"Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16}  # values that share a scale
# Architectures whose q and k the converter stores in pairs (its `LlamaModel.permute`)
PERMUTED = {
    "llama", "arcee", "granite", "granitemoe", "smollm3", "deci", "minicpm", "internlm2", "xverse", "baichuan", "olmo",
    "bailingmoe",
}  # fmt: skip
# Architecture → how the Hub's names of its blocks begin, and of what is in no block; all others are called as Llama's
FAMILIES = {
    "bert": ("encoder.layer.", ("embeddings.",)), "jina-bert-v2": ("encoder.layer.", ("embeddings.",)),
    "nomic-bert": ("encoder.layers.", ("embeddings.",)), "gpt2": ("h.", ("w", "ln_f", "lm_head")),
    "gptneox": ("gpt_neox.layers.", ("gpt_neox.", "embed_out")),
    "falcon": ("transformer.h.", ("transformer.", "lm_head")),
    "bloom": ("h.", ("word_embeddings", "ln_f", "lm_head")), "mpt": ("transformer.blocks.", ("transformer.",)),
}  # fmt: skip
LLAMA = "model.layers.", ("model.embed_tokens", "model.norm", "lm_head", "model.")
_EXPERTS = re.compile(r"(.*\.experts)\.(\w+)(\.weight)")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as the table of a file has it: `type` is ggml's number, `shape` has the outermost side first."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of one file that are numbers or short texts, its tensors, and where the data begin."""

    facts: Mapping[str, Any]
    tensors: tuple[Stored, ...]
    data: int


class _Reader:
    """Takes numbers and texts from the front of a file. Raises `BrokenFileError`; asks for more through `grow`."""

    def __init__(self, source: Source, where: str) -> None:
        self.source, self.where, self.at = source, where, 0
        self.raw = bytearray(source.read([(0, min(FIRST_READ, source.size))])[0])

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        end = self.at + count
        if end > min(self.source.size, MAX_HEADER):
            broken(self.where, f"its header goes on beyond byte {min(self.source.size, MAX_HEADER):,}")
        if end > len(self.raw):
            more = min(max(end, 2 * len(self.raw)), self.source.size, MAX_HEADER)
            self.raw += self.source.read([(len(self.raw), more)])[0]
        self.at = end
        return memoryview(self.raw)[end - count : end]

    def number(self, form: str) -> Any:
        """One number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """A text, its length before it."""
        return bytes(self.take(self.number("<Q"))).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """The value of a fact; None of a list, which is only passed."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()[:4096]
        if kind != LIST or depth >= MAX_DEPTH:
            broken(self.where, f"a fact has the type {kind}, which is none")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            self.take(count * struct.calcsize(SCALARS[inner]))
        else:
            if count > MAX_HEADER // 8:
                broken(self.where, f"a list has {count:,} members")
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def read_header(source: Source, where: str) -> Header:
    """The header of a file, checked as untrusted input: every tensor lies within the file. Raises `BrokenFileError`."""
    reader = _Reader(source, where)
    if bytes(reader.take(4)) != b"GGUF":
        broken(where, "expected a GGUF file")
    version = reader.number("<I")
    if version not in (2, 3):
        broken(where, f"its version is {version}, expected 2 or 3 in little-endian order")
    tensors, count = reader.number("<Q"), reader.number("<Q")
    if tensors > MAX_TENSORS or count > MAX_FACTS:
        broken(where, f"it claims {tensors:,} tensors and {count:,} facts")
    facts = {}
    for _ in range(count):
        name = reader.text()[:256]
        if (value := reader.value(reader.number("<I"))) is not None:
            facts[name] = value
    found = [_stored(reader) for _ in range(tensors)]
    if len({tensor.name for tensor in found}) < len(found):
        broken(where, "a tensor occurs twice")
    align = facts.get("general.alignment", 32)
    if type(align) is not int or not 0 < align <= 1 << 20:
        broken(where, f"its alignment is {str(align)[:20]}")
    return Header(facts, tuple(found), -(-reader.at // align) * align)


def _stored(reader: _Reader) -> Stored:
    name, sides = reader.text(), reader.number("<I")
    if not 0 < len(name) <= 1024 or not 0 <= sides <= 8:
        broken(reader.where, f"a tensor has {sides} sides, or a name of {len(name)} characters")
    shape = tuple(reader.number("<Q") for _ in range(sides))[::-1]
    kind, offset = reader.number("<I"), reader.number("<Q")
    if math.prod(shape) >= 2**50 or offset >= 2**60:
        broken(reader.where, f"tensor {name[:80]!r} of shape {shape[:4]} is longer than any file")
    return Stored(name, shape, kind, offset)


def broken(where: str, why: str) -> NoReturn:
    """Raises `BrokenFileError`."""
    raise BrokenFileError(f"`{where}` is broken: {why}. Download or export it again.")


def find_gguf(repo: LocalRepo | HubRepo) -> list[str]:
    """The file that was named, the only one there is, or the complete series that is. Raises `NoWeightsError` where
    there are several: repos often hold one model in many types."""
    if repo.only:
        return [repo.only] if repo.only.endswith(".gguf") else []
    names = sorted(n for n in repo.files if n.endswith(".gguf") and "/" not in n and not SIDE.search(n))
    models = {m[1] if (m := SERIES.fullmatch(name)) else name: name for name in reversed(names)}
    if len(models) > 1:
        raise NoWeightsError(
            f"Expected one GGUF file in `{repo.ref.name}`, found {len(models)}: "
            f"{', '.join(sorted(models.values())[:4])}.",
            f"Name the one that is meant: {repo.ref.name}/{min(models.values())}.",
        )
    return list(models.values())


def open_gguf(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> Checkpoint:
    """The model in one file or a series. Costs the headers, vocabularies included.

    Raises `MissingExtraError` without the `gguf` library, `BrokenFileError`, `NoWeightsError` for an incomplete series.
    """
    library()
    files = _series(repo, names[0])

    def look(job: tuple[int, str]) -> tuple[Source, Header]:
        source = repo.open(job[1])
        return source, read_header(source, f"{repo.ref.name}/{job[1]}" if repo.only is None else repo.ref.name)

    with ThreadPoolExecutor(min(FILES_AT_ONCE, len(files))) as pool:
        looked = list(pool.map(look, enumerate(files)))
    facts: dict[str, Any] = {}
    for _, header in reversed(looked):
        facts |= header.facts
    model = _Model(facts, hub_names(facts, [tensor.name for _, header in looked for tensor in header.tensors]))
    for file, (source, header) in enumerate(looked):
        for tensor in header.tensors:
            model.add(tensor, file, header.data, source)
    inner = FileCheckpoint(repo.ref, repo.requested, [s for s, _ in looked], model.raw, not isinstance(repo, LocalRepo))
    inner.repo = repo
    inner.skipped, inner.skipped_bytes = tuple(sorted(model.skipped)), model.skipped_bytes
    left = {name: entry for name, entry in model.raw.items() if name not in model.parts}
    return PackedCheckpoint(inner, left, model.matrices, {})


def _series(repo: LocalRepo | HubRepo, name: str) -> list[str]:
    match = SERIES.fullmatch(name)
    if not match:
        return [name]
    files = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, min(int(match[3]), 10_000) + 1)]
    there = {*repo.files}
    if isinstance(repo, LocalRepo) and repo.only:
        there = {path.name for path in repo.folder.iterdir()}
    if missing := [file for file in files if file not in there]:
        raise NoWeightsError(f"Expected {match[3]} files `{match[1]}-…` in `{repo.ref.name}`, {missing[0]} is missing.")
    return files


class _Model:
    """What the tables of all files become: raw bytes by gguf's names, and matrices by the Hub's."""

    def __init__(self, facts: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.facts, self.names = facts, names
        self.arch = str(facts.get("general.architecture", ""))
        self.raw: dict[str, Entry] = {}
        self.matrices: dict[str, PackedMatrix] = {}
        self.parts: set[str] = set()
        self.skipped: list[str] = []
        self.skipped_bytes = 0

    def add(self, tensor: Stored, file: int, data: int, source: Source) -> None:
        """One tensor; stacked experts become one matrix each. Raises `BrokenFileError`."""
        kind = library().GGMLQuantizationType
        known = tensor.type in {member.value for member in kind}
        block, size = library().GGML_QUANT_SIZES[kind(tensor.type)] if known else (1, 0)
        count = math.prod(tensor.shape)
        width = tensor.shape[-1] if tensor.shape else 1
        if width % block:
            broken(source.name, f"tensor {tensor.name[:80]!r} has rows of {width}, no multiple of {block}")
        nbytes = count // block * size
        if data + tensor.offset + nbytes > source.size:
            broken(source.name, f"tensor {tensor.name[:80]!r} ends behind the {source.size:,} bytes of the file")
        name = self.names.get(tensor.name, tensor.name)
        label = kind(tensor.type).name if known else str(tensor.type)
        if tensor.type not in PLAIN and not (known and _unpackable(tensor.type)):
            self.skipped.append(f"{name} ({label})")
            self.skipped_bytes += nbytes
            return
        if tensor.name == "rope_freqs.weight":  # computed, not trained
            return
        match = _EXPERTS.fullmatch(name)
        pieces = tensor.shape[0] if match and len(tensor.shape) == 3 else 1
        shape = tensor.shape[1:] if pieces > 1 else tensor.shape
        for i in range(pieces):
            own = f"{match[1]}.{i}.{match[2]}{match[3]}" if match and pieces > 1 else name
            part = f"{tensor.name}[{i}]" if pieces > 1 else tensor.name
            each = nbytes // pieces
            self._one(
                own, part, shape, tensor.type, Entry(part, "U8", (each,), each, file, data + tensor.offset + i * each)
            )

    def _one(self, name: str, part: str, shape: tuple[int, ...], kind: int, raw: Entry) -> None:
        heads = self._heads(name)
        order = heads if heads and shape[0] % (2 * heads) == 0 else 0
        if kind in PLAIN and not order:
            self.raw[name] = Entry(name, PLAIN[kind], shape, raw.nbytes, raw.file, raw.start)
            return
        self.raw[part] = raw
        self.parts.add(part)
        label = library().GGMLQuantizationType(kind).name
        packing = None if kind in PLAIN else Packing(label, int((re.findall(r"\d+", label) or ["0"])[0]))
        self.matrices[name] = _Blocks(name, shape, packing, (part,), kind, order)

    def _heads(self, name: str) -> int:
        """Heads of the q or k whose rows are stored in pairs; 0 where none are."""
        match = re.search(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$", name)
        if self.arch not in PERMUTED or not match:
            return 0
        heads = self.facts.get(f"{self.arch}.attention.head_count")
        fewer = self.facts.get(f"{self.arch}.attention.head_count_kv", heads)
        found = heads if match[1] == "q" else fewer
        return found if type(found) is int and found > 0 else 0


@dataclass(frozen=True, slots=True)
class _Blocks(PackedMatrix):
    """Rows of blocks of one of ggml's types. heads: of a q or k whose rows are stored in pairs, else 0: row 2j + s of a
    head is row s·d/2 + j of the Hub's, d rows a head."""

    kind: int
    heads: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return PLAIN.get(self.kind, "F32")

    @property
    def width(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 or not self.heads else 1

    @property
    def _row(self) -> int:
        block, size = library().GGML_QUANT_SIZES[library().GGMLQuantizationType(self.kind)]
        return self.width // block * size

    def slices(self, first: int, stop: int) -> list[Slice]:
        first, stop = self._whole(first, stop)
        return [Slice(self.parts[0], first * self._row, stop * self._row)]

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        return self._in_order(self._values(read[0]), first, stop)

    def edges(self, read: Sequence[torch.Tensor], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        import torch

        name = library().GGMLQuantizationType(self.kind).name
        block, size = library().GGML_QUANT_SIZES[library().GGMLQuantizationType(self.kind)]
        values = self._values(read[0])
        if name in STEPPED:
            step = read[0].reshape(-1, size)[:, :2].contiguous().view(torch.float16).float().abs()
            group = values.reshape(-1, block)
            step = step + group.abs() * 2**-10  # codes were made with the scale before it was rounded to a float16
        elif name in GROUPS:
            group = values.reshape(-1, GROUPS[name])
            gaps = group.sort(1).values.diff(dim=1)
            tiny = 1e-4 * (group.amax(1, keepdim=True) - group.amin(1, keepdim=True))
            step = torch.where(gaps > tiny, gaps, torch.inf).amin(1, keepdim=True)
        else:
            return None
        # further values may or may not follow the largest and the smallest
        low = torch.where(group == group.amin(1, keepdim=True), -torch.inf, group - step / 2)
        high = torch.where(group == group.amax(1, keepdim=True), torch.inf, group + step / 2)
        low, high = (self._in_order(side.reshape(values.shape), first, stop) for side in (low, high))
        return low, high

    def _values(self, raw: torch.Tensor) -> torch.Tensor:
        import numpy as np
        import torch

        if self.kind in PLAIN:
            return raw.contiguous().view(torch_dtypes()[PLAIN[self.kind]]).reshape(-1, self.width)
        blocks = raw.numpy().reshape(-1, self._row)
        kind = library().GGMLQuantizationType(self.kind)
        with np.errstate(all="ignore"):  # a broken scale gives NaN or infinity
            return torch.from_numpy(library().quants.dequantize(blocks, kind)).reshape(-1, self.width)

    def _whole(self, first: int, stop: int) -> tuple[int, int]:
        """Rows of whole heads, where the rows of a head are stored in another order."""
        if not self.heads:
            return first, stop
        each = self.height // self.heads
        return first // each * each, -(-stop // each) * each

    def _in_order(self, rows: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        if not self.heads:
            return rows
        start = self._whole(first, stop)[0]
        each = self.height // self.heads
        ordered = rows.reshape(-1, each // 2, 2, self.width).transpose(1, 2).reshape(-1, self.width)
        return ordered[first - start : stop - start]


def _unpackable(kind: int) -> bool:
    """Whether the library unpacks a type."""
    return library().GGMLQuantizationType(kind) in library().quants._type_traits


def hub_names(facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """gguf's names → the Hub's, by the table from which llama.cpp's converter works, the other way round."""
    arch = str(facts.get("general.architecture", ""))
    blocks = facts.get(f"{arch}.block_count")
    count = blocks if type(blocks) is int and 0 < blocks <= MAX_BLOCKS else 0
    begins, outside = FAMILIES.get(arch, LLAMA)
    table = dict(_candidates(arch, count))
    found: dict[str, str] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        spelled = table.get(module, [])
        wanted = (begins,) if name.startswith("blk.") else outside
        hub = next((s for start in wanted for s in spelled if s.startswith(start)), None)
        if hub and f"{hub}.{kind}" not in found.values():
            found[name] = f"{hub}.{kind}"
    return found


@cache
def _candidates(arch: str, blocks: int) -> tuple[tuple[str, list[str]], ...]:
    """gguf's name of each module, and what it may be called on the Hub."""
    gguf = library()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table: dict[str, list[str]] = {}
    mapping = gguf.get_tensor_name_map(kinds.get(arch, gguf.MODEL_ARCH.LLAMA), blocks).mapping
    for spelled, (_, name) in mapping.items():
        table.setdefault(name, []).append(spelled)
    return tuple(table.items())


def library() -> Any:
    """The `gguf` package. Raises `MissingExtraError`."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("Expected the gguf library to read a GGUF file, found none", "gguf") from error
    return gguf
