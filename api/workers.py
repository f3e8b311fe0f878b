"""Workers: which are alive, and what they can train on."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from api.problems import documented
from api.state import state_of
from api.strict import StrictRoute

router = APIRouter(tags=["workers"], route_class=StrictRoute)


class Device(BaseModel):
    """Something to train on, as the worker's machine names it."""

    device: str = Field(description="`cpu` or `gpu:N`.")
    name: str | None = Field(description="Its model; null where the machine does not say.")
    memory_bytes: int | None = Field(description="Of a GPU all there is; of a CPU what one trainer may take.")


class Worker(BaseModel):
    """What a worker said of itself with its last beat."""

    host: str
    pid: int
    version: str
    device: str = Field(description="Where it trains jobs that say `auto`.")
    threads: int = Field(description="CPU threads of its trainer.")
    devices: list[Device] = Field(description="The GPU that is its own, if it has one, and the CPU.")
    queues: list[str] = Field(description="What it listens to; the first comes first.")


class Workers(BaseModel):
    workers: list[Worker] = Field(description="Those that are alive. Each trains one job at a time.")


@router.get("/workers", responses=documented(503), summary="Which workers are alive, and their devices")
async def list_workers(request: Request) -> Workers:
    """One that was killed is listed for up to three beats more (`DESCENT_BEAT_S`)."""
    told = await state_of(request).store.announced()
    # One of a former version, which listens to its one queue, says less.
    return Workers(workers=[Worker.model_validate(info) for _, info in sorted(told.items()) if "devices" in info])
