"""The table of docs/benchmarks.md about the learning-free method, from its recorded results: python tests/benchmarks/features_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FAMILIES = {"fc": "fully connected", "resnet": "ResNet", "vit": "ViT"}
FORMS = ("plain", "taylor", "exact")


SETTINGS = ("own data, step 0.1", "own data, step 0.01", "own data, step auto", "synthetic, step auto")


def table(setting: str = SETTINGS[0]) -> str:
    """Top-1 in %, mean ± deviation over folds, of each metric: before, and after by Taylor's and by the exact form."""
    found = json.loads((RESULTS / "learning_free.json").read_text(encoding="utf-8"))["families"]
    heads = [f"{label}: {form}" for label in FAMILIES.values() for form in FORMS]
    lines = [f"| metric | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for metric in found["fc"][setting]["top1"]:
        cells = [_cell(found[name][setting]["top1"][metric].get(form)) for name in FAMILIES for form in FORMS]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    for each in SETTINGS:
        means = [_mean(found[name][each]["top1"], form) for name in FAMILIES for form in FORMS]
        lines.append(f"| mean but linf, {each} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """Fig. 3 in sentences: what the step does to real and to false pairs, and Taylor's form against the exact one."""
    found = json.loads((RESULTS / "learning_free.json").read_text(encoding="utf-8"))["families"]
    said = []
    for name, label in FAMILIES.items():
        each = found[name]["own data, step 0.1"]
        gains = {m: [each["gains"][m][kind]["gaining"] for kind in ("real", "false")] for m in ("l2", "cka")}
        small = found[name]["own data, step 0.01"]["gains"].values()
        agree = min(g["taylor_against_exact"] for g in small if "taylor_against_exact" in g)
        said.append(
            f"{label}, {each['children']} children, {found[name]['roots']} roots: at α = 0.1 the step brings "
            f"{100 * gains['cka'][0]:.0f} % of the real pairs nearer by cka and {100 * gains['cka'][1]:.0f} % of the "
            f"false ones, by l2 {100 * gains['l2'][0]:.0f} and {100 * gains['l2'][1]:.0f} %; at α = 0.01 Taylor's gains "
            f"correlate with the exact ones by at least {agree:.4f}."
        )
    return " ".join(said)


def _cell(value: list[float] | None) -> str:
    return "" if value is None else f"{100 * value[0]:.0f} ± {100 * value[1]:.0f}"


def _mean(top1: dict[str, Any], form: str) -> str:
    values = [each[form][0] for name, each in top1.items() if name != "linf"]
    return f"{100 * sum(values) / len(values):.0f}"


if __name__ == "__main__":
    print(table())
    print(summary())
