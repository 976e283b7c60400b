"""The programs that measure name what they time: it must be there."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("tree_scale", Path(__file__).parent / "benchmarks" / "tree_scale.py")
assert spec and spec.loader
tree_scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tree_scale)
NAMES = [name for stages in (tree_scale.STAGES, tree_scale.PARTS) for names in stages.values() for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_timed_exists(name: str) -> None:
    module, *way = name.split(".", 2)[0:2] + name.split(".")[2:]
    found = importlib.import_module(f"hf_lineage.{module}.{way[0]}")
    for part in way[1:]:
        found = getattr(found, part)
    assert callable(found)
