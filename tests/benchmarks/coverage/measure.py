"""How many real architectures get a p-value, and how many of their blocks are told apart, from headers alone.

    python tests/benchmarks/coverage/measure.py transformers timm diffusers --out tests/benchmarks/results

Writes coverage-LIBRARY.csv, a row a model, and prints the shares, and the models without a p-value. It takes about
fifteen minutes of one core for all three. `covered` needs a header only: tests/test_coverage.py asks it one a cause.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from headers import LIBRARIES, Shapes  # noqa: E402

from hf_lineage.architecture.structure import cuts  # noqa: E402
from hf_lineage.checkpoints.checkpoint import HeaderCheckpoint  # noqa: E402
from hf_lineage.checkpoints.view import View  # noqa: E402
from hf_lineage.tasks.coverage import covered  # noqa: E402

COLUMNS = ("name", "p_value", "matrices", "units", "share", "expected", "recognised", "tested", "rules", "why_not")


def row(name: str, shapes: Shapes) -> dict[str, Any]:
    """What of one model can be tested; why not, if nothing: its largest tensors."""
    header = HeaderCheckpoint(shapes)
    found = covered(View(header, cuts(header)))
    units, blocks = found["units"], found["blocks"]
    largest = "; ".join(f"{part.pattern} ({100 * part.share:.0f} %): {part.reason}" for part in found["left_out"][:2])
    return {
        "name": name, "p_value": int(found["p_value"]), "matrices": units.matrices, "units": units.units,
        "share": round(units.share, 4), "expected": blocks.expected, "recognised": blocks.recognised,
        "tested": blocks.tested, "rules": "; ".join(f"{k} {n}" for k, n in found["rules"].items()),
        "why_not": "" if found["p_value"] else largest,
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The shares of one library, in a line."""
    tested = sum(int(row["p_value"]) for row in rows)
    expected, recognised, blocks = (sum(int(row[key]) for row in rows) for key in ("expected", "recognised", "tested"))
    return (
        f"{tested} of {len(rows)} models with a p-value ({100 * tested / len(rows):.1f} %); of {expected} blocks "
        f"{100 * recognised / expected:.1f} % recognised, {100 * blocks / expected:.1f} % tested"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="+", choices=[*LIBRARIES])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a configuration that would be fetched is none that is built here
    for library in chosen.libraries:
        rows, not_built = [], 0
        for name, shapes, _ in LIBRARIES[library]():
            if shapes is None:
                not_built += 1
            else:
                rows.append(row(name, shapes))
        report(library, rows, chosen.out)
        print(f"  {not_built} more are not built from their default configuration, or are larger sizes")


def report(library: str, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print the shares and what remains, and write the table."""
    print(library, summary(rows))
    for one in rows:
        if not one["p_value"]:
            print("  ", one["name"], "|", one["why_not"])
    if out:
        with (out / f"coverage-{library}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
