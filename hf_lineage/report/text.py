"""A `Lineage` as text: a table for 80 columns, and Markdown. Names come from strangers and are cleaned here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ..answers.lineage import Candidate, Lineage
from ..answers.refs import printable
from .sentences import candidate_name, claim_text, code, p_text, sentence, short, shorten

WIDTH = 80
STRANGERS = 12  # rows of a table of candidates that show no common origin; a search asks hundreds


def table(lineage: Lineage) -> str:
    """The whole answer in at most 80 columns."""
    revision = f" @ {lineage.child.revision[:10]}" if lineage.child.revision else ""
    lines = [
        f"child    {shorten(printable(lineage.child.name), WIDTH - 9 - len(revision))}{revision}",
        *_wrap("verdict  ", sentence(lineage)),
        "",
    ]
    shown, rest = cut_short(lineage.candidates)
    wide = max([24, *(len(printable(candidate_name(c))) for c in shown)])
    wide = min(wide, WIDTH - 43)
    if any(c.status == "compared" for c in lineage.candidates):
        lines.append(f"  {'candidate':<{wide}} {'prob.':>6} {'p-value':>8} {'distance':>9}  relation")
    for place, c in enumerate(shown):
        mark = ">" if place == 0 and lineage.parent is not None else " "
        name = shorten(printable(candidate_name(c)), wide)
        if c.status == "compared":
            probability = "-" if c.probability is None else f"{c.probability:.3f}"
            numbers = f"{probability:>6} {p_text(c):>8} {_number(c.distance):>9}"
            lines.append(f"{mark} {name:<{wide}} {numbers}  {c.relation or '-'}")
    if rest:
        lines.append(f"  … and {rest}")
    if lineage.none_probability is not None:
        lines.append(f"  {'(none of these)':<{wide}} {lineage.none_probability:>6.3f}")
    for c in lineage.candidates:
        if c.status != "compared":
            why = f"{c.status.replace('_', ' ')}: {' '.join(c.reasons)}"
            lines += [f"  {shorten(printable(candidate_name(c)), WIDTH - 2)}", *_wrap("      ", printable(why))]
    lines.append("")
    for source, ref, text in _claims(lineage):
        lines += _wrap("claim    ", f"{source} {short(ref)}: {text}")
    for note in lineage.notes:
        lines += _wrap("note     ", printable(note))
    lines.append(f"read     {size_text(lineage.bytes_read)} in {lineage.seconds:.1f} s, seed {lineage.seed}")
    return "\n".join(lines)


def markdown(lineage: Lineage) -> str:
    """Heading, sentence, table, claims and notes as Markdown; every foreign name is escaped."""
    rows = ["| candidate | probability | p-value | distance | relation |", "|---|---:|---:|---:|---|"]
    shown, rest = cut_short(lineage.candidates)
    for c in shown:
        probability = "" if c.probability is None else f"{c.probability:.3f}"
        cells = [probability, p_text(c), _number(c.distance), c.relation or ""]
        if c.status != "compared":
            cells = ["", "", "", c.status.replace("_", " ")]
        rows.append(f"| {code(candidate_name(c))} | {' | '.join(cells)} |")
    rows += [f"| … and {rest} | | | | |"] if rest else []
    if lineage.none_probability is not None:
        rows.append(f"| none of these | {lineage.none_probability:.3f} | | | |")
    remarks = [f"- {source} {code(ref)}: {text}" for source, ref, text in _claims(lineage)]
    remarks += [f"- {code(note)}" for note in lineage.notes]
    head = [f"## Lineage of {code(lineage.child.name)}", "", sentence(lineage, code), ""]
    return "\n".join([*head, *rows, "", *remarks]) + "\n"


def cut_short(candidates: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """The candidates that a table shows, and what it says of the others: "" where it shows all."""
    strangers = [c for c in candidates if c.status == "compared" and c.relation == "none"]
    hidden = strangers[STRANGERS:] if len(strangers) > STRANGERS + 1 else []
    gone = {id(c) for c in hidden}
    rest = f"{len(hidden)} more without a sign of a common origin" if hidden else ""
    return [c for c in candidates if id(c) not in gone], rest


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(999), size_text(4_194_304)
    ('999 B', '4.2 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _claims(lineage: Lineage) -> Iterator[tuple[str, str, str]]:
    """Who says it, which model, what the weights say."""
    for claim in lineage.claims:
        yield f"the {claim.source} names", claim.ref, claim_text(lineage, claim)
    for ref in lineage.undeclared:
        if lineage.claims or lineage.child.kind == "hub":  # a folder without a card is not hiding anything
            yield "nobody names", ref, "an undeclared parent"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    ) or [head.rstrip()]
