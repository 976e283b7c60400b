"""Numbers of bytes as people write them. Imports nothing, so that a command can refuse one before torch is loaded."""

from __future__ import annotations

import re

from .errors import ArgumentError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)


def size_of(text: str) -> int | None:
    """Bytes that a text with a unit or a whole number means; None where it is no size.

    >>> size_of("1MB"), size_of("1.5GiB"), size_of("4096"), size_of("1.5"), size_of("cpu")
    (1000000, 1610612736, 4096, None, None)
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or (found[3] and not found[2]) or (not found[2] and "." in found[1]):
        return None
    power = "KMGT".index(found[2].upper()) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def limit_of(max_bytes: int | str | None) -> int | None:
    """A caller's `max_bytes` in bytes; None where there is no limit. Raises `ArgumentError`."""
    return None if max_bytes is None else bytes_of(max_bytes, "max_bytes")


def bytes_of(wanted: int | str, called: str) -> int:
    """Bytes, given as such or as text such as `"1MB"`. Raises `ArgumentError`, which names the option `called`."""
    count = size_of(wanted) if isinstance(wanted, str) else wanted
    if count is None:
        raise ArgumentError(f"Expected `{called}` as bytes or text such as '1MB', got {wanted!r}.")
    return count
