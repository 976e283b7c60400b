"""The real huggingface.co, for those who have it: `pytest -m hub`. Never run in CI."""

from __future__ import annotations

import pytest

import hf_lineage as hl
from hf_lineage.checkpoints.opener import open_checkpoint

pytestmark = pytest.mark.hub


def test_a_renamed_repo_and_its_header() -> None:
    checkpoint = open_checkpoint("gpt2", token=False)
    assert checkpoint.ref.name == "openai-community/gpt2" and len(str(checkpoint.ref.revision)) == 40
    assert checkpoint["wte.weight"].shape == (50257, 768) and checkpoint.bytes_read < 1_000_000


def test_a_well_known_child() -> None:
    child = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
    lineage = hl.trace(child, ["distilbert/distilbert-base-uncased", "distilbert/distilbert-base-cased"], token=False)
    assert lineage.parent == "distilbert/distilbert-base-uncased" and lineage.bytes_read < 30_000_000
