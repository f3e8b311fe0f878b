"""Chaos: a real server, jobs without end, a fault every few seconds; then every job that was accepted is held to the promises.

`make chaos SEED=1 MINUTES=30`. The seed fixes which faults come, in which order and with which pauses. Not collected by pytest.
"""

import hashlib
import itertools
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx2
import redis
import typer

from client.processes import Child
from client.redis_server import RedisServer
from client.stack import free_port
from core.jobs import artifacts
from core.jobs.broker import QUEUE
from core.settings import Settings
from tests.conftest import ROOT, Server, descendants, eventually, is_alive, processes, serving
from tests.proxy import Mode, Proxy

LEASE_S = 4.0
SETTINGS = {
    "lease_s": str(LEASE_S), "beat_s": "1", "scan_s": "1", "checkpoint_s": "1", "stop_s": "5",
    "workers": "2", "threads": "1", "log_level": "info",
}  # fmt: skip
IN_FLIGHT = 5
MOST_RESTARTS = 4  # within a minute; `descent up` bears one more
PATIENCE_S = 600.0  # until every job has ended, when the faults are over

Spec = dict[str, Any]
Point = dict[str, Any]

FALLING = {"schedule": "step_decay", "initial": 0.05, "step_size": 20, "gamma": 0.7, "interval": "step"}
HALVED = {"schedule": "step_decay", "initial": 0.02, "step_size": 1, "gamma": 0.5}
COSINE = {"schedule": "cosine_annealing", "initial": 0.002, "T_max": 100, "interval": "step"}
NESTEROV = {"name": "momentum", "use_nesterov": True}
SPECS: dict[str, Spec] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 500, "log_every": 1},
    "momentum": {"optimizer": "momentum", "learning_rate": FALLING, "epochs": 1, "batch_size": 500, "log_every": 1},
    "nesterov": {
        "optimizer": NESTEROV, "learning_rate": HALVED, "epochs": 2, "batch_size": 1000, "log_every": 1,
        "weight_decay": 1e-4,
    },
    "adagrad": {"optimizer": "adagrad", "learning_rate": 0.01, "epochs": 2, "batch_size": 1000, "log_every": 3},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": COSINE, "epochs": 1, "batch_size": 500, "log_every": 7},
    "adam": {"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "batch_size": 250, "log_every": 10},
}  # fmt: skip
LONGER = {f"{name}, extended": SPECS[name] | {"epochs": SPECS[name]["epochs"] + 1} for name in ("sgd", "momentum")}

TERMINAL = {"succeeded", "failed", "cancelled"}
LEGAL = {
    "": {"queued"},
    "queued": {"running", "paused", "cancelled"},
    "running": {"queued", "pausing", "cancelling", "succeeded", "failed"},
    "pausing": {"paused", "running", "cancelling", "succeeded", "failed"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"cancelled"},
    "succeeded": {"queued"},
    "failed": {"queued"},
    "cancelled": {"queued"},
}


@dataclass(frozen=True)
class Outcome:
    """What a spec gives when nothing happens, to the bit."""

    points: list[Point]
    sha256: str


@dataclass
class Accepted:
    """A job that was answered with 202, what was done to it, and what a poller saw of it."""

    job_id: str
    name: str
    hits: list[str] = field(default_factory=list)
    reopened: int = 0  # how often it was resumed or extended after an end
    must_be_cancelled: bool = False
    must_be_undisturbed: bool = False  # one attempt, one claim
    paused_until: float = 0.0
    status: str = "queued"
    seen: list[Point] = field(default_factory=list)
    count_when_cancelled: int | None = None

    @property
    def is_in_flight(self) -> bool:
        return self.status not in TERMINAL and not self.paused_until


class Violations:
    """Broken promises, each kind once and counted. Any thread may add to it."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        with self._lock:
            self.found[text] += 1
            if self.found[text] == 1:
                note(f"VIOLATION {text}")


class Api:
    """The REST API as a stubborn client sees it. It belongs to one thread."""

    def __init__(self, url: str, violations: Violations, revive: Callable[[], None] = lambda: None) -> None:
        """`revive` is called before each question of which an answer is insisted on."""
        self._http = httpx2.Client(base_url=url, timeout=30, trust_env=False)
        self._violations, self._revive = violations, revive

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response | None:
        """An answer; None while the API or its Redis is away. Any other 5xx breaks a promise."""
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError:
            return None
        if answer.status_code >= 500 and answer.status_code != 503:
            route = "/".join("{job_id}" if part.startswith("job_") else part for part in path.split("/"))
            self._violations.add(f"{method} {route} was answered with {answer.status_code}: {answer.text[:200]}")
        return answer if answer.status_code < 500 else None

    def insist(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Ask until there is an answer."""

        def asked() -> list[httpx2.Response]:  # a response itself may be false
            self._revive()
            answer = self.ask(method, path, **options)
            return [] if answer is None else [answer]

        return eventually(asked, within_s=120, what=f"{method} {path}")[0]

    def job(self, job_id: str) -> dict[str, Any] | None:
        answer = self.ask("GET", f"/jobs/{job_id}")
        return answer.json() if answer and answer.status_code == 200 else None


class Poller:
    """Follows every job with the cursor, in a thread, and keeps all that it saw."""

    def __init__(self, url: str, jobs: list[Accepted], violations: Violations) -> None:
        self._url, self._jobs, self._violations = url, jobs, violations
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="poller")

    def __enter__(self) -> "Poller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    def _follow(self) -> None:
        api = Api(self._url, self._violations)
        while not self._done.wait(0.1):
            for job in [job for job in self._jobs if job.status not in TERMINAL]:
                self._look(api, job)
        api.close()

    def _look(self, api: Api, job: Accepted) -> None:
        answer = api.ask("GET", f"/jobs/{job.job_id}/loss", params={"after": str(len(job.seen))})
        if answer is None:
            return
        if answer.status_code != 200:
            self._violations.add(f"{job.job_id} after {len(job.seen)} points: {answer.status_code} {answer.text[:200]}")
            return
        page = answer.json()
        job.seen += page["points"]
        if not page["has_more"]:
            job.status = page["status"]
            if page["status"] == "cancelled":
                job.count_when_cancelled = page["count"]


class Arena:
    """The server under test: its Redis behind the proxy, its processes, and the jobs it has accepted."""

    def __init__(self, folder: Path, cache: Path, seed: int, exits: ExitStack) -> None:
        self.rng = random.Random(f"targets of {seed}")
        self.home, self._cache, self._exits = folder / "home", cache, exits
        self.violations = Violations()
        self.jobs: list[Accepted] = []
        self.done: Counter[str] = Counter()  # faults
        self.hit: dict[str, set[str]] = {}
        self.gave_up = 0
        self._restarts: list[float] = []
        self._family: set[int] = set()
        self._settings = Settings(home=folder / "redis")
        self._redis = RedisServer(self._settings)
        self._database: Child = self._redis.start()
        exits.callback(self._redis.release)
        exits.callback(lambda: self._database.stop(10))
        self.proxy = exits.enter_context(Proxy(self._settings.socket))
        self._port = str(free_port("127.0.0.1"))
        self._start()
        self.api = Api(self.server.url, self.violations, self.restart_what_gave_up)
        exits.callback(self.api.close)
        exits.enter_context(Poller(self.server.url, self.jobs, self.violations))

    # --- the server ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._stack = ExitStack()
        options = {"redis_url": self.proxy.url, "port": self._port, **SETTINGS}
        self.server: Server = self._stack.enter_context(serving(self.home, self._cache, **options))
        self._exits.push(self._stack)
        self.remember_family()

    def restart_what_gave_up(self) -> None:
        """What an operator, or systemd, would do."""
        if self.server.process.poll() is not None:
            note("descent up has given up; starting it again")
            self.gave_up += 1
            self._stack.close()
            self._start()

    def remember_family(self) -> None:
        self._family |= descendants(os.getpid()) - {os.getpid()}

    def left_behind(self) -> list[str]:
        """Processes of ours that outlived the server; a process id may have a new owner by then."""
        ours = ("worker.app", "worker.trainer_process", "api.app", "client.cli", "valkey-server")
        everyone = processes()
        left = {pid: everyone[pid][1] for pid in self._family if pid in everyone}
        return [f"{pid} {command}" for pid, command in left.items() if any(name in command for name in ours)]

    def running(self, what: str, below: int | None = None) -> list[int]:
        everyone = processes()
        family = sorted(descendants(below or self.server.process.pid))
        return [pid for pid in family if pid in everyone and what in everyone[pid][1]]

    def kill(self, pid: int, number: signal.Signals) -> None:
        """A signal to a service that will be started again, when that has not been too often."""
        while len([at for at in self._restarts if at > time.monotonic() - 61]) >= MOST_RESTARTS:
            time.sleep(0.2)
            self.keep_in_flight()
        self._restarts.append(time.monotonic())
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill_redis(self, away_s: float) -> None:
        os.kill(self._database.pid, signal.SIGKILL)
        time.sleep(away_s)
        eventually(lambda: self._database.exit_code is not None, what="the end of Redis")
        self._database = self._redis.respawn()

    def drop_queue(self) -> int:
        with redis.Redis(unix_socket_path=str(self._settings.socket)) as store:
            return int(str(store.delete(QUEUE)))

    # --- the jobs ------------------------------------------------------------------------------------------------------

    def submit(self, name: str) -> Accepted:
        """One job, however often it has to be asked for."""
        key = f"chaos-{len(self.jobs)}-{self.rng.random()}"
        spec = SPECS.get(name) or LONGER[name]
        answer = self.api.insist("POST", "/jobs", json=spec, headers={"Idempotency-Key": key})
        if answer.status_code != 202:
            raise AssertionError(f"POST /jobs: {answer.status_code} {answer.text}")
        job = Accepted(answer.json()["id"], name)
        self.jobs.append(job)
        return job

    @property
    def in_flight(self) -> list[Accepted]:
        return [job for job in self.jobs if job.is_in_flight]

    def keep_in_flight(self) -> list[Accepted]:
        """Submit until enough jobs are under way; those that were paused go on when their time has come."""
        for job in [job for job in self.jobs if 0 < job.paused_until < time.monotonic()]:
            self.resume(job)
        return [self.submit(self.rng.choice(list(SPECS))) for _ in range(IN_FLIGHT - len(self.in_flight))]

    def resume(self, job: Accepted) -> None:
        job.paused_until = 0.0
        if self.api.insist("GET", f"/jobs/{job.job_id}").json()["status"] in ("paused", "pausing"):
            answer = self.api.insist("POST", f"/jobs/{job.job_id}/resume")
            job.reopened += answer.status_code == 202

    def at_work(self) -> tuple[Accepted, int] | None:
        """A job that is being trained, one that was hit little if there is one, and the process id of its worker."""
        found = []
        for job in self.in_flight:
            worker = worker_of(self.api.job(job.job_id))
            if worker and is_alive(worker) and len(job.hits) < 2:
                found.append((job, worker))
        return self.rng.choice(found) if found else None

    def trained(self) -> list[str]:
        """Ids of the jobs that are in a worker's hands, as the poller knows."""
        return [job.job_id for job in self.jobs if job.status in ("running", "pausing", "cancelling")]

    def newest_checkpoint(self, job: Accepted) -> Path | None:
        return next(iter(artifacts.checkpoints(artifacts.job_dir(self.home / "jobs", job.job_id))), None)

    def wait_for(self, jobs: list[Accepted], within_s: float) -> None:
        def all_ended() -> bool:
            self.restart_what_gave_up()
            return all(job.status in TERMINAL for job in jobs)

        with suppress(AssertionError):  # what has not ended is told by the checks
            eventually(all_ended, within_s=within_s, what="the end of the jobs")


def worker_of(job: dict[str, Any] | None) -> int:
    """The process that trains a job, or 0."""
    last = job["transitions"][-1] if job else {}
    return int(last["worker"].split(":")[1]) if last.get("status") == "running" else 0


# --- faults: each does one thing and returns the ids of the jobs it hit, or None when there was nothing to hit ---------

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
    job.reopened += 1
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


# --- the parts ---------------------------------------------------------------------------------------------------------


def train_undisturbed(arena: Arena) -> dict[str, Outcome]:
    """What each spec gives when nothing happens."""
    jobs = [arena.submit(name) for name in [*SPECS, *LONGER]]
    arena.wait_for(jobs, PATIENCE_S)
    outcomes = {}
    for job in jobs:
        job.must_be_undisturbed = True
        content = arena.api.insist("GET", f"/jobs/{job.job_id}/model", params={"format": "safetensors"}).content
        outcomes[job.name] = Outcome(without_times(all_points(arena, job)), hashlib.sha256(content).hexdigest())
    return outcomes


def cut_the_connections_for_a_minute(arena: Arena) -> None:
    """F5: every 5 s. It costs no attempt."""
    began, first = time.monotonic(), len(arena.jobs)
    while time.monotonic() < began + 60:
        arena.keep_in_flight()
        time.sleep(5)
        inflict(arena, reset_connections, "connections cut every 5 s for a minute")
    for job in arena.jobs[first:]:
        job.must_be_undisturbed = True
    arena.wait_for(arena.jobs[first:], 300)


def kill_redis_twenty_times(arena: Arena) -> None:
    """F7: at random points. No accepted job and no step that was seen is lost."""
    for _ in range(20):
        arena.keep_in_flight()
        time.sleep(arena.rng.uniform(0.1, 4))
        inflict(arena, kill_redis)


def soak(arena: Arena, seed: int, until: float) -> None:
    reported = time.monotonic()
    for fault, pause_s in planned(seed):
        if time.monotonic() >= until:
            return
        arena.restart_what_gave_up()
        arena.keep_in_flight()
        inflict(arena, fault)
        time.sleep(pause_s)
        if time.monotonic() > reported + 30:
            reported = time.monotonic()
            ended = sum(job.status in TERMINAL for job in arena.jobs)
            left = max(0, until - reported)
            note(f"{sum(arena.done.values())} faults, {len(arena.jobs)} jobs, {ended} ended; {left:.0f} s to go")


def calm_down(arena: Arena) -> None:
    """The faults are over: everything that was accepted comes to its end."""
    for job in [job for job in arena.jobs if job.paused_until]:
        arena.resume(job)
    arena.wait_for(arena.jobs, PATIENCE_S)


# --- the checks --------------------------------------------------------------------------------------------------------


def all_points(arena: Arena, job: Accepted) -> list[Point]:
    points: list[Point] = arena.api.insist("GET", f"/jobs/{job.job_id}/loss").json()["points"]
    return points


def without_times(points: list[Point]) -> list[Point]:
    return [{name: value for name, value in point.items() if name != "time_s"} for point in points]


class Verdict:
    """Every accepted job, held to the promises."""

    def __init__(self, arena: Arena, undisturbed: dict[str, Outcome]) -> None:
        self._arena, self._undisturbed = arena, undisturbed
        self.totals: Counter[str] = Counter()
        for job in arena.jobs:
            self._check(job)
        self._check_that_no_other_is_there()

    def _check(self, job: Accepted) -> None:
        answer = self._arena.api.insist("GET", f"/jobs/{job.job_id}")
        if answer.status_code != 200:
            self._say(job, f"lost: {answer.status_code}")
            return
        now, points = answer.json(), all_points(self._arena, job)
        code = (now["error"] or {}).get("code", "")
        self.totals[code or now["status"]] += 1
        self.totals["attempts"] += sum(t["status"] == "running" for t in now["transitions"])
        self.totals["resumed from a checkpoint"] += now["resumed_from_step"] is not None
        self._check_states(job, now)
        self._check_history(job, now, points)
        self._check_model(job, now)

    def _check_states(self, job: Accepted, now: dict[str, Any]) -> None:
        states = [transition["status"] for transition in now["transitions"]]
        if any(after not in LEGAL[before] for before, after in itertools.pairwise(["", *states])):
            self._say(job, f"went through {states}")
        ends = sum(state in TERMINAL for state in states)
        if now["status"] not in TERMINAL or not 1 <= ends <= 1 + job.reopened:
            self._say(job, f"has not exactly one end: {states}")
        if now["status"] == "failed" and (now["error"]["code"] != "worker_lost" or len(job.hits) < 3):
            self._say(job, f"failed: {now['error']}, hit by {job.hits}")
        if now["attempt"] > 3 or (job.must_be_undisturbed and states != ["queued", "running", "succeeded"]):
            self._say(job, f"took {now['attempt']} attempts: {states}")
        if job.must_be_cancelled and now["status"] != "cancelled":
            self._say(job, f"was told that it is cancelled, and is {now['status']}")

    def _check_history(self, job: Accepted, now: dict[str, Any], points: list[Point]) -> None:
        expected, found = self._undisturbed[job.name].points, without_times(points)
        if found != expected[: len(found)] or (now["status"] == "succeeded" and len(found) != len(expected)):
            steps = [point["step"] for point in points]
            self._say(
                job, f"({now['status']}) its history is not the undisturbed one's: {len(found)} points, {steps[:20]}…"
            )
        if job.seen != points[: len(job.seen)]:
            self._say(job, "what was seen while it ran is not what its history says")
        if job.count_when_cancelled not in (None, len(points)):
            self._say(job, f"{len(points) - (job.count_when_cancelled or 0)} points came after it was cancelled")

    def _check_model(self, job: Accepted, now: dict[str, Any]) -> None:
        if not now["model"]["ready"]:
            if now["status"] == "succeeded":
                self._say(job, "succeeded without a model")
            return
        answer = self._arena.api.insist("GET", f"/jobs/{job.job_id}/model", params={"format": "safetensors"})
        if hashlib.sha256(answer.content).hexdigest() != now["model"]["sha256"]:
            self._say(job, f"its model is not the one it names: {answer.status_code}")
        if now["status"] == "succeeded":
            equal = now["model"]["sha256"] == self._undisturbed[job.name].sha256
            self.totals["bit-equal to an undisturbed run"] += equal
            if not equal:
                self._say(job, "its weights are not the undisturbed ones")

    def _check_that_no_other_is_there(self) -> None:
        """Each key named one job, however often it was sent."""
        found, after = set(), ""
        while True:
            query = {"limit": "100"} | ({"after": after} if after else {})
            page = self._arena.api.insist("GET", "/jobs", params=query).json()
            found |= {job["id"] for job in page["jobs"]}
            if not (after := page["next"] or ""):
                break
        if others := found - {job.job_id for job in self._arena.jobs}:
            self._arena.violations.add(f"jobs that nobody was told of: {sorted(others)}")

    def _say(self, job: Accepted, what: str) -> None:
        self._arena.violations.add(f"{job.job_id} ({job.name}) {what}")


# --- the command -------------------------------------------------------------------------------------------------------

_BEGAN = time.monotonic()


def note(text: str) -> None:
    typer.echo(f"{time.monotonic() - _BEGAN:7.1f} s  {text}", err=True)


def report(arena: Arena, verdict: Verdict, seed: int) -> None:
    typer.echo("| fault | times | jobs hit |\n|---|---|---|")
    for name, count in sorted(arena.done.items()):
        typer.echo(f"| {name.replace('_', ' ')} | {count} | {len(arena.hit[name])} |")
    typer.echo(f"\n| total | |\n|---|---|\n| seed | {seed} |\n| minutes | {(time.monotonic() - _BEGAN) / 60:.1f} |")
    rows = {"faults": sum(arena.done.values()), "accepted": len(arena.jobs)} | dict(verdict.totals)
    rows |= {"descent up gave up": arena.gave_up, "violations": len(arena.violations.found)}
    for name, number in rows.items():
        typer.echo(f"| {name} | {number} |")


def run(seed: int, until: float, folder: Path) -> tuple[Arena, Verdict]:
    """All parts, on a server in `folder`, which is gone afterwards."""
    cache = Path(os.environ.get("DESCENT_CACHE", ROOT / ".descent" / "cache")).absolute()
    with ExitStack() as exits:
        arena = Arena(folder, cache, seed, exits)
        note(f"{arena.server.url} in {folder}; each spec undisturbed")
        undisturbed = train_undisturbed(arena)
        note("connections cut every 5 s for a minute")
        cut_the_connections_for_a_minute(arena)
        note("kill -9 of Redis at 20 random points")
        kill_redis_twenty_times(arena)
        note("everything at random")
        soak(arena, seed, max(until, time.monotonic() + 60))
        note("the faults are over")
        calm_down(arena)
        verdict = Verdict(arena, undisturbed)
    for process in arena.left_behind():
        arena.violations.add(f"a process was left behind: {process}")
    return arena, verdict


def main(
    seed: Annotated[int, typer.Option(help="Fixes the faults and their order.")] = 1,
    minutes: Annotated[float, typer.Option(help="How long it takes, all in all; six at least.")] = 30,
) -> None:
    """Exit code 1 when a promise was broken; what it was is on stderr, and the server's folder is kept with its logs."""
    folder = Path(tempfile.mkdtemp(prefix="descent-chaos-"))
    arena, verdict = run(seed, _BEGAN + minutes * 60, folder)
    report(arena, verdict, seed)
    for violation, times in arena.violations.found.items():
        typer.echo(f"{times} x {violation}", err=True)
    if arena.violations.found:
        typer.echo(f"Logs: {arena.home / 'logs'}", err=True)
        raise typer.Exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
