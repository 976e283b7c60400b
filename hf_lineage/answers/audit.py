"""What an audit says of one model, and the rules it reports by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from .base import COST, Answer, fields_of, report
from .lineage import Claim, Relation, Verdict

Status = Literal["contradicted", "undeclared", "failed", "relative", "not_testable", "no_claim", "confirmed"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a status is called in SARIF, how grave it is there, what it means and what to do about it."""

    id: str
    level: Literal["error", "warning", "note"]
    title: str
    help: str


# Every status, worst first; None: nothing to report. All surfaces take the order and the words from here.
RULES: Mapping[Status, Rule | None] = {
    "contradicted": Rule(
        "contradicted-base-model", "error", "The declared base model is contradicted by the weights",
        "The card, a config, an adapter or a merge recipe names a base model, and the weights show no sign of a common "
        "origin with it. Check it with `hf-lineage trace MODEL -c BASE --sample all`, which "
        "also finds permuted and rescaled hidden units. "
        "Then correct base_model, or upload the weights that were meant.",
    ),
    "undeclared": Rule(
        "undeclared-parent", "warning", "The weights come from a model that no file names",
        "A model was found that this one was fine-tuned from, and no file of the repo names it. Add it as base_model, "
        "and check that its licence was followed.",
    ),
    "failed": Rule(
        "unreadable-model", "warning", "The model could not be audited",
        "The repo, its files or its weights could not be read; the message says why. Nothing is known of its claims.",
    ),
    "relative": Rule(
        "base-model-is-a-relative", "note", "The declared base model is a relative, not the parent",
        "The two share an origin, but as siblings, ancestors or descendants do. Name the model that training started "
        "from.",
    ),
    "not_testable": Rule(
        "base-model-not-testable", "note", "The declared base model could not be tested",
        "The base is missing, gated, of another architecture or an adapter's, or the evidence decides nothing. It is "
        "neither confirmed nor contradicted.",
    ),
    "no_claim": None,
    "confirmed": None,
}  # fmt: skip


MEANING: Mapping[Status, str] = {
    **{status: rule.title for status, rule in RULES.items() if rule},
    "no_claim": "No file of the repo names a base model",
    "confirmed": "The weights bear out every declared base model",
}


BY_ID = {rule.id: rule for rule in RULES.values() if rule}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a rule of `RULES`, the base it is about and which files name that base.

    `p_value`, `probability`, `relation`: what was measured of that base, None where it was not compared.
    """

    rule: str
    base: str | None = None
    sources: tuple[str, ...] = ()
    p_value: float | None = None
    probability: float | None = None
    relation: Relation | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class AuditRecord(Answer):
    """What an audit says of one model.

    ref, requested, revision: as in a `Lineage`. status: of `RULES`, the worst of all claims.
    claims: with their own status each. parent: the parent found, claimed or not; verdict: of the trace.
    p_value, probability, relation: of the model that the status is about, the first finding's base or the parent.
    findings: what is wrong, worst first. reason: in words. bytes_read: of weights and headers. seconds: wall clock.
    passing: whether the reason is one that may pass by itself, such as a Hub that did not answer.
    resumed: whether the record was taken from a journal.
    """

    ref: str
    requested: str
    status: Status
    revision: str | None = None
    claims: tuple[Claim, ...] = ()
    parent: str | None = None
    verdict: Verdict | None = None
    p_value: float | None = None
    probability: float | None = None
    relation: Relation | None = None
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    bytes_read: int = 0
    seconds: float = 0.0
    passing: bool = False
    resumed: bool = False

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        lists = {name: [fields_of(item) for item in getattr(self, name)] for name in ("claims", "findings")}
        return fields_of(self) | lists

    def rows(self) -> list[dict[str, Any]]:
        """One row: the record, its claims in one text."""
        rest = {name: value for name, value in fields_of(self).items() if name != "findings"}
        return [{**rest, "claims": " ".join(claim.ref for claim in self.claims)}]

    def to_markdown(self) -> str:
        """The report of this one model."""
        return report("audit.markdown")([self])

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON. Raises `ValueError` for an unknown status or rule."""
        values = {field.name: data[field.name] for field in fields(cls) if field.name not in COST}
        if values["status"] not in RULES:
            raise ValueError(f"unknown status {values['status']!r}")
        values["claims"] = tuple(Claim(**claim) for claim in values["claims"])
        values["findings"] = tuple(Finding(**{**f, "sources": tuple(f["sources"])}) for f in values["findings"])
        unknown = [finding.rule for finding in values["findings"] if finding.rule not in BY_ID]
        if unknown:
            raise ValueError(f"unknown rule {unknown[0]!r}")
        return values
