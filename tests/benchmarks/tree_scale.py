"""What the trees of hundreds of models cost: one pass over their bytes, on two cores, in bounded memory.

By hand: `python tests/benchmarks/tree_scale.py FOLDER [--models 300] [--size 12M] [--dtype BF16] [--quick] [--keep]`.
Makes trees of made-up Llama-like checkpoints in FOLDER, one at a time: ten random starts, four generations, uneven
branching; a child is its parent plus noise, of its own size for each child and matrix, with rows left untouched. Then
each of these runs alone in a fresh process on two cores, from files that are in no cache:

    baseline       every file read once with safetensors, nothing kept
    whole          `phylogeny` of everything, under RLIMIT_DATA
    sampled        `phylogeny(sample="1%")`

Stages are timed from outside, by wrapping the functions that do them; memory is anonymous memory (RssAnon), looked at
every 20 ms. Made-up noise has no drift, so its lineages are easy: the scores only say that nothing broke on the way.

Prints a table and writes results/tree_scale.json (with --quick nothing); removes what it made but for --keep.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_lineage.experiments.families import Member
from hf_lineage.experiments.phylogenies import Score, reported_edges, score

ROOT = Path(__file__).parents[2]
CORES = 2
THREADS = {f"{name}_NUM_THREADS": str(CORES) for name in ("OMP", "MKL", "OPENBLAS")} | {"OMP_WAIT_POLICY": "PASSIVE"}
LIMIT = 6 << 30  # bytes of RLIMIT_DATA: heap and private writable maps, thread stacks included
TREES, DEPTH = 10, 4
SIZES: dict[str, dict[str, int]] = {
    "1M": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "vocab_size": 1024},
    "12M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 3584},
}
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
LIGHT, HEAVY = 0.01, 0.2  # noise of a child beside its parent's weights, root mean square: log-uniform between the two
SPREAD = 0.3  # of a matrix's own size of noise, standard deviation of its logarithm
ROWS, TOKENS = 0.05, 0.4  # share of rows left untouched, of matrices and of the token table
SAMPLE = "1%"

# stage → functions, by where they are looked up; the indented ones are parts of the one above
STAGES = {
    "opening": ("tasks.phylogeny._open",), "sorting": ("tasks.phylogeny._by_architecture",),
    "reading": ("tasks.session.Session.read_aligned",), "kinship": ("tasks.phylogeny.distinct_models",),
    "groups": ("trees.build.related_groups",), "trees": ("trees.build._Builder.add",),
}  # fmt: skip
PARTS = {
    "reading: sums": ("weights.device_moments.block_moments",), "reading: units": ("weights.units.Units.take",),
    "reading: fetching (threads)": ("weights.reader._Reader._fetch",),
    "kinship: copies": ("trees.reading._copies",), "kinship: information": ("trees.pair_statistics.shared_information",),
    "kinship: kurtosis": ("trees.pair_statistics._kurtosis",), "kinship: entropy": ("trees.pair_statistics._entropy",),
    "groups: tests": ("trees.reading.AlignedModels.test",), "trees: merges": ("trees.build.mixtures",),
    "trees: straighten": ("trees.build.resolve_contradictions",), "trees: probabilities": ("trees.build._Group.probabilities",),
    "trees: untouched": ("trees.without_gradient.WithoutGradient._pair",), "trees: ancestors": ("trees.build._Builder._ancestors",),
    "trees: one way": ("trees.reading.AlignedModels.one_way",), "trees: root": ("trees.build.root_posterior",),
}  # fmt: skip


def shapes(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with tied embeddings."""
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab_size"], hidden)}
    for i in range(size["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        found |= {f"{layer}.mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return found | {"model.norm.weight": (hidden,)}


def pedigree(models: int, seed: int) -> list[tuple[str, str | None, int]]:
    """(name, parent, generation), parents first: trees of uneven sizes, in which who has children gets more."""
    rng = random.Random(seed)
    weights = [rng.random() + 0.1 for _ in range(min(TREES, models))]
    found: list[tuple[str, str | None, int]] = [(f"m{i:04}", None, 1) for i in range(len(weights))]
    trees = [[i] for i in range(len(weights))]
    children = [0] * models
    for i in range(len(found), models):
        tree = rng.choices(trees, weights)[0]
        able = [j for j in tree if found[j][2] < DEPTH]
        parent = rng.choices(able, [1 + children[j] for j in able])[0]
        children[parent] += 1
        tree.append(i)
        found.append((f"m{i:04}", found[parent][0], found[parent][2] + 1))
    return found


def build(folder: Path, models: int, size: str, dtype: str, seed: int) -> list[Member]:
    """The models on disk; what is there of it already is kept."""
    members = []
    for i, (name, parent, generation) in enumerate(pedigree(models, seed)):
        path = folder / name
        members.append(Member(name, "llama", parent, generation, {}, {}, path))
        if (path / "config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        own = 1_000_003 * seed + i
        generator, noise = torch.Generator().manual_seed(own), _noise(own)
        start = load_file(folder / parent / "model.safetensors") if parent else None
        made = {
            key: _child(start[key].float(), key, noise, generator) if start else _start(shape, generator)
            for key, shape in shapes(SIZES[size]).items()
        }
        save_file({key: value.to(DTYPES[dtype]) for key, value in made.items()}, path / "model.safetensors")
        about = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
        (path / "config.json").write_text(json.dumps(about | SIZES[size]))
    return members


def _start(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return 0.02 * torch.randn(*shape, generator=generator) if len(shape) > 1 else torch.ones(*shape)


def _noise(seed: int) -> float:
    """How large one child's noise is, beside its parent's weights."""
    return LIGHT * (HEAVY / LIGHT) ** float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def _child(parent: torch.Tensor, name: str, size: float, generator: torch.Generator) -> torch.Tensor:
    size *= math.exp(SPREAD * float(torch.randn((), generator=generator)))
    step = size * parent.square().mean().sqrt() * torch.randn(parent.shape, generator=generator)
    share = TOKENS if "embed" in name else ROWS if parent.ndim > 1 else 0.0
    step[torch.rand(len(parent), generator=generator) < share] = 0
    return parent + step


class Watch:
    """Seconds of wrapped functions, added up, and the most anonymous memory while each of them ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.peak: dict[str, int] = {"all": 0}
        self._running: list[str] = []
        self._lock, self._over = threading.Lock(), threading.Event()

    def wrap(self, stage: str, place: str) -> None:
        """Replace `module.function` or `module.Class.method` of hf_lineage by one that is timed."""
        *path, name = place.split(".")
        owner: Any = None
        for i in range(len(path), 0, -1):
            try:
                owner = importlib.import_module(".".join(["hf_lineage", *path[:i]]))
            except ModuleNotFoundError:
                continue
            for step in path[i:]:
                owner = getattr(owner, step)
            break
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._running.remove(stage)
                with self._lock:
                    self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
                    self.calls[stage] = self.calls.get(stage, 0) + 1

        setattr(owner, name, timed)

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Look at the memory until the end of the block."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            now = anonymous()
            for stage in ("all", *self._running):
                self.peak[stage] = max(self.peak.get(stage, 0), now)


def anonymous() -> int:
    """Bytes of anonymous memory that are resident now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


def measure(members: Sequence[Member], sample: str | None) -> dict[str, Any]:
    """`phylogeny` in this process: seconds by stage, bytes, memory, scores."""
    from hf_lineage import phylogeny

    watch = Watch()
    for stage, places in (STAGES | PARTS).items():
        for place in places:
            watch.wrap(stage, place)
    start_memory = anonymous()
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    start, cpu = time.perf_counter(), time.process_time()
    with watch.memory():
        tree = phylogeny([member.path for member in members], sample=sample)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    disk = sum((member.path / "model.safetensors").stat().st_size for member in members)
    found = score(reported_edges(tree), members)
    stages = {name: watch.seconds.get(name, 0.0) for name in STAGES}
    named = {node.id for node in tree.nodes if not node.hidden}
    return {
        "seconds": seconds, "cpu_seconds": cpu, "bytes_read": tree.bytes_read, "bytes_on_disk": disk,
        "bytes_read_to_disk": tree.bytes_read / disk, "anonymous_before_mb": start_memory / 1e6,
        "anonymous_peak_mb": watch.peak["all"] / 1e6,
        "resident_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "seconds_by_stage": stages | {"rest": seconds - sum(stages.values())},
        "seconds_of_parts": {name: watch.seconds[name] for name in PARTS if name in watch.seconds},
        "calls_of_parts": {name: watch.calls[name] for name in PARTS if name in watch.calls},
        "peak_mb_by_stage": {name: watch.peak[name] / 1e6 for name in STAGES if name in watch.peak},
        "lineage": found.lineage, "direction": found.direction, "overall": found.overall,
        "undirected": found.undirected, "score": recorded(found),
        "groups": len(tree.groups), "groups_true": sum(member.parent is None for member in members),
        "roots_named": len(tree.roots), "roots_right": sum(member.parent is None and str(member.path) in tree.roots for member in members),
        "unnamed_ancestors": sum(node.hidden for node in tree.nodes), "models_in_the_answer": len(named),
        "left_out": len(tree.left_out), "quality": tree.quality,
    }  # fmt: skip


def recorded(found: Score) -> dict[str, int]:
    """The counts of a score under the keys of the recorded results."""
    counts = asdict(found)
    return {{"reported": "said", "unrelated": "strange"}.get(name, name): value for name, value in counts.items()}


def baseline(members: Sequence[Member]) -> dict[str, Any]:
    """Every tensor of every file, once."""
    start, cpu, size = time.perf_counter(), time.process_time(), 0
    for member in members:
        with safe_open(member.path / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name).clone()  # a map is read when it is touched
                size += tensor.nbytes
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "bytes_read": size}


def fresh(options: argparse.Namespace, what: str) -> dict[str, Any]:
    """The same script in a process of its own, on two cores, the files out of the page cache."""
    for path in sorted(options.folder.glob("*/model.safetensors")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [
        sys.executable, __file__, str(options.folder), "--models", str(options.models), "--size", options.size,
        "--dtype", options.dtype, "--seed", str(options.seed), "--run", what,
    ]  # fmt: skip
    # passive: threads that spin at barriers while others want the cores made 30 small models ten times slower
    settings = os.environ | THREADS
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"load_before": load}


def inside(options: argparse.Namespace) -> None:
    """One run, in the process made for it."""
    torch.set_num_threads(CORES)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    members = build(options.folder, options.models, options.size, options.dtype, options.seed)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "baseline": lambda: baseline(members),
        "whole": lambda: measure(members, None),
        "sampled": lambda: measure(members, SAMPLE),
    }
    print(json.dumps(ways[options.run]()))


def about() -> dict[str, Any]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"),
        "machine": f"{len(cpu)} x {cpu[0].partition(': ')[2]}, Python {platform.python_version()}, torch {torch.__version__}",
        "on": f"{CORES} cores, other work beside it", "environment": THREADS, "limit_mb": LIMIT / 1e6,
    }  # fmt: skip


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one column for each way."""
    names = [name for name in runs if name != "baseline"]
    ways = [runs[name] for name in names]
    lines = [["", *names], ["---"] * (1 + len(names))]
    lines.append(["seconds (beside the baseline)", *(f"{w['seconds']:.0f} ({w['beside_baseline']:.1f})" for w in ways)])
    lines += [[stage, *(f"{way['seconds_by_stage'][stage]:.1f}" for way in ways)] for stage in (*STAGES, "rest")]
    lines += [[part, *(f"({way['seconds_of_parts'].get(part, 0):.1f})" for way in ways)] for part in PARTS]
    lines.append(["CPU seconds", *(f"{way['cpu_seconds']:.0f}" for way in ways)])
    lines.append(["bytes read / on disk", *(f"{way['bytes_read_to_disk']:.4f}" for way in ways)])
    lines.append(["anonymous memory at the peak, MB", *(f"{way['anonymous_peak_mb']:.0f}" for way in ways)])
    lines += [[key, *(f"{way[key]:.3f}" for way in ways)] for key in ("lineage", "direction", "overall", "undirected")]
    lines.append(["groups (true)", *(f"{way['groups']} ({way['groups_true']})" for way in ways)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--size", choices=SIZES, default="12M")
    parser.add_argument("--dtype", choices=DTYPES, default="BF16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="30 models of 1 M, nothing is written")
    parser.add_argument("--keep", action="store_true", help="leave the models where they are")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    if options.quick:
        options.models, options.size = 30, "1M"
    if options.run:
        return inside(options)
    weights = sum(math.prod(shape) for shape in shapes(SIZES[options.size]).values())
    needed = options.models * weights * DTYPES[options.dtype].itemsize
    options.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.folder).free < 1.2 * needed:
        raise SystemExit(f"Expected {1.2 * needed / 1e9:.0f} GB free at {options.folder}.")
    start = time.perf_counter()
    members = build(options.folder, options.models, options.size, options.dtype, options.seed)
    made = time.perf_counter() - start
    print(f"{len(members)} models of {weights / 1e6:.1f} M made in {made:.0f} s", flush=True)
    runs: dict[str, dict[str, Any]] = {}
    for name in ("baseline", "whole", "sampled"):
        runs[name] = fresh(options, name)
        runs[name]["beside_baseline"] = runs[name]["seconds"] / runs["baseline"]["seconds"]
        print(f"{time.perf_counter() - start:4.0f} s  {name}: {runs[name]['seconds']:.1f} s", flush=True)
    whole, sampled = runs["whole"], runs["sampled"]
    figures = {
        **about(), "models": options.models, "weights": weights, "dtype": options.dtype, "seed": options.seed,
        "bytes": needed, "seconds_to_make": made,
        "sampled_beside_whole": {key: sampled[key] / whole[key] for key in ("seconds", "bytes_read", "anonymous_peak_mb")},
        "runs": runs,
    }  # fmt: skip
    print(table(runs))
    if not options.quick:
        path = Path(__file__).parent / "results" / "tree_scale.json"
        path.write_text(json.dumps(rounded(figures), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not options.keep:
        for member in members:
            shutil.rmtree(member.path)


def rounded(value: Any) -> Any:
    """Numbers to four significant digits: more is noise."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
