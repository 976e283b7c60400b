"""Two LoRA adapters compared by what they do to the weights: the products ΔW = B·A, whatever their factors are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..architecture.conventions import Shaped
from ..checkpoints.checkpoint import Checkpoint

MOST_BYTES = 64 << 20  # of the factors of each adapter that are read
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.lora[._](?P<side>A|B|down|up)(?:\.\w+)*?(?:\.weight)?")


@dataclass(frozen=True, slots=True)
class Products:
    """cosine: Σ⟨BA, B′A′⟩/√(Σ‖BA‖²·Σ‖B′A′‖²) over the `modules` that were read of both, in [−1, 1]; NaN of zeros."""

    cosine: float
    modules: int


def compare_products(one: Checkpoint, other: Checkpoint) -> Products | None:
    """Two adapters' products over the modules that both change, in shapes that fit; None where there are none.

    With A (r, in), B (out, r): ⟨BA, B′A′⟩ = Σ (BᵀB′)∘(AA′ᵀ), of r × r′ numbers, so that no product is made; kernels of
    convolutions are flattened. The cosine does not see what scales a whole adapter (alpha). Of large adapters modules
    are left out, the last by name. Reads up to `MOST_BYTES` of each.
    """
    pairs = [factors_of(model) for model in (one, other)]
    both = [
        module for module in sorted(pairs[0].keys() & pairs[1].keys())
        if all(outer_shape(one, pairs[0][module])[i] == outer_shape(other, pairs[1][module])[i] for i in (0, 1))
    ]  # fmt: skip
    sums, read, modules = torch.zeros(3, dtype=torch.float64), [0, 0], 0
    for module in both:
        sizes = [sum(model[name].nbytes for name in p[module]) for model, p in zip((one, other), pairs, strict=True)]
        read = [a + b for a, b in zip(read, sizes, strict=True)]
        if modules and max(read) > MOST_BYTES:
            break
        (a, b), (c, d) = (
            [t.double().reshape(len(t), -1) for t in model.whole(p[module])]
            for model, p in zip((one, other), pairs, strict=True)
        )
        sums += torch.stack([_inner(a, b, c, d), _inner(a, b, a, b), _inner(c, d, c, d)])
        modules += 1
    return Products(float(sums[0] / (sums[1] * sums[2]).sqrt()), modules) if modules else None


def _inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """⟨BA, DC⟩ of factors A (r, in), B (out, r), C (s, in), D (out, s)."""
    return ((b.T @ d) * (a @ c.T)).sum()


def factors_of(adapter: Mapping[str, Shaped]) -> dict[str, tuple[str, str]]:
    """Module → the names of its A and B, for those of one rank."""
    sides: dict[str, dict[str, str]] = {}
    for name, entry in adapter.items():
        match = _FACTOR.fullmatch(name)
        if match and len(entry.shape) >= 2:
            sides.setdefault(match["module"], {})["A" if match["side"] in ("A", "down") else "B"] = name
    whole = {module: (names["A"], names["B"]) for module, names in sides.items() if {*names} == {"A", "B"}}
    return {module: (a, b) for module, (a, b) in whole.items() if adapter[b].shape[1:2] == adapter[a].shape[:1]}


def outer_shape(adapter: Mapping[str, Shaped], names: tuple[str, str]) -> tuple[int, int]:
    """Inputs and outputs of a product: kernels of A count as inputs; one of B must be of one place."""
    a, b = (adapter[name] for name in names)
    return a.count // a.shape[0], b.count // b.shape[1]
