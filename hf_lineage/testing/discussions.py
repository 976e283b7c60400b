"""Discussions and pull requests: shown, opened, commented, renamed, closed and merged."""

from __future__ import annotations

import difflib
import html
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .answers import REPO, Answer, Refused, json_answer, route, writer
from .repos import Discussion, File, Repo, Request

if TYPE_CHECKING:
    from .server import MiniHub

PAGE = 10
OPEN = ("draft", "open")


def check_title(title: str) -> None:
    """The Hub takes titles of some length only. Raises `Refused`."""
    if not 3 <= len(title.strip()) <= 200:
        raise Refused(400, message="The title must have 3 to 200 characters")


def open_discussion(repo: Repo, user: str, title: str, text: str, base: str = "", status: str = "open") -> Discussion:
    """The next one of a repo; with a base it is a pull request, still without commits."""
    num, now = len(repo.discussions) + 1, repo.tick()
    while f"refs/pr/{num}" in repo.refs:  # made by `MiniHub.commit`
        num += 1
    about = repo.discussions[num] = Discussion(num, title, user, now, status, bool(base), base)
    _comment(about, user, now, text)
    return about


def _comment(about: Discussion, user: str, now: str, text: str) -> dict[str, Any]:
    latest = {"raw": text, "html": f"<p>{html.escape(text)}</p>", "updatedAt": now, "author": {"name": user}}
    return about.add("comment", user, now, {"edited": False, "hidden": False, "history": [], "latest": latest})


def changes(old: Mapping[str, File], new: Mapping[str, File]) -> dict[str, File | None]:
    """What has to be done to one commit's files to have the other's."""
    return {path: new.get(path) for path in sorted({*old, *new}) if _differ(old.get(path), new.get(path))}


def _differ(one: File | None, other: File | None) -> bool:
    return one is not other and (one is None or other is None or one.oid != other.oid)


def _sides(repo: Repo, about: Discussion) -> tuple[dict[str, File | None], list[str]]:
    """What a pull request changes, and the paths where main has become something else meanwhile."""
    base = repo.commits[about.base]
    theirs = changes(base, repo.commits[repo.refs[f"refs/pr/{about.num}"]])
    ours = changes(base, repo.commits[repo.refs["main"]])
    return theirs, [path for path in theirs if path in ours and _differ(ours[path], theirs[path])]


def _diff(old: Mapping[str, File], new: Mapping[str, File]) -> Iterator[str]:
    """As git shows it: of an LFS file, the pointer."""
    for path, after in changes(old, new).items():
        before = old.get(path)
        names = (f"a/{path}" if before else "/dev/null", f"b/{path}" if after else "/dev/null")
        yield f"diff --git a/{path} b/{path}\n"
        for line in difflib.unified_diff(_lines(before), _lines(after), *names):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(file: File | None) -> list[str]:
    content = b"" if file is None else file.pointer if file.lfs else file.read()
    return list(io.StringIO(content.decode("utf-8", "replace"), newline="\n"))


def _summary(repo: Repo, about: Discussion) -> dict[str, Any]:
    return {
        "num": about.num,
        "title": about.title,
        "author": {"name": about.author, "type": "user"},
        "repo": {"name": repo.id, "type": "model"},
        "createdAt": about.created,
        "status": about.status,
        "isPullRequest": about.is_pull_request,
        "numComments": len(about.comments),
    }


def _list(hub: MiniHub, call: Request, repo: str) -> Answer:
    """Newest first. Like on the Hub, a draft counts as open and a merged one as closed."""
    found, _ = hub._open(repo, "main", call.user)
    kind, status = call.value("type", "all"), call.value("status", "all")
    rows = [
        _summary(found, about)
        for about in reversed(found.discussions.values())
        if kind == "all" or about.is_pull_request == (kind == "pull_request")
        if status == "all" or (about.status in OPEN) == (status == "open")
        if call.value("author") in ("", about.author)
    ]
    size = min(PAGE, hub.page_size)
    start = int(call.value("p", "0")) * size
    return json_answer({"discussions": rows[start : start + size], "count": len(rows), "start": start})


def _find(hub: MiniHub, call: Request, repo: str, num: str) -> tuple[Repo, Discussion]:
    found, _ = hub._open(repo, "main", call.user)
    about = found.discussions.get(int(num))
    if about is None:
        raise Refused(404, message="Discussion not found")
    return found, about


def _details(hub: MiniHub, call: Request, repo: str, num: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    shown = {**_summary(found, about), "events": about.events}
    if about.is_pull_request:
        base, head = found.commits[about.base], found.commits[found.refs[f"refs/pr/{num}"]]
        conflicts = _sides(found, about)[1] if about.status in OPEN else []
        merged = {"mergeCommitId": about.merged} if about.merged else {}
        shown |= {"changes": {"base": "refs/heads/main", **merged}, "filesWithConflicts": conflicts}
        shown["diff"] = "".join(_diff(base, head))
    return json_answer(shown)


def _open(hub: MiniHub, call: Request, repo: str) -> Answer:
    found, sha = hub._open(repo, "main", call.user)
    asked, user = call.json(), writer(call)
    check_title(asked["title"])
    pull = bool(asked.get("pullRequest"))
    # a pull request that is opened before it has commits is a draft
    status, base = ("draft", sha) if pull else ("open", "")
    about = open_discussion(found, user, asked["title"], asked.get("description", ""), base, status)
    if pull:
        found.refs[f"refs/pr/{about.num}"] = sha
    return json_answer({**_summary(found, about), "pullRequest": pull})


def _add_comment(hub: MiniHub, call: Request, repo: str, num: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    text = call.json().get("comment", "")
    if not text.strip():
        raise Refused(400, message="A comment must not be empty")
    return json_answer({"newMessage": _comment(about, writer(call), found.tick(), text)})


def _edit(hub: MiniHub, call: Request, repo: str, num: str, event: str, what: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    user = writer(call)
    old = next((one for one in about.events if one["id"] == event and one["type"] == "comment"), None)
    if old is None:
        raise Refused(404, message="Comment not found")
    if old["author"]["name"] != user:
        raise Refused(403, message="You may change your own comments only")
    data, now = old["data"], found.tick()
    data["history"].append(data["latest"])
    text = "" if what == "hide" else call.json()["content"]
    data["latest"] = {**data["latest"], "raw": text, "html": f"<p>{html.escape(text)}</p>", "updatedAt": now}
    data["hidden" if what == "hide" else "edited"] = True
    return json_answer({"updatedComment": old})


def _may_manage(hub: MiniHub, call: Request, repo: Repo, about: Discussion) -> str:
    user = writer(call)
    if user != about.author and not hub.may_push(repo.id, user):
        raise Refused(403, message="Only its author and those who may write to the repo may do this")
    return user


def _retitle(hub: MiniHub, call: Request, repo: str, num: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    user, title = _may_manage(hub, call, found, about), call.json()["title"]
    check_title(title)
    event = about.add("title-change", user, found.tick(), {"from": about.title, "to": title})
    about.title = title
    return json_answer({"newTitle": event})


def _set_status(hub: MiniHub, call: Request, repo: str, num: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    user, asked = _may_manage(hub, call, found, about), call.json()
    if asked["status"] not in ("open", "closed"):
        raise Refused(400, message="The status must be open or closed")
    if about.status == "merged":
        raise Refused(400, message="This pull request is merged")
    return _new_status(found, about, user, asked["status"], asked.get("comment", ""))


def _new_status(repo: Repo, about: Discussion, user: str, status: str, comment: str) -> Answer:
    if comment:
        _comment(about, user, repo.tick(), comment)
    about.status = status
    return json_answer({"newStatus": about.add("status-change", user, repo.tick(), {"status": status})})


def _merge(hub: MiniHub, call: Request, repo: str, num: str) -> Answer:
    found, about = _find(hub, call, repo, num)
    user = writer(call)
    if not hub.may_push(found.id, user):
        raise Refused(403, message="You don't have the rights to merge this pull request")
    if not about.is_pull_request or about.status != "open":
        what = about.status if about.is_pull_request else "a discussion"
        raise Refused(400, message=f"Only an open pull request can be merged, this is {what}")
    theirs, conflicts = _sides(found, about)
    if conflicts:
        raise Refused(409, message=f"Merge conflicts: {', '.join(conflicts)}")
    files: dict[str, File | None] = {**found.commits[found.refs["main"]], **theirs}
    left = {path: file for path, file in files.items() if file is not None}
    about.merged = found.commit(left, "main", title=f"{about.title} (#{num})", author=user)
    return _new_status(found, about, user, "merged", call.json().get("comment", ""))


_ALL = rf"/api/models/{REPO}/discussions"
_ONE = rf"{_ALL}/(?P<num>\d+)"
ROUTES = (
    route("hub", "GET", _ALL, _list),
    route("hub", "GET", _ONE, _details),
    route("hub", "POST", _ALL, _open, True),
    route("hub", "POST", rf"{_ONE}/comment", _add_comment, True),
    route("hub", "POST", rf"{_ONE}/comment/(?P<event>[0-9a-f]+)/(?P<what>edit|hide)", _edit, True),
    route("hub", "POST", rf"{_ONE}/title", _retitle, True),
    route("hub", "POST", rf"{_ONE}/status", _set_status, True),
    route("hub", "POST", rf"{_ONE}/merge", _merge, True),
)
