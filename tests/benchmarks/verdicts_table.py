"""The table of docs/benchmarks.md about verdicts on real, lightly tuned models: python tests/benchmarks/verdicts_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "direction_verdicts.json"
NAMES = {
    "parent": "parent and child, the parent's own base beside it where it has one",
    "the other way round": "the same pairs, the child offered as the parent",
    "sibling and base": "a sibling and their base",
    "sibling alone": "a sibling alone",
}


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def table() -> str:
    """Markdown, one row a kind of question."""
    lines = ["| offered | questions | right | no parent named | a wrong one named |", "| --- | --- | --- | --- | --- |"]
    for what, counts in read()["table"].items():
        found = [counts.get(result, 0) for result in ("right", "silent", "wrong")]
        lines.append(f"| {NAMES[what]} | {sum(found)} | {' | '.join(map(str, found))} |")
    return "\n".join(lines) + "\n"


def summary() -> str:
    """What the table does not say: the pairs whose order stays open, and the siblings that were taken for a parent."""
    questions = read()["questions"]
    silent = [q["child"] for q in questions if q["asked"] == "parent" and q["result"] == "silent"]
    wrong = sorted({q["said"] for q in questions if q["result"] == "wrong"})
    named = f"taken for a parent: {', '.join(wrong)}" if wrong else "none was taken for a parent"
    return f"No parent was named of {', '.join(silent)}. Of the siblings, {named}."


if __name__ == "__main__":
    print(table() + "\n" + summary())
