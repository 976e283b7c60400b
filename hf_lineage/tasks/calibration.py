"""Evidence → probability: the whole rule. Its numbers are in calibration.json, made by `experiments/calibration.py`.

Candidate i has the features φᵢ below and the score u(φ) = out·tanh(H φ + bias) + offset, "none of them is
the parent" the score 0:

    P(i) = exp u(φᵢ) / (1 + Σⱼ exp u(φⱼ)),    P(none) = 1 / (1 + Σⱼ exp u(φⱼ)),

a conditional logit (McFadden 1974) with one hidden layer, fitted on families with a known truth.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from ..answers.base import Evidence, fields_of

MAX_CANDIDATES = 8  # candidates of one question when the numbers were fitted; more count as so many


@functools.cache
def numbers() -> dict[str, Any]:
    """What was fitted, with the seeds and the date it was made from."""
    return json.loads(files("hf_lineage").joinpath("tasks/calibration.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, eq=False)
class Features(Evidence):
    """What the probability is made of, for one candidate.

    relatedness: Fisher's z of the correlation with the child, √(n − 3)·atanh r.  exists: −log10 of the raw p-value.
    tested: whether there is one.  ahead: log distance ratio to the nearest other candidate.  ahead_z: the same in
    standard errors of the sample.  first, between: logs of the shares of `Direction`.  moved: log of the change
    relative to the candidate's norm.  entries: log of the number read.  candidates, related: how many there are, and
    how many of relatedness above 4.
    """

    relatedness: float
    exists: float
    tested: float
    ahead: float
    ahead_z: float
    first: float
    between: float
    moved: float
    entries: float
    candidates: int
    related: int

    def to_dict(self) -> dict[str, Any]:
        """All features, under the names of the JSON contract."""
        names = {"relatedness": "kinship", "related": "kin"}
        return {names.get(name, name): value for name, value in fields_of(self).items()}

    def vector(self) -> np.ndarray:
        """The features, bounded: no single one can run away. (16,)"""
        relatedness, z = _within(self.relatedness, -2.0, 12.0), _within(self.ahead_z, -8.0, 8.0)
        ahead, exists = _within(self.ahead, -1.0, 1.0), _within(self.exists, 0.0, 12.0)
        return np.array([
            relatedness / 6, math.tanh(relatedness / 3), self.tested, exists / 6, math.tanh(exists / 3),
            2 * ahead, math.tanh(8 * ahead), z / 4, math.tanh(z),
            max(self.first, -5.0) / 2, math.exp(self.first), max(self.between, -5.0) / 2,
            _within(self.moved, -5.0, 1.5) / 2, _within(self.entries - 8, -4.0, 5.0) / 4,
            math.log(min(self.candidates, MAX_CANDIDATES)), math.log1p(min(self.related, MAX_CANDIDATES)),
        ])  # fmt: skip


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def probabilities(features: Sequence[Features]) -> tuple[np.ndarray, float]:
    """P of each candidate, and of "none"; they sum to 1."""
    n = numbers()["probability"]
    rows = np.array([item.vector() for item in features]).reshape(len(features), len(n["hidden"][0]))
    hidden = np.tanh(rows @ np.array(n["hidden"]).T + np.array(n["bias"]))
    scores = np.r_[0.0, hidden @ np.array(n["out"]) + n["offset"]]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return shares[1:], float(shares[0])
