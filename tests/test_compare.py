"""Jobs beside each other, over real HTTP: the curves, the table, the best, and whether it is noise. The histories were real."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
import uvicorn

from api.app import create_app
from api.compare import Table, table_of
from bench.verdicts import CURVES
from core.configurations import labelled
from core.jobs.job import JobError, Status
from core.jobs.work import WorkStore
from core.settings import Settings
from core.spec import JobSpec
from tests.conftest import WithStore, eventually, redis_running
from tests.test_api import is_problem

FILES = {name: {"path": "p", "sha256": "0" * 64, "size_bytes": 1} for name in ("pdparams", "safetensors")}
RUNS = {(run["optimizer"], run["rate"], run["seed"]): run for run in json.loads(CURVES.read_text())}
RATE = {"schedule": "step_decay", "initial": 0.1, "step_size": 1, "gamma": 0.5}

Http = httpx2.Client


@pytest.fixture(scope="module")
def redis_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server of its own: the jobs here stay, and nobody else is to see them."""
    with redis_running(tmp_path_factory.mktemp("home")) as settings:
        yield settings


@pytest.fixture(scope="module")
def http(redis_settings: Settings) -> Iterator[Http]:
    """The API alone, on a free port: nobody trains what is submitted."""
    server = uvicorn.Server(uvicorn.Config(create_app(redis_settings), port=0, loop="asyncio", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, what="the API")
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        yield http
    server.should_exit = True
    thread.join()


async def made(
    store: WorkStore, optimizer: str, rate: float, seed: int, *, end: Status | None = Status.SUCCEEDED, **fields: Any
) -> str:
    """A job that tells what the recorded run told, and then ends so, or goes on."""
    run = RUNS[optimizer, rate, seed]
    spec = {"optimizer": optimizer, "learning_rate": rate, "seed": seed, "epochs": 2, **fields}
    job = await store.submit(JobSpec.model_validate(spec))
    claim = await store.claim(job.id, worker=f"w-{job.id}", lease_s=600)
    assert claim
    steps = [*range(0, 1000, 10), 999]
    points = [
        {"step": step, "epoch": step // 500, "batch": step % 500, "loss": loss, "time_s": step / 100}
        for step, loss in zip(steps, run["losses"], strict=True)
    ]
    await store.append(claim, points, steps_done=1000, images_per_s=10_000)
    for number, epoch in enumerate(run["epochs"]):
        facts = {"learning_rate": rate, "images_per_s": 10_000.0, "seconds": 5.0}
        await store.end_epoch(claim, {"epoch": number, "train_loss": 0.5} | epoch | facts)
    if end is Status.SUCCEEDED:
        result = {"test_accuracy": run["test_accuracy"], "final_loss": run["losses"][-1]}
        await store.finish(claim, end, result=result, files=FILES)
    elif end is Status.FAILED:
        await store.finish(claim, end, error=JobError(code="diverged", message="it blew up", step=999))
    return job.id


@pytest.fixture(scope="module")
def lesson(redis_settings: Settings) -> list[str]:
    """Three configurations with two seeds each, as they really went."""

    async def make() -> list[str]:
        async with WorkStore.connect(redis_settings.store_url) as store:
            chosen = (("momentum", 0.01), ("sgd", 0.001), ("sgd", 0.1))
            return [await made(store, *each, seed) for each in chosen for seed in (0, 1)]

    return asyncio.run(make())


def compared(http: Http, jobs: Sequence[str], **query: str | float) -> Any:
    answer = http.get("/compare", params={"jobs": ",".join(jobs), **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def accuracies(optimizer: str, rate: float) -> list[float]:
    return [RUNS[optimizer, rate, seed]["test_accuracy"] for seed in (0, 1)]


def test_runs_are_grouped_by_configuration_with_mean_and_range_over_seeds(http: Http, lesson: list[str]) -> None:
    table = compared(http, lesson)["table"]
    means = {(o, r): sum(accuracies(o, r)) / 2 for o, r in (("momentum", 0.01), ("sgd", 0.001), ("sgd", 0.1))}
    in_order = sorted(means, key=lambda key: -means[key])
    assert [row["label"] for row in table["rows"]] == [f"{optimizer} {rate}" for optimizer, rate in in_order]
    for row, key in zip(table["rows"], in_order, strict=True):
        least, most = min(accuracies(*key)), max(accuracies(*key))
        assert row["test_accuracy"] == {"n": 2, "mean": pytest.approx(means[key]), "min": least, "max": most}
        assert row["seeds"] == [0, 1]
    by_label = {row["label"]: row for row in table["rows"]}
    assert by_label["momentum 0.01"]["job_ids"] == lesson[:2]
    assert by_label["momentum 0.01"]["verdicts"] == {"good": 2}
    assert by_label["sgd 0.001"]["verdicts"] == {"too_slow": 2}
    assert [run["job_id"] for run in table["runs"]] == lesson
    assert (table["best"]["label"], table["best"]["test_accuracy"]) == (
        table["rows"][0]["label"], pytest.approx(max(means.values())),
    )  # fmt: skip
    best = max(by_label[table["best"]["label"]]["job_ids"], key=lambda id: _accuracy(table, id))
    assert table["best"]["job_id"] == best


def _accuracy(table: Any, job_id: str) -> float:
    return float(next(run["test_accuracy"] for run in table["runs"] if run["job_id"] == job_id))


def test_each_run_says_when_it_reached_the_target_and_why_it_is_judged_so(http: Http, lesson: list[str]) -> None:
    for target in (0.97, 0.98, 0.5):
        table = compared(http, lesson, target_accuracy=target)["table"]
        assert table["target_accuracy"] == target
        for run in table["runs"]:
            epochs = RUNS[run["optimizer"], run["learning_rate"], run["seed"]]["epochs"]
            at = next((n for n, epoch in enumerate(epochs, 1) if epoch["valid_accuracy"] >= target), None)
            expected = (at * 500, at * 5.0) if at else (None, None)
            assert (run["steps_to_target"], run["seconds_to_target"]) == expected
            assert run["valid_accuracy"] == epochs[-1]["valid_accuracy"]
        for row in table["rows"]:
            steps = [run["steps_to_target"] for run in table["runs"] if run["label"] == row["label"]]
            assert row["reached"] == sum(step is not None for step in steps)
            assert (row["steps_to_target"] is None) == (row["reached"] == 0)
    verdict = table["runs"][0]["verdict"]
    assert set(verdict) == {"outcome", "rule", "numbers", "en", "zh"}
    assert f"{verdict['numbers']['level']:.3f}" in verdict["en"]


def test_the_best_two_are_told_apart_only_when_they_can_be(http: Http, lesson: list[str]) -> None:
    noise = compared(http, lesson)["table"]["noise"]
    best, second = accuracies("momentum", 0.01), accuracies("sgd", 0.1)
    assert {noise["best"], noise["second"]} == {"momentum 0.01", "sgd 0.1"}
    assert noise["rule"] == "ranges_over_seeds"
    assert noise["within_noise"] == (min(best) <= max(second) and min(second) <= max(best))
    one_seed = compared(http, [lesson[0], lesson[2]])["table"]["noise"]
    assert (one_seed["rule"], one_seed["within_noise"], one_seed["second"]) == ("binomial_error", False, "sgd 0.001")
    assert compared(http, lesson[:2])["table"]["noise"] is None


def test_the_same_seed_again_tells_nothing_new(http: Http, with_store: WithStore[Any]) -> None:
    """Equal trainings have equal results: a range over them has no width, and would tell any two configurations apart."""

    async def use(store: WorkStore) -> list[str]:
        return [await made(store, "momentum", rate, 0) for rate in (0.1, 0.1, 0.01, 0.01)]

    table = compared(http, with_store(use))["table"]
    assert table["noise"]["rule"] == "binomial_error"
    assert [row["test_accuracy"]["n"] for row in table["rows"]] == [1, 1]
    assert [len(row["job_ids"]) for row in table["rows"]] == [2, 2]


def test_a_job_that_is_trained_further_has_no_result_of_its_own_yet(http: Http, with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> str:
        job_id = await made(store, "momentum", 0.01, 0)
        await store.extend(job_id, 1)
        return job_id

    (row,) = compared(http, [with_store(use)])["table"]["runs"]
    assert (row["status"], row["test_accuracy"]) == ("queued", None)


def test_curves_stand_over_the_axis_that_was_asked_for(http: Http, lesson: list[str]) -> None:
    job_id = lesson[0]
    points = http.get(f"/jobs/{job_id}/loss").json()["points"]
    by_axis = {axis: compared(http, [job_id], x=axis)["curves"][0] for axis in ("step", "epoch", "time")}
    assert compared(http, [job_id])["curves"][0] == by_axis["step"]
    assert by_axis["step"]["x"] == [point["step"] for point in points]
    assert by_axis["epoch"]["x"] == pytest.approx([point["step"] / 500 for point in points])
    assert by_axis["time"]["x"] == [point["time_s"] for point in points]
    ends = {"step": [500, 1000], "epoch": [1, 2], "time": [5, 10]}
    for axis, curve in by_axis.items():
        assert curve["loss"] == [point["loss"] for point in points]
        assert (curve["count"], curve["sampling"], curve["terminal"]) == (101, None, True)
        assert curve["epochs"]["x"] == ends[axis]
        recorded = RUNS["momentum", 0.01, 0]["epochs"]
        assert curve["epochs"]["valid_accuracy"] == [epoch["valid_accuracy"] for epoch in recorded]
        assert curve["epochs"]["valid_loss"] == [epoch["valid_loss"] for epoch in recorded]


def test_a_sampled_curve_is_the_same_as_the_histories_own_sample(http: Http, lesson: list[str]) -> None:
    few = http.get(f"/jobs/{lesson[0]}/loss?max_points=20").json()
    (curve,) = compared(http, lesson[:1], max_points=20)["curves"]
    assert curve["loss"] == [point["loss"] for point in few["points"]]
    assert curve["x"] == [point["step"] for point in few["points"]]
    assert curve["sampling"] == few["sampling"]
    assert compared(http, lesson[:1])["curves"][0]["sampling"] is None  # also after the sample was made


def test_runs_on_several_data_sets_have_no_best(http: Http, lesson: list[str], with_store: WithStore[Any]) -> None:
    other = with_store(lambda store: made(store, "momentum", 0.01, 0, dataset="fashion-mnist"))
    table = compared(http, [*lesson, other])["table"]
    assert (table["best"], table["noise"]) == (None, None)
    labels = {run["label"] for run in table["runs"] if run["job_id"] in (lesson[0], other)}
    assert labels == {'momentum 0.01, dataset="mnist"', 'momentum 0.01, dataset="fashion-mnist"'}


def test_jobs_that_run_failed_or_wait_are_shown_as_they_are(http: Http, with_store: WithStore[Any]) -> None:
    async def scenario(store: WorkStore) -> list[str]:
        running = await made(store, "adam", 0.001, 0, end=None)
        stuck = await made(store, "sgd", 1.0, 0, end=None)
        failed = await made(store, "sgd", 1.0, 1, end=Status.FAILED)
        queued = await store.submit(JobSpec.model_validate({"optimizer": "sgd", "learning_rate": RATE}))
        return [running, stuck, failed, queued.id]

    jobs = with_store(scenario)
    answer = compared(http, jobs)
    runs = answer["table"]["runs"]
    assert [run["status"] for run in runs] == ["running", "running", "failed", "queued"]
    verdicts = [(run["verdict"]["outcome"], run["verdict"]["rule"]) if run["verdict"] else None for run in runs]
    assert verdicts == [None, ("diverged", "stuck"), ("diverged", "blown_up"), None]
    assert [run["final_loss"] for run in runs[:2]] == [
        RUNS["adam", 0.001, 0]["losses"][-1], RUNS["sgd", 1.0, 0]["losses"][-1],
    ]  # fmt: skip
    assert (runs[3]["final_loss"], runs[3]["valid_accuracy"], runs[3]["learning_rate"]["schedule"]) == (
        None, None, "step_decay",
    )  # fmt: skip
    assert [curve["count"] for curve in answer["curves"]] == [101, 101, 101, 0]
    assert [row["label"] for row in answer["table"]["rows"]] == ["adam 0.001", "sgd 1.0", "sgd 0.1 step_decay"]
    assert (answer["table"]["best"], answer["table"]["noise"]) == (None, None)


def test_an_unchanged_comparison_is_not_sent_again(http: Http, lesson: list[str], with_store: WithStore[Any]) -> None:
    running = with_store(lambda store: made(store, "adam", 0.001, 1, end=None))
    query = {"jobs": f"{lesson[0]},{running}"}
    etag = http.get("/compare", params=query).headers["etag"]
    again = http.get("/compare", params=query, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/compare", params=query | {"x": "time"}, headers={"If-None-Match": etag}).status_code == 200
    assert http.post(f"/jobs/{running}/cancel").status_code == 202
    changed = http.get("/compare", params=query, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["curves"][1]["status"]) == (200, "cancelling")


def test_ended_jobs_are_read_once_however_often_they_are_compared(
    http: Http, lesson: list[str], redis_settings: Settings
) -> None:
    from redis import Redis

    redis = Redis.from_url(redis_settings.store_url)
    calls = []
    for _ in range(3):
        before = redis.info("commandstats")["cmdstat_lrange"]["calls"]
        compared(http, lesson, max_points=33)
        calls.append(redis.info("commandstats")["cmdstat_lrange"]["calls"] - before)
    redis.close()
    assert calls == [3 * len(lesson), 2 * len(lesson), 2 * len(lesson)]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({}, "?jobs"),
        ({"jobs": "A,A"}, "?jobs"),
        ({"jobs": ",".join(f"job_{n:032x}" for n in range(51))}, "?jobs"),
        ({"jobs": "x" * 3000}, "?jobs"),
        ({"jobs": "A", "x": "steps"}, "?x"),
        ({"jobs": "A", "max_points": "3"}, "?max_points"),
        ({"jobs": "A", "max_points": "1000000"}, "?max_points"),
        ({"jobs": "A", "target_accuracy": "0"}, "?target_accuracy"),
        ({"jobs": "A", "target_accuracy": "nan"}, "?target_accuracy"),
        ({"jobs": "A", "target_accuracy": "97"}, "?target_accuracy"),
        ({"jobs": "A", "target": "0.9"}, "?target"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    http: Http, lesson: list[str], query: dict[str, str], pointer: str
) -> None:
    query = {name: value.replace("A", lesson[0]) for name, value in query.items()}
    problem = is_problem(http.get("/compare", params=query), 422, "validation-error")
    assert [field["pointer"] for field in problem["errors"]] == [pointer]


def test_a_job_that_is_not_there_is_named_by_its_place(http: Http, lesson: list[str]) -> None:
    for missing in (f"job_{'0' * 32}", "", "job_x", "../../etc", "é"):
        problem = is_problem(http.get("/compare", params={"jobs": f"{lesson[0]},{missing}"}), 404, "not-found")
        assert problem["detail"] == "no such job: number 2 of ?jobs"


def test_a_table_of_hundreds_of_jobs_leaves_out_those_that_are_gone(with_store: WithStore[Any]) -> None:
    async def scenario(store: WorkStore) -> tuple[list[str], Table]:
        rates = [n / 10_000 for n in range(1, 126)]
        specs = [{"optimizer": "sgd", "learning_rate": rate, "seed": seed} for rate in rates for seed in (0, 1)]
        jobs = [(await store.submit(JobSpec.model_validate(spec))).id for spec in specs]
        for job_id in (jobs[0], jobs[1], jobs[7]):
            await store.cancel(job_id)
            await store.delete(job_id)
        return jobs, await table_of(store, await store.outlines(jobs), target_accuracy=0.9)

    jobs, table = with_store(scenario)
    assert [run.job_id for run in table.runs] == [*jobs[2:7], *jobs[8:]]
    assert len(table.rows) == 124
    assert [len(row.seeds) for row in table.rows] == [2, 2, 1] + [2] * 121
    assert (table.best, table.noise, table.target_accuracy) == (None, None, 0.9)


def test_no_jobs_make_an_empty_table(with_store: WithStore[Any]) -> None:
    table = with_store(lambda store: table_of(store, [], target_accuracy=0.9))
    assert (table.rows, table.runs, table.best, table.noise) == ([], [], None, None)


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"optimizer": "momentum", "learning_rate": 0.01} | fields)


def test_a_label_names_what_differs_and_nothing_else() -> None:
    same = [spec(), spec(seed=1), spec(name="x"), spec(tags={"a": "b"}, device="cpu", log_every=1, max_runtime_s=60)]
    assert labelled(same) == ["momentum 0.01"] * 4
    assert labelled([spec(), spec(batch_size=50)]) == ["momentum 0.01, batch_size=100", "momentum 0.01, batch_size=50"]
    nesterov = spec(optimizer={"name": "momentum", "use_nesterov": True})
    assert labelled([spec(learning_rate=0.1), spec(), nesterov]) == [
        "momentum 0.1",
        "momentum 0.01, optimizer.use_nesterov=false",
        "momentum 0.01, optimizer.use_nesterov=true",
    ]
    clipped = spec(grad_clip={"type": "norm", "clip_norm": 1.0})
    assert len(set(labelled([spec(), clipped]))) == 2
    rates = [{**RATE, "gamma": gamma} for gamma in (0.5, 0.1)]
    assert labelled([spec(learning_rate=rate) for rate in rates]) == [
        "momentum 0.1 step_decay, learning_rate.gamma=0.5",
        "momentum 0.1 step_decay, learning_rate.gamma=0.1",
    ]
    peak = {"schedule": "one_cycle", "max_learning_rate": 0.5, "total_steps": 5000}
    assert labelled([spec(learning_rate=peak)]) == ["momentum 0.5 one_cycle"]
    assert labelled([spec(learning_rate={"schedule": "range_test", "end": 5.0})]) == ["momentum 5.0 range_test"]
    assert labelled([]) == []
