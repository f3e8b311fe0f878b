"""The commands that ask a server about jobs and models that are there."""

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from client import output, plot, report, watching
from client.connection import (
    complete_job,
    complete_model,
    complete_sweep,
    connected,
    find_job,
    find_jobs,
    find_sweep,
    is_sweep,
    tell_refusal,
)
from client.exits import Exit, usage
from client.options import AsJson, Server, one_of, optimizer_names, statuses, with_options
from client.output import Column

if TYPE_CHECKING:
    from client.answers import Predictions
    from client.client import Client

app = typer.Typer()

_SWEEPS = (Column("id"), Column("status"), Column("jobs", right=True), Column("ended", right=True),
           Column("age", right=True), Column("name", rank=1))  # fmt: skip
_PREDICTED = (Column("file", most=30), Column("shows"), Column("probability", right=True), Column("", rank=2),
              Column("or else", rank=1))  # fmt: skip
_PANEL = "Jobs on a server"
_MODELS = "Models"
_MOST_IMAGES, _MOST_BYTES = 256, 5_000_000  # of one request, before base64 makes a third more of it
_BAR = 20
_FORMATS = one_of("pdparams", "safetensors", "inference", "onnx")
_IN_ID = re.compile("(job_)?[0-9a-f]{4,32}")

JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="An id, its beginning or its end; or @last.", autocompletion=complete_job)
]
JobNames = Annotated[
    list[str],
    typer.Argument(metavar="JOB...", help="Ids, their beginnings or ends; or @last.", autocompletion=complete_job),
]


@app.command("ls", rich_help_panel=_PANEL)
@with_options
def ls(
    server: Server,
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed, ...", autocompletion=statuses)
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="Its name.", autocompletion=optimizer_names)] = None,
    tag: Annotated[str | None, typer.Option(help="KEY or KEY=VALUE.")] = None,
    sweep: Annotated[str | None, typer.Option(help="Jobs of this sweep.", autocompletion=complete_sweep)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="List sweeps instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first. --json: one a line."""
    tag = tag and tag.replace("=", ":", 1)  # as `submit` takes it
    with connected(server) as client:
        if sweeps:
            _list_sweeps(client, limit, as_json=as_json)
            return
        wanted = find_sweep(client, sweep).id if sweep else None
        jobs = [
            job.data for job in client.jobs.list(status=status, optimizer=optimizer, tag=tag, sweep=wanted, limit=limit)
        ]
        if as_json:
            for job in jobs:
                output.emit_json(job)
        elif jobs:
            output.show(report.listing(jobs, report.curves_of(client, [job["id"] for job in jobs])))
        else:
            output.tell("no jobs" if status or optimizer or tag or sweep else "no jobs yet; `descent submit` makes one")


def _list_sweeps(client: "Client", limit: int, *, as_json: bool) -> None:
    found = [sweep.data for sweep in client.sweeps.list(limit=limit)]
    if as_json:
        for data in found:
            output.emit_json(data)
        return
    rows: list[list[str | Text]] = [
        [
            output.short(data["id"]),
            output.status(data["status"]),
            str(data["progress"]["jobs"]),
            str(data["progress"]["ended"]),
            output.age(data["created_at"]),
            data["name"] or "",
        ]
        for data in found
    ]
    output.show(output.table(_SWEEPS, rows))


@app.command(rich_help_panel=_PANEL)
@with_options
def show(job: JobName, server: Server, as_json: AsJson = False) -> None:
    """Everything about one job, its curve too; or a sweep (sweep_...) and its table."""
    with connected(server) as client:
        if is_sweep(job):
            sweep = find_sweep(client, job).data
            output.emit_json(sweep) if as_json else output.show(*report.sweep(sweep))
            return
        found = find_job(client, job)
        if as_json:
            output.emit_json(found.data)
        elif is_range_test(found.data["spec"]):
            output.show(
                report.outcome(found.data, None, with_details=True),
                *report.range_test(client.rate_ranges.get(found.id).data),
            )
        else:
            verdict = report.verdict_on(client, found.id)["verdict"]
            points = found.loss(max_points=500).points
            output.show(report.outcome(found.data, verdict, with_details=True), *report.loss_plot(points))


def is_range_test(spec: Any) -> bool:
    rate = spec["learning_rate"]
    return isinstance(rate, dict) and rate.get("schedule") == "range_test"


@app.command(rich_help_panel=_PANEL)
@with_options
def watch(
    job: JobName,
    server: Server,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most, then exit code 6.")] = 86_400,
    as_json: Annotated[
        bool, typer.Option("--json", help="Every event as a line of JSON; the last is the job.")
    ] = False,
) -> None:
    """Follow a job, or a sweep (sweep_...), from its beginning to its end."""
    with connected(server) as client:
        if is_sweep(job):
            watching.sweep(find_sweep(client, job), timeout_s=timeout, as_json=as_json, events=True)
        else:
            watching.job(client, find_job(client, job), timeout_s=timeout, as_json=as_json, events=True)


@app.command(rich_help_panel=_PANEL)
@with_options
def compare(
    jobs: JobNames,
    server: Server,
    x: Annotated[str, typer.Option("--x", help="step, epoch or time.")] = "step",
    target: Annotated[float | None, typer.Option(help="A validation accuracy to reach.", show_default="0.97")] = None,
    as_json: AsJson = False,
) -> None:
    """Jobs beside each other, best first: accuracy, loss, time to a target, verdicts, curves."""
    with connected(server) as client:
        ids = list(dict.fromkeys(job.id for job in find_jobs(client, jobs)))
        found = client.compare(ids, x=x, target_accuracy=target, max_points=500)
        output.emit_json(found) if as_json else output.show(*report.comparison(found))


@app.command(rich_help_panel=_PANEL)
@with_options
def cancel(jobs: JobNames, server: Server, as_json: AsJson = False) -> None:
    """Cancel jobs, or the jobs of a sweep (sweep_...) that have not ended."""
    _each(server, jobs, "cancel", as_json=as_json)


@app.command(rich_help_panel=_PANEL)
@with_options
def pause(jobs: JobNames, server: Server, as_json: AsJson = False) -> None:
    """Stop jobs where they are and make room for the next; `resume` goes on."""
    _each(server, jobs, "pause", as_json=as_json)


@app.command(rich_help_panel=_PANEL)
@with_options
def resume(
    jobs: JobNames,
    server: Server,
    epochs: Annotated[int | None, typer.Option(help="Train one that has ended for so many more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with jobs that are paused, failed or cancelled; with --epochs also with those that have succeeded."""
    _each(server, jobs, "resume", as_json=as_json, **({"epochs": epochs} if epochs is not None else {}))


@app.command(rich_help_panel=_PANEL)
@with_options
def delete(jobs: JobNames, server: Server, as_json: AsJson = False) -> None:
    """Delete jobs that have ended, with their histories and models; or a sweep (sweep_...) with all of its jobs."""
    with connected(server) as client:
        for name in jobs:
            found = find_sweep(client, name) if is_sweep(name) else find_job(client, name)
            found.delete()
            output.emit_json({"id": found.id, "deleted": True}) if as_json else output.emit(f"{found.id} deleted")


def _each(server: Server, names: Sequence[str], action: str, *, as_json: bool, **options: Any) -> None:
    """Do something to jobs and say how each then stands."""
    with connected(server) as client:
        for name in names:
            if is_sweep(name) and action != "cancel":
                raise usage(f"{name} is a sweep, which cannot be {action}d as a whole", "JOB")
            found = find_sweep(client, name) if is_sweep(name) else find_job(client, name)
            data = getattr(found, action)(**options).data
            output.emit_json(data) if as_json else output.emit(f"{data['id']} {data['status']}")


# --- models ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=_MODELS)
@with_options
def download(
    job: JobName,
    server: Server,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="PATH", help="A file, a folder, or - for stdout; default the folder one is in."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="pdparams, safetensors, inference or onnx.", autocompletion=_FORMATS)
    ] = "pdparams",
    as_json: AsJson = False,
) -> None:
    """Download the trained network. It is verified against its digest, and its path is printed."""
    with connected(server) as client:
        found = find_job(client, job)
        if out == "-":
            output.emit_bytes(found.model(format=format))
            return
        try:
            path = found.download(out, format=format)
        except OSError as error:
            raise usage(f"{out or Path.cwd()} cannot be written: {error.strerror}", "--out") from None
    with path.open("rb") as file:
        facts = {
            "path": str(path),
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }
    if as_json:
        output.emit_json(facts)
    else:
        output.emit(str(path))
        output.tell(f"{facts['bytes']:,} bytes, sha256 {facts['sha256']}")


@app.command(rich_help_panel=_MODELS)
@with_options
def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="PNG or JPEG pictures; - is stdin.")],
    server: Server,
    model: Annotated[
        str, typer.Option(help="best, latest, an alias, or a job.", autocompletion=complete_model)
    ] = "best",
    top: Annotated[int, typer.Option(min=1, max=10, help="How many guesses to show of each.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Say what pictures show. --json: one object, a prediction a file."""
    pictures = [(name, _picture(name)) for name in files]
    with connected(server) as client:
        wanted = _model(client, model)
        answers = [_predictions(client, part, wanted, top) for part in _parts(pictures)]
    used = answers[0]["model"]
    found = list(zip(files, (each for answer in answers for each in answer["predictions"]), strict=True))
    if as_json:
        output.emit_json({"model": used, "predictions": [{"file": name, **each} for name, each in found]})
        return
    output.show(output.table(_PREDICTED, [_prediction_cells(name, each) for name, each in found]))
    accuracy = f", test accuracy {used['test_accuracy']:.2%}" if used["test_accuracy"] is not None else ""
    output.tell(f"by the model of {used['job_id']}{accuracy}")


def _model(client: "Client", name: str) -> str:
    """The name of a model as the server knows it: a job may be named by its beginning or end, if no alias is called so."""
    is_id = name == "@last" or (_IN_ID.fullmatch(name) and name not in client.models.aliases())
    return find_job(client, name).id if is_id else name


def _predictions(client: "Client", part: Sequence[tuple[str, bytes]], model: str, top: int) -> "Predictions":
    """The server's answer for some files. What is wrong with one of them, or with the model, is said by its name."""
    from client.errors import Invalid, NotFound

    try:
        return client.predict([content for _, content in part], model=model, top_k=top)
    except Invalid as error:
        tell_refusal(error, files=[name for name, _ in part])
        raise typer.Exit(Exit.USAGE) from None
    except NotFound as error:
        output.tell(f"descent: --model {model}: {error}", "red")
        raise typer.Exit(Exit.NOT_FOUND) from None


def _prediction_cells(name: str, found: Any) -> list[str]:
    rest = ", ".join(f"{other['label']} {other['probability']:.1%}" for other in found["top_k"][1:])
    return [name, found["label"], f"{found['confidence']:.1%}", plot.bar(found["confidence"], _BAR), rest]


def _picture(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    except OSError as error:
        raise usage(f"{name} cannot be read: {error.strerror}", "FILE") from None


def _parts(pictures: list[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """As many as fit into one request each."""
    part: list[tuple[str, bytes]] = []
    for each in pictures:
        size = sum(len(content) for _, content in part) + len(each[1])
        if part and (len(part) == _MOST_IMAGES or size > _MOST_BYTES):
            yield part
            part = []
        part.append(each)
    yield part
