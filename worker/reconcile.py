"""The reconciler: finds jobs whose worker or whose message was lost, and says that this worker is alive.

Every worker runs one; all moves are compare-and-set, so any number of them agree.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

from core.errors import Unavailable
from core.jobs import archive, artifacts, broker
from core.jobs.job import WORKER_LOST
from core.jobs.store import Doorbell
from core.jobs.work import WorkStore
from core.settings import Settings

_RUNG_AT_A_TIME = 5000  # jobs of a queue: some seconds

log = logging.getLogger(__name__)


async def keep_reconciling(
    store: WorkStore, settings: Settings, worker: dict[str, Any], doorbell: Doorbell, stopping: threading.Event
) -> None:
    """Reconcile until `stopping`, and announce the worker: what it says of itself."""
    name, info = f"{worker['host']}:{worker['pid']}", worker
    scan_at = 0.0
    while not stopping.is_set():
        try:
            await store.announce(name, alive_s=3 * settings.beat_s, info=info)
            if time.monotonic() >= scan_at:
                scan_at = time.monotonic() + settings.scan_s
                await reconcile(store, doorbell, settings.jobs_dir, scan_s=settings.scan_s)
        except Unavailable as error:
            log.warning("cannot reconcile", extra={"reason": str(error)})
        await asyncio.to_thread(stopping.wait, min(settings.beat_s, settings.scan_s))
    with contextlib.suppress(Unavailable):
        await store.announce(name, alive_s=0, info=info)


async def reconcile(store: WorkStore, doorbell: Doorbell, jobs_dir: Path, *, scan_s: float) -> None:
    """Queue jobs whose lease ran out again, ring for queued jobs whose message is lost, bring the files up to date."""
    for job_id in await store.overdue():
        status = await store.retry(job_id, None, WORKER_LOST)
        log.warning("lease ran out", extra={"job_id": job_id, "status": status})
    unfiled, began = await store.unfiled(), time.monotonic()
    random.shuffle(unfiled)  # a job whose files cannot be written must not keep the others waiting
    for job_id in unfiled:
        file = archive.file_sweep if artifacts.SWEEP_ID.fullmatch(job_id) else archive.file_job
        await file(store, jobs_dir, job_id)
        if time.monotonic() - began > scan_s / 10:  # nor leases, for a slow disk
            break
    for job_id in await store.trash():
        await archive.remove_job(store, jobs_dir, job_id)
    for job_id in await store.released():
        await store.ring(job_id, doorbell=doorbell)
    for queue in await store.short_queues():
        await _ring_again(store, doorbell, queue, min_age_s=scan_s / 2)


async def _ring_again(store: WorkStore, doorbell: Doorbell, queue: str, *, min_age_s: float) -> None:
    """Ring for the jobs that a queue's workers could train and whose message is not there.

    It was lost; or lies where no worker is alive any more, or none has come for it yet. If it comes twice, the second finds
    nothing to do.
    """
    there = {broker.job_id_of(message) for message in await store.messages(queue)}
    for job_id in await store.queued(queue, most=_RUNG_AT_A_TIME):
        if job_id not in there and await store.ring(job_id, doorbell=doorbell, queue=queue, min_age_s=min_age_s):
            log.info("ringing again", extra={"job_id": job_id, "queue": queue})
