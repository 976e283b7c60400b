"""Trees of models of which the steps show what they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from hf_lineage.trees.by_steps import NO_DESCENT, Descent, descent_by_steps, hang_by_steps
from hf_lineage.trees.pair_statistics import step_cosines
from hf_lineage.trees.reading import OWN_STEP
from hf_lineage.trees.spanning import Edge, edge, neighbours, side
from hf_lineage.weights.direction.order import Order, is_elder

pytestmark = pytest.mark.unit
THIRD = 1 / 3


def order(decided: str | None, marked: bool = True, child_marked: bool = True, lambda_: float | None = 0.0) -> Order:
    shares = {None: (THIRD,) * 3, "candidate": (0.9, 0.1, 0.0), "common": (0.1, 0.8, 0.1), "child": (0.0, 0.1, 0.9)}
    value = {"candidate": 1.0, "child": -1.0}.get(decided or "", lambda_)
    return Order(*shares[decided], value, 0.1, 1.0, "rounding_edges", 10**6, None, marked, child_marked, "")


@dataclass
class World:
    """A tree with known parents, of which the steps show what is in `shown`."""

    parents: dict[int, int]
    unmarked: set[int]
    silent: set[Edge] = field(default_factory=set)  # pairs whose order does not show
    vague: set[Edge] = field(default_factory=set)  # (child, parent) of which inheritance says nothing
    alone: set[int] = field(default_factory=set)  # who moved by itself

    def above(self, x: int) -> list[int]:
        found = []
        while x in self.parents:
            x = self.parents[x]
            found.append(x)
        return found

    def order(self, candidate: int, child: int) -> Order:
        marks = candidate not in self.unmarked, child not in self.unmarked
        if edge(candidate, child) in self.silent:
            return order(None, *marks)
        told = (
            "candidate" if candidate in self.above(child) else "child" if child in self.above(candidate) else "common"
        )
        return order(told, *marks)

    def inherits(self, child: int, parent: int, base: int) -> bool | None:
        return None if (child, parent) in self.vague else parent in self.above(child)

    def moved_alone(self, model: int, others: Sequence[int]) -> bool:
        return model in self.alone


def squared(models: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(models, 3))
    return ((points[:, None] - points) ** 2).sum(-1)


@dataclass
class Leaning(World):
    """Siblings without their base; 0, which was tuned otherwise, seems older than all, and is shown older than `few`."""

    few: int = 0

    def order(self, candidate: int, child: int) -> Order:
        marks = candidate not in self.unmarked, child not in self.unmarked
        if 0 not in (candidate, child):
            return order("common", *marks)
        if max(candidate, child) <= self.few:
            return order("candidate" if candidate == 0 else "child", *marks)
        return order(None, *marks, lambda_=0.6 if candidate == 0 else -0.6)


STAR = World(dict.fromkeys(range(1, 7), 0), {0})
CHAIN = World({1: 0, 2: 1, 3: 2, 4: 1}, {0})


@pytest.mark.parametrize("world", [STAR, CHAIN], ids=["star", "chain"])
@pytest.mark.parametrize("seed", range(5))
def test_the_parents_that_show_are_found(world: World, seed: int) -> None:
    """Wherever the models lie: a grandparent that is nearer is not taken for the parent."""
    members = sorted({*world.parents, *world.parents.values()})
    apart = np.array(
        [[len({*world.above(a), a} ^ {*world.above(b), b}) for b in members] for a in members], dtype=float
    )
    found = descent_by_steps(members, apart + 0.3 * squared(len(members), seed), world)
    assert found.parents == world.parents and not found.unclear


def test_siblings_alone_have_no_parent() -> None:
    found = descent_by_steps(range(1, 7), squared(7), STAR)
    assert not found.parents
    assert all(found.refuses(a, b) for a in range(1, 7) for b in range(1, a))


def test_a_marked_model_without_its_base_is_nobodys_parent() -> None:
    world = World({1: 9, 2: 1}, set())
    assert not descent_by_steps([1, 2], squared(3), world).parents
    assert descent_by_steps([1, 2], squared(3), World({1: 9, 2: 1}, {1})).parents == {2: 1}


def test_where_inheritance_is_vague_nothing_is_decided() -> None:
    world = World(STAR.parents, {0}, silent={(1, 2)}, vague={(2, 1)})
    apart = squared(7)
    apart[1, 2] = apart[2, 1] = 1e-3
    found = descent_by_steps(range(7), apart, world)
    assert found.parents[2] == 0 and found.unclear == {2}
    assert found.decided(0, 2) is None and found.is_unclear(2, 0) and not found.is_unclear(3, 0)


def test_inheritance_alone_shows_a_parent() -> None:
    world = World(CHAIN.parents, {0}, silent={(1, 4)})
    apart = squared(5)
    apart[1, 4] = apart[4, 1] = 1e-3
    assert descent_by_steps(range(5), apart, world).parents[4] == 1


def test_models_without_steps_are_left_alone() -> None:
    class Nothing:
        def order(self, candidate: int, child: int) -> None:
            return None

        def inherits(self, child: int, parent: int, base: int) -> None:
            raise AssertionError("not asked")

    assert descent_by_steps(range(4), squared(4), Nothing()) == NO_DESCENT


@pytest.mark.parametrize("seed", range(30))
def test_a_tree_stays_a_tree(seed: int) -> None:
    """Also where the parents make a circle, which the steps never should."""
    random = np.random.default_rng(seed)
    models = int(random.integers(2, 12))
    members = sorted(int(i) for i in random.choice(40, models, replace=False))
    tree = {edge(i, int(random.integers(0, i))) for i in range(1, models)}
    parents = {members[i]: members[int(random.integers(0, models))] for i in range(models) if random.random() < 0.7}
    parents = {child: parent for child, parent in parents.items() if child != parent}
    found = hang_by_steps(tree, members, Descent(parents))
    assert len(found) == models - 1 and side(neighbours(found, models), 0, -1).all()
    acyclic = [x for x in parents if _ends(x, parents)]
    assert all(edge(members.index(x), members.index(parents[x])) in found for x in acyclic)


def _ends(x: int, parents: dict[int, int]) -> bool:
    seen = set()
    while x in parents and x not in seen:
        seen.add(x)
        x = parents[x]
    return x not in seen


def test_who_is_elder() -> None:
    assert is_elder(order("candidate")) and not is_elder(order("common")) and not is_elder(order("child"))
    assert is_elder(order(None, lambda_=0.7)) and not is_elder(order(None, lambda_=0.2))
    assert is_elder(order(None, marked=False, lambda_=None)), "the child alone bears a mark"
    assert not is_elder(order(None, marked=False, lambda_=-0.3)) and not is_elder(order(None, lambda_=None))
    assert not is_elder(None) and not math.isnan(order(None).stderr)


@pytest.mark.parametrize("few", [0, 1, 3, 6])
@pytest.mark.parametrize("alone", [True, False])
def test_who_moved_by_itself_is_no_base(few: int, alone: bool) -> None:
    """A LoRA among siblings, and their base in its place."""
    found = descent_by_steps(range(7), squared(7), Leaning({}, {0}, few=few, alone={0} if alone else set()))
    assert found.parents == ({} if alone else dict.fromkeys(range(1, few + 1), 0))
    assert found.leaning == (set() if alone else {(0, x) for x in range(1, 7)})
    assert all(edge(0, x) in found.measured for x in range(1, 7))


@pytest.mark.parametrize(("own", "above"), [(0.0, False), (0.5, False), (4.0, True)])
def test_the_median_cosine_of_steps(own: float, above: bool) -> None:
    """Against a loop over the steps themselves."""
    steps = np.random.default_rng(1).normal(size=(6, 400))
    steps[0] *= own
    squares = ((steps[:, None] - steps) ** 2).sum(-1)
    away = steps[1:] - steps[0]
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for i, a in enumerate(away) for b in away[:i]]
    found = np.median(step_cosines(squares, 0, [1, 2, 3, 4, 5]))
    assert found == pytest.approx(np.median(cosines)) and (found > OWN_STEP) == above
    assert np.median(step_cosines(np.zeros((3, 3)), 0, [1, 2])) == 0
