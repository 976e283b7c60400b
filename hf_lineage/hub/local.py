"""Model folders and files on this machine."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import AccessDeniedError, BrokenFileError, CheckpointError, ModelNotFoundError
from ..records import ModelRef
from .client import MAX_TEXT, card_data

Extent = tuple[int, int]


class LocalFile:
    """Bytes of a memory-mapped file; only what is read is copied."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.bytes_read = 0
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except OSError as error:
            raise CheckpointError(f"Expected to read `{path}`, got: {error.strerror}.") from error

    def read(self, extents: Sequence[Extent]) -> list[bytearray]:
        """The bytes of each `(start, stop)`."""
        return [self._copy(start, stop) for start, stop in extents]

    def _copy(self, start: int, stop: int) -> bytearray:
        if stop > self.size:
            raise BrokenFileError(f"`{self.name}` has {self.size:,} bytes, expected at least {stop:,}. Get it again.")
        buffer = bytearray(stop - start)
        if self._map is not None and buffer:
            with memoryview(self._map) as view:
                buffer[:] = view[start:stop]
        self.bytes_read += len(buffer)
        return buffer


class LocalRepo:
    """A folder with the files of a model, or one weights file."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.requested = ref.name
        self.only: str | None = None
        path = Path(ref.name).expanduser()
        try:
            if path.is_file():
                self.folder, self.only = path.parent, path.name
            elif path.is_dir():
                self.folder = path
            else:
                raise ModelNotFoundError(
                    f"Expected a model folder or a weights file at `{ref.name}`, found nothing there. "
                    f"To name a model on the Hub, write it without a leading `./`, `/` or `~`."
                )
            self.files = frozenset([self.only] if self.only else os.listdir(self.folder))
        except PermissionError as error:
            raise AccessDeniedError(f"Expected to read `{path}`, got: {error.strerror}.") from error
        except OSError as error:
            raise ModelNotFoundError(f"Expected a model at `{path}`, got: {error.strerror}.") from error

    @property
    def card(self) -> dict:
        """Metadata of README.md; empty where there is none or it cannot be read."""
        if "README.md" not in self.files:
            return {}
        with (self.folder / "README.md").open("rb") as file:
            return card_data(file.read(MAX_TEXT))

    def read_small(self, name: str, limit: int) -> bytes:
        """A whole small file. Raises `BrokenFileError` if it is longer than `limit`."""
        path = self.folder / name
        try:
            if path.stat().st_size > limit:
                raise BrokenFileError(f"`{path}` is longer than the {limit:,} bytes allowed for such a file.")
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"Expected to read `{path}`, got: {error.strerror}.") from error

    def open(self, name: str) -> LocalFile:
        """One file, mapped and not yet read."""
        return LocalFile(self.folder / name)

    def path(self, name: str) -> Path:
        """Where a whole file lies on this machine."""
        return self.folder / name
