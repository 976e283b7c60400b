"""An answer for the public: of local folders it keeps the last name only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from ..answers.layers import LayerLineage
from ..answers.lineage import Lineage
from ..errors import Note

Answer = TypeVar("Answer", Lineage, LayerLineage)
Rename = Callable[[str], str]

# a path that nobody listed, in a note or a reason: not the tail of a word, of a url or of a longer path
_PATH = r"(?<![\w/:.~\-])(?:~\w*|\.{1,2})?//*(?:[^\s`'\"|<>,;:()/]+/+)*[^\s`'\"|<>,;:()/]+"


def is_local(ref: str) -> bool:
    """Whether a reference is a path.

    >>> is_local("./a"), is_local("~/a"), is_local("org/a")
    (True, True, False)
    """
    return ref[:1] in {".", "/", "~"}


def public(answer: Answer, rename: Rename) -> Answer:
    """The same answer with `rename` applied to every text in it."""
    renamed: Answer = _walk(answer, rename)
    return renamed


def renaming(lineage: Lineage, layers: LayerLineage | None = None) -> Rename:
    """What shortens paths in a text: `/home/me/models/base` to `./base`, of two folders of one name `./base-2`.

    >>> from hf_lineage.answers.lineage import Candidate, Lineage, ModelRef
    >>> asked = (Candidate("/home/me/a/base", "/home/me/a/base"), Candidate("/b/base", "/b/base"))
    >>> rename = renaming(Lineage(ModelRef.parse("org/x"), "org/x", "none", None, 1.0, asked))
    >>> rename("taken: /b/base, /home/me/a/base/x.json"), rename("cannot read /home/me/secret/notes.txt")
    ('taken: ./base, ./base-2/x.json', 'cannot read notes.txt')
    """
    short: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for path in sorted({ref for ref in _refs(lineage, layers) if is_local(ref)}):
        whole = os.path.abspath(os.path.expanduser(path))
        if whole not in short:
            name = f"./{os.path.basename(whole) or 'root'}"
            short[whole] = name if name not in short.values() else _numbered(name, short.values())
        for spelling in (path, whole, os.path.realpath(whole)):
            spelled.setdefault(spelling, short[whole])
    # within a sentence `.` is no folder
    known = [re.escape(path) for path in sorted(spelled, key=lambda path: (-len(path), path)) if re.search(r"\w", path)]
    pattern = re.compile("|".join([rf"(?<![\w/.~\-])(?:{'|'.join(known)})(?![\w\-])", _PATH] if known else [_PATH]))

    def shorten(found: re.Match[str]) -> str:
        return spelled.get(found[0]) or found[0].rpartition("/")[2]

    return lambda text: spelled[text] if text in spelled else pattern.sub(shorten, text) if "/" in text else text


def _numbered(name: str, taken: Iterable[str]) -> str:
    count = 2
    while f"{name}-{count}" in taken:
        count += 1
    return f"{name}-{count}"


def _refs(lineage: Lineage, layers: LayerLineage | None) -> Iterator[str]:
    yield from (lineage.child.name, lineage.requested, lineage.parent or "", *lineage.undeclared)
    yield from (ref for candidate in lineage.candidates for ref in (candidate.ref, candidate.requested))
    yield from (claim.ref for claim in lineage.claims)
    if layers is not None:
        yield from (layers.child.name, layers.requested, *layers.candidates)


def _walk(value: Any, rename: Rename) -> Any:
    """Every text in records, mappings and sequences; numbers and arrays stay as they are."""
    if isinstance(value, Note):
        parts = (rename(part) for part in (value.sentence, value.hint, value.python))
        return Note(value.code, *parts, text=rename(str(value)))
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, dict):
        return {_walk(key, rename): _walk(item, rename) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_walk(item, rename) for item in value])
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _walk(getattr(value, each.name), rename) for each in fields(value)})
    return value
