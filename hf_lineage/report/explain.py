"""Every figure of an answer in a sentence. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..answers.annotation import Annotation
from ..answers.audit import AuditRecord
from ..answers.base import Answer
from ..answers.comparison import Comparison
from ..answers.coverage import Coverage
from ..answers.history import History
from ..answers.layers import LayerLineage
from ..answers.lineage import Lineage
from ..answers.phylogeny import Phylogeny
from ..answers.refs import printable
from ..answers.search import CandidateSearch
from ..errors import ArgumentError
from .figures import SOURCES, Figure, figures
from .format import number_text, p_text
from .layers import fold, percent, sources
from .set_figures import of_audit, of_layers, of_tree
from .tree_text import UNDIRECTED, relation

# A key that only this kind of answer has → the kind; the first that is found
KINDS: dict[str, type[Answer]] = {
    "pair": Comparison, "trained_since": History, "rules": Coverage, "findings": AuditRecord,
    "requests": CandidateSearch, "diff": Annotation, "nodes": Phylogeny, "blocks": LayerLineage, "verdict": Lineage,
}  # fmt: skip
MOST_EDGES, MOST_BLOCKS = 40, 60  # that get a sentence each


def read(text: str) -> Answer:
    """The answer in a JSON document, whatever its kind. Raises `ArgumentError`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"Expected a JSON document: {error}.") from error
    kind = next((kind for key, kind in KINDS.items() if isinstance(data, dict) and key in data), None)
    if kind is None:
        raise ArgumentError("Expected an answer of hf_lineage as JSON, got another document.")
    return kind.from_dict(data)


def told(answer: Answer) -> list[Figure]:
    """The verdict, each figure with its background, and the notes."""
    said = [Figure("The answer", _sentence(answer), "")]
    notes = [Figure("Note", printable(note), "") for note in getattr(answer, "notes", ())]
    found = [*_figures(answer)]
    measured = [Figure("What was measured", SOURCES, "")] if any(figure.background for figure in found) else []
    return [*said, *found, *measured, *notes]


def _sentence(answer: Any) -> str:
    return answer.sentence() if hasattr(answer, "sentence") else printable(str(answer))


def _figures(answer: Answer) -> Iterator[Figure]:
    match answer:
        case Lineage():
            compared = [c for c in answer.candidates if c.status == "compared"]
            if compared:
                yield from figures(compared[0], compared[1:], answer.alpha, answer.none_probability)
        case Comparison() if answer.pair.status == "compared":
            yield from figures(answer.pair, [], answer.alpha)
        case LayerLineage() if answer.blocks:
            yield from of_layers(answer)
            yield from _of_blocks(answer)
        case Phylogeny():
            yield from of_tree(answer)
            yield from _of_edges(answer)
        case AuditRecord():
            yield from of_audit([answer])
        case History():
            yield from (Figure(name.replace("_", " "), e.reason, "") for name, e in answer.evidence.items())


def _of_blocks(answer: LayerLineage) -> Iterator[Figure]:
    for row in fold(answer)[:MOST_BLOCKS]:
        first, last = row[0], row[-1]
        what = printable(first.block) + (f" to {printable(last.block)}" if len(row) > 1 else "")
        shares = [f"{100 * s.weight:.0f} % of {printable(s.ref)}" for s in sources(answer, first)]
        made = f"made of {' and '.join(shares)}" if shares else "from none of the models that were compared"
        p = f" The chance of such evidence between unrelated models is {p_text(first.log10_p)}." * (
            first.log10_p is not None
        )
        left = "" if first.residual is None else f" Of its norm {percent(first.residual)} is left unexplained."
        yield Figure(what, f"{'They are' if len(row) > 1 else 'It is'} {made}.{p}{left}", "")


def _of_edges(answer: Phylogeny) -> Iterator[Figure]:
    for edge in answer.edges[:MOST_EDGES]:
        sure = (
            "" if edge.probability is None else f" The probability that they are neighbours is {edge.probability:.3f}."
        )
        order = (
            f" The probability that {printable(edge.parent)} came first is {edge.direction:.3f}."
            if edge.direction
            else ""
        )
        order = order if edge.directed else f" {UNDIRECTED[0].upper()}{UNDIRECTED[1:]}."
        far = f" Their relative distance is {number_text(edge.distance)}." if edge.distance is not None else ""
        title = f"{printable(edge.parent)} {'→' if edge.directed else '–'} {printable(edge.child)}"
        yield Figure(title, f"What was done: {relation(edge)}.{sure}{order}{far}", "")
