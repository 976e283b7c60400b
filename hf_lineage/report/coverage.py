"""A `Coverage` as text. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from ..answers.coverage import Coverage, UnitCheck
from ..answers.refs import printable
from .console import WIDTH, labelled
from .format import bytes_text, code
from .text import commit_text

MOST_LEFT_OUT = 12  # patterns in the table


def table(coverage: Coverage, width: int = WIDTH) -> str:
    """What can be tested, line by line, in at most `width` columns."""
    lines = [
        *labelled("model    ", commit_text(coverage.model), width),
        *labelled("says     ", sentence(coverage), width), "",
    ]  # fmt: skip
    for what, value in _facts(coverage):
        lines += labelled(f"{what:<24}", value, width)
    lines += [line for said in _check(coverage.check) for line in labelled("check    ", printable(said), width)]
    lines.append("")
    shown = coverage.left_out[:MOST_LEFT_OUT]
    for part in shown:
        lines += labelled("left out ", f"{printable(part.pattern)} ({_percent(part.share)}): {part.reason}", width)
    if more := coverage.left_out[len(shown) :]:
        lines += labelled("left out ", f"and {len(more)} more ({_percent(sum(part.share for part in more))})", width)
    lines += [line for note in coverage.notes for line in labelled("note     ", printable(note), width)]
    return "\n".join([*lines, *labelled("read     ", _cost(coverage), width)])


def markdown(coverage: Coverage) -> str:
    """The same with names in full; every foreign name is escaped."""
    rows = ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in _facts(coverage))]
    parts = ["| left out | share | reason |", "|---|---|---|"]
    parts += [f"| {code(part.pattern)} | {_percent(part.share)} | {part.reason} |" for part in coverage.left_out]
    checks = [f"- {code(said)}" for said in _check(coverage.check)]
    notes = [f"- {code(note)}" for note in coverage.notes]
    head = [f"## What of {code(coverage.model.name)} can be tested", "", sentence(coverage, whole=True), ""]
    return (
        "\n".join([*head, *rows, "", *(["Checked:", "", *checks, ""] if checks else []), *parts, "", *notes]).rstrip()
        + "\n"
    )


def sentence(coverage: Coverage, whole: bool = False) -> str:
    """Whether a p-value applies, in one sentence. `whole`: the model's name in full, as code."""
    name = code(coverage.model.name) if whole else printable(coverage.model.name)
    if not coverage.p_value:
        return f"No p-value applies to {name}: no hidden units are known in it, or too few."
    units = coverage.units
    return f"A p-value applies to {name}: {units.units:,} hidden units, in {_percent(units.share)} of its parameters."


def _facts(coverage: Coverage) -> list[tuple[str, str]]:
    blocks = coverage.blocks
    return [
        ("unit matrices", f"{coverage.units.matrices:,}"),
        ("hidden units", f"{coverage.units.units:,}"),
        ("share of parameters", _percent(coverage.units.share)),
        ("blocks", f"{blocks.expected} expected, {blocks.recognised} recognised, {blocks.tested} tested"),
        ("recognised by", ", ".join(f"{rule} ({count})" for rule, count in coverage.rules.items()) or "no rule"),
    ]


RESULTS = {"holds": "exchangeable", "contradicted": "NOT exchangeable", "not_run": "not checked"}


def _check(check: UnitCheck | None) -> list[str]:
    """What running the code said, kind by kind, the contradicted first."""
    if check is None:
        return []
    if check.network is None:
        return [f"not checked: {check.reason}"]
    counts = ", ".join(f"{RESULTS[result]} {check.orders(result)}" for result in RESULTS if check.orders(result))
    kinds = sorted((kind for kind in check.kinds if kind.result != "holds"), key=lambda kind: kind.result)
    told = [f"{RESULTS[kind.result]}: {kind.pattern} ({kind.orders}, {kind.rule}): {kind.reason}" for kind in kinds]
    return [f"{check.network}: of the orders of hidden units {counts or 'there are none'}", *told]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _cost(coverage: Coverage) -> str:
    return f"{bytes_text(coverage.bytes_read)} in {coverage.seconds:.1f} s"
