"""`MiniHub`: two servers on loopback, with faults, tokens, signed urls and a log of every request."""

from __future__ import annotations

import math
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from . import discussions, routes, writes
from .answers import Answer, Refused, Route, writer
from .repos import Fault, File, Kind, Place, Repo, Request, Source, digest, moment

ROUTES = (*writes.ROUTES, *discussions.ROUTES, *routes.ROUTES)  # in this order: `_model` comes last


class MiniHub:
    """The stand-in: two servers in threads, and everything they know. See the module for an example."""

    def __init__(self) -> None:
        self.url = self.cdn_url = ""
        self.home = Path()
        self._servers: list[_Server] = []
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget repos, tokens, faults and everything recorded; the servers go on."""
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"}
        self.roles: dict[str, Literal["read", "write"]] = {}  # of tokens; "write" unless given
        self.orgs: dict[str, set[str]] = {}  # organisations of each user
        self.collections: dict[str, dict[str, Any]] = {}  # by slug, as the API shows them
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.bytes_served: Counter[str] = Counter()  # by `org/name/path`
        self.waits: list[float] = []  # seconds that this process' client wanted to wait before retries
        self.page_size = 1000  # of a listing
        self.limits: dict[str, int] = {}  # requests without a token in one window, by "api", "resolve", "cdn"
        self.window = 300.0  # seconds, counting those that the client wanted to wait
        self.counts: Counter[str] = Counter()  # all requests, by the same names
        self.url_lifetime = 3600.0  # seconds a signed url is good for
        self._signed: dict[str, tuple[File | None, str, float]] = {}  # content, key and end of a url
        self._uploads: dict[str, tuple[int, str, float]] = {}  # size, key and end
        self._blobs: dict[str, File] = {}  # uploaded, by sha256
        self._spent: dict[str, tuple[float, int]] = {}  # start of the window, and requests in it

    @property
    def leaks(self) -> list[Request]:
        """Requests that carried a token to the CDN: there must be none."""
        return [request for request in self.log if request.app == "cdn" and request.authorised]

    def add(self, name: str, files: Mapping[str, Source], **about: Any) -> str:
        """A new repo; `about` are fields of `Repo`: private, gated, readers, ... Returns the sha."""
        self.repos[name] = Repo(name, **about)
        return self.commit(name, files)

    def add_folder(self, name: str, folder: Path, **about: Any) -> str:
        """A new repo with the files of a folder, served from disk."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.add(name, {path.relative_to(folder).as_posix(): path for path in paths}, **about)

    def commit(self, name: str, files: Mapping[str, Source | None], ref: str = "main", **about: str) -> str:
        """Change files (None: delete) of a branch and return the new sha; old shas stay readable.

        `about` may be title, message, author and modified, the date.
        """
        with self._lock:
            repo = self.repos[name]
            content = dict(repo.commits.get(repo.refs.get(ref, repo.refs.get("main", "")), {}))
            for path, source in files.items():
                content.pop(path, None)
                if source is not None:
                    content[path] = File(path, source.encode() if isinstance(source, str) else source)
            return repo.commit(content, ref, **about)

    def add_collection(self, slug: str, *, title: str, items: Sequence[str], **about: Any) -> None:
        """A collection of models, and of data sets where an item starts with `datasets/`; `about`: description, ..."""
        shown = []
        for position, item in enumerate(items):
            kind = "dataset" if item.startswith("datasets/") else "model"
            name = item.removeprefix("datasets/")
            shown.append({"_id": digest(f"{slug} {item}"), "id": name, "type": kind, "position": position})
        owner = slug.split("/")[0]
        usual = {"private": False, "theme": "green", "upvotes": 0, "description": ""}
        usual["lastUpdated"] = moment("2024-01-01")
        owned = {"slug": slug, "title": title, "owner": {"name": owner, "type": "user"}}
        self.collections[slug] = {**usual, **owned, "items": shown, **about}

    def rename(self, old: str, new: str) -> None:
        """Redirect `old` to `new` (307), and move the repo there if there is one."""
        if old in self.repos:
            self.repos[new] = self.repos.pop(old)
            self.repos[new].id = new
        self.renamed[old] = new

    def fault(
        self,
        kind: Kind,
        *,
        on: Place | None = None,
        file: str = "*",
        times: int | None = 1,
        after: int = 0,
        value: float = 0,
    ) -> Fault:
        """Let something go wrong; the table is in the module's docstring."""
        usual: dict[Kind, Place] = {"expired": "cdn", "delay": "any", "lost": "write", "moved": "endpoint"}
        usual |= {"no_length": "head", "zero_length": "head", "no_etag": "head"}
        place = on or ("resolve" if isinstance(kind, int) else usual.get(kind, "file"))
        fault = Fault(kind, place, file, math.inf if times is None else times, after, value)
        self.faults.append(fault)
        return fault

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables that point a child process at this hub: `env={**os.environ, **hub.environment()}`."""
        switches = ["DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_UPDATE_CHECK", "DISABLE_PROGRESS_BARS"]
        folders = {"HF_HUB_CACHE": "hub", "HUGGINGFACE_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets"}
        folders |= {"HUGGINGFACE_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet", "HF_TOKEN_PATH": "token"}
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_TOKEN": token or "",
            **{name: str(self.home / folder) for name, folder in folders.items()},
            **{f"HF_HUB_{name}": "1" for name in switches},
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1",  # a token in the environment is implicit
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_OIDC_RESOURCE": "",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def start(self) -> MiniHub:
        """Start the servers."""
        self._servers = [_Server(self, "hub"), _Server(self, "cdn")]
        self.url = f"http://127.0.0.1:{self._servers[0].port}"
        # another host name as well as another port: hub 1.x compared host names only
        self.cdn_url = f"http://localhost:{self._servers[1].port}"
        self._folder = tempfile.TemporaryDirectory(prefix="minihub-", ignore_cleanup_errors=True)
        self.home = Path(self._folder.name)
        return self

    def stop(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            server.stop()
        self._servers = []
        self._folder.cleanup()

    def __enter__(self) -> MiniHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open(self, name: str, revision: str, user: str | None) -> tuple[Repo, str]:
        """The repo and the commit. Like the Hub, it does not tell a hidden repo from a missing one."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not self._admits(repo, user)):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        sha = repo.find(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def _sign(self, file: File, key: str) -> str:
        with self._lock:
            signature, expires = f"s{len(self._signed)}", time.time() + self.url_lifetime
            self._signed[signature] = (file, key, expires)
        return f"{self.cdn_url}/repos/{file.sha256}?Expires={int(expires)}&Signature={signature}"

    def _sign_upload(self, sha256: str, size: int, key: str) -> str:
        with self._lock:
            signature, expires = f"u{len(self._uploads)}", time.time() + self.url_lifetime
            self._uploads[signature] = (size, key, expires)
        return f"{self.cdn_url}/uploads/{sha256}?Signature={signature}"

    def _admits(self, repo: Repo, user: str | None) -> bool:
        """Whether a user sees a private repo, and the files of a gated one."""
        return repo.admits(user) or self.may_push(repo.id, user)

    def may_push(self, name: str, user: str | None) -> bool:
        """Whether a user may push to a repo."""
        return user is not None and name.split("/")[0] in {user, *self.orgs.get(user, ())}

    def _spend(self, place: str, call: Request) -> Answer | None:
        """Count a request; a refusal if it is one too many without a token."""
        with self._lock:
            self.counts[place] += 1
            if place not in self.limits or call.user is not None:
                return None
            now = time.monotonic() + sum(self.waits)
            start, used = self._spent.get(place, (now, 0))
            if now - start >= self.window:
                start, used = now, 0
            self._spent[place] = (start, used + 1)
        if used < self.limits[place]:
            return None
        return _too_many(place, math.ceil(start + self.window - now))

    def _answer(self, call: Request) -> Answer:
        """The answer with the faults that strike it."""
        where = "cdn" if call.app == "cdn" else "resolve" if "/resolve/" in call.path else "api"
        if refusal := self._spend(where, call):
            return refusal
        found, parts = _match(call)
        key = self._key(call, parts)
        # what changes something must not take effect if a fault is to prevent it; a reading's fault needs the answer
        reading = call.method in ("GET", "HEAD")
        answer = self._route(found, parts, key, call) if reading else None
        file = answer.body if answer and call.method == "GET" and isinstance(answer.body, File) else None
        places = {"any", where} | ({"file"} if file else set()) | ({"write"} if found and found.changes else set())
        places |= {"head"} if call.method == "HEAD" else set()
        places |= {"expand"} if call.values("expand") else set()
        places |= {"endpoint"} if call.app == "hub" and not call.host.startswith("localhost") else set()
        fault = self._strike(places, key)
        if fault and (fault.kind == "expired" or isinstance(fault.kind, int)):
            return self._failure(fault, call, where)
        if fault and fault.kind == "drop":
            return Answer(0)
        answer = answer or self._route(found, parts, key, call)
        if fault and fault.kind == "lost":
            return Answer(0)
        if fault and fault.kind == "moved":
            query = f"?{call.query}" if call.query else ""
            return Answer(308, headers={"Location": self.url.replace("127.0.0.1", "localhost") + call.path + query})
        if fault and fault.kind == "no_etag":
            answer.headers = {name: answer.headers[name] for name in answer.headers if "etag" not in name.lower()}
        if fault and fault.kind in ("no_length", "zero_length"):
            answer.length = 0 if fault.kind == "zero_length" else None
            answer.headers.pop("X-Linked-Size", None)
        if fault and fault.kind == "hollow":
            return Answer(200, headers=answer.headers)
        if file:
            _cut_out(answer, file, call.range, fault)
        return answer

    def _strike(self, places: set[str], key: str) -> Fault | None:
        """The fault that hits a request, after its delays."""
        with self._lock:
            delays = [f.value for f in self.faults if f.kind == "delay" and f.strikes(places, key)]
            others = (f for f in self.faults if f.kind != "delay" and f.strikes(places, key))
            fault = next(others, None)
        time.sleep(sum(delays))
        return fault

    def _key(self, call: Request, parts: dict[str, str]) -> str:
        """What a fault's pattern is held against: `org/name/path` of a file, `org/name` of an API call."""
        signature = call.value("Signature") if call.app == "cdn" else ""
        if signature in self._uploads:
            return self._uploads[signature][1]
        if signature in self._signed:
            return self._signed[signature][1]
        if call.path.startswith("/api/repos/"):  # only the body names the repo
            asked = call.json()
            return f"{asked.get('organization') or call.user}/{asked.get('name')}"
        return "/".join(parts[name] for name in ("repo", "path") if name in parts)

    def _route(self, found: Route | None, parts: dict[str, str], key: str, call: Request) -> Answer:
        if call.app == "hub" and call.authorised and call.user is None:
            return Refused(401, message="Invalid credentials in Authorization header").answer
        if found is None:
            return Refused(404, message=f"The stand-in has no {call.method} {call.path}").answer
        if new := self.renamed.get(parts.get("repo", "")):
            match = found.pattern.fullmatch(call.path)
            start, stop = match.span("repo") if match else (0, 0)
            target = call.path[:start] + new + call.path[stop:] + (f"?{call.query}" if call.query else "")
            return Answer(307, headers={"Location": target}, key=key)
        try:
            with self._lock if found.changes else nullcontext():
                if found.changes:
                    writer(call)  # refused before anything is looked up
                answer = found.answer(self, call, **parts)
        except Refused as refused:
            answer = refused.answer
        answer.key = answer.key or key
        return answer

    def _failure(self, fault: Fault, call: Request, place: str) -> Answer:
        if fault.kind == "expired":
            signature = call.value("Signature")
            if signature in self._uploads:
                self._uploads[signature] = (-1, "", 0.0)
            else:
                self._signed[signature] = (None, "", 0.0)
            return Refused(403, message="Request has expired").answer
        if fault.kind == 429:
            return _too_many(place, int(fault.value))
        return Refused(int(fault.kind), message="a fault", Retry_After=str(int(fault.value))).answer


def _match(call: Request) -> tuple[Route | None, dict[str, str]]:
    """The route of a call, and the parts of its url."""
    for found in ROUTES:
        match = found.pattern.fullmatch(call.path)
        if found.app == call.app and call.method in found.methods.split() and match:
            return found, {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
    return None, {}


def _too_many(place: str, seconds: int) -> Answer:
    name = "resolvers" if place == "resolve" else place
    message = f"We had to rate limit you: too many requests to {name}."
    return Refused(429, message=message, Retry_After=str(seconds), RateLimit=f'"{name}";r=0;t={seconds}').answer


def _cut_out(answer: Answer, file: File, asked: str | None, fault: Fault | None) -> None:
    """Give the answer the bytes the Range header asks for (RFC 9110: one that makes no sense is ignored)."""
    kind, value = (fault.kind, int(fault.value)) if fault else ("", 0)
    size = answer.stop = file.size + (value if kind == "resize" else 0)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if kind == "chunked":
        answer.length = None
    elif match and any(match.groups()) and kind != "ignore_range":
        first, last = match.groups()
        answer.start = int(first) if first else max(0, size - int(last))
        answer.stop = min(int(last) + 1, size) if first and last else size
        if answer.start >= answer.stop:
            answer.status, answer.body, answer.start, answer.stop = 416, b"", 0, -1
            answer.headers["Content-Range"] = f"bytes */{size}"
            return
        shift = 1 if kind == "wrong_range" else 0
        answer.status = 206
        if kind != "no_content_range":
            answer.headers["Content-Range"] = f"bytes {answer.start + shift}-{answer.stop - 1 + shift}/{size}"
    if kind == "truncate":
        answer.cut = value or (answer.stop - answer.start) // 2


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Nagle's algorithm costs 40 ms an answer
    wbufsize = 1 << 16
    server: _Server

    def _serve(self) -> None:
        hub, authorization = self.server.hub, self.headers.get("Authorization", "")
        url, token = urlsplit(self.path), authorization.removeprefix("Bearer ")
        about = (self.headers.get("Range"), bool(authorization), hub.tokens.get(token), self._body())
        role, host = hub.roles.get(token, "write"), self.headers.get("Host", "")
        call = Request(self.server.app, self.command, url.path, url.query, *about, role, host)
        try:
            answer = hub._answer(call)
        except Exception as error:  # of what no client sends, or a bug: an answer tells more than a closed connection
            traceback.print_exc()
            answer = Refused(400, message=f"The stand-in could not answer: {type(error).__name__}: {error}").answer
        call.status = answer.status
        with hub._lock:
            hub.log.append(call)
        if answer.status:
            self._send(answer, call)
        else:
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, answer: Answer, call: Request) -> None:
        file = answer.body if isinstance(answer.body, File) else File("", answer.body)
        stop = file.size if answer.stop < 0 else answer.stop
        self.send_response(answer.status)
        chunked = answer.length is None and call.method != "HEAD"
        length = {"Transfer-Encoding": "chunked"} if chunked else {}
        if answer.length is not None:
            length = {"Content-Length": str(stop - answer.start if answer.length < 0 else answer.length)}
        for name, value in {**answer.headers, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        if call.method == "HEAD":
            return
        if answer.cut is not None:
            stop, self.close_connection = min(stop, answer.start + answer.cut), True
        hub = self.server.hub
        for chunk in file.chunks(answer.start, stop):
            with hub._lock:  # counted first: a client that has read everything finds it counted
                call.bytes_sent += len(chunk)
                if file is answer.body:
                    hub.bytes_served[answer.key] += len(chunk)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """`MiniHub.log` has it."""


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: MiniHub, app: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.app, self.port = hub, app, self.server_address[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, args=(0.05,), name=f"minihub-{app}", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up when it likes
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):  # kept alive: their threads would go on answering
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
