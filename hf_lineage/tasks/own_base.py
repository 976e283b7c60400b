"""Where the model that seems to be the parent was itself trained from another one: is that one the parent in its place?

A light fine-tune X of a public base R lies so near to R that roundings cannot tell the two apart: asked about a heavier
sibling, X looks like its parent. But X alone shows the mark of having been trained in its half precision
(`weights/history.py`), and no order is said. X is called the parent only where its own base was compared, too, and the
child has inherited X's step from it (`weights/direction/inheritance.py`). The base that X declares is compared unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..answers.lineage import Candidate
from ..checkpoints.claims import claims_of
from ..weights.direction.candidates import CandidatePair
from ..weights.direction.order import is_elder, shares
from ..weights.evidence import PairReadings
from .session import Question, ask
from .verdict import OR_ITS_BASE, order

MOST_UNSHOWN = 0.9  # of what nobody else has, where one of two is the parent and their steps do not show which
MOST = 2  # declared bases that are looked at unasked
Key = tuple[str, str | None]  # ref and revision of a candidate


def key(candidate: Candidate) -> Key:
    """What a candidate is known by among those of one question."""
    return candidate.ref, candidate.revision


def is_open(candidate: Candidate) -> bool:
    """Whether the candidate came first, or the base that it was itself trained from (`verdict.py`)."""
    position = candidate.order.position if candidate.order else None
    return bool(candidate.facts.get("own_base") and (position or 0.0) > 0)


def declared_elsewhere(question: Question, candidate: Candidate) -> list[str]:
    """What the candidate's files name as its base, as far as it was not compared, and can be read; where the candidate
    may be a sibling that moved less. Of a local one only where it shows a base of its own: its name is no secret then.
    """
    if not (is_open(candidate) or (candidate.order is not None and candidate.order.radius)):
        return []
    model = next(
        (m for m in question.opened if (m.ref.name, m.ref.revision) == (candidate.ref, candidate.revision)), None
    )
    if model is None or model.ref.kind == "module" or question.asked.ref.kind == "module" or question.modules:
        return []
    if model.ref.kind != "hub" and not is_open(candidate):
        return []
    named = [claim.ref for claim in claims_of(model) if claim.status != "not_understood"]
    known = [m.requested for m in question.opened] + [question.asked.requested, candidate.requested]
    same = question.session.opener.same_model
    there = [Candidate(m.ref.name, m.requested, m.ref.revision) for m in (*question.opened, question.asked)]
    missing = [ref for ref in dict.fromkeys(named) if ref not in known and not any(same(ref, c) for c in there)]
    opened, _ = question.session.opener.open_all(missing[:MOST])  # what cannot be read is no candidate of anybody's
    return [model.requested for model in opened]


def with_bases(question: Question, bases: Sequence[str]) -> Question:
    """The same question with more candidates."""
    asked = [model.requested for model in question.opened]
    return ask(
        question.session, question.asked.requested, [*asked, *bases, *(c.requested for c in question.unreadable)]
    )


def base_behind(ranked: Sequence[Candidate], pairs: Mapping[Key, PairReadings]) -> Candidate | None:
    """The candidate from which the first one came, where the child has inherited the first one's step from it.

    Where the steps between the first and the child show no order, the first one must not have inherited the child's
    step, either: else it may have been trained on from the child.
    """
    first, *others = ranked
    ours = pairs.get(key(first))
    position = first.order.position if first.order else None
    if ours is None or first.relation != "common_origin" or (position or 0.0) < 0:
        return None
    for base in others:
        theirs = pairs.get(key(base))
        if theirs is None or base.relation in (None, "none"):
            continue
        both = CandidatePair(ours, theirs)
        if is_elder(both.order(back=True)) and both.inherited():
            return base if is_open(first) or both.inherited(back=True) is False else None
    return None


def confirmed(
    ranked: Sequence[Candidate], base: Candidate, none: float | None
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    """The candidates where the first is the parent indeed, and the probability of none of them.

    Of what "none" held the first one gets the share of the order in which it came first; where the steps between it
    and the child show none, the most that is given to what they do not show.
    """
    first, *others = ranked
    place = first.order
    held = (first.probability or 0.0) + (none or 0.0)
    share = MOST_UNSHOWN
    if place is not None and is_open(first):
        assert place.position is not None and place.stderr is not None
        share = shares(place.position, place.stderr)[0]
        place = replace(place, reason=place.reason.removesuffix(OR_ITS_BASE))
    probability = max(first.probability or 0.0, held * share)
    facts = {name: fact for name, fact in first.facts.items() if name not in ("own_base", "older")} | {
        "first": "candidate", "inherited_from": base.ref,
    }  # fmt: skip
    relation = "finetune" if first.relation == "common_origin" else first.relation
    found = replace(first, probability=probability, relation=relation, facts=facts, order=place)
    return [found, *others], None if none is None else held - probability


def either(ranked: Sequence[Candidate], none: float | None) -> tuple[list[Candidate], float | None]:
    """The candidates where the first, or another that is shown to be older, is the parent: the two get the same."""
    first, *others = ranked
    older = next((c for c in others if c.first == "candidate" and c.order is not None and c.order.radius), None)
    if older is None or none is None:
        return list(ranked), none
    total = (first.probability or 0.0) + (older.probability or 0.0) + none
    share = total * MOST_UNSHOWN / 2
    same = {id(c): replace(c, probability=share) for c in (first, older)}
    return sorted((same.get(id(c), c) for c in ranked), key=order), total - 2 * share
