"""What a detector says of candidates, beside or in place of the weights; it never moves their verdict.

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
from ..errors import CheckpointError, LineageError, Note, prefixed
from ..features.evidence import Settings, module_in_memory, probes_for
from ..features.networks import build
from .examples import pairs
from .inputs import DetectorInputs, read_inputs
from .model import DetectorConfig, LineageDetector

SHIPPED = "hf_lineage/detector/shipped"
MIN_CONTRADICTION_PROBABILITY = 0.5  # probability from which a detector's word is worth contradicting


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector ready to be asked, and what it is called: `org/name@commit`, a path, or `SHIPPED`."""

    detector: LineageDetector
    name: str

    @property
    def config(self) -> DetectorConfig:
        """Of the detector."""
        return self.detector.config


def open_detector(ref: str | Path | None, opener: Opener) -> LoadedDetector:
    """Read a detector; None is the one that ships.

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
        with torch.device("meta"):  # what a stranger wrote may ask for any size
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
    """What a detector says of one candidate.

    probability that it is the parent, in [0, 1]; score: the same before the softmax. detector: its name; inputs: what
    it looked at; probes: how many, None where no network was run. none_probability: of none of the candidates, None of
    a closed set. temperature: that the scores were divided by.
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
    """`found`: facts of candidate i; `refused`: why there are none; `none`: P(none of these), None of a closed set."""

    found: dict[int, DetectorEvidence]
    refused: dict[int, str]
    none: float | None


def score_candidates(
    judge: LoadedDetector, child: Checkpoint, candidates: Sequence[Checkpoint], settings: Settings,
    progress: Progress | None = None,
) -> DetectorScores:  # fmt: skip
    """Look at the child and at each candidate, and score all that can be lined up together.

    Raises what is wrong with the child; a candidate's `LineageError` is in `refused`.
    """
    settings = detector_settings(judge, child, settings)
    ours = read_inputs(child, judge.config, settings)
    seen: dict[int, DetectorInputs] = {}
    refused: dict[int, str] = {}
    for i, checkpoint in enumerate(candidates):
        if progress:
            progress(i, len(candidates), f"inputs of {checkpoint.ref.name}")
        try:
            theirs = read_inputs(checkpoint, judge.config, settings)
        except LineageError as error:
            refused[i] = error.note
            continue
        if theirs.shapes == ours.shapes:
            seen[i] = theirs
        else:
            refused[i] = f"Expected inputs of the shapes {ours.shapes}, as the child's, got {theirs.shapes}."
    if progress:
        progress(len(candidates), len(candidates), "detector")
    if not seen:
        return DetectorScores({}, refused, None)
    scores = score(judge, *pairs(ours, [*seen.values()]))
    shares = judge.detector.probabilities(scores).tolist()
    none = shares[len(seen)] if judge.config.no_parent else None
    about: dict[str, Any] = {
        "detector": judge.name, "inputs": list(ours.names), "probes": count_probes(settings), "none_probability": none,
        "temperature": judge.config.temperature,
    }  # fmt: skip
    found = {
        i: DetectorEvidence(probability=share, score=float(value), **about)
        for i, share, value in zip(seen, shares, scores.tolist(), strict=False)
    }
    return DetectorScores(found, refused, none)


def detector_settings(judge: LoadedDetector, child: Checkpoint, settings: Settings) -> Settings:
    """What all models of a question are shown: `settings.probes`, or as many synthetic ones as in training."""
    asked = settings.probes if settings.probes is not None else judge.config.probes
    settings = replace(settings, probes=asked, taps=None, metric="l2", step="auto")
    if not judge.config.features:
        return settings
    return replace(settings, probes=probes_for(build(child, module_in_memory(child, settings)), settings))


def count_probes(settings: Settings) -> int | None:
    """How many there are, None where nothing was run."""
    return len(settings.probes) if isinstance(settings.probes, Tensor) else None


@torch.no_grad()
def score(judge: LoadedDetector, weights: Sequence[Tensor | None], features: Sequence[Tensor | None]) -> Tensor:
    """(P,) or (P + 1,) of pairs on the CPU."""
    return judge.detector(weights, features).float()


def attach(
    opinion: DetectorScores, blanks: Sequence[Candidate], judged: Sequence[Candidate], rest: Sequence[Candidate],
    names: Sequence[str], none: float | None,
) -> tuple[list[Candidate], list[Candidate], float | None]:  # fmt: skip
    """(judged, rest, P(none)) with the detector's word in `evidence`; without weights the probability is its own."""
    places = {(blank.ref, blank.revision, blank.requested): i for i, blank in enumerate(blanks)}
    alone = "weights" not in names

    def told(candidate: Candidate) -> Candidate:
        i = places.get((candidate.ref, candidate.revision, candidate.requested), -1)
        if i in opinion.found:
            facts = opinion.found[i]
            share = facts.probability if alone else candidate.probability
            return replace(candidate, probability=share, evidence={**candidate.evidence, "detector": facts})
        why = (prefixed("detector: ", opinion.refused[i]),) if i in opinion.refused else ()
        return replace(
            candidate, probability=None if alone else candidate.probability, reasons=(*candidate.reasons, *why)
        )

    if not alone:
        return [told(c) for c in judged], [told(c) for c in rest], none
    known = {(c.ref, c.revision, c.requested): c for c in (*judged, *rest)}
    everyone = [told(known.get(key, blanks[i])) for key, i in places.items()]
    compared = [replace(c, status="compared") for c in everyone if "detector" in c.evidence]
    others = [replace(c, status="not_comparable") for c in everyone if "detector" not in c.evidence]
    return compared, others, opinion.none


def evidence_notes(candidates: Sequence[Candidate], said: Verdict) -> tuple[list[Candidate], list[Note]]:
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
    told = f"{best.ref} {share:.3f}" + ("" if none is None else f", none of these {none:.3f}")
    learned = f"Detector {about.detector}: {told}; a learned probability from {inputs}, it has no p-value.{closed}"
    notes = [Note("detector_probability", learned)]
    first = candidates[0]
    if first.p_value is None:
        return list(candidates), notes
    related = said in ("parent", "identical", "common_origin")
    against = None
    if none is not None and none >= MIN_CONTRADICTION_PROBABILITY and related:
        against = f"the detector says that none of them is the parent ({none:.3f})"
    elif share >= MIN_CONTRADICTION_PROBABILITY and related and best is not first and "detector" in first.evidence:
        against = f"the detector names {best.ref} ({share:.3f})"
    elif share >= MIN_CONTRADICTION_PROBABILITY and said == "none" and none is not None:
        against = f"the detector names {best.ref} ({share:.3f}), for which the weights show no common origin"
    if against is None:
        return list(candidates), notes
    p = "" if first.log10_p is None else f", p {_power(first.log10_p)}"
    disagree = (
        f"Detector and weights disagree: {against}, the weights say {said.replace('_', ' ')}"
        f"{f' ({first.ref}{p})' if related else ''}. The verdict is the weights'."
    )
    notes.append(Note("detector_disagrees", disagree))
    marked = {id(best), id(first)}
    return [replace(c, reasons=(*c.reasons, against)) if id(c) in marked else c for c in candidates], notes


def _power(log10_p: float) -> str:
    """A p-value too small for a float is still told.

    >>> _power(-400.0), _power(-2.0)
    ('1e-400', '0.01')
    """
    return f"1e{math.floor(log10_p)}" if log10_p < -5 else f"{10**log10_p:.2g}"
