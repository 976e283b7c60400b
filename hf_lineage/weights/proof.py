"""A proven p-value of the permutation test: an upper bound of the tail that needs no draws and no normal law.

For one order of h units with products C (h × h) and t = tr C, under a uniformly random matching π and for any θ > 0,

    P(Σᵢ C[i, π(i)] ≥ t) ≤ exp(−θt) · perm(exp θC) / h!                         (Markov's inequality)

since E exp(θ·ΣC[i, π(i)]) = perm(exp θC)/h!, the permanent taken of the elementwise exponential. For positive u, v and
B = diag(u)·exp(θC)·diag(v), perm(exp θC) = perm(B)/(Πu·Πv), and

    perm(B) ≤ min(Π row sums of B,  h!/h^(h/2) · Π ‖row of B‖₂,  the same with columns),

the second by Carlen, Lieb and Loss 2006, "An inequality of Hadamard type for permanents". Every choice of u and v is
valid; Sinkhorn's scaling to row and column sums of 1 makes the bound tight.

So e(θ) = exp(θt)·h!/bound has mean ≤ 1 under random matchings: an e-value (Vovk and Wang 2021). Orders of one network
stand in a line: the rows of each layer's own matrices are tested, and their columns are units of a layer before. Given
the matchings of the layers before, C is fixed up to the order of its rows, so that the e-values of all orders multiply.
Each order's θ is a fixed number τ over the spread of its C, which no matching changes. Over a fixed grid of τ the
products are averaged, since t does not choose it, and p = 1/e. A single order may take the best τ: the event is the
same for all. Units must be exchangeable, see `permutation_test.py`; nothing is assumed of how C is distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

GRID = tuple(0.03 * 1.5**i for i in range(16))  # τ = θ · (standard deviation of C's entries)
MAX_EXPONENT = 600.0  # θ·(max C − min C): exp of more is 0 in float64, and the bound would be no bound
SCALING_STEPS = 8
MIN_Z = 3.0  # below, no τ can prove more than a few draws show
SLACK = 1e-9  # by which rounding may not make an e-value too large, relative to its exponent
MIN_GAIN = 0.01  # nats by which another point of the grid must be better to look further


def log_permanent_bound(c: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """An upper bound of log perm(exp θC) for n matrices, (n,) float64; nan or ∞ where the scaling fails.

    c: (n, h, h) float64. theta: (n,), > 0, with θ·(max C − min C) ≤ `MAX_EXPONENT`. The same for C and its transpose.
    O(n·h²).
    """
    h = c.shape[-1]
    top = c.amax((1, 2))
    k = torch.exp(theta[:, None, None] * (c - top[:, None, None]))
    u = v = torch.ones(c.shape[:2], dtype=torch.float64)
    for _ in range(SCALING_STEPS):  # both sides at once, so that rows and columns are treated alike
        rows, columns = (k @ v[:, :, None])[:, :, 0], (u[:, None, :] @ k)[:, 0]
        u, v = (u / rows).sqrt(), (v / columns).sqrt()
    b = k.mul_(u[:, :, None]).mul_(v[:, None, :])
    sums, lengths = [], []
    for axis in (1, 2):
        sums.append(b.sum(axis).log().sum(1))
    b.square_()
    for axis in (1, 2):
        lengths.append(b.sum(axis).log().sum(1) / 2 + math.lgamma(h + 1) - h / 2 * math.log(h))
    smallest = torch.stack([*sums, *lengths]).amin(0)
    return h * theta * top - u.log().sum(1) - v.log().sum(1) + smallest


def log_e_value(c: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """log e of n matrices at fixed θ, (n,): θ·tr C + log h! − `log_permanent_bound`, at most log h!.

    What is not finite counts as e = 0, log e = −∞: nothing is proven there.
    """
    t, most = c.diagonal(dim1=1, dim2=2).sum(1), math.lgamma(c.shape[-1] + 1)
    value = theta * t + most - log_permanent_bound(c, theta) - SLACK * (1 + theta * t.abs())
    return torch.where(value.isfinite() & c.isfinite().all(2).all(1), value.clamp(max=most), -math.inf)


def proven_log10_p(products: Sequence[np.ndarray]) -> float:
    """log10 of the proven p-value of all orders together, ≤ 0, never below −Σ log10(h!).

    products: of each order its matrices C of disjoint batches of units, (n, h, h) float64. Given which units are in a
    batch, batches are matched independently, as orders are. Orders may be left out and units too, as long as their C
    do not decide it. Only grid points around the best are computed: the others' e-values are at least 0, so the mean
    over the grid is not below that of those computed. O(Σ n·h²).
    """
    orders = [order for c in products if (order := _Order.of(c)) is not None]
    units = sum(order.units for order in orders)
    excess = sum(order.excess / order.spread for order in orders)
    if not orders or excess < MIN_Z * math.sqrt(units):
        return 0.0
    sizes: dict[int, list[_Order]] = {}
    for order in orders:
        sizes.setdefault(order.c.shape[-1], []).append(order)
    stacks = [(torch.cat([order.c for order in same]), same) for same in sizes.values()]
    found: dict[int, float] = {}

    def log_e(i: int) -> float:
        """Over all orders, at one point of the grid; −∞ beyond its ends."""
        if not 0 <= i < len(GRID):
            return -math.inf
        if i not in found:
            found[i] = sum(float(log_e_value(c, _thetas(same, GRID[i])).sum()) for c, same in stacks)
        return found[i]

    best = int(np.argmin([abs(math.log(tau * units / excess)) for tau in GRID]))  # where a normal law has its best
    for step in (1, -1):
        while log_e(best + step) > log_e(best) + MIN_GAIN:
            best += step
    if len(orders) == 1:
        return min(0.0, -found[best] / math.log(10))
    mean = found[best] + math.log(sum(math.exp(value - found[best]) for value in found.values()) / len(GRID))
    return min(0.0, -mean / math.log(10)) if math.isfinite(mean) else 0.0


def log10_e_value(products: Sequence[np.ndarray]) -> float:
    """log10 of an e-value of all orders together: the mean over `GRID` of the products of their e(θ).

    Its expectation is at most 1 where the two models are unrelated, whoever chose them from whatever number of others
    (then divide by that number), and it may be multiplied by that of other units of the same two. products: as in
    `proven_log10_p`. 0.0 where nothing can be said.
    """
    orders = [order for c in products if (order := _Order.of(c)) is not None]
    if not orders:
        return 0.0
    return log10_mean(np.sum([_on_grid(order) for order in orders], axis=0))


def _on_grid(order: _Order) -> np.ndarray:
    """log e of one order at each point of `GRID`. Memory: its matrices, once for each."""
    theta = torch.cat([_thetas([order], tau) for tau in GRID])
    return log_e_value(order.c.repeat(len(GRID), 1, 1), theta).reshape(len(GRID), -1).sum(1).numpy()


def log10_mean(logs: np.ndarray) -> float:
    """log10 of the mean of e over `GRID`; logs: log e at each of its points."""
    top = logs.max()
    return -math.inf if top == -math.inf else float(top + math.log(np.exp(logs - top).mean())) / math.log(10)


def log_e_on_grid(c: np.ndarray) -> np.ndarray:
    """log e of n small matrices at each point of `GRID`, each an order of its own; (n, h, h) → (n, points).

    The columns' sums over any matrices go to `log10_mean`. 0 where all matchings give the same. O(n·points·h²).
    """
    given = torch.from_numpy(np.asarray(c, dtype=np.float64))
    centred = given - given.mean(2, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    squares, variance = given.square().mean((1, 2)), centred.square().mean((1, 2))
    usable = (variance > 1e-12 * squares) & variance.isfinite()
    centred, spread = centred[usable], variance[usable].sqrt()
    most = MAX_EXPONENT / (centred.amax((1, 2)) - centred.amin((1, 2)))
    theta = torch.minimum(torch.tensor(GRID, dtype=torch.float64) / spread[:, None], most[:, None])
    logs = np.zeros((len(given), len(GRID)))
    if len(centred):
        every = log_e_value(centred.repeat_interleave(len(GRID), 0), theta.flatten())
        logs[usable.numpy()] = every.reshape(theta.shape).numpy()
    return logs


class _Order:
    """One order's matrices, and what no matching of its units changes: spread and range of their entries.

    Means of rows and columns are taken out of C first: they add the same to every matching.
    """

    def __init__(self, c: torch.Tensor, spread: float) -> None:
        self.c, self.spread = c, spread
        self.units = c.shape[0] * c.shape[1]
        self.excess = float(c.diagonal(dim1=1, dim2=2).sum())
        self.range = float((c.amax((1, 2)) - c.amin((1, 2))).max())

    @classmethod
    def of(cls, c: np.ndarray) -> _Order | None:
        """None where all matchings give the same, or where an entry is not finite."""
        given = torch.from_numpy(np.asarray(c, dtype=np.float64))
        if not given.numel():
            return None
        centred = given - given.mean(2, keepdim=True)
        centred -= centred.mean(1, keepdim=True)
        squares, variance = float(given.square().mean()), float(centred.square().mean())
        return cls(centred, math.sqrt(variance)) if 1e-12 * squares < variance < math.inf else None


def _thetas(orders: Sequence[_Order], tau: float) -> torch.Tensor:
    """θ of every matrix of these orders: τ over the spread, within what float64 can hold."""
    each = [min(tau / order.spread, MAX_EXPONENT / order.range) for order in orders]
    counts = torch.tensor([len(order.c) for order in orders])
    return torch.tensor(each, dtype=torch.float64).repeat_interleave(counts)
