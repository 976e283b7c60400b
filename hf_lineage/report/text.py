"""A `Lineage` as text: a table for 80 columns, and Markdown. Names come from strangers and are cleaned here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator

from ..records import Candidate, Lineage

WIDTH = 80
_CLAIMS = {
    "confirmed": "confirmed by the weights",
    "contradicted": "contradicted, unrelated by the weights",
    "relative": "a relative, but not the parent found",
    "not_testable": "not testable, not among the compared candidates",
}


def sentence(lineage: Lineage, show: Callable[[str], str] | None = None) -> str:
    """The verdict in plain words, with how often such evidence arises by chance; `show` writes a foreign name."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    count = f"{len(compared)} compared candidate{'s' if len(compared) != 1 else ''}"
    best = compared[0] if compared else None
    if best is None:
        return "No candidate could be compared with it: another architecture, or unreadable."
    chance = f"p {p_text(best)} over {count}"
    name = (show or _short)(best.ref)
    if lineage.verdict == "identical":
        return f"Its weights are those of {name}, tensor by tensor ({chance})."
    if lineage.verdict == "parent":
        how = {"head_changed": "same trunk, another head", "partial": "some parts are untouched"}.get(
            best.relation or "", f"nearest of {count}"
        )
        return (
            f"Fine-tuned from {name}: they share an origin ({chance}; a shared random initialisation would count too) "
            f"and it is the likeliest parent ({how}, probability {best.probability:.3f})."
        )
    if lineage.verdict == "none":
        return f"None of the {count} is its parent: no sign of a common origin (smallest p {p_text(best)})."
    if lineage.verdict == "common_origin":
        return f"It shares an origin with {name} ({chance}), but which one came first does not show."
    if best.p_value is None:
        return f"Undecided: the permutation test does not apply, so chance cannot be ruled out. Nearest: {name}."
    return f"Undecided: the evidence does not single out one of {count}. Likeliest: {name}."


def table(lineage: Lineage) -> str:
    """The whole answer in at most 80 columns."""
    revision = f" @ {lineage.child.revision[:10]}" if lineage.child.revision else ""
    lines = [
        f"child    {shorten(clean(lineage.child.name), WIDTH - 9 - len(revision))}{revision}",
        *_wrap("verdict  ", sentence(lineage)),
        "",
    ]
    wide = max([24, *(len(clean(c.ref)) for c in lineage.candidates)])
    wide = min(wide, WIDTH - 43)
    lines.append(f"  {'candidate':<{wide}} {'prob.':>6} {'p-value':>8} {'distance':>9}  relation")
    for candidate in lineage.candidates:
        mark = ">" if candidate.ref == lineage.parent else " "
        name = shorten(clean(candidate.ref), wide)
        if candidate.status == "compared":
            lines.append(
                f"{mark} {name:<{wide}} {candidate.probability or 0:>6.3f} {p_text(candidate):>8} "
                f"{_number(candidate.distance):>9}  {candidate.relation or ''}"
            )
        else:
            lines.append(f"{mark} {name:<{wide}} {candidate.status.replace('_', ' ')}:")
            lines += _wrap("      ", clean(" ".join(candidate.reasons)))
    if lineage.none_probability is not None:
        lines.append(f"  {'(none of these)':<{wide}} {lineage.none_probability:>6.3f}")
    lines.append("")
    for source, ref, text in _claims(lineage):
        lines += _wrap("claim    ", f"{source} {_short(ref)}: {text}")
    for note in lineage.notes:
        lines += _wrap("note     ", clean(note))
    lines.append(f"read     {size_text(lineage.bytes_read)} in {lineage.seconds:.1f} s, seed {lineage.seed}")
    return "\n".join(lines)


def markdown(lineage: Lineage) -> str:
    """Heading, sentence, table and claims as Markdown; every foreign name is escaped."""
    rows = ["| candidate | probability | p-value | distance | relation |", "|---|---:|---:|---:|---|"]
    for c in lineage.candidates:
        if c.status == "compared":
            cells = [f"{c.probability or 0:.3f}", p_text(c), _number(c.distance), c.relation or ""]
        else:
            cells = ["", "", "", c.status.replace("_", " ")]
        rows.append(f"| {code(c.ref)} | {' | '.join(cells)} |")
    if lineage.none_probability is not None:
        rows.append(f"| none of these | {lineage.none_probability:.3f} | | | |")
    claims = [f"- {source} {code(ref)}: {text}" for source, ref, text in _claims(lineage)]
    return (
        "\n".join([f"## Lineage of {code(lineage.child.name)}", "", sentence(lineage, code), "", *rows, "", *claims])
        + "\n"
    )


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


def clean(text: str) -> str:
    """One line of printable characters: no control codes can reach a terminal."""
    return "".join(ch if ch.isprintable() else "?" for ch in re.sub(r"\s+", " ", text))


def shorten(text: str, width: int) -> str:
    """The text, its middle cut out if it is longer than `width`; both ends of a path tell something.

    >>> shorten("organisation/a-long-model-name", 20)
    'organisati…odel-name'
    """
    return text if len(text) <= width else f"{text[: width // 2]}…{text[-(width - width // 2 - 1) :]}"


def code(text: str) -> str:
    """A foreign name as inline code that cannot leave its cell or become markup."""
    return f"`{re.sub(r'[`|<>]', '?', clean(text))}`"


def _claims(lineage: Lineage) -> Iterator[tuple[str, str, str]]:
    """Who says it, which model, what the weights say."""
    for claim in lineage.claims:
        yield f"the {claim.source} names", claim.ref, _CLAIMS[claim.status]
    for ref in lineage.undeclared:
        yield "nothing names", ref, "an undeclared parent"


def _short(ref: str) -> str:
    return shorten(clean(ref), 56)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _wrap(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    ) or [head.rstrip()]
