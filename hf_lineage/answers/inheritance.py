"""The answer of `inheritance`: what a flaw, a licence or a poisoned data set of one model means for its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import Answer, fields_of, report


@dataclass(frozen=True, slots=True)
class Rates:
    """What the caller assumes, all in [0, 1]: the chance that a child has what its parent has (`inherited`), that it
    arises anew in a child (`arises`), and that a model without parents has it (`prior`)."""

    inherited: float
    arises: float
    prior: float


@dataclass(frozen=True, slots=True)
class Carrier:
    """One model: the probability that it has the flaw, before the flags and after; `flagged`: what was said of it."""

    ref: str
    flagged: float | None
    before: float
    after: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Inheritance(Answer):
    """The answer of `inheritance`: of every model how probable it is that it has what others were flagged for.

    `models`: the most probable first. `rates`: what was assumed, not measured.
    """

    models: tuple[Carrier, ...]
    rates: Rates

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {"models": [fields_of(model) for model in self.models], "rates": fields_of(self.rates)}

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {"models": tuple(Carrier(**model) for model in data["models"]), "rates": Rates(**data["rates"])}

    def rows(self) -> list[dict[str, Any]]:
        """The models."""
        return [fields_of(model) for model in self.models]

    def after(self, ref: str) -> float:
        """The probability that a model has it, or `KeyError`."""
        return {model.ref: model.after for model in self.models}[ref]

    def sentence(self) -> str:
        """Whose probability the flags raise most, in one sentence."""
        return report("inheritance.sentence")(self)

    def to_text(self, width: int = 80) -> str:
        """The models whose probability the flags changed, as a table in at most `width` columns."""
        return report("inheritance.table")(self, width)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"Inheritance({len(self.models)} models, {sum(m.flagged is not None for m in self.models)} flagged)"

    def to_markdown(self) -> str:
        """The same with names in full."""
        return report("inheritance.markdown")(self)
