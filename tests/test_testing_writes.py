"""What the stand-in of the Hub lets the real `huggingface_hub` client search, write, discuss and collect."""

from __future__ import annotations

import json
import re
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    metadata_update,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelSort_T
from huggingface_hub.utils import get_session, httpx
from safetensors.numpy import save

from hf_lineage import testing
from hf_lineage.testing import MiniHub
from hf_lineage.testing.repos import Repo

CARD = "---\nlicense: mit\n---\n# Base\n"
CHILD = "---\nbase_model: lab/base\n---\n# Child\n"
ALICE, BOB = HfApi(token="hf_alice"), HfApi(token="hf_bob")
# httpx2 warns of what huggingface_hub 2.4 does when it uploads a large file
UPLOAD_WARNS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def endpoint(hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for api in (ALICE, BOB):
        monkeypatch.setattr(api, "endpoint", hub.url)


@pytest.fixture
def base(hub: MiniHub) -> str:
    """A repo of an organisation that alice belongs to, and bob does not."""
    hub.orgs["alice"] = {"lab"}
    return hub.add("lab/base", {"README.md": CARD, "config.json": b"{}"})


def weights(size: int) -> bytes:
    return save({"a": np.zeros(size, np.float32)})


def listed(**query: Any) -> list[str]:
    return [model.id for model in HfApi().list_models(**query)]


def text(name: str, file: str = "README.md", revision: str | None = None) -> str:
    return Path(hf_hub_download(name, file, revision=revision)).read_text()


def propose(content: str = CHILD, title: str = "Name the base", **about: Any) -> Any:
    change = CommitOperationAdd("README.md", content.encode())
    return BOB.create_commit("lab/base", [change], commit_message=title, create_pr=True, **about)


class TestListing:
    def test_num_parameters(self, hub: MiniHub) -> None:
        for size in (900, 1000, 1500):
            hub.add(f"lab/m{size}", {"model.safetensors": weights(size)})
        hub.add("lab/none", {"model.bin": b"0"})
        assert listed(num_parameters="min:1K,max:1.2K") == ["lab/m1000"]
        assert listed(num_parameters="min:1K") == ["lab/m1000", "lab/m1500"]
        assert listed(num_parameters="max:0.00095M") == ["lab/m900"]
        assert listed(num_parameters="min:1B") == []
        with pytest.raises(BadRequestError, match="num_parameters"):
            listed(num_parameters="about 1K")

    def test_gated(self, hub: MiniHub) -> None:
        hub.add("lab/open", {})
        hub.add("lab/gated", {}, gated="manual")
        assert (listed(gated=True), listed(gated=False)) == (["lab/gated"], ["lab/open"])
        assert listed() == ["lab/open", "lab/gated"]

    @pytest.mark.parametrize("sort", [*get_args(ModelSort_T), "createdAt", "lastModified", "trendingScore"])
    def test_sort(self, hub: MiniHub, sort: Any) -> None:
        fields = ("created", "modified", "downloads", "likes", "trending")
        names = ("createdAt", "lastModified", "downloads", "likes", "trendingScore")
        snakes = ("created_at", "last_modified", "downloads", "likes", "trending_score")
        winner = {**dict(zip(names, fields, strict=True)), **dict(zip(snakes, fields, strict=True))}[sort]
        for field in fields:
            dated = {"created": "2024-02-01", "modified": "2024-03-01"}
            about: dict[str, Any] = {field: {"created": "2025-01-01", "modified": "2026-01-01"}.get(field, 7)}
            hub.add(f"lab/{field}", {}, **{**dated, **about})
        assert listed(sort=sort)[0] == f"lab/{winner}"

    def test_an_unknown_sort_is_refused(self, hub: MiniHub) -> None:
        with pytest.raises(BadRequestError, match="fame"):
            listed(sort="fame")

    def test_children_storage_and_adapter(self, hub: MiniHub, base: str) -> None:
        hub.add("lab/tuned", {"README.md": CHILD})
        hub.add("lab/hidden", {"README.md": CHILD}, private=True)
        adapter = json.dumps({"base_model_name_or_path": "lab/base", "r": 8})
        hub.add(
            "lab/lora", {"README.md": CHILD, "adapter_config.json": adapter, "config.json": '{"model_type": "vit"}'}
        )
        info = HfApi().model_info("lab/base", expand=["childrenModelCount", "usedStorage"])
        assert info.children_model_count == {"finetune": 1, "adapter": 1}
        assert info.used_storage == len(CARD) + 2
        config = HfApi().model_info("lab/lora", expand=["config"]).config
        assert config == {"model_type": "vit", "peft": {"base_model_name_or_path": "lab/base"}}
        assert HfApi().model_info("lab/base").children_model_count is None
        hub.rename("lab/base", "lab/new")
        renamed = HfApi().model_info("lab/new", expand=["childrenModelCount"])
        assert renamed.children_model_count == {"finetune": 1, "adapter": 1}
        for name in ("childrenModelCount", "usedStorage", "baseModels"):
            with pytest.raises(BadRequestError, match=name):
                listed(expand=[name])

    def test_dates(self, hub: MiniHub) -> None:
        hub.add("lab/base", {}, created="2024-05-01", modified="2024-06-01T12:00:00.000Z", downloads=3)
        hub.commit("lab/base", {"a": b"1"}, title="One")
        info = HfApi().model_info("lab/base")
        assert [str(when)[:19] for when in (info.created_at, info.last_modified)] == [
            "2024-05-01 00:00:00",
            "2024-06-01 12:00:01",
        ]
        hub.commit("lab/base", {"a": b"2"}, modified="2025-01-01")
        hub.commit("lab/base", {"a": b"3"}, ref="draft", modified="2026-01-01")
        assert str(HfApi().model_info("lab/base").last_modified)[:10] == "2025-01-01"  # main's

    def test_four_hundred_repos(self, hub: MiniHub) -> None:
        content = weights(500)
        start = time.perf_counter()
        for number in range(400):
            card = f"---\nbase_model: lab/m{number // 2}\ntags: [t{number % 4}]\n---\n"
            hub.add(f"lab/m{number}", {"README.md": card, "model.safetensors": content}, downloads=number)
        assert len(listed(filter="t3", num_parameters="min:400,max:600")) == 100
        first = time.perf_counter() - start
        again = time.perf_counter()
        for number in range(10):
            assert listed(filter=f"base_model:finetune:lab/m{number + 100}", sort="downloads") == [
                f"lab/m{2 * number + 201}",
                f"lab/m{2 * number + 200}",
            ]
        print(f"\nadded and listed in {first:.2f} s, then {(time.perf_counter() - again) / 10:.4f} s a listing")
        assert first < 20


class TestLimits:
    def test_anonymous_requests_are_limited(self, hub: MiniHub, base: str) -> None:
        hub.limits = {"api": 3}
        for _ in range(3):
            HfApi().model_info("lab/base")
        with pytest.raises(HfHubHTTPError, match=r"429.*'api' rate limit") as caught:
            HfApi().model_info("lab/base")
        assert caught.value.response.headers["RateLimit"] == '"api";r=0;t=300'
        assert caught.value.response.headers["Retry-After"] == "300"
        assert BOB.model_info("lab/base").sha == base
        assert hf_hub_download("lab/base", "config.json")
        assert hub.counts["api"] == 5 and hub.counts["resolve"] >= 1 and hub.counts["cdn"] == 0
        hub.reset()
        assert hub.limits == {} and not hub.counts

    def test_a_client_that_waits_goes_on(self, hub: MiniHub, base: str) -> None:
        hub.limits = {"api": 2}
        assert [listed() for _ in range(3)] == [["lab/base"]] * 3  # a listing retries by itself
        assert hub.waits == [301] and [request.status for request in hub.log] == [200, 200, 429, 200]

    def test_resolve(self, hub: MiniHub, base: str) -> None:
        hub.limits = {"resolve": 0}
        response = get_session().get(f"{hub.url}/lab/base/resolve/main/config.json")
        assert (response.status_code, response.headers["RateLimit"]) == (429, '"resolvers";r=0;t=300')


class TestTokens:
    def test_whoami(self, hub: MiniHub, base: str) -> None:
        hub.roles["hf_bob"] = "read"
        assert [org["name"] for org in ALICE.whoami()["orgs"]] == ["lab"]
        roles = [api.whoami()["auth"]["accessToken"]["role"] for api in (ALICE, BOB)]
        assert roles == ["write", "read"] and BOB.whoami()["orgs"] == []

    def test_a_member_reads_what_is_private(self, hub: MiniHub, base: str) -> None:
        hub.add("lab/secret", {"README.md": CARD}, private=True)
        assert ALICE.model_info("lab/secret").private
        with pytest.raises(RepositoryNotFoundError):
            BOB.create_discussion("lab/secret", "Hello")
        hub.repos["lab/secret"].readers = frozenset({"bob"})
        assert BOB.create_discussion("lab/secret", "Hello").num == 1

    def test_a_read_token_writes_nothing(self, hub: MiniHub, base: str) -> None:
        ALICE.create_discussion("lab/base", "A question")
        hub.roles = {"hf_bob": "read", "hf_alice": "read"}
        writes = [
            lambda: propose(),
            lambda: ALICE.delete_file("config.json", "lab/base"),
            lambda: ALICE.create_discussion("lab/base", "A question"),
            lambda: ALICE.comment_discussion("lab/base", 1, "Me too"),
            lambda: ALICE.change_discussion_status("lab/base", 1, "closed"),
            lambda: ALICE.create_repo("alice/new"),
            lambda: ALICE.delete_repo("lab/base"),
        ]
        for write in writes:
            with pytest.raises(HfHubHTTPError, match=r"403 Forbidden: This token has role `read`"):
                write()
        assert list(hub.repos) == ["lab/base"] and hub.repos["lab/base"].refs == {"main": base}
        assert len(hub.repos["lab/base"].discussions) == 1

    def test_anonymous_and_strangers(self, hub: MiniHub, base: str) -> None:
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi().create_discussion("lab/base", "Hello")
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi().delete_file("config.json", "lab/base", create_pr=True)
        with pytest.raises(HfHubHTTPError, match=r"403.*create_pr=1"):
            BOB.delete_file("config.json", "lab/base")
        with pytest.raises(HfHubHTTPError, match=r"403.*create_pr=1"):
            BOB.upload_file(path_or_fileobj=b"{1}", path_in_repo="config.json", repo_id="lab/base")
        assert hub.repos["lab/base"].refs == {"main": base}
        hub.add("lab/gated", {"a": b"a"}, gated="auto")
        with pytest.raises(GatedRepoError):
            BOB.delete_file("a", "lab/gated", create_pr=True)


class TestCommits:
    def test_commit_on_main(self, hub: MiniHub, base: str) -> None:
        changes: list[Any] = [CommitOperationAdd("sub/a.txt", b"a"), CommitOperationDelete("config.json")]
        done = ALICE.create_commit(
            "lab/base", changes, commit_message="Tidy", commit_description="Why", parent_commit=base
        )
        assert ALICE.list_repo_files("lab/base") == ["README.md", "sub/a.txt"]
        assert done.oid == HfApi().model_info("lab/base").sha and done.pr_url is None
        assert done.commit_url == f"{hub.url}/lab/base/commit/{done.oid}"
        log = HfApi().list_repo_commits("lab/base")
        assert [commit.commit_id for commit in log] == [done.oid, base]
        assert (log[0].title, log[0].message, log[0].authors) == ("Tidy", "Why", ["alice"])
        assert log[0].created_at > log[1].created_at
        ALICE.delete_folder("sub", "lab/base")
        assert ALICE.list_repo_files("lab/base") == ["README.md"]
        with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
            ALICE.delete_file("sub/a.txt", "lab/base")

    def test_stale_parent(self, hub: MiniHub, base: str) -> None:
        new = hub.commit("lab/base", {"config.json": b"new"})
        with pytest.raises(HfHubHTTPError, match=r"412.*\s+A commit has happened since"):
            ALICE.delete_file("config.json", "lab/base", parent_commit=base)
        assert HfApi().model_info("lab/base").sha == new
        propose(parent_commit=base)  # a pull request starts from it
        assert text("lab/base", "config.json", "refs/pr/1") == "{}"
        assert HfApi().get_discussion_details("lab/base", 1).conflicting_files == []

    def test_a_commit_needs_a_branch(self, hub: MiniHub, base: str) -> None:
        with pytest.raises(RevisionNotFoundError):
            ALICE.delete_file("config.json", "lab/base", revision="none")
        with pytest.raises(BadRequestError, match="needs a branch"):
            ALICE.delete_file("config.json", "lab/base", revision=base)
        hub.commit("lab/base", {"a": b"a"}, ref="draft")
        ALICE.delete_file("config.json", "lab/base", revision="draft")
        assert HfApi().list_repo_files("lab/base", revision="draft") == ["README.md", "a"]
        assert HfApi().model_info("lab/base").sha == base

    def test_nothing_new_is_no_commit(self, hub: MiniHub, base: str) -> None:
        done = ALICE.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="lab/base")
        assert done.oid == base and len(hub.repos["lab/base"].commits) == 1

    @UPLOAD_WARNS
    def test_large_files(self, hub: MiniHub, base: str, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(weights(300))
        (tmp_path / "empty.bin").touch()
        ALICE.upload_folder(folder_path=tmp_path, repo_id="lab/base")
        assert Path(hf_hub_download("lab/base", "model.safetensors")).read_bytes() == weights(300)
        assert Path(hf_hub_download("lab/base", "empty.bin")).read_bytes() == b""
        stored: Any = HfApi().get_paths_info("lab/base", ["empty.bin", "model.safetensors"])
        assert [file.lfs is None for file in stored] == [True, False]  # the client puts empty files into git
        info = HfApi().model_info("lab/base", expand=["safetensors"])
        assert info.safetensors is not None and info.safetensors.total == 300
        uploads = [request for request in hub.log if request.method == "PUT"]
        assert [request.app for request in uploads] == ["cdn"] and hub.leaks == []
        again = ALICE.upload_file(path_or_fileobj=weights(300), path_in_repo="copy.safetensors", repo_id="lab/base")
        assert sum(request.method == "PUT" for request in hub.log) == 1  # known already
        assert text("lab/base") == CARD and again.oid == HfApi().model_info("lab/base").sha
        BOB.upload_file(path_or_fileobj=weights(9), path_in_repo="b.safetensors", repo_id="lab/base", create_pr=True)
        assert Path(hf_hub_download("lab/base", "b.safetensors", revision="refs/pr/1")).read_bytes() == weights(9)

    @UPLOAD_WARNS
    def test_uploads_refuse_tokens_and_wrong_content(self, hub: MiniHub, base: str) -> None:
        ALICE.upload_file(path_or_fileobj=weights(3), path_in_repo="a.safetensors", repo_id="lab/base")
        upload = next(request for request in hub.log if request.method == "PUT")
        url = f"{hub.cdn_url}{upload.path}?{upload.query}"
        token = {"Authorization": "Bearer hf_alice"}
        assert get_session().put(url, content=weights(3), headers=token).status_code == 400
        assert len(hub.leaks) == 1
        assert get_session().put(url, content=weights(4)).status_code == 400
        assert get_session().put(url.split("?")[0], content=weights(3)).status_code == 403
        assert get_session().put(url, content=iter([weights(3)[:5], weights(3)[5:]])).status_code == 200  # chunked
        hub.fault("expired", file="lab/base")
        assert [get_session().put(url, content=weights(3)).status_code for _ in range(2)] == [403, 403]

    def test_refs(self, hub: MiniHub, base: str) -> None:
        done = propose()
        hub.commit("lab/base", {}, ref="draft")
        refs = HfApi().list_repo_refs("lab/base", include_pull_requests=True)
        assert [(ref.name, ref.ref) for ref in refs.branches] == [
            ("main", "refs/heads/main"),
            ("draft", "refs/heads/draft"),
        ]
        assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests or ()] == [("refs/pr/1", done.oid)]
        assert HfApi().list_repo_refs("lab/base").pull_requests is None
        assert HfApi().model_info("lab/base", revision="refs/heads/main").sha == base

    def test_sharded_headers(self, hub: MiniHub) -> None:
        index = json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
        shards = {f"{n}.safetensors": save({name: np.zeros(n, np.float32)}) for n, name in ((1, "a"), (2, "b"))}
        hub.add("lab/base", {"model.safetensors.index.json": index, **shards})
        found = HfApi().get_sharded_safetensors_metadata("lab/base")
        assert found.weight_map == {"a": "1.safetensors", "b": "2.safetensors"}
        assert found.parameter_count == {"F32": 3} and found.metadata == {"total_size": 8}
        with pytest.raises(EntryNotFoundError):
            HfApi().get_sharded_safetensors_metadata("lab/base", filename="none.json")

    def test_repos_are_created_and_deleted(self, hub: MiniHub) -> None:
        url = ALICE.create_repo("alice/new", private=True)
        assert (url.repo_id, url.url) == ("alice/new", f"{hub.url}/alice/new") and hub.repos["alice/new"].private
        assert ALICE.create_repo("new", exist_ok=True).repo_id == "alice/new"
        with pytest.raises(HfHubHTTPError, match="409"):
            ALICE.create_repo("alice/new")
        with pytest.raises(HfHubHTTPError, match=r"403.*rights to create"):
            BOB.create_repo("alice/other")
        with pytest.raises(BadRequestError, match="models only"):
            ALICE.create_repo("data", repo_type="dataset")
        ALICE.upload_file(path_or_fileobj=CHILD.encode(), path_in_repo="README.md", repo_id="alice/new")
        with pytest.raises(RepositoryNotFoundError):
            BOB.delete_repo("alice/new")
        ALICE.delete_repo("alice/new")
        assert hub.repos == {}
        with pytest.raises(RepositoryNotFoundError):
            ALICE.delete_repo("alice/new")


class TestCards:
    @pytest.mark.parametrize(
        ("metadata", "problem"),
        [
            ("base_model: 'not an id'", 'base_model.*"not an id" is not valid'),
            ("base_model: [lab/base, a/b/c]", 'value "a/b/c"'),
            ("base_model: lab/base\nbase_model_relation: copy", "base_model_relation"),
            ("license: {a: 1}", '"license" must be a string'),
            ("tags: 3", '"tags" must be'),
            ("a: [", "Invalid YAML"),
            ("- a", "must be an object"),
        ],
    )
    def test_bad_metadata_is_refused(self, hub: MiniHub, base: str, metadata: str, problem: str) -> None:
        card = f"---\n{metadata}\n---\n"
        with pytest.raises(ValueError, match=problem):
            propose(card)
        lines = [{"key": "header", "value": {"summary": "Past the check"}}]
        lines += [{"key": "file", "value": {"path": "README.md", "content": "LS0tCmxpY2Vuc2U6IDMKLS0tCg=="}}]
        response = get_session().post(
            f"{hub.url}/api/models/lab/base/commit/main",
            content="\n".join(json.dumps(line) for line in lines),
            headers={"Authorization": "Bearer hf_alice"},
        )
        assert response.status_code == 400 and "license" in response.json()["error"]
        assert hub.repos["lab/base"].refs == {"main": base}

    def test_an_empty_card_is_warned_of(self, base: str) -> None:
        with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
            propose("# No metadata\n")

    def test_a_committed_base_model_shows(self, hub: MiniHub, base: str) -> None:
        hub.add("alice/child", {"README.md": CARD})
        assert listed(filter="base_model:lab/base") == []
        before = HfApi().model_info("alice/child").last_modified
        metadata_update("alice/child", {"base_model": "lab/base"}, token="hf_alice")
        assert listed(filter="base_model:finetune:lab/base") == ["alice/child"]
        info = HfApi().model_info("alice/child")
        assert before is not None and info.last_modified is not None and info.last_modified > before
        assert info.card_data is not None and info.card_data.base_model == "lab/base"

    def test_push_to_hub(self, hub: MiniHub, base: str) -> None:
        card = ModelCard.load("lab/base")
        card.data.base_model = "lab/older"
        done = card.push_to_hub("lab/base", token="hf_bob", create_pr=True, parent_commit=base)
        assert done.pr_url == f"{hub.url}/lab/base/discussions/1" and text("lab/base") == CARD
        assert ModelCard.load("lab/base").data.base_model is None
        assert "base_model: lab/older" in text("lab/base", revision="refs/pr/1")
        again: Any = metadata_update(
            "lab/base", {"license": "apache-2.0"}, token="hf_bob", create_pr=True, overwrite=True
        )
        assert (again.pr_num, again.pr_url) == (2, f"{hub.url}/lab/base/discussions/2")
        assert "license: apache-2.0" in text("lab/base", revision="refs/pr/2")


class TestDiscussions:
    def test_a_pull_request_from_beginning_to_end(self, hub: MiniHub, base: str) -> None:
        done = propose(commit_description="Found by comparing weights")
        assert (done.pr_num, done.pr_revision, text("lab/base")) == (1, "refs/pr/1", CARD)
        assert text("lab/base", revision="refs/pr/1") == CHILD
        about = HfApi().get_discussion_details("lab/base", 1)
        assert (about.author, about.status, about.title) == ("bob", "open", "Name the base")
        assert (about.target_branch, about.conflicting_files) == ("refs/heads/main", [])
        assert about.diff == (
            "diff --git a/README.md b/README.md\n--- a/README.md\n+++ b/README.md\n@@ -1,4 +1,4 @@\n ---\n"
            "-license: mit\n+base_model: lab/base\n ---\n-# Base\n+# Child\n"
        )
        first, commit = (vars(event) for event in about.events)
        assert first["content"] == "Found by comparing weights"
        assert (commit["summary"], commit["oid"]) == ("Name the base", done.oid)
        comment = ALICE.comment_discussion("lab/base", 1, "Thank you")
        assert (comment.author, comment.content) == ("alice", "Thank you")
        ALICE.merge_pull_request("lab/base", 1, comment="In it goes")
        about = HfApi().get_discussion_details("lab/base", 1)
        assert about.status == "merged" and about.merge_commit_oid == HfApi().model_info("lab/base").sha
        assert text("lab/base") == CHILD and text("lab/base", "config.json") == "{}"
        assert HfApi().list_repo_commits("lab/base")[0].title == "Name the base (#1)"
        assert hub.repos["lab/base"].discussions[1].comments[1:] == ["Thank you", "In it goes"]
        with pytest.raises(BadRequestError, match="merged"):
            ALICE.merge_pull_request("lab/base", 1)
        with pytest.raises(HfHubHTTPError, match=r"403.*is merged"):
            BOB.delete_file("config.json", "lab/base", revision="refs/pr/1")

    def test_more_commits_on_a_pull_request(self, hub: MiniHub, base: str) -> None:
        propose()
        for api, content in ((BOB, b"bob"), (ALICE, b"alice")):
            api.upload_file(path_or_fileobj=content, path_in_repo="a.txt", repo_id="lab/base", revision="refs/pr/1")
        assert text("lab/base", "a.txt", "refs/pr/1") == "alice"
        hub.tokens["hf_carol"] = "carol"
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token="hf_carol").delete_file("a.txt", "lab/base", revision="refs/pr/1")
        events = HfApi().get_discussion_details("lab/base", 1).events
        assert [event.author for event in events if event.type == "commit"] == ["bob", "bob", "alice"]
        assert HfApi().model_info("lab/base").sha == base

    def test_conflicts(self, hub: MiniHub, base: str) -> None:
        propose()
        hub.commit("lab/base", {"config.json": b"other"})
        assert HfApi().get_discussion_details("lab/base", 1).conflicting_files == []
        hub.commit("lab/base", {"README.md": "---\nlicense: mit\n---\n# Better\n"})
        assert HfApi().get_discussion_details("lab/base", 1).conflicting_files == ["README.md"]
        with pytest.raises(HfHubHTTPError, match=r"409.*\s+Merge conflicts: README\.md"):
            ALICE.merge_pull_request("lab/base", 1)
        hub.commit("lab/base", {"README.md": CHILD})  # main says the same by now
        ALICE.merge_pull_request("lab/base", 1)
        assert text("lab/base", "config.json") == "other" and text("lab/base") == CHILD

    def test_a_draft(self, hub: MiniHub, base: str) -> None:
        about = BOB.create_pull_request("lab/base", "A draft", description="To come")
        assert (about.status, about.is_pull_request, about.git_reference, about.diff) == (
            "draft",
            True,
            "refs/pr/1",
            "",
        )
        BOB.delete_file("config.json", "lab/base", revision="refs/pr/1")
        with pytest.raises(BadRequestError, match="this is draft"):
            ALICE.merge_pull_request("lab/base", 1)
        BOB.change_discussion_status("lab/base", 1, "open")
        with pytest.raises(HfHubHTTPError, match=r"403.*rights to merge"):
            BOB.merge_pull_request("lab/base", 1)
        ALICE.merge_pull_request("lab/base", 1)
        assert HfApi().list_repo_files("lab/base") == ["README.md"]

    def test_listing(self, hub: MiniHub, base: str) -> None:
        for number in range(12):
            BOB.create_discussion("lab/base", f"Question {number}")
        propose()
        ALICE.change_discussion_status("lab/base", 3, "closed", comment="Answered")

        def found(**query: Any) -> list[int]:
            return [about.num for about in HfApi().get_repo_discussions("lab/base", **query)]

        assert found() == list(range(13, 0, -1))  # two pages, newest first
        assert found(discussion_type="pull_request") == [13] and len(found(discussion_type="discussion")) == 12
        assert found(discussion_status="closed") == [3] and 3 not in found(discussion_status="open")
        assert found(author="alice") == [] and len(found(author="bob", discussion_status="open")) == 12
        only = next(iter(HfApi().get_repo_discussions("lab/base")))
        assert (only.repo_id, only.repo_type, only.title, only.author) == ("lab/base", "model", "Name the base", "bob")
        assert hub.repos["lab/base"].discussions[3].comments[1:] == ["Answered"]

    def test_comments_and_titles_change(self, hub: MiniHub, base: str) -> None:
        about = BOB.create_discussion("lab/base", "A question", description="Why?")
        assert (about.status, about.is_pull_request, about.events[0].author) == ("open", False, "bob")
        edited = BOB.edit_discussion_comment("lab/base", 1, about.events[0].id, "Why not?")
        assert (edited.content, edited.edited, edited.number_of_edits) == ("Why not?", True, 1)
        with pytest.raises(HfHubHTTPError, match=r"403.*own comments"):
            ALICE.edit_discussion_comment("lab/base", 1, about.events[0].id, "No!")
        with pytest.warns(UserWarning, match="irreversible"):
            assert BOB.hide_discussion_comment("lab/base", 1, about.events[0].id).hidden
        title = ALICE.rename_discussion("lab/base", 1, "An answer")
        assert (title.old_title, title.new_title) == ("A question", "An answer")
        change = ALICE.change_discussion_status("lab/base", 1, "closed")
        assert (change.new_status, change.author) == ("closed", "alice")
        assert HfApi().get_discussion_details("lab/base", 1).title == "An answer"
        with pytest.raises(BadRequestError, match="this is a discussion"):
            ALICE.merge_pull_request("lab/base", 1)

    def test_what_is_refused(self, hub: MiniHub, base: str) -> None:
        with pytest.raises(BadRequestError, match="3 to 200"):
            BOB.create_discussion("lab/base", "no")
        with pytest.raises(BadRequestError, match="3 to 200"):
            propose(title="x" * 201)
        assert hub.repos["lab/base"].discussions == {} and hub.repos["lab/base"].refs == {"main": base}
        with pytest.raises(HfHubHTTPError, match="404"):
            HfApi().get_discussion_details("lab/base", 1)
        ALICE.create_discussion("lab/base", "A question")
        with pytest.raises(HfHubHTTPError, match=r"403.*Only its author"):
            BOB.change_discussion_status("lab/base", 1, "closed")
        with pytest.raises(BadRequestError, match="empty"):
            BOB.comment_discussion("lab/base", 1, " ")

    def test_a_renamed_repo(self, hub: MiniHub, base: str) -> None:
        hub.rename("lab/base", "lab/new")
        assert propose().pr_url == f"{hub.url}/lab/new/discussions/1"
        assert [about.title for about in HfApi().get_repo_discussions("lab/base")] == ["Name the base"]


class TestFaults:
    def test_a_lost_answer(self, hub: MiniHub, base: str) -> None:
        hub.fault("lost", file="lab/base")
        with pytest.raises(httpx.RemoteProtocolError):
            propose()
        pulls = list(HfApi().get_repo_discussions("lab/base", author="bob", discussion_type="pull_request"))
        assert [pull.title for pull in pulls] == ["Name the base"]
        propose()  # who does not look makes it twice
        assert [about.title for about in hub.repos["lab/base"].discussions.values()] == ["Name the base"] * 2

    @pytest.mark.parametrize(("kind", "error"), [(503, HfHubHTTPError), ("drop", httpx.RemoteProtocolError)])
    def test_a_refused_write_has_no_effect(self, hub: MiniHub, base: str, kind: Any, error: type[Exception]) -> None:
        hub.fault(kind, on="write", file="lab/base", after=1)
        ALICE.create_discussion("lab/base", "A question")
        with pytest.raises(error):
            propose()
        assert list(hub.repos["lab/base"].discussions) == [1] and hub.repos["lab/base"].refs == {"main": base}
        assert propose().pr_num == 2

    def test_a_repo_created_unheard(self, hub: MiniHub) -> None:
        hub.fault("lost", file="alice/new")
        assert ALICE.create_repo("alice/other").repo_id == "alice/other"
        with pytest.raises(httpx.RemoteProtocolError):
            ALICE.create_repo("alice/new")
        assert list(hub.repos) == ["alice/other", "alice/new"]

    def test_a_fault_of_the_api_strikes_a_commit(self, hub: MiniHub, base: str) -> None:
        hub.fault(429, on="api", file="lab/*", value=7)
        propose()  # the client asks again how to upload
        assert hub.waits == [8] and [request.status for request in hub.log].count(429) == 1
        hub.fault("lost", on="api", file="lab/base")
        with pytest.raises(httpx.RemoteProtocolError):
            BOB.comment_discussion("lab/base", 1, "Hello")
        assert hub.repos["lab/base"].discussions[1].comments[-1] == "Hello"


class TestCollections:
    def test_get(self, hub: MiniHub, base: str) -> None:
        hub.add("lab/secret", {}, private=True)
        items = ["lab/base", "datasets/lab/data", "lab/secret"]
        hub.add_collection("lab/bases-1", title="Bases", items=items, description="Roots")
        found = HfApi().get_collection("lab/bases-1")
        assert [(item.item_id, item.item_type) for item in found.items] == [
            ("lab/base", "model"),
            ("lab/data", "dataset"),
        ]
        assert (found.title, found.description, found.url) == ("Bases", "Roots", f"{hub.url}/collections/lab/bases-1")
        assert [item.item_id for item in ALICE.get_collection("lab/bases-1").items][2:] == ["lab/secret"]
        with pytest.raises(HfHubHTTPError, match="404"):
            HfApi().get_collection("lab/none")

    def test_list(self, hub: MiniHub) -> None:
        hub.page_size = 2
        for number in range(3):
            hub.add_collection(f"lab/c-{number}", title="C", items=[f"lab/m{at}" for at in range(3 + number)])
        hub.add_collection("bob/d", title="D", items=["lab/m0"])
        found = list(HfApi().list_collections(owner="lab"))
        assert [one.slug for one in found] == [f"lab/c-{number}" for number in range(3)]
        assert [len(one.items) for one in found] == [3, 4, 4]  # a listing shows four
        assert [one.slug for one in HfApi().list_collections(owner=["bob"])] == ["bob/d"]
        with_item = [one.slug for one in HfApi().list_collections(item="models/lab/m4")]
        assert with_item == ["lab/c-2"]


def test_many_writers_at_once(hub: MiniHub, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Repo.tick

    def slowly(repo: Repo) -> str:
        threading.Event().wait(1e-3)  # between choosing a number and taking it: lets other writers in, if any may
        return tick(repo)

    monkeypatch.setattr(Repo, "tick", slowly)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda at: BOB.create_discussion("lab/base", f"Question {at}").num, range(24)))
    assert sorted(numbers) == list(range(1, 25))


def test_the_example_of_the_docstring(hub: MiniHub) -> None:
    example = re.search(r"    def test_pull_request.*?(?=\n\n)", testing.__doc__ or "", re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {"HfApi": HfApi, "CommitOperationAdd": CommitOperationAdd}
    exec(textwrap.dedent(example.group()), names)
    names["test_pull_request"](hub)
    assert text("lab/base", "config.json") == "{} "
