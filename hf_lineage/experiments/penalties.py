"""What is added to a child's loss: it stays near its parent (EWC), or learns from another network (distillation).

    {"ewc": λ}   λ/2 · Σᵢ Fᵢ (θᵢ − θ*ᵢ)², θ* the parent's weights, F its diagonal Fisher information on its own
                 training data (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796)
    {"teacher": PATH, "temperature": T}
                 T² · KL(softmax(teacher/T) ‖ softmax(child/T)), mean over the batch
                 (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)

Neural Lineage, S2.4, uses both, with λ out of 10, 20, 100 and T out of 1, 2, 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from .glyphs import Task
from .networks import build

Penalty = Callable[[Tensor, Tensor], Tensor]  # inputs, the child's logits → scalar

IMAGES, AT_ONCE = 256, 32  # of the parent's training data, for its Fisher information


def stay_near(model: nn.Module, information: Mapping[str, Tensor], weight: float) -> Penalty:
    """EWC: the weights stay near where they are, the more so where a likelihood depends on them (`fisher`)."""
    weights = {name: value for name, value in model.named_parameters() if name in information}
    start = {name: value.detach().clone() for name, value in weights.items()}

    def penalty(inputs: Tensor, outputs: Tensor) -> Tensor:
        moved = [(information[name] * (value - start[name]).square()).sum() for name, value in weights.items()]
        return weight / 2 * torch.stack(moved).sum()

    return penalty


def fisher(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Parameter → the mean square of the slope of log p(y|x), y the label, over `IMAGES` of its training data."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, own, x[None]), y[None])

    slopes = vmap(grad(loss), in_dims=(None, 0, 0))
    found = {name: torch.zeros_like(value) for name, value in weights.items()}
    images, labels = task.train_x[:IMAGES], task.train_y[:IMAGES]
    for x, y in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        for name, each in slopes(weights, x, y).items():
            found[name] += each.square().sum(0) / len(images)
    return found


def learn_from(teacher: nn.Module, temperature: float) -> Penalty:
    """Distillation: the child's outputs become like the teacher's."""

    def penalty(inputs: Tensor, outputs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(inputs) / temperature, dim=-1)
        got = F.log_softmax(outputs / temperature, dim=-1)
        return temperature**2 * F.kl_div(got, wanted, reduction="batchmean", log_target=True)

    return penalty


def read(folder: Path) -> nn.Module:
    """The network of images in a family's folder."""
    record = json.loads((folder.parents[1] / "family.json").read_text(encoding="utf-8"))["arguments"]
    weights = load_file(folder / "model.safetensors")
    classes = [value for name, value in weights.items() if name.endswith(("head.bias", "fc.bias"))][-1].numel()
    model = build(record["architecture"], classes, record["sizes"])
    model.load_state_dict(weights)
    return model.eval()
