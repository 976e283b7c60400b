"""`CandidateSearch` as text. Names come from strangers and are cleaned here."""

from __future__ import annotations

from collections.abc import Iterator

from ..answers.refs import printable
from ..answers.search import CandidateSearch, FoundCandidate
from .sentences import code, shorten
from .text import WIDTH, _wrap, size_text

STATUS = {
    "comparable": "comparable",
    "not_comparable": "another architecture",
    "unreadable": "unreadable",
}
MAX_NOT_COMPARABLE_ROWS = 40  # rows of models that cannot be compared


def table(found: CandidateSearch) -> str:
    """At most 80 columns: the comparable models, then what else was looked at, in brief."""
    revision = f" @ {found.child.revision[:10]}" if found.child.revision else ""
    lines = [
        f"child    {shorten(printable(found.child.name), WIDTH - 9 - len(revision))}{revision}",
        *_wrap("found    ", summary(found)),
        "",
    ]
    ready = [candidate for candidate in found.candidates if candidate.status == "comparable"]
    if ready:
        wide = min(max(24, *(len(printable(p.ref)) for p in ready)), WIDTH - 41)
        lines.append(f"  {'candidate':<{wide}} alike  params  found by")
        for p in ready:
            later = " (newer)" if p.later else ""
            also = f" +{len(p.rules) - 1}" if len(p.rules) > 1 else ""
            rules = _cut(printable(p.rules[0]), WIDTH - wide - 18 - len(also + later)) + also + later
            numbers = f"{p.similarity:>5.2f} {_count(p.parameters):>7}"
            lines.append(f"  {shorten(printable(p.ref), wide):<{wide}} {numbers}  {rules}")
        lines.append("")
    rest = [candidate for candidate in found.candidates if candidate.status != "comparable"]
    for p in rest[:MAX_NOT_COMPARABLE_ROWS]:
        lines += _wrap("  ", printable(f"{p.ref}: {STATUS[p.status]}; {p.reason or _rules(p)}"))
    if len(rest) > MAX_NOT_COMPARABLE_ROWS:
        lines.append(f"  … and {len(rest) - MAX_NOT_COMPARABLE_ROWS} more that cannot be compared")
    lines += [line for note in found.notes for line in _wrap("note     ", printable(note))]
    lines.append(f"read     {found.requests} requests, {size_text(found.bytes_read)} in {found.seconds:.1f} s")
    return "\n".join(lines)


def markdown(found: CandidateSearch) -> str:
    """The same with names in full; every foreign name is escaped."""
    rows = ["| candidate | commit | similarity | parameters | found by | status |", "|---|---|---:|---:|---|---|"]
    rows += [f"| {' | '.join(_cells(p))} |" for p in found.candidates]
    head = [f"## Candidate parents of {code(found.child.name)}", "", summary(found), ""]
    notes = ["", *(f"- {code(note)}" for note in found.notes)] if found.notes else []
    return "\n".join([*head, *(rows if found.candidates else []), *notes]) + "\n"


def summary(found: CandidateSearch) -> str:
    """How many of how many."""
    looked, ready = len(found.candidates), len(found.refs)
    if not found.candidates and found.notes:
        return "No candidate yet: the search ended early."
    if not found.candidates:
        return "No candidate: the child declares none, and nothing of its kind was found."
    return f"{ready} of {looked} models have the child's names and shapes, by their headers; no weight was read."


def _cells(p: FoundCandidate) -> Iterator[str]:
    yield code(p.ref)
    yield code(p.revision[:10]) if p.revision else ""
    yield "" if p.similarity is None else f"{p.similarity:.3f}"
    yield _count(p.parameters)
    yield code(_rules(p))
    why = f": {code(p.reason)}" if p.reason else ""
    yield STATUS[p.status] + why + (", created after the child" if p.later else "")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _rules(p: FoundCandidate) -> str:
    return "; ".join(p.rules)


def _count(parameters: int | None) -> str:
    """Parameters for people.

    >>> _count(3_060), _count(86_567_656), _count(None)
    ('3.1K', '86.6M', '-')
    """
    if parameters is None:
        return "-"
    value = float(parameters)
    for unit in ("", "K", "M", "B"):
        if value < 1000 or unit == "B":
            return f"{value:.1f}{unit}" if unit else str(parameters)
        value /= 1000
    raise AssertionError
