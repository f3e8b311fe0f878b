"""Calls, and how they reach the server: what is asked again, when, and how long an answer may take. Knows no job.

All of the client is written once, as coroutines over a `Wire`. There are two: one waits in an event loop, one blocks.
Coroutines over the blocking one never give up control, so that `now` and `each` can run them to their end without any loop.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx2

from client.errors import ClientError, Unreachable, WaitTimeout, error_of

T = TypeVar("T")

PATIENCE_S = 60.0  # for a server that was there before: it may be starting anew
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_LONGEST_RETRY_AFTER_S = 60.0  # who is to come back later than that is told so
_LEAST_S = 1.0  # that an answer is given, at the end of a time limit
_LARGEST_EVENT = 16 << 20  # bytes

_UNDONE = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)  # the request never reached a server
_REFUSED = (408, 429)  # nor was it carried out
_AGAIN = (*_REFUSED, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `repeatable`: having it carried out twice does no harm, so it may be sent again when its answer is lost."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read_s: float | None = None  # how long the server may be silent; None: as long as in any call
    repeatable: bool = True
    expected: tuple[int, ...] = ()  # statuses of errors that are answers here
    patience_s: float = 0.0  # for so long it is asked again, however often that is
    until: float | None = None  # on the monotonic clock: when there is no time for it any more


class Deadline:
    """The end of a time that somebody gave; `None` never ends."""

    def __init__(self, timeout_s: float | None, what: str) -> None:
        self._timeout_s, self._what = timeout_s, what
        self.at = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self, most: float) -> float:
        """Seconds to go, at most so many. Raises WaitTimeout when there are none."""
        left = most if self.at is None else self.at - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"{self._what} did not end within {self._timeout_s:g} s; it goes on")
        return min(left, most)


class Wire(Protocol):
    """The part of the client that does something: it sends, reads, waits."""

    def request(self, call: Call) -> httpx2.Request: ...
    async def send(self, request: httpx2.Request) -> httpx2.Response: ...
    async def read(self, response: httpx2.Response) -> None: ...
    def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]: ...
    def events(self, response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]: ...
    async def close(self, response: httpx2.Response) -> None: ...
    async def sleep(self, seconds: float) -> None: ...
    async def end(self) -> None: ...


class Caller:
    """Makes calls over a wire, again when that may help."""

    def __init__(self, wire: Wire, *, url: str, retries: int, timeout_s: float) -> None:
        self.wire, self.retries, self.timeout_s, self._url = wire, retries, timeout_s, url

    async def answer(self, call: Call) -> httpx2.Response:
        """The answer, read. Raises ApiError, Unreachable."""
        return await self._sent(call, whole=True)

    async def json(self, call: Call) -> Any:
        """What the answer says. Raises ApiError, Unreachable, and ClientError for what no server of ours says."""
        response = await self.answer(call)
        try:
            return response.json()
        except ValueError:
            kind = response.headers.get("content-type", "nothing")
            raise ClientError(f"{self._url} is no Descent server: it answered {kind}, and no JSON") from None

    @asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[httpx2.Response]:
        """The answer, to be read within the block. Raises ApiError, Unreachable."""
        response = await self._sent(call, whole=False)
        try:
            yield response
        finally:
            await self.wire.close(response)

    async def _sent(self, call: Call, *, whole: bool) -> httpx2.Response:
        began, was_lost = time.monotonic(), False
        for attempt in itertools.count():
            at = time.monotonic()
            is_late = call.until is not None and at >= call.until
            is_last = is_late or (attempt >= self.retries and at - began >= call.patience_s)
            try:
                response = await self._once(call, whole=whole)
            except httpx2.TransportError as error:
                if is_last or not (call.repeatable or isinstance(error, _UNDONE)):
                    raise self.unreachable(error) from error
                was_lost, pause_s = not isinstance(error, _UNDONE), backoff_s(attempt)
            else:
                was_deleted = was_lost and call.method == "DELETE" and response.status_code == 404  # by the lost call
                if not response.is_error or response.status_code in call.expected or was_deleted:
                    return response
                pause_s = self._pause_s(call, response, attempt, is_last=is_last)
            await self.wire.sleep(pause_s)
        raise AssertionError("there is no last attempt")

    async def _once(self, call: Call, *, whole: bool) -> httpx2.Response:
        """An answer; read if it is wanted whole, or is an error."""
        response = await self.wire.send(self.wire.request(call))
        try:
            if whole or response.is_error:
                await self.wire.read(response)
        except BaseException:
            await self.wire.close(response)
            raise
        return response

    def _pause_s(self, call: Call, response: httpx2.Response, attempt: int, *, is_last: bool) -> float:
        """How long to wait before a call that was refused is made again. Raises what the answer says when it is not."""
        error = error_of(response)
        error.retry_after_s = retry_after_s(response)
        pause_s = backoff_s(attempt) if error.retry_after_s is None else error.retry_after_s
        may = response.status_code in (_AGAIN if call.repeatable else _REFUSED)
        if is_last or not may or pause_s > _LONGEST_RETRY_AFTER_S:
            raise error
        return pause_s

    def unreachable(self, error: httpx2.TransportError) -> Unreachable:
        """The error as it is told: what happened, and what can be done."""
        words = str(error) or type(error).__name__
        if isinstance(error, _UNDONE):
            advice = "is it running (`descent up`)? DESCENT_URL says where it is"
            return Unreachable(f"cannot reach the server at {self._url} ({words}): {advice}")
        return Unreachable(f"the server at {self._url} gave no answer ({words})")


def backoff_s(attempt: int) -> float:
    """0.5 s, then twice as long each time, up to 8 s; up to a quarter less, so that clients do not come back all at once."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(attempt, 10), _LONGEST_PAUSE_S) * random.uniform(0.75, 1)


def retry_after_s(response: httpx2.Response) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3); a date is taken by the server's own clock."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - _now_of(response)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _now_of(response: httpx2.Response) -> datetime:
    date = response.headers.get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)


# --- the two wires -----------------------------------------------------------------------------------------------------


def _request(http: httpx2.Client | httpx2.AsyncClient, call: Call) -> httpx2.Request:
    timeout = http.timeout.as_dict() | ({} if call.read_s is None else {"read": call.read_s})
    if call.until is not None:
        left_s = max(call.until - time.monotonic(), _LEAST_S)
        timeout = {kind: left_s if limit_s is None else min(limit_s, left_s) for kind, limit_s in timeout.items()}
    params = {name: value for name, value in call.params.items() if value is not None}
    return http.build_request(
        call.method, call.path, params=params, json=call.json, headers=call.headers, timeout=httpx2.Timeout(**timeout)
    )


class BlockingWire:
    """Every coroutine of it is done when it returns for the first time."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def request(self, call: Call) -> httpx2.Request:
        return _request(self._http, call)

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        return self._http.send(request, stream=True)

    async def read(self, response: httpx2.Response) -> None:
        response.read()

    async def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk

    async def events(self, response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]:
        for event in httpx2.EventSource(response, _LARGEST_EVENT):
            yield event

    async def close(self, response: httpx2.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def end(self) -> None:
        self._http.close()


class AsyncWire:
    """For an event loop."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    def request(self, call: Call) -> httpx2.Request:
        return _request(self._http, call)

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        return await self._http.send(request, stream=True)

    async def read(self, response: httpx2.Response) -> None:
        await response.aread()

    async def chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes():
            yield chunk

    async def events(self, response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]:
        async for event in httpx2.EventSource(response, _LARGEST_EVENT):
            yield event

    async def close(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def end(self) -> None:
        await self._http.aclose()


def now(step: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a blocking wire."""
    try:
        step.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    step.close()
    raise AssertionError("a coroutine over a blocking wire waited for something else")


def each(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an asynchronous generator over a blocking wire. What it holds is let go when the caller stops."""
    try:
        while True:
            try:
                item = now(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        now(items.aclose())
