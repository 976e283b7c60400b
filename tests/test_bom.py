"""Bills of materials and statements: valid, the same for the same answer, and about the very files."""

from __future__ import annotations

import builtins
import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_lineage.answers.layers import BlockOrigin, LayerLineage, Share
from hf_lineage.answers.lineage import Candidate, Lineage
from hf_lineage.answers.refs import ModelRef
from hf_lineage.errors import LineageError
from hf_lineage.hub.cards import CardRepository, folder_digests
from hf_lineage.report.bom import cyclonedx, statement

A, C = "a" * 40, "c" * 40
BEST = Candidate("lab/parent", "lab/parent", A, "compared", 0.97, 1e-12, 1e-12, "proven", -12.0, 0.01, "finetune")
ANSWER = Lineage(ModelRef("hub", "lab/child", C), "lab/child", "parent", "lab/parent", 0.02, (BEST,))
DIGESTS = {"model.safetensors": "0" * 64}


@functools.cache
def validator() -> Any:
    """Imported when it is asked: its grammars of addresses take a second, and every process collects this file."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def merge(*refs: str) -> LayerLineage:
    blocks = tuple(BlockOrigin(f"b.{i}", i, "tuned", ref, f"b.{i}", 0.9, 1e-9, -9.0) for i, ref in enumerate(refs))
    return LayerLineage(
        ANSWER.child, "lab/child", refs, blocks, {}, {}, dict.fromkeys(refs, A),
        tuple(Share(ref, "", 1 / len(refs), 0.0) for ref in refs), method="passthrough",
    )  # fmt: skip


class TestBillOfMaterials:
    def test_has_the_child_its_parent_and_what_was_measured(self) -> None:
        data = json.loads(cyclonedx(ANSWER, None, DIGESTS))
        (child,) = data["components"]
        (parent,) = child["pedigree"]["ancestors"]
        assert data["specVersion"] == "1.6" and child["type"] == parent["type"] == "machine-learning-model"
        assert child["purl"] == f"pkg:huggingface/lab/child@{C}" and child["version"] == C
        assert parent["purl"] == f"pkg:huggingface/lab/parent@{A}"
        figures = {item["name"]: item["value"] for item in child["properties"]}
        assumed = figures.pop("hf_lineage:p_value_assumes")
        assert assumed == "It assumes that nobody put the hidden units in this order on purpose, which was not checked."
        assert figures == {
            "hf_lineage:verdict": "parent", "hf_lineage:relation": "finetune", "hf_lineage:probability": "0.97",
            "hf_lineage:p_value": "1e-12", "hf_lineage:log10_p": "-12", "hf_lineage:distance": "0.01",
            "hf_lineage:alpha": "0.001", "hf_lineage:seed": "0", "hf_lineage:candidates": "1",
            "hf_lineage:none_probability": "0.02", "hf_lineage:sha256:model.safetensors": "0" * 64,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("lineage", "layers"),
        [
            (ANSWER, None),
            (replace(ANSWER, verdict="none", parent=None), None),
            (replace(ANSWER, verdict="common_origin", parent=None), merge("lab/parent", "lab/other")),
            (replace(ANSWER, child=ModelRef("local", "./x <y> & \u202e\u00e9")), None),
            (replace(ANSWER, parent="./p", candidates=(replace(BEST, ref="./p", revision=None),)), None),
            (replace(ANSWER, child=ModelRef("hub", "gpt2", C)), None),
        ],
    )
    def test_is_valid(self, lineage: Lineage, layers: LayerLineage | None) -> None:
        text = cyclonedx(lineage, layers, DIGESTS)
        assert validator().validate_str(text) is None
        assert validator().validate_str(text.replace("machine-learning-model", "model")) is not None  # it can fail

    def test_is_a_function_of_the_answer(self) -> None:
        text = cyclonedx(ANSWER, None, DIGESTS)
        assert text == cyclonedx(replace(ANSWER, seconds=5.0), None, DIGESTS) and "timestamp" not in text
        other = cyclonedx(ANSWER, None, {"model.safetensors": "1" * 64})
        assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]

    def test_a_merge_has_several_ancestors(self) -> None:
        lineage = replace(ANSWER, verdict="common_origin", parent=None)
        data = json.loads(cyclonedx(lineage, merge("lab/parent", "lab/other")))
        names = [one["purl"] for one in data["components"][0]["pedigree"]["ancestors"]]
        assert names == [f"pkg:huggingface/lab/other@{A}", f"pkg:huggingface/lab/parent@{A}"]

    def test_nobody_is_invented(self) -> None:
        (child,) = json.loads(cyclonedx(replace(ANSWER, verdict="none", parent=None)))["components"]
        assert "pedigree" not in child
        local = replace(ANSWER, child=ModelRef("local", "./mine"))
        assert "purl" not in json.loads(cyclonedx(local))["components"][0]

    def test_without_the_library_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def missing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("cyclonedx"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(LineageError, match=r"pip install 'hf_lineage\[bom\]'"):
            cyclonedx(ANSWER)


class TestStatement:
    def test_is_an_in_toto_statement(self) -> None:
        data = json.loads(statement(ANSWER, None, DIGESTS))
        assert data["_type"] == "https://in-toto.io/Statement/v1" and data["predicateType"].startswith(
            "urn:hf-lineage:"
        )
        assert data["subject"] == [{"name": "model.safetensors", "digest": {"sha256": "0" * 64}}]
        told = data["predicate"]
        assert told["child"] == f"lab/child@{C}" and told["parent"] == f"lab/parent@{A}" == told["ancestors"][0]
        assert (told["verdict"], told["probability"], told["p_value"]) == ("parent", 0.97, 1e-12)

    def test_its_digests_are_those_of_the_files(self, lab: Any, folders: dict[str, Path]) -> None:
        content = (folders["child"] / "model.safetensors").read_bytes()
        small = b"weights that the Hub keeps in git"
        hub_file = lab.repos["lab/child"].commits[lab.repos["lab/child"].refs["main"]]["model.safetensors"]
        lab.commit("lab/child", {"pytorch_model.bin": small, "notes.txt": b"x", "sub/model.safetensors": b"y"})
        lab.repos["lab/child"].commits[lab.repos["lab/child"].refs["main"]]["pytorch_model.bin"].lfs = False
        (folders["child"] / "notes.txt").write_bytes(b"x")
        assert folder_digests(folders["child"]) == {"model.safetensors": hashlib.sha256(content).hexdigest()}
        lab.log.clear()
        assert CardRepository(False).digests(ModelRef("hub", "lab/child")) == {
            "model.safetensors": hashlib.sha256(hub_file.read()).hexdigest(),
            "pytorch_model.bin": hashlib.sha256(small).hexdigest(),
        }
        assert sum(call.bytes_sent for call in lab.log if "model.safetensors" in call.path) == 0  # nothing downloaded
        assert not [call for call in lab.log if call.app == "cdn"]
