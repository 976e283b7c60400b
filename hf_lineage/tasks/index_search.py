"""Which models of an index are related to one, by sketches alone: for `Index.query`, and before the Hub is searched."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..answers.index import FamilyWise, Match
from ..answers.refs import is_repo_id
from ..checkpoints.checkpoint import Checkpoint
from ..errors import LineageError, Note
from ..index.sketch import Sketch, log10_e, similarity, sketches
from ..index.store import Store
from .session import Session

NEIGHBOURS = 50  # of each sketch that are looked at
VARIABLE = "HF_LINEAGE_INDEX"  # of the environment: the index that `trace` asks before it searches the Hub
MOST_ASKED = 8  # matches in it that are compared with the child


def configured() -> str | None:
    """The index of `VARIABLE`: a folder, an address that LanceDB knows, or the id of a data set on the Hub."""
    named = os.environ.get(VARIABLE, "").strip()
    if is_repo_id(named) and "/" in named and not Path(named).exists():
        return f"hf://datasets/{named}"
    return named or None


def relatives_in_index(child: Checkpoint, session: Session, alpha: float) -> tuple[list[str], list[Note]]:
    """The models of the configured index that are related to the child, the most alike first, at most `MOST_ASKED`.

    Where there is an index and it cannot be asked, a note says why. Reads at most four ranges of the child.
    """
    path = configured()
    if path is None:
        return [], []
    try:
        store = Store(path)
        asked = sketches(session.view(child))
        matches = matches_in(store, child, asked, family_of(store, asked, alpha))
    except (LineageError, OSError, RuntimeError, ValueError) as error:  # LanceDB raises the last three
        why = error.note if isinstance(error, LineageError) else Note("index_not_asked", f"{error}"[:200])
        return [], [why.prefixed(f"The index of {VARIABLE} was not asked: ", "index_not_asked")]
    return [match.ref for match in matches[:MOST_ASKED]], []


def family_of(store: Store, asked: Sequence[Sketch], alpha: float) -> FamilyWise:
    """Each model is compared once by all layers of equal depth, and each sketch once with each of the child's."""
    models, sketched = store.size()
    tests = max(1, models + len(asked) * sketched)
    return FamilyWise(tests, alpha, math.log10(tests / alpha))


def matches_in(store: Store, child: Checkpoint, asked: Sequence[Sketch], family: FamilyWise) -> list[Match]:
    """The models whose evidence reaches the bound of the family, itself left out, the most alike first."""
    near = {each.ref for one in asked for each in store.nearest(one, NEIGHBOURS)}
    near -= {child.ref.name}
    revisions = store.revisions() if near else {}
    found = []
    for ref, theirs in store.sketches_of(sorted(near)).items():
        match = match_of(ref, revisions.get(ref), asked, theirs)
        if match is not None and match.log10_e >= family.least_log10_e:
            found.append(match)
    # e-values end at 1/Πh!, where many relatives have the same: what ranks is the test's statistic
    return sorted(found, key=lambda match: (-len(match.layers) * match.similarity, match.ref))


def match_of(ref: str, revision: str | None, asked: Sequence[Sketch], theirs: Sequence[Sketch]) -> Match | None:
    """The surer of: all layers at equal depth together; the one pair of layers that is most alike."""
    level = [(a, b) for a in asked for b in theirs if (a.key, a.slot) == (b.key, b.slot)]
    every = [(a, b) for a in asked for b in theirs if a.key == b.key]
    if not every:
        return None
    best = max(every, key=lambda pair: similarity(pair[0].values, pair[1].values))
    groups = [group for group in (level, [best]) if group]
    values = [log10_e([(a.values, b.values) for a, b in group]) for group in groups]
    chosen = groups[max(range(len(groups)), key=lambda i: values[i])]
    alike = sum(similarity(a.values, b.values) for a, b in chosen) / len(chosen)
    return Match(ref, revision, max(values), alike, tuple((a.layer, b.layer) for a, b in chosen))
