"""Health, metrics and version, for people and for whatever watches the server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from api.metrics import OPENMETRICS
from api.state import State, state_of
from api.strict import StrictRoute
from core.errors import DescentError, StorageAway, Unavailable
from core.jobs.measures import measure
from core.spec import TRAIN_IMAGES

router = APIRouter(tags=["health"], route_class=StrictRoute)

_DISK_LIMIT_S = 3
_GOOD_S, _BAD_S = 1.0, 0.1  # how long it is good that a job could run, or could not


class Health(BaseModel):
    status: str


class Check(BaseModel):
    ok: bool
    ms: float
    detail: str


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, Check]


class Version(BaseModel):
    version: str


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "A job posted now would not run."}},
    summary="Can a job run? Redis, a worker, the disk, the data set",
)
async def readyz(request: Request, response: Response) -> Readiness:
    """Anybody may ask, so it is looked at once a second at most, and tells no numbers where keys are required."""
    readiness = await readiness_of(state_of(request))
    response.status_code = 200 if readiness.ready else 503
    return readiness


async def readiness_of(state: State) -> Readiness:
    """As it was found a moment ago, or is found now."""
    return await state.readiness.get(lambda: _look(state), lambda it: _GOOD_S if it.ready else _BAD_S)


async def _look(state: State) -> Readiness:
    checks = {
        "redis": await _check(state, _redis),
        "worker": await _check(state, _worker),
        "disk": await _check(state, _disk),
        "dataset": await _check(state, _dataset),
    }
    return Readiness(ready=all(check.ok for check in checks.values()), checks=checks)


@router.get("/version", summary="Which version this is")
async def get_version() -> Version:
    return Version(version=version("descent"))


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "In Prometheus' text format", "content": {OPENMETRICS: {"schema": {"type": "string"}}}}
    },
    summary="Metrics for Prometheus, or in OpenMetrics if it is accepted",
)
async def metrics(request: Request) -> Response:
    """Of the jobs and workers (as the store has them now, whoever asks whichever API server), and of this server's processes.

    Without Redis it answers too, within seconds: `descent_store_up` is then 0, and what the store knows is left out.
    """
    state = state_of(request)
    try:
        measures = await measure(state.database)
    except Unavailable:
        measures = None
    content, media_type = await run_in_threadpool(
        state.metrics.expose, measures, request.headers.get("accept", "")
    )  # with many processes it takes some 10 ms
    return Response(content, media_type=media_type)


async def _check(state: State, check: Callable[[State], Awaitable[str]]) -> Check:
    began = time.perf_counter()
    try:
        ok, detail = True, await check(state)
    except StorageAway as error:  # its reason names addresses
        ok, detail = False, str(error) if state.settings.keys_required else f"{error}: {error.reason}"
    except DescentError as error:
        ok, detail = False, str(error)
    except OSError as error:
        ok, detail = False, error.strerror or type(error).__name__  # its text names the server's paths
    return Check(ok=ok, ms=round((time.perf_counter() - began) * 1000, 2), detail=detail)


async def _redis(state: State) -> str:
    queued = await state.store.count_queued()
    return "answers" if state.settings.keys_required else f"{queued} jobs queued"


async def _worker(state: State) -> str:
    alive = await state.store.announced()
    if not alive:
        raise Unavailable("no worker is alive")
    with_gpu = sum(any(device["device"] != "cpu" for device in each.get("devices", [])) for each in alive.values())
    return "alive" if state.settings.keys_required else f"{len(alive)} alive, {with_gpu} of them with a GPU"


async def _disk(state: State) -> str:
    """Where the jobs' files are. A storage elsewhere may take long to say nothing."""
    try:
        async with asyncio.timeout(_DISK_LIMIT_S):
            return await to_thread.run_sync(state.files.probe, limiter=state.fetching, abandon_on_cancel=True)
    except TimeoutError:
        raise Unavailable(f"the storage of files does not answer within {_DISK_LIMIT_S} s") from None


async def _dataset(state: State) -> str:
    """A data set that is not here is no failure: the first job fetches it."""

    def look() -> str:
        from core.training import datasets

        here = [
            n
            for n in TRAIN_IMAGES
            if datasets.is_here(n, cache=state.settings.cache_dir, folder=state.settings.datasets)
        ]
        return f"here: {', '.join(here)}" if here else "none is here yet; the first job fetches it"

    return await run_in_threadpool(look)
