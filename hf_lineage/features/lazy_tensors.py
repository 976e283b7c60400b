"""Lazy tensors by a network's names: of a candidate, of the child in their positions, and between the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..architecture.align import Alignment
from ..architecture.structure import cuts
from ..checkpoints.checkpoint import Checkpoint, Wrapper
from ..checkpoints.entry import Slice
from ..placement import Layout, sent
from .networks import Network, weights


class CheckpointTensors(Mapping[str, Tensor]):
    """A network's tensors, each read from its checkpoint when it is requested; float32."""

    def __init__(self, network: Network, checkpoint: Checkpoint) -> None:
        self._network, self._checkpoint = network, checkpoint

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._network.names:
            raise KeyError(name)
        return weights(self._network, self._checkpoint, [name])[name]

    def __contains__(self, name: object) -> bool:  # the default of a mapping would read the tensor
        return name in self._network.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._network.names)

    def __len__(self) -> int:
        return len(self._network.names)


class ChildTensors(Mapping[str, Tensor]):
    """The child's tensors by the names of a candidate's network, where the two line up entry by entry.

    `child` has its fused tensors cut, as the alignment has: a tensor that one side fuses and the other does not is
    concatenated from its parts along rows.
    """

    def __init__(self, network: Network, candidate: Checkpoint, child: Checkpoint, alignment: Alignment) -> None:
        self._network, self._candidate, self._child = network, candidate, child
        ours = {its: mine for mine, its in alignment.pairs.items() if mine not in alignment.grown}
        fused = cuts(candidate)
        self._parts: dict[str, list[str]] = {}
        for name, tensor in network.names.items():
            labels = [f"{tensor}[{label}]" for label, _, _ in fused.get(tensor, ())]
            parts = [ours.get(part) for part in (labels if labels and labels[0] in ours else [tensor])]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts) and sum(child[part].count for part in known) == candidate[tensor].count:
                self._parts[name] = known

    @property
    def share(self) -> float:
        """Share of the candidate's parameters, by elements, that the child has too, in [0, 1]."""
        counts = {name: tensor.numel() for name, tensor in self._network.module.named_parameters()}
        return sum(counts.get(name, 0) for name in self) / max(1, sum(counts.values()))

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._child.whole(self._parts[name])
        shape = self._candidate[self._network.names[name]].shape
        return torch.cat([piece.float().flatten() for piece in pieces]).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class KeptTensors(Mapping[str, Tensor]):
    """Lazy tensors of which those with a place in `layout` stay there once they were read."""

    def __init__(self, tensors: Mapping[str, Tensor], layout: Layout) -> None:
        self._tensors, self._layout = tensors, layout
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        device, value = self._layout.keeps_at(name), self._tensors[name]
        if device is not None:
            self._kept[name] = value = sent(value, device)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class InterpolatedTensors(Mapping[str, Tensor]):
    """θ + α(θ′ − θ) where there is a θ′, else θ."""

    def __init__(self, start: Mapping[str, Tensor], end: Mapping[str, Tensor], step: float) -> None:
        self._start, self._end, self._step = start, end, step

    def __getitem__(self, name: str) -> Tensor:
        value = self._start[name]
        if name not in self._end or not value.is_floating_point():
            return value
        return torch.lerp(value, self._end[name].to(value), self._step)

    def __contains__(self, name: object) -> bool:
        return name in self._start

    def __iter__(self) -> Iterator[str]:
        return iter(self._start)

    def __len__(self) -> int:
        return len(self._start)


class CachedCheckpoint(Wrapper):
    """A checkpoint that keeps read tensors in `tensors`, so that a block is read once for all candidates."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, dict(checkpoint))
        self.tensors: dict[str, Tensor] = {}

    def read(self, slices: Sequence[Slice]) -> list[Tensor]:
        return self._checkpoint.read(slices)

    def whole(self, names: Sequence[str]) -> list[Tensor]:
        new = [name for name in names if name not in self.tensors]
        self.tensors.update(zip(new, self._checkpoint.whole(new), strict=True))
        return [self.tensors[name] for name in names]


def inside(module: nn.Module, path: str) -> dict[str, str]:
    """Parameters and buffers of a part by their names in it → the names that `networks.weights` knows them by."""
    first = {id(tensor): name for kind in (module.named_parameters, module.named_buffers) for name, tensor in kind()}
    part = module.get_submodule(path)
    return {name: first[id(t)] for kind in (part.named_parameters, part.named_buffers) for name, t in kind()}
