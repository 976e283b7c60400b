"""Families as text and pictures: 80 columns, every model once, Newick that reads back, names that stay names."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from hf_lineage.answers.phylogeny import Edge, Node, Phylogeny
from hf_lineage.errors import ArgumentError
from hf_lineage.report.tree_plot import _slots, plot_tree
from hf_lineage.report.tree_text import graph, grow, markdown, newick, table

EVIL = [
    "a|b", "a`b", "<script>", "x\ny", "\x1b[31m", "a\u202eb", "a: b # c", "- &x [y]", "'\"", "o" * 200, "org/" + "n" * 196,
    "<b>$x^2$</b>", r"$\frac$", "模型/微调", "a\u2028b", "a\u0085b", "(a,b);", "it's_[mine]", "a#H1", "_x_ *y* ~z~", "\x00", "",
]  # fmt: skip


def family(parents: dict[str, object], **other) -> Phylogeny:
    """A forest from parents: None for a root, a name, `~name` for a tie without direction, several names of a merge.

    Names that start with `?` are hidden; `=name` makes a copy of it.
    """
    edges, copied, up = [], {}, {}
    for place, (child, given) in enumerate(parents.items()):
        above = list(given) if isinstance(given, tuple) else [given] if given else []
        merge = len(above) > 1
        for number, parent in enumerate(map(str, above)):
            if parent.startswith("="):
                copied[child] = parent[1:]
                continue
            tie = parent.startswith("~")
            ends = sorted((parent[1:], child)) if tie else (parent, child)
            up.setdefault(child, parent.removeprefix("~"))
            weight = round(0.6 - 0.2 * number, 9) if merge else None
            facts = {"direction": None if tie else 0.97, "distance": 0.01 * (place + 1), "weight": weight}
            edges.append(Edge(*ends, not tie, 0.99 - 0.01 * (place % 30), "merge" if merge else "finetune", **facts))
    nodes = []
    roots = [child for child, given in parents.items() if given is None]
    ties = nx.Graph([*((e.parent, e.child) for e in edges), *copied.items()])
    ties.add_nodes_from(parents)
    group = {node: place for place, found in enumerate(nx.connected_components(ties)) for node in found}
    for child in parents:
        top, seen = child, {child}
        while (after := copied.get(top) or up.get(top)) and after not in seen:
            top = after
            seen.add(top)
        generation = len(seen) if top in roots else None
        ref = None if child.startswith("?") else child
        nodes.append(Node(child, ref, ref, None, group[child], ref is None, generation, copied.get(child)))
    given = {"bytes_read": 4_194_304, "seconds": 1.25} | other
    return Phylogeny(tuple(nodes), tuple(edges), tuple(given.pop("roots", roots)), **given)  # type: ignore[arg-type]


def random_family(size: int, seed: int = 0, groups: int = 5) -> Phylogeny:
    draw, parents = random.Random(seed), {}
    for place in range(size):
        known, root = (
            [f"lab/resnet18.{i:03d}" for i in range(groups, place)],
            f"lab/resnet18.{draw.randrange(groups):03d}",
        )
        mother = draw.choice(known[-60:]) if known and draw.random() < 0.8 else root
        parents[f"lab/resnet18.{place:03d}"] = mother if place >= groups else None
    return family(parents)


SMALL = family(
    {
        "lab/alpha": None, "lab/beta": "lab/alpha", "lab/gamma": "lab/alpha", "lab/merged": ("lab/beta", "lab/gamma"),
        "lab/alpha-copy": "=lab/alpha", "lab/after": "lab/merged", "org/one": None, "?1": None, "org/left": "?1",
        "org/right": "?1", "org/tied-a": "org/tied-b", "org/tied-b": "~org/tied-c", "org/tied-c": "~org/tied-d",
        "org/tied-d": (),
    },
    left_out={"org/broken": "its header contradicts itself"},
    notes=("a remark that is long enough to be wrapped at the end of a line of eighty columns, and then some more",),
)  # fmt: skip
CHAIN = family({f"m{i}": f"m{i - 1}" if i else None for i in range(2000)})
FORESTS = {
    "none": family({}),
    "one": family({"lab/alone": None}),
    "two": family({"lab/a": None, "lab/b": "lab/a"}),
    "small": SMALL,
    "tied": family({"a": "~b", "b": "~c", "c": (), "d": "c", "e": "~d"}),
    "300": random_family(300),
    "evil": family({evil: EVIL[place - 1] if place % 5 else None for place, evil in enumerate(EVIL)}),
    "chain": CHAIN,
    "deep": family(
        {str(i).zfill(40): (str(i - 1).zfill(40), str(i - 2).zfill(40)) if i > 1 else None for i in range(200)}
    ),
}
ALL = pytest.mark.parametrize("phylogeny", FORESTS.values(), ids=FORESTS)


def edge(parent: str, child: str, directed: bool = True, **other) -> Edge:
    return Edge(parent, child, directed, other.pop("probability", None), other.pop("relation", "finetune"), **other)


def bare(names: str, *edges: Edge, roots: tuple[str, ...] = (), **groups: int) -> Phylogeny:
    """One letter for each node; what no helper would build."""
    return Phylogeny(tuple(Node(n, n, n, None, groups.get(n, 0)) for n in names), edges, roots)


MALFORMED = {
    "twice": bare("ab", edge("a", "b"), edge("a", "b"), edge("a", "b", False)),
    "triangle of ties": bare("abc", edge("a", "b", False), edge("b", "c", False), edge("a", "c", False)),
    "unknown ends": bare("ab", edge("a", "x"), edge("y", "b"), roots=("z",)),
    "across groups": bare("abc", edge("a", "b"), edge("c", "b", weight=0.9), roots=("a",), c=1),
    "copies in a circle": Phylogeny(
        tuple(Node(n, n, n, None, 0, duplicate_of=c) for n, c in ("ab", "bc", "ca", "dd")), (edge("b", "d"),), ()
    ),
    "nan": bare("ab", edge("a", "b", probability=float("nan"), distance=float("nan"), weight=float("inf"))),
}
BROKEN = pytest.mark.parametrize("phylogeny", MALFORMED.values(), ids=MALFORMED)


def as_itself(text: str, name: str) -> int:
    """How many lines of a table are about the node: drawn, a copy, or without relatives; references do not count."""
    return len(re.findall(rf"^(?:⋯\d+ )?[│├└─~ ]*(?:= )?{re.escape(name)}(?=  |$)", text, re.MULTILINE))


def with_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


@ALL
def test_the_table_fits_eighty_columns(phylogeny: Phylogeny) -> None:
    lines = table(phylogeny).splitlines()
    assert max(map(len, lines)) <= 80 and all(line.isprintable() for line in lines)
    assert not any("…" in line for line in lines), "no name is cut"
    assert lines[0].startswith("trees    ") and lines[-1] == "read     4.2 MB in 1.2 s, seed 0"
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", ["one", "two", "small", "tied", "300", "chain"])
def test_every_model_has_one_line(name: str) -> None:
    body = table(FORESTS[name]).partition("\n\n")[2]
    counts = Counter(re.findall(r"^(?:⋯\d+ )?[│├└─~ ]*(?:= )?([^\s(]+)", body, re.MULTILINE))
    assert {node.id: counts[node.id] for node in FORESTS[name].nodes} == {node.id: 1 for node in FORESTS[name].nodes}


@BROKEN
def test_what_is_no_tree_is_drawn_all_the_same(phylogeny: Phylogeny) -> None:
    text = table(phylogeny)
    assert all(as_itself(text, node.id) == 1 for node in phylogeny.nodes), text
    assert all(f"`{node.id}`" in markdown(phylogeny) for node in phylogeny.nodes)
    assert "nan" not in newick(phylogeny) and newick(phylogeny).count(";") <= len(phylogeny.groups)
    named = Counter(label for line in newick(phylogeny).splitlines() for label in read_newick(line)[2])
    assert set(named) - {None} == {node.id for node in phylogeny.nodes}
    figure = plot_tree(phylogeny, style="tree")
    assert len(with_gid(figure, "model")) + len(with_gid(figure, "note")) == len(phylogeny.nodes)
    plot_tree(phylogeny, style="ring").canvas.draw()


def test_the_lines_of_a_table() -> None:
    text = table(SMALL)
    assert "13 models in 4 groups (1 without relatives), 10 edges (2 undirected), 1\n" in text
    assert "ancestor missing from the set, 1 model left out." in text
    for line in (
        "group    6 models, from lab/alpha\nlab/alpha\n│  = lab/alpha-copy\n├─ lab/beta",
        "│     │  merge of lab/beta (0.6) and lab/gamma (0.4)\n│     └─ lab/after",
        "   └─ (lab/merged, below lab/beta)            0.960  0.970      0.04  merged",
        "group    2 models, from an ancestor that is not in the set\n?1 an ancestor that is not in the set\n├─ org/left",
        "group    4 models, which came first is not known\norg/tied-b\n├─ org/tied-a",
        "└~ org/tied-c                                 0.880      -      0.12  fine-tuned\n   └~ org/tied-d",
        "no relatives in this set:\n  org/one\n",
        "left out org/broken\n         its header contradicts itself\n",
        "~  which of the two came first is not known\n",
        "note     a remark that is long enough to be wrapped at the end of a line of\n         eighty columns",
    ):
        assert line in text


def test_legends_stand_only_where_they_are_needed() -> None:
    text = table(FORESTS["two"])
    assert "~" not in text and "!" not in text and "no relatives" not in text and "prob." in text
    assert "prob." not in table(FORESTS["one"])
    claimed = bare("ab", edge("a", "b", claimed="reversed"), roots=("a",))
    assert "fine-tuned !" in table(claimed) and "!  the models' own files say the reverse" in table(claimed)
    assert "its files say the reverse" in markdown(claimed)
    assert "order" not in table(claimed), "no direction was measured"


@pytest.mark.parametrize(
    ("kind", "facts", "words"),
    [
        ("finetune", {}, "fine-tuned"),
        ("identical", {}, "identical copy"),
        ("quantized", {"bits": 4}, "quantized, 4 bits"),
        ("quantized", {}, "quantized"),
        ("pruned", {"zeros": 0.5}, "pruned, 50%"),
        ("adapter", {"rank": 8}, "adapter, rank 8"),
        ("head_changed", {}, "head changed"),
    ],
)
def test_words_for_relations(kind: str, facts: dict, words: str) -> None:
    line = table(bare("ab", edge("a", "b", relation=kind, facts=facts), roots=("a",))).splitlines()[5]
    assert line.startswith("└─ b ") and line.endswith(f"  {words}")


def test_the_columns_stand_below_each_other() -> None:
    rows = [line for line in table(FORESTS["300"]).splitlines() if line.endswith("fine-tuned")]
    assert len(rows) == 295 and {len(line) for line in rows} == {80}


def test_a_group_without_a_known_root_starts_where_direction_is_surest() -> None:
    phylogeny = bare(
        "abcd",
        edge("b", "a", direction=0.6),
        edge("c", "d", direction=0.99),
        edge("b", "c", False),
        edge("a", "c", False),
    )
    assert grow(phylogeny).trees == (("c",),)


def test_a_deep_tree_tells_how_deep() -> None:
    lines = table(CHAIN).splitlines()
    assert next(line for line in lines if " m1999 " in line).startswith("⋯1999 ")
    assert "below `m1998`" in markdown(CHAIN) and max(map(len, markdown(CHAIN).splitlines())) < 200


@ALL
def test_markdown_has_every_name_once_as_code(phylogeny: Phylogeny) -> None:
    lines = markdown(phylogeny).splitlines()
    assert all(line.isprintable() for line in lines)
    assert all(line.count("`") % 2 == 0 and not re.search(r"[<>|]", line) for line in lines)
    first = Counter(line.strip().partition(":")[0] for line in lines if line.strip().startswith("- `"))
    if phylogeny is not FORESTS["evil"]:
        assert all(any(f"- `{node.id}`" in key for key in first) for node in phylogeny.nodes)


def read_newick(line: str) -> tuple[str, list[tuple], list]:
    """The mark of the root, (parent, child, length) of every branch, every label: a reader of its own."""
    mark, rest = line[:4], line[5:]
    tokens = re.findall(r"'(?:[^']|'')*'(?:#H\d+)?|[^\s(),:;']+|[(),:;]", rest)
    assert "".join(tokens) == rest and rest.endswith(";")
    levels: list[list] = [[]]
    branches, labels, kids, name, length, measured = [], [], [], None, None, False
    for token in tokens:
        if token == "(":
            levels.append([])
        elif token in {",", ")", ";"}:
            branches += [(name, child, far) for child, far in kids]
            labels.append(name)
            levels[-1].append((name, length))
            kids, name, length = levels.pop() if token == ")" else [], None, None
        elif token == ":":
            measured = True
        elif measured:
            length, measured = float(token), False
        else:
            name = re.sub(r"#H\d+$", "", token)
            name = name[1:-1].replace("''", "'") if name[0] == "'" else name
    assert len(levels) == 1 and len(levels[0]) == 1
    return mark, branches, labels


@pytest.mark.parametrize("name", ["one", "two", "small", "tied", "300", "chain"])
def test_newick_reads_back(name: str) -> None:
    phylogeny = FORESTS[name]
    lines = newick(phylogeny).splitlines()
    assert len(lines) == len(phylogeny.groups)
    found = Counter(branch for line in lines for branch in read_newick(line)[1])
    wanted = Counter((e.parent, e.child, float(f"{e.distance:.6g}")) for e in phylogeny.edges if e.directed)
    wanted += Counter((node.duplicate_of, node.id, 0.0) for node in phylogeny.nodes if node.duplicate_of)
    ties = {(frozenset((e.parent, e.child)), e.distance) for e in phylogeny.edges if not e.directed}
    assert not wanted - found
    assert {(frozenset(ends), far) for *ends, far in found - wanted} == ties
    for line in lines:
        mark, _, labels = read_newick(line)
        assert mark == ("[&R]" if set(labels) & set(phylogeny.roots) else "[&U]")
        assert set(labels) in [set(group) for group in phylogeny.groups]


def test_a_merge_is_a_hybrid_node_below_each_parent() -> None:
    line = newick(SMALL).splitlines()[0]
    assert line.count("lab/merged#H1:0.04") == 2 and "#H2" not in newick(SMALL)


def test_newick_quotes_what_it_must() -> None:
    text = newick(FORESTS["evil"])
    assert "'it''s_[mine]'" in text and "'(a,b);'" in text and "'a#H1'" in text and "'a b'" in text
    assert len(text.splitlines()) == len(FORESTS["evil"].groups)
    assert sum(len(read_newick(line)[2]) for line in text.splitlines()) == len(EVIL)
    assert newick(bare("ab", edge("a", "b", distance=1 / 3), roots=("a",))) == "[&R] (b:0.333333)a;"
    assert newick(bare("ab", edge("a", "b"), roots=("a",))) == "[&R] (b)a;"
    assert newick(bare("ab")) == "[&U] (a,b);"


def test_the_graph_has_the_fields() -> None:
    made = graph(SMALL)
    assert set(made) == {node.id for node in SMALL.nodes} and set(made.edges) == {
        (e.parent, e.child) for e in SMALL.edges
    }
    assert made.nodes["?1"]["hidden"] and made.nodes["lab/alpha-copy"]["duplicate_of"] == "lab/alpha"
    assert made.edges["lab/gamma", "lab/merged"]["weight"] == 0.4
    assert made.edges["org/tied-b", "org/tied-c"]["directed"] is False
    assert SMALL.to_networkx().edges == made.edges and str(SMALL) == table(SMALL) and SMALL.to_newick() == newick(SMALL)


def test_trees_show_every_model_and_edge(tmp_path: Path) -> None:
    figure = SMALL.plot(tmp_path / "tree.png")
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    counts = {gid: len(with_gid(figure, gid)) for gid in ("model", "label", "note", "hidden", "edge", "tie")}
    assert counts == {"model": 12, "label": 12, "note": 1, "hidden": 1, "edge": 8, "tie": 2}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == 5 and "which came first is not known" in legend
    cut = bare("ab", edge("a", "b", relation="quantized", facts={"bits": 4}), roots=("a",))
    assert [text.get_text() for text in with_gid(plot_tree(cut), "note")] == ["quantized, 4 bits"]
    plain = plot_tree(FORESTS["two"])
    legend = [text.get_text() for text in plain.legends[0].get_texts()]
    assert legend == ["the oldest of its family", "from parent to child; thicker: surer"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["small", "evil", "300", "tied"])
def test_no_label_leaves_its_box_and_no_box_covers_another(name: str) -> None:
    figure = plot_tree(FORESTS[name], style="tree")
    figure.canvas.draw()
    boxes = [patch.get_window_extent() for patch in with_gid(figure, "model")]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width and 0 <= box.y0 < box.y1 <= figure.bbox.height
    for label in with_gid(figure, "label"):
        inside = label.get_window_extent()
        assert any(box.x0 <= inside.x0 and inside.x1 <= box.x1 for box in boxes), label.get_text()


def test_a_merge_stands_right_of_both_parents() -> None:
    figure = plot_tree(family({"a": None, "b": "a", "c": "b", "d": ("a", "c"), "e": "d"}))
    lefts = {text.get_text(): text.get_position()[0] for text in with_gid(figure, "label")}
    assert sorted(lefts, key=lefts.__getitem__) == ["a", "b", "c", "d", "e"]


def test_rings_show_every_model_and_ancestor(tmp_path: Path) -> None:
    figure = plot_tree(SMALL, tmp_path / "ring.png", style="ring")
    sizes = {gid: len(with_gid(figure, gid)[0].get_paths()) for gid in ("models", "families", "generations")}
    # generations 1, 2, 3, 4, not known, and who is alone; in them the families of alpha, ?1, tied and who is alone
    assert sizes == {"models": 14, "families": 2 + 2 + 1 + 1 + 1 + 1, "generations": 6}
    arcs = {c.get_gid(): len(c.get_paths()) for c in figure.findobj(PathCollection)}
    assert arcs == {
        "parent": 8,
        "grandparent": 3,
        "great-grandparent": 1,
        "which came first is not known": 2,
    }
    assert len(with_gid(figure, "label")) == 13


@pytest.mark.integration
def test_three_hundred_models_make_rings() -> None:
    figure = plot_tree(FORESTS["300"])
    depth = [node.generation for node in FORESTS["300"].nodes]
    arcs = [sum(d > step for d in depth) for step in (1, 2, 3)]
    assert [len(c.get_paths()) for c in figure.findobj(PathCollection)] == arcs
    assert len(with_gid(figure, "models")[0].get_paths()) == 300
    names = {label.get_text() for label in with_gid(figure, "label")}
    oldest = {name.removeprefix("lab/resnet18.") for name in FORESTS["300"].roots}
    assert 5 <= len(names) < 300 and {name[-3:] for name in names} > oldest, (
        "ancestors are named, for others is no room"
    )
    assert not with_gid(plot_tree(random_family(40)), "models"), "forty are still trees"


def test_parts_of_the_ring_are_as_wide_as_descendants_are_many() -> None:
    """Models innermost, generations outermost and in order; widths by hand, of a merge's parents counted once each."""
    tree = family({"a": None, "b": "a", "c": "a", "m": ("b", "c"), "z": None, "y": "z"})
    figure = plot_tree(tree, style="ring")
    radii = {
        gid: max(math.hypot(*p) for path in with_gid(figure, gid)[0].get_paths() for p in path.vertices)
        for gid in ("models", "families", "generations")
    }
    assert radii["models"] < radii["families"] < radii["generations"]
    turns = [slot.node for slot in _slots(tree, grow(tree))]
    assert turns == ["a", "z", "b", "c", "y", "m"]
    wide = {slot.node: slot.end - slot.start for slot in _slots(tree, grow(tree))}
    unit = min(1.0, 6 / (3 + 1 + 1 + 1))
    for node, below in {"a": 3, "b": 1, "c": 1, "m": 0, "z": 1, "y": 0}.items():
        assert wide[node] / wide["m"] == pytest.approx(1 + unit * below)
    leaf = next(slot for slot in _slots(CHAIN, grow(CHAIN)) if slot.node == "m1999")
    assert leaf.end - leaf.start > 0.4 * 360 / 2000, "of a long chain the last one is seen, too"


@pytest.mark.parametrize("style", ["tree", "ring"])
def test_names_in_a_picture_are_no_formulas(style: str, tmp_path: Path) -> None:
    figure = plot_tree(FORESTS["evil"], tmp_path / "evil.png", style=style)
    names = {line for label in with_gid(figure, "label") for line in label.get_text().split("\n")}
    whole = "".join(label.get_text().replace("\n", "") for label in with_gid(figure, "label"))
    assert "org/" + "n" * 196 in whole, "no name is cut"
    assert {"<b>$x^2$</b>", r"$\frac$", "□□/□□", "a?b", "x y"} <= names
    assert max(map(len, names)) <= 40 and all(name.isprintable() for name in names)
    assert not any(label.get_parse_math() for label in with_gid(figure, "label"))


@pytest.mark.integration
@pytest.mark.parametrize("style", ["tree", "ring"])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_the_same_bytes_twice(style: str, ending: str, tmp_path: Path) -> None:
    for place in "ab":
        plot_tree(SMALL, tmp_path / f"{place}.{ending}", style=style)
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@pytest.mark.integration
@pytest.mark.parametrize("name", ["none", "one", "chain"])
@pytest.mark.parametrize("style", ["tree", "ring"])
def test_few_and_many_can_be_drawn(name: str, style: str, tmp_path: Path) -> None:
    figure = plot_tree(FORESTS[name], tmp_path / "x.png", style=style)
    assert 1 <= min(figure.get_size_inches()) <= max(figure.get_size_inches()) < 48.1


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Expected the style `auto`, `tree` or `ring`, got 'radial'"):
        plot_tree(SMALL, style="radial")
