"""Fake initialisations as directions: families without and with weight decay, kinds, training steps, clusterings.

    python tests/benchmarks/fake_starts.py FOLDER [--seeds 8] [--kinds fc]      trains in FOLDER, or reads what is there
    python tests/benchmarks/fake_starts.py FOLDER --stored NAME=FAMILY …        adds families that were trained before
    python tests/benchmarks/fake_starts.py --table                              the tables of docs/benchmarks.md

Writes results/fake_starts.json: seed by seed, with commit and machine. About a minute of CPU a seed of `fc`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import write_record

from hf_lineage.experiments.fake_starts import by_steps, clusterings, directions, summary
from hf_lineage.experiments.families import Family, read_family, train_trees

RESULTS = Path(__file__).parent / "results" / "fake_starts.json"
FIRST_SEED, STEPS = 91, (10, 30, 100, 300, 1000)
DECAY = 0.5  # of AdamW: what families with decay have
SIZES: dict[str, dict[str, Any] | None] = {"fc": {"widths": [256, 128, 64], "side": 16}, "resnet": None}
ROOTS = {"fc": (3, 4), "resnet": (2, 3)}  # how many, and children of each


def rows_of(name: str, seed: int | None, family: Family) -> list[dict[str, Any]]:
    """Of one family: the directions of its children without and with decay, and its clusterings."""
    edges = directions(family)
    found: list[dict[str, Any]] = []
    for decays in (False, True):
        part = [edge for edge in edges if edge["decays"] == decays]
        if part:
            found.append({"what": "directions", "family": name, "seed": seed, "decays": decays, **summary(part)})
    young = Family(family.folder, tuple(m for m in family.members if m.generation <= 2), family.dropped)
    return [*found, {"what": "clusterings", "family": name, "seed": seed, **clusterings(young)}]


def measured(folder: Path, kinds: Iterable[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """All rows of the families that are trained here."""
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        roots, children = ROOTS[kind]
        for seed in seeds:
            for decayed, name in ((0, "no decay"), (2, "every other decays")):
                family = train_trees(
                    folder / f"{kind}-decay{decayed}-{seed}", kind, roots=roots, branching=(children,), seed=seed,
                    decayed=decayed, sizes=SIZES[kind],
                )  # fmt: skip
                if len(family.roots) < 2 or not family.children:
                    continue
                rows += rows_of(f"{kind}, {name}", seed, family)
                if kind == "fc" and not decayed:
                    rows += _steps(family, seed)
    return rows


def _steps(family: Family, seed: int) -> list[dict[str, Any]]:
    """The first child of the first root that has one, trained for longer and longer."""
    child = family.children[0]
    root = family.member(str(child.parent))
    return [
        {"what": "steps", "seed": seed, "decay": decay, "steps": steps, **summary([found])}
        for decay in (0.0, DECAY) for steps, found in by_steps(root, child, STEPS, decay).items()
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: directions by family, then by training steps, then clusterings; mean ± standard error over seeds."""
    kinds = ("uniform", "gaussian", "kaiming", "xavier")
    lines = [
        "| children | edges | "
        + " | ".join(kinds)
        + " | draws outvoted | kinds disagree | majority | minimum | true start |",
        "|---|---:|" + "---:|" * 9,
    ]
    for (family, decays), part in _grouped([r for r in rows if r["what"] == "directions"], "family", "decays"):
        split = [{"split": max(row[f"{kind} disagree"] for kind in kinds)} for row in part]
        cells = [_percent(part, kind) for kind in kinds] + [_percent(split, "split")]
        cells += [_percent(part, name) for name in ("kinds disagree", "majority", "minimum", "oracle")]
        edges = sum(row["edges"] for row in part)
        lines.append(f"| {family}{', those that decay' if decays else ''} | {edges} | {' | '.join(cells)} |")
    lines += [
        "",
        "| steps of training | norm, no decay | majority | true start | norm, decay | majority | true start |",
    ]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|"]
    for (steps,), part in _grouped([r for r in rows if r["what"] == "steps"], "steps"):
        cells = []
        for decay in (0.0, DECAY):
            own = [row for row in part if row["decay"] == decay]
            cells += [_percent(own, name) for name in ("norm", "majority", "oracle")]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    clustered = [row for row in rows if row["what"] == "clusterings"]
    names = [name for name in clustered[0] if name.startswith(("after", "along"))]
    lines += ["", f"| clusters | {' | '.join(names)} | ρ that move a cluster |", "|---|" + "---:|" * (len(names) + 1)]
    for (family,), part in _grouped(clustered, "family"):
        cells = [_percent([row[name] for row in part], "overall") for name in names]
        lines.append(f"| {family} | {' | '.join(cells)} | {sum(row['moved'] for row in part)} of {4 * len(part)} |")
    return "\n".join(lines) + "\n"


def _grouped(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [*groups.items()]


def _percent(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [100 * float(row[name]) for row in rows]
    if len(values) < 2:
        return f"{values[0]:.0f}"
    return f"{np.mean(values):.0f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kinds", nargs="*", default=["fc"], choices=ROOTS)
    parser.add_argument("--stored", nargs="*", default=[], metavar="NAME=FAMILY")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if not asked.table:
        seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
        rows = measured(asked.folder, asked.kinds, seeds)
        for name, _, folder in (each.partition("=") for each in asked.stored):
            rows += rows_of(name, None, read_family(Path(folder))[0])
        write_record("fake_starts", rows, seeds=[*seeds], steps=STEPS)
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
