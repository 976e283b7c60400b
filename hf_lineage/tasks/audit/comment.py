"""What an audit found, said in the pull request that was audited."""

from __future__ import annotations

import re

from ...answers.audit import AuditRecord
from ...answers.refs import ModelRef
from ...hub.cards import CardRepository
from ...report.audit import markdown

_PULL = re.compile(r"refs/pr/([1-9][0-9]{0,8})")
MARK = "<!-- hf-lineage:audit -->"


def pull_request_of(requested: str) -> tuple[str, int] | None:
    """(repo, number) of the pull request that a reference names; None where it names none.

    >>> pull_request_of("org/name@refs/pr/7"), pull_request_of("org/name@main"), pull_request_of("./x")
    (('org/name', 7), None, None)
    """
    ref = ModelRef.parse(requested)
    found = _PULL.fullmatch(ref.revision or "") if ref.kind == "hub" else None
    return (ref.repo_id, int(found[1])) if found else None


def comment(record: AuditRecord, token: str | bool | None = None) -> str:
    """Say in the pull request that was audited what was found; its address, "" where nothing was to be said.

    Nothing is said of a model that claims nothing, of what is no pull request, and twice. Raises what
    `CardRepository.comment` raises.
    """
    named = pull_request_of(record.requested)
    if named is None or record.status == "no_claim":
        return ""
    return CardRepository(token).comment(*named, f"{MARK}\n\n{markdown([record])}")
