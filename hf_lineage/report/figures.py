"""Each figure of an answer in a sentence, beside how often it arises between unrelated models.

Names in the sentences are untrusted text, cleaned of control characters; who writes HTML escapes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..answers.audit import AuditRecord
from ..answers.layers import LayerLineage
from ..answers.lineage import Candidate
from ..answers.phylogeny import Phylogeny
from ..answers.refs import printable
from . import drawings
from .format import count_text, listed_text, number_text, p_text
from .layers import percent, unexplained
from .sentences import candidate_name, headline, hidden, order

NOT_MEASURED = (
    "How often this is said of unrelated models was not measured; it is only said of models that are related."
)
OFFERED = {  # what of a child's relatives was offered, in the questions about who came first
    "parent": "the parent", "sibling and base": "a sibling and the base of both", "sibling alone": "a sibling alone",
    "grandparent alone": "the grandparent alone", "uncle and base": "a sibling of the parent and the base of both",
    "nephew and base": "a child of a sibling and the base of all",
}  # fmt: skip


class Figure(NamedTuple):
    """One piece of evidence. `said`: what was measured and what it means; `background`: how often it arises between
    unrelated models, or how often such an answer was right, with its source; `picture`: an SVG, "" for none."""

    title: str
    said: str
    background: str
    picture: str = ""


@cache
def background() -> dict[str, Any]:
    """What was measured of unrelated models and of answers whose truth is known (tests/benchmarks/background.py)."""
    return json.loads(Path(__file__).with_name("background.json").read_text(encoding="utf-8"))


def figures(best: Candidate, others: Sequence[Candidate], alpha: float, none: float | None = None) -> Iterator[Figure]:
    """The evidence about the first candidate. others: what else was compared. none: probability of none of them."""
    weights: Mapping[str, Any] = best.evidence.get("weights") or {}
    many = 1 + len(others)
    if best.log10_p is not None:
        yield _origin(best.log10_p, weights, alpha, many)
    if best.facts.get("moved") is not None:
        yield _change(best, [c.facts["moved"] for c in others if c.facts.get("moved") is not None])
        moved = {name: block["moved"] for name, block in weights.get("blocks", {}).items() if block.get("moved")}
        if len(moved) > 1:
            yield _blocks([*moved.items()])
    if weights.get("correlation") and best.relation not in (None, "none"):
        yield _correlation(float(weights["correlation"]))
    if best.disguised:
        found = background()["hidden"]
        yield Figure(
            "Hidden units put in order", f"{_capital(hidden(best))}.",
            f"{found['pairs']:,} measured pairs of unrelated models were put in order like this: "
            f"{found['called_related']} of them had a p-value of 0.001 or less, where chance gives "
            f"{found['pairs'] / 1000:.0f} ({_source(found)}).",
        )  # fmt: skip
    if best.relation not in (None, "none", "identical"):
        yield _first(best)
    if best.relation not in (None, "none", "common_origin", "sibling", "descendant"):
        name = printable(candidate_name(best))
        yield Figure("What was done", f"{_capital(headline(best, name))}.", NOT_MEASURED)
    if best.probability is not None:
        yield _probability(best, none)


def _origin(log10_p: float, weights: Any, alpha: float, many: int) -> Figure:
    about = background()["p_value"]
    layers = ((weights.get("test") or {}).get("layers")) or []
    units = sum(layer["units"] for layer in layers)
    rests = f" It rests on the order of {units:,} hidden units in {len(layers)} layers." if units else ""
    among = f" It counts that {many} candidates were compared." if many > 1 else ""
    share = about["more_at_1_percent"] / about["more_pairs"]
    return Figure(
        "A common origin?",
        f"The p-value is {p_text(log10_p)}: the chance that a model which was trained separately, from a start of its "
        f"own, agrees as much.{rests}{among} At {alpha:g} or below the two are called related.",
        f"Of {about['pairs']:,} measured pairs of unrelated models the smallest p-value was {about['smallest']:g}; of "
        f"{about['more_pairs']:,} more, {about['more_at_1_percent']} ({100 * share:.1f} %) had 0.01 or less, where "
        f"chance gives 1 % ({_source(about)}). The p-values of these pairs count one candidate.",
        drawings.p_values(log10_p, alpha, *_unrelated_pairs()),
    )  # fmt: skip


def _change(best: Candidate, others: Sequence[float]) -> Figure:
    about, moved = background()["change"], best.facts["moved"]
    low, high = about["moved"][0], about["moved"][-1]
    distance = f" (root mean square of a weight: {number_text(best.distance)})" if best.distance is not None else ""
    return Figure(
        "How far apart are the weights?",
        f"From {printable(candidate_name(best))} to this model the weights moved by {percent(moved)} of their norm"
        f"{distance}. A fine-tune moves them little; 0 is a copy.",
        f"Between {about['pairs']} measured pairs of unrelated models it was {percent(low)} to {percent(high)} "
        f"({_source(about)}); independent weights of one size give 141 %.",
        drawings.changes(moved, others, about["moved"]),
    )  # fmt: skip


def _blocks(moved: Sequence[tuple[str, float]]) -> Figure:
    about = background()["change"]
    least, most = min(moved, key=lambda block: block[1]), max(moved, key=lambda block: block[1])
    return Figure(
        "And block by block?",
        f"Of {len(moved)} blocks {printable(least[0])} moved least, by {percent(least[1])} of its norm, and "
        f"{printable(most[0])} most, by {percent(most[1])}.",
        f"Of unrelated models the whole moved by {percent(about['moved'][0])} or more ({_source(about)}).",
        drawings.blocks([(printable(name), value) for name, value in moved], about["moved"]),
    )  # fmt: skip


def _correlation(value: float) -> Figure:
    about = background()["change"]
    low, high = about["correlation"]
    return Figure(
        "Do the weights correlate?",
        f"The correlation of the two models' weights, matrix by matrix, is {value:.3f} on average; 1 is equal but for "
        "a factor.",
        f"Between {about['pairs']} measured pairs of unrelated models it was {low:.3f} to {high:.3f} "
        f"({_source(about)}).",
        drawings.correlation(value, about["correlation"]),
    )


def _first(best: Candidate) -> Figure:
    table = background()["order"]["table"]
    wrong = sum(table[name]["wrong"] for name in OFFERED)
    asked = sum(sum(table[name].values()) for name in OFFERED)
    worst = max(OFFERED, key=lambda name: table[name]["wrong"])
    decides = best.order is not None and best.order.radius is not None  # else it was measured, and told nothing
    shown = best.order if decides else None
    drawn = drawings.order(shown.position, shown.stderr or 0.0) if shown and shown.position is not None else ""
    return Figure(
        "Who came first?", order(best),
        f"Of {asked} measured questions about light fine-tunes whose truth is known {wrong} were answered with a wrong "
        f"parent, {table[worst]['wrong']} of these where {OFFERED[worst]} were offered, and not the parent "
        f"({_source(background()['order'])}). Between unrelated models the question has no answer.",
        drawn,
    )  # fmt: skip


def _probability(best: Candidate, none: float | None) -> Figure:
    about, share = background()["probability"], best.probability or 0.0
    said, right = min(about["bins"], key=lambda pair: abs(pair[0] - share))
    rest = f"; that it is none of these {none:.3f}" if none is not None else ""
    lowest = about["bins"][0][0]
    near = (
        f"Of {about['answers']:,} measured answers about {about['children']} children those with a probability of "
        f"about {said:.2f} named the right parent in {100 * right:.0f} % of cases ({_source(about)})."
        if share >= lowest / 2 else "So low a probability was not measured on its own."
    )  # fmt: skip
    return Figure(
        "How probable is it as the parent?",
        f"The probability that {printable(candidate_name(best))} is the very model that training started from is "
        f"{share:.3f}{rest}. It is fitted on small networks.",
        near, drawings.calibration(share, about["bins"]) if share >= lowest / 2 else "",
    )  # fmt: skip


def of_layers(layers: LayerLineage) -> Iterator[Figure]:
    """The evidence for the origin of the blocks, and for the method."""
    about, merges = background()["blocks"], background()["merges"]
    kinds = [block.kind for block in layers.blocks]
    found = sum(block.parent is not None for block in layers.blocks)
    tested = [block.log10_p for block in layers.blocks if block.parent is not None and block.log10_p is not None]
    weakest = max(tested, default=0.0)
    drawn = drawings.p_values(weakest, layers.alpha, *_unrelated_pairs(), "the weakest block") if tested else ""
    rest = f" The weakest of their p-values is {p_text(weakest)}." if tested else ""
    yield Figure(
        "Where do the blocks come from?",
        f"Of {count_text(len(kinds), 'block')} {found} have an origin among the candidates, {kinds.count('none')} have "
        f"none, and {kinds.count('undecided')} could not be decided.{rest}",
        f"Of {about['tested']} tested blocks of {about['models']} measured models without a relative among the "
        f"candidates {about['origins']} were given an origin. Of {about['blocks']} blocks that were put together from "
        f"several models {about['right']} were given the right one ({_source(about)}).",
        drawn,
    )  # fmt: skip
    if layers.method not in (None, "single"):
        yield Figure(
            "How was it put together?", f"{_capital('; '.join(map(printable, layers.reasons)))}.",
            f"Of {merges['others']} measured models that are no merges {merges['called_merge']} were called one. Of "
            f"{merges['merges']} merges, by {merges['methods']} methods, {merges['named']} were given the right method "
            f"({_source(merges)}).",
        )  # fmt: skip
    left = unexplained(layers) if found else None
    if left is not None:
        yield Figure(
            "How much is left over?",
            f"Made again from its sources, the model differs by {percent(left)} of the norm of its weights.",
            "Of unrelated models this is not measured: without an origin there is nothing to make them of.",
        )


def of_tree(tree: Phylogeny) -> Iterator[Figure]:
    """The evidence for the groups of a phylogeny, and for the direction of its edges."""
    about, order = background()["groups"], background()["edges"]
    models, directed = sum(not node.hidden for node in tree.nodes), sum(edge.directed for edge in tree.edges)
    yield Figure(
        "Which models are related?",
        f"{count_text(models, 'model')} in {count_text(len(tree.groups), 'group')}. Models are in one group where the "
        f"test for a common origin finds one at level {tree.alpha:g}, counted over all pairs.",
        f"{about['models']} measured unrelated models, in {about['sets']} sets, made {about['groups']} groups with "
        f"{about['edges']} edges ({_source(about)}).",
    )  # fmt: skip
    if tree.edges:
        yield Figure(
            "Who descends from whom?",
            f"{count_text(len(tree.edges), 'edge')}, {directed} with a direction. The others say that two models are "
            "next to each other, and not which came first.",
            f"Of {order['edges']} true edges of measured trees {order['found']} were found. {order['directed']} got a "
            f"direction, {order['directed'] - order['right']} of these the wrong one ({_source(order)}).",
        )  # fmt: skip


def of_audit(records: Sequence[AuditRecord]) -> Iterator[Figure]:
    """The evidence behind the words of an audit."""
    about, claims = background()["claims"], [claim for record in records for claim in record.claims]
    counts = {status: sum(claim.status == status for claim in claims) for status in ("confirmed", "contradicted")}
    yield Figure(
        "What do confirmed and contradicted rest on?",
        f"Of {count_text(len(claims), 'claim')} {counts['confirmed']} are confirmed and {counts['contradicted']} "
        "contradicted. A base is contradicted where it was compared and shows no sign of a common origin. It is "
        "confirmed where it shares an origin with the model and nothing speaks against it.",
        f"Of {about['children']} measured fine-tunes {about['lost']} showed no sign of a common origin with their true "
        f"base. Of {about['orphans']} whose base was not offered {about['found']} showed one with another model "
        f"({_source(about)}).",
    )  # fmt: skip


def _unrelated_pairs() -> tuple[Sequence[Sequence[float]], int]:
    """The p-values of measured unrelated pairs, as `drawings.p_values` takes them."""
    about = background()["p_value"]
    return about["at_most"], about["pairs"]


def _source(about: dict[str, Any]) -> str:
    return listed_text([f"tests/benchmarks/results/{name}" for name in about["source"]])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
