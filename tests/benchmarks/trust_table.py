"""The table of docs/benchmarks.md about what verdicts are worth, from the recorded measurements: python tests/benchmarks/trust_table.py"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = {"fc": "fully connected", "resnet": "ResNet", "vit": "ViT", "llama": "Llama"}
TRUE = "true within the distances of twins, rate <= 1e-3"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown, one column an architecture."""
    rows = [["what", *NAMES.values()], ["---"] * (1 + len(NAMES))]
    changes = read("relations")["architectures"]
    rows.append(["changes with parent and relation right", *(_right(changes[name]) for name in NAMES)])
    lines = read("generations")["architectures"]
    rows.append(["root found, from all later generations", *(_share(lines[name], "root first") for name in NAMES)])
    rows.append(["nearest ancestor first", *(_share(lines[name], "parent first") for name in NAMES)])
    orders = read("direction")["architectures"]
    rows.append(["true pairs as far apart as twins: `parent`", *(_said(orders[name][TRUE]) for name in NAMES)])
    rows.append(["all true pairs, rates 1e-2 to 1e-4: `parent`", *(_said(orders[name]["true"]) for name in NAMES)])
    rows.append(["twins: `parent`", *(_said(orders[name]["twins"]) for name in NAMES)])
    rows.append(
        ["child offered as its parent's candidate: `parent`", *(_said(orders[name]["reversed"]) for name in NAMES)]
    )
    rows.append(["… reported as the `descendant`", *(_descendants(orders[name]["reversed"]) for name in NAMES)])
    hidden = read("disguise")["architectures"]
    for how in ("permuted", "permuted and rescaled"):
        rows.append(
            [f"children with units {how}: found", *(f"{hidden[n][f'{how}, found']} / {hidden[n][how]}" for n in NAMES)]
        )
    apart = (f"{hidden[n]['taken_for_relatives']} / {hidden[n]['pairs']:,}" for n in NAMES)
    rows.append(["unrelated pairs taken for relatives", *apart])
    parts = read("calibration")["architectures"]
    rows.append(
        [
            "hard verdicts: first answer right",
            *(f"{100 * parts[n]['top1']:.0f} % of {parts[n]['verdicts']}" for n in NAMES),
        ]
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def summary() -> str:
    """The probability's figures, over all architectures."""
    found = read("calibration")["all"]
    low, high = found["interval_95"]
    return (
        f"Over {found['verdicts']:,} hard verdicts the expected calibration error is {found['ece']:.3f} (95 % interval "
        f"{low:.3f} to {high:.3f}, {len(found['bins'])} bins of equal mass), the log loss {found['log_loss']:.2f} against "
        f"{found['log_loss_constant']:.2f} of a constant answer."
    )


def _right(found: Mapping[str, Any]) -> str:
    return f"{sum(row['first'] and row['right'] for row in found.values())} / {len(found)}"


def _share(found: Mapping[str, Any], key: str) -> str:
    return f"{sum(row[key] for row in found.values())} / {sum(row['children'] for row in found.values())}"


def _said(found: Mapping[str, Any]) -> str:
    return f"{found['verdicts'].get('parent', 0)} / {found['pairs']}"


def _descendants(found: Mapping[str, Any]) -> str:
    return f"{found['relations'].get('descendant', 0)} / {found['pairs']}"


if __name__ == "__main__":
    print(table(), summary(), sep="\n")
