"""`descent demo`: the lesson's job from end to end, over HTTP, on a private stack; loud when anything does not happen."""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from client import stack
from client.answers import JobData, LossPoint
from client.client import Client, Points
from core.catalogue import DEFAULT_DATASET
from core.errors import StackError
from core.settings import Settings
from core.training import datasets

LEAST_ACCURACY = 0.97
_PREDICTED = 200  # test digits sent to /predict
_LONGEST_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the demo saw."""

    job: JobData
    points: list[LossPoint]
    first_loss_s: float


def run(settings: Settings, *, epochs: int, console: Console) -> dict[str, Any]:
    """Fetch MNIST, train, watch, download, predict, sum up; what came of it.

    Raises StackError when something did not happen.
    """
    data = fetch(settings, console)
    out = settings.home / "demo"
    out.mkdir(parents=True, exist_ok=True)
    with (
        _private(settings) as private,
        stack.running(private, console.out) as server,
        Client(server.url, trust_env=False) as client,
    ):
        seen = _watch(client, epochs, console)
        job = _succeeded(seen)
        model = client.jobs.get(job["id"]).download(out / "mnist.pdparams")
        right = _predict(client, job["id"], data.test, console)
    plot = out / "loss.png"
    draw(seen.points, plot, title=f"Adam, learning rate 0.001: test accuracy {job['result']['test_accuracy']:.2%}")
    facts = _facts(seen, right, model, plot)
    console.print(_summary(facts))
    return facts


@contextmanager
def _private(settings: Settings) -> Iterator[Settings]:
    """Settings of a stack of our own: a free port, a home that is gone afterwards, the data sets of the real one."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir=settings.home) as home:
        changes = {"home": Path(home), "port": 0, "host": "127.0.0.1", "cache": settings.cache_dir, "redis_url": None}
        changes |= {"require_keys": False, "artifacts": None}
        yield settings.model_copy(update=changes)


def fetch(settings: Settings, console: Console, *, name: str = DEFAULT_DATASET) -> datasets.Dataset:
    """A data set, with a progress bar when it has to be fetched."""
    columns = (TextColumn("Fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        return datasets.load(
            name, cache=settings.cache_dir, folder=settings.datasets, mirror=settings.data_mirror, report=report
        )


def _watch(client: Client, epochs: int, console: Console) -> Run:
    began = time.perf_counter()
    job = client.jobs.submit(optimizer="adam", learning_rate=0.001, epochs=epochs, name="demo")
    console.print(f"\nPOST /jobs  ->  202  {job.id}")
    points: list[LossPoint] = []
    first_loss_s = 0.0
    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps  loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = job.data["progress"]["total_steps"]
        task = progress.add_task("training", total=total, loss="-")
        for event in job.stream(_LONGEST_S):
            if isinstance(event, Points):
                points += event.points
                first_loss_s = first_loss_s or time.perf_counter() - began
                done, loss = points[-1]["step"] + 1, f"{points[-1]['loss']:.4f}"
                progress.update(task, completed=done, loss=loss)
                if not console.is_terminal:  # a log file: plain lines instead of a bar that moves
                    console.print(f"step {done} of {total}, loss {loss}")
    return Run(job=job.data, points=points, first_loss_s=first_loss_s)


def _succeeded(seen: Run) -> JobData:
    """The job, if all of it is as it should be."""
    job, losses = seen.job, _losses(seen.points)
    if job["status"] != "succeeded":
        raise StackError(f"the job {job['status']}: {job['error']}")
    steps = [point["step"] for point in seen.points]
    if steps != sorted(set(steps)) or steps[-1] != job["progress"]["total_steps"] - 1:
        raise StackError(f"the loss history has a gap or a repeat: {steps}")
    if not losses[-1] < losses[0] / 4:
        raise StackError(f"the loss did not fall: {losses[0]} to {losses[-1]}")
    accuracy = job["result"]["test_accuracy"]
    if accuracy is None or not accuracy > LEAST_ACCURACY:
        raise StackError(f"test accuracy {accuracy} is not above {LEAST_ACCURACY}")
    return job


def _losses(points: list[LossPoint]) -> list[float]:
    return [math.nan if point["loss"] is None else point["loss"] for point in points]


def _predict(client: Client, job_id: str, test: datasets.Split, console: Console) -> int:
    """Send real test digits to /predict; returns how many came back right."""
    answer = client.predict(test.images[:_PREDICTED].tolist(), model=job_id, range=255)
    guessed = [prediction["digit"] for prediction in answer["predictions"]]
    wanted = test.labels[:_PREDICTED].tolist()
    right = sum(1 for a, b in zip(guessed, wanted, strict=True) if a == b)
    console.print(f"POST /predict  ->  {guessed[:10]}, and they are {wanted[:10]}")
    if right < _PREDICTED * (LEAST_ACCURACY - 0.04):
        raise StackError(f"only {right} of {_PREDICTED} digits were predicted right")
    return right


def draw(points: list[LossPoint], file: Path, *, title: str) -> None:
    """The loss curve as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy of one batch", title=title, yscale="log")
    axes.plot([point["step"] for point in points], _losses(points), linewidth=1)
    axes.axhline(2.302585, linestyle=":", color="grey", label="pure guessing, ln 10")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def _facts(seen: Run, right: int, model: Path, plot: Path) -> dict[str, Any]:
    result, backend, losses = seen.job["result"], seen.job.get("backend"), _losses(seen.points)
    return {
        "job_id": seen.job["id"],
        "first_loss_s": round(seen.first_loss_s, 3),
        "device": backend["device"] if backend else None,
        "images_per_s": result["images_per_s"],
        "seconds": result["seconds"],
        "points": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "test_accuracy": result["test_accuracy"],
        "predicted": _PREDICTED,
        "predicted_right": right,
        "model": str(model),
        "loss_plot": str(plot),
    }


def _summary(facts: dict[str, Any]) -> Panel:
    table = Table.grid(padding=(0, 2))
    for name, value in {
        "time to first loss": "{first_loss_s:.2f} s after POST /jobs",
        "speed": "{images_per_s:,.0f} images/s on {device}, {seconds:.1f} s",
        "loss": "{first_loss:.3f} -> {last_loss:.3f} over {points} points",
        "test accuracy": "{test_accuracy:.2%}",
        "predicted right": "{predicted_right} of {predicted} test digits",
        "model": "{model}",
        "loss plot": "{loss_plot}",
    }.items():
        table.add_row(name, value.format(**facts))
    return Panel(table, title="Done", subtitle="next: make up, and the README's curls", expand=False)
