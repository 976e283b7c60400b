"""How numbers, names and foreign texts are written: the one place for each, for all reports and for the Space."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..answers.refs import printable


def p_text(log10_p: float | None, none: str = "-") -> str:
    """A p-value, given as log10(p): three decimals from 0.001 up, else one digit and an exponent; `none` without one.

    >>> p_text(-0.5), p_text(-11.7), p_text(-800.0), p_text(None)
    ('0.316', '2e-12', '<1e-300', '-')
    """
    if log10_p is None:
        return none
    if log10_p < -300:
        return "<1e-300"
    if log10_p >= -3:
        return f"{10**log10_p:.3f}"
    exponent = math.floor(log10_p)
    mantissa = round(10 ** (log10_p - exponent))
    return f"{mantissa}e{exponent}" if mantissa < 10 else f"1e{exponent + 1}"


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units.

    >>> bytes_text(999), bytes_text(4_194_304)
    ('999 B', '4.2 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def parameters_text(count: int | None) -> str:
    """A number of parameters.

    >>> parameters_text(3_060), parameters_text(86_567_656), parameters_text(None)
    ('3.1K', '86.6M', '-')
    """
    if count is None or count < 1000:
        return "-" if count is None else str(count)
    value = count / 1000
    for unit in ("K", "M"):
        if value < 1000:
            return f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}B"


def number_text(value: float | None, form: str = ".3g", none: str = "-") -> str:
    """A number in a format; `none` for None, NaN and infinities.

    >>> number_text(0.123456), number_text(1.0, ".3f"), number_text(float("nan"))
    ('0.123', '1.000', '-')
    """
    return format(value, form) if value is not None and math.isfinite(value) else none


def count_text(count: int, noun: str) -> str:
    """A count with its noun.

    >>> count_text(1, "model"), count_text(3, "model")
    ('1 model', '3 models')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed_text(texts: list[str]) -> str:
    """Texts with commas and an "and" between them; "nothing" where there are none.

    >>> listed_text(["a", "b", "c"]), listed_text(["a"]), listed_text([])
    ('a, b and c', 'a', 'nothing')
    """
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) or "nothing"


def shorten(text: str, width: int) -> str:
    """A text of at most `width` columns, its middle cut out if it is longer: both ends of a path tell something.

    Wide characters take two columns.

    >>> shorten("organisation/a-long-model-name", 20), shorten("模型模型模型", 7)
    ('organisati…odel-name', '模…模型')
    """
    if cells(text) <= width:
        return text
    head = _first(text, width // 2)
    return f"{head}…{_first(text[::-1], width - 1 - cells(head))[::-1]}"


def prefix_of(names: Sequence[str]) -> str:
    """The folder or organisation that all names begin with, up to its last slash; "" for fewer than two names.

    >>> prefix_of(["./family/a", "./family/b"]), prefix_of(["lab/a", "org/a"]), prefix_of(["lab/a", "lab/a"])
    ('./family/', '', '')
    """
    if len({*names}) < 2:
        return ""
    folders = [name.split("/")[:-1] for name in names]
    shared = 0
    while all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return "".join(f"{part}/" for part in folders[0][:shared])


def folded(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` columns, broken behind a mark in the last third of a line, else anywhere.

    >>> folded("abcdefgh", 5), folded("模型模", 4), folded("org/a-long-name", 12)
    (['abcde', 'fgh'], ['模型', '模'], ['org/a-long-', 'name'])
    """
    lines = []
    while cells(text) > width:
        head = _first(text, width) or text[0]
        mark = max(head.rfind(sign) for sign in "/-_.") + 1
        head = head[:mark] if mark > 2 * len(head) / 3 else head
        lines.append(head)
        text = text[len(head) :]
    return [*lines, text]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal.

    >>> cells("abc"), cells("模型")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def code(text: str, width: int | None = None) -> str:
    """A foreign text as inline code: nothing in it can end the code, a table's cell, the line or a comment.

    >>> code("a`|<!--@b"), code("  "), code("abcdef", 3)
    ('`a???!--@b`', '`?`', '`a…f`')
    """
    safe = re.sub(r"[`|<>\\]", "?", printable(text))
    return f"`{(safe if width is None else shorten(safe, width)) or '?'}`"


def _first(text: str, width: int) -> str:
    """As many characters from the start of a text as fit into `width` columns."""
    kept = 0
    while kept < len(text) and cells(text[: kept + 1]) <= width:
        kept += 1
    return text[:kept]
