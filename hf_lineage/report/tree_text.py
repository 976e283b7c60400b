"""A `Phylogeny` as text: trees, Markdown, Newick, a graph. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..answers.base import fields_of
from ..answers.phylogeny import Edge, Node, Phylogeny
from ..answers.refs import printable
from .console import NARROW, WIDTH, labelled
from .format import cells, code, count_text, number_text, prefix_of, shorten
from .inheritance import markdown as flagged
from .inheritance import section
from .sentences import Show
from .text import cost_text

if TYPE_CHECKING:
    import networkx as nx

DEEP, DEEP_LIST = 5, 24  # levels of indentation in the table and in Markdown; what is deeper says how deep
MISSING = "an ancestor that is not in the set"
WORDS = {
    "identical": "identical copy", "head_changed": "head changed", "partial": "partly tuned", "none": "-",
    "finetune": "fine-tuned", "cast": "smaller format", "merge": "merged", "resized": "vocabulary resized",
    "depth_changed": "other layers", "shared_part": "a part in common",
}  # fmt: skip
FACTS = {"quantized": ("bits", "{} bits"), "pruned": ("zeros", "{:.0%}"), "adapter": ("rank", "rank {}")}
LEGEND = {"prob.": "prob.: of the two being neighbours", "order": "order: of the upper one being the older"}
UNDIRECTED, REVERSED = "which of the two came first is not known", "the models' own files say the reverse"
BARE = re.compile(r"[A-Za-z0-9./?\-]+")  # a Newick label without quotes; unquoted, an underscore would mean a blank
Columns: TypeAlias = list[tuple[str, int]]  # heads and widths


class Tie(NamedTuple):
    """The node at the far end of an edge."""

    node: str
    edge: Edge


Ties: TypeAlias = defaultdict[str, list[Tie]]


class Row(NamedTuple):
    """One line of a drawn tree. `bars`: for each level, from the top, whether more follows on it.

    A reference is a node that is drawn elsewhere, below another of its parents. `more`: lines follow below it.
    """

    node: str
    edge: Edge | None
    above: str | None
    bars: tuple[bool, ...]
    reference: bool
    more: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """A phylogeny as trees that hold each node once, whatever its edges are.

    `trees`: for each group the nodes to start from, one if the group is a tree. `below`: the branches from a node down.
    `also`: its other edges, to nodes that hang elsewhere. `copies`: what equals a node and is drawn beside it.
    `merged`: nodes with several parents, the heaviest first. `alone`: models without relatives. `cut`: what all names
    begin with and a picture leaves out.
    """

    nodes: dict[str, Node]
    trees: tuple[tuple[str, ...], ...]
    below: Ties
    also: Ties
    copies: defaultdict[str, list[str]]
    merged: dict[str, list[Tie]]
    alone: tuple[str, ...]
    cut: str = ""

    def rows(self, top: str) -> Iterator[Row]:
        """The lines of one tree, from the top down."""
        stack = [Row(top, None, None, (), False, False)]
        while stack:
            row = stack.pop()
            kids = [(tie, False) for tie in self.below[row.node]] + [(tie, True) for tie in self.also[row.node]]
            kids = [] if row.reference else kids
            yield row._replace(more=bool(kids))
            for place, (tie, elsewhere) in enumerate(reversed(kids)):
                stack.append(Row(tie.node, tie.edge, row.node, (*row.bars, place > 0), elsewhere, False))

    def all(self, tops: tuple[str, ...]) -> list[Row]:
        """The nodes of a group's trees, each once and without its copies."""
        return [row for top in tops for row in self.rows(top) if not row.reference]

    def called(self, node: str) -> str:
        """A node's name without what all begin with."""
        return node.removeprefix(self.cut)

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """The trees of groups that have relatives to show."""
        return tuple(tops for tops in self.trees if tops[0] not in self.alone)


def grow(phylogeny: Phylogeny) -> Drawn:
    """Hang every node below its heaviest parent, or else below a neighbour; the edges that are left are references."""
    nodes = {node.id: node for node in phylogeny.nodes}
    same = {node: _original(nodes, node) for node in nodes}
    copies: defaultdict[str, list[str]] = defaultdict(list)
    for copy, original in same.items():
        if copy != original:
            copies[original].append(copy)
    known = [e for e in phylogeny.edges if e.parent in nodes and e.child in nodes]
    ends = [(same[e.parent], same[e.child], e) for e in known if same[e.parent] != same[e.child]]
    parents: Ties = defaultdict(list)
    for parent, child, edge in ends:
        if edge.directed:
            parents[child].append(Tie(parent, edge))
    for ties in parents.values():
        ties.sort(
            key=lambda tie: (-1 if tie.edge.weight is None else tie.edge.weight, tie.edge.probability or 0),
            reverse=True,
        )
    near: Ties = defaultdict(list)  # what may hang below a node: its own children, and neighbours without a parent
    for parent, child, edge in ends:
        if edge.directed and parents[child][0].edge is edge:
            near[parent].append(Tie(child, edge))
        elif not edge.directed:
            near[parent] += [Tie(child, edge)] * (child not in parents)
            near[child] += [Tie(parent, edge)] * (parent not in parents)
    trees, below = _hang(nodes, near, _starts(phylogeny, same, near, parents))
    hung = {id(tie.edge) for ties in below.values() for tie in ties}
    also: Ties = defaultdict(list)
    for parent, child, edge in ends:
        if id(edge) not in hung:
            also[parent].append(Tie(child, edge))
    relatives = {*below, *also, *copies, *(tie.node for ties in also.values() for tie in ties)}
    alone = tuple(tops[0] for tops in trees if len(tops) == 1 and tops[0] not in relatives)
    return Drawn(
        nodes, trees, below, also, copies, {node: ties for node, ties in parents.items() if len(ties) > 1}, alone
    )


def _starts(phylogeny: Phylogeny, same: dict[str, str], near: Ties, parents: Ties) -> list[list[str]]:
    """Each group's nodes, the best to start from first: a root, else who most surely has a child and no parent."""
    roots = {same[root]: place for place, root in enumerate(phylogeny.roots) if root in same}

    def rank(node: str) -> tuple[int, int, float, int]:
        certain = [tie.edge.direction or 0.5 for tie in near[node] if tie.edge.directed]
        kind = 0 if node in roots else 2 if node in parents else 1
        return kind, roots.get(node, 0), -max(certain, default=0.0), -len(near[node])

    return [sorted((node for node in group if same[node] == node), key=rank) for group in phylogeny.groups]


def _hang(nodes: dict[str, Node], near: Ties, starts: list[list[str]]) -> tuple[tuple[tuple[str, ...], ...], Ties]:
    """The tops of each group's trees and the branches below each node, every node drawn once."""
    order = {node: place for place, node in enumerate(nodes)}
    below: Ties = defaultdict(list)
    seen: set[str] = set()
    trees = []
    for group in starts:
        tops = []
        for start in group:
            if start not in seen:
                tops.append(start)
            stack: list[tuple[str, Tie | None]] = [(start, None)]
            while stack:
                node, above = stack.pop()
                if node in seen:
                    continue
                seen.add(node)
                if above is not None:
                    below[above.node].append(Tie(node, above.edge))
                for tie in sorted(near[node], key=lambda tie: order[tie.node], reverse=True):
                    stack.append((tie.node, Tie(node, tie.edge)))
        if tops:
            trees.append(tuple(tops))
    return tuple(trees), below


def _original(nodes: dict[str, Node], node: str) -> str:
    """The node that this one is, at the end of all copies, a copy of; of copies in a circle the first by name."""
    seen = [node]
    while (copied := nodes[seen[-1]].duplicate_of) in nodes and copied is not None:
        if copied in seen:
            return min(seen[seen.index(copied) :])
        seen.append(copied)
    return seen[-1]


def table(phylogeny: Phylogeny, width: int = WIDTH) -> str:
    """The whole answer in at most `width` columns."""
    drawn = grow(phylogeny)
    edges = [edge for edge in phylogeny.edges if edge.parent in drawn.nodes and edge.child in drawn.nodes]
    lines = [*labelled("trees    ", f"{summary(phylogeny, drawn)}.", width), ""]
    cut = prefix_of([node.id for node in phylogeny.nodes if not node.hidden])
    cut = cut if _needed(drawn, edges) > width else ""
    page = _Page(drawn, _columns(edges), _fitting(drawn, edges, width), cut)
    lines += [page.aligned("", None)] * bool(page.columns)
    for tops in drawn.families:
        rows = (row for top in tops for row in drawn.rows(top))
        lines += labelled("group    ", about(phylogeny, drawn, tops), width)
        lines += [*(line for row in rows for line in page.lines(row)), ""]
    lines += ["no relatives in this set:"] * bool(drawn.alone)
    lines += [line for node in drawn.alone for line in labelled("  ", page.called(node), width)]
    for ref, why in phylogeny.left_out.items():
        lines += labelled("left out ", printable(ref), width)
        lines += labelled(" " * 9, printable(why), width)
    lines += [""] * bool(drawn.alone or phylogeny.left_out)
    lines += labelled("(in ", f"{cut})", width) * bool(cut)
    legend = "; ".join(LEGEND[head] for head, _ in page.columns if head in LEGEND)
    lines += labelled("", legend, width) * bool(legend)
    lines += labelled("~  ", UNDIRECTED, width) * any(not edge.directed for edge in edges)
    lines += labelled("!  ", REVERSED, width) * any(edge.claimed == "reversed" for edge in edges)
    if phylogeny.inheritance is not None:
        lines += ["", *section(phylogeny.inheritance, width, cut)]
    for note in phylogeny.notes:
        lines += labelled("note     ", printable(note), width)
    return "\n".join([*lines, cost_text(phylogeny)])


def summary(phylogeny: Phylogeny, drawn: Drawn) -> str:
    """How many of what there are."""
    hidden = sum(node.hidden for node in phylogeny.nodes)
    undirected = sum(not edge.directed for edge in phylogeny.edges)
    alone = f" ({len(drawn.alone)} without relatives)" if drawn.alone else ""
    parts = [
        count_text(len(phylogeny.nodes) - hidden, "model"),
        f"{count_text(len(phylogeny.groups), 'group')}{alone}",
        count_text(len(phylogeny.edges), "edge") + (f" ({undirected} undirected)" if undirected else ""),
    ]
    parts += [f"{count_text(hidden, 'ancestor')} missing from the set"] if hidden else []
    parts += [f"{count_text(len(phylogeny.left_out), 'model')} left out"] if phylogeny.left_out else []
    return f"{parts[0]} in {', '.join(parts[1:])}"


def about(phylogeny: Phylogeny, drawn: Drawn, tops: tuple[str, ...], show: Show | None = None) -> str:
    """How many models a group has and where it begins; `show` writes a foreign name."""
    group = drawn.nodes[tops[0]].group
    named = sum(node.group == group and not node.hidden for node in phylogeny.nodes)
    roots = [root for root in phylogeny.roots if root in drawn.nodes and drawn.nodes[root].group == group]
    known = [MISSING if drawn.nodes[root].hidden else (show or printable)(root) for root in roots]
    return (
        f"{count_text(named, 'model')}, {'from ' + ' and '.join(known) if known else 'which came first is not known'}"
    )


def name(drawn: Drawn, node: str, show: Show = printable) -> str:
    """What a node is called; `show` writes a foreign name."""
    return f"{show(node)} {MISSING}" if drawn.nodes[node].hidden else show(node)


def relation(edge: Edge) -> str:
    """What was done, in a word or two, with its measured fact if there is one."""
    fact, words = FACTS.get(edge.relation, ("", ""))
    value = edge.facts.get(fact)
    if isinstance(value, int | float):
        return shorten(f"{edge.relation}, {words.format(value)}", 20)
    return WORDS.get(edge.relation, edge.relation.replace("_", " "))


def made_of(ties: list[Tie], show: Show) -> str:
    """Which models a merge was made of, the heaviest first."""
    parts = [
        show(tie.node) + (f" ({number_text(tie.edge.weight)})" if tie.edge.weight is not None else "") for tie in ties
    ]
    return f"merge of {', '.join(parts[:-1])} and {parts[-1]}"


@dataclass(frozen=True, slots=True)
class _Page:
    """Where the lines of trees go: at the left the nodes, at the right the numbers of their edges."""

    drawn: Drawn
    columns: Columns
    width: int
    cut: str = ""

    def called(self, node: str) -> str:
        """What a node is called, without the folder that all of them begin with."""
        return printable(name(self.drawn, node).removeprefix(self.cut))

    def lines(self, row: Row) -> Iterator[str]:
        """A node with its numbers, what it was merged of, its copies; or one line of reference to it."""
        lead, drawn = _lead(row), self.drawn
        room = self.room - len(lead)
        if row.reference:
            place = drawn.merged.get(row.node, [Tie("", row.edge)] if row.edge else [])[0].node
            where = f", below {self.called(place)}" if place not in ("", row.above) else ", drawn elsewhere"
            text = self.called(row.node)
            text += where * (cells(text + where) <= room - 2)
            yield from self.numbered(lead, f"({text})", row)
            return
        yield from self.numbered(lead, self.called(row.node), row)
        under = self.under(row)
        if row.node in drawn.merged:
            text = made_of(drawn.merged[row.node], self.called)
            yield from labelled(under, text, self.width, under)
        for copy in drawn.copies[row.node]:
            yield from labelled(f"{under}= ", self.called(copy), self.width, f"{under}  ")

    @property
    def room(self) -> int:
        """Columns for a node."""
        return self.width - sum(width + 2 for _, width in self.columns) * (self.width >= NARROW)

    def under(self, row: Row) -> str:
        """What stands in front of further lines about a node."""
        return " " * len(_deep(row)) + _upright((*row.bars[-DEEP:], row.more))

    def numbered(self, lead: str, text: str, row: Row) -> Iterator[str]:
        """A node with the numbers of its edge: beside it, or below it where the page is narrow or its name long."""
        if self.width >= NARROW and cells(lead + text) <= self.room:
            yield self.aligned(lead + text, row.edge)
            return
        yield from labelled(lead, text, self.width, self.under(row)[: len(lead)])
        if row.edge is not None and self.width >= NARROW:
            yield self.aligned(self.under(row), row.edge)
        elif row.edge is not None:
            numbers = " ".join(_numbers(row.edge)[head] for head, _ in self.columns)
            yield self.under(row)[: max(0, self.width - len(numbers))] + numbers

    def aligned(self, text: str, edge: Edge | None) -> str:
        """A text at the left and an edge's numbers at the right, or the heads of the columns."""
        if edge is None and text:
            return text.rstrip()
        if edge is None and self.width < NARROW:
            return " ".join(head for head, _ in self.columns)
        shown = {head: head for head, _ in self.columns} if edge is None else _numbers(edge)
        numbers = [f"{shown[h]:<{w}}" if h == "relation" else f"{shown[h]:>{w}}" for h, w in self.columns]
        return f"{text}{' ' * (self.room - cells(text))}  {'  '.join(numbers)}".rstrip()


def _fitting(drawn: Drawn, edges: Sequence[Edge], width: int) -> int:
    """Columns that trees need, at least 80 of those that there are: numbers far from names could not be followed."""
    return min(width, max(WIDTH, _needed(drawn, edges)))


def _needed(drawn: Drawn, edges: Sequence[Edge]) -> int:
    """Columns that trees take with all names whole."""
    rows = (row for tops in drawn.families for top in tops for row in drawn.rows(top))
    longest = max((len(_lead(row)) + cells(name(drawn, row.node)) for row in rows), default=0)
    return longest + sum(wide + 2 for _, wide in _columns(edges))


def _numbers(edge: Edge) -> dict[str, str]:
    """What the columns show of an edge, by their heads."""
    return {
        "prob.": number_text(edge.probability, ".3f"),
        "order": number_text(edge.direction, ".3f"),
        "distance": number_text(edge.distance),
        "relation": relation(edge) + (" !" if edge.claimed == "reversed" else ""),
    }


def _lead(row: Row) -> str:
    """What stands before a node; of a deep tree how deep it is and the last levels."""
    if row.edge is None:
        return ""
    mark = ("├" if row.bars[-1] else "└") + ("─ " if row.edge.directed else "~ ")
    return _deep(row) + _upright(row.bars[:-1][1 - DEEP :]) + mark


def _deep(row: Row) -> str:
    return f"⋯{len(row.bars)} " if len(row.bars) > DEEP else ""


def _upright(bars: tuple[bool, ...]) -> str:
    return "".join("│  " if bar else "   " for bar in bars)


def _columns(edges: Sequence[Edge]) -> Columns:
    """The heads and widths of the columns that are needed."""
    words = max((len(relation(edge)) + 2 * (edge.claimed == "reversed") for edge in edges), default=0)
    order = [("order", 5)] if any(edge.direction is not None for edge in edges) else []
    return [("prob.", 5), *order, ("distance", 8), ("relation", max(8, words))] if edges else []


def markdown(phylogeny: Phylogeny) -> str:
    """Heading, sums, each tree as nested lists, and the notes, as Markdown; every foreign name is escaped."""
    drawn = grow(phylogeny)
    lines = ["## Family tree", "", f"{summary(phylogeny, drawn)}.", ""]
    for tops in drawn.families:
        items = (line for top in tops for row in drawn.rows(top) for line in _items(drawn, row))
        lines += [f"### {about(phylogeny, drawn, tops, code)}", "", *items, ""]
    if drawn.alone:
        lines += ["### No relatives in this set", "", *(f"- {name(drawn, node, code)}" for node in drawn.alone), ""]
    if phylogeny.left_out:
        lines += ["### Left out", "", *(f"- {code(ref)}: {code(why)}" for ref, why in phylogeny.left_out.items()), ""]
    lines += [f"- {code(note)}" for note in phylogeny.notes]
    lines += ["", flagged(phylogeny.inheritance)] if phylogeny.inheritance is not None else []
    return "\n".join(lines).rstrip() + "\n"


def _items(drawn: Drawn, row: Row) -> Iterator[str]:
    indent = "  " * min(len(row.bars), DEEP_LIST)
    parts = [name(drawn, row.node, code)]
    if row.edge is not None:
        numbers = (("probability", row.edge.probability, ".3f"), ("distance", row.edge.distance, ".3g"))
        parts[0] += f": {relation(row.edge)}"
        parts += [f"{what} {number_text(value, form)}" for what, value, form in numbers if value is not None]
        parts += [] if row.edge.directed else [UNDIRECTED]
        parts += ["its files say the reverse"] if row.edge.claimed == "reversed" else []
    if row.above is not None and len(row.bars) > DEEP_LIST:
        parts.append(f"below {name(drawn, row.above, code)}")
    if row.reference:
        parts.append("listed elsewhere")
    elif row.node in drawn.merged:
        parts.append(made_of(drawn.merged[row.node], code))
    yield f"{indent}- {', '.join(parts)}"
    if not row.reference:
        yield from (f"{indent}  - {code(copy)}: a copy" for copy in drawn.copies[row.node])


def newick(phylogeny: Phylogeny) -> str:
    """One line of extended Newick for each group; see `Phylogeny.to_newick`."""
    drawn = grow(phylogeny)
    twice = dict.fromkeys(tie.node for ties in drawn.also.values() for tie in ties)
    hybrids = {node: f"#H{place}" for place, node in enumerate(twice, 1)}
    lines = []
    for tops in drawn.trees:
        trees = [_subtree(drawn, top, hybrids) for top in tops]
        rooted = "[&R]" if set(tops) <= set(phylogeny.roots) else "[&U]"
        lines.append(f"{rooted} {trees[0] if len(trees) == 1 else '(' + ','.join(trees) + ')'};")
    return "\n".join(lines)


def _subtree(drawn: Drawn, top: str, hybrids: dict[str, str]) -> str:
    """The Newick of all that hangs below a node; a copy hangs below what it equals, at no distance."""
    out: list[str] = []
    stack: list[str | tuple[str, str, bool]] = [(top, "", True)]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            out.append(item)
            continue
        node, length, whole = item
        kids = [(tie.node, _length(tie.edge), True) for tie in drawn.below[node] * whole]
        kids += [(tie.node, _length(tie.edge), False) for tie in drawn.also[node] * whole]
        kids += [(copy, ":0", False) for copy in drawn.copies[node] * whole]
        stack.append(f"{')' if kids else ''}{_label(node)}{hybrids.get(node, '')}{length}")
        for place, kid in enumerate(reversed(kids)):
            stack += [","] * (place > 0) + [kid]
        stack += ["("] * bool(kids)
    return "".join(out)


def _label(node: str) -> str:
    text = printable(node)
    return text if BARE.fullmatch(text) else "'" + text.replace("'", "''") + "'"


def _length(edge: Edge) -> str:
    return f":{edge.distance:.6g}" if edge.distance is not None and math.isfinite(edge.distance) else ""


def graph(phylogeny: Phylogeny) -> nx.DiGraph:
    """The nodes and edges with the records' fields as attributes."""
    import networkx as nx

    made = nx.DiGraph()
    made.add_nodes_from((node.id, fields_of(node)) for node in phylogeny.nodes)
    made.add_edges_from((edge.parent, edge.child, fields_of(edge)) for edge in phylogeny.edges)
    return made
