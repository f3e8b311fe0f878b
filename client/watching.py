"""Waiting for a job or a sweep: what is shown meanwhile, and how the command ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client import output, report
from client.exits import Exit

if TYPE_CHECKING:
    from client.answers import SweepData
    from client.client import Client, Job, RangeTest, Sweep

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


@contextmanager
def may_be_made(kind: str, look: str) -> Iterator[None]:
    """Ctrl-C before the server has answered: nobody knows whether it is made, and that is said."""
    try:
        yield
    except KeyboardInterrupt:
        output.tell(f"\nthe server has not answered: whether it has the {kind} is not known. Look with: {look}")
        raise typer.Exit(Exit.INTERRUPTED) from None


def job(client: "Client", watched: "Job", *, timeout_s: float, as_json: bool, events: bool = False) -> None:
    """Watch a job to its end and say what came of it. With `as_json` that is the job; with `events` before it all events.

    Ends the command where the job has not succeeded.
    """
    from client import live

    if missing := report.waits_for(watched.data):
        output.tell(missing, "yellow")
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


def range_test(test: "RangeTest", *, timeout_s: float, as_json: bool) -> None:
    """The same for a range test: its curve over the rate, and what that suggests."""
    from client import live

    run = test.job()
    with may_leave(test.id):
        live.follow(run, timeout_s=timeout_s, quiet=as_json, keep=False)
    data = test.refresh().data
    if as_json:
        output.emit_json(data)
    else:
        output.show(*report.range_test(data))
        report.next_commands(run.data)
    if run.status != "succeeded":
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
    """Look at the sweep again and again until it has ended. Raises WaitTimeout, and Unreachable or Busy where the server stays
    away for a minute: it may be starting anew."""
    from client.errors import Busy, Unreachable, WaitTimeout
    from client.wire import PATIENCE_S

    heard_at = time.monotonic()
    until = heard_at + timeout_s
    with _presenting(as_json=as_json, events=events) as present:
        while True:
            try:
                data = watched.refresh().data
            except (Unreachable, Busy):
                if time.monotonic() - heard_at > PATIENCE_S:
                    raise
                data = watched.data
            else:
                heard_at = time.monotonic()
                present(data)
            if data["terminal"]:
                return
            if time.monotonic() > until:
                raise WaitTimeout(f"{data['id']} did not end within {timeout_s:g} s; it goes on")
            time.sleep(min(_LOOK_EVERY_S, max(0.0, until - time.monotonic())))


@contextmanager
def _presenting(*, as_json: bool, events: bool) -> Iterator[Callable[["SweepData"], None]]:
    """A bar that moves on a terminal; elsewhere each change is a line."""
    if as_json or not output.err.is_terminal or output.err.is_dumb_terminal:
        yield _changes(_as_event if as_json and events else _in_words if not as_json else lambda _: None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs  {task.fields[best]}"),
    )
    with Progress(*columns, console=output.err) as progress:
        task = progress.add_task("sweep", best="")

        def move(data: "SweepData") -> None:
            done = data["progress"]
            progress.update(task, total=done["jobs"], completed=done["ended"], best=_best(data))

        yield move


def _changes(say: Callable[["SweepData"], None]) -> Callable[["SweepData"], None]:
    """Say something only where the numbers of jobs in each status have changed."""
    said: dict[str, int] = {}

    def present(data: "SweepData") -> None:
        nonlocal said
        if data["counts"] != said:
            said = data["counts"]
            say(data)

    return present


def _as_event(data: "SweepData") -> None:
    output.emit_json({"event": "progress", "sweep_id": data["id"], "counts": data["counts"], **data["progress"]})


def _in_words(data: "SweepData") -> None:
    counts = [f"{count} {name}" for name, count in data["counts"].items() if count]
    output.tell(", ".join([*counts, _best(data)]).removesuffix(", "))


def _best(data: "SweepData") -> str:
    best = data["table"]["best"]
    return f"best {best['label']} {best['test_accuracy']:.2%}" if best else ""
