"""Is this candidate related under a disguise: hidden units in another order, and by other factors?

`mantel` never looks at the hidden units' order: it compares Gram matrices over the coordinates of a residual stream,
and gives a p-value. `match` puts the units in order again, twice from separate tensors, and says how far both agree:
a score to be calibrated, not a p-value, since strangers trained on the same data learn similar units.

Matrices are (out, in) or (out, in, …): a convolution as it is stored. Whole orders are needed, not a sample of rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .permutation_test import DRAWS, MORE_WORK, LayerTest, PermutationTest, combine_layers

COORDINATES = 512  # of a residual stream are compared; a draw costs their square
ROUNDS = 10  # of equilibration
# A score from which on a candidate is related. Of 13,873 pairs of strangers (same data, recipe and size; FC, ResNet,
# ViT and Llama-style) none passed 0.038; of 368 disguised children, tuned at 1e-4 to 1e-2, none was below 0.988, and
# of nine FC children under a weight decay of 3e-3 none below 0.72.
RELATED_SCORE = 0.3
DEAD = 1e-6  # a unit shorter than this share of the longest has no direction but rounding


@dataclass(frozen=True, slots=True)
class UnitMatch:
    """The candidate's units in the child's order.

    `score`: share of units on which two matchings, by rows and by readers, agree beyond chance; in [0, 1], None
    where no order could be matched twice. `agreement`: (units agreeing, units) of each order matched twice.
    `units[order][i]`: the candidate's unit that is the child's unit i. `factors[name, axis][i]`: by what the child's
    unit differs from it along that axis of a matrix (of a matrix with units on both, only products are determined).
    """

    score: float | None
    agreement: dict[str, tuple[int, int]]
    units: dict[str, np.ndarray]
    factors: dict[tuple[str, int], np.ndarray]
    axes: dict[tuple[str, int], str]

    def reorder(self, name: str, tensor: Tensor) -> Tensor:
        """The candidate's matrix with units in the child's order and scale; unchanged where it has none."""
        for axis in (0, 1):
            if (name, axis) in self.factors:
                index = torch.from_numpy(self.units[self.axes[name, axis]])
                factor = torch.from_numpy(self.factors[name, axis]).to(tensor.dtype)
                shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
                tensor = tensor.index_select(axis, index) * factor.reshape(shape)
        return tensor


def mantel_test(
    child: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    streams: Mapping[str, Sequence[str]],
    seed: int,
    draws: int = DRAWS,
) -> PermutationTest | None:
    """Test whether two models share the coordinates of their residual streams (Mantel 1967). None: nothing to test.

    For a stream of n coordinates G = Σ WᵀW (n, n) over the matrices W that read it along axis 1, units scaled to
    length 1, each Gram matrix without its diagonal, centred and of norm 1. Under independence the coordinates are
    exchangeable: t = Σ_{i≠j} G[i, j] H[i, j] is a draw of t(π) = Σ_{i≠j} G[i, j] H[π(i), π(j)], of mean 0. G ignores
    the order, sign and scale of hidden units and the order of heads. Streams permute independently and add.
    """
    grams: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stream, names in streams.items():
        both = [name for name in names if _comparable(child, candidate, name)]
        if not both or child[both[0]].shape[1] < 4:
            continue
        count = child[both[0]].shape[1]
        chosen = np.sort(_generator(seed, stream).permutation(count)[:COORDINATES])
        a, b = (_gram([model[name] for name in both], chosen) for model in (child, candidate))
        grams[stream] = a, b
    if not grams:
        return None
    most = max(10 * draws, MORE_WORK // sum(a.size for a, _ in grams.values()))

    def redraw(stream: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        values = _draw(*grams[stream], _generator(seed + 1, stream), min(count, most))
        return values, values

    layers = []
    for stream, (a, b) in grams.items():
        null = _draw(a, b, _generator(seed, stream), draws)
        layers.append(LayerTest(stream, len(a), float(np.vdot(a, b)), 0.0, _variance(a, b), null, null))
    return combine_layers(layers, redraw)


def match_units(
    child: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    orders: Mapping[str, Sequence[str]],
    reads: Mapping[str, Sequence[str]],
) -> UnitMatch:
    """Line up hidden units twice, by the matrices whose rows they are and by those that read them, and compare.

    `orders`, `reads`: order → matrices with its units along axis 0, and along axis 1 (no heads: a new head agrees
    with nothing). Matrices are equilibrated: rows and columns of units scaled to length 1 in turn, which takes any
    rescaling out; then |cosine| of centred units, and the best assignment. Layers are walked in their order, so
    that inputs are lined up before the rows, and outputs before the readers. Over orders of h units of which m agree

        score = Σ(m − 1) / Σ(h − 1),    since one unit agrees by chance whatever h is.

    Few units agree by chance too: 16 in one order reach `RELATED` in 0.06 % of random matchings, 32 in 1e-8.
    O(h²·width + h³) an order.
    """
    axes: dict[tuple[str, int], str] = {}
    for axis, named in enumerate((orders, reads)):
        for order, names in named.items():
            for name in names:
                size = next((len(child[row]) for row in orders.get(order, ()) if row in child), 0)
                if _comparable(child, candidate, name) and child[name].shape[axis] == size:
                    axes[name, axis] = order
    ours: dict[str, _Balanced] = {}
    theirs: dict[str, _Balanced] = {}
    for name in dict.fromkeys(name for name, _ in axes):
        free = (name, 0) in axes, (name, 1) in axes
        ours[name], theirs[name] = (_Balanced.of(model[name], free) for model in (child, candidate))

    units: dict[str, np.ndarray] = {}

    def products(names: Iterable[str], axis: int) -> Tensor | None:
        """Σ|cosine| of every unit of the child with every unit of the candidate, (h, h)."""
        total: Tensor | None = None
        for name in names:
            if (name, axis) in axes:
                other = units.get(axes.get((name, 1 - axis), ""))
                a, b = ours[name].along(axis, None), theirs[name].along(axis, other)
                total = (a @ b.T).abs() + (0 if total is None else total)
        return total

    for order in _in_turn(orders, axes):
        if (c := products(orders[order], 0)) is not None:
            units[order] = linear_sum_assignment(c.numpy(), maximize=True)[1]
    agreement: dict[str, tuple[int, int]] = {}
    for order, found in units.items():
        if (c := products(reads.get(order, ()), 1)) is not None:
            again = linear_sum_assignment(c.numpy(), maximize=True)[1]
            alive = np.all([ours[name].alive[axis] for (name, axis), o in axes.items() if o == order], axis=0)
            if alive.sum() > 1:
                agreement[order] = int((found == again)[alive].sum()), int(alive.sum())
    beyond = sum(m - 1 for m, _ in agreement.values())
    most = sum(h - 1 for _, h in agreement.values())
    score = max(0.0, beyond / most) if agreement else None
    return UnitMatch(score, agreement, units, _factors(ours, theirs, units, axes), axes)


@dataclass(frozen=True, slots=True)
class _Balanced:
    """A matrix = left · middle · right (diagonal, full, diagonal), rows and columns of units in `middle` of length 1.

    `middle` is (out, in, kernel); `alive` tells for either axis which units have a direction at all.
    """

    middle: Tensor
    left: Tensor
    right: Tensor
    alive: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, matrix: Tensor, free: tuple[bool, bool]) -> _Balanced:
        """`free`: whether rows, and columns, are hidden units and may have any scale."""
        w = _cleaned(matrix)
        w = w.reshape(*w.shape[:2], -1)
        squares = w.square().sum(2)
        scale = [torch.ones(n, dtype=torch.float64) for n in squares.shape]
        lengths = [squares.sum(1 - axis).sqrt() for axis in (0, 1)]
        rows, columns = (length > DEAD * length.max() for length in lengths)
        for _ in range(ROUNDS if all(free) else 1):
            for axis in (1, 0):
                if free[axis]:
                    length = (squares.movedim(axis, 0) / scale[1 - axis].square()).sum(1).sqrt()
                    scale[axis] = torch.where((rows, columns)[axis], length, 1.0)
        left, right = scale
        return cls(w / left[:, None, None] / right[:, None], left, right, (rows.numpy(), columns.numpy()))

    def along(self, axis: int, other: np.ndarray | None) -> Tensor:
        """Units of one axis, centred, of length 1, the other axis in the order `other`. (h, width)"""
        w = self.middle.movedim(axis, 0)
        w = (w if other is None else w[:, torch.from_numpy(other)]).flatten(1)
        alive = torch.from_numpy(self.alive[axis])
        w = torch.where(alive[:, None], w - w[alive].mean(0), 0.0)
        return w / _positive(w.norm(dim=1, keepdim=True))


def _factors(
    ours: Mapping[str, _Balanced], theirs: Mapping[str, _Balanced],
    units: Mapping[str, np.ndarray], axes: Mapping[tuple[str, int], str],
) -> dict[tuple[str, int], np.ndarray]:  # fmt: skip
    """By what the child's units differ from the candidate's: the ratio of what equilibration took out, with a sign."""
    factors: dict[tuple[str, int], np.ndarray] = {}
    for name, a in ours.items():
        b = theirs[name]
        moved = b.middle
        for axis in (0, 1):
            if (order := axes.get((name, axis), "")) in units:
                moved = moved.index_select(axis, torch.from_numpy(units[order]))
        for axis, (mine, its) in enumerate(((a.left, b.left), (a.right, b.right))):
            if (order := axes.get((name, axis), "")) in units:
                inner = (a.middle * moved).sum((1 - axis, 2))
                sign = torch.where(inner < 0, -1.0, 1.0).double()
                moved = moved * sign.reshape([-1 if i == axis else 1 for i in range(3)])
                factors[name, axis] = (sign * mine / its[torch.from_numpy(units[order])]).numpy()
    return factors


def _in_turn(orders: Mapping[str, Sequence[str]], axes: Mapping[tuple[str, int], str]) -> list[str]:
    """Orders so that each comes after those which its matrices read."""
    done: dict[str, None] = {}

    def visit(order: str, path: tuple[str, ...] = ()) -> None:
        for name in orders[order]:
            before = axes.get((name, 1), order)
            if before not in done and before != order and before not in path:
                visit(before, (*path, order))
        done[order] = None

    for order in orders:
        if order not in done:
            visit(order)
    return list(done)


def _gram(matrices: Iterable[Tensor], chosen: np.ndarray) -> np.ndarray:
    """Σ of the matrices' Gram matrices over the chosen coordinates, as `mantel` says. (n, n), diagonal 0."""
    n = len(chosen)
    total = np.zeros((n, n))
    for matrix in matrices:
        w = _cleaned(matrix)
        w = w / _positive(w.flatten(1).norm(dim=1)).reshape([-1] + [1] * (w.ndim - 1))
        w = w.index_select(1, torch.from_numpy(chosen)).movedim(1, -1).reshape(-1, n)
        gram = (w.T @ w).numpy()
        np.fill_diagonal(gram, 0.0)
        before = float(np.linalg.norm(gram))
        gram -= gram.sum() / (n * (n - 1))
        np.fill_diagonal(gram, 0.0)
        length = float(np.linalg.norm(gram))
        if length > 1e-9 * before:  # what is left of equal entries is rounding, and that is the same in all models
            total += gram / length
    return total


def _variance(a: np.ndarray, b: np.ndarray) -> float:
    """Of t(π) over all π, for a and b (n, n) symmetric, diagonal 0 and sum 0: pairs of entries that share two, one or
    no coordinates, S = Σ G[i, j]², R = Σ (row sums)² (Mantel 1967)."""
    n = len(a)
    (s, r), (u, v) = ((float((g**2).sum()), float((g.sum(1) ** 2).sum())) for g in (a, b))
    two, one, none = 2 * s * u, 4 * (r - s) * (v - u), 4 * (s - 2 * r) * (u - 2 * v)
    return two / (n * (n - 1)) + (one + none / (n - 3)) / (n * (n - 1) * (n - 2))


def _draw(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """`draws` values of t(π) for uniformly random π. (draws,)"""
    values, rows, both = np.empty(draws), np.empty_like(b), np.empty_like(b)
    for i in range(draws):
        order = rng.permutation(len(a))
        # into the same memory each time: five times as fast at n = 512 as making new arrays
        np.take(b, order, axis=0, out=rows, mode="clip")
        np.take(rows, order, axis=1, out=both, mode="clip")
        values[i] = np.vdot(a, both)
    return values


def _comparable(child: Mapping[str, Tensor], candidate: Mapping[str, Tensor], name: str) -> bool:
    return name in child and name in candidate and child[name].ndim > 1 and child[name].shape == candidate[name].shape


def _cleaned(matrix: Tensor) -> Tensor:
    """In float64, with rows that hold NaN or Inf set to zero."""
    w = matrix.double()
    return torch.where(w.flatten(1).isfinite().all(1).reshape([-1] + [1] * (w.ndim - 1)), w, 0.0)


def _positive(length: Tensor) -> Tensor:
    return torch.where(length > 0, length, 1.0)


def _generator(seed: int, text: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(text.encode())])
