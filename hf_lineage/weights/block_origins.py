"""Where each block of a child came from, and in what proportion: one origin, several, or none of the candidates."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answers.layers import BlockKind, BlockOrigin, Share
from ..architecture.describe import Architecture
from ..checkpoints.checkpoint import Checkpoint
from .block_matching import MIN_BLOCK_SHARE, Block, BlockMatches
from .evidence import candidate_test
from .mixture import NOTHING, Fit, cosines, select_sources, simplex, task_arithmetic, with_stderr
from .permutation_test import PermutationTest, holm
from .reader import Readings

MIXED = 0.01  # chance that any block of a child with single origins is called a mixture of unrelated models
KIN = 0.1  # |correlation| from which two candidates' blocks are related
LIKE, UNLIKE = 0.5, 0.2  # correlation of blocks that no test applies to: from the one on related, below the other not
SMALL = 0.02  # an unknown share below this, or three standard errors, is drift
LEAVES = 5.0  # by how much nearer, in squared distance, a block's own nearest relative must be than the whole model's
PART = 0.05  # of the block, squared, from which tensors of another model make it a mixture
SHARP = 5.0  # P ∝ (squared distance)^-SHARP among related candidates: the likeliest exponent, measured on 489 blocks
CERTAIN = 0.97  # at most, where relatives compete: a child of the child may be nearer than its parent


@dataclass(frozen=True, slots=True)
class LayerReadings:
    """What one reading left behind, and the question: `places[k]` of candidate k, called `refs[k]`."""

    readings: Readings
    architecture: Architecture
    child: Checkpoint
    blocks: tuple[Block, ...]
    matches: tuple[BlockMatches, ...]
    refs: tuple[str, ...]
    alpha: float
    seed: int

    @property
    def pairs(self) -> int:
        """Pairs of blocks that were tested: the family of the p-values."""
        return sum(int(np.isfinite(place.z).sum()) for place in self.matches)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """One block: the matrices compared, of the candidates `kept`; Gram matrices in full size, row 0 the child's; `gram`
    is their sum.

    `equal`: candidates without any difference; `tests`: of candidates whose units were read; `centred`: the sum of the
    Gram matrices of each tensor around its mean.
    """

    position: int
    names: tuple[str, ...]
    kept: tuple[int, ...]
    grams: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    gram: np.ndarray
    centred: np.ndarray
    equal: frozenset[int]
    tests: dict[int, PermutationTest]

    @property
    def size(self) -> float:
        """‖child‖²."""
        return float(self.gram[0, 0])

    def square(self, candidate: int) -> float:
        """‖child − candidate‖²."""
        return float(self.gram[(self.kept.index(candidate) + 1,) * 2])

    def score(self, candidate: int) -> float:
        """Correlation with the child."""
        return float(cosines(self.centred)[0, self.kept.index(candidate) + 1])


def block_facts(study: LayerReadings) -> tuple[BlockFacts, ...]:
    """The facts of every block, from the moments and units that were read."""
    return tuple(_facts(study, i) for i in range(len(study.blocks)))


def block_origins(study: LayerReadings, facts: Sequence[BlockFacts]) -> tuple[BlockOrigin, ...]:
    """The origin of every block. Relatives near each other are told apart by the whole model, not block by block."""
    adjusted = _adjusted(study, facts)
    related = [_related(study, each, adjusted) for each in facts]
    whole = {key: _nearest_of_all(facts, related, key) for key in {*map(tuple, related)} if key}
    first = [_first(each, tuple(found), whole) for each, found in zip(facts, related, strict=True)]
    found = [_origin(study, each, adjusted, related[i], first[i]) for i, each in enumerate(facts)]
    known = [study.refs.index(ref) for ref in _merged_of(found)]
    if known:  # no test finds unrelated sources in a stem or a head: those of the blocks are looked for there
        for i, each in enumerate(facts):
            if study.blocks[each.position].rest and found[i].kind in ("tuned", "mixture"):
                found[i] = _origin(study, each, adjusted, related[i], first[i], known)
    often: dict[str, int] = {}
    for origin in found:
        if origin.parent and "same" not in origin.facts:
            often[origin.parent] = often.get(origin.parent, 0) + 1
    return tuple(_settled(study, origin, often) for origin in found)


def related_blocks(centred: np.ndarray) -> np.ndarray:
    """Which candidates' blocks are related to which, (M, M), from the Gram matrix around the tensors' means."""
    return np.abs(np.nan_to_num(cosines(centred)[1:, 1:])) > KIN


def block_scores(study: LayerReadings, facts: Sequence[BlockFacts], candidate: int) -> np.ndarray:
    """The candidate's scores (child blocks × its blocks); of those with one place, as a stem, their correlation."""
    place = study.matches[candidate]
    scores = place.scores.copy()
    for each in facts:
        j = place.best[each.position]
        if j is not None and not math.isfinite(place.z[each.position, j]) and not scores[each.position, j]:
            scores[each.position, j] = each.score(candidate) if candidate in each.kept else np.nan
    return scores


def equal_block_notes(origins: Sequence[BlockOrigin]) -> list[str]:
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


def mixture_shares(study: LayerReadings, facts: BlockFacts, fit: Fit) -> tuple[Share, ...]:
    """The sources of a block, the heaviest first."""
    found = []
    for k in sorted(fit.support, key=lambda k: (-round(float(fit.weights[k]), 6), k)):
        candidate = facts.kept[k]
        path = matched_block(study, facts.position, candidate).path
        found.append(Share(study.refs[candidate], path, float(fit.weights[k]), float(fit.stderr[k])))
    return tuple(found)


def matched_block(study: LayerReadings, i: int, candidate: int) -> Block:
    """The candidate's block that stands at the child's place `i`."""
    place = study.matches[candidate]
    j = place.best[i]
    assert j is not None
    return place.blocks[j]


def relative_residual(fit: Fit, facts: BlockFacts) -> float:
    """‖child − Σ weight·source‖ / ‖child‖."""
    return math.sqrt(fit.rss / facts.size) if facts.size > 0 else 0.0


def _facts(study: LayerReadings, i: int) -> BlockFacts:
    readings, block = study.readings, study.blocks[i]
    own = [name for name in block.tensors.values() if name in readings.moments and readings.child_usable(name)]
    matrices = [name for name in own if len(study.child[name].shape) > 1] or own
    having = {
        k: {name for name in own if k in readings.candidates_with[name] and readings.usable(name, k)}
        for k in range(len(study.matches)) if k not in readings.failed
    }  # fmt: skip
    kept, common = _in_common(study, matrices, having)
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
    gram, tests = sum(grams, np.zeros((size, size))), _tests(study, i, kept, having)
    return BlockFacts(i, common, kept, tuple(grams), tuple(counts), gram, centred, equal, tests)


def _in_common(
    study: LayerReadings, matrices: Sequence[str], having: Mapping[int, set[str]]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(candidates, matrices that all of them have): candidates with at least `MIN_BLOCK_SHARE` of the block, and of
    those that disagree on which, the larger group's."""
    sizes = {name: study.child[name].count for name in matrices}
    least = MIN_BLOCK_SHARE * sum(sizes.values())
    kept = [k for k in having if sum(sizes[name] for name in having[k] & {*matrices}) >= least > 0]
    while kept:
        common = tuple(name for name in matrices if all(name in having[k] for k in kept))
        if common:
            return tuple(kept), common
        kept.remove(min(kept, key=lambda k: sum(sizes[name] for name in having[k] & {*matrices})))
    return (), ()


def _tests(
    study: LayerReadings, i: int, kept: Sequence[int], having: Mapping[int, set[str]]
) -> dict[int, PermutationTest]:  # fmt: skip
    """The permutation test of the block chosen of every candidate; those far from it in the sample are left out, but
    for the nearest."""
    z = {k: _z(study.matches[k], i) for k in kept}
    nearest = max((k for k in kept if math.isfinite(z[k])), key=lambda k: z[k], default=None)
    found = {}
    for k in kept:
        if k == nearest or z[k] > 3:
            test = candidate_test(study.readings, study.architecture, k, sorted(having[k]), study.seed)
            if test:
                found[k] = test
    return found


def _z(place: BlockMatches, i: int) -> float:
    j = place.best[i]
    return float(place.z[i, j]) if j is not None else math.nan


def _adjusted(study: LayerReadings, facts: Sequence[BlockFacts]) -> dict[tuple[int, int], float]:
    """log10 p by Holm over all pairs of blocks; of those not tested in full, p counts as 1."""
    keys = [(each.position, k) for each in facts for k in each.tests]
    tested = [each.tests[k].log10_p for each in facts for k in each.tests]
    untold = max(0, study.pairs - len(tested))
    return dict(zip(keys, holm([*tested, *[0.0] * untold]), strict=False))


def _related(study: LayerReadings, facts: BlockFacts, adjusted: Mapping[tuple[int, int], float]) -> list[int]:
    """Candidates whose block shares an origin with the child's: equal, by the test, or where none applies alike."""
    if facts.equal:
        return sorted(facts.equal)
    if facts.tests:
        return [k for k in facts.tests if adjusted[facts.position, k] <= math.log10(study.alpha)]
    return [k for k in facts.kept if facts.score(k) >= LIKE]


def _nearest_of_all(facts: Sequence[BlockFacts], related: Sequence[Sequence[int]], among: tuple[int, ...]) -> int:
    """The nearest of some candidates, Σ log d² over all blocks to which all of them are related."""
    alike = [each for each, found in zip(facts, related, strict=True) if {*among} <= {*found}]
    pooled = {k: sum(math.log(max(each.square(k), NOTHING * each.size)) for each in alike) for k in among}
    return min(pooled, key=lambda k: (pooled[k], k))


def _first(facts: BlockFacts, related: tuple[int, ...], whole: Mapping[tuple[int, ...], int]) -> int | None:
    """The nearest of the related candidates: of the whole model, unless the block has one that is clearly nearer.

    Siblings are nearly as near as a parent, and each block alone would take another one of them.
    """
    if not related:
        return None
    own = {k: facts.square(k) for k in related}
    nearest = min(own, key=lambda k: (own[k], k))
    return whole[related] if own[whole[related]] <= LEAVES * own[nearest] else nearest


def _origin(
    study: LayerReadings, facts: BlockFacts, adjusted: Mapping[tuple[int, int], float], related: Sequence[int],
    first: int | None, known: Sequence[int] = (),
) -> BlockOrigin:  # fmt: skip
    """One block's origin; `first`: its nearest source; `known`: candidates that the blocks are merged of."""
    block = study.blocks[facts.position]
    index = None if block.rest else facts.position - sum(b.path == "stem" for b in study.blocks)
    blank = BlockOrigin(block.path, index, "undecided", unknown=1.0)
    log10_p = {k: adjusted[facts.position, k] for k in facts.tests}
    if first is None:
        told = _told(min(log10_p.values(), default=None))
        return replace(blank, kind=_unrelated(study, facts), **told)
    parts = _parts(facts, facts.kept.index(first))
    place = {k: i for i, k in enumerate(facts.kept)}
    fit, same = _fit(study, facts, place[first], [place[k] for k in known if k in place], parts)
    mixture = mixture_shares(study, facts, fit)
    kind: BlockKind = "equal" if facts.equal else "mixture" if len(mixture) > 1 else "tuned"
    top = study.refs.index(mixture[0].ref)
    moved = matched_block(study, facts.position, top).short != block.short
    about: dict[str, Any] = {"score": facts.score(top), "moved": moved, "by_relatives": _by_relatives(facts, fit)}
    if parts and len(mixture) > 1:
        about["parts"] = {study.refs[facts.kept[k]]: names for k, names in parts.items()}
    if same:
        about["same"] = [study.refs[k] for k in same]
    # a mixture has no one parent, and likeness alone no chance of being wrong
    certain = None if kind == "mixture" else _probability(facts, first, related, len(same))
    if not facts.equal and top not in log10_p:
        certain = None
    return replace(
        blank, kind=kind, parent=mixture[0].ref, parent_block=mixture[0].block, probability=certain, mixture=mixture,
        unknown=fit.unknown, residual=relative_residual(fit, facts), facts=about, **_told(log10_p.get(top)),
    )  # fmt: skip


def _told(log10_p: float | None) -> dict[str, Any]:
    return {} if log10_p is None else {"log10_p": log10_p, "p_value": 10.0**log10_p}


def _unrelated(study: LayerReadings, facts: BlockFacts) -> BlockKind:
    """From none of them, or not to be told: too few draws could be made, or a block could not be looked at."""
    if any(place.best[facts.position] is not None and k not in facts.kept for k, place in enumerate(study.matches)):
        return "undecided"
    if facts.tests:
        nearest = min(facts.tests.values(), key=lambda test: test.log10_p)
        return "undecided" if nearest.at_floor else "none"
    if facts.kept:
        return "none" if max(facts.score(k) for k in facts.kept) < UNLIKE else "undecided"
    names = study.blocks[facts.position].tensors.values()
    return (
        "undecided" if any(study.readings.candidates_with.get(name) for name in names) else "none"
    )  # of no such shape


def _fit(
    study: LayerReadings, facts: BlockFacts, first: int, known: Sequence[int], parts: Mapping[int, list[str]]
) -> tuple[Fit, list[int]]:
    """The sources of a block from the nearest on; and the candidates whose block is the same as that one's."""
    gram = facts.gram
    distance = _between(gram)
    same = [k for k in range(len(facts.kept)) if k != first and distance[first, k] == 0]
    twins = {k for k in range(len(facts.kept)) for other in range(k) if distance[k, other] == 0 and k != first}
    open_to = [k for k in range(len(facts.kept)) if k not in twins and k not in same]
    inner = np.ix_([0, *(k + 1 for k in open_to)], [0, *(k + 1 for k in open_to)])
    related = related_blocks(facts.centred[inner])
    level = math.log10(MIXED / (len(study.blocks) * len(study.matches)))

    def hidden(fit: Fit, k: int) -> bool:
        return _hides(study, facts, {open_to[j]: float(fit.weights[j]) for j in fit.support}, open_to[k], level)

    if known:
        told = with_stderr(functools.partial(simplex, among=sorted({first, *known})), facts.grams, facts.counts)
        chosen = [k for k in told.support if told.weights[k] > 2 * told.stderr[k]] or [first]
    else:
        chosen = [open_to[k] for k in select_sources(gram[inner], open_to.index(first), related, hidden).support] or [
            first
        ]
        chosen = sorted({*chosen, *(parts.keys() & {*open_to})})
    kin = [open_to[k] for k in np.flatnonzero(related[[open_to.index(k) for k in chosen if k in open_to]].any(0))]
    beside = [k for k in kin if k not in chosen]
    found = with_stderr(functools.partial(simplex, among=chosen), facts.grams, facts.counts, beside)
    if not found.support or 0 < found.unknown < max(SMALL, 3 * float(np.linalg.norm(found.stderr))):
        whole = functools.partial(simplex, among=chosen, unknown=False)
        found = with_stderr(whole, facts.grams, facts.counts, beside)
    copies = ([k, *np.flatnonzero(distance[k] == 0)] for k in chosen)
    groups = [sorted({*map(int, group)}) for group in copies if len({*group}) > 1]
    return found, [facts.kept[k] for k in groups[0]] if groups else []


def _by_relatives(facts: BlockFacts, fit: Fit) -> float:
    """Share of what the sources leave that their relatives would explain, with weights of any sign, in [0, 1].

    Shared drift makes it a tenth or two; a merge that was tuned afterwards, or a chain of fine-tunes, more.
    """
    related = related_blocks(facts.centred)
    everyone = [k for k in range(len(facts.kept)) if k in fit.support or related[k, list(fit.support)].any()]
    if fit.rss <= NOTHING * facts.size or len(everyone) == len(fit.support):
        return 0.0
    return float(np.clip(1.0 - task_arithmetic(facts.gram, everyone[0], everyone).rss / fit.rss, 0.0, 1.0))


def _parts(facts: BlockFacts, first: int) -> dict[int, list[str]]:
    """Tensors of the block that are an unrelated source's: nearer to it, and alike; by its place in `kept`.

    A relative may be nearer in some tensors that hardly moved, without having had a part.
    """
    found: dict[int, list[str]] = {}
    size = 0.0
    for name, gram in zip(facts.names, facts.grams, strict=True):
        square = np.diag(gram)[1:]
        best = int(np.argmin(square))
        cosine = cosines(gram)
        stranger = abs(cosine[best + 1, first + 1]) <= KIN
        if stranger and square[best] * LEAVES < square[first] and cosine[0, best + 1] >= LIKE:
            found.setdefault(best, []).append(name)
            size += float(gram[0, 0])
    return found if size > PART * facts.size else {}


def _hides(study: LayerReadings, facts: BlockFacts, weights: Mapping[int, float], k: int, level: float) -> bool:
    """Whether what the weighted sources leave of the child is related to source k, by the permutation test."""
    units, place = study.readings.units, facts.position

    def remainder(name: str) -> Any:
        rest = units.matrix(0, name).clone()
        for source, weight in weights.items():
            rest -= weight * units.matrix(facts.kept[source] + 1, name)
        return rest

    names = [name for name in study.blocks[place].tensors.values() if name in facts.names]
    test = candidate_test(study.readings, study.architecture, facts.kept[k], names, study.seed + 2, remainder)
    return test is not None and test.log10_p <= level


def _between(gram: np.ndarray) -> np.ndarray:
    """Squared distances between the candidates."""
    inner = gram[1:, 1:]
    square = np.diag(inner)
    distance = square[:, None] + square[None, :] - 2 * inner
    return np.where(distance <= 1e-12 * (square[:, None] + square[None, :]), 0.0, distance)


def _probability(facts: BlockFacts, first: int, related: Sequence[int], same: int) -> float:
    """P ∝ d^(−2·SHARP) over the related candidates, d the distance of the block, at most `CERTAIN` among several."""
    if facts.equal:
        return 1.0 / len(facts.equal)
    if len(related) == 1:
        return 1.0 - facts.tests[first].p if first in facts.tests else 1.0
    square = np.array([facts.square(k) for k in related])
    if not square.all():
        return 1.0 / max(1, same)
    return min(CERTAIN, float(1.0 / ((square / facts.square(first)) ** -SHARP).sum()))


def _settled(study: LayerReadings, origin: BlockOrigin, often: Mapping[str, int]) -> BlockOrigin:
    """Of candidates that hold the same block, the one that most other blocks came from."""
    same = origin.facts.get("same")
    if not same or len(origin.mixture) != 1:
        return origin
    ref = max(same, key=lambda r: (often.get(r, 0), -study.refs.index(r)))
    i = next(i for i, block in enumerate(study.blocks) if block.path == origin.block)
    block = matched_block(study, i, study.refs.index(ref))
    return replace(
        origin, parent=ref, parent_block=block.path,
        mixture=(replace(origin.mixture[0], ref=ref, block=block.path),),
        facts={**origin.facts, "moved": block.short != study.blocks[i].short},
    )  # fmt: skip
