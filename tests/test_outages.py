"""Candidates that could not be read: no parent turns into "none", and what is said says that they were not read."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.answers.lineage import Candidate, Lineage
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints import local
from hf_lineage.checkpoints.local import LocalFile
from hf_lineage.cli.trace import may_pass
from hf_lineage.errors import CardError, LineageError, Note
from hf_lineage.report.sentences import sentence
from hf_lineage.report.text import markdown
from hf_lineage.tasks.verdict import conclude, known_none
from hf_lineage.testing import MiniHub

DOWN = Note("hub_unavailable", "The Hub answered HTTP 503.", "Try again later.")
GATED = Note("gated", "It is gated.")
PARENT = Candidate(
    "lab/a", "lab/a", probability=0.97, p_value=1e-9, log10_p=-9.0, relation="finetune", facts={"first": "candidate"}
)
COPY = replace(PARENT, relation="identical", probability=1.0)
RELATED = replace(PARENT, relation="common_origin", probability=0.4, facts={})
UNRELATED = Candidate("lab/b", "lab/b", probability=0.001, p_value=0.4, log10_p=-0.4, relation="none")
LOST = Candidate("lab/c", "lab/c", status="unreadable", reasons=(DOWN,))
OTHER = Candidate("lab/d", "lab/d", status="not_comparable", reasons=("another architecture",))


def lineage(*candidates: Candidate) -> Lineage:
    verdict, parent = conclude(candidates, 1e-3)
    none = known_none(0.998, verdict, candidates)
    return Lineage(ModelRef("hub", "u/x"), "u/x", verdict, parent, none, candidates)


class TestVerdict:
    @pytest.mark.parametrize("found", [PARENT, COPY])
    def test_what_a_read_candidate_is_stays(self, found: Candidate) -> None:
        with_lost = lineage(found, UNRELATED, LOST)
        assert with_lost.verdict == lineage(found, UNRELATED).verdict in ("parent", "identical")
        assert with_lost.parent == "lab/a" and with_lost.none_probability == 0.998

    @pytest.mark.parametrize("found", [RELATED, UNRELATED])
    def test_what_none_of_them_is_does_not(self, found: Candidate) -> None:
        told = lineage(found, LOST)
        assert (told.verdict, told.parent, told.none_probability) == ("undecided", None, None)
        assert lineage(found, OTHER).verdict == lineage(found).verdict, "what is read is known"

    def test_the_sentence_names_who_was_not_read(self) -> None:
        assert sentence(lineage(UNRELATED, LOST)) == (
            "Undecided: lab/c could not be read and may be the parent; no other candidate shows a sign of a common origin."
        )
        assert "it shares an origin with lab/a (p 1e-9)" in sentence(lineage(RELATED, UNRELATED, LOST))
        for told in (sentence(lineage(UNRELATED, LOST)), markdown(lineage(UNRELATED, LOST))):
            assert "only candidate" not in told and "none of these" not in told

    def test_one_of_two_could_be_compared(self) -> None:
        assert sentence(lineage(UNRELATED, OTHER)).startswith(
            "Not lab/b, the one that could be compared, of 2: no sign"
        )
        assert sentence(lineage(UNRELATED, replace(UNRELATED, ref="lab/e"), OTHER)).startswith(
            "None of the 2 candidates that could be compared, of 3: no sign"
        )
        assert sentence(lineage(UNRELATED)).startswith("Not lab/b, the only candidate: no sign")

    @pytest.mark.parametrize(
        ("candidates", "passes"),
        [((UNRELATED, LOST), True), ((PARENT, LOST), False), ((UNRELATED, replace(LOST, reasons=(GATED,))), False),
         ((UNRELATED, replace(LOST, facts={"found_by": ("declared: card",)})), True),
         ((UNRELATED, replace(LOST, facts={"found_by": ("same size",)})), False)],
    )  # fmt: skip
    def test_only_a_passing_reason_of_a_named_one_is_worth_another_try(
        self, candidates: tuple[Candidate, ...], passes: bool
    ) -> None:
        assert may_pass(lineage(*candidates)) is passes

    def test_a_random_outage_never_turns_a_parent_into_none(self) -> None:
        rng = random.Random(3)
        kinds = (PARENT, COPY, RELATED, UNRELATED, OTHER)
        for _ in range(2000):
            candidates = [replace(rng.choice(kinds), ref=f"lab/{i}", probability=rng.random()) for i in range(4)]
            candidates.sort(key=lambda c: -(c.probability or 0))
            whole = lineage(*candidates)
            lost = [replace(LOST, ref=c.ref) if rng.random() < 0.4 else c for c in candidates]
            told = lineage(*sorted(lost, key=lambda c: c.status == "unreadable"))
            assert told.verdict != "none" or lost == candidates, (whole.verdict, lost)
            assert (
                told.none_probability is None
                or told.verdict != "undecided"
                or LOST.status not in {c.status for c in lost}
            )


@pytest.mark.integration
class TestHub:
    """The same through the client: every way in which a candidate can fail."""

    OUTAGES: ClassVar[tuple[tuple[Any, dict[str, Any], bool], ...]] = (
        (503, {"on": "any"}, True), (429, {"on": "resolve"}, True), ("drop", {"on": "any"}, True),
        ("truncate", {"value": 20_000}, True), ("gated", {}, False), ("broken", {}, False), ("pickled", {}, False),
    )  # fmt: skip

    def spoil(self, hub: MiniHub, name: str, outage: tuple[Any, dict[str, Any], bool]) -> None:
        kind, about, _ = outage
        if kind == "gated":
            hub.repos[name].gated = "auto"
        elif kind == "broken":
            hub.commit(name, {"model.safetensors": b"\0" * 99})
        elif kind == "pickled":
            hub.commit(name, {"model.safetensors": None, "pytorch_model.bin": b"x" * 99})
        else:
            hub.fault(kind, file=f"{name}*", times=None, **about)

    @pytest.mark.parametrize("outage", OUTAGES, ids=[str(kind) for kind, *_ in OUTAGES])
    def test_of_the_parent(self, lab: MiniHub, run: Any, outage: tuple[Any, dict[str, Any], bool]) -> None:
        self.spoil(lab, "lab/parent", outage)
        code, out, err = run("trace", "lab/child", "-c", "lab/parent", "-c", "lab/stranger")
        assert "Undecided: lab/parent could not be read" in out.replace("\n         ", " ") and code == outage[2], err
        assert "only candidate" not in out and "(none of these)" not in out
        lineage = hl.trace("lab/child", ["lab/parent", "lab/stranger"])
        assert (lineage.verdict, lineage.none_probability) == ("undecided", None)
        with pytest.raises(CardError, match="lab/parent could not"):
            hl.annotate("lab/child", lineage)
        code, _, err = run("annotate", "lab/child", "-c", "lab/parent", "-c", "lab/stranger")
        assert code == 1 and "could not, and may be the parent" in err

    @pytest.mark.parametrize("outage", OUTAGES[::2], ids=[str(kind) for kind, *_ in OUTAGES[::2]])
    def test_of_another(self, lab: MiniHub, run: Any, outage: tuple[Any, dict[str, Any], bool]) -> None:
        self.spoil(lab, "lab/stranger", outage)
        code, out, _ = run("trace", "lab/child", "-c", "lab/parent", "-c", "lab/stranger")
        assert code == 0 and "Undecided" not in out and "lab/stranger could not be read" in out

    def test_of_a_declared_one(self, lab: MiniHub, run: Any) -> None:
        lab.fault(503, file="lab/parent*", times=None)
        lab.commit("lab/child", {"README.md": b"---\nbase_model: [lab/parent, lab/stranger]\n---\n"})
        code, out, _ = run("trace", "lab/child")
        assert "lab/parent could not be read" in out and "only candidate" not in out and code == 1

    def test_of_the_childs_config(self, lab: MiniHub, run: Any) -> None:
        lab.fault(503, file="lab/child/config.json", times=None)
        assert run("trace", "lab/child", "-c", "lab/parent")[0] == 1

    def test_of_a_local_childs_config(
        self, folders: dict[str, Path], run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folders["child"] / "config.json").write_text("{}")
        real = LocalFile.read

        def refused(file: LocalFile, extents: Any) -> Any:
            if file.name == "config.json":
                raise local._unreadable(Path(file.name), PermissionError(13, "Permission denied"))
            return real(file, extents)

        monkeypatch.setattr(LocalFile, "read", refused)
        code, _, err = run("trace", folders["child"], "-c", folders["parent"])
        assert code == 1 and "config.json`, got: Permission denied" in err

    def test_an_audit_that_could_check_nothing(self, lab: MiniHub, run: Any, tmp_path: Any) -> None:
        (tmp_path / "models.txt").write_text("lab/child\n")
        lab.fault(503, file="lab/parent*", times=None)
        assert run("audit", tmp_path / "models.txt")[0] == 5
        lab.faults.clear()
        assert run("audit", tmp_path / "models.txt")[0] == 0

    @pytest.mark.parametrize(
        "count", [pytest.param(5, id="some"), pytest.param(150, id="large", marks=pytest.mark.large)]
    )
    def test_random_outages_never_turn_a_parent_into_none(self, lab: MiniHub, nets: dict, count: int) -> None:
        rng = random.Random(29)
        names = ["lab/parent", "lab/stranger", "lab/stranger-2", "lab/grandchild"]
        weights = {
            name: {"model.safetensors": save(nets[name.partition("/")[2]]), "pytorch_model.bin": None} for name in names
        }
        for i in range(count):
            lab.faults.clear()
            for name in names:
                lab.repos[name].gated = False
                lab.commit(name, weights[name])
                if rng.random() < 0.4:
                    self.spoil(lab, name, rng.choice(self.OUTAGES))
            try:
                found = hl.trace("lab/child", names, seed=i)
            except LineageError as error:
                assert error.code == "no_candidate_read"
                continue
            unread = {c.ref for c in found.candidates if c.status == "unreadable"}
            assert found.verdict != "none" and (
                found.parent == "lab/parent" or "lab/parent" in unread or found.verdict != "parent"
            )
            assert not unread or found.verdict in ("parent", "identical", "undecided")
