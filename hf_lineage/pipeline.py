"""The story on one page: open, line up, read once, judge, compare with what is claimed."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import verdict
from .architecture import Alignment, Architecture, align, describe
from .conventions import cuts
from .errors import ArgumentError, CheckpointError, LineageError, NoCandidatesError, NothingToCompareError
from .hub.candidates import claims_of
from .hub.checkpoint import Checkpoint
from .hub.opener import Opener, identity
from .hub.view import View
from .parallel import together, world
from .records import Candidate, Claim, Lineage, ModelRef, Progress, Status, is_repo_id
from .weights.evidence import WeightsComparison
from .weights.evidence import compare as compare_weights
from .weights.reading import Readings, read_together
from .weights.relation import change, summarise
from .weights.sample import MIN_UNITS, Plan, make_plan, sample_budget
from .weights.uncover import Disguise, applies, realign, uncover

if TYPE_CHECKING:
    import torch

    from .features.evidence import Settings, Source

    Model = str | Path | ModelRef | torch.nn.Module

EVIDENCE = ("weights", "features")
UNITS_PER_MODEL, UNITS_IN_ALL = 64 << 20, 1 << 30  # bytes of hidden units kept in memory
Lined = tuple[Checkpoint, Alignment]  # a candidate and how it lines up with the child
PACKAGES = ("hf_lineage", "huggingface_hub", "numpy", "torch")


@together
def trace(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, taps: str | Sequence[str] | None = None, metric: str = "l2",
    step: float | str = "auto", token: str | bool | None = None, device: str | torch.device | None = None,
    sample: str | float | int | None = None, max_bytes: int | None = None, allow_pickle: bool = False,
    progress: Progress | None = None, seed: int = 0,
) -> Lineage:  # fmt: skip
    """Say which of the candidates the child was fine-tuned from, and how sure that is.

    child, candidates: Hub repo ids (`"org/name"`, `"org/name@revision"`), paths (a `Path`, or text that starts
        with `.`, `/` or `~`), or modules in memory (`requested` then says which: `candidates[1]`).
        `candidates=None` takes what the child's own card, configs and merge recipe declare.
    evidence: `"weights"`: the permutation test over hidden units for "is it related at all", the distance of the
        aligned weights for "which one" (`weights/independence.py`, `weights/moments.py`). No data is needed.
        `"features"`: how alike the features of some inputs are, before and after the step towards the child (Neural
        Lineage §3). A ranking of a closed set, without p-value and without "none of these". Several names: the
        verdict rests on the weights, and each candidate shows both. No code of the models is ever run.
    alpha: family-wise error of the p-values, in (0, 1): the chance that any unrelated candidate is called related.
    probes: inputs for the features: None (a seeded synthetic set of 128), a number of those, a folder of pictures, the
        id of a data set on the Hub, or a tensor. taps: module paths of the child, `"blocks"`, or None for its first
        block. metric: of `features.similarity.METRICS`. step: α in (0, 1], or `"auto"`: the largest at which the
        linearisation's error is below a tenth for any candidate, the same for all.
    sample: None reads everything of local models and 0.5 % (at least 4 MB) of remote ones; `"all"`, `"auto"`,
        a fraction (`0.005`, `"0.5%"`) or a number of bytes.
    max_bytes: refuse, before any weight is read, to read more than this over all models together.
    allow_pickle: read `.bin`/`.pt` too, by `torch.load(weights_only=True)`.
    token: for the Hub; None uses the machine's login, False none. It goes to the Hub's own origin only.
    device: where to compute, the processor by default; `"cuda"` is every GPU of this machine.
    progress: called as `progress(done, total, what)`, in bytes. seed: of the sample and of the permutations.

    Under `torchrun` or `accelerate launch` every process must make the same call; they share the reading, all return
    the same `Lineage`, and only the first calls `progress` (`parallel.py`).

    Returns a `Lineage`; "none of these" is an answer. Raises `LineageError`s, each saying what to do next:
    `ModelNotFoundError`, `AccessDeniedError`, `CheckpointError`, `HubUnavailableError` for the child,
    `NoCandidatesError`, `NothingToCompareError`, `ArgumentError` (all in `hf_lineage.errors`). A candidate that cannot
    be opened is listed as `unreadable`; it does not stop the others.
    """
    started = time.monotonic()
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    _check(names, alpha, max_bytes, device)
    settings = _settings(names, probes, taps, metric, step, token, device, seed)
    opener = Opener(token, allow_pickle)
    ours = opener.open(child)
    claims = claims_of(ours)
    source = _base_of(ours, opener) if ours.adapter_base else ours
    wanted = _wanted(candidates, [claim.ref for claim in claims], ours)
    opened, unreadable = opener.open_all(wanted)
    opened, notes = _distinct(opened, ours)
    if not opened and not unreadable:
        raise NoCandidatesError(f"Expected candidates other than the child. {' '.join(notes)} Name another one.")

    whole = View(source, cuts(source))
    architecture = describe(whole)
    views = [View(model, cuts(model)) for model in opened]
    comparable, rest = _line_up(whole, architecture, views)
    seen = whole.first_rows(_shared_rows(comparable))
    judged: list[Candidate] = []
    none: float | None = None
    elsewhere = 0
    beside = 0
    if settings and opened:
        from .features.evidence import attach, compare, remarks, run_child

        modules: list[Any] = [model for model in (child, *wanted) if hasattr(model, "state_dict")]
        settings = replace(settings, modules=tuple(modules))
        lined = [(model, align(whole, view, architecture)) for model, view in zip(opened, views, strict=True)]
        beside = _features_bytes(source, lined, settings, max_bytes)
        before = opener.bytes_read
        ran = run_child(source, whole, settings)  # before the weights: a child that cannot run ends the question
        by_child = opener.bytes_read - before
    if comparable and "weights" in names:
        plan = _plan(seen, architecture, comparable, sample, max_bytes, seed, beside)
        study = _Study(seen, architecture, plan, device or "cpu", progress, alpha, seed)
        readings, comparison = study.read(comparable)
        read = set(readings.moments) & set(architecture.trunk)
        if not read and plan.sampled:
            raise ArgumentError("Expected a larger sample: nothing but the head would be read of so few bytes.")
        if read <= set(comparison.lost):
            raise NothingToCompareError(
                f"Every tensor of `{ours.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
            )
        claimed = {i for i, (model, _) in enumerate(comparable) if _is_claimed(model, claims, opener)}
        comparable, readings, comparison, disguises = study.uncover(comparable, readings, comparison, claimed)
        elsewhere = readings.elsewhere
        judged, none = _judge(study, comparable, readings, comparison, disguises)
        rest += _refuse(comparable, comparison, readings.failed)
        notes += _remarks(plan, architecture, comparison)

    if settings and opened:
        before = opener.bytes_read - by_child
        seen_by = compare(ran, lined, settings, progress)
        elsewhere += sum(world().gather(opener.bytes_read - before)) - (opener.bytes_read - before)
        judged, rest = attach(*seen_by, [_blank(model, "compared") for model in opened], judged, rest, names)
        notes += remarks([*judged, *rest], settings)
    ranked = sorted([*judged, *rest, *unreadable], key=verdict.order)
    if all(candidate.status == "unreadable" for candidate in ranked):
        raise NothingToCompareError(f"No candidate could be read. {ranked[0].ref}: {ranked[0].reasons[0]}")
    said, parent = verdict.conclude(ranked, alpha)
    if source is not ours:
        said, ranked, notes = _as_adapter(said, parent, ranked, ours, source, notes)
    checked, undeclared = verdict.weigh_claims(claims, ranked, parent, opener.same_model, circular=source is not ours)
    for claim in checked:
        by_folder = [
            c.ref for c in ranked if c.ref[0] in "./~" and c.ref != claim.ref and opener.same_model(claim.ref, c)
        ]
        if claim.status != "not_testable" and by_folder:
            notes.append(f"The folder {by_folder[0]} was taken for {claim.ref}, by its name.")
    return Lineage(
        child=ours.ref, requested=ours.requested, verdict=said, parent=parent, none_probability=none,
        candidates=tuple(ranked), claims=tuple(checked), undeclared=tuple(undeclared),
        notes=(*notes, *_skipped([source, *opened])), bytes_read=opener.bytes_read + elsewhere,
        seconds=world().gather(round(time.monotonic() - started, 3))[0], seed=seed, alpha=alpha,
        versions={name: version(name) for name in PACKAGES},
    )  # fmt: skip


def _check(evidence: Sequence[str], alpha: float, max_bytes: int | None, device: str | torch.device | None) -> None:
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


def _settings(
    names: Sequence[str], probes: Source, taps: str | Sequence[str] | None, metric: str, step: float | str,
    token: str | bool | None, device: str | torch.device | None, seed: int,
) -> Settings | None:  # fmt: skip
    """How features are to be compared, None where they are not asked for."""
    if "features" not in names:
        if probes is not None or taps is not None or metric != "l2" or step != "auto":
            raise ArgumentError('Expected evidence="features" with `probes`, `taps`, `metric` or `step`.')
        return None
    from .features.evidence import Settings

    return Settings(probes, taps, metric, step, token, device or "cpu", seed)


def _features_bytes(child: Checkpoint, lined: Sequence[Lined], settings: Settings, max_bytes: int | None) -> int:
    """The most that features read, refused if above `max_bytes`; 0 where nobody asks."""
    if max_bytes is None:
        return 0
    from .features.evidence import expected_bytes

    needed = expected_bytes(child, [model for model, _ in lined], settings)
    if needed > max_bytes:
        raise ArgumentError(
            f"Features would read up to {needed:,} bytes of {1 + len(lined)} models, more than max_bytes={max_bytes:,}."
            " Choose an earlier tap; and give a `step`, since of remote models each step tried is read again."
        )
    return needed


def _base_of(adapter: Checkpoint, opener: Opener) -> Checkpoint:
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


def _wanted(candidates: Iterable[Model] | None, declared: Sequence[str], child: Checkpoint) -> list[Model]:
    if isinstance(candidates, (str, Path)) or hasattr(candidates, "state_dict"):
        raise ArgumentError(f"Expected a list of candidates, got a single {type(candidates).__name__}.")
    wanted: list[Model] = list(dict.fromkeys(declared)) if candidates is None else list(candidates)
    if not wanted:
        raise NoCandidatesError(
            f"Expected candidate parents of `{child.ref.name}`, none were given"
            f"{' and it declares none' if candidates is None else ''}. Name some: -c org/name, or candidates=[…]."
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
            notes.append(f"{checkpoint.ref.name} was named more than once and counts once.")
        else:
            kept[identity(checkpoint)] = checkpoint
    return list(kept.values()), sorted(notes)


def _line_up(
    child: Checkpoint, architecture: Architecture, opened: Sequence[Checkpoint]
) -> tuple[list[tuple[Checkpoint, Alignment]], list[Candidate]]:
    comparable, rest = [], []
    for checkpoint in sorted(opened, key=lambda checkpoint: (checkpoint.ref, checkpoint.requested)):
        alignment = align(child, checkpoint, architecture)
        if checkpoint.adapter_base:
            why = f"a LoRA adapter holds no weights of its own; name its base, {checkpoint.adapter_base}"
            rest.append(_blank(checkpoint, "not_comparable", why))
        elif not alignment.comparable:
            rest.append(_blank(checkpoint, "not_comparable", alignment.explain()))
        else:
            comparable.append((checkpoint, alignment))
    return comparable, rest


def _left_out(alignment: Alignment, heads: frozenset[str]) -> tuple[str, ...]:
    """Tensors of the child's trunk that the candidate has no partner for, for the candidate's `reasons`."""
    names = [name for name in alignment.unmatched if name not in heads]
    return (f"left out: {_some([f'{name} ({alignment.unmatched[name]})' for name in names], 3)}",) if names else ()


def _plan(
    child: Checkpoint, architecture: Architecture, comparable: Sequence[tuple[Checkpoint, Alignment]],
    sample: str | float | int | None, max_bytes: int | None, seed: int, beside: int = 0,
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
    if not plan.slices:
        raise ArgumentError(f"Expected a larger sample: {budget} bytes of {sum(nbytes.values()):,} hold no slice.")
    needed = round(plan.share * (sum(nbytes.values()) + sum(_nbytes(*pair) for pair in comparable)))
    if max_bytes is not None and needed + beside > max_bytes:
        raise ArgumentError(
            f"This would read about {needed + beside:,} bytes of {models} models, more than max_bytes={max_bytes:,}. "
            f"Sample less, for example sample={max(1, max_bytes // models)}."
        )
    return plan


def _nbytes(model: Checkpoint, alignment: Alignment) -> int:
    return sum(model[partner].nbytes for partner in alignment.pairs.values())


@dataclass(frozen=True, slots=True)
class _Study:
    """What stays the same while the candidates of one question are read."""

    child: View
    architecture: Architecture
    plan: Plan
    device: str | torch.device
    progress: Progress | None
    alpha: float
    seed: int

    def read(self, comparable: Sequence[tuple[Checkpoint, Alignment]]) -> tuple[Readings, WeightsComparison]:
        models, alignments = [model for model, _ in comparable], [alignment for _, alignment in comparable]
        readings = read_together(
            self.child, models, alignments, self.plan, device=self.device, progress=self.progress
        )  # fmt: skip
        return readings, compare_weights(readings, self.architecture, self.child, len(comparable), seed=self.seed)

    def uncover(
        self, comparable: list[Lined], readings: Readings, comparison: WeightsComparison, claimed: AbstractSet[int]
    ) -> tuple[list[Lined], Readings, WeightsComparison, dict[int, Disguise]]:
        """Look behind a disguise if the first test calls no candidate related, and of claimed ones in any case: nobody
        is contradicted unseen. What is found is put in the child's order, and everything is read again. A sample holds
        too few units for that."""
        tests = 2 if not self.plan.sampled and applies(readings, self.architecture, self.child) else 1
        level = self.alpha / max(1, len(comparison.found)) / tests
        first = {i: item.test for i, item in comparison.found.items()}
        strange = {i for i, test in first.items() if test and test.p > level and not self.plan.sampled}
        if any(test and test.p <= level for test in first.values()):
            strange &= claimed
        found = {
            i: uncover(readings, self.architecture, self.child, i, self.seed) for i in comparison.found if i in strange
        }
        matched = {i: disguise.match for i, disguise in found.items() if disguise.matched and disguise.match}
        if matched:
            comparable = [
                realign(model, alignment, self.architecture, matched[i]) if i in matched else (model, alignment)
                for i, (model, alignment) in enumerate(comparable)
            ]
            elsewhere = readings.elsewhere
            readings, comparison = self.read(comparable)
            readings = replace(readings, elsewhere=readings.elsewhere + elsewhere)
        for i, item in comparison.found.items():
            blind = found[i].blind if i in found else None
            # units that were put in order by looking at them can be tested no more: what was found before stays
            comparison.found[i] = replace(item, test=first.get(i), blind=blind, tests=tests)
        return comparable, readings, comparison, {i: found[i] for i in matched}


def _is_claimed(model: Checkpoint, claims: Sequence[Claim], opener: Opener) -> bool:
    return any(opener.same_model(claim.ref, _blank(model, "compared")) for claim in claims)


def _judge(
    study: _Study, comparable: Sequence[Lined], readings: Readings, comparison: WeightsComparison,
    disguises: Mapping[int, Disguise],
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    architecture, child = study.architecture, study.child
    counts = {name: child[name].count for name in architecture.weights}
    shortened = _shared_rows(comparable).keys()
    read = frozenset(architecture.trunk) & (readings.members.keys() if study.plan.sampled else counts.keys())
    pairs, blanks = [], []
    for i in comparison.found:
        model, alignment = comparable[i]
        whole = len(alignment.pairs) == len(architecture.weights) == len(describe(model).weights) and not shortened
        pairs.append(
            verdict.Pair(
                whole and not study.plan.sampled,  # what is equal in a sample only is not said to be identical
                None if shortened else read,
                alignment.grown,
                functools.cache(functools.partial(_what, readings, i, counts, back=False)),
                functools.cache(functools.partial(_what, readings, i, counts, back=True)),
                disguises[i].to_dict() if i in disguises else None,
            )
        )
        blanks.append(_blank(model, "compared", *_left_out(alignment, architecture.heads)))
    return verdict.judge(blanks, comparison, pairs, architecture.heads, counts, study.alpha)


def _what(readings: Readings, candidate: int, counts: Mapping[str, int], back: bool) -> tuple[str, dict[str, Any]]:
    """What was done to the candidate to get the child; with `back`, to the child to get the candidate."""
    changes = {}
    for name, members in readings.members.items():
        if candidate in members and name in readings.units and readings.usable(name, candidate):
            made, start = (readings.units.matrix(model, name) for model in (0, candidate + 1))
            changes[name] = change(start, made) if back else change(made, start)
    return summarise(changes, counts)


def _shared_rows(comparable: Sequence[tuple[Checkpoint, Alignment]]) -> dict[str, int]:
    """Rows of each token table that every candidate has."""
    rows: dict[str, int] = {}
    for _, alignment in comparable:
        for name, both in alignment.grown.items():
            rows[name] = min(*both, rows.get(name, both[0]))
    return rows


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
    if plan.sampled and any(len(item.equal) == len(item.compared) for item in comparison.found.values()):
        notes.append("All that was read of a candidate is equal; --sample all tells a copy from a partial change.")
    if any(item.at_floor for item in comparison.found.values()):
        notes.append(
            "No random permutation came near a candidate's: its p-value is as small as so many draws can show."
        )
    zeros = [name for name in comparison.lost if comparison.lost[name] == "zeros"]
    broken = [name for name in comparison.lost if comparison.lost[name] != "zeros"]
    if zeros:
        notes.append(f"Left out, all zeros in the child: {_some(zeros)}.")
    if broken:
        notes.append(f"Left out, NaN or Inf in the child: {_some(broken)}.")
    bad = sorted({name for item in comparison.found.values() for name in item.bad} - set(comparison.lost))
    if bad:
        notes.append(f"Left out, NaN, Inf or all zeros in a candidate: {_some(bad)}.")
    if comparison.found and all(item.log10_p is None for item in comparison.found.values()):
        why = "none of this architecture are known"
        if architecture.orders:
            why = "the sample is too small for that, read more" if plan.sampled else "its layers have fewer"
        notes.append(f"No p-value: the permutation test needs layers of at least {MIN_UNITS} hidden units; {why}.")
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
    said: verdict.Verdict,
    parent: str | None,
    ranked: list[Candidate],
    child: Checkpoint,
    base: Checkpoint,
    notes: list[str],
) -> tuple[verdict.Verdict, list[Candidate], list[str]]:
    """An adapter's answer was found for its declared base: say so, and call that base's relation `adapter`."""
    note = (
        f"{child.ref.name} is a LoRA adapter and holds no copy of a base; the base its adapter_config.json declares, "
        f"{base.ref.name}, was traced in its place."
    )
    ranked = [replace(c, relation="adapter") if c.relation == "identical" else c for c in ranked]
    if said == "identical":
        said = "parent" if parent else "undecided"
    return said, ranked, [note, *notes]
