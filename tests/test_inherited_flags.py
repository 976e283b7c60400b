"""What flags of some models mean for their relatives: against enumeration of all worlds, closed forms, and invariances."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest

import hf_lineage as hl
from hf_lineage.answers.audit import AuditRecord
from hf_lineage.answers.inheritance import Rates
from hf_lineage.answers.lineage import Claim
from hf_lineage.answers.phylogeny import Edge, Node, Phylogeny
from hf_lineage.errors import ArgumentError
from hf_lineage.trees.inherited_flags import Link, inherited_flags

Both = dict[str, tuple[float, float]]
PLAIN = Rates(0.9, 0.01, 0.05)


def enumerated(models: Sequence[str], links: Sequence[Link], rates: Rates, flags: Mapping[str, float]) -> Both:
    """The same by counting: every choice of the oldest, every set of edges that are there, every state of all models."""
    loose = nx.Graph([(k.parent, k.child) for k in links if not k.directed])
    parts = [sorted(part) for part in nx.connected_components(loose)]
    has_parent = {k.child for k in links if k.directed}
    choices = [[m for m in part if m in has_parent] or part for part in parts]

    def marginals(weights: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        total, having = 0.0, dict.fromkeys(models, 0.0)
        for oldest in itertools.product(*choices):
            steps = {m: n for o in oldest for m, n in nx.single_source_shortest_path_length(loose, o).items()}
            ends = [
                (k.parent, k.child) if k.directed or steps[k.parent] < steps[k.child] else (k.child, k.parent)
                for k in links
            ]  # fmt: skip
            for there in itertools.product((False, True), repeat=len(links)):
                world = math.prod(k.probability if t else 1 - k.probability for k, t in zip(links, there, strict=True))
                parents = {m: [a for (a, b), t in zip(ends, there, strict=True) if t and b == m] for m in models}
                for states in itertools.product((0, 1), repeat=len(models)):
                    state, p = dict(zip(models, states, strict=True)), world
                    for m in models:
                        spared = math.prod(1 - rates.inherited * state[k] for k in parents[m])
                        has = 1 - (1 - rates.arises) * spared if parents[m] else rates.prior
                        p *= (has if state[m] else 1 - has) * weights.get(m, (1.0, 1.0))[state[m]]
                    total += p
                    for m in models:
                        having[m] += p * state[m]
        return {m: having[m] / total for m in models}

    before = marginals({})
    after = marginals({m: ((1 - p) / (1 - before[m]), p / before[m]) for m, p in flags.items()})
    return {m: (before[m], after[m]) for m in models}


@pytest.mark.parametrize("seed", range(12))
def test_enumeration_of_all_worlds_gives_the_same(seed: int) -> None:
    """Random trees with directed and undirected edges, some with a merge."""
    rng = random.Random(seed)
    models = list("abcd"[: 2 + seed % 3])
    links = [
        Link(models[rng.randrange(i)], models[i], seed % 3 == 0 or rng.random() < 0.6, rng.choice([1.0, rng.random()]))
        for i in range(1, len(models))
    ]
    if len(models) == 4 and links[-1].directed and links[-1].parent != "a":
        links.append(Link("a", "d", True, 0.7))
    rates = Rates(rng.random(), rng.random() / 5, rng.uniform(0.05, 0.95))
    flags = {m: rng.choice([1.0, rng.random()]) for m in rng.sample(models, 1 + seed % 2)}
    ours, theirs = inherited_flags(models, links, rates, flags), enumerated(models, links, rates, flags)
    for model in models:
        assert ours[model] == pytest.approx(theirs[model], abs=1e-12)


def test_closed_forms() -> None:
    """A chain forwards and backwards, a merge, a pair without direction."""
    q, new, prior = PLAIN.inherited, PLAIN.arises, PLAIN.prior
    on = 1 - (1 - new) * (1 - q)  # P(child | parent has it)
    chain = [Link("a", "b", True, 1.0), Link("b", "c", True, 1.0)]
    down = inherited_flags("abc", chain, PLAIN, {"a": 1.0})
    assert [down[m][1] for m in "abc"] == pytest.approx([1.0, on, on * on + (1 - on) * new], abs=1e-14)
    up = inherited_flags("ab", chain[:1], PLAIN, {"b": 1.0})
    assert up["a"][1] == pytest.approx(prior * on / (prior * on + (1 - prior) * new), abs=1e-14)
    merge = [Link("a", "c", True, 1.0), Link("b", "c", True, 1.0)]
    assert inherited_flags("abc", merge, PLAIN, {"a": 1.0, "b": 1.0})["c"][1] == pytest.approx(
        1 - (1 - new) * (1 - q) ** 2, abs=1e-14
    )
    unsure = inherited_flags("ab", [Link("a", "b", True, 0.3)], PLAIN, {"a": 1.0})
    assert unsure["b"][1] == pytest.approx(0.3 * on + 0.7 * prior, abs=1e-14)
    back = prior * on / (prior * on + (1 - prior) * new)
    either = inherited_flags("ab", [Link("a", "b", False, 1.0)], PLAIN, {"a": 1.0})
    has = prior * on + (1 - prior) * new  # P(a has it | b is older)
    weights = prior / (prior + has), has / (prior + has)  # of the two orders, after a was seen to have it
    assert either["b"][1] == pytest.approx(weights[0] * on + weights[1] * back, abs=1e-14)


def test_what_must_not_change() -> None:
    models = [*"abcdef"]
    links = [Link("a", "b", True, 0.9), Link("b", "c", False, 0.8), Link("d", "e", True, 1.0)]
    nothing = inherited_flags(models, links, PLAIN, {})
    assert all(before == after for before, after in nothing.values())
    found = inherited_flags(models, links, PLAIN, {"b": 0.7})
    assert all(found[m] == nothing[m] for m in "def")  # no edge leads there: to the bit
    assert found["b"][1] == pytest.approx(0.7, abs=1e-14)  # of a single flag what was said
    assert found["a"][1] > found["a"][0] and found["c"][1] > found["c"][0]
    again = inherited_flags(models[::-1], links[::-1], PLAIN, {"b": 0.7})
    assert all(again[m] == pytest.approx(found[m], abs=1e-14) for m in models)
    said_nothing = inherited_flags(models, links, PLAIN, {"c": nothing["c"][0]})
    assert all(said_nothing[m] == pytest.approx(nothing[m], abs=1e-12) for m in models)
    licence = inherited_flags(
        "abc", [Link("a", "b", True, 1.0), Link("b", "c", True, 1.0)], Rates(1, 0, 0.2), {"c": 1.0}
    )
    assert [after for _, after in licence.values()] == pytest.approx([1, 1, 1])


def test_large_trees_and_undirected_ones() -> None:
    """Hundreds of models, whose first has a known probability below a long chain; and a star without any direction."""
    chain = [Link(str(i), str(i + 1), True, 1.0) for i in range(300)]
    found = inherited_flags([str(i) for i in range(301)], chain, Rates(0.99, 0.001, 0.3), {"0": 1.0})
    on = 1 - 0.999 * 0.01
    fixed = 0.001 / (1 - on + 0.001)
    assert found["300"][1] == pytest.approx(fixed + (1 - fixed) * (on - 0.001) ** 300, abs=1e-12)
    star = [Link("0", str(i), False, 0.9) for i in range(1, 40)]
    after = inherited_flags([str(i) for i in range(40)], star, PLAIN, {"1": 1.0})
    assert after["2"] == pytest.approx(after["39"], abs=1e-12) and after["0"][1] > after["2"][1] > after["2"][0]


def test_undirected_edges_never_close_a_circle() -> None:
    """a → b → c with a third edge between a and c: whoever is the oldest, a stays above c."""
    links = [Link("a", "b", True, 1.0), Link("b", "c", True, 1.0), Link("c", "a", False, 1.0)]
    directed = [*links[:2], Link("a", "c", True, 1.0)]
    assert inherited_flags("abc", links, PLAIN, {"b": 1.0}) == inherited_flags("abc", directed, PLAIN, {"b": 1.0})
    with pytest.raises(ArgumentError, match="descends from itself"):
        inherited_flags("ab", [Link("a", "b", True, 1.0), Link("b", "a", True, 1.0)], PLAIN, {})


def tree() -> Phylogeny:
    names = ["org/base", "org/copy", "user/child", "lab/alone"]
    nodes = [
        Node(n, n, n, None, i // 3, False, None, "org/base" if n == "org/copy" else None) for i, n in enumerate(names)
    ]
    edges = [
        Edge("org/base", "org/copy", False, 1.0, "identical"), Edge("org/copy", "user/child", True, 0.9, "finetune", 0.98),
    ]  # fmt: skip
    return Phylogeny(tuple(nodes), tuple(edges), ("org/base", "lab/alone"))


class TestAnswers:
    def test_of_a_tree(self, tmp_path: Path) -> None:
        found = hl.inheritance(tree(), {"org/base": 0.9}, inherited=0.8, arises=0.02)
        direct = inherited_flags(
            ["b", "c"], [Link("b", "c", True, 0.9 * 0.98)], Rates(0.8, 0.02, 0.02), {"b": 0.9}
        )  # fmt: skip
        assert found.after("org/copy") == found.after("org/base") == pytest.approx(0.9)
        assert found.after("user/child") == pytest.approx(direct["c"][1]) and found.after("lab/alone") == pytest.approx(
            0.02
        )
        assert [m.ref for m in found.models][-1] == "lab/alone"
        whole = replace(tree(), inheritance=found)
        assert Phylogeny.from_json(whole.to_json()) == whole and type(found).from_json(found.to_json()) == found
        text = whole.to_text(80)
        assert "assumed, not measured" in text and "0.900" in text and "lab/alone" not in text.split("flagged ")[1]
        assert "### Flagged" in whole.to_markdown() and "`user/child`" in found.to_markdown()
        drawn = whole.plot(tmp_path / "tree.png", style="tree")
        flags = [artist for artist in drawn.axes[0].get_children() if artist.get_gid() == "flag"]
        assert len(flags) == 2 * 3  # a copy shares a box
        (ring,) = [each for each in whole.plot(style="ring").axes[0].collections if each.get_gid() == "flag"]
        assert len(ring.get_paths()) == 4

    def test_of_an_audit(self) -> None:
        """Bases that the weights bear out hand it on, over several records; what was not tested does not."""

        def record(ref: str, base: str, status: str, probability: float | None) -> AuditRecord:
            claim = Claim("card", base, None, status)  # type: ignore[arg-type]
            return AuditRecord(ref, ref, status, claims=(claim,), probability=probability)  # type: ignore[arg-type]

        records = [
            record("b", "a", "confirmed", 0.8), record("c", "b", "confirmed", 0.9), record("d", "a", "not_testable", None)
        ]  # fmt: skip
        found = hl.inheritance(records, {"a": 1.0})
        direct = inherited_flags(
            "abc", [Link("a", "b", True, 0.8), Link("b", "c", True, 0.9)], Rates(0.9, 0.01, 0.01), {"a": 1.0}
        )  # fmt: skip
        assert [found.after(m) for m in "abc"] == pytest.approx([direct[m][1] for m in "abc"])
        assert found.after("d") == pytest.approx(0.01)
        assert "changes nothing" in hl.inheritance(records, {"org/nobody": 1.0}).sentence()

    @pytest.mark.parametrize(
        ("flags", "rates", "words"),
        [
            ({"org/base": 1.5}, {}, "probability"), ({"org/base": float("nan")}, {}, "probability"),
            ({"nobody": 1.0}, {}, "not among"), ({"org/base": 0.5}, {"inherited": -1}, "inherited"),
            ({"org/base": 0.5}, {"prior": 0.0}, "cannot have it"), ({"org/base": 1.0, "org/copy": 0.0}, {}, "twice"),
            ({"user/child": 1.0, "org/base": 0.0}, {"arises": 0.0, "prior": 0.5}, None),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said(self, flags: dict[str, float], rates: dict[str, float], words: str | None) -> None:
        if words is None:  # impossible but for the edge that may not be there
            assert hl.inheritance(tree(), flags, **rates).after("user/child") == 1.0
            return
        with pytest.raises(ArgumentError, match=words):
            hl.inheritance(tree(), flags, **rates)

    def test_flags_that_exclude_each_other(self) -> None:
        links = [Link("a", "b", True, 1.0)]
        with pytest.raises(ArgumentError, match="one excludes another"):
            inherited_flags("ab", links, Rates(1.0, 0.0, 0.5), {"a": 1.0, "b": 0.0})


@pytest.mark.integration
def test_on_the_command_line(run, folders: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(
        "tree", folders["parent"], folders["child"], "--flag", f"{folders['parent']}=0.9", "--prior", "0.2"
    )
    assert code == 0 and "flagged  assumed, not measured" in out and "has it with 0.2" in " ".join(out.split())
    code, out, err = run("tree", folders["parent"], "--flag", "a=b")
    assert code == 2 and "MODEL=PROBABILITY" in err
