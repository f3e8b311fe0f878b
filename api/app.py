"""The application: routes, error rendering, what stands before them. `descent api` serves it."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from api import (
    catalogue,
    compare,
    document,
    download,
    evaluation,
    events,
    history,
    inference,
    jobs,
    models,
    ops,
    page,
    predict,
    problem_pages,
    problems,
    rate_range,
    sweeps,
    workers,
)
from api.evaluating import Evaluating
from api.guard import Guard
from api.holds import Holds
from api.metrics import Metrics
from api.predicting import Predicting
from api.requests import Requests
from api.state import MOST_FETCHING, Recent, State
from core import tracing
from core.errors import StackError
from core.jobs import artifacts, broker
from core.jobs.access import refuse_without_access
from core.jobs.database import connect
from core.jobs.keys import KeyStore, refuse_without_keys
from core.jobs.models import ModelStore
from core.jobs.owners import Limits
from core.jobs.store import JobStore
from core.jobs.sweeps import SweepStore
from core.settings import Settings, available_cores, configure_logging, read_settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

_UNTRACED = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2/health/live",
    "/v2/health/ready",
)  # asked for by machines, for ever
_RESOURCES = (
    predict,
    inference,
    jobs,
    download,
    evaluation,
    sweeps,
    rate_range,
    history,
    events,
    compare,
    models,
    catalogue,
    workers,
    ops,
    problem_pages,
    page,
)


def create_app(settings: Settings | None = None, metrics: Metrics | None = None) -> FastAPI:
    """The API. Connects to nothing until it is served. `metrics` are its own, unless it is one of several processes."""
    settings = settings or read_settings()
    configure_logging(settings.log_level)
    metrics = metrics or Metrics()
    traces = tracing.provider_for("descent-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect(settings.store_url) as database:
            limits = Limits(
                most_live=settings.most_live, most_kept=settings.most_kept, most_queued=settings.most_queued
            )
            app.state.shared = State(
                settings=settings,
                database=database,
                store=JobStore(database, limits),
                sweeps=SweepStore(database, limits),
                keys=KeyStore(database),
                models=ModelStore(database),
                metrics=metrics,
                doorbell=broker.doorbells(broker.make_celery(settings.store_url)),
                readiness=Recent(),
                predicting=(predicting := Predicting(settings)),
                evaluating=Evaluating(settings, predicting),
                drawing=CapacityLimiter(available_cores()),
                exporting=CapacityLimiter(1),
                fetching=CapacityLimiter(MOST_FETCHING),
                holds=Holds(has_owners=settings.keys_required),
            )
            try:
                yield
            finally:
                predicting.close()
                await to_thread.run_sync(tracing.close, traces)

    app: FastAPI = FastAPIOffline(
        title="Descent",
        version=version("descent"),
        summary="Training jobs over REST: post a spec, watch the loss fall, download the model, predict digits.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a redirect names the Host that the client claims, and no redirect is documented
        separate_input_output_schemas=False,
        generate_unique_id_function=document.operation_id,
        telemetry=_telemetry(traces) if traces else None,
    )
    for module in _RESOURCES:
        app.include_router(module.router)
    problems.install(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Requests, metrics=metrics)
    document.install(app, needs_key=settings.keys_required)
    return app


def _telemetry(traces: "TracerProvider") -> TelemetryConfig:
    """FastAPI's own spans, one a request. Its metrics and logs stay off: there are /metrics, and our log."""
    return {
        "tracer_provider": traces,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in _UNTRACED,
    }


def main(*, keys_checked: bool = False) -> None:
    """Serve the API in the foreground until SIGTERM or SIGINT, in as many processes as the settings say.

    Raises StackError when Redis does not let us do our work, and when keys are required and there are none. A parent that has
    looked for them when it began says `keys_checked`: who revokes the last key does not take the rest down with an API that
    is started again.
    """
    settings = read_settings()
    configure_logging(settings.log_level)
    refuse_without_access(settings, "descent-api")
    if settings.keys_required:
        _look_for_keys(settings, must_exist=not keys_checked)
    artifacts.storage(settings)  # raises for an address whose extra is not installed
    if settings.api_processes > 1:
        from api.processes import supervise

        supervise(settings)
    else:
        serve(create_app(settings), settings)


def serve(app: FastAPI, settings: Settings, listening: socket.socket | None = None) -> None:
    """Serve in this process until SIGTERM or SIGINT, at a socket that is bound already, or else where the settings say."""
    import uvicorn

    from api.protocol import Protocol

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        ws="none",  # there is none here, and what would upgrade to it knows nothing of our transport
        loop="asyncio",  # under uvloop redis-py does not notice that a connection was cut (docs/decisions.md)
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    gc.collect()
    gc.freeze()  # what there is by now stays; each full collection would look through all of it, for 50 ms
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening] if listening else None)
    if not server.started:
        raise SystemExit(3)  # it has said why


def _look_for_keys(settings: Settings, *, must_exist: bool) -> None:
    try:
        asyncio.run(refuse_without_keys(settings.store_url, settings.host))
    except StackError as refused:
        if must_exist:
            raise
        log.warning("there are no keys: nobody gets in", extra={"reason": str(refused)})


if __name__ == "__main__":
    try:
        main(keys_checked="--keys-checked" in sys.argv[1:])
    except StackError as refused:
        raise SystemExit(f"descent: {refused}") from None
