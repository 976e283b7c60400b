"""Packed copies of a real pretrained model: what trace says of them, and what reading them costs.

By hand: `python tests/benchmarks/packed_table.py FOLDER [--cost] [--write]`. FOLDER keeps the models (`real_families.py` says
what is needed): MiniLM in bf16 (`a-bf16`), a light and a heavier child of it (`a-light`, `a-heavy`), and another base of
the same kind with random matrices. Every layout of tests/packers.py, and GGUF in Q8_0, Q4_K (rows that no block of 256
divides: Q5_0, as llama.cpp does), Q4_0. About ten minutes on one core; processor time is printed, not the clock's.

Pairs: the packed copy of the child against the child (`copy`); the child of the packed base against it (`child`); the
packed base against its child (`base`); base and child, both packed (`both`); the packed base against a child of what
was packed (`beside`); unrelated (`unrelated`). Cost: one pass over a packed file of 64 MB against the same number of
bytes in bf16, which is read and not unpacked.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_files import write_gguf
from packers import PACKERS, packed

import hf_lineage as hl
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint

RESULTS = Path(__file__).parent / "results" / "packed.json"
GGUF = ("Q8_0", "Q4_K", "Q4_0")
Tensors = dict[str, torch.Tensor]
# A process of its own, which has seen nothing larger: MB that the first whole pass, in blocks, adds to its peak
GROWN = """
import re, sys, torch
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint
torch.set_num_threads(1)
found = open_checkpoint(sys.argv[1])
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
for name, entry in found.items():
    for at in range(0, entry.count, 1 << 18):
        found.read([Slice(name, at, min(at + (1 << 18), entry.count))])
print((peak() - before) // 1024)
"""


def put(folder: Path, tensors: Tensors) -> Path:
    """A model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def copy(folder: Path, model: Tensors, layout: str) -> Path:
    """A packed copy of a model; of GGUF a file."""
    if layout not in GGUF:
        return put(folder, packed(model, layout))
    folder.mkdir(parents=True, exist_ok=True)
    return write_gguf(folder / "model.gguf", model, layout, "bert", 12)


def unpacked(path: Path) -> Tensors:
    """What a packed copy holds, as floats."""
    found = open_checkpoint(path)
    return dict(zip(found, found.whole([*found]), strict=True))


def unrelated(model: Tensors, seed: int) -> Tensors:
    """The same shapes with the rows and columns of each matrix in a random order: nothing lines up."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t[torch.randperm(len(t), generator=generator)][:, torch.randperm(t.shape[1], generator=generator)]
        if t.ndim == 2
        else t
        for name, t in model.items()
    }


def answers(models: Path, scratch: Path, layout: str) -> Iterator[dict[str, Any]]:
    """What trace says of each pair."""
    base, child, heavy = (load_file(models / f"a-{n}" / "model.safetensors") for n in ("bf16", "light", "heavy"))
    step = {name: child[name].float() - base[name].float() for name in base}
    low = copy(scratch / "base", base, layout)
    values = unpacked(low)
    pairs = {
        "copy": (copy(scratch / "copy", child, layout), models / "a-light"),
        "child": (put(scratch / "child", {n: (v.float() + step[n]).bfloat16() for n, v in values.items()}), low),
        "base": (low, scratch / "child"),
        "both": (scratch / "copy" / "model.gguf" if layout in GGUF else scratch / "copy", low),
        "beside": (low, models / "a-heavy"),
        "unrelated": (low, copy(scratch / "other", unrelated(heavy, 1), layout)),
    }
    for kind, (asked, candidate) in pairs.items():
        told = hl.trace(asked, candidates=[candidate])
        found = told.candidates[0]
        yield {
            "layout": layout, "pair": kind, "verdict": told.verdict, "relation": found.relation, "first": found.first,
            "p_value": found.p_value, "scheme": found.facts.get("scheme"), "bits": found.facts.get("bits"),
        }  # fmt: skip


def cost(folder: Path, layout: str, nbytes: int = 64 << 20) -> tuple[float, float, int]:
    """Processor seconds to read a packed file of so many bytes in blocks, to read such a file in bf16, and how many
    MB the process grew by while it unpacked."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1024, 2048, generator=generator).bfloat16()
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": w for i in range(2)}
    path = copy(folder / "cost", tensors, layout) if layout not in GGUF else None
    if path is None:
        path = write_gguf(folder / "cost.gguf", tensors, layout, "llama", 8)
    found, times = open_checkpoint(path), max(1, nbytes // path_bytes(path))
    names = [name for name in found if name.endswith("weight")]
    start = time.process_time()
    for _ in range(times):
        for name in names:
            for at in range(0, found[name].count, 1 << 18):
                found.read([Slice(name, at, min(at + (1 << 18), found[name].count))])
    spent = time.process_time() - start
    grown = int(
        subprocess.run([sys.executable, "-c", GROWN, str(path)], capture_output=True, text=True, check=True).stdout
    )
    plain = open_checkpoint(put(folder / "plain", {name: value.clone() for name, value in tensors.items()}))
    start, done = time.process_time(), 0
    while done < times * path_bytes(path):
        for name in plain:
            for at in range(0, plain[name].count, 1 << 18):
                plain.read([Slice(name, at, min(at + (1 << 18), plain[name].count))])
                done += 2 << 18
    return spent, time.process_time() - start, grown


def path_bytes(path: Path) -> int:
    """Bytes of a model's file."""
    return (path if path.is_file() else path / "model.safetensors").stat().st_size


def main() -> None:
    """Ask, measure, print; with --cost only measure; with --write also keep."""
    torch.set_num_threads(1)
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows, costs = [], []
    for layout in (*PACKERS, *GGUF):
        with tempfile.TemporaryDirectory() as scratch:
            for row in answers(Path(sys.argv[1]), Path(scratch), layout) if "--cost" not in sys.argv else ():
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
            spent, plain, grown = cost(Path(scratch), layout)
        ratio = spent / plain
        costs.append({"layout": layout, "seconds": spent, "plain_seconds": plain, "ratio": ratio, "grown_mb": grown})
        print(f"{layout}: {spent:.2f} s, the same bytes in bf16 {plain:.2f} s, +{grown} MB", flush=True)
    if "--write" in sys.argv:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        found = {**machine, "answers": rows or kept.get("answers", []), "cost": costs}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
