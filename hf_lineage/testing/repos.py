"""What the stand-in holds: repos, files, discussions, requests, faults, and what the Hub computes from files."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl

Source = bytes | str | Path
Place = Literal["api", "resolve", "cdn", "write", "file", "head", "expand", "endpoint", "any"]
Kind = int | Literal[
    "expired", "ignore_range", "wrong_range", "no_content_range", "truncate", "resize", "hollow", "chunked",
    "no_length", "zero_length", "no_etag", "moved", "drop", "lost", "delay",
]  # fmt: skip

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".png", ".npz")
LFS_SIZE = 10 << 20  # bytes; longer files are LFS files whatever their name
HASHED_SIZE = 64 << 20  # bytes; longer files on disk get a made-up checksum: a real one takes seconds
CONFIG = {"architectures", "model_type", "architecture", "num_classes", "auto_map", "quantization_config"}
RELATIONS = ("adapter", "finetune", "merge", "quantized")


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
    role: str = "write"  # of its token, "read" or "write"
    host: str = ""  # the name under which the server was asked
    status: int = 0  # 0: the connection was dropped
    bytes_sent: int = 0  # of the answer's body

    def value(self, name: str, default: str = "") -> str:
        """One parameter of the query."""
        return dict(parse_qsl(self.query)).get(name, default)

    def values(self, name: str) -> list[str]:
        """A parameter that may come several times."""
        return parse_qs(self.query).get(name, [])

    def json(self) -> dict[str, Any]:
        """The body of a POST; none is an empty one."""
        data = json.loads(self.body or b"{}")
        return data if isinstance(data, dict) else {}


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

    def __init__(self, name: str, source: bytes | Path, lfs: bool | None = None) -> None:
        self.source = source
        self.size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.lfs = is_large(name, self.size) if lfs is None else lfs

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
        """The bytes of the file."""
        return b"".join(self.chunks(start, self.size if stop is None else stop))

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its bytes, hexadecimal."""
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
        """The text that git keeps in place of a large file."""
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


def is_large(name: str, size: int) -> bool:
    """Whether the Hub keeps a file of this name outside git."""
    return name.endswith(LFS_SUFFIXES) or size > LFS_SIZE


@dataclass(slots=True)
class Commit:
    """What git says of a commit besides its files."""

    title: str
    message: str
    author: str
    date: str
    parent: str | None


@dataclass(slots=True)
class Discussion:
    """A discussion, or a pull request: then its files are the commit that `refs/pr/<num>` points to."""

    num: int
    title: str
    author: str
    created: str
    status: str = "open"  # "draft", "open", "closed" or "merged"
    is_pull_request: bool = False
    base: str = ""  # the commit of main that a pull request starts from
    merged: str = ""  # the commit of main that it became
    events: list[dict[str, Any]] = field(default_factory=list)  # as the API shows them

    def add(self, kind: str, user: str, now: str, data: dict[str, Any]) -> dict[str, Any]:
        """One more event."""
        event = {"id": digest(f"{self.num} {len(self.events)}"), "type": kind, "createdAt": now, "data": data}
        self.events.append({**event, "author": {"name": user, "type": "user"}})
        return self.events[-1]

    @property
    def comments(self) -> list[str]:
        """The texts of the comments, in their order."""
        return [event["data"]["latest"]["raw"] for event in self.events if event["type"] == "comment"]


@dataclass
class Repo:
    """A model repo: all its commits, where its branches point, and what people say about it."""

    id: str
    private: bool = False
    gated: bool | str = False
    readers: frozenset[str] = frozenset()
    downloads: int = 0
    likes: int = 0
    trending: float = 0
    created: str = "2024-01-01T00:00:00.000Z"
    modified: str = ""  # of main; empty: as created
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    history: dict[str, Commit] = field(default_factory=dict)  # by sha
    discussions: dict[int, Discussion] = field(default_factory=dict)  # by number
    facts: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)  # by sha: read from files once

    def __post_init__(self) -> None:
        self.created = moment(self.created)
        self.modified = self.now = moment(self.modified or self.created)

    def tick(self) -> str:
        """The next second of the repo's own clock: the same test gives the same dates."""
        self.now = moment(self.now, seconds=1)
        return self.now

    def commit(
        self,
        files: Mapping[str, File],
        ref: str,
        *,
        title: str = "Update",
        message: str = "",
        author: str = "",
        modified: str = "",
        parent: str | None = None,
    ) -> str:
        """Make `files` the content of `ref`. The same history gives the same sha."""
        content = [(path, files[path].oid) for path in sorted(files)]
        sha = hashlib.sha1(f"{self.id} {len(self.commits)} {ref} {content}".encode()).hexdigest()
        if modified:
            self.now = moment(modified)
        elif self.commits:
            self.tick()
        parent = parent or self.refs.get(ref)
        self.history[sha] = Commit(title, message, author or self.id.split("/")[0], self.now, parent)
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        if ref == "main":
            self.modified = self.now
        return sha

    def pull(self, ref: str) -> Discussion | None:
        """The pull request whose commits `ref` holds."""
        number = ref.removeprefix("refs/pr/")
        return self.discussions.get(int(number)) if ref.startswith("refs/pr/") and number.isdigit() else None

    def find(self, revision: str) -> str | None:
        """The commit a branch, a sha or the beginning of a sha means."""
        revision = revision.removeprefix("refs/heads/")
        if revision in self.refs:
            return self.refs[revision]
        hits = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return hits[0] if len(hits) == 1 else None

    def admits(self, user: str | None) -> bool:
        """Whether a user was given access to the repo."""
        return user is not None and (user == self.id.split("/")[0] or user in self.readers)


def moment(text: str, seconds: float = 0) -> str:
    """A date as the API spells it, some seconds later."""
    date = datetime.fromisoformat(text)
    date = (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC) + timedelta(seconds=seconds)
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What the Hub computes from a repo's files.


def card_block(text: str) -> str | None:
    """The YAML at the top of a card."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    return block.group(2) if block else None


def card_data(files: Mapping[str, File]) -> dict[str, Any]:
    """The YAML of README.md as JSON has it; empty if there is none, or it is broken or holds itself."""
    import yaml

    text = files["README.md"].read().decode("utf-8-sig", "replace") if "README.md" in files else ""
    with suppress(Exception):  # PyYAML trips over values in any way: `!!bool x` is a KeyError
        data = yaml.safe_load(card_block(text) or "")
        return json.loads(json.dumps(data, default=str, skipkeys=True)) if isinstance(data, dict) else {}
    return {}


def card_problems(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of the Hub about a card's metadata."""
    import yaml

    block = card_block(text)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block)
    except Exception as error:
        return [f"Invalid YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    return (_field_problems(data) if isinstance(data, dict) else ["metadata must be an object"]), []


def _field_problems(data: dict[str, Any]) -> list[str]:
    problems = [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
        for base in _listed(data.get("base_model"))
        if not _is_repo_id(base)
    ]
    if data.get("base_model_relation") not in (None, *RELATIONS):
        problems.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    for name in ("license", "tags", "library_name", "pipeline_tag"):
        value, listable = data.get(name), name in ("license", "tags")
        values = value if listable and isinstance(value, list) else [value]
        if value is not None and not all(isinstance(one, str) for one in values):
            problems.append(f'"{name}" must be a string' + (" or an array of strings" if listable else ""))
    return problems


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_repo_id(name: Any) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def parameter_counts(files: Mapping[str, File]) -> dict[str, Any] | None:
    """Parameters per dtype, from the safetensors headers at the root; a broken header counts nothing."""
    counts: Counter[str] = Counter()
    for path, file in files.items():
        if "/" in path or not path.endswith(".safetensors") or path.startswith("adapter_"):
            continue
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            length = int.from_bytes(file.read(0, 8), "little")
            header = json.loads(file.read(8, min(8 + length, file.size)))
            for tensor in (header[name] for name in header if name != "__metadata__"):
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return {"parameters": dict(counts), "total": sum(counts.values())} if counts else None


def model_data(repo: Repo, sha: str) -> dict[str, Any]:
    """Everything the API can tell of a model; what its files say is computed once for a commit."""
    if sha not in repo.facts:
        repo.facts[sha] = _file_facts(repo.commits[sha])
    return {
        "_id": digest(repo.id),
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "spaces": [],
        "trendingScore": repo.trending,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "sha": sha,
        "lastModified": repo.modified,
        "createdAt": repo.created,
        **repo.facts[sha],
    }


def _file_facts(files: Mapping[str, File]) -> dict[str, Any]:
    card, config = card_data(files), _json_file(files, "config.json")
    bases = [base for base in _listed(card.get("base_model")) if isinstance(base, str) and base]
    inferred = "adapter" if "adapter_config.json" in files else "merge" if len(bases) > 1 else "finetune"
    relation = card.get("base_model_relation") or inferred
    library = card.get("library_name") or ("timm" if "pretrained_cfg" in config else None)
    formats = ["safetensors"] if any(path.endswith(".safetensors") for path in files) else []
    own = _listed(card.get("tags"))
    tags = [library, *formats, config.get("model_type"), card.get("pipeline_tag"), *own]
    tags += [f"base_model:{prefix}{base}" for base in bases for prefix in ("", f"{relation}:")]
    parents = {"relation": relation, "models": [{"_id": digest(base), "id": base} for base in bases]}
    adapter = _json_file(files, "adapter_config.json")
    peft = {key: adapter[key] for key in ("base_model_name_or_path", "task_type") if key in adapter}
    facts = {
        "cardData": card,
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "tags": [tag for tag in tags if tag and isinstance(tag, str)] + ["region:us"],
        "config": {key: config[key] for key in config if key in CONFIG} | ({"peft": peft} if peft else {}),
        "siblings": [{"rfilename": path} for path in sorted(files)],
        "usedStorage": sum(file.size for file in files.values()),
        "safetensors": parameter_counts(files),
        "baseModels": parents if bases else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _json_file(files: Mapping[str, File], path: str) -> dict[str, Any]:
    """A file's JSON object; empty if there is none or it is broken."""
    with suppress(KeyError, ValueError, TypeError, RecursionError):
        return dict(json.loads(files[path].read()))
    return {}


def digest(name: str) -> str:
    """An id of 24 hexadecimal characters, as the Hub makes them, from a name."""
    return hashlib.md5(name.encode()).hexdigest()[:24]
