"""A detector's probabilities of candidates, beside or without the weights; they never change the weights' verdict.

A detector is a folder or a repo of the Hub with `model.safetensors` and `config.json`, pinned to its commit; without a
name it is the one in this package. Its weights are read as any model's: safetensors only, sizes checked before memory
is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..answers.base import Evidence, Progress, fields_of
from ..answers.lineage import Candidate, Verdict
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import Opener
from ..errors import CheckpointError, LineageError, Note, as_note, prefixed
from ..features.evidence import Settings, module_in_memory, probes_for
from ..features.networks import build
from ..parallel import shared
from .examples import pairs
from .inputs import DetectorInputs, read_inputs
from .model import DetectorConfig, LineageDetector

SHIPPED = "hf_lineage/detector/shipped"
MIN_CONTRADICTION_PROBABILITY = 0.5  # of the detector, from which a disagreement with the weights is reported


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector in eval mode, and its name: `org/name@commit`, a path, or `SHIPPED`."""

    detector: LineageDetector
    name: str

    @property
    def config(self) -> DetectorConfig:
        """Of the detector."""
        return self.detector.config


def open_detector(ref: str | Path | None, opener: Opener) -> LoadedDetector:
    """Read a detector; None is the shipped one.

    Raises what `Opener.open` does, and `CheckpointError` for what is no detector, one of another version, or one whose
    tensors have other names, shapes or values than its config says.
    """
    if ref is None:
        folder = files("hf_lineage").joinpath("detector", "shipped")
        checkpoint = opener.open(Path(str(folder)))
        return LoadedDetector(
            _build(checkpoint, json.loads(folder.joinpath("config.json").read_text("utf-8"))), SHIPPED
        )
    checkpoint = opener.open(ref)
    return LoadedDetector(_build(checkpoint, checkpoint.config), str(checkpoint.ref))


def _build(checkpoint: Checkpoint, stated: Mapping[str, Any]) -> LineageDetector:
    who = f"`{checkpoint.ref.name}`"
    known = {each.name for each in fields(DetectorConfig)}
    if "version" not in stated or not {"weights", "features"} <= {*stated}:
        raise CheckpointError(f"Expected a detector in {who}, its config.json has no version, weights and features.")
    try:
        config = DetectorConfig(**{name: value for name, value in stated.items() if name in known})
        with torch.device("meta"):  # a foreign config may ask for any size
            detector = LineageDetector(config)
    except (LineageError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{who} is no detector of this release: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    found = {name: entry.shape for name, entry in checkpoint.items()}
    if wrong := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        raise CheckpointError(
            f"Expected {wrong[0]!r} of shape {wanted.get(wrong[0], 'none')} in the detector {who}, found "
            f"{found.get(wrong[0], 'none')}.",
            "Train it again: hf-lineage train-detector.",
        )
    state = dict(zip(found, checkpoint.whole([*found]), strict=True))
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise CheckpointError(f"Expected finite weights in the detector {who}, got NaN or Inf. Get it again.")
    detector.load_state_dict(state, assign=True)
    return detector.eval()


# ---- asked about whole models


@dataclass(frozen=True, slots=True, eq=False)
class DetectorEvidence(Evidence):
    """A detector's probability of one candidate.

    probability: that it is the parent, in [0, 1]; score: the same before the softmax.  detector: its name.  inputs: the
    tensors and taps it read.  probes: how many, None where no network was run.  none_probability: of none of the
    candidates, None for a closed set.  temperature: by which scores are divided before the softmax.
    """

    probability: float
    score: float
    detector: str
    inputs: list[str]
    probes: int | None
    none_probability: float | None
    temperature: float

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return fields_of(self)


@dataclass(frozen=True, slots=True)
class DetectorScores:
    """The answer about one child: found[i], the evidence about candidate i; refused[i], why there is none; none, P(none
    of these), None for a closed set."""

    found: dict[int, DetectorEvidence]
    refused: dict[int, str]
    none: float | None


def score_candidates(
    loaded: LoadedDetector, child: Checkpoint, candidates: Sequence[Checkpoint], settings: Settings,
    progress: Progress | None = None,
) -> DetectorScores:  # fmt: skip
    """Read the inputs of the child and of each candidate, and score all candidates of the same shapes together.

    Several processes take a share of the candidates each; all of them get all inputs. Raises the `LineageError` of the
    child; a candidate's is in `refused`.
    """
    settings = detector_settings(loaded, child, settings)
    ours = read_inputs(child, loaded.config, settings)

    def read(mine: Sequence[Checkpoint]) -> list[DetectorInputs | Note]:
        found: list[DetectorInputs | Note] = []
        for checkpoint in mine:
            if progress:
                progress(len(found), len(mine), f"inputs of {checkpoint.ref.name}")
            try:
                found.append(read_inputs(checkpoint, loaded.config, settings))
            except LineageError as error:
                found.append(error.note)
        return found

    seen: dict[int, DetectorInputs] = {}
    refused: dict[int, str] = {}
    sizes = [sum(entry.count for entry in checkpoint.values()) for checkpoint in candidates]
    for i, theirs in enumerate(shared(read, candidates, sizes)):
        if isinstance(theirs, Note):
            refused[i] = theirs
        elif theirs.shapes == ours.shapes:
            seen[i] = theirs
        else:
            refused[i] = f"Expected inputs of the shapes {ours.shapes}, as the child's, got {theirs.shapes}."
    if progress:
        progress(len(candidates), len(candidates), "detector")
    if not seen:
        return DetectorScores({}, refused, None)
    scores = score(loaded, *pairs(ours, [*seen.values()]))
    shares = loaded.detector.probabilities(scores).tolist()
    none = shares[len(seen)] if loaded.config.no_parent else None
    about: dict[str, Any] = {
        "detector": loaded.name, "inputs": list(ours.names), "probes": count_probes(settings), "none_probability": none,
        "temperature": loaded.config.temperature,
    }  # fmt: skip
    found = {
        i: DetectorEvidence(probability=share, score=float(value), **about)
        for i, share, value in zip(seen, shares, scores.tolist(), strict=False)
    }
    return DetectorScores(found, refused, none)


def detector_settings(loaded: LoadedDetector, child: Checkpoint, settings: Settings) -> Settings:
    """Settings with the probes for all models of one question: `settings.probes`, or as many synthetic ones as in
    training."""
    wanted = settings.probes if settings.probes is not None else loaded.config.probes
    settings = replace(settings, probes=wanted, taps=None, metric="l2", step="auto")
    if not loaded.config.features:
        return settings
    return replace(settings, probes=probes_for(build(child, module_in_memory(child, settings)), settings))


def count_probes(settings: Settings) -> int | None:
    """The number of probes, None where no network was run."""
    return len(settings.probes) if isinstance(settings.probes, Tensor) else None


@torch.no_grad()
def score(loaded: LoadedDetector, weights: Sequence[Tensor | None], features: Sequence[Tensor | None]) -> Tensor:
    """Scores (P,), or (P + 1,) with "none of these", of pairs on the CPU."""
    return loaded.detector(weights, features).float()


def attach(
    scores: DetectorScores, unjudged: Sequence[Candidate], judged: Sequence[Candidate], rest: Sequence[Candidate],
    names: Sequence[str], none: float | None,
) -> tuple[list[Candidate], list[Candidate], float | None]:  # fmt: skip
    """(judged, rest, P(none)) with the detector's evidence; without evidence of weights the probability is the
    detector's.

    unjudged[i]: candidate i before anything is known of it.  judged, rest, none: after the evidence of weights.
    names: of the kinds of evidence that were asked for.
    """
    index = {(each.ref, each.revision, each.requested): i for i, each in enumerate(unjudged)}
    alone = "weights" not in names

    def with_detector(candidate: Candidate) -> Candidate:
        i = index.get((candidate.ref, candidate.revision, candidate.requested), -1)
        if i in scores.found:
            facts = scores.found[i]
            share = facts.probability if alone else candidate.probability
            return replace(candidate, probability=share, evidence={**candidate.evidence, "detector": facts})
        refused = scores.refused.get(i)
        why = (as_note("detector_refused", prefixed("detector: ", refused)),) if refused else ()
        return replace(
            candidate, probability=None if alone else candidate.probability, reasons=(*candidate.reasons, *why)
        )

    if not alone:
        return [with_detector(c) for c in judged], [with_detector(c) for c in rest], none
    known = {(c.ref, c.revision, c.requested): c for c in (*judged, *rest)}
    everyone = [with_detector(known.get(key, unjudged[i])) for key, i in index.items()]
    compared = [replace(c, status="compared") for c in everyone if "detector" in c.evidence]
    others = [replace(c, status="not_comparable") for c in everyone if "detector" not in c.evidence]
    return compared, others, scores.none


def evidence_notes(candidates: Sequence[Candidate], verdict: Verdict) -> tuple[list[Candidate], list[Note]]:
    """The candidates in their final order, with a reason where detector and weights disagree; and notes."""
    seen = [(c, each) for c in candidates if isinstance(each := c.evidence.get("detector"), DetectorEvidence)]
    if not seen:
        return list(candidates), []
    about = seen[0][1]
    none = about.none_probability
    inputs = ", ".join(about.inputs)
    closed = " It cannot say 'none of these'." if none is None else ""
    best, its = max(seen, key=lambda pair: pair[1].probability)
    share = its.probability
    named = f"{best.ref} {share:.3f}" + ("" if none is None else f", none of these {none:.3f}")
    learned = f"Detector {about.detector}: {named}; a learned probability from {inputs}, it has no p-value.{closed}"
    notes = [Note("detector_probability", learned)]
    first = candidates[0]
    if first.p_value is None:
        return list(candidates), notes
    related = verdict in ("parent", "identical", "common_origin")
    against = None
    if none is not None and none >= MIN_CONTRADICTION_PROBABILITY and related:
        against = f"the detector says that none of them is the parent ({none:.3f})"
    elif share >= MIN_CONTRADICTION_PROBABILITY and related and best is not first and "detector" in first.evidence:
        against = f"the detector names {best.ref} ({share:.3f})"
    elif share >= MIN_CONTRADICTION_PROBABILITY and verdict == "none" and none is not None:
        against = f"the detector names {best.ref} ({share:.3f}), for which the weights show no common origin"
    if against is None:
        return list(candidates), notes
    p = "" if first.log10_p is None else f", p {_power(first.log10_p)}"
    disagree = (
        f"Detector and weights disagree: {against}, the weights say {verdict.replace('_', ' ')}"
        f"{f' ({first.ref}{p})' if related else ''}. The verdict is the weights'."
    )
    notes.append(Note("detector_disagrees", disagree))
    marked = {id(best), id(first)}
    why = Note("detector_disagrees", against)
    return [replace(c, reasons=(*c.reasons, why)) if id(c) in marked else c for c in candidates], notes


def _power(log10_p: float) -> str:
    """A p-value, also one that is too small for a float.

    >>> _power(-400.0), _power(-2.0)
    ('1e-400', '0.01')
    """
    return f"1e{math.floor(log10_p)}" if log10_p < -5 else f"{10**log10_p:.2g}"
