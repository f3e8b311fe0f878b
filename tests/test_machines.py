"""Machines that share nothing but Redis and a bucket: each part has a home of its own, and a job does not notice."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client.stack import free_port
from core.processes import Child
from core.settings import Settings
from core.training import datasets, idx
from tests.conftest import ROOT, descendants, eventually, is_alive, redis_running
from tests.proxy import Proxy
from tests.s3 import BUCKET, S3, remote, s3_running

LIMIT_S = 180  # for a job on a machine that has other things to do
FALLING = {"schedule": "step_decay", "initial": 0.05, "step_size": 10, "gamma": 0.7, "interval": "step"}
SPEC = {"optimizer": "momentum", "learning_rate": FALLING, "epochs": 1, "batch_size": 1000, "log_every": 1}
SHORT = {"lease_s": "2", "beat_s": "0.4", "scan_s": "0.5", "checkpoint_s": "0.5", "threads": "2"}


@dataclass
class Machines:
    """A database, a bucket with the data sets, and the processes that are started, each in a home of its own."""

    folder: Path
    redis: Settings
    s3: S3
    stack: ExitStack
    url: str = ""
    workers: dict[str, Child] = field(default_factory=dict)

    def env(self, name: str, **more: str) -> dict[str, str]:
        home = self.folder / name
        settings = {"home": str(home), "cache": str(home / "cache"), "redis_url": self.redis.store_url, **SHORT}
        settings |= {"artifacts": f"s3://{BUCKET}/jobs", "data_mirror": f"s3://{BUCKET}/data"}
        return {f"DESCENT_{key.upper()}": value for key, value in settings.items()} | self.s3.env() | more

    def start(self, name: str, module: str, **more: str) -> Child:
        command = [sys.executable, "-P", "-m", module]
        child = Child(name, command, log_file=self.folder / f"{name}.log", env=self.env(name, **more))
        self.stack.callback(child.stop, 30)
        return child

    def start_api(self) -> None:
        port = free_port("127.0.0.1")
        self.start("api", "api.app", DESCENT_PORT=str(port))
        self.url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{self.url}/healthz"), within_s=60, what="the API")

    def start_worker(self, name: str, **more: str) -> Child:
        self.workers[name] = self.start(name, "worker.app", **more)
        return self.workers[name]

    def http(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return httpx2.request(method, f"{self.url}{path}", timeout=60, trust_env=False, **options)

    def submit(self, **spec: Any) -> str:
        answer = self.http("POST", "/jobs", json=SPEC | spec)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.http("GET", f"/jobs/{job_id}").json())

    def when_ended(self, job_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["terminal"] else None

        return eventually(ended, within_s=LIMIT_S, what=f"the end of {job_id}")

    def outcome(self, job_id: str) -> tuple[list[Any], str]:
        """What came of a job, to the bit."""
        points = [(p["step"], p["loss"]) for p in self.http("GET", f"/jobs/{job_id}/loss").json()["points"]]
        return points, hashlib.sha256(self.model(job_id).content).hexdigest()

    def model(self, job_id: str, *, format: str = "safetensors", **headers: str) -> httpx2.Response:
        return self.http("GET", f"/jobs/{job_id}/model?format={format}", headers=headers)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def worker_of(job: dict[str, Any]) -> int:
    """The process that had the job last."""
    return int([t["worker"] for t in job["transitions"] if t["status"] == "running"][-1].split(":")[1])


@contextmanager
def speaking_to(s3: S3) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, cache: Path, mnist: datasets.Dataset) -> Iterator[Machines]:
    """An API and two workers."""
    folder = tmp_path_factory.mktemp("machines")
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_running(folder))
        stack.enter_context(speaking_to(s3))
        mirror = remote("data", limit_s=60)
        for file in idx.FILES["mnist"]:
            mirror.put(f"mnist/{file.name}.gz", gzip.compress((cache / "mnist" / file.name).read_bytes(), 1))
        redis = stack.enter_context(redis_running(folder / "redis"))
        for name in ("one", "two", "api"):  # none has to compile what is here
            if (cache / "kernels").is_dir():
                shutil.copytree(cache / "kernels", folder / name / "cache" / "kernels")
        machines = Machines(folder, redis, s3, stack)
        machines.start_worker("one")
        machines.start_worker("two")
        machines.start_api()
        yield machines


@pytest.fixture(scope="module")
def shared(machines: Machines) -> list[dict[str, Any]]:
    """Two jobs that ended undisturbed, after both workers had come; the first is SPEC's."""
    ready = f"{machines.url}/readyz"
    eventually(lambda: "2 alive" in httpx2.get(ready, trust_env=False).text, within_s=60, what="both workers")
    return [machines.when_ended(job_id) for job_id in [machines.submit(**more) for more in ({}, {"seed": 1})]]


@pytest.fixture(scope="module")
def trained(shared: list[dict[str, Any]]) -> str:
    """A job that ended undisturbed."""
    return str(shared[0]["id"])


def files_of(job_id: str) -> dict[str, int]:
    return remote("jobs").find(job_id)


def test_two_workers_share_the_jobs_and_leave_nothing_at_home(machines: Machines, shared: list[dict[str, Any]]) -> None:
    assert machines.http("GET", "/readyz").json()["checks"]["disk"]["detail"] == "answers"
    assert {job["status"] for job in shared} == {"succeeded"}
    assert {worker_of(job) for job in shared} == {child.pid for child in machines.workers.values()}
    for job in shared:
        assert hashlib.sha256(machines.model(job["id"]).content).hexdigest() == job["model"]["sha256"]
    assert not list(machines.folder.glob("*/jobs"))


def test_a_job_whose_worker_was_killed_goes_on_at_the_other_to_the_same_bits(machines: Machines, trained: str) -> None:
    job_id = machines.submit()

    def has_checkpoint() -> int | None:
        job = machines.job(job_id)
        known = machines.http("GET", f"/jobs/{job_id}/checkpoints").json()["checkpoints"]
        return worker_of(job) if job["status"] == "running" and known else None

    killed = eventually(has_checkpoint, within_s=LIMIT_S, what="a checkpoint")
    os.kill(killed, signal.SIGKILL)
    job = machines.when_ended(job_id)
    (name,) = (name for name, child in machines.workers.items() if child.pid == killed)
    machines.start_worker(name)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert job["resumed_from_step"] > 0
    assert worker_of(job) != killed
    assert machines.outcome(job_id) == machines.outcome(trained)


def test_a_model_is_downloaded_whole_in_part_or_not_at_all(machines: Machines, trained: str) -> None:
    whole = machines.model(trained)
    assert whole.headers["etag"] == f'"{machines.job(trained)["model"]["sha256"]}"'
    part = machines.model(trained, Range="bytes=1000-1999")
    assert (part.status_code, part.content) == (206, whole.content[1000:2000])
    assert machines.model(trained, **{"If-None-Match": whole.headers["etag"]}).status_code == 304
    pdparams = machines.model(trained, format="pdparams").content
    assert remote("jobs").get(f"{trained}/1/model.pdparams") == pdparams
    first = machines.model(trained, format="onnx")
    assert any(path.endswith(".onnx") for path in files_of(trained))
    assert machines.model(trained, format="onnx").content == first.content


def test_a_model_predicts_and_is_evaluated_where_it_was_not_trained(machines: Machines, trained: str) -> None:
    answer = machines.http("POST", "/predict", json={"model": trained, "image": [0.0] * 784})
    assert answer.status_code == 200, answer.text
    evaluation = machines.http("GET", f"/jobs/{trained}/evaluation").json()
    assert evaluation["accuracy"] == machines.job(trained)["result"]["test_accuracy"]


def test_a_deleted_job_leaves_nothing_in_the_bucket(machines: Machines, shared: list[dict[str, Any]]) -> None:
    job_id = shared[1]["id"]
    eventually(lambda: f"{job_id}/job.json" in files_of(job_id), what="its files")
    assert machines.http("DELETE", f"/jobs/{job_id}").status_code == 204
    assert files_of(job_id) == {}


def test_a_lost_database_is_filled_from_the_bucket(machines: Machines, trained: str, tmp_path: Path) -> None:
    before = machines.job(trained)
    eventually(lambda: f"{trained}/job.json" in files_of(trained), what="its files")
    with redis_running(tmp_path / "redis") as empty:
        env = os.environ | machines.env("third", DESCENT_REDIS_URL=empty.store_url)
        command = [sys.executable, "-P", "-m", "client.cli", "reindex"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert f"{trained} restored" in done.stdout.splitlines(), done.stderr
        with ExitStack() as stack:
            other = Machines(tmp_path, empty, machines.s3, stack)
            other.start_api()
            assert other.job(trained) | {"links": None} == before | {"links": None}
            assert other.model(trained).content == machines.model(trained).content


def test_a_bucket_that_is_missing_is_explained_wherever_it_is_needed(machines: Machines, tmp_path: Path) -> None:
    nowhere = {"DESCENT_ARTIFACTS": "s3://nowhere/jobs"}
    why = "there is no bucket nowhere: make it, or correct DESCENT_ARTIFACTS"
    for command in (["worker.app"], ["client.cli", "up"]):
        env = os.environ | machines.env("fourth", DESCENT_PORT="0", **nowhere)
        done = subprocess.run(
            [sys.executable, "-P", "-m", *command], env=env, capture_output=True, text=True, timeout=60, cwd=ROOT
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert why in done.stderr
    with ExitStack() as stack:
        port = free_port("127.0.0.1")
        other = Machines(tmp_path, machines.redis, machines.s3, stack, url=f"http://127.0.0.1:{port}")
        other.start("api", "api.app", DESCENT_PORT=str(port), **nowhere)
        eventually(lambda: answers(f"{other.url}/healthz"), within_s=60, what="the API")
        answer = other.http("GET", "/readyz")
        assert answer.status_code == 503
        assert why in answer.json()["checks"]["disk"]["detail"]
        assert why in (tmp_path / "api.log").read_text()


def test_a_job_waits_for_a_storage_that_is_away_and_loses_nothing(
    machines: Machines, trained: str, tmp_path: Path
) -> None:
    """Its worker alone cannot reach the bucket, from the middle of the training to long after its end."""
    with (
        Proxy(("127.0.0.1", machines.s3.port)) as proxy,
        redis_running(tmp_path / "redis") as redis,
        ExitStack() as stack,
    ):
        alone = Machines(tmp_path, redis, machines.s3, stack)
        through = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "DESCENT_CHECKPOINT_S": "60"}
        worker = alone.start_worker("worker", **through)
        alone.start_api()
        job_id = alone.submit()
        eventually(lambda: alone.job(job_id)["progress"]["step"] > 0, within_s=LIMIT_S, what="its first losses")
        proxy.cut_after(0, times=1_000_000)
        eventually(lambda: alone.job(job_id)["progress"]["fraction"] == 1, within_s=LIMIT_S, what="the last step")
        log = tmp_path / "worker.log"
        eventually(lambda: "waiting for the storage" in log.read_text(), within_s=60, what="the wait")
        assert alone.job(job_id)["status"] == "running"
        assert not any("model" in path for path in files_of(job_id))
        proxy.cut_after(0, times=0)
        job = alone.when_ended(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1)
        assert len([t for t in job["transitions"] if t["status"] == "running"]) == 1
        assert alone.outcome(job_id) == machines.outcome(trained)
        family = descendants(worker.pid)
    assert not any(is_alive(pid) for pid in family)


def test_no_secret_is_in_a_log_or_a_record(machines: Machines, trained: str) -> None:
    secrets = [machines.s3.env()[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    for log in machines.folder.glob("*.log"):
        if log.name != "s3.log":
            assert not any(secret in log.read_text() for secret in secrets)
    told = [json.dumps(machines.job(trained)).encode(), *(remote("jobs").get(path) for path in files_of(trained))]
    assert len(told) > 5
    assert not any(secret.encode() in text for secret in secrets for text in told)
