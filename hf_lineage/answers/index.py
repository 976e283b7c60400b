"""The answers of an index: what was put in, what is in it, and which of its models are related to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import MeasuredAnswer, fields_of, report
from .lineage import Lineage
from .refs import ModelRef


@dataclass(frozen=True, slots=True)
class Match:
    """A model of the index that is shown to be related.

    `log10_e`: of the e-value that it is unrelated, whose mean is at most 1 for unrelated models. `similarity`: mean
    cosine of hidden units, in [−1, 1]. `layers`: (of the model asked about, of this one) → where each was alike.
    """

    ref: str
    revision: str | None
    log10_e: float
    similarity: float
    layers: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {**fields_of(self), "layers": [{"child": ours, "match": theirs} for ours, theirs in self.layers]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Match:
        """From its JSON."""
        layers = tuple((pair["child"], pair["match"]) for pair in data["layers"])
        return cls(**{**data, "layers": layers})


@dataclass(frozen=True, slots=True)
class FamilyWise:
    """What holds for all models of the index together. `tests`: comparisons that could have been a match; `alpha`: the
    chance that any unrelated one is listed; `least_log10_e`: log10(tests/alpha), which every match reaches."""

    tests: int
    alpha: float
    least_log10_e: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class IndexQuery(MeasuredAnswer):
    """Which models of an index are related to one model.

    `matches`: the most alike first, by `similarity` times the number of layers. `family_wise`: the bound they pass.
    `lineage`: what `trace` says of the model among the first matches; None where that was not asked for, or nothing
    matched. `layers`: of the model that were looked for; empty where it has none that can be tested so.
    """

    child: ModelRef
    requested: str
    index: str
    layers: tuple[str, ...]
    matches: tuple[Match, ...]
    family_wise: FamilyWise
    lineage: Lineage | None = None

    @property
    def parent(self) -> str | None:
        """The parent that `lineage` names."""
        return self.lineage.parent if self.lineage else None

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "child": self.child.to_dict(self.requested), "index": self.index, "layers": list(self.layers),
            "matches": [match.to_dict() for match in self.matches], "family_wise": fields_of(self.family_wise),
            "parent": self.parent, "lineage": self.lineage and self.lineage.to_dict(), "notes": self.notes,
            **self.cost(),
        }  # fmt: skip

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {
            "child": ModelRef.recorded(data["child"]), "requested": data["child"]["requested"], "index": data["index"],
            "layers": tuple(data["layers"]), "matches": tuple(Match.from_dict(match) for match in data["matches"]),
            "family_wise": FamilyWise(**data["family_wise"]),
            "lineage": Lineage.from_dict(data["lineage"]) if data["lineage"] else None,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The matches."""
        return [{**fields_of(match), "layers": " ".join(ours for ours, _ in match.layers)} for match in self.matches]

    def sentence(self) -> str:
        """What was found, in one sentence."""
        return report("index.sentence")(self)

    def __repr__(self) -> str:
        return f"IndexQuery({self.child.name!r}, {len(self.matches)} matches, parent={self.parent!r})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("index.table")(self, width)

    def to_markdown(self) -> str:
        """The same with names in full."""
        return report("index.markdown")(self)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class IndexState(MeasuredAnswer):
    """What is in an index, and what the last `add` did.

    `models`: in it; `with_sketches`: of these, those that can be found; `sketches`: of all; `shapes`: rows x width →
    sketches of such layers. `added`, `unchanged`: by the last `add`; `failed`: ref → why it was not put in.
    """

    index: str
    version: int
    models: int
    with_sketches: int
    sketches: int
    shapes: dict[str, int]
    added: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        names = (
            "index", "version", "models", "with_sketches", "sketches", "shapes", "added", "unchanged", "failed",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "notes": self.notes, **self.cost()}

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        kept = cls.__dataclass_fields__.keys() - {"notes", "bytes_read", "seconds", "versions"}
        return {name: data[name] for name in kept}

    def rows(self) -> list[dict[str, Any]]:
        """The shapes of layers, with their counts."""
        return [{"shape": shape, "layers": count} for shape, count in self.shapes.items()]

    def sentence(self) -> str:
        """How much is in it, in one sentence."""
        return report("index.state_sentence")(self)

    def __repr__(self) -> str:
        return f"IndexState({self.index!r}, models={self.models}, added={self.added})"

    def to_text(self, width: int = 80) -> str:
        """The answer in at most `width` columns."""
        return report("index.state_table")(self, width)

    def to_markdown(self) -> str:
        """The same as Markdown."""
        return report("index.state_markdown")(self)
