"""How a whole child was made of its candidates: one of them, blocks of several, or a way to merge (METHODS §5).

A guess from traces, each told as a reason. A weighted sum, SLERP and task arithmetic follow from Gram matrices alone;
TIES and DARE from the entries of the units in memory (`weights/sparse_merges.py`).
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
    NOTHING,
    REST,
    Fit,
    cosines,
    most_central,
    simplex,
    slerp_position,
    task_arithmetic,
    unconstrained,
    with_stderr,
)
from .sparse_merges import FOLLOWED, SparseMerge, sparse_merge

MOST_BLOCKS = 0.8  # share of the explained blocks that must be mixtures for the whole to be one merge
APART = 0.5  # of the other's misfit: how much better an arc must fit than a line, or the other way round
BARELY = 0.01  # weight below which a merge went without a source
CROSSING = 0.12  # mean |cosine| of the deltas of fine-tunes seen from their base, at most
SHARED = 0.25  # share of what the origins leave that their relatives explain, from which it is said
SHRUNK = 0.1  # share of the whole that is unknown, from which its making does not show


@dataclass(frozen=True, slots=True)
class InferredMerge:
    """`origins` with the weights of the method found; the model's own mixture, and what the guess rests on."""

    method: Method | None
    origins: tuple[BlockOrigin, ...]
    mixture: tuple[Share, ...]
    unknown: float | None
    residual: float | None
    facts: dict[str, Any]
    reasons: tuple[str, ...]


def infer_merge_method(
    study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> InferredMerge:
    """The method, and the origins refitted by it."""
    found = _sparse(study, facts, origins) or _plain(study, facts, origins)
    method, refitted, about, reasons = found
    mixture, unknown, left = _whole(study, facts, refitted)
    dtypes = [study.child[name].dtype for each in facts for name in each.names]
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    about = {"dtype": names.get(max(set(dtypes), key=dtypes.count), "float32") if dtypes else None, **about}
    return InferredMerge(method, refitted, mixture, unknown, left, about, reasons)


_Found = tuple[Method | None, tuple[BlockOrigin, ...], dict[str, Any], tuple[str, ...]]


def _plain(study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Found:
    """By the kinds of the blocks, where nothing sparse was done."""
    inner = [origin for origin in origins if origin.index is not None]
    told = [origin for origin in inner if origin.parent]
    mixed = [origin for origin in told if origin.kind == "mixture"]
    if not told:
        return None, tuple(origins), {}, ("no block has an origin among the candidates",)
    parts = [origin for origin in told if origin.facts.get("parts")]
    if parts:
        ref, names = next(iter(parts[0].facts["parts"].items()))
        why = (
            f"parts of {len(parts)} of {len(told)} blocks are different candidates': {names[0]} is {ref}'s, for example"
        )
        return "mixed", tuple(origins), {}, (why,)
    if len(mixed) >= MOST_BLOCKS * len(told):
        return _merged(study, facts, origins)
    if mixed:
        why = f"{len(mixed)} of {len(told)} blocks are mixtures, the others have one origin each"
        return "mixed", tuple(origins), {}, (why,)
    return _outside(study, facts, origins) or _assembled(study, facts, inner, told, origins)


def _outside(study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Found | None:
    """Task arithmetic beyond its sources, such as base + 1.5·δ: no weighted sum, so that no block is a mixture yet."""
    blocks = [each for each in facts if origins[each.position].index is not None and origins[each.position].parent]
    kin = _relatives(blocks, [study.refs.index(str(origins[blocks[0].position].parent))])
    if len(kin) < 2 or len(blocks) < 2:
        return None
    gram = _pooled(blocks, kin)
    nearest = float(np.diag(gram)[1:].min())
    if nearest <= NOTHING * gram[0, 0] or task_arithmetic(gram, 0, range(len(kin))).rss > REST * nearest:
        return None
    return _around(study, facts, blocks, origins, kin)


def _assembled(
    study: LayerReadings, facts: Sequence[BlockFacts], inner: Sequence[BlockOrigin], told: Sequence[BlockOrigin],
    origins: Sequence[BlockOrigin],
) -> _Found:  # fmt: skip
    """One origin each: of one model, or of several, or elsewhere; stem and head count where they are a stranger's own:
    tuned ones go by likeness, and heads of one task are alike."""
    refs = {str(origin.parent) for origin in told}
    ends = [
        origin for each, origin in zip(facts, origins, strict=True)
        if origin.index is None and origin.kind == "equal" and _is_stranger(study, each, origin, refs)
    ]  # fmt: skip
    moved = sum(origin.moved for origin in told)
    unknown = float(np.mean([origin.unknown or 0.0 for origin in told]))
    which = "every block" if len(told) == len(inner) else f"{len(told)} of {len(inner)} blocks"
    if unknown > SHRUNK:
        lost = (
            f"{which} can be traced to one candidate, but {100 * unknown:.0f} % of that is unknown: another source "
            "that is not offered, or weights that were pruned or shrunk"
        )
        return None, tuple(origins), {}, (lost,)
    plain = len(refs) == 1 and not moved
    who = "the same candidate, in its own place" if plain else f"of {len(refs)} candidate{'s' * (len(refs) > 1)}"
    who += f", and {moved} stood elsewhere there" * (moved > 0)
    who += "".join(f"; the {end.block} is {end.parent}'s" for end in ends)
    why = [f"{which} {'has' if len(told) == len(inner) else 'have'} one origin, {who}"]
    shared = float(np.mean([origin.facts.get("by_relatives", 0.0) for origin in told]))
    if shared > SHARED:
        why.append(
            f"relatives of the origins explain {100 * shared:.0f} % of what those leave: drift in common, a chain of "
            "fine-tunes, or a merge of relatives that was tuned afterwards"
        )
    if not plain or ends:
        return "passthrough", tuple(origins), {}, tuple(why)
    return ("single" if len(told) == len(inner) else None), tuple(origins), {}, tuple(why)


def _is_stranger(study: LayerReadings, facts: BlockFacts, origin: BlockOrigin, refs: Set[str]) -> bool:
    """Whether a stem's or head's origin is unrelated to the blocks'; a relative's is as good as their own."""
    kept = [study.refs[k] for k in facts.kept]
    related = related_blocks(facts.centred)[kept.index(str(origin.parent))]
    return origin.parent not in refs and not any(related[kept.index(ref)] for ref in refs if ref in kept)


def _merged(study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Found:
    """A line, an arc or task arithmetic through the sources of the blocks that are mixtures."""
    mixed = [each for each in facts if origins[each.position].kind == "mixture"]
    refs = sorted({share.ref for each in mixed for share in origins[each.position].mixture})
    sources = [study.refs.index(ref) for ref in refs]
    mixed = [each for each in mixed if {*sources} <= {*each.kept}]
    kin = _relatives(mixed, sources) if mixed else []
    arc = _arc(study, mixed, origins, sources) if mixed and len(sources) == 2 else None
    deltas = _around(study, facts, mixed, origins, kin) if len(kin) > 2 and {*sources} <= {*kin} else None
    if arc and deltas:
        return deltas if _rss(facts, deltas[1]) < APART * _rss(facts, arc[1]) else arc
    if found := arc or deltas:
        return found
    return "linear", tuple(origins), {}, (f"every mixed block is a weighted sum of {len(sources)} candidates",)


def _rss(facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> float:
    """What the sources leave of all blocks, squared."""
    return sum((origins[each.position].residual or 0.0) ** 2 * each.size for each in facts)


def _arc(
    study: LayerReadings, mixed: Sequence[BlockFacts], origins: Sequence[BlockOrigin], sources: Sequence[int]
) -> _Found | None:
    """SLERP: the weights lie on an arc, of length 1, rather than on a line, of sum 1, tensor by tensor."""
    refitted = list(origins)
    line = bend = total = angle = 0.0
    ts = []
    for each in mixed:
        places = [each.kept.index(k) for k in sources]
        found = [(math.sqrt(gram[0, 0]), gram, slerp_position(gram, *places)) for gram in each.grams if gram[0, 0] > 0]
        size = np.array([size for size, _, _ in found])
        line += float(size @ [abs(unconstrained(gram, places).unknown) for _, gram, _ in found])
        bend += float(size @ [abs(length - 1.0) for _, _, (_, length, _) in found])
        angle += float(size @ [omega for _, _, (_, _, omega) in found])
        total += float(size.sum())
        t = np.array([t for _, _, (t, _, _) in found])
        ts.append(float(size @ t / size.sum()))
        error = math.sqrt(float(size @ (t - ts[-1]) ** 2 / size.sum()) / max(1, len(found) - 1))
        refitted[each.position] = _as_slerp(study, each, origins[each.position], places, ts[-1], error)
    line, bend, angle = line / total, bend / total, angle / total
    if bend > APART * line:
        return None
    first, second = (study.refs[k] for k in sources)
    why = (
        f"the weights of {first} and {second} lie on an arc (off by {bend:.2g}) rather than on a line (off by "
        f"{line:.2g}), at an angle of {math.degrees(angle):.0f}° between the two"
    )
    about = {"base": first, "other": second, "t": float(np.mean(ts)), "stderr": _spread(ts)}
    return "slerp", tuple(refitted), {"slerp": about}, (why,)


def _as_slerp(
    study: LayerReadings, facts: BlockFacts, origin: BlockOrigin, places: Sequence[int], t: float, stderr: float
) -> BlockOrigin:
    """The block with weights 1 − t and t, and the arc's residual."""
    a, b = places
    rss = 0.0
    for gram in facts.grams:
        omega = math.acos(float(np.clip(cosines(gram)[a + 1, b + 1], -1.0, 1.0)))
        v = np.zeros(len(gram))
        v[a + 1], v[b + 1] = (math.sin(part * omega) / math.sin(omega) if omega else part for part in (1 - t, t))
        v[0] = v.sum() - 1.0  # Σ v·source − c = Σ v·y + (Σv − 1)·c
        rss += max(0.0, float(v @ gram @ v))
    weights, error = np.zeros(len(facts.kept)), np.zeros(len(facts.kept))
    weights[[a, b]], error[[a, b]] = (1.0 - t, t), stderr
    return _refitted(study, facts, origin, Fit(weights, 0.0, rss, error), {"t": t})


def _relatives(mixed: Sequence[BlockFacts], sources: Sequence[int]) -> list[int]:
    """Candidates related to the first source, that one among them, over the mixed blocks."""
    everywhere = sorted(set.intersection(*({*each.kept} for each in mixed)))
    places = [[each.kept.index(k) for k in everywhere] for each in mixed]
    rows = [[0, *(p + 1 for p in place)] for place in places]
    centred = sum(each.centred[np.ix_(row, row)] for each, row in zip(mixed, rows, strict=True))
    related = related_blocks(np.asarray(centred))[everywhere.index(sources[0])]
    return [k for i, k in enumerate(everywhere) if k == sources[0] or related[i]]


def _pooled(mixed: Sequence[BlockFacts], among: Sequence[int]) -> np.ndarray:
    """The Gram matrix of child and candidates `among` over several blocks."""
    total = np.zeros((len(among) + 1,) * 2)
    for each in mixed:
        rows = [0, *(each.kept.index(k) + 1 for k in among)]
        total += each.gram[np.ix_(rows, rows)]
    return total


def _around(
    study: LayerReadings,
    facts: Sequence[BlockFacts],
    mixed: Sequence[BlockFacts],
    origins: Sequence[BlockOrigin],
    kin: Sequence[int],
) -> _Found | None:
    """Task arithmetic: the sources' deltas from a base they all came from, which has a weight of its own."""
    gram = _pooled(mixed, kin)
    everyone = range(len(kin))
    signed = task_arithmetic(gram, 0, everyone)  # of any sign, summing to 1: the same whatever base
    base, crossing = most_central(gram, everyone)
    lowest = int(np.argmin(signed.weights))
    if signed.weights[lowest] < -BARELY and signed.rss <= APART * simplex(gram, everyone, unknown=False).rss:
        base = lowest
    elif signed.weights[base] <= BARELY or crossing > CROSSING:
        return None
    used = [k for k in everyone if k == base or abs(signed.weights[k]) > BARELY]
    refitted = list(origins)
    for each in facts:
        origin = origins[each.position]
        if origin.parent and {kin[k] for k in used} <= {*each.kept}:
            found = _by_deltas(study, each, origin, kin[base], [kin[k] for k in used])
            refitted[each.position] = min(found, origin, key=lambda o: o.residual or 0.0)
    ref = study.refs[kin[base]]
    told = [
        {"ref": study.refs[kin[k]], "weight": float(signed.weights[k]), "stderr": _stderr(mixed, kin, base, used, k)}
        for k in used if k != base
    ]  # fmt: skip
    same = "; a weighted sum that includes it is the same" if signed.weights[base] > 0 else ""
    why = (
        f"the deltas of {' and '.join(str(delta['ref']) for delta in told)} from {ref} add up with weights whose sum "
        f"is {1 - signed.weights[base]:.3f}{same}"
    )
    return "task_arithmetic", tuple(refitted), {"task_arithmetic": {"base": ref, "deltas": told}}, (why,)


def _by_deltas(
    study: LayerReadings, facts: BlockFacts, origin: BlockOrigin, base: int, used: Sequence[int]
) -> BlockOrigin:
    places = [facts.kept.index(k) for k in used if k in facts.kept]
    fit = with_stderr(
        functools.partial(task_arithmetic, base=facts.kept.index(base), among=places), facts.grams, facts.counts
    )
    return _refitted(study, facts, origin, fit, {})


def _stderr(mixed: Sequence[BlockFacts], kin: Sequence[int], base: int, used: Sequence[int], k: int) -> float:
    """Of one delta's weight, from its spread over blocks."""
    each = [task_arithmetic(_pooled([one], kin), base, used).weights[k] for one in mixed]
    return _spread(each)


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _refitted(
    study: LayerReadings, facts: BlockFacts, origin: BlockOrigin, fit: Fit, extra: dict[str, Any]
) -> BlockOrigin:
    mixture = mixture_shares(study, facts, fit)
    top = mixture[0]
    return replace(
        origin, kind="mixture", parent=top.ref, parent_block=top.block, probability=None,
        mixture=mixture, unknown=fit.unknown, residual=relative_residual(fit, facts), facts={**origin.facts, **extra},
    )  # fmt: skip


# ---- TIES and DARE


def _sparse(study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]) -> _Found | None:
    """TIES or DARE around one of the candidates, if what is in memory shows their traces."""
    blocks = [
        each for each in facts
        if origins[each.position].index is not None and each.kept
        and origins[each.position].kind in ("tuned", "mixture")
    ]  # fmt: skip
    if not blocks:
        return None
    kin = _relatives(blocks, [study.refs.index(str(origins[blocks[0].position].parent))])
    if len(kin) < 2:
        return None
    weights = task_arithmetic(_pooled(blocks, kin), 0, range(len(kin))).weights
    found: list[tuple[SparseMerge, int, list[int]]] = []
    for base in range(len(kin)):
        used = [k for k in range(len(kin)) if k != base]
        seen = _traces(study, blocks, kin[base], [kin[k] for k in used], weights[used], sure=False)
        if seen:  # without those that no entry follows
            used = [k for k, share in zip(used, seen.alone, strict=True) if share >= FOLLOWED]
            seen = _traces(study, blocks, kin[base], [kin[k] for k in used], weights[used])
        if seen:
            found.append((seen, base, used))
    if not found:
        return None
    # the base is the one from which the entries are rebuilt best
    seen, base, used = min(found, key=lambda item: item[0].residual)
    return _as_sparse(study, facts, origins, kin[base], [kin[k] for k in used], seen)


def _traces(
    study: LayerReadings,
    blocks: Sequence[BlockFacts],
    base: int,
    sources: Sequence[int],
    weights: np.ndarray,
    sure: bool = True,
) -> SparseMerge | None:
    units = study.readings.units
    names = [name for each in blocks for name in each.names if name in units and {base, *sources} <= {*each.kept}]

    def matrices(model: int) -> list[Any]:
        return [units.matrix(model, name) for name in names]

    dtypes = [study.child[name].dtype for name in names]
    return sparse_merge(
        matrices(0), matrices(base + 1), [matrices(k + 1) for k in sources], list(weights), dtypes, sure=sure
    )


def _as_sparse(
    study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin], base: int,
    sources: Sequence[int], found: SparseMerge,
) -> _Found:  # fmt: skip
    """Every block that shows the same traces gets their weights; the model's error is their spread over blocks."""
    refitted = list(origins)
    own = {
        each.position: seen for each in facts
        if each.kept and (seen := _traces(study, [each], base, sources, np.array(found.weights)))
        and seen.method == found.method
    }  # fmt: skip
    error = [_spread(column) for column in zip(*(seen.weights for seen in own.values()), strict=True)]
    error = error or [0.0] * len(sources)
    for place, seen in own.items():
        if not all(seen.weights):  # too few entries here to follow every source
            seen = replace(seen, weights=found.weights, density=found.density)
        each_error = np.array(error) * math.sqrt(len(own))
        refitted[place] = _with_traces(study, facts[place], origins[place], base, sources, seen, each_error)
    told = [
        {"ref": study.refs[k], "weight": weight * found.scale, "stderr": stderr, "density": density}
        for k, weight, stderr, density in zip(sources, found.weights, error, found.density, strict=True)
    ]
    rule = "had the small deltas" if found.method == "ties" else "were chosen regardless of size"
    why = (
        f"{100 * found.zeros:.1f} % of the entries are still those of {study.refs[base]} where a weighted sum would "
        f"have moved them, and {rule} (chance that one was smaller: {found.smaller:.2f}); "
        f"up to {100 * max(found.alone):.0f} % of the others follow one candidate alone"
    )
    about: dict[str, Any] = {"base": study.refs[base], "deltas": told}
    if found.method == "ties":
        about["lambda"] = found.scale
    return found.method, tuple(refitted), {found.method: about, "resynthesis": found.residual}, (why,)


def _with_traces(
    study: LayerReadings,
    facts: BlockFacts,
    origin: BlockOrigin,
    base: int,
    sources: Sequence[int],
    found: SparseMerge,
    stderr: np.ndarray,
) -> BlockOrigin:
    """Weights of the deltas, with the spread of the blocks; what they lack to 1 is the base's."""
    weights, error = np.zeros(len(facts.kept)), np.zeros(len(facts.kept))
    places = [facts.kept.index(k) for k in sources]
    weights[places], error[places] = np.array(found.weights) * found.scale, stderr
    error[facts.kept.index(base)] = float(np.linalg.norm(stderr))
    rest = 1.0 - float(weights.sum())
    weights[facts.kept.index(base)] = rest if abs(rest) > BARELY else 0.0
    fit = Fit(weights, 0.0, found.residual**2 * facts.size, error)
    return _refitted(study, facts, origin, fit, {"density": list(found.density)})


# ---- the whole


def _whole(
    study: LayerReadings, facts: Sequence[BlockFacts], origins: Sequence[BlockOrigin]
) -> tuple[tuple[Share, ...], float | None, float | None]:
    """The model's shares: those of its stem and blocks, weighted by their size; standard errors from the spread over
    blocks where all are mixtures; and the residual over what was compared."""
    sizes = {
        each.position: sum(study.child[name].count for name in study.blocks[each.position].tensors.values())
        for each in facts if study.blocks[each.position].path != "head"
    }  # fmt: skip
    total = sum(sizes.values())
    if not total:
        return (), None, None
    weights: dict[str, float] = {}
    error: dict[str, float] = {}
    each_block: dict[str, list[float]] = {}
    for place, size in sizes.items():
        for share in origins[place].mixture:
            weights[share.ref] = weights.get(share.ref, 0.0) + size * share.weight / total
            error[share.ref] = error.get(share.ref, 0.0) + size * share.stderr / total  # drift is common to all blocks
            each_block.setdefault(share.ref, []).append(share.weight)
    mixed = all(origins[place].kind == "mixture" for place in sizes if origins[place].index is not None)
    mixture = tuple(
        Share(ref, "", weight, max(error[ref], _spread(each_block[ref]) if mixed else 0.0))
        for ref, weight in sorted(weights.items(), key=lambda item: -item[1])
    )
    square = left = 0.0
    for place in sizes:
        rest, own = origins[place].residual, facts[place].size
        square += own
        left += own * (1.0 if rest is None else rest**2)  # a block from nobody is all unexplained
    unknown = 1.0 - sum(weights.values())
    return mixture, max(0.0, unknown) if abs(unknown) > 1e-9 else 0.0, math.sqrt(left / square) if square > 0 else None
