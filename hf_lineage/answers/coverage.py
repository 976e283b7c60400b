"""The answer of `coverage`: what of one model can be tested, by which rule, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import MeasuredAnswer, fields_of, report
from .refs import ModelRef


@dataclass(frozen=True, slots=True)
class TestedUnits:
    """Hidden units of which a p-value is made. `matrices`: that hold them as rows; `units`: of all orders together.

    `share`: of the model's parameters that these matrices are, in [0, 1].
    """

    __test__ = False  # no test class of pytest's

    matrices: int
    units: int
    share: float


@dataclass(frozen=True, slots=True)
class CoveredBlocks:
    """Blocks. `expected`: members of the outermost numbered lists; `recognised`: of these, those that are told apart.

    `tested`: of these, those with hidden units of which a p-value is made.
    """

    expected: int
    recognised: int
    tested: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Tensors that no p-value looks at. `pattern`: of their name, # for a number; `share`: of the parameters."""

    pattern: str
    share: float
    reason: str


@dataclass(frozen=True, slots=True)
class CheckedKind:
    """Orders of hidden units of one kind, held against the code that runs them.

    `pattern`: of a matrix that has them as rows, # for a number; `rule`: that told them; `orders`: how many there are,
    of which the first was run; `result`: `holds`, `contradicted` or `not_run`; `reason`: what was seen.
    """

    pattern: str
    rule: str
    orders: int
    result: Literal["holds", "contradicted", "not_run"]
    reason: str


@dataclass(frozen=True, slots=True)
class UnitCheck:
    """What `coverage(check=True)` saw. `network`: the class that was run and its library; None where there is none to
    run, and `reason` says why."""

    network: str | None
    kinds: tuple[CheckedKind, ...] = ()
    reason: str | None = None

    def orders(self, result: str) -> int:
        """How many orders of units have a result."""
        return sum(kind.orders for kind in self.kinds if kind.result == result)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Coverage(MeasuredAnswer):
    """What of one model can be tested, from its header alone.

    `p_value`: whether there are hidden units enough for one. `rules`: name of a rule that tells hidden units → tensors
    that it told. `left_out`: what is not tested, by pattern of its name, the largest share first. `check`: whether the
    model's code agrees about the units; None where that was not asked for.
    """

    model: ModelRef
    requested: str
    p_value: bool
    units: TestedUnits
    blocks: CoveredBlocks
    rules: dict[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    check: UnitCheck | None = None

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            **self.model.to_dict(self.requested), "p_value": self.p_value, "units": fields_of(self.units),
            "blocks": fields_of(self.blocks), "rules": self.rules,
            "left_out": [fields_of(part) for part in self.left_out], "check": self._check(), "notes": self.notes,
            **self.cost(),
        }  # fmt: skip

    def _check(self) -> dict[str, Any] | None:
        if self.check is None:
            return None
        return {**fields_of(self.check), "kinds": [fields_of(kind) for kind in self.check.kinds]}

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        check = data["check"]
        if check is not None:
            check = UnitCheck(check["network"], tuple(CheckedKind(**kind) for kind in check["kinds"]), check["reason"])
        return {
            "model": ModelRef.recorded(data), "requested": data["requested"], "p_value": data["p_value"],
            "units": TestedUnits(**data["units"]), "blocks": CoveredBlocks(**data["blocks"]),
            "rules": dict(data["rules"]), "left_out": tuple(LeftOut(**part) for part in data["left_out"]),
            "check": check,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """What is left out, by pattern."""
        return [{"model": self.model.name, **fields_of(part)} for part in self.left_out]

    def sentence(self) -> str:
        """Whether a p-value applies, in one sentence."""
        return report("coverage.sentence")(self)

    def __repr__(self) -> str:
        return f"Coverage({self.model.name!r}, p_value={self.p_value!r}, units={self.units.units})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("coverage.table")(self, width)

    def to_markdown(self) -> str:
        """The same with names in full."""
        return report("coverage.markdown")(self)
