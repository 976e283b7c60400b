"""Merges of really tuned siblings: fine-tunes of MiniLM as `direction_real.py` trains them, merged and stored in bf16 and fp32.

    python tests/benchmarks/merges_real.py FOLDER        models of `direction_real.py`; into results/merges-real.json

Shares, whether all is made again bit for bit, with and without the base; and, from Gram matrices alone, a third source that
is not offered (`sibling_shares`), beside what is no merge.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write_record
from safetensors.torch import load_file, save_file

import hf_lineage as hl
from hf_lineage.weights.mixture import sibling_shares

CASES = (
    (("heavy", "middle"), (0.65, 0.35), "bf16"), (("middle", "twin"), (0.65, 0.35), "bf16"),
    (("lora", "lora-all"), (0.65, 0.35), "bf16"), (("middle", "fading"), (0.613, 0.387), "bf16"),
    (("heavy", "decayed", "adafactor"), (0.5, 0.3, 0.2), "bf16"), (("fp32-heavy", "fp32-decayed"), (0.65, 0.35), "fp32"),
)  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DRAWS = 3000


def merges(models: Path, family: str) -> Iterator[dict[str, Any]]:
    for names, weights, base in CASES:
        sources = [models / f"{family}-{name}" for name in names]
        loaded = [load_file(path / "model.safetensors") for path in sources]
        for stored, dtype in DTYPES.items():
            child = {
                k: sum(w * t[k].float() for w, t in zip(weights, loaded, strict=True)).to(dtype) for k in loaded[0]
            }
            with tempfile.TemporaryDirectory() as folder:
                save_file(child, Path(folder) / "model.safetensors")
                for offered in ([models / f"{family}-{base}", *sources], sources):
                    start = time.process_time()
                    layers = hl.trace_layers(folder, offered, verify=True)
                    told = {Path(s.ref).name: (s.weight, s.stderr) for s in layers.mixture}
                    errors = [abs(told.get(p.name, (0.0, 0.0))[0] - w) for p, w in zip(sources, weights, strict=True)]
                    yield {
                        "family": family, "sources": names, "weights": weights, "stored": stored,
                        "base_offered": len(offered) > len(sources), "named": layers.method, "error": round(max(errors), 5),
                        "redone": [layers.redone.equal, layers.redone.tensors] if layers.redone else None,
                        "cpu_seconds": round(time.process_time() - start, 1),
                    }  # fmt: skip


def products(models: Path, family: str) -> tuple[list[str], list[tuple[int, np.ndarray]]]:
    """(names, of each matrix its size and the products of all models' changes from the base)."""
    names = sorted(path.name for path in models.iterdir() if path.name.startswith(f"{family}-"))
    names.insert(0, names.pop(names.index(f"{family}-bf16")))
    loaded = [load_file(models / name / "model.safetensors") for name in names]
    found = []
    for key, first in loaded[0].items():
        if first.ndim > 1:
            changes = torch.stack([each[key].flatten().float() - first.flatten().float() for each in loaded])
            total = sum(part.double() @ part.double().T for part in changes.split(1 << 20, 1))
            found.append((first.numel(), np.asarray(total)))
    return names, found


def hidden(models: Path, family: str) -> dict[str, Any]:
    """A base and two sources are offered, the third is not; and every other model as a child of two that it is no merge of."""
    names, parts = products(models, family)

    def shares(child: np.ndarray, sources: Sequence[int]) -> Any:
        rows = np.array([child, *(np.eye(len(names))[k] - child for k in (0, *sources))])
        return sibling_shares([rows @ gram @ rows.T for _, gram in parts], [n for n, _ in parts], 0, [1, 2])

    rng, errors, held = np.random.default_rng(0), [], []
    for _ in range(DRAWS):
        chosen, weights = rng.permutation(np.arange(1, len(names)))[:3], rng.dirichlet([3, 3, 3])
        child = np.zeros(len(names))
        child[chosen] = weights
        found = shares(child, chosen[:2])
        if found and found.is_merge:
            errors.append(abs(found.unknown - weights[2]))
            held.append(errors[-1] <= 2 * found.unknown_stderr)
    wrong = asked = 0
    for child in range(1, len(names)):
        for pair in itertools.combinations([k for k in range(1, len(names)) if k != child], 2):
            found = shares(np.eye(len(names))[child], pair)
            asked += 1
            wrong += bool(found and found.is_merge)
    return {
        "family": family, "merges": DRAWS, "told": len(errors), "median_error": round(float(np.median(errors)), 4),
        "error_90": round(float(np.quantile(errors, 0.9)), 4), "within_two_errors": round(float(np.mean(held)), 3),
        "no_merges": asked, "called_merges": wrong,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for family in "ab":
        rows += [*merges(asked.folder, family), hidden(asked.folder, family)]
        print(*rows[-13:], sep="\n", flush=True)
    write_record("merges-real", rows, seed=0)


if __name__ == "__main__":
    main()
