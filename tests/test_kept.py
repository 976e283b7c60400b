"""What was read and answered is kept for the next question: what that costs, of whom, and for whom."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.cli import main
from hf_lineage.errors import AccessDeniedError, ModelNotFoundError
from hf_lineage.hub import kept as kept_module
from hf_lineage.hub.kept import Kept, keeping, place
from hf_lineage.testing import MiniHub

TRIO = ["lab/parent", "lab/stranger", "lab/stranger-2"]


def trace(child: str = "lab/child", candidates: list[str] = TRIO, **options) -> hl.Lineage:
    """As the command line asks."""
    with keeping():
        return hl.trace(child, candidates, **options)


def since(hub: MiniHub, before: int) -> list[str]:
    return [request.path for request in hub.log[before:]]


class TestAskedAgain:
    def test_an_answer_costs_one_metadata_request_of_each_model(self, lab: MiniHub) -> None:
        first = trace()
        before, served = len(lab.log), sum(lab.bytes_served.values())
        again = trace()
        assert sum(lab.bytes_served.values()) == served and again.bytes_read == 0
        assert len(lab.log) - before == 4 and all("/api/models/" in path for path in since(lab, before))
        mine, its = first.to_dict(), again.to_dict()
        for name in mine.keys() - {"seconds", "bytes_read"}:
            assert mine[name] == its[name], name

    def test_other_options_are_another_question_about_the_same_bytes(self, lab: MiniHub) -> None:
        trace(sample="all")
        again = trace(sample="all", alpha=0.01)
        assert again.bytes_read == 0 and again.alpha == 0.01

    def test_another_commit_is_read(self, lab: MiniHub, nets) -> None:
        trace()
        lab.commit("lab/parent", {"model.safetensors": save(nets["stranger-2"])})
        assert trace().parent is None

    def test_a_failure_is_not_kept(self, lab: MiniHub) -> None:
        lab.fault(404, file="lab/stranger/model.safetensors", times=None)
        assert any(c.status == "unreadable" for c in trace().candidates)
        lab.faults.clear()
        assert all(c.status == "compared" for c in trace().candidates)

    def test_nothing_is_kept_where_nobody_asked_for_it(self, lab: MiniHub) -> None:
        hl.trace("lab/child", TRIO)
        assert not place().exists()
        before = sum(lab.bytes_served.values())
        hl.trace("lab/child", TRIO)
        assert sum(lab.bytes_served.values()) == 2 * before


class TestWhoseItIs:
    @pytest.mark.parametrize("about", [{"private": True}, {"gated": "auto"}])
    def test_nothing_of_private_and_gated_repos_is_kept(self, lab: MiniHub, nets, about: dict) -> None:
        lab.add("alice/mine", {"model.safetensors": save(nets["child"])}, **about)
        assert trace("alice/mine", token="hf_alice").parent == "lab/parent"
        base = sqlite3.connect(place())
        held = b"".join(row[0] for row in base.execute("select data from ranges"))
        assert base.execute("select count(*) from answers").fetchone() == (0,)
        assert nets["child"]["fc1.weight"].numpy().tobytes()[:64] not in held
        assert nets["parent"]["fc1.weight"].numpy().tobytes()[:64] in held, "the others are"
        with pytest.raises((AccessDeniedError, ModelNotFoundError)):
            trace("alice/mine")

    def test_what_became_private_or_gated_is_not_answered(self, lab: MiniHub) -> None:
        trace()
        lab.repos["lab/child"].private = True
        with pytest.raises(ModelNotFoundError):
            trace()
        lab.repos["lab/child"].private, lab.repos["lab/child"].gated = False, "manual"
        with pytest.raises(AccessDeniedError):
            trace()

    def test_only_its_owner_can_read_it(self, lab: MiniHub) -> None:
        trace()
        assert place().stat().st_mode & 0o077 == 0


class TestFile:
    def test_ranges_within_what_was_kept(self, tmp_path: Path) -> None:
        kept = Kept(tmp_path / "kept.sqlite")
        kept.know("a", 100, "tag")
        kept.write("a", 10, bytes(range(20)))
        assert kept.file("a") == (100, "tag") and kept.file("b") is None
        assert kept.read("a", 12, 15) == bytes([2, 3, 4]) and kept.read("a", 10, 30) == bytes(range(20))
        assert kept.read("a", 9, 15) is None and kept.read("a", 20, 31) is None and kept.read("b", 10, 11) is None

    def test_of_a_file_and_in_all_there_is_a_bound(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kept_module, "MOST_OF_FILE", 50_000)
        monkeypatch.setattr(kept_module, "MOST_BYTES", 200_000)
        kept = Kept(tmp_path / "kept.sqlite")
        for name in "abcdefgh":
            kept.know(name, 10**9, None)
            for at in range(4):
                kept.write(name, 20_000 * at, bytes(20_000))
            assert kept.read(name, 0, 20_000) is not None and kept.read(name, 40_000, 60_000) is None
            assert kept.state().bytes < 300_000, "also while one command goes on"
        kept.close()
        assert kept.path.stat().st_size < 200_000
        assert kept.read("a", 0, 9) is None and kept.read("h", 0, 9) is not None, "the oldest goes"

    def test_a_broken_file_is_no_file(self, lab: MiniHub) -> None:
        place().parent.mkdir(parents=True, exist_ok=True)
        place().write_bytes(b"no database" * 1000)
        assert trace().parent == "lab/parent"
        Kept(place()).empty()
        trace()
        base = sqlite3.connect(place())
        with base:
            base.execute("update ranges set data = zeroblob(length(data))")
            base.execute("delete from answers")
        assert trace().parent == "lab/parent", "bytes that do not have their sum are not used"

    @pytest.mark.integration
    def test_many_processes_write_at_once(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from hf_lineage.hub.kept import Kept\n"
            "kept = Kept(Path(sys.argv[1])); mine = sys.argv[2]; kept.know(mine, 9, None)\n"
            "for i in range(20): kept.write(mine, 100 * i, bytes([i]) * 100); kept.remember(f'{mine}-{i}', 'x' * i)\n"
        )
        path = tmp_path / "kept.sqlite"
        jobs = [subprocess.Popen([sys.executable, "-c", program, str(path), str(i)]) for i in range(3)]
        assert [job.wait() for job in jobs] == [0, 0, 0]
        kept = Kept(path)
        assert (kept.state().files, kept.state().answers) == (3, 60)
        assert all(kept.read(str(j), 100 * i, 100 * i + 100) == bytes([i]) * 100 for i in range(20) for j in range(3))


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        try:
            main([*arguments])
        except SystemExit as end:
            assert not end.code
        return capsys.readouterr().out

    def test_it_is_used_shown_and_emptied(self, lab: MiniHub, capsys: pytest.CaptureFixture[str]) -> None:
        asked = ["trace", "lab/child", "lab/parent", "--json"]
        first = json.loads(self.run(capsys, *asked))
        assert json.loads(self.run(capsys, *asked))["bytes_read"] == 0 < first["bytes_read"]
        assert json.loads(self.run(capsys, "--no-cache", *asked))["bytes_read"] == first["bytes_read"]
        state = json.loads(self.run(capsys, "cache", "--json"))
        assert state["answers"] == 1 and state["files"] >= 2 and state["bytes"] > first["bytes_read"]
        assert "1 answers" in self.run(capsys, "cache")
        assert json.loads(self.run(capsys, "cache", "--empty", "--json"))["bytes"] == 0
        assert json.loads(self.run(capsys, *asked))["bytes_read"] == first["bytes_read"]
