"""What is asked: arguments checked, models opened, claims found, what is to be read. Both pipelines begin here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.lineage import Candidate, Claim, Status
from ..answers.refs import ModelRef, is_repo_id
from ..architecture.align import Alignment
from ..architecture.conventions import fused_parts
from ..architecture.describe import Architecture, describe
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.claims import claims_of
from ..checkpoints.opener import Opener, model_identity
from ..checkpoints.view import View
from ..errors import ArgumentError, CheckpointError, LimitError, LineageError, NoCandidatesError
from ..weights.sampling import Plan, make_plan, sample_budget

if TYPE_CHECKING:
    import torch

    from ..features.evidence import Settings, Source

    Model = str | Path | ModelRef | torch.nn.Module

EVIDENCE = ("weights", "features", "detector")
PACKAGES = ("hf_lineage", "huggingface_hub", "numpy", "torch")
LEAST_SAMPLE = 100_000  # bytes of a model below which a smaller sample is no advice
UNITS_PER_MODEL, UNITS_IN_ALL = 64 << 20, 1 << 30  # bytes of hidden units kept in memory
Lined = tuple[Checkpoint, Alignment]  # a candidate and how it lines up with the child


@dataclass(frozen=True)
class Question:
    """The child as asked for (of an adapter, `source` is the base in its place), and the candidates that opened."""

    opener: Opener
    child: Checkpoint
    source: Checkpoint
    claims: tuple[Claim, ...]
    wanted: tuple[Model, ...]
    opened: tuple[Checkpoint, ...]
    unreadable: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @cached_property
    def whole(self) -> View:
        """The child through its cuts: fused tensors as their parts."""
        return View(self.source, fused_parts(self.source))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The candidates through theirs."""
        return tuple(View(model, fused_parts(model)) for model in self.opened)

    @cached_property
    def architecture(self) -> Architecture:
        """The child's."""
        return describe(self.whole)

    @property
    def modules(self) -> tuple[Any, ...]:
        """Those of the models that were given as modules in memory."""
        return tuple(model for model in self.wanted if hasattr(model, "state_dict"))


def ask(child: Model, candidates: Iterable[Model], opener: Opener) -> Question:
    """Open the child and its candidates, and see what its files declare."""
    if isinstance(candidates, (str, Path)) or hasattr(candidates, "state_dict"):
        raise ArgumentError(f"Expected a list of candidates, got a single {type(candidates).__name__}.")
    wanted = list(candidates)
    ours = opener.open(child)
    claims = claims_of(ours)
    source = base_of(ours, opener) if ours.adapter_base else ours
    if not wanted:
        raise NoCandidatesError(
            f"Expected candidate parents of `{ours.ref.name}`, got none. Name some: -c org/name, or candidates=[…]."
        )
    opened, unreadable = opener.open_all(wanted)
    opened, notes = _distinct(opened, ours)
    if not opened and not unreadable:
        raise NoCandidatesError(
            f"A model is not its own parent: expected candidates other than `{ours.ref.name}`. {' '.join(notes)} "
            "Name others."
        )
    return Question(
        opener,
        ours,
        source,
        tuple(claims),
        (child, *wanted),
        tuple(sorted(opened, key=lambda model: (model.ref, model.requested))),
        tuple(unreadable),
        tuple(notes),
    )


def check(evidence: Sequence[str], alpha: float, max_bytes: int | None, device: str | torch.device | None) -> None:
    if not evidence:
        raise ArgumentError(f"Expected `evidence` to name some of {', '.join(EVIDENCE)}, got none.")
    for name in evidence:
        if name not in EVIDENCE:
            raise ArgumentError(f"Expected `evidence` to be among {', '.join(EVIDENCE)}, got {name!r}.")
    if device is not None:
        import torch

        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0][:100]
            raise ArgumentError(
                f"Expected `device` to be one of this machine's, got {str(device)!r}: {reason}"
            ) from error
    if not 0 < alpha < 1:
        raise ArgumentError(f"Expected `alpha` between 0 and 1, got {alpha}.")
    if max_bytes is not None and max_bytes <= 0:
        raise ArgumentError(f"Expected `max_bytes` above 0, got {max_bytes}.")


def features_settings(
    names: Sequence[str], probes: Source, taps: str | Sequence[str] | None, metric: str, step: float | str,
    token: str | bool | None, device: str | torch.device | None, seed: int, detector: str | Path | None = None,
) -> Settings | None:  # fmt: skip
    """How models are to be run, None where neither features nor a detector are asked for."""
    if detector is not None and "detector" not in names:
        raise ArgumentError('Expected evidence="detector" with `detector`.')
    given = probes is not None and "detector" not in names
    if "features" not in names and (given or taps is not None or metric != "l2" or step != "auto"):
        raise ArgumentError('Expected evidence="features" with `probes`, `taps`, `metric` or `step`.')
    if not {"features", "detector"} & {*names}:
        return None
    from ..features.evidence import Settings

    return Settings(probes, taps, metric, step, token, device or "cpu", seed)


def features_bytes(child: Checkpoint, lined: Sequence[Lined], settings: Settings, max_bytes: int | None) -> int:
    """The most that running the models reads, refused if above `max_bytes`; 0 where nobody asks."""
    if max_bytes is None:
        return 0
    from ..features.evidence import expected_bytes

    needed = expected_bytes(child, [model for model, _ in lined], settings)
    if needed > max_bytes:
        raise ArgumentError(
            f"Features would read up to {needed:,} bytes of {1 + len(lined)} models, more than max_bytes={max_bytes:,}."
            " Choose an earlier tap; and give a `step`, since of remote models each step tried is read again."
        )
    return needed


def base_of(adapter: Checkpoint, opener: Opener) -> Checkpoint:
    """The base an adapter declares. What a repo's file names must not open a path on this machine."""
    base = adapter.adapter_base or ""
    if adapter.ref.kind == "hub" and not is_repo_id(base):
        raise CheckpointError(
            f"`{adapter.ref.name}` is a LoRA adapter of {base[:80]!r}, which is no repo id. Name its base as the child."
        )
    try:
        return opener.open(base)
    except LineageError as error:
        raise CheckpointError(f"`{adapter.ref.name}` is a LoRA adapter; its base cannot be opened: {error}") from error


def _distinct(opened: Sequence[Checkpoint], child: Checkpoint) -> tuple[list[Checkpoint], list[str]]:
    """Without the child itself and without what is named twice; a note for each."""
    kept: dict[tuple, Checkpoint] = {}
    notes = []
    for checkpoint in opened:
        if model_identity(checkpoint) == model_identity(child):
            notes.append(f"{checkpoint.requested} is the child itself and was dropped from the candidates.")
        elif model_identity(checkpoint) in kept:
            notes.append(f"{checkpoint.ref.name} was named more than once and counts once.")
        else:
            kept[model_identity(checkpoint)] = checkpoint
    return list(kept.values()), sorted(notes)


def budget_of(
    child: Checkpoint, models: Iterable[Checkpoint], names: Iterable[str], sample: str | float | int | None
) -> int | None:
    """Bytes to read of the child's tensors `names`, None for all of them: see `sample_budget`."""
    remote = child.remote or any(model.remote for model in models)
    return sample_budget(sample, sum(child[name].nbytes for name in names), remote)


def plan_reading(
    child: Checkpoint, architecture: Architecture, comparable: Sequence[Lined], budget: int | None,
    max_bytes: int | None, seed: int, beside: int = 0,
) -> Plan:  # fmt: skip
    """What to read of the tensors that any candidate has; `beside`: bytes that something else reads."""
    nbytes = {name: child[name].nbytes for name in paired(architecture, comparable)}
    models = 1 + len(comparable)
    keep = min(UNITS_PER_MODEL, UNITS_IN_ALL // models)
    plan = make_plan(
        {name: child[name] for name in nbytes}, nbytes, architecture.orders, budget=budget, keep=keep, seed=seed
    )
    if not plan.slices:
        raise ArgumentError(f"Expected a larger sample: {budget} bytes of {sum(nbytes.values()):,} hold no slice.")
    needed = round(plan.share * (sum(nbytes.values()) + sum(_nbytes(*pair) for pair in comparable)))
    within(max_bytes, needed + beside, models)
    return plan


def within(max_bytes: int | None, needed: int, models: int) -> None:
    """Refuse to read more than the caller allows, before any of it is read."""
    if max_bytes is not None and needed > max_bytes:
        share = max_bytes // models
        hint = (
            f"Sample less, for example {share} bytes" if share >= LEAST_SAMPLE else "Allow more, or name fewer models"
        )
        raise LimitError(
            f"This would read about {needed:,} bytes of {models} models, more than max_bytes={max_bytes:,}. {hint}."
        )


def paired(architecture: Architecture, comparable: Sequence[Lined]) -> list[str]:
    """The child's weights that any candidate has."""
    return [name for name in architecture.weights if any(name in alignment.pairs for _, alignment in comparable)]


def _nbytes(model: Checkpoint, alignment: Alignment) -> int:
    return sum(model[partner].nbytes for partner in alignment.pairs.values())


def shared_rows(comparable: Sequence[tuple[Checkpoint, Alignment]]) -> dict[str, int]:
    """Rows of each token table that every candidate has."""
    rows: dict[str, int] = {}
    for _, alignment in comparable:
        for name, both in alignment.grown.items():
            rows[name] = min(*both, rows.get(name, both[0]))
    return rows


def versions() -> dict[str, str]:
    """Of the packages that an answer depends on."""
    return {name: version(name) for name in PACKAGES}


def blank(checkpoint: Checkpoint, status: Status, *reasons: str) -> Candidate:
    ref = checkpoint.ref
    return Candidate(ref.name, checkpoint.requested, ref.revision, status=status, reasons=reasons)


def skipped(checkpoints: Sequence[Checkpoint]) -> list[str]:
    return [
        f"{checkpoint.ref.name}: tensors of an unknown dtype were left out: {some(checkpoint.skipped)}."
        for checkpoint in checkpoints if checkpoint.skipped
    ]  # fmt: skip


def some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
