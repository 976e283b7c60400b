"""Which step α of the linearisation is right how often: the papers' steps, `step="auto"`, and the rules beside it.

    python tests/benchmarks/step_rules.py FOLDER        8 families of each kind, about 20 minutes on a core

Families are trained in FOLDER and kept. Each child is asked about among all roots; a row of the record holds, for one
family, the share of its children whose parent has the highest score.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write_record
from torch import Tensor

from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.experiments.families import Family, Member, task_of, train_family
from hf_lineage.features.evidence import TAYLOR_STEP
from hf_lineage.features.linearize import GRID, MAX_RELATIVE_CURVATURE, Linearised, curvature, exact, features
from hf_lineage.features.networks import Images, build, weights
from hf_lineage.features.probes import probes as made
from hf_lineage.features.similarity import METRICS, TEMPERATURE, gradient, scores

SEEDS = range(201, 209)
PLANS: dict[str, dict[str, Any]] = {
    "fc": {"roots": 10, "children": 2}, "resnet": {"roots": 6, "children": 2, "sizes": {"side": 20}},
    "vit": {"roots": 6, "children": 2, "sizes": {"depth": 2, "patch_size": 14}},
}  # fmt: skip
PROBES = 128
STEPS = (1.0, 0.5, 0.2, *GRID)  # those of `step="auto"`, and the larger ones that it took before
PAPER_STEPS = (0.001, 0.01, 0.1)
NORMS = ("l1", "l2", "lp", "lse", "cka", "dc")  # those with both forms: linf has no derivative


@dataclass(frozen=True)
class Pair:
    """One child and one root at the default tap: curvature at each of STEPS; of each metric the score without a
    step, its slope along the step, and the exact score at each of STEPS."""

    true: bool
    curvature: dict[float, float]
    plain: dict[str, float]
    slope: dict[str, float]
    exact: dict[str, dict[float, float]]

    def score(self, metric: str, form: str, step: float) -> float:
        if form == "plain" or not step:
            return self.plain[metric]
        return self.plain[metric] + step * self.slope[metric] if form == "taylor" else self.exact[metric][step]


def family(folder: Path, kind: str, seed: int) -> Family:
    return train_family(folder / f"{kind}-{seed}", kind, seed=seed, **PLANS[kind])


def inputs_of(child: Member, own: bool) -> Tensor:
    """The child's own training images, as in the paper, or the synthetic ones that `probes=None` stands for."""
    data = task_of(child).train_x
    if own:
        return data[:PROBES]
    _, channels, *side = data.shape
    return made(None, Images(channels, side[0], side[-1], (0.0,), (1.0,)), PROBES)


def questions(of: Family, own: bool, most: int = 10_000) -> Iterator[list[Pair]]:
    """The pairs of each child with all roots, the same for every form, step and metric."""
    opened = {root.name: open_checkpoint(root.path) for root in of.roots}
    children = list(of.children)
    for child in random.Random(0).sample(children, min(most, len(children))):
        checkpoint, given = open_checkpoint(child.path), inputs_of(child, own)
        network = build(checkpoint)
        target = weights(network, checkpoint)
        G = features(network.module, target, given, [network.tap])[network.tap]
        yield [_pair(opened[root.name], target, given, G, root.name == child.parent) for root in of.roots]


def _pair(root: Any, target: dict[str, Tensor], given: Tensor, G: Tensor, true: bool) -> Pair:
    network = build(root)
    start, tap = weights(network, root), network.tap
    moving = {name for name, _ in network.module.named_parameters()}
    delta = {n: target[n] - v for n, v in start.items() if n in moving and target[n].shape == v.shape}
    linear: Linearised = exact(network.module, start, delta, given, [tap])[tap]
    bends = {s: curvature(network.module, start, delta, given, [tap], {tap: linear}, s)[tap] for s in STEPS}
    after = scores(linear.F, G, linear.T, [0.0, *STEPS])
    slope = {m: float((gradient(m, linear.F, G) * linear.T).sum()) for m in METRICS if METRICS[m].differentiable}
    return Pair(
        true, bends, {m: each[0] for m, each in after.items()}, slope,
        {m: dict(zip(STEPS, each[1:], strict=True)) for m, each in after.items()},
    )  # fmt: skip


def right(pairs: Sequence[Pair], metric: str, form: str, step: float) -> bool:
    return max(pairs, key=lambda pair: pair.score(metric, form, step)).true


def auto(pairs: Sequence[Pair], most: float) -> float:
    """The largest step, `most` at most, that is small for any candidate; 0 where none is."""
    small = [[s for s in STEPS if s <= most and pair.curvature[s] < MAX_RELATIVE_CURVATURE] for pair in pairs]
    return max((each[0] for each in small if each), default=0.0)


RULES: dict[str, Callable[[Sequence[Pair]], float]] = {
    "no step": lambda pairs: 0.0, **{f"α = {step}": lambda pairs, step=step: step for step in PAPER_STEPS},
    "auto before: at most 1": lambda pairs: auto(pairs, 1.0), "auto: at most 0.1": lambda pairs: auto(pairs, GRID[0]),
    "auto of Taylor: at most 0.02": lambda pairs: auto(pairs, TAYLOR_STEP),
}  # fmt: skip


def printed(pair: Pair, metric: str, step: float) -> float:
    """Taylor's score of a form that the paper prints elsewhere, by the chain rule from the one of `METRICS`."""
    base = {"lse-printed": "lse", "cka-squared": "cka", "dc-root": "dc"}[metric]
    plain, slope = pair.plain[base], pair.slope[base]
    if metric == "lse-printed":
        return plain + step * slope / TEMPERATURE
    return (
        plain**2 + step * 2 * plain * slope if metric == "cka-squared" else plain**0.5 + step * slope / (2 * plain**0.5)
    )


def measured(asked: Sequence[Sequence[Pair]]) -> dict[str, float]:
    """Rule and form → share of children, mean over NORMS; metric, form → the same at 0.1; the forms printed elsewhere."""
    found: dict[str, float] = {}
    for rule, step_of in RULES.items():
        for form in ("taylor", "exact"):
            hits = [right(pairs, m, form, step_of(pairs)) for pairs in asked for m in NORMS]
            found[f"{rule}, {form}"] = sum(hits) / len(hits)
    for m in NORMS:
        for form in ("plain", "taylor", "exact"):
            found[f"{m}, {form} at 0.1"] = sum(right(pairs, m, form, 0.1) for pairs in asked) / len(asked)
    for m in ("lse-printed", "cka-squared", "dc-root"):
        hits = [max(pairs, key=lambda pair, m=m: printed(pair, m, 0.1)).true for pairs in asked]
        found[f"{m}, taylor at 0.1"] = sum(hits) / len(hits)
    return found


def main(folder: Path, seeds: Sequence[int], most: int = 8) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind in PLANS:
        for own in (True, False):
            each = [measured([*questions(family(folder, kind, seed), own, most)]) for seed in seeds]
            rows += summed(kind, own, seeds, each)
            write_record("step-rules", rows, roots={kind: plan["roots"] for kind, plan in PLANS.items()}, children=most)


def summed(kind: str, own: bool, seeds: Sequence[int], each: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    about = {"kind": kind, "probes": "own data" if own else "synthetic", "seeds": [*seeds]}
    return [
        {
            **about,
            "what": name,
            "right": [round(float(f([found[name] for found in each])), 4) for f in (np.mean, np.std)],
        }
        for name in each[0]
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [*SEEDS][: int(sys.argv[2]) if len(sys.argv) > 2 else None])
