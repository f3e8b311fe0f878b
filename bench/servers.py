"""Servers under test: processes of their own, what they take, and Descent's API over a private database."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from client.redis_server import RedisServer
from client.stack import free_port
from core.processes import Child
from core.settings import Settings

_START_LIMIT_S = 120
_STOP_LIMIT_S = 10


@dataclass(frozen=True)
class Usage:
    """What a server's processes take now. PSS shares a page among those that have it, RSS counts it for each."""

    cpu_s: float  # of those that live
    rss_mb: list[float]  # of each
    pss_mb: float  # of all


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def usage(self) -> Usage:
        cpu_s, rss_mb, pss_mb = 0.0, [], 0.0
        for pid in _tree(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes_kb = {line.split()[0]: int(line.split()[1]) for line in rollup}
                user, system = _stat(pid)[11:13]
                cpu_s += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
                rss_mb.append(sizes_kb["Rss:"] / 1024)
                pss_mb += sizes_kb["Pss:"] / 1024
        return Usage(cpu_s, rss_mb, pss_mb)


def _tree(root: int) -> list[int]:
    """A process and all that descend from it (Linux)."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(folder.name)] = int(_stat(int(folder.name))[1])
    found = [root]
    for pid in found:  # which grows
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` from the state on; the name before it may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@contextmanager
def serving(command: list[str], url: str, env: dict[str, str], *, ready: str) -> Iterator[Server]:
    """A server process, once it answers at `ready`, until the block ends; and none of its children after that."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        child = Child("server", command, log_file=Path(log.name), env=env)
        try:
            deadline = time.monotonic() + _START_LIMIT_S
            while not _answers(url + ready):
                if child.exit_code is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.1)
            yield Server(url, child.pid)
        finally:
            child.stop(_STOP_LIMIT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def descent(fill: Callable[[Settings], Coroutine[Any, Any, None]], **env: str) -> Iterator[Server]:
    """Our API over an embedded database that `fill` has filled; no worker. The database is not the server's child."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), port=free_port("127.0.0.1"))
        redis = RedisServer(settings)
        child = redis.start()
        try:
            asyncio.run(fill(settings))
            command = [sys.executable, "-m", "api.app"]
            env = {"DESCENT_HOME": home, "DESCENT_PORT": str(settings.port), **env}
            with serving(command, f"http://127.0.0.1:{settings.port}", env, ready="/healthz") as server:
                yield server
        finally:
            child.stop(20)
            redis.release()
