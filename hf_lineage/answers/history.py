"""The answer of `inspect`: what one model's values tell of their past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .base import MeasuredAnswer, fields_of, report
from .refs import ModelRef

Format = Literal["bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class HistoryEvidence:
    """One thing that was looked at. `value`: its size, None where nothing shows; `stderr`: its standard error.

    `entries`: weights that were counted. `reason`: a sentence, also of what does not show.
    """

    value: float | None
    stderr: float | None
    entries: int
    reason: str


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class History(MeasuredAnswer):
    """What one model's values tell of their past, without any candidate.

    `stored`: the header's dtype of most weights, or the scheme that they are packed in. `lattice`: the format that
    the values lie on, whatever the header says; None where they lie on none. `trained_since`: whether the model was
    trained from another one whose weights lay on that lattice, or on the coarser one that `began_from` names.
    `kept_in_half`: whether its weights were kept in half precision meanwhile. None is "does not show": a step may
    be too small or too large, or in too few weights, to leave a mark, so that `trained_since` is never False.
    `repeated_layers`: pairs of layers that are copies, tuned since or not. `evidence`: by name, what each rests on.
    """

    model: ModelRef
    requested: str
    stored: str | None
    lattice: Format | None
    trained_since: bool | None
    kept_in_half: bool | None
    began_from: Format | None
    repeated_layers: tuple[tuple[int, int], ...]
    evidence: dict[str, HistoryEvidence] = field(default_factory=dict)
    seed: int = 0

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            **self.model.to_dict(self.requested), "stored": self.stored, "lattice": self.lattice,
            "trained_since": self.trained_since, "kept_in_half": self.kept_in_half, "began_from": self.began_from,
            "repeated_layers": self.repeated_layers,
            "evidence": {name: fields_of(found) for name, found in self.evidence.items()},
            "notes": self.notes, "seed": self.seed, **self.cost(),
        }  # fmt: skip

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        plain = ("requested", "stored", "lattice", "trained_since", "kept_in_half", "began_from")
        return {
            **{name: data[name] for name in plain},
            "model": ModelRef.recorded(data),
            "repeated_layers": tuple((one, other) for one, other in data["repeated_layers"]),
            "evidence": {name: HistoryEvidence(**found) for name, found in data["evidence"].items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """What was looked at, by name."""
        return [{"model": self.model.name, "looked_at": name, **fields_of(e)} for name, e in self.evidence.items()]

    def sentence(self) -> str:
        """What shows, in one sentence."""
        return report("history.sentence")(self)

    def __repr__(self) -> str:
        return f"History({self.model.name!r}, lattice={self.lattice!r}, trained_since={self.trained_since!r})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("history.table")(self, width)

    def to_markdown(self) -> str:
        """The same with names in full."""
        return report("history.markdown")(self)
