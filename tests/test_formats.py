"""A model in each format, loaded by the format's own runtime, beside eager Paddle; and the files that are made on demand."""

import asyncio
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import paddle
import pytest
import safetensors.numpy

from client.client import Client
from core.errors import DescentError, Unavailable
from core.jobs import artifacts
from core.spec import JobSpec
from core.training import export
from core.training.datasets import Dataset, scaled
from tests.conftest import ROOT, Server, descendants, eventually, is_alive, processes
from tests.staged import Api, api_without_worker, blank_weights
from tests.test_end_to_end import MNIST

Floats = npt.NDArray[np.float32]

EXPORTS = sorted(artifacts.EXPORTS)
MOST_APART = 1e-5
# The format's own runtime alone: argv are the folder with the files, the images, where the answers go.
PADDLE_INFERENCE = """
import sys
import numpy as np
from paddle import inference
folder, images, answers = sys.argv[1:]
config = inference.Config(f"{folder}/model.json", f"{folder}/model.pdiparams")
predictor = inference.create_predictor(config)
(name,) = predictor.get_input_names()
assert name == "images"
predictor.get_input_handle(name).copy_from_cpu(np.load(images))
predictor.run()
(name,) = predictor.get_output_names()
np.save(answers, predictor.get_output_handle(name).copy_to_cpu())
"""


@pytest.fixture(scope="module")
def images(mnist: Dataset) -> Floats:
    """Real test images as the network sees them."""
    return scaled(mnist.test.images[:500]).reshape(-1, 1, 28, 28)


@pytest.fixture(scope="module")
def job_dir(server: Server, trained_job: str) -> Path:
    return server.home / "jobs" / trained_job


def downloaded(server: Server, job_id: str, format: str) -> bytes:
    with Client(server.url) as client:
        return client.jobs.get(job_id).model(format=format)


@pytest.fixture(scope="module")
def eager(server: Server, trained_job: str, images: Floats) -> Floats:
    """What the lesson's class gives with the downloaded `.pdparams`."""
    lesson = MNIST()
    assert lesson.set_state_dict(paddle.load(io.BytesIO(downloaded(server, trained_job, "pdparams")))) == ([], [])
    answers: Floats = lesson(paddle.to_tensor(images)).numpy()
    assert 0.9 < answers.max(axis=1).mean() < 1  # it learned something, so there is something to compare
    return answers


# --- each format and its runtime ---------------------------------------------------------------------------------------


def test_safetensors_fill_the_lessons_class(server: Server, trained_job: str, images: Floats, eager: Floats) -> None:
    weights = safetensors.numpy.load(downloaded(server, trained_job, "safetensors"))
    lesson = MNIST()
    assert lesson.set_state_dict(weights) == ([], [])
    assert np.array_equal(lesson(paddle.to_tensor(images)).numpy(), eager)


def test_paddle_inference_runs_the_zip(
    server: Server, trained_job: str, images: Floats, eager: Floats, tmp_path: Path
) -> None:
    content = downloaded(server, trained_job, "inference")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["model.json", "model.pdiparams", "metadata.json"]
        archive.extractall(tmp_path)
    np.save(tmp_path / "images.npy", images)
    given = [str(path) for path in (tmp_path, tmp_path / "images.npy", tmp_path / "answers.npy")]
    subprocess.run([sys.executable, "-c", PADDLE_INFERENCE, *given], check=True, capture_output=True, timeout=120)
    assert np.abs(np.load(tmp_path / "answers.npy") - eager).max() < MOST_APART
    about = json.loads((tmp_path / "metadata.json").read_text())
    assert about == export.metadata(downloaded(server, trained_job, "safetensors"))
    assert str(ROOT) not in content.decode("latin-1")


def test_onnx_runtime_runs_the_graph(server: Server, trained_job: str, images: Floats, eager: Floats) -> None:
    content = downloaded(server, trained_job, "onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["N", 1, 28, 28])
    assert (answer.name, answer.type, answer.shape) == ("probabilities", "tensor(float)", ["N", 10])
    for count in (1, len(images)):
        (answers,) = session.run(None, {"images": images[:count]})
        assert np.abs(answers - eager[:count]).max() < MOST_APART
    model = onnx.load_from_string(content)
    assert [(it.domain, it.version) for it in model.opset_import] == [("", 13)]
    about = {it.key: it.value for it in model.metadata_props}
    assert about == export.metadata(downloaded(server, trained_job, "safetensors"))


@pytest.mark.skipif(not shutil.which("curl"), reason="the page's requests are made with curl, and there is none here")
def test_the_pages_commands_and_programs_run(server: Server, trained_job: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "sh"]
    env = {"JOB": trained_job, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for kind, text in blocks:
        tail = "assert probabilities.shape == (1, 10)\n" if kind == "python" else ""
        command = ["sh", "-ec"] if kind == "sh" else [sys.executable, "-c"]
        text = text.replace("http://127.0.0.1:8000", server.url) + tail
        done = subprocess.run(
            [*command, text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr


# --- what a file says of itself ----------------------------------------------------------------------------------------


def test_the_metadata_say_how_the_weights_were_made(client: Client, server: Server, trained_job: str) -> None:
    job: dict[str, Any] = dict(client.jobs.get(trained_job).data)
    content = downloaded(server, trained_job, "safetensors")
    about = export.metadata(content)
    assert list(about) == sorted(about)
    assert set(about) == {"format", "network", "spec", "seed", "step", "metrics", "tensors_sha256"}
    assert (about["format"], about["network"]) == ("descent-model-1", "DigitNetwork")
    assert (about["seed"], about["step"]) == (str(job["spec"]["seed"]), "500")
    labels = {"name": None, "tags": {}, "device": job["spec"]["device"]}
    assert json.loads(about["spec"]) | labels == job["spec"] | labels
    metrics = json.loads(about["metrics"])
    assert metrics == {name: job["result"][name] for name in ("valid_accuracy", "test_accuracy", "final_loss")}


def test_the_tensors_digest_is_what_the_page_says(server: Server, trained_job: str) -> None:
    content = downloaded(server, trained_job, "safetensors")
    weights = safetensors.numpy.load(content)
    text = b""
    for name in ("conv1.bias", "conv1.weight", "conv2.bias", "conv2.weight", "fc.bias", "fc.weight"):
        shape = "x".join(str(length) for length in weights[name].shape)
        text += f"{name} F32 {shape}\n".encode() + weights[name].tobytes()
    assert export.metadata(content)["tensors_sha256"] == hashlib.sha256(text).hexdigest()


SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001})
WEIGHTS = export.to_safetensors(safetensors.numpy.load(blank_weights()), SPEC, step=1, metrics={"final_loss": None})


def test_equal_trainings_give_equal_files_whatever_they_are_called() -> None:
    weights = safetensors.numpy.load(blank_weights())
    named = SPEC.model_copy(update={"name": "mine", "tags": {"a": "b"}})
    other = SPEC.model_copy(update={"seed": 1})
    again, differing = (
        export.to_safetensors(weights, spec, step=1, metrics={"final_loss": None}) for spec in (named, other)
    )
    assert again == WEIGHTS
    assert differing != WEIGHTS
    assert export.metadata(blank_weights()) == {}
    code = (
        "import sys, safetensors.numpy; from core.spec import JobSpec; from core.training import export\n"
        "weights, spec = safetensors.numpy.load(sys.stdin.buffer.read()), JobSpec.model_validate_json(sys.argv[1])\n"
        "sys.stdout.buffer.write(export.to_safetensors(weights, spec, step=1, metrics={'final_loss': None}))"
    )
    command = [sys.executable, "-c", code, SPEC.model_dump_json()]
    done = subprocess.run(command, input=blank_weights(), capture_output=True, cwd=ROOT, check=True, timeout=60)
    assert done.stdout == WEIGHTS  # in another process too


# --- made once, kept, verified -----------------------------------------------------------------------------------------


def kept(folder: Path, format: str) -> list[Path]:
    return sorted(folder.rglob(f"model-*.{artifacts.EXPORTS[format]}"))


@pytest.mark.parametrize("format", EXPORTS)
def test_a_file_is_kept_and_made_again_the_same_when_it_is_damaged_or_gone(
    server: Server, trained_job: str, job_dir: Path, format: str
) -> None:
    content = downloaded(server, trained_job, format)
    (file,) = kept(job_dir, format)
    assert file.read_bytes() == content
    assert hashlib.sha256(content).hexdigest() in file.name
    made_at = file.stat().st_ino
    assert downloaded(server, trained_job, format) == content
    assert file.stat().st_ino == made_at  # not made again
    for damage in (lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), file.unlink):
        damage()
        assert downloaded(server, trained_job, format) == content
        assert [path.read_bytes() for path in kept(job_dir, format)] == [content]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API of its own, whose passing files are in its home: one of these tests kills it."""
    home = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(home))
        with api_without_worker(home) as api:
            yield api


def test_many_who_ask_first_get_one_file_that_was_made_once(staged: Api) -> None:
    job_id = staged.finished_job(weights=WEIGHTS)

    def ask(_: int) -> bytes:
        return httpx2.get(f"{staged.url}/jobs/{job_id}/model?format=onnx", timeout=60).raise_for_status().content

    with ThreadPoolExecutor(12) as pool:
        contents = set(pool.map(ask, range(12)))
    assert len(contents) == 1
    log = (staged.settings.logs_dir / "api.log").read_text().splitlines()
    assert len([line for line in log if "model file made" in line and job_id in line]) == 1


def test_the_client_waits_for_a_file_that_is_made_first(staged: Api) -> None:
    job_id = staged.finished_job(weights=WEIGHTS)
    with Client(staged.url, timeout_s=0.1) as client:
        assert (
            onnx.load_from_string(client.jobs.get(job_id).model(format="onnx")).opset_import[0].version == export.OPSET
        )


def test_a_file_that_cannot_be_kept_is_given_all_the_same(staged: Api) -> None:
    job_id = staged.finished_job(weights=WEIGHTS)
    folder = staged.settings.jobs_dir / job_id / "1"
    files = {path: path.read_bytes() for path in folder.iterdir()}

    async def made_meanwhile() -> bytes:
        content = await export.made("onnx", WEIGHTS)
        for path in files:
            path.unlink()
        folder.rmdir()
        with pytest.raises(FileNotFoundError):  # the folder of a deleted job does not come back
            artifacts.publish_export(artifacts.storage(staged.settings), {"path": f"{job_id}/1/x"}, "onnx", content)
        assert not folder.exists()
        return content

    content = asyncio.run(made_meanwhile())
    folder.mkdir()
    for path, old in files.items():
        path.write_bytes(old)
    (folder / f"model-{hashlib.sha256(content).hexdigest()}.onnx").mkdir()  # in the place of the file
    for _ in range(2):
        answer = httpx2.get(f"{staged.url}/jobs/{job_id}/model?format=onnx", timeout=60)
        assert (answer.status_code, answer.content) == (200, content)


# --- the process that makes them ---------------------------------------------------------------------------------------


def exporters(pid: int) -> list[int]:
    """The processes below this one that make a file."""
    known = processes()
    return [child for child in descendants(pid) if "core.training.export" in known.get(child, (0, ""))[1]]


def folders(where: Path) -> list[Path]:
    return list(where.glob("descent-export-*"))


@pytest.fixture
def own_tmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where passing files are made, by nobody else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_file_that_takes_too_long_is_given_up_and_leaves_nothing(own_tmp: Path) -> None:
    with pytest.raises(Unavailable, match=r"not made within 0\.05 s"):
        asyncio.run(export.made("inference", WEIGHTS, limit_s=0.05))
    assert exporters(os.getpid()) == []
    assert folders(own_tmp) == []


def test_who_is_cancelled_while_a_file_is_made_leaves_nothing(own_tmp: Path) -> None:
    async def cancelled() -> None:
        making = asyncio.create_task(export.made("inference", WEIGHTS))
        while not exporters(os.getpid()):
            await asyncio.sleep(0.01)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert exporters(os.getpid()) == []

    asyncio.run(asyncio.wait_for(cancelled(), 30))
    assert folders(own_tmp) == []


def test_a_server_that_waits_for_nobody_leaves_no_folder(own_tmp: Path) -> None:
    """It ends some turns of its loop after it has cancelled its requests; to wait for a process would take a selector."""

    async def cut_off() -> None:
        making = asyncio.create_task(export.made("inference", WEIGHTS))
        while not exporters(os.getpid()):
            await asyncio.sleep(0.01)
        assert len(folders(own_tmp)) == 1
        making.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert folders(own_tmp) == []
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(asyncio.wait_for(cut_off(), 30))


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may get longer than 60,000 bytes; the weights have 81,400."""
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def test_a_file_that_did_not_fit_on_the_disk_is_not_given(small_disk: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable, match="cannot be made now") as caught:
        asyncio.run(export.made("inference", WEIGHTS))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 30)
    assert "is the disk full?" in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("lacking", ["descriptors", "room"])
def test_a_file_that_cannot_be_begun_is_to_be_asked_for_again(
    lacking: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, own_tmp: Path
) -> None:
    async def made() -> bytes:
        if lacking == "room":
            monkeypatch.setattr(tempfile, "tempdir", str(own_tmp / "not there"))
            return await export.made("onnx", WEIGHTS)
        least, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            return await export.made("onnx", WEIGHTS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))

    with pytest.raises(Unavailable, match="cannot be made now") as caught:
        asyncio.run(made())
    assert caught.value.retry_after_s == 30
    assert folders(own_tmp) == []
    reason = {"descriptors": "Too many open files", "room": "No such file"}[lacking]
    assert reason in str([vars(record) for record in caplog.records])


def test_what_cannot_be_made_is_an_error_with_its_reason_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DescentError, match="log has the reason"):
        asyncio.run(export.made("onnx", b"these are no weights"))
    assert "SafetensorError" in str([vars(record) for record in caplog.records])


def test_an_api_that_is_killed_takes_the_process_with_it(staged: Api) -> None:
    job_id = staged.finished_job(weights=WEIGHTS)
    with ThreadPoolExecutor(1) as pool:
        url = f"{staged.url}/jobs/{job_id}/model?format=inference"
        asked = pool.submit(httpx2.get, url, timeout=60)
        (making,) = eventually(lambda: exporters(os.getpid()), what="the making")
        os.kill(processes()[making][0], signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):
            asked.result()
    eventually(lambda: not is_alive(making), within_s=5, what="the end of the process")
    assert len(folders(staged.settings.home)) == 1  # nobody was left to remove it
