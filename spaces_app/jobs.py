"""One question in a thread of its own: it can be watched, has a deadline, and stops when nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from questions import MAX_SECONDS, RefusedError

Answer = TypeVar("Answer")


class Progress(Protocol):
    """What hf_lineage calls while it reads."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


PAUSE = 0.25  # seconds between two looks
ALONE = 8.0  # seconds without a look after which a job stops: the page was closed, or the question was cancelled


@dataclass(frozen=True, slots=True)
class Step:
    """How far a job is. `total` is 0 until something is being read; `quiet`: seconds since its last report."""

    done: int
    total: int
    what: str
    seconds: float = 0.0
    quiet: float = 0.0


class _Stopped(BaseException):
    """Raised inside a job; like a keyboard interrupt it passes everything that handles errors."""


class Job(Generic[Answer]):
    """`for step in job: show(step)`, then `job.result()`; leaving the loop early, or never coming back, stops it."""

    def __init__(self, work: Callable[[Progress], Answer], seconds: float = MAX_SECONDS) -> None:
        self._work, self._seconds = work, seconds
        self._started = self._seen = time.monotonic()
        self._step = Step(0, 0, "opening the model")
        self._done, self._stop = threading.Event(), threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lineage-job", daemon=True)

    def now(self) -> Step:
        """How far it is."""
        step, now = self._step, time.monotonic() - self._started
        return Step(step.done, step.total, step.what, now, now - step.seconds)

    def __iter__(self) -> Iterator[Step]:
        self._thread.start()
        try:
            while not self._done.wait(PAUSE):
                self._seen = time.monotonic()
                if self._seen - self._started > self._seconds:
                    self._error = self._late()
                    return
                yield self.now()
        finally:
            self._stop.set()

    def result(self) -> Answer:
        """The answer, or what went wrong."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "a job that ended without an error has an answer"
        return self._answer

    def run(self) -> Answer:
        """Wait for the answer."""
        for _ in self:
            pass
        return self.result()

    def _run(self) -> None:
        try:
            answer = self._work(self._report)
            self._answer = answer
        except _Stopped:
            self._error = self._error or self._late()
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._done.set()

    def _report(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        self._step = Step(done, total, what, now - self._started)
        if self._stop.is_set() or now - self._seen > ALONE or now - self._started > self._seconds:
            raise _Stopped

    def _late(self) -> RefusedError:
        return RefusedError(
            f"That took longer than the {self._seconds:.0f} seconds that this page gives to one question. Name fewer "
            "candidates, or use the command line."
        )
