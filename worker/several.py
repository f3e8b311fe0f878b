"""Several workers on one machine, one for each slot: what starts, watches and ends them, and trains nothing itself."""

import logging
import sys
from contextlib import suppress

from core.processes import Child, Family, ignore_signals, leave_on_signals

log = logging.getLogger(__name__)


def supervise(workers: int, *, limit_s: float) -> None:
    """Run the workers of this machine's slots until SIGTERM or SIGINT; each then gives its job back and leaves.

    One that takes longer than `limit_s` is killed.
    Raises StackError when they end over and over.
    """
    leave_on_signals()

    def spawn(name: str) -> Child:
        # They share the machine, which they can only if each knows of the others.
        return Child(name, command(int(name.removeprefix("worker-"))), env={"DESCENT_WORKERS": str(workers)})

    children = Family(spawn)
    with suppress(KeyboardInterrupt):
        try:
            for number in range(1, workers + 1):
                children.start(f"worker-{number}")
            log.info("workers started", extra={"workers": workers})
            children.watch(log.warning)
        finally:
            ignore_signals()
            children.stop("worker", limit_s)


def command(slot: int) -> list[str]:
    """What runs the worker of one slot (from 1)."""
    return [sys.executable, "-P", "-m", "worker.app", str(slot)]  # -P: never a module of the working folder
