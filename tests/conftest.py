"""What the tests share: real servers in temporary folders on free ports, so that two runs can stand side by side."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from client.client import Client
from client.redis_server import RedisServer
from core.errors import DatasetUnavailable
from core.jobs.work import WorkStore
from core.settings import Settings, available_cores
from core.training import datasets, runtime

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from core.training.fused.layer import Kernel
    from tests.staged import Api

# Test runs beside each other (pytest-xdist) share the cores: threads that wait for each other and find none take far longer.
RUNS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if RUNS > 1:
    os.environ.setdefault("DESCENT_THREADS", str(max(1, available_cores() // RUNS)))
runtime.prepare(Settings().threads_per_trainer)  # before any test imports Paddle

T = TypeVar("T")
DOOMED: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1000, "batch_size": 1}  # diverges within 0.1 s
ROOT = Path(__file__).parent.parent


def eventually(check: Callable[[], T | None], *, within_s: float = 20, what: str = "it") -> T:
    """Poll until `check` gives something true, and return that."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {within_s} s")


@pytest.fixture(scope="session")
def cache() -> Path:
    """The data sets' cache: the checkout's own, so that they are fetched once."""
    return Path(os.environ.get("DESCENT_CACHE", ROOT / ".descent" / "cache")).absolute()


@pytest.fixture(scope="session")
def mnist(cache: Path) -> datasets.Dataset:
    """The real MNIST, fetched when it is not there."""
    return datasets.load("mnist", cache=cache)


@pytest.fixture(scope="session")
def fashion(cache: Path) -> datasets.Dataset:
    """The real Fashion-MNIST, fetched when it is not there; where no source can be reached its tests are left out."""
    try:
        return datasets.load("fashion-mnist", cache=cache)
    except DatasetUnavailable as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")


@pytest.fixture(scope="session")
def kernel(cache: Path) -> "Kernel | None":
    """What a worker of these tests trains with: DESCENT_KERNEL=plain runs all of them on Paddle's own operators."""
    from core.training.fused import kernel as fused

    return fused.load(cache / "kernels", wanted=Settings().kernel == "fused")


def part_of(data: datasets.Dataset, *, valid: int = 500) -> datasets.Dataset:
    """The data set with fewer validation and test images, for tests in which only the training counts."""

    def first(split: datasets.Split, count: int) -> datasets.Split:
        return datasets.Split(split.images[:count], split.labels[:count])

    return datasets.Dataset(data.name, data.train, first(data.valid, valid), first(data.test, valid))


@contextmanager
def redis_running(home: Path) -> Iterator[Settings]:
    """Settings of a home whose embedded server runs, unless DESCENT_REDIS_URL names another: test_tls.py does so."""
    settings = Settings(home=home, lease_s=2, beat_s=0.3, scan_s=0.5, stop_s=3)
    if settings.redis_url:
        yield settings
        return
    server = RedisServer(settings)
    child = server.start()
    try:
        yield settings
    finally:
        child.stop(10)
        server.release()


@pytest.fixture(scope="session")
def redis_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One embedded server for all tests that share it."""
    with redis_running(tmp_path_factory.mktemp("home")) as settings:
        yield settings


WithStore = Callable[[Callable[[WorkStore], Coroutine[Any, Any, T]]], T]


@pytest.fixture
def with_store(redis_settings: Settings) -> WithStore[Any]:
    """Run a coroutine that wants a store, against the real server."""

    def run(use: Callable[[WorkStore], Coroutine[Any, Any, T]]) -> T:
        async def connected() -> T:
            async with WorkStore.connect(redis_settings.store_url) as store:
                return await use(store)

        return asyncio.run(connected())

    return run


class Server:
    """`descent up` as a user starts it: a process of its own, on a free port."""

    def __init__(self, process: subprocess.Popen[str], home: Path, url: str) -> None:
        self.process, self.home, self.url = process, home, url

    @property
    def pids(self) -> set[int]:
        """The process and everything below it."""
        return descendants(self.process.pid)

    def pid_of(self, command: str) -> int:
        """The one process below it whose command has these words, a compiler or the like passing by notwithstanding."""
        everyone = processes()
        (pid,) = (pid for pid in self.pids if command in everyone.get(pid, (0, ""))[1])
        return pid

    def interrupt(self, *, within_s: float = 30) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(within_s)


def processes() -> dict[int, tuple[int, str]]:
    """Every process that is alive: its parent and its command, from /proc (a bare machine has no `ps`)."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    command = (folder / "cmdline").read_text().replace("\0", " ")
                    found[int(folder.name)] = (int(parent), command)
    return found


def descendants(pid: int) -> set[int]:
    """A process and all that it started."""
    everyone = processes()
    family, size = {pid}, 0
    while len(family) > size:
        size = len(family)
        family |= {child for child, (parent, _) in everyone.items() if parent in family}
    return family


def is_alive(pid: int) -> bool:
    return pid in processes()


@contextmanager
def serving(
    home: Path, cache: Path, *, path: str | None = None, folder: str | Path = ROOT, **settings: str
) -> Iterator[Server]:
    """A server on `home`, ready; stopped afterwards whatever happened. `path` is the PATH it sees, `folder` where it runs."""
    kept = ("DESCENT_KERNEL", "DESCENT_KERNELS", "DESCENT_THREADS")
    env = {name: value for name, value in os.environ.items() if not name.startswith("DESCENT_") or name in kept}
    env |= {"DESCENT_HOME": str(home), "DESCENT_CACHE": str(cache), "DESCENT_PORT": "0"}
    env |= {f"DESCENT_{name.upper()}": value for name, value in settings.items()}
    env |= {"PATH": path} if path else {}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "client.cli", "up"], env=env, cwd=folder, stdout=subprocess.PIPE, text=True,
        preexec_fn=runtime.die_with_parent,  # a test run that is killed leaves nothing behind either
    )  # fmt: skip
    family: set[int] = set()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ready"):
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(lines)}")
        url = next(line for line in lines if "http" in line).split()[1]
        family = descendants(process.pid)
        yield Server(process, home, url)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            for pid in (pid for pid in family if is_alive(pid)):
                os.kill(pid, signal.SIGKILL)
            process.stdout.close() if process.stdout else None


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, cache: Path, mnist: datasets.Dataset) -> Iterator["Api"]:
    """An API of its own without a worker, and a job in every state."""
    from tests.staged import api_without_worker

    with api_without_worker(tmp_path_factory.mktemp("api"), cache) as api:
        yield api


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real browser. Without one the tests are left out, except where CI asks for all of them."""
    from tests import browser as browsers

    if browsers.chromium() is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(browsers.HOW)
    with browsers.browsing() as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path, mnist: datasets.Dataset) -> Iterator[Server]:
    """One server for all tests that only use it."""
    with serving(tmp_path_factory.mktemp("server"), cache) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def trained_job(server: Server) -> str:
    """The lesson's job with Adam, one epoch on all of MNIST, trained by the worker process of `server`."""
    with Client(server.url) as client:
        return client.jobs.submit(optimizer="adam", learning_rate=0.001, epochs=1).wait(600).id
