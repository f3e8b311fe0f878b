"""What the routes share: built once when the API starts."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from fastapi import Path, Request

from api.evaluating import Evaluating
from api.holds import Holds
from api.metrics import Metrics
from api.predicting import Predicting
from core.errors import ArtifactCorrupt, NotFound, Unavailable
from core.jobs import artifacts
from core.jobs.database import Database
from core.jobs.keys import KeyStore
from core.jobs.models import ModelStore
from core.jobs.owners import ANYBODY, Caller
from core.jobs.store import Doorbell, JobStore, StoredModel
from core.jobs.sweeps import SweepStore
from core.settings import Settings
from core.storage import Storage

if TYPE_CHECKING:
    from api.ops import Readiness

T = TypeVar("T")

MOST_DRAWN = 64  # requests that wait for a core
MOST_FETCHING = 16  # threads that read models; when the storage is away they wait for it, and must not be all there are

# The document states the pattern; what does not match it names no job, and is a 404 like any other such id.
JobId = Annotated[
    str, Path(description="The job's id, `job_...`.", json_schema_extra={"pattern": f"^{artifacts.JOB_ID.pattern}$"})
]


class Recent(Generic[T]):
    """Something that is made anew when it is old, once for all who ask meanwhile."""

    def __init__(self) -> None:
        self._making, self._good_until = asyncio.Lock(), 0.0
        self._made: list[T] = []

    async def get(self, make: Callable[[], Awaitable[T]], good_s: Callable[[T], float]) -> T:
        async with self._making:
            if not self._made or time.monotonic() >= self._good_until:
                self._made = [await make()]
                self._good_until = time.monotonic() + good_s(self._made[0])
            return self._made[0]


@dataclass(frozen=True, kw_only=True)
class State:
    """As a route gets it, the stores show the caller's own alone, and make what is made the caller's."""

    settings: Settings
    database: Database
    store: JobStore
    sweeps: SweepStore
    keys: KeyStore
    models: ModelStore
    metrics: Metrics
    doorbell: Doorbell
    holds: Holds
    predicting: Predicting
    evaluating: Evaluating
    drawing: CapacityLimiter  # who prepares pictures and long lists
    exporting: CapacityLimiter  # of one: whoever makes a model file
    fetching: CapacityLimiter  # who reads models
    readiness: "Recent[Readiness]"
    caller: Caller = ANYBODY

    @property
    def files(self) -> Storage:
        """The files of jobs."""
        return artifacts.storage(self.settings)


def known(job_id: str) -> str:
    """The id, when it looks like one; anything else names no job."""
    if not artifacts.JOB_ID.fullmatch(job_id):
        raise NotFound("no such job")
    return job_id


async def read_model(state: "State", name: str, read: Callable[[StoredModel], T]) -> tuple[StoredModel, T]:
    """Read the weights that a job id or a name names, in a thread: which they are, and what `read` made of them.

    A job that is deleted or trained further meanwhile is no damage. Raises NotFound, ModelNotReady, ArtifactCorrupt,
    Unavailable.
    """
    stored = await state.store.model(name)
    try:
        return stored, await to_thread.run_sync(read, stored, limiter=state.fetching)
    except ArtifactCorrupt:
        now = await state.store.model(name)
        if now == stored:
            raise
        return now, await to_thread.run_sync(read, now, limiter=state.fetching)


async def drawn(state: State, draw: Callable[..., T], *asked: Any) -> T:
    """What costs many milliseconds to prepare, in a thread: as many at a time as there are cores. Raises Unavailable."""
    if state.drawing.statistics().tasks_waiting >= MOST_DRAWN:
        raise Unavailable("too many images wait to be prepared", retry_after_s=1)
    return await to_thread.run_sync(draw, *asked, limiter=state.drawing)


def state_of(request: Request) -> State:
    """What the routes share, as the caller may see it."""
    shared = cast(State, request.app.state.shared)
    caller: Caller | None = request.scope["state"].get("caller")
    if caller is None:
        return shared
    return replace(
        shared,
        caller=caller,
        store=shared.store.of(caller),
        sweeps=shared.sweeps.of(caller),
        models=shared.models.of(caller),
    )
