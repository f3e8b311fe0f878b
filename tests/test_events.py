"""Server-Sent Events over real HTTP: nothing missed, nothing twice, also after coming back; and a clean end."""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx2
import pytest

from api.holds import MOST_HELD
from core.jobs.job import Status
from core.jobs.work import WorkStore
from tests.conftest import DOOMED, Server, eventually
from tests.proxy import Proxy
from tests.staged import EPOCH, Api, blank_weights, point, published
from tests.staged import SPEC as STAGED

SPEC = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "batch_size": 1000, "log_every": 1}
STREAM = {"Accept": "text/event-stream"}

Event = dict[str, Any]


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def events(http: httpx2.Client, path: str, *, last: str | None = None, most: int = 10_000) -> list[Event]:
    """The events of a stream as a browser would parse them, up to its end or to so many."""
    found: list[Event] = []
    headers = STREAM | ({"Last-Event-ID": last} if last else {})
    with http.stream("GET", path, headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: Event = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event"):
                event[name] = value
            elif name == "data":
                event["data"] = json.loads(value)
            elif not line and "event" in event:
                found.append(event)
                event = {}
                if len(found) == most:
                    break
    return found


def steps(found: list[Event], job_id: str) -> list[int]:
    points = [event["data"] for event in found if event["event"] == "points" and event["data"]["job_id"] == job_id]
    return [point["step"] for data in points for point in data["points"]]


def told(found: list[Event], kind: str, field: str) -> list[Any]:
    return [event["data"][field] for event in found if event["event"] == kind]


def test_a_stream_tells_all_of_a_job_and_ends_with_it(http: httpx2.Client) -> None:
    job_id = http.post("/jobs", json=SPEC).json()["id"]
    found = events(http, f"/jobs/{job_id}/events")
    assert steps(found, job_id) == list(range(50))
    assert told(found, "status", "status") == ["queued", "running", "succeeded"]
    assert told(found, "status", "terminal") == [False, False, True]
    assert told(found, "epoch", "metrics") == http.get(f"/jobs/{job_id}/metrics").json()["epochs"]
    assert found[-1]["event"] == "end"
    assert len([event for event in found if event["event"] == "points"]) > 3  # as they came, not at the end
    points = [point for points in told(found, "points", "points") for point in points]
    assert points == http.get(f"/jobs/{job_id}/loss").json()["points"]

    for event in found[:-2]:  # whatever was the last event that came through
        rest = events(http, f"/jobs/{job_id}/events", last=event["id"])
        assert steps(rest, job_id) == list(range(50))[len(steps(found[: found.index(event) + 1], job_id)) :]
        assert rest[-1]["event"] == "end"
    for event in found[-2:]:
        over = http.get(f"/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": event["id"]})
        assert (over.status_code, over.content) == (204, b"")


def test_what_was_learnt_comes_between_the_beginning_and_the_end(http: httpx2.Client, trained_job: str) -> None:
    """Also to who comes only when the job has ended, and gets all at once."""
    found = events(http, f"/jobs/{trained_job}/events")
    kinds = [event["data"].get("status", event["event"]) for event in found]
    assert list(dict.fromkeys(kinds)) == ["queued", "running", "points", "epoch", "succeeded", "end"]
    begun = [event for event in found if event["event"] != "points"][1]
    assert [event["id"] for event in events(http, f"/jobs/{trained_job}/events", last=begun["id"])] == [
        event["id"] for event in found[found.index(begun) + 1 :]
    ]


def test_one_stream_tells_of_several_jobs(http: httpx2.Client, trained_job: str) -> None:
    running = http.post("/jobs", json=SPEC).json()["id"]
    path = f"/events?jobs={trained_job},{running}"
    begun = events(http, path, most=8)
    found = begun + events(http, path, last=begun[-1]["id"])
    assert steps(found, trained_job) == [*range(0, 500, 10), 499]
    assert steps(found, running) == list(range(50))
    assert [event["event"] for event in found].count("end") == 1
    ids = [event["id"] for event in found]
    assert len(set(ids[:-1])) == len(ids) - 1


def test_the_parts_of_an_id_serve_in_a_stream_of_other_jobs(http: httpx2.Client, trained_job: str) -> None:
    other = http.post("/jobs", json=SPEC).json()["id"]
    ids = [event["id"] for event in events(http, f"/events?jobs={trained_job},{other}")]
    points, epochs, transitions = ids[-1].split(",")[1].split(".")
    found = events(http, f"/events?jobs={other},{trained_job}", last=f"{int(points) - 1}.{epochs}.{transitions},0.0.0")
    assert steps(found, other) == [49]
    assert steps(found, trained_job) == [*range(0, 500, 10), 499]


def test_a_client_that_leaves_and_comes_back_while_it_trains_misses_nothing(http: httpx2.Client) -> None:
    job_id = http.post("/jobs", json=SPEC).json()["id"]
    found = events(http, f"/jobs/{job_id}/events", most=2)
    while new := events(http, f"/jobs/{job_id}/events", last=found[-1]["id"], most=2):
        found += new
    assert steps(found, job_id) == list(range(50))
    assert told(found, "status", "status") == ["queued", "running", "succeeded"]


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("text/event-stream", True), ("text/event-stream, */*", True), ("text/*", True),
        ("application/json;q=0.5, text/event-stream", True),
        ("application/json, text/event-stream;q=0", False), ("application/json, text/event-stream", False), ("*/*", False),
        ("text/event-stream;q=0.1, */*;q=0.2", False), ("TEXT/EVENT-STREAM", True),
    ],
)  # fmt: skip
def test_the_stream_is_for_whom_it_is_what_they_want_most(
    http: httpx2.Client, trained_job: str, accept: str, is_stream: bool
) -> None:
    with http.stream("GET", f"/jobs/{trained_job}/events", headers={"Accept": accept}) as answer:
        kind = answer.headers["content-type"].partition(";")[0]
    assert (kind, answer.headers["vary"]) == ("text/event-stream" if is_stream else "application/json", "Accept")


def test_the_log_is_a_page_too(http: httpx2.Client, trained_job: str) -> None:
    log = http.get(f"/jobs/{trained_job}/events").json()
    assert (log["status"], log["terminal"]) == ("succeeded", True)
    assert [entry["status"] or entry["epoch"] for entry in log["events"]] == ["queued", "running", 0, "succeeded"]
    assert "validation accuracy 9" in log["events"][2]["message"]
    assert [entry["at"] for entry in log["events"]] == sorted(entry["at"] for entry in log["events"])


@pytest.mark.parametrize(
    ("query", "last", "status"),
    [
        ("", None, 422), ("jobs=", None, 404), ("jobs=job_0", None, 404), ("jobs={0}", "x", 422), ("jobs={0}", "1.2", 422),
        ("jobs={0}", "1.2.3,1.2.3", 422), ("jobs={0}", "1.2.-3", 422), ("jobs={0},{0}", None, 422),
        ("jobs=" + ",".join(["a"] * 51), None, 422), ("jobs=job_" + "0" * 32, None, 404), ("jobs={0}&other=1", None, 422),
        ("jobs={0}", "99999.0.0", 422),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_is_refused(
    http: httpx2.Client, trained_job: str, query: str, last: str | None, status: int
) -> None:
    headers = STREAM | ({"Last-Event-ID": last} if last else {})
    answer = http.get(f"/events?{query.format(trained_job)}", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_job_that_is_deleted_does_not_end_the_stream_of_the_others(http: httpx2.Client, trained_job: str) -> None:
    gone = http.post("/jobs", json=DOOMED).json()["id"]
    eventually(lambda: http.get(f"/jobs/{gone}").json()["terminal"], what="its end")
    running = http.post("/jobs", json=SPEC).json()["id"]
    path = f"/events?jobs={gone},{running}"
    begun = events(http, path, most=4)
    http.delete(f"/jobs/{gone}").raise_for_status()
    found = begun + events(http, path, last=begun[-1]["id"])
    assert steps(found, running) == list(range(50))
    assert found[-1]["event"] == "end"


def test_streams_that_were_left_are_let_go(http: httpx2.Client, server: Server) -> None:
    """The API goes on serving while streams are open, and can be stopped with them open."""
    spec = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
    job_id = http.post("/jobs", json=spec).json()["id"]
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["latest"], within_s=60, what="the first loss")
    for _ in range(20):
        assert events(http, f"/jobs/{job_id}/events", most=1)
    assert http.get("/healthz").status_code == 200
    http.post(f"/jobs/{job_id}/cancel")
    assert told(events(http, f"/jobs/{job_id}/events"), "status", "status")[-1] == "cancelled"


class Narrator:
    """Tells of a job, as its worker would, until `end`; then the job has succeeded."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._tell()), daemon=True)
        self._is_there = threading.Event()
        self.job_id = ""

    def __enter__(self) -> "Narrator":
        self._thread.start()
        assert self._is_there.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(20)

    def end(self) -> None:
        self._is_over.set()

    async def _tell(self) -> None:
        async with WorkStore.connect(self._api.settings.store_url) as store:
            job = await store.submit(STAGED)
            claim = await store.claim(job.id, worker="host:1", lease_s=3600)
            assert claim
            self.job_id = job.id
            self._is_there.set()
            step, epoch, dice = 0, 0, random.Random(1)
            while not self._is_over.is_set():
                size = dice.randrange(1, 40)
                points = [point(n, -1) for n in range(step, step + size)]
                step += size
                assert await store.append(claim, points, steps_done=step, images_per_s=1.0) == "go_on"
                if dice.random() < 0.3:
                    await store.end_epoch(claim, {**EPOCH, "epoch": epoch})
                    epoch += 1
                await asyncio.sleep(0.02)  # the training
            files = published(self._api.settings, claim, blank_weights())
            await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.1}, files=files)


def received(url: str, last: str | None, cut: Any, limit: int | None) -> list[Event]:
    """The whole events that came before the connection was cut, in the middle of one for the most part."""
    content = b""
    headers = STREAM | ({"Last-Event-ID": last} if last else {})
    with suppress(httpx2.TransportError), httpx2.stream("GET", url, headers=headers, timeout=20) as answer:
        for piece in answer.iter_raw():
            content += piece
            if limit is not None and len(content) >= limit:
                cut()
                content = content[:limit]
                break
    found = []
    for text in content.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in text.splitlines())
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def test_a_stream_that_is_cut_twenty_times_loses_nothing(api: Api) -> None:
    dice, found, cuts = random.Random(2), list[Event](), 0
    with Proxy(api.address) as proxy, Narrator(api) as narrator:
        url = f"http://127.0.0.1:{proxy.port}/jobs/{narrator.job_id}/events"
        while not (found and found[-1]["event"] == "end"):
            last = found[-1]["id"] if found else None
            found += received(url, last, proxy.reset, dice.randrange(50, 4000) if cuts < 20 else None)
            cuts += 1
            if cuts == 20:
                narrator.end()
        job_id = narrator.job_id
    assert cuts > 20
    with httpx2.Client(base_url=api.url, timeout=20) as http:
        points = http.get(f"/jobs/{job_id}/loss").json()["points"]
        epochs = http.get(f"/jobs/{job_id}/metrics").json()["epochs"]
    assert len(points) > 200
    assert [p for event in found if event["event"] == "points" for p in event["data"]["points"]] == points
    assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
    assert told(found, "epoch", "metrics") == epochs
    assert told(found, "status", "status") == ["queued", "running", "succeeded"]
    assert [event["event"] for event in found].count("end") == 1


def test_so_many_streams_may_be_open_and_no_more_until_one_is_left(api: Api) -> None:
    job_id = api.jobs[Status.QUEUED]
    asks = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
    with httpx2.Client(base_url=api.url, timeout=20) as http, ExitStack() as streams:
        for _ in range(MOST_HELD):
            stream = streams.enter_context(socket.create_connection(api.address, timeout=20))
            stream.sendall(asks)
            assert b"200 OK" in stream.recv(65536)
        for path, headers in ((f"/jobs/{job_id}/events", STREAM), (f"/jobs/{job_id}", {"Prefer": "wait=30"})):
            refused = http.get(path, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
            assert int(refused.headers["retry-after"]) > 0
        assert http.get(f"/jobs/{job_id}").status_code == 200
        stream.close()
        answer = eventually(lambda: _held(http, job_id), what="the room of the one that was left")
        assert answer.startswith("retry:")
    with httpx2.Client(base_url=api.url, timeout=20) as http:
        eventually(lambda: "descent_http_requests_in_progress 1.0" in http.get("/metrics").text, what="the end of all")
        assert http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=1"}).status_code == 200


def _held(http: httpx2.Client, job_id: str) -> str:
    """The first line of a stream; empty when there is no room for it."""
    with http.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as answer:
        return next(answer.iter_lines()) if answer.status_code == 200 else ""
