"""Numbers of bytes as people write them, and the memory that reading may take.

Imports nothing, so that a command can refuse a number before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ArgumentError

MEMORY, LEAST_MEMORY = 512 << 20, 128 * 10**6  # bytes for reading weights: the default, and the least
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


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that reading weights takes at most, beside torch and the models' headers; shared out in this one place.

    A quarter is for slices under way, half for hidden units, the rest for the arithmetic. A block of the grid of every
    model is held in any case: about a megabyte each.
    """

    total: int = MEMORY

    @classmethod
    def of(cls, wanted: int | str | None) -> Memory:
        """From bytes or text such as `"2GB"`; None: 512 MB. Raises `ArgumentError`.

        >>> Memory.of("2GiB").units(3) >> 20, Memory.of(None).units(100) >> 20
        (128, 2)
        """
        total = MEMORY if wanted is None else size_of(wanted) if isinstance(wanted, str) else wanted
        if not isinstance(total, int) or total < LEAST_MEMORY:
            raise ArgumentError(f"Expected `memory` as bytes or text such as '2GB', at least 128MB, got {wanted!r}.")
        return cls(total)

    def units(self, models: int) -> int:
        """Bytes of hidden units, as float32, that are kept of each of so many models."""
        return min(self.total // 16, self.most_units(models))

    def most_units(self, models: int) -> int:
        """Bytes that they may take where a model has many layers, so that each can be tested."""
        return self.total // 2 // models

    @property
    def given_back(self) -> int:
        """Bytes that are worked on until freed memory is given back to the system."""
        return self.total // 8

    def batch(self, models: int, devices: int, accelerated: bool = False) -> int:
        """Bytes of the child that are read at once, for so many devices; another batch is worked on, and a candidate
        may be stored in wider numbers. Accelerators get all that slices may take: short calls cost them more than the
        work."""
        most = self.total // 4 // models
        return (most if accelerated else min(self.total // 64 * devices, most)) // 2
