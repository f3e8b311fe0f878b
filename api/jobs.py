"""Jobs: create, list, look at, cancel, pause, resume, delete."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.conditional import CONDITIONAL, Prefer, conditional, etag_of, is_known, json_answer, waiting_time
from api.problems import documented, headers
from api.state import JobId, State, known, state_of
from api.strict import StrictRoute
from core.catalogue import OPTIMIZERS
from core.errors import Unavailable
from core.jobs import archive, artifacts
from core.jobs.job import Job, JobSummary, Status
from core.spec import JobSpec

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)
log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2  # while a client waits for a change
_LINKED = ("loss", "metrics", "events", "model", "cancel", "pause", "resume")

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]+$", max_length=255, description="A name of yours for this request; a UUID, for example."
    ),
]


class JobAnswer(Job):
    """A job, and where to go from here."""

    links: dict[str, str]


class SummaryAnswer(JobSummary):
    links: dict[str, str]


class JobPage(BaseModel):
    jobs: list[SummaryAnswer]
    next: str | None = Field(description="Pass it as `after` for the next page; null at the end.")


class Preview(BaseModel):
    """What a job would be; nothing is stored."""

    spec: JobSpec
    spec_hash: str
    total_steps: int
    points: int = Field(description="Loss points it would store.")


class CreateQuery(BaseModel):
    validate_only: bool = Field(False, description="Check the spec and say what it comes to; create nothing.")


class ListQuery(BaseModel):
    after: str | None = Field(None, pattern=f"^{artifacts.JOB_ID.pattern}$", description="`next` of the page before.")
    limit: int = Field(20, ge=1, le=100)
    status: Status | None = None
    optimizer: Literal[OPTIMIZERS] | None = None  # type: ignore[valid-type]  # a tuple of literals is one
    tag: str | None = Field(None, max_length=300, description="`key` or `key:value`.")
    sweep: str | None = Field(None, pattern=f"^{artifacts.SWEEP_ID.pattern}$", description="A sweep's id.")


class ResumeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    epochs: int | None = Field(None, ge=1, le=1000, description="How many to add to a job that has ended.")


@router.post(
    "",
    status_code=202,
    response_model=JobAnswer,
    responses={
        200: {"model": Preview, "description": "It is valid; nothing was created."},
        202: headers("Location", "Retry-After", sometimes=("Idempotent-Replayed",)),
        **documented(400, 410, 413, 415, 422, 503),
    },
    summary="Create a job",
)
async def create(
    spec: JobSpec,
    query: Annotated[CreateQuery, Query()],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store a job and queue it. Once this answers 202 the job will run, whatever dies in between.

    With an `Idempotency-Key` the same request can be sent again, for a day, and stays one job.
    """
    if query.validate_only:
        return previewed(spec)
    job = await submitted(request, response, spec, idempotency_key)
    response.headers["Location"] = f"/jobs/{job.id}"
    return json_answer(_answer(job).model_dump_json(), status=202, headers=response.headers)


def previewed(spec: JobSpec) -> Response:
    preview = Preview(spec=spec, spec_hash=spec.hash(), total_steps=spec.total_steps, points=spec.points)
    return json_answer(preview.model_dump_json())


async def submitted(request: Request, response: Response, spec: JobSpec, idempotency_key: str | None) -> Job:
    """The job of a spec, stored and queued; the one made before, when the key comes again."""
    state = state_of(request)
    job, is_new = await state.store.submit_once(spec, idempotency_key, doorbell=state.doorbell)
    if is_new:
        log.info("job created", extra={"job_id": job.id, "optimizer": spec.optimizer.name})
    else:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Retry-After"] = "1"
    return job


async def _ring(state: State, job_id: str) -> None:
    """Send the message. If that fails the job is safe all the same: the reconciler rings for it in some seconds."""
    try:
        await state.store.ring(job_id, doorbell=state.doorbell)
    except Unavailable as error:
        log.warning("message not sent; the reconciler will", extra={"job_id": job_id, "reason": str(error)})


@router.get("", response_model=JobPage, responses=documented(422, 503), summary="List jobs, newest first")
async def page(query: Annotated[ListQuery, Query()], request: Request) -> Response:
    tag = tuple(query.tag.split(":", 1)) if query.tag else None
    jobs, cursor = await state_of(request).store.page(
        after=query.after,
        limit=query.limit,
        status=query.status,
        optimizer=query.optimizer,
        sweep=query.sweep,
        tag=(tag[0], tag[1] if len(tag) > 1 else None) if tag else None,
    )
    answers = [SummaryAnswer.model_construct(**dict(job), links=_links(job.id)) for job in jobs]
    return json_answer(JobPage.model_construct(jobs=answers, next=cursor).model_dump_json())


@router.get(
    "/{job_id}",
    response_model=JobAnswer,
    responses={
        200: headers("ETag", sometimes=("Preference-Applied",)),
        **CONDITIONAL,
        **documented(404, 422, 429, 503),
    },
    summary="One job",
)
async def get(job_id: JobId, request: Request, prefer: Prefer = None) -> Response:
    """With `Prefer: wait=N` the answer waits up to N seconds for something to change.

    Changed from what `If-None-Match` names, or, without that, from what it is now.
    """

    async def rendered(job: Job) -> str:
        return _answer(job).model_dump_json()

    return await when_changed(request, known(job_id), prefer, rendered)


async def when_changed(
    request: Request, job_id: str, prefer: str | None, rendered: Callable[[Job], Awaitable[str]]
) -> Response:
    """What `rendered` makes of a job, as soon as it is another than the client has, or when the waiting time is over."""
    state = state_of(request)
    store, wait_s = state.store, waiting_time(prefer)
    deadline = time.monotonic() + wait_s
    job = await store.get(job_id)
    text = await rendered(job)
    seen = request.headers.get("if-none-match", "")
    seen = etag_of(text) if seen in ("", "*") else seen
    with state.holds.held(state.caller.owner) if wait_s else nullcontext():
        while is_known(etag_of(text), seen) and time.monotonic() < deadline and not await request.is_disconnected():
            await asyncio.sleep(_LOOK_AGAIN_S)
            if job.status is Status.QUEUED or await store.changed_at(job_id) != job.updated_at:
                job = await store.get(job_id)
                text = await rendered(job)
    answer = conditional(request, text)
    if wait_s:
        answer.headers["Preference-Applied"] = f"wait={wait_s}"
    return answer


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    responses={
        200: {"model": JobAnswer, "description": "Already so."},
        **documented(404, 503),
    },
    summary="Cancel a job",
)
async def cancel(job_id: JobId, request: Request, response: Response) -> JobAnswer:
    """At once when it is queued, within seconds when it runs; a job that has ended is returned as it is."""
    return _asked(response, *await state_of(request).store.cancel(known(job_id)))


@router.post(
    "/{job_id}/pause",
    status_code=202,
    responses={
        200: {"model": JobAnswer, "description": "Already so, or ended."},
        **documented(404, 503),
    },
    summary="Pause a job",
)
async def pause(job_id: JobId, request: Request, response: Response) -> JobAnswer:
    """At once when it is queued, within seconds when it runs: it saves a checkpoint and makes room for the next job."""
    return _asked(response, *await state_of(request).store.pause(known(job_id)))


@router.post(
    "/{job_id}/resume",
    status_code=202,
    responses={
        200: {"model": JobAnswer, "description": "Already so."},
        **documented(400, 404, 409, 413, 415, 422, 503),
    },
    summary="Go on with a job",
)
async def resume(job_id: JobId, request: Request, response: Response, body: ResumeRequest | None = None) -> JobAnswer:
    """A paused, failed or cancelled job goes on from its last checkpoint, as if it had never stopped.

    With `epochs`, a job that has ended is trained for so many more.
    """
    state = state_of(request)
    epochs = body.epochs if body else None
    job, changed = await (state.store.extend(known(job_id), epochs) if epochs else state.store.resume(known(job_id)))
    if changed:
        await _ring(state, job_id)
    return _asked(response, job, changed)


@router.delete("/{job_id}", status_code=204, responses=documented(404, 409, 503), summary="Delete a job that has ended")
async def delete(job_id: JobId, request: Request) -> None:
    """The record, the loss history, the weights and the checkpoints, all of it."""
    state = state_of(request)
    await state.store.delete(known(job_id))
    in_thread = functools.partial(to_thread.run_sync, limiter=state.fetching)
    await archive.remove_job(state.store, state.files, job_id, in_thread=in_thread)
    log.info("job deleted", extra={"job_id": job_id})


def _asked(response: Response, job: Job, changed: bool) -> JobAnswer:
    """The answer to a wish: 202, or 200 when there was nothing to change."""
    if not changed:
        response.status_code = 200
    return _answer(job)


def _answer(job: Job) -> JobAnswer:
    return JobAnswer.model_construct(**dict(job), links=_links(job.id))


def _links(job_id: str) -> dict[str, str]:
    own = f"/jobs/{job_id}"
    return {"self": own} | {name: f"{own}/{name}" for name in _LINKED}
