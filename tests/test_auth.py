"""Keys over real HTTP: an API process bound to every address, with a real Redis behind it, and several owners."""

import ast
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message
from typer.testing import CliRunner

from api import guard
from api.app import create_app
from api.holds import MOST_HELD_OF_ONE
from api.state import Recent
from client import cli
from client.client import Client, NotAllowed
from client.stack import free_port
from core.errors import InvalidRequest, NotFound, QueueFull, StackError
from core.jobs import artifacts, keys
from core.jobs.database import connect
from core.jobs.job import Job, Status, new_job_id
from core.jobs.keys import KeyStore
from core.jobs.owners import ANYBODY, Caller, Limits, Owned
from core.jobs.store import JobStore, RawJob
from core.jobs.sweeps import SweepStore
from core.jobs.work import WorkStore
from core.settings import Settings, is_loopback, read_settings
from core.spec import JobSpec
from core.storage import Folder
from core.sweep import SweepSpec
from core.training import runtime
from tests.conftest import ROOT, eventually, is_alive, serving
from tests.test_api import GOOD, is_problem
from tests.test_cli import descent

T = TypeVar("T")
SPEC = JobSpec.model_validate(GOOD)
MISSING, MISSING_SWEEP = "job_" + "0" * 32, "sweep_" + "0" * 32
MOST_LIVE = 3
PICTURE = {"image": [0.0] * 784}
TENSOR = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [1]}  # looked at once there is a model
OPEN_PATHS = ["/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/version", "/problems/unauthorized",
              "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"]  # fmt: skip


@contextmanager
def api_process(log: Path, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`python -m api.app` on every address, and its URL on this machine. It may have ended: who wants it waits for it."""
    port = free_port("127.0.0.1")
    env = {name: value for name, value in os.environ.items() if not name.startswith("DESCENT_")}
    env |= {"DESCENT_HOST": "0.0.0.0", "DESCENT_PORT": str(port), "DESCENT_LOG_LEVEL": "debug"}
    env |= {f"DESCENT_{name.upper()}": value for name, value in settings.items()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "api.app"], env=env, cwd=ROOT, stderr=file, preexec_fn=runtime.die_with_parent
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def await_answer(url: str) -> None:
    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    eventually(answers, what="the API")


def on_redis(url: str, use: Callable[[KeyStore, WorkStore], Awaitable[T]], limits: Limits | None = None) -> T:
    """Run a coroutine that wants both stores."""

    async def connected() -> T:
        async with connect(url) as database:
            return await use(KeyStore(database, remembered_s=0), WorkStore(database, limits or Limits()))

    return asyncio.run(connected())


@pytest.fixture(scope="module")
def db(redis_settings: Settings) -> str:
    """A database of the real server that no other test uses."""
    return f"{redis_settings.store_url}?db=3"


@pytest.fixture(scope="module")
def key_of(db: str) -> Callable[..., str]:
    """Make a key: `key_of("ann")`."""

    def make(owner: str, *, admin: bool = False) -> str:
        return on_redis(db, lambda keys, _: keys.create(owner, admin=admin))[1]

    return make


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "api.log"


@pytest.fixture(scope="module")
def url(redis_settings: Settings, db: str, key_of: Callable[..., str], log: Path) -> Iterator[str]:
    key_of("somebody")  # without any it would not start
    settings = {"home": str(redis_settings.home), "redis_url": db, "most_live": str(MOST_LIVE)}
    with api_process(log, **settings, allowed_hosts="Descent.example, *.lab.example") as (_, url):
        await_answer(url)
        yield url


@pytest.fixture
def as_owner(url: str, key_of: Callable[..., str]) -> Iterator[Callable[..., httpx2.Client]]:
    """An HTTP client with a new key of an owner."""
    clients: list[httpx2.Client] = []

    def make(owner: str, *, admin: bool = False) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key_of(owner, admin=admin)}"}
        clients.append(httpx2.Client(base_url=url, headers=headers, timeout=20))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def finished_job(db: str, home: Path, owner: str, accuracy: float) -> Job:
    """A job of an owner that has succeeded; its weights are some bytes."""

    async def use(_: KeyStore, store: WorkStore) -> Job:
        own = store.of(Caller(owner=owner))
        job = await own.submit(SPEC)
        claim = await store.claim(job.id, worker=job.id, lease_s=60)
        assert claim
        await store.append(
            claim, [{"step": 0, "epoch": 0, "batch": 0, "loss": 2.3, "time_s": 0.1}], steps_done=1, images_per_s=1
        )
        at, folder = Folder(home / "jobs"), artifacts.claim_folder(job.id, claim.token)
        files = {name: artifacts.publish(at, folder, file, b"weights") for name, file in artifacts.FORMATS.items()}
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": accuracy}, files=files)
        return await store.get(job.id)

    return on_redis(db, use)


# --- without a key, or with a wrong one --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_some_paths_are_open(url: str, path: str) -> None:
    assert httpx2.get(url + path).status_code in (200, 503)  # /readyz: no worker is here


@pytest.mark.parametrize(
    "method_path",
    ["GET /jobs", "POST /jobs", "GET /events", "POST /predict", "GET /optimizers", "GET /metrics", "GET /nothing",
     "OPTIONS /jobs", "GET /docs/../jobs", "GET /problems/../jobs", "GET //healthz", "GET /healthz/"],
)  # fmt: skip
def test_whatever_is_not_open_needs_a_key(url: str, method_path: str) -> None:
    method, path = method_path.split()
    answer = raw(url, method, path)
    is_problem(answer, 404 if path.startswith("/problems/") else 401)
    assert '"jobs"' not in answer.text


@pytest.mark.parametrize(
    "method_path",
    [
        "GET /v2",
        "GET /v2/models/best",
        "POST /v2/models/best/infer",
        "GET /v2/health/live/",
        "GET /v2/health",
        "GET /v2/x",
    ],
)
def test_below_v2_a_missing_key_is_told_in_that_protocols_form(url: str, method_path: str) -> None:
    answer = raw(url, *method_path.split())
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json() == {"error": "send a key: `Authorization: Bearer dsc_...`"}


def raw(url: str, method: str, path: str, *headers: str, version: str = "1.1") -> httpx2.Response:
    """The answer to a request as it is written here; clients tidy paths and headers up."""
    lines = [f"{method} {path} HTTP/{version}", *(headers or ("Host: localhost",)), "Connection: close", "", ""]
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    pairs = [field.split(": ", 1) for field in fields]
    return httpx2.Response(int(status.split()[1]), headers=[(name, value) for name, value in pairs], content=body)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: [],
        lambda key: [""],
        lambda key: ["Bearer"],
        lambda key: ["Bearer "],
        lambda key: [key],
        lambda key: [f"Basic {key}"],
        lambda key: [f"Bearer {key} {key}"],
        lambda key: [f"Bearer {key},"],
        lambda key: [f"Bearer {key[:-1]}"],
        lambda key: [f"Bearer {key[:-1]}{'0' if key[-1] != '0' else '1'}"],
        lambda key: [f"Bearer {key[:4]}{'0' * 12}{key[16:]}"],
        lambda key: [f"Bearer {key.upper()}"],
        lambda key: ["Bearer " + "x" * 10_000],
        lambda key: ["Bearer \xff\xfe"],
        lambda key: [f"Bearer {key}", f"Bearer {key}"],
        lambda key: [f"Bearer {key}", "Basic eA=="],
    ],
)
def test_a_header_that_is_no_key_is_refused(
    url: str, key_of: Callable[..., str], spoil: Callable[[str], list[str]]
) -> None:
    sent = [f"Authorization: {value}" for value in spoil(key_of("ann"))]
    answer = raw(url, "GET", "/jobs", "Host: localhost", *sent)
    problem = is_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "x" * 50 not in json.dumps(problem)
    assert "dsc_" not in problem["detail"].replace("dsc_...", "")


def test_a_scrape_needs_a_key_and_any_will_do(as_owner: Callable[..., httpx2.Client], others_job: str) -> None:
    numbers = as_owner("prometheus").get("/metrics")
    assert numbers.status_code == 200
    assert "descent_jobs{" in numbers.text
    assert others_job not in numbers.text


def test_the_scheme_is_read_in_any_case(url: str, key_of: Callable[..., str]) -> None:
    for scheme in ("bearer", "BEARER", "Bearer "):
        assert httpx2.get(f"{url}/jobs", headers={"Authorization": f"{scheme} {key_of('ann')}"}).status_code == 200


def test_a_large_body_without_a_key_is_not_waited_for(url: str) -> None:
    is_problem(httpx2.post(f"{url}/jobs", content=b" " * (9 << 20)), 401)
    lying = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{}"
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(lying.encode())
        assert b"401 Unauthorized" in connection.recv(65536)


# --- whose jobs are whose ----------------------------------------------------------------------------------------------


def nameless(answer: httpx2.Response, record_id: str) -> tuple[int, str, set[str]]:
    """An answer without what is its own: the id that was asked for, the request's id."""
    text = re.sub(r'"request_id": ?"\w+"', "", answer.text).replace(record_id, "RECORD")
    return answer.status_code, text, set(answer.headers) - {"date"}


def routes_of_a_record() -> list[str]:
    """Every route that names a job or a sweep in its path, also those that are not made yet."""
    paths = create_app(Settings()).openapi()["paths"].items()
    return [f"{method.upper()} {path}" for path, operations in paths if "_id}" in path for method in operations]


MORE_ROUTES = [
    "GET /jobs/{job_id}/loss?format=csv&max_points=10",
    "GET /jobs/{job_id}/loss?limit=0",
    "GET /jobs/{job_id}/loss?after=5",
    "GET /jobs/{job_id}/model?format=safetensors",
    "GET /jobs/{job_id}/model?format=onnx",
    "GET /events?jobs={job_id}",
    "GET /compare?jobs={job_id}",
    "POST /jobs/{job_id}/resume {\"epochs\": 2}",
    "POST /jobs/{job_id}/resume {\"epochs\": 0}",
    "POST /predict {\"model\": \"{job_id}\"}",
    "GET /models/{job_id}",
    "GET /v2/models/{job_id}",
    "GET /v2/models/{job_id}/ready",
    f"POST /v2/models/{{job_id}}/infer {json.dumps({'inputs': [TENSOR]})}",
    "PUT /models/mine {\"job_id\": \"{job_id}\"}",
]  # fmt: skip


def test_the_list_of_routes_is_not_empty() -> None:
    assert len(routes_of_a_record()) >= 13


@pytest.mark.parametrize("route", [*routes_of_a_record(), *MORE_ROUTES])
def test_anothers_job_is_as_one_that_does_not_exist(
    as_owner: Callable[..., httpx2.Client], others_job: str, others_sweep: str, route: str
) -> None:
    method, path, *body = re.sub(r"{\w+_id}", "RECORD", route).split(" ", 2)

    def ask(record_id: str, accept: str) -> tuple[int, str, set[str]]:
        content: dict[str, Any] = json.loads(body[0].replace("RECORD", record_id)) if body else {}
        if path == "/predict":
            content |= PICTURE
        sent: dict[str, Any] = {"json": content} if content else {}
        headers = {"Accept": accept, "If-None-Match": "*"}
        return nameless(bob.request(method, path.replace("RECORD", record_id), headers=headers, **sent), record_id)

    bob = as_owner("bob")
    others, missing = (others_sweep, MISSING_SWEEP) if "sweep" in path else (others_job, MISSING)
    for accept, statuses in (("*/*", (404, 422)), ("text/event-stream", (404, 406, 422))):
        assert ask(others, accept) == ask(missing, accept)
        assert ask(others, accept)[0] in statuses


@pytest.fixture(scope="module")
def others_job(db: str, redis_settings: Settings) -> str:
    """Ann's; it has a model, the best there is."""
    return finished_job(db, redis_settings.home, "ann", 0.99).id


@pytest.fixture(scope="module")
def others_sweep(db: str) -> str:
    """Ann's, of one job."""

    async def use(_: KeyStore, store: WorkStore) -> str:
        own = SweepStore(store.database).of(Caller(owner="ann"))
        small = {"optimizers": ["sgd"], "learning_rates": [0.1], "epochs": 1}
        return (await own.submit(SweepSpec.model_validate(small), None))[0].id

    return on_redis(db, use)


def test_a_sweep_and_its_jobs_are_its_owners(as_owner: Callable[..., httpx2.Client], others_sweep: str) -> None:
    ann, bob, ops = as_owner("ann"), as_owner("bob"), as_owner("ops", admin=True)
    for http in (ann, ops):
        (job,) = http.get(f"/sweeps/{others_sweep}").json()["jobs"]
        assert http.get(f"/jobs/{job['job_id']}").status_code == 200
        assert others_sweep in [sweep["id"] for sweep in http.get("/sweeps").json()["sweeps"]]
    is_problem(bob.get(f"/jobs/{job['job_id']}"), 404)
    assert bob.get("/sweeps").json() == {"sweeps": [], "next": None}
    three = {"optimizers": ["sgd"], "learning_rates": [0.1, 0.01, 0.001, 0.0001]}
    is_problem(bob.post("/sweeps", json=three), 429, "queue-full")  # all of it or nothing
    assert bob.get("/jobs").json()["jobs"] == []


def test_the_owner_and_an_admin_see_the_job(as_owner: Callable[..., httpx2.Client], others_job: str) -> None:
    for http in (as_owner("ann"), as_owner("ann"), as_owner("ops", admin=True)):  # ann's two keys are equals
        assert http.get(f"/jobs/{others_job}").json()["status"] == "succeeded"
        assert http.get(f"/jobs/{others_job}/model").content == b"weights"
        assert http.get(f"/jobs/{others_job}/loss").json()["count"] == 1
        assert others_job in [job["id"] for job in http.get("/jobs", params={"limit": 100}).json()["jobs"]]
        assert "event: end" in http.get("/events", params={"jobs": others_job}).text


def test_a_list_shows_ones_own_jobs(as_owner: Callable[..., httpx2.Client], others_job: str) -> None:
    cid, dora = as_owner("cid"), as_owner("dora")
    mine = [cid.post("/jobs", json=GOOD).json()["id"] for _ in range(3)]
    first = cid.get("/jobs", params={"limit": 2}).json()
    rest = cid.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == mine[::-1]
    assert rest["next"] is None
    assert dora.get("/jobs").json()["jobs"] == []
    assert dora.get("/jobs", params={"after": others_job}).json()["jobs"] == []
    assert dora.get("/models").json() == {"models": [], "aliases": {}, "next": None}
    assert others_job not in json.dumps(cid.get("/jobs", params={"optimizer": "adam", "status": "succeeded"}).json())


def test_best_and_latest_are_ones_own(
    as_owner: Callable[..., httpx2.Client], db: str, redis_settings: Settings, others_job: str
) -> None:
    for name in ("best", "latest"):
        problem = is_problem(as_owner("eve").post("/predict", json={"model": name, **PICTURE}), 404)
        assert others_job not in json.dumps(problem)
    worse, worst = (finished_job(db, redis_settings.home, "fay", accuracy).id for accuracy in (0.5, 0.4))

    async def models(_: KeyStore, store: WorkStore) -> list[str]:
        callers = (Caller(owner="fay", sees_all=False), ANYBODY)
        return [(await store.of(caller).model(name)).job_id for caller in callers for name in ("best", "latest")]

    assert on_redis(db, models) == [worse, worst, others_job, worst]


def test_an_idempotency_key_is_ones_own(as_owner: Callable[..., httpx2.Client]) -> None:
    headers = {"Idempotency-Key": "the-same"}
    gus, hal = (
        [http.post("/jobs", json=GOOD, headers=headers).json()["id"] for _ in range(2)]
        for http in (as_owner("gus"), as_owner("hal"))
    )
    assert gus[0] == gus[1] != hal[0] == hal[1]


def test_jobs_from_before_there_were_keys_are_an_admins_to_see(as_owner: Callable[..., httpx2.Client], db: str) -> None:
    old = on_redis(db, lambda _, store: store.submit(SPEC))
    is_problem(as_owner("ann").get(f"/jobs/{old.id}"), 404)
    assert as_owner("ops", admin=True).get(f"/jobs/{old.id}").status_code == 200


def about_one(store: type[Owned]) -> list[str]:
    """The methods of a store that take the id of a record."""
    words = {f"{store.noun}_id", "name"}
    methods = {name: set(getattr(method, "__annotations__", {})) for name, method in vars(store).items()}
    return [name for name, given in methods.items() if given & words and name[0] != "_"]


@pytest.mark.parametrize("name", sorted(set(about_one(JobStore)) - {"emptied"}))  # that is about files without a job
def test_no_method_of_the_store_shows_anothers_job(db: str, others_job: str, name: str) -> None:
    """A new method that is not `seen_by_caller` fails here."""
    more: dict[str, Any] = {"news": {"seen": None}, "extend": {"epochs": 1}}

    async def use(_: KeyStore, store: WorkStore) -> None:
        stranger = store.of(Caller(owner="stranger", sees_all=False))
        with pytest.raises(NotFound):
            await getattr(stranger, name)(others_job, **more.get(name, {}))
        assert await stranger.outlines([others_job]) == []
        assert (await store.get(others_job)).status == "succeeded"

    on_redis(db, use)


@pytest.mark.parametrize(
    "name", sorted(set(about_one(SweepStore)) - {"filed", "restore"})
)  # what workers do with an id
def test_no_method_of_the_store_shows_anothers_sweep(db: str, others_sweep: str, name: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        sweeps = SweepStore(store.database)
        with pytest.raises(NotFound):
            await getattr(sweeps.of(Caller(owner="stranger", sees_all=False)), name)(others_sweep)
        (job_id,) = (await sweeps.get(others_sweep)).job_ids
        assert await store.status(job_id) == "queued"

    on_redis(db, use)


def test_an_owner_stays_in_the_jobs_own_files(db: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> list[list[str]]:
        own = store.of(Caller(owner="ida", sees_all=False))
        job = await own.submit(SPEC)
        await own.pause(job.id)
        as_filed = await own.raw(job.id)
        assert as_filed
        again = RawJob(job_id=new_job_id(), record=as_filed.record, transitions=as_filed.transitions, epochs=[])
        assert await store.restore(again, []) == "restored"
        return [[job.id, again.job_id], sorted(job.id for job in (await own.page())[0])]

    made, seen = on_redis(db, use)
    assert made == seen


# --- how much, how often -----------------------------------------------------------------------------------------------


def test_an_owner_may_have_so_many_jobs_that_have_not_ended(as_owner: Callable[..., httpx2.Client]) -> None:
    jim, kim = as_owner("jim"), as_owner("kim")
    jobs = [jim.post("/jobs", json=GOOD, headers={"Idempotency-Key": str(n)}).json()["id"] for n in range(MOST_LIVE)]
    answer = jim.post("/jobs", json=GOOD)
    is_problem(answer, 429, "queue-full")
    assert int(answer.headers["retry-after"]) > 0
    assert jim.post("/jobs", json=GOOD, headers={"Idempotency-Key": "0"}).json()["id"] == jobs[0]  # it is no new one
    assert as_owner("jim").post("/jobs", json=GOOD).status_code == 429  # another key is no way around it
    assert kim.post("/jobs", json=GOOD).status_code == 202
    jim.post(f"/jobs/{jobs[0]}/cancel")
    assert jim.post("/jobs", json=GOOD).status_code == 202


def test_the_queue_of_all_has_an_end_without_keys_too(db: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        before = await store.count_queued()
        await store.submit(SPEC)
        assert await store.count_queued() == before + 1

    async def refused(_: KeyStore, store: WorkStore) -> None:
        with pytest.raises(QueueFull):
            await store.submit(SPEC)

    room = on_redis(db, lambda _, store: store.count_queued()) + 1
    on_redis(db, use, Limits(most_queued=room))
    on_redis(db, refused, Limits(most_queued=room))


def test_a_job_that_goes_on_again_needs_room_as_a_new_one_does(db: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        own = store.of(Caller(owner="nia", sees_all=False))
        ended, paused, other = [await own.submit(SPEC) for _ in range(3)]
        await own.cancel(ended.id)
        await own.pause(paused.id)
        with pytest.raises(QueueFull, match="not ended"):
            while True:
                await own.submit(SPEC)
        with pytest.raises(QueueFull, match="not ended"):
            await own.resume(ended.id)
        with pytest.raises(QueueFull, match="not ended"):
            await own.extend(ended.id, 1)
        assert (await own.get(ended.id)).status == "cancelled"
        assert (await own.resume(paused.id))[0].status == "queued"  # it counted all the time
        await own.cancel(other.id)
        assert (await own.resume(ended.id))[0].status == "queued"

    on_redis(db, use, Limits(most_live=3))


def test_an_owner_keeps_so_many_jobs_and_no_more(db: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        own = store.of(Caller(owner="olga", sees_all=False))
        jobs = [await own.submit(SPEC) for _ in range(2)]
        for job in jobs:
            await own.cancel(job.id)
        with pytest.raises(QueueFull, match="delete"):
            await own.submit(SPEC)
        await own.delete(jobs[0].id)
        await own.submit(SPEC)

    on_redis(db, use, Limits(most_kept=2))


def test_the_jobs_that_a_sweep_holds_back_are_in_the_queue_of_all(db: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        sweep = SweepSpec.model_validate({"optimizers": ["sgd"], "seeds": [0, 1], "max_concurrent": 1})
        with pytest.raises(QueueFull):
            while True:
                await SweepStore(store.database, Limits(most_queued=room)).submit(sweep, None)

    room = on_redis(db, lambda _, store: store.count_queued()) + 12
    on_redis(db, use)


def test_a_key_that_asks_too_often_waits_and_no_other(as_owner: Callable[..., httpx2.Client]) -> None:
    lea = as_owner("lea")
    answers = (lea.post(f"/jobs/{MISSING}/cancel") for _ in range(2000))
    refused = next(answer for answer in answers if answer.status_code != 404)
    is_problem(refused, 429, "rate-limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert lea.get("/jobs").status_code == 200  # reading is counted apart
    assert as_owner("mia").post(f"/jobs/{MISSING}/cancel").status_code == 404


def test_a_bucket_fills_with_time() -> None:
    pace = guard.Pace({"submit": 2, "poll": 0})
    assert [pace.wait("k", "submit", 100.0) for _ in range(21)] == [0] * 20 + [0.5]
    assert pace.wait("other", "submit", 100.0) == 0
    assert pace.wait("k", "submit", 100.25) == pytest.approx(0.25)
    assert pace.wait("k", "submit", 100.5) == 0
    assert pace.wait("k", "submit", 100.5) == pytest.approx(0.5)
    assert [pace.wait("k", "submit", 10_000.0) for _ in range(21)].count(0) == 20  # never more than ten seconds' worth
    assert not any(pace.wait("k", "poll", 0) for _ in range(1000))


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [("GET", "/jobs", "poll"), ("HEAD", "/jobs", "poll"), ("POST", "/jobs", "submit"), ("DELETE", "/jobs/x", "submit"),
     ("POST", "/predict", "predict"), ("POST", "/v2/models/best/infer", "predict")],
)  # fmt: skip
def test_a_request_is_of_one_kind(method: str, path: str, kind: str) -> None:
    assert guard.kind_of(method, path) == kind


# --- hosts, sites, headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("localhost", True), ("LOCALHOST:8000", True), ("localhost.", True), ("127.0.0.1:1", True), ("127.8.8.8", True),
     ("[::1]:8000", True), ("10.1.2.3:8000", True), ("descent.example", True), ("a.lab.example:80", True),
     ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("lab.example", False),
     ("descent.example@evil.example", False), ("", False), ("[::1", False), ("localhost:", False), ("\xff", False),
     ("127.0.0.1:8000:1", False), ("*", False), ("x" * 5000, False)],
)  # fmt: skip
def test_a_foreign_host_is_refused(url: str, host: str, is_ours: bool) -> None:
    answer = raw(url, "GET", "/healthz", f"Host: {host}")
    if is_ours:
        assert answer.status_code == 200
    else:
        is_problem(answer, 421, "foreign-host")


def test_a_server_for_this_machine_alone_has_loopback_names_only() -> None:
    hosts = guard.Hosts(Settings())
    assert [hosts.has(host) for host in (b"127.0.0.1:8000", b"localhost", b"[::1]", b"10.1.2.3", b"x.example")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert guard.Hosts(Settings(allowed_hosts="*")).has(b"x.example")
    assert guard.Hosts(Settings(host="my-box")).has(b"my-box:8000")


def test_two_hosts_are_refused_and_none_is_the_old_protocols(url: str) -> None:
    is_problem(raw(url, "GET", "/healthz", "Host: localhost", "Host: localhost"), 421)
    assert raw(url, "GET", "/healthz", "X: y", version="1.0").status_code == 200


@pytest.mark.parametrize(
    ("headers", "is_let"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://localhost:1234"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://descent.example", "Host": "descent.example"}, True),
        ({"Origin": "https://descent.example", "Host": "Descent.example"}, True),
        ({"Origin": "http://descent.example:81", "Host": "descent.example"}, False),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    as_owner: Callable[..., httpx2.Client], headers: dict[str, str], is_let: bool
) -> None:
    http = as_owner("nan")
    answer = http.post(f"/jobs/{MISSING}/cancel", headers=headers)
    is_problem(answer, 404 if is_let else 403, None if is_let else "cross-site")
    assert http.get("/jobs", headers=headers).status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_too_many_or_too_long_headers_are_refused(as_owner: Callable[..., httpx2.Client]) -> None:
    http = as_owner("nan")
    is_problem(http.get("/jobs", headers={f"X-{n}": "x" for n in range(300)}), 431, "headers-too-large")
    is_problem(http.get("/jobs", headers={"X": "x" * 40_000}), 431, "headers-too-large")
    is_problem(http.post("/jobs", json=GOOD, headers={"Idempotency-Key": "k" * 10_240}), 422, "validation-error")


@pytest.mark.parametrize("path", [*OPEN_PATHS, "/jobs", "/nothing"])
def test_every_answer_tells_browsers_to_be_careful(url: str, path: str) -> None:
    headers = httpx2.get(url + path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert headers["x-request-id"]
    assert "server" not in headers


def test_a_bug_too_is_answered_with_these_headers() -> None:
    app = create_app(Settings())

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError

    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        answer = http.get("/bug")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_the_docs_may_load_what_they_need_from_here(url: str) -> None:
    page = httpx2.get(f"{url}/docs")
    assert "<script>" in page.text
    policy = page.headers["content-security-policy"]
    for part in ("script-src 'self' 'unsafe-inline'", "connect-src 'self'", "img-src 'self' data:"):
        assert part in policy
    assert "unsafe-inline" not in httpx2.get(f"{url}/problems/not-found").headers["content-security-policy"]


def test_the_openapi_document_says_where_a_key_is_needed(url: str) -> None:
    document = httpx2.get(f"{url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]
    assert create_app(Settings()).openapi()["security"] == [{"key": []}, {}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if guard.is_open(path):
                assert operation["security"] == []
            else:
                assert {"401", "429"} <= set(operation["responses"])
                assert ("403" in operation["responses"]) == (method not in ("get", "head"))


# --- the keys themselves -----------------------------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked_on_the_command_line(
    url: str, db: str, tmp_path: Path, redis_settings: Settings, log: Path
) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["keys", *words], env={"DESCENT_REDIS_URL": db}, catch_exceptions=False)
        assert (done.exit_code, secret in done.output) == (0, False)
        return done.stdout

    made = descent("keys", "create", "olga", home=tmp_path, cache=tmp_path, redis_url=db)
    text = made.stdout.strip()
    assert re.fullmatch(r"dsc_[0-9a-f]{12}_[0-9a-f]{64}", text)
    key_id, secret = text.split("_")[1:]
    assert secret not in made.stderr
    with Client(url, key=text) as client:
        job_id = client.jobs.submit(optimizer="adam", learning_rate=0.001).id
    (row,) = (row for row in map(json.loads, run("list", "--json").splitlines()) if row["id"] == key_id)
    assert (row["owner"], row["admin"], set(row)) == ("olga", False, {"id", "owner", "admin", "created_at", "used_at"})
    assert row["created_at"] <= row["used_at"]
    second = run("create", "olga").strip()
    assert key_id in run("list")
    run("revoke", key_id)

    def is_refused() -> bool:
        return httpx2.get(f"{url}/jobs", headers={"Authorization": f"Bearer {text}"}).status_code == 401

    eventually(is_refused, what="the end of the key")
    with Client(url, key=second) as client:
        assert client.jobs.get(job_id).status == "queued"  # the owner's other key goes on
    again = descent("keys", "revoke", key_id, home=tmp_path, cache=tmp_path, redis_url=db)
    assert (again.returncode, "no such key" in again.stderr, "Traceback" in again.stderr) == (5, True, False)
    stored = [file for file in redis_settings.home.rglob("*") if file.is_file()]
    assert any(job_id.encode() in file.read_bytes() for file in stored)
    assert not any(secret.encode() in file.read_bytes() for file in stored)
    assert "olga" in log.read_text()
    assert secret not in log.read_text()


@pytest.mark.parametrize("name", ["", " ", "a b", "a:b", "a/b", "-a", "x" * 65, "ann\n", "安"])
def test_a_name_that_could_be_mistaken_is_refused(db: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="/owner"):
        on_redis(db, lambda keys, _: keys.create(name))


def test_the_clients_error_says_what_is_missing(url: str) -> None:
    with Client(url) as client, pytest.raises(NotAllowed, match=r"send a key.*DESCENT_API_KEY"):
        client.jobs.get(MISSING)


def test_digests_are_compared_in_constant_time() -> None:
    source = ast.parse(Path(keys.__file__).read_text())
    (find,) = (node for node in ast.walk(source) if isinstance(node, ast.AsyncFunctionDef) and node.name == "find")
    assert "hmac.compare_digest" in {ast.unparse(node.func) for node in ast.walk(find) if isinstance(node, ast.Call)}
    compared = [ast.unparse(node) for node in ast.walk(source) if isinstance(node, ast.Compare)]
    assert not [text for text in compared if "sha256" in text or "digest" in text]


def test_a_stream_ends_when_its_key_is_revoked(db: str) -> None:
    async def use(keys: KeyStore, _: WorkStore) -> list[Message]:
        key, text = await keys.create("pat")
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        receive_on, send_on = guard.while_valid({}, keys, key, text, receive, send)
        await send_on({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive_on())["type"] == "http.request"
        await keys.revoke(key.id)
        await send_on({"type": "http.response.body", "body": b"two", "more_body": True})
        await send_on({"type": "http.response.body", "body": b"three", "more_body": True})
        assert (await receive_on())["type"] == "http.disconnect"
        return sent

    assert [message["body"] for message in on_redis(db, use)] == [b"one", b""]


@pytest.mark.parametrize("late", [True, False])
def test_an_answer_that_comes_late_is_not_for_a_key_that_was_revoked(db: str, late: bool) -> None:
    async def use(keys: KeyStore, _: WorkStore) -> list[Message]:
        key, text = await keys.create("pam")
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        scope = {"type": "http", "method": "GET", "path": "/jobs/x", "headers": [], "state": {}}
        late_s = -1.0 if late else 60.0
        send_on = guard.while_valid(scope, keys, key, text, receive, send, late_s=late_s)[1]
        await keys.revoke(key.id)
        await send_on({"type": "http.response.start", "status": 200, "headers": []})
        await send_on({"type": "http.response.body", "body": b"secret"})
        return sent

    start, body = on_redis(db, use)
    assert start["status"] == (401 if late else 200)
    assert (body["body"] == b"secret") is not late
    if late:
        assert json.loads(body["body"])["code"] == "unauthorized"


def test_a_key_is_looked_up_once_in_some_seconds(db: str) -> None:
    async def use(keys: KeyStore, _: WorkStore) -> None:
        async with connect(db) as database:
            remembering = KeyStore(database, remembered_s=60)
            key, text = await keys.create("quin")
            assert await remembering.find(text) == key
            await keys.revoke(key.id)
            assert await remembering.find(text) == key
            assert await remembering.find(f"{text[:-1]}{'0' if text[-1] != '0' else '1'}") is None
            assert await KeyStore(database).find(text) is None

    on_redis(db, use)


# --- starting ----------------------------------------------------------------------------------------------------------


def test_it_does_not_start_on_other_addresses_without_a_key(tmp_path: Path, redis_settings: Settings) -> None:
    empty = f"{redis_settings.store_url}?db=4"
    with api_process(tmp_path / "log", home=str(tmp_path), redis_url=empty) as (process, _):
        assert process.wait(30) == 1
        log = (tmp_path / "log").read_text()
        assert "descent keys create" in log
        assert "--insecure" in log
        assert "Traceback" not in log
    refused = descent("up", home=tmp_path, cache=tmp_path, redis_url=empty, host="0.0.0.0", port="0")
    assert refused.returncode == 1
    assert "descent keys create" in refused.stderr
    assert "Ready" not in refused.stdout


def test_who_revokes_the_last_key_locks_all_out_and_stops_nothing(
    tmp_path: Path, cache: Path, redis_settings: Settings
) -> None:
    db = f"{redis_settings.store_url}?db=5"
    key, text = on_redis(db, lambda keys, _: keys.create("uma"))
    headers = {"Authorization": f"Bearer {text}"}
    with serving(tmp_path, cache, redis_url=db, require_keys="1") as running:
        assert httpx2.get(f"{running.url}/jobs", headers=headers).status_code == 200
        on_redis(db, lambda keys, _: keys.revoke(key.id))
        api = running.pid_of("api.app")
        os.kill(api, signal.SIGKILL)
        eventually(lambda: not is_alive(api), what="its death")
        await_answer(running.url)
        is_problem(httpx2.get(f"{running.url}/jobs", headers=headers), 401, "unauthorized")
        assert "there are no keys" in (tmp_path / "logs" / "api.log").read_text()
        _, text = on_redis(db, lambda keys, _: keys.create("uma"))
        assert httpx2.get(f"{running.url}/jobs", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_strangers_are_told_whether_it_is_ready_and_no_more(url: str, tmp_path: Path) -> None:
    checks = httpx2.get(f"{url}/readyz").json()["checks"]
    assert (checks["redis"]["ok"], checks["redis"]["detail"]) == (True, "answers")
    (tmp_path / "file").touch()
    nowhere = Settings(home=tmp_path / "file" / "home", redis_url=f"unix://{tmp_path}/nowhere.sock")
    with TestClient(create_app(nowhere), base_url="http://localhost") as http:
        answer = http.get("/readyz")
        assert answer.json()["checks"]["disk"] | {"ms": 0} == {"ok": False, "ms": 0, "detail": "Not a directory"}
        assert str(tmp_path) not in answer.text


def test_what_many_ask_for_at_once_is_made_once_and_again_when_it_is_old() -> None:
    async def use() -> tuple[set[int], int]:
        made, recent = count(), Recent[int]()

        async def make() -> int:
            await asyncio.sleep(0)
            return next(made)

        together = set(await asyncio.gather(*(recent.get(make, lambda _: 60) for _ in range(20))))
        other = Recent[int]()
        await other.get(make, lambda _: 0)
        return together, await other.get(make, lambda _: 0)

    assert asyncio.run(use()) == ({0}, 2)


def test_it_needs_no_key_when_told_so(redis_settings: Settings) -> None:
    open_to_all = Settings(host="0.0.0.0", insecure=True, redis_url=f"{redis_settings.store_url}?db=4")
    with TestClient(create_app(open_to_all), base_url="http://localhost") as http:
        assert http.get("/jobs").status_code == 200


def test_while_redis_is_away_it_starts_and_lets_nobody_in(tmp_path: Path) -> None:
    away = f"unix://{tmp_path}/nowhere.sock"
    with api_process(tmp_path / "log", home=str(tmp_path), redis_url=away) as (_, url):
        await_answer(url)
        is_problem(httpx2.get(f"{url}/optimizers"), 401)
        headers = {"Authorization": f"Bearer dsc_{'0' * 12}_{'0' * 64}"}
        answer = httpx2.get(f"{url}/optimizers", headers=headers)
        is_problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "127.1.2.3"}, False),
        ({"require_keys": True}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": ""}, True),
        ({"host": "10.0.0.1"}, True),
        ({"host": "my-box"}, True),
        ({"host": "0.0.0.0", "insecure": True}, False),
    ],
)
def test_keys_are_asked_for_where_others_may_reach_the_port(settings: dict[str, Any], required: bool) -> None:
    assert Settings(**settings).keys_required is required


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="DESCENT_REQUIRE_KEYS"):
        read_settings(insecure=True, require_keys=True)
    refused = descent("up", "--insecure", home=tmp_path, cache=tmp_path, require_keys="1")
    assert (refused.returncode, "DESCENT_INSECURE" in refused.stderr) == (1, True)


def test_a_name_that_looks_like_localhost_is_not_it() -> None:
    assert is_loopback("LocalHost")
    assert not is_loopback("localhost.evil.example")


# --- what strangers cannot take ----------------------------------------------------------------------------------------


def test_who_finds_all_connections_taken_waits_for_one(db: str) -> None:
    async def use() -> None:
        async with connect(db) as database:
            assert all(await asyncio.gather(*(database.redis.ping() for _ in range(1500))))

    asyncio.run(use())


def test_a_connection_is_not_lost_with_who_was_cancelled_while_giving_it_back(db: str) -> None:
    async def use() -> None:
        async with connect(db) as database:
            pool = database.redis.connection_pool
            connection = await pool.get_connection()
            async with pool._condition:  # as while others wait for one
                giving = asyncio.create_task(pool.release(connection))
                for cancelled in (False, True, False, True):  # a cancelled scope cancels again
                    await asyncio.sleep(0)
                    if cancelled:
                        giving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await giving
            async with asyncio.timeout(5):
                while pool._in_use_connections:
                    await asyncio.sleep(0)

    asyncio.run(use())


def test_a_key_that_does_not_exist_is_looked_up_once_in_some_seconds(db: str) -> None:
    async def use(keys: KeyStore, _: WorkStore) -> None:
        async with connect(db) as database:
            remembering = KeyStore(database, remembered_s=60)
            nobody = f"dsc_{'ab' * 6}_{'0' * 64}"
            assert await remembering.find(nobody) is None
            before = (await database.redis.info("commandstats"))["cmdstat_hget"]["calls"]
            for _again in range(20):
                assert await remembering.find(nobody) is None
            assert (await database.redis.info("commandstats"))["cmdstat_hget"]["calls"] - before < 20
            key, text = await keys.create("rob")
            assert await remembering.find(text) == key  # one that was just made works at once

    on_redis(db, use)


def test_anothers_record_is_asked_for_each_time_like_one_that_does_not_exist(db: str, others_job: str) -> None:
    async def use(_: KeyStore, store: WorkStore) -> None:
        async def reads(record_id: str, caller: Caller) -> int:
            seen = store.of(caller)
            before = (await store.database.redis.info("commandstats"))["cmdstat_hmget"]["calls"]
            for _again in range(3):
                try:
                    await seen._see(record_id)
                except NotFound:
                    continue
            return int((await store.database.redis.info("commandstats"))["cmdstat_hmget"]["calls"]) - before

        await store.of(Caller(owner="ann", sees_all=False))._see(others_job)
        assert await reads(others_job, Caller(owner="ann", sees_all=False)) == 0
        stranger = Caller(owner="stranger", sees_all=False)
        assert await reads(others_job, stranger) == await reads(MISSING, stranger) == 3

    on_redis(db, use)


def test_one_owners_streams_take_nobody_elses_room(url: str, db: str, key_of: Callable[..., str]) -> None:
    def first_line(owner: str, key: str, streams: ExitStack) -> bytes:
        asks = f"GET /events?jobs={jobs[owner]} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        host, port = url.removeprefix("http://").split(":")
        stream = streams.enter_context(socket.create_connection((host, int(port)), timeout=20))
        stream.sendall(asks.encode())
        return stream.recv(65536).partition(b"\r\n")[0]

    async def submit(_: KeyStore, store: WorkStore) -> dict[str, str]:
        return {owner: (await store.of(Caller(owner=owner)).submit(SPEC)).id for owner in ("sam", "tess")}

    jobs = on_redis(db, submit)
    own = {owner: key_of(owner) for owner in jobs}
    with ExitStack() as streams:
        opened = [first_line("sam", own["sam"], streams) for _ in range(MOST_HELD_OF_ONE)]
        assert all(b"200 OK" in line for line in opened)
        assert b" 429 " in first_line("sam", key_of("sam"), streams)  # another key of the same owner
        assert b"200 OK" in first_line("tess", own["tess"], streams)
