"""The Lineage Detector's settings as printed beside ours, one changed at a time; and stored outputs alone.

    python tests/benchmarks/paper_settings.py FOLDER [SEEDS]     8 families, about 10 minutes on a core

Each seed has a family of small fully connected networks of its own (16 × 16 glyphs, widths 128 and 64, 6 roots with 5
children each), trained in FOLDER and kept; of its children 7:1:2 train, validate and test. They are so small that whole
matrices can be read. results/paper-settings.json: children of the test that are right, mean and deviation over seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write_record

from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.detector.examples import Examples, make, split
from hf_lineage.detector.model import DetectorConfig
from hf_lineage.detector.training import Training, evaluate, train
from hf_lineage.experiments.families import Family, task_of, train_family
from hf_lineage.experiments.family_file import table
from hf_lineage.features.evidence import Settings, run
from hf_lineage.features.networks import BACKBONE, build, head_of, taps
from hf_lineage.features.stored import compare_stored

WHOLE = 1 << 20
BOTH = DetectorConfig(entries=256, probes=128)
OURS = replace(BOTH, weights=())  # with a weight every setting is right
STOPPED = Training(epochs=40, patience=6)


@dataclass(frozen=True)
class Setting:
    """One row: what is set, and whether the probes are images of a child's own task."""

    config: DetectorConfig = OURS
    how: Training = STOPPED
    own: bool = False


SETTINGS = {
    "a weight and features": Setting(BOTH),
    "all but the head, backbone's output": Setting(replace(BOTH, weights=(BACKBONE,), features=(BACKBONE,))),
    "features: ours": Setting(), "features: attention alone": Setting(replace(OURS, layer="attention")),
    "features: 512 probes": Setting(replace(OURS, probes=512)),
    "features: the data's own samples": Setting(own=True),
    "features: backbone's output": Setting(replace(OURS, features=(BACKBONE,))),
    "features: order by l2": Setting(replace(OURS, nearest=1.5)), "features: 100 epochs": Setting(how=Training(patience=None)),
    "features: whole matrices": Setting(replace(OURS, entries=WHOLE)),
}  # fmt: skip


def family(folder: Path, seed: int) -> Family:
    sizes = {"widths": [128, 64], "side": 16}
    return train_family(folder / f"small-{seed}", "fc", roots=6, children=5, seed=seed, sizes=sizes)


def examples(of: Family, setting: Setting) -> Examples:
    """Synthetic probes, or the images of the first child's task: all models of a question get the same."""
    whole = table(of.folder)
    settings = Settings(probes=setting.config.probes)
    if setting.own:
        settings = replace(settings, probes=task_of(of.children[0]).train_x[: setting.config.probes])
    return make([whole], setting.config, settings=settings)


def detected(of: Family, setting: Setting, seed: int) -> float:
    training, validation, test = split(examples(of, setting), seed=seed)
    detector, _ = train(training, validation, setting.config, replace(setting.how, seed=seed))
    return float(evaluate(detector, test)["accuracy"])


def stored(of: Family, tap: str, metric: str) -> float:
    """The children whose parent's outputs are the most alike, of 128 images of the child's task."""
    right = []
    for child in of.children:
        given = task_of(child).train_x[:128]
        found = [_outputs(member.path, tap, given) for member in (child, *of.roots)]
        seen, _ = compare_stored(found[0], found[1:], metric)
        best = max(seen, key=lambda i: seen[i].match)
        right.append(of.roots[best].name == child.parent)
    return float(np.mean(right))


def _outputs(path: Path, tap: str, given: torch.Tensor) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    network = build(checkpoint)
    (name,) = taps(network, [BACKBONE if tap == BACKBONE else head_of(network.module)])
    return run(network, checkpoint, given, [name], Settings(probes=given))[name]


STORED = [("logits", "cka"), ("logits", "dc"), (BACKBONE, "cka"), (BACKBONE, "dc"), (BACKBONE, "l2")]


def main(folder: Path, seeds: int) -> None:
    torch.set_num_threads(1)
    families = {seed: family(folder, seed) for seed in range(301, 301 + seeds)}
    asked: dict[str, Callable[[Family, int], float]] = {
        **{f"stored: {tap}, {m}": lambda of, _, tap=tap, m=m: stored(of, tap, m) for tap, m in STORED},
        **{name: lambda of, seed, setting=each: detected(of, setting, seed) for name, each in SETTINGS.items()},
    }
    rows: list[dict[str, Any]] = []
    for name, question in asked.items():
        each = [round(question(of, seed), 4) for seed, of in families.items()]
        rows.append({"setting": name, "right": [round(float(f(each)), 4) for f in (np.mean, np.std)], "each": each})
        print(rows[-1], flush=True)
        write_record("paper-settings", rows, seeds=[*families])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8)
