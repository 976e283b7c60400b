"""The routes that read: each takes the hub, the call and the parts of the url, and answers or refuses."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from .answers import REPO, Answer, Refused, json_answer, paged, route
from .repos import File, Repo, Request, digest, model_data

if TYPE_CHECKING:
    from .server import MiniHub

LISTED = {"_id", "id", "modelId", "likes", "private", "downloads"}
LISTED |= {"tags", "pipeline_tag", "library_name", "createdAt"}
FULL = {"sha", "lastModified", "siblings", "author", "gated", "disabled"}
NOT_IN_LISTING = {"baseModels", "childrenModelCount", "usedStorage"}
LIST_QUERY = {"filter", "author", "search", "pipeline_tag", "sort", "limit", "cursor"}
LIST_QUERY |= {"expand", "full", "config", "cardData", "num_parameters", "gated"}

SORTS = {"createdAt", "lastModified", "downloads", "likes", "trendingScore"}
SNAKES = {"created_at": "createdAt", "last_modified": "lastModified", "trending_score": "trendingScore"}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BOUND = re.compile(r"(min|max):(\d+(?:\.\d+)?)([KMBT]?)", re.IGNORECASE)


def _entry(path: str, file: File | None) -> dict[str, Any]:
    if file is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)} if file.lfs else None
    return {"type": "file", "oid": file.oid, "size": file.size, "path": path} | ({"lfs": lfs} if lfs else {})


def _whoami(hub: MiniHub, call: Request) -> Answer:
    if call.user is None:
        raise Refused(401, message="Invalid username or password.")
    who = {"type": "user", "id": digest(call.user), "name": call.user, "fullname": call.user, "isPro": False}
    orgs = [
        {"type": "org", "id": digest(name), "name": name, "fullname": name, "avatarUrl": "", "roleInOrg": "write"}
        for name in sorted(hub.orgs.get(call.user, ()))
    ]
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": call.role}}
    return json_answer({**who, "email": None, "orgs": orgs, "avatarUrl": "/avatars/test.svg", "auth": token})


def _harnesses(hub: MiniHub, call: Request) -> Answer:
    return json_answer({"standardEnvVars": [], "harnesses": {}})


def _models(hub: MiniHub, call: Request) -> Answer:
    names, expand = set(parse_qs(call.query)), set(call.values("expand"))
    # silently ignoring a filter would let a wrong test pass
    if wrong := (names - LIST_QUERY) | (expand & NOT_IN_LISTING):
        raise Refused(400, message=f"not allowed in a listing: {', '.join(sorted(wrong))}")
    sort = call.value("sort", "trendingScore")
    sort = SNAKES.get(sort, sort)
    if sort not in SORTS:
        raise Refused(400, message=f"sort must be one of {', '.join(sorted(SORTS))}, not {sort}")
    rows = [data for data in _visible(hub, call.user) if _matches(data, call)]
    rows.sort(key=lambda data: data[sort], reverse=True)
    also = (FULL if "full" in names else set()) | (names & {"config", "cardData"})
    return paged(hub, call, rows, {"_id", "id"} | expand if expand else LISTED | also)


def _visible(hub: MiniHub, user: str | None) -> list[dict[str, Any]]:
    repos = [repo for repo in list(hub.repos.values()) if not repo.private or hub._admits(repo, user)]
    return [model_data(repo, repo.refs["main"]) for repo in repos if "main" in repo.refs]


def _matches(data: dict[str, Any], call: Request) -> bool:
    least, most = _bounds(call.value("num_parameters"))
    total = data.get("safetensors", {}).get("total")
    return (
        all(tag in data["tags"] for tag in call.values("filter"))
        and call.value("author", data["author"]) == data["author"]
        and call.value("pipeline_tag") in ("", data.get("pipeline_tag"))
        and call.value("search").lower() in data["id"].lower()
        and call.value("gated").lower() in ("", str(bool(data["gated"])).lower())
        and (not call.value("num_parameters") or (total is not None and least <= total <= most))
    )


def _bounds(text: str) -> tuple[float, float]:
    """Least and most of `min:80M,max:1.5B`; either may be missing."""
    bounds = {"min": 0.0, "max": math.inf}
    for part in text.split(",") if text else ():
        match = BOUND.fullmatch(part)
        if match is None:
            raise Refused(400, message=f"num_parameters must look like min:80M,max:90M, not {text}")
        side, number, unit = match.groups()
        bounds[side.lower()] = float(number) * UNITS[unit.upper()]
    return bounds["min"], bounds["max"]


def _model(hub: MiniHub, call: Request, repo: str, rev: str = "main") -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    data = model_data(found, sha)
    if expand := call.values("expand"):
        if "childrenModelCount" in expand:
            data["childrenModelCount"] = _children(hub, found)
        return json_answer({key: data[key] for key in data if key in {"_id", "id", *expand}})
    if call.value("blobs").lower() == "true":
        entries = [(path, _entry(path, file)) for path, file in sorted(found.commits[sha].items())]
        blobs = [{"rfilename": path, "size": e["size"], "blobId": e["oid"]} for path, e in entries]
        lfs = [{"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {} for _, e in entries]
        data["siblings"] = [blob | extra for blob, extra in zip(blobs, lfs, strict=True)]
    return json_answer({key: data[key] for key in data if key not in NOT_IN_LISTING - {"usedStorage"}})


def _children(hub: MiniHub, repo: Repo) -> dict[str, int]:
    """Public models that declare this one as their base, by relation."""
    counts: Counter[str] = Counter()
    for data in _visible(hub, None):
        bases = data.get("baseModels", {"models": []})
        if repo.id in [hub.renamed.get(base["id"], base["id"]) for base in bases["models"]]:
            counts[bases["relation"]] += 1
    return dict(counts)


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
    return json_answer([_entry(name, file) for name, file in entries.items()])


def _paths_info(hub: MiniHub, call: Request, repo: str, rev: str) -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    files = found.commits[sha]
    asked = [path.rstrip("/") for path in parse_qs(call.body.decode()).get("paths", ())]  # a form, not JSON
    folders = {path for path in asked if any(name.startswith(f"{path}/") for name in files)}
    return json_answer([_entry(path, files.get(path)) for path in asked if path in files or path in folders])


def _refs(hub: MiniHub, call: Request, repo: str) -> Answer:
    found, _ = hub._open(repo, "main", call.user)
    shown = [
        {"name": name, "ref": name if name.startswith("refs/") else f"refs/heads/{name}", "targetCommit": sha}
        for name, sha in found.refs.items()
    ]
    pulls = [ref for ref in shown if ref["name"].startswith("refs/pr/")]
    branches = [ref for ref in shown if ref not in pulls]
    return json_answer(
        {"branches": branches, "converts": [], "tags": []}
        | ({"pullRequests": pulls} if call.value("include_prs") else {})
    )


def _commits(hub: MiniHub, call: Request, repo: str, rev: str) -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    rows, at = [], sha or None
    while at:
        commit = found.history[at]
        about = {"title": commit.title, "message": commit.message, "date": commit.date}
        rows.append({"id": at, "authors": [{"user": commit.author}], **about})
        at = commit.parent
    return paged(hub, call, rows)


def _safetensors(hub: MiniHub, call: Request, repo: str, path: str) -> Answer:
    """The headers of all shards that an index names; the Hub knows only main."""
    found, sha = hub._open(repo, "main", call.user)
    refuse_gated(hub, found, call.user)
    files = found.commits[sha]
    if path not in files:
        raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
    index = json.loads(files[path].read())
    headers = {}
    for shard in sorted(set(index["weight_map"].values())):
        length = int.from_bytes(files[shard].read(0, 8), "little")
        headers[shard] = json.loads(files[shard].read(8, 8 + length))
    return json_answer({"index": {"metadata": index.get("metadata")}, "headers": headers})


def _collection(hub: MiniHub, call: Request, slug: str) -> Answer:
    data = hub.collections.get(slug)
    if data is None:
        raise Refused(404, message="Collection not found")
    return json_answer({**data, "position": 0, "items": _items(hub, data, call.user)})


def _collections(hub: MiniHub, call: Request) -> Answer:
    """As the Hub does, a listing shows the first four items of each."""
    if wrong := set(parse_qs(call.query)) - {"owner", "item", "limit", "cursor"}:
        raise Refused(400, message=f"not allowed in a listing: {', '.join(sorted(wrong))}")
    owners, wanted = call.values("owner"), set(call.values("item"))
    rows = []
    for data in list(hub.collections.values()):
        items = _items(hub, data, call.user)
        names = {f"{item['type']}s/{item['id']}" for item in items}
        if data["owner"]["name"] in (owners or [data["owner"]["name"]]) and wanted <= names:
            rows.append({**data, "items": items[:4]})
    return paged(hub, call, rows)


def _items(hub: MiniHub, data: dict[str, Any], user: str | None) -> list[dict[str, Any]]:
    """Without the models that are hidden from this user."""
    hidden = {repo.id for repo in list(hub.repos.values()) if repo.private and not hub._admits(repo, user)}
    return [item for item in data["items"] if item["type"] != "model" or item["id"] not in hidden]


def refuse_gated(hub: MiniHub, repo: Repo, user: str | None) -> None:
    """Raises `Refused` where the terms of a repo were not accepted."""
    if repo.gated and not hub._admits(repo, user):
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise Refused(403 if user else 401, "GatedRepo", message)


def _resolve(hub: MiniHub, call: Request, repo: str, rev: str, path: str) -> Answer:
    found, sha = hub._open(repo, rev, call.user)
    refuse_gated(hub, found, call.user)
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


# A repo may have one segment: `gpt2/refs` could be a repo, so what has a name of its own comes before `_model`.
ROUTES = (
    route("hub", "GET", r"/api/whoami-v2", _whoami),
    route("hub", "GET", r"/api/agent-harnesses", _harnesses),
    route("hub", "GET", r"/api/collections", _collections),
    route("hub", "GET", r"/api/collections/(?P<slug>.+)", _collection),
    route("hub", "GET", r"/api/models", _models),
    route("hub", "GET", rf"/api/models/{REPO}/refs", _refs),
    route("hub", "GET", rf"/api/models/{REPO}/commits/(?P<rev>[^/]+)", _commits),
    route("hub", "GET", rf"/api/models/{REPO}/safetensors-metadata/(?P<path>.+)", _safetensors),
    route("hub", "GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", _tree),
    route("hub", "POST", rf"/api/models/{REPO}/paths-info/(?P<rev>[^/]+)", _paths_info),
    route("hub", "GET HEAD", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", _resolve),
    route("cdn", "GET HEAD", r"/repos/(?P<sha256>[0-9a-f]{64})", _blob),
    route("hub", "GET", rf"/api/models/{REPO}(?:/revision/(?P<rev>[^/]+))?", _model),
)
