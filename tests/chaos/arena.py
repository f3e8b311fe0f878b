"""The server under test with its Redis behind a proxy, and the jobs that it has accepted."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import redis
import typer

from client.redis_server import RedisServer
from client.stack import free_port
from core.jobs import artifacts
from core.jobs.broker import CPU_QUEUE
from core.processes import Child
from core.settings import Settings
from core.storage import Folder
from tests.conftest import Server, descendants, eventually, is_alive, processes, serving
from tests.proxy import Proxy

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

_BEGAN = time.monotonic()


def note(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    typer.echo(f"{time.monotonic() - _BEGAN:7.1f} s  {text}", err=True)


@dataclass
class Accepted:
    """A job that was answered with 202, what was done to it, and what a poller saw of it."""

    job_id: str
    name: str
    hits: list[str] = field(default_factory=list)
    extended: int = 0
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
            detail = answer.json()["detail"] if "json" in answer.headers["content-type"] else answer.text[:200]
            self._violations.add(f"{method} {route} was answered with {answer.status_code}: {detail}")
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
        ours = ("worker.app", "worker.trainer_process", "api.app", "api.processes", "client.cli", "valkey-server")
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
            return int(str(store.delete(CPU_QUEUE)))

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
            self.api.insist("POST", f"/jobs/{job.job_id}/resume")

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
        jobs = self.home / "jobs"
        return next((jobs / path for path in artifacts.checkpoints(Folder(jobs), job.job_id)), None)

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
