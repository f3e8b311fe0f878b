"""The API under load, one process of it, beside MLflow's tracking server with the same history.

`.venv/bin/python bench/api.py` (about 5 minutes). wrk makes the load, because it is light and client, server and database
share the cores (Debian: `apt-get install wrk`). Private servers in temporary homes, and no worker. Each line is the median of
its rounds; what is compared takes turns, so that a slow minute of the machine hits all of it.
"""

import argparse
import asyncio
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from bench.measure import Run
from client.redis_server import RedisServer
from client.stack import free_port
from core.jobs.job import Status
from core.jobs.work import WorkStore
from core.processes import Child
from core.settings import Settings
from core.spec import JobSpec

MLFLOW = ["mlflow==3.17.2", "uvloop==0.23.0", "httptools==0.9.0"]
UVICORN = {"as installed": "--loop asyncio --http h11", "with uvloop": "--loop uvloop --http httptools"}
POINTS = 2500  # the lesson's five epochs, every step
JOBS = 10_000
JOB = '{"optimizer": "adam", "learning_rate": 0.001}'
_START_LIMIT_S = 120


@dataclass(frozen=True)
class Request:
    """What is asked for again and again, and what the answer must be: its status, and how often it says "step"."""

    url: str
    status: int = 200
    steps: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    def check(self) -> None:
        """Ask once. Raises RuntimeError when the answer is not what is to be measured."""
        method = "POST" if self.body else "GET"
        json = {"Content-Type": "application/json"} if self.body else {}
        answer = httpx2.request(
            method, self.url, headers={**self.headers, **json}, content=self.body, timeout=60, trust_env=False
        )
        if answer.status_code != self.status or self.steps not in (None, answer.text.count('"step"')):
            raise RuntimeError(f"{self.url}: {answer.status_code} {answer.text[:300]}")

    def load(self, connections: int, seconds: int) -> Run:
        """Keep so many connections busy with it for so long."""
        headers = [word for name, value in self.headers.items() for word in ("-H", f"{name}: {value}")]
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", *headers]
        env = os.environ | ({"BODY": self.body} if self.body else {})
        run = measure.run([*command, "-s", "bench/load.lua", self.url], env=env)
        if run.figures["failed"]:
            raise RuntimeError(f"{self.url}: {run.figures['failed']:.0f} answers failed")
        self.check()  # is still right; and answered after what wrk left unread
        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--without-mlflow", action="store_true")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("this needs wrk: apt-get install wrk")
    with ExitStack() as servers:
        ours = servers.enter_context(descent())
        requests = {**reads(ours), **lists(ours)}
        if not options.without_mlflow:
            for how, uvicorn in UVICORN.items():
                requests[f"MLflow {how}: metrics/get-history"] = servers.enter_context(mlflow(uvicorn))
        requests = {name: request for name, request in requests.items() if options.only in name}
        runs = loaded(requests, options.connections, options.seconds, options.rounds)
        creates = {"POST /jobs": Request(f"{ours}/jobs", 202, body=JOB)}  # last: they make the list longer
        if options.only in "POST /jobs":
            runs |= loaded(creates, options.connections, options.seconds, options.rounds)
    print(measure.heading(f"The API: one process, {options.connections} connections"))
    print(report(runs))


def loaded(requests: Mapping[str, Request], connections: int, seconds: int, rounds: int) -> dict[str, list[Run]]:
    for request in requests.values():
        request.check()
        request.load(connections, 1)  # connections opened, code warm
    return measure.interleaved(
        {name: partial(request.load, connections, seconds) for name, request in requests.items()}, rounds
    )


def report(runs: dict[str, list[Run]]) -> str:
    rivals = [measure.median(group, "per_s") for name, group in runs.items() if name.startswith("MLflow")]
    rows = []
    for name, group in runs.items():
        per_s = measure.median(group, "per_s")
        spread = [run.figures["per_s"] for run in group]
        rows.append([
            name, f"{per_s:,.0f}", f"{min(spread):,.0f}-{max(spread):,.0f}",
            *(f"{measure.median(group, figure):.1f}" for figure in ("p50_ms", "p95_ms", "p99_ms")),
            f"{per_s / max(rivals):.1f}" if rivals and "history" in name else "",
        ])  # fmt: skip
    head = ["", "requests/s, median", "range", "p50 ms", "p95 ms", "p99 ms", "times the faster MLflow"]
    return measure.table(head, rows)


def reads(server: str) -> dict[str, Request]:
    job_id = httpx2.get(f"{server}/jobs?status=succeeded", timeout=60).json()["jobs"][0]["id"]
    loss = f"{server}/jobs/{job_id}/loss"
    known = {"If-None-Match": httpx2.get(loss).headers["etag"]}
    return {
        "full history, 2,500 points": Request(loss, steps=POINTS),
        "delta poll, nothing new": Request(f"{loss}?after={POINTS}", steps=0),
        "delta poll, 10 new points": Request(f"{loss}?after={POINTS - 10}", steps=10),
        "unchanged, 304": Request(loss, 304, headers=known),
        "GET /jobs/{id}": Request(f"{server}/jobs/{job_id}"),
    }


def lists(server: str) -> dict[str, Request]:
    queries = {
        "newest 20": "",
        "newest 100": "?limit=100",
        "status, 1 match": "?status=succeeded",
        "status, all match": "?status=queued",
        "optimizer, no match": "?optimizer=lamb",
        "tag, 10 matches": "?tag=kept:yes",
        "tag, no match": "?tag=nobody",
    }
    return {f"list of {JOBS:,}: {name}": Request(f"{server}/jobs{query}") for name, query in queries.items()}


@contextmanager
def descent() -> Iterator[str]:
    """The URL of one API process over an embedded server with many jobs; one has trained."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), port=free_port("127.0.0.1"))
        redis = RedisServer(settings)
        child = redis.start()
        try:
            asyncio.run(fill(settings))
            command = [sys.executable, "-m", "api.app"]
            env = {"DESCENT_HOME": home, "DESCENT_PORT": str(settings.port), "DESCENT_MOST_QUEUED": "1000000"}
            with serving(command, f"http://127.0.0.1:{settings.port}/healthz", env) as url:
                yield url.removesuffix("/healthz")
        finally:
            child.stop(20)
            redis.release()


async def fill(settings: Settings) -> None:
    """Ten thousand queued jobs, a thousandth of them tagged, the newest of all with a whole history."""
    plain = {"optimizer": "adam", "learning_rate": 0.001}
    specs = [JobSpec.model_validate({**plain, "tags": {"kept": "yes"} if n % 1000 == 0 else {}}) for n in range(JOBS)]
    async with WorkStore.connect(settings.store_url) as store:
        for start in range(0, JOBS, 50):
            await asyncio.gather(*(store.submit(spec) for spec in specs[start : start + 50]))
        job = await store.submit(JobSpec.model_validate({**plain, "log_every": 1}))
        claim = await store.claim(job.id, worker="bench", lease_s=3600)
        assert claim
        await store.append(claim, history(), steps_done=POINTS, images_per_s=15_000)
        files = {"safetensors": {"path": "none", "sha256": "0" * 64, "size_bytes": 1}}
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.98}, files=files)


def history() -> list[dict[str, float]]:
    """A loss that falls and shakes, with all its digits."""
    losses = [0.05 + 2.25 * math.exp(-step / 200) * (1 + 0.1 * math.sin(step)) for step in range(POINTS)]
    return [
        {"step": step, "epoch": step // 500, "batch": step % 500, "loss": loss, "time_s": round(step * 0.0061, 3)}
        for step, loss in enumerate(losses)
    ]


@contextmanager
def mlflow(uvicorn: str) -> Iterator[Request]:
    """The same history in MLflow's tracking server: one process over SQLite."""
    bin_dir = Path(measure.environment("mlflow", MLFLOW)).parent
    with tempfile.TemporaryDirectory() as folder:
        port = free_port("127.0.0.1")
        store = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            f"{folder}/artifacts",
        ]
        command = [str(bin_dir / "mlflow"), "server", *store, "--port", str(port), "--workers", "1"]
        env = {"PATH": f"{bin_dir}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with serving([*command, "--uvicorn-opts", uvicorn], f"http://127.0.0.1:{port}/health", env) as url:
            root = url.removesuffix("/health") + "/api/2.0/mlflow"
            run = httpx2.post(f"{root}/runs/create", json={"experiment_id": "0"}, timeout=60).raise_for_status().json()
            run_id = run["run"]["info"]["run_id"]
            metrics = [
                {"key": "loss", "value": point["loss"], "step": point["step"], "timestamp": int(point["time_s"] * 1000)}
                for point in history()
            ]
            for start in range(0, POINTS, 500):
                batch = {"run_id": run_id, "metrics": metrics[start : start + 500]}
                httpx2.post(f"{root}/runs/log-batch", json=batch, timeout=60).raise_for_status()
            yield Request(f"{root}/metrics/get-history?run_id={run_id}&metric_key=loss", steps=POINTS)


@contextmanager
def serving(command: list[str], url: str, env: dict[str, str]) -> Iterator[str]:
    """A server process, once `url` answers, until the block ends."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        child = Child("server", command, log_file=Path(log.name), env=env)
        try:
            deadline = time.monotonic() + _START_LIMIT_S
            while not answers(url):
                if child.exit_code is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.1)
            yield url
        finally:
            child.stop(10)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


if __name__ == "__main__":
    main()
