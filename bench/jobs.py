"""Jobs over REST: how long until the first loss, and what the server adds to a whole training.

`.venv/bin/python bench/jobs.py` (about 8 minutes). A private server in a temporary home; the machine should be idle.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from bench.measure import Run
from client import stack
from client.client import Client
from core.settings import Settings
from core.spec import JobSpec
from worker.trainer_process import Assignment, Setup

JOB: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.001}
_SETTLED_S = 3.0  # after a job, for the next trainer to get ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--cold", type=int, default=8)
    parser.add_argument("--whole", type=int, default=5)
    options = parser.parse_args()
    print(measure.heading("Jobs over REST"))
    print(first_loss(options.warm, options.cold))
    print(f"\n{whole_job(options.whole)}")


@contextlib.contextmanager
def server() -> Iterator[Client]:
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), cache=Settings().cache_dir, port=0, log_level="warning")
        with stack.running(settings, lambda _: None) as running, Client(running.url) as client:
            yield client


def first_loss(warm: int, cold: int) -> str:
    """POST to the first stored loss point: on a server that stands idle, on one just started, and when the last job has
    just ended."""
    seconds: dict[str, list[float]] = {"idle server (a trainer waits)": [], "right after another job": []}
    with server() as client:
        time.sleep(_SETTLED_S)
        for _ in range(warm):
            seconds["idle server (a trainer waits)"].append(until_first_loss(client))
            seconds["right after another job"].append(until_first_loss(client))
            time.sleep(_SETTLED_S)
    just_started = []
    for _ in range(cold):
        with server() as client:
            just_started.append(until_first_loss(client))
    seconds["server just started"] = just_started
    rows = [
        [name, f"{statistics.median(group):.3f}", f"{percentile(group, 0.95):.3f}", f"{max(group):.3f}", len(group)]
        for name, group in seconds.items()
    ]
    return measure.table(["POST /jobs to the first loss point", "median s", "p95 s", "max s", "jobs"], rows)


def until_first_loss(client: Client) -> float:
    """Seconds; the job is then cancelled and waited for."""
    began = time.perf_counter()
    job = client.jobs.submit(**JOB, epochs=100)
    while not job.loss().count:
        time.sleep(0.002)
    took = time.perf_counter() - began
    job.cancel().wait(60, check=False)
    return took


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def whole_job(repeats: int) -> str:
    """Five epochs over REST, from POST to the end, polled twice a second; against the trainer process alone."""
    with server() as client:
        time.sleep(_SETTLED_S)
        contenders = {"job over REST": lambda: over_rest(client), "the trainer alone": alone}
        runs = measure.interleaved(contenders, repeats)
    bare = measure.median(runs["the trainer alone"], "seconds")
    rows = []
    for name, group in runs.items():
        times = [run.figures["seconds"] for run in group]
        middle = statistics.median(times)
        rows.append(
            [name, f"{middle:.2f}", f"{min(times):.2f}-{max(times):.2f}", f"{middle / bare - 1:+.1%}", len(group)]
        )
    pairs = zip(runs["job over REST"], runs["the trainer alone"], strict=True)
    ratios = [ours.figures["seconds"] / bare.figures["seconds"] - 1 for ours, bare in pairs]
    head = ["the lesson's 5 epochs", "median s", "range", "against the trainer alone", "runs"]
    return f"{measure.table(head, rows)}\n\nOverhead, median of the pairs: {statistics.median(ratios):+.1%}."


def over_rest(client: Client) -> Run:
    began = time.perf_counter()
    job, after, is_over = client.jobs.submit(**JOB, epochs=5), None, False
    while not is_over:
        history = job.loss(after=after)
        after, is_over = history.next, history.terminal
        time.sleep(0 if is_over else 0.5)
    took = time.perf_counter() - began
    assert job.refresh().status == "succeeded"
    time.sleep(_SETTLED_S)
    return Run({"seconds": took}, 0)


def alone() -> Run:
    """A trainer process that is ready, from the moment it gets its assignment until its last word."""
    setup = Setup.of(Settings(log_level="warning"))
    spec = JobSpec.model_validate({**JOB, "epochs": 5})
    with tempfile.TemporaryDirectory() as folder:
        assignment = Assignment(
            job_id="bench", spec=spec.model_dump(), folder=str(Path(folder, "job", "1")), last_step=-1
        )
        command = [sys.executable, "-m", "worker.trainer_process", json.dumps(vars(setup))]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=measure.ROOT,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            time.sleep(2 * _SETTLED_S)
            began = time.perf_counter()
            process.stdin.write(json.dumps(vars(assignment)) + "\n")
            process.stdin.flush()
            last = [json.loads(line)["type"] for line in process.stdout][-1]
            took = time.perf_counter() - began
    assert last == "done"
    return Run({"seconds": took}, 0)


if __name__ == "__main__":
    main()
