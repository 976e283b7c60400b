"""The answer of `trace`: candidates, claims and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Note
from .base import Evidence, RecordedEvidence, StatisticalAnswer, fields_of, report
from .refs import ModelRef, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Verdict = Literal["parent", "identical", "common_origin", "none", "undecided"]
Status = Literal["compared", "not_comparable", "unreadable"]
ClaimStatus = Literal["confirmed", "contradicted", "relative", "not_testable", "not_understood"]
Relation = Literal[
    "identical", "head_changed", "partial", "finetune", "cast", "quantized", "pruned", "adapter", "resized",
    "depth_changed", "merge", "shared_part", "sibling", "descendant", "common_origin", "none",
]  # fmt: skip
# Relations of two models that as a whole have nothing in common: whoever has the same part may have it from anybody
NO_RELATIVE = frozenset({"none", "shared_part"})
PMethod = Literal["normal", "monte_carlo", "proven", "e_value"]
# Relations under which a candidate may be called the parent. `cast` is said of the finer one of two only, so that it is
# among them; a part in common (`shared_part`) or layers more or less (`depth_changed`) do not tell who had them first
PARENT_RELATIONS = frozenset(
    {"identical", "head_changed", "partial", "finetune", "cast", "quantized", "pruned", "adapter", "resized", "merge"}
)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a file of the repo declares about a parent, and whether the weights confirm it.

    `ref`: the id that is meant, or the text itself where it is not understood. `raw`: the text as it was written, None
    where it is the id.
    """

    source: Literal["card", "config", "adapter", "mergekit"]
    ref: str
    relation: str | None = None
    status: ClaimStatus = "not_testable"
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Who of child and candidate came first, as one place: that of the model they both come from.

    `position`, λ: 1 where the candidate itself is that model, −1 where the child is, about 0 where both parted from a
    third; None where nothing tells, which `reason` explains. `stderr`: its standard error. `misfit`: χ² per degree of
    freedom of the model of steps behind it, near 1 where that fits. `method`: what told. `entries`: weights that count.
    `radius`: the common origin lies within it of the candidate, root mean square of a weight, as `distance`; None where
    what was measured decides nothing.
    """

    position: float | None
    stderr: float | None = None
    misfit: float | None = None
    method: str | None = None
    entries: int = 0
    radius: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, in which the position is called `lambda`."""
        return {"lambda": self.position, **{name: getattr(self, name) for name in ORDER_KEYS}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Order:
        """What `to_dict` wrote. Raises `KeyError`."""
        return cls(data["lambda"], **{name: data[name] for name in ORDER_KEYS})


ORDER_KEYS = ("stderr", "misfit", "method", "entries", "radius", "reason")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate parent and everything measured about it; numbers are None where it was not judged.

    `probability` that it is the parent, in [0, 1]. `p_value`: chance, if it were unrelated, of evidence this
    strong for any of the compared candidates (Holm-adjusted); `p_raw` the same for this candidate alone;
    `log10_p` = log10(`p_value`). `distance` = sqrt(Σd²/Σn), the root mean square difference of a weight.
    """

    ref: str
    requested: str
    revision: str | None = None
    status: Status = "compared"
    probability: float | None = None
    p_value: float | None = None
    p_raw: float | None = None
    p_method: PMethod | None = None
    log10_p: float | None = None
    distance: float | None = None
    relation: Relation | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    order: Order | None = None
    reasons: tuple[Note, ...] = ()
    evidence: dict[str, Evidence] = field(default_factory=dict)

    @property
    def first(self) -> Literal["candidate", "child", "neither"] | None:
        """Who came first, as far as the facts show it."""
        return self.facts.get("first")

    @property
    def order_taken(self) -> bool:
        """Whether it came first because the caller says so (`older=True`), and no measurement."""
        return self.facts.get("older") == "taken"

    @property
    def copies(self) -> tuple[str, ...]:
        """Other candidates that are equal to this one."""
        return tuple(self.facts.get("copies", ()))

    @property
    def disguised(self) -> bool:
        """Whether its hidden units had to be put in order before they could be compared."""
        return "disguise" in self.facts

    @property
    def arranged(self) -> bool:
        """Whether its hidden units are alike in their places only: nothing is concluded from its p-value."""
        return self.relation is None and "copied" in self.facts

    def row(self) -> dict[str, Any]:
        """Its names and numbers without what they rest on: a flat row of a table."""
        names = ("ref", "requested", "revision", "status", "probability", "p_value", "log10_p", "distance", "relation")
        return {
            **{name: getattr(self, name) for name in names}, "moved": self.facts.get("moved"), "first": self.first,
            "reasons": " ".join(self.reasons),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of one candidate."""
        return fields_of(self) | {"order": None if self.order is None else self.order.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """What `to_dict` wrote, in schema 2 or 1. Raises `KeyError`, `TypeError`."""
        read = {
            "order": Order.from_dict(data["order"]) if data.get("order") else None,
            "reasons": tuple(Note.from_dict(reason) for reason in data["reasons"]),
            "evidence": {name: RecordedEvidence(found) for name, found in data["evidence"].items()},
        }
        return cls(**{**data, **read})


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Lineage(StatisticalAnswer):
    """The answer of `trace`. `candidates` are ordered best first; every surface only renders this record."""

    child: ModelRef
    requested: str
    verdict: Verdict
    parent: str | None
    none_probability: float | None
    candidates: tuple[Candidate, ...]
    claims: tuple[Claim, ...] = ()
    undeclared: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "child": self.child.to_dict(self.requested),
            "verdict": self.verdict,
            "parent": self.parent,
            "none_probability": self.none_probability,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "claims": [fields_of(claim) for claim in self.claims],
            "undeclared": self.undeclared,
            "notes": self.notes,
            **self.cost(),
        }

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {
            **{name: data[name] for name in ("verdict", "parent", "none_probability")},
            "child": ModelRef.recorded(data["child"]),
            "requested": data["child"]["requested"],
            "candidates": tuple(Candidate.from_dict(candidate) for candidate in data["candidates"]),
            "claims": tuple(Claim(**claim) for claim in data["claims"]),
            "undeclared": tuple(data["undeclared"]),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The candidates, best first."""
        return [{"child": self.child.name, "verdict": self.verdict, **c.row()} for c in self.candidates]

    def explain(self) -> str:
        """The verdict in plain sentences: what it rests on, and what it does not say."""
        return report("sentences.explanation")(self)

    def sentence(self) -> str:
        """The verdict in one plain sentence; names in it are untrusted text, cleaned of control characters."""
        return report("sentences.sentence")(self, printable)

    def to_markdown(self) -> str:
        """The verdict, the ranked table and the claims as Markdown."""
        return report("text.markdown")(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw how near each candidate is, block by block, and how sure that is; saved to `path` if given."""
        return report("plots.plot_lineage")(self, path)

    def profile(self, path: str | Path | None = None) -> Figure:
        """Draw how alike the features are against depth, before and after linearisation: `evidence="features"`."""
        return report("plots.plot_profile")(self, path)

    def __repr__(self) -> str:
        count = len(self.candidates)
        return f"Lineage({self.child.name!r}, {self.verdict!r}, parent={self.parent!r}, {count} candidates)"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("text.table")(self, width)
