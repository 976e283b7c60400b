"""Who came first, by weight decay: the one factor by which every decayed tensor shrank.

Decoupled decay (AdamW), and L2 in SGD, multiply every decayed tensor by 1 − ε, ε = Σ rate · decay (SGD with momentum μ:
over 1 − μ); learning moves each tensor's component along itself by an amount of its own, of either sign. With s the
slope of the child on the candidate less 1, tensor by tensor,

    s = ⟨c, p⟩/⟨p, p⟩ − 1,      q = ‖c − p‖²/‖p‖²,

s = −ε + drift if the candidate came first. Seen the other way round it is ε − q − drift, which spreads with q. So a
negative median of s, MIN_RATIO median absolute deviations below 0, that does not follow −q, says that the child is the
younger. Nothing makes all tensors grow by one factor, so that only shrinking is looked for, both ways round.

It reaches fp32 models that moved little, whatever the storage. It cannot tell a parent from a sibling that was trained
without decay. A truncation to half precision, pruning and averages shrink tensors, too: they are told elsewhere
(`weights/edits.py`), and must be asked first. See docs/methods.md, *The clock of weight decay*.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..moments import Moments
from .position import Position

MIN_ENTRIES, MIN_TENSORS = 5000, 8
MIN_RATIO = 4.0
MAX_FOLLOWED = 0.5  # slope of s on −q: 1 is the other order seen backwards, 0 is decay
METHOD = "weight_decay"


def decay_position(tensors: Iterable[Moments]) -> Position:
    """λ = ±1 where one of the two shrank by one factor everywhere. tensors: of matrices; row 0 the child, row 1 the
    candidate; tensors that are equal in both take no part."""
    found = [m for m in tensors if m.count >= MIN_ENTRIES and m.gram[1, 1] > 0 and m.gram[0, 0] > 0]
    entries = sum(m.count for m in found)
    if len(found) < MIN_TENSORS:
        return Position.silent(METHOD, f"fewer than {MIN_TENSORS} matrices changed", entries)
    norm_c, step = np.array([m.gram[0, 0] for m in found]), np.array([m.gram[1, 1] for m in found])
    along_c = np.array([m.gram[0, 1] for m in found])  # ⟨c, p − c⟩
    norm_p = norm_c + 2 * along_c + step
    forward = _shrunk(-(along_c + step) / norm_p, step / norm_p)  # ⟨c − p, p⟩ = −⟨c, y⟩ − |y|² with y = p − c
    backward = _shrunk(along_c / norm_c, step / norm_c)
    if (forward is None) == (backward is None):
        return Position.silent(METHOD, "neither of the two shrank by one factor in all matrices", entries)
    sign, (factor, ratio) = (1.0, forward) if forward else (-1.0, backward or (0.0, 0.0))
    reason = f"{len(found)} matrices shrank by one factor, 1 − {factor:.2g} ({ratio:.0f} deviations)"
    return Position(sign, 1 / ratio, 1.0, METHOD, entries, reason)


def _shrunk(s: np.ndarray, q: np.ndarray) -> tuple[float, float] | None:
    """(ε, its ratio to the deviation) where the tensors shrank by one factor; None where another reason may stand."""
    epsilon, deviation = -float(np.median(s)), _deviation(s)
    if not epsilon >= MIN_RATIO * deviation:
        return None
    beyond = s + q  # what is left of s if all of it is the square of a step, seen backwards
    if -float(np.median(beyond)) < MIN_RATIO * _deviation(beyond):
        spread = q - q.mean()
        if _deviation(q) < MIN_RATIO * deviation or -float((spread * s).sum()) > MAX_FOLLOWED * float(
            (spread**2).sum()
        ):
            return None
    return epsilon, epsilon / max(deviation, 1e-12)


def _deviation(values: np.ndarray) -> float:
    """Median absolute deviation from the median."""
    return float(np.median(np.abs(values - np.median(values))))
