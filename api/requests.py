"""What every request gets before anything else: an id, the headers of all answers, its time taken, a line in the log."""

import logging
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from api.guard import kind_of
from api.headers import complete
from api.metrics import Metrics
from core import origin, tracing

_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

log = logging.getLogger(__name__)


class Requests:
    """Outermost of our own: whatever is done or logged for a request, refusals and bugs included, has its id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        # Never taken back: the task is the request's own, and what renders a bug or logs it stands further out.
        origin.begin(origin.Origin(request_id=request_id, traceparent=tracing.traceparent()))
        began, status = time.perf_counter(), 0

        def answered(with_status: int) -> None:
            nonlocal status
            status, seconds = with_status, time.perf_counter() - began
            self._metrics.answered(scope, status, seconds)
            _log_answer(scope, status, seconds)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                complete(message["headers"], scope["path"])
                answered(message["status"])
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                if not status:  # nobody foresaw this: whoever renders it stands further out
                    answered(500)


def id_of(scope: Scope) -> str:
    """The caller's own `X-Request-Id`, when it sent one that can stand in headers, logs and records; else a new one."""
    sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(sent) == 1 and _ID.fullmatch(sent[0]):
        return str(sent[0], "ascii")
    return uuid7().hex


def _log_answer(scope: Scope, status: int, seconds: float) -> None:
    level = logging.INFO if status >= 400 or kind_of(scope["method"], scope["path"]) == "submit" else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    caller = scope["state"].get("caller")
    log.log(
        level,
        "request",
        extra={
            "method": scope["method"],
            "route": getattr(scope.get("route"), "path", None),
            "status": status,
            "owner": caller and caller.owner,
            "ms": round(seconds * 1000, 1),
        },
    )
