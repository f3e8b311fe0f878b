"""The reconciler: finds jobs whose worker or whose message was lost, and says that this worker is alive.

Every worker runs one, and they take turns, so that a thousand of them cost the database what one does. All moves are
compare-and-set: two at once would agree as well.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from typing import Any

from core.errors import Unavailable
from core.jobs import archive, artifacts, broker
from core.jobs.job import WORKER_LOST
from core.jobs.store import Doorbell
from core.jobs.work import WorkStore
from core.settings import Settings
from core.storage import Storage

_RUNG_AT_A_TIME = 5000  # jobs of a queue: some seconds
_TURN = 0.8  # of the time between two scans; who had the turn before is then in time for the next
_FILED_AT_A_TIME = 100  # others each time, as others file as well

log = logging.getLogger(__name__)


async def keep_reconciling(
    store: WorkStore, settings: Settings, worker: dict[str, Any], doorbell: Doorbell, stopping: threading.Event
) -> None:
    """Reconcile until `stopping`, and announce the worker: what it says of itself."""
    name, info = f"{worker['host']}:{worker['pid']}", worker
    files, scan_at = artifacts.storage(settings), 0.0
    filing: asyncio.Task[None] | None = None
    while not stopping.is_set():
        try:
            await store.announce(name, alive_s=3 * settings.beat_s, info=info)
            if time.monotonic() >= scan_at and await store.take_turn("scan", every_s=_TURN * settings.scan_s):
                scan_at = time.monotonic() + settings.scan_s
                await reconcile(store, doorbell, scan_s=settings.scan_s)
            if filing and filing.done():
                filing.result()  # what nobody foresaw ends the worker
            if filing is None or filing.done():  # by itself: a storage that is away takes its time to say so
                filing = asyncio.create_task(bring_files_up_to_date(store, files, limit_s=settings.scan_s / 10))
        except Unavailable as error:
            log.warning("cannot reconcile", extra={"reason": str(error)})
        await asyncio.to_thread(stopping.wait, min(settings.beat_s, settings.scan_s))
    with contextlib.suppress(Unavailable):
        await store.announce(name, alive_s=0, info=info)
    if filing:
        await filing


async def bring_files_up_to_date(store: WorkStore, files: Storage, *, limit_s: float) -> None:
    """Write the files of jobs and sweeps that have changed, those of deleted ones go; no more is begun after `limit_s`."""
    began = time.monotonic()
    try:
        unfiled = await store.unfiled(_FILED_AT_A_TIME)
        random.shuffle(unfiled)  # a job whose files cannot be written must not keep the others waiting
        for job_id in unfiled:
            file = archive.file_sweep if artifacts.SWEEP_ID.fullmatch(job_id) else archive.file_job
            await file(store, files, job_id)
            if time.monotonic() - began > limit_s:
                break
        for job_id in await store.trash():
            await archive.remove_job(store, files, job_id)
            if time.monotonic() - began > 2 * limit_s:
                break
    except Unavailable as error:
        log.warning("cannot bring the jobs' files up to date", extra={"reason": str(error)})


async def reconcile(store: WorkStore, doorbell: Doorbell, *, scan_s: float) -> None:
    """Queue jobs whose lease ran out again, and ring for queued jobs whose message is lost."""
    for job_id in await store.overdue():
        status = await store.retry(job_id, None, WORKER_LOST)
        log.warning("lease ran out", extra={"job_id": job_id, "status": status})
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
