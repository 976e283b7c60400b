"""Our recipe goes through the real mergekit and makes the child: MERGEKIT_PYTHON=/path/to/python pytest tests/test_mergekit.py

mergekit's pins are not ours, so that it lives in an environment of its own; without one these tests are skipped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hf_lineage as hl

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import merges_table as table

PYTHON = os.environ.get("MERGEKIT_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MERGEKIT_PYTHON names no Python that has mergekit")

T = [{"filter": "self_attn", "value": [0, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.7, 0.2]}, {"value": 0.5}]
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"base": None, "models": ["a", "b"], "settings": {"weight": (0.65, 0.35)}}),
    "ties": ("ties", {"base": "base", "models": ["a", "b"], "settings": {"weight": (0.6, 0.4), "density": (0.5, 0.6)}}),
    "slerp by kind": ("slerp", {"base": "a", "models": ["b"], "settings": {"t": T}}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", table.DTYPES)
def test_a_merge_of_mergekits_is_made_again_by_it(tmp_path: Path, dtype: str) -> None:
    """Its own merges are recognised, and our recipe makes the same files bit for bit."""
    for name, tensors in table.family("llama", "siblings", dtype).items():
        table.put(tmp_path / name, tensors, "llama")
    jobs = []
    for what, (method, plan) in PLANS.items():
        path = tmp_path / f"{what}.yml"
        path.write_text(yaml.safe_dump(table.as_yaml(plan, method, tmp_path, dtype)))
        jobs.append((path, tmp_path / what))
    assert {*table.run_recipes(PYTHON, jobs).values()} == {"made"}
    again = []
    for what, (method, _) in PLANS.items():
        layers = hl.trace_layers(tmp_path / what, [tmp_path / name for name in ("base", "a", "b", "c")], verify=True)
        assert layers.method == method and layers.redone and layers.redone.whole, (what, layers.reasons, layers.redone)
        path = tmp_path / f"{what}-ours.yml"
        path.write_text(layers.recipe())
        again.append((path, tmp_path / f"{what}-again"))
    assert {*table.run_recipes(PYTHON, again).values()} == {"made"}
    for what in PLANS:
        ours, theirs = table.load_all(tmp_path / f"{what}-again"), table.load_all(tmp_path / what)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs), what
