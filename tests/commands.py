"""The command `descent` against a server of the test's, and a worker whose part the test plays."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from client import cli
from core.jobs.job import JobError, Status
from core.jobs.work import WorkStore
from tests import terminal
from tests.conftest import ROOT
from tests.staged import Api, blank_weights, published, train

COMMAND = [sys.executable, "-P", "-m", "client.cli"]


def environment(url: str, **more: str) -> dict[str, str]:
    """What a command sees: this server, no settings of whoever runs the tests, and a fixed width."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("DESCENT_", "COLUMNS", "NO_COLOR"))
    }
    return env | {"DESCENT_URL": url} | more


@dataclass(frozen=True)
class Done:
    """How a command has ended."""

    returncode: int
    stdout: str
    stderr: str
    content: bytes  # of stdout


def descent(url: str, *words: str, stdin: str | bytes = b"", **env: str) -> Done:
    """A command in this process, as its text and exit code do not depend on that; what does is run in one of its own."""
    unset = dict.fromkeys((name for name in os.environ if name not in environment(url)), None)
    ran = CliRunner().invoke(cli.app, words, input=stdin, env={**unset, **environment(url, **env)})
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return Done(ran.exit_code, ran.stdout, ran.stderr, ran.stdout_bytes)


@contextmanager
def begun(url: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on while the test does something."""
    process = subprocess.Popen(
        [*COMMAND, *words], env=environment(url), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=terminal.as_typed,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def id_in(text: str, kind: str = "job") -> str:
    found = re.search(rf"{kind}_[0-9a-f]{{32}}", text)
    assert found, text
    return found[0]


def worked(api: Api, job_id: str, *, points: int = 10, as_: Status = Status.SUCCEEDED) -> None:
    """What a worker does with a queued job: ten points (the last not finite), an epoch, and the end."""

    async def work() -> None:
        async with WorkStore.connect(api.settings.store_url) as store:
            claim = await train(store, await store.get(job_id), points=points)
            result: dict[str, Any] = {"valid_accuracy": 0.5, "test_accuracy": 0.49, "final_loss": 0.1, "seconds": 7.0}
            files = published(api.settings, claim, blank_weights())
            if as_ is Status.SUCCEEDED:
                await store.finish(claim, as_, result=result, files=files)
            else:
                error = JobError(code="diverged", message="the loss blew up", step=9)
                await store.finish(claim, as_, error=error)

    asyncio.run(work())


def once(work: Callable[[str], None]) -> Callable[[str], bool]:
    """For a terminal's text: do something with the job's id when it is shown first. Never types Ctrl-C."""
    done: list[str] = []

    def look(text: str) -> bool:
        if not done and (found := re.search(r"job_[0-9a-f]{32}", text)):
            done.append(found[0])
            work(found[0])
        return False

    return look
