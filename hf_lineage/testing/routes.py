"""The routes of the stand-in: each takes the hub, the call and the parts of the url, and answers or refuses."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from .repos import File, Request, digest, model_data

if TYPE_CHECKING:
    from .server import MiniHub

LISTED = {"_id", "id", "modelId", "likes", "private", "downloads"}
LISTED |= {"tags", "pipeline_tag", "library_name", "createdAt"}
FULL = {"sha", "lastModified", "siblings", "author", "gated", "disabled"}
NOT_IN_LISTING = {"baseModels", "childrenModelCount", "usedStorage"}
LIST_QUERY = {"filter", "author", "search", "pipeline_tag", "sort", "limit", "cursor"}
LIST_QUERY |= {"expand", "full", "config", "cardData"}

# The routes. Each takes the hub, the call and the parts of the url, and gives an answer or raises `Refused`.


@dataclass(slots=True)
class Answer:
    status: int = 200
    body: bytes | File = b""
    headers: dict[str, str] = field(default_factory=dict)
    key: str = ""  # `org/name/path` of the file asked for
    start: int = 0
    stop: int = -1  # -1: the whole body
    cut: int | None = None  # close the connection after so many bytes of the body


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        headers = {key.replace("_", "-"): value for key, value in headers.items() if value}
        if code:
            headers["X-Error-Code"] = code
        self.answer = _json({"error": message}, status, {"X-Error-Message": message, **headers})


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})


def _entry(path: str, file: File | None) -> dict[str, Any]:
    if file is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)} if file.lfs else None
    return {"type": "file", "oid": file.oid, "size": file.size, "path": path} | ({"lfs": lfs} if lfs else {})


def _whoami(hub: MiniHub, call: Request) -> Answer:
    if call.user is None:
        raise Refused(401, message="Invalid username or password.")
    who = {"type": "user", "id": digest(call.user), "name": call.user, "fullname": call.user, "isPro": False}
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return _json({**who, "email": None, "orgs": [], "avatarUrl": "/avatars/test.svg", "auth": token})


def _harnesses(hub: MiniHub, call: Request) -> Answer:
    return _json({"standardEnvVars": [], "harnesses": {}})


def _models(hub: MiniHub, call: Request) -> Answer:
    names, expand = set(parse_qs(call.query)), set(call.values("expand"))
    # silently ignoring a filter would let a wrong test pass
    if wrong := (names - LIST_QUERY) | (expand & NOT_IN_LISTING):
        raise Refused(400, message=f"not allowed in a listing: {', '.join(sorted(wrong))}")

    def matches(data: dict[str, Any]) -> bool:
        return (
            all(tag in data["tags"] for tag in call.values("filter"))
            and call.value("author", data["author"]) == data["author"]
            and call.value("pipeline_tag") in ("", data.get("pipeline_tag"))
            and call.value("search").lower() in data["id"].lower()
        )

    repos = [repo for repo in hub.repos.values() if not repo.private or repo.admits(call.user)]
    rows = [data for repo in repos if matches(data := model_data(repo, repo.refs["main"]))]
    rows.sort(key=lambda data: data.get(call.value("sort", "trendingScore")) or 0, reverse=True)
    start, limit = int(call.value("cursor", "0")), min(int(call.value("limit", "1000")), hub.page_size)
    also = (FULL if "full" in names else set()) | (names & {"config", "cardData"})
    keep = {"_id", "id"} | expand if expand else LISTED | also
    page = [{key: data[key] for key in data if key in keep} for data in rows[start : start + limit]]
    again = [(name, value) for name, value in parse_qsl(call.query) if name != "cursor"]
    link = f'<{hub.url}/api/models?{urlencode([*again, ("cursor", start + limit)])}>; rel="next"'
    return _json(page, headers={"Link": link} if start + limit < len(rows) else None)


def _model(hub: MiniHub, call: Request, repo: str, rev: str = "main") -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    data = model_data(found, sha)
    if expand := call.values("expand"):
        return _json({key: data[key] for key in data if key in {"_id", "id", *expand}})
    if call.value("blobs").lower() == "true":
        entries = [(path, _entry(path, file)) for path, file in sorted(found.commits[sha].items())]
        blobs = [{"rfilename": path, "size": e["size"], "blobId": e["oid"]} for path, e in entries]
        lfs = [{"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {} for _, e in entries]
        data["siblings"] = [blob | extra for blob, extra in zip(blobs, lfs, strict=True)]
    return _json({key: data[key] for key in data if key not in NOT_IN_LISTING - {"usedStorage"}})


def _tree(hub: MiniHub, call: Request, repo: str, rev: str, path: str = "") -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    recursive = call.value("recursive").lower() == "true"
    under = f"{path.rstrip('/')}/" if path else ""
    entries: dict[str, File | None] = {}
    for name, file in sorted(found.commits[sha].items()):
        if not name.startswith(under):
            continue
        *folders, _ = name[len(under) :].split("/")
        for depth in range(1, len(folders) + 1 if recursive else min(len(folders), 1) + 1):
            entries[under + "/".join(folders[:depth])] = None
        if recursive or not folders:
            entries[name] = file
    if path and not entries:
        raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}", X_Repo_Commit=sha)
    return _json([_entry(name, file) for name, file in entries.items()])


def _paths_info(hub: MiniHub, call: Request, repo: str, rev: str) -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    files = found.commits[sha]
    asked = [path.rstrip("/") for path in parse_qs(call.body.decode()).get("paths", ())]  # a form, not JSON
    folders = {path for path in asked if any(name.startswith(f"{path}/") for name in files)}
    return _json([_entry(path, files.get(path)) for path in asked if path in files or path in folders])


def _resolve(hub: MiniHub, call: Request, repo: str, rev: str, path: str) -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    if found.gated and not found.admits(call.user):
        message = f"Access to model {repo} is restricted and you are not in the authorized list."
        raise Refused(403 if call.user else 401, "GatedRepo", message)
    file = found.commits[sha].get(path)
    if file is None:
        raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path)}; filename=\"{quote(path)}\";"
    if not file.lfs:
        return Answer(200, file, {**headers, "ETag": f'"{file.oid}"'})
    linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    location = hub._sign(file, f"{repo}/{path}")
    return Answer(302, headers={**headers, **linked, "ETag": f'"{file.oid}"', "Location": location})


def _blob(hub: MiniHub, call: Request, sha256: str) -> Answer:
    if call.authorised:
        raise Refused(400, message="A token reached the CDN.")
    file, key, expires = hub._signed.get(call.value("Signature"), (None, "", 0.0))
    if file is None or file.sha256 != sha256 or expires <= time.time():
        raise Refused(403, message="Request has expired")
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"cdn-{file.oid}"'}  # not the sha256
    return Answer(200, file, headers, key)


_REPO = r"(?P<repo>[^/]+?(?:/[^/]+?)??)"
ROUTES: tuple[tuple[str, str, re.Pattern[str], Callable[..., Answer]], ...] = tuple(
    (app, methods, re.compile(pattern), route)
    for app, methods, pattern, route in (
        ("hub", "GET", r"/api/whoami-v2", _whoami),
        ("hub", "GET", r"/api/agent-harnesses", _harnesses),
        ("hub", "GET", r"/api/models", _models),
        ("hub", "GET", rf"/api/models/{_REPO}(?:/revision/(?P<rev>[^/]+))?", _model),
        ("hub", "GET", rf"/api/models/{_REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", _tree),
        ("hub", "POST", rf"/api/models/{_REPO}/paths-info/(?P<rev>[^/]+)", _paths_info),
        ("hub", "GET HEAD", rf"/{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", _resolve),
        ("cdn", "GET HEAD", r"/repos/(?P<sha256>[0-9a-f]{64})", _blob),
    )
)
