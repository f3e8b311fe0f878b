"""The API under load, one process of it, beside MLflow's tracking server with the same history.

`.venv/bin/python bench/api.py` (about 5 minutes). wrk, server and database share the cores. Private servers in temporary
homes, and no worker. Each line is the median of its rounds; what is compared takes turns, so that a slow minute of the
machine hits all of it.
"""

import argparse
import asyncio
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from bench.load import Request, loaded, require_wrk
from bench.measure import Run
from bench.servers import descent, serving
from client.stack import free_port
from core.jobs.job import Status
from core.jobs.work import WorkStore
from core.settings import Settings
from core.spec import JobSpec

UVICORN = {"as installed": "--loop asyncio --http h11", "with uvloop": "--loop uvloop --http httptools"}
POINTS = 2500  # the lesson's five epochs, every step
JOBS = 10_000
JOB = '{"optimizer": "adam", "learning_rate": 0.001}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--without-mlflow", action="store_true")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    options = parser.parse_args()
    require_wrk(parser)
    with ExitStack() as servers:
        ours = servers.enter_context(descent(fill, DESCENT_MOST_QUEUED="1000000")).url
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
    bin_dir = Path(measure.environment("mlflow")).parent
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
        command += ["--uvicorn-opts", uvicorn]
        with serving(command, f"http://127.0.0.1:{port}", env, ready="/health") as server:
            root = f"{server.url}/api/2.0/mlflow"
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


if __name__ == "__main__":
    main()
