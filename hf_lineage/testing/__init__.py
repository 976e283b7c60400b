"""A loopback stand-in of the Hugging Face Hub that the real `huggingface_hub` client accepts, for tests.

    # conftest.py
    pytest_plugins = ["hf_lineage.testing"]

    # test_mine.py
    def test_download(hub):
        hub.add("lab/base", files={"config.json": b"{}", "model.safetensors": Path("model.safetensors")})
        hub.fault(503, file="*/config.json")
        path = huggingface_hub.hf_hub_download("lab/base", "config.json")
        assert hub.bytes_served["lab/base/config.json"] == 2

While a test holds the `hub` fixture the client of this process, and children that inherit its environment,
talk to two servers on 127.0.0.1: `hub` (the API and `/resolve`) and `cdn` (large files, by signed url, on
another origin). The cache is an empty folder, no token is sent unless passed, and waits between retries are
noted in `hub.waits` instead of slept. Outside pytest: `with MiniHub() as hub: ...`, then `hub.environment()`
for a child process, or `endpoint=hub.url`.

What the client may do, besides reading files, trees, commits, refs and metadata:

    list      models by filter, author, search, pipeline_tag, num_parameters, gated; sorted; in pages of
              `hub.page_size`. What the stand-in does not know it refuses, as the Hub does what is no property of
              a listing (baseModels, childrenModelCount, usedStorage)
    write     `create_commit`, `upload_file`, `metadata_update`, `ModelCard.push_to_hub`, ..., to a branch or as a
              pull request; a stale parent commit is refused, and so is a card that is not valid; large files go
              to the CDN (without xet). `create_repo`, `delete_repo`
    discuss   open, comment, edit, rename, close, reopen; pull requests with diff and conflicts, which merge
    collect   `get_collection`, `list_collections` of what `hub.add_collection(slug, title=..., items=[...])` made

    def test_pull_request(hub):
        hub.add("lab/base", files={"config.json": b"{}"})
        change = CommitOperationAdd("config.json", b"{} ")
        HfApi(token="hf_bob").create_commit("lab/base", [change], commit_message="More space", create_pr=True)
        pull = hub.repos["lab/base"].discussions[1]
        assert (pull.title, pull.author, pull.status) == ("More space", "bob", "open")
        hub.orgs["alice"] = {"lab"}
        HfApi(token="hf_alice").merge_pull_request("lab/base", 1)
        assert pull.merged == hub.repos["lab/base"].refs["main"]

Dates come from a clock of each repo: `created` or `modified`, given to `hub.add`, and a second later with every
commit or comment, unless `hub.commit(..., modified=...)` says when.

Access: `hub.tokens` maps token to user, `hub.orgs` user to organisations. A private repo is hidden, and the files
of a gated one are refused, unless its namespace is the user or one of these, or the user is one of its `readers`.
Who reads a repo may discuss it and open pull requests, only its namespace pushes and merges. A token whose
`hub.roles` entry is "read" writes nothing, no pull request either (which is stricter than the Hub).

Limits: `hub.counts` counts requests to "api", "resolve" and "cdn". Those without a token that exceed, say,
`hub.limits["api"] = 500` in a window of `hub.window` seconds are answered 429; what `hub.waits` notes counts as
waited.

Faults, `hub.fault(kind, on=..., file=..., times=1, after=0, value=...)`; `hub.faults.clear()` ends them:

    429, 503, ...    that status; `value` is the Retry-After in whole seconds         default on="resolve"
    "expired"        403, also later for the same signed url; a new /resolve helps    default on="cdn"
    "ignore_range"   200 and the whole file                                           default on="file"
    "wrong_range"    a Content-Range one byte off                                     default on="file"
    "no_content_range"  206 without Content-Range                                     default on="file"
    "chunked"        200 and the whole file, in chunks, without its length            default on="file"
    "hollow"         200 and nothing of the file                                      default on="file"
    "no_length"      HEAD without Content-Length or X-Linked-Size                     default on="head"
    "zero_length"    HEAD with a Content-Length of 0                                  default on="head"
    "no_etag"        HEAD without a hash of the file                                   default on="head"
    "moved"          308 to the same server by another name                           default on="endpoint"
    "truncate"       the connection closes after `value` bytes of the body (0: half)  default on="file"
    "resize"         the file is `value` bytes longer (negative: shorter)             default on="file"
    "drop"           the connection closes without an answer, and nothing was done    default on="file"
    "lost"           it was done, then the connection closes without an answer        default on="write"
    "delay"          it begins, or is answered, `value` seconds late                  default on="any"

`on` is "api", "resolve", "cdn", "any", "file": a GET that is answered with a file's bytes, wherever from, "head": a
HEAD, "expand": an API call with `?expand=`, "endpoint": a request by the name of `hub.url`, or "write": an API call
that changes a repo or a discussion. `file` is a pattern for `org/name/path` (of an API call
or an upload: `org/name`). The first `after` matching requests pass, the next `times` fail (None: all). Of several
matching faults the oldest acts, besides any delays.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from .repos import Fault as Fault
from .repos import Request as Request
from .server import MiniHub as MiniHub

try:
    import pytest
except ImportError as error:
    raise ImportError("hf_lineage.testing needs pytest: pip install 'hf-lineage[test]'") from error

HOME_FILES = {"HF_STORED_TOKENS_PATH", "CHECK_FOR_UPDATE_DONE_PATH"}
HOME_FILES |= {"CHECK_FOR_SKILL_UPDATE_DONE_PATH", "AGENT_HARNESSES_PATH"}


def connect(hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process' `huggingface_hub`, imported already or not, at the hub until `monkeypatch.undo`."""
    from huggingface_hub import HfFileSystem, close_session, constants, hf_api
    from huggingface_hub.utils import _http

    # these copy constants by value; imported later, they would keep the patched values for good
    for module in ("utils._cache_manager", "utils._cache_assets", "utils._git_credential", "utils.tqdm"):
        importlib.import_module(f"huggingface_hub.{module}")
    environment = hub.environment()
    patched: dict[str, Any] = {name: environment[name] for name in environment if hasattr(constants, name)}
    patched = {name: value == "1" if value in ("0", "1") else value for name, value in patched.items()}
    patched |= {name: str(hub.home / getattr(constants, name).rsplit("/", 1)[-1]) for name in HOME_FILES}
    patched["ENDPOINT"] = hub.url
    patched["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patched["HF_URL_HOSTS"] = constants.HF_URL_HOSTS | {"127.0.0.1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for path, loaded in list(sys.modules.items()):
        if path.split(".")[0] == "huggingface_hub":
            for name in patched.keys() & vars(loaded).keys():
                monkeypatch.setattr(loaded, name, patched[name])
    monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset([_http._url_origin(hub.url)]))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # of the module's functions: bound at import
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: hub.waits.append(seconds)})
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download", "hf_lineage.hub.client"):
        monkeypatch.setattr(f"{module}.time", clock)
    HfFileSystem.clear_instance_cache()  # its listings are kept by endpoint, and that stays for the session
    close_session()


@pytest.fixture(scope="session")
def hub_server() -> Iterator[MiniHub]:
    """The two servers, once per test session."""
    with MiniHub() as hub:
        yield hub


@pytest.fixture
def hub(
    hub_server: MiniHub, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MiniHub]:
    """An empty hub that this process' client talks to, with an empty cache, for one test."""
    hub_server.reset()
    hub_server.home = tmp_path_factory.mktemp("hf_home")
    connect(hub_server, monkeypatch)
    yield hub_server
    from huggingface_hub import close_session

    close_session()
