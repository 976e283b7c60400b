"""What a route is: the url it stands for, its answer, and its refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from .repos import File, Request

if TYPE_CHECKING:
    from .server import MiniHub

REPO = r"(?P<repo>[^/]+?(?:/[^/]+?)??)"


@dataclass(slots=True)
class Answer:
    """What the stand-in sends for a request."""

    status: int = 200
    body: bytes | File = b""
    headers: dict[str, str] = field(default_factory=dict)
    key: str = ""  # `org/name/path` of the file asked for
    start: int = 0
    stop: int = -1  # -1: the whole body
    cut: int | None = None  # close the connection after so many bytes of the body
    length: int | None = -1  # what Content-Length says; -1: the truth, None: the header is missing


class Refused(Exception):
    """A refusal as the Hub words it: status, error code and message."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        headers = {key.replace("_", "-"): value for key, value in headers.items() if value}
        if code:
            headers["X-Error-Code"] = code
        shown = " ".join(message.split())  # a header is one line
        self.answer = json_answer({"error": message}, status, {"X-Error-Message": shown, **headers})


class Route(NamedTuple):
    """Takes the hub, the call and the parts of the url, and gives an answer or raises `Refused`."""

    app: str
    methods: str
    pattern: re.Pattern[str]
    answer: Callable[..., Answer]
    changes: bool  # needs a token that may write, and runs alone


def route(app: str, methods: str, pattern: str, answer: Callable[..., Answer], changes: bool = False) -> Route:
    """A route whose pattern is a regular expression."""
    return Route(app, methods, re.compile(pattern), answer, changes)


def json_answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer that holds a JSON document."""
    text = json.dumps(data, default=str).encode("utf-8", "replace")  # YAML has dates and sets
    return Answer(status, text, {"Content-Type": "application/json", **(headers or {})})


def paged(hub: MiniHub, call: Request, rows: list[dict[str, Any]], keep: set[str] | None = None) -> Answer:
    """One page of a listing, and a link to the next."""
    start, limit = int(call.value("cursor", "0")), min(int(call.value("limit", "1000")), hub.page_size)
    page = rows[start : start + limit]
    if keep is not None:
        page = [{key: data[key] for key in data if key in keep} for data in page]
    again = [(name, value) for name, value in parse_qsl(call.query) if name != "cursor"]
    link = f'<{hub.url}{call.path}?{urlencode([*again, ("cursor", start + limit)])}>; rel="next"'
    return json_answer(page, headers={"Link": link} if start + limit < len(rows) else None)


def writer(call: Request) -> str:
    """The user of a token that may write."""
    if call.user is None:
        raise Refused(401, message="Invalid username or password.")
    if call.role != "write":
        raise Refused(403, message="This token has role `read`: a token with `write` access is needed")
    return call.user
