"""One job, supervised: claim it, run its trainer in a process of its own, store what it reports, end it.

The supervisor holds the lease and talks to Redis; the trainer only computes. Whatever happens to either, the record says the
truth: a job ends once, and a claim that was lost writes nothing more.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from typing import Any

from core.errors import DescentError, Unavailable
from core.jobs import artifacts
from core.jobs.job import WORKER_LOST, JobError, Status
from core.jobs.store import Claim, JobStore
from core.settings import Settings
from worker.standby import Standby
from worker.trainer_process import Assignment

_LAST_WORDS_S = 5.0  # how long a trainer may take to leave once it has said how it went
_PULSE_S = 0.2  # how often points are written and requests to stop are looked at

log = logging.getLogger(__name__)


async def run_job(
    job_id: str, store: JobStore, settings: Settings, standby: Standby, stopping: threading.Event
) -> None:
    """Train one job to its end, or give it back when `stopping` is set. Does nothing when it is not queued any more."""
    if stopping.is_set():
        return  # the job stays queued
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    claim = await store.claim(job_id, worker=name, lease_s=settings.lease_s)
    if claim is None:
        log.info("nothing to do", extra={"job_id": job_id})
        return
    log.info("job claimed", extra={"job_id": job_id, "attempt": claim.attempt, "worker": name})
    ended = await Supervisor(claim, store, settings, stopping).run(await standby.take())
    log.info("job left", extra={"job_id": job_id, "attempt": claim.attempt, "ended": ended})


class Supervisor:
    """Runs one claim's trainer. `_verdict` says why it was told to stop: cancel, lost, stop or timeout."""

    def __init__(self, claim: Claim, store: JobStore, settings: Settings, stopping: threading.Event) -> None:
        self._claim, self._store, self._settings, self._stopping = claim, store, settings, stopping
        self._verdict: str | None = None
        self._final: dict[str, Any] | None = None  # the trainer's last word: done or failed
        self._points: list[dict[str, Any]] = []
        self._epochs: list[dict[str, Any]] = []
        self._backend: dict[str, Any] | None = None
        self._steps_done, self._images_per_s = 0, 0.0
        self._news = asyncio.Event()

    async def run(self, process: asyncio.subprocess.Process) -> str:
        """Have a waiting trainer do the job and supervise it to the end. Returns the status the job then has, or `lost`."""
        listening, pulse = asyncio.create_task(self._listen(process)), asyncio.create_task(self._pulse(process))
        try:
            await self._assign(process)
            done, _ = await asyncio.wait({listening, pulse}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what went wrong in it
        finally:
            await self._end_process(process)
            pulse.cancel()
            await asyncio.wait({listening, pulse}, timeout=_LAST_WORDS_S)  # what it wrote before its end
            listening.cancel()
        return await self._conclude()

    async def _assign(self, process: asyncio.subprocess.Process) -> None:
        folder = artifacts.attempt_dir(self._settings.jobs_dir, self._claim.job_id, self._claim.token)
        assignment = Assignment(job_id=self._claim.job_id, spec=self._claim.spec.model_dump(), folder=str(folder))
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died at once: the end of its output says so
            process.stdin.write(json.dumps(dataclasses.asdict(assignment)).encode() + b"\n")
            await process.stdin.drain()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Take the trainer's messages until its last word, or the end of its output."""
        assert process.stdout is not None
        async for line in process.stdout:
            message = json.loads(line)
            match message["type"]:
                case "started":
                    self._backend = message["backend"]
                case "block":
                    self._points += message["points"]
                    self._steps_done, self._images_per_s = message["steps_done"], message["images_per_s"]
                case "epoch":
                    self._epochs.append(message["metrics"])
                case _:
                    self._final = message
                    return
            self._news.set()

    async def _pulse(self, process: asyncio.subprocess.Process) -> None:
        """Write what there is, renew the lease, and stop the trainer when there is a reason to."""
        settings = self._settings
        deadline = time.monotonic() + self._claim.spec.max_runtime_s
        beat_at, lease_end = time.monotonic() + settings.beat_s, time.monotonic() + settings.lease_s
        while self._verdict is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PULSE_S):  # wait_for would swallow a cancel on Python 3.11
                    await self._news.wait()
            answer = None
            try:
                if self._news.is_set():
                    self._news.clear()
                    answer = await self._write()
                if time.monotonic() >= beat_at:
                    answer = await self._store.beat(self._claim, lease_s=settings.lease_s)
                    beat_at = time.monotonic() + settings.beat_s
                    lease_end = time.monotonic() + settings.lease_s
            except Unavailable as error:
                self._news.set()  # what was not written stays; write it when Redis is back
                log.warning("Redis is away", extra={"job_id": self._claim.job_id, "reason": str(error)})
            self._verdict = self._judge(answer, deadline, lease_end)
            await asyncio.sleep(_PULSE_S)
        log.info("stopping the trainer", extra={"job_id": self._claim.job_id, "reason": self._verdict})
        await self._terminate(process)

    def _judge(self, answer: str | None, deadline: float, lease_end: float) -> str | None:
        if answer in ("cancel", "lost"):
            return answer
        if time.monotonic() > deadline:
            return "timeout"
        if self._stopping.is_set():
            return "stop"
        # Redis was away for a whole lease. Somebody else may have the job; training on is only heat.
        return "lost" if time.monotonic() > lease_end and answer is None else None

    async def _write(self) -> str:
        """Store the points and epochs that wait. They are dropped only once they are stored."""
        count, epochs = len(self._points), len(self._epochs)
        answer = await self._store.append(
            self._claim,
            self._points[:count],
            steps_done=self._steps_done,
            images_per_s=self._images_per_s,
            backend=self._backend,
        )
        del self._points[:count]
        for metrics in self._epochs[:epochs]:
            await self._store.end_epoch(self._claim, metrics)
        del self._epochs[:epochs]
        return answer

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._settings.stop_s)

    async def _end_process(self, process: asyncio.subprocess.Process) -> None:
        """Whatever happened, no trainer is left behind. One that has said its last word gets a moment to leave."""
        if self._final:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _LAST_WORDS_S)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await process.wait()
        except TimeoutError:  # something it started holds its pipes
            log.error("the trainer was killed and its pipes stay open", extra={"job_id": self._claim.job_id})

    async def _conclude(self) -> str:
        """Write the last points and then the end, trying for as long as the lease could last."""
        give_up = time.monotonic() + self._settings.lease_s
        while True:
            try:
                if self._verdict != "lost" and await self._write() == "lost":
                    self._verdict = "lost"
                return await self._enter_end()
            except Unavailable:
                if time.monotonic() > give_up:
                    return "lost"
                await asyncio.sleep(_PULSE_S)

    async def _enter_end(self) -> str:
        match self._verdict, self._final:
            case "lost", _:
                return "lost"
            case "cancel", _:
                return await self._store.finish(self._claim, Status.CANCELLED)
            case _, {"type": "done", "result": result, "files": files}:
                return await self._store.finish(self._claim, Status.SUCCEEDED, result=result, files=files)
            case _, {"type": "failed", "code": code, "message": message, "step": step}:
                error = JobError(code=code, message=message, step=step)
                return await self._store.finish(self._claim, Status.FAILED, error=error)
            case "timeout", _:
                limit = self._claim.spec.max_runtime_s
                error = JobError(code="max_runtime", message=f"it ran longer than {limit} s", step=self._steps_done)
                return await self._store.finish(self._claim, Status.FAILED, error=error)
            case "stop", _:
                return await self._store.release(self._claim)
            case _:  # it crashed, or was killed
                return await self._store.retry(self._claim.job_id, self._claim, WORKER_LOST)


def record_failure(job_id: str, error: Exception) -> None:
    """Log what nobody foresaw. The lease then runs out, and the job is tried again or failed."""
    expected = isinstance(error, DescentError)
    log.error("job left in trouble", extra={"job_id": job_id, "reason": repr(error)}, exc_info=not expected)
