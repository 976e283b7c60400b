"""Families with a known truth → examples (S2.5.1), and the ways to split them so that generalisation is measured.

A table says which child has which parent. As JSON or CSV it names local folders or Hub repo ids:

    {"parents": ["org/a", "org/b"], "children": {"user/x": "org/a", "user/y": null}}      child,parent
                                                                                            user/x,org/a
                                                                                            user/y,
A parent of null, or none in the CSV, is "none of these"; a CSV row without a child adds its parent as a candidate.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..answers.base import Progress
from ..answers.refs import ModelRef
from ..checkpoints.opener import Opener
from ..errors import ArgumentError, LineageError, NothingToCompareError
from ..features.evidence import Settings, Source
from .inputs import DetectorInputs, pair, read_inputs
from .model import DetectorConfig

SPLIT_SHARES = (7, 1, 2)  # of training, validation and test
SPLITS = ("child", "parent", "architecture")
MAX_TABLE_BYTES = 16 << 20  # bytes of a table


@dataclass(frozen=True, slots=True)
class Row:
    """One child and its candidates; `parent` is one of them, or None where none of them is it."""

    child: str
    candidates: tuple[str, ...]
    parent: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: pairs (P, 2, o, h) for each input, and the parent's index, P for "none"."""

    weights: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    label: int


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows and the inputs of each model they name; `notes` say what was left out and why."""

    inputs: Mapping[str, DetectorInputs]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return (self.example(row) for row in self.rows)

    def example(self, row: Row) -> Example:
        """The matrices of one row, candidates in its order."""
        child, parents = self.inputs[row.child], [self.inputs[name] for name in row.candidates]
        label = len(parents) if row.parent is None else row.candidates.index(row.parent)
        return Example(*pairs(child, parents), label)

    def nearest(self) -> dict[str, float]:
        """Accuracy without learning, in [0, 1], of the candidate of least mean |parent − child|, by kind of input."""
        right = {"weights": 0, "features": 0}
        for example in self:
            for name in right:
                away = [(each[:, 0] - each[:, 1]).abs().mean(dim=(1, 2)) for each in getattr(example, name)]
                right[name] += bool(away) and int(sum(away, torch.zeros(1)).argmin()) == example.label
        return {name: count / len(self) for name, count in right.items()}

    def of(self, rows: Sequence[Row]) -> Examples:
        """The same models with these rows."""
        return replace(self, rows=tuple(rows))

    def __add__(self, other: Examples) -> Examples:
        return Examples({**self.inputs, **other.inputs}, self.rows + other.rows, self.notes + other.notes)


def pairs(child: DetectorInputs, parents: Sequence[DetectorInputs]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(weights, features): each (P, 2, o, h), of models whose `shapes` agree."""
    return (
        tuple(pair([p.weights[i] for p in parents], values) for i, values in enumerate(child.weights)),
        tuple(pair([p.features[i] for p in parents], values) for i, values in enumerate(child.features)),
    )


# ---- tables


@dataclass(frozen=True, slots=True)
class Table:
    """Candidates, and of each child its parent, or None.

    modules, probes: of networks that no library knows, one of their class, and its inputs.
    """

    parents: tuple[str, ...]
    children: Mapping[str, str | None]
    modules: tuple[torch.nn.Module, ...] = ()
    probes: Tensor | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each child among all candidates but itself."""
        return tuple(
            Row(child, tuple(p for p in self.parents if p != child), parent) for child, parent in self.children.items()
        )


def read_table(path: Path) -> Table:
    """A table from a .json or .csv file; folders are relative to its own. `ArgumentError` says what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TABLE_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Expected a table in UTF-8 at `{path}`, got: {error}.") from error
    if len(text) > MAX_TABLE_BYTES:
        raise ArgumentError(f"Expected a table of at most {MAX_TABLE_BYTES:,} bytes, `{path}` has more.")
    parents, children = _csv(text, path) if path.suffix.lower() == ".csv" else _json(text, path)

    def absolute(name: str) -> str:
        name = name.strip()
        beside = ModelRef.parse(name).kind == "local" and name[0] == "."
        return str(path.parent.absolute() / name) if beside else name

    known = [absolute(name) for name in dict.fromkeys([*parents, *(p for p in children.values() if p)])]
    parent_of = {absolute(child): absolute(parent) if parent else None for child, parent in children.items()}
    if not known or not parent_of:
        counts = f"{len(parent_of)} and {len(known)}"
        raise ArgumentError(f"Expected children and candidate parents in `{path}`, got {counts}.")
    return Table(tuple(known), parent_of)


def _json(text: str, path: Path) -> tuple[list[str], dict[str, str | None]]:
    try:
        stated: Any = json.loads(text)
        parents, children = stated.get("parents", []), stated["children"]
        names = [*parents, *children, *(parent for parent in children.values() if parent is not None)]
        if not (isinstance(parents, list) and all(isinstance(name, str) and name.strip() for name in names)):
            raise TypeError("names are text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArgumentError(
            f'Expected `{path}` to hold {{"parents": [id, …], "children": {{id: id or null, …}}}}, got: {error!r}.'
        ) from error
    return parents, children


def _csv(text: str, path: Path) -> tuple[list[str], dict[str, str | None]]:
    parents: list[str] = []
    children: dict[str, str | None] = {}
    reader = csv.DictReader(io.StringIO(text))
    if not {"child", "parent"} <= {*(reader.fieldnames or ())}:
        raise ArgumentError(f"Expected the columns child and parent in `{path}`, got {reader.fieldnames}.")
    for line in reader:
        child, parent = (line["child"] or "").strip(), (line["parent"] or "").strip()
        if child in children:
            raise ArgumentError(f"Expected each child once in `{path}`, got {child!r} twice.")
        parents += [parent] if parent else []
        if child:
            children[child] = parent or None
    return parents, children


# ---- examples


def make(
    tables: Sequence[Table], config: DetectorConfig, *, opener: Opener | None = None, settings: Settings | None = None,
    progress: Progress | None = None,
) -> Examples:  # fmt: skip
    """Read the inputs of every model of the tables once; models of one table get the same probes (`settings.probes`).

    A model that cannot be opened or run, and one whose tensors are of another shape than its children's, is left out
    with a note, its children with it. Raises `NothingToCompareError` where no example is left.
    """
    opener, settings = opener or Opener(), settings or Settings(probes=config.probes)
    found = Examples({}, ())
    names = [name for table in tables for name in (*table.parents, *table.children)]
    done = 0
    for table in tables:
        given = table.probes if table.probes is not None and not _chosen(settings.probes) else settings.probes
        of_table = replace(settings, modules=(*settings.modules, *table.modules), probes=given)
        seen: dict[str, DetectorInputs] = {}
        notes = []
        for name in dict.fromkeys((*table.parents, *table.children)):
            if progress:
                progress(done, len(names), f"reading {name}")
            done += 1
            try:
                seen[name] = read_inputs(opener.open(name), config, of_table)
            except LineageError as error:
                notes.append(f"{name} is left out: {error}")
        rows, more = _comparable(table.rows, seen)
        found += Examples(seen, tuple(rows), (*notes, *more))
    if not found.rows:
        raise NothingToCompareError(f"No example could be made of {len(names)} models. {' '.join(found.notes[:3])}")
    return found


def _chosen(probes: Source) -> bool:
    return probes is not None and not isinstance(probes, int)


def _comparable(rows: Sequence[Row], seen: Mapping[str, DetectorInputs]) -> tuple[list[Row], list[str]]:
    """Rows whose child and parent could be read, each with the candidates of the child's shapes."""
    kept, notes = [], []
    for row in rows:
        if row.child not in seen:
            continue
        shapes = seen[row.child].shapes
        fits = tuple(name for name in row.candidates if name in seen and seen[name].shapes == shapes)
        if row.parent is not None and row.parent not in fits:
            why = "has other shapes" if row.parent in seen else "could not be read"
            notes.append(f"{row.child} is left out: its parent {row.parent} {why}.")
        elif not fits:
            notes.append(f"{row.child} is left out: no candidate has its shapes {shapes}.")
        else:
            kept.append(replace(row, candidates=fits))
    return kept, notes


# ---- splits


def split(
    examples: Examples,
    by: str = "child",
    *,
    seed: int = 0,
    shares: Sequence[int] = SPLIT_SHARES,
    held: str | None = None,
) -> tuple[Examples, Examples, Examples]:
    """(training, validation, test), the rows shuffled by the seed.

    by: `"child"`, the paper's 7:1:2; `"parent"`: all children of a parent go together, and what is trained and
    validated on never sees a test parent, not even as a candidate; `"architecture"`: children of the class `held`
    (or of the rarest) are the test, the others are split among training and validation.
    """
    if by not in SPLITS:
        raise ArgumentError(f"Expected a split by {', '.join(SPLITS)}, got {by!r}.")
    rows = sorted(examples.rows, key=lambda row: (row.child, row.candidates))
    random.Random(seed).shuffle(rows)
    if by == "child":
        groups: list[list[Row]] = [[row] for row in rows]
    elif by == "parent":
        names = dict.fromkeys(row.parent for row in rows)
        groups = [[row for row in rows if row.parent == name] for name in names]
    else:
        return _held_out(examples, rows, held, shares)
    train, valid, test = (_flat(part) for part in _cut(groups, shares))
    if by == "parent":
        unseen = {row.parent for row in test} - {None}
        train, valid = (_without(part, unseen) for part in (train, valid))
    return _nonempty(examples, train, valid, test, by)


def _held_out(
    examples: Examples, rows: Sequence[Row], held: str | None, shares: Sequence[int]
) -> tuple[Examples, Examples, Examples]:
    counts = Counter(examples.inputs[row.child].kind for row in rows)
    if held is not None and held not in counts:
        raise ArgumentError(f"Expected an architecture out of {', '.join(sorted(counts))}, got {held!r}.")
    held = held or min(sorted(counts), key=lambda kind: counts[kind])
    rest = [[row] for row in rows if examples.inputs[row.child].kind != held]
    train, valid = (_flat(part) for part in _cut(rest, shares[:2]))
    return _nonempty(examples, train, valid, [r for r in rows if examples.inputs[r.child].kind == held], "architecture")


def _cut(groups: Sequence[list[Row]], shares: Sequence[int]) -> list[list[list[Row]]]:
    """Neighbours in parts of these shares, each of at least one group where there are enough of them."""
    ends = [round(len(groups) * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    for i in range(len(ends) - 1, 0, -1):  # a small family still has something to validate on
        ends[i - 1] = max(0, min(ends[i - 1], ends[i] - 1))
    return [[*groups[start:stop]] for start, stop in zip([0, *ends], ends, strict=False)]


def _flat(groups: Sequence[list[Row]]) -> list[Row]:
    return [row for group in groups for row in group]


def _without(rows: Sequence[Row], unseen: set[str | None]) -> list[Row]:
    found = [replace(row, candidates=tuple(c for c in row.candidates if c not in unseen)) for row in rows]
    return [row for row in found if row.candidates]


def _nonempty(
    examples: Examples, train: Sequence[Row], valid: Sequence[Row], test: Sequence[Row], by: str
) -> tuple[Examples, Examples, Examples]:
    if not (train and valid and test):
        raise ArgumentError(
            f"Expected enough examples to split {len(examples)} by {by}, got {len(train)} for training, {len(valid)} "
            f"for validation and {len(test)} for the test. Add models to the family."
        )
    return examples.of(train), examples.of(valid), examples.of(test)
