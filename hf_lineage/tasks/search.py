"""Who could be the parent of a model that nobody has named one for: rings around it, each wider than the one before.

1. what its own files declare: the card's `base_model`, `config.json`, an adapter's base, a merge recipe;
2. what its card's text says, the bases of those, and other models made from them;
3. models of the same architecture and size, timm's variants, the same in the cache of this machine;
4. the same architecture in any size, the same size in any architecture, names alike.

Each model is looked at through its safetensors header (names and shapes) before any weight is read. A listing tells
commit and files of a hundred models at once, so a model costs two or three requests, of the cheap kind (`/resolve`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..answers.lineage import Lineage
from ..answers.refs import ModelRef, is_repo_id, printable
from ..answers.search import CandidateSearch, FoundCandidate
from ..architecture.align import Alignment
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.claims import beside, claims_of
from ..checkpoints.opener import model_identity
from ..errors import ArgumentError, LineageError, Note, join_notes
from ..report.progress import progress_of
from ..sizes import bytes_of
from .options import versions
from .session import Session, base_of, session_of, some

if TYPE_CHECKING:
    from pathlib import Path

    from ..answers.base import Progress
    from ..answers.lineage import Claim
    from ..hub.listing import Listed

MOST_MODELS, MOST_REQUESTS, MOST_BYTES = 64, 400, 256 << 20
SIBLINGS = 20  # other children of one base that are looked at
BASES = 4  # generations of declared bases that are walked up
RELATIVES = 3  # models found to be related whose own bases and their children are looked at
NARROW, WIDE = 0.03, 0.5  # the share by which a number of parameters may differ: another head, another vocabulary
BATCH = 8  # models opened side by side
LIGHTER = 4  # a cached model of this many times fewer or more bytes than the child is not looked at online
# bytes kept in memory of the child and of each candidate, and of all: a wider ring asks for them again
KEPT, KEPT_IN_ALL = 8 << 20, 512 << 20
TEXT = 200_000  # bytes of a README that are searched for the Trainer's sentence

# what transformers' Trainer writes; only this sentence, with the id twice
_TRAINED = re.compile(r"This model is a fine-tuned version of \[([^\]\s]+)\]\(https://huggingface\.co/([^)\s]+)\)")
_WORD = re.compile(r"[A-Za-z0-9.]+")
# (repo id, rule, what a listing told of it); None: what came so far is to be opened before the ring goes on
Row = tuple[str, str, "Listed | None"] | None
Ring = Callable[[], Iterator[Row]]


def find_candidates(
    child: str | Path | ModelRef, *, most: int = MOST_MODELS, max_requests: int = MOST_REQUESTS,
    max_bytes: int | str = MOST_BYTES, token: str | bool | None = None, allow_pickle: bool = False,
    progress: Progress | bool | None = None, session: Session | None = None,
) -> CandidateSearch:  # fmt: skip
    """Models on the Hub (offline: in the cache) that could be the child's parent, and why. Reads no weights.

    most: comparable models to stop at. max_requests, max_bytes: of headers and listings; what was found until then is
        returned, with a note. An anonymous user may send 500 requests to the API and 3,000 for files in five minutes.
    token, allow_pickle, progress, session: as in `trace`, whose `candidates=None` searches the same way, ring by ring,
        and stops when one candidate is enough.

    Raises `ModelNotFoundError`, `CheckpointError`, `HubUnavailableError` for the child, `ArgumentError`. What goes
    wrong with anything else is told in the notes.
    """
    max_bytes = bytes_of(max_bytes, "max_bytes")
    for name, value in (("most", most), ("max_requests", max_requests), ("max_bytes", max_bytes)):
        if type(value) is not int or value < 1:
            raise ArgumentError(f"Expected `{name}` to be a whole number above 0, got {value!r}.")
    started = time.monotonic()
    with session_of(session, token, allow_pickle) as session:
        search = Search(session.opener.open(child), session, most, max_requests, max_bytes, progress_of(progress))
        while search.widen():
            pass
        return replace(search.result(), seconds=round(time.monotonic() - started, 3))


class Search:
    """The search for one child: `widen` looks at the next ring, `refs` are the candidates so far."""

    def __init__(
        self, child: Checkpoint, session: Session, most: int = MOST_MODELS, max_requests: int = MOST_REQUESTS,
        max_bytes: int = MOST_BYTES, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.child, self._session, self._progress = child, session, progress
        self._most, self._max_requests, self._max_bytes = most, max_requests, max_bytes
        self._rings: list[Ring] = [self._declared, self._family, self._alike, self._wider]
        self._found: dict[str, FoundCandidate] = {}  # by the name it was first met under
        self._known_as: dict[tuple, str] = {model_identity(child): child.ref.name}  # that name, by identity
        self._other_names: dict[str, str] = {child.ref.name: child.ref.name}  # that name, by any other
        self._listed: dict[str, Listed] = {}
        self._expanded: set[str] = set()  # those whose children were listed
        self._asked_around: set[str] = set()
        self._troubles: list[Note] = []
        self._broken_listings = 0
        # requests and bytes of the search, and those of others who use the opener: a trace that reads weights
        self._used = self._elsewhere = (0, 0)
        self._count()
        if child.remote:
            child.keep(KEPT)

    def begin_with(self, indexed: Sequence[str], notes: Sequence[Note]) -> None:
        """Look at these first, with what the child declares: relatives that an index knows; and what it had to say."""
        declared = self._rings.pop(0)
        self._rings.insert(0, lambda: chain(((ref, "in the index", None) for ref in indexed), declared()))
        self._troubles += notes

    @cached_property
    def claims(self) -> list[Claim]:
        """Parents that the child's own files name."""
        return claims_of(self.child)

    @property
    def refs(self) -> list[str]:
        """The candidates so far: what the child declares, whatever it is, and what is comparable by its header."""
        return [
            name for name, proposal in self._found.items()
            if proposal.status == "comparable" or proposal.rules[0].startswith("declared")
        ]  # fmt: skip

    def widen(self, lineage: Lineage | None = None) -> bool:
        """Look at the next ring that holds a new candidate; False if there is none, or the budget is spent.

        With the answer about the candidates so far, relatives in it are asked for theirs before going wider; once a
        parent is named, instead of going wider.
        """
        before = len(self.refs)
        self._elsewhere = (self._session.requests - self._used[0], self._session.bytes_read - self._used[1])
        related = _related(lineage)
        if lineage is not None and lineage.parent:
            self._rings = []
        if set(related) - self._asked_around:
            self._rings.insert(0, lambda: self._around(related))
        while self._rings and not self._spent:
            try:
                self._look(self._rings.pop(0)())
            except LineageError as error:
                self.trouble(error.note)
                self._rings = []
            if len(self.refs) > before:
                return True
        return False

    def result(self) -> CandidateSearch:
        """Everything that was looked at, comparable models first."""
        statuses = ("comparable", "unreadable", "not_comparable")
        ranked = sorted(self._found.values(), key=lambda proposal: statuses.index(proposal.status))
        return CandidateSearch(
            self.child.ref, self.child.requested, tuple(ranked), self.requests, notes=tuple(self.notes),
            bytes_read=self._used[1], versions=versions(),
        )  # fmt: skip

    @property
    def requests(self) -> int:
        """Requests sent to the Hub so far."""
        return self._used[0]

    @property
    def notes(self) -> list[Note]:
        """What cut the search short, if anything did."""
        lost = [
            f"{p.ref} ({str(p.reason).partition(': ')[0]})" for p in self._found.values() if p.status == "unreadable"
        ]
        unread = [Note("search_unreadable", f"Found, but could not be read: {some(lost, 3)}.")] if lost else []
        spent = [Note("search_limit", self._spent)] if self._spent else []
        return [*dict.fromkeys(self._troubles), *unread, *spent]

    def trouble(self, error: Note) -> None:
        """Note what ended the search."""
        self._troubles.append(error.prefixed("The search stopped early: ", "search_failed"))

    def rules(self, ref: str) -> tuple[str, ...]:
        """Why a candidate was looked at; nothing for one that was not found here."""
        return next((p.rules for name, p in self._found.items() if ref in (name, p.ref)), ())

    @property
    def _spent(self) -> str:
        requests, nbytes = self._used
        if self.comparable >= self._most:
            return f"The search stopped at {self.comparable} comparable models; there may be more."
        if requests >= self._max_requests:
            return f"The search stopped after {requests} requests; there may be more candidates."
        if nbytes >= self._max_bytes:
            return f"The search stopped after {nbytes:,} bytes; there may be more candidates."
        return ""

    @property
    def comparable(self) -> int:
        """How many models have the child's names and shapes so far."""
        return sum(proposal.status == "comparable" for proposal in self._found.values())

    def _count(self) -> None:
        self._used = (self._session.requests - self._elsewhere[0], self._session.bytes_read - self._elsewhere[1])

    # The rings, the best first

    def _declared(self) -> Iterator[Row]:
        for claim in self.claims:
            if claim.status == "not_understood":
                continue
            yield beside(claim.ref, self.child), f"declared: {claim.source}", None

    def _family(self) -> Iterator[Row]:
        """The Trainer's sentence, then bases of bases, then other models made from any of them."""
        bases = [*self._found]
        if (named := self._trained_from()) and named not in bases:
            bases.append(named)
        if named:
            yield named, "the card's text", None
            yield None
        above = yield from self._above(bases)
        for base in dict.fromkeys([*bases, *above]):
            if self.comparable > self._most // 2:  # a large family leaves room for what nobody declares
                break
            yield from self._made_from(base)

    def _trained_from(self) -> str:
        """What the Trainer's sentence names, "" where there is none."""
        try:
            raw = self.child.repo.read_optional("README.md", TEXT) if self.child.repo else b""
        except LineageError as error:
            self._troubles.append(error.note.prefixed("The card's text was not searched: ", "search_incomplete"))
            return ""
        match = _TRAINED.search(raw.decode("utf-8", "replace"))
        return match[1] if match and match[1] == match[2] and is_repo_id(match[1]) else ""

    def _above(self, names: Sequence[str]) -> Generator[Row, None, list[str]]:
        """The bases that cards of `names` declare, theirs, and so on; returns them all."""
        level, seen = [*names], {*names}
        for _ in range(BASES):
            higher = []
            for name in level:
                for base in self._bases(name):
                    if base not in seen:
                        seen.add(base)
                        higher.append(base)
                        yield base, f"base of {name}", None
            yield None  # side by side, before each is asked for its own
            level = higher
        return [name for name in seen if name not in names]

    def _bases(self, name: str) -> Sequence[str]:
        if name in self._listed:
            return self._listed[name].bases
        known = self._found.get(self._other_names.get(name, name))
        if known is None or known.status == "unreadable":
            return ()
        try:
            claims = claims_of(self._session.opener.open(name))
            return [claim.ref for claim in claims if claim.status != "not_understood"]
        except LineageError:  # its config.json: what the Hub refuses now is not what a search depends on
            return ()

    def _made_from(self, base: str) -> Iterator[Row]:
        """Other children of a base, readable or not; those of the child itself came later."""
        known = self._found.get(self._other_names.get(base, base))
        name = known.ref if known else base
        if is_repo_id(name) and name not in self._expanded and name != self.child.ref.name:
            self._expanded.add(name)
            yield from self._list(f"made from {name}", filters=[f"base_model:{name}"], limit=SIBLINGS)

    def _alike(self) -> Iterator[Row]:
        """The same architecture and about as many parameters."""
        size = (round(self._size * (1 - NARROW)), round(self._size * (1 + NARROW)))
        for text in self._kind:
            yield from self._list("same architecture and size", filters=[text], parameters=size)
        for text in self._timm:
            yield from self._list("a timm variant", author="timm", search=text)
            yield from self._list("same architecture and size", search=text, parameters=size)
        yield from self._cached()
        yield from self._list("same size", filters=["safetensors"], parameters=size)

    def _cached(self) -> Iterator[Row]:
        """What was downloaded before. Online each costs a request of the API, so only what has about as many bytes."""
        from ..hub.cache import cached_models

        ours = sum(entry.nbytes for entry in self._source.values())
        for name, nbytes in cached_models().items():
            if self._session.hub.offline or (ours <= nbytes * LIGHTER and nbytes <= ours * LIGHTER):
                yield name, "in the cache", None

    def _wider(self) -> Iterator[Row]:
        """The same architecture in any size, half to double the size of any architecture, names alike."""
        for text in self._kind:
            yield from self._list("same architecture", filters=[text])
        for text in self._timm:
            yield from self._list("same architecture", search=text)
        size = (round(self._size * (1 - WIDE)), round(self._size / (1 - WIDE)))
        yield from self._list("about the same size", filters=["safetensors"], parameters=size)
        words = [word for word in _WORD.findall(self.child.ref.name.rpartition("/")[2]) if len(word) > 2]
        if self.child.ref.kind != "hub":  # what somebody calls a folder at home is not told to the Hub
            return
        for count in range(min(len(words), 4), 0, -1):
            yield from self._list("a name alike", search=" ".join(words[:count])[:60], limit=SIBLINGS)

    def _around(self, related: Sequence[str]) -> Iterator[Row]:
        """The declared bases of models that turned out to be related, and what was made from these or those."""
        self._asked_around |= {*related}
        names = [name for name, proposal in self._found.items() if proposal.ref in related]
        names.sort(key=lambda name: related.index(self._found[name].ref))
        above = yield from self._above(names)
        for base in dict.fromkeys([*above, *names]):
            yield from self._made_from(base)

    def _list(self, rule: str, **asked: Any) -> Iterator[Row]:
        if self._session.hub.offline:
            return
        from ..hub.listing import listing

        try:
            for found in listing(self._session.hub, **{"limit": self._most, **asked}):
                if not (found.private and self._public):
                    yield found.id, rule, found
        except LineageError as error:  # one query may be too slow for the Hub; after a second one, no more
            self._broken_listings += 1
            if self._broken_listings > 1:
                raise
            self._troubles.append(error.note.prefixed(f"A listing broke off ({rule}): ", "search_incomplete"))

    @property
    def _public(self) -> bool:
        """Whether everybody can see the child: then what is said of it must not name a private model of the token's."""
        return getattr(self.child.repo, "private", None) is False

    @property
    def _kind(self) -> list[str]:
        return self._words("model_type")

    @property
    def _timm(self) -> list[str]:
        return self._words("architecture")

    def _words(self, key: str) -> list[str]:
        """What the config calls the architecture: none or one, as long as a tag can be."""
        text = self._source.config.get(key)
        text = printable(text[:60]) if isinstance(text, str) else ""  # half a character of JSON has no place in a url
        return [text] if text else []

    # Looking at what they yield

    @cached_property
    def _size(self) -> int:
        return max(1, sum(entry.count for entry in self._source.values()))

    @cached_property
    def _source(self) -> Checkpoint:
        """The child, or the base in an adapter's place."""
        try:
            return base_of(self.child, self._session.opener) if self.child.is_adapter else self.child
        except LineageError:
            return self.child

    def _look(self, ring: Iterable[Row]) -> None:
        """Open what a ring yields, a few at once, until the budget is spent. Before it fails, what it had is opened."""
        batch: dict[str, tuple[list[str], Listed | None]] = {}
        try:
            for row in ring:
                if row is not None:
                    self._meet(row, batch)
                if row is None or len(batch) >= BATCH:
                    self._open(batch)
                    batch = {}
                self._count()
                if self._spent:
                    break
        finally:
            self._open(batch)

    def _meet(self, row: tuple[str, str, Listed | None], batch: dict[str, tuple[list[str], Listed | None]]) -> None:
        """Put a model into the batch, or only one more rule to what is known of it."""
        name, rule, listed = row
        if listed is not None:
            self._listed[name] = listed
        if name in self._found or name in self._other_names:
            self._also(self._other_names.get(name, name), rule)
        else:
            batch.setdefault(name, ([], listed))[0].append(rule)

    def _also(self, name: str, *rules: str) -> None:
        if name in self._found:  # the child is not
            known = self._found[name]
            self._found[name] = replace(known, rules=tuple(dict.fromkeys([*known.rules, *rules])))

    def _open(self, batch: dict[str, tuple[list[str], Listed | None]]) -> None:
        opened, refused = self._session.opener.open_all([*batch])
        failed = {candidate.requested: candidate for candidate in refused}
        ready = {checkpoint.requested: checkpoint for checkpoint in opened}
        for name, (rules, listed) in batch.items():
            proposal = FoundCandidate(name, None, tuple(dict.fromkeys(rules)), "unreadable")
            if listed is not None:
                proposal = replace(
                    proposal, revision=listed.sha, parameters=listed.parameters, downloads=listed.downloads,
                    created=listed.created,
                )  # fmt: skip
            if name in failed:
                self._found[name] = replace(proposal, reason=join_notes("model_unreadable", failed[name].reasons))
                continue
            first = self._known_as.setdefault(model_identity(ready[name]), name)
            if first == name:
                self._found[name] = self._compared(proposal, ready[name])
            else:  # renamed, or spelled another way
                self._other_names[name] = first
                self._also(first, *rules)
        self._count()
        if self._progress and batch:
            self._progress(min(self.requests, self._max_requests), self._max_requests, "looking for candidates")

    def _compared(self, proposal: FoundCandidate, candidate: Checkpoint) -> FoundCandidate:
        if candidate.remote:
            candidate.keep(min(KEPT, KEPT_IN_ALL // self._most))
        alignment = self._session.align(self._session.view(self._source), self._session.view(candidate))
        comparable = alignment.comparable and not candidate.is_adapter
        born, ours = getattr(candidate.repo, "created", None), getattr(self.child.repo, "created", None)
        return replace(
            proposal, ref=candidate.ref.name, revision=candidate.ref.revision, created=born,
            parameters=sum(entry.count for entry in candidate.values()), similarity=alignment.coverage,
            status="comparable" if comparable else "not_comparable", later=bool(born and ours and born > ours),
            reason=None if comparable else _why_not(candidate, alignment),
        )  # fmt: skip


def _why_not(candidate: Checkpoint, alignment: Alignment) -> Note:
    """Why a candidate that opened cannot be compared."""
    if candidate.is_adapter:
        return Note("adapter_without_weights", "a LoRA adapter")
    return Note("not_comparable", alignment.explain())


def _related(lineage: Lineage | None) -> list[str]:
    """The nearest models that share an origin with the child, at most `RELATIVES`."""
    if lineage is None:
        return []
    related = [c for c in lineage.candidates if c.relation not in (None, "none") and c.status == "compared"]
    return [c.ref for c in related[:RELATIVES]]
