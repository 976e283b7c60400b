"""Opens the models of one question with one client, and knows when two references mean the same model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..answers.lineage import Candidate, ModelRef
from ..errors import HubUnavailableError, LineageError, ModelNotFoundError
from .checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    import torch

    from ..hub.client import Hub

    Model = str | Path | ModelRef | torch.nn.Module


class Opener:
    """Opens models lazily; the Hub's client is made when the first repo id is met."""

    def __init__(self, token: str | bool | None = None, allow_pickle: bool = False) -> None:
        self._token, self._allow_pickle = token, allow_pickle
        self._hub: Hub | None = None
        self._opened: list[Checkpoint] = []
        self._by_ref: dict[ModelRef, Checkpoint] = {}

    @property
    def hub(self) -> Hub:
        """The client of all repos on the Hub."""
        if self._hub is None:
            from ..hub.client import Hub

            self._hub = Hub(self._token)
        return self._hub

    def open(self, model: Model) -> Checkpoint:
        """Open one model, once; see `open_checkpoint` for what it raises."""
        ref = ModelRef.parse(model) if isinstance(model, (str, Path, ModelRef)) else None
        if ref in self._by_ref:
            return self._by_ref[ref]
        try:
            checkpoint = open_checkpoint(model, hub=self._client(model), allow_pickle=self._allow_pickle)
        except (ModelNotFoundError, HubUnavailableError) as error:
            name = str(model)
            if isinstance(model, (str, ModelRef)) and ModelRef.parse(model).kind == "hub" and Path(name).exists():
                raise type(error)(f"{error} There is a local `./{name}`: write it so if that is meant.") from error
            raise
        self._opened.append(checkpoint)
        if ref is not None:
            self._by_ref[ref] = checkpoint
        return checkpoint

    def open_all(self, models: Sequence[Model], called: str = "candidates") -> tuple[list[Checkpoint], list[Candidate]]:
        """Open several at once; what cannot be opened comes back as an `unreadable` candidate with the reason.

        Modules are called by their place in the caller's argument: `candidates[2]`."""
        refs = [ModelRef.parse(model) if isinstance(model, (str, Path)) else model for model in models]
        for ref in refs:  # before threads could race to make the client
            self._client(ref)

        def attempt(job: tuple[int, Model]) -> Checkpoint | Candidate:
            position, model = job
            try:
                checkpoint = self.open(model)
            except LineageError as error:
                name = model.name if isinstance(model, ModelRef) else str(model)
                return Candidate(name, str(model), status="unreadable", reasons=(str(error),))
            if checkpoint.ref.kind == "module":  # two modules of one class have the same ref
                checkpoint.requested = f"{called}[{position}]"
            return checkpoint

        with ThreadPoolExecutor(8, thread_name_prefix="hf-lineage-open") as pool:
            results = list(pool.map(attempt, enumerate(refs)))
        opened = [result for result in results if isinstance(result, Checkpoint)]
        refused = {result.requested: result for result in results if isinstance(result, Candidate)}
        return opened, list(refused.values())

    @property
    def bytes_read(self) -> int:
        """Bytes read of all models opened, headers included."""
        return sum(checkpoint.bytes_read for checkpoint in self._opened)

    @property
    def requests(self) -> int:
        """Requests sent to the Hub."""
        return self._hub.requests if self._hub else 0

    def same_model(self, claim: str, candidate: Candidate) -> bool:
        """Whether a claimed id means this candidate: the same id, its canonical id, or the folder of a mirror.

        A local folder stands for `org/name` if its path ends so, which is how mirrors and clones are laid out;
        the answer's notes say where that was assumed.
        """
        if claim in (candidate.ref, candidate.requested.partition("@")[0]):
            return True
        if candidate.ref[:1] in "./~":
            return Path(candidate.ref).parts[-2:] == tuple(claim.split("/"))
        return self._hub is not None and self._hub.canonical(claim) == candidate.ref

    def _client(self, model: Model) -> Hub | None:
        is_repo = isinstance(model, str) and ModelRef.parse(model).kind == "hub"
        return self.hub if is_repo or (isinstance(model, ModelRef) and model.kind == "hub") else self._hub


def identity(checkpoint: Checkpoint) -> tuple:
    """Equal for two checkpoints exactly if they are the same model at the same commit, folder or module."""
    ref = checkpoint.ref
    if ref.kind == "local":
        return ("local", os.path.realpath(os.path.expanduser(ref.name)))
    return (ref.kind, ref.name, ref.revision, checkpoint.origin)
