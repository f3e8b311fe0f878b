"""What the processes of `bench/scale.py` do: workers that do not train, and clients; a public function is one process' work."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from core.errors import Unavailable
from core.jobs import broker
from core.jobs.database import reaching_redis
from core.jobs.job import Status
from core.jobs.owners import Limits
from core.jobs.store import Doorbell
from core.jobs.work import Claim, WorkStore
from core.settings import Settings
from core.spec import JobSpec
from worker.reconcile import reconcile

SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "log_every": 10})
POINTS = 10  # of a block: 100 steps, about what a trainer of two cores does in a second
BACKEND = {"device": "cpu", "kernel": "fused-avx512", "threads": 1}
EPOCH = {"epoch": 0, "train_loss": 0.21, "valid_loss": 0.08, "valid_accuracy": 0.977, "learning_rate": 0.001,
         "images_per_s": 20000.0, "seconds": 2.5}  # fmt: skip
RESULT = {"valid_accuracy": 0.977, "test_accuracy": 0.976, "final_loss": 0.05, "images_per_s": 20000.0, "seconds": 2.6}
FILE = {"path": "0/model.safetensors", "sha256": "0" * 64, "size_bytes": 82512}
LIMITS = Limits(most_live=10**9, most_kept=10**9, most_queued=10**9)
POLLS_A_SECOND = 25
_LOOK_AGAIN_S = 0.2
_WORKERS_A_POOL = 50  # it has 100 connections, and each that waits for a message keeps one


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one simulating process does: so many workers, until the time is over or the queue is empty."""

    url: str
    workers: int
    seconds: float
    blocks: int  # of a job
    every_s: float  # between blocks
    settings: Settings


@dataclass
class Told:
    """What a process saw: how often each thing was done, how long some took (ms), its own time on a core."""

    counts: Counter[str] = field(default_factory=Counter)
    ms: dict[str, list[float]] = field(default_factory=partial(defaultdict, list))
    cpu_s: float = 0.0

    async def timed(self, name: str, ask: Callable[..., Awaitable[Any]], *args: Any, **facts: Any) -> Any:
        """Its answer, however often it has to be asked: so do workers, while the server is away."""
        began = time.perf_counter()
        while True:
            try:
                done = await ask(*args, **facts)
                break
            except Unavailable:
                self.counts["away"] += 1
                await asyncio.sleep(_LOOK_AGAIN_S)
        self.ms[name].append((time.perf_counter() - began) * 1000)
        self.counts[name] += 1
        return done

    def __add__(self, other: "Told") -> "Told":
        both = Told(self.counts + other.counts, cpu_s=self.cpu_s + other.cpu_s)
        for name, ms in itertools.chain(self.ms.items(), other.ms.items()):
            both.ms[name].extend(ms)
        return both


def points(block: int) -> list[dict[str, Any]]:
    first = block * POINTS
    return [
        {"step": step * 10, "epoch": 0, "batch": step * 10, "loss": 2.3 / (step + 1), "time_s": 0.1 * step}
        for step in range(first, first + POINTS)
    ]


# --- the workers -------------------------------------------------------------------------------------------------------


async def work(load: Load, store: WorkStore, told: Told, doorbell: Doorbell, until: float) -> None:
    """One worker: takes jobs until the time is over or none is left; keeps beating, announcing and taking its turn."""
    name = f"host-{random.randrange(10**9)}:1"
    await asyncio.sleep(random.random() * load.every_s)
    keeping = asyncio.create_task(keep_up(load, store, name, told, doorbell))
    try:
        async for job_id in messages(store, told, until):
            worker, lease_s = f"{name}:{job_id[-8:]}", load.settings.lease_s
            claim = await told.timed("claim", store.claim, job_id, worker=worker, lease_s=lease_s)
            if claim is not None:
                await train(load, store, claim, told)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def messages(store: WorkStore, told: Told, until: float) -> AsyncIterator[str]:
    """Job ids from the queue, taken and acknowledged as kombu does it. Ends when the time is over or none came for long."""
    redis, empty = store.database.redis, 0
    while time.monotonic() < until and empty < 2:
        found = await told.timed("look", reaching_redis(redis.brpop), broker.queues_of(None), timeout=1)
        empty = 0 if found else empty + 1
        if found:
            message = json.loads(found[1])
            tag = message["properties"]["delivery_tag"]
            await told.timed("take", reaching_redis(acknowledge), redis, tag, found[1])
            yield str(message["headers"]["id"])


async def acknowledge(redis: Any, tag: str, message: str) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zadd("unacked_index", {tag: time.time()})
        pipe.hset("unacked", tag, message)
        await pipe.execute()
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zrem("unacked_index", tag)
        pipe.hdel("unacked", tag)
        await pipe.execute()


async def train(load: Load, store: WorkStore, claim: Claim, told: Told) -> None:
    """A job without the training: what the supervisor writes, when it would."""
    await told.timed("begin", store.begin, claim, BACKEND, resumed_from=None)
    beat_at = time.monotonic() + load.settings.beat_s * random.random()
    for block in range(load.blocks):
        await asyncio.sleep(load.every_s)
        done = (block + 1) * POINTS * 10
        await told.timed("append", store.append, claim, points(block), steps_done=done, images_per_s=20000.0)
        if time.monotonic() >= beat_at:
            beat_at += load.settings.beat_s
            await told.timed("beat", store.beat, claim, lease_s=load.settings.lease_s)
    await told.timed("epoch", store.end_epoch, claim, EPOCH)
    files = {"safetensors": FILE, "pdparams": FILE}
    await told.timed("finish", store.finish, claim, Status.SUCCEEDED, result=RESULT, files=files)
    await told.timed("file", file, store, claim.job_id)
    await told.timed("released", store.released)


async def keep_up(load: Load, store: WorkStore, name: str, told: Told, doorbell: Doorbell) -> None:
    """What a worker does beside its job, all the time."""
    settings, info, scan_at = load.settings, {"device": "cpu", "threads": 1, "queues": broker.queues_of(None)}, 0.0
    await asyncio.sleep(random.random() * settings.beat_s)
    while True:
        with contextlib.suppress(Unavailable):  # it comes round again
            await told.timed("announce", store.announce, name, alive_s=3 * settings.beat_s, info=info)
            if time.monotonic() >= scan_at and await store.take_turn("scan", every_s=0.8 * settings.scan_s):
                scan_at = time.monotonic() + settings.scan_s
                await told.timed("scan", reconcile, store, doorbell, scan_s=settings.scan_s)
            began = time.monotonic()
            for job_id in await store.unfiled(100):
                await told.timed("file", file, store, job_id)
                if time.monotonic() - began > settings.scan_s / 10:
                    break
        await asyncio.sleep(settings.beat_s)


async def file(store: WorkStore, job_id: str) -> None:
    """What the store has to do with a job's files; they are not written."""
    raw = await store.raw(job_id)
    if raw is not None:
        if raw.status.terminal:
            await store.loss(job_id)
        await store.filed(raw)


def simulate(load: Load) -> Told:
    """Be one of the processes."""
    told, doorbell = Told(), broker.doorbells(broker.make_celery(load.url))

    async def run() -> None:
        until = time.monotonic() + load.seconds
        async with contextlib.AsyncExitStack() as stack:
            connected = (WorkStore.connect(load.url) for _ in range(load.workers // _WORKERS_A_POOL + 1))
            stores = itertools.cycle([await stack.enter_async_context(store) for store in connected])
            await asyncio.gather(*(work(load, next(stores), told, doorbell, until) for _ in range(load.workers)))

    return on_the_clock(told, run)


def on_the_clock(told: Told, run: Callable[[], Coroutine[Any, Any, None]]) -> Told:
    """The same, when it has run, with the time that took a core."""
    before = time.process_time()
    asyncio.run(run())
    told.cpu_s = time.process_time() - before
    return told


# --- the clients -------------------------------------------------------------------------------------------------------


def poll(url: str, over: Path) -> Told:
    """Poll the losses of jobs that run, so often a second whatever comes back, until a file says it is over: be a process."""
    told = Told()

    async def run() -> None:
        asking: set[asyncio.Task[Any]] = set()
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
            while not over.exists():
                running = (await http.get("/jobs", params={"status": "running", "limit": 100})).json()["jobs"]
                for _ in range(POLLS_A_SECOND):
                    if running:
                        path = f"/jobs/{random.choice(running)['id']}/loss"
                        task = asyncio.create_task(told.timed("GET loss", http.get, path))
                        asking.add(task)
                        task.add_done_callback(asking.discard)
                    await asyncio.sleep(1 / POLLS_A_SECOND)
            await asyncio.gather(*asking)

    return on_the_clock(told, run)


def submit(url: str, count: int, at_once: int) -> list[str]:
    """Submit so many jobs, as fast as they go, and return their ids: be one of the processes."""

    async def run() -> list[str]:
        doorbell, ids = broker.doorbells(broker.make_celery(url)), []
        async with WorkStore.connect(url) as plain:
            store, left = WorkStore(plain.database, LIMITS), iter(range(count))

            async def client() -> None:
                for _ in left:
                    ids.append((await store.submit_once(SPEC, None, doorbell=doorbell))[0].id)

            await asyncio.gather(*(client() for _ in range(at_once)))
        return ids

    return asyncio.run(run())
