"""Small pictures as inline SVG, for the report: no script, no style of their own, a sentence for who cannot see them.

All texts are escaped. Labels have rows of their own: no text lies over a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from .format import folded

WIDE, SIDE = 640, 24  # of a picture, and of its margins
INK, GREY, SOFT, BLUE, RED = "#22303c", "#5b6670", "#cfd8e0", "#1b6ca8", "#b3261e"
LEAST_P = -12.0  # log10 of the smallest p-value that has a position of its own
RAREST = -300.0  # log10 of the smallest p-value that is said
MAX_LABEL = 62  # characters of a line, which fit on a phone
MAX_BLOCKS = 80  # bars of one picture
PARTS = (BLUE, "#9aa7b2", "#d9a441", "#4c8c5a", "#7b5ea7", INK, RED, SOFT)  # colours of the parts of a bar
POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PERCENT: dict[float, str] = {0: "0 %", 0.5: "50 %", 1: "100 %"}


def _svg(height: int, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDE} {height}" role="img" aria-label="{escape(said)}" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x: float, y: float, to: tuple[float, float], colour: str = GREY, more: str = "") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to[0]:.1f}" y2="{to[1]:.1f}" stroke="{colour}" {more}/>'


def _bar(x: float, y: float, size: tuple[float, float], colour: str = SOFT) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(size[0], 0):.1f}" height="{max(size[1], 0):.1f}" fill="{colour}"/>'
    )


def _across(share: float) -> float:
    return SIDE + (WIDE - 2 * SIDE) * min(max(share, 0.0), 1.0)


def _beside_line(other: float, x: float) -> str:
    """How a label at x is anchored so that it does not reach a line at another place."""
    return "start" if other < x or other > x + WIDE / 3 else "end"


def _beside(x: float) -> str:
    """How a label is anchored so that it stays in the picture."""
    return "start" if x < WIDE / 4 else "end" if x > 3 * WIDE / 4 else "middle"


def rare_text(log10_p: float) -> str:
    """A p-value as how rare such evidence is.

    >>> rare_text(0.0), rare_text(-0.48), rare_text(-3.0), rare_text(-6.0), rare_text(-9.0), rare_text(-812.3)
    ('always', '1 in 3', '1 in 1,000', '1 in a million', '1 in 10⁹', 'rarer than 1 in 10³⁰⁰')
    """
    if log10_p < RAREST:
        return f"rarer than {rare_text(RAREST)}"
    if log10_p > math.log10(0.5):
        return "always" if log10_p > -0.005 else "more often than not"
    if log10_p > -6:
        return f"1 in {round(10**-log10_p, 2 - math.ceil(-log10_p)):,.0f}"
    power = math.floor(-log10_p + 1e-9)
    return "1 in a million" if power == 6 else "1 in 10" + str(power).translate(POWERS)


def p_values(
    log10_p: float, alpha: float, at_most: Sequence[Sequence[float]], pairs: int, whose: str = "this model"
) -> str:
    """Where a p-value lies beside those of unrelated pairs. at_most: [p, pairs with that p or a smaller one]."""

    def at(log10: float) -> float:
        return _across(log10 / LEAST_P)

    base, counts = 110, [count for _, count in at_most]
    tallest = max((a - b for a, b in pairwise(counts)), default=1) or 1
    bars = []
    for (high, above), (low, below) in pairwise(at_most):
        left, right, size = at(math.log10(high)), at(math.log10(low)), 60 * (above - below) / tallest
        bars.append(_bar(left, base - size, (right - left - 1, size), GREY))
    here, level = at(log10_p), at(math.log10(alpha))
    ticks = [_text(at(k), base + 16, rare_text(k), _beside(at(k)), GREY) for k in range(0, -13, -3)]
    said = f"Evidence of {whose} as rare as {rare_text(log10_p)}, beside that of {pairs:,} pairs of unrelated models"
    return _svg(150, said, [
        _text(here, 14, f"{whose}: {rare_text(log10_p)}", _beside(here), BLUE),
        _line(here, 20, (here, base), BLUE, 'stroke-width="3"'),
        _text(level, 34, "related from here on", _beside_line(here, level), RED),
        _line(level, 40, (level, base), RED, 'stroke-dasharray="4 3"'),
        *bars, _line(SIDE, base, (WIDE - SIDE, base)), *ticks,
        _text(SIDE, base + 34, f"grey: {pairs:,} measured pairs of unrelated models", "start", GREY),
    ])  # fmt: skip


def on_a_line(
    value: float, unrelated: Sequence[float] | None, others: Sequence[float] = (), *,
    ticks: Mapping[float, str], said: str, span: tuple[float, float] = (0.0, 1.6),
) -> str:  # fmt: skip
    """A number on a line, those of other candidates, and the range of measured unrelated models.

    ticks: numbers that are written below the line.  said: the picture in a sentence.  span: the ends of the line.
    """

    def at(place: float) -> float:
        return _across((place - span[0]) / (span[1] - span[0]))

    here = at(value)
    grey = []
    if unrelated:
        low, high = at(unrelated[0]), at(unrelated[-1])
        middle = (low + high) / 2
        grey = [_bar(low, 50, (max(high - low, 3), 24)), _text(middle, 18, "unrelated models", _beside(middle), GREY)]
    dots = [f'<circle cx="{at(other):.1f}" cy="62" r="5" fill="#fff" stroke="{INK}"/>' for other in others]
    key = "filled: the first candidate; hollow: the other candidates"
    return _svg(118 if others else 100, said, [
        *grey, _line(SIDE, 74, (WIDE - SIDE, 74)), *dots, f'<circle cx="{here:.1f}" cy="62" r="7" fill="{BLUE}"/>',
        _text(here, 38, "this model", _beside(here), BLUE),
        *(_text(at(k), 92, words, _beside(at(k)), GREY) for k, words in ticks.items()),
        *([_text(SIDE, 112, key, "start", GREY)] if others else []),
    ])  # fmt: skip


def changes(moved: float, others: Sequence[float], unrelated: Sequence[float]) -> str:
    """Relative changes: this model's, other candidates', and the range of measured unrelated pairs."""
    said = f"The weights moved by {100 * moved:.2g} % of their norm; between unrelated models by "
    said += f"{100 * unrelated[0]:.0f} to {100 * unrelated[-1]:.0f} %"
    most = max(1.6, unrelated[-1] * 1.05)
    return on_a_line(moved, unrelated, others, ticks=PERCENT, said=said, span=(0.0, most))


def correlation(value: float, unrelated: Sequence[float]) -> str:
    """A correlation, and the range of measured unrelated pairs."""
    said = f"Correlation {value:.3f}; between unrelated models {unrelated[0]:.3f} to {unrelated[1]:.3f}"
    return on_a_line(
        value, unrelated, ticks={0.0: "none", 0.5: "half", 1.0: "equal but for a factor"}, said=said, span=(-0.11, 1.05)
    )


def agreeing(value: float, unrelated: float) -> str:
    """The share of hidden units that agree, and the most of unrelated models."""
    said = f"{100 * value:.1f} % of the hidden units agree; of unrelated models at most {100 * unrelated:.1f} %"
    return on_a_line(value, (0.0, unrelated), ticks=PERCENT, said=said, span=(0.0, 1.0))


def left_over(share: float) -> str:
    """The share of the norm that is left when a model is made again from its sources."""
    ticks: dict[float, str] = {0: "0 %: made again exactly", 1: "100 %: nothing explained"}
    return on_a_line(share, None, ticks=ticks, said=f"{100 * share:.2g} % of the norm is left over", span=(0.0, 1.0))


def stacked(rows: Sequence[tuple[str, Mapping[str, float]]], said: str) -> str:
    """A bar for each row, in parts that stand in one order from the left; below it each part with its number.

    rows: (what the bar is about, its parts by their names); a part of nothing is left out.
    """
    names = list(dict.fromkeys(name for _, parts in rows for name, size in parts.items() if size > 0))
    several, drawn, y = len(rows) > 1, list[str](), 4.0
    for bar, (about, parts) in enumerate(rows, 1):
        whole, x = sum(parts.values()) or 1, float(SIDE)
        drawn.append(_text(SIDE, y + 14, f"bar {bar}: {about}" if several else about, "start"))
        for name in (name for name in names if parts.get(name)):
            wide = (WIDE - 2 * SIDE) * parts[name] / whole
            drawn.append(_bar(x, y + 22, (wide - 1, 20), PARTS[names.index(name) % len(PARTS)]))
            x += wide
        y += 50
    for place, name in enumerate(names):
        sizes = [(parts[name], bar) for bar, (_, parts) in enumerate(rows, 1) if parts.get(name)]
        counts = ", ".join(f"{size:,} in bar {bar}" if several else f"{size:,}" for size, bar in sizes)
        drawn.append(_bar(SIDE, y + 5, (14, 14), PARTS[place % len(PARTS)]))
        y = _label(drawn, SIDE + 24, y, f"{name}: {counts}")
    return _svg(round(y + 6), said, drawn)


def _label(drawn: list[str], x: float, y: float, text: str, colour: str = INK) -> float:
    """Write a text that may be long in as many lines as it takes below y; where the last of them ends."""
    for line in folded(text, MAX_LABEL):
        drawn.append(_text(x, y + 17, line, "start", colour))
        y += 22
    return y + 2


def shares(rows: Sequence[tuple[str, float]], said: str) -> str:
    """A bar for each name, of the length of its share; the first is that of this answer."""
    drawn: list[str] = []
    y = 0.0
    for place, (name, share) in enumerate(rows):
        colour = BLUE if place == 0 else GREY
        y = _label(drawn, SIDE, y, f"{name}: {100 * share:.1f} %", colour)
        drawn += [_bar(SIDE, y, (WIDE - 2 * SIDE, 14)), _bar(SIDE, y, (_across(share) - SIDE, 14), colour)]
        y += 22
    return _svg(round(y) or 1, said, drawn)


def who_first(first: str | None) -> str:
    """Candidate and child with an arrow from the older to the later one; both from a third; a line where it is open.

    first: "candidate", "child", "neither" or None.
    """
    said = {
        "candidate": "From the candidate to this model", "child": "From this model to the candidate",
        "neither": "Both come from a third model",
    }.get(first or "", "Which of the two came first does not show")  # fmt: skip
    left, right, top = (SIDE, 190), (WIDE - SIDE - 190, 190), 60 if first == "neither" else 20
    boxes: list[tuple[float, float, str, float]] = [(*left, "the candidate", top), (*right, "this model", top)]
    middle = top + 16.0
    lines = {
        "candidate": [_arrow(left[0] + 196, middle, (right[0] - 6, middle))],
        "child": [_arrow(right[0] - 6, middle, (left[0] + 196, middle))],
        "neither": [_arrow(WIDE / 2 + side, 34, (x, top - 4)) for side, x in ((-30, left[0] + 190), (30, right[0]))],
    }  # fmt: skip
    found = lines.get(
        first or "", [_line(left[0] + 196, middle, (right[0] - 6, middle), GREY, 'stroke-dasharray="4 3"')]
    )
    boxes += [(WIDE / 2 - 95, 190, "a third model", 2)] if first == "neither" else []
    return _svg(top + 40, said, [*found, *(_box(*box) for box in boxes)])


def _box(x: float, wide: float, text: str, y: float) -> str:
    edge = f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="32" rx="4" fill="none" stroke="{INK}"/>'
    return edge + _text(x + wide / 2, y + 21, text)


def _arrow(x: float, y: float, to: tuple[float, float]) -> str:
    """A line with two strokes at its end."""
    turn = math.atan2(y - to[1], x - to[0])
    ends = [(to[0] + 11 * math.cos(turn + side), to[1] + 11 * math.sin(turn + side)) for side in (-0.45, 0.45)]
    return "".join(_line(*start, to, BLUE, 'stroke-width="2"') for start in ((x, y), *ends))


def depths(child: int, candidate: int, moved: Mapping[int, int]) -> str:
    """The layers of a candidate above those of the child, a line from each layer to the one it became.

    moved: layer of the child → layer of the candidate.
    """

    def at(layer: int, count: int) -> float:
        return _across((layer + 0.5) / max(count, 1))

    def row(count: int, y: float) -> list[str]:
        wide = (WIDE - 2 * SIDE) / max(count, 1)
        return [_bar(SIDE + wide * i + 1, y, (max(wide - 2, 1), 14), SOFT) for i in range(count)]

    said = f"{len(moved)} of the {child} layers of this model are layers of the candidate, which has {candidate}"
    lines = [_line(at(theirs, candidate), 40, (at(mine, child), 92), BLUE) for mine, theirs in moved.items()]
    return _svg(128, said, [
        _text(SIDE, 16, f"the candidate, {candidate} layers", "start"), *row(candidate, 24), *lines, *row(child, 94),
        _text(SIDE, 124, f"this model, {child} layers", "start"),
    ])  # fmt: skip


def blocks(moved: Sequence[tuple[str, float]], unrelated: Sequence[float]) -> str:
    """A bar for each block of the child: how far its weights moved."""
    shown = moved[:MAX_BLOCKS]
    wide, base = (WIDE - 2 * SIDE) / max(len(shown), 1), 120
    scale = 90 / max(1.5, unrelated[-1])
    line = base - scale * unrelated[0]
    said = "Relative change of each block: " + ", ".join(f"{name} {100 * value:.2g} %" for name, value in shown[:12])
    bars = [
        _bar(SIDE + wide * i + 1, base - scale * min(value, 1.5), (wide - 2, scale * min(value, 1.5)), BLUE)
        for i, (_, value) in enumerate(shown)
    ]
    return _svg(156, said, [
        _text(WIDE - SIDE, 14, f"above the dashed line: unrelated models, {100 * unrelated[0]:.0f} %", "end", GREY),
        _line(SIDE, line, (WIDE - SIDE, line), GREY, 'stroke-dasharray="4 3"'), *bars,
        _line(SIDE, base, (WIDE - SIDE, base)),
        _text(SIDE, base + 16, shown[0][0][:30], "start", GREY),
        *([_text(WIDE - SIDE, base + 16, shown[-1][0][:30], "end", GREY)] if len(shown) > 1 else []),
        _text(SIDE, base + 32, "a bar for each block of this model, from input to output", "start", GREY),
    ])  # fmt: skip


def order(position: float, stderr: float) -> str:
    """λ with its standard error between child and candidate."""

    def at(value: float) -> float:
        return _across((min(max(value, -1.5), 1.5) + 1.5) / 3)

    said = (
        f"Position of the common origin: {position:.2f} plus or minus {stderr:.2f}; 1 is the candidate, −1 this model"
    )
    names = {-1: "this model is older", 0: "neither is", 1: "the candidate is older"}
    return _svg(94, said, [
        _text(at(position), 18, "the common origin, as measured", _beside(at(position)), BLUE),
        _line(at(position - stderr), 42, (at(position + stderr), 42), BLUE, 'stroke-width="3"'),
        f'<circle cx="{at(position):.1f}" cy="42" r="6" fill="{BLUE}"/>', _line(SIDE, 66, (WIDE - SIDE, 66)),
        *(_line(at(k), 62, (at(k), 70)) for k in names),
        *(_text(at(k), 86, name, "middle", GREY) for k, name in names.items()),
    ])  # fmt: skip


def calibration(probability: float, bins: Sequence[Sequence[float]]) -> str:
    """How often measured answers with some probability were right, as bars, and where this one lies."""
    base, tall = 120, 90
    bars = [_bar(_across(said) - 7, base - tall * right, (14, tall * right), GREY) for said, right in bins]
    here = _across(probability)
    ticks = [_text(_across(k / 4), base + 16, f"{25 * k} %", _beside(_across(k / 4)), GREY) for k in range(5)]
    said = f"Probability {100 * probability:.1f} % beside the share of measured answers that were right"
    return _svg(156, said, [
        *bars, _line(here, 24, (here, base), BLUE, 'stroke-width="3"'),
        _text(here, 16, f"this answer: {100 * probability:.1f} %", _beside(here), BLUE),
        _line(SIDE, base, (WIDE - SIDE, base)), *ticks,
        _text(SIDE, base + 32, "across: the probability that was said; height: the share that was right",
              "start", GREY),
    ])  # fmt: skip
