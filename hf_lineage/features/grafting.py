"""Which candidate each block of the child came from, by its features: Neural Lineage (CVPR 2024), Fig. 1c and S2.7.

The child's block i is replaced by block i of a candidate, linearised towards the child's. Both get the input of the
child's block, and their outputs are compared. The child runs once, and each block of a candidate once, while the input
of the child's block is in memory; so no two blocks of one model are. docs/methods.md, *Block origins* and
*Learning-free features*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from posixpath import commonpath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..answers.base import Progress
from ..architecture.align import Alignment
from ..architecture.describe import block_of
from ..checkpoints.checkpoint import Checkpoint
from ..errors import LineageError
from .evidence import (
    InMemoryLinearisation,
    Settings,
    candidate_network,
    compare_at_taps,
    module_in_memory,
    probes_for,
    running,
    score_at_common_step,
)
from .forward import Arguments, batches, flat, mapped, settled, tensor_of, visit
from .lazy_tensors import CachedCheckpoint, CheckpointTensors, ChildTensors, inside
from .linearize import check_finite
from .networks import Network, build, run_inputs, taps, weights
from .similarity import metric as known
from .streaming import streamed_weights

MAX_TOKENS = 64  # of a block's output (N, tokens, width) that are compared, the first ones: S2.7
BATCH = 32  # probes that go through a candidate's block together
Facts = dict[str, Any]
Rows = tuple[Callable[[int], Facts | None], Callable[[Sequence[Facts]], None]]  # one candidate's row; then all rows
FACT_KEYS = ("step", "taylor_step", "own_step", "curvature", "features", "scores")  # of one block of one candidate


@dataclass(frozen=True, slots=True)
class Grafts:
    """The similarity of each candidate's blocks and the child's, on the child's inputs.

    blocks: module paths of the child, in the order they ran; names: their path prefixes in its checkpoint.
    found: candidate → for each block its `FACT_KEYS`, with the scores of every metric as {"plain", "taylor", "exact"};
    None where it has no such block or one of other shapes.  refused: candidate → why it could not be run at all.
    """

    blocks: tuple[str, ...]
    names: tuple[str, ...]
    found: dict[int, tuple[dict[str, Any] | None, ...]]
    refused: dict[int, str]


def graft(
    child: Checkpoint, view: Checkpoint, candidates: Sequence[tuple[Checkpoint, Alignment]], settings: Settings,
    progress: Progress | None = None,
) -> Grafts:  # fmt: skip
    """Compare every block of the child with each candidate's, both on the output of the child's blocks before it.

    view: the child with its fused tensors cut, as the alignments (child's tensor → candidate's) are.  settings: `taps`
    is not used.  progress: counts blocks. The child is read twice, each candidate's blocks once, their stems and heads
    never. Several processes share no work: each does all of it, with the same answer. Blocks without parameters, such
    as activations, are not compared; where an operator has no forward derivative, the block's scores are those of
    `settings.metric` in Taylor's form.
    Raises what `evidence.run_child` does, of the child; a candidate's `LineageError` is in `refused` if none of its
    blocks could be compared, and leaves the block None otherwise.
    """

    def compare(
        graft: Callable[[int, Settings], InMemoryLinearisation | None], path: str, G: Tensor, chosen: Settings
    ) -> Rows:
        def row(i: int) -> Facts | None:
            side = graft(i, chosen)
            return compare_at_taps(side, [""], [path], {path: G}, chosen)[0][0] if side else None

        return row, lambda rows: score_at_common_step(rows, chosen)

    return _walk(child, view, candidates, settings, compare, progress)


def outputs(
    child: Checkpoint, view: Checkpoint, candidates: Sequence[tuple[Checkpoint, Alignment]], settings: Settings,
    judge: Callable[[Sequence[Tensor], Tensor], Sequence[float]], name: str, progress: Progress | None = None,
) -> Grafts:  # fmt: skip
    """As `graft`, without a derivative: `judge([F of each candidate], G)` scores the outputs of the blocks.

    F, G: (N, K). The scores are under `name`, as a metric's would be.
    """

    def compare(
        graft: Callable[[int, Settings], InMemoryLinearisation | None], path: str, G: Tensor, chosen: Settings
    ) -> Rows:
        def row(i: int) -> Facts | None:
            side = graft(i, chosen)
            F = side.plain([""])[""].F if side else None
            if F is not None:
                check_finite({path: F}, "the candidate")
            steps = dict.fromkeys(("step", "taylor_step", "own_step", "curvature"))
            return {**steps, "features": G.shape[1], "F": F} if side else None

        def settle_all(rows: Sequence[Facts]) -> None:
            scores = judge([each.pop("F") for each in rows], G) if rows else []
            for each, score in zip(rows, scores, strict=True):
                each["scores"] = {name: {"plain": score, "taylor": None, "exact": score}}

        return row, settle_all

    return _walk(child, view, candidates, settings, compare, progress)


def _walk(
    child: Checkpoint, view: Checkpoint, candidates: Sequence[tuple[Checkpoint, Alignment]], settings: Settings,
    compare: Callable[..., Rows], progress: Progress | None,
) -> Grafts:  # fmt: skip
    """Run the child once; at each block `compare` makes a row for each candidate, then finishes all rows together."""
    network = build(child, module_in_memory(child, settings))
    given = probes_for(network, settings)
    paths = [path for path in taps(network, "blocks") if path in _blocks(network)]
    cached = CachedCheckpoint(view)
    others: dict[int, _CandidateBlocks] = {}
    refused: dict[int, str] = {}
    for i, (checkpoint, alignment) in enumerate(candidates):
        try:
            others[i] = _CandidateBlocks(network, checkpoint, cached, alignment, settings)
        except LineageError as error:
            refused[i] = error.note
    rows: dict[str, dict[int, Facts]] = {}

    def take(path: str, arguments: Arguments, output: Tensor) -> None:
        if progress:
            progress(len(rows), len(paths), f"grafting {path}")
        G = flat(_first(output), len(given))
        check_finite({path: G}, "the child")
        row, settle_all = compare(lambda i, how: others[i].side(path, arguments, G, how), path, G, settings)
        compared = {i: candidate.guarded(row, i, given) for i, candidate in others.items()}
        rows[path] = {i: facts for i, facts in compared.items() if facts}
        settle_all([*rows[path].values()])
        cached.tensors.clear()

    places = settings.placement
    runs = places.layout(network.module, network.blocks).runs
    with (
        running(child, given), settled(network.module), torch.no_grad(),
        streamed_weights(network.module, CheckpointTensors(network, child), None, runs) as call,
    ):  # fmt: skip
        for _, arguments in batches(network.module, run_inputs(network, given), len(given), places.main):
            visit(network.module, paths, take, partial(call, *arguments))
    if progress:
        progress(len(rows), len(rows), "grafting")
    found: dict[int, tuple[Facts | None, ...]] = {}
    for i, candidate in others.items():
        if candidate.why and not any(i in each for each in rows.values()):
            refused[i] = candidate.why
        else:
            found[i] = tuple({key: each[i][key] for key in FACT_KEYS} if i in each else None for each in rows.values())
    return Grafts(tuple(rows), tuple(_name(network, path) for path in rows), found, dict(sorted(refused.items())))


def origins(grafts: Grafts, metric: str) -> np.ndarray:
    """The matching probabilities softmax_p (s_p − mean s)/P over the P candidates compared (S2.7), in [0, 1].

    (child blocks × candidates) float64, NaN where nothing was compared. s is the score after the step, exact where
    there is one, else Taylor's. The rest of a row sums to 1, also where no candidate is the block's origin: the set is
    closed. Raises `ArgumentError` for an unknown metric.
    """
    if not any(each and metric in each["scores"] for facts in grafts.found.values() for each in facts):
        known(metric)
    result = np.full((len(grafts.blocks), len(grafts.found) + len(grafts.refused)), np.nan)
    for i, facts in grafts.found.items():
        for block, each in enumerate(facts):
            score = each["scores"].get(metric) if each else None
            last = [value for value in (score["exact"], score["taylor"]) if value is not None] if score else []
            result[block, i] = last[0] if last else np.nan
    for row in result:
        compared = np.flatnonzero(np.isfinite(row))
        if len(compared):
            scores = row[compared] / len(compared)
            powers = np.exp(scores - scores.max())  # centring cancels in the quotient, and this way nothing overflows
            row[compared] = powers / powers.sum()
    return result


class _CandidateBlocks:
    """One candidate, whose blocks are read when they are grafted. `why`: the error of the first block that failed."""

    def __init__(
        self, child: Network, checkpoint: Checkpoint, cached: CachedCheckpoint, alignment: Alignment, settings: Settings
    ) -> None:
        self._child, self._checkpoint = child, checkpoint
        self._network = candidate_network(checkpoint, settings)
        self._partners = ChildTensors(self._network, checkpoint, cached, alignment)
        self._positions = _positions(child, self._network)
        self.why: str | None = None

    def side(self, path: str, arguments: Arguments, G: Tensor, settings: Settings) -> InMemoryLinearisation | None:
        """The candidate's block for the child's at `path`, on the child's inputs and where its outputs `G` are; None
        where none fits."""
        theirs = self._positions.get(path)
        if theirs is None or not self._fits(theirs, path):
            return None
        count, there = len(G), mapped(lambda value: value.to(G.device), arguments)
        module = _Graft(self._network.module.get_submodule(theirs), there, count)
        values, delta = self._weights(theirs, G.device)
        return InMemoryLinearisation(module, values, delta, torch.arange(count), settings, _batch(there, count))

    def guarded(self, row: Callable[[int], Facts | None], i: int, given: Tensor) -> Facts | None:
        """`row(i)`; None, and `why`, where the candidate's block cannot be run."""
        try:
            with running(self._checkpoint, given):
                return row(i)
        except LineageError as error:
            self.why = self.why or str(error)
            return None

    def _fits(self, theirs: str, path: str) -> bool:
        """Whether the parameters of both blocks align one by one, and running statistics are stored."""
        stored = inside(self._network.module, theirs)
        part, ours = self._network.module.get_submodule(theirs), self._child.module.get_submodule(path)
        same_size = sum(t.numel() for t in part.parameters()) == sum(t.numel() for t in ours.parameters())
        stored_all = not any(name in self._network.missing for name in stored.values())
        return same_size and stored_all and all(stored[name] in self._partners for name, _ in part.named_parameters())

    def _weights(self, theirs: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The block's tensors and Δ, by the names of a `_Graft`."""
        stored = inside(self._network.module, theirs)
        read = weights(self._network, self._checkpoint, [*stored.values()], device)
        values = {f"block.{name}": read[tensor] for name, tensor in stored.items()}
        moving = [name for name, _ in self._network.module.get_submodule(theirs).named_parameters()]
        parts = {f"block.{name}": self._partners[stored[name]] for name in moving}
        return values, {name: value.to(device) - values[name] for name, value in parts.items()}


class _Graft(nn.Module):
    """A block that is called on some of the probes, given by number, with the arguments of the child's block."""

    def __init__(self, block: nn.Module, arguments: Arguments, count: int) -> None:
        super().__init__()
        self.block, self.arguments, self.count = block, arguments, count

    def forward(self, rows: Tensor) -> Tensor:
        args, kwargs = mapped(lambda v: v[rows] if v.ndim and len(v) == self.count else v, self.arguments)
        return _first(tensor_of("", self.block(*args, **kwargs)))


def _batch(arguments: Arguments, count: int) -> int:
    """Probes that may go through a block together: all of them where a tensor's first axis may not be the probes'.

    Examples: positions (by chance as many as probes), and heads folded into the axis of probes (BLOOM).
    """
    shapes: list[tuple[int, ...]] = []

    def note_shape(value: Tensor) -> Tensor:
        shapes.append(tuple(value.shape))
        return value

    mapped(note_shape, arguments)
    plain = all(shape[0] in (1, count) and count not in shape[1:] for shape in shapes if shape)
    return BATCH if plain else count


def _first(output: Tensor) -> Tensor:
    """(N, tokens, width) → (N, first tokens, width); feature maps and vectors whole."""
    return output[:, :MAX_TOKENS] if output.ndim == 3 else output


def _blocks(network: Network) -> tuple[str, ...]:
    """The blocks with parameters: without any, all models have the same block."""
    return tuple(path for path in network.blocks if [*network.module.get_submodule(path).parameters()])


def _positions(child: Network, candidate: Network) -> dict[str, str]:
    """The child's block → the candidate's: of the same path or, where none is the same, at the same place."""
    ours, theirs = _blocks(child), _blocks(candidate)
    if {*ours} & {*theirs}:
        return {path: path for path in ours if path in theirs}
    return dict(zip(ours, theirs, strict=False))


def _name(network: Network, path: str) -> str:
    """The block's path prefix in its checkpoint, which other versions of a library spell in another way."""
    stored = [network.names[name] for name in inside(network.module, path).values() if name in network.names]
    shared = commonpath([name.rpartition(".")[0].replace(".", "/") for name in stored])
    return block_of(stored[0]) or shared.replace("/", ".")
