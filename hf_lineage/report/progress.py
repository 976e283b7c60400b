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
TURNS = "|/-\\"


class Bar:
    """How much is read of how much, and the time that is left, on stderr or below a notebook's cell.

    It appears with the first bytes and goes when all are read. In a `with` block on a terminal, something turns as soon
    as nothing was to be counted for a second: models are opened, the Hub is asked. `verbose`: lines that stay instead,
    one for each thing that is read, with the seconds since the start.
    """

    def __init__(self, verbose: bool = False) -> None:
        self._verbose, self._started, self._what = verbose, time.monotonic(), ""
        self._bar: Any = None
        self._ended, self._seen = threading.Event(), threading.Event()
        self._turning: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self._verbose:
            self._turning = threading.Thread(target=self._turn, daemon=True, name="hf-lineage-spinner")
            self._turning.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._stop_turning()
        self._close()

    def __call__(self, done: int, total: int, what: str) -> None:
        """So much is done of so much."""
        what = printable(what)[:60]
        if self._verbose:
            if what != self._what:
                self._what = what
                print(f"{time.monotonic() - self._started:7.1f} s  {what}", file=sys.stderr)
            return
        self._stop_turning()
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

    def _stop_turning(self) -> None:
        """A bar is there, or the end: the line of what turned is wiped before anything else is printed."""
        self._seen.set()
        if self._turning is not None:
            self._turning.join()
            self._turning = None

    def _turn(self) -> None:
        if self._seen.wait(PATIENCE):
            return
        for sign in itertools.cycle(TURNS):
            sys.stderr.write(f"\r{sign} opening models {time.monotonic() - self._started:.0f} s ")
            sys.stderr.flush()
            if self._seen.wait(0.2):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def progress_of(wanted: Progress | bool | None) -> Progress | None:
    """What a caller gave as `progress`: a function stays, True is a bar, False and None are none."""
    if wanted is True:
        return Bar()
    return wanted or None
