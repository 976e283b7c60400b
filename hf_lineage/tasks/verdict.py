"""Evidence → ranked candidates, relations, claims, verdict. The probabilities' own rule is in `tasks/calibration.py`.

The rule, in five lines:
1. Everything about a pair comes from the pair: related is who has p_raw ≤ alpha; what was done is `weights/edits.py`.
2. An order is stated where a change runs one way (a copy in a smaller format, rounding, pruning, a few tokens more),
   where the steps between the two tell (`weights/direction/order.py`), or where the weights moved far and the origin
   lies behind one of the two (`weights/direction/origin.py`); else none is.
3. The probability is `calibration`'s, from what tells that the two stand next to each other and from the share of the
   candidate having come first: 1 − α and α for one-way changes, ½ where no order shows, 1 where the caller says that
   the candidates are older and nothing else shows, and α for a candidate that an ample test finds unrelated. No
   probability is above that share, and the two directions of a pair add up to at most 1. A copy and a cast have 1;
   full copies have it both ways.
4. *Parent* is said of the most probable candidate if its p_value ≤ alpha, its probability ≥ ½, and it came first.
5. Related, and no order shown: `common_origin`; nobody related: `none`; what could not be tested: `undecided`, and so
   is who passes the test by the places of its hidden units alone (`weights/agreement.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..answers.lineage import (
    NO_RELATIVE,
    PARENT_RELATIONS,
    Candidate,
    Claim,
    ClaimStatus,
    Order,
    Relation,
    Verdict,
)
from ..errors import Note
from ..weights.direction.candidates import CandidatePair
from ..weights.direction.order import SURE, is_elder
from ..weights.direction.order import Order as PairOrder
from ..weights.direction.origin import NO_ORDER, Direction, fitted_numbers, order_by_position
from ..weights.edits import ONE_WAY, EditKind, are_added_tokens
from ..weights.evidence import PairReadings, WeightsComparison, WeightsEvidence, has_ample_power
from ..weights.permutation_test import holm
from ..weights.unit_matching import RELATED_SCORE
from .calibration import Features, probabilities

# What hidden units that were put in order count for in place of −log10 p: none of 13,873 unrelated models has them
PERMUTATION_EVIDENCE = 4.0
RELATED_Z = 4.0  # Fisher's z of a correlation above which a candidate counts as related in the features
OPEN = ("not_testable", "not_understood")  # of a claim: it may mean any model
FROZEN = 0.05  # share of the compared weights that must be untouched to speak of frozen parts
ALIKE_ROWS = 0.5  # correlation of the rows of two token tables from which they are the same tokens
MIN_COPIED_ROWS, MIN_COPIED = 4, 0.002  # rows that are nearly equal from which something was copied, and their share
MAX_MOVED = 2.0  # norms that a step from a parent may have: beyond them next to nothing of it is left
MOST_COMPARED = 3  # candidates, the likeliest ones, of which it is asked whether the child came from them or their base
FAR_NEARER = 2.0  # times as near as a claimed base, from which another relative speaks against the claim
OR_ITS_BASE = ", or the model that it was itself trained from"  # of an order's reason
First = Literal["candidate", "child", "neither"] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """What else is known of child and candidate; nothing of it depends on the other candidates.

    `same_names`: its tensors are exactly the child's, heads included.  `trunk`: the child's trunk as far as it was
    read, None where rows of it were left out, or tensors that cannot be compared.  `grown`: rows of token tables
    (child's, its).
    `made`, `undone`: what was done to it to get the child, and the reverse (`edits.summarise_edits`), asked if needed.
    `layers`: how the numbers and positions of their layers differ (`depth.changed_layers`), asked if needed.
    `permutation`: how its hidden units were found in another order, None if they were not; `rescaled`: in another
    scale, too. `order`: what the steps between the two tell of who came first, asked if needed. `alternatives`: of an
    alignment that names do not tell, `Alignment.alternatives`. `shared`: the parts that are all that the two have in
    common (`components.shared_part`), asked if needed. `agreement`: how many hidden units two matchings pair alike
    (`weights/agreement.py`), why that could not be read, None where it was not asked; `copied`: what is equal row by
    row (`hidden_permutation.copied_rows`); `hidden`: why units that show nothing may yet be the candidate's; all
    asked if needed.
    """

    same_names: bool
    trunk: frozenset[str] | None
    grown: Mapping[str, tuple[int, int]]
    made: Callable[[], tuple[EditKind, dict[str, Any]]]
    undone: Callable[[], tuple[EditKind, dict[str, Any]]]
    layers: Callable[[], dict[str, Any] | None] = lambda: None
    permutation: dict[str, Any] | None = None
    rescaled: bool = False
    order: Callable[[], PairOrder | None] = lambda: None
    alternatives: int = 0
    shared: Callable[[], list[str] | None] = lambda: None
    agreement: Callable[[], dict[str, Any] | Note | None] = lambda: None
    copied: Callable[[], dict[str, Any]] = dict
    hidden: Callable[[], Note | None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Judged:
    """One pair judged by itself: its relation, the facts behind it, and who came first.

    `order`: shares of the three orders; `first`: of the candidate having come first, if one was made from the other;
    `certain`: a copy or a cast, whose probability is 1 if nobody else's is; `same_trunk`: every weight of the child's
    trunk is equal. `why`: why a pair that shows nothing is left open. `measured`: what the steps between the two tell.
    """

    relation: Relation | None
    facts: dict[str, Any]
    order: Direction
    first: float
    certain: int = 0
    same_trunk: bool = False
    why: Note | None = None
    measured: PairOrder | None = None


def judge(
    candidates: Sequence[Candidate], comparison: WeightsComparison, pairs: Sequence[Pair], heads: frozenset[str],
    sizes: Mapping[str, int], alpha: float, older: bool = False, prior: float | None = None,
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    """Fill in the numbers of the compared candidates; returns them and the probability of "none" (None: no candidate).

    Where the test applies to no candidate, there are probabilities and no p-values. `older`: the caller says that the
    candidates are older than the child.
    """
    found = list(comparison.evidence.values())
    tested = [i for i, item in enumerate(found) if item.log10_p is not None]
    adjusted = dict(zip(tested, holm([found[i].log10_p or 0.0 for i in tested]), strict=True))
    alone = [_judge_pair(item, pair, heads, sizes, alpha) for item, pair in zip(found, pairs, strict=True)]
    if older:
        alone = [_told_older(each, pair, item, alpha) for each, pair, item in zip(alone, pairs, found, strict=True)]
    features = _features(comparison, pairs, alone)
    shares, none = _handed_out(alone, features, [*comparison.pairs.values()], alpha, prior)
    judged = []
    for i, (candidate, item, pair) in enumerate(zip(candidates, found, alone, strict=True)):
        judged.append(
            replace(
                candidate,
                probability=float(shares[i]),
                p_value=10.0 ** adjusted[i] if i in adjusted else None,
                p_raw=10.0 ** (item.log10_p or 0.0) if i in adjusted else None,
                p_method=item.p_method,
                log10_p=adjusted.get(i),
                distance=item.distance,
                relation=pair.relation,
                facts=pair.facts,
                reasons=(*candidate.reasons, *([pair.why] if pair.why else [])),
                order=_reported(pair.measured),
                evidence={
                    **candidate.evidence,
                    "weights": item,
                    "calibration": features[i],
                    "direction": pair.order,
                },
            )
        )
    return judged, (none if found else None)


def conclude(candidates: Sequence[Candidate], alpha: float) -> tuple[Verdict, str | None]:
    """The verdict and the parent's ref, from candidates in their final order.

    What one of them is (`parent`, `identical`) holds whoever else could not be read; what none of them is does not.
    """
    verdict, parent = _of_compared(candidates, alpha)
    if verdict not in ("parent", "identical") and any(c.status == "unreadable" for c in candidates):
        return "undecided", None
    return verdict, parent


def _of_compared(candidates: Sequence[Candidate], alpha: float) -> tuple[Verdict, str | None]:
    compared = [c for c in candidates if c.status == "compared"]
    best = compared[0] if compared else None
    if best is None or (all(c.p_value is None for c in compared) and best.relation != "identical"):
        return "undecided", None
    related = best.p_value is not None and best.p_value <= alpha
    tied = len(compared) > 1 and math.isclose(compared[1].probability or 0, best.probability or 0, rel_tol=1e-9)
    sure = related and not tied and (best.probability or 0) >= 0.5
    if best.relation == "identical":  # equality needs no test, naming a parent does
        return "identical", best.ref if sure else None
    if sure and best.relation in PARENT_RELATIONS and best.first == "candidate":
        return "parent", best.ref
    if all(_is_unrelated(c, alpha) for c in compared):
        return "none", None
    if related and not tied and best.relation not in (None, "none"):
        return "common_origin", None
    return "undecided", None


def known_none(none: float | None, verdict: Verdict, candidates: Sequence[Candidate]) -> float | None:
    """The probability that none of the candidates is the parent: not known where one that was not read may be it, nor
    where nothing but that is left undecided."""
    is_none = none is not None and all(c.relation == "none" for c in candidates if c.status == "compared")
    open_ = any(c.status == "unreadable" for c in candidates) or is_none
    return None if verdict == "undecided" and open_ else none


def _is_unrelated(candidate: Candidate, alpha: float) -> bool:
    """Whether it was tested, with a test that could have shown a small enough p-value, and shows no common origin."""
    if candidate.relation in (None, "identical", "head_changed") or candidate.p_value is None:
        return False
    if candidate.disguised and candidate.relation != "none":  # found by a measured rate, which many candidates use up
        return False
    weights = candidate.evidence.get("weights")
    at_floor = isinstance(weights, WeightsEvidence) and weights.at_floor
    return candidate.relation == "none" or (candidate.p_value > alpha and not at_floor)


def weigh_claims(
    claims: Sequence[Claim], candidates: Sequence[Candidate], parent: str | None,
    same: Callable[[str, Candidate], bool], circular: bool = False,
) -> tuple[list[Claim], list[str]]:  # fmt: skip
    """Each claim's status, and the parent if no claim names it or may mean it: none is open.

    confirmed: the claimed model is the parent found, or a source of the merge that was found, or no parent is found, it
    is as near as any relative, and the weights leave open who came first, which the claim says; contradicted: it was
    compared and is unrelated; relative: it is related, but another one is the parent or far nearer, or it came later;
    not_testable: it is not among the compared candidates, or nothing could be concluded about it.
    `circular`: the weights traced are those the claim itself led to.
    """
    compared = [c for c in candidates if c.status == "compared"]
    if any(c.order_taken for c in compared if c.ref == parent):
        parent = None  # what the caller says bears no claim out
    result = []
    for claim in claims:
        status: ClaimStatus = "not_testable"
        hits = [c for c in compared if same(claim.ref, c)]
        if claim.status == "not_understood":
            status = claim.status
        elif not hits or circular or hits[0].p_value is None or hits[0].relation is None:
            pass
        elif hits[0].ref == parent or hits[0].relation == "merge":
            status = "confirmed"
        elif hits[0].relation == "shared_part":
            status = "relative"
        elif hits[0].relation == "none":
            status = "contradicted"
        elif parent is None and hits[0].first != "child" and _is_as_near(hits[0], compared):
            status = "confirmed"
        else:
            status = "relative"
        result.append(replace(claim, status=status))
    named = any(parent == c.ref and same(claim.ref, c) for claim in claims for c in candidates)
    return result, [parent] if parent and not named and not any(claim.status in OPEN for claim in result) else []


def order(candidate: Candidate) -> tuple:
    """Sort key: status, probability ↓, log10_p ↑, distance ↑, ref."""
    statuses = ("compared", "not_comparable", "unreadable")
    return (
        statuses.index(candidate.status),
        -(candidate.probability or 0.0),
        0.0 if candidate.log10_p is None else candidate.log10_p,
        math.inf if candidate.distance is None else candidate.distance,
        candidate.ref,
        candidate.revision or "",
    )


def _is_as_near(candidate: Candidate, compared: Sequence[Candidate]) -> bool:
    """Whether no other relative is far nearer than this one."""
    nearest = min(
        (c.distance for c in compared if c.distance is not None and c.relation not in NO_RELATIVE), default=None
    )
    if candidate is compared[0] or candidate.distance is None or nearest is None:
        return candidate is compared[0]
    return candidate.distance <= FAR_NEARER * nearest


def _judge_pair(
    item: WeightsEvidence, pair: Pair, heads: frozenset[str], sizes: Mapping[str, int], alpha: float
) -> _Judged:
    """What the weights show of one candidate, whoever else is asked about."""
    facts = _facts(item, heads, sizes)
    if pair.permutation:
        facts["disguise"] = pair.permutation
    if pair.alternatives:
        facts["alignment"] = {"by": "structure", "alternatives": pair.alternatives}
    if _same_trunk(item, pair):
        if _is_copied(item, pair):
            return _Judged("identical", facts, NO_ORDER, 1.0, certain=2)
        return _Judged(
            "depth_changed" if _other_layers(pair, facts) else "head_changed", facts, NO_ORDER, 0.5, same_trunk=True
        )
    if not _is_related(item, alpha):
        # so few draws cannot show a smaller p; and where it was guessed what belongs together, the guess may be wrong
        undecided = item.log10_p is None or item.at_floor or pair.alternatives > 0
        if not undecided and (why := pair.hidden()):
            return _Judged(None, facts, NO_ORDER, 0.5, why=why)
        ample = not undecided and has_ample_power(item.tested_entries)
        return _Judged(None if undecided else "none", facts, NO_ORDER, alpha if ample else 0.5)
    if parts := pair.shared():  # whoever has the part may have taken it from anybody
        return _Judged("shared_part", {**facts, "first": None, "part": " and ".join(parts)}, NO_ORDER, alpha)
    other_layers = _other_layers(pair, facts)
    agreed = None if pair.permutation else pair.agreement()
    if isinstance(agreed, Note):
        return _Judged(None, facts, NO_ORDER, 0.5, why=agreed)
    elsewhere = other_layers and facts["layers"]["moved"]  # layers that are alike elsewhere are alike
    if agreed and agreed["score"] < RELATED_SCORE and not elsewhere:
        judged = _units_unlike(pair, facts, alpha)
    elif other_layers:  # no order from what stands elsewhere
        judged = _Judged("depth_changed", facts, NO_ORDER, 0.5)
    else:
        judged = _judge_relative(item, pair, facts, alpha)
    return replace(judged, facts={**judged.facts, "agreement": agreed}) if agreed else judged


def _judge_relative(item: WeightsEvidence, pair: Pair, facts: dict[str, Any], alpha: float) -> _Judged:
    """A relative, layer by layer: what was done to it, and who came first."""
    order, measured = _order(item, pair)
    facts["first"] = first = _first(order, measured)
    if first is None and _has_own_base(measured):
        facts["own_base"] = True
    if first is None and measured is not None and _speaks(measured) and measured.decided == "common":
        facts["first"] = first = "neither"
    relation = _relation(item, pair, facts, first)
    if relation == "cast" and facts["share"] == 1.0 and not pair.grown:
        return _Judged(relation, facts, order, 1.0, certain=1)
    if order in (_ONE_WAY, _OTHER_WAY):
        return _Judged(relation, facts, order, 1 - alpha if first == "candidate" else alpha)
    share = order.parent + order.between / 2
    share = max(alpha, order.parent) if first == "neither" else min(share, 0.5) if first is None else share
    return _Judged(relation, facts, order, share, measured=measured)


def _units_unlike(pair: Pair, facts: dict[str, Any], alpha: float) -> _Judged:
    """A pair whose hidden units are alike in their places only: what was copied is said, and nothing else concluded.

    p takes it that nobody arranged the units. What two matchings say does not depend on it, and it was high for all
    relatives that were measured (`weights/agreement.py`).
    """
    facts["copied"] = copied = pair.copied()
    if copied["rows"] < max(MIN_COPIED_ROWS, MIN_COPIED * copied["of"]):
        return _Judged(None, facts, NO_ORDER, alpha)
    part = f"{copied['rows']:,} of {copied['of']:,} rows of its matrices"
    return _Judged("shared_part", {**facts, "first": None, "part": part}, NO_ORDER, alpha)


def _told_older(alone: _Judged, pair: Pair, item: WeightsEvidence, alpha: float) -> _Judged:
    """One pair where the caller says that the candidate is older: taken where no order shows.

    Not where one shows that contradicts it, nor of a candidate that was itself trained from another model: that it is
    older does not tell it from a sibling. Layers that stand elsewhere stay without an order.
    """
    facts = alone.facts
    silent = alone.certain or alone.relation in (None, "depth_changed", "shared_part")
    if silent or facts.get("first") == "candidate" or not _is_related(item, alpha):
        return alone
    neither = not alone.same_trunk and _shows_neither(alone, pair)
    if facts.get("first") == "child" or "own_base" in facts or neither or item.moved > MAX_MOVED:
        return replace(alone, facts={**facts, "older": "not_taken"})
    relation: Relation | None = "finetune" if alone.relation == "common_origin" else alone.relation
    return replace(alone, relation=relation, first=1.0, facts={**facts, "first": "candidate", "older": "taken"})


def _shows_neither(alone: _Judged, pair: Pair) -> bool:
    """Whether the weights say that neither of the two was made from the other."""
    both = pair.made()[0] in ONE_WAY and pair.undone()[0] in ONE_WAY
    return both or alone.order.between >= _least_share(alone.measured)


def _is_related(item: WeightsEvidence, alpha: float) -> bool:
    return item.log10_p is not None and item.log10_p <= math.log10(alpha)


_ONE_WAY, _OTHER_WAY = Direction(1.0, 0.0, 0.0), Direction(0.0, 0.0, 1.0)


def _other_layers(pair: Pair, facts: dict[str, Any]) -> bool:
    """Whether layers were repeated, put in, left out or put elsewhere; says which in the facts."""
    found = None if pair.permutation else pair.layers()
    if found:
        facts["layers"] = found
    return found is not None


def _order(item: WeightsEvidence, pair: Pair) -> tuple[Direction, PairOrder | None]:
    """The shares of the three orders: by what runs one way, else by the steps between the two, else by the origin's
    position where that tells; and what the steps tell, also where that decides nothing."""
    if pair.rescaled or item.moved > MAX_MOVED:  # the scales that would tell are lost, or next to nothing is left
        return NO_ORDER, None
    grown = _added_tokens(item, pair)
    if grown and not _allows(pair.order(), item):
        grown = 0
    made, undone = pair.made()[0] in ONE_WAY or grown > 0, pair.undone()[0] in ONE_WAY or grown < 0
    if made and undone:  # something was done to either, as to a rounded and a pruned copy of one model
        return NO_ORDER, None
    if made or undone:
        return _ONE_WAY if made else _OTHER_WAY, None
    by_position = order_by_position(item.origin, item.changed_entries)
    found = pair.order()
    if found is None or not _speaks(found):
        return by_position, found
    shares, older = _shares(found), by_position.decided
    if {older, found.decided} in ({"parent", "child"}, {"descendant", "candidate"}):  # the two contradict each other
        return NO_ORDER, replace(found, reason=f"{found.reason}, which the position of the origin contradicts")
    return shares, found


def _allows(found: PairOrder | None, item: WeightsEvidence) -> bool:
    """Whether more tokens may tell an order: not where nothing else changed, since tokens can be cut off, too, and not
    where the steps decide one."""
    return item.changed_entries > 0 and not (found is not None and _speaks(found))


def _speaks(found: PairOrder) -> bool:
    """Whether the steps decide an order. Decay, with growth or without, does not: it cannot tell a parent from a
    sibling that was trained without it."""
    return found.decided is not None and not {*found.method.split("+")} <= {"weight_decay", "growth"}


def _reported(found: PairOrder | None) -> Order | None:
    """What the steps tell, for the answer; None where nothing was measured. No radius where no order is decided."""
    if found is None or found.lambda_ is None:
        return None
    reason, radius = found.reason, found.radius if _speaks(found) else None
    if found.decided is not None and not _speaks(found):
        reason += ", which a sibling that was trained otherwise may show, too"
    if _has_own_base(found):
        reason += OR_ITS_BASE
    return Order(found.lambda_, found.stderr, found.misfit, found.method, found.entries, radius, reason)


def _shares(order: PairOrder) -> Direction:
    """The shares of the three orders that the steps between the two show.

    Who shows that it was itself trained on its lattice has a base of its own: it may be a sibling that moved less, and
    is not said to have come first.
    """
    candidate, child = order.candidate, order.child
    common = order.common + candidate * bool(order.marked) + child * bool(order.child_marked)
    return Direction(candidate * (not order.marked), common, child * (not order.child_marked))


def _has_own_base(found: PairOrder | None) -> bool:
    """Whether the one that looks older was itself trained from another model on its lattice."""
    if found is None or not _speaks(found) or found.decided == "common":
        return False
    return bool(found.marked if (found.lambda_ or 0.0) > 0 else found.child_marked)


def _least_share(found: PairOrder | None) -> float:
    """The share from which an order is stated: by the steps where they speak, else by the origin's position."""
    return SURE if found is not None and _speaks(found) else fitted_numbers()["sure"]


def _first(order: Direction, measured: PairOrder | None = None) -> First:
    sure = _least_share(measured)
    return "candidate" if order.parent >= sure else "child" if order.descendant >= sure else None


def _added_tokens(item: WeightsEvidence, pair: Pair) -> int:
    """How many tokens the child has more (negative: fewer) than the candidate; 0 where that tells no order.

    Only where the rows that both have are alike, and few are added (`edits.are_added_tokens`).
    """
    for name, (mine, its) in pair.grown.items():
        alike = name in item.equal or item.tensors.get(name, {}).get("correlation", 0.0) >= ALIKE_ROWS
        if alike and are_added_tokens(min(mine, its), max(mine, its)):
            return mine - its
    return 0


def _relation(item: WeightsEvidence, pair: Pair, facts: dict[str, Any], first: First) -> Relation:
    """What was done to a related candidate; adds the measured facts that support it."""
    kind, what = pair.made()
    facts |= what | {"change": kind}
    if more := [both for both in pair.grown.values() if both[0] != both[1]]:
        facts["vocabulary"] = {"child": more[0][0], "candidate": more[0][1]}
    if first == "child":
        if (undone := pair.undone()[0]) in ONE_WAY:
            facts["undone"] = undone
        return "descendant"
    if first == "candidate" and kind in ("cast", "quantized", "pruned"):
        return kind
    # of equal weights with more tokens it does not show whether these were added or the other's cut off
    if (first == "candidate" or item.changed_entries == 0) and _added_tokens(item, pair) > 0:
        return "resized"
    if first == "neither":
        return "sibling"
    if kind == "adapter":
        return "adapter"
    if facts["equal_share"] >= FROZEN:
        return "partial"
    return "finetune" if first == "candidate" else "common_origin"


def _handed_out(
    alone: Sequence[_Judged], features: Sequence[Features], pairs: Sequence[PairReadings], alpha: float,
    prior: float | None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The probability of each candidate, and of none of them; they sum to 1."""
    surest = max((pair.certain for pair in alone), default=0)
    if surest:  # copies, else casts, take it all
        equal = np.array([float(pair.certain == surest) for pair in alone])
        return equal / equal.sum(), 0.0
    if any(same := [pair.same_trunk for pair in alone]):
        shares = np.array(same) / sum(same) * [pair.first for pair in alone]
    else:
        shares, _ = probabilities(features, prior)
    shares = _share_among_older(shares, alone, pairs, alpha)
    return shares, max(0.0, 1.0 - float(shares.sum()))


def _share_among_older(
    shares: np.ndarray, alone: Sequence[_Judged], pairs: Sequence[PairReadings], alpha: float
) -> np.ndarray:
    """The shares where one candidate R is shown to have come first, and another one, X, came from it.

    A child that has not inherited X's step from R did not come from X (`weights/direction/inheritance.py`): X keeps
    alpha, and R gets what it had. Where that is not shown, and both seem older by what was counted, either may be the
    parent, and both get the same.
    """
    found = shares.copy()
    older = [
        i for i, pair in enumerate(alone)
        if pair.measured and _speaks(pair.measured) and pair.facts.get("first") == "candidate"
        and "older" not in pair.facts
    ]  # fmt: skip
    related = [i for i, pair in enumerate(alone) if pair.measured and pair.relation not in (None, "none")]
    likely = sorted(related, key=lambda i: -shares[i])[:MOST_COMPARED]
    for base in older:
        for i in (i for i in likely if i != base):
            both = CandidatePair(pairs[i], pairs[base])
            inherited = both.inherited() if is_elder(both.order(back=True)) else None
            if inherited is False and found[i] > alpha:
                found[base] = min(found[base] + found[i] - alpha, alone[base].first)
                found[i] = alpha
            elif inherited is None and i in older and not is_elder(both.order()):
                found[base] = found[i] = (found[base] + found[i]) / 2
    return found


def _same_trunk(item: WeightsEvidence, pair: Pair) -> bool:
    whole = pair.trunk and not pair.rescaled and not pair.grown
    return bool(whole and pair.trunk is not None and item.equal.issuperset(pair.trunk))


def _is_copied(item: WeightsEvidence, pair: Pair) -> bool:
    return pair.same_names and item.equal.issuperset((*item.compared, *item.left_out))


def _places(found: Sequence[WeightsEvidence], alone: Sequence[_Judged]) -> list[int]:
    """The places of the related candidates by what each tells about the child, the most first; −1 for the others.

    Unit by unit this ranks a parent before its own parent where their distances from the child hardly differ.
    """
    ranked = [i for i, pair in enumerate(alone) if pair.relation not in NO_RELATIVE | {None, "descendant"}]
    known = {i: information for i in ranked if (information := found[i].information) is not None}
    places = {i: place for place, i in enumerate(sorted(known, key=lambda i: -known[i]))}
    return [places.get(i, -1) for i in range(len(found))]


def _features(
    comparison: WeightsComparison, pairs: Sequence[Pair], alone: Sequence[_Judged]
) -> list[Features]:  # fmt: skip
    """What the probabilities are made of. Whom an ample test finds unrelated is nobody's rival, and is not counted."""
    found = [*comparison.evidence.values()]
    rivals = {
        i for i, (item, judged) in enumerate(zip(found, alone, strict=True))
        if judged.relation != "none" or not has_ample_power(item.tested_entries)
    }  # fmt: skip
    relatedness = [
        math.sqrt(max(item.entries - 3, 0)) * math.atanh(min(max(item.correlation, -0.999999), 0.999999))
        for item in found
    ]
    related_count = sum(relatedness[i] > RELATED_Z for i in rivals)
    places = _places(found, alone)
    features = []
    for i, (item, pair, judged) in enumerate(zip(found, pairs, alone, strict=True)):
        ahead, ahead_z = comparison.margin(i, rivals)
        features.append(
            Features(
                relatedness=relatedness[i],
                exists=max(-(item.log10_p or 0.0), PERMUTATION_EVIDENCE if pair.permutation else 0.0),
                tested=float(item.log10_p is not None),
                ahead=ahead,
                ahead_z=ahead_z,
                first=judged.first,
                between=math.log(max(judged.order.between, 1e-9)),
                moved=math.log(max(item.moved, 1e-9)),
                entries=math.log(max(item.entries, 1)),
                candidates=len(rivals | {i}),
                related=related_count,
                measured=float(judged.measured is not None and _speaks(judged.measured)),
                place=places[i],
            )
        )
    return features


def _facts(item: WeightsEvidence, heads: frozenset[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    trunk = [name for name in item.compared if name not in heads]
    equal = item.equal.intersection(trunk)
    return {
        "moved": item.moved, "distance_stderr": item.distance_stderr,
        "equal_share": sum(sizes[n] for n in equal) / max(1, sum(sizes[n] for n in trunk)),
        "equal_tensors": len(equal), "compared_tensors": len(trunk),
    }  # fmt: skip
