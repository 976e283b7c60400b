"""What a tree makes of relatives, on records made by hand: probabilities sum to 1 whatever the tree says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hf_lineage.answers.lineage import Candidate, Relation
from hf_lineage.answers.phylogeny import Edge, Node, Phylogeny
from hf_lineage.tasks.combine import MISSING, TREE_MODELS, apply_tree, related_candidates

CHILD = ("u/child", "c0")


def related(ref: str, probability: float, relation: Relation = "common_origin", **about: Any) -> Candidate:
    usual = {"p_value": 1e-40, "log10_p": -40.0, "distance": 0.1, "facts": {"first": None, "moved": 0.1}}
    return Candidate(ref, ref, f"{ref}-sha", probability=probability, relation=relation, **{**usual, **about})


def stranger(ref: str, probability: float = 0.0) -> Candidate:
    return replace(related(ref, probability, "none"), p_value=1.0, log10_p=0.0)


def node(ref: str, hidden: bool = False, copy_of: str | None = None) -> Node:
    if hidden:
        return Node(ref, None, None, None, 0, True)
    return Node(ref, ref, ref, "c0" if ref == CHILD[0] else f"{ref}-sha", 0, duplicate_of=copy_of)


def step(parent: str, child: str, probability: float | None = 0.9, direction: float | None = 0.8, **about: Any) -> Edge:
    return Edge(parent, child, True, probability, "finetune", direction, **about)


def beside(one: str, other: str, probability: float | None = 0.9) -> Edge:
    a, b = sorted((one, other))
    return Edge(a, b, False, probability, "common_origin")


def tree(nodes: Sequence[str | Node], *edges: Edge) -> Phylogeny:
    return Phylogeny(tuple(n if isinstance(n, Node) else node(n) for n in nodes), edges, ())


def total(candidates: Sequence[Candidate], none: float) -> float:
    return sum(c.probability or 0.0 for c in candidates) + none


def by_ref(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    return {c.ref: c for c in candidates}


PAIRS = [related("a/p", 0.4, "finetune"), related("a/s", 0.3), related("a/r", 0.1), stranger("z/z", 0.05)]
NONE = 0.15


class TestRelatives:
    def test_the_related_ones_nearest_first(self) -> None:
        far, near = related("a/far", 0.1, distance=0.5), related("a/near", 0.1, distance=0.01)
        weak = replace(related("a/weak", 0.1), p_value=0.02)
        untested = replace(related("a/untested", 0.1), p_value=None)
        assert [c.ref for c in related_candidates([far, weak, stranger("z/z"), untested, near], 1e-3)] == [
            "a/near",
            "a/far",
        ]

    def test_no_choice_to_make(self) -> None:
        assert (
            related_candidates([], 1e-3) == []
            and related_candidates([related("a/p", 0.9), stranger("z/z")], 1e-3) == []
        )

    @pytest.mark.parametrize("relation", ["identical", "head_changed"])
    def test_a_copy_is_left_to_the_pair(self, relation: Relation) -> None:
        assert related_candidates([related("a/p", 0.9, relation), related("a/s", 0.1)], 1e-3) == []

    def test_a_disguise_is_left_to_the_pair(self) -> None:
        hidden = related("a/p", 0.9, facts={"disguise": {}})
        assert related_candidates([hidden, related("a/s", 0.1)], 1e-3) == []

    def test_no_more_than_a_tree_can_hold(self) -> None:
        many = [related(f"a/m{i:03}", 0.01, distance=1.0 - i / 1000) for i in range(TREE_MODELS + 20)]
        kept = related_candidates(many, 1e-3)
        assert len(kept) == TREE_MODELS and kept[0].ref == f"a/m{TREE_MODELS + 19:03}"

    def test_the_order_given_does_not_matter(self) -> None:
        same = [related(f"a/m{i}", 0.1) for i in range(5)]
        assert related_candidates(same, 1e-3) == related_candidates(same[::-1], 1e-3)


class TestSettle:
    def test_a_parent_and_its_other_child(self) -> None:
        found, none = apply_tree(
            PAIRS, NONE, tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/p", "a/s")), CHILD
        )
        told = by_ref(found)
        assert none == MISSING > NONE and told["a/p"].probability == pytest.approx((1 - MISSING) * 0.9 * 0.8)
        assert (told["a/p"].relation, told["a/p"].facts["first"]) == ("finetune", "candidate")
        assert (told["a/s"].relation, told["a/s"].facts["first"]) == ("sibling", None)
        assert told["a/s"].probability == pytest.approx(3 * (told["a/r"].probability or 0))
        assert total(found, none) == pytest.approx(1, abs=1e-12)

    def test_the_evidence_names_the_tree(self) -> None:
        found, _ = apply_tree(
            PAIRS, NONE, tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/p", "a/s")), CHILD
        )
        told = by_ref(found)
        assert told["a/p"].evidence["tree"] == {"models": 3, "parent": True, "edge": 0.9, "direction": 0.8}
        assert told["a/s"].evidence["tree"]["parent"] is False and "tree" not in told["a/r"].evidence

    def test_ancestors_and_descendants(self) -> None:
        grown = tree(
            ["a/r", "a/p", "u/child", "a/s"], step("a/r", "a/p"), step("a/p", "u/child"), step("u/child", "a/s")
        )
        told = by_ref(apply_tree(PAIRS, NONE, grown, CHILD)[0])
        assert (told["a/r"].relation, told["a/r"].facts["first"]) == ("common_origin", "candidate")
        assert (told["a/s"].relation, told["a/s"].facts["first"]) == ("descendant", "child")
        assert told["a/p"].relation == "finetune" and (told["a/p"].probability or 0) > 0.4

    def test_what_was_done_stays_what_the_pair_saw(self) -> None:
        pairs = [related("a/p", 0.4, "quantized"), *PAIRS[1:]]
        grown = tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/p", "a/s"))
        found, none = apply_tree(pairs, NONE, grown, CHILD)
        assert by_ref(found)["a/p"].relation == "quantized" and none == NONE, "rounding runs one way: nobody is missing"

    def test_nobody_can_tell_the_direction(self) -> None:
        grown = tree(["a/p", "a/s", "u/child"], beside("a/p", "u/child"), beside("a/p", "a/s"))
        assert apply_tree(PAIRS, NONE, grown, CHILD) == (PAIRS, NONE), "the pairs know as much"

    @pytest.mark.parametrize(
        "grown",
        [
            tree(["a/p", "a/s"], step("a/p", "a/s")),  # the child is not in it
            tree(["a/p", "a/s", "u/child"], step("u/child", "a/p"), step("u/child", "a/s")),  # it came first
            tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/s", "u/child")),  # a merge
            tree(["a/p", "a/s", "u/child"], beside("a/p", "u/child"), beside("a/s", "u/child")),  # between two
            tree(["a/p", "a/s", "u/child"], step("a/p", "a/s")),  # alone
            tree(["a/p", "a/s", "u/child", node("?1", True)], *(step("?1", n) for n in ("a/p", "a/s", "u/child"))),
            tree([]),
            tree(["a/p", "a/s", "u/child"], step("a/p", "u/child", None), step("a/p", "a/s")),  # no probability given
        ],
        ids=["absent", "first", "merge", "between", "alone", "hidden", "empty", "no probability"],
    )
    def test_left_as_the_pairs_had_it(self, grown: Phylogeny) -> None:
        assert apply_tree(PAIRS, NONE, grown, CHILD) == (PAIRS, NONE)

    def test_the_same_name_at_another_commit_is_somebody_else(self) -> None:
        grown = tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/p", "a/s"))
        assert apply_tree(PAIRS, NONE, grown, ("u/child", "c1")) == (PAIRS, NONE)

    @pytest.mark.parametrize("edge", [step("a/p", "u/child"), beside("a/p", "u/child")], ids=["directed", "undirected"])
    @pytest.mark.parametrize("none", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize(
        "shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1e-300, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)]
    )
    def test_probabilities_sum_to_one(self, edge: Edge, none: float, shares: tuple[float, ...]) -> None:
        names = ("a/p", "a/s", "a/r")
        pairs = [related(ref, share * (1 - none)) for ref, share in zip(names, shares, strict=True)]
        found, left = apply_tree(pairs, none, tree(["a/p", "a/s", "a/r", "u/child"], edge, step("a/p", "a/s")), CHILD)
        assert total(found, left) == pytest.approx(1, abs=1e-9) or (found, left) == (pairs, none)
        assert all(0 <= (c.probability or 0) <= 1 for c in found)

    def test_nobody_else_to_take_what_is_left(self) -> None:
        pairs = [related("a/p", 0.9, "finetune"), related("a/s", 0.0), stranger("z/z")]
        found, none = apply_tree(pairs, 0.4, tree(["a/p", "u/child"], step("a/p", "u/child")), CHILD)
        assert [c.probability for c in found] == [0.6, 0.0, 0.0] and none == 0.4

    def test_a_copy_of_the_parent_has_its_place(self) -> None:
        """Of a repo and its mirror the pairs' first choice is named, whichever the tree calls the copy."""
        mirror = related("a/mirror", 0.3)
        grown = tree(
            ["a/p", node("a/mirror", copy_of="a/p"), "a/s", "u/child"],
            Edge("a/mirror", "a/p", False, 1.0, "identical"), step("a/p", "u/child"), step("a/p", "a/s"),
        )  # fmt: skip
        found, none = apply_tree([*PAIRS[:1], mirror, *PAIRS[1:]], 0.4, grown, CHILD)
        told = by_ref(found)
        assert told["a/p"].probability == pytest.approx(0.6 * 0.72) and told["a/p"].facts["copies"] == ["a/mirror"]
        assert told["a/mirror"].probability == pytest.approx(0.6 * 0.28 * 0.3 / 0.75)
        swapped, _ = apply_tree([related("a/p", 0.3), related("a/mirror", 0.4), *PAIRS[1:]], 0.4, grown, CHILD)
        assert by_ref(swapped)["a/mirror"].probability == pytest.approx(0.6 * 0.72)
        assert told["a/mirror"].relation == told["a/p"].relation == "finetune"
        assert told["a/s"].relation == "sibling" and total(found, none) == pytest.approx(1, abs=1e-9)

    def test_a_tree_does_not_overrule_a_pair_that_is_sure(self) -> None:
        """With the true parent offered, a tree moved it from 0.418 to 0.003."""
        grown = tree(["a/p", "a/s", "u/child"], step("a/s", "u/child", 0.99, direction=0.99), step("a/s", "a/p"))
        sure = [related("a/p", 0.418, "finetune"), related("a/s", 0.08), stranger("z/z", 0.1)]
        assert apply_tree(sure, 0.4, grown, CHILD) == (sure, 0.4)
        close = [related("a/p", 0.3, "finetune"), related("a/s", 0.2), stranger("z/z", 0.1)]
        assert by_ref(apply_tree(close, 0.4, grown, CHILD)[0])["a/s"].probability == pytest.approx(0.6 * 0.99**2)

    def test_an_answer_cannot_hold_a_cycle(self) -> None:
        with pytest.raises(ValueError, match="descend from themselves"):
            tree(["a/p", "a/s", "u/child"], step("a/p", "u/child"), step("a/s", "a/p"), step("a/p", "a/s"))
