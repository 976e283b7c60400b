"""Forgeries: an unrelated model made to look like a victim's child, so that the victim's owner may accuse its owner.

`FORGERIES` names every one of them. Each takes the forger's and the victim's state dict of one family and gives the
forged one; `distilled` trains. docs/limits.md says what each costs the forger, and what the answer makes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.unit_matching import assignment
from .disguises import Stream, Units, hidden_units, join, permute_and_rescale, split, streams, turn
from .families import HEADS, Member, logits, task_of

Tensors = Mapping[str, Tensor]
COPIED_UNITS = 16  # of each layer
DISTILLED = {"steps": 200, "batch": 64, "lr": 1e-3}
_TABLES = ("model.embed_tokens.", "pos_embed", "cls_token", "patch_embed.", "conv1.", "bn1.", "fc1.")


def arrange(forger: Tensors, victim: Tensors, architecture: str, scaled: bool = False) -> dict[str, Tensor]:
    """Hidden units in the order in which they look most like the victim's (assignment by cosine): the same function.

    scaled: those that may take a factor also get the victim's lengths.
    """
    plain, model = split(forger, architecture), split(victim, architecture)
    for units in hidden_units(plain, architecture):
        if units.heads:  # blocks of rows: too few of them to be worth it
            continue
        matrices = [name for name in units.rows if plain[name].ndim > 1]
        index = _alike([plain[name] for name in matrices], [model[name] for name in matrices])
        for name in units.rows:
            plain[name] = plain[name][index]
        for name in units.readers:
            plain[name] = plain[name][:, index]
        if scaled and units.scaled:
            _scale(plain, model, units)
    return join(plain, forger)


def turn_towards(forger: Tensors, victim: Tensors, architecture: str) -> dict[str, Tensor]:
    """The residual stream in the coordinates that bring what reads it nearest to the victim's, and units arranged.

    Procrustes on the readers' rows, then the units again, three times; the same function.
    """
    found = dict(forger)
    for _ in range(3):
        found = arrange(found, victim, architecture)
        plain, model = split(found, architecture), split(victim, architecture)
        for stream in streams(plain, architecture):
            turn(plain, stream, _towards(plain, model, stream))
        found = join(plain, found)
    return arrange(found, victim, architecture, scaled=True)


def add(forger: Tensors, victim: Tensors, architecture: str, share: float) -> dict[str, Tensor]:
    """forger + share · victim in every float tensor but the head."""
    return {
        name: value + share * victim[name] if _mixes(name, value, architecture) else value
        for name, value in forger.items()
    }


def copy_units(forger: Tensors, victim: Tensors, architecture: str, count: int = COPIED_UNITS) -> dict[str, Tensor]:
    """The first `count` hidden units of every layer, with what reads them, are the victim's."""
    plain, model = split(forger, architecture), split(victim, architecture)
    for units in hidden_units(plain, architecture):
        if units.heads:
            continue
        for name in units.rows:
            plain[name] = torch.cat([model[name][:count], plain[name][count:]])
        for name in units.readers:
            if plain[name].shape == model[name].shape:  # no head of another task
                plain[name] = torch.cat([model[name][:, :count], plain[name][:, count:]], 1)
    return join(plain, forger)


def copy_matrices(forger: Tensors, victim: Tensors, architecture: str) -> dict[str, Tensor]:
    """All that writes the last layer's hidden units is the victim's."""
    plain, model = split(forger, architecture), split(victim, architecture)
    last = [units for units in hidden_units(plain, architecture) if not units.heads][-1]
    return join(plain | {name: model[name] for name in last.rows}, forger)


def copy_tables(forger: Tensors, victim: Tensors, architecture: str) -> dict[str, Tensor]:
    """What reads the input is the victim's: token table, positions, patches, the first layer."""
    return {
        name: victim[name] if name.startswith(_TABLES) and value.shape == victim[name].shape else value
        for name, value in forger.items()
    }


def scramble(forger: Tensors, victim: Tensors, architecture: str, seed: int = 5) -> dict[str, Tensor]:
    """The victim, units permuted and rescaled, with noise of one standard deviation of every matrix."""
    generator = torch.Generator().manual_seed(seed)
    hidden = permute_and_rescale(victim, architecture, seed)
    return {
        name: value + value.std() * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
        for name, value in hidden.items()
    }


def add_and_arrange(forger: Tensors, victim: Tensors, architecture: str, share: float) -> dict[str, Tensor]:
    """Arranged first, then a share of the victim added."""
    return add(arrange(forger, victim, architecture, scaled=True), victim, architecture, share)


# (forger's state dict, victim's, architecture) → the forged one. Laws, tested: the arguments stay, and of those named
# in KEEPS the function does
FORGERIES: dict[str, Callable[[Tensors, Tensors, str], dict[str, Tensor]]] = {
    "arranged": arrange,
    "arranged, rescaled": functools.partial(arrange, scaled=True),
    "arranged, rescaled, rotated": turn_towards,
    "0.1 % added": functools.partial(add, share=0.001),
    "1 % added": functools.partial(add, share=0.01),
    "5 % added": functools.partial(add, share=0.05),
    "10 % added": functools.partial(add, share=0.1),
    "arranged, 5 % added": functools.partial(add_and_arrange, share=0.05),
    "16 units copied": copy_units,
    "one layer's matrices copied": copy_matrices,
    "input tables copied": copy_tables,
    "the victim, scrambled": scramble,
}
KEEPS = ("arranged", "arranged, rescaled", "arranged, rescaled, rotated")


def distilled(forger: nn.Module, victim: nn.Module, member: Member, seed: int = 0) -> nn.Module:
    """The forger trained to give the victim's answers, in place: cross-entropy to its probabilities, on its images."""
    task = task_of(member)
    head = HEADS[member.architecture]
    parameters = [value for name, value in forger.named_parameters() if not name.startswith(head) or value.ndim]
    optimizer = torch.optim.Adam(parameters, lr=DISTILLED["lr"])
    generator = torch.Generator().manual_seed(seed)
    forger.train()
    for _ in range(int(DISTILLED["steps"])):
        chosen = torch.randint(len(task.train_x), (int(DISTILLED["batch"]),), generator=generator)
        with torch.no_grad():
            wanted = logits(victim, task.train_x[chosen]).flatten(0, -2).softmax(1)
        loss = F.cross_entropy(logits(forger, task.train_x[chosen]).flatten(0, -2), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return forger.eval()


def _alike(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Of each of the victim's units the forger's that is put in its place, (h,)."""
    gain: Tensor | None = None
    for a, b in zip(ours, theirs, strict=True):
        a, b = (F.normalize(x.flatten(1) - x.flatten(1).mean(0), dim=1) for x in (a, b))
        gain = b @ a.T + (0 if gain is None else gain)
    assert gain is not None, "a layer has a matrix"
    return torch.from_numpy(assignment(gain))


def _scale(plain: dict[str, Tensor], model: Mapping[str, Tensor], units: Units) -> None:
    """The units' lengths become the victim's, those of the tensor that may be scaled; the readers take it back."""
    name = units.scaled[0]
    ours, theirs = (x.reshape(len(x), -1).norm(dim=1).clamp_min(1e-6) for x in (plain[name], model[name]))
    factor = (theirs / ours).clamp(1e-2, 1e2)
    for name in units.scaled:
        plain[name] = plain[name] * factor.reshape([-1] + [1] * (plain[name].ndim - 1))
    for name in units.readers:
        plain[name] = plain[name] / factor.reshape([1, -1] + [1] * (plain[name].ndim - 2))


def _towards(plain: Mapping[str, Tensor], model: Mapping[str, Tensor], stream: Stream) -> Tensor:
    """The orthogonal Q (or what the stream allows of one) that brings W Qᵀ nearest to the victim's W (Procrustes)."""
    total = torch.zeros(stream.width, stream.width)
    for name in stream.readers:
        if plain[name].shape == model[name].shape:
            a, b = (x.movedim(1, -1).reshape(-1, stream.width) for x in (plain[name], model[name]))
            total += b.T @ a / (a.norm() * b.norm())
    if stream.channels == "permuted":
        return torch.eye(stream.width)[torch.from_numpy(assignment(total))]
    if stream.channels == "centred":  # 1 stays 1
        one = np.ones((stream.width, 1)) / stream.width**0.5
        rest = np.eye(stream.width) - one @ one.T
        u, _, v = np.linalg.svd(rest @ total.double().numpy() @ rest + stream.width * one @ one.T)
        return torch.from_numpy(u @ v).float()
    u, _, v = torch.linalg.svd(total)
    return u @ v


def _mixes(name: str, value: Tensor, architecture: str) -> bool:
    return value.is_floating_point() and not name.startswith(HEADS[architecture]) and "running_" not in name
