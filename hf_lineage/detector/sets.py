"""The inputs of the Phylogeny Detector: features of a set of models without unit, for networks of any size.

Weights are standardised, and the scales that this removes are given as ratios; of three models, the angles of their
triangle and which one lies between the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError

SCALES, CORNERS = 7, 9  # numbers of `scales` for a pair, of `Corners` for a triangle


@dataclass(frozen=True, slots=True)
class ModelSet:
    """M models of one architecture, from M = 2.

    crops: T tensors (M, o, h), the same entries of the same matrices of each.  gram: (M, M) float64, products of the
    models over all their weights.  information: (M, M) float64, −½ log(1 − r²) of two models' units, nats a weight.
    """

    crops: tuple[Tensor, ...]
    gram: Tensor
    information: Tensor

    def __post_init__(self) -> None:
        models = len(self.gram)
        if models < 2:
            raise ArgumentError(
                f"Expected two models or more, got {models}. A tree needs another model to compare with."
            )
        if not self.crops or any(c.ndim != 3 or len(c) != models for c in self.crops):
            shapes = [tuple(c.shape) for c in self.crops]
            raise ArgumentError(f"Expected matrices ({models}, rows, columns), got {shapes}. Stack each of them.")
        if not all(bool(t.isfinite().all()) for t in (*self.crops, self.gram, self.information)):
            raise ArgumentError("Expected finite weights, got NaN or Inf. Leave out the model that holds them.")

    def to(self, device: torch.device | str) -> ModelSet:
        """The same set on another device."""
        return ModelSet(tuple(c.to(device) for c in self.crops), self.gram.to(device), self.information.to(device))

    def square(self) -> Tensor:
        """‖i − j‖², (M, M) float64, never negative."""
        norm = self.gram.diagonal()
        return (norm[:, None] + norm[None, :] - 2 * self.gram).clamp(min=0.0)


def stack(parent: Tensor, child: Tensor) -> Tensor:
    """(n, o, h) standardised matrices → (n, 2, o, h): the parent's, and the residual of the child's on it, c − r·p.

    Rows, then columns of both have root mean square 1, as residual asymmetry needs (docs/methods.md, *Residual
    asymmetry*).
    """
    r = (parent * child).mean((1, 2), keepdim=True)
    return torch.stack([_even(parent), _even(child - r * parent)], 1)


def scales(models: ModelSet) -> Tensor:
    """What standardising removes of each pair, (M, M, 7): log relative distance, log information, which of the two has
    the larger norm, and the information relative to the best one of the child and of the parent."""
    norm, square = models.gram.diagonal(), models.square()
    size = (norm[:, None] * norm[None, :]).clamp(min=1e-300).sqrt()
    away = (square / size).clamp(1e-12, 1e2).log10() / 4
    logs = models.information.clamp(1e-9).log()
    diagonal = torch.eye(len(norm), dtype=torch.bool, device=norm.device)
    larger = torch.tanh((norm[None, :] - norm[:, None]) / square.clamp(min=1e-300) / 2)
    best = logs.masked_fill(diagonal, -torch.inf).amax(0)
    relative = [torch.tanh((logs - b) / s) for b in (best[None, :], best[:, None]) for s in (0.05, 0.5)]
    return torch.stack([away, logs / 5, larger, *relative], 2).masked_fill(diagonal[..., None], 0.0).float()


class Corners:
    """The triangles of a set: `[a]` is (A, M, M, 9), of anchors a, pairs m and others k; kept where that is at most
    `max_kept` triangles, computed again at each use where it is more."""

    def __init__(self, models: ModelSet, max_kept: int) -> None:
        self._information, self._squared = models.information, models.square()
        count = len(self._squared)
        every = torch.arange(count, device=self._squared.device)
        self._kept = self._compute(every) if count**3 <= max_kept else None

    def __getitem__(self, a: Tensor) -> Tensor:
        return self._compute(a) if self._kept is None else self._kept[a]

    def _compute(self, a: Tensor) -> Tensor:
        return torch.cat([angles(self._squared, a), between(self._information, a)], 3)


def angles(square: Tensor, a: Tensor) -> Tensor:
    """(A, M, M, 6) of the triangles of anchors a, pairs m and others k: the cosines of the angles at a, m and k, once
    for small ones (drift that siblings share) and once for large ones. Near 0 where a corner has two independent
    steps."""
    am, mk = square[a][:, :, None], square[None]  # (A, M, 1), (1, M, M)
    ak = square[a][:, None, :]
    found = torch.stack([_cosine(am, ak, mk), _cosine(am, mk, ak), _cosine(ak, mk, am)], 3).float()
    return torch.cat([torch.tanh(found / 0.1), torch.tanh(found / 0.4)], 3)


def between(information: Tensor, a: Tensor) -> Tensor:
    """(A, M, M, 3) of the same triangles: by how much each corner knows both others better than they know each other.
    Of three models in a line the middle one does (Chow and Liu 1968)."""
    logs = information.clamp(1e-9).log()
    am, mk, ak = logs[a][:, :, None], logs[None], logs[a][:, None, :]
    sides = [torch.minimum(am, ak) - mk, torch.minimum(am, mk) - ak, torch.minimum(ak, mk) - am]
    return torch.tanh(torch.stack(sides, 3).float() / 0.1)


def _cosine(left: Tensor, right: Tensor, across: Tensor) -> Tensor:
    """Of the angle between two sides of a triangle, from the three squared sides; 0 where one of them is nothing."""
    size = (left * right).sqrt()
    return torch.where(size > 0, (left + right - across) / (2 * size.clamp(min=1e-300)), 0.0).clamp(-1.0, 1.0)


def standard(matrix: Tensor) -> Tensor:
    """Each of (n, o, h) with mean 0 and deviation 1; a constant one is 0."""
    matrix = matrix - matrix.mean((1, 2), keepdim=True)
    return matrix / _size(matrix, (1, 2))


def _even(matrix: Tensor) -> Tensor:
    for axis in (1, 2):
        matrix = matrix / _size(matrix, (axis,))
    return matrix


def _size(matrix: Tensor, axes: tuple[int, ...]) -> Tensor:
    size = matrix.square().mean(axes, keepdim=True).sqrt()
    return torch.where(size > 1e-30, size, 1.0)
