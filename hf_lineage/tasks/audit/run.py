"""Many models, one after the other: what their files claim about their base, checked against their weights."""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...answers.audit import RULES, AuditRecord, Finding, Status
from ...answers.base import Progress
from ...answers.lineage import Candidate, Claim, Lineage
from ...answers.refs import ModelRef, printable
from ...checkpoints.adapter_shapes import adapter_fit
from ...checkpoints.checkpoint import Checkpoint, MemoryCheckpoint
from ...checkpoints.claims import beside, claims_of
from ...checkpoints.formats.adapter import find_adapter
from ...checkpoints.opener import open_checkpoint
from ...errors import (
    ArgumentError,
    HubUnavailableError,
    LineageError,
    NoCandidateReadError,
    NoCandidatesError,
    NothingToCompareError,
)
from ...report.progress import progress_of
from ...report.sentences import MERGED, OPEN, sources_of_merge
from ...sizes import limit_of
from ...weights.sampling import sample_budget
from ..options import Options, versions
from ..session import Session, base_of, unjudged
from ..trace import trace
from .journal import Journal

if TYPE_CHECKING:
    from ...checkpoints.opener import Model
    from ...placement import Wanted

BASES = 64  # models that stay open from one record to the next
NOT_FOUND = "the search found none"
NOT_UNDERSTOOD = "what is written there is not understood as the id of a model on the Hub"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")  # as the Hub makes them
_log = logging.getLogger("hf_lineage.tasks.audit")


def audit(
    models: Iterable[Model], *, search: bool = False, journal: str | Path | None = None, alpha: float = 1e-3,
    token: str | bool | None = None, device: Wanted = None, memory: int | str | None = None,
    sample: str | float | int | None = None, max_bytes: int | str | None = None, allow_pickle: bool = False,
    progress: Progress | bool | None = None, seed: int = 0, check_order: bool = False,
) -> Iterator[AuditRecord]:  # fmt: skip
    """Check of each model what its files claim about its base against its weights: one record each, in order, lazily.

    models: as `trace` takes a child. The claims are the card's `base_model`, `config.json`, an adapter's base and a
        merge recipe. A model without claims costs its card and configs, no weights.
    search: look on the Hub for other parents too: finds those that no file names, and costs many more requests.
    journal: a file that keeps each record as soon as it is finished. Given again with the same settings, the models
        in it are not looked at again, by the name they were asked for, whatever was committed since: a journal is for
        one run. What failed because the Hub did not answer is tried again. One process at a time may use it.
    alpha: family-wise error of the p-values of each model. max_bytes: for each model with its bases.
    progress: called as `progress(done, total, what)`, in models; total is 0 where `models` has no length.
    token, device, memory, sample, allow_pickle, seed, check_order: as in `trace`.

    Never stopped by one model: a `LineageError` makes a record of status `failed`, and so does a bug, as "internal
    error", whose traceback goes to the logger `hf_lineage.tasks.audit`. Raises `ArgumentError` for a wrong argument or
    journal, before the first record.
    """
    if isinstance(models, (str, Path, ModelRef)) or hasattr(models, "state_dict"):
        raise ArgumentError(f"Expected a list of models, got a single {type(models).__name__}.")
    max_bytes = Options(alpha=alpha, max_bytes=limit_of(max_bytes), device=device, memory=memory).max_bytes
    sample_budget(sample, 0, remote=True)
    options: dict[str, Any] = {
        "alpha": alpha, "sample": sample, "max_bytes": max_bytes, "seed": seed, "check_order": check_order,
    }  # fmt: skip
    settings = {
        "search": search, "alpha": alpha, "sample": sample, "max_bytes": max_bytes, "allow_pickle": allow_pickle,
        "seed": seed, "version": versions()["hf_lineage"], **({"check_order": True} if check_order else {}),
    }  # fmt: skip
    auditor = _Auditor(search, Session(token, allow_pickle), {**options, "device": device, "memory": memory})
    return _records(models, auditor, Journal(Path(journal), settings) if journal else None, progress_of(progress))


def _records(
    models: Iterable[Model], auditor: _Auditor, journal: Journal | None, progress: Progress | None
) -> Iterator[AuditRecord]:
    """One record for each model; what the journal has is not done again."""
    total = len(models) if isinstance(models, Sized) else 0
    try:
        for done, model in enumerate(models):
            name = printable(_called(model))
            if progress:
                progress(done, total, name)
            known = journal.done.get(name) if journal else None
            if known:
                yield replace(known, resumed=True)
            else:
                record = auditor.record(model)
                if journal and not name.startswith("module:"):
                    journal.add(record)
                yield record
            if progress:
                progress(done + 1, total, name)
    finally:
        auditor.session.close()
        if journal:
            journal.close()


class _Auditor:
    """Makes records, in one session: a base of several models is opened once."""

    def __init__(self, search: bool, session: Session, options: dict[str, Any]) -> None:
        self._search, self.session, self._options = search, session, options

    def record(self, model: Model) -> AuditRecord:
        """The record of one model, whatever happens but an interruption."""
        started = time.monotonic()
        name = printable(_called(model))
        empty = AuditRecord(name if name[:1] in "./~" else name.partition("@")[0], name, "failed")
        try:
            record = self._examine(model, empty)
        except LineageError as error:
            record = _failed(empty, error)
        except Exception as error:  # among hundreds of models, a bug in one must not lose the others
            _log.error("internal error in the audit of %s\n%s", name, self._without_token(traceback.format_exc()))
            why = f"internal error: {type(error).__name__}. This is a bug; its traceback is in the log."
            record = _finding(empty, why)
        findings = tuple(replace(f, reason=self._without_token(printable(f.reason))) for f in record.findings)
        reason = self._without_token(printable(record.reason))
        self.session.keep_latest(BASES)
        return replace(record, findings=findings, reason=reason, seconds=round(time.monotonic() - started, 3))

    def _examine(self, model: Model, empty: AuditRecord) -> AuditRecord:
        child = self._files(model)
        claims = tuple(claims_of(child))
        known = replace(empty, ref=child.ref.name, revision=child.ref.revision, claims=claims)
        if not claims and not self._search:
            return replace(known, status="no_claim", reason="no file names a base")
        if child.is_adapter:
            return self._adapter(model, known)
        named = list(dict.fromkeys(beside(claim.ref, child) for claim in claims if claim.status != "not_understood"))
        if claims and not named and not self._search:
            return _untested(known, NOT_UNDERSTOOD)
        refs = None if self._search else named
        self.session.opener.failed.clear()
        try:
            lineage = trace(model, refs, session=self.session, **self._options)
        except NoCandidatesError as error:
            if claims:  # they name the model itself, by an old name
                return _untested(known, str(error))
            return replace(known, status="no_claim", reason=f"no file names a base; {NOT_FOUND}")
        except NothingToCompareError as error:
            return self._nothing_compared(known, error, child)
        except LineageError as error:
            return _failed(known, error)
        return self._judged(known, lineage)

    def _files(self, model: Model) -> Checkpoint:
        """The model without its weights: card, configs, recipe."""
        if not isinstance(model, (str, Path, ModelRef)):
            return open_checkpoint(model)
        ref = _parse(model)
        repo = self.session.opener.repo(ref)
        child = MemoryCheckpoint(repo.ref, str(ref), {})
        child.repo = repo
        child.adapter_base = "" if find_adapter(repo) else None
        return child

    def _adapter(self, model: Model, known: AuditRecord) -> AuditRecord:
        """The record of an adapter: it holds no weights of its base, and the shapes of its factors can contradict."""
        why = _of_adapter(known.claims)
        try:
            adapter = self.session.opener.open(model)
            base = base_of(adapter, self.session.opener) if adapter.adapter_base else None
        except LineageError as error:
            passing = isinstance(error.__cause__ or error, HubUnavailableError)
            return replace(_untested(known, f"{why} Its shapes were not compared: {error}"), passing=passing)
        fit = adapter_fit(adapter, base) if base is not None else None
        if base is None or fit is None or not fit.misfit:
            return _untested(known, f"{why} {fit.explain().capitalize()}." if fit else why)
        same, candidate = self.session.opener.same_model, unjudged(base, "compared")
        claims = tuple(
            replace(claim, status="contradicted") if same(claim.ref, candidate) else claim for claim in known.claims
        )
        rule = _rule("contradicted")
        refs = dict.fromkeys(claim.ref for claim in claims if claim.status == "contradicted")
        findings = [Finding(rule, ref, _sources(claims, ref), reason=fit.explain()) for ref in refs]
        return _with(replace(known, claims=claims), "contradicted", findings)

    def _nothing_compared(self, known: AuditRecord, error: LineageError, child: Checkpoint) -> AuditRecord:
        """No candidate could be read, or nothing of the child can be compared."""
        understood = [claim for claim in known.claims if claim.status != "not_understood"]
        failed = self.session.opener.failed
        troubles = {claim.ref: failed.get(beside(claim.ref, child)) for claim in understood}
        if not any(troubles.values()):  # they could be opened: reading them broke off, or it is not about them
            passing = isinstance(error, NoCandidateReadError)
            return replace(_untested(known, str(error)), passing=True) if passing else _failed(known, error)
        findings = [
            Finding(_rule("not_testable"), ref, _sources(known.claims, ref), reason=str(trouble or error))
            for ref, trouble in troubles.items()
        ]
        passing = any(isinstance(trouble, HubUnavailableError) for trouble in troubles.values())
        return _with(known, "not_testable", findings, passing)

    def _judged(self, known: AuditRecord, lineage: Lineage) -> AuditRecord:
        """The record of a model whose weights were compared."""
        known = replace(
            known, claims=lineage.claims, parent=lineage.parent, verdict=lineage.verdict, bytes_read=lineage.bytes_read
        )
        about = {claim.ref: self._candidate(claim.ref, lineage) for claim in lineage.claims}
        merged = _merged(lineage.claims)
        statuses: dict[str, Status] = {
            c.ref: "confirmed" if c.ref in merged else "not_testable" if c.status == "not_understood" else c.status
            for c in lineage.claims
        }
        unclear = {c.ref for c in lineage.claims if c.status == "not_understood"}
        findings = [
            _about(
                _rule(status),
                ref,
                _sources(lineage.claims, ref),
                about[ref],
                NOT_UNDERSTOOD if ref in unclear else _why(status, about[ref], lineage),
            )
            for ref, status in statuses.items()
            if RULES[status]
        ]
        for ref in lineage.undeclared:
            its = next(c for c in lineage.candidates if c.ref == ref)
            findings.append(_about(_rule("undeclared"), ref, (), its, f"its parent is {ref}, which no file names"))
        found = {*statuses.values(), *(["undeclared"] if lineage.undeclared else [])}
        status: Status = next((each for each in RULES if each in found), "no_claim")
        missing = [c.requested for c in about.values() if c is not None and c.status == "unreadable"]
        troubles = [self.session.opener.failed.get(name) for name in missing]  # none: it opened, reading it broke off
        record = _with(known, status, findings, any(t is None or isinstance(t, HubUnavailableError) for t in troubles))
        if status == "confirmed":
            best = lineage.candidates[0]
            record = replace(record, p_value=best.p_value, probability=best.probability, relation=best.relation)
            merge = "; the other sources that are named are relatives, as in a merge" if merged else ""
            sources = {claim.ref for claim in lineage.claims} & sources_of_merge(lineage)
            confirmed = MERGED if sources else "confirmed by the weights" if lineage.parent else OPEN
            return replace(record, reason=confirmed + merge)
        return replace(record, reason=record.reason or f"no file names a base; {_kin(lineage) or NOT_FOUND}")

    def _candidate(self, claim: str, lineage: Lineage) -> Candidate | None:
        """What was measured of a claimed base."""
        same = self.session.opener.same_model
        return next((c for c in lineage.candidates if same(claim, c)), None)

    def _without_token(self, text: str) -> str:
        """No token in a report, whoever put it in an error's text."""
        token = self.session.token
        given = [token] if isinstance(token, str) else [os.environ.get("HF_TOKEN", "")]
        for token in filter(None, given):
            text = text.replace(token, "…")
        return _TOKEN.sub("…", text)


def _parse(model: Model) -> ModelRef:
    assert isinstance(model, (str, Path, ModelRef))
    return ModelRef.parse(model)


def _called(model: Model) -> str:
    """What the user wrote; the class of a module."""
    if isinstance(model, (str, Path, ModelRef)):
        try:
            return str(ModelRef.parse(model))
        except LineageError:
            return str(model)[:120]
    return f"module:{type(model).__name__}"


def _rule(status: Status) -> str:
    rule = RULES[status]
    assert rule is not None, status
    return rule.id


def _sources(claims: Sequence[Claim], ref: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(claim.source for claim in claims if claim.ref == ref))


def _with(known: AuditRecord, status: Status, findings: Sequence[Finding], passing: bool = False) -> AuditRecord:
    """The record with its findings, worst first; the first one's figures and all reasons are the record's."""
    order = [rule.id for rule in RULES.values() if rule]
    ranked = sorted(findings, key=lambda finding: order.index(finding.rule))
    figures = {name: getattr(ranked[0], name) for name in ("p_value", "probability", "relation")} if ranked else {}
    several = len({finding.base for finding in ranked}) > 1
    reasons = [f"{f.base}: {f.reason}" if several and f.sources else f.reason for f in ranked]
    reason = "; ".join(dict.fromkeys(text.removesuffix(".") for text in reasons))
    return replace(known, status=status, findings=tuple(ranked), reason=reason, passing=passing, **figures)


def _finding(known: AuditRecord, why: str) -> AuditRecord:
    return _with(known, "failed", [Finding(_rule("failed"), reason=why)])


def _failed(known: AuditRecord, error: LineageError) -> AuditRecord:
    return replace(_finding(known, str(error)), passing=isinstance(error, HubUnavailableError))


def _untested(known: AuditRecord, why: str) -> AuditRecord:
    """None of the claims can be tested, all for one reason."""
    refs = dict.fromkeys(claim.ref for claim in known.claims)
    rule = _rule("not_testable")
    unclear = {claim.ref for claim in known.claims if claim.status == "not_understood"}
    findings = [
        Finding(rule, ref, _sources(known.claims, ref), reason=NOT_UNDERSTOOD if ref in unclear else why)
        for ref in refs
    ] or [Finding(rule, reason=why)]
    return _with(known, "not_testable", findings)


def _of_adapter(claims: Sequence[Claim]) -> str:
    understood = [c for c in claims if c.status != "not_understood"]
    named = {source: {c.ref for c in understood if c.source == source} for source in ("card", "adapter")}
    why = "A LoRA adapter holds no weights of its base: the claim cannot be tested."
    if named["card"] and named["adapter"] and not named["card"] & named["adapter"]:
        why += f" Its card and its adapter_config.json disagree: {min(named['card'])}, {min(named['adapter'])}."
    return why


def _merged(claims: Sequence[Claim]) -> set[str]:
    """Relatives that one file names beside a confirmed parent: sources of a merge, of which a trace tells the first."""
    merged: set[str] = set()
    for source in {claim.source for claim in claims}:
        named = [claim for claim in claims if claim.source == source]
        if any(claim.status == "confirmed" for claim in named):
            merged |= {claim.ref for claim in named if claim.status == "relative"}
    return merged


def _about(rule: str, ref: str, sources: tuple[str, ...], found: Candidate | None, reason: str) -> Finding:
    if found is None:
        return Finding(rule, ref, sources, reason=reason)
    return Finding(rule, ref, sources, found.p_value, found.probability, found.relation, reason)


def _kin(lineage: Lineage) -> str:
    """The nearest relative, where none is shown to be the parent."""
    best = next((c for c in lineage.candidates if c.relation not in (None, "none")), None)
    return f"it shares an origin with {best.ref}" if best and lineage.parent is None else ""


def _why(status: Status, found: Candidate | None, lineage: Lineage) -> str:
    """What the weights say of a claimed base, as a sentence without its subject."""
    known = {"contradicted": "no sign of a common origin", "relative": "they share an origin, but it is not the parent"}
    if status in known:
        named = lineage.parent if lineage.parent not in lineage.undeclared else None  # else that is a finding itself
        also = f"the parent is {named}" if named else _kin(lineage) if status == "contradicted" else ""
        return "; ".join(filter(None, (known[status], also)))
    if found is not None and found.status != "compared":
        return " ".join(found.reasons)
    return "it was not compared" if found is None else "the weights decide nothing about it"
