"""What /metrics says of the jobs and the workers, read from the store at one moment. The moves keep the counts."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from core.errors import Unavailable
from core.jobs.database import Database, reaching_redis, script_of
from core.jobs.job import ERROR_CODES, Status

Labels = tuple[str, ...]
T = TypeVar("T", int, float)

_MEASURES = script_of("measures.lua")
_LIMIT_S = 3.0
_REASONS: tuple[Labels, ...] = (("trainer_died",), ("lease_expired",), ("given_back",))
_ENDS: tuple[Labels, ...] = (("succeeded", ""), ("cancelled", ""), *(("failed", code) for code in ERROR_CODES))


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is now; and from `submitted` on what happened since the database was made, which only grows."""

    jobs: dict[Labels, int]  # by status
    queued: int
    queued_for_gpu: int  # those of them that only a GPU trains
    stuck: int  # those of them that no live worker can train
    longest_wait_s: float  # of the jobs that are queued now, since they were queued (again)
    workers: dict[Labels, int]  # alive, by what they have: `gpu`, or a `cpu` alone
    images_per_s: dict[Labels, float]  # of the jobs that run, by the device that trains them
    memory_bytes: int
    memory_limit_bytes: int | None
    submitted: int
    attempts: int
    finished: dict[Labels, int]  # by status, and the error's code or ''
    retried: dict[Labels, int]  # queued again, by reason


@reaching_redis
async def measure(database: Database) -> Measures:
    """Raises Unavailable, after some seconds at most."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            reply = await database.script(_MEASURES)(args=[])
    except TimeoutError:
        raise Unavailable("Redis: no answer") from None
    counts, totals, queued, gpu_jobs, stuck, wait_ms, workers, running, memory, limit = reply
    happened = {tuple(name.split(":")): int(times) for name, times in _pairs(totals)}
    return Measures(
        jobs={(status,): 0 for status in Status} | {(status,): int(jobs) for status, jobs in _pairs(counts)},
        queued=queued,
        queued_for_gpu=gpu_jobs,
        stuck=stuck,
        longest_wait_s=max(0, wait_ms) / 1000,
        workers=_sums((_best_device(info), 1) for info in workers),
        images_per_s=_sums((_device(backend), float(speed)) for speed, backend in _pairs(running)),
        memory_bytes=memory,
        memory_limit_bytes=limit or None,
        submitted=happened.get(("submitted",), 0),
        attempts=happened.get(("attempts",), 0),
        finished=dict.fromkeys(_ENDS, 0) | _named(happened, "finished"),
        retried=dict.fromkeys(_REASONS, 0) | _named(happened, "retried"),
    )


def _pairs(reply: list[str]) -> Iterable[tuple[str, str]]:
    """A hash, as a script returns it."""
    return zip(reply[::2], reply[1::2], strict=True)


def _device(text: str) -> Labels:
    return (json.loads(text)["device"],)


def _best_device(info: str) -> Labels:
    """Of what a worker said of itself."""
    devices = json.loads(info).get("devices", [])
    return ("gpu" if any(each["device"].startswith("gpu") for each in devices) else "cpu",)


def _sums(parts: Iterable[tuple[Labels, T]]) -> dict[Labels, T]:
    sums: dict[Labels, Any] = Counter()
    for labels, value in parts:
        sums[labels] += value
    return sums


def _named(happened: dict[Labels, int], name: str) -> dict[Labels, int]:
    return {key[1:]: times for key, times in happened.items() if key[0] == name}
