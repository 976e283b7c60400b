"""What an audit says of one model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..report.audit import RULES, Status
from .lineage import SCHEMA, Claim, Relation, Verdict, _plain


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a rule of `report.audit.RULES`, the base it is about and which files name that base.

    `p_value`, `probability`, `relation`: what was measured of that base, None where it was not compared.
    """

    rule: str
    base: str | None = None
    sources: tuple[str, ...] = ()
    p_value: float | None = None
    probability: float | None = None
    relation: Relation | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """What an audit says of one model.

    ref, requested, revision: as in a `Lineage`. status: of `report.audit.RULES`, the worst of all claims.
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

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema `hf_lineage/1`: plain types, no NaN, floats of 9 significant digits."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("claims", "findings"):
            told[name] = [{field.name: getattr(item, field.name) for field in fields(item)} for item in told[name]]
        return _plain({"schema": SCHEMA, **told})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AuditRecord:
        """What `to_dict` wrote. Raises `ValueError` for anything else."""
        try:
            told = {field.name: data[field.name] for field in fields(cls)}
            told["claims"] = tuple(Claim(**claim) for claim in told["claims"])
            told["findings"] = tuple(Finding(**{**f, "sources": tuple(f["sources"])}) for f in told["findings"])
            record = cls(**told)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an audit's record: {error!r}") from error
        if record.status not in RULES:
            raise ValueError(f"unknown status {record.status!r}")
        return record
