"""Alignment: which tensor of a candidate is compared with which of the child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .conventions import POSITIONS, VOCABULARY, Shaped, canonical_names
from .describe import FLOATS, MIN_COVERAGE, MIN_SHARED_VOCABULARY, Architecture, describe, short_names


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which tensor of the candidate is compared with which of the child.

    pairs: child's name → candidate's name. unmatched: the child's weights without a partner, and why. coverage: share
    of the child's trunk, in elements, that has a partner, in [0, 1]. grown: tables with a row per token of which one
    has more rows, (child's, candidate's); the rows of the shorter are the first of the longer, and only those are
    compared. alternatives: 0 where names tell what lines up; else, where order and shapes do, the number of ways among
    which the weights chose, 1 if there was but one.
    """

    pairs: dict[str, str]
    unmatched: dict[str, str]
    coverage: float
    grown: dict[str, tuple[int, int]]
    alternatives: int = 0

    @property
    def comparable(self) -> bool:
        """Whether enough of the child has a partner to compare the candidate."""
        return self.coverage >= MIN_COVERAGE

    def explain(self) -> str:
        """Why the candidate is not comparable: the share with a partner, and the first tensor without one."""
        share = f"{100 * self.coverage:.0f} % of the child's weights have a partner of the same name and shape"
        if not self.unmatched and not self.pairs:
            return "the child holds no weights that can be compared: its tensors are integers, or have no elements"
        if not self.unmatched:
            return share
        name = min(self.unmatched)
        return f"only {share}; for example {name}: {self.unmatched[name]}"


def align(
    child: Mapping[str, Shaped], candidate: Mapping[str, Shaped], architecture: Architecture | None = None
) -> Alignment:
    """Align two checkpoints by canonical name and equal shape; `architecture` is the child's, if already known."""
    ours, short_of, theirs = architecture or describe(child), short_names(child), canonical_names(candidate)
    pairs: dict[str, str] = {}
    unmatched: dict[str, str] = {}
    grown: dict[str, tuple[int, int]] = {}
    for name in ours.weights:
        short = short_of[name]
        partner = theirs.get(short)
        if partner is None:
            unmatched[name] = "no such tensor in the candidate"
        elif candidate[partner].dtype not in FLOATS:
            unmatched[name] = f"dtype {candidate[partner].dtype} is no float"
        elif candidate[partner].shape == child[name].shape:
            pairs[name] = partner
        elif is_grown(short, child[name].shape, candidate[partner].shape):
            pairs[name] = partner
            grown[name] = (child[name].shape[0], candidate[partner].shape[0])
        else:
            unmatched[name] = _misfit(short, child[name].shape, candidate[partner].shape)
    total = sum(child[name].count for name in ours.trunk)
    matched = sum(_shared(child[name].count, grown.get(name)) for name in ours.trunk if name in pairs)
    return Alignment(pairs, unmatched, matched / total if total else 0.0, grown)


def guessed(
    found: Alignment, child: Mapping[str, Shaped], architecture: Architecture, copies: Mapping[str, str],
    alternatives: int,
) -> Alignment:  # fmt: skip
    """The alignment with a candidate that was brought into the child's layout, by one of `alternatives` ways.

    copies: the child's tensors that stand for the same one of the candidate as another of the child's; they count as
    covered with that.
    """
    copies = {name: first for name, first in copies.items() if first in found.pairs and name in found.unmatched}
    total = sum(child[name].count for name in architecture.trunk)
    more = sum(child[name].count for name in architecture.trunk if name in copies)
    why = {name: f"stands for the same matrix as {first}" for name, first in copies.items()}
    coverage = found.coverage + (more / total if total else 0.0)
    return replace(found, unmatched=found.unmatched | why, coverage=coverage, alternatives=alternatives)


def covers(candidate: Mapping[str, Shaped], theirs: Architecture, alignment: Alignment) -> bool:
    """Whether enough of the candidate's trunk has a partner, too: `align` asked the other way round, from its result.

    `theirs`: the candidate's architecture; `alignment`: of some child with it.
    """
    partner_of = {partner: name for name, partner in alignment.pairs.items()}
    total = matched = 0
    for name in theirs.trunk:
        total += candidate[name].count
        if own := partner_of.get(name):
            rows = alignment.grown.get(own)
            matched += _shared(candidate[name].count, rows and (rows[1], rows[0]))
    return matched >= MIN_COVERAGE * total > 0


def is_grown(short: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether one of two tables with a row per token begins with the rows of the other, by name and shapes."""
    if not VOCABULARY.search(short) or len(ours) != 2 or ours[1:] != theirs[1:]:
        return False
    return min(ours[0], theirs[0]) >= MIN_SHARED_VOCABULARY * max(ours[0], theirs[0])


def _misfit(short: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    reason = f"shape {list(ours)} against {list(theirs)}"
    if POSITIONS.search(short):
        return f"{reason}: a position table of another length is interpolated, no entry stays what it was"
    if VOCABULARY.search(short) and ours[1:] == theirs[1:]:
        return f"{reason}: less than half of the vocabulary is shared"
    return reason


def _shared(count: int, rows: tuple[int, int] | None) -> int:
    return count * min(rows) // rows[0] if rows else count
