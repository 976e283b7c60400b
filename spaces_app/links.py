"""A question to take away: as an address of this page, a command, a line of Python; and back from an address."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from questions import MAX_CANDIDATES, MAX_FIELD_CHARACTERS, RefusedError, model_id, shown

TABS = ("trace", "compare", "layers", "tree", "annotate")
OF_MODELS = ("compare", "tree")  # tabs that ask about models without a child


@dataclass(frozen=True, slots=True)
class Linked:
    """What an address asks. `parents` and `models` by line (of a comparison: two); `trouble` says what was left out of
    it, and why."""

    tab: str = "trace"
    child: str = ""
    parents: str = ""
    models: str = ""
    trouble: str = ""

    @property
    def asks(self) -> str:
        """The kind of question that is complete; "" where none is."""
        if self.tab == "tree":
            return "tree" if self.models else ""
        if self.tab == "compare":
            return "compare" if len(self.models.splitlines()) == 2 else ""
        return ("layers" if self.tab == "layers" else "trace") if self.child else ""


def as_link(child: str, parents: Sequence[str], tab: str = "trace") -> str:
    """
    >>> as_link("a/b@main", ["c/d", "e/f"], "layers")
    '?child=a/b@main&parents=c/d,e/f&tab=layers'
    """
    query = {"child": child} | ({"parents": ",".join(parents)} if parents else {})
    return _address(query | ({"tab": tab} if tab != "trace" else {}))


def as_models(models: Sequence[str], tab: str) -> str:
    """The address that asks about models without a child: one of `OF_MODELS`.

    >>> as_models(["a/b", "c/d"], "compare")
    '?models=a/b,c/d&tab=compare'
    """
    return _address({"models": ",".join(models), "tab": tab})


def _address(query: Mapping[str, str]) -> str:
    return "?" + urlencode(query, safe="/,@")


def from_link(query: Mapping[str, str]) -> Linked:
    """A link comes from anybody: what is no id is left out of it, and the page says so."""
    tab = query.get("tab", "trace")
    child, wrong = _valid([query["child"]] if query.get("child") else [])
    parents, strange = _valid(query.get("parents", "").split(","))
    models = [name for name in query.get("models", "")[:MAX_FIELD_CHARACTERS].split(",") if name.strip()]
    trouble = [f"{shown(text)} is no id of a model on the Hub." for text in (*wrong, *strange)[:3]]
    if len(parents) > MAX_CANDIDATES:
        trouble.append(f"Of {len(parents)} candidates the first {MAX_CANDIDATES} are asked about.")
    if tab == "compare" and not child:
        models, wrong = _valid(models)
        trouble += [f"{shown(text)} is no id of a model on the Hub." for text in wrong[:3]]
        trouble += [f"Expected two models to compare, got {len(models)}."] if len(models) != 2 else []
    note = f"Of the link: {' '.join(trouble)}" if trouble else ""
    if not child:
        return Linked(tab if tab in OF_MODELS else "trace", models="\n".join(models), trouble=note)
    known = tab if tab in TABS and tab != "compare" else "trace"
    return Linked(known, child[0], "\n".join(parents[:MAX_CANDIDATES]), "\n".join(models), note)


def _valid(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ids, each once, what is none)."""
    ids: dict[str, None] = {}
    wrong = []
    for text in texts:
        if text.strip():
            try:
                ids[model_id(text)] = None
            except RefusedError:
                wrong.append(text)
    return [*ids], wrong


def as_command(name: str, child: str, parents: Sequence[str], how: Mapping[str, Any] | None = None) -> str:
    """The question as a command.

    >>> as_command("trace", "a/b", ["c/d"], {"evidence": ["weights", "features"], "metric": "cka"})
    'hf-lineage trace a/b -c c/d --evidence weights --evidence features --metric cka'
    """
    options: list[str] = []
    for key, value in (how or {}).items():
        values = value if isinstance(value, list) else [value]
        options += [word for each in values for word in (f"--{key}", str(each))]
    return shlex.join(["hf-lineage", name, child, *(word for ref in parents for word in ("-c", ref)), *options])


def as_python(name: str, child: str, parents: Sequence[str], how: Mapping[str, Any] | None = None) -> str:
    """The question in Python."""
    candidates = f"{child!r}, candidates={list(parents)!r}" if parents else repr(child)
    return _python(name, ", ".join([candidates, *(f"{key}={value!r}" for key, value in (how or {}).items())]))


def as_comparison(one: str, other: str) -> str:
    """The question about two models as a command."""
    return shlex.join(["hf-lineage", "compare", one, other])


def comparison_python(one: str, other: str) -> str:
    """The question about two models in Python."""
    return _python("compare", f"{one!r}, {other!r}")


def tree_command(models: Sequence[str]) -> str:
    """The question for a tree as a command."""
    return shlex.join(["hf-lineage", "tree", *models])


def tree_python(models: Sequence[str]) -> str:
    """The question for a tree in Python."""
    return _python("phylogeny", repr(list(models)))


def _python(name: str, arguments: str) -> str:
    return f"import hf_lineage as hl\n\nanswer = hl.{name}({arguments})\nprint(answer)"
