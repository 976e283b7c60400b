"""Is a model the child of X, or its sibling, where both seem to come from R? By X's roundings, which a child inherits.

R and X lie on one half-precision lattice. X's step from R is what training did, rounded: where training moved a weight
by less than half a spacing nothing is left of it, and where by a little more a whole spacing is. A child c of X starts
from the rounded value. A sibling of X that was trained alike shares what training did, and not the rounding. With

    β = Σ(c − R)(X − R) / Σ(X − R)²

over the weights of one binade of one matrix, β is 1 for a child (more where it trained on in the same direction), be
the spacing fine or coarse. For a sibling it is ρ·‖c − R‖/‖X − R‖ where most weights of X moved, ρ being the cosine of
the two steps; and about two thirds of that where few did, since there X's step overstates what training did. See
docs/methods.md, *Order*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .lattices import lattice_of

RARE, OFTEN = 0.25, 0.6  # share of weights of a binade that moved: at most where few did, at least where most did
MIN_MOVED = 2000  # weights that moved where few did, of all matrices together
INHERITED, MOST = 0.9, 1.5  # β of a child: at least where few moved, at most where most did
# β where few moved over β where most did: of a child at least (it had 0.89 to 1.03 on a real model), of a sibling at
# most (up to 0.70)
CONSTANT, FALLING = 0.88, 0.73
NOT_INHERITED = 0.8  # β where few moved, up to which c is no child
MOST_FALLING = 3.0  # β where most moved, up to which a falling β is a sibling's: a child that trained on has one, too
EXPONENTS = 256  # of float32


@dataclass(frozen=True, slots=True)
class Inheritance:
    """β where few weights of X moved, and where most did in the same matrices, weighted alike; None where too few
    tell."""

    rare: float | None
    often: float | None

    @property
    def decided(self) -> bool | None:
        """Whether c is a child of X (True), a sibling (False), or either (None)."""
        if self.rare is None:
            return None
        if self.rare <= NOT_INHERITED:
            return False
        if self.often is None:
            return None
        if self.rare >= INHERITED and self.often <= MOST and self.rare >= CONSTANT * self.often:
            return True
        return False if self.rare <= FALLING * self.often and self.often <= MOST_FALLING else None


def inherited(
    matrices: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], kept_in_half: bool | None
) -> bool | None:  # fmt: skip
    """Whether c came from X (True) or is its sibling (False), None for either; `matrices` as in `inheritance`.

    kept_in_half: whether X's weights were, while it was trained; None where that does not show. Only where they plainly
    were not is c said to come from X: else every step was rounded, also of what a sibling shares.
    """
    found = inheritance(matrices).decided
    return None if found and kept_in_half is not False else found


def inheritance(matrices: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Inheritance:
    """What c inherits of X's step from R. matrices: (c, X, R) of each, one shape, any float dtype; those in which X and
    R do not lie on one lattice are left out. O(entries)."""
    rare, often = np.zeros(3), np.zeros(3)  # Σ(c − R)(X − R), Σ(X − R)², weights that moved
    for c, x, r in matrices:
        c, x, r = (t.flatten() for t in (c, x, r))
        lattice = lattice_of(r)
        if lattice is None or lattice_of(x) is not lattice:
            continue
        sums = _by_binade(*(t.float() for t in (c, x, r)))
        share = sums[2] / np.maximum(sums[3], 1)
        few, most = sums[:3, share <= RARE].sum(1), sums[:3, share >= OFTEN].sum(1)
        rare += few
        if few[2] and most[2] >= MIN_MOVED:
            often += np.array([most[0] / most[1] * few[1], few[1], few[2]])
    return Inheritance(
        float(rare[0] / rare[1]) if rare[2] >= MIN_MOVED else None,
        float(often[0] / often[1]) if often[2] >= MIN_MOVED else None,
    )  # fmt: skip


def _by_binade(c: torch.Tensor, x: torch.Tensor, r: torch.Tensor) -> np.ndarray:
    """(4, EXPONENTS) by the exponent of R: Σ(c − R)(X − R), Σ(X − R)², weights that moved, weights in all."""
    exponents = (r.view(torch.int32) >> 23) & 0xFF
    counts = np.bincount(exponents.numpy(), minlength=EXPONENTS)
    moved = x != r
    step, theirs = (x - r)[moved].double(), (c - r)[moved].double()
    at = exponents[moved].numpy()
    weights = ((theirs * step).numpy(), (step * step).numpy(), None)
    return np.array([*(np.bincount(at, w, EXPONENTS) for w in weights), counts], dtype=np.float64)
