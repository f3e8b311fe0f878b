"""What a job has told so far: its losses, in several shapes, and the metrics of its epochs."""

import json
import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from api.accept import preferred
from api.conditional import CONDITIONAL, conditional, etag_of, is_known, refuse_another
from api.problems import TEXT, documented, headers
from api.state import JobId, known, state_of
from api.strict import StrictRoute
from core.jobs import artifacts
from core.jobs.job import LossPage, Moment, Status, from_ms
from core.jobs.record import to_json
from core.jobs.store import MAX_PAGE_POINTS, JobStore

router = APIRouter(prefix="/jobs/{job_id}", tags=["history"], route_class=StrictRoute)

Format = Literal["json", "csv", "ndjson"]
_MEDIA: dict[Format, str] = {"json": "application/json", "csv": "text/csv", "ndjson": "application/x-ndjson"}
_FORMATS = {media: format for format, media in _MEDIA.items()}
_COLUMNS = ("step", "epoch", "batch", "loss", "time_s")


class LossPoint(BaseModel):
    """The mean cross-entropy of one batch, before its step."""

    step: int = Field(description="From 0 over the whole job.")
    epoch: int
    batch: int = Field(description="From 0 within its epoch.")
    loss: float | None = Field(description="null when it is not finite; `nonfinite` then says which")
    nonfinite: Literal["nan", "inf", "-inf"] | None = None
    time_s: float = Field(description="Seconds of training so far.")


class LossColumns(BaseModel):
    """The same, a list for each field."""

    step: list[int]
    epoch: list[int]
    batch: list[int]
    loss: list[float | None]
    nonfinite: list[str | None] = Field(description="Which a loss that is null was.")
    time_s: list[float]


class Sampling(BaseModel):
    """How points were left out: of each of `buckets` stretches the least and the largest loss stay, and the ends."""

    method: Literal["min-max"]
    of: int = Field(description="Points there were.")
    buckets: int


class LossHistory(BaseModel):
    job_id: str
    status: Status
    terminal: bool
    count: int = Field(description="Points stored so far, in all.")
    points: list[LossPoint] | LossColumns
    next: str = Field(description="Opaque cursor: pass it as `after` and nothing is missed or seen twice.")
    has_more: bool
    sampling: Sampling | None = Field(None, description="null: these are all the points there are.")
    summary: dict[str, float | None]


class EpochMetrics(BaseModel):
    epoch: int = Field(description="From 0.")
    train_loss: float | None
    valid_loss: float | None
    valid_accuracy: float
    learning_rate: float = Field(description="Of the epoch's last step.")
    images_per_s: float = Field(description="Of training alone, without the evaluation.")
    seconds: float
    at: Moment | None = Field(None, description="When it ended.")

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "EpochMetrics":
        """What the database and the files hold of an epoch, with its time as clients see times."""
        return cls(**stored, at=from_ms(stored.get("at_ms")))


class Metrics(BaseModel):
    job_id: str
    status: Status
    terminal: bool
    epochs: list[EpochMetrics]


class CheckpointInfo(BaseModel):
    step: int = Field(description="Steps done.")
    epoch: int = Field(description="The epoch it goes on in, from 0.")
    metrics: EpochMetrics | None = Field(description="Of the epoch that ended with it, if one did.")
    size_bytes: int
    sha256: str


class Checkpoints(BaseModel):
    job_id: str
    checkpoints: list[CheckpointInfo]


class LossQuery(BaseModel):
    after: str | None = Field(None, pattern=r"^[0-9]{1,9}$", description="`next` of the answer before.")
    limit: int = Field(MAX_PAGE_POINTS, ge=1, le=MAX_PAGE_POINTS)
    from_step: int | None = Field(None, ge=0, le=10**9)
    to_step: int | None = Field(None, ge=0, le=10**9)
    max_points: int | None = Field(
        None, ge=4, le=MAX_PAGE_POINTS, description="Sample all points behind `after` down to about so many."
    )
    format: Format | None = Field(None, description="Left out: what `Accept` wants most, JSON if all is alike.")
    shape: Literal["points", "columns"] = Field("points", description="Of the JSON format.")

    @model_validator(mode="after")
    def _fits(self) -> "LossQuery":
        if self.max_points and "limit" in self.model_fields_set:
            raise PydanticCustomError("max_points", "give limit or max_points, not both", {"field": "max_points"})
        return self


@router.get(
    "/loss",
    response_model=LossHistory,
    responses={
        200: {
            "content": {"text/csv": TEXT, "application/x-ndjson": TEXT},
            "description": "The points, in order.",
            **headers("ETag", "Vary", sometimes=("X-Next", "X-Has-More", "X-Terminal")),
        },
        **CONDITIONAL,
        **documented(404, 422, 503),
    },
    summary="The loss history, live and afterwards",
)
async def loss(job_id: JobId, query: Annotated[LossQuery, Query()], request: Request) -> Response:
    """In order, each step once.

    Poll with `after` set to the last answer's `next`, until `terminal` is true and `has_more` is false. CSV and NDJSON carry
    the points alone; the rest is in the headers `X-Next`, `X-Has-More` and `X-Terminal`.
    """
    store, seen = state_of(request).store, request.headers.get("if-none-match", "")
    query.format = _format(query.format, request.headers.get("accept", ""))
    if seen:
        status, told = await store.told(known(job_id))
        headers = _headers(status, told.points, query)
        refuse_another(request, headers["ETag"])
        if is_known(headers["ETag"], seen):
            return Response(status_code=304, headers=headers)
    page = await _page(store, known(job_id), query)
    headers = _headers(page.status, page.count, query)
    refuse_another(request, headers["ETag"])
    if query.format != "json":
        facts = {"X-Next": page.next, "X-Has-More": page.has_more, "X-Terminal": page.status.terminal}
        headers |= {name: str(value).lower() for name, value in facts.items()}
    decodes = query.format == "csv" or query.shape == "columns" or query.max_points
    text, media_type = (
        await run_in_threadpool(_rendered, job_id, page, query) if decodes else _rendered(job_id, page, query)
    )
    return Response(text, media_type=media_type, headers=headers)


def _format(wanted: Format | None, accept: str) -> Format:
    """The format that the query names, or else the one that is accepted before others. Raises 406 where they contradict."""
    offered = {_MEDIA[wanted]: wanted} if wanted else _FORMATS
    media = preferred(accept, offered)
    if media is None:
        raise HTTPException(406, f"this format is {', '.join(offered)}, which Accept leaves out")
    return offered[media]


def _headers(status: Status, count: int, query: LossQuery) -> dict[str, str]:
    """A history only grows, so that its length and the status name an answer."""
    return {"ETag": etag_of(f"{status} {count} {query!r}"), "Cache-Control": "no-cache", "Vary": "Accept"}


async def _page(store: JobStore, job_id: str, query: LossQuery) -> LossPage:
    """The points that were asked for: a page, or all behind the cursor when they are to be sampled."""
    first, last = query.from_step, query.to_step
    page = await store.loss(job_id, after=query.after, limit=query.limit, from_step=first, to_step=last)
    while query.max_points and page.has_more:
        more = await store.loss(job_id, after=page.next, from_step=first, to_step=last)
        page = replace(more, points=page.points + more.points)
    return page


def _rendered(job_id: str, page: LossPage, query: LossQuery) -> tuple[str, str]:
    """The text of an answer and its media type. Points stay the texts they are stored as, wherever they can."""
    points, sampling = page.points, None
    if query.max_points and len(points) > query.max_points:
        points, sampling = sampled(points, query.max_points)
    match query.format, query.shape:
        case "ndjson", _:
            return "".join(f"{point}\n" for point in points), _MEDIA["ndjson"]
        case "csv", _:
            rows = [",".join(_COLUMNS), *map(_csv_row, points)]
            return "\n".join(rows) + "\n", _MEDIA["csv"]
        case _, "columns":
            decoded = [json.loads(point) for point in points]
            columns = (*_COLUMNS[:-1], "nonfinite", _COLUMNS[-1])
            body = to_json({name: [point.get(name) for point in decoded] for name in columns})
        case _:
            body = f"[{','.join(points)}]"
    head = {"job_id": job_id, "status": page.status, "terminal": page.status.terminal, "count": page.count}
    tail = {"next": page.next, "has_more": page.has_more, "sampling": sampling, "summary": page.summary}
    return f'{to_json(head)[:-1]},"points":{body},{to_json(tail)[1:]}', _MEDIA["json"]


def _csv_row(point: str) -> str:
    fields = json.loads(point)
    loss = fields.get("nonfinite") or repr(fields["loss"])
    return ",".join(loss if name == "loss" else repr(fields[name]) for name in _COLUMNS)


def sampled(points: list[str], most: int) -> tuple[list[str], dict[str, Any]]:
    """At most `most` of the points, and how they were chosen.

    The first and the last stay, and of each stretch between them the least and the largest loss, so that no spike is lost. A
    loss that is not finite counts as the largest.
    """
    buckets, inner = (most - 2) // 2, len(points) - 2
    heights = [math.inf if loss is None else loss for loss in (json.loads(point)["loss"] for point in points)]
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        stretch = range(1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets)
        kept |= {min(stretch, key=heights.__getitem__), max(stretch, key=heights.__getitem__)}
    return [points[index] for index in sorted(kept)], {"method": "min-max", "of": len(points), "buckets": buckets}


@router.get("/checkpoints", responses=documented(404, 503), summary="The checkpoints that are kept")
async def checkpoints(job_id: JobId, request: Request) -> Checkpoints:
    """Where the job would go on, should it be stopped, killed or extended: the best first. At most two are kept."""
    state = state_of(request)
    spec = await state.store.spec(known(job_id))
    epochs = {metrics["epoch"]: metrics for metrics in await state.store.epochs(job_id)}
    kept = await to_thread.run_sync(artifacts.kept_checkpoints, state.files, job_id, limiter=state.fetching)
    found = []
    for file in kept:
        epoch, batch = divmod(file["step"], spec.steps_per_epoch)
        at_end = epochs.get(epoch - 1) if batch == 0 else None
        found.append(CheckpointInfo(**file, epoch=epoch, metrics=EpochMetrics.of(at_end) if at_end else None))
    return Checkpoints(job_id=job_id, checkpoints=found)


@router.get(
    "/metrics",
    response_model=Metrics,
    responses={200: headers("ETag"), **CONDITIONAL, **documented(404, 503)},
    summary="Metrics of each epoch that has ended",
)
async def metrics(job_id: JobId, request: Request) -> Response:
    """Loss and accuracy on the validation images, the mean training loss, the learning rate, the speed."""
    store = state_of(request).store
    status = await store.status(known(job_id))  # before the epochs: when it is terminal, they are all there are
    epochs = await store.epochs(job_id)
    body = Metrics(job_id=job_id, status=status, terminal=status.terminal, epochs=[EpochMetrics.of(e) for e in epochs])
    return conditional(request, body.model_dump_json())
