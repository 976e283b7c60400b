"""Similarity of outputs or features that were stored, where no model can be run (Neural Lineage S4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ArgumentError, LineageError, Note
from .evidence import FeaturesEvidence, matching
from .similarity import METRICS, similarity

OUTPUTS = "outputs"  # in the place of a tap's name


def compare_stored(
    child: Tensor, candidates: Sequence[Tensor], asked: str
) -> tuple[dict[int, FeaturesEvidence], dict[int, Note]]:
    """(found, refused): the evidence about candidate i, every metric that fits without a step, or why there is none.

    child, candidates: (N, …) of the same N inputs in the same order, flattened to (N, K).  asked: the one that ranks.
    Raises `ArgumentError` of the child: a scalar, no input, NaN or Inf, or too few inputs for the metric.
    """
    G = _matrix(child)
    similarity(asked, G, G)
    found, refused = {}, {}
    for i, output in enumerate(candidates):
        try:
            F = _matrix(output)
            names = [asked, *(name for name, m in METRICS.items() if F.shape == G.shape or not m.same_width)]
            values = {name: similarity(name, F, G) for name in dict.fromkeys(names)}
        except LineageError as error:
            refused[i] = error.note
            continue
        scores = {name: {"plain": value, "taylor": None, "exact": value} for name, value in values.items()}
        found[i] = {
            "tap": OUTPUTS, "candidate_tap": OUTPUTS, "features": F.shape[1], "scores": scores, "step": 0.0,
            "taylor_step": 0.0, "own_step": None, "curvature": None,
        }  # fmt: skip
    matches = matching([{"metric": asked, "taps": [tap]} for tap in found.values()])
    return {
        i: FeaturesEvidence(asked, "stored", None, len(G), None, [tap], match)
        for (i, tap), match in zip(found.items(), matches, strict=True)
    }, refused


def stored_notes(found: Sequence[FeaturesEvidence]) -> list[Note]:
    """What was compared, and what that cannot tell."""
    first = found[0]
    text = (
        f"Features: {first.metric} of stored outputs for {first.probes} inputs; no weight was read and no model run. A "
        "match has no p-value and no step towards the child, says nothing of who came first, and of a set without a "
        "relative it names one all the same."
    )
    return [Note("features_compared", text)]


def _matrix(output: Tensor) -> Tensor:
    if output.ndim < 1 or not output.numel():
        raise ArgumentError(f"Expected outputs of shape (inputs, …), got {tuple(output.shape)}.")
    return output.reshape(len(output), -1)
