"""Evidence → probability: the whole rule. Its numbers are in calibration.json, made by `experiments/calibration.py`.

Two questions are asked about each candidate i. Is it next to the child: was one of the two made from the other? The
features φᵢ below give the odds eᵢ = exp(out·tanh(H φᵢ + bias) + offset), beside 1 for "nobody here is next to it". And
which of the two came first, if so? `verdict` gives the share fᵢ of the candidate, 1 − fᵢ is the child's. Then

    P(i is the parent) = fᵢ eᵢ / (1 + Σⱼ fⱼ eⱼ + (1 − fᵢ) eᵢ),    P(none) = 1 − Σᵢ P(i):

a conditional logit (McFadden 1974) with one hidden layer, in which the two directions of a pair that is asked about
alone add up to e/(1 + e), below 1. Of several candidates that are about as likely, the one that tells most about the
child (`place`) has the largest odds. Fitted on families with a known truth, where every pair of parent and child is
asked about both ways; the share of questions with the parent among the candidates is `prior`. Another prior π
multiplies every eᵢ by π/(1 − π) over the same of the fitted one.
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

MAX_LOG_ODDS = 30.0
MAX_RELATED = 8  # related candidates of one question when the numbers were fitted; more count as so many


@functools.cache
def numbers() -> dict[str, Any]:
    """What was fitted, with the seeds and the date it was made from."""
    return json.loads(files("hf_lineage").joinpath("tasks/calibration.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, eq=False)
class Features(Evidence):
    """What the probability is made of, for one candidate.

    relatedness: Fisher's z of the correlation with the child, √(n − 3)·atanh r.  exists: −log10 of the raw p-value.
    tested: whether there is one.  ahead: log distance ratio to the nearest other candidate, but for those that an ample
    test finds unrelated.  ahead_z: the same in
    standard errors of the sample.  first: fᵢ, the share of the candidate having come first, in (0, 1].  between: log of
    the share of neither having come first, of `Direction`.  measured: whether the steps between the two tell an order
    (`weights/direction/order.py`), 0 or 1.  moved: log of the change relative to the candidate's norm.
    entries: log of the number read.  candidates, related: how many there are but for these, and how many of them have
    a relatedness above 4.
    place: 0 for the related candidate that tells most about the child, 1 for the next, …; −1 where that is not known.
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
    measured: float = 0.0
    place: int = -1

    def to_dict(self) -> dict[str, Any]:
        """All features, under the names of the JSON contract."""
        names = {"relatedness": "kinship", "related": "kin"}
        return {names.get(name, name): value for name, value in fields_of(self).items()}

    def vector(self) -> np.ndarray:
        """The features of the odds, bounded: no single one can run away. (14,)"""
        relatedness, exists = _within(self.relatedness, -2.0, 12.0), _within(self.exists, 0.0, 12.0)
        # an unrelated model would lie at √2 times the norm: whether one is among the candidates must not matter
        unrelated = math.log(2) / 2 - self.moved
        alone = self.candidates == 1
        ahead = _within(unrelated if alone else min(self.ahead, unrelated), -1.0, 1.0)
        z = _within(math.copysign(8.0, unrelated) if alone else self.ahead_z, -8.0, 8.0)
        return np.array([
            relatedness / 6, math.tanh(relatedness / 3), self.tested, exists / 6, math.tanh(exists / 3),
            2 * ahead, math.tanh(8 * ahead), z / 4, math.tanh(z),
            max(self.between, -5.0) / 2, _within(self.moved, -5.0, 1.5) / 2, _within(self.entries - 8, -4.0, 5.0) / 4,
            math.log1p(min(self.related, MAX_RELATED)), self.measured,
        ])  # fmt: skip


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def probabilities(features: Sequence[Features], prior: float | None = None) -> tuple[np.ndarray, float]:
    """P of each candidate, and of "none"; they sum to 1. prior: that the parent is among them, in (0, 1)."""
    fitted = numbers()["probability"]
    rows = np.array([item.vector() for item in features]).reshape(len(features), len(fitted["hidden"][0]))
    hidden = np.tanh(rows @ np.array(fitted["hidden"]).T + np.array(fitted["bias"]))
    logs = hidden @ np.array(fitted["out"]) + fitted["offset"]
    if prior is not None:
        logs = logs + math.log(prior / (1 - prior)) - math.log(fitted["prior"] / (1 - fitted["prior"]))
    ranked = sorted((i for i, item in enumerate(features) if item.place >= 0), key=lambda i: features[i].place)
    logs[ranked] = np.sort(logs[ranked])[::-1]
    odds, first = np.exp(np.minimum(logs, MAX_LOG_ODDS)), np.array([item.first for item in features])
    shares = first * odds / (1 + first @ odds + (1 - first) * odds)
    return shares, float(1 - shares.sum())
