"""Reading through the real client from the loopback Hub: access, redirects, faults, and how many bytes it costs."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import (
    AccessDeniedError,
    BrokenFileError,
    CheckpointError,
    HubUnavailableError,
    ModelNotFoundError,
)
from hf_lineage.hub.client import MAX_REQUEST, RemoteFile, coalesce
from hf_lineage.report.sentences import explanation
from hf_lineage.testing import MiniHub

TRIO = ["lab/parent", "lab/stranger", "lab/stranger-2"]


def values(hub: MiniHub, name: str = "lab/parent", token: str | None = None) -> torch.Tensor:
    checkpoint = open_checkpoint(name, token=token)
    return checkpoint.read([Slice("fc1.weight", 0, checkpoint["fc1.weight"].count)])[0]


class TestReading:
    def test_equal_to_the_file(self, lab: MiniHub, nets) -> None:
        assert torch.equal(values(lab), nets["parent"]["fc1.weight"].flatten())

    def test_only_what_is_asked_for_is_fetched(self, lab: MiniHub) -> None:
        big = {"emb.weight": torch.randn(200_000, 8), "fc.bias": torch.ones(3)}
        lab.add("lab/big", {"model.safetensors": save(big)})
        checkpoint = open_checkpoint("lab/big")
        header = lab.bytes_served["lab/big/model.safetensors"]
        assert header == checkpoint.bytes_read < 20_000
        checkpoint.read([Slice("emb.weight", 1000, 2000), Slice("emb.weight", 900_000, 900_500)])
        assert lab.bytes_served["lab/big/model.safetensors"] - header == 4 * 1500
        assert checkpoint.bytes_read - header == 4 * 1500

    def test_neighbours_share_a_request(self, lab: MiniHub) -> None:
        checkpoint = open_checkpoint("lab/parent")
        before = len(lab.log)
        names = [name for name in checkpoint if name.startswith("fc1")]
        checkpoint.read([Slice(name, 0, checkpoint[name].count) for name in names])
        assert len(lab.log) - before == 1

    def test_a_long_header_is_read_in_two_looks(self, hub: MiniHub) -> None:
        many = {f"a.rather.long.name.for.a.tensor.{i}": torch.full((1,), float(i)) for i in range(500)}
        hub.add("lab/many", {"model.safetensors": save(many)})
        checkpoint = open_checkpoint("lab/many")
        assert len(checkpoint) == 500
        assert checkpoint.read([Slice("a.rather.long.name.for.a.tensor.499", 0, 1)])[0].item() == 499

    def test_shards(self, lab: MiniHub, nets) -> None:
        parent = nets["parent"]
        shards = {
            f"model-0000{i}-of-00003.safetensors": [n for n in parent if n.startswith(f"fc{i}")] for i in (1, 2, 3)
        }
        index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
        files = {shard: save({n: parent[n] for n in names}) for shard, names in shards.items()}
        lab.add("lab/sharded", {**files, "model.safetensors.index.json": json.dumps(index)})
        lineage = hl.trace("lab/child", ["lab/sharded", "lab/stranger"])
        assert lineage.parent == "lab/sharded"

    def test_shards_are_read_at_the_same_time(self, lab: MiniHub, nets, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {
            f"model-0000{i}-of-00003.safetensors": save({f"fc{i}.weight": nets["parent"][f"fc{i}.weight"]})
            for i in (1, 2, 3)
        }
        index = {"weight_map": {f"fc{i}.weight": shard for i, shard in enumerate(files, start=1)}}
        lab.add("lab/sharded", {**files, "model.safetensors.index.json": json.dumps(index)})
        checkpoint = open_checkpoint("lab/sharded")
        meeting = threading.Barrier(3, timeout=20)  # breaks, and fails the test, unless all three are there at once
        read = RemoteFile.read

        def read_when_all_are_there(file: RemoteFile, extents: list[tuple[int, int]]) -> list[bytearray]:
            meeting.wait()
            return read(file, extents)

        monkeypatch.setattr(RemoteFile, "read", read_when_all_are_there)
        assert len(checkpoint.read([Slice(f"fc{i}.weight", 0, 10) for i in (1, 2, 3)])) == 3

    def test_a_revision_is_pinned_to_its_commit(self, lab: MiniHub, nets) -> None:
        old = lab.repos["lab/parent"].refs["main"]
        new = lab.commit("lab/parent", {"model.safetensors": save(nets["stranger"])})
        now = hl.trace("lab/child", ["lab/parent", f"lab/parent@{old[:8]}"])
        assert now.parent == "lab/parent" and now.candidates[0].revision == old
        assert {c.revision for c in now.candidates} == {old, new}
        assert now.candidates[0].requested == f"lab/parent@{old[:8]}"

    def test_the_sample_of_a_remote_model_is_the_default(self, lab: MiniHub) -> None:
        wide = {"fc1.weight": torch.randn(3000, 400), "fc2.weight": torch.randn(300, 3000)}
        lab.add("lab/wide", {"model.safetensors": save(wide)})
        lab.add(
            "lab/wide-child", {"model.safetensors": save({k: v + 0.05 * torch.randn_like(v) for k, v in wide.items()})}
        )
        lineage = hl.trace("lab/wide-child", ["lab/wide"], seed=1)
        assert lineage.candidates[0].p_value < 1e-3 and "A sample was read" in lineage.notes[0]  # type: ignore[operator]
        served = sum(lab.bytes_served.values())
        assert served == lineage.bytes_read == pytest.approx(2 * (4 << 20), rel=0.2)


class TestAccess:
    def test_a_missing_child(self, lab: MiniHub) -> None:
        with pytest.raises(ModelNotFoundError, match="hf auth login"):
            hl.trace("lab/nothing", TRIO)

    def test_a_missing_revision(self, lab: MiniHub) -> None:
        with pytest.raises(ModelNotFoundError, match="no such revision"):
            hl.trace("lab/child@nope", TRIO)

    def test_missing_private_and_gated_candidates_are_listed(self, lab: MiniHub, nets) -> None:
        files = {"model.safetensors": save(nets["stranger"])}
        lab.add("alice/private", files, private=True)
        lab.add("alice/gated", files, gated="auto")
        lineage = hl.trace("lab/child", ["lab/parent", "lab/gone", "alice/private", "alice/gated"])
        assert lineage.parent == "lab/parent"
        assert [c.status for c in lineage.candidates] == ["compared", "unreadable", "unreadable", "unreadable"]
        reasons = {c.ref: c.reasons[0] for c in lineage.candidates[1:]}
        assert "gated" in reasons["alice/gated"] and "not found" in reasons["alice/private"]

    def test_a_private_child_needs_its_token(self, lab: MiniHub, nets) -> None:
        lab.add("alice/private", {"model.safetensors": save(nets["child"])}, private=True)
        with pytest.raises(ModelNotFoundError):
            hl.trace("alice/private", TRIO)
        assert hl.trace("alice/private", TRIO, token="hf_alice").parent == "lab/parent"

    def test_a_gated_child(self, lab: MiniHub, nets) -> None:
        lab.add("alice/gated", {"model.safetensors": save(nets["child"])}, gated="manual")
        with pytest.raises(AccessDeniedError, match="accept its terms"):
            hl.trace("alice/gated", TRIO)
        with pytest.raises(AccessDeniedError):
            hl.trace("alice/gated", TRIO, token="hf_bob")
        assert hl.trace("alice/gated", TRIO, token="hf_alice").parent == "lab/parent"

    def test_renamed_repos_answer_to_both_names(self, lab: MiniHub, nets) -> None:
        lab.rename("lab/parent", "lab/parent-v2")
        lineage = hl.trace("lab/child", ["lab/parent", "lab/stranger"])
        assert lineage.parent == "lab/parent-v2" and lineage.candidates[0].requested == "lab/parent"
        assert lineage.claims[0].status == "confirmed", "the card names the old id"
        by_new_name = hl.trace("lab/child", ["lab/parent-v2", "lab/stranger"])
        assert by_new_name.claims[0].status == "confirmed"

    def test_a_repo_of_one_segment(self, lab: MiniHub, nets) -> None:
        lab.add("openai-community/gpt2", {"model.safetensors": save(nets["parent"])})
        lab.rename("gpt2", "openai-community/gpt2")
        assert hl.trace("lab/child", ["gpt2"]).parent == "openai-community/gpt2"

    def test_both_names_of_one_repo_count_once(self, lab: MiniHub) -> None:
        lab.rename("lab/old", "lab/parent")
        lineage = hl.trace("lab/child", ["lab/parent", "lab/old", "lab/stranger"])
        assert len(lineage.candidates) == 2 and "counts once" in " ".join(lineage.notes)

    def test_offline(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import close_session, constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        close_session()
        with pytest.raises(HubUnavailableError, match="offline mode is on"):
            hl.trace("lab/child", TRIO)


class TestToken:
    def test_never_to_another_origin(self, lab: MiniHub, nets) -> None:
        """Private repo, weights redirected to the cdn, an expired link on the way: the cdn sees no token."""
        lab.add("alice/private", {"model.safetensors": save(nets["child"])}, private=True)
        lab.fault("expired", file="alice/private/*")
        assert hl.trace("alice/private", TRIO, token="hf_alice").parent == "lab/parent"
        assert any(request.app == "cdn" for request in lab.log) and lab.leaks == []
        assert all(request.authorised for request in lab.log if "alice" in request.path and request.app == "hub")

    @pytest.mark.parametrize("kind", [429, 503, "wrong_range", "drop"])
    def test_never_in_a_log_or_an_error(self, lab: MiniHub, kind, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        lab.fault(kind, times=None, on="any" if isinstance(kind, int) else None)
        with pytest.raises(hl.LineageError) as caught:
            hl.trace("lab/child", TRIO, token="hf_alice")
        chain = [str(error) for error in _chain(caught.value)]
        assert "hf_alice" not in " ".join([caplog.text, *chain])
        warned = " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
        assert "Signature=" not in warned, "a signed link opens the file to whoever reads the log"


class TestFaults:
    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("on", ["api", "resolve", "cdn"])
    def test_a_busy_server_is_asked_again(self, lab: MiniHub, status: int, on) -> None:
        lab.fault(status, on=on, times=2, value=1)
        assert hl.trace("lab/child", TRIO).parent == "lab/parent"
        assert len(lab.waits) == 2

    def test_a_server_that_stays_busy(self, lab: MiniHub) -> None:
        lab.fault(503, on="api", times=None)
        with pytest.raises(HubUnavailableError, match="HTTP 503"):
            hl.trace("lab/child", TRIO)

    def test_rate_limits_are_waited_for(self, lab: MiniHub) -> None:
        lab.fault(429, on="cdn", value=7)
        values(lab)
        assert lab.waits == [8.0], "the seconds the Hub names, and one more"

    def test_an_expired_link_is_renewed(self, lab: MiniHub, nets) -> None:
        lab.fault("expired")
        assert torch.equal(values(lab), nets["parent"]["fc1.weight"].flatten())

    def test_a_link_that_stays_dead(self, lab: MiniHub) -> None:
        lab.fault("expired", times=None)
        with pytest.raises(AccessDeniedError, match="403"):
            values(lab)

    def test_a_server_that_ignores_ranges_sends_small_files_whole(self, lab: MiniHub, nets) -> None:
        lab.fault("ignore_range", times=None)
        assert torch.equal(values(lab), nets["parent"]["fc1.weight"].flatten())

    def test_and_is_hung_up_on_when_the_file_is_large(self, lab: MiniHub, tmp_path: Path) -> None:
        save_file({"fc1.weight": torch.zeros(3_000_000)}, tmp_path / "model.safetensors")
        lab.add("lab/large", {"model.safetensors": tmp_path / "model.safetensors"})
        lab.fault("ignore_range", times=None)
        with pytest.raises(CheckpointError, match="ignores ranges"):
            values(lab, "lab/large")
        assert lab.bytes_served["lab/large/model.safetensors"] < 6_000_000

    @pytest.mark.parametrize(("kind", "value"), [("wrong_range", 0), ("resize", 8), ("resize", -8)])
    def test_a_file_that_changes(self, lab: MiniHub, kind, value: int) -> None:
        checkpoint = open_checkpoint("lab/parent")
        lab.fault(kind, value=value)
        with pytest.raises(BrokenFileError, match=r"changed|Run again"):
            checkpoint.read([Slice("fc1.weight", 0, 100)])

    def test_a_broken_connection_is_tried_again(self, lab: MiniHub, nets, monkeypatch: pytest.MonkeyPatch) -> None:
        lab.fault("drop")
        lab.fault("truncate", value=100)
        assert torch.equal(values(lab), nets["parent"]["fc1.weight"].flatten())

    def test_but_not_for_ever(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = open_checkpoint("lab/parent")
        lab.fault("truncate", times=None, value=10)
        with pytest.raises(HubUnavailableError, match="connection broke"):
            checkpoint.read([Slice("fc1.weight", 0, 100)])

    def test_one_bad_candidate_does_not_stop_the_others(self, lab: MiniHub) -> None:
        lab.fault("wrong_range", file="lab/stranger/*", times=None, after=1)
        lineage = hl.trace("lab/child", TRIO)
        assert lineage.parent == "lab/parent"
        assert {c.ref: c.status for c in lineage.candidates} == {
            "lab/parent": "compared", "lab/stranger-2": "compared", "lab/stranger": "unreadable",
        }  # fmt: skip

    def test_no_hub_at_all(self, lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubUnavailableError, match="did not answer"):
            hl.trace("lab/child", TRIO)

    def test_the_rest_of_a_failed_candidate_is_not_asked_for(self, hub: MiniHub, nets) -> None:
        wide = {f"layers.{i}.mlp.up_proj.weight": torch.randn(2000, 600) for i in range(8)}
        hub.add("lab/a", {"model.safetensors": save(wide)})
        hub.add("lab/b", {"model.safetensors": save(wide)})
        hub.add("lab/c", {"model.safetensors": save(wide)})
        hub.fault("wrong_range", file="lab/b/*", times=None, after=1)
        lineage = hl.trace("lab/a", ["lab/b", "lab/c"], sample="all")
        assert [c.status for c in lineage.candidates] == ["compared", "unreadable"]
        assert hub.bytes_served["lab/b/model.safetensors"] < 0.6 * hub.bytes_served["lab/c/model.safetensors"]

    def test_claims_are_looked_up_once(self, lab: MiniHub, nets) -> None:
        card = "---\nbase_model: [lab/x, lab/y]\n---\n"
        lab.add("lab/claims", {"model.safetensors": save(nets["child"]), "README.md": card})
        hl.trace("lab/claims", TRIO)
        assert sum("lab/x" in request.path for request in lab.log) == 1


class TestHostileRepos:
    def test_an_adapter_cannot_open_a_path_of_this_machine(self, lab: MiniHub) -> None:
        lora = save({"base_model.model.fc1.lora_A.weight": torch.randn(2, 48)})
        config = json.dumps({"base_model_name_or_path": "/etc"})
        lab.add("lab/adapter", {"adapter_model.safetensors": lora, "adapter_config.json": config})
        with pytest.raises(CheckpointError, match="names no base model"):
            hl.trace("lab/adapter", TRIO)

    def test_an_index_that_points_outside(self, lab: MiniHub) -> None:
        index = json.dumps({"weight_map": {"a": "../../etc/passwd.safetensors"}})
        lab.add("lab/evil", {"model.safetensors.index.json": index, "x.safetensors": b"x"})
        lineage = hl.trace("lab/child", ["lab/evil", "lab/parent"])
        assert lineage.parent == "lab/parent" and "outside its folder" in lineage.candidates[1].reasons[0]

    def test_pickles_are_not_even_fetched(self, lab: MiniHub) -> None:
        lab.add("lab/pickle", {"pytorch_model.bin": b"cos\nsystem\n"})
        lineage = hl.trace("lab/child", ["lab/pickle", "lab/parent"])
        assert "--allow-pickle" in lineage.candidates[1].reasons[0]
        assert lab.bytes_served["lab/pickle/pytorch_model.bin"] == 0

    def test_pickles_on_request(self, lab: MiniHub, nets, tmp_path: Path) -> None:
        torch.save(nets["parent"], tmp_path / "pytorch_model.bin")
        lab.add("lab/pickle", {"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
        assert hl.trace("lab/child", ["lab/pickle"], allow_pickle=True).parent == "lab/pickle"

    @pytest.mark.parametrize("card", ["base_model: [", "base_model: {a: 1}", "base_model: [1, null, '../x']", "- 1"])
    def test_cards_of_any_kind(self, lab: MiniHub, nets, card: str) -> None:
        lab.add("lab/odd", {"model.safetensors": save(nets["child"]), "README.md": f"---\n{card}\n---\n"})
        lineage = hl.trace("lab/odd", TRIO)
        assert lineage.parent == "lab/parent" and {claim.status for claim in lineage.claims} <= {"not_understood"}
        assert lineage.undeclared == (() if lineage.claims else ("lab/parent",))


def test_an_adapter_is_traced_through_its_base(lab: MiniHub) -> None:
    config = json.dumps({"base_model_name_or_path": "lab/child", "r": 2})
    lora = save({"base_model.model.fc1.lora_A.weight": torch.randn(2, 48)})
    lab.add("lab/adapter", {"adapter_model.safetensors": lora, "adapter_config.json": config})
    lineage = hl.trace("lab/adapter", TRIO)
    assert lineage.child.name == "lab/adapter" and lineage.parent == "lab/parent"
    assert "was traced in its place" in lineage.notes[0] and lineage.claims[0].source == "adapter"
    own = hl.trace("lab/adapter")
    assert (own.verdict, own.parent, own.candidates[0].status) == ("undecided", None, "not_comparable")
    assert "compared with itself it is no evidence" in own.candidates[0].reasons[0]
    assert own.claims[0].status == "not_testable", "what an adapter says of itself is not shown by its base"
    other = hl.trace("lab/child", ["lab/adapter", "lab/parent"])
    assert other.parent == "lab/parent" and "name its base" in other.candidates[1].reasons[0]


def test_requests_join_neighbours_and_split_giants() -> None:
    assert coalesce([]) == []
    assert coalesce([(0, 10), (10, 20)]) == [(0, 20, [0, 1])]
    assert [g[:2] for g in coalesce([(0, 10), (1000, 1010)])] == [(0, 10), (1000, 1010)], "the gap would be all waste"
    giant = coalesce([(5, 5 + 2 * MAX_REQUEST + 1)])
    assert [b - a for a, b, _ in giant] == [MAX_REQUEST, MAX_REQUEST, 1]


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize(("older", "newer"), [("parent", "child"), ("child", "parent")])
def test_dates_of_commits_are_told_and_decide_nothing(lab: MiniHub, older: str, newer: str) -> None:
    lab.repos[f"lab/{older}"].modified = "2024-01-02T00:00:00Z"
    lab.repos[f"lab/{newer}"].modified = "2025-03-04T00:00:00Z"
    answer = hl.trace("lab/child", ["lab/parent", "lab/stranger"], token=False)
    dates = {older: "2024-01-02", newer: "2025-03-04"}
    assert answer.verdict == "parent" and answer.candidates[0].facts["committed"] == {
        "child": f"{dates['child']}T00:00:00+00:00", "candidate": f"{dates['parent']}T00:00:00+00:00",
    }  # fmt: skip
    told = f"the commit of this model is of {dates['child']}, that of lab/parent of {dates['parent']}"
    assert told in explanation(answer)
