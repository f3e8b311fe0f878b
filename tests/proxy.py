"""A small TCP proxy in front of a server, which does at run time what networks do at their worst."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CHUNK = 1 << 16
_HOST = "127.0.0.1"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Mode(StrEnum):
    PASS = "pass"
    BLACKHOLE = "blackhole"  # bytes vanish in both directions, connections stay open, new ones seem to open
    HALF_OPEN = "half_open"  # the server has lost its connections and their clients do not know; new ones seem to open


class Proxy:
    """Listens on a free port of 127.0.0.1 in a thread of its own, for the length of a `with` block.

    `upstream` is the path of a unix socket, or a host and a port. All methods can be called from any thread.
    """

    def __init__(self, upstream: Path | tuple[str, int]) -> None:
        self._upstream = upstream
        self._mode, self._delay_s = Mode.PASS, 0.0
        self._cut_after, self._cuts_left, self.cuts = 0, 0, 0
        self._flip_after: int | None = None
        self._passing = asyncio.Event()
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        """As redis-py spells it."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def open_connections(self) -> int:
        return len(self._links)

    def set_mode(self, mode: Mode) -> None:
        """Change what happens to bytes. What a partition has touched is reset when it ends, as after a long one."""
        self._do(lambda: self._enter(mode))

    def set_delay(self, seconds: float) -> None:
        """Keep all that passes for so long, in each direction."""
        self._delay_s = seconds

    def cut_after(self, count: int, *, times: int) -> None:
        """Cut the next connections, so many times, with an RST when the client has sent more than `count` bytes."""
        self._cut_after, self._cuts_left = count, times

    def flip_after(self, count: int | None) -> None:
        """Change a bit of what a client sends after so many bytes of a connection, and so in each piece; None: no more."""
        self._flip_after = count

    def reset(self) -> int:
        """Cut all open connections with an RST, once. Returns how many."""
        return self._do(self._reset)

    # --- in the loop's thread ------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(action(), self._loop).result(10)

    async def _open(self) -> None:
        self._passing.set()
        self._server = await asyncio.start_server(self._serve, _HOST, 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._passing.set()
        await self._reset()
        while self._links:  # each ends by itself, now that its sockets are closed
            await asyncio.sleep(0.01)

    async def _enter(self, mode: Mode) -> None:
        self._mode = mode
        if mode is Mode.PASS:
            for link in [link for link in self._links if link.is_lost]:
                link.reset()
            self._passing.set()
            return
        self._passing.clear()
        if mode is Mode.HALF_OPEN:
            for link in self._links:
                link.lose_upstream()

    async def _reset(self) -> int:
        count = len(self._links)
        for link in list(self._links):
            link.reset()
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._mode is not Mode.PASS:
                link.is_lost = True
                await self._pump(link, reader, None)
                return
            try:
                upstream, link.upstream = await self._connect()
            except OSError:  # the server is away: its clients are refused
                link.reset()
                return
            await asyncio.gather(self._pump(link, reader, link.upstream), self._pump(link, upstream, writer))
        finally:
            link.close()
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(*self._upstream)

    async def _pump(self, link: "_Link", source: asyncio.StreamReader, sink: asyncio.StreamWriter | None) -> None:
        """Carry bytes one way until they end. During a partition they vanish, and so does the news of their end."""
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if self._mode is Mode.PASS and sink and not link.is_lost:
                    if sink is link.upstream and self._is_too_much(link, chunk):
                        sink.write(chunk[: len(chunk) // 2])
                        await sink.drain()
                        link.reset()
                        return
                    if sink is link.upstream and self._flip_after is not None and link.sent > self._flip_after:
                        chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
                    sink.write(chunk)
                    await sink.drain()
                else:
                    link.is_lost = True
        await self._passing.wait()
        link.close()

    def _is_too_much(self, link: "_Link", chunk: bytes) -> bool:
        link.sent += len(chunk)
        is_cut = self._cuts_left > 0 and link.sent > self._cut_after
        self._cuts_left -= is_cut
        self.cuts += is_cut
        return is_cut


class _Link:
    """A client's connection and, when there is one, the server's. Lost: bytes of it vanished, so it cannot go on."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.upstream: asyncio.StreamWriter | None = None
        self.is_lost = False
        self.sent = 0  # bytes by the client

    def close(self) -> None:
        for writer in (self.client, self.upstream):
            if writer:
                writer.close()

    def reset(self) -> None:
        """Both sides get an RST (a unix socket has none and is closed)."""
        for writer in (self.client, self.upstream):
            if writer:
                _abort(writer)

    def lose_upstream(self) -> None:
        self.is_lost = True
        if self.upstream:
            _abort(self.upstream)


def _abort(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
