"""The answer of `phylogeny`: the models of a set and the edges of descent between them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import Note
from .base import StatisticalAnswer, fields_of, report
from .inheritance import Inheritance
from .lineage import Relation

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Node:
    """One model of the set, or an ancestor that is missing from it (`hidden`, called `?1`, `?2`, …, without a ref).

    `group` counts from 0: models of one group share an origin. `generation` is 1 for a root, one more than its nearest
    parent's else, None where the way from the root is not known. `duplicate_of`: the node that it is a copy of.
    """

    id: str
    ref: str | None
    requested: str | None
    revision: str | None
    group: int
    hidden: bool = False
    generation: int | None = None
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """One step of descent. Of an undirected edge the two ids are sorted: the direction is not known.

    `probability`, in [0, 1], that the two are neighbours in the tree, None where the method gives none; `direction`, in
    [0.5, 1], that `parent` came first, None of an undirected edge or where the method gives none. `relation`: what was
    done, as far as the weights show; several edges of the relation `merge` lead to one child.
    `distance`: relative, ‖child − parent‖/√(‖child‖·‖parent‖) over the tensors compared. `weight`: of a merge's parent.
    `claimed`: what the models' own files say of it, which can be false and decides nothing.
    """

    parent: str
    child: str
    directed: bool
    probability: float | None
    relation: Relation
    direction: float | None = None
    distance: float | None = None
    weight: float | None = None
    claimed: Literal["same", "reversed"] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def descent_cycle(edges: Iterable[tuple[Name, Name]]) -> list[Name]:
    """Nodes of which each is a parent of the next, and the last of the first; empty where no node descends from itself.

    edges: (parent, child).

    >>> descent_cycle([("a", "b"), ("b", "c"), ("a", "c")]), sorted(descent_cycle([("a", "b"), ("b", "c"), ("c", "b")]))
    ([], ['b', 'c'])
    """
    parents: dict[Name, list[Name]] = {}
    children: dict[Name, list[Name]] = {}
    for parent, child in edges:
        for node, above, below in ((child, [parent], []), (parent, [], [child])):
            parents.setdefault(node, []).extend(above)
            children.setdefault(node, []).extend(below)
    left = {node: len(above) for node, above in parents.items()}  # parents that may still lie on a cycle
    free = [node for node, count in left.items() if not count]
    for node in free:  # grows
        for child in children[node]:
            left[child] -= 1
            if not left[child]:
                free.append(child)
    parents = {node: [p for p in above if left[p]] for node, above in parents.items() if left[node]}
    if not parents:
        return []
    walk = [next(iter(parents))]  # every node that is left has a parent among them
    while walk[-1] not in walk[:-1]:
        walk.append(parents[walk[-1]][0])
    return walk[walk.index(walk[-1]) : -1][::-1]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Phylogeny(StatisticalAnswer):
    """The answer of `phylogeny`: one tree for each group of models that share an origin.

    `roots`: the oldest node of each group where that is known, a model without relatives included. `left_out`: ref
    → why, of models that could not be read or compared. `quality`: see docs/schema.md. `inheritance`: what flags of
    some models mean for the others, put there with `dataclasses.replace` by who asks. Raises `ValueError` where a model
    would be its own ancestor, or a root would have a parent.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    roots: tuple[str, ...]
    quality: dict[str, Any] = field(default_factory=dict)
    method: str = "information"
    left_out: dict[str, Note] = field(default_factory=dict)
    inheritance: Inheritance | None = None
    alpha: float = field(default=1e-2, kw_only=True)

    def __post_init__(self) -> None:
        directed = [(edge.parent, edge.child) for edge in self.edges if edge.directed]
        if cycle := descent_cycle(directed):
            raise ValueError(f"Expected trees, got models that descend from themselves: {', '.join(cycle)}.")
        if below := {child for _, child in directed} & {*self.roots}:
            raise ValueError(f"Expected roots without parents, got {', '.join(sorted(below))}.")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The ids of each group's nodes."""
        return tuple(
            tuple(node.id for node in self.nodes if node.group == group)
            for group in sorted({node.group for node in self.nodes})
        )

    def parents(self, node: str) -> tuple[str, ...]:
        """The ids of a node's parents: several of a merge, none of a root or where direction is not known."""
        return tuple(edge.parent for edge in self.edges if edge.directed and edge.child == node)

    def content(self) -> dict[str, Any]:
        """The JSON contract without `schema`."""
        return {
            "nodes": [fields_of(node) for node in self.nodes],
            "edges": [fields_of(edge) for edge in self.edges],
            "roots": self.roots,
            "quality": self.quality,
            "method": self.method,
            "left_out": self.left_out,
            "inheritance": self.inheritance and self.inheritance.content(),
            "notes": self.notes,
            **self.cost(),
        }

    @classmethod
    def read_fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields from their JSON."""
        return {
            "nodes": tuple(Node(**node) for node in data["nodes"]),
            "edges": tuple(Edge(**edge) for edge in data["edges"]),
            "roots": tuple(data["roots"]),
            "left_out": {ref: Note.from_dict(why) for ref, why in data["left_out"].items()},
            **{name: data[name] for name in ("quality", "method")},
            "inheritance": Inheritance(**Inheritance.read_fields(flagged))
            if (flagged := data.get("inheritance"))
            else None,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The edges."""
        return [{name: value for name, value in fields_of(edge).items() if name != "facts"} for edge in self.edges]

    def to_newick(self) -> str:
        """One line of Newick for each group, `[&R]` where its root is known and `[&U]` where it is not.

        Branch lengths are the edges' relative distances. A merge is an extended Newick hybrid node: `#H1` below each of
        its parents (Cardona et al. 2008).
        """
        return report("tree_text.newick")(self)

    def to_networkx(self) -> nx.DiGraph:
        """The nodes and edges with their fields as attributes; an undirected edge is there once, with
        directed=False."""
        return report("tree_text.graph")(self)

    def sentence(self) -> str:
        """How many models, groups and edges there are, in one plain sentence."""
        return f"{report('tree_text.summary')(self, report('tree_text.grow')(self))}."

    def to_markdown(self) -> str:
        """Each tree as nested lists, and the notes, as Markdown."""
        return report("tree_text.markdown")(self)

    def plot(self, path: str | Path | None = None, *, style: Literal["auto", "tree", "ring"] = "auto") -> Figure:
        """Draw the trees, for up to about 40 models, or else rings with an arc for each ancestor (Neural Lineage,
        Fig. 1(b)); saved to `path` if given."""
        return report("tree_plot.plot_tree")(self, path, style=style)

    def __repr__(self) -> str:
        named = sum(not node.hidden for node in self.nodes)
        return f"Phylogeny({named} models, {len(self.groups)} groups, {len(self.edges)} edges, method={self.method!r})"

    def to_text(self, width: int = 80) -> str:
        """The answer as a table in at most `width` columns."""
        return report("tree_text.table")(self, width)
