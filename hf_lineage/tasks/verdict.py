"""Evidence → ranked candidates, relations, claims, verdict. The probabilities' own rule is in `tasks/calibration.py`.

A small p-value says common origin, no more. *Parent* is said of the most probable candidate where the p-value, the
probability and the relation support it; the relation asks who came first (`calibration.direction`) unless what was
done runs one way: a copy, rounding, pruning, an added vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answers.lineage import PARENT_RELATIONS, Candidate, Claim, ClaimStatus, Relation, Verdict
from ..weights.direction import Direction, Position, direction_shares, origin_position, relative_positions
from ..weights.edits import ONE_WAY
from ..weights.evidence import WeightsComparison, WeightsEvidence
from ..weights.permutation_test import holm
from .calibration import Features, probabilities

UNKNOWN = Direction(1 / 3, 1 / 3, 1 / 3)  # units put in order lose the scales that would tell who came first
# What hidden units that were put in order count for in place of −log10 p: none of 13,873 unrelated models has them
PERMUTATION_EVIDENCE = 4.0
RELATED_Z = 4.0  # Fisher's z of a correlation above which a candidate counts as related in the features
OPEN = ("not_testable", "not_understood")  # of a claim: it may mean any model
FROZEN = 0.05  # share of the compared weights that must be untouched to speak of frozen parts


@dataclass(frozen=True, slots=True)
class Pair:
    """What else is known of a candidate.

    `same_names`: its tensors are exactly the child's, heads included.  `trunk`: the child's trunk as far as it was
    read, None where rows of it were left out.  `grown`: rows of token tables (child's, its).
    `made`, `undone`: what was done to it to get the child, and the reverse (`relation.summarise`), asked if needed.
    `permutation`: how its hidden units were found in another order, None if they were not.
    """

    same_names: bool
    trunk: frozenset[str] | None
    grown: Mapping[str, tuple[int, int]]
    made: Callable[[], tuple[str, dict[str, Any]]]
    undone: Callable[[], tuple[str, dict[str, Any]]]
    permutation: dict[str, Any] | None = None


def judge(
    candidates: Sequence[Candidate], comparison: WeightsComparison, pairs: Sequence[Pair], heads: frozenset[str],
    sizes: Mapping[str, int], alpha: float,
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    """Fill in the numbers of the compared candidates; returns them and the probability of "none" (None: no candidate).

    Where the test applies to no candidate, there are probabilities and no p-values.
    """
    found = list(comparison.evidence.values())
    tested = [i for i, item in enumerate(found) if item.log10_p is not None]
    adjusted = dict(zip(tested, holm([found[i].log10_p or 0.0 for i in tested]), strict=True))
    related = [i for i in tested if adjusted[i] <= math.log10(alpha)]
    related += [i for i, pair in enumerate(pairs) if pair.permutation and i not in related]
    orders = [
        UNKNOWN if pair.permutation else _direction(comparison.gram, found, i, related) for i, pair in enumerate(pairs)
    ]
    if nearest := sorted((found[i].distance or 0.0, i) for i in related if not pairs[i].permutation)[:1]:
        orders[nearest[0][1]] = _one_way(pairs[nearest[0][1]]) or orders[nearest[0][1]]
    features = _features(found, pairs, orders)
    copies = _copies(found, pairs)
    shares, none = copies or probabilities(features)
    if not copies:
        shares = _by_information(shares, found, [i for i in related if orders[i].decided in (None, "parent")])
    best = max(range(len(found)), key=lambda i: (shares[i], -(found[i].distance or 0.0)), default=0)
    judged = []
    for i, (candidate, item, pair) in enumerate(zip(candidates, found, pairs, strict=True)):
        facts = _facts(item, heads, sizes)
        relation: Relation | None = _relation(item, pair, facts, orders[i], i in related, i == best)
        if relation == "common_origin" and i != best and orders[best].decided == "parent" and not pair.permutation:
            relation = _seen_from_best(comparison.gram, found, best, i, facts)
        if relation == "none" and (item.log10_p is None or item.at_floor):
            relation = None  # not tested, or the draws cannot show as small a p as this many candidates ask for
        judged.append(
            replace(
                candidate,
                probability=float(shares[i]),
                p_value=10.0 ** adjusted[i] if i in adjusted else None,
                p_raw=10.0 ** (item.log10_p or 0.0) if i in adjusted else None,
                p_method=item.p_method,
                log10_p=adjusted.get(i),
                distance=item.distance,
                relation=relation,
                facts=facts,
                evidence={
                    **candidate.evidence,
                    "weights": item,
                    "calibration": features[i],
                    "direction": orders[i],
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
    sure = related and not tied and (best.probability or 0) >= 0.5 and best.relation in PARENT_RELATIONS
    if best.relation == "identical":  # equality needs no test, naming a parent does
        return "identical", best.ref if sure else None
    if sure:
        return "parent", best.ref
    if all(c.relation == "none" for c in compared):
        return "none", None
    if best.relation not in (None, "none") and not tied:
        return "common_origin", None
    return "undecided", None


def known_none(none: float | None, verdict: Verdict, candidates: Sequence[Candidate]) -> float | None:
    """The probability that none of the candidates is the parent: not known where one that was not read may be it, nor
    where nothing but that is left undecided."""
    is_none = none is not None and all(c.relation == "none" for c in candidates if c.status == "compared")
    open_ = any(c.status == "unreadable" for c in candidates) or is_none
    return None if verdict == "undecided" and open_ else none


def weigh_claims(
    claims: Sequence[Claim], candidates: Sequence[Candidate], parent: str | None,
    same: Callable[[str, Candidate], bool], circular: bool = False,
) -> tuple[list[Claim], list[str]]:  # fmt: skip
    """Each claim's status, and the parent if no claim names it or may mean it: none is open.

    confirmed: the claimed model is the parent found, or it is the first of the related ones and the weights leave open
    who came first, which the claim says; contradicted: it was compared and is unrelated; relative: it is related, but
    not the parent; not_testable: it is not among the compared candidates, or nothing could be concluded about it.
    `circular`: the weights traced are those the claim itself led to.
    """
    compared = [c for c in candidates if c.status == "compared"]
    result = []
    for claim in claims:
        status: ClaimStatus = "not_testable"
        hits = [c for c in compared if same(claim.ref, c)]
        if claim.status == "not_understood":
            status = claim.status
        elif not hits or circular or hits[0].p_value is None or hits[0].relation is None:
            pass
        elif hits[0].ref == parent:
            status = "confirmed"
        elif hits[0].relation == "none":
            status = "contradicted"
        elif hits[0] is compared[0] and hits[0].first is None and parent is None:
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


def _copies(found: Sequence[WeightsEvidence], pairs: Sequence[Pair]) -> tuple[np.ndarray, float] | None:
    """Full copies of the child, else of its trunk, take it all; None where there are none."""
    trunk = [float(_same_trunk(item, pair)) for item, pair in zip(found, pairs, strict=True)]
    whole = [same * _copied(item, pair) for same, item, pair in zip(trunk, found, pairs, strict=True)]
    equal = np.array(whole if any(whole) else trunk)
    return (equal / equal.sum(), 0.0) if equal.any() else None


def _same_trunk(item: WeightsEvidence, pair: Pair) -> bool:
    whole = pair.trunk and not pair.permutation and not pair.grown
    return bool(whole and pair.trunk is not None and item.equal.issuperset(pair.trunk))


def _by_information(shares: np.ndarray, found: Sequence[WeightsEvidence], group: Sequence[int]) -> np.ndarray:
    """The shares of related candidates handed out among them by what each tells about the child.

    Unit by unit this ranks a parent before its own parent where their distances from the child hardly differ.
    """
    information = {i: information for i in group if (information := found[i].information) is not None}
    result = shares.copy()
    order = sorted(information, key=lambda i: -information[i])
    result[order] = sorted((shares[i] for i in information), reverse=True)
    return result


def _copied(item: WeightsEvidence, pair: Pair) -> bool:
    return pair.same_names and item.equal.issuperset((*item.compared, *item.left_out))


def _direction(gram: np.ndarray, found: Sequence[WeightsEvidence], index: int, related: Sequence[int]) -> Direction:
    others = [k + 1 for k in related if k != index] if index in related else []
    item = found[index]
    return direction_shares(
        _pair(item.origin),
        [(p.t, p.relative_distance) for p in relative_positions(gram, index + 1, others)],
        item.changed_entries,
    )


def _pair(position: Position | None) -> tuple[float, float] | None:
    return None if position is None else (position.t, position.relative_distance)


def _features(found: Sequence[WeightsEvidence], pairs: Sequence[Pair], orders: Sequence[Direction]) -> list[Features]:
    relatedness = [
        math.sqrt(max(item.entries - 3, 0)) * math.atanh(min(max(item.correlation, -0.999999), 0.999999))
        for item in found
    ]
    related_count = sum(z > RELATED_Z for z in relatedness)
    features = []
    for i, (item, pair, order) in enumerate(zip(found, pairs, orders, strict=True)):
        features.append(
            Features(
                relatedness=relatedness[i],
                exists=max(-(item.log10_p or 0.0), PERMUTATION_EVIDENCE if pair.permutation else 0.0),
                tested=float(item.log10_p is not None),
                ahead=item.margin,
                ahead_z=item.margin_z,
                first=0.0 if item.entries and not item.changed_entries else math.log(max(order.parent, 1e-9)),
                between=math.log(max(order.between, 1e-9)),
                moved=math.log(max(item.moved, 1e-9)),
                entries=math.log(max(item.entries, 1)),
                candidates=len(found),
                related=related_count,
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


def _relation(
    item: WeightsEvidence, pair: Pair, facts: dict[str, Any], order: Direction, related: bool, best: bool
) -> Relation:  # fmt: skip
    """What the weights show of one candidate; adds the measured facts that support it."""
    if pair.permutation:
        facts["disguise"] = pair.permutation
    if _same_trunk(item, pair):
        return "identical" if _copied(item, pair) else "head_changed"
    if not related:
        return "none"
    facts["first"] = {"parent": "candidate", "between": "neither", "descendant": "child"}.get(order.decided or "")
    if pair.permutation:
        return "common_origin"
    if not best:
        return "descendant" if facts["first"] == "child" else "common_origin"
    kind, what = pair.made()
    facts |= what | {"change": kind}
    if more := [(mine, its) for mine, its in pair.grown.values() if mine > its]:
        facts["vocabulary"] = {"child": more[0][0], "candidate": more[0][1]}
    if kind in ONE_WAY:
        return "pruned" if kind == "pruned" else "quantized"
    if more:
        return "resized"
    if facts["first"] == "child":
        return "descendant"
    if item.entries and not item.changed_entries:
        return "partial"  # the matrices are copies: who came first is as open as for a copy
    if facts["first"] != "candidate":
        return "common_origin"
    return "adapter" if kind == "adapter" else "partial" if facts["equal_share"] >= FROZEN else "finetune"


def _one_way(pair: Pair) -> Direction | None:
    """What can only be done to a parent says who it was: rounding, pruning, adding tokens."""
    if pair.made()[0] in ONE_WAY or any(mine > its for mine, its in pair.grown.values()):
        return Direction(1.0, 0.0, 0.0)
    return Direction(0.0, 0.0, 1.0) if pair.undone()[0] in ONE_WAY else None


def _seen_from_best(
    gram: np.ndarray, found: Sequence[WeightsEvidence], best: int, index: int, facts: dict[str, Any]
) -> Relation:
    """Another relative, seen from the best one: a sibling of the child if the best one came before it too."""
    position = origin_position(_seen_from(gram, index + 1), best + 1)
    decided = direction_shares(_pair(position), entries=found[index].entries).decided
    if decided == "parent":
        return "sibling"
    if decided == "descendant":
        facts["first"], facts["ancestor"] = "candidate", True
    return "common_origin"


def _seen_from(gram: np.ndarray, pivot: int) -> np.ndarray:
    """The same Gram matrix with another model as the child: its row takes the child's place."""
    change = np.eye(len(gram))
    change[:, pivot] -= 1.0  # xᵢ − xₚ from xᵢ − x₀ and xₚ − x₀
    change[0] = 0.0
    change[0, 0] = change[0, pivot] = 1.0  # xₚ itself
    change[pivot] = 0.0
    change[pivot, pivot] = -1.0  # the old child takes the pivot's row: x₀ − xₚ
    return change @ gram @ change.T
