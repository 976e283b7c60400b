"""The table of docs/benchmarks.md about what answers cost: python tests/benchmarks/speed_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "speed.json"
NAMES = {
    "minilm-bf16": "trace of a real MiniLM among 2 of its family, bf16 (136 MB) | cosines of all tensors, plain script",
    "minilm-fp32": "the same in float32 (273 MB) | the same",
    "layers": "`layers` of the same | its trace",
    "pair": "trace of a child and its base of 238 M weights, bf16 (0.95 GB) | reading and adding up all bytes",
    "1x8": "trace of 1 among 8 of 238 M weights, bf16 (4.3 GB) | reading and adding up all bytes",
    "1x8-floor": "a bare loop: child and 8 candidates converted to float32, two products an entry | the same",
    "many-matrices": "trace of 44,777 matrices, 1 MB of each of two models | reading and adding up all bytes (184 MB)",
    "headers": "opening, describing and aligning two models of 302,636 tensors | reading the JSON of their headers",
    "tree-15": "tree of 15 models of 0.9 MB | reading and adding up",
    "tree-30": "tree of 30 | the same",
    "tree-60": "tree of 60 | the same",
    "tiny": "the whole command on two models of 7,000 weights, start-up included | `python -c 'import torch'`",
}


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def table() -> str:
    """Markdown, one row a question."""
    lines = [
        "| question | beside | seconds | of the baseline | ratio | memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in read()["cases"].items():
        seconds = [case[side]["cpu_seconds"] for side in ("answer", "baseline")]
        memory = "" if name in ("tiny", "1x8-floor") else f"{case['extra_mb']} MB"
        lines.append(f"| {NAMES[name]} | {seconds[0]:.2f} | {seconds[1]:.2f} | {case['ratio']:.1f} | {memory} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """What the table does not say."""
    cases = read()["cases"]
    once = " and ".join(f"`{name}`" for name, case in cases.items() if case["times"] == 1)
    busy = ", ".join(f"`{name}` {case['load']:.0f}" for name, case in cases.items() if case.get("load", 0) > 2)
    told = "Of processor time, one thread, medians of 3 runs or more; memory beyond what is held after the imports."
    told += f" Of one run: {once}." if once else ""
    return told + (f" Load of the two cores when measured, where they were busy: {busy}." if busy else "")


if __name__ == "__main__":
    print(table() + "\n" + summary())
