"""Evidence → probabilities, adjusted p-values, relations, verdict. The whole rule is on this page.

Until it is calibrated on families (issue 3) the rule is:

    P(no candidate is the parent) = min over candidates of B(p),  B(p) = −e·p·ln p for p < 1/e, else 1,

with p the Holm-adjusted p-value: the bound of Sellke, Bayarri and Berger (2001) on what a p-value can say against
its null hypothesis. The rest is shared in proportion to (1 − B(pᵢ))·dᵢ^(−2·SHARPNESS): a softmax of the ranking
score −log d², restricted to the candidates that are related at all. A distance of exactly zero takes it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from .records import PARENT_RELATIONS, Candidate, Claim, ClaimStatus, Relation, Verdict
from .weights.evidence import WeightsEvidence
from .weights.independence import holm

SHARPNESS = 10.0  # a sibling at √2 times the parent's distance gets 1/1024 of its share
FROZEN = 0.05  # share of the compared weights that must be untouched to speak of frozen parts


def judge(
    candidates: Sequence[Candidate], found: Sequence[WeightsEvidence], heads: frozenset[str], sizes: dict[str, int],
    same_names: Sequence[bool], alpha: float,
) -> tuple[list[Candidate], float | None]:  # fmt: skip
    """Fill in the numbers of the compared candidates; returns them and the probability of "none".

    `same_names[i]`: the candidate's tensors are exactly the child's, heads included. Without any p-value (the
    test applied to no candidate) there are no probabilities either: None.
    """
    tested = [i for i, item in enumerate(found) if item.test]
    adjusted: dict[int, float] = dict(zip(tested, holm([_log10_p(found[i]) for i in tested]), strict=True))
    unrelated = [evidence_bound(adjusted[i]) if i in adjusted else 1.0 for i in range(len(found))]
    none = min((unrelated[i] for i in tested), default=None)
    weights = [1.0 if none is None else 1.0 - bound for bound in unrelated]
    copies = [
        same and item.equal.issuperset((*item.compared, *item.bad))
        for same, item in zip(same_names, found, strict=True)
    ]
    shares = _shares([item.distance for item in found], weights, copies)
    best = max(range(len(found)), key=lambda i: (shares[i], -(found[i].distance or 0.0)), default=0)
    judged = []
    for i, (candidate, item) in enumerate(zip(candidates, found, strict=True)):
        related = i in adjusted and adjusted[i] <= math.log10(alpha)
        relation, facts = _relation(item, heads, sizes, copies[i], related, i == best)
        if relation == "none" and (item.test is None or item.test.at_floor):
            relation = None  # not tested, or the draws cannot show as small a p as this many candidates ask for
        judged.append(
            replace(
                candidate,
                probability=None if none is None else shares[i] * (1.0 - none),
                p_value=10.0 ** adjusted[i] if i in adjusted else None,
                p_raw=item.test.p if item.test else None,
                p_method=item.test.method if item.test else None,
                log10_p=adjusted.get(i),
                distance=item.distance,
                relation=relation,
                facts=facts,
                evidence={**candidate.evidence, "weights": item.to_dict()},
            )
        )
    return judged, none


def conclude(candidates: Sequence[Candidate], none: float | None, alpha: float) -> tuple[Verdict, str | None]:
    """The verdict and the parent's ref, from candidates in their final order."""
    compared = [c for c in candidates if c.status == "compared"]
    best = compared[0] if compared else None
    if best is None or (none is None and best.relation != "identical"):
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
    return ("common_origin" if best.relation == "common_origin" else "undecided"), None


def weigh_claims(
    claims: Sequence[Claim], candidates: Sequence[Candidate], parent: str | None,
    same: Callable[[str, Candidate], bool], circular: bool = False,
) -> tuple[list[Claim], list[str]]:  # fmt: skip
    """Each claim's status, and the parent if no claim names it.

    confirmed: the claimed model is the parent found; contradicted: it was compared and is unrelated; relative:
    it is related, but not the parent; not_testable: it is not among the compared candidates, or nothing could be
    concluded about it. `circular`: the weights traced are those the claim itself led to.
    """
    result = []
    for claim in claims:
        status: ClaimStatus = "not_testable"
        hits = [c for c in candidates if same(claim.ref, c) and c.status == "compared"]
        if not hits or circular or hits[0].p_value is None:
            pass
        elif hits[0].ref == parent:
            status = "confirmed"
        elif hits[0].relation == "none":
            status = "contradicted"
        elif parent:
            status = "relative"
        result.append(replace(claim, status=status))
    named = any(parent == c.ref and same(claim.ref, c) for claim in claims for c in candidates)
    return result, [parent] if parent and not named else []


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


def evidence_bound(log10_p: float) -> float:
    """B(p) = −e·p·ln p for p < 1/e, else 1, from log10 p. In [0, 1], rising with p.

    >>> round(evidence_bound(-3), 4), evidence_bound(-0.1), evidence_bound(-400)
    (0.0188, 1.0, 0.0)
    """
    p = 10.0**log10_p
    return 1.0 if p >= math.exp(-1) else -math.e * p * log10_p * math.log(10)


def _log10_p(item: WeightsEvidence) -> float:
    return item.test.log10_p if item.test else 0.0


def _shares(distances: Sequence[float | None], weights: Sequence[float], identical: Sequence[bool]) -> list[float]:
    """Shares of the candidates, summing to 1 (or all 0 where every weight is 0); a full copy takes it all."""
    zeros = [weight if distance == 0.0 else 0.0 for distance, weight in zip(distances, weights, strict=True)]
    copies = [weight if same else 0.0 for same, weight in zip(identical, zeros, strict=True)]
    if any(zeros):
        raw = copies if any(copies) else zeros
    else:
        logs = [
            -2 * SHARPNESS * math.log(d) if d and w > 0 else -math.inf for d, w in zip(distances, weights, strict=True)
        ]
        top = max(logs, default=-math.inf)
        raw = [w * math.exp(x - top) if x > -math.inf else 0.0 for x, w in zip(logs, weights, strict=True)]
    total = sum(raw)
    return [value / total if total else 0.0 for value in raw]


def _relation(
    item: WeightsEvidence, heads: frozenset[str], sizes: dict[str, int], copy: bool, related: bool, best: bool
) -> tuple[Relation | None, dict]:
    """What the weights show, with the measured facts that support it."""
    trunk = [name for name in item.compared if name not in heads]
    equal = set(item.equal)
    share = sum(sizes[n] for n in trunk if n in equal) / max(1, sum(sizes[n] for n in trunk))
    facts = {
        "moved": item.moved, "distance_stderr": item.distance_stderr, "equal_share": share,
        "equal_tensors": len(equal.intersection(trunk)), "compared_tensors": len(trunk),
    }  # fmt: skip
    if trunk and equal.issuperset(trunk):
        return ("identical" if copy else "head_changed"), facts
    if not related:
        return "none", facts
    if not best:
        return "common_origin", facts
    return ("partial" if share >= FROZEN else "finetune"), facts
