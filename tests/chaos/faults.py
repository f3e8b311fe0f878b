"""The faults: each does one thing and returns the ids of the jobs it hit, or None when there was nothing to hit."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from tests.chaos.arena import LEASE_S, LONGER, SPECS, Arena
from tests.conftest import descendants, eventually
from tests.proxy import Mode

Fault = Callable[[Arena], list[str] | None]


def kill_a_trainer(arena: Arena) -> list[str] | None:
    target = arena.at_work()
    trainers = arena.running("worker.trainer_process", below=target[1]) if target else []
    if target is None or not trainers:
        return None
    for pid in trainers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [target[0].job_id]


def flip_a_byte_of_a_checkpoint(arena: Arena) -> list[str] | None:
    """And kill the trainer, so that somebody reads it."""
    target = arena.at_work()
    path = arena.newest_checkpoint(target[0]) if target else None
    if target is None or path is None:
        return None
    with suppress(FileNotFoundError), path.open("r+b") as file:  # there may be a newer one by now
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))
    for pid in arena.running("worker.trainer_process", below=target[1]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [target[0].job_id]


def kill_a_worker(arena: Arena) -> list[str] | None:
    return _signal_a_worker(arena, signal.SIGKILL)


def stop_a_worker(arena: Arena) -> list[str] | None:
    return _signal_a_worker(arena, signal.SIGTERM)


def _signal_a_worker(arena: Arena, number: signal.Signals) -> list[str] | None:
    target = arena.at_work()
    if target is None:
        return None
    arena.kill(target[1], number)
    return [target[0].job_id]


def kill_the_api(arena: Arena) -> list[str] | None:
    for pid in arena.running("api.app"):
        arena.kill(pid, signal.SIGKILL)
    return []


def freeze_a_worker(arena: Arena) -> list[str] | None:
    """Longer than its lease, with its trainer; then it thaws."""
    target = arena.at_work()
    if target is None:
        return None
    frozen = descendants(target[1])
    try:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(LEASE_S + arena.rng.uniform(1, 4))
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return [target[0].job_id]


def kill_redis(arena: Arena) -> list[str] | None:
    hit = arena.trained()
    arena.kill_redis(arena.rng.choice([0.0, 0.0, 0.5, 2.0]))
    return hit


def reset_connections(arena: Arena) -> list[str] | None:
    hit = arena.trained()
    return hit if arena.proxy.reset() else None


def _for_a_while(arena: Arena, mode: Mode, seconds: float) -> list[str]:
    hit = arena.trained()
    arena.proxy.set_mode(mode)
    try:
        time.sleep(seconds)
    finally:
        arena.proxy.set_mode(Mode.PASS)
    return hit


def short_blackhole(arena: Arena) -> list[str] | None:
    return _for_a_while(arena, Mode.BLACKHOLE, arena.rng.uniform(0.3, 2))


def long_blackhole(arena: Arena) -> list[str] | None:
    return _for_a_while(arena, Mode.BLACKHOLE, LEASE_S + arena.rng.uniform(1, 6))


def half_open_connections(arena: Arena) -> list[str] | None:
    return _for_a_while(arena, Mode.HALF_OPEN, arena.rng.uniform(0.3, 2))


def slow_network(arena: Arena) -> list[str] | None:
    hit = arena.trained()
    arena.proxy.set_delay(arena.rng.uniform(0.05, 0.3))
    time.sleep(3)
    arena.proxy.set_delay(0)
    return hit


def drop_the_queue(arena: Arena) -> list[str] | None:
    hit = [job.job_id for job in arena.in_flight if job.status == "queued"]
    arena.drop_queue()
    return hit


def cancel_a_job(arena: Arena) -> list[str] | None:
    if not arena.in_flight:
        return None
    job = arena.rng.choice(arena.in_flight)
    status = arena.api.insist("POST", f"/jobs/{job.job_id}/cancel").json()["status"]
    job.must_be_cancelled = status in ("cancelling", "cancelled")
    return [job.job_id]


def pause_a_job(arena: Arena) -> list[str] | None:
    free = [job for job in arena.in_flight if not job.must_be_cancelled]
    if not free:
        return None
    job = arena.rng.choice(free)
    if arena.api.insist("POST", f"/jobs/{job.job_id}/pause").json()["status"] in ("pausing", "paused"):
        job.paused_until = time.monotonic() + arena.rng.uniform(0, 20)
    return [job.job_id]


def extend_a_job(arena: Arena) -> list[str] | None:
    ended = [job for job in arena.jobs if job.status == "succeeded" and f"{job.name}, extended" in LONGER]
    ended = [job for job in ended if not job.must_be_undisturbed]
    if not ended:
        return None
    job = arena.rng.choice(ended)
    longer = f"{job.name}, extended"

    def extended() -> bool:
        now = arena.api.job(job.job_id)
        if now and now["spec"]["epochs"] == SPECS[job.name]["epochs"]:
            arena.api.ask("POST", f"/jobs/{job.job_id}/resume", json={"epochs": 1})
            return False
        return now is not None

    eventually(extended, within_s=120, what="the extension")  # asked for again only where it is seen not to be there
    job.name, job.status = longer, "queued"
    job.extended += 1
    return [job.job_id]


FAULTS: dict[Fault, int] = {  # how often each, among all
    kill_a_trainer: 3,
    kill_a_worker: 2,
    kill_the_api: 1,
    kill_redis: 2,
    freeze_a_worker: 2,
    stop_a_worker: 2,
    reset_connections: 3,
    short_blackhole: 2,
    long_blackhole: 1,
    half_open_connections: 1,
    slow_network: 1,
    drop_the_queue: 2,
    cancel_a_job: 2,
    pause_a_job: 3,
    extend_a_job: 2,
    flip_a_byte_of_a_checkpoint: 2,
}
COSTLY = {  # those that may cost an attempt
    "kill_a_trainer", "kill_a_worker", "kill_redis", "freeze_a_worker", "long_blackhole", "half_open_connections",
    "flip_a_byte_of_a_checkpoint",
}  # fmt: skip


def planned(seed: int) -> Iterator[tuple[Fault, float]]:
    """Which fault comes next, and how long it is quiet after it."""
    rng = random.Random(seed)
    bag = [fault for fault, weight in FAULTS.items() for _ in range(weight)]
    while True:
        rng.shuffle(bag)
        yield from [(fault, rng.uniform(0.5, 5)) for fault in bag]


def inflict(arena: Arena, fault: Fault, name: str = "") -> None:
    name = name or fault.__name__
    hit = fault(arena)
    arena.remember_family()
    if hit is None:
        return
    arena.done[name] += 1
    arena.hit.setdefault(name, set()).update(hit)
    for job in arena.jobs:
        if job.job_id in hit and name in COSTLY:
            job.hits.append(name)
