"""References: Hub repo ids, local paths and modules, and how untrusted text is printed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ReferenceSyntaxError

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}"

_REPO_ID = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})?")

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./\-]{0,99}")


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """Where a model is: a Hub repo id with an optional revision, a local path, or a module in memory.

    A `Path`, or a string starting with `.`, `/` or `~`, is local; every other string is a repo id of one or
    two segments with an optional `@revision`, even if a folder of that name exists.

    >>> ModelRef.parse("timm/resnet18.a1_in1k@main")
    ModelRef(kind='hub', name='timm/resnet18.a1_in1k', revision='main')
    >>> str(ModelRef.parse("./models/../models/child"))
    './models/child'

    Raises `ReferenceSyntaxError` (a `ValueError`) for anything else.
    """

    kind: Literal["hub", "local", "module"]
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path | ModelRef) -> ModelRef:
        """Read a reference; `str` undoes it."""
        if isinstance(text, ModelRef):
            return text
        if isinstance(text, Path):
            return cls("local", _normalise_path(str(text)))
        if text.startswith("module:") and text[7:].isidentifier():
            return cls("module", text)
        if text[:1] in {".", "/", "~"}:
            if "\0" in text:
                raise ReferenceSyntaxError(f"Expected a path, got {text!r} with a NUL character in it.")
            return cls("local", _normalise_path(text))
        name, at, revision = text.partition("@")
        if not is_repo_id(name):
            raise ReferenceSyntaxError(
                f"Expected a repo id such as `org/name` or `org/name@revision`, got {text[:120]!r}.",
                "A local folder starts with `./`, `/` or `~`.",
            )
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise ReferenceSyntaxError(
                f"Expected a branch, tag or commit after `@`, got {revision[:120]!r} in {text[:120]!r}."
            )
        return cls("hub", name, revision or None)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def is_repo_id(text: str) -> bool:
    """Whether `text` is spelled like a Hub repo id of one or two segments.

    >>> [is_repo_id(t) for t in ("gpt2", "org/name", "a/b/c", "org/..", "org/n--m")]
    [True, True, False, False, False]
    """
    return bool(_REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text and text[-1] not in ".-"


def printable(text: str) -> str:
    """One line of printable characters: no control code of untrusted text can reach a terminal.

    >>> printable("a\\tb\\x1b[31m")
    'a b?[31m'
    """
    return "".join(ch if ch.isprintable() else "?" for ch in re.sub(r"\s+", " ", text).strip())


def _normalise_path(text: str) -> str:
    path = os.path.normpath(text)
    return path if path[0] in "./~" else f"./{path}"
