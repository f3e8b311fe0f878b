"""HTTP below the application: heads without end and what is no HTTP at all are refused as problems too."""

import asyncio
import socket
from http import HTTPStatus
from typing import Any

from uuid_utils import uuid7
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import problem_text
from api.strict import SILENCE_S

MAX_HEAD_BYTES = 64 << 10
_MOST_GATHERED = 64 << 10
_LINGER_S = 2  # a client that is cut off while it sends would not see the answer


class Gathered(asyncio.Transport):
    """A transport that sends what is written within one turn of the loop at once: an answer's head and body in one packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._written: list[bytes | bytearray | memoryview] = []
        self._bytes, self._has_ended = 0, False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._has_ended:
            return  # an answer that nobody will be sent: what came after it was no HTTP
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)
        self._bytes += len(data)
        if self._bytes > _MOST_GATHERED:
            self._send()  # so that who sends more than is read is told to wait

    def write_eof(self) -> None:
        self._send()
        self._has_ended = True
        self._transport.write_eof()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        written, self._written, self._bytes = self._written, [], 0
        if written:
            self._transport.write(b"".join(written))


class Protocol(HttpToolsProtocol):
    """Uvicorn's, which waits for a request's head for as long as it takes and keeps as much of it as there is."""

    _head_bytes = 0
    _is_refused = False
    _limit: asyncio.TimerHandle | None = None  # of waiting for the head, or for the client to leave

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathered(transport, self.loop))
        # asyncio does so only where the listening socket knows its protocol; without it answers may wait 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self._limit is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "headers-too-large", f"a request's head has at most {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_whole()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed-http", "this is not an HTTP/1.1 request")

    def _await_head(self) -> None:
        self._head_is_whole()
        self._limit = self.loop.call_later(
            SILENCE_S, self._refuse, 408, "request-timeout", f"no whole head within {SILENCE_S} s"
        )

    def _head_is_whole(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit, self._head_bytes = None, 0

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer, where no other answer is under way, and let go of the connection."""
        self._head_is_whole()
        self._is_refused = True
        if self.pipeline or (self.cycle and self.cycle.response_started and not self.cycle.response_complete):
            self.transport.close()
            return
        title, request_id = HTTPStatus(status).phrase, uuid7().hex
        body = problem_text(status, code, title, detail, instance="", request_id=request_id)
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-Id: {request_id}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body.encode())
        self.transport.write_eof()
        self._limit = self.loop.call_later(_LINGER_S, self.transport.close)
