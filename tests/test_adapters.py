"""LoRA adapters: what their shapes show, what they do not, and which files name their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Tensors, llama, tuned
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Lineage
from hf_lineage.checkpoints.adapter_shapes import adapter_fit
from hf_lineage.checkpoints.entry import Entry
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import LineageError

SMALL, BIG = llama(1), llama(2, width=32, hidden=80)


def factors(model: Tensors, rank: int = 4, kinds: tuple[str, ...] = ("q_proj", "v_proj")) -> Tensors:
    """Factors of an adapter of some matrices, in PEFT's names."""
    found: Tensors = {}
    for name, matrix in model.items():
        if any(kind in name for kind in kinds):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            found[f"{at}.lora_A.weight"] = torch.ones(rank, matrix.shape[1])
            found[f"{at}.lora_B.weight"] = torch.ones(matrix.shape[0], rank)
    return found


def entries(tensors: Tensors) -> dict[str, Entry]:
    return {name: Entry(name, "F32", tuple(t.shape), t.nbytes) for name, t in tensors.items()}


class TestFit:
    def test_of_its_base(self) -> None:
        fit = adapter_fit(entries(factors(SMALL)), entries(SMALL))
        assert (fit.factors, fit.fitting, fit.misfit) == (6, 6, "")

    def test_of_another_width(self) -> None:
        fit = adapter_fit(entries(factors(SMALL)), entries(BIG))
        assert fit.fitting == 0 and "its matrix is [32, 32]" in fit.misfit

    def test_of_matrices_stored_the_other_way_round(self) -> None:
        turned = {name: t.T for name, t in llama(3, hidden=70).items() if t.ndim == 2}
        assert not adapter_fit(entries(factors(llama(3, hidden=70), kinds=("gate",))), entries(turned)).misfit

    def test_of_names_without_a_wrapper(self) -> None:
        bare = {name.removeprefix("model."): t for name, t in SMALL.items()}
        assert adapter_fit(entries(factors(SMALL)), entries(bare)).fitting == 6

    def test_of_a_model_of_other_names_nothing_is_said(self) -> None:
        fit = adapter_fit(entries(factors(SMALL)), entries({"blocks.0.weight": torch.ones(3, 3)}))
        assert (fit.fitting, fit.misfit) == (0, "") and "name no matrix" in fit.explain()

    def test_added_tokens_are_no_misfit(self) -> None:
        longer = {**SMALL, "lm_head.weight": torch.ones(60, 24)}
        assert not adapter_fit(entries(factors(SMALL, kinds=("lm_head", "q_proj"))), entries(longer)).misfit

    def test_without_factors(self) -> None:
        assert "no factors" in adapter_fit({}, entries(SMALL)).explain()


class Shelf:
    """Folders `lab/NAME` under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "lab"

    def put(self, name: str, tensors: Tensors | None = None, **files: Any) -> Path:
        (folder := self.folder / name).mkdir(parents=True)
        if tensors is not None:
            save_file(tensors, folder / "model.safetensors")
        return self.add(folder, **files)

    def adapter(self, name: str, base: Any, lora: Tensors | None = None, **files: Any) -> Path:
        folder = self.put(name, None, **files)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        if lora is not None:
            save_file(lora, folder / "adapter_model.safetensors")
        return folder

    def add(self, folder: Path, **files: str) -> Path:
        for name, text in files.items():
            (folder / name.replace("_md", ".md")).write_text(text)
        return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def asked(folder: Path, *candidates: Path) -> Lineage:
    return hl.trace(folder, candidates)


class TestTrace:
    def test_an_adapter_does_not_confirm_itself(self, shelf: Shelf) -> None:
        base, other = shelf.put("base", SMALL), shelf.put("other", llama(7))
        lora = shelf.adapter("lora", str(base), factors(SMALL), README_md="---\nbase_model: lab/base\n---\n")
        lineage = asked(lora, base, other)
        its = next(c for c in lineage.candidates if c.ref == str(base))
        assert (lineage.verdict, lineage.parent) != ("parent", str(base)) and lineage.parent is None
        assert (its.status, its.p_value, its.probability) == ("not_comparable", None, None)
        assert "6 of 6 of the adapter's factors fit" in its.reasons[0]
        assert {claim.status for claim in lineage.claims} <= {"not_testable", "not_understood"}
        assert not lineage.undeclared and (lineage.verdict, lineage.none_probability) == ("undecided", None)
        assert "LoRA adapter" in lineage.sentence() and "only candidate" not in lineage.explain()

    def test_factors_that_cannot_fit_contradict(self, shelf: Shelf) -> None:
        big, small = shelf.put("big", BIG), shelf.put("small", SMALL)
        lora = shelf.adapter("lora", str(big), factors(SMALL), README_md="---\nbase_model: lab/big\n---\n")
        lineage = asked(lora, big, small, shelf.put("other", llama(9, width=32, hidden=80)))
        assert (lineage.verdict, lineage.parent) == ("undecided", None)
        assert [claim.status for claim in lineage.claims if claim.source == "card"] == ["contradicted"]
        reasons = {Path(c.ref).name: c.reasons[0] for c in lineage.candidates}
        assert "cannot belong to it" in reasons["big"] and "6 of 6" in reasons["small"]
        (record,) = hl.audit([lora])
        assert record.status == "contradicted" and "its matrix is [32, 32]" in record.reason

    def test_a_card_gets_no_base_from_the_adapters_base(self, shelf: Shelf) -> None:
        root, base = shelf.put("root", SMALL), shelf.put("base", tuned(SMALL, 2, 0.05))
        lineage = asked(shelf.adapter("lora", str(base), factors(SMALL)), root)
        from hf_lineage.report.card import wanted

        assert lineage.notes[0].code == "adapter_base_traced" and wanted(lineage) == {}

    def test_an_adapter_without_tensors_confirms_nothing(self, shelf: Shelf) -> None:
        base = shelf.put("base", SMALL)
        lineage = asked(shelf.adapter("lora", str(base), {}), base)
        assert (lineage.verdict, lineage.parent) == ("undecided", None)
        assert "holds no factors" in lineage.candidates[0].reasons[0]

    def test_pickled_factors_need_no_pickle_for_the_claim(self, shelf: Shelf) -> None:
        base = shelf.put("base", SMALL)
        lora = shelf.adapter("lora", str(base))
        torch.save(factors(BIG), lora / "adapter_model.bin")
        lineage = asked(lora, base)
        assert lineage.verdict == "undecided" and "adapter_not_read" in {note.code for note in lineage.notes}
        read = hl.trace(lora, [base], allow_pickle=True)
        assert "cannot belong to it" in read.candidates[0].reasons[0]

    def test_merged_weights_beside_it_are_compared(self, shelf: Shelf) -> None:
        base, other = shelf.put("base", SMALL), shelf.put("other", llama(7))
        both = shelf.adapter("both", "lab/base", factors(SMALL))
        save_file(tuned(SMALL, 3, 0.05), both / "model.safetensors")
        lineage = asked(both, base, other)
        assert lineage.candidates[0].ref == str(base) and lineage.candidates[0].relation != "none"
        assert lineage.claims[0].source == "adapter"
        assert lineage.candidates[0].p_value is not None


class TestBase:
    @pytest.mark.parametrize("written", ["/models/base", "models/base", "", None, 3, "my base"])
    def test_of_a_path_or_nothing_is_the_cards(self, shelf: Shelf, written: Any) -> None:
        lora = shelf.adapter("lora", written, factors(SMALL), README_md="---\nbase_model: lab/base\n---\n")
        found = open_checkpoint(lora).adapter_base
        assert found == ("lab/base" if written != "/models/base" else written), "a folder here is the folder"

    def test_of_neither_is_told(self, shelf: Shelf) -> None:
        with pytest.raises(LineageError, match="names no base model"):
            asked(shelf.adapter("lora", None, factors(SMALL)), shelf.put("base", SMALL))

    def test_in_a_folder_of_its_repo_is_named(self, shelf: Shelf) -> None:
        base = shelf.put("base", SMALL)
        shelf.adapter("repo/adapter", str(base), factors(SMALL))
        with pytest.raises(LineageError, match=r"repo/adapter"):
            asked(shelf.folder / "repo", base)
