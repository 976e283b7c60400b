"""The only home of huggingface_hub: repos, small files and byte ranges of large ones.

A file is asked for once through `/resolve` (size, commit, signed location), then read by ranges from that
location. The token travels only to the endpoint's own origin; a redirect or a CDN location never gets it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
    parse_ratelimit_headers,
)

from ..answers.refs import ModelRef, is_repo_id, printable
from ..errors import (
    AccessDeniedError,
    BrokenFileError,
    CheckpointError,
    GatedError,
    HubUnavailableError,
    LineageError,
    ModelNotFoundError,
    NoRevisionError,
    TokenRefusedError,
)
from .cache import COMMIT
from .kept import current

MAX_REQUEST = 2 << 20  # bytes asked for in one range: a batch of 8 MB then travels on several connections
MAX_GAP = 1 << 16  # unread bytes that may be fetched along, to save a request …
WASTE = 0.05  # … if they are at most this share of the bytes that are wanted
WORKERS = 8  # ranges in flight
TRIES = 4  # of one range whose body breaks off
TIMEOUT = 30.0  # seconds of silence
REQUEST_SECONDS = 300.0  # for a whole request: a server may send a byte now and then for ever
FIRST_SECONDS = 9.0  # … before anything at all was answered; then it is not tried again
SILENCES = 3  # of one request, or connections that break before an answer, after which it is not tried again
RETRIES = 5  # of a request that was refused for a passing reason
RETRIED = (429, 500, 502, 503, 504)
MAX_WAIT = 600  # seconds that are waited because the Hub says so; its own windows are five minutes
MAX_ANSWER = 32 << 20  # bytes of an answer of the API, unpacked
MAX_ERROR = 1 << 16  # bytes of what a server says to a refusal
MAX_UNSIZED = 16 << 20  # bytes of a file that a server sends without a size and without ranges
INSTEAD = "Download the repo and pass the folder instead."  # of a server that cannot be read from
PASSING = (httpx.TimeoutException, httpx.ReadError, httpx.RemoteProtocolError)  # no network at all is an error at once
_LOG = logging.getLogger(__name__)


def _without_signatures(record: logging.LogRecord) -> bool:
    record.msg = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?…", record.getMessage())
    record.args = ()
    return "Rate limited" in record.msg or record.levelno > logging.WARNING


# huggingface_hub warns of every retry, with the url: a signed location opens the file to whoever reads the log. Only
# a request to wait is news; a retry that fails in the end is one line of ours.
logging.getLogger("huggingface_hub.utils._http").addFilter(_without_signatures)

Extent = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RepoFacts:
    """What the API tells of a repo at one commit, as plain data: no word of a card becomes an attribute or a call.

    files: names in the repo. card: the card's metadata, None where the server did not tell them. created, committed:
    when the repo and its commit were made, as the server says; None where it does not. public: it said that everybody
    may read the repo's files.
    """

    id: str
    sha: str
    files: frozenset[str]
    card: dict[str, Any] | None
    created: str | None
    committed: str | None
    private: bool
    public: bool = False

    @classmethod
    def of(cls, data: Any) -> RepoFacts | None:
        """The facts in an answer of the API; None where it names no repo, no commit, or lists no files."""
        if not isinstance(data, dict):
            return None
        name, sha, files = data.get("id"), data.get("sha"), data.get("siblings")
        if not (isinstance(name, str) and is_repo_id(name) and isinstance(sha, str) and COMMIT.fullmatch(sha)):
            return None
        if not isinstance(files, list):  # not told is not "none": a card that is there would be taken for missing
            return None
        names = (file.get("rfilename") for file in files if isinstance(file, dict))
        card = data.get("cardData")
        return cls(
            name, sha, frozenset(name for name in names if isinstance(name, str)),
            card if isinstance(card, dict) else None, date_text(data.get("createdAt")),
            date_text(data.get("lastModified")), data.get("private") is True,
            data.get("private") is False and data.get("gated") is False,
        )  # fmt: skip


class Hub:
    """A client for one token (None: the machine's own login; False: none)."""

    def __init__(self, token: str | bool | None = None) -> None:
        self.token = token
        self.endpoint = constants.ENDPOINT
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="hf-lineage-range")
        self.requests = 0  # sent so far; a retry of one is not counted again
        self.ends = math.inf  # on the monotonic clock, of the question that is being asked
        self.answered = False  # whether a server has answered anything yet
        self._lock = Lock()
        self._canonical: dict[str, str] = {}
        self._known: dict[str, RepoFacts] = {}

    @property
    def offline(self) -> bool:
        """Whether only the cache may be used (HF_HUB_OFFLINE)."""
        return is_offline_mode()

    def repo(self, ref: ModelRef) -> HubRepo:
        """The repo at a commit: canonical id, file names, card. One request, none for a model of a listing."""
        known = self._known.get(ref.repo_id) if ref.revision is None else None
        fields = ["sha", "siblings", "cardData", "createdAt", "lastModified", "private", "gated"]
        facts = known or RepoFacts.of(self.model_data(ref, fields))
        if facts is None:
            raise HubUnavailableError(
                f"Expected the commit and the files of `{ref}` from {server_name(self.endpoint)}, got neither.",
                "Try again later, or without HF_ENDPOINT.",
            )
        name = f"{facts.id}/{ref.subfolder}" if ref.subfolder else facts.id
        return HubRepo(self, ModelRef("hub", name, facts.sha), str(ref), facts)

    def know(self, item: dict[str, Any]) -> None:
        """Keep the fields of a model in a listing, its commit and files among them."""
        if (facts := RepoFacts.of(item)) and facts.files:
            self._known[facts.id] = facts

    def canonical(self, name: str) -> str:
        """The id a repo has now, renames followed; `name` itself where the Hub does not tell."""
        if name not in self._canonical:
            found = None
            with suppress(LineageError):
                found = self.model_data(ModelRef("hub", name), ["sha"]).get("id")
            self._canonical[name] = found if isinstance(found, str) and is_repo_id(found) else name
        return self._canonical[name]

    def get(self, url: str, params: dict[str, Any], what: str, repo: str | None = None) -> tuple[Any, str | None]:
        """The JSON at an address of the API, and where its next page is: on the endpoint, or it is not followed.

        Retried, rate limits honoured: `HfApi.model_info` and `list_models` do neither. At most `MAX_ANSWER` bytes are
        unpacked. Raises our errors about `what`, of `repo`.
        """
        self.count()
        headers = build_hf_headers(token=self.token, library_name="hf_lineage") | {"Accept-Encoding": "gzip"}

        def ask() -> Any:
            request = get_session().stream("GET", url, params=params or None, headers=headers, timeout=TIMEOUT)
            with request as response:
                body = _unpacked(response, MAX_ANSWER)
                _raise_for_status(response, body)
                return response, body

        with explained(what, repo):
            response, body = self.patiently(ask, what)
            following = response.links.get("next", {}).get("url")
        if body is None:
            raise HubUnavailableError(f"{what}: the Hub sent more than {MAX_ANSWER >> 20} MB. Is a proxy in between?")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HubUnavailableError(f"{what}: the Hub sent no JSON. Is a proxy in between?") from error
        return data, following if following and same_origin(following, self.endpoint) else None

    def patiently(self, ask: Callable[[], T], what: str) -> T:
        """`ask()`, a whole request; what fails for a passing reason is tried again, as long as the question may take.

        Where the Hub says how long to wait, that is waited, and said; not more than `MAX_WAIT`. Raises
        `HubUnavailableError`, and what the client raises.
        """
        pause, silent, until = 1.0, 0, time.monotonic() + (REQUEST_SECONDS if self.answered else FIRST_SECONDS)
        for left in range(RETRIES, -1, -1):
            named = None
            try:
                found = within(self._left(until, what), ask)
            except HfHubHTTPError as error:
                self.answered = True
                if left == 0 or error.response.status_code not in RETRIED:
                    raise
                named = _seconds_named(error.response)
            except PASSING:
                silent += 1
                if silent == SILENCES or not self.answered:
                    raise
                _LOG.warning("%s: no answer of the Hub; trying again.", what)
            else:
                self.answered = True
                return found
            wait = pause if named is None else named + 1.0  # not a moment too early
            if named is not None:
                until += wait
                self._announce(wait, what)
            time.sleep(min(wait, max(0.0, self.ends - time.monotonic())))
            pause = min(8.0, 2 * pause)
        raise AssertionError("the last try returns or raises")

    def _left(self, until: float, what: str) -> float:
        """Seconds that a request may take. Raises `HubUnavailableError` where the time is over."""
        left = min(self.ends, until) - time.monotonic()
        if left <= 0:
            raise HubUnavailableError(f"{what}: no answer of the Hub in the time that is given.", "Try again later.")
        return left

    def _announce(self, wait: float, what: str) -> None:
        """Say that the Hub asks to wait. Raises `HubUnavailableError` where that is too long."""
        if wait > min(MAX_WAIT + 1, self.ends - time.monotonic()):
            raise HubUnavailableError(
                f"{what}: the Hub asks to wait {wait - 1:,.0f} seconds, longer than this program waits.",
                "Try again later.",
            )
        _LOG.warning("Rate limited. Waiting %.0f s before %s is asked for again.", wait, what)

    def count(self) -> None:
        """Note that a request is being sent."""
        with self._lock:
            self.requests += 1

    def model_data(self, ref: ModelRef, expand: Sequence[str]) -> dict[str, Any]:
        """What the API tells of a model, the fields of `expand` among it: as sent, untrusted.

        Some mirrors answer 404 to `?expand=`; they are asked for everything. Raises what `get` does.
        """
        revision = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        url = f"{self.endpoint}/api/models/{ref.repo_id}{revision}"
        try:
            data, _ = self.get(url, {"expand": list(expand)}, f"`{ref}`", ref.repo_id)
        except ModelNotFoundError as error:
            if not _without_reason(error):
                raise
            data, _ = self.get(url, {}, f"`{ref}`", ref.repo_id)
        if not isinstance(data, dict):
            raise HubUnavailableError(f"Expected a model for `{ref}`, got {type(data).__name__}.", "Try again later.")
        return data


class HubRepo:
    """A model repo pinned to one commit."""

    def __init__(self, hub: Hub, ref: ModelRef, requested: str, facts: RepoFacts) -> None:
        self.hub, self.ref, self.requested = hub, ref, requested
        self.only: str | None = None
        self.folder = f"{ref.subfolder}/" if ref.subfolder else ""
        if ref.subfolder in facts.files:  # a file is named, not a folder
            head, slash, self.only = ref.subfolder.rpartition("/")
            self.folder = head + slash
        self.files = frozenset(
            name.removeprefix(self.folder) for name in facts.files if name.startswith(self.folder)
        )  # fmt: skip
        self.card: dict | None = facts.card  # of the repo, whichever folder of it; None where it was not told
        self.has_card = "README.md" in facts.files
        self.created, self.committed, self.private = facts.created, facts.committed, facts.private
        self.kept = current() if facts.public else None  # what was read of it before, on this machine

    def read_small(self, name: str, limit: int) -> bytes:
        """A whole small file. Raises `BrokenFileError` if it is longer than `limit`."""
        file = self.open(name)
        if file.size > limit:
            raise BrokenFileError(f"`{name}` of `{self.ref.name}` is longer than the {limit:,} bytes allowed.")
        return bytes(file.read([(0, file.size)])[0])

    def read_optional(self, name: str, limit: int) -> bytes:
        """A whole small file; nothing where it is missing or longer than `limit`. What the Hub refuses is raised."""
        if name not in self.files:
            return b""
        file = self.open(name)
        return bytes(file.read([(0, file.size)])[0]) if file.size <= limit else b""

    def read_card(self, limit: int) -> bytes:
        """The first bytes of the repo's README.md, at most `limit`; nothing where it has none."""
        if not self.has_card:
            return b""
        file = RemoteFile(self, "README.md", whole_repo=True)
        return bytes(file.read([(0, min(limit, file.size))])[0])

    def folders_with_weights(self) -> list[str]:
        """Folders in it that hold safetensors files."""
        inside = (name.rpartition("/")[0] for name in self.files if name.endswith(".safetensors"))
        return sorted({folder for folder in inside if folder})

    def open(self, name: str) -> RemoteFile:
        """One file: its size is known, nothing is read yet."""
        return RemoteFile(self, name)

    def path(self, name: str) -> Path:
        """Download a whole file into the Hub's cache (only pickled weights need this)."""
        with explained(f"`{name}` of `{self.ref.name}`", self.ref.repo_id):
            return Path(
                hf_hub_download(
                    self.ref.repo_id,
                    self.folder + name,
                    revision=self.ref.revision,
                    token=self.hub.token,
                    endpoint=self.hub.endpoint,
                )
            )


class RemoteFile:
    """Byte ranges of one file on the Hub, several at once, neighbours in one request.

    A size that HEAD does not tell, or tells as 0, is asked for by GET: mirrors and proxies leave it out or make it up.
    What was kept of a public repo (`hub/kept.py`) is not asked for again, and not counted as read.
    """

    def __init__(self, repo: HubRepo, name: str, whole_repo: bool = False) -> None:
        self.repo, self.name = repo, name
        self.where = f"{repo.ref.name}/{name}"
        self.bytes_read = 0
        self._lock = Lock()  # batches are read ahead: two reads of one file may run at once
        self._resolving = Lock()
        self._resolved: Any = None
        self._is_resolved = False
        self._whole: bytes | None = None  # of a small file that came without a size
        path = name if whole_repo else repo.folder + name
        self._url = hf_hub_url(repo.ref.repo_id, path, revision=repo.ref.revision, endpoint=repo.hub.endpoint)
        self._tags: dict[str, str] = {}  # what a location called its content, the first time
        commit = f"{repo.hub.endpoint}/{repo.ref.repo_id}/{repo.ref.revision}/{path}"
        self._key = hashlib.sha256(commit.encode()).hexdigest()
        self._known = repo.kept.file(self._key) if repo.kept else None
        self.size: int = self._known[0] if self._known else self._asked_size()

    def _asked_size(self) -> int:
        size = self._meta.size
        if size and size > 0:
            if self.repo.kept:
                self.repo.kept.know(self._key, size, self._meta.etag)
            return size
        return self._retried(self._count_bytes, "the size")

    @property
    def digest(self) -> str | None:
        """The file's hash as the server names it: git's of a small file, SHA-256 of a large one."""
        return self._known[1] if self._known else self._meta.etag

    @property
    def _meta(self) -> Any:
        """Size, hash and location, asked for again where the location ran out: the same content, or it is an error."""
        with self._resolving:  # of this file: `cached_property` of Python 3.11 has one lock for all of them
            if not self._is_resolved:
                found, known, sha = self._resolve(), self._resolved, self.repo.ref.revision
                commit = found.commit_hash
                if commit is not None and COMMIT.fullmatch(commit) and sha is not None and commit != sha:
                    self._raise_changed(f"commit {sha[:8]}", f"commit {commit[:8]}")
                before = self._known or (known and (known.size, known.etag))
                if before and before != (found.size, found.etag):
                    self._raise_changed(f"hash {before[1]} of {before[0]} bytes", f"{found.etag} of {found.size}")
                self._resolved, self._is_resolved = found, True
            return self._resolved

    def _resolve(self) -> Any:
        hub = self.repo.hub
        hub.count()

        def ask() -> Any:
            return get_hf_file_metadata(self._url, token=hub.token, timeout=TIMEOUT, endpoint=hub.endpoint)

        with explained(f"`{self.where}`", self.repo.ref.repo_id):
            return hub.patiently(ask, f"`{self.where}`")

    def _raise_changed(self, expected: str, got: str) -> NoReturn:
        raise BrokenFileError(
            f"Expected `{self.where}` to stay as it was ({printable(expected)[:80]}), got {printable(got)[:80]}: it "
            "changed while it was read, or the server mixes files up. Run again."
        )

    def read(self, extents: Sequence[Extent]) -> list[bytearray]:
        """The bytes of each `(start, stop)`, in the order asked."""
        groups = coalesce(extents)
        parts = list(self.repo.hub.pool.map(self._fetch, [(group[0], group[1]) for group in groups]))
        result = [bytearray(stop - start) for start, stop in extents]
        for (start, stop, members), part in zip(groups, parts, strict=True):
            for index in members:
                first, last = extents[index]
                a, b = max(first, start), min(last, stop)
                result[index][a - first : b - first] = memoryview(part)[a - start : b - start]
        return result

    def _fetch(self, extent: Extent) -> bytearray:
        """One range."""
        kept = self.repo.kept
        if kept and (found := kept.read(self._key, *extent)) is not None:
            return found
        if self._whole is None:
            found = self._retried(lambda: self._get(*extent), f"bytes {extent[0]:,} to {extent[1]:,}")
        else:
            found = bytearray(self._whole[slice(*extent)])
        with self._lock:
            self.bytes_read += len(found)
        if kept:
            kept.write(self._key, extent[0], found)
        return found

    def _retried(self, ask: Callable[[], T], what: str) -> T:
        """A 403 of an expired location is resolved again once; a body that breaks off is retried."""
        refreshed, broken = False, 0
        while True:
            try:
                return ask()
            except _ExpiredLocation:
                if refreshed:
                    raise AccessDeniedError(
                        f"The Hub refuses `{self.where}` (403), also after a new link.", repo=self.repo.ref.repo_id
                    ) from None
                refreshed = True
                self._is_resolved = False
            except _BrokenOff as error:
                broken += 1
                if broken == TRIES:
                    raise HubUnavailableError(
                        f"Expected {what} of `{self.where}`, but the connection broke {TRIES} times.",
                        "Try again later.",
                    ) from error
                time.sleep(0.125 * 2**broken)

    def _get(self, start: int, stop: int) -> bytearray:
        def take(response: Any) -> tuple[bytearray, bool]:
            whole = self._check_range(response, start, stop)
            return _body(response, self.size if whole else stop - start), whole

        body, whole = self._asked(start, stop, take)
        wanted = self.size if whole else stop - start
        if len(body) != wanted:
            raise BrokenFileError(f"Expected {wanted:,} bytes of `{self.where}`, got {len(body):,}. Try again.")
        return body[start:stop] if whole else body

    def _count_bytes(self) -> int:
        """The file's size by GET: from Content-Range or Content-Length, else by reading the whole of a small file."""

        def take(response: Any) -> int | None:
            total = _total(response)
            if total is None and response.status_code == 200 and _says_where_it_ends(response):
                body = _body(response, MAX_UNSIZED)
                self._whole = bytes(body)
                return len(body) if len(body) <= MAX_UNSIZED else None
            return total

        total = self._asked(0, 1, take)
        if total is None:
            self._whole = None
            raise CheckpointError(
                f"{self._server} does not tell how long `{self.where}` is, and cannot be read from in parts.", INSTEAD
            )
        return total

    def _asked(self, start: int, stop: int, take: Callable[[Any], T]) -> T:
        """What `take` makes of the answer to a request for a range; what is refused is raised."""
        location, hub = self._meta.location, self.repo.hub
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        ours = same_origin(location, hub.endpoint)
        if ours:
            headers = build_hf_headers(token=hub.token, library_name="hf_lineage", headers=headers)
        hub.count()

        def ask() -> T:
            with get_session().stream("GET", location, headers=headers, timeout=TIMEOUT) as response:
                if response.status_code == 403 and not ours:
                    raise _ExpiredLocation
                if response.status_code not in (200, 206, 416):
                    _raise_for_status(response, _unpacked(response, MAX_ERROR))
                self._check_tag(location, response)
                try:
                    return take(response)
                except httpx.TransportError as error:
                    raise _BrokenOff from error

        with explained(f"`{self.where}`", self.repo.ref.repo_id):
            return hub.patiently(ask, f"`{self.where}`")

    def _check_tag(self, location: str, response: Any) -> None:
        """Raise `BrokenFileError` where a location has another content than the first time."""
        tag = response.headers.get("ETag")
        if tag is not None and response.status_code != 416:
            known = self._tags.setdefault(location.partition("?")[0], tag)
            if known != tag:
                self._raise_changed(f"ETag {known}", f"ETag {tag}")

    @property
    def _server(self) -> str:
        return f"The server at {server_name(self._meta.location)}"

    def _check_range(self, response: Any, start: int, stop: int) -> bool:
        """True if the server sent the whole (small) file instead of the range, False if the range itself."""
        if response.status_code == 206:
            given = response.headers.get("Content-Range", "")
            if given == "" and (start, stop) == (0, self.size):
                return False
            if given == "":
                raise CheckpointError(
                    f"{self._server} sends parts of `{self.where}` without saying which (206 without Content-Range): "
                    "they cannot be trusted.",
                    INSTEAD,
                )
            if given not in (f"bytes {start}-{stop - 1}/{self.size}", f"bytes {start}-{stop - 1}/*"):
                expected = f"bytes {start}-{stop - 1}/{self.size}"
                raise BrokenFileError(
                    f"Expected `{expected}` of `{self.where}`, got `{given[:80]}`: the file changed. Run again."
                )
            return False
        if response.status_code == 200 and self.size <= max(1 << 20, 2 * (stop - start)):
            return True
        if response.status_code == 416:
            raise BrokenFileError(f"`{self.where}` is shorter than its {self.size:,} bytes: it changed. Run again.")
        raise CheckpointError(
            f"Expected bytes {start:,} to {stop:,} of `{self.where}`, but the server ignores ranges and would send "
            f"all {self.size:,} bytes.",
            INSTEAD,
        )


class _ExpiredLocation(Exception):
    """A signed link ran out between two ranges."""


class _BrokenOff(Exception):
    """A connection broke before the whole of a range had come."""


def within(seconds: float, ask: Callable[[], T]) -> T:
    """`ask()` in a thread of its own, which is left to itself after so many seconds.

    The time-out of a socket begins anew with every byte. Raises `httpx.ReadTimeout`, and what `ask` raises.
    """
    found: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            found.put((True, ask()))
        except BaseException as error:
            found.put((False, error))

    threading.Thread(target=run, name="hf-lineage-request", daemon=True).start()
    try:
        fine, answer = found.get(timeout=seconds)
    except Empty:
        raise httpx.ReadTimeout(f"no answer within {seconds:.0f} s") from None
    if not fine:
        raise answer
    return answer


def _body(response: Any, most: int) -> bytearray:
    """The body, little more than `most` bytes of it."""
    body = bytearray()
    for chunk in response.iter_bytes(1 << 16):
        body += chunk
        if len(body) > most:
            break
    return body


def _unpacked(response: Any, most: int) -> bytes | None:
    """The whole body, unpacked within bounds: a megabyte of gzip may stand for gigabytes. None if there is more."""
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("identity", "gzip", ""):
        raise httpx.DecodingError(f"an encoding that was not asked for: {packed[:20]}")
    unpack, body = zlib.decompressobj(31), bytearray()
    try:
        for chunk in response.iter_raw(1 << 16):
            body += unpack.decompress(chunk, most + 1 - len(body)) if packed == "gzip" else chunk
            if len(body) > most:
                return None
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from error
    return bytes(body)


def _raise_for_status(response: Any, body: bytes | None) -> None:
    """`hf_raise_for_status` of a body that was read within bounds; what is longer is not quoted."""
    packing = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in packing]
    hf_raise_for_status(
        httpx.Response(response.status_code, headers=headers, content=body or b"", request=response.request)
    )


def _seconds_named(response: Any) -> int | None:
    """How long to wait before asking again, in seconds, as the server names it; None where it does not.

    Dates are not read.
    """
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    named = response.headers.get("Retry-After", "").strip()
    return int(named) if re.fullmatch("[0-9]{1,12}", named) else None


def _total(response: Any) -> int | None:
    """The size of the whole file in an answer to a request for a range; None where it says none."""
    if response.status_code in (206, 416):
        match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("Content-Length", "")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"  # then it counts other bytes
    return int(length) if re.fullmatch(r"\d{1,18}", length) and not encoded else None


def _says_where_it_ends(response: Any) -> bool:
    """Whether a body that breaks off can be told from one that is complete, without its length."""
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower() or response.http_version == "HTTP/2"


def coalesce(extents: Sequence[Extent]) -> list[tuple[int, int, list[int]]]:
    """Requests `(start, stop, indices of extents they serve)` that cover the extents.

    Neighbours are joined across gaps of at most `MAX_GAP` bytes while all gaps together stay below `WASTE` of
    the bytes wanted; nothing longer than `MAX_REQUEST` is asked for at once.

    >>> coalesce([(100_000, 200_000), (0, 99_999), (9_000_000, 9_000_001)])
    [(0, 200000, [1, 0]), (9000000, 9000001, [2])]
    """
    slack = WASTE * sum(stop - start for start, stop in extents)
    runs: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(extents)), key=lambda i: extents[i]):
        start, stop = extents[index]
        if runs:
            first, last, members = runs[-1]
            gap = max(start - last, 0)
            if gap <= min(MAX_GAP, slack) and max(stop, last) - first <= MAX_REQUEST:
                runs[-1] = (first, max(stop, last), [*members, index])
                slack -= gap
                continue
        for at in range(start, stop, MAX_REQUEST):
            runs.append((at, min(at + MAX_REQUEST, stop), [index]))
    return runs


def date_text(value: Any) -> str | None:
    """A date of the API in ISO 8601; None where it is none.

    >>> date_text("2024-01-01T00:00:00.000Z"), date_text({})
    ('2024-01-01T00:00:00+00:00', None)
    """
    try:
        return datetime.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        return None


def server_name(url: str) -> str:
    """Scheme and host of an address, without a password, a path or a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def same_origin(url: str, endpoint: str) -> bool:
    """Whether scheme, host and port agree.

    >>> same_origin("https://hub.co/a/b", "https://hub.co"), same_origin("http://hub.co:81/a", "http://hub.co")
    (True, False)
    """
    try:
        a, b = urlsplit(url), urlsplit(endpoint)
        return (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)
    except ValueError:  # no address at all
        return False


@contextmanager
def explained(what: str, repo: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions into ours: what was asked for, what came, what to do next; `repo`: of which repo."""
    try:
        yield
    except LineageError:
        raise
    except GatedRepoError as error:
        raise GatedError(
            f"{what} is gated: accept its terms on its page.", "Then log in with `hf auth login`.", repo=repo
        ) from error
    except RepositoryNotFoundError as error:
        if _token_refused(error):
            raise _unknown_token(what, repo) from error
        raise ModelNotFoundError(
            f"{what} was not found on the Hub.",
            "If it is private, log in with `hf auth login`; a local folder starts with `./`, `/` or `~`.",
            repo=repo,
        ) from error
    except RevisionNotFoundError as error:
        raise NoRevisionError(
            f"{what} has no such revision. Name a branch, tag or commit that exists.", repo=repo
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubUnavailableError(f"{what} could not be fetched and is not in the cache.", repo=repo) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{what} is not in the repo at this commit.", repo=repo) from error
    except OfflineModeIsEnabled as error:
        raise HubUnavailableError(f"{what} needs the Hub, but offline mode is on (HF_HUB_OFFLINE).") from error
    except HFValidationError as error:
        raise ModelNotFoundError(f"{what} is not a valid repo id on the Hub.", repo=repo) from error
    except (HfHubHTTPError, FileMetadataError) as error:
        raise _of_status(error, what, repo) from error
    except httpx.HTTPError as error:
        raise HubUnavailableError(
            f"{what}: the Hub at {constants.ENDPOINT} did not answer ({type(error).__name__}).",
            "Is there a network? Else try again later.",
        ) from error
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: the client reads addresses and numbers of a server
        raise HubUnavailableError(
            f"{what}: the Hub at {constants.ENDPOINT} sent what makes no sense ({type(error).__name__}).",
            "Is a proxy in between?",
        ) from error


def _of_status(error: Exception, what: str, repo: str | None) -> LineageError:
    """Our error for an answer that the client has no class for."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if _token_refused(error):
        return _unknown_token(what, repo)
    if status in (401, 403):
        return AccessDeniedError(f"{what} may not be read with this login (HTTP {status}).", repo=repo)
    if status == 404:
        return ModelNotFoundError(
            f"{what} was not found on the Hub.", "If it is private, log in with `hf auth login`.", repo=repo
        )
    return HubUnavailableError(f"{what}: the Hub answered HTTP {status}.", "Try again later.", repo=repo)


def _without_reason(error: LineageError) -> bool:
    """Whether a bare 404 is behind it, as of a mirror that does not know a query; the Hub says what it did not find."""
    response = getattr(error.__cause__, "response", None)
    return response is not None and response.status_code == 404 and not response.headers.get("X-Error-Code")


def _token_refused(error: Exception) -> bool:
    """Whether a token was sent that the Hub does not know.

    Without one it answers 401, too, for what is missing or private; with one that it knows, 404 or 403.
    """
    response = getattr(error, "response", None)
    if response is None or response.status_code != 401 or response.headers.get("X-Error-Code"):
        return False
    return "authorization" in response.request.headers


def _unknown_token(what: str, repo: str | None) -> TokenRefusedError:
    return TokenRefusedError(
        f"{what} was asked for with a token that the Hub does not know (HTTP 401): it is wrong, expired or revoked.",
        "Log in again with `hf auth login`, or set HF_TOKEN to one that is valid.",
        repo=repo,
    )
