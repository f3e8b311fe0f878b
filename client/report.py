"""What came of jobs, sweeps and range tests: tables, pictures and the next commands."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from client import output, plot
from client.output import (
    Column,
    age,
    curve,
    duration,
    last_loss,
    number,
    optimizer_of,
    percent,
    rate_of,
    short,
    status,
    table,
    verdict,
)

if TYPE_CHECKING:
    from client.answers import Comparison, GroupRow, JobData, LossPoint, RangeTestData, RunRow, SweepData
    from client.client import Client

_MOST_COMPARED = 50  # of one request
_SPARK_POINTS, _SPARK = 24, 10  # of a small curve, and its columns
_PLOT_ROWS = 10
_IN_TITLE = ("optimizer", "learning_rate", "dataset", "epochs", "name")
_ADVICE = {
    "diverged": "a smaller rate helps: `descent lr-find --optimizer {optimizer}` suggests one",
    "out_of_memory": "try a smaller --batch-size, or more memory for a trainer (DESCENT_TRAINER_MEMORY_MB)",
    "max_runtime": "go on with `descent resume {id}`, or submit it with a larger --max-runtime",
    "dataset_unavailable": "`descent doctor` on the server's machine says what it lacks",
    "device_unavailable": "try --device auto; `descent doctor` on the worker's machine looks for its GPU",
    "worker_lost": "`descent doctor` on the worker's machine may say why; `descent resume {id}` tries again",
    "internal": "the worker's log has more; `descent resume {id}` tries again",
}


# --- one job -----------------------------------------------------------------------------------------------------------


def outcome(job: "JobData", found: Mapping[str, Any] | None, *, with_details: bool = False) -> Table:
    """What came of a job, with the verdict on its curve; and all the rest."""
    return output.pairs([*_outcome(job, found), *(_details(job) if with_details else ())])


def _outcome(job: "JobData", found: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    result, error, model = job["result"], job["error"], job["model"]
    yield "job", job["id"]
    yield "status", status(job["status"])
    yield "what", output.title_of(job["spec"])
    yield "test accuracy", percent(result["test_accuracy"])
    yield "validation", percent(result["valid_accuracy"])
    yield "last loss", last_loss(job["latest"])
    yield "training took", _took(job) if result["seconds"] else ""
    yield "verdict", verdict(found).append(f": {found['en']}", "default") if found else ""
    yield "error", f"{error['code']}: {error['message']}" if error else ""
    if early := job["stopped_early"]:
        yield "stopped early", f"after {early['epochs']} epochs it was number {early['place']} of {early['runs']}"
    yield (
        "model",
        f"ready, {model['size_bytes']:,} bytes as safetensors" if model["ready"] and model["size_bytes"] else "",
    )


def waits_for(job: "JobData") -> str:
    """What no live worker has that a queued job needs."""
    waiting = job.get("waiting_for")
    return waiting["en"] if waiting else ""


def _took(job: "JobData") -> str:
    result, backend = job["result"], job.get("backend")
    speed = f"{result['images_per_s']:,.0f} images/s" if result["images_per_s"] else ""
    parts = duration(result["seconds"]), speed, f"on {backend['device']}" if backend else ""
    return ", ".join(part for part in parts if part)


def _details(job: "JobData") -> Iterator[tuple[str, Any]]:
    """What `_outcome` does not say: how far it is, when it was what, and what it was asked for."""
    progress, position, spec = job["progress"], job.get("queue_position"), job["spec"]
    steps = f"{progress['step']:,} of {progress['total_steps']:,} steps"
    yield "progress", f"{steps}, {duration(progress['eta_s'])} to go" if progress["eta_s"] else steps
    yield "queue", f"{position} before it" if position is not None and job["status"] == "queued" else ""
    yield "waits for", waits_for(job)
    yield "optimizer", _settings(spec.get("optimizer", ""))
    yield "rate", _settings(spec.get("learning_rate", ""))
    rest = {name: value for name, value in spec.items() if name not in _IN_TITLE and value not in (None, {})}
    yield "more", ", ".join(f"{name}={value}" for name, value in rest.items())
    yield "created", f"{job['created_at']} ({age(job['created_at'])} ago)"
    yield "finished", job["finished_at"] or ""
    yield "sha256", f"{job['model']['sha256']} (as safetensors)" if job["model"]["sha256"] else ""
    yield "attempt", job["attempt"] if job["attempt"] > 1 else ""
    yield "sweep", job["sweep"] or ""


def _settings(value: object) -> str:
    """An optimizer or a rate with its parameters."""
    if not isinstance(value, Mapping):
        return str(value)
    name = value.get("name") or value.get("schedule")
    rest = ", ".join(
        f"{key}={inner}" for key, inner in value.items() if key not in ("name", "schedule") and inner is not None
    )
    return f"{name}: {rest}" if rest else str(name)


def verdict_on(client: "Client", job_id: str) -> "RunRow":
    """The job's row of a comparison with nothing else."""
    return client.compare([job_id], max_points=4)["table"]["runs"][0]


def loss_plot(points: "Sequence[LossPoint]") -> list[Text]:
    return plot.plot([plot.Line([(p["step"], p["loss"]) for p in points])], width=_plot_width(), height=_PLOT_ROWS)


def _plot_width() -> int:
    return min(output.out.width - 1, 100)


def next_commands(job: "JobData") -> None:
    """Commands to copy, on stderr: what one would do next."""
    job_id, error = job["id"], job["error"]
    if error and error["code"] in _ADVICE:
        told = _ADVICE[error["code"]].format(id=job_id, optimizer=optimizer_of(job["spec"]["optimizer"]))
        output.tell(f"What to do: {told}")
        return
    lines = []
    if job["model"]["ready"]:
        lines += [f"descent download {job_id}", f"descent predict --model {job_id} DIGIT.png"]
    if job["status"] in ("paused", "cancelled"):
        lines += [f"descent resume {job_id}"]
    if lines:
        output.tell("\n".join(["Next:", *(f"  {line}" for line in [*lines, f"descent compare {job_id} OTHER_JOB"])]))


# --- several jobs ------------------------------------------------------------------------------------------------------


def curves_of(client: "Client", job_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """A short curve of each job, by its id. Of a job that was deleted meanwhile, and those asked for with it, there is none."""
    from client.errors import ApiError

    found: dict[str, Mapping[str, Any]] = {}
    for start in range(0, len(job_ids), _MOST_COMPARED):
        try:
            comparison = client.compare(job_ids[start : start + _MOST_COMPARED], max_points=_SPARK_POINTS)
        except ApiError:
            continue
        found |= {each["job_id"]: each for each in comparison["curves"]}
    return found


_LISTED = (
    Column("id"), Column("status"), Column("optimizer"), Column("rate", most=24, least=10), Column("valid.", right=True),
    Column("loss", right=True, rank=1), Column("curve", rank=3), Column("age", right=True, rank=2),
)  # fmt: skip


def listing(jobs: "Sequence[JobData]", curves: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of `ls`. Accuracy is the best on the validation images so far."""
    return table(_LISTED, [_listed_cells(job, curves.get(job["id"])) for job in jobs])


def _listed_cells(job: "JobData", drawn: Mapping[str, Any] | None) -> list[str | Text]:
    best = max(drawn["epochs"]["valid_accuracy"], default=None) if drawn else None
    return [
        short(job["id"]),
        status(job["status"]),
        optimizer_of(job["spec"]["optimizer"]),
        rate_of(job["spec"]["learning_rate"]),
        percent(best),
        last_loss(job["latest"]),
        curve(drawn["loss"], _SPARK) if drawn else "",
        age(job["created_at"]),
    ]


_COMPARED = (
    Column("id"), Column("optimizer"), Column("rate", most=24, least=10), Column("seed", right=True, rank=4),
    Column("status", rank=3), Column("test", right=True), Column("loss", right=True),
    Column("to target", right=True, rank=2), Column("verdict"), Column("curve", rank=1),
)  # fmt: skip
_SWEPT = (
    Column("configuration"), Column("runs", right=True, rank=4), Column("test", right=True), Column("from", right=True, rank=2),
    Column("to", right=True, rank=2), Column("loss", right=True), Column("time to target", right=True, rank=3),
    Column("verdicts", rank=1),
)  # fmt: skip


def comparison(found: "Comparison") -> list[Any]:
    """The runs beside each other, best first; the picture of all curves where colours can tell them apart."""
    order = {job_id: place for place, job_id in enumerate(_best_first(found["table"]["rows"]))}
    runs = sorted(found["table"]["runs"], key=lambda run: order.get(run["job_id"], len(order)))
    curves = {each["job_id"]: each for each in found["curves"]}
    is_coloured = bool(output.out.is_terminal and output.out.color_system)
    styles = {
        run["job_id"]: plot.STYLES[place % len(plot.STYLES)] if is_coloured else "" for place, run in enumerate(runs)
    }
    made = table(
        _COMPARED,
        [
            [*_run_cells(run), Text(plot.sparkline(curves[run["job_id"]]["loss"], _SPARK), styles[run["job_id"]])]
            for run in runs
        ],
    )
    lines = [
        plot.Line(list(zip(each["x"], each["loss"], strict=True)), styles[job_id]) for job_id, each in curves.items()
    ]
    picture = plot.plot(lines, width=_plot_width(), height=_PLOT_ROWS, unit=found["x"]) if is_coloured else []
    noise = found["table"]["noise"]
    return [made, *([Text(), *picture] if picture else []), *([Text(noise["en"])] if noise else [])]


def _best_first(rows: "Sequence[GroupRow]") -> list[str]:
    return [job_id for row in rows for job_id in row["job_ids"]]


def _run_cells(run: "RunRow") -> list[Any]:
    return [
        short(run["job_id"]),
        run["optimizer"],
        rate_of(run["learning_rate"]),
        str(run["seed"]),
        status(run["status"]),
        percent(run["test_accuracy"]),
        number(run["final_loss"]),
        duration(run["seconds_to_target"]),
        verdict(run["verdict"]),
    ]


# --- sweeps and range tests --------------------------------------------------------------------------------------------


def sweep(found: "SweepData") -> list[Any]:
    """The table of a sweep, a configuration a row, best first; and whether the best two can be told apart."""
    results = found["table"]
    made = table(_SWEPT, [_group_cells(row) for row in results["rows"]])
    counts = ", ".join(f"{count} {name}" for name, count in found["counts"].items() if count)
    head = Text(f"{found['id']} {found['status']}: {counts}")
    best, noise = results["best"], results["noise"]
    told = [Text(f"best: {best['label']}, {best['test_accuracy']:.2%} ({best['job_id']})")] if best else []
    return [head, made, *told, *([Text(noise["en"])] if noise else [])]


def _group_cells(row: "GroupRow") -> list[str | Text]:
    accuracy, loss, seconds = row["test_accuracy"], row["final_loss"], row["seconds_to_target"]
    several = accuracy if accuracy and accuracy["n"] > 1 else None
    verdicts = [f"{count} {name}" if count > 1 else name for name, count in row["verdicts"].items()]
    return [
        row["label"],
        str(len(row["job_ids"])),
        percent(accuracy and accuracy["mean"]),
        percent(several and several["min"]),
        percent(several and several["max"]),
        number(loss and loss["mean"]),
        duration(seconds and seconds["mean"]),
        ", ".join(verdicts).replace("_", " "),
    ]


def range_test(found: "RangeTestData") -> list[Any]:
    """Its curve over the rate, the loss smoothed, and what it suggests."""
    curve, suggestion = found["curve"], found["suggestion"]
    lines = [
        plot.Line(list(zip(curve["rate"], curve["loss"], strict=True)), "dim"),
        plot.Line(list(zip(curve["rate"], curve["smoothed"], strict=True)), "cyan"),
    ]
    picture = plot.plot(lines, width=_plot_width(), height=_PLOT_ROWS, log_x=True, unit="rate")
    rates = [
        ("suggested rate", f"{suggestion['rate']:.2g}" if suggestion["rate"] else f"none ({suggestion['outcome']})"),
        ("steepest at", number(suggestion["steepest_rate"])),
        ("least at", number(suggestion["least_rate"])),
        ("blew up at", number(suggestion["blown_up_rate"])),
    ]
    return [*picture, output.pairs(rates), Text(suggestion["sentence"]["en"])]
