"""An audit as a table, Markdown, tab-separated lines and SARIF 2.1.0. Names in it are untrusted text."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..answers.audit import BY_ID, MEANING, RULES, Rule
from ..answers.refs import printable
from .console import NARROW, WIDTH, Column, labelled, row_lines
from .format import bytes_text, code, count_text, p_text
from .inheritance import markdown as flagged

if TYPE_CHECKING:
    from ..answers.audit import AuditRecord, Finding
    from ..answers.inheritance import Inheritance

    Place = tuple[str, int]  # a file's address, as SARIF wants it, and the line

HUB = "https://huggingface.co"
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
TABLE = (
    Column("status"), Column("model", name=True), Column("names", name=True), Column("p-value", right=True),
)  # fmt: skip
ASSUMES = "models trained separately, from starts of their own, whose hidden units nobody put in order on purpose"
COLUMNS = ("status", "model", "revision", "claims", "parent", "p_value", "probability", "relation", "reason")


def worst_first(records: Iterable[AuditRecord]) -> list[AuditRecord]:
    """Sorted by status, then by name."""
    order = list(RULES)
    return sorted(records, key=lambda record: (order.index(record.status), record.ref.lower(), record.requested))


def summary(records: Sequence[AuditRecord]) -> str:
    """How many models of each status, worst first, and what it cost."""
    counts = Counter(record.status for record in records)
    by_status = ", ".join(f"{counts[status]} {_words(status)}" for status in RULES if counts[status])
    fresh = [record for record in records if not record.resumed]
    cost = f"{bytes_text(sum(r.bytes_read for r in fresh))} in {sum(r.seconds for r in fresh):.1f} s"
    kept = len(records) - len(fresh)
    models = count_text(len(records), "model")
    journal = f" ({kept} as of the journal)" if kept else ""
    return f"{models}{journal}: {by_status or 'nothing to audit'}; read {cost}"


def table(records: Sequence[AuditRecord], width: int = WIDTH) -> str:
    """Every model, worst first, in at most `width` columns; below what is wrong, why."""
    ranked = worst_first(records)
    rows = [[_words(r.status), printable(_name(r)), printable(_claimed(r)), _p(r)] for r in ranked]
    drawn = row_lines(TABLE, rows, width) if rows else []
    lines = [*drawn[0]] if drawn else []
    for record, row in zip(ranked, drawn[1:], strict=True):
        lines += row
        if record.findings:
            lines += labelled(" " * (14 if width >= NARROW else 4), printable(record.reason), width)
    return "\n".join([*lines, *([""] if lines else []), *labelled("", summary(records), width)])


def markdown(
    records: Sequence[AuditRecord], complete: bool = True, carriers: Inheritance | None = None
) -> str:  # fmt: skip
    """Counts, a table worst first, what each status means, and what flags mean; every foreign name is escaped."""
    head = ["# Audit of declared base models", "", f"{summary(records)}.", ""]
    if not complete:
        head += ["**Interrupted: this is a part of the audit.**", ""]
    rows = ["| status | model | names | p-value | parent found | why |", "|---|---|---|---:|---|---|"]
    for record in worst_first(records):
        claims = " ".join(code(ref) for ref in dict.fromkeys(claim.ref for claim in record.claims))
        parent = code(record.parent) if record.parent else ""
        why = code(record.reason.replace("`", "'")) if record.reason else ""
        p_value = _p(record).replace("<", "&lt;")
        rows.append(f"| {_words(record.status)} | {code(_name(record))} | {claims} | {p_value} | {parent} | {why} |")
    counts = Counter(record.status for record in records)
    meaning = ["| status | models | means |", "|---|---:|---|"]
    meaning += [f"| {_words(status)} | {counts[status]} | {MEANING[status]} |" for status in RULES]
    more = ["", flagged(carriers).rstrip()] if carriers is not None else []
    return "\n".join([*head, *rows, "", *meaning, *more]) + "\n"


def tsv_head() -> str:
    """The first line of tab-separated records."""
    return "\t".join(COLUMNS)


def tsv(record: AuditRecord) -> str:
    """One record as a line of tab-separated fields; no field holds a tab or a newline."""
    fields = record.to_dict() | {"model": record.ref, "claims": " ".join(claim.ref for claim in record.claims)}
    return "\t".join("" if fields[name] is None else printable(str(fields[name])) for name in COLUMNS)


def sarif(
    records: Sequence[AuditRecord], version: str, places: Mapping[str, Place] | None = None, *,
    hub: str = HUB, complete: bool = True,
) -> str:  # fmt: skip
    """SARIF 2.1.0: a result for each finding, in the audit's order; confirmed and no-claim models have none.

    places: where a model was named, by `requested`: file and line. GitHub's code scanning accepts only files of the
    checkout. The others are located at their card, at the audited commit. A fingerprint is made of model, rule and
    base, so that the next commit's finding is the same alert.
    """
    indexes = {name: i for i, name in enumerate(BY_ID)}
    results = [
        _result(record, finding, indexes[finding.rule], (places or {}).get(record.requested), hub)
        for record in records for finding in record.findings
    ]  # fmt: skip
    driver = {
        "name": "hf-lineage", "version": version, "semanticVersion": version, "informationUri": "https://hf.co/docs/hub/model-cards",
        "rules": [_rule(rule) for rule in BY_ID.values()],
    }  # fmt: skip
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "hf-lineage/audit/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": complete}],
        "results": results,
    }
    document = {"$schema": SARIF, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(part.capitalize() for part in rule.id.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.help},
        "help": {"text": rule.help, "markdown": rule.help},
        "defaultConfiguration": {"level": rule.level},
        "properties": {"tags": ["provenance", "supply-chain"], "precision": "high"},
    }


def _result(record: AuditRecord, finding: Finding, index: int, place: Place | None, hub: str) -> dict[str, Any]:
    rule = BY_ID[finding.rule]
    mark = hashlib.sha256("\n".join([record.ref, finding.rule, finding.base or ""]).encode()).hexdigest()[:32]
    claim = f" names {finding.base} ({', '.join(finding.sources)})" if finding.sources else ""
    physical: dict[str, Any] = {"artifactLocation": {"uri": place[0] if place else _card(record, hub)}}
    physical["region"] = {"startLine": place[1] if place else 1}
    figures = {name: getattr(finding, name) for name in ("p_value", "probability", "relation")}
    measured = {
        "model": record.ref,
        "revision": record.revision,
        "base": finding.base,
        "parent": record.parent,
        **figures,
        "p_value_assumes": None if finding.p_value is None else ASSUMES,
    }
    return {
        "ruleId": rule.id,
        "ruleIndex": index,
        "level": rule.level,
        "message": {"text": _message(f"{record.ref}{claim}: {finding.reason}")},
        "locations": [{"physicalLocation": physical}],
        "partialFingerprints": {"primaryLocationLineHash": f"{mark}:1", "hfLineage/v1": mark},
        "properties": {
            name: printable(v) if isinstance(v, str) else v for name, v in measured.items() if v is not None
        },
    }


def _card(record: AuditRecord, hub: str) -> str:
    if record.ref[:1] in "./~":
        return quote(f"{record.ref.removeprefix('./')}/README.md")
    return f"{hub}/{quote(record.ref)}/blob/{quote(record.revision or 'main', safe='')}/README.md"


def _message(text: str) -> str:
    """Plain text for a SARIF message: no link, no placeholder, no address that a viewer would make a link of.

    >>> _message("a [b](https://c) {0}")
    'a ?b?(https: c) ?0?'
    """
    return re.sub(r"[\[\]{}<>|\\]", "?", printable(text)).replace("://", ": ").replace("`", "'")


def _name(record: AuditRecord) -> str:
    """The model, with the revision if one was asked for."""
    _, at, revision = record.requested.partition("@")
    return f"{record.ref}@{revision}" if at and record.ref[:1] not in "./~" else record.ref


def _claimed(record: AuditRecord) -> str:
    """The model that the status is about, and how many others are named."""
    refs = list(dict.fromkeys([*(f.base for f in record.findings if f.base), *(c.ref for c in record.claims)]))
    return f"{refs[0]} +{len(refs) - 1}" if len(refs) > 1 else "".join(refs) or "-"


def _words(status: str) -> str:
    return status.replace("_", " ")


def _p(record: AuditRecord) -> str:
    """The p-value of a record; a p of 0 has left the range of floats."""
    if record.p_value is None:
        return "-"
    return p_text(math.log10(record.p_value) if record.p_value > 0 else -math.inf)
