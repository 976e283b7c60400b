"""Where the model that seems to be the parent was itself trained from another one: is that one the parent in its place?

A light fine-tune X of a public base R lies so near to R that roundings cannot tell the two apart: asked about a heavier
sibling, X looks like its parent. But X alone shows the mark of having been trained in its half precision
(`weights/history.py`), and no order is said. X is called the parent only where its own base was compared, too, and the
child lies behind X. With c the child, and for steps that are not correlated,

    ‖c − R‖² = ‖c − X‖² + ‖X − R‖² if c came from X,      ‖c − X‖² = ‖c − R‖² + ‖X − R‖² if it came from R.

Siblings that were tuned alike share a part of their steps: where the child moved far more than X that part decides, and
nothing is said. The base that X declares is compared unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..answers.lineage import Candidate, Lineage
from ..checkpoints.claims import claims_of
from ..errors import LineageError
from ..weights.direction.order import shares
from ..weights.evidence import lies_behind
from .options import Options
from .session import Question, ask
from .verdict import OR_ITS_BASE, order

EITHER = 0.9  # of what nobody else has, where one of two is the parent and which of them does not show
MOST = 2  # declared bases that are looked at unasked
Answer = Callable[[Question, Options], Lineage]


def is_open(candidate: Candidate) -> bool:
    """Whether the candidate came first, or the base that it was itself trained from (`verdict.py`)."""
    position = candidate.order.position if candidate.order else None
    return bool(candidate.facts.get("own_base") and (position or 0.0) > 0)


def declared_elsewhere(question: Question, candidate: Candidate) -> list[str]:
    """What the candidate's files name as its base, as far as it was not compared; and can be read."""
    model = next(
        (m for m in question.opened if (m.ref.name, m.ref.revision) == (candidate.ref, candidate.revision)), None
    )
    if model is None or model.ref.kind == "module" or question.asked.ref.kind == "module" or question.modules:
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


def is_behind(question: Question, ranked: Sequence[Candidate], options: Options, answer: Answer) -> bool:
    """Whether one of the other candidates is shown to be the base of the first, and the child lies behind the first."""
    first, *others = ranked
    related = [c for c in others if c.status == "compared" and c.relation not in (None, "none") and c.distance]
    if not related or question.modules or not first.distance:
        return False
    alone = replace(options, tree=False, older=False, evidence=("weights",), spent=question.session.bytes_read)
    try:
        found = answer(ask(question.session, first.requested, [c.requested for c in related]), alone)
    except LineageError:
        return False
    by_ref = {(c.ref, c.revision): c for c in related}
    for base in found.candidates:
        beside = by_ref.get((base.ref, base.revision))
        if beside is None or base.first != "candidate" or not base.distance or beside.distance is None:
            continue
        if lies_behind(first.distance, beside.distance, base.distance):
            return True
    return False


def confirmed(ranked: Sequence[Candidate], none: float | None) -> tuple[list[Candidate], float | None]:
    """The candidates where the first is the parent indeed, and the probability of none of them.

    Of what "none" held the first one gets the share of the order in which it came first.
    """
    first, *others = ranked
    place = first.order
    assert place is not None and place.position is not None and place.stderr is not None
    held = (first.probability or 0.0) + (none or 0.0)
    probability = max(first.probability or 0.0, held * shares(place.position, place.stderr)[0])
    facts = {name: fact for name, fact in first.facts.items() if name not in ("own_base", "older")} | {
        "first": "candidate"
    }
    relation = "finetune" if first.relation == "common_origin" else first.relation
    place = replace(place, reason=place.reason.removesuffix(OR_ITS_BASE))
    found = replace(first, probability=probability, relation=relation, facts=facts, order=place)
    return [found, *others], None if none is None else held - probability


def either(ranked: Sequence[Candidate], none: float | None) -> tuple[list[Candidate], float | None]:
    """The candidates where the first, or another that is shown to be older, is the parent: the two get the same."""
    first, *others = ranked
    older = next((c for c in others if c.first == "candidate" and c.order is not None and c.order.radius), None)
    if older is None or none is None:
        return list(ranked), none
    total = (first.probability or 0.0) + (older.probability or 0.0) + none
    share = total * EITHER / 2
    same = {id(c): replace(c, probability=share) for c in (first, older)}
    return sorted((same.get(id(c), c) for c in ranked), key=order), total - 2 * share
