"""Who came first, of a LoRA merged in half precision: a low-rank step that explains every entry, one way only.

Let D = c − p have rank r beyond rounding. If c was made from p, c = round(p + L) in *every* entry for some L of rank r:
L lies in the box of the rounding cells of c, less p. If p was made from c, p = round(c + L'). Both are looked for by
projections in turn on the matrices of rank r and on the box, over-relaxed (Gubin, Polyak and Raik 1967). A few steps
do not reach every entry, so the share that is explained is compared with the share that the same search explains of
round(p + L) itself: they agree in the true direction only, and of two LoRAs of one base in neither.

The projection on rank r is one step of subspace iteration from the last one's basis (Halko, Martinsson and Tropp 2011),
on at most ROWS rows and COLUMNS columns: any block of a matrix of rank r has that rank.
See docs/methods.md, *A merged LoRA*.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lattices import Lattice, lattice_of
from .position import Position

ROWS, COLUMNS = 160, 512
STEPS, OVER = 60, 1.5
MAX_MATRICES = 3
FIRST_MATRICES = 16  # of all that changed, that are looked at first: where none shows a rank, the rest is not looked at
MIN_SIZE = 32  # rows and columns that changed
MOST_RANK, MIN_RATIO = 64, 1.3  # ranks looked for, and the least ratio of the singular values on either side of one
MIN_LEAD = 0.003  # by which a share must lie below the one expected of a true direction to refute it
MAX_SHORT = 0.01  # by which it may lie below
METHOD = "merged_lora"


@dataclass(frozen=True, slots=True)
class Explained:
    """Shares of a matrix's entries that a step of `rank` explains exactly: forward the child from the candidate.

    forward_expected, backward_expected: the shares where that is how the entries were made, by the step that was found.
    """

    forward: float
    forward_expected: float
    backward: float
    backward_expected: float
    rank: int
    entries: int


def explain_matrix(child: Tensor, candidate: Tensor) -> Explained | None:
    """The shares of one matrix, (rows, width) of any float dtype; None where the two do not lie on one lattice, or no
    rank stands out of the spectrum of their difference. About 0.3 s of one core."""
    c, p, lattice = _part(child, candidate)
    rank = standing_rank(c - p) if lattice else None
    if rank is None or lattice is None:
        return None
    shares = (*_explained(c, p, rank, lattice), *_explained(p, c, rank, lattice))
    return Explained(*shares, rank, c.numel())


def _part(child: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor, Lattice | None]:
    """Some of the rows and columns that changed, float64, and the lattice of both; None where there is none, or too
    few changed."""
    changed = child != candidate
    rows, columns = (changed.any(axis).nonzero()[:most, 0] for axis, most in ((1, ROWS), (0, COLUMNS)))
    child, candidate = (matrix[rows][:, columns] for matrix in (child, candidate))
    lattice = lattice_of(child.flatten())
    if lattice_of(candidate.flatten()) is not lattice or min(child.shape) < MIN_SIZE:
        lattice = None
    return child.double(), candidate.double(), lattice


def shows_rank(changed: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether any of `FIRST_MATRICES` drawn from the changed matrices, (child, candidate) each, shows a rank: where a
    LoRA was merged hardly anything else changes."""
    drawn = changed if len(changed) <= FIRST_MATRICES else random.Random(0).sample(changed, FIRST_MATRICES)
    parts = (_part(*both) for both in drawn)
    return any(lattice and standing_rank(c - p) is not None for c, p, lattice in parts)


def standing_rank(step: Tensor) -> int | None:
    """The rank at which neighbouring singular values differ most; None where no such step is plain."""
    values = torch.linalg.svdvals(step)
    most = min(MOST_RANK, len(values) // 2)
    ratios = values[:most] / values[1 : most + 1].clamp_min(1e-300)
    best = int(ratios.argmax())
    return best + 1 if float(ratios[best]) >= MIN_RATIO else None


def _explained(younger: Tensor, older: Tensor, rank: int, lattice: Lattice) -> tuple[float, float]:
    """Share of the entries of `younger` that equal round(older + L) for the best L found, and the share that the same
    search explains of round(older + L) itself."""
    share, step = _search(younger, older, rank, lattice)
    made = (older + step).to(torch.float32).to(lattice.dtype).double()
    return share, _search(made, older, rank, lattice)[0]


def _search(younger: Tensor, older: Tensor, rank: int, lattice: Lattice) -> tuple[float, Tensor]:
    low, high = (edge - older for edge in _cells(younger, lattice))
    middle = (low + high) / 2
    basis = torch.linalg.svd(middle, full_matrices=False).Vh[:rank].T
    step, basis = _low_rank(middle, basis)
    for _ in range(STEPS):
        step, basis = _low_rank(step + OVER * (step.clamp(low, high) - step), basis)
    slack = 1e-9 * (high - low)
    return float(((step >= low - slack) & (step <= high + slack)).double().mean()), step


def _low_rank(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest matrix whose columns lie in the span of matrix·basis, and the basis of its rows."""
    columns = torch.linalg.qr(matrix @ basis).Q
    rows = columns.T @ matrix
    return columns @ rows, torch.linalg.qr(rows.T).Q


def _cells(values: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Where the rounding cell of each value begins and ends."""
    mantissa, exponent = torch.frexp(values)
    spacing = torch.ldexp(torch.ones_like(values), exponent.clamp(min=_least_exponent(lattice)) - lattice.mantissa - 1)
    inward = torch.where(mantissa.abs() == 0.5, spacing / 4, spacing / 2)  # below a power of two the spacing halves
    inward = torch.where(values == 0, spacing / 2, inward)
    ends = torch.where(values > 0, values - inward, values - spacing / 2)
    return ends, torch.where(values > 0, values + spacing / 2, values + inward)


def _least_exponent(lattice: Lattice) -> int:
    """Of `frexp`, of the smallest normal number; below it the spacing stays."""
    return 2 - lattice.binades.stop // 2


def lora_position(matrices: Iterable[Explained]) -> Position:
    """λ of a merged LoRA: 1 or −1. Silent where the matrices do not agree, as of two LoRAs of one base."""
    found = list(matrices)
    entries = sum(m.entries for m in found)
    if not found:
        return Position.silent(METHOD, "no matrix changed by a low-rank step on a lattice of half precision")
    forward, backward = (sum(getattr(m, way) * m.entries for m in found) / entries for way in ("forward", "backward"))
    told = (
        f"{forward:.1%} of the entries of {len(found)} matrices are the candidate's plus a step of rank "
        f"{max(m.rank for m in found)}, rounded; {backward:.1%} the other way round"
    )
    for sign in (1.0, -1.0):
        if all(_direction(m) == sign for m in found):
            return Position(sign, 0.2, 1.0, METHOD, entries, told)
    return Position.silent(METHOD, f"{told}: not plain", entries)


def says_nothing(found: Explained) -> bool:
    """Whether one matrix shows a merged LoRA in neither direction."""
    return _direction(found) == 0


def _direction(found: Explained) -> float:
    """1 where only the child is explained, −1 where only the candidate is, else 0."""
    ahead, back = found.forward_expected - found.forward, found.backward_expected - found.backward
    for sign, one, other in ((1.0, ahead, back), (-1.0, back, ahead)):
        if one <= MAX_SHORT and other >= one + MIN_LEAD:
            return sign
    return 0.0
