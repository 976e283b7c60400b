"""What all answers share: the schema, plain JSON, progress."""

from __future__ import annotations

import abc
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ..errors import ArgumentError, MissingExtraError, Note

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "hf_lineage/2"
READABLE = ("hf_lineage/1", SCHEMA)  # version 1: notes were texts; no `order`, `raw`, `redone`


COST = ("bytes_read", "seconds", "seed", "alpha", "versions")


class Progress(Protocol):
    """Called while bytes are read: so many of so many, and what is being read."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def report(name: str) -> Callable[..., Any]:
    """A function of the room `report`, as `"text.table"`. Looked up by name: answers know nothing of their rendering.

    The only place where a room reaches above itself (tests/test_imports.py).
    """
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"hf_lineage.report.{module}"), function)


class Answer(abc.ABC):
    """An answer of a task: frozen, plain JSON on request."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # every answer is a dataclass

    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """The keys and values of the JSON contract after `schema`, in their order."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema `hf_lineage/2`: plain types, no NaN, floats of 9 significant digits."""
        return plain({"schema": SCHEMA, **self.content()})

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as one JSON document."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @abc.abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """What the answer lists, a flat row each: candidates, blocks, edges, …; see `to_pandas`."""

    @abc.abstractmethod
    def to_markdown(self) -> str:
        """The answer as Markdown, with names in full and escaped."""

    def to_pandas(self) -> pd.DataFrame:
        """`rows` as a table, numbers as numbers. Raises `MissingExtraError` where pandas is missing."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("Expected pandas, found none", "pandas") from error
        return pd.DataFrame([plain(row) for row in self.rows()])

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return report("html.fragment")(self.to_markdown())

    def __eq__(self, other: object) -> bool:
        """Whether both are the same answer: of one kind, with the same JSON."""
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_json(indent=None))

    @classmethod
    @abc.abstractmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON, `notes` and the cost excepted. May raise what a broken document raises."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The answer that `to_dict` wrote, of schema `hf_lineage/2` or `hf_lineage/1`.

        What was only measured on the way reads like its JSON: `candidate.evidence["weights"]["moved"]`. What is not in
        the JSON is empty. Raises `ArgumentError`, a `ValueError`, for anything else.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema not in READABLE:
            raise ArgumentError(f"Expected an answer of schema {' or '.join(READABLE)}, got {str(schema)[:80]!r}.")
        try:
            values = cls.read_fields(data)
            if "notes" in data:
                values["notes"] = tuple(Note.from_dict(note) for note in data["notes"])
            cost = {name: data[name] for name in COST if name in data and name in cls.__dataclass_fields__}
            return cls(**cost, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"Expected a `{cls.__name__}` as JSON, got something else: {error!r}.") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """`from_dict` of one JSON document. Raises `ArgumentError`, a `ValueError`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"Expected a JSON document: {error}.") from error
        return cls.from_dict(data)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class MeasuredAnswer(Answer):
    """An answer that rests on what was read of models.

    `notes`: what limits the answer. `bytes_read`: of weights and headers. `seconds`: wall clock. `versions`: of this
    package and of those that compute.
    """

    notes: tuple[Note, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @abc.abstractmethod
    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""

    def __str__(self) -> str:
        return self.to_text()

    def cost(self) -> dict[str, Any]:
        """The fields that say how the answer was reached, in the order of the JSON contract."""
        return {"bytes_read": self.bytes_read, "seconds": self.seconds, "versions": self.versions}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StatisticalAnswer(MeasuredAnswer):
    """An answer that rests on a statistical test.

    `seed`: of the sample and of the permutations. `alpha`: the family-wise level of the test.
    """

    seed: int = 0
    alpha: float = 1e-3

    def cost(self) -> dict[str, Any]:
        """The fields that say how the answer was reached, in the order of the JSON contract."""
        return {name: getattr(self, name) for name in COST}

    def to_html(self, command: str = "") -> str:
        """One HTML file to hand to somebody: verdict, what was compared, each piece of evidence beside how often it
        arises between unrelated models, limits. command: what was typed, to get the same again.
        """
        return report("page.page")(self, command)


class Evidence(Mapping[str, Any], abc.ABC):
    """What one kind of evidence measured of a candidate: typed fields in Python, and a mapping as its JSON shows it.

    Equal to another mapping of the same content, as mappings are.
    """

    __slots__ = ()

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of this kind of evidence."""

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())


@dataclass(frozen=True, slots=True, eq=False)
class RecordedEvidence(Evidence):
    """Evidence that was read back from JSON: the mapping alone, without the types of what measured it."""

    recorded: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The mapping as it was read."""
        return self.recorded


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a dataclass with their values, not copied."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def plain(value: Any) -> Any:
    """JSON types only: tuples become lists, non-finite numbers null, floats keep 9 significant digits."""
    if isinstance(value, Evidence):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Note):
        return value.to_dict()
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
