"""What a worker does beside and around the training: it takes its turn at reconciling, and writes as often as it is told to."""

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from core.jobs import broker
from core.jobs.job import Status
from core.jobs.work import Claim, WorkStore
from core.settings import Settings
from core.spec import JobSpec
from tests.conftest import WithStore
from worker.reconcile import keep_reconciling
from worker.run import Supervisor
from worker.span import Span

SPEC = JobSpec.model_validate({"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1})
BLOCKS = 20
# A trainer that tells blocks of one point, says so in a file, and ends when there is another.
TRAINER = """
import json, pathlib, sys, time
def say(**message): print(json.dumps(message), flush=True)
said, over = map(pathlib.Path, sys.argv[1:])
say(type="started", backend={"device": "cpu", "kernel": "plain", "threads": 1}, resumed_from=None)
for step in range(%d):
    point = {"step": step, "epoch": 0, "batch": step, "loss": 1.0, "time_s": 0.0}
    say(type="block", points=[point], steps_done=step + 1, images_per_s=1.0)
    time.sleep(0.05)
said.touch()
while not over.exists(): time.sleep(0.01)
say(type="failed", code="internal", message="it is only a test", step=None)
"""


async def becomes(check: Callable[[], Awaitable[bool]], *, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await check():
            await asyncio.sleep(0.02)


def test_a_worker_without_the_turn_files_jobs_and_leaves_lost_ones_to_the_other(
    redis_settings: Settings, with_store: WithStore[None]
) -> None:
    settings, stopping = redis_settings.model_copy(update={"beat_s": 0.05, "scan_s": 600}), threading.Event()

    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        assert await store.claim(job.id, worker="dead", lease_s=0.001)
        await store.take_turn("scan", every_s=60)
        doorbell = broker.doorbells(broker.make_celery(settings.store_url))
        worker = {"host": "test", "pid": 1, "device": "cpu", "threads": 1, "queues": broker.queues_of(None)}
        reconciling = asyncio.create_task(keep_reconciling(store, settings, worker, doorbell, stopping))
        try:

            async def is_filed() -> bool:
                return job.id not in await store.unfiled()

            await becomes(is_filed)
            await store.database.redis.sadd("descent:unfiled", job.id)
            await becomes(is_filed)  # so it has gone round more than once
            assert await store.status(job.id) == Status.RUNNING
            await store.database.redis.delete("descent:turn:scan")

            async def is_found() -> bool:
                return await store.status(job.id) == Status.QUEUED

            await becomes(is_found)
        finally:
            stopping.set()
            await reconciling

    with_store(use)


def test_losses_are_written_no_oftener_than_the_setting_says(
    redis_settings: Settings, with_store: WithStore[None], tmp_path: Path
) -> None:
    settings = redis_settings.model_copy(update={"report_s": 3600, "beat_s": 0.1})
    said, over = tmp_path / "said", tmp_path / "over"

    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        claim = await store.claim(job.id, worker="test", lease_s=settings.lease_s)
        assert isinstance(claim, Claim)
        trainer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", TRAINER % BLOCKS, str(said), str(over),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        supervisor = Supervisor(claim, store, settings, threading.Event(), Span(None, claim, device="cpu"))
        running = asyncio.create_task(supervisor.run(trainer))

        async def lease() -> float:
            return float(await store.database.redis.zscore("descent:running", job.id))

        async def has_said_all() -> bool:
            return said.exists()

        await becomes(has_said_all)
        for _ in range(2):  # beats: whatever was due has been written by then

            async def beats(before: float) -> bool:
                return await lease() > before

            seen = await lease()
            await becomes(lambda seen=seen: beats(seen))  # type: ignore[misc]  # binds it
        assert 0 < (await store.loss(job.id)).count < BLOCKS
        over.touch()
        assert await running == Status.FAILED
        steps = [json.loads(point)["step"] for point in (await store.loss(job.id)).points]
        assert steps == list(range(BLOCKS))

    with_store(use)


def test_a_cancel_is_heard_whenever_it_comes(with_store: WithStore[None]) -> None:
    """Python 3.11 and redis-py lose one in some twenty, which then is a task that nobody can end."""

    async def use(store: WorkStore) -> None:
        async def ask_for_ever() -> None:
            while True:
                await store.unfiled(1)

        for turns in range(200):
            asking = asyncio.create_task(ask_for_ever())
            for _ in range(10 + turns % 20):  # so that it comes somewhere else each time
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking}, timeout=2)
            assert asking.cancelled()

    with_store(use)
