"""Several processes that answer one question together, started by `torchrun` or `accelerate launch`.

Sums travel as they are (gloo, whatever the launcher's own backend), so that every process ends with the same answer.
Without a launcher nothing is imported and nothing is sent.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, ParamSpec, TypeVar

from .errors import ArgumentError, LineageError, ProcessLostError

TIMEOUT = 600  # seconds that a process waits for the others; HF_LINEAGE_TIMEOUT sets another
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the run: number `rank` of `size`."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The items of this process: one run of neighbours, whose sizes sum to Σ/n, up to the size of one item.

        Runs, because neighbours in a file are cheaper to fetch together. With the items laid end to end, item i goes to
        rank ⌊n·m/Σ⌋, where m is the position of its middle.

        >>> [World(rank, 2).share([3, 1, 2, 2]) for rank in range(2)]
        [[0, 1], [2, 3]]
        """
        whole = max(1, sum(sizes))
        ends = accumulate(sizes)
        middles = [2 * end - size for end, size in zip(ends, sizes, strict=True)]  # twice, to stay whole
        owners = [min(self.size * middle // (2 * whole), self.size - 1) for middle in middles]
        return [i for i, owner in enumerate(owners) if owner == self.rank]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank; all of them must call this.

        Raises `ProcessLostError` where one of them died, did not answer in time or failed.
        """
        return self._exchange("value", value)

    def others(self, count: int) -> int:
        """The sum of a count over the other processes; all must call this, as `gather`."""
        return sum(self.gather(count)) - count

    def _exchange(self, kind: str, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        answers = _all_gather(self.size, (kind, value))
        failed = {rank: text for rank, (kind, text) in enumerate(answers) if kind == "failed"}
        if failed and len(failed) < self.size:
            rank, text = next(iter(failed.items()))
            raise ProcessLostError(f"The process of rank {rank} (of {self.size}) failed: {text}")
        if len({kind for kind, _ in answers}) > 1:
            raise ProcessLostError(f"Expected {self.size} processes to go the same way, but one is done. Start again.")
        return [value for _, value in answers]


def world() -> World:
    """This process among the launcher's, from RANK and WORLD_SIZE; one alone without them. Imports nothing.

    >>> world()
    World(rank=0, size=1)
    """
    size = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "") if size != "1" else "0"
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ArgumentError(f"Expected RANK below WORLD_SIZE, as torchrun sets them, got {rank!r} and {size!r}.")
    return World(int(rank), int(size))


def together(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator for what all processes of a launcher call: none returns before all have, a failure in one is one in
    all.

    The same error in all of them stays what it is; one of a single process becomes a `ProcessLostError` that names it.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        here = world()
        try:
            result = function(*args, **kwargs)
        except ProcessLostError:  # the others know
            raise
        except Exception as error:
            here._exchange("failed", _text(error))
            raise
        here._exchange("done", None)
        return result

    return run


class _Threads:
    """How many threads torch has, while questions under way keep each of its operations on one."""

    def __init__(self) -> None:
        self._lock, self._questions, self._count = threading.Lock(), 0, 1

    @property
    def count(self) -> int:
        """Threads to share work among: as many as torch has."""
        import torch

        return self._count if self._questions else torch.get_num_threads()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Torch's operations stay on one thread each; what is under way shares its work among `count` of its own.

        Many short operations on all threads wait for one another at every one of them: where another program has one
        of the cores, a trace took ten times the processor time. The setting is torch's own, for the whole process.
        """
        import torch

        with self._lock:
            if not self._questions:
                self._count = torch.get_num_threads()
                torch.set_num_threads(1)
            self._questions += 1
        try:
            yield
        finally:
            with self._lock:
                self._questions -= 1
                if not self._questions:
                    torch.set_num_threads(self._count)


THREADS = _Threads()


def on_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` of every item, in order, on as many threads as torch has (`THREADS.count`)."""
    todo = [*items]
    count = min(THREADS.count, len(todo))
    if count < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(count, thread_name_prefix="hf-lineage-work") as pool:
        return list(pool.map(work, todo))


def shared(work: Callable[[list[T]], Sequence[R]], items: Iterable[T], sizes: Sequence[int] | None = None) -> list[R]:
    """`work` of all items, a list of results in order: each process does its share of them, and all get all results.

    Every process must call this with the same items; what is returned travels by pickle. sizes: what the items cost.
    """
    here, todo = world(), [*items]
    mine = [todo[i] for i in here.share(sizes or [1] * len(todo))]
    return [result for part in here.gather([*work(mine)]) for result in part]


def _all_gather(size: int, value: Any) -> list[Any]:
    import torch.distributed as dist

    wait = _timeout()
    answers: list[Any] = [None] * size
    try:
        group = _group(size)
        dist.monitored_barrier(group, wait)  # says who is missing
        dist.all_gather_object(answers, value, group=group)
    except LineageError:
        raise
    except (RuntimeError, ValueError) as error:  # every error of torch.distributed is a RuntimeError
        raise _lost(size, wait, str(error)) from error
    return answers


@functools.cache
def _group(size: int) -> Any:
    """Every process, over gloo; Accelerate starts the launcher's own backend where nobody has yet."""
    import torch
    import torch.distributed as dist

    here, wait = int(os.environ.get("LOCAL_WORLD_SIZE", size)), _timeout()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on thread counts
        from accelerate import PartialState

        fresh = not dist.is_initialized()
        # without `cpu`, two processes on a machine without GPUs would each believe to be alone
        state = PartialState(cpu=torch.cuda.device_count() < here, timeout=wait)
    if fresh:
        atexit.register(_leave)
    if state.num_processes != size:
        raise ProcessLostError(
            f"Expected {size} processes, as WORLD_SIZE says, Accelerate found {state.num_processes}. "
            "Start them with torchrun or accelerate launch."
        )
    return dist.new_group(backend="gloo", timeout=wait)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _timeout() -> timedelta:
    text = os.environ.get("HF_LINEAGE_TIMEOUT", str(TIMEOUT))
    try:
        return timedelta(seconds=max(0.001, float(text)))
    except (ValueError, OverflowError) as error:
        raise ArgumentError(f"Expected HF_LINEAGE_TIMEOUT to be a number of seconds, got {text!r}.") from error


def _lost(size: int, wait: timedelta, text: str) -> ProcessLostError:
    found = re.search(r"[Rr]ank (\d+) failed to pass|from rank (\d+)", text)
    who = f"the one of rank {found[1] or found[2]}" if found else "one of them"
    closed = "losed by peer" in text or "reset by peer" in text or "roken pipe" in text
    why = "its connection closed" if closed else f"{wait.total_seconds():g} s passed (HF_LINEAGE_TIMEOUT sets how long)"
    return ProcessLostError(
        f"Expected an answer from {size} processes, {who} gave none: {why}. It died, hangs, or did not make the call "
        "that the others made. Start again."
    )


def _text(error: Exception) -> str:
    """The message of an error for the other processes; for a bug with file and line."""
    if isinstance(error, LineageError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
