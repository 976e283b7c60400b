"""The networks of an experiment, trained or read again: candidates, and the children that are asked about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..answers.base import Progress
from ..errors import LineageError
from .families import Member, train_grid
from .protocol import Column, Experiment


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of an experiment: which of the candidates is the child's parent, or its ancestor?"""

    column: str
    child: Member
    candidates: tuple[Member, ...]
    parent: Member


def train(experiment: Experiment, folder: Path, progress: Progress | None = None) -> tuple[list[Asked], dict[str, int]]:
    """The questions of all columns, and how many networks were dropped for not learning, by column.

    What was trained in `folder` before with the same settings is read.
    """
    roots = train_grid(
        folder / "parents", experiment.architecture, experiment.parents, seed=experiment.seed, sizes=experiment.sizes,
        min_accuracy=experiment.min_accuracy, progress=progress,
    )  # fmt: skip
    lines = sorted(roots.members, key=_accuracy, reverse=True)[: experiment.best]
    if len(lines) < 2 + experiment.teacher:
        raise LineageError(f"{roots.dropped} of {len(experiment.parents)} candidates did not learn: too few are left.")
    dropped = {"parents": roots.dropped}
    if experiment.chain:
        return _chain(experiment, folder, lines, dropped, progress)
    asked: list[Asked] = []
    for column in experiment.columns:
        found, dropped[column.name] = _column(experiment, column, folder, lines, progress)
        asked += found
    return asked, dropped


def _column(
    experiment: Experiment, column: Column, folder: Path, lines: Sequence[Member], progress: Progress | None
) -> tuple[list[Asked], int]:
    recipes = column.recipes
    if experiment.teacher:  # S2.4: another line's best child, whose own line is no candidate
        plain = [{**recipe, "temperature": None} for recipe in recipes[:1]]
        taught = _children(experiment, column, folder / f"{column.name} teacher", lines[:1], plain, progress)
        teacher = max(taught[0], key=_accuracy)
        recipes, lines = tuple({**recipe, "teacher": str(teacher.path)} for recipe in recipes), lines[1:]
    members, dropped = _children(experiment, column, folder / column.name, lines, recipes, progress)
    of = {line.name: line for line in lines}
    asked = [Asked(column.name, child, tuple(lines), of[child.parent or ""]) for child in members]
    return _some(experiment, asked), dropped


def _chain(
    experiment: Experiment, folder: Path, lines: Sequence[Member], dropped: dict[str, int], progress: Progress | None
) -> tuple[list[Asked], dict[str, int]]:
    """Table 2: the candidates are one network of each line and generation, the line's best; the next generation comes
    from these; each is asked about with those of every earlier generation as candidates."""
    ancestors = [{line.name: line for line in lines}]  # by generation: the line's root → its best
    asked: list[Asked] = []
    for number, column in enumerate(experiment.columns, 2):
        best = ancestors[-1]
        members, dropped[column.name] = _children(
            experiment, column, folder / column.name, [*best.values()], column.recipes, progress
        )
        line_of = {parent.name: root for root, parent in best.items()}
        for back, older in enumerate(ancestors, 1):
            name = f"G{back} to G{number}"
            asked += _some(
                experiment,
                [
                    Asked(name, child, tuple(older.values()), older[line_of[child.parent or ""]])
                    for child in members if line_of[child.parent or ""] in older
                ],
            )  # fmt: skip
        found: dict[str, Member] = {}
        for child in sorted(members, key=_accuracy):
            found[line_of[child.parent or ""]] = child
        ancestors.append(found)
    return asked, dropped


def _children(
    experiment: Experiment, column: Column, folder: Path, parents: Sequence[Member],
    recipes: Sequence[dict[str, object]], progress: Progress | None,
) -> tuple[tuple[Member, ...], int]:  # fmt: skip
    family = train_grid(
        folder, experiment.architecture, recipes, parents=parents, seed=experiment.seed, sizes=experiment.sizes,
        min_accuracy=column.min_accuracy, progress=progress,
    )  # fmt: skip
    return family.members, family.dropped


def _some(experiment: Experiment, asked: list[Asked]) -> list[Asked]:
    """At most so many as the settings say, drawn by the seed."""
    return random.Random(experiment.seed).sample(asked, min(experiment.children, len(asked)))


def _accuracy(member: Member) -> float:
    return member.quality["accuracy"]
