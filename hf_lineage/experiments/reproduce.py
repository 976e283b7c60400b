"""`hf-lineage reproduce`: an experiment of the papers, from its networks to its table.

What was made before in the same folder is read again: the networks, and the score of every question, one line each.
Under `accelerate launch` every process takes its share of the questions.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..answers.base import Progress
from ..parallel import World, together, world
from . import disguised, lines
from .learned import learned
from .lines import Asked
from .methods import Scorer, features, own, weights, yours
from .protocol import Experiment, load

REPETITIONS, TEST, TRAINING = 5, 0.2, 0.7  # of the split of each column's children (§5.1: 7:1:2)
Shares = dict[str, dict[str, tuple[float, float]]]
Scores = dict[str, list[float]]  # method → a score for each candidate


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment gave: method → column → (mean, standard deviation) of the share right over the repetitions."""

    experiment: Experiment
    accuracy: Mapping[str, Mapping[str, tuple[float, float]]]
    asked: Mapping[str, int]  # questions, by column
    candidates: Mapping[str, int]
    dropped: Mapping[str, int]  # networks that did not learn, by column
    seconds: float
    steps: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)  # that were chosen


@together
def reproduce(
    name: str, scale: str = "small", out: str | Path = "hf-lineage-reproduce", *, methods: Sequence[str] = (),
    seed: int | None = None, progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Run one experiment of the papers on networks that are trained here, and measure every method on it.

    scale: "smoke" (minutes on two cores) or "small" (an hour or two). methods: further ones, as "module:function" or by
    the name of an entry point of the group `hf_lineage.methods`: (child folder, candidate folders, probes (N, …)) → one
    score for each candidate, higher for the parent. Accuracy is top-1 among all candidates, mean and standard deviation
    over 5 splits of the children, 7:1:2 (Neural Lineage, §5.1); the step α of a linearised metric is the one of
    {0.001, 0.01, 0.1} that is best on the 80 % that are not tested. Raises `ArgumentError`, `OSError`.
    """
    experiment = load(name, scale, seed)
    scorers = {method: own(method) for method in methods}
    started = time.monotonic()
    folder = Path(out).resolve() / name / f"{scale}-{_digest(experiment)}"
    folder.mkdir(parents=True, exist_ok=True)
    here = world()
    train = {"parent": lines.train, "disguise": disguised.train}[experiment.kind]
    if here.main:
        train(experiment, folder / "networks", progress)
    here.gather(None)  # the networks are there
    asked, dropped = train(experiment, folder / "networks")
    scores = _scores(experiment, asked, scorers, folder, here, progress)
    accuracy, steps = _judged(experiment, asked, scores, progress)
    return Result(
        experiment, accuracy, _count(asked), {q.column: len(q.candidates) for q in asked}, dropped,
        time.monotonic() - started, steps,
    )  # fmt: skip


def _judged(
    experiment: Experiment, asked: Sequence[Asked], scores: Sequence[Scores], progress: Progress | None
) -> tuple[Shares, dict[str, dict[str, list[float]]]]:
    """Method → column → (mean, deviation), and the steps that were chosen."""
    if experiment.kind == "disguise":
        return disguised.found_shares(asked, scores), {}
    accuracy: Shares = {}
    steps: dict[str, dict[str, list[float]]] = {}
    for column in dict.fromkeys(question.column for question in asked):
        of = [(question, scores[i]) for i, question in enumerate(asked) if question.column == column]
        for method, (share, chosen) in _accuracy(experiment, of).items():
            accuracy.setdefault(method, {})[column] = share
            if chosen:
                steps.setdefault(method, {})[column] = chosen
        if experiment.detector:
            found = learned(experiment, [question for question, _ in of], _splits(experiment, len(of)), progress)
            accuracy.setdefault("detector", {})[column] = _spread(found)
    return accuracy, steps


def _digest(experiment: Experiment) -> str:
    return hashlib.sha256(json.dumps(asdict(experiment), sort_keys=True).encode()).hexdigest()[:8]


def _count(asked: Sequence[Asked]) -> dict[str, int]:
    return {name: sum(q.column == name for q in asked) for name in dict.fromkeys(q.column for q in asked)}


# ---- scores, one line a question and kind of method, so that a broken run goes on


def _scores(
    experiment: Experiment, asked: Sequence[Asked], scorers: Mapping[str, Scorer], folder: Path, here: World,
    progress: Progress | None,
) -> list[Scores]:  # fmt: skip
    kinds: dict[str, Callable[[Asked], Scores]] = {
        "features": partial(features, probes=experiment.probes, steps=experiment.steps), "weights": weights,
    }  # fmt: skip
    if experiment.kind == "disguise":
        kinds = {"weights": disguised.weights}
    for name, scorer in scorers.items():
        kinds[name] = partial(yours, name=name, scorer=scorer, probes=experiment.probes)
    known = dict(_kept(folder))
    due = [(i, kind) for i in here.share([1] * len(asked)) for kind in kinds if _key(asked[i], kind) not in known]
    with (folder / f"scores-{here.rank}.jsonl").open("a", encoding="utf-8") as file:
        for done, (i, kind) in enumerate(due):
            if progress:
                progress(done, len(due), f"{asked[i].column}: {kind}")
            known[_key(asked[i], kind)] = found = kinds[kind](asked[i])
            file.write(json.dumps([_key(asked[i], kind), found]) + "\n")
            file.flush()
    together = {key: found for part in here.gather(known) for key, found in part.items()}
    return [{k: v for kind in kinds for k, v in together[_key(question, kind)].items()} for question in asked]


def _kept(folder: Path) -> Iterator[tuple[str, Scores]]:
    """What earlier runs wrote; a line that was broken off is asked again."""
    for path in sorted(folder.glob("scores-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                key, found = json.loads(line)
            except ValueError:
                continue
            yield key, found


def _key(question: Asked, kind: str) -> str:
    return f"{question.column}/{question.child.name}/{kind}"


# ---- accuracy


def _splits(experiment: Experiment, count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(training, validation, test) of each repetition, as places of the column's children."""
    found = []
    for repetition in range(REPETITIONS):
        order = [*range(count)]
        random.Random(f"{experiment.seed}/{repetition}").shuffle(order)
        tested, trained = math.ceil(TEST * count), int(TRAINING * count)
        found.append((order[:trained], order[trained : count - tested], order[count - tested :]))
    return found


def _accuracy(
    experiment: Experiment, column: Sequence[tuple[Asked, Scores]]
) -> dict[str, tuple[tuple[float, float], list[float]]]:
    """Method → (mean and deviation of its accuracy, the steps that were chosen)."""
    right: dict[str, dict[float, list[float]]] = {}  # method → step, 0 where it has none → by child
    for question, scores in column:
        parent = question.candidates.index(question.parent)
        for name, values in scores.items():
            metric, _, form = name.partition(" ")
            form, _, step = form.partition(" ")
            method = f"{metric} + {form}" if form else metric
            best = max(values)
            hit = values[parent] == best and values.count(best) == 1  # ties name nobody
            right.setdefault(method, {}).setdefault(float(step or 0), []).append(float(hit))
    found = {}
    for method, by_step in right.items():
        shares, chosen = [], []
        for training, validation, test in _splits(experiment, len(column)):
            seen = [*training, *validation]
            alpha = max(by_step, key=partial(_share, by_step, seen))
            shares.append(_share(by_step, test, alpha))
            chosen.append(alpha)
        found[method] = (_spread(shares), chosen if any(chosen) else [])
    return found


def _share(by_step: Mapping[float, Sequence[float]], places: Sequence[int], alpha: float) -> float:
    return sum(by_step[alpha][i] for i in places) / max(1, len(places))


def _spread(shares: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(shares)), float(np.std(shares))


def as_record(result: Result) -> dict[str, Any]:
    """The figures as JSON keeps them."""
    return {
        "experiment": result.experiment.name, "scale": result.experiment.scale, "seed": result.experiment.seed,
        "seconds": round(result.seconds, 1), "asked": dict(result.asked), "candidates": dict(result.candidates),
        "dropped": dict(result.dropped),
        "accuracy": {m: {c: [round(x, 4) for x in v] for c, v in of.items()} for m, of in result.accuracy.items()},
        "steps": {method: dict(of) for method, of in result.steps.items()},
    }  # fmt: skip
