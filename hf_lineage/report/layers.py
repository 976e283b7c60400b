"""A `LayerLineage` as text: a table, and Markdown. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ..answers.layers import BlockOrigin, LayerLineage, Share
from ..answers.refs import printable
from .console import WIDTH, Column, labelled, labelled_table
from .console import table as draw_table
from .format import code, count_text, listed_text, p_text
from .sentences import Show
from .text import commit_text, cost_text

Row = tuple[BlockOrigin, ...]
COLUMNS = (
    Column("block", name=True), Column("origin", name=True), Column("", name=True), Column("share", right=True),
    Column("left", right=True), Column("p-value", right=True), Column("kind"),
)  # fmt: skip
MERGES = {
    "multislerp": "multislerp (on the sphere)", "nuslerp": "nuslerp (on the sphere)", "karcher": "Karcher's mean",
    "model_stock": "model stock", "dare_ties": "DARE with TIES", "della": "DELLA", "della_linear": "linear DELLA",
    "breadcrumbs": "breadcrumbs", "breadcrumbs_ties": "breadcrumbs with TIES", "sce": "SCE", "ram": "RAM",
    "ramplus_tl": "RAM+", "nearswap": "nearswap", "arcee_fusion": "Arcee fusion",
}  # fmt: skip
UNKNOWN = "(unknown)"
SHOWN = 0.005  # a share below it is not shown
ROUNDED = 1e-5  # of the norm: less is rounding of float32
SUMS = ("linear", "slerp", "task_arithmetic")  # of which what is left was done afterwards: of others masks are guessed
VARIES = 0.02  # a slerp's t that differs by more between blocks is given as a range
NO_ORIGIN = {"none": "(none of these)", "undecided": "(undecided)"}
FROM_DELTAS = {
    "task_arithmetic": ("changes", "task arithmetic"),
    "ties": ("changes, trimmed where they are small or disagree in sign,", "TIES"),
    "dare": ("changes, thinned at random,", "DARE"),
}


def table(layers: LayerLineage, width: int = WIDTH) -> str:
    """The whole answer in at most `width` columns; consecutive blocks whose lines would read the same share one."""
    lines = [
        *labelled("child    ", commit_text(layers.child), width),
        *labelled("made     ", sentence(layers), width),
        *(labelled("redone   ", redone_text(layers), width) if layers.redone else []),
        *_mixture(layers, width),
        "",
    ]
    cells = [cell for row in fold(layers) for cell in _cells(layers, row)]
    if cells:
        share = "match" if "weights" not in layers.evidence else "share"
        heads = [column._replace(head=share) if column.head == "share" else column for column in COLUMNS]
        used = [i for i in range(len(heads)) if heads[i].head or any(cell[i] for cell in cells)]
        lines += draw_table([heads[i] for i in used], [[cell[i] for i in used] for cell in cells], width)
    lines.append("")
    for head, texts in (("because  ", layers.reasons), ("note     ", layers.notes)):
        for text in texts:
            lines += labelled(head, printable(text), width)
    return "\n".join([*lines, cost_text(layers)])


def markdown(layers: LayerLineage) -> str:
    """Heading, sentence, table, reasons and notes as Markdown; every foreign name is escaped."""
    rows = ["| block | origin | share | left | p-value | kind |", "|---|---|---:|---:|---:|---|"]
    for row in fold(layers):
        for block, origin, where, share, left, p, kind in _cells(layers, row):
            foreign = origin if origin in (UNKNOWN, "-", *NO_ORIGIN.values()) else code(origin)
            moved = f" ← {code(where.removeprefix('<- '))}" if where else ""
            rows.append(f"| {code(block) if block else ''} | {foreign}{moved} | {share} | {left} | {p} | {kind} |")
    shares = [f"- {code(s.ref)}: {_weight(s)} of the whole model" for s in layers.mixture if len(layers.mixture) > 1]
    if shares and (layers.unknown or 0.0) >= SHOWN:
        shares.append(f"- unknown: {layers.unknown:.3f} of the whole model")
    notes = [f"- {code(text)}" for text in (*layers.reasons, *layers.notes)]
    head = [f"## Layers of {code(layers.child.name)}", "", sentence(layers, code), ""]
    head += [redone_text(layers), ""] if layers.redone else []
    return "\n".join([*head, *rows, "", *shares, *notes]) + "\n"


def sentence(layers: LayerLineage, show: Show | None = None) -> str:
    """How the child was made, in plain words; `show` writes a foreign name."""
    name = show or printable
    left = unexplained(layers) if any(block.parent for block in layers.blocks) else None
    if left is None:
        return _made(layers, name)
    if layers.method in SUMS and left > ROUNDED:
        return f"{_made(layers, name)} Tuned or rounded afterwards, by {percent(left)} of its norm."
    return f"{_made(layers, name)} That leaves {percent(left)} of the norm unexplained."


def unexplained(layers: LayerLineage) -> float | None:
    """The share of the child's norm that is left when it is made again: by its method, or by weighted sums."""
    found = layers.facts.get("resynthesis")
    left = layers.residual if found is None else found
    return left if left is not None and math.isfinite(left) else None


def percent(share: float) -> str:
    """A share of the norm; what is below it is rounding.

    >>> percent(0.0123), percent(3e-8)
    ('1.2 %', 'less than 0.001 %')
    """
    figure = f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"
    return f"{figure} %" if share >= 1e-5 else "less than 0.001 %"


def fold(layers: LayerLineage) -> list[Row]:
    """Consecutive blocks with one kind, one shift and shares that read the same, together."""

    def says(item: tuple[int, BlockOrigin]) -> tuple[Any, ...]:
        place, block = item
        shares = [(s.ref, _position(layers, s) - place, _share(s.weight)) for s in sources(layers, block)]
        alone = block.block if block.index is None else ""
        tested = block.log10_p is not None
        return alone, block.kind, block.moved, shares, _share(block.unknown or 0.0), tested

    numbered = [(sum(b.index is not None for b in layers.blocks[:i]), b) for i, b in enumerate(layers.blocks)]
    return [tuple(block for _, block in group) for _, group in groupby(numbered, says)]


def sources(layers: LayerLineage, block: BlockOrigin) -> tuple[Share, ...]:
    """Every candidate's part in a block; of features alone the part is the probability."""
    if block.mixture:
        return tuple(sorted(block.mixture, key=lambda share: -share.weight))
    if block.parent is None:
        return ()
    by_features = "weights" not in layers.evidence and block.probability is not None
    weight = block.probability if by_features else 1.0 - (block.unknown or 0.0)
    return (Share(block.parent, block.parent_block or "", float(weight or 0.0), 0.0),)


def inner(layers: LayerLineage, ref: str) -> tuple[str, ...]:
    """The paths of a candidate's blocks in order, without its stem and head."""
    return tuple(path for path in layers.places.get(ref, ()) if path not in ("stem", "head"))


def number(path: str) -> str:
    """The number a block is known by in its model, or its whole path where that has several.

    >>> number("model.layers.7"), number("layer2.0")
    ('7', 'layer2.0')
    """
    found = re.fullmatch(r"\D*?([0-9]+)", path)
    return found[1] if found else path


def _made(layers: LayerLineage, name: Show) -> str:
    """How the model was made, by the method that was found."""
    blocks = [b for b in layers.blocks if b.index is not None] or list(layers.blocks)
    if not layers.candidates:
        return "Undecided: no candidate has a block to compare with it."
    match layers.method:
        case "single":
            ref = next((b.parent for b in blocks if b.parent), layers.candidates[0])
            return f"All {count_text(len(blocks), 'block')} come from {name(ref)}, {_kinds(blocks)}."
        case "passthrough":
            return f"Put together from whole blocks (passthrough): {_parents(blocks, name)}."
        case "linear":
            return f"An average of weights (linear): {_average(layers, name)}."
        case "merge":
            shares = listed_text([f"{s.weight:.2g} {name(s.ref)}" for s in layers.mixture])
            return f"A merge, by a method that does not show: {shares}, and {layers.unknown or 0.0:.2g} unknown."
        case "slerp" if "slerp" in layers.facts:
            return _slerp(layers.facts["slerp"], blocks, name)
        case str(method) if method in FROM_DELTAS and method in layers.facts:
            return _deltas(layers.facts[method], *FROM_DELTAS[method], name)
        case str() if "merge" in layers.facts and layers.method != "mixed":
            return _merged(layers.facts["merge"], name)
        case str(method):
            return f"Put together in several ways ({method.replace('_', ' ')}): {_kinds(blocks)}."
    if "weights" not in layers.evidence:
        kinds = " and ".join(layers.evidence)
        return f"By {kinds} alone, which name the nearest candidate and no origin: {_parents(blocks, name)}."
    if all(block.kind == "none" for block in blocks):
        many = count_text(len(blocks), "block")
        return f"None of its {many} shows an origin in the {len(layers.candidates)} compared."
    return f"How it was made does not show: {_kinds(blocks)}."


def _average(layers: LayerLineage, name: Show) -> str:
    """The shares of the recipe, where there is one of plain numbers, and what else stem and head are; else of the
    whole."""
    models = layers.facts.get("merge", {}).get("models", ())
    total = sum(model["weight"] for model in models if isinstance(model.get("weight"), float))
    if not total or not all(isinstance(model.get("weight"), float) for model in models):
        return listed_text([f"{s.weight:.3g} {name(s.ref)}" for s in layers.mixture])
    shares = sorted(((model["weight"] / total, model["ref"]) for model in models), key=lambda each: -each[0])
    said = listed_text([f"{share:.3g} {name(ref)}" for share, ref in shares])
    for block in layers.blocks:
        if block.index is None and block.kind in ("equal", "none") and "same" not in block.facts:
            said += f"; its {block.block} is {name(block.parent) if block.parent else 'from none of them'}"
    return said


def _slerp(about: Mapping[str, Any], blocks: Sequence[BlockOrigin], name: Show) -> str:
    by_block = [block.facts["t"] for block in blocks if "t" in block.facts]
    t = f"t = {about['t']:.3g} ± {about.get('stderr', 0.0):.1g}"
    if by_block and max(by_block) - min(by_block) > VARIES:
        t = f"t from {min(by_block):.2f} to {max(by_block):.2f} by block"
    return f"Interpolated on the sphere (slerp) from {name(about['base'])} to {name(about['other'])}, {t}."


def _deltas(about: Mapping[str, Any], what: str, called: str, name: Show) -> str:
    """A base to which changes were added. `what`: the changes in words; `called`: the name of the method."""
    deltas = listed_text([f"{delta['weight']:.3g} {name(delta['ref'])}" for delta in about["deltas"]])
    return f"{name(about['base'])}, to which {what} were added ({called}): {deltas}."


def _merged(about: Mapping[str, Any], name: Show) -> str:
    """A method with its models, and their weights where it has any."""
    if about["method"] == "slerp":
        where = f"from {name(about['base'])} to {name(about['models'][0]['ref'])}"
        return f"Interpolated on the sphere (slerp) {where}, {_setting('t', about['parameters']['t'])}."
    models = [
        f"{m['weight']:.3g} {name(m['ref'])}" if isinstance(m.get("weight"), float) else name(m["ref"])
        for m in about["models"]
    ]
    around = f" around {name(about['base'])}" if about["base"] else ""
    return f"Merged by {MERGES.get(about['method'], about['method'])}{around}: {listed_text(models)}."


def _setting(name: str, value: Any) -> str:
    """A setting in words: by kind of tensor, and from the first block to the last.

    >>> _setting("t", [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}])
    't = 0.2 to 0.8 in mlp, 0.5 elsewhere'
    """
    if not isinstance(value, list):
        return f"{name} = {value:.3g}"
    if not isinstance(value[0], Mapping):
        return f"{name} = {_range(value)} over the blocks"
    kinds = [f"{_range(each['value'])} {'in ' + each['filter'] if 'filter' in each else 'elsewhere'}" for each in value]
    return f"{name} = {', '.join(kinds)}"


def _range(value: Any) -> str:
    return " to ".join(f"{each:.3g}" for each in (value if isinstance(value, list) else [value]))


def redone_text(layers: LayerLineage) -> str:
    """How many tensors the recipe makes again; "" where that was not asked for, or there is no recipe."""
    redone = layers.redone
    if redone is None:
        return ""
    told = f"Made again by this recipe: {redone.equal} of {count_text(redone.tensors, 'tensor')} equal bit for bit"
    told += f", {redone.close} but for the last bit" if redone.close else ""
    differ = redone.tensors - redone.equal - redone.close
    return told + (f", {differ} not." if differ else ".")


def _mixture(layers: LayerLineage, width: int) -> list[str]:
    """The shares of the whole model, where there are several."""
    if len(layers.mixture) < 2:
        return []
    named = [[printable(s.ref), _weight(s)] for s in sorted(layers.mixture, key=lambda s: -s.weight)]
    if (layers.unknown or 0.0) >= SHOWN:
        named.append([UNKNOWN, f"{layers.unknown:.3f}"])
    return labelled_table("mixture  ", (Column("", name=True), Column("")), named, width)


def _cells(layers: LayerLineage, row: Row) -> Iterator[tuple[str, str, str, str, str, str, str]]:
    """Block, origin, where it stood, share, what is left, p and kind: a line for the block, one for each other source.

    Of a run of blocks the most that is left and the largest p.
    """
    first, last = row[0], row[-1]
    named = label(layers, first.block) + (f" - {label(layers, last.block)}" if len(row) > 1 else "")
    worst = max((b.log10_p for b in row if b.log10_p is not None), default=None)  # of a run, the weakest evidence
    p = p_text(worst)
    unknown = first.unknown or 0.0
    most = max((b.residual for b in row if b.residual is not None), default=0.0)
    left = percent(most).replace(" ", "") if SHOWN <= most < math.inf else ""
    found = [(i, s) for i, s in enumerate(sources(layers, first)) if i == 0 or abs(s.weight) >= SHOWN]
    if not found:
        yield named, NO_ORIGIN.get(first.kind, "-"), "", _share(unknown) if unknown else "", "", p, first.kind
        return
    for place, share in found:
        where = ""
        if first.moved and share.block:
            where = f"<- {number(printable(share.block))}"
            if len(row) > 1:
                where += f" - {number(printable(sources(layers, last)[place].block))}"
        rest = (named, left, p, first.kind) if place == 0 else ("", "", "", "")
        yield rest[0], _called(layers, share.ref), where, _share(share.weight), *rest[1:]
    if unknown >= SHOWN:
        yield "", UNKNOWN, "", _share(unknown), "", "", ""


def _called(layers: LayerLineage, ref: str) -> str:
    """A ref without the folder that all candidates lie in."""
    folders = {other.rpartition("/")[0] for other in layers.candidates}
    alone = len(folders) == 1 and len(layers.candidates) > 1 and ref[:1] in ("/", ".", "~")
    return printable(ref.rpartition("/")[2] if alone else ref)


def label(layers: LayerLineage, path: str) -> str:
    """What a block of the child is called beside the others."""
    return tail([b.block for b in layers.blocks if b.index is not None], path)


def tail(paths: Sequence[str], path: str) -> str:
    """A path without the leading names that all of `paths` have, but for the last of those."""
    split = [p.split(".")[:-1] for p in paths]
    common = 0
    while path in paths and all(len(p) > common and p[common] == split[0][common] for p in split):
        common += 1
    return printable(".".join(path.split(".")[max(0, common - 1) :]))


def _position(layers: LayerLineage, share: Share) -> int:
    there = inner(layers, share.ref)
    return there.index(share.block) if share.block in there else -1


def _kinds(blocks: list[BlockOrigin]) -> str:
    words = {"equal": "unchanged", "mixture": "a mixture", "none": "from none of them", "undecided": "undecided"}
    counts = Counter(block.kind for block in blocks)
    return listed_text([f"{count} {words.get(kind, kind)}" for kind, count in counts.most_common()])


def _parents(blocks: list[BlockOrigin], name: Show) -> str:
    counts = Counter(block.parent for block in blocks if block.parent is not None)
    parts = [f"{count} of {name(ref)}" for ref, count in counts.most_common()]
    moved, lost = sum(block.moved for block in blocks), sum(block.parent is None for block in blocks)
    parts += [f"{lost} from none of them"] if lost else []
    return listed_text(parts) + (f"; {moved} at another position there" if moved else "")


def _share(weight: float) -> str:
    return f"{weight:.2f}" if math.isfinite(weight) else "-"


def _weight(share: Share) -> str:
    return f"{share.weight:.3f}" + (f" ± {share.stderr:.3f}" if share.stderr > 0 else "")
