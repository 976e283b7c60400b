"""The index: sketches, e-values, the folder, the questions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from conftest import Tensors, net
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.errors import ArgumentError
from hf_lineage.index import sketch, store
from hf_lineage.index.sketch import MOST, NUMBERS, SCALE, UNITS, Sketch, log10_e, similarity
from hf_lineage.tasks.index_search import configured
from hf_lineage.weights.proof import log10_e_value, log10_mean, log_e_on_grid

if TYPE_CHECKING:
    from hf_lineage.testing import MiniHub

pytest.importorskip("lancedb")

SIGNS = [[-1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0]]

WIDE = (64, 512, 256, 10)  # 512x64 and 256x512: of 16 rows of two layers an e-value can reach 10^26


def put(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def sketched(tensors: Tensors) -> list[Sketch]:
    with hl.Session() as session:
        return sketch.sketches(session.view(session.opener.open(Module(tensors))))  # type: ignore[arg-type]


class Module:
    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def state_dict(self) -> Tensors:
        return self.tensors


def e_of(one: list[Sketch], other: list[Sketch]) -> float:
    return log10_e([(a.values, b.values) for a, b in zip(one, other, strict=True)])


class TestEValue:
    @given(st.integers(0, 2**31))
    def test_its_mean_over_all_matchings_is_at_most_one(self, seed: int) -> None:
        """All 5! matchings of one layer, of scores with heavy tails and ties."""
        rng = np.random.default_rng(seed)
        c = np.round(rng.standard_t(1.5, (5, 5)), 1)
        matched = np.stack([c[:, list(order)] for order in itertools.permutations(range(5))])
        logs = log_e_on_grid(matched)
        assert np.exp(logs).mean() <= 1 + 1e-9
        assert log10_e_value([matched[7][None]]) == pytest.approx(log10_mean(logs[7]), abs=1e-9)

    def test_and_over_all_matchings_of_two_layers(self) -> None:
        rng = np.random.default_rng(0)
        one, two = rng.standard_normal((2, 4, 4))
        orders = [list(order) for order in itertools.permutations(range(4))]
        found = [10 ** log10_e_value([one[:, a][None], two[:, b][None]]) for a in orders for b in orders]
        assert np.mean(found) <= 1 + 1e-9 and max(found) > 1

    def test_equal_layers_reach_the_floor_and_nothing_says_nothing(self) -> None:
        c = 20.0 * np.eye(16)[None]
        floor = math.lgamma(17) / math.log(10)
        assert floor - 1.5 < log10_e_value([c]) <= floor and log10_e_value([]) == 0.0
        assert log10_e_value([np.ones((1, 4, 4))]) == 0.0, "all matchings give the same"


class TestSketch:
    def test_the_signs_never_change(self) -> None:
        """An index of another machine, year or numpy must fit: bits of SHAKE-256, pinned."""
        signs = sketch._signs(48)
        assert signs.shape == (48, NUMBERS) and set(np.unique(signs)) == {-1.0, 1.0}
        assert signs[:2, :8].tolist() == SIGNS

    def test_a_child_is_alike_and_another_model_is_not(self) -> None:
        base = net(0, widths=WIDE)
        child, other = net(1, base, change=0.3, widths=WIDE), net(2, widths=WIDE)
        assert [each.key for each in sketched(base)] == ["256x512", "512x64"]
        assert e_of(sketched(child), sketched(base)) > 20 and e_of(sketched(other), sketched(base)) < 1
        light, there = sketched(net(3, base, 1e-4, WIDE))[0], sketched(base)[0]
        assert similarity(light.values, there.values) > 0.999

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_casts_keep_it(self, dtype: torch.dtype) -> None:
        base = net(0, widths=WIDE)
        cast = sketched({name: value.to(dtype) for name, value in base.items()})
        assert e_of(cast, sketched(base)) > 20 and similarity(cast[0].values, sketched(base)[0].values) > 0.99

    def test_permuted_units_are_not_found(self) -> None:
        """A limit of all sketches of fixed places, said in docs/limits.md."""
        base = net(0, widths=WIDE)
        order = torch.randperm(512, generator=torch.Generator().manual_seed(0))
        hidden = {**base, "fc1.weight": base["fc1.weight"][order], "fc2.weight": base["fc2.weight"][:, order]}
        assert e_of(sketched(hidden), sketched(base)) < 1

    def test_dead_units_do_not_tell(self) -> None:
        """Padding at the same places makes no relatives of unrelated models."""
        one, other = net(0, widths=WIDE), net(1, widths=WIDE)
        for tensors in (one, other):
            tensors["fc1.weight"][::3], tensors["fc2.weight"][::2] = 0.0, 0.0
        assert all(not each.values.any(1).all() and each.values.any() for each in sketched(one))
        assert e_of(sketched(one), sketched(other)) < 1 < 3 < e_of(sketched(one), sketched(net(2, one, 0.0, WIDE)))

    def test_few_units_and_none(self) -> None:
        assert sketched(net(0, widths=(8, 2 * UNITS - 1, 4))) == []
        empty = np.zeros((UNITS, NUMBERS), dtype=np.int8)
        assert log10_e([(empty, empty)]) == 0.0 and similarity(empty, empty) == 0.0

    def test_the_size(self) -> None:
        assert sketched(net(0, widths=WIDE))[0].values.nbytes == 512 and MOST * 512 <= 2048 and SCALE <= 127


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bases, two children each, and a merge of two of the bases by layers."""
    root = tmp_path_factory.mktemp("models")
    bases = [net(seed, widths=WIDE) for seed in range(3)]
    for i, base in enumerate(bases):
        put(root / f"base-{i}", base)
        for k in range(2):
            put(root / f"child-{i}-{k}", net(10 * i + k + 5, base, 0.1, WIDE))
    put(root / "merge", {**bases[0], "fc2.weight": bases[1]["fc2.weight"], "fc2.bias": bases[1]["fc2.bias"]})
    put(root / "tiny", net(9, widths=(8, 12, 4)))
    return root


@pytest.fixture(scope="module")
def index(models: Path, tmp_path_factory: pytest.TempPathFactory) -> hl.Index:
    made = hl.Index(tmp_path_factory.mktemp("made") / "models.index", create=True)
    state = made.add([models / f"base-{i}" for i in range(3)] + [models / "child-0-1", models / "tiny"])
    assert (state.added, state.models, state.with_sketches, state.sketches, state.failed) == (5, 5, 4, 8, {})
    return made


class TestQuestions:
    def test_a_child_finds_its_relatives_and_nobody_else(self, index: hl.Index, models: Path) -> None:
        found = index.query(models / "child-0-0")
        assert [Path(match.ref).name for match in found.matches] == ["base-0", "child-0-1"]
        assert found.lineage is not None and len(found.lineage.candidates) == 2 and found.parent == found.lineage.parent
        assert all(match.log10_e >= found.family_wise.least_log10_e for match in found.matches)
        assert found.family_wise.tests == 5 + 2 * 8 and "base-0" in found.sentence()
        assert hl.Index.query(index, models / "child-2-0", verify=0).lineage is None

    def test_parts_of_a_merge_are_found(self, index: hl.Index, models: Path) -> None:
        found = {Path(match.ref).name: match.layers for match in index.query(models / "merge", verify=0).matches}
        assert found["base-0"] == (("fc1", "fc1"),) and found["base-1"] == (("fc2", "fc2"),) and "base-2" not in found

    def test_a_stranger_finds_nobody(self, index: hl.Index, tmp_path: Path) -> None:
        found = index.query(put(tmp_path / "stranger", net(77, widths=WIDE)))
        assert found.matches == () and found.lineage is None and found.parent is None
        assert found.sentence().startswith("No model of the index is shown to be related")

    def test_itself_is_no_match(self, index: hl.Index, models: Path) -> None:
        assert [Path(m.ref).name for m in index.query(models / "base-0", verify=0).matches] == ["child-0-1"]

    def test_a_trace_without_candidates_asks_it_first(
        self, index: hl.Index, models: Path, hub: MiniHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_LINEAGE_INDEX", index._store.path)
        found = hl.trace(models / "child-0-0", relatives=False)
        related = [c for c in found.candidates if c.relation != "none"]
        assert {Path(c.ref).name for c in related} == {"base-0", "child-0-1"}
        assert all(c.facts["found_by"] == ("in the index",) for c in related)
        monkeypatch.setenv("HF_LINEAGE_INDEX", str(models / "nothing"))
        with pytest.raises(hl.LineageError, match="The index of HF_LINEAGE_INDEX was not asked: Expected an index"):
            hl.trace(models / "child-0-0")

    def test_the_index_that_is_configured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for named, path in (
            ("org/name", "hf://datasets/org/name"), ("./here", "./here"), ("s3://a/b", "s3://a/b"), ("", None),
        ):  # fmt: skip
            monkeypatch.setenv("HF_LINEAGE_INDEX", named)
            assert configured() == path
        (tmp_path / "org" / "name").mkdir(parents=True)
        monkeypatch.setenv("HF_LINEAGE_INDEX", "org/name")
        assert configured() == "org/name", "a folder of that name"

    def test_a_model_without_layers_says_so(self, index: hl.Index, models: Path) -> None:
        found = index.query(models / "tiny")
        assert not found.layers and not found.matches and [note.code for note in found.notes] == ["no_sketches"]

    def test_only_the_asked_rows_are_read(self, index: hl.Index, models: Path) -> None:
        found = index.query(models / "child-0-0", verify=0)
        header = 2000
        assert found.bytes_read <= 4 * UNITS * (64 + 512) + header

    def test_json_and_back(self, index: hl.Index, models: Path) -> None:
        for answer in (index.query(models / "child-0-0", verify=1), index.info()):
            again = type(answer).from_json(answer.to_json())
            assert again.to_dict() == answer.to_dict() and str(again) == str(answer)
            assert answer.to_markdown() and json.loads(answer.to_json())["schema"] == "hf_lineage/2"

    def test_wrong_arguments(self, index: hl.Index, models: Path) -> None:
        for wrong in ({"verify": -1}, {"alpha": 0.0}):
            with pytest.raises(ArgumentError):
                index.query(models / "child-0-0", **wrong)  # type: ignore[arg-type]


class TestFolder:
    def test_added_twice_is_there_once_and_broken_ones_are_listed(self, models: Path, tmp_path: Path) -> None:
        made = hl.Index(tmp_path / "i", create=True)
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "model.safetensors").write_bytes(b"\xff" * 64)
        wanted = [models / "base-0", models / "base-0", tmp_path / "broken", tmp_path / "nothing"]
        for _ in range(2):
            state = made.add(wanted)
            assert (state.models, state.sketches, state.added) == (1, 2, 1)
            assert [Path(ref).name for ref in state.failed] == ["broken", "nothing"]
        assert hl.Index(tmp_path / "i").info().models == 1

    def test_what_was_killed_between_the_tables_is_done_again(
        self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = hl.Index(tmp_path / "i", create=True)
        tables = type(made._store._models)
        add, calls = tables.add, []

        def dying(self: object, rows: object) -> object:
            calls.append(rows)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return add(self, rows)  # type: ignore[arg-type]

        monkeypatch.setattr(tables, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            made.add([models / "base-0"])
        monkeypatch.undo()
        assert (made.info().models, made.info().sketches) == (0, 2)
        state = hl.Index(tmp_path / "i").add([models / "base-0"])
        assert (state.models, state.sketches) == (1, 2)

    def test_another_version_and_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentError, match="found none"):
            hl.Index(tmp_path / "nothing")
        hl.Index(tmp_path / "old", create=True)
        monkeypatch.setattr(store, "MODELS", "models_v2")
        monkeypatch.setattr(store, "SKETCHES", "sketches_v2")
        with pytest.raises(ArgumentError, match="of version 1"):
            hl.Index(tmp_path / "old", create=True)


def test_commits(models: Path, hub: MiniHub, tmp_path: Path) -> None:
    """A repo at the same commit costs a request and no weights; one that moved is made anew; one that fails is listed."""
    hub.add_folder("lab/base", models / "base-0")
    made = hl.Index(tmp_path / "i", create=True)
    first = made.add(["lab/base", "lab/missing"])
    assert (first.added, [*first.failed]) == (1, ["lab/missing"]) and 0 < first.bytes_read < 4 * 16 * 1024 + 70_000
    again = made.add(["lab/base"])
    assert (again.added, again.unchanged, again.bytes_read) == (0, 1, 0)
    hub.commit("lab/base", {"model.safetensors": (models / "base-1" / "model.safetensors").read_bytes()})
    state = made.add(["lab/base"])
    assert (state.added, state.models, state.sketches) == (1, 1, 2)
    assert [match.ref for match in made.query(models / "child-1-0", verify=0).matches] == ["lab/base"]


def test_the_command(models: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """A newcomer's path: build an index of a folder, ask it."""
    path = str(tmp_path / "models.index")
    assert "11 models" in run("index", "build", path, str(models))[1]
    code, out, _ = run("index", "query", path, str(models / "child-0-0"), "--entry-only", "-q")
    assert code == 0 and {Path(line).name for line in out.split()} == {"base-0", "child-0-1", "merge"}
    assert json.loads(run("index", "info", path, "--json")[1])["models"] == 11
    code, _, err = run("index", "query", str(tmp_path / "none"), str(models / "base-0"))
    assert code == 2 and "found none" in err
