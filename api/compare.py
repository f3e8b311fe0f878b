"""Runs beside each other: their curves over one axis, a table with mean and range over seeds, and whether the best is noise."""

import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from api.conditional import CONDITIONAL, etag_of, is_known, refuse_another
from api.history import Sampling, sampled
from api.problems import documented, headers
from api.state import state_of
from api.strict import StrictRoute
from core.catalogue import DATASETS, LearningRate
from core.configurations import labelled
from core.errors import FieldProblem, InvalidRequest, NotFound
from core.jobs.artifacts import JOB_ID
from core.jobs.job import JobSummary, Result, Status
from core.jobs.record import summary_of
from core.jobs.store import JobStore, Outline
from core.spec import JobSpec
from core.training import analysis
from core.training.analysis import Noise, Outcome, Spread, Verdict

router = APIRouter(tags=["compare"], route_class=StrictRoute)

MOST_JOBS = 50
TARGET_ACCURACY = 0.97
_MOST_KEPT = 100_000  # points in memory, about 16 MB; a verdict counts as so many:
_VERDICT = 20

Axis = Literal["step", "epoch", "time"]
Stamp = tuple[int, str, str | None]  # a job's number of points, status and error


class RunRow(BaseModel):
    """One run of the table."""

    job_id: str
    label: str = Field(description="Of its group.")
    optimizer: str
    learning_rate: LearningRate
    seed: int
    status: Status
    final_loss: float | None = Field(description="Of the last batch so far.")
    valid_accuracy: float | None = Field(description="After the last epoch so far.")
    test_accuracy: float | None
    steps_to_target: int | None = Field(
        description="At the end of the first epoch with the accuracy; null: not reached."
    )
    seconds_to_target: float | None = Field(description="Of training alone, up to there.")
    verdict: Verdict | None = Field(description="null while there is too little to say.")


class GroupRow(BaseModel):
    """The runs of one configuration: the spec without seed, name, tags, device, time limit and `log_every`."""

    label: str
    job_ids: list[str]
    seeds: list[int]
    test_accuracy: Spread | None
    final_loss: Spread | None
    reached: int = Field(description="Runs that reached the target.")
    steps_to_target: Spread | None = Field(description="Over those that did.")
    seconds_to_target: Spread | None
    verdicts: dict[Outcome, int] = Field(description="How many runs got which.")


class Best(BaseModel):
    """The group with the highest mean test accuracy, and its best run."""

    label: str
    test_accuracy: float = Field(description="The group's mean.")
    job_id: str


class Table(BaseModel):
    target_accuracy: float = Field(description="On the validation images.")
    rows: list[GroupRow] = Field(description="Best first.")
    runs: list[RunRow]
    best: Best | None = Field(description="null: no run has ended with a model, or they are of several data sets.")
    noise: Noise | None = Field(
        description="Whether the best two groups can be told apart; null when there are not two."
    )


class EpochCurve(BaseModel):
    """Columns, an entry for each epoch that has ended."""

    x: list[float]
    train_loss: list[float | None]
    valid_loss: list[float | None]
    valid_accuracy: list[float]


class Curve(BaseModel):
    """Columns: `loss[i]` belongs to `x[i]`."""

    job_id: str
    label: str
    status: Status
    terminal: bool
    count: int = Field(description="Points stored so far.")
    x: list[float] = Field(description="Steps, epochs (0.5 is half of the first), or seconds of training.")
    loss: list[float | None] = Field(description="null where it was not finite.")
    sampling: Sampling | None = Field(description="null: these are all the points there are.")
    epochs: EpochCurve


class Comparison(BaseModel):
    x: Axis
    curves: list[Curve]
    table: Table


class CompareQuery(BaseModel):
    jobs: str = Field(max_length=2000, description=f"Ids of up to {MOST_JOBS} jobs, with commas between them.")
    x: Axis = Field("step", description="What the curves are drawn over.")
    max_points: int = Field(500, ge=4, le=2000, description="Of each curve; more are sampled.")
    target_accuracy: float = Field(
        TARGET_ACCURACY, gt=0, le=1, allow_inf_nan=False, description="A validation accuracy to reach."
    )


@dataclass(frozen=True)
class Reading:
    """What was made of a job's points, as they were at `stamp`: its verdict, and the points to show."""

    stamp: Stamp
    verdict: Verdict | None
    points: list[str]
    sampling: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    job: JobSummary
    epochs: list[dict[str, Any]]


@router.get(
    "/compare",
    response_model=Comparison,
    responses={200: headers("ETag"), **CONDITIONAL, **documented(404, 422, 503)},
    summary="Runs beside each other",
)
async def compare(query: Annotated[CompareQuery, Query()], request: Request) -> Response:
    """Curves over one axis, a table grouped by configuration, and whether the best two groups can be told apart.

    Jobs that run, failed or were cancelled are shown as far as they came.
    """
    store = state_of(request).store
    outlines = await _outlines(store, query.jobs.split(","))
    headers = {"ETag": etag_of(f"{stamps_of(outlines)} {query!r}"), "Cache-Control": "no-cache"}
    refuse_another(request, headers["ETag"])
    if is_known(headers["ETag"], request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    readings = [await _reading(store, outline, query.max_points) for outline in outlines]
    text = await run_in_threadpool(_compared, query, outlines, readings)
    return Response(text, media_type="application/json", headers=headers)


def stamps_of(outlines: Sequence[Outline]) -> list[tuple[object, ...]]:
    """What changes when anything of these jobs does, for an ETag."""
    return [(o.job_id, o.record["status"], o.points, len(o.epochs), o.record["updated_ms"]) for o in outlines]


async def table_of(store: JobStore, outlines: Sequence[Outline], *, target_accuracy: float) -> Table:
    """The table of these jobs, up to some hundreds."""
    verdicts = [(await _reading(store, outline, 0)).verdict for outline in outlines]
    return await run_in_threadpool(lambda: _table(_runs(outlines), verdicts, target_accuracy))


# --- reading -----------------------------------------------------------------------------------------------------------


async def _outlines(store: JobStore, job_ids: Sequence[str]) -> list[Outline]:
    """Of all of them. Raises InvalidRequest for too many or the same twice, NotFound that says which is not there."""
    if len(job_ids) > MOST_JOBS or len(set(job_ids)) < len(job_ids):
        raise InvalidRequest(FieldProblem("?jobs", f"up to {MOST_JOBS} ids, each once"))
    is_id = [JOB_ID.fullmatch(job_id) for job_id in job_ids]
    outlines = await store.outlines(job_ids) if all(is_id) else []
    found = {outline.job_id for outline in outlines} if all(is_id) else {found[0] for found in is_id if found}
    for position, job_id in enumerate(job_ids, start=1):
        if job_id not in found:
            raise NotFound(f"no such job: number {position} of ?jobs")
    return outlines


_readings: OrderedDict[tuple[str, int], Reading] = OrderedDict()


async def _reading(store: JobStore, outline: Outline, max_points: int) -> Reading:
    """The job's points, at most so many, and its verdict; kept, because most jobs of a comparison have ended."""
    key = (outline.job_id, max_points)
    stamp = (outline.points, outline.record["status"], outline.record.get("error"))
    reading = _readings.get(key)
    if reading is None or not _is_fresh(reading, stamp, max_points):
        points = await _points(store, outline)
        reading = await run_in_threadpool(_read, outline, points, max_points, stamp)
        _readings[key] = reading
        _readings.move_to_end(key)
        while sum(len(kept.points) + _VERDICT for kept in _readings.values()) > _MOST_KEPT:
            _readings.popitem(last=False)
    else:
        _readings.move_to_end(key)
    return reading


def _is_fresh(reading: Reading, stamp: Stamp, max_points: int) -> bool:
    """Whether a reading is still good. Where only the verdict counts, a run that goes on is judged again after 5 % more."""
    (seen, *state), (now, *state_now) = reading.stamp, stamp
    return state == state_now and (seen == now or (not max_points and seen <= now < seen * 1.05))


async def _points(store: JobStore, outline: Outline) -> list[str]:
    """All that the outline counts; none when the job was deleted since."""
    points: list[str] = []
    while len(points) < outline.points:
        try:
            points += (await store.loss(outline.job_id, after=str(len(points)))).points
        except (NotFound, InvalidRequest):
            return []
    return points[: outline.points]


def _read(outline: Outline, points: list[str], max_points: int, stamp: Stamp) -> Reading:
    status, error = Status(outline.record["status"]), json.loads(outline.record.get("error", "{}"))
    spec = JobSpec.model_validate_json(outline.record["spec"])
    verdict = analysis.verdict(
        [json.loads(point)["loss"] for point in points],
        has_ended=status.terminal,
        has_diverged=error.get("code") == "diverged",
        classes=len(DATASETS[spec.dataset].classes),
    )
    if max_points == 0 or len(points) <= max_points:
        return Reading(stamp, verdict, points if max_points else [], None)
    return Reading(stamp, verdict, *sampled(points, max_points))


# --- the table ---------------------------------------------------------------------------------------------------------


def _runs(outlines: Sequence[Outline]) -> list[Run]:
    return [
        Run(summary_of(o.job_id, o.record, o.last[0] if o.last else None), [json.loads(text) for text in o.epochs])
        for o in outlines
    ]


def _table(runs: Sequence[Run], verdicts: Sequence[Verdict | None], target_accuracy: float) -> Table:
    labels = labelled([run.job.spec for run in runs])
    rows = [_row(*each, target_accuracy) for each in zip(runs, labels, verdicts, strict=True)]
    groups = [_group(label, [row for row in rows if row.label == label]) for label in dict.fromkeys(labels)]
    groups.sort(key=lambda group: -group.test_accuracy.mean if group.test_accuracy else 1)
    is_comparable = len({run.job.spec.dataset for run in runs}) == 1  # not so for none at all, either
    return Table(
        target_accuracy=target_accuracy,
        rows=groups,
        runs=rows,
        best=_best(groups[0], rows) if is_comparable else None,
        noise=_noise(rows) if is_comparable else None,
    )


def _row(run: Run, label: str, verdict: Verdict | None, target_accuracy: float) -> RunRow:
    job, spec = run.job, run.job.spec
    epochs = [analysis.Epoch(valid_accuracy=e["valid_accuracy"], seconds=e["seconds"]) for e in run.epochs]
    reached = analysis.time_to(target_accuracy, epochs, steps_per_epoch=spec.steps_per_epoch)
    latest = job.latest.loss if job.latest else None
    result = job.result if job.status is Status.SUCCEEDED else Result()  # else it is that of a shorter training
    return RunRow(
        job_id=job.id,
        label=label,
        optimizer=spec.optimizer.name,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        status=job.status,
        final_loss=latest if result.final_loss is None else result.final_loss,
        valid_accuracy=epochs[-1].valid_accuracy if epochs else None,
        test_accuracy=result.test_accuracy,
        steps_to_target=reached.steps if reached else None,
        seconds_to_target=reached.seconds if reached else None,
        verdict=verdict,
    )


def _group(label: str, rows: Sequence[RunRow]) -> GroupRow:
    job_ids = [row.job_id for row in rows]
    rows = _distinct(rows)
    return GroupRow(
        label=label,
        job_ids=job_ids,
        seeds=sorted({row.seed for row in rows}),
        test_accuracy=analysis.spread([row.test_accuracy for row in rows]),
        final_loss=analysis.spread([row.final_loss for row in rows]),
        reached=sum(row.steps_to_target is not None for row in rows),
        steps_to_target=analysis.spread([row.steps_to_target for row in rows]),
        seconds_to_target=analysis.spread([row.seconds_to_target for row in rows]),
        verdicts=dict(Counter(row.verdict.outcome for row in rows if row.verdict)),
    )


def _distinct(rows: Sequence[RunRow]) -> list[RunRow]:
    """One run for each seed of each group: the same seed again is the same training, and tells nothing new."""
    found: dict[tuple[str, int], RunRow] = {}
    for row in rows:
        known = found.setdefault((row.label, row.seed), row)
        if known.test_accuracy is None and row.test_accuracy is not None:
            found[row.label, row.seed] = row
    return list(found.values())


def _best(group: GroupRow, rows: Sequence[RunRow]) -> Best | None:
    if group.test_accuracy is None:
        return None
    run = max((row for row in rows if row.label == group.label), key=lambda row: row.test_accuracy or 0)
    return Best(label=group.label, test_accuracy=group.test_accuracy.mean, job_id=run.job_id)


def _noise(rows: Sequence[RunRow]) -> Noise | None:
    accuracies: dict[str, list[float]] = {row.label: [] for row in rows}
    for row in _distinct(rows):
        if row.test_accuracy is not None:
            accuracies[row.label].append(row.test_accuracy)
    return analysis.noise(accuracies)


# --- the curves --------------------------------------------------------------------------------------------------------


def _compared(query: CompareQuery, outlines: Sequence[Outline], readings: Sequence[Reading]) -> str:
    runs = _runs(outlines)
    table = _table(runs, [reading.verdict for reading in readings], query.target_accuracy)
    curves = [
        _curve(query.x, run, row.label, outline.points, reading)
        for run, row, outline, reading in zip(runs, table.runs, outlines, readings, strict=True)
    ]
    return Comparison(x=query.x, curves=curves, table=table).model_dump_json()


def _curve(axis: Axis, run: Run, label: str, count: int, reading: Reading) -> Curve:
    points = [json.loads(point) for point in reading.points]
    unit = 1 if axis == "step" else run.job.spec.steps_per_epoch
    x = [point["time_s"] if axis == "time" else point["step"] / unit for point in points]
    return Curve(
        job_id=run.job.id,
        label=label,
        status=run.job.status,
        terminal=run.job.terminal,
        count=count,
        x=x,
        loss=[point["loss"] for point in points],
        sampling=Sampling(**reading.sampling) if reading.sampling else None,
        epochs=_epoch_curve(axis, run),
    )


def _epoch_curve(axis: Axis, run: Run) -> EpochCurve:
    """An epoch's metrics stand at its end."""
    ends = [float(metrics["epoch"] + 1) for metrics in run.epochs]
    if axis == "step":
        ends = [end * run.job.spec.steps_per_epoch for end in ends]
    elif axis == "time":
        ends = list(accumulate(metrics["seconds"] for metrics in run.epochs))
    columns = {
        name: [metrics[name] for metrics in run.epochs] for name in ("train_loss", "valid_loss", "valid_accuracy")
    }
    return EpochCurve(x=ends, **columns)
