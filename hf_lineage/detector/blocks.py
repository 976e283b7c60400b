"""Scores of a detector for each block: Neural Lineage, Fig. 1(c) and S2.7, with features only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..answers.base import Progress
from ..architecture.align import Alignment
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import Opener
from ..errors import ArgumentError
from ..features.evidence import Settings
from ..features.grafting import Grafts, outputs
from .evidence import open_detector, score
from .inputs import matrix, pair

DEFAULT_PROBES = 128  # S2.7


def graft(
    ref: str | Path | None, opener: Opener, child: Checkpoint, view: Checkpoint,
    candidates: Sequence[tuple[Checkpoint, Alignment]], settings: Settings, progress: Progress | None = None,
) -> tuple[Grafts, str]:  # fmt: skip
    """(the blocks with the detector's scores, its name): `features.grafting.outputs`, scored as its first feature.

    Raises `ArgumentError` for a detector without features, and what `open_detector` and `outputs` do.
    """
    loaded = open_detector(ref, opener)
    if not loaded.config.features:
        raise ArgumentError(f"Expected a detector that reads features, got {loaded.name}, which reads weights alone.")
    weights = [None] * len(loaded.config.weights)
    others = [None] * (len(loaded.config.features) - 1)

    def scores(features: Sequence[Tensor], child_features: Tensor) -> list[float]:
        entries = loaded.config.entries
        pairs = pair([matrix(F.cpu(), entries) for F in features], matrix(child_features.cpu(), entries))
        return score(loaded, weights, [pairs, *others])[: len(features)].tolist()

    chosen = replace(
        settings, probes=DEFAULT_PROBES if settings.probes is None else settings.probes, metric="l2", step="auto"
    )
    return outputs(child, view, candidates, chosen, scores, loaded.name, progress), loaded.name
