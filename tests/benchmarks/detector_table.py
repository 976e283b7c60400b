"""The tables of docs/benchmarks.md about the Lineage Detector: python tests/benchmarks/detector_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PROTOCOL = {  # what was asked → the file, and where in it
    "FC, 12 parents, by child (Table 1)": ("protocol-fc-question", None),
    "… normalised by running means": ("protocol-fc-running", None),
    "ResNet, 7 parents, by child (Table 1)": ("protocol-resnet-question", None),
    "FC with orphans (S1.2)": ("none-fc", "score"), "ResNet with orphans (S1.2)": ("none-resnet", "score"),
    "FC, first to second generation (Table 2)": ("generations", "1 to 2"),
    "… first to fourth": ("generations", "1 to 4"), "… third to fourth": ("generations", "3 to 4"),
    "FC, shuffled labels": ("control", None),
}  # fmt: skip
INPUTS = ("weight 1", "weight 2", "weight 3", "weights 1 and 2", "feature 1", "feature 2", "feature 3", "features 1 and 2",
          "feature 1 and weight 1")  # fmt: skip
UNSEEN = {
    "trees-fc": "fully connected", "trees-fc-light": "… light", "detector-fc": "… 16×16 glyphs",
    "detector-fc-wide": "… wide", "trees-resnet": "ResNet", "trees-resnet-light": "… light",
    "detector-resnet": "… 16×16", "trees-vit": "ViT", "detector-vit-wide": "… wide", "trees-llama": "Llama",
    "trees-llama-light": "… light", "detector-bert": "BERT, never trained on",
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"detector-{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown: trained on the family it is asked about, then the one that ships."""
    rows = [["trained on a part of the family", "right", "ECE", "nearest by weights", "nearest by features"]]
    rows.append(["---", *["---:"] * 4])
    for what, (name, part) in PROTOCOL.items():
        each = read(name)[part] if part else read(name)
        right, spread = each["accuracy"]
        nearest = [_percent(each[f"nearest by {kind}"][0]) for kind in ("weights", "features")]
        rows.append([what, f"{_percent(right)} ± {100 * spread:.1f}", f"{each['ece'][0]:.2f}", *nearest])
    shipped = [["its network alone (λ = 0), on families it never saw", "parent among unrelated models", "orphans", "beside relatives",
                "nearest by weights there"], ["---", *["---:"] * 4]]  # fmt: skip
    families = read("shipped")["families"]
    for name, what in UNSEEN.items():
        each = families[name]
        shipped.append([
            what, *(_percent(each[kind]["accuracy"]) for kind in ("parent", "orphans", "beside relatives")),
            _percent(each["beside relatives"]["nearest"]["weights"]),
        ])  # fmt: skip
    parts = (rows, shipped, beside_relatives())
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in parts) + "\n"


def beside_relatives() -> list[list[str]]:
    """The one that ships, without and with λ, ± over draws of the questions."""
    found: dict[str, dict[str, Any]] = {}
    for row in read("relatives")["rows"]:
        found.setdefault(row["family"], {})[row["kind"]] = row
    rows = [["the one that ships, 8 draws of 60 questions", "parent among unrelated models", "orphans",
             "beside relatives: λ = 0", "with λ", "parent first of the candidates", "least l2 of the weights"],
            ["---", *["---:"] * 6]]  # fmt: skip
    for name, kinds in found.items():
        near = kinds["beside relatives"]
        cells = [kinds["parent"]["after"]["right"], kinds["orphans"]["after"]["right"], near["before"]["right"],
                 near["after"]["right"], near["after"]["first"], near["l2 of weights"]]  # fmt: skip
        rows.append([name, *(f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in cells)])
    return rows


def summary() -> str:
    """What the tables do not say."""
    control, running, blocks = read("control"), read("protocol-fc-running"), read("transfer")
    plain = [name for name in running if name.endswith(("plain", "exact"))]
    low, high = (f(running[name][0] for name in plain) for f in (min, max))
    inputs = [f"{name} {_percent(read('inputs')[name]['accuracy'][0])}" for name in INPUTS]
    own, shipped = blocks["trained on FC features"], blocks["shipped"]
    alone = [each["relatives without the parent"]["accuracy"] for each in read("shipped")["families"].values()]
    return (
        f"In %, mean and deviation of the repeats. Learning-free features on the FC splits: {_percent(low)} to "
        f"{_percent(high)}. Other inputs (Table S5, FC, 3 repeats): {', '.join(inputs)}. Chance of the shuffled labels: {_percent(control['chance'])}. Relatives without the parent "
        f'are called "none of these" in {_percent(min(alone))} to {_percent(max(alone))}. Blocks of a hybrid of '
        f"{own['candidates']} ViTs, by features alone (S2.7): {own['right']} of {own['blocks']} right by a detector that "
        f"was trained on FC features, {shipped['right']} of {shipped['blocks']} by the one that ships."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share in (0.0, 1.0) else f"{100 * share:.1f}"


if __name__ == "__main__":
    print(table() + "\n" + summary())
