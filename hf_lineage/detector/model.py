"""The Lineage Detector: pairs of matrices in, one score for each candidate out (Neural Lineage §4, S2.5).

    matrices of parent and child (P, 2, o, h) ─ encoder ─ token (P, width) ┐
    … one for each weight and each feature                                 ├ transformer layer ─ cls ─ score (P,)
    learnable cls token                                                    ┘

docs/methods.md, *Lineage Detector*.
Annotations are values here, not text: the Hub's mixin looks at them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..errors import ArgumentError

VERSION = 1  # of the network's shape and of what its inputs are
NO_PARENT = (None, "score", "token")
NORMS = ("question", "running")
SCALES = ("none", "child", "both")
LAYERS = ("encoder", "attention")
# of what a configuration, which may be anybody's, can ask for
MAX_SIZES = {"width": 4096, "heads": 256, "feed_forward": 65_536, "entries": 1 << 20, "probes": 1 << 16}
MIN_CHANGE = 1e-4  # root mean square change: below it, candidates are equally near


@dataclass(frozen=True)
class DetectorConfig:
    """The network's sizes, and which inputs of a model it was trained on.

    weights, features: where each input is taken, `"auto"` for the shallow one (`inputs.py`).
    heads: nn.Transformer's default, which the paper's "default settings" have. no_parent: `"score"`, a learnable scalar
    beside the scores (S1.2); `"token"`, a learnable cls output that goes through the head (the slides' code). scale:
    `"child"` divides both matrices of a pair by the child's root mean square, for networks of other scales; `"both"`
    adds a token for each input, of changes relative to the nearest candidate's (`LineageDetector.ranked`).
    layer: over the tokens, torch's `"encoder"` layer (S2.5.2), or `"attention"` alone (the slides' code).
    nearest: 0, as in the paper, or λ: a candidate's score is the best one less λ·log(r/r_min) with r the root mean
    square change (`farther`), so that the network decides on "none of these", and l2 on the order of the candidates.
    norm: batch norm by the `"question"`, the statistics of one child's candidates in evaluation too, or by `"running"`
    means, torch's default: with a batch of one child these belong to other children, and training saw its own.
    temperature: of the softmax, fitted on validation. entries: of each input that are read, at most; 1,048,576 takes
    the paper's whole matrices. probes: how many inputs features are computed on.
    """

    version: int = VERSION
    weights: tuple[str, ...] = ("auto",)
    features: tuple[str, ...] = ("auto",)
    width: int = 32
    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.1
    no_parent: str | None = None
    scale: str = "none"
    norm: str = "question"
    layer: str = "encoder"
    nearest: float = 0.0
    temperature: float = 1.0
    entries: int = 4096
    probes: int = 512

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ArgumentError(
                f"Expected a detector of version {VERSION}, got {self.version!r}.",
                "Train one with this release: hf-lineage train-detector, or name another.",
            )
        for name in ("weights", "features"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if not self.weights + self.features:
            raise ArgumentError("Expected a detector with a weight or a feature as input, got neither.")
        for name, known in (("no_parent", NO_PARENT), ("scale", SCALES), ("norm", NORMS), ("layer", LAYERS)):
            if getattr(self, name) not in known:
                raise ArgumentError(f"Expected {name} out of {known}, got {getattr(self, name)!r}.")
        sizes = {name: getattr(self, name) for name in MAX_SIZES}
        if not all(type(size) is int and 0 < size <= MAX_SIZES[name] for name, size in sizes.items()):
            bounds = ", ".join(f"{name} {most:,}" for name, most in MAX_SIZES.items())
            raise ArgumentError(f"Expected sizes above 0 and at most {bounds}, got {str(sizes)[:200]}.")
        if self.width % self.heads:
            raise ArgumentError(f"Expected a width that is a multiple of heads, got {self.width} and {self.heads}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0 and 0 <= self.dropout < 1):
            raise ArgumentError(f"Expected a temperature above 0 and dropout in [0, 1), got {self}.")
        if not 0 <= self.nearest < math.inf:
            raise ArgumentError(f"Expected `nearest` at least 0, got {self.nearest}.")


class Encoder(nn.Sequential):
    """(P, c, o, h) → (P, width): convolutions over a stack of matrices, 1×1 and 3×3 (S2.5.2)."""

    def __init__(self, width: int, running: bool = True, channels: int = 2) -> None:
        super().__init__(
            nn.Conv2d(channels, 3, 1),  # (P, 3, o, h): of an aligned pair, this sees each entry's change
            nn.BatchNorm2d(3, track_running_stats=running),
            nn.ReLU(),
            nn.Conv2d(3, width, 3, padding=1),  # (P, width, o, h)
            nn.BatchNorm2d(width, track_running_stats=running),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # (P, width, 1, 1)
            nn.Flatten(),  # (P, width)
        )


def _rms(matrices: Tensor) -> Tensor:
    return matrices.square().mean(dim=(2, 3), keepdim=True).sqrt()  # (P, 1, 1, 1)


def _same(pairs: Tensor) -> Tensor:
    return pairs


class _Attention(nn.Module):
    """Self-attention over tokens (P, 1 + inputs, width) alone: no residual, norm or feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.self_attn(tokens, tokens, tokens, need_weights=False)[0]


def farther(weights: Sequence[Tensor | None], features: Sequence[Tensor | None]) -> Tensor:
    """log(r/r_min) (P,), at least 0: mean over the weights known, or else the features, of the logarithm of r, the root
    mean square of parent − child."""
    known = [pairs for pairs in weights if pairs is not None] or [pairs for pairs in features if pairs is not None]
    logs = torch.stack([_rms(pairs[:, :1] - pairs[:, 1:]).clamp(min=MIN_CHANGE).log().flatten() for pairs in known])
    away = logs.mean(0)
    return away - away.min()


class LineageDetector(
    nn.Module, PyTorchModelHubMixin, library_name="hf_lineage", license="apache-2.0", tags=["model-lineage"],
    paper_url="https://openaccess.thecvf.com/content/CVPR2024/html/Yu_Neural_Lineage_CVPR_2024_paper.html",
):  # fmt: skip
    """Scores of the candidates of one child. `save_pretrained`, `from_pretrained` and `push_to_hub` are the Hub's.

    Laws, tested: the order of the candidates does not matter in eval mode; a saved detector scores the same when read.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        width, running = config.width, config.norm == "running"
        self.weight_encoder = Encoder(width, running) if config.weights else None
        self.feature_encoder = Encoder(width, running) if config.features else None
        self.weight_ranker = Encoder(width, running) if config.weights and config.scale == "both" else None
        self.feature_ranker = Encoder(width, running) if config.features and config.scale == "both" else None
        self.weight_types = nn.Parameter(0.02 * torch.randn(len(config.weights), width))
        self.feature_types = nn.Parameter(0.02 * torch.randn(len(config.features), width))
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.transformer = (
            _Attention(width, config.heads)
            if config.layer == "attention"
            else nn.TransformerEncoderLayer(width, config.heads, config.feed_forward, config.dropout, batch_first=True)
        )
        self.head = nn.Linear(width, 1)
        if config.no_parent:
            self.none = nn.Parameter(torch.zeros(width if config.no_parent == "token" else 1))

    def forward(self, weights: Sequence[Tensor | None], features: Sequence[Tensor | None]) -> Tensor:
        """Scores (P,), or (P + 1,) where the last one is that of "none of these".

        weights, features: (P, 2, o, h) each, parent first, o and h of its own; None where an input is unknown, whose
        token is then left out. `ArgumentError`: another number of inputs or of candidates than configured, NaN or Inf.
        """
        self._check(weights, features)
        weights, features = [*map(self.scaled, weights)], [*map(self.scaled, features)]
        tokens = [
            encoder(view(pairs)) + kind  # (P, width)
            for encoder, view, types, given in (
                (self.weight_encoder, _same, self.weight_types, weights),
                (self.feature_encoder, _same, self.feature_types, features),
                (self.weight_ranker, self.ranked, -self.weight_types, weights),  # of one input: the opposite type
                (self.feature_ranker, self.ranked, -self.feature_types, features),
            )
            for kind, pairs in zip(types, given, strict=True) if encoder is not None and pairs is not None
        ]  # fmt: skip
        sequence = torch.stack([self.cls.expand_as(tokens[0]), *tokens], dim=1)  # (P, 1 + inputs, width)
        cls = self.transformer(sequence)[:, 0].float()  # (P, width)
        cls = (cls - cls.mean()) / cls.std().clamp(min=1e-6)  # over candidates and width together
        if self.config.no_parent == "token":
            cls = torch.cat([cls, self.none[None]])  # (P + 1, width)
        scores = self.head(cls).squeeze(1)  # (P,) or (P + 1,)
        if self.config.nearest:
            away = farther(weights, features)  # (P,)
            best = scores[: len(away)].max()
            scores = torch.cat([best - self.config.nearest * away, scores[len(away) :]])
        return torch.cat([scores, self.none]) if self.config.no_parent == "score" else scores

    def probabilities(self, scores: Tensor) -> Tensor:
        """softmax(scores / temperature): calibrated on validation, sums to 1. (P,) or (P + 1,)"""
        return (scores.double() / self.config.temperature).softmax(0)

    def scaled(self, pairs: Tensor | None) -> Tensor | None:
        """(P, 2, o, h) → the same; divided by the child's root mean square over the matrix, if configured."""
        if self.config.scale == "none" or pairs is None:
            return pairs
        return pairs / _rms(pairs[:, 1:]).clamp(min=1e-12)

    @staticmethod
    def ranked(pairs: Tensor) -> Tensor:
        """(P, 2, o, h) → child + log(r/r_min)·d/r and the child, d = parent − child, r its root mean square.

        The nearest candidate becomes the child itself, at any distance.
        """
        child = pairs[:, 1:]  # (P, 1, o, h)
        change = pairs[:, :1] - child  # (P, 1, o, h)
        size = _rms(change).clamp(min=MIN_CHANGE)  # (P, 1, 1, 1)
        return torch.cat([child + (size / size.min()).log() * change / size, child], dim=1)

    def _check(self, weights: Sequence[Tensor | None], features: Sequence[Tensor | None]) -> None:
        for name, inputs in (("weights", weights), ("features", features)):
            if len(inputs) != len(getattr(self.config, name)):
                raise ArgumentError(f"Expected {len(getattr(self.config, name))} {name}, got {len(inputs)}.")
        given = [pairs for pairs in (*weights, *features) if pairs is not None]
        shapes = [tuple(pairs.shape) for pairs in given]
        if not given or any(len(shape) != 4 or shape[1] != 2 or 0 in shape for shape in shapes):
            raise ArgumentError(f"Expected pairs of matrices, (candidates, 2, o, h), got {shapes or 'nothing'}.")
        if any(shape[0] * shape[2] * shape[3] < 2 for shape in shapes):
            raise ArgumentError(f"Expected more than one entry, got {shapes}: nothing could be standardised.")
        if len({shape[0] for shape in shapes}) > 1:
            raise ArgumentError(f"Expected every input of as many candidates, got {shapes}.")
        if not all(bool(pairs.isfinite().all()) for pairs in given):
            raise ArgumentError("Expected finite weights and features, got NaN or Inf. Leave that candidate out.")
