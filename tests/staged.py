"""An API of its own without a worker, and jobs in every state, put there through the store: nothing trains, nothing moves."""

import asyncio
import math
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import safetensors.numpy

from client.redis_server import RedisServer
from client.stack import free_port
from core.jobs import artifacts
from core.jobs.broker import queues_of
from core.jobs.job import Job, JobError, Status
from core.jobs.work import Claim, WorkStore
from core.processes import Child
from core.settings import Settings
from core.spec import JobSpec
from tests.conftest import eventually

SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "batch_size": 5000})
BACKEND = {"device": "cpu", "kernel": "fused", "threads": 2}
WORKER = {  # what one says of itself
    "host": "nobody", "pid": 1, "version": "0", "device": "auto", "threads": 2,
    "devices": [{"device": "cpu", "name": None, "memory_bytes": 1 << 30}], "queues": queues_of(None),
}  # fmt: skip
EPOCH = {
    "epoch": 0, "train_loss": 1.0, "valid_loss": None, "valid_accuracy": 0.5, "learning_rate": 0.001,
    "images_per_s": 1000.0, "seconds": 50.0, "at_ms": 10**12,
}  # fmt: skip
SHAPES = {
    "conv1.weight": (20, 1, 5, 5),
    "conv1.bias": (20,),
    "conv2.weight": (20, 20, 5, 5),
    "conv2.bias": (20,),
    "fc.weight": (980, 10),
    "fc.bias": (10,),
}


@dataclass(frozen=True)
class Api:
    """Where it answers, its database and folders, and an id of a job in each state."""

    url: str
    settings: Settings
    jobs: dict[Status, str]

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def finished_job(self, *, weights: bytes, spec: JobSpec = SPEC) -> str:
        """A job that has succeeded, with these bytes as its weights."""

        async def finish() -> str:
            async with WorkStore.connect(self.settings.store_url) as store:
                claim = await train(store, await store.submit(spec), points=10)
                files = published(self.settings, claim, weights)
                await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.1}, files=files)
                return claim.job_id

        return asyncio.run(finish())

    def send(self, request: bytes, *, limit_s: float = 10, most: int = 1 << 20) -> bytes:
        """Raw bytes over a connection of their own, and what comes back until the server closes it."""
        with socket.create_connection(self.address, timeout=limit_s) as connection:
            connection.sendall(request)
            answer = b""
            while len(answer) < most and (piece := connection.recv(65536)):
                answer += piece
        return answer


@contextmanager
def api_without_worker(home: Path, cache: Path | None = None, *, is_empty: bool = False) -> Iterator[Api]:
    """A database and an API process on `home`, with a job in every state or none; both are stopped afterwards."""
    cache = cache or home / "cache"
    settings = Settings(home=home, cache=cache, port=free_port("127.0.0.1"), redis_url=None, durability="everysec")
    server = RedisServer(settings)
    redis = server.start()
    children = [redis]
    try:
        env = {"DESCENT_HOME": str(home), "DESCENT_CACHE": str(cache), "DESCENT_PORT": str(settings.port)}
        env |= {"DESCENT_REDIS_URL": settings.store_url}
        command = [sys.executable, "-P", "-m", "api.app"]
        children.insert(0, Child("api", command, log_file=settings.logs_dir / "api.log", env=env))
        url = f"http://127.0.0.1:{settings.port}"
        eventually(lambda: _answers(url), within_s=60, what="the API")
        yield Api(url, settings, {} if is_empty else asyncio.run(_stage(settings)))
    finally:
        for child in children:
            child.stop(20)
        server.release()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


async def _stage(settings: Settings) -> dict[Status, str]:
    async with WorkStore.connect(settings.store_url) as store:
        await store.announce("nobody:1", alive_s=3600, info=WORKER)  # so that /readyz is content
        return {status: await _job_that_is(store, settings, status) for status in Status}


async def _job_that_is(store: WorkStore, settings: Settings, wanted: Status) -> str:
    job = await store.submit(SPEC)
    if wanted in (Status.QUEUED, Status.PAUSED):
        if wanted is Status.PAUSED:
            await store.pause(job.id)
        return job.id
    claim = await train(store, job, points=10)
    match wanted:
        case Status.PAUSING:
            await store.pause(job.id)
        case Status.CANCELLING:
            await store.cancel(job.id)
        case Status.CANCELLED:
            await store.cancel(job.id)
            await store.stop(claim)
        case Status.FAILED:
            await store.finish(
                claim, Status.FAILED, error=JobError(code="diverged", message="the loss blew up", step=9)
            )
        case Status.SUCCEEDED:
            result = {"valid_accuracy": 0.9, "test_accuracy": 0.9, "final_loss": 0.5}
            await store.finish(
                claim, Status.SUCCEEDED, result=result, files=published(settings, claim, blank_weights())
            )
    assert (await store.get(job.id)).status is wanted
    return job.id


async def train(store: WorkStore, job: Job, *, points: int) -> Claim:
    """What a worker would have told of a job by now: so many points, the last not finite, and an epoch's metrics."""
    claim = await store.claim(job.id, worker="host:1", lease_s=3600)
    assert claim
    await store.begin(claim, BACKEND, resumed_from=None)
    await store.append(claim, [point(step, points) for step in range(points)], steps_done=points, images_per_s=1000.0)
    await store.end_epoch(claim, EPOCH)
    return claim


def point(step: int, points: int) -> dict[str, Any]:
    facts = {"step": step, "epoch": 0, "batch": step, "loss": 1 / (step + 1), "time_s": step / 10}
    return facts if step < points - 1 else facts | {"loss": None, "nonfinite": "nan"}


def blank_weights() -> bytes:
    return safetensors.numpy.save({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})


def published(settings: Settings, claim: Claim, content: bytes) -> dict[str, dict[str, Any]]:
    """The content as the weights, in each form, and as a checkpoint, among the files of a job."""
    files, folder = artifacts.storage(settings), artifacts.claim_folder(claim.job_id, claim.token)
    artifacts.publish_checkpoint(files, folder, claim.spec.total_steps, content)
    return {kind: artifacts.publish(files, folder, name, content) for kind, name in artifacts.FORMATS.items()}


def falling(spec: JobSpec, *, seed: int = 0) -> list[dict[str, Any]]:
    """All points of a job whose loss falls the faster the larger its rate is, and shakes."""
    noise = random.Random(seed)
    speed = 4 + math.log10(spec.learning_rate if isinstance(spec.learning_rate, float) else 0.01)
    epoch = spec.steps_per_epoch
    return [
        {
            "step": step, "epoch": step // epoch, "batch": step % epoch, "time_s": round(step * 0.006, 3),
            "loss": (0.04 + 2.27 * math.exp(-step * speed / 250)) * math.exp(noise.gauss(0, 0.12) * (step > 0)),
        }
        for step in range(spec.total_steps) if spec.is_logged(step)
    ]  # fmt: skip


async def begun(store: WorkStore, spec: JobSpec) -> Claim:
    """A job that a worker has taken, and told nothing of yet."""
    job = await store.submit(spec)
    claim = await store.claim(job.id, worker="host:1", lease_s=3600)
    assert claim
    await store.begin(claim, BACKEND, resumed_from=None)
    return claim


async def ended(store: WorkStore, settings: Settings, spec: JobSpec, *, seed: int = 0) -> str:
    """A job that has succeeded, with all its points and epochs; its id."""
    claim = await begun(store, spec)
    points = falling(spec, seed=seed)
    await store.append(claim, points, steps_done=spec.total_steps, images_per_s=15_000.0)
    accuracy = 0.5
    for epoch in range(spec.epochs):
        accuracy = 1 - (1 - accuracy) / 2
        await store.end_epoch(claim, EPOCH | {"epoch": epoch, "valid_accuracy": accuracy, "seconds": 3.1})
    result = {"valid_accuracy": accuracy, "test_accuracy": accuracy - 0.002, "final_loss": points[-1]["loss"]}
    files = published(settings, claim, b"weights")
    await store.finish(claim, Status.SUCCEEDED, result=result | {"seconds": 3.1 * spec.epochs}, files=files)
    return claim.job_id
