"""The rule on made-up evidence: probabilities, Holm, claims, order; the properties DESIGN promises."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage import verdict
from hf_lineage.records import Candidate, Claim
from hf_lineage.weights.evidence import WeightsEvidence
from hf_lineage.weights.independence import IndependenceTest

ALPHA = 1e-3
SIZES = {"w": 100, "b": 10}


def found(log10_p: float | None, distance: float, equal: frozenset[str] = frozenset()) -> WeightsEvidence:
    test = None
    if log10_p is not None:
        test = IndependenceTest(1.0, log10_p, "normal", 10**log10_p, 999, 0.0, 0.0, ())
    return WeightsEvidence(distance, 0.0, distance, test, equal, ("w", "b"), (), {}, {})


def judge(*items: WeightsEvidence, same: bool = True) -> tuple[list[Candidate], float | None]:
    blanks = [Candidate(f"lab/{i}", f"lab/{i}") for i in range(len(items))]
    return verdict.judge(blanks, items, frozenset(), SIZES, [same] * len(items), ALPHA)


def conclude(*items: WeightsEvidence) -> tuple[str, str | None]:
    judged, none = judge(*items)
    return verdict.conclude(sorted(judged, key=verdict.order), none, ALPHA)


EVIDENCE = st.builds(found, st.floats(-3000, 0), st.floats(1e-6, 10))


@given(st.lists(EVIDENCE, min_size=1, max_size=8))
def test_probabilities_and_none_sum_to_one(items: list[WeightsEvidence]) -> None:
    judged, none = judge(*items)
    assert none is not None
    assert sum(c.probability or 0 for c in judged) + none == pytest.approx(1.0, abs=1e-9)
    assert all(0 <= (c.probability or 0) <= 1 and 0 <= (c.p_value or 0) <= 1 for c in judged)
    assert all((c.p_value or 0) >= (c.p_raw or 0) * (1 - 1e-9) for c in judged), "Holm never lowers a p-value"


@given(st.lists(EVIDENCE, min_size=2, max_size=4))
def test_the_order_of_the_candidates_does_not_matter(items: list[WeightsEvidence]) -> None:
    answers = {tuple(sorted((e.distance, round(c.probability or 0, 9)) for e, c in zip(p, judge(*p)[0], strict=True)))
               for p in permutations(items)}  # fmt: skip
    assert len(answers) == 1


@given(st.lists(EVIDENCE, min_size=1, max_size=6))
def test_a_parent_has_what_design_asks_for(items: list[WeightsEvidence]) -> None:
    judged, none = judge(*items)
    ranked = sorted(judged, key=verdict.order)
    said, parent = verdict.conclude(ranked, none, ALPHA)
    assert (parent is not None) == (said in ("parent", "identical"))
    if parent:
        best = ranked[0]
        assert best.ref == parent and best.p_value is not None and best.probability is not None
        assert best.p_value <= ALPHA and best.probability >= 0.5


def test_verdicts() -> None:
    assert conclude(found(-20, 0.1), found(-0.2, 0.3)) == ("parent", "lab/0")
    assert conclude(found(-0.5, 0.1), found(-0.2, 0.3)) == ("none", None)
    assert conclude(found(-20, 0.1), found(-20, 0.1001), found(-20, 0.1002))[0] == "undecided"
    assert conclude(found(-20, 0.0, frozenset("wb")), found(-20, 0.3)) == ("identical", "lab/0")
    assert conclude(found(None, 0.1)) == ("undecided", None)
    assert conclude(found(None, 0.0, frozenset("wb"))) == ("identical", None), "equal, but no p-value names a parent"
    assert verdict.conclude([], None, ALPHA) == ("undecided", None)


def test_the_nearest_of_the_related_wins_however_small_the_p_of_another() -> None:
    judged, _ = judge(found(-10, 0.1), found(-3000, 0.3), found(-0.1, 0.05))
    assert (judged[0].probability or 0) > 0.99 and judged[0].relation == "finetune"
    assert judged[1].relation == "common_origin" and judged[2].relation == "none"
    assert judged[2].probability == 0.0, "an unrelated candidate may be near by accident"


def test_relations() -> None:
    assert judge(found(-20, 0.0, frozenset("wb")))[0][0].relation == "identical"
    assert judge(found(-20, 0.0, frozenset("wb")), same=False)[0][0].relation == "head_changed"
    assert judge(found(-20, 0.1, frozenset("b")))[0][0].relation == "partial"
    assert judge(found(-20, 0.1))[0][0].relation == "finetune"


@pytest.mark.parametrize("p", [1.0, 0.5, 0.36, 0.1, 1e-3, 1e-30])
def test_the_bound(p: float) -> None:
    expected = 1.0 if p >= 1 / math.e else -math.e * p * math.log(p)
    assert verdict.evidence_bound(math.log10(p)) == pytest.approx(expected)


@given(st.floats(-400, 0), st.floats(-400, 0))
def test_the_bound_rises_with_p(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= verdict.evidence_bound(low) <= verdict.evidence_bound(high) <= 1


@pytest.mark.parametrize(
    ("claimed", "parent", "status", "undeclared"),
    [
        ("lab/0", "lab/0", "confirmed", []),
        ("lab/1", "lab/0", "relative", ["lab/0"]),
        ("lab/2", "lab/0", "contradicted", ["lab/0"]),
        ("lab/9", "lab/0", "not_testable", ["lab/0"]),
        ("lab/2", None, "contradicted", []),
        ("lab/1", None, "not_testable", []),
    ],
)
def test_claims(claimed: str, parent: str | None, status: str, undeclared: list[str]) -> None:
    numbers: list[dict[str, Any]] = [
        {"p_value": 1e-9, "relation": "finetune"}, {"p_value": 1e-5, "relation": "common_origin"},
        {"p_value": 0.4, "relation": "none"},
    ]  # fmt: skip
    candidates = [Candidate(f"lab/{i}", f"lab/{i}", **number) for i, number in enumerate(numbers)]
    checked, left = verdict.weigh_claims(
        [Claim("card", claimed)], candidates, parent, lambda ref, candidate: ref == candidate.ref
    )
    assert (checked[0].status, left) == (status, undeclared)


def test_the_order_of_the_answer() -> None:
    rows = [
        Candidate("e", "e", status="unreadable"), Candidate("d", "d", status="not_comparable"),
        Candidate("c", "c", probability=0.1, log10_p=-1.0, distance=1.0),
        Candidate("b", "b", probability=0.1, log10_p=-2.0, distance=2.0), Candidate("a", "a", probability=0.8, log10_p=0.0),
    ]  # fmt: skip
    assert "".join(c.ref for c in sorted(rows, key=verdict.order)) == "abcde"
