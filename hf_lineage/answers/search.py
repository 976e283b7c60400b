"""What a search for candidates found: each with the rules that produced it, before any weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import SCHEMA, _fields, _plain, report
from .refs import ModelRef

Looked = Literal["comparable", "not_comparable", "unreadable"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """One model that could be the parent. `rules` say why it was looked at, the strongest first.

    `similarity`: share of the child's trunk, in elements, that has a partner of the same name and shape there, in
    [0, 1], from the headers alone; None where they were not read. `later`: the Hub says it was created after the child;
    a note, no more, since a repo may be deleted and made again.
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
    reason: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Proposals:
    """The answer of `find_candidates`: comparable models first, each kind in the order of its rules' strength."""

    child: ModelRef
    requested: str
    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...] = ()
    requests: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def refs(self) -> tuple[str, ...]:
        """The comparable ones, to be handed to `trace`."""
        return tuple(proposal.ref for proposal in self.proposals if proposal.status == "comparable")

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema `hf_lineage/1`."""
        return _plain(
            {
                "schema": SCHEMA,
                "child": {"ref": self.child.name, "requested": self.requested, "revision": self.child.revision},
                "candidates": [_fields(proposal) for proposal in self.proposals],
                "notes": self.notes,
                "requests": self.requests,
                "bytes_read": self.bytes_read,
                "seconds": self.seconds,
                "versions": self.versions,
            }
        )

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as one JSON document."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """The table with names in full."""
        return report("search.markdown")(self)

    def __repr__(self) -> str:
        return f"Proposals({self.child.name!r}, {len(self.refs)} comparable of {len(self.proposals)})"

    def __str__(self) -> str:
        return report("search.table")(self)
