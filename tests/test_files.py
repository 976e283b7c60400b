"""Files are written whole or not at all; and the fuzz harness in its small form."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import fuzz
import pytest
import torch
from safetensors.torch import save

from hf_lineage.answers.audit import AuditRecord, Finding
from hf_lineage.checkpoints.formats import safetensors as reader
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.cli.output import save as save_output
from hf_lineage.errors import BrokenFileError, LineageError
from hf_lineage.files import replaced
from hf_lineage.tasks.audit.journal import Journal


class TestReplaced:
    def test_what_was_there_stays_until_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        path.write_text("old")
        path.chmod(0o640)
        with replaced(path) as fresh:
            fresh.write_text("new")
            assert path.read_text() == "old" and fresh.suffix == ".json"
        assert path.read_text() == "new" and os.listdir(tmp_path) == ["out.json"]
        assert path.stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_on_an_error_nothing_is_left_of_it(self, tmp_path: Path, error: BaseException) -> None:
        path = tmp_path / "out.json"
        path.write_text("old")
        with pytest.raises(type(error)), replaced(path) as fresh:
            fresh.write_text("half of the n")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.json"]

    def test_a_link_is_followed_and_a_pipe_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
        with replaced(tmp_path / "link") as fresh:
            fresh.write_text("x")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_text() == "x"
        with replaced("/dev/null") as fresh:
            assert fresh == Path("/dev/null")

    def test_a_command_that_cannot_write_says_so_and_leaves_nothing(self, tmp_path: Path) -> None:
        def write(file: Path) -> None:
            file.write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(LineageError, match=r"SARIF could not be written.*No space left"):
            save_output(write, "SARIF", tmp_path / "out.sarif")
        assert not os.listdir(tmp_path)


class TestJournal:
    def record(self, name: str, rule: str) -> str:
        found = AuditRecord(name, name, "contradicted", findings=(Finding(rule, "a/b"),))
        return json.dumps(found.to_dict())

    def test_a_line_that_cannot_be_read_is_a_model_to_be_asked_about(self, tmp_path: Path, caplog) -> None:
        path, known = tmp_path / "journal", "contradicted-base-model"
        Journal(path, {"alpha": 1}).close()
        lines = [
            self.record("a/1", known),
            self.record("a/2", "a-rule-of-tomorrow"),
            "{torn",
            self.record("a/3", known),
        ]
        path.write_text(path.read_text() + "".join(f"{line}\n" for line in lines) + '{"schema": "hf_li')
        journal = Journal(path, {"alpha": 1})
        assert [*journal.done] == ["a/1", "a/3"] and caplog.text.count("is audited again") == 2
        journal.add(AuditRecord("a/2", "a/2", "no_claim"))
        journal.close()
        with closing(Journal(path, {"alpha": 1})) as again:
            assert [*again.done] == ["a/1", "a/3", "a/2"]


@pytest.mark.parametrize("name", fuzz.READERS)
def test_hostile_bytes(name: str) -> None:
    """A thousand of each; `python tests/fuzz.py` takes a million."""
    if name in ("gguf", "onnx"):
        pytest.importorskip(name)
    found = fuzz.fuzz(name, 1000)
    assert sum(found.values()) == 1000 and found["read"] > 50, "inputs that are all refused at once test little"


@pytest.mark.large
@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.timeout(7200)
def test_a_million_hostile_bytes(name: str) -> None:
    """`python tests/fuzz.py --write` keeps the counts in benchmarks/results/fuzz.json."""
    assert sum(fuzz.fuzz(name, 1_000_000).values()) == 1_000_000


def test_tensors_are_counted_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(save({f"w{i}": torch.zeros(1) for i in range(9)}))
    monkeypatch.setattr(reader, "MAX_TENSORS", 8)
    with pytest.raises(BrokenFileError, match="9 tensors, more than the 8 allowed"):
        open_checkpoint(tmp_path)
