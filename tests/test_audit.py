"""The audit of many models through the real client: every status right, whatever goes wrong, and resumed after a kill."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.errors import ArgumentError, LineageError, ModelNotFoundError
from hf_lineage.hub import client
from hf_lineage.tasks.audit import AuditRecord, Member, members
from hf_lineage.tasks.audit import run as auditing
from hf_lineage.tasks.audit.members import read_moment
from hf_lineage.testing import MiniHub

Make = Callable[..., dict[str, torch.Tensor]]


def card(*bases: str) -> str:
    return "---\nbase_model:\n" + "".join(f"- {base}\n" for base in bases) + "---\n# A model\n"


def add(hub: MiniHub, name: str, tensors: dict[str, torch.Tensor], *bases: str, **about: Any) -> None:
    files: dict[str, Any] = {"model.safetensors": save(tensors), "config.json": b"{}"}
    hub.add(name, files | ({"README.md": card(*bases)} if bases else {}), **about)


def town(hub: MiniHub, make_net: Make) -> dict[str, str]:
    """A hundred repos; name → the status that an audit must find."""
    parent, other = make_net(1), make_net(2)
    add(hub, "lab/parent", parent)
    add(hub, "lab/other", other)
    add(hub, "lab/old-name", make_net(3))
    hub.rename("lab/old-name", "lab/new-name")
    add(hub, "lab/gated", parent, gated=True)
    add(hub, "lab/sibling", make_net(4, parent))
    truth = {f"lab/{name}": "no_claim" for name in ("parent", "other", "new-name", "sibling")}
    truth["lab/gated"] = "failed"  # its config may not be read: nothing is known of its claims
    seed = 100

    def child(kind: str, status: str, count: int, base: dict[str, torch.Tensor], *claims: str, **about: Any) -> None:
        nonlocal seed
        for i in range(count):
            seed += 1
            add(hub, f"lab/{kind}-{i}", make_net(seed, base), *claims, **about)
            truth[f"lab/{kind}-{i}"] = status

    child("child", "confirmed", 30, parent, "lab/parent")
    child("second", "confirmed", 10, other, "lab/other")
    child("moved", "confirmed", 2, make_net(3), "lab/old-name")
    child("both", "confirmed", 2, parent, "lab/parent", "lab/sibling")
    mean = {name: 0.4 * parent[name] + 0.6 * t for name, t in make_net(2).items()}
    add(hub, "lab/merge-0", mean, "lab/parent", "lab/other")
    siblings = make_net(4, parent), make_net(5, parent)
    add(hub, "lab/sibling-2", siblings[1])
    add(
        hub,
        "lab/merge-1",
        {n: (t + siblings[1][n]) / 2 for n, t in siblings[0].items()},
        "lab/sibling",
        "lab/sibling-2",
    )
    truth |= {"lab/merge-0": "confirmed", "lab/merge-1": "confirmed", "lab/sibling-2": "no_claim"}
    child("liar", "contradicted", 10, parent, "lab/other")
    child("half", "contradicted", 2, parent, "lab/parent", "lab/other")
    child("cousin", "confirmed", 6, parent, "lab/sibling")  # a sibling, but no order shows
    child("lost", "not_testable", 4, parent, "lab/nowhere")
    child("behind-gate", "not_testable", 3, parent, "lab/gated")
    child("half-lost", "not_testable", 2, parent, "lab/parent", "lab/nowhere")
    child("silent", "no_claim", 12, parent)
    child("hidden", "failed", 2, parent, "lab/parent", private=True)
    child("forbidden", "failed", 2, parent, "lab/parent")
    hub.fault(403, on="cdn", file="lab/forbidden-*", times=None)
    child("busy", "confirmed", 2, parent, "lab/parent")
    hub.fault(429, on="api", file="lab/busy-0", times=2, value=3)
    hub.fault(429, on="resolve", file="lab/busy-1/*", times=2, value=3)
    child("down", "failed", 1, parent, "lab/parent")
    hub.fault(503, on="api", file="lab/down-0", times=None)
    for i in range(3):
        hub.add(f"lab/broken-{i}", {"model.safetensors": b"\xff" * 200, "README.md": card("lab/parent")})
        hub.add(f"lab/cut-{i}", {"model.safetensors": save(parent)[:-100], "README.md": card("lab/parent")})
        hub.add(f"lab/pickled-{i}", {"pytorch_model.bin": b"\x80\x04.", "README.md": card("lab/parent")})
        truth |= {f"lab/{kind}-{i}": "failed" for kind in ("broken", "cut", "pickled")}
    lora = {"adapter_model.safetensors": save({"a.lora_A.weight": torch.ones(2, 4)}), "README.md": card("lab/other")}
    hub.add("lab/lora", {**lora, "adapter_config.json": json.dumps({"base_model_name_or_path": "lab/parent"})})
    truth |= {"lab/lora": "not_testable", "lab/absent": "failed", "not an id": "failed"}
    return truth


def asked(hub: MiniHub, name: str, since: int = 0) -> list[str]:
    """Requests about a repo."""
    return [r.path for r in hub.log[since:] if f"/{name}/" in f"{r.path}/" and "/repos/" not in r.path]


def plain(records: Iterable[AuditRecord | dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be equal in two audits of the same models."""
    dicts = [record.to_dict() if isinstance(record, AuditRecord) else record for record in records]
    return [{k: v for k, v in d.items() if k not in ("seconds", "bytes_read", "resumed")} for d in dicts]


def test_a_hundred_models(hub: MiniHub, make_net: Make) -> None:
    truth = town(hub, make_net)
    records = list(hl.audit(truth, token=False))
    assert len(truth) >= 100 and [record.requested for record in records] == list(truth)
    wrong = {r.requested: (r.status, truth[r.requested], r.reason) for r in records if r.status != truth[r.requested]}
    assert not wrong
    assert all(json.loads(json.dumps(r.to_dict(), allow_nan=False))["schema"] == "hf_lineage/2" for r in records)
    assert all((not r.findings) == (r.status in ("confirmed", "no_claim")) and r.reason for r in records)
    by_name = {record.requested: record for record in records}
    assert by_name["lab/child-0"].parent == "lab/parent" and by_name["lab/child-0"].p_value < 1e-100
    assert by_name["lab/child-0"].revision == hub.repos["lab/child-0"].refs["main"]
    assert by_name["lab/liar-0"].p_value > 0.01 and by_name["lab/liar-0"].findings[0].base == "lab/other"
    assert by_name["lab/half-0"].parent == "lab/parent" and "the parent is lab/parent" in by_name["lab/half-0"].reason
    assert "gated" in by_name["lab/behind-gate-0"].reason and "not found" in by_name["lab/lost-0"].reason
    assert "disagree" in by_name["lab/lora"].reason
    for i in range(2):
        assert by_name[f"lab/merge-{i}"].reason == "confirmed by the weights, as a source of the merge"
        assert by_name[f"lab/merge-{i}"].relation == "merge" and by_name[f"lab/merge-{i}"].parent is None
    assert by_name["lab/both-0"].parent is None and "no sign against it" in by_name["lab/both-0"].reason
    assert [r.requested for r in records if r.passing] == ["lab/down-0"]
    assert len(asked(hub, "lab/silent-0")) <= 3 and by_name["lab/silent-0"].bytes_read == 0
    assert threading.active_count() < 60, "the clients of earlier models are gone"
    assert not hub.leaks


def test_a_rate_limit_is_waited_for(lab: MiniHub) -> None:
    lab.limits = {"api": 5, "resolve": 9}
    names = ["lab/child", "lab/parent", "lab/stranger", "lab/other"] * 3
    assert [r.status for r in hl.audit(names, token=False)] == ["confirmed", "no_claim", "no_claim", "no_claim"] * 3
    assert sum(lab.waits) > lab.window and any(request.status == 429 for request in lab.log)


class TestOneModel:
    def test_it_is_lazy(self, lab: MiniHub) -> None:
        records = hl.audit(iter(["lab/child", "lab/parent"]))
        assert not lab.log
        assert next(records).status == "confirmed" and not asked(lab, "lab/stranger")

    def test_no_claim_costs_no_weights(self, lab: MiniHub) -> None:
        [record] = hl.audit(["lab/parent"])
        assert record.status == "no_claim" and not lab.counts["cdn"] and len(lab.log) <= 3

    def test_progress_counts_models(self, lab: MiniHub) -> None:
        seen: list[Any] = []
        list(hl.audit(["lab/parent", "lab/child"], progress=lambda *told: seen.append(told)))
        assert seen[0] == (0, 2, "lab/parent") and seen[-1] == (2, 2, "lab/child")

    def test_a_revision_is_pinned(self, lab: MiniHub, make_net: Make) -> None:
        sha = lab.commit("lab/child", {"README.md": card("lab/stranger")}, ref="dev")
        dev, main = hl.audit(["lab/child@dev", "lab/child"])
        assert (dev.status, dev.revision, dev.requested, dev.ref) == ("contradicted", sha, "lab/child@dev", "lab/child")
        assert main.status == "confirmed"

    def test_an_old_name_is_followed(self, lab: MiniHub) -> None:
        lab.rename("lab/child", "lab/grown")
        [record] = hl.audit(["lab/child"])
        assert (record.ref, record.requested, record.status) == ("lab/grown", "lab/child", "confirmed")

    def test_folders_and_modules(self, folders: dict[str, Path], hub: MiniHub) -> None:
        (folders["child"] / "README.md").write_text(card("lab/parent"))
        add(hub, "lab/parent", {"x": torch.ones(3)})
        local, module = hl.audit([folders["child"], torch.nn.Linear(2, 2)])
        assert (local.status, local.revision) == ("not_testable", None) and local.ref == str(folders["child"])
        assert (module.status, module.ref) == ("no_claim", "module:Linear")

    def test_a_claim_of_itself_by_an_old_name(self, lab: MiniHub, nets) -> None:
        lab.commit("lab/child", {"README.md": card("lab/was")})
        lab.renamed["lab/was"] = "lab/child"
        [record] = hl.audit(["lab/child"])
        assert record.status == "not_testable" and "the child itself" in record.reason

    def test_a_base_that_the_hub_does_not_give_may_come_back(self, lab: MiniHub) -> None:
        lab.fault(503, on="api", file="lab/parent", times=None)
        [record] = hl.audit(["lab/child"])
        assert record.status == "not_testable" and record.passing and "503" in record.reason

    def test_a_timeout(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "TIMEOUT", 1.0)
        lab.fault("delay", file="lab/child", times=None, value=1.5)
        slow, quick = hl.audit(["lab/child", "lab/parent"])
        assert (slow.status, slow.passing, quick.status) == ("failed", True, "no_claim")
        assert "did not answer" in slow.reason

    def test_a_connection_that_breaks(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        lab.fault("truncate", file="lab/child/model.safetensors", times=None, value=10)
        [record] = hl.audit(["lab/child"])
        assert record.status == "failed" and record.passing and "broke" in record.reason
        assert [claim.ref for claim in record.claims] == ["lab/parent"]

    def test_a_base_whose_connection_breaks(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        for bases in (["lab/parent"], ["lab/parent", "lab/child"]):
            lab.commit("lab/grandchild", {"README.md": card(*bases)})
            lab.fault("truncate", file="lab/parent/model.safetensors", times=client.TRIES, after=1, value=9)
            [record] = hl.audit(["lab/grandchild"])
            assert (record.status, record.passing) == ("not_testable", True) and "broke" in record.reason

    def test_nan_only(self, lab: MiniHub, nets) -> None:
        add(lab, "lab/nan", {n: torch.full_like(t, torch.nan) for n, t in nets["child"].items()}, "lab/parent")
        [record] = hl.audit(["lab/nan"])
        assert record.status == "failed" and "NaN" in record.reason and not record.passing

    def test_too_many_bytes(self, lab: MiniHub) -> None:
        [record] = hl.audit(["lab/child"], max_bytes=1000)
        assert record.status == "failed" and "max_bytes" in record.reason

    def test_a_bug_in_one_is_told_and_does_not_lose_the_rest(
        self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("with hf_alice in it")

        monkeypatch.setattr(auditing, "trace", broken)
        one, two = hl.audit(["lab/child", "lab/parent"], token="hf_alice")
        assert (one.status, two.status) == ("failed", "no_claim") and "internal error: ZeroDivisionError" in one.reason
        assert "Traceback" in caplog.text and "hf_alice" not in caplog.text and not one.passing

    def test_an_interruption_passes(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(auditing, "trace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(hl.audit(["lab/child"]))

    @pytest.mark.parametrize("wrong", [{"alpha": 2}, {"sample": "lots"}, {"max_bytes": 0}, {"device": "abacus"}])
    def test_wrong_arguments_are_told_at_once(self, lab: MiniHub, wrong: dict[str, Any]) -> None:
        with pytest.raises(ArgumentError, match="Expected"):
            hl.audit(["lab/child"], **wrong)

    def test_a_single_name_is_no_list(self) -> None:
        with pytest.raises(ArgumentError, match="list of models"):
            hl.audit("lab/child")

    def test_search_finds_who_is_not_named(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = auditing.trace
        found = {"lab/child": ["lab/parent", "lab/stranger"], "lab/grandchild": ["lab/child", "lab/stranger"]}
        found |= {"lab/other": ["lab/parent"], "lab/parent": ["lab/child"]}

        def searching(child: Any, candidates: Any, **options: Any) -> Any:
            assert candidates is None
            return trace(child, found[child], **options)

        monkeypatch.setattr(auditing, "trace", searching)
        lab.commit("lab/child", {"README.md": card("lab/stranger")})
        wrong, silent, alone, kin = hl.audit(["lab/child", "lab/grandchild", "lab/other", "lab/parent"], search=True)
        assert (wrong.status, silent.status, alone.status) == ("contradicted", "undeclared", "no_claim")
        assert (kin.status, kin.reason) == ("no_claim", "no file names a base; it shares an origin with lab/child")
        assert [f.rule for f in wrong.findings] == ["contradicted-base-model", "undeclared-parent"]
        assert silent.parent == silent.findings[0].base == "lab/child" and silent.p_value < 1e-9


class TestJournal:
    def test_what_is_finished_is_not_asked_for_again(self, lab: MiniHub, tmp_path: Path) -> None:
        journal, names = tmp_path / "j.jsonl", ["lab/child", "lab/parent", "lab/absent"]
        first = list(hl.audit(names, journal=journal))
        before = len(lab.log)
        again = list(hl.audit([*names, "lab/stranger"], journal=journal))
        assert [r.resumed for r in again] == [True, True, False, False] and plain(again[:3]) == plain(first)
        assert not any(asked(lab, name, before) for name in names[:2]) and asked(lab, "lab/stranger", before)
        assert asked(lab, "lab/absent", before), "it failed: it may be there by now"

    def test_what_may_pass_is_tried_again(self, lab: MiniHub, tmp_path: Path) -> None:
        fault = lab.fault(503, on="api", file="lab/child", times=None)
        [record] = hl.audit(["lab/child"], journal=tmp_path / "j")
        assert record.status == "failed" and record.passing
        lab.faults.remove(fault)
        for resumed in (False, True):
            [record] = hl.audit(["lab/child"], journal=tmp_path / "j")
            assert (record.status, record.resumed) == ("confirmed", resumed)

    @pytest.mark.parametrize("rest", [b'{"schema": "hf_lin', b"\0\0\0\0", b"{}"])
    def test_a_half_written_line_is_cut_off(self, lab: MiniHub, tmp_path: Path, rest: bytes) -> None:
        journal = tmp_path / "j"
        list(hl.audit(["lab/parent"], journal=journal))
        whole = journal.read_bytes()
        journal.write_bytes(whole + rest)
        assert next(hl.audit(["lab/parent"], journal=journal)).resumed
        assert journal.read_bytes() == whole
        journal.write_bytes(whole[:20])  # killed while it was made
        assert not next(hl.audit(["lab/parent"], journal=journal)).resumed

    def test_other_settings(self, lab: MiniHub, tmp_path: Path) -> None:
        list(hl.audit(["lab/parent"], journal=tmp_path / "j"))
        with pytest.raises(ArgumentError, match=r"alpha is 0\.01 here, 0\.001 there; seed is 3 here, 0 there"):
            hl.audit(["lab/parent"], journal=tmp_path / "j", alpha=0.01, seed=3)

    @pytest.mark.parametrize("text", ["my notes", "my notes\n", "{}\n", '{"schema": "hf_lineage/2"}\n'])
    def test_another_file_is_left_alone(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "notes"
        path.write_text(text)
        with pytest.raises(ArgumentError, match="another file"):
            hl.audit(["lab/parent"], journal=path)
        assert path.read_text() == text

    def test_a_damaged_line_is_named_and_its_model_audited_again(self, lab: MiniHub, tmp_path: Path, caplog) -> None:
        journal = tmp_path / "j"
        list(hl.audit(["lab/parent", "lab/child"], journal=journal))
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text(lines[0] + "garbage\n" + lines[2])
        again = list(hl.audit(["lab/parent", "lab/child"], journal=journal))
        assert [record.resumed for record in again] == [False, True] and "Line 2 of" in caplog.text

    def test_one_process_at_a_time(self, lab: MiniHub, tmp_path: Path) -> None:
        first = hl.audit(["lab/parent", "lab/child"], journal=tmp_path / "j")
        next(first)
        with pytest.raises(ArgumentError, match="another audit uses"):
            hl.audit(["lab/parent"], journal=tmp_path / "j")
        first.close()
        assert next(hl.audit(["lab/parent"], journal=tmp_path / "j")).resumed

    def test_killed_and_resumed(
        self, hub: MiniHub, make_net: Make, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent = make_net(1)
        add(hub, "lab/parent", parent)
        add(hub, "lab/other", make_net(2))
        for i in range(24):
            add(hub, f"lab/model-{i}", make_net(50 + i, parent), "lab/other" if i % 5 == 4 else "lab/parent")
        (tmp_path / "models.txt").write_text("".join(f"lab/model-{i}\n" for i in range(24)) + "lab/absent\n")
        command = [sys.executable, "-m", "hf_lineage", "audit", "models.txt", "--json", "--journal"]
        about: Any = {"cwd": tmp_path, "env": {**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"}}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        journal = tmp_path / "a.jsonl"
        with subprocess.Popen([*command, "a.jsonl"], **about, **pipes) as process:
            while not journal.exists() or journal.read_bytes().count(b"\n") < 11:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        finished = [json.loads(line)["requested"] for line in journal.read_bytes().split(b"\n")[1:-1]]
        assert 10 <= len(finished) < 25
        before = len(hub.log)
        resumed = subprocess.run([*command, "a.jsonl"], **about, **pipes)
        assert not any(asked(hub, name, before) for name in finished)
        monkeypatch.chdir(tmp_path)
        code, whole, _ = run(*command[3:], "b.jsonl")
        assert resumed.returncode == code == 4
        ours, theirs = ([json.loads(line) for line in out.splitlines()] for out in (resumed.stdout, whole))
        assert plain(ours) == plain(theirs) and len(ours) == 25
        assert [r["requested"] for r in ours if r["resumed"]] == finished


class TestMembers:
    @pytest.fixture
    def org(self, hub: MiniHub) -> MiniHub:
        for day in range(1, 10):
            hub.add(f"org/m{day}", {"config.json": b"{}"}, modified=f"2026-01-0{day}T12:00:00")
        hub.add("else/x", {"config.json": b"{}"})
        return hub

    def test_an_author(self, org: MiniHub) -> None:
        assert members(author="org", limit=2) == [Member("org/m9"), Member("org/m8")]
        assert len(members(author="org")) == 9

    def test_what_is_named_twice_counts_once(self, org: MiniHub, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text("org/m9\norg/m9\norg/m8\n")
        found = members(file=tmp_path / "l.txt", author="org", limit=4)
        assert [m.ref for m in found] == ["org/m9", "org/m8", "org/m7", "org/m6"]

    def test_since_stops_the_listing(self, org: MiniHub) -> None:
        org.page_size = 3
        found = members(author="org", since="2026-01-08T12:00")
        assert [m.ref for m in found] == ["org/m9", "org/m8"] and org.counts["api"] == 1
        assert members(author="org", since="2026-02-01") == []

    def test_nobody(self, org: MiniHub) -> None:
        with pytest.raises(ModelNotFoundError, match="lists none"):
            members(author="nobody")
        with pytest.raises(ArgumentError, match="organisation"):
            members(author="a/b?c=d")

    def test_a_collection_and_a_list_together(self, org: MiniHub, tmp_path: Path) -> None:
        org.add_collection("org/best-0123abcd", title="Best", items=["org/m1", "else/x", "org/m2"])
        (tmp_path / "l.txt").write_bytes(
            b"\xef\xbb\xbforg/m2 # a comment\r\n\r\n  # nothing\r\nelse/x@main\r\n./here\r\n"
        )
        found = members(file=tmp_path / "l.txt", collection=f"{org.url}/collections/org/best-0123abcd")
        assert [m.ref for m in found] == ["org/m2", "else/x@main", "./here", "org/m1", "else/x"]
        assert [m.line for m in found] == [1, 4, 5, None, None] and found[0].file == str(tmp_path / "l.txt")
        before = org.counts["api"]
        late = members(file=tmp_path / "l.txt", collection="org/best-0123abcd", since="2026-01-02")
        assert [m.ref for m in late] == ["org/m2", "./here"] and org.counts["api"] - before == 6

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"org/a\norg/b\norg/a\n")))
        assert members(file="-") == [Member("org/a", None, 1), Member("org/b", None, 2)]

    @pytest.mark.parametrize(
        ("raw", "words"),
        [(b"a/b\nno id!\n", "l.txt:2: Expected a repo id"), (b"# x\n", "got none"), (b"\xff\xfe", "UTF-8")],
    )
    def test_bad_lists(self, tmp_path: Path, raw: bytes, words: str) -> None:
        (tmp_path / "l.txt").write_bytes(raw)
        with pytest.raises(ArgumentError, match=words):
            members(file=tmp_path / "l.txt")

    def test_moments(self) -> None:
        now = datetime(2026, 1, 10, tzinfo=UTC)
        assert read_moment("36h", now) == now - timedelta(hours=36) and read_moment("7d", now).day == 3
        assert read_moment("2026-01-01T10:00+02:00") == datetime(2026, 1, 1, 8, tzinfo=UTC)
        for wrong in ("soon", "7 days", "2026-13-01", "999999w", "-3h", ""):
            with pytest.raises(ArgumentError, match="Expected 2026"):
                read_moment(wrong)


class TestCommand:
    def test_a_table_worst_first(self, run, lab: MiniHub, nets, tmp_path: Path) -> None:
        add(lab, "lab/liar", nets["child"], "lab/stranger")
        (tmp_path / "l.txt").write_text("lab/child\nlab/parent\nlab/liar\nlab/absent\n")
        sarif, report = tmp_path / "a.sarif", tmp_path / "a.md"
        code, out, err = run("audit", tmp_path / "l.txt", "--sarif", sarif, "--markdown", report)
        rows = [line.split()[0] for line in out.splitlines()[1:] if line[:1].strip()]
        assert code == 4 and rows[:4] == ["contradicted", "failed", "no", "confirmed"]
        assert all(len(line) <= 80 for line in out.splitlines()) and "4 models: 1 contradicted, 1 failed" in out
        assert "SARIF" in err and "contradicted | `lab/liar`" in report.read_text()
        results = json.loads(sarif.read_text())["runs"][0]["results"]
        assert [r["ruleId"] for r in results] == ["contradicted-base-model", "unreadable-model"]
        assert results[0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 3}

    def test_programs_get_a_line_each(self, run, lab: MiniHub) -> None:
        code, out, _ = run("audit", "--author", "lab", "--json")
        assert code == 0 and {json.loads(line)["ref"] for line in out.splitlines()} == set(lab.repos)
        code, out, _ = run("audit", "--author", "lab", "--format", "agent")
        assert len({line.count("\t") for line in out.splitlines()}) == 1 and len(out.splitlines()) == 1 + len(lab.repos)
        lab.commit("lab/child", {"README.md": card("lab/stranger")})
        code, out, _ = run("audit", "--author", "lab", "-q")
        assert (code, out) == (4, "lab/child\n")

    def test_all_failed(self, run, lab: MiniHub, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text("lab/absent\nlab/gone\n")
        assert run("audit", tmp_path / "l.txt")[0] == 5

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            ([], 2, "Expected models"),
            (["org/name"], 2, "echo org/name | hf-lineage audit -"),
            (["--author", "nobody"], 3, "lists none"),
            (["--author", "lab", "--since", "soon"], 2, "Expected 2026"),
            (["--author", "lab", "--sarif", "/nowhere/a.sarif"], 2, "can be written to"),
            (["--author", "lab", "--alpha", "7"], 2, "Expected `alpha`"),
        ],
    )
    def test_what_is_wrong_is_told(self, run, lab: MiniHub, arguments: list[str], code: int, words: str) -> None:
        found, out, err = run("audit", *arguments)
        assert (found, out) == (code, "") and words in err

    def test_nothing_changed_is_fine(self, run, lab: MiniHub) -> None:
        code, out, _ = run("audit", "--author", "lab", "--since", "1h")
        assert code == 0 and "0 models: nothing to audit" in out

    def test_interrupted(self, run, lab: MiniHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(auditing, "trace", interrupted)
        (tmp_path / "l.txt").write_text("lab/absent\nlab/child\nlab/parent\n")
        sarif, report = tmp_path / "a.sarif", tmp_path / "a.md"
        code, out, err = run("audit", tmp_path / "l.txt", "--sarif", sarif, "--markdown", report)
        assert code == 130 and "interrupted" in err and "1 model: 1 failed" in out
        document = json.loads(sarif.read_text())["runs"][0]
        assert document["invocations"][0]["executionSuccessful"] is False and len(document["results"]) == 1
        assert "Interrupted" in report.read_text()

    def test_no_token_anywhere(self, hub: MiniHub, make_net: Make, tmp_path: Path) -> None:
        add(hub, "alice/base", make_net(1), private=True)
        add(hub, "alice/child", make_net(2, make_net(1)), "alice/base", private=True)
        add(hub, "alice/liar", make_net(3), "alice/base", private=True)
        hub.add("alice/broken", {"model.safetensors": b"\xff" * 99, "README.md": card("alice/base")})
        add(hub, "bob/secret", make_net(4), private=True)
        (tmp_path / "l.txt").write_text("bob/secret\n")
        command = ["audit", "l.txt", "--author", "alice", "--journal", "j", "--sarif", "s", "--markdown", "m"]
        result = subprocess.run(
            [sys.executable, "-m", "hf_lineage", *command], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, **hub.environment("hf_alice")},
        )  # fmt: skip
        assert result.returncode == 4 and "confirmed     alice/child" in result.stdout, result.stderr
        texts = [result.stdout, result.stderr, *((tmp_path / name).read_text() for name in ("j", "s", "m"))]
        assert all("alice/liar" in text for text in texts if text != result.stderr)
        assert not any("hf_alice" in text for text in texts) and not hub.leaks

    def test_no_token_in_a_log(self, lab: MiniHub, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            records = list(hl.audit(["lab/child", "lab/absent", "bob/x"], token="hf_alice"))
        assert records[0].status == "confirmed" and "hf_alice" not in caplog.text + repr(records) and not lab.leaks


def test_a_disk_that_is_full(lab: MiniHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    records = hl.audit(["lab/parent"], journal=tmp_path / "j")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LineageError, match="No space left"):
        next(records)
