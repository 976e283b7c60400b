"""The answer of `compare`: two models without roles, whether they are related, who came first, what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import StatisticalAnswer, report
from .lineage import Candidate, Relation
from .refs import ModelRef


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Comparison(StatisticalAnswer):
    """Two models, in the order of their names. The same answer whichever was given first.

    `pair`: what was measured, with `later` in the place of a child and `pair.ref` in that of its candidate; where
    nothing tells the order, `later` is the second. `related`: whether they share an origin (p ≤ α); None where no test
    applies or they could not be compared. `first`: the one that came first, None where that does not show.
    """

    models: tuple[ModelRef, ModelRef]
    requested: tuple[str, str]
    related: bool | None
    first: str | None
    later: str
    pair: Candidate

    @property
    def relation(self) -> Relation | None:
        """What `later` is to the other one; None where it was not judged."""
        return self.pair.relation

    @property
    def p_value(self) -> float | None:
        """The chance of such evidence between unrelated models; None where no test applies."""
        return self.pair.p_value

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "models": [ref.to_dict(asked) for ref, asked in zip(self.models, self.requested, strict=True)],
            "related": self.related, "first": self.first, "later": self.later, "pair": self.pair.to_dict(),
            "notes": self.notes, **self.cost(),
        }  # fmt: skip

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        one, other = data["models"]
        return {
            **{name: data[name] for name in ("related", "first", "later")},
            "models": (ModelRef.recorded(one), ModelRef.recorded(other)),
            "requested": (one["requested"], other["requested"]),
            "pair": Candidate.from_dict(data["pair"]),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row: what was measured of the pair."""
        return [{"later": self.later, **self.pair.row()}]

    def sentence(self) -> str:
        """Related or not, who came first and what was done, in plain sentences."""
        return report("comparison.sentence")(self)

    def __repr__(self) -> str:
        one, other = self.models
        return f"Comparison({one.name!r}, {other.name!r}, related={self.related!r}, first={self.first!r})"

    def to_text(self, width: int = 80) -> str:
        """The answer as labelled lines in at most `width` columns."""
        return report("comparison.table")(self, width)

    def to_markdown(self) -> str:
        """The same with names in full."""
        return report("comparison.markdown")(self)
