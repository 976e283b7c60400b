"""Whether a model is a base into which a LoRA adapter was merged: W′ = W + s·B·A, entry by entry, as it is rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architecture.conventions import canonical_names
from ..checkpoints.adapter_shapes import by_ending, matrix_of
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from .adapter_products import factors_of

MOST_BYTES = 256 << 20  # of the model and of the base that are read; of larger ones the first rows of each matrix
EPS = 2.0**-24  # half a unit in the last place of fp32, relative


@dataclass(frozen=True, slots=True)
class Merged:
    """Child, base and adapter over the `matrices` that the adapter changes, of which `rows` in `of_rows` were read.

    changed: entries that the merge changes or that differ between base and child; equal: of these, those where the
    child holds what the merge gives, bit for bit; within: those where it holds what the merge gives if its sums in
    fp32 are taken in some other order, as on another machine. `cosine` and `scale`: of D = child − base and
    the product P: ⟨D, P⟩/(‖D‖‖P‖) in [−1, 1] and ⟨D, P⟩/⟨P, P⟩; NaN of zeros.
    """

    matrices: int
    rows: int
    of_rows: int
    changed: int
    equal: int
    within: int
    cosine: float
    scale: float

    @property
    def exact(self) -> bool:
        """Whether the child holds the merge in every entry that was read, bit for bit."""
        return self.equal == self.changed > 0

    @property
    def found(self) -> bool:
        """Whether the child holds the merge in every entry that was read, up to the order of sums in fp32."""
        return self.within == self.changed > 0


def merged_adapter(child: Checkpoint, base: Checkpoint, adapter: Checkpoint, most: int = MOST_BYTES) -> Merged | None:
    """Hold child − base against an adapter's products, matrix by matrix; None where no factor fits a matrix of both.

    s = α/r (α/√r with `use_rslora`) of the adapter's config, or of its `alpha` tensors; 1 where neither says it. A
    merge rounds in one of a few ways (`_merges`), of which the one that gives most of the child's entries is taken for
    each matrix. most: bytes of child and base together.
    """
    found, factors = [*_places(child, base, adapter)], factors_of(adapter)
    width = sum(child[c].nbytes + base[b].nbytes for _, c, b in found)
    share = min(1.0, most / max(1, width))
    counts, sums = (0, 0, 0, 0, 0), torch.zeros(3, dtype=torch.float64)
    for module, name, of_base in found:
        shape = child[name].shape
        rows = max(1, math.floor(share * shape[0]))
        a, b = adapter.whole(factors[module])
        ours, theirs = (
            model.read([Slice(tensor, 0, rows * (child[name].count // shape[0]))])[0].reshape(rows, -1)
            for model, tensor in ((child, name), (base, of_base))
        )
        scale = _scale(adapter, module, factors[module][0], len(a))
        product, bound = _product(a, b, shape, rows) * scale, _product(a.abs(), b.abs(), shape, rows) * abs(scale)
        step = ours.double() - theirs.double()
        sums += torch.stack([(step * product.double()).sum(), step.square().sum(), product.double().square().sum()])
        error = (len(a) + 2) * EPS * bound + 2 * EPS * theirs.float().abs()
        found_here = [_agree(ours, theirs, made, error) for made in _merges(theirs, product, b.dtype)]
        changed, within, equal = max(found_here, key=lambda agree: agree[1:])
        counts = (
            counts[0] + rows, counts[1] + shape[0], counts[2] + changed, counts[3] + equal, counts[4] + within
        )  # fmt: skip
    if not found:
        return None
    return Merged(len(found), *counts, float(sums[0] / (sums[1] * sums[2]).sqrt()), float(sums[0] / sums[2]))


def _places(child: Checkpoint, base: Checkpoint, adapter: Checkpoint) -> Iterator[tuple[str, str, str]]:
    """Module of the adapter, the child's matrix that it changes, and the base's of the same name and shape."""
    ends, ours = by_ending(base), canonical_names(child)
    shorts = {name: short for short, name in canonical_names(base).items()}
    for module, (a, b) in sorted(factors_of(adapter).items()):
        of_base = matrix_of(module, ends)
        name = ours.get(shorts[of_base]) if of_base else None
        if of_base is None or name is None or child[name].shape != base[of_base].shape or _is_more(adapter, module):
            continue
        shape, inner = child[name].shape, math.prod(child[name].shape[1:])
        sizes = adapter[b].count // adapter[b].shape[1], adapter[a].count // adapter[a].shape[0]
        if len(shape) > 1 and sizes in ((shape[0], inner), (shape[1], shape[0])):
            yield module, name, of_base


def _is_more(adapter: Mapping[str, Any], module: str) -> bool:
    """Whether a module of the adapter is no plain LoRA: DoRA's magnitude."""
    return any(module in name and ("magnitude" in name or "dora_scale" in name) for name in adapter)


def _product(a: Tensor, b: Tensor, shape: tuple[int, ...], rows: int) -> Tensor:
    """The first rows of B·A in fp32, as the matrix is stored: (out, in), or (in, out) where only that fits."""
    a, b = a.float().reshape(len(a), -1), b.float().reshape(len(b), -1)
    if (len(b), a.shape[1]) == (shape[0], math.prod(shape[1:])):
        return b[:rows] @ a
    return (b @ a[:, :rows]).T


def _merges(base: Tensor, product: Tensor, adapter: torch.dtype) -> Iterator[Tensor]:
    """W + sBA in fp32; that in the base's dtype; the product in the adapter's dtype or in the base's, then the sum."""
    whole = base.float() + product
    yield whole
    yield whole.to(base.dtype)
    yield (base.float() + product.to(adapter).float()).to(base.dtype)
    yield base + product.to(base.dtype)


def _agree(child: Tensor, base: Tensor, made: Tensor, error: Tensor) -> tuple[int, int, int]:
    """Entries that differ between base and child, or base and merge; of these, where the child is the merge, and where
    it is between what the merge less and plus its error rounds to."""
    low, high = ((made.float() + sign * error).to(made.dtype).to(child.dtype) for sign in (-1, 1))
    made = made.to(child.dtype)
    changed = (made.float() != base.float()) | (child.float() != base.float())
    equal = changed & (made == child)
    return int(changed.sum()), int((changed & (low <= child) & (child <= high)).sum()), int(equal.sum())


def _scale(adapter: Checkpoint, module: str, name: str, rank: int) -> float:
    """α/r, as PEFT's config says it for a module, or the `alpha` beside its factor `name`; 1 where nothing says it."""
    config = adapter.adapter_config
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    beside = re.sub(r"\.lora[._].*$", ".alpha", name)
    if alpha is None and beside in adapter:
        alpha = float(adapter.whole([beside])[0])
    if not isinstance(alpha, (int, float)):
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(patterns: Any, path: str, otherwise: Any) -> Any:
    """The value of PEFT's first pattern that a module's path ends with."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error:  # a foreign text
            continue
    return otherwise
