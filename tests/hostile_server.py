"""A server on the loopback that sends any bytes at all: what a stand-in of the Hub, which keeps to HTTP, cannot."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

Reply = bytes | Iterator[bytes] | None


class HostileServer:
    """`with HostileServer(reply) as server`: `reply(method, path, headers)` is what goes over the wire; None: nothing
    ever does, and the connection stays open."""

    def __init__(self, reply: Callable[[str, str, dict[str, str]], Reply]) -> None:
        self.reply, self.asked = reply, 0

    def __enter__(self) -> HostileServer:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._socket, *self._open):
            with suppress(OSError):  # wakes whoever waits for it
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            raw = b""
            while b"\r\n\r\n" not in raw:
                if not (more := connection.recv(1 << 16)):
                    connection.close()
                    return
                raw += more
            first, *lines = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            self.asked += 1
            sent = self.reply(method, path, {a.lower(): b for a, _, b in (line.partition(": ") for line in lines)})
            if sent is None:
                return
            for part in [sent] if isinstance(sent, bytes) else sent:
                connection.sendall(part)
            connection.close()
        except OSError:
            connection.close()


def answer(body: bytes = b"", status: str = "200 OK", **headers: Any) -> bytes:
    """An answer with these headers, `_` for `-`; the connection closes after it."""
    lines = {"Content-Length": len(body), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
