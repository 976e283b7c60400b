"""With `tree_plot.py` the home of matplotlib: how near each candidate is, block by block, and how sure that is."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..answers.layers import LayerLineage
from ..answers.lineage import Candidate, Lineage
from ..answers.refs import printable
from ..files import replaced
from .format import folded, prefix_of
from .layers import label, number, sources, tail
from .sentences import candidate_name
from .words import relation_words

PARENT, OTHER, LINE = "#1b6ca8", "#b8c4ce", "#c0392b"
COLOURS = ("#8a6d3b", "#6b8e23", "#9467bd", "#c07f2f", "#7f7f7f", "#d17aa0", "#2ca0a0")
MAX_DRAWN_CANDIDATES, MAX_PROFILE_LINES = 20, 8  # candidates drawn
MADE = {
    None: "how it was made does not show", "single": "all from one model", "mixed": "made in several ways",
    "passthrough": "whole blocks put together (passthrough)", "linear": "an average of weights (linear)",
    "slerp": "interpolated on the sphere (slerp)", "task_arithmetic": "changes added to a base (task arithmetic)",
    "ties": "trimmed changes added to a base (TIES)", "dare": "thinned changes added to a base (DARE)",
    "merge": "a merge, by a method that does not show",
}  # fmt: skip
MISSING = "#e4e4e4"
MAX_TITLE = 120  # characters of a line of a title
MAX_LABEL = 28  # characters of a line of a label; a name that is longer takes several
KINDS = {"attention": "attention", "mlp": "MLP", "norm": "norms", "other": "embeddings"}  # of tensors, as drawn
KIND_WIDTH, MAX_KIND_SOURCES = 0.5, 4  # inches of a column, and sources drawn of each kind
# −log10 p → how often unrelated models agree as much
RARE = {0: "always", 3: "1 in 1,000", 6: "1 in a million", 30: "1 in 10³⁰", 300: "1 in 10³⁰⁰", 3000: "1 in 10³⁰⁰⁰"}
KEY = {
    "equal": "=  every tensor equal", "moved": "from 7  was block 7 there", "none": "hatched  from none of them",
    "undecided": "?  could not be decided",
}  # fmt: skip
PERCENT = {0: "0 %", 0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1: "100 %"}


def plot_lineage(lineage: Lineage, path: str | Path | None = None) -> Figure:
    """Left: how rare such agreement is between unrelated models (−log10 p), for each candidate, against the level α.
    Right: relative change per block, child against candidate."""
    compared = [c for c in lineage.candidates if c.status == "compared"][:MAX_DRAWN_CANDIDATES]
    lines = _lines(labels([candidate_name(c) for c in compared]))
    figure = _figure(11, 2.1 + (0.42 + 0.14 * (lines - 1)) * max(3, len(compared)))
    if not compared:
        why = [f"{_last(c.ref)}: {c.status.replace('_', ' ')}" for c in lineage.candidates[:MAX_DRAWN_CANDIDATES]]
        figure.text(0.02, 0.5, "\n".join(["no candidate could be compared", *why]), va="center")
        return _save(figure, path)
    if all("weights" not in c.evidence for c in compared):
        _match_bars(figure.subplots(), compared)
        figure.suptitle(_title(lineage), fontsize=10, x=0.01, ha="left")
        return _save(figure, path)
    evidence, blocks = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _evidence_bars(evidence, compared, lineage)
    _block_map(blocks, compared)
    figure.suptitle(_title(lineage), fontsize=10, x=0.01, ha="left")
    return _save(figure, path)


def plot_profile(lineage: Lineage, path: str | Path | None = None) -> Figure:
    """Similarity of features against depth, before (dashed) and after linearisation (solid): a line per candidate.

    Needs evidence `features`, at several taps. Norms are drawn as distances on a logarithmic axis, cka, dc as they are.
    """
    seen = [c for c in lineage.candidates if "features" in c.evidence][:MAX_PROFILE_LINES]
    figure = _figure(10, 5)
    axes = figure.subplots()
    if not seen:
        figure.text(0.02, 0.5, "no candidate's features could be compared")
        return _save(figure, path)
    name = seen[0].evidence["features"]["metric"]
    rises, above = name in ("cka", "dc"), False
    names = [tap["tap"] for tap in seen[0].evidence["features"]["taps"]]
    called = labels([candidate_name(candidate) for candidate in seen])
    for place, candidate in enumerate(seen):
        colour = PARENT if place == 0 else COLOURS[place % len(COLOURS)]
        for form, style in (("plain", "--"), ("exact", "-")):
            found = [tap["scores"][name] for tap in candidate.evidence["features"]["taps"]]
            scores = [s["taylor"] if s[form] is None else s[form] for s in found]
            values = [s if rises else -s for s in scores]
            above = above or any(value > 0 for value in values)
            label = called[place] if form == "exact" else None
            axes.plot(range(len(values)), values, style, color=colour, label=label, marker="o", markersize=3)
    if not rises and above:
        axes.set_yscale("log")
    step = max(1, len(names) // 24)
    axes.set_xticks(
        range(0, len(names), step), [_shown(tail(names, n)) for n in names[::step]], rotation=45, ha="right"
    )
    axes.set_ylabel(f"{name} similarity (higher is more alike)" if rises else f"{name} distance (lower is more alike)")
    axes.set_title("Features against depth: dashed before, solid after the step towards the child", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(_title(lineage), fontsize=10, x=0.01, ha="left")
    return _save(figure, path)


def plot_family(lineages: Sequence[Lineage], path: str | Path | None = None) -> Figure:
    """Children × candidates: probability of being the parent; what a card claims is framed, red where it lies."""
    refs = sorted({c.ref for lineage in lineages for c in lineage.candidates if c.status == "compared"})
    values = [[_probability(lineage, ref) for ref in refs] + [lineage.none_probability or 0.0] for lineage in lineages]
    children = labels([lineage.child.name for lineage in lineages])
    figure = _figure(3.2 + 1.15 * (len(refs) + 1), 1.9 + (0.36 + 0.14 * (_lines(children) - 1)) * len(lineages))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    _below(axes, [*labels(refs), "none of these"], 30, 10)
    axes.set_yticks(range(len(lineages)), children)
    for row, lineage in enumerate(lineages):
        for column, value in enumerate(values[row]):
            if value >= 0.005:
                axes.text(
                    column, row, f"{100 * value:.0f} %", ha="center", va="center", color="w" if value > 0.5 else "k"
                )
        _frame_claims(axes, row, lineage, refs)
    title = "Probability of being the parent. In a frame: the model that the card names; red: the weights contradict it"
    axes.set_title(textwrap.fill(title, round(10 * figure.get_figwidth())), fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02).set_ticks([*PERCENT], labels=[*PERCENT.values()])
    return _save(figure, path)


def plot_layers(layers: LayerLineage, path: str | Path | None = None) -> Figure:
    """Child blocks × candidates. Left: whose each block is, and where it stood. Right: the score that rests on."""
    weight = dict.fromkeys(layers.candidates, 0.0)
    for share in (s for b in layers.blocks for s in sources(layers, b)):
        weight[share.ref] = weight.get(share.ref, 0.0) + share.weight
    refs = sorted(layers.candidates, key=lambda ref: -weight[ref])[:MAX_DRAWN_CANDIDATES]
    refs.sort(key=layers.candidates.index)
    rows, columns = len(layers.blocks), len(refs)
    row = min(0.34, max(0.13, 11 / max(rows, 1)), 60 / max(rows, 1))  # inches
    wide = 1.0 if columns < 6 else 0.72
    names = 1.0 if _lines(labels(refs)) > 1 else 0.0  # inches that upright names take more
    figure = _figure(max(7.0, 4.4 + wide * (columns + 1) + 0.45 * columns), 2.4 + names + row * max(rows, 4))
    if not rows:
        figure.text(0.02, 0.5, "no blocks to compare")
        return _save(figure, path)
    parts = _parts(layers)
    figure.set_figwidth(figure.get_figwidth() + KIND_WIDTH * len(parts))
    ratios = (wide * (columns + 1), *([KIND_WIDTH * len(parts)] if parts else []), max(1, 0.45 * columns))
    maps = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    _share_map(maps[0], layers, refs, row)
    if parts:
        _kind_map(maps[1], layers, parts, row)
    _score_map(maps[-1], layers, refs)
    figure.suptitle(textwrap.fill(_made(layers), round(11 * figure.get_figwidth())), fontsize=11, x=0.01, ha="left")
    occurs = {"equal", "none", "undecided"} & {block.kind for block in layers.blocks}
    occurs |= {"moved"} if any(block.moved for block in layers.blocks) else set()
    key = "      ".join(words for name, words in KEY.items() if name in occurs)
    figure.supxlabel(key, fontsize=8, x=0.01, ha="left", color="#555555")
    return _save(figure, path)


def _evidence_bars(axes: Axes, compared: Sequence[Candidate], lineage: Lineage) -> None:
    heights = [0.0 if c.log10_p is None else -c.log10_p for c in compared]
    colours = [PARENT if i == 0 and lineage.parent is not None else OTHER for i in range(len(compared))]
    axes.barh(range(len(compared)), heights, color=colours)
    axes.axvline(-math.log10(lineage.alpha), color=LINE, linewidth=1, linestyle="--")
    names = labels([candidate_name(c) for c in compared])
    texts = [f"{name}\n{relation_words(c.relation)}" for name, c in zip(names, compared, strict=True)]
    axes.set_yticks(range(len(compared)), texts, fontsize=8.5)  # beside the bars, where no line runs
    axes.set_ylim(len(compared) - 0.5, -0.5)  # the rows of the map beside it
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(0, max([30.0, *(4 * height for height in heights)]))
    shown = {height: words for height, words in RARE.items() if height <= axes.get_xlim()[1]}
    axes.set_xticks([*shown], [*shown.values()], rotation=30, ha="right", fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("how often unrelated models agree so much;\nbeyond the dashed line: related")
    axes.set_title("evidence of a common origin", fontsize=10)


def _match_bars(axes: Axes, compared: Sequence[Candidate]) -> None:
    shares = [c.probability or 0.0 for c in compared]
    axes.barh(range(len(compared)), shares, color=[PARENT, *[OTHER] * (len(compared) - 1)])
    axes.set_yticks(range(len(compared)), labels([candidate_name(c) for c in compared]))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([*PERCENT], [*PERCENT.values()])
    axes.set_xlabel("match among these candidates, without weights")


def _block_map(axes: Axes, compared: Sequence[Candidate]) -> None:
    names = list(dict.fromkeys(name for c in compared for name in c.evidence["weights"]["blocks"]))
    values = [
        [c.evidence["weights"]["blocks"].get(name, {}).get("moved", float("nan")) for name in names] for c in compared
    ]
    if not names:
        axes.set_axis_off()
        return
    image = axes.imshow(values, cmap="viridis_r", vmin=0, vmax=1.5, aspect="auto")
    step = max(1, len(names) // 16)
    axes.set_xticks(
        range(0, len(names), step), [_shown(tail(names, n)) for n in names[::step]], rotation=45, ha="right"
    )
    axes.set_yticks(range(len(compared)), [])
    axes.set_xlabel("block of the child")
    axes.set_title("how far its weights moved, as a share of their norm", fontsize=10)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_ticks([0, 0.5, 1, math.sqrt(2)], labels=["equal", "50 %", "100 %", "unrelated"])


def _share_map(axes: Axes, layers: LayerLineage, refs: Sequence[str], row: float) -> None:
    """Colour and number: the share; words: where the block stood. Text only where a row has room for it."""
    values, size = np.zeros((len(layers.blocks), len(refs) + 1)), min(8.5, 0.8 * 72 * row)
    for i, block in enumerate(layers.blocks):
        texts: dict[int, list[str]] = {}
        for share in sources(layers, block):
            if share.ref not in refs:
                continue
            column = refs.index(share.ref)
            values[i, column] += share.weight
            moved = [f"from {_shown(number(share.block))}"] if block.moved and share.block else []
            texts[column] = texts.get(column, []) + moved
        values[i, -1] = block.unknown or 0.0
        for column, value in enumerate(values[i]):
            equal = ["="] if block.kind == "equal" and column in texts else []
            words = [*equal, *([f"{100 * value:.0f} %"] if 0.005 <= abs(value) < 0.995 else []), *texts.get(column, [])]
            colour = "w" if value > 0.65 else "k"
            axes.text(column, i, " ".join(words), ha="center", va="center", fontsize=size, color=colour)
        if block.kind in ("none", "undecided"):
            _nobody(axes, i, len(refs), block.kind, size)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _columns(axes, [*refs, "unknown"])
    step = math.ceil(0.14 / row)
    shown = [i for i, block in enumerate(layers.blocks) if block.index is None or block.index % step == 0]
    names = [_shown(label(layers, layers.blocks[i].block)) for i in shown]
    axes.set_yticks(shown, names, fontsize=min(9.0, 0.85 * 72 * row))
    axes.axvline(len(refs) - 0.5, color="#888888", linewidth=1)
    axes.set_ylabel("block of the child")
    by_features = "weights" not in layers.evidence
    axes.set_title("probability, without weights" if by_features else "whose block it is", fontsize=10)
    _bar(axes, image, "match among these candidates" if by_features else "share of the block").set_ticks(
        [*PERCENT], labels=[*PERCENT.values()]
    )


def _parts(layers: LayerLineage) -> list[tuple[str, str]]:
    """(kind of tensor, source) of all shares by kind, sources with a share in some block alone."""
    every = [block.facts.get("kinds", {}) for block in layers.blocks]
    refs = [ref for ref in layers.candidates if any(each[k].get(ref, 0.0) > 0.005 for each in every for k in each)]
    return [(kind, ref) for kind in KINDS for ref in refs[:MAX_KIND_SOURCES] if any(kind in each for each in every)]


def _kind_map(axes: Axes, layers: LayerLineage, parts: Sequence[tuple[str, str]], row: float) -> None:
    """The share of each source in each kind of tensor of a block; grey where the block has none or no shares."""
    values = np.array(
        [[b.facts.get("kinds", {}).get(k, {}).get(ref, np.nan) for k, ref in parts] for b in layers.blocks]
    )
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_facecolor(MISSING)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "w" if value > 0.65 else "k"
            size = min(7.5, 0.8 * 72 * row)
            axes.text(j, i, f"{100 * value:.0f} %", ha="center", va="center", fontsize=size, color=colour)
    axes.tick_params(labelleft=False, left=False)
    _columns(axes, [ref for _, ref in parts])
    kinds = [kind for kind, _ in parts]
    for kind in dict.fromkeys(kinds):
        first = kinds.index(kind)
        axes.text(first + kinds.count(kind) / 2 - 0.5, -0.6, KINDS[kind], ha="center", va="bottom", fontsize=8.5)
        if first:
            axes.axvline(first - 0.5, color="#888888", linewidth=1)
    axes.set_title("share by kind of tensor", fontsize=10, pad=18)


def _nobody(axes: Axes, row: int, column: int, kind: str, size: float) -> None:
    hatch = "////" if kind == "none" else None
    cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=MISSING, edgecolor="#888888", linewidth=0, hatch=hatch)
    axes.add_patch(cell)
    if kind == "undecided":
        axes.text(column, row, "?", ha="center", va="center", fontsize=size)


def _score_map(axes: Axes, layers: LayerLineage, refs: Sequence[str]) -> None:
    matrix = layers.matrix[:, [layers.candidates.index(ref) for ref in refs]]
    weights = "weights" in layers.evidence
    axes.set_title("how alike the\nbest block is", fontsize=10)
    axes.tick_params(labelleft=False, left=False)
    axes.set_facecolor(MISSING)
    _columns(axes, refs)
    if not refs or not np.isfinite(matrix).any():
        axes.text(0.5, 0.5, "nothing\ncompared", ha="center", va="center", transform=axes.transAxes, color="#555555")
        return
    low, high = (0.0, 1.0) if weights else (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    image = axes.imshow(matrix, cmap="Greens", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    bar = _bar(axes, image, "correlation of the weights" if weights else "score of the features")
    if weights:
        bar.set_ticks([0, 0.5, 1], labels=["unrelated", "0.5", "equal"])


def _bar(axes: Axes, image: AxesImage, label: str) -> Colorbar:
    inches = axes.figure.bbox.height / axes.figure.dpi  # bars of one width, as tall as their map
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.3, pad=0.04, aspect=max(10, 5 * (inches - 1.8)))
    bar.set_label(label)
    return bar


def _columns(axes: Axes, refs: Sequence[str]) -> None:
    _below(axes, labels(refs), 35, 8.5)
    for edge in range(1, len(refs)):
        axes.axvline(edge - 0.5, color="w", linewidth=0.8)
    for edge in range(1, round(axes.get_ylim()[0] + 0.5)):
        axes.axhline(edge - 0.5, color="w", linewidth=0.4)


def _below(axes: Axes, names: Sequence[str], rotation: int, size: float) -> None:
    """Names of columns, aslant; upright and smaller where one takes several lines, which would run into the next."""
    if _lines(names) > 1:
        axes.set_xticks(range(len(names)), names, rotation=90, ha="center", fontsize=7)
    else:
        axes.set_xticks(range(len(names)), names, rotation=rotation, ha="right", fontsize=size)


def _made(layers: LayerLineage) -> str:
    """The child and the method in a few words; the table has the sentence."""
    by_features = layers.method is None and "weights" not in layers.evidence
    made = "nearest by features" if by_features else MADE.get(layers.method, f"a merge ({layers.method})")
    return f"Layers of {_last(layers.child.name)}: {made}"


def _frame_claims(axes: Axes, row: int, lineage: Lineage, refs: Sequence[str]) -> None:
    for claim in lineage.claims:
        column = next((i for i, ref in enumerate(refs) if claim.ref == ref or ref.endswith(f"/{claim.ref}")), None)
        if column is not None:
            honest = "w" if _probability(lineage, refs[column]) > 0.5 else "#444444"
            colour = LINE if claim.status == "contradicted" else honest
            axes.add_patch(
                Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor=colour, linewidth=2)
            )


def _probability(lineage: Lineage, ref: str) -> float:
    return next((c.probability or 0.0 for c in lineage.candidates if c.ref == ref), 0.0)


def labels(refs: Sequence[str]) -> list[str]:
    """What models are called in a picture: without the folder that all of them begin with, two never the same.

    Of one alone the last part is enough, as of the ids of a search where no two end alike.
    """
    names = [printable(ref).rstrip("/") for ref in refs]
    last = [name.rpartition("/")[2] for name in names]
    cut = prefix_of([name for name in names if "/" in name])
    short = last if len({*last}) == len({*names}) else [name.removeprefix(cut) for name in names]
    return [_shown("\n".join(folded(name, MAX_LABEL))) for name in short]


def _last(ref: str) -> str:
    """A model's name without whose it is, for a title."""
    return _shown(printable(ref).rstrip("/").rpartition("/")[2])


def _shown(text: str) -> str:
    """A foreign name in a picture, where a pair of `$` would be read as a formula."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _lines(texts: Sequence[str]) -> int:
    """Lines of the tallest label."""
    return max((text.count("\n") + 1 for text in texts), default=1)


def _title(lineage: Lineage) -> str:
    """The verdict in a few words; the table has the sentence."""
    best = next((c for c in lineage.candidates if c.status == "compared"), None)
    verdict = {"none": "none of these", "undecided": "undecided"}.get(lineage.verdict, "")
    if best and not verdict:
        name, words = _last(candidate_name(best)), relation_words(best.relation)
        words = words.removesuffix("it") + name if words.endswith(" it") else f"{words} ({name})"
        sure = f", probability {best.probability:.3f}" if best.probability is not None else ""
        verdict = f"{words}{sure}" if lineage.parent else f"common origin with {name}"
    return textwrap.fill(f"{_last(lineage.child.name)}: {verdict}", MAX_TITLE)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot, no window, no global state
    return figure


def _save(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        with replaced(path) as fresh:
            figure.savefig(fresh, dpi=150)
    return figure
