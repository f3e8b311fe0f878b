"""`python -m tests.chaos --seed 1 --minutes 30`: two long faults, then all of them at random, then the checks."""

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.arena import PATIENCE_S, TERMINAL, Arena, note
from tests.chaos.faults import inflict, kill_redis, planned, reset_connections
from tests.chaos.verdict import Verdict, train_undisturbed
from tests.conftest import ROOT

_BEGAN = time.monotonic()


def cut_the_connections_for_a_minute(arena: Arena) -> None:
    """F5: every 5 s. It costs no attempt."""
    began, first = time.monotonic(), len(arena.jobs)
    while time.monotonic() < began + 60:
        arena.keep_in_flight()
        time.sleep(5)
        inflict(arena, reset_connections, "connections cut every 5 s for a minute")
    for job in arena.jobs[first:]:
        job.must_be_undisturbed = True
    arena.wait_for(arena.jobs[first:], 300)


def kill_redis_twenty_times(arena: Arena) -> None:
    """F7: at random points. No accepted job and no step that was seen is lost."""
    for _ in range(20):
        arena.keep_in_flight()
        time.sleep(arena.rng.uniform(0.1, 4))
        inflict(arena, kill_redis)


def soak(arena: Arena, seed: int, until: float) -> None:
    reported = time.monotonic()
    for fault, pause_s in planned(seed):
        if time.monotonic() >= until:
            return
        arena.restart_what_gave_up()
        arena.keep_in_flight()
        inflict(arena, fault)
        time.sleep(pause_s)
        if time.monotonic() > reported + 30:
            reported = time.monotonic()
            ended = sum(job.status in TERMINAL for job in arena.jobs)
            left = max(0, until - reported)
            note(f"{sum(arena.done.values())} faults, {len(arena.jobs)} jobs, {ended} ended; {left:.0f} s to go")


def calm_down(arena: Arena) -> None:
    """The faults are over: everything that was accepted comes to its end."""
    for job in [job for job in arena.jobs if job.paused_until]:
        arena.resume(job)
    arena.wait_for(arena.jobs, PATIENCE_S)


def report(arena: Arena, verdict: Verdict, seed: int) -> None:
    typer.echo("| fault | times | jobs hit |\n|---|---|---|")
    for name, count in sorted(arena.done.items()):
        typer.echo(f"| {name.replace('_', ' ')} | {count} | {len(arena.hit[name])} |")
    typer.echo(f"\n| total | |\n|---|---|\n| seed | {seed} |\n| minutes | {(time.monotonic() - _BEGAN) / 60:.1f} |")
    rows = {"faults": sum(arena.done.values()), "accepted": len(arena.jobs)} | dict(verdict.totals)
    rows |= {"descent up gave up": arena.gave_up, "violations": len(arena.violations.found)}
    for name, number in rows.items():
        typer.echo(f"| {name} | {number} |")


def run(seed: int, until: float, folder: Path) -> tuple[Arena, Verdict]:
    """All parts, on a server in `folder`, which is gone afterwards."""
    cache = Path(os.environ.get("DESCENT_CACHE", ROOT / ".descent" / "cache")).absolute()
    with ExitStack() as exits:
        arena = Arena(folder, cache, seed, exits)
        note(f"{arena.server.url} in {folder}; each spec undisturbed")
        undisturbed = train_undisturbed(arena)
        note("connections cut every 5 s for a minute")
        cut_the_connections_for_a_minute(arena)
        note("kill -9 of Redis at 20 random points")
        kill_redis_twenty_times(arena)
        note("everything at random")
        soak(arena, seed, max(until, time.monotonic() + 60))
        note("the faults are over")
        calm_down(arena)
        verdict = Verdict(arena, undisturbed)
    for process in arena.left_behind():
        arena.violations.add(f"a process was left behind: {process}")
    return arena, verdict


def main(
    seed: Annotated[int, typer.Option(help="Fixes the faults and their order.")] = 1,
    minutes: Annotated[float, typer.Option(help="How long it takes, all in all; six at least.")] = 30,
) -> None:
    """Exit code 1 when a promise was broken; what it was is on stderr, and the server's folder is kept with its logs."""
    folder = Path(tempfile.mkdtemp(prefix="descent-chaos-"))
    arena, verdict = run(seed, _BEGAN + minutes * 60, folder)
    report(arena, verdict, seed)
    for violation, times in arena.violations.found.items():
        typer.echo(f"{times} x {violation}", err=True)
    if arena.violations.found:
        typer.echo(f"Logs: {arena.home / 'logs'}", err=True)
        raise typer.Exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
