"""The papers' experiments as data: one TOML file each in `settings/`, and the grid of recipes that it stands for.

    title, source        what it is, and where the paper says so
    paper                the paper's own setting, in words
    architecture         of `families.SIZES`; sizes: other ones, by scale
    kind                 "parent": which candidate is it; "disguise": is a pair found at 0.1 % false positives
    chain                whether the columns are generations of one line, each from the last one's best (Table 2)
    [scale.parents]      the recipes of the candidates: each value that is a list is a choice, all combinations are
                         made, `copies` of each with their own seeds, and the `best` by test accuracy are kept
    [scale.children]     the same of every column's children, from every parent
    [columns.NAME]       what its children have of their own, and `like`: what of the paper it stands for
    [printed.NAME]       the paper's figures of that column, in percent: method = [mean, spread]

The scales are `smoke`, minutes on two cores, and `small`, an hour or two.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError

SETTINGS = Path(__file__).parent / "settings"
SCALES = ("smoke", "small")
USUAL: dict[str, Any] = {"optimizer": "adam", "weight_decay": 0.0, "clip": 0.0}  # of a recipe


@dataclass(frozen=True, slots=True)
class Column:
    """The children of one column: their recipes, and what of the paper they stand for."""

    name: str
    like: str
    recipes: tuple[dict[str, Any], ...]
    min_accuracy: float
    x: float | None  # its place in a figure


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment at one scale."""

    name: str
    scale: str
    title: str
    source: str
    paper: str
    architecture: str
    sizes: dict[str, Any]
    kind: str
    chain: bool
    teacher: bool  # children also learn from another line's best child
    xlabel: str
    parents: tuple[dict[str, Any], ...]
    best: int
    min_accuracy: float
    columns: tuple[Column, ...]
    printed: Mapping[str, Mapping[str, tuple[float, float]]]  # column → method → the paper's mean and spread, shares
    seed: int
    children: int  # asked about in each column at most
    probes: int
    steps: tuple[float, ...]
    detector: bool


def names() -> tuple[str, ...]:
    """The experiments there are."""
    return tuple(sorted(path.stem for path in SETTINGS.glob("*.toml")))


def load(name: str, scale: str = "small", seed: int | None = None) -> Experiment:
    """The experiment of that name. Raises `ArgumentError` for an unknown one, or another scale than `SCALES`."""
    if name not in names():
        raise ArgumentError(f"Expected an experiment out of {', '.join(names())}, got {name!r}.")
    if scale not in SCALES:
        raise ArgumentError(f"Expected a scale out of {', '.join(SCALES)}, got {scale!r}.")
    text = tomllib.loads((SETTINGS / f"{name}.toml").read_text(encoding="utf-8"))
    given = text[scale]
    printed = {
        column: {method: (mean / 100, spread / 100) for method, (mean, spread) in of.items()}
        for column, of in text.get("printed", {}).items()
    }
    columns = {of: own for of, own in text["columns"].items() if scale in own.get("scales", SCALES)}
    return Experiment(
        name, scale, text["title"], text["source"], text["paper"], text["architecture"], given.get("sizes", {}),
        text.get("kind", "parent"), text.get("chain", False), text.get("teacher", False),
        text.get("xlabel", ""), grid(given["parents"]), given["parents"].get("best", 10**6),
        given["parents"].get("min_accuracy", 0.8),
        tuple(_column(of, own, given["children"]) for of, own in columns.items()), printed,
        text["seed"] if seed is None else seed, given.get("asked", 10**6), given.get("probes", 128),
        tuple(given.get("steps", (0.001, 0.01, 0.1))), given.get("detector", False),
    )  # fmt: skip


def _column(name: str, own: dict[str, Any], children: dict[str, Any]) -> Column:
    given = children | {of: value for of, value in own.items() if of not in ("like", "x", "scales")}
    return Column(name, own.get("like", ""), grid(given), given.get("min_accuracy", 0.8), own.get("x"))


def grid(table: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Every combination of the choices, `copies` of each.

    >>> [(recipe["lr"], recipe["batch"]) for recipe in grid({"lr": [0.1, 0.01], "batch": 64, "copies": 1})]
    [(0.1, 64), (0.01, 64)]
    """
    rest = {name: value for name, value in table.items() if name not in ("copies", "best", "min_accuracy")}
    choices = [
        [(name, value) for value in (values if isinstance(values, list) else [values])] for name, values in rest.items()
    ]
    made = [USUAL | dict(chosen) for chosen in itertools.product(*choices)]
    made = [{"head_lr": recipe["lr"], **recipe} if "lr" in recipe else recipe for recipe in made]
    return tuple(recipe for recipe in made for _ in range(table.get("copies", 1)))
