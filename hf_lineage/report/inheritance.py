"""An `Inheritance` as text. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from ..answers.inheritance import Carrier, Inheritance
from ..answers.refs import printable
from .console import WIDTH, Column, labelled
from .console import table as draw_table
from .format import code, count_text, number_text
from .sentences import Show

COLUMNS = (
    Column("model", name=True), Column("flagged", right=True), Column("before", right=True),
    Column("after", right=True),
)  # fmt: skip
LEAST_CHANGE = 5e-4  # of a probability that is shown with three decimals


def changed(found: Inheritance) -> list[Carrier]:
    """The models that were flagged or whose probability the flags changed, the most probable first."""
    return [m for m in found.models if m.flagged is not None or abs(m.after - m.before) >= LEAST_CHANGE]


def sentence(found: Inheritance, whole: bool = False) -> str:
    """Whose probability the flags raise most. `whole`: names in full, as code."""
    named = code if whole else printable
    flagged = [m for m in found.models if m.flagged is not None]
    if not flagged:
        return "No model was flagged."
    said = ", ".join(f"{named(m.ref)} ({number_text(m.flagged)})" for m in flagged)
    others = [m for m in changed(found) if m.flagged is None]
    if not others:
        return f"Flagged: {said}. It changes nothing for other models."
    most = max(others, key=lambda m: (abs(m.after - m.before), m.ref))
    return (
        f"Flagged: {said}. It changes the probability of {count_text(len(others), 'other model')}, most of all of "
        f"{named(most.ref)}, from {number_text(most.before, '.3f')} to {number_text(most.after, '.3f')}."
    )


def assumed(found: Inheritance) -> str:
    """The rates, as the caller's."""
    rates = found.rates
    return (
        f"assumed, not measured: a child has what its parent has with probability {rates.inherited:g}, it arises anew "
        f"with {rates.arises:g}, a model without parents here has it with {rates.prior:g}"
    )


def section(found: Inheritance, width: int = WIDTH, cut: str = "") -> list[str]:
    """The lines below a tree or an audit; names lose `cut`, what all begin with."""
    rows = [_cells(m, lambda ref: printable(ref.removeprefix(cut))) for m in changed(found)]
    drawn = draw_table(COLUMNS, rows, width) if rows else []
    return [*labelled("flagged  ", assumed(found), width), "", *drawn, *[""] * bool(drawn)]


def table(found: Inheritance, width: int = WIDTH) -> str:
    """The models whose probability changed, in at most `width` columns."""
    return "\n".join([*labelled("says     ", sentence(found), width), *section(found, width)]).rstrip()


def markdown(found: Inheritance) -> str:
    """The same with names in full; every foreign name is escaped."""
    rows = ["| model | flagged | before | after |", "|---|---:|---:|---:|"]
    rows += [f"| {' | '.join(_cells(m, code))} |" for m in changed(found)]
    return "\n".join(["### Flagged", "", sentence(found, whole=True), "", *rows, "", f"- {assumed(found)}"]) + "\n"


def _cells(model: Carrier, show: Show) -> list[str]:
    return [
        show(model.ref), number_text(model.flagged), number_text(model.before, ".3f"), number_text(model.after, ".3f"),
    ]  # fmt: skip
