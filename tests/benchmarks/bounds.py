"""What inputs of growing size cost: processor time, and memory beside the pages of files, in a process of its own.

python tests/benchmarks/bounds.py [--write]      keeps results/bounds.json; needs 5 GB of disk
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

RESULTS = Path(__file__).parent / "results" / "bounds.json"
LAYER, ROW = 1024, 1024  # of the models whose bytes grow


def header(path: Path, count: int) -> None:
    """A safetensors file of so many tensors of 8 bytes."""
    about = {
        f"layers.{i}.weight": {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i in range(count)
    }
    raw = json.dumps(about).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 8 * count)


def weights(folder: Path, size: int) -> None:
    """A pair of fully connected networks of so many bytes each, related."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    count = max(2, size // (4 * LAYER * ROW))
    parent = {f"fc{i}.weight": torch.randn(LAYER, ROW) / 32 for i in range(1, count + 1)}
    save_file(parent, folder / "parent.safetensors")
    save_file({n: v + 1e-3 * torch.randn_like(v) for n, v in parent.items()}, folder / "child.safetensors")


def opened(path: str) -> str:
    from hf_lineage.checkpoints.opener import open_checkpoint

    return f"{len(open_checkpoint(path)):,} tensors"


def card(size: str) -> str:
    from hf_lineage.checkpoints.texts import card_data

    text = "---\ntags:\n" + "- abcdefgh\n" * (int(size) // 11) + "---\n"
    return f"{len(card_data(text.encode())):,} fields"


def config(depth: str) -> str:
    from hf_lineage.checkpoints.texts import json_data

    text = b'{"a":' * int(depth) + b"1" + b"}" * int(depth)
    return f"{len(json_data(text)):,} fields"


def traced(folder: str) -> str:
    import hf_lineage as hl

    return hl.trace(Path(folder) / "child.safetensors", [Path(folder) / "parent.safetensors"]).verdict


TASKS: dict[str, Callable[[str], str]] = {
    "open": opened, "card": card, "config": config, "trace": traced
}  # fmt: skip


def child(task: str, about: str) -> None:
    """In the process of its own, with everything imported: do it, and say what it took beyond that."""
    import hf_lineage.checkpoints.opener
    import hf_lineage.tasks.trace  # noqa: F401

    before, peak, over = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    try:
        found = TASKS[task](about)
    except Exception as error:
        found = re.sub("`[^`]*/", "`", f"{error}".partition(". ")[0])
    seconds = round(time.process_time() - began, 2)
    peak[0] = max(peak[0], anonymous())
    over.set()
    watcher.join()
    print(json.dumps({"found": found, "seconds": seconds, "memory MB": max(0, peak[0] - before) >> 10}))


def anonymous() -> int:
    """KB of memory that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def cost(what: str, task: str, about: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", task, about]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"input": what, **json.loads(done.stdout.splitlines()[-1])}


def main() -> list[dict[str, Any]]:
    """A row for each input."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (1_000, 10_000, 100_000, 250_000, 300_000):
            path = folder / "many.safetensors"
            header(path, count)
            size = path.stat().st_size - 8 * count
            rows.append(cost(f"header of {count:,} tensors, {size / 1e6:.1f} MB", "open", str(path)))
        for size in (10_000, 100_000, 1_000_000, 2_000_000):
            rows.append(cost(f"card of {size:,} bytes", "card", str(size)))
        for depth in (100, 10_000, 1_000_000):
            rows.append(cost(f"config {depth:,} levels deep", "config", str(depth)))
        for size in (10**7, 10**8, 10**9):
            weights(folder, size)
            rows.append(cost(f"a pair of {size // 10**6:,} MB each, all read", "trace", name))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, as docs/limits.md shows it."""
    lines = ["| input | processor time, s | memory, MB | outcome |", "|---|---|---|---|"]
    lines += [f"| {row['input']} | {row['seconds']:.2g} | {row['memory MB']} | {row['found']} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(*sys.argv[-2:])
    else:
        found = main()
        print(table(found))
        if "--write" in sys.argv:
            about = {"date": time.strftime("%Y-%m-%d")}
            RESULTS.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n")
