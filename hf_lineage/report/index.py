"""The answers of an index as text. Names in them are untrusted text and are cleaned here."""

from __future__ import annotations

from ..answers.index import IndexQuery, IndexState, Match
from ..answers.refs import printable
from .console import WIDTH, labelled
from .format import bytes_text, code
from .text import commit_text

MOST_SHOWN = 20  # matches, failures or shapes in a table


def sentence(query: IndexQuery, whole: bool = False) -> str:
    """What was found, in one sentence. `whole`: names in full, as code."""
    named = (lambda name: code(name)) if whole else (lambda name: printable(name))
    if not query.layers:
        return f"{named(query.child.name)} has no layer that an index can be asked about."
    if not query.matches:
        return f"No model of the index is shown to be related to {named(query.child.name)}."
    others = len(query.matches) - 1
    more = f", and {others} more {'model' if others == 1 else 'models'}" if others else ""
    first = f"{named(query.matches[0].ref)} is related to it{more}"
    chance = f"the chance that any unrelated model is listed is at most {query.family_wise.alpha:g}"
    if query.lineage is not None:
        return f"{first} ({chance}). {query.lineage.sentence()}"
    return f"{first}; {chance}."


def table(query: IndexQuery, width: int = WIDTH) -> str:
    """The matches, line by line, in at most `width` columns."""
    lines = [
        *labelled("child    ", commit_text(query.child), width),
        *labelled("says     ", sentence(query), width), "",
    ]  # fmt: skip
    if query.matches:
        lines.append("  log10 e  units alike  model")
        lines += [_row(match) for match in query.matches[:MOST_SHOWN]]
        if rest := len(query.matches) - MOST_SHOWN:
            lines += [f"  and {rest} more"] if rest > 0 else []
        lines.append("")
    family = query.family_wise
    told = (
        f"log10 e of at least {family.least_log10_e:.1f}: {family.tests:,} comparisons at a level of {family.alpha:g} "
        "for all of them together"
    )
    lines += labelled("listed   ", told, width)
    lines += [line for note in query.notes for line in labelled("note     ", printable(note), width)]
    return "\n".join([*lines, *labelled("read     ", _cost(query), width)])


def markdown(query: IndexQuery) -> str:
    """The same with names in full; every foreign name is escaped."""
    rows = ["| log10 e | units alike | model |", "|---:|---:|---|"]
    rows += [f"| {match.log10_e:.1f} | {_percent(match.similarity)} | {code(match.ref)} |" for match in query.matches]
    notes = [f"- {code(note)}" for note in query.notes]
    head = [f"## Relatives of {code(query.child.name)} in {code(query.index)}", "", sentence(query, whole=True), ""]
    return "\n".join([*head, *(rows if query.matches else []), "", *notes]).rstrip() + "\n"


def state_sentence(state: IndexState) -> str:
    """How much is in an index, in one sentence."""
    without = state.models - state.with_sketches
    rest = f"; {without} of them cannot be found, as no layer of theirs can be tested" if without else ""
    return f"{state.models:,} {'model' if state.models == 1 else 'models'}, {state.sketches:,} layers{rest}."


def state_table(state: IndexState, width: int = WIDTH) -> str:
    """What is in an index, in at most `width` columns."""
    lines = [
        *labelled("index    ", f"{state.index} (version {state.version})", width),
        *labelled("holds    ", state_sentence(state), width),
    ]  # fmt: skip
    if state.added or state.unchanged or state.failed:
        counts = f"{state.added} added, {state.unchanged} unchanged, {len(state.failed)} could not be read"
        lines += labelled("now      ", counts, width)
    for ref, why in [*state.failed.items()][:MOST_SHOWN]:
        lines += labelled("left out ", f"{printable(ref)}: {printable(why)}", width)
    shapes = [f"{shape} ({count})" for shape, count in [*state.shapes.items()][:MOST_SHOWN]]
    lines += labelled("shapes   ", ", ".join(shapes) or "none", width)
    return "\n".join([*lines, *labelled("read     ", _cost(state), width)])


def state_markdown(state: IndexState) -> str:
    """The same as Markdown."""
    failed = [f"- {code(ref)}: {code(why)}" for ref, why in state.failed.items()]
    return "\n".join([f"## {code(state.index)}", "", state_sentence(state), "", *failed]).rstrip() + "\n"


def _row(match: Match) -> str:
    return f"  {match.log10_e:>7.1f}  {_percent(match.similarity):>11}  {printable(match.ref)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cost(answer: IndexQuery | IndexState) -> str:
    return f"{bytes_text(answer.bytes_read)} in {answer.seconds:.1f} s"
