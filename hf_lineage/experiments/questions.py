"""Hard questions with a known answer: which of these is the child's parent, if any, from very few bytes?

Made from families: the parent may be missing, its other children, their children and twins may stand in for it, noise
may be added to the child, and most questions may read only 0.5 to 16 KB. Fitting and judging use the same generator on
families that share no seed, recipe or width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import LineageError
from .families import Family, Member, sizes_of
from .networks import build

if TYPE_CHECKING:
    from ..answers.lineage import Lineage

KINDS = ("sibling", "ancestor", "descendant", "cousin", "unrelated", "twin")
KIND_WEIGHTS = (3.0, 1.0, 0.7, 2.0, 3.0, 3.0)
MIN_BYTES, MAX_BYTES = 512, 16384  # bytes read of a model
KEPT_WITHOUT_PARENT = 0.25  # of the questions whose answer is "none": without this they would be two in three
NOISY_SHARE = 0.25  # of questions, with noise on the child
WHOLE_SHARE = 0.3  # of questions, read in full
PARENT_OFFERED_SHARE = 0.65  # of questions, with the parent among the candidates
TURNED_SHARE = 0.5  # of these, asked the other way round: about the parent, with the child in its place
ALONE_SHARE = 1.0  # questions about one candidate, for each other one
PARENT_ALONE_SHARE = 0.8  # of these, with the parent: a declared base
UNRELATED_ONLY_SHARE = 0.3  # of questions, in which nobody but the parent is related


@dataclass(frozen=True, slots=True)
class Question:
    """One question: `parent` is None where no candidate is the parent. `turned`: its child is offered in its place."""

    child: Member
    candidates: tuple[Member, ...]
    parent: Member | None
    noise: float
    sample: int | None
    seed: int
    turned: bool = False

    def ask(self) -> Lineage:
        """Trace it. The noise is white, `noise` times each matrix's own standard deviation."""
        from ..tasks.trace import trace

        child = Altered(load_file(self.child.path / "model.safetensors"), self.noise, self.seed)
        return trace(
            child if self.noise else self.child.path,  # type: ignore[arg-type]  # anything with a state dict will do
            [member.path for member in self.candidates], sample=self.sample or "all", seed=self.seed,
        )  # fmt: skip


class Altered:
    """A state dict with white noise on its matrices, to be traced like a module."""

    def __init__(self, tensors: dict[str, torch.Tensor], noise: float, seed: int) -> None:
        self._tensors, self._noise, self._seed = tensors, noise, seed

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors, the same ones each time."""
        generator = torch.Generator().manual_seed(self._seed)
        return {
            name: value + self._noise * value.std() * torch.randn(value.shape, generator=generator)
            if value.ndim > 1
            else value
            for name, value in self._tensors.items()
        }


def questions(families: Sequence[Family], count: int, seed: int, balanced: bool = True) -> Iterator[Question]:
    """`count` questions about the members of families that share one architecture and its sizes, and `ALONE_SHARE` of
    that about one candidate each.

    Of parent and child, half the questions are asked the other way round, so that nobody profits from taking the
    candidates for older. balanced: skip some questions with neither a parent nor a child of their subject's among the
    candidates that was put there for it: one in eight is left.
    """
    members = [member for family in families for member in family.members]
    relations = {member.path: relations_to(member, members) for member in members}
    passing = random.Random(seed)
    for number, asked in (count, _several), (round(ALONE_SHARE * count), _alone):
        rng = random.Random(seed)
        for _ in range(number):
            child = rng.choice(members)
            parent, chosen = asked(relations[child.path], rng)
            noise = rng.uniform(0.2, 1.5) if rng.random() < NOISY_SHARE else 0.0
            sampled = rng.random() > WHOLE_SHARE
            sample = round(math.exp(rng.uniform(math.log(MIN_BYTES), math.log(MAX_BYTES)))) if sampled else None
            turned = parent is not None and passing.random() < TURNED_SHARE
            if balanced and parent is None and passing.random() > KEPT_WITHOUT_PARENT:
                continue
            if turned and noise:
                continue  # noise makes of a parent what looks like a child of its child
            if turned and parent is not None:
                child, chosen, parent = parent, [child if member is parent else member for member in chosen], None
            yield Question(child, tuple(chosen), parent, noise, sample, rng.getrandbits(31), turned)


Relations = dict[str, list[Member]]


def _several(groups: Relations, rng: random.Random) -> tuple[Member | None, list[Member]]:
    """The parent, or None, and the candidates, it among them."""
    parent = groups["parent"][0] if groups["parent"] and rng.random() < PARENT_OFFERED_SHARE else None
    chosen = [parent] if parent else []
    plain = rng.random() < UNRELATED_ONLY_SHARE
    for _ in range(rng.randint(0 if parent else 1, 7)):
        chosen.append(_another(groups, rng, plain))
    chosen = list(dict.fromkeys(chosen))
    rng.shuffle(chosen)
    return parent, chosen


def _alone(groups: Relations, rng: random.Random) -> tuple[Member | None, list[Member]]:
    parent = groups["parent"][0] if groups["parent"] and rng.random() < PARENT_ALONE_SHARE else None
    return parent, [parent or _another(groups, rng, rng.random() < UNRELATED_ONLY_SHARE)]


def _another(groups: Relations, rng: random.Random, unrelated: bool) -> Member:
    """A model that is not the parent, by the weights of the kinds."""
    kinds = [kind for kind in KINDS if groups[kind] and not (unrelated and kind != "unrelated")]
    kind = rng.choices(kinds, [KIND_WEIGHTS[KINDS.index(kind)] for kind in kinds])[0]
    return rng.choice(groups[kind])


def answers(
    families: Sequence[Family], count: int, seed: int, balanced: bool = True
) -> Iterator[tuple[Question, Lineage]]:
    """The questions with the answers of `trace`; one whose few bytes hold no slice of any tensor is skipped."""
    for question in questions(families, count, seed, balanced):
        try:
            yield question, question.ask()
        except LineageError:
            continue


def relations_to(child: Member, members: Sequence[Member]) -> dict[str, list[Member]]:
    """The other members by their relation to the child: parent, or one of `KINDS`."""
    lines = {member.path: line_of_descent(member, members) for member in members}
    child_line = lines[child.path]
    groups: dict[str, list[Member]] = {kind: [] for kind in ("parent", *KINDS)}
    for member in members:
        if member.path != child.path:
            groups[relation_between(child_line, lines[member.path], child, member)].append(member)
    return groups


def line_of_descent(member: Member, members: Sequence[Member]) -> list[str]:
    """Paths from the member up to its root."""
    found = {(other.path.parents[1], other.name): other for other in members}
    line = [str(member.path)]
    while member.parent is not None:
        member = found[member.path.parents[1], member.parent]
        line.append(str(member.path))
    return line


def relation_between(child_line: list[str], line: list[str], child: Member, member: Member) -> str:
    """What `member` is to `child`, by their lines of descent (paths, up to the root): "parent", or one of `KINDS`."""
    if child.recipe.get("start") is not None and child.recipe.get("start") == member.recipe.get("start"):
        return "twin"
    if child_line[-1] != line[-1]:
        return "unrelated"
    if line[0] in child_line:
        return "parent" if child_line[1] == line[0] else "ancestor"
    if child_line[0] in line:
        return "descendant"
    return "sibling" if child_line[1] == line[1] else "cousin"


def network(member: Member) -> Path | nn.Module:
    """The child of `trace` by features: the folder, or a module where no library knows the class."""
    if member.architecture != "fc":
        return member.path
    module = build("fc", member.recipe["classes"], sizes_of(member))
    module.load_state_dict(load_file(member.path / "model.safetensors"))
    return module
