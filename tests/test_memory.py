"""Tracing needs the same memory whatever the size of the checkpoint: 2 GB under a limit that whole files break.

RLIMIT_DATA bounds anonymous memory (heap and private writable maps) and leaves read-only file maps alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

GB = 1 << 30
LIMIT = 1400 << 20  # bytes of anonymous memory: torch and its thread pools take up to 1 GB of it

PRELUDE = f"""
import resource, sys, threading
import numpy, torch, hf_lineage.tasks.trace, hf_lineage.tasks.trace_layers
torch.set_num_threads(2)
limit = {LIMIT}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10
start = peak = anonymous()
def watch(done, total, what):
    global peak
    peak = max(peak, anonymous())
"""
TRACE = (
    PRELUDE
    + """
lineage = hf_lineage.tasks.trace.trace(sys.argv[1], sys.argv[2:], progress=watch)
print(lineage.verdict, peak - start, lineage.bytes_read)
"""
)
LAYERS = (
    PRELUDE
    + """
layers = hf_lineage.tasks.trace_layers.trace_layers(sys.argv[1], sys.argv[2:], progress=watch)
print(len(layers.blocks), peak - start, layers.bytes_read)
"""
)
CONTROL = (
    PRELUDE
    + """
from safetensors.torch import load
try:
    load(open(sys.argv[1] + "/model.safetensors", "rb").read())
    print("loaded")
except (MemoryError, RuntimeError, OSError):
    print("refused")
"""
)


def sparse(folder: Path, tensors: dict[str, list[int]], seed: int) -> Path:
    """A safetensors file of the given shapes: zeros that take no disk, with one random megabyte at the start of each
    tensor, so that it has something to compare."""
    import numpy as np

    header, at = {}, 0
    for name, shape in tensors.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    folder.mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for value in header.values():
            begin, end = value["data_offsets"]
            file.seek(8 + len(raw) + begin)
            file.write(rng.normal(size=min(1 << 18, (end - begin) // 4)).astype("f4").tobytes())
        file.truncate(8 + len(raw) + at)
    return folder


MANY = {f"model.layers.{i}.mlp.{part}_proj.weight": [4096, 1024] for i in range(64) for part in ("gate", "up")}
ONE = {"model.layers.0.mlp.up_proj.weight": [64, 8388608]}


def run(code: str, *arguments: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("tensors", [MANY, ONE], ids=["many tensors", "one tensor"])
def test_two_gigabytes_under_a_limit(tmp_path: Path, tensors: dict) -> None:
    child = sparse(tmp_path / "child", tensors, 1)
    parent = sparse(tmp_path / "parent", tensors, 2)
    assert (child / "model.safetensors").stat().st_size >= 2 * GB
    verdict, grown, read = run(TRACE, child, parent)
    assert verdict in ("none", "undecided") and int(read) >= 4 * GB
    assert int(grown) < 400 << 20, f"tracing took {int(grown) >> 20} MB of anonymous memory"
    assert run(CONTROL, child) == ["refused"]


def test_layers_under_a_limit(tmp_path: Path) -> None:
    """32 blocks of 32 MB each, every one against every one."""
    shapes = {name: shape for name, shape in MANY.items() if int(name.split(".")[2]) < 32}
    child, parent = sparse(tmp_path / "child", shapes, 1), sparse(tmp_path / "parent", shapes, 2)
    blocks, grown, read = run(LAYERS, child, parent)
    assert int(blocks) == 32 and int(read) >= 2 * GB
    assert int(grown) < 400 << 20, f"tracing the layers took {int(grown) >> 20} MB of anonymous memory"


def test_a_small_file_needs_as_much(tmp_path: Path) -> None:
    """Half the size, the same memory: what grows with the file would show here."""
    grown = []
    for layers in (8, 24):
        shapes = {name: shape for name, shape in MANY.items() if int(name.split(".")[2]) < layers}
        child = sparse(tmp_path / f"child{layers}", shapes, 1)
        grown.append(int(run(TRACE, child, sparse(tmp_path / f"parent{layers}", shapes, 2))[1]))
    assert abs(grown[1] - grown[0]) < 150 << 20


def test_a_sample_reads_what_it_says(tmp_path: Path) -> None:
    child, parent = sparse(tmp_path / "child", MANY, 1), sparse(tmp_path / "parent", MANY, 2)
    code = (
        PRELUDE
        + """
lineage = hf_lineage.tasks.trace.trace(sys.argv[1], sys.argv[2:], sample="0.5%")
print(lineage.bytes_read)
"""
    )
    read = int(run(code, child, parent)[0])
    assert read == pytest.approx(0.005 * 4 * GB, rel=0.2)
