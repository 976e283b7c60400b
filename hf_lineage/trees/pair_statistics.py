"""What one pass over M aligned models says about every pair: distances, mutual information, signals of direction.

A fine-tuned unit is about a · (parent's unit) + noise, with its own a. So a set of related models is a tree-shaped
Gaussian model for each hidden unit, and the edges of the tree are the maximum spanning tree of the mutual information
(Chow and Liu 1968; docs/methods.md, *Phylogeny* and *Mutual information of units*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..weights.direction.origin import residual_dependences
from ..weights.moments import Moments
from ..weights.mutual_information import MIN_UNEXPLAINED

MIN_BOOTSTRAP_PIECES = 16  # about, into which the information is cut for the bootstrap: matrices, or runs of rows
MAX_GRAM_ENTRIES = 1 << 22  # numbers of per-unit Gram matrices made at once: 32 MB
RELATED_COSINE = 0.5  # cosine of two models, above which they count as related where no test applies
MAX_SPECTRUM_SIZE = 256  # rows and columns of a matrix, of which singular values are computed
MAX_ASYMMETRY_ENTRIES = 1 << 15  # of one matrix, about, for the residual asymmetry of one pair


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the trunk in all M models: `size` weights; `units`: the kept rows, (M, rows, width) float32."""

    name: str
    size: int
    units: torch.Tensor


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Statistics of M models and of the T matrices that all of them have; arrays are float64.

    grams: (T, M, M), inner products ⟨xᵢ, xⱼ⟩ of the whole matrices.  pieces: (P, M, M), mutual information in nats of
    whole matrices, or of runs of their rows where there are few (`shared_information`).  kurtosis: (T, M), excess
    kurtosis E(x − μ)⁴/σ⁴ − 3 of the kept weights.  entropy: (T, M), −Σ pₖ log pₖ in nats, pₖ the shares of the squared
    singular values.
    """

    matrices: tuple[Matrix, ...]
    grams: np.ndarray
    pieces: np.ndarray
    kurtosis: np.ndarray
    entropy: np.ndarray
    _asymmetries: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def models(self) -> int:
        """M."""
        return self.grams.shape[1]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Weights of each matrix, (T,)."""
        return np.array([matrix.size for matrix in self.matrices], dtype=np.float64)

    @cached_property
    def gram(self) -> np.ndarray:
        """Inner products ⟨xᵢ, xⱼ⟩ over all matrices, (M, M)."""
        return self.grams.sum(0)

    @cached_property
    def squared_distances(self) -> np.ndarray:
        """‖xᵢ − xⱼ‖² over all matrices, (M, M), ≥ 0."""
        return distance2(self.gram)

    @cached_property
    def similar(self) -> np.ndarray:
        """Which pairs have a cosine above `RELATED_COSINE`, (M, M) bool: related where no test applies."""
        return self.gram > RELATED_COSINE * np.sqrt(np.outer(np.diag(self.gram), np.diag(self.gram)))

    @cached_property
    def information(self) -> np.ndarray:
        """Mutual information of two models over all pieces, nats, (M, M), ≥ 0, the diagonal 0."""
        return self.pieces.sum(0)

    def residual_asymmetry(self, first: int, second: int) -> np.ndarray:
        """Residual asymmetry of each matrix, (T,), in [−2, 2]; above 0 where `first` looks like the parent.

        backward − forward of `residual_dependences` (docs/methods.md, *Residual asymmetry*).
        Antisymmetric in the two models; computed once a pair.
        """
        if first > second:
            return -self.residual_asymmetry(second, first)
        if (first, second) not in self._asymmetries:
            self._asymmetries[first, second] = np.array(
                [_residual_asymmetry(m.units[first], m.units[second]) for m in self.matrices]
            )
        return self._asymmetries[first, second]


def compute_pair_statistics(matrices: Sequence[Matrix], grams: Sequence[np.ndarray]) -> PairStatistics:
    """The statistics of all pairs, from the kept units and the Gram matrices (M, M) of the whole matrices."""
    return PairStatistics(
        tuple(matrices),
        np.array(grams),
        np.array([shared_information(piece) for matrix in matrices for piece in _cut(matrix.units, len(matrices))]),
        np.array([[_kurtosis(model) for model in matrix.units] for matrix in matrices]),
        np.array([[_entropy(model) for model in matrix.units] for matrix in matrices]),
    )


def products(moments: Moments, rows: Sequence[int], size: int) -> np.ndarray:
    """⟨xᵢ, xⱼ⟩ of the models themselves, (M, M), from moments around a pivot.

    With xᵢ = p + δᵢ: ⟨p, p⟩ + ⟨p, δᵢ⟩ + ⟨p, δⱼ⟩ + ⟨δᵢ, δⱼ⟩. rows: of the models in the moments' Gram matrix, 0 for the
    pivot.  size: entries of the whole matrix, to which the sums over those that were read are scaled.
    """
    inner, cross = moments.gram[np.ix_(rows, rows)], moments.gram[0, rows].copy()
    is_pivot = np.array(rows) == 0  # whose difference from itself is 0
    inner[is_pivot, :] = inner[:, is_pivot] = cross[is_pivot] = 0.0
    return (moments.gram[0, 0] + cross[:, None] + cross[None, :] + inner) * (size / moments.count)


def distance2(gram: np.ndarray) -> np.ndarray:
    """Squared distances ‖xᵢ − xⱼ‖², (…, M, M), never negative, from products (…, M, M)."""
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    return np.maximum(square[..., :, None] + square[..., None, :] - 2 * gram, 0.0)


def step_cosines(squared: np.ndarray, start: int, ends: Sequence[int]) -> np.ndarray:
    """The cosines of all pairs of steps from one model to N others, (N(N − 1)/2,), in [−1, 1] up to rounding.

    squared: (M, M), squared distances: ⟨a, b⟩ = (‖a‖² + ‖b‖² − ‖a − b‖²)/2. 0 where one of the two steps is 0.
    """
    square = squared[start, list(ends)]
    length = np.sqrt(square)
    inner, size = (square[:, None] + square - squared[np.ix_(ends, ends)]) / 2, np.outer(length, length)
    cosines = np.divide(inner, size, out=np.zeros_like(inner), where=size > 0)
    return cosines[np.triu_indices(len(ends), 1)]


def shared_information(units: torch.Tensor) -> np.ndarray:
    """I_ij = −½ Σ_units d·log(1 − r²) in nats, ≥ 0, for all pairs at once, (M, M); the diagonal is 0.

    r: the correlation of the d weights of a unit in the two models, with 1 − r² ≥ `MIN_UNEXPLAINED`.  units: (M, rows,
    d) float32. `weights/mutual_information.py` does the same for one pair, from differences; here 1 − r² comes from
    products, which are exact for float32 numbers in float64, with an error of about 1e-15. O(M² · rows · d), in pieces
    of bounded memory. Chow and Liu 1968; docs/methods.md, *Mutual information of units*.
    """
    models, _, width = units.shape
    total = torch.zeros(models, models, dtype=torch.float64)
    step = max(1, MAX_GRAM_ENTRIES // (models * max(models, width)))
    for piece in units.split(step, dim=1):
        x = piece.double().transpose(0, 1)
        x = x - x.mean(2, keepdim=True)
        gram = x @ x.transpose(1, 2)
        square = gram.diagonal(dim1=1, dim2=2)
        both = square[:, :, None] * square[:, None, :]
        alive = both > 0
        rest = torch.where(alive, (both - gram * gram) / torch.where(alive, both, 1.0), 1.0).clamp_(
            MIN_UNEXPLAINED, 1.0
        )
        total -= 0.5 * width * rest.log_().sum(0)
    found = total.numpy()
    np.fill_diagonal(found, 0.0)
    return found


def _cut(units: torch.Tensor, matrices: int) -> tuple[torch.Tensor, ...]:
    return (
        units.split(max(1, -(-units.shape[1] * matrices // MIN_BOOTSTRAP_PIECES)), dim=1)
        if matrices < MIN_BOOTSTRAP_PIECES
        else (units,)
    )


def _residual_asymmetry(first: torch.Tensor, second: torch.Tensor) -> float:
    every = -(-first.numel() // MAX_ASYMMETRY_ENTRIES) or 1
    a, b = first[::every], second[::every]
    if torch.equal(a, b):
        return 0.0
    forward, backward = residual_dependences(b, a)
    return backward - forward


def _kurtosis(matrix: torch.Tensor) -> float:
    x = matrix.double().flatten()
    x = x - x.mean()
    square = (x * x).mean()
    return float((x**4).mean() / square**2 - 3) if square > 0 else 0.0


def _entropy(matrix: torch.Tensor) -> float:
    """−Σ pₖ log pₖ, nats, pₖ the shares of the squared singular values of the first rows and columns."""
    values = torch.linalg.svdvals(matrix[:MAX_SPECTRUM_SIZE, :MAX_SPECTRUM_SIZE].double()) ** 2
    shares = values / values.sum() if values.sum() > 0 else values
    return float(-(shares * shares.clamp(min=1e-300).log()).sum())
