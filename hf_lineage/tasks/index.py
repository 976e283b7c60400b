"""`Index`: put models into an index, and ask it which of them are related to one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..answers.base import Progress
from ..answers.index import IndexQuery, IndexState
from ..answers.refs import ModelRef
from ..checkpoints.opener import find_repo, open_repo
from ..errors import ArgumentError, LineageError, Note
from ..index.sketch import VERSION, Sketch, sketches
from ..index.store import Member, Store
from .index_search import family_of, matches_in
from .options import Options, versions
from .session import Session
from .trace import trace

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.opener import Model

BATCH = 64  # models that are written at once: so many are done again after a crash
THREADS = 8  # models that are read at once
VERIFIED = 3  # matches that `trace` compares in full

Made = tuple[Member, list[Sketch]]


class Index:
    """Many models in a folder, 2 KB of each (`index/sketch.py`), and questions to all of them at once.

    index = hl.Index("./models.index", create=True)
    index.add(["org/a", "org/b", "./local"])
    index.query("user/child").matches

    path: a folder, or an address that LanceDB knows (`s3://…`, `hf://…`). create: make an empty one where there is
    none. token, allow_pickle: as in `trace`. Needs the extra `index` (LanceDB). Raises `ArgumentError` where there is
    no index, or one of another version.
    """

    def __init__(
        self, path: str | Path, *, create: bool = False, token: str | bool | None = None, allow_pickle: bool = False
    ) -> None:
        self._store = Store(path, create)
        self._token, self._allow_pickle = token, allow_pickle

    def add(self, models: Iterable[str | Path], *, progress: Progress | None = None) -> IndexState:
        """Put models in. One that is there at the same commit is left; one that moved is made anew; local ones always.

        models: repo ids and paths. Each costs its header and at most four ranges of 16 rows. What cannot be read is
        listed in `failed`, and asked again the next time. Written every 64 models: after a crash the same call goes on.
        """
        options, wanted = Options(progress=progress), [*dict.fromkeys(str(model) for model in models)]
        known, failed, counts, read = self._store.revisions(), {}, {"added": 0, "unchanged": 0}, 0
        for done, batch in enumerate(self._made(wanted, known), start=1):
            kept: list[Made] = []
            for ref, made, cost in batch:
                read += cost
                if isinstance(made, LineageError):
                    failed[ref] = str(made)
                elif made is None:
                    counts["unchanged"] += 1
                else:
                    kept.append(made)
            kept = [*{made[0].ref: made for made in kept}.values()]  # two names of one repo
            self._store.add(kept)
            counts["added"] += len(kept)
            if progress:
                progress(min(done * BATCH, len(wanted)), len(wanted), "models")
        self._store.optimize()
        return self._state(options, read, **counts, failed=failed)

    def info(self) -> IndexState:
        """What is in it."""
        return self._state(Options(), 0)

    def query(
        self, child: Model, *, alpha: float = 1e-3, verify: int = VERIFIED, sample: str | float | int | None = None,
        progress: Progress | None = None, seed: int = 0,
    ) -> IndexQuery:  # fmt: skip
        """The models of the index that are related to `child`, itself left out, the most alike first.

        alpha: the chance that any unrelated model of the whole index is listed, proven (`family_wise`). It bounds
        chance: models from one random start are related, and units that were put into another order are not found.
        verify: how many of the first matches `trace` then compares with the child, with `sample` and `seed` as there; 0
        reads nothing but the child's header and at most four ranges of it. Raises what `trace` raises for the child.
        """
        if verify < 0:
            raise ArgumentError(f"Expected `verify` of at least 0, got {verify}.")
        options = Options(alpha=alpha, progress=progress, seed=seed)
        with Session(self._token, self._allow_pickle) as session:
            opened = session.opener.open(child)
            asked = sketches(session.view(opened))
            family = family_of(self._store, asked, alpha)
            matches = matches_in(self._store, opened, asked, family)
            lineage = None
            if verify and matches:
                first = [match.ref for match in matches[:verify]]
                lineage = trace(child, first, alpha=alpha, sample=sample, seed=seed, progress=progress, session=session)
            cost = options.cost(session, 0)
            notes = () if asked else (_no_layers(opened),)
            return IndexQuery(
                child=opened.ref, requested=opened.requested, index=self._store.path,
                layers=tuple(each.layer for each in asked), matches=tuple(matches), family_wise=family, lineage=lineage,
                notes=notes, **{name: cost[name] for name in ("bytes_read", "seconds", "versions")},
            )  # fmt: skip

    def _made(
        self, wanted: Sequence[str], known: dict[str, str | None]
    ) -> Iterator[list[tuple[str, Made | LineageError | None, int]]]:
        """Batches of (ref, its sketches or why there are none; None where it is unchanged, bytes read)."""
        here = threading.local()
        sessions: list[Session] = []

        def make(ref: str) -> tuple[str, Made | LineageError | None, int]:
            if not hasattr(here, "session"):
                here.session = Session(self._token, self._allow_pickle)
                sessions.append(here.session)
            try:
                made, read = _sketched(here.session, ref, known, self._allow_pickle)
            except LineageError as error:
                return ref, error, 0
            return ref, made, read

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                for start in range(0, len(wanted), BATCH):
                    yield [*pool.map(make, wanted[start : start + BATCH])]
        finally:
            for session in sessions:
                session.close()

    def _state(
        self, options: Options, read: int, added: int = 0, unchanged: int = 0, failed: dict[str, str] | None = None
    ) -> IndexState:  # fmt: skip
        counts = self._store.counts()
        return IndexState(
            index=self._store.path, version=VERSION, models=counts["models"], with_sketches=counts["with_sketches"],
            sketches=counts["sketches"], shapes=counts["keys"], added=added, unchanged=unchanged, failed=failed or {},
            bytes_read=read, seconds=options.seconds(), versions=versions(),
        )  # fmt: skip


def _sketched(
    session: Session, text: str, known: dict[str, str | None], allow_pickle: bool
) -> tuple[Made | None, int]:  # fmt: skip
    """A model's sketches, None where it is known at its commit; and the bytes that were read of it."""
    ref = ModelRef.parse(text)
    repo = find_repo(ref, session.hub if ref.kind == "hub" else None)
    if repo.ref.revision is not None and known.get(repo.ref.name) == repo.ref.revision:
        return None, 0
    opened = open_repo(repo, allow_pickle)
    if opened.is_adapter:
        raise LineageError(f"`{repo.ref.name}` is a LoRA adapter and holds no weights of its own{opened.base_hint}.")
    found = sketches(session.view(opened))
    parameters = sum(entry.count for entry in opened.values())
    member = Member(opened.ref.name, opened.ref.revision, parameters, len(found))
    session.forget(opened)
    return (member, found), opened.bytes_read


def _no_layers(opened: Checkpoint) -> Note:
    return Note(
        "no_sketches",
        f"{opened.ref.name} has no layer of hidden units that an index can be asked about.",
        f"See why: hf-lineage coverage {opened.ref.name}",
    )
