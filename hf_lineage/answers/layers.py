"""The answer of `trace_layers`: an origin for every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .base import StatisticalAnswer, fields_of, report
from .refs import ModelRef, printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


# what a block is to its origin: every tensor equal, tuned, made of several, from none of the candidates, undecided
BlockKind = Literal["equal", "tuned", "mixture", "none", "undecided"]

Method = Literal[
    "single", "passthrough", "linear", "slerp", "task_arithmetic", "ties", "dare", "mixed", "nuslerp", "multislerp",
    "karcher", "model_stock", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "ram",
    "ramplus_tl", "nearswap", "arcee_fusion", "merge",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Share:
    """One source of a block: `weight` of the block `block` of candidate `ref` in it, with its standard error.

    Of a whole model `block` is empty. A weight may be negative, of a base that more than its deltas were added to.
    """

    ref: str
    block: str
    weight: float
    stderr: float


@dataclass(frozen=True, slots=True)
class BlockOrigin:
    """Where one block of the child came from.

    `block`: the child's own path prefix, `"stem"` and `"head"` for the rest, whose `index` is None. `parent`,
    `parent_block`: the source of the largest weight; None where no candidate's block shares an origin with it.
    `probability` that it is this one of the related candidates, in [0, 1], at most 0.97 of several, since a
    child of the child may be nearer than its parent; None of a mixture, and where no test applies. `p_value`: chance of
    such evidence for any pair of blocks, were all unrelated (Holm over child blocks × candidate blocks; None as above).
    `mixture`: every source; their weights and `unknown` sum to 1, but for slerp and task arithmetic.
    `unknown`: the share that no candidate explains. `residual`: ‖child − Σ weight · source‖ / ‖child‖.
    """

    block: str
    index: int | None
    kind: BlockKind
    parent: str | None = None
    parent_block: str | None = None
    probability: float | None = None
    p_value: float | None = None
    log10_p: float | None = None
    mixture: tuple[Share, ...] = ()
    unknown: float | None = None
    residual: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """Whether it stood elsewhere in its parent."""
        return bool(self.facts.get("moved"))


@dataclass(frozen=True, slots=True)
class Redone:
    """The merge made again by the recipe of `facts["merge"]`, tensor by tensor.

    `tensors`: of the child; `equal`: bit for bit; `close`: of the others, off by at most one unit in the last place
    everywhere. `differ`: the first that are not equal.
    """

    tensors: int
    equal: int
    close: int
    differ: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every tensor is the child's bit for bit."""
        return self.equal == self.tensors > 0


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LayerLineage(StatisticalAnswer):
    """The answer of `trace_layers`: an origin for every block, in the child's order: stem, blocks, head.

    `candidates`: refs of those that have a block to compare, `revisions[ref]` their commits, `places[ref]` the paths of
    their blocks. `scores[ref]`:
    float64 (child blocks × that candidate's blocks), nan where shapes differ: the correlation of the weights, in
    [−1, 1], or with features alone the metric's score. `mixture`, `unknown`, `residual` are those of the whole model;
    `method` is a guess how it was made, `reasons` what the guess rests on; `redone` says how many tensors it makes
    again bit for bit, where that was asked for and there is a recipe. `places` and `scores` are not in the JSON:
    an answer that was read back has none, and so no `matrix`, picture or recipe.
    """

    child: ModelRef
    requested: str
    candidates: tuple[str, ...]
    blocks: tuple[BlockOrigin, ...]
    places: dict[str, tuple[str, ...]]
    scores: dict[str, np.ndarray]
    revisions: dict[str, str | None] = field(default_factory=dict)
    mixture: tuple[Share, ...] = ()
    unknown: float | None = None
    residual: float | None = None
    method: Method | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ("weights",)
    redone: Redone | None = None

    @property
    def matrix(self) -> np.ndarray:
        """float64 (child blocks × candidates): the score of the best block of each, nan where none can be compared."""
        import numpy as np

        best = [np.where(np.isnan(s), -np.inf, s).max(1, initial=-np.inf) for s in self._columns()]
        matrix = np.array(best, dtype=np.float64).reshape(len(self.candidates), len(self.blocks)).T
        return np.where(np.isinf(matrix), np.nan, matrix)

    def _columns(self) -> list[np.ndarray]:
        return [self.scores[ref] for ref in self.candidates]

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "child": self.child.to_dict(self.requested),
            "candidates": self.candidates,
            "revisions": self.revisions,
            "blocks": [
                {**fields_of(block), "mixture": [fields_of(share) for share in block.mixture]} for block in self.blocks
            ],
            "mixture": [fields_of(share) for share in self.mixture],
            "unknown": self.unknown,
            "residual": self.residual,
            "method": self.method,
            "facts": self.facts,
            "reasons": self.reasons,
            "notes": self.notes,
            "evidence": self.evidence,
            "redone": None if self.redone is None else fields_of(self.redone),
            **self.cost(),
        }

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        names = ("revisions", "unknown", "residual", "method", "facts")
        return {
            **{name: data[name] for name in names},
            **{name: tuple(data[name]) for name in ("candidates", "reasons", "evidence")},
            "child": ModelRef.recorded(data["child"]),
            "requested": data["child"]["requested"],
            "blocks": tuple(BlockOrigin(**{**b, "mixture": _shares(b["mixture"])}) for b in data["blocks"]),
            "mixture": _shares(data["mixture"]),
            "places": {},
            "scores": {},
            "redone": _redone(data.get("redone")),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The sources of the blocks: a row for each, one at least for a block."""
        found = []
        for block in self.blocks:
            about = {
                "child": self.child.name, "block": block.block, "index": block.index, "kind": block.kind,
                "parent": block.parent, "parent_block": block.parent_block, "probability": block.probability,
                "p_value": block.p_value, "log10_p": block.log10_p, "unknown": block.unknown,
                "residual": block.residual,
            }  # fmt: skip
            shares = [{"source": s.ref, "weight": s.weight, "stderr": s.stderr} for s in block.mixture]
            found += [{**about, **share} for share in shares or [{"source": None, "weight": None, "stderr": None}]]
        return found

    def sentence(self) -> str:
        """How the model was made, in one plain sentence."""
        return report("layers.sentence")(self, printable)

    def to_markdown(self) -> str:
        """How the model was made, and the origin of every block, as Markdown."""
        return report("layers.markdown")(self)

    def recipe(self) -> str:
        """A mergekit YAML from which the child's blocks can be made again; comments say what it cannot tell."""
        return report("recipe.recipe")(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw child blocks × candidates: what share of each block is whose, and which blocks moved."""
        return report("plots.plot_layers")(self, path)

    def __repr__(self) -> str:
        counts = f"{len(self.blocks)} blocks, {len(self.candidates)} candidates"
        return f"LayerLineage({self.child.name!r}, method={self.method!r}, {counts})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("layers.table")(self, width)


def _shares(data: Sequence[Mapping[str, Any]]) -> tuple[Share, ...]:
    return tuple(Share(**share) for share in data)


def _redone(data: Mapping[str, Any] | None) -> Redone | None:
    return None if data is None else Redone(**{**data, "differ": tuple(data["differ"])})
