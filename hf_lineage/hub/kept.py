"""What was read of public repos, and what was answered about them, kept on this machine: one SQLite file.

It lies in the folder that `huggingface_hub` keeps its things in (`HF_HOME`), readable by its owner alone. Everything in
it belongs to a commit, so that nothing in it can be out of date. **Of private and gated repos nothing is kept**, and
nothing kept is used before the Hub has said, in the one request that a model always costs, that this token may see the
repo, and that it is public. It is used by the command line; in Python only inside `keeping()`, so that a server's
visitors share nothing.

SQLite makes it safe for several processes and for those that are killed. Whatever goes wrong with it, the question is
answered without it. The oldest is forgotten where it grows beyond `MOST_BYTES`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = 1  # of the tables; a file of another version is begun anew
MOST_BYTES = 512 << 20  # of all
MOST_OF_FILE = 32 << 20  # of one file in a repo: a sample is kept, a whole model is not
MOST_ANSWERS = 1000
MOST_DAYS = 30  # that an answer is kept: it says what other repos were called
WAIT = 2.0  # seconds for another process
_TABLES = """
create table if not exists files (file text primary key, size integer, etag text, kept integer, used real);
create table if not exists ranges (
    file text, start integer, stop integer, crc integer, data blob, primary key (file, start, stop)
);
create table if not exists answers (key text primary key, made real, used real, text blob);
"""


@dataclass(frozen=True, slots=True)
class State:
    """What is kept: `bytes` of `files` files in repos and of `answers` answers, at `path`."""

    path: str
    bytes: int
    files: int
    answers: int


def place() -> Path:
    """Where it lies, whether it is there or not."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hf_lineage" / "kept.sqlite"


class Kept:
    """The file at `path`. Threads may share it. Where it cannot be read, nothing is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._written = 0  # bytes since it was last looked how many there are

    def file(self, key: str) -> tuple[int, str | None] | None:
        """(size, hash) of a file in a repo, from the last time; None where it is not known."""
        found = self._rows("select size, etag from files where file = ?", key)
        return (int(found[0][0]), found[0][1]) if found else None

    def know(self, key: str, size: int, etag: str | None) -> None:
        """Keep size and hash of a file."""
        self._change("insert or ignore into files values (?, ?, ?, 0, ?)", key, size, etag, time.time())

    def read(self, key: str, start: int, stop: int) -> bytearray | None:
        """The bytes of a file from `start` to `stop`, where one range that was kept holds them all."""
        asked = "select start, crc, data from ranges where file = ? and start <= ? and stop >= ? limit 1"
        found = self._rows(asked, key, start, stop)
        if not found or zlib.crc32(found[0][2]) != found[0][1]:
            return None
        first, _, data = found[0]
        return bytearray(memoryview(data)[start - first : stop - first])

    def write(self, key: str, start: int, data: bytes | bytearray) -> None:
        """Keep bytes of a file that is known, unless that would be too many of it."""
        with self._lock:
            try:
                base = self._connection()
                with base:
                    changed = base.execute(
                        "update files set kept = kept + ?, used = ? where file = ? and kept + ? <= ?",
                        (len(data), time.time(), key, len(data), MOST_OF_FILE),
                    )
                    if changed.rowcount:
                        row = (key, start, start + len(data), zlib.crc32(data), bytes(data))
                        base.execute("insert or ignore into ranges values (?, ?, ?, ?, ?)", row)
                self._written += len(data)
                if self._written > MOST_BYTES // 8:  # one command may read many models
                    self._written = 0
                    self._forget()
            except (sqlite3.Error, OSError):
                self._close()

    def answer(self, key: str) -> str | None:
        """The answer to a question, as its JSON; None where none was kept."""
        newer = time.time() - 86400 * MOST_DAYS
        found = self._rows("select text from answers where key = ? and made > ?", key, newer)
        try:
            return zlib.decompress(found[0][0]).decode("utf-8") if found else None
        except (zlib.error, UnicodeDecodeError):
            return None

    def remember(self, key: str, text: str) -> None:
        """Keep the answer to a question."""
        now = time.time()
        packed = zlib.compress(text.encode("utf-8"))
        self._change("insert or replace into answers values (?, ?, ?, ?)", key, now, now, packed)
        newest = "select key from answers order by made desc limit ?"
        self._change(f"delete from answers where key not in ({newest})", MOST_ANSWERS)

    def state(self) -> State:
        """How much is kept."""
        count = "select (select count(*) from files where kept > 0), (select count(*) from answers)"
        found = self._rows(count) if self.path.exists() else []
        size = self.path.stat().st_size if self.path.exists() else 0
        return State(str(self.path), size, *(found[0] if found else (0, 0)))

    def empty(self) -> None:
        """Forget everything. Raises `OSError`."""
        with self._lock:
            self._close()
            for end in ("", "-journal"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def close(self) -> None:
        """Forget the oldest where there is too much, and let go of the file."""
        with self._lock:
            try:
                if self._open is not None and self.path.stat().st_size > MOST_BYTES:
                    self._forget()
                    self._connection().execute("vacuum")
            except (sqlite3.Error, OSError):
                pass
            self._close()

    def _forget(self) -> None:
        """The oldest where there is too much, until two thirds are left."""
        base = self._connection()
        total = base.execute("select coalesce(sum(kept), 0) from files").fetchone()[0]
        if total <= MOST_BYTES * 3 // 4:
            return
        oldest = base.execute("select file, kept from files order by used").fetchall()
        with base:
            base.execute("delete from answers where made < ?", (time.time() - 86400 * MOST_DAYS,))
            for file, kept in oldest:
                if total <= MOST_BYTES * 2 // 3:
                    break
                base.execute("delete from ranges where file = ?", (file,))
                base.execute("delete from files where file = ?", (file,))
                total -= kept

    def _rows(self, asked: str, *values: object) -> list[tuple]:
        with self._lock:
            try:
                return self._connection().execute(asked, values).fetchall()
            except (sqlite3.Error, OSError):
                self._close()
                return []

    def _change(self, asked: str, *values: object) -> None:
        with self._lock:
            try:
                with self._connection() as base:
                    base.execute(asked, values)
            except (sqlite3.Error, OSError):
                self._close()

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            base = sqlite3.connect(self.path, timeout=WAIT, check_same_thread=False)
            with closing(base.execute("pragma user_version")) as cursor:
                found = cursor.fetchone()[0]
            if found not in (0, VERSION):
                base.close()
                self.path.unlink()
                raise sqlite3.DatabaseError("of another version")
            base.executescript(_TABLES)
            base.execute(f"pragma user_version = {VERSION}")
            base.execute(
                "pragma synchronous = off"
            )  # what a crash of the machine breaks is found by its sum, or begun anew
            self._open = base
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


_CURRENT: list[Kept] = []


def current() -> Kept | None:
    """What is used now; None outside `keeping`."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def keeping(path: Path | None = None) -> Iterator[Kept]:
    """Use what is kept, and keep more, in this process until the block ends. path: `place()` by default."""
    kept = Kept(path or place())
    _CURRENT.append(kept)
    try:
        yield kept
    finally:
        _CURRENT.remove(kept)
        kept.close()
