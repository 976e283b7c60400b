"""Each figure of an answer in a sentence, beside how often it arises between unrelated models.

Names in the sentences are untrusted text, cleaned of control characters; who writes HTML escapes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..answers.lineage import Candidate
from ..answers.refs import printable
from . import drawings
from .format import listed_text, number_text, p_text
from .layers import percent
from .sentences import ONE_WAY, arranged, candidate_name, difference, hidden, order

SOURCES = "The files named in brackets lie in tests/benchmarks/results of the repository of hf_lineage."
EDITS = {  # what was done to a tensor, as it is called below a bar
    "equal": "equal", "cast": "in another format", "quantized": "rounded", "pruned": "with weights set to zero",
    "adapter": "with a low-rank step", "noise": "with noise", "other": "otherwise changed",
}  # fmt: skip
MAX_SHARES = 8  # candidates whose share has a bar
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
    if best.log10_p is not None:
        yield _origin(best.log10_p, weights, alpha, 1 + len(others))
    if best.disguised:
        yield _hidden(best)
    elif "agreement" in best.facts:
        yield _agreement(best)
    if best.facts.get("moved") is not None:
        yield _change(best, [c.facts["moved"] for c in others if c.facts.get("moved") is not None])
        moved = {name: block["moved"] for name, block in weights.get("blocks", {}).items() if block.get("moved")}
        if len(moved) > 1:
            yield _blocks([*moved.items()])
    if weights.get("correlation") and best.relation not in (None, "none"):
        yield _correlation(float(weights["correlation"]))
    if best.relation not in (None, "none", "identical"):
        yield _first(best)
    if best.relation not in (None, "none", "identical", "common_origin", "sibling", "descendant"):
        yield _difference(best)
    if best.probability is not None and weights:
        yield _probability(best, none)
    yield from _without_test([best, *others])


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
        f"chance gives 1 % ({source(about)}). The p-values of these pairs count one candidate.",
        drawings.p_values(log10_p, alpha, *unrelated_pairs()),
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
        f"({source(about)}); independent weights of one size give 141 %.",
        drawings.changes(moved, others, about["moved"]),
    )  # fmt: skip


def _blocks(moved: Sequence[tuple[str, float]]) -> Figure:
    about = background()["change"]
    least, most = min(moved, key=lambda block: block[1]), max(moved, key=lambda block: block[1])
    return Figure(
        "And block by block?",
        f"Of {len(moved)} blocks {printable(least[0])} moved least, by {percent(least[1])} of its norm, and "
        f"{printable(most[0])} most, by {percent(most[1])}.",
        f"Of unrelated models the whole moved by {percent(about['moved'][0])} or more ({source(about)}).",
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
        f"({source(about)}).",
        drawings.correlation(value, about["correlation"]),
    )


def _hidden(best: Candidate) -> Figure:
    found, facts = background()["hidden"], best.facts["disguise"]
    return Figure(
        "Hidden units put in order", f"{capital(hidden(best))}.",
        f"{found['pairs']:,} measured pairs of unrelated models were put in order like this: "
        f"{found['called_related']} of them had a p-value of 0.001 or less, where chance gives "
        f"{found['pairs'] / 1000:.0f} ({source(found)}).",
        drawings.agreeing(facts["units_agreeing"] / max(facts["units"], 1), background()["agreement"]["most"]),
    )  # fmt: skip


def _agreement(best: Candidate) -> Figure:
    about, facts = background()["agreement"], best.facts["agreement"]
    return Figure(
        "Do hidden units agree without their positions?", arranged(best),
        f"Of {about['pairs']} unrelated models whose units were put on purpose into the order of another model's "
        f"{100 * about['most']:.1f} % of the units agreed at most ({source(about)}).",
        drawings.agreeing(facts["score"], about["most"]),
    )  # fmt: skip


def _difference(best: Candidate) -> Figure:
    about, facts, name = background()["edits"], best.facts, printable(candidate_name(best))
    tensors = {EDITS.get(kind, kind): count for kind, count in facts.get("tensors", {}).items()}
    if "layers" in facts:
        found = facts["layers"]
        moved = {int(mine): theirs for mine, theirs in found["moved"].items()}
        drawn = drawings.depths(found["child"], found["candidate"], moved)
    elif tensors:
        counted = ", ".join(f"{count} {kind}" for kind, count in tensors.items())
        drawn = drawings.stacked([("tensors of this model, beside the candidate's", tensors)], f"Tensors: {counted}")
    else:
        share = facts.get("equal_share") or 0.0
        parts = {"% of the weights equal": round(100 * share), "% not equal": round(100 * (1 - share))}
        drawn = drawings.stacked([("weights of this model, beside the candidate's", parts)], f"{share:.0%} are equal")
    return Figure(
        "What separates the two?", f"{capital(difference(best, name))}.",
        f"Of {about['made']} measured models that were made in a known way {about['right']} were described right "
        f"({source(about)}). Of unrelated models nothing of the kind is said.",
        drawn,
    )  # fmt: skip


def _without_test(compared: Sequence[Candidate]) -> Iterator[Figure]:
    """What features and a detector say, which name a candidate and test nothing."""
    for kind, field in (("features", "match"), ("detector", "probability")):
        seen = sorted(
            ((c.evidence[kind][field], printable(candidate_name(c))) for c in compared if kind in c.evidence),
            reverse=True,
        )
        if seen:
            about = next(c.evidence[kind] for c in compared if kind in c.evidence)
            yield (_features if kind == "features" else _detector)(seen, about)


def _features(seen: Sequence[tuple[float, str]], evidence: Mapping[str, Any]) -> Figure:
    about = background()["features"]
    first = listed_text([f"{100 * share:.0f} % ({name})" for name, share in about["first"].items()])
    share, name = seen[0]
    return Figure(
        "What do features say?",
        f"On {evidence['probes']} inputs the outputs of this model's layers are most like those of {name}, with a "
        f"match of {share:.3f} ({evidence['metric']}). The matches of all candidates sum to 1, related or not.",
        f"Between unrelated models a match says nothing: one of them always has the highest. Of {about['children']} "
        f"measured children whose parent was offered the parent had it in {first} ({source(about)}).",
        _share_bars(seen, "matches"),
    )  # fmt: skip


def _detector(seen: Sequence[tuple[float, str]], evidence: Mapping[str, Any]) -> Figure:
    about, (share, name), none = background()["detector"], seen[0], evidence["none_probability"]
    (children, right), (orphans, named_none) = about["parent"], about["orphans"]
    rest = f"; to none of them {none:.3f}" if none is not None else ""
    return Figure(
        "What does the detector say?",
        f"The detector {printable(evidence['detector'])} gives {name} a probability of {share:.3f}{rest}. It is "
        "learned from networks whose parents are known, and is no test for a common origin.",
        f"The detector that comes with this package said of {named_none} of {orphans} measured children without a "
        f"relative among the candidates that none is the parent; it named the parent of {right} of {children} where "
        f"that was offered ({source(about)}).",
        _share_bars(seen, "probabilities"),
    )  # fmt: skip


def _share_bars(seen: Sequence[tuple[float, str]], what: str) -> str:
    shown = [(name, share) for share, name in seen[:MAX_SHARES]]
    return drawings.shares(shown, f"{what}: " + ", ".join(f"{name} {share:.3f}" for name, share in shown))


def _first(best: Candidate) -> Figure:
    table = background()["order"]["table"]
    wrong = sum(table[name]["wrong"] for name in OFFERED)
    asked = sum(sum(table[name].values()) for name in OFFERED)
    worst = max(OFFERED, key=lambda name: table[name]["wrong"])
    shown = best.order if best.order is not None and best.order.radius is not None else None  # else it decides nothing
    drawn = drawings.who_first(_older(best))
    if shown is not None and shown.position is not None:
        drawn = drawings.order(shown.position, shown.stderr or 0.0)
    return Figure(
        "Who came first?", order(best),
        f"Of {asked} measured questions about light fine-tunes whose truth is known {wrong} were answered with a wrong "
        f"parent, {table[worst]['wrong']} of these where {OFFERED[worst]} were offered, and not the parent "
        f"({source(background()['order'])}). Between unrelated models the question has no answer.",
        drawn,
    )  # fmt: skip


def _older(best: Candidate) -> str | None:
    """Who of the two came first, as the sentence beside it says."""
    if best.order_taken or best.relation in ("merge", *ONE_WAY) or best.facts.get("inherited_from"):
        return "candidate"
    return None if best.relation in ("head_changed", "depth_changed", "shared_part") else best.first


def _probability(best: Candidate, none: float | None) -> Figure:
    about, share = background()["probability"], best.probability or 0.0
    said, right = min(about["bins"], key=lambda pair: abs(pair[0] - share))
    rest = f"; that it is none of these {none:.3f}" if none is not None else ""
    lowest = about["bins"][0][0]
    near = (
        f"Of {about['answers']:,} measured answers about {about['children']} children those with a probability of "
        f"about {said:.2f} named the right parent in {100 * right:.0f} % of cases ({source(about)})."
        if share >= lowest / 2
        else f"So low a probability was not measured on its own: the lowest group of {about['answers']:,} measured "
        f"answers had one of about {lowest:.2f} ({source(about)})."
    )  # fmt: skip
    return Figure(
        "How probable is it as the parent?",
        f"The probability that {printable(candidate_name(best))} is the very model that training started from is "
        f"{share:.3f}{rest}. It is fitted on small networks.",
        near, drawings.calibration(share, about["bins"]),
    )  # fmt: skip


def unrelated_pairs() -> tuple[Sequence[Sequence[float]], int]:
    """The p-values of measured unrelated pairs, as `drawings.p_values` takes them."""
    about = background()["p_value"]
    return about["at_most"], about["pairs"]


def source(about: dict[str, Any]) -> str:
    """The files that a figure of the background comes from."""
    return listed_text(about["source"])


def capital(text: str) -> str:
    """A text with a capital letter in front."""
    return text[:1].upper() + text[1:]
