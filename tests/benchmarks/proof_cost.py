"""What the permutation test of one pair costs, and how much of it is proven.

By hand: `python tests/benchmarks/proof_cost.py [--write] [--package FOLDER]`. One thread; medians of five runs, products
of units included. `--package`: another checkout of this package, timed beside this one ("before").

Prints Markdown and, with --write, results/proof_cost.json.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "proof_cost.json"
WIDTH, RUNS = 512, 5
UNITS = (64, 256, 1024, 4096)
PAIRS = {"unrelated": 0.0, "faint": 0.02, "related": 0.3, "fine-tuned": 0.99}  # correlation of matched units
LAYERS = {"one": 1, "twelve": 12}
TABLE = [(256, 256, 0.05), (256, 256, 0.2), (256, 256, 0.5), (1024, 384, 0.1), (128, 64, 0.05)]


def pair(units: int, width: int, correlation: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(units, width, generator=generator) for _ in range(2))
    return one, correlation * one + math.sqrt(1 - correlation**2) * other


def test_of(matrices: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    from hf_lineage.weights.permutation_test import pair_test, unit_products

    orders = {str(i): both for i, both in enumerate(matrices)}
    return pair_test(lambda order: unit_products([orders[order][0]], [orders[order][1]]), orders, 0)


def seconds(what: Callable[[], Any]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        what()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def costs() -> dict[str, dict[str, float]]:
    """Milliseconds by layers, units and kind of pair. Width 512; 4,096 units in one layer only."""
    found: dict[str, dict[str, float]] = {}
    for layers, count in LAYERS.items():
        for units in UNITS if count == 1 else UNITS[:-1]:
            row = found.setdefault(f"{layers}, {units}", {})
            for kind, correlation in PAIRS.items():
                matrices = [pair(units, WIDTH, correlation, 10 * i) for i in range(count)]
                row[kind] = round(1000 * seconds(lambda matrices=matrices: test_of(matrices)), 1)
    return found


def proven() -> list[list[float]]:
    """[units, width, correlation, z, log10 p proven]."""
    rows = []
    for units, width, correlation in TABLE:
        test = test_of([pair(units, width, correlation, 0)])
        rows.append([units, width, correlation, round(test.z, 1), round(test.log10_proven, 1)])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    if "--costs" in sys.argv:
        print(json.dumps(costs()))
        return
    now = costs()
    before: dict[str, dict[str, float]] = {}
    if "--package" in sys.argv:
        environment = os.environ | {"PYTHONPATH": sys.argv[sys.argv.index("--package") + 1]}
        command = [sys.executable, __file__, "--costs"]
        before = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    print(f"| layers, units | {' | '.join(f'{kind}, ms' for kind in PAIRS)} |\n|---|{'---|' * len(PAIRS)}")
    for name, row in now.items():
        cells = [f"{before[name][kind]:g} → {ms:g}" if before else f"{ms:g}" for kind, ms in row.items()]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| units | width | correlation | z | log10 p proven |\n|---|---|---|---|---|")
    table = proven()
    for figures in table:
        print(f"| {' | '.join(f'{x:g}' for x in figures)} |")
    if "--write" in sys.argv:
        about = {
            "date": time.strftime("%Y-%m-%d"), "machine": f"one thread, Python {platform.python_version()}",
            "torch": torch.__version__, "width": WIDTH,
        }  # fmt: skip
        RESULTS.write_text(json.dumps({**about, "ms": now, "ms_before": before, "proven": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
