"""Tracing needs the same memory whatever the size of the checkpoint: files under a limit that reading them whole breaks.

RLIMIT_DATA bounds anonymous memory (heap and private writable maps) and leaves read-only file maps alone. The tests take
0.6 GB; `pytest -m large tests/test_memory.py` takes 2 GB.
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
torch.set_num_threads(1)
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


FULL, REDUCED = 64, 20  # layers of 32 MB


def many(layers: int) -> dict[str, list[int]]:
    return {f"model.layers.{i}.mlp.{part}_proj.weight": [4096, 1024] for i in range(layers) for part in ("gate", "up")}


def one(layers: int) -> dict[str, list[int]]:
    return {"model.layers.0.mlp.up_proj.weight": [64, layers << 17]}


def run(code: str, *arguments: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def grown_by_tracing(folder: Path, tensors: dict[str, list[int]]) -> int:
    """Bytes of anonymous memory that a trace takes beyond what the process had, all of both files read."""
    child, parent = sparse(folder / "child", tensors, 1), sparse(folder / "parent", tensors, 2)
    size = (child / "model.safetensors").stat().st_size
    verdict, grown, read = run(TRACE, child, parent)
    assert verdict not in ("parent", "identical", "common_origin") and int(read) >= 2 * size
    assert int(grown) < 400 << 20 < size, f"tracing took {int(grown) >> 20} MB of anonymous memory"
    return int(grown)


def test_the_limit_refuses_a_whole_file(tmp_path: Path) -> None:
    assert run(CONTROL, sparse(tmp_path / "child", many(REDUCED), 1)) == ["refused"]


@pytest.mark.parametrize("layers", [REDUCED, pytest.param(FULL, marks=pytest.mark.large)])
def test_many_tensors_and_few_take_the_same(tmp_path: Path, layers: int) -> None:
    """What grows with the file would show here."""
    grown = grown_by_tracing(tmp_path, many(layers))
    (tmp_path / "few").mkdir()
    few = grown_by_tracing(tmp_path / "few", many(layers // 2 + 4))
    assert abs(grown - few) < 150 << 20


@pytest.mark.parametrize("layers", [REDUCED, pytest.param(FULL, marks=pytest.mark.large)])
def test_one_huge_tensor(tmp_path: Path, layers: int) -> None:
    grown_by_tracing(tmp_path, one(layers))


@pytest.mark.parametrize("layers", [14, pytest.param(FULL // 2, marks=pytest.mark.large)])
def test_blocks(tmp_path: Path, layers: int) -> None:
    """Blocks of 32 MB, every one against every one."""
    child, parent = sparse(tmp_path / "child", many(layers), 1), sparse(tmp_path / "parent", many(layers), 2)
    blocks, grown, read = run(LAYERS, child, parent)
    size = (child / "model.safetensors").stat().st_size
    assert int(blocks) == layers and int(read) >= 2 * size
    assert int(grown) < 400 << 20 < size, f"tracing the layers took {int(grown) >> 20} MB of anonymous memory"


def test_a_sample_reads_what_it_says(tmp_path: Path) -> None:
    child, parent = sparse(tmp_path / "child", many(FULL), 1), sparse(tmp_path / "parent", many(FULL), 2)
    code = (
        PRELUDE
        + """
lineage = hf_lineage.tasks.trace.trace(sys.argv[1], sys.argv[2:], sample="0.5%")
print(lineage.bytes_read)
"""
    )
    read = int(run(code, child, parent)[0])
    assert read == pytest.approx(0.005 * 4 * GB, rel=0.2)
