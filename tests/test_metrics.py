"""/metrics over real HTTP: right whoever did the work, cheap however many jobs there are, and as Prometheus wants it."""

import asyncio
import dataclasses
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api.app import create_app
from core.jobs.database import Database, connect
from core.jobs.job import WORKER_LOST, JobError, Status, new_job_id
from core.jobs.measures import Measures, measure
from core.jobs.sweeps import SweepStore
from core.jobs.work import WorkStore
from core.settings import Settings
from core.spec import JobSpec
from core.sweep import SweepSpec
from tests.conftest import ROOT, Server, eventually

HERE = "http://127.0.0.1"  # a Host that the API takes for its own
LONG = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
ALERTS, SCRAPING = ROOT / "deploy/prometheus/alerts.yml", ROOT / "deploy/prometheus/prometheus.yml"

Scrape = Callable[..., float]


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def families(http: httpx2.Client | TestClient) -> dict[str, Metric]:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    return {family.name: family for family in parse_text(answer.text)}


def value(http: httpx2.Client | TestClient, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    samples = (sample for family in families(http).values() for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def run_promtool(*args: str | Path, text: str = "") -> None:
    """Prometheus' own checks, where they are installed; the tests without them check the same rules in a simpler way."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH (Debian's package `prometheus` has it)")
    done = subprocess.run([promtool, *args], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


# --- what it says of the jobs -------------------------------------------------------------------------------------------


def jobs_by_status(http: httpx2.Client) -> Counter[str]:
    """Counted one by one."""
    found: Counter[str] = Counter()
    after: dict[str, str] = {}
    while True:
        page = http.get("/jobs", params={"limit": "100", **after}).json()
        found.update(job["status"] for job in page["jobs"])
        if not page["next"]:
            return found
        after = {"after": page["next"]}


def shown_by_status(http: httpx2.Client) -> Counter[str]:
    samples = families(http)["descent_jobs"].samples
    assert {sample.labels["status"] for sample in samples} == set(Status)
    return Counter({sample.labels["status"]: int(sample.value) for sample in samples if sample.value})


def totals(http: httpx2.Client) -> Counter[str]:
    found = Counter(
        submitted=int(value(http, "descent_jobs_submitted_total")),
        attempts=int(value(http, "descent_job_attempts_total")),
    )
    for status in ("succeeded", "cancelled", "failed"):
        found[status] = int(value(http, "descent_jobs_finished_total", status=status))
    return found


def test_jobs_are_counted_where_they_are_and_what_happened_to_them_is_kept(
    http: httpx2.Client, trained_job: str
) -> None:
    before = totals(http)
    assert before["succeeded"] >= 1
    running = http.post("/jobs", json=LONG).json()["id"]
    eventually(lambda: http.get(f"/jobs/{running}").json()["latest"], within_s=60, what="the first loss")
    paused, queued, gone = (http.post("/jobs", json=LONG).json()["id"] for _ in range(3))
    http.post(f"/jobs/{paused}/pause")
    http.post(f"/jobs/{gone}/cancel")
    assert shown_by_status(http) == jobs_by_status(http)
    assert value(http, "descent_jobs", status="running") == 1
    assert value(http, "descent_queue_jobs") == value(http, "descent_jobs", status="queued") == 1
    assert value(http, "descent_queue_longest_wait_seconds") > 0
    assert value(http, "descent_training_images_per_second", device="cpu") > 0
    assert (value(http, "descent_workers", device="cpu"), value(http, "descent_workers", device="gpu")) == (1, 0)

    http.delete(f"/jobs/{gone}").raise_for_status()
    for job_id in (queued, paused, running):
        http.post(f"/jobs/{job_id}/cancel")
    eventually(lambda: http.get(f"/jobs/{running}").json()["terminal"], within_s=60, what="the end of all")
    assert shown_by_status(http) == jobs_by_status(http)
    assert value(http, "descent_queue_jobs") == value(http, "descent_queue_longest_wait_seconds") == 0
    assert value(http, "descent_training_images_per_second") == 0
    assert totals(http) - before == Counter(submitted=4, attempts=1, cancelled=4)


@pytest.fixture
def with_database(redis_settings: Settings) -> Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]:
    def run(use: Callable[[Database], Coroutine[Any, Any, None]]) -> None:
        async def connected() -> None:
            async with connect(redis_settings.store_url) as database:
                await database.redis.flushall()  # jobs of other tests, and their totals
                await use(database)

        asyncio.run(connected())

    return run


WithDatabase = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]


async def submit(store: WorkStore) -> str:
    return (await store.submit(JobSpec.model_validate(LONG))).id


def standing(measures: Measures) -> dict[str, int]:
    return {status: jobs for (status,), jobs in measures.jobs.items() if jobs}


def happened(measures: Measures) -> dict[str, int]:
    named = {" ".join(labels).strip(): n for labels, n in (measures.finished | measures.retried).items()}
    return {name: times for name, times in named.items() if times}


def test_every_way_back_into_the_queue_and_every_end_has_its_count(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)
        job_id = await submit(store)
        for worker in "ab":
            claim = await store.claim(job_id, worker=worker, lease_s=30)
            assert claim
            await store.retry(job_id, claim, WORKER_LOST)
        claim = await store.claim(job_id, worker="c", lease_s=30)
        assert claim
        await store.stop(claim)
        await store.claim(job_id, worker="d", lease_s=0)
        await store.retry(job_id, None, WORKER_LOST)
        other = await submit(store)
        claim = await store.claim(other, worker="e", lease_s=30)
        assert claim
        await store.finish(claim, Status.FAILED, error=JobError(code="diverged", message="m", step=3))
        await store.resume(other)
        await store.cancel(other)
        seen = await measure(database)
        assert (seen.submitted, seen.attempts) == (2, 5)
        assert happened(seen) == {
            "trainer_died": 2, "given_back": 1, "failed worker_lost": 1, "failed diverged": 1, "cancelled": 1,
        }  # fmt: skip
        assert standing(seen) == {"failed": 1, "cancelled": 1}
        await store.resume(job_id)
        await store.claim(job_id, worker="f", lease_s=0)
        await store.retry(job_id, None, WORKER_LOST)
        assert happened(await measure(database))["lease_expired"] == 1

    with_database(use)


def test_jobs_that_come_back_from_their_files_are_counted_but_did_not_happen_again(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)
        raws = []
        for end in ("queued", "paused", "cancelled", "running", "cancelling"):
            job_id = await submit(store)
            if end in ("running", "cancelling"):
                await store.claim(job_id, worker="a", lease_s=30)
            if end == "paused":
                await store.pause(job_id)
            if end in ("cancelled", "cancelling"):
                await store.cancel(job_id)
            raws.append(await store.raw(job_id))
        await database.redis.flushall()
        for raw in raws:
            assert raw
            assert await store.restore(dataclasses.replace(raw, job_id=new_job_id()), []) == "restored"
        counts = await database.redis.hgetall(
            "descent:counts"
        )  # as the moves left them, before a scrape could mend them
        seen = await measure(database)
        assert standing(seen) == {"queued": 2, "paused": 1, "cancelled": 2}
        assert {status: int(jobs) for status, jobs in counts.items() if jobs != "0"} == standing(seen)
        assert (seen.queued, seen.submitted) == (2, 0)

    with_database(use)


@pytest.mark.parametrize("lost", ["all", "some"])
def test_a_database_of_before_there_were_counts_is_counted_once(with_database: WithDatabase, lost: str) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)
        first, second, third = [await submit(store) for _ in range(3)]
        await store.claim(second, worker="a", lease_s=30)
        waits = await database.redis.zscore("descent:waiting", first)
        await database.redis.delete("descent:counts", "descent:waiting")
        if lost == "some":  # it went on for a while before anybody asked
            await store.cancel(third)
            await store.delete(third)
            await submit(store)
        else:
            await store.cancel(third)
        seen = await measure(database)
        assert (
            standing(seen) == {"queued": 2, "running": 1}
            if lost == "some"
            else {"queued": 1, "running": 1, "cancelled": 1}
        )
        assert await database.redis.zscore("descent:waiting", first) == waits
        assert await database.redis.zcard("descent:waiting") == seen.queued
        await store.cancel(second)
        assert standing(await measure(database)).get("cancelling") == 1

    with_database(use)


def test_the_workers_that_are_alive_are_counted_by_device(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)
        for worker, device in (("a", "cpu"), ("b", "cpu"), ("c", "gpu:0"), ("d", "gpu:1")):
            await store.announce(worker, alive_s=30, info={"devices": [{"device": device}, {"device": "cpu"}]})
        await database.redis.zadd(
            "descent:workers", {"d": 1}
        )  # silent for long, and nobody has announced himself since
        assert (await measure(database)).workers == {("cpu",): 2, ("gpu",): 1}

    with_database(use)


def test_a_job_counts_as_waiting_since_it_was_queued_again(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)
        first, second = await submit(store), await submit(store)
        await store.pause(first)
        await database.redis.zincrby("descent:waiting", -60_000, second)  # a minute ago
        await store.resume(first)  # it is older, and did not wait
        assert 60 <= (await measure(database)).longest_wait_s < 120
        await store.cancel(second)
        assert (await measure(database)).longest_wait_s < 60

    with_database(use)


def test_jobs_that_their_sweep_holds_back_do_not_wait_for_a_worker(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        sweep, _ = await SweepStore(database).submit(SweepSpec(max_concurrent=2), None)
        seen = await measure(database)
        assert (seen.queued, standing(seen), seen.submitted) == (2, {"queued": 15}, 15)
        assert await database.redis.zcard("descent:waiting") == 2
        for job in sweep.job_ids[:2]:
            await WorkStore(database).cancel(job)
        assert await database.redis.zcard("descent:waiting") == 2  # the next two
        await SweepStore(database).cancel(sweep.id)
        seen = await measure(database)
        assert (seen.queued, standing(seen), seen.longest_wait_s) == (0, {"cancelled": 15}, 0)

    with_database(use)


def test_a_scrape_reads_no_more_for_many_jobs_than_for_few(with_database: WithDatabase) -> None:
    async def use(database: Database) -> None:
        store = WorkStore(database)

        async def commands() -> int:
            stats = await database.redis.info("commandstats")
            return sum(stat["calls"] for name, stat in stats.items() if name != "cmdstat_info")

        async def cost() -> int:
            before = await commands()
            await measure(database)
            return await commands() - before

        await submit(store)
        few = await cost()
        for _ in range(100):
            await submit(store)
        assert await cost() == few

    with_database(use)


# --- what it says of the process ----------------------------------------------------------------------------------------


def test_requests_are_counted_by_route_and_never_by_what_a_client_wrote(http: httpx2.Client, trained_job: str) -> None:
    def requests(method: str, route: str, status: str) -> float:
        return value(http, "descent_http_requests_total", method=method, route=route, status=status)

    asked = [
        ("GET", f"/jobs/{trained_job}/loss", "/jobs/{job_id}/loss", "2xx"),
        ("GET", "/jobs/job_" + "f" * 32, "/jobs/{job_id}", "4xx"),
        ("PUT", "/predict", "/predict", "4xx"),
        ("POST", "/jobs", "/jobs", "4xx"),
        ("GET", "/version", "/version", "2xx"),
        ("GET", "/openapi.json", "other", "2xx"),
        ("GET", "/metrics", "/metrics", "2xx"),
        ("GET", "/zebra/crossing", "other", "4xx"),
        ("GET", "/jobs/zebra/zebra", "other", "4xx"),
        ("PROPFIND", "/jobs", "/jobs", "4xx"),
    ]
    series = [("other" if method == "PROPFIND" else method, route, status) for method, _, route, status in asked]
    before = {labels: requests(*labels) for labels in series}
    timed = value(http, "descent_http_request_duration_seconds_count", route="/jobs/{job_id}/loss")
    for method, path, _, _ in asked:
        http.request(method, path)
    for labels in set(series) - {("GET", "/metrics", "2xx")}:
        assert requests(*labels) - before[labels] == series.count(labels), labels
    assert requests("GET", "/metrics", "2xx") > before["GET", "/metrics", "2xx"]
    assert value(http, "descent_http_request_duration_seconds_count", route="/jobs/{job_id}/loss") == timed + 1
    text = http.get("/metrics").text
    assert "zebra" not in text.lower()
    assert trained_job not in text


def test_every_route_has_its_template_for_a_label(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in paths:
        http.request("OPTIONS", re.sub(r"{\w+}", "x", path))
    samples = families(http)["descent_http_requests"].samples
    assert set(paths) <= {sample.labels["route"] for sample in samples if sample.labels["method"] == "OPTIONS"}


def test_an_event_stream_is_timed_until_it_begins_and_in_progress_until_it_ends(http: httpx2.Client) -> None:
    job_id = http.post("/jobs", json=LONG).json()["id"]
    timed = value(http, "descent_http_request_duration_seconds_count", route="/jobs/{job_id}/events")
    with http.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert value(http, "descent_http_request_duration_seconds_count", route="/jobs/{job_id}/events") == timed + 1
        assert value(http, "descent_http_requests_in_progress") == 2
        http.post(f"/jobs/{job_id}/cancel")
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["terminal"], within_s=60, what="its end")
    eventually(lambda: value(http, "descent_http_requests_in_progress") == 1, what="the end of the stream")


def test_an_error_that_nobody_foresaw_is_counted_too() -> None:
    app = create_app(Settings(redis_url="unix:///nowhere/redis.sock"))

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError

    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as http:
        assert http.get("/bug").status_code == 500
        assert value(http, "descent_http_requests_total", route="/bug", status="5xx") == 1


def test_predictions_are_timed_and_their_images_counted(http: httpx2.Client, trained_job: str) -> None:
    names = ("descent_predict_duration_seconds_count", "descent_predict_images_total")
    before = [value(http, name) for name in names]
    http.post("/predict", json={"model": trained_job, "images": [[0.0] * 784] * 3}).raise_for_status()
    assert http.post("/predict", json={"model": trained_job, "images": []}).status_code == 422
    assert [value(http, name) - then for name, then in zip(names, before, strict=True)] == [1, 3]


def test_two_applications_in_one_process_do_not_share_their_numbers() -> None:
    settings = Settings(redis_url="unix:///nowhere/redis.sock")
    with TestClient(create_app(settings), base_url=HERE) as one, TestClient(create_app(settings), base_url=HERE) as two:
        one.get("/healthz")
        assert value(one, "descent_http_requests_total", route="/healthz") == 1
        assert value(two, "descent_http_requests_total", route="/healthz") == 0


# --- without Redis ------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("store", ["away", "silent"])
def test_without_redis_a_scrape_still_tells_of_the_process(request: pytest.FixtureRequest, store: str) -> None:
    url = "unix:///nowhere/redis.sock" if store == "away" else request.getfixturevalue("silent")
    with TestClient(create_app(Settings(redis_url=url)), base_url=HERE) as http:
        http.get("/healthz")
        there = families(http)
    assert [sample.value for sample in there["descent_store_up"].samples] == [0]
    assert {"descent_build", "descent_http_requests", "process_resident_memory_bytes"} <= {
        name.removesuffix("_info") for name in there
    }
    assert not [name for name in there if name.startswith(("descent_job", "descent_queue", "descent_worker"))]


# --- its form -----------------------------------------------------------------------------------------------------------


def test_promtool_finds_nothing_to_say(http: httpx2.Client, trained_job: str) -> None:
    run_promtool("check", "metrics", text=http.get("/metrics").text)


def test_names_and_texts_follow_the_conventions(http: httpx2.Client, trained_job: str) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = families(http)
    assert len(answer.text) < 200_000
    for name, family in found.items():
        assert re.fullmatch("(descent|process|python)_[a-z_]+[a-z]", name)
        assert family.type in ("gauge", "counter", "histogram")
        assert family.documentation.strip()
        assert not re.search("_(ms|msec|sec|min|kb|mb|percent|number|count|sum|bucket|gauge|counter|created)$", name)
        assert {sample.name.endswith("_total") for sample in family.samples} == {family.type == "counter"}
        if family.type == "histogram":
            assert name.endswith("_seconds")


def openmetrics(text: str) -> Iterator[Metric]:
    """Raises for what is not as it should be."""
    yield from parse_openmetrics(text)  # type: ignore[no-untyped-call]


def test_a_scraper_that_accepts_openmetrics_gets_it(http: httpx2.Client, trained_job: str) -> None:
    answer = http.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    strict = {family.name: family for family in openmetrics(answer.text)}
    assert strict["descent_build"].type == "info"
    plain = families(http)
    assert {name.removesuffix("_info") for name in plain} == {name.removesuffix("_info") for name in strict}


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/openmetrics-text; version=zebra", "application/openmetrics-text"),
        ("application/openmetrics-text; version=99.0.0; escaping=zebra", "application/openmetrics-text"),
        ("APPLICATION/OpenMetrics-Text", "application/openmetrics-text"),
        ("text/plain; version=1.zebra.0", "text/plain"),
        ("zebra", "text/plain"),
        (";,;=,", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_whatever_is_accepted_gets_an_answer(http: httpx2.Client, accept: str, media_type: str) -> None:
    answer = http.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert "zebra" not in answer.headers["content-type"]


# --- what stands on it --------------------------------------------------------------------------------------------------


def test_the_operations_page_has_every_metric_as_it_is(http: httpx2.Client, trained_job: str) -> None:
    http.post("/predict", json={"model": trained_job, "image": [0.0] * 784})
    rows = []
    for family in families(http).values():
        if family.name.startswith("descent_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    page = (ROOT / "docs/operations.md").read_text()
    assert re.findall(r"^\| `descent_.*$", page, re.MULTILINE) == rows


def test_the_alerts_and_the_page_speak_of_metrics_that_exist(http: httpx2.Client) -> None:
    there = {sample.name for family in families(http).values() for sample in family.samples}
    for path in (ALERTS, ROOT / "docs/operations.md"):
        used = set(re.findall(r"\bdescent_\w+", path.read_text()))
        assert used - {family.removesuffix("_count") for family in there} <= there


def test_promtool_accepts_the_configuration_and_the_alerts() -> None:
    run_promtool("check", "config", SCRAPING)
    run_promtool("check", "rules", ALERTS)


FIRES = {  # alert -> series at one sample a minute, for half an hour, in which it fires at the end
    "DescentDown": {'up{job="descent"}': "0x30"},
    "DescentStoreDown": {"descent_store_up": "1 0x30"},
    "DescentNoWorker": {'descent_workers{device="cpu"}': "1x10 0x20"},
    "DescentQueueWaits": {"descent_queue_longest_wait_seconds": "0+60x30"},
    "DescentJobsStuck": {"descent_queue_stuck_jobs": "0x10 2x20"},
    "DescentJobsFail": {'descent_jobs_finished_total{status="failed", code="internal"}': "0x25 1x5"},
    "DescentTrainersDie": {'descent_job_retries_total{reason="trainer_died"}': "0x20 0+1x10"},
    "DescentServerErrors": {
        'descent_http_requests_total{status="2xx"}': "0+98x30", 'descent_http_requests_total{status="5xx"}': "0+2x30",
    },
    "DescentStoreNearlyFull": {"descent_store_memory_bytes": "75x30", "descent_store_memory_limit_bytes": "100x30"},
}  # fmt: skip
CALM = {
    'up{job="descent"}': "1x30", "descent_store_up": "1x30", 'descent_workers{device="gpu"}': "0x30",
    'descent_workers{device="cpu"}': "1x30", "descent_queue_longest_wait_seconds": "0+10x30",
    'descent_jobs_finished_total{status="failed", code="diverged"}': "0+1x30",
    "descent_queue_stuck_jobs": "0x20 2x5 0x5",
    'descent_job_retries_total{reason="given_back"}': "0+1x30", 'descent_http_requests_total{status="4xx"}': "0+9x30",
    'descent_http_requests_total{status="5xx"}': "3x30", "descent_store_memory_bytes": "60x30",
    "descent_store_memory_limit_bytes": "100x30",
}  # fmt: skip


def test_each_alert_has_a_story_in_which_it_fires() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == list(FIRES)
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_the_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    count = "count by (alertname) (ALERTS{alertstate='firing'})"
    stories: dict[str, dict[str, str]] = {**FIRES, "": CALM}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": count,
                    "eval_time": "30m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
                }
            ],
        }
        for alert, series in stories.items()
    ]
    story = tmp_path / "stories.yml"
    story.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    run_promtool("test", "rules", story)
