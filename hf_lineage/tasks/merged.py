"""A child that no single candidate explains: it was made of several, or it looks so.

An average, and tensors taken from several, are found where nothing was done to the child since. One that was trained on
shows less: it lies between its sources, or its layers are nearest to different ones. That is said as what it looks
like.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..answers.lineage import NO_RELATIVE, Candidate
from ..architecture.describe import Architecture
from ..errors import Note
from ..report.format import listed_text
from ..weights.depth import ELSEWHERE
from ..weights.edits import ONE_WAY
from ..weights.evidence import WeightsEvidence
from ..weights.mixture import MAX_EXACT_RESIDUAL, MAX_SOURCES, MIN_WEIGHT, exact_average, unconstrained
from ..weights.reader import LINED_UP, Readings
from .session import Aligned

# Cosine of the steps from a model to two others below which it lies between them. Steps to what was made from it go
# their own ways (0 and more); from an average of two they have -1, less far where it was trained on
BETWEEN = -0.5
TRAINED_ON = "as an average of them that was trained on does"
FAR_NEARER = 4.0  # of the squared distances of a layer: so many times as near as to any other candidate


Kind = Literal["found", "like", "between"]


@dataclass(frozen=True, slots=True)
class Merge:
    """What several candidates together tell of the child.

    sources: their places among the compared candidates, the largest share first. kind: it is made of them; or it is
    only like what is; or it only lies between them, of which its blocks tell nothing more.
    """

    text: str
    sources: tuple[int, ...]
    kind: Kind

    def note(self, child: str, refs: Sequence[str]) -> Note:
        """For the answer. refs: of all compared candidates."""
        options = " ".join(f"-c {refs[i]}" for i in self.sources)
        hints = () if self.kind == "between" else (f"Block by block: hf-lineage layers {child} {options}",)
        return Note("merge_found" if self.kind == "found" else "merge_like", f"{self.text}.", *hints)

    def marked(self, judged: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, the sources without an order that the pair alone seemed to show: a merge lies where the
        origin of its sources may lie, too."""
        result = [*judged]
        for i in self.sources:
            candidate = judged[i]
            facts = {name: fact for name, fact in candidate.facts.items() if name != "undone"} | {"first": None}
            if self.kind == "found":
                result[i] = replace(candidate, relation="merge", facts=facts)
            elif candidate.relation == "descendant" and candidate.facts.get("undone") is None:
                result[i] = replace(candidate, relation="common_origin", facts=facts)
        return result


@dataclass(frozen=True, slots=True)
class Relatives:
    """The related ones of the compared candidates, at entries that all of them have.

    places: among the compared. gram: row 0 the child, row k ≥ 1 the difference of the k-th from it, over `names`.
    """

    judged: Sequence[Candidate]
    places: tuple[int, ...]
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    readings: Readings
    gram: np.ndarray

    @classmethod
    def of(
        cls, readings: Readings, architecture: Architecture, comparable: Sequence[Aligned], judged: Sequence[Candidate]
    ) -> Relatives | None:  # fmt: skip
        """comparable: the candidates as they were read. None where fewer than two are related, or share nothing."""
        number = {model.requested: i for i, (model, _) in enumerate(comparable)}
        # units that are alike in their places only are those of what was added, too
        places = [k for k, c in enumerate(judged) if c.relation not in NO_RELATIVE | {None} or "copied" in c.facts]
        numbers = [number[judged[k].requested] for k in places]
        names = [
            name for name in architecture.trunk
            if name in readings.moments and {*numbers} <= {*readings.candidates_with.get(name, ())}
            and all(readings.usable(name, i) for i in numbers)
        ]  # fmt: skip
        if len(numbers) < 2 or not names:
            return None
        rows = {name: [0, *(readings.row(name, i) for i in numbers)] for name in names}
        gram = np.sum([readings.moments[name].gram[np.ix_(rows[name], rows[name])] for name in names], axis=0)
        return cls(judged, tuple(places), tuple(numbers), tuple(names), readings, gram)

    @property
    def members(self) -> list[Candidate]:
        """The related candidates."""
        return [self.judged[place] for place in self.places]

    def known(self, gram: np.ndarray) -> list[int]:
        """Those with products: what has none is not correlated with the child somewhere, and no part of an average."""
        return [k for k, row in enumerate(gram[1:, 1:]) if np.isfinite(np.delete(row, k)).any()]

    def seen_from(self, k: int) -> np.ndarray:
        """The same Gram matrix with the k-th in the child's place, and the child in its."""
        kept = [0, *(i + 1 for i in self.known(self.gram))]
        turned = np.full_like(self.gram, np.nan)
        if k + 1 in kept:
            turn, at = np.eye(len(kept)), kept.index(k + 1)
            turn[:, at] -= 1.0
            turn[0, at], turn[at, at] = 1.0, -1.0
            turned[np.ix_(kept, kept)] = turn @ self.gram[np.ix_(kept, kept)] @ turn.T
        return turned


def find_merge(relatives: Relatives, sums: bool = True) -> Merge | None:
    """An average of several candidates, or what was put together from them; None where one explains the child as well.

    sums: whether weights of any sign are looked at, too: those of a source follow from its merge's.
    """
    gram, members = relatives.gram, relatives.members

    def merge(text: str, sources: Sequence[int], kind: Kind = "found") -> Merge:
        return Merge(text, tuple(relatives.places[k] for k in sources), kind)

    def listed(sources: Sequence[int]) -> str:
        return listed_text([members[k].ref for k in sources])

    if fit := exact_average(gram, relatives.known(gram)):
        sources = sorted(fit.support, key=lambda k: -fit.weights[k])
        return merge(f"A merge: its weights are an average of {_weighted(members, fit.weights, sources)}", sources)
    if len(sources := _assembled(relatives)) > 1:
        return merge(f"A merge: its weights are put together from tensors of {listed(sources)}", sources)
    if len(sources := _owners(members)) > 1:
        return merge(f"A merge: its weights are put together from layers of {listed(sources)}", sources)
    after = [k for k, c in enumerate(members) if c.first == "child" and c.facts.get("undone") not in ONE_WAY]
    if sources := _opposed(gram, after):
        return merge(f"It lies between {listed(sources)}, {TRAINED_ON}", sources, "between")
    if nearest := _nearest_by_layer(members):
        counted = listed_text([f"{members[k].ref} ({count})" for k, count in nearest])
        like = "as those of a model that was put together from them and trained on"
        return merge(f"Its layers are nearest to different models, {counted}, {like}", [k for k, _ in nearest], "like")
    if sums and (sources := _combined(relatives)):
        weights = _weighted(members, unconstrained(gram, sources).weights, sources)
        which = "it or one of these is a merge of the others, as by task arithmetic"
        return merge(f"Its weights are a combination of {weights}: {which}", sources, "like")
    return None


def without_merges(
    relatives: Relatives, none: float | None, alpha: float
) -> tuple[list[Candidate], float | None, list[Note]]:  # fmt: skip
    """All compared candidates, the probability of none of them, and a note on each that seems older than the child and
    is made of it and others: from a merge its sources look like what was made from it.

    It keeps alpha at most; who lies only as a merge of the child does, half of what it had, since no order shows. None
    gets the rest.
    """
    judged, messages = [*relatives.judged], []
    for k, place in enumerate(relatives.places):
        candidate = judged[place]
        if candidate.first != "candidate" or candidate.facts.get("change") in ONE_WAY:
            continue
        if text := _is_average_with(relatives, k):
            changed = replace(candidate, relation="descendant", facts={**candidate.facts, "first": "child"})
            most = min(alpha, candidate.probability or 0.0)
        elif text := _lies_between(relatives, k):
            changed = replace(candidate, relation="common_origin", facts={**candidate.facts, "first": None})
            most = (candidate.probability or 0.0) / 2
        else:
            continue
        none = none + (candidate.probability or 0.0) - most if none is not None else None
        judged[place] = replace(changed, probability=None if candidate.probability is None else most)
        messages.append(Note("merge_of_child", text))
    return judged, none, messages


def _is_average_with(relatives: Relatives, k: int) -> str:
    """That the k-th is an average of the child and others, in words; nothing where it is not."""
    gram, members = relatives.seen_from(k), relatives.members
    fit = exact_average(gram, relatives.known(gram))
    if fit is None or not fit.weights[k]:
        return ""
    named = [replace(c, ref="this model") if i == k else c for i, c in enumerate(members)]
    sources = sorted(fit.support, key=lambda i: -fit.weights[i])
    return f"{members[k].ref} is an average of {_weighted(named, fit.weights, sources)}."


def _lies_between(relatives: Relatives, k: int) -> str:
    """That the k-th lies between the child and others, in words; nothing where it does not."""
    gram, members = relatives.seen_from(k), relatives.members
    # between the child and an older one stands the parent itself, where training went on the same way
    younger = [i for i, c in enumerate(members) if i != k and c.first != "candidate"]
    others = [members[i].ref for i in younger if _cosine(gram, i, k) < BETWEEN]
    return f"{members[k].ref} lies between this model and {listed_text(others)}, {TRAINED_ON}." if others else ""


def _weighted(members: Sequence[Candidate], weights: np.ndarray, sources: Sequence[int]) -> str:
    return listed_text([f"{members[k].ref} ({weights[k]:.2f})" for k in sources])


def _assembled(relatives: Relatives) -> list[int]:
    """Those that each equal the child in matrices where no other one does.

    Frozen layers do not look so: what equals a sibling in them equals their parent.
    """
    unique: set[int] = set()
    for name in relatives.names:
        gram = relatives.readings.moments[name].gram
        rows = [relatives.readings.row(name, i) for i in relatives.numbers]
        equal = [k for k, row in enumerate(rows) if gram[row, row] == 0.0]
        if len(equal) == 1 and name in relatives.readings.units:
            unique |= {*equal}
    return sorted(unique)


def _layers(related: Sequence[Candidate]) -> list[list[dict[str, float]]]:
    """Of every numbered layer, what was measured of it against each candidate; nothing where one was not measured."""
    found = [weights for c in related if isinstance(weights := c.evidence.get("weights"), WeightsEvidence)]
    if len(found) < len(related):
        return []
    names = {block for weights in found for block in weights.blocks if block not in ("stem", "head")}
    return [[weights.blocks.get(block, {}) for weights in found] for block in sorted(names)]


def _owners(related: Sequence[Candidate]) -> list[int]:
    """Places in `related` of candidates to which a layer of the child is alike, and to which no other one's is.

    So it is with layers of unrelated models, tuned since or not; those of siblings are all alike.
    """
    owners: set[int] = set()
    for layer in _layers(related):
        alike = [block.get("correlation", 0.0) for block in layer]
        if max(alike) >= ELSEWHERE and sum(r >= LINED_UP for r in alike) == 1:
            owners.add(alike.index(max(alike)))
    return sorted(owners)


def _nearest_by_layer(related: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Where every layer is plainly nearest to one candidate, not all to the same: each with its number of layers."""
    owners: Counter[int] = Counter()
    for layer in _layers(related):
        squares = [block.get("distance", math.inf) ** 2 for block in layer]
        nearest, second = sorted(squares)[:2]
        if not FAR_NEARER * nearest < second:  # nor where two are equal to it
            return []
        owners[squares.index(nearest)] += 1
    return owners.most_common() if len(owners) > 1 else []


def _combined(relatives: Relatives) -> list[int]:
    """Those of which the child is a sum with weights of any sign, but for rounding, the largest weight first.

    Of any one of them and of the child that says the same, so that no order shows.
    """
    gram = relatives.gram
    among = sorted(relatives.known(gram), key=lambda k: gram[k + 1, k + 1])[:MAX_SOURCES]
    if len(among) < 2 or not gram[among[0] + 1, among[0] + 1]:
        return []
    fit = unconstrained(gram, among)
    kept = sorted((k for k in among if abs(fit.weights[k]) >= MIN_WEIGHT), key=lambda k: -fit.weights[k])
    exact = len(kept) > 1 and unconstrained(gram, kept).rss <= MAX_EXACT_RESIDUAL * gram[among[0] + 1, among[0] + 1]
    return kept if exact else []


def _cosine(gram: np.ndarray, a: int, b: int) -> float:
    """Of the steps from the model in row 0 to the a-th and to the b-th; 0 where one of them is not known."""
    length2 = gram[a + 1, a + 1] * gram[b + 1, b + 1]
    cosine = gram[a + 1, b + 1] / math.sqrt(length2) if length2 > 0 else 0.0
    return cosine if math.isfinite(cosine) else 0.0


def _opposed(gram: np.ndarray, among: Iterable[int]) -> list[int]:
    """Those to which the steps from the model in row 0 point away from each other, the nearest first: of what was made
    from one model they do not."""
    pairs = [{a, b} for a, b in itertools.combinations(among, 2) if _cosine(gram, a, b) < BETWEEN]
    return sorted(set().union(*pairs), key=lambda k: gram[k + 1, k + 1])
