"""A `LayerLineage` as text: a table for 80 columns, and Markdown. Names come from strangers and are cleaned here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ..answers.layers import BlockOrigin, LayerLineage, Share
from ..answers.lineage import Candidate
from ..answers.refs import printable
from .sentences import Show, code, p_text, short, shorten
from .text import WIDTH, _wrap, size_text

Row = tuple[BlockOrigin, ...]
BLOCK, MOVED = 21, 12  # widest columns
UNKNOWN = "(unknown)"
SHOWN = 0.005  # a share below it is not shown
VARIES = 0.02  # a slerp's t that differs by more between blocks is told as a range
NOBODY = {"none": "(none of these)", "undecided": "(not to be told)"}
FROM_DELTAS = {
    "task_arithmetic": ("changes", "task arithmetic"),
    "ties": ("changes, trimmed where they are small or disagree in sign,", "TIES"),
    "dare": ("changes, thinned at random,", "DARE"),
}


def table(layers: LayerLineage) -> str:
    """The whole answer in at most 80 columns; consecutive blocks whose lines would read the same share one."""
    revision = f" @ {layers.child.revision[:10]}" if layers.child.revision else ""
    lines = [
        f"child    {shorten(printable(layers.child.name), WIDTH - 9 - len(revision))}{revision}",
        *_wrap("made     ", sentence(layers)),
        *_mixture(layers),
        "",
    ]
    cells = [cell for row in fold(layers) for cell in _cells(layers, row)]
    if cells:
        share = "match" if "weights" not in layers.evidence else "share"
        cells.insert(0, ("block", "origin", "", share, "left", "p-value", "kind"))
    first, moved = (min(most, max([len(c[i]) for c in cells], default=0)) for i, most in ((0, BLOCK), (2, MOVED)))
    middle = min(max([len(c[1]) for c in cells], default=0), WIDTH - 35 - first - moved)
    for block, origin, where, share, left, p, kind in cells:
        names = (
            f"{shorten(block, first):<{first}}  {shorten(origin, middle):<{middle}} {shorten(where, moved):<{moved}}"
        )
        lines.append(f"  {names} {share:>5} {left:>4} {p:>7}  {kind}".rstrip())
    lines.append("")
    for head, texts in (("because  ", layers.reasons), ("note     ", layers.notes)):
        for text in texts:
            lines += _wrap(head, printable(text))
    lines.append(f"read     {size_text(layers.bytes_read)} in {layers.seconds:.1f} s, seed {layers.seed}")
    return "\n".join(lines)


def markdown(layers: LayerLineage) -> str:
    """Heading, sentence, table, reasons and notes as Markdown; every foreign name is escaped."""
    rows = ["| block | origin | share | left | p-value | kind |", "|---|---|---:|---:|---:|---|"]
    for row in fold(layers):
        for block, origin, where, share, left, p, kind in _cells(layers, row):
            foreign = origin if origin in (UNKNOWN, "-", *NOBODY.values()) else code(origin)
            moved = f" ← {code(where.removeprefix('<- '))}" if where else ""
            rows.append(f"| {code(block) if block else ''} | {foreign}{moved} | {share} | {left} | {p} | {kind} |")
    shares = [f"- {code(s.ref)}: {_weight(s)} of the whole model" for s in layers.mixture if len(layers.mixture) > 1]
    if shares and (layers.unknown or 0.0) >= SHOWN:
        shares.append(f"- unknown: {layers.unknown:.3f} of the whole model")
    remarks = [f"- {code(text)}" for text in (*layers.reasons, *layers.notes)]
    head = [f"## Layers of {code(layers.child.name)}", "", sentence(layers, code), ""]
    return "\n".join([*head, *rows, "", *shares, *remarks]) + "\n"


def sentence(layers: LayerLineage, show: Show | None = None) -> str:
    """How the child was made, in plain words; `show` writes a foreign name."""
    name = show or short
    left = unexplained(layers) if any(block.parent for block in layers.blocks) else None
    return _made(layers, name) + (f" That leaves {percent(left)} of the norm unexplained." if left is not None else "")


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
    told = f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"
    return f"{told} %" if share >= 1e-5 else "less than 0.001 %"


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
    facts, blocks = layers.facts, [b for b in layers.blocks if b.index is not None] or list(layers.blocks)
    if not layers.candidates:
        return "Undecided: no candidate has a block to compare with it."
    if layers.method == "single":
        ref = next((b.parent for b in blocks if b.parent), layers.candidates[0])
        return f"All {_count(len(blocks))} come from {name(ref)}, {_kinds(blocks)}."
    if layers.method == "passthrough":
        return f"Put together from whole blocks (passthrough): {_parents(blocks, name)}."
    if layers.method == "linear":
        return f"An average of weights (linear): {_listed([f'{s.weight:.3g} {name(s.ref)}' for s in layers.mixture])}."
    if layers.method == "slerp" and "slerp" in facts:
        about, by_block = facts["slerp"], [block.facts["t"] for block in blocks if "t" in block.facts]
        t = f"t = {about['t']:.3g} ± {about.get('stderr', 0.0):.1g}"
        if by_block and max(by_block) - min(by_block) > VARIES:
            t = f"t from {min(by_block):.2f} to {max(by_block):.2f} by block"
        return f"Interpolated on the sphere (slerp) from {name(about['base'])} to {name(about['other'])}, {t}."
    if layers.method in FROM_DELTAS and layers.method in facts:
        what, called = FROM_DELTAS[layers.method]
        deltas = [f"{delta['weight']:.3g} {name(delta['ref'])}" for delta in facts[layers.method]["deltas"]]
        return f"{name(facts[layers.method]['base'])}, to which {what} were added ({called}): {_listed(deltas)}."
    if layers.method is not None:
        return f"Put together in several ways ({layers.method.replace('_', ' ')}): {_kinds(blocks)}."
    if "weights" not in layers.evidence:
        kinds = " and ".join(layers.evidence)
        return f"By {kinds} alone, which name the nearest candidate and no origin: {_parents(blocks, name)}."
    if all(block.kind == "none" for block in blocks):
        return f"None of its {_count(len(blocks))} shows an origin in the {len(layers.candidates)} compared."
    return f"How it was made does not show: {_kinds(blocks)}."


def _mixture(layers: LayerLineage) -> Iterator[str]:
    """The shares of the whole model, where there are several."""
    if len(layers.mixture) < 2:
        return
    named = [(shorten(printable(s.ref), 44), _weight(s)) for s in sorted(layers.mixture, key=lambda s: -s.weight)]
    if (layers.unknown or 0.0) >= SHOWN:
        named.append((UNKNOWN, f"{layers.unknown:.3f}"))
    wide = max(len(name) for name, _ in named)
    for place, (name, weight) in enumerate(named):
        yield f"{'mixture  ' if place == 0 else ' ' * 9}{name:<{wide}}  {weight}"


def _cells(layers: LayerLineage, row: Row) -> Iterator[tuple[str, str, str, str, str, str, str]]:
    """Block, origin, where it stood, share, what is left, p and kind: a line for the block, one for each other source.

    Of a run of blocks the most that is left and the largest p.
    """
    first, last = row[0], row[-1]
    label = _label(layers, first.block) + (f" - {_label(layers, last.block)}" if len(row) > 1 else "")
    worst = max((b.log10_p for b in row if b.log10_p is not None), default=None)  # of a run, the weakest evidence
    p = p_text(Candidate("", "", log10_p=worst))
    unknown = first.unknown or 0.0
    most = max((b.residual for b in row if b.residual is not None), default=0.0)
    left = percent(most).replace(" ", "") if SHOWN <= most < math.inf else ""
    found = [(i, s) for i, s in enumerate(sources(layers, first)) if i == 0 or abs(s.weight) >= SHOWN]
    if not found:
        yield label, NOBODY.get(first.kind, "-"), "", _share(unknown) if unknown else "", "", p, first.kind
        return
    for place, share in found:
        where = ""
        if first.moved and share.block:
            where = f"<- {number(printable(share.block))}"
            if len(row) > 1:
                where += f" - {number(printable(sources(layers, last)[place].block))}"
        rest = (label, left, p, first.kind) if place == 0 else ("", "", "", "")
        yield rest[0], _called(layers, share.ref), where, _share(share.weight), *rest[1:]
    if unknown >= SHOWN:
        yield "", UNKNOWN, "", _share(unknown), "", "", ""


def _called(layers: LayerLineage, ref: str) -> str:
    """A ref without the folder that all candidates lie in."""
    folders = {other.rpartition("/")[0] for other in layers.candidates}
    alone = len(folders) == 1 and len(layers.candidates) > 1 and ref[:1] in ("/", ".", "~")
    return printable(ref.rpartition("/")[2] if alone else ref)


def _label(layers: LayerLineage, path: str) -> str:
    return _tail([b.block for b in layers.blocks if b.index is not None], path)


def _tail(paths: Sequence[str], path: str) -> str:
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
    return _listed([f"{count} {words.get(kind, kind)}" for kind, count in counts.most_common()])


def _parents(blocks: list[BlockOrigin], name: Show) -> str:
    counts = Counter(block.parent for block in blocks if block.parent is not None)
    told = [f"{count} of {name(ref)}" for ref, count in counts.most_common()]
    moved, lost = sum(block.moved for block in blocks), sum(block.parent is None for block in blocks)
    told += [f"{lost} from none of them"] if lost else []
    return _listed(told) + (f"; {moved} stood elsewhere there" if moved else "")


def _listed(texts: list[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) or "nothing"


def _count(blocks: int) -> str:
    return f"{blocks} block{'s' if blocks != 1 else ''}"


def _share(weight: float) -> str:
    return f"{weight:.2f}" if math.isfinite(weight) else "-"


def _weight(share: Share) -> str:
    return f"{share.weight:.3f}" + (f" ± {share.stderr:.3f}" if share.stderr > 0 else "")
