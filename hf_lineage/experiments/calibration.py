"""Make tasks/calibration.json and weights/direction/origin.json, about an hour on 2 cores:

    python -m hf_lineage.experiments.calibration FOLDER

Trains families in FOLDER (kept there), traces pairs whose order is known to fit the direction, asks hard questions to
fit the probability. Tests measure with other seeds, recipes and widths.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import t as student

from ..tasks import calibration
from ..tasks.trace import trace
from ..weights.direction import origin as direction
from .families import Family, Member, train_family, train_twins
from .questions import KEPT_WITHOUT_PARENT, answers

SEED = 101
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "fc": [
        {"roots": 8, "children": 4, "sizes": {"widths": [768, 192, 96]}},
        {"roots": 4, "children": 4, "sizes": {"widths": [512, 384]}},
    ],
    "vit": [
        {"roots": 3, "children": 4, "sizes": {"embed_dim": 48, "depth": 3}},
        {"roots": 3, "children": 4, "sizes": {"embed_dim": 72, "depth": 2}},
    ],
    "llama": [
        {"roots": 3, "children": 4, "sizes": {"hidden_size": 48, "intermediate_size": 144}},
        {"roots": 3, "children": 4, "sizes": {"hidden_size": 80, "intermediate_size": 160}},
    ],
    "resnet": [
        {"roots": 3, "children": 4, "sizes": {"channels": [12, 24, 48, 96]}},
        {"roots": 3, "children": 4, "sizes": {"channels": [24, 32, 48, 64]}},
    ],
}
TWINS = {"fc": 12, "vit": 5, "llama": 5, "resnet": 5}
QUESTIONS = 1100  # of each family and its twins
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
    write(calibration, {**made, "probability": fit_probability(asked)})


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


def example(question: Any, lineage: Any) -> tuple[np.ndarray, int]:
    """The features of a question's candidates, (candidates, features), and the parent's index, −1 for none."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    rows = np.array([c.evidence["calibration"].vector() for c in compared])
    parent = str(question.parent.path) if question.parent else None
    return rows, next((i for i, c in enumerate(compared) if c.ref == parent), -1)


def fit_probability(asked: Sequence[tuple[np.ndarray, int]], hidden: int = 12, decay: float = 4e-3) -> dict[str, Any]:
    """Maximum likelihood with a little weight decay, by L-BFGS over all questions at once."""
    most, width = max(len(rows) for rows, _ in asked), asked[0][0].shape[1]
    rows = torch.zeros(len(asked), most, width, dtype=torch.float64)
    absent = torch.ones(len(asked), most, dtype=torch.bool)
    for i, (each, _) in enumerate(asked):
        rows[i, : len(each)], absent[i, : len(each)] = torch.from_numpy(each), False
    truth = torch.tensor([parent + 1 for _, parent in asked])
    # all questions are asked, and those without a parent count less, as with `balanced`
    share = torch.where(truth > 0, 1.0, KEPT_WITHOUT_PARENT).double()
    generator = torch.Generator().manual_seed(SEED)
    shapes = {"hidden": (hidden, width), "bias": (hidden,), "out": (hidden,), "offset": ()}
    weights = {
        name: (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for name, shape in shapes.items()
    }
    optimizer = torch.optim.LBFGS(list(weights.values()), max_iter=600, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        scores = (rows @ weights["hidden"].T + weights["bias"]).tanh() @ weights["out"] + weights["offset"]
        scores = torch.cat([torch.zeros(len(asked), 1), scores.masked_fill(absent, -torch.inf)], 1)
        each = torch.nn.functional.cross_entropy(scores, truth, reduction="none")
        return (share * each).sum() / share.sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss() + decay * sum((w * w).sum() for w in weights.values())
        value.backward()
        return value

    optimizer.step(closure)
    found = {name: _short(value.detach().tolist()) for name, value in weights.items()}
    return {**found, "questions": len(asked), "log_loss": round(float(loss().detach()), 4)}


def _short(value: Any) -> Any:
    return [_short(item) for item in value] if isinstance(value, list) else float(f"{value:.4g}")


def write(module: ModuleType, found: dict[str, Any]) -> None:
    """The data file beside a module, of the module's name."""
    path = Path(str(module.__file__)).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
