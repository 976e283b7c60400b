"""Small pictures as inline SVG, for the report: no script, no style of their own, a sentence for who cannot see them.

All texts are escaped. Labels have rows of their own: no text lies over a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from .format import p_text

WIDE, SIDE = 640, 24  # of a picture, and of its margins
INK, GREY, SOFT, BLUE, RED = "#22303c", "#5b6670", "#cfd8e0", "#1b6ca8", "#b3261e"
LEAST_P = -12.0  # log10 of the smallest p-value that has a position of its own
MAX_BLOCKS = 80  # bars of one picture


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


def _beside(x: float) -> str:
    """How a label is anchored so that it stays in the picture."""
    return "start" if x < WIDE / 4 else "end" if x > 3 * WIDE / 4 else "middle"


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
    here = at(log10_p)
    ticks = [_text(at(k), base + 16, "1" if k == 0 else f"1e{k}", _beside(at(k)), GREY) for k in range(0, -13, -3)]
    said = f"p-value {p_text(log10_p)} of {whose} beside those of {pairs:,} pairs of unrelated models"
    return _svg(150, said, [
        _text(here, 14, f"{whose}: p {p_text(log10_p)}", _beside(here), BLUE),
        _line(here, 20, (here, base), BLUE, 'stroke-width="3"'),
        _text(at(math.log10(alpha)), 34, f"level {alpha:g}", "start" if here > 300 else "end", RED),
        _line(at(math.log10(alpha)), 40, (at(math.log10(alpha)), base), RED, 'stroke-dasharray="4 3"'),
        *bars, _line(SIDE, base, (WIDE - SIDE, base)), *ticks,
        _text(SIDE, base + 34, f"grey: {pairs:,} pairs of unrelated models; to the right: rarer", "start", GREY),
    ])  # fmt: skip


def changes(moved: float, others: Sequence[float], unrelated: Sequence[float]) -> str:
    """Relative changes on a line: this model's, other candidates', and the range of measured unrelated pairs."""
    most = max(1.6, unrelated[-1] * 1.05)
    here, low, high = _across(moved / most), _across(unrelated[0] / most), _across(unrelated[-1] / most)
    said = f"The weights moved by {100 * moved:.2g} % of their norm; between unrelated models by "
    said += f"{100 * unrelated[0]:.0f} to {100 * unrelated[-1]:.0f} %"
    dots = [f'<circle cx="{_across(value / most):.1f}" cy="62" r="5" fill="#fff" stroke="{INK}"/>' for value in others]
    ticks = [_text(_across(k / 100 / most), 92, f"{k} %", _beside(_across(k / 100 / most)), GREY) for k in (0, 50, 100)]
    return _svg(118, said, [
        _bar(low, 50, (max(high - low, 3), 24)), _line(SIDE, 74, (WIDE - SIDE, 74)), *dots,
        f'<circle cx="{here:.1f}" cy="62" r="7" fill="{BLUE}"/>',
        _text(here, 36, "this model", _beside(here), BLUE),
        _text((low + high) / 2, 18, "unrelated models", _beside((low + high) / 2), GREY), *ticks,
        _text(SIDE, 112, "filled: the first candidate; hollow: the other candidates", "start", GREY),
    ])  # fmt: skip


def correlation(value: float, unrelated: Sequence[float]) -> str:
    """A correlation on a line from 0 to 1, and the range of measured unrelated pairs."""

    def at(place: float) -> float:
        return _across(0.06 + 0.9 * max(place, -0.05))

    here, low, high = at(value), at(unrelated[0]), at(unrelated[1])
    said = f"Correlation {value:.3f}; between unrelated models {unrelated[0]:.3f} to {unrelated[1]:.3f}"
    return _svg(112, said, [
        _bar(low, 50, (max(high - low, 3), 24)), _line(SIDE, 74, (WIDE - SIDE, 74)),
        f'<circle cx="{here:.1f}" cy="62" r="7" fill="{BLUE}"/>',
        _text(here, 36, "this model", _beside(here), BLUE), _text(low, 18, "unrelated models", "start", GREY),
        *(_text(at(k), 92, f"{k:g}", _beside(at(k)), GREY) for k in (0, 0.5, 1)),
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
        _text(WIDE - SIDE, line - 6, f"unrelated models: {100 * unrelated[0]:.0f} % and more", "end", GREY),
        _line(SIDE, line, (WIDE - SIDE, line), GREY, 'stroke-dasharray="4 3"'), *bars,
        _line(SIDE, base, (WIDE - SIDE, base)),
        _text(SIDE, base + 16, shown[0][0][:30], "start", GREY),
        *([_text(WIDE - SIDE, base + 16, shown[-1][0][:30], "end", GREY)] if len(shown) > 1 else []),
        _text(SIDE, base + 32, "a bar for each block of the child, from its input to its output", "start", GREY),
    ])  # fmt: skip


def order(position: float, stderr: float) -> str:
    """λ with its standard error between child and candidate."""

    def at(value: float) -> float:
        return _across((min(max(value, -1.5), 1.5) + 1.5) / 3)

    said = f"Position of the common origin: {position:.2f} plus or minus {stderr:.2f}; 1 is the candidate, −1 the child"
    names = {-1: "the child is older", 0: "neither is", 1: "the candidate is older"}
    return _svg(112, said, [
        _text(at(position), 18, f"{position:.2f} ± {stderr:.2f}".replace("-", "−"), _beside(at(position)), BLUE),
        _line(at(position - stderr), 42, (at(position + stderr), 42), BLUE, 'stroke-width="3"'),
        f'<circle cx="{at(position):.1f}" cy="42" r="6" fill="{BLUE}"/>', _line(SIDE, 66, (WIDE - SIDE, 66)),
        *(_line(at(k), 62, (at(k), 70)) for k in names),
        *(_text(at(k), 86, str(k).replace("-", "−"), "middle", GREY) for k in names),
        *(_text(at(k), 104, name, "middle", GREY) for k, name in names.items()),
    ])  # fmt: skip


def calibration(probability: float, bins: Sequence[Sequence[float]]) -> str:
    """How often measured answers with some probability were right, as bars, and where this one lies."""
    base, tall = 120, 90
    bars = [_bar(_across(said) - 7, base - tall * right, (14, tall * right), GREY) for said, right in bins]
    here = _across(probability)
    ticks = [_text(_across(k / 4), base + 16, f"{k / 4:g}", _beside(_across(k / 4)), GREY) for k in range(5)]
    said = f"Probability {probability:.3f} beside the share of measured answers that were right"
    return _svg(156, said, [
        *bars, _line(here, 24, (here, base), BLUE, 'stroke-width="3"'),
        _text(here, 16, f"this answer: {probability:.3f}", _beside(here), BLUE),
        _line(SIDE, base, (WIDE - SIDE, base)), *ticks,
        _text(SIDE, base + 32, "across: the probability that was said; height of a bar: the share that was right",
              "start", GREY),
    ])  # fmt: skip
