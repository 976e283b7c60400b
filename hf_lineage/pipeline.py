"""The story on one page: open, line up, read once, judge, compare with what is claimed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from . import verdict
from .architecture import Alignment, Architecture, align, describe
from .errors import ArgumentError, NoCandidatesError, NothingToCompareError
from .hub.candidates import claims_of
from .hub.checkpoint import Checkpoint
from .hub.opener import Opener, identity
from .records import Candidate, Lineage, ModelRef, Progress, Status
from .weights.evidence import WeightsComparison, compare
from .weights.reading import read_together
from .weights.sample import Plan, make_plan, sample_budget

if TYPE_CHECKING:
    import torch

    Model = str | Path | ModelRef | torch.nn.Module

EVIDENCE = ("weights",)
UNITS_PER_MODEL, UNITS_IN_ALL = 64 << 20, 1 << 30  # bytes of hidden units kept in memory
PACKAGES = ("hf_lineage", "huggingface_hub", "numpy", "torch")


def trace(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
) -> Lineage:  # fmt: skip
    """Say which of the candidates the child was fine-tuned from, and how sure that is.

    child, candidates: Hub repo ids (`org/name`, `org/name@revision`), paths (starting with `.`, `/`, `~`), or
        modules in memory. `candidates=None` takes what the child's own card and adapter config declare.
    evidence: `"weights"`: the permutation test over hidden units for "is it related at all", the distance of the
        aligned weights for "which one" (METHODS §5). No data is needed and no code of the models is run.
    alpha: family-wise error of the p-values, in (0, 1): the chance that any unrelated candidate is called related.
    sample: None reads everything of local models and 0.5 % (at least 4 MB) of remote ones; `"all"`, `"auto"`,
        a fraction (`0.005`, `"0.5%"`) or a number of bytes.
    max_bytes: refuse, before any weight is read, to read more than this over all models together.
    allow_pickle: read `.bin`/`.pt` too, by `torch.load(weights_only=True)`.

    Returns a `Lineage`; "none of these" is an answer. Raises `LineageError`s, each saying what to do next:
    `ModelNotFoundError`, `AccessDeniedError`, `CheckpointError`, `HubUnavailableError` for the child,
    `NoCandidatesError`, `NothingToCompareError`, `ArgumentError`. A candidate that cannot be opened is listed
    as `unreadable`; it does not stop the others.
    """
    started = time.monotonic()
    _check(evidence, alpha, max_bytes)
    opener = Opener(token, allow_pickle)
    ours = opener.open(child)
    claims = claims_of(ours)
    source = opener.open(ours.adapter_base) if ours.adapter_base else ours
    wanted = _wanted(candidates, [claim.ref for claim in claims], ours)
    opened, unreadable = opener.open_all(wanted)
    opened, notes = _distinct(opened, ours)
    if not opened and not unreadable:
        raise NoCandidatesError(f"Expected candidates other than the child. {' '.join(notes)} Name another one.")

    comparable, rest = _line_up(source, opened)
    judged: list[Candidate] = []
    none: float | None = None
    if comparable:
        architecture = describe(source)
        plan = _plan(source, architecture, comparable, sample, max_bytes, seed)
        readings = read_together(
            source, [model for model, _ in comparable], [alignment for _, alignment in comparable], plan,
            device=device or "cpu", progress=progress,
        )  # fmt: skip
        counts = {name: source[name].count for name in architecture.weights}
        comparison = compare(readings, architecture, counts, len(comparable), seed=seed)
        if len(comparison.lost) == len(readings.moments):
            raise NothingToCompareError(
                f"Every tensor of `{ours.ref.name}` holds NaN, Inf or only zeros. Export it again."
            )
        judged, none = _judge(source, architecture, comparable, comparison, counts, alpha)
        rest += _refuse(comparable, comparison, readings.failed)
        notes += _remarks(plan, architecture, comparison)

    ranked = sorted([*judged, *rest, *unreadable], key=verdict.order)
    if all(candidate.status == "unreadable" for candidate in ranked):
        raise NothingToCompareError(f"No candidate could be read. {ranked[0].ref}: {ranked[0].reasons[0]}")
    said, parent = verdict.conclude(ranked, none, alpha)
    if source is not ours:
        said, ranked, notes = _as_adapter(said, ranked, ours, source, notes)
    checked, undeclared = verdict.weigh_claims(
        claims, ranked, parent, alpha, opener.same_model, circular=source is not ours
    )
    return Lineage(
        child=ours.ref, requested=ours.requested, verdict=said, parent=parent, none_probability=none,
        candidates=tuple(ranked), claims=tuple(checked), undeclared=tuple(undeclared),
        notes=(*notes, *_skipped([source, *opened])), bytes_read=opener.bytes_read,
        seconds=round(time.monotonic() - started, 3), seed=seed, alpha=alpha,
        versions={name: version(name) for name in PACKAGES},
    )  # fmt: skip


def _check(evidence: str | Sequence[str], alpha: float, max_bytes: int | None) -> None:
    for name in [evidence] if isinstance(evidence, str) else evidence:
        if name not in EVIDENCE:
            raise ArgumentError(f"Expected `evidence` to be among {', '.join(EVIDENCE)}, got {name!r}.")
    if not 0 < alpha < 1:
        raise ArgumentError(f"Expected `alpha` between 0 and 1, got {alpha}.")
    if max_bytes is not None and max_bytes <= 0:
        raise ArgumentError(f"Expected `max_bytes` above 0, got {max_bytes}.")


def _wanted(candidates: Iterable[Model] | None, declared: Sequence[str], child: Checkpoint) -> list[Model]:
    if isinstance(candidates, (str, Path)):
        raise ArgumentError(f"Expected a list of candidates, got the single reference {str(candidates)!r}.")
    wanted: list[Model] = list(dict.fromkeys(declared)) if candidates is None else list(candidates)
    if not wanted:
        raise NoCandidatesError(
            f"Expected candidate parents of `{child.ref.name}`, none were given"
            f"{' and its card declares none' if candidates is None else ''}. Name some: -c org/name, or candidates=[…]."
        )
    return wanted


def _distinct(opened: Sequence[Checkpoint], child: Checkpoint) -> tuple[list[Checkpoint], list[str]]:
    """Without the child itself and without what is named twice; a note for each."""
    kept: dict[tuple, Checkpoint] = {}
    notes = []
    for checkpoint in opened:
        if identity(checkpoint) == identity(child):
            notes.append(f"{checkpoint.requested} is the child itself and was dropped from the candidates.")
        elif identity(checkpoint) in kept:
            notes.append(f"{checkpoint.requested} was named more than once and counts once.")
        else:
            kept[identity(checkpoint)] = checkpoint
    return list(kept.values()), notes


def _line_up(
    child: Checkpoint, opened: Sequence[Checkpoint]
) -> tuple[list[tuple[Checkpoint, Alignment]], list[Candidate]]:
    comparable, rest = [], []
    for checkpoint in sorted(opened, key=lambda checkpoint: (checkpoint.ref, checkpoint.requested)):
        alignment = align(child, checkpoint)
        if checkpoint.adapter_base:
            why = f"a LoRA adapter holds no weights of its own; name its base, {checkpoint.adapter_base}"
            rest.append(_blank(checkpoint, "not_comparable", why))
        elif not alignment.comparable:
            rest.append(_blank(checkpoint, "not_comparable", alignment.explain()))
        else:
            comparable.append((checkpoint, alignment))
    return comparable, rest


def _plan(
    child: Checkpoint, architecture: Architecture, comparable: Sequence[tuple[Checkpoint, Alignment]],
    sample: str | float | int | None, max_bytes: int | None, seed: int,
) -> Plan:  # fmt: skip
    names = [name for name in architecture.weights if any(name in alignment.pairs for _, alignment in comparable)]
    nbytes = {name: child[name].nbytes for name in names}
    models = 1 + len(comparable)
    remote = child.remote or any(model.remote for model, _ in comparable)
    budget = sample_budget(sample, sum(nbytes.values()), remote)
    keep = min(UNITS_PER_MODEL, UNITS_IN_ALL // models)
    plan = make_plan(
        {name: child[name] for name in names}, nbytes, architecture.orders, budget=budget, keep=keep, seed=seed
    )
    needed = models * round(plan.share * sum(nbytes.values()))
    if max_bytes is not None and needed > max_bytes:
        raise ArgumentError(
            f"This would read about {needed:,} bytes of {models} models, more than max_bytes={max_bytes:,}. "
            f"Sample less, for example sample={max(1, max_bytes // models)}."
        )
    return plan


def _judge(
    child: Checkpoint, architecture: Architecture, comparable: Sequence[tuple[Checkpoint, Alignment]],
    comparison: WeightsComparison, counts: dict[str, int], alpha: float,
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    kept = [comparable[i] for i in comparison.found]
    same = [len(a.pairs) == len(architecture.weights) == len(describe(model).weights) for model, a in kept]
    blanks = [_blank(model, "compared") for model, _ in kept]
    return verdict.judge(blanks, list(comparison.found.values()), architecture.heads, counts, same, alpha)


def _refuse(
    comparable: Sequence[tuple[Checkpoint, Alignment]], comparison: WeightsComparison, failed: dict
) -> list[Candidate]:
    return [
        _blank(comparable[i][0], "unreadable" if i in failed else "not_comparable", why)
        for i, why in comparison.refused.items()
    ]


def _blank(checkpoint: Checkpoint, status: Status, *reasons: str) -> Candidate:
    ref = checkpoint.ref
    return Candidate(ref.name, checkpoint.requested, ref.revision, status=status, reasons=reasons)


def _remarks(plan: Plan, architecture: Architecture, comparison: WeightsComparison) -> list[str]:
    """What the reader of the verdict must know about how it was reached."""
    notes = []
    if plan.sampled:
        notes.append(f"A sample was read: {100 * plan.share:.2g} % of the weights; distances are estimates.")
    if comparison.lost:
        notes.append(f"Left out, NaN, Inf or only zeros in the child: {_some(comparison.lost)}.")
    bad = sorted({name for item in comparison.found.values() for name in item.bad} - set(comparison.lost))
    if bad:
        notes.append(f"Left out, NaN, Inf or only zeros in a candidate: {_some(bad)}.")
    if comparison.found and all(item.test is None for item in comparison.found.values()):
        why = "the sample holds too few whole units" if plan.sampled and architecture.orders else "none are known"
        notes.append(f"The permutation test needs hidden units of this architecture, but {why}: no p-value.")
    return notes


def _skipped(checkpoints: Sequence[Checkpoint]) -> list[str]:
    return [
        f"{checkpoint.ref.name}: tensors of an unknown dtype were left out: {_some(checkpoint.skipped)}."
        for checkpoint in checkpoints if checkpoint.skipped
    ]  # fmt: skip


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _as_adapter(
    said: verdict.Verdict, ranked: list[Candidate], child: Checkpoint, base: Checkpoint, notes: list[str]
) -> tuple[verdict.Verdict, list[Candidate], list[str]]:
    """An adapter's answer was found for its declared base: say so, and call that base's relation `adapter`."""
    note = (
        f"{child.ref.name} is a LoRA adapter and holds no copy of a base; the base its adapter_config.json declares, "
        f"{base.ref.name}, was traced in its place."
    )
    ranked = [replace(c, relation="adapter") if c.relation == "identical" else c for c in ranked]
    return ("parent" if said == "identical" else said), ranked, [note, *notes]
