"""The change of a card as a unified diff, for terminals and for people."""

from __future__ import annotations

import difflib
import re

NAMES = ("a/README.md", "b/README.md")


def diff(old: str, new: str) -> str:
    """A unified diff; control characters, which a terminal might obey, are shown as `?`.

    >>> print(diff("# T\\r\\nold\\x1b", "# T\\r\\nnew"), end="")
    --- a/README.md
    +++ b/README.md
    @@ -1,2 +1,2 @@
     # T
    -old?
    +new
    """
    lines = difflib.unified_diff(_lines(old), _lines(new), *NAMES, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    lines = [
        "".join(ch if ch.isprintable() or ch == "\t" else "?" for ch in line) for line in re.split(r"\r\n|\n|\r", text)
    ]
    return lines[:-1] if lines[-1] == "" else lines
