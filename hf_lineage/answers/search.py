"""What a search for candidates found: each with the rules that produced it, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import Note
from .base import MeasuredAnswer, fields_of, report
from .refs import ModelRef

Looked = Literal["comparable", "not_comparable", "unreadable"]


@dataclass(frozen=True, slots=True)
class FoundCandidate:
    """One model that could be the parent. `rules` say why it was looked at, the strongest first.

    `similarity`: share of the child's trunk, in elements, that has a partner of the same name and shape there, in
    [0, 1], from the headers alone; None where they were not read. `later`: the Hub says it was created after the child;
    a note, no more, since a repo may be deleted and made again. `reason`: why it is not comparable or not readable.
    """

    ref: str
    revision: str | None
    rules: tuple[str, ...]
    status: Looked
    similarity: float | None = None
    parameters: int | None = None
    downloads: int | None = None
    created: str | None = None
    later: bool = False
    reason: Note | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FoundCandidate:
        """What an answer's JSON has of it, in schema 2 or 1. Raises `KeyError`, `TypeError`."""
        reason = Note.from_dict(data["reason"]) if data["reason"] else None
        return cls(**{**data, "rules": tuple(data["rules"]), "reason": reason})


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class CandidateSearch(MeasuredAnswer):
    """The answer of `find_candidates`: comparable models first, each kind in the order of its rules' strength."""

    child: ModelRef
    requested: str
    candidates: tuple[FoundCandidate, ...]
    requests: int = 0

    @property
    def refs(self) -> tuple[str, ...]:
        """The comparable ones, to be handed to `trace`."""
        return tuple(candidate.ref for candidate in self.candidates if candidate.status == "comparable")

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "child": self.child.to_dict(self.requested),
            "candidates": [fields_of(candidate) for candidate in self.candidates],
            "notes": self.notes,
            "requests": self.requests,
            **self.cost(),
        }

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {
            "child": ModelRef.recorded(data["child"]),
            "requested": data["child"]["requested"],
            "candidates": tuple(FoundCandidate.from_dict(candidate) for candidate in data["candidates"]),
            "requests": data["requests"],
        }

    def rows(self) -> list[dict[str, Any]]:
        """The candidates, each with its rules in one text."""
        return [{**fields_of(candidate), "rules": "; ".join(candidate.rules)} for candidate in self.candidates]

    def to_markdown(self) -> str:
        """The table with names in full."""
        return report("search.markdown")(self)

    def __repr__(self) -> str:
        return f"CandidateSearch({self.child.name!r}, {len(self.refs)} comparable of {len(self.candidates)})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("search.table")(self, width)
