"""References: Hub repo ids, local paths and modules, and how untrusted text is printed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from ..errors import ReferenceSyntaxError

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}"

_REPO_ID = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})?")

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./\-]{0,99}")

_FOLDERS = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,7}}")

_LINK = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+?)/*(?:[?#].*)?")
_OTHER_PAGES = {"datasets", "spaces", "models", "collections", "papers", "docs", "blog", "api"}  # of no model


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """Where a model is: a Hub repo id with an optional revision, a local path, or a module in memory.

    A `Path`, or a string starting with `.`, `/` or `~`, is local; every other string is a repo id of one or
    two segments with an optional `@revision`, even if a folder of that name exists. Segments behind the second are a
    folder in the repo (`org/name/unet`). The address of a model's page on the Hub is taken for its id.

    >>> ModelRef.parse("timm/resnet18.a1_in1k@main")
    ModelRef(kind='hub', name='timm/resnet18.a1_in1k', revision='main')
    >>> str(ModelRef.parse("https://huggingface.co/org/name/tree/v1/unet"))
    'org/name/unet@v1'
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
        name, at, revision = _without_address(text).partition("@")
        if not _names_model(name):
            raise ReferenceSyntaxError(
                f"Expected a repo id such as `org/name` or `org/name@revision`, got {text[:120]!r}.",
                "A local folder starts with `./`, `/` or `~`.",
            )
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise ReferenceSyntaxError(
                f"Expected a branch, tag or commit after `@`, got {revision[:120]!r} in {text[:120]!r}."
            )
        return cls("hub", name, revision or None)

    @property
    def repo_id(self) -> str:
        """The repo on the Hub, without the folder in it.

        >>> ref = ModelRef.parse("org/name/unet")
        >>> ref.repo_id, ref.subfolder
        ('org/name', 'unet')
        """
        return "/".join(self.name.split("/")[:2])

    @property
    def subfolder(self) -> str:
        """The folder in a repo on the Hub; "" for its root."""
        return "/".join(self.name.split("/")[2:]) if self.kind == "hub" else ""

    def to_dict(self, requested: str) -> dict[str, Any]:
        """The JSON contract of the model that an answer is about."""
        return {"ref": self.name, "requested": requested, "revision": self.revision}

    @classmethod
    def recorded(cls, data: Mapping[str, Any]) -> ModelRef:
        """The reference of what `to_dict` wrote. Raises `KeyError`."""
        name = data["ref"]
        kind: Literal["hub", "local", "module"] = "local" if name[:1] in {".", "/", "~"} else "hub"
        return cls("module" if name.startswith("module:") else kind, name, data["revision"])

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def is_repo_id(text: str) -> bool:
    """Whether `text` is spelled like a Hub repo id of one or two segments.

    >>> [is_repo_id(t) for t in ("gpt2", "org/name", "a/b/c", "org/..", "org/n--m")]
    [True, True, False, False, False]
    """
    return bool(_REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text and text[-1] not in ".-"


def _names_model(name: str) -> bool:
    """Whether `name` is a repo id, perhaps with a folder behind it."""
    repo, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    return is_repo_id(repo) and (name == repo or (bool(_FOLDERS.fullmatch(folder)) and ".." not in folder))


def _without_address(text: str) -> str:
    """The id that the address of a model's page stands for; any other text as it is.

    >>> [_without_address(f"https://huggingface.co/{path}") for path in ("gpt2", "a/b/blob/v1/u/x.json", "a/b?not=1")]
    ['gpt2', 'a/b/u@v1', 'a/b']
    """
    match = _LINK.fullmatch(text.strip())
    parts = [unquote(part) for part in match[1].split("/")] if match else []
    if parts and parts[0] in _OTHER_PAGES:
        raise ReferenceSyntaxError(f"Expected the address of a model's page, got {text[:120]!r}, which is no model's.")
    if not parts:
        return text
    pages = ("tree", "blob", "resolve", "raw", "commit", "discussions", "commits")
    at = next((i for i in (1, 2) if len(parts) > i and parts[i] in pages), len(parts))
    name, rest = parts[: min(at, 2)], parts[at:]
    if len(rest) < 2 or rest[0] in ("discussions", "commits"):
        return "/".join(name)
    folder = {"tree": rest[2:], "commit": []}.get(rest[0], rest[2:-1])
    return f"{'/'.join([*name, *folder])}@{rest[1]}"


def printable(text: str) -> str:
    """One line of printable characters: no control code of untrusted text can reach a terminal.

    >>> printable("a\\tb\\x1b[31m")
    'a b?[31m'
    """
    return "".join(ch if ch.isprintable() else "?" for ch in re.sub(r"\s+", " ", text).strip())


def _normalise_path(text: str) -> str:
    path = os.path.normpath(text)
    return path if path[0] in "./~" else f"./{path}"
