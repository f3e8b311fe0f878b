"""One job, supervised: claim it, run its trainer in a process of its own, store what it reports, end it.

The supervisor holds the lease and talks to Redis; the trainer only computes. Whatever happens to either, the record says the
truth: a job ends once, and a claim that was lost writes nothing more.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DescentError, Unavailable
from core.jobs import archive, artifacts
from core.jobs.job import WORKER_LOST, JobError, Status
from core.jobs.work import Claim, WorkStore
from core.logs import bind, bound
from core.settings import Settings
from worker.span import Span
from worker.standby import Standby
from worker.trainer_process import Assignment

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_LAST_WORDS_S = 5.0  # how long a trainer may take to leave once it has said how it went
_PULSE_S = 0.2  # how often limits and requests to stop are looked at

log = logging.getLogger(__name__)


async def run_job(
    job_id: str,
    store: WorkStore,
    settings: Settings,
    standby: Standby,
    stopping: threading.Event,
    *,
    queues: Sequence[str],
    traces: "TracerProvider | None" = None,
) -> str | None:
    """Train one job to its end, or give it back when `stopping` is set.

    Does nothing when it is not queued any more, or is for workers that listen to other queues than ours.

    Returns the status it has then, `lost` when it is not ours any more, or None when there was nothing to do.
    """
    if stopping.is_set():
        return None  # the job stays queued
    name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    claim = await store.claim(job_id, worker=name, lease_s=settings.lease_s, queues=queues)
    if claim is None:
        log.info("nothing to do", extra={"job_id": job_id})
        return None
    with Span(traces, claim, device=settings.device) as span:
        request_id = claim.origin.request_id if claim.origin else None
        bind(job_id=job_id, attempt=claim.attempt, request_id=request_id, trace_id=span.trace_id)
        log.info("job claimed", extra={"worker": name})
        supervisor = Supervisor(claim, store, settings, stopping, span)
        ended = await supervisor.run(await standby.take())
        log.info("job left", extra={"ended": ended, **supervisor.why})
        span.end(ended, **supervisor.why)
    with contextlib.suppress(Unavailable):  # then the reconciler does it
        await archive.file_job(store, artifacts.storage(settings), job_id)
    return ended


class Supervisor:
    """Runs one claim's trainer.

    `_verdict` says why it was told to stop: cancel, pause, stop, timeout, memory, silence (Redis was away for a whole
    lease) or lost (somebody else has the job).
    """

    def __init__(
        self, claim: Claim, store: WorkStore, settings: Settings, stopping: threading.Event, span: Span
    ) -> None:
        self._claim, self._store, self._settings, self._stopping = claim, store, settings, stopping
        self._span = span
        self._verdict: str | None = None
        self._asked_by: str | None = None  # the request that wanted it cancelled or paused
        self._final: dict[str, Any] | None = None  # the trainer's last word: done, stopped or failed
        self._started: dict[str, Any] | None = None  # its first word, until it is stored
        self._points: list[dict[str, Any]] = []
        self._epochs: list[dict[str, Any]] = []
        self._steps_done, self._images_per_s = 0, 0.0
        self._news = asyncio.Event()
        now = self._write_at = time.monotonic()
        self._beat_at, self._lease_end = now + settings.beat_s, now + settings.lease_s
        self._deadline = now + claim.spec.max_runtime_s - claim.ran_s

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
        claim = self._claim
        folder = artifacts.claim_folder(claim.job_id, claim.token)
        assignment = Assignment(
            job_id=claim.job_id,
            spec=claim.spec.model_dump(),
            folder=folder,
            last_step=claim.last_step,
            log=dict(bound()),
        )
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
                    self._started = message
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
        """Write what there is, renew the lease, and stop the trainer when there is a reason to; kill it when it does not."""
        kill_at = math.inf
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PULSE_S):  # wait_for would swallow a cancel on Python 3.11
                    await self._news.wait()
            answer = await self._report()
            verdict = self._judge(answer, process.pid)
            if verdict and verdict != self._verdict and (self._verdict is None or verdict in ("lost", "memory")):
                kill_at = min(kill_at, await self._stop_trainer(process, verdict))
            if time.monotonic() >= kill_at:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return
            await asyncio.sleep(_PULSE_S)

    async def _report(self) -> str | None:
        """Write and beat, as far as they are due. Returns the store's answer; None when it was not asked or is away."""
        answer = None
        try:
            if self._news.is_set() and time.monotonic() >= self._write_at:
                self._write_at = time.monotonic() + self._settings.report_s - _PULSE_S / 2  # pulses are not exact
                self._news.clear()
                answer = await self._write()
            if time.monotonic() >= self._beat_at:
                asked = time.monotonic()
                answer = await self._store.beat(self._claim, lease_s=self._settings.lease_s)
                self._beat_at, self._lease_end = asked + self._settings.beat_s, asked + self._settings.lease_s
        except Unavailable as error:
            self._news.set()  # what was not written stays; write it when Redis is back
            log.warning("Redis is away", extra={"job_id": self._claim.job_id, "reason": str(error)})
        return answer

    def _judge(self, answer: str | None, pid: int) -> str | None:
        """Why the trainer should stop, if it should."""
        if answer in ("cancel", "pause", "lost"):
            return answer
        if _memory_of(pid) > self._settings.memory_per_trainer:
            return "memory"
        if time.monotonic() > self._deadline:
            return "timeout"
        if self._stopping.is_set():
            return "stop"
        # Somebody else may have the job by now; training on is only heat. The checkpoint is not.
        return "silence" if time.monotonic() > self._lease_end and answer is None else None

    async def _stop_trainer(self, process: asyncio.subprocess.Process, verdict: str) -> float:
        """Tell the trainer to stop. Returns when it is to be killed."""
        self._verdict = verdict
        with contextlib.suppress(ProcessLookupError):
            process.kill() if verdict in ("lost", "memory") else process.terminate()
        kill_at = time.monotonic() + self._settings.stop_s
        if verdict in ("cancel", "pause"):
            with contextlib.suppress(Unavailable):
                self._asked_by = await self._store.asked_by(self._claim)
        log.info("stopping the trainer", extra=self.why)
        return kill_at

    async def _write(self) -> str:
        """Store what waits: how it began, points, epochs. It is dropped only once it is stored."""
        if self._started:
            backend, resumed_from = self._started["backend"], self._started["resumed_from"]
            await self._store.begin(self._claim, backend, resumed_from=resumed_from)
            self._span.began(backend, resumed_from)
            self._started = None
        count, epochs = len(self._points), len(self._epochs)
        answer = await self._store.append(
            self._claim, self._points[:count], steps_done=self._steps_done, images_per_s=self._images_per_s
        )
        del self._points[:count]
        for metrics in self._epochs[:epochs]:
            answer = await self._store.end_epoch(self._claim, metrics)
            self._span.epoch(metrics)
        del self._epochs[:epochs]
        return answer

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
        """Write the last points and then the end. While Redis is away there is nothing better to do than to try again."""
        began, patience = time.monotonic(), self._settings.lease_s
        while True:
            try:
                if self._verdict != "lost" and await self._write() == "lost":
                    self._verdict = "lost"
                return await self._enter_end()
            except Unavailable:
                if time.monotonic() - began > (patience if self._stopping.is_set() else 20 * patience):
                    return "lost"
                await asyncio.sleep(_PULSE_S)

    async def _enter_end(self) -> str:
        match self._verdict, self._final:
            case "lost", _:
                return "lost"
            case _, {"type": "done", "result": result, "files": files}:
                return await self._store.finish(self._claim, Status.SUCCEEDED, result=result, files=files)
            case _, {"type": "failed", "code": code, "message": message, "step": step}:
                return await self._fail(code, message, self._step if step is None else step)
            case "memory", _:
                limit = self._settings.memory_per_trainer >> 20
                return await self._fail("out_of_memory", f"it took more than {limit} MiB", self._step)
            case "timeout", _:
                limit = self._claim.spec.max_runtime_s
                return await self._fail("max_runtime", f"it ran longer than {limit} s", self._step)
            case None, None:  # it crashed, or was killed
                return await self._store.retry(self._claim.job_id, self._claim, WORKER_LOST)
            case _:  # it was asked to stop, by us or by whoever stops the machine
                return await self._store.stop(self._claim, partial=self._partial)

    async def _fail(self, code: str, message: str, step: int | None) -> str:
        error = JobError(code=code, message=message, step=step)
        return await self._store.finish(self._claim, Status.FAILED, error=error, partial=self._partial)

    @property
    def why(self) -> dict[str, str]:
        """Why it did not go on to its end, as far as it did not."""
        code = self._final["code"] if self._final and self._final["type"] == "failed" else None
        known = {"reason": self._verdict or code, "asked_by": self._asked_by}
        return {name: text for name, text in known.items() if text}

    @property
    def _step(self) -> int | None:
        """The last step that was reported; None before the first."""
        return self._steps_done - 1 if self._steps_done else None

    @property
    def _partial(self) -> dict[str, Any] | None:
        """The weights of a trainer that was stopped."""
        return self._final["files"] if self._final and self._final["type"] == "stopped" else None


def _memory_of(pid: int) -> int:
    """Bytes of memory a process has; 0 where the system does not say (only Linux does), or when it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def record_failure(job_id: str, error: Exception) -> None:
    """Log what nobody foresaw. The lease then runs out, and the job is tried again or failed."""
    expected = isinstance(error, DescentError)
    log.error("job left in trouble", extra={"job_id": job_id, "reason": repr(error)}, exc_info=not expected)
