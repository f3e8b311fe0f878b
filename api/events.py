"""What happens, as it happens: Server-Sent Events of one job or of several, and a job's log as a page.

An event's id is a cursor over all the jobs of its stream, so a client that comes back with `Last-Event-ID` misses nothing and
sees nothing twice. A stream ends with an `end` event when all its jobs have ended; who comes back after that gets a 204, which
tells a browser to stop asking.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.accept import preferred
from api.history import EpochMetrics
from api.problems import documented, headers
from api.state import JobId, State, known, state_of
from api.strict import StrictRoute
from core.errors import FieldProblem, InvalidRequest, NotFound, Unavailable
from core.jobs.artifacts import JOB_ID
from core.jobs.job import Moment, Status, from_ms
from core.jobs.record import to_json
from core.jobs.store import News, RawJob, Seen

router = APIRouter(tags=["events"], route_class=StrictRoute)

MOST_JOBS = 50
_PULSE_S = 0.25
_PULSED = 100  # so many jobs are looked at in that time by all streams; with more it takes longer
_KEEP_ALIVE_S = 15.0
_STREAM = "text/event-stream"
_FORMS = ("application/json", _STREAM)  # of one job's events: the page, unless the stream is wanted more
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One event; `data` is a JSON object in one line.",
    "properties": {
        "id": {
            "type": "string",
            "description": "Send the last one as `Last-Event-ID` to go on behind it. It has a part for each job, in the order "
            "of `jobs`: how many points, epochs and changes of its status were sent (`51.1.3`; `0.0.0` is its beginning). "
            "For a stream of other jobs the parts can be put together anew.",
        },
        "event": {"enum": ["points", "epoch", "status", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}
_EVENTS = {"anyOf": [{"type": "string", "description": "The whole, as it is sent."}, _EVENT]}
_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {_STREAM: {"schema": _EVENTS}}, "description": "The events.", **headers("Vary")},
    204: {"description": "There are no more events."},
}

_NOT_OURS = FieldProblem("header last-event-id", "not an id of this stream's events")

_COUNTS = r"[0-9]{1,9}(\.[0-9]{1,9}){2}"
LastEventId = Annotated[
    str | None,
    Header(
        max_length=2000,
        description="The last event's id that the client has seen.",
        pattern=f"^({_COUNTS}(,{_COUNTS}){{0,{MOST_JOBS - 1}}})?$",
    ),
]


class LogEntry(BaseModel):
    at: Moment | None = Field(description="null for what was restored from files")
    type: Literal["status", "epoch"]
    status: Status | None = None
    worker: str | None = None
    epoch: int | None = Field(None, description="From 0.")
    message: str


class Log(BaseModel):
    job_id: str
    status: Status
    terminal: bool
    events: list[LogEntry]


class StreamQuery(BaseModel):
    jobs: str = Field(
        max_length=2000,
        description=f"Ids of up to {MOST_JOBS} jobs, with commas between them.",
        json_schema_extra={"pattern": f"^{JOB_ID.pattern}(,{JOB_ID.pattern}){{0,{MOST_JOBS - 1}}}$"},
    )


@dataclass(frozen=True)
class Cursor:
    """How much of each job was sent: the number of its loss points, epochs and transitions. `12.1.3,0.0.1` for two jobs."""

    seen: tuple[Seen, ...]

    @classmethod
    def parse(cls, text: str | None, jobs: int) -> "Cursor":
        """Raises InvalidRequest for what is not the cursor of a stream of so many jobs."""
        if not text:
            return cls(tuple(Seen() for _ in range(jobs)))
        parts = [part.split(".") for part in text.split(",")]
        if len(parts) != jobs or not all(len(p) == 3 and all(n.isdecimal() and len(n) < 10 for n in p) for p in parts):
            raise InvalidRequest(_NOT_OURS)
        return cls(tuple(Seen(points=int(a), epochs=int(b), transitions=int(c)) for a, b, c in parts))

    def after(self, index: int, seen: Seen) -> "Cursor":
        return Cursor((*self.seen[:index], seen, *self.seen[index + 1 :]))

    def __str__(self) -> str:
        return ",".join(f"{seen.points}.{seen.epochs}.{seen.transitions}" for seen in self.seen)


@router.get(
    "/jobs/{job_id}/events",
    response_model=Log,
    responses={**_SHOWN, **documented(404, 422, 429, 503)},
    summary="A job's log, or its events as they happen",
)
async def of_job(job_id: JobId, request: Request, response: Response, last_event_id: LastEventId = None) -> Any:
    """The log as a page; with `Accept: text/event-stream`, the stream of the job's events."""
    response.headers["Vary"] = "Accept"
    if preferred(request.headers.get("accept", ""), _FORMS) == _STREAM:
        return await _stream(request, [known(job_id)], last_event_id)
    job = await state_of(request).store.raw(known(job_id))
    if job is None:
        raise NotFound("no such job")
    return _log(job)


@router.get(
    "/events",
    responses={**_SHOWN, **documented(404, 422, 429, 503)},
    response_class=Response,
    summary="The events of several jobs in one stream",
)
async def of_jobs(
    query: Annotated[StreamQuery, Query()], request: Request, last_event_id: LastEventId = None
) -> Response:
    """Each event's data names its job. `points`: new loss points; `epoch`: an epoch's metrics; `status`; and `end`."""
    ids = query.jobs.split(",")
    if len(ids) > MOST_JOBS or len(set(ids)) < len(ids):
        raise InvalidRequest(FieldProblem("?jobs", f"up to {MOST_JOBS} ids, each once"))
    return await _stream(request, [known(job_id) for job_id in ids], last_event_id)


async def _stream(request: Request, jobs: list[str], last_event_id: str | None) -> Response:
    state, cursor = state_of(request), Cursor.parse(last_event_id, len(jobs))
    is_over = bool(last_event_id)
    for job_id, seen in zip(jobs, cursor.seen, strict=True):
        try:
            status, told = await state.store.told(job_id)
        except NotFound:
            if not last_event_id:
                raise
            continue  # it was deleted; the others go on
        if not seen.is_within(told):
            raise InvalidRequest(_NOT_OURS)
        is_over = is_over and status.terminal and seen == told
    if is_over:
        return Response(status_code=204)
    return _Stream(request, state, jobs, cursor)


class _Stream(StreamingResponse):
    """Held from before its first byte until it ended or its client left."""

    def __init__(self, request: Request, state: State, jobs: list[str], cursor: Cursor) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"}
        super().__init__(_text(request, state, jobs, cursor), media_type=_STREAM, headers=headers)
        self._state, self._jobs = state, len(jobs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state.holds.held(self._state.caller.owner, jobs=self._jobs):
            await super().__call__(scope, receive, send)


async def _text(request: Request, state: State, jobs: list[str], cursor: Cursor) -> AsyncIterator[str]:
    """The stream's text, until all jobs have ended, the client leaves, or Redis is away (the client then comes back)."""
    said_at = time.monotonic()
    yield "retry: 2000\n\n"
    while not await request.is_disconnected():
        ended, has_more = 0, False
        for index, job_id in enumerate(jobs):
            try:
                news = await state.store.news(job_id, cursor.seen[index])
            except NotFound:  # it was deleted meanwhile
                ended += 1
                continue
            except Unavailable:
                return
            has_more = has_more or news.has_more
            ended += news.status.terminal and not news.has_more
            for event, data, seen in _events(job_id, cursor.seen[index], news):
                cursor = cursor.after(index, seen)
                said_at = time.monotonic()
                yield f"id: {cursor}\nevent: {event}\ndata: {data}\n\n"
        if ended == len(jobs):
            yield f"id: {cursor}\nevent: end\ndata: {to_json({'jobs': jobs})}\n\n"
            return
        if time.monotonic() - said_at > _KEEP_ALIVE_S:
            said_at = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(0 if has_more else _PULSE_S * max(1, state.holds.watched / _PULSED))


def _events(job_id: str, seen: Seen, news: News) -> Sequence[tuple[str, str, Seen]]:
    """A job's news as events: their name, their data, and what was sent with them.

    What was learnt comes between the beginning of the work and its end, as it does for who watches it live.
    """
    points = [("points", f'"points":[{",".join(news.points)}]', {"points": len(news.points)})] if news.points else []
    epochs = [("epoch", f'"metrics":{EpochMetrics.of(json.loads(text)).model_dump_json()}', {"epochs": 1})
              for text in news.epochs]  # fmt: skip
    words = [Status(json.loads(text)["status"]) for text in news.transitions]
    statuses = [("status", to_json({"status": word, "terminal": word.terminal})[1:-1], {"transitions": 1})
                for word in words]  # fmt: skip
    began = max((place for place, word in enumerate(words, 1) if word is Status.RUNNING), default=0)
    events = []
    for name, facts, more in statuses[:began] + points + epochs + ([] if news.has_more else statuses[began:]):
        seen = seen.plus(**more)
        events.append((name, f'{{"job_id":"{job_id}",{facts}}}', seen))
    return events


def _log(job: RawJob) -> Log:
    entries = []
    for entry in map(json.loads, job.transitions):
        by = f" by {entry['worker']}" if "worker" in entry else ""
        told = f"{entry['status']}{by}"
        facts = {"status": entry["status"], "worker": entry.get("worker")}
        entries.append(LogEntry(at=from_ms(entry["at_ms"]), type="status", message=told, **facts))
    for metrics in map(json.loads, job.epochs):
        told = (
            f"epoch {metrics['epoch']}: validation accuracy {metrics['valid_accuracy']:.2%}, {metrics['seconds']:.1f} s"
        )
        at = from_ms(metrics.get("at_ms"))
        entries.append(LogEntry(at=at, type="epoch", epoch=metrics["epoch"], message=told))
    entries.sort(key=lambda entry: entry.at.timestamp() if entry.at else 0)
    return Log(job_id=job.job_id, status=job.status, terminal=job.status.terminal, events=entries)
