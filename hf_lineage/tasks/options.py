"""The settings of one question, the same for every task: checked once, then handed on as one object."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.base import Progress
from ..errors import ArgumentError, TimeOverError
from ..parallel import world
from ..sizes import Memory
from ..weights.sampling import sample_budget

if TYPE_CHECKING:
    from ..features.evidence import Settings, Source
    from ..placement import Placement, Wanted
    from .session import Session

    Sample = str | float | int | None

EVIDENCE_NAMES = ("weights", "features", "detector")
MORE_TIME = ("Give it more time, or read less: --timeout, --sample.", "timeout=…, sample=….")  # hints
PACKAGES = ("hf_lineage", "huggingface_hub", "numpy", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """How models are run, where features or a detector are asked for; the fields are arguments of `trace`."""

    probes: Source = None
    taps: str | Sequence[str] | None = None
    metric: str = "l2"
    step: float | str = "auto"
    detector: str | Path | None = None

    def check(self, evidence: Sequence[str]) -> None:
        """Refuse what the evidence asked for has no use for. Raises `ArgumentError`."""
        if self.detector is not None and "detector" not in evidence:
            raise ArgumentError('Expected evidence="detector" with `detector`.')
        probes = self.probes is not None and "detector" not in evidence
        if "features" not in evidence and (
            probes or self.taps is not None or self.metric != "l2" or self.step != "auto"
        ):
            raise ArgumentError('Expected evidence="features" with `probes`, `taps`, `metric` or `step`.')

    def settings(self, options: Options, token: str | bool | None) -> Settings:
        """The same for the room `features`. Raises `ArgumentError`."""
        from ..features.evidence import Settings

        return Settings(
            self.probes, self.taps, self.metric, self.step, token, options.device, options.seed
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is common to all tasks: evidence, level, sample, limits, device, progress, seed.

    The fields are arguments of `trace`, except: `most`, bytes of a model that are read at most where nobody said how
    many; `spent`, bytes that earlier rings of the same search have read; `started`, the clock when the task began.
    Raises `ArgumentError`.
    """

    evidence: tuple[str, ...] = ("weights",)
    alpha: float = 1e-3
    sample: Sample = None
    max_bytes: int | None = None
    memory: int | str | None = None
    device: Wanted | Placement = None
    progress: Progress | None = None
    seed: int = 0
    networks: Networks = Networks()
    tree: bool = False
    older: bool = False
    prior: float | None = None
    relatives: bool = True
    check_order: bool = False
    most: int | None = None
    spent: int = 0
    timeout: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        known = ", ".join(EVIDENCE_NAMES)
        if not self.evidence:
            raise ArgumentError(f"Expected `evidence` to name some of {known}, got none.")
        for name in self.evidence:
            if name not in EVIDENCE_NAMES:
                raise ArgumentError(f"Expected `evidence` to be among {known}, got {name!r}.")
        if self.device is not None:  # what is free is asked once for a question
            from ..placement import placement

            object.__setattr__(self, "device", placement(self.device))
        _ = self.reading_memory
        sample_budget(self.sample, total=1, remote=False)
        if not 0 < self.alpha < 1:
            raise ArgumentError(f"Expected `alpha` between 0 and 1, got {self.alpha}.")
        if self.prior is not None and not 0 < self.prior < 1:
            raise ArgumentError(f"Expected `prior` between 0 and 1, got {self.prior}.")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise ArgumentError(f"Expected `max_bytes` above 0, got {self.max_bytes}.")
        if self.timeout is not None:
            if not self.timeout > 0:
                raise ArgumentError(f"Expected `timeout` above 0 seconds, got {self.timeout}.")
            object.__setattr__(self, "progress", self._in_time(self.progress))
        self.networks.check(self.evidence)

    @property
    def ends(self) -> float:
        """When the question's time is over, on the monotonic clock."""
        return math.inf if self.timeout is None else self.started + self.timeout

    def _in_time(self, progress: Progress | None) -> Progress:
        """`progress`, which every loop that reads calls, and which ends them when the time is over."""

        def report(done: int, total: int, what: str) -> None:
            if time.monotonic() > self.ends:
                raise TimeOverError(f"The time limit of {self.timeout:g} seconds is over.", *MORE_TIME)
            if progress is not None:
                progress(done, total, what)

        return report

    @property
    def reading_memory(self) -> Memory:
        """What reading weights may take. Raises `ArgumentError`."""
        return Memory.of(self.memory)

    @property
    def runs_models(self) -> bool:
        """Whether networks are run, not only weights read."""
        return bool({"features", "detector"} & {*self.evidence})

    def cost(self, session: Session, by_others: int = 0) -> dict[str, Any]:
        """The fields of every answer that say what it took; `by_others`: bytes that other processes read."""
        return {
            "bytes_read": session.bytes_read + by_others, "seconds": self.seconds(), "seed": self.seed,
            "alpha": self.alpha, "versions": versions(),
        }  # fmt: skip

    def seconds(self) -> float:
        """Wall clock since the task began, the first process's."""
        return world().gather(round(time.monotonic() - self.started, 3))[0]


def names_of(evidence: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of evidence that were asked for."""
    return (evidence,) if isinstance(evidence, str) else tuple(evidence)


def versions() -> dict[str, str]:
    """Of the packages that an answer depends on."""
    return {name: version(name) for name in PACKAGES}
