"""The table of docs/benchmarks.md about what a search for candidates finds and costs: python tests/benchmarks/search_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = {"fc": "fully connected", "resnet": "ResNet", "vit": "ViT", "llama": "Llama"}


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"search-{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown, one column an architecture."""
    parts = [read(name) for name in NAMES]
    rows = [["what", *NAMES.values()], ["---"] * (1 + len(NAMES))]
    rows.append(["networks of the child's own names and shapes", *(str(part["same shapes"]) for part in parts)])
    for what, key, of in (
        ("children without a card: the parent is among the candidates", "parent among the candidates", "asked"),
        ("… and comes first", "parent first", "asked"),
        ("… or a child of its own does", "parent or own child first", "asked"),
        ("… and is named as the parent", "parent named", "asked"),
        ("… and another model is named", "wrongly named", "asked"),
        ("cards that name an unrelated model: contradicted", "contradicted", "lies"),
        ("… and the parent comes first all the same", "parent first all the same", "lies"),
        ("the parent is hidden: another relative is named", "another named", "parent hidden"),
        ("… which is an older ancestor", "that is an ancestor", "parent hidden"),
    ):
        rows.append([what, *(f"{part[key]} / {part[of]}" for part in parts)])
    rows.append(["median requests, of them to the API", *(f"{p['median requests']}, {p['median api']}" for p in parts)])
    rows.append(["median bytes read", *(f"{p['median bytes'] / 1e6:.0f} MB" for p in parts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def summary() -> str:
    """What the table does not say."""
    parts = [read(name) for name in NAMES]
    most, seconds = max(part["most requests"] for part in parts), [part["median seconds"] for part in parts]
    return (
        f"No search sent more than {most:,} requests; the median took {min(seconds):.0f} to {max(seconds):.0f} s on loopback, "
        "on two cores with other work."
    )


if __name__ == "__main__":
    print(table() + "\n" + summary())
