"""Sweeps: many jobs in one call, and the table of what came of them."""

import logging
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from api.compare import Table, stamps_of, table_of
from api.conditional import CONDITIONAL, etag_of, is_known, json_answer, refuse_another
from api.jobs import CreateQuery, IdempotencyKey
from api.problems import documented, headers
from api.state import State, state_of
from api.strict import StrictRoute
from core.catalogue import LearningRate, Optimizer
from core.errors import NotFound
from core.jobs.artifacts import SWEEP_ID
from core.jobs.job import JobError, JobSummary, Latest, Moment, Progress, Result, Status, StoppedEarly
from core.jobs.record import summary_of
from core.jobs.store import Outline
from core.jobs.sweeps import Standing, Sweep
from core.spec import JobSpec, Seed
from core.sweep import SweepSpec

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=StrictRoute)
log = logging.getLogger(__name__)

SweepId = Annotated[
    str, Path(description="The sweep's id, `sweep_...`.", json_schema_extra={"pattern": f"^{SWEEP_ID.pattern}$"})
]
SweepStatus = Literal["queued", "running", "cancelling", "finished", "cancelled"]


class SweepChoice(BaseModel):
    """What sets a job of a sweep apart from the others."""

    optimizer: Optimizer
    learning_rate: LearningRate
    seed: Seed


class SweepPreview(BaseModel):
    """What a sweep would be; nothing is stored."""

    spec: SweepSpec
    jobs: list[SweepChoice] = Field(description="In the order they would be queued.")
    total_steps: int
    points: int = Field(description="Loss points they would store.")
    seconds: float | None = Field(
        description="About how long it takes on the workers there are, from the speed of the last job that succeeded; "
        "null when there is none. Runs that are stopped early make it shorter."
    )


class SweepJob(SweepChoice):
    job_id: str
    status: Status
    terminal: bool
    progress: Progress
    latest: Latest | None
    result: Result
    error: JobError | None
    stopped_early: StoppedEarly | None


class SweepProgress(BaseModel):
    jobs: int
    ended: int
    fraction: float = Field(description="Of all steps; a job that has ended counts whole.")


class SweepSummary(BaseModel):
    id: str
    status: SweepStatus
    terminal: bool = Field(description="True when all of its jobs have ended.")
    created_at: Moment
    cancelled_at: Moment | None
    name: str | None
    progress: SweepProgress
    counts: dict[Status, int] = Field(description="How many of its jobs are in which status.")
    links: dict[str, str]


class SweepAnswer(SweepSummary):
    spec: SweepSpec
    jobs: list[SweepJob] = Field(description="Those that were not deleted, in the order they were queued.")
    table: Table = Field(description="What came of them so far, as `GET /compare` has it.")


class SweepPage(BaseModel):
    sweeps: list[SweepSummary]
    next: str | None = Field(description="Pass it as `after` for the next page; null at the end.")


class SweepListQuery(BaseModel):
    after: str | None = Field(None, pattern=f"^{SWEEP_ID.pattern}$", description="`next` of the page before.")
    limit: int = Field(20, ge=1, le=100)


def known_sweep(sweep_id: str) -> str:
    """The id, when it looks like one; anything else names no sweep."""
    if not SWEEP_ID.fullmatch(sweep_id):
        raise NotFound("no such sweep")
    return sweep_id


@router.post(
    "",
    status_code=202,
    response_model=SweepAnswer,
    responses={
        200: {"model": SweepPreview, "description": "It is valid; nothing was created."},
        202: headers("Location", "Retry-After", sometimes=("Idempotent-Replayed",)),
        **documented(400, 410, 413, 415, 422, 503),
    },
    summary="Create a sweep",
)
async def create(
    spec: SweepSpec,
    query: Annotated[CreateQuery, Query()],
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Every optimizer with every learning rate and every seed, each a job, all of them or none. `{}` is the lesson.

    `{"strategy": "random", "samples": 20, "learning_rates": {"low": 0.0001, "high": 1}}` draws configurations instead.
    """
    state = state_of(request)
    if query.validate_only:
        return json_answer((await _preview(state, spec)).model_dump_json())
    sweep, is_new = await state.sweeps.submit(spec, idempotency_key, doorbell=state.doorbell)
    if is_new:
        log.info("sweep created", extra={"sweep_id": sweep.id, "jobs": len(sweep.job_ids)})
    answer = json_answer((await _answer(state, sweep)).model_dump_json())
    answer.status_code = 202
    answer.headers["Location"] = f"/sweeps/{sweep.id}"
    answer.headers["Retry-After"] = "1"
    if not is_new:
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


async def _preview(state: State, spec: SweepSpec) -> SweepPreview:
    jobs = spec.jobs()
    last, _ = await state.store.page(limit=1, status=Status.SUCCEEDED)
    speed = last[0].result.images_per_s if last else None
    at_a_time = min(max(await state.store.workers(), 1), spec.max_concurrent or len(jobs), len(jobs))
    images = sum(job.total_steps * job.batch_size for job in jobs)
    return SweepPreview(
        spec=spec,
        jobs=[_choice(job) for job in jobs],
        total_steps=sum(job.total_steps for job in jobs),
        points=sum(job.points for job in jobs),
        seconds=round(images / speed / at_a_time, 1) if speed else None,
    )


@router.get("", responses=documented(422, 503), summary="List sweeps, newest first")
async def page(query: Annotated[SweepListQuery, Query()], request: Request) -> SweepPage:
    state = state_of(request)
    sweeps, cursor = await state.sweeps.page(after=query.after, limit=query.limit)
    found = [_summary(sweep, await state.sweeps.standing(sweep.id)) for sweep in sweeps]
    return SweepPage(sweeps=found, next=cursor)


@router.get(
    "/{sweep_id}",
    response_model=SweepAnswer,
    responses={200: headers("ETag"), **CONDITIONAL, **documented(404, 503)},
    summary="One sweep: its jobs, and the table of what came of them",
)
async def get(sweep_id: SweepId, request: Request) -> Response:
    state = state_of(request)
    sweep = await state.sweeps.get(known_sweep(sweep_id))
    outlines = await state.store.outlines(sweep.job_ids)
    headers = {"ETag": etag_of(f"{sweep.cancelled_at} {stamps_of(outlines)}"), "Cache-Control": "no-cache"}
    refuse_another(request, headers["ETag"])
    if is_known(headers["ETag"], request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return json_answer((await _answered(state, sweep, outlines)).model_dump_json(), headers=headers)


@router.post(
    "/{sweep_id}/cancel",
    status_code=202,
    responses={200: {"model": SweepAnswer, "description": "Already so, or ended."}, **documented(404, 503)},
    summary="Cancel the jobs of a sweep that have not ended",
)
async def cancel(sweep_id: SweepId, request: Request, response: Response) -> SweepAnswer:
    state = state_of(request)
    if not await state.sweeps.cancel(known_sweep(sweep_id)):
        response.status_code = 200
    return await _answer(state, await state.sweeps.get(sweep_id))


@router.delete(
    "/{sweep_id}", status_code=204, responses=documented(404, 409, 503), summary="Delete a sweep that has ended"
)
async def delete(sweep_id: SweepId, request: Request) -> None:
    """With all of its jobs: their records, histories and weights."""
    await state_of(request).sweeps.delete(known_sweep(sweep_id))
    log.info("sweep deleted", extra={"sweep_id": sweep_id})


async def _answer(state: State, sweep: Sweep) -> SweepAnswer:
    return await _answered(state, sweep, await state.store.outlines(sweep.job_ids))


async def _answered(state: State, sweep: Sweep, outlines: Sequence[Outline]) -> SweepAnswer:
    jobs = [
        summary_of(outline.job_id, outline.record, outline.last[0] if outline.last else None) for outline in outlines
    ]
    return SweepAnswer(
        **dict(_summary(sweep, Standing.of(jobs))),
        spec=sweep.spec,
        jobs=[_job(job) for job in jobs],
        table=await table_of(state.store, outlines, target_accuracy=sweep.spec.target_accuracy),
    )


def _summary(sweep: Sweep, standing: Standing) -> SweepSummary:
    jobs = sum(standing.counts.values())
    ended = sum(count for status, count in standing.counts.items() if status.terminal)
    own = f"/sweeps/{sweep.id}"
    return SweepSummary(
        id=sweep.id,
        status=_status(sweep, standing, has_ended=ended == jobs),
        terminal=ended == jobs,
        created_at=sweep.created_at,
        cancelled_at=sweep.cancelled_at,
        name=sweep.spec.name,
        progress=SweepProgress(
            jobs=jobs, ended=ended, fraction=round(standing.done / standing.steps, 4) if standing.steps else 1.0
        ),
        counts=standing.counts,
        links={"self": own, "cancel": f"{own}/cancel"},
    )


def _status(sweep: Sweep, standing: Standing, *, has_ended: bool) -> SweepStatus:
    if has_ended:
        return "cancelled" if sweep.cancelled_at else "finished"
    if sweep.cancelled_at:
        return "cancelling"
    return "running" if standing.begun else "queued"


def _choice(spec: JobSpec) -> SweepChoice:
    return SweepChoice(optimizer=spec.optimizer, learning_rate=spec.learning_rate, seed=spec.seed)


def _job(job: JobSummary) -> SweepJob:
    fields = {name: getattr(job, name) for name in SweepJob.model_fields if name in JobSummary.model_fields}
    return SweepJob(job_id=job.id, **dict(_choice(job.spec)), **fields)
