"""Model folders and files on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..answers.refs import ModelRef
from ..errors import AccessDeniedError, BrokenFileError, CheckpointError, ModelNotFoundError
from .buffers import BUFFERS, Buffer

if TYPE_CHECKING:
    from ..hub.client import Hub, HubRepo

Extent = tuple[int, int]
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".onnx")  # endings of files that make a folder a model's
MOST_MODELS = 1000  # of one folder


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
            raise _unreadable(path, error) from error

    def read(self, extents: Sequence[Extent]) -> list[Buffer]:
        """The bytes of each `(start, stop)`. Raises `BrokenFileError` where the file ends before."""
        result: list[Buffer] = []
        try:
            with self._path.open("rb", buffering=0) as file:
                for start, stop in extents:
                    buffer = BUFFERS.take(stop - start)
                    if _read_into(file, memoryview(buffer), start) != len(buffer):
                        raise BrokenFileError(f"`{self._path}` ends before byte {stop:,}: it changed. Run again.")
                    result.append(buffer)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        with self._lock:
            self.bytes_read += sum(map(len, result))
        return result


def _read_into(file: FileIO, buffer: memoryview, start: int) -> int:
    """Fill the buffer from byte `start` on; returns how many bytes were there.

    One read of the system ends after 2 GiB at the latest, and may end before: it is repeated.
    """
    done = 0
    file.seek(start)
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"Expected to read `{path}`, got: {error.strerror}.")


class LocalRepo:
    """A folder with the files of a model, or one weights file."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.requested = ref.name
        self.only: str | None = None
        self.committed: str | None = None
        try:
            path = Path(ref.name).expanduser()
        except RuntimeError as error:  # ~nobody
            raise ModelNotFoundError(f"Expected a model at `{ref.name}`, got: {error}") from error
        try:
            if path.is_file():
                self.folder, self.only = path.parent, path.name
            elif path.is_dir():
                self.folder = _snapshot_in(path) or path
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

    card: dict | None = None  # nobody tells it: it is read when asked for

    def read_card(self, limit: int) -> bytes:
        """The first bytes of README.md, at most `limit`; nothing where there is none. Raises `CheckpointError`."""
        if "README.md" not in self.files or not (self.folder / "README.md").is_file():
            return b""
        try:
            with (self.folder / "README.md").open("rb") as file:
                return file.read(limit)
        except OSError as error:
            raise _unreadable(self.folder / "README.md", error) from error

    def read_small(self, name: str, limit: int) -> bytes:
        """A whole small file. Raises `BrokenFileError` if it is longer than `limit`."""
        path = self.folder / name
        try:
            if path.stat().st_size > limit:
                raise BrokenFileError(f"`{path}` is longer than the {limit:,} bytes allowed for such a file.")
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error

    def read_optional(self, name: str, limit: int) -> bytes:
        """A whole small file; nothing where it is missing, no file or longer than `limit`.

        Raises `CheckpointError` where it is there and cannot be read: what was not read is not empty.
        """
        path = self.folder / name
        if name not in self.files or not path.is_file():  # a pipe would wait for ever
            return b""
        file = self.open(name)
        return bytes(file.read([(0, file.size)])[0]) if 0 < file.size <= limit else b""

    def folders_with_weights(self) -> list[str]:
        """Folders in it that hold safetensors files, of the first hundred."""
        folders = [name for name in sorted(self.files)[:100] if (self.folder / name).is_dir()]
        return [name for name in folders if any((self.folder / name).glob("*.safetensors"))]

    def open(self, name: str) -> LocalFile:
        """One file, not yet read."""
        return LocalFile(self.folder / name)

    def path(self, name: str) -> Path:
        """Where a whole file lies on this machine."""
        return self.folder / name


def models_in(ref: ModelRef) -> list[ModelRef]:
    """The models in a local folder that is none itself: folders with weights in it, or one level deeper (`org/name`).

    Nothing for a repo on the Hub, a file, or a folder that holds weights.
    """
    root = Path(ref.name).expanduser() if ref.kind == "local" else None
    if root is None or not root.is_dir() or _has_weights(root):
        return []
    found: list[Path] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        inner = [folder] if _has_weights(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
        found += [path for path in inner if _has_weights(path)]
    name = ref.name.rstrip("/")
    return [ModelRef("local", f"{name}/{path.relative_to(root).as_posix()}") for path in found[:MOST_MODELS]]


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in WEIGHTS for path in folder.iterdir() if path.is_file())


def stands_for(path: str | Path) -> str:
    """The repo id that a folder on this machine stands for: that of the snapshot in a cache that it is, else the last
    two names of its path from the root on, which is how mirrors and clones are laid out; "" for none.

    >>> stands_for(f"/hub/models--org--name/snapshots/{'a' * 40}"), stands_for("/mirror/org/name/")
    ('org/name', 'org/name')
    """
    whole = Path(os.path.abspath(os.path.expanduser(path)))
    if "snapshots" in whole.parts:
        from ..hub.cache import snapshot_of

        if found := snapshot_of(whole):
            return found[0]
    return "/".join(whole.parts[-2:]) if len(whole.parts) > 2 else ""


def _snapshot_in(path: Path) -> Path | None:
    """Where the files are, of a repo's own folder in a cache."""
    if not (path.name.startswith("models--") and (path / "snapshots").is_dir()):
        return None
    from ..hub.cache import newest_snapshot

    return newest_snapshot(path)


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
    return CachedRepo(ModelRef("hub", ref.name, commit), str(ref), folder / ref.subfolder)
