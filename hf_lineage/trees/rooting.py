"""Which node of a group's tree is the oldest, and with it the direction of every edge.

In a tree one unknown decides all directions: where the root is. So the signals of all edges and paths are pooled,

    P(root = r) ∝ exp θ·Φ(r),    Φ(r) = Σ over edges a → b away from r of φ(a, b) + Σ over paths a–b–c of ψ(cos, b is
    a fork),

a conditional logit (McFadden 1974) whose θ is fitted on families with a known truth (`experiments/phylogenies.py`). An
edge points from a to b with the sum of P over the roots on a's side.

φ, of one edge, antisymmetric: which end has the smaller norm (the distance to any zero-mean random start, Neural
Phylogeny, ICLR 2025), the residual asymmetry, kurtosis, spectral entropy; the lighter the fine-tune, the less they
count.
ψ, of a path: the cosine of a − b and c − b. Siblings share drift, so it is above 0 where b is the parent of both; a
further fine-tune goes on in the direction of the one before, so it is below 0 where b is between its parent and its
child. docs/methods.md, *Phylogeny*.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np

from .pair_statistics import PairStatistics, distance2
from .spanning import Edge, neighbours, side

SIGNALS = ("norm", "lean", "kurtosis", "entropy")  # as in recorded results; "lean" is the residual asymmetry
EDGE, PATH = 2 * len(SIGNALS), 4  # lengths of φ and ψ
HEAVY = 0.1  # relative change at which the signals of an edge count half
HALF_ASYMMETRY = 0.02  # the residual asymmetry whose signal is ½
CERTAIN = 1e3  # nats that a one-way fact counts for: more than all signals together
DRIFT, WIDE = 0.1, 0.4  # cosines of deltas: what shared drift makes, and more than that


@functools.cache
def numbers() -> dict[str, Any]:
    """The fitted numbers of `trees/numbers.json`, with the seeds and the date of the fit."""
    return json.loads(files("hf_lineage").joinpath("trees/numbers.json").read_text(encoding="utf-8"))


class Signals:
    """φ of any two and ψ of any three models, computed when they are asked for."""

    def __init__(self, statistics: PairStatistics) -> None:
        self.statistics = statistics
        self.squared_distances = statistics.squared_distances
        self.norm2 = np.einsum("tii->i", statistics.grams)
        norms2 = np.einsum("tii->ti", statistics.grams)
        self._changed = distance2(statistics.grams) > 1e-14 * norms2[:, :, None]
        self._edges: dict[Edge, np.ndarray] = {}

    def changed(self, a: int, b: int) -> np.ndarray:
        """Which matrices differ between two models, (T,) bool."""
        return self._changed[:, a, b]

    def relative_distance(self, a: int, b: int) -> float:
        """‖a − b‖/√(‖a‖·‖b‖), ≥ 0; 0 where one of the two is 0."""
        size = np.sqrt(self.norm2[a] * self.norm2[b])
        return float(np.sqrt(self.squared_distances[a, b] / size)) if size > 0 else 0.0

    def cosine(self, a: int, b: int, c: int) -> float:
        """Of a − b and c − b, in [−1, 1]; 0 where one of these is 0."""
        left, right = self.squared_distances[a, b], self.squared_distances[c, b]
        if not (left > 0 and right > 0):
            return 0.0
        return float(np.clip((left + right - self.squared_distances[a, c]) / 2 / np.sqrt(left * right), -1.0, 1.0))

    def signs(self, a: int, b: int) -> np.ndarray:
        """How strongly each of `SIGNALS` says that a came before b, (4,), in [−1, 1]; antisymmetric."""
        statistics, size = self.statistics, self._changed[:, a, b] * self.statistics.sizes
        if not size.any() or not self.squared_distances[a, b] > 0:
            return np.zeros(len(SIGNALS))
        size = size / size.sum()
        norm = np.tanh((self.norm2[b] - self.norm2[a]) / self.squared_distances[a, b] / 2)
        asymmetry = float(size @ statistics.residual_asymmetry(a, b))
        kurtosis = np.sign(size @ (statistics.kurtosis[:, b] - statistics.kurtosis[:, a]))
        entropy = np.sign(size @ (statistics.entropy[:, a] - statistics.entropy[:, b]))
        return np.array([norm, asymmetry / (abs(asymmetry) + HALF_ASYMMETRY), kurtosis, entropy])

    def edge(self, a: int, b: int) -> np.ndarray:
        """φ(a, b), (8,): the signals times the share in which the fine-tune is heavy, and zeros: of light fine-tunes of
        pretrained models no signal of a pair has told who came first."""
        if a > b:
            return -self.edge(b, a)
        if (a, b) not in self._edges:
            moved = self.relative_distance(a, b)
            signs = self.signs(a, b) * (moved**2 / (moved**2 + HEAVY**2))
            self._edges[a, b] = np.concatenate([signs, np.zeros_like(signs)])
        return self._edges[a, b]

    def path(self, a: int, b: int, c: int) -> np.ndarray:
        """ψ of a–b–c as a fork at b, (4,); as a chain it is the negative."""
        cosine = self.cosine(a, b, c)
        return np.array([np.tanh(cosine / DRIFT), np.tanh(cosine / WIDE), 1.0, max(cosine - 0.5, 0.0)])


@dataclass(frozen=True, slots=True)
class RootPosterior:
    """The posterior of the root of one tree.

    order: the nodes.  probability: that order[i] is the root, (M,).  precedence[a, b]: that a came before its neighbour
    b, in [0, 1].
    """

    order: tuple[int, ...]
    probability: np.ndarray
    precedence: dict[Edge, float]

    @property
    def root(self) -> int:
        """The most probable one."""
        return self.order[int(np.argmax(self.probability))]


def features(signals: Signals, edges: Iterable[Edge], members: Sequence[int]) -> np.ndarray:
    """Φ of every member as the root, (M, `EDGE` + `PATH`). Negative members are unnamed ancestors, without signals.

    Moving the root along one edge turns that edge, and changes the role of its two ends in their paths; so all roots
    together take no longer than one.
    """
    index = {node: i for i, node in enumerate(members)}
    around = neighbours([(index[a], index[b]) for a, b in edges], len(members))
    names = list(members)

    def edge(i: int, j: int) -> np.ndarray:
        known = names[i] >= 0 and names[j] >= 0
        return signals.edge(names[i], names[j]) if known else np.zeros(EDGE)

    def path(i: int, j: int, k: int) -> np.ndarray:
        known = min(names[i], names[j], names[k]) >= 0
        return signals.path(names[i], names[j], names[k]) / max(1, len(around[j]) - 1) if known else np.zeros(PATH)

    forks = [sum((path(a, b, c) for a, c in combinations(sorted(near), 2)), np.zeros(PATH)) for b, near in
             enumerate(around)]  # fmt: skip
    # what changes at b when its neighbour p turns out to be its parent: the paths through p are no forks any more
    turned = {
        (b, p): -2 * sum((path(p, b, c) for c in near if c != p), np.zeros(PATH))
        for b, near in enumerate(around) for p in near
    }  # fmt: skip
    found = np.zeros((len(members), EDGE + PATH))
    found[0, EDGE:] = sum(forks, np.zeros(PATH))
    walk, waiting = [], [(0, -1)]
    while waiting:
        b, p = waiting.pop()
        if p >= 0:
            walk.append((b, p))
            found[0] += np.concatenate([edge(p, b), turned[b, p]])
        waiting += [(c, b) for c in around[b] if c != p]
    for b, p in walk:
        found[b] = found[p] + np.concatenate([-2 * edge(p, b), turned[p, b] - turned[b, p]])
    return found


def root_posterior(
    signals: Signals, edges: Iterable[Edge], members: Sequence[int], known: Iterable[Edge] = (),
) -> RootPosterior:  # fmt: skip
    """P(root = r) for every member r, a softmax of θ·Φ(r), and what it says of each edge's direction.

    edges: of a tree over `members`, of which negative ones are unnamed ancestors.  known: edges (parent, child) whose
    direction is decided by something else; roots against it lose `CERTAIN` nats each.
    """
    edges = sorted(edges)
    scores = features(signals, edges, members) @ np.array(numbers()["root"]["theta"])
    index = {node: i for i, node in enumerate(members)}
    around = neighbours([(index[a], index[b]) for a, b in edges], len(members))
    sides = {(a, b): side(around, index[a], index[b]) for i, j in edges for a, b in ((i, j), (j, i))}
    for parent, child in known:
        scores = np.where(sides[parent, child], scores, scores - CERTAIN)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    first = {pair: min(1.0, float(shares[behind].sum())) for pair, behind in sides.items()}
    return RootPosterior(tuple(members), shares, first)
