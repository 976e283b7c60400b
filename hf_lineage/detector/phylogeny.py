"""The Phylogeny Detector (Neural Phylogeny, ICLR 2025): a set of models in, the scores of each pair out.

One token per model from its weights, a transformer over the set, and one state for each ordered pair, which gets the
two tokens, the two models' stacked weights, and, by attention around its child and around its parent, the pairs
that share a model with it. The scores do not depend on the order of the models; the network takes any number of them,
and matrices of any size. docs/methods.md, *Phylogeny*.

M models, T matrices cut to o×h (`ModelSet`), W the width. A pair (i, j) asks: is i the parent of j?
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..errors import CheckpointError
from .model import Encoder
from .sets import CORNERS, SCALES, Corners, ModelSet, scales, stack, standard

VERSION = 1
SHIPPED = Path(__file__).parent / "shipped" / "phylogeny"
MAX_TRIPLES = 1 << 20  # of models computed together: about 400 MB
MAX_SCORE = 10.0  # nats: beyond it, the sums over forests lose their digits


@dataclass(frozen=True)
class PhylogenyConfig:
    """Sizes, and which inputs a pair has beside its two tokens: `scales`, `triples`, `stacks` (docs/benchmarks.md)."""

    version: int = VERSION
    width: int = 32
    heads: int = 4
    layers: int = 2
    near: int = 4  # candidates of each child, by information, of which the stacked weights are used
    matrices: int = 4  # T, at most
    size: int = 24  # o and h, at most
    scales: bool = True
    triples: bool = True
    stacks: bool = False


def _feed_forward(width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)


class Triangle(nn.Module):
    """Attention among pairs that share one model, their anchor a, with the angles of the triangle they make."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)
        self.lean = nn.Linear(CORNERS, heads)
        self.out = nn.Linear(width + heads * CORNERS, width)

    def forward(self, z: Tensor, corners: Corners) -> Tensor:
        """z: (M, M, W), of anchor a and another model → the update of each pair (a, m) from all (a, k), (M, M, W)."""
        count = len(z)
        q, k, v = self.ask(self.norm(z)).view(count, count, 3, self.heads, -1).unbind(2)  # (a, m, H, W/H)
        diagonal = torch.eye(count, dtype=torch.bool, device=z.device)
        updates = []
        for a in torch.arange(count, device=z.device).split(max(1, MAX_TRIPLES // count**2)):
            shape = corners[a]  # (a, m, k, F)
            weights = torch.einsum("amhc,akhc->amkh", q[a], k[a]) * q.shape[-1] ** -0.5 + self.lean(shape)
            weights = weights.masked_fill(diagonal[a][:, None, :, None], -torch.inf).softmax(2)  # (a, m, k, H)
            values = torch.einsum("amkh,akhc->amhc", weights, v[a]).flatten(2)  # (a, m, W)
            shapes = torch.einsum("amkh,amkf->amhf", weights, shape).flatten(2)  # (a, m, FH)
            updates.append(self.out(torch.cat([values, shapes], 2)))
        return torch.cat(updates)  # (a, m, W)


class Block(nn.Module):
    """One round: around the child, around the parent, then each pair by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.child, self.parent = Triangle(width, heads), Triangle(width, heads)
        self.own = nn.Sequential(nn.LayerNorm(width), *_feed_forward(width))

    def forward(self, z: Tensor, corners: Corners) -> Tensor:
        z = z + self.child(z.transpose(0, 1), corners).transpose(0, 1)  # (M, M, W)
        z = z + self.parent(z, corners)
        return z + self.own(z)


class PhylogenyDetector(
    nn.Module, PyTorchModelHubMixin, library_name="hf_lineage", tags=["model-provenance"], license="apache-2.0",
):  # fmt: skip
    """Scores of every ordered pair of a set, and of "no parent".

    Laws, tested: models in another order give the same scores in that order; a saved detector scores the same.
    """

    def __init__(self, config: PhylogenyConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config = config if isinstance(config, PhylogenyConfig) else _config(config or {})
        self._hub_mixin_config = asdict(config)  # what the mixin writes, also where none was given
        width = config.width
        self.token = Encoder(width, channels=1)
        layer = nn.TransformerEncoderLayer(width, config.heads, 4 * width, batch_first=True)
        self.among = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.parent, self.child = nn.Linear(width, width), nn.Linear(width, width)
        if config.stacks:
            self.stacked = Encoder(width)
        if config.scales:
            self.scale = nn.Sequential(nn.Linear(SCALES, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers if config.triples else 0))
        self.mix = nn.Sequential(nn.LayerNorm(width), *_feed_forward(width))
        self.score, self.none = nn.Linear(width, 1), nn.Linear(2 * width, 1)

    def forward(self, models: ModelSet) -> tuple[Tensor, Tensor]:
        """(M, M) scores of "i is the parent of j", −inf on the diagonal; (M,) of "j has no parent here"; nats."""
        crops = [standard(c.float()) for c in models.crops]
        x = torch.stack([self.token(c[:, None]) for c in crops]).mean(0)  # (M, W)
        x = self.among(x[None])[0]
        z = self.parent(x)[:, None] + self.child(x)[None]  # (M, M, W)
        if self.config.scales:
            z = z + self.scale(scales(models))
        if self.config.stacks:
            z = z + self._stacks(crops, models.information)
        corners = Corners(models, MAX_TRIPLES) if self.blocks else None
        for block in self.blocks:
            z = block(z, corners)
        z = z + self.mix(z)
        diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
        best = z.masked_fill(diagonal[..., None], -torch.inf).amax(0)  # (M, W) of each child
        scores = MAX_SCORE * torch.tanh(self.score(z)[..., 0] / MAX_SCORE)
        none = MAX_SCORE * torch.tanh(self.none(torch.cat([x, best], 1))[:, 0] / MAX_SCORE)
        return scores.masked_fill(diagonal, -torch.inf), none

    def _stacks(self, crops: list[Tensor], information: Tensor) -> Tensor:
        """The stacked weights of near pairs as tokens, (M, M, W); 0 for far ones."""
        count = len(information)
        far = information.masked_fill(torch.eye(count, dtype=torch.bool, device=information.device), -torch.inf)
        close = torch.zeros_like(far, dtype=torch.bool)
        close.scatter_(0, far.topk(min(self.config.near, count - 1), 0).indices, True)
        i, j = (close | close.T).nonzero(as_tuple=True)
        tokens = torch.stack([self.stacked(stack(c[i], c[j])) for c in crops]).mean(0)  # (pairs, W)
        return tokens.new_zeros(count, count, self.config.width).index_put((i, j), tokens)


def _config(stated: dict[str, Any]) -> PhylogenyConfig:
    known = {field.name for field in fields(PhylogenyConfig)}
    version = stated.get("version", VERSION)
    if version != VERSION or not stated.keys() <= known:
        raise CheckpointError(
            f"Expected the config of a Phylogeny Detector of version {VERSION}, got version {version} with "
            f"{', '.join(sorted(stated.keys() - known)) or 'the usual fields'}.",
            "Update hf_lineage, or train it again: python -m hf_lineage.experiments.phylogeny_detector FOLDER.",
        )
    return PhylogenyConfig(**stated)


def load(folder: str | Path = SHIPPED) -> PhylogenyDetector:
    """The detector in a folder, by default the shipped one, in eval mode.

    Raises `CheckpointError` for missing files, another version, or weights that do not fit the config.
    `PhylogenyDetector.from_pretrained` also loads one from the Hub, without these checks.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"Expected a Phylogeny Detector in {folder}, got no {' and no '.join(missing)}. Give the folder that "
            "`save_pretrained` wrote."
        )
    detector = PhylogenyDetector(_config(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    stated, wanted = load_file(folder / "model.safetensors"), detector.state_dict()
    if wrong := [
        name for name in sorted(stated.keys() | wanted.keys())
        if name not in stated or name not in wanted or stated[name].shape != wanted[name].shape
    ]:  # fmt: skip
        raise CheckpointError(
            f"Expected the weights that {folder}/config.json describes, got {len(wrong)} missing or of other shapes, "
            f"first {wrong[0]}. Save the detector again."
        )
    detector.load_state_dict(stated)
    return detector.eval()
