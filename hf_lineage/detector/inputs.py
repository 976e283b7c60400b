"""The inputs of a Lineage Detector: a few matrices, cut from weights and features (docs/methods.md).

Every tensor is vectorised and reshaped to a nearly square matrix (S2.5.1). Of a large one with n entries only `entries`
are taken, in runs of √entries neighbours, one run at a random position in each of as many equal parts. The positions
depend on n alone, so parent and child stay aligned, and nothing but these runs is read from a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice
from ..errors import ArgumentError, CheckpointError
from ..features.evidence import Settings, candidate_network, probes_for, run
from ..features.networks import BACKBONE, Network, head_of, taps, upstream
from .model import DetectorConfig

AUTO = "auto"
_BESIDE = re.compile(r"(^|\.)(downsample|shortcut)\.")  # a block's bypass, registered behind its last convolution


@dataclass(frozen=True, slots=True)
class DetectorInputs:
    """One model's matrices (o, h), of weights and of features.

    kind: the network's class.  shapes: of the whole tensors, which must agree between parent and child.  names: of the
    tensors in the checkpoint and of the taps.
    """

    kind: str
    weights: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]


def read_inputs(checkpoint: Checkpoint, config: DetectorConfig, settings: Settings) -> DetectorInputs:
    """Read and run a model as far as the detector needs; `settings.probes` are the same for all models of a question.

    Raises `CheckpointError` or `ArgumentError` where it cannot be run, has no such tensor, or has NaN or Inf.
    """
    network = candidate_network(checkpoint, settings)
    paths = tap_names(network, config.features)
    keys = [weight_names(network, checkpoint, name) for name in config.weights]
    weights = tuple(cut_from(checkpoint, each, config.entries) for each in keys)
    found = run(network, checkpoint, probes_for(network, settings), paths, settings) if paths else {}
    features = tuple(matrix(found[path].cpu(), config.entries) for path in paths)
    names = (*(each[0] if len(each) == 1 else BACKBONE for each in keys), *paths)
    for name, values in zip(names, (*weights, *features), strict=True):
        if not bool(values.isfinite().all()):
            raise CheckpointError(
                f"Expected finite values of `{checkpoint.ref.name}`, got NaN or Inf in {name!r}. Export it again."
            )
    sizes = [checkpoint[each[0]].shape if len(each) == 1 else (_count(checkpoint, each),) for each in keys]
    shapes = (*sizes, *(tuple(found[path].shape) for path in paths))
    return DetectorInputs(type(network.module).__name__, weights, features, shapes, names)


def tap_names(network: Network, names: Sequence[str]) -> list[str]:
    """Module paths for the features a detector takes; `"auto"` is the network's shallow tap, `"backbone"` what its head
    is given (S2.5.1)."""
    return [*taps(network, [network.tap if name == AUTO else name for name in names])] if names else []


def weight_names(network: Network, checkpoint: Checkpoint, name: str) -> list[str]:
    """The checkpoint's keys of a weight; `"auto"`: of the last matrix in front of the shallow tap; `"backbone"`: of all
    parameters but the head's, in the network's order, one vector (S2.5.1).

    The first is the first linear layer of a fully connected network, the last convolution of the first residual block
    and the last linear layer of the first transformer block: what S2.1.2 and S2.3.2 take.
    """
    if name == BACKBONE:
        head = f"{head_of(network.module)}."
        names = [n for n, _ in network.module.named_parameters() if not n.startswith(head) and n in network.names]
        if not names:
            raise CheckpointError(f"Expected parameters beside the head in `{checkpoint.ref.name}`, found none.")
        return [network.names[n] for n in names]
    return [_weight_name(network, checkpoint, name)]


def _weight_name(network: Network, checkpoint: Checkpoint, name: str) -> str:
    if name != AUTO:
        key = network.names.get(name, name)
        if key not in checkpoint:
            raise ArgumentError(
                f"Expected a tensor {name!r} in `{checkpoint.ref.name}`, found none. Its network's are, for example, "
                f"{', '.join([*network.names][:4])}."
            )
        return key
    parameters = dict(network.module.named_parameters())
    before = [n for n in upstream(network.module, network.tap) if n in parameters and parameters[n].ndim > 1]
    known = [n for n in before if n in network.names and not _BESIDE.search(n)]
    if not known:
        raise CheckpointError(
            f"Expected a matrix in front of {network.tap!r} in `{checkpoint.ref.name}`, found none. "
            "Use a detector that reads features alone."
        )
    return network.names[known[-1]]


def runs(count: int, entries: int) -> tuple[list[int], int]:
    """(where each run of neighbours starts, its length): the rows of a near-square matrix of at most `entries`.

    >>> runs(10, 100)
    ([0, 3, 6], 3)
    """
    rows = math.isqrt(min(count, entries))
    if count <= entries:
        length = count // max(rows, 1)
        return [row * length for row in range(rows)], length
    free = count / rows - rows  # in each part, beside its run; a fixed stride would meet the same columns again
    shift = torch.rand(rows, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * free
    return [int(row * (count / rows) + float(shift[row])) for row in range(rows)], rows


def matrix(values: Tensor, entries: int) -> Tensor:
    """Any tensor → its runs as the rows of a matrix (o, h), float32."""
    flat = values.reshape(-1)
    starts, length = runs(flat.numel(), entries)
    if not starts:
        raise ArgumentError(f"Expected a tensor with entries, got shape {tuple(values.shape)}.")
    return flat[torch.tensor(starts)[:, None] + torch.arange(length)].float()


def cut_from(checkpoint: Checkpoint, keys: Sequence[str], entries: int) -> Tensor:
    """The same of a checkpoint's tensors, one behind the other, of which nothing else is read."""
    starts, length = runs(_count(checkpoint, keys), entries)
    if not starts:
        raise CheckpointError(f"Expected {keys[0]!r} of `{checkpoint.ref.name}` to hold entries, found none.")
    slices, begin = [], 0
    for key in keys:  # a run may go on in the next tensor
        end = begin + checkpoint[key].count
        cut = [(max(start, begin), min(start + length, end)) for start in starts]
        slices += [Slice(key, first - begin, last - begin) for first, last in cut if first < last]
        begin = end
    return torch.cat([part.float().reshape(-1) for part in checkpoint.read(slices)]).view(len(starts), length)


def _count(checkpoint: Checkpoint, keys: Sequence[str]) -> int:
    return sum(checkpoint[key].count for key in keys)


def pair(parents: Sequence[Tensor], child: Tensor) -> Tensor:
    """Matrices of P parents and of the child → (P, 2, o, h), the parent first."""
    return torch.stack([torch.stack([parent, child]) for parent in parents])
