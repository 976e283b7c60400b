"""The rule on made-up evidence: probabilities, Holm, claims, order; the properties DESIGN promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage.answers.lineage import Candidate, Claim
from hf_lineage.tasks import verdict
from hf_lineage.weights.direction import Position
from hf_lineage.weights.evidence import WeightsComparison, WeightsEvidence, _margin
from hf_lineage.weights.permutation_test import PermutationTest

ALPHA = 1e-3
SIZES = {"w": 100, "b": 10}


def found(
    log10_p: float | None, distance: float, equal: frozenset[str] = frozenset(), t: float = 0.0
) -> WeightsEvidence:
    """Made-up evidence: p-value and distance, `t` the origin's position (0: the candidate came first)."""
    test = None
    if log10_p is not None:
        test = PermutationTest(1.0, log10_p, "proven", None, 0, log10_p, ())
    place = Position(t, 1 / distance) if distance else None
    r = 1 / (1 + distance**2) if log10_p is None or log10_p < -2 else 0.0
    return WeightsEvidence(
        distance, 0.0, distance, test, equal, ("w", "b"), (), {}, {}, correlation=r, entries=100_000,
        changed_entries=100_000, origin=place,
    )  # fmt: skip


def comparison(items: Sequence[WeightsEvidence]) -> WeightsComparison:
    """The items beside each other; their differences from the child are orthogonal."""
    square = np.array([item.distance or 0.0 for item in items]) ** 2
    gap = square[None, :] - square[:, None]
    rivals = [replace(item, **_margin(gap[i], np.full(len(items), 1e-3), i, square[i])) for i, item in enumerate(items)]
    return WeightsComparison(dict(enumerate(rivals)), {}, {}, np.diag([1.0, *square]))


def pair(
    same: bool = True, kind: str = "other", back: str = "other", grown: dict[str, tuple[int, int]] | None = None,
    permutation: dict[str, Any] | None = None,
) -> verdict.Pair:  # fmt: skip
    return verdict.Pair(same, frozenset("wb"), grown or {}, lambda: (kind, {}), lambda: (back, {}), permutation)


def judge(*items: WeightsEvidence, pairs: Sequence[verdict.Pair] = ()) -> tuple[list[Candidate], float | None]:
    blanks = [Candidate(f"lab/{i}", f"lab/{i}") for i in range(len(items))]
    pairs = pairs or [pair()] * len(items)
    return verdict.judge(blanks, comparison(items), pairs, frozenset(), SIZES, ALPHA)


def conclude(*items: WeightsEvidence) -> tuple[str, str | None]:
    judged, _ = judge(*items)
    return verdict.conclude(sorted(judged, key=verdict.order), ALPHA)


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
    judged, _ = judge(*items)
    ranked = sorted(judged, key=verdict.order)
    decided, parent = verdict.conclude(ranked, ALPHA)
    assert (parent is not None) == (decided in ("parent", "identical"))
    if parent:
        best = ranked[0]
        assert best.ref == parent and best.p_value is not None and best.probability is not None
        assert best.p_value <= ALPHA and best.probability >= 0.5


def test_verdicts() -> None:
    assert conclude(found(-20, 0.3), found(-0.2, 1.4)) == ("parent", "lab/0")
    assert conclude(found(-0.5, 1.4), found(-0.2, 1.5)) == ("none", None)
    assert conclude(found(-20, 0.1), found(-20, 0.1), found(-20, 0.1))[0] == "undecided"
    assert conclude(found(-20, 0.0, frozenset("wb")), found(-20, 0.3)) == ("identical", "lab/0")
    assert conclude(found(None, 0.1)) == ("undecided", None)
    assert conclude(found(None, 0.0, frozenset("wb"))) == ("identical", None), "equal, but no p-value names a parent"
    assert verdict.conclude([], ALPHA) == ("undecided", None)


def test_the_nearest_of_the_related_wins_however_small_the_p_of_another() -> None:
    judged, _ = judge(found(-10, 0.2), found(-3000, 0.4), found(-0.1, 1.4))
    assert (judged[0].probability or 0) > 0.5 and judged[0].relation == "finetune"
    assert judged[1].relation == "sibling" and judged[2].relation == "none"


def one(item: WeightsEvidence, **other: Any) -> Candidate:
    return judge(item, pairs=[pair(**other)])[0][0]


def test_relations() -> None:
    assert one(found(-20, 0.0, frozenset("wb"))).relation == "identical"
    assert one(found(-20, 0.0, frozenset("wb")), same=False).relation == "head_changed"
    assert one(found(-20, 0.3, frozenset("b"))).relation == "partial"
    assert one(found(-20, 0.3)).relation == "finetune"
    assert one(found(-20, 0.3), kind="adapter").relation == "adapter"
    assert one(found(-0.3, 0.3)).relation == "none" and one(found(None, 0.3)).relation is None


@pytest.mark.parametrize(
    ("kind", "relation"), [("cast", "quantized"), ("quantized", "quantized"), ("pruned", "pruned")]
)
def test_what_runs_one_way_needs_no_direction(kind: str, relation: str) -> None:
    assert one(found(-20, 0.01, t=0.5), kind=kind).relation == relation
    assert one(found(-20, 0.01, t=0.5), back=kind).relation == "descendant"


def test_tokens_are_added_to_a_parent() -> None:
    assert one(found(-20, 0.0, frozenset("wb")), grown={"w": (12, 10)}).relation == "resized"
    assert one(found(-20, 0.01, t=0.5), grown={"w": (10, 12)}).relation == "common_origin"


@pytest.mark.parametrize(
    ("t", "moved", "relation", "decided"),
    [
        (0.0, 0.3, "finetune", "candidate"), (0.5, 0.3, "common_origin", "neither"), (1.0, 0.3, "descendant", "child"),
        (0.0, 0.01, "common_origin", None), (1.0, 0.01, "common_origin", None),
    ],
)  # fmt: skip
def test_who_came_first(t: float, moved: float, relation: str, decided: str | None) -> None:
    """Far moves tell, light ones do not; without an order there is no parent."""
    best = one(found(-20, moved, t=t))
    assert best.relation == relation and best.facts["first"] == decided
    assert conclude(found(-20, moved, t=t))[0] == ("parent" if relation == "finetune" else "common_origin")


def test_a_disguise_names_a_relative_and_no_parent() -> None:
    stranger, hidden = found(-0.2, 1.4), found(-0.3, 0.4)
    judged, _ = judge(stranger, hidden, pairs=[pair(), pair(permutation={"score": 0.99})])
    assert judged[1].relation == "common_origin" and judged[1].facts["disguise"] == {"score": 0.99}
    assert judged[0].relation == "none" and (judged[1].probability or 0) > (judged[0].probability or 0)


def test_seen_from_another_model() -> None:
    """The Gram matrix around another pivot equals the one of the vectors themselves."""
    x = np.random.default_rng(0).normal(size=(4, 50))
    rows = np.vstack([x[0], x[1:] - x[0]])
    pivot = np.vstack([x[2], x[1] - x[2], x[0] - x[2], x[3] - x[2]])
    assert verdict._seen_from(rows @ rows.T, 2) == pytest.approx(pivot @ pivot.T)


@pytest.mark.parametrize(
    ("claimed", "parent", "status", "undeclared"),
    [
        ("lab/0", "lab/0", "confirmed", []),
        ("lab/1", "lab/0", "relative", ["lab/0"]),
        ("lab/2", "lab/0", "contradicted", ["lab/0"]),
        ("lab/9", "lab/0", "not_testable", []),
        ("lab/2", None, "contradicted", []),
        ("lab/0", None, "confirmed", []),
        ("lab/1", None, "relative", []),
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


def test_information_ranks_relatives_and_leaves_strangers_and_descendants_alone() -> None:
    near, far = replace(found(-20, 0.3), information=10.0), replace(found(-20, 0.31), information=20.0)
    stranger, below = replace(found(-0.2, 1.4), information=90.0), replace(found(-20, 0.35, t=1.0), information=99.0)
    plain, _ = judge(*(replace(item, information=None) for item in (near, far, stranger, below)))
    ranked, _ = judge(near, far, stranger, below)
    assert [c.probability for c in ranked] == [plain[i].probability for i in (1, 0, 2, 3)]
    assert plain[0].probability > plain[1].probability and ranked[1].relation == "finetune"  # type: ignore[operator]
