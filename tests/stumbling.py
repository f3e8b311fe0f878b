"""A small HTTP server in front of another, which stumbles as networks and proxies do: over the next requests, as it is told."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import httpx2

_OWN = {"host", "connection", "transfer-encoding", "keep-alive"}  # of one connection


@dataclass(frozen=True, kw_only=True)
class Stumble:
    """What becomes of one request.

    With a `status` it is refused. Else it is passed on, and its answer comes whole, or is lost, or is cut off after so many
    bytes of its body, or has a bit of its first byte flipped.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_lost: bool = False
    cut_after: int | None = None
    is_flipped: bool = False


SMOOTH = Stumble()
LOST = Stumble(is_lost=True)


@dataclass(frozen=True)
class Seen:
    """A request, as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    at: float


class Stumbling:
    """Listens on a free port of 127.0.0.1 for the length of a `with` block; `next` is what it does with the next requests."""

    def __init__(self, upstream: str) -> None:
        self.next: deque[Stumble] = deque()
        self.seen: list[Seen] = []
        handler = type("Handler", (_Handler,), {"front": self, "upstream": upstream})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def sees(self, *stumbles: Stumble) -> None:
        """Forget what was seen; the next requests meet with these."""
        self.seen.clear()
        self.next = deque(stumbles)

    @property
    def asked(self) -> list[str]:
        """Methods and paths so far."""
        return [f"{seen.method} {seen.path}" for seen in self.seen]


class _Handler(BaseHTTPRequestHandler):
    front: Stumbling
    upstream: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: it is no news that it stumbles."""

    def _meet(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.front.seen.append(Seen(self.command, self.path, headers, time.monotonic()))
        stumble = self.front.next.popleft() if self.front.next else SMOOTH
        if stumble.status is not None:
            self._answer(stumble.status, {**stumble.headers, "Content-Length": str(len(stumble.body))})
            self.wfile.write(stumble.body)
            return
        sent = {name: value for name, value in headers.items() if name not in _OWN}
        with (
            suppress(OSError, httpx2.TransportError),  # one side has left
            httpx2.Client(trust_env=False, timeout=60) as http,
            http.stream(self.command, self.upstream + self.path, headers=sent, content=body) as answer,
        ):
            self._pass(answer, stumble)

    do_GET = do_POST = do_PUT = do_DELETE = _meet

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _pass(self, answer: httpx2.Response, stumble: Stumble) -> None:
        if stumble.is_lost:
            answer.read()
            self.close_connection = True
            return
        headers = {name: value for name, value in answer.headers.items() if name not in _OWN}
        is_long = "content-length" in headers or answer.status_code in (204, 304)
        self._answer(answer.status_code, headers if is_long else headers | {"Transfer-Encoding": "chunked"})
        left = stumble.cut_after
        for chunk in answer.iter_raw():
            piece = bytes([chunk[0] ^ 1]) + chunk[1:] if stumble.is_flipped else chunk
            piece = piece if left is None else piece[:left]
            self.wfile.write(piece if is_long else b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b"")
            self.wfile.flush()
            if left is not None and (left := left - len(piece)) <= 0:
                self.close_connection = True
                return
        if not is_long:
            self.wfile.write(b"0\r\n\r\n")
