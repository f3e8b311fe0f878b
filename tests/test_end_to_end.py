"""The main job as a user sees it: POST, a worker process, loss, model, digits; on real MNIST, over real HTTP."""

import hashlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import paddle
import pytest
import safetensors.numpy
from paddle import Tensor

from client.answers import LossPoint
from client.client import Client, Conflict, Job, JobFailed, Points
from core.training.datasets import Dataset
from core.training.fused.library import COMPILERS
from tests.conftest import ROOT, Server, descendants, eventually, is_alive, processes, serving


class MNIST(paddle.nn.Layer):
    """The lesson's own class, as it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = paddle.nn.Conv2D(in_channels=1, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.max_pool1 = paddle.nn.MaxPool2D(kernel_size=2, stride=2)
        self.conv2 = paddle.nn.Conv2D(in_channels=20, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.max_pool2 = paddle.nn.MaxPool2D(kernel_size=2, stride=2)
        self.fc = paddle.nn.Linear(in_features=980, out_features=10)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.max_pool1(paddle.nn.functional.relu(self.conv1(inputs)))
        x = self.max_pool2(paddle.nn.functional.relu(self.conv2(x)))
        return paddle.nn.functional.softmax(self.fc(paddle.reshape(x, [x.shape[0], 980])))


@pytest.fixture
def trained(client: Client, trained_job: str) -> Job:
    return client.jobs.get(trained_job)


@pytest.fixture
def job(trained: Job) -> dict[str, Any]:
    return dict(trained.data)


def losses(points: Iterable[LossPoint]) -> list[float]:
    return [math.nan if point["loss"] is None else point["loss"] for point in points]


def test_the_job_went_through_its_states(job: dict[str, Any]) -> None:
    assert [t["status"] for t in job["transitions"]] == ["queued", "running", "succeeded"]
    assert (job["terminal"], job["attempt"], job["error"]) == (True, 1, None)
    assert job["progress"] | {"eta_s": None} == {
        "step": 500, "total_steps": 500, "epoch": 0, "epochs": 1, "fraction": 1.0, "eta_s": None,
    }  # fmt: skip
    assert job["backend"]["device"] == "cpu" or job["backend"]["device"].startswith("gpu")
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_the_loss_falls_from_that_of_guessing(trained: Job) -> None:
    history = trained.loss()
    assert [point["step"] for point in history] == [*range(0, 500, 10), 499]
    assert all((p["epoch"], p["batch"]) == (0, p["step"]) for p in history)
    falling = losses(history)
    assert abs(falling[0] - math.log(10)) < 0.7
    assert np.mean(falling[-10:]) < 0.2
    assert (history.count, history.terminal, len(history)) == (51, True, 51)
    assert history.summary == {"first": falling[0], "last": falling[-1], "min": min(falling)}
    assert trained.data["latest"] == {"step": 499, "loss": falling[-1]}
    assert trained.data["result"]["final_loss"] == falling[-1]


def test_a_poller_with_the_cursor_sees_each_point_once(trained: Job, server: Server) -> None:
    whole = trained.loss().points
    pages, after = [], None
    with httpx2.Client(base_url=server.url) as http:
        while True:
            query = {"limit": "7"} | ({"after": after} if after else {})
            page = http.get(f"/jobs/{trained.id}/loss", params=query).json()
            pages += page["points"]
            after = page["next"]
            if not page["has_more"]:
                break
    assert pages == whole


def test_the_model_is_the_lessons_and_as_good_as_reported(trained: Job, mnist: Dataset, tmp_path: Path) -> None:
    file = trained.download(tmp_path / "mnist.pdparams")
    model = MNIST()
    assert model.set_state_dict(paddle.load(str(file))) == ([], [])
    images = paddle.to_tensor((mnist.test.images.astype("float32") / 256).reshape(-1, 1, 28, 28))
    guessed = np.concatenate([model(images[n : n + 1000]).numpy().argmax(axis=1) for n in range(0, 10_000, 1000)])
    accuracy = float((guessed == mnist.test.labels).mean())
    assert accuracy > 0.97
    assert accuracy == pytest.approx(trained.data["result"]["test_accuracy"], abs=2e-4)


def test_both_formats_hold_the_same_weights_and_the_digest_is_true(trained: Job) -> None:
    content = trained.model(format="safetensors")
    assert hashlib.sha256(content).hexdigest() == trained.data["model"]["sha256"]
    assert len(content) == trained.data["model"]["size_bytes"]
    weights = safetensors.numpy.load(content)
    other = paddle.load(io.BytesIO(trained.model()))
    assert sum(value.size for value in weights.values()) == 20_350
    assert all(np.array_equal(weights[name], other[name].numpy()) for name in weights)


def test_a_download_that_is_known_already_is_not_sent(server: Server, job: dict[str, Any]) -> None:
    with httpx2.Client(base_url=server.url) as http:
        first = http.get(f"/jobs/{job['id']}/model")
        assert f"{job['id']}.pdparams" in first.headers["content-disposition"]
        again = http.get(f"/jobs/{job['id']}/model", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_real_digits_are_predicted(client: Client, job: dict[str, Any], mnist: Dataset) -> None:
    images, labels = mnist.test.images[:256], mnist.test.labels[:256]
    answer = client.predict(images.tolist(), model=job["id"], range=255)
    assert answer["model"] == {
        "job_id": job["id"], "dataset": "mnist",
        "sha256": job["model"]["sha256"], "test_accuracy": job["result"]["test_accuracy"],
    }  # fmt: skip
    guessed = [prediction["digit"] for prediction in answer["predictions"]]
    assert (np.array(guessed) == labels).mean() > 0.93
    for prediction in answer["predictions"]:
        assert (prediction["class"], prediction["label"]) == (prediction["digit"], str(prediction["digit"]))
        assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert prediction["confidence"] == max(prediction["probabilities"])
        ranked = [item["probability"] for item in prediction["top_k"]]
        assert ranked == sorted(prediction["probabilities"], reverse=True)[:3]
    as_seen = client.predict((images[:10] / 256).tolist(), model=job["id"])
    assert as_seen["predictions"] == answer["predictions"][:10]


def test_best_and_latest_name_a_model(client: Client, job: dict[str, Any]) -> None:
    for name in ("best", "latest"):
        assert client.predict([[0.0] * 784], model=name)["model"]["job_id"].startswith("job_")


def test_the_same_spec_gives_the_same_history_and_weights(client: Client) -> None:
    spec: dict[str, Any] = {
        "optimizer": "momentum",
        "learning_rate": 0.01,
        "epochs": 1,
        "batch_size": 2000,
        "log_every": 1,
    }
    one, other = [client.jobs.submit(**spec) for _ in range(2)]
    assert losses(one.wait(300).loss()) == losses(other.wait(300).loss())
    assert one.model() == other.model()


def test_a_rate_that_blows_up_ends_diverged_with_its_curve(client: Client) -> None:
    job = client.jobs.submit(optimizer="sgd", learning_rate=1000.0, batch_size=50, epochs=1)
    points = [point for event in job.stream(120) if isinstance(event, Points) for point in event.points]
    with pytest.raises(JobFailed) as failed:
        job.wait(1)
    assert (job.status, failed.value.code) == ("failed", "diverged")
    assert job.data["error"] is not None
    assert points[-1]["step"] == job.data["error"]["step"]
    assert len(points) > 4
    with pytest.raises(Conflict) as caught:
        job.model()
    assert caught.value.code == "model-not-ready"


def test_a_running_job_is_cancelled_and_the_next_one_runs(client: Client, server: Server) -> None:
    job = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1000, log_every=100)
    eventually(lambda: job.refresh().data["latest"], what="the first loss")
    trainers = _trainers(server)
    assert job.cancel().status == "cancelling"
    assert job.wait(15, check=False).status == "cancelled"
    count = job.loss().count
    assert not any(is_alive(pid) for pid in trainers)
    client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1, batch_size=5000).wait(120)
    assert job.loss().count == count


def test_the_trainer_of_a_job_was_waiting_before_there_was_a_job(client: Client, server: Server) -> None:
    waiting = eventually(lambda: _trainers(server), what="the standby")
    job = client.jobs.submit(optimizer="sgd", learning_rate=0.01, epochs=1000, log_every=100)
    eventually(lambda: job.refresh().data["latest"], what="the first loss")
    assert _trainers(server) == waiting
    job.cancel().wait(20, check=False)
    eventually(lambda: _trainers(server) - waiting, what="the next standby")


def _trainers(server: Server) -> set[int]:
    """Trainer processes of a server."""
    return {pid for pid in descendants(server.process.pid) if "worker.trainer_process" in _command(pid)}


def _command(pid: int) -> str:
    return processes().get(pid, (0, ""))[1]


# --- faults that need no proxy (the others are in test_faults.py): on a server of their own, with short leases ----------

SHORT = {"lease_s": "2", "beat_s": "0.4", "scan_s": "0.5", "stop_s": "3"}
LONG_JOB: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 50}
SMALL_JOB: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "batch_size": 1000, "log_every": 1}


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("frail"), cache, **SHORT) as server:
        yield server


@pytest.fixture
def frail_client(frail: Server) -> Iterator[Client]:
    with Client(frail.url) as client:
        yield client


def test_a_trainer_that_always_dies_fails_its_job_alone(frail: Server, frail_client: Client) -> None:
    job = frail_client.jobs.submit(**LONG_JOB)
    waiting = frail_client.jobs.submit(**SMALL_JOB)
    killed: set[int] = set()

    def kill() -> bool:
        if job.refresh().status == "running":
            for pid in _trainers(frail) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return job.refresh().terminal

    # the waiting job may run in between: a death counts for the job it hits
    eventually(kill, within_s=120, what="the third death")
    with pytest.raises(JobFailed) as failed:
        job.wait(1)
    assert (job.status, failed.value.code, job.data["attempt"]) == ("failed", "worker_lost", 3)
    waiting.wait(120, check=False)


def test_a_lost_message_is_rung_again(frail: Server, frail_client: Client) -> None:
    import redis

    from core.jobs.broker import CPU_QUEUE

    running = frail_client.jobs.submit(**LONG_JOB)
    eventually(lambda: running.refresh().data["latest"], what="the first job's start")
    queued = [frail_client.jobs.submit(**SMALL_JOB) for _ in range(3)]
    with redis.Redis(unix_socket_path=str(frail.home / "redis" / "redis.sock")) as store:
        assert store.delete(CPU_QUEUE)
    running.cancel()
    assert [job.wait(120).data["attempt"] for job in queued] == [1, 1, 1]


def first_losses(server: Server, count: int) -> tuple[str, list[float]]:
    """The kernel that a server trains with, and the first losses of a job, which is then cancelled."""
    with Client(server.url) as client:
        job = client.jobs.submit(optimizer="adam", learning_rate=0.001, batch_size=50, log_every=1)
        eventually(lambda: job.loss().count >= count, within_s=60, what="the first losses")
        backend = job.cancel().data["backend"]
        return backend["kernel"] if backend else "", losses(job.loss().points[:count])


def test_with_and_without_the_kernel_and_without_a_compiler(tmp_path: Path, cache: Path) -> None:
    """Switched off, ready in a folder on a machine that has no compiler, and neither: the same losses, to rounding."""
    bare_cache = tmp_path / "cache"
    bare_cache.mkdir()
    (bare_cache / "mnist").symlink_to(cache / "mnist")
    with serving(tmp_path / "plain", bare_cache, kernel="plain") as server:
        name, plain = first_losses(server, 5)
        assert name == "paddle"
    with serving(tmp_path / "neither", bare_cache, kernel="fused", path="/nowhere") as server:
        assert first_losses(server, 5) == ("paddle", plain)
    if not any(shutil.which(compiler) for compiler in COMPILERS):
        return  # nothing can be built ahead of time here
    kernels = tmp_path / "kernels"
    subprocess.run([sys.executable, "-m", "core.training.fused.build", "--out", str(kernels)], check=True, cwd=ROOT)
    with serving(tmp_path / "fused", bare_cache, kernel="fused", kernels=str(kernels), path="/nowhere") as server:
        name, fused = first_losses(server, 5)
        assert name.startswith("fused-")
        assert fused == pytest.approx(plain, rel=1e-4)


def test_a_stopped_server_gives_its_job_back_and_goes_on_with_it(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache, **SHORT) as first, Client(first.url) as client:
        job_id = client.jobs.submit(**SMALL_JOB).id
        eventually(lambda: client.jobs.get(job_id).loss().count > 3, what="some points")
        family = first.pids
        assert first.interrupt() == 0
        assert not any(is_alive(pid) for pid in family)
        assert not list(tmp_path.rglob("*.sock"))
    with serving(tmp_path, cache, **SHORT) as second, Client(second.url) as client:
        job = client.jobs.get(job_id).wait(120)
        assert (job.status, job.data["attempt"]) == ("succeeded", 1)
        states = [transition["status"] for transition in job.data["transitions"]]
        assert states == ["queued", "running", "queued", "running", "succeeded"]
        assert job.loss().points[-1]["step"] == 49
