"""Redis over TLS: a real server that speaks nothing else, certificates made here, and users with the rights we document."""

import asyncio
import gc
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from client.client import Client, Job
from client.stack import free_port
from core.errors import StackError, Unavailable
from core.jobs import broker
from core.jobs.access import calls_of, refuse_without_access, refused
from core.jobs.database import connect, what_is_wrong
from core.jobs.job import Status
from core.jobs.keys import KeyStore
from core.jobs.store import JobStore
from core.jobs.work import WorkStore
from core.processes import Child
from core.settings import Settings, read_settings
from core.spec import JobSpec
from core.training.datasets import Dataset
from tests.conftest import ROOT, eventually, processes
from tests.proxy import Proxy
from tests.tls_redis import EXPIRED, HOW, PASSWORDS, Authority, TlsRedis, server, tls_redis

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")

SPEC: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "batch_size": 5000}
QUICK = {"lease_s": "2", "beat_s": "0.3", "scan_s": "0.5", "stop_s": "5", "log_level": "debug", "threads": "1"}
OF_CLIENTS = {
    "submit", "sweep", "cancel", "pause", "resume", "extend", "delete", "cancel_sweep", "delete_sweep", "name", "unname",
    "workers", "job", "named", "told", "loss", "standing", "page",
}  # fmt: skip
OF_THE_HOUSE = {"filed", "filed_sweep", "restore_sweep", "standing", "name", "unname", "told"}  # not in test_store.py
OF_WORKERS = {
    "claim", "begin", "beat", "append", "epoch", "finish", "stop", "retry", "filed", "filed_sweep", "restore",
    "restore_sweep", "ring", "turn", "overdue", "announce", "workers", "loss",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_server() -> None:
    if server() is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(HOW)


@pytest.fixture(autouse=True)
def _transports_end_here() -> Iterator[None]:
    """A TLS transport whose peer has not said goodbye when its loop ends complains when it is collected: in its own test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    """A server for all tests that only try what it allows."""
    with tls_redis(tmp_path_factory.mktemp("tls") / "redis") as running:
        yield running


def settings_of(redis: TlsRedis, user: str, **more: object) -> Settings:
    given = {name.removeprefix("DESCENT_").lower(): value for name, value in redis.variables(user, **more).items()}
    return read_settings(**given)


# --- an API and a worker, each as its own user ---------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """An API and a worker on one home and one Redis."""

    url: str
    home: Path
    redis: TlsRedis

    def descent(self, *words: str, user: str) -> subprocess.CompletedProcess[str]:
        return descent(*words, **self.redis.variables(user), DESCENT_HOME=str(self.home))


def descent(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator types it."""
    command = [sys.executable, "-P", "-m", "client.cli", *words]
    return subprocess.run(command, env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, cache: Path, mnist: Dataset) -> Iterator[House]:
    """Whatever is done in it, neither process ever asks for what its user may not do."""
    assert len(mnist.test) == 10_000
    home = tmp_path_factory.mktemp("house")
    port = free_port("127.0.0.1")
    told = {"home": str(home), "cache": str(cache), "port": str(port), **QUICK}
    env = {f"DESCENT_{name.upper()}": value for name, value in told.items()}
    with tls_redis(home / "server") as redis:
        children = [
            Child(
                kind, [sys.executable, "-P", "-m", f"{kind}.app"], log_file=home / f"{kind}.log",
                env=env | redis.variables(f"descent-{kind}"),
            )
            for kind in ("api", "worker")
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: is_ready(url), within_s=60, what="API and worker")
            yield House(url, home, redis)
        finally:
            for child in reversed(children):
                child.stop(30)
        with redis.admin() as admin:
            assert admin.acl_log() == []


def is_ready(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    return False


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[Client]:
    with Client(house.url) as client:
        yield client


def await_status(job: Job, wanted: str) -> None:
    eventually(lambda: job.refresh().status == wanted, within_s=240, what=wanted)


@pytest.fixture(scope="module")
def trained(client: Client) -> Job:
    """A job that the worker has trained."""
    return client.jobs.submit(**SPEC).wait(240)


def test_a_job_is_trained_from_the_post_to_the_prediction(client: Client, trained: Job) -> None:
    assert [point["step"] for point in trained.loss()] == [0, 9]
    client.models.name("over-tls", trained)
    (answer,) = client.predict([[0.0] * 784], model="over-tls")["predictions"]
    assert answer["digit"] in range(10)
    client.models.unname("over-tls")


def test_a_job_is_paused_resumed_and_cancelled(client: Client) -> None:
    job = client.jobs.submit(**SPEC | {"epochs": 50})
    await_status(job, "running")
    job.pause()
    await_status(job, "paused")
    job.resume()
    await_status(job, "running")
    job.cancel()
    await_status(job, "cancelled")


def test_a_sweep_stops_its_worse_half(house: House) -> None:
    sweep = {
        "optimizers": ["adam"], "learning_rates": [0.001, 0.0001], "epochs": 2, "batch_size": 5000, "max_concurrent": 1,
        "early_stopping": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
    }  # fmt: skip
    with httpx2.Client(base_url=house.url, timeout=10) as http:
        made = http.post("/sweeps", json=sweep)
        assert made.status_code == 202, made.text
        path = f"/sweeps/{made.json()['id']}"
        eventually(lambda: http.get(path).json()["terminal"], within_s=240, what="it")


def test_keys_are_made_listed_and_revoked(house: House) -> None:
    made = house.descent("keys", "create", "olga", user="descent-api")
    assert made.returncode == 0, made.stderr
    key_id = made.stdout.split("_")[1]
    (listed,) = house.descent("keys", "list", "--json", user="descent-api").stdout.splitlines()
    assert json.loads(listed)["id"] == key_id
    assert house.descent("keys", "revoke", key_id, user="descent-api").returncode == 0


def test_a_lost_database_is_filled_again_by_the_workers_user(house: House, trained: Job) -> None:
    before = trained.refresh().data["result"]
    with house.redis.admin() as admin:
        eventually(lambda: not admin.smembers("descent:unfiled"), what="all files")
        admin.flushall()
    done = house.descent("reindex", user="descent-worker")
    assert done.returncode == 0, done.stderr
    assert f"{trained.id} restored" in done.stdout
    assert trained.refresh().data["result"] == before
    assert [point["step"] for point in trained.loss()] == [0, 9]
    trained.delete()


def test_the_passwords_are_told_nowhere(house: House, client: Client) -> None:
    client.jobs.submit(**SPEC).cancel()
    said = [house.home / "api.log", house.home / "worker.log"]
    told = "".join(path.read_text() for path in said) + "".join(command for _, command in processes().values())
    told += "".join(httpx2.get(f"{house.url}{path}").text for path in ("/readyz", "/metrics", "/version"))
    assert "worker" in told
    for password in PASSWORDS.values():
        for form in (password, quote(password), quote(password, safe="")):
            assert len(form) < 10 or form not in told


# --- what each user may do -----------------------------------------------------------------------------------------------


@contextmanager
def connected_as(redis: TlsRedis, user: str) -> Iterator[Redis]:
    with Redis.from_url(settings_of(redis, user).store_url, decode_responses=True) as connection:
        yield connection


ANY_USER = ("descent-api", "descent-worker", "descent")
NOBODYS = (
    "FLUSHALL", "FLUSHDB", "CONFIG GET dir", "KEYS *", "SCAN 0", "ACL LIST", "CLIENT LIST", "CLIENT KILL ID 1", "MONITOR",
    "SHUTDOWN NOSAVE", "SAVE", "REPLICAOF NO ONE", "SUBSCRIBE any", "PUBLISH any it", "FUNCTION LIST",
    "GET of-another-program", "SET of-another-program it", "LPUSH celery it",
)  # fmt: skip
OF_OTHERS = {
    "descent-api": (
        "ZADD descent:running 1 job",
        "BRPOP descent.train 1",
        "HSET descent:workers:info w {}",
        "HGETALL unacked",
    ),
    "descent-worker": (
        "HGETALL descent:keys",
        "HSET descent:keys id {}",
        "DEL descent:keys",
        "HMGET descent:idempotency:a id",
    ),
}


@pytest.mark.parametrize(
    ("user", "words"),
    [(user, words) for user in ANY_USER for words in NOBODYS]
    + [(user, words) for user, several in OF_OTHERS.items() for words in several],
)
def test_what_a_user_needs_not_is_refused(tls: TlsRedis, user: str, words: str) -> None:
    with connected_as(tls, user) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*words.split())  # type: ignore[no-untyped-call]


def test_nobody_comes_in_without_a_name(tls: TlsRedis) -> None:
    nobody = Redis(port=tls.port, ssl=True, ssl_ca_certs=str(tls.authority.file))
    with nobody as redis, pytest.raises(AuthenticationError):
        redis.ping()


def test_the_api_cannot_claim_a_job(tls: TlsRedis) -> None:
    async def claim() -> None:
        async with WorkStore.connect(settings_of(tls, "descent-api").store_url) as store:
            job = await store.submit(JobSpec.model_validate(SPEC))
            with pytest.raises(Unavailable) as refused:
                await store.claim(job.id, worker="w", lease_s=30)
            assert "rights" in (what_is_wrong(refused.value) or "")
            assert await store.status(job.id) is Status.QUEUED
            await store.cancel(job.id)

    asyncio.run(claim())


def test_a_worker_cannot_look_keys_up(tls: TlsRedis) -> None:
    async def look() -> None:
        async with connect(settings_of(tls, "descent-worker").store_url) as database:
            with pytest.raises(Unavailable, match="NoPermission"):
                await KeyStore(database).all()

    asyncio.run(look())


class Listener:
    """What a server is told, by anybody, while this listens: the move, and the calls that it makes."""

    def __init__(self, redis: Redis) -> None:
        self.calls: dict[str, set[tuple[str, ...]]] = {}
        self._monitor = redis.monitor()  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Listener":
        self._monitor.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)  # it ends with the word that says so
        self._monitor.__exit__(None, None, None)

    def _listen(self) -> None:
        move = ""
        for said in self._monitor.listen():
            verb, *words = said["command"].split(" ")
            if verb == "ECHO" and words == ["enough"]:
                return
            if said["client_type"] == "lua":
                call = (verb, *(re.sub("[0-9a-f]{32}", "0", word) for word in words[:2]))  # ids may be any
                self.calls.setdefault(move, set()).add(call)
            elif verb == "EVALSHA":
                move = words[2] if len(words) > 2 else ""


def test_whatever_a_move_does_its_caller_may_do(tls: TlsRedis) -> None:
    """The store's own tests, over TLS; every call that a move made in them is then asked about."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DESCENT_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_store.py"]
    command += ["-k", "not meet_are_met"]  # thousands of jobs
    with tls.admin() as admin, Listener(admin) as heard:
        env |= tls.variables("admin", url=f"rediss://admin@localhost:{tls.port}/5")  # others look at what is in 0
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
        with connected_as(tls, "admin") as other:
            other.echo("enough")
    assert done.returncode == 0, done.stdout[-3000:]
    for user, moves in (
        ("descent-api", OF_CLIENTS),
        ("descent-worker", OF_WORKERS),
        ("descent", OF_CLIENTS | OF_WORKERS),
    ):
        made = sorted(
            {call for move in moves for call in heard.calls.get(move, ()) if "descent:test:clock" not in call}
        )
        assert len(made) > 50
        assert asyncio.run(refused(settings_of(tls, user).store_url, [list(call) for call in made])) == []
    assert set(heard.calls) >= (OF_CLIENTS | OF_WORKERS) - OF_THE_HOUSE


def test_the_rights_name_every_command_of_the_scripts() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "core" / "jobs").glob("*.lua"))
    used = {command.lower() for command in re.findall(r"redis\.call\('(\w+)'", sources)}
    granted = {user: {call[0] for call in calls_of(user)} for user in ANY_USER}
    assert used <= granted["descent"]
    assert granted["descent"] == granted["descent-api"] | granted["descent-worker"]


def test_the_queues_are_covered_by_the_rights(tls: TlsRedis) -> None:
    """Kombu keeps a list for each priority, and there are queues for kinds of devices."""
    names = [*broker.queues_of(0), f"{broker.CPU_QUEUE}\x06\x163"]
    for user in ANY_USER:
        assert asyncio.run(refused(settings_of(tls, user).store_url, [["lpush", name, "it"] for name in names])) == []


# --- who is spoken to ----------------------------------------------------------------------------------------------------


def test_a_burst_of_connections_reads_the_certificates_once(tls: TlsRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], ssl.create_default_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(1)
        return make(*args, **options)

    monkeypatch.setattr(ssl, "create_default_context", counted)

    async def burst() -> list[int]:
        async with JobStore.connect(settings_of(tls, "descent-api").store_url) as store:
            return await asyncio.gather(*(store.count_queued() for _ in range(50)))

    assert len(asyncio.run(burst())) == 50
    assert len(made) == 1


def messages(settings: Settings) -> int:
    """How many lie in a queue, asked over kombu's own connection."""
    with broker.make_celery(settings.store_url).connection_for_read(connect_timeout=2) as connection:
        return int(connection.default_channel.client.llen(broker.CPU_QUEUE))


def ask_both(settings: Settings) -> tuple[int, int]:
    """Something of the store and something of the broker."""

    async def ask() -> int:
        async with JobStore.connect(settings.store_url) as store:
            return await store.count_queued()

    return asyncio.run(ask()), messages(settings)


def is_refused_by_both(settings: Settings) -> bool:
    async def ask() -> None:
        async with JobStore.connect(settings.store_url) as store:
            await store.count_queued()

    with pytest.raises(Unavailable):
        asyncio.run(ask())
    with pytest.raises((OperationalError, OSError, RedisError)):
        messages(settings)
    return True


def refusal(settings: Settings, user: str = "descent-api") -> str:
    with pytest.raises(StackError) as refused:
        refuse_without_access(settings, user)
    assert settings.redis_url is not None
    assert not any(password in str(refused.value) for password in PASSWORDS.values() if len(password) > 10)
    return str(refused.value)


def test_store_and_broker_speak_to_a_server_with_a_good_certificate(tls: TlsRedis) -> None:
    assert ask_both(settings_of(tls, "descent-api")) == (0, 0)
    refuse_without_access(settings_of(tls, "descent-api"), "descent-api")


def test_a_password_in_the_url_is_percent_encoded(tls: TlsRedis) -> None:
    secret = quote(PASSWORDS["descent-worker"], safe="")
    url = f"rediss://descent-worker:{secret}@localhost:{tls.port}/0"
    assert ask_both(settings_of(tls, "descent-worker", url=url, password_file="")) == (0, 0)


def test_an_authority_that_is_not_ours_is_refused(tls: TlsRedis, tmp_path: Path) -> None:
    other = settings_of(tls, "descent-api", ca=Authority(tmp_path / "other").file)
    assert is_refused_by_both(other)
    assert "not signed by an authority trusted here" in refusal(other)
    assert "DESCENT_REDIS_CA" in refusal(settings_of(tls, "descent-api", ca=""))


@pytest.mark.parametrize(
    ("certificate", "said"),
    [({"name": "redis.example.org"}, "for another name than the host"), ({"until": EXPIRED}, "has expired")],
)
def test_a_certificate_that_does_not_fit_is_refused(certificate: dict[str, Any], said: str, tmp_path: Path) -> None:
    with tls_redis(tmp_path / "redis", **certificate) as redis:
        settings = settings_of(redis, "descent-api")
        assert is_refused_by_both(settings)
        assert said in refusal(settings)


def test_a_server_that_asks_for_our_certificate_gets_it(tmp_path: Path) -> None:
    with tls_redis(tmp_path / "redis", asks_for_ours=True) as redis:
        ours = redis.authority.issue("client.example.org")
        assert ask_both(settings_of(redis, "descent-api", cert=ours)) == (0, 0)
        refuse_without_access(settings_of(redis, "descent-api", cert=ours), "descent-api")
        without = settings_of(redis, "descent-api")
        assert is_refused_by_both(without)
        assert "DESCENT_REDIS_CERT" in refusal(without)
        foreign = Authority(tmp_path / "other").issue("client.example.org")
        assert "DESCENT_REDIS_CERT" in refusal(settings_of(redis, "descent-api", cert=foreign))
        with Proxy(("127.0.0.1", redis.port)) as proxy:
            proxy.cut_after(600, times=5)  # the refusal itself can be lost: the server closes what it has not read
            url = f"rediss://descent-api@localhost:{proxy.port}/0"
            assert "DESCENT_REDIS_CERT" in refusal(settings_of(redis, "descent-api", url=url))
            assert proxy.cuts == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "rediss://descent-worker@localhost:{port}/0"}, "knows no such user with this password"),
        ({"url": "rediss://nobody@localhost:{port}/0"}, "knows no such user with this password"),
        ({"url": "rediss://localhost:{port}/0", "password_file": ""}, "asks who we are"),
        ({"url": "rediss://descent-api@localhost:{port}/99"}, "no database of the number"),
    ],
)
def test_a_user_that_is_not_known_is_told_so(tls: TlsRedis, change: dict[str, str], said: str) -> None:
    change = {name: value.format(port=tls.port) for name, value in change.items()}
    assert said in refusal(settings_of(tls, "descent-api", **change))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("", "lacks rights"),
        ("~* +@all -evalsha", "evalsha"),
        ("~* +@all -zadd", "zadd"),
        ("~descent:job:* +@all", "exists descent:jobs"),
    ],
)
def test_a_user_without_its_rights_is_told_which(rules: str, said: str, tmp_path: Path) -> None:
    users = f"user descent-api on #SHA256_OF_THE_API_PASSWORD {rules}\n"
    with tls_redis(tmp_path / "redis", users=users) as redis:
        assert said in refusal(settings_of(redis, "descent-api"))


@pytest.mark.parametrize(
    ("words", "user", "said"),
    [
        (("api",), "descent-worker", "rights that descent-api must have"),
        (("worker",), "descent-api", "rights that descent-worker must have"),
        (("keys", "list"), "descent-worker", "rights that descent-api must have"),
        (("reindex",), "descent-api", "rights that descent-worker must have"),
        (("up",), "descent-api", "rights that descent-api and descent-worker must have"),
    ],
)
def test_each_program_says_in_one_line_why_it_does_not_start(
    words: tuple[str, ...], user: str, said: str, tls: TlsRedis, tmp_path: Path
) -> None:
    done = descent(*words, **tls.variables(user), DESCENT_HOME=str(tmp_path), DESCENT_PORT="0")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "docs/operations.md" in line


@pytest.mark.parametrize("module", ["api.app", "worker.app"])
def test_a_service_alone_says_so_too(module: str, tls: TlsRedis, tmp_path: Path) -> None:
    variables = tls.variables("descent-api", ca=Authority(tmp_path / "other").file)
    done = subprocess.run(
        [sys.executable, "-P", "-m", module],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("descent: Redis at rediss://descent-api@localhost")
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_is_silent_is_not_waited_for_longer_than_some_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """It may come; requests are 503 until then."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = read_settings(redis_url=f"rediss://127.0.0.1:{silent.getsockname()[1]}/0")
        refuse_without_access(settings, "descent-api")
    assert "does not answer yet" in caplog.text
