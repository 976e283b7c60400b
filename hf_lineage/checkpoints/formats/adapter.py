"""LoRA adapters: factors and no weights of a model. PEFT's have a config that names a base; kohya's and diffusers' are
recognised by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ...errors import Note
from ..checkpoint import ADAPTER_CONFIG, Checkpoint, MemoryCheckpoint
from ..claims import adapter_base
from ..local import LocalRepo
from .pickle import load_pickle
from .safetensors import ADAPTER, INDEX, SAFETENSORS, SERIES, open_files

if TYPE_CHECKING:
    from ...hub.client import HubRepo


MOSTLY_FACTORS = 0.95  # of the tensors of an adapter; a few may be biases or new heads
_FACTOR = re.compile(
    r"(?:^|[._])lora[._](?:A|B|down|up|mid|embedding_[AB]|magnitude_vector)(?:[._]|$)|\.(?:hada|lokr|oft)_\w+$|\.alpha$|"
    r"\.(?:dora_scale|diff|diff_b)$"
)


def find_adapter(repo: LocalRepo | HubRepo) -> list[str]:
    """The factors of an adapter, or its config where there are none, if the repo is one.

    Merged weights beside an adapter are a model: it is theirs that are compared.
    """
    if ADAPTER_CONFIG not in repo.files or repo.only:
        return []
    merged = {*SAFETENSORS, *(f"{name}{INDEX}" for name in SAFETENSORS)} & repo.files
    if merged or any(SERIES.fullmatch(name) for name in repo.files):
        return []
    return [next((name for name in ADAPTER if name in repo.files), ADAPTER_CONFIG)]


def open_adapter(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> Checkpoint:
    """The adapter, which names its base; of one whose factors are pickled, without `allow_pickle`, nothing but that."""
    name = names[0]
    checkpoint: Checkpoint
    if name == ADAPTER[0]:
        checkpoint = open_files(repo, [name])
    else:
        tensors = load_pickle(repo.path(name)) if name == ADAPTER[1] and allow_pickle else {}
        checkpoint = MemoryCheckpoint(repo.ref, repo.requested, tensors)
        if name == ADAPTER[1] and not allow_pickle:
            pickled = f"The factors of the adapter `{repo.ref.name}` are pickled, which can run code: not looked at."
            checkpoint.notes = (
                Note("adapter_not_read", pickled, "If you trust it: --allow-pickle.", "allow_pickle=True."),
            )
    checkpoint.repo = repo
    config = checkpoint.adapter_config
    # the card is the last that is asked: it may have to be fetched
    checkpoint.adapter_base = _local_base(repo, config) or adapter_base(config, {}) or adapter_base({}, checkpoint.card)
    return checkpoint


def holds_factors(names: Iterable[str]) -> bool:
    """Whether nearly all tensors are factors of an adapter, by the names of kohya, diffusers, LyCORIS and PEFT.

    >>> holds_factors(["lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.alpha", "x.lora_up.weight"])
    True
    >>> holds_factors(["layer.0.weight", "layer.0.lora_A.weight", "layer.0.lora_B.weight"])
    False
    """
    names = list(names)
    others = (name for name in names if not _FACTOR.search(name))
    too_many = int(len(names) - MOSTLY_FACTORS * len(names))  # the first of a model of weights show that it is none
    return bool(names) and next(islice(others, too_many, None), None) is None


def _local_base(repo: LocalRepo | HubRepo, config: dict) -> str:
    """The base of an adapter on this machine where it is a folder here: what a repo's file names opens no path."""
    base = config.get("base_model_name_or_path")
    here = (
        isinstance(repo, LocalRepo)
        and repo.ref.kind == "local"
        and isinstance(base, str)
        and base[:1] in (".", "/", "~")
    )
    return str(base) if here else ""
