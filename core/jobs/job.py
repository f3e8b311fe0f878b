"""The job as clients see it: its status, its progress, what came of it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from uuid_utils import uuid7

from core.spec import JobSpec


def _to_text(moment: datetime) -> str:
    """Of a moment in UTC."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[  # in JSON `2026-11-23T13:42:55.000Z`: of one length, so that the texts sort as the moments do
    datetime,
    PlainSerializer(_to_text, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class Status(StrEnum):
    """Where a job stands: queued -> running -> succeeded | failed | cancelled, with the others on the way.

    The legal moves between them are in `moves.lua`, which makes them.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when everything the job will have is there, and only an explicit resume changes it again."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Progress(_Frozen):
    step: int = Field(description="Steps done.")
    total_steps: int
    epoch: int = Field(description="The epoch being trained, from 0.")
    epochs: int
    fraction: float
    eta_s: float | None = Field(description="Seconds to go, at the speed so far.")


class Latest(_Frozen):
    step: int
    loss: float | None = Field(description="null when it is not finite; the history then says which")


class Backend(_Frozen):
    """What trained the job. Equality to the last bit holds between jobs of one backend."""

    device: str
    kernel: str
    threads: int


class Result(_Frozen):
    """What came of the job when it last succeeded; one that was extended since has it until it succeeds again."""

    valid_accuracy: float | None = None
    test_accuracy: float | None = None
    final_loss: float | None = None
    images_per_s: float | None = None
    seconds: float | None = None


class ModelInfo(_Frozen):
    ready: bool = Field(False, description="Whether there are weights to download.")
    partial: bool = Field(False, description="True for the weights of a run that was stopped on its way.")
    sha256: str | None = Field(None, description="Digest of the safetensors file.")
    size_bytes: int | None = None


ERROR_CODES = (
    "diverged", "out_of_memory", "worker_lost", "max_runtime", "dataset_unavailable", "device_unavailable", "internal",
)  # fmt: skip


class JobError(_Frozen):
    """Why a job failed; `code` is one of ERROR_CODES, which the README explains."""

    code: str
    message: str
    step: int | None = None


class StoppedEarly(_Frozen):
    """Why successive halving stopped a run of a sweep."""

    epochs: int = Field(description="Epochs it had behind it.")
    valid_accuracy: float
    place: int = Field(description="From 1, among the runs that had come so far.")
    runs: int = Field(description="How many had come so far.")
    kept: int = Field(description="How many of them might go on.")


WORKER_LOST = JobError(code="worker_lost", message="the trainer or its worker died in every one of the attempts")


class WaitingFor(_Frozen):
    """Why a job that is queued cannot begin: no worker that is alive can train it."""

    needs: str = Field(description="`any` worker, one with a `gpu`, or with the GPU of that number, `gpu:N`.")
    en: str
    zh: str

    @classmethod
    def of(cls, spec: JobSpec) -> "WaitingFor":
        en, zh = _lacking(spec)
        return cls(
            needs=spec.needs,
            en=f"{en}; the job stays queued until one comes{_INSTEAD_EN if spec.needs != 'any' else ''}.",
            zh=f"{zh}；在出现之前，任务会一直排队{_INSTEAD_ZH if spec.needs != 'any' else ''}。",
        )


_INSTEAD_EN = " (or cancel it and submit it again with what a CPU can do: device auto, precision float32, no to_static)"
_INSTEAD_ZH = "（也可以取消它，改用 CPU 能完成的设置重新提交：device 为 auto，precision 为 float32，不用 to_static）"


def _lacking(spec: JobSpec) -> tuple[str, str]:
    if spec.needs == "any":
        return "No worker is alive", "没有存活的 worker"
    if spec.needs == "gpu":
        return "No live worker has a GPU", "存活的 worker 都没有 GPU"
    number = spec.needs.removeprefix("gpu:")
    return f"No live worker has the GPU number {number}", f"存活的 worker 都没有编号为 {number} 的 GPU"


class Transition(_Frozen):
    status: Status
    at: Moment
    worker: str | None = None
    request_id: str | None = Field(None, description="The `X-Request-Id` of the request that asked for it.")


class JobSummary(_Frozen):
    id: str
    status: Status
    terminal: bool
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    updated_at: Moment
    spec: JobSpec
    spec_hash: str = Field(description="Names the training: the spec and, once it has begun, the backend.")
    attempt: int = Field(description="How often training was begun; at most 3.")
    progress: Progress
    latest: Latest | None
    result: Result
    model: ModelInfo
    error: JobError | None
    sweep: str | None = Field(description="The sweep it belongs to.")
    stopped_early: StoppedEarly | None = Field(description="Set when its sweep gave it up as hopeless.")


class Job(JobSummary):
    resumed_from_step: int | None = Field(description="Where the last attempt went on; null: it began at step 0.")
    queue_position: int | None = Field(
        description="Among the jobs that wait for the same workers: 0 is next; null when the job is not queued, or is held "
        "back by its sweep's `max_concurrent`."
    )
    waiting_for: WaitingFor | None = Field(
        description="Set while the job is queued and no live worker can train it: says what is missing."
    )
    backend: Backend | None = Field(description="null until a worker has begun")
    transitions: list[Transition]


@dataclass(frozen=True, kw_only=True)
class LossPage:
    """A piece of a loss history; `points` are JSON texts exactly as they were stored."""

    status: Status
    count: int
    points: list[str]
    next: str
    has_more: bool
    summary: dict[str, Any]


def new_job_id() -> str:
    """`job_` and a UUIDv7 without dashes, so that ids sort by time."""
    return f"job_{uuid7().hex}"


def new_sweep_id() -> str:
    return f"sweep_{uuid7().hex}"


def from_ms(ms: str | int | None) -> datetime | None:
    return datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None
