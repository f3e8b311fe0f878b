"""Waiting for a job or a sweep: what is shown meanwhile, and how the command ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client import output, report
from client.exits import Exit

if TYPE_CHECKING:
    from client.client import Client, Job, Sweep

_LOOK_EVERY_S = 1.0


@contextmanager
def may_leave(what: str) -> Iterator[None]:
    """Ctrl-C, or the end of the time to wait, ends the watching and not what is watched, and that is said."""
    from client.errors import WaitTimeout

    try:
        yield
    except KeyboardInterrupt:
        output.tell(f"\n{what} goes on. Come back with: descent watch {what}\nEnd it with: descent cancel {what}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except WaitTimeout as error:
        output.tell(f"descent: {error}. Come back with: descent watch {what}", "yellow")
        raise typer.Exit(Exit.TIMED_OUT) from None


def job(client: "Client", watched: "Job", *, timeout_s: float, as_json: bool, events: bool = False) -> None:
    """Watch a job to its end and say what came of it. With `as_json` that is the job; with `events` before it all events.

    Ends the command where the job has not succeeded.
    """
    from client import live

    with may_leave(watched.id):
        live.follow(watched, timeout_s=timeout_s, as_json=as_json and events, quiet=as_json and not events)
    data = watched.data
    if as_json:
        output.emit_json({"event": "end", "job": data} if events else data)
    else:
        output.show(report.outcome(data, report.verdict_on(client, data["id"])["verdict"]))
        report.next_commands(data)
    if data["status"] != "succeeded":
        raise typer.Exit(Exit.FAILED)


def sweep(watched: "Sweep", *, timeout_s: float, as_json: bool, events: bool = False) -> None:
    """The same for a sweep; it has failed when none of its jobs has succeeded."""
    with may_leave(watched.id):
        _follow(watched, timeout_s=timeout_s, as_json=as_json, events=events)
    if as_json:
        output.emit_json({"event": "end", "sweep": watched.data} if events else watched.data)
    else:
        output.show(*report.sweep(watched.data))
    if not watched.data["counts"].get("succeeded"):
        raise typer.Exit(Exit.FAILED)


def _follow(watched: "Sweep", *, timeout_s: float, as_json: bool, events: bool) -> None:
    """Look at the sweep again and again; each change is a line, or moves a bar on a terminal. Raises WaitTimeout."""
    from client.errors import WaitTimeout

    until = time.monotonic() + timeout_s
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("jobs  {task.fields[best]}"))
    is_animated = not as_json and output.err.is_terminal and not output.err.is_dumb_terminal
    progress = Progress(*columns, console=output.err)
    said = None
    with progress if is_animated else nullcontext():
        task = progress.add_task("sweep", total=watched.data["progress"]["jobs"], best="")
        while True:
            data = watched.refresh().data
            counts = {name: count for name, count in data["counts"].items() if count}
            best = data["table"]["best"]
            told = f"best {best['label']} {best['test_accuracy']:.2%}" if best else ""
            progress.update(task, completed=data["progress"]["ended"], best=told)
            if said != counts and events and as_json:
                output.emit_json({"event": "progress", "sweep_id": data["id"], "counts": counts, **data["progress"]})
            elif said != counts and not is_animated and not as_json:
                output.tell(", ".join([*(f"{count} {name}" for name, count in counts.items()), *([told] if told else [])]))
            said = counts
            if data["terminal"]:
                return
            if time.monotonic() > until:
                raise WaitTimeout(f"{data['id']} did not end within {timeout_s:g} s; it goes on")
            time.sleep(min(_LOOK_EVERY_S, max(0.0, until - time.monotonic())))
