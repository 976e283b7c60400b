"""Similarity of the features of each candidate and of the child, before and after the step towards the child.

Linearised candidate: F̄ = F + α T, T = J_p Δ (Neural Lineage, CVPR 2024, §3; docs/methods.md, *Learning-free
features*). The child is run once, each candidate once with its derivative; after that every metric and every α is
arithmetic on three matrices (N, K).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..answers.base import Evidence, Progress, fields_of
from ..answers.lineage import Candidate
from ..answers.refs import printable
from ..architecture.align import Alignment
from ..checkpoints.checkpoint import Checkpoint
from ..errors import ArgumentError, CheckpointError, LineageError, Note, as_note, prefixed
from ..parallel import world
from ..placement import Placement, placement
from .forward import NoForwardDerivative
from .lazy_tensors import CheckpointTensors, ChildTensors, InterpolatedTensors, KeptTensors
from .linearize import (
    GRID,
    MAX_RELATIVE_CURVATURE,
    Linearised,
    Step,
    check_finite,
    curvature,
    exact,
    features,
    relative_curvature,
    taylor,
    try_steps,
)
from .networks import Images, Network, Tokens, build, run_inputs, taps, upstream, weights
from .probes import probes
from .similarity import gradient, metric, scores, similarity
from .streaming import stream

if TYPE_CHECKING:
    from ..placement import Wanted

Source = str | Path | int | Tensor | None

DEFAULT_PROBES = 128  # (N, K) matrices are kept three times, and K is large at shallow taps
MAX_BYTES_IN_MEMORY = 4 << 30  # float32 weights of candidate and child; above it, and of remote ones: streamed
TAYLOR_STEP = 0.02  # at most, of `step="auto"`: beyond it Taylor's form ranks worse than no step (docs/benchmarks.md)
PAPER_STEP = 0.01  # where no forward derivative tells how far the linearisation holds


@dataclass(frozen=True, slots=True)
class Settings:
    """How features are compared; the fields are arguments of `trace`."""

    probes: Source = None
    taps: str | Sequence[str] | None = None
    metric: str = "l2"
    step: float | str = "auto"
    token: str | bool | None = None
    device: Wanted | Placement = None
    seed: int = 0
    modules: tuple[nn.Module, ...] = ()  # those in memory; the first is the network of checkpoints no library knows

    def __post_init__(self) -> None:
        metric(self.metric)
        if self.step != "auto" and not (isinstance(self.step, (int, float)) and 0 < self.step <= 1):
            raise ArgumentError(f'Expected `step` in (0, 1] or "auto", got {self.step!r}.')
        if isinstance(self.probes, int) and self.probes < 1:
            raise ArgumentError(f"Expected at least 1 probe, got {self.probes}.")

    @property
    def placement(self) -> Placement:
        """What `device` means on this machine. Raises `ArgumentError`."""
        return placement(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class FeaturesEvidence(Evidence):
    """Similarity of the features of one candidate and of the child, tap by tap.

    form: exact, taylor (why_taylor says why), streamed, or stored, where outputs were given and no model was run.
    probes: how many. lined_up: share of the parameters that have a partner in the child, in [0, 1], None of stored
    ones. taps: the scores of every metric at each, without and with the step. match: the softmax of the exact scores
    over the candidates of the question, in [0, 1]; match_taylor: of Eq. 2's scores, which is the paper's matching
    probability, None where the metric has no derivative.
    """

    metric: str
    form: str
    why_taylor: str | None
    probes: int
    lined_up: float | None
    taps: list[dict[str, Any]]
    match: float
    match_taylor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return fields_of(self)


@dataclass(frozen=True, slots=True)
class Child:
    """The child's side of every comparison: its features (N, K) at its taps. `view`: its tensors with their cuts."""

    view: Checkpoint
    network: Network
    probes: Tensor
    taps: tuple[str, ...]
    features: Mapping[str, Tensor]


def run_child(checkpoint: Checkpoint, view: Checkpoint, settings: Settings) -> Child:
    """Build the child's network, make the probes for it and run it up to its last tap.

    Raises `CheckpointError` or `ArgumentError` where it cannot be built or run, or its features hold NaN or Inf.
    """
    network = build(checkpoint, module_in_memory(checkpoint, settings))
    chosen = taps(network, settings.taps)
    given = probes_for(network, settings)
    found = run(network, checkpoint, given, chosen, settings)
    check_finite(found, "the child")
    return Child(view, network, given, chosen, found)


def run(
    network: Network, checkpoint: Checkpoint, given: Tensor, chosen: Sequence[str], settings: Settings
) -> dict[str, Tensor]:
    """A model's features (N, K) at taps, with its own weights; streamed where it is large."""
    places = settings.placement
    inputs = run_inputs(network, given)
    with running(checkpoint, given):
        if _streams([checkpoint], places):
            runs = places.layout(network.module, network.blocks).runs
            found = stream(network.module, CheckpointTensors(network, checkpoint), None, inputs, chosen, device=runs)
            return {tap: item.F for tap, item in found.items()}
        values = weights(network, checkpoint, _needed(network, chosen), places.main)
        return features(network.module, values, inputs, chosen)


def probes_for(network: Network, settings: Settings) -> Tensor:
    """The probes that the child's network is run on, as many as the metric needs."""
    made, count = (None, settings.probes) if isinstance(settings.probes, int) else (settings.probes, DEFAULT_PROBES)
    given = probes(made, network.inputs, count, settings.seed, settings.token)
    least = metric(settings.metric).min_probes
    if len(given) < least:
        raise ArgumentError(f"Expected at least {least} probes for the metric {settings.metric}, got {len(given)}.")
    return given


def expected_bytes(child: Checkpoint, candidates: Sequence[Checkpoint], settings: Settings) -> int:
    """The most bytes that `run_child` and `compare` read, before any is; candidates that cannot be run cost nothing."""
    network = build(child, module_in_memory(child, settings))
    chosen = taps(network, settings.taps)
    of_child = total = _bytes(network, child, chosen)
    for checkpoint in candidates:
        with suppress(LineageError):
            theirs = build(checkpoint, module_in_memory(checkpoint, settings))
            tries = len(GRID) if settings.step == "auto" else 1
            passes = 1 + tries if _streams([checkpoint, child], settings.placement) else 1
            used = _matching_taps(theirs, network, chosen, settings.taps)
            total += passes * (of_child + _bytes(theirs, checkpoint, used))
    return total


def compare(
    child: Child, candidates: Sequence[tuple[Checkpoint, Alignment]], settings: Settings,
    progress: Progress | None = None,
) -> tuple[dict[int, FeaturesEvidence], dict[int, str]]:  # fmt: skip
    """(found, refused): the evidence about candidate i, or why there is none.

    Several processes take a share of the candidates each; all of them get all facts.
    """
    found: dict[int, dict[str, Any]] = {}
    refused: dict[int, str] = {}
    mine = world().share([sum(entry.count for entry in checkpoint.values()) for checkpoint, _ in candidates])
    for done, i in enumerate(mine):
        checkpoint, alignment = candidates[i]
        if progress:
            progress(done, len(mine), f"features of {checkpoint.ref.name}")
        try:
            found[i] = candidate_facts(child, checkpoint, alignment, settings)
        except LineageError as error:
            refused[i] = error.note
    if progress and mine:
        progress(len(mine), len(mine), "features")
    for theirs, why in world().gather((found, refused)):
        found, refused = {**found, **theirs}, {**refused, **why}
    found = {i: found[i] for i in sorted(found)}
    for tap in range(min((len(facts["taps"]) for facts in found.values()), default=0)):
        score_at_common_step([facts["taps"][tap] for facts in found.values()], settings)
    facts = [*found.values()]
    differentiable = metric(settings.metric).differentiable
    by_taylor = matching(facts, "taylor") if differentiable else [None] * len(facts)
    matches = zip(found, matching(facts), by_taylor, strict=True)
    return {i: FeaturesEvidence(**found[i], match=exact, match_taylor=eq_2) for i, exact, eq_2 in matches}, refused


def matching(facts: Sequence[Mapping[str, Any]], form: str = "exact") -> list[float]:
    """The matching probability of each candidate of one child: the mean over taps of softmax_i s(F̄ᵢ, G), in [0, 1].

    They sum to 1: the set is closed, "none of these" is no answer, and a single candidate gets 1. Neural Lineage §3.
    facts: of each candidate, with "metric" and the "scores" of each of its "taps".  form: whose scores; where there are
    no exact ones, Taylor's.
    """
    if not facts:
        return []
    shares = []
    for tap in range(min(len(each["taps"]) for each in facts)):
        scores = [each["taps"][tap]["scores"][each["metric"]] for each in facts]
        last = [item[form] if item[form] is not None else item["taylor"] for item in scores]
        shares.append(torch.tensor(last, dtype=torch.float64).softmax(0))
    return torch.stack(shares).mean(0).tolist()


def attach(
    found: Mapping[int, FeaturesEvidence], refused: Mapping[int, str], unjudged: Sequence[Candidate],
    judged: Sequence[Candidate], rest: Sequence[Candidate], names: Sequence[str],
) -> tuple[list[Candidate], list[Candidate]]:  # fmt: skip
    """(judged, rest) with the features' evidence; without evidence of weights the match is the probability.

    unjudged[i]: candidate i before anything is known of it.  judged, rest: the same after the evidence of weights, if
    that was asked for.  names: of the kinds of evidence that were asked for.
    """
    if "weights" not in names:
        shown = [(unjudged[i], evidence) for i, evidence in found.items()]
        others = [(unjudged[i], as_note("features_refused", why)) for i, why in refused.items()]
        return (
            [replace(each, probability=evidence.match, evidence={"features": evidence}) for each, evidence in shown],
            [replace(each, status="not_comparable", reasons=(why,)) for each, why in others],
        )
    index = {(each.ref, each.revision, each.requested): i for i, each in enumerate(unjudged)}

    def with_features(candidate: Candidate) -> Candidate:
        i = index.get((candidate.ref, candidate.revision, candidate.requested), -1)
        if i in found:
            return replace(candidate, evidence={**candidate.evidence, "features": found[i]})
        why = (as_note("features_refused", prefixed("features: ", refused[i])),) if i in refused else ()
        return replace(candidate, reasons=(*candidate.reasons, *why))

    return [with_features(c) for c in judged], [with_features(c) for c in rest]


def evidence_notes(candidates: Sequence[Candidate], settings: Settings) -> list[Note]:
    """Notes on how features were compared."""
    seen = [(c, each) for c in candidates if isinstance(each := c.evidence.get("features"), FeaturesEvidence)]
    if not seen:
        return []
    first = seen[0][1]
    taps = [tap for _, each in seen for tap in each.taps]
    steps = sorted({tap["step"] for tap in taps})
    where = " and ".join([tap["tap"] for tap in first.taps][:: max(1, len(first.taps) - 1)])
    made = "synthetic " if settings.probes is None or isinstance(settings.probes, int) else ""
    compared = (
        f"Features: {first.metric} at {where}, {first.probes} {made}probes, step "
        f"{' to '.join(f'{step:g}' for step in (steps[:1] + steps[1:][-1:]))}. A match has no p-value, and of a set "
        "without a relative it names one all the same."
    )
    notes = [Note("features_compared", compared)]
    curvatures = [tap["curvature"] for tap in taps if tap["curvature"] is not None]
    if curvatures and min(curvatures) >= MAX_RELATIVE_CURVATURE:
        poor = "No candidate's linearisation holds at that step (error of a tenth or more): scores say little."
        if not any(steps):
            poor = "No candidate's linearisation holds at any step (error of a tenth or more): no step is taken."
        notes.append(Note("linearisation_poor", poor))
    without = sorted({each.why_taylor for _, each in seen if each.why_taylor})
    notes += [Note("no_taylor_form", f"Taylor form: {why}") for why in without]
    if all(c.status == "not_comparable" for c, _ in seen):
        best, about = max(seen, key=lambda pair: pair[1].match)
        nearest = f"By features alone {best.ref} is nearest, with a match of {about.match:.3f}."
        notes.append(Note("nearest_by_features", nearest))
    return notes


def candidate_facts(child: Child, checkpoint: Checkpoint, alignment: Alignment, settings: Settings) -> dict[str, Any]:
    """Run one candidate with its derivative towards the child, and compare at every tap.

    Raises `LineageError` where it cannot be run on the child's probes, or compared.
    """
    network = candidate_network(checkpoint, settings)
    _check_inputs(network.inputs, child.network.inputs)
    chosen = _matching_taps(network, child.network, child.taps, settings.taps)
    partners = ChildTensors(network, checkpoint, child.view, alignment)
    inputs = run_inputs(network, child.probes)
    places = settings.placement
    streamed = _streams([checkpoint, child.view], places)
    side: _Linearisation
    if streamed:
        side = _StreamedLinearisation(network, checkpoint, partners, inputs, settings)
    else:
        needed = _needed(network, chosen)
        start = weights(network, checkpoint, needed, places.main)
        parameters = dict(network.module.named_parameters(remove_duplicate=False))
        moving = [name for name in needed if name in partners and name in parameters]
        delta = {name: partners[name].to(places.main) - start[name] for name in moving}
        side = InMemoryLinearisation(network.module, start, delta, inputs, settings)
    with running(checkpoint, child.probes):
        found, why = compare_at_taps(side, chosen, child.taps, child.features, settings)
    return {
        "metric": settings.metric, "form": "taylor" if why else "streamed" if streamed else "exact",
        "why_taylor": why, "probes": len(child.probes), "lined_up": partners.share, "taps": found,
    }  # fmt: skip


def candidate_network(checkpoint: Checkpoint, settings: Settings) -> Network:
    """The network of a candidate; `ArgumentError` for an adapter, which has no weights of its own."""
    if checkpoint.is_adapter:
        raise ArgumentError(f"a LoRA adapter holds no weights of its own{checkpoint.base_hint}")
    return build(checkpoint, module_in_memory(checkpoint, settings))


def compare_at_taps(
    side: _Linearisation, chosen: Sequence[str], child_taps: Sequence[str], G: Mapping[str, Tensor], settings: Settings
) -> tuple[list[dict[str, Any]], str | None]:
    """(rows for `score_at_common_step`, one for each tap `chosen` of the candidate; why Taylor's form was used, if so).

    child_taps: the child's taps in the same order, by which `G` has its features (N, K).
    """
    why = None
    try:
        linear = side.linearised(chosen)
    except NoForwardDerivative as error:
        if isinstance(side, _StreamedLinearisation):
            raise
        linear, why = side.plain(chosen), str(error)
    check_finite(linear, "the candidate")
    pairs = [_Tap(tap, name, linear[tap], G[name]) for tap, name in zip(chosen, child_taps, strict=True)]
    return [_compare_at(side, tap, settings, why) for tap in pairs], why


@dataclass(frozen=True, slots=True)
class _Tap:
    """One tap of a candidate beside the child's: their names, the candidate's features and the child's (N, K)."""

    candidate: str
    child: str
    linear: Linearised
    G: Tensor


def _compare_at(side: _Linearisation, tap: _Tap, settings: Settings, why_taylor: str | None) -> dict[str, Any]:
    """The scores of every metric at one tap, the steps tried, and the curvature of the features on the way."""
    F, T = tap.linear.F, tap.linear.T
    G = tap.G.to(F.device)
    if F.shape[1] != G.shape[1] and metric(settings.metric).same_width:
        raise ArgumentError(
            f"Expected as many features at {tap.candidate!r} as the child's {G.shape[1]} at {tap.child!r}, "
            f"got {F.shape[1]}; "
            "the metrics cka and dc compare them nevertheless."
        )
    about = {"tap": tap.child, "candidate_tap": tap.candidate, "features": F.shape[1]}
    if why_taylor:
        plain = similarity(settings.metric, F, G)
        slope = side.slope(tap.candidate, gradient(settings.metric, F, G))
        return {**about, "tried": [], "scores": {settings.metric: {"plain": plain, "slope": slope, "exact": []}}}
    tried = side.steps(tap.candidate)
    every = scores(F, G, T, [0.0, *(step.value for step in tried)], settings.metric)
    found = {
        name: {
            "plain": plain,
            "slope": float((gradient(name, F, G) * T).sum()) if metric(name).differentiable else None,
            "exact": after,
        }
        for name, (plain, *after) in every.items()
    }
    return {**about, "tried": tried, "scores": found}


def score_at_common_step(rows: Sequence[dict[str, Any]], settings: Settings) -> None:
    """One step for all candidates at one tap, and the scores there, in place; a row is what `compare_at_taps` makes.

    Scores at different steps cannot be compared: at α = 1 an unrelated model may reach the child, too. The step is the
    largest that any candidate's linearisation allows, which is the parent's; all candidates were tried there. Where
    `step="auto"` finds none for any candidate, no step is taken: `step` is 0, and the scores are those without one.
    Taylor's form, which also leaves the metric's linear range, is taken at `TAYLOR_STEP` at most.
    """
    last = [row["tried"][-1] for row in rows if row["tried"]]
    given = PAPER_STEP if settings.step == "auto" else float(settings.step)
    common = max((step.value for step in last), default=given)
    if settings.step == "auto" and last and not any(step.small for step in last):
        common = 0.0
    by_taylor = min(common, TAYLOR_STEP) if settings.step == "auto" else common
    for row in rows:
        tried = row.pop("tried")
        at = next((i for i, step in enumerate(tried) if step.value == (common or tried[-1].value)), None)
        row["step"], row["taylor_step"] = common, by_taylor
        row["own_step"] = tried[-1].value if tried else None
        row["curvature"] = None if at is None else tried[at].curvature
        row["scores"] = {
            name: {
                "plain": score["plain"],
                "taylor": None if score["slope"] is None else score["plain"] + by_taylor * score["slope"],
                "exact": None if at is None else score["exact"][at] if common else score["plain"],
            }
            for name, score in row["scores"].items()
        }


class _Linearisation(abc.ABC):
    """One candidate: its linearised features, and their curvature at each step tried."""

    def __init__(self, settings: Settings) -> None:
        self._grid = GRID if settings.step == "auto" else (float(settings.step),)
        self._linear: dict[str, Linearised] = {}
        self._curvatures: dict[float, dict[str, float]] = {}  # step → curvature at each tap, of one pass

    def steps(self, tap: str) -> Sequence[Step]:
        """The steps tried at a tap, after `linearised`; what was computed for one tap serves the others."""

        def at(step: float) -> float:
            if step not in self._curvatures:
                self._curvatures[step] = self._curvature(step)
            return self._curvatures[step][tap]

        return try_steps(at, self._grid)

    @abc.abstractmethod
    def linearised(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        """F and T at every tap."""

    @abc.abstractmethod
    def plain(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        """F at every tap, with T = 0."""

    @abc.abstractmethod
    def slope(self, tap: str, pi: Tensor) -> float:
        """⟨Π, T⟩ without T."""

    @abc.abstractmethod
    def _curvature(self, step: float) -> dict[str, float]:
        """The relative curvature at every tap that was linearised."""


class InMemoryLinearisation(_Linearisation):
    """Candidate and Δ fit in memory together; `start` (its weights) and `delta` by the module's names."""

    def __init__(
        self, module: nn.Module, start: Mapping[str, Tensor], delta: Mapping[str, Tensor], inputs: Any,
        settings: Settings, batch: int = 32,
    ) -> None:  # fmt: skip
        self._all: tuple[Any, Any, Any, Any] = module, start, delta, inputs
        self._batch = batch
        super().__init__(settings)

    def linearised(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        self._linear = exact(*self._all, chosen, batch=self._batch)
        return self._linear

    def plain(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        module, start, _, inputs = self._all
        found = features(module, start, inputs, chosen, batch=self._batch)
        return {tap: Linearised(F, torch.zeros_like(F)) for tap, F in found.items()}

    def slope(self, tap: str, pi: Tensor) -> float:
        return taylor(*self._all, tap, pi, batch=self._batch)

    def _curvature(self, step: float) -> dict[str, float]:
        return curvature(*self._all, [*self._linear], self._linear, step, batch=self._batch)


class _StreamedLinearisation(_Linearisation):
    """Module after module, over the places of `settings.placement`: each step tried reads again what stays at none of
    them, both models up to the last tap."""

    def __init__(
        self, network: Network, checkpoint: Checkpoint, partners: ChildTensors, inputs: Any, settings: Settings
    ) -> None:
        layout = settings.placement.layout(network.module, network.blocks, copies=2)
        self._module, self._inputs, self._runs = network.module, inputs, layout.runs
        self._start = KeptTensors(CheckpointTensors(network, checkpoint), layout)
        self._end = KeptTensors(partners, layout)
        super().__init__(settings)

    def linearised(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        self._linear = self._run(self._start, self._end, chosen)
        return self._linear

    def plain(self, chosen: Sequence[str]) -> dict[str, Linearised]:
        return self._run(self._start, None, chosen)

    def slope(self, tap: str, pi: Tensor) -> float:
        raise ArgumentError("Expected a model that fits in memory: the Taylor form is one backward pass through it.")

    def _curvature(self, step: float) -> dict[str, float]:
        """As `linearize.curvature`, at all taps by one pass."""
        moved = self._run(InterpolatedTensors(self._start, self._end, step), None, [*self._linear])
        return {tap: relative_curvature(found.F, self._linear[tap], step) for tap, found in moved.items()}

    def _run(
        self, start: Mapping[str, Tensor], end: Mapping[str, Tensor] | None, chosen: Sequence[str]
    ) -> dict[str, Linearised]:
        return stream(self._module, start, end, self._inputs, chosen, device=self._runs)


def module_in_memory(checkpoint: Checkpoint, settings: Settings) -> nn.Module | None:
    """The module of a checkpoint that is in memory; of any other, the first module in memory, or None."""
    same = next((module for module in settings.modules if id(module) == checkpoint.origin), None)
    return same or (settings.modules[0] if settings.modules else None)


def _matching_taps(
    network: Network, child: Network, child_taps: Sequence[str], asked: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The candidate's taps for the child's: the same path, or the block at the same position where names differ."""
    if asked is None:
        return taps(network)
    theirs, ours = network.blocks, child.blocks
    known = {path for path, _ in network.module.named_modules()}
    if asked == "blocks" and len(theirs) != len(ours):
        raise ArgumentError(f"Expected as many blocks as the child's {len(ours)}, got {len(theirs)}.")
    position = {path: i for i, path in enumerate(ours)}
    return taps(
        network,
        [
            theirs[position[tap]] if tap not in known and position.get(tap, len(theirs)) < len(theirs) else tap
            for tap in child_taps
        ],
    )


@contextmanager
def running(checkpoint: Checkpoint, probes: Tensor) -> Iterator[None]:
    """Errors of a network on probes that it does not take, or of an inconsistent config, as one line."""
    try:
        yield
    except LineageError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"Expected the network of `{checkpoint.ref.name}` to run on probes of {probes.dtype}, shape "
            f"{tuple(probes.shape)}, got {type(error).__name__}: {printable(reason)}"
        ) from error


def _check_inputs(theirs: Images | Tokens | None, ours: Images | Tokens | None) -> None:
    def described(inputs: Images | Tokens | None) -> str:
        if isinstance(inputs, Images):
            return f"images of {inputs.channels} x {inputs.height} x {inputs.width}"
        return f"tokens of {inputs.vocabulary:,}" if inputs else "whatever a module takes"

    fits = type(theirs) is type(ours)
    if isinstance(theirs, Images) and isinstance(ours, Images):
        fits = (theirs.channels, theirs.height, theirs.width) == (ours.channels, ours.height, ours.width)
    if isinstance(theirs, Tokens) and isinstance(ours, Tokens):
        fits = theirs.vocabulary >= ours.vocabulary
    if not fits:
        raise ArgumentError(f"Expected inputs like the child's, {described(ours)}, got {described(theirs)}.")


def _needed(network: Network, chosen: Sequence[str]) -> list[str]:
    """Tensors that the taps depend on; tied ones stand under the name met first.

    Parts of a plain module may run in another order than they were registered in: all of its tensors.
    """
    known = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    if network.source == "module":
        return [*known]
    return [name for name in dict.fromkeys(n for tap in chosen for n in upstream(network.module, tap)) if name in known]


def _bytes(network: Network, checkpoint: Checkpoint, chosen: Sequence[str]) -> int:
    return sum(checkpoint[network.names[n]].nbytes for n in _needed(network, chosen) if n in network.names)


def _streams(models: Sequence[Checkpoint], places: Placement) -> bool:
    """Whether a model, or a pair, is read module after module: large or remote ones, and what the main device has no
    room for."""
    most = max(8 * sum(entry.count for entry in model.values()) for model in models)
    return any(model.remote for model in models) or most > MAX_BYTES_IN_MEMORY or not places.holds(most)
