"""Permuted or rescaled hidden units: a test that does not depend on their order, and a matching that restores it.

`mantel_test` compares Gram matrices over the coordinates of a residual stream, which the order of hidden units does not
change, and gives a p-value. `match_units` finds the candidate's unit for each unit of the child, twice from separate
matrices, and reports how far both agree: a score that is calibrated, not a p-value, since unrelated models trained on
the same data learn similar units. See docs/methods.md, *Mantel test* and *Hidden permutations*.

Matrices are (out, in) or (out, in, …), a convolution as it is stored. Whole orders are needed, not a sample of rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .permutation_test import DRAWS, LayerTest, PermutationTest, combine_layers, unit_products

COORDINATES = 256  # of a residual stream that are compared; a draw costs their square
EQUILIBRATION_ROUNDS = 10
# The score from which a candidate is related. Of 13,873 pairs of unrelated models (same data, recipe and size; FC,
# ResNet, ViT and Llama-style) none passed 0.038; of 368 permuted children, tuned at 1e-4 to 1e-2, none was below 0.988,
# and of nine FC children under a weight decay of 3e-3 none below 0.72.
RELATED_SCORE, UNRELATED_PAIRS = 0.3, 13_873
SAME_SCALE = 0.1  # |ln| of the factor of a matrix's middle unit up to which units were permuted and not rescaled
DEAD_LENGTH = 1e-6  # of the longest unit: the direction of a shorter one is rounding


@dataclass(frozen=True, slots=True)
class UnitMatch:
    """The candidate's hidden units in the child's order.

    score: share of units on which two matchings, by rows and by readers, agree beyond chance, by number or by weight,
    whichever is less, in [0, 1]; None where no order could be matched twice. agreement: order → (units that agree,
    units), of each order matched twice; weight: order → the share of the weight that passes through those that agree.
    `units[order][i]`: the candidate's unit that is the child's unit i. `factors[name, axis][i]`: the factor from it to
    the child's unit along that axis of a matrix (of a matrix with units on both axes only the products are determined).
    axes: (matrix, axis) → the order whose units lie along that axis.
    """

    score: float | None
    agreement: dict[str, tuple[int, int]]
    units: dict[str, np.ndarray]
    factors: dict[tuple[str, int], np.ndarray]
    axes: dict[tuple[str, int], str]
    weight: dict[str, float]

    @property
    def rescaled(self) -> bool:
        """Whether units have another scale or sign, beyond what training does to them; else only their order is.

        Of a matrix with units on both axes only the product of the two factors is determined: it is left out.
        """
        both = {name for name, axis in self.factors if (name, 1 - axis) in self.factors}
        found = [factor for (name, _), factor in self.factors.items() if name not in both]
        found = found or [*self.factors.values()]
        return any(
            float(np.median(np.abs(np.log(np.maximum(np.abs(f), 1e-30))))) > SAME_SCALE or float(np.mean(f < 0)) > 0.05
            for f in found
        )

    def reorder(self, name: str, tensor: Tensor) -> Tensor:
        """The candidate's matrix with units in the child's order and, if they were rescaled, scale; unchanged where it
        has none."""
        for axis in (0, 1):
            if (name, axis) in self.factors:
                tensor = tensor.index_select(axis, torch.from_numpy(self.units[self.axes[name, axis]]))
                if self.rescaled:
                    factor = torch.from_numpy(self.factors[name, axis]).to(tensor.dtype)
                    tensor = tensor * factor.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
        return tensor


def mantel_test(
    child: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    streams: Mapping[str, Sequence[str]],
    seed: int,
    draws: int = DRAWS,
) -> PermutationTest | None:
    """Whether two models share the coordinates of their residual streams (Mantel 1967); None: nothing to test.

    streams: residual stream → matrices that read it along axis 1. For a stream of n coordinates, G = Σ WᵀW (n, n) over
    its matrices, units scaled to length 1, each Gram matrix without its diagonal, centred and of norm 1. Under
    independence the coordinates are exchangeable: t = Σ_{i≠j} G[i, j] H[i, j] is a draw of
    t(π) = Σ_{i≠j} G[i, j] H[π(i), π(j)], which has mean 0. G does not depend on order, sign and scale of hidden units,
    nor on the order of heads. Streams permute independently and add, as layers do in the permutation test.

    What is proven (`proof.py`) is of another statistic, which is linear in the matching as the bound wants it: half of
    the coordinates, each with its entries of G towards the other half, matched given the matching of that half.
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

    def draw(stream: str, seed_of_draws: int, count: int) -> np.ndarray:
        return _draw(*grams[stream], _generator(seed_of_draws, stream), count)

    layers = [
        LayerTest(stream, len(a), float(np.vecdot(a, b).sum()), 0.0, _variance(a, b))
        for stream, (a, b) in grams.items()
    ]
    return combine_layers(layers, [_given_half(a, b) for a, b in grams.values()], draw, seed, draws)


def _given_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products of half the coordinates by how they go with the other half, (n, h, h), of Gram matrices (n, n).

    Given how the other half is matched, the rows of these coordinates are units like those of a layer.
    """
    half = len(a) // 2
    ours, theirs = (torch.from_numpy(gram[:half, half:]).float() for gram in (a, b))
    return unit_products([ours], [theirs])


def match_units(
    child: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    orders: Mapping[str, Sequence[str]],
    reads: Mapping[str, Sequence[str]],
) -> UnitMatch:
    """Match hidden units twice, by the matrices whose rows they are and by those that read them, and compare.

    orders, reads: order → matrices with its units along axis 0, and along axis 1 (no heads: a new head agrees with
    nothing). Matrices are equilibrated (Sinkhorn & Knopp 1967): rows and columns of units are scaled to length 1 in
    turn, which takes any rescaling out. The gain of a pair of units is |cosine| of the centred units, and the matching
    is the best assignment, as in Git Re-Basin (Ainsworth et al., ICLR 2023). Layers are visited so that inputs are in
    order before the rows that read them. Over orders of h units of which m agree

        score = min(Σ(m − 1) / Σ(h − 1), Σ h·s / Σ h),    since one unit agrees by chance whatever h is.

    s: the share of the weight that passes through the units that agree, of the model where it is less; the weight of a
    unit is the product of the scales that equilibration takes out of its rows and columns. So units that a network has
    to spare do not count if next to nothing passes through them, whoever's they are.
    A few units agree by chance: 16 in one order reach RELATED_SCORE in 0.06 % of random matchings, 32 in 1e-8.
    O(h²·width + h³) for an order.
    """
    axes: dict[tuple[str, int], str] = {}
    for axis, named in enumerate((orders, reads)):
        for order, names in named.items():
            for name in names:
                size = next((len(child[row]) for row in orders.get(order, ()) if row in child), 0)
                if _comparable(child, candidate, name) and child[name].shape[axis] == size:
                    axes[name, axis] = order
    ours: dict[str, _Equilibrated] = {}
    theirs: dict[str, _Equilibrated] = {}
    for name in dict.fromkeys(name for name, _ in axes):
        free = (name, 0) in axes, (name, 1) in axes
        ours[name], theirs[name] = (_Equilibrated.of(model[name], free) for model in (child, candidate))

    units: dict[str, np.ndarray] = {}

    def gains(names: Iterable[str], axis: int) -> Tensor | None:
        """Σ|cosine| over matrices of every unit of the child with every unit of the candidate, (h, h)."""
        total: Tensor | None = None
        for name in names:
            if (name, axis) in axes:
                other = units.get(axes.get((name, 1 - axis), ""))
                a, b = ours[name].along(axis, None), theirs[name].along(axis, other)
                total = (a @ b.T).abs() + (0 if total is None else total)
        return total

    for order in _inputs_first(orders, axes):
        if (gain := gains(orders[order], 0)) is not None:
            units[order] = assignment(gain)
    agreement: dict[str, tuple[int, int]] = {}
    weight: dict[str, float] = {}
    for order, by_rows in units.items():
        if (gain := gains(reads.get(order, ()), 1)) is not None:
            by_readers = assignment(gain)
            alive = np.all([ours[name].alive[axis] for (name, axis), o in axes.items() if o == order], axis=0)
            if alive.sum() > 1:
                agree = (by_rows == by_readers) & alive
                agreement[order] = int(agree.sum()), int(alive.sum())
                along = [(name, axis) for (name, axis), o in axes.items() if o == order]
                passing = _passing(ours, along)[alive], _passing(theirs, along)[by_rows][alive]
                weight[order] = min(float(w[agree[alive]].sum() / w.sum()) for w in passing)
    agreeing = sum(m - 1 for m, _ in agreement.values())
    possible = sum(h - 1 for _, h in agreement.values())
    counted = {order: of for order, (_, of) in agreement.items()}
    by_weight = sum(weight[order] * of for order, of in counted.items()) / max(1, sum(counted.values()))
    score = max(0.0, min(agreeing / possible, by_weight)) if agreement else None
    return UnitMatch(score, agreement, units, _factors(ours, theirs, units, axes), axes, weight)


def _passing(matrices: Mapping[str, _Equilibrated], along: Iterable[tuple[str, int]]) -> np.ndarray:
    """How much passes through each unit, relative to the most, (h,): the product of its scales along some axes, which
    no rescaling of units changes."""
    logs = sum(((m.left, m.right)[axis].log() for name, axis in along if (m := matrices[name])), torch.zeros(()))
    return (logs - logs.max()).exp().numpy()


def assignment(gain: Tensor) -> np.ndarray:
    """The permutation π that maximises Σ gain[i, π(i)], (h,). gain: (h, h).

    Where the best of each row is nobody else's, it is these: no permutation has more. So related models need no SciPy,
    whose assignment takes O(h³) and a quarter of a second to import.
    """
    best = gain.argmax(1)
    if len(best.unique()) == len(best):
        return best.numpy()
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(gain.numpy(), maximize=True)[1]


@dataclass(frozen=True, slots=True)
class _Equilibrated:
    """A matrix = left · middle · right (diagonal, full, diagonal), rows and columns of units in `middle` of length 1.

    `middle` is (out, in, kernel); `alive`: of rows and of columns, which are long enough to have a direction.
    """

    middle: Tensor
    left: Tensor
    right: Tensor
    alive: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, matrix: Tensor, free: tuple[bool, bool]) -> _Equilibrated:
        """Equilibrate a matrix. `free`: whether its rows, and its columns, are hidden units and may have any scale."""
        w = _cleaned(matrix)
        w = w.reshape(*w.shape[:2], -1)
        squares = w.square().sum(2)
        scale = [torch.ones(n, dtype=torch.float64) for n in squares.shape]
        lengths = [squares.sum(1 - axis).sqrt() for axis in (0, 1)]
        rows, columns = (length > DEAD_LENGTH * length.max() for length in lengths)
        for _ in range(EQUILIBRATION_ROUNDS if all(free) else 1):
            for axis in (1, 0):
                if free[axis]:
                    length = (squares.movedim(axis, 0) / scale[1 - axis].square()).sum(1).sqrt()
                    scale[axis] = torch.where((rows, columns)[axis], length, 1.0)
        left, right = scale
        return cls(w / left[:, None, None] / right[:, None], left, right, (rows.numpy(), columns.numpy()))

    def along(self, axis: int, other: np.ndarray | None) -> Tensor:
        """The units along one axis, centred, of length 1, the other axis reordered by `other`; (h, width)."""
        w = self.middle.movedim(axis, 0)
        w = (w if other is None else w[:, torch.from_numpy(other)]).flatten(1)
        alive = torch.from_numpy(self.alive[axis])
        w = torch.where(alive[:, None], w - w[alive].mean(0), 0.0)
        return w / _positive(w.norm(dim=1, keepdim=True))


def _factors(
    ours: Mapping[str, _Equilibrated], theirs: Mapping[str, _Equilibrated],
    units: Mapping[str, np.ndarray], axes: Mapping[tuple[str, int], str],
) -> dict[tuple[str, int], np.ndarray]:  # fmt: skip
    """The factor between matched units: the ratio of what equilibration took out, with the sign of their product."""
    factors: dict[tuple[str, int], np.ndarray] = {}
    for name, a in ours.items():
        b = theirs[name]
        moved = b.middle
        for axis in (0, 1):
            if (order := axes.get((name, axis), "")) in units:
                moved = moved.index_select(axis, torch.from_numpy(units[order]))
        for axis, (our_scale, their_scale) in enumerate(((a.left, b.left), (a.right, b.right))):
            if (order := axes.get((name, axis), "")) in units:
                products = (a.middle * moved).sum((1 - axis, 2))
                sign = torch.where(products < 0, -1.0, 1.0).double()
                moved = moved * sign.reshape([-1 if i == axis else 1 for i in range(3)])
                factors[name, axis] = (sign * our_scale / their_scale[torch.from_numpy(units[order])]).numpy()
    return factors


def _inputs_first(orders: Mapping[str, Sequence[str]], axes: Mapping[tuple[str, int], str]) -> list[str]:
    """The orders, each after those that its matrices read."""
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
    """G of `mantel_test` over the chosen coordinates, (n, n), diagonal 0."""
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
        if length > 1e-9 * before:  # what centring leaves of equal entries is rounding, the same in all models
            total += gram / length
    return total


def _variance(a: np.ndarray, b: np.ndarray) -> float:
    """The variance of t(π) over all π, for a and b (n, n) symmetric, diagonal 0 and sum 0 (Mantel 1967).

    Summed over pairs of entries that share two, one or no coordinates; S = Σ G[i, j]², R = Σ (row sums)² of each.
    """
    n = len(a)
    (s, r), (u, v) = ((float((g**2).sum()), float((g.sum(1) ** 2).sum())) for g in (a, b))
    two, one, none = 2 * s * u, 4 * (r - s) * (v - u), 4 * (s - 2 * r) * (u - 2 * v)
    return two / (n * (n - 1)) + (one + none / (n - 3)) / (n * (n - 1) * (n - 2))


def _draw(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """`draws` values of the Mantel statistic t(π) for uniformly random π; (draws,)."""
    values, rows, both = np.empty(draws), np.empty_like(b), np.empty_like(b)
    for i in range(draws):
        order = rng.permutation(len(a))
        # into the same memory each time: five times as fast as making new arrays
        np.take(b, order, axis=0, out=rows, mode="clip")
        np.take(rows, order, axis=1, out=both, mode="clip")
        values[i] = np.vecdot(a, both).sum()  # of rows: a product of so many numbers would be shared among threads
    return values


def _comparable(child: Mapping[str, Tensor], candidate: Mapping[str, Tensor], name: str) -> bool:
    return name in child and name in candidate and child[name].ndim > 1 and child[name].shape == candidate[name].shape


def _cleaned(matrix: Tensor) -> Tensor:
    """The matrix in float64, with rows that hold NaN or Inf set to zero."""
    w = matrix.double()
    return torch.where(w.flatten(1).isfinite().all(1).reshape([-1] + [1] * (w.ndim - 1)), w, 0.0)


def _positive(length: Tensor) -> Tensor:
    return torch.where(length > 0, length, 1.0)


def _generator(seed: int, text: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(text.encode())])
