"""The rule on made-up evidence: probabilities, Holm, claims, order; the properties DESIGN promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lineage.answers.lineage import Candidate, Claim
from hf_lineage.tasks import verdict
from hf_lineage.weights.direction.origin import OriginPosition, order_by_position
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
    place = OriginPosition(t, 1 / distance) if distance else None
    r = 1 / (1 + distance**2) if log10_p is None or log10_p < -2 else 0.0
    return WeightsEvidence(
        distance, 0.0, distance, test, equal, ("w", "b"), (), {}, {"w": {"distance": distance, "correlation": r}}, correlation=r, entries=100_000,
        changed_entries=100_000, origin=place, tested_entries=100_000,
    )  # fmt: skip


def comparison(items: Sequence[WeightsEvidence]) -> WeightsComparison:
    """The items beside each other."""
    square = [(item.distance or 0.0) ** 2 for item in items]
    gaps = [[(b - a, 1e-3, a) for k, b in enumerate(square) if k != i] for i, a in enumerate(square)]
    rivals = [replace(item, **_margin(gap)) for item, gap in zip(items, gaps, strict=True)]
    return WeightsComparison(dict(enumerate(rivals)), {}, {})


def pair(
    same: bool = True, kind: str = "other", back: str = "other", grown: dict[str, tuple[int, int]] | None = None,
    permutation: dict[str, Any] | None = None, rescaled: bool = False,
) -> verdict.Pair:  # fmt: skip
    what = {"share": 1.0}
    return verdict.Pair(
        same, frozenset("wb"), grown or {}, lambda: (kind, dict(what)), lambda: (back, dict(what)),  # type: ignore[arg-type]
        permutation=permutation, rescaled=rescaled,
    )  # fmt: skip


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
    assert judged[1].relation == "finetune" and judged[2].relation == "none", "each by itself"


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
    ("kind", "forth", "back"), [("cast", 1.0, ALPHA), ("quantized", 1 - ALPHA, ALPHA), ("pruned", 1 - ALPHA, ALPHA)]
)
def test_what_runs_one_way_needs_no_direction(kind: str, forth: float, back: float) -> None:
    made, undone = one(found(-20, 0.01, t=0.5), kind=kind), one(found(-20, 0.01, t=0.5), back=kind)
    assert made.relation == kind and (made.probability or 0) <= forth and made.first == "candidate"
    assert undone.relation == "descendant" and (undone.probability or 0) <= back and undone.facts["undone"] == kind
    assert kind != "cast" or made.probability == 1.0


def test_a_few_tokens_are_added_to_a_parent() -> None:
    """Where the rows of both are alike; more of them may as well have been cut off."""
    assert one(found(-20, 0.01), grown={"w": (88, 80)}).relation == "resized"
    assert one(found(-20, 0.01), grown={"w": (80, 88)}).relation == "descendant"
    assert one(found(-20, 0.0, frozenset("wb")), grown={"w": (88, 80)}).relation == "resized"
    for rows in ((120, 80), (80, 120)):
        assert one(found(-20, 0.01), grown={"w": rows}).first is None
    fresh = replace(found(-20, 0.01), tensors={"w": {"distance": 1.0, "correlation": 0.1}})
    assert one(fresh, grown={"w": (88, 80)}).first is None, "all rows are new: nothing grew"


@pytest.mark.parametrize(
    ("t", "moved", "relation", "decided"),
    [
        (0.0, 0.3, "finetune", "candidate"), (0.5, 0.3, "common_origin", None), (1.0, 0.3, "descendant", "child"),
        (0.0, 0.01, "common_origin", None), (1.0, 0.01, "common_origin", None), (0.5, 0.01, "common_origin", None),
        (1.5, 0.5, "common_origin", None), (-0.5, 0.5, "common_origin", None),
    ],
)  # fmt: skip
def test_who_came_first(t: float, moved: float, relation: str, decided: str | None) -> None:
    """Far moves tell, light ones do not; without an order there is no parent, and never is "neither" said."""
    best = one(found(-20, moved, t=t))
    assert best.relation == relation and best.facts["first"] == decided
    assert conclude(found(-20, moved, t=t))[0] == ("parent" if relation == "finetune" else "common_origin")


def test_a_disguise_is_no_other_question_unless_scales_are_lost() -> None:
    stranger, hidden = found(-0.2, 1.4), found(-4.0, 0.3)
    plain = one(hidden)
    judged, _ = judge(stranger, hidden, pairs=[pair(), pair(permutation={"score": 0.99})])
    assert judged[1].relation == plain.relation == "finetune" and judged[1].facts["disguise"] == {"score": 0.99}
    assert judged[0].relation == "none" and (judged[1].probability or 0) > (judged[0].probability or 0)
    assert one(hidden, permutation={"score": 0.99}, rescaled=True).relation == "common_origin"


def test_an_ample_test_leaves_an_unrelated_candidate_no_probability() -> None:
    assert (one(found(-0.24, 0.9)).probability or 0) <= ALPHA
    weak = replace(found(-0.24, 0.9), tested_entries=100)
    assert (one(weak).probability or 0) <= 0.5


@given(st.floats(-3, 4), st.floats(0.05, 30), st.integers(10, 10**6))
def test_the_two_directions_of_a_pair_add_up_to_at_most_one(t: float, reach: float, entries: int) -> None:
    """The origin seen from the other model: 1 − t, at the distance |child|/|Δ|; never parent both ways."""
    back = max(reach**2 + 1 - 2 * t, 0.0) ** 0.5
    forth = order_by_position(OriginPosition(t, reach), entries)
    other = order_by_position(OriginPosition(1 - t, back), entries)
    assert forth.parent + forth.between / 2 + other.parent + other.between / 2 <= 1 + 1e-9
    assert {verdict._first(forth), verdict._first(other)} in ({None}, {"candidate", "child"})


def test_an_equal_trunk_shows_no_order() -> None:
    both = one(found(-20, 0.0, frozenset("wb")), same=False)
    assert both.relation == "head_changed" and both.probability == 0.5
    assert verdict.conclude([both], ALPHA) == ("common_origin", None)


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
        ("lab/3", None, "relative", []),
        ("lab/4", None, "confirmed", []),
    ],
)
def test_claims(claimed: str, parent: str | None, status: str, undeclared: list[str]) -> None:
    numbers: list[dict[str, Any]] = [
        {"p_value": 1e-9, "relation": "finetune"}, {"p_value": 1e-5, "relation": "common_origin"},
        {"p_value": 0.4, "relation": "none"},
        {"p_value": 1e-9, "relation": "descendant", "facts": {"first": "child"}, "distance": 0.1},
        {"p_value": 1e-9, "relation": "common_origin", "distance": 0.15},
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
    # the odds change places; who came first is each pair's own
    odds = [[c.probability or 0.0 for c in each] for each in (plain, ranked)]
    assert sorted(odds[1][:2]) == pytest.approx(sorted(odds[0][:2]), rel=0.05)
    assert odds[1][2:] == pytest.approx(odds[0][2:], rel=0.01)
    assert odds[1][1] > odds[1][0] and ranked[1].relation == "finetune"


def test_what_the_caller_knows_of_the_order() -> None:
    """Taken of a related one where nothing shows; an equal trunk and a disguise included. Strangers gain nothing."""

    def told(item: WeightsEvidence, about: verdict.Pair) -> Candidate:
        blank = [Candidate("lab/0", "lab/0")]
        return verdict.judge(blank, comparison([item]), [about], frozenset(), SIZES, ALPHA, older=True)[0][0]

    light, far = found(-20, 1e-3, t=0.5), found(-20, 0.5, t=0.0)
    assert (told(light, pair()).first, told(light, pair()).relation, told(light, pair()).order_taken) == (
        "candidate", "finetune", True,
    )  # fmt: skip
    headless = told(found(-20, 0.0, frozenset("wb")), pair(same=False))
    assert (headless.relation, headless.order_taken, headless.probability) == ("head_changed", True, 1.0)
    assert told(light, pair(permutation={"score": 1.0}, rescaled=True)).order_taken
    assert told(light, pair(kind="adapter")).relation == "adapter"
    assert not told(far, pair()).order_taken and told(far, pair()).first == "candidate", "measured"
    for about in (
        pair(back="pruned"),
        pair(kind="pruned", back="quantized"),
    ):  # made from the child; either was changed
        assert told(light, about).facts["older"] == "not_taken" and told(light, about).first != "candidate"
    assert told(found(-20, 0.5, t=1.0), pair()).facts["older"] == "not_taken"
    assert "older" not in told(found(-0.2, 0.5), pair()).facts
    assert "older" not in told(found(None, 0.5), pair()).facts
