"""What the routes share: built once when the API starts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, cast

from celery import Celery
from fastapi import Path, Request
from fastapi.concurrency import run_in_threadpool

from api.metrics import Metrics
from core.errors import ArtifactCorrupt, NotFound
from core.jobs.artifacts import JOB_ID
from core.jobs.database import Database
from core.jobs.store import JobStore, StoredModel
from core.jobs.sweeps import SweepStore
from core.settings import Settings

T = TypeVar("T")

JobId = Annotated[str, Path(description="The job's id, `job_...`.")]


@dataclass(frozen=True, kw_only=True)
class State:
    settings: Settings
    database: Database
    store: JobStore
    sweeps: SweepStore
    celery: Celery
    metrics: Metrics


def known(job_id: str) -> str:
    """The id, when it looks like one; anything else names no job."""
    if not JOB_ID.fullmatch(job_id):
        raise NotFound("no such job")
    return job_id


async def read_model(state: "State", name: str, read: Callable[[StoredModel], T]) -> tuple[StoredModel, T]:
    """Read the weights of a job (or `best`, `latest`) in a thread: which they are, and what `read` made of them.

    A job that is deleted or trained further meanwhile is no damage. Raises NotFound, ModelNotReady, ArtifactCorrupt.
    """
    stored = await state.store.model(name)
    try:
        return stored, await run_in_threadpool(read, stored)
    except ArtifactCorrupt:
        now = await state.store.model(name)
        if now == stored:
            raise
        return now, await run_in_threadpool(read, now)


def state_of(request: Request) -> State:
    return cast(State, request.app.state.shared)
