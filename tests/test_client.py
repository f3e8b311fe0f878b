"""The Python client against real servers, and what it makes of lost answers, cut connections and servers that are busy.

Each story is told twice: by the client that blocks, and by the one for event loops.
"""

import asyncio
import hashlib
import inspect
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import httpx2
import numpy as np
import pytest

from client import answers, errors
from client.client import (
    ApiError,
    AsyncClient,
    Busy,
    Client,
    ClientError,
    Conflict,
    Corrupt,
    EpochEnded,
    Invalid,
    JobFailed,
    NotFound,
    Points,
    StatusChanged,
    Unreachable,
    WaitTimeout,
)
from client.client import __doc__ as client_doc
from core.jobs.job import Status
from core.jobs.work import WorkStore
from core.spec import JobSpec
from core.training.datasets import Dataset
from tests.conftest import ROOT, Server
from tests.redrawn import dark_on_light, png
from tests.staged import Api, ended
from tests.stumbling import LOST, SMOOTH, Stumble, Stumbling

ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.001}
MISSING = "job_" + "0" * 32


class Looped:
    """An asynchronous client, or what came of it, used as if it blocked: so one story serves both clients."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.ismethod(found):
            return self._told(found)
        return lambda *words, **named: self._told(found(*map(plain, words), **{k: plain(v) for k, v in named.items()}))

    def _told(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            value = self._runner.run(value)
        if inspect.isasyncgen(value):
            return self._items(value)
        return Looped(value, self._runner) if type(value).__module__ == "client.asynchronous" else value

    def _items(self, found: Any) -> Iterator[Any]:
        while (item := self._runner.run(anext(found, None))) is not None:
            yield self._told(item)


def plain(value: Any) -> Any:
    return value._target if isinstance(value, Looped) else value


@pytest.fixture(scope="module")
def stumbling(api: Api) -> Iterator[Stumbling]:
    """In front of an API without a worker."""
    with Stumbling(api.url) as front:
        yield front


@pytest.fixture(params=["blocking", "in a loop"])
def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes clients of one kind; all are closed afterwards."""
    with asyncio.Runner() as runner:
        made: list[Any] = []

        def client(*words: Any, **options: Any) -> Any:
            is_blocking = request.param == "blocking"
            made.append(Client(*words, **options) if is_blocking else Looped(AsyncClient(*words, **options), runner))
            return made[-1]

        yield client
        for each in made:
            each.close()


@pytest.fixture
def client(make: Any, stumbling: Stumbling) -> Any:
    """Of the stumbling server."""
    stumbling.sees()
    return make(stumbling.url)


@pytest.fixture(scope="module")
def whole_job(api: Api) -> str:
    """A job that has ended with 250 loss points and five epochs."""

    async def end() -> str:
        async with WorkStore.connect(api.settings.store_url) as store:
            return await ended(store, api.settings, JobSpec.model_validate({**ADAM, "epochs": 5}))

    return asyncio.run(end())


def count(client: Any) -> int:
    return len(list(client.jobs.list()))


# --- a job, as a user sees it ------------------------------------------------------------------------------------------


def test_a_job_is_submitted_watched_downloaded_and_asked(
    make: Any, server: Server, tmp_path: Path, mnist: Dataset
) -> None:
    client = make(server.url)
    job = client.jobs.submit(optimizer="sgd", learning_rate=0.1, epochs=1, batch_size=10_000, log_every=2)
    assert (job.terminal, job.spec["batch_size"], job.spec["dataset"]) == (False, 10_000, "mnist")
    seen = list(job.stream(120))
    assert [event.status for event in seen if isinstance(event, StatusChanged)] == ["queued", "running", "succeeded"]
    assert [event.metrics for event in seen if isinstance(event, EpochEnded)] == job.metrics()
    points = [point for event in seen if isinstance(event, Points) for point in event.points]
    assert points == job.loss().points
    assert [point["step"] for point in points] == [0, 2, 4]
    assert (job.status, job.wait(1).terminal) == ("succeeded", True)  # it knows without being asked
    assert [entry["type"] for entry in job.events()] == ["status", "status", "epoch", "status"]
    assert job.checkpoints()[0]["step"] == 5
    file = job.download(tmp_path, format="safetensors")
    assert file == tmp_path / f"{job.id}.safetensors"
    assert file.read_bytes() == job.model(format="safetensors")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == job.data["model"]["sha256"]
    image = tmp_path / "seven.png"
    image.write_bytes(png(dark_on_light(mnist.test.images[0])))
    (by_path,) = client.predict(str(image), model=job, debug=True)["predictions"]
    by_bytes, blank = client.predict([image.read_bytes(), [0.0] * 784], model=job.id, debug=True)["predictions"]
    assert by_path["seen"] == by_bytes["seen"] != blank["seen"]
    row = [0.0] * 28
    for alone in (np.zeros((28, 28)), np.zeros(784), [0.0] * 784, [row] * 28):  # an image needs no list around it
        assert [one["seen"] for one in client.predict(alone, model=job, debug=True)["predictions"]] == [blank["seen"]]
    assert len(client.predict(np.zeros((2, 28, 28)), model=job)["predictions"]) == 2
    assert job.evaluation(examples=1)["accuracy"] == job.data["result"]["test_accuracy"]
    told = [event.job_id for event in client.stream([job]) if isinstance(event, StatusChanged)]
    assert told == [job.id] * 3


# --- what needs no training --------------------------------------------------------------------------------------------


def test_a_sweep_is_submitted_cancelled_and_compared(client: Any, api: Api) -> None:
    spec: dict[str, Any] = {"optimizers": ["sgd"], "learning_rates": [0.1, 0.01], "epochs": 1, "batch_size": 10_000}
    assert client.sweeps.preview(**spec)["total_steps"] == 10
    sweep = client.sweeps.submit(**spec)
    assert (sweep.status, next(iter(client.sweeps.list(limit=1))).id) == ("queued", sweep.id)
    assert sweep.cancel().wait(10).status == "cancelled"
    jobs = list(sweep.jobs())
    assert {job.id for job in jobs} == {job["job_id"] for job in sweep.data["jobs"]}
    assert len(client.compare([*jobs, api.jobs[Status.SUCCEEDED]], x="epoch")["curves"]) == 3
    assert {row["label"] for row in sweep.table()["rows"]} == {"sgd 0.1", "sgd 0.01"}
    client.sweeps.get(sweep.id).delete()
    with pytest.raises(NotFound):
        sweep.refresh()


def test_a_range_test_is_a_job_with_a_suggestion(client: Any) -> None:
    found = client.rate_range(optimizer="sgd", batch_size=500)
    assert (found.suggestion["outcome"], found.suggestion["rate"]) == ("unfinished", None)
    assert client.rate_ranges.get(found.id).data["curve"] == found.data["curve"]
    assert found.job().spec["learning_rate"]["schedule"] == "range_test"
    assert found.cancel().status == "cancelled"
    with pytest.raises(JobFailed, match="was cancelled"):
        found.wait(5)


def test_models_are_named_listed_and_unnamed(client: Any, api: Api) -> None:
    job = client.jobs.get(api.jobs[Status.SUCCEEDED])
    assert client.models.name("mine", job)["job_id"] == client.models.aliases()["mine"] == job.id
    assert client.models.get("mine")["sha256"] == job.data["model"]["sha256"]
    assert job.id in [model["job_id"] for model in client.models.list(dataset="mnist")]
    with pytest.raises(Conflict, match="alias"):
        job.delete()
    client.models.unname("mine")
    with pytest.raises(NotFound):
        client.models.get("mine")


def test_what_can_be_chosen_and_how_the_server_is(client: Any) -> None:
    assert "adam" in [choice["name"] for choice in client.optimizers()["optimizers"]]
    assert [data["name"] for data in client.datasets()] == ["mnist", "fashion-mnist"]
    assert client.version().startswith("0.")
    assert client.ready()["checks"]["redis"]["ok"]
    assert client.jobs.preview(**ADAM)["total_steps"] == 2500


def test_the_blocking_client_works_where_a_loop_runs_already(api: Api, whole_job: str) -> None:
    """As in a notebook."""

    async def cell() -> list[Any]:
        with Client(api.url) as client:
            return [type(event) for event in client.jobs.get(whole_job).stream(60)]

    assert asyncio.run(cell()).count(EpochEnded) == 5


# --- lost answers ------------------------------------------------------------------------------------------------------


def test_a_submit_whose_answer_is_lost_makes_one_job(client: Any, stumbling: Stumbling) -> None:
    before = count(client)
    stumbling.sees(LOST, Stumble(status=503), SMOOTH)
    job = client.jobs.submit(**ADAM)
    assert len({seen.headers["idempotency-key"] for seen in stumbling.seen}) == 1
    assert stumbling.asked == ["POST /jobs"] * 3
    assert count(client) == before + 1
    assert next(iter(client.jobs.list(limit=1))).id == job.id


def test_two_submits_are_two_jobs_and_one_key_is_one(client: Any, stumbling: Stumbling) -> None:
    assert client.jobs.submit(**ADAM).id != client.jobs.submit(**ADAM).id
    one, again = (client.jobs.submit(**ADAM, idempotency_key=f"of-{id(client)}") for _ in range(2))
    assert one.id == again.id


def test_sweeps_and_range_tests_whose_answer_is_lost_are_one(client: Any, stumbling: Stumbling) -> None:
    before = count(client)
    stumbling.sees(LOST)
    client.sweeps.submit(optimizers=["sgd"], learning_rates=[0.1], epochs=1)
    stumbling.sees(LOST)
    client.rate_range(optimizer="sgd")
    assert count(client) == before + 2


def test_a_delete_whose_answer_is_lost_has_deleted(client: Any, stumbling: Stumbling) -> None:
    job = client.jobs.submit(**ADAM).cancel()
    stumbling.sees(LOST)
    job.delete()
    assert stumbling.asked == [f"DELETE /jobs/{job.id}"] * 2
    with pytest.raises(NotFound):
        job.delete()


def test_what_would_be_done_twice_is_not_sent_again(client: Any, stumbling: Stumbling) -> None:
    job = client.jobs.submit(**ADAM).cancel()
    stumbling.sees(LOST)
    with pytest.raises(Unreachable, match="no answer"):
        job.resume(epochs=1)
    stumbling.sees(Stumble(status=503))
    with pytest.raises(Busy):
        job.resume(epochs=1)
    assert len(stumbling.seen) == 1
    assert job.refresh().spec["epochs"] == 6  # once, by the call whose answer was lost
    job.cancel()
    stumbling.sees(Stumble(status=429, headers={"Retry-After": "0"}))  # this one did nothing
    assert job.resume(epochs=1).spec["epochs"] == 7


def test_a_server_that_is_not_there_is_told_so_with_what_to_do(make: Any) -> None:
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9 .*`descent up`.*DESCENT_URL"):
        make("http://127.0.0.1:9", retries=0).version()
    with pytest.raises(ClientError, match="should be like http://"):
        make("localhost:8000")


# --- servers that are busy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_server_is_asked_again_and_then_served(client: Any, stumbling: Stumbling, status: int) -> None:
    stumbling.sees(Stumble(status=status, headers={"Retry-After": "0"}))
    assert client.version()
    assert len(stumbling.seen) == 2


def test_retry_after_is_kept_in_seconds_and_as_a_date(client: Any, stumbling: Stumbling) -> None:
    dated = {"Date": "Mon, 01 Jan 2001 00:00:00 GMT", "Retry-After": "Mon, 01 Jan 2001 00:00:01 GMT"}
    for headers in ({"Retry-After": "1"}, dated):
        stumbling.sees(Stumble(status=503, headers=headers))
        client.version()
        first, second = (seen.at for seen in stumbling.seen)
        assert second - first >= 1


def test_a_retry_after_that_is_far_away_is_told_at_once(client: Any, stumbling: Stumbling) -> None:
    stumbling.sees(Stumble(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(Busy) as caught:
        client.version()
    assert (caught.value.retry_after_s, len(stumbling.seen)) == (3600, 1)


def test_retries_end_and_can_be_switched_off(make: Any, stumbling: Stumbling) -> None:
    for retries in (0, 1):
        stumbling.sees(*[Stumble(status=503, headers={"Retry-After": "0"})] * 5)
        with pytest.raises(Busy):
            make(stumbling.url, retries=retries).version()
        assert len(stumbling.seen) == retries + 1


# --- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "Invalid"), (401, "NotAllowed"), (403, "NotAllowed"), (404, "NotFound"), (409, "Conflict"),
        (410, "NotFound"), (412, "Conflict"), (413, "Invalid"), (415, "Invalid"), (418, "ApiError"), (422, "Invalid"),
        (429, "Busy"), (500, "ApiError"), (502, "Busy"), (503, "Busy"), (504, "Busy"),
    ],
)  # fmt: skip
def test_each_status_is_an_error_of_the_tree(make: Any, stumbling: Stumbling, status: int, name: str) -> None:
    problem = {"code": "some-code", "detail": "what is wrong", "request_id": "f00"}
    headers = {"Content-Type": "application/problem+json"}
    stumbling.sees(Stumble(status=status, headers=headers, body=json.dumps(problem).encode()))
    with pytest.raises(ApiError, match="what is wrong") as caught:
        make(stumbling.url, retries=0).version()
    error = caught.value
    assert (type(error).__name__, error.status, error.code) == (name, status, "some-code")
    assert (error.request_id, "f00" in str(error)) == ("f00", status >= 500)
    assert name in (errors.__doc__ or "")


def test_a_wrong_spec_is_told_with_what_is_allowed(client: Any, stumbling: Stumbling) -> None:
    with pytest.raises(Invalid) as caught:
        client.jobs.submit(optimizer="adma", learning_rate=0.001)
    error = caught.value
    assert str(error).startswith("optimizer: unknown optimizer 'adma'; did you mean adam? (allowed: sgd, ")
    assert (error.code, error.errors[0]["pointer"], error.allowed[:2]) == (
        "validation-error", "/optimizer", ["sgd", "momentum"],
    )  # fmt: skip
    assert len(error.request_id) == 32
    assert len(stumbling.seen) == 1


def test_answers_of_something_else_are_told_as_such(make: Any, stumbling: Stumbling) -> None:
    client = make(stumbling.url, retries=0)
    stumbling.sees(Stumble(status=502, headers={"Content-Type": "text/html"}, body=b"<h1>Bad\n gateway</h1>"))
    with pytest.raises(Busy, match=r"502 Bad Gateway from 127\.0\.0\.1: <h1>Bad gateway</h1>"):
        client.version()
    stumbling.sees(Stumble(status=200, headers={"Content-Type": "text/html"}, body=b"<h1>Welcome</h1>"))
    with pytest.raises(ClientError, match="is no Descent server: it answered text/html"):
        client.version()


def test_address_and_key_come_from_the_environment(
    make: Any, stumbling: Stumbling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESCENT_URL", stumbling.url + "/")
    monkeypatch.setenv("DESCENT_API_KEY", "dsc_a_b")
    stumbling.sees()
    make().version()
    make(key="dsc_c_d").version()
    assert [seen.headers["authorization"] for seen in stumbling.seen] == ["Bearer dsc_a_b", "Bearer dsc_c_d"]


# --- waiting -----------------------------------------------------------------------------------------------------------


def test_waiting_is_held_by_the_server_and_ends_when_the_job_does(client: Any, api: Api, stumbling: Stumbling) -> None:
    job = client.jobs.submit(**ADAM)
    stumbling.sees()

    def cancel_when_waited_for() -> None:
        with Client(api.url) as other:
            while not any("prefer" in seen.headers for seen in stumbling.seen):
                pass
            other.jobs.get(job.id).cancel()

    cancelling = threading.Thread(target=cancel_when_waited_for)
    cancelling.start()
    with pytest.raises(JobFailed, match=f"{job.id} was cancelled") as caught:
        job.wait(60)
    cancelling.join(10)
    assert (caught.value.code, caught.value.job["status"], job.status) == ("cancelled", "cancelled", "cancelled")
    assert len(stumbling.seen) <= 4  # and not one after the other
    assert job.wait(1, check=False).terminal


def test_a_job_that_failed_says_why(client: Any, api: Api) -> None:
    with pytest.raises(JobFailed, match=r"failed at step 9 \(diverged\): the loss blew up") as caught:
        client.jobs.get(api.jobs[Status.FAILED]).wait()
    assert caught.value.code == "diverged"


def test_a_wait_ends_with_its_time_and_the_job_goes_on(client: Any, api: Api) -> None:
    job = client.jobs.get(api.jobs[Status.QUEUED])
    for wait in (lambda: job.wait(0.5), lambda: list(job.stream(0.5)), lambda: list(client.stream([job], 0.5))):
        with pytest.raises(WaitTimeout, match=r"did not end within 0\.5 s; it goes on"):
            wait()
    with pytest.raises(TimeoutError):
        client.sweeps.submit(optimizers=["sgd"], learning_rates=[0.1], epochs=1).wait(0.2)
    assert job.refresh().status == "queued"


def test_a_wait_outlives_answers_that_are_lost_and_a_server_that_holds_no_more(
    client: Any, api: Api, stumbling: Stumbling
) -> None:
    job = client.jobs.get(api.jobs[Status.QUEUED])
    stumbling.sees(SMOOTH, Stumble(status=429, headers={"Retry-After": "60"}), LOST, SMOOTH)
    with pytest.raises(WaitTimeout):
        job.wait(2.5)
    held = [("prefer" in seen.headers) for seen in stumbling.seen]
    assert held[:4] == [False, True, False, False]
    assert not any(held[2:])


# --- streams and files that are cut off --------------------------------------------------------------------------------


def test_a_stream_that_is_cut_goes_on_behind_its_last_event(client: Any, stumbling: Stumbling, whole_job: str) -> None:
    job = client.jobs.get(whole_job)
    whole = list(job.stream())
    assert [type(event) for event in whole].count(EpochEnded) == 5
    length = len(httpx2.get(f"{stumbling.url}/jobs/{whole_job}/events", headers={"Accept": "text/event-stream"}).text)
    stumbling.sees(Stumble(cut_after=length - 600), Stumble(cut_after=400), LOST)
    assert list(job.stream(30)) == whole
    streams = [seen.headers.get("last-event-id") for seen in stumbling.seen if seen.path.endswith("/events")]
    assert streams[0] is None
    assert len(streams) == 4
    assert all(last and last.startswith("251.") for last in streams[1:])


def test_a_stream_that_is_always_cut_before_its_first_event_ends(
    make: Any, stumbling: Stumbling, whole_job: str
) -> None:
    stumbling.sees()
    job = make(stumbling.url, retries=1).jobs.get(whole_job)
    stumbling.sees(*[Stumble(cut_after=5)] * 9)
    with pytest.raises(Unreachable):
        list(job.stream())
    assert len(stumbling.seen) == 2


def test_a_stream_can_be_left(client: Any, whole_job: str) -> None:
    for event in client.jobs.get(whole_job).stream():
        assert isinstance(event, StatusChanged)
        break
    assert client.version()


def test_a_download_that_is_cut_goes_on_where_it_was(
    client: Any, api: Api, stumbling: Stumbling, tmp_path: Path
) -> None:
    job = client.jobs.get(api.jobs[Status.SUCCEEDED])
    stumbling.sees(Stumble(cut_after=1000), Stumble(cut_after=2000), LOST)
    file = job.download(tmp_path / "model.safetensors", format="safetensors")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == job.data["model"]["sha256"]
    ranges = [seen.headers.get("range") for seen in stumbling.seen]
    assert ranges == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-"]
    assert len({seen.headers.get("if-range") for seen in stumbling.seen[1:]}) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_download_that_is_not_what_it_should_be_leaves_no_file(
    client: Any, api: Api, stumbling: Stumbling, tmp_path: Path
) -> None:
    old = tmp_path / "model.pdparams"
    old.write_bytes(b"the one before")
    stumbling.sees(SMOOTH, Stumble(is_flipped=True))
    with pytest.raises(Corrupt, match="the server names"):
        client.jobs.get(api.jobs[Status.SUCCEEDED]).download(old)
    assert (list(tmp_path.iterdir()), old.read_bytes()) == ([old], b"the one before")
    with pytest.raises(Conflict, match="its model comes when"):
        client.jobs.get(api.jobs[Status.QUEUED]).download(old)
    with pytest.raises(FileNotFoundError):
        client.jobs.get(api.jobs[Status.SUCCEEDED]).download(tmp_path / "nowhere" / "model")


# --- lists and histories -----------------------------------------------------------------------------------------------


def test_lists_go_on_over_their_pages(make: Any, api: Api) -> None:
    client = make(api.url)
    spec: dict[str, Any] = {"optimizers": ["lamb"], "learning_rates": [0.1], "seeds": list(range(45)), "epochs": 1}
    sweeps = [client.sweeps.submit(**spec) for _ in range(3)]
    found = [job.id for job in client.jobs.list(optimizer="lamb")]
    assert len(found) == len(set(found)) >= 135
    assert found == sorted(found, reverse=True)
    assert [job.id for job in client.jobs.list(optimizer="lamb", limit=101)] == found[:101]
    assert len(list(sweeps[0].jobs())) == 45
    assert list(client.jobs.list(limit=0)) == []
    for sweep in sweeps:
        sweep.cancel()
        sweep.delete()


def test_a_history_is_read_whole_in_parts_or_sampled(client: Any, whole_job: str) -> None:
    job = client.jobs.get(whole_job)
    history = job.loss()
    assert (len(history), history.count, history.terminal, history.sampling) == (251, 251, True, None)
    assert job.loss(after=history.next).points == []
    assert job.loss(from_step=100, to_step=199).points == history.points[10:20]
    assert len(job.loss(max_points=20)) <= 20


def test_a_history_becomes_a_frame(client: Any, api: Api) -> None:
    frame = client.jobs.get(api.jobs[Status.SUCCEEDED]).loss().to_pandas()
    assert list(frame.columns) == ["epoch", "batch", "loss", "time_s"]
    assert (frame.index.name, list(frame.index)) == ("step", list(range(10)))
    assert (frame["loss"].iloc[1], frame["loss"].isna().sum()) == (0.5, 1)  # the last is not finite


def test_without_pandas_it_says_what_to_install(client: Any, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        client.jobs.get(api.jobs[Status.SUCCEEDED]).loss().to_pandas()


# --- the client itself -------------------------------------------------------------------------------------------------

SCHEMAS = {
    "JobSpec": "JobSpec-Input", "SweepSpec": "SweepSpec-Input", "RangeTestSpec": "RangeTestRequest",
    "JobData": "JobAnswer", "SweepData": "SweepAnswer", "RangeTestData": "RangeTestAnswer",
    "JobPreview": "Preview", "Checkpoint": "CheckpointInfo", "Predictions": "PredictAnswer",
    "Evaluation": "EvaluationAnswer", "Dataset": "DatasetChoice",
}  # fmt: skip
NOT_IN_THE_DOCUMENT = {"Recipe", "Ending"}  # parts of others


def test_the_types_have_the_fields_of_the_document(api: Api) -> None:
    schemas = httpx2.get(f"{api.url}/openapi.json").json()["components"]["schemas"]
    for name, found in vars(answers).items():
        if not hasattr(found, "__total__") or name in NOT_IN_THE_DOCUMENT or found.__module__ != answers.__name__:
            continue
        schema = schemas.get(SCHEMAS.get(name, name)) or schemas[SCHEMAS.get(name, name).removesuffix("-Input")]
        assert set(get_type_hints(found)) == set(schema["properties"]), name


def test_both_clients_have_the_same_methods() -> None:
    from client import asynchronous, client

    for name in ("Job", "Jobs", "Sweep", "Sweeps", "RangeTest", "RangeTests", "Models", "Client"):
        one, other = getattr(client, name), getattr(asynchronous, f"Async{name}")
        methods = {name for name, _ in inspect.getmembers(one, callable) if not name.startswith("_")}
        assert methods == {name for name, _ in inspect.getmembers(other, callable) if not name.startswith("_")}
        for method in methods:
            assert inspect.signature(getattr(one, method)).parameters == (
                inspect.signature(getattr(other, method)).parameters
            ), method


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "client/py.typed" in zipfile.ZipFile(wheel).namelist()


def examples() -> list[str]:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Python client")[2].partition("\n## ")[0]
    indented = [line[4:] for line in (client_doc or "").splitlines() if line.startswith("    ")]
    return ["\n".join(indented), section.partition("```python\n")[2].partition("```")[0]]


@pytest.mark.parametrize("example", examples(), ids=["docstring", "README"])
def test_the_examples_run(
    example: str,
    server: Server,
    mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DESCENT_URL", server.url)
    monkeypatch.chdir(tmp_path)
    Path("seven.png").write_bytes(png(dark_on_light(mnist.test.images[0])))
    exec(compile(example.replace("epochs=1", "epochs=1, batch_size=10_000"), "example", "exec"), {})
    assert Path("mnist.pdparams").stat().st_size > 80_000
    assert capsys.readouterr().out.splitlines()[-1] in "0123456789"
