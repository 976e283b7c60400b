"""A `Phylogeny` as a picture: trees from left to right, or rings with an arc to each ancestor."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import font_manager, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Rectangle, Wedge
from matplotlib.path import Path as Curve

from ..answers.inheritance import Carrier
from ..answers.phylogeny import Phylogeny
from ..answers.refs import printable
from ..errors import ArgumentError
from ..files import replaced
from .format import folded, number_text, prefix_of
from .plots import COLOURS, PARENT
from .plots import LINE as FLAGGED
from .tree_text import MISSING, Drawn, Tie, grow, relation, summary

MAX_TREE_MODELS, MAX_INCHES = 40, 48.0  # models drawn as trees unless asked otherwise; inches of either side
GROUPS = (PARENT, *COLOURS)
GREY, INK, FAINT = "#9aa3ab", "#22303c", "#66727c"
FONT, LINE, COPY, GAP, PAD = 8.5, 0.36, 0.17, 0.85, 0.1  # points; inches: a row, a copy, between columns, in a box
DASHED, DIRECTED, UNDIRECTED = (0, (4, 2.5)), "from parent to child; thicker: surer", "which came first is not known"
ANCESTORS = {"parent": "#12936b", "grandparent": "#f0a52e", "great-grandparent": "#8f1d2c"}  # lightness differs too
SHADES = ("#dbe5ee", "#b3c7d9", "#86a4bf", "#5b809f", "#375c7c", "#1d3b57", "#0c2237")  # generation 1, 2, …
FLAG_HEIGHT, HAS_IT = 0.05, "probability of having what was flagged"
RINGS = "From the inside: models, wider with\nmore descendants; families; generations."
MAX_LABEL, MAX_RING_LABEL = 34, 40  # characters of a line of a name; a longer one takes several lines
UNKNOWN, SIDE = "#ededed", 8.95  # inches of the rings and their labels
INNER, MODELS, FAMILIES, GENERATIONS, FLAGS = 0.78, (0.865, 0.79), (0.93, 0.875), (1.0, 0.94), (1.045, 1.01)  # radii


def plot_tree(phylogeny: Phylogeny, path: str | Path | None = None, *, style: str = "auto") -> Figure:
    """Draw a phylogeny as trees (`tree`) or rings (`ring`); `auto` draws trees of up to 40 models.

    Raises `ArgumentError` for another style.
    """
    if style not in ("auto", "tree", "ring"):
        raise ArgumentError(f"Expected the style `auto`, `tree` or `ring`, got {style!r}.")
    named = sum(not node.hidden for node in phylogeny.nodes)
    draw = _rings if style == "ring" or (style == "auto" and named > MAX_TREE_MODELS) else _trees
    figure = draw(phylogeny, _without_folder(grow(phylogeny)))
    if path is not None:
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same answer is the same bytes
        with rc_context({"svg.hashsalt": "hf_lineage"}), replaced(path) as fresh:
            figure.savefig(fresh, dpi=150, metadata=dates.get(Path(path).suffix.lower()))
    return figure


def _without_folder(drawn: Drawn) -> Drawn:
    """Names in pictures lose the folder that all of them begin with, if there is one."""
    cut = prefix_of([node.id for node in drawn.nodes.values() if not node.hidden])
    return replace(drawn, cut=cut if len(cut) > 2 else "")


def shown(text: str, width: int = MAX_LABEL) -> list[str]:
    """A foreign name in a picture: as many lines as it takes, and a square for what the font cannot write."""
    return folded("".join(ch if ord(ch) in _characters() else "□" for ch in printable(text)), width)


@cache
def _characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap())


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and axes over all of it, in inches from the top left."""
    scale = min(1.0, MAX_INCHES / width, MAX_INCHES / height)
    figure = Figure(figsize=(max(1, width * scale), max(1, height * scale)), facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot, no window, no global state
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _colours(drawn: Drawn) -> dict[str, str]:
    """A colour for each family, grey for who has none."""
    colours = defaultdict(lambda: GREY)
    for place, tops in enumerate(drawn.families):
        for row in drawn.all(tops):
            for node in (row.node, *drawn.copies[row.node]):
                colours[node] = GROUPS[place % len(GROUPS)]
    return colours


def _tint(colour: str, share: float) -> tuple[float, float, float]:
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


@dataclass(slots=True)
class Box:
    """Where a node is: left, middle, width and height in inches, its column from 0, its lines of text.

    own: how many of these are its name; what follows is about it."""

    column: int
    width: float
    height: float
    names: list[str]
    own: int = 1
    x: float = 0.0
    y: float = 0.0


def _trees(phylogeny: Phylogeny, drawn: Drawn) -> Figure:
    carriers = {m.ref: m for m in phylogeny.inheritance.models} if phylogeny.inheritance else {}
    boxes = _boxes(drawn, carriers)
    _spread(drawn, boxes)
    wide, bottom = _place(drawn, boxes)
    handles = _tree_legend(phylogeny, drawn)
    width = max(6.0, wide + 0.3)
    bottom = _place_alone(drawn, boxes, bottom, width)
    figure, axes = _sheet(width, bottom + 0.25 + 0.11 * (len(handles) + 1))
    scale = figure.get_figwidth() / width
    colours = _colours(drawn)
    ends = _ends(drawn, boxes)
    for above in boxes:
        for tie in drawn.below[above] + drawn.also[above]:
            _draw_edge(axes, boxes[above], ends[above, tie.node], tie, colours[above], scale)
    roots = set(phylogeny.roots) - set(drawn.alone)
    for node in boxes:
        _draw_node(axes, drawn, node, boxes[node], _Look(colours[node], node in roots, scale))
        if node in carriers:
            _draw_flag(axes, boxes[node], carriers[node].after)
    title = textwrap.fill(summary(phylogeny, drawn) + (f"; in {drawn.cut}" if drawn.cut else ""), int(12 * width))
    axes.text(0.2, 0.32, title, fontsize=max(5, 10.5 * scale), color=INK, va="center")
    figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize=max(4, 8 * scale), labelcolor=INK)
    return figure


def _boxes(drawn: Drawn, carriers: Mapping[str, Carrier]) -> dict[str, Box]:
    sheets = [FigureCanvasAgg(Figure(dpi=dpi)) for dpi in (100, 150)]  # letters are fitted to the pixels of each
    font = font_manager.FontProperties(size=FONT)

    def wide(text: str) -> float:
        return max(c.get_renderer().get_text_width_height_descent(text, font, False)[0] / c.figure.dpi for c in sheets)

    boxes = {}
    for tops in drawn.trees:
        for row in drawn.all(tops):
            names = [*(own := shown(drawn.called(row.node)))]
            for copy in drawn.copies[row.node]:
                first, *rest = shown(drawn.called(copy))
                names += [f"= {first}", *(f"   {line}" for line in rest)]
            names += [relation(row.edge)] if row.edge and row.edge.relation not in ("finetune", "merge") else []
            names += [_has_it(carriers[row.node])] if row.node in carriers else []
            width = 0.2 if drawn.nodes[row.node].hidden else max(map(wide, names)) + 2 * PAD
            boxes[row.node] = Box(len(row.bars), width, LINE - 0.1 + COPY * (len(names) - 1), names, len(own))
    return boxes


def _has_it(carrier: Carrier) -> str:
    said = "" if carrier.flagged is None else f"flagged {number_text(carrier.flagged)}, "
    return f"{said}has it: {number_text(carrier.after, '.2f')}"


def _draw_flag(axes: Axes, box: Box, probability: float) -> None:
    """A red bar along the lower edge, as long as the probability that the model has what was flagged."""
    low, wide = box.y + box.height / 2 - 1.5 * FLAG_HEIGHT, box.width - 2 * PAD
    for share, colour in ((1.0, UNKNOWN), (probability, FLAGGED)):
        axes.add_artist(
            Rectangle(
                (box.x + PAD, low), wide * share, FLAG_HEIGHT, facecolor=colour, linewidth=0, zorder=2.5, gid="flag"
            )
        )


def _spread(drawn: Drawn, boxes: dict[str, Box]) -> None:
    """Move what was merged to the right of all its parents, unless the edges run in a circle."""
    before = [(box, box.column) for box in boxes.values()]
    steps = [(above, tie.node) for above in boxes for tie in drawn.below[above] + drawn.also[above]]
    for _ in range(len(drawn.merged) + 2):
        if all(boxes[node].column > boxes[above].column for above, node in steps):
            return
        for above, node in steps:
            boxes[node].column = max(boxes[node].column, boxes[above].column + 1)
    for box, column in before:
        box.column = column


def _place(drawn: Drawn, boxes: dict[str, Box]) -> tuple[float, float]:
    """Leaves one below the other, parents in the middle of their children; the right and lower end of it all."""
    top, need, begin = 0.7, dict.fromkeys(boxes, 0.0), dict.fromkeys(boxes, 0.0)  # inches of a node with all below it
    for tops in drawn.families:
        order = [row.node for row in drawn.all(tops)]
        for node in reversed(order):
            need[node] = max(boxes[node].height + 0.1, sum(need[tie.node] for tie in drawn.below[node]))
        for start in tops:
            begin[start], top = top, top + need[start]
        for node in order:
            at = begin[node] + (need[node] - sum(need[tie.node] for tie in drawn.below[node])) / 2
            for tie in drawn.below[node]:
                begin[tie.node], at = at, at + need[tie.node]
        for node in reversed(order):
            ends = [boxes[tie.node].y for tie in drawn.below[node]] or [begin[node] + need[node] / 2]
            boxes[node].y = (ends[0] + ends[-1]) / 2
        top += 0.22
    right = 0.25
    related = [boxes[row.node] for tops in drawn.families for row in drawn.all(tops)]
    for _, column in groupby(sorted(related, key=lambda box: box.column), key=lambda box: box.column):
        for box in (members := list(column)):
            box.x = right
        right += max(box.width for box in members) + GAP
    return right - GAP, top


def _place_alone(drawn: Drawn, boxes: dict[str, Box], top: float, width: float) -> float:
    """Models without relatives in lines below; where the last of them ends."""
    x = 0.25
    for box in (boxes[node] for node in drawn.alone):
        x, top = (x, top) if x == 0.25 or x + box.width < width - 0.25 else (0.25, top + LINE)
        box.x, box.y = x, top + LINE / 2
        x += box.width + 0.12
    return top + LINE * bool(drawn.alone)


def _ends(drawn: Drawn, boxes: dict[str, Box]) -> dict[tuple[str, str], tuple[float, float]]:
    """Where each edge ends: of a merge beside one another, from the top, so that every arrow is seen."""
    above: dict[str, list[str]] = defaultdict(list)
    for node in boxes:
        for tie in drawn.below[node] + drawn.also[node]:
            above[tie.node].append(node)
    ends = {}
    for node, parents in above.items():
        box, apart = boxes[node], min(0.16, boxes[node].height / max(1, len(parents)))
        for place, parent in enumerate(sorted(parents, key=lambda parent: boxes[parent].y)):
            ends[parent, node] = (box.x - 0.03, box.y + apart * (place - (len(parents) - 1) / 2))
    return ends


def _draw_edge(axes: Axes, above: Box, end: tuple[float, float], tie: Tie, colour: str, scale: float) -> None:
    start = (above.x + above.width, above.y)
    bend = max(0.4, abs(end[0] - start[0]) / 2)
    points = [start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end]
    probability = tie.edge.probability
    sure = probability if probability is not None and 0 <= probability <= 1 else 0.5
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": _tint(colour, 0.45 + 0.55 * sure), "gid": "edge"}
    if not tie.edge.directed:
        style = {"arrowstyle": "-", "color": GREY, "linestyle": DASHED, "gid": "tie"}
    style |= {"linewidth": (0.6 + 1.6 * sure) * scale, "mutation_scale": 9 * scale, "shrinkA": 0, "shrinkB": 0}
    curve = Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])
    axes.add_artist(FancyArrowPatch(path=curve, zorder=1, **style))


class _Look(NamedTuple):
    """How a model is drawn. `root`: filled with the colour; `scale`: of lines and letters."""

    colour: str
    root: bool
    scale: float


def _draw_node(axes: Axes, drawn: Drawn, node: str, box: Box, shown: _Look) -> None:
    colour, root, scale = shown
    style: dict[str, Any] = {"parse_math": False, "va": "center", "zorder": 3}
    look: dict[str, Any] = {"edgecolor": colour, "linewidth": scale, "zorder": 2}
    if drawn.nodes[node].hidden:
        axes.add_artist(Circle((box.x + 0.1, box.y), 0.09, facecolor="white", gid="hidden", **look))
        if FONT * scale >= 2:
            axes.text(box.x + 0.1, box.y - 0.17, box.names[0], ha="center", fontsize=7 * scale, color=FAINT, **style)
        return
    look["facecolor"] = colour if root else _tint(colour, 0.12)
    low, shape = box.y - box.height / 2, "round,pad=0,rounding_size=0.07"
    axes.add_artist(FancyBboxPatch((box.x, low), box.width, box.height, shape, gid="model", **look))
    for line, text in enumerate(box.names if FONT * scale >= 2 else []):
        y = low + (LINE - 0.1) / 2 + COPY * line
        about = line >= box.own
        style |= {"color": "white" if root else FAINT if about else INK, "gid": "note" if about else "label"}
        axes.text(box.x + PAD, y, text, fontsize=FONT * scale, **style)


def _tree_legend(phylogeny: Phylogeny, drawn: Drawn) -> list[Artist]:
    """What occurs and does not explain itself."""
    hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK, "linewidth": 0}
    known = set(phylogeny.roots) - set(drawn.alone) - {node.id for node in phylogeny.nodes if node.hidden}
    directions = {edge.directed for edge in phylogeny.edges}
    entries: list[tuple[bool, Artist]] = [
        (bool(known), Patch(color=INK, label="the oldest of its family")),
        (True in directions, Line2D([], [], color=INK, label=DIRECTED)),
        (False in directions, Line2D([], [], color=GREY, linestyle=DASHED, label=UNDIRECTED)),
        (any(n.hidden for n in phylogeny.nodes), Line2D([], [], label=MISSING, **hollow)),
        (bool(drawn.alone), Patch(facecolor=_tint(GREY, 0.12), edgecolor=GREY, label="no relatives in this set")),
        (phylogeny.inheritance is not None, Patch(color=FLAGGED, label=HAS_IT)),
    ]
    return [handle for occurs, handle in entries if occurs]


@dataclass(frozen=True, slots=True)
class Slot:
    """A model's place on the rings: degrees from 3 o'clock, clockwise negative."""

    node: str
    family: int
    generation: int | None
    start: float
    end: float

    def point(self, radius: float) -> tuple[float, float]:
        """Where the middle of the slot is at a radius: (x, y)."""
        middle = math.radians((self.start + self.end) / 2)
        return radius * math.cos(middle), radius * math.sin(middle)


def _rings(phylogeny: Phylogeny, drawn: Drawn) -> Figure:
    figure, axes = _sheet(12.5, 9.5)
    axes.set_position((0.01, 0.005, SIDE / 12.5, SIDE / 9.5))
    slots, colours = _slots(phylogeny, drawn), _colours(drawn)
    _draw_rings(axes, phylogeny, drawn, slots, colours)
    handles = _draw_arcs(axes, phylogeny, drawn, slots) + _ring_legend(drawn, slots, colours)
    handles += [Patch(color=FLAGGED, label=HAS_IT)] * (phylogeny.inheritance is not None)
    figure.text(0.76, 0.06, RINGS, fontsize=8, color=FAINT, va="bottom")
    radius = _draw_labels(axes, drawn, slots, (GENERATIONS if phylogeny.inheritance is None else FLAGS)[0] + 0.015)
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius))
    figure.text(0.02, 0.97, textwrap.fill(summary(phylogeny, drawn), 130), fontsize=11, color=INK, va="center")
    figure.legend(
        handles=handles, loc="center left", bbox_to_anchor=(0.75, 0.49), frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _slots(phylogeny: Phylogeny, drawn: Drawn) -> list[Slot]:
    """Every node in turn: by generation, in it by family, then as in the tree.

    Each is as wide as its descendants are many, and half of the circle is shared out evenly, so that all are seen.
    """
    turn: list[tuple[str, int, int | None]] = []
    for family, tops in enumerate(drawn.families):
        for row in drawn.all(tops):
            generation = drawn.nodes[row.node].generation
            turn += [(node, family, generation) for node in (row.node, *drawn.copies[row.node])]
    turn.sort(key=lambda each: (each[2] is None, each[2] or 0))  # stable: families stay together, and trees in order
    turn += [(node, len(drawn.families), None) for node in drawn.alone]
    below = _descendants(phylogeny)
    unit = min(1.0, len(below) / max(1, sum(below.values())))
    width = {node: 1 + unit * count for node, count in below.items()}
    blocks = [list(block) for _, block in groupby(turn, key=lambda each: (each[2], each[0] in drawn.alone))]
    total = sum(width[node] for node, *_ in turn)
    gap = 0.0 if len(blocks) < 2 else total * min(0.008, 0.1 / len(blocks))
    step = 360 / max(1.0, total + gap * len(blocks))
    slots, at = [], 90.0
    for block in blocks:
        for node, family, generation in block:
            slots.append(Slot(node, family, generation, at - step * width[node], at))
            at -= step * width[node]
        at -= gap * step
    return slots


def _descendants(phylogeny: Phylogeny) -> dict[str, int]:
    """How many nodes come from each along directed edges, each counted once."""
    above: dict[str, list[str]] = {node.id: [] for node in phylogeny.nodes}
    for edge in phylogeny.edges:
        if edge.directed and edge.parent in above and edge.child in above:
            above[edge.child].append(edge.parent)
    count = dict.fromkeys(above, 0)
    for node in above:
        waiting, seen = [node], {node}
        for younger in waiting:  # grows
            fresh = [parent for parent in dict.fromkeys(above[younger]) if parent not in seen]
            seen.update(fresh)
            waiting += fresh
        for ancestor in waiting[1:]:
            count[ancestor] += 1
    return count


def _shade(slot: Slot) -> str:
    return UNKNOWN if slot.generation is None else SHADES[min(slot.generation, len(SHADES)) - 1]


def _draw_rings(axes: Axes, phylogeny: Phylogeny, drawn: Drawn, slots: Sequence[Slot], colours: dict[str, str]) -> None:
    """From the inside: a part for each model, for the families of each generation, and for each generation."""

    def ring(name: str, radii: tuple[float, float], parts: list[tuple[float, float, Any, Any]], line: float) -> None:
        wedges = [Wedge((0, 0), radii[0], start, end, width=radii[0] - radii[1]) for start, end, _, _ in parts]
        faces, lines = [face for *_, face, _ in parts], [edge for *_, edge in parts]
        axes.add_collection(PatchCollection(wedges, facecolors=faces, edgecolors=lines, linewidths=line, gid=name))

    def runs(key: Callable[[Slot], Any]) -> Iterator[list[Slot]]:
        """Neighbours of one generation that `key` does not tell apart."""
        alone = {*drawn.alone}
        for _, same in groupby(slots, key=lambda slot: (slot.generation, slot.node in alone, key(slot))):
            yield list(same)

    models = []
    for slot in slots:
        node, colour = drawn.nodes[slot.node], colours[slot.node]
        face = "white" if node.hidden else _tint(colour, 0.35 if node.duplicate_of else 0.75)
        models.append((slot.start, slot.end, face, colour if node.hidden else "white"))
    families = [(run[-1].start, run[0].end, colours[run[0].node], "white") for run in runs(lambda s: s.family)]
    generations = [(run[-1].start, run[0].end, _shade(run[0]), "white") for run in runs(lambda s: None)]
    ring("models", MODELS, models, 0.25 if len(slots) > 150 else 0.7)
    ring("families", FAMILIES, families, 0.7)
    ring("generations", GENERATIONS, generations, 0.5)
    if phylogeny.inheritance is not None:
        has = {m.ref: m.after for m in phylogeny.inheritance.models}
        ring("flag", FLAGS, [(s.start, s.end, _tint(FLAGGED, has.get(s.node, 0.0)), FAINT) for s in slots], 0.25)


def _draw_arcs(axes: Axes, phylogeny: Phylogeny, drawn: Drawn, slots: Sequence[Slot]) -> list[Artist]:
    """From each model to its parents, theirs, and theirs; ties without direction are dashed."""
    at = {slot.node: slot for slot in slots}
    ends: dict[str, list[tuple[str, str]]] = {name: [] for name in ANCESTORS}
    parents = {node: [p for p in dict.fromkeys(phylogeny.parents(node)) if p in at] for node in at}
    for node in at:
        seen, level = {node}, [node]
        for name in ANCESTORS:
            level = [p for p in dict.fromkeys(p for child in level for p in parents[child]) if p not in seen]
            seen.update(level)
            ends[name] += [(node, above) for above in level]
    ties = [(e.child, e.parent) for e in phylogeny.edges if not e.directed]
    ends[UNDIRECTED] = [(a, b) for a, b in ties if a in at and b in at]
    ends = {name: pairs for name, pairs in ends.items() if pairs}
    many = sum(map(len, ends.values()))
    wide, alpha = (min(2.0, max(0.3, 650 / max(1, many))), max(0.5, 0.85 - many / 1200))
    handles: list[Artist] = []
    for depth, (name, pairs) in enumerate(ends.items()):
        colour, line = ANCESTORS.get(name, FAINT), (0, () if name in ANCESTORS else DASHED[1])
        arcs = PathCollection(
            [_arc(at[a], at[b]) for a, b in pairs], facecolors="none", edgecolors=colour, linewidths=wide,
            linestyles=[line], alpha=alpha, zorder=2 - depth / 10, gid=name,
        )  # fmt: skip
        axes.add_collection(arcs)
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=2, label=name))
    return handles


def _arc(a: Slot, b: Slot) -> Curve:
    """Nearer to the centre the further the two are apart."""
    start, end = a.point(INNER), b.point(INNER)
    half = min(1.0, math.dist(start, end) / (2 * INNER))  # sine of half the angle
    pull = 1 - math.sqrt(2 * math.asin(half) / math.pi)
    length = math.hypot(start[0] + end[0], start[1] + end[1]) or 1.0
    middle = tuple(INNER * pull * (u + v) / length for u, v in zip(start, end, strict=True))
    return Curve([start, middle, end], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])


def _draw_labels(axes: Axes, drawn: Drawn, slots: Sequence[Slot], begin: float) -> float:
    """Each model's name where there is room, else the names of those whose part is wide enough, that is of ancestors;
    how far out the drawing reaches. begin: the radius at which names start."""
    named = [slot for slot in slots if not drawn.nodes[slot.node].hidden]
    called = {slot.node: shown(drawn.called(slot.node), MAX_RING_LABEL) for slot in named}
    longest = max((len(line) for lines in called.values() for line in lines), default=0)
    units = {step / 2: (SIDE / 2 - longest * 0.62 * step / 144) / (begin + 0.015) for step in range(18, 8, -1)}

    def fits(slot: Slot, size: float) -> bool:
        tall = size * 1.12 * len(called[slot.node]) / 72
        return tall <= units[size] * math.radians(slot.end - slot.start)  # size → inches of a unit

    size = next((size for size in units if all(fits(slot, size) for slot in named)), 8.0)
    for slot in (slot for slot in named if fits(slot, size)):
        x, y = slot.point(begin)
        angle = math.degrees(math.atan2(y, x))
        left = abs(angle) > 90
        axes.text(
            x, y, "\n".join(called[slot.node]), fontsize=size, color=INK,
            rotation=angle + 180 if left else angle, va="center", ha="right" if left else "left",
            rotation_mode="anchor", parse_math=False, gid="label",
        )  # fmt: skip
    return SIDE / 2 / units[size]


def _ring_legend(drawn: Drawn, slots: Sequence[Slot], colours: dict[str, str]) -> list[Artist]:
    """Generations, families by their oldest model, and what else occurs."""
    space, nodes = Line2D([], [], linewidth=0, label=" "), [drawn.nodes[slot.node] for slot in slots]
    found = {_shade(slot): slot.generation for slot in slots if slot.node not in drawn.alone}
    shades = [(shade, f"generation {SHADES.index(shade) + 1}") for shade in SHADES if shade in found]
    if any((slot.generation or 0) > len(SHADES) for slot in slots):
        shades[-1] = (SHADES[-1], f"{shades[-1][1]} and later")
    shades += [(UNKNOWN, "generation not known")] if UNKNOWN in found else []
    handles: list[Artist] = [space, *(Patch(color=shade, label=label) for shade, label in shades), space]
    for tops in drawn.families if len(drawn.families) <= len(GROUPS) else ():
        first = (
            "a missing ancestor"
            if drawn.nodes[tops[0]].hidden
            else "\n".join(shown(drawn.called(tops[0]), MAX_RING_LABEL)).replace("$", r"\$")
        )
        handles.append(Patch(color=colours[tops[0]], label=f"family of {first}"))
    entries = [
        (any(node.hidden for node in nodes), Patch(facecolor="white", edgecolor=FAINT, label=MISSING)),
        (any(node.duplicate_of for node in nodes), Patch(color=_tint(PARENT, 0.35), label="paler: an identical copy")),
        (bool(drawn.alone), Patch(color=GREY, label="no relatives in this set")),
    ]
    return handles + [handle for occurs, handle in entries if occurs]
