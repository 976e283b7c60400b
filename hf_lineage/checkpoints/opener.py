"""Opens the models of one question with one client, and knows when two references mean the same model."""

from __future__ import annotations

import logging
import math
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..answers.lineage import Candidate
from ..answers.refs import ModelRef, is_repo_id, printable
from ..errors import (
    ArgumentError,
    CheckpointError,
    HubUnavailableError,
    LineageError,
    ModelNotFoundError,
    NoWeightsError,
)
from .checkpoint import Checkpoint, MemoryCheckpoint
from .claims import adapter_base
from .formats import FORMATS
from .formats.adapter import holds_factors
from .formats.packed import unpacked
from .local import LocalRepo, repo_of, stands_for

if TYPE_CHECKING:
    import torch

    from ..hub.client import Hub, HubRepo

    Model = str | Path | ModelRef | torch.nn.Module | Mapping[str, torch.Tensor]

# Files of other frameworks, by their endings, and what reads them; only named
FOREIGN = {
    ".h5": "transformers (`from_pretrained(…, from_tf=True)`, version 4) or Keras",
    ".msgpack": "transformers (`from_pretrained(…, from_flax=True)`, version 4)",
    ".keras": "Keras", ".tflite": "TensorFlow", ".pdparams": "PaddlePaddle",
}  # fmt: skip

_log = logging.getLogger("hf_lineage.checkpoints.opener")


def is_one_model(given: object) -> bool:
    """Whether something is a model and no list of them: a reference, a module, or its state dict.

    A mapping that holds anything but tensors is taken as the models that are its keys.
    """
    if isinstance(given, Mapping):
        return all(hasattr(value, "dtype") for value in given.values())
    return isinstance(given, (str, Path, ModelRef)) or hasattr(given, "state_dict")


def models_of(given: Model | Iterable[Model]) -> list[Model]:
    """The models of what a caller gave where a list is expected: that list, or the one model in its place."""
    return [given] if is_one_model(given) else [*given]  # type: ignore[list-item, misc]


def open_checkpoint(
    model: Model | Sequence[Model],
    *,
    hub: Hub | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Open a model by reference, or take a module or a state dict as it is. Costs the headers.

    A list of one model stands for it.

    A repo or folder is searched for `model.safetensors`, its sharded index, the names other libraries use, or
    a complete series of shards or its only safetensors file; a LoRA adapter is recognised by `adapter_config.json` and
    names its base.
    Pickled weights are read only with `allow_pickle`, by `torch.load(weights_only=True)`.

    Raises `ModelNotFoundError`, `AccessDeniedError`, `NoWeightsError`, `PickleRefusedError`, `BrokenFileError`,
    `HubUnavailableError`.
    """
    if isinstance(model, list | tuple) and len(model) == 1:
        model = model[0]
    if not isinstance(model, (str, Path, ModelRef)):
        state = model if isinstance(model, Mapping) else getattr(model, "state_dict", None)
        if not isinstance(state, Mapping) and not callable(state):
            given = f"a list of {len(model)}" if isinstance(model, list | tuple) else type(model).__name__
            raise ArgumentError(f"Expected a repo id, a path, a torch module or its state dict, got {given}.")
        tensors = state if isinstance(state, Mapping) else state()
        strange = [name for name, value in tensors.items() if not (isinstance(name, str) and hasattr(value, "dtype"))]
        if strange or not tensors:
            what = f"{strange[0]!r} → {type(tensors[strange[0]]).__name__}" if strange else "nothing"
            raise ArgumentError(f"Expected a state dict to hold tensors by their names, got {what}.")
        ref = ModelRef("module", f"module:{'state_dict' if tensors is model else type(model).__name__}")
        module = MemoryCheckpoint(ref, str(ref), tensors)
        module.origin = id(model)
        return module
    ref = ModelRef.parse(model)
    if ref.kind == "hub":
        from ..hub.client import Hub

        hub = hub or Hub(token)
    return open_repo(find_repo(ref, hub), allow_pickle)


def find_repo(ref: ModelRef, hub: Hub | None) -> LocalRepo | HubRepo:
    """The folder or repo that a reference names, pinned to its commit; none of its weights are looked at."""
    if ref.kind == "hub":
        assert hub is not None, "a repo id needs a client"
        return repo_of(ref, hub)
    return LocalRepo(ref)


def open_repo(repo: LocalRepo | HubRepo, allow_pickle: bool) -> Checkpoint:
    """The model in a repo or folder: its headers, its card. Raises what `open_checkpoint` raises."""
    checkpoint = _open_repo(repo, allow_pickle)
    checkpoint.repo = repo
    if not checkpoint.is_adapter and holds_factors(checkpoint):  # a card declares its base, if anything does
        checkpoint.adapter_base = adapter_base({}, checkpoint.card)
    return checkpoint if checkpoint.is_adapter else unpacked(checkpoint)


def _open_repo(repo: LocalRepo | HubRepo, allow_pickle: bool) -> Checkpoint:
    for form in FORMATS.values():
        if names := form.find(repo):
            return form.open(repo, names, allow_pickle)
    found = ", ".join(sorted(name for name in repo.files if name[0] != ".")[:4]) or "no file at all"
    expected = f"Expected a `model.safetensors` in `{repo.ref.name}`, found {found}."
    if folders := repo.folders_with_weights():
        named = ", ".join(f"{repo.ref.name}/{folder}" for folder in folders[:4])
        raise NoWeightsError(f"{expected} Its weights lie in folders.", f"Name the one that is meant: {named}.")
    for ending, library in FOREIGN.items():
        if name := next((name for name in sorted(repo.files) if name.endswith(ending)), None):
            raise NoWeightsError(
                f"`{repo.ref.name}` has its weights in {name}, which is not read. Convert it: load it with {library} "
                "and save it as safetensors."
            )
    raise NoWeightsError(f"{expected} Convert the weights with safetensors, or name another repo.")


class Opener:
    """Opens models lazily; the Hub's client is made when the first repo id is met."""

    def __init__(self, token: str | bool | None = None, allow_pickle: bool = False) -> None:
        self._token, self._allow_pickle = token, allow_pickle
        self._hub: Hub | None = None
        self.ends = math.inf  # on the monotonic clock, after which the Hub is asked nothing
        self._opened: list[Checkpoint] = []
        self._by_ref: dict[ModelRef, Checkpoint] = {}
        self._repos: dict[ModelRef, LocalRepo | HubRepo] = {}
        self.failed: dict[str, LineageError] = {}  # what `open_all` met last, by the reference
        self._forgotten = 0  # bytes read of models that are no longer held

    @property
    def hub(self) -> Hub:
        """The client of all repos on the Hub."""
        if self._hub is None:
            from ..hub.client import Hub

            self._hub = Hub(self._token)
        self._hub.ends = self.ends
        return self._hub

    def open(self, model: Model) -> Checkpoint:
        """Open one model, once; see `open_checkpoint` for what it raises."""
        if isinstance(model, list | tuple) and len(model) == 1:
            model = model[0]
        ref = ModelRef.parse(model) if isinstance(model, (str, Path, ModelRef)) else None
        if ref in self._by_ref:
            return self._by_ref[ref]
        try:
            checkpoint = open_checkpoint(model) if ref is None else open_repo(self.repo(ref), self._allow_pickle)
        except (ModelNotFoundError, HubUnavailableError) as error:
            name = str(model)
            if isinstance(model, (str, ModelRef)) and ModelRef.parse(model).kind == "hub" and Path(name).exists():
                raise type(error)(f"{error} There is a local `./{name}`: write it so if that is meant.") from error
            raise
        self._opened.append(checkpoint)
        if ref is not None:
            self._by_ref[ref] = checkpoint
        return checkpoint

    def repo(self, ref: ModelRef) -> LocalRepo | HubRepo:
        """The files of a model, found once, without a look at its weights. Raises `ModelNotFoundError` and its kind."""
        if ref not in self._repos:
            self._repos[ref] = find_repo(ref, self._client(ref))
        return self._repos[ref]

    def open_all(self, models: Sequence[Model], called: str = "candidates") -> tuple[list[Checkpoint], list[Candidate]]:
        """Open several at once; what cannot be opened comes back as an `unreadable` candidate with the reason.

        Modules are named by their index in the caller's argument: `candidates[2]`.
        """
        refs = [ModelRef.parse(model) if isinstance(model, (str, Path)) else model for model in models]
        for ref in refs:  # before threads could race to make the client
            self._client(ref)

        def attempt(job: tuple[int, Model]) -> Checkpoint | Candidate:
            position, model = job
            try:
                checkpoint = self._open_whatever_happens(model)
            except LineageError as error:
                self.failed[str(model)] = error
                name = model.name if isinstance(model, ModelRef) else str(model)
                return Candidate(name, str(model), status="unreadable", reasons=(error.note,))
            if checkpoint.ref.kind == "module":  # two modules of one class have the same ref
                checkpoint.requested = f"{called}[{position}]"
            return checkpoint

        with ThreadPoolExecutor(8, thread_name_prefix="hf-lineage-open") as pool:
            results = list(pool.map(attempt, enumerate(refs)))
        opened = [result for result in results if isinstance(result, Checkpoint)]
        refused = {result.requested: result for result in results if isinstance(result, Candidate)}
        return opened, list(refused.values())

    def _open_whatever_happens(self, model: Model) -> Checkpoint:
        """`open`, where what one repo's files bring about must not end the question about the others."""
        try:
            return self.open(model)
        except LineageError:
            raise
        except Exception as error:
            name = printable(str(model) if isinstance(model, (str, Path, ModelRef)) else type(model).__name__)[:200]
            _log.error("internal error while opening %s\n%s", name, traceback.format_exc())
            raise CheckpointError(
                f"`{name}` could not be opened: internal error, {type(error).__name__}. This is a bug; its traceback "
                "is in the log."
            ) from error

    @property
    def opened(self) -> tuple[Checkpoint, ...]:
        """The models that are held, the latest last."""
        return tuple(self._opened)

    def forget(self, checkpoint: Checkpoint) -> None:
        """Let go of a model; the bytes that were read of it still count."""
        if any(checkpoint is known for known in self._opened):
            self._forgotten += checkpoint.bytes_read
        self._opened = [known for known in self._opened if known is not checkpoint]
        self._by_ref = {ref: known for ref, known in self._by_ref.items() if known is not checkpoint}
        self._repos = {ref: repo for ref, repo in self._repos.items() if repo is not checkpoint.repo}

    def close(self) -> None:
        """Let go of all models, and of the client's threads."""
        self._forgotten = self.bytes_read
        self._opened, self._by_ref, self._repos = [], {}, {}
        if self._hub is not None:
            self._hub.pool.shutdown(wait=False)

    @property
    def bytes_read(self) -> int:
        """Bytes read of all models opened, headers included."""
        return self._forgotten + sum(checkpoint.bytes_read for checkpoint in self._opened)

    @property
    def requests(self) -> int:
        """Requests sent to the Hub."""
        return self._hub.requests if self._hub else 0

    def same_model(self, claim: str, candidate: Candidate) -> bool:
        """Whether a claimed id means this candidate: the same id, its canonical id, or a folder that stands for it.

        A snapshot in a cache is its repo's; any other folder stands for `org/name` if its path ends so, which is how
        mirrors and clones are laid out; the answer's notes say where that was assumed. What is named by a folder in a
        repo is the repo's.
        """
        named = candidate.requested.partition("@")[0]
        if claim in (candidate.ref, named):
            return True
        if not is_repo_id(claim):
            return False
        if candidate.ref[:1] in "./~":
            return stands_for(candidate.ref) == claim
        ref, asked = (ModelRef("hub", name).repo_id for name in (candidate.ref, named))
        return claim in (ref, asked) or (self._hub is not None and self._hub.canonical(claim) == ref)

    def _client(self, model: Model) -> Hub | None:
        is_repo = isinstance(model, str) and ModelRef.parse(model).kind == "hub"
        return self.hub if is_repo or (isinstance(model, ModelRef) and model.kind == "hub") else self._hub


def model_identity(checkpoint: Checkpoint) -> tuple:
    """Equal for two checkpoints exactly if they are the same model at the same commit, folder or module."""
    ref = checkpoint.ref
    if ref.kind == "local":
        return ("local", os.path.realpath(os.path.expanduser(ref.name)))
    return (ref.kind, ref.name, ref.revision, checkpoint.origin)
