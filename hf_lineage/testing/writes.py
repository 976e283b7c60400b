"""The routes that write: cards are validated, files uploaded, commits made, repos created and deleted."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .answers import REPO, Answer, Refused, json_answer, route, writer
from .discussions import check_title, open_discussion
from .repos import File, Repo, Request, card_problems, is_large
from .routes import refuse_gated

if TYPE_CHECKING:
    from .server import MiniHub

STALE = "A commit has happened since. Please refresh and try again."
NO_RIGHT = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"


def _validate(hub: MiniHub, call: Request) -> Answer:
    errors, warnings = card_problems(call.json().get("content", ""))
    shown = {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}
    return json_answer(shown, 400 if errors else 200)


def _target(hub: MiniHub, call: Request, repo: str, rev: str, pull: bool) -> tuple[Repo, str]:
    """The repo and its commit that this user may build on: anybody for a pull request, its members otherwise."""
    user = writer(call)
    found, sha = hub._open(repo, rev, user)
    refuse_gated(hub, found, user)
    if rev.removeprefix("refs/heads/") not in found.refs:
        raise Refused(400, message=f"A commit needs a branch, {rev} is none")
    if pull or hub.may_push(found.id, user):
        return found, sha
    if (about := found.pull(rev)) and about.author == user:
        return found, sha
    raise Refused(403, message=NO_RIGHT)


def _preupload(hub: MiniHub, call: Request, repo: str, rev: str) -> Answer:
    found, sha = _target(hub, call, repo, rev, call.value("create_pr") == "1")
    answers = []
    for asked in call.json()["files"]:
        path, old = asked["path"], found.commits[sha].get(asked["path"])
        mode = "lfs" if is_large(path, asked["size"]) else "regular"
        known = {"oid": old.sha256 if old.lfs else old.oid} if old else {}
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
    return json_answer({"files": answers, "commitOid": sha})


def _lfs_batch(hub: MiniHub, call: Request, repo: str) -> Answer:
    asked = call.json()
    # without a ref the upload is for a pull request
    found, _ = _target(hub, call, repo, asked.get("ref", {}).get("name", "main"), "ref" not in asked)
    objects = []
    for one in asked["objects"]:
        needed = _large_file(hub, found, one["oid"]) is None
        actions = {"actions": {"upload": {"href": hub._sign_upload(one["oid"], one["size"], found.id)}}}
        objects.append({"oid": one["oid"], "size": one["size"], **(actions if needed else {})})
    return json_answer({"transfer": "basic", "objects": objects})


def _upload(hub: MiniHub, call: Request, sha256: str) -> Answer:
    if call.authorised:
        raise Refused(400, message="A token reached the CDN.")
    size, key, expires = hub._uploads.get(call.value("Signature"), (-1, "", 0.0))
    if expires <= time.time():
        raise Refused(403, message="Request has expired")
    if len(call.body) != size or hashlib.sha256(call.body).hexdigest() != sha256:
        raise Refused(400, message="The content is not what was announced")
    hub._blobs[sha256] = File("", call.body, lfs=True)
    return Answer(200, headers={"ETag": f'"{sha256}"'}, key=key)


def _large_file(hub: MiniHub, repo: Repo, sha256: str) -> File | None:
    """An uploaded file, or one that the repo has already."""
    held = (file for files in repo.commits.values() for file in files.values())
    return hub._blobs.get(sha256) or next((file for file in held if file.lfs and file.sha256 == sha256), None)


def _commit(hub: MiniHub, call: Request, repo: str, rev: str) -> Answer:
    pull, rev = call.value("create_pr") == "1", rev.removeprefix("refs/heads/")
    found, head = _target(hub, call, repo, rev, pull)
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if parent := header.get("parentCommit"):
        known = found.find(parent)
        if known != head and not pull:
            raise Refused(412, message=STALE)
        if known is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {parent}")
        head = known  # a pull request starts from it, wherever main is by now
    files = dict(found.commits[head])
    for line in lines:
        _apply(hub, found, files, line["key"], line["value"])
    _check_card(files, found.commits[head])
    user, title, text = writer(call), header["summary"], header.get("description", "")
    if pull:
        check_title(title)
        about = open_discussion(found, user, title, text, base=head)
        sha = _push(found, files, f"refs/pr/{about.num}", _Commit(user, title, ""), head)
        link = {"pullRequestUrl": f"{hub.url}/{found.id}/discussions/{about.num}"}
    else:
        sha, link = _push(found, files, rev, _Commit(user, title, text)), {}
    done = {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{found.id}/commit/{sha}", "hookOutput": ""}
    return json_answer(done | link)


class _Commit(NamedTuple):
    """Who commits, and with which message."""

    user: str
    title: str
    text: str


def _push(repo: Repo, files: dict[str, File], ref: str, commit: _Commit, parent: str | None = None) -> str:
    about = repo.pull(ref)
    if about and about.status not in ("open", "draft"):
        raise Refused(403, message=f"This pull request is {about.status}")
    sha = repo.commit(files, ref, title=commit.title, message=commit.text, author=commit.user, parent=parent)
    if about:
        about.add("commit", commit.user, repo.now, {"subject": commit.title, "oid": sha})
    return sha


def _apply(hub: MiniHub, repo: Repo, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
    """One line of a commit."""
    path = value.get("path", "")
    if kind == "file":
        # git holds what comes this way, whatever its name: the client sends empty files so
        files[path] = File(path, base64.b64decode(value["content"]), lfs=False)
    elif kind == "lfsFile":
        stored = _large_file(hub, repo, value["oid"])
        if stored is None:
            raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = stored
    elif kind == "deletedFile":
        if path not in files:
            raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        del files[path]
    elif kind == "deletedFolder":
        gone = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise Refused(404, "EntryNotFound", "A folder with this name doesn't exist")
        for name in gone:
            del files[name]
    elif kind != "header":
        raise Refused(400, message=f"Unknown operation {kind}")


def _check_card(files: dict[str, File], before: dict[str, File]) -> None:
    """The Hub refuses a new card that is not valid."""
    card = files.get("README.md")
    if card is None or card is before.get("README.md"):
        return
    errors, _ = card_problems(card.read().decode("utf-8-sig", "replace"))
    if errors:
        raise Refused(400, message="Invalid metadata in README.md: " + "; ".join(errors))


def _named(hub: MiniHub, call: Request) -> tuple[str, str]:
    """User and repo of a request whose body names the repo."""
    user, asked = writer(call), call.json()
    if asked.get("type") not in (None, "model"):
        raise Refused(400, message=f"The stand-in has models only, not {asked['type']}")
    return user, f"{asked.get('organization') or user}/{asked['name']}"


def _create(hub: MiniHub, call: Request) -> Answer:
    user, name = _named(hub, call)
    if not hub.may_push(name, user):
        space = name.split("/")[0]
        raise Refused(403, message=f'You don\'t have the rights to create a model under the namespace "{space}"')
    url = f"{hub.url}/{name}"
    if name in hub.repos:
        text = "You already created this model repo"
        return json_answer({"error": text, "url": url}, 409, {"X-Error-Message": text})
    hub.renamed.pop(name, None)
    private = call.json().get("visibility") == "private"
    hub.add(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, private=private)
    return json_answer({"url": url, "name": name, "id": name})


def _delete(hub: MiniHub, call: Request) -> Answer:
    user, name = _named(hub, call)
    found, _ = hub._open(name, "main", user)
    if not hub.may_push(found.id, user):
        raise Refused(403, message="You don't have the rights to delete this model")
    del hub.repos[found.id]
    return json_answer({})


ROUTES = (
    route("hub", "POST", r"/api/validate-yaml", _validate),
    route("hub", "POST", rf"/api/models/{REPO}/preupload/(?P<rev>[^/]+)", _preupload),
    route("hub", "POST", rf"/{REPO}\.git/info/lfs/objects/batch", _lfs_batch),
    route("cdn", "PUT", r"/uploads/(?P<sha256>[0-9a-f]{64})", _upload),
    route("hub", "POST", rf"/api/models/{REPO}/commit/(?P<rev>[^/]+)", _commit, True),
    route("hub", "POST", r"/api/repos/create", _create, True),
    route("hub", "DELETE", r"/api/repos/delete", _delete, True),
)
