"""Who came first, on families of a real pretrained model: every estimator of `weights/direction` for every pair.

By hand: `python tests/benchmarks/direction_real.py FOLDER [--full] [--write]`. FOLDER keeps the models (`real_families.py`
says what is needed). The reduced form has two families of one base each, 30 steps a child; the error of λ that the
estimators do not see themselves is fitted on the first, and judged on the second.

Prints for each pair of a family, in both orders, λ ± error (misfit) of every estimator and the joined order; with --write,
results/direction_real.json.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from real_families import Recipe, make

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "direction_real.json"


def family(name: str, scaled: int, seed: int, rates: tuple[float, ...]) -> list[Recipe]:
    """A base in three formats and its children; rates: of the light, the middle, the heavy one."""
    light, middle, heavy = rates
    bases = [Recipe(f"{name}-{stored}", stored=stored, scaled=scaled) for stored in ("bf16", "fp16", "fp32")]
    half = [
        Recipe("light", rate=light),
        Recipe("middle", rate=middle),
        Recipe("heavy", rate=heavy),
        Recipe("decayed", rate=2 * middle, decay=0.01),
        Recipe("adafactor", optimizer="adafactor", rate=10 * middle),
        Recipe("sgd", optimizer="sgd", rate=10 * heavy),
        Recipe("lora", rate=40 * middle, rank=8),
        Recipe("lora-all", rate=40 * middle, rank=4, everywhere=True),
        Recipe("kept", rate=middle, keep="bf16"),
    ]
    children = [replace(r, name=f"{name}-{r.name}", parent=f"{name}-bf16", seed=seed + i) for i, r in enumerate(half)]
    children += [
        Recipe(f"{name}-middle-child", f"{name}-middle", rate=middle, seed=seed + 20),
        Recipe(f"{name}-heavy-child", f"{name}-heavy", rate=middle, seed=seed + 21),
        Recipe(f"{name}-kept-child", f"{name}-kept", rate=middle, keep="bf16", seed=seed + 22),
        Recipe(f"{name}-fp16-middle", f"{name}-fp16", rate=middle / 4, stored="fp16", seed=seed + 23),
        Recipe(f"{name}-fp16-heavy", f"{name}-fp16", rate=middle, stored="fp16", seed=seed + 24),
        Recipe(f"{name}-fp32-of-bf16", f"{name}-bf16", rate=middle, stored="fp32", seed=seed + 25),
        Recipe(f"{name}-fp32-heavy", f"{name}-fp32", rate=heavy, stored="fp32", seed=seed + 26),
        Recipe(f"{name}-fp32-decayed", f"{name}-fp32", rate=2 * heavy, decay=0.1, stored="fp32", seed=seed + 27),
        Recipe(f"{name}-bf16-of-fp32", f"{name}-fp32", rate=middle, stored="bf16", seed=seed + 28),
    ]
    return [*bases, *children]


FIT = family("a", 0, 100, (2e-6, 1e-5, 5e-5))
JUDGED = family("b", 7, 200, (4e-6, 2e-5, 1e-4))
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for recipes in (FIT, JUDGED):
        for recipe in recipes:
            t = time.time()
            c = time.process_time()
            make([r for r in recipes if r.name in (recipe.name, recipe.parent)], folder)
            print(recipe.name, round(time.time() - t, 1), round(time.process_time() - c, 1), flush=True)
