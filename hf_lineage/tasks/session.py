"""The models of one or many questions: each is opened, described and aligned once, and one loop reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..answers.lineage import Candidate, Claim, Status
from ..answers.refs import is_repo_id
from ..architecture.align import Alignment, align
from ..architecture.describe import Architecture
from ..architecture.structure import cuts
from ..checkpoints.adapter_shapes import AdapterFit, adapter_fit
from ..checkpoints.checkpoint import Checkpoint, MemoryCheckpoint
from ..checkpoints.claims import claims_of
from ..checkpoints.opener import Opener, model_identity, models_of
from ..checkpoints.view import View
from ..errors import ArgumentError, CheckpointError, LimitError, LineageError, NoCandidatesError, Note, join_notes
from ..weights.reader import Readings, read_aligned
from ..weights.sampling import Plan, make_plan, sample_budget
from .layouts import lined_up

if TYPE_CHECKING:
    from ..checkpoints.opener import Model
    from ..hub.client import Hub
    from .options import Options, Sample

NAME_SOME = ("Name some: -c org/name.", "candidates=[…].")  # hints, for the command line and for Python
LEAST_SAMPLE = 100_000  # bytes of a model below which a smaller sample is no advice
Aligned = tuple[Checkpoint, Alignment]  # a model and how it lines up with the child


class Session:
    """The Hub's client, and the models of the questions that share it: none is opened, described or aligned twice.

    with hl.Session() as session:
        for child in children:
            print(hl.trace(child, ["org/base"], session=session).sentence())

    token, allow_pickle: as in `trace`; for all questions of the session. Models stay open until the session ends: a
    branch that moves meanwhile is not looked at again. Leaving the `with` block closes the client's connections.
    """

    def __init__(self, token: str | bool | None = None, allow_pickle: bool = False) -> None:
        self.token, self.allow_pickle = token, allow_pickle
        self.opener = Opener(token, allow_pickle)
        self._views: dict[int, tuple[Checkpoint, View]] = {}  # by the model's id; holding it keeps the id its own
        self._alignments: dict[tuple[int, int], Alignment] = {}
        self._lined_up: dict[tuple[int, int], tuple[View, Alignment]] = {}
        self.before = (0, 0)  # requests and bytes of earlier questions

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the models and the connections."""
        self.opener.close()
        self._views.clear()
        self._alignments.clear()
        self._lined_up.clear()

    @property
    def hub(self) -> Hub:
        """The client of all repos on the Hub, made when first needed."""
        return self.opener.hub

    def begin(self) -> None:
        """Count requests and bytes from here on: another question begins."""
        self.before = (self.opener.requests, self.opener.bytes_read)

    @property
    def requests(self) -> int:
        """Requests sent to the Hub for this question so far."""
        return self.opener.requests - self.before[0]

    @property
    def bytes_read(self) -> int:
        """Bytes read for this question so far, headers included."""
        return self.opener.bytes_read - self.before[1]

    def view(self, model: Checkpoint) -> View:
        """An opened model through its cuts: fused tensors as their parts."""
        if isinstance(model, View):
            return model
        if id(model) not in self._views:
            self._views[id(model)] = (model, View(model, cuts(model)))
        return self._views[id(model)][1]

    def align(self, child: View, candidate: View) -> Alignment:
        """Which tensor of the candidate lines up with which of the child."""
        key = (id(child), id(candidate))
        if key not in self._alignments:
            self._alignments[key] = align(child, candidate, child.architecture)
        return self._alignments[key]

    def lined_up(self, child: View, candidate: View) -> tuple[View, Alignment]:
        """The candidate and how it lines up with the child; where names do not tell, in the child's layout."""
        key = (id(child), id(candidate))
        if key not in self._lined_up:
            self._lined_up[key] = lined_up(child, candidate, self.align(child, candidate))
        return self._lined_up[key]

    def forget(self, model: Checkpoint) -> None:
        """Let go of one model: of many that are asked about one after the other, each is needed once."""
        key = id(self._views.pop(id(model), (model, model))[1])
        for pair in [pair for pair in self._alignments if key in pair]:
            del self._alignments[pair]
            self._lined_up.pop(pair, None)
        self.opener.forget(model)

    def keep_latest(self, count: int) -> None:
        """Let go of all but the `count` models opened last, and of those whose weights are in memory: for many
        questions one after the other, of which several have the same base."""
        opened = self.opener.opened
        for i, model in enumerate(opened):
            if i < len(opened) - count or isinstance(model, MemoryCheckpoint):
                self.forget(model)

    def read_aligned(
        self, child: View, aligned: Sequence[Aligned], plan: Plan, options: Options, orders: bool = False,
        relatives: bool = False,
    ) -> Readings:  # fmt: skip
        """One pass over the plan's slices of the child and of everything that lines up with it.

        The only loop that reads weights for `trace`, `trace_layers` and `phylogeny` (`weights/reader.py`).
        """
        return read_aligned(
            child, [model for model, _ in aligned], [alignment for _, alignment in aligned], plan,
            device=options.device, progress=options.progress, orders=orders, relatives=relatives,
            memory=options.reading_memory,
        )  # fmt: skip


@contextmanager
def session_of(
    session: Session | None, token: str | bool | None, allow_pickle: bool, ends: float = math.inf
) -> Iterator[Session]:
    """The caller's session, or one of the question's own that ends with it. Raises `ArgumentError`.

    ends: on the monotonic clock, after which the Hub is asked nothing.
    """
    if session is None:
        with Session(token, allow_pickle) as own:
            own.opener.ends = ends
            yield own
    elif token is not None or allow_pickle:
        raise ArgumentError("Expected `token` and `allow_pickle` to be given to the Session, not beside it.")
    else:
        session.begin()
        session.opener.ends = ends
        yield session


@dataclass(frozen=True, slots=True)
class Question:
    """The child as asked for (of an adapter, `source` is the base in its place), and the candidates that opened.

    `child` and `candidates` are views: fused tensors as their parts; `source` and `opened` the same as they are stored.
    `modules`: the models given as modules in memory.
    """

    session: Session
    asked: Checkpoint
    source: Checkpoint
    claims: tuple[Claim, ...]
    opened: tuple[Checkpoint, ...]
    unreadable: tuple[Candidate, ...]
    notes: tuple[Note, ...]
    modules: tuple[Any, ...]

    @property
    def child(self) -> View:
        """What is compared, through its cuts."""
        return self.session.view(self.source)

    @property
    def candidates(self) -> tuple[View, ...]:
        """The candidates that opened, through their cuts."""
        return tuple(self.session.view(model) for model in self.opened)

    @property
    def architecture(self) -> Architecture:
        """The child's."""
        return self.child.architecture

    @property
    def is_adapter(self) -> bool:
        """Whether the base was taken in the place of an adapter."""
        return self.source is not self.asked

    @property
    def models(self) -> list[Checkpoint]:
        """All that were opened for the question, each once."""
        return [*([self.asked] if self.is_adapter else []), self.source, *self.opened]

    def fit(self, model: Checkpoint) -> AdapterFit | None:
        """Whether the factors of the adapter that was asked about can belong to a model; None of what is no adapter."""
        return adapter_fit(self.asked, model) if self.is_adapter else None

    def without_evidence(self, model: Checkpoint) -> str:
        """Why comparing a candidate of an adapter would show nothing; "" where it would.

        The base of an adapter compared with itself is no evidence; and where the adapter's factors cannot belong to the
        base that it names, what that base comes from says nothing of the adapter.
        """
        fit, ours = self.fit(model), self.fit(self.source)
        if fit is None or ours is None:
            return ""
        if model_identity(model) == model_identity(self.source):
            itself = "it is the base that the adapter itself names, and compared with itself it is no evidence"
            return f"{itself}; {fit.explain()}"
        return fit.explain() if ours.misfit else ""

    def aligned(self) -> list[tuple[View, Alignment]]:
        """Every candidate with its alignment, comparable or not."""
        return [(model, self.session.align(self.child, model)) for model in self.candidates]

    def as_stored(self) -> list[Aligned]:
        """The candidates as they are stored, which their networks want, with the alignment of their views."""
        return [(model, alignment) for model, (_, alignment) in zip(self.opened, self.aligned(), strict=True)]


def ask(session: Session, child: Model, candidates: Model | Iterable[Model]) -> Question:
    """Open the child and its candidates, and see what its files declare."""
    wanted = models_of(candidates)
    ours = session.opener.open(child)
    claims = claims_of(ours)
    source = base_of(ours, session.opener) if ours.is_adapter else ours
    if not wanted:
        raise NoCandidatesError(f"Expected candidate parents of `{ours.ref.name}`, got none.", *NAME_SOME)
    opened, unreadable = session.opener.open_all(wanted)
    opened, notes = _distinct(opened, ours)
    if not opened and not unreadable:
        other = f"A model is not its own parent: expected candidates other than `{ours.ref.name}`."
        raise NoCandidatesError(join_notes("no_candidates", [other, *notes, "Name others."]))
    ordered = tuple(sorted(opened, key=lambda model: (model.ref, model.requested)))
    modules = tuple(model for model in (child, *wanted) if hasattr(model, "state_dict"))
    return Question(session, ours, source, tuple(claims), ordered, tuple(unreadable), tuple(notes), modules)


def base_of(adapter: Checkpoint, opener: Opener) -> Checkpoint:
    """The base an adapter declares. What a repo's file names must not open a path on this machine."""
    base = adapter.adapter_base or ""
    if not base:
        raise CheckpointError(
            f"`{adapter.ref.name}` is a LoRA adapter that names no base model (`base_model_name_or_path`), and its "
            "card names none. Name the base as the child instead."
        )
    if adapter.ref.kind == "hub" and not is_repo_id(base):
        raise CheckpointError(
            f"`{adapter.ref.name}` is a LoRA adapter of {base[:80]!r}, which is no repo id. Name its base as the child."
        )
    try:
        return opener.open(base)
    except LineageError as error:
        why = error.note.prefixed(f"`{adapter.ref.name}` is a LoRA adapter; its base cannot be opened: ")
        raise CheckpointError(why) from error


def _distinct(opened: Sequence[Checkpoint], child: Checkpoint) -> tuple[list[Checkpoint], list[Note]]:
    """Without the child itself and without what is named twice; a note for each."""
    kept: dict[tuple, Checkpoint] = {}
    notes = []
    for checkpoint in opened:
        if model_identity(checkpoint) == model_identity(child):
            dropped = f"{checkpoint.requested} is the child itself and was dropped from the candidates."
            notes.append(Note("child_dropped", dropped))
        elif model_identity(checkpoint) in kept:
            notes.append(Note("named_twice", f"{checkpoint.ref.name} was named more than once and counts once."))
        else:
            kept[model_identity(checkpoint)] = checkpoint
    return list(kept.values()), sorted(notes)


# ---- what is to be read


def budget_of(child: Checkpoint, models: Iterable[Checkpoint], names: Iterable[str], sample: Sample) -> int | None:
    """Bytes to read of the child's tensors `names`, None for all of them: see `sample_budget`."""
    remote = child.remote or any(model.remote for model in models)
    return sample_budget(sample, sum(child[name].nbytes for name in names), remote)


def plan_reading(
    child: View, architecture: Architecture, aligned: Sequence[Aligned], budget: int | None, options: Options,
    beside: int = 0,
) -> Plan:  # fmt: skip
    """What to read of the tensors that any candidate has; `beside`: bytes that something else reads.

    Raises `ArgumentError` where the sample holds nothing, `LimitError` above `max_bytes`.
    """
    nbytes = {name: child[name].nbytes for name in paired(architecture, aligned)}
    models = 1 + len(aligned)
    memory = options.reading_memory
    entries = {name: child[name] for name in nbytes}
    plan = make_plan(
        entries, nbytes, architecture.orders, budget=budget, seed=options.seed,
        keep=memory.units(models), most=memory.most_units(models),
    )  # fmt: skip
    if not plan.slices:
        raise ArgumentError(f"Expected a larger sample: {budget} bytes of {sum(nbytes.values()):,} hold no slice.")
    theirs = sum(model[partner].nbytes for model, alignment in aligned for partner in alignment.pairs.values())
    needed = round(plan.share * (sum(nbytes.values()) + theirs))
    within(options.max_bytes, needed + beside, models)
    return plan


def within(max_bytes: int | None, needed: int, models: int) -> None:
    """Refuse to read more than the caller allows, before any of it is read. Raises `LimitError`."""
    if max_bytes is not None and needed > max_bytes:
        share = max_bytes // models
        hint = (
            f"Sample less, for example {share} bytes" if share >= LEAST_SAMPLE else "Allow more, or name fewer models"
        )
        much = f"This would read about {needed:,} bytes of {models} models, more than"
        text = f"{much} max_bytes={max_bytes:,}. {hint}."
        raise LimitError(Note("limit", f"{much} the limit of {max_bytes:,}.", f"{hint}.", text=text))


def paired(architecture: Architecture, aligned: Sequence[Aligned]) -> list[str]:
    """The child's weights that any candidate has."""
    return [name for name in architecture.weights if any(name in alignment.pairs for _, alignment in aligned)]


def shared_rows(aligned: Sequence[Aligned]) -> dict[str, int]:
    """Rows of each token table that every candidate has."""
    rows: dict[str, int] = {}
    for _, alignment in aligned:
        for name, both in alignment.grown.items():
            rows[name] = min(*both, rows.get(name, both[0]))
    return rows


# ---- candidates before anything is known of them


def unjudged(model: Checkpoint, status: Status, *reasons: Note) -> Candidate:
    """A candidate of which nothing is known yet but its status."""
    return Candidate(model.ref.name, model.requested, model.ref.revision, status=status, reasons=reasons)


def skipped(models: Sequence[Checkpoint]) -> list[Note]:
    """A note for each model of which tensors were left out, and what else its files ask for."""

    def share(model: Checkpoint) -> str:
        whole = sum(entry.nbytes for entry in model.values()) + model.skipped_bytes
        return f"{100 * model.skipped_bytes / whole:.2g} % of its bytes" if whole and model.skipped_bytes else "in all"

    return [note for model in models for note in model.notes] + [
        Note(
            "unknown_dtype",
            f"{model.ref.name}: tensors of an unknown dtype were left out, {share(model)}: {some(model.skipped)}.",
        )
        for model in models if model.skipped
    ]  # fmt: skip


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
