"""Mirrors, proxies and outages between us and the Hub: the truth or an error, and no byte of a card is lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import random_card, without_ours
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.answers.lineage import Lineage
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import CardError, CheckpointError, HubUnavailableError, LineageError
from hf_lineage.hub.cache import snapshot
from hf_lineage.report.card import MAX_CARD
from hf_lineage.tasks import annotate as annotation
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

ASKED = ["lab/parent", "lab/stranger"]
CARD = b"# my own words, no metadata\n\nThey must survive.\n"


@pytest.fixture
def server(lab: MiniHub, monkeypatch: pytest.MonkeyPatch) -> MiniHub:
    """The lab, whose child has a card in its owner's words; `hf_lab` may write. Pictures are not drawn."""
    lab.commit("lab/child", {"README.md": CARD})
    lab.tokens["hf_lab"] = "lab"
    monkeypatch.setattr(annotation, "WAIT", 0.0)
    monkeypatch.setattr(annotation, "_picture", lambda answer: b"a picture")
    return lab


def card(hub: MiniHub) -> bytes:
    repo = hub.repos["lab/child"]
    return repo.commits[repo.refs["main"]]["README.md"].read()


class TestUnknownSizes:
    """A size that a server does not tell is not 0."""

    @pytest.mark.parametrize("kind", ["no_length", "zero_length"])
    def test_weights_and_claims_are_read_as_from_the_hub(self, server: MiniHub, kind: Any) -> None:
        server.commit("lab/child", {"config.json": json.dumps({"_name_or_path": "lab/parent"}).encode()})
        server.fault(kind, times=None)
        lineage = hl.trace("lab/child", ASKED)
        assert lineage.parent == "lab/parent" and [claim.source for claim in lineage.claims] == ["config"]

    @pytest.mark.parametrize("kind", ["no_length", "zero_length"])
    def test_a_card_is_read_before_it_is_written(self, server: MiniHub, lineage: Lineage, kind: Any) -> None:
        server.fault(kind, times=None)
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed
        assert CARD in card(server) and len(card(server)) > len(CARD) + 500

    def test_a_file_in_chunks_is_read_to_its_end(self, server: MiniHub, lineage: Lineage) -> None:
        server.fault("no_length", times=None)
        server.fault("chunked", file="lab/child/README.md", times=None)
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed and CARD in card(server)

    @pytest.mark.parametrize("value", [0, 7])
    def test_chunks_that_break_off_are_no_file(self, server: MiniHub, lineage: Lineage, value: int) -> None:
        server.fault("no_length", times=None)
        server.fault("truncate", file="lab/child/README.md", times=None, value=value)
        with pytest.raises(LineageError):
            hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        assert card(server) == CARD

    def test_a_large_file_without_size_and_ranges_is_an_error_about_the_server(self, server: MiniHub) -> None:
        server.add("lab/big", {"model.safetensors": save({"w": torch.zeros(2048, 2100)})})
        server.fault("no_length", times=None)
        server.fault("chunked", times=None)
        with pytest.raises(CheckpointError, match=r"The server at http://localhost:\d+ does not tell how long"):
            open_checkpoint("lab/big")


class TestHollowFiles:
    """An empty read of a file that exists is an error."""

    def test_a_card(self, server: MiniHub, lineage: Lineage) -> None:
        for about in ({}, {"push": True}, {"create_pr": True}):
            server.faults.clear()
            server.fault("zero_length", times=None)
            server.fault("hollow", file="lab/child/README.md", times=None)
            with pytest.raises(HubUnavailableError, match="not the whole of it"):
                hl.annotate("lab/child", lineage, token="hf_lab", **about)
        assert card(server) == CARD and not server.repos["lab/child"].discussions

    def test_another_text_than_the_server_names(self, server: MiniHub, lineage: Lineage) -> None:
        server.fault("resize", file="lab/child/README.md", times=None, value=-3)
        with pytest.raises(LineageError):
            hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        assert card(server) == CARD

    @pytest.mark.parametrize("value", [-3, 5])
    def test_a_text_without_a_hash_is_held_against_the_api(self, server: MiniHub, lineage: Lineage, value: int) -> None:
        server.fault("no_etag", times=None)
        assert hl.annotate("lab/child", lineage, token=False).changed
        server.fault("zero_length", times=None)
        server.fault("resize", file="lab/child/README.md", times=None, value=value)
        with pytest.raises(LineageError):
            hl.annotate("lab/child", lineage, push=True, token="hf_lab")
        assert card(server) == CARD

    def test_weights_without_a_hash_are_not_taken_for_the_same(
        self, server: MiniHub, lineage: Lineage, nets: dict, monkeypatch: Any
    ) -> None:
        from hf_lineage.hub.cards import CardRepository

        server.commit("lab/child", {"model.safetensors": save(nets["stranger"])})
        monkeypatch.setattr(CardRepository, "_files", lambda *_: [{"rfilename": "model.safetensors"}])
        with pytest.raises(HubUnavailableError, match="hash of `model"):
            hl.annotate("lab/child", lineage, push=True, token="hf_lab")

    def test_an_empty_card_is_one(self, server: MiniHub, lineage: Lineage) -> None:
        server.commit("lab/child", {"README.md": b""})
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed

    def test_a_card_that_is_not_listed_is_asked_for(self, server: MiniHub, lineage: Lineage, monkeypatch: Any) -> None:
        from hf_lineage.hub import client

        real = client.RepoFacts.of

        def unlisted(data: Any) -> Any:
            kept = [file for file in data.get("siblings", ()) if file["rfilename"] != "README.md"]
            return real({**data, "siblings": kept})

        monkeypatch.setattr(client.RepoFacts, "of", unlisted)
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed and CARD in card(server)


class TestMirrors:
    def test_without_content_range_the_server_is_named(self, server: MiniHub) -> None:
        server.add("lab/long", {"model.safetensors": save({"w": torch.zeros(2048, 300)})})
        server.fault("no_content_range", times=None)
        with pytest.raises(CheckpointError, match=r"The server at http://localhost:\d+ sends parts .* without saying"):
            checkpoint = open_checkpoint("lab/long")
            checkpoint.read([Slice("w", 5000, 6000)])

    def test_without_content_range_a_whole_file_is_whole(self, server: MiniHub, lineage: Lineage) -> None:
        server.fault("no_content_range", file="*.md", times=None)
        assert hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed and CARD in card(server)

    def test_that_know_no_expand_are_asked_without(self, server: MiniHub) -> None:
        server.fault(404, on="expand", times=None)
        assert hl.trace("lab/child", ASKED).parent == "lab/parent"
        with pytest.raises(LineageError, match="not found"):
            hl.trace("lab/nowhere", ASKED)

    def test_that_move_all_to_another_host(self, server: MiniHub) -> None:
        server.add("alice/secret", {"model.safetensors": save({"w": torch.zeros(2, 2)})}, private=True)
        server.fault("moved", times=None)
        lineage = hl.trace("lab/child", ASKED, token="hf_alice")
        assert lineage.parent == "lab/parent"
        assert not any(call.authorised for call in server.log if call.host.startswith("localhost"))


class TestFolders:
    def test_of_a_repo_by_its_name(self, server: MiniHub, nets: dict) -> None:
        for name in ("child", "parent"):
            weights = save(nets[name])
            server.add(
                f"pipe/{name}", {"unet/model.safetensors": weights, "vae/model.safetensors": save(nets["other"])}
            )
        with pytest.raises(LineageError, match=r"Name the one that is meant: pipe/child/unet, pipe/child/vae"):
            hl.trace("pipe/child", ["lab/stranger"])
        lineage = hl.trace("pipe/child/unet", ["pipe/parent/unet", "lab/stranger"])
        assert (lineage.child.name, lineage.parent) == ("pipe/child/unet", "pipe/parent/unet")
        single = hl.trace("pipe/child/unet/model.safetensors", ["pipe/parent/unet"])
        assert single.parent == "pipe/parent/unet"

    def test_a_claim_names_the_repo(self, server: MiniHub, nets: dict) -> None:
        for name in ("child", "parent"):
            server.add(f"pipe/{name}", {"unet/model.safetensors": save(nets[name])})
        server.commit("pipe/child", {"README.md": b"---\nbase_model: pipe/parent\n---\n"})
        lineage = hl.trace("pipe/child/unet", ["pipe/parent/unet"])
        assert [claim.status for claim in lineage.claims] == ["confirmed"] and not lineage.undeclared

    def test_declared_and_named_by_an_option(self, server: MiniHub, nets: dict, run: Any) -> None:
        for name in ("child", "parent"):
            server.add(f"pipe/{name}", {"unet/model.safetensors": save(nets[name])})
        server.commit("pipe/child", {"README.md": b"---\nbase_model: pipe/parent\n---\n"})
        assert hl.trace("pipe/child/unet").parent == "pipe/parent/unet"
        (record,) = hl.audit(["pipe/child/unet"])
        assert record.status == "confirmed"
        code, out, _ = run("trace", "pipe/child", "-c", "pipe/parent", "--subfolder", "unet", "-q")
        assert (code, out.strip()) == (0, "pipe/parent/unet")

    def test_its_card_is_the_repos(self, server: MiniHub, nets: dict) -> None:
        for name in ("child", "parent"):
            server.add(f"pipe/{name}", {"unet/model.safetensors": save(nets[name])})
        server.commit("pipe/child", {"README.md": CARD})
        server.tokens["hf_pipe"] = "pipe"
        lineage = hl.trace("pipe/child/unet", ["pipe/parent/unet", "lab/stranger"], prior=0.7)
        made = hl.annotate("pipe/child/unet", lineage, push=True, token="hf_pipe").make()
        repo = server.repos["pipe/child"]
        text = repo.commits[repo.refs["main"]]["README.md"].read()
        assert text.endswith(text[text.index(CARD) :]) and text.startswith(b"---\nbase_model: pipe/parent\n")
        if "lineage/bom.cdx.json" in made:
            assert b"pkg:huggingface/pipe/parent@" in made["lineage/bom.cdx.json"]

    def test_pasted_links(self, server: MiniHub) -> None:
        assert hl.trace("https://huggingface.co/lab/child/tree/main", ["hf.co/lab/parent/"]).parent == "lab/parent"


FAULTS: tuple[Any, ...] = (
    "no_length", "zero_length", "no_etag", "hollow", "chunked", "truncate", "resize", "no_content_range", "ignore_range", "drop",
    "moved", 404, 429, 503, "lost",
)  # fmt: skip


@pytest.mark.parametrize(
    "cards", [pytest.param(60, id="some"), pytest.param(100_000, id="large", marks=pytest.mark.large)]
)
def test_whatever_happens_no_byte_of_a_card_is_lost(server: MiniHub, lineage: Lineage, cards: int) -> None:
    """Random cards, and up to two random faults, of a read or of a write: the card afterwards is the one before, or that
    with our section and our lines of metadata."""
    rng = random.Random(17)
    written = 0
    for i in range(cards):
        text = random_card(rng)
        server.faults.clear()
        before = server.commit("lab/child", {"README.md": text.encode()})
        for kind in rng.sample(FAULTS, rng.randrange(3)):
            where = {"on": rng.choice(["api", "resolve", "expand", "write"])} if isinstance(kind, int) else {}
            file = "*" if isinstance(kind, int) or kind in ("drop", "moved", "lost") else "lab/child/README.md"
            server.fault(kind, file=file, times=rng.choice([1, 2, None]), value=rng.randrange(-3, 4), **where)
        try:
            changed = hl.annotate("lab/child", lineage, push=True, token="hf_lab").changed
        except LineageError:
            changed = None
        after = card(server).decode()
        assert after == text or without_ours(text, after) is not None, (i, text, after)
        written += changed is True and server.repos["lab/child"].refs["main"] != before
    assert written > cards / 5, "else nothing is tested"


class TestFolderOnThisMachine:
    @pytest.fixture
    def traced(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Lineage]:
        monkeypatch.setattr(annotation, "_picture", lambda answer: b"a picture")
        (folders["child"] / "README.md").write_bytes(CARD)
        return folders["child"], hl.trace(folders["child"], [folders["parent"], folders["stranger"]])

    def edits(self, readme: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> list[bytes]:
        """Somebody who edits the card while the files beside it are made."""
        made: list[bytes] = []
        real = annotation._record

        def record(answer: Any) -> bytes:
            if len(made) < times:
                made.append(b"edit %d\n" % len(made))
                readme.write_bytes(readme.read_bytes() + made[-1])
            return real(answer)

        monkeypatch.setattr(annotation, "_record", record)
        return made

    @pytest.mark.parametrize("times", [1, 2])
    def test_an_edit_meanwhile_is_kept(self, traced: tuple[Path, Lineage], monkeypatch: Any, times: int) -> None:
        child, lineage = traced
        made = self.edits(child / "README.md", monkeypatch, times)
        assert hl.annotate(child, lineage, push=True).changed
        text = (child / "README.md").read_bytes()
        assert text.startswith(CARD + b"".join(made)) and b"hf-lineage:start" in text and len(made) == times

    def test_but_not_for_ever(self, traced: tuple[Path, Lineage], monkeypatch: Any) -> None:
        child, lineage = traced
        made = self.edits(child / "README.md", monkeypatch, 99)
        with pytest.raises(CardError, match="changes again and again"):
            hl.annotate(child, lineage, push=True)
        assert (child / "README.md").read_bytes() == CARD + b"".join(made)
        assert not list(child.rglob("*.tmp"))

    def test_what_is_saved_to_look_at_replaces_nobodys_card(self, traced: tuple[Path, Lineage], tmp_path: Path) -> None:
        child, lineage = traced
        note = hl.annotate(child, lineage)
        (out := tmp_path / "out").mkdir()
        (out / "README.md").write_text("somebody's notes")
        with pytest.raises(CardError, match="Name another folder"):
            note.save(out)
        assert (out / "README.md").read_text() == "somebody's notes"
        note.save(tmp_path / "fresh")
        note.save(tmp_path / "fresh")

    def test_a_read_that_ends_early_is_an_error(self, traced: tuple[Path, Lineage], monkeypatch: Any) -> None:
        child, lineage = traced
        real = Path.open

        class Short:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __enter__(self) -> Short:
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def read(self, size: int = -1) -> bytes:
                return bytes(self._file.read(5))

        monkeypatch.setattr(Path, "open", lambda path, *a, **k: Short(real(path, *a, **k)) if path.name == "README.md" else real(path, *a, **k))  # fmt: skip
        with pytest.raises(CardError, match=f"Expected the {len(CARD)} bytes"):
            hl.annotate(child, lineage)
        assert len(CARD) < MAX_CARD


class TestPoisonedCards:
    """One line in somebody's card is no word of our program."""

    LINES = ("eval_results: x", "to_dict: x", "_to_dict: x", "self: x", "ignore_metadata_errors: x", "model-index: x",
             "model_name: [1]", "tags: 5", "base_model: 2024-01-01", "language: {a: b}", "x: .nan")  # fmt: skip

    @pytest.mark.parametrize("line", LINES)
    def test_of_a_candidate(self, server: MiniHub, line: str) -> None:
        server.commit("lab/stranger", {"README.md": f"---\n{line}\n---\n".encode()})
        server.commit("lab/parent", {"README.md": f"---\n{line}\n---\n".encode()})
        lineage = hl.trace("lab/child", ASKED)
        assert lineage.parent == "lab/parent" and {c.status for c in lineage.candidates} == {"compared"}

    def test_of_the_child(self, server: MiniHub) -> None:
        for line in self.LINES:
            server.commit("lab/child", {"README.md": f"---\n{line}\nbase_model: lab/stranger\n---\n".encode()})
            (record,) = hl.audit(["lab/child"])
            assert record.status == "contradicted" or line.startswith("base_model"), line

    ODD = ("base_model:\n- [lab/parent]", "base_model:\n- lab/parent:", "base_model:\n- name: lab/parent", "base_model: 7",
           "base_model: yes", "base_model: [1, null, lab/parent]", "base_model_relation: [finetune]", "license: {a: b}",
           "base_model_relation: {a: b}", "license: [mit, {a: b}]", "license_name: [x]", "tags: {a: b}", "7: 8", "x: 1e999",
           "base_model: !!set {lab/parent: null}", "base_model: !!binary aGVsbG8=", "<<: {license: mit}", "just text", "- a")  # fmt: skip

    @pytest.mark.parametrize("whose", ["lab/child", "lab/parent"])
    def test_values_of_any_type_are_annotated(self, server: MiniHub, lineage: Lineage, whose: str) -> None:
        for line in self.ODD:
            server.commit(whose, {"README.md": f"---\n{line}\n---\n# T\n".encode()})
            note = hl.annotate("lab/child", lineage, token=False)
            assert (note.changed and b"# T\n" in note.make()["README.md"]) or whose != "lab/child", line

    def test_of_a_model_in_a_tree(self, server: MiniHub) -> None:
        server.fault(503, file="lab/child/README.md", times=None)
        server.commit("lab/child", {"README.md": b"# no metadata\n"})
        tree = hl.phylogeny(["lab/child", "lab/parent", "lab/grandchild"])
        assert {node.ref for node in tree.nodes} >= {"lab/child", "lab/parent"}

    def test_of_a_model_in_a_search(self, server: MiniHub, nets: dict) -> None:
        for i, line in enumerate(self.LINES):
            files = {"model.safetensors": save(nets["stranger"]), "config.json": b"{}"}
            server.add(f"odd/m{i}", {**files, "README.md": f"---\n{line}\n---\n".encode()})
        found = hl.find_candidates("lab/child")
        assert "lab/parent" in found.refs and sum(ref.startswith("odd/") for ref in found.refs) == len(self.LINES)

    def test_whatever_one_repo_raises_the_others_are_compared(self, server: MiniHub, monkeypatch: Any) -> None:
        from hf_lineage.hub.client import HubRepo

        real = HubRepo.open

        def broken(repo: HubRepo, name: str) -> Any:
            if repo.ref.name == "lab/stranger":
                raise RuntimeError("what nobody thought of")
            return real(repo, name)

        monkeypatch.setattr(HubRepo, "open", broken)
        lineage = hl.trace("lab/child", ASKED)
        assert lineage.parent == "lab/parent" and lineage.candidates[1].status == "unreadable"
        assert "internal error, RuntimeError" in lineage.candidates[1].reasons[0]


class TestSnapshots:
    """A folder or a snapshot of a cache stands for its id."""

    @pytest.fixture
    def cache(self, tmp_path: Path, nets: dict) -> dict[str, Path]:
        found = {}
        for name in ("child", "parent", "stranger"):
            folder = (
                tmp_path
                / "hub"
                / f"models--lab--{name}"
                / "snapshots"
                / (name[0] * 40).replace("p", "b").replace("s", "d")
            )
            folder.mkdir(parents=True)
            save_file(nets[name], folder / "model.safetensors")
            found[name] = folder
        (found["child"] / "README.md").write_text("---\nbase_model: lab/parent\n---\n")
        return found

    def test_a_snapshot_is_its_repo(self, cache: dict[str, Path]) -> None:
        lineage = hl.trace(cache["child"], [cache["parent"], cache["stranger"]])
        assert [claim.status for claim in lineage.claims] == ["confirmed"] and not lineage.undeclared
        assert hl.trace(cache["child"].parents[1], [cache["parent"]]).parent == str(cache["parent"])

    def test_offline_what_was_fetched_by_its_commit_is_there(self, cache: dict[str, Path], monkeypatch: Any) -> None:
        root = cache["parent"].parents[1]
        monkeypatch.setattr("hf_lineage.hub.cache.constants.HF_HUB_CACHE", str(root.parent))
        ref = ModelRef.parse("lab/parent")
        assert snapshot(ref) == (cache["parent"].name, cache["parent"]), "no refs: the only one there is"
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("f" * 40)
        with pytest.raises(HubUnavailableError, match=rf"It has `lab/parent@{cache['parent'].name}`: name that commit"):
            snapshot(ref)
        (root / "refs" / "main").unlink()
        (root / "snapshots" / ("e" * 40)).mkdir()
        with pytest.raises(HubUnavailableError, match="name that commit"):
            snapshot(ref)
        assert snapshot(ModelRef.parse(f"lab/parent@{'e' * 40}"))[0] == "e" * 40

    def test_a_folder_from_any_directory(self, folders: dict[str, Path], monkeypatch: Any) -> None:
        (folders["child"] / "README.md").write_text("---\nbase_model: lab/parent\n---\n")
        monkeypatch.chdir(folders["child"].parent)
        lineage = hl.trace("./child", ["./parent", "./stranger"])
        assert [claim.status for claim in lineage.claims] == ["confirmed"] and not lineage.undeclared

    def test_no_parent_is_undeclared_while_a_claim_is_open(self, folders: dict[str, Path]) -> None:
        for line in ("lab/elsewhere", "/root/models/base"):
            (folders["child"] / "README.md").write_text(f"---\nbase_model: {line}\n---\n")
            lineage = hl.trace(folders["child"], [folders["parent"], folders["stranger"]])
            assert lineage.parent and not lineage.undeclared
        (folders["child"] / "README.md").write_text("---\nbase_model: lab/stranger\n---\n")
        lineage = hl.trace(folders["child"], [folders["parent"], folders["stranger"]])
        assert lineage.undeclared == (lineage.parent,)
