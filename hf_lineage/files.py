"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: str | Path, *, follow: bool = True) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place when the block ends, and is on the disk then.

    On an error what was there stays, and nothing else. follow: whether a link keeps pointing where it did, and that
    file is replaced; else the link is. What is no file, such as a pipe or a terminal, is written to as it is. Raises
    `OSError`.
    """
    path = Path(os.path.realpath(path)) if follow else Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    fresh = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield fresh
        if path.exists():
            fresh.chmod(path.stat().st_mode & 0o777)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Let the folder's new entry be on the disk, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
