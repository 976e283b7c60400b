"""A `LayerLineage` as a mergekit recipe (https://github.com/arcee-ai/mergekit): its file format, none of its code.

The body is dumped by yaml, which quotes untrusted names; comments are one line each and hold cleaned names only.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..answers.layers import BlockOrigin, LayerLineage
from ..answers.refs import printable
from .layers import SHOWN, inner, number, percent, redone_text, sources, unexplained

DTYPES = frozenset({"float16", "bfloat16", "float32"})
SPARSE = frozenset({"ties", "dare_linear"})
DELTAS = {"task_arithmetic": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}
ENDS = {"stem": ("stem (embeddings)", "first"), "head": ("head", "last")}
LIMIT, ERRORS = 0.01, 3.0  # weights that differ by less, or by less than so many standard errors, are one weight


@dataclass(frozen=True, slots=True)
class Source:
    """A candidate's layer in one layer of the child."""

    ref: str
    layer: int
    weight: float = 1.0
    stderr: float = 0.0


Layer = tuple[Source, ...]


def recipe(layers: LayerLineage) -> str:
    """The YAML, with comments that say what it rests on and what it cannot make."""
    blocks = [block for block in layers.blocks if block.index is not None]
    method = _method(layers, blocks)
    made = [layer for block in blocks if (layer := _layer(layers, block, method))]
    notes = [*_origin(layers), *_ends(layers), *_lost(layers, blocks, method), *_names(layers)]
    if made and len(made[0]) < len(made[-1]):
        notes.append("The last slice has more models than the first: mergekit 0.1 makes the head from too few of them.")
    if not made:
        notes.append("No block has an origin to write down: mergekit will refuse this file.")
    comments = [
        line for text in notes for line in textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="#   ")
    ]
    pinned = _pinned(_remade(layers) or _body(layers, method, made), layers.revisions)
    body = yaml.safe_dump(pinned, sort_keys=False, default_flow_style=None, width=10_000)
    return "\n".join([*comments, body])


def _method(layers: LayerLineage, blocks: Sequence[BlockOrigin]) -> str:
    """mergekit's name: a file has one method, so blocks that were made in different ways become weighted averages."""
    if layers.method in ("single", "passthrough"):
        return "passthrough"
    if layers.method in ("slerp", *DELTAS) and layers.method in layers.facts:
        return "slerp" if layers.method == "slerp" else DELTAS[layers.method]
    return "linear" if layers.method or any(len(b.mixture) > 1 for b in blocks) else "passthrough"


def _body(layers: LayerLineage, method: str, made: Sequence[Layer]) -> dict[str, Any]:
    facts = layers.facts.get("dare" if method == "dare_linear" else method, {})
    body: dict[str, Any] = {"merge_method": method}
    if "base" in facts:
        body["base_model"] = _model(facts["base"])
    runs = list(_runs(made))
    whole = method != "passthrough" and len(runs) == 1 and _is_whole(layers, runs[0])
    shared: dict[str, Any] = {}
    if method in SPARSE or (method == "task_arithmetic" and whole):
        body["models"] = [_delta(delta) for delta in facts["deltas"]]
    elif whole:
        body["models"] = [_source(runs[0], i, method, whole) for i in range(len(runs[0][0]))]
        shared = {"t": _round(_mean(runs[0], 1))} if method == "slerp" else {}
    else:
        body["slices"] = [_slice(run, method) for run in runs]
    if method == "ties":  # mergekit's default, written all the same: only the ratio of its weights counts
        shared["normalize"] = facts.get("normalize", True)
    if "lambda" in facts:
        shared["lambda"] = _round(facts["lambda"])
    body |= {"parameters": shared} if shared else {}
    dtype = layers.facts.get("dtype")
    return body | ({"dtype": dtype} if dtype in DTYPES else {})


def _remade(layers: LayerLineage) -> dict[str, Any]:
    """The recipe that makes the child again, of whole models; empty where there is none, or blocks have moved."""
    about = layers.facts.get("merge")
    traced = layers.facts.get("dare") if about and about["method"] == "dare_linear" else None  # of more rows: surer
    if not about or traced or any(block.moved or _is_lost(block) for block in layers.blocks if block.index is not None):
        return {}
    body: dict[str, Any] = {"merge_method": about["method"]}
    if about["base"]:
        body["base_model"] = _model(about["base"])
    body["models"] = []
    for model in about["models"]:
        parameters = {key: _number(value) for key, value in model.items() if key != "ref"}
        body["models"].append({"model": _model(model["ref"]), **({"parameters": parameters} if parameters else {})})
    shared = {key: _number(value) for key, value in about["parameters"].items()}
    body |= {"parameters": shared} if shared else {}
    stored = layers.facts.get("dtype")
    computed = about["dtype"] if about["dtype"] in DTYPES else stored
    body |= {"dtype": computed} if computed in DTYPES else {}
    return body | ({"out_dtype": stored} if stored in DTYPES and stored != computed else {})


def _number(value: Any) -> Any:
    """A number that was rounded as its author may have is kept as it is; another one to four digits."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    if isinstance(value, dict):
        return {key: _number(each) for key, each in value.items()}
    return value if isinstance(value, bool | int | str) or value is None or len(repr(value)) < 8 else _exactly(value)


def _exactly(value: float) -> float:
    third = round(value * 3) / 3
    return value if value == third else round(float(f"{value:.4g}"), 6)


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    parameters = {key: _round(delta[key]) for key in ("weight", "density") if delta.get(key) is not None}
    return {"model": _model(delta["ref"]), "parameters": parameters}


def _slice(run: Sequence[Layer], method: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"sources": [_source(run, i, method, whole=False) for i in range(len(run[0]))]}
    if method == "slerp":
        entry["parameters"] = {"t": _round(_mean(run, 1))}
    return entry


def _source(run: Sequence[Layer], place: int, method: str, whole: bool) -> dict[str, Any]:
    first = run[0][place]
    entry: dict[str, Any] = {"model": _model(first.ref)}
    if not whole:
        entry["layer_range"] = [first.layer, first.layer + len(run)]
    if method == "linear" or (method == "task_arithmetic" and place > 0):  # the first is the base
        entry["parameters"] = {"weight": _round(_mean(run, place))}
    return entry


def _layer(layers: LayerLineage, block: BlockOrigin, method: str) -> Layer:
    """What a layer of the recipe takes for this block: nothing where there is nothing to take."""
    found = tuple(Source(s.ref, _place(layers, s.ref, s.block), s.weight, s.stderr) for s in sources(layers, block))
    if method in WITH_BASE:
        return WITH_BASE[method](layers, block, () if _is_lost(block) else found)
    if _is_lost(block):
        found = found[:1] or tuple(filter(None, [_nearest(layers, block)]))
    if method == "passthrough":
        return found[:1]
    largest = {source.ref: source for source in reversed(found)}  # mergekit takes one block of each model
    mixed = tuple(largest[ref] for ref in sorted(largest, key=_order(layers)))
    return mixed if len(mixed) > 1 else tuple(replace(source, weight=1.0, stderr=0.0) for source in mixed)


def _pair(layers: LayerLineage, block: BlockOrigin, found: Layer) -> Layer:
    """The two ends of a slerp; the weight of the second is t. A block of one end alone has t = 0 or 1."""
    about = layers.facts["slerp"]
    here = _index(block, [b for b in layers.blocks if b.index is not None])
    at = {source.ref: source.layer for source in found}
    t = block.facts.get("t", about["t"])
    stderr = next((source.stderr for source in found if source.ref == about["other"]), about.get("stderr", 0.0))
    if "t" not in block.facts and block.kind in ("equal", "tuned") and found:
        t = {about["base"]: 0.0, about["other"]: 1.0}.get(found[0].ref, t)
    ends = (Source(about["base"], at.get(about["base"], here)), Source(about["other"], at.get(about["other"], here)))
    return ends[0], replace(ends[1], weight=float(t), stderr=float(stderr))


def _added(layers: LayerLineage, block: BlockOrigin, found: Layer) -> Layer:
    """The base, and what this block has of every delta."""
    about = layers.facts["task_arithmetic"]
    here = _index(block, [b for b in layers.blocks if b.index is not None])
    at = {source.ref: source for source in found}
    base = at.get(about["base"], Source(about["base"], here))
    usual = [Source(delta["ref"], here, 0.0 if found else delta["weight"]) for delta in about["deltas"]]
    added = [at.get(source.ref, source) for source in usual]
    return replace(base, weight=0.0, stderr=0.0), *added


WITH_BASE = {"slerp": _pair, "task_arithmetic": _added}


def _nearest(layers: LayerLineage, block: BlockOrigin) -> Source | None:
    """The block of the best score, of whichever candidate."""
    row = _index(block, layers.blocks)
    scores = {
        (ref, path): float(score)
        for ref in layers.candidates
        for path, score in zip(layers.places[ref], layers.scores[ref][row], strict=True)
        if not math.isnan(score) and path in inner(layers, ref)
    }
    if not scores:
        return None
    ref, path = max(scores, key=lambda key: scores[key])
    return Source(ref, _place(layers, ref, path))


def _runs(made: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Consecutive layers that take consecutive layers of the same models with the same weights."""
    run: list[Layer] = []
    for layer in made:
        if run and not _continues(run, layer):
            yield run
            run = []
        run.append(layer)
    if run:
        yield run


def _continues(run: Sequence[Layer], layer: Layer) -> bool:
    before = run[0]
    if [(s.ref, s.layer + len(run)) for s in before] != [(s.ref, s.layer) for s in layer]:
        return False
    return all(
        abs(a.weight - b.weight) <= max(LIMIT, ERRORS * math.hypot(_finite(a.stderr), _finite(b.stderr)))
        for a, b in zip(before, layer, strict=True)
    )


def _is_whole(layers: LayerLineage, run: Sequence[Layer]) -> bool:
    """Whether a run takes all layers of each of its models, in place."""
    return all(s.layer == 0 and len(inner(layers, s.ref)) == len(run) for s in run[0])


def _place(layers: LayerLineage, ref: str, path: str) -> int:
    """The number of a block, or its place in its model where blocks have no plain numbers."""
    there = inner(layers, ref)
    if number(path).isdigit() and _is_plain(there):
        return int(number(path))
    return there.index(path) if path in there else 0


def _is_plain(paths: Sequence[str]) -> bool:
    """Whether all blocks stand in one numbered list, as mergekit's layers do."""
    numbers = [number(path) for path in paths]
    starts = {path.removesuffix(digits) for path, digits in zip(paths, numbers, strict=True)}
    return len(starts) <= 1 and all(n.isdigit() for n in numbers)


def _mean(run: Sequence[Layer], place: int) -> float:
    return sum(layer[place].weight for layer in run) / len(run)


def _model(ref: str) -> Any:
    """A reference as mergekit reads it; `+` and `@` in a path would be taken for an adapter and a revision."""
    return {"model": {"path": ref}} if ref[:1] in (".", "/", "~") and re.search(r"[+@]", ref) else ref


def _pinned(value: Any, revisions: Mapping[str, str | None]) -> Any:
    """Every model with the commit that was looked at."""
    if isinstance(value, dict):
        return {
            key: f"{part}@{revisions[part]}" if _is_pinned(key, part, revisions) else _pinned(part, revisions)
            for key, part in value.items()
        }
    return [_pinned(part, revisions) for part in value] if isinstance(value, list) else value


def _is_pinned(key: str, part: Any, revisions: Mapping[str, str | None]) -> bool:
    return key in ("model", "base_model") and isinstance(part, str) and bool(revisions.get(part))


def _origin(layers: LayerLineage) -> Iterator[str]:
    yield f"{printable(layers.child.name)} as a mergekit recipe, reconstructed from its weights by hf_lineage."
    if layers.method is None:
        yield "How it was made does not show: this is the simplest recipe of its blocks, and not the author's file."
    elif layers.method == "merge":
        yield "It is a merge; its method does not show, and this is the weighted average that comes nearest."
    else:
        yield f"Method: {layers.method.replace('_', ' ')}, as the weights tell; this is not the author's file."
    yield "Block numbers are mergekit's layers, from 0; a range ends before its second number."
    left = unexplained(layers)
    if left is not None:
        yield f"These numbers leave {percent(left)} of the child's norm unexplained."
    if layers.redone is not None:
        yield redone_text(layers)
    if "merge" in layers.facts and layers.facts["merge"]["dtype"] not in DTYPES:
        yield f"It was computed in {layers.facts['merge']['dtype']}, which mergekit does not offer."
    if layers.facts.get("merge", {}).get("parameters", {}).get("normalize"):
        yield "Weights are divided by their sum: only their ratio shows."
    if layers.method in ("dare", "dare_ties", "della", "della_linear"):
        yield "The method draws at random which entries it keeps: this makes a sibling of the child, not the child."
    if "weights" not in layers.evidence:
        kinds = " and ".join(layers.evidence)
        yield f"It rests on {kinds} alone: the nearest candidate of each block, which need not be its origin."


def _ends(layers: LayerLineage) -> Iterator[str]:
    """Where stem and head came from: mergekit takes them from the first and last slice, wherever they were."""
    for block in layers.blocks:
        if block.index is None:
            called, where = ENDS.get(block.block, (printable(block.block), "first"))
            parts = [share for share in sources(layers, block) if abs(share.weight) >= SHOWN]
            origins = [f"{s.weight:.2f} {printable(s.ref)}" if len(parts) > 1 else printable(s.ref) for s in parts]
            came = " + ".join(origins) or "none of the candidates"
            yield f"The {called} came from {came}; mergekit takes it from the models of the {where} slice."


def _lost(layers: LayerLineage, blocks: Sequence[BlockOrigin], method: str) -> Iterator[str]:
    """What the recipe cannot make."""
    alike = method == "slerp" or method in DELTAS.values()
    lost: dict[tuple[str, str | None], list[str]] = {}
    for block in filter(_is_lost, blocks):
        layer = _layer(layers, block, method)
        lost.setdefault((block.kind, layer[0].ref if layer else None), []).append(printable(block.block))
    for (kind, ref), names in lost.items():
        which = ", ".join(names if len(names) < 5 else [*names[:2], f"… {names[-1]} ({len(names)} blocks)"])
        why = "could not be decided" if kind == "undecided" else "from none of the candidates"
        instead = "left out" if ref is None else f"what is written here is the nearest, of {printable(ref)}"
        yield f"{which}: {why}. This recipe cannot make that; {'made like the others' if alike else instead}."
    unknown = max((block.unknown or 0.0 for block in blocks if not _is_lost(block)), default=0.0)
    if unknown >= LIMIT:
        yield f"Up to {100 * unknown:.0f} % of a block is explained by none of the candidates, and missing here."
    if any(len({s.ref for s in block.mixture}) < len(block.mixture) for block in blocks):
        yield "Where several blocks of one model were mixed, only the largest is kept: mergekit takes one of each."


def _names(layers: LayerLineage) -> Iterator[str]:
    used = [*(inner(layers, ref) for ref in layers.places), [b.block for b in layers.blocks if b.index is not None]]
    if not all(_is_plain(paths) for paths in used):
        yield "mergekit does not know this architecture: its blocks are not one numbered list. They are counted here."


def _is_lost(block: BlockOrigin) -> bool:
    return block.kind in ("none", "undecided") or not (block.parent or block.mixture)


def _index(block: BlockOrigin, blocks: Sequence[BlockOrigin]) -> int:
    return next(i for i, other in enumerate(blocks) if other is block)


def _order(layers: LayerLineage) -> Callable[[str], int]:
    return lambda ref: layers.candidates.index(ref) if ref in layers.candidates else len(layers.candidates)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _round(value: float) -> float:
    return round(float(value), 4) + 0.0  # no -0.0
