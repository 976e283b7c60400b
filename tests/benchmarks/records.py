"""Results that are kept: what was found with seed, commit and machine, a question or a set of models a line."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def write_record(name: str, rows: Sequence[Mapping[str, Any]], **about: Any) -> None:
    """Write `results/NAME.json`: the commit that is checked out, the machine, what `about` says, and the rows."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    head = {"commit": commit.strip(), "machine": platform.machine(), "torch": torch.__version__, **about}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(f'{text},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
