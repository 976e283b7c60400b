"""A `Lineage` as text: a table for 80 columns, and Markdown. Names come from strangers and are cleaned here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence

from ..records import Candidate, Lineage, printable

WIDTH = 80
_CLAIMS = {
    "confirmed": "confirmed by the weights",
    "contradicted": "contradicted, no sign of a common origin",
    "relative": "a relative, but not the parent found",
    "not_testable": "not testable, it was not compared or not decided",
}


def sentence(lineage: Lineage, show: Callable[[str], str] | None = None) -> str:
    """The verdict in plain words, with how often such evidence arises by chance; `show` writes a foreign name."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    if not compared:
        return "Undecided: no candidate could be compared with it."
    best = compared[0]
    name = (show or _short)(candidate_name(best))
    others = f"among {len(compared)} candidates" if len(compared) > 1 else "for the one candidate"
    if lineage.verdict == "identical":
        return f"Identical to {name}: every weight is equal (p {p_text(best)} {others})."
    if lineage.verdict == "parent":
        how = {"head_changed": "Same trunk, another or no head. ", "partial": "Parts are untouched. "}
        return (
            f"Fine-tuned from {name}, probability {best.probability:.3f}: they share an origin "
            f"(p {p_text(best)} {others}). {how.get(best.relation or '', '')}"
            "A sibling, a child of its own or a twin from the same random start would look alike."
        )
    if lineage.verdict == "none":
        who = f"None of the {len(compared)} candidates" if len(compared) > 1 else f"Not {name}, the only candidate"
        return f"{who}: no sign of a common origin (smallest p {_smallest(compared)})."
    if lineage.verdict == "common_origin":
        return f"It shares an origin with {name} (p {p_text(best)} {others}); which one came first does not show."
    if best.p_value is None:
        return f"Undecided: the test for a common origin does not apply. Nearest in distance: {name}."
    return f"Undecided: the evidence singles out none of {len(compared)} candidates. First of them: {name}."


def candidate_name(candidate: Candidate) -> str:
    """What tells a candidate from the others: its id, its id and the revision asked for, or the module's place."""
    if candidate.ref.startswith("module:"):
        return f"{candidate.ref} ({candidate.requested})"
    return candidate.requested if "@" in candidate.requested else candidate.ref


def table(lineage: Lineage) -> str:
    """The whole answer in at most 80 columns."""
    revision = f" @ {lineage.child.revision[:10]}" if lineage.child.revision else ""
    lines = [
        f"child    {shorten(printable(lineage.child.name), WIDTH - 9 - len(revision))}{revision}",
        *_wrap("verdict  ", sentence(lineage)),
        "",
    ]
    wide = max([24, *(len(printable(candidate_name(c))) for c in lineage.candidates)])
    wide = min(wide, WIDTH - 43)
    if any(c.status == "compared" for c in lineage.candidates):
        lines.append(f"  {'candidate':<{wide}} {'prob.':>6} {'p-value':>8} {'distance':>9}  relation")
    for place, c in enumerate(lineage.candidates):
        mark = ">" if place == 0 and lineage.parent is not None else " "
        name = shorten(printable(candidate_name(c)), wide)
        if c.status == "compared":
            probability = "-" if c.probability is None else f"{c.probability:.3f}"
            numbers = f"{probability:>6} {p_text(c):>8} {_number(c.distance):>9}"
            lines.append(f"{mark} {name:<{wide}} {numbers}  {c.relation or '-'}")
    if lineage.none_probability is not None:
        lines.append(f"  {'(none of these)':<{wide}} {lineage.none_probability:>6.3f}")
    for c in lineage.candidates:
        if c.status != "compared":
            why = f"{c.status.replace('_', ' ')}: {' '.join(c.reasons)}"
            lines += [f"  {shorten(printable(candidate_name(c)), WIDTH - 2)}", *_wrap("      ", printable(why))]
    lines.append("")
    for source, ref, text in _claims(lineage):
        lines += _wrap("claim    ", f"{source} {_short(ref)}: {text}")
    for note in lineage.notes:
        lines += _wrap("note     ", printable(note))
    lines.append(f"read     {size_text(lineage.bytes_read)} in {lineage.seconds:.1f} s, seed {lineage.seed}")
    return "\n".join(lines)


def markdown(lineage: Lineage) -> str:
    """Heading, sentence, table, claims and notes as Markdown; every foreign name is escaped."""
    rows = ["| candidate | probability | p-value | distance | relation |", "|---|---:|---:|---:|---|"]
    for c in lineage.candidates:
        probability = "" if c.probability is None else f"{c.probability:.3f}"
        cells = [probability, p_text(c), _number(c.distance), c.relation or ""]
        if c.status != "compared":
            cells = ["", "", "", c.status.replace("_", " ")]
        rows.append(f"| {code(candidate_name(c))} | {' | '.join(cells)} |")
    if lineage.none_probability is not None:
        rows.append(f"| none of these | {lineage.none_probability:.3f} | | | |")
    remarks = [f"- {source} {code(ref)}: {text}" for source, ref, text in _claims(lineage)]
    remarks += [f"- {code(note)}" for note in lineage.notes]
    head = [f"## Lineage of {code(lineage.child.name)}", "", sentence(lineage, code), ""]
    return "\n".join([*head, *rows, "", *remarks]) + "\n"


def p_text(candidate: Candidate) -> str:
    """A p-value for people: `0.031`, `2e-12`, `<1e-300`; `-` where there is none."""
    log10_p = candidate.log10_p
    if log10_p is None:
        return "-"
    if log10_p < -300:
        return "<1e-300"
    if log10_p >= -3:
        return f"{10**log10_p:.3f}"
    exponent = int(log10_p // 1)
    mantissa = round(10 ** (log10_p - exponent))
    return f"{mantissa}e{exponent}" if mantissa < 10 else f"1e{exponent + 1}"


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


def shorten(text: str, width: int) -> str:
    """The text, its middle cut out if it is longer than `width`; both ends of a path tell something.

    >>> shorten("organisation/a-long-model-name", 20)
    'organisati…odel-name'
    """
    return text if len(text) <= width else f"{text[: width // 2]}…{text[-(width - width // 2 - 1) :]}"


def code(text: str) -> str:
    """A foreign name as inline code that cannot leave its cell or become markup."""
    return f"`{re.sub(r'[`|<>]', '?', printable(text))}`"


def _claims(lineage: Lineage) -> Iterator[tuple[str, str, str]]:
    """Who says it, which model, what the weights say."""
    for claim in lineage.claims:
        yield f"the {claim.source} names", claim.ref, _CLAIMS[claim.status]
    for ref in lineage.undeclared:
        if lineage.claims or lineage.child.kind == "hub":  # a folder without a card is not hiding anything
            yield "nobody names", ref, "an undeclared parent"


def _smallest(compared: Sequence[Candidate]) -> str:
    return p_text(min(compared, key=lambda c: 0.0 if c.log10_p is None else c.log10_p))


def _short(ref: str) -> str:
    return shorten(printable(ref), 56)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    ) or [head.rstrip()]
