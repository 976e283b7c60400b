"""What one pass over M aligned models leaves behind about every pair of them.

A fine-tuned unit is roughly `a · parent's unit + noise` with its own a, so a family is a tree-shaped Gaussian model for
each hidden unit, and its edges are the maximum spanning tree of the mutual information (Chow and Liu 1968; METHODS §5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..weights.direction import residual_dependences
from ..weights.moments import Moments
from ..weights.mutual_information import MIN_UNEXPLAINED

MIN_BOOTSTRAP_PIECES = 16  # about, into which the information is cut for the bootstrap: matrices, or runs of rows
MAX_GRAM_ENTRIES = 1 << 22  # numbers of per-unit Gram matrices made at once: 32 MB
RELATED_COSINE = 0.5  # cosine from which models are called related where no test applies
MAX_SPECTRUM_SIZE = 256  # rows and columns of a matrix whose singular values are looked at
MAX_ASYMMETRY_ENTRIES = 1 << 15  # of one matrix are looked at for the asymmetry of one pair


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the trunk in all models: `size` weights; `units` (M, rows, width) float32, those kept of it."""

    name: str
    size: int
    units: torch.Tensor


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """M models and T matrices that all of them have. All float64.

    grams: (T, M, M), products ⟨xᵢ, xⱼ⟩ of the whole matrices.  pieces: (P, M, M), nats, see `shared_information`: of
    whole matrices, or of runs of their rows where there are few.  kurtosis, entropy: (T, M), excess kurtosis of the
    weights and spectral entropy of each model's matrix.
    """

    matrices: tuple[Matrix, ...]
    grams: np.ndarray
    pieces: np.ndarray
    kurtosis: np.ndarray
    entropy: np.ndarray
    _asymmetries: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def models(self) -> int:
        return self.grams.shape[1]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Weights of each matrix, (T,)."""
        return np.array([matrix.size for matrix in self.matrices], dtype=np.float64)

    @cached_property
    def gram(self) -> np.ndarray:
        """Products of the models over all matrices, (M, M)."""
        return self.grams.sum(0)

    @cached_property
    def squared_distances(self) -> np.ndarray:
        """Squared distances over all matrices, (M, M)."""
        return distance2(self.gram)

    @cached_property
    def similar(self) -> np.ndarray:
        """Which models count as related where no test applies, (M, M) bool."""
        return self.gram > RELATED_COSINE * np.sqrt(np.outer(np.diag(self.gram), np.diag(self.gram)))

    @cached_property
    def information(self) -> np.ndarray:
        """What two models tell about each other in all, (M, M)."""
        return self.pieces.sum(0)

    def residual_asymmetry(self, first: int, second: int) -> np.ndarray:
        """Residual asymmetry of each matrix (`weights/direction.py`), (T,), in [−2, 2]: above 0, `first` came first.
        Antisymmetric."""
        if first > second:
            return -self.residual_asymmetry(second, first)
        if (first, second) not in self._asymmetries:
            self._asymmetries[first, second] = np.array(
                [_residual_asymmetry(m.units[first], m.units[second]) for m in self.matrices]
            )
        return self._asymmetries[first, second]


def compute_pair_statistics(matrices: Sequence[Matrix], grams: Sequence[np.ndarray]) -> PairStatistics:
    """Everything about the pairs, from the kept units and the Gram matrices of the whole matrices."""
    return PairStatistics(
        tuple(matrices),
        np.array(grams),
        np.array([shared_information(piece) for matrix in matrices for piece in _cut(matrix.units, len(matrices))]),
        np.array([[_kurtosis(model) for model in matrix.units] for matrix in matrices]),
        np.array([[_entropy(model) for model in matrix.units] for matrix in matrices]),
    )


def products(moments: Moments, rows: Sequence[int], size: int) -> np.ndarray:
    """⟨xᵢ, xⱼ⟩ of the models themselves from moments around a pivot (row 0), scaled to `size` entries, (M, M)."""
    inner, cross = moments.gram[np.ix_(rows, rows)], moments.gram[0, rows].copy()
    own = np.array(rows) == 0  # the pivot's difference from itself is nothing
    inner[own, :] = inner[:, own] = cross[own] = 0.0
    return (moments.gram[0, 0] + cross[:, None] + cross[None, :] + inner) * (size / moments.count)


def distance2(gram: np.ndarray) -> np.ndarray:
    """Squared distances ‖xᵢ − xⱼ‖², (…, M, M), never negative, from products (…, M, M)."""
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    return np.maximum(square[..., :, None] + square[..., None, :] - 2 * gram, 0.0)


def shared_information(units: torch.Tensor) -> np.ndarray:
    """I_ij = −½ Σ_units d·log(1 − r²), in nats, ≥ 0, for all pairs at once; its diagonal is zero.

    r: the correlation of a unit's d weights in the two models. units: (M, rows, d). As
    `weights/mutual_information.py` for one pair, where 1 − r² comes from differences;
    products of float32 numbers are exact in float64, so here it comes from
    them and is good to about 1e-15. O(M² · rows · d), in pieces of bounded memory.
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
    """−Σ pₖ log pₖ of the squared singular values' shares, of the first rows and columns."""
    values = torch.linalg.svdvals(matrix[:MAX_SPECTRUM_SIZE, :MAX_SPECTRUM_SIZE].double()) ** 2
    shares = values / values.sum() if values.sum() > 0 else values
    return float(-(shares * shares.clamp(min=1e-300).log()).sum())
