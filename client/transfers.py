"""What takes longer than one answer: waiting for an end, a stream of events, a file. Each goes on where it was cut off."""

import hashlib
import io
import os
import re
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx2

from client.answers import Event, event_of
from client.errors import Corrupt, Unreachable
from client.wire import PATIENCE_S, Call, Caller, Deadline, backoff_s

_HELD_S = 20  # how long the server is asked to wait for a change
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0  # between two looks at what changes all the time
_SILENCE_S = 40.0  # a stream says something every 15 s; after so long it is dead
_PROBED_S = 10.0  # with a time limit it is asked for anew before that, to look at the clock
_MADE_S = 120.0  # a file may be made first, and others before it
_SHA256 = re.compile(r'"([0-9a-f]{64})"')


async def ended(caller: Caller, path: str, timeout_s: float | None, *, what: str) -> Any:
    """A job, sweep or range test, once it has ended. Raises WaitTimeout."""
    deadline, etag, pause_s = Deadline(timeout_s, what), "", _FIRST_PAUSE_S
    may_hold = True
    while True:
        hold_s = int(deadline.left_s(_HELD_S)) if etag and may_hold else 0
        headers = ({"If-None-Match": etag} if etag else {}) | ({"Prefer": f"wait={hold_s}"} if hold_s else {})
        response = await _answer(caller, _look(path, headers, hold_s, caller, deadline), deadline)
        if response.status_code == 200:
            found, etag = response.json(), response.headers.get("etag", "")
            if found["terminal"]:
                return found
        may_hold = may_hold and response.status_code != 429  # the server holds no more answers
        await caller.wire.sleep(deadline.left_s(pause_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _look(path: str, headers: Mapping[str, str], hold_s: float, caller: Caller, deadline: Deadline) -> Call:
    """Who waits for an end waits for the server to be back, too."""
    return Call(
        method="GET",
        path=path,
        headers=headers,
        read_s=_SILENCE_S if hold_s else None,
        expected=(429,) if hold_s else (),
        patience_s=PATIENCE_S if caller.retries else 0.0,
        until=deadline.at,
    )


async def _answer(caller: Caller, call: Call, deadline: Deadline) -> httpx2.Response:
    try:
        return await caller.answer(call)
    except Unreachable:
        deadline.left_s(1)  # raises WaitTimeout when that is why
        raise


# --- events ------------------------------------------------------------------------------------------------------------


async def events(
    caller: Caller, path: str, params: Mapping[str, Any], timeout_s: float | None, *, what: str
) -> AsyncGenerator[Event, None]:
    """Each event once, over however many connections, until all has ended. Raises WaitTimeout, Unreachable."""
    deadline, place = Deadline(timeout_s, what), _Place()
    while True:
        try:
            async with caller.opened(_asked_for(path, params, place, caller, deadline)) as response:
                place.was_open = True
                if response.status_code == 204:
                    return
                async for sent in caller.wire.events(response):
                    if sent.event == "end":
                        return
                    if event := place.passed(sent):
                        yield event
                    deadline.left_s(1)
            error: httpx2.TransportError = httpx2.RemoteProtocolError("the stream ended in its middle")
        except Unreachable:
            deadline.left_s(1)  # raises WaitTimeout when that is why
            raise
        except httpx2.TransportError as cut:
            error = cut
        if deadline.at is not None and isinstance(error, httpx2.ReadTimeout):
            continue  # nothing was wrong: it was time to look at the clock
        place.cuts += 1
        if place.cuts > caller.retries:
            raise caller.unreachable(error) from error
        await caller.wire.sleep(deadline.left_s(backoff_s(place.cuts - 1)))


@dataclass
class _Place:
    """How far a stream has come, and how often it was cut off since its last event."""

    last_id: str = ""
    cuts: int = 0
    was_open: bool = False

    def passed(self, sent: httpx2.ServerSentEvent) -> Event | None:
        if sent.id:
            self.last_id, self.cuts = sent.id, 0
        data = sent.json() if sent.data else None
        return event_of(sent.event, data) if isinstance(data, dict) else None


def _asked_for(path: str, params: Mapping[str, Any], place: _Place, caller: Caller, deadline: Deadline) -> Call:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": place.last_id} if place.last_id else {})
    return Call(
        method="GET",
        path=path,
        params=params,
        headers=headers,
        read_s=_SILENCE_S if deadline.at is None else deadline.left_s(_PROBED_S),
        patience_s=PATIENCE_S if place.was_open and caller.retries else 0.0,
        until=deadline.at,
    )


# --- files -------------------------------------------------------------------------------------------------------------


async def content(caller: Caller, path: str, params: Mapping[str, Any]) -> bytes:
    """The bytes of a file, verified. Raises as `file` does."""
    sink = io.BytesIO()
    await _fetch(caller, path, params, sink)
    return sink.getvalue()


async def file(caller: Caller, path: str, params: Mapping[str, Any], to: Path) -> Path:
    """Write a file, whole or not at all; into the folder `to`, by the name that the server gives, or to just there.

    Raises ApiError, Unreachable, Corrupt, OSError.
    """
    folder = to if to.is_dir() else to.parent
    part = folder / f".{uuid.uuid4().hex}.part"
    try:
        with part.open("xb") as sink:
            name = await _fetch(caller, path, params, sink)
            sink.flush()
            os.fsync(sink.fileno())
        return part.replace(to / name if to.is_dir() else to)
    finally:
        part.unlink(missing_ok=True)


async def _fetch(caller: Caller, path: str, params: Mapping[str, Any], sink: BinaryIO) -> str:
    """Fill a file, from where it was cut off if it was, and compare its digest. Returns the name that the server gives it."""
    digest, etag, cuts, furthest = hashlib.sha256(), "", 0, 0
    while True:
        resumed = {"Range": f"bytes={sink.tell()}-", "If-Range": etag} if etag and sink.tell() else {}
        headers = {"Accept-Encoding": "identity"} | resumed
        async with caller.opened(
            Call(method="GET", path=path, params=params, headers=headers, read_s=max(_MADE_S, caller.timeout_s))
        ) as response:
            if response.status_code != 206:
                sink.seek(0)
                sink.truncate()
                digest = hashlib.sha256()
            etag = response.headers.get("etag", "")
            try:
                async for chunk in caller.wire.chunks(response):
                    sink.write(chunk)
                    digest.update(chunk)
                    cuts, furthest = (0 if sink.tell() > furthest else cuts), max(sink.tell(), furthest)
                break
            except httpx2.TransportError as error:
                cuts += 1
                if cuts > caller.retries:
                    raise caller.unreachable(error) from error
        await caller.wire.sleep(backoff_s(cuts - 1))
    if (named := _SHA256.fullmatch(etag)) and named[1] != digest.hexdigest():
        raise Corrupt(f"the file has the digest {digest.hexdigest()}, and the server names {named[1]}")
    return _name_of(response)


def _name_of(response: httpx2.Response) -> str:
    """The name in `Content-Disposition`, of its own folder only."""
    found = re.search(r'filename="([^"]+)"', response.headers.get("content-disposition", ""))
    return Path(found[1]).name if found else Path(response.url.path).name
