"""From scores of pairs to spanning forests: sums over all of them in closed form, and the most probable edges.

A spanning forest gives every model one parent or none, without cycles. Its weight is exp of the sum of its scores; all
forests together weigh

    Z = det L,    L_jj = exp n_j + Σ_i exp s_ij,    L_ij = −exp s_ij    (Kirchhoff's matrix-tree theorem, Tutte 1948),

so that the likelihood of a forest and the probability of each edge are exact (Koo et al. 2007, dependency parsing).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_EDGE_PROBABILITY = 1e-9  # of an edge; others are left out of the search for the best forest


def log_partition(scores: Tensor, none: Tensor) -> Tensor:
    """log Z of scores (M, M), −inf on the diagonal, and of the scores of no parent (M,); nats. Differentiable, float64,
    O(M³). Tutte 1948; Koo et al. 2007.
    """
    scores, none = scores.double(), none.double()
    most = torch.maximum(scores.amax(0), none).detach()  # a factor of each column
    weights = torch.exp(scores - most)
    laplacian = torch.diag(torch.exp(none - most) + weights.sum(0)) - weights
    return torch.linalg.slogdet(laplacian).logabsdet + most.sum()


def log_likelihood(scores: Tensor, none: Tensor, parents: Tensor) -> Tensor:
    """log probability, ≤ 0, of the forest in which j's parent is parents[j], −1 for none; parents: (M,) int64."""
    chosen = torch.where(parents < 0, none, scores.gather(0, parents.clamp(min=0)[None])[0])
    return chosen.double().sum() - log_partition(scores, none)


def marginals(scores: Tensor, none: Tensor) -> tuple[Tensor, Tensor]:
    """P(i is the parent of j), (M, M), and P(j has none), (M,): the derivatives ∂ log Z/∂ score, in [0, 1], float64.

    Each column sums to 1 with its P(none).
    """
    diagonal = torch.eye(len(none), dtype=torch.bool)
    pair, alone = (t.detach().double().requires_grad_() for t in (scores.masked_fill(diagonal, 0.0), none))
    with torch.enable_grad():
        total = log_partition(pair.masked_fill(diagonal, -math.inf), alone)
    of_pairs, of_none = torch.autograd.grad(total, (pair, alone))
    return of_pairs.clamp(0.0, 1.0), of_none.clamp(0.0, 1.0)


def likeliest(pairs: Tensor, none: Tensor) -> list[int | None]:
    """Each model's parent in the forest with the most edges expected to be right, None for roots.

    The maximum spanning arborescence (Chu and Liu 1965, Edmonds 1967) over the probabilities of `marginals`, where "no
    parent" is an edge from one additional root. Ties by index.
    """
    import networkx as nx

    graph = nx.DiGraph()
    models = len(none)
    for j in range(models):
        graph.add_edge(models, j, weight=float(none[j]))
        for i in range(models):
            if i != j and pairs[i, j] > MIN_EDGE_PROBABILITY:
                graph.add_edge(i, j, weight=float(pairs[i, j]))
    parents: list[int | None] = [None] * models
    for i, j in nx.maximum_spanning_arborescence(graph).edges:
        parents[j] = i if i < models else None
    return parents
