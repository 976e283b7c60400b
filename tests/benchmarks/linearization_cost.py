"""What linearising a network costs, in time and memory (the paper's Fig. 2).

By hand: `python tests/benchmarks/linearization_cost.py [--quick] [--device cuda]`. On the CPU it keeps to one core, and
compares by CPU time, which other work on the machine disturbs least. The ways take turns, so that all see the same
machine: the median of three after a warm-up, and a last time for the memory: what is added at the peak, to the resident
set on the CPU, to the allocator's on a GPU. Both models, Δ, and the child's features G are there before.

    naive          each probe's Jacobian by all parameters up to the tap, kept, then J·Δ; once, without a warm-up
    forward        F alone, for scale
    taylor         ⟨Π, T⟩ at one tap, Π of l2 given: `linearize.taylor`
    taylor score   what one Taylor score needs from the start: F, Π and ⟨Π, T⟩
    exact          F and T at one tap, and the score s(F + αT, G) by l2
    exact, taps    F and T at every block and at the tap
    exact, all     the same, and six metrics with three α at each: `similarity.exact`
    streamed       as `exact`, by `streaming.stream` from weights in memory

Prints Markdown and writes results/linearization_cost.json (on a GPU …-cuda.json; with --quick nothing).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from hf_lineage.features import linearize, similarity
from hf_lineage.features.forward import settled
from hf_lineage.features.networks import upstream
from hf_lineage.features.streaming import stream

ROOT = Path(__file__).parents[2]
SIX = ("l1", "l2", "linf", "lse", "cka", "dc")
STEPS = (0.001, 0.01, 0.1)
SIZE = 64  # of an image
REPEATS = 3
ROOM = 7e9  # bytes that the naive way may take on the CPU, or half of what is free
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
PATIENCE = 60  # seconds that it may take
AGREE = 1e-2  # most relative difference between the ways' T, or ⟨Π, T⟩
BOUND = 1.5  # "exact, all" beside "taylor"
FLAT = 1.2  # most memory of exact in the deepest network (four times as deep) beside the shallowest: one is within 10 %
WAYS = ("naive", "forward", "taylor", "taylor score", "exact", "exact, taps", "exact, all", "streamed")


@dataclass(frozen=True)
class Setting:
    """A network, its number of outputs, of probes, and the tap; None: the outputs."""

    network: str  # a ResNet of timm, or "vit-DEPTH"
    outputs: int = 10
    probes: int = 16
    tap: str | None = None

    def build(self) -> nn.Module:
        if self.network.startswith("vit-"):
            depth = int(self.network.removeprefix("vit-"))
            return VisionTransformer(
                img_size=SIZE, patch_size=8, embed_dim=192, depth=depth, num_heads=3, num_classes=self.outputs
            )
        return timm.create_model(self.network, num_classes=self.outputs, zero_init_last=False)


FULL = [
    *(Setting(f"resnet{depth}", outputs) for depth in (18, 34, 50) for outputs in (5, 10, 15)),
    *(Setting("resnet18", probes=probes) for probes in (8, 32)),
    Setting("resnet18", tap="layer1.0"),
    *(Setting(f"vit-{depth}") for depth in (4, 8, 16)),
]
QUICK = [Setting("resnet18", 5, 8), Setting("vit-2", probes=8), Setting("vit-4", probes=8)]


class Case:
    """A setting with its models, a child that is the parent moved by 5 %, and a method for each way."""

    def __init__(self, setting: Setting, device: str) -> None:
        torch.manual_seed(0)
        self.module = setting.build().to(device).eval()
        self.parent = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        self.delta = {}
        for name, _ in self.module.named_parameters():
            noise = torch.randn_like(self.parent[name])
            self.parent[name] += 0.01 * noise  # nothing stays at 0, where a network may be easier to run
            self.delta[name] = 0.05 * self.parent[name].square().mean().sqrt() * torch.randn_like(noise)
        self.child = self.parent | {name: self.parent[name] + change for name, change in self.delta.items()}
        self.inputs = torch.randn(setting.probes, 3, SIZE, SIZE, device=device)
        last = "head" if setting.network.startswith("vit-") else "fc"
        blocks = [path for path, _ in self.module.named_modules() if path.count(".") == 1 and path[-1].isdigit()]
        self.tap = setting.tap or last
        self.taps = [*blocks, last][: [*blocks, last].index(self.tap) + 1]
        self.G = linearize.features(self.module, self.child, self.inputs, self.taps)
        self.pi = similarity.gradient("l2", self.forward(), self.G[self.tap])

    def forward(self) -> Tensor:
        return linearize.features(self.module, self.parent, self.inputs, [self.tap])[self.tap]

    def taylor(self) -> float:
        return linearize.taylor(self.module, self.parent, self.delta, self.inputs, self.tap, self.pi)

    def taylor_score(self) -> float:
        F, G = self.forward(), self.G[self.tap]
        pi = similarity.gradient("l2", F, G)
        slope = linearize.taylor(self.module, self.parent, self.delta, self.inputs, self.tap, pi)
        return similarity.similarity("l2", F, G) + STEPS[0] * slope

    def exact(self) -> Tensor:
        found = linearize.exact(self.module, self.parent, self.delta, self.inputs, [self.tap])[self.tap]
        similarity.exact("l2", found.F, self.G[self.tap], found.T, STEPS[0])
        return found.T

    def exact_taps(self) -> dict[str, linearize.Linearised]:
        return linearize.exact(self.module, self.parent, self.delta, self.inputs, self.taps)

    def exact_all(self) -> dict[tuple[str, str, float], float]:
        found = self.exact_taps()
        every = {tap: similarity.scores(item.F, self.G[tap], item.T, STEPS) for tap, item in found.items()}
        return {
            (tap, metric, step): every[tap][metric][i]
            for tap in every
            for metric in SIX
            for i, step in enumerate(STEPS)
        }

    def streamed(self) -> Tensor:
        found = stream(self.module, self.parent, self.child, self.inputs, [self.tap])
        similarity.exact("l2", found[self.tap].F, self.G[self.tap], found[self.tap].T, STEPS[0])
        return found[self.tap].T

    def moving(self) -> dict[str, Tensor]:
        """The parameters up to the tap."""
        return {name: self.parent[name] for name in upstream(self.module, self.tap) if name in self.delta}

    def naive(self) -> Tensor:
        seen: dict[str, Tensor] = {}

        def output(parameters: Mapping[str, Tensor], probe: Tensor) -> Tensor:
            functional_call(self.module, self.parent | dict(parameters), (probe[None],))
            return seen["output"].flatten()

        part = self.module.get_submodule(self.tap)
        handle = part.register_forward_hook(lambda _module, _arguments, output: seen.update(output=output))
        with settled(self.module):
            kept = [jacrev(output)(self.moving(), probe) for probe in self.inputs]  # N times {name: (K, *shape)}
        handle.remove()
        rows = [[J.flatten(1) @ self.delta[name].flatten() for name, J in each.items()] for each in kept]
        return torch.stack([torch.stack(row).sum(0) for row in rows]).detach()


class Clock:
    """Seconds and bytes of a call, on one device."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.libc = None if self.cuda else ctypes.CDLL("libc.so.6")

    def seconds(self, call: Callable[[], object]) -> tuple[float, float]:
        """(compared, wall): the first is CPU time on the CPU."""
        self._settle()
        start, wall = time.process_time(), time.perf_counter()
        call()
        self._settle()
        cpu, wall = time.process_time() - start, time.perf_counter() - wall
        return (wall if self.cuda else cpu), wall

    def growth(self, call: Callable[[], object]) -> int:
        """Bytes at the peak of the call beyond those before."""
        gc.collect()
        if self.libc is None:
            self._settle()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        self.libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # a tensor that goes leaves at once
        self.libc.malloc_trim(0)  # what is free is no longer resident: to use it again counts
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _peak()
        try:
            call()
            return _peak() - before
        finally:
            self.keep()

    def keep(self) -> None:
        """Let malloc keep what is free, as it learns to by itself in a long run: times are of this."""
        if self.libc is not None:
            self.libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            self.libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)

    def room(self) -> float:
        if self.cuda:
            return torch.cuda.mem_get_info()[0] / 2
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(ROOM, 1024 * int(fields["MemAvailable"].split()[0]) / 2)

    def _settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measure(setting: Setting, device: str) -> dict[str, Any]:
    """One row: for each way its milliseconds, megabytes, and time beside Taylor's; or why there are none."""
    clock, case = Clock(device), Case(setting, device)
    ways: dict[str, Callable[[], object]] = {
        "forward": case.forward, "taylor": case.taylor, "taylor score": case.taylor_score, "exact": case.exact,
        "exact, taps": case.exact_taps, "exact, all": case.exact_all, "streamed": case.streamed,
    }  # fmt: skip
    clock.keep()
    T = case.exact()
    far = {"taylor": abs(case.taylor() / float((case.pi * T).sum()) - 1), "streamed": _far(case.streamed(), T)}
    case.exact_all(), case.taylor_score()  # with those before: the warm-up
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            taken[name].append(clock.seconds(way))
    found = {
        name: {
            "ms": _ms(t[0] for t in times),
            "wall_ms": _ms(t[1] for t in times),
            "mb": clock.growth(ways[name]) / 1e6,
        }
        for name, times in taken.items()
    }
    found["naive"] = naive(case, clock, T, far)
    if max(far.values()) > AGREE:
        raise SystemExit(f"Expected all ways to find the same, got relative differences {far} of {setting}.")
    for way in found.values():
        if "ms" in way:
            way["beside_taylor"] = way["ms"] / found["taylor"]["ms"]
    size = sum(change.numel() for change in case.delta.values())
    return {
        "network": setting.network, "outputs": setting.outputs, "probes": setting.probes, "tap": case.tap,
        "features": T.shape[1], "taps": len(case.taps), "features_of_all_taps": sum(G.shape[1] for G in case.G.values()),
        "parameters": size, "parameters_mb": 4 * size / 1e6, "disagreement": far,
        "ways": {name: found[name] for name in WAYS},
    }  # fmt: skip


def naive(case: Case, clock: Clock, T: Tensor, far: dict[str, float]) -> dict[str, Any]:
    """Once, where the Jacobian fits and PATIENCE lasts."""
    needed = 4 * T.numel() * sum(parameter.numel() for parameter in case.moving().values())
    if needed > clock.room():
        return {"not_run": f"{needed / 1e9:,.1f} GB"}

    def stop(*_: object) -> None:
        raise TimeoutError

    taken = []
    found = []
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        grown = clock.growth(lambda: taken.append(clock.seconds(lambda: found.append(case.naive()))))
    except TimeoutError:
        return {"not_run": f"over {PATIENCE} s"}
    except (MemoryError, torch.OutOfMemoryError):
        return {"not_run": "out of memory"}
    finally:
        signal.alarm(0)
    far["naive"] = _far(found[0], T)
    return {"ms": 1e3 * taken[0][0], "wall_ms": 1e3 * taken[0][1], "mb": grown / 1e6}


def _far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _ms(seconds: Any) -> float:
    return 1e3 * statistics.median(seconds)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ms / MB (time beside Taylor's)."""
    lines = [["network", "K", "N", "tap", "taps", "parameters, MB", *WAYS]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        about = [row["network"], row["features"], row["probes"], row["tap"], row["taps"], f"{row['parameters_mb']:.0f}"]
        lines.append([*map(str, about), *(_cell(row["ways"][name]) for name in WAYS)])
    return (
        "ms / MB at the peak beyond the models (time beside Taylor's); naive: or how large the Jacobian would be\n\n"
        + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    )


def _cell(way: Mapping[str, Any]) -> str:
    if "not_run" in way:
        return f"({way['not_run']})"
    return f"{way['ms']:,.0f} / {way['mb']:,.0f} ({way['beside_taylor']:.2f})"


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The two claims, each with what it rests on."""
    ratio = {_name(row): row["ways"]["exact, all"]["beside_taylor"] for row in rows}
    shares = {
        name: [row["ways"][name]["ms"] / row["ways"][beside]["ms"] for row in rows]
        for name, beside in (("exact, taps", "taylor"), ("exact, all", "taylor score"))
    }
    deep = [row for row in rows if row["network"].startswith("vit-")]
    memory = {name: [row["ways"][name]["mb"] for row in deep] for name in ("taylor", "exact", "exact, all", "streamed")}
    memory["taylor without its gradients"] = [row["ways"]["taylor"]["mb"] - row["parameters_mb"] for row in deep]
    memory["parameters"] = [row["parameters_mb"] for row in deep]
    return {
        "exact with all taps, six metrics, three α ≤ 1.5 × one Taylor metric": {
            "true": max(ratio.values()) <= BOUND, "settings_within": sum(r <= BOUND for r in ratio.values()),
            "settings": len(ratio), "median": statistics.median(ratio.values()), "worst": max(ratio.values()),
            "worst_at": max(ratio, key=lambda name: ratio[name]), "worst_of_the_pass_alone": max(shares["exact, taps"]),
            "worst_beside_a_whole_taylor_score": max(shares["exact, all"]),
        },
        "exact's memory beyond the parameters does not grow with depth": {
            "true": max(memory["exact"]) <= FLAT * memory["exact"][0], "depths": [row["network"] for row in deep], "mb": memory,
        },
    }  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['network']}, K = {row['features']}, N = {row['probes']}"


def about(device: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    machine = f"{len(cpu)} x {cpu[0].partition(': ')[2]}, Python {platform.python_version()}, torch {torch.__version__}"
    unit = torch.cuda.get_device_name() if device.startswith("cuda") else "1 core, 1 thread"
    return {
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"), "machine": machine, "on": unit,
        "torch": torch.__version__, "timm": timm.__version__,
        "ms": "wall time" if device.startswith("cuda") else "CPU time; wall_ms beside it",
    }  # fmt: skip


def check_ruler(device: str) -> None:
    """64 MiB are measured as 64 MiB."""
    clock, known = Clock(device), 64 << 20
    grown = clock.growth(partial(torch.ones, known // 4, device=device))
    if abs(grown - known) > known / 20:
        raise SystemExit(f"Expected a growth of {known} bytes, measured {grown}: peak memory cannot be read here.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three small settings, nothing is written")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
    check_ruler(options.device)
    start, before = time.perf_counter(), os.getloadavg()
    rows = []
    for setting in QUICK if options.quick else FULL:
        rows.append(measure(setting, options.device))
        print(f"{time.perf_counter() - start:4.0f} s  {_name(rows[-1])}", flush=True)
    figures = {
        **about(options.device), "load_before": before, "load_after": os.getloadavg(),
        "wall_s": time.perf_counter() - start, "claims": claims(rows), "rows": rows,
    }  # fmt: skip
    print(table(rows))
    for claim, found in figures["claims"].items():
        print(f"\n{claim}: {found['true']}\n{json.dumps(rounded(found))}")
    if not options.quick:
        name = "linearization_cost" if options.device == "cpu" else "linearization_cost-cuda"
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps(rounded(figures), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Numbers to three significant digits: more is noise."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
