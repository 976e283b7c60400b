"""The shipped detector beside relatives: its λ and temperature fitted on four families, measured on eight others.

    python tests/benchmarks/detector_relatives.py FAMILIES            measure, results/detector-relatives.json
    python tests/benchmarks/detector_relatives.py FAMILIES --write    and write λ and temperature into the shipped one

FAMILIES is the folder of `pytest -m large --families`: `lines-*` (seed 7) to fit, `trees-*` (seeds 71, 72, 73) to
measure; none was trained on. Spread: deviation over 8 draws of the questions.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write_record

from hf_lineage.checkpoints.opener import Opener
from hf_lineage.detector.evidence import LoadedDetector, open_detector
from hf_lineage.detector.examples import Examples
from hf_lineage.detector.model import LineageDetector, farther
from hf_lineage.detector.train import FIGURES_FILE, write
from hf_lineage.detector.training import answers, calibration_error, with_temperature
from hf_lineage.experiments.detector import NEAREST, SHIPPED, Descent, inputs_of, questions
from hf_lineage.experiments.families import read_family

FITTED = ("lines-fc", "lines-resnet", "lines-vit", "lines-llama")
MEASURED = ("trees-fc", "trees-fc-light", "trees-fc-many", "trees-resnet", "trees-resnet-light", "trees-vit", "trees-llama",
            "trees-llama-light")  # fmt: skip
KINDS = {"parent": (1.0, 0.0), "orphans": (0.0, 0.0), "beside relatives": (1.0, 1.0)}  # offered, relatives
DRAWS, CHILDREN, MEMBERS = 8, 60, 130
LAMBDAS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
EARLIER = 0.794328  # the temperature of the shipped one before, without λ


def drawn(lines: Descent, seen: Any, kind: str, draw: int) -> Examples:
    """Questions about at most `CHILDREN` members, a parent among the candidates or, of orphans, none."""
    offered, relatives = KINDS[kind]
    rng = random.Random(f"{kind}/{draw}")
    rows = [*questions(lines, [*seen], rng, offered=offered, relatives=relatives, most=6)]
    rows = [row for row in rows if (row.parent is None) == (kind == "orphans")]
    return Examples(seen, tuple(rng.sample(rows, min(CHILDREN, len(rows)))))


def looked_at(folder: Path, name: str, judge: LoadedDetector) -> tuple[Descent, Any]:
    family, _ = read_family(folder / "large" / name)
    seen = inputs_of(family, judge.config, family.members[:MEMBERS])
    return Descent([family], seen), seen


def changed(detector: LineageDetector, **changes: float) -> LineageDetector:
    other = LineageDetector(replace(detector.config, **changes))
    other.load_state_dict(detector.state_dict())
    return other.eval()


def figures(detector: LineageDetector, asked: Examples) -> dict[str, float]:
    """Right answers, the true parent first among the candidates (whatever is said of "none"), ECE."""
    right, first, sure = [], [], []
    for row, (scores, label) in zip(asked.rows, answers(detector, asked), strict=True):
        shares = detector.probabilities(scores)
        right.append(int(shares.argmax()) == label)
        sure.append(float(shares.max()))
        first.append(int(scores[: len(row.candidates)].argmax()) == label)
    return {"right": float(np.mean(right)), "first": float(np.mean(first)), "ece": calibration_error(sure, right)}


def nearest(asked: Examples) -> dict[str, float]:
    """The candidate of least l2 change of the same inputs, by kind."""
    hits = [
        (int(farther(e.weights, []).argmin()) == e.label, int(farther([], e.features).argmin()) == e.label)
        for e in asked
    ]
    return dict(zip(("l2 of weights", "l2 of features"), np.mean(hits, 0).tolist(), strict=True))


def spread(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {
        name: [round(float(f([row[name] for row in rows])), 4) for f in (np.mean, np.std)] for name in rows[0]
    }  # fmt: skip


def fit(folder: Path, plain: LineageDetector, judge: LoadedDetector) -> tuple[LineageDetector, dict[str, float]]:
    """λ of least loss, with its temperature; the loss of each λ."""
    parts = []
    for name in FITTED:
        lines, seen = looked_at(folder, name, judge)
        parts += [drawn(lines, seen, kind, 0) for kind in KINDS]
    asked = sum(parts[1:], parts[0])
    found, losses = {}, {}
    for value in LAMBDAS:
        found[value] = with_temperature(plain, asked, value)
        shares = [found[value].probabilities(scores)[label] for scores, label in answers(found[value], asked)]
        losses[str(value)] = round(-float(torch.stack(shares).clamp(min=1e-12).log().mean()), 4)
    return found[min(LAMBDAS, key=lambda value: losses[str(value)])], losses


def main(folder: Path, keep: bool) -> None:
    torch.set_num_threads(1)
    judge = open_detector(None, Opener())
    before = changed(judge.detector, nearest=0.0, temperature=EARLIER)
    after, losses = fit(folder, before, judge)
    print("λ, temperature", after.config.nearest, after.config.temperature, losses, flush=True)
    rows = []
    for name in MEASURED:
        lines, seen = looked_at(folder, name, judge)
        for kind in KINDS:
            asked = [drawn(lines, seen, kind, draw) for draw in range(DRAWS)]
            if not len(asked[0]):
                continue
            row: dict[str, Any] = {"family": name, "kind": kind, "children": len(asked[0])}
            row |= {
                which: spread([figures(d, each) for each in asked])
                for which, d in (("before", before), ("after", after))
            }
            row |= {} if kind == "orphans" else spread([nearest(each) for each in asked])
            rows.append(row)
            print(json.dumps(row), flush=True)
    fitted = {"nearest": after.config.nearest, "temperature": after.config.temperature}
    write_record("detector-relatives", rows, draws=DRAWS, fitted_on=FITTED, fitted=fitted, losses=losses)
    if keep:
        assert after.config.nearest == NEAREST, f"experiments/detector.py has NEAREST = {NEAREST}"
        keep_as_shipped(after)


def keep_as_shipped(detector: LineageDetector) -> None:
    about = json.loads((SHIPPED / FIGURES_FILE).read_text(encoding="utf-8"))
    about["config"] = asdict(detector.config)
    about["notes"] = [
        "validation and test: of the network alone, the same questions.",
        f"nearest and temperature were fitted on {', '.join(FITTED)} (seed 7) by tests/benchmarks/detector_relatives.py.",
    ]
    write(detector, about, SHIPPED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
