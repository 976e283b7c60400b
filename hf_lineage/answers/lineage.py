"""The answer of `trace`: candidates, claims and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .base import Evidence, StatisticalAnswer, fields_of, report
from .refs import ModelRef, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Verdict = Literal["parent", "identical", "common_origin", "none", "undecided"]
Status = Literal["compared", "not_comparable", "unreadable"]
ClaimStatus = Literal["confirmed", "contradicted", "relative", "not_testable", "not_understood"]
Relation = Literal[
    "identical", "head_changed", "partial", "finetune", "quantized", "pruned", "adapter",
    "resized", "merge", "sibling", "descendant", "common_origin", "none",
]  # fmt: skip
PARENT_RELATIONS = frozenset(
    {"identical", "head_changed", "partial", "finetune", "quantized", "pruned", "adapter", "resized", "merge"}
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
    p_method: Literal["normal", "monte_carlo"] | None = None
    log10_p: float | None = None
    distance: float | None = None
    relation: Relation | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    evidence: dict[str, Evidence] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
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
            "child": {
                "ref": self.child.name,
                "requested": self.requested,
                "revision": self.child.revision,
            },
            "verdict": self.verdict,
            "parent": self.parent,
            "none_probability": self.none_probability,
            "candidates": [fields_of(candidate) for candidate in self.candidates],
            "claims": [fields_of(claim) for claim in self.claims],
            "undeclared": self.undeclared,
            "notes": self.notes,
            **self.cost(),
        }

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
