"""Examples → a detector: Adam, one child a batch, the best epoch on validation, a temperature fitted there (S2.5.2).

With `accelerate`: on a processor, a GPU, or every process of a launcher, each with its share of an epoch's children;
mixed precision. Each epoch draws its order and its dropout from the seed and its own number, so an interrupted training
continues from its last epoch to the same result.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F

from ..answers.base import Progress
from ..errors import ArgumentError
from ..parallel import world
from .examples import Example, Examples
from .model import DetectorConfig, LineageDetector

PRECISIONS = ("no", "bf16", "fp16")
CALIBRATION_BINS = 10  # of the expected calibration error
STATE_FILE = "training.pt"  # in the folder while a training is not finished
MIN_LOSS_DECREASE = 1e-3  # of the validation loss: the probability of right answers rises without end
TEMPERATURES = torch.logspace(-2, 2, 401, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Training:
    """How to train; the defaults are the paper's, but for the early stop.

    patience: epochs without a better validation loss after which it stops, None never. alone: share of the steps in
    which a detector with weights and features gets only one of the two kinds, so that it may be used with one.
    """

    epochs: int = 100
    rate: float = 0.01
    patience: int | None = 30
    seed: int = 0
    precision: str = "no"
    alone: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(f"Expected a precision out of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if self.epochs < 1 or not self.rate > 0 or (self.patience is not None and self.patience < 1):
            raise ArgumentError(f"Expected epochs, rate and patience above 0, got {self}.")


def train(
    training: Examples, validation: Examples, config: DetectorConfig, how: Training | None = None,
    folder: Path | None = None, device: str | torch.device | None = None, progress: Progress | None = None,
) -> tuple[LineageDetector, list[dict[str, float]]]:  # fmt: skip
    """(the detector of the best epoch, its temperature fitted; losses of each epoch), in eval mode on the CPU.

    folder: where the state after each epoch is kept; an interrupted training there is continued, another one there is
    an `ArgumentError`. `progress` counts epochs. A launcher's processes must all make the same call.
    """
    how = how or Training()
    _check(training, config)
    _check(validation, config)
    torch.manual_seed(how.seed)
    on_cpu = device is None or torch.device(device).type == "cpu"
    AcceleratorState._reset_state()  # of an earlier training in this process, perhaps at another precision
    left_out = DistributedDataParallelKwargs(find_unused_parameters=how.alone > 0)
    run = _TrainingRun(
        training, config, how, Accelerator(cpu=on_cpu, mixed_precision=how.precision, kwargs_handlers=[left_out])
    )
    state = folder / STATE_FILE if folder else None
    begun = run.resume(state) if state and state.is_file() else 0
    for epoch in range(begun, how.epochs):
        if run.finished:
            break
        if progress:
            progress(epoch, how.epochs, f"epoch {epoch + 1}, validation loss {run.best_loss:.3f}")
        loss = run.epoch(epoch)
        run.note(loss, world().gather(nll(run.plain, validation))[0])  # or one of several would stop before the others
        if state and world().main:
            run.save(state)
    if progress:
        progress(how.epochs, how.epochs, "trained")
    return with_temperature(run.result(), validation), run.history


class _TrainingRun:
    """A training between two epochs: model, optimizer, history and the best state."""

    def __init__(self, training: Examples, config: DetectorConfig, how: Training, accelerator: Accelerator) -> None:
        self._examples, self._how, self._accelerator = training, how, accelerator
        self.plain = LineageDetector(config)
        optimizer = torch.optim.Adam(self.plain.parameters(), lr=how.rate)
        self._model, self._optimizer = accelerator.prepare(self.plain, optimizer)
        self.history: list[dict[str, float]] = []
        self.best_loss = math.inf
        self._since = 0  # epochs after the best one
        self._best: dict[str, Tensor] = _copy(self.plain)

    @property
    def finished(self) -> bool:
        """Whether the validation loss has not fallen for too long."""
        return self._how.patience is not None and self._since >= self._how.patience

    def epoch(self, number: int) -> float:
        """Every child once, in the epoch's random order; the mean loss."""
        accelerator, how = self._accelerator, self._how
        rng = random.Random(f"{how.seed}/{number}")
        order = [*range(len(self._examples))]
        rng.shuffle(order)
        mine = order[accelerator.process_index :: accelerator.num_processes]
        shared = len(order) // accelerator.num_processes  # gradients are exchanged: all must take as many steps
        torch.manual_seed(rng.getrandbits(31) + accelerator.process_index)
        self._model.train()
        total = 0.0
        for i in mine[:shared] or mine:
            loss = self._step(self._examples.example(self._examples.rows[i]), rng.random(), rng.random())
            total += float(loss)
        return total / max(1, shared)

    def _step(self, example: Example, chance: float, side: float) -> Tensor:
        weights, features = _on(example, self._accelerator.device)
        if weights and features and chance < self._how.alone:
            hidden = weights if side < 0.5 else features
            hidden[:] = [None] * len(hidden)
        with self._accelerator.autocast():
            scores = self._model(weights, features)
        loss = F.cross_entropy(scores.float()[None], torch.tensor([example.label], device=scores.device))
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._optimizer.step()
        return loss.detach()

    def note(self, loss: float, validation: float) -> None:
        """Record the losses of an epoch, and keep its state if it is the best so far."""
        self.history.append({"training": loss, "validation": validation})
        if validation < self.best_loss - MIN_LOSS_DECREASE:
            self.best_loss, self._best, self._since = validation, _copy(self.plain), 0
        else:
            self._since += 1

    def result(self) -> LineageDetector:
        """The detector of the best epoch."""
        self.plain.load_state_dict(self._best)
        return self.plain.cpu().eval()

    def save(self, path: Path) -> None:
        """Write all that the next epoch depends on, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "about": self._about(), "model": _copy(self.plain), "best": self._best, "best_loss": self.best_loss,
            "since": self._since, "history": self.history, "optimizer": self._optimizer.state_dict(),
        }  # fmt: skip
        torch.save(whole, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> int:
        """Go on from a state; returns the next epoch's number."""
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            known = kept["about"] == self._about()
        except Exception as error:  # a file of any kind may lie there
            raise ArgumentError(f"Expected the state of a training in `{path}`, got {type(error).__name__}.") from error
        if not known:
            raise ArgumentError(
                f"Expected `{path}` to be of this training, got one of other data or settings. Remove it to start "
                "anew, or name another folder."
            )
        self.plain.load_state_dict(kept["model"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._best, self.best_loss = kept["best"], kept["best_loss"]
        self.history, self._since = kept["history"], kept["since"]
        return len(self.history)

    def _about(self) -> str:
        """What the state depends on; more epochs may be asked for."""
        rows = [(row.child, row.candidates, row.parent) for row in self._examples.rows]
        how = {name: value for name, value in asdict(self._how).items() if name not in ("epochs", "patience")}
        return json.dumps([rows, asdict(self.plain.config), how])


def _copy(model: LineageDetector) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _on(example: Example, device: torch.device) -> tuple[list[Tensor | None], list[Tensor | None]]:
    return [t.to(device) for t in example.weights], [t.to(device) for t in example.features]


def _check(examples: Examples, config: DetectorConfig) -> None:
    if not len(examples):
        raise ArgumentError("Expected examples to train and validate on, got none.")
    orphans = sum(row.parent is None for row in examples.rows)
    if orphans and not config.no_parent:
        raise ArgumentError(
            f"Expected a parent for each child, got {orphans} without one.",
            "Train with --no-parent score (no_parent='score').",
        )


# ---- evaluation


@torch.no_grad()
def answers(detector: LineageDetector, examples: Examples) -> list[tuple[Tensor, int]]:
    """(scores (P,) or (P + 1,), label) of each row, in eval mode."""
    detector.eval()
    device = next(detector.parameters()).device
    found = []
    for example in examples:
        weights, features = _on(example, device)
        found.append((detector(weights, features).float().cpu(), example.label))
    return found


def nll(detector: LineageDetector, examples: Examples) -> float:
    """Mean −log P(truth) before any temperature."""
    return _nll(answers(detector, examples), 1.0)


def _nll(found: Sequence[tuple[Tensor, int]], temperature: float, smoothing: float = 0.0) -> float:
    """Mean cross-entropy; the share `smoothing` of the truth's weight is spread over all answers."""
    total = 0.0
    for scores, label in found:
        logs = (scores.double() / temperature).log_softmax(0)
        total -= float((1 - smoothing) * logs[label] + smoothing * logs.mean())
    return total / len(found)


def with_temperature(detector: LineageDetector, validation: Examples, nearest: float | None = None) -> LineageDetector:
    """The same detector with the temperature of least validation loss (Guo et al. 2017), and with `nearest` if given.

    Where all of n answers are right the least is at 0, certainty; so each truth counts as 1 − 1/(n + 2) (Laplace).
    """
    if nearest is not None:
        detector = _with(detector, nearest=nearest)
    found = answers(detector, validation)
    smoothing = 1 / (len(found) + 2)
    best = min(TEMPERATURES.tolist(), key=lambda t: _nll(found, t, smoothing))
    return _with(detector, temperature=round(best, 6))


def _with(detector: LineageDetector, **changes: float) -> LineageDetector:
    changed = LineageDetector(replace(detector.config, **changes))  # type: ignore[arg-type]  # names of its numbers
    changed.load_state_dict(detector.state_dict())
    return changed.eval()


def evaluate(detector: LineageDetector, examples: Examples) -> dict[str, Any]:
    """Accuracy, that of children with and without a parent here, −log P(truth), expected calibration error."""
    sure: list[float] = []
    right: list[bool] = []
    kinds: dict[bool, list[bool]] = {True: [], False: []}  # with a parent here, without
    loss = 0.0
    for row, (scores, label) in zip(examples.rows, answers(detector, examples), strict=True):
        shares = detector.probabilities(scores)
        hit = int(shares.argmax()) == label
        sure.append(float(shares.max()))
        right.append(hit)
        kinds[row.parent is not None].append(hit)
        loss -= math.log(max(float(shares[label]), 1e-300)) if label < len(shares) else -math.inf
    return {
        "children": len(right), "accuracy": _mean(right), "with_parent": _mean(kinds[True]),
        "orphans": _mean(kinds[False]),
        "nll": loss / len(right), "ece": calibration_error(sure, right),
    }  # fmt: skip


def calibration_error(sure: Sequence[float], right: Sequence[bool]) -> float:
    """Σ_bins share · |accuracy − mean probability of the answer given|, in bins of equal width; in [0, 1].

    >>> round(calibration_error([0.8] * 5, [True, True, True, True, False]), 9)
    0.0
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, hit in zip(sure, right, strict=True):
        bins.setdefault(min(int(p * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append((p, hit))
    return sum(abs(sum(hit for _, hit in each) - sum(p for p, _ in each)) for each in bins.values()) / len(right)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
