"""A `Comparison` as text. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from ..answers.comparison import Comparison
from ..answers.lineage import Candidate
from ..answers.refs import printable
from .console import WIDTH, labelled
from .format import code, number_text, p_text
from .layers import percent
from .sentences import ONE_WAY, Show, candidate_name, headline, order, radius
from .text import commit_text, cost_text
from .words import relation_words

NEXT = "Offer what both may come from, too: hf-lineage trace A B BASE, or hf-lineage tree A B BASE."
UNDONE = "What was done to either of them is not known."


def table(answer: Comparison, width: int = WIDTH) -> str:
    """Each question with its answer, in at most `width` columns."""
    lines = [line for ref in answer.models for line in labelled("model    ", commit_text(ref), width)]
    lines += [*labelled("verdict  ", sentence(answer), width), ""]
    for what, value in _facts(answer):
        lines += labelled(f"{what:<24}", value, width)
    lines.append("")
    if answer.related and not _alone(answer.pair):
        lines += labelled("next     ", NEXT, width)
    for text in (*answer.pair.reasons, *answer.notes):
        lines += labelled("note     ", printable(text), width)
    return "\n".join([*lines, cost_text(answer)])


def markdown(answer: Comparison) -> str:
    """The same with names in full; every foreign name is escaped."""
    one, other = (code(ref.name) for ref in answer.models)
    rows = ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in _facts(answer, code))]
    notes = [f"- {code(text)}" for text in (*answer.pair.reasons, *answer.notes)]
    return "\n".join([f"## {one} and {other}", "", sentence(answer, code), "", *rows, "", *notes]).rstrip() + "\n"


def sentence(answer: Comparison, show: Show | None = None) -> str:
    """Related? Who came first? What was done? In as many sentences."""
    said = [related(answer, show), *([came_first(answer, show), done(answer, show)] if answer.related else [])]
    return " ".join(filter(None, said))


def related(answer: Comparison, show: Show | None = None) -> str:
    """Whether the two share an origin, with how often such evidence arises by chance."""
    pair, (one, other) = answer.pair, ((show or printable)(ref.name) for ref in answer.models)
    p = f" (p {p_text(pair.log10_p)})" if pair.log10_p is not None else ""
    if answer.related is None:
        why = "they could not be compared" if pair.status != "compared" else "the test does not apply to them"
        return f"Whether {one} and {other} are related is not known: {why}."
    if not answer.related:
        return f"Unrelated: {one} and {other} show no sign of a common origin{p}."
    if pair.relation == "identical":
        return f"{one} and {other} are identical: every weight is equal{p}."
    if pair.relation == "shared_part":
        return f"{one} and {other} have a part in common{p}: {pair.facts['part']}."
    return f"Related: {one} and {other} share an origin{p}."


def came_first(answer: Comparison, show: Show | None = None) -> str:
    """Who of two related models came first, and by what it shows."""
    pair, name = answer.pair, show or printable
    told = order(pair).replace("this model", name(answer.later)).replace("this one", name(answer.later))
    older = name(candidate_name(pair))
    near = ", or a model near it," if answer.first and answer.first != answer.later and not _alone(pair) else ""
    return told.replace("That model came first", f"{older}{near} came first").replace("That model", older)


def done(answer: Comparison, show: Show | None = None) -> str:
    """What was done to the first to get the later one; "" where the order does not show."""
    pair, name = answer.pair, show or printable
    if answer.first is None or answer.first == answer.later or pair.relation in ("identical", "shared_part", "sibling"):
        return ""
    if pair.relation in ("common_origin", "depth_changed", "descendant"):
        return UNDONE
    made = headline(pair, name(candidate_name(pair)))
    near = "" if _alone(pair) else ", or from a model so near to that one that these two alone cannot tell it"
    return f"{name(answer.later)}: {made[0].lower()}{made[1:]}{radius(pair) or near}."


def _alone(pair: Candidate) -> bool:
    """Whether what was done shows the very model that it was done to: a sibling that moved little looks like a parent
    otherwise."""
    return pair.relation in ONE_WAY or bool(radius(pair))


def _facts(answer: Comparison, show: Show = printable) -> list[tuple[str, str]]:
    pair = answer.pair
    related = {True: "yes", False: "no", None: "not known"}[answer.related]
    moved = pair.facts.get("moved")
    return [
        ("related", related),
        ("came first", _first(answer, show)),
        ("what was done", relation_words(pair.relation)),
        ("p-value", p_text(pair.log10_p)),
        ("distance of a weight", number_text(pair.distance)),
        ("relative change", "-" if moved is None else f"{percent(moved)} of the norm"),
    ]


def _first(answer: Comparison, show: Show) -> str:
    if answer.first:
        near = answer.first != answer.later and not _alone(answer.pair)
        return show(answer.first) + (", or a model near it" if near else "")
    return {"neither": "neither", None: "does not show"}.get(answer.pair.first, "-") if answer.related else "-"
