"""A stand-in of "Sign in with Hugging Face": the OpenID provider that a Space talks to, on the loopback.

Nobody is asked for a password: a browser is whoever `/as/NAME` last said. The token of NAME is `hf_NAME`, as on the
stand-in of the Hub.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey

CLIENT, SCOPES = "model-lineage", "openid profile gated-repos write-discussions"


class Login:
    """`with Login() as login: environment = login.environment()`."""

    def __init__(self) -> None:
        self.key = OctKey.generate_key(256, {"kid": "1", "alg": "HS256"})
        self.codes: dict[str, tuple[str, str]] = {}  # code → user, nonce
        self.scopes: list[str] = []  # that were asked for

    def __enter__(self) -> Login:
        login = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                login._get(self)

            def do_POST(self) -> None:
                login._post(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self) -> dict[str, str]:
        """What the Hub sets in a Space with `hf_oauth: true`."""
        return {
            "SYSTEM": "spaces", "SPACE_ID": "owner/model-lineage", "OAUTH_CLIENT_ID": CLIENT, "OAUTH_SCOPES": SCOPES,
            "OAUTH_CLIENT_SECRET": "shared", "OPENID_PROVIDER_URL": self.url, "AUTHLIB_INSECURE_TRANSPORT": "1",
        }  # fmt: skip

    def _get(self, call: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(call.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path.startswith("/as/"):
            _send(call, {"you are": parts.path[4:]}, cookie=f"user={parts.path[4:]}; Path=/")
        elif parts.path == "/oauth/authorize":
            self.scopes.append(query["scope"])
            cookies = SimpleCookie(call.headers.get("Cookie", ""))
            code = secrets.token_urlsafe(8)
            self.codes[code] = (cookies["user"].value if "user" in cookies else "alice", query["nonce"])
            mark = "&" if "?" in query["redirect_uri"] else "?"
            call.send_response(302)
            back = urlencode({"code": code, "state": query["state"]})
            call.send_header("Location", f"{query['redirect_uri']}{mark}{back}")
            call.end_headers()
        elif parts.path == "/jwks":
            _send(call, {"keys": [self.key.as_dict(private=True)]})
        else:
            places = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
            about: dict[str, Any] = {name: f"{self.url}/oauth/{place}" for name, place in places.items()}
            about |= {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
            _send(call, about | {"id_token_signing_alg_values_supported": ["HS256"]})

    def _post(self, call: BaseHTTPRequestHandler) -> None:
        sent = parse_qs(call.rfile.read(int(call.headers["Content-Length"])).decode())
        user, nonce = self.codes.pop(sent["code"][0])
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": user, "iat": now, "exp": now + 3600, "nonce": nonce, "name": user.title(),
            "preferred_username": user, "profile": f"https://huggingface.co/{user}", "picture": "",
        }  # fmt: skip
        signed = jwt.encode({"alg": "HS256", "kid": "1"}, claims, self.key)
        token = {"access_token": f"hf_{user}", "token_type": "bearer", "expires_in": 3600, "scope": SCOPES}
        _send(call, token | {"id_token": signed})


def _send(call: BaseHTTPRequestHandler, data: dict[str, Any], cookie: str = "") -> None:
    body = json.dumps(data).encode()
    call.send_response(200)
    call.send_header("Content-Type", "application/json")
    call.send_header("Content-Length", str(len(body)))
    if cookie:
        call.send_header("Set-Cookie", cookie)
    call.end_headers()
    call.wfile.write(body)
