"""The frozen vocabulary: what a reference, a tensor entry, a candidate and an answer are.

Nothing here fetches or computes; every surface (API, command line, Space, card) renders these records.
"""

from __future__ import annotations

import abc
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import ReferenceSyntaxError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

SCHEMA = "hf_lineage/1"

Verdict = Literal["parent", "identical", "common_origin", "none", "undecided"]
Status = Literal["compared", "not_comparable", "unreadable"]
ClaimStatus = Literal["confirmed", "contradicted", "relative", "not_testable"]
Relation = Literal[
    "identical", "head_changed", "partial", "finetune", "quantized", "pruned", "adapter",
    "resized", "merge", "sibling", "descendant", "common_origin", "none",
]  # fmt: skip
PARENT_RELATIONS = frozenset(
    {"identical", "head_changed", "partial", "finetune", "quantized", "pruned", "adapter", "resized", "merge"}
)

# what a block is to its origin: every tensor equal, tuned, made of several, from none of the candidates, not to be told
BlockKind = Literal["equal", "tuned", "mixture", "none", "undecided"]
Method = Literal["single", "passthrough", "linear", "slerp", "task_arithmetic", "ties", "dare", "mixed"]

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}"
_REPO_ID = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./\-]{0,99}")


class Progress(Protocol):
    """Called while bytes are read: so many of so many, and what is being read."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """Where a model is: a Hub repo id with an optional revision, a local path, or a module in memory.

    A `Path`, or a string starting with `.`, `/` or `~`, is local; every other string is a repo id of one or
    two segments with an optional `@revision`, even if a folder of that name exists.

    >>> ModelRef.parse("timm/resnet18.a1_in1k@main")
    ModelRef(kind='hub', name='timm/resnet18.a1_in1k', revision='main')
    >>> str(ModelRef.parse("./models/../models/child"))
    './models/child'

    Raises `ReferenceSyntaxError` (a `ValueError`) for anything else.
    """

    kind: Literal["hub", "local", "module"]
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path | ModelRef) -> ModelRef:
        """Read a reference; `str` undoes it."""
        if isinstance(text, ModelRef):
            return text
        if isinstance(text, Path):
            return cls("local", _normalise_path(str(text)))
        if text.startswith("module:") and text[7:].isidentifier():
            return cls("module", text)
        if text[:1] in {".", "/", "~"}:
            if "\0" in text:
                raise ReferenceSyntaxError(f"Expected a path, got {text!r} with a NUL character in it.")
            return cls("local", _normalise_path(text))
        name, at, revision = text.partition("@")
        if not is_repo_id(name):
            raise ReferenceSyntaxError(
                f"Expected a repo id such as `org/name` or `org/name@revision`, got {text[:120]!r}. "
                "A local folder starts with `./`, `/` or `~`."
            )
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise ReferenceSyntaxError(
                f"Expected a branch, tag or commit after `@`, got {revision[:120]!r} in {text[:120]!r}."
            )
        return cls("hub", name, revision or None)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def is_repo_id(text: str) -> bool:
    """Whether `text` is spelled like a Hub repo id of one or two segments.

    >>> [is_repo_id(t) for t in ("gpt2", "org/name", "a/b/c", "org/..", "org/n--m")]
    [True, True, False, False, False]
    """
    return bool(_REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text and text[-1] not in ".-"


def printable(text: str) -> str:
    """One line of printable characters: no control code that a stranger wrote can reach a terminal.

    >>> printable("a\\tb\\x1b[31m")
    'a b?[31m'
    """
    return "".join(ch if ch.isprintable() else "?" for ch in re.sub(r"\s+", " ", text).strip())


def _normalise_path(text: str) -> str:
    path = os.path.normpath(text)
    return path if path[0] in "./~" else f"./{path}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint, as its header describes it: looking at it costs no weights.

    `shape` counts elements of `dtype` (the safetensors spelling, `"F32"`, `"BF16"`, …). `file` and `start` say
    where its bytes begin; both are private to the checkpoint that made the entry.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: int = 0
    start: int = 0

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """Elements `start` to `stop` of the flattened (row-major) tensor `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody wrote about a parent, and whether the weights bear it out."""

    source: Literal["card", "config", "adapter", "mergekit"]
    ref: str
    relation: str | None = None
    status: ClaimStatus = "not_testable"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate parent and everything measured about it; numbers are None where it was not judged.

    `probability` that it is the parent, in [0, 1]. `p_value`: chance, if it were unrelated, of evidence this
    strong for any of the compared candidates (Holm-adjusted); `p_raw` the same for this candidate alone;
    `log10_p` = log10(`p_value`). `distance` = sqrt(Σd²/Σn), the root mean square difference of a weight.
    """

    ref: str
    requested: str
    revision: str | None = None
    status: Status = "compared"
    probability: float | None = None
    p_value: float | None = None
    p_raw: float | None = None
    p_method: Literal["normal", "monte_carlo"] | None = None
    log10_p: float | None = None
    distance: float | None = None
    relation: Relation | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, repr=False)
class Lineage(_Answer):
    """The answer of `trace`. `candidates` are ordered best first; every surface only renders this record."""

    child: ModelRef
    requested: str
    verdict: Verdict
    parent: str | None
    none_probability: float | None
    candidates: tuple[Candidate, ...]
    claims: tuple[Claim, ...] = ()
    undeclared: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bytes_read: int = 0
    seconds: float = 0.0
    seed: int = 0
    alpha: float = 1e-3
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema `hf_lineage/1`: plain types, no NaN, floats of 9 significant digits."""
        return _plain(
            {
                "schema": SCHEMA,
                "child": {
                    "ref": self.child.name,
                    "requested": self.requested,
                    "revision": self.child.revision,
                },
                "verdict": self.verdict,
                "parent": self.parent,
                "none_probability": self.none_probability,
                "candidates": [_fields(candidate) for candidate in self.candidates],
                "claims": [_fields(claim) for claim in self.claims],
                "undeclared": self.undeclared,
                "notes": self.notes,
                **self._how(),
            }
        )

    def explain(self) -> str:
        """The verdict in plain sentences: what it rests on, and what it does not say."""
        from ..report.sentences import explanation

        return explanation(self)

    def sentence(self) -> str:
        """The verdict in one plain sentence; names in it are strangers' text, cleaned of control characters."""
        from ..report.sentences import sentence

        return sentence(self, printable)

    def to_markdown(self) -> str:
        """The verdict, the ranked table and the claims as Markdown."""
        from ..report.text import markdown

        return markdown(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw how near each candidate is, block by block, and how sure that is; saved to `path` if given."""
        from ..report.plots import plot_lineage

        return plot_lineage(self, path)

    def profile(self, path: str | Path | None = None) -> Figure:
        """Draw how alike the features are against depth, before and after linearisation: `evidence="features"`."""
        from ..report.plots import plot_profile

        return plot_profile(self, path)

    def __repr__(self) -> str:
        count = len(self.candidates)
        return f"Lineage({self.child.name!r}, {self.verdict!r}, parent={self.parent!r}, {count} candidates)"

    def __str__(self) -> str:
        from ..report.text import table

        return table(self)


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


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LayerLineage(_Answer):
    """The answer of `trace_layers`: an origin for every block, in the child's order: stem, blocks, head.

    `candidates`: refs of those that have a block to compare, `revisions[ref]` their commits, `places[ref]` the paths of
    their blocks. `scores[ref]`:
    float64 (child blocks × that candidate's blocks), nan where shapes differ: the correlation of the weights, in
    [−1, 1], or with features alone the metric's score. `mixture`, `unknown`, `residual` are those of the whole model;
    `method` is a guess how it was made, `reasons` what the guess rests on.
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
    notes: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ("weights",)
    bytes_read: int = 0
    seconds: float = 0.0
    seed: int = 0
    alpha: float = 1e-3
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def matrix(self) -> np.ndarray:
        """float64 (child blocks × candidates): the score of the best block of each, nan where none can be compared."""
        import numpy as np

        best = [np.where(np.isnan(s), -np.inf, s).max(1, initial=-np.inf) for s in self._columns()]
        matrix = np.array(best, dtype=np.float64).reshape(len(self.candidates), len(self.blocks)).T
        return np.where(np.isinf(matrix), np.nan, matrix)

    def _columns(self) -> list[np.ndarray]:
        return [self.scores[ref] for ref in self.candidates]

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema `hf_lineage/1`: plain types, no NaN, floats of 9 significant digits."""
        return _plain(
            {
                "schema": SCHEMA,
                "child": {"ref": self.child.name, "requested": self.requested, "revision": self.child.revision},
                "candidates": self.candidates,
                "revisions": self.revisions,
                "blocks": [
                    {**_fields(block), "mixture": [_fields(share) for share in block.mixture]} for block in self.blocks
                ],
                "mixture": [_fields(share) for share in self.mixture],
                "unknown": self.unknown,
                "residual": self.residual,
                "method": self.method,
                "facts": self.facts,
                "reasons": self.reasons,
                "notes": self.notes,
                "evidence": self.evidence,
                **self._how(),
            }
        )

    def sentence(self) -> str:
        """How the model was made, in one plain sentence."""
        from ..report.layers import sentence

        return sentence(self, printable)

    def to_markdown(self) -> str:
        """How the model was made, and the origin of every block, as Markdown."""
        from ..report.layers import markdown

        return markdown(self)

    def recipe(self) -> str:
        """A mergekit YAML from which the child's blocks can be made again; comments say what it cannot tell."""
        from ..report.recipe import recipe

        return recipe(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw child blocks × candidates: what share of each block is whose, and which blocks moved."""
        from ..report.plots import plot_layers

        return plot_layers(self, path)

    def __repr__(self) -> str:
        told = f"{len(self.blocks)} blocks, {len(self.candidates)} candidates"
        return f"LayerLineage({self.child.name!r}, method={self.method!r}, {told})"

    def __str__(self) -> str:
        from ..report.layers import table

        return table(self)


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
