"""The reconciler: finds jobs whose worker or whose message was lost, and says that this worker is alive.

Every worker runs one; all moves are compare-and-set, so any number of them agree.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import time
from pathlib import Path

from celery import Celery

from core.errors import Unavailable
from core.jobs import archive, artifacts, broker
from core.jobs.job import WORKER_LOST
from core.jobs.work import WorkStore
from core.settings import Settings

log = logging.getLogger(__name__)


async def keep_reconciling(store: WorkStore, settings: Settings, app: Celery, stopping: threading.Event) -> None:
    """Reconcile and announce until `stopping`."""
    name = f"{socket.gethostname()}:{os.getpid()}"
    info = {"device": settings.device, "threads": settings.threads_per_trainer}
    scan_at = 0.0
    while not stopping.is_set():
        try:
            await store.announce(name, alive_s=3 * settings.beat_s, info=info)
            if time.monotonic() >= scan_at:
                scan_at = time.monotonic() + settings.scan_s
                await reconcile(store, app, settings.jobs_dir, scan_s=settings.scan_s)
        except Unavailable as error:
            log.warning("cannot reconcile", extra={"reason": str(error)})
        await asyncio.to_thread(stopping.wait, min(settings.beat_s, settings.scan_s))
    with contextlib.suppress(Unavailable):
        await store.announce(name, alive_s=0, info=info)


async def reconcile(store: WorkStore, app: Celery, jobs_dir: Path, *, scan_s: float) -> None:
    """Queue jobs whose lease ran out again, ring for queued jobs whose message is nowhere, bring the files up to date."""
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
        await asyncio.to_thread(broker.enqueue, app, job_id)
    queued = await store.queued()
    if not queued or await asyncio.to_thread(broker.count_waiting, app) >= len(queued):
        return
    waiting = await asyncio.to_thread(broker.waiting_ids, app)
    for job_id in queued:
        if job_id not in waiting and await store.ring(job_id, min_age_s=scan_s / 2):
            log.info("message was lost, ringing again", extra={"job_id": job_id})
            await asyncio.to_thread(broker.enqueue, app, job_id)
