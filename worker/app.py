"""The worker: a Celery application with one task. `descent worker` runs it; it trains one job at a time.

Celery only says that there is a job. The work is done by one event loop in a thread of its own, which supervises the trainer,
keeps a standby ready and reconciles.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from importlib.metadata import version
from typing import Any

from celery import Celery, signals

from core import tracing
from core.devices import Slot, slots
from core.errors import StackError, Unavailable
from core.jobs import artifacts, broker
from core.jobs.access import refuse_without_access
from core.jobs.job import Status
from core.jobs.store import Doorbell
from core.jobs.work import WorkStore
from core.settings import Settings, configure_logging, read_settings
from core.storage import storage_at
from worker.reconcile import keep_reconciling
from worker.run import record_failure, run_job
from worker.several import supervise
from worker.standby import Standby

_LIMIT_S = 10

log = logging.getLogger(__name__)


class Engine:
    """The event loop of a worker, in its thread. `stopping` tells jobs to come to an end; the loop itself ends after them."""

    def __init__(self, settings: Settings, slot: Slot, doorbell: Doorbell) -> None:
        self._settings, self._slot, self._doorbell = settings, slot, doorbell
        self.queues = broker.queues_of(slot.number)
        self._traces = tracing.provider_for("descent-worker")
        self.stopping = threading.Event()
        self._is_up, self._may_end = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    def start(self) -> None:
        """Start the loop; returns when it can take jobs."""
        self._thread.start()
        if not self._is_up.wait(_LIMIT_S):
            raise StackError("the worker's event loop did not start")

    def leave(self) -> None:
        """End the loop, when the jobs have ended."""
        self.stopping.set()
        self._may_end.set()
        self._thread.join(_LIMIT_S)
        tracing.close(self._traces)

    def run(self, job_id: str) -> None:
        """Train a job, from any thread, and wait for it."""
        asyncio.run_coroutine_threadsafe(self._run(job_id), self._loop).result()

    def _keep_alive(self) -> None:
        """Run the loop. A worker without one would take jobs and never do them, so it ends with it; `up` starts it again."""
        try:
            self._loop.run_until_complete(self._live())
        except BaseException:
            log.critical("the worker's event loop ended", exc_info=True)
            os._exit(1)

    async def _live(self) -> None:
        self._standby = Standby(self._settings, self._slot)
        try:
            await self._standby.refill()
            async with WorkStore.connect(self._settings.store_url) as self._store:
                self._is_up.set()
                await keep_reconciling(self._store, self._settings, self._introduction(), self._doorbell, self.stopping)
                await asyncio.to_thread(self._may_end.wait)
        finally:
            await self._standby.close()

    def _introduction(self) -> dict[str, Any]:
        """What this worker says of itself."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("descent"),
            "device": self._settings.device,
            "threads": self._settings.threads_per_trainer,
            "devices": self._slot.devices(self._settings),
            "queues": self.queues,
        }

    async def _run(self, job_id: str) -> None:
        try:
            status = await run_job(
                job_id,
                self._store,
                self._settings,
                self._standby,
                self.stopping,
                queues=self.queues,
                traces=self._traces,
            )
            with contextlib.suppress(Unavailable):  # then the reconciler rings
                if status == Status.QUEUED:  # somebody else, or we again, may go on at once
                    await self._store.ring(job_id, doorbell=self._doorbell)
                for next_id in await self._store.released():
                    await self._store.ring(next_id, doorbell=self._doorbell)
        except Exception as error:  # the one place: whatever it is, the worker serves the next job
            record_failure(job_id, error)
        finally:
            if not self.stopping.is_set():
                await self._standby.refill()


def make_app(settings: Settings, slot: Slot) -> tuple[Celery, Engine]:
    """The application with its task, and what does its work."""
    app = broker.make_celery(settings.store_url)
    engine = Engine(settings, slot, broker.doorbells(app))

    @app.task(name=broker.TASK)
    def train(job_id: str) -> None:
        engine.run(job_id)

    return app, engine


def main(slot: str = "") -> None:
    """Run the worker of a slot (from 1), or of each slot that this machine has, until SIGTERM or SIGINT.

    A worker then gives its job back and leaves. Raises StackError when Redis does not let us do our work.
    """
    settings = read_settings()
    configure_logging(settings.log_level)
    refuse_without_access(settings, "descent-worker")
    artifacts.require_storage(settings, must_answer=False)
    if settings.data_mirror:  # what speaks to it is installed? whether it answers is seen when a data set is missing
        storage_at(settings.data_mirror, setting="DESCENT_DATA_MIRROR")
    all_slots = slots(settings)
    if slot or len(all_slots) == 1:
        _work(settings, all_slots[int(slot or 1) - 1])
    else:
        supervise(len(all_slots), limit_s=settings.leave_s)


def _work(settings: Settings, slot: Slot) -> None:
    """Be one worker."""
    app, engine = make_app(settings, slot)

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        engine.stopping.set()

    engine.start()
    sys.__stdout__ = None  # type: ignore[misc]  # to this Celery says that it was told to leave, in lines that are no JSON
    worker = app.Worker(
        pool="threads",
        concurrency=1,
        hostname=f"descent-{os.getpid()}@{socket.gethostname()}",
        loglevel=settings.log_level.upper(),
        queues=engine.queues,
        without_gossip=True,
        without_mingle=True,
        task_events=settings.task_events,
        without_heartbeat=not settings.task_events,
        quiet=True,
    )
    worker.start()
    engine.leave()
    if worker.exitcode:
        raise StackError(f"the worker ended with {worker.exitcode}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except StackError as refused:
        raise SystemExit(f"descent: {refused}") from None
