"""What every request passes first: is it from our own page, of a route that is needed, about a session of its own
visitor, and not one too many?

gradio answers pages of any origin, with credentials; its session cookie is sent from any site (SameSite=None, as the
frame on huggingface.co needs it); and `api_visibility="private"` hides a function without closing it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from questions import AT_ONCE, MAX_OF_ONE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 1 << 18  # bytes of a request: a question is a few thousand characters
MAX_SESSIONS = 20_000  # whose visitors are remembered; gradio keeps the answers of 10,000
# all that page, API and MCP ask for. Not among them: uploads, files of this machine, its proxy, run history, vibe mode
PAGE = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?|/(assets|static|svelte)/.*|"
    r"/login/(huggingface|callback)|/logout"
)
API = re.compile(
    r"/gradio_api/(info|openapi\.json|app_id|startup-events|theme\.css|user|login_check|queue/(join|data|status)|"
    r"call/.+|(run|api)/[^/]+|cancel|reset|heartbeat/[^/]+|mcp(/.*)?)/?"
)
ASKS = re.compile(r"/gradio_api/(queue/join|call/.+)/?")
FRAMED_BY = "frame-ancestors 'self' https://huggingface.co"  # nobody else may lay our buttons under theirs


class Guard:
    """ASGI middleware within gradio's own, so that the visitor's session is known.

    waiting(): the requests whose questions wait or are worked on.
    """

    def __init__(self, app: Any, waiting: Callable[[], list[Any]]) -> None:
        self.app, self.waiting = app, waiting
        self._owners: OrderedDict[str, str] = OrderedDict()  # session → who used it first; "" is not signed in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, refused = b"", self._refusal(scope)
        if refused is None and scope["method"] == "POST" and not scope["path"].startswith("/gradio_api/mcp"):
            body, receive = await _read(receive)
            refused = (413, "That is too long.") if len(body) > MAX_BODY else None
        refused = refused or self._not_theirs(scope, body) or self._too_many(scope)
        if refused is not None:
            await _answer(send, *refused)
            return

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", FRAMED_BY.encode())]
            await send(message)

        await self.app(scope, receive, framed)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if not (PAGE.fullmatch(scope["path"]) or API.fullmatch(scope["path"])):
            return 404, "There is nothing here."
        if is_foreign(scope) and "cookie" in _headers(scope):
            return 403, "Another site's page may not ask in the name of a visitor of this one."
        return None

    def _not_theirs(self, scope: Scope, body: bytes) -> tuple[int, str] | None:
        """A session belongs to who used it first: after signing in or out, the page has another one."""
        session = session_of(scope, body)
        if not session:
            return None
        owner = self._owners.setdefault(session, user_of(scope))
        self._owners.move_to_end(session)
        if len(self._owners) > MAX_SESSIONS:
            self._owners.popitem(last=False)
        return None if owner == user_of(scope) else (403, "That session is another visitor's. Open the page again.")

    def _too_many(self, scope: Scope) -> tuple[int, str] | None:
        if scope["method"] != "POST" or not ASKS.fullmatch(scope["path"]):
            return None
        asking, mine = [visitor_of(request.scope) for request in self.waiting()], visitor_of(scope)
        asked = asking.count(mine)
        most = MAX_OF_ONE if len(asking) - asked < AT_ONCE else 1  # nobody waits for a visitor's second question
        few = f"Expected at most {MAX_OF_ONE} questions of one visitor at a time, one while others wait."
        return (429, f"{few} Wait for an answer.") if asked >= most else None


def is_foreign(scope: Scope) -> bool:
    """Whether another site's page sent it: what a browser says of itself and no page can change.

    A program says neither; opening our page from a link or in a frame is nobody's question.
    """
    headers = _headers(scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    opening = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] != "/logout"
    if site is not None:
        return site not in ("same-origin", "none") and not opening
    ours = {headers.get("host", ""), *os.environ.get("SPACE_HOST", "").split(",")}
    return origin is not None and urlsplit(origin).netloc not in ours - {""}


def user_of(scope: Scope) -> str:
    """Who is signed in; "" for nobody."""
    info = (scope.get("session") or {}).get("oauth_info") or {}
    return str((info.get("userinfo") or {}).get("sub") or "")


def visitor_of(scope: Scope) -> str:
    """Whose question it is, for counting: the user who is signed in, else the address that the nearest proxy of ours
    saw: what a visitor writes into X-Forwarded-For stands before it."""
    addresses = [part.strip() for part in _headers(scope).get("x-forwarded-for", "").split(",")]
    seen = next((address for address in reversed(addresses) if _is_global(address)), None)
    return f"user {user_of(scope)}" if user_of(scope) else f"address {seen or (scope.get('client') or [''])[0]}"


def session_of(scope: Scope, body: bytes) -> str:
    """The session that a request names in its path, its query or its body; "" where it names none."""
    if scope["path"].startswith("/gradio_api/heartbeat/"):
        return str(scope["path"].split("/")[3])
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash")
    if asked:
        return asked[0]
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    found = data.get("session_hash") if isinstance(data, dict) else None
    return found if isinstance(found, str) else ""


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The body, little more than `MAX_BODY` of it, and what hands it on."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = bool(message.get("more_body")) and message["type"] == "http.request"
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return body, again


async def _answer(send: Send, status: int, words: str) -> None:
    body = json.dumps({"detail": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
