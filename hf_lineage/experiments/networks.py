"""The real classes at small sizes, freshly initialised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..features.perceptron import FullyConnected
from .glyphs import SIDE

VOCAB = {"llama": 128, "bert": 2048}  # bytes of ASCII, and hashed words


class Apart(FullyConnected):
    """The same with a separate ReLU after each layer, `relu`, `relu2`, …, so that each can be tapped (Table S5)."""

    def __init__(self, inputs: int, widths: Sequence[int], classes: int) -> None:
        super().__init__(inputs, widths, classes)
        head = self._modules.pop("head")  # the last again: what stands before a tap is taken to run before it
        for index in range(2, len(widths) + 1):
            self.add_module(f"relu{index}", nn.ReLU())
        self.add_module("head", head)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.get_submodule("fc1")(images.flatten(1)))
        for name, layer in self.named_children():
            if name.startswith("fc") and name != "fc1":
                hidden = self.get_submodule(name.replace("fc", "relu"))(layer(hidden))
        return self.head(hidden)


def build(architecture: str, classes: int, sizes: dict[str, Any]) -> nn.Module:
    """A freshly initialised network of the real class; `classes` is the vocabulary for causal text."""
    if architecture == "fc":
        return FullyConnected(sizes.get("side", SIDE) ** 2, sizes["widths"], classes)
    if architecture in VOCAB:
        return _build_text(architecture, classes, sizes)
    if architecture == "vit":
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(img_size=28, in_chans=1, num_classes=classes, **sizes)
    from timm.models.resnet import BasicBlock, ResNet

    sizes = {name: size for name, size in sizes.items() if name != "side"}  # it takes images of any
    return ResNet(BasicBlock, in_chans=1, num_classes=classes, **sizes)


def _build_text(architecture: str, classes: int, sizes: dict[str, Any]) -> nn.Module:
    import transformers

    common: dict[str, Any] = {"vocab_size": VOCAB[architecture], "max_position_embeddings": 128, **sizes}
    config: Any
    if architecture == "llama":
        config = transformers.LlamaConfig(**common, tie_word_embeddings=False, use_cache=False)
        return transformers.LlamaForCausalLM(config)
    dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**common, **dropout, num_labels=classes)
    return transformers.BertForSequenceClassification(config)
