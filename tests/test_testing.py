"""The stand-in of the Hub against the real `huggingface_hub` client."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, http_backoff, http_stream_backoff, httpx
from safetensors.numpy import save

from hf_lineage.testing import MiniHub

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "a.weight": np.arange(600, dtype=np.float32).reshape(20, 30),
    "b": np.zeros(7, np.float16),
}
WEIGHTS = save(TENSORS)
CARD = "---\nbase_model: lab/base\nlibrary_name: timm\npipeline_tag: image-classification\n---\n# Child\n"
CONFIG = json.dumps({"model_type": "vit"}).encode()
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sub/notes.txt": b"notes"}


@pytest.fixture
def base(hub: MiniHub) -> str:
    return hub.add("lab/base", FILES)


def location(name: str = "lab/base", file: str = "model.safetensors") -> str:
    return get_hf_file_metadata(hf_hub_url(name, file), retry_on_errors=True).location


def read(url: str, asked: str | None = None) -> httpx.Response:
    return get_session().get(url, headers={"Range": asked} if asked else {})


class TestMetadata:
    def test_model_info(self, hub: MiniHub, base: str) -> None:
        hub.add("lab/child", {**FILES, "README.md": CARD})
        info = HfApi().model_info("lab/child", expand=["baseModels", "safetensors", "cardData", "tags"])
        bases: Any = info.base_models  # annotated as a list, the Hub sends a dict
        assert (bases["relation"], [model["id"] for model in bases["models"]]) == ("finetune", ["lab/base"])
        assert info.safetensors is not None and info.safetensors.parameters == {"F32": 600, "F16": 7}
        assert {"timm", "vit", "base_model:finetune:lab/base"} <= set(info.tags or ())
        assert info.card_data is not None and info.card_data.base_model == "lab/base"
        assert HfApi().model_info("lab/base", revision=base[:8]).sha == base

    def test_module_level_functions_talk_to_the_stand_in(self, base: str) -> None:
        siblings: Any = huggingface_hub.model_info("lab/base", files_metadata=True).siblings
        assert (siblings[1].lfs.size, siblings[0].size) == (len(WEIGHTS), len(CONFIG))
        assert huggingface_hub.resolve_revision("lab/base").resolved == base
        assert huggingface_hub.list_repo_files("lab/base") == sorted(FILES)

    def test_tree_and_paths_info(self, base: str) -> None:
        api = HfApi()
        top = [entry.path for entry in api.list_repo_tree("lab/base")]
        assert top == ["config.json", "model.safetensors", "sub"]
        assert [entry.path for entry in api.list_repo_tree("lab/base", "sub")] == ["sub/notes.txt"]
        deep = [entry.path for entry in api.list_repo_tree("lab/base", recursive=True)]
        assert deep == ["config.json", "model.safetensors", "sub", "sub/notes.txt"]
        found = api.get_paths_info("lab/base", ["sub", "config.json", "none"])
        assert [entry.path for entry in found] == ["sub", "config.json"]

    def test_safetensors_header(self, base: str) -> None:
        metadata = HfApi().get_safetensors_metadata("lab/base")
        assert metadata.parameter_count == {"F32": 600, "F16": 7}

    def test_listing_is_filtered_and_paged(self, hub: MiniHub, base: str) -> None:
        for number in range(5):
            hub.add(f"lab/child-{number}", {"README.md": CARD}, downloads=number)
        hub.add("lab/hidden", {"README.md": CARD}, private=True)
        hub.page_size = 2
        models = HfApi().list_models(filter="base_model:finetune:lab/base", sort="downloads")
        assert [model.id for model in models] == [f"lab/child-{number}" for number in (4, 3, 2, 1, 0)]
        assert sum(request.path == "/api/models" for request in hub.log) == 3
        assert len(list(HfApi().list_models(author="lab", search="CHILD", limit=3))) == 3
        assert len(list(HfApi(token="hf_bob").list_models())) == 6
        with pytest.raises(HfHubHTTPError, match="baseModels"):
            list(HfApi().list_models(expand=["baseModels"]))
        with pytest.raises(HfHubHTTPError, match="apps"):
            list(HfApi().list_models(apps="vllm"))

    def test_whoami(self, hub: MiniHub) -> None:
        hub.tokens["hf_carol"] = "carol"
        assert HfApi(token="hf_carol").whoami()["name"] == "carol"
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            HfApi(token="hf_wrong").whoami()


class TestFiles:
    def test_metadata_and_download(self, hub: MiniHub, base: str) -> None:
        direct = get_hf_file_metadata(hf_hub_url("lab/base", "config.json"))
        assert (direct.commit_hash, direct.size) == (base, len(CONFIG))
        linked = get_hf_file_metadata(hf_hub_url("lab/base", "model.safetensors"))
        assert (linked.commit_hash, linked.size) == (base, len(WEIGHTS))
        assert linked.location.startswith(hub.cdn_url) and direct.location.startswith(hub.url)
        path = Path(hf_hub_download("lab/base", "model.safetensors"))
        assert path.read_bytes() == WEIGHTS and path.is_relative_to(hub.home)
        assert Path(hf_hub_download("lab/base", "sub/notes.txt")).read_bytes() == b"notes"
        assert hub.bytes_served == {"lab/base/model.safetensors": len(WEIGHTS), "lab/base/sub/notes.txt": 5}

    def test_snapshot(self, hub: MiniHub, base: str, tmp_path: Path) -> None:
        for name, content in FILES.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        hub.add_folder("lab/folder", tmp_path)
        snapshot = Path(huggingface_hub.snapshot_download("lab/folder"))
        assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES

    def test_old_commits_stay_readable(self, hub: MiniHub, base: str) -> None:
        new = hub.commit("lab/base", {"config.json": b"new", "sub/notes.txt": None})
        assert new != base and HfApi().model_info("lab/base").sha == new
        assert Path(hf_hub_download("lab/base", "config.json", revision=base)).read_bytes() == CONFIG
        assert Path(hf_hub_download("lab/base", "config.json")).read_text() == "new"
        with pytest.raises(EntryNotFoundError):
            hf_hub_download("lab/base", "sub/notes.txt")
        draft = hub.commit("lab/base", {"config.json": b"draft"}, ref="refs/pr/1")
        assert HfApi().model_info("lab/base", revision="refs/pr/1").sha == draft
        assert Path(hf_hub_download("lab/base", "config.json", revision="refs/pr/1")).read_text() == "draft"

    @pytest.mark.parametrize("content", [b"old", b"newer"])
    def test_a_file_system_forgets_the_test_before(self, hub: MiniHub, content: bytes) -> None:
        hub.add("lab/base", {"config.json": content, "model.safetensors": content})
        system = huggingface_hub.HfFileSystem()
        assert system.info("lab/base/config.json")["size"] == len(content)
        assert system.cat_file("lab/base/model.safetensors", start=1) == content[1:]

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
    @pytest.mark.parametrize(
        ("asked", "part"),
        [("3-7", slice(3, 8)), ("5-", slice(5, None)), ("-4", slice(-4, None)), ("2-99999", slice(2, None))],
    )
    def test_ranges(self, base: str, file: str, asked: str, part: slice) -> None:
        content = FILES[file]
        response = read(location(file=file), f"bytes={asked}")
        start, stop, _ = part.indices(len(content))
        assert (response.status_code, response.content) == (206, content[part])
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(content)}"

    def test_range_behind_the_end(self, base: str) -> None:
        response = read(location(), "bytes=999999-")
        assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{len(WEIGHTS)}")

    def test_a_sparse_file_is_never_loaded(self, hub: MiniHub, tmp_path: Path) -> None:
        with (tmp_path / "model.safetensors").open("wb") as stream:
            stream.truncate(2 << 30)
            stream.seek(1 << 30)
            stream.write(b"middle")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        hub.add("lab/big", {"model.safetensors": tmp_path / "model.safetensors"})
        url = location("lab/big")
        assert read(url, f"bytes={1 << 30}-{(1 << 30) + 5}").content == b"middle"
        assert read(url, "bytes=-3").content == bytes(3)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
        assert hub.bytes_served["lab/big/model.safetensors"] == 9


class TestAccess:
    def test_private(self, hub: MiniHub) -> None:
        hub.add("alice/secret", FILES, private=True)
        for token in (False, "hf_bob"):
            with pytest.raises(RepositoryNotFoundError):
                HfApi().model_info("alice/secret", token=token)
        assert HfApi().model_info("alice/secret", token="hf_alice").private
        assert hf_hub_download("alice/secret", "model.safetensors", token="hf_alice")

    def test_gated(self, hub: MiniHub) -> None:
        hub.add("lab/gated", FILES, gated="manual", readers=frozenset({"bob"}))
        assert HfApi().model_info("lab/gated").gated == "manual"
        for token in (False, "hf_alice"):
            with pytest.raises(GatedRepoError):
                hf_hub_download("lab/gated", "config.json", token=token)
        assert hf_hub_download("lab/gated", "config.json", token="hf_bob")

    def test_missing(self, base: str) -> None:
        for token in (False, "hf_alice"):
            with pytest.raises(RepositoryNotFoundError):
                HfApi().model_info("lab/none", token=token)
        with pytest.raises(RevisionNotFoundError):
            HfApi().model_info("lab/base", revision="none")
        with pytest.raises(EntryNotFoundError):
            hf_hub_download("lab/base", "none.json")

    def test_renamed(self, hub: MiniHub) -> None:
        sha = hub.add("openai-community/gpt2", FILES)
        hub.rename("gpt2", "openai-community/gpt2")
        assert HfApi().model_info("gpt2").id == "openai-community/gpt2"
        assert HfApi().model_info("gpt2", revision="main").sha == sha
        assert HfApi().get_paths_info("gpt2", ["config.json"])[0].path == "config.json"
        assert hf_hub_download("gpt2", "config.json") and hf_hub_download("gpt2", "model.safetensors")
        hub.rename("openai-community/gpt2", "lab/gpt")
        assert HfApi().model_info("gpt2").id == "lab/gpt"
        assert {request.status for request in hub.log if request.path.startswith("/api/models/gpt2")} == {307}

    def test_single_segment_repo(self, hub: MiniHub) -> None:
        hub.add("gpt2", FILES)
        assert HfApi().model_info("gpt2", revision="main").id == "gpt2"
        assert len(list(HfApi().list_repo_tree("gpt2"))) == 3

    def test_the_token_stays_away_from_the_cdn(self, hub: MiniHub, base: str) -> None:
        hf_hub_download("lab/base", "model.safetensors", token="hf_alice")
        url = hf_hub_url("lab/base", "model.safetensors")
        assert get_session().get(url, headers={"Authorization": "Bearer hf_alice"}).content == WEIGHTS
        assert hub.leaks == [] and any(request.authorised for request in hub.log)
        leaked = get_session().get(location(), headers={"Authorization": "Bearer hf_alice"})
        assert leaked.status_code == 400 and len(hub.leaks) == 1


class TestFaults:
    def test_busy(self, hub: MiniHub, base: str) -> None:
        hub.fault(429, value=2)
        hub.fault(503, times=2)
        assert location().startswith(hub.cdn_url)
        assert [request.status for request in hub.log] == [429, 503, 503, 302]
        assert hub.waits == [3, 1, 1]  # the client adds a second to what it is told

    def test_busy_cdn(self, hub: MiniHub, base: str) -> None:
        url = location()
        hub.fault(503, on="cdn", file="lab/base/*.safetensors", after=1)
        assert [read(url).status_code for _ in range(3)] == [200, 503, 200]
        hub.fault(503, on="cdn", times=None)
        assert {read(url).status_code for _ in range(5)} == {503}
        hub.faults.clear()
        assert http_backoff("GET", url).content == WEIGHTS

    def test_busy_api(self, hub: MiniHub, base: str) -> None:
        hub.fault(500, on="api", file="lab/base")
        with pytest.raises(HfHubHTTPError, match="500"):
            HfApi().model_info("lab/base")
        assert HfApi().model_info("lab/base").sha == base

    def test_expired(self, hub: MiniHub, base: str) -> None:
        url = location()
        hub.fault("expired")
        assert [read(url).status_code for _ in range(2)] == [403, 403]
        assert read(location()).status_code == 200
        assert read(url).status_code == 403
        hub.url_lifetime = 0
        assert read(location()).status_code == 403

    def test_wrong_answers(self, hub: MiniHub, base: str) -> None:
        url = location()
        hub.fault("ignore_range")
        assert (read(url, "bytes=0-3").status_code, hub.log[-1].bytes_sent) == (200, len(WEIGHTS))
        hub.fault("wrong_range")
        assert read(url, "bytes=0-3").headers["Content-Range"] == f"bytes 1-4/{len(WEIGHTS)}"
        hub.fault("resize", value=8, after=1)
        sizes = [read(url, "bytes=0-3").headers["Content-Range"].split("/")[1] for _ in range(3)]
        assert sizes == [str(len(WEIGHTS) + grown) for grown in (0, 8, 0)]
        hub.fault("resize", value=-100)
        assert len(read(url).content) == len(WEIGHTS) - 100

    def test_broken_connections(self, hub: MiniHub, base: str) -> None:
        url = location()
        hub.fault("truncate", value=100)
        with pytest.raises(httpx.RemoteProtocolError):
            read(url)
        assert hub.log[-1].bytes_sent == 100
        hub.fault("drop")
        with pytest.raises(httpx.RemoteProtocolError):
            read(url)
        assert hub.log[-1].status == 0
        hub.fault("drop")
        with http_stream_backoff("GET", url) as response:
            assert response.read() == WEIGHTS
        hub.fault("truncate")
        assert Path(hf_hub_download("lab/base", "model.safetensors")).read_bytes() == WEIGHTS
        assert [request.bytes_sent for request in hub.log[-2:]] == [len(WEIGHTS) // 2, len(WEIGHTS)]

    def test_delay(self, hub: MiniHub, base: str) -> None:
        hub.fault("delay", on="cdn", value=0.3)
        with pytest.raises(httpx.ReadTimeout):
            get_session().get(location(), timeout=0.1)


class TestPatching:
    def test_everything_points_here(self, hub: MiniHub) -> None:
        assert hub.url == constants.ENDPOINT
        assert constants.HF_HUB_DISABLE_XET and not constants.HF_HUB_OFFLINE
        assert all(hf_hub_url(*name).startswith(hub.url) for name in [("a/b", "c"), ("gpt2", "c")])
        assert huggingface_hub.get_token() is None
        assert Path(constants.HF_TOKEN_PATH).is_relative_to(hub.home)
        assert list(hub.repos) == [] and hub.log == []

    def test_everything_is_restored(self, hub_server: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from hf_lineage.testing import connect

        def state() -> dict[str, object]:
            loaded = [module for name, module in sys.modules.items() if name.startswith("huggingface_hub")]
            return {f"{m.__name__}.{k}": v for m in loaded for k, v in vars(m).items() if k.isupper()}

        with monkeypatch.context() as patch:  # imports what is imported lazily
            connect(hub_server, patch)
        before, environment = state(), dict(os.environ)
        with monkeypatch.context() as patch:
            connect(hub_server, patch)
            assert state() != before
        assert state() == before and dict(os.environ) == environment
        assert not any(hub_server.url in str(value) for value in state().values())

    @pytest.mark.parametrize("token", [None, "hf_alice"])
    def test_a_child_process(self, hub: MiniHub, token: str | None) -> None:
        hub.add("alice/secret", FILES, private=True)
        script = (
            "import huggingface_hub as h\n"
            "try: print(open(h.hf_hub_download('alice/secret', 'sub/notes.txt')).read())\n"
            "except h.errors.RepositoryNotFoundError: print('hidden')"
        )
        environment = {**os.environ, **hub.environment(token)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == ("notes" if token else "hidden"), done.stderr


@pytest.mark.integration
def test_context_manager_stops_the_servers() -> None:
    with MiniHub() as hub:
        hub.add("lab/base", FILES)
        client = httpx.Client()
        assert client.get(f"{hub.url}/api/models/lab/base").json()["id"] == "lab/base"
        home = hub.home
    with pytest.raises(httpx.TransportError):
        client.get(f"{hub.url}/api/models/lab/base")
    assert not home.exists()


def test_many_readers_at_once(hub: MiniHub, base: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url = location()
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda at: read(url, f"bytes={at}-{at + 9}").content, range(0, 2000, 10))
        assert b"".join(parts) == WEIGHTS[:2000]
    assert hub.bytes_served["lab/base/model.safetensors"] == 2000


class TestWhatIsThrownAtIt:
    """It answers; it closed the connection, and whoever waited for an answer tried again five times."""

    CARDS = (
        "2024-01-01: x",
        "tags: 5",
        "base_model: 2024-01-01",
        "a: &a [*a]",
        "a: !!bool x",
        "? [a, b]\n: c",
        "x: .nan",
    )

    def test_cards_and_configs(self, hub: MiniHub) -> None:
        for number, card in enumerate(self.CARDS):
            hub.add(f"lab/card{number}", {"README.md": f"---\n{card}\n---\n"})
        hub.add("lab/config", {"config.json": b"[" * 50_000, "model.safetensors": b"\xff" * 99})
        names = [item["id"] for item in httpx.get(f"{hub.url}/api/models").json()]
        assert len(names) == len(self.CARDS) + 1
        for name in names:
            assert httpx.get(f"{hub.url}/api/models/{name}").json()["id"] == name

    @pytest.mark.parametrize(
        "path", ["models?limit=x", "models?cursor=x", "models?num_parameters=min:²K", "models/lab/a/commits/main?cursor=x",
                 "models/lab/a/safetensors-metadata/x.json", "models/lab/a/discussions?p=x"],
    )  # fmt: skip
    def test_questions(self, hub: MiniHub, path: str, capsys) -> None:
        hub.add("lab/a", {"x.json": b"no JSON"})
        assert httpx.get(f"{hub.url}/api/{path}").status_code == 400
