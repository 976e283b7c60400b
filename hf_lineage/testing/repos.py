"""What the stand-in holds: repos with commits and files, requests, faults, and what the Hub computes from files."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl

Source = bytes | str | Path
Place = Literal["api", "resolve", "cdn", "file", "any"]
Kind = int | Literal["expired", "ignore_range", "wrong_range", "truncate", "resize", "drop", "delay"]

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".png", ".npz")
LFS_SIZE = 10 << 20  # bytes; longer files are LFS files whatever their name
HASHED_SIZE = 64 << 20  # bytes; longer files on disk get a made-up checksum: a real one takes seconds
CONFIG = {"architectures", "model_type", "architecture", "num_classes", "auto_map", "quantization_config"}


@dataclass(slots=True)
class Request:
    """One request and what became of it."""

    app: str  # "hub" or "cdn"
    method: str
    path: str  # as sent, still quoted
    query: str
    range: str | None
    authorised: bool  # it carried an Authorization header
    user: str | None  # the user of its token, if the token is known
    body: bytes = field(repr=False)
    status: int = 0  # 0: the connection was dropped
    bytes_sent: int = 0  # of the answer's body

    def value(self, name: str, default: str = "") -> str:
        """One parameter of the query."""
        return dict(parse_qsl(self.query)).get(name, default)

    def values(self, name: str) -> list[str]:
        """A parameter that may come several times."""
        return parse_qs(self.query).get(name, [])


@dataclass(slots=True)
class Fault:
    """Something that goes wrong; see the module's table."""

    kind: Kind
    on: Place
    file: str
    times: float
    after: int
    value: float

    def strikes(self, places: set[str], key: str) -> bool:
        """Whether this request is hit; counts it."""
        if self.times <= 0 or self.on not in places or not fnmatch(key, self.file):
            return False
        self.after -= 1
        if self.after >= 0:
            return False
        self.times -= 1
        return True


class File:
    """A file's content: bytes, or a path that is read piece by piece when somebody asks for it."""

    def __init__(self, name: str, source: bytes | Path) -> None:
        self.source = source
        self.size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.lfs = name.endswith(LFS_SUFFIXES) or self.size > LFS_SIZE

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`, zeros behind the end."""
        step = 1 << 20
        ranges = ((at, min(at + step, stop)) for at in range(start, stop, step))
        if isinstance(self.source, bytes):
            yield from (self.source[a:b].ljust(b - a, b"\0") for a, b in ranges)
            return
        with self.source.open("rb") as stream:
            stream.seek(start)
            yield from (stream.read(b - a).ljust(b - a, b"\0") for a, b in ranges)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join(self.chunks(start, self.size if stop is None else stop))

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, Path) and self.size > HASHED_SIZE:
            stamp = f"{self.source.resolve()} {self.size} {self.source.stat().st_mtime_ns}"
            return hashlib.sha256(stamp.encode()).hexdigest()
        return hashlib.sha256(self.read()).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The git blob id: of the pointer for an LFS file, of the content otherwise."""
        blob = self.pointer if self.lfs else self.read()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass
class Repo:
    """A model repo: all its commits, and where its branches point."""

    id: str
    private: bool = False
    gated: bool | str = False
    readers: frozenset[str] = frozenset()
    downloads: int = 0
    likes: int = 0
    created: str = "2024-01-01T00:00:00.000Z"
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, File], ref: str) -> str:
        """Make `files` the content of `ref`. The same history gives the same sha."""
        content = [(path, files[path].oid) for path in sorted(files)]
        sha = hashlib.sha1(f"{self.id} {len(self.commits)} {ref} {content}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit a branch, a sha or the beginning of a sha means."""
        if revision in self.refs:
            return self.refs[revision]
        hits = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return hits[0] if len(hits) == 1 else None

    def admits(self, user: str | None) -> bool:
        return user is not None and (user == self.id.split("/")[0] or user in self.readers)


# What the Hub computes from a repo's files.


def card_data(files: Mapping[str, File]) -> dict[str, Any]:
    """The YAML of README.md; empty if there is none or it is broken."""
    import yaml  # type: ignore[import-untyped,unused-ignore]
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = files["README.md"].read().decode("utf-8-sig", "replace") if "README.md" in files else ""
    block = REGEX_YAML_BLOCK.search(text)
    with suppress(yaml.YAMLError):
        data = yaml.safe_load(block.group(2)) if block else None
        return data if isinstance(data, dict) else {}
    return {}


def parameter_counts(files: Mapping[str, File]) -> dict[str, Any] | None:
    """Parameters per dtype, from the safetensors headers at the root; a broken header counts nothing."""
    counts: Counter[str] = Counter()
    for path, file in files.items():
        if "/" in path or not path.endswith(".safetensors") or path.startswith("adapter_"):
            continue
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            length = int.from_bytes(file.read(0, 8), "little")
            header = json.loads(file.read(8, min(8 + length, file.size)))
            for tensor in (header[name] for name in header if name != "__metadata__"):
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return {"parameters": dict(counts), "total": sum(counts.values())} if counts else None


def model_data(repo: Repo, sha: str) -> dict[str, Any]:
    """Everything the API can tell of a model."""
    files, card, config = repo.commits[sha], card_data(repo.commits[sha]), {}
    with suppress(KeyError, ValueError):
        config = dict(json.loads(files["config.json"].read()))
    declared = card.get("base_model") or []
    listed = [declared] if isinstance(declared, str) else declared if isinstance(declared, list) else []
    bases = [base for base in listed if isinstance(base, str)]
    inferred = "adapter" if "adapter_config.json" in files else "merge" if len(bases) > 1 else "finetune"
    relation = card.get("base_model_relation") or inferred
    library = card.get("library_name") or ("timm" if "pretrained_cfg" in config else None)
    formats = ["safetensors"] if any(path.endswith(".safetensors") for path in files) else []
    tags = [library, *formats, config.get("model_type"), card.get("pipeline_tag"), *(card.get("tags") or ())]
    tags += [f"base_model:{prefix}{base}" for base in bases for prefix in ("", f"{relation}:")]
    parents = {"relation": relation, "models": [{"_id": digest(base), "id": base} for base in bases]}
    data = {
        "_id": digest(repo.id),
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "spaces": [],
        "trendingScore": 0,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "sha": sha,
        "lastModified": repo.created,
        "createdAt": repo.created,
        "cardData": card,
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "tags": [tag for tag in tags if tag] + ["region:us"],
        "config": {key: config[key] for key in config if key in CONFIG},
        "siblings": [{"rfilename": path} for path in sorted(files)],
        "usedStorage": sum(file.size for file in files.values()),
        "safetensors": parameter_counts(files),
        "baseModels": parents if bases else None,
    }
    return {key: value for key, value in data.items() if value is not None}


def digest(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()[:24]
