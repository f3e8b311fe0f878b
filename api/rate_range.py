"""Learning-rate range tests (Smith 2015): one short run with a rising rate, its curve, and the rate that suggests itself."""

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.catalogue import Text
from api.conditional import CONDITIONAL, Prefer
from api.jobs import CreateQuery, IdempotencyKey, Preview, previewed, submitted, when_changed
from api.problems import documented, headers
from api.state import JobId, known, state_of
from api.strict import StrictRoute
from core.catalogue import Optimizer, RangeTest, Rate, Strict
from core.errors import NotFound
from core.jobs.job import Job, JobError, Progress, Status
from core.spec import JobSpec, Recipe, Seed, wrong

router = APIRouter(prefix="/lr-range-tests", tags=["rate range tests"], route_class=StrictRoute)


class _Choice(Strict):
    optimizer: Optimizer = Field(description="A name, or an object with that optimizer's own parameters.")
    start: Rate = Field(RangeTest.model_fields["start"].default, description="The first step's rate.")
    end: Rate = Field(RangeTest.model_fields["end"].default, description="The last step's rate.")
    seed: Seed = 0


class RangeTestRequest(Recipe, _Choice):
    """A range test. An optimizer is a whole one: the rate then rises from 1e-6 to 10 within one epoch."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"optimizer": "adam"}]})

    epochs: int = Field(1, ge=1, le=1000, description="How long it takes at most.")
    log_every: int = Field(1, ge=1, le=10_000, description="Steps from one point of the curve to the next.")

    @model_validator(mode="after")
    def _makes_a_job(self) -> "RangeTestRequest":
        self.spec()
        return self

    def spec(self) -> JobSpec:
        """The job that it is."""
        rate = {"schedule": "range_test", "start": self.start, "end": self.end}
        try:
            return JobSpec.model_validate(self.model_dump(exclude={"start", "end"}) | {"learning_rate": rate})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise wrong(str(first.get("ctx", {}).get("field", "")), first["msg"]) from None


class RangeCurve(BaseModel):
    """A list for each column; all have the same length."""

    step: list[int]
    rate: list[float] = Field(description="The learning rate of the step.")
    loss: list[float | None] = Field(description="null when it is not finite")
    smoothed: list[float | None] = Field(
        description="Exponential mean over a quarter of a decade of the rate, debiased."
    )


class Suggestion(BaseModel):
    """The rule: a tenth of the rate at which the smoothed loss was least before it blew up (four times its least)."""

    rate: float | None = Field(description="null when the curve suggests none; `outcome` says why")
    outcome: str = Field(
        description="`suggested`, `unfinished`, `never_fell`, `blew_up`, `still_falling` or `below_range`."
    )
    steepest_rate: float | None = Field(
        description="Where the smoothed loss fell fastest, by the logarithm of the rate."
    )
    least_rate: float | None = Field(description="Where it was least.")
    blown_up_rate: float | None = Field(description="Where it had blown up; null when it did not.")
    sentence: Text


class RangeTestAnswer(BaseModel):
    """A range test; its id is that of the job that it is."""

    id: str
    status: Status
    terminal: bool
    spec: JobSpec
    progress: Progress
    error: JobError | None
    curve: RangeCurve
    suggestion: Suggestion
    links: dict[str, str]


@router.post(
    "",
    status_code=202,
    response_model=RangeTestAnswer,
    responses={
        200: {"model": Preview, "description": "It is valid; nothing was created."},
        202: headers("Location", "Retry-After", sometimes=("Idempotent-Replayed",)),
        **documented(400, 410, 413, 415, 422, 503),
    },
    summary="Find a learning rate",
)
async def create(
    body: RangeTestRequest,
    query: Annotated[CreateQuery, Query()],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RangeTestAnswer | Response:
    """Store and queue a job whose rate rises by the same factor each step, until its loss blows up or `end` is reached.

    It can be watched, paused and cancelled as any job, at `/jobs/{id}`. It leaves no model: what it gives is its curve.
    With an `Idempotency-Key` the same request can be sent again, for a day, and stays one job.
    """
    if query.validate_only:
        return previewed(body.spec())
    job = await submitted(request, response, body.spec(), idempotency_key)
    response.headers["Location"] = f"/lr-range-tests/{job.id}"
    return await run_in_threadpool(_answer, job, await _points(request, job))


@router.get(
    "/{job_id}",
    response_model=RangeTestAnswer,
    responses={
        200: headers("ETag", sometimes=("Preference-Applied",)),
        **CONDITIONAL,
        **documented(404, 422, 429, 503),
    },
    summary="A range test: its curve, and the rate it suggests",
)
async def get(job_id: JobId, request: Request, prefer: Prefer = None) -> Response:
    """With `Prefer: wait=N` the answer waits up to N seconds for something to change, as at `/jobs/{job_id}`."""

    async def rendered(job: Job) -> str:
        points = await _points(request, job)
        return await run_in_threadpool(lambda: _answer(job, points).model_dump_json())

    return await when_changed(request, known(job_id), prefer, rendered)


async def _points(request: Request, job: Job) -> list[str]:
    """The points of a range test; it never has more than a page. Read after its status: if that is terminal, it is them all."""
    if not job.spec.range_test:
        raise NotFound("this job is not a range test")
    return (await state_of(request).store.loss(job.id)).points


def _answer(job: Job, points: list[str]) -> RangeTestAnswer:
    from core.training.rate_range import analyse  # NumPy takes long to import

    spec, rates = job.spec, job.spec.range_test
    assert rates is not None
    decoded = [json.loads(point) for point in points]
    steps, losses = [point["step"] for point in decoded], [point["loss"] for point in decoded]
    curve_rates = [rates.rate_at(step, spec.total_steps) for step in steps]
    found = analyse(
        steps,
        curve_rates,
        losses,
        decades_per_step=spec.decades_per_step,
        is_whole=job.status is Status.SUCCEEDED,
        blew_up=job.status is Status.SUCCEEDED and job.progress.step < spec.total_steps,
    )
    return RangeTestAnswer(
        **job.model_dump(include={"id", "status", "terminal", "progress", "error"}),
        spec=spec,
        curve=RangeCurve(step=steps, rate=curve_rates, loss=losses, smoothed=found.smoothed),
        suggestion=Suggestion(
            rate=found.suggested_rate,
            outcome=found.outcome,
            steepest_rate=found.steepest_rate,
            least_rate=found.least_rate,
            blown_up_rate=found.blown_up_rate,
            sentence=Text(**found.sentence),
        ),
        links={"self": f"/lr-range-tests/{job.id}", "job": f"/jobs/{job.id}", "cancel": f"/jobs/{job.id}/cancel"},
    )
