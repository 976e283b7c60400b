"""The answer of `coverage`: what of one model can be tested, by which rule, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Coverage(MeasuredAnswer):
    """What of one model can be tested, from its header alone.

    `p_value`: whether there are hidden units enough for one. `rules`: name of a rule that tells hidden units → tensors
    that it told. `left_out`: what is not tested, by pattern of its name, the largest share first.
    """

    model: ModelRef
    requested: str
    p_value: bool
    units: TestedUnits
    blocks: CoveredBlocks
    rules: dict[str, int] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            **self.model.to_dict(self.requested), "p_value": self.p_value, "units": fields_of(self.units),
            "blocks": fields_of(self.blocks), "rules": self.rules,
            "left_out": [fields_of(part) for part in self.left_out], "notes": self.notes, **self.cost(),
        }  # fmt: skip

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {
            "model": ModelRef.recorded(data), "requested": data["requested"], "p_value": data["p_value"],
            "units": TestedUnits(**data["units"]), "blocks": CoveredBlocks(**data["blocks"]),
            "rules": dict(data["rules"]), "left_out": tuple(LeftOut(**part) for part in data["left_out"]),
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
