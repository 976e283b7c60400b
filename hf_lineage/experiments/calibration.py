"""Make tasks/calibration.json and weights/direction/origin.json, about an hour on 2 cores:

    python tests/benchmarks/real_questions.py FOLDER FOLDER/other       (a real model and its light fine-tunes)
    python -m hf_lineage.experiments.calibration FOLDER

Trains families in FOLDER (kept there), traces pairs whose order is known to fit the direction, asks hard questions to
fit the probability, together with what lies in FOLDER/other. Tests measure with other seeds, recipes and widths.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import t as student

from ..answers.lineage import Lineage
from ..tasks import calibration
from ..tasks.calibration import MAX_LOG_ODDS, Features
from ..tasks.trace import trace
from ..weights.direction import origin as direction
from .families import Family, Member, train_family, train_twins
from .questions import KEPT_WITHOUT_PARENT, Question, answers

SEED = 101
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "fc": [
        {"roots": 8, "children": 4, "sizes": {"widths": [768, 192, 96]}},
        {"roots": 4, "children": 4, "sizes": {"widths": [512, 384]}},
    ],
    "llama": [
        {"roots": 3, "children": 4, "sizes": {"hidden_size": 48, "intermediate_size": 144}},
        {"roots": 3, "children": 4, "sizes": {"hidden_size": 80, "intermediate_size": 160}},
    ],
    "vit": [
        {"roots": 3, "children": 4, "sizes": {"embed_dim": 48, "depth": 3}},
        {"roots": 3, "children": 4, "sizes": {"embed_dim": 72, "depth": 2}},
    ],
    "resnet": [
        {"roots": 3, "children": 4, "sizes": {"channels": [12, 24, 48, 96]}},
        {"roots": 3, "children": 4, "sizes": {"channels": [24, 32, 48, 64]}},
    ],
}
TWINS = {"fc": 12, "vit": 5, "llama": 5, "resnet": 5}
QUESTIONS = 500  # of each family and its twins
TAILS = 4.0  # degrees of freedom of the positions' errors
MAX_TWINS_DIRECTED = 0.02  # share of twins for which a parent may be named
MAX_REVERSED = 0.005  # share of pairs for which the child may be named the parent
MARGIN = 0.6  # of the way from there to certainty: other recipes drift more than the few fitted on


def make(folder: Path) -> None:
    """Fit and write all numbers, with what they were made from."""
    families = [train(folder, name, turn) for name, sizes in FAMILIES.items() for turn in range(len(sizes))]
    made = {"made": f"hf_lineage.experiments.calibration, seed {SEED}, {time.strftime('%Y-%m-%d')}"}
    order = fit_direction([pair for group in families for pair in pairs(group)])
    write(direction, {**made, **order})
    direction.fitted_numbers.cache_clear()
    asked = [
        example(question, lineage)
        for turn, group in enumerate(families)
        for question, lineage in answers(group, QUESTIONS, SEED + turn, balanced=False)
    ]
    asked += other_examples(folder)
    write(calibration, {**made, "probability": fit_probability([each for each in asked if each is not None])})


def train(folder: Path, name: str, turn: int) -> list[Family]:
    """One family of an architecture and its twins."""
    arguments = FAMILIES[name][turn]
    folder, seed = folder / f"{name}-{turn}", SEED + 10 * turn
    families = [train_family(folder, name, generations=3, seed=seed, other_recipes=True, **arguments)]
    for shorten in (1.0, 0.4):
        path = folder.with_name(f"{folder.name}-twins-{shorten}")
        families.append(
            train_twins(
                path, name, TWINS[name], seed=seed + 1, sizes=arguments["sizes"], shorten=shorten, other_recipes=True
            )
        )
    return families


Pair = tuple[str, float, float, float]  # what the candidate is, t, reach, reach seen from the child


def pairs(families: Sequence[Family]) -> list[Pair]:
    """The position of the origin for ancestors and twins of every member, each traced alone."""
    found = []
    for family in families:
        for kind, candidate, child in _related(family):
            lineage = trace(child.path, [candidate.path])
            origin = lineage.candidates[0].evidence["weights"]["origin"]
            t, reach = origin["t"], origin["reach"]
            back = max(reach**2 + 1 - 2 * t, 0.0) ** 0.5  # |child|²/|Δ|²
            found.append((kind, t, reach, back))
    return found


def _related(family: Family) -> list[tuple[str, Member, Member]]:
    found = []
    for child in family.children:
        parent = family.member(child.parent or "")
        found.append(("parent", parent, child))
        if parent.parent:
            found.append(("ancestor", family.member(parent.parent), child))
    starts: dict[Any, list[Member]] = {}
    for member in family.members:
        if "start" in member.recipe:
            starts.setdefault(member.recipe["start"], []).append(member)
    found += [("twin", both[0], both[1]) for both in starts.values() if len(both) == 2]
    return found


def fit_direction(found: Sequence[Pair]) -> dict[str, float]:
    """Maximum likelihood of the scales, then the least probability at which a direction is reported, with a margin."""
    older = np.array([pair[1:] for pair in found if pair[0] != "twin"])
    twins = np.array([pair[1:] for pair in found if pair[0] == "twin"])

    def scales(logs: np.ndarray, position: float, data: np.ndarray) -> float:
        spread, drift = np.exp(logs)
        return -float(student.logpdf(data[:, 0], TAILS, position, spread + drift * data[:, 1]).mean())

    ends = np.exp(minimize(scales, np.log([0.05, 0.03]), (0.0, older), method="Nelder-Mead").x)
    middle = np.exp(minimize(scales, np.log([0.02, 0.005]), (0.5, twins), method="Nelder-Mead").x)
    numbers = {
        "spread": ends[0], "drift": ends[1], "twin_spread": middle[0], "twin_drift": middle[1],
        "relative_spread": 0.1, "relative_drift": 0.1, "tails": TAILS,
    }  # fmt: skip
    return {name: float(f"{value:.4g}") for name, value in _safest(numbers, older, twins).items()}


def _safest(numbers: dict[str, float], older: np.ndarray, twins: np.ndarray) -> dict[str, float]:
    """With the least probability at which a direction is reported, and its margin."""
    direction.fitted_numbers.cache_clear()
    direction.fitted_numbers().update(numbers)

    def parent_probability(data: np.ndarray, back: bool) -> np.ndarray:
        positions = [(1 - t, behind) if back else (t, reach) for t, reach, behind in data]
        return np.array([direction.direction_shares(position).parent for position in positions])

    forward, reverse = parent_probability(older, False), parent_probability(older, True)
    of_twins = np.r_[parent_probability(twins, False), parent_probability(twins, True)]
    safe = [
        sure
        for sure in np.arange(0.5, 1.0, 0.01)
        if (of_twins >= sure).mean() <= MAX_TWINS_DIRECTED and (reverse >= sure).mean() <= MAX_REVERSED
    ]
    sure = min([*safe, 0.99]) + MARGIN * (1 - min([*safe, 0.99]))
    shares = [(name, np.mean(each >= sure)) for name, each in (
        ("parents", forward), ("children", reverse), ("twins", of_twins)
    )]  # fmt: skip
    reported = ", ".join(f"{share:.3f} of {name}" for name, share in shares)
    print(f"sure {sure:.2f}: reported for {reported}; {len(older)} pairs, {len(twins)} twins")
    return {**numbers, "sure": sure}


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One question's candidates: (candidates, features) of the odds, their shares of having come first, their places by
    what they tell about the child, the parent's index (−1: none of them), and how much the question counts."""

    rows: np.ndarray
    first: np.ndarray
    places: np.ndarray
    parent: int
    weight: float

    @classmethod
    def of(cls, lineage: Lineage, parent: str | None, weight: float) -> Example | None:
        """What the rule saw of an answer; None where it was not asked (equal weights, or a cast)."""
        compared = [c for c in lineage.candidates if c.status == "compared"]
        if not compared or any(c.relation in ("identical", "head_changed", "cast") for c in compared):
            return None
        seen: list[Features] = [c.evidence["calibration"] for c in compared]  # type: ignore[misc]  # it was just asked
        found = next((i for i, c in enumerate(compared) if c.ref == parent), -1)
        rows, first, places = (
            np.array(each) for each in ([x.vector() for x in seen], [x.first for x in seen], [x.place for x in seen])
        )
        return cls(rows, first, places, found, weight)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("rows", "first", "places")}
        return {**arrays, "parent": self.parent, "weight": self.weight}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """What `to_dict` wrote."""
        rows, first, places = (np.array(data[name]) for name in ("rows", "first", "places"))
        return cls(rows, first, places, data["parent"], data["weight"])


def example(question: Question, lineage: Lineage) -> Example | None:
    """What the rule saw of a question."""
    weight = 1.0 if question.turned or question.parent else KEPT_WITHOUT_PARENT
    return Example.of(lineage, str(question.parent.path) if question.parent else None, weight)


def other_examples(folder: Path) -> list[Example]:
    """What other programs made of other models (`tests/benchmarks/real_questions.py`), in `other/*.json`."""
    files = sorted((folder / "other").glob("*.json"))
    return [Example.from_dict(data) for path in files for data in json.loads(path.read_text(encoding="utf-8"))]


class Padded:
    """Examples as arrays with as many candidates each: `rows` (questions, candidates, features), `first`, `absent`,
    `places`, `truth` (0: none) and `weight`."""

    def __init__(self, asked: Sequence[Example]) -> None:
        most, width = max(len(each.rows) for each in asked), asked[0].rows.shape[1]
        shape = (len(asked), most)
        self.rows = torch.zeros(*shape, width, dtype=torch.float64)
        self.first, self.places = torch.zeros(shape, dtype=torch.float64), torch.full(shape, -1)
        self.absent = torch.ones(shape, dtype=torch.bool)
        for i, each in enumerate(asked):
            n = len(each.rows)
            self.rows[i, :n], self.first[i, :n] = torch.from_numpy(each.rows), torch.from_numpy(each.first)
            self.places[i, :n], self.absent[i, :n] = torch.from_numpy(each.places), False
        self.truth = torch.tensor([each.parent + 1 for each in asked])
        self.weight = torch.tensor([each.weight for each in asked], dtype=torch.float64)

    def prior(self) -> float:
        """Share of the questions with the parent among the candidates."""
        return float((self.weight * (self.truth > 0)).sum() / self.weight.sum())

    def loss(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean log loss of the rule of `tasks/calibration.py` with these numbers."""
        logs = (self.rows @ weights["hidden"].T + weights["bias"]).tanh() @ weights["out"] + weights["offset"]
        ranked = torch.where(self.places >= 0, logs, -torch.inf).sort(1, descending=True).values
        logs = torch.where(self.places >= 0, ranked.gather(1, self.places.clamp(min=0)), logs)
        odds = torch.where(self.absent, 0.0, logs.clamp(max=MAX_LOG_ODDS).exp())
        known = self.first * odds
        shares = known / (1 + known.sum(1, keepdim=True) + (1 - self.first) * odds)
        every = torch.cat([1 - shares.sum(1, keepdim=True), shares], 1).clamp(min=1e-12)
        each = -every.gather(1, self.truth[:, None]).log()[:, 0]
        return (self.weight * each).sum() / self.weight.sum()


def fit_probability(asked: Sequence[Example], hidden: int = 6, decay: float = 3e-4) -> dict[str, Any]:
    """Maximum likelihood with a little weight decay, by L-BFGS over all questions at once."""
    padded = Padded(asked)
    generator = torch.Generator().manual_seed(SEED)
    shapes = {"hidden": (hidden, padded.rows.shape[2]), "bias": (hidden,), "out": (hidden,), "offset": ()}
    weights = {
        name: (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for name, shape in shapes.items()
    }
    optimizer = torch.optim.LBFGS(list(weights.values()), max_iter=600, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = padded.loss(weights) + decay * sum((w * w).sum() for w in weights.values())
        value.backward()
        return value

    optimizer.step(closure)
    found = {name: _short(value.detach().tolist()) for name, value in weights.items()}
    return {
        **found, "prior": round(padded.prior(), 4), "questions": len(asked),
        "log_loss": round(float(padded.loss(weights).detach()), 4),
    }  # fmt: skip


def _short(value: Any) -> Any:
    return [_short(item) for item in value] if isinstance(value, list) else float(f"{value:.4g}")


def write(module: ModuleType, found: dict[str, Any]) -> None:
    """The data file beside a module, of the module's name."""
    path = Path(str(module.__file__)).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
