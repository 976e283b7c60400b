"""The story of `inheritance`: edges of a tree or an audit, the caller's flags and rates, a probability of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..answers.audit import AuditRecord
from ..answers.inheritance import Carrier, Inheritance, Rates
from ..answers.phylogeny import Phylogeny
from ..errors import ArgumentError
from ..trees.inherited_flags import Link, inherited_flags

MOST_NAMED = 4  # models that an error lists


def inheritance(
    relatives: Phylogeny | Iterable[AuditRecord], flags: Mapping[str, float], *, inherited: float = 0.9,
    arises: float = 0.01, prior: float | None = None,
) -> Inheritance:  # fmt: skip
    """Say how probable it is that each model has a flaw (a licence, poisoned data) that some were flagged for, forwards
    to descendants and backwards to ancestors (Neural Lineage, CVPR 2024, S4.2).

    relatives: the answer of `phylogeny`, or the records of an `audit`, each model below the bases that were found.
    flags: model → probability that it has the flaw, from what was observed of this model alone; 1 for sure, 0 for
        surely not. A model is named as in the answer, or as it was asked for; in an audit it may be none of the models.
    inherited: chance that a child has what its parent has. arises: that it arises anew in a child. prior: that a model
        without parents in the set has it; None takes `arises`. All three are assumed by the caller, none is measured.

    Bayes' rule on the edges, exact: a directed one is there with its probability times that of its direction, of models
    joined by undirected ones each may be the oldest where no root is known, several parents hand on independently
    (docs/methods.md, *Inheritance of flaws*). Raises `ArgumentError` for a rate or a flag outside [0, 1], an unknown
    model of a tree, and flags that are impossible at these rates.
    """
    prior = arises if prior is None else prior
    for name, value in [("inherited", inherited), ("arises", arises), ("prior", prior), *flags.items()]:
        if not 0 <= value <= 1:  # NaN too
            raise ArgumentError(f"Expected a probability in [0, 1] for {name}, got {value}.")
    if isinstance(relatives, Phylogeny):
        called, original, links = _of_tree(relatives)
        roots = [original[root] for root in relatives.roots]
    else:
        called, original, links = _of_records(list(relatives))
        roots = []
        for name in flags.keys() - called.keys():  # no model comes from it, or not from it directly
            called[name], original[name] = {name}, name
    said: dict[str, float] = {}
    for name, value in flags.items():
        model = original[_named(name, called)]
        if said.get(model, value) != value:
            raise ArgumentError(f"{model} was flagged twice, with {said[model]:g} and {value:g}: copies are one model.")
        said[model] = value
    rates = Rates(inherited, arises, prior)
    found = inherited_flags(list(dict.fromkeys(original.values())), links, rates, said, roots)
    carriers = [Carrier(ref, said.get(model), *found[model]) for ref, model in original.items()]
    return Inheritance(tuple(sorted(carriers, key=lambda c: (-c.after, c.ref))), rates)


def _of_tree(tree: Phylogeny) -> tuple[dict[str, set[str]], dict[str, str], list[Link]]:
    """(name → models that are called so, model → the one that it is a copy of or itself, links)."""
    nodes = {node.id: node for node in tree.nodes}
    original = {}
    for name in nodes:
        seen = [name]
        while (copied := nodes[seen[-1]].duplicate_of) in nodes and copied is not None and copied not in seen:
            seen.append(copied)
        original[name] = seen[-1]
    called: dict[str, set[str]] = {}
    for node in tree.nodes:
        for text in {node.id, node.ref, node.requested} - {None}:
            called.setdefault(str(text), set()).add(node.id)
    links = []
    for edge in tree.edges:
        a, b = original[edge.parent], original[edge.child]
        certain = (1.0 if edge.probability is None else edge.probability) * (edge.direction or 1.0)
        if a != b:
            links.append(Link(a, b, edge.directed, min(1.0, certain)))
    return called, original, links


def _of_records(records: list[AuditRecord]) -> tuple[dict[str, set[str]], dict[str, str], list[Link]]:
    """The same of an audit: each model below the bases that its weights bear out, with what its record says."""
    pairs: dict[tuple[str, str], float] = {}
    for record in records:
        bases = {claim.ref: record.probability for claim in record.claims if claim.status == "confirmed"}
        bases |= {f.base: f.probability for f in record.findings if f.base and f.relation not in (None, "none")}
        for base, probability in bases.items():
            if probability and base != record.ref:
                pairs[base, record.ref] = probability
    names = dict.fromkeys([*(record.ref for record in records), *(base for base, _ in pairs)])
    called = {name: {name} for name in names}
    for record in records:
        called.setdefault(record.requested, set()).add(record.ref)
    return called, {name: name for name in names}, [Link(a, b, True, p) for (a, b), p in pairs.items()]


def _named(name: str, called: Mapping[str, set[str]]) -> str:
    """The model that a flag is about."""
    found = sorted(called.get(name, ()))
    if len(found) == 1:
        return found[0]
    if found:
        raise ArgumentError(f"{name} was flagged and may mean {', '.join(found[:MOST_NAMED])}.")
    more = ", …" if len(called) > MOST_NAMED else ""
    raise ArgumentError(f"{name} was flagged and is not among the models: {', '.join([*called][:MOST_NAMED])}{more}.")
