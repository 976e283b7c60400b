"""Tracing needs the same memory whatever the size of the checkpoint: files under a limit that reading them whole breaks.

RLIMIT_DATA bounds anonymous memory (heap and private writable maps) and leaves read-only file maps alone. The tests take
0.6 GB; `pytest -m large tests/test_memory.py` takes 2 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

GB = 1 << 30
LIMIT, MOST = (
    360 << 20,
    300 << 20,
)  # bytes of anonymous memory beside what the imports took: allowed, and expected at most

# One process imports torch; each question is asked in a fork of it, under the limit
SERVER = f"""
import json, os, resource, sys, traceback
import numpy, torch, hf_lineage.tasks.trace, hf_lineage.tasks.trace_layers
from safetensors.torch import load
torch.set_num_threads(1)
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10
for line in sys.stdin:
    code, *arguments = json.loads(line)
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + {LIMIT},) * 2)
        start = peak = status("RssAnon")
        def watch(done, total, what):
            global peak
            peak = max(peak, status("RssAnon"))
        try:
            exec(code)
        except BaseException:
            print(traceback.format_exc().encode())
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
TRACE = """
lineage = hf_lineage.tasks.trace.trace(arguments[0], arguments[1:], progress=watch)
print(lineage.verdict, peak - start, lineage.bytes_read)
"""
LAYERS = """
layers = hf_lineage.tasks.trace_layers.trace_layers(arguments[0], arguments[1:], progress=watch)
print(len(layers.blocks), peak - start, layers.bytes_read)
"""
SAMPLE = """
lineage = hf_lineage.tasks.trace.trace(arguments[0], arguments[1:], sample="0.5%")
print("sampled", lineage.bytes_read)
"""
CONTROL = """
try:
    load(open(arguments[0] + "/model.safetensors", "rb").read())
    print("loaded")
except (MemoryError, RuntimeError, OSError):
    print("refused")
"""
Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """`ask(code, *folders)`: the words that the code prints."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin and server.stdout

        def asked(code: str, *arguments: Path) -> list[str]:
            print(json.dumps([code, *map(str, arguments)]), file=server.stdin, flush=True)
            return server.stdout.readline().split()

        yield asked
        server.stdin.close()


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


FULL, REDUCED = 64, 12  # layers of 32 MB


def many(layers: int) -> dict[str, list[int]]:
    return {f"model.layers.{i}.mlp.{part}_proj.weight": [4096, 1024] for i in range(layers) for part in ("gate", "up")}


def one(layers: int) -> dict[str, list[int]]:
    return {"model.layers.0.mlp.up_proj.weight": [64, layers << 17]}


def grown_by_tracing(ask: Ask, folder: Path, tensors: dict[str, list[int]]) -> int:
    """Bytes of anonymous memory that a trace takes beyond what the process had, all of both files read."""
    child, parent = sparse(folder / "child", tensors, 1), sparse(folder / "parent", tensors, 2)
    size = (child / "model.safetensors").stat().st_size
    verdict, grown, read = ask(TRACE, child, parent)
    assert verdict not in ("parent", "identical", "common_origin") and int(read) >= 2 * size
    assert int(grown) < MOST < size, f"tracing took {int(grown) >> 20} MB of anonymous memory"
    return int(grown)


def test_the_limit_refuses_a_whole_file(ask: Ask, tmp_path: Path) -> None:
    assert ask(CONTROL, sparse(tmp_path / "child", many(REDUCED), 1)) == ["refused"]


@pytest.mark.parametrize("layers", [REDUCED, pytest.param(FULL, marks=pytest.mark.large)])
def test_many_tensors_and_few_take_the_same(ask: Ask, tmp_path: Path, layers: int) -> None:
    """What grows with the file would show here."""
    grown = grown_by_tracing(ask, tmp_path, many(layers))
    (tmp_path / "few").mkdir()
    few = grown_by_tracing(ask, tmp_path / "few", many(layers // 2 + 4))
    assert abs(grown - few) < 150 << 20


def test_memory_bounds_it(ask: Ask, tmp_path: Path) -> None:
    """The least that can be asked for, of two files of 400 MB."""
    child, parent = sparse(tmp_path / "child", many(REDUCED), 1), sparse(tmp_path / "parent", many(REDUCED), 2)
    _, grown, read = ask(TRACE.replace("progress=watch", 'progress=watch, memory="128MB"'), child, parent)
    assert int(read) > 600 << 20 and int(grown) < 128 * 10**6, f"tracing took {int(grown) / 1e6:.0f} MB"


@pytest.mark.parametrize("layers", [REDUCED, pytest.param(FULL, marks=pytest.mark.large)])
def test_one_huge_tensor(ask: Ask, tmp_path: Path, layers: int) -> None:
    grown_by_tracing(ask, tmp_path, one(layers))


@pytest.mark.parametrize("layers", [10, pytest.param(FULL // 2, marks=pytest.mark.large)])
def test_blocks(ask: Ask, tmp_path: Path, layers: int) -> None:
    """Blocks of 32 MB, every one against every one."""
    child, parent = sparse(tmp_path / "child", many(layers), 1), sparse(tmp_path / "parent", many(layers), 2)
    blocks, grown, read = ask(LAYERS, child, parent)
    size = (child / "model.safetensors").stat().st_size
    assert int(blocks) == layers and int(read) >= 2 * size
    assert int(grown) < MOST < size, f"tracing the layers took {int(grown) >> 20} MB of anonymous memory"


def test_a_sample_reads_what_it_says(ask: Ask, tmp_path: Path) -> None:
    child, parent = sparse(tmp_path / "child", many(FULL), 1), sparse(tmp_path / "parent", many(FULL), 2)
    _, read = ask(SAMPLE, child, parent)
    assert int(read) == pytest.approx(0.005 * 4 * GB, rel=0.2)
