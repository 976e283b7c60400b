"""The answer of `annotate`: what changes, or has changed, in a card."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CardError, Note
from .base import Answer


@dataclass(frozen=True)
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

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {name: getattr(self, name) for name in ("changed", "url", "files", "notes", "diff")}

    def to_markdown(self) -> str:
        """The diff as a block of code, with the address and the notes."""
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.diff)), default=0))
        shown = [f"{fence}diff", self.diff.rstrip("\n"), fence, ""] if self.diff else []
        return "\n".join([self._state(), "", *shown, *(f"- {note}" for note in self.notes)]).rstrip("\n") + "\n"

    def save(self, folder: Path) -> None:
        """Write the files into a folder, each at once or not at all. Raises `LineageError`."""
        write_files(folder, self.make())

    def __str__(self) -> str:
        return self.url or self.diff.rstrip("\n") or self._state()

    def _state(self) -> str:
        if not self.changed:
            return "The card says it already: nothing to change." + (f" See {self.url}" if self.url else "")
        return f"Written: {self.url}" if self.url else f"Would change {', '.join(self.files)}."


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or not at all; the card last, since it shows the others."""
    temporary: Sequence[Path] = ()
    try:
        for name in sorted(files, key=lambda name: name == "README.md"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.resolve() != (folder.resolve() / name).parent:
                raise CardError(f"Expected a folder at `{path.parent}`, found a link to another place.")
            fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary = [fresh]
            with fresh.open("xb") as file:
                file.write(files[name])
            if path.is_file():
                fresh.chmod(path.stat().st_mode & 0o777)
            os.replace(fresh, path)
    except OSError as error:
        raise CardError(f"Expected to write `{name}` into `{folder}`, got: {error.strerror}.") from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
