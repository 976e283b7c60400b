"""A `Lineage` in plain sentences: one, or as many as it takes. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ..answers.lineage import Candidate, Claim, Lineage
from ..answers.refs import printable
from ..errors import code_of
from .format import count_text, listed_text, p_text

Show = Callable[[str], str]
AGREEING = 0.3  # share of units matched alike twice from which models are related (weights/unit_matching.py)
UNLIKE = {  # by what was done to the residual stream
    "": "13,873 pairs of unrelated models none reached 4 %",
    "rotated": "7,227 pairs of unrelated models, turned likewise, none reached 3 %",
    "channels": "6,000 pairs of unrelated ResNets, put in order likewise, none reached 5 %",
}
CLOSE = 0.1  # change relative to the norm below which two models are no two trainings from one random start
KEPT = 0.9  # share of the weights that are not zero from which nothing else was done to a pruned copy
FORMATS = {"F16": "half-precision", "BF16": "bfloat16"}
ONE_WAY = ("cast", "quantized", "pruned", "resized")
UNDONE = {"cast": "a copy in a smaller format of", "quantized": "a rounded copy of", "pruned": "a pruned copy of"}
CLAIMS = {
    "confirmed": "confirmed by the weights",
    "contradicted": "contradicted, no sign of a common origin",
    "relative": "a relative, but not the parent found",
    "not_testable": "not testable, it was not compared or not decided",
    "not_understood": "not understood as the id of a model on the Hub",
}
SILENT = (
    "Nothing that could tell it shows: no roundings, no weights that low precision held back, no remains of a coarser "
    "format, no low-rank step, no growth of rows, no weight decay, no move far from the origin."
)
MERGED = "confirmed by the weights, as a source of the merge"
OPEN = "confirmed, as far as weights go: a common origin, and no sign against it"
BY_SHAPES = {  # of what an adapter's files say
    "not_testable": "not testable, an adapter holds no copy of its base",
    "contradicted": "contradicted, the adapter's factors cannot belong to its matrices",
}


def claim_text(lineage: Lineage, claim: Claim) -> str:
    """What the weights say of a claim."""
    taken = any(c.order_taken for c in lineage.candidates if c.ref == lineage.parent)
    if claim.status == "confirmed" and claim.ref in sources_of_merge(lineage):
        return MERGED
    if claim.status == "confirmed" and (lineage.parent is None or taken):
        return OPEN
    if is_adapter(lineage) and claim.status in BY_SHAPES:
        return BY_SHAPES[claim.status]
    return CLAIMS[claim.status]


def sources_of_merge(lineage: Lineage) -> set[str]:
    """The names of the candidates that the child is a merge of."""
    return {name for c in lineage.candidates if c.relation == "merge" for name in (c.ref, c.requested)}


def is_adapter(lineage: Lineage) -> bool:
    """Whether the base of an adapter was traced in its place."""
    return any(code_of(note) == "adapter_base_traced" for note in lineage.notes)


def sentence(lineage: Lineage, show: Show | None = None) -> str:
    """The verdict in plain words, with how often such evidence arises by chance; `show` writes a foreign name."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    if lineage.verdict == "undecided" and is_adapter(lineage):
        return "Undecided: it is a LoRA adapter, and what it was trained on does not show in it."
    if not compared:
        return "Undecided: no candidate could be compared with it."
    unread = [c for c in lineage.candidates if c.status == "unreadable"]
    if lineage.verdict == "undecided" and unread:
        return _with_unread(lineage, unread, show)
    best = compared[0]
    merged = [note for note in lineage.notes if code_of(note) in ("merge_found", "merge_like")]
    if merged and lineage.verdict in ("common_origin", "undecided"):
        more = "; see hf-lineage layers" if merged[0].hint else ""
        return f"{(show or printable)(merged[0].sentence.removesuffix('.'))}{more}."
    name = (show or printable)(candidate_name(best))
    others = f"p {p_text(best.log10_p)} " + (
        f"among {len(compared)} candidates" if len(compared) > 1 else "for the one candidate"
    )
    if lineage.verdict == "identical":
        tested = "" if best.log10_p is None else f" ({others})"
        return f"Identical to {name}: every weight is equal{tested}. Which of the two is the copy does not show."
    if lineage.verdict == "parent":
        given = ", if it is the older one, as was said and not measured" if best.order_taken else ""
        told = f"{headline(best, name)}{radius(best)}{given}, probability {best.probability:.3f}"
        return f"{told}: they share an origin ({others})."
    if lineage.verdict == "none":
        asked = len(lineage.candidates)
        who = f"None of the {len(compared)} candidates" if len(compared) > 1 else f"Not {name}, the only candidate"
        if asked > len(compared):
            which = f"that could be compared, of {asked}"
            who = (
                f"None of the {len(compared)} candidates {which}"
                if len(compared) > 1
                else f"Not {name}, the one {which}"
            )
        return f"{who}: no sign of a common origin (smallest p {smallest(compared)})."
    if lineage.verdict == "common_origin":
        return _of_common_origin(best, name, others)
    if "detector" in best.evidence and "weights" not in best.evidence:
        return _by_detector_alone(best, name, lineage.none_probability, len(compared))
    if "features" in best.evidence and "weights" not in best.evidence:
        return (
            f"Undecided: by features alone it is most like {name} (match {best.probability:.3f} among "
            f"{len(compared)}); that tells the nearest candidate, not whether the two are related."
        )
    if best.arranged:
        passed = f"{name} passes the test for a common origin ({others}), but only by the positions of hidden units."
        return f"Undecided: {passed} {arranged(best)} {_added(best)}"
    if best.p_value is None:
        return f"Undecided: the test for a common origin does not apply. Nearest in distance: {name}."
    return f"Undecided: the evidence singles out none of {len(compared)} candidates. First of them: {name}."


def _with_unread(lineage: Lineage, unread: list[Candidate], show: Show | None) -> str:
    """What holds although some candidates could not be read: one of them may be the parent."""
    names = [(show or printable)(candidate_name(c)) for c in unread[:2]]
    more = f" and {len(unread) - len(names)} more" if len(unread) > len(names) else ""
    listed = f"{', '.join(names)}{more}" if more or len(names) == 1 else " and ".join(names)
    related = [c for c in lineage.candidates if c.status == "compared" and c.relation not in (None, "none")]
    untested = any(c.status == "compared" and c.relation is None for c in lineage.candidates)
    rest = "no other candidate shows a sign of a common origin"
    if related:
        found = (show or printable)(candidate_name(related[0]))
        rest = f"it shares an origin with {found} (p {p_text(related[0].log10_p)}), which is not shown to be the parent"
    elif untested:
        rest = "the evidence about the others decides nothing"
    return f"Undecided: {listed} could not be read and may be the parent; {rest}."


def headline(best: Candidate, name: str) -> str:
    """What a model is that was made from a candidate, without a full stop: the relation with its measured fact."""
    facts, relation = best.facts, best.relation
    text = f"Fine-tuned from {name}"
    if relation == "cast" or (relation == "quantized" and facts.get("change") == "cast"):  # so in schema 1
        text = f"A {FORMATS.get(facts['cast'], facts['cast'])} copy of {name}"
    elif relation == "quantized" and "cast" in facts and facts.get("scheme") == facts["cast"]:
        text = f"An 8-bit floating-point copy of {name}"
    elif relation == "quantized":
        text = f"{name} rounded to {facts.get('bits', 8)} bits ({facts.get('scheme', 'unknown')})"
    elif relation == "pruned":
        zeros = f"{100 * facts['zeros']:.0f} %"
        text = f"{name} with {zeros} of its weights set to zero"
        if facts.get("kept_equal", 1.0) < KEPT:
            text = f"Fine-tuned from {name}, {zeros} of the weights set to zero"
    elif relation == "resized":
        mine, its = facts["vocabulary"]["child"], facts["vocabulary"]["candidate"]
        text = f"{name} with {count_text(mine - its, 'token')} added ({its:,} to {mine:,})"
    elif relation == "adapter":
        text = f"Fine-tuned from {name} by {_low_rank(facts)}"
    elif relation == "partial":
        text = f"Fine-tuned from {name}, {100 * facts['equal_share']:.0f} % of the weights unchanged"
    elif facts.get("change") == "noise":
        text = f"{name} with white noise of {facts['noise']:.2g} standard deviations added"
    return f"{text}, its hidden units in another order" if best.disguised and relation != "common_origin" else text


def radius(best: Candidate) -> str:
    """How far from the candidate the common origin can be, by the roundings or another measurement; "" without one.

    Of the estimators only the roundings tell a child from a grandchild, by their misfit: what was rounded twice is
    not like one step.
    """
    found = best.order.radius if best.order else None
    if not found or not best.distance or best.relation in ONE_WAY:
        return ""
    once = best.order is not None and "rounding_edges" in (best.order.method or "").split("+")
    way = "" if once else ", directly or by way of other fine-tunes of it"
    return f"{way}, or from a model within {100 * min(found / best.distance, 1):.0f} % of the distance to it"


def _low_rank(facts: dict[str, Any]) -> str:
    if "rank" not in facts:
        return "an adapter"
    of = f" in {facts['low_rank_tensors']} of {sum(facts['tensors'].values())} tensors" if "tensors" in facts else ""
    return f"a rank-{facts['rank']} update{of} (a merged LoRA)"


def _layers(found: dict[str, Any]) -> str:
    """How the layers of two models differ, as said of the child after the candidate's name."""
    mine, its = found["child"], found["candidate"]
    kept = {int(child): place for child, place in found["moved"].items()}
    runs = _runs(kept)
    moved = listed_text([f"{_span(a, b)} as {_span(a - shift, b - shift)}" for a, b, shift in runs])
    count = f"with {count_text(mine, 'layer')} instead of {its}" if mine != its else "with its layers in another order"
    return f"{count}: that model's {moved}" if runs else count


def _runs(kept: dict[int, int]) -> list[tuple[int, int, int]]:
    """Neighbouring layers that moved by the same number: (candidate's first, last, how far the child's are before)."""
    runs: list[tuple[int, int, int]] = []
    for child, place in sorted(kept.items()):
        if runs and runs[-1][1] == place - 1 and runs[-1][2] == place - child:
            runs[-1] = (runs[-1][0], place, place - child)
        else:
            runs.append((place, place, place - child))
    return runs


def _span(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _of_common_origin(best: Candidate, name: str, others: str) -> str:
    """A relative that is not shown to be the parent."""
    facts, moved = best.facts, best.facts.get("moved", math.inf)
    if best.relation == "shared_part":
        return (
            f"It shares {facts['part']} with {name} ({others}), and nothing else shows. Many models may have that part."
        )
    if best.relation == "head_changed" or (best.relation == "depth_changed" and "layers" in facts):
        return f"{difference(best, name)} ({others}). {order(best)}"
    if best.relation == "descendant":
        return f"It shares an origin with {name} ({others}). {order(best)}"
    if best.disguised:
        how = {
            "": "with its hidden units in another order or scale",
            "rotated": "its residual stream rotated and its hidden units maybe in another order or scale",
            "channels": "its channels in another order and its hidden units maybe in another order or scale",
        }[_of_stream(best)]
        found = f"It shares an origin with {name} ({others}), {how}: {hidden(best)}."
        close = "Almost certainly they are parent and child, or close siblings." if moved <= CLOSE else ""
        return " ".join(filter(None, (found, close, order(best))))
    if best.first == "neither" and _by_steps(best):
        return f"It and {name} come from a common model ({others}). {order(best)}"
    if best.relation == "resized":
        which = "Which of the two came first does not show: tokens can be added and cut off."
        return f"{difference(best, name)} ({others}). {which}"
    if best.relation in ("adapter", "partial"):
        return f"{difference(best, name)} ({others}). {order(best)}"
    if moved <= CLOSE and best.first is None:
        which = "which came first does not show."
        if "own_base" in facts:
            which = order(best)[0].lower() + order(best)[1:]
        return f"Almost certainly {name} and this model are parent and child, or close siblings ({others}); {which}"
    if best.first == "candidate":
        itself = (
            f"Whether it is the parent, or a relative of the parent, stays open (probability {best.probability:.3f})"
        )
        return f"It shares an origin with {name} ({others}). {order(best)} {itself}."
    return f"It shares an origin with {name} ({others}), as models from one random start do too. {order(best)}"


def difference(best: Candidate, name: str) -> str:
    """What separates a model from a related candidate, whichever came first, without a full stop."""
    facts, relation = best.facts, best.relation
    if relation in ("cast", "quantized", "pruned"):
        return headline(best, name)
    if relation == "head_changed":
        return f"Its trunk is equal to that of {name} in all that was read; the head is another, or there is none"
    if relation == "shared_part":
        return f"It shares {facts['part']} with {name}, and nothing else shows"
    if relation == "depth_changed" and "layers" in facts:
        return f"{name} {_layers(facts['layers'])}"
    if relation == "merge":
        return f"It is made of {name} and others"
    if relation == "resized":
        mine, its = facts["vocabulary"]["child"], facts["vocabulary"]["candidate"]
        words = count_text(abs(mine - its), "token")
        more = f"it has {words} {'more' if mine >= its else 'less'}"
        return (
            f"{more[0].upper()}{more[1:]} than {name}"
            if facts.get("moved")
            else f"Its weights are those of {name}, and {more}"
        )
    if relation == "adapter":
        return f"It differs from {name} by {_low_rank(facts)}"
    if relation == "partial":
        return f"{100 * facts['equal_share']:.0f} % of its weights are those of {name}"
    if facts.get("change") == "noise":
        return f"It differs from {name} by white noise of {facts['noise']:.2g} standard deviations"
    if best.disguised:
        return f"Its hidden units stand in another order or scale than those of {name}"
    return f"It differs from {name} as after more training: no rounding, pruning or low-rank step shows between them"


def explanation(lineage: Lineage) -> str:
    """The verdict; then, a line each: related, nearest, who came first, the parent itself or a relative; the rest."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    best = compared[0] if compared else None
    related = best is not None and best.relation not in (None, "none", "identical")
    topics: dict[str, list[str]] = {}
    if best is not None and best.p_value is not None:
        topics["Related?"] = [
            "The p-value is the chance of such an agreement between models that were trained separately, from starts "
            "of their own; it does not tell a parent from another relative.",
            *([arranged(best)] if related and not best.disguised else []),
        ]
    if best is not None and related:
        topics["Nearest?"] = [*_ranking(best, compared[1:]), *_facts(best), *_others(compared[1:])]
        topics["Who came first?"] = [*_order_explained(best, lineage.verdict == "parent"), *_dates(best)]
    topics["The parent itself?"] = _itself(lineage, best)
    topics[""] = [*_by_features(compared), *_by_detector(compared)]
    topics["Claims?"] = [
        f"The {claim.source} names {printable(claim.ref)}: {claim_text(lineage, claim)}." for claim in lineage.claims
    ]
    lines = [" ".join([title, *texts]).strip() for title, texts in topics.items() if texts]
    return "\n".join([sentence(lineage), *lines])


def _others(others: list[Candidate]) -> list[str]:
    """What the other related candidates are."""
    related = [c for c in others if c.relation not in (None, "none", "identical")]
    return [f"{printable(candidate_name(c))} is {_relative(c)}." for c in related]


def _order_explained(best: Candidate, is_parent: bool) -> list[str]:
    """Who came first and why, or why it does not show; nothing that the verdict's sentence says already."""
    if best.order_taken or (is_parent and not _by_steps(best)):
        return [order(best)]
    if best.order is not None and best.order.position is not None:
        return [f"{_capital(_reason(best))}."]
    if best.first is None and best.relation not in ("head_changed", "depth_changed", "shared_part", "merge"):
        return [SILENT]
    return []


def _dates(best: Candidate) -> list[str]:
    """When the Hub says that the two were committed."""
    dates = best.facts.get("committed")
    if not dates:
        return []
    ours, theirs = (str(dates[whose])[:10] for whose in ("child", "candidate"))
    name = printable(candidate_name(best))
    return [
        f"On the Hub the commit of this model is of {ours}, that of {name} of {theirs}: dates "
        "of commits decide nothing here, since older weights can be uploaded later."
    ]


def _itself(lineage: Lineage, best: Candidate | None) -> list[str]:
    """Whether the parent may be a relative that was not offered, and how likely none of them is the parent."""
    if lineage.none_probability is None or lineage.verdict == "identical":
        return []
    told = []
    if best is not None and lineage.verdict == "parent" and radius(best):
        name = printable(candidate_name(best))
        told.append(f"The weights cannot tell {name} from a model within that distance that was not offered.")
    return [*told, f"The probability that none of them is the parent: {lineage.none_probability:.3f}."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _relative(candidate: Candidate) -> str:
    """What a related candidate is to the child."""
    known = {"sibling": "a sibling of the child", "descendant": "made from the child", "merge": "a source of the merge"}
    return known.get(candidate.relation or "", "older, too" if candidate.first == "candidate" else "related too")


def order(candidate: Candidate) -> str:
    """Who came first, or that it does not show."""
    if candidate.order_taken:
        return "That model came first, as the caller said; the weights do not show it."
    if candidate.relation in ("identical", "head_changed"):
        return "Which of the two came first does not show: what they share is equal."
    if candidate.relation == "merge":
        return "That model came first: this one is made of it and others."
    if candidate.first == "child":
        undone = UNDONE.get(candidate.facts.get("undone", ""), "made from")
        return f"That model is {undone} this one, not the other way round."
    if candidate.first == "neither" and _by_steps(candidate):
        return f"Neither was made from the other: {_reason(candidate)}."
    if candidate.relation in ONE_WAY:
        return "That model came first: this cannot be done the other way round."
    if candidate.facts.get("own_base"):
        return (
            "Which of the two came first does not show: the one that looks older was itself trained from another model "
            "in half precision, which may be the parent of both."
        )
    if candidate.first == "candidate" and _by_steps(candidate):
        return f"That model came first: {_reason(candidate)}."
    if base := candidate.facts.get("inherited_from"):
        return (
            f"That model came first: this one has kept what rounding made of its step from {base}, which a sibling "
            "would not have."
        )
    if candidate.first == "candidate":
        return "That model came first: the change shows in this one only."
    return "Which of the two came first does not show."


def _by_steps(candidate: Candidate) -> bool:
    """Whether the steps between the two decided who came first."""
    return candidate.order is not None and candidate.order.radius is not None


def _reason(candidate: Candidate) -> str:
    """What tells the order, for a sentence."""
    found = candidate.order
    assert found is not None and found.position is not None and found.stderr is not None
    said = re.sub(r" \(λ = .*\)$", "", found.reason).replace("the candidate", printable(candidate_name(candidate)))
    said, place = said.replace("the child", "this model"), f"{found.position:.2f}".replace("-", "−")
    return f"{said} (λ = {place} ± {found.stderr:.2f}, where 1 is a parent, 0 a sibling that moved as far, −1 a child)"


def hidden(candidate: Candidate) -> str:
    """How a common origin shows although hidden units were permuted or rescaled."""
    facts = candidate.facts["disguise"]
    return (
        f"{facts['units_agreeing']:,} of {facts['units']:,} hidden units, put in order again by their inputs, agree by "
        f"their outputs (of {UNLIKE[_of_stream(candidate)]})"
    )


def _of_stream(candidate: Candidate) -> str:
    """What was done to the residual stream of a candidate whose units were put in order: the key of `UNLIKE`."""
    return next((key for key in ("rotated", "channels") if candidate.facts["disguise"].get(key)), "")


def arranged(candidate: Candidate) -> str:
    """What p assumes of the places of hidden units, and what was looked at beyond it."""
    found = candidate.facts.get("agreement")
    if not found:
        return "It assumes that nobody put the hidden units in this order on purpose, which was not checked."
    agree = f"{found['units_agreeing']:,} of {found['units']:,} hidden units"
    if found["score"] >= AGREEING:
        matched = f"Matched twice without regard to their positions, {agree} agree."
        return f"{matched} No order that somebody chose brings that about."
    if found["units_agreeing"] >= AGREEING * found["units"]:
        return (
            f"Matched twice without regard to their positions, {agree} agree, but next to nothing passes through them: "
            "somebody may have put another model's units where this one had units to spare."
        )
    return (
        f"Matched twice without regard to their positions, only {agree} agree, as in unrelated models: somebody may "
        "have put the units of an unrelated model in this order."
    )


def assumption(candidate: Candidate | None) -> str:
    """What the p-value of a related candidate assumes, in one line; "" where there is none, or its units were put in
    order."""
    if candidate is None or candidate.p_value is None or candidate.disguised:
        return ""
    return "" if candidate.relation in (None, "none", "identical") else arranged(candidate)


def _added(candidate: Candidate) -> str:
    """What share of a candidate an addition of it would have had."""
    return f"Or {100 * candidate.facts['copied']['weight']:.2g} % of that model may have been added to it."


def candidate_name(candidate: Candidate) -> str:
    """What tells a candidate from the others: its id, its id and the revision asked for, or the module's place."""
    if candidate.ref.startswith("module:"):
        return f"{candidate.ref} ({candidate.requested})"
    return candidate.requested if "@" in candidate.requested else candidate.ref


def smallest(compared: list[Candidate]) -> str:
    """The smallest p-value."""
    return p_text(min((c.log10_p for c in compared if c.log10_p is not None), default=None))


def _ranking(best: Candidate, others: list[Candidate]) -> list[str]:
    far = [c.distance for c in others if c.distance is not None]
    if not others:
        return ["No other candidate was compared."]
    name = printable(candidate_name(best))
    if not far or not best.distance:
        return []
    times = min(far) / best.distance
    if times < 1:
        return [f"Another candidate is nearer than {name}: {times:.2f} times as far away."]
    return [f"{name} is; the next candidate is {times:{'.2f' if times < 10 else '.0f'}} times as far away."]


def _by_features(compared: list[Candidate]) -> list[str]:
    """Which candidate's features are nearest, where both kinds of evidence were asked for."""
    seen = [c for c in compared if "features" in c.evidence and "weights" in c.evidence]
    if not seen:
        return []
    first = max(seen, key=lambda c: c.evidence["features"]["match"])
    agrees = "too" if first is compared[0] else "instead"
    about = first.evidence["features"]
    where = f"{about['metric']} at {printable(about['taps'][0]['tap'])}, {about['probes']} probes"
    return [f"By its features ({where}) it is most like {printable(candidate_name(first))} {agrees}."]


def _by_detector_alone(best: Candidate, name: str, none: float | None, among: int) -> str:
    """A learned probability alone: a prediction, and no test."""
    share = best.probability or 0.0
    verdict = f"{name} is the parent, probability {share:.3f} among {among}"
    if none is not None and none > share:
        verdict = f"none of the {among} is the parent, probability {none:.3f} (first of them: {name}, {share:.3f})"
    return f"Undecided: the detector alone says that {verdict}; it is no test for a common origin."


def _by_detector(compared: list[Candidate]) -> list[str]:
    """What the detector says beside the weights."""
    seen = [c for c in compared if "detector" in c.evidence and "weights" in c.evidence]
    if not seen:
        return []
    first = max(seen, key=lambda c: c.evidence["detector"]["probability"])
    share, none = (first.evidence["detector"][key] for key in ("probability", "none_probability"))
    if none is not None and none > share:
        return [f"The detector says that none of them is the parent, with a probability of {none:.3f}."]
    agrees = "too" if first is compared[0] else "instead"
    return [f"The detector names {printable(candidate_name(first))} {agrees}, with a probability of {share:.3f}."]


def _facts(best: Candidate) -> list[str]:
    if best.disguised:
        return []
    moved = best.facts["moved"]
    return [f"The weights moved by {100 * moved:.2g} % of their norm."] if moved else []
