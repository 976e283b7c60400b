"""How the methods score the candidates of a question; higher is more likely the parent.

    features   each metric of `METRICS`: plain; + Taylor and exact at each step α (Neural Lineage, Eq. 1 and 2)
    weights    the order in which `trace` lists the candidates, from the weights alone
    yours      any function of (child, candidates, probes), named "module:function" or registered under the entry-point
               group `hf_lineage.methods`

>>> from hf_lineage.experiments.methods import Scorer, own
>>> own("hf_lineage.experiments.methods:norms").__name__
'norms'
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ArgumentError, LineageError
from ..tasks.trace import trace
from .families import task_of
from .lines import Asked
from .questions import network

Scorer = Callable[[Path, Sequence[Path], Tensor], Sequence[float]]
GROUP = "hf_lineage.methods"
NONE = -1e300  # the score of a candidate that a method does not reach; JSON knows no infinity


def features(question: Asked, probes: int, steps: Sequence[float]) -> dict[str, list[float]]:
    """Scores by the child's own training data (§3.1), one list a method: "l1", "l1 taylor 0.01", "l1 exact 0.01", …

    `max(steps)` and each smaller one is tried; a candidate that cannot be run scores `NONE`."""
    child = network(question.child)
    refs = [str(candidate.path) for candidate in question.candidates]
    given = task_of(question.child).train_x[:probes]
    found: dict[str, list[float]] = {}
    for step in steps:
        lineage = trace(child, refs, evidence="features", probes=given, step=step)
        by_ref = {candidate.ref: candidate.evidence.get("features") for candidate in lineage.candidates}
        for place, ref in enumerate(refs):
            seen = by_ref.get(ref)
            for name, forms in (seen["taps"][0]["scores"] if seen else {}).items():
                for form, value in forms.items():
                    if value is None:  # ℓ∞ has no Taylor form
                        continue
                    method = name if form == "plain" else f"{name} {form} {step:g}"
                    found.setdefault(method, [NONE] * len(refs))[place] = value
    return found


def weights(question: Asked) -> dict[str, list[float]]:
    """Minus the place at which `trace` lists each candidate; nothing of the child's data, probes or network is used."""
    refs = [str(candidate.path) for candidate in question.candidates]
    listed = [candidate.ref for candidate in trace(question.child.path, refs, sample="all").candidates]
    return {"weights": [-float(listed.index(ref)) for ref in refs]}


def yours(question: Asked, name: str, scorer: Scorer, probes: int) -> dict[str, list[float]]:
    """The scores of a method of one's own. Raises `LineageError` where they are not one number for each candidate."""
    given = task_of(question.child).train_x[:probes]
    scores = [float(score) for score in scorer(question.child.path, [c.path for c in question.candidates], given)]
    if len(scores) != len(question.candidates):
        raise LineageError(
            f"Expected a score for each of {len(question.candidates)} candidates, {name} gave {len(scores)}."
        )
    return {name: scores}


def own(name: str) -> Scorer:
    """The method of that name: "module:function", or one of the entry-point group `hf_lineage.methods`.

    Raises `ArgumentError`."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            f"Expected a method `module:function`, or one registered as {GROUP}, got {name!r}: {error}."
        ) from None


def norms(child: Path, candidates: Sequence[Path], probes: Tensor) -> list[float]:
    """An example of a method of one's own: how near the first weight matrix is, −‖W_child − W_candidate‖."""

    def first(folder: Path) -> Tensor:
        tensors = load_file(folder / "model.safetensors")
        return next(tensor for name, tensor in sorted(tensors.items()) if tensor.ndim > 1)

    return [-float(torch.linalg.vector_norm(first(child) - first(path))) for path in candidates]
