"""Pause, resume, extend, cancel, delete and repeat over HTTP; what comes of it equals an undisturbed job."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import paddle
import pytest
import safetensors.numpy

from client.client import ApiError, Client
from core.jobs.artifacts import checkpoints
from core.storage import Folder
from tests.conftest import Server, eventually

RATE = {"schedule": "step_decay", "initial": 0.05, "step_size": 30, "gamma": 0.5, "interval": "step"}
JOB: dict[str, Any] = {"optimizer": "momentum", "learning_rate": RATE, "epochs": 2, "batch_size": 1000, "log_every": 1}
LONG_JOB: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}


def losses(client: Client, job_id: str) -> list[tuple[int, float | None]]:
    return [(point["step"], point["loss"]) for point in client.jobs.get(job_id).loss().points]


def end_of(client: Client, job_id: str) -> dict[str, Any]:
    return dict(client.jobs.get(job_id).wait(300, check=False).data)


def status_is(client: Client, job_id: str, status: str) -> None:
    eventually(lambda: client.jobs.get(job_id).status == status, within_s=60, what=status)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Any]:
    """A job that nobody touched: its record, and its losses."""
    with Client(server.url) as client:
        job = end_of(client, client.jobs.submit(**JOB).id)
        return job | {"losses": losses(client, job["id"])}


def test_a_paused_job_gives_its_weights_and_goes_on_as_if_nothing_had_been(
    client: Client, undisturbed: dict[str, Any]
) -> None:
    job_id = client.jobs.submit(**JOB).id
    eventually(lambda: client.jobs.get(job_id).loss().count > 10, what="some points")
    assert client.jobs.get(job_id).pause().status == "pausing"
    status_is(client, job_id, "paused")
    paused = client.jobs.get(job_id).data
    assert paused["model"]["ready"]
    assert paused["model"]["partial"]
    weights = safetensors.numpy.load(client.jobs.get(job_id).model(format="safetensors"))
    assert sum(value.size for value in weights.values()) == 20_350
    other = paddle.load(io.BytesIO(client.jobs.get(job_id).model()))
    assert all(np.array_equal(weights[name], other[name].numpy()) for name in weights)
    assert client.predict([[0.0] * 784], model=job_id)["model"]["test_accuracy"] is None
    seen = losses(client, job_id)
    assert client.jobs.get(job_id).resume().status == "queued"
    job = end_of(client, job_id)
    assert (job["status"], job["attempt"], job["model"]["partial"]) == ("succeeded", 1, False)
    assert 10 < job["resumed_from_step"] <= len(seen)
    assert losses(client, job_id)[: len(seen)] == seen
    assert losses(client, job_id) == undisturbed["losses"]
    assert job["model"]["sha256"] == undisturbed["model"]["sha256"]
    assert [t["status"] for t in job["transitions"]] == [
        "queued", "running", "pausing", "paused", "queued", "running", "succeeded",
    ]  # fmt: skip


def test_a_finished_job_that_is_extended_is_the_longer_job(
    client: Client, server: Server, undisturbed: dict[str, Any]
) -> None:
    job_id = client.jobs.submit(**{**JOB, "epochs": 1}).id
    first, graph = end_of(client, job_id), client.jobs.get(job_id).model(format="onnx")
    assert client.jobs.get(job_id).resume().status == "succeeded"
    assert client.jobs.get(job_id).resume(epochs=1).spec["epochs"] == 2
    job = end_of(client, job_id)
    assert (
        client.jobs.get(job_id).model(format="onnx") == client.jobs.get(undisturbed["id"]).model(format="onnx") != graph
    )
    folder = server.home / "jobs" / job_id
    eventually(lambda: [path.parent.name for path in folder.glob("*/*.onnx")] == ["2"], what="the end of the older one")
    assert job["resumed_from_step"] == 50
    assert losses(client, job_id) == undisturbed["losses"]
    assert job["model"]["sha256"] == undisturbed["model"]["sha256"] != first["model"]["sha256"]
    assert job["result"]["test_accuracy"] == undisturbed["result"]["test_accuracy"]


def test_a_cancelled_job_keeps_its_weights_and_can_go_on(client: Client, undisturbed: dict[str, Any]) -> None:
    job_id = client.jobs.submit(**JOB).id
    eventually(lambda: client.jobs.get(job_id).loss().count > 5, what="some points")
    client.jobs.get(job_id).cancel()
    job = end_of(client, job_id)
    assert (job["status"], job["model"]["partial"]) == ("cancelled", True)
    assert len(client.jobs.get(job_id).model()) > 80_000
    assert client.jobs.get(job_id).resume().status == "queued"
    assert end_of(client, job_id)["model"]["sha256"] == undisturbed["model"]["sha256"]


def test_a_time_limit_can_be_followed_by_a_resume(client: Client) -> None:
    job_id = client.jobs.submit(**{**LONG_JOB, "max_runtime_s": 6}).id
    job = end_of(client, job_id)
    assert (job["error"]["code"], job["model"]["partial"]) == ("max_runtime", True)
    assert job["error"]["step"] > 0
    client.jobs.get(job_id).resume()
    again = end_of(client, job_id)
    assert again["error"]["code"] == "max_runtime"
    assert again["resumed_from_step"] >= job["error"]["step"]
    assert again["progress"]["step"] > job["progress"]["step"]


def test_pause_makes_room_for_the_next_job(client: Client) -> None:
    first = client.jobs.submit(**LONG_JOB).id
    eventually(lambda: client.jobs.get(first).data["latest"], what="the first loss")
    second = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1, batch_size=5000).id
    client.jobs.get(first).pause()
    assert end_of(client, second)["status"] == "succeeded"
    assert client.jobs.get(first).status == "paused"
    assert client.jobs.get(first).cancel().status == "cancelled"
    client.jobs.get(first).delete()


def test_a_job_that_waits_can_be_paused_and_cancelled(client: Client) -> None:
    running = client.jobs.submit(**LONG_JOB).id
    status_is(client, running, "running")
    waiting = client.jobs.submit(**LONG_JOB).id
    assert client.jobs.get(waiting).pause().status == "paused"
    with pytest.raises(ApiError) as caught:
        client.jobs.get(waiting).model()
    assert caught.value.code == "model-not-ready"
    assert client.jobs.get(waiting).resume().data["queue_position"] == 0
    assert client.jobs.get(waiting).cancel().status == "cancelled"
    assert client.jobs.get(running).cancel().status in ("cancelling", "cancelled")
    end_of(client, running)


def test_a_deleted_job_is_gone_with_all_its_files(client: Client, server: Server) -> None:
    job_id = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1, batch_size=5000).id
    with pytest.raises(ApiError) as caught:
        client.jobs.get(job_id).delete()
    assert (caught.value.status, caught.value.code) == (409, "job-not-terminal")
    end_of(client, job_id)
    folder = server.home / "jobs" / job_id
    eventually(lambda: (folder / "history.jsonl").exists(), what="its files")
    assert checkpoints(Folder(folder.parent), job_id)
    client.predict([[0.0] * 784], model=job_id)
    job = client.jobs.get(job_id)
    job.delete()
    assert not folder.exists()
    for ask in (job.refresh, job.loss, job.delete, job.cancel, job.pause, job.resume):
        with pytest.raises(ApiError) as caught:
            ask()
        assert caught.value.status == 404
    for use in (job.model, lambda: client.predict([[0.0] * 784], model=job)):
        with pytest.raises(ApiError) as caught:
            use()
        assert (caught.value.status, caught.value.code) == (410, "model-deleted")


def test_predictions_while_a_model_is_deleted_are_right_or_a_410(client: Client, server: Server) -> None:
    job_id = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1, batch_size=5000).id
    end_of(client, job_id)

    def ask(_: int) -> int:
        with httpx2.Client(base_url=server.url) as http:
            return http.post("/predict", json={"model": job_id, "image": [0.0] * 784}).status_code

    def download(_: int) -> int:
        with httpx2.Client(base_url=server.url) as http:
            return http.get(f"/jobs/{job_id}/model").status_code

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask if n % 2 else download, n) for n in range(20)]
        gone = pool.submit(client.jobs.get(job_id).delete)
        answers += [pool.submit(ask if n % 2 else download, n) for n in range(40)]
        statuses = [answer.result() for answer in answers]
        gone.result()
    assert set(statuses) <= {200, 410}
    assert statuses[-1] == 410


def test_a_hundred_requests_with_one_key_make_one_job_that_trains_once(client: Client, server: Server) -> None:
    spec: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "batch_size": 5000}

    def post(_: int) -> httpx2.Response:
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            return http.post("/jobs", json=spec, headers={"Idempotency-Key": "one-of-a-hundred"})

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(post, range(100)))
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 99
    job = end_of(client, job_id)
    assert [t["status"] for t in job["transitions"]] == ["queued", "running", "succeeded"]
    with httpx2.Client(base_url=server.url) as http:
        other = http.post("/jobs", json=spec | {"epochs": 2}, headers={"Idempotency-Key": "one-of-a-hundred"})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
        for key in ("", "x" * 300, "two words"):
            bad = http.post("/jobs", json=spec, headers={"Idempotency-Key": key})
            assert bad.status_code == 422
            assert bad.json()["errors"][0]["pointer"] == "header idempotency-key"


def test_what_an_ended_job_leaves_is_what_is_needed(
    client: Client, server: Server, undisturbed: dict[str, Any]
) -> None:
    folder: Path = server.home / "jobs" / undisturbed["id"]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    kinds = [name.partition("-")[0] for name in names if not name.endswith(".onnx")]
    assert kinds == [
        "1/checkpoint", "1/checkpoint", "1/model.pdparams", "1/model.safetensors", "1/spool.jsonl", "history.jsonl", "job.json",
    ]  # fmt: skip
