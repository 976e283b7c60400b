"""Memory that what is read from files is put into: filled again and again while a pass over the weights goes on.

Memory fresh from the system costs more than the bytes that are copied into it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST = 1 << 16  # bytes from which a buffer is kept: the allocator keeps shorter ones itself
KEPT = 32 << 20  # bytes of one size that are kept at most
Buffer = bytearray | memoryview


class Buffers:
    """Buffers of sizes that are powers of two, kept from when nobody uses them any more until they are asked for."""

    def __init__(self) -> None:
        self._passes = 0
        self._free: dict[int, list[Buffer]] = {}
        self._fresh: Callable[[int], Buffer] = bytearray

    @contextmanager
    def kept(self, fresh: Callable[[int], Buffer] = bytearray) -> Iterator[None]:
        """Keep buffers meanwhile; afterwards their memory is given back. fresh: makes a buffer of so many bytes."""
        self._passes += 1
        self._fresh = fresh
        try:
            yield
        finally:
            self._passes -= 1
            if not self._passes:
                self._free.clear()
                self._fresh = bytearray

    def take(self, size: int) -> Buffer:
        """A buffer of that many bytes; what is in it is not cleared. It is free again when nothing refers to it."""
        if not self._passes or size < LEAST:
            return bytearray(size)
        whole = 1 << (size - 1).bit_length()
        try:  # other threads take, too
            raw = self._free.setdefault(whole, []).pop()
        except IndexError:
            raw = self._fresh(whole)
        view = memoryview(raw)[:size]
        weakref.finalize(view, self._give, raw).atexit = False
        return view

    def _give(self, raw: Buffer) -> None:
        free = self._free.get(len(raw))
        if self._passes and free is not None and len(free) < KEPT // len(raw):
            free.append(raw)


BUFFERS = Buffers()


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back() -> None:
    """Freed memory goes back to the system, where the C library is glibc.

    It keeps what was freed, in pieces that the next tensor does not always fit in: a long pass took three times the
    memory that it used. About a millisecond.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def pinned(size: int) -> Buffer:
    """Memory that the system does not move, from which a GPU copies while the processor works on."""
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data
