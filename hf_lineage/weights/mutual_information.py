"""Mutual information of two models, unit by unit under a Gaussian model: what ranks relatives best.

A fine-tuned unit is roughly a multiple of its parent's unit plus noise, with a factor and a noise level of its own.
A sum over units gives weight to the many that moved little; one distance, only to the few that moved far.
See docs/methods.md, *Mutual information of units*.
"""

from __future__ import annotations

import torch

MIN_UNEXPLAINED = 1e-14  # lower limit of 1 − r²: equal units count as so well explained and no better
UNITS_AT_ONCE = 256  # keeps the float64 copies small beside what was read


def mutual_information(child: torch.Tensor, candidate: torch.Tensor) -> float:
    """I = −½ Σ_units d·log(1 − r²), in nats, ≥ 0; r is the correlation of a unit's d weights in the two models.

    child, candidate: (units, d), the same units in the same rows. With δ = y − x, 1 − r² = (|x|²|δ|² − ⟨x, δ⟩²) /
    (|x|²|y|²) of the centred units, so that nearly equal units lose no digits. Constant units are left out.
    The mutual information of two Gaussian vectors with independent entries of correlation r (Cover & Thomas 2006,
    §8.5).
    """
    information = 0.0
    for x, y in zip(child.split(UNITS_AT_ONCE), candidate.split(UNITS_AT_ONCE), strict=True):
        x, y = x.double(), y.double()
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        d = y - x
        xx, yy, xd, dd = (x * x).sum(1), (y * y).sum(1), (x * d).sum(1), (d * d).sum(1)
        varying = (xx > 0) & (yy > 0)
        unexplained = ((xx * dd - xd * xd)[varying] / (xx * yy)[varying]).clamp(MIN_UNEXPLAINED, 1.0)
        information -= 0.5 * x.shape[1] * float(unexplained.log().sum())
    return information
