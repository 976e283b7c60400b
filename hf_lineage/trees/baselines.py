"""Baselines of `phylogeny`: trees from distances, norms or kurtosis alone, for groups that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .clustering import Points

KURTOSIS_WEIGHT = 0.3  # of the mean distance: what MoTHer's authors use throughout


def by_distance(points: Points, groups: Sequence[Sequence[int]]) -> list[int | None]:
    """Each group's minimum spanning tree on d²ᵢⱼ = ‖xᵢ − xⱼ‖², rooted at its model of smallest norm.

    groups: the indices of related models. The result is each model's parent, (M,), None for roots and for models in no
    group; ties by index. docs/methods.md, *Phylogeny*.
    """
    import networkx as nx

    parents: list[int | None] = [None] * len(points.gram)
    distance2, norms = points.distance2, points.norms2
    for members in map(sorted, groups):
        graph = nx.Graph()
        graph.add_nodes_from(members)
        # not scipy's, for which the distance 0 of two copies is no edge
        graph.add_weighted_edges_from((i, j, distance2[i, j]) for i in members for j in members if i < j)
        tree = nx.minimum_spanning_tree(graph)
        for parent, child in nx.bfs_edges(tree, min(members, key=norms.__getitem__)) if members else ():
            parents[child] = parent
    return parents


def by_norms(points: Points, groups: Sequence[Sequence[int]]) -> list[int | None]:
    """Each group a star around its model of smallest norm: the expectation of Neural Phylogeny's fake initialisations.

    groups: the indices of related models. The result is each model's parent, (M,), None for the stars' centres and for
    models in no group; ties by index.
    """
    parents: list[int | None] = [None] * len(points.gram)
    norms = points.norms2
    for members in map(sorted, groups):
        centre = min(members, key=norms.__getitem__) if members else None
        for model in members:
            parents[model] = None if model == centre else centre
    return parents


def mother(
    points: Points,
    kurtosis: Sequence[float] | np.ndarray,
    groups: Sequence[Sequence[int]],
    *,
    weight: float = KURTOSIS_WEIGHT,
    sign: Literal[-1, 1] = -1,
) -> list[int | None]:
    """Each group's minimum arborescence where an edge i → j costs dᵢⱼ + weight·mean(d), the latter only if kurtosis
    goes the wrong way: the recipe of Horwitz, Shul & Hoshen, "Unsupervised Model Tree Heritage Recovery", ICLR 2025.

    kurtosis: one number per model, (M,). The mean is over the group's whole matrix of distances d, zeros included. The
    arborescence is Edmonds' (1967). sign: −1 expects kurtosis to fall from parent to child, which is what the authors'
    published scripts do for fine-tunes (specialisation: outliers wane) and for Llama; +1 expects it to rise, as they do
    for the stages of Stable Diffusion's training (generalisation). Theirs is a distance of normalised largest
    differences over square layers, which no Gram matrix holds; here d is Euclidean over all. The result is as in
    `by_distance`. Raises ValueError where kurtosis is not one number per model.
    """
    import networkx as nx

    if len(kurtosis) != len(points.gram):
        raise ValueError(f"Expected the kurtosis of {len(points.gram)} models, got {len(kurtosis)} numbers.")
    parents: list[int | None] = [None] * len(points.gram)
    distance = np.sqrt(points.distance2)
    for members in map(sorted, groups):
        if len(members) < 2:
            continue
        penalty = weight * float(distance[np.ix_(members, members)].mean())
        graph = nx.DiGraph()
        for i in members:
            for j in members:
                if i != j:
                    wrong = sign * (kurtosis[j] - kurtosis[i]) < 0
                    graph.add_edge(i, j, weight=float(distance[i, j]) + penalty * wrong)
        for parent, child in nx.minimum_spanning_arborescence(graph).edges:
            parents[child] = parent
    return parents
