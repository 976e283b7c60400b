"""Make the detector that ships: python -m hf_lineage.experiments.detector FOLDER (about ten minutes on a core).

Trains families in FOLDER (kept there), reads each network once, asks questions with a known answer about them, and
writes `hf_lineage/detector/shipped/`. The network decides on "none of these"; the order of the candidates is that of
the change of their weights (`DetectorConfig.nearest`), beside which the network alone found fewer parents among
relatives. λ and the temperature are fitted by `tests/benchmarks/detector_relatives.py` on other families.

Candidates are unrelated, relatives beside the parent, or unrelated alone; validation and test ask about lines of
descent that training never meets. Relatives without the parent are not asked about: a child that moved far from its
parent looks like a cousin that moved little, and a detector that was trained on both found fewer parents. Tests measure
with other seeds.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..answers.base import Progress
from ..checkpoints.opener import Opener
from ..detector.examples import Examples, Row
from ..detector.inputs import DetectorInputs, read_inputs
from ..detector.model import DetectorConfig
from ..detector.train import described, write
from ..detector.training import STATE_FILE, Training, evaluate, train, with_temperature
from ..errors import LineageError
from .families import Family, Member, train_trees
from .family_file import run_settings
from .phylogenies import FITTED
from .questions import line_of_descent, relation_between

SHIPPED = Path(__file__).parents[1] / "detector" / "shipped"
CONFIG = DetectorConfig(no_parent="score", scale="child", norm="running", entries=1024, probes=128)
NEAREST = 1.5  # λ of least loss on the families of `tests/benchmarks/detector_relatives.py`
TRAINING = Training(epochs=6, rate=0.005, patience=None, seed=7, alone=0.25)
USUAL: dict[str, dict[str, Any]] = {  # the usual recipes and sizes, beside the other ones of `FITTED`
    "fc": {"seed": 51}, "fc-light": {"seed": 52, "shorten": 0.1, "branching": (4, 2, 1)},
    "resnet": {"seed": 51}, "resnet-light": {"seed": 52, "roots": 3, "shorten": 0.1, "branching": (4, 2, 1)},
    "vit": {"seed": 51},
    "llama": {"seed": 51}, "llama-light": {"seed": 52, "roots": 3, "shorten": 0.1, "branching": (4, 2, 1)},
}  # fmt: skip
KIND_WEIGHTS = {"unrelated": 3.0, "cousin": 2.0, "sibling": 2.0, "ancestor": 1.0, "descendant": 0.7, "twin": 1.0}
HELD_OUT_EVERY = 5  # every fifth root and its descendants are for validation or, every tenth, the test
PARENT_OFFERED_SHARE = 0.75  # of questions, with the parent among the candidates
RELATIVES_SHARE = 0.35  # of these, with relatives among the candidates
MAX_CANDIDATES = 8  # of one question


def families(folder: Path, progress: Progress | None = None) -> list[Family]:
    """The families that the shipped detector is trained on."""
    found = [
        train_trees(folder / name, name.split("-")[0], **arguments, progress=progress)
        for name, arguments in USUAL.items()
    ]
    return found + [
        train_trees(folder / "fit" / name, name.split("-")[0], **arguments, other_recipes=True, progress=progress)
        for name, arguments in FITTED.items()
    ]


def inputs_of(
    family: Family, config: DetectorConfig, members: Sequence[Member] | None = None, probes: Any = None
) -> dict[str, DetectorInputs]:
    """A detector's inputs of each member, by its path; members that cannot be read are left out."""
    settings = run_settings(family.folder, config.probes)
    settings = settings if probes is None else replace(settings, probes=probes)
    opener, found = Opener(), {}
    for member in members or family.members:
        try:
            found[str(member.path)] = read_inputs(opener.open(member.path), config, settings)
        except LineageError:
            continue
    return found


class Descent:
    """The members that can be compared, by path, and their relations."""

    def __init__(self, families: Sequence[Family], inputs: Mapping[str, DetectorInputs]) -> None:
        self.lines: dict[str, list[str]] = {}
        self.members: dict[str, Member] = {}
        for family in families:
            for member in family.members:
                if str(member.path) in inputs:
                    self.members[str(member.path)] = member
                    self.lines[str(member.path)] = line_of_descent(member, family.members)
        self._comparable: dict[Any, list[str]] = {}
        for name in self.members:
            self._comparable.setdefault((inputs[name].kind, inputs[name].shapes), []).append(name)
        self._of = {name: comparable for comparable in self._comparable.values() for name in comparable}

    def relations(self, child: str) -> dict[str, list[str]]:
        """The other members of a child's class and shapes, by their relation to the child."""
        groups: dict[str, list[str]] = {}
        for name in self._of[child]:
            if name != child:
                kind = relation_between(self.lines[child], self.lines[name], self.members[child], self.members[name])
                groups.setdefault(kind, []).append(name)
        return groups


def questions(
    lines: Descent, children: Sequence[str], rng: random.Random, *, each: int = 1,
    offered: float = PARENT_OFFERED_SHARE, relatives: float = RELATIVES_SHARE, most: int = MAX_CANDIDATES,
    among: frozenset[str] | None = None,
) -> Iterator[Row]:  # fmt: skip
    """`each` questions about each child that has unrelated candidates; of candidates only those `among`."""
    for child in children:
        relations = {
            kind: [name for name in names if among is None or name in among]
            for kind, names in lines.relations(child).items()
        }
        if not relations.get("unrelated"):
            continue
        for _ in range(each):
            parent = relations["parent"][0] if relations.get("parent") and rng.random() < offered else None
            kinds = ["unrelated"]
            if parent and rng.random() < relatives:
                kinds = [kind for kind in KIND_WEIGHTS if relations.get(kind)]
            chosen = [parent] if parent else []
            for _ in range(rng.randint(1, most - 1)):
                kind = rng.choices(kinds, [KIND_WEIGHTS[kind] for kind in kinds])[0]
                chosen.append(rng.choice(relations[kind]))
            chosen = list(dict.fromkeys(chosen))
            rng.shuffle(chosen)
            yield Row(child, tuple(chosen), parent)


def make(
    folder: Path, out: Path = SHIPPED, config: DetectorConfig = CONFIG, how: Training = TRAINING, each: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the shipped detector and write it; its figures."""
    started = time.monotonic()
    trained = families(folder, progress)
    inputs: dict[str, DetectorInputs] = {}
    for family in trained:
        inputs |= inputs_of(family, config)
        if progress:
            progress(len(inputs), sum(len(each.members) for each in trained), f"reading {family.folder.name}")
    lines = Descent(trained, inputs)
    roots = {name: line[-1] for name, line in lines.lines.items()}
    held_out = sorted({*roots.values()})[::HELD_OUT_EVERY]
    rng = random.Random(how.seed)
    fitted = [name for name in inputs if roots[name] not in held_out]
    training = [*questions(lines, fitted, rng, each=each, among=frozenset(fitted))]
    rng.shuffle(training)
    parts = {"training": Examples(inputs, tuple(training))}
    for name, of_part in (("validation", held_out[::2]), ("test", held_out[1::2])):
        parts[name] = Examples(inputs, tuple(questions(lines, [n for n in inputs if roots[n] in of_part], rng)))
    work = folder / "detector"
    detector, history = train(parts["training"], parts["validation"], config, how, work, progress=progress)
    detector = with_temperature(detector, parts["validation"], NEAREST)
    figures: dict[str, Any] = {
        "made": {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - started, 1),
                 "by": "hf_lineage.experiments.detector"},
        "versions": {name: version(name) for name in ("hf_lineage", "torch", "accelerate")},
        "config": asdict(detector.config), "training": asdict(how), "split": "line of descent",
        "examples": {name: described(part) for name, part in parts.items()},
        "validation": evaluate(detector, parts["validation"]), "test": evaluate(detector, parts["test"]),
        "nearest": parts["test"].nearest(), "epochs": len(history), "history": history,
        "notes": ["Each third question has no parent, which counts as wrong for the nearest candidate."],
    }  # fmt: skip
    write(detector, figures, out)
    (work / STATE_FILE).unlink(missing_ok=True)  # nothing is lost before it is written
    return figures


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    figures = make(Path(sys.argv[1]), progress=lambda done, total, what: print(done, total, what, flush=True))
    print({name: figures[name] for name in ("validation", "test", "nearest", "examples")})
