"""`hf-lineage reproduce`: settings, networks, methods, tables; and the penalties that children are trained with."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_lineage import cli
from hf_lineage.errors import ArgumentError, LineageError
from hf_lineage.experiments import disguised, families, lines, methods, penalties, protocol, tables
from hf_lineage.experiments.changes import CHANGES
from hf_lineage.experiments.disguises import DISGUISES
from hf_lineage.experiments.glyphs import image_task, part_of
from hf_lineage.experiments.networks import build
from hf_lineage.experiments.reproduce import REPETITIONS, Result, _accuracy, _splits, as_record, reproduce

MINE = """
def score(child, candidates, probes):
    assert probes.shape[1:] == (1, 28, 28)
    return [-abs(len(path.name) - len(child.name)) for path in candidates]
"""  # as many as one another: nobody is first


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """EWC's children of small fully connected networks, and a method of one's own."""
    folder = tmp_path_factory.mktemp("papers")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        sys.modules.pop("mine", None)
        own = ["mine:score", "hf_lineage.experiments.methods:norms"]
        return reproduce("table-3-ewc", "smoke", folder, methods=own), folder


@pytest.mark.parametrize("name", protocol.names())
@pytest.mark.parametrize("scale", protocol.SCALES)
def test_settings_can_be_read(name: str, scale: str) -> None:
    experiment = protocol.load(name, scale)
    assert experiment.title and experiment.source and experiment.paper and experiment.columns
    if experiment.kind == "disguise":
        assert {column.name for column in experiment.columns} <= {*DISGUISES, *CHANGES, "50 % of an unrelated model"}
        return
    assert "Neural Lineage" in experiment.source and len(experiment.parents) >= 4
    tasks = {recipe["task"] for column in experiment.columns for recipe in column.recipes}
    assert not tasks & {recipe["task"] for recipe in experiment.parents}, "children learn something new"
    asked = (
        {f"G{i} to G{j}" for j in range(2, 6) for i in range(1, j)}
        if experiment.chain
        else {c.name for c in experiment.columns}
    )
    assert scale == "smoke" or {*experiment.printed} <= asked, "the paper's figures are of our columns"
    for of in experiment.printed.values():
        assert all(0 <= mean <= 1 and 0 <= spread < 0.1 for mean, spread in of.values())


def test_what_is_asked_for_wrongly() -> None:
    with pytest.raises(ArgumentError, match="table-1"):
        protocol.load("table-9")
    with pytest.raises(ArgumentError, match="smoke, small"):
        protocol.load("table-1", "paper")
    for name in ("nobody:score", "hf_lineage.errors:nothing", "", "json"):
        with pytest.raises(ArgumentError, match="module:function"):
            methods.own(name)


def test_a_grid_is_every_combination() -> None:
    made = protocol.grid({"lr": [0.1, 0.01], "batch": [64, 256], "task": "upper", "copies": 3, "best": 2})
    assert len(made) == 12 and {(r["lr"], r["batch"]) for r in made} == {*itertools.product((0.1, 0.01), (64, 256))}
    assert all(r["head_lr"] == r["lr"] and "copies" not in r and "best" not in r for r in made)


class TestTasks:
    def test_shots_and_unequal_classes(self) -> None:
        task = image_task("digits", 3, 600, 50)
        few = part_of(task, shots=5)
        assert torch.bincount(few.train_y).tolist() == [5] * 10 and few.test_x is task.test_x
        counts, cut = torch.bincount(task.train_y), torch.bincount(part_of(task, cut=0.1).train_y)
        assert cut[:5].tolist() == counts[:5].tolist() and cut[5:].tolist() == (0.1 * counts[5:]).ceil().tolist()
        first = [int((task.train_y == 7).nonzero()[0]), int((few.train_y == 7).nonzero()[0])]
        assert torch.equal(task.train_x[first[0]], few.train_x[first[1]]), "images go with their labels"
        assert part_of(task) is task


class TestPenalties:
    def test_fisher_is_the_mean_square_of_slopes(self) -> None:
        torch.manual_seed(0)
        model, task = build("fc", 10, {"widths": [6], "side": 28}), image_task("digits", 3, 40, 10)
        found = penalties.fisher(model, task)
        expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        for x, y in zip(task.train_x, task.train_y, strict=True):
            model.zero_grad()
            F.cross_entropy(model(x[None]), y[None]).backward()
            for name, value in model.named_parameters():
                assert value.grad is not None
                expected[name] += value.grad.square() / 40
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-7)

    def test_ewc_is_its_formula_and_nothing_at_the_start(self) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        information = {"weight": torch.rand(2, 3)}
        penalty = penalties.stay_near(model, information, 20.0)
        nothing = torch.zeros(1)
        assert penalty(nothing, nothing).item() == 0
        with torch.no_grad():
            model.weight += 0.5
            model.bias += 9  # not in the information: free
        assert penalty(nothing, nothing).item() == pytest.approx(10 * 0.25 * information["weight"].sum().item())

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
    def test_distillation_is_its_formula(self, temperature: float) -> None:
        torch.manual_seed(1)
        teacher, x, outputs = torch.nn.Linear(4, 3), torch.randn(7, 4), torch.randn(7, 3)
        p, q = (torch.softmax(z / temperature, -1) for z in (teacher(x), outputs))
        expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
        assert penalties.learn_from(teacher, temperature)(x, outputs).item() == pytest.approx(expected.item(), rel=1e-5)
        assert penalties.learn_from(teacher, temperature)(x, teacher(x)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.integration
class TestRun:
    def test_ewc(self, ran: tuple[Result, Path]) -> None:
        result, _ = ran
        assert result.asked == {"digits": 6} and result.candidates == {"digits": 3}
        assert result.accuracy["weights"]["digits"] == (1.0, 0.0), "every parent is found by the weights alone"
        assert result.accuracy["mine:score"]["digits"] == (0.0, 0.0), "ties name nobody"
        assert result.accuracy["hf_lineage.experiments.methods:norms"]["digits"][0] == 1.0
        assert {"l1", "l1 + taylor", "l1 + exact", "linf + exact", "dc"} <= {*result.accuracy}
        assert "linf + taylor" not in result.accuracy
        assert all(step in (0.001, 0.01, 0.1) for step in result.steps["l1 + taylor"]["digits"])

    def test_children_stay_nearer(self, ran: tuple[Result, Path]) -> None:
        """The larger λ, the less of the parent's likelihood is lost: Σ F Δ² falls."""
        _, folder = ran
        networks = next((folder / "table-3-ewc").glob("smoke-*")) / "networks"
        parents, children = (families.read_family(networks / name)[0] for name in ("parents", "digits"))
        moved: dict[float, list[float]] = {}
        known = {p.name: (penalties.read(p.path), p) for p in parents.members}
        for child in children.members:
            model, parent = known[child.parent or ""]
            information = penalties.fisher(model, families.task_of(parent))
            of_child = penalties.read(child.path).state_dict()
            trunk = [name for name in information if not name.startswith("head.")]
            moved.setdefault(child.recipe["ewc"], []).append(
                sum(float((information[n] * (of_child[n] - model.state_dict()[n]).square()).sum()) for n in trunk)
            )
        assert np.mean(moved[100]) < 0.5 * np.mean(moved[10]), moved

    def test_asked_again_it_reads(self, ran: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is trained or scored twice, and a line that was broken off is asked again."""
        result, folder = ran
        monkeypatch.setattr(families, "_make", lambda job: pytest.fail("trained again"))
        scores = next((folder / "table-3-ewc").glob("smoke-*")) / "scores-0.jsonl"
        kept = scores.read_text().splitlines()
        scores.write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:40])
        asked: list[str] = []
        again = reproduce(
            "table-3-ewc", "smoke", folder, methods=["hf_lineage.experiments.methods:norms"],
            progress=lambda done, total, what: asked.append(f"{total} {what}"),
        )  # fmt: skip
        assert asked == ["1 digits: hf_lineage.experiments.methods:norms"]
        assert again.accuracy == {m: of for m, of in result.accuracy.items() if m != "mine:score"}

    def test_files_and_command(self, ran: tuple[Result, Path], capsys: pytest.CaptureFixture[str]) -> None:
        result, folder = ran
        cli.main(["reproduce", "table-3-ewc", "--scale", "smoke", "--out", str(folder), "--json"])
        told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert told[0]["accuracy"]["weights"] == {"digits": [1.0, 0.0]} == as_record(result)["accuracy"]["weights"]
        made = {path.name for path in folder.iterdir() if path.is_file()}
        assert {f"table-3-ewc.{s}" for s in ("md", "csv", "json", "png", "svg")} | {"index.html"} <= made
        rows = [*csv.DictReader(io.StringIO((folder / "table-3-ewc.csv").read_text()))]
        assert {row["column"] for row in rows} == {"digits"} and len(rows) == len(told[0]["accuracy"])
        assert next(row for row in rows if row["method"] == "l1 + taylor")["paper"] == "0.9932"
        text = (folder / "table-3-ewc.md").read_text()
        assert "| weights (ours) | 100.0 ± 0.0 |" in text and "[99.3]" in text and "By chance: digits 33.3" in text
        assert "ℓ1, linearised (Eq. 2)" in (folder / "index.html").read_text()

    def test_the_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["reproduce", "--list"])
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*protocol.names()]
        with pytest.raises(SystemExit) as ended:
            cli.main(["reproduce"])
        assert ended.value.code == 2 and "table-1" in capsys.readouterr().err


class TestAccuracy:
    def test_the_step_is_chosen_where_nothing_is_tested(self) -> None:
        experiment = dataclasses.replace(protocol.load("table-3-ewc", "smoke"), seed=1)
        member = families.Member("f/a", "fc", None, 1, {}, {}, Path("a"))
        other = dataclasses.replace(member, name="f/b", path=Path("b"))
        children = [dataclasses.replace(member, name=f"f/{i}") for i in range(20)]
        hard = {*range(0, 20, 4)}
        column = [
            (
                lines.Asked("c", child, (member, other), member),
                {"m": [1.0, 1.0], "m taylor 0.1": [0.0, 1.0], "m taylor 0.01": [float(i not in hard), 0.5]},
            )
            for i, child in enumerate(children)
        ]
        found = _accuracy(experiment, column)
        assert found["m"] == ((0.0, 0.0), []), "a tie names nobody"
        share, chosen = found["m + taylor"]
        assert chosen == [0.01] * REPETITIONS
        expected = [np.mean([i not in hard for i in test]) for _, _, test in _splits(experiment, 20)]
        assert share == (pytest.approx(np.mean(expected)), pytest.approx(np.std(expected)))

    @pytest.mark.parametrize("count", [1, 2, 5, 10, 63])
    def test_splits_are_whole(self, count: int) -> None:
        for parts in _splits(protocol.load("table-1", "smoke"), count):
            assert sorted(i for part in parts for i in part) == [*range(count)] and parts[2]

    @pytest.mark.integration
    def test_a_method_that_answers_too_little(self, ran: tuple[Result, Path]) -> None:
        _, folder = ran
        networks = next((folder / "table-3-ewc").glob("smoke-*")) / "networks"
        asked, _ = lines.train(protocol.load("table-3-ewc", "smoke"), networks)
        with pytest.raises(LineageError, match="a score for each of 3"):
            methods.yours(asked[0], "short", lambda *_: [1.0], 8)


class TestDisguises:
    def test_a_method_finds_what_few_strangers_reach(self) -> None:
        """1,000 unrelated pairs score 0 to 999, of which one may be above the threshold; children 990 to 999.5."""
        member = families.Member("f/a", "fc", None, 1, {}, {}, Path("a"))
        asked = [lines.Asked(disguised.UNRELATED, member, (member,), member)] * 1000
        asked += [lines.Asked("int8", member, (member,), member)] * 20
        scores = [{"m": [float(i)]} for i in range(1000)] + [{"m": [990 + i / 2]} for i in range(20)]
        found = disguised.found_shares(asked, scores)["m"]
        assert found[disguised.UNRELATED][0] == 0.001 and found["int8"][0] == 0.15  # those above 998
        assert disguised.threshold([0.0, 1.0, 2.0]) == 2.0, "of few pairs none may be above"

    @pytest.mark.parametrize(("hits", "count"), [(0, 28), (5, 20), (300, 300)])
    def test_the_interval_is_wilsons(self, hits: int, count: int) -> None:
        from scipy.stats import binomtest

        low, high = binomtest(hits, count).proportion_ci(method="wilson")
        assert disguised.half_width(hits, count) == pytest.approx((high - low) / 2, rel=1e-5)

    @pytest.mark.integration
    def test_children_are_disguised_and_found(self, tmp_path: Path) -> None:
        experiment = protocol.load("disguise", "smoke")
        table = experiment.parents[0] | {"roots": 2, "children": 1, "unrelated": 3}
        asked, _ = disguised.train(dataclasses.replace(experiment, parents=(table,)), tmp_path)
        of = {question.column: question for question in asked}
        assert len({question.child.path for question in asked}) == len(asked) - 1, "strangers are in two pairs"
        plain = families.read_family(tmp_path / "family")[0].children[0]
        for name in ("permuted and rescaled", "int8", "50 % of an unrelated model"):
            assert disguised.weights(of[name])["weights, as trace says"] == [1.0], name
            assert of[name].child.path != plain.path and of[name].child.name == plain.name
        assert disguised.weights(of[disguised.UNRELATED])["weights, as trace says"] == [0.0]


def test_names_of_rows() -> None:
    assert (
        tables.words("cka + exact") == "CKA, linearised (Eq. 1, exact)" and tables.words("mine:score") == "mine:score"
    )


@pytest.mark.large
@pytest.mark.timeout(36000)
@pytest.mark.parametrize("name", protocol.names())
def test_small(name: str, tmp_path: Path, record: Any, request: pytest.FixtureRequest) -> None:
    """pytest -m large tests/test_reproduce.py; an hour or two an experiment."""
    given = request.config.getoption("--families")
    result = reproduce(name, "small", Path(given) / "reproduce" if given else tmp_path)
    record(f"reproduce-{name}", as_record(result))
    if result.experiment.kind == "parent":
        assert all(share[0] == 1.0 for share in result.accuracy["weights"].values()), (
            "every parent is found by the weights"
        )
