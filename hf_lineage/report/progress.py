"""A progress bar for people, in a terminal and in a notebook: the home of tqdm."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from typing import Any

from ..answers.base import Progress
from ..answers.refs import printable

PATIENCE = 1.0  # seconds without anything to count after which something turns
TURN = 0.2  # seconds between two of its signs
TURNS = "|/-\\"


class Bar:
    """How much is read of how much, and the time that is left, on stderr or below a notebook's cell.

    It appears with the first bytes and goes when all are read. In a `with` block on a terminal, something turns as soon
    as nothing was to be counted for a second: models are opened, the Hub is asked, what was read is compared.
    `verbose`: lines that stay instead, one for each thing that is read, with the seconds since the start.
    """

    def __init__(self, verbose: bool = False) -> None:
        self._verbose, self._started, self._what = verbose, time.monotonic(), ""
        self._bar: Any = None
        self._doing, self._counted = "opening models", self._started  # when something was counted last
        self._turned, self._ended, self._writing = False, threading.Event(), threading.RLock()
        self._turning: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._verbose:
            self._turning = threading.Thread(target=self._turn, daemon=True, name="hf-lineage-spinner")
            self._turning.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._turning is not None:
            self._turning.join()
        self._wipe()
        self._close()

    def __call__(self, done: int, total: int, what: str) -> None:
        """So much is done of so much."""
        what = printable(what)[:60]
        if self._verbose:
            if what != self._what:
                self._what = what
                print(f"{time.monotonic() - self._started:7.1f} s  {what}", file=sys.stderr)
            return
        with self._writing:
            self._wipe()
            self._count(done, total, what)
            self._doing, self._counted = "comparing", time.monotonic()

    def _count(self, done: int, total: int, what: str) -> None:
        from tqdm.auto import tqdm

        if self._bar is None or self._bar.total != total:
            self._close()
            notebook = "notebook" in tqdm.__mro__[0].__module__ or any("notebook" in t.__module__ for t in tqdm.__mro__)
            self._bar = tqdm(
                total=total, file=None if notebook else sys.stderr, leave=False, disable=False if notebook else None,
                unit_scale=True, dynamic_ncols=True,
            )  # fmt: skip
        self._bar.set_description_str(what[:40], refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _wipe(self) -> None:
        """The line of what turns, before anything else is printed."""
        if self._turned:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._turned = False

    def _turn(self) -> None:
        for sign in itertools.cycle(TURNS):
            if self._ended.wait(min(TURN, PATIENCE)):
                return
            with self._writing:
                if self._bar is None and time.monotonic() - self._counted >= PATIENCE:
                    sys.stderr.write(f"\r{sign} {self._doing} {time.monotonic() - self._started:.0f} s ")
                    sys.stderr.flush()
                    self._turned = True


def progress_of(wanted: Progress | bool | None) -> Progress | None:
    """What a caller gave as `progress`: a function stays, True is a bar, False and None are none."""
    if wanted is True:
        return Bar()
    return wanted or None
