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
    "1x8": "trace of 1 among 8 of 238 M weights, bf16 (4.3 GB) | reading and adding up all bytes",
    "many-matrices": "trace of 44,777 matrices, 1 MB of each of two models | reading and adding up all bytes (184 MB)",
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
        memory = "" if name == "tiny" else f"{case['extra_mb']} MB"
        lines.append(f"| {NAMES[name]} | {seconds[0]:.2f} | {seconds[1]:.2f} | {case['ratio']:.1f} | {memory} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """What the table does not say."""
    return f"Of processor time, one thread, medians of {read()['times']} runs; memory beyond what is held after the imports."


if __name__ == "__main__":
    print(table() + "\n" + summary())
