"""Where each block of a child came from, and in what proportion: one origin, several, or none of the candidates.

The p-values of `permutation_test.py`, adjusted by Holm over all pairs of blocks, decide what is related; the least
squares of `mixture.py` how much. See docs/methods.md, *Block origins*.
"""

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
from ..errors import Note
from .block_matching import MIN_BLOCK_SHARE, Block, BlockMatches
from .evidence import candidate_test
from .mixture import ROUNDING, Fit, cosines, select_sources, simplex, task_arithmetic, with_stderr
from .permutation_test import PermutationTest, holm
from .reader import Readings

MIXTURE_ERROR = (
    0.01  # probability that any block of a child with single origins is called a mixture of unrelated models
)
RELATED_COSINE = 0.1  # absolute value from which the blocks of two candidates are related
# Correlation with the child of blocks that no test applies to: related from the one on, unrelated below the other
RELATED_CORRELATION, UNRELATED_CORRELATION = 0.5, 0.2
MIN_UNKNOWN = 0.02  # a smaller unknown share, or one below three standard errors, is drift
NEARER_FACTOR = 5.0  # in squared distance, by which a block's nearest relative must be nearer than the whole model's
MIN_PART = 0.05  # of the block's square, from which tensors of another model make it a mixture
DISTANCE_EXPONENT = 5.0  # P ∝ (squared distance)^−5 among related candidates: the likeliest, measured on 489 blocks
MAX_PROBABILITY = 0.97  # where relatives compete: a child of the child may be nearer than its parent


@dataclass(frozen=True, slots=True)
class LayerReadings:
    """What was read of the child and its candidates for `trace_layers`, with what is asked.

    blocks: of the child. matches[k], refs[k]: how candidate k's blocks match them, and its name. alpha: family-wise
    error of the p-values. seed: of the permutations. in_order: candidates whose hidden units were put into the child's
    order by looking at them (`hidden_permutation.py`): no test of a block's units is left, its correlation decides.
    """

    readings: Readings
    architecture: Architecture
    child: Checkpoint
    blocks: tuple[Block, ...]
    matches: tuple[BlockMatches, ...]
    refs: tuple[str, ...]
    alpha: float
    seed: int
    in_order: frozenset[int] = frozenset()

    @property
    def pairs(self) -> int:
        """Number of pairs of blocks that were tested: the family over which p-values are adjusted."""
        return sum(int(np.isfinite(matches.z).sum()) for matches in self.matches)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What the readings say of one block of the child, number `position` of `LayerReadings.blocks`.

    names: the matrices compared, of the candidates `kept`. grams: of each matrix, in full size, row 0 the child, then
    the differences of the candidates from it, as in `Moments`; gram: their sum; centred: the same sum around each
    tensor's mean. counts: entries read of each matrix. equal: candidates without any difference. tests: the permutation
    test of each candidate whose units were read.
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
        """‖child‖² over the matrices compared."""
        return float(self.gram[0, 0])

    def square(self, candidate: int) -> float:
        """‖child − candidate‖²."""
        return float(self.gram[(self.kept.index(candidate) + 1,) * 2])

    def score(self, candidate: int) -> float:
        """The candidate's correlation with the child, in [−1, 1]."""
        return float(cosines(self.centred)[0, self.kept.index(candidate) + 1])


def block_facts(layers: LayerReadings) -> tuple[BlockFacts, ...]:
    """The facts of every block of the child, from the moments and units that were read."""
    return tuple(_facts(layers, i) for i in range(len(layers.blocks)))


def without_related_block(layers: LayerReadings, facts: Sequence[BlockFacts]) -> list[int]:
    """Candidates that were tested in some block, and found related in none of those."""
    adjusted, level = _adjusted(layers, facts), math.log10(layers.alpha)
    return [
        k for k in range(len(layers.matches))
        if (found := [p for (_, candidate), p in adjusted.items() if candidate == k]) and min(found) > level
    ]  # fmt: skip


def block_origins(layers: LayerReadings, facts: Sequence[BlockFacts]) -> tuple[BlockOrigin, ...]:
    """The origin of every block.

    Which of several close relatives a block came from is decided over all blocks, not block by block. Where most blocks
    are mixtures, the sources of those are looked for in stem and head, too: no test finds unrelated sources there.
    """
    adjusted = _adjusted(layers, facts)
    related = [_related(layers, each, adjusted) for each in facts]
    overall = {key: _nearest_of_all(facts, related, key) for key in {*map(tuple, related)} if key}
    first = [_nearest_source(each, tuple(found), overall) for each, found in zip(facts, related, strict=True)]
    found = [_origin(layers, each, adjusted, related[i], first[i]) for i, each in enumerate(facts)]
    known = [layers.refs.index(ref) for ref in _merge_sources(found)]
    if known:
        for i, each in enumerate(facts):
            if layers.blocks[each.position].rest and found[i].kind in ("tuned", "mixture"):
                found[i] = _origin(layers, each, adjusted, related[i], first[i], known)
    block_counts: dict[str, int] = {}
    for origin in found:
        if origin.parent and "same" not in origin.facts:
            block_counts[origin.parent] = block_counts.get(origin.parent, 0) + 1
    return tuple(_settled(layers, origin, block_counts) for origin in found)


def related_blocks(centred: np.ndarray) -> np.ndarray:
    """Which candidates' blocks are related to which, (M, M) bool, from the Gram matrix around the tensors' means."""
    return np.abs(np.nan_to_num(cosines(centred)[1:, 1:])) > RELATED_COSINE


def block_scores(layers: LayerReadings, facts: Sequence[BlockFacts], candidate: int) -> np.ndarray:
    """The candidate's scores, (child's blocks, its blocks); of blocks without a test, such as a stem, the
    correlation."""
    matches = layers.matches[candidate]
    scores = matches.scores.copy()
    for each in facts:
        j = matches.best[each.position]
        if j is not None and not math.isfinite(matches.z[each.position, j]) and not scores[each.position, j]:
            scores[each.position, j] = each.score(candidate) if candidate in each.kept else np.nan
    return scores


def equal_block_notes(origins: Sequence[BlockOrigin]) -> list[Note]:
    """A note for each group of candidates that hold equal blocks, between which nothing decides."""
    groups: dict[tuple[str, ...], int] = {}
    for origin in origins:
        if same := tuple(origin.facts.get("same", ())):
            groups[same] = groups.get(same, 0) + 1
    return [
        Note(
            "equal_blocks",
            f"{' and '.join(same)} hold the same weights in {count} of {len(origins)} blocks: which of them those came "
            "from, or in what proportion, cannot be told.",
        )
        for same, count in groups.items()
    ]


def _merge_sources(origins: Sequence[BlockOrigin]) -> list[str]:
    """The sources of the mixed blocks if most blocks with an origin are mixtures, else nothing."""
    traced = [origin for origin in origins if origin.index is not None and origin.parent]
    mixed = [origin for origin in traced if origin.kind == "mixture"]
    if 2 * len(mixed) <= len(traced):
        return []
    return sorted({share.ref for origin in mixed for share in origin.mixture})


def mixture_shares(layers: LayerReadings, facts: BlockFacts, fit: Fit) -> tuple[Share, ...]:
    """The sources of a block and their weights, the heaviest first."""
    found = []
    for k in sorted(fit.support, key=lambda k: (-round(float(fit.weights[k]), 6), k)):
        candidate = facts.kept[k]
        path = matched_block(layers, facts.position, candidate).path
        found.append(Share(layers.refs[candidate], path, float(fit.weights[k]), float(fit.stderr[k])))
    return tuple(found)


def matched_block(layers: LayerReadings, i: int, candidate: int) -> Block:
    """The candidate's block that matches the child's block i; there must be one."""
    matches = layers.matches[candidate]
    j = matches.best[i]
    assert j is not None
    return matches.blocks[j]


def relative_residual(fit: Fit, facts: BlockFacts) -> float:
    """‖child − Σ weight·source‖ / ‖child‖, ≥ 0."""
    return math.sqrt(fit.rss / facts.size) if facts.size > 0 else 0.0


def _facts(layers: LayerReadings, i: int) -> BlockFacts:
    readings, block = layers.readings, layers.blocks[i]
    usable = [name for name in block.tensors.values() if name in readings.moments and readings.child_usable(name)]
    matrices = [name for name in usable if len(layers.child[name].shape) > 1] or usable
    having = {
        k: {name for name in usable if k in readings.candidates_with[name] and readings.usable(name, k)}
        for k in range(len(layers.matches)) if k not in readings.failed
    }  # fmt: skip
    kept, common = _in_common(layers, matrices, having)
    size = len(kept) + 1
    grams, counts, centred = [], [], np.zeros((size, size))
    for name in common:
        moments = readings.moments[name]
        rows = [0, *(readings.row(name, k) for k in kept)]
        full, s1 = layers.child[name].count / moments.count, moments.s1[rows]
        grams.append(moments.gram[np.ix_(rows, rows)] * full)
        centred += (moments.gram[np.ix_(rows, rows)] - np.outer(s1, s1) / moments.count) * full
        counts.append(moments.count)
    equal = frozenset(
        k for k in kept
        if len(having[k]) == len(usable)
        and all(readings.moments[name].gram[(readings.row(name, k),) * 2] == 0 for name in usable)
    )  # fmt: skip
    gram, tests = sum(grams, np.zeros((size, size))), _tests(layers, i, kept, having)
    return BlockFacts(i, common, kept, tuple(grams), tuple(counts), gram, centred, equal, tests)


def _in_common(
    layers: LayerReadings, matrices: Sequence[str], having: Mapping[int, set[str]]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(candidates, matrices that all of them have), of candidates with at least `MIN_BLOCK_SHARE` of the block; the one
    with the least of it is left out while they have no matrix in common."""
    sizes = {name: layers.child[name].count for name in matrices}
    least = MIN_BLOCK_SHARE * sum(sizes.values())
    kept = [k for k in having if sum(sizes[name] for name in having[k] & {*matrices}) >= least > 0]
    while kept:
        common = tuple(name for name in matrices if all(name in having[k] for k in kept))
        if common:
            return tuple(kept), common
        kept.remove(min(kept, key=lambda k: sum(sizes[name] for name in having[k] & {*matrices})))
    return (), ()


def _tests(
    layers: LayerReadings, i: int, kept: Sequence[int], having: Mapping[int, set[str]]
) -> dict[int, PermutationTest]:  # fmt: skip
    """The permutation test of every candidate's matching block. Not of those with a z of at most 3 in the sample,
    except the one with the highest."""
    z = {k: _block_z(layers.matches[k], i) for k in kept}
    nearest = max((k for k in kept if math.isfinite(z[k])), key=lambda k: z[k], default=None)
    found = {}
    for k in kept:
        if k not in layers.in_order and (k == nearest or z[k] > 3):
            test = candidate_test(layers.readings, layers.architecture, k, sorted(having[k]), layers.seed)
            if test:
                found[k] = test
    return found


def _block_z(matches: BlockMatches, i: int) -> float:
    j = matches.best[i]
    return float(matches.z[i, j]) if j is not None else math.nan


def _adjusted(layers: LayerReadings, facts: Sequence[BlockFacts]) -> dict[tuple[int, int], float]:
    """log10 p, adjusted by Holm over all pairs of blocks; p counts as 1 for pairs that were screened only."""
    keys = [(each.position, k) for each in facts for k in each.tests]
    tested = [each.tests[k].log10_p for each in facts for k in each.tests]
    screened_only = max(0, layers.pairs - len(tested))
    return dict(zip(keys, holm([*tested, *[0.0] * screened_only]), strict=False))


def _related(layers: LayerReadings, facts: BlockFacts, adjusted: Mapping[tuple[int, int], float]) -> list[int]:
    """Candidates whose block shares an origin with the child's: equal, by the test, or by correlation without a
    test."""
    if facts.equal:
        return sorted(facts.equal)
    untested = layers.in_order if facts.tests else {*facts.kept}
    related = [k for k in facts.tests if adjusted[facts.position, k] <= math.log10(layers.alpha)]
    return [*related, *(k for k in facts.kept if k in untested and facts.score(k) >= RELATED_CORRELATION)]


def _nearest_of_all(facts: Sequence[BlockFacts], related: Sequence[Sequence[int]], among: tuple[int, ...]) -> int:
    """The candidate with the smallest Σ log d², over all blocks to which all of `among` are related."""
    shared = [each for each, found in zip(facts, related, strict=True) if {*among} <= {*found}]
    pooled = {k: sum(math.log(max(each.square(k), ROUNDING * each.size)) for each in shared) for k in among}
    return min(pooled, key=lambda k: (pooled[k], k))


def _nearest_source(facts: BlockFacts, related: tuple[int, ...], overall: Mapping[tuple[int, ...], int]) -> int | None:
    """The nearest related candidate over the whole model, unless another one is clearly nearer in this block.

    Siblings are nearly as near as a parent: each block alone would choose another one of them.
    """
    if not related:
        return None
    square = {k: facts.square(k) for k in related}
    nearest = min(square, key=lambda k: (square[k], k))
    return overall[related] if square[overall[related]] <= NEARER_FACTOR * square[nearest] else nearest


def _origin(
    layers: LayerReadings, facts: BlockFacts, adjusted: Mapping[tuple[int, int], float], related: Sequence[int],
    first: int | None, known: Sequence[int] = (),
) -> BlockOrigin:  # fmt: skip
    """The origin of one block. first: its nearest source; known: candidates that the other blocks are merged from."""
    block = layers.blocks[facts.position]
    index = None if block.rest else facts.position - sum(b.path == "stem" for b in layers.blocks)
    blank = BlockOrigin(block.path, index, "undecided", unknown=1.0)
    log10_p = {k: adjusted[facts.position, k] for k in facts.tests}
    if first is None:
        p_values = _p_values(min(log10_p.values(), default=None))
        return replace(blank, kind=_unrelated(layers, facts), **p_values)
    parts = _foreign_tensors(facts, facts.kept.index(first))
    index_of = {k: i for i, k in enumerate(facts.kept)}
    fit, same = _fit(layers, facts, index_of[first], [index_of[k] for k in known if k in index_of], parts)
    mixture = mixture_shares(layers, facts, fit)
    kind: BlockKind = "equal" if facts.equal else "mixture" if len(mixture) > 1 else "tuned"
    top = layers.refs.index(mixture[0].ref)
    moved = matched_block(layers, facts.position, top).short != block.short
    about: dict[str, Any] = {"score": facts.score(top), "moved": moved, "by_relatives": _by_relatives(facts, fit)}
    if parts and len(mixture) > 1:
        about["parts"] = {layers.refs[facts.kept[k]]: names for k, names in parts.items()}
    if same:
        about["same"] = [layers.refs[k] for k in same]
    # a mixture has no single parent, and a correlation alone has no error probability
    probability = None if kind == "mixture" else _probability(facts, first, related, len(same))
    if not facts.equal and top not in log10_p:
        probability = None
    return replace(
        blank, kind=kind, parent=mixture[0].ref, parent_block=mixture[0].block, probability=probability,
        mixture=mixture, unknown=fit.unknown, residual=relative_residual(fit, facts), facts=about,
        **_p_values(log10_p.get(top)),
    )  # fmt: skip


def _p_values(log10_p: float | None) -> dict[str, Any]:
    return {} if log10_p is None else {"log10_p": log10_p, "p_value": 10.0**log10_p}


def _unrelated(layers: LayerReadings, facts: BlockFacts) -> BlockKind:
    """`none` of the candidates, or `undecided`: too few draws could be made, or a block could not be compared."""
    if any(
        matches.best[facts.position] is not None and k not in facts.kept for k, matches in enumerate(layers.matches)
    ):
        return "undecided"
    if facts.tests:
        nearest = min(facts.tests.values(), key=lambda test: test.log10_p)
        return "undecided" if nearest.at_floor else "none"
    if facts.kept:
        return "none" if max(facts.score(k) for k in facts.kept) < UNRELATED_CORRELATION else "undecided"
    names = layers.blocks[facts.position].tensors.values()
    shaped = any(layers.readings.candidates_with.get(name) for name in names)  # whether any has such tensors
    return "undecided" if shaped else "none"


def _fit(
    layers: LayerReadings, facts: BlockFacts, first: int, known: Sequence[int], parts: Mapping[int, list[str]]
) -> tuple[Fit, list[int]]:
    """The sources of a block, from the nearest on; and the candidates whose block equals one of those."""
    distance = squared_distances(facts.gram)
    equals = [k for k in range(len(facts.kept)) if k != first and distance[first, k] == 0]
    twins = {k for k in range(len(facts.kept)) for other in range(k) if distance[k, other] == 0 and k != first}
    distinct = [k for k in range(len(facts.kept)) if k not in twins and k not in equals]
    inner = np.ix_([0, *(k + 1 for k in distinct)], [0, *(k + 1 for k in distinct)])
    related = related_blocks(facts.centred[inner])
    if known:
        start = with_stderr(functools.partial(simplex, among=sorted({first, *known})), facts.grams, facts.counts)
        chosen = [k for k in start.support if start.weights[k] > 2 * start.stderr[k]] or [first]
    else:
        level = math.log10(MIXTURE_ERROR / (len(layers.blocks) * len(layers.matches)))

        def hidden(fit: Fit, k: int) -> bool:
            weights = {distinct[j]: float(fit.weights[j]) for j in fit.support}
            return _remainder_related(layers, facts, weights, distinct[k], level)

        selected = select_sources(facts.gram[inner], distinct.index(first), related, hidden)
        chosen = [distinct[k] for k in selected.support] or [first]
        chosen = sorted({*chosen, *(parts.keys() & {*distinct})})
    relatives = np.flatnonzero(related[[distinct.index(k) for k in chosen if k in distinct]].any(0))
    beside = [distinct[k] for k in relatives if distinct[k] not in chosen]
    fit = with_stderr(functools.partial(simplex, among=chosen), facts.grams, facts.counts, beside)
    if not fit.support or 0 < fit.unknown < max(MIN_UNKNOWN, 3 * float(np.linalg.norm(fit.stderr))):
        complete = functools.partial(simplex, among=chosen, unknown=False)
        fit = with_stderr(complete, facts.grams, facts.counts, beside)
    copies = ([k, *np.flatnonzero(distance[k] == 0)] for k in chosen)
    groups = [sorted({*map(int, group)}) for group in copies if len({*group}) > 1]
    return fit, [facts.kept[k] for k in groups[0]] if groups else []


def _by_relatives(facts: BlockFacts, fit: Fit) -> float:
    """Share of the unexplained square that relatives of the sources would explain, with weights of any sign; in [0, 1].

    Drift in common makes 0.1 to 0.2 of it; a merge that was fine-tuned afterwards, or a chain of fine-tunes, more.
    """
    related = related_blocks(facts.centred)
    everyone = [k for k in range(len(facts.kept)) if k in fit.support or related[k, list(fit.support)].any()]
    if fit.rss <= ROUNDING * facts.size or len(everyone) == len(fit.support):
        return 0.0
    return float(np.clip(1.0 - task_arithmetic(facts.gram, everyone[0], everyone).rss / fit.rss, 0.0, 1.0))


def _foreign_tensors(facts: BlockFacts, first: int) -> dict[int, list[str]]:
    """Tensors of the block that came from a source unrelated to `first`, by its index in `kept`.

    Nearer to it by NEARER_FACTOR, and correlated. A relative may be nearer in tensors that hardly changed without being
    a source.
    """
    found: dict[int, list[str]] = {}
    size = 0.0
    for name, gram in zip(facts.names, facts.grams, strict=True):
        square = np.diag(gram)[1:]
        best = int(np.argmin(square))
        cosine = cosines(gram)
        unrelated = abs(cosine[best + 1, first + 1]) <= RELATED_COSINE
        if unrelated and square[best] * NEARER_FACTOR < square[first] and cosine[0, best + 1] >= RELATED_CORRELATION:
            found.setdefault(best, []).append(name)
            size += float(gram[0, 0])
    return found if size > MIN_PART * facts.size else {}


def _remainder_related(
    layers: LayerReadings, facts: BlockFacts, weights: Mapping[int, float], k: int, level: float
) -> bool:
    """Whether child − Σ weight·source is related to source k, by the permutation test (log10 p ≤ level)."""
    units, position = layers.readings.units, facts.position

    def remainder(name: str) -> Any:
        rest = units.matrix(0, name).clone()
        for source, weight in weights.items():
            rest -= weight * units.matrix(facts.kept[source] + 1, name)
        return rest

    names = [name for name in layers.blocks[position].tensors.values() if name in facts.names]
    test = candidate_test(layers.readings, layers.architecture, facts.kept[k], names, layers.seed + 2, remainder)
    return test is not None and test.log10_p <= level


def squared_distances(gram: np.ndarray) -> np.ndarray:
    """Squared distances between the candidates, (M, M); what rounding leaves counts as 0."""
    inner = gram[1:, 1:]
    square = np.diag(inner)
    distance = square[:, None] + square[None, :] - 2 * inner
    return np.where(distance <= 1e-12 * (square[:, None] + square[None, :]), 0.0, distance)


def _probability(facts: BlockFacts, first: int, related: Sequence[int], same: int) -> float:
    """P ∝ d^(−2·DISTANCE_EXPONENT) over the related candidates, d the block's distance; at most MAX_PROBABILITY."""
    if facts.equal:
        return 1.0 / len(facts.equal)
    if len(related) == 1:
        return 1.0 - facts.tests[first].p if first in facts.tests else 1.0
    square = np.array([facts.square(k) for k in related])
    if not square.all():
        return 1.0 / max(1, same)
    return min(MAX_PROBABILITY, float(1.0 / ((square / facts.square(first)) ** -DISTANCE_EXPONENT).sum()))


def _settled(layers: LayerReadings, origin: BlockOrigin, block_counts: Mapping[str, int]) -> BlockOrigin:
    """The origin; among candidates that hold equal blocks, the one that most other blocks came from."""
    same = origin.facts.get("same")
    if not same or len(origin.mixture) != 1:
        return origin
    ref = max(same, key=lambda r: (block_counts.get(r, 0), -layers.refs.index(r)))
    i = next(i for i, block in enumerate(layers.blocks) if block.path == origin.block)
    block = matched_block(layers, i, layers.refs.index(ref))
    return replace(
        origin, parent=ref, parent_block=block.path,
        mixture=(replace(origin.mixture[0], ref=ref, block=block.path),),
        facts={**origin.facts, "moved": block.short != layers.blocks[i].short},
    )  # fmt: skip
