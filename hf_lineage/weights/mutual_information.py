"""How much a candidate tells about the child, unit by unit (METHODS §5): what ranks relatives best."""

from __future__ import annotations

import torch

MIN_UNEXPLAINED = 1e-14  # of 1 − r²: what is equal tells no more than that
UNITS = 256  # at once: memory stays small beside what was read


def mutual_information(child: torch.Tensor, candidate: torch.Tensor) -> float:
    """I = −½ Σ_units d·log(1 − r²), in nats, ≥ 0: r the correlation of a unit's d weights in the two models.

    A fine-tuned unit is roughly a multiple of its parent's plus noise of its own size; a sum over units hears the many
    that moved little, a distance only the few that moved far. Matrices (units, d); 1 − r² comes from differences, so
    nearly equal units lose no digits.
    """
    total = 0.0
    for x, y in zip(child.split(UNITS), candidate.split(UNITS), strict=True):
        x, y = x.double(), y.double()
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        d = y - x
        xx, yy, xd, dd = (x * x).sum(1), (y * y).sum(1), (x * d).sum(1), (d * d).sum(1)
        alive = (xx > 0) & (yy > 0)
        rest = ((xx * dd - xd * xd)[alive] / (xx * yy)[alive]).clamp(MIN_UNEXPLAINED, 1.0)
        total -= 0.5 * x.shape[1] * float(rest.log().sum())
    return total
