"""Where each block of a child came from, and in what proportion: one origin, several, or none of the candidates."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .architecture import Architecture
from .hub.checkpoint import Checkpoint
from .records import BlockKind, BlockOrigin, Share
from .weights.evidence import independence
from .weights.independence import IndependenceTest, holm
from .weights.mixture import Fit, cosines, select, simplex, with_stderr
from .weights.places import Block, Places
from .weights.reading import Readings

MIXED = 0.01  # chance that any block of a child with single origins is called a mixture of unrelated models
KIN = 0.1  # correlation from which two candidates' blocks are related
LIKE, UNLIKE = 0.5, 0.2  # correlation of blocks that no test applies to: from the one on related, below the other not
SMALL = 0.02  # an unknown share below this, or three standard errors, is drift
LEAST = 0.01  # weight of a source that is looked for because the blocks have it
SHARP = 10.0  # P ∝ (squared distance)^-SHARP among related candidates


@dataclass(frozen=True, slots=True)
class Study:
    """What one reading left behind, and the question: `places[k]` of candidate k, called `refs[k]`."""

    readings: Readings
    architecture: Architecture
    child: Checkpoint
    blocks: tuple[Block, ...]
    places: tuple[Places, ...]
    refs: tuple[str, ...]
    alpha: float
    seed: int

    @property
    def pairs(self) -> int:
        """Pairs of blocks that were tested: the family of the p-values."""
        return sum(int(np.isfinite(place.z).sum()) for place in self.places)


@dataclass(frozen=True, slots=True)
class Facts:
    """One block: the matrices compared, of the candidates `kept`; Gram matrices in full size, row 0 the child's.

    `equal`: candidates without any difference; `tests`: of candidates whose units were read; `centred`: the sum of the
    Gram matrices of each tensor around its mean.
    """

    place: int
    names: tuple[str, ...]
    kept: tuple[int, ...]
    grams: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    centred: np.ndarray
    equal: frozenset[int]
    tests: dict[int, IndependenceTest]

    @property
    def gram(self) -> np.ndarray:
        """Over all matrices."""
        return sum(self.grams, np.zeros_like(self.centred))

    def score(self, candidate: int) -> float:
        """Correlation with the child."""
        return float(cosines(self.centred)[0, self.kept.index(candidate) + 1])


def gather(study: Study) -> tuple[Facts, ...]:
    """The facts of every block, from the moments and units that were read."""
    return tuple(_facts(study, i) for i in range(len(study.blocks)))


def origins(study: Study, facts: Sequence[Facts]) -> tuple[BlockOrigin, ...]:
    """The origin of every block, each for itself."""
    adjusted = _adjusted(study, facts)
    found = [_origin(study, each, adjusted) for each in facts]
    merged = _merged_of(found)
    if merged:  # no test finds unrelated sources in a stem or a head: those of the blocks are looked for there
        for each in facts:
            if study.blocks[each.place].rest and found[each.place].kind in ("tuned", "mixture"):
                found[each.place] = _origin(study, each, adjusted, [study.refs.index(ref) for ref in merged])
    often: dict[str, int] = {}
    for origin in found:
        if origin.parent and "same" not in origin.facts:
            often[origin.parent] = often.get(origin.parent, 0) + 1
    return tuple(_settled(study, origin, often) for origin in found)


def scored(study: Study, facts: Sequence[Facts], candidate: int) -> np.ndarray:
    """The candidate's scores (child blocks × its blocks); of stem and head, which have one place, their correlation."""
    place = study.places[candidate]
    scores = place.scores.copy()
    for each in facts:
        j = place.best[each.place]
        if j is not None and study.blocks[each.place].rest:
            scores[each.place, j] = each.score(candidate) if candidate in each.kept else np.nan
    return scores


def alike(origins: Sequence[BlockOrigin]) -> list[str]:
    """A note for candidates that hold the same block: which of them it came from cannot be told."""
    groups: dict[tuple[str, ...], int] = {}
    for origin in origins:
        if same := tuple(origin.facts.get("same", ())):
            groups[same] = groups.get(same, 0) + 1
    return [
        f"{' and '.join(same)} hold the same weights in {count} of {len(origins)} blocks: which of them those came "
        "from, or in what proportion, cannot be told."
        for same, count in groups.items()
    ]


def _merged_of(origins: Sequence[BlockOrigin]) -> list[str]:
    """The sources of the mixed blocks, if most blocks with an origin are mixtures."""
    told = [origin for origin in origins if origin.index is not None and origin.parent]
    mixed = [origin for origin in told if origin.kind == "mixture"]
    if 2 * len(mixed) <= len(told):
        return []
    return sorted({share.ref for origin in mixed for share in origin.mixture})


def shares(study: Study, facts: Facts, fit: Fit) -> tuple[Share, ...]:
    """The sources of a block, the heaviest first."""
    found = []
    for k in sorted(fit.support, key=lambda k: -fit.weights[k]):
        candidate = facts.kept[k]
        path = block_at(study, facts.place, candidate).path
        found.append(Share(study.refs[candidate], path, float(fit.weights[k]), float(fit.stderr[k])))
    return tuple(found)


def block_at(study: Study, i: int, candidate: int) -> Block:
    """The candidate's block that stands at the child's place `i`."""
    place = study.places[candidate]
    j = place.best[i]
    assert j is not None
    return place.blocks[j]


def residual(fit: Fit, facts: Facts) -> float:
    """‖child − Σ weight·source‖ / ‖child‖."""
    return math.sqrt(fit.rss / facts.gram[0, 0]) if facts.gram[0, 0] > 0 else 0.0


def _facts(study: Study, i: int) -> Facts:
    readings, block = study.readings, study.blocks[i]
    own = [name for name in block.tensors.values() if name in readings.moments and readings.child_usable(name)]
    matrices = [name for name in own if len(study.child[name].shape) > 1] or own
    having = {
        k: {name for name in own if k in readings.members[name] and readings.usable(name, k)}
        for k in range(len(study.places)) if k not in readings.failed
    }  # fmt: skip
    most = max((len(having[k] & {*matrices}) for k in having), default=0)
    kept = tuple(k for k in having if most and len(having[k] & {*matrices}) == most)
    common = tuple(name for name in matrices if all(name in having[k] for k in kept)) if kept else ()
    kept = kept if common else ()
    size = len(kept) + 1
    grams, counts, centred = [], [], np.zeros((size, size))
    for name in common:
        moments = readings.moments[name]
        rows = [0, *(readings.row(name, k) for k in kept)]
        full, s1 = study.child[name].count / moments.count, moments.s1[rows]
        grams.append(moments.gram[np.ix_(rows, rows)] * full)
        centred += (moments.gram[np.ix_(rows, rows)] - np.outer(s1, s1) / moments.count) * full
        counts.append(moments.count)
    equal = frozenset(
        k for k in kept
        if len(having[k]) == len(own)
        and all(readings.moments[name].gram[(readings.row(name, k),) * 2] == 0 for name in own)
    )  # fmt: skip
    return Facts(i, common, kept, tuple(grams), tuple(counts), centred, equal, _tests(study, i, kept, having))


def _tests(
    study: Study, i: int, kept: Sequence[int], having: Mapping[int, set[str]]
) -> dict[int, IndependenceTest]:  # fmt: skip
    """The permutation test of the block chosen of every candidate; those far from it in the sample are left out, but
    for the nearest."""
    z = {k: _z(study.places[k], i) for k in kept}
    nearest = max((k for k in kept if math.isfinite(z[k])), key=lambda k: z[k], default=None)
    found = {}
    for k in kept:
        if k == nearest or z[k] > 3:
            test = independence(study.readings, study.architecture, k, sorted(having[k]), study.seed)
            if test:
                found[k] = test
    return found


def _z(place: Places, i: int) -> float:
    j = place.best[i]
    return float(place.z[i, j]) if j is not None else math.nan


def _adjusted(study: Study, facts: Sequence[Facts]) -> dict[tuple[int, int], float]:
    """log10 p by Holm over all pairs of blocks; of those not tested in full, p counts as 1."""
    keys = [(each.place, k) for each in facts for k in each.tests]
    tested = [each.tests[k].log10_p for each in facts for k in each.tests]
    untold = max(0, study.pairs - len(tested))
    return dict(zip(keys, holm([*tested, *[0.0] * untold]), strict=False))


def _origin(
    study: Study, facts: Facts, adjusted: Mapping[tuple[int, int], float], known: Sequence[int] = ()
) -> BlockOrigin:
    """One block's origin; `known`: candidates that the blocks are merged of."""
    block = study.blocks[facts.place]
    index = None if block.rest else facts.place - sum(b.path == "stem" for b in study.blocks)
    blank = BlockOrigin(block.path, index, "undecided")
    if not facts.kept:
        return replace(blank, kind="none" if _missing(study, facts) else "undecided", unknown=1.0)
    level = math.log10(study.alpha)
    log10_p = {k: adjusted[facts.place, k] for k in facts.tests}
    best = min(log10_p, key=lambda k: (log10_p[k], k), default=None)
    told: dict[str, Any] = {} if best is None else {"log10_p": log10_p[best], "p_value": 10.0 ** log10_p[best]}
    if facts.equal:
        related = sorted(facts.equal)
    elif best is not None:
        related = [k for k in log10_p if log10_p[k] <= level]
    else:
        related = [k for k in facts.kept if facts.score(k) >= LIKE]
    if not related:
        return replace(blank, kind=_unrelated(facts, best), unknown=1.0, **told)
    gram = facts.gram
    first = min(related, key=lambda k: (gram[(facts.kept.index(k) + 1,) * 2], k))
    fit, same = _fit(study, facts, facts.kept.index(first), [facts.kept.index(k) for k in known if k in facts.kept])
    sources = [facts.kept[k] for k in fit.support]
    kind: BlockKind = "equal" if facts.equal else "mixture" if len(fit.support) > 1 else "tuned"
    mixture = shares(study, facts, fit)
    parent = mixture[0]
    top = study.refs.index(parent.ref)
    if top in log10_p:
        told = {"log10_p": log10_p[top], "p_value": 10.0 ** log10_p[top]}
    told["facts"] = {"score": facts.score(top), "moved": block_at(study, facts.place, top).short != block.short}
    if same:
        told["facts"]["same"] = [study.refs[k] for k in same]
    certain = 1.0 - told.get("p_value", 0.0)
    probability = certain if len(sources) > 1 else certain * _probability(facts, first, related, len(same))
    return replace(
        blank, kind=kind, parent=parent.ref, parent_block=parent.block, probability=probability, mixture=mixture,
        unknown=fit.unknown, residual=residual(fit, facts), **told,
    )  # fmt: skip


def _missing(study: Study, facts: Facts) -> bool:
    """Whether no candidate has a block of this kind, though the child's own could be read."""
    return all(place.best[facts.place] is None for place in study.places)


def _unrelated(facts: Facts, best: int | None) -> BlockKind:
    if best is not None:
        return "undecided" if facts.tests[best].at_floor else "none"
    return "none" if max(facts.score(k) for k in facts.kept) < UNLIKE else "undecided"


def _fit(study: Study, facts: Facts, first: int, known: Sequence[int]) -> tuple[Fit, list[int]]:
    """The sources of a block from the nearest on; and the candidates whose block is the same as that one's."""
    gram = facts.gram
    distance = _between(gram)
    same = [k for k in range(len(facts.kept)) if k != first and distance[first, k] == 0]
    twins = {k for k in range(len(facts.kept)) for other in range(k) if distance[k, other] == 0 and k != first}
    open_to = [k for k in range(len(facts.kept)) if k not in twins and k not in same]
    inner = np.ix_([0, *(k + 1 for k in open_to)], [0, *(k + 1 for k in open_to)])
    related = np.abs(np.nan_to_num(cosines(facts.centred[inner])[1:, 1:])) > KIN
    level = math.log10(MIXED / (len(study.blocks) * len(study.places)))

    def hidden(fit: Fit, k: int) -> bool:
        return _hides(study, facts, {open_to[j]: float(fit.weights[j]) for j in fit.support}, open_to[k], level)

    if known:
        weights = simplex(gram, sorted({first, *known})).weights
        chosen = [k for k in sorted({first, *known}) if weights[k] >= LEAST] or [first]
    else:
        chosen = [open_to[k] for k in select(gram[inner], open_to.index(first), related, hidden).support] or [first]
    found = with_stderr(functools.partial(simplex, among=chosen), facts.grams, facts.counts)
    if found.unknown and found.unknown < max(SMALL, 3 * float(np.linalg.norm(found.stderr))):
        found = with_stderr(functools.partial(simplex, among=chosen, unknown=False), facts.grams, facts.counts)
    return found, [facts.kept[k] for k in (first, *same)] if same else []


def _hides(study: Study, facts: Facts, weights: Mapping[int, float], k: int, level: float) -> bool:
    """Whether what the weighted sources leave of the child is related to source k, by the permutation test."""
    units, place = study.readings.units, facts.place

    def remainder(name: str) -> Any:
        rest = units.matrix(0, name).clone()
        for source, weight in weights.items():
            rest -= weight * units.matrix(facts.kept[source] + 1, name)
        return rest

    names = [name for name in study.blocks[place].tensors.values() if name in facts.names]
    test = independence(study.readings, study.architecture, facts.kept[k], names, study.seed + 2, remainder)
    return test is not None and test.log10_p <= level


def _between(gram: np.ndarray) -> np.ndarray:
    """Squared distances between the candidates."""
    inner = gram[1:, 1:]
    square = np.diag(inner)
    distance = square[:, None] + square[None, :] - 2 * inner
    return np.where(distance <= 1e-12 * (square[:, None] + square[None, :]), 0.0, distance)


def _probability(facts: Facts, first: int, related: Sequence[int], same: int) -> float:
    """P ∝ d^(−2·SHARP) over the related candidates, d the distance of the block; copies share what is theirs."""
    if facts.equal:
        return 1.0 / len(facts.equal)
    square = np.array([facts.gram[(facts.kept.index(k) + 1,) * 2] for k in related])
    if not square.all():
        return 1.0 / same if same else 1.0
    return float(1.0 / ((square / square[related.index(first)]) ** -SHARP).sum())


def _settled(study: Study, origin: BlockOrigin, often: Mapping[str, int]) -> BlockOrigin:
    """Of candidates that hold the same block, the one that most other blocks came from."""
    same = origin.facts.get("same")
    if not same or len(origin.mixture) != 1:
        return origin
    ref = max(same, key=lambda r: (often.get(r, 0), -study.refs.index(r)))
    i = next(i for i, block in enumerate(study.blocks) if block.path == origin.block)
    block = block_at(study, i, study.refs.index(ref))
    return replace(
        origin, parent=ref, parent_block=block.path,
        mixture=(replace(origin.mixture[0], ref=ref, block=block.path),),
        facts={**origin.facts, "moved": block.short != study.blocks[i].short},
    )  # fmt: skip
