"""The table of docs/benchmarks.md about what family trees are worth, from the recorded runs: python tests/benchmarks/trees_table.py"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
KINDS = {
    "fc": "fully connected", "resnet": "ResNet", "vit": "ViT", "llama": "Llama", "fc-light": "fully connected, light",
    "resnet-light": "ResNet, light", "llama-light": "Llama, light",
}  # fmt: skip
BINS = 10


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"trees-{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown: one row a method, one column a family; all generations, then the first two."""
    found = {kind: read(kind) for kind in KINDS}
    for kind, parts in read("detector")["trees"].items():
        if kind in found:  # measured apart, and shown after the method that it has to beat
            rest = found[kind]["methods"]
            found[kind]["methods"] = {"information": rest["information"], "detector": parts, **rest}
    head = [f"{name} ({found[kind]['models']})" for kind, name in KINDS.items()]
    rows = [["method", *head], ["---", *["---:"] * len(head)]]
    for part, suffix in (("all", ""), ("two generations", ", two generations")):
        for method in found["fc"]["methods"]:
            rows.append([f"`{method}`{suffix}", *(_cell(each["methods"][method][part]) for each in found.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(row: dict[str, Any]) -> str:
    direction = row["right"] / row["found"] if row["found"] else 0.0  # undirected edges are in the denominator
    shares = " / ".join(f"{100 * share:.0f}" for share in (row["lineage"], direction, row["overall"]))
    return f"{shares} ({100 * row['undirected']:.0f})" if row["undirected"] else shares


def summary() -> str:
    """The figures that are one number each."""
    found = {kind: read(kind) for kind in KINDS}
    heavy, light = (
        [each["methods"]["information"]["all"] for kind, each in found.items() if kind.endswith("light") is is_light]
        for is_light in (False, True)
    )
    many, unrelated = read("many"), read("strangers")
    stored = {kind: read(f"stored-{kind}") for kind in ("fc", "resnet", "vit", "llama")}
    rows = [row for each in [*found.values(), many] for row in each["edges"]]
    edge = calibration_error([row[0] for row in rows], [row[1] for row in rows])
    directed = [row for row in rows if row[1] and row[2] is not None]
    wrong = sum(not row[3] for row in directed)
    merges = [each["merges"] for each in stored.values()]
    orphans = [each["orphans"] for each in found.values()]
    generations = read("generations")
    return (
        f"`information`, all generations: {_sum(heavy, 'found')} of {_sum(heavy, 'edges')} edges right ignoring "
        f"direction, {_sum(heavy, 'directed')} of these directed, {_sum(heavy, 'right')} of those rightly; light "
        f"fine-tunes {_sum(light, 'found')} of {_sum(light, 'edges')}, {_sum(light, 'directed')} directed, "
        f"{_sum(light, 'right')} rightly. A family of {many['models']} fully connected models: "
        f"{_cell(many['methods']['information']['all'])}. Expected calibration error of an edge's probability over "
        f"{len(rows):,} edges: {edge:.3f}; of {len(directed):,} directed true edges {wrong} point the wrong way. Members "
        f"stored in turn as fp16, bf16, int8, half pruned, with another head: "
        + ", ".join(f"{KINDS[kind]} {_cell(each['stored'])}" for kind, each in stored.items())
        + f". Merges of two and three members, of one tree or two: {_sum(merges, 'told')} of {_sum(merges, 'merges')} found, "
        f"{_sum(merges, 'sources right')} with exactly their sources, {_sum(merges, 'groups joined')} trees joined by them. A "
        f"parent taken out: {_sum(orphans, 'noticed')} of {_sum(orphans, 'missing')} noticed; ancestors made up while nobody "
        f"is missing: {_sum(orphans, 'made up')} among {_sum(orphans, 'models')} models. Unrelated models of one data set and recipe: "
        + ", ".join(f"{each['edges']} edges among {each['models']} {kind}" for kind, each in unrelated.items() if
                    isinstance(each, dict))
        + ". An ancestor first among all models of its generation (Neural Lineage, Table 2; steps of one, two, three "
        "generations): " + "; ".join(f"{name} {_steps(generations[name])}" for name in _named(generations))
        + ". Alone, each signal says the right direction of an edge, %: "
        + "; ".join(f"{name} {_signals(each['signals'])}" for name, each in zip(KINDS.values(), found.values(), strict=True))
        + ". " + _learned()
    )  # fmt: skip


def _learned() -> str:
    """What the Phylogeny Detector is worth beyond its row, and what its parts are."""
    found, ladder = (
        read("detector"),
        json.loads((RESULTS / "phylogeny-detector-ladder.json").read_text(encoding="utf-8")),
    )
    sure = [pair for parts in found["trees"].values() for pair in parts["all"]["sure"]]
    error = calibration_error([p for p, _ in sure], [true for _, true in sure])
    shares = {
        name: [100 * sum(row[key] for row in rows.values()) / len(rows) for key in ("lineage", "direction", "overall")]
        for name, rows in ladder["sees"].items()
    }
    return (
        f"`detector`: the family of {found['trees']['fc-many']['models']} {_cell(found['trees']['fc-many']['all'])}; stored "
        "otherwise " + ", ".join(f"{KINDS[kind]} {_cell(row)}" for kind, row in found["stored"].items())
        + f"; expected calibration error of an edge with its direction over {len(sure):,} edges {error:.3f}; unrelated models "
        + ", ".join(f"{each['edges']} edges among {each['models']} {kind}" for kind, each in found["strangers"].items())
        + f". What a pair sees, {ladder['steps']} steps each, mean over the seven families: "
        + "; ".join(f"{name} {' / '.join(f'{share:.0f}' for share in each)}" for name, each in shares.items())
        + "."
    )  # fmt: skip


def _sum(rows: Sequence[dict[str, Any]], name: str) -> int:
    return sum(row[name] for row in rows)


def _named(generations: dict[str, Any]) -> list[str]:
    return [name for name, each in generations.items() if isinstance(each, dict)]


def _steps(table: dict[str, list[int]]) -> str:
    sums = {1: [0, 0], 2: [0, 0], 3: [0, 0]}
    for pair, (right, asked) in table.items():
        earlier, later = map(int, pair.split(" → "))
        sums[later - earlier][0] += right
        sums[later - earlier][1] += asked
    return ", ".join(f"{right} / {asked}" for right, asked in sums.values())


def _signals(shares: dict[str, float]) -> str:
    names = {"lean": "residual asymmetry"}
    return ", ".join(f"{names.get(name, name)} {100 * share:.0f}" for name, share in shares.items())


def calibration_error(said: Sequence[float], right: Sequence[bool]) -> float:
    """Over bins of equal mass."""
    pairs = sorted(zip(said, right, strict=True))
    parts = [pairs[len(pairs) * i // BINS : len(pairs) * (i + 1) // BINS] for i in range(BINS)]
    return sum(abs(sum(p - y for p, y in part)) for part in parts) / len(pairs)


if __name__ == "__main__":
    print(table())
    print(summary())
