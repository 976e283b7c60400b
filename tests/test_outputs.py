"""`trace` by stored outputs: a file or a mapping in the place of models, which nobody opens or runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.errors import ArgumentError, BrokenFileError, NoCandidatesError, NothingToCompareError
from hf_lineage.features.similarity import similarity


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    near, far = (torch.randn(20, 2, 3, generator=generator) for _ in range(2))
    child = near + 0.1 * torch.randn(20, 2, 3, generator=generator)
    return {"lab/child": child, "lab/near": near, "lab/far": far, "lab/wide": torch.cat([far, far], 1)}


def test_a_file_and_a_mapping_give_one_ranking(outputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(outputs, tmp_path / "outputs.safetensors")
    there = tmp_path / "outputs.safetensors"
    answers = [hl.trace("lab/child", evidence="features", outputs=given, metric="cka") for given in (outputs, there)]
    for lineage in answers:
        assert (lineage.verdict, lineage.parent, lineage.none_probability) == ("undecided", None, None)
        assert lineage.candidates[0].ref == "lab/near" and len(lineage.candidates) == 3
        assert sum(c.probability or 0 for c in lineage.candidates) == pytest.approx(1)
        best = lineage.candidates[0].evidence["features"]
        assert (best["form"], best["probes"], best["lined_up"], best["match_taylor"]) == ("stored", 20, None, None)
        expected = similarity("cka", *(outputs[name].flatten(1) for name in ("lab/near", "lab/child")))
        assert best["taps"][0]["scores"]["cka"]["plain"] == pytest.approx(expected)
        assert "no model run" in lineage.notes[0] and lineage.explain() and lineage.to_markdown() and str(lineage)
        assert hl.Lineage.from_json(lineage.to_json()) == lineage
    assert [c.probability for c in answers[0].candidates] == [c.probability for c in answers[1].candidates]
    assert answers[1].bytes_read >= sum(4 * value.numel() for value in outputs.values())


def test_other_widths_need_a_metric_of_the_rows(outputs: dict[str, torch.Tensor]) -> None:
    lineage = hl.trace("lab/child", ["lab/wide", "lab/far"], evidence="features", outputs=outputs)
    assert [(c.ref, c.status) for c in lineage.candidates] == [("lab/far", "compared"), ("lab/wide", "not_comparable")]
    assert "cka and dc" in lineage.candidates[1].reasons[0]
    with pytest.raises(NothingToCompareError, match="cka and dc"):
        hl.trace("lab/child", ["lab/wide"], evidence="features", outputs=outputs)


def test_what_cannot_be_asked(outputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for said, changes in {
        'evidence="features"': {"evidence": "weights"}, "probes": {"probes": 3}, "no-such": {"candidates": ["no-such"]},
        "more than": {"max_bytes": 10}, "finite": {"outputs": outputs | {"lab/child": torch.full((20, 6), torch.nan)}},
        "a metric": {"metric": "l9"},
    }.items():  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            hl.trace("lab/child", **({"evidence": "features", "outputs": outputs} | changes))
    with pytest.raises(NoCandidatesError):
        hl.trace("lab/child", ["lab/child"], evidence="features", outputs=outputs)
    (tmp_path / "outputs.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BrokenFileError):
        hl.trace("lab/child", evidence="features", outputs=tmp_path / "outputs.safetensors")


def test_the_command(outputs: dict[str, torch.Tensor], tmp_path: Path, run) -> None:
    save_file(outputs, tmp_path / "outputs.safetensors")
    ask = ("trace", "lab/child", "-c", "lab/far", "-c", "lab/near", "--outputs", tmp_path / "outputs.safetensors")
    code, out, _ = run(*ask, "--metric", "cka")
    assert code == 0 and "lab/near" in out and "no model run" in " ".join(out.split())
