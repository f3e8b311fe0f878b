"""Faults against real processes: what dies, freezes, fills up or falls silent, and that a job comes out as if nothing had.

Not the last state alone is looked at but the number of effects: attempts, claims, each step once, the bits of the model.
"""

import asyncio
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from client.answers import LossPoint
from client.client import ApiError, Client, Unreachable
from client.redis_server import RedisServer
from core.jobs import artifacts
from core.jobs.job import Job
from core.jobs.work import WorkStore
from core.settings import Settings
from core.spec import JobSpec
from core.storage import Folder
from tests.conftest import DOOMED, ROOT, Server, descendants, eventually, is_alive, processes, serving
from tests.proxy import Mode, Proxy

T = TypeVar("T")
Spec = dict[str, Any]

# The threads are fixed, so that the bits of jobs on different servers can be compared.
SHORT = {
    "lease_s": "2",
    "beat_s": "0.4",
    "scan_s": "0.5",
    "stop_s": "3",
    "checkpoint_s": "0.5",
    "threads": "2",
}
LIMIT_S = 180  # for a job on a machine that has other things to do

FALLING = {"schedule": "step_decay", "initial": 0.05, "step_size": 10, "gamma": 0.7, "interval": "step"}
MOMENTUM: Spec = {
    "optimizer": "momentum", "learning_rate": FALLING, "epochs": 1, "batch_size": 1000, "log_every": 1,
}  # fmt: skip
ADAM: Spec = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 2, "batch_size": 1000, "log_every": 1}
ENDLESS: Spec = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}


@dataclass(frozen=True)
class Outcome:
    """What came of a job, to the bit: step, epoch, batch and loss of each point, and the digest of the weights."""

    points: list[tuple[int, int, int, float | None]]
    sha256: str


def outcome_of(client: Client, job_id: str) -> Outcome:
    points = [(p["step"], p["epoch"], p["batch"], p["loss"]) for p in client.jobs.get(job_id).loss().points]
    return Outcome(points, hashlib.sha256(client.jobs.get(job_id).model(format="safetensors")).hexdigest())


def patiently(ask: Callable[[], T]) -> T | None:
    """An answer; None while the API or its Redis is away."""
    try:
        return ask()
    except Unreachable:
        return None
    except ApiError as error:
        assert error.status == 503, error.problem
        return None


def when_ended(client: Client, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job = patiently(lambda: client.jobs.get(job_id))
        return dict(job.data) if job and job.terminal else None

    return eventually(ended, within_s=LIMIT_S, what=f"the end of {job_id}")


def check_it_ended_as_if_undisturbed(
    client: Client, job_id: str, expected: Outcome, *, attempt: int, claims: int
) -> dict[str, Any]:
    """Each step once and in order, the same bits, and neither an attempt nor a claim more than there should be."""
    job = when_ended(client, job_id)
    assert (job["status"], job["error"], job["attempt"]) == ("succeeded", None, attempt)
    assert [t["status"] for t in job["transitions"]] == ["queued", "running"] * claims + ["succeeded"]
    outcome = outcome_of(client, job_id)
    assert [step for step, *_ in outcome.points] == list(range(job["progress"]["total_steps"]))
    assert outcome == expected
    assert job["model"]["sha256"] == outcome.sha256
    return job


def running(server: Server, what: str) -> set[int]:
    """Process ids of a server's part: `worker.app`, `worker.trainer_process`, `api.app` or `valkey-server`."""
    everyone = processes()
    return {pid for pid in descendants(server.process.pid) if pid in everyone and what in everyone[pid][1]}


def worker_of(job: Mapping[str, Any]) -> int:
    """The process that trains a job, or 0."""
    last = job["transitions"][-1]
    return int(last["worker"].split(":")[1]) if last["status"] == "running" else 0


def await_checkpoint(home: Path, job_id: str) -> Path:
    return eventually(lambda: next(iter(checkpoints(home, job_id)), None), within_s=60, what="a checkpoint")


def checkpoints(home: Path, job_id: str) -> list[Path]:
    return [home / "jobs" / path for path in artifacts.checkpoints(Folder(home / "jobs"), job_id)]


def submit_and_await_checkpoint(server: Server, client: Client, spec: Spec) -> str:
    job_id = str(client.jobs.submit(**spec).id)
    await_checkpoint(server.home, job_id)
    return job_id


def store_silently(settings: Settings, count: int) -> list[str]:
    """Jobs whose records are written and whose messages never are, as by an API that is killed in between."""

    async def store() -> list[Job]:
        async with WorkStore.connect(settings.store_url) as jobs:
            return [await jobs.submit(JobSpec.model_validate(DOOMED)) for _ in range(count)]

    return [job.id for job in asyncio.run(store())]


# --- processes that die ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("faults"), cache, **SHORT) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, retries=0) as client:
        yield client


Undisturbed = Callable[[Spec], Outcome]


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> Undisturbed:
    """What a spec gives when nothing happens, each trained once."""
    known: dict[str, Outcome] = {}

    def of(spec: Spec) -> Outcome:
        key = json.dumps(spec)
        if key not in known:
            with Client(server.url, retries=0) as client:
                job = when_ended(client, client.jobs.submit(**spec).id)
                assert (job["status"], job["attempt"]) == ("succeeded", 1)
                known[key] = outcome_of(client, job["id"])
        return known[key]

    return of


@pytest.mark.parametrize("spec", [MOMENTUM, ADAM], ids=["momentum with a falling rate", "adam"])
def test_a_killed_trainer_goes_on_from_its_checkpoint_to_the_same_bits(
    server: Server, client: Client, undisturbed: Undisturbed, spec: Spec
) -> None:
    expected = undisturbed(spec)
    job_id = submit_and_await_checkpoint(server, client, spec)
    (trainer,) = running(server, "worker.trainer_process")
    os.kill(trainer, signal.SIGKILL)
    job = check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=2, claims=2)
    assert job["resumed_from_step"] > 0


def test_a_trainer_that_is_killed_twice_and_then_left_alone_ends_its_job(
    server: Server, client: Client, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(MOMENTUM)
    job = client.jobs.submit(**MOMENTUM)
    killed: set[int] = set()
    for attempt in (1, 2):
        eventually(lambda n=attempt: worker_of(job.refresh().data) and job.data["attempt"] == n, within_s=60)  # type: ignore[misc]
        (trainer,) = eventually(lambda: running(server, "worker.trainer_process") - killed, what="a trainer")
        os.kill(trainer, signal.SIGKILL)
        killed.add(trainer)
    check_it_ended_as_if_undisturbed(client, job.id, expected, attempt=3, claims=3)


def test_a_killed_worker_takes_its_trainer_along_and_the_job_goes_on_to_the_same_bits(
    server: Server, client: Client, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(MOMENTUM)
    job_id = submit_and_await_checkpoint(server, client, MOMENTUM)
    (trainer,), (worker,) = running(server, "worker.trainer_process"), running(server, "worker.app")
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not is_alive(trainer), within_s=2, what="the trainer's end")
    job = check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=2, claims=2)
    assert job["resumed_from_step"] > 0


def test_a_trainer_that_does_not_answer_a_cancel_is_killed_and_the_next_job_runs(
    server: Server, client: Client
) -> None:
    job_id = submit_and_await_checkpoint(server, client, ENDLESS)
    (trainer,) = running(server, "worker.trainer_process")
    os.kill(trainer, signal.SIGSTOP)
    began = time.monotonic()
    assert client.jobs.get(job_id).cancel().status == "cancelling"
    job = when_ended(client, job_id)
    assert time.monotonic() - began >= float(SHORT["stop_s"])
    assert (job["status"], job["attempt"], job["model"]["ready"]) == ("cancelled", 1, False)
    assert not is_alive(trainer)
    count = client.jobs.get(job_id).loss().count
    assert when_ended(client, client.jobs.submit(**DOOMED).id)["attempt"] == 1
    assert client.jobs.get(job_id).loss().count == count


def test_a_job_whose_message_a_frozen_worker_took_into_its_death_runs_once(server: Server, client: Client) -> None:
    (worker,) = eventually(lambda: running(server, "worker.app"), what="the worker")
    os.kill(worker, signal.SIGSTOP)
    job_id = client.jobs.submit(**DOOMED).id
    os.kill(worker, signal.SIGKILL)
    job = when_ended(client, job_id)
    assert (job["error"]["code"], job["attempt"]) == ("diverged", 1)
    assert [t["status"] for t in job["transitions"]] == ["queued", "running", "failed"]
    assert worker_of({"transitions": [job["transitions"][1]]}) != worker


def test_a_job_whose_message_was_never_sent_runs_once(server: Server, client: Client) -> None:
    (job_id,) = store_silently(Settings(home=server.home), 1)
    job = when_ended(client, job_id)
    assert [t["status"] for t in job["transitions"]] == ["queued", "running", "failed"]
    assert (job["error"]["code"], job["attempt"]) == ("diverged", 1)


def test_every_job_that_was_accepted_before_the_api_was_killed_runs_once(server: Server, client: Client) -> None:
    (api,) = running(server, "api.app")
    accepted: list[str] = []

    def post() -> None:
        with Client(server.url, retries=0) as own:
            while job := patiently(lambda: own.jobs.submit(**DOOMED)):
                accepted.append(job.id)
                if len(accepted) == 4:
                    os.kill(api, signal.SIGKILL)

    posting = [threading.Thread(target=post) for _ in range(3)]
    for thread in posting:
        thread.start()
    for thread in posting:
        thread.join(30)
    assert len(accepted) >= 4
    for job_id in accepted:
        job = when_ended(client, job_id)
        assert (job["error"]["code"], job["attempt"]) == ("diverged", 1)
        assert [t["status"] for t in job["transitions"]] == ["queued", "running", "failed"]


# --- workers that freeze, and networks that fail -----------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A server with two workers, and the proxy between it and its Redis."""

    server: Server
    proxy: Proxy


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Pair]:
    settings = Settings(home=tmp_path_factory.mktemp("redis"))
    redis = RedisServer(settings)
    child = redis.start()
    home = tmp_path_factory.mktemp("pair")
    try:
        with Proxy(settings.socket) as proxy, serving(home, cache, redis_url=proxy.url, workers="2", **SHORT) as server:
            yield Pair(server, proxy)
    finally:
        child.stop(10)
        redis.release()


def test_a_worker_that_thaws_after_its_lease_writes_nothing_and_serves_again(
    pair: Pair, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(MOMENTUM)
    with Client(pair.server.url, retries=0) as client:
        job_id = submit_and_await_checkpoint(pair.server, client, MOMENTUM)
        worker = worker_of(client.jobs.get(job_id).data)
        frozen = descendants(worker)
        assert len(frozen) == 2
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            eventually(
                lambda: worker_of(client.jobs.get(job_id).data) not in (0, worker), within_s=60, what="the takeover"
            )
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        eventually(lambda: not any(map(is_alive, frozen - {worker})), within_s=10, what="the old trainer's end")
        job = check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=2, claims=2)
        assert job["resumed_from_step"] > 0
        both = [client.jobs.submit(**ENDLESS).id for _ in range(2)]
        eventually(
            lambda: worker in {worker_of(client.jobs.get(each).data) for each in both}, within_s=60, what="its next job"
        )
        for each in both:
            client.jobs.get(each).cancel()
            assert when_ended(client, each)["status"] == "cancelled"


def test_connections_that_are_cut_every_second_cost_no_attempt(pair: Pair, undisturbed: Undisturbed) -> None:
    expected = undisturbed(ADAM)
    with Client(pair.server.url, retries=0) as client:
        job_id = client.jobs.submit(**ADAM).id
        eventually(lambda: worker_of(client.jobs.get(job_id).data), within_s=60, what="its start")
        for _ in range(8):
            assert pair.proxy.reset() > 0
            time.sleep(1)
        check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=1, claims=1)


def test_a_request_right_after_its_connection_was_cut_is_answered(pair: Pair) -> None:
    with Client(pair.server.url, retries=0) as client:
        job_id = client.jobs.submit(**DOOMED).id
        when_ended(client, job_id)
        count = client.jobs.get(job_id).loss().count
        for _ in range(10):
            pair.proxy.reset()
            assert client.jobs.get(job_id).terminal
            pair.proxy.reset()
            assert client.jobs.get(job_id).loss().count == count


def partitioned(pair: Pair, client: Client, seconds: float) -> str:
    """A job whose Redis fell silent for so long."""
    job_id = submit_and_await_checkpoint(pair.server, client, MOMENTUM)
    pair.proxy.set_mode(Mode.BLACKHOLE)
    try:
        time.sleep(seconds)
    finally:
        pair.proxy.set_mode(Mode.PASS)
    return job_id


def test_a_partition_shorter_than_the_lease_costs_no_attempt(pair: Pair, undisturbed: Undisturbed) -> None:
    expected = undisturbed(MOMENTUM)
    with Client(pair.server.url, retries=0) as client:
        job_id = partitioned(pair, client, 0.6)
        check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=1, claims=1)


def test_after_a_partition_longer_than_the_lease_every_step_is_there_once(pair: Pair, undisturbed: Undisturbed) -> None:
    expected = undisturbed(MOMENTUM)
    with Client(pair.server.url, retries=0) as client:
        job_id = partitioned(pair, client, 6)
        job = when_ended(client, job_id)
        claims = sum(t["status"] == "running" for t in job["transitions"])
        assert claims in (1, 2)
        assert job["attempt"] <= claims  # a worker that gave up in time, and could say so, has used up none
        check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=job["attempt"], claims=claims)


def test_a_redis_that_is_half_open_is_answered_with_503_and_costs_no_job(pair: Pair) -> None:
    with Client(pair.server.url, retries=0) as client:
        pair.proxy.set_mode(Mode.HALF_OPEN)
        try:
            began = time.monotonic()
            with pytest.raises(ApiError) as refused:
                client.jobs.submit(**DOOMED)
            assert time.monotonic() - began < 6  # one try of two seconds, on a machine with other things to do
            assert (refused.value.status, refused.value.code) == (503, "unavailable")
        finally:
            pair.proxy.set_mode(Mode.PASS)
        job = eventually(lambda: patiently(lambda: client.jobs.submit(**DOOMED)), what="its return")
        assert when_ended(client, job.id)["attempt"] == 1


def test_five_orderly_stops_of_its_worker_use_up_no_attempt(pair: Pair, undisturbed: Undisturbed) -> None:
    expected = undisturbed(ADAM)
    stopped: set[int] = set()
    with Client(pair.server.url, retries=0) as client:
        job_id = client.jobs.submit(**ADAM).id
        for number in range(5):

            def trainer_at_work(least: int = 10 * (number + 1)) -> int:
                job = client.jobs.get(job_id).data
                return worker_of(job) if job["progress"]["step"] >= least else 0

            worker = eventually(trainer_at_work, within_s=60, what=f"its run number {number + 1}")
            assert worker not in stopped
            os.kill(worker, signal.SIGTERM)
            stopped.add(worker)
            eventually(lambda worker=worker: worker_of(client.jobs.get(job_id).data) != worker, what="the handing over")  # type: ignore[misc]
        job = check_it_ended_as_if_undisturbed(client, job_id, expected, attempt=1, claims=6)
        assert job["resumed_from_step"] > 0


# --- a disk that refuses, and memory that is short ---------------------------------------------------------------------

_ENOUGH_MB = 900  # a trainer of small batches takes some 500


@dataclass(frozen=True)
class Narrow:
    """A server whose trainers have little memory and whose disk can be made to refuse."""

    server: Server
    fault: Path

    def refuse(self, number: int) -> None:
        fresh = self.fault.with_suffix(".new")
        fresh.write_text(str(number))
        fresh.replace(self.fault)


@pytest.fixture(scope="module")
def disk_fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload, which makes the disk refuse or slow."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("disk_fault") / "disk_fault.so"
    source = ROOT / "tests" / "native" / "disk_fault.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, cache: Path, disk_fault: Path) -> Iterator[Narrow]:
    folder = tmp_path_factory.mktemp("narrow")
    fault = folder / "fault"
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(disk_fault))
            patch.setenv("DISK_FAULT_FILE", str(fault))
            patch.setenv("DISK_FAULT_DIR", "jobs")
            running = stack.enter_context(serving(folder / "home", cache, trainer_memory_mb=str(_ENOUGH_MB), **SHORT))
        yield Narrow(running, fault)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_refuses_fails_the_job_with_the_reason_and_it_can_go_on_later(
    narrow: Narrow, undisturbed: Undisturbed, number: int
) -> None:
    expected = undisturbed(MOMENTUM)
    with Client(narrow.server.url, retries=0) as client:
        job_id = submit_and_await_checkpoint(narrow.server, client, MOMENTUM)
        narrow.refuse(number)
        try:
            job = when_ended(client, job_id)
            assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "internal", 1)
            assert os.strerror(number) in job["error"]["message"]
            assert httpx2.get(f"{narrow.server.url}/readyz").json()["checks"]["disk"]["ok"] is False
            kept = checkpoints(narrow.server.home, job_id)
            assert kept
            for checkpoint in kept:
                assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in checkpoint.name
        finally:
            narrow.fault.unlink()
        client.jobs.get(job_id).resume()
        job = when_ended(client, job_id)
        assert [t["status"] for t in job["transitions"]] == [
            "queued",
            "running",
            "failed",
            "queued",
            "running",
            "succeeded",
        ]
        assert (job["attempt"], job["error"]) == (1, None)
        assert job["resumed_from_step"] == int(kept[0].name.split("-")[1])
        assert outcome_of(client, job_id) == expected
        record = narrow.server.home / "jobs" / job_id / artifacts.RECORD
        eventually(lambda: json.loads(record.read_text())["record"]["status"] == "succeeded", what="its file")


def test_a_trainer_over_its_memory_fails_its_job_alone(narrow: Narrow, undisturbed: Undisturbed) -> None:
    expected = undisturbed(MOMENTUM)
    with Client(narrow.server.url, retries=0) as client:
        greedy = client.jobs.submit(**MOMENTUM | {"batch_size": 25_000}).id
        modest = client.jobs.submit(**MOMENTUM).id
        job = when_ended(client, greedy)
        assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "out_of_memory", 1)
        assert str(_ENOUGH_MB) in job["error"]["message"]
        assert [t["status"] for t in job["transitions"]] == ["queued", "running", "failed"]
        check_it_ended_as_if_undisturbed(client, modest, expected, attempt=1, claims=1)


# --- the database ------------------------------------------------------------------------------------------------------


class Poller:
    """Reads a job's losses with the cursor, in a thread, and keeps what it saw. A cursor that is refused is an error."""

    def __init__(self, url: str, job_id: str) -> None:
        self.seen: list[LossPoint] = []
        self.error: BaseException | None = None
        self._url, self._job_id = url, job_id
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_reading)
        self._thread.start()

    def _keep_reading(self) -> None:
        try:
            with Client(self._url, retries=0) as client:
                while not self._done.wait(0.02):
                    after = str(len(self.seen)) if self.seen else None
                    page = patiently(lambda after=after: client.jobs.get(self._job_id).loss(after=after))  # type: ignore[misc]
                    self.seen += page.points if page else []
        except BaseException as error:
            self.error = error

    def stop(self) -> list[LossPoint]:
        self._done.set()
        self._thread.join(30)
        assert self.error is None, self.error
        return self.seen


def test_a_database_killed_at_random_steps_loses_nothing_it_acknowledged(
    tmp_path: Path, cache: Path, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(ADAM)
    moments = sorted(random.Random(7).sample(range(10, 90), 3))
    patient = SHORT | {"lease_s": "10"}  # a database is away for some seconds until it is back
    with serving(tmp_path, cache, **patient) as server, Client(server.url, retries=0) as client:
        job_id = client.jobs.submit(**ADAM).id
        poller = Poller(server.url, job_id)
        accepted = []
        try:
            for moment in moments:
                eventually(lambda moment=moment: len(poller.seen) >= moment, within_s=60, what=f"step {moment}")  # type: ignore[misc]
                (database,) = running(server, "valkey-server")
                accepted.append(client.jobs.submit(**DOOMED).id)
                os.kill(database, signal.SIGKILL)
                eventually(lambda: patiently(lambda: client.jobs.get(job_id).data), within_s=30, what="its return")
                assert client.jobs.get(accepted[-1]).status == "queued"
            job = when_ended(client, job_id)
        finally:
            seen = poller.stop()
        assert (job["status"], job["attempt"]) == ("succeeded", 1)
        assert outcome_of(client, job_id) == expected
        assert seen == client.jobs.get(job_id).loss().points[: len(seen)]
        for other in accepted:
            assert when_ended(client, other)["attempt"] == 1


def test_a_database_killed_while_its_disk_is_slow_loses_no_job_it_acknowledged(
    tmp_path: Path, disk_fault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    server = RedisServer(settings)
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(disk_fault))
        patch.setenv("DISK_SYNC_MS", "1500")
        child = server.start()
    try:
        accepted = []
        until = time.monotonic() + 3.2  # a sync begins every second and is still on its way then
        while time.monotonic() < until:
            accepted += store_silently(settings, 5)
        os.kill(child.pid, signal.SIGKILL)
        eventually(lambda: child.exit_code is not None, what="its end")
        child = server.respawn()
        kept = stored_jobs(settings)
        assert [job_id for job_id in accepted if job_id not in kept] == []
    finally:
        child.stop(10)
        server.release()


def stored_jobs(settings: Settings) -> set[str]:
    async def queued() -> set[str]:
        async with WorkStore.connect(settings.store_url) as jobs:
            return set(await jobs.queued())

    return asyncio.run(queued())


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[str]]:
    """The append-only file of a database that has stopped, and the jobs in it."""
    settings = Settings(home=tmp_path)
    server = RedisServer(settings)
    child = server.start()
    try:
        ids = store_silently(settings, 3)
    finally:
        child.stop(10)
        server.release()
    (file,) = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
    return file, ids


def test_an_append_only_file_without_its_tail_costs_the_last_write_alone(
    tmp_path: Path, cache: Path, stored: tuple[Path, list[str]]
) -> None:
    file, ids = stored
    os.truncate(file, file.stat().st_size - 7)
    with serving(tmp_path, cache, **SHORT) as server, Client(server.url, retries=0) as client:
        for job_id in ids[:-1]:
            job = when_ended(client, job_id)
            assert (job["error"]["code"], job["attempt"]) == ("diverged", 1)
        with pytest.raises(ApiError) as lost:
            client.jobs.get(ids[-1])
        assert lost.value.status == 404
        assert when_ended(client, client.jobs.submit(**DOOMED).id)["attempt"] == 1


def test_an_append_only_file_that_is_damaged_in_its_middle_is_refused_with_what_to_do(
    tmp_path: Path, stored: tuple[Path, list[str]]
) -> None:
    file, _ = stored
    content = file.read_bytes()
    middle = content.index(b"\r\n*", len(content) // 2) + 2
    file.write_bytes(content[:middle] + b"?" + content[middle + 1 :])
    env = os.environ | {"DESCENT_HOME": str(tmp_path), "DESCENT_PORT": "0"}
    command = [sys.executable, "-P", "-m", "client.cli", "up"]
    refused = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "is damaged" in refused.stderr
    assert "descent reindex" in refused.stderr
    assert not [pid for pid, (_, command) in processes().items() if str(tmp_path) in command]
