"""The Lineage Detector on an experiment: trained on 70 % of a column's children, stopped on 10, measured on 20."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..answers.base import Progress
from ..answers.refs import ModelRef
from ..detector.examples import Examples, Table, make
from ..detector.model import DetectorConfig
from ..detector.training import Training, evaluate, train
from ..features.evidence import Settings
from .family_file import run_settings
from .lines import Asked
from .protocol import Experiment

CONFIG = DetectorConfig(entries=576, probes=512)  # inputs of the paper: the shallow tap and the weight before it
HOW = Training(patience=6)  # the paper trains 100 epochs; the validation loss is at its least long before


def learned(
    experiment: Experiment, asked: Sequence[Asked], splits: Sequence[tuple[list[int], list[int], list[int]]],
    progress: Progress | None = None,
) -> list[float]:  # fmt: skip
    """The share right of each split's test children."""
    examples = inputs(asked)
    rows = {row.child: row for row in examples.rows}
    of = [rows.get(_name(question.child.path)) for question in asked]
    shares = []
    for number, split in enumerate(splits):
        if progress:
            progress(number, len(splits), "detector")
        training, validation, test = (examples.of([row for i in part if (row := of[i])]) for part in split)
        detector, _ = train(training, validation, CONFIG, replace(HOW, seed=experiment.seed + number))
        shares.append(float(evaluate(detector, test)["accuracy"]))
    return shares


def inputs(asked: Sequence[Asked]) -> Examples:
    """What the detector sees of the children and candidates of a column."""
    candidates = tuple(_name(candidate.path) for candidate in asked[0].candidates)
    folder = asked[0].child.path.parents[1]
    how = run_settings(folder, CONFIG.probes)
    table = Table(
        candidates, {_name(question.child.path): _name(question.parent.path) for question in asked}, tuple(how.modules),
        how.probes if isinstance(how.probes, Tensor) else None,
    )  # fmt: skip
    return make([table], CONFIG, settings=Settings(probes=CONFIG.probes))


def _name(path: Path) -> str:
    return str(ModelRef.parse(path))
