"""One question in a process of its own: it can be watched, and is ended when its time is over or nobody waits for it.

A process, since a thread cannot be ended: what it works on may be made to take hours. It begins as a copy of one that
has imported all that is needed, holds one visitor's token, connections and cookies, answers one question, and is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from questions import MAX_MEMORY, MAX_SECONDS, RefusedError

Answer = TypeVar("Answer")


class Progress(Protocol):
    """What hf_lineage calls while it reads."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


PAUSE = 0.25  # seconds between two looks
ALONE = 8.0  # seconds without a look after which a job is ended: the page was closed, or the question was cancelled
OFTEN = 0.1  # seconds between two reports
START: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


@dataclass(frozen=True, slots=True)
class Step:
    """How far a job is. `total` is 0 until something is being read; `quiet`: seconds since its last report."""

    done: int
    total: int
    what: str
    seconds: float = 0.0
    quiet: float = 0.0


class Job(Generic[Answer]):
    """`for step in job: show(step)`, then `job.result()`; leaving the loop early, or never coming back, ends it.

    `work(*given, progress)` is a function of a module: it is called in another process.
    """

    def __init__(self, work: Callable[..., Answer], *given: Any, seconds: float = MAX_SECONDS) -> None:
        self._seconds = seconds
        self._started = self._seen = time.monotonic()
        self._step = Step(0, 0, "opening the model")
        self._answer: tuple[Answer] | None = None
        self._error: BaseException | None = None
        self._reports, theirs = START.Pipe(duplex=False)
        self._process = START.Process(target=_run, args=(work, given, theirs, seconds), name="lineage-job", daemon=True)
        self._theirs = theirs

    def now(self) -> Step:
        """How far it is."""
        step, now = self._step, time.monotonic() - self._started
        return Step(step.done, step.total, step.what, now, now - step.seconds)

    def __iter__(self) -> Iterator[Step]:
        self._process.start()
        self._theirs.close()  # else its end would not be seen here
        self._started = self._seen = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            while not self._heard():
                self._seen = time.monotonic()
                if self._seen - self._started > self._seconds:
                    self._error = self._late()
                    return
                yield self.now()
        finally:
            self._end()

    def result(self) -> Answer:
        """The answer, or what went wrong."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "a job that ended without an error has an answer"
        return self._answer[0]

    def run(self) -> Answer:
        """Wait for the answer."""
        for _ in self:
            pass
        return self.result()

    def _heard(self) -> bool:
        """Look for what the process says, `PAUSE` at most; True when that was its last word."""
        until = time.monotonic() + PAUSE
        try:
            while (left := until - time.monotonic()) > 0 and self._reports.poll(left):
                kind, *said = self._reports.recv()
                if kind == "step":
                    self._step = Step(said[0], said[1], said[2], time.monotonic() - self._started)
                    continue
                if kind == "answer":
                    self._answer = (said[0],)
                else:
                    self._error = said[0]
                    self._error.__cause__ = RuntimeError(said[1])  # where, for the log
                return True
        except (EOFError, OSError):
            late = time.monotonic() - self._started > self._seconds
            self._error = self._late() if late else RuntimeError("the process of a question ended without a word")
            return True
        return False

    def _watch(self) -> None:
        """End the process when its time is over, or when nobody looks any more: a loop above may never go on."""
        while self._process.is_alive():
            now = time.monotonic()
            if now - self._seen > ALONE or now - self._started > self._seconds + PAUSE:
                self._end()
                return
            time.sleep(PAUSE)

    def _end(self) -> None:
        with suppress(ValueError, AssertionError):
            self._process.kill()

    def _late(self) -> RefusedError:
        return RefusedError(
            f"That took longer than the {self._seconds:.0f} seconds that this page gives to one question. Name fewer "
            "candidates, or use the command line."
        )


def get_ready() -> None:
    """Start the process that the others are copies of: it imports what questions need, so that nobody waits for it."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    if os.name == "posix":
        START.set_forkserver_preload(["worker"])
    Job(_nothing).run()


def _nothing(progress: Progress) -> int:
    return 0


def _run(work: Callable[..., Any], given: tuple[Any, ...], reports: Connection, seconds: float) -> None:
    """In the process: the work, and its last word."""
    _bound(seconds)
    last, talking = 0.0, threading.Lock()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal last
        with talking:  # whatever reads may have threads
            if (now := time.monotonic()) - last >= OFTEN:
                last = now
                reports.send(("step", done, total, what))

    try:
        reports.send(("answer", work(*given, progress)))
    except MemoryError:
        reports.send(("error", RefusedError("That needs more memory than this page gives to one question."), ""))
    except BaseException as error:
        where = traceback.format_exc()
        try:
            reports.send(("error", error, where))
        except Exception:  # what cannot travel is told by its name
            reports.send(("error", RuntimeError(type(error).__name__), where))


def _bound(seconds: float) -> None:
    """No more memory than is allowed; an end by itself, should the page that watches it be gone."""
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        signal.alarm(int(seconds) + 5)
