"""What `trace` reads of remote models of 1 GB: results/remote_cost.json.

    python tests/benchmarks/remote_cost.py [BYTES]     bytes of a model, 1e9 by default

One child and 20 candidates on the stand-in, every request of which is answered 50 ms late; the bytes are counted, and
take their time at 50 MB/s on paper: seconds = wall clock + bytes read / 50 MB/s, beside all bytes / 50 MB/s for a
download. Models are bfloat16 numbers that a seed makes when they are asked for, in Llama's shapes.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest
import torch
from records import write_record

import hf_lineage as hl
from hf_lineage.testing import MiniHub, connect
from hf_lineage.testing.repos import File

BLOCK = 1 << 15  # numbers that are made at once
DELAY, SPEED = 0.05, 50e6
HIDDEN, MIDDLE, VOCABULARY = 1024, 2816, 32000


class Virtual(File):
    """A safetensors file of seeded normal numbers: a sum of some noises, of one standard deviation each times a
    weight."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], noises: Mapping[int, float]) -> None:
        header, at = {}, 0
        for name, shape in shapes.items():
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._noises = noises
        self.name, self.source, self.size, self.lfs = "model.safetensors", b"", len(self._head) + at, True

    @property
    def sha256(self) -> str:  # type: ignore[override]
        return f"{hash((self.size, *self._noises.items())) & (1 << 256) - 1:064x}"

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`."""
        head = len(self._head)
        if start < head:
            yield self._head[start:stop]
        first = max(start, head) - head
        while first < stop - head:
            block, offset = divmod(first, 2 * BLOCK)
            piece = self._block(block)[offset : offset + stop - head - first]
            yield piece
            first += len(piece)

    def _block(self, block: int) -> bytes:
        total = np.zeros(BLOCK, dtype=np.float32)
        for seed, weight in self._noises.items():
            total += weight * np.random.default_rng([seed, block]).standard_normal(BLOCK, dtype=np.float32)
        return (0.02 * torch.from_numpy(total)).bfloat16().view(torch.int16).numpy().tobytes()


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """Of as many layers as fit into so many bytes."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    layers = round((size / 2 - VOCABULARY * HIDDEN) / (4 * HIDDEN**2 + 3 * HIDDEN * MIDDLE))
    for i in range(layers):
        for part, shape in (
            *((f"self_attn.{name}_proj", (HIDDEN, HIDDEN)) for name in "qkvo"),
            ("mlp.gate_proj", (MIDDLE, HIDDEN)), ("mlp.up_proj", (MIDDLE, HIDDEN)), ("mlp.down_proj", (HIDDEN, MIDDLE)),
        ):  # fmt: skip
            found[f"model.layers.{i}.{part}.weight"] = shape
    return found


# what the candidates are made of: the base is noise 1, the child noise 1 and a step of its own
CASES: dict[str, list[dict[int, float]]] = {
    "a parent and 19 unrelated": [{1: 1.0}, *({i: 1.0} for i in range(100, 119))],
    "20 unrelated": [{i: 1.0} for i in range(100, 120)],
    "a parent, 4 siblings, 15 unrelated": [
        {1: 1.0}, *({1: 1.0, i: 0.02} for i in range(50, 54)), *({i: 1.0} for i in range(100, 115)),
    ],
    "20 siblings": [{1: 1.0, i: 0.02} for i in range(50, 70)],
}  # fmt: skip


def ask(hub: MiniHub, size: float, candidates: list[dict[int, float]], sample: str | None) -> dict[str, Any]:
    """One question, with what it cost."""
    names = []
    for i, noises in enumerate([{1: 1.0, 2: 0.02}, *candidates]):
        names.append(f"lab/model-{i}")
        hub.add(names[-1], {"config.json": b"{}"})
        content = hub.repos[names[-1]].commits[hub.repos[names[-1]].refs["main"]]
        content["model.safetensors"] = Virtual(shapes(size), noises)
    hub.bytes_served.clear()
    before, began = sum(hub.counts.values()), time.monotonic()
    found = hl.trace(names[0], names[1:], sample=sample, relatives=False)
    seconds = time.monotonic() - began
    served = {name: hub.bytes_served[f"{name}/model.safetensors"] for name in names}
    whole = Virtual(shapes(size), {}).size
    left = [served[c.ref] for c in found.candidates if c.p_method == "e_value"]
    units = [c.evidence["units"].to_dict() for c in found.candidates if "units" in c.evidence]
    nearest = min((c for c in found.candidates if c.distance), key=lambda c: c.distance or 0.0, default=None)
    return {
        "verdict": found.verdict, "nearest": nearest and nearest.ref, "left": len(left),
        "bytes": sum(served.values()), "bytes of one left, at most": max(left, default=0),
        "bytes a model": round(sum(served.values()) / len(served)),
        "share of all bytes": sum(served.values()) / whole / len(served),
        "requests": sum(hub.counts.values()) - before, "units": sum(each["units"] for each in units),
        "seconds": round(seconds + sum(served.values()) / SPEED, 1),
        "seconds of a download": round(whole * len(served) / SPEED, 1),
        "of the download": (seconds + sum(served.values()) / SPEED) / (whole * len(served) / SPEED),
    }  # fmt: skip


def main(size: float) -> None:
    rows = []
    for case, candidates in CASES.items():
        for sample in (None, "auto"):
            with MiniHub() as hub, pytest.MonkeyPatch.context() as patch:
                connect(hub, patch)
                hub.fault("delay", times=None, value=DELAY)
                rows.append({"case": case, "sample": sample or "adaptive", **ask(hub, size, candidates, sample)})
                print(rows[-1], flush=True)
    if size == 1e9:
        write_record("remote_cost", rows, model_bytes=size, delay=DELAY, bytes_per_second=SPEED)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1e9)
