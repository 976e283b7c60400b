"""Whether unrelated models get uniform p-values from units that structure tells, kind by kind.

    python tests/benchmarks/coverage/calibration.py            every kind, 15 models each: results/structure-calibration.json
    python tests/benchmarks/coverage/calibration.py --kinds mamba,GEGLU --models 5

For each row of `kinds.KINDS`: models that differ in the seed of their start and of their batches only, trained on the
same images, and of these the pairs i, i + 1 and i, i + 2 around a circle, so that each is in four. The p-value is the
package's, over all orders that it finds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from kinds import KINDS, SIDE, Network  # noqa: E402

from hf_lineage.answers.refs import ModelRef  # noqa: E402
from hf_lineage.architecture.describe import Architecture, describe  # noqa: E402
from hf_lineage.architecture.structure import cuts  # noqa: E402
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint  # noqa: E402
from hf_lineage.checkpoints.entry import Slice  # noqa: E402
from hf_lineage.checkpoints.view import View  # noqa: E402
from hf_lineage.experiments.glyphs import image_task  # noqa: E402
from hf_lineage.weights.permutation_test import pair_test, unit_products  # noqa: E402
from hf_lineage.weights.sampling import MIN_UNITS  # noqa: E402

RESULTS = HERE.parent / "results" / "structure-calibration.json"
MODELS, STEPS, BATCH, RATE = 15, 80, 32, 5e-3
ALPHABET = "few-lower"


def data(count: int = 4096) -> tuple[Tensor, Tensor]:
    """Images of glyphs, 14 × 14, and their labels: the same for all models."""
    task = image_task(ALPHABET, 0, train=count, test=1)
    return F.avg_pool2d(task.train_x.reshape(-1, 1, 28, 28), 28 // SIDE)[:, 0], task.train_y


def train(name: str, seeds: Sequence[int], x: Tensor, y: Tensor, steps: int = STEPS) -> tuple[list[View], float]:
    """Models of one kind, and their mean accuracy on images that they saw.

    Each has its own start and batches. They are trained side by side (`torch.func.vmap`), which changes nothing in any
    of them but the time it takes; recurrent layers cannot be and convolutions should not, they are trained one after the other.
    """
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(Network(KINDS[name], int(y.max()) + 1))
    slow = (torch.nn.RNNBase, torch.nn.modules.conv._ConvNd)
    if any(isinstance(module, slow) for module in models[0].modules()):
        together = [_fit([model], [seed], x, y, steps) for model, seed in zip(models, seeds, strict=True)]
    else:
        together = [_fit(models, seeds, x, y, steps)]
    views = []
    for states, _ in together:
        for state in states:
            checkpoint = MemoryCheckpoint(ModelRef("local", f"./{name}"), f"./{name}", state)
            views.append(View(checkpoint, cuts(checkpoint)))
    return views, float(np.mean([right for _, right in together]))


def _fit(
    models: Sequence[Network], seeds: Sequence[int], x: Tensor, y: Tensor, steps: int
) -> tuple[list[dict[str, Tensor]], float]:
    """AdamW with one cycle of the rate; the state of each model, and the mean accuracy."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(models) > 1:
        stacked, _ = torch.func.stack_module_state([*models])
        base = models[0]
        run = torch.func.vmap(lambda state, inputs: torch.func.functional_call(base, state, (inputs,)))

        def answers(inputs: Tensor) -> Tensor:
            return run(stacked, inputs)

        parameters = [*stacked.values()]
    else:

        def answers(inputs: Tensor) -> Tensor:
            return models[0](inputs[0])[None]

        parameters = [*models[0].parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for _ in range(steps):
        chosen = torch.stack([torch.randint(len(x), (BATCH,), generator=generator) for generator in generators])
        loss = F.cross_entropy(answers(x[chosen]).flatten(0, 1), y[chosen].flatten()) * len(models)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        seen = answers(x[:256].expand(len(models), -1, -1, -1)).argmax(-1) == y[:256]
    if len(models) > 1:
        states = [{key: value[i].detach() for key, value in stacked.items()} for i in range(len(models))]
    else:
        states = [{key: value.detach() for key, value in models[0].named_parameters()}]
    return states, float(seen.float().mean())


def matrices(view: View, architecture: Architecture) -> dict[str, Tensor]:
    """The matrices whose rows are units, whole."""
    names = [name for rows in architecture.orders.values() for name in rows]
    read = view.read([Slice(name, 0, view[name].count) for name in names])
    return {name: values.reshape(view[name].shape[0], -1) for name, values in zip(names, read, strict=True)}


def p_value(one: dict[str, Tensor], other: dict[str, Tensor], architecture: Architecture, seed: int) -> float | None:
    """The package's p-value of a pair, over all orders with units enough."""

    def products(order: str) -> np.ndarray:
        names = architecture.orders[order]
        size = architecture.groups.get(order, 0)
        within = [row // size for row in range(len(one[names[0]]))] if size else ()
        return unit_products([one[name] for name in names], [other[name] for name in names], within)

    orders = [order for order, names in architecture.orders.items() if len(one[names[0]]) >= MIN_UNITS]
    found = pair_test(products, orders, seed)
    return None if found is None else found.p


def pairs(models: int) -> list[tuple[int, int]]:
    """Around a circle, each with the next two: no model is in more than four."""
    return sorted(
        {(min(i, j), max(i, j)) for i in range(models) for j in ((i + 1) % models, (i + 2) % models) if i != j}
    )


def measure(name: str, models: int, x: Tensor, y: Tensor, steps: int = STEPS) -> dict[str, Any]:
    """One kind: which rules told its units, how well its models learned, and the p-values of its pairs."""
    base = 1000 * (1 + [*KINDS].index(name))
    views, right = train(name, range(base, base + models), x, y, steps)
    architecture = describe(views[0])
    rows = [matrices(view, architecture) for view in views]
    found = [p_value(rows[i], rows[j], architecture, base) for i, j in pairs(models)]
    return {
        "rules": sorted({*architecture.rules.values()}),
        "orders": len(architecture.orders),
        "accuracy": round(right, 3),
        "p": [p if p is None else float(f"{p:.4g}") for p in found],
    }


def summary(kinds: dict[str, Any]) -> dict[str, Any]:
    """What is asked of all kinds together."""
    every = np.array([p for kind in kinds.values() for p in _known(kind)])
    small = {name: sum(p <= 0.01 for p in _known(kind)) for name, kind in kinds.items()}
    return {
        "kinds": len(kinds), "pairs": len(every), "share of p <= 0.01": round(float((every <= 0.01).mean()), 4),
        "share of p <= 0.1": round(float((every <= 0.1).mean()), 4), "smallest": float(every.min()),
        "most p <= 0.01 of one kind": max(small.values()), "kinds with p <= 0.01": {k: n for k, n in small.items() if n},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=";".join(KINDS), help="names, with ; between")
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    x, y = data()
    kinds: dict[str, Any] = {}
    begin = time.process_time()
    for name in chosen.kinds.split(";"):
        kinds[name] = measure(name, chosen.models, x, y)
        print(name, kinds[name]["rules"], kinds[name]["accuracy"], sorted(_known(kinds[name]))[:3], flush=True)
        if chosen.out:  # after each kind: what is there when it is stopped is a result of these kinds
            chosen.out.write_text(json.dumps(_record(kinds, chosen.models, begin), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary(kinds), indent=1))


def _record(kinds: dict[str, Any], models: int, begin: float) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}",
        "cpu_seconds": round(time.process_time() - begin), "seeds": "1000 · (1 + number of the kind) + number of the model",
        "models": models, "steps": STEPS, "summary": summary(kinds), "kinds": kinds,
    }  # fmt: skip


def _known(kind: dict[str, Any]) -> list[float]:
    return [p for p in kind["p"] if p is not None]


if __name__ == "__main__":
    main()
