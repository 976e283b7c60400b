"""A `CandidateSearch` as text. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from collections.abc import Iterator

from ..answers.refs import printable
from ..answers.search import CandidateSearch, FoundCandidate
from .console import WIDTH, Column, labelled
from .console import table as draw_table
from .format import bytes_text, code, number_text, parameters_text
from .text import commit_text

COLUMNS = (
    Column("candidate", name=True), Column("alike", right=True), Column("params", right=True),
    Column("found by", name=True),
)  # fmt: skip
STATUS = {
    "comparable": "comparable",
    "not_comparable": "another architecture",
    "unreadable": "unreadable",
}
MAX_NOT_COMPARABLE_ROWS = 40  # rows of models that cannot be compared


def table(found: CandidateSearch, width: int = WIDTH) -> str:
    """The comparable models, then in brief what else was looked at, in at most `width` columns."""
    lines = [
        *labelled("child    ", commit_text(found.child), width),
        *labelled("found    ", summary(found), width),
        "",
    ]
    rows = [
        [printable(c.ref), number_text(c.similarity, ".2f"), parameters_text(c.parameters), _found_by(c)]
        for c in found.candidates if c.status == "comparable"
    ]  # fmt: skip
    if rows:
        lines += [*draw_table(COLUMNS, rows, width), ""]
    rest = [c for c in found.candidates if c.status != "comparable"]
    for c in rest[:MAX_NOT_COMPARABLE_ROWS]:
        lines += labelled("  ", printable(f"{c.ref}: {STATUS[c.status]}; {c.reason or _rules(c)}"), width)
    if len(rest) > MAX_NOT_COMPARABLE_ROWS:
        lines.append(f"  … and {len(rest) - MAX_NOT_COMPARABLE_ROWS} more that cannot be compared")
    lines += [line for note in found.notes for line in labelled("note     ", printable(note), width)]
    cost = f"{found.requests} requests, {bytes_text(found.bytes_read)} in {found.seconds:.1f} s"
    return "\n".join([*lines, *labelled("read     ", cost, width)])


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
    yield parameters_text(p.parameters)
    yield code(_rules(p))
    why = f": {code(p.reason)}" if p.reason else ""
    yield STATUS[p.status] + why + (", created after the child" if p.later else "")


def _found_by(c: FoundCandidate) -> str:
    """The strongest rule, how many others there are, and whether the Hub says that the model is newer."""
    also = f" +{len(c.rules) - 1}" if len(c.rules) > 1 else ""
    return printable(c.rules[0]) + also + (" (newer)" if c.later else "")


def _rules(p: FoundCandidate) -> str:
    return "; ".join(p.rules)
