"""As `figures.py` of a pair, the evidence of answers about many blocks, models or cards: layers, trees, audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..answers.audit import AuditRecord
from ..answers.layers import LayerLineage
from ..answers.phylogeny import Phylogeny
from ..answers.refs import printable
from . import drawings
from .figures import Figure, background, capital, source, unrelated_pairs
from .format import count_text, p_text
from .layers import percent, sources, unexplained

ORIGIN, NONE, OPEN = "with an origin among the candidates", "from none of them", "undecided"  # of blocks
ALONE, GROUPED = "alone", "in a group with others"  # of models
DIRECTED, UNDIRECTED = "with a direction", "without a direction"  # of edges
CONFIRMED, CONTRADICTED = "confirmed", "contradicted"  # claims
MAX_SHARES = 8  # sources whose share has a bar


def of_layers(layers: LayerLineage) -> Iterator[Figure]:
    """The evidence for the origin of the blocks, and for the method."""
    if "weights" not in layers.evidence:
        yield _nearest(layers)
        return
    yield _origins(layers)
    tested = [block.log10_p for block in layers.blocks if block.parent is not None and block.log10_p is not None]
    if tested:
        yield _weakest(max(tested), len(tested), layers.alpha)
    if layers.method not in (None, "single"):
        yield _method(layers)
    left = unexplained(layers) if any(block.parent is not None for block in layers.blocks) else None
    if left is not None:
        about = background()["merges"]
        yield Figure(
            "How much is left over?",
            f"Made again from its sources, the model differs by {percent(left)} of the norm of its weights.",
            f"Of {about['merges']} measured merges {about['again']} were made again with every tensor equal "
            f"({source(about)}). Of unrelated models nothing can be made again: they have no sources.",
            drawings.left_over(left),
        )  # fmt: skip


def _origins(layers: LayerLineage) -> Figure:
    about, kinds = background()["blocks"], Counter(block.kind for block in layers.blocks)
    found = sum(block.parent is not None for block in layers.blocks)
    lone = about["tested"] - about["origins"]
    drawn = drawings.stacked(
        [
            ("blocks of this model", {ORIGIN: found, NONE: kinds["none"], OPEN: kinds["undecided"]}),
            ("tested blocks of measured models without a relative", {ORIGIN: about["origins"], NONE: lone}),
        ],
        f"{found} of {len(layers.blocks)} blocks have an origin; of unrelated models {about['origins']}",
    )
    return Figure(
        "Where do the blocks come from?",
        f"Of {count_text(len(layers.blocks), 'block')} {found} have an origin among the candidates, {kinds['none']} "
        f"have none, and {kinds['undecided']} could not be decided.",
        f"Of {about['tested']} tested blocks of {about['models']} measured models without a relative among the "
        f"candidates {about['origins']} were given an origin. Of {about['blocks']} blocks that were put together from "
        f"several models {about['right']} were given the right one ({source(about)}).",
        drawn,
    )  # fmt: skip


def _weakest(log10_p: float, tested: int, alpha: float) -> Figure:
    about = background()["p_value"]
    return Figure(
        "How sure are these origins?",
        f"Of {count_text(tested, 'tested block')} with an origin the largest p-value is {p_text(log10_p)}: the chance "
        "that blocks of an unrelated model agree as much, counted over all blocks and candidates.",
        f"Of {about['pairs']:,} measured pairs of unrelated models the smallest p-value was {about['smallest']:g} "
        f"({source(about)}).",
        drawings.p_values(log10_p, alpha, *unrelated_pairs(), "the weakest block"),
    )  # fmt: skip


def _method(layers: LayerLineage) -> Figure:
    about = background()["merges"]
    parts: dict[str, float] = {}
    whole = [(share, 1.0) for share in layers.mixture]  # of the whole model; without, the mean of the blocks
    by_block = [(share, 1 / len(layers.blocks)) for block in layers.blocks for share in sources(layers, block)]
    for share, weight in whole or by_block:
        name = printable(share.ref)
        parts[name] = parts.get(name, 0.0) + max(share.weight, 0.0) * weight
    shown = sorted(parts.items(), key=lambda part: -part[1])[:MAX_SHARES]
    said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shown)
    return Figure(
        "How was it put together?", f"{capital('; '.join(map(printable, layers.reasons)))}.",
        f"Of {about['others']} measured models that are no merges {about['called_merge']} were called one. Of "
        f"{about['merges']} merges, by {about['methods']} methods, {about['named']} were given the right method "
        f"({source(about)}).",
        drawings.shares(shown, f"Shares of the sources: {said}"),
    )  # fmt: skip


def _nearest(layers: LayerLineage) -> Figure:
    """Without weights: the candidate that each block is most like."""
    about, kinds = background()["blocks"]["by_features"], " and ".join(layers.evidence)
    counts = Counter(printable(block.parent) for block in layers.blocks if block.parent is not None)
    said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return Figure(
        "Which candidate is each block most like?",
        f"By {kinds} alone, which name the nearest candidate and no origin: {said or 'nothing could be compared'}.",
        f"Blocks of unrelated models get a nearest candidate, too. Of {about['blocks']} blocks of measured hybrids "
        f"{about['right']} were given right by features ({source(about)}).",
        drawings.stacked([("blocks of this model, by the nearest candidate", counts)], f"Blocks: {said}"),
    )  # fmt: skip


def of_tree(tree: Phylogeny) -> Iterator[Figure]:
    """The evidence for the groups of a phylogeny, and for the direction of its edges."""
    about, order = background()["groups"], background()["edges"]
    models, directed = sum(not node.hidden for node in tree.nodes), sum(edge.directed for edge in tree.edges)
    found, known = len(tree.edges), order["found"]
    alone = sum(len(group) == 1 for group in tree.groups)
    yield Figure(
        "Which models are related?",
        f"{count_text(models, 'model')} in {count_text(len(tree.groups), 'group')}. Models are in one group where the "
        f"test for a common origin finds one at level {tree.alpha:g}, counted over all pairs.",
        f"{about['models']} measured unrelated models, in {about['sets']} sets, made {about['groups']} groups with "
        f"{about['edges']} edges ({source(about)}).",
        drawings.stacked([
            ("models of this answer", {ALONE: alone, GROUPED: models - alone}),
            ("measured unrelated models", {ALONE: about["groups"], GROUPED: about["models"] - about["groups"]}),
        ], f"{alone} of {models} models are alone; of unrelated models {about['models']} of {about['models']}"),
    )  # fmt: skip
    if tree.edges:
        yield Figure(
            "Who descends from whom?",
            f"{count_text(len(tree.edges), 'edge')}, {directed} with a direction. The others say that two models are "
            "next to each other, and not which came first.",
            f"Of {order['edges']} true edges of measured trees {order['found']} were found. {order['directed']} got a "
            f"direction, {order['directed'] - order['right']} of these the wrong one ({source(order)}).",
            drawings.stacked([
                ("edges of this answer", {DIRECTED: directed, UNDIRECTED: found - directed}),
                ("true edges of measured trees", {
                    DIRECTED: order["right"], UNDIRECTED: known - order["directed"],
                    "in the wrong direction": order["directed"] - order["right"], "not found": order["edges"] - known,
                }),
            ], f"{directed} of {found} edges have a direction; of measured trees {order['directed']} of {known}"),
        )  # fmt: skip


def of_audit(records: Sequence[AuditRecord]) -> Iterator[Figure]:
    """The evidence behind the words of an audit."""
    about, claims = background()["claims"], [claim for record in records for claim in record.claims]
    counts = Counter(claim.status.replace("_", " ") for claim in claims)
    lost, with_base, found, without = (about[name] for name in ("lost", "children", "found", "orphans"))
    yield Figure(
        "What do confirmed and contradicted rest on?",
        f"Of {count_text(len(claims), 'claim')} {counts[CONFIRMED]} are confirmed and {counts[CONTRADICTED]} "
        "contradicted. A base is contradicted where it was compared and shows no sign of a common origin. It is "
        "confirmed where it shares an origin with the model and nothing speaks against it.",
        f"Of {with_base} measured fine-tunes {lost} showed no sign of a common origin with their true "
        f"base. Of {without} whose base was not offered {found} showed one with another model "
        f"({source(about)}).",
        drawings.stacked([
            ("claims of this audit", counts),
            ("measured fine-tunes and their true base", {CONTRADICTED: lost, "not contradicted": with_base - lost}),
            ("measured fine-tunes without their base", {CONFIRMED: found, "not confirmed": without - found}),
        ], ", ".join(f"{count} {status}" for status, count in counts.items()) or "no claims"),
    )  # fmt: skip
