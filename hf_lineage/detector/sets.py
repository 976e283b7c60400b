"""What the Phylogeny Detector sees of a set of models: numbers that have no unit, whatever the size of the networks.

Weights are standardised, and what that takes away is given beside them as ratios; of three models, the angles of their
triangle and who lies between whom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError

SCALES, CORNERS = 7, 9  # how many numbers `scales` says of a pair, `Corners` of a triangle


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
            raise ArgumentError(f"Expected two models or more, got {models}. A tree needs somebody to compare with.")
        if not self.crops or any(c.ndim != 3 or len(c) != models for c in self.crops):
            shapes = [tuple(c.shape) for c in self.crops]
            raise ArgumentError(f"Expected matrices ({models}, rows, columns), got {shapes}. Stack each of them.")
        if not all(bool(t.isfinite().all()) for t in (*self.crops, self.gram, self.information)):
            raise ArgumentError("Expected finite weights, got NaN or Inf. Leave out whatever holds them.")

    def to(self, device: torch.device | str) -> ModelSet:
        """The same on a device."""
        return ModelSet(tuple(c.to(device) for c in self.crops), self.gram.to(device), self.information.to(device))

    def square(self) -> Tensor:
        """‖i − j‖², (M, M) float64, never negative."""
        norm = self.gram.diagonal()
        return (norm[:, None] + norm[None, :] - 2 * self.gram).clamp(min=0.0)


def stack(parent: Tensor, child: Tensor) -> Tensor:
    """(n, o, h) standardised matrices → (n, 2, o, h): the parent's, and what it leaves unexplained of the child's, of
    size 1 however little that is; rows and columns evened out, as residual asymmetry asks (METHODS §5)."""
    r = (parent * child).mean((1, 2), keepdim=True)
    return torch.stack([_even(parent), _even(child - r * parent)], 1)


def scales(models: ModelSet) -> Tensor:
    """What standardising takes away from each pair, (M, M, 7): distance, information, which of the two is larger, in
    parts of the way between them, and the information beside the best there is for the child and for the parent."""
    norm, square = models.gram.diagonal(), models.square()
    size = (norm[:, None] * norm[None, :]).clamp(min=1e-300).sqrt()
    away = (square / size).clamp(1e-12, 1e2).log10() / 4
    told = models.information.clamp(1e-9).log()
    own = torch.eye(len(norm), dtype=torch.bool, device=norm.device)
    larger = torch.tanh((norm[None, :] - norm[:, None]) / square.clamp(min=1e-300) / 2)
    best = told.masked_fill(own, -torch.inf).amax(0)
    beside = [torch.tanh((told - b) / s) for b in (best[None, :], best[:, None]) for s in (0.05, 0.5)]
    return torch.stack([away, told / 5, larger, *beside], 2).masked_fill(own[..., None], 0.0).float()


class Corners:
    """The triangles of a set: `[a]` is (A, M, M, 9), of anchors a, pairs m and others k; kept where that is at most
    `most` triangles, made again at each look where it is more."""

    def __init__(self, models: ModelSet, most: int) -> None:
        self._information, self._square = models.information, models.square()
        count = len(self._square)
        every = torch.arange(count, device=self._square.device)
        self._kept = self._made(every) if count**3 <= most else None

    def __getitem__(self, a: Tensor) -> Tensor:
        return self._made(a) if self._kept is None else self._kept[a]

    def _made(self, a: Tensor) -> Tensor:
        return torch.cat([angles(self._square, a), between(self._information, a)], 3)


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
    told = information.clamp(1e-9).log()
    am, mk, ak = told[a][:, :, None], told[None], told[a][:, None, :]
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
