"""`hf-lineage trace` and `modeldna compare` on the same files: what each costs and says, start-up included.

    python3 -m venv OTHER && OTHER/bin/pip install modeldna
    python tests/benchmarks/modeldna_cost.py FOLDER OTHER/bin/modeldna [--times 3] [--write]

FOLDER is that of `speed.py`, which makes the models. Both read local files; each runs in processes of its own with one
thread of torch. `modeldna` samples or, with `--full`, takes whole tensors. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from speed import keep, kept, llama, minilm

# Starts a command from a process that holds little: a child begins with the peak of its parent
SMALL = """
import json, os, subprocess, sys, time
start = time.perf_counter()
env = {**os.environ, "OMP_NUM_THREADS": "1"}
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
    print(process.stdout.read())
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """Name → (child, candidate)."""
    base = llama(0)
    child = kept(folder, "llama-child", lambda: llama(1, base, 3e-4))
    small, (parent, sibling) = minilm(folder, "bf16")
    return {
        "0.95 GB, parent": (child, kept(folder, "llama-0", lambda: base)),
        "0.95 GB, unrelated": (child, kept(folder, "llama-4", lambda: llama(14))),
        "MiniLM, parent": (small, parent),
        "MiniLM, sibling": (small, sibling),
    }


def ours(child: str, candidate: str) -> list[str]:
    return [sys.executable, "-m", "hf_lineage", "trace", child, "-c", candidate, "--json"]


def their_answer(out: str) -> dict[str, Any]:
    said = json.loads(out)["verdict"]
    return {key: said[key] for key in ("verdict", "probability")}


def our_answer(out: str) -> dict[str, Any]:
    said = json.loads(out)
    [candidate] = said["candidates"]
    return {"verdict": said["verdict"], **{k: candidate[k] for k in ("relation", "probability", "log10_p")}}


def cost(command: Sequence[str], answer: Callable[[str], Any], times: int) -> dict[str, Any]:
    """Medians of wall clock, processor time and peak memory of a command; its answer, or how it failed."""
    found: list[tuple[float, float, float]] = []
    told = ""
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", SMALL, *command], capture_output=True, text=True, check=True)
        told, _, last = done.stdout.rstrip("\n").rpartition("\n")
        found.append(tuple(json.loads(last)))
    wall, cpu, peak = (statistics.median(column) for column in zip(*found, strict=True))
    try:
        said = answer(told)
    except (ValueError, KeyError):
        said = told[-300:]
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak), "answer": said}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("modeldna")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args(argv)
    version = subprocess.run([given.modeldna, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    load, found = os.getloadavg()[0], {}
    for name, (child, candidate) in pairs(given.folder).items():
        theirs = [given.modeldna, "compare", child, candidate, "--json"]
        found[name] = {
            "hf_lineage": cost(ours(child, candidate), our_answer, given.times),
            "modeldna": cost(theirs, their_answer, given.times),
            "modeldna --full": cost([*theirs, "--full"], their_answer, given.times),
        }
        for tool, seen in found[name].items():
            print(f"{name:20} {tool:16} {json.dumps(seen)[:400]}", flush=True)
    if given.write:
        keep("modeldna.json", found, {"modeldna": version, "load_before": round(load, 1), "times": given.times})


if __name__ == "__main__":
    main()
