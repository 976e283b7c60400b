"""Tables → a folder with a detector, its figures, and a card with both."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..answers.base import Progress
from ..answers.refs import printable
from ..checkpoints.opener import Opener
from ..errors import ArgumentError
from ..features.evidence import Settings
from ..parallel import together, world
from .examples import Examples, Table, make, split
from .model import DetectorConfig, LineageDetector
from .training import STATE_FILE, Training, evaluate, train

FIGURES_FILE = "training.json"


@dataclass(frozen=True, slots=True)
class TrainedDetector:
    """A detector and its figures, those of `training.json`."""

    detector: LineageDetector
    figures: dict[str, Any]


@together
def make_detector(
    tables: Sequence[Table], out: Path, config: DetectorConfig, how: Training | None = None, *, by: str = "child",
    settings: Settings | None = None, opener: Opener | None = None, progress: Progress | None = None,
) -> TrainedDetector:  # fmt: skip
    """Read the inputs of the models, split, train, measure on held-out children, and write everything to `out`.

    The same call continues an interrupted training. Raises `ArgumentError`, `NothingToCompareError`.
    """
    how = how or Training()
    started = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"Expected a folder to write to, got `{out}`: {error.strerror}.") from error
    settings = settings or Settings(probes=config.probes)
    examples = make(tables, config, opener=opener, settings=settings, progress=progress)
    parts = dict(zip(("training", "validation", "test"), split(examples, by, seed=how.seed), strict=True))
    detector, history = train(
        parts["training"], parts["validation"], config, how, out, device=settings.placement.main, progress=progress
    )
    figures: dict[str, Any] = {
        "made": {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - started, 1),
                 "processes": world().size, "device": str(settings.placement.main)},
        "versions": {name: version(name) for name in ("hf_lineage", "torch", "accelerate", "huggingface_hub")},
        "config": asdict(detector.config), "training": asdict(how), "split": by,
        "examples": {name: described(part) for name, part in parts.items()},
        "validation": evaluate(detector, parts["validation"]), "test": evaluate(detector, parts["test"]),
        "nearest": parts["test"].nearest(), "epochs": len(history), "history": history,
        "notes": [printable(note) for note in examples.notes],
    }  # fmt: skip
    if world().main:
        write(detector, figures, out)
        (out / STATE_FILE).unlink(missing_ok=True)
    return TrainedDetector(detector, figures)


def write(detector: LineageDetector, figures: dict[str, Any], out: Path) -> None:
    """model.safetensors, config.json, training.json and the card."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(figures), encoding="utf-8")
    detector.save_pretrained(out)


def described(examples: Examples) -> dict[str, Any]:
    """Counts of children, parents, candidates and architectures."""
    candidates = [len(row.candidates) for row in examples.rows]
    return {
        "children": len(examples), "parents": len({row.parent for row in examples.rows} - {None}),
        "without_parent": sum(row.parent is None for row in examples.rows),
        "candidates": [min(candidates), max(candidates)],
        "architectures": dict(sorted(Counter(examples.inputs[row.child].kind for row in examples.rows).items())),
    }  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = ["| | children | right | of those with a parent here | of those without | −log p | ECE |", "|" + "---|" * 7]
    for part in ("validation", "test"):
        found = figures[part]
        lines.append(
            f"| {part} | {found['children']} | {_percent(found['accuracy'])} | {_percent(found['with_parent'])} | "
            f"{_percent(found['orphans'])} | {found['nll']:.3f} | {found['ece']:.3f} |"
        )
    for name, share in figures["nearest"].items():
        if figures["config"][name]:
            label = f"test, without learning: nearest by {name} (l1)"
            lines.append(f"| {label} | {figures['test']['children']} | {_percent(share)} | | | | |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def card(figures: dict[str, Any]) -> str:
    """The model card: what it is, what it was trained on, what it reached, and its limits."""
    config, parts = figures["config"], figures["examples"]
    seen = ", ".join(f"{kind} ({count})" for kind, count in parts["training"]["architectures"].items())
    low, high = parts["test"]["candidates"]
    closed = (
        "" if config["no_parent"] else ' It cannot answer "none of these": of a set without the parent it names one.'
    )
    return f"""---
library_name: hf_lineage
license: apache-2.0
tags:
- model-lineage
- model_hub_mixin
- pytorch_model_hub_mixin
---

# A Lineage Detector

Says which of several candidates a model was fine-tuned from: the learned method of Neural Lineage (CVPR 2024, §4).
It looks at {_inputs(config)}, up to {config["entries"]} entries of each.{closed}

```bash
hf-lineage trace user/child -c org/a -c org/b --evidence detector --detector THIS_REPO@COMMIT
```

## Trained on

{parts["training"]["children"]} children of {parts["training"]["parents"]} parents ({seen}), validated on
{parts["validation"]["children"]}, tested on {parts["test"]["children"]} among {low} to {high} candidates each, split by
{figures["split"]} with seed {figures["training"]["seed"]}; {figures["epochs"]} epochs at a rate of
{figures["training"]["rate"]:g}, the best of them on validation; {_calibration(config)}

## Measured

{table(figures)}

ECE: expected calibration error of the probabilities, 10 bins. Nothing is claimed beyond models like those above.
Written by `hf-lineage train-detector`, {figures["made"]["date"]}; `training.json` has all figures.
"""


def _calibration(config: dict[str, Any]) -> str:
    if not config.get("nearest"):
        return f"temperature {config['temperature']:g}, fitted there."
    return (
        f"the candidates in the order of their l2 change, λ {config['nearest']:g}, temperature "
        f"{config['temperature']:g} (`training.json`). The figures below are the network's alone."
    )


def _inputs(config: dict[str, Any]) -> str:
    words = {
        "weights": {"auto": "the weight in front of the shallow tap", "backbone": "all weights but the head's"},
        "features": {"auto": "the features at the shallow tap", "backbone": "the features that the head is given"},
    }
    named_inputs = []
    for kind, known in words.items():
        named = [f"`{printable(name)}`" for name in config[kind] if name not in known]
        named_inputs += [known[name] for name in config[kind] if name in known]
        named_inputs += [f"{kind} {', '.join(named)}"] if named else []
    return " and ".join(named_inputs)
