"""What a job has told, in every shape: pages, samples, CSV, NDJSON, columns, epochs; unchanged answers and waiting."""

import asyncio
import csv
import hashlib
import io
import json
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from api.history import sampled
from core.jobs.work import WorkStore
from core.spec import JobSpec
from tests.conftest import Server, eventually
from tests.staged import Api


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=40) as http:
        yield http


def losses(http: httpx2.Client, job_id: str, **query: str | int) -> httpx2.Response:
    answer = http.get(f"/jobs/{job_id}/loss", params=query)
    assert answer.status_code == 200, answer.text
    return answer


def test_every_format_holds_the_same_points(http: httpx2.Client, trained_job: str) -> None:
    points = losses(http, trained_job).json()["points"]
    assert len(points) == 51
    lines = losses(http, trained_job, format="ndjson")
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in lines.text.splitlines()] == points
    table = losses(http, trained_job, format="csv")
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [{name: json.loads(value) for name, value in row.items()} for row in rows] == points
    columns = losses(http, trained_job, shape="columns").json()["points"]
    assert columns.pop("nonfinite") == [None] * 51
    assert columns == {name: [point[name] for point in points] for name in points[0]}
    page = losses(http, trained_job, format="csv", limit=20, after=40)
    assert (page.headers["x-next"], page.headers["x-has-more"], page.headers["x-terminal"]) == ("51", "false", "true")


@pytest.mark.parametrize(
    ("accept", "query", "given"),
    [
        ("text/csv", {}, "text/csv"), ("text/*", {}, "text/csv"), ("application/x-ndjson, */*", {}, "application/x-ndjson"),
        ("*/*", {}, "application/json"), ("text/csv;q=0.5, */*;q=0.9", {}, "application/json"),
        ("text/csv;q=0, */*", {}, "application/json"),
        ("text/csv, application/json", {}, "application/json"), ("text/html, */*;q=0.8", {"format": "csv"}, "text/csv"),
        ("application/json", {"format": "csv"}, None), ("text/csv", {"format": "json"}, None), ("image/png", {}, None),
    ],
)  # fmt: skip
def test_accept_chooses_the_format_that_the_query_leaves_open(
    http: httpx2.Client, trained_job: str, accept: str, query: dict[str, str], given: str | None
) -> None:
    answer = http.get(f"/jobs/{trained_job}/loss", params=query, headers={"Accept": accept})
    if given is None:
        assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
        return
    assert answer.headers["content-type"].partition(";")[0] == given
    assert answer.headers["vary"] == "Accept"
    again = http.get(answer.request.url.path, params=query, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == (304 if given == "application/json" or query else 200)  # without Accept it is JSON


def test_a_sample_keeps_the_ends_and_the_extremes_and_says_so(http: httpx2.Client, trained_job: str) -> None:
    whole = losses(http, trained_job).json()
    few = losses(http, trained_job, max_points=12).json()
    assert (few["count"], few["next"], few["has_more"]) == (51, "51", False)
    assert few["sampling"] == {"method": "min-max", "of": 51, "buckets": 5}
    assert len(few["points"]) <= 12
    assert [point for point in whole["points"] if point in few["points"]] == few["points"]
    values = [point["loss"] for point in whole["points"]]
    kept = [point["loss"] for point in few["points"]]
    assert (kept[0], kept[-1], min(kept), max(kept)) == (values[0], values[-1], min(values), max(values))
    assert losses(http, trained_job, max_points=51).json() == whole
    both = http.get(f"/jobs/{trained_job}/loss", params={"max_points": 10, "limit": 5})
    assert (both.status_code, both.json()["errors"][0]["pointer"]) == (422, "?max_points")


def test_a_range_of_steps_is_found_without_reading_all(http: httpx2.Client, trained_job: str) -> None:
    whole = losses(http, trained_job).json()["points"]
    for first, last in ((0, 499), (1, 10), (100, 200), (495, 499), (491, 498), (300, 299), (600, 700)):
        page = losses(http, trained_job, from_step=first, to_step=last).json()
        assert page["points"] == [point for point in whole if first <= point["step"] <= last]
        assert not page["has_more"]
    part = losses(http, trained_job, from_step=100, limit=3).json()
    assert [point["step"] for point in part["points"]] == [100, 110, 120]
    rest = losses(http, trained_job, from_step=100, after=part["next"]).json()
    assert part["points"] + rest["points"] == [point for point in whole if point["step"] >= 100]


def test_no_spike_is_lost_in_a_sample() -> None:
    points = [
        json.dumps({"step": n, "loss": 100.0 if n == 7_777 else None if n == 3_333 else 1.0}) for n in range(10_000)
    ]
    kept, sampling = sampled(points, 100)
    assert points[7_777] in kept
    assert points[3_333] in kept
    assert (len(kept) <= 100, sampling["of"], kept[0], kept[-1]) == (True, 10_000, points[0], points[-1])
    assert [json.loads(point)["step"] for point in kept] == sorted(json.loads(point)["step"] for point in kept)


def test_the_epochs_metrics_are_the_results(http: httpx2.Client, trained_job: str) -> None:
    job = http.get(f"/jobs/{trained_job}").json()
    (epoch,) = http.get(f"/jobs/{trained_job}/metrics").json()["epochs"]
    assert epoch["valid_accuracy"] == job["result"]["valid_accuracy"] > 0.95
    assert (epoch["epoch"], epoch["learning_rate"]) == (0, 0.001)
    assert epoch["valid_loss"] < 0.2 < epoch["train_loss"] < 1
    assert epoch["images_per_s"] * epoch["seconds"] == pytest.approx(50_000, rel=0.01)


def test_an_unchanged_answer_is_not_sent_again(http: httpx2.Client, trained_job: str) -> None:
    for path in ("", "/loss", "/loss?format=csv", "/loss?limit=3", "/metrics", "/model"):
        first = http.get(f"/jobs/{trained_job}{path}")
        etag = first.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = http.get(f"/jobs/{trained_job}{path}", headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert http.get(f"/jobs/{trained_job}{path}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert losses(http, trained_job, limit=3).headers["etag"] != losses(http, trained_job, limit=4).headers["etag"]


def test_waiting_holds_the_answer_until_something_changes(http: httpx2.Client, trained_job: str) -> None:
    began = time.monotonic()
    unchanged = http.get(f"/jobs/{trained_job}", headers={"Prefer": "wait=1"})
    assert unchanged.status_code == 200
    assert unchanged.headers["preference-applied"] == "wait=1"
    assert time.monotonic() - began >= 1
    known = {"If-None-Match": unchanged.headers["etag"]}
    assert http.get(f"/jobs/{trained_job}", headers=known | {"Prefer": "respond-async, wait=1"}).status_code == 304
    spec = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
    job_id = http.post("/jobs", json=spec).json()["id"]
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["latest"], within_s=60, what="the first loss")
    seen = []
    for _ in range(3):
        answer = http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30"})
        seen.append(answer.json()["updated_at"])
    assert len(set(seen)) == 3
    http.post(f"/jobs/{job_id}/cancel")
    for wish in ("wait=-1", "wait=x", "return=minimal", "wait="):
        answer = http.get(f"/jobs/{trained_job}", headers={"Prefer": wish})
        assert answer.status_code == 200
        assert "preference-applied" not in answer.headers


def test_a_preview_stores_nothing(http: httpx2.Client) -> None:
    before = http.get("/jobs?limit=1").json()["jobs"]
    spec = {"optimizer": "Adam", "learning_rate": 0.001, "epochs": 2, "batch_size": 128}
    answer = http.post("/jobs?validate_only=true", json=spec)
    assert answer.status_code == 200
    preview = answer.json()
    assert (preview["total_steps"], preview["points"]) == (782, 80)
    assert preview["spec"]["optimizer"] == {
        "name": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "amsgrad": False,
    }  # fmt: skip
    assert http.get("/jobs?limit=1").json()["jobs"] == before
    wrong = http.post("/jobs?validate_only=true", json=spec | {"batch_size": 50_001})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/batch_size")


def test_the_checkpoints_that_are_kept_are_named(http: httpx2.Client, server: Server, trained_job: str) -> None:
    (last,) = http.get(f"/jobs/{trained_job}/checkpoints").json()["checkpoints"]
    (epoch,) = http.get(f"/jobs/{trained_job}/metrics").json()["epochs"]
    assert (last["step"], last["epoch"], last["metrics"]) == (500, 1, epoch)
    (file,) = (server.home / "jobs" / trained_job).glob("*/checkpoint-*")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == last["sha256"]
    assert file.stat().st_size == last["size_bytes"]
    assert http.get(f"/jobs/job_{'0' * 32}/checkpoints").status_code == 404


# --- a long history ----------------------------------------------------------------------------------------------------

LONG = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1000, "batch_size": 500, "log_every": 1}
Point = dict[str, Any]


@pytest.fixture(scope="module")
def long_history(api: Api) -> tuple[str, list[Point]]:
    """A job with 100,000 points, and the points as they were told: random losses, some not finite."""
    dice = random.Random(3)

    def told(step: int) -> Point:
        odd = {"loss": None, "nonfinite": dice.choice(["nan", "inf", "-inf"])} if dice.random() < 0.01 else {}
        facts = {"step": step, "epoch": step // 100, "batch": step % 100, "loss": dice.expovariate(1)}
        return {**facts, **odd, "time_s": round(step / 300, 4)}

    points = [told(step) for step in range(100_000)]

    async def store_them() -> str:
        async with WorkStore.connect(api.settings.store_url) as store:
            job = await store.submit(JobSpec.model_validate(LONG))
            claim = await store.claim(job.id, worker="host:1", lease_s=3600)
            assert claim
            await store.append(claim, points, steps_done=len(points), images_per_s=1.0)
            return job.id

    return asyncio.run(store_them()), points


def from_json(answer: httpx2.Response) -> tuple[list[Point], str, bool]:
    body = answer.json()
    return body["points"], body["next"], body["has_more"]


def from_columns(answer: httpx2.Response) -> tuple[list[Point], str, bool]:
    body = answer.json()
    columns = body["points"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [_without_none(row) for row in rows], body["next"], body["has_more"]


def from_ndjson(answer: httpx2.Response) -> tuple[list[Point], str, bool]:
    return [json.loads(line) for line in answer.text.splitlines()], *_facts(answer)


def from_csv(answer: httpx2.Response) -> tuple[list[Point], str, bool]:
    points = []
    for row in csv.DictReader(io.StringIO(answer.text)):
        whole = {name: int(row[name]) for name in ("step", "epoch", "batch")}
        finite = math.isfinite(float(row["loss"]))
        loss = {"loss": float(row["loss"])} if finite else {"loss": None, "nonfinite": row["loss"]}
        points.append({**whole, **loss, "time_s": float(row["time_s"])})
    return points, *_facts(answer)


def _facts(answer: httpx2.Response) -> tuple[str, bool]:
    return answer.headers["x-next"], answer.headers["x-has-more"] == "true"


def _without_none(row: Point) -> Point:
    return {name: value for name, value in row.items() if name != "nonfinite" or value is not None}


FORMS = {
    "json": ({}, from_json),
    "columns": ({"shape": "columns"}, from_columns),
    "ndjson": ({"format": "ndjson"}, from_ndjson),
    "csv": ({"format": "csv"}, from_csv),
}


@pytest.mark.parametrize(
    ("form", "limit"), [("json", 10_000), ("json", 7_919), ("columns", 10_000), ("ndjson", 7_919), ("csv", 10_000)]
)
def test_a_history_of_100_000_points_pages_exactly(
    api: Api, long_history: tuple[str, list[Point]], form: str, limit: int
) -> None:
    job_id, told = long_history
    query, read = FORMS[form]
    found: list[Point] = []
    after, has_more = "0", True
    with httpx2.Client(base_url=api.url, timeout=40) as http:
        while has_more:
            points, after, has_more = read(losses(http, job_id, **query, limit=limit, after=after))
            assert len(points) == (limit if has_more else len(told) - len(found))
            found += points
    assert found == told
    assert after == "100000"


def test_any_cursor_limit_and_range_of_a_long_history_is_a_slice_of_it(
    api: Api, long_history: tuple[str, list[Point]]
) -> None:
    job_id, told = long_history
    dice = random.Random(4)
    with httpx2.Client(base_url=api.url, timeout=40) as http:
        for _ in range(20):
            after, limit = dice.randrange(100_001), dice.choice([1, 2, 99, 1000])
            page = losses(http, job_id, after=after, limit=limit).json()
            assert page["points"] == told[after : after + limit]
            assert (page["count"], page["next"]) == (100_000, str(min(after + limit, 100_000)))
            assert page["has_more"] == (after + limit < 100_000)
            first = dice.randrange(100_000)
            part = losses(http, job_id, from_step=first, to_step=first + limit - 1).json()
            assert part["points"] == told[first : first + limit]
        sample = losses(http, job_id, max_points=500).json()
    assert (sample["sampling"]["of"], sample["next"], sample["has_more"]) == (100_000, "100000", False)
    assert [point for point in sample["points"] if told[point["step"]] != point] == []
    finite = [point["loss"] for point in told if point["loss"] is not None]
    assert {min(finite)} <= {point["loss"] for point in sample["points"]}
