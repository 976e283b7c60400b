"""Does it pay to train many networks as one stacked computation? Run by hand: `python tests/benchmarks/stacked_training.py`

Baseline: eight fully connected networks of the families' default size one after another on one core, against the
same eight as one `torch.func.vmap`. Prints seconds per network and step, and the ratio.
"""

from __future__ import annotations

import time

import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from hf_lineage.experiments.families import SIZES, build

NETWORKS, STEPS, BATCH = 8, 30, 64


def loss(model: torch.nn.Module, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)


def main() -> None:
    torch.set_num_threads(1)
    models = [build("fc", 26, SIZES["fc"]) for _ in range(NETWORKS)]
    x, y = torch.randn(NETWORKS, BATCH, 784), torch.randint(26, (NETWORKS, BATCH))
    for _ in range(3):  # warm-up
        torch.nn.functional.cross_entropy(models[0](x[0]), y[0]).backward()
    start = time.perf_counter()
    for model, inputs, labels in zip(models, x, y, strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    single = (time.perf_counter() - start) / NETWORKS / STEPS
    stacked, _ = stack_module_state(models)
    stacked = {name: value.detach() for name, value in stacked.items()}
    gradient = vmap(grad(lambda p, a, b: loss(models[0], p, a, b)))
    optimizer = torch.optim.Adam(list(stacked.values()), lr=1e-3, fused=True)
    start = time.perf_counter()
    for _ in range(STEPS):
        for name, value in gradient(stacked, x, y).items():
            stacked[name].grad = value
        optimizer.step()
    together = (time.perf_counter() - start) / NETWORKS / STEPS
    print(
        f"one by one {1e3 * single:.2f} ms, stacked {1e3 * together:.2f} ms, stacked / one by one {together / single:.2f}"
    )


if __name__ == "__main__":
    main()
