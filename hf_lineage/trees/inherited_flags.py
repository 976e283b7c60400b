"""What a flaw of one model means for its relatives: exact marginals of a Bayesian network on the edges of descent.

A model either has the flaw (1) or not (0). Parent k hands it on with probability pₖ·q: pₖ that the edge is there, q
that a child inherits. With ν that it arises anew in a child, and π that a model without parents has it,

    P(0 | parents) = (1 − ν)·(Πₖ(1 − pₖ·q·fₖ) − Πₖ(1 − pₖ)) + (1 − π)·Πₖ(1 − pₖ),

fₖ ∈ {0, 1}: a noisy-or over the edges that are there, and π where none is (Pearl 1988, ch. 4). Which one of several
models that undirected edges join is the oldest is one more variable. Marginals by variable elimination and one
derivative (Darwiche, *A differential approach to inference in Bayesian networks*, JACM 2003). docs/methods.md,
*Inheritance of flaws*.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..answers.inheritance import Rates
from ..answers.phylogeny import descent_cycle
from ..errors import ArgumentError

MOST_STATES = 2**22  # of a table of the elimination: 32 MB
Variable = str | int  # a model; the number of a part whose oldest model is not known
Factor = tuple[tuple[Variable, ...], Tensor]


@dataclass(frozen=True, slots=True)
class Link:
    """One edge of descent, from `parent` to `child`, or without a direction; `probability`: that it is there."""

    parent: str
    child: str
    directed: bool
    probability: float


def inherited_flags(
    models: Sequence[str], links: Sequence[Link], rates: Rates, flags: Mapping[str, float], roots: Iterable[str] = ()
) -> dict[str, tuple[float, float]]:
    """Model → (probability that it has the flaw before anything was observed, after), both in [0, 1].

    roots: models that are known to be the oldest of theirs. flags: model → the probability that it has the flaw, from
    what was observed of this model alone. Its odds over the odds before are the Bayes factor: of a single flag the
    model's own probability afterwards is what was said. Models that no edges lead to from a flagged one keep theirs, to
    the bit. Raises `ArgumentError` where links run in a circle, flags are impossible at these rates, or so many merges
    are entangled that no table holds them.
    """
    found: dict[str, tuple[float, float]] = {}
    for part in _parts(models, [(link.parent, link.child) for link in links]):
        inside = [link for link in links if link.child in part]
        factors = _factors(part, _without_circles(inside), rates, {*roots})
        before = _marginals(part, factors, {})
        ratios = {model: _bayes_factor(model, flags[model], before[model]) for model in part if model in flags}
        after = _marginals(part, factors, ratios) if ratios else before
        found |= {model: (before[model], after[model]) for model in part}
    return found


def _bayes_factor(model: str, said: float, before: float) -> tuple[float, float]:
    """(P(observed | not flawed), P(observed | flawed)), up to a common factor."""
    for certain in (0.0, 1.0):
        if math.isclose(before, certain, abs_tol=1e-15) and said != certain:
            never = "cannot have it" if certain == 0 else "has it for sure"
            raise ArgumentError(f"At these rates {model} {never}: expected {certain:g}, got {said:g} for it.")
    if said in (0.0, 1.0):
        return 1 - said, said
    return (1 - said) / (1 - before), said / before


def _parts(nodes: Iterable[str], ends: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The nodes that edges join, each part in the order of the nodes."""
    order = list(nodes)
    beside: dict[str, list[str]] = {node: [] for node in order}
    for a, b in ends:
        beside[a].append(b)
        beside[b].append(a)
    part = dict.fromkeys(order, -1)
    for number, start in enumerate(order):
        waiting = [start] if part[start] < 0 else []
        part.update(dict.fromkeys(waiting, number))
        for node in waiting:  # grows
            fresh = [other for other in dict.fromkeys(beside[node]) if part[other] < 0]
            part.update(dict.fromkeys(fresh, number))
            waiting += fresh
    return [[node for node in order if part[node] == number] for number in dict.fromkeys(part.values())]


def _without_circles(links: Sequence[Link]) -> list[Link]:
    """The links; those without a direction that some choice of the oldest would make part of a circle follow the order
    of the directed ones."""
    directed = [(link.parent, link.child) for link in links if link.directed]
    if circle := descent_cycle(directed):
        raise ArgumentError(f"Expected no model that descends from itself, got {', '.join(circle)}.")
    nodes = dict.fromkeys(node for link in links for node in (link.parent, link.child))
    loose = [link for link in links if not link.directed]
    number = {node: i for i, part in enumerate(_parts(nodes, ((k.parent, k.child) for k in loose))) for node in part}
    above = {(number[a], number[b]) for a, b in directed}
    circular = {i for i, j in above if i == j} | {*descent_cycle(sorted((i, j) for i, j in above if i != j))}
    if not circular:
        return list(links)
    rank = _ranks(nodes, directed)
    turned = []
    for k in links:
        if not k.directed and number[k.parent] in circular:
            older, younger = sorted((k.parent, k.child), key=rank.__getitem__)
            k = Link(older, younger, True, k.probability)
        turned.append(k)
    return _without_circles(turned)


def _ranks(nodes: Iterable[str], directed: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The place of each node in an order in which parents stand before their children."""
    left = {node: sum(child == node for _, child in directed) for node in nodes}
    order = [node for node, count in left.items() if not count]
    for node in order:  # grows
        for child in (c for p, c in directed if p == node):
            left[child] -= 1
            order += [child] * (not left[child])
    return {node: place for place, node in enumerate(order)}


def _factors(models: Sequence[str], links: Sequence[Link], rates: Rates, roots: set[str]) -> list[Factor]:
    """The tables whose product is the joint probability of the models' states, and of who came first where that is
    open."""
    above: dict[str, dict[str, float]] = {model: {} for model in models}
    for link in links:
        if link.directed:
            above[link.child][link.parent] = link.probability
    loose = {frozenset((k.parent, k.child)): k.probability for k in links if not k.directed}
    factors: list[Factor] = []
    for number, part in enumerate(_parts(models, ((k.parent, k.child) for k in links if not k.directed))):
        starts = [model for model in part if above[model]] or [model for model in part if model in roots] or part
        beside = {m: {o: loose[frozenset((m, o))] for o in part if frozenset((m, o)) in loose} for m in part}
        distance = {start: _distances(start, beside) for start in starts}
        for model in part:
            worlds = [
                above[model]
                | {o: p for o, p in beside[model].items() if (steps[o], o) < (steps[model], model)}
                for steps in distance.values()
            ]  # fmt: skip
            factors += _tables(model, worlds, number, rates)
        if len(starts) > 1:
            factors.append(((number,), torch.full((len(starts),), 1 / len(starts), dtype=torch.float64)))
    return factors


def _distances(start: str, beside: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Steps from one model to all that undirected edges lead to."""
    found, waiting = {start: 0}, [start]
    for node in waiting:  # grows
        fresh = [other for other in beside[node] if other not in found]
        found |= dict.fromkeys(fresh, found[node] + 1)
        waiting += fresh
    return found


def _tables(model: str, worlds: Sequence[Mapping[str, float]], part: int, rates: Rates) -> list[Factor]:
    """P(model | parents), the parents of each world being given, as tables (model, parents…, world).

    With one parent at most in each world it falls apart into one small table for each possible parent.
    """
    which: tuple[Variable, ...] = (part,) if len(worlds) > 1 else ()
    parents = list(dict.fromkeys(parent for world in worlds for parent in world))
    alike = all(world == worlds[0] for world in worlds)
    if alike:
        worlds, which = worlds[:1], ()
    if alike or max(map(len, worlds)) > 1:
        return [((model, *parents, *which), _stacked([_noisy_or(parents, world, rates) for world in worlds], which))]
    one, found = torch.ones(2, dtype=torch.float64), []
    if any(not world for world in worlds):
        rows = [one if world else _noisy_or((), {}, rates) for world in worlds]
        found.append(((model, *which), _stacked(rows, which)))
    for parent in parents:
        rows = [_noisy_or((parent,), w, rates) if parent in w else one[:, None].expand(2, 2) for w in worlds]
        found.append(((model, parent, *which), _stacked(rows, which)))
    return found


def _stacked(tables: Sequence[Tensor], which: tuple[Variable, ...]) -> Tensor:
    return torch.stack(list(tables), dim=-1) if which else tables[0]


def _noisy_or(parents: Sequence[str], probabilities: Mapping[str, float], rates: Rates) -> Tensor:
    """P(model | parents), (2, 2, …): the model's state, then that of each parent; parents without an edge count for
    nothing."""
    if 2 ** (len(parents) + 1) > MOST_STATES:
        raise ArgumentError(
            f"Expected a model of at most {int(math.log2(MOST_STATES)) - 1} parents, got {len(parents)}."
        )
    spared = torch.ones((), dtype=torch.float64)
    for parent in parents:
        spared = spared[..., None] * torch.tensor(
            [1.0, 1 - probabilities.get(parent, 0.0) * rates.inherited], dtype=torch.float64
        )
    orphan = math.prod(1 - p for p in probabilities.values())
    clean = (1 - rates.arises) * (spared - orphan) + (1 - rates.prior) * orphan
    return torch.stack([clean, 1 - clean])


def _marginals(
    models: Sequence[str], factors: Sequence[Factor], ratios: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """P(model has it | what was observed) of all models: λ·∂log Z/∂λ of the observations' weights λ."""
    weights = {
        model: torch.tensor(ratios.get(model, (1.0, 1.0)), dtype=torch.float64, requires_grad=True) for model in models
    }
    total = _eliminated([*factors, *(((model,), weight) for model, weight in weights.items())])
    if not float(total.detach()) > 0:
        raise ArgumentError("Expected flags that are possible together at these rates: one excludes another.")
    slopes = torch.autograd.grad(total.log(), list(weights.values()))
    return {
        model: min(1.0, max(0.0, float(weight[1].detach() * slope[1])))
        for (model, weight), slope in zip(weights.items(), slopes, strict=True)
    }


def _eliminated(factors: Sequence[Factor]) -> Tensor:
    """The sum of the product of all tables over all variables, up to a constant that does not depend on the weights."""
    numbers = itertools.count()
    left = {next(numbers): factor for factor in factors}
    holders: dict[Variable, set[int]] = {}
    for i, (variables, _) in left.items():
        for variable in variables:
            holders.setdefault(variable, set()).add(i)
    sizes = {v: table.shape[k] for variables, table in factors for k, v in enumerate(variables)}

    def joint(variable: Variable) -> int:
        return math.prod(sizes[v] for v in {v for i in holders[variable] for v in left[i][0]})

    total = torch.ones((), dtype=torch.float64)
    cost = {variable: joint(variable) for variable in holders}
    while holders:
        variable = min(cost, key=cost.__getitem__)
        if (states := cost.pop(variable)) > MOST_STATES:
            raise ArgumentError(f"Too many merges are entangled: a table of {states:,} states would be needed.")
        gone = holders.pop(variable)
        variables, table = _summed([left.pop(i) for i in sorted(gone)], variable)
        table = table / table.detach().max().clamp(min=1e-300)
        if not variables:
            total = total * table
            continue
        fresh = next(numbers)
        left[fresh] = (variables, table)
        for v in variables:
            holders[v] = holders[v] - gone | {fresh}
        cost |= {v: joint(v) for v in variables}
    return total


def _summed(factors: Sequence[Factor], variable: Variable) -> Factor:
    """The product of tables, summed over one variable."""
    axes = {v: k for k, v in enumerate(dict.fromkeys(v for variables, _ in factors for v in variables))}
    kept = tuple(v for v in axes if v != variable)
    product = torch.ones((), dtype=torch.float64)
    for variables, table in factors:
        order = sorted(range(len(variables)), key=lambda k: axes[variables[k]])
        shape = [1] * len(axes)
        for k in order:
            shape[axes[variables[k]]] = table.shape[k]
        product = product * table.permute(order).reshape(shape)
    return kept, product.sum(axes[variable])
