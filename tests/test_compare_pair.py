"""`compare`: two models without roles, in any order; and models in memory, lists of one, folders of models."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.errors import ArgumentError, NothingToCompareError

Folders = dict[str, Path]
Nets = dict[str, dict[str, torch.Tensor]]


def same(one: hl.compare, other: hl.compare) -> bool:  # type: ignore[valid-type]
    left, right = (answer.to_dict() | {"seconds": 0, "bytes_read": 0} for answer in (one, other))
    return json.dumps(left) == json.dumps(right)


def test_the_order_of_the_two_does_not_matter(folders: Folders) -> None:
    one, other = (hl.compare(folders[a], folders[b]) for a, b in (("child", "parent"), ("parent", "child")))
    assert same(one, other) and one.related is True and one.first == str(folders["parent"])
    assert one.later == str(folders["child"]) and one.relation == "finetune" and one.p_value <= 1e-3
    text = one.sentence()
    assert "share an origin" in text and "came first" in text and "white noise" in text
    assert "or from a model so near" in text, "a sibling that moved little looks the same"
    assert type(one).from_json(one.to_json()) == one


def test_unrelated(folders: Folders) -> None:
    found = hl.compare(folders["child"], folders["stranger"])
    assert found.related is False and found.first is None and found.sentence().startswith("Unrelated: ")
    assert "unrelated" in str(found) and all(len(line) <= 60 for line in found.to_text(60).splitlines())


def test_copies_and_the_same_model_twice(folders: Folders, nets: Nets, tmp_path: Path) -> None:
    save_file(nets["parent"], tmp_path / "model.safetensors")
    found = hl.compare(tmp_path, folders["parent"])
    assert found.related and found.relation == "identical" and found.first is None
    assert "identical: every weight is equal" in found.sentence()
    with pytest.raises(ArgumentError, match="Expected two models"):
        hl.compare(folders["parent"], folders["parent"])


def test_models_that_do_not_line_up(folders: Folders, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.randn(64, 3, 3, 3)}, tmp_path / "model.safetensors")
    found = hl.compare(tmp_path, folders["parent"])
    assert found.related is None and "is not known: they could not be compared" in found.sentence()


def test_on_the_command_line(run, folders: Folders) -> None:
    code, out, _ = run("compare", folders["child"], folders["parent"])
    assert code == 0 and "verdict  Related:" in out and "came first" in out and "what was done" in out
    assert run("compare", folders["child"], folders["parent"], "-q")[1].strip() == str(folders["parent"])
    document = json.loads(run("compare", folders["stranger"], folders["parent"], "--json")[1])
    assert document["related"] is False and run("compare", "./nothing", folders["parent"])[0] == 3
    assert "fine-tuned from it" in run("compare", folders["child"], folders["parent"], "--format", "agent")[1]


def test_a_batch_is_a_line_for_each_pair(run, folders: Folders, tmp_path: Path) -> None:
    listed = tmp_path / "children.txt"
    listed.write_text(f"# ours\n{folders['grandchild']}\n./nowhere  # gone\n")
    bases = f"{folders['parent']},{folders['stranger']}"
    code, out, _ = run("batch", folders["child"], "--from", listed, "-c", bases)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and len(rows) == 5 and [row["status"] for row in rows].count("compared") == 4
    first = rows[0]
    assert first["child"] == str(folders["child"]) and first["candidate"] == first["parent"] == str(folders["parent"])
    assert rows[-1]["child"] == "./nowhere" and rows[-1]["error"].startswith("model_not_found: Expected")
    table = tmp_path / "table.csv"
    assert run("batch", folders["child"], "-c", bases, "--out", table)[0] == 0
    assert list(csv.DictReader(io.StringIO(table.read_text()))) == rows[:2]
    assert run("batch", "-c", bases)[0] == 2


def asked(lineage: hl.Lineage) -> Mapping[str, float | None]:
    return {candidate.requested: candidate.probability for candidate in lineage.candidates}


def test_state_dicts_and_lists_of_one(folders: Folders, nets: Nets) -> None:
    found = hl.trace(nets["child"], [nets["parent"], folders["stranger"]])
    assert found.child.name == found.parent == "module:state_dict" and found.verdict == "parent"
    assert found.candidates[0].requested == "candidates[0]"
    alone = [hl.trace(child, folders["parent"]) for child in (folders["child"], [folders["child"]])]
    assert asked(alone[0]) == asked(alone[1]) == asked(hl.trace(str(folders["child"]), [str(folders["parent"])]))
    assert hl.compare(nets["child"], nets["parent"]).first == "module:state_dict"
    for wrong in ([folders["child"], folders["parent"]], {"a": 1}, {}, 3):
        with pytest.raises(ArgumentError, match="Expected a"):
            hl.trace(wrong, [folders["parent"]])  # type: ignore[arg-type]


def test_a_folder_of_models_is_all_of_them(run, folders: Folders) -> None:
    root = folders["child"].parent
    whole = {node.ref for node in hl.phylogeny([folders[name] for name in folders]).nodes if node.ref}
    assert {node.ref for node in hl.phylogeny(root).nodes if node.ref} == whole
    code, out, _ = run("tree", root, "-q")
    assert code == 0 and out.strip()
    assert run("tree", "./nothing", "./none")[0] == 1
    with pytest.raises(NothingToCompareError):
        hl.phylogeny(folders["child"].parent / "nothing")


def test_progress_true_is_a_bar(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert hl.trace(folders["child"], folders["parent"], progress=True).parent
    assert capsys.readouterr().err == "", "which is no terminal"
