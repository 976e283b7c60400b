"""What `layers` costs for a merge of three models of 1 GB: processor time and memory, beside reading the four files.

    python tests/benchmarks/merge_cost.py [--gigabytes 1] [--dtype bfloat16]      into results/merge-cost.json

Each run is a process of its own on one thread. `reading` takes every tensor of child and sources through safetensors and
adds it up in float32, which is the least that any comparison of all weights does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch
from records import write_record
from safetensors.torch import save_file

WIDTH, HIDDEN, WORDS = 1024, 2816, 32000
READ = """
from pathlib import Path
from safetensors import safe_open
import torch
for model in sys.argv[1:]:
    with safe_open(Path(model) / "model.safetensors", "pt") as file:
        for name in file.keys():
            file.get_tensor(name).float().sum()
"""
LAYERS = """
import hf_lineage as hl
layers = hl.trace_layers(sys.argv[1], sys.argv[2:], verify={verify}, sample="all")
told = [layers.method, sorted(round(s.weight, 3) for s in layers.mixture), layers.redone and [layers.redone.equal, layers.redone.tensors]]
"""
MEASURED = """
import sys, json, resource, torch
torch.set_num_threads(1)
told = None
before = resource.getrusage(resource.RUSAGE_SELF)
{body}
after = resource.getrusage(resource.RUSAGE_SELF)
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([round(spent, 2), round(after.ru_maxrss / 1024), told]))
"""


def made(folder: Path, gigabytes: float, dtype: torch.dtype) -> list[Path]:
    """A child, three fine-tunes of one base that it is an average of, 0.5, 0.3 and 0.2."""
    entries = int(gigabytes * 1e9 / dtype.itemsize)
    block = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN + 2 * WIDTH
    depth = max(2, (entries - 2 * WORDS * WIDTH) // block)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH), "lm_head.weight": (WORDS, WIDTH)}
    for i in range(depth):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(25)
    models: list[dict[str, torch.Tensor]] = [{}, {}, {}, {}]
    for name, shape in shapes.items():
        base = 0.05 * torch.randn(shape, generator=generator)
        tuned = [(base + 0.002 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]
        child = sum(w * t.float() for w, t in zip((0.5, 0.3, 0.2), tuned, strict=True)).to(dtype)  # type: ignore[union-attr]
        for model, tensor in zip(models, (child, *tuned), strict=True):
            model[name] = tensor
    paths = []
    for name in ("child", "a", "b", "c"):
        paths.append(folder / name)
        paths[-1].mkdir()
        save_file(models.pop(0), paths[-1] / "model.safetensors")
    return paths


def measured(body: str, paths: list[Path]) -> tuple[float, int, list[object]]:
    """(processor seconds, most memory in MB, what was told)."""
    program = MEASURED.format(body=body)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True, env=environment
    )
    return tuple(json.loads(run.stdout.splitlines()[-1]))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        with get_context("spawn").Pool(1) as making:  # a child begins with the peak of its parent
            paths = making.apply(made, (Path(temporary), asked.gigabytes, getattr(torch, asked.dtype)))
        runs = {"reading": READ, "layers": LAYERS.format(verify=False), "layers --verify": LAYERS.format(verify=True)}
        rows = []
        for what, body in runs.items():
            seconds, megabytes, told = measured(body, paths)
            rows.append({"what": what, "cpu_seconds": seconds, "megabytes": megabytes, "told": told})
            rows[-1]["times_reading"] = round(seconds / rows[0]["cpu_seconds"], 2)
            print(rows[-1], flush=True)
    write_record(f"merge-cost-{asked.dtype}", rows, gigabytes=asked.gigabytes, dtype=asked.dtype)


if __name__ == "__main__":
    main()
