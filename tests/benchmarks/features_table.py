"""The README's table of the learning-free method, from its recorded results: python tests/benchmarks/features_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FAMILIES = {"fc": "fully connected", "resnet": "ResNet", "vit": "ViT"}
FORMS = ("plain", "taylor", "exact")


def table(setting: str = "own data, step auto") -> str:
    """Top-1 in %, mean ± deviation over folds, of each metric: before, and after by Taylor's and by the exact form."""
    found = json.loads((RESULTS / "learning_free.json").read_text(encoding="utf-8"))["families"]
    heads = [f"{label}: {form}" for label in FAMILIES.values() for form in FORMS]
    lines = [f"| metric | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for metric in found["fc"][setting]["top1"]:
        cells = [_cell(found[name][setting]["top1"][metric].get(form)) for name in FAMILIES for form in FORMS]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    means = [_mean(found[name][setting]["top1"], form) for name in FAMILIES for form in FORMS]
    return "\n".join([*lines, f"| mean | {' | '.join(means)} |"]) + "\n"


def summary() -> str:
    """Fig. 3 in sentences: what the step does to real and to false pairs, and Taylor's form against the exact one."""
    found = json.loads((RESULTS / "learning_free.json").read_text(encoding="utf-8"))["families"]
    said = []
    for name, label in FAMILIES.items():
        each = found[name]
        gains = each["own data, step auto"]["gains"]
        real, false = ([gains[m][kind]["gaining"] for m in gains] for kind in ("real", "false"))
        agree = min(
            g["taylor_against_exact"]
            for g in each["own data, step 0.01"]["gains"].values()
            if "taylor_against_exact" in g
        )
        blind = _mean(each["synthetic, step auto"]["top1"], "exact")
        said.append(
            f"{label} ({each['own data, step auto']['children']} children, {each['roots']} roots): the step makes "
            f"{_range(real)} of the real pairs more alike and {_range(false)} of the false ones; at α = 0.01 Taylor's "
            f"gains correlate with the exact ones by at least {agree:.4f}; synthetic probes: {blind} % on average."
        )
    return " ".join(said)


def _cell(value: list[float] | None) -> str:
    return "" if value is None else f"{100 * value[0]:.0f} ± {100 * value[1]:.0f}"


def _mean(top1: dict[str, Any], form: str) -> str:
    values = [each[form][0] for each in top1.values() if form in each]
    return f"{100 * sum(values) / len(values):.0f}"


def _range(shares: list[float]) -> str:
    low, high = 100 * min(shares), 100 * max(shares)
    return f"{low:.0f} %" if round(low) == round(high) else f"{low:.0f} to {high:.0f} %"


if __name__ == "__main__":
    print(table())
    print(summary())
