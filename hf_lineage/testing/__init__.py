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

Access: `hub.tokens` maps token to user. A private repo is hidden, and the files of a gated one are refused,
unless the user is its namespace or one of its `readers`.

Faults, `hub.fault(kind, on=..., file=..., times=1, after=0, value=...)`; `hub.faults.clear()` ends them:

    429, 503, ...    that status; `value` is the Retry-After in whole seconds         default on="resolve"
    "expired"        403, also later for the same signed url; a new /resolve helps    default on="cdn"
    "ignore_range"   200 and the whole file                                           default on="file"
    "wrong_range"    a Content-Range one byte off                                     default on="file"
    "truncate"       the connection closes after `value` bytes of the body (0: half)  default on="file"
    "resize"         the file is `value` bytes longer (negative: shorter)             default on="file"
    "drop"           the connection closes without an answer                          default on="file"
    "delay"          the answer comes `value` seconds late                            default on="any"

`on` is "api", "resolve", "cdn", "any", or "file": a GET that is answered with a file's bytes, wherever from.
`file` is a pattern for `org/name/path` (of an API call: `org/name`). The first `after` matching requests
pass, the next `times` fail (None: all). Of several matching faults the oldest acts, besides any delays.
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
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", clock)
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
