"""How a whole child was made from its candidates: one of them, blocks of several, or a method of merging.

A guess from traces, each given as a reason. Weighted sums, SLERP and task arithmetic follow from Gram matrices alone
(`mixture.py`), TIES and DARE from the entries of the units in memory (`sparse_merges.py`). See docs/methods.md, *Mixing
weights* and *Sparse merges*.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..answers.layers import BlockOrigin, Method, Share
from .block_origins import BlockFacts, LayerReadings, mixture_shares, related_blocks, relative_residual
from .mixture import (
    MAX_RELATED_RESIDUAL,
    MIN_SIBLING_SHARE,
    ROUNDING,
    Fit,
    SiblingShares,
    cosines,
    most_central,
    sibling_shares,
    simplex,
    slerp_position,
    task_arithmetic,
    unconstrained,
    with_stderr,
)
from .sparse_merges import MIN_FOLLOWED_SHARE, SparseMerge, sparse_merge

MIN_MIXED_SHARE = 0.8  # of the blocks with an origin that must be mixtures for the whole to be one merge
MAX_MISFIT_RATIO = 0.5  # of an arc's misfit to a line's, or the other way round, for the one to be preferred
MIN_MERGE_WEIGHT = 0.01  # below, a source took no part in a merge
MAX_DELTA_COSINE = 0.12  # mean absolute value, of the deltas of fine-tunes seen from their base
MOST_BY_RELATIVES = 0.8  # of what the origins leave, from which one origin is no explanation
MIN_EXPLAINED_BY_RELATIVES = 0.25  # of what the origins leave, from which a reason says so
TOWARDS = 0.05  # cosine of what became of an origin with the way to another candidate, from which a merge is looked for
MAX_UNKNOWN = 0.1  # share of the whole that is unknown, up to which a method can be named


@dataclass(frozen=True, slots=True)
class InferredMerge:
    """How the child was made: the method, None where none is found; the origins with the weights of that method.

    mixture, unknown, residual: of the whole model, as of a block. facts, reasons: what the guess rests on.
    """

    method: Method | None
    origins: tuple[BlockOrigin, ...]
    mixture: tuple[Share, ...]
    unknown: float | None
    residual: float | None
    facts: dict[str, Any]
    reasons: tuple[str, ...]


def infer_merge_method(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> InferredMerge:
    """The method by which the child was made, and the origins of its blocks refitted by it."""
    found = _by_sparse_merge(layers, facts, origins) or _by_kinds(layers, facts, origins)
    method, refitted, about, reasons = found
    mixture, unknown, left = whole_model(layers, facts, refitted)
    dtypes = [layers.child[name].dtype for each in facts for name in each.names]
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    about = {"dtype": names.get(max(set(dtypes), key=dtypes.count), "float32") if dtypes else None, **about}
    return InferredMerge(method, refitted, mixture, unknown, left, about, reasons)


_Finding = tuple[Method | None, tuple[BlockOrigin, ...], dict[str, Any], tuple[str, ...]]


def _by_kinds(layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Finding:
    """From the kinds of the blocks, where there are no traces of a sparse merge."""
    inner = [origin for origin in origins if origin.index is not None]
    traced = [origin for origin in inner if origin.parent]
    mixed = [origin for origin in traced if origin.kind == "mixture"]
    if not traced:
        return None, tuple(origins), {}, ("no block has an origin among the candidates",)
    parts = [origin for origin in traced if origin.facts.get("parts")]
    if parts:
        ref, names = next(iter(parts[0].facts["parts"].items()))
        why = (
            f"parts of {len(parts)} of {len(traced)} blocks are different candidates': {names[0]} is {ref}'s, "
            "for example"
        )
        return "mixed", tuple(origins), {}, (why,)
    if len(mixed) >= MIN_MIXED_SHARE * len(traced):
        return _by_mixtures(layers, facts, origins)
    if mixed:
        why = f"{len(mixed)} of {len(traced)} blocks are mixtures, the others have one origin each"
        return "mixed", tuple(origins), {}, (why,)
    return (
        _beyond_sources(layers, facts, origins)
        or _by_siblings(layers, facts, origins)
        or _single_origins(layers, facts, inner, traced, origins)
    )


def _beyond_sources(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> _Finding | None:
    """Task arithmetic beyond its sources, such as base + 1.5·δ: that is no weighted sum, so that no block is a
    mixture."""
    blocks = [each for each in facts if origins[each.position].index is not None and origins[each.position].parent]
    related = _related_candidates(blocks, [layers.refs.index(str(origins[blocks[0].position].parent))])
    if len(related) < 2 or len(blocks) < 2:
        return None
    gram = _pooled_gram(blocks, related)
    nearest = float(np.diag(gram)[1:].min())
    unexplained = task_arithmetic(gram, 0, range(len(related))).rss
    if nearest <= ROUNDING * gram[0, 0] or unexplained > MAX_RELATED_RESIDUAL * nearest:
        return None
    return _by_task_arithmetic(layers, facts, blocks, origins, related)


def _by_siblings(layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Finding | None:
    """A merge of two candidates at least that were tuned from a third one, and of what none of them explains."""
    blocks = [each for each in facts if origins[each.position].index is not None and origins[each.position].parent]
    related = _related_candidates(blocks, [layers.refs.index(str(origins[blocks[0].position].parent))])
    if len(related) < 3:
        return None
    base, _ = most_central(_pooled_gram(blocks, related), range(len(related)))
    grams, counts = _grams_among(blocks, related)
    among = [k for k in range(len(related)) if k != base]
    found = sibling_shares(grams, counts, base, among)
    if found and (shown := [k for k, w in zip(among, found.weights, strict=True) if w > MIN_SIBLING_SHARE]) != among:
        among, found = shown, sibling_shares(grams, counts, base, shown)
    if found is None or not found.is_merge:
        return None
    refitted = list(origins)
    used = [related[k] for k in among]
    for each in facts:
        origin = origins[each.position]
        if origin.kind == "tuned" and {*used, related[base]} <= {*each.kept}:
            refitted[each.position] = _as_siblings(layers, each, origin, related[base], used, found)
    names = " and ".join(layers.refs[k] for k in used)
    why = (
        f"{names} take {100 * found.weights.sum():.0f} % of the step from {layers.refs[related[base]]}; what is left "
        f"is as long as {100 * found.unknown:.0f} % of one more such fine-tune: a source that is not offered, a method "
        "that left entries out, or training since"
    )
    return "merge", tuple(refitted), {}, (why,)


def _grams_among(blocks: Sequence[BlockFacts], among: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """(Gram matrix, entries read) of each tensor of some blocks, of child and candidates `among`."""
    grams = []
    for each in blocks:
        rows = [0, *(each.kept.index(k) + 1 for k in among)]
        grams += [gram[np.ix_(rows, rows)] for gram in each.grams]
    return grams, [count for each in blocks for count in each.counts]


def _as_siblings(
    layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, base: int, used: Sequence[int], found: SiblingShares
) -> BlockOrigin:
    """The origin with the shares of siblings; what is unknown is taken from the base where the block is made again."""
    columns = [facts.kept.index(k) for k in used]
    weights, error = np.zeros(len(facts.kept)), np.zeros(len(facts.kept))
    weights[columns], error[columns] = found.weights, found.stderr
    v = np.concatenate([[0.0], weights])
    v[facts.kept.index(base) + 1] = found.unknown
    fit = Fit(weights, found.unknown, max(0.0, float(v @ facts.gram @ v)), error)
    return refitted_origin(layers, facts, origin, fit, {"unknown_stderr": found.unknown_stderr})


def _single_origins(
    layers: LayerReadings, facts: Sequence[BlockFacts], inner: Sequence[BlockOrigin], traced: Sequence[BlockOrigin],
    origins: Sequence[BlockOrigin],
) -> _Finding:  # fmt: skip
    """Blocks with one origin each: of one model, of several, or moved.

    Stem and head count where they equal those of an unrelated model. Tuned ones are compared by correlation alone, and
    heads of one task are similar.
    """
    refs = {str(origin.parent) for origin in traced}
    ends = [
        origin for each, origin in zip(facts, origins, strict=True)
        if origin.index is None and origin.kind == "equal" and _is_unrelated(layers, each, origin, refs)
    ]  # fmt: skip
    moved = sum(origin.moved for origin in traced)
    unknown = float(np.mean([origin.unknown or 0.0 for origin in traced]))
    which = "every block" if len(traced) == len(inner) else f"{len(traced)} of {len(inner)} blocks"
    if unknown > MAX_UNKNOWN:
        lost = (
            f"{which} can be traced to one candidate, but {100 * unknown:.0f} % of that is unknown: another source "
            "that is not offered, or weights that were pruned or shrunk"
        )
        return None, tuple(origins), {}, (lost,)
    plain = len(refs) == 1 and not moved
    shared = float(np.mean([origin.facts.get("by_relatives", 0.0) for origin in traced]))
    if plain and shared > MOST_BY_RELATIVES:
        either = (
            f"{which} can be traced to {traced[0].parent}, but its relatives explain {100 * shared:.0f} % of what that "
            "leaves: a merge with them, tuned since or with a source that is not offered, or a model between them in a "
            "chain of fine-tunes; which of these, and in what proportion, cannot be told"
        )
        return None, tuple(origins), {}, (either,)
    who = "the same candidate, at its own position" if plain else f"of {len(refs)} candidate{'s' * (len(refs) > 1)}"
    who += f", and {moved} at another position there" * (moved > 0)
    who += "".join(f"; the {end.block} is {end.parent}'s" for end in ends)
    why = [f"{which} {'has' if len(traced) == len(inner) else 'have'} one origin, {who}"]
    if shared > MIN_EXPLAINED_BY_RELATIVES:
        why.append(
            f"relatives of the origins explain {100 * shared:.0f} % of what those leave: drift in common, a chain of "
            "fine-tunes, or a merge of relatives that was tuned afterwards"
        )
    if not plain or ends:
        return "passthrough", tuple(origins), {}, tuple(why)
    return ("single" if len(traced) == len(inner) else None), tuple(origins), {}, tuple(why)


def _is_unrelated(layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, refs: Set[str]) -> bool:
    """Whether the origin of a stem or head is unrelated to the origins of the blocks."""
    kept = [layers.refs[k] for k in facts.kept]
    related = related_blocks(facts.centred)[kept.index(str(origin.parent))]
    return origin.parent not in refs and not any(related[kept.index(ref)] for ref in refs if ref in kept)


def _by_mixtures(layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Finding:
    """A weighted sum, SLERP or task arithmetic, through the sources of the blocks that are mixtures."""
    mixed = [each for each in facts if origins[each.position].kind == "mixture"]
    refs = sorted({share.ref for each in mixed for share in origins[each.position].mixture})
    sources = [layers.refs.index(ref) for ref in refs]
    mixed = [each for each in mixed if {*sources} <= {*each.kept}]
    related = _related_candidates(mixed, sources) if mixed else []
    arc = _by_slerp(layers, mixed, origins, sources) if mixed and len(sources) == 2 else None
    deltas = (
        _by_task_arithmetic(layers, facts, mixed, origins, related)
        if len(related) > 2 and {*sources} <= {*related}
        else None
    )
    if arc and deltas:
        return deltas if _rss(facts, deltas[1]) < MAX_MISFIT_RATIO * _rss(facts, arc[1]) else arc
    if found := arc or deltas:
        return found
    return "linear", tuple(origins), {}, (f"every mixed block is a weighted sum of {len(sources)} candidates",)


def _rss(facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> float:
    """The square that the sources leave of all blocks."""
    return sum((origins[each.position].residual or 0.0) ** 2 * each.size for each in facts)


def _by_slerp(
    layers: LayerReadings, mixed: Sequence[BlockFacts], origins: Sequence[BlockOrigin], sources: Sequence[int]
) -> _Finding | None:
    """SLERP, if tensor by tensor the weights lie on an arc, with length 1, rather than on a line, with sum 1."""
    refitted = list(origins)
    line = arc_error = total = angle = 0.0
    ts = []
    for each in mixed:
        columns = [each.kept.index(k) for k in sources]
        found = [(math.sqrt(gram[0, 0]), gram, slerp_position(gram, *columns)) for gram in each.grams if gram[0, 0] > 0]
        size = np.array([size for size, _, _ in found])
        line += float(size @ [abs(unconstrained(gram, columns).unknown) for _, gram, _ in found])
        arc_error += float(size @ [abs(length - 1.0) for _, _, (_, length, _) in found])
        angle += float(size @ [omega for _, _, (_, _, omega) in found])
        total += float(size.sum())
        t = np.array([t for _, _, (t, _, _) in found])
        ts.append(float(size @ t / size.sum()))
        error = math.sqrt(float(size @ (t - ts[-1]) ** 2 / size.sum()) / max(1, len(found) - 1))
        refitted[each.position] = _as_slerp(layers, each, origins[each.position], columns, ts[-1], error)
    line, arc_error, angle = line / total, arc_error / total, angle / total
    if arc_error > MAX_MISFIT_RATIO * line:
        return None
    first, second = (layers.refs[k] for k in sources)
    why = (
        f"the weights of {first} and {second} lie on an arc (off by {arc_error:.2g}) rather than on a line (off by "
        f"{line:.2g}), at an angle of {math.degrees(angle):.0f}° between the two"
    )
    about = {"base": first, "other": second, "t": float(np.mean(ts)), "stderr": _stderr_of_mean(ts)}
    return "slerp", tuple(refitted), {"slerp": about}, (why,)


def _as_slerp(
    layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, columns: Sequence[int], t: float, stderr: float
) -> BlockOrigin:
    """The origin with weights 1 − t and t, and the residual of the arc."""
    a, b = columns
    rss = 0.0
    for gram in facts.grams:
        omega = math.acos(float(np.clip(cosines(gram)[a + 1, b + 1], -1.0, 1.0)))
        v = np.zeros(len(gram))
        v[a + 1], v[b + 1] = (math.sin(part * omega) / math.sin(omega) if omega else part for part in (1 - t, t))
        v[0] = v.sum() - 1.0  # Σ v·source − c = Σ v·y + (Σv − 1)·c
        rss += max(0.0, float(v @ gram @ v))
    weights, error = np.zeros(len(facts.kept)), np.zeros(len(facts.kept))
    weights[[a, b]], error[[a, b]] = (1.0 - t, t), stderr
    return refitted_origin(layers, facts, origin, Fit(weights, 0.0, rss, error), {"t": t})


def _related_candidates(mixed: Sequence[BlockFacts], sources: Sequence[int]) -> list[int]:
    """The first source and the candidates that are related to it over the mixed blocks."""
    everywhere = sorted(set.intersection(*({*each.kept} for each in mixed)))
    columns_of = [[each.kept.index(k) for k in everywhere] for each in mixed]
    rows = [[0, *(p + 1 for p in columns)] for columns in columns_of]
    centred = sum(each.centred[np.ix_(row, row)] for each, row in zip(mixed, rows, strict=True))
    related = related_blocks(np.asarray(centred))[everywhere.index(sources[0])]
    return [k for i, k in enumerate(everywhere) if k == sources[0] or related[i]]


def _pooled_gram(mixed: Sequence[BlockFacts], among: Sequence[int]) -> np.ndarray:
    """The Gram matrix of child and candidates `among`, summed over several blocks."""
    total = np.zeros((len(among) + 1,) * 2)
    for each in mixed:
        rows = [0, *(each.kept.index(k) + 1 for k in among)]
        total += each.gram[np.ix_(rows, rows)]
    return total


def _by_task_arithmetic(
    layers: LayerReadings,
    facts: Sequence[BlockFacts],
    mixed: Sequence[BlockFacts],
    origins: Sequence[BlockOrigin],
    related: Sequence[int],
) -> _Finding | None:
    """Task arithmetic, if the deltas of the sources from one of them, their base, add up to the child."""
    gram = _pooled_gram(mixed, related)
    everyone = range(len(related))
    signed = task_arithmetic(gram, 0, everyone)  # of any sign, summing to 1: the same whatever base
    base, cosine = most_central(gram, everyone)
    lowest = int(np.argmin(signed.weights))
    average = simplex(gram, everyone, unknown=False)
    if signed.weights[lowest] < -MIN_MERGE_WEIGHT and signed.rss <= MAX_MISFIT_RATIO * average.rss:
        base = lowest
    elif signed.weights[base] <= MIN_MERGE_WEIGHT or cosine > MAX_DELTA_COSINE:
        return None
    used = [k for k in everyone if k == base or abs(signed.weights[k]) > MIN_MERGE_WEIGHT]
    refitted = list(origins)
    for each in facts:
        origin = origins[each.position]
        if origin.parent and {related[k] for k in used} <= {*each.kept}:
            found = _by_deltas(layers, each, origin, related[base], [related[k] for k in used])
            refitted[each.position] = min(found, origin, key=lambda o: o.residual or 0.0)
    ref = layers.refs[related[base]]
    deltas = []
    for k in used:
        if k != base:
            stderr = _delta_stderr(mixed, related, base, used, k)
            deltas.append({"ref": layers.refs[related[k]], "weight": float(signed.weights[k]), "stderr": stderr})
    same = "; a weighted sum that includes it is the same" if signed.weights[base] > 0 else ""
    why = (
        f"the deltas of {' and '.join(str(delta['ref']) for delta in deltas)} from {ref} add up with weights whose sum "
        f"is {1 - signed.weights[base]:.3f}{same}"
    )
    return "task_arithmetic", tuple(refitted), {"task_arithmetic": {"base": ref, "deltas": deltas}}, (why,)


def _by_deltas(
    layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, base: int, used: Sequence[int]
) -> BlockOrigin:
    columns = [facts.kept.index(k) for k in used if k in facts.kept]
    fit = with_stderr(
        functools.partial(task_arithmetic, base=facts.kept.index(base), among=columns), facts.grams, facts.counts
    )
    return refitted_origin(layers, facts, origin, fit, {})


def _delta_stderr(mixed: Sequence[BlockFacts], related: Sequence[int], base: int, used: Sequence[int], k: int) -> float:
    """The standard error of one delta's weight, from its spread over blocks."""
    each = [task_arithmetic(_pooled_gram([one], related), base, used).weights[k] for one in mixed]
    return _stderr_of_mean(each)


def _stderr_of_mean(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def refitted_origin(
    layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, fit: Fit, extra: dict[str, Any]
) -> BlockOrigin:
    """The origin of a block as a mixture by another fit; extra: facts to add."""
    mixture = mixture_shares(layers, facts, fit)
    top = mixture[0]
    return replace(
        origin, kind="mixture", parent=top.ref, parent_block=top.block, probability=None,
        mixture=mixture, unknown=fit.unknown, residual=relative_residual(fit, facts), facts={**origin.facts, **extra},
    )  # fmt: skip


# ---- TIES and DARE


def _by_sparse_merge(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> _Finding | None:
    """TIES or DARE around one of the candidates, if the rows in memory show their traces."""
    blocks = [
        each for each in facts
        if origins[each.position].index is not None and each.kept
        and origins[each.position].kind in ("tuned", "mixture")
    ]  # fmt: skip
    if not blocks:
        return None
    related = _related_candidates(blocks, [layers.refs.index(str(origins[blocks[0].position].parent))])
    if len(related) < 2:
        return None
    weights = task_arithmetic(_pooled_gram(blocks, related), 0, range(len(related))).weights
    found: list[tuple[SparseMerge, int, list[int]]] = []
    for base in range(len(related)):
        used = [k for k in range(len(related)) if k != base]
        seen = _sparse_traces(layers, blocks, related[base], [related[k] for k in used], weights[used], sure=False)
        if seen:  # without those that no entry follows
            used = [k for k, share in zip(used, seen.alone, strict=True) if share >= MIN_FOLLOWED_SHARE]
            seen = _sparse_traces(layers, blocks, related[base], [related[k] for k in used], weights[used])
        if seen:
            found.append((seen, base, used))
    if not found:
        return None
    # the base is the one from which the entries are rebuilt best
    seen, base, used = min(found, key=lambda item: item[0].residual)
    merge = _SparseMergeOf(related[base], tuple(related[k] for k in used), seen)
    return _refitted_by_traces(layers, facts, origins, merge)


def _sparse_traces(
    layers: LayerReadings,
    blocks: Sequence[BlockFacts],
    base: int,
    sources: Sequence[int],
    weights: np.ndarray,
    sure: bool = True,
) -> SparseMerge | None:
    units = layers.readings.units
    names = [name for each in blocks for name in each.names if name in units and {base, *sources} <= {*each.kept}]

    def matrices(model: int) -> list[Any]:
        return [units.matrix(model, name) for name in names]

    dtypes = [layers.child[name].dtype for name in names]
    return sparse_merge(
        matrices(0), matrices(base + 1), [matrices(k + 1) for k in sources], list(weights), dtypes, sure=sure
    )


@dataclass(frozen=True, slots=True)
class _SparseMergeOf:
    """A sparse merge with its models: candidate `base`, and the candidates whose deltas were added, `sources`."""

    base: int
    sources: tuple[int, ...]
    found: SparseMerge

    def refit(self, layers: LayerReadings, facts: BlockFacts, origin: BlockOrigin, stderr: np.ndarray) -> BlockOrigin:
        """The origin with the weights of the deltas; what these lack to 1 is the base's."""
        weights, error = np.zeros(len(facts.kept)), np.zeros(len(facts.kept))
        columns, base = [facts.kept.index(k) for k in self.sources], facts.kept.index(self.base)
        weights[columns], error[columns] = np.array(self.found.weights) * self.found.scale, stderr
        error[base] = float(np.linalg.norm(stderr))
        rest = 1.0 - float(weights.sum())
        weights[base] = rest if abs(rest) > MIN_MERGE_WEIGHT else 0.0
        fit = Fit(weights, 0.0, self.found.residual**2 * facts.size, error)
        return refitted_origin(layers, facts, origin, fit, {"density": list(self.found.density)})


def _refitted_by_traces(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin], merge: _SparseMergeOf
) -> _Finding:
    """Every block that shows the same traces gets their weights; the model's standard errors are their spread."""
    refitted = list(origins)
    found, sources = merge.found, merge.sources
    by_block = {
        each.position: seen for each in facts
        if each.kept and (seen := _sparse_traces(layers, [each], merge.base, sources, np.array(found.weights)))
        and seen.method == found.method
    }  # fmt: skip
    stderr = [_stderr_of_mean(column) for column in zip(*(seen.weights for seen in by_block.values()), strict=True)]
    stderr = stderr or [0.0] * len(sources)
    for position, seen in by_block.items():
        if not all(seen.weights):  # too few entries here to follow every source
            seen = replace(seen, weights=found.weights, density=found.density)
        of_block = replace(merge, found=seen)
        spread = np.array(stderr) * math.sqrt(len(by_block))
        refitted[position] = of_block.refit(layers, facts[position], origins[position], spread)
    deltas = [
        {"ref": layers.refs[k], "weight": weight * found.scale, "stderr": error, "density": density}
        for k, weight, error, density in zip(sources, found.weights, stderr, found.density, strict=True)
    ]
    base = layers.refs[merge.base]
    rule = "had the small deltas" if found.method == "ties" else "were chosen regardless of size"
    why = (
        f"{100 * found.zeros:.1f} % of the entries are still those of {base} where a weighted sum would "
        f"have moved them, and {rule} (chance that one was smaller: {found.smaller:.2f}); "
        f"up to {100 * max(found.alone):.0f} % of the others follow one candidate alone"
    )
    about: dict[str, Any] = {"base": base, "deltas": deltas}
    if found.method == "ties":
        about["lambda"] = found.scale
    return found.method, tuple(refitted), {found.method: about, "resynthesis": found.residual}, (why,)


# ---- a recipe that makes it again


def may_be_merged(layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> bool:
    """Whether it is worth looking for a recipe: a block is a mixture, or moved towards another candidate than its own.

    The cosine of child − origin with candidate − origin, over all blocks, is at least TOWARDS.
    """
    blocks = [each for each in facts if origins[each.position].parent and len(each.kept) > 1]
    if any(origins[each.position].kind == "mixture" for each in blocks):
        return True
    products: dict[int, np.ndarray] = {}
    for each in blocks:
        first = each.kept.index(layers.refs.index(str(origins[each.position].parent))) + 1
        for column, k in enumerate(each.kept, 1):
            if column != first:
                step, apart = each.gram[first, first], each.gram[column, column] + each.gram[first, first]
                apart -= 2 * each.gram[first, column]
                along = step - each.gram[first, column]  # −y_first · (y_k − y_first)
                products[k] = products.get(k, np.zeros(3)) + np.array([along, step, apart])
    return any(x >= TOWARDS * math.sqrt(y * z) > 0 for x, y, z in products.values())


def with_recipe(
    layers: LayerReadings, facts: Sequence[BlockFacts], made: InferredMerge, method: Method, base: int | None,
    models: Sequence[int], told: dict[str, Any], reason: str,
) -> InferredMerge:  # fmt: skip
    """What was inferred, with the recipe that makes the child again. told: facts to add.

    The shares of another method than the one inferred are fitted anew: of changes from the base, where there is one.
    """
    if made.method == method and (base is None or made.facts.get(method, {}).get("base") in (None, layers.refs[base])):
        return replace(made, facts={**made.facts, **told}, reasons=(*made.reasons, reason))
    refitted = list(made.origins)
    for each in facts:
        origin = made.origins[each.position]
        if origin.parent and {*models, *([] if base is None else [base])} <= {*each.kept}:
            if base is not None:
                refitted[each.position] = _by_deltas(layers, each, origin, base, [base, *models])
            elif {share.ref for share in origin.mixture} != {layers.refs[k] for k in models}:
                columns = [each.kept.index(k) for k in models]
                fit = with_stderr(functools.partial(simplex, among=columns, unknown=False), each.grams, each.counts)
                refitted[each.position] = refitted_origin(layers, each, origin, fit, {})
    mixture, unknown, left = whole_model(layers, facts, refitted)
    kept = {name: made.facts[name] for name in ("dtype",) if name in made.facts}
    return InferredMerge(method, tuple(refitted), mixture, unknown, left, {**kept, **told}, (reason,))


# ---- the whole


def whole_model(
    layers: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> tuple[tuple[Share, ...], float | None, float | None]:
    """(mixture, unknown, residual) of the whole model, over its stem and blocks, each weighted by its size.

    Standard errors come from the spread over blocks where all of these are mixtures. Where most are, one that several
    of their sources hold alike, as frozen embeddings, shows no share and counts for none.
    """
    mixed = [origin for origin in origins if origin.kind == "mixture"]
    refs = {share.ref for origin in mixed for share in origin.mixture}
    sizes = {
        each.position: sum(layers.child[name].count for name in layers.blocks[each.position].tensors.values())
        for each in facts if layers.blocks[each.position].path != "head"
        and (2 * len(mixed) < len(origins) or len(refs & {*origins[each.position].facts.get("same", ())}) < 2)
    }  # fmt: skip
    total = sum(sizes.values())
    if not total:
        return (), None, None
    weights: dict[str, float] = {}
    error: dict[str, float] = {}
    each_block: dict[str, list[float]] = {}
    for position, size in sizes.items():
        for share in origins[position].mixture:
            weights[share.ref] = weights.get(share.ref, 0.0) + size * share.weight / total
            error[share.ref] = error.get(share.ref, 0.0) + size * share.stderr / total  # drift is common to all blocks
            each_block.setdefault(share.ref, []).append(share.weight)
    spread = all(origins[position].kind == "mixture" for position in sizes if origins[position].index is not None)
    mixture = tuple(
        Share(ref, "", weight, max(error[ref], _stderr_of_mean(each_block[ref]) if spread else 0.0))
        for ref, weight in sorted(weights.items(), key=lambda item: -item[1])
    )
    square = left = 0.0
    for position in sizes:
        residual, own = origins[position].residual, facts[position].size
        square += own
        left += own * (1.0 if residual is None else residual**2)  # of a block without an origin nothing is explained
    unknown = 1.0 - sum(weights.values())
    return mixture, max(0.0, unknown) if abs(unknown) > 1e-9 else 0.0, math.sqrt(left / square) if square > 0 else None
