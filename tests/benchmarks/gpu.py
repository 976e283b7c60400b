"""What questions cost on a GPU, each beside its baseline in the same run.

    python tests/benchmarks/gpu.py FOLDER [--only CASE] [--write]      → results/gpu.json

copies     bytes a second from pinned memory to the GPU, and within the GPU: the baselines of the next
moments    the sums of slices of two models in bf16, from pinned memory and from the GPU's own, as a share of the copies
pair-7b    a trace of two models of 6.7 billion weights, 13.5 GB each, from the page cache, beside reading both, beside
           reading both and adding up, and beside the processor alone
features   features of a ViT of 630 million weights over the GPU and memory: equal to those of the GPU alone, and the
           peak of the GPU's memory beside the bound

FOLDER keeps the models: 32 GB. Medians of five runs after one that warms up; of `pair-7b` of two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from records import write_record
from safetensors import safe_open
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.architecture.conventions import forget_headers
from hf_lineage.checkpoints.buffers import pinned
from hf_lineage.weights.device_moments import slice_moments
from hf_lineage.weights.sampling import BLOCK

GPU = torch.device("cuda", 0)
GB, MB = 10**9, 10**6
Row = dict[str, Any]


def seconds(work: Callable[[], Any], times: int = 5) -> float:
    """The median; what is under way on the GPU is waited for."""
    work()
    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def copies(_: Path) -> list[Row]:
    size = 1 << 30
    host, here, there = (
        torch.empty(size, dtype=torch.uint8, **at) for at in ({"pin_memory": True}, {"device": GPU}, {"device": GPU})
    )
    to_gpu = size / seconds(lambda: here.copy_(host, non_blocking=True))
    within = 2 * size / seconds(lambda: there.copy_(here))
    return [{"case": "copies", "to_gpu_gb_s": round(to_gpu / GB, 1), "within_gb_s": round(within / GB, 1)}]


def moments(folder: Path) -> list[Row]:
    rates, rows = copies(folder)[0], []
    for count in (16, 64, 256):
        raw = [torch.frombuffer(pinned(2 * BLOCK * count), dtype=torch.bfloat16) for _ in range(2)]
        for value in raw:
            value.copy_(torch.randn(len(value)))
        for place, values, most in (("memory", raw, "to_gpu_gb_s"), ("gpu", [v.to(GPU) for v in raw], "within_gb_s")):
            slices = [*zip(*(value.split(BLOCK) for value in values), strict=True)]
            for fourth in (False, True):
                taken = seconds(lambda slices=slices, fourth=fourth: slice_moments(slices, GPU, fourth))
                rate = 2 * count * 2 * BLOCK / taken / GB
                rows.append({
                    "case": "moments", "from": place, "slices": count, "fourth": fourth, "gb_s": round(rate, 1),
                    "share_of_copy": round(rate / rates[most], 3), "copy": most,
                })  # fmt: skip
    return rows


def llama_7b(folder: Path, seed: int, near: int | None = None) -> str:
    """6.7 billion weights in bf16, in shards of four layers; with `near` a step of 1e-3 of their size away."""
    path = folder / f"llama-7b-{seed}"
    path.mkdir(parents=True, exist_ok=True)
    width, inner, words = 4096, 11008, 32000
    layer = {f"self_attn.{k}_proj": (width, width) for k in "qkvo"}
    layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    for shard in range(9):
        file = path / f"model-{shard + 1:05d}-of-00009.safetensors"
        if file.exists():
            continue
        shapes = {f"model.layers.{i}.{name}": s for i in range(4 * shard, 4 * shard + 4) for name, s in layer.items()}
        if shard == 8:
            shapes = {"model.embed_tokens": (words, width), "lm_head": (words, width)}
        made = {}
        for at, (name, shape) in enumerate(shapes.items()):
            value = 0.02 * torch.randn(
                shape, generator=torch.Generator(GPU).manual_seed(1000 * (near or seed) + 40 * shard + at), device=GPU
            )
            if near is not None:
                value += 2e-5 * torch.randn(
                    shape, generator=torch.Generator(GPU).manual_seed(seed * 7919 + at), device=GPU
                )
            made[f"{name}.weight"] = value.bfloat16().cpu()
        save_file(made, file)
    return str(path)


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(Path(folder).glob("*.safetensors"))


def read(path: Path) -> int:
    """All bytes, 4 MB at a time, into the same memory."""
    buffer, done = memoryview(bytearray(4 << 20)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done


def added(path: Path) -> float:
    with safe_open(path, "pt") as file:
        return sum(float(file.get_tensor(name).float().sum()) for name in file.keys())  # noqa: SIM118


def on_threads(work: Callable[[Path], Any], paths: list[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, paths))


def pair_7b(folder: Path) -> list[Row]:
    parent, child = llama_7b(folder, 1), llama_7b(folder, 2, near=1)
    paths, size = [*files(parent, child)], sum(path.stat().st_size for path in files(parent, child))
    rows: list[Row] = [
        {"case": "pair-7b", "what": what, "seconds": round(seconds(lambda work=work: on_threads(work, paths), 2), 2)}
        for what, work in (("read, 8 threads", read), ("read and added up, 8 threads", added))
    ]
    for device, memory in (("cuda", None), ("cuda", "4GB"), ("cpu", None)):
        torch.cuda.reset_peak_memory_stats()

        def ask(device: str = device, memory: str | None = memory) -> hl.Lineage:
            forget_headers()
            return hl.trace(child, [parent], device=device, memory=memory)

        taken, answer = seconds(ask, 2), ask()
        rows.append({
            "case": "pair-7b", "what": f"trace, device={device}, memory={memory or '512MB'}", "seconds": round(taken, 2),
            "verdict": answer.verdict, "bytes_read": answer.bytes_read, "gb_s": round(size / taken / GB, 2),
            "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / MB),
        })  # fmt: skip
    return rows


def vit(folder: Path, seed: int, near: str | None = None) -> str:
    """ViT-H/14 of timm with random weights, 2.5 GB; with `near` a step of 1 % away from it."""
    import timm
    from safetensors.torch import load_file

    path = folder / f"vit-{seed}"
    if not path.exists():
        path.mkdir(parents=True)
        torch.manual_seed(seed)
        name = "vit_huge_patch14_224"
        with torch.device(GPU):
            tensors = timm.create_model(name, num_classes=10).state_dict()
        if near is not None:
            base = load_file(f"{near}/model.safetensors", device="cuda:0")
            tensors = {k: v + 0.01 * v.std() * torch.randn_like(v) if v.numel() > 1 else v for k, v in base.items()}
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 10}))
    return str(path)


def features(folder: Path) -> list[Row]:
    parent = vit(folder, 1)
    child, stranger = vit(folder, 2, near=parent), vit(folder, 3)
    places: dict[str, Any] = {
        "gpu": "cuda", "gpu and memory": {0: "2GB", "cpu": "100GB"}, "gpu, memory and disk": {0: "2GB", "cpu": "1GB", "disk": "100GB"},
    }  # fmt: skip
    rows, told = [], {}
    for name, device in places.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        answer = hl.trace(child, [parent, stranger], evidence="features", probes=8, step=0.1, device=device)
        taken = time.perf_counter() - start
        told[name] = [c.evidence["features"] for c in answer.candidates]
        rows.append({
            "case": "features", "places": name, "bound_mb": 2000 if "memory" in name else None,
            "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / MB), "seconds": round(taken, 1),
            "form": told[name][0]["form"], "nearest": answer.candidates[0].ref[-5:],
            "largest_difference": farthest(told["gpu"], told[name]),
        })  # fmt: skip
    return rows


def farthest(one: Any, other: Any) -> float:
    """The largest relative difference of two answers' scores."""
    if isinstance(one, dict):
        return max(
            (farthest(one[k], other[k]) for k in one if k not in ("seconds", "form", "bytes_read", "curvature")),
            default=0.0,
        )
    if isinstance(one, list):
        return max((farthest(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and one == one:
        return abs(one - other) / max(abs(one), 1e-9)
    return 0.0


CASES: dict[str, Callable[[Path], list[Row]]] = {
    "copies": copies, "moments": moments, "pair-7b": pair_7b, "features": features,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows: list[Row] = []
    for name in [given.only] if given.only else CASES:
        for row in CASES[name](given.folder):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if given.write:
        write_record("gpu", rows, seed=0, gpu=torch.cuda.get_device_name(0))


if __name__ == "__main__":
    main()
