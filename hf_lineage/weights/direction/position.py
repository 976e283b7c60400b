"""The record that all estimators of an order share: where the common origin of two models lies."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """Where the common origin o of a candidate p and a child c lies: λ = 1 − 2‖o − p‖²/‖c − p‖².

    `lambda_`: 1 the candidate is the origin, −1 the child is, 0 both moved equally far from it; None where the
    estimator (`method`) does not apply, and `reason` says why in words. `stderr`: its standard error, the estimator's
    own error included. `misfit`: χ² per degree of freedom of the model behind it, near 1 where that holds. `entries`:
    weights that were counted. A λ swaps its sign with the two models.
    """

    lambda_: float | None
    stderr: float
    misfit: float
    method: str
    entries: int
    reason: str

    @classmethod
    def silent(cls, method: str, reason: str, entries: int = 0) -> Position:
        """Of an estimator that does not apply."""
        return cls(None, math.inf, 0.0, method, entries, reason)

    @property
    def z(self) -> float:
        """λ over its error; 0 of a silent one."""
        return self.lambda_ / self.stderr if self.lambda_ is not None and self.stderr > 0 else 0.0
