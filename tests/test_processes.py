"""Several API processes on one port: all serve, each scrape tells of all, one that dies is replaced, and none is left."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi.testclient import TestClient
from prometheus_client import Metric

from api.app import create_app
from api.protocol import Protocol
from client.client import Client
from core.errors import StackError
from core.processes import Child, Family
from core.settings import Settings
from core.training import runtime
from tests.conftest import ROOT, Server, eventually, is_alive, processes, serving
from tests.test_metrics import HERE, OPENMETRICS, families, openmetrics, run_promtool, value

CONNECTIONS = 32


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    """`descent up` with two API processes."""
    with serving(tmp_path_factory.mktemp("two"), cache, api_processes="2") as server:
        yield server


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def serving_pids(parent: int) -> set[int]:
    """The processes below this one that serve the API."""
    everyone = processes()
    below = {pid for pid, (of, command) in everyone.items() if of == parent and "api.processes" in command}
    return below.union(*(serving_pids(pid) for pid, (of, _) in everyone.items() if of == parent))


def listening(port: int) -> int:
    """How many sockets of this machine listen there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(address.endswith(f":{port:04X}") and state == "0A" for _, address, _, state, *_ in rows)


@contextmanager
def connections(port: int, count: int) -> Iterator[list[HTTPConnection]]:
    """Connections that are made all at once and kept alive, each of which has been answered."""
    with ExitStack() as all_of_them:
        made = [HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(count)]
        for connection in made:
            all_of_them.callback(connection.close)
            connection.connect()
        for connection in made:
            ask(connection)
        yield made


def ask(connection: HTTPConnection, path: str = "/healthz") -> None:
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, bool(answer.read())) == (200, True)


def scrape(server: Server) -> httpx2.Client:
    """Whichever process it reaches: the connection is a new one each time."""
    return httpx2.Client(base_url=server.url, headers={"Connection": "close"}, timeout=20)


def open_files(server: Server) -> dict[str, float]:
    with scrape(server) as http:
        return {each.labels["process"]: each.value for each in families(http)["process_open_fds"].samples}


def test_connections_are_spread_over_the_processes(two: Server) -> None:
    before = open_files(two)
    assert set(before) == {"1", "2"}
    with connections(port_of(two), CONNECTIONS):
        during = open_files(two)
    assert all(during[number] - before[number] > CONNECTIONS / 8 for number in before)


def test_a_scrape_counts_the_requests_of_all(two: Server) -> None:
    def counted(http: httpx2.Client) -> tuple[float, float]:
        series = {"method": "GET", "route": "/healthz"}
        timed = value(http, "descent_http_request_duration_seconds_count", **series)
        return value(http, "descent_http_requests_total", **series, status="2xx"), timed

    with scrape(two) as http:
        before = counted(http)
    with connections(port_of(two), CONNECTIONS) as made:
        for connection in made * 2:
            ask(connection)
    for _ in range(8):
        with scrape(two) as http:
            assert [now - then for now, then in zip(counted(http), before, strict=True)] == [3 * CONNECTIONS] * 2


def shape(family: Metric) -> tuple[str, str, str, set[tuple[str, ...]]]:
    labels = {tuple(sorted(sample.labels)) for sample in family.samples}
    return family.name, family.type, family.documentation, labels


def test_what_several_tell_has_the_form_of_what_one_tells(two: Server) -> None:
    settings = Settings(home=two.home, port=1)
    with scrape(two) as http, TestClient(create_app(settings), base_url=HERE) as alone:
        alone.get("/healthz")
        several, one = families(http), families(alone)
        ours = {name for name in one if not name.startswith(("process_", "python_gc"))}
        assert [shape(several[name]) for name in sorted(ours)] == [shape(one[name]) for name in sorted(ours)]
        of_a_process = {name for name in one if name.startswith("process_")}
        assert of_a_process
        assert set(several) == ours | of_a_process
        for name in of_a_process:
            assert shape(several[name])[:3] == shape(one[name])[:3]
            assert {sample.labels["process"] for sample in several[name].samples} == {"1", "2"}
        strict = {family.name for family in openmetrics(http.get("/metrics", headers=OPENMETRICS).text)}
        assert strict == {name.removesuffix("_info") if name.startswith("descent_") else name for name in several}


def test_promtool_finds_nothing_to_say_of_several(two: Server) -> None:
    with scrape(two) as http:
        run_promtool("check", "metrics", text=http.get("/metrics").text)


def kill(pid: int) -> None:
    """And wait until it takes no more connections."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid), what="its death")


class Asking(threading.Thread):
    """A client that asks over one connection, and over a new one when that was cut."""

    def __init__(self, port: int, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._done = port, done
        self.answered = self.cut = 0

    def run(self) -> None:
        while not self._done.is_set():
            connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
            try:
                while not self._done.is_set():
                    ask(connection)
                    self.answered += 1
            except (OSError, HTTPException):
                self.cut += 1
            finally:
                connection.close()


@contextmanager
def asking(server: Server, count: int) -> Iterator[list[Asking]]:
    """Clients that ask without end, each of which has been answered."""
    done = threading.Event()
    clients = [Asking(port_of(server), done) for _ in range(count)]
    try:
        for client in clients:
            client.start()
        eventually(lambda: all(client.answered for client in clients), what="answers to all")
        yield clients
    finally:
        done.set()
        for client in clients:
            client.join(20)


def test_one_that_is_killed_is_replaced_while_the_other_answers(two: Server) -> None:
    before = serving_pids(two.process.pid)
    assert len(before) == 2
    with asking(two, 12) as clients:
        counts = [requests(two)]
        kill(min(before))
        answered = [client.answered for client in clients]

        def others_are_answered() -> bool:
            counts.append(requests(two))
            return all(client.answered > then for client, then in zip(clients, answered, strict=True))

        eventually(others_are_answered, what="answers to all, by the other")

        def is_replaced() -> bool:
            counts.append(requests(two))
            return listening(port_of(two)) == 2

        eventually(is_replaced, what="another one")
        assert set(open_files(two)) == {"1", "2"}
        assert len(serving_pids(two.process.pid) - before) == 1
    cuts = [client.cut for client in clients]
    assert min(cuts) == 0 < max(cuts) <= 2  # who comes back at once may meet the dying one once more
    counts.append(requests(two))
    assert counts == sorted(counts)
    assert counts[-1] > sum(client.answered for client in clients)  # none that the killed one had counted is lost


def requests(server: Server) -> float:
    with scrape(server) as http:
        return value(http, "descent_http_requests_total")


def test_what_was_in_progress_with_a_process_that_is_killed_is_so_no_more(two: Server) -> None:
    def in_progress() -> float:
        with scrape(two) as http:
            return value(http, "descent_http_requests_in_progress") - 1

    eventually(lambda: listening(port_of(two)) == 2, what="two processes")
    with Client(two.url) as client:
        job_id = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1000).id
        client.jobs.get(job_id).pause()
        eventually(lambda: client.jobs.get(job_id).status == "paused", what="a job of which nothing is to be told")
    eventually(lambda: in_progress() == 0, what="calm")
    stream = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(two))))
            held.sendall(stream.encode())
        eventually(lambda: in_progress() == CONNECTIONS, what="all of them")
        kill(max(serving_pids(two.process.pid)))
        eventually(lambda: 0 < in_progress() < CONNECTIONS, what="those of the other")


# --- the API alone, as in a container -------------------------------------------------------------------------------


class Alone:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def port(self) -> int:
        """The free one that it took."""
        said = eventually(lambda: [line["port"] for line in self.lines() if line["event"] == "listening"])
        return int(str(said[0]))

    def await_all(self) -> set[int]:
        """Wait until all serve."""
        eventually(lambda: listening(self.port) == 2, what="both processes")
        return eventually(
            lambda: found if len(found := serving_pids(self.process.pid)) == 2 else None, what="no other child"
        )

    def folder_of(self, pids: set[int]) -> Path:
        """What they share their numbers in."""
        (folder,) = {processes()[pid][1].split()[-1] for pid in pids}
        return Path(folder)


@contextmanager
def api_alone(folder: Path, **settings: str) -> Iterator[Alone]:
    """`python -m api.app` with two processes. It may have ended: who wants it waits for it."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("DESCENT_")}
    env |= {"DESCENT_HOME": str(folder), "DESCENT_REDIS_URL": "unix:///nowhere/redis.sock"}
    env |= {"DESCENT_PORT": "0", "DESCENT_API_PROCESSES": "2"}
    env |= {f"DESCENT_{name.upper()}": text for name, text in settings.items()}
    log = folder / "api.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "api.app"], env=env, cwd=ROOT, stderr=file, preexec_fn=runtime.die_with_parent
        )
    try:
        yield Alone(process, log)
    finally:
        process.terminate()
        process.wait(20)


def test_sigterm_leaves_nothing_behind_though_clients_stay(tmp_path: Path) -> None:
    with api_alone(tmp_path) as api:
        pids = api.await_all()
        assert len(pids) == 2
        folder = api.folder_of(pids)
        assert folder.is_dir()
        with connections(api.port, 6):
            api.process.terminate()
            assert api.process.wait(20) == 0
        assert not any(is_alive(pid) for pid in pids)
        assert not folder.exists()


def test_a_taken_port_is_refused_by_several_as_by_one(two: Server, tmp_path: Path) -> None:
    for processes_wanted in ("1", "2"):
        with api_alone(tmp_path, port=str(port_of(two)), api_processes=processes_wanted) as second:
            assert second.process.wait(20) != 0
            assert "in use" in second.log.read_text()
    with connections(port_of(two), 4):
        pass


def test_a_killed_parent_takes_its_api_processes_with_it(tmp_path: Path) -> None:
    with api_alone(tmp_path) as api:
        pids = api.await_all()
        folder = api.folder_of(pids)
        os.kill(api.process.pid, signal.SIGKILL)
        eventually(lambda: not any(is_alive(pid) for pid in pids), what="the end of all")
        assert not folder.exists()


def test_what_ends_over_and_over_is_given_up() -> None:
    children = Family(lambda name: Child(name, [sys.executable, "-S", "-c", "raise SystemExit(7)"]))
    children.start("bad")
    said: list[str] = []
    with pytest.raises(StackError, match="bad keeps ending"):
        children.watch(said.append)
    assert said == ["bad ended with 7; starting it again"] * 6


def test_each_may_end_now_and_then(tmp_path: Path) -> None:
    """All of them once, as when memory runs out for a moment: no more than the limit of one, and that is each one's own."""
    once = "import pathlib, sys, time; path = pathlib.Path(sys.argv[1]); path.exists() and time.sleep(60); path.touch()"
    children = Family(lambda name: Child(name, [sys.executable, "-S", "-c", once, str(tmp_path / name)]))
    for number in range(8):
        children.start(f"api-{number}")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 8:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            children.watch(say)
    finally:
        children.stop("api", 5)


def test_answers_do_not_wait_for_more_to_send() -> None:
    """Where the listening socket does not know its protocol, as one from another process, asyncio would let them."""
    no_protocol = 0

    async def is_set() -> list[int]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, no_protocol) as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(create_app(Settings()), http=Protocol, lifespan="off"))
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup(sockets=[listening])
            _, writer = await asyncio.open_connection(*listening.getsockname())
            while not server.server_state.connections:
                await asyncio.sleep(0)
            accepted = [each.transport.get_extra_info("socket") for each in server.server_state.connections]
            found = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in accepted]
            writer.close()
            await server.shutdown(sockets=[listening])
            return found

    assert asyncio.run(is_set()) == [1]
