"""The answer of `annotate`: what changes, or has changed, in a card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CardError, Note
from ..files import replaced
from .base import Answer

MARK = b"<!-- hf-lineage:start -->"


@dataclass(frozen=True, eq=False)
class Annotation(Answer):
    """What changes, or has changed, in a card.

    `diff`: of README.md, unified, without control characters. `changed`: False where the card says it already.
    `url`: of the pull request or commit; None in a dry run. `files`: what is, or would be, committed together.
    """

    diff: str
    changed: bool
    url: str | None = None
    files: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    make: Callable[[], dict[str, bytes]] = field(default=dict, repr=False, compare=False)
    before: bytes = field(default=b"", repr=False, compare=False)

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {name: getattr(self, name) for name in ("changed", "url", "files", "notes", "diff")}

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON, which holds no file's content: `save` writes nothing then."""
        return {**{name: data[name] for name in ("changed", "url", "diff")}, "files": tuple(data["files"])}

    def rows(self) -> list[dict[str, Any]]:
        """The files."""
        return [{"file": name, "changed": self.changed, "url": self.url} for name in self.files]

    def to_markdown(self) -> str:
        """The diff as a block of code, with the address and the notes."""
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.diff)), default=0))
        shown = [f"{fence}diff", self.diff.rstrip("\n"), fence, ""] if self.diff else []
        return "\n".join([self._state(), "", *shown, *(f"- {note}" for note in self.notes)]).rstrip("\n") + "\n"

    def save(self, folder: Path) -> None:
        """Write the files into a folder, each at once or not at all.

        A README.md that lies there is replaced only if it is the card that was read, or was written by us. Raises
        `CardError`, and what else a `LineageError` is.
        """
        try:
            write_files(folder, self.make(), lambda there: there == self.before or MARK in there)
        except Changed as error:
            raise CardError(f"{error} Name another folder.") from error

    def __str__(self) -> str:
        return self.url or self.diff.rstrip("\n") or self._state()

    def _state(self) -> str:
        if not self.changed:
            return "The card says it already: nothing to change." + (f" See {self.url}" if self.url else "")
        return f"Written: {self.url}" if self.url else f"Would change {', '.join(self.files)}."


class Changed(Exception):
    """The card in a folder is another than the one that was read."""


def write_files(folder: Path, files: Mapping[str, bytes], may_replace: Callable[[bytes], bool]) -> None:
    """Each file whole or not at all; the card last, since it shows the others.

    may_replace: asked of a card that lies there, at the last moment. Raises `Changed` where it says no, and
    leaves the card as it is; `CardError` for what cannot be written.
    """
    try:
        _check_card(folder, files, may_replace)  # before anything is written, and again just before it is replaced
        for name in sorted(files, key=lambda name: name == "README.md"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.resolve() != (folder.resolve() / name).parent:
                raise CardError(f"Expected a folder at `{path.parent}`, found a link to another place.")
            with replaced(path, follow=False) as fresh:
                fresh.write_bytes(files[name])
                if name == "README.md":
                    _check_card(folder, files, may_replace)
    except OSError as error:
        raise CardError(f"Expected to write `{name}` into `{folder}`, got: {error.strerror}.") from error


def _check_card(folder: Path, files: Mapping[str, bytes], may_replace: Callable[[bytes], bool]) -> None:
    path = folder / "README.md"
    if "README.md" in files and path.exists() and not may_replace(path.read_bytes()):
        raise Changed(f"Expected the README.md that was read, found another at `{path}`: it was left as it is.")
