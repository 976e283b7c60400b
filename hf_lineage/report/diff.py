"""The change of a card as a unified diff, for terminals and for people."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from .card import metadata_of

MAX_COMPARED_LINES = 1000  # compared line by line: `difflib` takes quadratic time for lines that come often
CONTEXT = 3
Change = tuple[str, int, int, int, int]


def diff(old: str, new: str) -> str:
    """A unified diff; control characters, which a terminal might obey, are shown as `?`.

    Metadata and body are compared one after the other: in each there is one change, wherever it is.

    >>> print(diff("# T\\r\\nold\\x1b", "# T\\r\\nnew"), end="")
    --- a/README.md
    +++ b/README.md
    @@ -1,2 +1,2 @@
     # T
    -old?
    +new
    """
    before: list[str] = []
    after: list[str] = []
    changes: list[Change] = []
    heads = metadata_of(old), metadata_of(new)
    for mine, theirs in (heads, (old[len(heads[0]) :], new[len(heads[1]) :])):
        one, two = _lines(mine), _lines(theirs)
        for tag, i1, i2, j1, j2 in _changes(one, two):
            i, j = len(before), len(after)
            changes.append((tag, i + i1, i + i2, j + j1, j + j2))
        before += one
        after += two
    hunks = "".join(_hunks(before, after, _joined(changes)))
    return f"--- a/README.md\n+++ b/README.md\n{hunks}" if hunks else ""


def _changes(one: Sequence[str], two: Sequence[str]) -> Iterator[Change]:
    """What `difflib` calls opcodes, of what lies between the lines that begin and end both."""
    most = min(len(one), len(two))
    start = next((i for i in range(most) if one[i] != two[i]), most)
    end = next((i for i in range(most - start) if one[-1 - i] != two[-1 - i]), most - start)
    i2, j2 = len(one) - end, len(two) - end
    yield "equal", 0, start, 0, start
    if max(i2, j2) - start <= MAX_COMPARED_LINES:
        matcher = difflib.SequenceMatcher(None, one[start:i2], two[start:j2], autojunk=False)
        for tag, a1, a2, b1, b2 in matcher.get_opcodes():
            yield tag, start + a1, start + a2, start + b1, start + b2
    else:
        yield "replace", start, i2, start, j2
    yield "equal", i2, len(one), j2, len(two)


def _joined(changes: Sequence[Change]) -> list[Change]:
    """Without what is empty, equal runs made one."""
    result: list[Change] = []
    for tag, i1, i2, j1, j2 in changes:
        if result and tag == result[-1][0] == "equal":
            result[-1] = ("equal", result[-1][1], i2, result[-1][3], j2)
        elif i1 < i2 or j1 < j2:
            result.append((tag, i1, i2, j1, j2))
    return result


def _hunks(before: Sequence[str], after: Sequence[str], changes: list[Change]) -> Iterator[str]:
    if all(tag == "equal" for tag, *_ in changes):
        return
    matcher = difflib.SequenceMatcher(None, "", "")
    matcher.opcodes = changes  # type: ignore[attr-defined]
    for group in matcher.get_grouped_opcodes(CONTEXT):
        first, last = group[0], group[-1]
        yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from (f" {line}\n" for line in before[i1:i2])
            else:
                yield from (f"-{line}\n" for line in before[i1:i2])
                yield from (f"+{line}\n" for line in after[j1:j2])


def _range(start: int, stop: int) -> str:
    """Lines as a unified diff counts them: from 1, and before the first of none."""
    count = stop - start
    return str(start + 1) if count == 1 else f"{start + 1 if count else start},{count}"


def _lines(text: str) -> list[str]:
    lines = [
        "".join(ch if ch.isprintable() or ch == "\t" else "?" for ch in line) for line in re.split(r"\r\n|\n|\r", text)
    ]
    return lines[:-1] if lines[-1] == "" else lines
