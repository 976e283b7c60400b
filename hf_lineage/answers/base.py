"""What all answers share: the schema, plain JSON, progress."""

from __future__ import annotations

import abc
import importlib
import json
import math
from collections.abc import Callable
from typing import Any, Protocol

SCHEMA = "hf_lineage/1"


class Progress(Protocol):
    """Called while bytes are read: so many of so many, and what is being read."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def report(name: str) -> Callable[..., Any]:
    """A function of the room `report`, as `"text.table"`. Looked up by name: answers know nothing of their rendering.

    The only place where a room reaches above itself (tests/test_imports.py).
    """
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"hf_lineage.report.{module}"), function)


class _Answer(abc.ABC):
    """What both answers can do: be JSON, and say how they were reached."""

    __slots__ = ()
    bytes_read: int
    seconds: float
    seed: int
    alpha: float
    versions: dict[str, str]

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as one JSON document."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def _how(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bytes_read", "seconds", "seed", "alpha", "versions")}


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _plain(value: Any) -> Any:
    """JSON types only: tuples become lists, non-finite numbers null, floats keep 9 significant digits."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
