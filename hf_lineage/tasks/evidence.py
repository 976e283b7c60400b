"""The kinds of evidence about the candidates of one question: one protocol, and a literal registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from ..answers.lineage import Candidate, Verdict
from ..architecture.align import Alignment
from ..checkpoints.view import View
from ..errors import ArgumentError, Note
from ..parallel import THREADS, world
from . import compare, notes
from .combine import apply_tree, related_candidates
from .merged import Relatives, find_merge, without_merges
from .options import Options
from .own_base import Key, key
from .screen import screen
from .session import Question, unjudged

if TYPE_CHECKING:
    from ..features.evidence import Settings
    from ..weights.evidence import PairReadings

Comparable = Sequence[tuple[View, Alignment]]  # the candidates whose tensors line up with the child's


@dataclass(frozen=True, slots=True)
class Weighed:
    """What is known of the candidates so far, before they are ranked.

    `judged`: those with numbers; `rest`: the others that opened. `none`: probability that none of them is the parent,
    None where no evidence can say so. `by_others`: bytes that other processes read. `pairs`: what was read of the child
    and each judged candidate, by its ref and revision.
    """

    judged: tuple[Candidate, ...] = ()
    rest: tuple[Candidate, ...] = ()
    none: float | None = None
    notes: tuple[Note, ...] = ()
    by_others: int = 0
    pairs: Mapping[Key, PairReadings] = field(default_factory=dict)


class Evidence(Protocol):
    """One kind of evidence about all candidates of a question.

    Making it may run the child: what the child cannot do ends the question before any weight is read. `weigh` adds to
    what other evidence found. `comparable`: candidates whose tensors line up. `beside`: bytes that others will read.
    """

    def __init__(self, question: Question, comparable: Comparable, options: Options, beside: int) -> None: ...

    def weigh(self, known: Weighed) -> Weighed: ...

    def of_verdict(self, ranked: Sequence[Candidate], verdict: Verdict) -> tuple[list[Candidate], list[Note]]: ...


class Weights:
    """The permutation test, distances and what was done to each tensor. The only kind with a p-value."""

    def __init__(self, question: Question, comparable: Comparable, options: Options, beside: int) -> None:
        self._question, self._comparable, self._options, self._beside = question, comparable, options, beside

    @THREADS.apart()
    def weigh(self, known: Weighed) -> Weighed:
        """Read everything once, judge each candidate, and let the tree of several relatives decide among them."""
        if not self._comparable:
            return known
        question, options = self._question, self._options
        if options.max_bytes is not None:  # what may be read is refused before anything is
            compare.plan(question, self._comparable, options, self._beside)
        screening = screen(question, self._comparable, options)
        if not screening.kept:
            return replace(
                known, judged=screening.left, none=1 - options.alpha, notes=(*known.notes, *screening.notes()),
                by_others=known.by_others + screening.by_others,
            )  # fmt: skip
        reading = compare.read(question, screening.kept, options, self._beside)
        screening.stand_in(reading)
        judged, none = compare.judge(question, reading, options)
        judged = screening.counted(judged)
        pairs = {key(c): pair for c, pair in zip(judged, reading.comparison.pairs.values(), strict=True)}
        relatives = Relatives.of(reading.readings, question.architecture, reading.aligned, judged)
        merge, of_merges = None, list[Note]()
        if relatives:
            judged, none, of_merges = without_merges(relatives, none, options.alpha)
            merge = find_merge(relatives, sums=not of_merges)
        if options.tree and none is not None:
            judged, none = self._by_tree(reading, judged, none)
        messages = notes.of_unnamed_origin(question, reading.readings)
        messages += [*notes.of_trace(reading.plan, question.architecture, reading.comparison, question.source)]
        if merge:
            judged = merge.marked(judged)
            messages.append(merge.note(question.source.ref.name, [c.ref for c in judged]))
        return replace(
            known, judged=(*judged, *screening.left), rest=(*known.rest, *compare.refused(reading)), none=none,
            notes=(*known.notes, *messages, *of_merges, *screening.notes()), pairs=pairs,
            by_others=known.by_others + reading.readings.bytes_by_others + screening.by_others,
        )  # fmt: skip

    def of_verdict(self, ranked: Sequence[Candidate], verdict: Verdict) -> tuple[list[Candidate], list[Note]]:
        """Nothing more to say."""
        return list(ranked), []

    def _by_tree(self, reading: compare.Reading, judged: list[Candidate], none: float) -> tuple[list[Candidate], float]:
        """Let the tree of the child and its relatives say which of them is the parent; nothing is read again."""
        related = {key(c) for c in related_candidates(judged, self._options.alpha)}
        chosen = [i for i, model in enumerate(reading.models) if (model.ref.name, model.ref.revision) in related]
        if len(chosen) < 2:
            return judged, none
        from .phylogeny import tree_of_reading

        source = self._question.source
        tree = tree_of_reading(self._question, reading, chosen, self._options.seed)
        return apply_tree(judged, none, tree, (source.ref.name, source.ref.revision))


class Features:
    """How alike the features of some inputs are, before and after the step towards the child."""

    def __init__(self, question: Question, comparable: Comparable, options: Options, beside: int) -> None:
        self._question, self._options = question, options
        self._settings = settings_of(question, options)
        before = question.session.bytes_read
        if question.opened:
            from ..features.evidence import run_child

            self._child = run_child(question.source, question.child, self._settings)
        self._by_child = question.session.bytes_read - before

    def weigh(self, known: Weighed) -> Weighed:
        """Run each candidate with its derivative towards the child."""
        question, options = self._question, self._options
        if not question.opened:
            return known
        from ..features.evidence import attach, compare, evidence_notes

        before = question.session.bytes_read - self._by_child
        found = compare(self._child, question.as_stored(), self._settings, options.progress)
        by_others = world().others(question.session.bytes_read - before)
        judged, rest = attach(*found, _unjudged(question), known.judged, known.rest, options.evidence)
        return replace(
            known, judged=tuple(judged), rest=tuple(rest), by_others=known.by_others + by_others,
            notes=(*known.notes, *evidence_notes([*judged, *rest], self._settings)),
        )  # fmt: skip

    def of_verdict(self, ranked: Sequence[Candidate], verdict: Verdict) -> tuple[list[Candidate], list[Note]]:
        """Nothing more to say."""
        return list(ranked), []


class Detector:
    """A learned probability, which never moves the weights' verdict."""

    def __init__(self, question: Question, comparable: Comparable, options: Options, beside: int) -> None:
        self._question, self._options = question, options
        self._settings = settings_of(question, options)

    def weigh(self, known: Weighed) -> Weighed:
        """Ask the detector about all candidates together."""
        question, options = self._question, self._options
        if not question.opened:
            return known
        from ..detector.evidence import attach, open_detector, score_candidates

        before = question.session.bytes_read
        judge = open_detector(options.networks.detector, question.session.opener)
        opinion = score_candidates(judge, question.source, question.opened, self._settings, options.progress)
        by_others = world().others(question.session.bytes_read - before)
        judged, rest, none = attach(
            opinion, _unjudged(question), known.judged, known.rest, options.evidence, known.none
        )
        return replace(
            known, judged=tuple(judged), rest=tuple(rest), none=none, by_others=known.by_others + by_others
        )  # fmt: skip

    def of_verdict(self, ranked: Sequence[Candidate], verdict: Verdict) -> tuple[list[Candidate], list[Note]]:
        """A reason where the detector and the weights disagree."""
        if not self._question.opened:
            return list(ranked), []
        from ..detector.evidence import evidence_notes

        return evidence_notes(ranked, verdict)


# In the order in which they are asked: what rests on the weights comes first, the verdict rests on it
EVIDENCE: Mapping[str, type[Evidence]] = {"weights": Weights, "features": Features, "detector": Detector}


def settings_of(question: Question, options: Options) -> Settings:
    """How the models of a question are run."""
    settings = options.networks.settings(options, question.session.token)
    return replace(settings, modules=question.modules)


def expected_bytes(question: Question, options: Options) -> int:
    """The most bytes that running the models reads, 0 where nobody asks. Raises `ArgumentError` above `max_bytes`."""
    if options.max_bytes is None or not options.runs_models or not question.opened:
        return 0
    from ..features import evidence

    needed = evidence.expected_bytes(question.source, question.opened, settings_of(question, options))
    if needed > options.max_bytes:
        much = f"Features would read up to {needed:,} bytes of {1 + len(question.opened)} models, more than"
        less = "Choose an earlier tap; and give a `step`, since of remote models each step tried is read again."
        text = f"{much} max_bytes={options.max_bytes:,}. {less}"
        raise ArgumentError(Note("argument", f"{much} the limit of {options.max_bytes:,}. {less}", text=text))
    return needed


def _unjudged(question: Question) -> list[Candidate]:
    return [unjudged(model, "compared") for model in question.opened]
