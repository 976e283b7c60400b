"""Diffusers pipelines: a model_index.json that names components, each a folder with weights of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...answers.refs import ModelRef, printable
from ...errors import Note, NoWeightsError
from ..checkpoint import Checkpoint
from ..entry import Entry, Slice
from ..local import LocalRepo
from ..texts import MAX_TEXT, json_data
from .safetensors import find_safetensors, open_safetensors

if TYPE_CHECKING:
    import torch

    from ...hub.client import HubRepo

INDEX = "model_index.json"
MAX_COMPONENTS = 32
_FOLDER = re.compile(r"\w[\w-]{0,63}")


class JoinedCheckpoint(Checkpoint):
    """Several checkpoints as one: the tensors of each under its name and a dot."""

    def __init__(self, repo: LocalRepo | HubRepo, parts: Mapping[str, Checkpoint]) -> None:
        entries: dict[str, Entry] = {}
        self._owners: dict[str, tuple[Checkpoint, str]] = {}
        for component, part in parts.items():
            for name, entry in part.items():
                whole = f"{component}.{name}"
                entries[whole], self._owners[whole] = replace(entry, name=whole), (part, name)
        super().__init__(repo.ref, repo.requested, entries)
        self.repo, self._parts = repo, tuple(parts.values())
        self.skipped = tuple(f"{c}.{name}" for c, part in parts.items() for name in part.skipped)
        self.skipped_bytes = sum(part.skipped_bytes for part in self._parts)
        self.notes = tuple(note for part in self._parts for note in part.notes)

    @property
    def bytes_read(self) -> int:
        return sum(part.bytes_read for part in self._parts)

    @property
    def remote(self) -> bool:
        return any(part.remote for part in self._parts)

    def keep(self, room: int) -> None:
        for part in self._parts:
            part.keep(room // len(self._parts))

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        wanted: dict[int, list[int]] = {}
        for i, piece in enumerate(slices):
            wanted.setdefault(self._parts.index(self._owners[piece.name][0]), []).append(i)
        found: dict[int, torch.Tensor] = {}
        for part, places in wanted.items():
            read = self._parts[part].read([replace(slices[i], name=self._owners[slices[i].name][1]) for i in places])
            found |= zip(places, read, strict=True)
        return [found[i] for i in range(len(slices))]

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        part, name = self._owners[piece.name]
        return part.cells(replace(piece, name=name))


def find_pipeline(repo: LocalRepo | HubRepo) -> list[str]:
    """The components that a model_index.json names, where no weights lie beside it; those without weights (schedulers,
    tokenisers) among them."""
    if repo.only or INDEX not in repo.files or any(n.endswith(".safetensors") and "/" not in n for n in repo.files):
        return []
    index = json_data(repo.read_optional(INDEX, MAX_TEXT))
    named = [name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and all(value)]
    return [name for name in named if _FOLDER.fullmatch(name)][:MAX_COMPONENTS]


def open_pipeline(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> JoinedCheckpoint:
    """All components that have safetensors files, together. A note names those whose weights are in other files.

    Raises `NoWeightsError` where there is none.
    """
    parts: dict[str, Checkpoint] = {}
    others: list[str] = []
    for name in names:
        try:
            inner = _component(repo, name)
            files = find_safetensors(inner) if inner else []
        except NoWeightsError:
            files, inner = [], None
            others.append(name)
        if inner and files:
            parts[name] = open_safetensors(inner, files)
        elif inner and any(file.endswith((".bin", ".msgpack", ".h5", ".onnx")) for file in inner.files):
            others.append(name)
    if not parts:
        raise NoWeightsError(
            f"Expected a component with safetensors files in `{repo.ref.name}`, found none in {', '.join(names[:8])}."
        )
    joined = JoinedCheckpoint(repo, parts)
    if others:
        named = printable(", ".join(others))
        told = f"Of the pipeline {repo.ref.name} not read, for want of one safetensors file each: {named}."
        joined.notes += (Note("component_not_read", told),)
    return joined


def _component(repo: LocalRepo | HubRepo, name: str) -> LocalRepo | HubRepo | None:
    """The folder of a component; None where it is not there."""
    if isinstance(repo, LocalRepo):
        folder = repo.folder / name
        return LocalRepo(ModelRef("local", str(folder))) if name in repo.files and folder.is_dir() else None
    if not any(file.startswith(f"{name}/") for file in repo.files):
        return None
    return repo.hub.repo(replace(repo.ref, name=f"{repo.ref.name}/{name}"))
