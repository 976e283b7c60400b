"""Model folders and files on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..answers.refs import ModelRef
from ..errors import AccessDeniedError, BrokenFileError, CheckpointError, ModelNotFoundError
from .texts import MAX_TEXT, card_data

if TYPE_CHECKING:
    from ..hub.client import Hub, HubRepo

Extent = tuple[int, int]


class LocalFile:
    """Bytes of a file on this machine; only what is asked for is read.

    Plain reads at an offset, not a memory map: a map of a file that shrinks meanwhile kills the process.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        self.bytes_read = 0
        self._lock = Lock()  # batches are read ahead: two reads of one file may run at once
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"Expected to read `{path}`, got: {error.strerror}.") from error

    def read(self, extents: Sequence[Extent]) -> list[bytearray]:
        """The bytes of each `(start, stop)`. Raises `BrokenFileError` where the file ends before."""
        result = []
        try:
            with self._path.open("rb", buffering=0) as file:
                for start, stop in extents:
                    buffer = bytearray(stop - start)
                    if os.preadv(file.fileno(), [buffer], start) != len(buffer):
                        raise BrokenFileError(f"`{self._path}` ends before byte {stop:,}: it changed. Run again.")
                    result.append(buffer)
        except OSError as error:
            raise CheckpointError(f"Expected to read `{self._path}`, got: {error.strerror}.") from error
        with self._lock:
            self.bytes_read += sum(map(len, result))
        return result


class LocalRepo:
    """A folder with the files of a model, or one weights file."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.requested = ref.name
        self.only: str | None = None
        try:
            path = Path(ref.name).expanduser()
        except RuntimeError as error:  # ~nobody
            raise ModelNotFoundError(f"Expected a model at `{ref.name}`, got: {error}") from error
        try:
            if path.is_file():
                self.folder, self.only = path.parent, path.name
            elif path.is_dir():
                self.folder = path
            else:
                raise ModelNotFoundError(
                    f"Expected a model folder or a weights file at `{ref.name}`, found nothing there.",
                    "To name a model on the Hub, write it without a leading `./`, `/` or `~`.",
                )
            alone = self.only and not self.only.endswith(".index.json")  # the shards of an index lie beside it
            self.files = frozenset([path.name] if alone else os.listdir(self.folder))
        except PermissionError as error:
            raise AccessDeniedError(f"Expected to read `{path}`, got: {error.strerror}.") from error
        except OSError as error:
            raise ModelNotFoundError(f"Expected a model at `{path}`, got: {error.strerror}.") from error

    @property
    def card(self) -> dict:
        """Metadata of README.md; empty where there is none or it cannot be read."""
        if "README.md" not in self.files:
            return {}
        try:
            with (self.folder / "README.md").open("rb") as file:
                return card_data(file.read(MAX_TEXT))
        except OSError:
            return {}

    def read_small(self, name: str, limit: int) -> bytes:
        """A whole small file. Raises `BrokenFileError` if it is longer than `limit`."""
        path = self.folder / name
        try:
            if path.stat().st_size > limit:
                raise BrokenFileError(f"`{path}` is longer than the {limit:,} bytes allowed for such a file.")
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"Expected to read `{path}`, got: {error.strerror}.") from error

    def read_optional(self, name: str, limit: int) -> bytes:
        """A whole small file; nothing where it is missing, longer than `limit` or cannot be read."""
        if name not in self.files:
            return b""
        try:
            file = self.open(name)
            # what has no size is not opened either: a pipe would wait for ever
            return bytes(file.read([(0, file.size)])[0]) if 0 < file.size <= limit else b""
        except CheckpointError:
            return b""

    def open(self, name: str) -> LocalFile:
        """One file, not yet read."""
        return LocalFile(self.folder / name)

    def path(self, name: str) -> Path:
        """Where a whole file lies on this machine."""
        return self.folder / name


class CachedRepo(LocalRepo):
    """A snapshot in the cache, under the name it has on the Hub. Only what was downloaded is there."""

    def __init__(self, ref: ModelRef, requested: str, folder: Path) -> None:
        super().__init__(ModelRef("local", str(folder)))
        self.ref, self.requested = ref, requested
        self.created: str | None = None


def repo_of(ref: ModelRef, hub: Hub) -> HubRepo | CachedRepo:
    """A repo of the Hub; in offline mode it is what the cache has of it, or `HubUnavailableError`."""
    if not hub.offline:
        return hub.repo(ref)
    from ..hub.cache import snapshot

    commit, folder = snapshot(ref)
    return CachedRepo(ModelRef("hub", ref.name, commit), str(ref), folder)
