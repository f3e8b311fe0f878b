"""A job's record, as Redis keeps it, turned into what clients see."""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from core.jobs.job import (
    Backend,
    Job,
    JobError,
    JobSummary,
    Latest,
    ModelInfo,
    Progress,
    Result,
    Status,
    StoppedEarly,
    Transition,
    WaitingFor,
    from_ms,
)
from core.spec import JobSpec


def job_of(
    job_id: str,
    record: dict[str, str],
    last: str | None,
    transitions: list[str],
    position: int | None,
    *,
    is_served: bool,
) -> Job:
    """The whole job: its hash, the last loss point (if any), its transitions, its place in the queue (if it has one).

    And whether a live worker listens to that queue.
    """
    summary = summary_of(job_id, record, last)
    return Job(
        **dict(summary),
        resumed_from_step=int(record["resumed_from"]) if record.get("resumed_from") else None,
        queue_position=position,
        waiting_for=WaitingFor.of(summary.spec) if position is not None and not is_served else None,
        backend=Backend(**json.loads(record["backend"])) if "backend" in record else None,
        transitions=[transition_of(text) for text in transitions],
    )


def transition_of(text: str) -> Transition:
    entry = json.loads(text)
    return Transition(
        status=entry["status"], at=_at(entry["at_ms"]), worker=entry.get("worker"), request_id=entry.get("request_id")
    )


def _at(ms: str | int) -> datetime:
    return cast(datetime, from_ms(ms))


def summary_of(job_id: str, record: dict[str, str], last: str | None) -> JobSummary:
    status, spec = Status(record["status"]), _spec(record["spec"])
    point = json.loads(last) if last else None
    return JobSummary(
        id=job_id,
        status=status,
        terminal=status.terminal,
        created_at=_at(record["created_ms"]),
        started_at=from_ms(record.get("started_ms")),
        finished_at=from_ms(record.get("finished_ms")),
        updated_at=_at(record["updated_ms"]),
        spec=spec,
        spec_hash=record["spec_hash"],
        attempt=int(record["attempt"]),
        progress=_progress(status, spec, int(record["steps_done"]), float(record.get("images_per_s", 0))),
        latest=Latest(step=point["step"], loss=point["loss"]) if point else None,
        result=Result(**json.loads(record["result"])) if "result" in record else Result(),
        model=_model(record),
        error=JobError(**json.loads(record["error"])) if "error" in record else None,
        sweep=record.get("sweep"),
        stopped_early=StoppedEarly(**json.loads(record["stopped_early"])) if "stopped_early" in record else None,
    )


@lru_cache(maxsize=512)  # lists are full of jobs that ask for the same
def _spec(text: str) -> JobSpec:
    return JobSpec.model_validate_json(text)


def _model(record: dict[str, str]) -> ModelInfo:
    text = record.get("partial") or record.get("model")
    if not text:
        return ModelInfo()
    file = json.loads(text)["safetensors"]
    return ModelInfo(ready=True, partial="partial" in record, sha256=file["sha256"], size_bytes=file["size_bytes"])


def _progress(status: Status, spec: JobSpec, step: int, images_per_s: float) -> Progress:
    ended_early = spec.range_test and status is Status.SUCCEEDED
    total = step if ended_early else spec.total_steps
    left = total - step
    moving = status is Status.RUNNING and images_per_s > 0
    return Progress(
        step=step,
        total_steps=total,
        epoch=min(step // spec.steps_per_epoch, spec.epochs - 1),
        epochs=spec.epochs,
        fraction=round(step / total, 4),
        eta_s=round(left * spec.batch_size / images_per_s, 1) if moving else None,
    )


def to_json(value: Any) -> str:
    """Strict, compact JSON; a number that is not finite is a bug here, and raises ValueError."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def hash_of(reply: list[str]) -> dict[str, str]:
    """A Redis hash, as a script gives it."""
    return dict(zip(reply[::2], reply[1::2], strict=True))
