"""The JSON Schemas of docs/schema: every answer fits its own, and a document that is wrong does not."""

from __future__ import annotations

import copy
import json
import re
import sys
import typing
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import save, save_file
from torch import nn

import hf_lineage as hl
from hf_lineage.answers import (
    audit,
    comparison,
    coverage,
    history,
    index,
    inheritance,
    layers,
    lineage,
    phylogeny,
    search,
)  # fmt: skip
from hf_lineage.answers.annotation import Annotation
from hf_lineage.answers.base import SCHEMA
from hf_lineage.answers.base import Answer as AnyAnswer
from hf_lineage.errors import CODES, ArgumentError, MissingExtraError
from hf_lineage.experiments.merges import linear, slerp
from hf_lineage.tasks.phylogeny import METHODS

ROOT = Path(__file__).parents[1]
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "docs" / "schema").glob("*.json"))}
KINDS = [
    "annotation", "audit", "candidates", "comparison", "coverage", "history", "index", "index_query", "inheritance",
    "journal", "layers", "lineage", "phylogeny",
]  # fmt: skip
Answer = dict[str, Any]
Answers = dict[str, list[Answer]]
Tensors = dict[str, torch.Tensor]


def faults(kind: str, answer: Answer) -> list[str]:
    """What is wrong with an answer, each with its position in it."""
    found = Draft202012Validator(SCHEMAS[kind]).iter_errors(json.loads(json.dumps(answer, allow_nan=False)))
    return [f"{error.json_path}: {error.message}" for error in found]


def module_of(tensors: Tensors) -> nn.Module:
    layers = [("fc1", nn.Linear(48, 96)), ("relu", nn.ReLU()), ("fc2", nn.Linear(96, 64)), ("fc3", nn.Linear(64, 10))]
    module = nn.Sequential(OrderedDict(layers))
    module.load_state_dict(tensors)
    return module


def traced(folders: dict[str, Path], nets: dict[str, Tensors]) -> list[hl.Lineage]:
    """Each verdict, claims of each status, candidates that cannot be read or compared, folders, repos and a module."""
    asked = [folders[name] for name in ("parent", "stranger", "other")]
    return [
        hl.trace(folders["child"], asked),
        hl.trace(folders["parent"], asked[1:2]),
        hl.trace(folders["parent"], [*asked[1:], folders["copy"]]),
        hl.trace(folders["parent"], [folders["child"], folders["grandchild"]]),
        hl.trace(folders["child"], asked[2:]),
        hl.trace(module_of(nets["child"]), asked[:2], evidence=("weights", "features"), probes=torch.rand(16, 48)),
        hl.trace("lab/child", ["lab/parent", "lab/locked", "lab/nowhere"]),
        hl.trace("lab/liar", ["lab/parent"]),
        hl.trace("lab/child"),
    ]  # fmt: skip


MADE: Answers = {}


@pytest.fixture
def answers(lab: Any, folders: dict[str, Path], nets: dict[str, Tensors], tmp_path: Path) -> Answers:
    """Answers of every kind, of good models and bad ones; made once."""
    if not MADE:
        MADE.update(made(lab, folders, nets, tmp_path))
    return MADE


def made(lab: Any, folders: dict[str, Path], nets: dict[str, Tensors], tmp_path: Path) -> Answers:
    lab.add("lab/locked", {"model.safetensors": save(nets["parent"]), "config.json": b"{}"}, gated=True)
    lab.add(
        "lab/liar", {"model.safetensors": save(nets["stranger"]), "README.md": b"---\nbase_model: lab/parent\n---\n"}
    )
    more = {
        "copy": nets["parent"], "average": linear([nets["parent"], nets["stranger"]], [0.6, 0.4]),
        "arc": slerp(nets["parent"], nets["stranger"], 0.3),
    }  # fmt: skip
    for name, tensors in more.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        save_file(tensors, folders[name] / "model.safetensors")
    pair = [folders["parent"], folders["stranger"]]
    family = [*pair, folders["child"], folders["grandchild"], folders["other"], folders["average"]]
    lineages = traced(folders, nets)
    blocks = [hl.trace_layers(folders[name], pair) for name in ("child", "average", "arc", "copy", "grandchild")]
    blocks.append(hl.trace_layers(folders["stranger"], [folders["parent"]]))
    shown = {"evidence": "features", "probes": torch.rand(16, 48)}
    blocks.append(hl.trace_layers(module_of(nets["child"]), pair[:1], **shown))
    trees = [hl.phylogeny(family, method=method) for method in ("information", "detector", "mother", "distance")]
    trees.append(hl.phylogeny(["lab/parent", "lab/child", "lab/stranger", "lab/nowhere"]))
    flags = hl.inheritance(trees[0], {str(folders["parent"]): 0.9})
    trees.append(replace(trees[0], inheritance=flags))
    notes = [hl.annotate(folders["child"], lineages[0], layers=blocks[0]), hl.annotate("lab/child", lineages[6])]
    made = hl.Index(tmp_path / "models.index", create=True)
    states = [made.add([folders["parent"], folders["stranger"], "lab/nowhere"]), made.info()]
    queries = [made.query(folders["child"], alpha=0.5), made.query(folders["stranger"], verify=0)]
    journal = tmp_path / "audit.jsonl"
    records = list(hl.audit(["lab/child", "lab/liar", "lab/parent", "lab/nowhere"], journal=journal, search=True))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return {
        "lineage": [answer.to_dict() for answer in lineages],
        "layers": [answer.to_dict() for answer in blocks],
        "phylogeny": [answer.to_dict() for answer in trees],
        "candidates": [hl.find_candidates(child).to_dict() for child in ("lab/child", folders["stranger"])],
        "comparison": [
            hl.compare(folders["child"], folders[name]).to_dict() for name in ("parent", "stranger", "copy")
        ],
        "coverage": [hl.coverage(folders["child"], check=True).to_dict(), hl.coverage("lab/child").to_dict()],
        "history": [hl.inspect(folders["child"]).to_dict(), hl.inspect("lab/child").to_dict()],
        "index": [state.to_dict() for state in states],
        "index_query": [query.to_dict() for query in queries],
        "inheritance": [flags.to_dict()],
        "annotation": [note.to_dict() for note in notes],
        "audit": [*(record.to_dict() for record in records), *lines[1:]],
        "journal": lines[:1],
    }


def test_there_is_a_schema_for_each_kind_of_answer() -> None:
    assert sorted(SCHEMAS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$id"] == f"urn:{SCHEMA.replace('/', ':')}:{kind}"


def test_what_several_schemas_define_is_the_same_in_all() -> None:
    seen: dict[str, Any] = {}
    for schema in SCHEMAS.values():
        for name, definition in schema.get("$defs", {}).items():
            assert seen.setdefault(name, definition) == definition, name
            assert f'"#/$defs/{name}"' in json.dumps(schema), f"{name} is defined and not used"


def test_real_answers_fit(answers: Answers) -> None:
    assert {kind for kind, found in answers.items() if found} == {*KINDS}
    for kind, found in answers.items():
        for answer in found:
            assert not faults(kind, answer)
    verdicts = {answer["verdict"] for answer in answers["lineage"]}
    assert verdicts == {"parent", "none", "identical", "common_origin", "undecided"}, "the fixture shows each of them"
    statuses = {c["status"] for answer in answers["lineage"] for c in answer["candidates"]}
    assert statuses == {*typing.get_args(lineage.Status)}
    kinds = {block["kind"] for answer in answers["layers"] for block in answer["blocks"]}
    assert kinds == {*typing.get_args(layers.BlockKind)}
    assert {record["status"] for record in answers["audit"]} >= {"confirmed", "contradicted", "failed"}


def test_the_examples_of_the_space_fit() -> None:
    kinds = {"trace": "lineage", "compare": "comparison", "layers": "layers", "tree": "phylogeny"}
    paths = sorted((ROOT / "spaces_app" / "examples").glob("*.json"))
    assert {path.name.partition("-")[0] for path in paths} == {*kinds}
    for path in paths:
        assert not faults(kinds[path.name.partition("-")[0]], json.loads(path.read_text())["answer"])


def test_the_record_beside_a_card_fits(answers: Answers, folders: dict[str, Path], tmp_path: Path) -> None:
    """`annotate` writes it without what differs from run to run."""
    pair = [folders["parent"], folders["stranger"]]
    traced = hl.trace(folders["child"], pair)
    hl.annotate(folders["child"], traced, layers=hl.trace_layers(folders["child"], pair)).save(tmp_path / "card")
    for path, kind in (("lineage.json", "lineage"), ("lineage/layers.json", "layers")):
        record = json.loads((tmp_path / "card" / path).read_text())
        assert "seconds" not in record and not faults(kind, record)


def at(answer: Answer, path: str) -> tuple[Any, str | int]:
    """The container of a position such as `candidates.0.p_value`, and the last key."""
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in way:
        answer = answer[key]  # type: ignore[index]
    return answer, last


WRONG: list[tuple[str, str, Any]] = [
    ("lineage", "schema", "hf_lineage/1"), ("lineage", "verdict", "maybe"), ("lineage", "parent", None),
    ("lineage", "none_probability", 1.5), ("lineage", "child.revision", 7), ("lineage", "candidates.0.p_value", -0.1),
    ("lineage", "candidates.0.log10_p", 3.0), ("lineage", "candidates.0.relation", "cousin"),
    ("lineage", "candidates.0.status", "unreadable"), ("lineage", "candidates.0.note", "a key too many"),
    ("lineage", "candidates.0.distance", "near"), ("lineage", "undeclared", ["a", "b"]), ("lineage", "notes", [""]),
    ("lineage", "bytes_read", 1.5), ("lineage", "alpha", 0), ("lineage", "versions", {}), ("lineage", "extra", 1),
    ("layers", "blocks.0.kind", "similar"), ("layers", "blocks.0.parent", None), ("layers", "blocks.0.index", -1),
    ("layers", "blocks.0.mixture.0.stderr", -1), ("layers", "method", "soup"), ("layers", "evidence", ["guess"]),
    ("layers", "blocks.0.mixture.0.share", 1), ("layers", "residual", -0.1),
    ("phylogeny", "nodes.0.group", -1), ("phylogeny", "nodes.0.hidden", True), ("phylogeny", "nodes.0.generation", 0),
    ("phylogeny", "edges.0.direction", 0.3), ("phylogeny", "edges.0.claimed", True), ("phylogeny", "method", "magic"),
    ("phylogeny", "quality.undirected", 2), ("phylogeny", "quality.score", 1), ("phylogeny", "edges.0.relation", None),
    ("candidates", "candidates.0.rules", []), ("candidates", "candidates.0.similarity", 2),
    ("candidates", "candidates.0.status", "compared"), ("candidates", "requests", -1), ("candidates", "alpha", 0.1),
    ("comparison", "related", "yes"), ("comparison", "models", []), ("comparison", "later", None), ("comparison", "first", 1),
    ("coverage", "p_value", None), ("coverage", "units.share", 1.5), ("coverage", "left_out.0.reason", ""), ("coverage", "blocks.tested", -1),
    ("coverage", "check.kinds", None), ("coverage", "check.reason", 1),
    ("history", "lattice", "fp8"), ("history", "trained_since", False), ("history", "repeated_layers", [[1, 2, 3]]),
    ("history", "evidence.memory_bf16.entries", None), ("history", "alpha", 0.1), ("history", "stored", None),
    ("index", "shapes", {"fc": 1}), ("index", "failed", {"a": ""}), ("index", "models", -1), ("index", "alpha", 0.1),
    ("index_query", "matches.0.similarity", 2), ("index_query", "matches.0.layers", []), ("index_query", "lineage", {}),
    ("index_query", "family_wise.alpha", 0), ("index_query", "parent", ""), ("index_query", "layers", None),
    ("inheritance", "models.0.after", 1.5), ("inheritance", "rates.prior", None), ("inheritance", "models.0.ref", ""),
    ("annotation", "changed", "yes"), ("annotation", "files", ["README.md", "README.md"]), ("annotation", "diff", None),
    ("audit", "status", "fine"), ("audit", "findings", [{"rule": "contradicted-base-model"}]), ("audit", "reason", None),
    ("audit", "claims.0.source", "rumour"), ("audit", "verdict", "maybe"), ("audit", "passing", None),
    ("journal", "kind", "audit"), ("journal", "alpha", 1), ("journal", "token", "hf_secret"),
]  # fmt: skip


def test_wrong_documents_are_refused(answers: Answers) -> None:
    """One fault at a time, at the position where it was made."""
    for kind, path, value in WRONG:
        answer = copy.deepcopy(answers[kind][0])
        container, last = at(answer, path)
        container[last] = value
        assert faults(kind, answer), f"{kind} with {path} = {value!r} passes"


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_may_be_missing(kind: str, answers: Answers) -> None:
    volatile = {"bytes_read", "seconds"} if kind in ("lineage", "layers", "phylogeny") else set()
    for key in {*answers[kind][0]} - volatile:
        answer = {name: value for name, value in answers[kind][0].items() if name != key}
        assert f"$: '{key}' is a required property" in faults(kind, answer)


RECORDS: dict[tuple[str, str], type] = {
    ("lineage", "candidate"): lineage.Candidate, ("lineage", "claim"): lineage.Claim,
    ("layers", "block"): layers.BlockOrigin, ("layers", "share_of_source"): layers.Share,
    ("phylogeny", "node"): phylogeny.Node, ("phylogeny", "edge"): phylogeny.Edge,
    ("candidates", "found_candidate"): search.FoundCandidate, ("history", "history_evidence"): history.HistoryEvidence,
    ("coverage", "units"): coverage.TestedUnits, ("coverage", "blocks"): coverage.CoveredBlocks, ("coverage", "left_out"): coverage.LeftOut,
    ("coverage", "check"): coverage.UnitCheck, ("coverage", "kind"): coverage.CheckedKind,
    ("audit", "finding"): audit.Finding, ("index_query", "match"): index.Match,
    ("index_query", "family_wise"): index.FamilyWise, ("inheritance", "carrier"): inheritance.Carrier,
    ("inheritance", "rates"): inheritance.Rates, ("phylogeny", "carrier"): inheritance.Carrier,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), RECORDS)
def test_the_schema_has_the_fields_of_the_record(kind: str, name: str) -> None:
    assert [*SCHEMAS[kind]["$defs"][name]["properties"]] == [field.name for field in fields(RECORDS[kind, name])]


def choices(kind: str, *path: str) -> set[str]:
    found = SCHEMAS[kind]
    for key in path:
        found = found[key]
    return {value for value in found["enum"] if value is not None}


CHOICES: dict[str, tuple[set[str], Callable[[], set[str]]]] = {
    "verdict": ({*typing.get_args(lineage.Verdict)}, lambda: choices("lineage", "$defs", "verdict")),
    "relation": ({*typing.get_args(lineage.Relation)}, lambda: choices("lineage", "$defs", "relation")),
    "status": (
        {*typing.get_args(lineage.Status)}, lambda: choices("lineage", "$defs", "candidate", "properties", "status"),
    ),
    "claim": (
        {*typing.get_args(lineage.ClaimStatus)}, lambda: choices("lineage", "$defs", "claim", "properties", "status"),
    ),
    "kind": ({*typing.get_args(layers.BlockKind)}, lambda: choices("layers", "$defs", "block", "properties", "kind")),
    "method": ({*typing.get_args(layers.Method)}, lambda: choices("layers", "properties", "method")),
    "tree method": ({*METHODS}, lambda: choices("phylogeny", "properties", "method")),
    "looked": (
        {*typing.get_args(search.Looked)}, lambda: choices("candidates", "$defs", "found_candidate", "properties", "status"),
    ),
    "format": ({*typing.get_args(history.Format)}, lambda: choices("history", "$defs", "half_format")),
    "audit": ({*audit.RULES}, lambda: choices("audit", "properties", "status")),
    "rule": ({*audit.BY_ID}, lambda: choices("audit", "$defs", "rule")),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_schema_lists_the_choices_of_the_code(name: str) -> None:
    ours, theirs = CHOICES[name]
    assert theirs() == ours


def test_the_page_explains_every_field() -> None:
    page = (ROOT / "docs" / "schema.md").read_text()
    explained = {*re.findall(r"`([a-z0-9_]+)`", page)}
    for kind, schema in SCHEMAS.items():
        for part in (schema, *schema.get("$defs", {}).values()):
            for name in (*part.get("properties", {}), *(value for value in part.get("enum", ()) if "-" not in value)):
                assert name in explained, f"docs/schema.md does not explain {name} of {kind}"


def kind_of(answer: Answer) -> str:
    marks = {
        "lineage": "verdict", "layers": "blocks", "phylogeny": "nodes", "candidates": "requests", "annotation": "diff",
        "journal": "kind", "audit": "findings", "history": "trained_since", "coverage": "rules", "comparison": "pair",
        "index": "shapes", "index_query": "family_wise", "inheritance": "rates",
    }  # fmt: skip
    return next(kind for kind, key in reversed(marks.items()) if key in answer)


def recorded(value: Any) -> list[Answer]:
    """Every answer somewhere in a record of tests/recorded, which keeps only the names of `seconds` and `versions`."""
    if isinstance(value, list):
        return [answer for item in value for answer in recorded(item)]
    if not isinstance(value, dict):
        return []
    inner = [answer for key, item in value.items() if key != "predicate" for answer in recorded(item)]
    if value.get("schema") != SCHEMA:
        return inner
    given = {"seconds": 0.0, "versions": {"hf_lineage": "0.1.0"}}
    return [*inner, {key: given.get(key, item) if item is None else item for key, item in value.items()}]


def all_recorded() -> list[Answer]:
    files = sorted((ROOT / "tests" / "recorded").glob("*.json"))
    return [answer for path in files for answer in recorded(json.loads(path.read_text()))]


def test_the_recorded_answers_fit() -> None:
    found = all_recorded()
    assert {kind_of(answer) for answer in found} == {*KINDS} - NEW and len(found) > 100
    for answer in found:
        assert not faults(kind_of(answer), answer)


NEW = {"comparison", "coverage", "history", "index", "index_query", "inheritance"}  # not in version 1, and not recorded
READERS: dict[str, type[AnyAnswer]] = {
    "lineage": hl.Lineage, "layers": hl.LayerLineage, "phylogeny": hl.Phylogeny, "candidates": search.CandidateSearch,
    "annotation": Annotation, "audit": audit.AuditRecord, "comparison": comparison.Comparison,
    "coverage": coverage.Coverage, "history": history.History, "index": index.IndexState, "index_query": index.IndexQuery,
    "inheritance": inheritance.Inheritance,
}  # fmt: skip


def version_1(kind: str) -> Answer:
    return json.loads((ROOT / "tests" / "schema_1" / f"{kind}.json").read_text())


NEW_KEYS = ("order", "raw", "redone", "inheritance")


def without_news(value: Any) -> Any:
    """A document of version 2 as version 1 would have had it."""
    if isinstance(value, list):
        return [without_news(item) for item in value]
    if not isinstance(value, dict):
        return value
    if {*value} == {"code", "text", "hint"}:
        assert value["code"] == "older_text" and not value["hint"]
        return value["text"]
    return {key: without_news(item) for key, item in value.items() if key not in NEW_KEYS}


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in NEW])
def test_answers_of_version_1_are_read(kind: str) -> None:
    old = version_1(kind)
    new = READERS[kind].from_json(json.dumps(old)).to_dict()
    assert new["schema"] == "hf_lineage/2" and not faults(kind, new)
    expected = old | {"schema": "hf_lineage/2"}
    if kind == "candidates":  # a reason that is not there was an empty text
        new["candidates"] = [{**c, "reason": c["reason"] or ""} for c in new["candidates"]]
    assert without_news(new) == without_news(expected)


def test_what_is_written_is_read_again() -> None:
    """Every recorded answer but the journal's settings: the same JSON, and the same table where the JSON has it all."""
    for answer in all_recorded():
        if (kind := kind_of(answer)) != "journal":
            again = READERS[kind].from_dict(answer)
            kept = {name: value for name, value in again.to_dict().items() if name in answer}  # a card's has no cost
            assert kept == answer
            assert str(again) and (kind != "lineage" or again.sentence())  # type: ignore[attr-defined]


def test_an_answer_that_was_written_is_equal_to_itself_and_to_no_other(answers: Answers) -> None:
    for kind, reader in READERS.items():
        read = [reader.from_dict(answer) for answer in answers[kind]]
        for answer in read:
            again = reader.from_json(answer.to_json())
            assert again == answer and hash(again) == hash(answer) and answer != answer.to_dict()
        others = {json.dumps(answer) for answer in answers[kind]}
        assert len({*read}) == len(others), kind


def test_every_answer_is_a_table_and_a_page(answers: Answers) -> None:
    for kind, reader in READERS.items():
        for answer in map(reader.from_dict, answers[kind]):
            table = answer.to_pandas()
            assert len(table) == len(answer.rows()) and (
                len(table) or kind in ("annotation", "phylogeny", "index_query")
            )
            page = answer._repr_html_()
            ElementTree.fromstring(page)  # every element is closed
            assert page.startswith('<div class="hf-lineage">') and answer._repr_markdown_() == answer.to_markdown()


def test_a_table_without_pandas_is_one_line(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_lineage\[pandas\]'"):
        hl.Lineage.from_dict(answers["lineage"][0]).to_pandas()


@pytest.mark.parametrize("kind", READERS)
def test_other_documents_are_refused(kind: str, answers: Answers) -> None:
    reader, good = READERS[kind], answers[kind][0] if kind in NEW else version_1(kind)
    key = next(
        name for name in good if name not in ("schema", "seconds", "bytes_read", "seed", "alpha", "versions", "notes")
    )
    for wrong in ({}, [], {**good, "schema": "hf_lineage/3"}, {k: v for k, v in good.items() if k != key}):
        with pytest.raises(ArgumentError, match="Expected"):
            reader.from_dict(wrong)  # type: ignore[arg-type]
    for text in ("", "[1", "{}", "[]", "null", "[" * 10_000):
        with pytest.raises(ArgumentError, match="Expected"):
            reader.from_json(text)


def test_an_order_is_written_and_read() -> None:
    order = lineage.Order(0.95, 0.04, 1.1, "rounding_edges", 22_000, 1e-4)
    assert [*order.to_dict()] == [*SCHEMAS["lineage"]["$defs"]["order"]["properties"]]
    assert lineage.Order.from_dict(order.to_dict()) == order and order.to_dict()["lambda"] == 0.95
    answer = READERS["lineage"].from_dict(version_1("lineage")).to_dict()
    answer["candidates"][0]["order"] = order.to_dict()
    assert not faults("lineage", answer) and hl.Lineage.from_dict(answer).candidates[0].order == order


def test_the_page_lists_every_code() -> None:
    page = (ROOT / "docs" / "schema.md").read_text()
    assert all(f"| `{code}` | {meaning} |" in page for code, meaning in CODES.items())
