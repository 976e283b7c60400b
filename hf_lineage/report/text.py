"""A `Lineage` as text: a table, and Markdown. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..answers.base import StatisticalAnswer
from ..answers.lineage import Candidate, Lineage
from ..answers.refs import ModelRef, printable
from .console import WIDTH, Column, labelled
from .console import table as draw_table
from .format import bytes_text, code, folded, number_text, p_text
from .sentences import candidate_name, claim_text, sentence
from .words import relation_words

MAX_UNRELATED_ROWS = 12  # rows of candidates that show no common origin; a search asks hundreds
LEGEND = "prob.: of being the parent; (none of these): the parent is another model"
COLUMNS = (
    Column("candidate", name=True), Column("prob.", right=True), Column("p-value", right=True),
    Column("distance", right=True), Column("relation"),
)  # fmt: skip


def table(lineage: Lineage, width: int = WIDTH) -> str:
    """The whole answer in at most `width` columns."""
    lines = [
        *labelled("child    ", commit_text(lineage.child), width),
        *labelled("verdict  ", sentence(lineage), width),
        "",
        *_candidates(lineage, width),
    ]
    for c in lineage.candidates:
        if c.status != "compared":
            why = f"{c.status.replace('_', ' ')}: {' '.join(c.reasons)}"
            lines += [f"  {line}" for line in folded(printable(candidate_name(c)), width - 2)]
            lines += labelled("      ", printable(why), width)
    lines.append("")
    for source, ref, text in _claims(lineage):
        lines += labelled("claim    ", f"{source} {printable(ref)}: {text}", width)
    for note in lineage.notes:
        lines += labelled("note     ", printable(note), width)
    return "\n".join([*lines, cost_text(lineage)])


def _candidates(lineage: Lineage, width: int) -> list[str]:
    """The table of the candidates that were compared, best first."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    shown, rest = cut_short(compared)
    rows = [
        [printable(candidate_name(c)), number_text(c.probability, ".3f"), p_text(c.log10_p), number_text(c.distance),
         relation_words(c.relation)]
        for c in shown
    ]  # fmt: skip
    marks = [">" if place == 0 and lineage.parent is not None else " " for place in range(len(rows))]
    if lineage.none_probability is not None:
        rows.append(["(none of these)", f"{lineage.none_probability:.3f}", "", "", ""])
    drawn = draw_table(COLUMNS, rows, width, [*marks, *" " * (len(rows) - len(marks))]) if rows else []
    legend = labelled("  ", LEGEND, width) if lineage.none_probability is not None and rows else []
    return [*drawn, *(labelled("  ", f"… and {rest}", width) if rest else []), *legend]


def commit_text(ref: ModelRef) -> str:
    """A model's name, and the first characters of its commit."""
    return printable(ref.name) + (f" @ {ref.revision[:10]}" if ref.revision else "")


def cost_text(answer: StatisticalAnswer) -> str:
    """The last line: what was read, for how long, and the seed."""
    return f"read     {bytes_text(answer.bytes_read)} in {answer.seconds:.1f} s, seed {answer.seed}"


def markdown(lineage: Lineage) -> str:
    """Heading, sentence, table, claims and notes as Markdown; every foreign name is escaped."""
    rows = ["| candidate | probability | p-value | distance | relation |", "|---|---:|---:|---:|---|"]
    shown, rest = cut_short(lineage.candidates)
    for c in shown:
        probability = "" if c.probability is None else f"{c.probability:.3f}"
        cells = [probability, p_text(c.log10_p), number_text(c.distance), relation_words(c.relation, "")]
        if c.status != "compared":
            cells = ["", "", "", c.status.replace("_", " ")]
        rows.append(f"| {code(candidate_name(c))} | {' | '.join(cells)} |")
    rows += [f"| … and {rest} | | | | |"] if rest else []
    if lineage.none_probability is not None:
        rows.append(f"| none of these | {lineage.none_probability:.3f} | | | |")
    notes = [f"- {source} {code(ref)}: {text}" for source, ref, text in _claims(lineage)]
    notes += [f"- {code(note)}" for note in lineage.notes]
    head = [f"## Lineage of {code(lineage.child.name)}", "", sentence(lineage, code), ""]
    return "\n".join([*head, *rows, "", *notes]) + "\n"


def cut_short(candidates: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """The candidates that a table shows, and what it says of the others: "" where it shows all."""
    unrelated = [c for c in candidates if c.status == "compared" and c.relation == "none"]
    hidden = unrelated[MAX_UNRELATED_ROWS:] if len(unrelated) > MAX_UNRELATED_ROWS + 1 else []
    gone = {id(c) for c in hidden}
    rest = f"{len(hidden)} more without a sign of a common origin" if hidden else ""
    return [c for c in candidates if id(c) not in gone], rest


def _claims(lineage: Lineage) -> Iterator[tuple[str, str, str]]:
    """Who says it, which model, what the weights say."""
    for claim in lineage.claims:
        yield f"the {claim.source} names", claim.ref, claim_text(lineage, claim)
    for ref in lineage.undeclared:
        if lineage.claims or lineage.child.kind == "hub":  # a folder without a card is not hiding anything
            yield "nobody names", ref, "an undeclared parent"
