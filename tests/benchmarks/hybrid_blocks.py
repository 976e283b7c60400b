"""Fig. 1(c) over seeds: origins of the blocks of hybrid ViTs, by features and by detectors that read features alone.

    python tests/benchmarks/hybrid_blocks.py FAMILIES OUT [SEEDS]    about 5 minutes on a core

FAMILIES is the folder of `pytest -m large --families`: each hybrid has the four blocks of nine of `unrelated-vit` and is
tuned with a new head at 1e-4 for 64 steps of 64 images (S2.7: 30 epochs of CIFAR10); the detectors of S2.7 are trained on
the features after the first ReLU of `lines-fc`, 50 children of 10 parents. 128 synthetic probes, the first 64 tokens.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detector_relatives import changed
from records import write_record
from safetensors.torch import load_file

import hf_lineage as hl
from hf_lineage.checkpoints.opener import Opener
from hf_lineage.detector.evidence import open_detector
from hf_lineage.detector.examples import make, split
from hf_lineage.detector.model import DetectorConfig
from hf_lineage.detector.training import Training, train
from hf_lineage.experiments.families import Family, read_family
from hf_lineage.experiments.family_file import table
from hf_lineage.experiments.merges import hybrid, tuned, write
from hf_lineage.features.evidence import Settings

CANDIDATES, BLOCKS, STEPS, RATE = 9, 4, 64, 1e-4
FEATURES = DetectorConfig(weights=(), entries=1024, probes=128, scale="child")
TRAINED = {"1,024 entries": FEATURES, "16,384 entries": replace(FEATURES, entries=16_384),
           "1,024 entries, not scaled": replace(FEATURES, scale="none")}  # fmt: skip


def made(family: Family, seed: int, out: Path) -> tuple[Path, list[Path], list[int]]:
    """A hybrid, its candidates, and which of them each block is of: four different ones."""
    draw = random.Random(seed)
    chosen = draw.sample(list(family.members), CANDIDATES)
    truth = draw.sample(range(CANDIDATES), BLOCKS)
    folder = out / f"hybrid-{seed}"
    if not (folder / "model.safetensors").exists():
        models = [load_file(member.path / "model.safetensors") for member in chosen]
        tensors = tuned(hybrid(models, dict(enumerate(truth))), chosen[0], lr=RATE, seed=seed, steps=STEPS)
        write(tensors, chosen[0], folder)
    return folder, [member.path for member in chosen], truth


def trained(family: Family, config: DetectorConfig, folder: Path) -> Path:
    examples = make([table(family.folder)], config, settings=Settings(probes=config.probes))
    training, validation, _ = split(examples)
    detector, _ = train(training, validation, config, Training(epochs=40, patience=6))
    detector.save_pretrained(folder)
    return folder


def main(families: Path, out: Path, seeds: int) -> None:
    torch.set_num_threads(1)
    vits, fc = (read_family(families / "large" / name)[0] for name in ("unrelated-vit", "lines-fc"))
    hybrids = [made(vits, seed, out) for seed in range(401, 401 + seeds)]
    print("made", flush=True)
    alone = out / "shipped-0"
    changed(open_detector(None, Opener()).detector, nearest=0.0).save_pretrained(alone)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "features, l2": lambda: {"evidence": "features"}, "features, cka": lambda: {"evidence": "features", "metric": "cka"},
        "shipped": lambda: {"evidence": "detector"},
        "shipped, its network alone": lambda: {"evidence": "detector", "detector": alone},
        **{
            f"trained on FC features, {name}": lambda name=name, config=config: {
                "evidence": "detector", "detector": trained(fc, config, out / name.replace(" ", "-"))
            }
            for name, config in TRAINED.items()
        },
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, arguments in ways.items():
        given, right = arguments(), []
        for folder, candidates, truth in hybrids:
            layers = hl.trace_layers(folder, candidates, **given)
            found = [block.parent for block in layers.blocks if block.index is not None]
            right.append(sum(parent == str(candidates[i]) for parent, i in zip(found, truth, strict=True)))
        rows.append({"way": name, "blocks": BLOCKS * len(right), "right": right,
                     "share": [round(float(f(right)) / BLOCKS, 4) for f in (np.mean, np.std)]})  # fmt: skip
        print(rows[-1], flush=True)
        write_record("hybrid-blocks", rows, seeds=[*range(401, 401 + seeds)], candidates=CANDIDATES)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
