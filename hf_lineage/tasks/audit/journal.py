"""The journal of one audit: a file of JSON lines that survives the process, so that nothing is looked at twice."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from ...answers.audit import AuditRecord
from ...answers.base import READABLE, SCHEMA
from ...errors import ArgumentError, LineageError

KIND = "audit-journal"
_LOG = logging.getLogger(__name__)


class Journal:
    """The settings of the audit in the first line, then a record a line, each on the disk before the next is begun.

    `done`: the finished records, by `requested`; of several for one model the last counts. What failed for a reason
    that may pass is not among them, nor is a line that cannot be read (broken, or of a rule that this version does not
    know): that is said, and its model is looked at again. A last line that was cut off is removed.

    Raises `ArgumentError` for a file that is no journal (it is left as it is), that was begun with other settings, or
    that another process is writing to.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[str, AuditRecord] = {}
        first = (json.dumps({"schema": SCHEMA, "kind": KIND, **settings}) + "\n").encode()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise ArgumentError(
                f"Expected a journal that can be written to, got `{path}`: {error.strerror}."
            ) from error
        try:
            self._lock()
            self._file.seek(0)
            raw = self._file.read()
            if b"\n" not in raw and first.startswith(raw):  # new, or killed before the first line was written
                self._file.truncate(0)
                self._write(first)
                return
            whole = raw[: raw.rfind(b"\n") + 1]
            head, _, lines = whole.partition(b"\n")
            self._check(head, settings)
            self._file.truncate(len(whole))
            self._load(lines.splitlines())
        except BaseException:
            self.close()
            raise

    def add(self, record: AuditRecord) -> None:
        """Write a record. When this returns, it is on the disk."""
        self._write((json.dumps(record.to_dict(), allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise LineageError(f"The journal `{self.path}` could not be written: {error.strerror}.") from error

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError as error:
            raise ArgumentError(
                f"Expected a journal that nobody writes to, but another audit uses `{self.path}`. "
                "Wait for it, or name another file."
            ) from error

    def _check(self, head: bytes, settings: dict[str, Any]) -> None:
        found = _object(head)
        if found.get("kind") != KIND or found.get("schema") not in READABLE:
            raise ArgumentError(f"Expected the journal of an audit, got another file: `{self.path}`. Name a new one.")
        differ = [
            f"{name} is {json.dumps(value)} here, {json.dumps(found.get(name))} there"
            for name, value in settings.items() if found.get(name) != value
        ]  # fmt: skip
        if differ:
            raise ArgumentError(
                f"Expected the settings that `{self.path}` was begun with: {'; '.join(differ)}. Name another file."
            )

    def _load(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                record = AuditRecord.from_dict(_object(line))
            except ValueError as error:
                _LOG.warning("Line %d of %s cannot be read (%s): its model is audited again.", number, self.path, error)
                continue
            self.done.pop(record.requested, None)
            if not (record.passing or record.status == "failed"):  # access may be granted by now
                self.done[record.requested] = record


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
