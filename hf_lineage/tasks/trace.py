"""The story of `trace` on one page: options, session, align, read, evidence, verdict, answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..answers.base import Progress
from ..answers.lineage import Candidate, Claim, Lineage, Verdict
from ..checkpoints.opener import models_of
from ..errors import (
    ArgumentError,
    LimitError,
    LineageError,
    NoCandidateReadError,
    NoCandidatesError,
    Note,
    NothingToCompareError,
    join_notes,
)
from ..parallel import together, world
from ..report.progress import progress_of
from ..sizes import limit_of
from . import notes, own_base, verdict
from .adapters import merged_adapters
from .combine import is_enough, log10_raw, merge_answers, unrelated
from .compare import line_up
from .evidence import EVIDENCE, Weighed, expected_bytes
from .index_search import relatives_in_index
from .kept_answers import answered
from .options import Networks, Options, names_of
from .outputs import trace_outputs
from .search import Search
from .session import LEAST_SAMPLE, NAME_SOME, Question, Session, ask, session_of, skipped, unjudged

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ..checkpoints.opener import Model
    from ..features.evidence import Source
    from ..placement import Wanted

CANDIDATES, REQUESTS = 256, 2500  # models that a search looks at, and requests it may send
CHUNK = 64  # of them that are compared at once
SEARCHED, LEAST_SEARCHED = 256 << 20, 1 << 20  # bytes read of all models that a search found, and of each at least


@together
def trace(
    child: Model, candidates: Iterable[Model] | None = None, *, evidence: str | Sequence[str] = "weights",
    alpha: float = 1e-3, probes: Source = None, taps: str | Sequence[str] | None = None, metric: str = "l2",
    step: float | str = "auto", outputs: str | Path | Mapping[str, Tensor] | None = None,
    detector: str | Path | None = None, tree: bool | None = None,
    older: bool = False, prior: float | None = None,
    relatives: bool = True, check_order: bool = False,
    token: str | bool | None = None, device: Wanted = None, memory: int | str | None = None,
    sample: str | float | int | None = None, max_bytes: int | str | None = None, allow_pickle: bool = False,
    progress: Progress | bool | None = None, seed: int = 0, session: Session | None = None,
    timeout: float | None = None,
) -> Lineage:  # fmt: skip
    """Say which of the candidates the child was fine-tuned from, and how sure that is.

    child, candidates: Hub repo ids (`"org/name"`, `"org/name@revision"`), paths (a `Path`, or text that starts
        with `.`, `/` or `~`), or modules in memory (`requested` then says which: `candidates[1]`).
        `candidates=None` searches: the index of `HF_LINEAGE_INDEX` where there is one (`tasks/index_search.py`) with
        what the child's own files declare, then wider rings of the Hub until one candidate is beyond doubt
        (`tasks/search.py`); `facts["found_by"]` says which rule led to each.
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
        block; a path with `.input` behind it is what that module is given, `"backbone"` what the head is. metric: of
        `features.similarity.METRICS`, or the paper's other forms in `AS_PRINTED`. step: α in (0, 1], or `"auto"`: the
        largest from 0.1 to 0.001 at which the linearisation's error is below a tenth for any candidate, the same for
        all; none where there is no such step.
    outputs: stored outputs or features in the place of models, which are then neither opened nor run: a safetensors
        file or a mapping with a tensor (N, …) for each model under its name, of the same N inputs in the same order.
        `child` and `candidates` are such names (None: all others), `evidence` is `"features"` (`tasks/outputs.py`).
    detector: a folder or repo id (`"org/name@commit"`) of one to ask; None: the one that ships.
    tree: whether, of several relatives among the candidates, their tree says which is the parent (`tasks/combine.py`);
        that reads them once more. None does so where candidates were searched for. `evidence["tree"]` shows it.
    older: whether you know that the candidates are older than the child. That is taken as given where the weights show
        no order, said in the answer (`older_taken` among the notes), and never written into a card; an order that shows
        is not overruled. For candidates that you name, without `tree`.
    prior: the probability, before anything is read, that the parent is among the candidates, in (0, 1). None is the
        share of such questions that the numbers of the rule were fitted on (`tasks/calibration.py`), 0.39: each was
        asked both ways round.
    relatives: whether the base that the first candidate's own files name is compared, too, where the weights leave open
        whether that candidate is the parent or a sibling that moved less (`own_base_compared` among the notes). Of
        repos on the Hub; of a local one only if it shows that it was itself trained in half precision. Where
        `max_bytes` leaves no room for it, it is not read, and the notes say so.
    sample: None reads everything of local models; of remote ones a few hidden units first (`"adaptive"`), and 0.5 % (at
        least 4 MB) of the child and of those candidates that these do not show to be unrelated (`tasks/screen.py`).
        `"auto"` reads 0.5 % of all, `"all"` everything; or a fraction (`0.005`, `"0.5%"`) or a number of bytes.
    check_order: whether whole matrices of up to three layers are read of the child and of each related candidate where
        only a sample was read otherwise: then no order of hidden units that somebody chose passes for a common origin
        (`weights/agreement.py`, `facts["agreement"]`). Of an 8 B model about 1 GB each; `max_bytes` counts it
        before anything is read.
    max_bytes: refuse, before any weight is read, to read more than this over all models together.
    allow_pickle: read `.bin`/`.pt` too, by `torch.load(weights_only=True)`.
    token: for the Hub; None uses the machine's login, False none. It goes to the Hub's own origin only.
    device: where to compute, the processor by default. `"cuda"` is every GPU of this machine, `"cuda:1"` that one;
        `"auto"` takes every accelerator, then memory, then disk; `{0: "10GiB", "cpu": "20GiB"}` the same within bounds,
        `{"blocks.0": 0, "blocks.1": "cpu"}` a layout of your own (`placement.py`, docs/guides/gpus.md).
    memory: bytes, or text such as `"2GB"`, that reading weights takes at most beside torch; None is 512 MB. Where not
        all hidden units fit, whole layers are chosen by the seed, and the answer says so (`units_in_memory`).
    progress: called as `progress(done, total, what)`, in bytes. seed: of the sample and of the permutations.
    session: an `hl.Session` whose models are already open; `token` and `allow_pickle` are then the session's.
    timeout: seconds after which what reads weights or asks the Hub ends with a `TimeOverError` or, of the Hub, a
        `HubUnavailableError`.

    Under `torchrun` or `accelerate launch` every process must make the same call; they share the reading, all return
    the same `Lineage`, and only the first calls `progress` (`parallel.py`).

    Returns a `Lineage`; "none of these" is an answer. Raises `LineageError`s, each saying what to do next:
    `ModelNotFoundError`, `AccessDeniedError`, `CheckpointError`, `HubUnavailableError` for the child,
    `NoCandidatesError`, `NothingToCompareError`, `ArgumentError` (all in `hf_lineage.errors`). A candidate that cannot
    be opened is listed as `unreadable`; it does not stop the others.
    """
    if older and (candidates is None or tree):
        raise ArgumentError("Expected `older` with named candidates and without `tree`: a tree says who came first.")
    options = Options(
        evidence=names_of(evidence), alpha=alpha, sample=sample, max_bytes=limit_of(max_bytes),
        device=device, memory=memory,
        progress=progress_of(progress), seed=seed, timeout=timeout,
        tree=candidates is None if tree is None else tree, older=older, prior=prior, relatives=relatives,
        check_order=check_order,
        networks=Networks(probes=probes, taps=taps, metric=metric, step=step, detector=detector),
    )  # fmt: skip
    with session_of(session, token, allow_pickle, options.ends) as session:
        if outputs is not None:
            return trace_outputs(child, candidates, outputs, session, options)
        if candidates is None:
            return _search(child, session, options)
        named = models_of(candidates)
        return answered(child, named, session, options, lambda: _answer(ask(session, child, named), options))


def _answer(question: Question, options: Options) -> Lineage:
    """Line up, weigh each kind of evidence, rank, conclude, compare with what is claimed."""
    comparable, rest = line_up(question)
    beside = options.spent + expected_bytes(question, options)
    kinds = [kind(question, comparable, options, beside) for name, kind in EVIDENCE.items() if name in options.evidence]
    known = Weighed(rest=tuple(rest))
    for kind in kinds:
        known = kind.weigh(known)
    ranked = sorted([*known.judged, *known.rest, *question.unreadable], key=verdict.order)
    if all(candidate.status == "unreadable" for candidate in ranked):
        raise NoCandidateReadError(notes.of_unreadable(ranked))
    concluded, parent = verdict.conclude(ranked, options.alpha)
    messages = [*question.notes, *known.notes, *notes.of_unread(ranked)]
    merged = any(message.code == "merge_found" for message in messages)
    if concluded == "parent" and merged:
        concluded, parent = "common_origin", None  # of several parents none is the one
    none = known.none
    if options.relatives and not merged and (missing := own_base.declared_elsewhere(question, ranked[0])):
        spent = replace(options, spent=question.session.bytes_read)
        try:
            answer = _answer(own_base.with_bases(question, missing), spent)
            return replace(answer, notes=(notes.of_own_base(ranked[0], missing), *answer.notes))
        except LimitError:
            messages.append(notes.of_base_not_read(ranked[0], missing))
    if concluded == "common_origin" and not merged:
        if base := own_base.base_behind(ranked, known.pairs):
            ranked, none = own_base.confirmed(ranked, base, none)
            concluded, parent = verdict.conclude(ranked, options.alpha)
        elif own_base.is_open(ranked[0]):
            ranked, none = own_base.either(ranked, none)
    messages += [*notes.of_older(ranked, parent), *notes.of_order_of_units(ranked, messages)]
    messages += notes.of_unused(question.source, question.architecture)
    for kind in kinds:
        ranked, more = kind.of_verdict(ranked, concluded)
        messages += more
    if question.is_adapter:
        concluded, parent, ranked = _as_adapter(question, concluded, parent, ranked)
        fit = question.fit(question.source)
        messages.insert(0, notes.of_adapter(question.asked, question.source, bool(fit and fit.misfit)))
    ranked, more = merged_adapters(question, ranked, options)
    messages += more
    same = question.session.opener.same_model
    claims, undeclared = verdict.weigh_claims(question.claims, ranked, parent, same, circular=question.is_adapter)
    if question.is_adapter:
        claims = _by_shapes(question, claims)
    messages += notes.of_folders(claims, ranked, same)
    return Lineage(
        child=question.asked.ref, requested=question.asked.requested, verdict=concluded, parent=parent,
        none_probability=None if merged else verdict.known_none(none, concluded, ranked),
        candidates=tuple(_dated(question, ranked)), claims=tuple(claims), undeclared=tuple(undeclared),
        notes=(*messages, *skipped(question.models)),
        **options.cost(question.session, known.by_others),
    )  # fmt: skip


def _dated(question: Question, ranked: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the dates of their commit and the child's where the Hub tells both: facts that decide
    nothing."""
    ours = question.asked.committed
    theirs = {(model.ref.name, model.ref.revision): model.committed for model in question.opened}
    found = []
    for c in ranked:
        both = {"child": ours, "candidate": theirs.get(own_base.key(c))}
        dated = c.status == "compared" and all(both.values())
        found.append(replace(c, facts={**c.facts, "committed": both}) if dated else c)
    return found


def _as_adapter(
    question: Question, concluded: Verdict, parent: str | None, ranked: list[Candidate]
) -> tuple[Verdict, str | None, list[Candidate]]:
    """An adapter's answer was found for its declared base: a copy of that says nothing of the adapter, and where the
    base itself was offered, "none of them" would be wrong."""
    ranked = [replace(c, relation="adapter") if c.relation == "identical" else c for c in ranked]
    offered = (question.source.ref.name, question.source.ref.revision) in {(c.ref, c.revision) for c in ranked}
    if concluded == "identical" or (concluded == "none" and offered):
        return "undecided", None, ranked
    return concluded, parent, ranked


def _by_shapes(question: Question, claims: Sequence[Claim]) -> list[Claim]:
    """An adapter's claims: contradicted where its factors cannot belong to the base that they name."""
    fit, base = question.fit(question.source), unjudged(question.source, "compared")
    if fit is None or not fit.misfit:
        return list(claims)
    same = question.session.opener.same_model
    return [replace(claim, status="contradicted") if same(claim.ref, base) else claim for claim in claims]


# ---- where nobody named a candidate


def _search(child: Model, session: Session, options: Options) -> Lineage:
    """Trace among wider and wider rings of candidates, until one is enough."""
    ours = session.opener.open(child)
    search = Search(ours, session, CANDIDATES, REQUESTS, progress=options.progress)
    if not ours.is_adapter:
        search.begin_with(*relatives_in_index(ours, session, options.alpha))
    lineage: Lineage | None = None
    trouble: LineageError | None = None
    while refs := world().gather([*search.refs] if world().main and search.widen(lineage) else None)[0]:
        try:
            if ours.is_adapter:  # its base is traced in its place: nobody but the base is looked for
                lineage = _answer(ask(session, child, refs[:CHUNK]), replace(options, tree=False))
            else:
                lineage = _ring(child, refs, lineage, session, options)
        except (NoCandidatesError, NothingToCompareError) as error:  # the next ring may hold something better
            trouble = error
            continue
        except ArgumentError as error:  # max_bytes: it may hold the candidates so far and not those of a wider ring
            if lineage is None:
                raise
            search.trouble(error.note)
            break
        if is_enough(lineage) or "weights" not in options.evidence or ours.is_adapter:
            break
    if lineage is None:
        none = f"Expected candidate parents of `{ours.ref.name}`: it declares none, and none was found on the Hub "
        said = [f"{none}({search.requests} requests).", *search.notes, Note("no_candidates", "", *NAME_SOME)]
        raise trouble or NoCandidatesError(join_notes("no_candidates", said))
    return _found_by(lineage, search)


def _found_by(lineage: Lineage, search: Search) -> Lineage:
    """The answer with the rule that led to each candidate, and what the search itself has to say."""
    rules = world().gather({c.ref: search.rules(c.ref) for c in lineage.candidates})[0]
    messages = world().gather(notes.of_search(rules, search.requests, search.notes))[0]
    found = tuple(replace(c, facts={**c.facts, "found_by": rules[c.ref]}) for c in lineage.candidates)
    return replace(lineage, candidates=found, notes=(*messages, *notes.of_copies(found), *lineage.notes))


def _ring(child: Model, refs: Sequence[str], before: Lineage | None, session: Session, options: Options) -> Lineage:
    """The answer about all candidates so far. The new ones are screened, a chunk at once; who shows no common origin
    is not read again, and counts among the p-values; the relatives are then asked together, and their tree decides."""
    aside = [*unrelated(before)]
    away = {c.requested for c in aside}
    known = {c.requested: c for c in before.candidates} if before else {}
    new, kept = [ref for ref in refs if ref not in known], [ref for ref in refs if ref in known and ref not in away]
    seen = {name: raw for name, c in known.items() if (raw := log10_raw(c)) is not None}
    most = _share(max(LEAST_SEARCHED, SEARCHED // (1 + len(new))), len(refs), session, options)
    screening = replace(options, most=most if options.sample is None else None)
    lineage = before
    for at in range(0, len(new), CHUNK):
        chunk = new[at : at + CHUNK]
        question = ask(session, child, [*kept, *chunk])
        lineage = _answer(question, replace(screening, tree=False, spent=session.bytes_read))
        aside += unrelated(lineage)
        away = {c.requested for c in aside}
        kept = [ref for ref in [*kept, *chunk] if ref not in away]
        seen |= {c.requested: raw for c in lineage.candidates if (raw := log10_raw(c)) is not None}
    if kept and (before or len(new) > 1):
        finer = _share(max(most, SEARCHED // (1 + len(kept))), len(kept), session, options) if screening.most else None
        question = ask(session, child, kept)
        lineage = _answer(question, replace(screening, tree=options.tree, most=finer, spent=session.bytes_read))
    assert lineage is not None, "a ring holds a candidate"
    return merge_answers(lineage, aside, seen, options.alpha, session.opener.same_model)


def _share(most: int, models: int, session: Session, options: Options) -> int:
    """Bytes of each model, so that a ring takes half of what `max_bytes` leaves; too few of them are refused later."""
    left = options.max_bytes - session.bytes_read if options.max_bytes is not None else most * 2 * (1 + models)
    share = left // (2 * (1 + models))
    return min(most, share) if share >= LEAST_SAMPLE else most
