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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .architecture import Architecture, align, describe
from .conventions import cuts
from .errors import ArgumentError, HubUnavailableError, LineageError
from .hub.candidates import claims_of
from .hub.checkpoint import Checkpoint, FileCheckpoint
from .hub.opener import Opener, identity
from .hub.view import View
from .proposals import Proposal, Proposals
from .question import base_of, versions
from .records import Lineage, ModelRef, is_repo_id

if TYPE_CHECKING:
    from pathlib import Path

    from .hub.listing import Listed
    from .records import Claim, Progress

MOST_MODELS, MOST_REQUESTS, MOST_BYTES = 64, 400, 256 << 20
SIBLINGS = 20  # other children of one base that are looked at
BASES = 4  # generations of declared bases that are walked up
RELATIVES = 3  # models found to be related whose own bases and their children are looked at
NARROW, WIDE = 0.03, 0.5  # the share by which a number of parameters may differ: another head, another vocabulary
KEPT = 8 << 20  # bytes of a candidate kept in memory, since a wider ring asks for them again
TEXT = 200_000  # bytes of a README that are searched for the Trainer's sentence

# what transformers' Trainer writes; only this sentence, with the id twice
_TRAINED = re.compile(r"This model is a fine-tuned version of \[([^\]\s]+)\]\(https://huggingface\.co/([^)\s]+)\)")
_WORD = re.compile(r"[A-Za-z0-9.]+")
Ring = Callable[[], Iterator[tuple[str, str, "Listed | None"]]]


def find_candidates(
    child: str | Path | ModelRef, *, most: int = MOST_MODELS, max_requests: int = MOST_REQUESTS,
    max_bytes: int = MOST_BYTES, token: str | bool | None = None, allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Proposals:  # fmt: skip
    """Models on the Hub (offline: in the cache) that could be the child's parent, and why. Reads no weights.

    most: comparable models to stop at. max_requests, max_bytes: of headers and listings; what was found until then is
        returned, with a note. An anonymous user may send 500 requests to the API and 3,000 for files in five minutes.
    token, allow_pickle, progress: as in `trace`, whose `candidates=None` searches the same way, ring by ring, and stops
        when one candidate is enough.

    Raises `ModelNotFoundError`, `CheckpointError`, `HubUnavailableError` for the child, `ArgumentError`. What goes
    wrong with anything else is told in the notes.
    """
    if min(most, max_requests, max_bytes) < 1:
        raise ArgumentError(f"Expected limits above 0, got {min(most, max_requests, max_bytes)}.")
    started = time.monotonic()
    opener = Opener(token, allow_pickle)
    search = Search(opener.open(child), opener, most, max_requests, max_bytes, progress)
    while search.widen():
        pass
    return replace(search.proposals(), seconds=round(time.monotonic() - started, 3))


class Search:
    """The search for one child: `widen` looks at the next ring, `refs` are the candidates so far."""

    def __init__(
        self, child: Checkpoint, opener: Opener, most: int = MOST_MODELS, max_requests: int = MOST_REQUESTS,
        max_bytes: int = MOST_BYTES, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.child, self._opener, self._progress = child, opener, progress
        self._most, self._max_requests, self._max_bytes = most, max_requests, max_bytes
        self._rings: list[Ring] = [self._declared, self._family, self._alike, self._wider]
        self._found: dict[str, Proposal] = {}  # by the name it was first met under
        self._listed: dict[str, Listed] = {}
        self._ids: set[tuple] = {identity(child)}
        self._asked_around: set[str] = set()
        self._troubles: list[str] = []

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

        With the answer about the candidates so far, relatives in it are asked for theirs instead of going wider.
        """
        before = len(self.refs)
        related = _related(lineage)
        if related:
            self._rings = [lambda: self._around(related)] if set(related) - self._asked_around else []
        while self._rings and not self._spent:
            try:
                self._look(self._rings.pop(0)())
            except LineageError as error:
                self._troubles.append(f"The search stopped early: {error}")
                if isinstance(error, HubUnavailableError):
                    self._rings = []
            if len(self.refs) > before:
                return True
        return False

    def proposals(self) -> Proposals:
        """Everything that was looked at, comparable models first."""
        statuses = ("comparable", "unreadable", "not_comparable")
        ranked = sorted(self._found.values(), key=lambda proposal: statuses.index(proposal.status))
        return Proposals(
            self.child.ref, self.child.requested, tuple(ranked), tuple(self.notes), self.requests,
            self._opener.bytes_read, versions=versions(),
        )  # fmt: skip

    @property
    def requests(self) -> int:
        """Requests sent to the Hub so far."""
        return self._opener.requests

    @property
    def notes(self) -> list[str]:
        """What cut the search short, if anything did."""
        return [*dict.fromkeys(self._troubles), *([self._spent] if self._spent else [])]

    def rules(self, ref: str) -> tuple[str, ...]:
        """Why a candidate was looked at; nothing for one that was not found here."""
        return next((p.rules for name, p in self._found.items() if ref in (name, p.ref)), ())

    @property
    def _spent(self) -> str:
        comparable = sum(proposal.status == "comparable" for proposal in self._found.values())
        if comparable >= self._most:
            return f"The search stopped at {comparable} comparable models; there may be more."
        if self.requests >= self._max_requests:
            return f"The search stopped after {self.requests} requests; there may be more candidates."
        if self._opener.bytes_read >= self._max_bytes:
            return f"The search stopped after {self._opener.bytes_read:,} bytes; there may be more candidates."
        return ""

    # The rings: (repo id, rule, what a listing told of it), the best first

    def _declared(self) -> Iterator[tuple[str, str, Listed | None]]:
        for claim in self.claims:
            yield claim.ref, f"declared: {claim.source}", None

    def _family(self) -> Iterator[tuple[str, str, Listed | None]]:
        """The Trainer's sentence, then bases of bases, then other models made from any of them."""
        text = self.child.repo.read_optional("README.md", TEXT).decode("utf-8", "replace") if self.child.repo else ""
        for label, target in _TRAINED.findall(text)[:1]:
            if label == target and is_repo_id(label):
                yield label, "the card's text", None
        bases = [name for name in self._found if self._found[name].status != "unreadable"]
        above = list(self._above(bases))
        yield from above
        for base in dict.fromkeys([*bases, *(name for name, _, _ in above)]):
            yield from self._made_from(base)

    def _above(self, names: Sequence[str]) -> Iterator[tuple[str, str, Listed | None]]:
        """The bases that cards of `names` declare, theirs, and so on."""
        level, seen = [*names], {*names}
        for _ in range(BASES):
            higher = []
            for name in level:
                for base in self._bases(name):
                    if base not in seen:
                        seen.add(base)
                        higher.append(base)
                        yield base, f"base of {name}", None
            level = higher

    def _bases(self, name: str) -> Sequence[str]:
        if name in self._listed:
            return self._listed[name].bases
        try:
            return [claim.ref for claim in claims_of(self._opener.open(name))]
        except LineageError:  # it stands among the unreadable ones
            return ()

    def _made_from(self, base: str) -> Iterator[tuple[str, str, Listed | None]]:
        name = self._found[base].ref if base in self._found else base
        if is_repo_id(name):
            yield from self._list(f"made from {name}", filters=[f"base_model:{name}"], limit=SIBLINGS)

    def _alike(self) -> Iterator[tuple[str, str, Listed | None]]:
        """The same architecture and about as many parameters."""
        size = (round(self._size * (1 - NARROW)), round(self._size * (1 + NARROW)))
        yield from ((name, "in the cache", None) for name in self._opener.cached)
        for text in self._kind:
            yield from self._list("same architecture and size", filters=[text], parameters=size)
        for text in self._timm:
            yield from self._list("a timm variant", author="timm", search=text)
            yield from self._list("same architecture and size", search=text, parameters=size)
        yield from self._list("same size", filters=["safetensors"], parameters=size)

    def _wider(self) -> Iterator[tuple[str, str, Listed | None]]:
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

    def _around(self, related: Sequence[str]) -> Iterator[tuple[str, str, Listed | None]]:
        """The declared bases of models that turned out to be related, and what was made from these or those."""
        self._asked_around |= {*related}
        names = [name for name, proposal in self._found.items() if proposal.ref in related or name in related]
        above = list(self._above(names))
        yield from above
        for base in dict.fromkeys([*(ref for ref, _, _ in above), *names]):
            yield from self._made_from(base)

    def _list(self, rule: str, **asked: Any) -> Iterator[tuple[str, str, Listed | None]]:
        if self._opener.hub.offline:
            return
        from .hub.listing import listing

        for found in listing(self._opener.hub, **asked):
            yield found.id, rule, found

    @property
    def _kind(self) -> list[str]:
        return self._words("model_type")

    @property
    def _timm(self) -> list[str]:
        return self._words("architecture")

    def _words(self, key: str) -> list[str]:
        """What the config calls the architecture: none or one, as long as a tag can be."""
        text = self._source.config.get(key)
        return [text[:60]] if isinstance(text, str) and text else []

    # Looking at what they yield

    @cached_property
    def _size(self) -> int:
        return max(1, sum(entry.count for entry in self._source.values()))

    @cached_property
    def _source(self) -> Checkpoint:
        """The child, or the base in an adapter's place."""
        try:
            return base_of(self.child, self._opener) if self.child.adapter_base else self.child
        except LineageError:
            return self.child

    @cached_property
    def _view(self) -> View:
        return View(self._source, cuts(self._source))

    def _look(self, ring: Iterable[tuple[str, str, Listed | None]]) -> None:
        """Open what a ring yields, a few at once, until the budget is spent."""
        batch: dict[str, tuple[str, Listed | None]] = {}
        for name, rule, listed in ring:
            if listed is not None:
                self._listed[name] = listed
            if name in self._found:
                known = self._found[name]
                self._found[name] = replace(known, rules=tuple(dict.fromkeys([*known.rules, rule])))
            elif name not in batch and name != self.child.ref.name:
                batch[name] = (rule, listed)
            if len(batch) >= 8:
                self._open(batch)
                batch = {}
            if self._spent:
                break
        self._open(batch)

    def _open(self, batch: dict[str, tuple[str, Listed | None]]) -> None:
        opened, refused = self._opener.open_all([*batch])
        failed = {candidate.requested: candidate for candidate in refused}
        ready = {checkpoint.requested: checkpoint for checkpoint in opened}
        for name, (rule, listed) in batch.items():
            proposal = Proposal(name, None, (rule,), "unreadable")
            if listed is not None:
                proposal = replace(
                    proposal, revision=listed.sha, parameters=listed.parameters, downloads=listed.downloads,
                    created=listed.created,
                )  # fmt: skip
            if name in failed:
                self._found[name] = replace(proposal, reason=" ".join(failed[name].reasons))
            elif identity(ready[name]) not in self._ids:
                self._ids.add(identity(ready[name]))
                self._found[name] = self._compared(proposal, ready[name])
        if self._progress and batch:
            self._progress(min(self.requests, self._max_requests), self._max_requests, "looking for candidates")

    def _compared(self, proposal: Proposal, candidate: Checkpoint) -> Proposal:
        if isinstance(candidate, FileCheckpoint) and candidate.remote:
            candidate.keep(KEPT)
        alignment = align(self._view, View(candidate, cuts(candidate)), self._architecture)
        comparable = alignment.comparable and not candidate.adapter_base
        born, ours = getattr(candidate.repo, "created", None), getattr(self.child.repo, "created", None)
        return replace(
            proposal, ref=candidate.ref.name, revision=candidate.ref.revision, created=born,
            parameters=sum(entry.count for entry in candidate.values()), similarity=alignment.coverage,
            status="comparable" if comparable else "not_comparable", later=bool(born and ours and born > ours),
            reason="" if comparable else "a LoRA adapter" if candidate.adapter_base else alignment.explain(),
        )  # fmt: skip

    @cached_property
    def _architecture(self) -> Architecture:
        return describe(self._view)


def _related(lineage: Lineage | None) -> list[str]:
    """The nearest models that share an origin with the child, at most `RELATIVES`."""
    if lineage is None:
        return []
    related = [c for c in lineage.candidates if c.relation not in (None, "none") and c.status == "compared"]
    return [c.ref for c in related[:RELATIVES]]
