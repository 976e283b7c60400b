"""Who came first, on families of a real pretrained model: every estimator of `weights/direction` for every pair.

By hand: `python tests/benchmarks/direction_real.py FOLDER [--write]`. FOLDER keeps the models
(`real_families.py` says what is needed). Two families of one base each, 30 steps a child; about ten minutes on one core.
The constants of the estimators were chosen on family a; family b, another base with other rates and seeds, judges them.

Prints for each pair λ ± error (misfit) of every estimator and the joined order; with --write,
results/direction_real.json.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from real_families import Recipe, Tensors, make
from safetensors.torch import load_file

from hf_lineage.weights.direction.order import ERROR, MAX_MISFIT, Order, join
from hf_lineage.weights.direction.position import Position
from hf_lineage.weights.direction.steps import PairCounts, Steps, count_steps, pair_positions
from hf_lineage.weights.history import NO_COUNTS, Past, count_values, past_of
from hf_lineage.weights.moments import block_moments

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "direction_real.json"
SHARES = (0.005, 0.05, 1.0)  # of the rows of each matrix, one slice at a random place
LEAST_ROWS, KEPT_ROWS, SLICE = 32, 1024, 1 << 18


def family(name: str, scaled: int, seed: int, rates: tuple[float, float, float]) -> list[Recipe]:
    """A base in three formats and its children; rates: of the light, the middle, the heavy one."""
    light, middle, heavy = rates
    bases = [Recipe(f"{name}-{stored}", stored=stored, scaled=scaled) for stored in ("bf16", "fp16", "fp32")]
    half = [
        Recipe("light", rate=light), Recipe("middle", rate=middle), Recipe("heavy", rate=heavy),
        Recipe("decayed", rate=2 * middle, decay=0.01), Recipe("adafactor", optimizer="adafactor", rate=10 * middle),
        Recipe("sgd", optimizer="sgd", rate=10 * heavy), Recipe("lora", rate=40 * middle, rank=8),
        Recipe("lora-all", rate=40 * middle, rank=4, everywhere=True), Recipe("kept", rate=middle, keep="bf16"),
        Recipe("twin", rate=middle), Recipe("fading", rate=2 * middle, fading=True),
    ]  # fmt: skip
    children = [replace(r, name=f"{name}-{r.name}", parent=f"{name}-bf16", seed=seed + i) for i, r in enumerate(half)]
    others = [
        Recipe("middle-child", "middle", rate=middle), Recipe("heavy-child", "heavy", rate=middle),
        Recipe("kept-child", "kept", rate=middle, keep="bf16"),
        Recipe("fp16-middle", "fp16", rate=middle / 4, stored="fp16"),
        Recipe("fp16-heavy", "fp16", rate=middle, stored="fp16"),
        Recipe("fp32-of-bf16", "bf16", rate=middle, stored="fp32"),
        Recipe("fp32-heavy", "fp32", rate=heavy, stored="fp32"),
        Recipe("fp32-decayed", "fp32", rate=2 * heavy, decay=0.1, stored="fp32"),
        Recipe("bf16-of-fp32", "fp32", rate=middle),
    ]  # fmt: skip
    children += [
        replace(r, name=f"{name}-{r.name}", parent=f"{name}-{r.parent}", seed=seed + 20 + i)
        for i, r in enumerate(others)
    ]
    return [*bases, *children]


FAMILIES = {
    "a": family("a", 0, 100, (2e-6, 1e-5, 5e-5)),
    "b": family("b", 7, 200, (4e-6, 2e-5, 1e-4)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """The values of one model, and what they tell alone."""

    tensors: Tensors
    past: Past


@dataclass(frozen=True, slots=True)
class Pair:
    """What was measured of a candidate and a child. truth: 1 the candidate is an ancestor, −1 the child is, 0 neither;
    kind: direct, generations (more than one), siblings, cast."""

    candidate: str
    child: str
    kind: str
    truth: int
    moved: float
    positions: list[Position]
    order: Order


def opened(path: Path) -> Model:
    tensors = load_file(path / "model.safetensors")
    counts = sum((count_values(t.flatten()) for t in tensors.values() if t.ndim > 1), NO_COUNTS)
    return Model(tensors, past_of(counts))


def measured(candidate: Model, child: Model, share: float = 1.0) -> tuple[list[Position], float]:
    """The positions of all estimators, from a share of every tensor, and ‖c − p‖/‖c‖ over all matrices."""
    steps, moments, units = {}, {}, {}
    for i, name in enumerate(name for name, t in candidate.tensors.items() if t.ndim > 1):
        p, c = candidate.tensors[name], child.tensors[name]
        rows, width = p.shape[0], math.prod(p.shape[1:])
        count = max(round(share * rows), min(rows, LEAST_ROWS))
        start = int(np.random.default_rng(i).integers(rows - count + 1))
        one, other = (t[start : start + count].reshape(-1, width) for t in (p, c))
        pieces = range(0, one.numel(), SLICE)
        flat = [(other.flatten()[at : at + SLICE], one.flatten()[at : at + SLICE]) for at in pieces]
        steps[name] = sum((count_steps(*both) for both in flat), Steps())
        moments[name] = block_moments([other.flatten(), one.flatten()])
        units[name] = (other[:KEPT_ROWS].float(), one[:KEPT_ROWS].float())
    norm, square = (sum(m.gram[i, i] for m in moments.values()) for i in (0, 1))
    return pair_positions(PairCounts(steps, moments, units, child.past, candidate.past)), math.sqrt(square / norm)


def ancestors(recipes: Sequence[Recipe], name: str) -> list[str]:
    """The nearest first. The bases in half precision are casts of the one in fp32."""
    parents = {r.name: r.parent for r in recipes}
    first = next(r.name for r in recipes if not r.parent and r.stored == "fp32")
    found = []
    while name != first:
        name = parents[name] or first
        found.append(name)
    return found


def kind_of(recipes: Sequence[Recipe], candidate: str, child: str) -> tuple[str, int]:
    """How the two are related."""
    parents = {r.name: r.parent for r in recipes}
    roots = [name for name, parent in parents.items() if not parent]
    for older, younger, sign in ((candidate, child, 1), (child, candidate, -1)):
        if older in ancestors(recipes, younger):
            if parents[younger] == older:
                return "direct", sign
            return ("cast" if younger in roots else "generations"), sign
    return ("cast" if {candidate, child} <= {*roots} else "siblings"), 0


def pairs(recipes: Sequence[Recipe], folder: Path) -> Iterator[Pair]:
    """Every pair once, in the order of the recipes; prints each."""
    models = {name: opened(path) for name, path in make(recipes, folder).items()}
    for candidate, child in itertools.combinations(models, 2):
        kind, truth = kind_of(recipes, candidate, child)
        lattices = {models[name].past.lattice for name in (candidate, child)}
        if kind == "cast" or lattices == {"bf16", "fp16"}:  # what the values show at once, or nothing
            continue
        positions, moved = measured(models[candidate], models[child])
        order = join(positions, moved, models[candidate].past.marked)
        yield Pair(candidate, child, kind, truth, moved, positions, order)


def shown(position: Position) -> str:
    if position.lambda_ is None:
        return "-"
    return f"{position.lambda_:+.2f} ± {position.stderr:.2f} ({position.misfit:.1f})"


def brief(pair: Pair) -> dict[str, Any]:
    """What is kept of a pair: [λ, error, misfit] of each estimator that spoke, and the order."""
    positions = {p.method: [p.lambda_, p.stderr, p.misfit] for p in pair.positions if p.lambda_ is not None}
    order = {"lambda": pair.order.lambda_, "stderr": pair.order.stderr, "decided": pair.order.decided}
    return {
        "candidate": pair.candidate, "child": pair.child, "kind": pair.kind, "truth": pair.truth, "moved": pair.moved,
        "marked": pair.order.marked, "positions": positions, "order": order,
    }  # fmt: skip


def both_ways(pair: Pair, models: dict[str, bool | None]) -> list[tuple[str, int, bool | None]]:
    """(the decided order, the truth, whether the candidate has the mark) of a pair asked in either direction."""
    said, back = pair.order.decided or "silent", {"candidate": "child", "child": "candidate"}
    return [
        (said, pair.truth, models[pair.candidate]),
        (back.get(said, said), -pair.truth, models[pair.child]),
    ]  # fmt: skip


def verdicts(found: Sequence[Pair], marks: dict[str, bool | None]) -> dict[str, dict[str, int]]:
    """By kind of pair, both ways asked: how often the true ancestor, neither, the wrong one was said to be first; of
    siblings how often one of them, and how often one that does not itself show the mark of a base of its own."""
    table: dict[str, Counter[str]] = {}
    for pair in found:
        counts = table.setdefault(pair.kind, Counter())
        for said, truth, mark in both_ways(pair, marks):
            if said == "silent":
                counts["silent"] += 1
            elif pair.kind == "siblings":
                counts["common" if said == "common" else "one of them"] += 1
                counts["the candidate, without the mark"] += said == "candidate" and not mark
            else:
                right = said == ("candidate" if truth > 0 else "child")
                counts["right" if right else "common" if said == "common" else "reversed"] += 1
    return {kind: dict(counts) for kind, counts in table.items()}


def pulls(found: Sequence[Pair]) -> dict[str, Any]:
    """(λ − truth)/error over direct pairs, by estimator and joined: how many, their mean and root mean square."""
    values: dict[str, list[float]] = {}
    for pair in found:
        if pair.kind == "direct":
            for p in pair.positions:
                if p.lambda_ is not None and p.misfit <= MAX_MISFIT:
                    error = math.hypot(p.stderr, ERROR[p.method])
                    values.setdefault(p.method, []).append((p.lambda_ * pair.truth - 1) / error)
            if pair.order.lambda_ is not None:
                values.setdefault("joined", []).append((pair.order.lambda_ * pair.truth - 1) / pair.order.stderr)
    return {
        name: {"pairs": len(v), "mean": float(np.mean(v)), "rms": float(np.sqrt(np.mean(np.square(v))))}
        for name, v in sorted(values.items())
    }


def samples(recipes: Sequence[Recipe], folder: Path) -> dict[str, dict[str, str]]:
    """λ of the roundings of direct pairs in half precision, from shares of the weights."""
    models = {name: opened(path) for name, path in make(recipes, folder).items()}
    found: dict[str, dict[str, str]] = {}
    for recipe in recipes:
        if recipe.parent and models[recipe.parent].past.lattice == models[recipe.name].past.lattice is not None:
            found[recipe.name] = {
                f"{share:.1%}": shown(measured(models[recipe.parent], models[recipe.name], share)[0][0])
                for share in SHARES
            }
    return found


def main(folder: Path, write: bool) -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "families": {}}
    for name, recipes in FAMILIES.items():
        started = time.process_time()
        print(
            f"\n## Family {name}\n\n| candidate | child | kind | moved | edges | barrier | memory | growth | decay | lora | order | marked |"
        )
        print("|---|---|---|---:|---|---|---|---|---|---|---|---|")
        found = []
        for pair in pairs(recipes, folder):
            found.append(pair)
            order = pair.order
            joined = "silent" if order.lambda_ is None else f"{order.lambda_:+.2f} ± {order.stderr:.2f} {order.decided}"
            cells = [pair.candidate, pair.child, f"{pair.kind} {pair.truth:+d}", f"{pair.moved:.3%}"]
            print(f"| {' | '.join([*cells, *map(shown, pair.positions), joined, str(order.marked)])} |", flush=True)
        pasts = {r.name: opened(folder / r.name).past for r in recipes}
        marks = {model: past.marked for model, past in pasts.items()}
        result["families"][name] = {
            "recipes": [asdict(r) for r in recipes],
            "pairs": [brief(pair) for pair in found],
            "pulls": pulls(found), "verdicts": verdicts(found, marks), "samples": samples(recipes, folder),
            "pasts": {
                model: {"trained_since": p.trained_since, "kept_in_half": p.kept_in_half, "began_from": p.began_from,
                        "reasons": [f.reason for f in p.findings.values()]}
                for model, p in pasts.items()
            },
            "cpu_seconds": round(time.process_time() - started, 1),
        }  # fmt: skip
        for what in ("pulls", "verdicts", "samples", "cpu_seconds"):
            print(f"\n{what}: {json.dumps(result['families'][name][what], indent=1)}")
    if write:
        text = json.dumps(result, indent=1, default=lambda value: None)
        RESULTS.write_text(text.replace("Infinity", "null").replace("NaN", "null") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
