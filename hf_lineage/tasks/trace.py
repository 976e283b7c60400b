"""The story on one page: open, line up, read once, judge, compare with what is claimed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..answers.base import Progress
from ..answers.lineage import Candidate, Lineage
from ..architecture.align import Alignment, align
from ..architecture.describe import Architecture
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import Opener
from ..errors import ArgumentError, LineageError, NoCandidatesError, NothingToCompareError
from ..parallel import together, world
from ..weights.evidence import WeightsComparison
from . import notes as remarks
from . import verdict
from .combine import is_enough, log10_raw, relatives, settle, together_again, unrelated
from .compare import Inquiry, is_claimed, judge
from .options import (
    LEAST_SAMPLE,
    Question,
    ask,
    blank,
    budget_of,
    check,
    features_bytes,
    features_settings,
    paired,
    plan_reading,
    shared_rows,
    skipped,
    versions,
)
from .phylogeny import grow
from .search import Search

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..features.evidence import Settings, Source
    from .options import Model

CANDIDATES, REQUESTS = 256, 2500  # models that a search looks at, and requests it may send
CHUNK = 64  # of them that are compared at once
SEARCHED, LEAST_SEARCHED = 256 << 20, 1 << 20  # bytes read of all models that a search found, and of each at least


@together
def trace(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, taps: str | Sequence[str] | None = None, metric: str = "l2",
    step: float | str = "auto", detector: str | Path | None = None, tree: bool | None = None,
    token: str | bool | None = None, device: str | torch.device | None = None, sample: str | float | int | None = None,
    max_bytes: int | None = None, allow_pickle: bool = False, progress: Progress | None = None, seed: int = 0,
) -> Lineage:  # fmt: skip
    """Say which of the candidates the child was fine-tuned from, and how sure that is.

    child, candidates: Hub repo ids (`"org/name"`, `"org/name@revision"`), paths (a `Path`, or text that starts
        with `.`, `/` or `~`), or modules in memory (`requested` then says which: `candidates[1]`).
        `candidates=None` searches: what the child's own files declare, then wider rings of the Hub until one candidate
        is beyond doubt (`tasks/search.py`); `facts["found_by"]` says which rule led to each.
    evidence: `"weights"`: the permutation test over hidden units for "is it related at all", the distance of the
        aligned weights for "which one" (`weights/permutation_test.py`, `weights/moments.py`). No data is needed.
        `"features"`: how alike the features of some inputs are, before and after the step towards the child (Neural
        Lineage §3). A ranking of a closed set, without p-value and without "none of these". Several names: the
        verdict rests on the weights, and each candidate shows all. No code of the models is ever run.
        `"detector"`: a learned probability (Neural Lineage §4; `detector/evidence.py`), which may contradict the
        weights' verdict in `notes` and `reasons`, and never moves it. Alone it can rank, and not convict.
    alpha: family-wise error of the p-values, in (0, 1): the chance that any unrelated candidate is called related.
    probes: inputs for the features: None (a seeded synthetic set of 128), a number of those, a folder of pictures, the
        id of a data set on the Hub, or a tensor. taps: module paths of the child, `"blocks"`, or None for its first
        block. metric: of `features.similarity.METRICS`. step: α in (0, 1], or `"auto"`: the largest at which the
        linearisation's error is below a tenth for any candidate, the same for all.
    detector: a folder or repo id (`"org/name@commit"`) of one to ask; None: the one that ships.
    tree: whether, of several relatives among the candidates, their tree says which is the parent (`tasks/combine.py`);
        that reads them once more. None does so where candidates were searched for. `evidence["tree"]` shows it.
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
    check(names, alpha, max_bytes, device)
    settings = features_settings(names, probes, taps, metric, step, token, device, seed, detector)
    how = _How(
        tuple(names), settings, alpha, device, sample, max_bytes, progress, seed, started,
        tree=candidates is None if tree is None else tree, detector=detector,
    )  # fmt: skip
    opener = Opener(token, allow_pickle)
    if candidates is None:
        return _search(opener.open(child), child, opener, how)
    return _trace(ask(child, candidates, opener), how)


@dataclass(frozen=True, slots=True)
class _How:
    """How one question is to be answered. `most`: bytes of a model that are read at most where nobody said how many."""

    names: tuple[str, ...]
    settings: Settings | None
    alpha: float
    device: str | torch.device | None
    sample: str | float | int | None
    max_bytes: int | None
    progress: Progress | None
    seed: int
    started: float
    tree: bool = False
    detector: str | Path | None = None
    most: int | None = None
    spent: int = 0  # bytes read for earlier rings of the same search


def _search(ours: Checkpoint, child: Model, opener: Opener, how: _How) -> Lineage:
    """Trace among wider and wider rings of candidates, until one is enough."""
    search = Search(ours, opener, CANDIDATES, REQUESTS, progress=how.progress)
    lineage: Lineage | None = None
    trouble: LineageError | None = None
    while refs := world().gather([*search.refs] if world().main and search.widen(lineage) else None)[0]:
        try:
            if ours.adapter_base:  # its base is traced in its place: nobody but the base is looked for
                lineage = _trace(ask(child, refs[:CHUNK], opener), replace(how, tree=False))
            else:
                lineage = _ring(child, refs, lineage, opener, how)
        except (NoCandidatesError, NothingToCompareError) as error:  # the next ring may hold something better
            trouble = error
            continue
        except ArgumentError as error:  # max_bytes: it may hold the candidates so far and not those of a wider ring
            if lineage is None:
                raise
            search.trouble(str(error))
            break
        if is_enough(lineage) or "weights" not in how.names:
            break
    if lineage is None and trouble:
        raise trouble
    if lineage is None:
        raise NoCandidatesError(
            f"Expected candidate parents of `{ours.ref.name}`: it declares none, and none was found on the Hub "
            f"({search.requests} requests). {' '.join([*search.notes, 'Name some: -c org/name, or candidates=[…].'])}"
        )
    rules = world().gather({c.ref: search.rules(c.ref) for c in lineage.candidates})[0]
    notes = world().gather(remarks.of_search(rules, search.requests, search.notes))[0]
    found = [replace(c, facts={**c.facts, "found_by": rules[c.ref]}) for c in lineage.candidates]
    notes += remarks.of_copies(found)
    return replace(lineage, candidates=tuple(found), notes=(*notes, *lineage.notes))


def _ring(child: Model, refs: Sequence[str], before: Lineage | None, opener: Opener, how: _How) -> Lineage:
    """The answer about all candidates so far. The new ones are screened, a chunk at once; who shows no common origin
    is not read again, and counts among the p-values; the relatives are then asked together, and their tree decides."""
    strangers = [*unrelated(before)]
    away = {c.requested for c in strangers}
    known = {c.requested: c for c in before.candidates} if before else {}
    new, kept = [ref for ref in refs if ref not in known], [ref for ref in refs if ref in known and ref not in away]
    seen = {name: raw for name, c in known.items() if (raw := log10_raw(c)) is not None}
    most = _shared(max(LEAST_SEARCHED, SEARCHED // (1 + len(new))), len(refs), opener, how)
    screening = replace(how, most=most if how.sample is None else None)
    lineage = before
    for at in range(0, len(new), CHUNK):
        chunk = new[at : at + CHUNK]
        asked = ask(child, [*kept, *chunk], opener)
        lineage = _trace(asked, replace(screening, tree=False, spent=opener.bytes_read))
        strangers += unrelated(lineage)
        away = {c.requested for c in strangers}
        kept = [ref for ref in [*kept, *chunk] if ref not in away]
        seen |= {c.requested: raw for c in lineage.candidates if (raw := log10_raw(c)) is not None}
    if kept and (before or len(new) > 1):
        finer = _shared(max(most, SEARCHED // (1 + len(kept))), len(kept), opener, how) if screening.most else None
        asked = ask(child, kept, opener)
        lineage = _trace(asked, replace(screening, tree=how.tree, most=finer, spent=opener.bytes_read))
    assert lineage is not None, "a ring holds a candidate"
    return together_again(lineage, strangers, seen, how.alpha, opener.same_model)


def _shared(most: int, models: int, opener: Opener, how: _How) -> int:
    """Bytes of each model, so that a ring takes half of what `max_bytes` leaves; too few of them are refused later."""
    left = how.max_bytes - opener.bytes_read if how.max_bytes is not None else most * 2 * (1 + models)
    share = left // (2 * (1 + models))
    return min(most, share) if share >= LEAST_SAMPLE else most


def _trace(asked: Question, how: _How) -> Lineage:
    names, settings, alpha, device, progress = how.names, how.settings, how.alpha, how.device, how.progress
    max_bytes, seed = how.max_bytes, how.seed
    opener, ours, source, opened, claims = asked.opener, asked.child, asked.source, asked.opened, asked.claims
    whole, architecture, views, notes = asked.whole, asked.architecture, asked.views, [*asked.notes]
    comparable, rest = _line_up(whole, architecture, views)
    seen = whole.first_rows(shared_rows(comparable))
    judged: list[Candidate] = []
    none: float | None = None
    elsewhere = 0
    beside = how.spent
    if settings and opened:
        settings = replace(settings, modules=asked.modules)
        lined = [(model, align(whole, view, architecture)) for model, view in zip(opened, views, strict=True)]
        beside += features_bytes(source, lined, settings, max_bytes)
    if settings and opened and "features" in names:
        from ..features.evidence import attach, compare, run_child
        from ..features.evidence import remarks as of_features

        before = opener.bytes_read
        ran = run_child(source, whole, settings)  # before the weights: a child that cannot run ends the question
        by_child = opener.bytes_read - before
    if comparable and "weights" in names:
        budget = budget_of(seen, [model for model, _ in comparable], paired(architecture, comparable), how.sample)
        budget = min(budget, how.most) if budget and how.most else budget
        plan = plan_reading(seen, architecture, comparable, budget, max_bytes, seed, beside)
        study = Inquiry(seen, architecture, plan, device or "cpu", progress, alpha, seed)
        readings, comparison = study.read(comparable)
        read = set(readings.moments) & set(architecture.trunk)
        if not read and plan.sampled:
            raise ArgumentError("Expected a larger sample: nothing but the head would be read of so few bytes.")
        if read <= set(comparison.child_defects):
            raise NothingToCompareError(
                f"Every tensor of `{ours.ref.name}` that was read holds NaN, Inf or only zeros. Export it again."
            )
        claimed = {i for i, (model, _) in enumerate(comparable) if is_claimed(model, claims, opener)}
        comparable, readings, comparison, disguises = study.uncover(comparable, readings, comparison, claimed)
        elsewhere = readings.bytes_by_others
        judged, none = judge(study, comparable, readings, comparison, disguises)
        if how.tree:
            judged, none = _settle(asked, judged, none, budget, how)
        rest += _refuse(comparable, comparison, readings.failed)
        notes += remarks.of_trace(plan, architecture, comparison)
        notes += remarks.of_merges(readings, architecture, comparable, judged, source.ref.name)
    if settings and opened and "features" in names:
        before = opener.bytes_read - by_child
        seen_by = compare(ran, lined, settings, progress)
        elsewhere += world().others(opener.bytes_read - before)
        judged, rest = attach(*seen_by, [blank(model, "compared") for model in opened], judged, rest, names)
        notes += of_features([*judged, *rest], settings)
    if settings and opened and "detector" in names:
        from ..detector import evidence as learned

        before = opener.bytes_read
        opinion = learned.ask(learned.open_detector(how.detector, opener), source, opened, settings, progress)
        elsewhere += world().others(opener.bytes_read - before)
        blanks = [blank(model, "compared") for model in opened]
        judged, rest, none = learned.attach(opinion, blanks, judged, rest, names, none)
    ranked = sorted([*judged, *rest, *asked.unreadable], key=verdict.order)
    if all(candidate.status == "unreadable" for candidate in ranked):
        raise NothingToCompareError(remarks.of_unreadable(ranked))
    said, parent = verdict.conclude(ranked, alpha)
    if "detector" in names and opened:
        ranked, told = learned.remarks(ranked, said)
        notes += told
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
        notes=(*notes, *skipped([source, *opened])), bytes_read=opener.bytes_read + elsewhere,
        seconds=world().gather(round(time.monotonic() - how.started, 3))[0], seed=seed, alpha=alpha,
        versions=versions(),
    )  # fmt: skip


def _settle(
    asked: Question, judged: list[Candidate], none: float | None, budget: int | None, how: _How
) -> tuple[list[Candidate], float | None]:
    """Let the tree of the child and its relatives say which of them is the parent."""
    related = {(c.ref, c.revision) for c in relatives(judged, how.alpha)}
    models = [asked.source, *(m for m in asked.opened if (m.ref.name, m.ref.revision) in related)]
    again = sum(budget or sum(entry.nbytes for entry in model.values()) for model in models)
    if len(models) < 3 or none is None or (how.max_bytes and asked.opener.bytes_read + again > how.max_bytes):
        return judged, none
    tree = grow(
        asked.opener, models, {}, [], "information", 1e-2, None, how.device, budget, how.max_bytes, how.progress,
        how.seed,
    )  # fmt: skip
    return settle(judged, none, tree, (asked.source.ref.name, asked.source.ref.revision))


def _line_up(
    child: Checkpoint, architecture: Architecture, opened: Sequence[Checkpoint]
) -> tuple[list[tuple[Checkpoint, Alignment]], list[Candidate]]:
    comparable, rest = [], []
    for checkpoint in sorted(opened, key=lambda checkpoint: (checkpoint.ref, checkpoint.requested)):
        alignment = align(child, checkpoint, architecture)
        if checkpoint.adapter_base:
            why = f"a LoRA adapter holds no weights of its own; name its base, {checkpoint.adapter_base}"
            rest.append(blank(checkpoint, "not_comparable", why))
        elif not alignment.comparable:
            rest.append(blank(checkpoint, "not_comparable", alignment.explain()))
        else:
            comparable.append((checkpoint, alignment))
    return comparable, rest


def _refuse(
    comparable: Sequence[tuple[Checkpoint, Alignment]], comparison: WeightsComparison, failed: dict
) -> list[Candidate]:
    return [
        blank(comparable[i][0], "unreadable" if i in failed else "not_comparable", why)
        for i, why in comparison.refused.items()
    ]


def _as_adapter(
    said: verdict.Verdict,
    parent: str | None,
    ranked: list[Candidate],
    child: Checkpoint,
    base: Checkpoint,
    notes: list[str],
) -> tuple[verdict.Verdict, list[Candidate], list[str]]:
    """An adapter's answer was found for its declared base: say so, and call that base's relation `adapter`."""
    ranked = [replace(c, relation="adapter") if c.relation == "identical" else c for c in ranked]
    if said == "identical":
        said = "parent" if parent else "undecided"
    return said, ranked, [remarks.of_adapter(child, base), *notes]
